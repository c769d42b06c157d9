//! The renewals of all registrations of a client, over one stream to one node (those that are in a
//! hurry over another): what is due at about the same time goes in one message, so that ten
//! thousand leases cost a few messages an interval.
//! Knows leases, not what they keep.
//!
//! When the stream breaks, is late, or cannot be had, the renewals on it go to another node; one
//! that all nodes failed is given back to its keeper, which reports that to the application and
//! submits it again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quorate_proto::ClusterId;
use quorate_proto::limits::LEASES_PER_CALL;
use quorate_proto::v1::{LeaseRenewal, RenewRequest, RenewResponse};
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Status, Streaming};

use super::handle::Lease;
use crate::clock::suspended;
use crate::counters::Counts;
use crate::nodes::call::{Failure, Rounds, no_answer};
use crate::nodes::dial::Connection;
use crate::nodes::endpoints::{Address, Endpoints, Target};
use crate::nodes::rebalance::Mover;
use crate::nodes::retry::{
    BACKGROUND, Decision, decide, is_late, jittered, met_an_end, retry_after,
};
use crate::nodes::stub::registry;

/// Messages under way. One is enough on a healthy node; more keep up with a slow one.
const IN_FLIGHT_MAX: usize = 4;
/// A stream on which nothing was sent for this long is closed: a client that renews so seldom opens
/// another.
const IDLE: Duration = Duration::from_secs(60);
/// However slow the nodes are, a stream is waited for no longer.
const OPENED_WITHIN: Duration = Duration::from_secs(2);
/// Renewals may wait at most this long for others; a tenth of their interval where that is shorter.
const SLACK_MAX: Duration = Duration::from_secs(1);

/// Renewals that a node has to answer sooner have a stream of their own: where nodes are too slow
/// for them, it breaks, and with it all that is on it.
const HASTY: Duration = Duration::from_secs(1);
/// Whether the machine was suspended is looked at this often; shorter times do not count.
const SUSPENDED_LOOK: Duration = Duration::from_secs(1);

/// How long a renewal with this interval may wait for others to go with.
pub(super) fn slack(interval: Duration) -> Duration {
    (interval / 10).min(SLACK_MAX)
}

/// When to hand in the next renewal: it waits for others for a while, and is on its way within the
/// interval all the same.
pub(super) fn next_renewal(interval: Duration) -> Duration {
    jittered(interval).saturating_sub(slack(interval))
}

/// What came of a renewal that was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Renewed {
    /// The lease lives, as of this revision.
    Kept { revision: u64 },
    /// The registry does not know the lease, and as many of the same message.
    Unknown { with: usize },
}

/// `Err`: it failed on all nodes.
pub(super) type Outcome = Result<Renewed, Failure>;

#[derive(Debug)]
struct Renewal {
    lease_id: u64,
    /// The cluster that granted it.
    cluster_id: ClusterId,
    send_by: Instant,
    /// How long a node may take to answer: about half an interval.
    limit: Duration,
    /// Nodes that failed it.
    failures: usize,
    reply: oneshot::Sender<Outcome>,
}

/// Where keepers hand in renewals. Dropping it ends the streams and their tasks.
#[derive(Debug)]
pub(super) struct Renewals {
    waiting: Arc<Waiting>,
    /// Those with a limit below [`HASTY`].
    hasty: Arc<Waiting>,
    resumed: watch::Receiver<()>,
    _tasks: [AbortOnDropHandle<()>; 3],
}

impl Renewals {
    pub(super) fn start(
        runtime: &Handle,
        endpoints: Arc<Endpoints>,
        attempt_timeout: Duration,
    ) -> Self {
        let send = |waiting: &Arc<Waiting>| {
            let (waiting, endpoints) = (waiting.clone(), endpoints.clone());
            runtime.spawn(Sender { waiting, endpoints, attempt_timeout }.run())
        };
        let (waiting, hasty) = <(Arc<Waiting>, Arc<Waiting>)>::default();
        let (tell, resumed) = watch::channel(());
        let tasks = [send(&waiting), send(&hasty), runtime.spawn(tell_of_suspends(tell))];
        Self { waiting, hasty, resumed, _tasks: tasks.map(AbortOnDropHandle::new) }
    }

