//! Which instances this client keeps registered, so that none is kept twice; and the incarnations
//! of this process.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::Error;
use crate::types::InstanceSpec;

type Key = (String, String);

/// Instance to the number of the claim that holds it.
type Held = HashMap<Arc<Key>, u64>;

/// The instances that registrations of one client hold. The namespace is the client's.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// Never held across an await.
    held: Arc<Mutex<Held>>,
    last_number: AtomicU64,
}

/// Holds some instances until it is released or dropped.
#[derive(Debug)]
pub(super) struct Claim {
    held: Arc<Mutex<Held>>,
    number: u64,
    /// What it took.
    keys: Vec<Arc<Key>>,
}

impl Claims {
    /// Takes all of them or none.
    pub(super) fn claim(&self, instances: &[InstanceSpec]) -> Result<Claim, Error> {
        let number = self.last_number.fetch_add(1, Ordering::Relaxed) + 1;
        // Made first: if an instance is taken, its drop gives back the ones before it.
        let mut claim = Claim { held: self.held.clone(), number, keys: Vec::new() };
        claim.keys.reserve_exact(instances.len());
        for instance in instances {
            let (service, id) = (instance.service.clone(), instance.id.clone());
            let key = Arc::new((service, id));
            let mut held = lock(&self.held);
            if held.contains_key(&key) {
                drop(held);
                let (service, id) = Arc::unwrap_or_clone(key);
                return Err(Error::AlreadyRegistered { service, id });
            }
            held.insert(key.clone(), number);
            claim.keys.push(key);
        }
        Ok(claim)
    }
}

impl Claim {
    /// Gives the instances back. Later claims of the same instances are not touched, however often
    /// it is called.
    pub(super) fn release(&self) {
        let mut held = lock(&self.held);
        for key in &self.keys {
            if held.get(key) == Some(&self.number) {
                held.remove(key);
            }
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.release();
    }
}

fn lock(held: &Mutex<Held>) -> MutexGuard<'_, Held> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The highest incarnation that this process has begun with. What one registration takes over from
/// a run whose clock was ahead (`registering/keeper.rs`) is no reason for others to be ahead, too.
static LAST_INCARNATION: AtomicU64 = AtomicU64::new(0);

/// A new incarnation: microseconds since the epoch, and always higher than any before it in this
/// process.
pub(super) fn new_incarnation() -> u64 {
    #[expect(
        clippy::disallowed_methods,
        reason = "a restarted process has to be told from its predecessor, and only the wall clock spans both"
    )]
    let now = SystemTime::now();
    let micros = now.duration_since(UNIX_EPOCH).map_or(1, |since| since.as_micros() as u64);
    let next = |last: u64| last.saturating_add(1).max(micros);
    let last = LAST_INCARNATION
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(next(last)))
        .unwrap_or_else(|last| last);
    next(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(id: &str) -> InstanceSpec {
        InstanceSpec { service: "s".to_owned(), id: id.to_owned(), ..InstanceSpec::default() }
    }

    #[test]
    fn an_instance_is_claimed_once_and_given_back() {
        // S1.4, S1.5
        let claims = Claims::default();
        let first = claims.claim(&[instance("a")]).unwrap();
        let refused = claims.claim(&[instance("b"), instance("a")]);
        assert!(matches!(refused, Err(Error::AlreadyRegistered { id, .. }) if id == "a"));
        drop(claims.claim(&[instance("b")]).unwrap());

        first.release();
        let second = claims.claim(&[instance("a")]).unwrap();
        drop(first);
        assert!(claims.claim(&[instance("a")]).is_err(), "the old claim released the new one");
        drop(second);
        assert!(claims.claim(&[instance("a")]).is_ok());
    }

    /// It looked through all that there were: for 50,000 of them, some 10^9 looks.
    #[test]
    fn many_claims_are_given_back_soon() {
        let claims = Claims::default();
        let one = |at: usize| claims.claim(&[instance(&at.to_string())]).unwrap();
        let all: Vec<_> = (0..50_000).map(one).collect();
        let begun = std::time::Instant::now();
        drop(all);
        let took = begun.elapsed();
        assert!(took < std::time::Duration::from_secs(2), "{took:?}");
        assert!(lock(&claims.held).is_empty());
    }

    #[test]
    fn incarnations_only_grow() {
        let first = new_incarnation();
        let ahead = LAST_INCARNATION.fetch_add(60_000_000, Ordering::Relaxed) + 60_000_000;
        assert!(ahead >= first + 60_000_000);
        assert!(new_incarnation() > ahead, "also when the clock is behind");
    }
}
