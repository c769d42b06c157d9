//! What a later release would send: a relay in front of a node's peer listener that adds to each
//! message, both ways, fields that this release does not have, and that can answer forwarded calls
//! as only a later release would. Knows no cluster.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use futures_util::{Stream, StreamExt, future, stream};
use http::uri::PathAndQuery;
use prost::Message as _;
use prost::bytes::{Buf, BufMut, Bytes};
use quorate_proto::peer::v1::{AppendRequest, ForwardAnswers, Forwarded, StatusReport};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::client::Grpc as Caller;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};
use tower::Service;

/// Field 99 twice: a number, and a text.
const MORE: &[u8] = &[0x98, 0x06, 1, 0x9a, 0x06, 2, b'h', b'i'];

const FORWARD: &str = "/quorate.peer.v1.Peer/Forward";
const STATUS: &str = "/quorate.peer.v1.Peer/Status";
/// Entries, and heartbeats, each on a stream of its own.
const APPENDS: &str = "/quorate.peer.v1.Peer/AppendStream";

/// What is answered to forwarded calls in the place of the node's own answers, encoded.
type Instead = Arc<Mutex<Option<Bytes>>>;

pub(crate) struct Newer {
    relay: Relay,
    address: SocketAddr,
    serving: JoinHandle<()>,
}

#[derive(Clone)]
struct Relay {
    node: Channel,
    instead: Instead,
    /// In the node's reports of its status, in the place of its own.
    version: Arc<Mutex<String>>,
    /// The same: the hash of its state.
    hash: Arc<Mutex<Option<u64>>>,
    /// Entries do not get to the node.
    held: watch::Sender<bool>,
    /// How many messages had more than this release sends, by the call's path.
    messages: Arc<Mutex<BTreeMap<String, usize>>>,
    recorded: Arc<Mutex<Recorded>>,
}

/// The messages of calls as this release sent them, by path.
pub(crate) type Recorded = BTreeMap<String, Vec<Vec<Bytes>>>;

/// Calls of a path, and messages of a call, that are recorded.
const RECORDED_MAX: usize = 300;

impl Newer {
    pub(crate) async fn open(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let node = Endpoint::from_shared(format!("http://{target}")).expect("an address");
        let node = node.tcp_nodelay(true).connect_lazy();
        let (instead, version, hash, messages, recorded) = Default::default();
        let (held, _) = watch::channel(false);
        let relay = Relay { node, instead, version, hash, held, messages, recorded };
        let server = Server::builder().add_service(relay.clone());
        let serving = server.serve_with_incoming(TcpListenerStream::new(listener));
        let serving = tokio::spawn(async move { serving.await.expect("it serves") });
        Self { relay, address, serving }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// To the others the node is of this version.
    #[allow(dead_code, reason = "for tests of processes")]
    pub(crate) fn set_version(&self, version: &str) {
        version.clone_into(&mut self.relay.version.lock().unwrap());
    }

    /// From now on no entries get to the node, but all else does; or what was held back, too.
    #[allow(dead_code, reason = "for tests of processes")]
    pub(crate) fn hold_entries(&self, hold: bool) {
        self.relay.held.send_replace(hold);
    }

    /// To the others the node's state has this hash; `None`: its own again.
    #[allow(dead_code, reason = "for tests in one process")]
    pub(crate) fn set_hash(&self, hash: Option<u64>) {
        *self.relay.hash.lock().unwrap() = hash;
    }

    /// From now on this is the answer to each forwarded call, whatever the node does; `None`: the
    /// node's own again.
    #[allow(dead_code, reason = "for tests in one process")]
    pub(crate) fn answer(&self, encoded: Option<Bytes>) {
        *self.relay.instead.lock().unwrap() = encoded;
    }

    /// What others have sent to the node, until now.
    #[allow(dead_code, reason = "for tests in one process")]
    pub(crate) fn recorded(&self) -> Recorded {
        self.relay.recorded.lock().unwrap().clone()
    }

    /// Calls whose messages had more.
    #[allow(dead_code, reason = "for tests in one process")]
    pub(crate) fn relayed(&self) -> Vec<String> {
        self.relay.messages.lock().unwrap().keys().cloned().collect()
    }
}

impl Drop for Newer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn with_more(message: &[u8]) -> Bytes {
    [message, MORE].concat().into()
}

fn has_entries(append: &Bytes) -> bool {
    !AppendRequest::decode(append.clone()).expect("an append").entries.is_empty()
}

/// A field that comes twice counts as it came last, and of a message in a field each of its own:
/// field 11 of what is in field 1 (`node/status.rs`).
fn with_version(report: &[u8], version: &str) -> Bytes {
    let length = u8::try_from(version.len()).expect("a short version");
    [report, &[0x0a, length + 2, 0x5a, length], version.as_bytes()].concat().into()
}

/// The same with field 6.
fn with_hash(report: &[u8], hash: u64) -> Bytes {
    [report, &[0x0a, 9, 0x31], &hash.to_le_bytes()].concat().into()
}

impl Relay {
    /// A call begins; its number, if it is recorded.
    fn begin(&self, path: &str) -> Option<usize> {
        let mut recorded = self.recorded.lock().unwrap();
        let calls = recorded.entry(path.to_owned()).or_default();
        (calls.len() < RECORDED_MAX).then(|| {
            calls.push(Vec::new());
            calls.len() - 1
        })
    }

