//! One connection to one node, whichever the peer: the calls that the workloads make, with the same
//! meaning on both. Both peers are driven by the same code below: generated stubs over one HTTP/2
//! connection each, and answers in bulk as `bulk` reads them.

mod bulk;
mod etcd;
mod http2;
mod json;
mod quorate;

use std::num::NonZeroU64;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub(crate) use self::http2::Http2;
pub(crate) use self::json::Json;
use crate::certs::Address;
use crate::item::Item;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Peer {
    Quorate,
    Etcd,
    /// Quorate without TLS, beside Quorate with it.
    Plain,
}

impl Peer {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Quorate => "quorate",
            Self::Etcd => "etcd",
            Self::Plain => "plain",
        }
    }
}

/// A connection to one node. Clones share it.
#[derive(Clone)]
pub(crate) enum Connection {
    Quorate(quorate::Connection),
    Etcd(etcd::Connection),
}

/// How fresh a fetch has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Freshness {
    Linearizable,
    /// etcd's word for it is serializable.
    Local,
}

/// What a fetch brought, counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) instances: usize,
    pub(crate) value_bytes: usize,
}

/// What a node says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NodeView {
    pub(crate) own_id: u64,
    /// `None`: it knows none.
    pub(crate) leader_id: Option<NonZeroU64>,
    pub(crate) applied: u64,
}

/// What a watcher received of one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Event {
    /// The instance's number.
    pub(crate) number: u64,
    /// Which change; none: it was removed.
    pub(crate) stamp: Option<u64>,
}

/// A stream of renewals. Answers come in the order of the sends.
pub(crate) enum RenewStream {
    Quorate(quorate::RenewStream),
    Etcd(etcd::RenewStream),
}

/// A watch on services whose names begin with something.
pub(crate) enum WatchStream {
    Quorate(quorate::WatchStream),
    Etcd(etcd::WatchStream),
    /// Either peer's, by HTTP.
    Lines(json::Lines),
}

/// Instances in a page.
const PAGE: u32 = 1_000;
/// The largest answer taken: a whole state of a few 100,000 instances in one.
const DECODE_MAX: usize = 1024 * 1024 * 1024;

impl Connection {
    pub(crate) async fn open(peer: Peer, address: &Address) -> Result<Self> {
        let http2 = Http2::connect(address).await?;
        Ok(match peer {
            Peer::Quorate | Peer::Plain => Self::Quorate(quorate::Connection::new(http2)),
            Peer::Etcd => Self::Etcd(etcd::Connection::new(http2)),
        })
    }

    /// Registers an instance: under a lease of its own where `lease` is 0 (on etcd a grant and a
    /// put), else under that one. Returns the lease.
    pub(crate) async fn register(&self, item: &Item, lease: u64, ttl: Duration) -> Result<u64> {
        match self {
            Self::Quorate(quorate) => quorate.register(&[item], lease, ttl).await,
            Self::Etcd(etcd) => etcd.register(item, lease, ttl).await,
        }
    }

    /// Registers many instances under one new lease with one call; none: the peer has no such call.
    pub(crate) async fn register_bulk(
        &self,
        items: &[&Item],
        ttl: Duration,
    ) -> Option<Result<u64>> {
        match self {
            Self::Quorate(quorate) => Some(quorate.register(items, 0, ttl).await),
            Self::Etcd(_) => None,
        }
    }

    /// Writes a registered instance's value anew.
    pub(crate) async fn change(&self, item: &Item, lease: u64) -> Result<()> {
        match self {
            Self::Quorate(quorate) => quorate.change(item).await,
            Self::Etcd(etcd) => etcd.put(item, lease).await,
        }
    }

    /// Renews one lease; an error if it is gone.
    pub(crate) async fn renew(&self, lease: u64) -> Result<()> {
        match self {
            Self::Quorate(quorate) => quorate.renew(&[lease]).await,
            Self::Etcd(etcd) => etcd.renew(lease).await,
        }
    }

