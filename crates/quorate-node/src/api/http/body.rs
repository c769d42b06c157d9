//! The bodies of requests. What they do not know is refused.

use std::collections::BTreeMap;

use quorate_proto::v1::{
    GrpcCheck, HealthCheck, HttpCheck, InstanceOverride, InstanceRef, InstanceSpec, LeaseRenewal,
    Metadata, RegisterRequest, RenewRequest, RequestId, SetOverrideRequest, TcpCheck,
    UpdateRequest, health_check,
};
use quorate_state::limits;
use serde::Deserialize;
use utoipa::ToSchema;

use crate::api::http::problem::Problem;
use crate::api::http::{query, schemas};

/// A 64-bit number: digits in a text, or a number.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(try_from = "Digits")]
pub(super) struct Number(pub(super) u64);

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a whole number of up to 64 bits, or its decimal digits as a text")]
enum Digits {
    Number(u64),
    Text(String),
}

impl TryFrom<Digits> for Number {
    type Error = &'static str;

    fn try_from(digits: Digits) -> Result<Self, Self::Error> {
        match digits {
            Digits::Number(number) => Ok(Self(number)),
            Digits::Text(text) => query::number("", &text)
                .map(Self)
                .map_err(|_| "expected decimal digits of a number of up to 64 bits"),
        }
    }
}

/// See `RequestId` in types.proto.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RequestId)]
pub(super) struct GivenRequestId {
    #[schema(schema_with = schemas::digits_or_number)]
    origin: Number,
    #[schema(schema_with = schemas::digits_or_number)]
    number: Number,
    #[serde(default)]
    #[schema(schema_with = schemas::digits_or_number)]
    done_below: Number,
    #[serde(default)]
    age_ms: u64,
}

fn request_id(given: Option<GivenRequestId>) -> Option<RequestId> {
    given.map(|GivenRequestId { origin, number, done_below, age_ms }| RequestId {
        origin: origin.0,
        number: number.0,
        done_below: done_below.0,
        age_ms,
    })
}

/// What a PUT of an instance registers.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Registration {
    #[schema(schema_with = schemas::endpoints)]
    endpoints: BTreeMap<String, String>,
    /// 0: 15,000.
    #[serde(default)]
    #[schema(schema_with = schemas::ttl)]
    ttl_ms: u64,
    /// The same in words, as `30s`.
    #[schema(schema_with = schemas::given_duration, required = false)]
    ttl: Option<String>,
    #[serde(default)]
    #[schema(schema_with = schemas::optional_name)]
    zone: String,
    #[serde(default)]
    #[schema(schema_with = schemas::optional_name)]
    version: String,
    #[schema(schema_with = schemas::given_weight, required = false)]
    weight: Option<u32>,
    #[schema(schema_with = schemas::given_status, required = false)]
    status: Option<String>,
    #[serde(default)]
    #[schema(schema_with = schemas::metadata)]
    metadata: BTreeMap<String, String>,
    #[serde(default)]
    #[schema(schema_with = schemas::tags)]
    tags: Vec<String>,
    #[serde(default)]
    #[schema(schema_with = schemas::requires)]
    requires: Vec<String>,
    #[serde(default)]
    #[schema(schema_with = schemas::load)]
    load: u32,
    #[serde(default)]
    #[schema(max_items = 4)]
    checks: Vec<Check>,
    #[serde(default)]
    #[schema(schema_with = schemas::digits_or_number)]
    incarnation: Number,
    #[serde(default)]
    #[schema(schema_with = schemas::digits_or_number)]
    lease_id: Number,
    #[schema(schema_with = schemas::given_cluster_id, required = false)]
    cluster_id: Option<String>,
    request_id: Option<GivenRequestId>,
}

impl Registration {
    /// # Errors
    /// A word in it is none.
    pub(super) fn request(
        self,
        namespace: String,
        service: String,
        id: String,
    ) -> Result<RegisterRequest, Problem> {
        let checks = self.checks.into_iter().enumerate();
        let checks = checks.map(|(at, check)| check.of(at)).collect::<Result<_, _>>()?;
        let spec = InstanceSpec {
            service,
            id,
            endpoints: self.endpoints,
            zone: self.zone,
            version: self.version,
            weight: self.weight,
            status: status(self.status)?,
            metadata: self.metadata,
            requires: self.requires,
            load: self.load,
            checks,
            tags: self.tags,
        };
        Ok(RegisterRequest {
            namespace,
            instances: vec![spec],
            ttl_ms: span("ttl", self.ttl_ms, self.ttl.as_deref())?,
            incarnation: self.incarnation.0,
            lease_id: self.lease_id.0,
            cluster_id: cluster_id(self.cluster_id)?,
            request_id: request_id(self.request_id),
        })
    }
}

/// One of `http`, `tcp` and `grpc` is to be there.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = GivenCheck)]
struct Check {
    http: Option<HttpKind>,
    tcp: Option<TcpKind>,
    grpc: Option<GrpcKind>,
    #[serde(default)]
    #[schema(schema_with = schemas::optional_name)]
    endpoint: String,
    #[serde(default)]
    #[schema(schema_with = schemas::interval)]
    interval_ms: u32,
    #[schema(schema_with = schemas::given_duration, required = false)]
    interval: Option<String>,
    #[serde(default)]
    #[schema(schema_with = schemas::timeout)]
    timeout_ms: u32,
    #[schema(schema_with = schemas::given_duration, required = false)]
    timeout: Option<String>,
    #[serde(default)]
    #[schema(schema_with = schemas::threshold)]
    failures_before_critical: u32,
    #[serde(default)]
    #[schema(schema_with = schemas::threshold)]
    successes_before_passing: u32,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = GivenHttpCheck)]
