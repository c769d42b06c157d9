//! A subscription, kept on one node after the other: opened, resumed, given up when nothing
//! arrives, no leader is there, or what the node has is old, moved to nodes that were added,
//! acknowledged. What a message means to its stream is in `stream/cursor.rs`, what it means to its
//! reader is the reader's: a watch or a hub.

mod cursor;
mod doubts;

use std::sync::Arc;
use std::time::Duration;

use quorate_proto::ClusterId;
use quorate_proto::v1::{
    ResponseHeader, WatchAck, WatchRequest, WatchResponse, WatchSubscribe, watch_request::Kind,
};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use self::cursor::Cursor;
pub(super) use self::cursor::Taken;
use self::doubts::{Doubts, UNKNOWN_AGE_MS};
use super::status::WatchStatus;
use crate::clock::Moment;
use crate::core::Core;
use crate::counters::Counts;
use crate::error::{Attempt, Error};
use crate::nodes::call::{Rounds, no_answer};
use crate::nodes::dial::Connection;
use crate::nodes::endpoints::{Address, Target};
use crate::nodes::rebalance::{Move, Mover};
use crate::nodes::retry::{
    BACKGROUND, Decision, decide, is_ahead, met_an_end, rights_pause, stream_pause,
};
use crate::nodes::stub::registry;

/// Acknowledgements on their way. The server keeps the last one only, so one that finds no room is
/// left out.
const ACKS_MAX: usize = 8;
/// A stream that lived this long, or brought something new, was a good one: what ended it is a new
/// failure, not the next of the same.
const GOOD_STREAM: Duration = Duration::from_secs(1);

/// However slow the nodes are, a stream is waited for no longer.
const OPENED_WITHIN: Duration = Duration::from_secs(5);

/// What a stream brought.
#[derive(Debug)]
pub(super) enum Event {
    /// A message.
    Taken(Taken),
    /// It is to move: see [`Follower::relocate`].
    Due(Move),
}

/// Why a stream ended. The status says the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The node failed, or what lies between: go on elsewhere, after a pause.
    Lost,
    /// The registry is not as far as the subscription: the same, from 0.
    Ahead,
    /// The subscription was refused, and would be for ever. The node works.
    Refused,
}

/// Opens a stream when the one before it has ended. One for each watch or hub.
#[derive(Debug)]
pub(super) struct Follower {
    core: Arc<Core>,
    /// What it is for, in errors and logs.
    operation: &'static str,
    status: watch::Sender<WatchStatus>,
    rounds: Rounds,
    mover: Mover,
    /// How often the token had changed when the last stream was opened.
    token: u64,
    /// Whether a subscription was ever taken: then a right that is not there is one that was lost,
    /// and may come back.
    was_taken: bool,
    gives_up_when_denied: bool,
    /// What the last stream ended for, if that was a right.
    refused: Option<Decision>,
    /// What speaks against the node of the last stream, unless that was left: another stream there
    /// knows no better.
    doubts: Option<(Address, Doubts)>,
}

/// A node that was chosen.
#[derive(Debug)]
pub(super) struct Node {
    address: Address,
    connection: Connection,
}

/// A subscription on some node.
#[derive(Debug)]
pub(super) struct Stream {
    address: Address,
    subscribe: WatchSubscribe,
    cursor: Cursor,
    begun: Instant,
    /// Whether it brought something that was not known before.
    progressed: bool,
    /// When the last message came.
    heard: Moment,
    doubts: Doubts,
    /// Everything that was acknowledged before this has come, once the stream is complete; `None`:
    /// the node has not said so.
    fresh_at: Option<Moment>,
    /// The first message, between its header and the rest.
    pending: Option<WatchResponse>,
    /// The position that was handed out last, to be acknowledged when the next message is asked
    /// for.
    unacknowledged: Option<u64>,
    answers: Streaming<WatchResponse>,
    acks: mpsc::Sender<WatchRequest>,
}

impl Follower {
    pub(super) fn new(
        core: Arc<Core>,
        operation: &'static str,
        status: watch::Sender<WatchStatus>,
    ) -> Self {
        let mover = Mover::new(core.endpoints.clone());
        let rounds = Rounds::new(BACKGROUND);
        Self {
            core,
            operation,
            status,
            rounds,
            mover,
            token: 0,
            was_taken: false,
            gives_up_when_denied: false,
            refused: None,
            doubts: None,
        }
    }

    /// A right that is not there always ends it: its user knows how to go on.
    pub(super) fn gives_up_when_denied(&mut self) {
        self.gives_up_when_denied = true;
    }

