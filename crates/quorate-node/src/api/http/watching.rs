//! Following: a stream of events, and reads that wait for a change.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use prost::Message as _;
use quorate_proto::encoded::v1::EncodedWatchResponse;
use quorate_proto::encoded::v1::encoded_watch_response::Kind;
use quorate_proto::v1::{Change, WatchSubscribe};
use quorate_state::{Registry, Revision, ServiceKey};
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};
use tonic::{Code, Status};
use utoipa::ToSchema;

use crate::api::grpc::door::{self, Method};
use crate::api::http::asked::Asked;
use crate::api::http::described::Watched;
use crate::api::http::large::{self, Source, Until};
use crate::api::http::problem::Problem;
use crate::api::http::query::{self, Query};
use crate::api::http::routes::{Answered, Api};
use crate::api::http::shown::{self, Header, ShownChange, ShownService};
use crate::applied::readers::Reader;
use crate::net::connections::Line;
use crate::node::Node;
use crate::runtime::random;

/// A stream to which nothing was sent gets a comment after this: nobody on the way is to take it
/// for dead. Most get a bookmark before (`bookmark_ms`).
const COMMENT_AFTER: Duration = Duration::from_secs(15);
/// A browser whose stream ended comes again after this, at least, and ...
const RETRY_MIN: Duration = Duration::from_secs(1);
/// ... at most: each stream has a time of its own, so that those of a node that stopped do not all
/// come at once.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// An event that is not small has this long to be taken, as a large message of gRPC has
/// (`net/watched.rs`), and the grace that others have: a reader of 100 kbit/s takes one in time.
const TAKEN_WITHIN: Duration = Duration::from_secs(60);
/// A read waits for so long where it does not say, and no longer than ...
const WAIT: Duration = Duration::from_secs(300);
/// ... this.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// It waits for up to this part of its time longer, so that those which begin together do not come
/// again together: as Consul's do.
const SPREAD: u32 = 16;

/// Instead of a position: behind nothing, with all changes that this node still has.
const OLDEST: &str = "oldest";

const AGED: &str = "this connection has reached its age: go on with another one, here or elsewhere";

/// What a read is to wait for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    after: query::Position,
    pub(super) wait: Duration,
}

impl Wanted {
    /// Where the caller stands; `None`: it has nothing of this cluster.
    pub(super) fn since(self, node: &Node) -> Option<query::Position> {
        let own = quorate_proto::ClusterId::to_wire(node.peers().cluster_id());
        of_cluster(self.after, own)
    }
}

/// A position of this cluster; one that names none is of it, as everywhere, but 0 is of nothing.
fn of_cluster(after: query::Position, own: u64) -> Option<query::Position> {
    match (after.cluster_id, after.revision) {
        (0, 0) => None,
        (0, revision) => Some(query::Position { cluster_id: own, revision }),
        (of, _) => (of == own).then_some(after),
    }
}

/// # Errors
/// `index` or `wait` is none.
pub(super) fn wanted(query: &mut Query) -> Result<Option<Wanted>, Problem> {
    let (index, wait) = (query.text("index")?, query.text("wait")?);
    let wait = match wait.as_deref() {
        None => WAIT,
        Some(text) => query::duration("wait", text)?,
    };
    let Some(index) = index else { return Ok(None) };
    let after = query::position("index", &index)?;
    Ok(Some(Wanted { after, wait: bounded(wait, random()) }))
}

/// No longer than [`WAIT_MAX`], and up to a [`SPREAD`]th longer than that, as this number says.
fn bounded(wait: Duration, random: u64) -> Duration {
    let wait = wait.min(WAIT_MAX);
    wait + (wait / SPREAD).mul_f64(random as f64 / u64::MAX as f64)
}

/// What is no change of any instance, as that a service is forgotten, is seen after this.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Resolves once a service may not be what a reader has of it, or that one is to be answered: the
/// node stops, or the connection ends.
pub(super) async fn moved(
    node: &Node,
    line: &Line,
    reader: &Reader<'_>,
    key: &ServiceKey,
    since: Revision,
) {
    let leaving = line.leaving();
    loop {
        tokio::select! {
            // Thousands may wait: what changes others wakes none of them.
            _ = timeout(LOOK_EVERY, reader.changed()) => {}
            () = node.stop().cancelled() => return,
            () = leaving.cancelled() => return,
        }
        if has_changed(&node.applied().registry(), key, since) {
            return;
        }
    }
}

/// Whether a service may not be what a caller has of it.
pub(super) fn has_changed(registry: &Registry, key: &ServiceKey, since: Revision) -> bool {
    let revision = registry.service(key).map_or(0, |service| service.revision.0);
    is_other(registry, revision, since)
}

