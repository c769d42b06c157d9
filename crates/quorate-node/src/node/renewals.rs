//! Collects renewals. They have slack (clients renew at a third of the TTL), so many of them become
//! one message to the leader, and one log entry there.
//!
//! Idle clients come now and then: what came within a window makes one batch, so a million of them
//! cost a few entries a second. A client that sends its next renewals as soon as the last ones are
//! answered, on its stream or by calls in turn on its connection, waits for them: its batch goes
//! out when the last one is back, so batches are as large as the cluster is slow. Left alone, such
//! clients fall into two halves, one of which waits while the other's batch is under way; so a
//! batch waits a moment for as many calls as were there last time, including the calls that waited
//! when it came back. (Measured with 64 streams, one renewal under way on each, against going out
//! at once: 1.44 times the renewals per second, for 0.58 times the processor time each. Two or four
//! batches under way at once gave no more renewals, for up to 1.8 times the processor time.)

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use quorate_log::NodeId;
use quorate_state::{LeaseId, limits};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::error::NodeError;
use crate::node::queues::hand_in;

/// Calls that wait for a batch: each holds at most 10,000 lease ids (80 KB), most hold one.
const QUEUE_MAX: usize = 8_192;

/// How long a batch waits for calls that could come with it. On one machine they are back within
/// half of it; more would be felt by callers that wait.
const GATHER: Duration = Duration::from_millis(1);

/// How long renewals may be held back to be sent with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Until the window is over: that holds up no caller.
    Window,
    /// Not at all: the caller sends its next ones when these are answered.
    None,
}

/// What came of one call's renewals.
#[derive(Debug, Clone, PartialEq)]
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
    patience: Patience,
    done: oneshot::Sender<Result<Renewed, NodeError>>,
}

/// Where calls are handed in.
#[derive(Debug, Clone)]
pub(crate) struct Renewals {
    node: NodeId,
    calls: mpsc::Sender<Call>,
    refused: Counter,
}

/// The other end: the loop that makes batches.
pub(crate) struct Batches {
    calls: mpsc::Receiver<Call>,
    window: Duration,
}

/// A queue for calls and the loop that empties it; `refused` counts those that are too many.
pub(crate) fn renewals(node: NodeId, window: Duration, refused: Counter) -> (Renewals, Batches) {
    let (sender, receiver) = mpsc::channel(QUEUE_MAX);
    (Renewals { node, calls: sender, refused }, Batches { calls: receiver, window })
}

impl Renewals {
    /// Renews leases with the next batch.
    ///
    /// # Errors
    /// Why the batch could not be sent; [`NodeError::Overloaded`] when too many calls wait.
    pub(super) async fn submit(
        &self,
        leases: Vec<LeaseId>,
        patience: Patience,
    ) -> Result<Renewed, NodeError> {
        let (done, answer) = oneshot::channel();
        hand_in(&self.calls, Call { leases, patience, done }, self.node, &self.refused)?;
        answer.await.unwrap_or(Err(NodeError::Stopping { node: self.node }))
    }

    /// How many calls wait.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.calls.max_capacity() - self.calls.capacity()
    }
}

impl Batches {
    /// Makes batches and sends them, one at a time, until all [`Renewals`] are gone.
    pub(crate) async fn run<F>(mut self, mut send: impl FnMut(Vec<LeaseId>, Patience) -> F)
    where
        F: Future<Output = Result<BatchRenewed, NodeError>>,
    {
        let mut last_sent = Instant::now() - self.window;
        let mut expected = 0;
        while let Some(first) = self.calls.recv().await {
            if first.done.is_closed() {
                continue;
            }
            let (batch, patience) = self.collect(first, last_sent + self.window, expected).await;
            last_sent = Instant::now();
            let all = batch.iter().flat_map(|call| call.leases.iter().copied()).collect();
            let sent = send(all, patience).await;
            // Callers that send their next ones now, and calls that wait already, can come
            // together.
            let back_soon = batch.iter().filter(|call| call.patience == Patience::None).count();
            expected = back_soon + self.calls.len();
            for call in batch {
                let answer = sent.clone().map(|renewed| call_part(&call.leases, &renewed));
                // A caller that is gone needs no answer.
                let _ = call.done.send(answer);
            }
        }
    }

