//! What is known after a run.

use serde::Serialize;

use crate::ceiling::Limit;
use crate::machine::Machine;
use crate::rows::Row;

/// All that is known after a run; the JSON file.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    pub(crate) machine: Machine,
    pub(crate) repetitions: u32,
    pub(crate) scale: f64,
    pub(crate) connections_per_node: usize,
    /// Nodes and clients spoke TLS.
    pub(crate) tls: bool,
    /// What the machine can do at most.
    pub(crate) limits: Vec<Limit>,
    pub(crate) rows: Vec<Row>,
    /// What was not measured, and why.
    pub(crate) notes: Vec<String>,
}
