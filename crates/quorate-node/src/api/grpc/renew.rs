//! Streams of renewals: what has arrived at once is renewed together and answered message by
//! message.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use quorate_proto::v1::{RenewRequest, RenewResponse};
use quorate_state::{LeaseId, limits};
use tokio::time::Instant;
use tonic::{Status, Streaming};

use crate::api::grpc::arrived::check_size;
use crate::api::grpc::convert;
use crate::api::grpc::door::{Caller, Method};
use crate::api::grpc::{header, is_foreign, rights, with_news};
use crate::audit::Subject;
use crate::error::{CallError, NodeError};
use crate::node::Node;
use crate::node::renewals::{Patience, Renewed};

/// Messages of one stream that are taken together.
const BATCH_MAX: usize = 256;
/// Such batches of one stream that are in work at once; more messages wait with the transport.
const BATCHES_AT_ONCE_MAX: usize = 4;

type Answer = Result<RenewResponse, Status>;

/// The answers to a stream of renewals, in the order asked; the first error is the last answer.
/// Between them comes news, for who asked for it.
pub(super) fn answers(
    node: Arc<Node>,
    caller: Caller,
    requests: Streaming<RenewRequest>,
) -> impl Stream<Item = Answer> + Send {
    let wanted = Arc::new(AtomicBool::new(false));
    let news = news(node.clone(), caller.clone(), wanted.clone());
    with_news(renewed(node.clone(), caller, requests, wanted), news, &node)
}

/// How long renewals may be held back: a client that sends them within the window after its last
/// answer was waiting for that.
pub(super) fn patience(node: &Node, sends_within: impl Fn(Duration) -> bool) -> Patience {
    match sends_within(Duration::from_millis(node.tunables().renew_window_ms)) {
        true => Patience::None,
        false => Patience::Window,
    }
}

fn renewed(
    node: Arc<Node>,
    caller: Caller,
    requests: Streaming<RenewRequest>,
    wants_news: Arc<AtomicBool>,
) -> impl Stream<Item = Answer> + Send {
    let answered = Arc::new(Mutex::new(None::<Instant>));
    let lots = requests.ready_chunks(BATCH_MAX).map(move |messages| {
        let (node, caller, answered) = (node.clone(), caller.clone(), answered.clone());
        if messages.iter().flatten().any(|message| message.with_news) {
            wants_news.store(true, Ordering::Relaxed);
        }
        let sends_soon = |window| lock(&answered).is_some_and(|at| at.elapsed() < window);
        let patience = patience(&node, sends_soon);
        async move {
            let answers = match caller.again(&node) {
                Ok(caller) => renew_all(&node, &caller, messages, patience).await,
                Err(status) => {
                    let subject = Subject::of_leases(named(&messages).into_iter());
                    caller.refused(&node, Method::RenewStream, subject, &status);
                    vec![Err(status)]
                }
            };
            *lock(&answered) = Some(Instant::now());
            stream::iter(answers)
        }
    });
    lots.buffered(BATCHES_AT_ONCE_MAX).flatten()
}

/// The leader or the members have changed. Without this, a client that renews every 20 s would know
/// of a new node so late that all those that it knows may be gone by then.
fn news(
    node: Arc<Node>,
    caller: Caller,
    wanted: Arc<AtomicBool>,
) -> impl Stream<Item = RenewResponse> + Send + 'static {
    let views = node.leadership().views();
    let changes = stream::unfold(views, async |mut views| {
        views.changed().await.ok()?;
        Some(((), views))
    });
    changes.filter_map(move |()| {
        // Who has lost its right learns so by its next renewal, and nothing before.
        let is_told = wanted.load(Ordering::Relaxed) && caller.again(&node).is_ok();
        let revision = node.applied().position().revision;
        let told = || RenewResponse { news: true, ..answer(&node, Vec::new(), revision) };
        std::future::ready(is_told.then(told))
    })
}

/// The leases that these messages name.
fn named(messages: &[Result<RenewRequest, Status>]) -> Vec<u64> {
    let renewals = messages.iter().flatten().flat_map(|message| &message.renewals);
    renewals.map(|renewal| renewal.lease_id).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("invariant: nothing panics while it holds this lock")
}

pub(super) fn answer(node: &Node, unknown: Vec<LeaseId>, revision: u64) -> RenewResponse {
    let unknown_lease_ids = unknown.into_iter().map(|id| id.0).collect();
    RenewResponse { header: header(node, revision, 0), unknown_lease_ids, news: false }
}

/// What a message asks for.
struct Asked {
    leases: Vec<LeaseId>,
    /// They are of another cluster: here, their ids may be strangers'.
    foreign: bool,
}

/// Renews message after message, as many together as one call may hold.
async fn renew_all(
    node: &Node,
    caller: &Caller,
    messages: Vec<Result<RenewRequest, Status>>,
    patience: Patience,
) -> Vec<Answer> {
    let mut answers = Vec::with_capacity(messages.len());
    let mut together: Vec<Asked> = Vec::with_capacity(messages.len());
    let mut count = 0;
    for message in messages {
        let asked = match message.and_then(|message| asked(node, message)) {
            Ok(asked) => asked,
            Err(status) => {
                answers.extend(renew_together(node, caller, together, patience).await);
                answers.push(Err(status));
                return answers;
            }
        };
        if count + asked.leases.len() > limits::LEASES_PER_CALL {
            let together = std::mem::take(&mut together);
            answers.extend(renew_together(node, caller, together, patience).await);
            count = 0;
        }
        count += asked.leases.len();
        together.push(asked);
    }
    answers.extend(renew_together(node, caller, together, patience).await);
    answers
}

fn asked(node: &Node, message: RenewRequest) -> Result<Asked, Status> {
    check_size(&message)?;
    let foreign = is_foreign(node, message.cluster_id);
    Ok(Asked { leases: convert::renewals(&message).map_err(CallError::from)?, foreign })
}

async fn renew_together(
    node: &Node,
    caller: &Caller,
    messages: Vec<Asked>,
    patience: Patience,
) -> Vec<Answer> {
    let ours = messages.iter().filter(|asked| !asked.foreign);
    let leases: Vec<LeaseId> = ours.flat_map(|asked| &asked.leases).copied().collect();
    let Renewed { unknown, revision } = match renew_own(node, caller, leases, patience).await {
        Ok(renewed) => renewed,
        Err(error) => return vec![Err(error.into())],
    };
    let all_unknown: HashSet<LeaseId> = unknown.into_iter().collect();
    let each = messages.into_iter().map(|Asked { mut leases, foreign }| {
        leases.retain(|lease| foreign || all_unknown.contains(lease));
        Ok(answer(node, leases, revision))
    });
    each.collect()
}

/// Renews those of the leases that are the caller's; the others are unknown to it.
async fn renew_own(
    node: &Node,
    caller: &Caller,
    leases: Vec<LeaseId>,
    patience: Patience,
) -> Result<Renewed, NodeError> {
    let deadline = Instant::now() + node.tunables().request_timeout();
    let (leases, foreign) = rights::own_leases(node, caller, leases, deadline).await?;
    if leases.is_empty() {
        return Ok(Renewed { unknown: foreign, revision: node.applied().position().revision });
    }
    let mut renewed = node.renew(leases, patience, deadline).await?;
    renewed.unknown.extend(foreign);
    Ok(renewed)
}
