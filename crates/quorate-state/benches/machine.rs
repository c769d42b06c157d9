//! What the state machine costs: `cargo bench -p quorate-state`. Figures are in
//! docs/performance.md.

use std::collections::BTreeMap;

use divan::{Bencher, black_box};
use quorate_state::{
    Clock, Command, Incarnation, InstanceId, InstanceKey, InstanceSpec, LeaseId, Namespace, Op,
    Register, Registry, Reply, Request, ServiceKey, ServiceName, Share, SpecParts, Ttl, Update,
    read_snapshot, write_snapshot,
};

fn main() {
    divan::main();
}

/// Instances that are there already. Few where each runs only once, unoptimised, to see that it
/// works.
const INSTANCES: u64 = if cfg!(debug_assertions) { 1_000 } else { 100_000 };
/// Leases of one renewal.
const RENEWED: u64 = if cfg!(debug_assertions) { 100 } else { 10_000 };
const SERVICE_SIZE: u64 = 100;
const HOUR_MS: u64 = 3_600_000;

fn key(number: u64) -> InstanceKey {
    let service = format!("service-{}", number / SERVICE_SIZE);
    let name = ServiceName::new("service", &service).expect("is a name");
    let id = InstanceId::new("id", &format!("instance-{number}")).expect("is a name");
    InstanceKey { service: ServiceKey { namespace: Namespace::default(), name }, id }
}

fn metadata(number: u64) -> BTreeMap<String, String> {
    BTreeMap::from([("value".to_owned(), format!("{number:0256}"))])
}

fn register(number: u64) -> Command {
    let parts = SpecParts {
        endpoints: BTreeMap::from([("http".to_owned(), "http://10.0.0.1:8080".to_owned())]),
        metadata: metadata(number),
        ..SpecParts::default()
    };
    let spec = InstanceSpec::new("instance", parts).expect("is within the limits");
    let op = Op::Register(Register {
        lease: None,
        ttl: Some(Ttl::from_ms(HOUR_MS).expect("is within the limits")),
        incarnation: Some(Incarnation(1)),
        instances: vec![(key(number), spec)],
        within: None,
    });
    Command::new(Clock(number), op)
}

/// A registry with instances `0..INSTANCES`, each with a lease of its own; the leases.
fn filled() -> (Registry, Vec<LeaseId>) {
    filled_with(INSTANCES)
}

fn filled_with(instances: u64) -> (Registry, Vec<LeaseId>) {
    let mut registry = Registry::new();
    let leases = (0..instances).map(|number| match registry.apply(&register(number)).reply {
        Reply::Registered { lease, .. } => lease,
        other => panic!("not registered: {other:?}"),
    });
    let leases = leases.collect();
    (registry, leases)
}

#[divan::bench]
fn apply_register(bencher: Bencher) {
    let (mut registry, _) = filled();
    let mut next = INSTANCES;
    bencher
        .with_inputs(|| {
            next += 1;
            register(next)
        })
        .bench_local_values(|command| registry.apply(&command));
}

/// As from one node with 64 calls under way.
#[divan::bench]
fn apply_register_once(bencher: Bencher) {
    let (mut registry, _) = filled();
    let mut next = INSTANCES;
    bencher
        .with_inputs(|| {
            next += 1;
            let (done_below, since) = (next - 64, Clock(next));
            let share = Share::default();
            let request = Request { origin: 1, number: next, done_below, since, digest: 0, share };
            Command { request: Some(request), ..register(next) }
        })
        .bench_local_values(|command| registry.apply(&command));
}

#[divan::bench]
fn apply_update(bencher: Bencher) {
    let (mut registry, _) = filled();
    let mut next = 0;
    bencher
        .with_inputs(|| {
            next += 1;
            let target =
                quorate_state::InstanceRef { key: key(next % INSTANCES), incarnation: None };
            let metadata = Some(metadata(next + INSTANCES));
            let op = Op::Update(Update { metadata, ..Update::of(target) });
            Command::new(Clock(INSTANCES), op)
        })
        .bench_local_values(|command| registry.apply(&command));
}

/// One entry with many leases, spread over all that there are.
#[divan::bench]
fn apply_renew_10_000(bencher: Bencher) {
    let (mut registry, leases) = filled();
    let step = usize::try_from(INSTANCES / RENEWED).expect("is small");
    let some: Vec<LeaseId> = leases.into_iter().step_by(step).collect();
    let mut now = INSTANCES;
    bencher
        .with_inputs(|| {
            now += 50;
            Command::new(Clock(now), Op::Renew(some.clone()))
        })
        .bench_local_values(|command| registry.apply(&command));
}

#[divan::bench]
fn apply_tick(bencher: Bencher) {
    let (mut registry, _) = filled();
    let mut now = INSTANCES;
    bencher.bench_local(|| {
        now += 1;
        registry.apply(&Command::new(Clock(now), Op::Tick))
    });
}

/// All leases end, in as many ticks as that takes.
#[divan::bench(sample_count = 5, sample_size = 1)]
fn expire_all(bencher: Bencher) {
    let (registry, _) = filled();
    let end = Command::new(Clock(INSTANCES + 2 * HOUR_MS), Op::Tick);
    bencher.with_inputs(|| registry.clone()).bench_local_values(|mut registry| {
        let mut ended = 0;
        while registry.next_deadline().is_some_and(|deadline| deadline <= end.clock) {
            ended += registry.apply(&end).events.len() as u64;
        }
        assert_eq!(ended, INSTANCES);
        registry
    });
}

/// After a restart of all: each of a million leases gets a whole TTL.
#[divan::bench(sample_count = 5, sample_size = 1)]
fn grace_to_a_million(bencher: Bencher) {
    let leases = 10 * INSTANCES;
    let (mut registry, _) = filled_with(leases);
    let mut now = leases;
    bencher.bench_local(|| {
        now += 60_000;
        registry.apply(&Command::new(Clock(now), Op::Grace { grace_ms: HOUR_MS }))
    });
}

/// What a snapshot or a long read begins with.
#[divan::bench]
fn clone_state(bencher: Bencher) {
    let (registry, _) = filled();
    bencher.bench_local(|| registry.clone());
}

#[divan::bench]
fn encode_entry(bencher: Bencher) {
    let command = register(1);
    bencher.bench_local(|| postcard::to_stdvec(black_box(&command)).expect("can be encoded"));
}

#[divan::bench]
fn decode_entry(bencher: Bencher) {
    let bytes = postcard::to_stdvec(&register(1)).expect("can be encoded");
    bencher.bench_local(|| {
        postcard::from_bytes::<Command>(black_box(&bytes)).expect("is what was encoded")
    });
}

#[divan::bench(sample_count = 5, sample_size = 1)]
fn encode_snapshot(bencher: Bencher) {
    let (registry, _) = filled();
    bencher.bench_local(|| {
        let mut bytes = Vec::new();
        write_snapshot(&registry, &mut bytes).expect("memory takes it");
        bytes
    });
}

#[divan::bench(sample_count = 5, sample_size = 1)]
fn decode_snapshot(bencher: Bencher) {
    let (registry, _) = filled();
    let mut bytes = Vec::new();
    write_snapshot(&registry, &mut bytes).expect("memory takes it");
    bencher.bench_local(|| read_snapshot(&mut bytes.as_slice()).expect("is what was written"));
}
