//! The one table from gRPC code to what to do next, and the pace of trying again. Knows neither
//! nodes nor requests.

use std::time::Duration;

use quorate_proto::trailers;
use rand::Rng;
use tonic::{Code, Status};

use crate::error::{causes, innermost};

/// What a failed attempt calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// This node cannot serve now. Another may, and so may this one later: go on until the
    /// deadline.
    RetryElsewhere,
    /// This node failed in a way that another might not. When all have, and one twice, it is the
    /// call's result.
    TryOthers,
    /// The lease or instance is not there: its keeper registers again, for all other calls it is a
    /// refusal.
    Reregister,
    /// A newer run holds the instance: its keeper stops, for all other calls it is a refusal.
    Superseded,
    /// Not now, and not elsewhere: the call fails, background work waits.
    Exhausted,
    /// The token or certificate is not accepted (any more): once there is another one, again. Until
    /// then it is a refusal for all but background work, which goes on at `RIGHTS_PAUSE`.
    Reauthenticate,
    /// The caller may not do this now. Rights are given and taken: background work goes on at
    /// `RIGHTS_PAUSE`.
    Denied,
    /// The same request would be refused for ever.
    Fail,
}

impl Decision {
    /// Whether the node is to be left for a while. An answer of any other kind proves that it
    /// works.
    pub(crate) fn blames_node(self) -> bool {
        matches!(self, Self::RetryElsewhere | Self::TryOthers)
    }

    /// Whether it is about the caller's identity or rights.
    pub(crate) fn is_of_rights(self) -> bool {
        matches!(self, Self::Reauthenticate | Self::Denied)
    }
}

/// What a refusal calls for.
pub(crate) fn decide(status: &Status) -> Decision {
    // This node is full, and not the request too large.
    if status.metadata().contains_key(trailers::TRY_ELSEWHERE) || met_an_end(status) {
        return Decision::RetryElsewhere;
    }
    of_code(status.code())
}

/// Whether the call was given to a connection that came to its end in good order in this moment, as
/// each does at its age: the node is well. The transport does not send such a call again by itself.
pub(crate) fn met_an_end(status: &Status) -> bool {
    let Some(cause) = innermost(status) else { return false };
    match cause.downcast_ref::<h2::Error>() {
        Some(of_http2) => of_http2.is_go_away() && of_http2.reason() == Some(h2::Reason::NO_ERROR),
        // It waited for its turn on the connection, or came as the connection closed. The
        // transport's errors have no name to ask for.
        None => {
            let said = ["connection closed", "connection was not ready"];
            status.code() == Code::Cancelled && said.contains(&&*cause.to_string())
        }
    }
}

/// Whether the transport gave up at the call's limit.
pub(super) fn has_expired(status: &Status) -> bool {
    causes(status).any(|cause| cause.is::<tonic::TimeoutExpired>())
}

/// Whether no connection came about: the node has nothing of the call.
pub(super) fn has_not_arrived(status: &Status) -> bool {
    causes(status).any(|cause| cause.is::<tonic::ConnectError>())
}

/// The table. Exhaustive: a code that gRPC adds has to be decided here.
fn of_code(code: Code) -> Decision {
    match code {
        // No leader, no quorum, stopping; also every failure to connect.
        Code::Unavailable => Decision::RetryElsewhere,
        // The attempt's own deadline: the node hangs or is slow. A write has a name
        // (`nodes/write.rs`): sending again is safe.
        Code::DeadlineExceeded => Decision::RetryElsewhere,
        // The transport's way to say that the connection or the stream went down under the call.
        // (No node answers so.)
        Code::Cancelled | Code::Aborted | Code::Unknown => Decision::RetryElsewhere,
        // A broken connection, or a bug, or a failing disk: the code alone does not say which.
        Code::Internal | Code::DataLoss => Decision::TryOthers,
        // A node of another version.
        Code::Unimplemented => Decision::TryOthers,
        Code::NotFound => Decision::Reregister,
        Code::FailedPrecondition => Decision::Superseded,
        // Too large, or a full disk, or an overloaded leader: sending it again at once makes none
        // of them better.
        Code::ResourceExhausted | Code::OutOfRange => Decision::Exhausted,
        Code::Unauthenticated => Decision::Reauthenticate,
        Code::PermissionDenied => Decision::Denied,
        Code::InvalidArgument | Code::AlreadyExists => Decision::Fail,
        // Not an error; a call that failed with it is broken.
        Code::Ok => Decision::Fail,
    }
}

