//! Which writes were done or refused, and with what reply, so that one which is handed in again is
//! answered and not done again, nor for the first time when its caller was told that it was not.
//!
//! A write that was proposed may be in the log although its answer never came: its leader died, or
//! the answer was lost. A retry carries the same [`Request`]; the first entry with it does the
//! write, later ones find its reply here. After RIFL (Lee et al., "Implementing Linearizability at
//! Large Scale and Low Latency", SOSP 2015) and section 6.3 of Ongaro's thesis
//! on Raft: an origin (a process that makes requests) numbers them, and says with each which of its
//! earlier ones are over; only those that are not need a reply. What was refused has one as well:
//! an attempt that was held up may come after the one that was refused, and after what made it
//! possible. Not where the request itself is refused ([`Known::Refused`], [`Replies::check_room`]).
//!
//! Invariants: a write is done only where it is certain that it was not done before, that is, where
//! its origin is known since before its first attempt, or no origin was forgotten that was heard of
//! since then.
//!
//! An origin is forgotten when it made no request for [`ORIGIN_MS`], and never to make room. So no
//! write is taken for one that may have been done which was first asked for within that time,
//! however many write. Where there is no room, the first write of one more origin is refused before
//! anything is done. Whom that meets depends on who asks ([`Share`]), and nothing else does: what
//! was done is found by its name alone, also when it comes again through another node, or from a
//! caller that goes by another name now.
//!
//! A share may have as many origins as there are places left (Choudhury and Hahne, "Dynamic Queue
//! Length Thresholds for Shared-Memory Packet Switches", 1998): one that wants all gets half, two
//! get a third each, and about as many as each of them has are left for who comes next. Replies are
//! shared out alike, but what is over a share's part costs an older reply of the same origin.

use std::sync::Arc;

use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use crate::command::{Rejection, Reply, Request, Share};
use crate::hash::Kind;
use crate::registry::Registry;
use crate::tables::deadlines::Due;
use crate::types::{Clock, Revision};

/// How long an origin is remembered after its last request, ms of registry time: twice as long as
/// any call may take.
pub(crate) const ORIGIN_MS: u64 = 120_000;

/// The last use of an origin is known to this, ms: noting each would cost more than it is worth.
pub(crate) const USED_STEP_MS: u64 = 10_000;

/// The most origins that are remembered: enough for each process of a large site, with one name for
/// all, to restart within [`ORIGIN_MS`]. About 200 bytes each. All nodes must have the same.
pub(crate) const ORIGINS_MAX: usize = if cfg!(test) { 8 } else { 262_144 };

/// The most replies that are kept for one origin: all calls that one node may have under way.
pub(crate) const REPLIES_MAX: usize = if cfg!(test) { 4 } else { 32_768 };

/// The most replies that are kept in all, but for the last one of each origin: some 200 MB, or 700
/// where all are refusals that name an instance with the longest names.
pub(crate) const REPLIES_IN_ALL_MAX: usize = if cfg!(test) { 12 } else { 1_048_576 };

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
    /// Of its first request. Later ones may come from others; it stays where it counts.
    pub(crate) share: Share,
    /// How many of its replies are kept. Not part of the record: counted.
    #[serde(skip)]
    pub(crate) kept: usize,
}

impl Origin {
    /// What of it is hashed as a record; `done_below`, which changes with most of its requests, as
    /// its mark.
    pub(crate) fn hashed(&self) -> (u64, Clock, Clock, Share) {
        (self.id, self.begun, self.used, self.share)
    }
}

/// What came of a write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Done {
    pub(crate) origin: u64,
    pub(crate) number: u64,
    pub(crate) digest: u64,
    pub(crate) revision: Revision,
    pub(crate) reply: Reply,
}

/// How much of what is remembered counts in one share.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Held {
    origins: usize,
    replies: usize,
}

/// The replies that are kept, by origin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Replies {
    origins: OrdMap<u64, Origin>,
    done: OrdMap<(u64, u64), Arc<Done>>,
    /// Of those that have something. Derived.
    shares: OrdMap<Share, Held>,
    /// No origin whose last request was later than this was forgotten; `None`: none was. At least
    /// [`ORIGIN_MS`] behind the clock.
    pub(crate) forgotten: Option<Clock>,
}

/// What is known of a request.
pub(crate) enum Known {
    /// It did not come before, or its caller was told that there is no room.
    New,
    /// It did, and this was the reply.
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

    fn knows(&self, origin: u64) -> bool {
        self.origins.contains_key(&origin)
    }

