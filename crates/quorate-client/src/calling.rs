//! Calling the instances of a service: which one, with retries, over which channel.

mod balance;
mod caller;
mod channel;

pub use balance::{Balancer, Picked, Policy};
pub use caller::{CallError, Caller, FailMode, Fault};
pub use channel::ChannelBuilder;
