//! What holds for any sequence of commands. A failing one is cut down and printed as the list of
//! its commands; its seed is written to `proptest-regressions/`: commit that file and it is tried
//! first ever after. For more cases: `PROPTEST_CASES=100000 cargo test -p quorate-state
//! properties`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::invariants::check_nothing_is_late;
use super::model::{Ended, Model, ModelLease, ModelService};
use super::*;
use crate::registry::deregister::Tombstone;
use crate::registry::leases::ENDED_PER_COMMAND;

/// Few names, leases and incarnations, so that commands meet.
fn any_key() -> impl Strategy<Value = InstanceKey> {
    select(&["web/a", "web/b", "web/c", "com.api/a", "com.api/b", "other.eu/web/a"][..])
        .prop_map(key)
}

fn any_incarnation() -> impl Strategy<Value = Option<Incarnation>> {
    option::weighted(0.8, (1..5_u64).prop_map(Incarnation))
}

fn any_lease() -> impl Strategy<Value = LeaseId> {
    (0..12_u64).prop_map(LeaseId)
}

fn any_status() -> impl Strategy<Value = Status> {
    select(&[Status::Up, Status::Starting, Status::OutOfService][..])
}

fn any_metadata() -> impl Strategy<Value = BTreeMap<String, String>> {
    select(&["", "high", "low"][..]).prop_map(|load| match load {
        "" => BTreeMap::new(),
        load => BTreeMap::from([("load".to_owned(), load.to_owned())]),
    })
}

fn any_spec() -> impl Strategy<Value = InstanceSpec> {
    let required = prop_oneof![4 => Just(vec![]), 1 => vec(select(&["db", "web"][..]), 1..3)];
    let tags = proptest::collection::btree_set(select(&["canary", "gpu"][..]), 0..2);
    (any_metadata(), any_status(), required, 0..3_u32, any_checks(), tags).prop_map(
        |(metadata, status, required, load, checks, tags)| {
            let tags = tags.into_iter().map(str::to_owned).collect();
            let requires: BTreeSet<_> =
                required.iter().map(|name| ServiceName::new("requires", name).unwrap()).collect();
            spec(SpecParts { metadata, status, requires, load, checks, tags, ..parts() })
        },
    )
}

fn any_register() -> impl Strategy<Value = Register> {
    let ttl = option::of(select(&[1_000, 5_000, 60_000, 86_400_000][..]));
    let lease = option::weighted(0.2, any_lease());
    let within = option::weighted(0.2, vec(any_scope(), 0..2));
    let instances = vec((any_key(), any_spec()), 0..4);
    (lease, ttl, any_incarnation(), instances, within).prop_map(
        |(lease, ttl, incarnation, instances, within)| Register {
            lease,
            ttl: ttl.map(|ms| Ttl::from_ms(ms).unwrap()),
            incarnation,
            instances,
            within,
        },
    )
}

fn any_scope() -> impl Strategy<Value = Scope> {
    let namespace = option::of(Just(Namespace::default()));
    (namespace, select(&["", "web", "com."][..]))
        .prop_map(|(namespace, prefix)| Scope { namespace, prefix: prefix.into() })
}

fn any_target() -> impl Strategy<Value = InstanceRef> {
    (any_key(), any_incarnation()).prop_map(|(key, incarnation)| InstanceRef { key, incarnation })
}

fn any_deregister() -> impl Strategy<Value = Deregister> {
    prop_oneof![
        1 => any_lease().prop_map(Deregister::Lease),
        3 => vec(any_target(), 0..4).prop_map(Deregister::Instances),
    ]
}

fn any_update() -> impl Strategy<Value = Update> {
    let weight = option::of(0..3_u32);
    let load = option::of((0..3_u32).prop_map(load));
    let changes = (option::of(any_status()), weight, option::of(any_metadata()), load);
    (any_target(), changes).prop_map(|(target, (status, weight, metadata, load))| Update {
        target,
        status,
        weight,
        metadata,
        load,
    })
}

fn any_override() -> impl Strategy<Value = Op> {
    let value = (option::of(any_status()), 0..3_u32).prop_map(|(status, weight)| {
        Override::new(status, Some(weight), "because".to_owned()).unwrap()
    });
    (any_key(), option::of(value)).prop_map(|(key, value)| Op::Override { key, value })
}

