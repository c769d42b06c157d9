//! Keeps this node's own membership as it was configured: asks to be taken in, and tells its addresses.

use std::sync::Arc;
use std::time::Duration;

use quorate_proto::v1::AddNodeRequest;
use quorate_proto::v1::admin_client::AdminClient;
use tokio::time::Instant;
use tonic::Request;
use tonic::transport::Endpoint;

use crate::config::Start;
use crate::membership::MembershipCall;
use crate::node::{LeaderCall, MemberInfo, Node};
use crate::start_error::RunError;

/// A look at the membership this often.
const EVERY: Duration = Duration::from_millis(500);

/// Being taken in may need a snapshot first.
const JOIN_TIMEOUT: Duration = Duration::from_secs(60);

/// See the head of this file.
pub(crate) struct MemberLoop {
    node: Arc<Node>,
    start: Start,
    was_member: bool,
    asked: usize,
}

impl MemberLoop {
    pub(crate) fn new(node: Arc<Node>, start: Start) -> Self {
        Self { node, start, was_member: false, asked: 0 }
    }

    pub(crate) async fn run(mut self) -> Result<(), RunError> {
        loop {
            self.look().await;
            tokio::time::sleep(EVERY).await;
        }
    }

    async fn look(&mut self) {
        let members = self.node.members();
        let own = members.iter().find(|info| info.id == self.node.id);
        match own {
            Some(info) if info.member != self.node.me => self.announce().await,
            Some(info) if !self.wants_vote(info) => {}
            None if self.was_member => {
                tracing::warn!(
                    id = self.node.id,
                    "this node was removed from the cluster; stop it"
                );
                self.was_member = false;
            }
            _ => self.join().await,
        }
        self.was_member |= own.is_some();
    }

    fn wants_vote(&self, own: &MemberInfo) -> bool {
        !own.voter && matches!(self.start, Start::Join { observer: false, .. })
    }

    async fn announce(&self) {
        let (id, member) = (self.node.id, self.node.me.clone());
        let call = LeaderCall::Membership(MembershipCall::Announce { id, member });
        let deadline = Instant::now() + self.node.tunables.request_timeout();
        if let Err(error) = self.node.on_leader(call, deadline).await {
            tracing::debug!(%error, "telling this node's addresses failed; trying again");
        }
    }

    /// Asks the next of the configured nodes to take this one in.
    async fn join(&mut self) {
        let Start::Join { nodes, observer } = &self.start else { return };
        let address = &nodes[self.asked % nodes.len()];
        self.asked += 1;
        let Ok(endpoint) = Endpoint::from_shared(format!("http://{address}")) else {
            tracing::error!(address, "join: this is no host:port");
            return;
        };
        let mut client = AdminClient::new(endpoint.connect_timeout(EVERY).connect_lazy());
        let mut request = Request::new(AddNodeRequest {
            id: self.node.id,
            peer_address: self.node.me.peer_address.clone(),
            learner_only: *observer,
        });
        request.set_timeout(JOIN_TIMEOUT);
        match client.add_node(request).await {
            Ok(_) => tracing::info!(id = self.node.id, address, "joined the cluster"),
            Err(status) => {
                let (code, message) = (status.code(), status.message());
                tracing::warn!(address, ?code, message, "joining failed; trying again");
            }
        }
    }
}
