//! What changes something.

use axum::body::Body;
use axum::extract::State;
use axum::response::IntoResponse;
use quorate_proto::encoded::v1::admin_server::Admin as _;
use quorate_proto::encoded::v1::registry_server::Registry as _;
use quorate_proto::v1::{
    DeregisterRequest, InstanceRef, InstanceSpec, LeaseRenewal, RegisterRequest, RenewRequest,
    ResponseHeader, SetOverrideRequest, TransferLeaderRequest, TriggerSnapshotRequest,
    UpdateRequest,
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::grpc::door::Method;
use crate::api::http::asked::Asked;
use crate::api::http::body::{Changes, GivenOverride, Nothing, Registration, Renewals, Transfer};
use crate::api::http::described::{Incarnation, OfCluster, OfWrite};
use crate::api::http::json::Json;
use crate::api::http::problem::Problem;
use crate::api::http::query;
use crate::api::http::routes::{Answered, Api};
use crate::api::http::shown::Header;

#[derive(Debug, Serialize, ToSchema)]
struct Registered {
    header: Header,
    lease_id: String,
    /// The TTL that was granted; renew every third of it.
    ttl_ms: u64,
    incarnation: String,
    /// What a later read waits for with `min_revision`.
    revision: String,
}

/// Registers an instance under a lease.
#[utoipa::path(
    put,
    path = "/namespaces/{ns}/services/{service}/instances/{id}",
    request_body = Registration,
    responses((status = 200, body = Registered), (status = 404), (status = 409))
)]
pub(super) async fn register(State(api): State<Api>, asked: Asked, body: Body) -> Answered {
    asked.query.done()?;
    let (namespace, service, id) = named(&asked);
    let instances = vec![InstanceSpec { service, id, ..InstanceSpec::default() }];
    let ahead = RegisterRequest { namespace, instances, ..RegisterRequest::default() };
    asked.check_ahead(&api, Method::Register, ahead)?;
    let (namespace, service, id) = named(&asked);
    let given: Registration = asked.json(&api, body).await?;
    let request = given.request(namespace, service, id)?;
    let answer = api.registry.register(asked.call(request)).await?.into_inner();
    let shown = Registered {
        lease_id: answer.lease_id.to_string(),
        ttl_ms: answer.ttl_ms,
        incarnation: answer.incarnation.to_string(),
        revision: revision(answer.header.as_ref()),
        header: Header::of(answer.header),
    };
    Ok(Json(shown).into_response())
}

/// The answer to a write that says no more than where it stands.
#[derive(Debug, Serialize, ToSchema)]
struct Done {
    header: Header,
    revision: String,
    /// How many instances are gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    removed: Option<u32>,
}

fn done(header: Option<ResponseHeader>, removed: Option<u32>) -> Answered {
    let revision = revision(header.as_ref());
    Ok(Json(Done { header: Header::of(header), revision, removed }).into_response())
}

/// Renews a lease.
#[utoipa::path(
    put,
    path = "/leases/{lease_id}",
    params(OfCluster),
    responses((status = 200, body = Done), (status = 404))
)]
pub(super) async fn renew(State(api): State<Api>, mut asked: Asked, body: Body) -> Answered {
    let cluster_id = cluster_id(&mut asked)?;
    asked.query.done()?;
    let renewals = vec![LeaseRenewal { lease_id: lease_id(&asked)? }];
    let request = RenewRequest { renewals, cluster_id, with_news: false };
    asked.check_ahead(&api, Method::Renew, request.clone())?;
    asked.no_body(&api, body).await?;
    done(api.registry.renew(asked.call(request)).await?.into_inner().header, None)
}

#[derive(Debug, Serialize, ToSchema)]
struct Renewed {
    header: Header,
    revision: String,
    /// Those that are not there any more, or never were: what they kept has to register again.
    unknown_lease_ids: Vec<String>,
}

