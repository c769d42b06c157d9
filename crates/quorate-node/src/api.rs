//! What is answered: handlers of calls. They reach Raft and the registry through [`crate::node`]
//! and [`crate::applied`] only.

pub(crate) mod grpc;
mod incarnations;
