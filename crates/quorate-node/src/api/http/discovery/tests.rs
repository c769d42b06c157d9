//! Targets by value, as Prometheus is to find them.

use quorate_state::{
    Clock, Command, InstanceId, InstanceKey, InstanceSpec, Op, Override, Register, ServiceKey,
    SpecParts,
};

use super::*;

fn texts<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(name, text)| (name.to_owned(), text.to_owned())).collect()
}

fn key(namespace: &str, service: &str, id: &str) -> InstanceKey {
    let namespace = Namespace::new("namespace", namespace).unwrap();
    let name = ServiceName::new("service", service).unwrap();
    InstanceKey { service: ServiceKey { namespace, name }, id: InstanceId::new("id", id).unwrap() }
}

fn put(registry: &mut Registry, key: InstanceKey, parts: SpecParts) {
    let instances = vec![(key, InstanceSpec::new("", parts).unwrap())];
    let register = Register { lease: None, ttl: None, incarnation: None, instances, within: None };
    registry.apply(&Command::new(Clock(0), Op::Register(register)));
}

fn at<const N: usize>(endpoints: [(&str, &str); N]) -> SpecParts {
    SpecParts { endpoints: texts(endpoints), ..SpecParts::default() }
}

fn listed(registry: &Registry, prefix: &str, endpoint: Option<&str>) -> Vec<Group> {
    targets(registry, &Namespace::default(), prefix, endpoint).collect()
}

