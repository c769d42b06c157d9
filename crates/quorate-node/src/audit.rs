//! The audit log: a line of JSON for each write and for each call that was refused for want of a
//! right. Knows no call: the door says what happened. Holds names, never what proves them.
//!
//! What is done does not wait for it: what the file does not take in time is counted, and the next
//! line says how much (`left_out`).

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_log::NodeId;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::RunError;
use crate::runtime::blocking;

/// Lines that wait to be written: some hundred KiB.
const QUEUE_MAX: usize = 8_192;
/// Lines that are written at once.
const BATCH_MAX: usize = 1_024;
/// The file is opened again after so long, as another one may have its name by now.
const REOPEN_AFTER: Duration = Duration::from_secs(10);
/// That it cannot be written is told so often.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// Calls of nobody who is known that have a line of their own, a second. Whoever has no credential
/// must not fill the disk.
const STRANGERS_MAX: u32 = 100;

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
    /// So many lines before this one were not written.
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

/// Of the names in a line, so many.
pub(crate) const NAMES_MAX: usize = 10;

impl Subject {
    /// Leases that have no other name.
    pub(crate) fn of_leases(leases: impl ExactSizeIterator<Item = u64>) -> Self {
        let count = Some(leases.len());
        Self { count, leases: leases.take(NAMES_MAX).collect(), ..Self::default() }
    }
}

/// Where lines are handed in.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    lines: Option<mpsc::Sender<Event>>,
    left_out: AtomicU64,
    /// Since when calls of nobody are counted, and how many there were.
    strangers: Mutex<Option<(Instant, u32)>>,
}

/// The other end: the loop that writes them.
pub(crate) struct Writer {
    path: PathBuf,
    file: Option<(File, Instant)>,
    lines: mpsc::Receiver<Event>,
    audit: Arc<Audit>,
    told: Option<Instant>,
}

impl Audit {
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn open(path: Option<PathBuf>) -> io::Result<(Arc<Self>, Option<Writer>)> {
        let Some(path) = path else { return Ok((Arc::default(), None)) };
        let file = Some((append_to(&path)?, Instant::now()));
        let (sender, lines) = mpsc::channel(QUEUE_MAX);
        let audit = Arc::new(Self { lines: Some(sender), ..Self::default() });
        let writer = Writer { path, file, lines, audit: audit.clone(), told: None };
        Ok((audit, Some(writer)))
    }

    pub(crate) fn is_on(&self) -> bool {
        self.lines.is_some()
    }

    pub(crate) fn tell(&self, mut event: Event) {
        let Some(lines) = &self.lines else { return };
        if event.principal.is_none() && !self.takes_stranger() {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return;
        }
        event.left_out = self.left_out.swap(0, Ordering::Relaxed);
        if let Err(error) = lines.try_send(event) {
            let event = error.into_inner();
            self.left_out.fetch_add(event.left_out + 1, Ordering::Relaxed);
        }
    }

    fn takes_stranger(&self) -> bool {
        let mut strangers = self.strangers.lock().expect("invariant: nothing panics under it");
        let (since, count) = strangers.get_or_insert_with(|| (Instant::now(), 0));
        if since.elapsed() >= Duration::from_secs(1) {
            (*since, *count) = (Instant::now(), 0);
        }
        *count += 1;
        *count <= STRANGERS_MAX
    }
}

impl Writer {
    /// Writes until the stop, and then what still waits.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Result<(), RunError> {
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                _ = self.lines.recv_many(&mut batch, BATCH_MAX) => {}
                () = stop.cancelled() => {}
            }
            let is_last = stop.is_cancelled();
            if is_last {
                self.lines.close();
                while let Ok(event) = self.lines.try_recv() {
                    batch.push(event);
                }
            }
            self.write(batch).await;
            if is_last {
                return Ok(());
            }
        }
    }

    async fn write(&mut self, batch: Vec<Event>) {
        if batch.is_empty() {
            return;
        }
        let count = batch.len() as u64;
        let path = self.path.clone();
        let file = self.file.take().filter(|(_, since)| since.elapsed() < REOPEN_AFTER);
        let write = move || -> io::Result<(File, Instant)> {
            let mut text = Vec::new();
            for event in &batch {
                serde_json::to_writer(&mut text, event)?;
                text.push(b'\n');
            }
            let (mut file, since) = match file {
                Some(file) => file,
                None => (append_to(&path)?, Instant::now()),
            };
            file.write_all(&text)?;
            Ok((file, since))
        };
        match blocking(write).await.unwrap_or_else(|panicked| Err(io::Error::other(panicked))) {
            Ok(file) => self.file = Some(file),
            Err(error) => {
                self.audit.left_out.fetch_add(count, Ordering::Relaxed);
                if self.told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
                    self.told = Some(Instant::now());
                    let file = self.path.display();
                    tracing::error!(%error, %file, "the audit log cannot be written");
                }
            }
        }
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
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
        let (audit, writer) = Audit::open(Some(path.clone())).unwrap();
        let stop = CancellationToken::new();
        for _ in 0..3 {
            audit.tell(event(Some("token:a")));
        }
        stop.cancel();
        writer.unwrap().run(stop).await.unwrap();
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
        let (audit, writer) = Audit::open(Some(path.clone())).unwrap();
        for _ in 0..STRANGERS_MAX + 50 {
            audit.tell(event(None));
        }
        audit.tell(event(Some("token:a")));
        for _ in 0..QUEUE_MAX {
            audit.tell(event(Some("token:b")));
        }
        let stop = CancellationToken::new();
        stop.cancel();
        writer.unwrap().run(stop).await.unwrap();
        let lines = lines(&path);
        assert_eq!(lines.len(), QUEUE_MAX);
        let by_a = lines.iter().position(|line| line["principal"] == "token:a").unwrap();
        assert_eq!(by_a, STRANGERS_MAX as usize);
        assert_eq!(lines[by_a]["left_out"], 50);
        let left = audit.left_out.load(Ordering::Relaxed);
        assert_eq!(left, u64::from(STRANGERS_MAX) + 1, "told with the next line");
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_was_moved_away_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        let (audit, writer) = Audit::open(Some(path.clone())).unwrap();
        let mut writer = writer.unwrap();
        let mut write = async || {
            audit.tell(event(Some("token:a")));
            let mut batch = Vec::new();
            writer.lines.recv_many(&mut batch, BATCH_MAX).await;
            writer.write(batch).await;
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
        assert!(Audit::open(Some(dir.path().to_owned())).is_err());
        let (off, writer) = Audit::open(None).unwrap();
        assert!(!off.is_on() && writer.is_none());
        off.tell(event(None));
    }
}
