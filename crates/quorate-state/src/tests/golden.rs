//! The bytes that stand in logs and snapshots. Where one of these tests fails, nodes of the version before cannot read
//! what this one writes: append variants instead, or give the format a new version.

use std::collections::BTreeSet;

use super::*;

/// The keys default/web/a and default/web/b.
const WEB_A: &str = "0764656661756c74_03776562_0161";
const WEB_B: &str = "0764656661756c74_03776562_0162";

/// The command is written as these bytes after its clock of 300, and is read back; in hex, `_` only serves reading.
#[track_caller]
fn check(op: impl Into<Op>, expected: &str) {
    let command = Command::new(Clock(300), op.into());
    let bytes = postcard::to_stdvec(&command).unwrap();
    assert_eq!(hex(&bytes), format!("ac02_00_{expected}").replace('_', ""));
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

/// With something in every field.
fn full() -> InstanceSpec {
    let endpoints = BTreeMap::from([("h".to_owned(), "a:b".to_owned())]);
    let metadata = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
    let requires = BTreeSet::from([ServiceName::new("requires", "db").unwrap()]);
    let (zone, version) = ("z1".to_owned(), "1.0".to_owned());
    let (weight, status) = (Some(7), Status::Starting);
    spec(SpecParts { endpoints, zone, version, weight, status, metadata, requires })
}

/// A command for a call, and one that is for none.
#[test]
fn requests() {
    let request = Request { origin: 1, number: 2, done_below: 1, since: Clock(200), digest: 5 };
    let command = Command { clock: Clock(300), request: Some(request), op: Op::Tick };
    let bytes = postcard::to_stdvec(&command).unwrap();
    assert_eq!(hex(&bytes), "ac02_01_01_02_01_c801_05_00".replace('_', ""));
    assert_eq!(postcard::from_bytes::<Command>(&bytes).unwrap(), command);
}

#[test]
fn tick() {
    check(Op::Tick, "00");
}

#[test]
fn registration() {
    let all = Register {
        lease: Some(LeaseId(3)),
        ttl: ttl(1_000),
        instances: vec![(key("web/a"), full())],
        ..register("", 300)
    };
    let head = "01_0103_01e807_01ac02_01";
    let spec = "01_0168_03613a62_027a31_03312e30_07_00_01_016b_0176_01_026462";
    check(all, &format!("{head}_{WEB_A}_{spec}"));
    check(register("", 0), "01_00_00_00_00");
}

#[test]
fn renewal() {
    check(renew(&[1, 300]), "02_02_01_ac02");
}

#[test]
fn deregistration() {
    check(Deregister::Lease(LeaseId(3)), "03_00_03");
    check(deregister("web/a web/b@7"), &format!("03_01_02_{WEB_A}_00_{WEB_B}_0107"));
}

#[test]
fn updates() {
    let metadata = Some(BTreeMap::from([("k".to_owned(), "v".to_owned())]));
    let (status, weight) = (Some(Status::OutOfService), Some(7));
    let all = Update { status, weight, metadata, ..update("web/a@7") };
    check(all, &format!("04_{WEB_A}_0107_0103_0107_01_01_016b_0176"));
    check(update("web/a"), &format!("04_{WEB_A}_00_00_00_00"));
}

#[test]
fn overrides() {
    let set = format!("05_{WEB_A}_01_0102_00_0762656361757365");
    check(set_override("web/a", Status::Draining), &set);
    check(Op::Override { key: key("web/a"), value: None }, &format!("05_{WEB_A}_00"));
}

#[test]
fn grace() {
    check(Op::Grace { grace_ms: 10_000 }, "06_904e");
}

/// One check of each kind.
fn all_checks() -> Checks {
    let http = CheckKind::Http { path: "/h".into() };
    let grpc = CheckKind::Grpc { service: "s".into() };
    checks(&[
        HealthCheck { kind: http, ..tcp_check() },
        tcp_check(),
        HealthCheck { kind: grpc, ..tcp_check() },
    ])
}

/// Each with the endpoint http, 10,000 ms, 2,000 ms, 3 and 1.
const CHECKS: &str = "03_00_022f68_0468747470_904e_d00f_03_01\
    _01_0468747470_904e_d00f_03_01_02_0173_0468747470_904e_d00f_03_01";

#[test]
fn registration_with_checks() {
    let op = with_checks(
        Register { instances: vec![(key("web/a"), full())], ..register("", 0) },
        &all_checks(),
    );
    let spec = "01_0168_03613a62_027a31_03312e30_07_00_01_016b_0176_01_026462";
    check(op, &format!("07_00_00_00_01_{WEB_A}_{spec}_01_00_{CHECKS}"));
}

#[test]
fn healths() {
    let critical = format!("08_02_{WEB_A}_07_02_00_{WEB_B}_08_02_00");
    check(set_health("web/a@7 web/b@8", Health::Critical), &critical);
    let late = format!("08_01_{WEB_A}_07_02_01_046c617465");
    check(set_health_because("web/a@7", Health::Critical, "late"), &late);
    check(set_health("web/a@7", Health::Unknown), &format!("08_01_{WEB_A}_07_00_00"));
    check(set_health("web/a@7", Health::Passing), &format!("08_01_{WEB_A}_07_01_00"));
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

#[test]
fn registration_with_loads() {
    let spec = "01_0168_03613a62_027a31_03312e30_07_00_01_016b_0176_01_026462";
    let of = |name, load| {
        with_loads(Register { instances: vec![(key(name), full())], ..register("", 0) }, &[load])
    };
    check(of("web/a", 300), &format!("09_00_00_00_01_{WEB_A}_{spec}_00_01_00_ac02"));
}

#[test]
fn updates_with_a_load() {
    check(update_load("web/a@7", 1_000_000), &format!("0a_{WEB_A}_0107_00_00_00_c0843d"));
    check(update_load("web/a", 0), &format!("0a_{WEB_A}_00_00_00_00_00"));
}

/// A number over the limit is no load, wherever it comes from.
#[test]
fn a_load_over_the_limit_is_not_read() {
    assert_eq!(postcard::from_bytes::<Load>(&[0xc0, 0x84, 0x3d]).unwrap().get(), 1_000_000);
    postcard::from_bytes::<Load>(&[0xc1, 0x84, 0x3d]).unwrap_err();
}

#[test]
fn founding() {
    check(found(0x1_2345, 3 << 32), "0b_c5c604_8080808030");
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
    t.apply(1_000, Register { instances: vec![(key("web/a"), full())], ..register("", 7) });
    t.apply(1_000, register("api/b", 7));
    t.apply(1_001, deregister("api/b"));
    t.apply(1_002, set_override("web/a", Status::Draining));
    let mut bytes = Vec::new();
    write_snapshot(&t.registry, &mut bytes).unwrap();
    let expected = [
        "09000000_00_05_ea07_04_02_00_00_05",
        "08000000_02_01_9875_e807_807d",
        "1a000000_04_0764656661756c74_03776562_0161_01_02_00_0762656361757365",
        "13000000_05_0764656661756c74_03617069_0162_07_a9b107",
        "11000000_01_0764656661756c74_03617069_03_01e907",
        "0f000000_01_0764656661756c74_03776562_04_00",
        "38000000_03_0764656661756c74_03776562_0161_01_0168_03613a62_027a31_03312e30_07_00\
         _01_016b_0176_01_026462_07_01_01_04_01_0102_00_0762656361757365",
        "0c000000_06_07_f699dfe7e18bf1fb9e01",
    ];
    assert_eq!(hex(&bytes), expected.concat().replace('_', ""));
    let restored = read_snapshot(&mut &bytes[..]).unwrap();
    assert_eq!(restored.hash(), t.registry.hash());
}

/// A record more stands behind each instance that has checks.
#[test]
fn snapshot_with_checks() {
    let mut t = Transcript::default();
    t.apply(1_000, with_checks(register("web/a", 7), &all_checks()));
    t.apply(1_000, set_health_because("web/a@7", Health::Critical, "late"));
    let mut bytes = Vec::new();
    write_snapshot(&t.registry, &mut bytes).unwrap();
    let bytes = hex(&bytes);
    let record = format!("07_{WEB_A}_{CHECKS}_02_01_046c617465").replace('_', "");
    assert!(bytes.contains(&record), "{bytes}");
}

/// A record more stands behind each instance that has a load.
#[test]
fn snapshot_with_loads() {
    let mut t = Transcript::default();
    t.apply(1_000, with_loads(register("web/a web/b", 7), &[300]));
    let mut bytes = Vec::new();
    write_snapshot(&t.registry, &mut bytes).unwrap();
    let bytes = hex(&bytes);
    let record = |key: &str, load: &str| format!("08_{key}_{load}").replace('_', "");
    assert!(bytes.contains(&record(WEB_A, "ac02")), "{bytes}");
    assert!(!bytes.contains(&record(WEB_B, "")), "who has none has no record");
}
