//! The nodes a client knows, which of them to ask next, and the connections to them. Must not know
//! what is asked: it learns of success and failure, and of members and leaders. Of which cluster
//! the client is, is decided in `endpoints/cluster.rs`.
//!
//! Invariants: the list is never empty; seeds never leave it; no failure and no empty answer makes
//! it shorter; what counts as an answer is of one cluster at a time.

mod cluster;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quorate_proto::ClusterId;
use quorate_proto::v1::{ListMembersResponse, ResponseHeader};
use rand::seq::{IndexedRandom, SliceRandom};
use tokio::sync::{Notify, watch};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::counters::Counts;
use crate::error::{AddressFault, Error};
use crate::nodes::dial::{Connection, Dial};
use crate::nodes::rebalance::{Growth, Rebalance};
use crate::nodes::token::{Authorize, Token};

/// A node that failed is asked after all others for this long: a hung one should not cost each call
/// an attempt.
const COOLDOWN: Duration = Duration::from_secs(5);
/// No more nodes than this are taken from one answer: a bound, far above any cluster.
const MEMBERS_MAX: usize = 64;

/// A node's address, `host:port`.
pub(crate) type Address = Arc<str>;

/// Which node a call should go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// Any, the one that served last first.
    Any,
    /// The leader where it is known (it saves a hop), else any.
    Leader,
}

/// The nodes, shared by everything that calls, and who calls. A clone has the same nodes.
#[derive(Debug, Clone)]
pub(crate) struct Endpoints {
    /// Held for a few list operations; never across an await.
    inner: Arc<Mutex<Inner>>,
    /// Notified when a node failed: the list may be out of date.
    pub(super) failure: Arc<Notify>,
    /// Notified when an answer was of a later change of the members than any before.
    news: Arc<Notify>,
    /// Notified when nodes were added.
    pub(super) rebalance: Arc<Rebalance>,
    /// The cluster that answers; `None` before the first answer. Only changed while `inner` is
    /// held.
    cluster: watch::Sender<Option<ClusterId>>,
    dial: Dial,
    /// What goes with each call from here.
    token: Option<Arc<Token>>,
    /// What all that calls counts.
    pub(crate) counts: Arc<Counts>,
}

#[derive(Debug)]
struct Inner {
    /// Members first, seeds that are no members after them.
    nodes: Vec<Node>,
    /// The node to ask first.
    current: Address,
    /// Where writes are best sent.
    leader: Option<Address>,
    /// What nodes named as the leader's address and cannot be one, in logs once.
    unusable: Vec<String>,
    /// When a node of the client's cluster answered last.
    heard: Option<Instant>,
    /// Since when each of its answers said that it has no leader, and when the last one came.
    leaderless: Option<(Instant, Instant)>,
    /// The log index of the last change of the members that the list has.
    members_as_of: u64,
    /// The log index of the last change of the members that a node told of.
    changed_at: u64,
}

#[derive(Debug)]
struct Node {
    address: Address,
    endpoint: Endpoint,
    connection: Option<Channel>,
    seed: bool,
    member: bool,
    failed_at: Option<Instant>,
    /// The cluster that its last answer was of; `None`: none came yet.
    cluster_id: Option<ClusterId>,
    /// Whether that has a leader, as it said then.
    has_leader: bool,
}

impl Endpoints {
    /// Starts from the addresses given, in random order if `shuffle` (so that many clients with one
    /// list spread out).
    pub(crate) fn new(
        addresses: &[String],
        dial: Dial,
        shuffle: bool,
        rebalance_within: Duration,
    ) -> Result<Self, Error> {
        let mut nodes: Vec<Node> = Vec::new();
        for address in addresses {
            let mut node = Node::new(address, &dial)
                .map_err(|fault| Error::InvalidAddress { address: address.clone(), fault })?;
            node.seed = true;
            if nodes.iter().all(|known| known.address != node.address) {
                nodes.push(node);
            }
        }
        if shuffle {
            nodes.shuffle(&mut rand::rng());
        }
        let current = nodes.first().ok_or(Error::NoAddresses)?.address.clone();
        let (members_as_of, changed_at) = (0, 0);
        let inner = Inner {
            nodes,
            current,
            leader: None,
            unusable: Vec::new(),
            heard: None,
            leaderless: None,
            members_as_of,
            changed_at,
        };
        Ok(Self {
            inner: Arc::new(Mutex::new(inner)),
            failure: Arc::default(),
            news: Arc::default(),
            rebalance: Arc::new(Rebalance::new(rebalance_within)),
            cluster: watch::Sender::new(None),
            token: dial.token.clone(),
            dial,
            counts: Arc::default(),
        })
    }

