//! [`Balancer`]: which instance of a live view gets the next call. A pick looks at two pointers and
//! moves a counter; all that takes longer is done when the view changes
//! (`calling/balance/prepared.rs`).

mod prepared;

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rand::Rng;
use rand::seq::IndexedRandom;
use tokio::time::Instant;

use self::prepared::{Group, Prepared, Seat};
use crate::error::Error;
use crate::following::Discovery;
use crate::types::Instance;

/// An instance that reported that it goes away is left out for this long, unless it changes before.
const AWAY_FOR: Duration = Duration::from_secs(30);

/// How a balancer chooses. Instances with weight 0 are never chosen.
///
/// An example is at [`Balancer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Policy {
    /// At random, in proportion to the weights.
    Random,
    /// One after the other, whatever their weights.
    RoundRobin,
    /// In turn, in proportion to the weights, and the turns of each spread evenly (earliest
    /// deadline first, as Envoy and gRPC do). Proportions are exact to 1 in 4,096.
    WeightedRoundRobin,
    /// Two at random, and of them the one with the smaller load, in proportion to the weights
    /// (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001). The load is
    /// what is in flight from here, and on top of it what the instance itself says
    /// ([`crate::RegistrationHandle::set_load`]), taken for that many calls more: where it says
    /// calls, the calls of all callers count; where it says percent, it decides between instances
    /// that differ by much.
    LeastLoaded,
}

/// Chooses instances of a live view; all callers share it. It always chooses among what the view
/// shows now.
///
/// With a zone, calls stay in it as long as it has its share: with z zones, while its weights are
/// at least 1/z of all. If it has less, it gets what it can carry (its weights over that share),
/// and the rest goes to the others.
///
/// ```no_run
/// # async fn example(client: quorate_client::Client) -> Result<(), quorate_client::Error> {
/// use quorate_client::{Balancer, Policy};
/// let balancer = Balancer::new(client.discover("payments")?, Policy::LeastLoaded).zone("eu-1a");
/// let picked = balancer.pick()?;
/// println!("calling {}", picked.endpoints["http"]); // counts as a call in flight until `picked` is dropped
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Balancer {
    discovery: Discovery,
    policy: Policy,
    zone: Option<String>,
    prepared: ArcSwap<Prepared>,
    /// Held while a new view is prepared; never across an await.
    preparing: Mutex<()>,
    turn: AtomicUsize,
    /// Until when each is left out.
    away: Mutex<HashMap<Away, Instant>>,
    /// Counts the changes of `away`.
    away_version: AtomicU64,
}

/// One that said that it goes away, as it was then: what it is later is another one.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Away {
    id: String,
    modify_revision: u64,
    /// Revisions begin anew in another cluster; there it has another lease.
    lease_id: u64,
}

impl Away {
    fn of(instance: &Instance) -> Self {
        let Instance { modify_revision, lease_id, .. } = *instance;
        Self { id: instance.id.clone(), modify_revision, lease_id }
    }
}

/// An instance that was chosen. Counts as a call in flight until it is dropped.
///
/// An example is at [`Balancer`].
#[derive(Debug)]
pub struct Picked {
    seat: Arc<Seat>,
}

impl Picked {
    /// The instance.
    pub fn instance(&self) -> &Arc<Instance> {
        &self.seat.instance
    }
}

impl Deref for Picked {
    type Target = Instance;

    fn deref(&self) -> &Instance {
        &self.seat.instance
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        self.seat.leave();
    }
}

impl Balancer {
    /// Chooses among what `discovery` shows.
    pub fn new(discovery: Discovery, policy: Policy) -> Self {
        Self {
            discovery,
            policy,
            zone: None,
            prepared: ArcSwap::from_pointee(Prepared::default()),
            preparing: Mutex::default(),
            turn: AtomicUsize::new(rand::rng().random_range(0..1_000_000)),
            away: Mutex::default(),
            away_version: AtomicU64::new(0),
        }
    }

    /// Prefers this zone, which is where the caller runs.
    #[must_use]
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// What it chooses from.
    pub fn discovery(&self) -> &Discovery {
        &self.discovery
    }

    /// The next instance.
    ///
    /// # Errors
    /// [`Error::NoInstances`], also when all are going away or have weight 0;
    /// [`Error::UnknownService`]; [`Error::Unreachable`] while nothing is known.
    pub fn pick(&self) -> Result<Picked, Error> {
        self.pick_except(&[])
    }

