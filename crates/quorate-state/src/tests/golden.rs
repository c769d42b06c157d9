//! The bytes that stand in logs and snapshots. Where one of these tests fails, nodes of the version
//! before cannot read what this one writes: append variants or optional fields instead
//! (`optional.rs`), or give the format a new version.

use std::collections::BTreeSet;

use super::*;
use crate::registry::nodes::RemovedNodes;

/// The keys default/web/a and default/web/b.
const WEB_A: &str = "0764656661756c74_03776562_0161";
const WEB_B: &str = "0764656661756c74_03776562_0162";

/// The command is written as these bytes between its clock of 300 and its optional fields, none,
/// and is read back; in hex, `_` only serves reading.
#[track_caller]
fn check(op: impl Into<Op>, expected: &str) {
    let command = Command::new(Clock(300), op.into());
    let bytes = postcard::to_stdvec(&command).unwrap();
    assert_eq!(hex(&bytes), format!("ac02_{expected}_00").replace('_', ""));
    assert_eq!(postcard::from_bytes::<Command>(&bytes).unwrap(), command);
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn snapshot_bytes(registry: &Registry) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_snapshot(registry, &mut bytes).unwrap();
    bytes
}

/// With something in every field but the optional ones.
pub(super) fn full_parts() -> SpecParts {
    let endpoints = BTreeMap::from([("h".to_owned(), "http://h".to_owned())]);
    let metadata = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
    let requires = BTreeSet::from([ServiceName::new("requires", "db").unwrap()]);
    let (zone, version) = ("z1".to_owned(), "1.0".to_owned());
    let (weight, status) = (Some(7), Status::Starting);
    SpecParts { endpoints, zone, version, weight, status, metadata, requires, ..parts() }
}

/// How it is written up to its optional fields.
const SPEC: &str = "01_0168_08687474703a2f2f68_027a31_03312e30_07_00_01_016b_0176_01_026462";

pub(super) fn registration_of(parts: SpecParts) -> Register {
    Register { instances: vec![(key("web/a"), spec(parts))], ..register("", 0) }
}

/// A command for a call, and one that is for none.
#[test]
fn requests() {
    let request = Request {
        origin: 1,
        number: 2,
        done_below: 1,
        since: Clock(200),
        digest: 5,
        share: Share(300),
    };
    let command = Command { clock: Clock(300), request: Some(request), op: Op::Tick };
    let bytes = postcard::to_stdvec(&command).unwrap();
    assert_eq!(hex(&bytes), "ac02_00_01_01_02_01_c801_05_ac02".replace('_', ""));
    assert_eq!(postcard::from_bytes::<Command>(&bytes).unwrap(), command);
}

#[test]
fn tick() {
    check(Op::Tick, "00");
}

#[test]
fn level() {
    check(Op::SetLevel(Level { number: 2, held: true }), "09_02_01");
}

#[test]
fn registration() {
    let all = Register {
        lease: Some(LeaseId(3)),
        ttl: ttl(1_000),
        incarnation: Some(Incarnation(300)),
        ..registration_of(full_parts())
    };
    check(all, &format!("01_01_{WEB_A}_{SPEC}_00_07_03_e807_ac02"));
    check(Register { lease: Some(LeaseId(3)), ..register("", 0) }, "01_00_01_03");
    check(Register { ttl: ttl(1_000), ..register("", 0) }, "01_00_02_e807");
    check(register("", 300), "01_00_04_ac02");
    check(register("", 0), "01_00_00");
}

/// The optional fields of an instance, each alone and all together.
#[test]
fn registration_with_what_is_optional() {
    let load = |parts| SpecParts { load: 300, ..parts };
    let checks = |parts| SpecParts { checks: all_checks(), ..parts };
    let tags = |parts| SpecParts { tags: ["b", "a"].map(str::to_owned).into(), ..parts };
    for (parts, expected) in [
        (load(full_parts()), "01_ac02".to_owned()),
        (checks(full_parts()), format!("02_{CHECKS}")),
        (load(checks(full_parts())), format!("03_ac02_{CHECKS}")),
        (tags(full_parts()), "04_02_0161_0162".to_owned()),
        (load(checks(tags(full_parts()))), format!("07_ac02_{CHECKS}_02_0161_0162")),
    ] {
        check(registration_of(parts), &format!("01_01_{WEB_A}_{SPEC}_{expected}_00"));
    }
}

#[test]
fn renewal() {
    check(renew(&[1, 300]), "02_02_01_ac02");
}

#[test]
fn deregistration() {
    check(Deregister::Lease(LeaseId(3)), "03_00_03");
    check(deregister("web/a web/b@7"), &format!("03_01_02_{WEB_A}_00_{WEB_B}_01_07"));
}

