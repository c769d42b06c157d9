//! The connections of one listener: how many there may be, in all and from one address, and the end
//! of the silent ones. Knows bytes and times, nothing of what is said.

mod admitted;
mod places;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use futures_util::{Stream, StreamExt};
use prometheus_client::metrics::counter::Counter;
use quorate_log::NodeId;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::net::Listener;
pub(crate) use crate::net::connections::admitted::Admitted;
use crate::net::tls::{CertificateId, Shown};
use crate::net::watched::Watched;

/// How long a new connection may take for the preface of HTTP/2.
const PREFACE_WITHIN: Duration = Duration::from_secs(10);
/// Its length, bytes (RFC 9113, section 3.4).
const PREFACE_LEN: usize = 24;
/// When the node stops, each connection is sent a ping. One that says nothing for this long is not
/// waited for.
const STOP_SILENCE: Duration = Duration::from_secs(1);
/// How often the connections are looked through.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A caller that has not taken its answer this long after its deadline is gone, or stands still:
/// its connection ends.
const SEND_GRACE: Duration = Duration::from_secs(5);
/// So is one that has taken nothing of what it was sent for this long: as HTTP/2 finds it by pings.
const TAKES_WITHIN: Duration = Duration::from_secs(20);
/// How many connections a listener takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) in_all: usize,
    pub(crate) per_address: usize,
    /// Silent ones (see [`Line::is_silent`]) from one address.
    pub(crate) silent_per_address: usize,
    /// A connection that has had no call under way for this long is to end.
    pub(crate) idle: Duration,
}

/// Counts what is refused, for there are too many in all or too many from one address, and the
/// silent connections that gave way.
#[derive(Debug, Clone, Default)]
pub(crate) struct Refusals {
    pub(crate) in_all: Counter,
    pub(crate) of_address: Counter,
    pub(crate) gave_way: Counter,
}

/// A listener's connections, with their limits.
pub(crate) struct Connections {
    whose: &'static str,
    limits: Limits,
    refusals: Refusals,
    live: Mutex<Live>,
}

#[derive(Default)]
struct Live {
    next: u64,
    lines: BTreeMap<u64, Arc<Line>>,
    by_address: HashMap<IpAddr, OfAddress>,
    told: Option<Instant>,
}

/// What comes from one address, or one network of IPv6.
#[derive(Default)]
struct OfAddress {
    connections: usize,
    /// Those that were silent when they came, the oldest first.
    silent: BTreeMap<u64, Arc<Line>>,
    counts: Arc<Counts>,
}

/// Calls of these kinds are counted apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    Known,
    /// Of callers that are not known.
    Strangers,
    /// Of those: health checks that are one question.
    Checks,
    /// Of those: streams.
    Streams,
}

/// What is under way on all connections from one address.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Connections that are silent.
    silent: AtomicUsize,
    /// By [`Lane`].
    calls: [AtomicUsize; 4],
    /// Bytes of requests that are not whole yet.
    arriving: AtomicUsize,
    /// What watches keep here.
    pub(super) watched: Watched,
}

/// Who has the most connections.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Busiest {
    /// `None`: nobody has any, or they come from no address.
    pub(crate) address: Option<IpAddr>,
    pub(crate) connections: usize,
    /// Under way.
    pub(crate) calls: usize,
    /// All connections.
    pub(crate) of: usize,
}

