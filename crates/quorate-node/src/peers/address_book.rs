//! Where the other nodes may be. A member that moved has to be reached before the log can say where
//! it is now.
//!
//! An address is only somewhere to try. The envelope of each call settles which node is there
//! (`peers.rs`): any other node refuses it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use quorate_log::NodeId;

/// Nodes that are kept in mind: more than a cluster has members.
const NODES_MAX: usize = 256;

/// What is known of all nodes.
#[derive(Debug, Default)]
pub(crate) struct AddressBook(Mutex<BTreeMap<NodeId, Places>>);

/// Where one node may be.
#[derive(Debug, Default)]
struct Places {
    /// As it said itself since it moved; the membership does not have it yet.
    told: Option<String>,
    /// As another node has it from that node. It may be news, or older than what the node said
    /// here: both are tried.
    heard: Option<String>,
    /// By the membership in effect, committed or not.
    member: Option<String>,
    /// By the list that this node was started with.
    listed: Option<String>,
    /// How often the place that was tried last was the wrong one.
    turns: usize,
}

impl Places {
    fn all(&self) -> Vec<&String> {
        let mut places: Vec<&String> = Vec::new();
        for place in [&self.told, &self.heard, &self.member, &self.listed].into_iter().flatten() {
            if !places.contains(&place) {
                places.push(place);
            }
        }
        places
    }

    fn now(&self) -> Option<&String> {
        let places = self.all();
        places.get(self.turns.checked_rem(places.len())?).copied()
    }
}

impl AddressBook {
    /// The list that this node was started with.
    pub(crate) fn set_listed(&self, list: &BTreeMap<NodeId, String>) {
        let mut book = self.lock();
        for (id, address) in list.iter().take(NODES_MAX) {
            book.entry(*id).or_default().listed = Some(address.clone());
        }
    }

    /// The membership in effect has this address for a node: news of it count more than what the
    /// node told before.
    pub(crate) fn set_member(&self, id: NodeId, address: &str) {
        let mut book = self.lock();
        if book.len() >= NODES_MAX && !book.contains_key(&id) {
            return;
        }
        let places = book.entry(id).or_default();
        if places.member.as_deref() != Some(address) {
            let listed = places.listed.take();
            *places = Places { member: Some(address.to_owned()), listed, ..Places::default() };
        }
    }

    /// A member tells where it is; true: this is news.
    pub(crate) fn set_told(&self, id: NodeId, address: &str) -> bool {
        let mut book = self.lock();
        let Some(places) = book.get_mut(&id) else { return false };
        let known = places.told.as_deref().or(places.member.as_deref()) == Some(address);
        if !known {
            (places.told, places.turns) = (Some(address.to_owned()), 0);
        }
        !known
    }

    /// Another node says where a member told that it is; true: this is news.
    pub(crate) fn set_heard(&self, id: NodeId, address: &str) -> bool {
        let mut book = self.lock();
        let Some(places) = book.get_mut(&id) else { return false };
        let known = places.all().into_iter().any(|place| place == address);
        if !known {
            (places.heard, places.turns) = (Some(address.to_owned()), 0);
        }
        !known
    }

    /// What nodes told this one or another, and the membership does not have.
    pub(crate) fn told(&self) -> Vec<(NodeId, String)> {
        let book = self.lock();
        let told = |places: &Places| places.told.clone().or(places.heard.clone());
        book.iter().filter_map(|(id, places)| Some((*id, told(places)?))).collect()
    }

    /// Nodes that are no members any more make room.
    pub(crate) fn keep(&self, is_member: impl Fn(NodeId) -> bool) {
        self.lock().retain(|id, places| is_member(*id) || places.listed.is_some());
    }

    /// Where to try this node now; `otherwise` if nothing is known.
    pub(crate) fn address(&self, id: NodeId, otherwise: &str) -> String {
        let book = self.lock();
        let place = book.get(&id).and_then(Places::now);
        place.map_or_else(|| otherwise.to_owned(), Clone::clone)
    }

    /// The addresses of the list that this node was started with.
    pub(crate) fn listed(&self) -> Vec<String> {
        self.lock().values().filter_map(|places| places.listed.clone()).collect()
    }

    /// Everywhere where this node may be.
    pub(crate) fn all(&self, id: NodeId) -> Vec<String> {
        self.lock()
            .get(&id)
            .map_or_else(Vec::new, |places| places.all().into_iter().cloned().collect())
    }

    /// The node was not at this address: the next attempt is somewhere else, if there is another
    /// place.
    pub(crate) fn missed(&self, id: NodeId, address: &str) {
        if let Some(places) = self.lock().get_mut(&id)
            && places.now().is_some_and(|tried| tried == address)
        {
            places.turns = places.turns.wrapping_add(1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Places>> {
        self.0.lock().expect("invariant: nothing panics under this lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u64) -> NodeId {
        NodeId::new(number).unwrap()
    }

    #[test]
    fn tries_what_a_node_told_then_the_membership_then_the_list() {
        let book = AddressBook::default();
        assert_eq!(book.address(node(1), "old"), "old");
        assert!(!book.set_told(node(1), "x"), "of no member");
        book.set_listed(&BTreeMap::from([(node(1), "list".to_owned())]));
        book.set_member(node(1), "log");
        assert_eq!(book.address(node(1), "old"), "log");
        assert!(!book.set_told(node(1), "log"), "where it was");
        assert!(book.set_told(node(1), "told"));
        assert_eq!(book.told(), [(node(1), "told".to_owned())]);
        for expected in ["told", "log", "list", "told"] {
            let tried = book.address(node(1), "old");
            assert_eq!(tried, expected);
            book.missed(node(1), "elsewhere");
            book.missed(node(1), &tried);
        }
        book.set_member(node(1), "log");
        assert_eq!(book.all(node(1)), ["told", "log", "list"], "no news");
        assert!(!book.set_heard(node(1), "list") && book.set_heard(node(1), "other"));
        assert_eq!(book.all(node(1)), ["told", "other", "log", "list"], "it displaces nothing");
        assert_eq!(book.told(), [(node(1), "told".to_owned())], "nor is it told as news");
        assert!(book.set_told(node(1), "told2") && book.set_heard(node(1), "told"));
        assert_eq!(
            book.all(node(1)),
            ["told2", "told", "log", "list"],
            "what came last stays first"
        );
        book.set_member(node(1), "log2");
        assert_eq!(book.all(node(1)), ["log2", "list"]);
        assert_eq!(book.address(node(1), "old"), "log2");
    }

    #[test]
    fn members_that_were_taken_out_leave_room_for_others() {
        let book = AddressBook::default();
        book.set_listed(&BTreeMap::from([(node(1), "list".to_owned())]));
        for id in (1..2_000).map(node) {
            book.set_member(id, "here");
            book.keep(|member| member == id);
            assert_eq!(book.address(id, "otherwise"), "here");
        }
        assert_eq!(book.all(node(1)), ["here", "list"]);
        assert!(book.all(node(2)).is_empty());
    }
}
