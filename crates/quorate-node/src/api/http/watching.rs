//! Following: a stream of events, and reads that wait for a change.

use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use prost::Message as _;
use quorate_proto::encoded::v1::EncodedWatchResponse;
use quorate_proto::encoded::v1::encoded_watch_response::Kind;
use quorate_proto::v1::{Change, Service, WatchSubscribe};
use quorate_state::{Namespace, ServiceKey, ServiceName};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::timeout;
use tonic::Status;
use utoipa::ToSchema;

use crate::api::http::asked::Asked;
use crate::api::http::described::Watched;
use crate::api::http::problem::Problem;
use crate::api::http::query::{self, Position, Query};
use crate::api::http::routes::{Answered, Api};
use crate::api::http::shown::{self, Header, ShownChange, ShownService};
use crate::node::Node;

/// A stream without an event gets a comment after this: nobody on the way is to take it for dead.
const COMMENT_AFTER: Duration = Duration::from_secs(15);
/// A read waits for so long where it does not say, and no longer than ...
const WAIT: Duration = Duration::from_secs(300);
/// ... this.
const WAIT_MAX: Duration = Duration::from_secs(600);

/// What a read is to wait for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    after: Position,
    pub(super) wait: Duration,
}

impl Wanted {
    /// The revision that the caller has; 0: nothing of this cluster.
    pub(super) fn revision_of(self, node: &Node) -> u64 {
        let own = quorate_log::ClusterId::number(node.peers().cluster_id());
        match self.after.cluster_id == own {
            true => self.after.revision,
            false => 0,
        }
    }
}

/// # Errors
/// `index` or `wait` is none, or there is a `wait` for nothing.
pub(super) fn wanted(query: &mut Query) -> Result<Option<Wanted>, Problem> {
    let (index, wait) = (query.text("index")?, query.text("wait")?);
    let wait = match wait.as_deref() {
        None => WAIT,
        Some(text) => duration(text)?,
    };
    let Some(index) = index else { return Ok(None) };
    Ok(Some(Wanted { after: query::position("index", &index)?, wait: wait.min(WAIT_MAX) }))
}

/// `500ms`, `30s` or `5m`; a number alone is of milliseconds.
fn duration(text: &str) -> Result<Duration, Problem> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit_ms = match &text[digits.len()..] {
        "" | "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        _ => return Err(Problem::invalid("wait", text, "must be like 500ms, 30s or 5m")),
    };
    let number: u64 = query::number("wait", digits)?;
    Ok(Duration::from_millis(number.saturating_mul(unit_ms)))
}

/// Resolves once a service may have changed.
pub(super) async fn moved<P>(node: &Node, positions: &mut watch::Receiver<P>, seen: &Service) {
    let names = (Namespace::new("", &seen.namespace), ServiceName::new("", &seen.name));
    let (Ok(namespace), Ok(name)) = names else { return };
    let key = ServiceKey { namespace, name };
    loop {
        tokio::select! {
            // Its sender is this node's: it does not end before.
            _ = positions.changed() => {}
            () = node.stop().cancelled() => return,
        }
        let registry = node.applied().registry();
        if registry.service(&key).is_some_and(|service| service.revision.0 > seen.revision) {
            return;
        }
    }
}

/// Changes as Server-Sent Events: see docs/http.md.
#[utoipa::path(
    get,
    path = "/namespaces/{ns}/watch",
    params(Watched),
    responses((status = 200, body = String, content_type = "text/event-stream"))
)]
pub(super) async fn watch(State(api): State<Api>, mut asked: Asked) -> Answered {
    let query = &mut asked.query;
    let from = query.position("from")?;
    let request = WatchSubscribe {
        services: query.all("service"),
        prefix: query.text("prefix")?.unwrap_or_default(),
        statuses: query.statuses()?,
        tags: query.all("tag"),
        namespace: asked.path("ns"),
        ..WatchSubscribe::default()
    };
    asked.query.done()?;
    // A browser that comes again says what it had last; the address is the one that it began with.
    let last = asked.headers.get("last-event-id").map(|id| id.to_str().unwrap_or("no ASCII"));
    let from = match last.filter(|id| !id.is_empty()) {
        Some(id) => query::position("last-event-id", id)?,
        None => from,
    };
    let request =
        WatchSubscribe { from_revision: from.revision, cluster_id: from.cluster_id, ..request };
    let long = api.long()?;
    let answers = api.registry.watch_one(asked.call(request)).await?.into_inner();
    let body = Body::from_stream(events(answers, long));
    let headers = [(CONTENT_TYPE.as_str(), "text/event-stream"), ("x-accel-buffering", "no")];
    Ok((headers, body).into_response())
}