    /// The node to go on at.
    pub(super) fn pick(&mut self) -> Node {
        let (address, connection) = self.rounds.pick(&self.core.endpoints, Target::Any);
        Node { address, connection }
    }

    /// Subscribes on a node.
    pub(super) async fn open(
        &mut self,
        node: &Node,
        subscribe: WatchSubscribe,
    ) -> Result<Stream, Ended> {
        self.token = self.core.endpoints.token_changes();
        match self.try_open(node.address.clone(), node.connection.clone(), subscribe).await {
            Ok(mut stream) => {
                let known = self.doubts.as_ref().filter(|(of, _)| *of == node.address);
                stream.doubts = known.map_or(stream.doubts, |(_, doubts)| *doubts);
                Ok(stream)
            }
            Err(status) => Err(self.ended(&node.address, false, &status)),
        }
    }

    /// Waits for a node longer where all were slow. Given up in the middle, the work of both ends
    /// would be lost, and come again.
    async fn try_open(
        &mut self,
        address: Address,
        connection: Connection,
        subscribe: WatchSubscribe,
    ) -> Result<Stream, Status> {
        let given = self.rounds.patience(self.core.options.attempt_timeout, OPENED_WITHIN);
        let begun = Instant::now();
        let opened = Stream::open(address, connection, subscribe, given).await;
        match &opened {
            Ok(_) => {
                self.rounds.took(begun.elapsed(), given);
                self.counts().streams.one_more();
            }
            Err(_) if begun.elapsed() >= given * 9 / 10 => self.rounds.was_late(),
            Err(_) => {}
        }
        opened
    }

    fn counts(&self) -> &Counts {
        &self.core.endpoints.counts
    }

    /// Counts what a stream that was complete, or not, has brought.
    fn count(&self, taken: &Taken, stream: &Stream, was_complete: bool) {
        let counts = self.counts();
        match taken {
            Taken::Snapshot { .. } if was_complete || stream.subscribe.from_revision > 0 => {
                counts.resets.one_more();
            }
            Taken::Changes { .. } if !was_complete => counts.streams_resumed.one_more(),
            Taken::Leader(_) | Taken::Part | Taken::Snapshot { .. } | Taken::Changes { .. } => {}
        }
    }

    /// The next of a stream. To ask for it says that the one before it was taken in. Can be
    /// cancelled.
    pub(super) async fn next(&mut self, stream: &mut Stream) -> Result<Event, Ended> {
        let here = stream.address.clone();
        let is_complete = stream.is_complete();
        let taken = tokio::select! {
            taken = stream.next(&self.core, &self.rounds) => taken,
            // A stream that has not brought all yet would begin again for nothing.
            to = self.mover.due(&here), if is_complete => return Ok(Event::Due(to)),
        };
        match taken {
            Ok(taken) => {
                self.was_taken = true;
                self.doubts = Some((here.clone(), stream.doubts));
                self.count(&taken, stream, is_complete);
                if let Taken::Leader(has_leader) = taken {
                    let address = here.to_string();
                    self.status.send_replace(WatchStatus::Following { address, has_leader });
                }
                Ok(Event::Taken(taken))
            }
            Err(status) => Err(self.ended(&here, stream.is_good(), &status)),
        }
    }

    /// Goes on at another node, from where the stream is. It stays where that fails.
    pub(super) async fn relocate(&mut self, stream: &mut Stream, to: Move) {
        let (address, connection) = (to.address.clone(), to.connection.clone());
        match self.try_open(address, connection, stream.resume()).await {
            Ok(moved) => {
                let (begun, progressed) = (stream.begun, stream.progressed);
                *stream = Stream { begun, progressed, ..moved };
            }
            Err(status) => {
                let (operation, address) = (self.operation, &to.address);
                tracing::debug!(operation, %address, %status, "a new node did not take the stream; it stays");
                self.mover.try_again(&to);
            }
        }
    }

    /// Waits until the next stream may be opened.
    pub(super) async fn pause(&mut self) {
        let endpoints = &self.core.endpoints;
        let wait = match self.refused.take() {
            Some(Decision::Reauthenticate) if endpoints.has_other_token(self.token).await => {
                Duration::ZERO
            }
            Some(_) => rights_pause(self.rounds.wait_whole_round()),
            None => self.rounds.wait(endpoints),
        };
        sleep(wait.max(stream_pause())).await;
    }

