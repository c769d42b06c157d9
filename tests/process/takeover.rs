//! A process that crashed and comes back under the same instance id while its old lease still
//! lives.

use std::time::Duration;

use quorate_client::Consistency;
use quorate_proto::v1::ChangeKind;
use tonic::Code;

use crate::cli::Running;
use crate::cluster::Cluster;
use crate::feed::{Feed, Seen};
use crate::raw::registration;
use crate::wait::time_passes;

const TTL: Duration = Duration::from_secs(15);
const WITHIN: Duration = Duration::from_secs(30);
/// Known within this: the old lease, renewed every third of its TTL, has at least as long to live.
const AT_ONCE: Duration = Duration::from_secs(10);

/// S0.2, S0.3, S0.4
#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_process_takes_over_and_its_predecessor_cannot_harm_it() {
    let cluster = Cluster::start(3).await;
    let feed = Feed::start(&cluster.nodes[2]).await;
    let line = "register orders o-1 --endpoint http=http://h:1 --ttl 15s -o json";
    let registered = |line: &serde_json::Value| line["event"] == "registered";

    let mut first = Running::ask(&cluster.all(), line);
    let old = first.until("the first run", WITHIN, registered).await.swap_remove(0);
    first.process.kill();
    let begun = std::time::Instant::now();
    let second = Running::ask(&cluster.all(), line);
    let new = second.until("the second run", WITHIN, registered).await.swap_remove(0);
    let took = begun.elapsed();
    eprintln!("measured: takeover: registered again {took:?} after the restart began");
    assert!(took < AT_ONCE, "{took:?}");
    assert_ne!(old["lease_id"], new["lease_id"]);
    let [old_run, new_run] = [&old, &new].map(|run| run["incarnation"].as_u64().unwrap());
    assert!(new_run > old_run);

    // What the old run still has to say.
    let node = &cluster.nodes[1];
    let status = node.renew(old["lease_id"].as_u64().unwrap()).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "its lease is gone: {status}");
    let status = node.deregister("orders", "o-1", old_run).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert!(status.message().contains(&new_run.to_string()), "names the current one: {status}");
    let late = registration("orders", "o-1", TTL, old_run);
    let status = node.registry().register(late).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    let trailer = status.metadata().get("quorate-incarnation").unwrap().to_str().unwrap();
    assert_eq!(trailer, new_run.to_string());

    // The old lease's time comes and goes.
    time_passes(TTL + Duration::from_secs(2)).await;
    let state = node.instances(Consistency::Linearizable).await.unwrap();
    assert_eq!(state["orders/o-1"].incarnation, new_run);
    feed.look(|seen| {
        assert_eq!(seen.of(ChangeKind::Added, "orders/").len(), 1);
        assert_eq!(seen.of(ChangeKind::Modified, "orders/").len(), 1);
        assert_eq!(seen.of(ChangeKind::Removed, "orders/"), []);
    });
    feed.assert_gapless();

    second.interrupt().await.expect(0);
    let gone = |seen: &Seen| !seen.of(ChangeKind::Removed, "orders/").is_empty();
    feed.until("the end", WITHIN, gone).await;
}

/// Both runs live: the older one gives way, says so, and takes nothing with it. S0.4, S1.4
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_superseded_gives_way() {
    let cluster = Cluster::start(3).await;
    let feed = Feed::start(&cluster.nodes[0]).await;
    let line = "register orders o-1 --endpoint http=http://h:1 --ttl 10s -o json";
    let registered = |line: &serde_json::Value| line["event"] == "registered";
    let mut first = Running::ask(&cluster.all(), line);
    first.until("the first run", WITHIN, registered).await;
    let second = Running::ask(&cluster.all(), line);
    second.until("the second run", WITHIN, registered).await;

    assert_eq!(first.process.exit_code(WITHIN).await, 1);
    assert!(first.err().contains("a newer run holds the instance"), "{}", first.err());
    assert!(first.err().contains("next:"), "{}", first.err());
    // The time of the lease that it had comes and goes.
    time_passes(Duration::from_secs(11)).await;
    feed.look(|seen| {
        assert_eq!(seen.of(ChangeKind::Modified, "orders/").len(), 1, "no fight over it");
        assert_eq!(seen.of(ChangeKind::Removed, "orders/"), []);
    });
    second.interrupt().await.expect(0);
}
