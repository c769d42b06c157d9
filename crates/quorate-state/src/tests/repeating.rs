//! A write that is handed in again is answered and not done again, for as long as its reply is
//! kept.

use proptest::collection::vec;
use proptest::prelude::*;

use super::golden::{hex, snapshot_bytes};
use super::invariants::check_invariants;
use super::*;
use crate::registry::leases::ENDED_PER_COMMAND;
use crate::registry::replies::{ORIGIN_MS, ORIGINS_MAX, REPLIES_MAX, USED_STEP_MS};

fn request(origin: u64, number: u64) -> Request {
    Request { origin, number, done_below: 0, since: Clock(0), digest: 0, share: Share(1) }
}

impl Transcript {
    #[track_caller]
    fn asked(&mut self, clock: u64, request: Request, op: impl Into<Op>, expected: &str) {
        let command = Command { clock: Clock(clock), request: Some(request), op: op.into() };
        let applied = self.registry.apply(&command);
        check_invariants(&self.registry);
        assert_eq!(told(&applied), expected);
    }
}

const FORGOTTEN: &str = "rejected: this write was asked for before and may have been done: what came of it is not known any more; read what is there, then send a new one";

/// The fault that this is for: update A, update B, and A again when the lead has moved.
#[test]
fn what_was_done_is_not_done_again() {
    let mut t = Transcript::default();
    let weight = |weight| Update { weight: Some(weight), ..update("web/a") };
    t.asked(0, request(1, 1), register("web/a", 0), "registered L1 15000ms @1 | #1 added web/a@1");
    t.asked(1, request(1, 2), weight(7), "updated | #2 changed web/a@1");
    t.asked(2, request(2, 1), weight(8), "updated | #3 changed web/a@1");
    t.asked(3, request(1, 2), weight(7), "updated");
    assert_eq!(t.instance("web/a").weight(), 8);
    t.asked(4, request(1, 1), register("web/a", 0), "registered L1 15000ms @1");
    t.asked(5, request(2, 2), deregister("web/a"), "deregistered 1 | #4 removed web/a@1");
    t.asked(6, request(1, 3), register("web/a", 2), "registered L2 15000ms @2 | #5 added web/a@2");
    t.asked(7, request(2, 2), deregister("web/a"), "deregistered 1");
    assert_eq!(t.instances(), "web/a@2 L2");
}

/// Where there is no room for it, its place in the log is taken by something small.
#[test]
fn a_repetition_needs_nothing_but_its_name() {
    let mut t = Transcript::default();
    let told = "registered L1 15000ms @7";
    t.asked(0, request(1, 1), register("web/a", 7), &format!("{told} | #1 added web/a@7"));
    t.asked(1, request(1, 1), Op::Tick, told);
}

#[test]
fn a_repetition_tells_the_revision_of_the_first() {
    let mut registry = Registry::new();
    let write = |number, name| Command {
        clock: Clock(0),
        request: Some(request(1, number)),
        op: register(name, 7).into(),
    };
    let first = registry.apply(&write(1, "web/a"));
    registry.apply(&write(2, "web/b"));
    let again = registry.apply(&write(1, "web/a"));
    assert_eq!((again.reply, again.revision), (first.reply, first.revision));
    assert!(again.events.is_empty());
}

/// A first attempt that was held up came after the second one was refused, and after another
/// process had registered: it removed what that had.
#[test]
fn what_was_refused_is_refused_again() {
    let mut t = Transcript::default();
    let refused = "rejected: instance default/web/a is not registered";
    t.asked(0, request(1, 1), deregister("web/a"), refused);
    t.apply(1, register("web/a", 7));
    t.asked(2, request(1, 1), deregister("web/a"), refused);
    assert_eq!(t.instances(), "web/a@7 L1");
    let mut t =
        Transcript { registry: read_snapshot(&mut &snapshot_bytes(&t.registry)[..]).unwrap() };
    t.asked(3, request(1, 1), deregister("web/a"), refused);
    t.asked(4, request(1, 2), deregister("web/a"), "deregistered 1 | #2 removed web/a@7");
}

#[test]
fn two_writes_under_one_number_are_refused() {
    let mut t = Transcript::default();
    t.asked(0, request(1, 1), register("web/a", 7), "registered L1 15000ms @7 | #1 added web/a@7");
    let other = Request { digest: 9, ..request(1, 1) };
    t.asked(
        1,
        other,
        register("web/b", 7),
        "rejected: request_id.number = 1: another request of this origin had it; number each write anew, and send it unchanged when it is tried again",
    );
}