#[test]
fn updates() {
    let metadata = Some(BTreeMap::from([("k".to_owned(), "v".to_owned())]));
    let (status, weight) = (Some(Status::OutOfService), Some(7));
    let all = Update { status, weight, metadata, ..update_load("web/a@7", 1_000_000) };
    check(all, &format!("04_{WEB_A}_01_07_0f_03_07_01_016b_0176_c0843d"));
    check(update("web/a"), &format!("04_{WEB_A}_00_00"));
    check(update_load("web/a", 0), &format!("04_{WEB_A}_00_08_00"));
}

#[test]
fn overrides() {
    let set = format!("05_{WEB_A}_01_0762656361757365_01_02");
    check(set_override("web/a", Status::Draining), &set);
    check(Op::Override { key: key("web/a"), value: None }, &format!("05_{WEB_A}_00"));
}

#[test]
fn grace() {
    check(Op::Grace { grace_ms: 10_000 }, "06_904e");
}

/// One check of each kind.
pub(super) fn all_checks() -> Vec<HealthCheck> {
    let http = CheckKind::Http { path: "/h".into() };
    let grpc = CheckKind::Grpc { service: "s".into() };
    vec![
        HealthCheck { kind: http, endpoint: "h".into(), ..tcp_check() },
        HealthCheck { endpoint: "h".into(), ..tcp_check() },
        HealthCheck { kind: grpc, endpoint: "h".into(), ..tcp_check() },
    ]
}

/// Each with the endpoint h, 10,000 ms, 2,000 ms, 3 and 1.
const CHECKS: &str = "03_00_022f68_0168_904e_d00f_03_01\
    _01_0168_904e_d00f_03_01_02_0173_0168_904e_d00f_03_01";

#[test]
fn healths() {
    let critical = format!("07_02_{WEB_A}_07_02_00_{WEB_B}_08_02_00");
    check(set_health("web/a@7 web/b@8", Health::Critical), &critical);
    let late = format!("07_01_{WEB_A}_07_02_01_046c617465");
    check(set_health_because("web/a@7", Health::Critical, "late"), &late);
    check(set_health("web/a@7", Health::Unknown), &format!("07_01_{WEB_A}_07_00_00"));
    check(set_health("web/a@7", Health::Passing), &format!("07_01_{WEB_A}_07_01_00"));
}

/// A text over the limit is no reason, wherever it comes from.
#[test]
fn a_reason_over_the_limit_is_not_read() {
    let read = |length: usize| {
        let bytes = postcard::to_stdvec(&"x".repeat(length)).unwrap();
        postcard::from_bytes::<HealthReason>(&bytes)
    };
    assert_eq!(read(256).unwrap(), HealthReason::new(&"x".repeat(256)));
    read(257).unwrap_err();
}

/// A number over the limit is no load, wherever it comes from.
#[test]
fn a_load_over_the_limit_is_not_read() {
    assert_eq!(postcard::from_bytes::<Load>(&[0xc0, 0x84, 0x3d]).unwrap().get(), 1_000_000);
    postcard::from_bytes::<Load>(&[0xc1, 0x84, 0x3d]).unwrap_err();
}

#[test]
fn founding() {
    check(found(0x1_2345, 3 << 32), "08_c5c604_8080808030");
}

/// A command that holds what a newer version has added is refused and never applied without it.
#[test]
fn what_is_not_known_is_not_read() {
    let newest_bit = |bytes: &mut Vec<u8>, known: u8| {
        let last = bytes.last_mut().unwrap();
        assert_eq!(*last, 0, "no optional fields");
        *last = 1 << known;
        bytes.push(0);
    };
    let command = Command::new(Clock(300), Op::Tick);
    let mut of_command = postcard::to_stdvec(&command).unwrap();
    newest_bit(&mut of_command, 1);
    postcard::from_bytes::<Command>(&of_command).unwrap_err();
    let mut of_instance = postcard::to_stdvec(&spec(parts())).unwrap();
    newest_bit(&mut of_instance, 3);
    postcard::from_bytes::<InstanceSpec>(&of_instance).unwrap_err();
    let mut of_update = postcard::to_stdvec(&update("web/a")).unwrap();
    newest_bit(&mut of_update, 4);
    postcard::from_bytes::<Update>(&of_update).unwrap_err();
    let mut of_register = postcard::to_stdvec(&register("web/a", 0)).unwrap();
    newest_bit(&mut of_register, 4);
    postcard::from_bytes::<Register>(&of_register).unwrap_err();
    let another_op = [0xac, 2, 9, 0];
    postcard::from_bytes::<Command>(&another_op).unwrap_err();
}

#[test]
fn statuses() {
    for (status, expected) in [
        (Status::Starting, "00"),
        (Status::Up, "01"),
        (Status::Draining, "02"),
        (Status::OutOfService, "03"),
    ] {
        assert_eq!(hex(&postcard::to_stdvec(&status).unwrap()), expected);
    }
}

