//! Collects renewals: they have slack (clients renew at a third of the TTL), so many of them become one message to the
//! leader, and one log entry there.
//!
//! A batch goes out at once when none went out for a window, and otherwise when the window since the last one is over; so
//! a lone renewal is quick, and a million of them cost a few entries a second.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use quorate_state::{LeaseId, limits};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::error::NodeError;

/// Calls that wait for a batch: each holds at most 10,000 lease ids (80 KB), most hold one.
const QUEUE_MAX: usize = 8_192;

/// What came of one call's renewals.
#[derive(Debug, Clone)]
pub(crate) struct Renewed {
    pub(crate) unknown: Vec<LeaseId>,
    pub(crate) revision: u64,
}

/// What came of a batch.
#[derive(Debug, Clone)]
pub(crate) struct BatchRenewed {
    pub(crate) unknown: Arc<HashSet<LeaseId>>,
    pub(crate) revision: u64,
}

struct Call {
    leases: Vec<LeaseId>,
    done: oneshot::Sender<Result<Renewed, NodeError>>,
}

/// Where calls are handed in.
#[derive(Debug, Clone)]
pub(crate) struct Renewals {
    node: u64,
    calls: mpsc::Sender<Call>,
}

/// The other end: the loop that makes batches.
pub(crate) struct Batches {
    calls: mpsc::Receiver<Call>,
    window: Duration,
}

/// A queue for calls and the loop that empties it.
pub(crate) fn renewals(node: u64, window: Duration) -> (Renewals, Batches) {
    let (sender, receiver) = mpsc::channel(QUEUE_MAX);
    (Renewals { node, calls: sender }, Batches { calls: receiver, window })
}

impl Renewals {
    /// Renews leases with the next batch.
    ///
    /// # Errors
    /// Those of sending the batch; [`NodeError::Overloaded`] when too many calls wait.
    pub(crate) async fn submit(&self, leases: Vec<LeaseId>) -> Result<Renewed, NodeError> {
        let (done, answer) = oneshot::channel();
        self.calls.try_send(Call { leases, done }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => NodeError::Overloaded { waiting: QUEUE_MAX },
            mpsc::error::TrySendError::Closed(_) => NodeError::Stopping { node: self.node },
        })?;
        answer.await.unwrap_or(Err(NodeError::Stopping { node: self.node }))
    }
}

impl Batches {
    /// Makes batches and sends them, one at a time, until all [`Renewals`] are gone.
    pub(crate) async fn run<F>(mut self, mut send: impl FnMut(Vec<LeaseId>) -> F)
    where
        F: Future<Output = Result<BatchRenewed, NodeError>>,
    {
        let mut last_sent = Instant::now() - self.window;
        while let Some(first) = self.calls.recv().await {
            let mut leases = first.leases.len();
            let mut batch = vec![first];
            let close_at = last_sent + self.window;
            while leases < limits::LEASES_PER_CALL {
                let Ok(Some(call)) = tokio::time::timeout_at(close_at, self.calls.recv()).await
                else {
                    break;
                };
                leases += call.leases.len();
                batch.push(call);
            }
            last_sent = Instant::now();
            let all = batch.iter().flat_map(|call| call.leases.iter().copied()).collect();
            let sent = send(all).await;
            for call in batch {
                let answer = sent.clone().map(|renewed| call_part(&call.leases, &renewed));
                // A caller that is gone needs no answer.
                let _ = call.done.send(answer);
            }
        }
    }
}

fn call_part(leases: &[LeaseId], batch: &BatchRenewed) -> Renewed {
    let unknown = leases.iter().copied().filter(|id| batch.unknown.contains(id)).collect();
    Renewed { unknown, revision: batch.revision }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_thousand_calls_become_few_batches_and_each_gets_its_own_answer() {
        let (renewals, batches) = renewals(1, Duration::from_millis(50));
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let sent = sizes.clone();
        let running = tokio::spawn(batches.run(move |leases| {
            sent.lock().unwrap().push(leases.len());
            let unknown = leases.into_iter().filter(|id| id.0 % 10 == 0).collect();
            async move { Ok(BatchRenewed { unknown: Arc::new(unknown), revision: 7 }) }
        }));
        let mut calls = tokio::task::JoinSet::new();
        for id in 0..1_000 {
            let renewals = renewals.clone();
            calls.spawn(async move { (id, renewals.submit(vec![LeaseId(id)]).await) });
        }
        for (id, renewed) in calls.join_all().await {
            let unknown = renewed.unwrap().unknown;
            assert_eq!(unknown, if id % 10 == 0 { vec![LeaseId(id)] } else { Vec::new() });
        }
        drop(renewals);
        running.await.unwrap();
        let sizes = sizes.lock().unwrap();
        assert!(sizes.len() <= 2, "batches: {sizes:?}");
        assert_eq!(sizes.iter().sum::<usize>(), 1_000);
    }
}
