//! What reads.

use std::pin::pin;
use std::time::Duration;

use axum::extract::State;
use axum::http::header::ETAG;
use axum::http::{HeaderValue, StatusCode};
use axum::response::IntoResponse;
use prost::Message as _;
use quorate_proto::encoded::v1::EncodedFetchResponse;
use quorate_proto::encoded::v1::admin_server::Admin as _;
use quorate_proto::encoded::v1::registry_server::Registry as _;
use quorate_proto::v1::{
    FetchRequest, InspectServiceRequest, InstanceName, ListDependentsRequest,
    ListDependentsResponse, ListMembersRequest, ListOverridesRequest, ListOverridesResponse,
    ListServicesRequest, ListServicesResponse, Service, StatusRequest,
};
use quorate_state::{Namespace, Revision, ServiceKey, ServiceName};
use serde::Serialize;
use tokio::time::{Instant, timeout_at};
use tonic::{Response, Status};
use utoipa::ToSchema;

use crate::access;
use crate::api::grpc::{self, door::Method};
use crate::api::http::asked::Asked;
use crate::api::http::described::{Filters, Fresh, LocalOnly, OverridePage, Page, Prefix, Waiting};
use crate::api::http::door::{self, NOBODY, Refused};
use crate::api::http::json::Json;
use crate::api::http::known::{form, place};
use crate::api::http::large;
use crate::api::http::problem::Problem;
use crate::api::http::query::Position;
use crate::api::http::routes::{Answered, Api};
use crate::api::http::shown::{
    Header, ShownInstance, ShownMember, ShownOverride, ShownService, ShownSummary,
};
use crate::api::http::shown_inspection::Inspection;
use crate::api::http::shown_status::ShownStatus;
use crate::api::http::watching;
use crate::applied::readers::Reader;
use crate::error::CallError;
use crate::wall;

#[derive(Debug, Serialize, ToSchema)]
struct Services {
    header: Header,
    services: Vec<ShownSummary>,
    /// Not empty: there are more; ask again with `after` set to this.
    next: String,
}

/// The services of a namespace.
#[utoipa::path(
    get,
    path = "/namespaces/{ns}/services",
    params(Prefix, Page, Fresh),
    responses((status = 200, body = Services))
)]
pub(super) async fn services(State(api): State<Api>, mut asked: Asked) -> Answered {
    let query = &mut asked.query;
    let min = query.position("min_revision")?;
    let request = ListServicesRequest {
        prefix: query.text("prefix")?.unwrap_or_default(),
        limit: query.number("limit")?,
        after: query.text("after")?.unwrap_or_default(),
        consistency: query.consistency()?,
        min_revision: min.revision,
        cluster_id: min.cluster_id,
        namespace: asked.path("ns"),
    };
    asked.query.done()?;
    let answer = api.registry.list_services(asked.call(request)).await?;
    let show = |answer: ListServicesResponse| Services {
        header: Header::of(answer.header),
        services: answer.services.into_iter().map(ShownSummary::from).collect(),
        next: answer.next,
    };
    large::json(&api, &asked, answer, show).await
}

#[derive(Debug, Serialize, ToSchema)]
struct OneService {
    header: Header,
    service: ShownService,
    /// Not empty: there are more instances; ask again with `after` set to this.
    next: String,
    /// What `index` waits for a change after.
    index: String,
}