#[test]
fn a_target_has_what_its_instance_says() {
    let mut registry = Registry::new();
    let spec = SpecParts {
        zone: "z1".to_owned(),
        version: "2.1".to_owned(),
        status: Status::Draining,
        metadata: texts([("team", "a \"b\"\n\u{e9}"), ("git.sha", "1"), ("none", "")]),
        tags: ["blue", "canary"].map(str::to_owned).into(),
        ..at([("metrics", "https://10.0.0.1:9100/own/metrics?format=x#y")])
    };
    put(&mut registry, key("default", "orders", "o-1"), spec);
    let labels = texts([
        ("__meta_quorate_endpoint", "metrics"),
        ("__meta_quorate_id", "o-1"),
        ("__meta_quorate_metadata_git_sha", "1"),
        ("__meta_quorate_metadata_team", "a \"b\"\n\u{e9}"),
        ("__meta_quorate_namespace", "default"),
        ("__meta_quorate_service", "orders"),
        ("__meta_quorate_status", "DRAINING"),
        ("__meta_quorate_tags", ",blue,canary,"),
        ("__meta_quorate_version", "2.1"),
        ("__meta_quorate_zone", "z1"),
        ("__metrics_path__", "/own/metrics"),
        ("__scheme__", "https"),
    ]);
    let expected = Group { targets: ["10.0.0.1:9100".to_owned()], labels };
    assert_eq!(listed(&registry, "", None), [expected]);
    let text = written(&registry, &Namespace::default(), "", None).unwrap();
    let text = std::str::from_utf8(&text).unwrap();
    assert!(text.starts_with("[{\"targets\":[\"10.0.0.1:9100\"],\"labels\":{\"__meta"), "{text}");
    assert!(text.contains(r#""__meta_quorate_metadata_team":"a \"b\"\n"#), "{text}");
}

#[test]
fn each_instance_of_each_status_is_there_and_others_are_not() {
    let mut registry = Registry::new();
    let all = [Status::Starting, Status::Up, Status::Draining, Status::OutOfService];
    for (number, status) in all.into_iter().enumerate() {
        let spec = SpecParts { status, ..at([("http", "http://h:1")]) };
        put(&mut registry, key("default", "orders", &number.to_string()), spec);
    }
    put(&mut registry, key("default", "pay", "p"), at([("http", "http://p:1")]));
    put(&mut registry, key("other", "orders", "x"), at([("http", "http://x:1")]));
    let drained = Override::new(Some(Status::Draining), None, String::new()).unwrap();
    let over = Op::Override { key: key("default", "orders", "1"), value: Some(drained) };
    registry.apply(&Command::new(Clock(0), over));
    let found = listed(&registry, "ord", None);
    let found: Vec<_> = found.iter().map(|it| &*it.labels["__meta_quorate_status"]).collect();
    assert_eq!(found, ["STARTING", "DRAINING", "DRAINING", "OUT_OF_SERVICE"], "the effective one");
    assert_eq!(listed(&registry, "", None).len(), 5);
    assert_eq!(listed(&registry, "nothing", None), []);
    assert_eq!(written(&registry, &Namespace::default(), "nothing", None).unwrap(), "[]");
}

#[test]
fn an_instance_is_as_many_targets_as_endpoints_are_wanted() {
    let mut registry = Registry::new();
    let endpoints = [("http", "http://h:80"), ("metrics", "http://h:9"), ("odd", "unix:/run/x")];
    put(&mut registry, key("default", "a", "1"), at(endpoints));
    put(&mut registry, key("default", "b", "1"), at([("http", "http://i:80")]));
    let found = |endpoint| {
        let found = listed(&registry, "", endpoint).into_iter();
        found.map(|Group { targets: [target], .. }| target).collect::<Vec<_>>()
    };
    assert_eq!(found(Some("metrics")), ["h:9"], "one has no such endpoint");
    assert_eq!(found(Some("odd")), Vec::<String>::new(), "nor this a host");
    assert_eq!(found(None), ["h:80", "h:9", "i:80"]);
}

#[test]
fn addresses_are_as_prometheus_takes_them() {
    for (uri, expected) in [
        ("http://10.0.0.1:8080/x", Some("10.0.0.1:8080")),
        ("http://[2001:db8::1]:9100/metrics", Some("[2001:db8::1]:9100")),
        ("https://[::1]", Some("[::1]:443")),
        ("HTTP://host", Some("host:80")),
        ("http://user:secret@host:9/", Some("host:9")),
        ("grpc://host:50051", Some("host:50051")),
        ("grpc://host", None),
        ("urn:x", None),
    ] {
        assert_eq!(address(uri).as_deref(), expected, "{uri}");
    }
}

#[test]
fn what_a_list_takes_is_known_before_it_is_made() {
    let mut registry = Registry::new();
    let estimated = |registry: &Registry| estimate(registry, &Namespace::default(), "");
    assert_eq!(estimated(&registry), 0);
    let large = texts([("text", &*"x".repeat(1_000))]);
    for number in 0..2 * SAMPLE {
        let spec = SpecParts { metadata: large.clone(), ..at([("http", "http://h:1")]) };
        put(&mut registry, key("default", "a", &number.to_string()), spec);
    }
    let made = written(&registry, &Namespace::default(), "", None).unwrap().len();
    let estimated = estimated(&registry);
    assert!(estimated > made / 4 * 3 && estimated < made, "{estimated} for {made}");
}

#[test]
fn only_http_says_how_it_is_scraped() {
    for (uri, expected) in [
        ("http://h:1", texts([("__scheme__", "http")])),
        ("HTTPS://h:1/", texts([("__scheme__", "https")])),
        ("http://h:1?x=/y", texts([("__scheme__", "http")])),
        ("http://h:1/a/b?c", texts([("__scheme__", "http"), ("__metrics_path__", "/a/b")])),
        ("tcp://h:1/a", texts([])),
    ] {
        assert_eq!(BTreeMap::from_iter(way(uri)), expected, "{uri}");
    }
}

#[test]
fn keys_of_metadata_become_names_of_labels() {
    let mut registry = Registry::new();
    let metadata = texts([("a-b", "1"), ("a.b", "2"), ("a_b", "3"), ("c d", "4"), ("c/d", "5")]);
    let metadata = metadata.into_iter().chain(texts([("9\u{fc}\"{}", "6"), ("Gr\u{f6}", "7")]));
    let spec = SpecParts { metadata: metadata.collect(), ..at([("http", "http://h:1")]) };
    put(&mut registry, key("default", "a", "1"), spec);
    let found = listed(&registry, "", None).remove(0).labels.into_iter();
    let of_metadata = found.filter_map(|(name, text)| {
        Some((name.strip_prefix("__meta_quorate_metadata_")?.to_owned(), text))
    });
    let expected = texts([("9____", "6"), ("Gr_", "7"), ("a_b", "3"), ("c_d", "4")]);
    assert_eq!(of_metadata.collect::<BTreeMap<_, _>>(), expected, "a name as it is comes first");
}
