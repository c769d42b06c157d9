//! A clock that goes on while the machine is suspended, for what is said of the world outside: how
//! old a view is, or a write. tokio's stands still then, with all that waits for it.

use std::time::Duration;

use tokio::time::Instant;

/// A moment by this clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(Instant);

impl Moment {
    pub(crate) fn now() -> Self {
        // Read in this order, the sum is a time within this call, whatever comes between.
        let suspended = suspended();
        Self(Instant::now() + suspended)
    }

    pub(crate) fn elapsed(self) -> Duration {
        Self::now().0.saturating_duration_since(self.0)
    }

    /// So long before; `None` where no clock goes back that far.
    pub(crate) fn checked_sub(self, by: Duration) -> Option<Self> {
        self.0.checked_sub(by).map(Self)
    }
}

/// For how long the machine was suspended since it started.
#[cfg(all(target_os = "linux", not(test)))]
pub(crate) fn suspended() -> Duration {
    use rustix::time::{ClockId, clock_gettime};

    let read = |clock| Duration::try_from(clock_gettime(clock)).unwrap_or_default();
    let all = read(ClockId::Boottime);
    all.saturating_sub(read(ClockId::Monotonic))
}

/// Elsewhere it is not known.
#[cfg(not(any(target_os = "linux", test)))]
pub(crate) fn suspended() -> Duration {
    Duration::ZERO
}

#[cfg(test)]
thread_local! {
    static SUSPENDED: std::cell::Cell<Duration> = const { std::cell::Cell::new(Duration::ZERO) };
}

/// What the test said, on its thread.
#[cfg(test)]
pub(crate) fn suspended() -> Duration {
    SUSPENDED.get()
}

/// The machine was suspended for so long, for what runs on this thread.
#[cfg(test)]
pub(crate) fn suspend(span: Duration) {
    SUSPENDED.set(SUSPENDED.get() + span);
}
