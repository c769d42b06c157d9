//! The Watch call: turns a [`Subscription`]'s messages into answers, and takes in acks.

mod fresh;
mod served;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::future::OptionFuture;
use futures_util::{Stream, TryStreamExt as _, stream};
use prost::Message as _;
use quorate_log::NodeId;
use quorate_proto::encoded::v1::encoded_watch_response::Kind;
use quorate_proto::encoded::v1::{EncodedWatchDelta, EncodedWatchResponse};
use quorate_proto::v1::watch_request::Kind as Ask;
use quorate_proto::v1::{WatchBookmark, WatchLeader, WatchRequest, WatchSnapshot, WatchSubscribe};
use quorate_state::{Invalid, Revision};
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use crate::api::grpc::arrived::check_size;
use crate::api::grpc::convert;
use crate::api::grpc::door::{Call, Caller, Method};
use crate::api::grpc::touched::Touches as _;
use crate::api::grpc::watch::fresh::Fresh;
use crate::api::grpc::watch::served::no_longer_serves;
pub(in crate::api) use crate::api::grpc::watch::served::nothing_comes;
use crate::api::grpc::{header, is_foreign, rights, told};
use crate::applied::hub::Filter;
use crate::applied::shared_event::SharedEvent;
use crate::applied::subscription::{Begin, Message, Positioned, Subscription};
use crate::error::{CallError, NodeError, Wanted};
use crate::net::watched::{May, Messages, Names};
use crate::node::Node;
use crate::node::reads::age_ms;

/// What a watcher says, however it comes.
pub(super) struct Asks {
    stream: Pin<Box<dyn Stream<Item = Result<WatchRequest, Status>> + Send + Sync>>,
    /// It begins with the oldest change that there is, whatever its subscription says.
    oldest: bool,
}

impl Asks {
    pub(super) fn new(
        asks: impl Stream<Item = Result<WatchRequest, Status>> + Send + Sync + 'static,
    ) -> Self {
        Self { stream: Box::pin(asks), oldest: false }
    }

    /// Of one that subscribes and says no more.
    pub(super) fn one(subscribe: WatchSubscribe, oldest: bool) -> Self {
        let ask = WatchRequest { kind: Some(Ask::Subscribe(subscribe)) };
        Self { oldest, ..Self::new(stream::iter([Ok(ask)])) }
    }

    async fn message(&mut self) -> Result<Option<WatchRequest>, Status> {
        self.stream.try_next().await
    }
}

/// A Watch call that is answered.
pub(super) struct Watching {
    node: Arc<Node>,
    filter: Filter,
    subscription: Subscription<Status>,
    fresh: Fresh,
    first: bool,
}

