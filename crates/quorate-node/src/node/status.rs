//! How the members are doing: this node's own part, and what the others say of theirs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::join_all;
use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver as _;
use quorate_log::NodeId;
use quorate_state::Levels;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until};

use crate::error::with_causes;
use crate::node::condition::Condition;
use crate::node::{MemberInfo, Node};
use crate::types::decode;

/// How long another node has to report its status.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// Between the beginnings of two rounds in which all others are asked for callers: each takes time
/// of every node's Raft, and anybody who is known may call. Who asks again and again is not held up
/// for longer than it takes to look at an answer.
const ROUNDS_APART: Duration = Duration::from_millis(50);

/// How many probes this node made since it started, and how many it was not allowed to make.
#[derive(Debug, Default)]
pub(crate) struct ProbeCounts {
    /// Whether the operator allows any.
    pub(crate) allowed: bool,
    pub(crate) made: AtomicU64,
    pub(crate) refused: AtomicU64,
}

/// What this node does in Raft. Nodes send it to each other: new ones go to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum RaftState {
    Learner,
    Follower,
    Candidate,
    Leader,
    ShuttingDown,
}

impl From<ServerState> for RaftState {
    fn from(state: ServerState) -> Self {
        match state {
            ServerState::Learner => Self::Learner,
            ServerState::Follower => Self::Follower,
            ServerState::Candidate => Self::Candidate,
            ServerState::Leader => Self::Leader,
            ServerState::Shutdown => Self::ShuttingDown,
        }
    }
}

/// The lead, as far as this node knows.
#[derive(Debug)]
pub(crate) struct Lead {
    pub(crate) term: u64,
    pub(crate) leader: Option<NodeId>,
    /// Where clients reach the leader; empty if that is not known.
    pub(crate) address: String,
}

/// One node's own view of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NodeStatus {
    pub(crate) state: RaftState,
    pub(crate) term: u64,
    pub(crate) last_log_index: u64,
    pub(crate) applied_index: u64,
    pub(crate) revision: u64,
    pub(crate) state_hash: u64,
    pub(crate) state_hash_index: u64,
    pub(crate) snapshot_index: u64,
    pub(crate) purged_index: u64,
    pub(crate) disk_free_bytes: u64,
    pub(crate) version: String,
    pub(crate) uptime_ms: u64,
    pub(crate) probes_made: u64,
    pub(crate) probes_refused: u64,
    pub(crate) health_checks: bool,
    pub(crate) recovering: String,
    pub(crate) disk_low: bool,
    pub(crate) levels: Levels,
}

/// What a node reports to others.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) status: NodeStatus,
    pub(crate) condition: Condition,
}

/// Every member, with what it says of itself or why it says nothing.
pub(crate) type Reports = Vec<(MemberInfo, Result<Report, String>)>;

/// Rounds in which all members are asked, one at a time. Whoever asks gets one that began after it
/// asked, so what was changed before is in it; all who wait share the next.
#[derive(Debug)]
pub(crate) struct Rounds<T> {
    turn: Semaphore,
    last: Mutex<Option<Round<T>>>,
}

#[derive(Debug)]
struct Round<T> {
    began: Instant,
    /// `None`: it is not over, or never was, since its caller has gone.
    reports: Option<Arc<T>>,
}

impl<T> Default for Rounds<T> {
    fn default() -> Self {
        Self { turn: Semaphore::new(1), last: Mutex::default() }
    }
}

impl<T> Rounds<T> {
    async fn join(&self, ask: impl AsyncFnOnce() -> T) -> Arc<T> {
        let since = Instant::now();
        let _turn = self.turn.acquire().await.expect("invariant: nobody closes it");
        let last = self.last().as_ref().map(|last| (last.began, last.reports.clone()));
        if let Some((began, reports)) = last {
            if let Some(reports) = reports.filter(|_| began >= since) {
                return reports;
            }
            sleep_until(began + ROUNDS_APART).await;
        }
        let began = Instant::now();
        *self.last() = Some(Round { began, reports: None });
        let reports = Arc::new(ask().await);
        *self.last() = Some(Round { began, reports: Some(reports.clone()) });
        reports
    }

    fn last(&self) -> MutexGuard<'_, Option<Round<T>>> {
        self.last.lock().expect("invariant: nothing panics under this lock")
    }
}

impl Node {
    /// For the header of an answer.
    pub(crate) fn lead(&self) -> Lead {
        let metrics = self.metrics.borrow_watched();
        let leader = self.leadership.leader();
        let member = leader.and_then(|id| metrics.membership_config.get_node(&id));
        let address = member.map(|member| member.client_address.clone()).unwrap_or_default();
        Lead { term: metrics.current_term, leader, address }
    }

