//! One call over the nodes: attempt, decide, rotate, wait, until the deadline. The only place that
//! sends a unary request. Must not know what a request means.

use std::future::Future;
use std::time::Duration;

use quorate_proto::v1::{self, ResponseHeader};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::{Code, Request, Response, Status};

use crate::error::{Attempt, Error};
use crate::nodes::dial::Connection;
use crate::nodes::endpoints::{Address, Endpoints, Target};
use crate::nodes::retry::{
    Backoff, Decision, FOREGROUND, Pace, decide, has_expired, has_not_arrived, met_an_end,
    retry_after,
};

/// With less than this left, an attempt is not worth its while.
const SHORTEST_ATTEMPT: Duration = Duration::from_millis(1);

/// A call can meet the same end several times: as the connection is told of it, as it closes, and
/// once it is closed.
const ENDS_MAX: u32 = 3;

/// How a call is to be made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// What it is, for errors and logs.
    pub(crate) operation: &'static str,
    pub(crate) target: Target,
    /// What one node is given at first, see [`Rounds::patience`].
    pub(crate) attempt: Duration,
    /// What all of it is given.
    pub(crate) within: Duration,
}

impl Plan {
    /// The same with what is left until then.
    pub(crate) fn until(self, deadline: Instant) -> Self {
        let within = deadline.saturating_duration_since(Instant::now());
        Self { within, attempt: self.attempt.min(within), ..self }
    }
}

/// An answer of the registry.
pub(crate) trait Answer {
    fn header(&self) -> Option<&ResponseHeader>;
}

macro_rules! answers {
    ($($name:ident),* $(,)?) => {
        $(impl Answer for v1::$name {
            fn header(&self) -> Option<&ResponseHeader> {
                self.header.as_ref()
            }
        })*
    };
}

answers!(
    RegisterResponse,
    RenewResponse,
    DeregisterResponse,
    UpdateResponse,
    FetchResponse,
    ListServicesResponse,
    ListDependentsResponse,
    ListMembersResponse,
    StatusResponse,
    AddNodeResponse,
    RemoveNodeResponse,
    ReplaceNodeResponse,
    TransferLeaderResponse,
    TriggerSnapshotResponse,
    UpgradeResponse,
    SetOverrideResponse,
    ListOverridesResponse,
);

/// How one attempt failed.
#[derive(Debug)]
pub(crate) struct Failure {
    operation: &'static str,
    /// The time that it was given, where nothing came of it until then.
    within: Option<Duration>,
    address: Address,
    pub(crate) decision: Decision,
    pub(crate) status: Status,
}

impl Failure {
    /// An attempt that was answered, but not with what was wanted.
    pub(crate) fn answered(operation: &'static str, status: Status) -> Self {
        Self::at(operation, &"".into(), status)
    }

    /// An attempt on the node with this address. The status says for how long it was waited for.
    pub(crate) fn at(operation: &'static str, address: &Address, status: Status) -> Self {
        let (address, decision) = (address.clone(), decide(&status));
        Self { operation, within: None, address, decision, status }
    }

    pub(crate) fn into_error(self) -> Error {
        let Self { operation, within, .. } = self;
        if !self.decision.blames_node() {
            return Error::rejected(operation, &self.status);
        }
        Error::Unreachable { operation, within, tried: vec![self.tried()] }
    }

    fn tried(&self) -> Attempt {
        Attempt::of(&*self.address, &self.status)
    }
}

/// How a whole call failed.
#[derive(Debug)]
pub(crate) enum CallError {
    /// No node served it in time.
    Unreachable(Error),
    /// It was answered, and refused. `retried`: an attempt before it may have had its effect, if it
    /// has no name; `tried`: all attempts, this one too.
    Refused { decision: Decision, status: Status, retried: bool, tried: Vec<Attempt> },
}

impl CallError {
    /// For callers to whom every refusal is just that.
    pub(crate) fn into_error(self, operation: &'static str) -> Error {
        match self {
            Self::Unreachable(error) => error,
            Self::Refused { status, .. } => Error::rejected(operation, &status),
        }
    }

