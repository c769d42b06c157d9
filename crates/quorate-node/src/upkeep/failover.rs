//! A leader whose process has died is replaced at once, without waiting for silence.
//!
//! When a process dies, its connections end. A follower whose stream of appends breaks, or which
//! another node asks for its vote, asks the leader's peer address for a new connection; only when
//! that is refused (the machine answers that no process listens there) is the process taken for
//! dead. A broken connection to a leader that lives, a leader that stands still and a machine that
//! is gone never look so: they are left to the election timeouts.
//!
//! Then this node gives up the lease that the dead leader has of it, and stands for election after
//! a short random pause. Why that is safe:
//! - Which node may lead is decided by terms and logs alone, and nothing of that is touched here.
//!   The lease makes a node refuse votes for a while after it heard of a leader, so that no node
//!   disturbs one that works. Linearizable reads do not build on it (`node/reads.rs` asks a quorum
//!   each time), nor does registry time (it is an entry of the log).
//! - The round begins with a Pre-Vote, so it changes nothing unless a majority gave up the lease
//!   too: each of them has found the leader dead by itself. If the proof was wrong (something on
//!   the way refuses connections for a machine that lives), a leader that a majority hears stays,
//!   and without one the worst is an election.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use openraft::AsyncRuntime as _;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::raft::TransferLeaderRequest;
use rand_core::Rng as _;
use tokio::time::{sleep, timeout};

use crate::error::RunError;
use crate::node::Node;
use crate::runtime::Runtime;
use crate::types::Vote;

/// The address is tried this often, with this pause between: a process that dies closes its
/// connections and its listener one after the other, within some ms. After 100 ms without a refusal
/// the leader is slow, not dead, and the usual timeout decides.
const PROBES: u32 = 10;
const PROBE_EVERY: Duration = Duration::from_millis(10);

/// A refusal comes within a round trip; what takes longer is none.
const PROBE_TIMEOUT: Duration = Duration::from_millis(200);

/// This node stands for election at most this often, until a node leads or is being elected: the
/// others may find out later, by their own probes. Ten pauses are about 150 ms, longer than these.
const ROUNDS: u32 = 10;

/// A round begins after a random pause up to this, ms, so that the survivors seldom begin in the
/// same moment.
const PAUSE_MS: u64 = 30;

/// Looks whether a suspected leader is dead, and replaces it.
pub(crate) struct Failover {
    node: Arc<Node>,
}

impl Failover {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    pub(crate) async fn run(self) -> Result<(), RunError> {
        let mut suspects = self.node.leadership().suspects();
        while suspects.changed().await.is_ok() {
            let Some(leader) = *suspects.borrow_and_update() else { continue };
            if self.is_dead(&leader).await {
                self.replace(leader).await;
            }
        }
        std::future::pending().await
    }

    /// Whether this is the vote of the leader that this node follows.
    fn follows(&self, leader: &Vote) -> bool {
        let view = self.node.view().borrow_watched();
        view.vote == *leader && leader.committed && !view.state.is_leader()
    }

    /// Whether connections to the leader's address are refused.
    async fn is_dead(&self, leader: &Vote) -> bool {
        for _ in 0..PROBES {
            let member = self.node.member(leader.leader_id().voted_for);
            let Some(member) = member.filter(|_| self.follows(leader)) else { return false };
            let id = leader.leader_id().voted_for;
            // Where it was before it moved, no node listens.
            let address = self.node.peers().book.address(id, &member.peer_address);
            let dial = self.node.peers().net().dial(&address);
            let dialled = timeout(PROBE_TIMEOUT, dial).await;
            if let Ok(Err(error)) = dialled
                && error.kind() == io::ErrorKind::ConnectionRefused
            {
                return true;
            }
            sleep(PROBE_EVERY).await;
        }
        false
    }

    /// Gives up the leader's lease, and stands for election until there is a candidate or a leader.
    async fn replace(&self, leader: Vote) {
        let dead = leader.leader_id().voted_for;
        tracing::warn!(leader = dead.get(), "the leader's process has died: electing the next");
        // What a leader that hands over sends to nodes that are not to follow it: its lease holds
        // no longer.
        let release = TransferLeaderRequest::new(leader, dead, None);
        let _told_by_its_end = self.node.raft().handle_transfer_leader(release).await;
        for _ in 0..ROUNDS {
            let pause_ms = Runtime::thread_rng().next_u64() % PAUSE_MS;
            sleep(Duration::from_millis(pause_ms)).await;
            if !self.follows(&leader) {
                return;
            }
            let _told_by_its_end = self.node.raft().trigger().elect(true).await;
        }
    }
}
