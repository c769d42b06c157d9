//! Each check, both ways: it is quiet about healthy nodes, and says what is wrong with others.

use std::path::PathBuf;

use quorate_client::{
    Condition, Member, MemberRole, MemberStatus, NodeState, ResponseHeader, Standing, WritesRefused,
};
use quorate_proto::v1::StatusResponse;

use super::facts::{Endpoints, LocalFile, name};
use super::*;
use crate::commands::view::{Outsider, View};

const GIB: u64 = 1 << 30;
const HOUR_MS: u64 = 3_600_000;

fn member(id: u64) -> MemberStatus {
    let mut member = Member { id, client_address: format!("10.0.0.{id}:7001"), ..<_>::default() };
    member.set_role(MemberRole::Voter);
    let mut condition = Condition {
        snapshot_written_ms: Some(1_000),
        backup_age_ms: Some(HOUR_MS),
        certificate_ends_in_s: Some(90 * 86_400),
        disk_reserve_bytes: 64 << 20,
        counted_ms: 90_000,
        syncs: 1_000,
        sync_p99_us: 2_500,
        connections: 10,
        busiest_address: "10.1.0.1".to_owned(),
        busiest_connections: 4,
        connections_per_address_max: 5_000,
        ..<_>::default()
    };
    condition.set_standing(Standing::Member);
    let state = if id == 1 { NodeState::Leader } else { NodeState::Follower };
    MemberStatus {
        member: Some(member),
        reachable: true,
        state: state.into(),
        last_log_index: 60_000,
        snapshot_index: 50_000,
        state_hash: 7,
        state_hash_index: 59_968,
        disk_free_bytes: 10 * GIB,
        version: "0.1.0".to_owned(),
        uptime_ms: 100 * HOUR_MS,
        condition: Some(condition),
        ..<_>::default()
    }
}

fn healthy() -> Facts {
    let header = Some(ResponseHeader { leader_id: 1, node_id: 1, ..<_>::default() });
    let members = (1..=3).map(member).collect();
    let status = StatusResponse { header, members, ..<_>::default() };
    let endpoints = Endpoints { namespace: "default".to_owned(), ..<_>::default() };
    let files = vec![
        LocalFile { path: PathBuf::from("client.key"), is_secret: true, mode: 0o600 },
        LocalFile { path: PathBuf::from("config.toml"), is_secret: false, mode: 0o644 },
    ];
    let view = View { status, ..View::default() };
    Facts { view, now_ms: 2_000, files, endpoints: Some(Ok(endpoints)) }
}

/// The facts with something changed.
fn with(change: impl FnOnce(&mut Facts)) -> Facts {
    let mut facts = healthy();
    change(&mut facts);
    facts
}

/// With something changed in a member.
fn of(id: usize, change: impl FnOnce(&mut MemberStatus)) -> Facts {
    with(|facts| change(&mut facts.view.status.members[id - 1]))
}

/// With something changed in what a member says of itself.
fn says(id: usize, change: impl FnOnce(&mut Condition)) -> Facts {
    of(id, |member| change(member.condition.as_mut().unwrap()))
}

/// One finding: this check's, so bad, with these words.
#[track_caller]
fn finds(facts: &Facts, check: &str, severity: Severity, words: &[&str]) {
    let diagnosis = diagnose(facts);
    let of_check = |finding: &&findings::Finding| finding.check == check;
    let found: Vec<_> = diagnosis.findings.iter().filter(of_check).collect();
    let fits = |finding: &&&findings::Finding| {
        finding.severity == severity && words.iter().all(|word| finding.meaning.contains(word))
    };
    assert!(found.iter().any(|finding| fits(&finding)), "{check} {words:?}: {diagnosis:#?}");
    assert!(found.iter().all(|finding| !finding.next.is_empty()), "{check}: {found:?}");
    let others: Vec<_> = diagnosis.findings.iter().filter(|it| it.check != check).collect();
    assert_eq!(others, Vec::<&findings::Finding>::new(), "what is wrong is told once");
}