    /// For callers of a write. That there is no room is said of the last attempt alone: one before
    /// it may still be on its way, and be done once there is some.
    pub(crate) fn into_write_error(self, operation: &'static str) -> Error {
        match self {
            Self::Refused { decision: Decision::Exhausted, retried: true, tried, .. } => {
                Error::Unreachable { operation, within: None, tried }
            }
            error => error.into_error(operation),
        }
    }
}

/// Which nodes were tried in this round, the waits between rounds, and how long a node is waited
/// for.
#[derive(Debug)]
pub(crate) struct Rounds {
    tried: Vec<Address>,
    /// The last of them that was picked.
    picked: Option<Address>,
    /// How many of them used all of their time.
    late: usize,
    /// How often of late a whole round did.
    late_rounds: u32,
    /// How often a node was picked again since its connection came to an end.
    ends: u32,
    backoff: Backoff,
}

impl Rounds {
    pub(crate) fn new(pace: Pace) -> Self {
        Self {
            tried: Vec::new(),
            picked: None,
            late: 0,
            late_rounds: 0,
            ends: 0,
            backoff: Backoff::new(pace),
        }
    }

    /// The next node to try. Begins a new round when all were tried.
    pub(crate) fn pick(&mut self, endpoints: &Endpoints, target: Target) -> (Address, Connection) {
        let picked = endpoints.pick(target, &self.tried).or_else(|| {
            self.late_rounds += u32::from(self.late >= self.tried.len());
            self.late = 0;
            self.tried.clear();
            endpoints.pick(target, &[])
        });
        let (address, channel) = picked.expect("invariant: the list of nodes is never empty");
        self.tried.push(address.clone());
        self.picked = Some(address.clone());
        (address, channel)
    }

    /// How long to wait for a node that is given `first` to begin with: twice as long after each
    /// round in which all used up their time. Where all nodes are slow, asking again and again
    /// would only add to what they have to do, and never end.
    pub(crate) fn patience(&self, first: Duration, most: Duration) -> Duration {
        first.saturating_mul(1 << self.late_rounds.min(16)).min(most.max(first))
    }

    /// The node that was picked last did not answer in time.
    pub(crate) fn was_late(&mut self) {
        self.late += 1;
    }

    /// How long to wait before the next attempt: not at all while this round has nodes left.
    pub(crate) fn wait(&mut self, endpoints: &Endpoints) -> Duration {
        if endpoints.has_untried(&self.tried) { Duration::ZERO } else { self.backoff.next() }
    }

    /// Whether this round has a node left that has not failed of late.
    pub(crate) fn has_better(&self, endpoints: &Endpoints) -> bool {
        endpoints.has_other(&self.tried)
    }

    /// The wait after an answer that the next node would give too.
    pub(crate) fn wait_whole_round(&mut self) -> Duration {
        self.begin_round();
        self.backoff.next()
    }

    /// Waits shall be no longer than this, from now on.
    pub(crate) fn cap(&mut self, cap: Duration) {
        self.backoff.cap(cap);
    }

    /// Something succeeded: the next call begins afresh.
    pub(crate) fn reset(&mut self) {
        self.begin_round();
        self.backoff.reset();
    }

    /// A node that served until now does so no more: this round goes on with the others, also where
    /// that node serves other calls of the client well.
    pub(crate) fn left(&mut self, address: &Address) {
        if !self.tried.contains(address) {
            self.tried.push(address.clone());
        }
    }

    /// The node that was picked last is as good as before: it may be picked again, at once.
    pub(crate) fn unpick(&mut self) {
        if let Some(picked) = self.picked.take() {
            self.tried.retain(|tried| *tried != picked);
        }
        self.backoff.reset();
    }

    /// The connection to the node that was picked last came to its end: it may be picked again, on
    /// another one. Not for ever, if it ends each.
    fn forgive(&mut self) {
        if self.ends < ENDS_MAX {
            self.ends += 1;
            self.unpick();
        }
    }