/// The same of one which is at `revision`; 0: it is not known, and may have changed before it was
/// forgotten.
pub(super) fn is_other(registry: &Registry, revision: u64, since: Revision) -> bool {
    match revision {
        0 => registry.forgot_after(since),
        revision => revision > since.0,
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
    let (from, oldest) = match query.text("from")?.as_deref() {
        Some(OLDEST) => (query::Position::default(), true),
        Some(text) => (query::position("from", text)?, false),
        None => (query::Position::default(), false),
    };
    let request = WatchSubscribe {
        services: query.all("service"),
        prefix: query.text("prefix")?.unwrap_or_default(),
        statuses: query.statuses()?,
        tags: query.all("tag"),
        zones: query.all("zone"),
        namespace: asked.path("ns"),
        ..WatchSubscribe::default()
    };
    asked.query.done()?;
    // A browser that comes again says what it had last; the address is the one that it began with.
    let last = asked.headers.get("last-event-id").map(|id| id.to_str().unwrap_or("no ASCII"));
    let (from, oldest) = match last.filter(|id| !id.is_empty()) {
        Some(id) => (query::position("last-event-id", id)?, false),
        None => (from, oldest),
    };
    let request =
        WatchSubscribe { from_revision: from.revision, cluster_id: from.cluster_id, ..request };
    // Who may not is told so, however many are under way.
    asked.check_ahead(&api, Method::Watch, request.clone())?;
    let long = api.long()?;
    let answers = api.registry.watch_one(asked.call(request), oldest).await?.into_inner();
    let first = begun(random(), api.node.tunables().bookmark());
    let (line, cluster_id, leader) = (asked.line, 0, None);
    let following = Following { api, line, answers, cluster_id, leader, _long: long };
    let pieces = stream::unfold(Some(following), |following| async { following?.next().await });
    let pieces = stream::iter([first]).chain(pieces.flat_map(stream::iter));
    let body = Body::from_stream(pieces.map(Ok::<_, Infallible>));
    let headers = [(CONTENT_TYPE.as_str(), "text/event-stream"), ("x-accel-buffering", "no")];
    Ok((headers, body).into_response())
}

/// What a stream begins with: when to come again, as this number says, and how often it is heard.
fn begun(random: u64, bookmark: Duration) -> Bytes {
    let retry = RETRY_MIN + (RETRY_MAX - RETRY_MIN).mul_f64(random as f64 / u64::MAX as f64);
    let (retry, bookmark) = (retry.as_millis(), bookmark.as_millis());
    format!("retry: {retry}\n: bookmark_ms {bookmark}\n\n").into()
}

/// A stream of events that is under way.
struct Following<A> {
    api: Api,
    line: Arc<Line>,
    answers: A,
    /// As the last header said.
    cluster_id: u64,
    /// Who leads, as its caller knows. `None`: nothing, or that nobody does.
    leader: Option<u64>,
    _long: OwnedSemaphorePermit,
}

impl<A: Stream<Item = Result<EncodedWatchResponse, Status>> + Unpin> Following<A> {
    /// The next event, as it goes out, and what follows it; no more than that: it says why it is
    /// the last one.
    async fn next(mut self) -> Option<(Vec<Bytes>, Option<Self>)> {
        let leaving = self.line.leaving();
        let next = tokio::select! {
            next = timeout(COMMENT_AFTER, self.answers.next()) => next,
            () = leaving.cancelled() => {
                let aged = Problem::new(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, AGED);
                return Some((vec![written("end", None, &aged)], None));
            }
        };
        let answer = match next {
            Err(_elapsed) => return Some((vec![Bytes::from_static(b":\n\n")], Some(self))),
            Ok(answer) => answer?,
        };
        let event = match answer {
            Ok(answer) => self.event(answer).await,
            Err(status) => Err(status.into()),
        };
        Some(match event {
            Ok(event) => (event, Some(self)),
            Err(problem) => (vec![written("end", None, &problem)], None),
        })
    }

    async fn event(&mut self, answer: EncodedWatchResponse) -> Result<Vec<Bytes>, Problem> {
        if let Some(header) = &answer.header {
            self.cluster_id = header.cluster_id;
        }
        let (cluster_id, bytes) = (self.cluster_id, answer.encoded_len());
        let tells = self.tells_leader(&answer);
        if bytes < SMALL {
            return Ok(vec![self.api.texts.of(answer, |answer| event(answer, cluster_id, tells))]);
        }
        let made = door::deadline_in(self.api.node.tunables().request_timeout());
        let source = Source::uncounted(bytes);
        let until = Until { made, taken: Instant::now() + TAKEN_WITHIN };
        let make = move || Ok(event(answer, cluster_id, tells));
        let answers = self.api.node.answers();
        answers.check_event()?;
        let (text, reserved) = large::made(answers, &self.line, until, source, make).await?;
        Ok(reserved.hold(text).collect())
    }

    /// Whether a message without changes says something new of the leader.
    fn tells_leader(&mut self, answer: &EncodedWatchResponse) -> bool {
        let said = answer.header.as_ref().map(|header| header.leader_id);
        match &answer.kind {
            // The headers of these name a leader, too: where it is another one than its caller was
            // told, the next message says which it is.
            Some(Kind::Snapshot(_) | Kind::Delta(_)) => {
                self.leader = match (self.leader, said) {
                    (None, Some(0)) => None,
                    (None, said) => said,
                    (told, said) => told.filter(|told| said.is_none_or(|said| said == *told)),
                };
                false
            }
            Some(Kind::Leader(leader)) => {
                self.leader.replace(leader.leader_id) != Some(leader.leader_id)
            }
            Some(Kind::Bookmark(_)) | None => {
                said.is_some_and(|leader| self.leader.replace(leader) != Some(leader))
            }
        }
    }
}

/// Messages with fewer bytes are small: their texts are shared, and do not count as answers under
/// way.
const SMALL: usize = 8 * 1024;
/// Texts that are kept.
const TEXTS_MAX: usize = 64;

/// The texts of the latest small messages. Most streams are sent the same ones at the same time.
#[derive(Default)]
pub(super) struct Texts(Mutex<VecDeque<(EncodedWatchResponse, Bytes)>>);

impl Texts {
    fn of(
        &self,
        answer: EncodedWatchResponse,
        make: impl FnOnce(EncodedWatchResponse) -> Bytes,
    ) -> Bytes {
        // What a header says is of its stream.
        let (None, Some(Kind::Delta(_))) = (&answer.header, &answer.kind) else {
            return make(answer);
        };
        let mut texts = self.0.lock().expect("invariant: nothing panics while it is held");
        if let Some((_, text)) = texts.iter().rev().find(|(of, _)| is_same(of, &answer)) {
            return text.clone();
        }
        let text = make(answer.clone());
        if texts.len() == TEXTS_MAX {
            texts.pop_front();
        }
        texts.push_back((answer, text.clone()));
        text
    }
}

/// Whether these are the same changes in the same place of memory.
fn is_same(one: &EncodedWatchResponse, other: &EncodedWatchResponse) -> bool {
    let (Some(Kind::Delta(of_one)), Some(Kind::Delta(of_other))) = (&one.kind, &other.kind) else {
        return false;
    };
    let place = |change: &Bytes| (change.as_ptr(), change.len());
    (one.revision, one.previous_revision) == (other.revision, other.previous_revision)
        && of_one.changes.iter().map(place).eq(of_other.changes.iter().map(place))
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
    /// Where it is `previous_revision`, this is a part: it counts together with the changes up to
    /// the next one that has another.
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

/// `tells`: what has no changes says something new of the leader.
fn event(answer: EncodedWatchResponse, cluster_id: u64, tells: bool) -> Bytes {
    let leads = answer.header.as_ref().map(|header| header.leader_id);
    let (revision, header) = (answer.revision.to_string(), answer.header.map(Some).map(Header::of));
    let id = shown::position(cluster_id, answer.revision);
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
        Some(Kind::Leader(leader)) if tells => {
            let leader_id = leader.leader_id.to_string();
            written("leader", None, &Leader { header, leader_id })
        }
        // The first one of a stream that goes on where there is nothing new, or nobody led before.
        Some(Kind::Bookmark(_)) | None if tells => {
            let leader_id = leads.unwrap_or_default().to_string();
            written("leader", Some(id), &Leader { header, leader_id })
        }
        Some(Kind::Leader(_)) => format!("{}\n", aged(header.as_ref())).into(),
        // Without data it is no event, and the id counts.
        Some(Kind::Bookmark(_)) | None => format!("{}id: {id}\n\n", aged(header.as_ref())).into(),
    }
}

/// How old what the caller has may be, as a comment.
fn aged(header: Option<&Header>) -> String {
    match header.map(|header| header.age_ms) {
        Some(Some(age_ms)) => format!(": age_ms {age_ms}\n"),
        Some(None) => ": age_ms unknown\n".to_owned(),
        None => String::new(),
    }
}

/// JSON has no line breaks.
fn written(name: &str, id: Option<String>, data: &impl Serialize) -> Bytes {
    let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    let data = serde_json::to_string(data).expect("invariant: texts and numbers can be written");
    format!("{id}event: {name}\ndata: {data}\n\n").into()
}

#[cfg(test)]
mod tests;