/// Nothing.
#[track_caller]
fn is_quiet(facts: &Facts) {
    let diagnosis = diagnose(facts);
    assert!(diagnosis.findings.is_empty(), "{diagnosis:#?}");
}

#[test]
fn nothing_is_found_where_all_is_well() {
    is_quiet(&healthy());
    let diagnosis = diagnose(&healthy());
    assert!(diagnosis.left_out.is_empty() && diagnosis.worst().is_none(), "{diagnosis:#?}");
    assert_eq!(lines(&diagnosis), ["OK: 17 checks found nothing"]);
    assert_eq!(as_json(&diagnosis)["worst"], "ok");
    let names: std::collections::BTreeSet<_> =
        checks::CHECKS.iter().map(|check| check.name).collect();
    assert_eq!(names.len(), 17, "each has a name of its own");
}

#[test]
fn the_quorum_and_what_is_missing_to_it() {
    let down = |ids: &[usize]| {
        with(|facts| ids.iter().for_each(|id| facts.view.status.members[*id - 1].reachable = false))
    };
    let words = ["node 3 does not answer", "0 more may fail"];
    finds(&down(&[3]), "quorum", Severity::Warning, &words);
    finds(&down(&[2, 3]), "quorum", Severity::Critical, &["1 of 3 voters answer, 2 are needed"]);
    let without = diagnose(&down(&[2, 3]));
    for finding in &without.findings {
        let text = format!("{}; {}", finding.meaning, finding.next);
        assert!(!text.contains("replace") && !text.contains("more may fail"), "{text}");
    }
    let by_tls = |ids: &[usize]| {
        let mut facts = down(ids);
        facts.view.status.members[2].error = "its certificate is not taken: expired".to_owned();
        diagnose(&facts)
    };
    for finding in [by_tls(&[3]), by_tls(&[2, 3])].iter().flat_map(|it| &it.findings) {
        let next = &finding.next;
        assert!(next.contains("#certificates-that-have-ended, #a-wrong-clock"), "{next}");
        assert!(!next.contains("recover") && !next.contains("replace"), "{next}");
    }
    let twins = with(|facts| {
        facts.view.twins = vec![(2, ["a:1", "b:1"].map(str::to_owned))];
    });
    finds(&twins, "quorum", Severity::Critical, &["two nodes have id 2: a:1 and b:1"]);
    let two = with(|facts| {
        facts.view.clusters = [(7, "a:1".to_owned()), (8, "b:1".to_owned())].into();
    });
    finds(&two, "quorum", Severity::Critical, &["different clusters: 0000000000000007 (a:1) and"]);
    let leaderless = with(|facts| facts.view.status.header.as_mut().unwrap().leader_id = 0);
    finds(&leaderless, "quorum", Severity::Critical, &["no node leads"]);
    let even = with(|facts| facts.view.status.members.push(member(4)));
    finds(&even, "quorum", Severity::Warning, &["4 voters survive no more failures than 3"]);
    let alone = with(|facts| facts.view.status.members.truncate(1));
    finds(&alone, "quorum", Severity::Warning, &["one voter"]);
    let five = with(|facts| facts.view.status.members.extend([member(4), member(5)]));
    is_quiet(&five);
    let none = with(|facts| facts.view = View::default());
    let found = diagnose(&none);
    assert_eq!(found.worst(), Some(Severity::Critical), "{found:#?}");
}

