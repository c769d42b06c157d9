//! How high an incarnation may be. Clients take their start time in microseconds; the highest
//! number there is would keep an instance's id from every later run. Only the node where a call
//! enters looks: what is in the log counts as it stands.

use std::fmt::Display;
use std::time::Duration;

use quorate_state::{Deregister, Incarnation, Invalid, Op};

use crate::wall;

/// An incarnation may be this far ahead of this node's wall clock: a year. What is higher is a
/// mistake (as nanoseconds are), and keeps an instance's id from all later runs until their clocks
/// come to it. Much less would have a node whose own clock is behind refuse what is right.
const AHEAD_MAX: Duration = Duration::from_secs(365 * 86_400);

/// A wall clock that is earlier is not set (2026-01-01T00:00:00Z, from the epoch). It knows nothing
/// of the time that callers have: until it is set, it refuses none of the ten years from here.
const NOT_SET_BEFORE: Duration = Duration::from_secs(1_767_225_600);
const NOT_SET_MAX: Duration = Duration::from_secs(10 * 365 * 86_400);

/// The incarnation that a request names; 0: none.
pub(crate) fn named(
    field: impl Display + Copy,
    value: u64,
) -> Result<Option<Incarnation>, Invalid> {
    check(field, value, latest(wall::since_1970()))?;
    Ok((value != 0).then_some(Incarnation(value)))
}

/// Checks the incarnation in a command that another node hands in.
pub(super) fn check_forwarded(op: &Op) -> Result<(), Invalid> {
    let named = match op {
        Op::Register(register) => register.incarnation,
        Op::Update(update) => update.target.incarnation,
        Op::Deregister(Deregister::Instances(targets)) => {
            targets.iter().filter_map(|target| target.incarnation).max()
        }
        _ => None,
    };
    let check = |named: Incarnation| check("incarnation", named.0, latest(wall::since_1970()));
    named.map_or(Ok(()), check)
}

fn check(field: impl Display + Copy, value: u64, latest: u64) -> Result<(), Invalid> {
    if value <= latest {
        return Ok(());
    }
    let must = format!(
        "must be at most {latest}: microseconds since 1970, a year from now by this node's clock (take the process's start time)"
    );
    Err(Invalid::number(field, value, must))
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
    use quorate_state::{
        InstanceId, InstanceKey, InstanceRef, Namespace, Register, ServiceKey, ServiceName, Update,
    };

    use super::*;

    #[test]
    fn no_command_of_another_node_names_a_run_that_none_can_follow() {
        let name = ServiceName::new("service", "web").unwrap();
        let service = ServiceKey { namespace: Namespace::default(), name };
        let key = InstanceKey { service, id: InstanceId::new("id", "a").unwrap() };
        for (named, refused) in [(None, false), (Some(7), false), (Some(u64::MAX), true)] {
            let incarnation = named.map(Incarnation);
            let target = InstanceRef { key: key.clone(), incarnation };
            let register = Register {
                lease: None,
                ttl: None,
                incarnation,
                instances: Vec::new(),
                within: None,
            };
            let update = Update { weight: Some(1), ..Update::of(target.clone()) };
            for op in [
                Op::Register(register),
                Op::Update(update),
                Op::Deregister(Deregister::Instances(vec![target])),
            ] {
                assert_eq!(check_forwarded(&op).is_err(), refused, "{op:?}");
            }
        }
    }

    #[test]
    fn a_clock_that_is_not_set_refuses_no_client() {
        let in_2030 = 1_893_456_000_000_000;
        for now in [Duration::ZERO, NOT_SET_BEFORE - Duration::from_secs(1)] {
            assert!(check("incarnation", in_2030, latest(now)).is_ok(), "{now:?}");
        }
        for now in [Duration::ZERO, NOT_SET_BEFORE, wall::since_1970()] {
            let refused = check("incarnation", u64::MAX, latest(now)).unwrap_err().to_string();
            assert!(refused.contains("incarnation"), "{refused}");
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
            assert!(check("incarnation", ahead, latest(now)).is_ok());
            let refused = check("incarnation", ahead + 1, latest(now)).unwrap_err().to_string();
            assert!(refused.contains("a year from now"), "{refused}");
        }
    }
}