#[test]
fn replies_that_nobody_waits_for_are_forgotten() {
    let mut t = Transcript::default();
    t.asked(0, request(1, 1), register("web/a", 7), "registered L1 15000ms @7 | #1 added web/a@7");
    let next = Request { done_below: 2, ..request(1, 2) };
    t.asked(1, next, register("web/b", 7), "registered L2 15000ms @7 | #2 added web/b@7");
    assert_eq!(t.registry.replies.done().count(), 1);
    t.asked(2, request(1, 1), register("web/a", 7), FORGOTTEN);
}

#[test]
fn an_origin_is_forgotten_in_time_and_then_cannot_be_told_what_it_did() {
    let mut t = Transcript::default();
    let lasting = Register { ttl: ttl(86_400_000), ..register("web/a", 7) };
    let first = Request { since: Clock(1), ..request(1, 1) };
    t.asked(1, first, lasting.clone(), "registered L1 86400000ms @7 | #1 added web/a@7");
    let last = 1 + USED_STEP_MS + ORIGIN_MS;
    t.asked(last - 1, first, lasting.clone(), "registered L1 86400000ms @7");
    assert_eq!(t.registry.next_deadline(), Some(Clock(last)));
    t.at(last, Op::Tick, "done");
    assert_eq!(t.registry.replies.origins().count(), 0);
    t.asked(last, first, lasting.clone(), FORGOTTEN);
    // It is back, and what it did before is as unknown as it was.
    let fresh = Request { since: Clock(last), ..request(1, 2) };
    t.asked(last, fresh, update("web/a"), "updated");
    t.asked(last, first, lasting, FORGOTTEN);
}

/// 16 origins with all the replies that one may have went in one command: half a million.
#[test]
fn origins_with_many_replies_are_forgotten_one_after_the_other() {
    let mut t = Transcript::default();
    t.apply(0, Register { ttl: ttl(86_400_000), ..register("web/a", 7) });
    for origin in [1, 2, 3] {
        for number in 0..ENDED_PER_COMMAND as u64 {
            t.asked(0, request(origin, number), update("web/a"), "updated");
        }
    }
    for left in [2, 1, 0] {
        t.at(USED_STEP_MS + ORIGIN_MS, Op::Tick, "done");
        assert_eq!(t.registry.replies.origins().count(), left);
    }
}

#[test]
fn replies_of_one_origin_are_bounded() {
    let mut t = Transcript::default();
    for number in 0..10 + REPLIES_MAX as u64 {
        t.apply(number, Op::Tick);
        let one = Request { since: Clock(number), ..request(1, number) };
        let command =
            Command { clock: Clock(0), request: Some(one), op: register("web/a", 7).into() };
        assert!(matches!(t.registry.apply(&command).reply, Reply::Registered { .. }));
        check_invariants(&t.registry);
    }
    assert_eq!(t.registry.replies.done().count(), REPLIES_MAX);
    t.asked(50, request(1, 9), register("web/a", 7), FORGOTTEN);
}

/// One caller's new origins drove out those of others, and first writes of others were taken for
/// late ones that may have been done.
#[test]
fn origins_of_one_caller_take_no_place_of_others() {
    const FULL: &str = "rejected: request_id.origin: 4 of this caller are remembered, and there is no room for one more now: number all writes of a process under one origin, or wait; each is forgotten 130 s after its last write";
    let by = |share, origin, since| Request {
        share: Share(share),
        since: Clock(since),
        ..request(origin, 1)
    };
    let mut t = Transcript::default();
    t.apply(0, Register { ttl: ttl(86_400_000), ..register("web/a", 7) });
    for origin in 1..=ORIGINS_MAX as u64 / 2 {
        t.asked(origin, by(1, origin, origin - 1), update("web/a"), "updated");
    }
    t.asked(10, by(1, 99, 9), update("web/a"), FULL);
    assert_eq!(t.registry.replies.origins().count(), ORIGINS_MAX / 2, "it leaves no trace");
    let again = Request { number: 2, ..by(1, 4, 11) };
    t.asked(11, again, update("web/a"), "updated");
    let registered = "registered L2 86400000ms @7";
    let (first, write) =
        (by(2, 100, 11), Register { ttl: ttl(86_400_000), ..register("web/b", 7) });
    t.asked(11, first, write.clone(), &format!("{registered} | #2 added web/b@7"));
    // Under whatever name it comes, and however full that one's share is.
    for share in [2, 1, 3] {
        let again = Request { share: Share(share), since: Clock(0), ..first };
        t.asked(12, again, write.clone(), registered);
    }
    let later = 1 + USED_STEP_MS + ORIGIN_MS;
    t.asked(later, by(1, 99, later), update("web/a"), "updated");
    t.asked(later, by(1, 1, 0), update("web/a"), FORGOTTEN);
}

