//! [`HealthCheck`]: how the cluster is to find out whether an instance works.

use std::time::Duration;

use quorate_proto::v1;
use quorate_proto::v1::health_check::Kind;

/// One health check of an instance: made by the cluster, where its operator allows it, every 10 s
/// unless set. What all checks of an instance say is its [`Instance::health`](crate::Instance);
/// views leave out those that are [`Health::Critical`](crate::Health).
///
/// ```
/// use std::time::Duration;
/// use quorate_client::{HealthCheck, InstanceBuilder};
/// let check = HealthCheck::http("/healthz").every(Duration::from_secs(5)).failures_before_critical(2);
/// let instance = InstanceBuilder::new("orders", "orders-1")
///     .endpoint("http", "http://10.0.0.1:8080")
///     .check(check);
/// ```
///
/// What is out of its limits is refused by the registry ([`Error::Rejected`](crate::Error)).
#[derive(Debug, Clone, PartialEq)]
pub struct HealthCheck(pub(super) v1::HealthCheck);

impl HealthCheck {
    fn new(kind: Kind) -> Self {
        Self(v1::HealthCheck { kind: Some(kind), ..v1::HealthCheck::default() })
    }

    /// `GET` of a path of an `http:` endpoint; a status of 200 to 299 passes.
    pub fn http(path: impl Into<String>) -> Self {
        Self::new(Kind::Http(v1::HttpCheck { path: path.into() }))
    }

    /// A connection passes.
    pub fn tcp() -> Self {
        Self::new(Kind::Tcp(v1::TcpCheck {}))
    }

    /// `grpc.health.v1.Health/Check` at an `http:` or `grpc:` endpoint; `SERVING` passes. The empty
    /// service is the server as a whole.
    pub fn grpc(service: impl Into<String>) -> Self {
        Self::new(Kind::Grpc(v1::GrpcCheck { service: service.into() }))
    }

    /// Which endpoint; needed where there are several.
    #[must_use]
    pub fn endpoint(mut self, name: impl Into<String>) -> Self {
        self.0.endpoint = name.into();
        self
    }

    /// How often, 1 s to 1 h; 10 s unless set.
    #[must_use]
    pub fn every(mut self, interval: Duration) -> Self {
        self.0.interval_ms = ms(interval);
        self
    }

    /// How long the target may take to answer, 100 ms to the interval; 2 s (or the interval, if
    /// that is shorter) unless set.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.0.timeout_ms = ms(timeout);
        self
    }

    /// How many in a row have to fail, 1 to 10; 3 unless set (or 0).
    #[must_use]
    pub fn failures_before_critical(mut self, failures: u32) -> Self {
        self.0.failures_before_critical = failures;
        self
    }

    /// How many in a row have to pass, 1 to 10; 1 unless set (or 0).
    #[must_use]
    pub fn successes_before_passing(mut self, successes: u32) -> Self {
        self.0.successes_before_passing = successes;
        self
    }
}

/// On the wire, 0 is "not set": what rounds to it becomes 1, which is refused.
fn ms(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_short_does_not_become_the_default() {
        assert_eq!(HealthCheck::tcp().every(Duration::from_micros(1)).0.interval_ms, 1);
        assert_eq!(HealthCheck::tcp().timeout(Duration::MAX).0.timeout_ms, u32::MAX);
        assert_eq!(HealthCheck::tcp().0.interval_ms, 0, "not set");
    }
}
