//! A way between two nodes that is slow in one direction: turmoil's links have one latency for
//! both.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};
use turmoil::net::TcpStream;

use super::history::now;
use super::plan::Plan;

const READ_BYTES: usize = 64 * 1024;

/// One end of a connection; what arrives is kept back for as long as the plan says.
pub(crate) struct Late {
    stream: TcpStream,
    plan: Arc<Plan>,
    /// The node that it comes from, and the node that it arrives at; `None`: not between two nodes.
    way: Option<(u64, u64)>,
    /// What arrived, and when it is handed on; nothing: the end.
    kept: VecDeque<(Instant, Vec<u8>)>,
    ended: bool,
    timer: Pin<Box<Sleep>>,
}

impl Late {
    pub(crate) fn new(stream: TcpStream, plan: Arc<Plan>, way: Option<(u64, u64)>) -> Self {
        let timer = Box::pin(sleep_until(Instant::now()));
        Self { stream, plan, way, kept: VecDeque::new(), ended: false, timer }
    }

    /// Takes in all that has arrived.
    fn take_in(&mut self, from: u64, to: u64, cx: &mut Context<'_>) -> io::Result<()> {
        while !self.ended {
            let mut bytes = vec![0; READ_BYTES];
            let mut into = ReadBuf::new(&mut bytes);
            match Pin::new(&mut self.stream).poll_read(cx, &mut into) {
                Poll::Pending => return Ok(()),
                Poll::Ready(read) => read?,
            }
            let length = into.filled().len();
            bytes.truncate(length);
            self.ended = length == 0;
            let late = Duration::from_millis(self.plan.late_ms(from, to, now()));
            let at = Instant::now() + late;
            let at = self.kept.back().map_or(at, |(last, _)| at.max(*last));
            self.kept.push_back((at, bytes));
        }
        Ok(())
    }
}

impl AsyncRead for Late {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some((from, to)) = self.way else {
            return Pin::new(&mut self.stream).poll_read(cx, into);
        };
        self.take_in(from, to, cx)?;
        let Some((at, _)) = self.kept.front() else {
            return if self.ended { Poll::Ready(Ok(())) } else { Poll::Pending };
        };
        let at = *at;
        if at > Instant::now() {
            self.timer.as_mut().reset(at);
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
        let Some((_, bytes)) = self.kept.front_mut() else { return Poll::Pending };
        let length = bytes.len().min(into.remaining());
        into.put_slice(&bytes[..length]);
        bytes.drain(..length);
        if bytes.is_empty() {
            self.kept.pop_front();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Late {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