/// Callers that never say which of their writes are over.
#[test]
fn replies_are_shared_out() {
    let mut t = Transcript::default();
    t.apply(0, Register { ttl: ttl(86_400_000), ..register("web/a", 7) });
    let mut kept = |share, origin| {
        for number in 1..=4 {
            let request = Request { share: Share(share), ..request(origin, number) };
            t.asked(1, request, update("web/a"), "updated");
        }
        t.registry.replies.done().filter(|done| done.origin == origin).count()
    };
    assert_eq!([1, 2, 3].map(|origin| kept(1, origin)), [4, 2, 1]);
    assert_eq!(kept(2, 4), 2, "there is always room for others");
}

#[test]
fn replies_stand_in_snapshots() {
    let mut t = Transcript::default();
    t.asked(
        300,
        request(1, 2),
        register("web/a", 7),
        "registered L1 15000ms @7 | #1 added web/a@7",
    );
    let bytes = snapshot_bytes(&t.registry);
    // begun, used, done_below, share; then number, digest, revision and the reply.
    for record in ["06_01_ac02_ac02_00_01_00", "07_01_02_00_01_01_01_9875_07_00"] {
        let record = record.replace('_', "");
        assert!(hex(&bytes).contains(&record), "{record} in {}", hex(&bytes));
    }
    let mut t = Transcript { registry: read_snapshot(&mut &bytes[..]).unwrap() };
    t.asked(301, request(1, 2), register("web/a", 7), "registered L1 15000ms @7");
}

/// A request, what it does, and what came of it.
type Asked = (Request, Op, Option<(Reply, Revision)>);

/// An instance that updates find or not.
fn come_or_go(registry: &mut Registry, name: &str) {
    let lasting = Register { ttl: ttl(86_400_000), ..register(name, 0) };
    let op = match registry.instance(&key(name)) {
        Some(_) => deregister(name).into(),
        None => lasting.into(),
    };
    registry.apply(&Command::new(Clock(0), op));
}

/// One step of a log: who asks (for something new, or for the request so many before its last
/// again), and when.
#[derive(Debug, Clone)]
struct Step {
    passes_ms: u64,
    origin: u64,
    share: u16,
    again: Option<usize>,
    over: bool,
    weight: u32,
}

fn any_steps() -> impl Strategy<Value = Vec<Step>> {
    let passes = prop_oneof![6 => 0..50_u64, 2 => 0..40_000_u64, 1 => 0..200_000_u64];
    let step = (passes, 1..12_u64, 0..3_u16, option_again(), any::<bool>(), 0..1_000_u32);
    let step = step.prop_map(|(passes_ms, origin, share, again, over, weight)| Step {
        passes_ms,
        origin,
        share,
        again,
        over,
        weight,
    });
    vec(step, 1..80)
}

