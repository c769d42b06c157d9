//! What a node alone knows of a service, as JSON shows it.

use quorate_proto::v1::{InspectServiceResponse, LeaseLeft, Watcher};
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::http::schemas;
use crate::api::http::shown::Header;

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Inspection {
    header: Header,
    /// 1,000 at most.
    watchers: Vec<ShownWatcher>,
    /// All that there are at this node.
    watchers_in_all: u64,
    /// Whether this node leads: others do not know how long leases have.
    leads: bool,
    /// In the order of the instances' ids, 10,000 at most.
    leases: Vec<ShownLease>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Watcher)]
struct ShownWatcher {
    /// Without the port.
    address: String,
    /// `null`: it follows named services.
    prefix: Option<String>,
    /// Where it began at this node.
    #[schema(schema_with = schemas::digits)]
    since_revision: String,
    /// Everything up to here was handed to its stream.
    #[schema(schema_with = schemas::digits)]
    sent_revision: String,
    /// Changes that wait for it.
    queued: u32,
    /// More wait than are queued.
    behind: bool,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = LeaseLeft)]
struct ShownLease {
    /// The instance.
    id: String,
    #[schema(schema_with = schemas::digits)]
    lease_id: String,
    /// Unless it is renewed.
    left_ms: u64,
}

impl From<InspectServiceResponse> for Inspection {
    fn from(of: InspectServiceResponse) -> Self {
        Self {
            header: Header::of(of.header),
            watchers: of.watchers.into_iter().map(ShownWatcher::from).collect(),
            watchers_in_all: of.watchers_in_all,
            leads: of.leads,
            leases: of.leases.into_iter().map(ShownLease::from).collect(),
        }
    }
}

impl From<Watcher> for ShownWatcher {
    fn from(of: Watcher) -> Self {
        let Watcher { address, prefix, since_revision, sent_revision, queued, behind } = of;
        let [since_revision, sent_revision] =
            [since_revision, sent_revision].map(|it| it.to_string());
        Self { address, prefix, since_revision, sent_revision, queued, behind }
    }
}

impl From<LeaseLeft> for ShownLease {
    fn from(LeaseLeft { id, lease_id, left_ms }: LeaseLeft) -> Self {
        Self { id, lease_id: lease_id.to_string(), left_ms }
    }
}
