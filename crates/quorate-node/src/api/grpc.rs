//! The gRPC services: thin handlers that convert, call the node, and convert back.

mod arrived;
mod codes;
mod convert;

pub(crate) mod admin;
mod backup;
pub(crate) mod door;
mod fetch;
mod forwarded;
mod guard;
mod inspect;
mod pages;
pub(crate) mod peer;
pub(crate) mod peer_door;
mod peer_error;
pub(crate) mod registry;
mod renew;
mod rights;
pub(crate) mod routes;
mod told;
mod touched;
mod watch;

use futures_util::{Stream, StreamExt, stream};
use quorate_log::NodeId;
use quorate_proto::ClusterId;
use quorate_proto::v1::ResponseHeader;
use tokio::time::Instant;
use tonic::Status;

pub(in crate::api) use crate::api::grpc::arrived::Arrived;
pub(in crate::api) use crate::api::grpc::fetch::Local;
pub(in crate::api) use crate::api::grpc::told::name as code_name;
pub(in crate::api) use crate::api::grpc::watch::nothing_comes;
use crate::error::NodeError;
use crate::node::status::Lead;
use crate::node::{Consistency, Node};

/// The calls of clients as they are counted: path, and whether the caller and the node send
/// streams.
pub(crate) fn measured() -> impl Iterator<Item = (&'static str, (bool, bool))> {
    door::Method::ALL.iter().map(|method| method.measured())
}

/// A stream of answers that ends with a status when the node begins to stop.
fn until_stopped<T, S>(
    answers: S,
    node: &Node,
) -> impl Stream<Item = Result<T, Status>> + Send + use<T, S>
where
    T: Send + 'static,
    S: Stream<Item = Result<T, Status>> + Send,
{
    with_news(answers, stream::pending(), node)
}

/// Answers until the node stops, as [`until_stopped`], and news between them, which comes seldom
/// and does not end the stream.
fn with_news<T, S, N>(
    answers: S,
    news: N,
    node: &Node,
) -> impl Stream<Item = Result<T, Status>> + Send + use<T, S, N>
where
    T: Send + 'static,
    S: Stream<Item = Result<T, Status>> + Send,
    N: Stream<Item = T> + Send + 'static,
{
    let (id, stop) = (node.id(), node.stop().clone());
    let stopping = async move {
        stop.cancelled().await;
        Err(NodeError::Stopping { node: id }.into())
    };
    // Whichever comes first ends it: the answers, or the stop with its status.
    let answers = answers.map(Some).chain(stream::once(std::future::ready(None)));
    let stopping = stream::once(stopping).map(Some).chain(stream::once(std::future::ready(None)));
    let news = news.map(|news| Some(Ok(news)));
    // Among others each is polled only when it has woken, and not for each answer.
    let seldom = stream::select_all([stopping.boxed(), news.boxed()]);
    stream::select(seldom, answers)
        .take_while(|answer| std::future::ready(answer.is_some()))
        .filter_map(std::future::ready)
}

/// The header of an answer that stands at this revision.
fn header(node: &Node, revision: u64, age_ms: u64) -> Option<ResponseHeader> {
    let Lead { term, leader, address } = node.lead();
    Some(ResponseHeader {
        cluster_id: ClusterId::to_wire(node.peers().cluster_id()),
        node_id: node.id().get(),
        term,
        leader_id: leader.map_or(0, NodeId::get),
        leader_address: address,
        revision,
        age_ms,
        members_as_of: node.members_as_of(),
    })
}

/// Whether what a request carries is of another cluster, and so means nothing here. `of`: as it
/// says; 0: it does not.
fn is_foreign(node: &Node, of: u64) -> bool {
    ClusterId::new(of).is_some_and(|of| Some(of) != node.peers().cluster_id())
}

/// The revision that a read has to wait for, if it is one of this cluster.
fn min_revision(node: &Node, revision: u64, cluster_id: u64) -> u64 {
    if is_foreign(node, cluster_id) { 0 } else { revision }
}

/// How old an answer may be that was read so; `fresh_at`: everything from before is in it.
fn age_ms(fresh_at: Option<Instant>, consistency: Consistency) -> u64 {
    match consistency {
        Consistency::Linearizable => 0,
        Consistency::Local => crate::node::reads::age_ms(fresh_at),
    }
}
