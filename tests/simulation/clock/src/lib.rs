//! The operating system's clocks, as the simulation wants them: they say what they were set to.
//!
//! tokio and turmoil simulate time for whoever asks them. Two libraries ask the operating system,
//! and nothing above them can set what they hear. h2 asks the monotonic clock: it forgets a stream
//! that it has reset after a second, and answers a frame that comes later by another message than
//! one that comes before. hyper asks the wall clock: each answer has a `date`, which is packed into
//! another number of bytes each second, and of a long answer a byte more may be another TLS record.
//!
//! It takes the place of libc's function, as the tests of S2 and of madsim do. That is `unsafe`, so
//! it is a package of its own, the one that does not take the workspace's lints: whatever ships,
//! and every other test, forbids that. Only `cargo sim` links it.

use std::cell::Cell;
use std::time::Duration;

use libc::{CLOCK_MONOTONIC, CLOCK_REALTIME, c_int, clockid_t, timespec};

thread_local! {
    static NOW: Cell<Option<Duration>> = const { Cell::new(None) };
}

/// What both clocks say to this thread from now on (the wall clock, since 1970); `None`: what time
/// it really is. Other threads have the real one: they wait for real things.
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
    if let (CLOCK_MONOTONIC | CLOCK_REALTIME, Some(now)) = (clock, NOW.get()) {
        let (seconds, nanos) = (now.as_secs().cast_signed(), now.subsec_nanos().into());
        // SAFETY: the kernel has just written there.
        unsafe { to.write(timespec { tv_sec: seconds, tv_nsec: nanos }) };
    }
    0
}