/// A service with its instances; with `index`, once it has changed.
#[utoipa::path(
    get,
    path = "/namespaces/{ns}/services/{service}",
    params(Filters, Page, Fresh, Waiting),
    responses(
        (status = 200, body = OneService, headers(("etag" = String))),
        (status = 304, description = "What `If-None-Match` names is there still.", headers(("etag" = String)))
    )
)]
pub(super) async fn service(State(api): State<Api>, mut asked: Asked) -> Answered {
    let query = &mut asked.query;
    let min = query.position("min_revision")?;
    let request = FetchRequest {
        statuses: query.statuses()?,
        tags: query.all("tag"),
        zones: query.all("zone"),
        limit: query.number("limit")?,
        after: query.text("after")?.unwrap_or_default(),
        consistency: query.consistency()?,
        min_revision: min.revision,
        cluster_id: min.cluster_id,
        namespace: asked.path("ns"),
        services: vec![asked.path("service")],
        ..FetchRequest::default()
    };
    let wanted = watching::wanted(&mut asked.query)?;
    asked.query.done()?;
    let form = form(&request);
    let waits = wanted.and_then(|wanted| Some((wanted.since(&api.node)?, wanted.wait)));
    let since = waits.map(|(since, _)| Revision(since.revision));
    let (answer, head) = match waits {
        Some((since, wait)) => once_changed(&api, &asked, request, since, wait).await?,
        None => fetch(&api, &asked, request).await?,
    };
    let header = answer.get_ref().header.as_ref();
    let place = place(&api.node.applied().registry(), header, head.revision, (since, form));
    let tag = HeaderValue::from_str(&place.etag).expect("invariant: digits are a header's value");
    if place.is_known(&asked.headers) {
        return Ok((StatusCode::NOT_MODIFIED, [(ETAG, tag)]).into_response());
    }
    let show = |answer: EncodedFetchResponse| {
        let service = answer.services.into_iter().next().unwrap_or_default();
        let service = Service::decode(service).expect(OWN);
        let (header, next) = (Header::of(answer.header), answer.next);
        OneService { header, service: service.into(), next, index: place.index }
    };
    let mut response = large::json(&api, &asked, answer, show).await?;
    response.headers_mut().insert(ETAG, tag);
    Ok(response)
}

/// The same once the service has changed, or the time is over, that of the caller included. A node
/// that is behind the caller catches up first.
async fn once_changed(
    api: &Api,
    asked: &Asked,
    request: FetchRequest,
    since: Position,
    wait: Duration,
) -> Result<Fetched, Problem> {
    // Who may not is told so, however many are under way.
    asked.check_ahead(api, Method::Fetch, request.clone())?;
    let _long = api.long()?;
    let Position { cluster_id, revision } = since;
    let since = Revision(revision);
    let namespace = Namespace::new("namespace", &request.namespace).map_err(CallError::from)?;
    let name = ServiceName::new("service", &request.services[0]).map_err(CallError::from)?;
    let key = ServiceKey { namespace, name };
    // One without a cluster is of any.
    let counts = [0, cluster_id].contains(&request.cluster_id);
    let min = if counts { request.min_revision } else { 0 };
    let request = FetchRequest { cluster_id, min_revision: min.max(revision), ..request };
    let until = Instant::now() + wait;
    let until = asked.left().map_or(until, |left| until.min(grpc::door::deadline_in(left)));
    let reader = Reader::begin(api.node.applied(), key.clone());
    let mut nothing_comes = pin!(grpc::nothing_comes(&api.node));
    loop {
        // Each time by the one door: its right may have ended meanwhile.
        let fetched = fetch(api, asked, request.clone()).await?;
        let ends = api.node.stop().is_cancelled() || asked.line.leaving().is_cancelled();
        let over = ends || Instant::now() >= until;
        let registry = api.node.applied().registry();
        if watching::is_other(&registry, fetched.1.revision, since) || over {
            return Ok(fetched);
        }
        let mut moved = pin!(watching::moved(&api.node, &asked.line, &reader, &key, since));
        loop {
            let look = until.min(Instant::now() + LOOK_AGAIN);
            let woken = tokio::select! {
                woken = timeout_at(look, &mut moved) => woken.is_ok(),
                error = &mut nothing_comes => return Err(Status::from(error).into()),
            };
            if woken {
                break;
            }
            asked.check_ahead(api, Method::Fetch, request.clone())?;
            if Instant::now() >= until {
                break;
            }
        }
    }
}

/// A caller that waits and has lost its right is told after this at the latest.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

type Fetched = (Response<EncodedFetchResponse>, Head);

/// What `Service` of the contract begins with: read without its instances, which may be many.
#[derive(Clone, PartialEq, prost::Message)]
struct Head {
    #[prost(uint64, tag = "4")]
    revision: u64,
}

