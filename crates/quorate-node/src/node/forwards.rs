//! Calls to the leader on another node: calls that wait at the same time become one message.
//!
//! A lone call goes out at once. With some messages under way, calls wait until one of these is
//! back, so messages are as large as the leader is busy.
//!
//! A caller leaves when another node leads, and hands its call in again for that one. What it
//! leaves behind must hold up no other call: a message ends when all its callers have left, and a
//! call whose caller has left is not sent. So an answer is never lost that a caller waits for, and
//! a leader that answers no more holds no call up for longer than it leads.

use std::future::Future;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use prometheus_client::metrics::counter::Counter;
use quorate_log::NodeId;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::error::{NodeError, Unanswered};
use crate::node::calls::wire::{encode_call, read_answer};
use crate::node::calls::{LeaderAnswer, LeaderCall};
use crate::node::queues::hand_in;
use crate::node::{Node, said, unreachable};

/// Calls that wait for a message; when another node leads, each of them may stand here twice for a
/// moment.
const QUEUE_MAX: usize = 16_384;
/// Messages under way at once.
const UNDER_WAY_MAX: usize = 4;
/// Calls in one message.
pub(crate) const FORWARDED_MAX: usize = 256;
/// No call is added to a message that has this many bytes.
const MESSAGE_BYTES: usize = 256 * 1024;

type Answer = Result<LeaderAnswer, NodeError>;

struct Call {
    leader: NodeId,
    encoded: Bytes,
    deadline: Instant,
    done: oneshot::Sender<Answer>,
}

/// Where calls are handed in.
#[derive(Debug)]
pub(crate) struct Forwards {
    node: NodeId,
    calls: mpsc::Sender<Call>,
    refused: Counter,
}

/// The other end: the loop that makes messages.
pub(crate) struct Messages {
    calls: mpsc::Receiver<Call>,
    /// Taken from the queue, and not for the same leader as the others.
    next: Option<Call>,
}

/// A queue for calls and the loop that empties it; `refused` counts those that are too many.
pub(crate) fn forwards(node: NodeId, refused: Counter) -> (Forwards, Messages) {
    let (sender, receiver) = mpsc::channel(QUEUE_MAX);
    (Forwards { node, calls: sender, refused }, Messages { calls: receiver, next: None })
}

impl Node {
    /// Asks another node to do something as the leader. Writes go with what else is asked of it
    /// now, and are answered together. What may take longer goes alone: renewals, which the leader
    /// may hold back for others (there is one batch of them at a time), and membership changes.
    pub(crate) async fn forward(
        &self,
        leader: NodeId,
        call: &LeaderCall,
        deadline: Instant,
    ) -> Result<LeaderAnswer, NodeError> {
        let encoded = encode_call(call);
        match call {
            LeaderCall::Propose(..) => self.queues.forwards.submit(leader, encoded, deadline).await,
            LeaderCall::Renew(..) | LeaderCall::Membership(_) | LeaderCall::Lead(_) => {
                let mut answers = self.forward_all(leader, vec![encoded], deadline).await?;
                answers.pop().unwrap_or_else(|| Err(self.unexpected(&"no answer to a call")))
            }
        }
    }

    /// Sends encoded calls to another node in one message; an answer for each.
    pub(super) async fn forward_all(
        &self,
        leader: NodeId,
        calls: Vec<Bytes>,
        deadline: Instant,
    ) -> Result<Vec<Result<LeaderAnswer, NodeError>>, NodeError> {
        let address = self.peer_address(leader)?;
        let timeout = deadline.saturating_duration_since(Instant::now());
        let asked = calls.len();
        let answers = self.peers.forward(leader, &address, calls, timeout);
        let answers = match tokio::time::timeout(timeout, answers).await {
            Ok(Ok(answers)) => answers,
            Ok(Err(status)) => {
                self.peers.book.missed(leader, &address);
                return Err(unreachable(leader, address, said(status.code(), status.message())));
            }
            Err(_elapsed) => return Err(unreachable(leader, address, Unanswered::Late)),
        };
        if answers.len() != asked {
            let why = Unanswered::Partly { answers: answers.len(), asked };
            return Err(unreachable(leader, address, why));
        }
        Ok(answers.into_iter().map(|answer| read_answer(leader, answer)).collect())
    }

