//! Connections that speak HTTP/2 to do harm: what they make a node do is bounded, and others hardly
//! notice. Frames are written by hand (RFC 9113, sections 4 and 6; RFC 7541), since no library
//! sends such things.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use quorate_client::Consistency;
use quorate_proto::v1::registry_client::RegistryClient;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::cluster::{Cluster, Node, Settings};
use crate::secured::Secured;
use crate::unread::{Busy, resident_mib};
use crate::wait::eventually;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const CANCEL: [u8; 4] = 8_u32.to_be_bytes();

/// Frames of one write.
const TOGETHER: u32 = 64;
/// More headers than a node takes: 64 KiB of them.
const MANY_HEADERS: u32 = 64;
const KIB: usize = 1_024;

const CONNECTIONS: usize = 4;
const TTL: Duration = Duration::from_secs(10);
/// Of what is renewed only while it is measured.
pub(crate) const LONG: Duration = Duration::from_secs(600);
const RENEW_EVERY: Duration = Duration::from_millis(10);
/// Renewals of others are slower by at most this factor, or take no longer than [`UNNOTICED`].
pub(crate) const SLOWER_MAX: u32 = 3;
/// A debug build, whose renewals wait for a disk and up to 50 ms for others of their kind.
pub(crate) const UNNOTICED: Duration = Duration::from_millis(150);
pub(crate) const ROUNDS: usize = 3;
/// Ten seconds until the allocator gives pages back, of connections that end at once.
pub(crate) const BACK_WITHIN: Duration = Duration::from_secs(60);
/// What sockets, their buffers and the allocator may keep.
const KEPT_MIB: u64 = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flood {
    /// CVE-2023-44487, RUSTSEC-2023-0034, RUSTSEC-2024-0003 (h2): calls that are given up as soon
    /// as they are made.
    RapidReset,
    /// Calls with 64 KiB of headers.
    Headers,
    /// CVE-2024-27316, RUSTSEC-2024-0332 (h2): a block of headers that never ends.
    Continuation,
    /// CVE-2019-9515.
    Settings,
    /// CVE-2019-9512.
    Ping,
    /// CVE-2019-9518, RUSTSEC-2026-0258: frames without content.
    EmptyData,
    WindowUpdates,
}

const FLOODS: [Flood; 7] = [
    Flood::RapidReset,
    Flood::Headers,
    Flood::Continuation,
    Flood::Settings,
    Flood::Ping,
    Flood::EmptyData,
    Flood::WindowUpdates,
];

pub(crate) fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    out.extend_from_slice(&length[1..]);
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// A header that no table keeps; name and value are shorter than 127 bytes, or the value is a KiB.
pub(crate) fn literal(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend([0, u8::try_from(name.len()).unwrap()]);
    out.extend_from_slice(name.as_bytes());
    match value.len() {
        KIB => out.extend([0x7f, 0x81, 0x07]), // 127 + 1 + 7 * 128
        short => out.push(u8::try_from(short).unwrap()),
    }
    out.extend_from_slice(value.as_bytes());
}

/// The headers of a Fetch.
fn call() -> Vec<u8> {
    let mut block = vec![0x83, 0x86]; // :method POST, :scheme http
    literal(&mut block, ":path", "/quorate.v1.Registry/Fetch");
    literal(&mut block, ":authority", "flood");
    literal(&mut block, "content-type", "application/grpc");
    literal(&mut block, "te", "trailers");
    block
}

impl Flood {
    /// What is sent once, when the connection begins.
    fn begin(self) -> Vec<u8> {
        let mut out = PREFACE.to_vec();
        frame(&mut out, SETTINGS, 0, 0, &[]);
        match self {
            Self::Continuation => frame(&mut out, HEADERS, 0, 1, &call()),
            Self::EmptyData => frame(&mut out, HEADERS, END_HEADERS, 1, &call()),
            _ => {}
        }
        out
    }

