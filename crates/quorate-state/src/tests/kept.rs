//! What releases of each level wrote: `golden/level-1/records.txt` and so on, each line a name and
//! its bytes. Every later release reads them all, to the same values: `golden.rs` changes with what
//! is written, these files never do. What a level adds gets a file of its own, with the lines that
//! the test asks for.

use std::collections::BTreeSet;

use super::golden::{all_checks, full_parts, hex, registration_of, snapshot_bytes};
use super::*;

/// One of each level that this release reads.
const LEVELS: [&str; Levels::OWN.max as usize] = [include_str!("golden/level-1/records.txt")];

/// Something of every kind.
fn commands() -> Vec<(&'static str, Command)> {
    let (origin, number, done_below) = (1, 2, 1);
    let (since, share) = (Clock(200), Share(300));
    let request = Request { origin, number, done_below, since, digest: 5, share };
    let tags = ["b", "a"].map(str::to_owned).into();
    let everything = SpecParts { load: 300, checks: all_checks(), tags, ..full_parts() };
    let registration = Register {
        lease: Some(LeaseId(3)),
        ttl: ttl(1_000),
        incarnation: Some(Incarnation(300)),
        ..registration_of(full_parts())
    };
    let metadata = Some(BTreeMap::from([("k".to_owned(), "v".to_owned())]));
    let (status, weight) = (Some(Status::OutOfService), Some(7));
    let updates = Update { status, weight, metadata, ..update_load("web/a@7", 1_000_000) };
    let ops: [(&str, Op); 18] = [
        ("tick", Op::Tick),
        ("registration", registration.into()),
        ("registration-with-what-is-optional", registration_of(everything).into()),
        ("registration-of-nothing", register("", 0).into()),
        ("renewal", renew(&[1, 300])),
        ("deregistration-of-a-lease", Deregister::Lease(LeaseId(3)).into()),
        ("deregistration", deregister("web/a web/b@7").into()),
        ("update", updates.into()),
        ("update-of-nothing", update("web/a").into()),
        ("override", set_override("web/a", Status::Draining)),
        ("override-taken-back", Op::Override { key: key("web/a"), value: None }),
        ("grace", Op::Grace { grace_ms: 10_000 }),
        ("health", set_health("web/a@7 web/b@8", Health::Critical)),
        ("health-unknown", set_health("web/a@7", Health::Unknown)),
        ("health-passing", set_health("web/a@7", Health::Passing)),
        ("health-with-a-reason", set_health_because("web/a@7", Health::Critical, "late")),
        ("founding", found(0x1_2345, 3 << 32)),
        ("level", Op::SetLevel(Level { number: 2, held: true })),
    ];
    let commands = ops.map(|(name, op)| (name, Command::new(Clock(300), op)));
    let asked = Command { clock: Clock(300), request: Some(request), op: Op::Tick };
    [commands.to_vec(), vec![("command-of-a-call", asked)]].concat()
}

fn replies() -> Vec<(&'static str, Reply)> {
    let (key, current) = (key("web/a"), Incarnation(9));
    let (lease, ttl) = (LeaseId(3), Ttl::DEFAULT);
    let rejections = [
        ("unknown-lease", Rejection::UnknownLease(lease)),
        ("unknown-instance", Rejection::UnknownInstance(key.clone())),
        ("newer", Rejection::NewerIncarnation { key: key.clone(), current }),
        ("deregistered-since", Rejection::Deregistered { key: key.clone(), current }),
        ("lease-full", Rejection::LeaseFull { lease, instances: 5, limit: 4 }),
        ("request-reused", Rejection::RequestReused { number: 7 }),
        ("request-forgotten", Rejection::RequestForgotten),
        (
            "too-many-overrides",
            Rejection::TooManyOverrides { key: key.clone(), registered: false, limit: 9 },
        ),
        ("no-override", Rejection::NoOverride(key)),
        ("foreign-lease", Rejection::ForeignLease),
        ("nothing-to-keep", Rejection::NothingToKeep),
        ("too-many-origins", Rejection::TooManyOrigins { origins: 300 }),
    ];
    let rejections = rejections.map(|(name, rejection)| (name, Reply::Rejected(rejection)));
    let replies = [
        ("done", Reply::Done),
        ("registered", Reply::Registered { lease, ttl, incarnation: current }),
        ("renewed", Reply::Renewed { unknown: vec![lease] }),
        ("deregistered", Reply::Deregistered { removed: 2 }),
        ("updated", Reply::Updated),
    ];
    [replies.to_vec(), rejections.to_vec()].concat()
}

/// A registry with one of every record.
fn registry() -> Registry {
    let mut t = Transcript::default();
    t.apply(999, found(5, 0));
    let parts = SpecParts { load: 300, checks: all_checks(), ..full_parts() };
    t.apply(1_000, Register { incarnation: Some(Incarnation(7)), ..registration_of(parts) });
    t.apply(1_000, register("api/b", 7));
    t.apply(1_001, deregister("api/b"));
    t.apply(1_002, set_override("web/a", Status::Draining));
    t.apply(1_003, set_health_because("web/a@7", Health::Critical, "late"));
    t.registry
}

/// What was kept under a name, by any level.
fn kept(name: &str) -> Vec<Vec<u8>> {
    let lines = LEVELS.iter().flat_map(|level| level.lines());
    let named = lines.filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let bytes = named.map(|digits| {
        let pairs = digits.as_bytes().chunks(2).map(|pair| str::from_utf8(pair).unwrap());
        pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
    });
    bytes.collect()
}

/// All that was kept under a name is read as `expected`; what is written now is among it.
fn check(name: &str, written: &[u8], is_read: impl Fn(&[u8]) -> bool) -> Option<String> {
    let all = kept(name);
    for bytes in &all {
        assert!(is_read(bytes), "{name} of an earlier release is not read any more");
    }
    let is_there = all.iter().any(|bytes| bytes == written);
    (!is_there).then(|| format!("{name} {}", hex(written)))
}

#[test]
fn what_each_level_wrote_is_read() {
    let mut missing = Vec::new();
    let mut names = BTreeSet::new();
    for (name, command) in commands() {
        let bytes = postcard::to_stdvec(&command).unwrap();
        let is_read = |bytes: &[u8]| postcard::from_bytes(bytes) == Ok(command.clone());
        missing.extend(check(name, &bytes, is_read));
        assert!(names.insert(name), "{name} is there twice");
    }
    for (name, reply) in replies() {
        let bytes = postcard::to_stdvec(&reply).unwrap();
        let is_read = |bytes: &[u8]| postcard::from_bytes(bytes) == Ok(reply.clone());
        missing.extend(check(name, &bytes, is_read));
        assert!(names.insert(name), "{name} is there twice");
    }
    let registry = registry();
    let is_read = |mut bytes: &[u8]| {
        read_snapshot(&mut bytes).is_ok_and(|read| read.hash() == registry.hash())
    };
    missing.extend(check("snapshot", &snapshot_bytes(&registry), is_read));
    names.insert("snapshot");
    assert!(missing.is_empty(), "add to the file of this level:\n{}", missing.join("\n"));
    for line in LEVELS.iter().flat_map(|level| level.lines()) {
        let name = line.split(' ').next().unwrap();
        assert!(names.contains(name), "{name} is kept, and looked at by nothing");
    }
}