    /// The same nodes and connections for another caller.
    ///
    /// # Errors
    /// [`Error::InvalidAddress`]: its token must not go to one of the addresses that were given.
    pub(crate) fn with_token(&self, token: Token) -> Result<Self, Error> {
        let other = Self { token: Some(Arc::new(token)), ..self.clone() };
        let barred = {
            let inner = other.lock();
            let barred = inner.nodes.iter().find(|node| node.seed && !other.may_ask(node));
            barred.map(|node| node.address.to_string())
        };
        match barred {
            None => Ok(other),
            Some(address) => {
                Err(Error::InvalidAddress { address, fault: AddressFault::PlaintextToken })
            }
        }
    }

    /// Whether what goes with each call from here may go to a node. To one of those that were given
    /// at least, it may.
    fn may_ask(&self, node: &Node) -> bool {
        self.token.is_none() || self.dial.may_send_token(&node.address)
    }

    fn authorized(&self, channel: Channel) -> Connection {
        Connection::new(channel, Authorize(self.token.clone()))
    }

    /// Another number after each change of the token.
    pub(crate) fn token_changes(&self) -> u64 {
        self.token.as_ref().map_or(0, |token| token.changes())
    }

    /// A call was refused for its token, and the token had changed this often before it. Looks
    /// whether there is another one by now.
    pub(crate) async fn has_other_token(&self, changes_before: u64) -> bool {
        if let Some(token) = &self.token {
            token.reread().await;
        }
        self.token_changes() != changes_before
    }

    /// The best node that is not among `tried`; `None` when all are.
    pub(super) fn pick(&self, target: Target, tried: &[Address]) -> Option<(Address, Connection)> {
        let mut inner = self.lock();
        let barred = inner.nodes.iter().filter(|node| !self.may_ask(node));
        let barred: Vec<Address> = barred.map(|node| node.address.clone()).collect();
        let at = match &*barred {
            [] => inner.best(target, tried)?,
            barred => inner.best(target, &[tried, barred].concat())?,
        };
        let node = &mut inner.nodes[at];
        Some((node.address.clone(), self.authorized(node.connection(&self.dial))))
    }

    /// The connection to a node; `None` where it is no member.
    pub(super) fn connection_to_member(&self, address: &Address) -> Option<Connection> {
        let mut inner = self.lock();
        let mut nodes = inner.nodes.iter_mut();
        let node = nodes.find(|node| node.member && node.address == *address)?;
        self.may_ask(node).then(|| self.authorized(node.connection(&self.dial)))
    }

    /// Whether a node is left that is not among `tried`.
    pub(super) fn has_untried(&self, tried: &[Address]) -> bool {
        let inner = self.lock();
        inner.nodes.iter().any(|node| !tried.contains(&node.address) && self.may_ask(node))
    }

    /// Whether there is a node beside these that has not failed of late.
    pub(crate) fn has_other(&self, than: &[Address]) -> bool {
        let inner = self.lock();
        let mut others = inner.nodes.iter().filter(|node| !than.contains(&node.address));
        let now = Instant::now();
        others.any(|node| node.is_healthy(now) && self.may_ask(node))
    }

    /// How many nodes there are to try.
    pub(crate) fn len(&self) -> usize {
        self.lock().nodes.iter().filter(|node| self.may_ask(node)).count()
    }

