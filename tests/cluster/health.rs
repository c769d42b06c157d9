//! Active health checks, with targets on loopback: what makes an instance critical, and what brings
//! it back; that many are probed on schedule, whatever some of them do; that nothing is probed that
//! the operator does not allow.

use std::time::Duration;

use quorate_client::{
    Consistency, Discovery, Error, FetchOptions, HealthCheck, InstanceBuilder, Selection,
};
use quorate_proto::v1;
use quorate_proto::v1::{Health, InstanceSpec, RegisterRequest};
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::calls::{Registry, deregister, fetch_all, in_time, registration};
use super::harness::{Cluster, eventually, within};
use super::metronome::Metronome;
use super::stream::{Stream, subscribe_to};
use super::targets::{Answer, SECOND_MS, Targets, grpc, http, on_schedule, tcp};

const LOOPBACK: &str = "127.0.0.0/8";

/// The slowest change needs ten probes, a second apart.
const IN_A_WHILE: Duration = Duration::from_secs(60);

async fn register(registry: &mut Registry, specs: Vec<InstanceSpec>) {
    registry.register(in_time(registration(specs))).await.expect("a registration");
}

async fn health(registry: &mut Registry, service: &str, id: &str) -> Health {
    let (_, map) = fetch_all(registry).await;
    map.get(&(service.to_owned(), id.to_owned())).expect("registered").health()
}

async fn reason(registry: &mut Registry, id: &str) -> String {
    let (_, mut map) = fetch_all(registry).await;
    map.remove(&("web".to_owned(), id.to_owned())).expect("registered").health_reason
}

async fn becomes(registry: &Registry, id: &str, expected: Health) {
    within(IN_A_WHILE, &format!("{id} is {expected:?}"), || async {
        (health(&mut registry.clone(), "web", id).await == expected).then_some(())
    })
    .await;
}

async fn asked_times(targets: &Targets, path: &str, times: usize) {
    within(IN_A_WHILE, &format!("{path} was asked for {times} times"), || async {
        (targets.asked(path).len() >= times).then_some(())
    })
    .await;
}

// S4.4, S4.5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_probe_now_and_then_is_not_critical() {
    let cluster = Cluster::start_probing(1, LOOPBACK).await;
    let (targets, mut registry) = (Targets::open().await, cluster.registry(1));
    // On a busy machine, a good answer now and then comes too late, too.
    targets.answer("/a", Answer::Turns(vec![200, 500]));
    let mut stream = Stream::open(&registry, subscribe_to(&["web"])).await.unwrap();
    stream.snapshot().await;
    let mut instance = targets.instance("web", "a", SECOND_MS);
    instance.checks[0].failures_before_critical = 4;
    register(&mut registry, vec![instance]).await;
    asked_times(&targets, "/a", 10).await;
    assert_eq!(health(&mut registry, "web", "a").await, Health::Passing);

    targets.answer("/a", Answer::Status(500));
    becomes(&registry, "a", Health::Critical).await;
    let (revision, _) = fetch_all(&mut registry).await;
    stream.reach(revision).await;
    let changes: Vec<_> =
        stream.changes.iter().map(|change| change.instance.clone().unwrap().health()).collect();
    let expected = [Health::Unknown, Health::Passing, Health::Critical];
    assert_eq!(changes, expected, "each change once, and no other");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_critical_says_why_until_it_passes() {
    let cluster = Cluster::start_probing(1, LOOPBACK).await;
    let (targets, mut registry) = (Targets::open().await, cluster.registry(1));
    targets.answer("/a", Answer::Status(503));
    let mut stream = Stream::open(&registry, subscribe_to(&["web"])).await.unwrap();
    stream.snapshot().await;
    // The second check passes all along, in between the probes of the first.
    let mut both = targets.instance("web", "a", SECOND_MS);
    both.checks.push(tcp(SECOND_MS));
    register(&mut registry, vec![both]).await;
    becomes(&registry, "a", Health::Critical).await;
    let why = format!("http://127.0.0.1:{}/a: HTTP status 503", targets.port);
    assert_eq!(reason(&mut registry, "a").await, why);
    let (revision, _) = fetch_all(&mut registry).await;

    // It fails in another way from now on: no change, and no revision, for that.
    targets.answer("/a", Answer::Status(500));
    let asked = targets.asked("/a").len();
    asked_times(&targets, "/a", asked + 4).await;
    assert_eq!(reason(&mut registry, "a").await, why);
    assert_eq!(fetch_all(&mut registry).await.0, revision);

    targets.answer("/a", Answer::Status(200));
    becomes(&registry, "a", Health::Passing).await;
    assert_eq!(reason(&mut registry, "a").await, "");
    let (revision, _) = fetch_all(&mut registry).await;
    stream.reach(revision).await;
    let told = stream.changes.iter().map(|change| change.instance.as_ref().unwrap());
    let told: Vec<_> = told.map(|it| (it.health(), it.health_reason.as_str())).collect();
    let expected = [(Health::Unknown, ""), (Health::Critical, why.as_str()), (Health::Passing, "")];
    assert_eq!(told, expected);
}

