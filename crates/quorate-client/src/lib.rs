//! The Quorate client: register a process, and find others, over a list of nodes that may come and
//! go.
//!
//! ```no_run
//! use quorate_client::{Client, DiscoveryEvent, InstanceBuilder};
//!
//! # async fn example() -> Result<(), quorate_client::Error> {
//! let client = Client::new(["127.0.0.1:7001", "127.0.0.1:7002", "127.0.0.1:7003"])?;
//!
//! // Kept alive by a background task until it is deregistered or dropped.
//! let me = InstanceBuilder::new("orders", "orders-1").endpoint("http", "http://10.0.0.1:8080");
//! let registration = client.register(me).await?;
//!
//! // Which instances can be called: a live view, kept current over every failure of nodes.
//! let payments = client.discover("payments")?;
//! println!("{} instances of payments", payments.usable().await?.len());
//! let mut listener = payments.listen();
//! match listener.next().await {
//!     DiscoveryEvent::Added(instance) => println!("+ {}", instance.id),
//!     DiscoveryEvent::Updated(instance) => println!("~ {}", instance.id),
//!     DiscoveryEvent::Removed { instance, .. } => println!("- {}", instance.id),
//!     _ => {}
//! }
//! registration.deregister().await?;
//! # Ok(())
//! # }
//! ```
//!
//! Every call has a deadline and goes from node to node within it; every failure is an [`Error`] to
//! match on, never an empty list. The only exceptions are the two streams (a watch and a backup),
//! which have an idle timeout instead.
//!
//! # Settings
//!
//! ```no_run
//! # use std::time::Duration;
//! # async fn example() -> Result<(), quorate_client::Error> {
//! let client = quorate_client::Client::builder(["10.0.0.1:7001", "10.0.0.2:7001", "10.0.0.3:7001"])
//!     .namespace("staging")
//!     .call_timeout(Duration::from_secs(2))
//!     .cache_dir("/var/cache/orders")
//!     .build()?;
//! for service in client.list_services("", quorate_client::Consistency::Local).await? {
//!     println!("{} has {} instances", service.name, service.instances);
//! }
//! assert_eq!(client.counters().divergences, 0); // live views that were wrong: a bug of ours
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//!
//! All are on unless `default-features = false`; then what is left registers, reads, follows and
//! balances.
//!
//! | feature | gives |
//! |---|---|
//! | `cache` | [`ClientBuilder::cache_dir`], last known views in files |
//! | `channel` | [`Client::channel`], a tonic channel that follows a view |
//! | `serve` | [`Client::serve`], the life of a server; needs tokio's signals |
//! | `tls` | [`ClientBuilder::tls`], encrypted connections |
//!
//! # Rooms
//!
//! | room | duty |
//! |---|---|
//! | `client/`, `environment` | [`Client`] and its settings, the calls that read; settings from the environment |
//! | `admin` | [`Admin`], the operators' calls |
//! | `calling/` | [`Balancer`]; calls with retries, and to all; a tonic channel that follows a view |
//! | `registering/` | [`RegistrationHandle`] and the task that keeps it, the stream that renews all, [`Serving`] |
//! | `following/` | [`Discovery`], live views over one shared stream; [`Watch`], a stream of changes |
//! | `nodes/` | one call over many nodes: which node, of which cluster; what a code means; the members |
//! | `reading` | services, in one answer or in pages |
//! | `core` | what all that a client started shares: settings, connections, its name |
//! | `counters`, `clock` | what is counted; a clock that goes on while the machine is suspended |
//! | `types/`, `error` | what goes in and out |

mod admin;
mod calling;
mod client;
mod clock;
mod core;
mod counters;
mod environment;
mod error;
mod following;
mod nodes;
mod reading;
mod registering;
mod types;

pub use admin::{Admin, Backup};
#[cfg(feature = "channel")]
pub use calling::ChannelBuilder;
pub use calling::{Balancer, CallError, Caller, FailMode, Fault, Picked, Policy};
pub use client::{Client, ClientBuilder};
pub use counters::Counters;
pub use environment::parse_nodes;
pub use error::{AddressFault, Attempt, Code, Error, TlsMismatch};
pub use following::{
    Discovery, DiscoveryEvent, Instances, Listener, Origin, Selector, View, Watch, WatchEvent,
    WatchStatus,
};
#[cfg(feature = "tls")]
pub use nodes::tls::Tls;
/// Drawn at random when the cluster was founded; 16 hexadecimal digits.
pub use quorate_proto::ClusterId;
pub use registering::{Gone, Lease, RegistrationHandle, RegistrationState};
#[cfg(feature = "serve")]
pub use registering::{Served, Serving, Stop};
/// An example is at [`Selector::healths`].
pub use types::Health;
pub use types::HealthCheck;
/// From [`InstanceBuilder::build`], where an example is.
pub use types::InstanceSpec;
/// An example is at [`Update`].
pub use types::InstanceStatus;
/// An example is among the [settings](crate#settings).
pub use types::ServiceSummary;
/// An example is at [`Admin`].
pub use types::{
    Condition, InstanceOverride, Member, MemberRole, MemberStatus, NodeState, OverriddenInstance,
    Standing, WritesRefused,
};
/// An example is at [`FetchOptions`].
pub use types::{Consistency, ResponseHeader, Service};
pub use types::{FetchOptions, Fetched, InstanceBuilder, Registration, Selection, Update};
/// Examples are at [`Discovery`] and [`Watch`].
pub use types::{Instance, RemoveReason};

/// The version of tonic whose types stand in this crate's interface ([`Code`], `ChannelBuilder`,
/// [`Caller`]): stubs that are generated for this one fit.
pub use tonic;

/// `cargo test` compiles the snippets of the book's guide.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/client-guide.md")]
struct Guide;

/// And of its page on metrics.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/metrics.md")]
struct Metrics;
