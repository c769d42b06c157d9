//! [`Caller`]: calls to the instances of a service, with what to do when one fails. Knows nothing
//! of protocols: the application makes the call itself and says what came of it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::calling::balance::{Balancer, Picked};
use crate::error::{Error, LONGEST};
use crate::following::Instances;
use crate::nodes::retry::{Backoff, FOREGROUND};
use crate::types::Instance;

/// What is done when a call fails.
///
/// An example is at [`Caller`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailMode {
    /// Nothing: the failure is the result.
    FailFast,
    /// The same instance is called again, this often, after waits that grow.
    Retry(u32),
    /// Other instances are called, this often, each another one as long as there are such.
    Failover(u32),
}

/// What the application says of a call that failed. `?` makes an error one to try again with.
///
/// An example is at [`Caller`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault<E> {
    /// Another attempt may succeed.
    Again(E),
    /// The instance is going away: it gets no more calls from here, at once, and another instance
    /// is called.
    GoingAway(E),
    /// Every attempt would fail, or must not be made.
    Final(E),
}

impl<E> From<E> for Fault<E> {
    fn from(error: E) -> Self {
        Self::Again(error)
    }
}

/// Why a call came to nothing.
///
/// An example is at [`Caller`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError<E> {
    /// There is no instance to call.
    #[error("there is no instance to call")]
    NoInstance(#[source] Error),
    /// All attempts failed, or one did and there was no time for another.
    #[error("the call failed on {}", Ids(tried))]
    Failed {
        /// The instances that it was tried on, in order.
        tried: Vec<String>,
        /// What the last attempt came to.
        #[source]
        last: E,
    },
    /// The deadline passed while an instance was called.
    #[error("no answer within {within:?} from {}", Ids(tried))]
    Deadline {
        /// The deadline.
        within: Duration,
        /// The instances that it was tried on, in order.
        tried: Vec<String>,
    },
}

struct Ids<'a>(&'a [String]);

impl fmt::Display for Ids<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}

/// Calls of [`Caller::call_all`] that are under way at once, unless set.
const CALLS_AT_ONCE: usize = 64;

/// What a call may take, all attempts together, unless set: as a call to the registry.
const DEADLINE: Duration = Duration::from_secs(5);

/// Makes calls to the instances that a balancer chooses. Cheap to clone.
///
/// ```no_run
/// # async fn example(client: quorate_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// # async fn get(uri: &str) -> Result<String, std::io::Error> { Ok(uri.to_owned()) }
/// use quorate_client::{Balancer, Caller, FailMode, Policy};
/// let balancer = Balancer::new(client.discover("payments")?, Policy::LeastLoaded);
/// let payments = Caller::new(balancer, FailMode::Failover(2));
/// let answer = payments.call(async |instance| Ok(get(&instance.endpoints["http"]).await?)).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Caller {
    balancer: Arc<Balancer>,
    mode: FailMode,
    deadline: Duration,
    at_once: usize,
}

impl Caller {
    /// Calls the instances that the balancer chooses.
    pub fn new(balancer: impl Into<Arc<Balancer>>, mode: FailMode) -> Self {
        let balancer = balancer.into();
        Self { balancer, mode, deadline: DEADLINE, at_once: CALLS_AT_ONCE }
    }

