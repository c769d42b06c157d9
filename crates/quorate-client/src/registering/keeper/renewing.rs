//! The lease that a registration has: its renewals, also beside a call, and what comes of them.

use std::pin::pin;
use std::time::Duration;

use quorate_proto::ClusterId;
use rand::Rng;
use tokio::sync::oneshot::error::RecvError;
use tokio::time::Instant;
use tonic::Status;

use super::{Event, Held, Keeper, Next};
use crate::error::Error;
use crate::nodes::call::Failure;
use crate::nodes::retry::{Decision, retry_after};
use crate::registering::handle::{Lease, RegistrationState};
use crate::registering::renewals::{Outcome, Renewed, next_renewal, slack};

/// A renewal gets no less than this on one node, however short the TTL.
const SHORTEST_RENEWAL: Duration = Duration::from_millis(100);
/// Leases of a client that were lost together are registered again at this pace, on average, or
/// within half an interval.
const REREGISTER_EVERY: Duration = Duration::from_millis(5);
/// However long the interval, and however many they are, none is missing for longer.
const REREGISTERED_WITHIN: Duration = Duration::from_secs(10);

impl Keeper {
    /// Waits for a call, and keeps up the lease that there is meanwhile.
    pub(super) async fn beside_renewals<T>(&mut self, call: impl Future<Output = T>) -> T {
        let mut call = pin!(call);
        loop {
            let event = tokio::select! {
                biased; // an answer makes what else there is out of date
                answer = &mut call => return answer,
                event = self.wait(None) => event,
            };
            match (event, self.lease) {
                (Event::Due, Some(held)) => self.renew(held),
                (Event::Due, None) => {}
                (Event::Resumed, _) => self.renew_at = Instant::now(),
                (Event::OtherCluster { is }, _) => self.other_cluster(is),
                (Event::Renewed(outcome), _) => {
                    if self.renewal_ended(outcome) == Next::Stop {
                        return call.await;
                    }
                }
            }
        }
    }

    /// Hands in a renewal.
    pub(super) fn renew(&mut self, held: Held) {
        let limit = (held.interval / 2).max(SHORTEST_RENEWAL);
        let slack = slack(held.interval);
        self.renewing = Some(self.renewals.submit(held.lease, slack, limit));
    }

    pub(super) fn renewal_ended(&mut self, outcome: Result<Outcome, RecvError>) -> Next {
        self.renewing = None;
        match outcome {
            Ok(Ok(renewed)) => self.renewed(renewed),
            Ok(Err(failure)) => self.renewal_failed(failure),
            // The runtime is being shut down.
            Err(_gone) => return Next::Stop,
        }
        Next::Keep
    }

    /// Another cluster answers than the one that granted the lease.
    pub(super) fn other_cluster(&mut self, is: ClusterId) {
        // Other clients may have heard of it in the same moment, however few this one has.
        if let Some(lost) = self.lost_with(usize::MAX) {
            self.retrying(Error::OtherCluster { was: lost.cluster_id, is });
        }
    }

    fn renewed(&mut self, renewed: Renewed) {
        let Some(held) = self.lease else { return };
        match renewed {
            Renewed::Kept { revision } => {
                self.renew_at = Instant::now() + next_renewal(held.interval);
                if self.register_at.is_none() {
                    self.rounds.reset();
                }
                let is_retrying =
                    matches!(*self.state.borrow(), RegistrationState::Retrying { .. });
                if is_retrying && !self.is_incomplete {
                    self.registered(Lease { revision, ..held.lease });
                }
            }
            Renewed::Unknown { with } => {
                self.lost_with(with.saturating_sub(1));
                let status = Status::not_found("the lease is gone");
                self.retrying(Error::rejected("renew", &status));
            }
        }
    }

    /// The lease is gone, and with it the leases of `others` other registrations. One alone is
    /// registered again at once; many not all in the same moment.
    fn lost_with(&mut self, others: usize) -> Option<Lease> {
        let Held { lease, interval } = self.lease.take()?;
        self.renewing = None;
        let span = span(others, interval);
        self.register_at = Some(Instant::now() + rand::rng().random_range(Duration::ZERO..=span));
        Some(lease)
    }

    /// Decides what a renewal that failed on all nodes calls for.
    fn renewal_failed(&mut self, failure: Failure) {
        let told = retry_after(&failure.status).unwrap_or_default();
        match failure.decision {
            // The lease is gone: whether another run has the instance now, registering will show.
            Decision::Reregister | Decision::Superseded => {
                self.lease = None;
                self.register_at = Some(Instant::now() + told);
            }
            decision => self.renew_at = Instant::now() + self.pause(decision).max(told),
        }
        self.retrying(failure.into_error());
    }
}

/// Over how long registrations come back that are lost with as many others.
fn span(others: usize, interval: Duration) -> Duration {
    let others = u32::try_from(others).unwrap_or(u32::MAX);
    REREGISTER_EVERY.saturating_mul(others).min(interval / 2).min(REREGISTERED_WITHIN)
}

#[cfg(test)]
impl Keeper {
    /// As if it had been registered just now.
    pub(in crate::registering) fn pretend_registered(&mut self, interval: Duration) {
        let cluster_id = ClusterId::new(7).unwrap();
        let lease = Lease { cluster_id, id: 1, revision: 1, ttl: interval * 3 };
        self.lease = Some(Held { lease, interval });
        (self.renew_at, self.register_at) = (Instant::now() + interval, None);
    }

    /// Whether it hands in a renewal within this.
    pub(in crate::registering) async fn renews_within(&mut self, span: Duration) -> bool {
        let renews = async {
            while self.renewing.is_none() {
                let event = self.wait(None).await;
                self.react(event).await;
            }
        };
        tokio::time::timeout(span, renews).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lost_is_back_soon_however_long_its_ttl() {
        // S0.5, S3.8
        let (second, day) = (Duration::from_secs(1), Duration::from_secs(86_400));
        assert_eq!(span(0, day), Duration::ZERO, "one alone at once");
        assert_eq!(span(200, 5 * second), second, "at their pace");
        assert_eq!(span(usize::MAX, 5 * second), 5 * second / 2);
        assert_eq!(span(usize::MAX, day), 10 * second);
    }
}
