//! What a node does unasked; a loop each, which `server.rs` spawns.
//!
//! | file | duty |
//! |---|---|
//! | `ticker` | lets registry time pass: proposes ticks, ends what is due |
//! | `failover` | replaces a leader whose process has died |
//! | `untaken` | a leader whose successor does not come to lead goes on |
//! | `compaction` | a snapshot when the log is long |
//! | `own_membership` | this node's own part in the membership: founding, joining, being removed |
//! | `moving` | reports to the others where this node is when the log cannot |
//! | `amnesia` | refuses to come back under an id whose disk was lost |
//! | `recall` | asks what it had promised, in case its directory is an older copy |
//! | `states` | compares the states of the others with the leader's own |
//! | `succession` | tells nodes of the clusters that this one was made from that it was |
//! | `upgrade` | raises the cluster's level when all nodes work at a higher one; ends one that does not work at it |
//! | `health/` | active health checks, made by the leader |

pub(crate) mod amnesia;
pub(crate) mod compaction;
pub(crate) mod failover;
pub(crate) mod health;
pub(crate) mod moving;
pub(crate) mod own_membership;
pub(crate) mod recall;
pub(crate) mod states;
pub(crate) mod succession;
pub(crate) mod ticker;
pub(crate) mod untaken;
pub(crate) mod upgrade;
