//! Health checks: from the wire, with their defaults, and back.

use std::fmt::Display;

use quorate_proto::v1 as wire;
use quorate_proto::v1::health_check::Kind;
use quorate_state::{CheckKind, Health, HealthCheck, Instance, Invalid, limits};

/// The checks of one instance; `field` is what errors call it.
pub(super) fn checks(
    field: impl Display + Copy,
    checks: Vec<wire::HealthCheck>,
) -> Result<Vec<HealthCheck>, Invalid> {
    let converted = checks
        .into_iter()
        .enumerate()
        .map(|(index, check)| check_from_wire(format_args!("{field}.checks[{index}]"), check));
    converted.collect()
}

fn check_from_wire(
    field: impl Display + Copy,
    check: wire::HealthCheck,
) -> Result<HealthCheck, Invalid> {
    let kind = match check.kind {
        Some(Kind::Http(http)) if http.path.is_empty() => CheckKind::Http { path: "/".into() },
        Some(Kind::Http(http)) => CheckKind::Http { path: http.path.into() },
        Some(Kind::Tcp(wire::TcpCheck {})) => CheckKind::Tcp,
        Some(Kind::Grpc(grpc)) => CheckKind::Grpc { service: grpc.service.into() },
        None => {
            let limit = "must be http, tcp or grpc";
            return Err(Invalid::text(format!("{field}.kind"), "", limit));
        }
    };
    let or = |value: u32, default: u32| if value == 0 { default } else { value };
    let interval_ms = or(check.interval_ms, limits::CHECK_INTERVAL_DEFAULT_MS);
    Ok(HealthCheck {
        kind,
        endpoint: check.endpoint.into(),
        interval_ms,
        timeout_ms: or(check.timeout_ms, limits::CHECK_TIMEOUT_DEFAULT_MS.min(interval_ms)),
        failures_before_critical: or(
            check.failures_before_critical,
            limits::CHECK_FAILURES_DEFAULT,
        ),
        successes_before_passing: or(
            check.successes_before_passing,
            limits::CHECK_SUCCESSES_DEFAULT,
        ),
    })
}

pub(super) fn checks_to_wire(instance: &Instance) -> Vec<wire::HealthCheck> {
    instance.checks().map_or_else(Vec::new, |checks| checks.iter().map(check_to_wire).collect())
}

fn check_to_wire(check: &HealthCheck) -> wire::HealthCheck {
    let kind = match &check.kind {
        CheckKind::Http { path } => Kind::Http(wire::HttpCheck { path: path.to_string() }),
        CheckKind::Tcp => Kind::Tcp(wire::TcpCheck {}),
        CheckKind::Grpc { service } => Kind::Grpc(wire::GrpcCheck { service: service.to_string() }),
    };
    wire::HealthCheck {
        kind: Some(kind),
        endpoint: check.endpoint.to_string(),
        interval_ms: check.interval_ms,
        timeout_ms: check.timeout_ms,
        failures_before_critical: check.failures_before_critical,
        successes_before_passing: check.successes_before_passing,
    }
}

pub(super) fn health_to_wire(instance: &Instance) -> i32 {
    let health = match instance.health() {
        None => wire::Health::Unspecified,
        Some(Health::Unknown) => wire::Health::Unknown,
        Some(Health::Passing) => wire::Health::Passing,
        Some(Health::Critical) => wire::Health::Critical,
    };
    health.into()
}