impl Watching {
    /// Answers a Watch call.
    pub(super) async fn begin(node: Arc<Node>, call: Call<Asks>) -> Result<Self, Status> {
        let Call { message: mut asks, deadline, caller } = call;
        let first = timeout_at(deadline, asks.message()).await;
        let first = first.map_err(|_elapsed| CallError::NoSubscription)??;
        let Some(WatchRequest { kind: Some(Ask::Subscribe(subscribe)) }) = first else {
            let must = "the first message must subscribe";
            return Err(CallError::from(Invalid::text("kind", "", must)).into());
        };
        check_size(&subscribe)?;
        let touched = subscribe.touches();
        let judged = rights::check(&caller.principal, Method::Watch.needed(), &touched);
        judged.map_err(|refusal| told::about(refusal, touched.subject()))?;
        let filter = convert::watch_filter(&subscribe).map_err(CallError::from)?;
        let names =
            Names::begin(&caller.line, filter.selection.names()).inspect_err(|_too_many| {
                node.meters().refused("watched_names").inc();
            })?;
        node.check_member()?;
        let begin = match asks.oldest {
            true => Begin::Oldest,
            false => begin(&node, &subscribe, deadline).await?,
        };
        // As long as the watch lasts, no more of it is kept than its rights are judged by.
        let WatchSubscribe { namespace, services, prefix, .. } = subscribe;
        let judged = WatchSubscribe { namespace, services, prefix, ..WatchSubscribe::default() };
        let judged = node.access().is_checked().then_some(judged);
        let fresh = Fresh::begin(&node);
        let subscription = Subscription::start(
            node.applied().clone(),
            filter.clone(),
            (begin, caller.line.address()),
            node.leadership().views(),
            node.tunables().bookmark(),
            end(node.clone(), caller, (judged, names), asks),
        );
        Ok(Self { node, filter, subscription, fresh, first: true })
    }

    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        may: &mut May<'_>,
    ) -> Poll<Result<EncodedWatchResponse, Status>> {
        let next = ready!(self.subscription.poll_next(cx, may));
        let first = std::mem::take(&mut self.first);
        let Self { node, filter, fresh, .. } = self;
        Poll::Ready(next.map(|next| answer(node, filter, next, first, fresh)))
    }

    /// Its messages, as large as they get.
    pub(super) fn into_stream(
        mut self,
    ) -> impl Stream<Item = Result<EncodedWatchResponse, Status>> + Send + use<> {
        stream::poll_fn(move |cx| self.poll_next(cx, &mut |_, _| Poll::Ready(usize::MAX)).map(Some))
    }

    /// Its messages as gRPC frames them (gRPC over HTTP2, Length-Prefixed-Message): not compressed,
    /// each in memory of its own size.
    pub(super) fn into_messages(mut self) -> Messages {
        Box::new(move |cx, may| {
            let message = ready!(self.poll_next(cx, may))?;
            let length = message.encoded_len();
            let mut framed = Vec::with_capacity(1 + size_of::<u32>() + length);
            framed.push(0);
            // No message has 4 GiB: `MESSAGE_BYTES` in applied/subscription.rs.
            framed.extend((length as u32).to_be_bytes());
            message.encode_raw(&mut framed);
            Poll::Ready(Ok(framed.into()))
        })
    }
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
    if is_foreign(node, subscribe.cluster_id) {
        return Ok(Begin::Reset);
    }
    node.await_revision(Wanted::FromRevision(wanted), deadline).await?;
    Ok(Begin::After(Revision(wanted)))
}

/// Waits until the caller may not watch this any more; why.
async fn lost_right(node: Arc<Node>, caller: Caller, subscribe: WatchSubscribe) -> Status {
    rights::lost(&node, &caller, Method::Watch, &subscribe.touches()).await
}

/// What ends a watch: this node stops, or has lost the cluster for good, or the caller is gone,
/// sends what is no ack, or may not watch this any more (most nodes check no rights, and have many
/// watches). Acks are only taken in.
async fn end(
    node: Arc<Node>,
    caller: Caller,
    (judged, _names): (Option<WatchSubscribe>, Names),
    mut asks: Asks,
) -> Status {
    let asked = async {
        loop {
            match asks.message().await {
                Ok(Some(WatchRequest { kind: Some(Ask::Ack(_)) })) => {}
                Ok(Some(_)) => {
                    let must = "a stream subscribes once; open another one";
                    return CallError::from(Invalid::text("kind", "subscribe", must)).into();
                }
                Ok(None) => return std::future::pending().await, // it has nothing more to say
                Err(status) => return status,
            }
        }
    };
    let lost_right = judged.map(|judged| Box::pin(lost_right(node.clone(), caller, judged)));
    let lost_right = OptionFuture::from(lost_right);
    tokio::select! {
        status = asked => status,
        Some(status) = lost_right => status,
        error = no_longer_serves(&node) => error.into(),
    }
}

