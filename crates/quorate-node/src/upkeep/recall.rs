//! A node that was started on an older copy of its directory has forgotten entries that it acknowledged and votes that it
//! gave, on which the cluster counts (Raft, figure 2). It must not vote as if there had been none.
//!
//! - Every node remembers, since it started, what the others promised to it: the terms in which they voted for it or followed
//!   it, and how far they acknowledged its entries ([`Promise`]).
//! - A node that starts asks the other voters for that, before it votes or takes anything, once each. Those that do not answer
//!   are asked until they do, but not waited for: or two of three could not start without the third.
//! - When the log shows by itself that it may be old (its directory is a copy), it waits until so many have answered that one
//!   of them is in every quorum that this node can have been part of, and takes their logs for what it had promised.
//! - One that is behind what it promised votes only for nodes that have it, and stands for nothing itself, until it has it:
//!   as it would have without the loss. It remembers on disk that its log is doubted.
//! - A founder with an empty log is held to what the other founders have, where that is more than the founding's first entry
//!   (`upkeep/amnesia.rs`): it may be one of those that acknowledged it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::storage::{RaftLogReader as _, RaftLogStorage as _};
use openraft::vote::RaftLeaderId as _;
use quorate_proto::peer::v1::RecallRequest;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::error::NodeError;
use crate::error::RunError;
use crate::node::Node;
use crate::peers::Lane;
use crate::types::{LogId, LogStore, decode};

/// How long each of the others has to answer.
const ASK_TIMEOUT: Duration = Duration::from_millis(500);

/// While something is not settled, a look this often; then those that did not answer yet are asked this often.
const EVERY: Duration = Duration::from_millis(50);
const EVERY_SETTLED: Duration = Duration::from_secs(1);

/// A message of the Raft library waits so long until this node knows what it promised.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// What a node promised to another one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Promise {
    /// The latest term in which it voted for the other or followed it: it takes nothing of an earlier one.
    term: u64,
    /// The furthest entry that it acknowledged in that term ...
    in_term: Option<LogId>,
    /// ... and in any.
    last: Option<LogId>,
}

impl Promise {
    fn note(&mut self, term: u64, last: Option<LogId>) {
        if term > self.term {
            (self.term, self.in_term) = (term, None);
        }
        if term == self.term {
            self.in_term = self.in_term.max(last);
        }
        self.last = self.last.max(last);
    }

    /// Whether a node that is so far still has it. In one term a log only grows; a later leader may have cut it.
    fn is_kept_by(&self, at: Reached) -> bool {
        at.term > self.term || at.term == self.term && at.last >= self.in_term
    }
}

/// How far a node's vote and log are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reached {
    term: u64,
    last: Option<LogId>,
}

impl Reached {
    /// Whether there is more than the membership, which every founder begins its log with.
    pub(crate) fn is_led(&self) -> bool {
        self.last.is_some_and(|last| last.index() > 0)
    }

    fn covers(&self, other: &Self) -> bool {
        self.term >= other.term && self.last >= other.last
    }

    pub(crate) fn or(self, other: Self) -> Self {
        Self { term: self.term.max(other.term), last: self.last.max(other.last) }
    }
}

/// What another node tells the one that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Recalled {
    /// How far it is itself.
    reached: Reached,
    /// What the asker promised to it.
    promise: Promise,
}

impl Recalled {
    /// What a node that may have lost anything is held to by this.
    pub(crate) fn floor(&self) -> Reached {
        self.reached.or(Reached { term: self.promise.term, last: self.promise.last })
    }
}

/// Whether this node may vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Not yet: it asks the others. `missing`: so many more have to answer, where its log may be old.
    Asking {
        missing: usize,
    },
    /// It is behind this, which it had promised.
    Behind(Reached),
    Sound,
}

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Recall {
    node: u64,
    standing: watch::Sender<Standing>,
    /// What others promised to this node.
    promised: Mutex<BTreeMap<u64, Promise>>,
}

impl Recall {
    pub(crate) fn new(node: u64) -> Self {
        let standing = watch::Sender::new(Standing::Asking { missing: 0 });
        Self { node, standing, promised: Mutex::default() }
    }

    /// Another node took part in a term, as far as this one knows, and has the log up to `last`.
    pub(crate) fn note(&self, id: u64, term: u64, last: Option<LogId>) {
        let mut promised = self.promised.lock().expect("invariant: nothing panics under this lock");
        promised.entry(id).or_default().note(term, last);
    }

    /// The node is held to this until it has it; before it takes part in anything.
    pub(crate) fn hold_to(&self, floor: Reached) {
        self.standing.send_replace(Standing::Behind(floor));
    }

    fn promise_of(&self, id: u64) -> Promise {
        let promised = self.promised.lock().expect("invariant: nothing panics under this lock");
        promised.get(&id).copied().unwrap_or_default()
    }