    /// Changes soon after the machine was suspended: meanwhile no timer went on, and leases did.
    pub(super) fn resumed(&self) -> watch::Receiver<()> {
        self.resumed.clone()
    }

    /// Renews a lease with the next message, which goes out within `slack`. A node gets `limit` to
    /// answer. A caller that drops the receiver is not interested any more.
    pub(super) fn submit(
        &self,
        lease: Lease,
        slack: Duration,
        limit: Duration,
    ) -> oneshot::Receiver<Outcome> {
        let (reply, outcome) = oneshot::channel();
        let send_by = Instant::now() + slack;
        let Lease { id: lease_id, cluster_id, .. } = lease;
        let renewal = Renewal { lease_id, cluster_id, send_by, limit, failures: 0, reply };
        let waiting = if limit < HASTY { &self.hasty } else { &self.waiting };
        waiting.lock().push(renewal);
        waiting.arrived.notify_one();
        outcome
    }
}

async fn tell_of_suspends(resumed: watch::Sender<()>) {
    let mut before = suspended();
    loop {
        sleep(SUSPENDED_LOOK).await;
        let now = suspended();
        if now.saturating_sub(before) >= SUSPENDED_LOOK {
            before = now;
            tracing::debug!("the machine was suspended: renewing all leases");
            resumed.send_replace(());
        }
    }
}

/// Renewals to be sent: one for each registration at most, and renewals that were dropped since the
/// last message.
#[derive(Debug, Default)]
struct Waiting {
    /// Held for a few list operations, never across an await.
    renewals: Mutex<Vec<Renewal>>,
    arrived: Notify,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Vec<Renewal>> {
        self.renewals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the next message has to go out.
    fn next(&self) -> Option<Instant> {
        self.lock().iter().map(|renewal| renewal.send_by).min()
    }

    /// Waits until a message is due.
    async fn due(&self) {
        loop {
            match self.next() {
                Some(at) if at <= Instant::now() => return,
                Some(at) => _ = timeout_at(at, self.arrived.notified()).await,
                None => self.arrived.notified().await,
            }
        }
    }

    /// Takes what goes with the next message: all that waits and is of the same cluster as the most
    /// pressing; the most pressing of them if it is too much.
    fn take(&self) -> Vec<Renewal> {
        let mut renewals = self.lock();
        renewals.retain(|renewal| !renewal.reply.is_closed());
        let first = renewals.iter().min_by_key(|renewal| renewal.send_by);
        let Some(cluster_id) = first.map(|renewal| renewal.cluster_id) else { return Vec::new() };
        let is_others = |renewal: &mut Renewal| renewal.cluster_id != cluster_id;
        let others: Vec<_> = renewals.extract_if(.., is_others).collect();
        if renewals.len() > LEASES_PER_CALL {
            renewals.sort_by_key(|renewal| std::cmp::Reverse(renewal.send_by));
        }
        let rest = renewals.len().saturating_sub(LEASES_PER_CALL);
        let taken = renewals.split_off(rest);
        renewals.extend(others);
        taken
    }
}

/// A message under way.
#[derive(Debug)]
struct Batch {
    renewals: Vec<Renewal>,
    cluster_id: ClusterId,
    sent: Instant,
    deadline: Instant,
}

/// The task: keeps a stream to some node while there is something to renew.
struct Sender {
    waiting: Arc<Waiting>,
    endpoints: Arc<Endpoints>,
    attempt_timeout: Duration,
}

impl Sender {
    async fn run(self) {
        let mut rounds = Rounds::new(BACKGROUND);
        let mut mover = Mover::new(self.endpoints.clone());
        loop {
            self.waiting.due().await;
            let (mut address, connection) = rounds.pick(&self.endpoints, Target::Any);
            let mut batches = VecDeque::new();
            let token = self.endpoints.token_changes();
            let ended = match self.open(connection, &rounds).await {
                Ok(stream) => {
                    self.exchange(stream, &mut batches, &mut address, &mut rounds, &mut mover).await
                }
                Err(status) => Err(status),
            };
            if let Err(mut status) = ended {
                if !decide(&status).blames_node()
                    && let Err(foreign) = self.endpoints.refused(&address, &status)
                {
                    status = foreign;
                }
                let decision = decide(&status);
                if is_late(&status) {
                    rounds.was_late();
                }
                if !met_an_end(&status) {
                    rounds.left(&address);
                }
                let again = decision == Decision::Reauthenticate
                    && self.endpoints.has_other_token(token).await;
                let interval = self.failed(&address, &status, batches, again);
                let wait = match rounds.wait(&self.endpoints).min(interval) {
                    // What a node says of itself does not keep the renewals from the others.
                    Duration::ZERO if decision.blames_node() => Duration::ZERO,
                    wait => wait.max(retry_after(&status).unwrap_or_default()),
                };
                sleep(wait).await;
            }
        }
    }