#[test]
fn members_that_take_no_part_and_nodes_that_are_none() {
    let stands = |standing| {
        move |condition: &mut Condition| {
            condition.set_standing(standing);
            condition.reason = "why".to_owned();
        }
    };
    let cut_off = says(2, stands(Standing::CutOff));
    finds(&cut_off, "quorum", Severity::Warning, &["node 2: why"]);
    let joining = says(3, stands(Standing::Joining));
    finds(&joining, "quorum", Severity::Note, &["node 3: why"]);
    let blank = of(2, |member| member.state = NodeState::Learner.into());
    finds(&blank, "quorum", Severity::Warning, &["node 2 should vote"]);
    let recovering = of(2, |member| member.recovering = "it asks".to_owned());
    finds(&recovering, "quorum", Severity::Warning, &["does not vote as others do: it asks"]);
    let observer = |reachable| {
        with(|facts| {
            let mut observer = MemberStatus { reachable, ..member(4) };
            observer.state = NodeState::Learner.into();
            observer.member.as_mut().unwrap().set_role(MemberRole::Learner);
            facts.view.status.members.push(observer);
        })
    };
    is_quiet(&observer(true));
    finds(&observer(false), "quorum", Severity::Warning, &["node 4, an observer"]);
    for standing in [Standing::Removed, Standing::Waiting, Standing::Joining] {
        let outside = with(|facts| {
            let mut condition = Condition::default();
            stands(standing)(&mut condition);
            facts.view.outsiders.push(Outsider { id: 7, condition });
        });
        finds(&outside, "quorum", Severity::Warning, &["node 7 is no member: why"]);
    }
}

#[test]
fn how_alike_and_how_far_the_members_are() {
    is_quiet(&of(3, |member| member.lag = 5_000));
    let lags = of(3, |member| member.lag = 5_001);
    finds(&lags, "lag", Severity::Warning, &["node 3 has 5001 entries to apply"]);

    is_quiet(&of(3, |member| (member.state_hash, member.state_hash_index) = (8, 64)));
    let differs = of(3, |member| member.state_hash = 8);
    let words = ["disagree on the state at entry 59968", "[1, 2] against [3]"];
    finds(&differs, "state hash", Severity::Critical, &words);

    let found = says(1, |condition| condition.states_differ = vec![2, 3]);
    let words = ["[2, 3] had another state than node 1, which leads"];
    finds(&found, "state hash", Severity::Critical, &words);

    let newer = of(3, |member| member.version = "0.2.0".to_owned());
    finds(&newer, "versions", Severity::Warning, &["0.1.0 on {1, 2}, 0.2.0 on {3}"]);
}

#[test]
fn what_is_kept() {
    is_quiet(&of(2, |member| member.last_log_index = 250_000));
    let old = of(2, |member| member.last_log_index = 250_001);
    let words = ["newest snapshot of node 2 is 200001 entries behind (1 s old)"];
    finds(&old, "snapshots", Severity::Warning, &words);

    let all = |backup: Option<u64>, uptime_ms| {
        with(|facts| {
            for member in &mut facts.view.status.members {
                member.uptime_ms = uptime_ms;
                member.condition.as_mut().unwrap().backup_age_ms = backup;
            }
        })
    };
    is_quiet(&all(Some(25 * HOUR_MS), 100 * HOUR_MS));
    is_quiet(&says(1, |condition| condition.backup_age_ms = None));
    let old = all(Some(27 * HOUR_MS), 100 * HOUR_MS);
    finds(&old, "backups", Severity::Warning, &["1 d 3 h old"]);
    let never = all(None, 27 * HOUR_MS);
    finds(&never, "backups", Severity::Warning, &["no backup was taken since"]);
    for late in [&old, &never] {
        let next = diagnose(late).findings[0].next.clone();
        assert!(next.contains("`backup-registry` (docs/operations.md#backups)"), "{next}");
    }
    finds(&all(None, HOUR_MS), "backups", Severity::Note, &["at most 1 h 0 min ago"]);
}

