//! Requests and answers in short: what most tests register and read.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_proto::v1::registry_client::RegistryClient;
use quorate_proto::v1::{
    Consistency, DeregisterRequest, FetchRequest, FetchResponse, Instance, InstanceRef,
    InstanceSpec, LeaseRenewal, RegisterRequest, RegisterResponse, RenewRequest, ResponseHeader,
    UpdateRequest,
};
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::harness::SOON;

pub(crate) type Registry = RegistryClient<Channel>;

/// Long enough that no test sees it expire.
pub(crate) const LONG_TTL_MS: u64 = 600_000;

/// Instances by service and id.
pub(crate) type Map = BTreeMap<(String, String), Instance>;

pub(crate) fn spec(service: &str, id: &str) -> InstanceSpec {
    InstanceSpec {
        service: service.to_owned(),
        id: id.to_owned(),
        endpoints: [("http".to_owned(), format!("http://{id}.example:80"))].into(),
        ..InstanceSpec::default()
    }
}

pub(crate) fn registration(specs: Vec<InstanceSpec>) -> RegisterRequest {
    RegisterRequest {
        instances: specs,
        ttl_ms: LONG_TTL_MS,
        incarnation: 1,
        ..RegisterRequest::default()
    }
}

pub(crate) async fn register(registry: &mut Registry, service: &str, id: &str) -> RegisterResponse {
    let request = registration(vec![spec(service, id)]);
    registry.register(in_time(request)).await.expect("a registration").into_inner()
}

/// Registers this number of instances of a service, a thousand at a time; the last answer.
pub(crate) async fn register_many(
    registry: &mut Registry,
    service: &str,
    count: usize,
) -> RegisterResponse {
    let ids: Vec<String> = (0..count).map(|at| format!("i{at:05}")).collect();
    let mut last = None;
    for part in ids.chunks(1_000) {
        let specs = part.iter().map(|id| spec(service, id)).collect();
        let request = in_time(registration(specs));
        last = Some(registry.register(request).await.expect("registrations"));
    }
    last.expect("at least one").into_inner()
}

pub(crate) fn named(service: &str, id: &str) -> InstanceRef {
    InstanceRef { service: service.to_owned(), id: id.to_owned(), incarnation: 0 }
}

pub(crate) async fn deregister(registry: &mut Registry, service: &str, id: &str) -> u64 {
    let request =
        DeregisterRequest { instances: vec![named(service, id)], ..DeregisterRequest::default() };
    let request = in_time(request);
    revision(registry.deregister(request).await.expect("a deregistration").into_inner().header)
}

pub(crate) async fn set_weight(registry: &mut Registry, service: &str, id: &str, to: u32) -> u64 {
    let request = UpdateRequest {
        instance: Some(named(service, id)),
        weight: Some(to),
        ..UpdateRequest::default()
    };
    let request = in_time(request);
    revision(registry.update(request).await.expect("an update").into_inner().header)
}

pub(crate) fn renewal(leases: impl IntoIterator<Item = u64>) -> RenewRequest {
    let renewals = leases.into_iter().map(|lease_id| LeaseRenewal { lease_id }).collect();
    RenewRequest { renewals, ..RenewRequest::default() }
}

pub(crate) fn fetch_of(services: &[&str]) -> FetchRequest {
    FetchRequest {
        services: services.iter().map(ToString::to_string).collect(),
        ..FetchRequest::default()
    }
}

pub(crate) fn local(request: FetchRequest) -> FetchRequest {
    FetchRequest { consistency: Consistency::Local.into(), ..request }
}

/// All of the default namespace, linearizable.
pub(crate) async fn fetch_all(registry: &mut Registry) -> (u64, Map) {
    let request = in_time(FetchRequest::default());
    let answer = registry.fetch(request).await.expect("a fetch").into_inner();
    (revision(answer.header.clone()), map_of(answer))
}

pub(crate) fn map_of(answer: FetchResponse) -> Map {
    let instances = answer.services.into_iter().flat_map(|service| service.instances);
    instances.map(|i| ((i.service.clone(), i.id.clone()), i)).collect()
}

/// The ids in an answer, in its order.
pub(crate) fn ids(answer: &FetchResponse) -> Vec<&str> {
    let instances = answer.services.iter().flat_map(|service| &service.instances);
    instances.map(|instance| instance.id.as_str()).collect()
}

pub(crate) fn revision(header: Option<ResponseHeader>) -> u64 {
    header.expect("a header").revision
}

/// As long as a busy machine may take for what is no test's own.
pub(crate) fn in_time<T>(message: T) -> Request<T> {
    with_timeout(message, SOON)
}

pub(crate) fn with_timeout<T>(message: T, limit: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

/// A refusal with this code whose message has all of these.
pub(crate) fn assert_refused<T: std::fmt::Debug>(
    answer: Result<T, Status>,
    code: Code,
    names: &[&str],
) -> Status {
    let status = match answer {
        Err(status) => status,
        Ok(answer) => {
            let answer: String = format!("{answer:?}").chars().take(300).collect();
            panic!("was to be refused ({code:?} {names:?}), was {answer}")
        }
    };
    assert_eq!(status.code(), code, "{names:?}: {status:?}");
    for name in names {
        let message = status.message();
        assert!(message.contains(name), "{name:?} is to stand in {message:?}");
    }
    status
}

/// A refusal that comes at the end of its time: a node says so a tenth before the caller's own
/// timer (CANCELLED). On a busy machine that may be first, and the same is asked again. How long
/// the answer took.
pub(crate) async fn assert_refused_late<T: std::fmt::Debug>(
    call: impl AsyncFn() -> Result<T, Status>,
    code: Code,
    names: &[&str],
) -> Duration {
    for _ in 0..6 {
        let (took, answer) = timed(call()).await;
        if !answer.as_ref().is_err_and(|status| status.code() == Code::Cancelled) {
            assert_refused(answer, code, names);
            return took;
        }
    }
    panic!("{code:?} {names:?}: the caller's own timer is always first")
}

/// How long something takes, and what it comes to.
pub(crate) async fn timed<T>(work: impl Future<Output = T>) -> (Duration, T) {
    let begun = Instant::now();
    let done = work.await;
    (begun.elapsed(), done)
}
