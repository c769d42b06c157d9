//! Those who wait for a change of one service: each is woken by its own service, and by no other.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;

use quorate_state::{Event, ServiceKey};

use crate::applied::Applied;
use crate::applied::wake::Wake;

/// Those that wait. Lives under the lock of `applied.rs`.
#[derive(Debug, Default)]
pub(super) struct Readers {
    by_service: HashMap<ServiceKey, Vec<(u64, Arc<Wake>)>>,
    /// They were concerned, and not woken yet.
    wakes: Vec<Arc<Wake>>,
    last_id: u64,
}

impl Readers {
    fn add(&mut self, service: ServiceKey) -> (u64, Arc<Wake>) {
        self.last_id += 1;
        let (id, wake) = (self.last_id, Arc::new(Wake::default()));
        self.by_service.entry(service).or_default().push((id, wake.clone()));
        (id, wake)
    }

    fn remove(&mut self, service: &ServiceKey, id: u64) {
        let Some(readers) = self.by_service.get_mut(service) else { return };
        readers.retain(|(other, _)| *other != id);
        if readers.is_empty() {
            self.by_service.remove(service);
        }
    }

    /// What a command changed. Those that it concerns are still to be woken.
    pub(super) fn changed(&mut self, events: &[Arc<Event>]) {
        if self.by_service.is_empty() {
            return;
        }
        let mut last = None;
        for event in events {
            let service = &event.key().service;
            // Many changes of one command are mostly of one service, one after the other.
            if last.replace(service) == Some(service) {
                continue;
            }
            let readers = self.by_service.get(service).into_iter().flatten();
            self.wakes.extend(readers.map(|(_, wake)| wake.clone()));
        }
    }

    pub(super) fn take_wakes(&mut self) -> Vec<Arc<Wake>> {
        std::mem::take(&mut self.wakes)
    }

    /// The state was replaced: each of them looks.
    pub(super) fn all_changed(&self) {
        self.by_service.values().flatten().for_each(|(_, wake)| wake.call());
    }
}

/// One that waits for a service, until it is dropped.
pub(crate) struct Reader<'a> {
    applied: &'a Applied,
    service: ServiceKey,
    id: u64,
    wake: Arc<Wake>,
}

impl<'a> Reader<'a> {
    /// From now on, it is woken.
    pub(crate) fn begin(applied: &'a Applied, service: ServiceKey) -> Self {
        let (id, wake) = applied.lock().readers.add(service.clone());
        Self { applied, service, id, wake }
    }

    /// Waits until the service has changed since this last returned.
    pub(crate) async fn changed(&self) {
        poll_fn(|cx| self.wake.poll_called(cx)).await;
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        self.applied.lock().readers.remove(&self.service, self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use prometheus_client::metrics::histogram::Histogram;
    use quorate_state::ServiceName;

    use super::*;
    use crate::applied::hub::tests::{registry, weigh};

    fn is_woken(reader: &Reader<'_>) -> bool {
        let changed = pin!(reader.changed());
        changed.poll(&mut Context::from_waker(Waker::noop())) == Poll::Ready(())
    }

    /// Thousands may wait, and each looks at the state under the lock that is needed to apply.
    #[test]
    fn a_reader_is_woken_by_its_own_service_alone() {
        let applied = Applied::new(10, 10_000, Histogram::new([]));
        let (mut registry, key) = registry(1);
        let other = ServiceName::new("service", "other").unwrap();
        let other = ServiceKey { name: other, ..key.service.clone() };
        let readers = [&key.service, &key.service, &other];
        let [one, two, third] = readers.map(|service| Reader::begin(&applied, (*service).clone()));
        for reader in [&one, &two, &third] {
            assert!(!is_woken(reader));
        }
        applied.lock().readers.changed(&weigh(&mut registry, &key, 7));
        assert!(!is_woken(&one), "not while the lock is held");
        applied.wake_watchers();
        assert_eq!([&one, &two, &third].map(is_woken), [true, true, false]);
        assert!(!is_woken(&one), "once");
        drop(one);
        applied.lock().readers.all_changed();
        assert_eq!([&two, &third].map(is_woken), [true, true]);
        drop((two, third));
        assert!(applied.lock().readers.by_service.is_empty());
    }
}
