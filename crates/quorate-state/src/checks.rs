//! Health checks: what a process declares of them, and what became of them. Nothing here probes;
//! the outcome comes in commands.

use std::collections::BTreeMap;
use std::fmt::{self, Display};

use serde::{Deserialize, Deserializer, Serialize};

use crate::limits::{self, Invalid};
use crate::record;
use crate::types::{Incarnation, InstanceKey};

/// What a probe does.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum CheckKind {
    /// `GET` of this path; a status of 200 to 299 passes. Only for `http:` endpoints.
    Http {
        /// Begins with `/`.
        path: Box<str>,
    },
    /// A connection passes.
    Tcp,
    /// `grpc.health.v1.Health/Check` of this service; `SERVING` passes. Only for `http:` and
    /// `grpc:` endpoints.
    Grpc {
        /// Empty: the server as a whole.
        service: Box<str>,
    },
}

/// One check of an instance.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HealthCheck {
    /// What a probe does.
    pub kind: CheckKind,
    /// The name of the endpoint that is probed. Empty only before [`Checks::new`]: the instance's
    /// only one.
    pub endpoint: Box<str>,
    /// From the beginning of one probe to that of the next, ms.
    pub interval_ms: u32,
    /// A target that takes longer to answer has failed, ms.
    pub timeout_ms: u32,
    /// The number of failed probes in a row that make it critical.
    pub failures_before_critical: u32,
    /// The number of good probes in a row that make it passing.
    pub successes_before_passing: u32,
}

impl HealthCheck {
    /// The path or the service that it asks for.
    pub fn text(&self) -> &str {
        match &self.kind {
            CheckKind::Http { path: text } | CheckKind::Grpc { service: text } => text,
            CheckKind::Tcp => "",
        }
    }
}

/// The checks of one instance, within their limits: at least one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checks(Box<[HealthCheck]>);

/// What the checks of an instance say, all of them together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Health {
    /// Not probed yet, or nobody probes.
    #[default]
    Unknown,
    /// All checks pass.
    Passing,
    /// At least one check fails.
    Critical,
}

/// Why an instance is critical: one line for people, at most [`limits::HEALTH_REASON_BYTES`] long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HealthReason(Box<str>);

/// What the checks of an instance were found to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Never unknown: then there is no finding.
    pub health: Health,
    /// Why it is critical; `None` where it is not.
    pub reason: Option<HealthReason>,
}

record!(Finding { health } { reason });

/// What the prober found of one run of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthReport {
    /// Which instance.
    pub key: InstanceKey,
    /// Which run of it: another one is not touched.
    pub incarnation: Incarnation,
    /// What was found.
    pub health: Health,
    /// Why it is critical; passed over where it is not.
    pub reason: Option<HealthReason>,
}

record!(HealthReport { key, incarnation, health } { reason });

impl HealthReport {
    pub(crate) fn finding(&self) -> Option<Finding> {
        let health = self.health;
        let reason = self.reason.clone().filter(|_| health == Health::Critical);
        (health != Health::Unknown).then_some(Finding { health, reason })
    }
}

