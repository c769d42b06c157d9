//! A caller's identity, and what that allows. Knows no credential: what proves an identity is in
//! the other files of this room.

use std::fmt;

use quorate_log::NodeId;
use serde::Deserialize;

use crate::wall::Seconds;

/// Each may do what the ones before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    Read,
    Register,
    Operator,
    Admin,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Register => "register",
            Self::Operator => "operator",
            Self::Admin => "admin",
        })
    }
}

/// What a call is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach<'a> {
    /// The cluster itself: its members, its snapshots, all that it holds.
    Cluster,
    /// The membership of this node, as far as the node itself may ask for it.
    Member(u64),
    Service {
        namespace: &'a str,
        name: &'a str,
    },
    /// All services of a namespace whose names begin with `prefix`.
    Prefix {
        namespace: &'a str,
        prefix: &'a str,
    },
}

impl fmt::Display for Reach<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster | Self::Member(_) => f.write_str("the cluster"),
            Self::Service { namespace, name } => {
                write!(f, "service {name:?} in namespace {namespace:?}")
            }
            Self::Prefix { namespace, prefix: "" } => {
                write!(f, "all services in namespace {namespace:?}")
            }
            Self::Prefix { namespace, prefix } => {
                write!(f, "all services that begin with {prefix:?} in namespace {namespace:?}")
            }
        }
    }
}

/// One right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) role: Role,
    /// `None`: all.
    pub(crate) namespace: Option<String>,
    /// Of the names of services; "": all.
    pub(crate) prefix: String,
    /// It ends then.
    pub(crate) until: Option<Seconds>,
}

impl Grant {
    fn is_live(&self, now: Seconds) -> bool {
        self.until.is_none_or(|until| now < until)
    }

    fn gives(&self, role: Role, reach: Reach<'_>) -> bool {
        if self.role == Role::Admin {
            return true;
        }
        let (namespace, name) = match reach {
            Reach::Cluster | Reach::Member(_) => return false,
            Reach::Service { namespace, name } => (namespace, name),
            // A name that begins with something longer begins with this, too; never the other way.
            Reach::Prefix { namespace, prefix } => (namespace, prefix),
        };
        let covers = self.namespace.as_deref().is_none_or(|granted| granted == namespace);
        role <= self.role && covers && name.starts_with(&self.prefix)
    }
}

/// A caller whose identity is proved.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Principal {
    /// For logs: what proved it, and its name there. No secret.
    name: String,
    grants: Vec<Grant>,
    /// It is a node of this cluster, by its certificate.
    node: Option<NodeId>,
}

/// A caller may not do this. Tells what it asked for and would need, nothing of what there is.
#[derive(Debug, thiserror::Error)]
#[error("{caller} needs the role {role}{what}")]
pub(crate) struct Denied {
    pub(crate) caller: String,
    pub(crate) role: Role,
    /// " for the service web", or nothing.
    pub(crate) what: String,
}

/// Characters of a caller's name in a log, at most: enough to tell callers apart by the paths that
/// issuers write into a JWT's subject, and a stranger's does not fill the log.
const NAME_MAX: usize = 512;

impl Principal {
    /// `name` may have been chosen by a stranger: it is made fit for a log.
    pub(crate) fn new(kind: &str, name: &str, grants: Vec<Grant>) -> Self {
        let name: String = name.escape_debug().take(NAME_MAX).collect();
        Self { name: format!("{kind}:{name}"), grants, node: None }
    }

    /// Every caller, where there is no access file.
    pub(super) fn anonymous() -> Self {
        let (namespace, prefix, until) = (None, String::new(), None);
        let all = Grant { role: Role::Admin, namespace, prefix, until };
        Self { name: "anonymous".to_owned(), grants: vec![all], node: None }
    }

