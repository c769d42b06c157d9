//! What each request is about: what its caller needs a right to. A call whose request does not say
//! so does not compile (`door::answer`).

use crate::audit::{NAMES_MAX, Subject};
use quorate_proto::v1::{
    AddNodeRequest, BackupRequest, DeregisterRequest, FetchRequest, InstanceRef,
    ListDependentsRequest, ListMembersRequest, ListOverridesRequest, ListServicesRequest,
    RegisterRequest, RemoveNodeRequest, RenewRequest, ReplaceNodeRequest, SetOverrideRequest,
    StatusRequest, TransferLeaderRequest, TriggerSnapshotRequest, UpdateRequest, UpgradeAction,
    UpgradeRequest, WatchSubscribe,
};
use quorate_state::{Op, Share};

use crate::api::grpc::convert;
use crate::node::requests::GivenName;

/// See the head of this file.
#[derive(Debug)]
pub(in crate::api) struct Touched<'a> {
    /// As the request has it; empty where it has none.
    namespace: &'a str,
    pub(super) what: What<'a>,
    /// A lease that it names; 0: none.
    pub(super) lease: u64,
    /// The run that it registers; 0: it names none.
    pub(super) incarnation: u64,
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
    fn of(namespace: &'a str, what: What<'a>) -> Self {
        Self { namespace, what, lease: 0, incarnation: 0 }
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
            leases: (self.lease != 0).then_some(self.lease).into_iter().collect(),
        }
    }

    /// Empty means "default", as everywhere.
    pub(super) fn namespace(&self) -> &'a str {
        if self.namespace.is_empty() { "default" } else { self.namespace }
    }
}

/// Characters of a name in an audit line, at most: it may be no name at all.
const NAME_MAX: usize = 256;

fn node(id: u64) -> String {
    format!("node {id}")
}

fn of_instance(instance: &InstanceRef) -> (&str, &str) {
    (&instance.service, &instance.id)
}

/// Exact names, or, without any, a prefix.
fn selected<'a>(services: &'a [String], prefix: &'a str) -> What<'a> {
    match services {
        [] => What::Prefix(prefix),
        names => What::Services(names.iter().map(String::as_str).collect()),
    }
}

impl Touches for RegisterRequest {
    fn touches(&self) -> Touched<'_> {
        let names = self.instances.iter().map(|spec| (spec.service.as_str(), spec.id.as_str()));
        let what = What::Instances(names.collect());
        let (lease, incarnation) = (self.lease_id, self.incarnation);
        Touched { lease, incarnation, ..Touched::of(&self.namespace, what) }
    }

    fn write(&self) -> Option<(Op, GivenName)> {
        let id = convert::request_id(self.request_id, Share::default())?;
        Some((convert::register(Self { request_id: None, ..self.clone() }).ok()?, id))
    }
}

/// Each lease is looked at by the handler: those that are not the caller's are unknown to it.
impl Touches for RenewRequest {
    fn touches(&self) -> Touched<'_> {
        Touched::nothing()
    }
}

impl Touches for DeregisterRequest {
    fn touches(&self) -> Touched<'_> {
        let what = match self.instances.as_slice() {
            [] => What::Nothing,
            instances => What::Instances(instances.iter().map(of_instance).collect()),
        };
        Touched { lease: self.lease_id, ..Touched::of(&self.namespace, what) }
    }

    fn write(&self) -> Option<(Op, GivenName)> {
        let id = convert::request_id(self.request_id, Share::default())?;
        Some((convert::deregister(Self { request_id: None, ..self.clone() }).ok()?, id))
    }
}

impl Touches for UpdateRequest {
    fn touches(&self) -> Touched<'_> {
        let instance = self.instance.as_ref().map(of_instance);
        Touched::of(&self.namespace, What::Instances(vec![instance.unwrap_or_default()]))
    }
}

impl Touches for FetchRequest {
    fn touches(&self) -> Touched<'_> {
        Touched::of(&self.namespace, selected(&self.services, &self.prefix))
    }
}

impl Touches for WatchSubscribe {
    fn touches(&self) -> Touched<'_> {
        Touched::of(&self.namespace, selected(&self.services, &self.prefix))
    }
}

impl Touches for ListServicesRequest {
    fn touches(&self) -> Touched<'_> {
        Touched::of(&self.namespace, What::Prefix(&self.prefix))
    }
}

/// Its answer may have instances of any service of the namespace, and a list that leaves some out
/// would look like a whole one.
impl Touches for ListDependentsRequest {
    fn touches(&self) -> Touched<'_> {
        Touched::of(&self.namespace, What::Prefix(""))
    }
}

/// As for `ListDependents`.
impl Touches for ListOverridesRequest {
    fn touches(&self) -> Touched<'_> {
        Touched::of(&self.namespace, What::Prefix(""))
    }
}

impl Touches for SetOverrideRequest {
    fn touches(&self) -> Touched<'_> {
        Touched::of(&self.namespace, What::Instances(vec![(&self.service, &self.id)]))
    }
}

/// A node may ask for its own, by its certificate (`--join`).
impl Touches for AddNodeRequest {
    fn touches(&self) -> Touched<'_> {
        Touched::of("", What::Member(self.id))
    }
}

macro_rules! touches {
    ($($request:ident: $what:expr;)*) => {
        $(impl Touches for $request {
            fn touches(&self) -> Touched<'_> {
                let what: fn(&Self) -> What<'static> = $what;
                Touched::of("", what(self))
            }
        })*
    };
}

touches! {
    ListMembersRequest: |_| What::Nothing;
    StatusRequest: |_| What::Nothing;
    RemoveNodeRequest: |it| What::Cluster(vec![node(it.id)]);
    ReplaceNodeRequest: |it| What::Cluster(vec![node(it.old_id), node(it.new_id)]);
    // Without one, the node chooses.
    TransferLeaderRequest: |it| match it.to_id {
        0 => What::Cluster(Vec::new()),
        id => What::Cluster(vec![node(id)]),
    };
    UpgradeRequest: |it| What::Cluster(match it.action() {
        UpgradeAction::Unspecified => Vec::new(),
        UpgradeAction::Finalize => vec!["finalize".to_owned()],
        UpgradeAction::Hold => vec!["hold".to_owned()],
    });
    TriggerSnapshotRequest: |_| What::Cluster(Vec::new());
    BackupRequest: |_| What::Cluster(Vec::new());
}
