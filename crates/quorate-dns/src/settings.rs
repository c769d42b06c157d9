//! What an answer depends on beside the question and the registry.

use std::net::IpAddr;

use hickory_proto::rr::Name;

/// What stands before the domain in the name of a service: `orders.prod.svc.quorate.`
pub(crate) const SVC: &str = "svc";
/// The same for an address: `0a000007.addr.quorate.` is 10.0.0.7.
pub(crate) const ADDR: &str = "addr";
/// The name server of the domain, and who is in charge of it, below the domain.
pub(crate) const NS: &str = "ns";
const HOSTMASTER: &str = "hostmaster";

/// A domain longer than this leaves too little room for names: bytes.
const DOMAIN_MAX: usize = 100;

/// What a domain cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadDomain {
    /// The root: everything would be below it, the names of others too.
    #[error("must not be the root")]
    Root,
    /// No name of DNS.
    #[error("must be a domain name of a-z 0-9 - in labels of up to 63, in all up to 100 bytes")]
    NoName,
}

/// What a service gets whose instances are all UP and fail their health checks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AllFailing {
    /// An empty answer: none of them can be called.
    #[default]
    Empty,
    /// All of them: perhaps it is the checks that fail.
    Serve,
}

/// What an answer depends on beside the question and the registry.
#[derive(Debug, Clone)]
pub struct Settings {
    pub(crate) domain: Name,
    pub(crate) name_server: Name,
    pub(crate) hostmaster: Name,
    /// How long a resolver may keep an answer, s.
    pub ttl: u32,
    /// Instances of this zone come first in SRV answers; empty: all are equal.
    pub own_zone: String,
    /// See there.
    pub all_failing: AllFailing,
    /// Namespaces that are answered for; empty: all.
    pub namespaces: Vec<String>,
    /// The addresses of the name server; empty: not known.
    pub addresses: Vec<IpAddr>,
}

impl Settings {
    /// For a domain such as `quorate.`, with defaults for all else.
    ///
    /// # Errors
    /// It is the root, or no domain name.
    pub fn new(domain: &str) -> Result<Self, BadDomain> {
        let text = domain.strip_suffix('.').unwrap_or(domain).to_ascii_lowercase();
        if text.is_empty() {
            return Err(BadDomain::Root);
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
        if text.len() > DOMAIN_MAX || !text.chars().all(allowed) {
            return Err(BadDomain::NoName);
        }
        let name = |before: &[&str]| {
            let labels = before.iter().copied().chain(text.split('.')).map(str::as_bytes);
            Name::from_labels(labels).map_err(|_| BadDomain::NoName)
        };
        Ok(Self {
            domain: name(&[])?,
            name_server: name(&[NS])?,
            hostmaster: name(&[HOSTMASTER])?,
            ttl: 5,
            own_zone: String::new(),
            all_failing: AllFailing::default(),
            namespaces: Vec::new(),
            addresses: Vec::new(),
        })
    }

    /// Whether it is for the registry to say if this name exists.
    pub fn is_below_svc(&self, name: &Name) -> bool {
        let svc = Name::from_labels([SVC.as_bytes()]).and_then(|it| it.append_domain(&self.domain));
        svc.is_ok_and(|svc| svc.zone_of(name))
    }

    /// Whether a namespace is answered for.
    pub(crate) fn allows(&self, namespace: &str) -> bool {
        self.namespaces.is_empty() || self.namespaces.iter().any(|allowed| allowed == namespace)
    }
}
