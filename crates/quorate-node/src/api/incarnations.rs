//! How high an incarnation may be. Clients take their start time in microseconds; the highest
//! number there is would keep an instance's id from every later run. The node where a call enters
//! looks, and the leader that it is handed on to, each by its own clock; what is in the log counts
//! as it stands.
//!
//! That may be more than is taken now: older releases took more, and clocks are set. The run that
//! holds an instance, or has just left, is not locked out of it, nor is the next one.

use std::fmt::Display;
use std::time::Duration;

use quorate_state::{Deregister, Incarnation, InstanceKey, Invalid, Op, Register};
use tokio::time::Instant;

use crate::error::CallError;
use crate::node::{Consistency, Node};
use crate::wall;

/// An incarnation may be this far ahead of this node's wall clock: a year. What is higher is a
/// mistake (as nanoseconds are), and keeps an instance's id from all later runs until their clocks
/// come to it. Much less would have a node whose own clock is behind refuse what is right.
const AHEAD_MAX: Duration = Duration::from_secs(365 * 86_400);

/// A wall clock that is earlier is not set (2026-01-01T00:00:00Z, from the epoch). It knows nothing
/// of the time that callers have: until it is set, it refuses none of the ten years from here.
const NOT_SET_BEFORE: Duration = Duration::from_secs(1_767_225_600);
const NOT_SET_MAX: Duration = Duration::from_secs(10 * 365 * 86_400);

/// The run that holds an instance, or left it a short while ago, as far as this node knows.
pub(super) fn held(node: &Node) -> impl Fn(&InstanceKey) -> Option<Incarnation> {
    move |key: &InstanceKey| node.applied().lock().registry.last_run(key)
}

/// Makes a check where a call enters, or is led. What this node refuses, it looks at again when it
/// has applied all that was acknowledged: the run may hold the instance by a call through another
/// node.
///
/// # Errors
/// The check's; or no quorum says what was acknowledged.
pub(super) async fn check_entering(
    node: &Node,
    deadline: Instant,
    check: impl Fn() -> Result<(), Invalid>,
) -> Result<(), CallError> {
    if check().is_err() {
        node.read(Consistency::Linearizable, 0, deadline).await?;
        check()?;
    }
    Ok(())
}

/// # Errors
/// It would be a run that most cannot follow.
pub(super) fn check_register(
    register: &Register,
    held: impl Fn(&InstanceKey) -> Option<Incarnation>,
) -> Result<(), Invalid> {
    let Some(named) = register.incarnation else { return Ok(()) };
    // The same for all of them.
    let least = || register.instances.iter().map(|(key, _)| held(key)).min().flatten();
    check("incarnation", named, least, latest(wall::since_1970()))
}

/// # Errors
/// Such a run would be remembered as one that has ended, and none before it let in.
pub(super) fn check_deregister(
    deregister: &Deregister,
    held: impl Fn(&InstanceKey) -> Option<Incarnation>,
) -> Result<(), Invalid> {
    let Deregister::Instances(targets) = deregister else { return Ok(()) };
    let latest = latest(wall::since_1970());
    let mut named =
        targets.iter().enumerate().filter_map(|(at, it)| Some((at, it, it.incarnation?)));
    named.try_for_each(|(at, target, named)| {
        let field = format_args!("instances[{at}].incarnation");
        check(field, named, || held(&target.key), latest)
    })
}

/// Checks the incarnation in a command that another node hands in. (Update only finds the run that
/// holds the instance.)
pub(super) fn check_forwarded(
    op: &Op,
    held: impl Fn(&InstanceKey) -> Option<Incarnation>,
) -> Result<(), Invalid> {
    match op {
        Op::Register(register) => check_register(register, held),
        Op::Deregister(deregister) => check_deregister(deregister, held),
        _ => Ok(()),
    }
}

fn check(
    field: impl Display + Copy,
    Incarnation(named): Incarnation,
    held: impl FnOnce() -> Option<Incarnation>,
    latest: u64,
) -> Result<(), Invalid> {
    if named <= latest || held().is_some_and(|held| named <= held.0.saturating_add(1)) {
        return Ok(());
    }
    let must = format!(
        "must be at most {latest}: microseconds since 1970, a year from now by this node's clock (take the process's start time)"
    );
    Err(Invalid::number(field, named, must))
}

