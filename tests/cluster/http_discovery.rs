//! `/sd/prometheus`: every node tells what it has, and one that may be wrong says so instead of an
//! empty list.

use quorate_node::Tunables;
use serde_json::{Value, json};

use super::calls::register;
use super::harness::{Cluster, SOON, eventually, within};
use super::http_api::{Answer, get};

const PLACE: &str = "/sd/prometheus";

/// The addresses, in order.
fn addresses(answer: &Answer) -> Vec<&str> {
    let groups = answer.body.as_array().into_iter().flatten();
    groups.map(|group| group["targets"][0].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_node_tells_the_targets_that_it_has_until_they_are_too_old() {
    let tunables = Tunables { deny_after_ms: 1_000, ..Tunables::default() };
    let mut cluster = Cluster::start_with(3, tunables).await;
    cluster.leader().await;
    for id in cluster.ids() {
        // Nothing moves the registry's clock on.
        let none = eventually("a node has heard of the leader", || async {
            let answer = get(cluster.http_address(id), PLACE).await;
            (answer.status == 200).then_some(answer)
        });
        assert_eq!(none.await.body, json!([]), "nothing is registered");
    }
    register(&mut cluster.registry(1), "web", "a").await;
    register(&mut cluster.registry(1), "pay", "p").await;
    for id in cluster.ids() {
        let http = cluster.http_address(id);
        let all = eventually("it has both", || async {
            let answer = get(http, PLACE).await;
            (addresses(&answer).len() == 2).then_some(answer)
        });
        assert_eq!(all.await.header("content-type"), Some("application/json"));
        let answer = get(http, &format!("{PLACE}?namespace=default&prefix=we")).await;
        assert_eq!(answer.body[0]["labels"]["__meta_quorate_id"], "a", "{answer:?}");
        assert_eq!(addresses(&answer).len(), 1);
        let other = get(http, &format!("{PLACE}?namespace=other")).await;
        assert_eq!((other.status, other.body), (200, json!([])));
        for (query, field) in [
            ("services=web", "services"),
            ("prefix=%20", "prefix"),
            ("namespace=a%20b", "namespace"),
            ("endpoint=a%20b", "endpoint"),
            ("max_age=1y", "max_age"),
        ] {
            let refused = get(http, &format!("{PLACE}?{query}")).await;
            refused.refuses(400, "INVALID_ARGUMENT", Some(field));
        }
    }

    cluster.stop(2).await;
    cluster.stop(3).await;
    let alone = cluster.http_address(1);
    let refused = within(SOON, "its state is 300 ms old", || async {
        let answer = get(alone, &format!("{PLACE}?max_age=300ms")).await;
        (answer.status != 200).then_some(answer)
    });
    let refused = refused.await;
    refused.refuses(503, "UNAVAILABLE", None);
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    assert_eq!(addresses(&get(alone, PLACE).await).len(), 2, "it is told up to an hour later");

    // What it has nothing of may be there by now.
    let refused = within(SOON, "its state is 5 s old", || async {
        let answer = get(alone, &format!("{PLACE}?namespace=other")).await;
        (answer.status != 200).then_some(answer)
    });
    refused.await.refuses(503, "UNAVAILABLE", None);
    assert_eq!(addresses(&get(alone, PLACE).await).len(), 2);

    // It has its state, and cannot know what has become of it.
    cluster.stop(1).await;
    cluster.restart(1).await;
    let restarted = get(cluster.http_address(1), &format!("{PLACE}?max_age=999999999h")).await;
    restarted.refuses(503, "UNAVAILABLE", None);
}

/// It may stand where one was that lost its disks: the targets of that are to stay until their
/// instances are registered here.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_was_founded_just_now_has_no_list() {
    let tunables = Tunables { deny_after_ms: 600_000, ..Tunables::default() };
    let cluster = Cluster::start_with(1, tunables).await;
    cluster.leader().await;
    let http = cluster.http_address(1);
    let refused = eventually("it knows how old its state is", || async {
        let answer = get(http, PLACE).await;
        answer.body["detail"].as_str()?.contains("founded").then_some(answer)
    });
    let refused = refused.await;
    refused.refuses(503, "UNAVAILABLE", None);
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    // One is there, and others may be on their way.
    register(&mut cluster.registry(1), "web", "a").await;
    get(http, PLACE).await.refuses(503, "UNAVAILABLE", None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_in_no_cluster_has_no_list() {
    let mut cluster = Cluster::start(1).await;
    cluster.leader().await;
    cluster.add_waiting(2).await;
    let answer = get(cluster.http_address(2), PLACE).await;
    assert!(answer.status >= 400 && answer.body["code"] != Value::Null, "{answer:?}");
}
