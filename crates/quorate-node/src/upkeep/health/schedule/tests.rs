//! When checks are due, and what is reported of them, without any target.

use quorate_state::{
    CheckKind, Clock, Command, Health, Incarnation, InstanceId, InstanceSpec, Namespace, Op,
    Register, Registry, ServiceKey, ServiceName, SpecParts,
};

use super::*;

fn key(id: &str) -> InstanceKey {
    let (namespace, name) = (Namespace::default(), ServiceName::new("service", "web").unwrap());
    let service = ServiceKey { namespace, name };
    InstanceKey { service, id: InstanceId::new("id", id).unwrap() }
}

/// Connects every 10 s; critical after two failures, passing after two successes.
fn check() -> HealthCheck {
    HealthCheck {
        kind: CheckKind::Tcp,
        endpoint: "".into(),
        interval_ms: 10_000,
        timeout_ms: 2_000,
        failures_before_critical: 2,
        successes_before_passing: 2,
    }
}

/// A registry and the schedule of its checks.
struct Probing {
    registry: Registry,
    schedule: Schedule,
    begin: Instant,
}

impl Probing {
    fn new() -> Self {
        let (registry, schedule) = (Registry::new(), Schedule::default());
        Self { registry, schedule, begin: Instant::now() }
    }

    /// Registers an instance with this number of checks, and has the schedule see that.
    fn register(&mut self, id: &str, incarnation: u64, checks: usize) {
        let endpoints = [("tcp".to_owned(), "tcp://h:1".to_owned())].into();
        let checks = vec![check(); checks];
        let parts = SpecParts { endpoints, checks, ..SpecParts::default() };
        let instances = vec![(key(id), InstanceSpec::new("", parts).unwrap())];
        let incarnation = Some(Incarnation(incarnation));
        let register = Register { lease: None, ttl: None, incarnation, instances, within: None };
        self.apply(Op::Register(register));
    }

    fn set(&mut self, id: &str, health: Health) {
        self.set_because(id, health, REFUSED);
    }

    fn set_because(&mut self, id: &str, health: Health, reason: &str) {
        let (key, incarnation) = (key(id), Incarnation(1));
        let reason = Some(HealthReason::new(reason));
        self.apply(Op::SetHealth(vec![HealthReport { key, incarnation, health, reason }]));
    }

    fn apply(&mut self, op: Op) {
        self.registry.apply(&Command::new(Clock(0), op));
        self.schedule.update(self.begin, self.registry.checked(), || 0.5);
    }

    fn at(&self, ms: u64) -> Instant {
        self.begin + Duration::from_millis(ms)
    }

    /// What is due at this time, by place of the check.
    fn due(&mut self, ms: u64, room_for_hanging: bool) -> Vec<CheckId> {
        let now = self.at(ms);
        std::iter::from_fn(|| self.schedule.take_due(now, room_for_hanging))
            .map(|due| due.id)
            .collect()
    }

    fn done(&mut self, ms: u64, id: CheckId, result: Result<(), Failure>) -> Option<Health> {
        Some(self.report(ms, id, result)?.health)
    }

    fn report(
        &mut self,
        ms: u64,
        id: CheckId,
        result: Result<(), Failure>,
    ) -> Option<HealthReport> {
        let report = self.schedule.done(self.at(ms), id, &result, 0.5)?;
        assert_eq!(self.schedule.news(&report.key).as_ref(), Some(&report));
        Some(report)
    }

    /// The reason of what is reported; empty where there is none.
    fn why(&mut self, id: CheckId, result: Result<(), Failure>) -> Option<String> {
        let report = self.report(1, id, result)?;
        Some(report.reason.map_or_else(String::new, |reason| reason.to_string()))
    }
}

const FAILED: Result<(), Failure> = Err(Failure::NoHttp);
/// What is said of these.
const REFUSED: &str = "tcp://h:1: the answer is no HTTP/1";
const HUNG: &str = "tcp://h:1: no answer within 2000 ms";

fn hung() -> Result<(), Failure> {
    Err(Failure::Timeout(Duration::from_secs(2)))
}

