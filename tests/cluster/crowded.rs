//! Calls that are open to all do not take the places of callers that are known.

use quorate_proto::v1::{ListMembersRequest, StatusRequest};
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::guarded::{Guarded, ROOT, by};
use super::harness::eventually;

const CALLS: usize = 1_024;
/// Streams of strangers from one address.
const STREAMS: usize = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_do_not_take_the_places_of_known_callers() {
    let mut guarded = Guarded::start(1, "").await;
    guarded.cluster.stop(1).await;
    guarded.cluster.config_mut(1).tunables.calls_max = CALLS;
    guarded.cluster.restart(1).await;
    let mut registry = guarded.cluster.registry(1);
    eventually("it serves", || async {
        let request = by(Some(ROOT), ListMembersRequest {});
        guarded.cluster.registry(1).list_members(request).await.ok()
    })
    .await;

    let mut health = HealthClient::new(guarded.cluster.channel(1));
    let mut watches = Vec::new();
    let refused = loop {
        match health.watch(Request::new(HealthCheckRequest::default())).await {
            Ok(watch) => watches.push(watch),
            Err(refused) => break refused,
        }
        assert!(watches.len() < CALLS, "strangers have all places");
    };
    assert_eq!(watches.len(), STREAMS);
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert!(refused.metadata().contains_key("try-elsewhere"), "{refused:?}");
    // A probe has no credential, and a balancer may have one.
    let mut other = HealthClient::new(guarded.cluster.channel(1));
    other.check(Request::new(HealthCheckRequest::default())).await.expect("it is told");
    other.watch(by(Some(ROOT), HealthCheckRequest::default())).await.expect("it is told");
    let mut admin = guarded.cluster.admin(1);
    let unknown = admin.status(by(None, StatusRequest::default())).await.unwrap_err();
    assert_eq!(unknown.code(), Code::Unauthenticated, "{unknown:?}");
    for _ in 0..CALLS {
        registry.list_members(by(Some(ROOT), ListMembersRequest {})).await.expect("a place");
    }
}