    /// Waits for a moment until this node knows what it promised.
    ///
    /// # Errors
    /// It does not know yet.
    async fn known(&self) -> Result<Option<Reached>, NodeError> {
        if *self.standing.borrow() == Standing::Sound {
            return Ok(None);
        }
        let mut standing = self.standing.subscribe();
        let known = standing.wait_for(|now| !matches!(now, Standing::Asking { .. }));
        match timeout(WAIT_MAX, known).await {
            Ok(Ok(standing)) => match *standing {
                Standing::Behind(floor) => Ok(Some(floor)),
                Standing::Asking { .. } | Standing::Sound => Ok(None),
            },
            Ok(Err(_)) | Err(_) => Err(NodeError::Recalling { node: self.node }),
        }
    }

    /// Whether this node may take what a leader of this term sends.
    ///
    /// # Errors
    /// Why not.
    pub(crate) async fn check_leader(&self, term: u64) -> Result<(), NodeError> {
        match self.known().await? {
            Some(floor) if term < floor.term => Err(self.refused(floor)),
            _ => Ok(()),
        }
    }

    /// Whether this node may vote for a candidate of this term with this log.
    ///
    /// # Errors
    /// Why not.
    pub(crate) async fn check_candidate(
        &self,
        term: u64,
        last: Option<LogId>,
    ) -> Result<(), NodeError> {
        match self.known().await? {
            Some(floor) if term <= floor.term || last < floor.last => Err(self.refused(floor)),
            _ => Ok(()),
        }
    }

    /// Whether a node with this log, this one or another, may ask who would vote for it.
    ///
    /// # Errors
    /// Why not.
    pub(crate) async fn check_stands(&self, last: Option<LogId>) -> Result<(), NodeError> {
        self.check_candidate(u64::MAX, last).await
    }

    /// Whether this node's vote of this term is the last that it gave.
    pub(crate) fn knows_its_vote(&self, term: u64) -> bool {
        match *self.standing.borrow() {
            Standing::Asking { .. } => false,
            Standing::Behind(floor) => term >= floor.term,
            Standing::Sound => true,
        }
    }

    /// Why this node does not vote as others do; empty: it does.
    pub(crate) fn doubt(&self) -> String {
        match *self.standing.borrow() {
            Standing::Asking { missing: 0 } => {
                "it asks the other voters how far it was before it started".to_owned()
            }
            Standing::Asking { missing } => format!(
                "its data directory is a copy, and may be old: it takes part in nothing until {missing} more of the \
                 other voters have told how far it was"
            ),
            Standing::Behind(floor) => format!(
                "it was started on an older copy of its data directory, or an empty one: it votes only for nodes that have up to entry {}, \
                 which it may have acknowledged, until it has caught up",
                floor.last.map_or(0, |last| last.index())
            ),
            Standing::Sound => String::new(),
        }
    }

    fn refused(&self, floor: Reached) -> NodeError {
        let acknowledged = floor.last.map_or(0, |last| last.index());
        NodeError::RolledBack { node: self.node, acknowledged, term: floor.term }
    }
}

/// Finds out what this node had promised, and watches it catch up.
pub(crate) async fn run(node: Arc<Node>, log: LogStore) -> Result<(), RunError> {
    // What a founder with an empty log is held to is known by then.
    while !node.takes_part.load(Ordering::Acquire) {
        tokio::time::sleep(EVERY).await;
    }
    let Ok(at_start) = reached(&log).await else { return std::future::pending().await };
    let is_held = matches!(*node.recall.standing.borrow(), Standing::Behind(_));
    let copied = log.is_doubted() && !is_held;
    let mut looking = LookingBack { node, log, copied, at_start, answers: BTreeMap::new() };
    // None: the log has failed, and with it soon the node.
    while let Some(standing) = looking.look().await {
        looking.node.recall.standing.send_replace(standing);
        let settled = standing == Standing::Sound;
        tokio::time::sleep(if settled { EVERY_SETTLED } else { EVERY }).await;
    }
    std::future::pending().await
}

struct LookingBack {
    node: Arc<Node>,
    log: LogStore,
    /// The log was doubted when the node started.
    copied: bool,
    at_start: Reached,
    answers: BTreeMap<u64, Recalled>,
}