/// Renews many leases, with one entry of the log.
#[utoipa::path(
    put,
    path = "/leases",
    request_body = Renewals,
    responses((status = 200, body = Renewed), (status = 404))
)]
pub(super) async fn renew_many(State(api): State<Api>, asked: Asked, body: Body) -> Answered {
    asked.query.done()?;
    asked.check_ahead(&api, Method::Renew, RenewRequest::default())?;
    let given: Renewals = asked.json(&api, body).await?;
    let answer = api.registry.renew(asked.call(given.request()?)).await?.into_inner();
    let revision = revision(answer.header.as_ref());
    let unknown_lease_ids = answer.unknown_lease_ids.iter().map(u64::to_string).collect();
    let shown = Renewed { header: Header::of(answer.header), revision, unknown_lease_ids };
    Ok(Json(shown).into_response())
}

/// Removes a lease, and every instance that it keeps.
#[utoipa::path(
    delete,
    path = "/leases/{lease_id}",
    params(OfCluster, OfWrite),
    responses((status = 200, body = Done), (status = 404))
)]
pub(super) async fn end_lease(State(api): State<Api>, mut asked: Asked, body: Body) -> Answered {
    let cluster_id = cluster_id(&mut asked)?;
    let request_id = asked.query.request_id()?;
    asked.query.done()?;
    let lease_id = lease_id(&asked)?;
    let request =
        DeregisterRequest { lease_id, cluster_id, request_id, ..DeregisterRequest::default() };
    asked.check_ahead(&api, Method::Deregister, request.clone())?;
    asked.no_body(&api, body).await?;
    let answer = api.registry.deregister(asked.call(request)).await?.into_inner();
    done(answer.header, Some(answer.removed))
}

/// Removes an instance.
#[utoipa::path(
    delete,
    path = "/namespaces/{ns}/services/{service}/instances/{id}",
    params(Incarnation, OfWrite),
    responses((status = 200, body = Done), (status = 404), (status = 409))
)]
pub(super) async fn deregister(State(api): State<Api>, mut asked: Asked, body: Body) -> Answered {
    let incarnation = asked.query.number("incarnation")?;
    let request_id = asked.query.request_id()?;
    asked.query.done()?;
    let (namespace, service, id) = named(&asked);
    let instances = vec![InstanceRef { service, id, incarnation }];
    let request =
        DeregisterRequest { namespace, instances, request_id, ..DeregisterRequest::default() };
    asked.check_ahead(&api, Method::Deregister, request.clone())?;
    asked.no_body(&api, body).await?;
    let answer = api.registry.deregister(asked.call(request)).await?.into_inner();
    done(answer.header, Some(answer.removed))
}

/// Changes status, weight, metadata or load of an instance.
#[utoipa::path(
    patch,
    path = "/namespaces/{ns}/services/{service}/instances/{id}",
    request_body = Changes,
    responses((status = 200, body = Done), (status = 404), (status = 409))
)]
pub(super) async fn update(State(api): State<Api>, asked: Asked, body: Body) -> Answered {
    asked.query.done()?;
    let (namespace, service, id) = named(&asked);
    let instance = Some(InstanceRef { service, id, incarnation: 0 });
    let ahead = UpdateRequest { namespace, instance, ..UpdateRequest::default() };
    asked.check_ahead(&api, Method::Update, ahead)?;
    let (namespace, service, id) = named(&asked);
    let given: Changes = asked.json(&api, body).await?;
    let request = given.request(namespace, service, id)?;
    done(api.registry.update(asked.call(request)).await?.into_inner().header, None)
}

/// Overrides status or weight of an instance.
#[utoipa::path(
    put,
    path = "/namespaces/{ns}/services/{service}/instances/{id}/override",
    request_body = GivenOverride,
    responses((status = 200, body = Done), (status = 404), (status = 409))
)]
pub(super) async fn set_override(State(api): State<Api>, asked: Asked, body: Body) -> Answered {
    asked.query.done()?;
    let request = undecided(&asked);
    asked.check_ahead(&api, Method::SetOverride, request.clone())?;
    let given: GivenOverride = asked.json(&api, body).await?;
    decide(&api, &asked, given.request(request)?).await
}

