//! A wake-up that costs its waiting task nothing while there is none: no lock, no list, nothing
//! made anew for each wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

/// Wakes one task when there is something for it to take. Calls before the task looks count as one.
#[derive(Debug, Default)]
pub(crate) struct Wake {
    called: AtomicBool,
    task: AtomicWaker,
}

impl Wake {
    pub(super) fn call(&self) {
        self.called.store(true, Ordering::Release);
        self.task.wake();
    }

    /// Ready once for all calls until now.
    pub(super) fn poll_called(&self, cx: &Context<'_>) -> Poll<()> {
        if !self.take_call() {
            self.task.register(cx.waker());
            // What was called in between found no waker.
            if !self.take_call() {
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }

    /// The next call wakes this task, and is still one to be taken.
    pub(super) fn register(&self, cx: &Context<'_>) {
        self.task.register(cx.waker());
    }

    fn take_call(&self) -> bool {
        self.called.load(Ordering::Relaxed) && self.called.swap(false, Ordering::Acquire)
    }
}

/// As the waker of what the same task waits for besides.
impl std::task::Wake for Wake {
    fn wake(self: Arc<Self>) {
        self.call();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.call();
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::AtomicU64;

    use super::*;

    /// Wherever the waiter is when the last call comes.
    #[tokio::test]
    async fn no_call_is_missed() {
        const CALLS: u64 = 100_000;
        let (wake, count) = (Arc::new(Wake::default()), Arc::new(AtomicU64::new(0)));
        let (caller, counted) = (wake.clone(), count.clone());
        let calling = std::thread::spawn(move || {
            for _ in 0..CALLS {
                counted.fetch_add(1, Ordering::Relaxed);
                caller.call();
            }
        });
        while count.load(Ordering::Relaxed) < CALLS {
            poll_fn(|cx| wake.poll_called(cx)).await;
        }
        calling.join().unwrap();
    }
}
