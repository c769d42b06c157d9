//! Services as they were last sent, encoded. Knows keys, revisions and bytes.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use quorate_state::{Revision, ServiceKey};

/// Encoded services that are kept where the state is small, bytes ...
const KEPT_MIN: usize = 16 * 1024 * 1024;
/// ... else this part of what the state takes: room for about all services where an instance has
/// 256 bytes of metadata, for half of them where it has many KiB ...
const KEPT_SHARE: usize = 2;
/// ... but no more than this, which is on top of the state for good.
const KEPT_MAX: usize = 256 * 1024 * 1024;
/// Where there is no room, one in so many new ones takes the place of others.
const ADMITTED_SHARE: u64 = 4;
/// What an encoded service takes beside its bytes and its names: places in both tables, which may
/// be half empty, and the heads of its buffers.
const ENTRY_BYTES: usize = 256;
/// Where the state has become smaller, so many make room at a time: each fetch waits for the lock.
const DROPPED_AT_ONCE: usize = 64;

/// For a new one, as large as it may be.
const DROPPED_FOR_ONE: usize = 16 * DROPPED_AT_ONCE;

/// Services as they were last sent. Many callers fetch the same few services, and each time all of
/// their instances would be converted and encoded; a service of 100 instances is answered from here
/// in a third of the processor time.
#[derive(Debug, Default)]
pub(crate) struct EncodedServices {
    kept: Mutex<Kept>,
}

/// Which ones give way is drawn by lot, and most new ones are not let in: whoever asks for all in
/// turn, and there are more than fit, then finds many of them. By age none would be found, since
/// each would give way just before it is asked for again. What is asked for often comes back soon.
#[derive(Debug, Default)]
struct Kept {
    /// In no order.
    services: Vec<Service>,
    /// Where each stands.
    places: HashMap<ServiceKey, usize>,
    bytes: usize,
    lots: u64,
}

#[derive(Debug)]
struct Service {
    key: ServiceKey,
    revision: Revision,
    encoded: Bytes,
}

impl EncodedServices {
    /// The service at this revision, encoded now or before; it is of a state that takes
    /// `state_bytes`.
    pub(crate) fn get(
        &self,
        key: &ServiceKey,
        revision: Revision,
        state_bytes: usize,
        encode: impl FnOnce() -> Bytes,
    ) -> Bytes {
        if let Some(known) = self.lock().find(key)
            && known.revision == revision
        {
            return known.encoded.clone();
        }
        let encoded = encode();
        let new = Service { key: key.clone(), revision, encoded: encoded.clone() };
        self.lock().keep(new, (state_bytes / KEPT_SHARE).clamp(KEPT_MIN, KEPT_MAX));
        encoded
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().expect("invariant: nothing panics while it holds this lock")
    }
}

impl Service {
    /// What it takes; its names stand in both tables.
    fn bytes(&self) -> usize {
        let ServiceKey { namespace, name } = &self.key;
        ENTRY_BYTES + 2 * (namespace.as_str().len() + name.as_str().len()) + self.encoded.len()
    }
}

impl Kept {
    fn find(&self, key: &ServiceKey) -> Option<&Service> {
        self.places.get(key).map(|place| &self.services[*place])
    }

    /// Another revision takes the place of what is known of its service.
    fn keep(&mut self, new: Service, max: usize) {
        let known = self.places.get(&new.key).copied();
        if let Some(place) = known {
            self.remove(place);
        }
        let needed = new.bytes();
        self.drop_to(max, DROPPED_AT_ONCE);
        let is_full = self.bytes + needed > max;
        if needed > max
            || self.bytes > max
            || (is_full && known.is_none() && self.draw(ADMITTED_SHARE) != 0)
        {
            return;
        }
        self.drop_to(max - needed, DROPPED_FOR_ONE);
        if self.bytes + needed > max {
            return; // There is room next time.
        }
        self.bytes += needed;
        self.places.insert(new.key.clone(), self.services.len());
        self.services.push(new);
    }

    /// Until there is no more than so much, or so many were dropped.
    fn drop_to(&mut self, max: usize, most: usize) {
        for _ in 0..most {
            if self.bytes <= max {
                return;
            }
            let place = self.draw(self.services.len() as u64) as usize;
            self.remove(place);
        }
    }

    fn remove(&mut self, place: usize) {
        let removed = self.services.swap_remove(place);
        self.bytes -= removed.bytes();
        self.places.remove(&removed.key);
        if let Some(moved) = self.services.get(place) {
            self.places.insert(moved.key.clone(), place);
        }
    }

    /// A number below this one (Knuth's MMIX generator: any lots will do).
    fn draw(&mut self, below: u64) -> u64 {
        self.lots = self.lots.wrapping_mul(6_364_136_223_846_793_005);
        self.lots = self.lots.wrapping_add(1_442_695_040_888_963_407);
        (self.lots >> 33) % below
    }
}

#[cfg(test)]
mod tests {
    use quorate_state::{Namespace, ServiceName};

    use super::*;

    fn key(name: &str) -> ServiceKey {
        let name = ServiceName::new("service", name).unwrap();
        ServiceKey { namespace: Namespace::default(), name }
    }

    /// What a service of these tests takes beside its bytes, where its name has so many.
    fn beside(name_bytes: usize) -> usize {
        ENTRY_BYTES + 2 * ("default".len() + name_bytes)
    }

