//! What a right is worth after it was given: on leases that keep what is another's, and on streams
//! whose caller loses it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use quorate_client::{Error, InstanceBuilder, Update};
use quorate_proto::v1::watch_request::Kind as Ask;
use quorate_proto::v1::watch_response::Kind;
use quorate_proto::v1::{
    DeregisterRequest, FetchRequest, InstanceRef, RegisterRequest, RegisterResponse, RenewRequest,
    RequestId, StatusRequest, UpdateRequest, WatchRequest, WatchResponse, WatchSubscribe,
};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::calls::{Registry, assert_refused, fetch_of, ids, named, registration, renewal, spec};
use super::guarded::{Guarded, ROOT, by, entry};
use super::harness::{SOON, eventually};
use super::metrics::{get, get_within};
use super::stream::{subscribe_to, subscribe_to_prefix};

const ORDERS: &str = "role = 'register'\nnamespace = 'default'\nprefix = 'orders'";
const PAYMENTS: &str = "role = 'register'\nnamespace = 'default'\nprefix = 'payments'";

async fn register(registry: &mut Registry, token: &str, request: RegisterRequest) -> u64 {
    registry.register(by(Some(token), request)).await.unwrap().into_inner().lease_id
}

async fn ids_of(registry: &mut Registry, service: &str) -> Vec<String> {
    let answer = registry.fetch(by(Some(ROOT), fetch_of(&[service]))).await.unwrap().into_inner();
    ids(&answer).into_iter().map(str::to_owned).collect()
}

fn deregistration(lease_id: u64) -> DeregisterRequest {
    DeregisterRequest { lease_id, ..DeregisterRequest::default() }
}

/// CVE-2026-44283 (etcd): others' leases were taken. CVE-2023-32082 (etcd): a lease told what it
/// keeps to those who may not see that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_worth_what_its_holder_may_do_to_all_that_it_keeps() {
    let access = entry("qrt_orders", ORDERS) + &entry("qrt_payments", PAYMENTS);
    let guarded = Guarded::start(3, &access).await;
    // The node where the calls come in learns of what is registered at another one.
    let (mut here, mut there) = (guarded.cluster.registry(1), guarded.cluster.registry(2));
    let orders = Some("qrt_orders");
    let own = register(&mut there, "qrt_orders", registration(vec![spec("orders", "own")])).await;
    let foreign = registration(vec![spec("payments", "a")]);
    let foreign = register(&mut there, "qrt_payments", foreign).await;
    let both = registration(vec![spec("orders", "b"), spec("payments", "b")]);
    let both = register(&mut there, ROOT, both).await;
    let never = both + 1;

    let renewed = here.renew(by(orders, renewal([foreign, own, both, never]))).await.unwrap();
    let unknown: BTreeSet<u64> = renewed.into_inner().unknown_lease_ids.into_iter().collect();
    assert_eq!(unknown, [foreign, both, never].into());

    // Whatever is asked of them, they look like one that never was.
    let mut refusals = Vec::new();
    for lease in [foreign, both, never] {
        let mut as_told = |answer: Result<(), Status>| {
            let status = assert_refused(answer, Code::NotFound, &[&lease.to_string()]);
            let trailers: Vec<String> =
                status.metadata().keys().map(|key| format!("{key:?}")).collect();
            refusals.push((status.message().replace(&lease.to_string(), "LEASE"), trailers));
        };
        as_told(here.renew(by(orders, renewal([lease]))).await.map(drop));
        as_told(here.deregister(by(orders, deregistration(lease))).await.map(drop));
        let request_id = Some(RequestId { origin: 7, number: lease, ..RequestId::default() });
        let named = DeregisterRequest { request_id, ..deregistration(lease) };
        as_told(here.deregister(by(orders, named)).await.map(drop));
        let mut under = registration(vec![spec("orders", "c")]);
        (under.lease_id, under.ttl_ms) = (lease, 1_000);
        as_told(here.register(by(orders, under)).await.map(drop));
    }
    let as_never: Vec<_> = refusals.split_off(8);
    assert_eq!(refusals[..4], as_never[..]);
    assert_eq!(refusals[4..], as_never[..]);

    // The run that holds an instance is known to all who see it: to register it again would set
    // the TTL of all that its lease keeps.
    let mut same_run = registration(vec![spec("orders", "b")]);
    same_run.ttl_ms = 1_000;
    let refused = here.register(by(orders, same_run)).await;
    assert_refused(refused, Code::PermissionDenied, &["register"]);
    assert_eq!(ids_of(&mut here, "payments").await, ["a", "b"]);
    assert_eq!(ids_of(&mut here, "orders").await, ["b", "own"]);

    // What is its own it may leave, and is told so again when it asks again.
    let request_id = Some(RequestId { origin: 7, number: 1_000, ..RequestId::default() });
    let leave = DeregisterRequest { request_id, ..deregistration(own) };
    for _ in 0..2 {
        let left = here.deregister(by(orders, leave.clone())).await.unwrap().into_inner();
        assert_eq!(left.removed, 1);
    }
    let left = here.deregister(by(orders, deregistration(own))).await;
    assert_refused(left, Code::NotFound, &[&own.to_string()]);
}

