//! Bad input: every limit of the wire contract just kept, and just broken. A refusal names the
//! field, the value and the limit, and leaves nothing behind (S2.2, S4.11).

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use quorate_proto::v1::health_check::Kind;
use quorate_proto::v1::{
    DeregisterRequest, FetchRequest, HealthCheck, HttpCheck, InstanceOverride, InstanceRef,
    InstanceSpec, ListServicesRequest, Metadata, RegisterRequest, SetOverrideRequest, TcpCheck,
    UpdateRequest,
};
use tonic::Code;

use super::calls::{
    Registry, assert_refused, fetch_all, fetch_of, named, register, registration, renewal, spec,
};
use super::harness::Cluster;
use super::stream::{Stream, subscribe_to, subscribe_to_prefix};

/// An incarnation as a client's clock makes one that is so far ahead.
fn ahead_by(hours: u64) -> u64 {
    let now = UNIX_EPOCH.elapsed().expect("a clock that is set");
    (now + Duration::from_secs(hours * 3_600)).as_micros() as u64
}

type Change = Box<dyn Fn(&mut RegisterRequest)>;

/// A registration with one thing that is out of its limits, and what its refusal has to say.
fn row(says: &[&'static str], change: impl Fn(&mut RegisterRequest) + 'static) -> Row {
    Row { says: says.to_vec(), change: Box::new(change) }
}

/// The same, where the instance is what changes.
fn spec_row(says: &[&'static str], change: impl Fn(&mut InstanceSpec) + 'static) -> Row {
    row(says, move |request| change(&mut request.instances[0]))
}

struct Row {
    says: Vec<&'static str>,
    change: Change,
}

fn endpoints(count: usize) -> BTreeMap<String, String> {
    (0..count).map(|at| (format!("e{at}"), format!("http://10.0.0.1:{at}"))).collect()
}

fn metadata(count: usize, bytes: usize) -> BTreeMap<String, String> {
    // Keys of four bytes each; the first value takes what is left.
    let mut entries: BTreeMap<_, _> =
        (0..count).map(|at| (format!("k{at:03}"), String::new())).collect();
    entries.insert("k000".to_owned(), "x".repeat(bytes.saturating_sub(4 * count)));
    entries
}

fn out_of_limits() -> Vec<Row> {
    let long = || "n".repeat(254);
    let mut rows = vec![
        row(&["instances", "0", "1 to 1000"], |r| r.instances.clear()),
        row(&["instances", "1001", "1 to 1000"], |r| {
            r.instances = (0..1_001).map(|at| spec("web", &format!("i{at}"))).collect();
        }),
        row(&["instances[1]", "default/web/a", "twice"], |r| r.instances.push(spec("web", "a"))),
        row(&["ttl_ms", "999", "1000 to 86400000"], |r| r.ttl_ms = 999),
        row(&["ttl_ms", "86400001", "1000 to 86400000"], |r| r.ttl_ms = 86_400_001),
        row(&["incarnation", "18446744073709551615", "at most"], |r| r.incarnation = u64::MAX),
        row(&["incarnation", "a year from now"], |r| r.incarnation = ahead_by(366 * 24)),
        row(&["namespace", "a/b"], |r| r.namespace = "a/b".to_owned()),
        row(&["namespace", "254", "253"], move |r| r.namespace = long()),
        spec_row(&["instances[0].service", "empty"], |i| i.service.clear()),
        spec_row(&["instances[0].id", "empty"], |i| i.id.clear()),
        spec_row(&["instances[0].endpoints", "0", "1 to 32"], |i| i.endpoints.clear()),
        spec_row(&["instances[0].endpoints", "33", "1 to 32"], |i| i.endpoints = endpoints(33)),
        spec_row(&["instances[0].weight", "1000001", "1000000"], |i| i.weight = Some(1_000_001)),
        spec_row(&["instances[0].load", "1000001", "1000000"], |i| i.load = 1_000_001),
        spec_row(&["instances[0].status", "5"], |i| i.status = 5),
        spec_row(&["instances[0].status", "-1"], |i| i.status = -1),
        spec_row(&["instances[0].metadata", "65", "64"], |i| i.metadata = metadata(65, 400)),
        spec_row(&["instances[0].metadata", "16385", "16384"], |i| {
            i.metadata = metadata(64, 16 * 1_024 + 1);
        }),
        spec_row(&["instances[0].metadata key", "1 to 253"], |i| {
            i.metadata.insert(String::new(), "v".to_owned());
        }),
        spec_row(&["instances[0].metadata key", "1 to 253"], move |i| {
            i.metadata.insert("k".repeat(254), "v".to_owned());
        }),
        spec_row(&["instances[0].requires", "65", "64"], |i| {
            i.requires = (0..65).map(|at| format!("s{at}")).collect();
        }),
        spec_row(&["instances[0].requires", "a b"], |i| i.requires = vec!["a b".to_owned()]),
        spec_row(&["instances[0].endpoints name", "a b"], |i| {
            i.endpoints.insert("a b".to_owned(), "http://h".to_owned());
        }),
        spec_row(&["instances[0].endpoints[x]", "2049", "2048"], |i| {
            let uri = format!("http://{}", "h".repeat(2_049 - 7));
            i.endpoints.insert("x".to_owned(), uri);
        }),
    ];
    for uri in
        ["", "host:", "/path", "10.0.0.1:80", "http://", "http:", "1a:b", "http://a b", "ü:x"]
    {
        rows.push(spec_row(&["instances[0].endpoints[x]", "absolute URI"], move |i| {
            i.endpoints.insert("x".to_owned(), uri.to_owned());
        }));
    }
    // A name with characters or an end that it may not have, in every place for a name.
    for bad in ["a/b", "a b", "ä", "-a", "a-", ".", "a\n", "a\0b"] {
        rows.push(spec_row(&["instances[0].service"], move |i| i.service = bad.to_owned()));
        rows.push(spec_row(&["instances[0].id"], move |i| i.id = bad.to_owned()));
        rows.push(spec_row(&["instances[0].zone"], move |i| i.zone = bad.to_owned()));
        rows.push(spec_row(&["instances[0].version"], move |i| i.version = bad.to_owned()));
    }
    for (field, set) in [
        ("instances[0].service", (|i, v| i.service = v) as fn(&mut InstanceSpec, String)),
        ("instances[0].id", |i, v| i.id = v),
        ("instances[0].zone", |i, v| i.zone = v),
        ("instances[0].version", |i, v| i.version = v),
    ] {
        rows.push(spec_row(&[field, "254", "253"], move |i| set(i, "n".repeat(254))));
    }
    rows
}

fn tags_out_of_limits() -> Vec<Row> {
    vec![
        spec_row(&["instances[0].tags", "33", "at most 32"], |i| {
            i.tags = (0..33).map(|at| format!("t{at}")).collect();
        }),
        spec_row(&["instances[0].tags", "a b", "spaces"], |i| i.tags = vec!["a b".to_owned()]),
        spec_row(&["instances[0].tags", "1 to 64 bytes"], |i| i.tags = vec!["t".repeat(65)]),
    ]
}

/// Everything at its limit at once.
fn at_the_limits() -> RegisterRequest {
    let name = |c: &str| c.repeat(253);
    let mut endpoints = endpoints(31);
    endpoints.insert(name("e"), format!("http://{}", "h".repeat(2_048 - 7)));
    let mut metadata = metadata(63, 10_000);
    metadata.insert(name("m"), "v".repeat(16 * 1_024 - 10_000 - 253));
    let path = format!("/{}", "p".repeat(1_023));
    let spec = InstanceSpec {
        service: name("s"),
        id: name("i"),
        endpoints,
        zone: name("z"),
        version: name("v"),
        weight: Some(1_000_000),
        load: 1_000_000,
        status: 4,
        metadata,
        requires: (0..64).map(|at| format!("r{at}")).collect(),
        checks: vec![
            HealthCheck {
                kind: Some(Kind::Http(HttpCheck { path })),
                endpoint: name("e"),
                interval_ms: 3_600_000,
                timeout_ms: 3_600_000,
                failures_before_critical: 10,
                successes_before_passing: 10,
            };
            4
        ],
        tags: (0..32).map(|at| format!("{at:064}")).collect(),
    };
    RegisterRequest {
        namespace: name("n"),
        ttl_ms: 86_400_000,
        incarnation: ahead_by(364 * 24),
        ..registration(vec![spec])
    }
}

/// A check with one thing that is out of its limits. The endpoint is http://a.example:80.
fn checks_out_of_limits() -> Vec<Row> {
    let http = |path: &str| Kind::Http(HttpCheck { path: path.to_owned() });
    let row = |says: &[&'static str], change: &dyn Fn(&mut HealthCheck)| {
        let mut check = tcp_check();
        change(&mut check);
        spec_row(says, move |i| i.checks = vec![tcp_check(), check.clone()])
    };
    vec![
        spec_row(&["instances[0].checks", "5", "at most 4"], |i| i.checks = vec![tcp_check(); 5]),
        row(&["instances[0].checks[1].kind", "http, tcp or grpc"], &|c| c.kind = None),
        row(&["checks[1].interval_ms", "999", "1000 to 3600000"], &|c| c.interval_ms = 999),
        row(&["checks[1].interval_ms", "3600001"], &|c| c.interval_ms = 3_600_001),
        row(&["checks[1].timeout_ms", "99", "100 to 10000"], &|c| c.timeout_ms = 99),
        row(&["checks[1].timeout_ms", "10001"], &|c| c.timeout_ms = 10_001),
        row(&["checks[1].failures_before_critical", "11", "1 to 10"], &|c| {
            c.failures_before_critical = 11;
        }),
        row(&["checks[1].successes_before_passing", "11", "1 to 10"], &|c| {
            c.successes_before_passing = 11;
        }),
        row(&["checks[1].endpoint", "grpc"], &|c| c.endpoint = "grpc".to_owned()),
        row(&["checks[1].http.path", "healthz", "/"], &|c| c.kind = Some(http("healthz"))),
        row(&["checks[1].http.path", "printable"], &|c| c.kind = Some(http("/a\r\nX: y"))),
        row(&["checks[1].http.path", "1025", "1024"], &|c| {
            c.kind = Some(http(&format!("/{}", "p".repeat(1_024))));
        }),
    ]
}

fn tcp_check() -> HealthCheck {
    HealthCheck { kind: Some(Kind::Tcp(TcpCheck {})), ..HealthCheck::default() }
}

async fn register_all_rows(registry: &mut Registry) {
    let rows = out_of_limits().into_iter().chain(checks_out_of_limits());
    for Row { says, change } in rows.chain(tags_out_of_limits()) {
        let mut request = registration(vec![spec("web", "a")]);
        change(&mut request);
        assert_refused(registry.register(request).await, Code::InvalidArgument, &says);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registrations_out_of_their_limits_are_refused_by_name_and_leave_nothing() {
    let cluster = Cluster::start(1).await;
    let mut registry = cluster.registry(1);
    register_all_rows(&mut registry).await;
    let (revision, map) = fetch_all(&mut registry).await;
    assert_eq!((revision, map.len()), (0, 0), "a refused registration leaves no trace");

    let request = at_the_limits();
    let granted = (request.ttl_ms, request.incarnation);
    let answer = registry.register(request).await.expect("at the limits").into_inner();
    assert_eq!((answer.ttl_ms, answer.incarnation), granted);
    let mut shortest = registration(vec![spec("web", "a")]);
    shortest.ttl_ms = 1_000;
    assert_eq!(registry.register(shortest).await.unwrap().into_inner().ttl_ms, 1_000);
    // S2.15: the answer has what is granted.
    let mut default = registration(vec![spec("web", "b")]);
    default.ttl_ms = 0;
    assert_eq!(registry.register(default).await.unwrap().into_inner().ttl_ms, 15_000);
    let thousand = (0..1_000).map(|at| spec("many", &format!("i{at}"))).collect();
    registry.register(registration(thousand)).await.expect("a thousand instances");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_other_calls_check_their_input_too() {
    let cluster = Cluster::start(1).await;
    let (mut registry, mut admin) = (cluster.registry(1), cluster.admin(1));
    let bad = Code::InvalidArgument;
    let lease = register(&mut registry, "web", "a").await.lease_id;

    assert_refused(registry.renew(renewal([])).await, bad, &["renewals", "0", "1 to 10000"]);
    let renewals = registry.renew(renewal(1..=10_001)).await;
    assert_refused(renewals, bad, &["renewals", "10001", "1 to 10000"]);
    assert!(registry.renew(renewal(lease..lease + 10_000)).await.is_ok(), "10,000 are allowed");

    let nothing = DeregisterRequest::default();
    let both = DeregisterRequest {
        lease_id: 1,
        instances: vec![named("web", "a")],
        ..DeregisterRequest::default()
    };
    for request in [nothing, both] {
        assert_refused(registry.deregister(request).await, bad, &["lease_id", "exactly one"]);
    }
    let many = DeregisterRequest {
        instances: (0..1_001).map(|at| named("web", &format!("i{at}"))).collect(),
        ..DeregisterRequest::default()
    };
    assert_refused(registry.deregister(many).await, bad, &["instances", "1001", "1000"]);
    let unnamed = DeregisterRequest {
        instances: vec![named("web", "a"), InstanceRef::default()],
        ..DeregisterRequest::default()
    };
    assert_refused(registry.deregister(unnamed).await, bad, &["instances[1].service"]);

    let mut ahead =
        DeregisterRequest { instances: vec![named("web", "a")], ..DeregisterRequest::default() };
    ahead.instances[0].incarnation = ahead_by(366 * 24);
    assert_refused(registry.deregister(ahead).await, bad, &["instances[0].incarnation", "at most"]);

    let update = |change: fn(&mut UpdateRequest)| {
        let instance = Some(named("web", "a"));
        let mut request = UpdateRequest { instance, ..UpdateRequest::default() };
        change(&mut request);
        request
    };
    let weight = update(|u| u.weight = Some(1_000_001));
    assert_refused(registry.update(weight).await, bad, &["weight", "1000001", "1000000"]);
    let status = update(|u| u.status = 9);
    assert_refused(registry.update(status).await, bad, &["status", "9"]);
    let entries = update(|u| u.metadata = Some(Metadata { entries: metadata(65, 400) }));
    assert_refused(registry.update(entries).await, bad, &["metadata", "65", "64"]);
    let nobody = update(|u| u.instance = None);
    assert_refused(registry.update(nobody).await, bad, &["instance.service"]);

    let decide = |value: InstanceOverride| SetOverrideRequest {
        service: "web".to_owned(),
        id: "a".to_owned(),
        r#override: Some(value),
        ..SetOverrideRequest::default()
    };
    let empty = decide(InstanceOverride::default());
    assert_refused(admin.set_override(empty).await, bad, &["override"]);
    let heavy = decide(InstanceOverride { weight: Some(1_000_001), ..Default::default() });
    assert_refused(admin.set_override(heavy).await, bad, &["override.weight", "1000001"]);
    let odd = decide(InstanceOverride { status: 7, ..Default::default() });
    assert_refused(admin.set_override(odd).await, bad, &["override.status", "7"]);
    let wordy = InstanceOverride { status: 2, reason: "r".repeat(1_025), weight: None };
    let wordy = admin.set_override(decide(wordy)).await;
    assert_refused(wordy, bad, &["override.reason", "1025", "1024"]);
    assert_eq!(fetch_all(&mut registry).await.0, 1, "nothing of all that had an effect");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_and_watches_check_their_input_too() {
    let cluster = Cluster::start(1).await;
    let mut registry = cluster.registry(1);
    let bad = Code::InvalidArgument;
    register(&mut registry, "web", "a").await;
    let names: Vec<String> = (0..1_001).map(|at| format!("s{at}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert_refused(registry.fetch(fetch_of(&names)).await, bad, &["services", "1001", "1000"]);
    assert!(registry.fetch(fetch_of(&names[..1_000])).await.is_ok());
    let long = "p".repeat(254);
    let prefix = |prefix: &str| FetchRequest { prefix: prefix.to_owned(), ..Default::default() };
    assert_refused(registry.fetch(prefix(&long)).await, bad, &["prefix", "254", "253"]);
    for name in ["", "a/b", "a b"] {
        assert_refused(registry.fetch(fetch_of(&["web", name])).await, bad, &["services"]);
    }
    // A prefix that no name can begin with is a mistake, not an empty answer.
    for text in ["a/", "ä", " ", "-"] {
        assert_refused(registry.fetch(prefix(text)).await, bad, &["prefix"]);
    }
    let unknown = FetchRequest { consistency: 3, ..Default::default() };
    assert_refused(registry.fetch(unknown).await, bad, &["consistency", "3"]);
    let unknown = FetchRequest { statuses: vec![2, 5], ..Default::default() };
    assert_refused(registry.fetch(unknown).await, bad, &["statuses", "5"]);
    let tagged = |tags: Vec<String>| FetchRequest { tags, ..Default::default() };
    let many = tagged((0..33).map(|at| at.to_string()).collect());
    assert_refused(registry.fetch(many).await, bad, &["tags", "33", "0 to 32"]);
    let no_tag = tagged(vec!["a,b".to_owned()]);
    assert_refused(registry.fetch(no_tag).await, bad, &["tags", "a,b", "commas"]);
    let foreign = FetchRequest { namespace: "a/b".to_owned(), ..Default::default() };
    assert_refused(registry.fetch(foreign).await, bad, &["namespace", "a/b"]);
    let list = |change: fn(&mut ListServicesRequest)| {
        let mut request = ListServicesRequest::default();
        change(&mut request);
        request
    };
    let after = list(|l| l.after = "a/b".to_owned());
    assert_refused(registry.list_services(after).await, bad, &["after", "a/b"]);
    let prefix = list(|l| l.prefix = "p".repeat(254));
    assert_refused(registry.list_services(prefix).await, bad, &["prefix", "254"]);

    let opened = Stream::open(&registry, subscribe_to(&["a/b"])).await.map(|_| ());
    assert_refused(opened, bad, &["services", "a/b"]);
    let opened = Stream::open(&registry, subscribe_to(&names)).await.map(|_| ());
    assert_refused(opened, bad, &["services", "1001"]);
    let opened = Stream::open(&registry, subscribe_to_prefix(&long)).await.map(|_| ());
    assert_refused(opened, bad, &["prefix", "254"]);
    let mut subscribe = subscribe_to(&["web"]);
    subscribe.statuses = vec![17];
    let opened = Stream::open(&registry, subscribe).await.map(|_| ());
    assert_refused(opened, bad, &["statuses", "17"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_over_four_mebibytes_is_refused_by_its_size() {
    let cluster = Cluster::start(1).await;
    let mut registry = cluster.registry(1);
    // Each instance within its own limits: 300 of 16 KiB are 4.7 MiB.
    let fat = |at: usize| {
        let mut spec = spec("web", &format!("i{at}"));
        spec.metadata = metadata(1, 16 * 1_024);
        spec
    };
    let request = registration((0..300).map(fat).collect());
    let refused = registry.register(request).await;
    assert_refused(refused, Code::ResourceExhausted, &["the request", "4194304", "several"]);
    let accepted = registration((0..250).map(fat).collect());
    assert!(registry.register(accepted).await.is_ok(), "under 4 MiB it is accepted");
    // Far larger: whichever layer refuses it, the connection goes on.
    let huge = registration(
        (0..1_000)
            .map(|at| {
                let mut spec = fat(at);
                spec.requires = vec!["r".repeat(40_000)];
                spec
            })
            .collect(),
    );
    let refused = registry.register(huge).await.unwrap_err();
    assert!(matches!(refused.code(), Code::ResourceExhausted | Code::OutOfRange), "{refused:?}");
    assert_eq!(fetch_all(&mut registry).await.1.len(), 250);
}