const OWN: &str = "invariant: this node has encoded it";

/// The one service that a request names.
async fn fetch(api: &Api, asked: &Asked, request: FetchRequest) -> Result<Fetched, Problem> {
    let answer = api.registry.fetch(asked.call(request)).await?;
    let service = answer.get_ref().services.first().cloned().unwrap_or_default();
    Ok((answer, Head::decode(service).expect(OWN)))
}

#[derive(Debug, Serialize, ToSchema)]
struct OneInstance {
    header: Header,
    instance: ShownInstance,
}

/// One instance.
#[utoipa::path(
    get,
    path = "/namespaces/{ns}/services/{service}/instances/{id}",
    params(Fresh),
    responses((status = 200, body = OneInstance), (status = 404))
)]
pub(super) async fn instance(State(api): State<Api>, mut asked: Asked) -> Answered {
    let query = &mut asked.query;
    let min = query.position("min_revision")?;
    let request = FetchRequest {
        consistency: query.consistency()?,
        min_revision: min.revision,
        cluster_id: min.cluster_id,
        namespace: asked.path("ns"),
        services: vec![asked.path("service")],
        ..FetchRequest::default()
    };
    asked.query.done()?;
    let id = asked.path("id");
    let answer = api.registry.fetch_instance(asked.call(request), &id).await?;
    let (header, Some(found)) = answer.into_inner() else {
        return Err(Problem::not_found(format!(
            "no instance {id:?} of this service is registered"
        )));
    };
    let shown = OneInstance { header: Header::of(header), instance: found.into() };
    Ok(Json(shown).into_response())
}

#[derive(Debug, Serialize, ToSchema)]
struct Instances {
    header: Header,
    instances: Vec<ShownInstance>,
    /// Not empty: there are more; ask again with `after` set to this.
    next: String,
}

/// The instances that require this service.
#[utoipa::path(
    get,
    path = "/namespaces/{ns}/services/{service}/dependents",
    params(Page, Fresh),
    responses((status = 200, body = Instances))
)]
pub(super) async fn dependents(State(api): State<Api>, mut asked: Asked) -> Answered {
    let query = &mut asked.query;
    let min = query.position("min_revision")?;
    let request = ListDependentsRequest {
        limit: query.number("limit")?,
        after: query.text("after")?.unwrap_or_default(),
        consistency: query.consistency()?,
        min_revision: min.revision,
        cluster_id: min.cluster_id,
        namespace: asked.path("ns"),
        service: asked.path("service"),
    };
    asked.query.done()?;
    let answer = api.registry.list_dependents(asked.call(request)).await?;
    let show = |answer: ListDependentsResponse| Instances {
        header: Header::of(answer.header),
        instances: answer.instances.into_iter().map(ShownInstance::from).collect(),
        next: answer.next,
    };
    large::json(&api, &asked, answer, show).await
}

/// What this node alone knows of a service: who watches it here and how far, and, where it leads,
/// how long leases still have.
#[utoipa::path(
    get,
    path = "/namespaces/{ns}/services/{service}/inspection",
    responses((status = 200, body = Inspection))
)]
pub(super) async fn inspection(State(api): State<Api>, asked: Asked) -> Answered {
    asked.query.done()?;
    let (namespace, service) = (asked.path("ns"), asked.path("service"));
    let request = InspectServiceRequest { namespace, service };
    let answer = api.admin.inspect_service(asked.call(request)).await?;
    large::json(&api, &asked, answer, Inspection::from).await
}

#[derive(Debug, Serialize, ToSchema)]
struct Members {
    header: Header,
    members: Vec<ShownMember>,
}

/// The nodes of the cluster.
#[utoipa::path(get, path = "/members", responses((status = 200, body = Members)))]
pub(super) async fn members(State(api): State<Api>, asked: Asked) -> Answered {
    asked.query.done()?;
    let answer = api.registry.list_members(asked.call(ListMembersRequest {})).await?.into_inner();
    let members = answer.members.into_iter().map(ShownMember::from).collect();
    Ok(Json(Members { header: Header::of(answer.header), members }).into_response())
}

