//! Streams move when nodes are added, so that the new ones get their share: with k new ones among
//! n, each stream moves with probability k/n to one of them, after a random part of the interval of
//! the member list, and one stream of a client at a time. A stream is opened on the new node before
//! the old one is let go, and goes on from where it was; where that fails, it stays, and tries
//! again an interval later. Knows nodes, not what the streams carry.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use rand::seq::IndexedRandom;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep_until};

use crate::nodes::dial::Connection;
use crate::nodes::endpoints::{Address, Endpoints};
use crate::nodes::retry::jittered;

/// Nodes that came into the list, and how many there are with them.
#[derive(Debug, Clone, Default)]
pub(super) struct Growth {
    pub(super) added: Vec<Address>,
    pub(super) members: usize,
}

/// What the streams of a client share.
#[derive(Debug)]
pub(super) struct Rebalance {
    pub(super) growth: watch::Sender<Growth>,
    /// A stream that moves has it.
    moving: Arc<Semaphore>,
    within: Duration,
}

/// One for each stream.
#[derive(Debug)]
pub(crate) struct Mover {
    endpoints: Arc<Endpoints>,
    growth: watch::Receiver<Growth>,
    /// When to move, and where to.
    planned: Option<(Instant, Address)>,
}

/// A move that is due. No other stream of the client moves while this is there.
#[derive(Debug)]
pub(crate) struct Move {
    pub(crate) address: Address,
    pub(crate) connection: Connection,
    _alone: OwnedSemaphorePermit,
}

impl Rebalance {
    pub(super) fn new(within: Duration) -> Self {
        let moving = Arc::new(Semaphore::new(1));
        Self { growth: watch::Sender::default(), moving, within }
    }
}

impl Mover {
    pub(crate) fn new(endpoints: Arc<Endpoints>) -> Self {
        let growth = endpoints.rebalance.growth.subscribe();
        Self { endpoints, growth, planned: None }
    }

    /// Waits until the stream, which is at `here`, is to move. Can be cancelled.
    pub(crate) async fn due(&mut self, here: &Address) -> Move {
        loop {
            let Some((at, address)) = self.planned.clone() else {
                let changed = self.growth.changed().await;
                changed.expect("invariant: the endpoints hold the sender, and this holds them");
                self.plan();
                continue;
            };
            sleep_until(at).await;
            let alone = self.endpoints.rebalance.moving.clone().acquire_owned().await;
            let alone = alone.expect("invariant: it is never closed");
            self.planned = None;
            let connection = self.endpoints.connection_to_member(&address);
            if let Some(connection) = connection.filter(|_| address != *here) {
                return Move { address, connection, _alone: alone };
            }
        }
    }

    /// The new node did not take the stream: later.
    pub(crate) fn try_again(&mut self, failed: &Move) {
        let pause = jittered(self.endpoints.rebalance.within);
        self.planned = Some((Instant::now() + pause, failed.address.clone()));
    }

    fn plan(&mut self) {
        let growth = self.growth.borrow_and_update();
        let mut rng = rand::rng();
        let moves = growth.members > 0 && rng.random_range(0..growth.members) < growth.added.len();
        if let Some(address) = growth.added.choose(&mut rng).filter(|_| moves) {
            let pause = self.endpoints.rebalance.within.mul_f64(rng.random());
            self.planned = Some((Instant::now() + pause, address.clone()));
        }
    }
}
