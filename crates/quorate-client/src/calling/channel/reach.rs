//! Whether an endpoint of a channel can be reached. A connection is made until one holds; then the
//! endpoint gets calls, until that connection is closed. Knows nothing of views, nor of the other
//! endpoints.
//!
//! The transport makes its own connection with the first call, and does not report when it closes,
//! except that it spawns what drives it on the endpoint's executor: ours listens there. Until then
//! a connection of this file stands in for it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hyper::rt::Executor;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};
use tonic::transport::Endpoint;
use tonic::transport::channel::Change;

use super::Key;
use crate::nodes::retry::{BACKGROUND, Backoff};

/// A connection that closes sooner than this was no better than none.
const GOOD_CONNECTION: std::time::Duration = std::time::Duration::from_secs(1);

/// Names an endpoint in the channel's list; a new one for each time it gets there, so that no late
/// word takes out another.
pub(super) type Number = u64;

/// What became of an endpoint.
#[derive(Debug)]
pub(super) enum Report {
    /// It can be called, under this number, with connections made by this.
    Up(Key, Number, Box<Endpoint>),
    /// It cannot.
    Down(Key),
}

/// What the endpoints of a channel share.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    pub(super) changes: mpsc::Sender<Change<Number, Endpoint>>,
    pub(super) reports: mpsc::Sender<Report>,
    numbers: Arc<AtomicU64>,
}

impl Shared {
    pub(super) fn new(
        changes: mpsc::Sender<Change<Number, Endpoint>>,
        reports: mpsc::Sender<Report>,
    ) -> Self {
        Self { changes, reports, numbers: Arc::default() }
    }

    pub(super) fn number(&self) -> Number {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }
}

/// Runs until it is aborted.
pub(super) async fn keep(key: Key, endpoint: Endpoint, shared: Shared) {
    let mut backoff = Backoff::new(BACKGROUND);
    loop {
        let (listening, first) = Listening::new(None);
        match endpoint.clone().executor(listening).connect().await {
            Ok(stand_in) => {
                let begun = Instant::now();
                let number = shared.number();
                let (listening, transports) = Listening::new(Some((shared.clone(), number)));
                let up = Box::new(endpoint.clone().executor(listening));
                if shared.reports.send(Report::Up(key.clone(), number, up)).await.is_err() {
                    return;
                }
                closed(stand_in, first, transports).await;
                if begun.elapsed() >= GOOD_CONNECTION {
                    backoff.reset();
                }
            }
            Err(error) => tracing::debug!(?key, %error, "an instance cannot be reached"),
        }
        if shared.reports.send(Report::Down(key.clone())).await.is_err() {
            return;
        }
        sleep(backoff.next()).await;
    }
}

/// Waits until the connection that counts is closed: ours, until the transport has one of its own.
async fn closed<T>(
    stand_in: T,
    mut first: watch::Receiver<Phase>,
    mut transports: watch::Receiver<Phase>,
) {
    tokio::select! {
        _closed = first.wait_for(|phase| *phase == Phase::Closed) => return,
        opened = transports.wait_for(|phase| *phase != Phase::Waiting) => {
            if opened.is_err() {
                return;
            }
        }
    }
    drop(stand_in);
    let _closed = transports.wait_for(|phase| *phase == Phase::Closed).await;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting,
    Open,
    Closed,
}

/// Spawns as tokio does, and reports the beginning and end of the first task that it is given: that
/// lives as long as the first connection.
struct Listening {
    begun: AtomicBool,
    phase: Arc<watch::Sender<Phase>>,
    /// What to take out of the list at once, before any other task can look.
    listed: Option<(Shared, Number)>,
}

impl Listening {
    fn new(listed: Option<(Shared, Number)>) -> (Self, watch::Receiver<Phase>) {
        let (phase, receiver) = watch::channel(Phase::Waiting);
        (Self { begun: AtomicBool::new(false), phase: Arc::new(phase), listed }, receiver)
    }
}

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Executor<Task> for Listening {
    fn execute(&self, task: Task) {
        if self.begun.swap(true, Ordering::Relaxed) {
            tokio::spawn(task);
            return;
        }
        let (phase, listed) = (self.phase.clone(), self.listed.clone());
        phase.send_replace(Phase::Open);
        tokio::spawn(async move {
            task.await;
            if let Some((shared, number)) = listed {
                // Where there is no room, the report of it does the same a little later.
                let _no_room = shared.changes.try_send(Change::Remove(number));
            }
            phase.send_replace(Phase::Closed);
        });
    }
}
