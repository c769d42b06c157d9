//! Services as they were last sent, encoded. Knows keys, revisions and bytes.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use quorate_state::{Revision, ServiceKey};

/// Encoded services that are kept, bytes.
const KEPT_MAX: usize = 16 * 1024 * 1024;

/// Services as they were last sent. Many callers fetch the same few services, and each time all of
/// their instances would be converted and encoded; a service of 100 instances is answered from here
/// in a third of the processor time.
#[derive(Debug, Default)]
pub(crate) struct EncodedServices {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    by_key: HashMap<ServiceKey, (Revision, Bytes)>,
    bytes: usize,
}

impl EncodedServices {
    /// The service at this revision, encoded now or before.
    pub(crate) fn get(
        &self,
        key: &ServiceKey,
        revision: Revision,
        encode: impl FnOnce() -> Bytes,
    ) -> Bytes {
        if let Some((known, encoded)) = self.lock().by_key.get(key)
            && *known == revision
        {
            return encoded.clone();
        }
        let encoded = encode();
        self.lock().keep(key, revision, encoded.clone());
        encoded
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().expect("invariant: nothing panics while it holds this lock")
    }
}

impl Kept {
    /// Forgets all others when there is no room: what is still asked for comes back at once.
    fn keep(&mut self, key: &ServiceKey, revision: Revision, encoded: Bytes) {
        if self.bytes + encoded.len() > KEPT_MAX {
            self.by_key.clear();
            self.bytes = 0;
        }
        if encoded.len() > KEPT_MAX {
            return;
        }
        self.bytes += encoded.len();
        if let Some((_, replaced)) = self.by_key.insert(key.clone(), (revision, encoded)) {
            self.bytes -= replaced.len();
        }
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

    #[test]
    fn a_service_is_encoded_once_for_each_revision() {
        let services = EncodedServices::default();
        let encoded = |text: &'static str| move || Bytes::from_static(text.as_bytes());
        assert_eq!(services.get(&key("a"), Revision(1), encoded("one")), "one");
        assert_eq!(services.get(&key("a"), Revision(1), || panic!("encoded again")), "one");
        assert_eq!(services.get(&key("a"), Revision(2), encoded("second")), "second");
        assert_eq!(services.get(&key("b"), Revision(2), encoded("other")), "other");
        assert_eq!(services.lock().bytes, "second".len() + "other".len());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let services = EncodedServices::default();
        let large = Bytes::from(vec![0; KEPT_MAX / 2]);
        for name in ["a", "b", "c"] {
            services.get(&key(name), Revision(1), || large.clone());
        }
        assert_eq!(services.lock().bytes, KEPT_MAX / 2);
        assert_eq!(services.lock().by_key.len(), 1);
        services.get(&key("d"), Revision(1), || Bytes::from(vec![0; KEPT_MAX + 1]));
        assert_eq!(services.lock().bytes, 0);
    }
}
