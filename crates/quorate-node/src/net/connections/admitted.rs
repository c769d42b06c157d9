//! An accepted connection that has a place among the others of its listener.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};
use tonic::transport::server::Connected;

use crate::net::Connection;
use crate::net::connections::Line;
use crate::net::connections::places::Place;

/// A connection on which all is said is open for so much longer, until its other end closes it.
const LINGER: Duration = Duration::from_millis(500);
/// What may arrive in that time: what a caller had under way. One that floods is read no further.
const LINGER_BYTES: usize = 64 * 1_024;

/// A connection that counts as long as it lives.
pub(crate) struct Admitted {
    stream: Connection,
    pub(super) line: Arc<Line>,
    _place: Place,
    lingers: Option<Lingers>,
}

/// All is said.
struct Lingers {
    over: Pin<Box<Sleep>>,
    /// What may still arrive, bytes.
    left: usize,
}

impl Lingers {
    fn begin() -> Self {
        Self { over: Box::pin(sleep(LINGER)), left: LINGER_BYTES }
    }
}

impl Connected for Admitted {
    type ConnectInfo = Arc<Line>;

    fn connect_info(&self) -> Arc<Line> {
        self.line.clone()
    }
}

impl Admitted {
    pub(super) fn new(stream: Connection, line: Arc<Line>, place: Place) -> Self {
        Self { stream, line, _place: place, lingers: None }
    }

    /// Drops what still arrives, until the other end has closed, too. Were the connection closed
    /// before, the kernel would answer what arrives with a reset, for which the other end may drop
    /// answers that it has not read yet (RFC 9112, section 9.6).
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut dropped = [0; 4_096];
        loop {
            let lingers = self.lingers.get_or_insert_with(Lingers::begin);
            if lingers.left == 0 || lingers.over.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut into = ReadBuf::new(&mut dropped);
            ready!(self.poll(cx, |stream, cx| stream.poll_read(cx, &mut into)))?;
            match (into.filled().len(), &mut self.lingers) {
                (0, _) | (_, None) => return Poll::Ready(Ok(())),
                (read, Some(lingers)) => lingers.left = lingers.left.saturating_sub(read),
            }
        }
    }

    fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(Pin<&mut Connection>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        self.line.check()?;
        match poll(Pin::new(&mut self.stream), cx) {
            Poll::Pending => self.line.not_ready(cx),
            ready => ready,
        }
    }
}

impl AsyncRead for Admitted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = self.poll(cx, |stream, cx| stream.poll_read(cx, into));
        if let Poll::Ready(Ok(())) = polled {
            self.line.hear();
        }
        polled
    }
}

impl AsyncWrite for Admitted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = self.poll(cx, |stream, cx| stream.poll_write(cx, bytes));
        self.line.send(polled.is_pending());
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(cx, |stream, cx| stream.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingers.is_none() {
            ready!(self.poll(cx, |stream, cx| stream.poll_shutdown(cx)))?;
        }
        // One that ends for what its other end did is not waited for.
        if self.line.leave.is_cancelled() { self.poll_linger(cx) } else { Poll::Ready(Ok(())) }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = self.poll(cx, |stream, cx| stream.poll_write_vectored(cx, slices));
        self.line.send(polled.is_pending());
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::{Instant, timeout};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::net::connections::{Connections, Limits, Refusals, TAKES_WITHIN};

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_takes_nothing_ends_and_one_that_takes_slowly_does_not() {
        let limits =
            Limits { in_all: 2, per_address: 2, silent_per_address: 2, idle: Duration::MAX };
        let of = Connections::new("test", limits, Refusals::default());
        let admit = |end| {
            let (connection, _) = of.admit(Connection::new(end)).expect("a place");
            connection.line.greet(usize::MAX);
            connection
        };
        let ((own, mut reader), (other, _unread)) = (tokio::io::duplex(8), tokio::io::duplex(8));
        let (mut read, mut unread) = (admit(own), admit(other));
        let look = of.watch(CancellationToken::new());
        let slowly = async {
            for _ in 0..10 {
                sleep(TAKES_WITHIN / 2).await;
                reader.read_exact(&mut [0; 8]).await.unwrap();
            }
        };
        let written = async {
            let (of_read, of_unread) =
                tokio::join!(read.write_all(&[0; 88]), unread.write_all(&[0; 88]));
            assert!(of_unread.is_err(), "nobody took it");
            of_read
        };
        let all = async { tokio::join!(written, slowly) };
        let done = tokio::select! {
            done = timeout(TAKES_WITHIN * 20, all) => done,
            never = look => match never {},
        };
        let (of_read, ()) = done.expect("the unread one ends");
        of_read.expect("it takes some of it again and again");
    }

    fn leaving(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> Admitted {
        let connection = admitted(stream);
        connection.line.leave.cancel();
        connection
    }

    fn admitted(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> Admitted {
        let limits =
            Limits { in_all: 1, per_address: 1, silent_per_address: 1, idle: Duration::MAX };
        let of = Connections::new("test", limits, Refusals::default());
        of.admit(Connection::new(stream)).expect("a place").0
    }

    #[tokio::test]
    async fn who_still_sends_when_all_is_said_is_not_reset() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let calling = TcpStream::connect(listener.local_addr().unwrap());
        let (caller, accepted) = tokio::join!(calling, listener.accept());
        let (mut caller, mut served) = (caller.unwrap(), leaving(accepted.unwrap().0));
        let serve = async move {
            served.write_all(b"answer").await.unwrap();
            served.shutdown().await.unwrap();
        };
        let call = async move {
            let mut answer = String::new();
            caller.read_to_string(&mut answer).await.unwrap();
            // The first is what a reset would answer, the second what would fail for it.
            for _ in 0..2 {
                caller.write_all(b"more").await.unwrap();
            }
            answer
        };
        let ((), answer) = tokio::join!(serve, call);
        assert_eq!(answer, "answer");
    }

    #[tokio::test]
    async fn one_that_floods_is_read_no_further() {
        let (own, mut flood) = tokio::io::duplex(1_024);
        let sent = async move {
            let mut sent = 0;
            while flood.write_all(&[0; 1_024]).await.is_ok() {
                sent += 1_024;
            }
            sent
        };
        let closed = async { leaving(own).shutdown().await };
        let (closed, sent) = tokio::join!(closed, sent);
        closed.unwrap();
        let most = LINGER_BYTES + 8 * 1_024;
        assert!((LINGER_BYTES..most).contains(&sent), "{sent} bytes were taken");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_stays_open_is_not_waited_for() {
        let (own, _open) = tokio::io::duplex(8);
        let begun = Instant::now();
        leaving(own).shutdown().await.unwrap();
        let took = begun.elapsed();
        // The timer counts whole milliseconds.
        assert!((LINGER..=LINGER + Duration::from_millis(1)).contains(&took), "{took:?}");
        // Nor one that does not leave, but was ended.
        let (own, _open) = tokio::io::duplex(8);
        let begun = Instant::now();
        admitted(own).shutdown().await.unwrap();
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
}
