//! The API's description: OpenAPI 3.1, at `/openapi.json`. Routes and description are made of one
//! thing, the attributes of the handlers (`routes.rs`); here stands what these have in common: the
//! parameters, by their names, and how anything is refused.

use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    Components, Content, Info, License, OpenApi, Ref, RefOr, Required, ResponseBuilder,
};
use utoipa::{IntoParams, ToSchema};

use crate::api::http::problem::Words;
use crate::api::http::{console, known, schemas, watching};

/// Where routes are.
pub(super) const API: &str = "/api/v1";
pub(super) const SD: &str = "/sd";

/// Where it is.
pub(super) const PLACE: &str = "/openapi.json";

/// How any route may refuse: 404 and 409 are of those that say so themselves.
const REFUSALS: [(&str, &str); 10] = [
    ("400", "The request is wrong; `field` says where, `limit` what it must be."),
    ("401", "No credential, or one that proves nothing."),
    ("403", "The caller may not, or a page of another origin asks."),
    ("408", "The body did not arrive in time."),
    ("413", "The body is larger than 1 MiB."),
    ("415", "The body is not `application/json`."),
    (
        "429",
        "Too much is under way: again after `Retry-After`; without that, for less or elsewhere.",
    ),
    ("500", "A fault of the node."),
    ("503", "No leader, no quorum, or the node stops; again after `Retry-After`, or elsewhere."),
    ("504", "The deadline of the call is over; a write may have been made."),
];
const MORE_REFUSALS: [(&str, &str); 2] = [
    ("404", "There is no such thing."),
    ("409", "A newer incarnation holds the instance, or the state does not allow it."),
];

