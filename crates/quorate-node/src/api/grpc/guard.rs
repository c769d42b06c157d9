//! What is taken from which peer. Only members by the membership in effect are peers. A node that
//! is not known here may still lead or stand for election when this node's own log is behind
//! (ARCHITECTURE.md, "Who is a peer"). Refusals name the peer.

use std::cmp::Ordering;
use std::io::BufReader;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::storage::{RaftLogReader as _, RaftLogStorage as _};
use openraft::vote::RaftLeaderId as _;
use quorate_log::{ClusterId, NodeId, SnapshotFile};
use quorate_state::read_snapshot_cluster;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::api::grpc::admin::check_address;
use crate::api::grpc::peer::{Append, Ballot, PeerService};
use crate::api::grpc::peer_door::sender;
use crate::api::incarnations;
use crate::node::Node;
use crate::node::calls::LeaderCall;
use crate::node::membership::MembershipCall;
use crate::peers::Envelope;
use crate::runtime::blocking;
use crate::types::{LogId, SnapshotMeta, TypeConfig, Vote, is_absurd};

impl PeerService {
    /// Whether this node goes before a candidate, and then its last log id. Two that stand in the
    /// same moment would each vote for itself, again and again where messages take as long as their
    /// timeouts lie apart (a busy machine, a far network). Of two with equal logs, the one with the
    /// higher id goes on: where it has just asked its own question, it says no to the other's. Only
    /// a pre-vote is answered so, which binds no voter.
    pub(super) async fn goes_before(
        &self,
        sender: NodeId,
        ballot: &Ballot,
    ) -> Result<Option<Option<LogId>>, Status> {
        let node = &self.node;
        let window = Duration::from_millis(node.tunables().election_timeout_min_ms);
        if sender > node.id() || node.peers().stood().is_none_or(|ago| ago > window) {
            return Ok(None);
        }
        let last = self.log.clone().get_log_state().await.map_err(super::peer::failed)?.last_log_id;
        Ok((ballot.last_log_id <= last).then_some(last))
    }

    /// The sender of a call that only a member may make.
    pub(super) fn check_member(&self, metadata: &MetadataMap) -> Result<NodeId, Status> {
        self.check(metadata)?;
        let sender = sender(&Envelope::of(metadata))?;
        check_still_member(&self.node, sender)?;
        Ok(sender)
    }

    /// Whether the sender may stand for election: it is a voter here, or has more of the log than
    /// this node, which may lack the entry that made it one. Whether it gets the vote is Raft's to
    /// say.
    pub(super) async fn check_candidate(
        &self,
        sender: NodeId,
        ballot: &Ballot,
    ) -> Result<(), Status> {
        self.check_claim(sender, &ballot.vote)?;
        if self.node.counts_as_voter(sender) {
            return Ok(());
        }
        if self.node.has_membership() {
            let state = self.log.clone().get_log_state().await.map_err(super::peer::failed)?;
            if ballot.last_log_id > state.last_log_id {
                return Ok(());
            }
        }
        Err(refused(sender, "it is no voter of this cluster"))
    }

    /// Whether a vote is the sender's own and of a term that can be.
    pub(super) fn check_claim(&self, sender: NodeId, vote: &Vote) -> Result<(), Status> {
        let claimed = *vote.leader_id().node_id();
        if claimed != sender {
            return Err(refused(sender, &format!("it speaks for node {claimed}")));
        }
        let (theirs, ours) = (vote.leader_id().term(), self.node.vote_term());
        // A node that has nothing yet may be taken in by a cluster of any age.
        let has_nothing = !self.node.has_membership() && self.node.founders().is_empty();
        if !has_nothing && is_absurd(theirs, ours) {
            let why = format!("it claims term {theirs}, this node is at {ours}");
            return Err(refused(sender, &why));
        }
        Ok(())
    }

