//! The Quorate server as a library: Raft, gRPC and the watch hub around the replicated registry.
//!
//! Begin with `server.rs` (what runs), then `node.rs` (what a call can do), then `grpc/registry.rs` (the calls).
//!
//! | file | duty |
//! |---|---|
//! | `opening`, `server` | what is found and settled first; bind, build, spawn, stop |
//! | `config`, `start_error` | every knob; why a node does not start |
//! | `node`, `error` | propose, read, ask the leader; why that failed |
//! | `clock`, `ticker` | registry time: how a leader makes it, and lets it pass |
//! | `renewals`, `reads`, `forwards` | many renewals in one entry; reads in one round; calls in one message |
//! | `requests` | the name of a write, so that it is done once |
//! | `queues` | where these wait, and the loops that do them |
//! | `answers` | how many bytes of answers may be under way |
//! | `encoded` | services that need not be encoded again |
//! | `applied`, `watch`, `subscription` | the applied state and its watchers under one lock; one watcher's stream |
//! | `shared_event`, `wake` | a change that is encoded once for all watchers; how one of them is woken |
//! | `wire_size` | about what things take in a message |
//! | `membership`, `member_loop`, `cluster_status` | changing members; this node's own part in it; how they are |
//! | `incarnations` | how high one may be |
//! | `amnesia` | refuses to come back under an id whose disk was lost |
//! | `recall` | asks what it had promised, in case its directory is an older copy |
//! | `net` | sockets, real or simulated |
//! | `authority` | lets calls in whose `:authority` is none |
//! | `connections` | how many a listener takes; ends those that say nothing or are idle |
//! | `calls` | how many may be under way; serves each connection |
//! | `address_book`, `moving` | where the other nodes may be; how those that moved tell it |
//! | `compaction` | a snapshot when the log is long |
//! | `leadership`, `disk`, `peers` | who leads and how fresh; room on the disk; connections to other nodes |
//! | `prober/` | active health checks, made by the leader |
//! | `failover` | replaces a leader whose process has died |
//! | `raft/` | the adapters to the Raft library |
//! | `grpc/`, `convert`, `status` | handlers; wire types to ours and back; errors to codes |

mod address_book;
mod amnesia;
mod answers;
mod applied;
mod authority;
mod calls;
mod clock;
mod cluster_status;
mod compaction;
mod config;
mod connections;
mod convert;
mod disk;
mod encoded;
mod error;
mod failover;
mod forwards;
mod grpc;
mod incarnations;
mod leadership;
mod member_loop;
mod membership;
mod moving;
mod net;
mod node;
mod opening;
mod peers;
mod prober;
mod queues;
mod raft;
mod reads;
mod recall;
mod renewals;
mod requests;
mod server;
mod shared_event;
mod start_error;
mod status;
mod streams;
mod subscription;
mod ticker;
mod wake;
mod watch;
mod wire_size;

pub use config::{Config, ConfigError, HealthChecks, Start, Tunables};
pub use net::{Connection, Environment, Listener, Net, SimulatedNet};
pub use prober::{BadNetwork, Networks};
pub use quorate_log::{Io, catches_panics};
pub use raft::runtime::seed_this_thread;
pub use server::{Bound, Server};
pub use start_error::{RunError, StartError};
