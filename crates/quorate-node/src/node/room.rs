//! Whether there is room for a write: on the disk, in the log, in the registry.

use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use quorate_state::{Op, Reply, Request};

use crate::error::NodeError;
use crate::node::Node;

/// Entries that may wait to be committed and applied: some seconds of a busy cluster.
const BACKLOG_MAX: usize = 50_000;

/// What was deregistered a short while ago may come back where the registry is beyond its limit by
/// up to this part: else no process could be started again once another has taken its place.
const RETURN_PART: usize = 20;

/// Where the disk is at its floor, entries that no quorum has room for may wait for long. Whoever
/// waits for them is told after this.
const SETTLED_WITHIN: Duration = Duration::from_secs(1);

impl Node {
    /// What goes into the log for a write, and whether that takes room while it is under way:
    /// itself; where there is no room for it and it was done before, what is answered as that was.
    ///
    /// # Errors
    /// There is no room for it, and nothing that was proposed before has done it; or it was refused
    /// before.
    pub(super) async fn find_room(
        &self,
        op: Op,
        request: Option<&Request>,
    ) -> Result<(Op, bool), NodeError> {
        let mut has_waited = false;
        loop {
            let (full, request) = match (self.take_room(&op, request), request) {
                (Ok(takes_room), _) => return Ok((op, takes_room)),
                (Err(full), Some(request)) if full.is_full() => (full, request),
                (Err(error), _) => return Err(error),
            };
            let before = self.applied.lock().registry.repeated(request);
            match before {
                Some(Reply::Rejected(rejection)) => return Err(NodeError::Rejected(rejection)),
                Some(_) => {
                    self.disk.check_floor()?;
                    self.check_backlog()?;
                    return Ok((Op::Tick, false));
                }
                // Whoever is told that it is full is told that it was not done.
                None if has_waited => return Err(full),
                None => self.queues.room.confirm().await?,
            };
            has_waited = true;
        }
    }

    /// Whether it takes room in the registry while it is under way.
    ///
    /// # Errors
    /// There is no room for it.
    fn take_room(&self, op: &Op, request: Option<&Request>) -> Result<bool, NodeError> {
        self.check_disk(op)?;
        self.check_backlog()?;
        self.take_room_in_registry(op, request)
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
    fn take_room_in_registry(&self, op: &Op, request: Option<&Request>) -> Result<bool, NodeError> {
        if !matches!(op, Op::Register(_) | Op::Update(_)) {
            return Ok(false);
        }
        let (limit, term) = (self.tunables.state_bytes_max, self.term());
        let mut state = self.applied.lock();
        let growth = state.registry.growth(op);
        if growth == 0 {
            return Ok(false);
        }
        let bytes = state.registry.bytes();
        let under_way = state.pending.bytes(term, request);
        let beyond = if state.registry.comes_back(op) { limit / RETURN_PART } else { 0 };
        if bytes + under_way + growth > limit + beyond && !state.registry.refuses(op) {
            return Err(NodeError::StateFull { node: self.id, bytes, limit });
        }
        Ok(request.is_some_and(|request| state.pending.add(term, request, growth)))
    }

    /// One round for all that find no room: waits until this node has applied all that is in its
    /// log now, the end of which it returns.
    ///
    /// # Errors
    /// It does not lead any more, or stops; [`NodeError::Unsettled`] at the disk's floor.
    pub(super) async fn apply_all(&self) -> Result<u64, NodeError> {
        let given_up = self.applied.lock().pending.given_up();
        let mut positions = self.applied.positions();
        let applied = async {
            // Where another one leads by now, it may have room, and the write.
            self.read_index_here().await?;
            // Behind all writes that were handed to Raft before.
            let last = self.raft.with_raft_state(|state| state.log_ids.last().map(|id| id.index()));
            let last = last.await.map_err(|fatal| self.fatal(&fatal))?.unwrap_or(0);
            let waited = positions.wait_for(|position| position.index >= last).await;
            waited.map(|_| last).map_err(|_| NodeError::Stopping { node: self.id })
        };
        let last = tokio::select! {
            biased; // what is applied is applied
            last = applied => last?,
            () = self.leader_is_other_than(Some(self.id)) => {
                return Err(NodeError::NotLeader { node: self.id });
            }
            () = self.stop.cancelled() => return Err(NodeError::Stopping { node: self.id }),
            full = self.stays_at_floor() => return Err(NodeError::Unsettled { full: full.into() }),
        };
        self.applied.lock().pending.forget(given_up);
        Ok(last)
    }

    async fn stays_at_floor(&self) -> NodeError {
        loop {
            tokio::time::sleep(SETTLED_WITHIN).await;
            if let Err(full) = self.disk.check_floor() {
                return full;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use futures_util::FutureExt as _;
    use quorate_state::{
        Clock, InstanceId, InstanceKey, InstanceSpec, Namespace, Register, ServiceKey, ServiceName,
        Share, SpecParts,
    };

    use super::*;
    use crate::server::Bound;

    #[tokio::test]
    async fn a_write_whose_caller_is_gone_does_not_count_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let bound = Bound::waiting(dir.path()).await;
        let node = bound.node();
        let request = Request {
            origin: 7,
            number: 1,
            done_below: 0,
            since: Clock(0),
            digest: 0,
            share: Share(1),
        };
        let endpoints = BTreeMap::from([("http".to_owned(), "http://h:1".to_owned())]);
        let spec = InstanceSpec::new("spec", SpecParts { endpoints, ..SpecParts::default() });
        let service = ServiceName::new("service", "web").unwrap();
        let service = ServiceKey { namespace: Namespace::default(), name: service };
        let key = InstanceKey { service, id: InstanceId::new("id", "a").unwrap() };
        let instances = vec![(key, spec.unwrap())];
        let (lease, ttl, incarnation, within) = (None, None, None, None);
        let write = Register { lease, ttl, incarnation, instances, within };
        let counted = || node.applied.lock().pending.bytes(node.term(), None);
        let forget = || {
            let mut state = node.applied.lock();
            let given_up = state.pending.given_up();
            state.pending.forget(given_up);
        };
        let mut waits = Box::pin(node.propose_here(write.into(), Some(request)));
        assert!((&mut waits).now_or_never().is_none(), "it is handed to Raft");
        forget();
        assert!(counted() > 0, "it may be on its way");
        drop(waits);
        forget();
        assert_eq!(counted(), 0);
    }
}