#[test]
fn disks_and_how_fast_they_are() {
    let low =
        |member: &mut MemberStatus| (member.disk_low, member.disk_free_bytes) = (true, 9 << 20);
    let words = ["node 1, which leads, has 9 MiB free, below its reserve of 64 MiB"];
    finds(&of(1, low), "disks", Severity::Critical, &words);
    let floor = of(1, |member| {
        low(member);
        let condition = member.condition.as_mut().unwrap();
        condition.set_writes_refused(WritesRefused::DiskFloor);
    });
    let words = ["below a quarter of its reserve of 64 MiB: nothing is written, and no lease ends"];
    finds(&floor, "disks", Severity::Critical, &words);
    finds(&of(2, low), "disks", Severity::Warning, &["node 2 has 9 MiB free, below its reserve"]);
    is_quiet(&of(2, |member| member.disk_free_bytes = 128 << 20));
    let near = of(2, |member| member.disk_free_bytes = (128 << 20) - 1);
    finds(&near, "disks", Severity::Warning, &["127 MiB free; its reserve is 64 MiB"]);

    is_quiet(&says(2, |condition| condition.sync_p99_us = 50_000));
    let few = |condition: &mut Condition| (condition.syncs, condition.sync_p99_us) = (99, 500_000);
    is_quiet(&says(2, few));
    let slow = says(2, |condition| condition.sync_p99_us = 100_000);
    finds(&slow, "syncs", Severity::Warning, &["node 2 takes up to 100 ms (of 1000"]);
    let slower = says(2, |condition| condition.sync_p99_us = u64::MAX);
    finds(&slower, "syncs", Severity::Warning, &["longer than a second"]);
}

#[test]
fn what_refuses_writes() {
    let refuses = |id, why| {
        says(id, |condition| {
            condition.set_writes_refused(why);
            condition.writes_refused_why = "why".to_owned();
        })
    };
    let audit = refuses(3, WritesRefused::Audit);
    finds(
        &audit,
        "writes",
        Severity::Critical,
        &["node 3 refuses the writes that come to it: why"],
    );
    let full = refuses(1, WritesRefused::StateFull);
    finds(&full, "writes", Severity::Critical, &["registrations are refused", "goes on: why"]);
    // The clock tells of that.
    is_quiet(&refuses(1, WritesRefused::Stalled));
}

#[test]
fn clocks_and_certificates() {
    is_quiet(&says(1, |condition| condition.clock_held_ms = 5_000));
    let held = says(1, |condition| condition.clock_held_ms = 61_000);
    finds(&held, "clock", Severity::Warning, &["stood still for 1 min on node 1, which leads"]);
    let cut_off = says(1, |condition| {
        condition.clock_held_ms = 61_000;
        condition.set_standing(Standing::CutOff);
    });
    let found = diagnose(&cut_off);
    let held = found.findings.iter().find(|finding| finding.check == "clock").unwrap();
    assert!(held.meaning.contains("on node 1: no lease ends"), "nobody follows it: {held:?}");

    let ends = |days: i64| says(2, |it| it.certificate_ends_in_s = Some(days * 86_400));
    is_quiet(&ends(14));
    is_quiet(&says(2, |it| it.certificate_ends_in_s = None));
    finds(&ends(13), "certificates", Severity::Warning, &["node 2 ends in 13 d"]);
    finds(&ends(-1), "certificates", Severity::Critical, &["node 2 has ended"]);
    let refused = says(2, |condition| condition.files_refused = true);
    finds(&refused, "certificates", Severity::Warning, &["node 2 cannot use its TLS files"]);
}

#[test]
fn who_reaches_the_nodes_and_how() {
    let open = "clients at 10.0.0.2:7001, without TLS".to_owned();
    let open = says(2, |condition| condition.open_listeners = open);
    let words = ["node 2 listens", "clients at 10.0.0.2:7001, without TLS"];
    finds(&open, "listeners", Severity::Warning, &words);

    let refused = says(1, |condition| condition.probes_refused = 4);
    finds(&refused, "health checks", Severity::Warning, &["did not make 4", "within 1 min"]);

    is_quiet(&says(2, |condition| condition.watch_resets = 9));
    let resets = says(2, |condition| condition.watch_resets = 10);
    finds(&resets, "watches", Severity::Warning, &["10 watches at node 2"]);

    let connections = |of_one: u64, all: u64| {
        says(2, |condition| {
            (condition.busiest_connections, condition.connections) = (of_one, all);
        })
    };
    is_quiet(&connections(150, 199));
    is_quiet(&connections(100, 200));
    let words = ["101 of 200 connections to node 2 are from 10.1.0.1"];
    finds(&connections(101, 200), "hot spots", Severity::Note, &words);
    finds(&connections(2_501, 9_000), "hot spots", Severity::Warning, &["5000 are allowed"]);
}

