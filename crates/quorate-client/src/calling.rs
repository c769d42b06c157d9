//! Calling the instances of a service: which one, with retries, over which channel.

mod balance;
mod caller;
#[cfg(feature = "channel")]
mod channel;

pub use balance::{Balancer, Picked, Policy};
pub use caller::{CallError, Caller, FailMode, Fault};
#[cfg(feature = "channel")]
pub use channel::ChannelBuilder;
