//! What the state machines of a run did, as they say it themselves: each write by its name, with
//! the revision after it.

use std::collections::BTreeMap;
use std::sync::Mutex;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::Context;

use super::history::Name;

/// Where nodes say it (`applied.rs` of the node).
const WRITES: &str = "quorate::writes";

/// Writes that were done, with the revision then. A process has one run.
static DONE: Mutex<BTreeMap<Name, u64>> = Mutex::new(BTreeMap::new());

/// Listens to what all nodes say of writes.
pub(crate) fn listen<S: Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>>()
-> impl Layer<S> {
    Listening.with_filter(Targets::new().with_target(WRITES, Level::TRACE))
}

/// What was done until now.
pub(crate) fn take() -> BTreeMap<Name, u64> {
    std::mem::take(&mut DONE.lock().expect("no panic"))
}

struct Listening;

impl<S: Subscriber> Layer<S> for Listening {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut write = Write::default();
        event.record(&mut write);
        if write.is_done {
            // Of a write that was handed in again, each entry says the same.
            DONE.lock().expect("no panic").insert((write.origin, write.number), write.revision);
        }
    }
}

#[derive(Default)]
struct Write {
    origin: u64,
    number: u64,
    revision: u64,
    is_done: bool,
}

impl Visit for Write {
    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "origin" => self.origin = value,
            "number" => self.number = value,
            "revision" => self.revision = value,
            _ => {}
        }
    }

    fn record_bool(&mut self, _is_done: &Field, value: bool) {
        self.is_done = value;
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}
