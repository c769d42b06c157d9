//! How the members are doing: this node's own part, and what the others say of theirs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::join_all;
use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver as _;
use prost::Message as _;
use quorate_log::NodeId;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until};

use crate::node::condition::Condition;
use crate::node::{MemberInfo, Node};

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

/// What this node does in Raft. Nodes send it to each other: a number stays what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum RaftState {
    /// One that only a later release has.
    Unknown = 0,
    Learner = 1,
    Follower = 2,
    Candidate = 3,
    Leader = 4,
    ShuttingDown = 5,
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
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct NodeStatus {
    #[prost(enumeration = "RaftState", tag = "1")]
    pub(crate) state: i32,
    #[prost(uint64, tag = "2")]
    pub(crate) term: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) last_log_index: u64,
    #[prost(uint64, tag = "4")]
    pub(crate) applied_index: u64,
    #[prost(uint64, tag = "5")]
    pub(crate) revision: u64,
    #[prost(fixed64, tag = "6")]
    pub(crate) state_hash: u64,
    #[prost(uint64, tag = "7")]
    pub(crate) state_hash_index: u64,
    #[prost(uint64, tag = "8")]
    pub(crate) snapshot_index: u64,
    #[prost(uint64, tag = "9")]
    pub(crate) purged_index: u64,
    #[prost(uint64, tag = "10")]
    pub(crate) disk_free_bytes: u64,
    #[prost(string, tag = "11")]
    pub(crate) version: String,
    #[prost(uint64, tag = "12")]
    pub(crate) uptime_ms: u64,
    #[prost(uint64, tag = "13")]
    pub(crate) probes_made: u64,
    #[prost(uint64, tag = "14")]
    pub(crate) probes_refused: u64,
    #[prost(bool, tag = "15")]
    pub(crate) health_checks: bool,
    #[prost(string, tag = "16")]
    pub(crate) recovering: String,
    #[prost(bool, tag = "17")]
    pub(crate) disk_low: bool,
    #[prost(uint32, tag = "18")]
    pub(crate) level_min: u32,
    #[prost(uint32, tag = "19")]
    pub(crate) level_max: u32,
}

