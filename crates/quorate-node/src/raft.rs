//! Everything that touches the Raft library: its types for us, its state machine, its network.

pub(crate) mod network;
pub(crate) mod state_machine;