/// One caller that named its own large lease again and again kept a node busy, and others' leases
/// ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_lease_is_looked_at_once_however_often_it_is_named() {
    let guarded = Guarded::start(1, &entry("qrt_orders", ORDERS)).await;
    let mut registry = guarded.cluster.registry(1);
    let orders = Some("qrt_orders");
    let mut lease = 0;
    for part in 0..5 {
        let specs = (0..1_000).map(|at| spec("orders", &format!("i{part}-{at}"))).collect();
        let mut request = registration(specs);
        request.lease_id = lease;
        lease = register(&mut registry, "qrt_orders", request).await;
    }
    let begun = Instant::now();
    registry.renew(by(orders, renewal([lease]))).await.unwrap();
    let bound = 20 * begun.elapsed() + Duration::from_secs(1);

    takes_less(bound, async || {
        let renewed = registry.clone().renew(by(orders, renewal([lease; 10_000]))).await.unwrap();
        assert_eq!(renewed.into_inner().unknown_lease_ids, [0; 0]);
    })
    .await;

    // More than one call may hold is refused for that, before anything is looked up.
    let mut many = registration(vec![spec("orders", "i0-0"); 20_000]);
    many.incarnation = held(&mut registry, "orders", "i0-0").await;
    takes_less(bound, async || {
        let refused = registry.clone().register(by(orders, many.clone())).await;
        assert_refused(refused, Code::InvalidArgument, &["20000", "1000"]);
    })
    .await;
}

/// On a busy machine, some calls take long for other reasons; not all of them.
async fn takes_less(bound: Duration, call: impl AsyncFn()) {
    let mut took = Vec::new();
    while took.iter().all(|took| *took >= bound) {
        assert!(took.len() < 4, "{took:?} of {bound:?}");
        let begun = Instant::now();
        call().await;
        took.push(begun.elapsed());
    }
}

/// The incarnation of an instance.
async fn held(registry: &mut Registry, service: &str, id: &str) -> u64 {
    let answer = registry.fetch(by(Some(ROOT), fetch_of(&[service]))).await.unwrap().into_inner();
    let mut instances = answer.services.into_iter().flat_map(|service| service.instances);
    instances.find(|instance| instance.id == id).expect("registered").incarnation
}

