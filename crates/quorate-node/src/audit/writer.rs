//! The other end: the loop that writes the lines.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{Audit, Line, QUEUE_MAX};
use crate::error::{RunError, Trouble};
use crate::runtime::blocking;

/// Lines that are written at once.
const BATCH_MAX: usize = 1_024;
/// The file is opened again after so long, as another one may have its name by now.
pub(super) const REOPEN_AFTER: Duration = Duration::from_secs(10);
/// Lines that are kept, as none may be left out, are tried again after so long.
pub(super) const RETRY_AFTER: Duration = Duration::from_millis(500);
/// That it cannot be written is told so often.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Writes lines to a file.
pub(crate) struct Writer {
    path: PathBuf,
    file: Option<(File, Instant)>,
    lines: mpsc::Receiver<Line>,
    /// Lines that the file did not take, and when to try again.
    held: (Vec<Line>, Instant),
    audit: Arc<Audit>,
    told: Option<Instant>,
}

impl Writer {
    /// # Errors
    /// The file cannot be opened.
    pub(super) fn open(
        path: PathBuf,
        lines: mpsc::Receiver<Line>,
        audit: Arc<Audit>,
    ) -> io::Result<Self> {
        let now = Instant::now();
        let file = Some((append_to(&path)?, now));
        Ok(Self { path, file, lines, held: (Vec::new(), now), audit, told: None })
    }

    /// Writes until the stop, and then what still waits.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Result<(), RunError> {
        loop {
            let mut batch = Vec::new();
            let (held, again_at) = &self.held;
            tokio::select! {
                _ = self.lines.recv_many(&mut batch, BATCH_MAX), if held.len() < QUEUE_MAX => {}
                () = sleep_until(*again_at), if !held.is_empty() => {}
                () = stop.cancelled() => {}
            }
            let is_last = stop.is_cancelled();
            if is_last {
                self.lines.close();
                while let Ok(line) = self.lines.try_recv() {
                    batch.push(line);
                }
            }
            if let Some(batch) = self.behind_held(batch, is_last) {
                self.write(batch).await;
            }
            if is_last {
                let lost = self.held.0.len();
                if lost > 0 {
                    tracing::error!(lost, "lines of the audit log were never written");
                }
                return Ok(());
            }
        }
    }

    /// What is to be written now: lines that the file did not take come first, when their time has
    /// come.
    fn behind_held(&mut self, mut batch: Vec<Line>, is_last: bool) -> Option<Vec<Line>> {
        let (held, again_at) = &mut self.held;
        if held.is_empty() {
            return Some(batch);
        }
        // Who waits for one of the others need not wait as long.
        batch.iter_mut().for_each(|line| line.written = None);
        held.append(&mut batch);
        (is_last || Instant::now() >= *again_at).then(|| std::mem::take(held))
    }

    #[cfg(test)]
    pub(super) async fn write_waiting(&mut self) {
        let mut batch = Vec::new();
        self.lines.recv_many(&mut batch, BATCH_MAX).await;
        self.write(batch).await;
    }

    async fn write(&mut self, batch: Vec<Line>) {
        if batch.is_empty() {
            return;
        }
        let (path, file) = (self.path.clone(), self.file.take());
        let write = move || {
            let written = append(file, &path, &batch);
            (batch, written)
        };
        let (batch, written) = blocking(write)
            .await
            .unwrap_or_else(|panicked| (Vec::new(), Err(io::Error::other(panicked))));
        match written {
            Ok(file) => {
                self.file = Some(file);
                self.took(None);
                for written in batch.into_iter().filter_map(|line| line.written) {
                    // It may have waited long enough.
                    let _nobody = written.send(());
                }
            }
            Err(error) => self.failed(error, batch),
        }
    }

    fn failed(&mut self, error: io::Error, mut batch: Vec<Line>) {
        if self.told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            self.told = Some(Instant::now());
            let file = self.path.display();
            tracing::error!(%error, %file, "the audit log cannot be written");
        }
        if self.audit.required.is_none() {
            let told = batch.iter().map(|line| line.event.left_out).sum();
            self.audit.leave_out(batch.len() as u64, told);
            return;
        }
        // Before those that wait are told.
        self.took(Some(Trouble::Write(Arc::new(error))));
        batch.iter_mut().for_each(|line| line.written = None);
        self.held = (batch, Instant::now() + RETRY_AFTER);
    }

    fn took(&mut self, trouble: Option<Trouble>) {
        let Some(required) = &self.audit.required else { return };
        let mut before = required.trouble.lock().expect("invariant: nothing panics under it");
        if before.is_some() && trouble.is_none() {
            self.told = None;
            tracing::info!(file = %self.path.display(), "the audit log can be written again");
        }
        *before = trouble;
    }
}

/// Appends lines to the file that has the name, which may be another one by now.
fn append(
    file: Option<(File, Instant)>,
    path: &Path,
    lines: &[Line],
) -> io::Result<(File, Instant)> {
    let mut text = Vec::new();
    for line in lines {
        serde_json::to_writer(&mut text, &line.event)?;
        text.push(b'\n');
    }
    let is_removed = |file: &File| file.metadata().is_ok_and(|file| file.nlink() == 0);
    let (mut file, since) = match file {
        Some((file, since)) if since.elapsed() < REOPEN_AFTER && !is_removed(&file) => {
            (file, since)
        }
        _ => (append_to(path)?, Instant::now()),
    };
    let before = file.metadata()?.len();
    if let Err(error) = file.write_all(&text) {
        // Not half a line, to which the next one would be added.
        if file.metadata()?.len() > before {
            file.set_len(before)?;
        }
        return Err(error);
    }
    Ok((file, since))
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}
