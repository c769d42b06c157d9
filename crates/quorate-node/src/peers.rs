//! Connections to the other nodes, and the envelope of every call to them: which cluster, which
//! node, by when.

mod address_book;
mod calls;
pub(crate) mod streams;
mod words;

use std::collections::{BTreeMap, HashSet};
use std::error::Error as _;
use std::future::Future;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_log::{Identity, NodeId};
use quorate_proto::ClusterId;
use quorate_proto::peer::v1::peer_client::PeerClient;
use quorate_proto::peer::v1::{ForwardAnswers, Forwarded, ReadIndexRequest, ReadIndexResponse};
use quorate_state::Levels;
use tokio::time::Instant;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::net::Net;
use crate::net::tls::Tls;
use crate::peers::address_book::AddressBook;
pub(crate) use crate::peers::calls::{Identified, listens_there, succeeded_by};
use crate::peers::streams::Streams;

/// Metadata of every peer call: the sender's cluster, 16 hex digits; 0 from a founder that does not
/// know it yet.
pub(crate) const CLUSTER_HEADER: &str = "quorate-cluster-id";
/// Metadata of every peer call: the hash of the founders of the sender's cluster, 16 hex digits.
pub(crate) const FOUNDERS_HEADER: &str = "quorate-founders";
/// Metadata of every peer call: the node that sends it, decimal.
pub(crate) const SENDER_HEADER: &str = "quorate-node-id";
/// Metadata of every peer call: the node it is meant for, decimal.
pub(crate) const TARGET_HEADER: &str = "quorate-target-id";
/// Metadata of every peer call: the levels of a cluster at which the sender works, "1-2".
pub(crate) const LEVELS_HEADER: &str = "quorate-levels";
/// In a refusal: the cluster (decimal) that an operator recovered from the caller's, and in which
/// the refusing node is now ...
pub(crate) const SUCCEEDED_BY: &str = "quorate-succeeded-by";
/// ... and how long ago that was, ms (decimal).
pub(crate) const SUCCEEDED_AGO: &str = "quorate-succeeded-ago-ms";

/// Metadata of the Raft library's messages to a node that the sender counts as a voter; present or
/// not.
const VOTER_HEADER: &str = "quorate-target-votes";

/// One peer message at most: an append of one entry of the largest size (4 MiB) or of many (about 1
/// MiB), with room.
pub(crate) const MESSAGE_MAX: usize = 16 * 1024 * 1024;

/// Connections that are kept: more than a cluster's members need, also where many of them move.
const CHANNELS_MAX: usize = 1_024;

/// A node's address, `host:port`, in bytes at most: a name of DNS has 253, and a port up to five
/// digits.
pub(crate) const ADDRESS_MAX: usize = 260;

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// A connection that does not answer a ping within twice this is given up.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// A client for one node.
pub(crate) type Client = PeerClient<Channel>;

/// Kinds of traffic that must not wait behind each other have a connection each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lane {
    /// Votes, heartbeats, read index, status.
    Control,
    /// Log entries.
    Append,
    /// Snapshots.
    Bulk,
    /// Forwarded writes.
    Forward,
}

/// The connections of one node.
#[derive(Debug)]
pub(crate) struct Peers {
    node_id: NodeId,
    /// Both 0 where not known; [`Peers::identity`] says so in its types.
    cluster_id: AtomicU64,
    founders: AtomicU64,
    /// At which this node works.
    levels: Levels,
    net: Net,
    tls: Option<Arc<Tls>>,
    /// In order, so that they are dropped in the same order in a simulation.
    channels: Mutex<BTreeMap<(NodeId, String, Lane), Channel>>,
    /// Nodes that did not answer the last message of the Raft library.
    lost: Mutex<HashSet<NodeId>>,
    /// Nodes that did not take the last snapshot that they were sent.
    snapshotless: Mutex<HashSet<NodeId>>,
    /// When this node last asked who would vote for it.
    stood: Mutex<Option<Instant>>,
    /// Where the nodes may be.
    pub(crate) book: AddressBook,
    /// Calls for the leader.
    forwards: Streams<Forwarded, ForwardAnswers>,
    /// Questions for the index that linearizable reads have to wait for.
    reads: Streams<ReadIndexRequest, ReadIndexResponse>,
}

