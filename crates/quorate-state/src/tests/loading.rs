//! Loads: when they change, and what they are not.

use super::*;

#[track_caller]
fn loads(t: &Transcript) -> Vec<u32> {
    let all = t.registry.services.values().flat_map(|service| service.instances.values());
    all.map(|instance| instance.spec.load().get()).collect()
}

#[test]
fn a_change_of_load_is_a_change_of_the_instance() {
    // S0.9
    let mut t = Transcript::default();
    let added = "registered L1 15000ms @7 | #1 added web/a@7 | #2 added web/b@7";
    t.at(0, with_loads("web/a web/b", 7, &[0, 300]), added);
    assert_eq!(loads(&t), [0, 300]);
    t.at(1, update_load("web/a@7", 5), "updated | #3 changed web/a@7");
    t.at(2, update_load("web/a@7", 5), "updated");
    t.at(3, Update { weight: Some(7), ..update("web/a") }, "updated | #4 changed web/a@7");
    t.apply(4, set_override("web/b", Status::Draining));
    assert_eq!(loads(&t), [5, 300], "other changes leave it");
    let both = Update { weight: Some(8), ..update_load("web/a", 1_000_000) };
    t.at(5, both, "updated | #6 changed web/a@7");
    assert_eq!((loads(&t)[0], t.instance("web/a").weight()), (1_000_000, 8));
}

#[test]
fn a_registration_says_the_load_anew() {
    let mut t = Transcript::default();
    t.apply(0, with_loads("web/a", 7, &[300]));
    t.at(1, with_loads("web/a", 7, &[300]), "registered L1 15000ms @7");
    t.at(2, register("web/a", 7), "registered L1 15000ms @7 | #2 changed web/a@7");
    assert_eq!(loads(&t), [0]);
}

#[test]
fn an_older_run_sets_no_load() {
    let mut t = Transcript::default();
    t.apply(0, register("web/a", 7));
    let newer = "rejected: instance default/web/a is held by a newer incarnation, 7";
    t.at(1, update_load("web/a@6", 5), newer);
    assert_eq!(loads(&t), [0]);
}

#[test]
fn a_load_has_a_limit() {
    assert_eq!(load(1_000_000).get(), 1_000_000);
    let error = Load::new("instances[3].load", 1_000_001).unwrap_err();
    assert_eq!(error.to_string(), "instances[3].load = 1000001: at most 1000000");
}
