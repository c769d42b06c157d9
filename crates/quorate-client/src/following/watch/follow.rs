//! The task behind a watch: keeps a subscription on some node, for ever. What the messages mean is the cursor's matter.

use std::sync::Arc;
use std::time::Duration;

use quorate_proto::v1::{WatchAck, WatchRequest, WatchResponse, watch_request::Kind};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::cursor::{Cursor, Taken};
use super::{Publisher, WatchStatus};
use crate::core::Core;
use crate::error::{Attempt, Error, explain};
use crate::nodes::call::Rounds;
use crate::nodes::endpoints::{Address, Target};
use crate::nodes::rebalance::{Move, Mover};
use crate::nodes::retry::{BACKGROUND, Decision, decide};
use crate::nodes::stub::registry;
use crate::types::Selection;

/// Acknowledgements on their way. The server keeps the last one only, so one that finds no room is left out.
const ACKS_MAX: usize = 8;
/// Between two subscriptions of a watch there is at least this, however they ended.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
/// A stream that lived so long (or brought something) was a good one: what ended it is a new failure, not the next of the
/// same.
const GOOD_STREAM: Duration = Duration::from_secs(1);

/// Runs until it is aborted or the registry refuses the subscription.
pub(super) async fn follow(core: Arc<Core>, selection: Selection, publisher: Publisher) {
    let mut follower = Follower {
        mover: Mover::new(core.endpoints.clone()),
        core,
        selection,
        publisher,
        cursor: Cursor::default(),
        rounds: Rounds::new(BACKGROUND),
    };
    loop {
        let (mut address, channel) = follower.rounds.pick(&follower.core.endpoints, Target::Any);
        let (begun, position) = (Instant::now(), follower.position());
        let status = match follower.open(channel).await {
            Ok(stream) => follower.receive(&mut address, stream).await,
            Err(status) => status,
        };
        if follower.ended(&address, &status) {
            return;
        }
        let brought_something = follower.position() != position;
        if brought_something || begun.elapsed() >= GOOD_STREAM {
            follower.rounds.reset();
        }
        sleep(follower.rounds.wait(&follower.core.endpoints).max(SHORTEST_PAUSE)).await;
    }
}

struct Follower {
    core: Arc<Core>,
    selection: Selection,
    publisher: Publisher,
    cursor: Cursor,
    rounds: Rounds,
    mover: Mover,
}

/// A subscription on some node.
struct Stream {
    answers: Streaming<WatchResponse>,
    acks: mpsc::Sender<WatchRequest>,
}

impl Follower {
    /// Subscribes on one node, to what follows on what is known.
    async fn open(&mut self, channel: Channel) -> Result<Stream, Status> {
        let (acks, requests) = mpsc::channel(ACKS_MAX);
        let namespace = &self.core.options.namespace;
        let subscribe = Kind::Subscribe(self.cursor.subscribe(namespace, &self.selection));
        // A new channel has room.
        let _has_room = acks.try_send(WatchRequest { kind: Some(subscribe) });
        let mut stub = registry(channel);
        let opening = stub.watch(ReceiverStream::new(requests));
        match timeout(self.core.options.attempt_timeout, opening).await {
            Ok(answers) => Ok(Stream { answers: answers?.into_inner(), acks }),
            Err(_elapsed) => Err(Status::deadline_exceeded("the watch was not answered")),
        }
    }