/// Whether a node says that no node is as far as the caller wants to see: it has what another
/// cluster, or one that was restored, gave out, and begins anew.
pub(crate) fn is_ahead(status: &Status) -> bool {
    status.code() == Code::OutOfRange
}

/// Whether nodes find the request itself wrong: none has done it, and none will.
pub(crate) fn is_wrong(code: Code) -> bool {
    code == Code::InvalidArgument
}

/// Whether what they find wrong is the incarnation of a registration: they name the field first.
pub(crate) fn is_wrong_incarnation(status: &Status) -> bool {
    is_wrong(status.code()) && status.message().starts_with("incarnation = ")
}

/// Whether an attempt had too little time: the next one gets more.
pub(crate) fn is_late(status: &Status) -> bool {
    status.code() == Code::DeadlineExceeded
}

/// Whether an answer was refused for its own size, not for what else is under way.
pub(crate) fn is_too_large(status: &Status) -> bool {
    status.code() == Code::ResourceExhausted && retry_after(status).is_none()
}

/// Background work that was refused for want of a right waits at least this long: operators change
/// that, and thousands of clients may be waiting for them.
const RIGHTS_PAUSE: Duration = Duration::from_secs(1);

/// The wait of background work after a refusal, where it would be `wait` after a failure.
pub(crate) fn rights_pause(wait: Duration) -> Duration {
    wait.max(rand::rng().random_range(RIGHTS_PAUSE..RIGHTS_PAUSE * 2))
}

/// No node is obeyed for longer than this.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(10);

/// When the node wants to be asked again, if it said so: what it said and up to half of that more,
/// so that clients with the same answer do not come back together.
pub(crate) fn retry_after(status: &Status) -> Option<Duration> {
    let told = status.metadata().get(trailers::RETRY_AFTER_MS)?.to_str().ok()?.parse().ok()?;
    let told = Duration::from_millis(told).min(RETRY_AFTER_MAX);
    Some(rand::rng().random_range(told..=told.mul_f64(1.5)))
}

/// How long to wait between rounds: full jitter over a doubling span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pace {
    /// The first span.
    pub(super) base: Duration,
    /// Spans grow no further than this.
    pub(super) cap: Duration,
}

/// The shortest wait. With the number of nodes, it bounds the attempts in a second whatever the
/// dice say.
const SHORTEST: Duration = Duration::from_millis(10);

/// For a caller that waits: an election takes up to a second, and the call should go on soon after
/// it.
pub(crate) const FOREGROUND: Pace =
    Pace { base: Duration::from_millis(25), cap: Duration::from_millis(400) };

/// For work that goes on for ever.
pub(crate) const BACKGROUND: Pace =
    Pace { base: Duration::from_millis(100), cap: Duration::from_secs(2) };

/// The waits between rounds.
#[derive(Debug)]
pub(crate) struct Backoff {
    pace: Pace,
    rounds: u32,
}

impl Backoff {
    pub(crate) fn new(pace: Pace) -> Self {
        Self { pace, rounds: 0 }
    }

    /// The next wait.
    pub(crate) fn next(&mut self) -> Duration {
        let span = self.pace.base.saturating_mul(1_u32 << self.rounds.min(16)).min(self.pace.cap);
        self.rounds = self.rounds.saturating_add(1);
        rand::rng().random_range(Duration::ZERO..=span).max(SHORTEST)
    }

    /// From now on no wait is longer than this (nor than the pace's own cap was to begin with).
    pub(super) fn cap(&mut self, cap: Duration) {
        self.pace.cap = self.pace.cap.min(cap).max(SHORTEST);
    }

    /// Something succeeded: the next wait is a short one again.
    pub(crate) fn reset(&mut self) {
        self.rounds = 0;
    }
}

/// Between two streams there is at least this, however they ended. After the death of a node,
/// changes wait for it; a node that ends every stream is left alone for longer (`Rounds::wait`).
const STREAM_PAUSE: Duration = Duration::from_millis(20);
/// Not all who were at the node that died come to the others in the same moment.
const STREAM_PAUSE_MAX: Duration = Duration::from_millis(100);

