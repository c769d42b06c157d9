//! Which writes were done, and with what reply, so that one which is handed in again is answered
//! and not done again.
//!
//! A write that was proposed may be in the log although its answer never came: its leader died, or
//! the answer was lost. A retry carries the same [`Request`]; the first entry with it does the
//! write, later ones find its reply here. After RIFL (Lee et al., "Implementing Linearizability at
//! Large Scale and Low Latency", SOSP 2015) and section 6.3 of Ongaro's thesis
//! on Raft: an origin (a process that makes requests) numbers them, and says with each which of its
//! earlier ones are over; only those that are not need a reply. A refused write changes nothing, so
//! no reply is kept of it.
//!
//! An origin that made no request for [`ORIGIN_MS`] is forgotten, and so is the one that was first
//! heard of longest ago when there are too many. Invariants: a write is done only where it is
//! certain that it was not done before, that is, where its origin is known since before its first
//! attempt, or no origin was forgotten that was heard of since then.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use serde::{Deserialize, Serialize};

use crate::command::{Rejection, Reply, Request};
use crate::hash::Kind;
use crate::registry::Registry;
use crate::tables::deadlines::Due;
use crate::types::{Clock, Revision};

/// How long an origin is remembered after its last request, ms of registry time: twice as long as
/// any call may take.
pub(crate) const ORIGIN_MS: u64 = 120_000;

/// The last use of an origin is known to this, ms: noting each would cost more than it is worth.
pub(crate) const USED_STEP_MS: u64 = 10_000;

/// The most origins that are remembered: enough for each process of a large site to restart within
/// [`ORIGIN_MS`]. About 200 bytes each.
pub(crate) const ORIGINS_MAX: usize = if cfg!(test) { 4 } else { 131_072 };

/// The most replies that are kept for one origin: all calls that one node may have under way.
pub(crate) const REPLIES_MAX: usize = if cfg!(test) { 4 } else { 32_768 };

/// A process that makes requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Origin {
    pub(crate) id: u64,
    /// All of its requests since then are known.
    pub(crate) begun: Clock,
    /// Its last request was less than [`USED_STEP_MS`] after this.
    pub(crate) used: Clock,
    /// No reply to a request with a lower number is kept.
    pub(crate) done_below: u64,
    /// How many of its replies are kept. Not part of the record: counted.
    #[serde(skip)]
    pub(crate) kept: usize,
}

impl Origin {
    /// What of it is hashed as a record; `done_below`, which changes with most of its requests, as
    /// its mark.
    pub(crate) fn hashed(&self) -> (u64, Clock, Clock) {
        (self.id, self.begun, self.used)
    }
}

/// What came of a write that was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Done {
    pub(crate) origin: u64,
    pub(crate) number: u64,
    pub(crate) digest: u64,
    pub(crate) revision: Revision,
    pub(crate) reply: Reply,
}

/// The replies that are kept, by origin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Replies {
    origins: OrdMap<u64, Origin>,
    done: OrdMap<(u64, u64), Arc<Done>>,
    /// Origins by their last use. Derived.
    by_use: OrdSet<(Clock, u64)>,
    /// No origin whose last request was later than this was forgotten; `None`: none was.
    pub(crate) forgotten: Option<Clock>,
}

/// What is known of a request.
pub(crate) enum Known {
    /// It was not done.
    New,
    /// It was, with this reply.
    Done(Arc<Done>),
    /// Its reply is not known any more, or it is not to be done.
    Refused(Rejection),
}

impl Replies {
    pub(crate) fn find(&self, request: &Request) -> Known {
        if let Some(done) = self.done.get(&(request.origin, request.number)) {
            return match done.digest == request.digest {
                true => Known::Done(done.clone()),
                false => Known::Refused(Rejection::RequestReused { number: request.number }),
            };
        }
        let origin = self.origins.get(&request.origin);
        let late = self.forgotten.is_none_or(|forgotten| request.since > forgotten);
        // An origin may have been forgotten and come back: its requests before that are not known.
        let told = late || origin.is_some_and(|origin| origin.begun <= request.since);
        let over = origin.is_some_and(|origin| request.number < origin.done_below);
        match told && !over {
            true => Known::New,
            false => Known::Refused(Rejection::RequestForgotten),
        }
    }

    /// In the order of snapshots.
    pub(crate) fn origins(&self) -> impl Iterator<Item = &Origin> {
        self.origins.values()
    }

    /// In the order of snapshots.
    pub(crate) fn done(&self) -> impl Iterator<Item = &Arc<Done>> {
        self.done.values()
    }
}

