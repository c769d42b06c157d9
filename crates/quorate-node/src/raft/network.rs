//! The Raft library's calls to other nodes, over the peer API. How its types become messages stands
//! in `network/messages.rs`.

mod appends;
pub(crate) mod messages;
mod round_trip;

use std::future::Future;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use openraft::OptionalSend;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, v2::RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError,
    StreamAppendResult, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::vote::RaftLeaderId as _;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use quorate_log::{NodeId, SnapshotFile};
use quorate_proto::peer::v1::SnapshotChunk;
use tonic::{Request, Response, Status};

use crate::applied::Applied;
use crate::meters::{Meters, OfPeer};
use crate::peers::{Client, Lane, Peers, call_again, mark_to_voter};
use crate::raft::network::appends::Appends;
use crate::raft::network::messages::Asked;
use crate::raft::network::round_trip::RoundTrip;
use crate::raft::recall::Recall;
use crate::runtime::blocking;
use crate::types::{Member, TypeConfig, Vote, WireError, is_absurd};

/// Snapshots travel in pieces of this size.
pub(crate) const CHUNK_BYTES: usize = 256 * 1024;

/// A snapshot that is not transferred and installed by then is given up and begun anew.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(600);

type RpcError = RPCError<TypeConfig>;
type RaftSnapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotFile<TypeConfig>>;

/// Makes a [`Connection`] for each member.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    peers: Arc<Peers>,
    applied: Arc<Applied>,
    recall: Arc<Recall>,
    meters: Arc<Meters>,
    stood: Arc<Stood>,
}

/// The latest term in which this node stood for election: it asks each member by itself.
#[derive(Debug, Default)]
struct Stood(AtomicU64);

impl Stood {
    /// It asks for a vote in this term. Whether an election begins with that.
    fn begins(&self, term: u64) -> bool {
        self.0.fetch_max(term, Ordering::Relaxed) < term
    }
}

/// Calls one member.
#[derive(Debug)]
pub(crate) struct Connection {
    peers: Arc<Peers>,
    applied: Arc<Applied>,
    recall: Arc<Recall>,
    /// How long its answers to heartbeats take.
    round_trips: Histogram,
    stood: Arc<Stood>,
    elections: Counter,
    target: NodeId,
    /// Where it was when this was made; the address book counts more.
    first_address: String,
    /// Where its append calls go: heartbeats do not wait behind entries.
    appends: Lane,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: NodeId, node: &Member) -> Connection {
        self.connection(target, node, Lane::Append)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, node: &Member) -> Connection {
        self.connection(target, node, Lane::Control)
    }
}

impl Network {
    pub(crate) fn new(
        peers: Arc<Peers>,
        applied: Arc<Applied>,
        recall: Arc<Recall>,
        meters: Arc<Meters>,
    ) -> Self {
        Self { peers, applied, recall, meters, stood: Arc::default() }
    }

    fn connection(&self, target: NodeId, node: &Member, appends: Lane) -> Connection {
        let Self { peers, applied, recall, meters, stood } = self.clone();
        let round_trips = meters.peer_rtt.get_or_create_owned(&OfPeer { peer: target.get() });
        let elections = meters.elections.clone();
        let first_address = node.peer_address.clone();
        Connection {
            peers,
            applied,
            recall,
            round_trips,
            stood,
            elections,
            target,
            first_address,
            appends,
        }
    }
}

impl Connection {
    /// Where to try the member now: the library keeps a connection for as long as a node leads, and
    /// a member may move.
    fn address(&self) -> String {
        self.peers.book.address(self.target, &self.first_address)
    }

    /// A message to the member in its envelope; `timeout` `None`: a stream that lives on.
    fn request<T>(&self, message: T, timeout: Option<Duration>) -> Request<T> {
        let mut request = self.peers.request(self.target, message, timeout);
        let votes = {
            let state = self.applied.lock();
            state.membership.voter_ids().any(|id| id == self.target)
        };
        if votes {
            mark_to_voter(&mut request);
        }
        request
    }