/// How long to wait before the next stream.
pub(crate) fn stream_pause() -> Duration {
    rand::rng().random_range(STREAM_PAUSE..=STREAM_PAUSE_MAX)
}

/// `span` shortened by up to a tenth, so that many clients that started together drift apart.
pub(crate) fn jittered(span: Duration) -> Duration {
    rand::rng().random_range(span.mul_f64(0.9)..=span)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each row of the table, written a second time: a change to either is to be meant. // S1.6
    #[test]
    fn each_code_has_its_decision() {
        let rows = [
            (Code::Ok, Decision::Fail),
            (Code::Cancelled, Decision::RetryElsewhere),
            (Code::Unknown, Decision::RetryElsewhere),
            (Code::InvalidArgument, Decision::Fail),
            (Code::DeadlineExceeded, Decision::RetryElsewhere),
            (Code::NotFound, Decision::Reregister),
            (Code::AlreadyExists, Decision::Fail),
            (Code::PermissionDenied, Decision::Denied),
            (Code::ResourceExhausted, Decision::Exhausted),
            (Code::FailedPrecondition, Decision::Superseded),
            (Code::Aborted, Decision::RetryElsewhere),
            (Code::OutOfRange, Decision::Exhausted),
            (Code::Unimplemented, Decision::TryOthers),
            (Code::Internal, Decision::TryOthers),
            (Code::Unavailable, Decision::RetryElsewhere),
            (Code::DataLoss, Decision::TryOthers),
            (Code::Unauthenticated, Decision::Reauthenticate),
        ];
        for (at, (code, decision)) in rows.into_iter().enumerate() {
            assert_eq!(code as usize, at, "a row for each code, in order");
            assert_eq!(of_code(code), decision, "{code:?}");
        }
    }

    #[test]
    fn what_a_code_says_besides() {
        let codes = || (0..=16).map(Code::from_i32);
        let is = |says: fn(Code) -> bool| codes().filter(|code| says(*code)).collect::<Vec<_>>();
        assert_eq!(is(|code| is_ahead(&Status::new(code, ""))), [Code::OutOfRange]);
        assert_eq!(is(|code| is_late(&Status::new(code, ""))), [Code::DeadlineExceeded]);
        assert_eq!(is(is_wrong), [Code::InvalidArgument]);
        assert_eq!(is(|code| is_too_large(&Status::new(code, ""))), [Code::ResourceExhausted]);
        let mut overloaded = Status::resource_exhausted("too many calls wait");
        overloaded.metadata_mut().insert(trailers::RETRY_AFTER_MS, 250.into());
        assert!(!is_too_large(&overloaded));
    }

    #[test]
    fn a_full_node_is_left_and_a_large_request_is_not_sent_again() {
        let mut status = Status::resource_exhausted("4096 calls are under way at this node");
        assert_eq!(decide(&status), Decision::Exhausted);
        status.metadata_mut().insert(trailers::TRY_ELSEWHERE, "1".parse().unwrap());
        assert_eq!(decide(&status), Decision::RetryElsewhere);
    }

    #[test]
    fn a_node_is_obeyed_within_bounds() {
        let told = |value: &'static str| {
            let mut status = Status::resource_exhausted("too many calls wait");
            status.metadata_mut().insert(trailers::RETRY_AFTER_MS, value.parse().unwrap());
            retry_after(&status)
        };
        let ms = Duration::from_millis;
        for _ in 0..100 {
            assert!((ms(200)..=ms(300)).contains(&told("200").unwrap()));
            assert!(told("99999999999999").unwrap() <= ms(15_000));
        }
        assert_eq!([told("soon"), told("-1"), told("1.5"), told("")], [None; 4]);
        assert_eq!(retry_after(&Status::unavailable("no leader")), None);
    }

    /// Waits are bounded on both sides, however long the outage. // S3.8
    #[test]
    fn waits_stay_within_their_bounds() {
        let mut backoff = Backoff::new(BACKGROUND);
        let waits: Vec<_> = (0..1_000).map(|_| backoff.next()).collect();
        assert!(waits.iter().all(|wait| (SHORTEST..=BACKGROUND.cap).contains(wait)));
        let late: Duration = waits[10..].iter().sum();
        assert!(late > BACKGROUND.cap * 990 / 3, "about half the cap on average, was {late:?}");
        backoff.reset();
        assert!(backoff.next() <= BACKGROUND.base);
    }
}