// S4.9
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_kind_of_check_takes_out_and_brings_back() {
    let cluster = Cluster::start_probing(1, LOOPBACK).await;
    let mut registry = cluster.registry(1);
    let targets = Targets::open().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tcp_address = listener.local_addr().unwrap();
    let (reporter, grpc_port) = serve_grpc_health().await;
    reporter.set_service_status("shop.Cart", tonic_health::ServingStatus::Serving).await;
    let at = |port: u16, id: &str, check: v1::HealthCheck| {
        let endpoints = [("e".to_owned(), format!("http://127.0.0.1:{port}"))].into();
        InstanceSpec { endpoints, checks: vec![check], ..super::calls::spec("web", id) }
    };
    let instances = vec![
        targets.instance("web", "http", SECOND_MS),
        at(tcp_address.port(), "tcp", tcp(SECOND_MS)),
        at(grpc_port, "grpc", grpc("shop.Cart", SECOND_MS)),
    ];
    register(&mut registry, instances).await;
    let before = fetch_all(&mut registry).await.1;
    for id in ["http", "tcp", "grpc"] {
        becomes(&registry, id, Health::Passing).await;
    }

    targets.answer("/http", Answer::Redirect("/elsewhere"));
    drop(listener);
    reporter.set_service_status("shop.Cart", tonic_health::ServingStatus::NotServing).await;
    for (id, why) in [
        ("http", "HTTP status 302"),
        ("tcp", "Connection refused (os error 111)"),
        ("grpc", "gRPC health NOT_SERVING"),
    ] {
        becomes(&registry, id, Health::Critical).await;
        assert_eq!(reason(&mut registry, id).await.split_once(": ").unwrap().1, why);
    }
    assert_eq!(targets.asked("/elsewhere").len(), 0, "redirects are not followed");

    targets.answer("/http", Answer::Status(204));
    let _listener = TcpListener::bind(tcp_address).await.expect("the same port");
    reporter.set_service_status("shop.Cart", tonic_health::ServingStatus::Serving).await;
    for id in ["http", "tcp", "grpc"] {
        becomes(&registry, id, Health::Passing).await;
        let key = ("web".to_owned(), id.to_owned());
        let after = fetch_all(&mut registry).await.1.remove(&key).unwrap();
        assert_eq!(after.incarnation, before[&key].incarnation, "it did not register again");
        assert_eq!(after.create_revision, before[&key].create_revision);
    }
}

async fn serve_grpc_health() -> (tonic_health::server::HealthReporter, u16) {
    let (reporter, service) = tonic_health::server::health_reporter();
    let incoming = tonic::transport::server::TcpIncoming::bind("127.0.0.1:0".parse().unwrap());
    let incoming = incoming.expect("a port");
    let port = incoming.local_addr().expect("an address").port();
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(incoming));
    (reporter, port)
}

// S4.6
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_targets_are_probed_on_schedule() {
    const INTERVAL_MS: u32 = 4_000;
    let cluster = Cluster::start_probing(1, LOOPBACK).await;
    let (targets, mut registry) = (Targets::open().await, cluster.registry(1));
    let ids: Vec<String> = (0..1_000).map(|at| format!("t{at}")).collect();
    let specs = ids.iter().map(|id| targets.instance("web", id, INTERVAL_MS)).collect();
    register(&mut registry, specs).await;
    let paths: Vec<_> = ids.iter().map(|id| format!("/{id}")).collect();
    let metronome = Metronome::start();
    let all = || paths.iter().map(|path| targets.asked(path)).collect::<Vec<_>>();
    let share = within(IN_A_WHILE, "everyone was probed five times", || async {
        let all = all();
        if all.iter().any(|asked| asked.len() < 5) {
            return None;
        }
        let [on_schedule, undisturbed] = on_schedule(&all, INTERVAL_MS, &metronome);
        (undisturbed >= 1_000).then_some(on_schedule as f64 / undisturbed as f64)
    })
    .await;
    eprintln!("of 1,000 targets, {:.1} % of the probes were on schedule", share * 100.0);
    // All of them on a quiet machine; this one may have much else to do.
    assert!(share > 0.8, "{share}");
    let all = all();
    let most = all.iter().map(Vec::len).max().unwrap();
    let least = all.iter().map(Vec::len).min().unwrap();
    assert!(
        most <= least + 3,
        "one was probed {most} times while another was probed {least} times"
    );
}

