//! The Quorate server as a library: Raft, gRPC and the watch hub around the replicated registry.
//!
//! Begin with `server.rs` (what runs), then `node.rs` (what a call can do), then
//! `api/grpc/registry.rs` (the calls). Each room is a file with a folder; what others may use of it
//! stands in that file. A room uses what is below it in this table.
//!
//! | room | duty |
//! |---|---|
//! | `server/` | what is found and settled first; bind, build, spawn, stop |
//! | `api/` | what is answered: handlers, wire types to ours and back, errors to codes |
//! | `upkeep/` | what a node does unasked: time, health checks, snapshots, its own part in the membership |
//! | `node/` | what a call can do: propose, read, ask the leader, change members |
//! | `access/`, `audit` | who calls, and what they may; what they did, for others to read later |
//! | `raft/` | the adapters to the Raft library: its state machine, its network |
//! | `peers/` | connections to the other nodes, where those may be, and what is asked of them |
//! | `applied/` | the applied state and its watchers under one lock |
//! | `net/` | sockets, real or simulated; what bounds connections, calls and answers |
//! | `meters` | what is measured, and by which names |
//! | `clock`, `wall`, `free_space` | how a leader makes registry time; the wall clock; room on the disk |
//! | `backup`, `rescue/` | the file of a backup; a new cluster from one, or from a lost majority's remains |
//! | `reload` | what is read again while a node runs |
//! | `config/`, `error/` | every knob; why a call fails, a node does not start, or ends |
//! | `types`, `runtime` | the Raft library's types as this node uses them; tokio as it uses it |
//!
//! A program that embeds this takes about 26 MiB more memory than the `quorate` binary, once for
//! all nodes in it. The workspace patches `base2histogram`, which openraft fills with statistics
//! that nobody reads, and a patch holds for the workspace alone. Copy `third-party/base2histogram`
//! and its line under `[patch.crates-io]` to have that back.

mod access;
mod api;
mod applied;
mod audit;
mod backup;
mod clock;
mod config;
mod error;
mod free_space;
mod meters;
mod net;
mod node;
mod peers;
mod raft;
mod reload;
pub mod rescue;
mod runtime;
mod server;
mod types;
mod upkeep;
mod wall;

pub use config::{
    AllFailing, Audit, BadNetwork, CLUSTER_NAME, ClientCertificates, Config, ConfigError, Dns,
    HealthChecks, Networks, Start, Tls, Tunables,
};
pub use error::{RunError, StartError};
pub use net::{Connection, Environment, Listener, Net, SimulatedNet};
pub use quorate_log::{Io, NodeId, catches_panics};
pub use quorate_proto::ClusterId;
pub use quorate_state::Levels;
pub use runtime::seed_this_thread;
pub use server::{Bound, Readiness, Server};
pub use wall::set_wall_clock_of_this_thread;

/// The limits of the contract are the limits that the state machine checks.
const _: () = {
    use quorate_proto::limits as wire;
    use quorate_state::limits as state;
    assert!(wire::NAME_BYTES == state::NAME_BYTES);
    assert!(wire::LEASES_PER_CALL == state::LEASES_PER_CALL);
    assert!(wire::SERVICES_PER_CALL == state::INSTANCES_PER_CALL);
    assert!(wire::WEIGHT == state::WEIGHT);
    assert!(wire::TTL_MIN_MS == state::TTL_MIN_MS && wire::TTL_MAX_MS == state::TTL_MAX_MS);
};
