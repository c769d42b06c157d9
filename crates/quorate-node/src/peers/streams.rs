//! Streams to other nodes that carry one question at a time, and are kept for the next: with a call
//! for each, a lone linearizable read took 136 us of the nodes' processor time instead of 103, a
//! lone registration 323 instead of 298.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::sync::{Mutex, MutexGuard};

use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use quorate_log::NodeId;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// At most this many idle streams are kept: as many as there are questions at once, and a few to a
/// leader that was.
const KEPT_MAX: usize = 8;

/// Questions that wait on a stream: one is asked at a time, so a place for more would only hide
/// that a stream is not read.
const QUESTIONS_MAX: usize = 1;

/// What answers come on.
pub(crate) type Answers<A> = BoxStream<'static, Result<A, Status>>;

/// The streams of one kind that no task uses now, the last used at the end.
#[derive(Debug)]
pub(super) struct Streams<Q, A>(Mutex<VecDeque<Open<Q, A>>>);

/// All its questions have been answered.
struct Open<Q, A> {
    node: NodeId,
    address: String,
    questions: mpsc::Sender<Q>,
    answers: Answers<A>,
}

impl<Q: Send + 'static, A> Streams<Q, A> {
    pub(super) fn new() -> Self {
        Self(Mutex::default())
    }

    /// Asks a node on a stream that is there, or else on one that `open` opens for such questions.
    /// A caller that gives up meanwhile leaves no stream behind: the other node stops working for
    /// it, and its answer is not taken for one to a later question.
    ///
    /// # Errors
    /// The node's, or why it could not be asked. It may have done what it was asked for.
    pub(super) async fn ask<F>(
        &self,
        node: NodeId,
        address: &str,
        question: Q,
        open: impl FnOnce(ReceiverStream<Q>) -> F,
    ) -> Result<A, Status>
    where
        F: Future<Output = Result<Answers<A>, Status>>,
    {
        let mut stream = match self.take(node, address) {
            Some(kept) => {
                kept.questions.send(question).await.map_err(|_| ended())?;
                kept
            }
            None => {
                let (questions, receiver) = mpsc::channel(QUESTIONS_MAX);
                // Before the stream is there: it goes with what opens it.
                questions.send(question).await.map_err(|_| ended())?;
                let answers = open(ReceiverStream::new(receiver)).await?;
                Open { node, address: address.to_owned(), questions, answers }
            }
        };
        let answer = stream.answers.next().await.ok_or_else(ended)??;
        let mut kept = self.lock();
        kept.push_back(stream);
        if kept.len() > KEPT_MAX {
            kept.pop_front();
        }
        Ok(answer)
    }

    /// A stream to this node that has not ended since it was used.
    fn take(&self, node: NodeId, address: &str) -> Option<Open<Q, A>> {
        let mut kept = self.lock();
        loop {
            let at = kept.iter().rposition(|open| open.node == node && open.address == address)?;
            let mut open = kept.remove(at)?;
            // An unasked stream has nothing to say but that it ended: with its connection, or with
            // that node's process.
            if open.answers.next().now_or_never().is_none() {
                return Some(open);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Open<Q, A>>> {
        self.0.lock().expect("invariant: nothing panics under this lock")
    }
}

impl<Q, A> fmt::Debug for Open<Q, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Open").field("node", &self.node).finish_non_exhaustive()
    }
}

fn ended() -> Status {
    Status::unavailable("the stream has ended")
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use futures_util::stream;
    use tokio::time::timeout;

    use super::*;

    fn node(number: u64) -> NodeId {
        NodeId::new(number).unwrap()
    }

    const SECOND: Duration = Duration::from_secs(1);

    /// Answers each question with its number, number 9 after a second, and ends behind number 5.
    fn answers(questions: ReceiverStream<u64>) -> Answers<u64> {
        let until_5 = questions.scan(false, |over, number| {
            let before = std::mem::replace(over, number == 5);
            std::future::ready((!before).then_some(number))
        });
        // The end is seen at once, not with the next question.
        let until_5 = until_5.flat_map(|number| {
            let end = (number == 5).then_some(None);
            stream::iter([Some(number)].into_iter().chain(end))
        });
        until_5
            .take_while(|number| std::future::ready(number.is_some()))
            .filter_map(|number| async move {
                tokio::time::sleep(if number == Some(9) { SECOND } else { Duration::ZERO }).await;
                number.map(Ok)
            })
            .boxed()
    }

    #[tokio::test(start_paused = true)]
    async fn each_question_gets_its_own_answer_and_most_need_no_new_stream() {
        let (streams, opened) = (Streams::new(), Cell::new(0));
        let ask = |to, number| {
            let opened = &opened;
            streams.ask(node(to), "here", number, move |questions| {
                opened.set(opened.get() + 1);
                async { Ok(answers(questions)) }
            })
        };
        for (what, to, number, count) in [
            ("the first", 1, 1, 1),
            ("on the same stream", 1, 2, 1),
            ("to another node", 2, 3, 2),
            ("to the first again", 1, 4, 2),
            ("the last of its stream", 2, 5, 2),
            ("the stream has ended", 2, 6, 3),
        ] {
            assert_eq!(ask(to, number).await.unwrap(), number, "{what}");
            assert_eq!(opened.get(), count, "{what}");
        }
        assert!(timeout(SECOND / 2, ask(2, 9)).await.is_err());
        assert_eq!(ask(2, 7).await.unwrap(), 7, "not the answer that came too late");
        assert_eq!(opened.get(), 4);
        let (one, other) = tokio::join!(ask(2, 9), ask(2, 8));
        assert_eq!((one.unwrap(), other.unwrap()), (9, 8), "each on its own stream");
        assert_eq!(opened.get(), 5);
        assert_eq!(streams.lock().len(), 3, "one to node 1, two to node 2");
    }

    #[tokio::test]
    async fn a_refusal_is_told_and_few_streams_are_kept() {
        let streams = Streams::new();
        let refused = |_| async { Ok(stream::iter([Err(Status::aborted("no"))]).boxed()) };
        let status = streams.ask(node(1), "here", 1, refused).await.unwrap_err();
        assert_eq!(status.message(), "no");
        let down = |_| async { Err(Status::unavailable("down")) };
        assert_eq!(streams.ask(node(1), "here", 1, down).await.unwrap_err().message(), "down");
        for to in 1..=20 {
            let opened = |questions| async { Ok(answers(questions)) };
            assert_eq!(streams.ask(node(to), "here", 1, opened).await.unwrap(), 1);
        }
        assert_eq!(streams.lock().len(), KEPT_MAX);
    }
}