/// Time and the length of the log told them apart: what asked for a dead lease went through the
/// log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_is_dead_looks_like_one_of_another_in_all() {
    const CALLS: u64 = 50;
    let access = entry("qrt_orders", ORDERS) + &entry("qrt_payments", PAYMENTS);
    let guarded = Guarded::start(1, &access).await;
    let mut registry = guarded.cluster.registry(1);
    let orders = Some("qrt_orders");
    let last_log_index = async || {
        let status = by(Some(ROOT), StatusRequest { local_only: true });
        let status = guarded.cluster.admin(1).status(status).await.unwrap();
        status.into_inner().members[0].last_log_index
    };
    let name = |number| Some(RequestId { origin: 7, number, ..RequestId::default() });
    let own = RegisterRequest { request_id: name(1), ..registration(vec![spec("orders", "a")]) };
    let dead = register(&mut registry, "qrt_orders", own).await;
    registry.deregister(by(orders, deregistration(dead))).await.unwrap();
    let foreign = registration(vec![spec("payments", "a")]);
    let foreign = register(&mut registry, "qrt_payments", foreign).await;
    let mut told = Vec::new();
    for lease in [dead, foreign, foreign + 1] {
        let (before, mut words) = (last_log_index().await, BTreeSet::new());
        let mut tell = |answer: Result<(), Status>| {
            let refused = answer.unwrap_err();
            let message = refused.message().replace(&lease.to_string(), "LEASE");
            words.insert(format!("{:?}: {message}", refused.code()));
        };
        for _ in 0..CALLS {
            // Without a name, with a new one, and with one that was for something else.
            for request_id in [None, name(9), name(1)] {
                let leave = DeregisterRequest { request_id, ..deregistration(lease) };
                tell(registry.deregister(by(orders, leave)).await.map(drop));
                let under = registration(vec![spec("orders", "c")]);
                let under = RegisterRequest { lease_id: lease, request_id, ..under };
                tell(registry.register(by(orders, under)).await.map(drop));
            }
        }
        let grown = last_log_index().await - before;
        assert!(grown < CALLS, "{CALLS} times six calls left {grown} entries");
        told.push(words);
    }
    assert_eq!(told[0].len(), 2, "unknown, and a name that was used: {told:?}");
    assert!(told.iter().all(|words| *words == told[0]), "{told:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_keeps_anothers_lease_alive() {
    let access = entry("qrt_orders", ORDERS) + &entry("qrt_payments", PAYMENTS);
    let guarded = Guarded::start(1, &access).await;
    let mut registry = guarded.cluster.registry(1);
    let mut dying = registration(vec![spec("payments", "a")]);
    dying.ttl_ms = 1_000;
    let lease = register(&mut registry, "qrt_payments", dying).await;
    let (asks, requests) = mpsc::channel(4);
    asks.send(renewal([lease])).await.unwrap();
    let requests = by(Some("qrt_orders"), ReceiverStream::new(requests));
    let mut answers = registry.renew_stream(requests).await.unwrap().into_inner();
    assert_eq!(next(&mut answers).await.unwrap().unknown_lease_ids, [lease]);
    eventually("it expires, however often it is renewed by another", || async {
        let mut registry = guarded.cluster.registry(1);
        let renewed = registry.renew(by(Some("qrt_orders"), renewal([lease]))).await;
        assert_refused(renewed, Code::NotFound, &[]);
        ids_of(&mut registry, "payments").await.is_empty().then_some(())
    })
    .await;
}

async fn next<T>(answers: &mut Streaming<T>) -> Result<T, Status> {
    let next = timeout(SOON, answers.message()).await.expect("silence")?;
    next.ok_or_else(|| Status::unknown("it ended without a status"))
}

/// A watch, and what keeps it open.
struct Watching {
    answers: Streaming<WatchResponse>,
    _asks: mpsc::Sender<WatchRequest>,
}

impl Watching {
    async fn open(guarded: &Guarded, token: &str, of: WatchSubscribe) -> Result<Self, Status> {
        let (asks, requests) = mpsc::channel(4);
        let _ = asks.try_send(WatchRequest { kind: Some(Ask::Subscribe(of)) });
        let request = by(None, ReceiverStream::new(requests));
        let mut request = request;
        let value = format!("bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", value);
        // A stream has no deadline.
        request.metadata_mut().remove("grpc-timeout");
        let answers = guarded.cluster.registry(1).watch(request).await?.into_inner();
        Ok(Self { answers, _asks: asks })
    }