/// The answers as events, until one of them says why it is the last.
fn events(
    answers: impl Stream<Item = Result<EncodedWatchResponse, Status>> + Send + Unpin + 'static,
    long: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<Bytes, std::convert::Infallible>> + Send {
    let begin = (answers, 0, Some(long));
    stream::unfold(begin, |(mut answers, mut cluster_id, mut long)| async move {
        long.as_ref()?;
        let text = match timeout(COMMENT_AFTER, answers.next()).await {
            Err(_elapsed) => ":\n\n".to_owned(),
            Ok(None) => return None,
            Ok(Some(Ok(answer))) => event(answer, &mut cluster_id),
            Ok(Some(Err(status))) => {
                long = None;
                written("end", None, &Problem::from(status))
            }
        };
        Some((Ok(Bytes::from(text)), (answers, cluster_id, long)))
    })
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WatchSnapshot)]
pub(super) struct Snapshot {
    header: Option<Header>,
    revision: String,
    /// False: more of it follows.
    last: bool,
    services: Vec<ShownService>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WatchChanges)]
pub(super) struct Changes {
    header: Option<Header>,
    revision: String,
    previous_revision: String,
    changes: Vec<ShownChange>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WatchLeader)]
pub(super) struct Leader {
    header: Option<Header>,
    /// "0": it is lost, and nothing new will come for now.
    leader_id: String,
}

fn event(answer: EncodedWatchResponse, cluster_id: &mut u64) -> String {
    if let Some(header) = &answer.header {
        *cluster_id = header.cluster_id;
    }
    let (revision, header) = (answer.revision.to_string(), answer.header.map(Some).map(Header::of));
    let id = shown::position(*cluster_id, answer.revision);
    match answer.kind {
        Some(Kind::Snapshot(snapshot)) => {
            let name = if snapshot.reset { "reset" } else { "snapshot" };
            let services = snapshot.services.into_iter().map(ShownService::from).collect();
            let last = snapshot.last;
            // Who has a part of it has not come so far.
            let id = last.then_some(id);
            written(name, id, &Snapshot { header, revision, last, services })
        }
        Some(Kind::Delta(delta)) => {
            let decode = |change: Bytes| {
                let change = Change::decode(change);
                ShownChange::from(change.expect("invariant: this node has encoded it"))
            };
            let changes = delta.changes.into_iter().map(decode).collect();
            let previous_revision = answer.previous_revision.to_string();
            written("change", Some(id), &Changes { header, revision, previous_revision, changes })
        }
        Some(Kind::Leader(leader)) => {
            let leader_id = leader.leader_id.to_string();
            written("leader", None, &Leader { header, leader_id })
        }
        // Without data it is no event, and the id counts.
        Some(Kind::Bookmark(_)) | None => format!("id: {id}\n\n"),
    }
}

/// JSON has no line breaks.
fn written(name: &str, id: Option<String>, data: &impl Serialize) -> String {
    let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    let data = serde_json::to_string(data).expect("invariant: texts and numbers can be written");
    format!("{id}event: {name}\ndata: {data}\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_have_units() {
        for (text, ms) in [("5", 5), ("500ms", 500), ("30s", 30_000), ("5m", 300_000)] {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(ms), "{text}");
        }
        for bad in ["", "s", "1h", "-1s", "1.5s", "5 m", "é"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
