//! What is taken from which peer. Only members by the membership in effect are peers. A node that
//! is not known here may still lead or stand for election when this node's own log is behind: then
//! the others are asked (ARCHITECTURE.md, "Who is a peer"). Refusals name the peer.

use std::io::BufReader;
use std::time::Duration;

use quorate_log::{NodeId, SnapshotFile};
use quorate_proto::ClusterId;
use quorate_state::read_snapshot_cluster;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::api::grpc::admin::check_address;
use crate::api::grpc::peer::{Append, Ballot, PeerService};
use crate::api::grpc::peer_door::sender;
use crate::api::grpc::peer_error::PeerError;
use crate::node::Node;
use crate::node::calls::LeaderCall;
use crate::node::membership::MembershipCall;
use crate::peers::Envelope;
use crate::raft::committed::{self, Reach};
use crate::runtime::blocking;
use crate::types::{LogId, TypeConfig, Vote, is_absurd};

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
        let last = committed::last_log_id(&self.log).await.map_err(PeerError::from)?;
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
            let last = committed::last_log_id(&self.log).await.map_err(PeerError::from)?;
            if ballot.last_log_id > last {
                return self.check_of_cluster(sender, &ballot.vote).await;
            }
        }
        Err(refused(sender, "it is no voter of this cluster"))
    }

    /// Whether a vote is the sender's own and of a term that can be.
    pub(super) fn check_claim(&self, sender: NodeId, vote: &Vote) -> Result<(), Status> {
        let claimed = vote.leader_id().voted_for;
        if claimed != sender {
            return Err(refused(sender, &format!("it speaks for node {claimed}")));
        }
        let (theirs, ours) = (vote.leader_id().term, self.node.vote_term());
        // A node that has nothing yet may be taken in by a cluster of any age.
        let has_nothing = !self.node.has_membership() && self.node.founders().is_empty();
        if !has_nothing && is_absurd(theirs, ours) {
            let why = format!("it claims term {theirs}, this node is at {ours}");
            return Err(refused(sender, &why));
        }
        Ok(())
    }

    /// Whether the sender may be the leader that it says it is: its word for that is its own, and
    /// it is a member, here or by the word of the others.
    pub(super) async fn check_leader(&self, sender: NodeId, vote: &Vote) -> Result<(), Status> {
        self.check_claim(sender, vote)?;
        self.check_of_cluster(sender, vote).await
    }

    async fn check_of_cluster(&self, sender: NodeId, vote: &Vote) -> Result<(), Status> {
        self.node.check_of_cluster(sender, vote).await.map_err(|why| refused(sender, why))
    }

    /// Whether an append is its leader's own, and leaves what is committed here as it is.
    pub(super) async fn check_append(&self, sender: NodeId, append: &Append) -> Result<(), Status> {
        self.check_leader(sender, &append.vote).await?;
        if !committed::follow_each_other(append) {
            return Err(refused(sender, "its entries do not follow each other"));
        }
        let applied = self.node.applied().lock().last_log_id;
        let known = self.node.leadership().committed();
        match committed::other_entry(&self.log, append, applied, known)
            .await
            .map_err(PeerError::from)?
        {
            None => Ok(()),
            Some(at) => {
                let why = format!("it has another entry at {at} than was committed there");
                Err(refused(sender, &why))
            }
        }
    }

    /// Whether a snapshot is of this cluster, and leaves what is committed here as it is. Whether
    /// its sender is the leader that it claims to be was looked at before it was received. Of the
    /// past it may be only from the leader that this node follows.
    pub(super) async fn check_snapshot(
        &self,
        envelope: Envelope,
        vote: &Vote,
        snapshot: &SnapshotFile<TypeConfig>,
    ) -> Result<Reach, Status> {
        let sender = sender(&envelope)?;
        let meta = snapshot.meta();
        if meta.last_membership.nodes().next().is_none() {
            return Err(refused(sender, "its snapshot is of no cluster"));
        }
        let applied = self.node.applied().lock().last_log_id;
        let committed = committed::up_to(&self.log, applied).await.map_err(PeerError::from)?;
        let reach = committed::reach(meta.last_log_id, vote, committed)
            .map_err(|why| refused(sender, why))?;
        if reach == Reach::Covered && !self.node.follows(vote) {
            return Err(refused(sender, "its snapshot is older than what is committed here"));
        }
        let body = snapshot.body();
        let of = blocking(move || read_snapshot_cluster(&mut BufReader::new(body)));
        let of = of.await.map_err(PeerError::from)?;
        let of = of.map_err(PeerError::from)?;
        let of = of.map(ClusterId::from);
        if of.is_none() || of != envelope.cluster_id {
            let [of, ours] = [of, envelope.cluster_id].map(ClusterId::to_wire);
            let why = "its snapshot is of cluster";
            return Err(refused(sender, &format!("{why} {of:016x}, not of {ours:016x}")));
        }
        Ok(reach)
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
    let checked = match call {
        LeaderCall::Propose(op, _) => op.check_forwarded(),
        LeaderCall::Renew(..) | LeaderCall::Lead(_) => Ok(()),
        LeaderCall::Membership(call) => match call {
            MembershipCall::Add { peer_address, .. }
            | MembershipCall::Replace { peer_address, .. } => {
                check_address("peer_address", peer_address)
            }
            MembershipCall::Announce { id, member } => {
                check_same(sender, id.get())?;
                check_address("peer_address", &member.peer_address)
                    .and_then(|()| check_address("client_address", &member.client_address))
            }
            MembershipCall::Remove { .. } | MembershipCall::SetLevel(_) => Ok(()),
        },
    };
    Ok(checked.map_err(PeerError::from)?)
}

pub(super) fn refused(sender: NodeId, why: &str) -> Status {
    tracing::debug!(sender = sender.get(), why, "a peer's message is refused");
    PeerError::Refused { sender, why: why.to_owned() }.into()
}
