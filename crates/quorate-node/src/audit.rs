//! The audit log: a line of JSON for each write and for each call that was refused for want of a
//! right. Knows no call: the door says what happened. Holds names, never what proves them.
//!
//! What is done does not wait for it: what the file does not take in time is counted, and the next
//! line says how much (`left_out`). Unless it is required: then no write is acknowledged before its
//! line is in the file, none is begun while the file takes none, and lines are kept until it does.

mod writer;

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_log::NodeId;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;

pub(crate) use self::writer::Writer;
use crate::error::{Trouble, Unwritten};

/// Lines that wait to be written: some hundred KiB.
const QUEUE_MAX: usize = 8_192;
/// Calls of unknown callers that have a line of their own, in this time. A caller without a
/// credential must not fill the disk: these are some tens of KiB a second.
const STRANGERS_MAX: u32 = 100;
/// Refusals at the listener for nodes that have one. A node that does not know yet that it was
/// taken out knocks many times a second.
const PEERS_MAX: u32 = 20;
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
    left_out: AtomicU64,
    /// Of calls of nobody.
    strangers: Pace,
    /// Of refusals at the listener for nodes.
    peers: Pace,
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
        if is_stuck
            || is_crowded
            || event.principal.is_none() && !self.strangers.takes(STRANGERS_MAX)
        {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        event.left_out = self.left_out.swap(0, Ordering::Relaxed);
        if let Err(error) = lines.try_send(Line { event, written: None, _share: share }) {
            let event = error.into_inner().event;
            self.left_out.fetch_add(event.left_out + 1, Ordering::Relaxed);
        }
        None
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
            self.left_out.fetch_add(1, Ordering::Relaxed);
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
mod tests {
    use std::path::Path;

    use tokio_util::sync::CancellationToken;

    use super::writer::{REOPEN_AFTER, RETRY_AFTER};
    use super::*;

    fn event(principal: Option<&str>) -> Event {
        Event {
            time: "2026-11-28T12:00:00.000Z".to_owned(),
            node: NodeId::new(1).unwrap(),
            request: String::new(),
            principal: principal.map(str::to_owned),
            method: "quorate.v1.Registry/Register",
            subject: Subject { names: vec!["a\n\"b".to_owned()], ..Subject::default() },
            decision: Decision::Denied,
            code: "PERMISSION_DENIED".to_owned(),
            reason: None,
            revision: None,
            from: None,
            left_out: 0,
        }
    }

    fn lines(path: &Path) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[tokio::test]
    async fn what_was_handed_in_before_the_stop_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        let (audit, writer) = Audit::open(path.clone(), false).unwrap();
        let stop = CancellationToken::new();
        for _ in 0..3 {
            audit.tell(event(Some("token:a")), None);
        }
        stop.cancel();
        writer.run(stop).await.unwrap();
        let lines = lines(&path);
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0]["principal"], "token:a");
        assert_eq!(lines[0]["names"][0], "a\n\"b", "a line is a line");
        assert_eq!(lines[0]["decision"], "denied");
        assert_eq!(lines[0].get("left_out"), None);
    }

    #[tokio::test]
    async fn strangers_fill_no_disk_and_what_is_left_out_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        let (audit, writer) = Audit::open(path.clone(), false).unwrap();
        for _ in 0..STRANGERS_MAX + 50 {
            audit.tell(event(None), None);
        }
        audit.tell(event(Some("token:a")), None);
        for _ in 0..QUEUE_MAX {
            let decision = Decision::Allowed;
            audit.tell(Event { decision, ..event(Some("token:b")) }, None);
        }
        let stop = CancellationToken::new();
        stop.cancel();
        writer.run(stop).await.unwrap();
        let lines = lines(&path);
        assert_eq!(lines.len(), QUEUE_MAX);
        let by_a = lines.iter().position(|line| line["principal"] == "token:a").unwrap();
        assert_eq!(by_a, STRANGERS_MAX as usize);
        assert_eq!(lines[by_a]["left_out"], 50);
        let left = audit.left_out.load(Ordering::Relaxed);
        assert_eq!(left, u64::from(STRANGERS_MAX) + 1, "told with the next line");
    }

    #[tokio::test]
    async fn a_node_that_knocks_for_ever_fills_no_disk() {
        let dir = tempfile::tempdir().unwrap();
        let (audit, mut writer) = Audit::open(dir.path().join("audit"), false).unwrap();
        for _ in 0..PEERS_MAX + 7 {
            audit.tell_of_peer(event(Some("node:3")));
        }
        audit.tell(event(Some("token:a")), None);
        writer.write_waiting().await;
        let lines = lines(&dir.path().join("audit"));
        assert_eq!(lines.len(), PEERS_MAX as usize + 1);
        assert_eq!(lines.last().unwrap()["left_out"], 7);
    }

    /// A caller with a narrow right had all places, and others' writes were refused.
    #[tokio::test]
    async fn refusals_leave_room_for_the_lines_of_writes() {
        let dir = tempfile::tempdir().unwrap();
        let (audit, mut writer) = Audit::open(dir.path().join("audit"), true).unwrap();
        for _ in 0..QUEUE_MAX {
            audit.tell(event(Some("token:narrow")), None);
        }
        let places: Vec<_> = (0..QUEUE_MAX - REFUSALS_MAX).map(|_| audit.reserve()).collect();
        assert!(places.iter().all(Result::is_ok), "{:?}", places.iter().find(|it| it.is_err()));
        assert!(audit.reserve().is_err(), "all places are taken");
        // A share that was written is given back.
        writer.write_waiting().await;
        let before = audit.left_out.load(Ordering::Relaxed);
        audit.tell(event(Some("token:narrow")), None);
        assert_eq!(before, (QUEUE_MAX - REFUSALS_MAX) as u64);
        assert_eq!(audit.left_out.load(Ordering::Relaxed), 0, "told with that line");
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_was_moved_away_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        let (audit, mut writer) = Audit::open(path.clone(), false).unwrap();
        let mut write = async || {
            audit.tell(event(Some("token:a")), None);
            writer.write_waiting().await;
        };
        write().await;
        std::fs::rename(&path, dir.path().join("audit.1")).unwrap();
        tokio::time::advance(REOPEN_AFTER).await;
        write().await;
        assert_eq!(lines(&path).len(), 1);
        assert_eq!(lines(&dir.path().join("audit.1")).len(), 1);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_told_at_once() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Audit::open(dir.path().to_owned(), true).is_err());
        let off = Audit::default();
        assert!(!off.is_on() && off.reserve().unwrap().is_none());
        assert!(off.tell(event(None), None).is_none());
    }

    /// The directory goes and comes back: what was accepted before is written then, in order, and
    /// nothing is accepted meanwhile.
    #[tokio::test(start_paused = true)]
    async fn no_write_is_without_a_line_where_one_is_required() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("inside");
        std::fs::create_dir(&inside).unwrap();
        let path = inside.join("audit");
        let (audit, writer) = Audit::open(path.clone(), true).unwrap();
        let stop = CancellationToken::new();
        let running = tokio::spawn(writer.run(stop.clone()));
        let write = async |principal: &'static str, place| {
            let line = audit.tell(event(Some(principal)), place).expect("it waits");
            audit.written(line, Instant::now() + RETRY_AFTER).await
        };
        write("token:a", audit.reserve().unwrap()).await.unwrap();
        let under_way = audit.reserve().unwrap();
        std::fs::remove_dir_all(&inside).unwrap();
        let done = write("token:b", audit.reserve().unwrap()).await.unwrap_err().to_string();
        assert!(done.contains("may have been done") && done.contains("No such file"), "{done}");
        write("token:c", under_way).await.unwrap_err();
        assert!(audit.check().is_err());
        let refused = audit.reserve().unwrap_err().to_string();
        let named = path.display().to_string();
        assert!(refused.contains("nothing was done") && refused.contains(&named), "{refused}");
        assert!(audit.tell(event(Some("token:d")), None).is_none());

        std::fs::create_dir(&inside).unwrap();
        tokio::time::sleep(RETRY_AFTER * 3).await;
        write("token:e", audit.reserve().unwrap()).await.unwrap();
        assert!(audit.check().is_ok());
        stop.cancel();
        running.await.unwrap().unwrap();
        let lines = lines(&path);
        let by: Vec<&str> = lines.iter().map(|line| line["principal"].as_str().unwrap()).collect();
        assert_eq!(by, ["token:b", "token:c", "token:e"], "the first went with its directory");
        assert_eq!(lines[2]["left_out"], 1, "a refusal of then is counted");
    }
}