    /// A node steps down for a later term also where it is answered with one: the answer may come
    /// from any program.
    fn check_answer(&self, asked: &Vote, answered: &Vote) -> Result<(), RpcError> {
        let (ours, theirs) = (asked.leader_id().term(), answered.leader_id().term());
        if !is_absurd(theirs, ours) {
            return Ok(());
        }
        let target = self.target;
        let why = format!("node {target} answers with term {theirs}, this node is at {ours}");
        tracing::debug!(why, "an answer is refused");
        self.peers.book.missed(target, &self.address());
        Err(unreachable(&Status::failed_precondition(why)))
    }

    /// Sends a message that may come twice, and waits for its answer.
    async fn call<M, A, F>(
        &self,
        lane: Lane,
        message: M,
        option: &RPCOption,
        send: impl Fn(Client, Request<M>) -> F,
    ) -> Result<A, RpcError>
    where
        M: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let address = self.address();
        let client = self.peers.client(self.target, &address, lane).map_err(|s| unreachable(&s))?;
        let timeout = option.soft_ttl();
        let answer =
            call_again(|| send(client.clone(), self.request(message.clone(), Some(timeout))));
        let answer = tokio::time::timeout(timeout, answer);
        match answer.await {
            Ok(Ok(response)) => {
                self.peers.answered(self.target, &address);
                Ok(response.into_inner())
            }
            Ok(Err(status)) => {
                self.peers.missed(self.target, &address, status.message());
                Err(unreachable(&status))
            }
            Err(elapsed) => {
                self.peers.missed(self.target, &address, "no answer in time");
                Err(RPCError::Unreachable(Unreachable::new(&elapsed)))
            }
        }
    }
}

impl RaftNetworkV2<TypeConfig> for Connection {
    type SnapshotData = SnapshotFile<TypeConfig>;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        let (asked, append) = (Asked::by(&rpc), messages::append_to_wire(&rpc));
        let answer = self.call(self.appends, append, &option, async |mut client, append| {
            client.append(append).await
        });
        let answer = messages::appended_from_wire(answer.await?).map_err(unreadable)?;
        let answer = messages::as_alone(answer, &asked);
        if let AppendEntriesResponse::HigherVote(vote) = &answer {
            self.check_answer(&rpc.vote, vote)?;
        }
        Ok(answer)
    }

    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        _option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RpcError>>, RpcError>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            // The library waits out its backoff inside this stream, so a request is taken before a
            // connection is tried: else a peer that refuses connections would be tried without a
            // pause.
            let Some(first) = input.next().await else { return Ok(stream::empty().boxed()) };
            let (me, asked) = (&*self, first.vote);
            let term = asked.leader_id().term();
            let address = self.address();
            let client = self.peers.client(self.target, &address, self.appends);
            let client = client.map_err(|status| unreachable(&status))?;
            // A heartbeat is one message and its answer; entries come in a row.
            let is_heartbeat = matches!(self.appends, Lane::Control);
            let mut round_trip = RoundTrip::new(is_heartbeat.then(|| self.round_trips.clone()));
            let input = input.map(|append| messages::append_to_wire(&append));
            let appends = Appends::new(messages::append_to_wire(&first), input);
            let opened = call_again(|| {
                let (mut client, appends) = (client.clone(), appends.send());
                async move {
                    let appends =
                        appends.ok_or_else(|| Status::aborted("the stream has broken"))?;
                    client.append_stream(me.request(appends, None)).await
                }
            });
            let answers = match opened.await {
                Ok(answers) => answers.into_inner(),
                Err(status) => {
                    round_trip.failed();
                    self.peers.missed(self.target, &address, status.message());
                    return Err(unreachable(&status));
                }
            };
            let answers = answers.map(move |answer| match answer {
                Ok(answer) => {
                    me.peers.answered(me.target, &address);
                    round_trip.answered();
                    let answer = messages::appended_from_wire(answer).map_err(unreadable)?;
                    match &answer {
                        Ok(acknowledged) => me.recall.note(me.target, term, *acknowledged),
                        Err(StreamAppendError::HigherVote(vote)) => {
                            me.check_answer(&asked, vote)?;
                        }
                        Err(_) => {}
                    }
                    Ok(answer)
                }
                Err(status) => {
                    round_trip.failed();
                    me.peers.missed(me.target, &address, status.message());
                    Err(unreachable(&status))
                }
            });
            Ok(answers.boxed() as BoxStream<'s, _>)
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let term = rpc.vote.leader_id().term();
        let may_stand = self.recall.check_candidate(term, rpc.last_log_id).await;
        may_stand.map_err(|error| unreachable(&error.into()))?;
        if self.stood.begins(term) {
            self.elections.inc();
        }
        let ballot = messages::ballot_to_wire(&rpc);
        let answer = self.call(Lane::Control, ballot, &option, async |mut client, ballot| {
            client.vote(ballot).await
        });
        let answer = messages::voted_from_wire(answer.await?).map_err(unreadable)?;
        self.check_answer(&rpc.vote, &answer.vote)?;
        if answer.vote_granted {
            self.recall.note(self.target, term, None);
        }
        Ok(answer)
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let may_stand = self.recall.check_stands(rpc.last_log_id).await;
        may_stand.map_err(|error| unreachable(&error.into()))?;
        self.peers.stands();
        let ballot = messages::ballot_to_wire(&rpc);
        let answer = self.call(Lane::Control, ballot, &option, async |mut client, ballot| {
            client.pre_vote(ballot).await
        });
        let answer = messages::voted_from_wire(answer.await?).map_err(unreadable)?;
        self.check_answer(&rpc.vote, &answer.vote)?;
        Ok(answer)
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        let transfer = messages::transfer_to_wire(&request);
        let answer = self.call(Lane::Control, transfer, &option, async |mut client, transfer| {
            client.transfer_leader(transfer).await
        });
        messages::transferred_from_wire(answer.await?).map_err(unreadable)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: RaftSnapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let client = self.peers.client(self.target, &self.address(), Lane::Bulk);
        let mut client = client.map_err(|status| Unreachable::new(&status))?;
        let chunks = chunks(&snapshot.snapshot, &vote);
        let request = self.request(chunks, Some(SNAPSHOT_TIMEOUT));
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            answer = client.install_snapshot(request) => match answer {
                Ok(answer) => {
                    let answer = messages::installed_from_wire(answer.into_inner());
                    let answer = answer.map_err(unreadable)?;
                    self.check_answer(&vote, &answer.vote)?;
                    self.peers.sent_snapshot(self.target, None);
                    Ok(answer)
                }
                Err(status) => {
                    self.peers.sent_snapshot(self.target, Some(&status));
                    Err(StreamingError::Unreachable(Unreachable::new(&status)))
                }
            },
        }
    }
}

