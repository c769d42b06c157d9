//! Opening a log: everything that was written is checked, and what is damaged is refused.

pub(crate) mod dirs;
pub(crate) mod recover;
mod redundant;
mod replay;
