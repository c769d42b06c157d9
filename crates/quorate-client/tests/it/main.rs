//! The client against fake nodes that misbehave on demand, over real sockets. One file per concern;
//! each test names the row of behaviours.md that it covers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stdout, reason = "measured distributions")]

mod ages;
mod another_cluster;
mod calling;
mod calls;
mod certificates;
mod churn;
mod counters;
mod discovering;
mod encrypted;
mod fake;
mod late_runs;
mod members;
mod rebalancing;
mod refused;
mod registering;
mod renewing;
mod serving;
mod slow;
mod stopped;
mod streams;
mod tokens;
mod told;
mod watching;