struct HttpKind {
    #[serde(default)]
    #[schema(schema_with = schemas::check_path)]
    path: String,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = GivenTcpCheck)]
struct TcpKind {}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = GivenGrpcCheck)]
struct GrpcKind {
    #[serde(default)]
    #[schema(schema_with = schemas::check_service)]
    service: String,
}

impl Check {
    fn of(self, at: usize) -> Result<HealthCheck, Problem> {
        let kind = match (self.http, self.tcp, self.grpc) {
            (Some(HttpKind { path }), None, None) => health_check::Kind::Http(HttpCheck { path }),
            (None, Some(TcpKind {}), None) => health_check::Kind::Tcp(TcpCheck {}),
            (None, None, Some(GrpcKind { service })) => {
                health_check::Kind::Grpc(GrpcCheck { service })
            }
            _ => {
                let must = "must have one of http, tcp and grpc";
                return Err(Problem::wrong(&format!("checks[{at}]"), must));
            }
        };
        let field = |name: &str| format!("checks[{at}].{name}");
        Ok(HealthCheck {
            kind: Some(kind),
            endpoint: self.endpoint,
            interval_ms: span(&field("interval"), self.interval_ms, self.interval.as_deref())?,
            timeout_ms: span(&field("timeout"), self.timeout_ms, self.timeout.as_deref())?,
            failures_before_critical: self.failures_before_critical,
            successes_before_passing: self.successes_before_passing,
        })
    }
}

/// What a PATCH of an instance changes; what is not there stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Changes {
    #[schema(schema_with = schemas::given_status, required = false)]
    status: Option<String>,
    #[schema(schema_with = schemas::given_weight, required = false)]
    weight: Option<u32>,
    /// Replaces all metadata.
    #[schema(schema_with = schemas::given_metadata, required = false)]
    metadata: Option<BTreeMap<String, String>>,
    #[schema(schema_with = schemas::given_load, required = false)]
    load: Option<u32>,
    #[serde(default)]
    #[schema(schema_with = schemas::digits_or_number)]
    incarnation: Number,
    request_id: Option<GivenRequestId>,
}

impl Changes {
    /// # Errors
    /// A word in it is none.
    pub(super) fn request(
        self,
        namespace: String,
        service: String,
        id: String,
    ) -> Result<UpdateRequest, Problem> {
        Ok(UpdateRequest {
            namespace,
            instance: Some(InstanceRef { service, id, incarnation: self.incarnation.0 }),
            status: status(self.status)?,
            weight: self.weight,
            metadata: self.metadata.map(|entries| Metadata { entries }),
            load: self.load,
            request_id: request_id(self.request_id),
        })
    }
}

/// An operator's decision about an instance.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct GivenOverride {
    #[schema(schema_with = schemas::given_status, required = false)]
    status: Option<String>,
    #[schema(schema_with = schemas::given_weight, required = false)]
    weight: Option<u32>,
    #[serde(default)]
    #[schema(schema_with = schemas::reason)]
    reason: String,
    request_id: Option<GivenRequestId>,
}

impl GivenOverride {
    /// # Errors
    /// The status is none.
    pub(super) fn request(self, of: SetOverrideRequest) -> Result<SetOverrideRequest, Problem> {
        let status = status(self.status)?;
        let decided = InstanceOverride { status, weight: self.weight, reason: self.reason };
        let request_id = request_id(self.request_id);
        Ok(SetOverrideRequest { r#override: Some(decided), request_id, ..of })
    }
}

/// The leases that a call renews.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Renewals {
    #[schema(schema_with = schemas::lease_ids)]
    lease_ids: Vec<Number>,
    #[schema(schema_with = schemas::given_cluster_id, required = false)]
    cluster_id: Option<String>,
}

impl Renewals {
    /// # Errors
    /// There are none or too many, or the cluster's id is none.
    pub(super) fn request(self) -> Result<RenewRequest, Problem> {
        let (count, most) = (self.lease_ids.len(), limits::LEASES_PER_CALL);
        if !(1..=most).contains(&count) {
            let limit = format!("must have 1 to {most}");
            return Err(Problem::invalid("lease_ids", &format!("{count} ids"), &limit));
        }
        let leases = self.lease_ids.into_iter();
        Ok(RenewRequest {
            renewals: leases.map(|Number(lease_id)| LeaseRenewal { lease_id }).collect(),
            cluster_id: cluster_id(self.cluster_id)?,
            with_news: false,
        })
    }
}

/// Who is to lead; "0" or nothing: whoever is furthest along.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Transfer {
    #[serde(default)]
    #[schema(schema_with = schemas::digits_or_number)]
    pub(super) to_id: Number,
}

/// A body with nothing in it.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

/// A time that is given in ms, or in words by the field without `_ms`.
fn span<N>(field: &str, ms: N, words: Option<&str>) -> Result<N, Problem>
where
    N: Default + PartialEq + TryFrom<u128>,
{
    let Some(text) = words else { return Ok(ms) };
    if ms != N::default() {
        let limit = format!("may not be given beside {field}_ms");
        return Err(Problem::invalid(field, text, &limit));
    }
    let given = query::duration(field, text)?;
    N::try_from(given.as_millis()).map_err(|_| Problem::invalid(field, text, "is too long"))
}

fn status(word: Option<String>) -> Result<i32, Problem> {
    word.map_or(Ok(0), |word| query::status("status", &word))
}

fn cluster_id(text: Option<String>) -> Result<u64, Problem> {
    text.map_or(Ok(0), |text| query::cluster_id("cluster_id", &text))
}