/// What a node reports to others. Nodes of different releases are to read it of each other, so it
/// is a protobuf message: a field that this release does not know is passed over, one that the
/// sender does not know is 0, false, empty or not set, and [`RaftState`] and `Standing` have a
/// value for those of later releases. A number is never used again.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Report {
    #[prost(message, required, tag = "1")]
    pub(crate) status: NodeStatus,
    #[prost(message, required, tag = "2")]
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
        let (hash_index, hash) = self.applied.lock().marks.last();
        let position = self.applied.position();
        let metrics = self.metrics.borrow_watched();
        NodeStatus {
            state: RaftState::from(metrics.state).into(),
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
            level_min: self.levels.min,
            level_max: self.levels.max,
        }
    }

    /// This node's status and its condition, as other nodes ask for them.
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
        Report::decode(status).map_err(|error| format!("its report cannot be read: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::condition::{Refusal, Standing};

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

    /// As a later release may have it: with fields that this one does not know.
    #[derive(Clone, PartialEq, prost::Message)]
    struct Later {
        #[prost(message, required, tag = "1")]
        status: LaterStatus,
        #[prost(message, required, tag = "77")]
        more: LaterStatus,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct LaterStatus {
        #[prost(int32, tag = "1")]
        state: i32,
        #[prost(string, tag = "11")]
        version: String,
        #[prost(string, optional, tag = "99")]
        mood: Option<String>,
    }

    #[test]
    fn a_report_of_a_later_release_is_read_without_what_is_not_known() {
        let (version, mood) = ("9.0.0".to_owned(), Some("good".to_owned()));
        let status = LaterStatus { state: 12, version, mood };
        let later = Later { status: status.clone(), more: status };
        let read = Report::decode(&*later.encode_to_vec()).unwrap();
        assert_eq!(
            (read.status.version.as_str(), read.status.state()),
            ("9.0.0", RaftState::Unknown)
        );
    }

    #[test]
    fn what_an_earlier_release_does_not_report_has_its_default() {
        let read = Report::decode(&[][..]).unwrap();
        assert_eq!(read, Report::default());
        assert_eq!((read.status.state(), read.status.level_max), (RaftState::Unknown, 0));
        let Condition { backup_age_ms, certificate_ends_in_s, .. } = read.condition;
        assert_eq!((backup_age_ms, certificate_ends_in_s), (None, None));
        assert_eq!(read.condition.standing(), Standing::Unknown);
        let empty = LaterStatus::default().encode_to_vec();
        assert!(empty.is_empty(), "what has its default takes no room");
    }

    /// Each field by its number: these bytes are read by releases that are out.
    #[test]
    fn the_bytes_of_a_report() {
        let status = NodeStatus {
            state: RaftState::Leader.into(),
            term: 2,
            last_log_index: 3,
            applied_index: 4,
            revision: 5,
            state_hash: 6,
            state_hash_index: 7,
            snapshot_index: 8,
            purged_index: 9,
            disk_free_bytes: 10,
            version: "v".to_owned(),
            uptime_ms: 12,
            probes_made: 13,
            probes_refused: 14,
            health_checks: true,
            recovering: "r".to_owned(),
            disk_low: true,
            level_min: 18,
            level_max: 19,
        };
        let condition = Condition {
            standing: Standing::CutOff.into(),
            reason: "w".to_owned(),
            clock_held_ms: 3,
            snapshot_written_ms: Some(4),
            backup_age_ms: Some(0),
            certificate_ends_in_s: Some(-1),
            files_refused: true,
            disk_reserve_bytes: 8,
            open_listeners: "o".to_owned(),
            counted_ms: 10,
            syncs: 11,
            sync_p99_us: 12,
            watch_resets: 13,
            probes_refused: 14,
            connections: 15,
            busiest_address: "b".to_owned(),
            busiest_connections: 17,
            busiest_calls: 18,
            connections_per_address_max: 19,
            open_files: [("k".to_owned(), "p".to_owned())].into(),
            writes_refused: Refusal::StateFull.into(),
            writes_refused_why: "f".to_owned(),
            states_differ: vec![23],
        };
        let golden: &[&[u8]] = &[
            // The status: its length, then number and kind of each field before its value.
            &[0x0a, 51],
            &[0x08, 4, 0x10, 2, 0x18, 3, 0x20, 4, 0x28, 5, 0x31, 6, 0, 0, 0, 0, 0, 0, 0],
            &[0x38, 7, 0x40, 8, 0x48, 9, 0x50, 10, 0x5a, 1, b'v', 0x60, 12, 0x68, 13, 0x70, 14],
            &[0x78, 1, 0x82, 1, 1, b'r', 0x88, 1, 1, 0x90, 1, 18, 0x98, 1, 19],
            // The condition.
            &[0x12, 74],
            &[0x08, 5, 0x12, 1, b'w', 0x18, 3, 0x20, 4, 0x28, 0],
            &[0x30, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1],
            &[0x38, 1, 0x40, 8, 0x4a, 1, b'o', 0x50, 10, 0x58, 11, 0x60, 12, 0x68, 13, 0x70, 14],
            &[0x78, 15, 0x82, 1, 1, b'b', 0x88, 1, 17, 0x90, 1, 18, 0x98, 1, 19],
            &[0xa2, 1, 6, 0x0a, 1, b'k', 0x12, 1, b'p'],
            &[0xa8, 1, 5, 0xb2, 1, 1, b'f', 0xba, 1, 1, 23],
        ];
        let report = Report { status, condition };
        assert_eq!(report.encode_to_vec(), golden.concat());
        assert_eq!(Report::decode(&*golden.concat()).unwrap(), report);
    }
}