impl LookingBack {
    /// Asks those that have not answered yet, and weighs what is known.
    async fn look(&mut self) -> Option<Standing> {
        let configs = {
            let view = self.node.view.borrow_watched();
            view.membership_config.membership().get_joint_config().clone()
        };
        let me = self.node.id;
        let others: BTreeSet<u64> = configs.iter().flatten().copied().collect();
        let missing = others.iter().filter(|id| **id != me && !self.answers.contains_key(id));
        let node = &self.node;
        let asked = join_all(missing.map(|id| async move { Some((*id, node.ask(*id).await?)) }));
        self.answers.extend(asked.await.into_iter().flatten());

        let before = *self.node.recall.standing.borrow();
        let reached = reached(&self.log).await.ok()?;
        let floor = match self.copied && self.log.is_doubted() {
            true => match missing_answers(me, &configs, &self.answers) {
                0 => floor_of_copy(self.answers.values()),
                missing => return Some(self.asks_on(before, missing)),
            },
            // Of a floor that was found, a later term alone is no end.
            false => match before {
                Standing::Behind(floor) => floor,
                Standing::Asking { .. } | Standing::Sound => Reached::default(),
            },
        };
        let floor = floor.or(broken(self.at_start, reached, self.answers.values()));
        match reached.covers(&floor) {
            true if self.log.is_doubted() => self.caught_up(before).await,
            true => Some(Standing::Sound),
            false => self.is_behind(before, reached, floor).await,
        }
    }

    fn asks_on(&self, before: Standing, missing: usize) -> Standing {
        let standing = Standing::Asking { missing };
        if before != standing {
            tracing::warn!(
                missing,
                "the data directory is a copy and may be old: waiting for other voters to tell how far this node was"
            );
        }
        standing
    }

    async fn is_behind(
        &self,
        before: Standing,
        reached: Reached,
        floor: Reached,
    ) -> Option<Standing> {
        if !self.log.is_doubted() {
            // Or it would forget this with its next start.
            self.log.set_doubted(true).await.ok()?;
        }
        if before != Standing::Behind(floor) {
            let index = |last: Option<LogId>| last.map_or(0, |last| last.index());
            tracing::warn!(
                term = reached.term,
                last = index(reached.last),
                known_term = floor.term,
                known_last = index(floor.last),
                "the others know this node further than it is (an older copy of its data directory, or it led and died \
                 before its own disk had what others had): it votes only for nodes that are so far until it has caught up"
            );
        }
        Some(Standing::Behind(floor))
    }

    async fn caught_up(&self, before: Standing) -> Option<Standing> {
        self.log.set_doubted(false).await.ok()?;
        match before {
            Standing::Behind(_) => {
                tracing::info!("this node has caught up with what the others knew of it");
            }
            _ => tracing::info!("the data directory is a copy, and as far as this node was"),
        }
        Some(Standing::Sound)
    }
}

/// How far the vote and the log are.
///
/// # Errors
/// The log's.
async fn reached(log: &LogStore) -> io::Result<Reached> {
    let mut log = log.clone();
    let term = log.read_vote().await?.map_or(0, |vote| vote.leader_id().term());
    Ok(Reached { term, last: log.get_log_state().await?.last_log_id })
}

impl Node {
    /// What this node tells one that asks what it had promised.
    ///
    /// # Errors
    /// The log's.
    pub(crate) async fn recalled(&self, log: &LogStore, asker: u64) -> io::Result<Recalled> {
        Ok(Recalled { reached: reached(log).await?, promise: self.recall.promise_of(asker) })
    }

    async fn ask(&self, id: u64) -> Option<Recalled> {
        let (_, mut client) = self.peer_client(id, Lane::Control).ok()?;
        let request = self.peers.request(id, RecallRequest {}, Some(ASK_TIMEOUT));
        let answer = timeout(ASK_TIMEOUT, client.recall(request)).await.ok()?.ok()?;
        decode(&answer.into_inner().data).ok()
    }
}

/// How many more have to answer, until one of them is in every quorum of which this node can have been: of n voters, all but
/// so many as may be missing from a quorum that has this node.
fn missing_answers(me: u64, configs: &[BTreeSet<u64>], answers: &BTreeMap<u64, Recalled>) -> usize {
    let missing = configs.iter().map(|voters| {
        let others = voters.iter().filter(|id| **id != me);
        let answered = others.clone().filter(|id| answers.contains_key(id)).count();
        (voters.len() - voters.len() / 2).min(others.count()).saturating_sub(answered)
    });
    missing.max().unwrap_or(0)
}

/// What a node that may have lost anything is held to.
fn floor_of_copy<'a>(answers: impl Iterator<Item = &'a Recalled>) -> Reached {
    answers.map(Recalled::floor).fold(Reached::default(), Reached::or)
}

/// What this node had promised before it started and does not have.
fn broken<'a>(
    at_start: Reached,
    reached: Reached,
    answers: impl Iterator<Item = &'a Recalled>,
) -> Reached {
    let broken = answers.map(|told| told.promise).filter(|promise| !promise.is_kept_by(at_start));
    let broken = broken.map(|promise| Reached { term: promise.term, last: promise.last });
    // What it promised since it started, it has.
    broken.filter(|floor| !reached.covers(floor)).fold(Reached::default(), Reached::or)
}

#[cfg(test)]
mod tests;