/// How the cluster is.
#[utoipa::path(
    get,
    path = "/status",
    params(LocalOnly),
    responses((status = 200, body = ShownStatus))
)]
pub(super) async fn status(State(api): State<Api>, mut asked: Asked) -> Answered {
    let local_only = match asked.query.text("local_only")?.as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(other) => {
            return Err(Problem::invalid("local_only", other, "must be true or false"));
        }
    };
    asked.query.done()?;
    let answer = api.admin.status(asked.call(StatusRequest { local_only })).await?;
    Ok(Json(ShownStatus::from(answer.into_inner())).into_response())
}

#[derive(Debug, Serialize, ToSchema)]
struct Overrides {
    header: Header,
    /// Ordered by service and id.
    overrides: Vec<Overridden>,
    /// There are more; ask again with `after_service` and `after_id` set to these.
    next: Option<Named>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Overridden {
    service: String,
    id: String,
    registered: bool,
    r#override: ShownOverride,
}

#[derive(Debug, Serialize, ToSchema)]
struct Named {
    service: String,
    id: String,
}

/// What operators have decided about instances.
#[utoipa::path(
    get,
    path = "/namespaces/{ns}/overrides",
    params(OverridePage),
    responses((status = 200, body = Overrides))
)]
pub(super) async fn overrides(State(api): State<Api>, mut asked: Asked) -> Answered {
    let query = &mut asked.query;
    let after = match (query.text("after_service")?, query.text("after_id")?) {
        (None, None) => None,
        (service, id) => {
            let (service, id) = (service.unwrap_or_default(), id.unwrap_or_default());
            Some(InstanceName { service, id })
        }
    };
    let limit = query.number("limit")?;
    let request = ListOverridesRequest { namespace: asked.path("ns"), limit, after };
    asked.query.done()?;
    let answer = api.admin.list_overrides(asked.call(request)).await?;
    let show = |answer: ListOverridesResponse| {
        let overrides = answer.overrides.into_iter().map(|found| Overridden {
            service: found.service,
            id: found.id,
            registered: found.registered,
            r#override: found.r#override.unwrap_or_default().into(),
        });
        let overrides = overrides.collect();
        let next = answer.next.map(|InstanceName { service, id }| Named { service, id });
        Overrides { header: Header::of(answer.header), overrides, next }
    };
    large::json(&api, &asked, answer, show).await
}

#[derive(Debug, Serialize, ToSchema)]
struct Me {
    principal: String,
    /// False: this node asks nobody for a credential, and lets everybody do everything.
    checked: bool,
    rights: Vec<Right>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Right {
    /// `read`, `register`, `operator` or `admin`; each has what stands before it.
    role: String,
    /// `null`: all.
    namespace: Option<String>,
    /// Of the names of services.
    prefix: String,
    /// When it ends, s since 1970; `null`: with nothing but a change of the rights.
    until_s: Option<u64>,
}

/// Who calls, and what it may do.
#[utoipa::path(get, path = "/me", responses((status = 200, body = Me)))]
pub(super) async fn me(State(api): State<Api>, asked: Asked) -> Answered {
    asked.query.done()?;
    let access = api.node.access();
    let authorization = match access.is_checked() {
        true => access::authorization(&asked.headers),
        false => Ok(None),
    };
    let known = authorization
        .and_then(|authorization| access.identify(asked.line.certificate(), authorization));
    let principal = known.inspect_err(|unidentified| {
        let why = unidentified.to_string();
        let refused = Refused { route: "GET /api/v1/me", principal: None, code: NOBODY, why: &why };
        door::tell(&api.node, refused, &asked.line, &asked.headers);
    })?;
    let rights = principal.rights(wall::now()).map(|grant| Right {
        role: grant.role.to_string(),
        namespace: grant.namespace.clone(),
        prefix: grant.prefix.clone(),
        until_s: grant.until,
    });
    let rights = rights.collect();
    let (principal, checked) = (principal.name().to_owned(), access.is_checked());
    Ok(Json(Me { principal, checked, rights }).into_response())
}
