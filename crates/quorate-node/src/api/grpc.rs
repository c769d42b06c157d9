//! The gRPC services: thin handlers that convert, call the node, and convert back.

mod codes;
mod convert;

pub(crate) mod admin;
mod backup;
pub(crate) mod fetch;
mod guard;
pub(crate) mod pages;
pub(crate) mod peer;
pub(crate) mod registry;
pub(crate) mod renew;
pub(crate) mod routes;
pub(crate) mod watch;

use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use openraft::async_runtime::watch::WatchReceiver as _;
use prost::Message;
use quorate_proto::v1::ResponseHeader;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use crate::error::{CallError, NodeError};
use crate::net::connections::Line;
use crate::node::{Consistency, Node};

/// A request at most, bytes. The transport lets a little more through, so that the answer can say what is too large.
const REQUEST_MAX: usize = 4 * 1024 * 1024;
/// What the transport lets through, bytes.
pub(crate) const TRANSPORT_MAX: usize = 4 * REQUEST_MAX;

/// No call may take longer, whatever deadline it names.
const DEADLINE_MAX: Duration = Duration::from_secs(60);

/// So long before its caller gives up a call is answered at the latest, where that leaves it nine tenths of its time: the
/// refusal has its way to go, and a busy machine lets it wait.
const MARGIN_MAX: Duration = Duration::from_millis(500);

/// When a call has to be answered: a little before the caller gives up, so that it learns why.
pub(crate) fn deadline(metadata: &MetadataMap, default: Duration) -> Instant {
    let given = metadata.get("grpc-timeout").and_then(|value| parse_timeout(value.to_str().ok()?));
    deadline_in(given.unwrap_or(default))
}

/// The same for a caller that gives up after this time.
pub(crate) fn deadline_in(timeout: Duration) -> Instant {
    let timeout = timeout.min(DEADLINE_MAX);
    let margin = (timeout / 10).min(MARGIN_MAX);
    Instant::now() + (timeout - margin)
}

/// `grpc-timeout`: up to 8 digits and a unit (gRPC over HTTP/2, section Requests).
fn parse_timeout(text: &str) -> Option<Duration> {
    let unit_at = text.len().checked_sub(1)?;
    let (digits, unit) = text.split_at_checked(unit_at)?;
    if digits.len() > 8 {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3_600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

/// The message and deadline of a call whose request is not too large.
fn open<T: Message>(request: Request<T>, node: &Node) -> Result<(T, Instant), CallError> {
    let deadline = deadline(request.metadata(), node.tunables.request_timeout());
    let message = request.into_inner();
    let bytes = message.encoded_len();
    if bytes > REQUEST_MAX {
        let instead = "send it in several calls";
        return Err(CallError::TooLarge {
            what: "the request",
            bytes,
            limit: REQUEST_MAX,
            instead,
        });
    }
    Ok((message, deadline))
}

/// The connection that a call came on.
fn line<T>(request: &Request<T>) -> Arc<Line> {
    Line::of(request.extensions())
}

/// An answer whose bytes count as long as they are under way.
///
/// # Errors
/// Too many are.
fn counted<T: Message>(
    node: &Node,
    line: &Arc<Line>,
    deadline: Instant,
    answer: T,
) -> Result<Response<T>, CallError> {
    let mut reserved = node.answers.begin(line, deadline)?;
    reserved.add(answer.encoded_len())?;
    let mut response = Response::new(answer);
    reserved.attach(&mut response);
    Ok(response)
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
    let (id, stop) = (node.id, node.stop.clone());
    let stopping = async move {
        stop.cancelled().await;
        Err(NodeError::Stopping { node: id }.into())
    };
    // Whichever comes first ends it: the answers, or the stop with its status.
    let answers = answers.map(Some).chain(stream::once(std::future::ready(None)));
    let stopping = stream::once(stopping).map(Some).chain(stream::once(std::future::ready(None)));
    // Among others it is polled only when it has woken, and not for each answer.
    let stopping = stream::select_all([stopping.boxed()]);
    stream::select(stopping, answers)
        .take_while(|answer| std::future::ready(answer.is_some()))
        .filter_map(std::future::ready)
}

/// The header of an answer that stands at this revision.
pub(crate) fn header(node: &Node, revision: u64, age_ms: u64) -> Option<ResponseHeader> {
    let metrics = node.metrics.borrow_watched();
    let leader_id = node.leadership.leader().unwrap_or(0);
    let leader = metrics.membership_config.get_node(&leader_id);
    Some(ResponseHeader {
        cluster_id: node.peers.cluster_id(),
        node_id: node.id,
        term: metrics.current_term,
        leader_id,
        leader_address: leader.map(|member| member.client_address.clone()).unwrap_or_default(),
        revision,
        age_ms,
    })
}

/// Whether what a request carries is of another cluster, and so means nothing here. 0: it does not say.
fn is_foreign(node: &Node, cluster_id: u64) -> bool {
    ![0, node.peers.cluster_id()].contains(&cluster_id)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_grpc_timeouts() {
        for (text, expected) in [
            ("5S", Some(Duration::from_secs(5))),
            ("250m", Some(Duration::from_millis(250))),
            ("1000000u", Some(Duration::from_secs(1))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3_600))),
            ("", None),
            ("S", None),
            ("5", None),
            ("123456789S", None),
            ("5é", None),
        ] {
            assert_eq!(parse_timeout(text), expected, "{text:?}");
        }
    }
}
