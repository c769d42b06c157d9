//! What is wanted: bounds that results are compared with, and nothing else. No figure is made from
//! them.

use crate::ceiling::APPEND;

/// A bound on one figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bound {
    /// This many times better than the peer in the same run.
    Times(f64),
    /// Our own figure, at least.
    AtLeast(f64),
    /// Our own figure, at most.
    AtMost(f64),
}

/// Workload, variant, metric, bound. A variant or metric of `*` stands for all.
const TARGETS: &[(&str, &str, &str, Bound)] = &[
    ("W1", "1 in flight", "registrations", Bound::Times(3.0)),
    ("W1", "1 in flight", "p50", Bound::AtMost(0.6)),
    ("W1", "64 in flight", "registrations", Bound::Times(6.0)),
    ("W1", "512 in flight", "registrations", Bound::Times(8.0)),
    ("W1b", "1 in flight", "registrations", Bound::Times(1.5)),
    ("W1b", "64 in flight", "registrations", Bound::Times(2.0)),
    ("W1b", "512 in flight", "registrations", Bound::Times(2.0)),
    ("W1c", "*", "instances", Bound::AtLeast(100_000.0)),
    ("W2", "window 1", "renewals", Bound::Times(5.0)),
    ("W2", "window 32", "renewals", Bound::Times(15.0)),
    ("W2", "*", "server cpu each", Bound::Times(10.0)),
    ("W2b", "10k leases, 100 clients", "servers' cpu", Bound::AtMost(5.0)),
    ("W3", "linearizable, 1 caller", "fetches", Bound::Times(2.0)),
    ("W3", "linearizable, 64 callers", "fetches", Bound::Times(4.0)),
    ("W3", "local, 1 caller", "fetches", Bound::Times(2.0)),
    ("W3", "local, 64 callers", "fetches", Bound::Times(4.0)),
    ("W3", "64 callers, 200 writes/s", "fetches", Bound::Times(4.0)),
    ("W4", "200/s to 1", "p99", Bound::Times(2.0)),
    ("W4", "20/s to 1,000, own conns", "p99", Bound::Times(2.0)),
    ("W4", "200/s to 1,000, own conns", "p99", Bound::Times(2.0)),
    ("W4", "*", "events", Bound::Times(2.0)),
    // 200 are made a second; what is missing is the way of the last one.
    ("W4", "200/s to 1,000, own conns", "changes carried", Bound::AtLeast(198.0)),
    ("W5", "kill -9", "first write", Bound::AtMost(0.4)),
    ("W5", "kill -9", "first renewal", Bound::AtMost(0.4)),
    ("W5", "SIGSTOP", "first write", Bound::AtMost(0.8)),
    ("W5", "SIGSTOP", "first renewal", Bound::AtMost(0.8)),
    ("W5", "*", "false expiries", Bound::AtMost(0.0)),
    ("W6", "empty", "memory", Bound::AtMost(20.0)),
    ("W6", "*", "memory, leader", Bound::Times(2.0)),
    ("W6", "*", "memory, follower", Bound::Times(2.0)),
    ("W6", "*", "disk, growth", Bound::Times(2.0)),
    ("W6", "*", "all read after kill of all", Bound::Times(2.0)),
    ("W6", "*", "slowest write, snapshot", Bound::AtMost(20.0)),
    ("W2b", "1M leases, 1k clients", "all cpu", Bound::AtMost(200.0)),
    ("W2b", "*", "false expiries", Bound::AtMost(0.0)),
    ("W7", "*", "last removal", Bound::AtMost(1.0)),
    ("W7", "*", "writer p99, growth", Bound::AtMost(3.0)),
    ("W8", "*", "growth each 10x", Bound::AtMost(1.5)),
    ("HTTP", "*", "registrations", Bound::Times(3.0)),
    ("HTTP", "*", "renewals", Bound::Times(3.0)),
    ("HTTP", "*", "fetches", Bound::Times(3.0)),
    ("HTTP", "*", "events", Bound::Times(3.0)),
];

/// The same for TLS beside plain text: a renewal costs less than 1.3 times as much.
const TLS_TARGETS: &[(&str, &str, &str, Bound)] =
    &[("W2", "*", "server cpu each", Bound::Times(0.77))];

/// The bound on a figure, if there is one; `is_plain`: the peer is Quorate without TLS.
pub(crate) fn bound(is_plain: bool, workload: &str, variant: &str, metric: &str) -> Option<Bound> {
    let fits = |wanted: &str, found: &str| wanted == "*" || wanted == found;
    let found = if is_plain { TLS_TARGETS } else { TARGETS }
        .iter()
        .find(|(of, name, what, _)| *of == workload && fits(name, variant) && fits(what, metric));
    found.map(|(_, _, _, bound)| *bound)
}

/// Workload, variant, metric, and the limit of the machine that nothing of this kind can pass: one
/// call or message each.
const LIMITS: &[(&str, &str, &str, &str)] = &[
    ("W1", "1 in flight", "registrations", APPEND),
    ("W1", "64 in flight", "registrations", "unary, 64 in flight"),
    ("W1", "512 in flight", "registrations", "unary, 512 in flight"),
    ("W1b", "1 in flight", "registrations", APPEND),
    ("W1b", "64 in flight", "registrations", "unary, 64 in flight"),
    ("W1b", "512 in flight", "registrations", "unary, 512 in flight"),
    ("W2", "window 1", "renewals", "stream, window 1"),
    ("W2", "window 32", "renewals", "stream, window 32"),
    ("W2", "window 1, leader", "renewals", "stream, window 1"),
    ("W2", "window 32, leader", "renewals", "stream, window 32"),
    ("W3", "linearizable, 1 caller", "fetches", "unary, 1 in flight"),
    ("W3", "linearizable, 64 callers", "fetches", "unary, 64 in flight"),
    ("W3", "64 callers, 200 writes/s", "fetches", "unary, 64 in flight"),
    ("W3", "local, 1 caller", "fetches", "unary, 1 in flight"),
    ("W3", "local, 64 callers", "fetches", "unary, 64 in flight"),
];

/// The limit that a figure is to be seen against, if there is one.
pub(crate) fn limit(workload: &str, variant: &str, metric: &str) -> Option<&'static str> {
    let found = LIMITS
        .iter()
        .find(|(of, name, what, _)| *of == workload && *name == variant && *what == metric);
    found.map(|(_, _, _, limit)| *limit)
}