fn latest(now: Duration) -> u64 {
    let latest = match now < NOT_SET_BEFORE {
        true => NOT_SET_BEFORE + NOT_SET_MAX,
        false => now + AHEAD_MAX,
    };
    latest.as_micros().try_into().unwrap_or(u64::MAX - 1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use openraft::EntryPayload;
    use openraft::vote::RaftLeaderId as _;
    use quorate_log::NodeId;
    use quorate_state::{
        Clock, Command, InstanceId, InstanceRef, InstanceSpec, Namespace, ServiceKey, ServiceName,
        SpecParts,
    };

    use super::*;
    use crate::error::NodeError;
    use crate::server::Bound;
    use crate::types::{Entry, LogId, Vote};

    /// Of an instance that nothing holds.
    fn check_new(named: u64, latest: u64) -> Result<(), Invalid> {
        check("incarnation", Incarnation(named), || None, latest)
    }

    fn key(id: &str) -> InstanceKey {
        let name = ServiceName::new("service", "web").unwrap();
        let service = ServiceKey { namespace: Namespace::default(), name };
        InstanceKey { service, id: InstanceId::new("id", id).unwrap() }
    }

    /// A registration of these instances, and a deregistration.
    fn both(incarnation: Option<u64>, ids: &[&str]) -> [Op; 2] {
        let incarnation = incarnation.map(Incarnation);
        let endpoints = BTreeMap::from([("http".to_owned(), "http://h:1".to_owned())]);
        let spec = InstanceSpec::new("spec", SpecParts { endpoints, ..SpecParts::default() });
        let spec = spec.unwrap();
        let instances = ids.iter().map(|id| (key(id), spec.clone())).collect();
        let register = Register { lease: None, ttl: None, incarnation, instances, within: None };
        let targets = ids.iter().map(|id| InstanceRef { key: key(id), incarnation });
        [Op::Register(register), Op::Deregister(Deregister::Instances(targets.collect()))]
    }

    #[test]
    fn no_command_of_another_node_names_a_run_that_none_can_follow() {
        for (named, refused) in [(None, false), (Some(7), false), (Some(u64::MAX), true)] {
            for op in both(named, &["a"]) {
                assert_eq!(check_forwarded(&op, |_| None).is_err(), refused, "{op:?}");
            }
        }
        let [_, of_two] = both(Some(u64::MAX), &["a", "b"]);
        let refused = check_forwarded(&of_two, |_| None).unwrap_err().to_string();
        assert!(refused.contains("instances[0].incarnation"), "{refused}");
    }

    /// Releases before took ten years: the run registers again under its own number with each
    /// change, and the next one takes the number above.
    #[test]
    fn what_holds_an_instance_is_not_locked_out_of_it() {
        let far = far();
        let holds = |of: &InstanceKey| (*of != key("free")).then_some(Incarnation(far));
        for (named, ids, [registers, leaves]) in [
            (far, &["a"][..], [true, true]),
            (far + 1, &["a", "b"], [true, true]),
            (far + 2, &["a"], [false, false]),
            (far, &["free"], [false, false]),
            (far, &["a", "free"], [false, false]),
        ] {
            let [register, deregister] = both(Some(named), ids);
            for (op, is_taken) in [(register, registers), (deregister, leaves)] {
                assert_eq!(check_forwarded(&op, holds).is_ok(), is_taken, "{named} {ids:?}");
            }
        }
    }

    /// Ten years ahead, about.
    fn far() -> u64 {
        latest(wall::since_1970()) + 9 * 365 * 86_400_000_000
    }

    fn apply(node: &Node, op: Op) {
        let leader = Vote::new_committed(1, NodeId::new(1).unwrap()).leader_id().to_committed();
        let payload = EntryPayload::Normal(Command::new(Clock(1), op));
        node.applied().apply(Entry { log_id: LogId::new(leader, 1), payload });
    }

    /// Its deregistration may come again, at another node, too.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_run_that_has_left_is_known_as_one_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let (bound, far) = (Bound::waiting(dir.path()).await, far());
        let node = bound.node();
        let taken = |named| both(Some(named), &["a"]).map(|op| check_forwarded(&op, held(node)));
        assert!(taken(far).iter().all(Result::is_err), "nothing is known of it");
        for done in both(Some(far), &["a"]) {
            apply(node, done.clone());
            for named in [far, far + 1] {
                let taken = taken(named);
                assert!(taken.iter().all(Result::is_ok), "{named} after {done:?}: {taken:?}");
            }
            assert!(taken(far + 2).iter().all(Result::is_err), "after {done:?}");
        }
    }

    /// It may have registered a moment ago at another node.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_node_that_may_be_behind_refuses_no_run_for_what_it_lacks() {
        let dir = tempfile::tempdir().unwrap();
        let bound = Bound::waiting(dir.path()).await;
        let (node, [register, _]) = (bound.node(), both(Some(far()), &["a"]));
        let check = || check_forwarded(&register, held(node));
        let ends = || check_entering(node, Instant::now(), check);
        let refused = ends().await;
        assert!(
            matches!(refused, Err(CallError::Node(NodeError::NotMember { .. }))),
            "{refused:?}"
        );
        apply(node, register.clone());
        assert!(ends().await.is_ok());
    }

    #[test]
    fn a_clock_that_is_not_set_refuses_no_client() {
        let in_2030 = 1_893_456_000_000_000;
        for now in [Duration::ZERO, NOT_SET_BEFORE - Duration::from_secs(1)] {
            assert!(check_new(in_2030, latest(now)).is_ok(), "{now:?}");
        }
        for now in [Duration::ZERO, NOT_SET_BEFORE, wall::since_1970()] {
            let refused = check_new(u64::MAX, latest(now)).unwrap_err().to_string();
            // The client crate looks for these words.
            assert!(refused.starts_with("incarnation = "), "{refused}");
            assert!(refused.contains(&latest(now).to_string()), "{refused}");
        }
        assert!(latest(Duration::MAX / 2) < u64::MAX, "a higher one is always left");
    }

    /// One wrong call keeps an id from later runs for no longer than clocks may differ by.
    #[test]
    fn a_run_may_be_a_year_ahead_and_no_more() {
        let year = 365 * 86_400_000_000;
        for now in [NOT_SET_BEFORE, wall::since_1970()] {
            let ahead = now.as_micros() as u64 + year;
            assert_eq!(latest(now), ahead);
            assert!(check_new(ahead, latest(now)).is_ok());
            let refused = check_new(ahead + 1, latest(now)).unwrap_err().to_string();
            assert!(refused.contains("a year from now"), "{refused}");
        }
    }
}
