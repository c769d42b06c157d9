//! Requests on their way in: how many bytes of messages may be here that are not whole yet, in all
//! and from one address, and how long one may take. Knows of gRPC how a message says its length.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use prometheus_client::metrics::counter::Counter;
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tonic::Status;
use tonic::body::Body;

use crate::error::CallError;
use crate::net::connections::Line;

/// Of all callers: some hundred requests of the largest size that is taken, bytes.
const IN_ALL_MAX: usize = 256 * 1024 * 1024;
/// From one address, so that none takes all, bytes.
const OF_ADDRESS_MAX: usize = 64 * 1024 * 1024;
/// A request, or a message of a stream, is whole this long after it began. The largest one takes 4
/// Mbit/s for that.
pub(crate) const ARRIVED_WITHIN: Duration = Duration::from_secs(10);
/// Compressed or not, and the length of the message (gRPC over HTTP/2, "Length-Prefixed-Message").
const PREFIX: usize = 5;

/// What is arriving at a node.
#[derive(Debug, Default)]
pub(crate) struct Arriving {
    bytes: AtomicUsize,
    refused: Counter,
}

impl Arriving {
    pub(crate) fn new(refused: Counter) -> Self {
        Self { refused, ..Self::default() }
    }

    /// The body of a request, bounded; `streams`: its caller may send more than one message.
    pub(crate) fn bounded(self: &Arc<Self>, body: Body, line: Arc<Line>, streams: bool) -> Body {
        if http_body::Body::is_end_stream(&body) {
            return body;
        }
        let late = (!streams).then(|| Box::pin(sleep(ARRIVED_WITHIN)));
        let (partial, here) = (Partial::default(), self.begin(line));
        Body::new(Bounded { body, streams, partial, here, late })
    }

    /// Something that begins to arrive.
    pub(crate) fn begin(self: &Arc<Self>, line: Arc<Line>) -> Here {
        Here { of: self.clone(), line, bytes: 0 }
    }
}

/// The bytes that are here of something that is not whole; they count as long as this lives.
pub(crate) struct Here {
    of: Arc<Arriving>,
    line: Arc<Line>,
    bytes: usize,
}

impl Here {
    /// # Errors
    /// Too much is arriving.
    pub(crate) fn count(&mut self, bytes: usize) -> Result<(), CallError> {
        let before = std::mem::replace(&mut self.bytes, bytes);
        if before > 0 {
            self.of.bytes.fetch_sub(before, Ordering::Relaxed);
            self.line.arriving().fetch_sub(before, Ordering::Relaxed);
        }
        if bytes == 0 {
            return Ok(());
        }
        let in_all = self.of.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let of_address = self.line.arriving().fetch_add(bytes, Ordering::Relaxed) + bytes;
        for (arriving, limit, place) in [
            (of_address, OF_ADDRESS_MAX, "from this address"),
            (in_all, IN_ALL_MAX, "at this node"),
        ] {
            if arriving > limit {
                self.of.refused.inc();
                return Err(CallError::Arriving { limit, place });
            }
        }
        Ok(())
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        let _none_is_left = self.count(0);
    }
}

/// How much is here of a message that is not whole.
#[derive(Debug, Default, PartialEq, Eq)]
struct Partial {
    prefix: [u8; PREFIX],
    have: usize,
}

impl Partial {
    fn take(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            let upto = match self.have < PREFIX {
                true => PREFIX,
                false => self.len(),
            };
            let more = data.len().min(upto - self.have);
            if self.have < PREFIX {
                self.prefix[self.have..self.have + more].copy_from_slice(&data[..more]);
            }
            self.have += more;
            data = &data[more..];
            if self.have >= PREFIX && self.have == self.len() {
                self.have = 0;
            }
        }
    }

    /// Of the whole message, with its prefix.
    fn len(&self) -> usize {
        let [_, a, b, c, d] = self.prefix;
        PREFIX + u32::from_be_bytes([a, b, c, d]) as usize
    }
}

struct Bounded {
    body: Body,
    streams: bool,
    partial: Partial,
    here: Here,
    /// When what has begun takes too long.
    late: Option<Pin<Box<Sleep>>>,
}