    /// Why it ends.
    async fn end(&mut self) -> Status {
        let ending = async {
            loop {
                if let Err(status) = next(&mut self.answers).await {
                    return status;
                }
            }
        };
        timeout(2 * SOON, ending).await.expect("it goes on")
    }
}

/// GHSA-xg4h-6gfc-h4m8 (etcd), and what goes on after a right is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_stream_ends_with_the_right_to_it_and_says_why() {
    let narrow = |rest: &str| {
        entry("qrt_kept", ORDERS)
            + &entry("qrt_narrowed", rest)
            + &entry("qrt_moved", &ORDERS.replace("default", "elsewhere"))
    };
    let access = |ends_in| {
        entry("qrt_kept", ORDERS)
            + &entry("qrt_narrowed", ORDERS)
            + &entry("qrt_moved", ORDERS)
            + &entry("qrt_removed", ORDERS)
            + &entry("qrt_ends", &format!("{ORDERS}\nnot_after = '{}'", wall_clock_in(ends_in)))
    };
    let guarded = Guarded::start(1, &access(6)).await;
    let watch = |token| Watching::open(&guarded, token, subscribe_to_prefix("orders"));
    let mut ending = watch("qrt_ends").await.ok();
    if ending.is_none() {
        // It has ended before: a busy machine needs more time.
        guarded.rewrite(&access(25));
        ending = Some(eventually("it may watch", || async { watch("qrt_ends").await.ok() }).await);
    }
    let (mut kept, mut narrowed) =
        (watch("qrt_kept").await.unwrap(), watch("qrt_narrowed").await.unwrap());
    let (mut moved, mut removed) =
        (watch("qrt_moved").await.unwrap(), watch("qrt_removed").await.unwrap());
    let (asks, requests) = mpsc::channel::<RenewRequest>(4);
    let mut renewing = by(Some("qrt_removed"), ReceiverStream::new(requests));
    renewing.metadata_mut().remove("grpc-timeout");
    asks.send(renewal([5])).await.unwrap();
    let mut renewing =
        guarded.cluster.registry(1).renew_stream(renewing).await.unwrap().into_inner();
    assert_eq!(next(&mut renewing).await.unwrap().unknown_lease_ids, [5]);

    // Resumed from a revision, a wider prefix is no narrower.
    for (prefix, from_revision) in [("", 0), ("order", 0), ("order", 1), ("", 1)] {
        let wider = WatchSubscribe { from_revision, ..subscribe_to_prefix(prefix) };
        let refused = Watching::open(&guarded, "qrt_kept", wider).await.err();
        assert_refused(Err::<(), _>(refused.unwrap()), Code::PermissionDenied, &["read"]);
    }

    let status = ending.expect("it was opened").end().await;
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    assert!(status.message().contains("expired"), "{status:?}");
    guarded.rewrite(&narrow(&ORDERS.replace("'orders'", "'orders.eu'")));
    let status = narrowed.end().await;
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    assert!(status.message().contains("token:narrowed needs the role read"), "{status:?}");
    assert_eq!(moved.end().await.code(), Code::PermissionDenied);
    assert_eq!(removed.end().await.code(), Code::Unauthenticated);
    asks.send(renewal([5])).await.unwrap();
    assert_eq!(next(&mut renewing).await.unwrap_err().code(), Code::Unauthenticated);
    // The others go on.
    let mut registry = guarded.cluster.registry(1);
    register(&mut registry, "qrt_kept", registration(vec![spec("orders", "a")])).await;
    loop {
        let message = next(&mut kept.answers).await.unwrap();
        if let Some(Kind::Delta(delta)) = message.kind {
            assert_eq!(delta.changes.len(), 1);
            break;
        }
    }
}

