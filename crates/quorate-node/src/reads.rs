//! Linearizable reads (ReadIndex, Raft thesis section 6.4): one round trip to a quorum confirms many reads at once.
//!
//! A round may answer every read that began before the round did. Reads queue on one lock; whoever gets it looks whether
//! a round that began after its own arrival has finished meanwhile, and runs one otherwise.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

use crate::error::NodeError;

/// Shares rounds between reads.
#[derive(Debug, Default)]
pub(crate) struct ReadIndex {
    started: AtomicU64,
    last: Mutex<Finished>,
}

#[derive(Debug, Default)]
struct Finished {
    round: u64,
    index: u64,
}

impl ReadIndex {
    /// A log index that a read which begins now has to wait for; `round` finds one.
    ///
    /// # Errors
    /// Those of `round`, for the read that ran it; the others try for themselves.
    pub(crate) async fn confirm(
        &self,
        round: impl Future<Output = Result<u64, NodeError>>,
    ) -> Result<u64, NodeError> {
        let arrived = self.started.load(Ordering::SeqCst);
        let mut last = self.last.lock().await;
        if last.round > arrived {
            return Ok(last.index);
        }
        let number = self.started.fetch_add(1, Ordering::SeqCst) + 1;
        let index = round.await?;
        *last = Finished { round: number, index };
        Ok(index)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn reads_that_wait_share_one_later_round() {
        let reads = Arc::new(ReadIndex::default());
        let rounds = Arc::new(AtomicU64::new(0));
        let mut running = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let (reads, rounds) = (reads.clone(), rounds.clone());
            running.spawn(async move {
                let round = async {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    Ok(rounds.fetch_add(1, Ordering::SeqCst) + 1)
                };
                reads.confirm(round).await
            });
        }
        let indexes: Vec<_> = running.join_all().await.into_iter().map(Result::unwrap).collect();
        assert_eq!(rounds.load(Ordering::SeqCst), 2, "the first one, and one for all that waited");
        assert_eq!(indexes.iter().filter(|index| **index == 2).count(), 99);
    }
}
