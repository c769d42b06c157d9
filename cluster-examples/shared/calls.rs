//! Callers that go on and on while something happens. None of their calls may fail.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// The calls that are waited for succeed by then, or something is wrong.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
pub(crate) struct Calls {
    succeeded: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl Calls {
    /// Adds this number of callers, each of which makes this call again and again.
    pub(crate) fn start<F>(&mut self, callers: u32, call: impl Fn() -> F + Clone + Send + 'static)
    where
        F: Future<Output = anyhow::Result<()>> + Send,
    {
        for _ in 0..callers {
            let (succeeded, stop) = (self.succeeded.clone(), self.stop.clone());
            let call = call.clone();
            self.tasks.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    call().await?;
                    succeeded.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            });
        }
    }

    /// Waits for this many more calls that succeed.
    pub(crate) async fn more(&self, count: u32) -> anyhow::Result<()> {
        let wanted = self.succeeded.load(Ordering::Relaxed) + count;
        let wait = async {
            while self.succeeded.load(Ordering::Relaxed) < wanted {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, wait).await.context("the calls do not go on")
    }

    /// How many there were; an error if one failed.
    pub(crate) async fn end(self) -> anyhow::Result<u32> {
        self.stop.store(true, Ordering::Relaxed);
        for ended in self.tasks.join_all().await {
            ended?;
        }
        Ok(self.succeeded.load(Ordering::Relaxed))
    }
}