/// Clears what an operator has decided about an instance.
#[utoipa::path(
    delete,
    path = "/namespaces/{ns}/services/{service}/instances/{id}/override",
    params(OfWrite),
    responses((status = 200, body = Done), (status = 404), (status = 409))
)]
pub(super) async fn clear_override(
    State(api): State<Api>,
    mut asked: Asked,
    body: Body,
) -> Answered {
    let request_id = asked.query.request_id()?;
    asked.query.done()?;
    let request = SetOverrideRequest { request_id, ..undecided(&asked) };
    asked.check_ahead(&api, Method::SetOverride, request.clone())?;
    asked.no_body(&api, body).await?;
    decide(&api, &asked, request).await
}

fn undecided(asked: &Asked) -> SetOverrideRequest {
    let (namespace, service, id) = named(asked);
    SetOverrideRequest { namespace, service, id, r#override: None, request_id: None }
}

async fn decide(api: &Api, asked: &Asked, request: SetOverrideRequest) -> Answered {
    done(api.admin.set_override(asked.call(request)).await?.into_inner().header, None)
}

#[derive(Debug, Serialize, ToSchema)]
struct Led {
    header: Header,
    /// Who leads now.
    leader_id: String,
}

/// Gives the lead to another node.
#[utoipa::path(
    post,
    path = "/transfer-leader",
    request_body = Option<Transfer>,
    responses((status = 200, body = Led), (status = 409))
)]
pub(super) async fn transfer_leader(State(api): State<Api>, asked: Asked, body: Body) -> Answered {
    asked.query.done()?;
    asked.check_ahead(&api, Method::TransferLeader, TransferLeaderRequest::default())?;
    let to: Transfer = asked.json_if_any(&api, body).await?;
    let request = TransferLeaderRequest { to_id: to.to_id.0 };
    let answer = api.admin.transfer_leader(asked.call(request)).await?.into_inner();
    let leader_id = answer.leader_id.to_string();
    Ok(Json(Led { header: Header::of(answer.header), leader_id }).into_response())
}

#[derive(Debug, Serialize, ToSchema)]
struct Compacted {
    header: Header,
    /// The log index that the snapshot covers.
    snapshot_index: u64,
}

/// Writes a snapshot, and shortens the log.
#[utoipa::path(
    post,
    path = "/snapshot",
    request_body = Nothing,
    responses((status = 200, body = Compacted), (status = 409))
)]
pub(super) async fn snapshot(State(api): State<Api>, asked: Asked, body: Body) -> Answered {
    asked.query.done()?;
    asked.check_ahead(&api, Method::TriggerSnapshot, TriggerSnapshotRequest {})?;
    asked.no_body(&api, body).await?;
    let request = asked.call(TriggerSnapshotRequest {});
    let answer = api.admin.trigger_snapshot(request).await?.into_inner();
    let (header, snapshot_index) = (Header::of(answer.header), answer.snapshot_index);
    Ok(Json(Compacted { header, snapshot_index }).into_response())
}

/// Namespace, service and instance of the path.
fn named(asked: &Asked) -> (String, String, String) {
    (asked.path("ns"), asked.path("service"), asked.path("id"))
}

fn lease_id(asked: &Asked) -> Result<u64, Problem> {
    let text = asked.path("lease_id");
    let id = query::number("lease_id", &text)?;
    match id {
        0 => Err(Problem::invalid("lease_id", &text, "must be at least 1")),
        id => Ok(id),
    }
}

fn cluster_id(asked: &mut Asked) -> Result<u64, Problem> {
    let text = asked.query.text("cluster_id")?;
    text.map_or(Ok(0), |text| query::cluster_id("cluster_id", &text))
}

fn revision(header: Option<&ResponseHeader>) -> String {
    header.map_or(0, |header| header.revision).to_string()
}