/// A set of parameters, by their names.
macro_rules! parameters {
    ($($(#[$doc:meta])* $set:ident: $($name:literal)*;)*) => {
        $(
            $(#[$doc])*
            pub(super) struct $set;

            impl IntoParams for $set {
                fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
                    vec![$(parameter($name, false)),*]
                }
            }
        )*
    };
}

parameters! {
    /// How fresh an answer is.
    Fresh: "consistency" "min_revision";
    Page: "limit" "after";
    Prefix: "prefix";
    /// Which instances.
    Filters: "status" "tag" "zone";
    Targets: "namespace" "prefix" "endpoint" "max_age";
    Waiting: "index" "wait" "if-none-match";
    OverridePage: "limit" "after_service" "after_id";
    Watched: "service" "prefix" "status" "tag" "zone" "from" "last-event-id";
    LocalOnly: "local_only";
    Incarnation: "incarnation";
    OfCluster: "cluster_id";
    /// The `RequestId` of a write whose route takes no body.
    OfWrite: "request_origin" "request_number" "request_done_below" "request_age_ms";
}

/// One name means one thing, on all routes.
fn parameter(name: &str, is_path: bool) -> Parameter {
    use schemas::U32;
    let position = "A revision, alone or behind its cluster's id: `CLUSTER-REVISION`.";
    let page = "What `next` of the page before said";
    let (schema, description) = match name {
        "ns" => (schemas::name(), "The namespace."),
        "service" if is_path => (schemas::name(), "The service."),
        "service" => (schemas::many(schemas::name()), "The services, at most 1,000; or a prefix."),
        "id" => (schemas::name(), "The instance."),
        "lease_id" => (schemas::lease_id(), "As the registration said."),
        "consistency" => {
            let words = schemas::words(&["linearizable", "local"]);
            (words, "`local`: what this node has, without asking the leader.")
        }
        "min_revision" => (schemas::position(), position),
        "limit" => (schemas::number(0, U32), "In one answer, at most; 0: as many as it takes."),
        "after" => (schemas::any_text(), page),
        "after_service" | "after_id" => (schemas::name(), page),
        "prefix" => (schemas::prefix(), "Of the names of services."),
        "status" => (schemas::many(schemas::status()), "Instances of one of these alone."),
        "tag" => (schemas::many(schemas::tag()), "Instances with all of these alone."),
        "zone" => (schemas::many(schemas::name()), "Instances in one of these alone."),
        "index" => (schemas::position(), "The `index` of the answer before: wait for a change."),
        "wait" => {
            let about = "For so long, 5m unless it says, 10m at most.";
            (schemas::duration(), about)
        }
        "namespace" => (schemas::optional_name(), "\"default\" unless it says."),
        "endpoint" => (schemas::optional_name(), "The one of this name alone; else each of them."),
        "max_age" => {
            let about = "Refuse to tell what may be older, 1h unless it says.";
            (schemas::duration(), about)
        }
        "timeout" => {
            let about = "How long the caller waits, 60s at most.";
            (schemas::some_duration(), about)
        }
        "from" => {
            let about = "The id of the last event that came; `oldest`: all that the node has.";
            (schemas::begin(), about)
        }
        "last-event-id" => (schemas::position(), "The id of the last event that came."),
        "if-none-match" => (schemas::any_text(), "The `ETag` of what is there."),
        "local_only" => (schemas::words(&["true", "false"]), "Do not ask the other members."),
        "incarnation" => (schemas::digits(), "Refuse where a newer one holds it."),
        "cluster_id" => (schemas::cluster_id(), "Refuse if it is another one."),
        "request_origin" => (schemas::digits(), "The `origin` of the write's `RequestId`."),
        "request_number" => (schemas::digits(), "Its `number`: the same in each attempt."),
        "request_done_below" => (schemas::digits(), "Its `done_below`."),
        "request_age_ms" => (schemas::digits(), "Its `age_ms`: since the first attempt."),
        _ => unreachable!("invariant: each parameter has its words here"),
    };
    let place = match name {
        _ if is_path => ParameterIn::Path,
        "if-none-match" | "last-event-id" => ParameterIn::Header,
        _ => ParameterIn::Query,
    };
    let required = if is_path { Required::True } else { Required::False };
    let parameter = ParameterBuilder::new().name(name).parameter_in(place).required(required);
    parameter.schema(Some(schema)).description(Some(description)).build()
}

/// The description, of what the attributes of the handlers say.
fn described(routes: [(&str, OpenApi); 2]) -> OpenApi {
    let mut info = Info::new("Quorate", env!("CARGO_PKG_VERSION"));
    info.description = Some("A service registry; docs/http.md says how it is used.".to_owned());
    info.license = Some(License::new("Apache-2.0"));
    let mut described = OpenApi::new(info, utoipa::openapi::Paths::new());
    for (at, routes) in routes {
        described = described.nest(at, routes);
    }
    for (path, item) in &mut described.paths.paths {
        for operation in operations(item) {
            complete(path, operation);
        }
    }
    let components = described.components.get_or_insert_with(Components::new);
    // No route has them for the whole of an answer.
    add::<Words>(components);
    add::<watching::Snapshot>(components);
    add::<watching::Changes>(components);
    add::<watching::Leader>(components);
    for (status, what) in REFUSALS.iter().chain(&MORE_REFUSALS) {
        let response = ResponseBuilder::new().description(*what);
        let problem = || Content::new(Some(Ref::from_schema_name("Problem")));
        let response = response.content("application/problem+json", problem());
        components.responses.insert((*status).to_owned(), response.build().into());
    }
    let token = HttpBuilder::new().scheme(HttpAuthScheme::Bearer);
    let token = token.description(Some("Of the access file, or a JWT.")).build();
    components.add_security_scheme("token", SecurityScheme::Http(token));
    let certificate = Some("Of a client, where the node has a CA for clients.".to_owned());
    let certificate =
        SecurityScheme::MutualTls { description: certificate, deprecated: None, extensions: None };
    components.add_security_scheme("certificate", certificate);
    let by = |name: &str| SecurityRequirement::new(name, Vec::<String>::new());
    // Without an access file, a node asks nobody.
    described.security = Some(vec![SecurityRequirement::default(), by("token"), by("certificate")]);
    described
}

/// With all that is in it.
fn add<T: ToSchema>(components: &mut Components) {
    let mut schemas = vec![(T::name().into_owned(), T::schema())];
    T::schemas(&mut schemas);
    components.schemas.extend(schemas);
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let methods = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch];
    methods.into_iter().flatten()
}

/// What the path says, and what holds for all.
fn complete(path: &str, operation: &mut Operation) {
    let names = path.split(['{', '}']).skip(1).step_by(2);
    let mut parameters: Vec<_> = names.map(|name| RefOr::T(parameter(name, true))).collect();
    parameters.extend(operation.parameters.take().unwrap_or_default());
    parameters.push(RefOr::T(parameter("timeout", false)));
    operation.parameters = Some(parameters);
    let responses = &mut operation.responses.responses;
    for (status, response) in responses.iter_mut() {
        match (MORE_REFUSALS.iter().any(|(more, _)| more == status), response) {
            (true, response) => *response = Ref::from_response_name(status).into(),
            (false, RefOr::T(response)) if response.description.is_empty() => {
                response.description = "Done.".to_owned();
            }
            _ => {}
        }
    }
    for (status, _) in REFUSALS {
        responses.insert(status.to_owned(), Ref::from_response_name(status).into());
    }
}

/// The description as it is sent: the same for all, and until the program is another one.
pub(super) struct Document {
    text: String,
    tag: String,
    operations: Vec<(&'static str, String)>,
}

impl Document {
    pub(super) fn of(routes: [(&str, OpenApi); 2]) -> Self {
        let described = described(routes);
        let text = described.to_json().expect("invariant: texts and numbers can be written");
        let operations = described.paths.paths.iter().flat_map(|(path, item)| {
            let methods = [
                ("GET", &item.get),
                ("PUT", &item.put),
                ("POST", &item.post),
                ("DELETE", &item.delete),
                ("PATCH", &item.patch),
            ];
            let there = methods.into_iter().filter(|(_, operation)| operation.is_some());
            there.map(|(method, _)| (method, path.clone()))
        });
        Self { tag: console::tag(&text), text, operations: operations.collect() }
    }

    /// Methods and paths.
    pub(super) fn operations(&self) -> &[(&'static str, String)] {
        &self.operations
    }

    /// Nothing of it is of this cluster: it takes no credential.
    pub(super) fn answer(&self, headers: &HeaderMap) -> Response {
        let common = [
            (CACHE_CONTROL, "no-cache"),
            (ETAG, self.tag.as_str()),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ];
        if known::is_known(headers, &self.tag, true) {
            return (StatusCode::NOT_MODIFIED, common).into_response();
        }
        (common, [(CONTENT_TYPE, "application/json")], self.text.clone()).into_response()
    }
}