fn any_checks() -> impl Strategy<Value = Vec<HealthCheck>> {
    (0..3_usize, 1..3_u32).prop_map(|(count, failures_before_critical)| {
        vec![HealthCheck { failures_before_critical, ..tcp_check() }; count]
    })
}

fn any_healths() -> impl Strategy<Value = Op> {
    let health = select(&[Health::Unknown, Health::Passing, Health::Critical][..]);
    let reason = option::of(select(&["refused", "late"][..]).prop_map(HealthReason::new));
    let report = (any_key(), (1..5_u64).prop_map(Incarnation), health, reason).prop_map(
        |(key, incarnation, health, reason)| HealthReport { key, incarnation, health, reason },
    );
    vec(report, 0..6).prop_map(Op::SetHealth)
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        1 => Just(Op::Tick),
        10 => any_register().prop_map(Op::Register),
        3 => any_healths(),
        2 => vec(any_lease(), 0..6).prop_map(Op::Renew),
        3 => any_deregister().prop_map(Op::Deregister),
        4 => any_update().prop_map(Op::Update),
        1 => any_override(),
        1 => (1..3_u64, select(&[0, 3, 1 << 32][..])).prop_map(|(id, base)| found(id, base)),
        1 => select(&[0, 2_000, 10_000, 100_000][..]).prop_map(|grace_ms| Op::Grace { grace_ms }),
        1 => (1..4_u32, any::<bool>()).prop_map(|(number, held)| Op::SetLevel(Level { number, held })),
    ]
}

/// Few origins and numbers, so that requests come again. When they were first made is filled in.
fn any_request() -> impl Strategy<Value = Request> {
    (1..12_u64, 0..6_u64, 0..6_u64, 0..60_000_u64, 0..2_u64, 0..3_u16).prop_map(
        |(origin, number, done_below, ago, digest, share)| {
            let (done_below, since, share) = (done_below.min(number), Clock(ago), Share(share));
            Request { origin, number, done_below, since, digest, share }
        },
    )
}

/// Commands whose clocks mostly go on by little, sometimes up to or over a deadline, sometimes
/// back.
fn any_log() -> impl Strategy<Value = Vec<Command>> {
    let step = prop_oneof![
        6 => 0..1_000_i64,
        2 => select(&[1_000_i64, 4_999, 5_000, 15_000, 120_000][..]),
        1 => select(&[3_600_000_i64, 86_400_000][..]),
        1 => -20_000..0_i64,
    ];
    let request = option::weighted(0.3, any_request());
    vec((step, any_op(), request), 1..60).prop_map(|steps| {
        let mut clock = 0_i64;
        let command = |(step, op, request): (i64, Op, Option<Request>)| {
            clock = (clock + step).max(0);
            let clock = Clock(clock as u64);
            let since = |ago: Clock| Clock(clock.0.saturating_sub(ago.0));
            let request = request.map(|it| Request { since: since(it.since), ..it });
            Command { clock, request, op }
        };
        steps.into_iter().map(command).collect()
    })
}

/// Applies an entry of a log; between some of them, the members change.
fn apply(registry: &mut Registry, at: usize, command: &Command) -> Applied {
    let members =
        |at: usize| (1..6_u64).filter(|id| !(at as u64 * 7 + id).is_multiple_of(3)).collect();
    if at % 4 == 3 {
        registry.members_changed(&members(at), &members(at + 4));
    }
    registry.apply(command)
}

fn snapshot(registry: &Registry) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_snapshot(registry, &mut bytes).unwrap();
    bytes
}

