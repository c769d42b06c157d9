//! Keeps this node's own membership as it was configured: founds the cluster or asks to be taken
//! in, and reports its addresses.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quorate_log::NodeId;
use tokio::time::Instant;

use crate::config::Start;
use crate::error::RunError;
use crate::net::endpoint;
use crate::node::membership::MembershipCall;
use crate::node::{MemberInfo, Node};
use crate::raft::recall::Reached;
use crate::types::{LogStore, Member};
use crate::upkeep::amnesia::{Outside, Verdict, ask_founders, is_member};

/// A look at the membership this often.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Being taken in may need a snapshot first.
const JOIN_TIMEOUT: Duration = Duration::from_secs(60);

/// A founder that waits for the others asks them this often.
const FOUNDER_EVERY: Duration = Duration::from_millis(50);

/// A founder waits this long for each founder before it.
const FOUNDER_PATIENCE: Duration = Duration::from_millis(500);

/// Brings this node into the cluster, and keeps its addresses in the membership right.
pub(crate) struct MemberLoop {
    node: Arc<Node>,
    log: LogStore,
    start: Start,
    /// The other founders have gone on without this one.
    founds_nothing: bool,
    was_member: bool,
    /// A leader has taken it in, or it has founded the cluster.
    was_of_cluster: bool,
    asked: usize,
    /// The last open change of the members that it told of, by its log index.
    settling: Option<u64>,
}

impl MemberLoop {
    pub(crate) fn new(node: Arc<Node>, log: LogStore, start: Start) -> Self {
        Self {
            was_of_cluster: node.peers().cluster_id().is_some(),
            node,
            log,
            start,
            founds_nothing: false,
            was_member: false,
            asked: 0,
            settling: None,
        }
    }

    pub(crate) async fn run(mut self) -> Result<(), RunError> {
        loop {
            self.look().await?;
            let takes_part = self.node.takes_part();
            tokio::time::sleep(if takes_part { LOOK_EVERY } else { FOUNDER_EVERY }).await;
        }
    }

    async fn look(&mut self) -> Result<(), RunError> {
        self.node.settle_membership(&mut self.settling).await;
        let members = self.node.members();
        let own = members.iter().find(|info| info.id == self.node.id());
        // Taken out, before it started or before it saw itself, or its log does not reach yet to
        // where it was taken in: a leader that has it as a member talks to it.
        let is_unsure = own.is_none() && self.was_of_cluster && !members.is_empty();
        let mut never_was = false;
        match self.node.leadership().leader() {
            // It knows by itself, whoever leads.
            _ if own.is_none() && self.was_member => {}
            Some(_) => self.node.leadership().set_removed(false),
            None if own.is_some() || is_unsure => {
                never_was = self.ask_whether_member(&members).await;
            }
            None => {}
        }
        let own = own.filter(|_| !never_was);
        match own {
            Some(info) if &info.member != self.node.me() => self.announce().await,
            Some(info) if !self.wants_vote(info) => {}
            // Taken out: it does not ask to be taken in again by itself.
            None if self.was_member => {
                if !self.node.leadership().is_removed() {
                    tracing::warn!(id = self.node.id().get(), "this node was removed; stop it");
                }
                self.node.leadership().set_removed(true);
            }
            None if is_unsure => {}
            _ if self.node.leadership().is_removed() => {}
            _ => match &self.start {
                Start::Bootstrap(_) if own.is_none() => {
                    let founders = self.start.founders().unwrap_or_default();
                    self.found(&founders).await?;
                }
                Start::Join { nodes, observer } => {
                    let address = nodes[self.asked % nodes.len()].clone();
                    self.asked += 1;
                    self.was_of_cluster |= self.join(&address, *observer).await;
                }
                Start::Bootstrap(_) | Start::Wait => {}
            },
        }
        self.was_member |= own.is_some() && self.node.was_member_for_sure();
        Ok(())
    }

    fn wants_vote(&self, own: &MemberInfo) -> bool {
        !own.voter && matches!(self.start, Start::Join { observer: false, .. })
    }

