//! Calls to the leader of another node: those that wait at the same time become one message.
//!
//! A lone call goes out at once. With some messages under way, calls wait until one of these is back, so messages are as
//! large as the leader is busy.

use std::future::Future;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::error::NodeError;
use crate::node::LeaderAnswer;

/// Calls that wait for a message.
const QUEUE_MAX: usize = 8_192;
/// Messages under way at once.
const UNDER_WAY_MAX: usize = 4;
/// Calls in one message.
pub(crate) const FORWARDED_MAX: usize = 256;
/// No call is added to a message that has so many bytes.
const MESSAGE_BYTES: usize = 256 * 1024;

type Answer = Result<LeaderAnswer, NodeError>;

struct Call {
    leader: u64,
    encoded: Bytes,
    deadline: Instant,
    done: oneshot::Sender<Answer>,
}

/// Where calls are handed in.
#[derive(Debug)]
pub(crate) struct Forwards {
    node: u64,
    calls: mpsc::Sender<Call>,
}

/// The other end: the loop that makes messages.
pub(crate) struct Messages {
    calls: mpsc::Receiver<Call>,
    /// Taken from the queue, and not for the same leader as the others.
    next: Option<Call>,
}

/// A queue for calls and the loop that empties it.
pub(crate) fn forwards(node: u64) -> (Forwards, Messages) {
    let (sender, receiver) = mpsc::channel(QUEUE_MAX);
    (Forwards { node, calls: sender }, Messages { calls: receiver, next: None })
}

impl Forwards {
    /// Has a leader do what an encoded call says.
    ///
    /// # Errors
    /// The leader's, or those of asking it; [`NodeError::Overloaded`] when too many calls wait.
    pub(crate) async fn submit(&self, leader: u64, encoded: Bytes, deadline: Instant) -> Answer {
        let (done, answer) = oneshot::channel();
        let call = Call { leader, encoded, deadline, done };
        self.calls.try_send(call).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => NodeError::Overloaded { waiting: QUEUE_MAX },
            mpsc::error::TrySendError::Closed(_) => NodeError::Stopping { node: self.node },
        })?;
        answer.await.unwrap_or(Err(NodeError::Stopping { node: self.node }))
    }
}

impl Messages {
    /// Makes messages and sends them until [`Forwards`] is gone. `send` has a leader do calls until a deadline.
    pub(crate) async fn run<F>(mut self, send: impl Fn(u64, Vec<Bytes>, Instant) -> F)
    where
        F: Future<Output = Result<Vec<Answer>, NodeError>>,
    {
        let mut under_way = FuturesUnordered::new();
        loop {
            tokio::select! {
                Some(()) = under_way.next() => {}
                first = self.next(), if under_way.len() < UNDER_WAY_MAX => {
                    let Some(first) = first else { return };
                    let message = self.collect(first);
                    let deadline = message.iter().map(|call| call.deadline).max();
                    let deadline = deadline.unwrap_or_else(Instant::now);
                    let calls = message.iter().map(|call| call.encoded.clone()).collect();
                    let answers = send(message[0].leader, calls, deadline);
                    under_way.push(async move { tell(message, answers.await) });
                }
            }
        }
    }

    async fn next(&mut self) -> Option<Call> {
        match self.next.take() {
            Some(call) => Some(call),
            None => self.calls.recv().await,
        }
    }

    /// A call and those that wait for the same leader.
    fn collect(&mut self, first: Call) -> Vec<Call> {
        let mut bytes = first.encoded.len();
        let mut message = vec![first];
        while message.len() < FORWARDED_MAX && bytes < MESSAGE_BYTES {
            let Ok(call) = self.calls.try_recv() else { break };
            if call.leader != message[0].leader {
                self.next = Some(call);
                break;
            }
            bytes += call.encoded.len();
            message.push(call);
        }
        message
    }
}

fn tell(message: Vec<Call>, answers: Result<Vec<Answer>, NodeError>) {
    let answers = match answers {
        Ok(answers) => answers,
        Err(error) => vec![Err(error); message.len()],
    };
    for (call, answer) in message.into_iter().zip(answers) {
        // A caller that is gone needs no answer.
        let _ = call.done.send(answer);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lone_call_goes_at_once_and_those_that_wait_go_together() {
        let (forwards, messages) = forwards(1);
        let forwards = Arc::new(forwards);
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let sent = sizes.clone();
        let _running = tokio::spawn(messages.run(move |leader, calls, _| {
            sent.lock().unwrap().push((leader, calls.len()));
            async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                let answer = |call: Bytes| Ok(LeaderAnswer::Leader(u64::from(call[0])));
                Ok(calls.into_iter().map(answer).collect())
            }
        }));
        let mut calls = tokio::task::JoinSet::new();
        let deadline = Instant::now() + Duration::from_secs(1);
        for number in 0..100_u8 {
            let forwards = forwards.clone();
            let leader = if number < 90 { 2 } else { 3 };
            calls.spawn(async move {
                // The first ones one after the other, so that each finds the loop idle.
                tokio::time::sleep(Duration::from_micros(u64::from(number.min(4)))).await;
                let answer = forwards.submit(leader, Bytes::from(vec![number]), deadline).await;
                (number, answer.unwrap())
            });
        }
        for (number, answer) in calls.join_all().await {
            assert!(matches!(answer, LeaderAnswer::Leader(told) if told == u64::from(number)));
        }
        let sizes = sizes.lock().unwrap();
        assert!(sizes.len() <= 8, "{sizes:?}");
        assert_eq!(sizes[0], (2, 1), "at once");
        let to =
            |leader| sizes.iter().filter(|(to, _)| *to == leader).map(|(_, n)| n).sum::<usize>();
        assert_eq!((to(2), to(3)), (90, 10), "each to its leader");
    }

    #[tokio::test(start_paused = true)]
    async fn each_call_of_a_message_is_told_that_it_failed() {
        let (forwards, messages) = forwards(1);
        let _running = tokio::spawn(messages.run(|leader, _, _| async move {
            Err(crate::node::unreachable(leader, String::new(), "down"))
        }));
        let deadline = Instant::now() + Duration::from_secs(1);
        let call = || forwards.submit(2, Bytes::from_static(b"x"), deadline);
        for answer in <[_; 3]>::from(tokio::join!(call(), call(), call())) {
            assert!(matches!(answer, Err(NodeError::PeerUnreachable { node: 2, .. })));
        }
    }
}
