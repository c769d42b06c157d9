//! What is answered: handlers of calls. Handlers of clients' calls reach Raft and the registry by
//! [`crate::node`]; handlers of other nodes' calls hand messages to the Raft library.

pub(crate) mod dns;
pub(crate) mod grpc;
pub(crate) mod http;
mod incarnations;