    /// An answer came, which took `took` of the time that it was `given`. Where half of that had
    /// been enough, the next attempts are shorter by a step; else they would only be made in vain.
    pub(crate) fn answered(&mut self, took: Duration, given: Duration) {
        self.reset();
        self.took(took, given);
    }

    /// The same, where more is to come before it is known whether the node is a good one.
    pub(crate) fn took(&mut self, took: Duration, given: Duration) {
        if took < given / 2 {
            self.late_rounds = self.late_rounds.saturating_sub(1);
        }
    }

    fn begin_round(&mut self) {
        self.tried.clear();
        (self.late, self.ends) = (0, 0);
    }
}

/// Sends `request` to one node, with a deadline on both sides of the wire.
pub(crate) async fn attempt<Req, Res, F, Fut>(
    endpoints: &Endpoints,
    plan: &Plan,
    rounds: &mut Rounds,
    deadline: Instant,
    request: &Req,
    send: F,
) -> Result<Res, Failure>
where
    Req: Clone,
    Res: Answer,
    F: Fn(Connection, Request<Req>) -> Fut,
    Fut: Future<Output = Result<Response<Res>, Status>>,
{
    let (address, channel) = rounds.pick(endpoints, plan.target);
    let begun = Instant::now();
    let limit = rounds.patience(plan.attempt, plan.within / 2);
    let limit = limit.min(deadline.saturating_duration_since(begun));
    let mut request = Request::new(request.clone());
    request.set_timeout(limit);
    // The transport looks at the same limit, and either may be first.
    let result = match timeout(limit, send(channel, request)).await {
        Ok(Err(status)) if has_expired(&status) => Err(no_answer("no answer", limit)),
        Ok(result) => result,
        Err(_elapsed) => Err(no_answer("no answer", limit)),
    };
    let result = result.and_then(|response| {
        let answer = response.into_inner();
        endpoints.succeeded(&address, plan.target, answer.header())?;
        Ok(answer)
    });
    match result {
        Ok(answer) => {
            rounds.answered(begun.elapsed(), limit);
            Ok(answer)
        }
        Err(mut status) => {
            if !decide(&status).blames_node()
                && let Err(foreign) = endpoints.refused(&address, &status)
            {
                status = foreign;
            }
            let decision = decide(&status);
            // A node answers a little before the deadline that it was given.
            let is_late = begun.elapsed() >= limit * 9 / 10;
            if is_late {
                rounds.was_late();
            }
            tracing::debug!(operation = plan.operation, %address, %status, ?decision, "attempt failed");
            if decision.blames_node() {
                count_retry(endpoints, status.code(), is_late);
                match met_an_end(&status) {
                    true => rounds.forgive(),
                    false => endpoints.failed(&address),
                }
            }
            let is_silence = is_late && is_silence(status.code());
            let (operation, within) = (plan.operation, is_silence.then_some(limit));
            Err(Failure { operation, within, address, decision, status })
        }
    }
}

/// Makes the call on one node after the other until one answers or the deadline is over.
pub(crate) async fn call<Req, Res, F, Fut>(
    endpoints: &Endpoints,
    plan: &Plan,
    request: &Req,
    send: F,
) -> Result<Res, CallError>
where
    Req: Clone,
    Res: Answer,
    F: Fn(Connection, Request<Req>) -> Fut,
    Fut: Future<Output = Result<Response<Res>, Status>>,
{
    endpoints.counts.calls.one_more();
    let answer = over_nodes(endpoints, plan, request, send).await;
    if answer.is_err() {
        endpoints.counts.calls_failed.one_more();
    }
    answer
}

