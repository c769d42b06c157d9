//! What Quorate answers by DNS: [`answer`] is a pure function of a [`Question`], a registry, the
//! [`Settings`] and a seed, and [`Query`] reads and writes the messages around it.
//!
//! No clock, no sockets, no randomness: the node brings those (`quorate-node`, `api/dns.rs`).
//!
//! Begin with `answer.rs` (what each name and type gets), then `names.rs` (which name is what),
//! then `message.rs` (what fits into a message, and what is left out first).

mod answer;
mod found;
mod message;
mod names;
mod settings;

#[cfg(test)]
mod tests;

pub use answer::{Answer, Question, answer};
pub use hickory_proto::op::ResponseCode;
pub use message::{Query, Refused, Room, UDP_MAX};
pub use settings::{AllFailing, BadDomain, Settings};