    /// Where another member listens for peers, as far as this node knows.
    ///
    /// # Errors
    /// It is no member.
    pub(crate) fn peer_address(&self, id: NodeId) -> Result<String, NodeError> {
        match self.member(id) {
            Some(member) => Ok(self.peers.book.address(id, &member.peer_address)),
            None => Err(unreachable(id, String::new(), Unanswered::NoMember)),
        }
    }
}

impl Forwards {
    /// Has a leader do what an encoded call says.
    ///
    /// # Errors
    /// The leader's, or why it could not be asked; [`NodeError::Overloaded`] when too many calls
    /// wait.
    pub(super) async fn submit(&self, leader: NodeId, encoded: Bytes, deadline: Instant) -> Answer {
        let (done, answer) = oneshot::channel();
        let call = Call { leader, encoded, deadline, done };
        hand_in(&self.calls, call, self.node, &self.refused)?;
        answer.await.unwrap_or(Err(NodeError::Stopping { node: self.node }))
    }
}

impl Messages {
    /// Makes messages and sends them until [`Forwards`] is gone. `send` has a leader do calls until
    /// a deadline.
    pub(crate) async fn run<F>(mut self, send: impl Fn(NodeId, Vec<Bytes>, Instant) -> F)
    where
        F: Future<Output = Result<Vec<Answer>, NodeError>>,
    {
        let mut under_way = FuturesUnordered::new();
        loop {
            tokio::select! {
                Some(()) = under_way.next() => {}
                first = self.next(), if under_way.len() < UNDER_WAY_MAX => {
                    let Some(first) = first else { return };
                    let mut message = self.collect(first);
                    let deadline = message.iter().map(|call| call.deadline).max();
                    let deadline = deadline.unwrap_or_else(Instant::now);
                    let calls = message.iter().map(|call| call.encoded.clone()).collect();
                    let answers = send(message[0].leader, calls, deadline);
                    under_way.push(async move {
                        tokio::select! {
                            biased; // an answer that is there counts
                            answers = answers => tell(message, answers),
                            () = all_left(&mut message) => {}
                        }
                    });
                }
            }
        }
    }

    /// The next call that a caller waits for. Can be cancelled.
    async fn next(&mut self) -> Option<Call> {
        loop {
            let call = match self.next.take() {
                Some(call) => call,
                None => self.calls.recv().await?,
            };
            if !call.done.is_closed() {
                return Some(call);
            }
        }
    }