impl HealthReason {
    /// Cut where it is too long. Part of the text may be what a target answered: control characters
    /// are replaced.
    pub fn new(text: &str) -> Self {
        let clean = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
        let mut text: String = text.chars().map(clean).collect();
        if text.len() > limits::HEALTH_REASON_BYTES {
            const MARK: char = '…';
            let room = limits::HEALTH_REASON_BYTES - MARK.len_utf8();
            let end = (0..=room).rev().find(|at| text.is_char_boundary(*at));
            text.truncate(end.unwrap_or(0));
            text.push(MARK);
        }
        Self(text.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Display for HealthReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is over the limit is no reason.
impl<'de> Deserialize<'de> for HealthReason {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<str>::deserialize(deserializer)?;
        if text.len() > limits::HEALTH_REASON_BYTES {
            let limit = format!("at most {} bytes", limits::HEALTH_REASON_BYTES);
            let invalid = Invalid::number("health_reason", text.len(), limit);
            return Err(serde::de::Error::custom(invalid));
        }
        Ok(Self(text))
    }
}

impl Checks {
    /// Checks the checks of an instance with these endpoints; `field` is what errors call it, e.g.
    /// `instances[3]`. `None`: there are none.
    ///
    /// # Errors
    /// Too many, a number out of its limits, or an endpoint that the instance does not have or that
    /// cannot be probed so.
    pub fn new(
        field: impl Display + Copy,
        endpoints: &BTreeMap<String, String>,
        mut checks: Vec<HealthCheck>,
    ) -> Result<Option<Self>, Invalid> {
        if checks.len() > limits::CHECKS {
            let limit = format!("at most {} checks", limits::CHECKS);
            return Err(Invalid::number(format!("{field}.checks"), checks.len(), limit));
        }
        for (index, check) in checks.iter_mut().enumerate() {
            let field = format_args!("{field}.checks[{index}]");
            check_numbers(field, check)?;
            check_kind(field, &check.kind)?;
            settle_endpoint(field, endpoints, check)?;
        }
        Ok((!checks.is_empty()).then(|| Self(checks.into())))
    }

    /// At least one, in the order of the registration.
    pub fn iter(&self) -> impl Iterator<Item = &HealthCheck> {
        self.0.iter()
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

fn check_numbers(field: impl Display + Copy, check: &HealthCheck) -> Result<(), Invalid> {
    let thresholds = (1, limits::CHECK_THRESHOLD);
    for (name, value, (least, most)) in [
        (
            "interval_ms",
            check.interval_ms,
            (limits::CHECK_INTERVAL_MIN_MS, limits::CHECK_INTERVAL_MAX_MS),
        ),
        ("timeout_ms", check.timeout_ms, (limits::CHECK_TIMEOUT_MIN_MS, check.interval_ms)),
        ("failures_before_critical", check.failures_before_critical, thresholds),
        ("successes_before_passing", check.successes_before_passing, thresholds),
    ] {
        if !(least..=most).contains(&value) {
            let why = if name == "timeout_ms" { " (the interval)" } else { "" };
            let limit = format!("must be {least} to {most}{why}");
            return Err(Invalid::number(format!("{field}.{name}"), value, limit));
        }
    }
    Ok(())
}

fn check_kind(field: impl Display + Copy, kind: &CheckKind) -> Result<(), Invalid> {
    let (name, text) = match kind {
        CheckKind::Tcp => return Ok(()),
        CheckKind::Http { path } => ("http.path", path),
        CheckKind::Grpc { service } => ("grpc.service", service),
    };
    let named = format!("{field}.{name}");
    if text.len() > limits::CHECK_TEXT_BYTES {
        let limit = format!("{} bytes long, at most {}", text.len(), limits::CHECK_TEXT_BYTES);
        return Err(Invalid::text(named, text, limit));
    }
    // Nothing that could end the line of a request.
    if !text.chars().all(|c| c.is_ascii_graphic()) {
        return Err(Invalid::text(named, text, "only printable ASCII without spaces is allowed"));
    }
    if matches!(kind, CheckKind::Http { .. }) && !text.starts_with('/') {
        return Err(Invalid::text(named, text, "must begin with /"));
    }
    Ok(())
}

/// Names the endpoint where there is only one, and sees that it can be probed.
fn settle_endpoint(
    field: impl Display + Copy,
    endpoints: &BTreeMap<String, String>,
    check: &mut HealthCheck,
) -> Result<(), Invalid> {
    let named = format!("{field}.endpoint");
    let mut all = endpoints.iter();
    let (name, uri) = match (all.next(), all.next(), &*check.endpoint) {
        (Some(only), None, "") => only,
        (_, _, "") => {
            let limit = "must name one of the instance's endpoints, which has several";
            return Err(Invalid::text(named, "", limit));
        }
        (_, _, wanted) => {
            let limit = "must be the name of one of the instance's endpoints";
            endpoints.get_key_value(wanted).ok_or_else(|| Invalid::text(&*named, wanted, limit))?
        }
    };
    let scheme = uri.split(':').next().unwrap_or_default().to_ascii_lowercase();
    let limit = match (&check.kind, scheme.as_str()) {
        (CheckKind::Http { .. }, "http") | (CheckKind::Grpc { .. }, "http" | "grpc") => None,
        (CheckKind::Tcp, _) => None,
        (CheckKind::Http { .. }, _) => Some("an HTTP check needs an http: endpoint"),
        (CheckKind::Grpc { .. }, _) => Some("a gRPC check needs an http: or grpc: endpoint"),
    };
    let limit = match (limit, host_and_port(uri)) {
        (None, Some(_)) => {
            check.endpoint = name.as_str().into();
            return Ok(());
        }
        (limit, _) => limit.unwrap_or("its URI needs a host and a port to be checked"),
    };
    Err(Invalid::text(format!("{named} {name}"), uri, limit))
}

/// The host and the port of a URI; the port that its scheme implies where it names none. An IPv6
/// address comes without its brackets. `None`: it has no host, or no port.
pub fn host_and_port(uri: &str) -> Option<(&str, u16)> {
    let (scheme, rest) = uri.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let address = authority.rsplit_once('@').map_or(authority, |(_, address)| address);
    let (host, port) = match address.strip_prefix('[') {
        Some(bracketed) => {
            let (host, after) = bracketed.split_once(']')?;
            (host, after.strip_prefix(':').or(after.is_empty().then_some("")))
        }
        None => match address.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (address, Some("")),
        },
    };
    let port = match (port?, scheme.to_ascii_lowercase().as_str()) {
        ("", "http" | "ws") => 80,
        ("", "https" | "wss") => 443,
        (port, _) => port.parse().ok().filter(|port| *port != 0)?,
    };
    (!host.is_empty()).then_some((host, port))
}
