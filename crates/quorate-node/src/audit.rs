//! The audit log: a line of JSON for each write and for each call that was refused for want of a
//! right. Knows no call: the door says what happened. Holds names, never what proves them.
//!
//! What is done does not wait for it: what the file does not take in time is counted, and the next
//! line says how much (`left_out`). Unless it is required: then no write is acknowledged before its
//! line is in the file, none is begun while the file takes none, and lines are kept until it does.

mod writer;

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use quorate_log::NodeId;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;

pub(crate) use self::writer::Writer;
use crate::error::{Trouble, Unwritten};
use crate::free_space::Disk;

/// Lines that wait to be written: some hundred KiB.
const QUEUE_MAX: usize = 8_192;
/// Calls of unknown callers that have a line of their own, in this time. A caller without a
/// credential must not fill the disk: these are some tens of KiB a second.
const STRANGERS_MAX: u32 = 100;
/// Refusals at the listener for nodes that have one. A node that does not know yet that it was
/// taken out knocks many times a second.
const PEERS_MAX: u32 = 20;
/// Refusals of callers that are known, all of them together. One with a narrow right that calls as
/// often as it can must not fill the disk either: these are some hundred KiB a second.
const KNOWN_MAX: u32 = 200;
const PACE_OVER: Duration = Duration::from_secs(1);
/// Of the lines that wait, so many may be of calls that were refused, whoever made them. The other
/// places are for writes: where a line is required, none is done without one.
const REFUSALS_MAX: usize = QUEUE_MAX / 4;

/// One line.
#[derive(Debug, Serialize)]
pub(crate) struct Event {
    pub(crate) time: String,
    pub(crate) node: NodeId,
    /// The name that the caller gave its call, or a number of the node.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) request: String,
    /// `None`: nobody who is known.
    pub(crate) principal: Option<String>,
    pub(crate) method: &'static str,
    #[serde(flatten)]
    pub(crate) subject: Subject,
    pub(crate) decision: Decision,
    pub(crate) code: String,
    /// Why it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// Where a write stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) revision: Option<u64>,
    pub(crate) from: Option<IpAddr>,
    /// How many lines before this one were not written.
    #[serde(skip_serializing_if = "is_none")]
    pub(crate) left_out: u64,
}

fn is_none(count: &u64) -> bool {
    *count == 0
}

/// Whether the caller had the right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Decision {
    Allowed,
    Denied,
}

/// What a call was about.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Subject {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<String>,
    /// `service`, `service/id`, or `prefix*`: the first ones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) names: Vec<String>,
    /// How many there are in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) count: Option<usize>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) leases: Vec<u64>,
}

/// Names in one line, at most.
pub(crate) const NAMES_MAX: usize = 10;

impl Subject {
    /// Leases that have no other name.
    pub(crate) fn of_leases(leases: impl ExactSizeIterator<Item = u64>) -> Self {
        let count = Some(leases.len());
        Self { count, leases: leases.take(NAMES_MAX).collect(), ..Self::default() }
    }
}

/// A line on its way, and who waits until it is written.
#[derive(Debug)]
struct Line {
    event: Event,
    written: Option<oneshot::Sender<()>>,
    /// Of the share of refusals.
    _share: Option<OwnedSemaphorePermit>,
}

/// A place for the line of a write that is not to be done without one.
#[derive(Debug)]
pub(crate) struct Place(mpsc::OwnedPermit<Line>);

/// The line of a write that waits for it. An error: it is not written, and may yet be.
pub(crate) type Written = oneshot::Receiver<()>;

/// What is known of a file without which nothing is written.
#[derive(Debug)]
struct Required {
    file: PathBuf,
    /// Why it took the last lines not.
    trouble: Mutex<Option<Trouble>>,
}

/// How many lines of a kind there were of late.
#[derive(Debug, Default)]
struct Pace(Mutex<Option<(Instant, u32)>>);

impl Pace {
    /// Whether one more is taken, of so many in [`PACE_OVER`].
    fn takes(&self, most: u32) -> bool {
        let mut of_late = self.0.lock().expect("invariant: nothing panics under it");
        let (since, count) = of_late.get_or_insert_with(|| (Instant::now(), 0));
        if since.elapsed() >= PACE_OVER {
            (*since, *count) = (Instant::now(), 0);
        }
        *count += 1;
        *count <= most
    }
}

/// Where lines are handed in.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    lines: Option<mpsc::Sender<Line>>,
    required: Option<Required>,
    /// Since the last line that said it.
    left_out: AtomicU64,
    left_out_ever: AtomicU64,
    /// Of calls of nobody.
    strangers: Pace,
    /// Of refusals of callers that are known.
    known: Pace,
    /// Of refusals at the listener for nodes.
    peers: Pace,
    /// Of the data, where the file is on it, too.
    disk: OnceLock<Arc<Disk>>,
    refusals: Option<Arc<Semaphore>>,
}

