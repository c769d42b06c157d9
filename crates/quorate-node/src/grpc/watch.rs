//! The Watch call: reads the subscription, then turns a [`Subscription`]'s messages into answers, and takes in acks.

use std::sync::Arc;

use futures_util::{Stream, StreamExt, stream};
use quorate_proto::v1::watch_request::Kind as Ask;
use quorate_proto::v1::watch_response::Kind;
use quorate_proto::v1::{
    WatchBookmark, WatchDelta, WatchLeader, WatchRequest, WatchResponse, WatchSnapshot,
    WatchSubscribe,
};
use quorate_state::{Invalid, Revision};
use tokio::time::{Instant, timeout_at};
use tonic::{Status, Streaming};

use crate::convert;
use crate::error::{CallError, NodeError};
use crate::grpc::{header, until_stopped};
use crate::node::Node;
use crate::subscription::{Begin, Message, Positioned, Subscription};
use crate::watch::Filter;

/// Answers a Watch call.
pub(crate) async fn answers(
    node: Arc<Node>,
    mut asks: Streaming<WatchRequest>,
    deadline: Instant,
) -> Result<impl Stream<Item = Result<WatchResponse, Status>> + Send + use<>, Status> {
    let first = timeout_at(deadline, asks.message()).await;
    let first =
        first.map_err(|_| Status::deadline_exceeded("no subscription arrived in time"))??;
    let Some(WatchRequest { kind: Some(Ask::Subscribe(subscribe)) }) = first else {
        let must = "the first message must subscribe";
        return Err(CallError::from(Invalid::text("kind", "", must)).into());
    };
    let WatchSubscribe { namespace, services, prefix, statuses, .. } = &subscribe;
    let filter = convert::filter(namespace, services, prefix, statuses);
    let filter = filter.map_err(CallError::from)?;
    node.check_member()?;
    let begin = begin(&node, &subscribe, deadline).await?;
    let subscription = Subscription::start(
        node.applied.clone(),
        filter.clone(),
        begin,
        node.leadership.views(),
        node.tunables.bookmark(),
    );
    let acks = asks.filter_map(take_ack);
    let source = (node.clone(), filter, subscription, true);
    let messages = stream::unfold(source, |(node, filter, mut subscription, first)| async move {
        let positioned = subscription.next().await;
        let answer = answer(&node, &filter, positioned, first);
        Some((Ok(answer), (node, filter, subscription, false)))
    });
    Ok(until_stopped(stream::select(messages, acks), &node))
}

/// Where the subscription begins, once this node is that far.
async fn begin(
    node: &Node,
    subscribe: &WatchSubscribe,
    deadline: Instant,
) -> Result<Begin, NodeError> {
    let wanted = subscribe.from_revision;
    if wanted == 0 {
        return Ok(Begin::Snapshot);
    }
    if ![0, node.peers.cluster_id()].contains(&subscribe.cluster_id) {
        return Ok(Begin::Reset);
    }
    let reached = node.await_applied(deadline, |position| position.revision >= wanted).await;
    let applied = node.applied.position().revision;
    reached.map_err(|_| NodeError::Behind { applied, wanted })?;
    Ok(Begin::After(Revision(wanted)))
}

/// Acks are only taken in so far; an error of the caller's side ends the stream.
async fn take_ack(ask: Result<WatchRequest, Status>) -> Option<Result<WatchResponse, Status>> {
    match ask {
        Ok(WatchRequest { kind: Some(Ask::Ack(_)) }) => None,
        Ok(_) => {
            let must = "a stream subscribes once; open another one";
            Some(Err(CallError::from(Invalid::text("kind", "subscribe", must)).into()))
        }
        Err(status) => Some(Err(status)),
    }
}

fn answer(node: &Node, filter: &Filter, positioned: Positioned, first: bool) -> WatchResponse {
    let Positioned { message, previous, revision } = positioned;
    let with_header = first || matches!(message, Message::Leader(_));
    let kind = match message {
        Message::Snapshot { services, reset, last } => {
            let services = services.iter().map(convert::service_to_wire).collect();
            Kind::Snapshot(WatchSnapshot { reset, last, services })
        }
        Message::Delta(events) => {
            let seen = events.iter().filter_map(|event| convert::change_to_wire(event, filter));
            Kind::Delta(WatchDelta { changes: seen.collect() })
        }
        Message::Bookmark => Kind::Bookmark(WatchBookmark {}),
        Message::Leader(leader) => Kind::Leader(WatchLeader { leader_id: leader.unwrap_or(0) }),
    };
    WatchResponse {
        revision: revision.0,
        previous_revision: previous.0,
        kind: Some(kind),
        header: with_header.then(|| header(node, revision.0, node.age_ms())).flatten(),
    }
}
