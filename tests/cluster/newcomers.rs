//! Clients learn of new nodes before those that they know are gone.

use std::time::Duration;

use quorate_client::{Client, InstanceBuilder, Registration};
use quorate_proto::v1::{RenewRequest, RenewResponse};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::calls::{register, renewal};
use super::harness::{Cluster, SOON, eventually};

/// Longer than the test: what a client knows, it does not know from looking now and then.
const NEVER: Duration = Duration::from_secs(3_600);

fn client(cluster: &Cluster) -> Client {
    cluster.client_builder().member_refresh(Some(NEVER)).build().unwrap()
}

async fn knows(client: &Client, addresses: &[String]) {
    eventually("a client knows the members", || async {
        let known = client.addresses();
        addresses.iter().all(|address| known.contains(address)).then_some(())
    })
    .await;
}

/// Each founder in turn dies for good, once the cluster can do without it. What only renews goes on
/// with what it was told on its stream of renewals; what only watches, on its watch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registration_outlives_all_nodes_that_its_client_was_given() {
    // S1.2, S1.3
    let mut cluster = Cluster::start(3).await;
    let (renewing, watching) = (client(&cluster), client(&cluster));
    let instance = InstanceBuilder::new("web", "a").endpoint("http", "http://h:1");
    let registration = Registration::new(instance).ttl(Duration::from_secs(9));
    let handle = renewing.register(registration).await.unwrap();
    let view = watching.discover("web").unwrap();
    timeout(SOON, view.synced()).await.unwrap();
    let renewed = async |times: u64| {
        let from = renewing.counters().renewals;
        eventually("it renews", || async {
            (renewing.counters().renewals >= from + times).then_some(())
        })
        .await;
    };
    renewed(1).await;
    let first = view.current().get("a").cloned().expect("it is registered");
    for id in [4, 5] {
        cluster.add_joining(id, false).await;
        eventually("it votes", || async { cluster.voters(1).await.contains(&id).then_some(()) })
            .await;
    }
    let all = cluster.addresses();
    knows(&renewing, &all).await;
    knows(&watching, &all).await;
    for id in [3, 2, 1] {
        cluster.stop(id).await;
        // The last one dies unannounced.
        if id > 1 {
            let admin = cluster.client().await.admin();
            admin.remove_node(id).await.expect("a removal");
        }
    }
    renewed(2).await;
    let shown = eventually("the view is of a node that lives", || async {
        view.age().filter(|age| *age < Duration::from_secs(1))?;
        view.current().get("a").cloned()
    })
    .await;
    assert_eq!(shown, first, "it was never gone");
    handle.registered().await.unwrap();
    assert_eq!(renewing.counters().leases_lost, 0);
}

/// A stream of renewals is told of a change of the members at once, if it asked for that; to one
/// that did not, every message answers a request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_renewals_is_told_of_new_members_where_it_asked_for_that() {
    // S1.2
    let mut cluster = Cluster::start(1).await;
    // That a node reports its address is a change of the members, too.
    cluster.settled().await;
    let mut registry = cluster.registry(1);
    let lease = register(&mut registry, "web", "a").await.lease_id;
    let asking = RenewRequest { with_news: true, ..renewal([lease]) };
    let mut streams = Vec::new();
    for request in [asking, renewal([lease])] {
        let (requests, sent) = mpsc::channel(2);
        let asks = request.with_news;
        requests.send(request).await.unwrap();
        let opened = registry.renew_stream(ReceiverStream::new(sent)).await;
        let mut answers = opened.expect("a stream").into_inner();
        // Of that change, a stream may still be told.
        let first = loop {
            let first = message(&mut answers).await;
            if !first.news {
                break first;
            }
            assert!(asks, "{first:?}");
        };
        let as_of = first.header.unwrap().members_as_of;
        streams.push((requests, answers, as_of));
    }
    cluster.add_joining(2, true).await;
    let (_open, answers, before) = &mut streams[0];
    // News of the leader comes in between.
    loop {
        let told = message(answers).await;
        assert!(told.news, "{told:?}");
        if told.header.unwrap().members_as_of > *before {
            break;
        }
    }
    let (requests, answers, before) = &mut streams[1];
    requests.send(renewal([lease])).await.unwrap();
    let answer = message(answers).await;
    assert!(!answer.news, "{answer:?}");
    assert!(answer.header.unwrap().members_as_of > *before);
}

async fn message(answers: &mut Streaming<RenewResponse>) -> RenewResponse {
    let message = timeout(SOON, answers.message()).await.expect("silence");
    message.expect("an answer").expect("the stream goes on")
}