    /// A node answered.
    ///
    /// # Errors
    /// It is of another cluster, while there may be nodes of the client's own: then its answer does
    /// not count, and the next node is to be asked.
    pub(crate) fn succeeded(
        &self,
        address: &Address,
        target: Target,
        header: Option<&ResponseHeader>,
    ) -> Result<(), Status> {
        let mut inner = self.lock();
        if let Some(header) = header
            && let Some(cluster_id) = ClusterId::of(header)
        {
            self.admit(&mut inner, address, cluster_id, header.leader_id != 0)?;
        }
        inner.served(address, target);
        let leader = header.map_or("", |header| header.leader_address.as_str());
        if !leader.is_empty() {
            inner.lead(leader, &self.dial);
        }
        let as_of = header.map_or(0, |header| header.members_as_of);
        if as_of > inner.changed_at {
            inner.changed_at = as_of;
            self.news.notify_one();
        }
        Ok(())
    }

    /// A node could not serve: it is asked last for a while, and the members are looked up again.
    pub(crate) fn failed(&self, address: &Address) {
        let mut inner = self.lock();
        inner.leader.take_if(|leader| leader == address);
        if let Some(node) = inner.node_mut(address) {
            node.failed_at = Some(Instant::now());
        }
        if inner.current == *address
            && let Some(at) = inner.best(Target::Any, std::slice::from_ref(address))
        {
            inner.current = inner.nodes[at].address.clone();
            self.counts.rotations.one_more();
        }
        drop(inner);
        self.failure.notify_one();
    }

    /// Waits until a node tells of a later change of the members than all before, and than the list
    /// has.
    pub(super) async fn members_changed(&self) {
        loop {
            self.news.notified().await;
            if self.is_behind() {
                return;
            }
        }
    }

    /// Whether a node told of a change of the members that the list does not have.
    pub(super) fn is_behind(&self) -> bool {
        let inner = self.lock();
        inner.members_as_of < inner.changed_at
    }

    /// Takes the members that a node tells of as the list, unless they are another cluster's, or
    /// the list has a later change of them: one of many nodes may be behind.
    pub(crate) fn learn_members(&self, answer: &ListMembersResponse) {
        let members = answer.members.iter().map(|member| member.client_address.as_str());
        let nothing = ResponseHeader::default();
        self.take_members(Some(answer.header.as_ref().unwrap_or(&nothing)), members);
    }

    /// Takes the cluster's members as the list, seeds behind them. An answer without a usable
    /// address changes nothing.
    pub(crate) fn replace_members<'a>(&self, addresses: impl Iterator<Item = &'a str>) {
        self.take_members(None, addresses);
    }

    fn take_members<'a>(
        &self,
        told: Option<&ResponseHeader>,
        addresses: impl Iterator<Item = &'a str>,
    ) {
        let mut members: Vec<Node> = Vec::new();
        for address in addresses.take(MEMBERS_MAX) {
            match Node::new(address, &self.dial) {
                Ok(node) if members.iter().any(|known| known.address == node.address) => {}
                Ok(node) => members.push(Node { member: true, ..node }),
                Err(fault) => tracing::warn!(address, %fault, "a member has an unusable address"),
            }
        }
        let mut inner = self.lock();
        if let Some(told) = told {
            let (as_of, known) = (told.members_as_of, inner.members_as_of);
            // The client may have gone over to another cluster since it was answered.
            let is_foreign = ClusterId::of(told).is_some_and(|of| Some(of) != self.cluster_id());
            if as_of < known || is_foreign {
                tracing::debug!(as_of, known, "a list of nodes is out of date");
                return;
            }
            inner.members_as_of = as_of;
        }
        if members.is_empty() {
            return;
        }
        let growth = inner.replace(members);
        drop(inner);
        if !growth.added.is_empty() {
            tracing::debug!(added = ?growth.added, "nodes were added; some streams will move to them");
            self.rebalance.growth.send_replace(growth);
        }
    }

    /// The addresses known now, for tests and logs.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.lock().nodes.iter().map(|node| node.address.to_string()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // What it guards is consistent between any two statements, so a panic elsewhere does no
        // harm.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Node {
    fn new(address: &str, dial: &Dial) -> Result<Self, AddressFault> {
        let (address, endpoint) = dial.endpoint(address)?;
        Ok(Self {
            address,
            endpoint,
            connection: None,
            seed: false,
            member: false,
            failed_at: None,
            cluster_id: None,
            has_leader: false,
        })
    }

    /// Whether it has not failed of late.
    fn is_healthy(&self, now: Instant) -> bool {
        self.failed_at.is_none_or(|at| now.duration_since(at) >= COOLDOWN)
    }

    fn connection(&mut self, dial: &Dial) -> Channel {
        let made = || dial.connect(&self.address, &self.endpoint);
        self.connection.get_or_insert_with(made).clone()
    }
}

