//! Health checks: what is kept of them, when health changes, and their limits.

use super::*;

fn registered(names: &str) -> Transcript {
    let mut t = Transcript::default();
    t.apply(0, with_checks(names, 7, &[tcp_check()]));
    t
}

#[track_caller]
fn health(t: &Transcript, name: &str) -> Option<Health> {
    t.instance(name).health()
}

#[test]
fn a_change_of_health_is_a_change_of_the_instance() {
    let mut t = registered("web/a web/b");
    assert_eq!(health(&t, "web/a"), Some(Health::Unknown));
    t.at(1, set_health("web/a@7", Health::Critical), "done | #3 changed web/a@7");
    t.at(2, set_health("web/a@7", Health::Critical), "done");
    let both = "done | #4 changed web/a@7 | #5 changed web/b@7";
    t.at(3, set_health("web/a@7 web/b@7", Health::Passing), both);
    assert_eq!(health(&t, "web/b"), Some(Health::Passing));
}

#[test]
fn the_reason_is_there_as_long_as_it_is_critical() {
    let mut t = registered("web/a");
    t.at(1, set_health_because("web/a@7", Health::Critical, "late"), "done | #2 changed web/a@7");
    assert_eq!(t.instance("web/a").health_reason(), "late");
    t.at(2, set_health_because("web/a@7", Health::Critical, "late"), "done");
    let other = set_health_because("web/a@7", Health::Critical, "refused");
    t.at(3, other, "done | #3 changed web/a@7");
    assert_eq!(t.instance("web/a").health_reason(), "refused");
    for (health, at) in [(Health::Passing, 4), (Health::Unknown, 5)] {
        t.apply(at, set_health_because("web/a@7", health, "late"));
        assert_eq!(t.instance("web/a").health_reason(), "");
    }
}

#[test]
fn a_reason_is_one_line_within_its_limit() {
    for (text, expected) in [
        ("503\r\nx\u{1b}[31m".to_owned(), "503\u{fffd}\u{fffd}x\u{fffd}[31m".to_owned()),
        ("x".repeat(256), "x".repeat(256)),
        ("x".repeat(257), format!("{}…", "x".repeat(253))),
        // Of the 127th only a half would fit.
        (format!("x{}", "ü".repeat(128)), format!("x{}…", "ü".repeat(126))),
    ] {
        assert_eq!(HealthReason::new(&text).as_str(), expected);
    }
}

#[test]
fn health_is_only_set_where_it_belongs() {
    let mut t = registered("web/a");
    t.apply(0, register("web/b", 7));
    for not_there in ["web/a@6", "web/a@8", "web/b@7", "web/c@7"] {
        t.at(1, set_health(not_there, Health::Critical), "done");
    }
    assert_eq!(health(&t, "web/b"), None, "it has no checks");
}

#[test]
fn health_stays_with_the_run_of_the_process() {
    let check = [tcp_check()];
    let mut t = registered("web/a");
    t.apply(1, set_health_because("web/a@7", Health::Critical, "late"));
    t.at(2, with_checks("web/a", 7, &check), "registered L1 15000ms @7");
    t.apply(2, Update { weight: Some(5), ..update("web/a") });
    t.apply(2, set_override("web/a", Status::Up));
    assert_eq!(health(&t, "web/a"), Some(Health::Critical));
    assert_eq!(t.instance("web/a").health_reason(), "late");
    t.apply(3, with_checks("web/a", 8, &check));
    assert_eq!(health(&t, "web/a"), Some(Health::Unknown), "a new run");
    assert_eq!(t.instance("web/a").health_reason(), "");
}

#[test]
fn checks_can_be_changed_and_left_out() {
    let mut t = registered("web/a");
    t.apply(1, set_health("web/a@7", Health::Critical));
    let others = [HealthCheck { endpoint: "http".into(), interval_ms: 5_000, ..tcp_check() }];
    let changed = "registered L1 15000ms @7 | #3 changed web/a@7";
    t.at(2, with_checks("web/a", 7, &others), changed);
    assert!(t.instance("web/a").checks().unwrap().iter().eq(&others));
    assert_eq!(health(&t, "web/a"), Some(Health::Critical), "until the new ones say otherwise");
    t.at(3, register("web/a", 7), "registered L1 15000ms @7 | #4 changed web/a@7");
    assert_eq!(t.instance("web/a").health(), None);
    t.apply(4, with_checks("web/a", 7, &others));
    assert_eq!(health(&t, "web/a"), Some(Health::Unknown), "nothing is known of new ones");
}

#[test]
fn what_changed_among_the_checked_is_found() {
    let mut t = registered("web/a web/b web/c");
    t.apply(0, register("web/d", 7));
    let before = t.registry.checked();
    t.apply(1, set_health("web/a@7", Health::Critical));
    t.apply(1, deregister("web/b web/d"));
    t.apply(1, with_checks("api/a", 7, &[tcp_check()]));
    let after = t.registry.checked();
    let changed = after.since(&before);
    let told: Vec<_> = changed.map(|(key, after)| (name(key), after.is_some())).collect();
    let expected = [("api/a", true), ("web/a", true), ("web/b", false)];
    assert_eq!(told, expected.map(|(name, there)| (name.to_owned(), there)));
}

