//! The nodes a client knows, which of them to ask next, and the connections to them. Must not know what is asked: it is told
//! of success and failure, and of members and leaders.
//!
//! Invariants: the list is never empty; seeds never leave it; no failure and no empty answer makes it shorter.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quorate_proto::v1::ResponseHeader;
use rand::seq::{IndexedRandom, SliceRandom};
use tokio::sync::Notify;
use tonic::transport::{Channel, Endpoint};

use crate::error::{AddressFault, Error};
use crate::rebalance::{Growth, Rebalance};

/// A node that failed is asked after all others for so long: a hung one should not cost each call an attempt.
const COOLDOWN: Duration = Duration::from_secs(5);
/// A connection on which nothing arrives for so long is probed ...
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// ... and given up when the probe is not answered within this.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);
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

/// The nodes, shared by everything that calls.
#[derive(Debug)]
pub(crate) struct Endpoints {
    /// Held for a few list operations; never across an await.
    inner: Mutex<Inner>,
    /// Told when a node failed: the list may be out of date.
    pub(crate) failure: Notify,
    /// Told when nodes were added.
    pub(crate) rebalance: Rebalance,
    connect_timeout: Duration,
}

#[derive(Debug)]
struct Inner {
    /// Members first, seeds that are no members after them.
    nodes: Vec<Node>,
    /// The node to ask first.
    current: Address,
    /// Where writes are best sent.
    leader: Option<Address>,
}

#[derive(Debug)]
struct Node {
    address: Address,
    endpoint: Endpoint,
    channel: Option<Channel>,
    seed: bool,
    member: bool,
    failed_at: Option<Instant>,
}

impl Endpoints {
    /// Starts from the addresses given, in random order if `shuffle` (so that many clients with one list spread out).
    pub(crate) fn new(
        addresses: &[String],
        connect_timeout: Duration,
        shuffle: bool,
        rebalance_within: Duration,
    ) -> Result<Self, Error> {
        let mut nodes: Vec<Node> = Vec::new();
        for address in addresses {
            let mut node = parse(address, connect_timeout)
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
        let inner = Mutex::new(Inner { nodes, current, leader: None });
        let rebalance = Rebalance::new(rebalance_within);
        Ok(Self { inner, failure: Notify::new(), rebalance, connect_timeout })
    }

    /// The best node that is not among `tried`; `None` when all are.
    pub(crate) fn pick(&self, target: Target, tried: &[Address]) -> Option<(Address, Channel)> {
        let mut inner = self.lock();
        let at = inner.best(target, tried)?;
        let node = &mut inner.nodes[at];
        Some((node.address.clone(), node.channel()))
    }

    /// The connection to a node; `None` where it is no member.
    pub(crate) fn channel_to_member(&self, address: &Address) -> Option<Channel> {
        let mut inner = self.lock();
        let mut nodes = inner.nodes.iter_mut();
        nodes.find(|node| node.member && node.address == *address).map(Node::channel)
    }

    /// Whether a node is left that is not among `tried`.
    pub(crate) fn has_untried(&self, tried: &[Address]) -> bool {
        self.lock().nodes.iter().any(|node| !tried.contains(&node.address))
    }

    /// How many nodes there are to try.
    pub(crate) fn len(&self) -> usize {
        self.lock().nodes.len()
    }

    /// A node answered; with the header, where the answer had one.
    pub(crate) fn succeeded(
        &self,
        address: &Address,
        target: Target,
        header: Option<&ResponseHeader>,
    ) {
        let mut inner = self.lock();
        if let Some(node) = inner.nodes.iter_mut().find(|node| node.address == *address) {
            node.failed_at = None;
            if target == Target::Any {
                inner.current = address.clone();
            }
        }
        let leader = header.map_or("", |header| header.leader_address.as_str());
        if !leader.is_empty() {
            inner.lead(leader, self.connect_timeout);
        }
    }

    /// A node could not serve: it is asked last for a while, and the members are looked up again.
    pub(crate) fn failed(&self, address: &Address) {
        let mut inner = self.lock();
        inner.leader.take_if(|leader| leader == address);
        if let Some(node) = inner.nodes.iter_mut().find(|node| node.address == *address) {
            node.failed_at = Some(Instant::now());
        }
        if inner.current == *address
            && let Some(at) = inner.best(Target::Any, std::slice::from_ref(address))
        {
            inner.current = inner.nodes[at].address.clone();
        }
        drop(inner);
        self.failure.notify_one();
    }

    /// Takes the cluster's members as the list, seeds behind them. An answer without a usable address changes nothing.
    pub(crate) fn replace_members<'a>(&self, addresses: impl Iterator<Item = &'a str>) {
        let mut members: Vec<Node> = Vec::new();
        for address in addresses.take(MEMBERS_MAX) {
            match parse(address, self.connect_timeout) {
                Ok(node) if members.iter().any(|known| known.address == node.address) => {}
                Ok(node) => members.push(Node { member: true, ..node }),
                Err(fault) => tracing::warn!(address, %fault, "a member has an unusable address"),
            }
        }
        if members.is_empty() {
            return;
        }
        let growth = self.lock().replace(members);
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
        // What it guards is consistent between any two statements, so a panic elsewhere does no harm.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Node {
    fn channel(&mut self) -> Channel {
        self.channel.get_or_insert_with(|| self.endpoint.connect_lazy()).clone()
    }
}

impl Inner {
    fn best(&self, target: Target, tried: &[Address]) -> Option<usize> {
        let now = Instant::now();
        let healthy =
            |node: &Node| node.failed_at.is_none_or(|at| now.duration_since(at) >= COOLDOWN);
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
        // What served last goes on serving, a seed too: where the members' addresses cannot be reached from here, only
        // the seeds can.
        let current = order.first().filter(|at| **at == first && healthy(&self.nodes[first]));
        let least_recently_failed = || order.iter().min_by_key(|at| self.nodes[**at].failed_at);
        current
            .or_else(|| with(true))
            .or_else(|| with(false))
            .or_else(least_recently_failed)
            .copied()
    }

