//! How the time that a stop has (`shutdown_grace_ms`) is shared out.

use std::time::Duration;

/// What is left of a node's tasks when Raft has stopped takes no longer than this.
const LAST_TASKS: Duration = Duration::from_secs(1);

/// How long each step of a stop may take. Some time is left: Raft has to stop, too, and the log to
/// be closed.
#[derive(Debug)]
pub(super) struct Grace {
    /// Until it is known to whom the lead goes.
    pub(super) successor: Duration,
    /// Until that one leads.
    pub(super) transfer: Duration,
    /// Until the calls that are under way are done.
    pub(super) calls: Duration,
    /// From when Raft has stopped until what is left of the tasks is cut off.
    pub(super) last_tasks: Duration,
}

impl Grace {
    /// `silence_max`: so long a node counts as alive. Whom a leader asks leads within twice that.
    pub(super) fn of(grace: Duration, silence_max: Duration) -> Self {
        Self {
            successor: grace / 8,
            // Whom it asked may be stopping, too, and never win.
            transfer: (2 * silence_max).min(grace / 4),
            calls: grace / 2,
            last_tasks: LAST_TASKS.min(grace / 16),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steps_of_a_stop_leave_a_part_of_its_grace_however_short_it_is() {
        for ms in [100, 1_000, 7_000, 10_000, 600_000] {
            let grace = Duration::from_millis(ms);
            let Grace { successor, transfer, calls, last_tasks } = Grace::of(grace, grace);
            let all = successor + transfer + calls + last_tasks;
            assert!(all <= grace * 15 / 16, "{all:?} of {grace:?}");
        }
    }

    #[test]
    fn no_step_waits_longer_than_it_has_to() {
        let Grace { transfer, last_tasks, .. } =
            Grace::of(Duration::from_secs(60), Duration::from_millis(300));
        assert_eq!([transfer, last_tasks], [Duration::from_millis(600), LAST_TASKS]);
    }
}
