//! [`Core`]: what all that a client started shares. The rooms below build on it and never name the
//! client itself.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quorate_proto::requests::Origin;
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

use crate::nodes::call::Plan;
use crate::nodes::endpoints::{Endpoints, Target};

/// What everything that the client started shares.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) options: Options,
    pub(crate) endpoints: Arc<Endpoints>,
    /// Names this client's writes.
    pub(crate) origin: Origin,
    /// Background work runs here, whichever thread starts it.
    pub(crate) runtime: Handle,
    /// What learns the members, and reads certificates and tokens again. Ends with the last clone,
    /// registration and watch.
    pub(crate) upkeep: Arc<[AbortOnDropHandle<()>]>,
}

#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) namespace: String,
    pub(crate) call_timeout: Duration,
    pub(crate) attempt_timeout: Duration,
    pub(crate) watch_idle_timeout: Duration,
    pub(crate) leaderless_timeout: Duration,
    pub(crate) audit_interval: Duration,
    pub(crate) cache_dir: Option<PathBuf>,
}

impl Core {
    /// A call with the timeouts of the options.
    pub(crate) fn plan(&self, operation: &'static str, target: Target) -> Plan {
        self.options.plan(operation, target)
    }
}

impl Options {
    /// A call with these timeouts. One attempt gets no more than half of it: a node that hangs must
    /// leave time for another.
    pub(crate) fn plan(&self, operation: &'static str, target: Target) -> Plan {
        let within = self.call_timeout;
        let attempt = self.attempt_timeout.min(within / 2);
        Plan { operation, target, attempt, within }
    }
}

#[cfg(test)]
impl Core {
    /// With a node that is not there.
    pub(crate) fn for_tests() -> Self {
        let second = Duration::from_secs(1);
        let options = Options {
            namespace: String::new(),
            call_timeout: second,
            attempt_timeout: second,
            watch_idle_timeout: second,
            leaderless_timeout: second,
            audit_interval: second,
            cache_dir: None,
        };
        let dial = crate::nodes::dial::Dial::default();
        let endpoints = Endpoints::new(&["127.0.0.1:1".to_owned()], dial, false, second);
        Self {
            options,
            endpoints: Arc::new(endpoints.unwrap()),
            origin: Origin::new(7),
            runtime: Handle::current(),
            upkeep: Arc::new([]),
        }
    }
}
