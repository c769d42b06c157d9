//! Why a node takes no writes: of which load balancers hear before they send some, and operators,
//! who are to do something about it.

use std::time::Duration;

use crate::error::NodeError;
use crate::meters::REFUSED_FOR;
use crate::node::Node;

/// A leader whose registry time stands still for longer commits nothing: an election and its grace
/// take less.
const HELD_MAX: Duration = Duration::from_secs(5);

/// A registry whose leader has refused a registration within this, for its size, is full.
const FULL_FOR: Duration = Duration::from_secs(60);

/// Why writes are refused, the worst first. Nodes send it to each other: a number stays what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Refusal {
    /// None is refused, or for a reason that only a later release has.
    Unknown = 0,
    DiskFloor = 1,
    Audit = 2,
    Stalled = 3,
    DiskFull = 4,
    StateFull = 5,
}

impl Refusal {
    /// Its label among the metrics.
    pub(crate) fn label(self) -> Option<&'static str> {
        REFUSED_FOR.get((self as usize).checked_sub(1)?).copied()
    }
}

/// Why a node takes no write, or not all of them.
#[derive(Debug)]
pub(crate) struct Obstacle {
    pub(crate) kind: Refusal,
    pub(crate) whole: String,
    /// Without numbers, names of files and what the system says of them.
    pub(crate) to_strangers: &'static str,
}

impl Node {
    /// Why no write can be taken here.
    pub(crate) fn write_obstacle(&self) -> Option<Obstacle> {
        self.of_disk().or_else(|| self.of_time()).or_else(|| self.of_audit())
    }

    /// Why writes are refused, the worst first: those that come to this node, and, where it leads,
    /// those of all. A follower without room is in nobody's way.
    pub(crate) fn refusals(&self) -> Vec<Obstacle> {
        let mut all = Vec::from_iter(self.of_audit());
        if self.leads() {
            all.extend([self.of_disk(), self.of_time(), self.of_size()].into_iter().flatten());
        }
        all.sort_by_key(|obstacle| obstacle.kind);
        all
    }

    fn of_disk(&self) -> Option<Obstacle> {
        let full = self.disk().check().err()?;
        let kind = match full {
            NodeError::DiskFull { is_at_floor: true, .. } => Refusal::DiskFloor,
            _ => Refusal::DiskFull,
        };
        Some(Obstacle { kind, to_strangers: "its disk is full", whole: full.to_string() })
    }

    fn of_time(&self) -> Option<Obstacle> {
        let (held, to_strangers) = (self.clock_held(), "it commits nothing");
        let whole = format!("it leads, and has committed nothing for {} s", held.as_secs());
        (held > HELD_MAX).then_some(Obstacle { kind: Refusal::Stalled, to_strangers, whole })
    }

    fn of_audit(&self) -> Option<Obstacle> {
        let unwritten = self.audit().check().err()?;
        let (to_strangers, whole) = ("its audit log cannot be written", unwritten.to_string());
        Some(Obstacle { kind: Refusal::Audit, to_strangers, whole })
    }

    /// What takes no room is taken, and so may be what takes little.
    fn of_size(&self) -> Option<Obstacle> {
        let limit = self.tunables().state_bytes_max;
        let bytes = self.applied().lock().registry.bytes();
        let refused = self.seen().state_full().is_some_and(|ago| ago < FULL_FOR);
        if !refused && bytes < limit {
            return None;
        }
        let whole = NodeError::StateFull { node: self.id(), bytes, limit }.to_string();
        Some(Obstacle { kind: Refusal::StateFull, to_strangers: "its registry is full", whole })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By their place among the labels.
    #[test]
    fn each_reason_has_its_label_and_the_worst_comes_first() {
        for (kind, label) in [
            (Refusal::Unknown, None),
            (Refusal::DiskFloor, Some("disk_floor")),
            (Refusal::Audit, Some("audit")),
            (Refusal::Stalled, Some("stalled")),
            (Refusal::DiskFull, Some("disk_full")),
            (Refusal::StateFull, Some("state_full")),
        ] {
            assert_eq!(kind.label(), label, "{kind:?}");
        }
        assert!(Refusal::DiskFloor < Refusal::Audit && Refusal::Audit < Refusal::DiskFull);
    }
}