    /// The next instance that is not among these ids; when all are, any.
    ///
    /// # Errors
    /// As [`Balancer::pick`].
    pub fn pick_except(&self, tried: &[String]) -> Result<Picked, Error> {
        let is_current = self.discovery.with_current(|shown| {
            let prepared = self.prepared.load();
            std::ptr::eq(shown, Arc::as_ptr(&prepared.source)) && !self.is_outdated(&prepared)
        });
        if !is_current {
            self.prepare();
        }
        let prepared = self.prepared.load();
        match self.choose(&prepared, tried) {
            Some(seat) => Ok(Seat::pick(seat)),
            None => Err(self.why_none()),
        }
    }

    /// An instance has said that it is going away: it is not chosen any more, from now on, for half
    /// a minute or until it changes.
    pub fn go_away(&self, instance: &Instance) {
        self.away().insert(Away::of(instance), Instant::now() + AWAY_FOR);
        self.away_version.fetch_add(1, Ordering::Release);
    }

    fn is_outdated(&self, prepared: &Prepared) -> bool {
        prepared.away_version != self.away_version.load(Ordering::Acquire)
            || prepared.valid_until.is_some_and(|until| Instant::now() >= until)
    }

    fn away(&self) -> MutexGuard<'_, HashMap<Away, Instant>> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn prepare(&self) {
        let _alone = self.preparing.lock().unwrap_or_else(PoisonError::into_inner);
        let away_version = self.away_version.load(Ordering::Acquire);
        let source = self.discovery.current();
        let now = Instant::now();
        let mut away = self.away();
        away.retain(|_, until| *until > now);
        let valid_until = away.values().min().copied();
        let is_away =
            |instance: &Instance| !away.is_empty() && away.contains_key(&Away::of(instance));
        let here: Vec<_> = source.iter().filter(|i| i.weight > 0 && !is_away(i)).cloned().collect();
        drop(away);
        let before = self.prepared.load();
        let mut prepared = Prepared::new(source, &here, self.zone.as_deref(), self.policy, &before);
        (prepared.away_version, prepared.valid_until) = (away_version, valid_until);
        self.prepared.store(Arc::new(prepared));
    }

    fn choose<'a>(&self, prepared: &'a Prepared, tried: &[String]) -> Option<&'a Arc<Seat>> {
        let [near, far] = &prepared.groups;
        let stays = far.is_empty()
            || !near.is_empty() && rand::rng().random::<f64>() < prepared.share_of_near;
        let (first, second) = if stays { (near, far) } else { (far, near) };
        let one = self.choose_of(first)?;
        if tried.is_empty() || !tried.contains(&one.instance.id) {
            return Some(one);
        }
        let other = self.choose_untried(first, tried);
        other.or_else(|| self.choose_untried(second, tried)).or(Some(one))
    }

    /// As the policy says, among the instances that were not tried; `None`: there are none.
    fn choose_untried<'a>(&self, group: &'a Group, tried: &[String]) -> Option<&'a Arc<Seat>> {
        let untried = |seat: &&Arc<Seat>| !tried.contains(&seat.instance.id);
        let mut rng = rand::rng();
        match self.policy {
            Policy::RoundRobin | Policy::WeightedRoundRobin => {
                let turns = (0..group.turns()).map(|_| self.turn.fetch_add(1, Ordering::Relaxed));
                turns.map(|turn| group.at_turn(turn)).find(untried)
            }
            Policy::Random => {
                let left: Vec<_> = group.seats().filter(untried).collect();
                left.choose_weighted(&mut rng, |seat| seat.instance.weight).ok().copied()
            }
            Policy::LeastLoaded => {
                let left: Vec<_> = group.seats().filter(untried).collect();
                Some(Seat::less_loaded(left.choose(&mut rng)?, left.choose(&mut rng)?))
            }
        }
    }

    fn choose_of<'a>(&self, group: &'a Group) -> Option<&'a Arc<Seat>> {
        if group.is_empty() {
            return None;
        }
        match self.policy {
            Policy::Random => group.at_weight(rand::rng().random_range(0..group.weight())),
            Policy::RoundRobin | Policy::WeightedRoundRobin => {
                Some(group.at_turn(self.turn.fetch_add(1, Ordering::Relaxed)))
            }
            Policy::LeastLoaded => {
                let mut rng = rand::rng();
                let (a, b) = (rng.random_range(0..group.len()), rng.random_range(0..group.len()));
                Some(Seat::less_loaded(group.at(a), group.at(b)))
            }
        }
    }

    fn why_none(&self) -> Error {
        let service = self.discovery.service().to_owned();
        self.discovery.usable_now().err().unwrap_or(Error::NoInstances { service })
    }
}