impl Audit {
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn open(path: PathBuf, is_required: bool) -> io::Result<(Arc<Self>, Writer)> {
        let (sender, lines) = mpsc::channel(QUEUE_MAX);
        let required =
            is_required.then(|| Required { file: path.clone(), trouble: Mutex::default() });
        let refusals = Some(Arc::new(Semaphore::new(REFUSALS_MAX)));
        let audit = Arc::new(Self { lines: Some(sender), required, refusals, ..Self::default() });
        let writer = Writer::open(path, lines, audit.clone())?;
        Ok((audit, writer))
    }

    /// While this disk has no room for what must go on, refusals are left out, if the file is on
    /// it.
    pub(crate) fn spares(&self, disk: &Arc<Disk>, file: &Path) {
        if disk.has(file) {
            let _once = self.disk.set(disk.clone());
        }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.lines.is_some()
    }

    /// A place for the line of a write that has not begun; `None`: it needs none.
    ///
    /// # Errors
    /// It is not to begin.
    pub(crate) fn reserve(&self) -> Result<Option<Place>, Unwritten> {
        let (Some(lines), Some(required)) = (&self.lines, &self.required) else { return Ok(None) };
        let reason = match required.trouble() {
            Some(reason) => reason,
            None => match lines.clone().try_reserve_owned() {
                Ok(place) => return Ok(Some(Place(place))),
                Err(_) => Trouble::Full { waiting: QUEUE_MAX },
            },
        };
        Err(required.unwritten(reason, "nothing was done"))
    }

    /// Whether the file takes the lines without which nothing is written.
    ///
    /// # Errors
    /// It does not.
    pub(crate) fn check(&self) -> Result<(), Unwritten> {
        let Some(required) = &self.required else { return Ok(()) };
        match required.trouble() {
            Some(reason) => Err(required.unwritten(reason, "no write is done")),
            None => Ok(()),
        }
    }

    /// Hands a line in. What waits is for a write with a place.
    pub(crate) fn tell(&self, mut event: Event, place: Option<Place>) -> Option<Written> {
        let lines = self.lines.as_ref()?;
        if let Some(place) = place {
            event.left_out = self.left_out.swap(0, Ordering::Relaxed);
            let (written, waits) = oneshot::channel();
            place.0.send(Line { event, written: Some(written), _share: None });
            return Some(waits);
        }
        let is_stuck = self.required.as_ref().is_some_and(|required| required.trouble().is_some());
        let share = match event.decision {
            Decision::Allowed => None,
            Decision::Denied => {
                self.refusals.clone().and_then(|share| share.try_acquire_owned().ok())
            }
        };
        let is_crowded = event.decision == Decision::Denied && share.is_none();
        if is_stuck || is_crowded || !self.is_in_pace(&event) {
            self.leave_out(1, 0);
            return None;
        }
        event.left_out = self.left_out.swap(0, Ordering::Relaxed);
        if let Err(error) = lines.try_send(Line { event, written: None, _share: share }) {
            let event = error.into_inner().event;
            self.leave_out(1, event.left_out);
        }
        None
    }

    /// Counts lines that are not written; `told`: how many these would have said were left out
    /// before.
    fn leave_out(&self, lines: u64, told: u64) {
        self.left_out_ever.fetch_add(lines, Ordering::Relaxed);
        self.left_out.fetch_add(lines + told, Ordering::Relaxed);
    }

    /// How many lines were not written since the start.
    pub(crate) fn left_out_ever(&self) -> u64 {
        self.left_out_ever.load(Ordering::Relaxed)
    }

    /// Whether there are not too many of its kind already. Those that change nothing are not to
    /// fill the disk.
    fn is_in_pace(&self, event: &Event) -> bool {
        let is_refusal = event.decision == Decision::Denied;
        if is_refusal && self.disk.get().is_some_and(|disk| disk.check_floor().is_err()) {
            return false;
        }
        match &event.principal {
            None => self.strangers.takes(STRANGERS_MAX),
            Some(_) => !is_refusal || self.known.takes(KNOWN_MAX),
        }
    }

    /// Waits for the line of a write that was done.
    ///
    /// # Errors
    /// It is not in the file.
    pub(crate) async fn written(&self, line: Written, deadline: Instant) -> Result<(), Unwritten> {
        let Some(required) = &self.required else { return Ok(()) };
        match tokio::time::timeout_at(deadline, line).await {
            Ok(Ok(())) => Ok(()),
            _ => {
                let reason = required.trouble().unwrap_or(Trouble::Late);
                Err(required.unwritten(reason, "the call may have been done"))
            }
        }
    }

    /// Hands in the line of a refusal at the listener for nodes.
    pub(crate) fn tell_of_peer(&self, event: Event) {
        if self.peers.takes(PEERS_MAX) {
            let _nobody_waits = self.tell(event, None);
        } else {
            self.leave_out(1, 0);
        }
    }
}

impl Required {
    fn trouble(&self) -> Option<Trouble> {
        self.trouble.lock().expect("invariant: nothing panics under it").clone()
    }

    fn unwritten(&self, reason: Trouble, done: &'static str) -> Unwritten {
        Unwritten { file: self.file.clone(), reason, done }
    }
}

#[cfg(test)]
mod tests;