    #[test]
    fn a_service_is_encoded_once_for_each_revision() {
        let services = EncodedServices::default();
        let encoded = |text: &'static str| move || Bytes::from_static(text.as_bytes());
        assert_eq!(services.get(&key("a"), Revision(1), 0, encoded("one")), "one");
        assert_eq!(services.get(&key("a"), Revision(1), 0, || panic!("encoded again")), "one");
        assert_eq!(services.get(&key("a"), Revision(2), 0, encoded("second")), "second");
        assert_eq!(services.get(&key("b"), Revision(2), 0, encoded("other")), "other");
        assert_eq!(services.get(&key("a"), Revision(2), 0, || panic!("encoded again")), "second");
        assert_eq!(services.lock().bytes, "second".len() + "other".len() + 2 * beside(1));
    }

    #[test]
    fn what_is_kept_is_a_part_of_the_state_between_two_bounds() {
        for (state_bytes, max) in [
            (0, KEPT_MIN),
            (KEPT_MIN * KEPT_SHARE * 3, KEPT_MIN * 3),
            (usize::MAX, KEPT_MAX),
            (0, KEPT_MIN),
        ] {
            let services = EncodedServices::default();
            // All of one buffer: what they say that they take is counted.
            let all = Bytes::from(vec![0; max / 8 - beside(4)]);
            for at in 100..200 {
                services.get(&key(&format!("s{at}")), Revision(1), state_bytes, || all.clone());
                let kept = services.lock();
                assert!(kept.bytes <= max && kept.services.len() == kept.places.len());
            }
            assert_eq!(services.lock().bytes, max / 8 * 8, "of a state of {state_bytes}");
        }
    }

    #[test]
    fn a_state_that_has_become_smaller_has_less_kept_and_one_too_large_takes_no_place() {
        let services = EncodedServices::default();
        let large = Bytes::from(vec![0; KEPT_MIN - beside(1)]);
        let small = Bytes::from_static(b"small");
        let small_bytes = small.len() + beside(1);
        let state_bytes = KEPT_MIN * KEPT_SHARE * 4;
        for name in ["a", "b", "c", "d"] {
            services.get(&key(name), Revision(1), state_bytes, || large.clone());
        }
        services.get(&key("d"), Revision(2), 0, || small.clone());
        assert_eq!(services.lock().bytes, small_bytes, "none of the others fits beside it");
        let too_large = Bytes::from(vec![0; KEPT_MIN - beside(1) + 1]);
        for _ in 0..100 {
            services.get(&key("e"), Revision(1), 0, || too_large.clone());
        }
        assert_eq!(services.lock().bytes, small_bytes);
    }

    /// All fetches wait for the lock.
    #[test]
    fn a_state_that_has_become_much_smaller_has_a_part_dropped_at_a_time() {
        const SERVICES: usize = 1_000;
        let services = EncodedServices::default();
        let encoded = Bytes::from(vec![0; KEPT_MIN / 100 - beside(4)]);
        let before = KEPT_MIN * KEPT_SHARE * SERVICES / 100;
        for at in 0..SERVICES {
            services.get(&key(&format!("s{at:03}")), Revision(1), before, || encoded.clone());
        }
        for left in (100..SERVICES).rev().step_by(DROPPED_AT_ONCE).skip(1) {
            services.get(&key("new"), Revision(1), 0, || encoded.clone());
            assert_eq!(services.lock().services.len(), left + 1);
        }
        for at in 0..40 {
            services.get(&key(&format!("t{at}")), Revision(1), 0, || encoded.clone());
        }
        let kept = services.lock();
        assert!(kept.bytes <= KEPT_MIN && kept.find(&key("new")).is_none(), "{}", kept.bytes);
    }

    #[test]
    fn a_large_service_takes_the_place_of_as_many_small_ones_as_it_needs() {
        let services = EncodedServices::default();
        let small = Bytes::from_static(b"small");
        let count = KEPT_MIN / (small.len() + beside(6));
        for at in 0..count {
            services.get(&key(&format!("s{at:05}")), Revision(1), 0, || small.clone());
        }
        let large = Bytes::from(vec![0; KEPT_MIN / 8]);
        for _ in 0..100 {
            services.get(&key("large"), Revision(1), 0, || large.clone());
        }
        let kept = services.lock();
        assert!(kept.find(&key("large")).is_some() && kept.bytes <= KEPT_MIN, "{}", kept.bytes);
        assert!(kept.services.len() > count * 3 / 4, "{} of {count}", kept.services.len());
    }

    /// When there was no room, all that was kept was forgotten: asking for more in turn than fits
    /// found none of them.
    #[test]
    fn who_asks_for_all_in_turn_finds_many_of_them_where_not_all_fit() {
        const FIT: usize = 100;
        let encoded = Bytes::from(vec![0; KEPT_MIN / FIT - beside(4)]);
        for (services, hits_min) in [(FIT, 100), (FIT * 11 / 10, 75), (FIT * 2, 25), (FIT * 4, 5)] {
            let kept = EncodedServices::default();
            let mut encodings = 0;
            const TURNS: usize = 40;
            for at in 0..TURNS * services {
                let key = key(&format!("s{}", at % services));
                kept.get(&key, Revision(1), 0, || {
                    // The first turns fill it.
                    encodings += usize::from(at >= TURNS / 2 * services);
                    encoded.clone()
                });
            }
            let hits = 100 - 100 * encodings / (TURNS / 2 * services);
            assert!(hits >= hits_min, "{hits} of 100 found, {services} in turn");
        }
    }
}
