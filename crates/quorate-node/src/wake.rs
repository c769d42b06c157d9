//! A wake-up that costs its waiter nothing while there is none: no lock, no list, nothing made anew for each wait.

use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

/// Tells one task that there is something for it to take. Calls before the task looks count as one.
#[derive(Debug, Default)]
pub(crate) struct Wake {
    called: AtomicBool,
    task: AtomicWaker,
}

impl Wake {
    pub(crate) fn call(&self) {
        self.called.store(true, Ordering::Release);
        self.task.wake();
    }

    /// Ready once for all calls so far.
    pub(crate) fn poll_called(&self, cx: &Context<'_>) -> Poll<()> {
        self.task.register(cx.waker());
        match self.called.swap(false, Ordering::Acquire) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}