fn answer(
    node: &Node,
    filter: &Filter,
    positioned: Positioned,
    first: bool,
    fresh: &mut Fresh,
) -> EncodedWatchResponse {
    let Positioned { message, previous, revision } = positioned;
    // A message may have waited for long before it is sent, and what a watcher has is as old as the
    // last one.
    let age = match &message {
        // Copied after `fresh` was taken.
        Message::Snapshot { .. } if first => Some(fresh.at_first()),
        Message::Snapshot { last: false, .. } => None,
        // Where changes come one after the other, there are no bookmarks.
        Message::Delta(_) if !first && !fresh.is_due(node.tunables().bookmark()) => None,
        _ => Some(fresh.of(revision.0, node.moment(), node.last_moment())),
    };
    let kind = match message {
        Message::Snapshot { services, reset, last } => {
            let services = services.iter().map(convert::service_to_wire).collect();
            Kind::Snapshot(WatchSnapshot { reset, last, services })
        }
        Message::Delta(events) => {
            let changes = events.iter().filter_map(|shared| encoded(shared, filter));
            Kind::Delta(EncodedWatchDelta { changes: changes.collect() })
        }
        Message::Bookmark => Kind::Bookmark(WatchBookmark {}),
        Message::Leader(leader) => {
            Kind::Leader(WatchLeader { leader_id: leader.map_or(0, NodeId::get) })
        }
    };
    EncodedWatchResponse {
        revision: revision.0,
        previous_revision: previous.0,
        kind: Some(kind),
        header: age.and_then(|at| header(node, revision.0, age_ms(at))),
    }
}