fn not_resolved(late: bool) -> Result<(), Failure> {
    let error = Arc::new(std::io::ErrorKind::Other.into());
    Err(Failure::Lookup { error, late })
}

// S4.6
#[tokio::test(start_paused = true)]
async fn a_check_is_due_an_interval_after_it_began() {
    let mut p = Probing::new();
    p.register("a", 1, 1);
    assert_eq!(p.due(2_499, true), [0_u64; 0], "the first ones are spread over 5 s");
    assert_eq!(p.due(2_500, true), [1]);
    assert_eq!(p.due(20_000, true), [0_u64; 0], "one is under way");
    p.done(4_000, 1, Ok(()));
    assert_eq!(p.due(12_499, true), [0_u64; 0]);
    assert_eq!(p.due(12_500, true), [1]);
    // One that took longer than its interval is due at once.
    p.done(30_000, 1, Ok(()));
    assert_eq!(p.schedule.next(true), Some(p.at(30_000)));
}

// S4.7
#[tokio::test(start_paused = true)]
async fn whose_name_is_not_resolved_in_time_hangs_too() {
    let mut p = Probing::new();
    for id in ["a", "b", "c"] {
        p.register(id, 1, 1);
    }
    assert_eq!(p.due(5_000, true), [1, 2, 3]);
    p.done(7_000, 1, not_resolved(true));
    p.done(7_000, 2, not_resolved(false));
    p.done(7_000, 3, Err(Failure::NoLookup));
    assert_eq!(p.due(30_000, false), [2], "so do those whose turn did not come");
    assert_eq!(p.due(30_000, true), [1, 3]);
}

/// A good name is not looked up among slow ones because its target hangs, nor because of others.
// S4.7
#[tokio::test(start_paused = true)]
async fn a_name_is_slow_for_what_its_lookups_say_alone() {
    let mut p = Probing::new();
    p.register("a", 1, 1);
    let mut ms = 0;
    for (result, expected) in [
        (hung(), (true, false)),
        (Err(Failure::NoLookup), (true, false)),
        (not_resolved(true), (true, true)),
        (Err(Failure::NoLookup), (true, true)),
        (Err(Failure::Stalled), (true, true)),
        (hung(), (true, false)),
        (Err(Failure::Stalled), (true, false)),
        (not_resolved(true), (true, true)),
        (not_resolved(false), (false, false)),
        (Err(Failure::Stalled), (false, false)),
        (not_resolved(true), (true, true)),
        (FAILED, (false, false)),
        (not_resolved(true), (true, true)),
        (Ok(()), (false, false)),
    ] {
        let said = format!("{result:?}");
        ms += 20_000;
        assert!(p.schedule.take_due(p.at(ms), true).is_some());
        p.done(ms, 1, result);
        ms += 20_000;
        let due = p.schedule.take_due(p.at(ms), true).unwrap();
        assert_eq!((due.hangs, due.name_is_slow), expected, "{said}");
        p.done(ms, 1, Err(Failure::Stalled));
    }
}

// S4.7
#[tokio::test(start_paused = true)]
async fn those_that_hang_wait_for_room_of_their_own() {
    let mut p = Probing::new();
    p.register("a", 1, 1);
    p.register("b", 1, 1);
    assert_eq!(p.due(5_000, true), [1, 2]);
    p.done(7_000, 1, hung());
    p.done(7_000, 2, FAILED);
    assert_eq!(p.due(20_000, false), [2], "the other one hangs");
    assert_eq!(p.schedule.next(false), None);
    assert_eq!(p.due(20_000, true), [1]);
    p.done(21_000, 1, Ok(()));
    assert_eq!(p.due(40_000, false), [1], "it answers again");
}

