//! What is answered: handlers of calls. Those of clients reach Raft and the registry by
//! [`crate::node`]; those of other nodes hand messages to the Raft library.

pub(crate) mod grpc;
mod incarnations;