    /// This node's own part of the status.
    pub(crate) fn own_status(&self) -> NodeStatus {
        let (hash_index, hash) = self.applied.lock().hash_mark;
        let position = self.applied.position();
        let metrics = self.metrics.borrow_watched();
        NodeStatus {
            state: metrics.state.into(),
            term: metrics.current_term,
            last_log_index: metrics.last_log_index.unwrap_or(0),
            applied_index: position.index,
            revision: position.revision,
            state_hash: hash,
            state_hash_index: hash_index,
            snapshot_index: metrics.snapshot.map_or(0, |log_id| log_id.index()),
            purged_index: metrics.purged.map_or(0, |log_id| log_id.index()),
            disk_free_bytes: self.disk.free_bytes(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: self.started.elapsed().as_millis() as u64,
            probes_made: self.probes.made.load(Ordering::Relaxed),
            probes_refused: self.probes.refused.load(Ordering::Relaxed),
            health_checks: self.probes.allowed,
            recovering: self.recall.doubt(),
            disk_low: self.disk.check().is_err(),
            levels: self.levels,
        }
    }

    /// The same, and what there is to say beside it.
    pub(crate) async fn own_report(&self) -> Report {
        let condition = self.condition().await;
        Report { status: self.own_status(), condition }
    }

    /// This node alone, as far as it is a member.
    pub(crate) async fn own_reports(&self) -> Reports {
        let own = self.members().into_iter().find(|member| member.id == self.id);
        match own {
            Some(member) => vec![(member, Ok(self.own_report().await))],
            None => Vec::new(),
        }
    }

    /// All members, asked for this caller and others together.
    pub(crate) async fn cluster_status(&self) -> Arc<Reports> {
        self.rounds.join(async || self.ask_all().await).await
    }

    /// All members, asked now. A node that was removed asks none.
    pub(crate) async fn ask_all(&self) -> Reports {
        let is_removed = self.leadership.is_removed();
        let members = self.members().into_iter();
        let asked = members.filter(|member| !is_removed || member.id != self.id);
        join_all(asked.map(|member| async move {
            let report = match member.id == self.id {
                true => Ok(self.own_report().await),
                false if is_removed => {
                    Err(format!("node {} was removed, and does not ask it", self.id))
                }
                false => self.ask_status(&member, ASK_TIMEOUT).await,
            };
            (member, report)
        }))
        .await
    }

    /// What another node says of itself.
    pub(super) async fn ask_status(
        &self,
        member: &MemberInfo,
        within: Duration,
    ) -> Result<Report, String> {
        let address = self.peers.book.address(member.id, &member.member.peer_address);
        let answer = self.peers.status(member.id, &address, within).await;
        let status = answer.map_err(|status| status.message().to_owned())?;
        decode(&status).map_err(|error| with_causes(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::encode;

    /// What a round takes.
    const TOOK: Duration = Duration::from_millis(8);

    /// A thousand callers, one each ms: what they get was asked after they did, and soon.
    #[tokio::test(start_paused = true)]
    async fn callers_share_rounds_that_began_after_they_asked() {
        let (rounds, begun, asked) = (Rounds::default(), Instant::now(), AtomicU64::new(0));
        let callers = (0..1_000).map(async |at| {
            tokio::time::sleep(Duration::from_millis(at)).await;
            let since = Instant::now();
            let round = rounds.join(async || {
                asked.fetch_add(1, Ordering::Relaxed);
                let began = Instant::now();
                tokio::time::sleep(TOOK).await;
                began
            });
            assert!(*round.await >= since, "asked before its caller");
            assert!(since.elapsed() <= ROUNDS_APART + TOOK * 2, "waited {:?}", since.elapsed());
        });
        join_all(callers).await;
        let most = begun.elapsed().as_millis() / ROUNDS_APART.as_millis() + 1;
        let asked = u128::from(asked.into_inner());
        assert!((2..=most).contains(&asked), "{asked} rounds, at most {most}");
    }

    #[tokio::test(start_paused = true)]
    async fn callers_that_go_away_begin_no_more_rounds() {
        let (rounds, begun) = (Rounds::default(), Instant::now());
        let mut asked = 0_u128;
        while begun.elapsed() < ROUNDS_APART * 10 {
            let round = rounds.join(async || {
                asked += 1;
                tokio::time::sleep(TOOK).await;
            });
            let _gone = tokio::time::timeout(Duration::from_millis(1), round).await;
        }
        assert!((2..=11).contains(&asked), "{asked} rounds");
    }

    /// Nodes that know the library's own type read the same.
    #[test]
    fn a_state_has_the_bytes_of_the_librarys_own() {
        for state in [
            ServerState::Learner,
            ServerState::Follower,
            ServerState::Candidate,
            ServerState::Leader,
            ServerState::Shutdown,
        ] {
            assert_eq!(encode(&RaftState::from(state)), encode(&state), "{state:?}");
        }
    }
}