/// The change as a watcher with this filter sees it, if at all.
fn encoded(shared: &SharedEvent, filter: &Filter) -> Option<Bytes> {
    let view = filter.view(&shared.event)?;
    let encode = || convert::change_to_wire(&shared.event, view).encode_to_vec().into();
    Some(shared.encoded(view, encode))
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::{Change, ChangeKind, RemoveReason, WatchDelta, WatchResponse};
    use quorate_proto::v1::{InstanceStatus, watch_response};
    use quorate_state::{
        Command, Deregister, Event, Incarnation, InstanceId, InstanceKey, InstanceRef,
        InstanceSpec, Namespace, Op, Register, Registry, ServiceKey, ServiceName, SpecParts,
        Status, Update,
    };

    use super::*;
    use crate::applied::hub::Selection;
    use crate::applied::shared_event::View;

    const STATUSES: [Status; 4] =
        [Status::Starting, Status::Up, Status::Draining, Status::OutOfService];

    /// An instance comes, takes on every status in turn, and goes.
    fn events() -> Vec<Event> {
        let name = ServiceName::new("service", "web").unwrap();
        let service = ServiceKey { namespace: Namespace::default(), name };
        let key = InstanceKey { service, id: InstanceId::new("id", "a").unwrap() };
        let parts = SpecParts {
            endpoints: [("http".to_owned(), "http://10.0.0.1:80".to_owned())].into(),
            zone: "z".to_owned(),
            version: "1".to_owned(),
            status: Status::OutOfService,
            metadata: [("some".to_owned(), "thing".to_owned())].into(),
            ..SpecParts::default()
        };
        let spec = InstanceSpec::new("", parts).unwrap();
        let target = InstanceRef { key: key.clone(), incarnation: None };
        let register = Register {
            lease: None,
            ttl: None,
            incarnation: Some(Incarnation(1)),
            instances: vec![(key, spec)],
            within: None,
        };
        let become_ =
            |status| Op::Update(Update { status: Some(status), ..Update::of(target.clone()) });
        let mut ops = vec![Op::Register(register)];
        ops.extend(STATUSES.map(become_));
        ops.push(Op::Deregister(Deregister::Instances(vec![target.clone()])));
        let mut registry = Registry::new();
        let mut apply = |op| {
            let clock = registry.clock();
            registry.apply(&Command::new(clock, op)).events
        };
        let events = ops.into_iter().flat_map(&mut apply);
        events.map(Arc::unwrap_or_clone).collect()
    }

    /// Every set of statuses.
    fn filters() -> Vec<Filter> {
        let chosen = |bits: usize| {
            let chosen = (0..4).filter(|at| bits & (1 << at) != 0).map(|at| STATUSES[at]);
            let all = Filter::all_of(Namespace::default(), Selection::Prefix(String::new()));
            Filter { statuses: chosen.collect(), ..all }
        };
        (0..16).map(chosen).collect()
    }

    /// Whichever watcher comes first, none is sent what was encoded for one that sees the change in
    /// another way.
    #[test]
    fn who_shares_an_encoding_sees_only_what_its_filter_covers() {
        let filters = filters();
        for first in 0..filters.len() {
            for shared in events().into_iter().map(|event| SharedEvent::new(event, Instant::now()))
            {
                for filter in filters[first..].iter().chain(&filters[..first]) {
                    let sent = encoded(&shared, filter);
                    let sent = sent.map(|bytes| Change::decode(bytes).unwrap());
                    check(&shared.event, filter, sent);
                }
            }
        }
    }

    /// What this watcher had and what it is to have say what it must be sent.
    fn check(event: &Event, filter: &Filter, sent: Option<Change>) {
        let wanted = |status| filter.statuses.is_empty() || filter.statuses.contains(&status);
        let had = event.before().map(|instance| instance.status()).filter(|s| wanted(*s));
        let has = event.after().map(|instance| instance.status()).filter(|s| wanted(*s));
        let kind = match (had, has) {
            (None, None) => return assert_eq!(sent, None),
            (None, Some(_)) => ChangeKind::Added,
            (Some(_), Some(_)) => ChangeKind::Modified,
            (Some(_), None) => ChangeKind::Removed,
        };
        let sent = sent.expect("it sees something");
        assert_eq!((sent.kind(), sent.revision), (kind, event.revision.0), "{filter:?}");
        let reason = match (kind, event.after()) {
            (ChangeKind::Removed, Some(_)) => RemoveReason::Filtered,
            (ChangeKind::Removed, None) => RemoveReason::Deregistered,
            _ => RemoveReason::Unspecified,
        };
        assert_eq!(sent.reason(), reason, "{filter:?}");
        let instance = sent.instance.expect("every change has its instance");
        let is_covered = match instance.status() {
            InstanceStatus::Starting => wanted(Status::Starting),
            InstanceStatus::Up => wanted(Status::Up),
            InstanceStatus::Draining => wanted(Status::Draining),
            InstanceStatus::OutOfService => wanted(Status::OutOfService),
            InstanceStatus::Unspecified => panic!("{instance:?}"),
        };
        assert!(is_covered || reason == RemoveReason::Filtered, "{instance:?} for {filter:?}");
    }

    #[test]
    fn a_change_is_encoded_once_for_each_view() {
        let shared: Vec<_> =
            events().into_iter().map(|event| SharedEvent::new(event, Instant::now())).collect();
        let up = Filter { statuses: [Status::Up].into(), ..filters()[0].clone() };
        for shared in &shared {
            let Some(view) = up.view(&shared.event) else { continue };
            let sent = encoded(shared, &up).unwrap();
            assert_eq!(shared.encoded(view, || panic!("encoded again")), sent);
            let other = if view == View::Added { View::Removed } else { View::Added };
            assert_eq!(shared.encoded(other, || Bytes::from_static(b"other")), "other");
            shared.forget_encodings();
            for text in ["not", "kept"] {
                assert_eq!(shared.encoded(view, || Bytes::from_static(text.as_bytes())), text);
            }
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_message_itself() {
        let shared: Vec<_> =
            events().into_iter().map(|event| SharedEvent::new(event, Instant::now())).collect();
        let all = &filters()[0];
        let changes: Vec<Bytes> = shared.iter().filter_map(|shared| encoded(shared, all)).collect();
        assert_eq!(changes.len(), shared.len());
        let plain = shared.iter().map(|shared| {
            let view = all.view(&shared.event).unwrap();
            convert::change_to_wire(&shared.event, view)
        });
        let plain = watch_response::Kind::Delta(WatchDelta { changes: plain.collect() });
        let (revision, previous_revision, header) = (9, 3, None);
        let plain = WatchResponse { revision, previous_revision, kind: Some(plain), header };
        let kind = Some(Kind::Delta(EncodedWatchDelta { changes }));
        let header = None;
        let encoded = EncodedWatchResponse { revision, previous_revision, kind, header };
        assert_eq!(encoded.encode_to_vec(), plain.encode_to_vec());
    }
}
