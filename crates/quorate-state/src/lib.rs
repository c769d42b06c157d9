//! The replicated state machine of Quorate: which instances are registered, the leases that keep
//! them, and the clock that leases end by.
//!
//! Synchronous and deterministic: [`Registry::apply`] is a function of the state and a [`Command`],
//! so every node that applies the same log holds the same state and writes the same snapshot bytes.
//! This crate knows no network, no disk, no runtime, no Raft, and reads no clock: time comes in
//! commands.
//!
//! Begin with `command.rs` (the whole vocabulary), then `registry.rs` (what each command does),
//! then `registry/leases.rs::expire_due` (the only place where a lease ends by time).

mod checks;
mod command;
mod event;
mod forwarded;
mod hash;
mod level;
pub mod limits;
mod load;
mod optional;
mod registry;
mod snapshot;
mod spec;
mod tables;
mod texts;
mod types;

#[cfg(test)]
mod tests;

pub use checks::{
    CheckKind, Checks, Finding, Health, HealthCheck, HealthReason, HealthReport, host_and_port,
};
pub use command::{
    Command, Deregister, InstanceRef, Op, Register, Registered, Rejection, Renew, Reply, Request,
    Scope, SetOverride, Share, Update, Write,
};
pub use event::{Applied, Change, Event, RemoveReason};
pub use level::{Level, Levels};
pub use limits::Invalid;
pub use load::Load;
pub use optional::{Optional, read_whole};
pub use registry::{
    CheckedInstances, Counts, Founding, Lease, OldNode, Predecessor, Registry, Removal, Service,
};
pub use snapshot::{SnapshotError, read_snapshot, read_snapshot_cluster, write_snapshot};
pub use spec::{Instance, InstanceSpec, Override, SpecParts, Status};
pub use tables::SortedMap;
pub use texts::TextMap;
pub use types::{
    Clock, Incarnation, InstanceId, InstanceKey, LeaseId, Namespace, Revision, ServiceKey,
    ServiceName, Ttl,
};