/// Replies travel between nodes of neighbouring versions.
#[test]
fn replies() {
    let (key, current) = (key("web/a"), Incarnation(9));
    let (lease, ttl) = (LeaseId(3), Ttl::DEFAULT);
    for (reply, expected) in [
        (Reply::Done, "00"),
        (Reply::Registered { lease, ttl, incarnation: current }, "01_03_9875_09"),
        (Reply::Renewed { unknown: vec![lease] }, "02_01_03"),
        (Reply::Deregistered { removed: 2 }, "03_02"),
        (Reply::Updated, "04"),
        (Reply::Rejected(Rejection::UnknownLease(lease)), "05_00_03"),
        (
            Reply::Rejected(Rejection::UnknownInstance(key.clone())),
            "05_01_0764656661756c74_03776562_0161",
        ),
        (
            Reply::Rejected(Rejection::NewerIncarnation { key: key.clone(), current }),
            "05_02_0764656661756c74_03776562_0161_09",
        ),
        (
            Reply::Rejected(Rejection::Deregistered { key: key.clone(), current }),
            "05_03_0764656661756c74_03776562_0161_09",
        ),
        (Reply::Rejected(Rejection::LeaseFull { lease, instances: 5, limit: 4 }), "05_04_03_05_04"),
        (Reply::Rejected(Rejection::RequestReused { number: 7 }), "05_05_07"),
        (Reply::Rejected(Rejection::RequestForgotten), "05_06"),
        (
            Reply::Rejected(Rejection::TooManyOverrides {
                key: key.clone(),
                registered: false,
                limit: 9,
            }),
            "05_07_0764656661756c74_03776562_0161_00_09",
        ),
        (Reply::Rejected(Rejection::NoOverride(key)), "05_08_0764656661756c74_03776562_0161"),
        (Reply::Rejected(Rejection::ForeignLease), "05_09"),
        (Reply::Rejected(Rejection::NothingToKeep), "05_0a"),
        (Reply::Rejected(Rejection::TooManyOrigins { origins: 300 }), "05_0b_ac02"),
    ] {
        let bytes = postcard::to_stdvec(&reply).unwrap();
        assert_eq!(hex(&bytes), expected.replace('_', ""), "{reply:?}");
        assert_eq!(postcard::from_bytes::<Reply>(&bytes).unwrap(), reply);
    }
}

/// One of every record; each line is one of them: length, kind, fields.
#[test]
fn snapshot() {
    let mut t = Transcript::default();
    t.apply(999, found(5, 0));
    let seven = Some(Incarnation(7));
    t.apply(1_000, Register { incarnation: seven, ..registration_of(full_parts()) });
    t.apply(1_000, register("api/b", 7));
    t.apply(1_001, deregister("api/b"));
    t.apply(1_002, set_override("web/a", Status::Draining));
    let mut bytes = Vec::new();
    write_snapshot(&t.registry, &mut bytes).unwrap();
    let instance = format!("02_{WEB_A}_{SPEC}_00_07_01_01_04_01_0762656361757365_01_02");
    let expected = [
        "09000000_00_01_ea07_04_02_00_05_00",
        "09000000_03_01_9875_e807_807d_00",
        "19000000_04_0764656661756c74_03776562_0161_0762656361757365_01_02",
        "14000000_05_0764656661756c74_03617069_0162_07_a9b107_00",
        "11000000_01_0764656661756c74_03617069_03_01_e907",
        "0f000000_01_0764656661756c74_03776562_04_00",
        "3d000000",
        &instance,
        "0c000000_08_07_ebf5e78590e68c938201",
    ];
    assert_eq!(hex(&bytes), expected.concat().replace('_', ""));
    let restored = read_snapshot(&mut &bytes[..]).unwrap();
    assert_eq!(restored.hash(), t.registry.hash());
}

/// A node that was taken out at revision 300, and a range of them.
#[test]
fn snapshot_with_nodes_that_were_taken_out() {
    let mut registry = Registry { revision: Revision(300), ..Registry::new() };
    registry.insert_removed(RemovedNodes { first: 4, last: 4, at: Revision(300) });
    registry.insert_removed(RemovedNodes { first: 7, last: 9, at: Revision(3) });
    let bytes = hex(&snapshot_bytes(&registry));
    let expected = "06000000_09_04_04_ac02_00_05000000_09_07_09_03_00";
    assert!(bytes.contains(&expected.replace('_', "")), "{bytes}");
}

/// The optional fields of an instance in a snapshot: an override, what its checks say, and those of
/// what it registered.
#[test]
fn snapshot_of_an_instance_with_everything() {
    let mut t = Transcript::default();
    let parts = SpecParts { load: 300, checks: all_checks(), ..full_parts() };
    t.apply(1_000, Register { incarnation: Some(Incarnation(7)), ..registration_of(parts) });
    t.apply(1_000, set_override("web/a", Status::Draining));
    t.apply(1_000, set_health_because("web/a@7", Health::Critical, "late"));
    let bytes = hex(&snapshot_bytes(&t.registry));
    let optional = "03_0762656361757365_01_02_02_01_046c617465";
    let record = format!("02_{WEB_A}_{SPEC}_03_ac02_{CHECKS}_07_01_01_03_{optional}");
    assert!(bytes.contains(&record.replace('_', "")), "{bytes}");
}
