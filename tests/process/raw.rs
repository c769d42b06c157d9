//! Calls with the generated stub on one node, where a test has to choose what the client crate
//! chooses by itself: the node, the incarnation, when to renew.

use std::time::Duration;

use quorate_proto::v1::{
    DeregisterRequest, DeregisterResponse, InstanceRef, InstanceSpec, LeaseRenewal,
    RegisterRequest, RegisterResponse, RenewRequest,
};
use tonic::{Request, Status};

use crate::cluster::{CALL_WITHIN, Node};

/// An instance as small as it may be.
pub(crate) fn spec(service: &str, id: &str) -> InstanceSpec {
    let endpoints = [("http".to_owned(), format!("http://{id}.example:8080"))];
    let (service, id) = (service.to_owned(), id.to_owned());
    InstanceSpec { service, id, endpoints: endpoints.into(), ..InstanceSpec::default() }
}

/// A registration of one instance; incarnation 0 leaves the choice to the server.
pub(crate) fn registration(
    service: &str,
    id: &str,
    ttl: Duration,
    incarnation: u64,
) -> RegisterRequest {
    let ttl_ms = u64::try_from(ttl.as_millis()).unwrap();
    let instances = vec![spec(service, id)];
    RegisterRequest { instances, ttl_ms, incarnation, ..RegisterRequest::default() }
}

/// A call whose caller waits so long.
pub(crate) fn with_deadline<T>(message: T, within: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(within);
    request
}

impl Node {
    pub(crate) async fn register(
        &self,
        service: &str,
        id: &str,
        ttl: Duration,
    ) -> Result<RegisterResponse, Status> {
        let request = with_deadline(registration(service, id, ttl, 0), CALL_WITHIN);
        Ok(self.registry().register(request).await?.into_inner())
    }

    /// The same with a deadline of the caller's.
    pub(crate) async fn register_within(
        &self,
        service: &str,
        id: &str,
        within: Duration,
    ) -> Result<RegisterResponse, Status> {
        let request = registration(service, id, Duration::from_secs(60), 0);
        let request = with_deadline(request, within);
        Ok(self.registry().register(request).await?.into_inner())
    }

    pub(crate) async fn renew(&self, lease_id: u64) -> Result<(), Status> {
        let request = RenewRequest { renewals: vec![LeaseRenewal { lease_id }], ..<_>::default() };
        self.registry().renew(with_deadline(request, CALL_WITHIN)).await?;
        Ok(())
    }

    pub(crate) async fn deregister(
        &self,
        service: &str,
        id: &str,
        incarnation: u64,
    ) -> Result<DeregisterResponse, Status> {
        let (service, id) = (service.to_owned(), id.to_owned());
        let instances = vec![InstanceRef { service, id, incarnation }];
        let request = DeregisterRequest { instances, ..DeregisterRequest::default() };
        let request = with_deadline(request, CALL_WITHIN);
        Ok(self.registry().deregister(request).await?.into_inner())
    }
}