impl Peers {
    /// As far as the node's identity is known.
    pub(crate) fn new(identity: Identity, net: Net, tls: Option<Arc<Tls>>, levels: Levels) -> Self {
        Self {
            levels,
            node_id: identity.node_id,
            cluster_id: AtomicU64::new(number(identity.cluster_id)),
            founders: AtomicU64::new(number(identity.founders)),
            net,
            tls,
            channels: Mutex::default(),
            lost: Mutex::default(),
            snapshotless: Mutex::default(),
            stood: Mutex::default(),
            book: AddressBook::default(),
            forwards: Streams::new(),
            reads: Streams::new(),
        }
    }

    /// The network that these connections are made in.
    pub(crate) fn net(&self) -> &Net {
        &self.net
    }

    /// `None`: not known yet.
    pub(crate) fn cluster_id(&self) -> Option<ClusterId> {
        self.identity().cluster_id.map(ClusterId::from)
    }

    /// This node asks the others whether they would vote for it.
    pub(crate) fn stands(&self) {
        let mut stood = self.stood.lock().expect("invariant: nothing panics under this lock");
        *stood = Some(Instant::now());
    }

    /// How long ago it last did.
    pub(crate) fn stood(&self) -> Option<Duration> {
        let stood = self.stood.lock().expect("invariant: nothing panics under this lock");
        stood.map(|stood| stood.elapsed())
    }

    /// The node and cluster that this is, as far as that is known and on disk.
    pub(crate) fn identity(&self) -> Identity {
        let [cluster_id, founders] = [&self.cluster_id, &self.founders]
            .map(|number| NonZeroU64::new(number.load(Ordering::Acquire)));
        Identity { cluster_id, founders, node_id: self.node_id }
    }

    /// More is known, and on disk.
    pub(crate) fn set_identity(&self, identity: Identity) {
        self.founders.store(number(identity.founders), Ordering::Release);
        self.cluster_id.store(number(identity.cluster_id), Ordering::Release);
    }

    /// A node answered: told once after it did not.
    pub(crate) fn answered(&self, id: NodeId, address: &str) {
        if self.lost.lock().expect("invariant: nothing panics under this lock").remove(&id) {
            tracing::info!(id = id.get(), address, "a node is reachable again");
        }
    }

    /// A node did not answer: told once until it does.
    pub(crate) fn missed(&self, id: NodeId, address: &str, reason: &str) {
        self.book.missed(id, address);
        if self.lost.lock().expect("invariant: nothing panics under this lock").insert(id) {
            tracing::warn!(id = id.get(), address, reason, "a node is unreachable");
        }
    }

    /// A node took a snapshot that it was sent, or did not: told once until it does.
    pub(crate) fn sent_snapshot(&self, id: NodeId, refused: Option<&Status>) {
        let mut without =
            self.snapshotless.lock().expect("invariant: nothing panics under this lock");
        match refused {
            None => drop(without.remove(&id)),
            Some(status) if without.insert(id) => {
                let reason = status.message();
                tracing::warn!(id = id.get(), reason, "a node does not take the snapshot it needs");
            }
            Some(_told) => {}
        }
    }

    /// A member's release does not work at the cluster's level: told once until it answers.
    pub(crate) fn refused_release(&self, id: NodeId, why: &str) {
        if self.lost.lock().expect("invariant: nothing panics under this lock").insert(id) {
            tracing::warn!(id = id.get(), why, "a node of another release is refused");
        }
    }

    /// This node is counted as a voter and has no data: told once.
    pub(crate) fn refused_as_voter(&self, id: NodeId) {
        if self.lost.lock().expect("invariant: nothing panics under this lock").insert(id) {
            tracing::error!(
                id = id.get(),
                "the cluster counts this node as a voter, but its data directory is empty: its disk was lost; \
                 stop it and replace it by a node with a new id"
            );
        }
    }

    /// A channel to a node whose id is not known, at the address where clients reach it.
    fn connect(&self, endpoint: &Endpoint) -> Channel {
        self.net.connect(endpoint, self.tls.as_ref(), None)
    }

