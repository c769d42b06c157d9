//! The operating system's monotonic clock, as the simulation wants it: it says what it was set to.
//!
//! tokio and turmoil simulate time for whoever asks them. h2 asks the operating system: it forgets
//! a stream that it has reset after a second, and answers a frame that comes later by another
//! message than one that comes before. Nothing above h2 can set that second, so runs parted there.
//!
//! It takes the place of libc's function, as the tests of S2 and of madsim do. That is `unsafe`, so
//! it is a package of its own, the one that does not take the workspace's lints: whatever ships,
//! and every other test, forbids that. Only `cargo sim` links it.

use std::cell::Cell;
use std::time::Duration;

use libc::{CLOCK_MONOTONIC, c_int, clockid_t, timespec};

thread_local! {
    static NOW: Cell<Option<Duration>> = const { Cell::new(None) };
}

/// What the clock says to this thread from now on; `None`: what time it really is. Other threads
/// have the real one: they wait for real things.
pub fn set(now: Option<Duration>) {
    NOW.set(now);
}

/// libc's own function of this name.
///
/// # Safety
/// `to` may be written to, as libc wants it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: clockid_t, to: *mut timespec) -> c_int {
    // SAFETY: what holds for the caller holds for the system call.
    let failed = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, to) } != 0;
    if failed {
        return -1;
    }
    if let (CLOCK_MONOTONIC, Some(now)) = (clock, NOW.get()) {
        let (seconds, nanos) = (now.as_secs().cast_signed(), now.subsec_nanos().into());
        // SAFETY: the kernel has just written there.
        unsafe { to.write(timespec { tv_sec: seconds, tv_nsec: nanos }) };
    }
    0
}
