//! Tells a test what a log writes and syncs, on the thread that does it, so that the test knows
//! what a power cut at that moment would leave; and has a step of it fail, as a disk would. Not
//! part of a release.

use std::cell::{Cell, RefCell};
use std::io;
use std::path::Path;

/// What was just done to a file.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Event<'a> {
    /// Something was written that a power cut may lose.
    Wrote(&'a Path),
    /// All that was written before is durable.
    Synced(&'a Path),
    /// Another file, all of it durable, has this name now. A power cut may give it back to the old
    /// one.
    Replaced(&'a Path),
    /// It has no name any more, or has it again after a power cut.
    Removed(&'a Path),
    /// The names in this directory are durable.
    SyncedNames(&'a Path),
}

type Observer = Box<dyn FnMut(Event<'_>)>;

thread_local! {
    static OBSERVER: RefCell<Option<Observer>> = const { RefCell::new(None) };
}

/// From now on `observer` learns what this thread does; `None` ends that.
pub(crate) fn set(observer: Option<Observer>) {
    OBSERVER.with_borrow_mut(|place| *place = observer);
}

pub(crate) fn tell(event: Event<'_>) {
    OBSERVER.with_borrow_mut(|place| place.as_mut().into_iter().for_each(|observe| observe(event)));
}

/// What can fail: of the journal, if nothing else is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Write,
    Sync,
    /// Of the witness, both its slots and the sync.
    Witness,
}

thread_local! {
    static FAILS: Cell<Option<Step>> = const { Cell::new(None) };
}

/// The next such step fails, on this thread.
pub(crate) fn fail_next(step: Step) {
    FAILS.set(Some(step));
}

/// # Errors
/// This step is to fail.
pub(crate) fn begin(step: Step) -> io::Result<()> {
    if FAILS.get() != Some(step) {
        return Ok(());
    }
    FAILS.set(None);
    Err(io::Error::new(io::ErrorKind::StorageFull, "a test fills the disk"))
}