    /// Opens a stream of renewals with a first one, which is answered when this returns: etcd says
    /// nothing before.
    pub(crate) async fn renew_stream(&self, lease: u64) -> Result<RenewStream> {
        Ok(match self {
            Self::Quorate(quorate) => RenewStream::Quorate(quorate.renew_stream(lease).await?),
            Self::Etcd(etcd) => RenewStream::Etcd(etcd.renew_stream(lease).await?),
        })
    }

    /// Reads a service and counts what came.
    pub(crate) async fn fetch(&self, service: &str, freshness: Freshness) -> Result<Counted> {
        match self {
            Self::Quorate(quorate) => quorate.fetch(service, freshness).await,
            Self::Etcd(etcd) => etcd.fetch(service, freshness).await,
        }
    }

    /// Reads up to 1,000 instances of the services whose names begin with `group`, linearizable,
    /// and counts them: the first, or those behind a page. And where the next page begins, if
    /// there is one.
    pub(crate) async fn page(
        &self,
        group: &str,
        after: Option<Bytes>,
    ) -> Result<(Counted, Option<Bytes>)> {
        match self {
            Self::Quorate(quorate) => quorate.page(group, after).await,
            Self::Etcd(etcd) => etcd.page(group, after).await,
        }
    }

    /// Reads a service, linearizable, as it is: to compare.
    pub(crate) async fn items(&self, service: &str) -> Result<Vec<Item>> {
        match self {
            Self::Quorate(quorate) => quorate.items(service).await,
            Self::Etcd(etcd) => etcd.items(service).await,
        }
    }

    /// How many instances the services have whose names begin with `group`, linearizable.
    pub(crate) async fn count(&self, group: &str) -> Result<u64> {
        match self {
            Self::Quorate(quorate) => quorate.count(group).await,
            Self::Etcd(etcd) => etcd.count(group).await,
        }
    }

    /// Follows all services whose names begin with `group`. Returns when the position is taken:
    /// what is written from then on will come.
    pub(crate) async fn watch(&self, group: &str) -> Result<WatchStream> {
        Ok(match self {
            Self::Quorate(quorate) => WatchStream::Quorate(quorate.watch(group).await?),
            Self::Etcd(etcd) => WatchStream::Etcd(etcd.watch(group).await?),
        })
    }

    pub(crate) async fn view(&self) -> Result<NodeView> {
        match self {
            Self::Quorate(quorate) => quorate.view().await,
            Self::Etcd(etcd) => etcd.view().await,
        }
    }

    /// Streams a consistent copy of the whole state; its length in bytes.
    pub(crate) async fn backup(&self) -> Result<u64> {
        match self {
            Self::Quorate(quorate) => quorate.backup().await,
            Self::Etcd(etcd) => etcd.backup().await,
        }
    }

    /// Builds a snapshot for the log on this node; none: the peer has no such call.
    pub(crate) async fn snapshot(&self) -> Option<Result<()>> {
        match self {
            Self::Quorate(quorate) => Some(quorate.snapshot().await),
            Self::Etcd(_) => None,
        }
    }
}

impl RenewStream {
    /// Sends one renewal. Waits only if the transport does.
    pub(crate) async fn send(&mut self, lease: u64) -> Result<()> {
        match self {
            Self::Quorate(stream) => stream.send(lease).await,
            Self::Etcd(stream) => stream.send(lease).await,
        }
    }

    /// Waits for the answer to the oldest send that has none; an error if the lease is gone.
    pub(crate) async fn answer(&mut self) -> Result<()> {
        match self {
            Self::Quorate(stream) => stream.answer().await,
            Self::Etcd(stream) => stream.answer().await,
        }
    }
}

impl WatchStream {
    /// Waits for the next message and adds its events. Messages without events (bookmarks) add
    /// none.
    pub(crate) async fn next(&mut self, events: &mut Vec<Event>) -> Result<()> {
        match self {
            Self::Quorate(stream) => stream.next(events).await,
            Self::Etcd(stream) => stream.next(events).await,
            Self::Lines(lines) => lines.next(events).await,
        }
    }
}
