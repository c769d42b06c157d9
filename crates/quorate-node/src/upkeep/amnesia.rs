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
use std::num::NonZeroU64;
use std::time::Duration;

use futures_util::future::join_all;
use quorate_log::NodeId;
use quorate_proto::ClusterId;

use crate::net::endpoint;
use crate::node::MemberInfo;
use crate::peers::{Identified, Peers};
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
    /// Not enough of them have answered yet, or answer for another cluster: for an operator.
    Unclear { why: String },
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
        let answer = peers.identify(*other, address, Some(id), ASK_TIMEOUT).await.ok();
        Answer { from: *other, address, answer }
    }));
    judge(peers.identity().founders, &answers.await)
}

/// What another founder said, if it did.
struct Answer<'a> {
    from: NodeId,
    address: &'a str,
    answer: Option<Identified>,
}

/// What the answers of all other founders come to; `ours`: the founders' hash of the one that asks.
fn judge(ours: Option<NonZeroU64>, answers: &[Answer]) -> Verdict {
    let mut held_to = Reached::default();
    let (mut silent, mut elsewhere) = (Vec::new(), Vec::new());
    for Answer { from, address, answer } in answers {
        let heard = answer.as_ref().and_then(|it| Some((it, recalled_from_wire(it.recalled?))));
        let Some((answer, recalled)) = heard else {
            silent.push(format!("node {from} at {address}"));
            continue;
        };
        // What a node of another cluster knows is not about this one.
        let of_these = answer.founders == ours;
        if of_these && answer.knows_caller {
            return Verdict::Known((*address).to_owned());
        }
        let is_counted = of_these && answer.counts_caller;
        match answer.cluster_id {
            Some(cluster_id) if answer.founded && !is_counted => {
                return Verdict::Outside(Outside {
                    cluster_id,
                    told_by: (*address).to_owned(),
                    members: answer.member_addresses.clone(),
                });
            }
            // It is being taken into that cluster, or was taken out of it: the next answer tells.
            Some(cluster_id) if !of_these => {
                elsewhere.push(format!(
                    "node {from} at {address} is of cluster {cluster_id}: stop it, or start this \
                     node with --join"
                ));
            }
            _ if of_these => held_to = held_to.or(recalled.floor()),
            _ => {}
        }
    }
    let answered = answers.len() - silent.len() - elsewhere.len();
    if answered >= needed(answers.len() + 1) {
        return if held_to.is_led() { Verdict::Held(held_to) } else { Verdict::New };
    }
    let silent = match silent.is_empty() {
        true => None,
        false => Some(format!("start {}, which did not answer", silent.join(", "))),
    };
    let why: Vec<String> = silent.into_iter().chain(elsewhere).collect();
    Verdict::Unclear { why: why.join("; ") }
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
    use quorate_proto::peer::v1 as wire;
    use quorate_state::Levels;

    use super::*;

    const OURS: Option<NonZeroU64> = NonZeroU64::new(7);

    /// A node that has nothing.
    fn empty(founders: Option<NonZeroU64>) -> Identified {
        Identified {
            node_id: 3,
            cluster_id: None,
            founders,
            client_address: String::new(),
            founded: false,
            leads: false,
            counts_caller: false,
            knows_caller: false,
            member_addresses: Vec::new(),
            recalled: Some(wire::Recalled::default()),
            in_as_of: 0,
            out_as_of: 0,
            hears_leader: false,
            removed: false,
            levels: Levels::OWN,
        }
    }

    /// Of three founders, this one asks node 2, which has nothing, and node 3.
    fn judged(third: Option<Identified>) -> Verdict {
        let answer =
            |id, address, answer| Answer { from: NodeId::new(id).unwrap(), address, answer };
        judge(OURS, &[answer(2, "b:1", Some(empty(OURS))), answer(3, "c:1", third)])
    }

    #[test]
    fn one_of_another_cluster_does_not_let_this_one_be_founded() {
        let cluster_id = ClusterId::new(0xc1);
        let of_it = Identified { cluster_id, ..empty(None) };
        // While it is taken in there, or after it was taken out.
        let Verdict::Unclear { why } = judged(Some(of_it.clone())) else {
            panic!("it counts as one of ours");
        };
        assert!(why.contains("node 3 at c:1 is of cluster"), "{why}");
        assert!(!why.contains("did not answer"), "{why}");
        // A member of it says that it stands.
        let member = Identified { founded: true, ..of_it.clone() };
        assert!(matches!(judged(Some(member)), Verdict::Outside(_)));
        // One that founds with us knows the id first.
        let ours = Identified { founders: OURS, counts_caller: true, ..of_it };
        assert_eq!(judged(Some(ours)), Verdict::New);
    }

    #[test]
    fn a_founder_is_new_when_those_that_answer_have_nothing() {
        assert_eq!(judged(Some(empty(OURS))), Verdict::New);
        assert_eq!(judged(Some(empty(None))), Verdict::New, "it waits to be taken in");
        let silent = Verdict::Unclear { why: "start node 3 at c:1, which did not answer".into() };
        assert_eq!(judged(None), silent);
        let knows = Identified { knows_caller: true, ..empty(OURS) };
        assert_eq!(judged(Some(knows)), Verdict::Known("c:1".into()));
    }

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