// S4.7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn targets_that_hang_hold_nobody_up() {
    let cluster = Cluster::start_probing(1, LOOPBACK).await;
    let (targets, mut registry) = (Targets::open().await, cluster.registry(1));
    let hanging = (0..400).map(|at| {
        let mut spec = targets.instance("web", &format!("hangs{at}"), 2_000);
        targets.answer(&format!("/hangs{at}"), Answer::Hang);
        spec.checks[0].failures_before_critical = 1;
        spec
    });
    register(&mut registry, hanging.collect()).await;
    within(IN_A_WHILE, "all targets that hang are critical", || async {
        let (_, map) = fetch_all(&mut registry.clone()).await;
        map.values().all(|instance| instance.health() == Health::Critical).then_some(())
    })
    .await;
    // More hang than may be under way at a time; targets that answer are probed as if they were
    // alone.
    let prompt: Vec<_> = (0..20).map(|at| format!("prompt{at}")).collect();
    let specs = prompt.iter().map(|id| targets.instance("web", id, 2_000)).collect();
    let metronome = Metronome::start();
    register(&mut registry, specs).await;
    for id in &prompt {
        asked_times(&targets, &format!("/{id}"), 5).await;
        becomes(&registry, id, Health::Passing).await;
    }
    let share = within(IN_A_WHILE, "enough probes that nothing has disturbed", || async {
        let all: Vec<_> = prompt.iter().map(|id| targets.asked(&format!("/{id}"))).collect();
        let [on_schedule, undisturbed] = on_schedule(&all, 2_000, &metronome);
        (undisturbed >= 40).then_some(on_schedule as f64 / undisturbed as f64)
    })
    .await;
    eprintln!("beside 400 that hang, {:.1} % of the probes were on schedule", share * 100.0);
    assert!(share > 0.8, "{share}");
}

// S4.8
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn targets_come_and_go_while_they_are_probed() {
    let cluster = Cluster::start_probing(1, LOOPBACK).await;
    let (targets, mut registry) = (Targets::open().await, cluster.registry(1));
    for round in 0..30_u64 {
        let mut request = registration(
            (0..50).map(|at| targets.instance("web", &format!("t{at}"), SECOND_MS)).collect(),
        );
        request.incarnation = 2 * round + 1;
        for spec in request.instances.iter_mut().filter(|_| round % 3 == 0) {
            spec.checks[0].interval_ms = 2_000;
        }
        registry.register(request).await.expect("a registration");
        if round % 2 == 0 {
            for at in 0..25 {
                deregister(&mut registry, "web", &format!("t{at}")).await;
            }
        }
        asked_times(&targets, &format!("/t{}", 25 + round % 25), 1).await;
    }
    // The last round registered all of them, and they are probed as ever.
    for at in [0, 24, 25, 49] {
        let asked = targets.asked(&format!("/t{at}")).len();
        asked_times(&targets, &format!("/t{at}"), asked + 2).await;
        becomes(&registry, &format!("t{at}"), Health::Passing).await;
    }
    targets.answer("/t7", Answer::Status(503));
    becomes(&registry, "t7", Health::Critical).await;
}

// S4.13
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_allowed_is_never_contacted() {
    let cluster = Cluster::start_probing(1, "10.0.0.0/8").await;
    let (targets, mut registry) = (Targets::open().await, cluster.registry(1));
    let check = || http("/", SECOND_MS);
    let specs = vec![
        targets.at("127.0.0.1", "web", "by-address", check()),
        targets.at("localhost", "web", "by-name", tcp(SECOND_MS)),
        targets.at("[::ffff:127.0.0.1]", "web", "in-disguise", grpc("", SECOND_MS)),
    ];
    let names = specs.len() as u64;
    register(&mut registry, specs).await;
    within(IN_A_WHILE, "each was refused three times", || async {
        let status = cluster.own_status(1).await?;
        (status.members.first()?.probes_refused >= 3 * names).then_some(())
    })
    .await;
    assert_eq!(targets.connections(), 0);
    assert_eq!(cluster.own_status(1).await.unwrap().members[0].probes_made, 0);
    for id in ["by-address", "by-name", "in-disguise"] {
        assert_eq!(health(&mut registry, "web", id).await, Health::Unknown, "{id}");
    }
}

/// What was found stayed, though nobody looked any more.
// S4.13
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_allowed_any_more_is_not_known_any_more() {
    let mut cluster = Cluster::start_probing(1, LOOPBACK).await;
    let (targets, mut registry) = (Targets::open().await, cluster.registry(1));
    targets.answer("/a", Answer::Status(503));
    let lasting = RegisterRequest {
        ttl_ms: 3_600_000,
        ..registration(vec![targets.instance("web", "a", SECOND_MS)])
    };
    registry.register(in_time(lasting)).await.expect("a registration");
    for networks in ["10.0.0.0/8", ""] {
        becomes(&cluster.registry(1), "a", Health::Critical).await;
        for (allow, expected) in [(networks, Health::Unknown), (LOOPBACK, Health::Critical)] {
            cluster.stop(1).await;
            cluster.config_mut(1).health_checks.allow = allow.parse().unwrap();
            cluster.restart(1).await;
            cluster.leader().await;
            becomes(&cluster.registry(1), "a", expected).await;
        }
    }
    assert!(reason(&mut cluster.registry(1), "a").await.ends_with("HTTP status 503"));
}