    /// What is sent again and again; `next`: the next stream.
    fn more(self, next: &mut u32) -> Vec<u8> {
        let mut out = Vec::new();
        for _ in 0..TOGETHER {
            let stream = *next;
            match self {
                Self::RapidReset => {
                    frame(&mut out, HEADERS, END_HEADERS, stream, &call());
                    frame(&mut out, RST_STREAM, 0, stream, &CANCEL);
                    *next += 2;
                }
                Self::Headers => {
                    frame(&mut out, HEADERS, END_STREAM, stream, &call());
                    for at in 0..MANY_HEADERS {
                        let mut block = Vec::new();
                        literal(&mut block, "x", &"x".repeat(KIB));
                        let last = if at + 1 == MANY_HEADERS { END_HEADERS } else { 0 };
                        frame(&mut out, CONTINUATION, last, stream, &block);
                    }
                    *next += 2;
                }
                Self::Continuation => {
                    let mut block = Vec::new();
                    literal(&mut block, "x", "y");
                    frame(&mut out, CONTINUATION, 0, 1, &block);
                }
                Self::Settings => frame(&mut out, SETTINGS, 0, 0, &[]),
                Self::Ping => frame(&mut out, PING, 0, 0, &[0; 8]),
                Self::EmptyData => frame(&mut out, DATA, 0, 1, &[]),
                Self::WindowUpdates => frame(&mut out, WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
            }
        }
        out
    }

    /// Whether a connection that does this is ended; all else is bounded without that.
    fn ends_its_connection(self) -> bool {
        matches!(self, Self::RapidReset | Self::Headers | Self::Continuation)
    }

    /// Sends for ever, on a new connection whenever the node ends one.
    async fn run(self, address: String, secured: Option<Secured>, counts: Arc<Counts>) {
        loop {
            match &secured {
                Some(secured) => {
                    let Some(stream) = secured.connect(&address, b"h2").await else { continue };
                    self.send(stream, &counts).await;
                }
                None => {
                    let Ok(stream) = TcpStream::connect(&address).await else { continue };
                    self.send(stream, &counts).await;
                }
            }
            counts.ended.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Sends until the node ends the connection.
    async fn send(self, stream: impl AsyncRead + AsyncWrite, counts: &Counts) {
        let (mut from, mut to) = tokio::io::split(stream);
        // Read, or the node would stop reading, which is another fault.
        let read = async {
            let mut bytes = vec![0; 64 * KIB];
            while from.read(&mut bytes).await.is_ok_and(|count| count > 0) {}
        };
        let write = async {
            let mut next = 1;
            let mut bytes = self.begin();
            while to.write_all(&bytes).await.is_ok() {
                counts.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                bytes = self.more(&mut next);
            }
        };
        tokio::select! {
            () = read => {}
            () = write => {}
        }
    }
}

/// Of one flood.
#[derive(Default)]
struct Counts {
    /// Bytes.
    sent: AtomicU64,
    /// Connections that the node ended.
    ended: AtomicU64,
}

/// A node of its own, to which nothing is done: what renewals take there is the machine's doing.
pub(crate) struct Other {
    cluster: Cluster,
    lease: u64,
}

impl Other {
    pub(crate) async fn start() -> Self {
        let cluster = Cluster::start(1).await;
        let lease = cluster.nodes[0].register("one", "a", LONG).await.unwrap().lease_id;
        Self { cluster, lease }
    }

    pub(crate) fn node(&self) -> &Node {
        &self.cluster.nodes[0]
    }

    pub(crate) async fn p99(&self) -> Duration {
        p99_of_renewals(self.node(), self.lease).await
    }
}

/// Long enough to fail if somebody is held up; `QUORATE_FLOOD_SECONDS`: longer, to measure by how
/// much, as the 99th percentile of 300 renewals is the third largest.
fn flood_for() -> Duration {
    let asked = std::env::var("QUORATE_FLOOD_SECONDS").ok();
    Duration::from_secs(asked.map_or(3, |text| text.parse().expect("whole seconds")))
}

/// What all but 1 % of the renewals of a lease take at most, over a fixed time.
pub(crate) async fn p99_of_renewals(node: &Node, lease: u64) -> Duration {
    p99_of(&node.registry(), lease).await
}

/// The same, over this connection.
pub(crate) async fn p99_of(registry: &RegistryClient<Channel>, lease: u64) -> Duration {
    let (begun, mut renewals) = (Instant::now(), JoinSet::new());
    let count = u32::try_from(flood_for().as_millis() / RENEW_EVERY.as_millis()).unwrap();
    for at in 0..count {
        let due = begun + RENEW_EVERY * at;
        tokio::time::sleep_until(due.into()).await;
        let mut registry = registry.clone();
        renewals.spawn(async move {
            let renewals = vec![quorate_proto::v1::LeaseRenewal { lease_id: lease }];
            let request = quorate_proto::v1::RenewRequest { renewals, ..<_>::default() };
            registry.renew(request).await.expect("renewals are answered");
            due.elapsed()
        });
    }
    let mut took = renewals.join_all().await;
    took.sort_unstable();
    took[took.len() - 1 - took.len() / 100]
}

/// In the clear, and by TLS.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn floods_of_frames_hold_up_nobody_and_leave_nothing() {
    let other = Other::start().await;
    for secured in [false, true] {
        flood(secured, &other).await;
    }
}

/// The yardstick is what renewals take beside threads that are as busy as the flood's own, or,
/// where something else makes the machine busy meanwhile, at a node of its own at the same time.
async fn flood(secured: bool, other: &Other) {
    let settings = Settings { secured, ..Settings::default() };
    let mut cluster = Cluster::start_with(1, settings).await;
    let secured = cluster.secured.clone();
    let pid = cluster.nodes[0].process().pid();
    let node = &cluster.nodes[0];
    let registered = node.register("kept", "a", TTL).await.unwrap();
    let lease = registered.lease_id;
    p99_of_renewals(node, lease).await;
    let before = resident_mib(pid);
    for flood in FLOODS {
        let mut rounds = Vec::new();
        let passed = loop {
            let alone = {
                let _busy = (0..2).map(|_| Busy::begin()).collect::<Vec<_>>();
                p99_of_renewals(node, lease).await
            };
            let counts = Arc::new(Counts::default());
            let mut floods = JoinSet::new();
            for _ in 0..CONNECTIONS {
                let (address, secured) = (node.clients.clone(), secured.clone());
                floods.spawn(flood.run(address, secured, counts.clone()));
            }
            let (beside, elsewhere) = tokio::join!(p99_of_renewals(node, lease), other.p99());
            floods.shutdown().await;
            let [sent, ended] =
                [&counts.sent, &counts.ended].map(|count| count.load(Ordering::Relaxed));
            eprintln!(
                "measured: {flood:?}, {} KiB, {ended} connections ended: renewals p99 {alone:?} alone, {beside:?} beside, {elsewhere:?} elsewhere; {} MiB, {before} before",
                sent / 1_024,
                resident_mib(pid)
            );
            assert!(sent > 0, "{flood:?}: nothing was sent");
            assert!(ended > 0 || !flood.ends_its_connection(), "{flood:?}: no connection ended");
            rounds.push((alone, beside, elsewhere));
            let yardstick = rounds.iter().map(|(alone, ..)| *alone).min().unwrap_or_default();
            if beside <= UNNOTICED.max(yardstick.max(elsewhere) * SLOWER_MAX) {
                break true;
            }
            if rounds.len() == ROUNDS {
                break false;
            }
        };
        assert!(passed, "{flood:?}: p99 alone, beside, and elsewhere: {rounds:?}");
    }
    let kept = node.instances(Consistency::Linearizable).await.unwrap();
    let [instance] = kept.values().collect::<Vec<_>>()[..] else { panic!("{kept:?}") };
    assert_eq!(instance.lease_id, lease, "no lease ended");
    eventually("the memory is given back", BACK_WITHIN, async || match resident_mib(pid) {
        now if now <= before * 3 / 2 + KEPT_MIB => Ok(()),
        now => Err(format!("{now} MiB, {before} before")),
    })
    .await;
}