    pub(crate) fn node(id: NodeId) -> Self {
        Self { node: Some(id), ..Self::new("node", &id.to_string(), Vec::new()) }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether anything of it is left at this time.
    pub(super) fn is_live(&self, now: Seconds) -> bool {
        self.node.is_some() || self.grants.iter().any(|grant| grant.is_live(now))
    }

    /// Its rights at this time.
    pub(crate) fn rights(&self, now: Seconds) -> impl Iterator<Item = &Grant> {
        self.grants.iter().filter(move |grant| grant.is_live(now))
    }

    /// When the next of its rights ends.
    pub(crate) fn next_end(&self, now: Seconds) -> Option<Seconds> {
        self.grants.iter().filter_map(|grant| grant.until).filter(|until| *until > now).min()
    }

    pub(crate) fn may(&self, role: Role, reach: Reach<'_>, now: Seconds) -> bool {
        if let Reach::Member(id) = reach
            && self.node.map(NodeId::get) == Some(id)
        {
            return true;
        }
        self.grants.iter().any(|grant| grant.is_live(now) && grant.gives(role, reach))
    }

    /// Whether it may do this to everything that is registered.
    pub(crate) fn may_all(&self, role: Role, now: Seconds) -> bool {
        let all = |grant: &Grant| {
            let bounded = grant.namespace.is_some() || !grant.prefix.is_empty();
            role <= grant.role && (grant.role == Role::Admin || !bounded)
        };
        self.grants.iter().any(|grant| grant.is_live(now) && all(grant))
    }

    /// The namespaces (`None`: all) and prefixes in which it may do this.
    pub(crate) fn scopes(
        &self,
        role: Role,
        now: Seconds,
    ) -> impl Iterator<Item = (Option<&str>, &str)> {
        let live = self.grants.iter().filter(move |it| it.is_live(now) && role <= it.role);
        live.map(|grant| (grant.namespace.as_deref(), grant.prefix.as_str()))
    }

    /// Whether it may do this to anything at all.
    pub(crate) fn may_some(&self, role: Role, now: Seconds) -> bool {
        self.grants.iter().any(|grant| grant.is_live(now) && role <= grant.role)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What `may` says, word for word: every service that there could be is tried.
    fn naive(grants: &[Grant], role: Role, reach: Reach<'_>, now: Seconds, all: &[String]) -> bool {
        let services = |wanted: &dyn Fn(&str) -> bool, namespace: &str| {
            all.iter().filter(|name| wanted(name)).all(|name| {
                grants.iter().any(|grant| {
                    let begins = name.len() >= grant.prefix.len()
                        && name.as_bytes()[..grant.prefix.len()] == *grant.prefix.as_bytes();
                    let within =
                        grant.namespace.is_none() || grant.namespace == Some(namespace.to_owned());
                    let live = grant.until.is_none() || grant.until > Some(now);
                    live && (grant.role == Role::Admin || (grant.role >= role && within && begins))
                })
            })
        };
        match reach {
            Reach::Cluster | Reach::Member(_) => grants.iter().any(|grant| {
                grant.role == Role::Admin && (grant.until.is_none() || grant.until > Some(now))
            }),
            Reach::Service { namespace, name } => services(&|other| other == name, namespace),
            Reach::Prefix { namespace, prefix } => {
                services(&|other| other.starts_with(prefix), namespace)
            }
        }
    }

    /// All names over these letters, up to this length. One more letter than grants have: no few
    /// prefixes cover all that begins with something.
    fn names() -> Vec<String> {
        let mut names = vec![String::new()];
        for at in 0.. {
            let Some(name) = names.get(at).filter(|name| name.len() < 5).cloned() else { break };
            names.extend(["o", "r", ".", "z"].map(|letter| format!("{name}{letter}")));
        }
        names
    }

    fn roles() -> impl Strategy<Value = Role> {
        prop::sample::select(vec![Role::Read, Role::Register, Role::Operator, Role::Admin])
    }

    fn text() -> impl Strategy<Value = String> {
        "[or.]{0,3}"
    }

    fn grant() -> impl Strategy<Value = Grant> {
        let namespace =
            prop::option::of(prop::sample::select(vec!["a".to_owned(), "b".to_owned()]));
        let until = prop::option::of(0..4_u64);
        (roles(), namespace, text(), until).prop_map(|(role, namespace, prefix, until)| {
            let whole = role == Role::Admin;
            let (namespace, prefix) =
                if whole { (None, String::new()) } else { (namespace, prefix) };
            Grant { role, namespace, prefix, until }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1_024, ..ProptestConfig::default() })]
        #[test]
        fn rights_are_those_of_a_naive_reader(
            grants in prop::collection::vec(grant(), 0..4),
            role in roles(),
            namespace in prop::sample::select(vec!["a", "b", "ab", ""]),
            name in text(),
            now in 0..4_u64,
        ) {
            let all = names();
            let principal = Principal::new("token", "x", grants.clone());
            let prefix = name.as_str();
            for reach in [
                Reach::Cluster,
                Reach::Service { namespace, name: &name },
                Reach::Prefix { namespace, prefix },
            ] {
                let expected = naive(&grants, role, reach, now, &all);
                prop_assert_eq!(principal.may(role, reach, now), expected, "{:?}", reach);
                if principal.may_all(role, now) {
                    prop_assert!(expected || reach == Reach::Cluster);
                }
                if expected {
                    prop_assert!(principal.may_some(role, now) && principal.is_live(now));
                }
            }
        }
    }

    /// CVE-2020-7955, CVE-2019-12291 (Consul): a rule for one name held for others.
    #[test]
    fn a_prefix_gives_what_begins_with_it_and_nothing_that_it_begins_with() {
        let of = |prefix: &str| {
            let (namespace, prefix) = (Some("shop".to_owned()), prefix.to_owned());
            Principal::new(
                "token",
                "x",
                vec![Grant { role: Role::Read, namespace, prefix, until: None }],
            )
        };
        for (granted, name, taken) in [
            ("ord", "orders", true),
            ("orders", "ord", false),
            ("orders", "orders", true),
            ("orders", "Orders", false),
            ("orders.", "orders", false),
            ("orders.", "orders.eu", true),
            ("orders.", "ordersxeu", false),
            ("", "anything", true),
            ("", "", true),
        ] {
            let principal = of(granted);
            let namespace = "shop";
            let service = Reach::Service { namespace, name };
            let prefix = Reach::Prefix { namespace, prefix: name };
            assert_eq!(principal.may(Role::Read, service, 0), taken, "{granted:?} {name:?}");
            assert_eq!(principal.may(Role::Read, prefix, 0), taken, "{granted:?} {name:?}*");
            let elsewhere = Reach::Service { namespace: "sho", name };
            assert!(!principal.may(Role::Read, elsewhere, 0));
            assert!(!principal.may(Role::Register, service, 0));
        }
    }
}
