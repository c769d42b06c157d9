//! A line to a node that can be cut or made slow: a forwarder in front of its peer listener. Knows
//! nothing of what goes over it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

/// Pieces that are on their way in one direction of a connection.
const UNDER_WAY: usize = 4_096;

/// Open until it is cut; cutting ends the connections that are there.
pub(crate) struct Link {
    address: SocketAddr,
    open: watch::Sender<bool>,
    delays: Arc<Delays>,
    dialled: Arc<AtomicU64>,
    accepting: JoinHandle<()>,
}

/// How long what is sent over the line is on its way, ms: to the node, and from it.
#[derive(Default)]
struct Delays {
    there: AtomicU64,
    back: AtomicU64,
}

impl Link {
    /// A line to this address.
    pub(crate) async fn open(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let (open, _) = watch::channel(true);
        let (delays, dialled) = (Arc::<Delays>::default(), Arc::<AtomicU64>::default());
        let accepting = accept(listener, target, open.clone(), delays.clone(), dialled.clone());
        let accepting = tokio::spawn(accepting);
        Self { address, open, delays, dialled, accepting }
    }

    /// This end of it.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn set_open(&self, open: bool) {
        self.open.send_replace(open);
    }

    #[allow(dead_code, reason = "tests of processes only cut it")]
    pub(crate) fn cut_after(&self, time: Duration) {
        let open = self.open.clone();
        tokio::spawn(async move {
            sleep(time).await;
            open.send_replace(false);
        });
    }

    /// How many connections were asked of it, also while it was cut.
    #[allow(dead_code, reason = "tests of processes only cut it")]
    pub(crate) fn dialled(&self) -> u64 {
        self.dialled.load(Ordering::Relaxed)
    }

    /// From now on what is sent to the node takes `there`, and what it sends takes `back`.
    #[allow(dead_code, reason = "tests of processes only cut it")]
    pub(crate) fn set_delays(&self, there: Duration, back: Duration) {
        self.delays.there.store(there.as_millis() as u64, Ordering::Relaxed);
        self.delays.back.store(back.as_millis() as u64, Ordering::Relaxed);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(
    listener: TcpListener,
    target: SocketAddr,
    open: watch::Sender<bool>,
    delays: Arc<Delays>,
    dialled: Arc<AtomicU64>,
) {
    loop {
        let Ok((here, _)) = listener.accept().await else { return };
        dialled.fetch_add(1, Ordering::Relaxed);
        let (mut open, delays) = (open.subscribe(), delays.clone());
        tokio::spawn(async move {
            if !*open.borrow() {
                return;
            }
            let Ok(there) = TcpStream::connect(target).await else { return };
            let _ = (here.set_nodelay(true), there.set_nodelay(true));
            let ((from_here, to_here), (from_there, to_there)) =
                (here.into_split(), there.into_split());
            let both = async {
                tokio::join!(
                    carry(from_here, to_there, &delays.there),
                    carry(from_there, to_here, &delays.back),
                )
            };
            tokio::select! {
                _ = both => {}
                _ = open.wait_for(|open| !open) => {}
            }
        });
    }
}

/// Carries all bytes in their order, each after the delay of the moment when it was sent, and the
/// end too.
async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    delay_ms: &AtomicU64,
) {
    let (sender, mut under_way) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let sending = async move {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let due = Instant::now() + Duration::from_millis(delay_ms.load(Ordering::Relaxed));
            if sender.send((due, buffer[..length].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let arriving = async {
        while let Some((due, bytes)) = under_way.recv().await {
            sleep_until(due).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _end_of_the_connection = to.shutdown().await;
    };
    tokio::join!(sending, arriving);
}