    /// Whether an append is its leader's own, and leaves what is committed here as it is.
    pub(super) async fn check_append(&self, sender: NodeId, append: &Append) -> Result<(), Status> {
        self.check_claim(sender, &append.vote)?;
        let applied = self.node.applied().lock().last_log_id;
        let committed = self.node.leadership().committed().max(applied.map_or(0, |id| id.index()));
        let previous = append.prev_log_id;
        // Mostly it goes on behind what is committed, and only then nothing has to be read.
        let goes_on = |previous: LogId| match previous.index().cmp(&committed) {
            Ordering::Greater => true,
            Ordering::Equal => applied == Some(previous),
            Ordering::Less => false,
        };
        if previous.is_some_and(goes_on) {
            return Ok(());
        }
        let sent = previous.into_iter().chain(append.entries.iter().map(|entry| entry.log_id));
        let sent: Vec<LogId> = sent.collect();
        let Some((first, last)) = sent.first().zip(sent.last()) else { return Ok(()) };
        let mut log = self.log.clone();
        let committed = log.read_committed().await.map_err(super::peer::failed)?.max(applied);
        let Some(committed) = committed.filter(|committed| first.index() <= committed.index())
        else {
            return Ok(());
        };
        let range = first.index()..=last.index().min(committed.index());
        let ours = log.try_get_log_entries(range).await.map_err(super::peer::failed)?;
        // What is purged here cannot be compared, but is of no later term than what is committed
        // behind it.
        let other = sent.iter().find(|sent| {
            let held = ours.iter().find(|ours| ours.log_id.index() == sent.index());
            match held {
                Some(held) => held.log_id != **sent,
                None => sent.index() <= committed.index() && **sent > committed,
            }
        });
        match other.map(LogId::index) {
            None => Ok(()),
            Some(at) => {
                let why = format!("it has another entry at {at} than was committed there");
                Err(refused(sender, &why))
            }
        }
    }

    /// Whether a snapshot is of this cluster, and not behind what is committed here. Whether its
    /// sender is the leader that it claims to be was looked at before it was received.
    pub(super) async fn check_snapshot(
        &self,
        envelope: Envelope,
        vote: &Vote,
        meta: &SnapshotMeta,
        snapshot: &SnapshotFile<TypeConfig>,
    ) -> Result<(), Status> {
        let sender = sender(&envelope)?;
        if snapshot.meta() != meta {
            return Err(refused(sender, "its snapshot is another one than it says"));
        }
        if meta.last_membership.nodes().next().is_none() {
            return Err(refused(sender, "its snapshot is of no cluster"));
        }
        let committed = self.log.clone().read_committed().await.map_err(super::peer::failed)?;
        let committed = committed.max(self.node.applied().lock().last_log_id);
        check_covered(meta.last_log_id, vote, committed).map_err(|why| refused(sender, why))?;
        let body = snapshot.body();
        let of = blocking(move || read_snapshot_cluster(&mut BufReader::new(body)));
        let of = of.await.map_err(super::peer::failed)?;
        let of = of.map_err(|error| Status::data_loss(error.to_string()))?;
        let of = of.map(ClusterId::from);
        if of.is_none() || of != envelope.cluster_id {
            let [of, ours] = [of, envelope.cluster_id].map(ClusterId::number);
            let why = "its snapshot is of cluster";
            return Err(refused(sender, &format!("{why} {of:016x}, not of {ours:016x}")));
        }
        Ok(())
    }
}

impl Node {
    /// Whether this node knows any members: not before a cluster was founded or this node taken in.
    fn has_membership(&self) -> bool {
        self.view().borrow_watched().membership_config.nodes().next().is_some()
    }

    /// By the membership in effect, both halves of a joint one; before there is one, by the
    /// founders' list.
    fn counts_as_voter(&self, id: NodeId) -> bool {
        let votes = self.view().borrow_watched().membership_config.voter_ids().any(|it| it == id);
        votes || !self.has_membership() && self.founders().contains(&id)
    }

    fn vote_term(&self) -> u64 {
        self.view().borrow_watched().vote.leader_id().term()
    }
}