/// The file's bytes in pieces, behind the leader's vote; the next one is read when the network
/// takes it. A file that cannot be read ends the stream early, and the receiver finds that it is
/// not whole.
fn chunks(
    file: &SnapshotFile<TypeConfig>,
    vote: &Vote,
) -> impl Stream<Item = SnapshotChunk> + Send + 'static {
    let vote = Some(messages::vote_to_wire(vote));
    let first = SnapshotChunk { vote, data: Bytes::new() };
    let rest = stream::unfold(file.raw(), |mut raw| async {
        let read = blocking(move || read_chunk(&mut raw).map(|data| (data, raw))).await;
        match read.map_err(std::io::Error::other).and_then(|read| read) {
            Ok((data, _)) if data.is_empty() => None,
            Ok((data, raw)) => Some((SnapshotChunk { vote: None, data }, raw)),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "reading the snapshot to send failed");
                None
            }
        }
    });
    stream::once(std::future::ready(first)).chain(rest)
}

/// Reads a snapshot file piece by piece until its end or until `take` wants no more.
pub(crate) fn read_chunks(
    file: &SnapshotFile<TypeConfig>,
    mut take: impl FnMut(Bytes) -> bool,
) -> std::io::Result<()> {
    let mut raw = file.raw();
    loop {
        let chunk = read_chunk(&mut raw)?;
        if chunk.is_empty() || !take(chunk) {
            return Ok(());
        }
    }
}

/// The next piece; empty at the end.
fn read_chunk(raw: &mut impl Read) -> std::io::Result<Bytes> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let length = raw.read(&mut chunk)?;
    chunk.truncate(length);
    Ok(chunk.into())
}

fn unreadable(error: WireError) -> RpcError {
    RPCError::Network(NetworkError::new(&error))
}

/// Any refusal makes the library wait a little before it tries that node again.
fn unreachable(status: &Status) -> RpcError {
    RPCError::Unreachable(Unreachable::new(status))
}