/// What is known of one connection.
#[derive(Debug)]
pub(crate) struct Line {
    from: Option<IpAddr>,
    /// The identity that its other end has proved, after a handshake.
    certificate: OnceLock<Arc<CertificateId>>,
    /// The node of this cluster that this is.
    node: OnceLock<NodeId>,
    /// What has proved it.
    shown: OnceLock<Shown>,
    /// It has reached its age, and ends then.
    ends_at: OnceLock<Instant>,
    since: Instant,
    preface_left: AtomicUsize,
    /// How often something was read.
    heard: AtomicU64,
    /// Since when it has taken nothing of what it was sent, ms after `since`; 0: it takes.
    stuck_since_ms: AtomicU64,
    ended: AtomicBool,
    silent: AtomicBool,
    calls: AtomicUsize,
    /// On all connections from its address.
    of_address: Arc<Counts>,
    /// Places for large messages of its own watches.
    pub(super) watches: Watched,
    /// When the last call ended, ms after `since`; 0: none has.
    idle_since_ms: AtomicU64,
    /// It is to take no more calls and to end when it has none.
    leave: CancellationToken,
    /// Its age is reached.
    aged: CancellationToken,
    answers: Mutex<UnderWay>,
    /// Wakes the task that drives the connection when it is to end.
    driver: AtomicWaker,
}

/// The answers that a connection has not taken yet.
#[derive(Debug, Default)]
pub(crate) struct UnderWay {
    bytes: usize,
    /// How many are due when.
    due: BTreeMap<Instant, usize>,
}

impl Connections {
    pub(crate) fn new(whose: &'static str, limits: Limits, refusals: Refusals) -> Arc<Self> {
        Arc::new(Self { whose, limits, refusals, live: Mutex::default() })
    }

    /// What arrives at the listener and finds a place, and the token that says when it is to end or
    /// has ended. Others are closed at once.
    pub(crate) fn accept(
        self: &Arc<Self>,
        listener: Listener,
    ) -> impl Stream<Item = (Admitted, CancellationToken)> + Send + use<> {
        let of = self.clone();
        listener.into_accepted().filter_map(move |accepted| {
            std::future::ready(match accepted {
                Ok(stream) => of.admit(stream),
                Err(error) => {
                    tracing::debug!(%error, of = of.whose, "a connection failed as it arrived");
                    None
                }
            })
        })
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.lock().lines.len()
    }

    /// Ends connections that have not sent the preface in time, and asks idle ones to leave; from
    /// the stop on, ends the silent ones. Never returns.
    pub(crate) async fn watch(&self, stop: CancellationToken) -> Infallible {
        while !stop.is_cancelled() {
            self.end_where(|_, line| !line.greeted() && line.since.elapsed() >= PREFACE_WITHIN);
            let now = Instant::now();
            self.end_where(|_, line| line.answers().is_overdue(now) || line.is_stuck());
            self.end_where(|_, line| line.ends_at.get().is_some_and(|at| *at <= now));
            for idle in self.lines_where(|_, line| line.is_idle(self.limits.idle)) {
                idle.leave.cancel();
            }
            tokio::select! {
                () = sleep(LOOK_EVERY) => {}
                () = stop.cancelled() => {}
            }
        }
        let heard = |(id, line): (&u64, &Arc<Line>)| (*id, line.heard());
        let before: BTreeMap<u64, u64> = self.lock().lines.iter().map(heard).collect();
        self.end_where(|_, line| !line.greeted());
        sleep(STOP_SILENCE).await;
        self.end_where(|id, line| before.get(&id) == Some(&line.heard()));
        std::future::pending().await
    }

    /// The address with the most connections.
    pub(crate) fn busiest(&self) -> Busiest {
        let live = self.lock();
        let most = live.by_address.iter().max_by_key(|(from, of)| (of.connections, **from));
        Busiest {
            address: most.map(|(from, _)| *from),
            connections: most.map_or(0, |(_, of)| of.connections),
            calls: most
                .map_or(0, |(_, of)| of.counts.calls[Lane::Known as usize].load(Ordering::Relaxed)),
            of: live.lines.len(),
        }
    }

    fn end_where(&self, ends: impl Fn(u64, &Line) -> bool) {
        for line in self.lines_where(ends) {
            line.end();
        }
    }

