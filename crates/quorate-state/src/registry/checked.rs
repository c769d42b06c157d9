//! The instances that have health checks, for the prober.

use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use crate::registry::Registry;
use crate::spec::Instance;
use crate::types::InstanceKey;

/// The instances that have health checks, as they were at one time. Shares structure with the
/// registry it is of: cheap to make and to keep.
#[derive(Debug, Clone, Default)]
pub struct CheckedInstances(OrdMap<InstanceKey, Arc<Instance>>);

impl CheckedInstances {
    /// The instances that came or changed since `before`, and the keys of those that went. Costs
    /// what changed, not what there is.
    pub fn since<'a>(
        &'a self,
        before: &'a Self,
    ) -> impl Iterator<Item = (&'a InstanceKey, Option<&'a Arc<Instance>>)> {
        before.0.diff(&self.0).map(|difference| match difference {
            DiffItem::Add(key, after) | DiffItem::Update { new: (key, after), .. } => {
                (key, Some(after))
            }
            DiffItem::Remove(key, _) => (key, None),
        })
    }
}

impl Registry {
    /// The instances that have health checks.
    pub fn checked(&self) -> CheckedInstances {
        CheckedInstances(self.checked.clone())
    }
}