// S4.13
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_probed_unless_the_operator_says_so() {
    let off = Cluster::start(1).await;
    let on = Cluster::start_probing(1, LOOPBACK).await;
    let targets = Targets::open().await;
    let (mut registry_off, mut registry_on) = (off.registry(1), on.registry(1));
    register(&mut registry_off, vec![targets.instance("web", "off", SECOND_MS)]).await;
    register(&mut registry_on, vec![targets.instance("web", "on", SECOND_MS)]).await;
    asked_times(&targets, "/on", 4).await;
    assert_eq!(targets.asked("/off").len(), 0);
    assert_eq!(health(&mut registry_off, "web", "off").await, Health::Unknown);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_leader_goes_on_probing() {
    let mut cluster = Cluster::start_probing(3, LOOPBACK).await;
    let targets = Targets::open().await;
    let first = cluster.leader().await;
    let term = async || cluster.own_status(first).await.unwrap().header.unwrap().term;
    let before = term().await;
    let mut registry = cluster.registry(first);
    targets.answer("/b", Answer::Status(500));
    let specs = ["a", "b"].map(|id| targets.instance("web", id, SECOND_MS));
    register(&mut registry, specs.into()).await;
    becomes(&registry, "a", Health::Passing).await;
    becomes(&registry, "b", Health::Critical).await;
    let mut made = Vec::new();
    for id in cluster.ids() {
        made.push((id, cluster.own_status(id).await.unwrap().members[0].probes_made));
    }
    // On a busy machine, silence may have elected another one.
    if term().await == before {
        let only_leader = made.iter().all(|(id, made)| (*made > 0) == (*id == first));
        assert!(only_leader, "only node {first} probes: {made:?}");
    }

    cluster.stop(first).await;
    let next = cluster.leader().await;
    let registry = cluster.registry(next);
    assert_eq!(health(&mut registry.clone(), "web", "b").await, Health::Critical, "it is known");
    assert!(reason(&mut registry.clone(), "b").await.ends_with("/b: HTTP status 500"));
    targets.answer("/a", Answer::Status(500));
    targets.answer("/b", Answer::Status(200));
    becomes(&registry, "a", Health::Critical).await;
    becomes(&registry, "b", Health::Passing).await;
    eventually("the other one, too, has it", || async {
        let other = cluster.ids().into_iter().find(|id| *id != next)?;
        (health(&mut cluster.registry(other), "web", "a").await == Health::Critical).then_some(())
    })
    .await;
}

// S4.9
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_leave_out_what_is_critical() {
    let cluster = Cluster::start_probing(1, LOOPBACK).await;
    let (targets, client) = (Targets::open().await, cluster.client().await);
    let check = HealthCheck::http("/a").every(Duration::from_secs(1)).failures_before_critical(2);
    let uri = format!("http://127.0.0.1:{}", targets.port);
    let builder = InstanceBuilder::new("web", "a").endpoint("http", uri).check(check);
    let registration = client.register(builder).await.expect("a registration");
    let incarnation = registration.incarnation();
    let mut view = client.discover("web").expect("a view");
    assert_eq!(view.usable().await.expect("callable before any probe").len(), 1);
    asked_times(&targets, "/a", 1).await;

    targets.answer("/a", Answer::Status(503));
    let shows = async |view: &mut Discovery, count: usize| {
        while view.current().len() != count {
            timeout(IN_A_WHILE, view.changed()).await.expect("the view changes");
        }
    };
    shows(&mut view, 0).await;
    assert!(matches!(view.usable().await, Err(Error::NoInstances { .. })));
    let options = FetchOptions::new(Selection::services(["web"]));
    let fetched = client.fetch_with(&options).await.expect("an answer").services.unwrap();
    assert!(fetched[0].instances[0].health_reason.ends_with("/a: HTTP status 503"), "{fetched:?}");
    let listed = client.list_services("web", Consistency::Local).await.expect("a list");
    assert_eq!((listed[0].instances, listed[0].up, listed[0].usable), (1, 1, 0));
    targets.answer("/a", Answer::Status(200));
    shows(&mut view, 1).await;
    let back = view.current().get("a").expect("it is back").clone();
    assert_eq!((back.health(), back.incarnation), (Health::Passing, incarnation));
}