    /// To be ended without the lock: a task that is woken may give its place back at once.
    fn lines_where(&self, wanted: impl Fn(u64, &Line) -> bool) -> Vec<Arc<Line>> {
        let live = self.lock();
        let wanted = live.lines.iter().filter(|(id, line)| wanted(**id, line));
        wanted.map(|(_, line)| line.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Live> {
        self.live.lock().expect("invariant: nothing panics while it holds this lock")
    }
}

impl Line {
    pub(crate) fn new(from: Option<IpAddr>, of_address: Arc<Counts>) -> Self {
        of_address.silent.fetch_add(1, Ordering::Relaxed);
        Self {
            from,
            certificate: OnceLock::new(),
            node: OnceLock::new(),
            shown: OnceLock::new(),
            ends_at: OnceLock::new(),
            since: Instant::now(),
            preface_left: AtomicUsize::new(PREFACE_LEN),
            heard: AtomicU64::new(0),
            stuck_since_ms: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            silent: AtomicBool::new(true),
            calls: AtomicUsize::new(0),
            of_address,
            watches: Watched::of_connection(),
            idle_since_ms: AtomicU64::new(0),
            leave: CancellationToken::new(),
            aged: CancellationToken::new(),
            answers: Mutex::default(),
            driver: AtomicWaker::new(),
        }
    }

    /// The address of its other end, where it has one.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        self.from
    }

    /// The one that a call came on.
    pub(crate) fn of(call: &http::Extensions) -> Arc<Self> {
        call.get().cloned().unwrap_or_else(|| Arc::new(Self::new(None, Arc::default())))
    }

    /// Its other end has proved this identity, which may be that of a node of this cluster.
    pub(crate) fn identify(
        &self,
        certificate: Option<CertificateId>,
        node: Option<NodeId>,
        shown: Option<Shown>,
    ) {
        if let Some(certificate) = certificate {
            self.speak();
            // A connection makes one handshake.
            let _ = self.certificate.set(Arc::new(certificate));
        }
        if let Some(node) = node {
            let _ = self.node.set(node);
        }
        if let Some(shown) = shown {
            let _ = self.shown.set(shown);
        }
    }

    /// The certificates that its other end has shown.
    pub(crate) fn shown(&self) -> Option<&Shown> {
        self.shown.get()
    }

    /// The identity that its other end has proved; `None`: none.
    pub(crate) fn certificate(&self) -> Option<&CertificateId> {
        self.certificate.get().map(AsRef::as_ref)
    }

    /// The node of this cluster that its other end has proved to be.
    pub(crate) fn node(&self) -> Option<NodeId> {
        self.node.get().copied()
    }

    /// Cancelled when it has reached its age: streams on it are to end, for a new connection. Not
    /// when it ends by itself: a follower has to see that its leader's connection broke.
    pub(crate) fn leaving(&self) -> CancellationToken {
        self.aged.clone()
    }

    /// It is to end after this time, whatever is under way.
    pub(super) fn end_in(&self, grace: Duration) {
        // Once.
        let _ = self.ends_at.set(Instant::now() + grace);
        self.aged.cancel();
        self.leave.cancel();
    }

    fn hear(&self) {
        self.heard.fetch_add(1, Ordering::Relaxed);
    }

    /// This many bytes of what it has to say have arrived, decrypted.
    pub(super) fn greet(&self, bytes: usize) {
        let left = self.preface_left.load(Ordering::Relaxed);
        if left > 0 {
            self.preface_left.store(left.saturating_sub(bytes), Ordering::Relaxed);
        }
    }

    pub(crate) fn answers(&self) -> MutexGuard<'_, UnderWay> {
        self.answers.lock().expect("invariant: nothing panics while it holds this lock")
    }

    /// Of all connections from its address.
    pub(super) fn arriving(&self) -> &AtomicUsize {
        &self.of_address.arriving
    }

    /// Of all connections from its address.
    pub(super) fn watched(&self) -> &Watched {
        &self.of_address.watched
    }