    /// The calls that wait, and the calls that come until `close_at` as long as no caller waits for
    /// the answer; where one does, the calls that come soon, up to as many as are expected.
    async fn collect(
        &mut self,
        first: Call,
        close_at: Instant,
        expected: usize,
    ) -> (Vec<Call>, Patience) {
        let gather_until = Instant::now() + GATHER;
        let (mut leases, mut patience) = (first.leases.len(), first.patience);
        let mut batch = vec![first];
        while leases < limits::LEASES_PER_CALL {
            let next = match patience {
                Patience::None => match self.calls.try_recv() {
                    Ok(call) => Some(call),
                    Err(_) if batch.len() < expected => {
                        timeout_at(gather_until, self.calls.recv()).await.ok().flatten()
                    }
                    Err(_) => None,
                },
                Patience::Window => timeout_at(close_at, self.calls.recv()).await.ok().flatten(),
            };
            let Some(call) = next else { break };
            // Its caller gave up, and may have asked again: a cluster that is too slow must not do
            // its work twice.
            if call.done.is_closed() {
                continue;
            }
            leases += call.leases.len();
            if call.patience == Patience::None {
                patience = Patience::None;
            }
            batch.push(call);
        }
        (batch, patience)
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

    fn queue() -> (Renewals, Batches) {
        renewals(NodeId::new(1).unwrap(), Duration::from_millis(50), Counter::default())
    }

    #[tokio::test(start_paused = true)]
    async fn a_thousand_calls_become_few_batches_and_each_gets_its_own_answer() {
        let (renewals, batches) = queue();
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let sent = sizes.clone();
        let running = tokio::spawn(batches.run(move |leases, _| {
            sent.lock().unwrap().push(leases.len());
            let unknown = leases.into_iter().filter(|id| id.0 % 10 == 0).collect();
            async move { Ok(BatchRenewed { unknown: Arc::new(unknown), revision: 7 }) }
        }));
        let mut calls = tokio::task::JoinSet::new();
        for id in 0..1_000 {
            let renewals = renewals.clone();
            calls.spawn(
                async move { (id, renewals.submit(vec![LeaseId(id)], Patience::Window).await) },
            );
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

    #[tokio::test(start_paused = true)]
    async fn callers_that_wait_for_each_other_come_together_and_nobody_waits_for_one_that_left() {
        let (renewals, batches) = queue();
        let sent = Arc::new(Mutex::new(Vec::new()));
        let log = sent.clone();
        let commit = Duration::from_millis(10);
        let _running = tokio::spawn(batches.run(move |leases, _| {
            log.lock().unwrap().push((leases.len(), Instant::now()));
            async move {
                tokio::time::sleep(commit).await;
                Ok(BatchRenewed { unknown: Arc::default(), revision: 7 })
            }
        }));
        let caller = async |id, starts_after, calls| {
            tokio::time::sleep(starts_after).await;
            for _ in 0..calls {
                renewals.submit(vec![LeaseId(id)], Patience::None).await.unwrap();
            }
        };
        // The second one comes while the first one's batch is under way, and leaves earlier.
        tokio::join!(caller(1, Duration::ZERO, 10), caller(2, commit / 2, 5));
        let sent = sent.lock().unwrap();
        let sizes: Vec<usize> = sent.iter().map(|(size, _)| *size).collect();
        assert_eq!(sizes, [1, 2, 2, 2, 2, 2, 1, 1, 1, 1]);
        let gaps = sent.windows(2).map(|pair| pair[1].1 - pair[0].1);
        let waited: Vec<Duration> = gaps.filter(|gap| *gap > commit).collect();
        assert!(matches!(waited[..], [once] if once <= commit + 2 * GATHER), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_renewed_for_callers_that_are_gone() {
        let (renewals, batches) = queue();
        let sent = Arc::new(Mutex::new(Vec::new()));
        let log = sent.clone();
        let _running = tokio::spawn(batches.run(move |leases, _| {
            log.lock().unwrap().push(leases);
            async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Ok(BatchRenewed { unknown: Arc::default(), revision: 7 })
            }
        }));
        let submit = |id| renewals.submit(vec![LeaseId(id)], Patience::None);
        // Each gives up and asks again for the same lease while the first batch is under way.
        let patience = Duration::from_millis(100);
        let impatient = async {
            tokio::task::yield_now().await;
            for _ in 0..5 {
                assert!(tokio::time::timeout(patience, submit(2)).await.is_err());
            }
            submit(2).await.unwrap();
        };
        let (first, ()) = tokio::join!(submit(1), impatient);
        first.unwrap();
        assert_eq!(*sent.lock().unwrap(), [[LeaseId(1)], [LeaseId(2)]]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_not_held_up_and_who_does_not_is_sent_with_it() {
        let (renewals, batches) = queue();
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let sent = sizes.clone();
        let _running = tokio::spawn(batches.run(move |leases, patience| {
            sent.lock().unwrap().push((leases.len(), patience));
            async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                Ok(BatchRenewed { unknown: Arc::default(), revision: 7 })
            }
        }));
        let begun = Instant::now();
        // The first one begins a window; nothing is sent in it unless a caller waits.
        renewals.submit(vec![LeaseId(1)], Patience::Window).await.unwrap();
        assert_eq!(begun.elapsed(), Duration::from_millis(1));
        let idle = renewals.submit(vec![LeaseId(2)], Patience::Window);
        let waiting = async {
            for id in 3..13 {
                renewals.submit(vec![LeaseId(id)], Patience::None).await.unwrap();
            }
        };
        let (idle, ()) = tokio::join!(idle, waiting);
        idle.unwrap();
        assert_eq!(begun.elapsed(), Duration::from_millis(11));
        let mut sizes = sizes.lock().unwrap();
        assert_eq!(sizes.remove(0), (1, Patience::Window));
        assert_eq!(sizes.remove(0), (2, Patience::None), "sent together");
        assert!(sizes.iter().all(|batch| *batch == (1, Patience::None)), "{sizes:?}");
    }
}