    /// The next stream is opened for a reason of its own, not because the one before it failed.
    pub(super) fn begin_afresh(&mut self) {
        self.rounds.unpick();
    }

    /// What is not followed on at once is not doubted: it may be another node by then.
    pub(super) fn forget_doubts(&mut self) {
        self.doubts = None;
    }

    /// Notes the end of a stream.
    fn ended(&mut self, address: &Address, was_good: bool, status: &Status) -> Ended {
        let decision = decide(status);
        if (decision == Decision::Fail || decision.is_of_rights())
            && let Err(foreign) = self.core.endpoints.refused(address, status)
        {
            return self.ended(address, was_good, &foreign);
        }
        let Self { core, operation, .. } = self;
        // What was never allowed is a mistake, to be reported at once; a right that was there may
        // come back, and tokens run out and are renewed.
        let denied = decision == Decision::Denied;
        if decision == Decision::Fail || denied && (self.gives_up_when_denied || !self.was_taken) {
            self.rounds.unpick();
            let error = Error::rejected(operation, status);
            tracing::warn!(%address, %error, "the subscription was refused");
            self.status.send_replace(WatchStatus::Refused { error });
            return Ended::Refused;
        }
        if was_good {
            self.rounds.reset();
        }
        if !met_an_end(status) {
            self.rounds.left(address);
            self.doubts = None;
        }
        let last_error = if decision.is_of_rights() {
            self.refused = Some(decision);
            Error::rejected(operation, status)
        } else {
            if !met_an_end(status) {
                core.endpoints.failed(address);
            }
            // The status says for how long it was waited for.
            let tried = vec![Attempt::of(&**address, status)];
            Error::Unreachable { operation, within: None, tried }
        };
        core.endpoints.counts.streams_interrupted.one_more();
        tracing::debug!(error = %last_error, "the stream was interrupted; going on elsewhere");
        self.status.send_modify(|now| {
            let since = match now {
                WatchStatus::Interrupted { since, .. } => *since,
                _ => std::time::Instant::now(),
            };
            *now = WatchStatus::Interrupted { since, last_error };
        });
        if !is_ahead(status) {
            return Ended::Lost;
        }
        // What is known here is given up for a snapshot.
        self.counts().resets.one_more();
        Ended::Ahead
    }
}

/// A runtime that is shut down ends it, too: nothing arrives from then on.
impl Drop for Follower {
    fn drop(&mut self) {
        if !matches!(*self.status.borrow(), WatchStatus::Refused { .. }) {
            let since = std::time::Instant::now();
            let last_error = Error::Stopped;
            self.status.send_replace(WatchStatus::Interrupted { since, last_error });
        }
    }
}

impl Stream {
    async fn open(
        address: Address,
        connection: Connection,
        subscribe: WatchSubscribe,
        within: Duration,
    ) -> Result<Self, Status> {
        let begun = Instant::now();
        let (acks, requests) = mpsc::channel(ACKS_MAX);
        let cursor = Cursor::new(ClusterId::new(subscribe.cluster_id), subscribe.from_revision);
        // A new channel has room.
        let _has_room =
            acks.try_send(WatchRequest { kind: Some(Kind::Subscribe(subscribe.clone())) });
        let mut stub = registry(connection);
        let opening = stub.watch(ReceiverStream::new(requests));
        let answers = timeout(within, opening)
            .await
            .map_err(|_elapsed| no_answer("the watch was not answered", within))??
            .into_inner();
        Ok(Self {
            address,
            subscribe,
            cursor,
            begun,
            progressed: false,
            heard: Moment::now(),
            doubts: Doubts::default(),
            fresh_at: None,
            pending: None,
            unacknowledged: None,
            answers,
            acks,
        })
    }