    async fn open(&self, connection: Connection, rounds: &Rounds) -> Result<Stream, Status> {
        let (requests, outgoing) = mpsc::channel(IN_FLIGHT_MAX);
        let mut stub = registry(connection);
        let opening = stub.renew_stream(ReceiverStream::new(outgoing));
        let given = rounds.patience(self.attempt_timeout, OPENED_WITHIN);
        match timeout(given, opening).await {
            Ok(answers) => Ok(Stream { requests, answers: answers?.into_inner() }),
            Err(_elapsed) => Err(no_answer("the stream was not answered", given)),
        }
    }

    /// Sends and receives until the stream fails, or has long been idle. It moves to another node
    /// between two messages.
    async fn exchange(
        &self,
        mut stream: Stream,
        batches: &mut VecDeque<Batch>,
        address: &mut Address,
        rounds: &mut Rounds,
        mover: &mut Mover,
    ) -> Result<(), Status> {
        let mut last_sent = Instant::now();
        let first = self.attempt_timeout;
        loop {
            let has_room = batches.len() < IN_FLIGHT_MAX;
            let send_at = self.waiting.next().filter(|_| has_room);
            if send_at.is_some_and(|at| at <= Instant::now()) {
                last_sent = Instant::now();
                stream.send(self.waiting.take(), |limit| rounds.patience(first, limit), batches)?;
                continue;
            }
            let patience = batches.front().map_or(last_sent + IDLE, |batch| batch.deadline);
            tokio::select! {
                answer = timeout_at(patience, stream.answers.message()) => match answer {
                    Ok(Ok(Some(answer))) => {
                        self.endpoints.succeeded(address, Target::Any, answer.header.as_ref())?;
                        if answer.news {
                            continue;
                        }
                        let batch = batches.pop_front();
                        let batch = batch.ok_or_else(|| Status::internal("an answer to no request"))?;
                        rounds.answered(batch.sent.elapsed(), batch.deadline - batch.sent);
                        tell(&self.endpoints.counts, batch, &answer);
                    }
                    Ok(Ok(None)) => return Err(Status::unavailable("the node ended the stream")),
                    Ok(Err(status)) => return Err(status),
                    Err(_elapsed) if batches.is_empty() => return Ok(()),
                    Err(_elapsed) => {
                        let given = batches.front().map(|batch| batch.deadline - batch.sent);
                        return Err(no_answer("no answer", given.unwrap_or_default()));
                    }
                },
                _ = timeout_at(send_at.unwrap_or(patience), self.waiting.arrived.notified()),
                    if has_room => {}
                to = mover.due(address), if batches.is_empty() => {
                    match self.open(to.connection.clone(), rounds).await {
                        Ok(moved) => (stream, *address) = (moved, to.address.clone()),
                        Err(status) => {
                            tracing::debug!(%status, ?to, "a new node did not take the renewals");
                            mover.try_again(&to);
                        }
                    }
                }
            }
        }
    }