impl Registry {
    /// What a write would be answered without being done, if it is handed in again or can no longer
    /// be told.
    pub fn repeated(&self, request: &Request) -> Option<Reply> {
        match self.replies.find(request) {
            Known::New => None,
            Known::Done(done) => Some(done.reply.clone()),
            Known::Refused(rejection) => Some(Reply::Rejected(rejection)),
        }
    }

    /// Notes that a request of this origin came, and forgets what it needs no more.
    pub(super) fn note_origin(&mut self, request: &Request) {
        let Request { origin: id, done_below, .. } = *request;
        match self.replies.origins.get(&id).copied() {
            None => {
                if self.replies.origins.len() >= ORIGINS_MAX {
                    let oldest = self.replies.by_use.get_min().map(|(_, id)| *id);
                    oldest.into_iter().for_each(|id| self.forget_origin(id));
                }
                self.insert_origin(Origin {
                    id,
                    begun: self.clock,
                    used: self.clock,
                    done_below,
                    kept: 0,
                });
            }
            Some(known) if self.clock >= known.used.plus_ms(USED_STEP_MS) => {
                self.drop_origin(&known);
                self.insert_origin(Origin { used: self.clock, ..known });
            }
            Some(known) if known.done_below >= done_below => return,
            Some(_) => {}
        }
        self.raise_done_below(id, done_below);
    }

    /// Keeps the reply to a request of an origin that was noted.
    pub(super) fn keep_reply(&mut self, request: &Request, reply: &Reply) {
        let Request { origin, number, digest, .. } = *request;
        let (revision, reply) = (self.revision, reply.clone());
        let kept = self.insert_reply(Arc::new(Done { origin, number, digest, revision, reply }));
        if kept.is_some_and(|kept| kept > REPLIES_MAX)
            && let Some(lowest) = self.first_reply(origin)
        {
            self.raise_done_below(origin, lowest + 1);
        }
    }

    /// Forgets an origin and its replies.
    pub(super) fn forget_origin(&mut self, id: u64) {
        let Some(origin) = self.replies.origins.get(&id).copied() else { return };
        let last = origin.used.plus_ms(USED_STEP_MS);
        self.replies.forgotten = self.replies.forgotten.max(Some(last));
        while let Some(number) = self.first_reply(id) {
            self.remove_reply(id, number);
        }
        if let Some(emptied) = self.replies.origins.get(&id).copied() {
            self.drop_origin(&emptied);
        }
    }

    pub(crate) fn insert_origin(&mut self, origin: Origin) {
        self.hash.add(Kind::Origin, &origin.hashed());
        self.hash.add_mark(origin.id, origin.done_below);
        self.deadlines.insert(ends(&origin), Due::Origin(origin.id));
        self.replies.by_use.insert((origin.used, origin.id));
        self.replies.origins.insert(origin.id, origin);
    }

    /// How many of its origin are kept now; `None`: that is not known.
    pub(crate) fn insert_reply(&mut self, done: Arc<Done>) -> Option<usize> {
        let origin = self.replies.origins.get_mut(&done.origin)?;
        self.hash.add(Kind::Done, &*done);
        let new = self.replies.done.insert((done.origin, done.number), done).is_none();
        origin.kept += usize::from(new);
        Some(origin.kept)
    }

    fn drop_origin(&mut self, origin: &Origin) {
        self.hash.remove(Kind::Origin, &origin.hashed());
        self.hash.remove_mark(origin.id, origin.done_below);
        self.deadlines.remove(ends(origin), Due::Origin(origin.id));
        self.replies.by_use.remove(&(origin.used, origin.id));
        self.replies.origins.remove(&origin.id);
    }

    /// No reply with a lower number is needed any more.
    fn raise_done_below(&mut self, id: u64, done_below: u64) {
        let Some(origin) = self.replies.origins.get_mut(&id) else { return };
        if origin.done_below >= done_below {
            return;
        }
        self.hash.remove_mark(id, origin.done_below);
        origin.done_below = done_below;
        self.hash.add_mark(id, done_below);
        while let Some(number) = self.first_reply(id).filter(|number| *number < done_below) {
            self.remove_reply(id, number);
        }
    }

    fn first_reply(&self, id: u64) -> Option<u64> {
        let (&(origin, number), _) = self.replies.done.range((id, 0)..).next()?;
        (origin == id).then_some(number)
    }

    fn remove_reply(&mut self, id: u64, number: u64) {
        if let Some(done) = self.replies.done.remove(&(id, number)) {
            self.hash.remove(Kind::Done, &*done);
            if let Some(origin) = self.replies.origins.get_mut(&id) {
                origin.kept -= 1;
            }
        }
    }
}

/// When an origin is forgotten.
fn ends(origin: &Origin) -> Clock {
    origin.used.plus_ms(USED_STEP_MS).plus_ms(ORIGIN_MS)
}