    /// A client for a node, at an address; connects when it is first used.
    ///
    /// # Errors
    /// The address is no `host:port`.
    pub(crate) fn client(&self, node: NodeId, address: &str, lane: Lane) -> Result<Client, Status> {
        let mut channels = self.channels.lock().expect("invariant: nothing panics under this lock");
        let key = (node, address.to_owned(), lane);
        let channel = match channels.get(&key) {
            Some(channel) => channel.clone(),
            None => {
                let channel = self.net.connect(&endpoint(address)?, self.tls.as_ref(), Some(node));
                if channels.len() >= CHANNELS_MAX {
                    // A call that uses one now keeps it.
                    channels.clear();
                }
                channels.insert(key, channel.clone());
                channel
            }
        };
        Ok(PeerClient::new(channel)
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX))
    }

    /// A call to a node; `timeout` `None`: a stream that lives on.
    pub(crate) fn request<T>(
        &self,
        target: NodeId,
        message: T,
        timeout: Option<Duration>,
    ) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(timeout) = timeout {
            request.set_timeout(timeout);
        }
        let Identity { cluster_id, founders, .. } = self.identity();
        for (name, value) in [
            (CLUSTER_HEADER, format!("{:016x}", number(cluster_id))),
            (FOUNDERS_HEADER, format!("{:016x}", number(founders))),
            (SENDER_HEADER, self.node_id.to_string()),
            (TARGET_HEADER, target.to_string()),
            (LEVELS_HEADER, format!("{}-{}", self.levels.min, self.levels.max)),
        ] {
            let value = value.parse().expect("invariant: digits and a dash are valid metadata");
            request.metadata_mut().insert(name, value);
        }
        request
    }
}

/// As messages write it: 0 stands for none there.
fn number(known: Option<NonZeroU64>) -> u64 {
    known.map_or(0, NonZeroU64::get)
}

fn endpoint(address: &str) -> Result<Endpoint, Status> {
    Ok(crate::net::endpoint(address, CONNECT_TIMEOUT)
        .map_err(|error| Status::invalid_argument(error.to_string()))?
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true))
}

/// Makes a call, and once more at once where its connection ended under it: by its age, most often
/// before anything was sent, or with the process there, which the second attempt shows. Only for
/// calls that may come twice.
pub(crate) async fn call_again<T, F>(mut call: impl FnMut() -> F) -> Result<T, Status>
where
    F: Future<Output = Result<T, Status>>,
{
    match call().await {
        Err(status) if has_lost_its_connection(&status) => call().await,
        answer => answer,
    }
}

/// Whether a call had a connection, and that ended. Not one that could not be made, or is silent.
fn has_lost_its_connection(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if let Some(of_connection) = error.downcast_ref::<hyper::Error>() {
            return !of_connection.is_timeout();
        }
        cause = error.source();
    }
    false
}

/// Marks a message as one to a voter.
pub(crate) fn mark_to_voter<T>(request: &mut Request<T>) {
    request.metadata_mut().insert(VOTER_HEADER, MetadataValue::from_static("1"));
}

/// Whether the sender of a call counts this node as a voter.
pub(crate) fn is_to_voter(metadata: &MetadataMap) -> bool {
    metadata.contains_key(VOTER_HEADER)
}

/// The envelope of a call that arrived; `None` where not set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Envelope {
    pub(crate) cluster_id: Option<ClusterId>,
    pub(crate) founders: Option<NonZeroU64>,
    pub(crate) sender: Option<NodeId>,
    pub(crate) target: Option<NodeId>,
    /// At which the sender works.
    pub(crate) levels: Option<Levels>,
}