    /// Follows on one node, or another that the stream moves to, for as long as that works; tells why it does no more.
    async fn receive(&mut self, address: &mut Address, mut stream: Stream) -> Status {
        let idle_timeout = self.core.options.watch_idle_timeout;
        let mut leaderless_since: Option<Instant> = None;
        let mut first = true;
        loop {
            let idle = Instant::now() + idle_timeout;
            let leaderless =
                leaderless_since.map(|since| since + self.core.options.leaderless_timeout);
            let deadline = leaderless.map_or(idle, |leaderless| leaderless.min(idle));
            let message = tokio::select! {
                message = timeout_at(deadline, stream.answers.message()) => message,
                to = self.mover.due(address), if self.cursor.is_between_messages() => {
                    match self.open(to.channel.clone()).await {
                        Ok(moved) => (stream, *address, first) = (moved, to.address.clone(), true),
                        Err(status) => self.stays(&to, &status),
                    }
                    continue;
                }
            };
            let message = match message {
                Ok(Ok(Some(message))) => message,
                Ok(Ok(None)) => return Status::unavailable("the node ended the watch"),
                Ok(Err(status)) => return status,
                Err(_elapsed) if leaderless_since.is_some() => {
                    return Status::unavailable("the node has no leader");
                }
                Err(_elapsed) => return Status::deadline_exceeded("no sign of life"),
            };
            if let Err(status) = self.check(address, &message) {
                return status;
            }
            if first {
                first = false;
                let has_leader = message.header.as_ref().is_none_or(|header| header.leader_id != 0);
                leaderless_since = (!has_leader).then(Instant::now);
                self.following(address, has_leader);
            }
            match self.cursor.take(message) {
                Ok(Taken::Part) => {}
                Ok(Taken::Moved(changes)) => {
                    let view = self.cursor.view();
                    self.publisher.publish(view, changes);
                    let ack = Kind::Ack(WatchAck { revision: view.revision() });
                    let _only_the_last_matters =
                        stream.acks.try_send(WatchRequest { kind: Some(ack) });
                }
                Ok(Taken::Leader(true)) => {
                    leaderless_since = None;
                    self.following(address, true);
                }
                Ok(Taken::Leader(false)) => {
                    leaderless_since = leaderless_since.or_else(|| Some(Instant::now()));
                    self.following(address, false);
                }
                Err(gap) => return Status::aborted(gap.to_string()),
            }
        }
    }

    fn position(&self) -> (u64, u64) {
        (self.cursor.view().cluster_id(), self.cursor.view().revision())
    }

    /// Whether the message is of the cluster that the client is of. Not every message says which it is of.
    fn check(&self, address: &Address, message: &WatchResponse) -> Result<(), Status> {
        let endpoints = &self.core.endpoints;
        match &message.header {
            Some(header) => endpoints.succeeded(address, Target::Any, Some(header)),
            None if self.cursor.cluster_id() == endpoints.cluster_id() => Ok(()),
            None => Err(Status::unavailable("another cluster answers now")),
        }
    }

    fn stays(&mut self, to: &Move, status: &Status) {
        tracing::debug!(address = %to.address, %status, "a new node did not take the watch; it stays");
        self.mover.try_again(to);
    }

    /// Notes the end of a stream. True: there is no use in another.
    fn ended(&mut self, address: &Address, status: &Status) -> bool {
        let decision = decide(status.code());
        if decision == Decision::Fail {
            let error = Error::rejected("watch", status);
            tracing::warn!(%error, "the subscription was refused: stopping");
            self.publisher.status.send_replace(WatchStatus::Refused { error });
            return true;
        }
        if status.code() == Code::OutOfRange {
            self.cursor.begin_anew();
        }
        self.core.endpoints.failed(address);
        let attempt =
            Attempt { address: address.to_string(), code: status.code(), reason: explain(status) };
        tracing::debug!(%attempt, "the watch was interrupted; going on elsewhere");
        let within = self.core.options.attempt_timeout;
        let last_error = Error::Unreachable { operation: "watch", within, tried: vec![attempt] };
        self.publisher.status.send_modify(|now| {
            let since = match now {
                WatchStatus::Interrupted { since, .. } => *since,
                _ => std::time::Instant::now(),
            };
            *now = WatchStatus::Interrupted { since, last_error };
        });
        false
    }

    fn following(&self, address: &Address, has_leader: bool) {
        let address = address.to_string();
        self.publisher.status.send_replace(WatchStatus::Following { address, has_leader });
    }
}