    /// How many were under way from its address.
    pub(super) fn begin_call(&self, lane: Lane) -> usize {
        if lane == Lane::Known {
            self.speak();
        }
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.of_address.calls[lane as usize].fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn end_call(&self, lane: Lane) {
        self.of_address.calls[lane as usize].fetch_sub(1, Ordering::Relaxed);
        self.idle_since_ms.store(self.age_ms().max(1), Ordering::Relaxed);
        // A reader that sees that no call is left sees since when.
        self.calls.fetch_sub(1, Ordering::Release);
    }

    fn is_idle(&self, max: Duration) -> bool {
        self.calls.load(Ordering::Acquire) == 0 && self.since_last_call() >= max
    }

    /// Whether its other end makes one call after the other, each within this time of the answer to
    /// the last: it waits for the one that is under way.
    pub(crate) fn calls_in_turn(&self, within: Duration) -> bool {
        let had_calls = self.idle_since_ms.load(Ordering::Relaxed) > 0;
        self.calls.load(Ordering::Acquire) <= 1 && had_calls && self.since_last_call() < within
    }

    fn since_last_call(&self) -> Duration {
        let since_ms = self.idle_since_ms.load(Ordering::Relaxed);
        Duration::from_millis(self.age_ms().saturating_sub(since_ms))
    }

    /// It was given something to send, and took some of it or none.
    fn send(&self, took_none: bool) {
        match (took_none, self.stuck_since_ms.load(Ordering::Relaxed)) {
            (true, 0) => self.stuck_since_ms.store(self.age_ms().max(1), Ordering::Relaxed),
            (false, 1..) => self.stuck_since_ms.store(0, Ordering::Relaxed),
            _ => {}
        }
    }

    fn is_stuck(&self) -> bool {
        let since_ms = self.stuck_since_ms.load(Ordering::Relaxed);
        let stuck_ms = self.age_ms().saturating_sub(since_ms);
        since_ms > 0 && Duration::from_millis(stuck_ms) >= TAKES_WITHIN
    }

    fn age_ms(&self) -> u64 {
        self.since.elapsed().as_millis() as u64
    }

    /// Its other end has proved no identity and has made no call but such as anybody may: it may be
    /// anybody's, and gives way where there is no place for another.
    fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    /// It is silent no more, or is gone.
    fn speak(&self) {
        if self.silent.swap(false, Ordering::Relaxed) {
            self.of_address.silent.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn greeted(&self) -> bool {
        self.preface_left.load(Ordering::Relaxed) == 0
    }

    fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }

    fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.driver.wake();
    }

    /// # Errors
    /// The connection was ended.
    fn check(&self) -> io::Result<()> {
        match self.ended.load(Ordering::Acquire) {
            true => Err(io::ErrorKind::TimedOut.into()),
            false => Ok(()),
        }
    }

    /// What to answer to the driver when the stream below is not ready.
    fn not_ready<T>(&self, cx: &Context<'_>) -> Poll<io::Result<T>> {
        self.driver.register(cx.waker());
        // It may have been ended just before.
        self.check()?;
        Poll::Pending
    }
}

impl UnderWay {
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds to the bytes of an answer, which has `before` already.
    pub(crate) fn add(&mut self, before: usize, bytes: usize, deadline: Instant) {
        if before == 0 && bytes > 0 {
            self.expect_by(deadline);
        }
        self.bytes += bytes;
    }

    pub(crate) fn remove(&mut self, bytes: usize, deadline: Instant) {
        self.bytes -= bytes;
        if bytes > 0 {
            self.was_taken(deadline);
        }
    }

    /// Something is to be taken by then.
    pub(super) fn expect_by(&mut self, deadline: Instant) {
        *self.due.entry(deadline).or_default() += 1;
    }

    /// What was to be taken by then is.
    pub(super) fn was_taken(&mut self, deadline: Instant) {
        if let Some(count) = self.due.get_mut(&deadline) {
            *count -= 1;
            if *count == 0 {
                self.due.remove(&deadline);
            }
        }
    }

    pub(crate) fn is_overdue(&self, now: Instant) -> bool {
        self.due.first_key_value().is_some_and(|(first, _)| *first + SEND_GRACE < now)
    }
}