/// The error's text; nothing where it was taken. Its endpoints are http and db.
#[track_caller]
fn check_limit(change: impl FnOnce(&mut HealthCheck), expected: &str) {
    let endpoints = [("http", "http://h:80"), ("db", "pg://h"), ("grpc", "grpc://h:1")];
    let endpoints = endpoints.map(|(name, uri)| (name.to_owned(), uri.to_owned())).into();
    let mut check = HealthCheck { endpoint: "http".into(), ..tcp_check() };
    change(&mut check);
    let made = Checks::new("instances[3]", &endpoints, vec![check]);
    let text = made.err().map(|invalid| invalid.to_string()).unwrap_or_default();
    assert_eq!(text.strip_prefix("instances[3].checks[0].").unwrap_or(&text), expected);
}

#[test]
fn numbers_have_limits() {
    for (ms, expected) in [
        (999, "interval_ms = 999: must be 1000 to 3600000"),
        (3_600_001, "interval_ms = 3600001: must be 1000 to 3600000"),
    ] {
        check_limit(|c| c.interval_ms = ms, expected);
    }
    check_limit(|c| (c.interval_ms, c.timeout_ms) = (1_000, 1_000), "");
    check_limit(|c| (c.interval_ms, c.timeout_ms) = (3_600_000, 100), "");
    check_limit(|c| c.timeout_ms = 99, "timeout_ms = 99: must be 100 to 10000 (the interval)");
    check_limit(
        |c| c.timeout_ms = 10_001,
        "timeout_ms = 10001: must be 100 to 10000 (the interval)",
    );
    for (times, expected) in
        [(0, " = 0: must be 1 to 10"), (1, ""), (10, ""), (11, " = 11: must be 1 to 10")]
    {
        let named = |name: &str| {
            if expected.is_empty() { String::new() } else { format!("{name}{expected}") }
        };
        check_limit(|c| c.failures_before_critical = times, &named("failures_before_critical"));
        check_limit(|c| c.successes_before_passing = times, &named("successes_before_passing"));
    }
}

#[test]
fn at_most_four_checks() {
    let made = |count| Checks::new("instances[3]", &parts().endpoints, vec![tcp_check(); count]);
    assert_eq!(made(0).unwrap(), None);
    assert_eq!(made(4).unwrap().unwrap().count(), 4);
    let error = made(5).unwrap_err().to_string();
    assert_eq!(error, "instances[3].checks = 5: at most 4 checks");
}

#[test]
fn a_check_has_an_endpoint_that_can_be_probed() {
    let only = Checks::new("instance", &parts().endpoints, vec![tcp_check()]).unwrap().unwrap();
    assert_eq!(&*only.iter().next().unwrap().endpoint, "http", "the only one");
    check_limit(
        |c| c.endpoint = "".into(),
        "endpoint = \"\": must name one of the instance's endpoints, which has several",
    );
    check_limit(
        |c| c.endpoint = "web".into(),
        "endpoint = \"web\": must be the name of one of the instance's endpoints",
    );
    check_limit(
        |c| c.endpoint = "db".into(),
        "endpoint db = \"pg://h\": its URI needs a host and a port to be checked",
    );
    let http = || CheckKind::Http { path: "/".into() };
    let grpc = || CheckKind::Grpc { service: "".into() };
    check_limit(|c| c.kind = http(), "");
    check_limit(|c| c.kind = grpc(), "");
    check_limit(|c| (c.kind, c.endpoint) = (grpc(), "grpc".into()), "");
    check_limit(
        |c| (c.kind, c.endpoint) = (http(), "grpc".into()),
        "endpoint grpc = \"grpc://h:1\": an HTTP check needs an http: endpoint",
    );
}

#[test]
fn nothing_gets_into_a_request_but_its_path() {
    let path = |path: &str| CheckKind::Http { path: path.into() };
    check_limit(|c| c.kind = path("/healthz?deep=1"), "");
    check_limit(|c| c.kind = path("healthz"), "http.path = \"healthz\": must begin with /");
    for bad in ["/a b", "/a\r\nHost: x", "/ä"] {
        let expected =
            format!("http.path = {bad:?}: only printable ASCII without spaces is allowed");
        check_limit(|c| c.kind = path(bad), &expected);
    }
    let long = format!("/{}", "p".repeat(1_024));
    let expected = format!("http.path = \"{}…\": 1025 bytes long, at most 1024", &long[..64]);
    check_limit(|c| c.kind = path(&long), &expected);
    check_limit(|c| c.kind = path(&long[..1_024]), "");
}

#[test]
fn hosts_and_ports() {
    for (uri, expected) in [
        ("http://10.0.0.1:8080", Some(("10.0.0.1", 8080))),
        ("http://web.example", Some(("web.example", 80))),
        ("HTTPS://user:word@h/path:1?q", Some(("h", 443))),
        ("grpc://[::1]:50051/x", Some(("::1", 50051))),
        ("http://[2001:db8::1]", Some(("2001:db8::1", 80))),
        ("http://h:", Some(("h", 80))),
        ("tcp://h", None),
        ("tcp://h:0", None),
        ("tcp://h:65536", None),
        ("http://:80", None),
        ("http://[::1]x:80", None),
        ("http://[::1", None),
        ("unix:/run/web.sock", None),
        ("unix:///run/web.sock", None),
    ] {
        assert_eq!(host_and_port(uri), expected, "{uri}");
    }
}

/// There may be a million, and few have checks or overrides: those are behind a pointer each.
#[test]
fn an_instance_is_small() {
    assert!(size_of::<Instance>() <= 192, "{} bytes", size_of::<Instance>());
}
