//! A node whose disk was lost must not come back under its id: it has forgotten entries and votes
//! that the cluster counts on (Raft, figure 2: both must survive a restart).
//!
//! - A founder with an empty log takes part in nothing until enough of the others have said that
//!   they do not know it: no quorum can have formed without one of them. A node that is a member of
//!   a cluster which was founded, without this node in it, ends the founding: the cluster stands. A
//!   founder is known from when it has reported its addresses, within the first second of a
//!   cluster's life. Before that, one that lost its disk looks like one that never had an entry. So
//!   where one of the others has more than the founding's first entry, both take entries, but found
//!   nothing, and vote only for nodes that have what the others had, until they have it themselves
//!   (`raft/recall.rs`).
//! - A joining node asks whether it is a voter already, and every message of the Raft library to a
//!   voter says so: a node that is of no cluster yet refuses it (`api/grpc/peer.rs`).

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use quorate_log::NodeId;
use quorate_proto::ClusterId;

use crate::net::endpoint;
use crate::node::MemberInfo;
use crate::peers::Peers;
use crate::raft::network::messages::recalled_from_wire;
use crate::raft::recall::Reached;

/// How long each of the others has to answer.
const ASK_TIMEOUT: Duration = Duration::from_millis(500);

/// What the other founders say of a founder with an empty log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is new: it may take part.
    New,
    /// A cluster is founded or about to be, with this node in it, which may have acknowledged up to
    /// here.
    Held(Reached),
    /// The node at this address says that it has run before.
    Known(String),
    /// A node of the founders' list is a member of a cluster that was founded, and this one is not
    /// in it.
    Outside(Outside),
    /// Not enough of them have answered yet.
    Unclear {
        /// Those that did not, with their addresses.
        silent: Vec<String>,
    },
}

/// A cluster that stands where this node was to found one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outside {
    /// Its id.
    pub(crate) cluster_id: ClusterId,
    /// The node that said so.
    pub(super) told_by: String,
    /// Where clients reach its members.
    pub(super) members: Vec<String>,
}

/// Asks the other founders. One that is of a cluster which was founded is not "new", and decides
/// alone: while it does not count this node as a member there is nothing to found here.
pub(super) async fn ask_founders(
    id: NodeId,
    founders: &BTreeMap<NodeId, String>,
    peers: &Peers,
) -> Verdict {
    let others = founders.iter().filter(|(other, _)| **other != id);
    let answers = join_all(others.map(|(other, address)| async move {
        let answer = peers.identify(*other, address, Some(id), ASK_TIMEOUT).await.ok()?;
        let floor = answer.recalled.map(recalled_from_wire)?.floor();
        Some((address, answer, floor))
    }))
    .await;
    let ours = peers.identity().founders;
    let mut held_to = Reached::default();
    for (address, answer, floor) in answers.iter().flatten() {
        // What a node of another cluster knows is not about this one.
        let of_these = answer.founders == ours;
        if of_these && answer.knows_caller {
            return Verdict::Known((*address).clone());
        }
        let theirs = answer.cluster_id.filter(|_| answer.founded);
        if let Some(cluster_id) = theirs.filter(|_| !(of_these && answer.counts_caller)) {
            return Verdict::Outside(Outside {
                cluster_id,
                told_by: (*address).clone(),
                members: answer.member_addresses.clone(),
            });
        }
        if of_these {
            held_to = held_to.or(*floor);
        }
    }
    let answered = answers.iter().flatten().count();
    match answered >= needed(founders.len()) {
        true if held_to.is_led() => Verdict::Held(held_to),
        true => Verdict::New,
        false => {
            let others = founders.iter().filter(|(other, _)| **other != id);
            let silent = others.zip(&answers).filter(|(_, answer)| answer.is_none());
            let silent = silent.map(|((id, address), _)| format!("node {id} at {address}"));
            Verdict::Unclear { silent: silent.collect() }
        }
    }
}

/// How many of the other founders have to answer: so many that those who do not are no quorum, also
/// not with this node, which may have lost its memory. (A founder that is alone asks nobody.)
fn needed(founders: usize) -> usize {
    let quorum = founders / 2 + 1;
    (founders + 1 - quorum).min(founders - 1)
}

/// Whether this node is still a member, or again; `None`: nobody knows. The leader of its cluster
/// does, if it is at one of the members' addresses. That it is none says also a node that has
/// applied a change of the members after `member_as_of`, the last by which this node is one. (The
/// leader need not be among the members that this node knows.)
pub(super) async fn is_member(
    id: NodeId,
    members: &[MemberInfo],
    member_as_of: Option<u64>,
    peers: &Peers,
) -> Option<bool> {
    let others = members.iter().filter(|other| other.id != id);
    let answers = join_all(others.map(|other| async move {
        let address = &other.member.peer_address;
        let answer = peers.identify(other.id, address, Some(id), ASK_TIMEOUT).await.ok()?;
        let ours = answer.cluster_id == peers.cluster_id() && answer.node_id == other.id.get();
        let is_out = member_as_of.is_some_and(|index| answer.out_as_of > index);
        match ours && answer.founded {
            true if is_out => Some(false),
            true if answer.leads => Some(answer.counts_caller),
            _ => None,
        }
    }));
    answers.await.into_iter().flatten().reduce(|one, other| one && other)
}

/// The address of a node that lists this id as a voter already; `None`: no node that answered does.
pub(crate) async fn member_knows(id: NodeId, nodes: &[String], peers: &Peers) -> Option<String> {
    for address in nodes {
        let Ok(endpoint) = endpoint(address, ASK_TIMEOUT) else { continue };
        if let Ok(true) = peers.lists_as_voter(&endpoint, id, ASK_TIMEOUT).await {
            return Some(address.clone());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_answer_that_no_quorum_can_have_formed_without_them() {
        // With the one that asks: all of two and three, three of four, four of five and six.
        let rows = [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (6, 3), (7, 4)];
        for (founders, others) in rows {
            assert_eq!(needed(founders), others, "of {founders}");
            let quorum = founders / 2 + 1;
            let without = founders - others;
            assert!(founders == 1 || without < quorum, "{without} of {founders} are a quorum");
            let fewer = without + 1;
            assert!(fewer >= quorum, "with one fewer of {founders}, there was none either");
        }
    }
}