/// All of what can be read, and what decides about later commands, in the model's terms.
fn check_same(registry: &Registry, model: &Model) {
    assert_eq!(registry.cluster_id(), model.cluster_id);
    assert_eq!(registry.clock().0, model.clock);
    assert_eq!(registry.revision().0, model.revision);
    assert_eq!(registry.forgotten.0, model.forgotten);
    let mut expected: Vec<_> = model.instances.iter().collect();
    expected.sort_by_key(|instance| &instance.key);
    let services = registry.services.values();
    let found: Vec<_> =
        services.flat_map(|service| service.instances.values()).map(|i| &**i).collect();
    assert_eq!(found, expected);
    let mut expected: Vec<_> = model.leases.iter().collect();
    expected.sort_by_key(|lease| lease.id);
    let lease = |lease: &Lease| ModelLease {
        id: lease.id.0,
        ttl: lease.ttl.as_ms(),
        renewed: lease.renewed.0,
        deadline: lease.deadline.0,
    };
    let found: Vec<_> = registry.leases.values().map(lease).collect();
    assert_eq!(found.iter().collect::<Vec<_>>(), expected);
    let service = |(key, service): (&ServiceKey, &Service)| {
        let emptied = service.empty_since.map(|since| since.0);
        (key.clone(), ModelService { revision: service.revision.0, emptied })
    };
    let found: BTreeMap<_, _> = registry.services.iter().map(service).collect();
    assert_eq!(found, model.services);
    assert_eq!(registry.last_lease, model.leases_given);
    let mut expected = model.overrides.clone();
    expected.sort_by(|(one, _), (other, _)| one.cmp(other));
    let overrides = registry.overrides.iter();
    assert_eq!(overrides.map(|(key, it)| (key.clone(), it.clone())).collect::<Vec<_>>(), expected);
    let mut expected = model.ended.clone();
    expected.sort_by(|one, other| one.key.cmp(&other.key));
    let ended = |tombstone: &Tombstone| Ended {
        key: tombstone.key.clone(),
        incarnation: tombstone.incarnation.0,
        until: tombstone.until.0,
    };
    assert_eq!(registry.tombstones.values().map(ended).collect::<Vec<_>>(), expected);
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 100_000, ..ProptestConfig::default() })]

    #[test]
    fn registry_does_what_the_naive_model_does(log in any_log()) {
        let (mut registry, mut model) = (Registry::new(), Model::default());
        for command in log {
            // The model knows no requests: `repeating.rs` is about these.
            let command = &Command { request: None, ..command };
            let applied = registry.apply(command);
            let (reply, events) = model.apply(command);
            assert_eq!(applied.reply, reply, "reply to {command:?}");
            let told: Vec<_> = applied.events.iter().map(|event| (**event).clone()).collect();
            assert_eq!(told, events, "events of {command:?}");
            check_same(&registry, &model);
        }
    }

    #[test]
    fn invariants_hold_after_every_command(log in any_log()) {
        let mut registry = Registry::new();
        for (at, command) in log.iter().enumerate() {
            let (clock, revision) = (registry.clock(), registry.revision());
            let largest = registry.bytes() + registry.growth(&command.op);
            let applied = apply(&mut registry, at, command);
            check_invariants(&registry);
            assert!(registry.bytes() <= largest, "{} and not {largest}", registry.bytes());
            assert_eq!(registry.clock(), clock.max(command.clock));
            // What was done before is told with the revision of then.
            let now = registry.revision();
            assert!(applied.revision == now || command.request.is_some() && applied.revision < now);
            let revisions: Vec<_> = applied.events.iter().map(|event| event.revision.0).collect();
            let dense: Vec<_> = (revision.0 + 1..=registry.revision().0).collect();
            assert_eq!(revisions, dense);
            let earliest = registry.leases.values().map(|lease| lease.deadline).min();
            assert!(earliest.is_none_or(|at| registry.next_deadline().is_some_and(|d| d <= at)));
        }
    }

    /// Where nothing ends before it.
    #[test]
    fn what_is_refused_is_known_before(log in any_log()) {
        let mut registry = Registry::new();
        for command in &log {
            let command = &Command { request: None, ..command.clone() };
            let now = registry.clock().max(command.clock);
            let nothing_ends = registry.next_deadline().is_none_or(|deadline| deadline > now);
            let refused = registry.refuses(&command.op);
            let is_refused = matches!(registry.apply(command).reply, Reply::Rejected(_));
            if nothing_ends && matches!(command.op, Op::Register(_) | Op::Update(_)) {
                assert_eq!(refused, is_refused, "{command:?}");
            }
        }
    }

    /// No command ends more than its share, and ticks end the rest.
    #[test]
    fn what_is_due_goes_in_bounded_steps(log in any_log()) {
        let mut registry = Registry::new();
        for command in &log {
            let largest = registry.leases.values().map(|lease| lease.instances.len()).max();
            let applied = registry.apply(command);
            let expired = |event: &&Arc<Event>| {
                matches!(event.change, Change::Removed { reason: RemoveReason::Expired, .. })
            };
            let ended = applied.events.iter().filter(expired).count();
            assert!(ended < ENDED_PER_COMMAND + largest.unwrap_or(1), "{ended} at once");
            let mut ticked = registry.clone();
            let due = ticked.deadlines.len();
            for _ in 0..due {
                ticked.apply(&Command::new(Clock(0), Op::Tick));
            }
            check_nothing_is_late(&ticked);
        }
    }

    #[test]
    fn replayed_events_give_the_same_instances(log in any_log()) {
        let mut registry = Registry::new();
        let mut replayed = BTreeMap::new();
        for command in &log {
            for event in registry.apply(command).events {
                assert_eq!(replayed.get(event.key()), event.before());
                match event.after() {
                    Some(after) => replayed.insert(event.key().clone(), after.clone()),
                    None => replayed.remove(event.key()),
                };
                let changed = event.after().map(|after| after.modified);
                assert!(changed.is_none_or(|modified| modified == event.revision));
            }
            let services = registry.services.values();
            let held: BTreeMap<_, _> = services
                .flat_map(|service| service.instances.values())
                .map(|instance| (instance.key.clone(), instance.clone()))
                .collect();
            assert_eq!(replayed, held);
        }
    }

    #[test]
    fn same_log_gives_same_bytes_also_over_a_snapshot(log in any_log(), at in 0..60_usize) {
        let (mut straight, mut restored) = (Registry::new(), Registry::new());
        for (index, command) in log.iter().enumerate() {
            if index == at % log.len() {
                restored = read_snapshot(&mut &snapshot(&restored)[..]).unwrap();
            }
            let replies = [&mut straight, &mut restored].map(|it| apply(it, index, command));
            assert_eq!(replies[0], replies[1]);
            assert_eq!(straight.hash(), restored.hash());
        }
        assert_eq!(snapshot(&straight), snapshot(&restored));
    }

    #[test]
    fn restored_registry_has_the_same_indexes(log in any_log()) {
        let mut registry = Registry::new();
        for (at, command) in log.iter().enumerate() {
            apply(&mut registry, at, command);
        }
        let restored = read_snapshot(&mut &snapshot(&registry)[..]).unwrap();
        check_invariants(&restored);
        assert_eq!(restored.leases, registry.leases);
        assert_eq!(restored.services, registry.services);
        assert_eq!(restored.deadlines, registry.deadlines);
        assert_eq!(restored.dependents, registry.dependents);
        assert_eq!(restored.checked, registry.checked);
        assert_eq!(restored.replies, registry.replies);
        assert_eq!(restored.removed, registry.removed);
        assert_eq!(restored.level, registry.level);
        assert_eq!(restored.bytes(), registry.bytes());
        assert_eq!(restored.hash(), registry.hash());
    }

    #[test]
    fn commands_and_replies_survive_the_log(log in any_log()) {
        let mut registry = Registry::new();
        for command in &log {
            let bytes = postcard::to_stdvec(command).unwrap();
            assert_eq!(postcard::from_bytes::<Command>(&bytes).unwrap(), *command);
            let reply = registry.apply(command).reply;
            let bytes = postcard::to_stdvec(&reply).unwrap();
            assert_eq!(postcard::from_bytes::<Reply>(&bytes).unwrap(), reply);
        }
    }

    /// However many graces are given, a lease without renewals ends by TTL + min(grace, TTL) after
    /// the last renewal.
    #[test]
    fn graces_are_bounded(
        ttl_ms in 1_000..60_000_u64,
        grace_ms in 0..100_000_u64,
        steps in vec(0..20_000_u64, 1..40),
    ) {
        let mut registry = Registry::new();
        let dead = Register { ttl: ttl(ttl_ms), ..register("web/a", 7) };
        registry.apply(&Command::new(Clock(0), dead.into()));
        let mut clock = 0;
        for step in steps {
            clock += step;
            registry.apply(&Command::new(Clock(clock), Op::Grace { grace_ms }));
            let alive = registry.instance(&key("web/a")).is_some();
            assert!(alive || clock >= ttl_ms, "gone early at {clock}");
            assert!(!alive || clock < ttl_ms + grace_ms.min(ttl_ms), "still there at {clock}");
        }
    }
}