#[tokio::test(start_paused = true)]
async fn what_changes_is_reported_until_it_is_known() {
    let mut p = Probing::new();
    p.register("a", 1, 2);
    p.due(5_000, true);
    let all = [p.done(1, 1, Ok(())), p.done(1, 1, Ok(())), p.done(1, 2, Ok(()))];
    assert_eq!(all, [None; 3], "not both have passed twice");
    assert_eq!(p.done(1, 2, Ok(())), Some(Health::Passing));
    assert_eq!(p.done(1, 1, Ok(())), Some(Health::Passing), "as long as it is not known");
    p.set("a", Health::Passing);
    assert_eq!(p.done(1, 2, Ok(())), None);
    assert_eq!([p.done(1, 1, FAILED), p.done(1, 1, FAILED)], [None, Some(Health::Critical)]);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_the_targets_fault_counts_for_nothing() {
    let mut p = Probing::new();
    p.register("a", 1, 1);
    p.due(5_000, true);
    p.done(1, 1, FAILED);
    for _ in 0..5 {
        let not_allowed = Failure::NotAllowed { address: [10, 0, 0, 1].into() };
        assert_eq!(p.done(1, 1, Err(not_allowed)), None);
        assert_eq!(p.done(1, 1, Err(Failure::Stalled)), None);
        assert_eq!(p.done(1, 1, not_resolved(true)), None);
        assert_eq!(p.done(1, 1, Err(Failure::NoLookup)), None);
        assert_eq!(p.done(1, 1, Err(Failure::OwnTrouble(std::io::ErrorKind::Other.into()))), None);
    }
    assert_eq!(p.done(1, 1, FAILED), Some(Health::Critical));
}

#[tokio::test(start_paused = true)]
async fn that_a_check_is_not_made_is_logged_again_once_one_was() {
    let mut p = Probing::new();
    p.register("a", 1, 1);
    p.due(5_000, true);
    for (result, told) in [
        (Err(Failure::Stalled), false),
        (Err(Failure::NoLookup), true),
        (not_resolved(true), true),
        (Ok(()), false),
        (not_resolved(true), true),
        (Err(Failure::Stalled), true),
        (FAILED, false),
    ] {
        let said = format!("{result:?}");
        p.done(1, 1, result);
        assert_eq!(p.schedule.checks[&1].told, told, "{said}");
    }
}

/// A new leader may not have applied yet what the one before it had found.
#[tokio::test(start_paused = true)]
async fn what_a_leader_before_found_is_where_the_checks_begin() {
    let mut p = Probing::new();
    p.register("a", 1, 1);
    p.due(5_000, true);
    assert_eq!([p.done(1, 1, Ok(())), p.done(1, 1, Ok(()))], [None, Some(Health::Passing)]);
    p.set("a", Health::Passing);
    p.set("a", Health::Critical);
    assert_eq!(p.done(1, 1, FAILED), None, "one failure does not bring it back");
    assert_eq!([p.done(1, 1, Ok(())), p.done(1, 1, Ok(()))], [None, Some(Health::Passing)]);
}

#[tokio::test(start_paused = true)]
async fn the_reason_is_that_of_a_check_that_fails() {
    let mut p = Probing::new();
    p.register("a", 1, 2);
    p.due(5_000, true);
    assert_eq!([p.why(1, FAILED), p.why(1, FAILED)], [None, Some(REFUSED.to_owned())]);
    let beside = p.why(2, Ok(()));
    assert_eq!(beside.as_deref(), Some(REFUSED), "the other one passes, and ended last");
    p.set("a", Health::Critical);
    assert_eq!([p.why(1, hung()), p.why(1, hung())], [None, None], "it fails in other ways");
    assert_eq!([p.why(2, hung()), p.why(2, hung())], [None, None], "so does the other one");
    assert_eq!(p.why(1, Ok(())), None, "not passing yet");
    assert_eq!(p.why(1, Ok(())).as_deref(), Some(HUNG), "only the other one still fails");
    p.set_because("a", Health::Critical, HUNG);
    assert_eq!([p.why(2, FAILED), p.why(2, Ok(()))], [None, None]);
    assert_eq!(p.why(2, Ok(())).as_deref(), Some(""), "all pass");
}

#[tokio::test(start_paused = true)]
async fn the_reason_that_a_leader_before_found_stays_if_it_is_still_that() {
    for checks in [1, 2] {
        let mut p = Probing::new();
        p.register("a", 1, checks);
        p.set("a", Health::Critical);
        let mut next = Probing { schedule: Schedule::default(), ..p };
        next.apply(Op::Tick);
        next.due(5_000, true);
        for id in (1..=checks as u64).chain(1..=checks as u64) {
            assert_eq!(next.why(id, FAILED), None);
        }
        next.set_because("a", Health::Critical, HUNG);
        assert_eq!(next.why(1, FAILED).as_deref(), Some(REFUSED), "other words");
        next.set("a", Health::Critical);
        assert_eq!(next.why(1, hung()), None, "once");
    }
}

// S4.8
#[tokio::test(start_paused = true)]
async fn what_is_gone_or_replaced_is_forgotten() {
    let mut p = Probing::new();
    p.register("a", 1, 2);
    p.register("b", 1, 1);
    assert_eq!(p.due(5_000, true), [1, 2, 3]);
    p.register("a", 2, 1);
    for under_way in [1, 2] {
        assert_eq!(p.done(1, under_way, FAILED), None);
        assert_eq!(p.done(1, under_way, FAILED), None, "of the run before");
    }
    let lease = p.registry.instance(&key("b")).unwrap().lease;
    p.apply(Op::Deregister(quorate_state::Deregister::Lease(lease)));
    assert_eq!(p.done(1, 3, FAILED), None);
    assert_eq!(p.due(50_000, true), [4]);
    p.done(50_000, 4, Ok(()));
    let lease = p.registry.instance(&key("a")).unwrap().lease;
    p.apply(Op::Deregister(quorate_state::Deregister::Lease(lease)));
    assert_eq!(p.schedule.next(true), None);
    assert!(p.schedule.checks.is_empty() && p.schedule.instances.is_empty());
}

/// It stayed critical for ever once its network was no longer allowed.
// S4.13
#[tokio::test(start_paused = true)]
async fn of_what_may_not_be_probed_any_more_nothing_is_known() {
    let not_allowed = || Err(Failure::NotAllowed { address: [127, 0, 0, 1].into() });
    for known in [Health::Critical, Health::Passing] {
        let mut p = Probing::new();
        p.register("a", 1, 2);
        p.set("a", known);
        // The next leader.
        let mut p = Probing { schedule: Schedule::default(), ..p };
        p.apply(Op::Tick);
        p.due(5_000, true);
        if known == Health::Critical {
            assert_eq!(p.done(1, 1, not_allowed()), None, "the other one may fail");
            assert_eq!(p.done(1, 2, Ok(())), None, "not passing yet");
            assert_eq!(p.done(1, 2, Ok(())), Some(Health::Unknown));
        } else {
            assert_eq!(p.done(1, 1, not_allowed()), Some(Health::Unknown));
        }
        p.set("a", Health::Unknown);
        assert_eq!(p.done(2, 1, not_allowed()), None, "once");
        assert_eq!([p.done(3, 2, FAILED), p.done(4, 2, FAILED)], [None, Some(Health::Critical)]);
        p.set("a", Health::Critical);
        assert_eq!([p.done(5, 1, Ok(())), p.done(6, 1, Ok(()))], [None, None], "allowed again");
        assert_eq!([p.done(7, 2, Ok(())), p.done(8, 2, Ok(()))], [None, Some(Health::Passing)]);
    }
}

#[tokio::test(start_paused = true)]
async fn where_nothing_may_be_probed_what_was_found_is_found_once() {
    let mut p = Probing::new();
    for id in ["a", "b", "c"] {
        p.register(id, 1, usize::from(id != "c"));
    }
    p.set("a", Health::Critical);
    let told = |p: &Probing, seen: &CheckedInstances| {
        let checked = p.registry.checked();
        let reports: Vec<_> = no_longer_known(&checked, seen).collect();
        assert!(reports.iter().all(|report| report.health == Health::Unknown));
        reports.iter().map(|report| report.key.id.to_string()).collect::<Vec<_>>()
    };
    let nothing = CheckedInstances::default();
    assert_eq!(told(&p, &nothing), ["a"]);
    p.set("a", Health::Unknown);
    assert_eq!(told(&p, &nothing), [""; 0]);
    let seen = p.registry.checked();
    p.set("b", Health::Passing);
    assert_eq!(told(&p, &seen), ["b"], "the last word of a leader that probes");
}