/// A stream outlives its beginning: each message on it is looked at.
pub(super) fn check_still_member(node: &Node, sender: NodeId) -> Result<(), Status> {
    match node.member(sender) {
        Some(_) => Ok(()),
        None => Err(refused(sender, "it is no member of this cluster")),
    }
}

/// A node reports its own addresses, and no other node's.
pub(super) fn check_same(sender: NodeId, told: u64) -> Result<(), Status> {
    match sender.get() == told {
        true => Ok(()),
        false => Err(refused(sender, &format!("it reports the addresses of node {told}"))),
    }
}

/// What arrives from another node is checked as if it came from a client.
pub(super) fn check_forwarded(sender: NodeId, call: &LeaderCall) -> Result<(), Status> {
    let invalid = |error: &dyn std::fmt::Display| Status::invalid_argument(error.to_string());
    match call {
        LeaderCall::Propose(op, _) => {
            let checked = op.check_forwarded().and_then(|()| incarnations::check_forwarded(op));
            checked.map_err(|error| invalid(&error))
        }
        LeaderCall::Renew(..) | LeaderCall::Lead(_) => Ok(()),
        LeaderCall::Membership(call) => match call {
            MembershipCall::Add { peer_address, .. } => {
                check_address("peer_address", peer_address).map_err(|error| invalid(&error))
            }
            MembershipCall::Replace { peer_address, .. } => {
                check_address("peer_address", peer_address).map_err(|error| invalid(&error))
            }
            MembershipCall::Announce { id, member } => {
                check_same(sender, id.get())?;
                check_address("peer_address", &member.peer_address)
                    .and_then(|()| check_address("client_address", &member.client_address))
                    .map_err(|error| invalid(&error))
            }
            MembershipCall::Remove { .. } => Ok(()),
        },
    }
}

/// Whether a leader with this vote may replace what is committed here by a snapshot up to `last`.
/// Both the term and the place count: a later term alone would let a snapshot in that goes less
/// far.
fn check_covered(
    last: Option<LogId>,
    vote: &Vote,
    committed: Option<LogId>,
) -> Result<(), &'static str> {
    let Some(last) = last else { return Err("its snapshot is of no entries") };
    if *last.committed_leader_id() > vote.leader_id().to_committed() {
        return Err("its snapshot is of a later term than its lead");
    }
    match committed {
        Some(committed) if last < committed => {
            Err("its snapshot is older than what is committed here")
        }
        Some(committed) if last.index() <= committed.index() && last != committed => {
            Err("its snapshot has another entry at its end than was committed there")
        }
        _ => Ok(()),
    }
}

fn refused(sender: NodeId, why: &str) -> Status {
    tracing::debug!(sender = sender.get(), why, "a peer's message is refused");
    Status::failed_precondition(format!("node {sender} is refused: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_never_goes_less_far_than_what_is_committed() {
        let id = |term, index| {
            Some(LogId::new(
                Vote::new_committed(term, NodeId::new(1).unwrap()).leader_id().to_committed(),
                index,
            ))
        };
        for (what, last, term, committed, fits) in [
            ("further", id(3, 20), 4, id(3, 10), true),
            ("further, of a later term", id(4, 20), 4, id(3, 10), true),
            ("the same again", id(3, 10), 4, id(3, 10), true),
            ("to a node that has nothing", id(3, 10), 4, None, true),
            ("older", id(3, 9), 4, id(3, 10), false),
            ("further, of an earlier term", id(2, 20), 4, id(3, 10), false),
            ("less far, of a later term", id(4, 9), 4, id(3, 10), false),
            ("another one at the same place", id(4, 10), 4, id(3, 10), false),
            ("of a term after its lead", id(5, 20), 4, id(3, 10), false),
            ("of nothing", None, 4, id(3, 10), false),
            ("of nothing, to a node that has nothing", None, 4, None, false),
        ] {
            let checked =
                check_covered(last, &Vote::new_committed(term, NodeId::new(1).unwrap()), committed);
            assert_eq!(checked.is_ok(), fits, "{what}: {checked:?}");
        }
    }
}