impl Bounded {
    /// # Errors
    /// Too much is arriving.
    fn take(&mut self, data: &[u8]) -> Result<(), Status> {
        self.partial.take(data);
        self.here.count(self.partial.have)?;
        if !self.streams {
            return Ok(());
        }
        match self.partial.have {
            0 => self.late = None,
            _ if self.late.is_none() => {
                self.late = Some(Box::pin(sleep_until(Instant::now() + ARRIVED_WITHIN)));
            }
            _ => {}
        }
        Ok(())
    }
}

impl http_body::Body for Bounded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            if let Some(Ok(frame)) = &frame
                && let Some(data) = frame.data_ref()
                && let Err(refused) = self.take(data)
            {
                return Poll::Ready(Some(Err(refused)));
            }
            return Poll::Ready(frame);
        }
        let late = self.late.as_mut();
        if late.is_some_and(|late| late.as_mut().poll(cx).is_ready()) {
            let what = "the request did not arrive whole";
            let late = CallError::Late { what, within: ARRIVED_WITHIN };
            return Poll::Ready(Some(Err(late.into())));
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::future::poll_fn;

    use super::*;

    fn message(len: u32) -> Vec<u8> {
        [&[0][..], &len.to_be_bytes(), &vec![7; len as usize]].concat()
    }

    /// A body of these pieces that then stays open.
    fn open(pieces: Vec<Vec<u8>>) -> Body {
        Body::new(Open(pieces.into()))
    }

    struct Open(VecDeque<Vec<u8>>);

    impl http_body::Body for Open {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            match self.0.pop_front() {
                Some(piece) => Poll::Ready(Some(Ok(Frame::data(piece.into())))),
                None => Poll::Pending,
            }
        }
    }

    async fn next(body: &mut Body) -> Result<(), Status> {
        let frame = poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut *body), cx)).await;
        frame.expect("it stays open").map(drop)
    }

    fn line() -> Arc<Line> {
        Arc::new(Line::new(None, Arc::default()))
    }

    #[test]
    fn what_is_not_whole_is_known_however_it_is_cut() {
        let messages = [message(0), message(1), message(300), message(5)].concat();
        for cut in 1..messages.len() {
            let mut partial = Partial::default();
            let mut upto = 0;
            for piece in messages.chunks(cut) {
                partial.take(piece);
                upto += piece.len();
                let begun = [0, 5, 11, 316].into_iter().rfind(|begin| *begin < upto).unwrap();
                let whole = [5, 11, 316, 326].contains(&upto);
                assert_eq!(partial.have, if whole { 0 } else { upto - begun }, "{cut} {upto}");
            }
        }
    }

    /// Requests that never end were kept for ever: 64 GiB of them from one address.
    #[tokio::test(start_paused = true)]
    async fn requests_that_do_not_end_are_bounded_and_given_up() {
        let (of, line) = (Arc::new(Arriving::default()), line());
        let half = |mib: usize| open(vec![vec![0, 8, 0, 0, 0], vec![1; mib << 20]]);
        let mut kept = Vec::new();
        for _ in 0..6 {
            let mut body = of.bounded(half(10), line.clone(), false);
            assert!(next(&mut body).await.is_ok() && next(&mut body).await.is_ok());
            kept.push(body);
        }
        let mut body = of.bounded(half(10), line.clone(), false);
        assert!(next(&mut body).await.is_ok());
        let refused = next(&mut body).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert!(refused.message().contains("from this address"), "{refused:?}");
        drop(body);
        let began = Instant::now();
        let late = next(&mut kept[0]).await.unwrap_err();
        assert_eq!(late.code(), tonic::Code::DeadlineExceeded);
        assert!(began.elapsed() <= ARRIVED_WITHIN + Duration::from_secs(1));
        drop(kept);
        assert_eq!(of.bytes.load(Ordering::Relaxed), 0);
        assert_eq!(line.arriving().load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_may_be_silent_between_its_messages_but_not_within_one() {
        let of = Arc::new(Arriving::default());
        let mut silent = of.bounded(open(vec![message(9)]), line(), true);
        assert!(next(&mut silent).await.is_ok());
        let waits = tokio::time::timeout(ARRIVED_WITHIN * 3, next(&mut silent)).await;
        assert!(waits.is_err());
        let mut half = of.bounded(open(vec![message(9), vec![0; 3]]), line(), true);
        for _ in 0..2 {
            assert!(next(&mut half).await.is_ok());
        }
        let late = next(&mut half).await.unwrap_err();
        assert_eq!(late.code(), tonic::Code::DeadlineExceeded);
    }
}