    /// Takes in the next message. Can be cancelled.
    async fn next(&mut self, core: &Core, rounds: &Rounds) -> Result<Taken, Status> {
        self.acknowledge();
        let message = match self.pending.take() {
            Some(message) => message,
            None => {
                let message = self.receive(core).await?;
                self.heard = Moment::now();
                let led = self.cursor.take_header(message.header.as_ref())?;
                if let Some(header) = &message.header {
                    core.endpoints.succeeded(&self.address, Target::Any, Some(header))?;
                    self.note_age(header);
                }
                if self.cursor.cluster_id() != core.endpoints.cluster_id() {
                    return Err(Status::unavailable("another cluster answers now"));
                }
                if let Some(has_leader) = led {
                    // Whoever waits for a first word takes it for what there is.
                    let is_first = self.subscribe.from_revision == 0;
                    let limit = core.options.leaderless_timeout;
                    if is_first
                        && self.is_stale(has_leader, limit)
                        && rounds.has_better(&core.endpoints)
                    {
                        return Err(Status::unavailable("what the node begins with may be old"));
                    }
                    self.pending = Some(message);
                    self.doubts.led(has_leader);
                    return Ok(Taken::Leader(has_leader));
                }
                message
            }
        };
        let before = self.cursor.position();
        let age_ms = message.header.as_ref().map(|header| header.age_ms);
        let taken = self.cursor.take(message)?;
        match taken {
            Taken::Leader(has_leader) => self.doubts.led(has_leader),
            Taken::Part => {}
            Taken::Snapshot { .. } | Taken::Changes { .. } => {
                if let Some(age_ms) = age_ms {
                    let is_whole = matches!(taken, Taken::Snapshot { .. });
                    self.doubts.judge(age_ms, is_whole, core.options.leaderless_timeout);
                }
                self.progressed |= self.cursor.position() != before;
                self.unacknowledged = Some(self.cursor.position());
            }
        }
        Ok(taken)
    }

    fn note_age(&mut self, header: &ResponseHeader) {
        let known = Some(header.age_ms).filter(|ms| *ms != UNKNOWN_AGE_MS);
        let fresh_at = known.and_then(|ms| self.heard.checked_sub(Duration::from_millis(ms)));
        self.fresh_at = self.fresh_at.max(fresh_at);
    }

    /// Whether what the node begins with may be older than this, by its first header.
    fn is_stale(&self, has_leader: bool, limit: Duration) -> bool {
        !has_leader || self.fresh_at.is_none_or(|at| at.elapsed() > limit)
    }

    /// The next message, as long as the node shows signs of life and has a leader, and what it has
    /// is not old, or there is no other node: an old list is better than none.
    async fn receive(&mut self, core: &Core) -> Result<WatchResponse, Status> {
        let here = std::slice::from_ref(&self.address);
        if self.doubts.is_old && core.endpoints.has_other(here) {
            return Err(Status::unavailable("what the node has is old, and nothing new comes"));
        }
        let limit = core.options.watch_idle_timeout;
        let idle = Instant::now() + limit.saturating_sub(self.heard.elapsed());
        let leaderless = self.doubts.leaderless_since;
        let leaderless = leaderless.map(|since| since + core.options.leaderless_timeout);
        let deadline = leaderless.map_or(idle, |leaderless| leaderless.min(idle));
        match timeout_at(deadline, self.answers.message()).await {
            // It may be as old as the silence, which a suspended machine did not notice.
            Ok(Ok(Some(_))) if self.heard.elapsed() > limit => {
                Err(Status::deadline_exceeded("the silence was too long"))
            }
            Ok(Ok(Some(message))) => Ok(message),
            Ok(Ok(None)) => Err(Status::unavailable("the node ended the watch")),
            Ok(Err(status)) => Err(status),
            Err(_elapsed) if self.doubts.leaderless_since.is_some() => {
                Err(Status::unavailable("the node has no leader"))
            }
            Err(_elapsed) => Err(Status::deadline_exceeded("no sign of life")),
        }
    }

    fn acknowledge(&mut self) {
        if let Some(revision) = self.unacknowledged.take() {
            let ack = WatchRequest { kind: Some(Kind::Ack(WatchAck { revision })) };
            let _only_the_last_matters = self.acks.try_send(ack);
        }
    }

    /// The same subscription, from where this one is.
    fn resume(&self) -> WatchSubscribe {
        let from_revision = self.cursor.position();
        let cluster_id = ClusterId::to_wire(self.cursor.cluster_id());
        WatchSubscribe { from_revision, cluster_id, ..self.subscribe.clone() }
    }

    fn is_good(&self) -> bool {
        self.progressed || self.begun.elapsed() >= GOOD_STREAM
    }

    /// The services subscribed to.
    pub(super) fn services(&self) -> &[String] {
        &self.subscribe.services
    }

    /// The cluster that sends it; known from the first `Leader` on.
    pub(super) fn cluster_id(&self) -> Option<ClusterId> {
        self.cursor.cluster_id()
    }

    /// Whether all that the node knew when the stream began is here.
    pub(super) fn is_complete(&self) -> bool {
        self.cursor.is_complete()
    }

    /// Everything that was acknowledged before this has come; `None`: that is not known.
    pub(super) fn fresh_at(&self) -> Option<Moment> {
        self.fresh_at.filter(|_| self.is_complete())
    }
}