    /// How long a call may take, all attempts together, and the wait for the first view before the
    /// first of them; 5 s unless set, at most 365 days (more counts as that).
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline.min(LONGEST);
        self
    }

    /// How many calls of [`Caller::call_all`] may be under way at once; 64 unless set, at least 1.
    #[must_use]
    pub fn at_once(mut self, calls: usize) -> Self {
        self.at_once = calls.max(1);
        self
    }

    /// The balancer that chooses.
    pub fn balancer(&self) -> &Balancer {
        &self.balancer
    }

    /// Calls one instance, and others or the same again as the mode says.
    ///
    /// # Errors
    /// [`CallError::NoInstance`], [`CallError::Failed`], [`CallError::Deadline`].
    pub async fn call<T, E, F>(&self, call: impl Fn(Arc<Instance>) -> F) -> Result<T, CallError<E>>
    where
        F: Future<Output = Result<T, Fault<E>>>,
    {
        let deadline = Instant::now() + self.deadline;
        let mut left = match self.mode {
            FailMode::FailFast => 0,
            FailMode::Retry(times) | FailMode::Failover(times) => times,
        };
        let mut tried: Vec<String> = Vec::new();
        let mut backoff = Backoff::new(FOREGROUND);
        let mut picked = self.first(deadline).await.map_err(CallError::NoInstance)?;
        loop {
            tried.push(picked.id.clone());
            let attempt = timeout_at(deadline, call(picked.instance().clone())).await;
            let Ok(outcome) = attempt else {
                return Err(CallError::Deadline { within: self.deadline, tried });
            };
            let (last, goes_away) = match outcome {
                Ok(answer) => return Ok(answer),
                Err(Fault::Final(last)) => return Err(CallError::Failed { tried, last }),
                Err(Fault::Again(last)) => (last, false),
                Err(Fault::GoingAway(last)) => {
                    self.balancer.go_away(&picked);
                    (last, true)
                }
            };
            if left == 0 {
                return Err(CallError::Failed { tried, last });
            }
            left -= 1;
            if goes_away || matches!(self.mode, FailMode::Failover(_)) {
                match self.another(&tried) {
                    Some(another) => picked = another,
                    None => return Err(CallError::Failed { tried, last }),
                }
            }
            if tried.contains(&picked.id) {
                // The same again: not at once.
                let wait = Instant::now() + backoff.next();
                if wait >= deadline {
                    return Err(CallError::Failed { tried, last });
                }
                tokio::time::sleep_until(wait).await;
            }
        }
    }

    /// The instance to call first. While none is shown, the first word of the registry is waited
    /// for.
    async fn first(&self, deadline: Instant) -> Result<Picked, Error> {
        let discovery = self.balancer.discovery();
        let is_late = discovery.with_current(Instances::is_empty)
            && timeout_at(deadline, discovery.answered()).await.is_err();
        let within = is_late.then_some(self.deadline);
        self.balancer.pick().map_err(|error| match error {
            Error::Unreachable { operation, tried, .. } => {
                Error::Unreachable { operation, within, tried }
            }
            error => error,
        })
    }

    fn another(&self, tried: &[String]) -> Option<Picked> {
        self.balancer.pick_except(tried).ok()
    }

    /// Calls every instance of the view, many at once, and each that fails again as the mode says
    /// (on the same instance: there is no other for it). The results are in the order of the view.
    /// Each call has the whole deadline.
    ///
    /// # Errors
    /// When there is no instance to call. What came of each call is in the list.
    pub async fn call_all<T, E, F>(
        &self,
        call: impl Fn(Arc<Instance>) -> F,
    ) -> Result<Vec<(Arc<Instance>, Result<T, CallError<E>>)>, Error>
    where
        F: Future<Output = Result<T, Fault<E>>>,
    {
        let discovery = self.balancer.discovery();
        let instances = match timeout(self.deadline, discovery.usable()).await {
            Ok(instances) => instances?,
            Err(_elapsed) => discovery.usable_now()?,
        };
        let mut waiting = instances.iter().cloned().enumerate();
        let mut running = FuturesUnordered::new();
        let mut results: Vec<_> = instances.iter().map(|_| None).collect();
        loop {
            while running.len() < self.at_once {
                let Some((place, instance)) = waiting.next() else { break };
                let one = self.call_one(instance, &call);
                running.push(async move { (place, one.await) });
            }
            let Some((place, result)) = running.next().await else { break };
            results[place] = Some(result);
        }
        let results = results.into_iter().map(|result| result.expect("invariant: all were called"));
        Ok(instances.iter().cloned().zip(results).collect())
    }

    async fn call_one<T, E, F>(
        &self,
        instance: Arc<Instance>,
        call: &impl Fn(Arc<Instance>) -> F,
    ) -> Result<T, CallError<E>>
    where
        F: Future<Output = Result<T, Fault<E>>>,
    {
        let deadline = Instant::now() + self.deadline;
        let mut left = match self.mode {
            FailMode::FailFast => 0,
            FailMode::Retry(times) | FailMode::Failover(times) => times,
        };
        let tried = vec![instance.id.clone()];
        let mut backoff = Backoff::new(FOREGROUND);
        loop {
            let last = match timeout_at(deadline, call(instance.clone())).await {
                Err(_elapsed) => return Err(CallError::Deadline { within: self.deadline, tried }),
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(Fault::Again(last))) if left > 0 => last,
                Ok(Err(Fault::Again(last) | Fault::GoingAway(last) | Fault::Final(last))) => {
                    return Err(CallError::Failed { tried, last });
                }
            };
            left -= 1;
            let wait = backoff.next();
            if Instant::now() + wait >= deadline {
                return Err(CallError::Failed { tried, last });
            }
            sleep(wait).await;
        }
    }
}