#[test]
fn what_is_seen_from_here() {
    for (uri, expected) in [
        ("http://orders-1.svc:8080/x", Some("orders-1.svc")),
        ("pg://user:secret@db:5432", Some("db")),
        ("http://10.0.0.1:80", None),
        ("http://[fd00::1]:80", None),
        ("mailto:x", None),
    ] {
        assert_eq!(name(uri), expected, "{uri}");
    }
    let named = with(|facts| {
        let examples = vec!["db of orders/a".to_owned()];
        let namespace = "shop".to_owned();
        let found = Endpoints { namespace, instances: 9, looked_at: 5, by_name: 2, examples };
        facts.endpoints = Some(Ok(found));
    });
    let words =
        ["2 endpoints of the first 5 of 9 instances in the namespace shop", "db of orders/a"];
    finds(&named, "endpoints", Severity::Note, &words);

    let mode = |at: usize, mode| with(|facts| facts.files[at].mode = mode);
    finds(&mode(0, 0o640), "files", Severity::Warning, &["client.key holds a secret", "640"]);
    finds(&mode(1, 0o664), "files", Severity::Warning, &["config.toml can be written", "664"]);
    is_quiet(&mode(0, 0o400));
    for (setting, words, command) in [
        ("tls.key", "node 2 can read its private key: tls.key, /x", "`chmod 600 /x`"),
        ("tls.peer_key", "can read its private key: tls.peer_key, /x", "`chmod 600 /x`"),
        ("access", "can change what grants rights: access, /x", "`chmod o-w /x`"),
        ("data_dir", "read or change what is registered: data_dir, /x", "`chmod 700 /x`"),
    ] {
        let file = (setting.to_owned(), "/x".to_owned());
        let open = says(2, |condition| condition.open_files = [file].into());
        finds(&open, "files", Severity::Warning, &[words]);
        let next = &diagnose(&open).findings[0].next;
        assert!(next.contains(command), "{next}");
    }
}

#[test]
fn what_cannot_be_looked_at_is_told() {
    let partial = with(|facts| {
        facts.view.status.partial = true;
        facts.endpoints = Some(Err("fetch was refused".to_owned()));
    });
    let diagnosis = diagnose(&partial);
    assert!(diagnosis.findings.is_empty(), "{diagnosis:#?}");
    let told = lines(&diagnosis);
    assert_eq!(told[0], "OK as far as this caller may see: 1 of 17 checks found nothing");
    let text = told.join("\n");
    assert!(text.contains("not looked at (lag): takes the role operator"), "{text}");
    assert!(text.contains("not looked at (endpoints): fetch was refused"), "{text}");
    assert!(text.contains("not looked at (files): those of the nodes: takes"), "{text}");
    assert_eq!(as_json(&diagnosis)["not_looked_at"].as_array().unwrap().len(), 16);
}

#[test]
fn the_worst_comes_first_and_is_the_exit_code() {
    let bad = with(|facts| {
        facts.view.status.members[1].lag = 9_000;
        facts.view.status.members[2].state_hash = 8;
        facts.files[0].mode = 0o644;
    });
    let diagnosis = diagnose(&bad);
    assert_eq!(diagnosis.worst().unwrap().code(), 2);
    let told = lines(&diagnosis);
    assert_eq!(told[0], "17 checks: 1 critical, 2 warning");
    assert!(told[2].starts_with("CRITICAL (state hash): nodes disagree"), "{told:?}");
    assert!(told[3].starts_with("  next: keep the data"), "{told:?}");
    let json = as_json(&diagnosis);
    assert_eq!(
        (&json["worst"], &json["findings"][0]["severity"]),
        (&"critical".into(), &"critical".into())
    );
    assert_eq!(json["findings"][1]["node"], 2);
}
