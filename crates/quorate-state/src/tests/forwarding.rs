//! What one node may hand to another.

use super::*;

/// The command, as it arrives: read from bytes, past all constructors.
#[track_caller]
fn refused(op: impl Into<Op>, swap: Option<(&str, &str)>, why: &str) {
    let mut bytes = postcard::to_stdvec(&op.into()).unwrap();
    if let Some((from, to)) = swap {
        assert_eq!(from.len(), to.len(), "lengths stand before texts");
        let at = bytes.windows(from.len()).position(|part| part == from.as_bytes()).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    let op: Op = postcard::from_bytes(&bytes).unwrap();
    let error = op.check_forwarded().unwrap_err().to_string();
    assert!(error.contains(why), "{error}");
}

#[test]
fn only_what_a_client_may_ask_for_is_forwarded() {
    for op in [
        Op::Tick,
        Op::Grace { grace_ms: u64::MAX },
        renew(&[1]),
        set_health("web/a@7", Health::Critical),
        found(5, 1),
        Op::SetLevel(Level { number: 1, held: false }),
    ] {
        refused(op, None, "only a leader proposes this");
    }
    for op in [
        register("web/a web/b", 7).into(),
        with_checks("web/a", 7, &[tcp_check()]).into(),
        with_loads("web/a", 7, &[3]).into(),
        deregister("web/a@7").into(),
        Deregister::Lease(LeaseId(3)).into(),
        update("web/a").into(),
        update_load("web/a", 3).into(),
        set_override("web/a", Status::Draining),
    ] {
        let op: Op = op;
        op.check_forwarded().unwrap();
    }
}

#[test]
fn what_breaks_a_limit_is_refused_however_it_was_built() {
    refused(register("web/a web/a", 7), None, "twice");
    refused(register("", 7), None, "1 to 1000");
    refused(register("web/abc", 7), Some(("abc", "a/c")), "id");
    let path = HealthCheck { kind: CheckKind::Http { path: "/health".into() }, ..tcp_check() };
    let injected = Some(("/health", "/h h\r\nX"));
    refused(with_checks("web/a", 7, &[path]), injected, "instances[0].checks[0].http.path");
    let requires = [ServiceName::new("requires", "db").unwrap()].into();
    let mut register = register("web/a", 7);
    register.instances[0].1 = spec(SpecParts { requires, ..parts() });
    refused(register, Some(("db", "d ")), "instances[0].requires");
    let mut register = super::register("web/a", 7);
    register.instances[0].1 = spec(SpecParts { tags: ["canary".to_owned()].into(), ..parts() });
    refused(register, Some(("canary", "can ry")), "instances[0].tags");
    refused(deregister("web/abc"), Some(("web", "w b")), "service");
    refused(Update { weight: Some(u32::MAX), ..update("web/a") }, None, "weight");
    let over = Override { status: None, weight: None, reason: String::new() };
    refused(Op::Override { key: key("web/a"), value: Some(over) }, None, "override");
}
