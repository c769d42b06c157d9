//! What each request is about: what its caller needs a right to. A call whose request does not say
//! so does not compile (`door::answer`). Each says it beside its conversion, in `convert.rs`.

use quorate_state::{Incarnation, LeaseId, Op};

use crate::audit::{NAMES_MAX, Subject};
use crate::node::requests::GivenName;

/// See the head of this file.
#[derive(Debug)]
pub(in crate::api) struct Touched<'a> {
    /// As the request has it; empty where it has none.
    namespace: &'a str,
    pub(super) what: What<'a>,
    /// A lease that it names.
    pub(super) lease: Option<LeaseId>,
    /// The run that it registers, where it names one.
    pub(super) incarnation: Option<Incarnation>,
}

#[derive(Debug)]
pub(super) enum What<'a> {
    /// Nothing that has a name, or only leases.
    Nothing,
    /// The cluster itself, with all that it holds; which nodes of it, or what is to be done.
    Cluster(Vec<String>),
    /// The membership of this node.
    Member(u64),
    /// By service and id.
    Instances(Vec<(&'a str, &'a str)>),
    Services(Vec<&'a str>),
    /// All services whose names begin so.
    Prefix(&'a str),
}

/// See the head of this file.
pub(super) trait Touches {
    fn touches(&self) -> Touched<'_>;

    /// The write that it asks for under a lease, and the caller's name for it, if it has both.
    fn write(&self) -> Option<(Op, GivenName)> {
        None
    }
}

impl<'a> Touched<'a> {
    pub(super) fn of(namespace: &'a str, what: What<'a>) -> Self {
        Self { namespace, what, lease: None, incarnation: None }
    }

    /// It names this lease, and registers this run.
    pub(super) fn under(self, lease: Option<LeaseId>, incarnation: Option<Incarnation>) -> Self {
        Self { lease, incarnation, ..self }
    }

    /// As long as a stream has not said more.
    pub(super) fn nothing() -> Self {
        Self::of("", What::Nothing)
    }

    /// What an audit line says of it.
    pub(super) fn subject(&self) -> Subject {
        let cut = |name: String| name.chars().take(NAME_MAX).collect::<String>();
        let (names, count): (Vec<String>, _) = match &self.what {
            What::Instances(names) => {
                let first = names.iter().take(NAMES_MAX);
                (first.map(|(service, id)| format!("{service}/{id}")).collect(), names.len())
            }
            What::Services(names) => {
                let first = names.iter().take(NAMES_MAX);
                (first.map(|name| (*name).to_owned()).collect(), names.len())
            }
            What::Prefix(prefix) => (vec![format!("{prefix}*")], 1),
            What::Member(id) => (vec![node(*id)], 1),
            What::Cluster(names) => (names.clone(), names.len()),
            What::Nothing => (Vec::new(), 0),
        };
        let has_namespace =
            matches!(self.what, What::Instances(_) | What::Services(_) | What::Prefix(_));
        Subject {
            namespace: has_namespace.then(|| cut(self.namespace().to_owned())),
            names: names.into_iter().map(cut).collect(),
            count: (count > 0).then_some(count),
            leases: self.lease.iter().map(|lease| lease.0).collect(),
        }
    }

    /// Empty means "default", as everywhere.
    pub(super) fn namespace(&self) -> &'a str {
        if self.namespace.is_empty() { "default" } else { self.namespace }
    }
}

/// Characters of a name in an audit line, at most: it may be no name at all.
const NAME_MAX: usize = 256;

pub(super) fn node(id: u64) -> String {
    format!("node {id}")
}
