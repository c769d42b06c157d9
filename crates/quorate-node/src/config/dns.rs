//! What a node answers by DNS, and to whom: DNS knows no tokens.

use serde::Deserialize;

use crate::config::{Config, ConfigError, Networks, check};

/// Answers by DNS. In the configuration file: the table `[dns]`. Without `dns_listen` it does
/// nothing.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dns {
    /// The domain below which names are answered. Default `quorate.`; the same on every node.
    pub domain: String,
    /// The networks that may ask, in CIDR notation; others are refused. Default: this machine.
    pub allow: Networks,
    /// The namespaces that are answered for; others are refused. Default: all.
    pub namespaces: Vec<String>,
    /// The zone of this node's clients: SRV records of its instances come first. Default: none, and
    /// all instances are equal.
    pub zone: String,
    /// What a service gets whose instances all fail their health checks: `empty` or `serve`, which
    /// tells all of them. Default `empty`.
    pub all_failing: AllFailing,
}

/// What a service gets whose instances all fail their health checks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AllFailing {
    /// Nothing.
    #[default]
    Empty,
    /// All of them.
    Serve,
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            domain: "quorate.".to_owned(),
            allow: Networks::default(),
            namespaces: Vec::new(),
            zone: String::new(),
            all_failing: AllFailing::default(),
        }
    }
}

impl Config {
    /// Who may ask is said by network: DNS has no tokens.
    pub(super) fn validate_dns(&self) -> Result<(), ConfigError> {
        let Dns { domain, allow, namespaces, .. } = &self.dns;
        if let Err(error) = quorate_dns::Settings::new(domain) {
            check("dns.domain", domain, false, error.to_string())?;
        }
        for name in namespaces {
            let known = quorate_state::Namespace::new("dns.namespaces", name);
            check("dns.namespaces", name, known.is_ok(), "must be names of namespaces")?;
        }
        let Some(listen) = self.dns_listen else { return Ok(()) };
        check(
            "dns_listen",
            listen,
            listen.ip().is_loopback() || !allow.is_empty(),
            "other machines reach that, and DNS knows no tokens: name the networks that may ask \
             (--dns-allow 10.0.0.0/8)",
        )
    }
}