    fn lead(&mut self, leader: &str, connect_timeout: Duration) {
        if self.leader.as_deref() == Some(leader) {
            return;
        }
        let Ok(node) = parse(leader, connect_timeout) else {
            tracing::warn!(address = leader, "the leader has an unusable address");
            return;
        };
        self.leader = Some(node.address.clone());
        let known = self.nodes.iter().any(|known| known.address == node.address);
        if !known && self.nodes.len() < 2 * MEMBERS_MAX {
            self.nodes.push(node);
        }
    }

    /// Tells which members were none before; the first list that there is adds nobody.
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

fn parse(address: &str, connect_timeout: Duration) -> Result<Node, AddressFault> {
    if address.starts_with("https://") {
        return Err(AddressFault::Tls);
    }
    let plain = address.strip_prefix("http://").unwrap_or(address);
    let plain = plain.strip_suffix('/').unwrap_or(plain);
    let (host, port) = plain.rsplit_once(':').ok_or(AddressFault::NoPort)?;
    if port.parse::<u16>().is_ok_and(|port| port > 0) && host.is_empty() {
        return Err(AddressFault::NoHost);
    }
    if !port.parse::<u16>().is_ok_and(|port| port > 0) {
        return Err(AddressFault::NoPort);
    }
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if !host.chars().all(|c| allowed(c) || (bracketed && "[:]".contains(c))) {
        return Err(AddressFault::Characters);
    }
    let endpoint =
        Endpoint::from_shared(format!("http://{plain}")).map_err(|_| AddressFault::Characters)?;
    Ok(Node {
        address: plain.into(),
        endpoint: endpoint
            .connect_timeout(connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true),
        channel: None,
        seed: false,
        member: false,
        failed_at: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(addresses: &[&str]) -> Endpoints {
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        Endpoints::new(&addresses, Duration::from_secs(1), false, Duration::ZERO).unwrap()
    }

    fn picked(endpoints: &Endpoints, target: Target, tried: &[&str]) -> Option<String> {
        let tried: Vec<Address> = tried.iter().map(|address| (*address).into()).collect();
        let at = endpoints.lock().best(target, &tried)?;
        Some(endpoints.lock().nodes[at].address.to_string())
    }

    fn leader_is(address: &str) -> ResponseHeader {
        ResponseHeader { leader_address: address.to_owned(), ..ResponseHeader::default() }
    }

    #[test]
    fn addresses_are_checked() {
        let fault = |address| parse(address, Duration::from_secs(1)).err();
        for good in ["127.0.0.1:7001", "node-1.example_x:1", "[::1]:7001", "http://h:65535/"] {
            assert_eq!(fault(good), None, "{good}");
        }
        for (bad, expected) in [
            ("", AddressFault::NoPort),
            ("host", AddressFault::NoPort),
            ("host:", AddressFault::NoPort),
            ("host:0", AddressFault::NoPort),
            ("host:65536", AddressFault::NoPort),
            (":7001", AddressFault::NoHost),
            ("::1:7001", AddressFault::Characters),
            ("a b:1", AddressFault::Characters),
            ("user@host:1", AddressFault::Characters),
            ("https://host:1", AddressFault::Tls),
        ] {
            assert_eq!(fault(bad), Some(expected), "{bad}");
        }
    }

    #[test]
    fn an_empty_list_is_an_error() {
        // S1.1
        let made = Endpoints::new(&[], Duration::from_secs(1), true, Duration::ZERO);
        assert!(matches!(made, Err(Error::NoAddresses)));
    }

    #[test]
    fn a_failed_node_is_asked_last() {
        // S1.3
        let endpoints = endpoints(&["a:1", "b:1", "c:1"]);
        assert_eq!(picked(&endpoints, Target::Any, &[]).as_deref(), Some("a:1"));
        endpoints.failed(&"a:1".into());
        assert_eq!(picked(&endpoints, Target::Any, &[]).as_deref(), Some("b:1"));
        assert_eq!(picked(&endpoints, Target::Any, &["b:1"]).as_deref(), Some("c:1"));
        assert_eq!(picked(&endpoints, Target::Any, &["b:1", "c:1"]).as_deref(), Some("a:1"));
        assert_eq!(picked(&endpoints, Target::Any, &["a:1", "b:1", "c:1"]), None);
    }

    #[test]
    fn writes_prefer_a_healthy_leader() {
        let endpoints = endpoints(&["a:1", "b:1", "c:1"]);
        endpoints.succeeded(&"a:1".into(), Target::Any, Some(&leader_is("c:1")));
        assert_eq!(picked(&endpoints, Target::Leader, &[]).as_deref(), Some("c:1"));
        assert_eq!(picked(&endpoints, Target::Any, &[]).as_deref(), Some("a:1"));
        endpoints.failed(&"c:1".into());
        assert_eq!(picked(&endpoints, Target::Leader, &[]).as_deref(), Some("a:1"));
        // A follower that has not noticed yet names the same leader again: it is still left alone.
        endpoints.succeeded(&"a:1".into(), Target::Any, Some(&leader_is("c:1")));
        assert_eq!(picked(&endpoints, Target::Leader, &[]).as_deref(), Some("a:1"));
    }

    #[test]
    fn members_replace_the_list_and_seeds_stay_behind_them() {
        // S1.2
        let endpoints = endpoints(&["seed:1", "a:1"]);
        endpoints.replace_members(["a:1", "b:1"].into_iter());
        assert_eq!(endpoints.addresses(), ["a:1", "b:1", "seed:1"]);
        assert_eq!(picked(&endpoints, Target::Any, &["a:1", "b:1"]).as_deref(), Some("seed:1"));
        endpoints.replace_members(["b:1", "c:1"].into_iter());
        assert_eq!(endpoints.addresses(), ["b:1", "c:1", "a:1", "seed:1"]);
    }

    #[test]
    fn only_members_that_come_later_are_growth() {
        let endpoints = endpoints(&["seed:1", "a:1"]);
        let mut growth = endpoints.rebalance.growth.subscribe();
        let mut added = |members: &[&str]| {
            endpoints.replace_members(members.iter().copied());
            let told = growth.has_changed().unwrap();
            let growth = growth.borrow_and_update();
            let added: Vec<_> = growth.added.iter().map(|address| address.to_string()).collect();
            told.then(|| (added.join(" "), growth.members))
        };
        assert_eq!(added(&["a:1", "b:1"]), None, "the first list");
        assert_eq!(added(&["a:1", "seed:1", "b:1", "c:1"]), Some(("seed:1 c:1".to_owned(), 4)));
        assert_eq!(added(&["b:1", "c:1"]), None);
        assert_eq!(added(&[]), None);
        assert_eq!(added(&["b:1", "c:1", "a:1"]), Some(("a:1".to_owned(), 3)), "it was away");
    }

    #[test]
    fn a_seed_that_serves_goes_on_until_members_are_learned_again() {
        let endpoints = endpoints(&["seed:1"]);
        endpoints.replace_members(["a:1", "b:1"].into_iter());
        endpoints.failed(&"a:1".into());
        endpoints.failed(&"b:1".into());
        assert_eq!(picked(&endpoints, Target::Any, &[]).as_deref(), Some("seed:1"));
        endpoints.succeeded(&"b:1".into(), Target::Leader, None);
        assert_eq!(picked(&endpoints, Target::Any, &[]).as_deref(), Some("seed:1"));
        endpoints.replace_members(["a:1", "b:1"].into_iter());
        assert_eq!(picked(&endpoints, Target::Any, &[]).as_deref(), Some("b:1"));
    }

    #[test]
    fn an_empty_or_unusable_answer_changes_nothing() {
        // S1.2, S0.13
        let endpoints = endpoints(&["seed:1"]);
        endpoints.replace_members(["a:1", "b:1"].into_iter());
        endpoints.replace_members([].into_iter());
        endpoints.replace_members(["", "no port"].into_iter());
        assert_eq!(endpoints.addresses(), ["a:1", "b:1", "seed:1"]);
    }
}
