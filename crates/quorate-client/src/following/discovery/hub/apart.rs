//! Of a hub's services, those that are not simply followed with the others: what a node refused.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::{Instant, sleep_until};

use super::{REFUSED_PAUSE, Shared};
use crate::following::status::WatchStatus;
use crate::following::stream::Ended;
use crate::nodes::retry::jittered;

/// The services that are not simply followed with the others.
#[derive(Debug, Default)]
pub(super) struct Apart {
    /// One of several was refused, or each alone before: to be tried alone.
    pub(super) suspects: BTreeSet<String>,
    /// Refused, and not to be asked for again before this.
    pub(super) refused: BTreeMap<String, Instant>,
    /// How often several were refused together, and then none of them alone, since a stream last
    /// brought something.
    pub(super) in_vain: u32,
}

impl Apart {
    /// Forgets services that no view follows any more; what was refused long enough ago is tried
    /// again.
    pub(super) fn review(&mut self, names: &[String]) {
        self.suspects.retain(|name| names.contains(name));
        self.refused.retain(|name, _| names.contains(name));
        let now = Instant::now();
        let suspects = &mut self.suspects;
        self.refused.retain(|name, again| {
            let due = *again <= now;
            if due {
                suspects.insert(name.clone());
            }
            !due
        });
    }

    /// These were refused: together, so any of them may be the reason, or alone.
    pub(super) fn refuse(&mut self, shared: &Shared, names: &[String]) {
        let [name] = names else {
            self.in_vain += 1;
            return self.suspects.extend(names.iter().cloned());
        };
        self.suspects.remove(name);
        // The reason is found.
        self.in_vain = 0;
        // With those that are tried again first: each trial is another stream.
        let due = self.refused.values().min().copied();
        let due = due.unwrap_or_else(|| Instant::now() + jittered(REFUSED_PAUSE));
        self.refused.insert(name.clone(), due);
        let status = shared.status.borrow().clone();
        if let WatchStatus::Refused { error } = status {
            shared.topics().refuse(name, error);
            // Who waits for a first word looks again.
            shared.status.send_modify(|_| {});
        }
    }

    /// What came of a subscription to these.
    pub(super) fn note<T>(
        &mut self,
        shared: &Shared,
        names: &[String],
        result: Result<T, Ended>,
    ) -> Result<T, Ended> {
        if matches!(result, Err(Ended::Refused)) {
            self.refuse(shared, names);
        }
        result
    }

    /// The nodes that refused may see it otherwise now.
    pub(super) fn try_all_again(&mut self) {
        let refused = std::mem::take(&mut self.refused);
        self.suspects.extend(refused.into_keys());
    }

    /// When to try again what was refused.
    pub(super) async fn due(&self) {
        match self.refused.values().min() {
            Some(at) => sleep_until(*at).await,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::timeout;

    use super::*;
    use crate::core::Core;
    use crate::following::discovery::hub::Hub;

    /// So that a right that is taken while the others are only just subscribed to keeps nobody
    /// waiting.
    #[tokio::test]
    async fn services_of_which_one_is_refused_alone_are_not_refused_in_vain() {
        let shared = Hub::start(Arc::new(Core::for_tests()), String::new()).shared.clone();
        let mut apart = Apart::default();
        let names = ["a", "b", "c"].map(str::to_owned);
        apart.refuse(&shared, &names);
        apart.refuse(&shared, &names[1..2]);
        apart.refuse(&shared, &[names[0].clone(), names[2].clone()]);
        assert_eq!(apart.in_vain, 1, "what is refused is to be found anew");
        apart.refuse(&shared, &[names[0].clone(), names[2].clone()]);
        assert_eq!(apart.in_vain, 2, "each alone was taken");
    }

    #[tokio::test(start_paused = true)]
    async fn services_that_are_refused_are_tried_again_together() {
        let shared = Hub::start(Arc::new(Core::for_tests()), String::new()).shared.clone();
        let mut apart = Apart::default();
        for name in ["a", "b", "c"] {
            apart.refuse(&shared, &[name.to_owned()]);
            tokio::time::advance(REFUSED_PAUSE / 4).await;
        }
        let names = ["a", "b", "c"].map(str::to_owned);
        timeout(REFUSED_PAUSE, apart.due()).await.unwrap();
        apart.review(&names);
        assert_eq!((apart.suspects.len(), apart.refused.len()), (3, 0));
    }
}
