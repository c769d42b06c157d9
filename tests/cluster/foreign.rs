//! What a caller carries from another cluster: here its lease ids and revisions may belong to
//! others, and count for nothing.

use std::time::Duration;

use quorate_proto::trailers;
use quorate_proto::v1::{
    DeregisterRequest, FetchRequest, ListDependentsRequest, ListServicesRequest, RegisterRequest,
    RenewRequest, StatusRequest,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::metadata::MetadataMap;

use super::calls::{
    assert_refused, assert_refused_late, fetch_all, fetch_of, in_time, local, register,
    registration, renewal, spec, with_timeout,
};
use super::guarded::{Guarded, ROOT, by, entry};
use super::harness::{Cluster, SOON};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_of_another_cluster_is_unknown_and_nothing_is_done_with_it() {
    let cluster = Cluster::start(3).await;
    let mut registry = cluster.registry(cluster.follower().await);
    let mut short = registration(vec![spec("web", "stranger")]);
    // Longer than a busy machine takes for the calls that find it there.
    short.ttl_ms = 5_000;
    let stranger = registry.register(short).await.unwrap().into_inner();
    let mine = register(&mut registry, "web", "a").await;
    let ours = mine.header.unwrap().cluster_id;
    let other = ours ^ 1;

    let of =
        |cluster_id, leases: &[u64]| RenewRequest { cluster_id, ..renewal(leases.iter().copied()) };
    let refused = registry.renew(of(other, &[stranger.lease_id])).await;
    assert_refused(refused, Code::NotFound, &[&stranger.lease_id.to_string()]);
    let more = RegisterRequest {
        lease_id: stranger.lease_id,
        cluster_id: other,
        ..registration(vec![spec("web", "more")])
    };
    assert_refused(registry.register(more).await, Code::NotFound, &["lease"]);
    let deregister = DeregisterRequest {
        lease_id: stranger.lease_id,
        cluster_id: other,
        ..DeregisterRequest::default()
    };
    assert_refused(registry.deregister(deregister).await, Code::NotFound, &["lease"]);
    assert_eq!(fetch_all(&mut registry).await.1.len(), 2, "nothing was done");

    // Over a stream, messages of both clusters are answered in order, and the stranger's lease is
    // not kept alive by ours.
    let (asks, requests) = tokio::sync::mpsc::channel(8);
    let answers = registry.renew_stream(ReceiverStream::new(requests)).await.unwrap();
    let mut answers = answers.into_inner();
    let begun = tokio::time::Instant::now();
    while fetch_all(&mut cluster.registry(1)).await.1.len() == 2 {
        assert!(begun.elapsed() < SOON, "the stranger's lease ends");
        let both = [mine.lease_id, stranger.lease_id];
        for (cluster_id, leases, unknown) in
            [(other, &both[..], &both[..]), (ours, &both[..1], &[]), (0, &both[..1], &[])]
        {
            asks.send(of(cluster_id, leases)).await.unwrap();
            let answer = tokio::time::timeout(SOON, answers.message()).await.expect("an answer");
            let answer = answer.unwrap().expect("the stream goes on");
            assert_eq!(answer.unknown_lease_ids, unknown);
            assert_eq!(answer.header.unwrap().cluster_id, ours);
        }
    }
    let left = fetch_all(&mut registry).await.1;
    assert!(left.contains_key(&("web".to_owned(), "a".to_owned())), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revision_of_another_cluster_is_neither_waited_for_nor_compared() {
    let cluster = Cluster::start(1).await;
    let mut registry = cluster.registry(1);
    let header = register(&mut registry, "web", "a").await.header.unwrap();
    let other = header.cluster_id ^ 1;
    // Who waits in vain waits for nearly all of its time.
    let soon = SOON / 2;
    let fetch = FetchRequest {
        min_revision: header.revision + 50,
        not_modified_since: header.revision + 50,
        cluster_id: other,
        ..fetch_of(&["web"])
    };
    for fetch in [local(fetch.clone()), fetch] {
        let answer =
            tokio::time::timeout(soon, registry.fetch(in_time(fetch))).await.expect("no wait");
        let answer = answer.unwrap().into_inner();
        assert!(!answer.not_modified);
        assert_eq!(answer.services[0].instances.len(), 1);
    }
    let list = ListServicesRequest {
        min_revision: header.revision + 50,
        cluster_id: other,
        ..ListServicesRequest::default()
    };
    let listed = tokio::time::timeout(soon, registry.list_services(in_time(list))).await;
    assert_eq!(listed.expect("no wait").unwrap().into_inner().services.len(), 1);
    let dependents = ListDependentsRequest {
        service: "web".to_owned(),
        min_revision: header.revision + 50,
        cluster_id: other,
        ..ListDependentsRequest::default()
    };
    let found = tokio::time::timeout(soon, registry.list_dependents(in_time(dependents))).await;
    assert!(found.expect("no wait").unwrap().into_inner().instances.is_empty());

    // Of this cluster, and where it is not said, both count.
    for cluster_id in [header.cluster_id, 0] {
        let ask = FetchRequest { cluster_id, ..fetch_of(&["web"]) };
        let since = FetchRequest { not_modified_since: header.revision, ..ask.clone() };
        assert!(registry.fetch(since).await.unwrap().into_inner().not_modified);
        let later = FetchRequest { min_revision: header.revision + 1, ..ask };
        let late = async || {
            let request = with_timeout(later.clone(), Duration::from_secs(3));
            registry.clone().fetch(request).await
        };
        assert_refused_late(late, Code::Unavailable, &["min_revision"]).await;
    }
}

/// By that, a client sees that a node which only refuses is not of its cluster.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_answer_and_refusal_says_of_which_cluster_the_node_is() {
    let reader = entry("qrt_read", "role = 'read'\nnamespace = 'default'\nprefix = 'web'");
    let guarded = Guarded::start(1, &reader).await;
    let (mut registry, mut admin) = (guarded.cluster.registry(1), guarded.cluster.admin(1));
    let (root, reader) = (Some(ROOT), Some("qrt_read"));
    let answer = registry.fetch(by(root, fetch_of(&["web"]))).await.unwrap();
    let is = answer.get_ref().header.as_ref().unwrap().cluster_id;
    let is = format!("{is:016x}");
    let told = |metadata: &MetadataMap| {
        let told = metadata.get(trailers::CLUSTER);
        told.map(|told| told.to_str().unwrap().to_owned()).unwrap_or_default()
    };
    assert_eq!(told(answer.metadata()), is, "an answer");
    let stream = registry.renew_stream(by(root, tokio_stream::pending())).await.unwrap();
    assert_eq!(told(stream.metadata()), is, "a stream");
    let status = admin.status(by(root, StatusRequest::default())).await.unwrap();
    assert_eq!(told(status.metadata()), is, "the operators' calls");

    let mut pretends = by(None, fetch_of(&["web"]));
    pretends.metadata_mut().insert(trailers::CLUSTER, is.parse().unwrap());
    let refusals = [
        (Code::Unauthenticated, registry.fetch(by(None, fetch_of(&["web"]))).await.map(drop)),
        (Code::Unauthenticated, registry.fetch(pretends).await.map(drop)),
        (Code::Unauthenticated, admin.status(by(None, StatusRequest::default())).await.map(drop)),
        (Code::PermissionDenied, registry.fetch(by(reader, fetch_of(&["other"]))).await.map(drop)),
        (Code::InvalidArgument, registry.fetch(by(root, fetch_of(&["a b"]))).await.map(drop)),
        (Code::NotFound, registry.renew(by(root, renewal([99]))).await.map(drop)),
    ];
    for (code, refused) in refusals {
        let refusal = refused.expect_err("it is refused");
        assert_eq!((refusal.code(), told(refusal.metadata())), (code, is.clone()));
    }
}
