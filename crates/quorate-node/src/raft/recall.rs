//! A node that was started on an older copy of its directory has forgotten entries that it
//! acknowledged and votes that it gave, on which the cluster counts (Raft, figure 2). It must not
//! vote as if there had been none.
//!
//! - Every node remembers, since it started, what the others promised to it: the terms in which
//!   they voted for it or followed it, and how far they acknowledged its entries ([`Promise`]).
//! - A node that starts asks the other voters (`upkeep/recall.rs`) for that, before it votes or
//!   takes anything, once each. Voters that do not answer are asked until they do, but not waited
//!   for: or two of three could not start without the third.
//! - When the log shows by itself that it may be old (its directory is a copy), it waits until
//!   every quorum that this node can have been part of includes a voter that has answered, and
//!   takes their logs for what it had promised.
//! - One that is behind what it promised votes only for nodes that have it, and stands for nothing
//!   itself, until it has it: as it would have without the loss. A leader of a term before its last
//!   vote hears of that one, and steps down. It remembers on disk that its log is doubted.
//! - A founder with an empty log is held to what the other founders have, where that is more than
//!   the founding's first entry (`upkeep/amnesia.rs`): it may be a voter that acknowledged it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;
use std::time::Duration;

use openraft::storage::{RaftLogReader as _, RaftLogStorage as _};
use openraft::vote::RaftLeaderId as _;
use quorate_log::NodeId;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::error::NodeError;
use crate::types::{LogId, LogStore, Vote};

/// A message of the Raft library waits at most this long until this node knows what it promised.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// What a node promised to another one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Promise {
    /// The latest term in which it voted for the other or followed it: it takes nothing of an
    /// earlier one.
    pub(crate) term: u64,
    /// The furthest entry that it acknowledged in that term ...
    pub(crate) in_term: Option<LogId>,
    /// ... and in any.
    pub(crate) last: Option<LogId>,
}

impl Promise {
    pub(crate) fn note(&mut self, term: u64, last: Option<LogId>) {
        if term > self.term {
            (self.term, self.in_term) = (term, None);
        }
        if term == self.term {
            self.in_term = self.in_term.max(last);
        }
        self.last = self.last.max(last);
    }

    /// Whether a node that is this far still has it. In one term a log only grows; a later leader
    /// may have cut it.
    pub(crate) fn is_kept_by(&self, at: Reached) -> bool {
        at.term > self.term || at.term == self.term && at.last >= self.in_term
    }
}

/// How far a node's vote and log are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Reached {
    pub(crate) term: u64,
    pub(crate) last: Option<LogId>,
}

impl Reached {
    /// Whether there is more than the membership, which every founder begins its log with.
    pub(crate) fn is_led(&self) -> bool {
        self.last.is_some_and(|last| last.index() > 0)
    }

    pub(crate) fn covers(&self, other: &Self) -> bool {
        self.term >= other.term && self.last >= other.last
    }

    pub(crate) fn or(self, other: Self) -> Self {
        Self { term: self.term.max(other.term), last: self.last.max(other.last) }
    }
}

/// What another node answers the one that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Recalled {
    /// How far it is itself.
    pub(crate) reached: Reached,
    /// What the asker promised to it.
    pub(crate) promise: Promise,
}

impl Recalled {
    /// What a node that may have lost anything is held to by this.
    pub(crate) fn floor(&self) -> Reached {
        self.reached.or(Reached { term: self.promise.term, last: self.promise.last })
    }
}

/// Whether this node may vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Not yet: it asks the others. `missing`: how many more have to answer, where its log may be
    /// old.
    Asking {
        missing: usize,
    },
    /// It is behind this, which it had promised.
    Behind(Reached),
    Sound,
}

/// What this node remembers for the others, and whether it may vote itself.
#[derive(Debug)]
pub(crate) struct Recall {
    node: NodeId,
    standing: watch::Sender<Standing>,
    /// What others promised to this node.
    promised: Mutex<BTreeMap<NodeId, Promise>>,
}

impl Recall {
    pub(crate) fn new(node: NodeId) -> Self {
        let standing = watch::Sender::new(Standing::Asking { missing: 0 });
        Self { node, standing, promised: Mutex::default() }
    }

    /// Another node took part in a term, as far as this one knows, and has the log up to `last`.
    pub(crate) fn note(&self, id: NodeId, term: u64, last: Option<LogId>) {
        let mut promised = self.promised.lock().expect("invariant: nothing panics under this lock");
        promised.entry(id).or_default().note(term, last);
    }

    /// The node is held to this until it has it; before it takes part in anything.
    pub(crate) fn hold_to(&self, floor: Reached) {
        self.standing.send_replace(Standing::Behind(floor));
    }

    pub(crate) fn standing(&self) -> Standing {
        *self.standing.borrow()
    }

    /// Whether this node may vote has been found out, or may have changed.
    pub(crate) fn settle(&self, standing: Standing) {
        self.standing.send_replace(standing);
    }

    /// What this node answers one that asks what it had promised.
    ///
    /// # Errors
    /// The log's.
    pub(crate) async fn recalled(
        &self,
        log: &LogStore,
        asker: Option<NodeId>,
    ) -> io::Result<Recalled> {
        let promise = asker.map(|id| self.promise_of(id)).unwrap_or_default();
        Ok(Recalled { reached: reached(log).await?, promise })
    }

    fn promise_of(&self, id: NodeId) -> Promise {
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

    /// The vote that a leader of this term is answered with, where this node took part in a later
    /// one: nothing is taken from it, and it steps down, as for a node that has forgotten nothing.
    /// For whom this node voted then is not known, so it says: for itself. It stands in no term up
    /// to that one, and a leader of that term goes before any vote that is none.
    ///
    /// # Errors
    /// It does not know yet.
    pub(crate) async fn later_vote(&self, term: u64) -> Result<Option<Vote>, NodeError> {
        let floor = self.known().await?.filter(|floor| term < floor.term);
        Ok(floor.map(|floor| Vote::new(floor.term, self.node)))
    }

    /// Whether this node may do what a leader of this term asks it to.
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

    /// Whether a node with this log, this one or another, may ask the others whether they would
    /// vote for it.
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

/// How far the vote and the log are.
///
/// # Errors
/// The log's.
pub(crate) async fn reached(log: &LogStore) -> io::Result<Reached> {
    let mut log = log.clone();
    let term = log.read_vote().await?.map_or(0, |vote| vote.leader_id().term());
    Ok(Reached { term, last: log.get_log_state().await?.last_log_id })
}