fn option_again() -> impl Strategy<Value = Option<usize>> {
    proptest::option::weighted(0.5, 0..12_usize)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// However late and however often a write is handed in again, and whoever asks for it then: it
    /// is done once, and its first reply is the only one.
    #[test]
    fn nothing_is_done_twice(steps in any_steps()) {
        let mut registry = Registry::new();
        let forever = Register { ttl: ttl(86_400_000), ..register("web/a", 7) };
        registry.apply(&Command::new(Clock(0), forever.into()));
        // Of each origin: its requests, with the reply and revision of those that were done.
        let mut asked: BTreeMap<u64, Vec<Asked>> = BTreeMap::new();
        let (mut now, mut below) = (1, BTreeMap::new());
        for step in steps {
            now += step.passes_ms;
            if step.weight.is_multiple_of(3) {
                come_or_go(&mut registry, "web/b");
            }
            let clock = registry.clock();
            let own = asked.entry(step.origin).or_default();
            let new = own.len();
            let at = step.again.map_or(new, |back| new.saturating_sub(1 + back));
            let is_again = at < new;
            if !is_again {
                let number = new as u64;
                let request = Request { since: clock, ..request(step.origin, number) };
                let weight = Some(step.weight);
                let name = if step.weight.is_multiple_of(2) { "web/a" } else { "web/b" };
                own.push((request, Update { weight, ..update(name) }.into(), None));
            }
            let done_below = below.entry(step.origin).or_insert(0);
            if step.over {
                *done_below = (*done_below).max(at as u64);
            }
            let (request, op, first) = &mut own[at];
            let share = Share(step.share);
            let request =
                Request { done_below: (*done_below).min(request.number), share, ..*request };
            let before = registry.revision();
            let told_before = registry.replies.forgotten;
            let command = Command { clock: Clock(now), request: Some(request), op: op.clone() };
            let applied = registry.apply(&command);
            check_invariants(&registry);
            match (&applied.reply, &first) {
                (Reply::Rejected(Rejection::TooManyOrigins { origins }), first) => {
                    let all: Vec<_> = registry.replies.origins().collect();
                    let own = all.iter().filter(|origin| origin.share == request.share).count();
                    assert!(*origins == own as u64 && own >= ORIGINS_MAX - all.len());
                    assert!(first.is_none() && all.iter().all(|it| it.id != request.origin));
                    assert_eq!(registry.revision(), before, "it was not done");
                }
                (Reply::Rejected(Rejection::RequestForgotten), _) => {
                    assert_eq!(registry.revision(), before, "it was not done");
                    let new = first.is_none() && request.number >= *done_below;
                    let known = told_before.max(registry.replies.forgotten);
                    // One that was refused for want of room, and comes again when replies to later
                    // ones had to go, cannot be told from what was done.
                    let mut origins = registry.replies.origins();
                    let own = origins.find(|it| it.id == request.origin);
                    let gone = own.is_some_and(|it| request.number < it.done_below);
                    let is_told = new && !(is_again && gone);
                    let is_late = known.is_some_and(|at| request.since <= at);
                    assert!(!is_told || is_late, "refused for nothing");
                }
                (reply, Some((told, revision))) => {
                    assert_eq!((reply, applied.revision), (told, *revision));
                    assert_eq!(registry.revision(), before, "done twice");
                }
                (reply, None) => *first = Some((reply.clone(), applied.revision)),
            }
            let restored = read_snapshot(&mut &snapshot_bytes(&registry)[..]).unwrap();
            assert_eq!(restored.hash(), registry.hash());
            assert_eq!(restored.replies, registry.replies);
            assert_eq!(restored.deadlines, registry.deadlines);
        }
    }

    /// Three callers take origin after origin; what a fourth one asks for is done, and told again,
    /// as if it were alone.
    #[test]
    fn a_flood_refuses_nothing_of_others(
        steps in vec((prop_oneof![6 => 0..50_u64, 1 => 0..60_000_u64], 0..4_u16, 0..3_usize), 1..120),
    ) {
        let mut registry = Registry::new();
        let forever = Register { ttl: ttl(86_400_000), ..register("web/a", 7) };
        registry.apply(&Command::new(Clock(0), forever.into()));
        let mut own: Vec<(Request, Reply, Revision)> = Vec::new();
        let (mut now, mut origins) = (1, 100);
        for (passes_ms, who, back) in steps {
            now += passes_ms;
            let since = registry.clock();
            let write = |request: Request| {
                let weight = Some((request.origin + request.number) as u32 % 1_000);
                let op = Update { weight, ..update("web/a") }.into();
                Command { clock: Clock(now), request: Some(request), op }
            };
            if who > 0 {
                origins += 1;
                let request = Request { share: Share(who), since, ..request(origins, 1) };
                registry.apply(&write(request));
                check_invariants(&registry);
                continue;
            }
            let at = own.len().saturating_sub(back);
            let request = match own.get(at) {
                Some((request, ..)) => *request,
                None => Request { share: Share(0), since, ..request(7, at as u64) },
            };
            let before = registry.revision();
            let Applied { reply, revision, .. } = registry.apply(&write(request));
            check_invariants(&registry);
            match own.get(at) {
                _ if request.since.plus_ms(ORIGIN_MS) <= registry.clock() => break,
                None => {
                    assert_eq!(reply, Reply::Updated);
                    own.push((request, reply, revision));
                }
                Some((_, first, of_first)) => {
                    assert_eq!((&reply, revision), (first, *of_first));
                    assert_eq!(registry.revision(), before, "done twice");
                }
            }
        }
    }
}
