//! Connections to the other nodes, and the envelope of every call to them: which cluster, which node, by when.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quorate_proto::peer::v1::peer_client::PeerClient;
use quorate_proto::peer::v1::{Forwarded, Payloads, ReadIndexRequest, ReadIndexResponse};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::net::Net;
use crate::streams::Streams;

/// Metadata of every peer call: the sender's cluster, 16 hex digits.
pub(crate) const CLUSTER_HEADER: &str = "quorate-cluster-id";
/// Metadata of every peer call: the node it is meant for, decimal.
pub(crate) const TARGET_HEADER: &str = "quorate-target-id";

/// Metadata of the Raft library's messages to a node that the sender counts as a voter; present or not.
const VOTER_HEADER: &str = "quorate-target-votes";

/// One peer message at most: an append of one entry of the largest size (4 MiB) or of many (about 1 MiB), with room.
pub(crate) const MESSAGE_MAX: usize = 16 * 1024 * 1024;

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// A connection that does not answer a ping within twice this is given up.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// A client for one node.
pub(crate) type Client = PeerClient<Channel>;

/// Kinds of traffic that must not wait behind each other have a connection each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
    cluster_id: AtomicU64,
    net: Net,
    channels: Mutex<HashMap<(String, Lane), Channel>>,
    /// Nodes that did not answer the last message of the Raft library.
    lost: Mutex<HashSet<u64>>,
    /// Calls for the leader.
    pub(crate) forwards: Streams<Forwarded, Payloads>,
    /// Questions for the index that linearizable reads have to wait for.
    pub(crate) reads: Streams<ReadIndexRequest, ReadIndexResponse>,
}

impl Peers {
    /// `cluster_id` 0: not of a cluster yet.
    pub(crate) fn new(cluster_id: u64, net: Net) -> Self {
        Self {
            cluster_id: AtomicU64::new(cluster_id),
            net,
            channels: Mutex::default(),
            lost: Mutex::default(),
            forwards: Streams::new(),
            reads: Streams::new(),
        }
    }

    /// The network that these connections are made in.
    pub(crate) fn net(&self) -> &Net {
        &self.net
    }

    pub(crate) fn cluster_id(&self) -> u64 {
        self.cluster_id.load(Ordering::Acquire)
    }

    pub(crate) fn set_cluster_id(&self, cluster_id: u64) {
        self.cluster_id.store(cluster_id, Ordering::Release);
    }

    /// A node answered: told once after it did not.
    pub(crate) fn answered(&self, id: u64, address: &str) {
        if self.lost.lock().expect("invariant: nothing panics under this lock").remove(&id) {
            tracing::info!(id, address, "a node is reachable again");
        }
    }

    /// A node did not answer: told once until it does.
    pub(crate) fn missed(&self, id: u64, address: &str, reason: &str) {
        if self.lost.lock().expect("invariant: nothing panics under this lock").insert(id) {
            tracing::warn!(id, address, reason, "a node is unreachable");
        }
    }

    /// This node is counted as a voter and has no data: told once.
    pub(crate) fn refused_as_voter(&self, id: u64) {
        if self.lost.lock().expect("invariant: nothing panics under this lock").insert(id) {
            tracing::error!(
                id,
                "the cluster counts this node as a voter, but its data directory is empty: its disk was lost; \
                 stop it and replace it by a node with a new id"
            );
        }
    }

    /// A client for the node at an address; connects when it is first used.
    ///
    /// # Errors
    /// The address is no `host:port`.
    pub(crate) fn client(&self, address: &str, lane: Lane) -> Result<Client, Status> {
        let mut channels = self.channels.lock().expect("invariant: nothing panics under this lock");
        let key = (address.to_owned(), lane);
        let channel = match channels.get(&key) {
            Some(channel) => channel.clone(),
            None => {
                let channel = self.net.connect(&endpoint(address)?);
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
        target: u64,
        message: T,
        timeout: Option<Duration>,
    ) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(timeout) = timeout {
            request.set_timeout(timeout);
        }
        let cluster = format!("{:016x}", self.cluster_id());
        for (name, value) in [(CLUSTER_HEADER, cluster), (TARGET_HEADER, target.to_string())] {
            let value = value.parse().expect("invariant: digits are valid metadata");
            request.metadata_mut().insert(name, value);
        }
        request
    }
}

fn endpoint(address: &str) -> Result<Endpoint, Status> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|_| {
        Status::invalid_argument(format!("peer address {address:?} is no host:port"))
    })?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true))
}

/// Marks a message as one to a voter.
pub(crate) fn mark_to_voter<T>(request: &mut Request<T>) {
    request.metadata_mut().insert(VOTER_HEADER, MetadataValue::from_static("1"));
}

/// Whether the sender of a call counts this node as a voter.
pub(crate) fn is_to_voter(metadata: &MetadataMap) -> bool {
    metadata.contains_key(VOTER_HEADER)
}

/// The envelope of a call that arrived: (cluster id, target id), 0 where not set.
pub(crate) fn envelope(metadata: &MetadataMap) -> (u64, u64) {
    let text = |name| metadata.get(name).and_then(|value| value.to_str().ok());
    let cluster = text(CLUSTER_HEADER).and_then(|hex| u64::from_str_radix(hex, 16).ok());
    let target = text(TARGET_HEADER).and_then(|decimal| decimal.parse().ok());
    (cluster.unwrap_or(0), target.unwrap_or(0))
}
