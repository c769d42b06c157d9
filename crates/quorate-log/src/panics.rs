//! Panics of sled that are caught and become errors.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static CATCHING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is where a panic is caught and becomes an error: for a panic hook.
pub fn catches_panics() -> bool {
    CATCHING.get()
}

/// Does something that may panic. Nothing that it may leave half changed is used afterwards.
pub(crate) fn catching<T>(work: impl FnOnce() -> T) -> Result<T, Box<dyn Any + Send>> {
    CATCHING.set(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    CATCHING.set(false);
    done
}