    /// A node failed: what it had, and all that is due, goes to the next one, or back if all have
    /// failed it; with `again`, for the token that there is now, to whichever node. Returns the
    /// shortest interval among them.
    fn failed(
        &self,
        address: &Address,
        status: &Status,
        batches: VecDeque<Batch>,
        again: bool,
    ) -> Duration {
        let decision = decide(status);
        tracing::debug!(%address, %status, ?decision, "the stream of renewals failed");
        let nodes = if decision.blames_node() {
            if !met_an_end(status) {
                self.endpoints.failed(address);
            }
            self.endpoints.len()
        } else {
            1
        };
        let now = Instant::now();
        let mut waiting = self.waiting.lock();
        let unsent = std::mem::take(&mut *waiting);
        let (due, later): (Vec<_>, Vec<_>) =
            unsent.into_iter().partition(|renewal| renewal.send_by <= now);
        waiting.extend(later);
        let sent = batches.into_iter().flat_map(|batch| batch.renewals);
        let mut shortest = Duration::MAX;
        for mut renewal in sent.chain(due) {
            shortest = shortest.min(renewal.limit * 2);
            renewal.failures += usize::from(!again);
            renewal.send_by = now;
            if again || renewal.failures < nodes {
                waiting.push(renewal);
                continue;
            }
            self.endpoints.counts.renewals_failed.one_more();
            let _gone = renewal.reply.send(Err(Failure::at("renew", address, status.clone())));
        }
        shortest
    }
}

/// Both directions of a stream.
struct Stream {
    requests: mpsc::Sender<RenewRequest>,
    answers: Streaming<RenewResponse>,
}

impl Stream {
    /// Sends a message with these renewals, and notes it before anything can fail; nothing if there
    /// are none.
    fn send(
        &self,
        renewals: Vec<Renewal>,
        patience: impl Fn(Duration) -> Duration,
        batches: &mut VecDeque<Batch>,
    ) -> Result<(), Status> {
        let Some(cluster_id) = renewals.first().map(|renewal| renewal.cluster_id) else {
            return Ok(());
        };
        let limit = renewals.iter().map(|renewal| renewal.limit).min().unwrap_or_default();
        let all = renewals.iter().map(|renewal| LeaseRenewal { lease_id: renewal.lease_id });
        let renewed = all.collect();
        let of = cluster_id.get();
        let request = RenewRequest { renewals: renewed, cluster_id: of, with_news: true };
        let sent = Instant::now();
        let deadline = sent + limit.min(patience(limit));
        batches.push_back(Batch { renewals, cluster_id, sent, deadline });
        // There is room for all that may be unanswered.
        let sent = self.requests.try_send(request);
        sent.map_err(|_closed| Status::unavailable("the stream was closed"))
    }
}

/// Gives each renewal of a message its part of the answer.
fn tell(counts: &Counts, batch: Batch, answer: &RenewResponse) {
    let header = answer.header.as_ref();
    let revision = header.map_or(0, |header| header.revision);
    let is_foreign = header.and_then(ClusterId::of) != Some(batch.cluster_id);
    let unknown: std::collections::HashSet<u64> =
        answer.unknown_lease_ids.iter().copied().collect();
    for renewal in batch.renewals {
        let outcome = if is_foreign || unknown.contains(&renewal.lease_id) {
            counts.leases_lost.one_more();
            Renewed::Unknown { with: unknown.len() }
        } else {
            counts.renewals.one_more();
            Renewed::Kept { revision }
        };
        let _gone = renewal.reply.send(Ok(outcome));
    }
}
