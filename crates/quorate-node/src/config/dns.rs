//! What a node answers by DNS, and to whom: DNS knows no tokens.

use serde::Deserialize;

use crate::config::Networks;

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
