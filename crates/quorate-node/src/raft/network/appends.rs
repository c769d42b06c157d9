//! What a leader sends on one stream, kept until it is sure that it was sent.

use std::sync::{Arc, Mutex};

use futures_util::stream::{self, Fuse};
use futures_util::{Stream, StreamExt};
use quorate_proto::peer::v1::AppendRequest;

/// Messages that can be sent anew as long as no more than the first of them was taken: one that
/// meets the end of its connection takes a new one, and nothing is lost.
#[derive(Debug)]
pub(super) struct Appends<S> {
    first: AppendRequest,
    rest: Arc<Mutex<Rest<S>>>,
}

#[derive(Debug)]
struct Rest<S> {
    stream: Fuse<S>,
    /// Only the last sending takes messages; one before it may not have been dropped yet.
    sending: u32,
    taken: bool,
}

impl<S: Stream<Item = AppendRequest> + Send + Unpin + 'static> Appends<S> {
    pub(super) fn new(first: AppendRequest, rest: S) -> Self {
        let rest = Rest { stream: rest.fuse(), sending: 0, taken: false };
        Self { first, rest: Arc::new(Mutex::new(rest)) }
    }

    /// All of them; `None`: some are gone already.
    pub(super) fn send(&self) -> Option<impl Stream<Item = AppendRequest> + Send + use<S>> {
        let sending = {
            let mut rest = self.rest.lock().expect("invariant: no stream panics when it is polled");
            if rest.taken {
                return None;
            }
            rest.sending += 1;
            rest.sending
        };
        let (first, rest) = (self.first.clone(), self.rest.clone());
        let rest = stream::poll_fn(move |cx| {
            let mut rest = rest.lock().expect("invariant: no stream panics when it is polled");
            if rest.sending != sending {
                return std::task::Poll::Ready(None);
            }
            let next = rest.stream.poll_next_unpin(cx);
            rest.taken |= matches!(next, std::task::Poll::Ready(Some(_)));
            next
        });
        Some(stream::once(std::future::ready(first)).chain(rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(text: &'static str) -> AppendRequest {
        AppendRequest { entries: text.into(), ..AppendRequest::default() }
    }

    #[tokio::test]
    async fn all_is_sent_anew_until_more_than_the_first_is_gone() {
        let rest = stream::iter([append("b"), append("c")]);
        let appends = Appends::new(append("a"), rest);
        let mut lost = Box::pin(appends.send().unwrap());
        assert_eq!(lost.next().await, Some(append("a")));
        let sent = appends.send().unwrap();
        assert_eq!(lost.next().await, None, "one that was given up takes nothing");
        assert_eq!(sent.collect::<Vec<_>>().await, [append("a"), append("b"), append("c")]);
        assert!(appends.send().is_none());
    }

    #[tokio::test]
    async fn a_heartbeat_is_sent_as_often_as_it_takes() {
        let appends = Appends::new(append("a"), stream::iter([]));
        for _ in 0..3 {
            assert_eq!(appends.send().unwrap().collect::<Vec<_>>().await, [append("a")]);
        }
    }
}
