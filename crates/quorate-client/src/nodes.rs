//! One call over many nodes: which node is asked next, of which cluster it is, what its answer
//! means for the next attempt.
//!
//! | file | duty |
//! |---|---|
//! | `call` | one call, from node to node until its deadline |
//! | `dial` | how a node is reached: its address, the connection |
//! | `endpoints` | the nodes and their connections; of which cluster they are |
//! | `files` | what files say, read again when they change |
//! | `members` | learns which nodes there are |
//! | `rebalance` | streams move to nodes that were added |
//! | `retry` | what a code means: another node, a pause, the end |
//! | `stub` | the generated stubs, with our limits |
//! | `tls` | encrypted connections |
//! | `token` | the token that goes with every call |
//! | `write` | the name that a write has at every node |

pub(crate) mod call;
pub(crate) mod dial;
pub(crate) mod endpoints;
pub(crate) mod files;
pub(crate) mod members;
pub(crate) mod rebalance;
pub(crate) mod retry;
pub(crate) mod stub;
#[cfg(feature = "tls")]
pub(crate) mod tls;
pub(crate) mod token;
pub(crate) mod write;