impl Inner {
    fn node_mut(&mut self, address: &Address) -> Option<&mut Node> {
        self.nodes.iter_mut().find(|node| node.address == *address)
    }

    /// A node served. What is served by any goes on with it.
    fn served(&mut self, address: &Address, target: Target) {
        if let Some(node) = self.node_mut(address) {
            node.failed_at = None;
            if target == Target::Any {
                self.current = address.clone();
            }
        }
    }

    fn best(&self, target: Target, tried: &[Address]) -> Option<usize> {
        let now = Instant::now();
        let healthy = |node: &Node| node.is_healthy(now);
        let untried = |at: &usize| !tried.contains(&self.nodes[*at].address);
        let position = |address: &Address| self.nodes.iter().position(|n| n.address == *address);

        if target == Target::Leader
            && let Some(at) = self.leader.as_ref().and_then(position).filter(untried)
            && healthy(&self.nodes[at])
        {
            return Some(at);
        }
        let count = self.nodes.len();
        let first = position(&self.current).unwrap_or(0);
        let order: Vec<usize> =
            (0..count).map(|step| (first + step) % count).filter(untried).collect();
        let with = |member: bool| {
            order.iter().find(|at| self.nodes[**at].member == member && healthy(&self.nodes[**at]))
        };
        // What served last goes on serving, a seed too: where the members' addresses cannot be
        // reached from here, only the seeds can.
        let current = order.first().filter(|at| **at == first && healthy(&self.nodes[first]));
        let least_recently_failed = || order.iter().min_by_key(|at| self.nodes[**at].failed_at);
        current
            .or_else(|| with(true))
            .or_else(|| with(false))
            .or_else(least_recently_failed)
            .copied()
    }

    fn lead(&mut self, leader: &str, dial: &Dial) {
        if self.leader.as_deref() == Some(leader) {
            return;
        }
        let node = match Node::new(leader, dial) {
            Ok(node) => node,
            // Each answer says it again.
            Err(_) if self.unusable.iter().any(|known| known == leader) => return,
            Err(fault) => {
                tracing::warn!(address = leader, %fault, "the leader has an unusable address");
                self.unusable.truncate(MEMBERS_MAX - 1);
                self.unusable.insert(0, leader.to_owned());
                return;
            }
        };
        self.leader = Some(node.address.clone());
        let known = self.nodes.iter().any(|known| known.address == node.address);
        if !known && self.nodes.len() < 2 * MEMBERS_MAX {
            self.nodes.push(node);
        }
    }

    /// Returns which members were none before; the first list that there is adds none.
    fn replace(&mut self, members: Vec<Node>) -> Growth {
        let mut old = std::mem::take(&mut self.nodes);
        let is_new = |fresh: &&Node| !old.iter().any(|n| n.member && n.address == fresh.address);
        let mut growth = Growth { added: Vec::new(), members: members.len() };
        if old.iter().any(|node| node.member) {
            growth.added = members.iter().filter(is_new).map(|node| node.address.clone()).collect();
        }
        for fresh in members {
            match old.iter().position(|node| node.address == fresh.address) {
                Some(at) => self.nodes.push(Node { member: true, ..old.remove(at) }),
                None => self.nodes.push(fresh),
            }
        }
        let members = self.nodes.len();
        let seeds = old.into_iter().filter(|node| node.seed);
        self.nodes.extend(seeds.map(|node| Node { member: false, ..node }));
        let is_member = |node: &Node| node.address == self.current;
        if !self.nodes[..members].iter().any(is_member)
            && let Some(node) = self.nodes[..members].choose(&mut rand::rng())
        {
            self.current = node.address.clone();
        }
        growth
    }
}

#[cfg(test)]
mod tests;
