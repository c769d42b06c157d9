//! The identity of a write from where it enters the cluster: the caller's own, which it carries
//! over its attempts at other nodes, or one of this node's, which lasts for this node's attempts at
//! other leaders. With it the state machine does a write once, however often it is handed in
//! (`quorate_state::Request`).

use quorate_proto::requests::{OpenWrite, Origin};
use quorate_state::{Clock, Invalid, Op, Register, Request, Share};
use xxhash_rust::xxh3::xxh3_64;

use crate::node::Node;
use crate::types::encode;

/// A repetition may have been under way to this node for this long before it was read, ms: by so
/// much longer ago may its first attempt have been made than the caller knew when it sent it. Half
/// of the longest call.
const UNDER_WAY_MS: u64 = 30_000;

/// The name that a caller has given a write, as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GivenName {
    pub(crate) origin: u64,
    pub(crate) number: u64,
    /// The caller waits for no answer to writes of its with lower numbers.
    pub(crate) done_below: u64,
    /// How long ago it made its first attempt.
    pub(crate) age_ms: u64,
    /// Of the caller.
    pub(crate) share: Share,
}

/// The share of a caller that goes by this. Not the nodes' own, which are all in one.
pub(crate) fn share_of(name: &[u8]) -> Share {
    Share((xxh3_64(name) as u16).max(1))
}

/// A write and its name; of this node's own ones, none with a lower number is answered as long as
/// this is there.
#[derive(Debug)]
pub(crate) struct Named {
    pub(crate) request: Request,
    _open: Option<OpenWrite>,
}

/// Names a write that enters while the registry's clock, as applied here, is `now`.
///
/// # Errors
/// The caller's own name for it is none.
pub(crate) fn name(
    own: &Origin,
    given: Option<GivenName>,
    op: &Op,
    now: Clock,
) -> Result<Named, Invalid> {
    let Some(GivenName { origin, number, done_below, age_ms, share }) = given else {
        let open = own.begin();
        let (origin, number, done_below) = (open.origin(), open.number(), open.done_below());
        let share = Share::default();
        let request = Request { origin, number, done_below, since: now, digest: 0, share };
        return Ok(Named { request, _open: Some(open) });
    };
    if origin == 0 {
        return Err(Invalid::number("request_id.origin", 0, "a random number, not 0"));
    }
    if done_below > number {
        let limit = format!("at most request_id.number, {number}");
        return Err(Invalid::number("request_id.done_below", done_below, limit));
    }
    let ago_ms = if age_ms == 0 { 0 } else { age_ms.saturating_add(UNDER_WAY_MS) };
    let since = Clock(now.0.saturating_sub(ago_ms));
    let digest = digest(op);
    let request = Request { origin, number, done_below, since, digest, share };
    Ok(Named { request, _open: None })
}

/// Of what the caller asks for: not of what it may, which can change between two attempts.
fn digest(op: &Op) -> u64 {
    let encoded = match op {
        Op::Register(register) if register.within.is_some() => {
            encode(&Op::Register(Register { within: None, ..register.clone() }))
        }
        op => encode(op),
    };
    xxh3_64(&encoded).max(1)
}

impl Node {
    /// A write as its caller has named it; `None`: that is no name.
    pub(crate) fn named(&self, op: &Op, given: GivenName, now: Clock) -> Option<Request> {
        Some(name(&self.origin, Some(given), op, now).ok()?.request)
    }
}

#[cfg(test)]
mod tests {
    use quorate_state::Scope;

    use super::*;

    #[test]
    fn a_write_without_a_name_gets_the_next_one_of_this_node() {
        let own = Origin::new(5);
        let first = name(&own, None, &Op::Tick, Clock(9)).unwrap();
        let second = name(&own, None, &Op::Tick, Clock(9)).unwrap();
        let (since, share) = (Clock(9), Share(0));
        let expected = Request { origin: 5, number: 2, done_below: 1, since, digest: 0, share };
        assert_eq!(second.request, expected);
        drop(first);
        assert_eq!(name(&own, None, &Op::Tick, Clock(9)).unwrap().request.done_below, 2);
    }

    #[test]
    fn the_same_write_has_the_same_name_and_digest_on_every_node() {
        let given = |age_ms| {
            Some(GivenName { origin: 7, number: 3, done_below: 2, age_ms, share: Share(9) })
        };
        let named = |node, age_ms, op: &Op, now| {
            name(&Origin::new(node), given(age_ms), op, Clock(now)).unwrap().request
        };
        let grace = Op::Grace { grace_ms: 1 };
        let (first, again) = (named(1, 0, &grace, 90_000), named(2, 500, &grace, 90_400));
        assert_eq!((first.origin, first.number, first.digest), (again.origin, 3, again.digest));
        assert_eq!((first.since, first.share), (Clock(90_000), Share(9)));
        assert!(again.since < first.since, "a repetition reaches back to its first attempt");
        assert_ne!(first.digest, named(1, 0, &Op::Tick, 90_000).digest);
        assert_eq!(named(1, u64::MAX, &Op::Tick, 90_000).since, Clock(0));
    }

    #[test]
    fn a_write_has_the_same_digest_when_its_caller_may_do_more() {
        let with = |within| {
            let (lease, ttl, incarnation, instances) = (None, None, None, Vec::new());
            digest(&Op::Register(Register { lease, ttl, incarnation, instances, within }))
        };
        let scope = |prefix: &str| Scope { namespace: None, prefix: prefix.into() };
        assert_eq!(with(Some(vec![scope("a")])), with(Some(vec![scope("a"), scope("b")])));
        assert_eq!(with(Some(vec![scope("a")])), with(None));
    }

    #[test]
    fn names_that_are_none_are_refused_with_the_field() {
        for (origin, done_below, expected) in [
            (0, 0, "request_id.origin = 0: a random number, not 0"),
            (1, 4, "request_id.done_below = 4: at most request_id.number, 3"),
        ] {
            let share = Share(9);
            let given = Some(GivenName { origin, number: 3, done_below, age_ms: 0, share });
            let refused = name(&Origin::new(5), given, &Op::Tick, Clock(0)).unwrap_err();
            assert_eq!(refused.to_string(), expected);
        }
    }
}