    /// No leader talks to this node: it may have been taken out without learning it. True: it is to
    /// go on joining, for it is none, and nobody took it out. The change that was to take it in
    /// stands in its own log alone.
    async fn ask_whether_member(&self, members: &[MemberInfo]) -> bool {
        let as_of = self.node.member_as_of();
        let is_member = is_member(self.node.id(), members, as_of, self.node.peers()).await;
        let Some(is_member) = is_member else { return false };
        let joins = matches!(self.start, Start::Join { .. }) && as_of.is_some();
        if !is_member && joins && !self.node.was_member_for_sure() {
            self.node.leadership().set_removed(false);
            return true;
        }
        if !is_member && !self.node.leadership().is_removed() {
            let id = self.node.id().get();
            tracing::warn!(id, "this node was removed from the cluster; stop it");
        }
        self.node.leadership().set_removed(!is_member);
        false
    }

    async fn announce(&self) {
        let (id, member) = (self.node.id(), self.node.me().clone());
        let call = MembershipCall::Announce { id, member };
        let deadline = Instant::now() + self.node.tunables().request_timeout();
        if let Err(error) = self.node.on_leader(call, deadline, &mut 0).await {
            tracing::debug!(%error, "reporting this node's addresses failed; trying again");
        }
    }

    /// First start of a new cluster: every founder begins with the same membership. One would do;
    /// each of the others waits a little longer, in case the ones before it are not there. Later
    /// starts find the membership in the log.
    async fn found(&mut self, founders: &BTreeMap<NodeId, String>) -> Result<(), RunError> {
        let id = self.node.id();
        if !self.node.takes_part() {
            let verdict = ask_founders(id, founders, self.node.peers()).await;
            let why = match &verdict {
                Verdict::Unclear { why } => why.as_str(),
                _ => "",
            };
            self.node.seen().founding_waits(why);
            match verdict {
                Verdict::New => self.node.take_part(),
                Verdict::Held(floor) => {
                    self.hold_to(floor).await;
                    return Ok(());
                }
                Verdict::Known(told_by) => return Err(RunError::Amnesia { id, told_by }),
                Verdict::Outside(Outside { cluster_id, told_by, members }) => {
                    // A member that has only just started may not know where clients reach the
                    // others.
                    let members = match members.is_empty() {
                        true => "ADDRESSES".to_owned(),
                        false => members.join(","),
                    };
                    return Err(RunError::Founded { id, cluster_id, told_by, members });
                }
                Verdict::Unclear { .. } => return Ok(()),
            }
        }
        if self.founds_nothing {
            return Ok(());
        }
        let rank = founders.keys().position(|founder| *founder == id).unwrap_or(0) as u32;
        if self.node.started().elapsed() < FOUNDER_PATIENCE * rank {
            return Ok(());
        }
        let members = founders.iter().map(|(id, peer_address)| {
            let peer_address = peer_address.clone();
            (*id, Member { peer_address, client_address: String::new() })
        });
        match self.node.raft().initialize(members.collect::<BTreeMap<_, _>>()).await {
            Ok(()) => tracing::info!(founders = founders.len(), "founding a new cluster"),
            Err(error) => tracing::debug!(%error, "another founder was first"),
        }
        Ok(())
    }

    /// This node takes entries of the cluster that the other founders have, and votes as if it had
    /// lost as many.
    async fn hold_to(&mut self, floor: Reached) {
        // Its next start must not take the entries that it has by then for all that it had.
        if let Err(error) = self.log.set_doubted(true).await {
            tracing::error!(%error, "the log does not take that it is behind the other founders'");
            return;
        }
        tracing::info!(
            "the other founders have begun: this node founds nothing, and waits for their entries"
        );
        self.node.recall().hold_to(floor);
        self.founds_nothing = true;
        self.node.take_part();
    }

    /// Asks a node of the cluster to take this one in; true: it was.
    async fn join(&mut self, address: &str, observer: bool) -> bool {
        let Ok(endpoint) = endpoint(address, LOOK_EVERY) else {
            tracing::error!(address, "join: this is no host:port");
            return false;
        };
        let own = self.node.me().peer_address.clone();
        let asked = self.node.peers().ask_to_be_taken_in(&endpoint, own, observer, JOIN_TIMEOUT);
        match asked.await {
            Ok(()) => {
                self.node.seen().refused("");
                tracing::info!(id = self.node.id().get(), address, "joined the cluster");
                true
            }
            Err(status) => {
                let (code, message) = (status.code(), status.message());
                self.node.seen().refused(&format!("{address}: {message}"));
                tracing::debug!(address, ?code, message, "joining failed; trying again");
                false
            }
        }
    }
}
