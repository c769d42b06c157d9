//! Who can end a node by saying that its cluster has a successor: messages written by hand.

use quorate_proto::peer::v1::SucceedRequest;
use quorate_proto::v1::RemoveNodeRequest;
use tonic::{Code, Request};

use super::calls::{assert_refused, register};
use super::founding::{from, peer};
use super::harness::{Cluster, eventually};

const LONG_AGO: u64 = 24 * 60 * 60 * 1_000;

/// The cluster `by` was made from the cluster `of`.
fn claim(by: u64, of: u64, ago_ms: u64, sender: u64) -> Request<SucceedRequest> {
    from(SucceedRequest { cluster_id: of, ago_ms }, by, sender, 1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_stranger_ends_a_node_and_no_recovery_beside_it() {
    let mut cluster = Cluster::start(3).await;
    let ours = register(&mut cluster.registry(1), "web", "a").await.header.unwrap().cluster_id;
    let mut peer = peer(&cluster, 1).await;
    for (call, why) in [
        (claim(7, ours ^ 1, LONG_AGO, 4), "of another cluster than this"),
        (claim(7, 0, LONG_AGO, 4), "of another cluster than this"),
        (claim(0, ours, LONG_AGO, 4), "it is of no cluster"),
        (claim(7, ours, 0, 4), "it ran already"),
    ] {
        assert_refused(peer.succeed(call).await, Code::FailedPrecondition, &["node 4", why]);
    }
    let nobody = Request::new(SucceedRequest { cluster_id: ours, ago_ms: LONG_AGO });
    assert_refused(peer.succeed(nobody).await, Code::FailedPrecondition, &["which node sent it"]);
    let own = peer.succeed(claim(ours, 7, LONG_AGO, 2)).await.expect("it is of that cluster");
    assert!(!own.into_inner().ends);

    cluster.admin(1).remove_node(RemoveNodeRequest { id: 3 }).await.expect("a removal");
    eventually("node 1 knows that", || async { (cluster.voters(1).await == [1, 2]).then_some(()) })
        .await;
    let call = claim(7, ours, LONG_AGO, 3);
    let why = ["node 3", "it was taken out of this cluster"];
    assert_refused(peer.succeed(call).await, Code::FailedPrecondition, &why);
    register(&mut cluster.registry(1), "web", "b").await;

    let told = peer.succeed(claim(7, ours, LONG_AGO, 4)).await.expect("it is the right one");
    assert!(told.into_inner().ends);
    let why = cluster.ended(1).await.to_string();
    let expected = "has made cluster 0000000000000007 from that, in which node 4 is now";
    assert!(why.contains(expected), "{why}");
}
