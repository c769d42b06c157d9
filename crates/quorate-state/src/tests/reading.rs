//! Reading: services by name and prefix, and who depends on whom.

use std::collections::BTreeSet;

use super::*;

fn listed(registry: &Registry, namespace: &str, prefix: &str, after: Option<&str>) -> String {
    let namespace = Namespace::new("namespace", namespace).unwrap();
    let after = after.map(|after| ServiceName::new("after", after).unwrap());
    let services = registry.services(&namespace, prefix, after.as_ref());
    services.map(|(key, _)| key.name.as_str()).collect::<Vec<_>>().join(" ")
}

#[test]
fn services_are_listed_by_prefix_and_page() {
    let mut t = Transcript::default();
    t.apply(0, register("a/1 ab/1 abc/1 abd/1 b/1 zeta/ab/1 alpha/ab/1", 7));
    for (prefix, after, expected) in [
        ("", None, "a ab abc abd b"),
        ("ab", None, "ab abc abd"),
        ("abc", None, "abc"),
        ("abe", None, ""),
        ("", Some("ab"), "abc abd b"),
        ("ab", Some("ab"), "abc abd"),
        ("ab", Some("abca"), "abd"),
        ("ab", Some("a"), "ab abc abd"),
        ("ab", Some("abd"), ""),
        ("a", Some("b"), ""),
    ] {
        assert_eq!(listed(&t.registry, "default", prefix, after), expected, "{prefix} {after:?}");
    }
    assert_eq!(listed(&t.registry, "zeta", "", None), "ab");
    assert_eq!(listed(&t.registry, "beta", "", None), "");
}

/// Registers this instance as requiring these services.
fn requiring(name: &str, incarnation: u64, services: &[&str]) -> Register {
    let service = |name: &&str| ServiceName::new("requires", name).unwrap();
    let requires: BTreeSet<_> = services.iter().map(service).collect();
    let spec = spec(SpecParts { requires, ..parts() });
    Register { instances: vec![(key(name), spec)], ..register("", incarnation) }
}

fn dependents(registry: &Registry, service: &str) -> String {
    let target = service_key(service);
    registry.dependents(&target, None).map(|i| name(&i.key)).collect::<Vec<_>>().join(" ")
}

// S4.1
#[test]
fn dependents_of_a_service_are_known() {
    let mut t = Transcript::default();
    t.apply(0, requiring("web/b", 7, &["db", "auth"]));
    t.apply(0, requiring("web/a", 7, &["db"]));
    t.apply(0, requiring("auth/a", 7, &["db", "dba"]));
    t.apply(0, requiring("other/web/a", 7, &["db"]));
    assert_eq!(dependents(&t.registry, "db"), "auth/a web/a web/b");
    assert_eq!(dependents(&t.registry, "auth"), "web/b");
    let (db, after) = (service_key("db"), key("web/a"));
    let rest: Vec<_> = t.registry.dependents(&db, Some(&after)).map(|i| name(&i.key)).collect();
    assert_eq!(rest, ["web/b"]);
    assert_eq!(dependents(&t.registry, "web"), "");
    assert_eq!(dependents(&t.registry, "other/db"), "other/web/a");
}

// S4.1
#[test]
fn dependents_follow_every_change() {
    let mut t = Transcript::default();
    t.apply(0, requiring("web/a", 7, &["db", "auth"]));
    t.apply(0, requiring("web/a", 8, &["auth", "mail"]));
    assert_eq!(dependents(&t.registry, "db"), "");
    assert_eq!(dependents(&t.registry, "auth"), "web/a");
    t.apply(1, Update { weight: Some(1), ..update("web/a") });
    assert_eq!(t.registry.dependents(&service_key("mail"), None).next().unwrap().weight(), 1);
    t.apply(1, deregister("web/a"));
    assert_eq!(dependents(&t.registry, "auth"), "");
    t.apply(1, requiring("web/b", 7, &["auth"]));
    t.apply(15_001, Op::Tick);
    assert_eq!(dependents(&t.registry, "auth"), "");
}

#[test]
fn clone_keeps_what_it_was_taken_of() {
    let mut t = Transcript::default();
    t.apply(0, register("web/a", 7));
    let taken = t.registry.clone();
    let hash = taken.hash();
    t.apply(20_000, register("web/b", 7));
    assert!(taken.instance(&key("web/a")).is_some() && taken.instance(&key("web/b")).is_none());
    assert_eq!(taken.hash(), hash);
    check_invariants(&taken);
}