impl Envelope {
    pub(crate) fn of(metadata: &MetadataMap) -> Self {
        let text = |name| metadata.get(name).and_then(|value| value.to_str().ok());
        let hex = |name| text(name).and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0);
        let node = |name| NodeId::new(text(name)?.parse().ok()?);
        Self {
            cluster_id: ClusterId::new(hex(CLUSTER_HEADER)),
            founders: NonZeroU64::new(hex(FOUNDERS_HEADER)),
            sender: node(SENDER_HEADER),
            target: node(TARGET_HEADER),
            levels: text(LEVELS_HEADER).and_then(levels),
        }
    }

    /// Whether the sender is of this node's cluster. Founders know each other by the hash of their
    /// list until both know the id that was drawn. A node that is of no cluster yet takes any that
    /// has an id.
    pub(crate) fn is_of_cluster_of(&self, ours: &Identity) -> bool {
        match (ours.cluster_id.map(ClusterId::from), self.cluster_id) {
            (None, theirs) if ours.founders.is_none() => theirs.is_some(),
            (None, _) | (_, None) => ours.founders.is_some() && ours.founders == self.founders,
            (ours, theirs) => ours == theirs,
        }
    }
}

fn levels(text: &str) -> Option<Levels> {
    let (min, max) = text.split_once('-')?;
    Some(Levels { min: min.parse().ok()?, max: max.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use hyper_util::rt::{TokioExecutor, TokioIo};

    use super::*;

    /// What the transport says of a call whose connection ended before it was sent.
    async fn never_sent() -> Status {
        let (here, _there) = tokio::io::duplex(1_024);
        let io = TokioIo::new(here);
        let made = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await;
        let (mut sender, connection) = made.unwrap();
        drop(connection);
        let call = http::Request::new(String::new());
        Status::from_error(Box::new(sender.send_request(call).await.unwrap_err()))
    }

    #[tokio::test]
    async fn a_call_that_meets_the_end_of_its_connection_is_made_once_more() {
        assert!(never_sent().await.message().contains("operation was canceled"));
        let ended = never_sent;
        for (what, first_answer, expected) in [
            ("it is answered", Ok(1), (Ok(1), 1)),
            ("its connection ended", Err(ended().await), (Ok(2), 2)),
            ("it is refused", Err(Status::unavailable("no")), (Err("no"), 1)),
            (
                "in words",
                Err(Status::cancelled("operation was canceled")),
                (Err("operation was canceled"), 1),
            ),
        ] {
            let (calls, first) = (Cell::new(0), Cell::new(Some(first_answer)));
            let answer = call_again(|| {
                calls.set(calls.get() + 1);
                std::future::ready(first.take().unwrap_or(Ok(2)))
            });
            let answer = answer.await;
            let answer = answer.as_ref().copied().map_err(Status::message);
            assert_eq!((answer, calls.get()), expected, "{what}");
        }
        let calls = Cell::new(0);
        let gone = async || {
            calls.set(calls.get() + 1);
            Err::<(), _>(ended().await)
        };
        assert!(call_again(gone).await.is_err());
        assert_eq!(calls.get(), 2, "not without end");
    }

    #[test]
    fn founders_know_each_other_by_their_list_and_all_others_by_the_drawn_id() {
        for (what, ours, theirs, same) in [
            ("both know the id", (7, 1), (7, 1), true),
            ("another cluster of the same founders", (7, 1), (8, 1), false),
            ("the sender does not know it yet", (7, 1), (0, 1), true),
            ("this node does not know it yet", (0, 1), (7, 1), true),
            ("not known anywhere yet", (0, 1), (0, 1), true),
            ("other founders", (0, 1), (0, 2), false),
            ("other founders, with an id", (0, 1), (7, 2), false),
            ("a stranger that says nothing", (7, 1), (0, 0), false),
            ("a stranger, while this cluster is founded", (0, 1), (0, 0), false),
            ("the leader that invites a node that waits", (0, 0), (7, 1), true),
            ("one that was not founded, to a node that waits", (0, 0), (0, 1), false),
        ] {
            let number = NonZeroU64::new;
            let ours = Identity {
                cluster_id: number(ours.0),
                founders: number(ours.1),
                node_id: NodeId::new(3).unwrap(),
            };
            let (cluster_id, founders) = (ClusterId::new(theirs.0), number(theirs.1));
            let envelope =
                Envelope { cluster_id, founders, sender: None, target: None, levels: None };
            assert_eq!(envelope.is_of_cluster_of(&ours), same, "{what}");
        }
    }
}