    /// A call and the calls that wait for the same leader.
    fn collect(&mut self, first: Call) -> Vec<Call> {
        let mut bytes = first.encoded.len();
        let mut message = vec![first];
        while message.len() < FORWARDED_MAX && bytes < MESSAGE_BYTES {
            let Ok(call) = self.calls.try_recv() else { break };
            if call.done.is_closed() {
                continue;
            }
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

/// Waits until no caller waits for an answer to any of the calls.
async fn all_left(message: &mut [Call]) {
    for call in message {
        call.done.closed().await;
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

    use futures_util::future::join_all;

    use super::*;

    fn node(number: u64) -> NodeId {
        NodeId::new(number).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_lone_call_goes_at_once_and_those_that_wait_go_together() {
        let (forwards, messages) = forwards(node(1), Counter::default());
        let forwards = Arc::new(forwards);
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let sent = sizes.clone();
        let _running = tokio::spawn(messages.run(move |leader, calls, _| {
            sent.lock().unwrap().push((leader, calls.len()));
            async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                let answer = |call: Bytes| Ok(LeaderAnswer::Leader(node(u64::from(call[0]))));
                Ok(calls.into_iter().map(answer).collect())
            }
        }));
        let mut calls = tokio::task::JoinSet::new();
        let deadline = Instant::now() + Duration::from_secs(1);
        for number in 1..=100_u8 {
            let forwards = forwards.clone();
            let leader = node(if number <= 90 { 2 } else { 3 });
            calls.spawn(async move {
                // The first ones one after the other, so that each finds the loop idle.
                tokio::time::sleep(Duration::from_micros(u64::from((number - 1).min(4)))).await;
                let answer = forwards.submit(leader, Bytes::from(vec![number]), deadline).await;
                (number, answer.unwrap())
            });
        }
        for (number, answer) in calls.join_all().await {
            assert!(
                matches!(answer, LeaderAnswer::Leader(told) if told == node(u64::from(number)))
            );
        }
        let sizes = sizes.lock().unwrap();
        assert!(sizes.len() <= 8, "{sizes:?}");
        assert_eq!(sizes[0], (node(2), 1), "at once");
        let to = |leader| {
            sizes.iter().filter(|(to, _)| *to == node(leader)).map(|(_, n)| n).sum::<usize>()
        };
        assert_eq!((to(2), to(3)), (90, 10), "each to its leader");
    }

    #[tokio::test(start_paused = true)]
    async fn each_call_of_a_message_is_told_that_it_failed() {
        let (forwards, messages) = forwards(node(1), Counter::default());
        let _running = tokio::spawn(messages.run(|leader, _, _| async move {
            Err(unreachable(leader, String::new(), Unanswered::Late))
        }));
        let deadline = Instant::now() + Duration::from_secs(1);
        let call = || forwards.submit(node(2), Bytes::from_static(b"x"), deadline);
        for answer in <[_; 3]>::from(tokio::join!(call(), call(), call())) {
            assert!(
                matches!(answer, Err(NodeError::PeerUnreachable { node: to, .. }) if to == node(2))
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_hangs_holds_up_only_those_who_wait_for_it() {
        let (forwards, messages) = forwards(node(1), Counter::default());
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let sent = sizes.clone();
        let _running = tokio::spawn(messages.run(move |leader, calls, until| {
            sent.lock().unwrap().push((leader, calls.len()));
            async move {
                match leader.get() {
                    2 => tokio::time::sleep_until(until).await,
                    _ => tokio::time::sleep(Duration::from_millis(10)).await,
                }
                Ok(calls.iter().map(|_| Ok(LeaderAnswer::Leader(leader))).collect())
            }
        }));
        let (begun, minute) = (Instant::now(), Duration::from_secs(60));
        let submit =
            |leader| forwards.submit(node(leader), Bytes::from_static(b"x"), begun + minute);
        let stays = submit(2);
        let callers = async {
            // As many as make four messages, and then more than one message holds.
            let (leaving, later) = ((0..300).map(|_| submit(2)), (0..600).map(|_| submit(2)));
            let leaving = async {
                let late = tokio::time::timeout(Duration::from_millis(700), join_all(leaving));
                assert!(late.await.is_err());
            };
            let later = async {
                tokio::time::sleep(Duration::from_millis(1)).await;
                let late = tokio::time::timeout(Duration::from_millis(699), join_all(later));
                assert!(late.await.is_err());
            };
            tokio::join!(leaving, later);
            let answer = submit(3).await.unwrap();
            assert!(matches!(answer, LeaderAnswer::Leader(told) if told == node(3)));
            begun.elapsed()
        };
        let (stays, took) = tokio::join!(stays, callers);
        assert!(took < Duration::from_millis(720), "{took:?}");
        assert!(
            matches!(stays.unwrap(), LeaderAnswer::Leader(told) if told == node(2)),
            "a waiting call is answered"
        );
        assert_eq!(begun.elapsed(), minute);
        let sizes = sizes.lock().unwrap();
        assert_eq!(*sizes.last().unwrap(), (node(3), 1));
        let sent: usize =
            sizes.iter().filter(|(to, _)| *to == node(2)).map(|(_, calls)| calls).sum();
        assert!(sent < 901, "nothing is sent that no caller waits for: {sizes:?}");
    }
}
