//! Whether there is room for a write: on the disk, in the log, in the registry.

use openraft::async_runtime::watch::WatchReceiver as _;
use quorate_state::{Op, Request};

use crate::error::NodeError;
use crate::node::Node;

/// Entries that may wait to be committed and applied: some seconds of a busy cluster.
const BACKLOG_MAX: usize = 50_000;

impl Node {
    /// What was done already has its place: its caller asks again what came of it.
    ///
    /// # Errors
    /// There is no room for it on the disk, in the registry, or in the log.
    pub(super) fn check_room(&self, op: &Op, request: Option<&Request>) -> Result<(), NodeError> {
        let room = self.check_disk(op).and_then(|()| self.take_room_in_registry(op, request));
        if let Err(full) = room {
            let is_answered = |request| self.applied.lock().registry.is_answered(request);
            if !request.is_some_and(is_answered) {
                return Err(full);
            }
            self.disk.check_floor()?;
        }
        self.check_backlog()
    }

    fn check_disk(&self, op: &Op) -> Result<(), NodeError> {
        match op {
            // Or the registry would be wrong, or could not be emptied, or callers not be kept from
            // an instance that fails.
            Op::Tick
            | Op::Grace { .. }
            | Op::Renew(_)
            | Op::Deregister(_)
            | Op::Override { .. }
            | Op::SetHealth(_)
            | Op::Found { .. } => self.disk.check_floor(),
            _ => self.disk.check(),
        }
    }

    /// Refuses to grow a log that does not commit: what is in it would all come at once, and late.
    fn check_backlog(&self) -> Result<(), NodeError> {
        let last = self.metrics.borrow_watched().last_log_index.unwrap_or(0);
        let waiting = last.saturating_sub(self.applied.position().index) as usize;
        if waiting <= BACKLOG_MAX {
            return Ok(());
        }
        Err(NodeError::Overloaded { waiting })
    }

    /// Refuses what makes a registry larger that has its size, with what is under way. Not what the
    /// state machine would refuse: it has better reasons, which end what its caller does.
    fn take_room_in_registry(&self, op: &Op, request: Option<&Request>) -> Result<(), NodeError> {
        if !matches!(op, Op::Register(_) | Op::Update(_)) {
            return Ok(());
        }
        let (limit, term) = (self.tunables.state_bytes_max, self.term());
        let mut state = self.applied.lock();
        let growth = state.registry.growth(op);
        if growth == 0 {
            return Ok(());
        }
        let bytes = state.registry.bytes() + state.pending.bytes(term);
        if bytes + growth > limit && !state.registry.refuses(op) {
            return Err(NodeError::StateFull { node: self.id, bytes, limit });
        }
        if let Some(request) = request {
            state.pending.add(term, request, growth);
        }
        Ok(())
    }
}
