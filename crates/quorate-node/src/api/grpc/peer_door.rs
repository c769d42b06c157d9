//! The one way in for calls of other nodes: which node may make which call. What a call says is
//! checked by `guard.rs`, where that takes more than its sender. Who is refused here is told to the
//! audit log.

use std::error::Error as _;
use std::sync::Arc;

use quorate_log::NodeId;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};

use crate::api::grpc::peer::PeerService;
use crate::api::grpc::peer_error::PeerError;
use crate::api::grpc::told;
use crate::audit::{Decision, Event, Subject};
use crate::net::connections::Line;
use crate::net::tls::TellsRefused;
use crate::node::Node;
use crate::peers::Envelope;
use crate::wall;

/// What a connection has in the place of a method that was refused before its first call.
const HANDSHAKE: &str = "quorate.peer.v1.Peer handshake";

macro_rules! methods {
    ($($method:ident,)*) => {
        /// Each call that the listener for peers takes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum PeerMethod { $($method,)* }

        impl PeerMethod {
            fn path(self) -> &'static str {
                match self {
                    $(Self::$method => concat!("quorate.peer.v1.Peer/", stringify!($method)),)*
                }
            }
        }
    };
}

methods! {
    Identify,
    Append,
    AppendStream,
    Vote,
    PreVote,
    TransferLeader,
    InstallSnapshot,
    Forward,
    ReadIndex,
    Moved,
    Recall,
    Succeed,
    Status,
}

/// The senders from which a call is taken.
enum From {
    /// The answer could harm nothing, and the caller may not know yet which node this is.
    Anybody,
    /// A node that names this cluster and this node.
    OfCluster,
    /// As `OfCluster`, but a node that is of no cluster yet becomes one of the caller's.
    Leader,
    /// A member by the membership in effect.
    Member,
    /// A node of another cluster, too. What it says is looked at in `node/succession.rs`.
    OtherCluster,
}

impl PeerMethod {
    fn from(self) -> From {
        match self {
            Self::Identify => From::Anybody,
            Self::Vote | Self::PreVote => From::OfCluster,
            Self::Append | Self::AppendStream | Self::InstallSnapshot => From::Leader,
            Self::TransferLeader
            | Self::Forward
            | Self::ReadIndex
            | Self::Moved
            | Self::Recall
            | Self::Status => From::Member,
            Self::Succeed => From::OtherCluster,
        }
    }
}

/// A call that has come in.
pub(super) struct PeerCall<T> {
    pub(super) message: T,
    pub(super) envelope: Envelope,
    /// Its connection has shown a certificate of the node that says it sent this.
    pub(super) is_proved: bool,
    /// The connection takes no more: a stream on it is to end.
    pub(super) leaving: CancellationToken,
}

impl<T> PeerCall<T> {
    /// The node that says it sent this.
    pub(super) fn sender(&self) -> Result<NodeId, Status> {
        sender(&self.envelope)
    }
}

/// The node that says it sent a call.
///
/// # Errors
/// The call does not say.
pub(super) fn sender(envelope: &Envelope) -> Result<NodeId, Status> {
    envelope.sender.ok_or_else(|| PeerError::NoSender.into())
}

/// As messages say it.
pub(super) fn name(node: Option<NodeId>) -> String {
    node.map_or("no node".to_owned(), |id| format!("node {id}"))
}

impl PeerService {
    /// Lets a call in.
    ///
    /// # Errors
    /// It is of another cluster, for another node, or from a node that may not make it.
    pub(super) async fn enter<T>(
        &self,
        method: PeerMethod,
        request: Request<T>,
    ) -> Result<PeerCall<T>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let envelope = Envelope::of(&metadata);
        let line = Line::of(&extensions);
        let (proved, said, leaving) = (line.node(), envelope.sender, line.leaving());
        let is_proved = proved.is_some() && proved == said;
        let call = PeerCall { message, envelope, is_proved, leaving };
        let allowed = match method.from() {
            _ if proved.is_some_and(|node| Some(node) != said) => {
                Err(PeerError::OtherSender { proved, said }.into())
            }
            From::Anybody => Ok(()),
            From::OfCluster => self.check(&metadata),
            From::Leader => self.adopt(&metadata).await,
            From::Member => self.check_member(&metadata).map(drop),
            From::OtherCluster => sender(&envelope).map(drop),
        };
        match allowed {
            Ok(()) => Ok(call),
            Err(refused) => {
                let (sender, message) = (call.envelope.sender.map(NodeId::get), refused.message());
                tracing::debug!(?method, sender, message, "refused a call of another node");
                if is_for_sender(&refused) {
                    tell(&self.node, method.path(), &line, refused.code(), message);
                }
                Err(refused)
            }
        }
    }
}

/// Whether it is for who calls that a call is refused, and not for what this node is or can do.
fn is_for_sender(refused: &Status) -> bool {
    let error = refused.source().and_then(|source| source.downcast_ref::<PeerError>());
    matches!(
        error,
        Some(
            PeerError::OtherCluster { .. }
                | PeerError::NoSender
                | PeerError::OtherSender { .. }
                | PeerError::Refused { .. }
        )
    )
}

/// Tells the audit log of connections that are refused before their first call.
pub(crate) fn refused_handshakes(node: Arc<Node>) -> TellsRefused {
    Arc::new(move |line, why| tell(&node, HANDSHAKE, line, Code::Unauthenticated, why))
}

fn tell(node: &Node, method: &'static str, line: &Line, code: Code, why: &str) {
    if !node.audit().is_on() {
        return;
    }
    node.audit().tell_of_peer(Event {
        time: wall::stamp(),
        node: node.id(),
        request: String::new(),
        principal: proved(line),
        method,
        subject: Subject::default(),
        decision: Decision::Denied,
        code: told::name(code),
        reason: Some(why.chars().take(told::REASON_MAX).collect()),
        revision: None,
        from: line.address(),
        left_out: 0,
    });
}

/// Who a connection has proved to be, as principals are named.
fn proved(line: &Line) -> Option<String> {
    if let Some(node) = line.node() {
        return Some(format!("node:{node}"));
    }
    let certificate = line.certificate()?;
    let name = certificate.spiffe.as_ref().or(certificate.common_name.as_ref())?;
    Some(format!("certificate:{name}"))
}