    fn record(&self, path: &str, call: usize, message: &Bytes) {
        let mut recorded = self.recorded.lock().unwrap();
        let messages = recorded.get_mut(path).and_then(|calls| calls.get_mut(call));
        if let Some(messages) = messages.filter(|messages| messages.len() < RECORDED_MAX) {
            messages.push(message.clone());
        }
    }

    fn asked(&self, path: &str, message: &Bytes) -> Bytes {
        *self.messages.lock().unwrap().entry(path.to_owned()).or_default() += 1;
        if path != FORWARD {
            return with_more(message);
        }
        let mut calls = Forwarded::decode(message.clone()).expect("forwarded calls");
        calls.calls.iter_mut().for_each(|call| *call = with_more(call));
        with_more(&calls.encode_to_vec())
    }

    fn answered(&self, path: &str, message: &Bytes) -> Bytes {
        if path == STATUS {
            let mut report = StatusReport::decode(message.clone()).expect("a report");
            let version = self.version.lock().unwrap().clone();
            if !version.is_empty() {
                report.report = with_version(&report.report, &version);
            }
            if let Some(hash) = *self.hash.lock().unwrap() {
                report.report = with_hash(&report.report, hash);
            }
            return with_more(&report.encode_to_vec());
        }
        if path != FORWARD {
            return with_more(message);
        }
        let mut answers = ForwardAnswers::decode(message.clone()).expect("answers");
        let instead = self.instead.lock().unwrap().clone();
        for answer in &mut answers.answers {
            *answer = instead.clone().unwrap_or_else(|| with_more(answer));
        }
        with_more(&answers.encode_to_vec())
    }
}

impl NamedService for Relay {
    const NAME: &'static str = "quorate.peer.v1.Peer";
}

impl Service<http::Request<Body>> for Relay {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future =
        Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send + 'static>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let call = OneCall { relay: self.clone(), path: request.uri().path().to_owned() };
        Box::pin(async move { Ok(Grpc::new(Raw).streaming(call, request).await) })
    }
}

/// A call of one message is a stream of one, as far as the transport knows.
struct OneCall {
    relay: Relay,
    path: String,
}

type Answers = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

impl StreamingService<Bytes> for OneCall {
    type Response = Bytes;
    type ResponseStream = Answers;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Answers>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let (relay, path) = (self.relay.clone(), self.path.clone());
        Box::pin(async move {
            let (metadata, extensions, messages) = request.into_parts();
            let call = relay.begin(&path);
            let (asks, asked) = (relay.clone(), path.clone());
            let (held, appends) = (relay.held.subscribe(), path == APPENDS);
            let messages = messages.then(move |message| {
                let mut held = held.clone();
                let waits = appends && message.as_ref().is_ok_and(has_entries);
                async move {
                    drop(held.wait_for(|held| !(*held && waits)).await);
                    message
                }
            });
            // What breaks off ends.
            let messages = messages.take_while(|message| future::ready(message.is_ok()));
            let messages =
                messages.filter_map(|message| future::ready(message.ok())).map(move |message| {
                    if let Some(call) = call {
                        asks.record(&asked, call, &message);
                    }
                    asks.asked(&asked, &message)
                });
            let mut caller = Caller::new(relay.node.clone());
            let ready = caller.ready().await;
            ready.map_err(|error| Status::unavailable(error.to_string()))?;
            let request = Request::from_parts(metadata, extensions, messages);
            let to = path.parse::<PathAndQuery>().expect("a path");
            let answers = caller.streaming(request, to, Raw).await?;
            let (metadata, mut answers, extensions) = answers.into_parts();
            // The first is waited for: a refusal stays one, with its trailers.
            let first = match path.ends_with("Stream") || path == FORWARD {
                true => None,
                false => answers.message().await?,
            };
            let answers = stream::iter(first.map(Ok)).chain(answers);
            let answers = answers.map(move |answer| Ok(relay.answered(&path, &answer?)));
            Ok(Response::from_parts(metadata, answers.boxed(), extensions))
        })
    }
}

/// Messages as they are.
#[derive(Clone, Copy)]
pub(crate) struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