/// By HTTP, a read that waits for a change is a stream of one answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_waits_ends_when_its_caller_loses_the_right() {
    let guarded = Guarded::start(1, &entry("qrt_orders", ORDERS)).await;
    register(&mut guarded.cluster.registry(1), ROOT, registration(vec![spec("orders", "a")])).await;
    let http = guarded.cluster.http_address(1);
    let path = "/api/v1/namespaces/default/services/orders";
    let now = get(http, path, Some("qrt_orders")).await.unwrap();
    let now: serde_json::Value = serde_json::from_str(&now.body).unwrap();
    let index = now["index"].as_str().unwrap();

    let waits = format!("{path}?index={index}&wait=5m");
    let waiting =
        tokio::spawn(async move { get_within(http, &waits, Some("qrt_orders"), 3 * SOON).await });
    // Nobody sees that a node waits: it has had the time to begin when it has answered another one.
    assert_eq!(get(http, path, Some("qrt_orders")).await.unwrap().status, 200);
    guarded.rewrite("");
    let answer = waiting.await.unwrap().unwrap();
    assert_eq!(answer.status, 401, "{}", answer.body);
}

/// The wall clock this many seconds from now, as RFC 3339 has it.
fn wall_clock_in(seconds: u32) -> String {
    let mut date = std::process::Command::new("date");
    let said = date.args(["-u", &format!("-d+{seconds} seconds"), "+%FT%TZ"]).output().unwrap();
    String::from_utf8(said.stdout).unwrap().trim().to_owned()
}

/// etcd#22065: what was encoded for one was sent to another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_sent_what_was_encoded_for_another() {
    let access = entry("qrt_orders", ORDERS) + &entry("qrt_payments", PAYMENTS);
    let guarded = Guarded::start(1, &access).await;
    let mut registry = guarded.cluster.registry(1);
    let both = [("qrt_orders", "orders"), ("qrt_payments", "payments")];
    let mut watches = Vec::new();
    for (token, service) in both {
        let watch = Watching::open(&guarded, token, subscribe_to(&[service])).await.unwrap();
        watches.push((watch, service));
    }
    const CHANGES: u32 = 20;
    let specs = both.map(|(_, service)| spec(service, "a"));
    register(&mut registry, ROOT, registration(specs.to_vec())).await;
    for weight in 0..CHANGES {
        for (token, service) in both {
            let instance = Some(named(service, "a"));
            let weight = Some(weight);
            let update = UpdateRequest { instance, weight, ..UpdateRequest::default() };
            registry.update(by(Some(ROOT), update)).await.unwrap();
            let answer = registry.fetch(by(Some(token), fetch_of(&[service]))).await.unwrap();
            let answer = answer.into_inner();
            assert!(answer.services.iter().all(|of| of.name == service), "{answer:?}");
            for (other, _) in both.iter().filter(|(other, _)| *other != token) {
                let refused = registry.fetch(by(Some(other), fetch_of(&[service]))).await;
                assert_refused(refused, Code::PermissionDenied, &[service]);
                let page = FetchRequest { limit: 1, ..fetch_of(&[service]) };
                let refused = registry.fetch(by(Some(other), page)).await;
                assert_refused(refused, Code::PermissionDenied, &[service]);
            }
        }
    }
    for (watch, service) in &mut watches {
        let mut seen = 0;
        while seen < CHANGES {
            if let Some(Kind::Delta(delta)) = next(&mut watch.answers).await.unwrap().kind {
                for change in delta.changes {
                    let instance = change.instance.unwrap();
                    assert_eq!(instance.service, *service);
                    seen = seen.max(instance.weight % 100 + 1);
                }
            }
        }
    }
}