    /// # Errors
    /// It is the first of its origin, and there is no room for one more in its share.
    pub(super) fn check_room(&self, request: &Request) -> Result<(), Rejection> {
        let held = self.held(request.share).origins;
        let left = ORIGINS_MAX.saturating_sub(self.origins.len());
        if held < left || self.knows(request.origin) {
            return Ok(());
        }
        Err(Rejection::TooManyOrigins { origins: held as u64 })
    }

    /// Whether a share has more replies than there are places left.
    fn has_too_many_replies(&self, share: Share) -> bool {
        self.held(share).replies > REPLIES_IN_ALL_MAX.saturating_sub(self.done.len())
    }

    fn held(&self, share: Share) -> Held {
        self.shares.get(&share).copied().unwrap_or_default()
    }

    fn count(&mut self, share: Share, change: impl FnOnce(&mut Held)) {
        let mut held = self.held(share);
        change(&mut held);
        match held == Held::default() {
            true => self.shares.remove(&share),
            false => self.shares.insert(share, held),
        };
    }

    /// The same, with what is derived counted anew.
    #[cfg(test)]
    pub(crate) fn recounted(&self) -> Self {
        let (origins, done, forgotten) = (self.origins.clone(), self.done.clone(), self.forgotten);
        let mut counted = Self { origins, done, shares: OrdMap::new(), forgotten };
        for origin in self.origins.values() {
            let kept = self.done.keys().filter(|(of, _)| *of == origin.id).count();
            counted.origins.insert(origin.id, Origin { kept, ..*origin });
            counted.count(origin.share, |held| {
                held.origins += 1;
                held.replies += kept;
            });
        }
        counted
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
        let Request { origin: id, done_below, share, .. } = *request;
        match self.replies.origins.get(&id).copied() {
            None => {
                let (begun, used) = (self.clock, self.clock);
                self.insert_origin(Origin { id, begun, used, done_below, share, kept: 0 });
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
        let of = self.insert_reply(Arc::new(Done { origin, number, digest, revision, reply }));
        let Some(Origin { kept, share, .. }) = of else { return };
        let too_many = kept > REPLIES_MAX || kept > 1 && self.replies.has_too_many_replies(share);
        if too_many && let Some(lowest) = self.first_reply(origin) {
            self.raise_done_below(origin, lowest + 1);
        }
    }

    /// Forgets an origin and its replies; how many those were.
    pub(super) fn forget_origin(&mut self, id: u64) -> usize {
        let Some(origin) = self.replies.origins.get(&id).copied() else { return 0 };
        let last = origin.used.plus_ms(USED_STEP_MS);
        self.replies.forgotten = self.replies.forgotten.max(Some(last));
        while let Some(number) = self.first_reply(id) {
            self.remove_reply(id, number);
        }
        if let Some(emptied) = self.replies.origins.get(&id).copied() {
            self.drop_origin(&emptied);
        }
        origin.kept
    }

    pub(crate) fn insert_origin(&mut self, origin: Origin) {
        self.hash.add(Kind::Origin, &origin.hashed());
        self.hash.add_mark(origin.id, origin.done_below);
        self.deadlines.insert(ends(&origin), Due::Origin(origin.id));
        self.replies.count(origin.share, |held| held.origins += 1);
        self.replies.origins.insert(origin.id, origin);
    }

    /// Its origin as it is now; `None`: that is not known.
    pub(crate) fn insert_reply(&mut self, done: Arc<Done>) -> Option<Origin> {
        let origin = self.replies.origins.get_mut(&done.origin)?;
        self.hash.add(Kind::Done, &*done);
        let new = self.replies.done.insert((done.origin, done.number), done).is_none();
        origin.kept += usize::from(new);
        let origin = *origin;
        self.replies.count(origin.share, |held| held.replies += usize::from(new));
        Some(origin)
    }

    fn drop_origin(&mut self, origin: &Origin) {
        self.hash.remove(Kind::Origin, &origin.hashed());
        self.hash.remove_mark(origin.id, origin.done_below);
        self.deadlines.remove(ends(origin), Due::Origin(origin.id));
        self.replies.count(origin.share, |held| held.origins -= 1);
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
                let share = origin.share;
                self.replies.count(share, |held| held.replies -= 1);
            }
        }
    }
}

/// When an origin is forgotten.
fn ends(origin: &Origin) -> Clock {
    origin.used.plus_ms(USED_STEP_MS).plus_ms(ORIGIN_MS)
}
