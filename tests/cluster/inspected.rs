//! What a node alone knows of a service: its watchers, and how long leases have.

use serde_json::json;

use super::calls::{register, set_weight};
use super::harness::{Cluster, eventually};
use super::http_api::get;
use super::http_watch::{Events, WATCH};
use super::stream::{Stream, subscribe_to, subscribe_to_prefix};

const PLACE: &str = "/api/v1/namespaces/default/services/web/inspection";

#[tokio::test(flavor = "multi_thread")]
async fn a_node_tells_who_watches_a_service_there_and_how_far() {
    let cluster = Cluster::start(1).await;
    cluster.leader().await;
    let (http, mut registry) = (cluster.http_address(1), cluster.registry(1));
    let begun = register(&mut registry, "web", "a").await.header.unwrap().revision;
    assert_eq!(get(http, PLACE).await.body["watchers"], json!([]), "nobody");
    let mut by_grpc = Stream::open(&registry, subscribe_to(&["web"])).await.unwrap();
    by_grpc.snapshot().await;
    let mut of_all = Stream::open(&registry, subscribe_to_prefix("w")).await.unwrap();
    of_all.snapshot().await;
    let mut other = Stream::open(&registry, subscribe_to(&["other"])).await.unwrap();
    other.snapshot().await;
    let mut by_http = Events::open(http, WATCH, "").await;
    by_http.of_service().await;
    set_weight(&mut registry, "web", "a", 7).await;
    let changed = begun + 1;
    by_grpc.reach(changed).await;
    of_all.reach(changed).await;
    by_http.of_service().await;
    let told = get(http, PLACE).await;
    assert_eq!((told.status, &told.body["watchers_in_all"]), (200, &json!(3)), "{told:?}");
    let watcher = |prefix| {
        json!({
            "address": "127.0.0.1", "prefix": prefix, "since_revision": begun.to_string(),
            "sent_revision": changed.to_string(), "queued": 0, "behind": false,
        })
    };
    let expected = json!([watcher(None), watcher(None), watcher(Some("w"))]);
    assert_eq!(told.body["watchers"], expected, "{told:?}");
    drop(by_http);
    let gone = async || (get(http, PLACE).await.body["watchers_in_all"] == 2).then_some(());
    eventually("the stream is gone", gone).await;
    let bad = get(http, &PLACE.replace("web", "a%20b")).await;
    bad.refuses(400, "INVALID_ARGUMENT", Some("service"));
}

#[tokio::test(flavor = "multi_thread")]
async fn how_long_leases_have_tells_the_leader_alone() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let registered = register(&mut cluster.registry(1), "web", "a").await;
    for id in cluster.ids() {
        let told = eventually("it has heard of it", || async {
            let told = get(cluster.http_address(id), PLACE).await;
            let revision = told.body["header"]["revision"].as_str().unwrap().parse::<u64>();
            let at = registered.header.as_ref().unwrap().revision;
            (revision.unwrap() >= at).then_some(told)
        });
        let told = told.await;
        assert_eq!(told.body["leads"], id == leader, "{told:?}");
        let leases = told.body["leases"].as_array().unwrap();
        assert_eq!(leases.len(), usize::from(id == leader), "{told:?}");
        if id == leader {
            let (left, lease) = (leases[0]["left_ms"].as_u64().unwrap(), &leases[0]["lease_id"]);
            assert!((1..=registered.ttl_ms).contains(&left), "{told:?}");
            assert_eq!(
                (&leases[0]["id"], lease),
                (&json!("a"), &json!(registered.lease_id.to_string()))
            );
        }
    }
}
