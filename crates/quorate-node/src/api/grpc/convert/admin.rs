//! What requests of the Admin service touch, where nothing of theirs is converted.

use quorate_proto::v1::{
    AddNodeRequest, BackupRequest, InspectServiceRequest, ListMembersRequest, ListOverridesRequest,
    RemoveNodeRequest, ReplaceNodeRequest, StatusRequest, TransferLeaderRequest,
    TriggerSnapshotRequest, UpgradeAction, UpgradeRequest,
};

use crate::api::grpc::touched::{Touched, Touches, What, node};

/// Its answer may have instances of any service of the namespace, as that of `ListDependents`.
impl Touches for ListOverridesRequest {
    fn touches(&self) -> Touched<'_> {
        Touched::of(&self.namespace, What::Prefix(""))
    }
}

impl Touches for InspectServiceRequest {
    fn touches(&self) -> Touched<'_> {
        Touched::of(&self.namespace, What::Services(vec![&self.service]))
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