/// A newer run is only told to those who may register the instance.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_tells_nothing_to_those_who_may_not_ask() {
    let guarded = Guarded::start(1, &entry("qrt_orders", ORDERS)).await;
    let mut registry = guarded.cluster.registry(1);
    let held = |service: &str| RegisterRequest {
        incarnation: 9,
        ..registration(vec![spec(service, "a")])
    };
    for service in ["orders", "payments"] {
        register(&mut registry, ROOT, held(service)).await;
    }
    let older = |service: &str| registration(vec![spec(service, "a")]);
    let refused = registry.register(by(Some("qrt_orders"), older("orders"))).await;
    let refused = assert_refused(refused, Code::FailedPrecondition, &["9"]);
    assert!(refused.metadata().get("quorate-incarnation").is_some());
    let nothing = |service: &str| older(&format!("{service}-that-is-not-there"));
    let mut words = Vec::new();
    for request in [older("payments"), nothing("payments")] {
        let service = request.instances[0].service.clone();
        let refused: Result<RegisterResponse, _> = registry
            .register(by(Some("qrt_orders"), request))
            .await
            .map(tonic::Response::into_inner);
        let refused = assert_refused(refused, Code::PermissionDenied, &[&service]);
        assert!(refused.metadata().get("quorate-incarnation").is_none());
        words.push(refused.message().replace(&service, "SERVICE"));
        let target = InstanceRef { incarnation: 1, ..named(&service, "a") };
        let request =
            DeregisterRequest { instances: vec![target.clone()], ..DeregisterRequest::default() };
        let refused = registry.deregister(by(Some("qrt_orders"), request)).await;
        assert_refused(refused, Code::PermissionDenied, &[&service]);
        let request =
            UpdateRequest { instance: Some(target), weight: Some(1), ..UpdateRequest::default() };
        let refused = registry.update(by(Some("qrt_orders"), request)).await;
        assert_refused(refused, Code::PermissionDenied, &[&service]);
    }
    assert_eq!(words[0], words[1]);
}

/// One process that calls for two callers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_with_two_tokens_has_for_each_its_own_rights() {
    let access = entry("qrt_orders", ORDERS) + &entry("qrt_payments", PAYMENTS);
    let guarded = Guarded::start(1, &access).await;
    let client = guarded.cluster.client_builder().token("qrt_orders").build().unwrap();
    let payments = client.with_token("qrt_payments").unwrap();
    let alone = || async {
        let text = get(guarded.cluster.http_address(1), "/metrics", Some(ROOT)).await?.body;
        let count = text.lines().find_map(|line| line.strip_prefix("quorate_connections "))?;
        (count == "1").then_some(())
    };
    let code = |answer: Result<(), Error>| match answer {
        Ok(()) => Code::Ok,
        Err(Error::Rejected { code, .. }) => code,
        Err(other) => panic!("{other}"),
    };
    let mut handles = Vec::new();
    for (own, other, service) in [(&client, &payments, "orders"), (&payments, &client, "payments")]
    {
        let instance = |id: &str| InstanceBuilder::new(service, id).endpoint("http", "http://h:1");
        handles.push(own.register(instance("a")).await.unwrap());
        assert_eq!(code(own.fetch(service).await.map(drop)), Code::Ok, "{service}");
        assert_eq!(code(other.fetch(service).await.map(drop)), Code::PermissionDenied);
        let refused = other.register(instance("b")).await.map(drop);
        assert_eq!(code(refused), Code::PermissionDenied, "{service}");
        assert_eq!(code(other.deregister(service, "a").await), Code::PermissionDenied);
        let view = own.discover(service).unwrap();
        assert_eq!(view.usable().await.unwrap().len(), 1);
        // Views of the same service, of both at once.
        let refused = other.discover(service).unwrap();
        assert_eq!(code(refused.usable().await.map(drop)), Code::PermissionDenied);
        assert!(refused.current().get("a").is_none());
        eventually("both use one connection", alone).await;
    }
    // Made anew for each call, as often as there are calls.
    for _ in 0..200 {
        let payments = client.with_token("qrt_payments").unwrap();
        payments.update("payments", "a", &Update::default().weight(7)).await.unwrap();
    }
    for handle in handles {
        handle.deregister().await.unwrap();
    }
}
