//! Everything that touches the Raft library: its types for us, its state machine, its network.

pub(crate) mod committed;
pub(crate) mod network;
pub(crate) mod recall;
pub(crate) mod state_machine;

pub(crate) type Raft = openraft::Raft<crate::types::TypeConfig, state_machine::StateMachine>;