async fn over_nodes<Req, Res, F, Fut>(
    endpoints: &Endpoints,
    plan: &Plan,
    request: &Req,
    send: F,
) -> Result<Res, CallError>
where
    Req: Clone,
    Res: Answer,
    F: Fn(Connection, Request<Req>) -> Fut,
    Fut: Future<Output = Result<Response<Res>, Status>>,
{
    let deadline = Instant::now() + plan.within;
    let mut rounds = Rounds::new(FOREGROUND);
    let mut tried: Vec<Attempt> = Vec::new();
    let mut failed_for_good = 0;
    let (mut reread, mut retried) = (false, false);
    while deadline.saturating_duration_since(Instant::now()) > SHORTEST_ATTEMPT {
        let token = endpoints.token_changes();
        let failure = match attempt(endpoints, plan, &mut rounds, deadline, request, &send).await {
            Ok(answer) => return Ok(answer),
            Err(failure) => failure,
        };
        failed_for_good += usize::from(failure.decision == Decision::TryOthers);
        let over = match failure.decision {
            Decision::RetryElsewhere => false,
            Decision::TryOthers => failed_for_good > endpoints.len(),
            Decision::Reauthenticate if !reread => {
                reread = true;
                if endpoints.has_other_token(token).await {
                    endpoints.counts.retries_token.one_more();
                    rounds.begin_round();
                    continue;
                }
                true
            }
            Decision::Reregister
            | Decision::Superseded
            | Decision::Exhausted
            | Decision::Reauthenticate
            | Decision::Denied
            | Decision::Fail => true,
        };
        note(&mut tried, &failure);
        if over {
            let Failure { decision, status, .. } = failure;
            return Err(CallError::Refused { decision, status, retried, tried });
        }
        retried |= !has_not_arrived(&failure.status);
        // What a node says of itself does not keep the call from the others.
        let wait = match rounds.wait(endpoints) {
            Duration::ZERO => Duration::ZERO,
            wait => wait.max(retry_after(&failure.status).unwrap_or_default()),
        };
        sleep_until((Instant::now() + wait).min(deadline)).await;
    }
    let Plan { operation, within, .. } = *plan;
    Err(CallError::Unreachable(Error::Unreachable { operation, within: Some(within), tried }))
}

/// Nothing came of a node in the time that it was given.
pub(crate) fn no_answer(what: &str, given: Duration) -> Status {
    Status::deadline_exceeded(format!("{what} within {} ms", given.as_millis()))
}

/// Whether a node has not answered. The transport says CANCELLED where it gives up before this
/// crate does.
fn is_silence(code: Code) -> bool {
    matches!(code, Code::DeadlineExceeded | Code::Cancelled)
}

fn count_retry(endpoints: &Endpoints, code: Code, is_late: bool) {
    let counts = &endpoints.counts;
    let retries = match code {
        Code::DeadlineExceeded => &counts.retries_late,
        Code::Cancelled if is_late => &counts.retries_late,
        Code::Unavailable => &counts.retries_unavailable,
        _ => &counts.retries_other,
    };
    retries.one_more();
}

/// Keeps the last outcome of each address: the list is bounded by the number of nodes, not of
/// attempts.
fn note(tried: &mut Vec<Attempt>, failure: &Failure) {
    let attempt = failure.tried();
    // What a node said is worth more than that it said nothing in the time that was left.
    match tried.iter_mut().find(|known| known.address == attempt.address) {
        Some(_) if is_silence(attempt.code) => {}
        Some(known) => *known = attempt,
        None => tried.push(attempt),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nodes::retry::BACKGROUND;

    #[test]
    fn patience_that_was_needed_stays_and_what_was_too_much_goes_in_steps() {
        let (first, most) = (Duration::from_millis(200), Duration::from_secs(5));
        let slow = Duration::from_millis(700);
        let mut rounds = Rounds::new(BACKGROUND);
        rounds.late_rounds = 2;
        for _ in 0..3 {
            assert_eq!(rounds.patience(first, most), 4 * first);
            rounds.answered(slow, rounds.patience(first, most));
        }
        for expected in [4, 2, 1, 1] {
            assert_eq!(rounds.patience(first, most), expected * first);
            rounds.answered(first / 4, rounds.patience(first, most));
        }
    }
}
