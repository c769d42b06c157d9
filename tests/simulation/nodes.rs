//! The nodes as a simulated client goes round them.

use std::sync::Arc;

use quorate_proto::v1::registry_client::RegistryClient;
use tonic::transport::Channel;

use super::history::Shared;
use super::net::channel;
use super::plan::{NODES, Plan};

/// Clients of all nodes, as one host has them; goes round the members of the moment.
#[derive(Clone)]
pub(crate) struct Nodes {
    /// By node, from 1 on.
    channels: Vec<Channel>,
    at: u64,
    notes: Shared,
}

impl Nodes {
    pub(crate) fn new(plan: &Arc<Plan>, at: u64, notes: &Shared) -> Self {
        let channels = plan.nodes().map(|node| channel(plan, node)).collect();
        Self { channels, at: at % NODES + 1, notes: notes.clone() }
    }

    pub(crate) fn node(&self) -> u64 {
        self.at
    }

    pub(crate) fn go_to(&mut self, node: u64) {
        self.at = node;
    }

    pub(crate) fn next(&mut self) {
        let notes = self.notes.borrow();
        let next = notes.members.range(self.at + 1..).next().or(notes.members.first());
        self.at = *next.expect("there are always members");
    }

    /// From a node that was taken out to one that was not.
    pub(crate) fn leave_removed(&mut self) {
        let is_member = self.notes.borrow().members.contains(&self.at);
        if !is_member {
            self.next();
        }
    }

    pub(crate) fn client(&self) -> RegistryClient<Channel> {
        RegistryClient::new(self.channel())
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channels[self.at as usize - 1].clone()
    }

    pub(crate) fn notes(&self) -> &Shared {
        &self.notes
    }
}
