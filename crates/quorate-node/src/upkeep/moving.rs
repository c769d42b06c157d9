//! Members that moved report to each other where they are, without the log: with a majority
//! elsewhere, nothing commits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use quorate_log::NodeId;

use crate::config::Start;
use crate::error::{MoveError, RunError};
use crate::node::{MemberInfo, Node};
use crate::peers::{ADDRESS_MAX, Lane};

/// A look this often.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How long another node has to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);

/// Keeps the address book, and reports this node's own address while others may not know it, until
/// the node ends.
pub(crate) async fn run(node: Arc<Node>, start: Start) -> Result<(), RunError> {
    if let Some(list) = start.founders() {
        node.peers().book.set_listed(&list);
    }
    let mut known = BTreeSet::new();
    loop {
        let members = node.members();
        let ids = members.iter().map(|info| info.id).collect();
        for gone in known.difference(&ids) {
            node.meters().forget_peer(gone.get());
        }
        known = ids;
        node.peers().book.keep(|id| members.iter().any(|info| info.id == id));
        for info in &members {
            node.peers().book.set_member(info.id, &info.member.peer_address);
        }
        let own = members.iter().find(|info| info.id == node.id());
        let moved = own.is_some_and(|own| own.member.peer_address != node.me().peer_address);
        // Members refuse a node that was taken out.
        let is_member = own.is_some() && !node.leadership().is_removed();
        if is_member && (moved || node.leadership().leader().is_none()) {
            node.tell_move(&members).await;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

impl Node {
    /// Reports to all other members where this node is, everywhere where they may be, and learns
    /// what others reported to them.
    async fn tell_move(&self, members: &[MemberInfo]) {
        let others = members.iter().filter(|info| info.id != self.id());
        let places = others.flat_map(|info| {
            self.peers().book.all(info.id).into_iter().map(|address| (info.id, address))
        });
        let answers = join_all(places.map(|(id, address)| async move {
            let peer_address = self.me().peer_address.clone();
            self.peers().moved(id, &address, peer_address, ANSWER_TIMEOUT).await
        }));
        for (id, address) in answers.await.into_iter().flatten().flatten() {
            // The node that said this may be wrong, as any node.
            let _ = self.hear_move(id, &address);
        }
    }

    /// A member says that it is there now. The answer has what others said that way.
    ///
    /// # Errors
    /// It is no member, or that is no address.
    pub(crate) fn take_move(
        &self,
        id: NodeId,
        address: &str,
    ) -> Result<BTreeMap<NodeId, String>, MoveError> {
        self.check_move(id, address)?;
        if id != self.id() && self.peers().book.set_told(id, address) {
            tracing::info!(id = id.get(), address, "a member says that it is there now");
        }
        Ok(self.peers().book.told().into_iter().collect())
    }

    /// Another node passes on where a member said that it is.
    fn hear_move(&self, id: NodeId, address: &str) -> Result<(), MoveError> {
        self.check_move(id, address)?;
        if id != self.id() && self.peers().book.set_heard(id, address) {
            tracing::info!(id = id.get(), address, "a member is said to be there now");
        }
        Ok(())
    }

    fn check_move(&self, id: NodeId, address: &str) -> Result<(), MoveError> {
        if address.len() > ADDRESS_MAX {
            return Err(MoveError::TooLong { bytes: address.len(), limit: ADDRESS_MAX });
        }
        if self.member(id).is_none() {
            return Err(MoveError::NotMember { id, node: self.id() });
        }
        let client = self.peers().client(id, address, Lane::Control).map(drop);
        client.map_err(|_| MoveError::NoAddress { address: address.to_owned() })
    }
}
