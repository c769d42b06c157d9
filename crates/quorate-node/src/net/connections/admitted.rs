//! An accepted connection that has a place among the others of its listener.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

use crate::net::Connection;
use crate::net::connections::Line;
use crate::net::connections::places::Place;

/// A connection that counts as long as it lives.
pub(crate) struct Admitted {
    pub(super) stream: Connection,
    pub(super) line: Arc<Line>,
    pub(super) _place: Place,
}

impl Connected for Admitted {
    type ConnectInfo = Arc<Line>;

    fn connect_info(&self) -> Arc<Line> {
        self.line.clone()
    }
}

impl Admitted {
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
        self.poll(cx, |stream, cx| stream.poll_shutdown(cx))
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
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::timeout;
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
                tokio::time::sleep(TAKES_WITHIN / 2).await;
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
}
