//! A tonic channel whose endpoints follow a live view, so that generated clients need not know of
//! the registry.

mod reach;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::mpsc::{self, Sender};
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::channel::Change;
use tonic::transport::{Channel, Endpoint};

use self::reach::{Number, Report, Shared, keep};
use crate::following::{Discovery, Instances};

/// Changes of the endpoints on their way to the channel, and what is reported of them.
const CHANGES_MAX: usize = 1_024;

/// A new connection has this long, unless set: a round trip or two across the world, and no call
/// waits long for an instance that is gone.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection with calls under way is pinged this often, and given up when it does not answer for
/// that long: an instance whose machine is gone fails its calls after 15 s at most.
const PING_EVERY: Duration = Duration::from_secs(10);
const PONG_WITHIN: Duration = Duration::from_secs(5);

/// Makes a [`Channel`] to a service; from [`crate::Client::channel_to`].
///
/// ```no_run
/// # fn example(client: quorate_client::Client) -> Result<(), quorate_client::Error> {
/// let near = quorate_client::Selector::service("greeter").zone("eu-1a");
/// let channel = client.channel_to(near)?.endpoint("internal").connect();
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct ChannelBuilder {
    discovery: Discovery,
    endpoint: Option<String>,
    connect_timeout: Duration,
}

/// An endpoint of the channel: an instance's run, where it can be called.
type Key = (String, u64, String);

impl ChannelBuilder {
    pub(crate) fn new(discovery: Discovery) -> Self {
        Self { discovery, endpoint: None, connect_timeout: CONNECT_TIMEOUT }
    }

    /// The name of the instances' endpoint to be called; unless set, "grpc", else "http", else the
    /// first.
    pub fn endpoint(mut self, name: impl Into<String>) -> Self {
        self.endpoint = Some(name.into());
        self
    }

    /// How long making a connection may take; 1 s unless set.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Makes the channel. A call goes to one of the instances that can be called and whose weight
    /// is not 0, at random and evenly. While there is none, calls wait: give them a deadline. Calls
    /// in flight to an instance that leaves the view are finished. The channel follows the view
    /// until its last clone is dropped.
    ///
    /// An instance gets calls while it can be reached: one that refuses connections, or has closed
    /// its own, gets none until a new one holds, which is tried every 2 s at most. When none can be
    /// reached, calls fail at once, as UNAVAILABLE. No call is made twice, so calls in flight to an
    /// instance that dies fail. [`crate::Caller`] tries another one, weighs, and counts the calls
    /// in flight.
    ///
    /// Must be called within a tokio runtime.
    pub fn connect(self) -> Channel {
        let (channel, changes) = Channel::balance_channel(CHANGES_MAX);
        tokio::spawn(self.follow(changes));
        channel
    }

    async fn follow(mut self, changes: Sender<Change<Number, Endpoint>>) {
        let (reports, mut inbox) = mpsc::channel(CHANGES_MAX);
        let mut list =
            List { shared: Shared::new(changes.clone(), reports), known: BTreeMap::new() };
        list.follow(self.wanted(&self.discovery.current())).await;
        loop {
            tokio::select! {
                instances = self.discovery.changed() => list.follow(self.wanted(&instances)).await,
                // The list holds a sender.
                Some(report) = inbox.recv() => list.take(report).await,
                () = changes.closed() => return,
            }
        }
    }

    fn wanted(&self, instances: &Instances) -> BTreeMap<Key, Endpoint> {
        let mut wanted = BTreeMap::new();
        for instance in instances.iter().filter(|instance| instance.weight > 0) {
            let endpoints = &instance.endpoints;
            let uri = match &self.endpoint {
                Some(name) => endpoints.get(name),
                None => ["grpc", "http"].iter().find_map(|name| endpoints.get(*name)),
            };
            let uri = uri.or_else(|| endpoints.values().min().filter(|_| self.endpoint.is_none()));
            let endpoint = uri.map(|uri| (uri, self.configured(uri)));
            let Some((uri, Ok(endpoint))) = endpoint else {
                tracing::warn!(
                    id = instance.id,
                    ?uri,
                    "an instance without a usable endpoint gets no calls"
                );
                continue;
            };
            wanted.insert((instance.id.clone(), instance.incarnation, uri.clone()), endpoint);
        }
        wanted
    }

    fn configured(&self, uri: &str) -> Result<Endpoint, tonic::transport::Error> {
        // "grpc://" is how many name plain gRPC; the transport knows it as http.
        let uri =
            uri.strip_prefix("grpc://").map_or(uri.to_owned(), |rest| format!("http://{rest}"));
        let endpoint = Endpoint::from_shared(uri)?;
        Ok(endpoint
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PONG_WITHIN))
    }
}

/// The endpoints of a view, and which of them are in the channel's list: the reachable ones. When
/// none can, all are, so that calls fail at once, with the reason, and do not wait for ever.
struct List {
    shared: Shared,
    known: BTreeMap<Key, Known>,
}

struct Known {
    endpoint: Endpoint,
    /// `None`: not known yet.
    is_up: Option<bool>,
    listed: Option<Number>,
    _keeps: AbortOnDropHandle<()>,
}

impl List {
    /// Takes the endpoints of a new view.
    async fn follow(&mut self, mut wanted: BTreeMap<Key, Endpoint>) {
        let left: Vec<Key> =
            self.known.keys().filter(|key| !wanted.contains_key(*key)).cloned().collect();
        for key in left {
            let known = self.known.remove(&key);
            self.unlist(known.and_then(|known| known.listed)).await;
        }
        wanted.retain(|key, _| !self.known.contains_key(key));
        for (key, endpoint) in wanted {
            let keeps = tokio::spawn(keep(key.clone(), endpoint.clone(), self.shared.clone()));
            let keeps = AbortOnDropHandle::new(keeps);
            let known = Known { endpoint, is_up: None, listed: None, _keeps: keeps };
            self.known.insert(key, known);
        }
        self.settle().await;
    }

    async fn take(&mut self, report: Report) {
        let (key, up) = match report {
            Report::Up(key, number, endpoint) => (key, Some((number, endpoint))),
            Report::Down(key) => (key, None),
        };
        // One that has left the view may still be spoken of.
        let Some(known) = self.known.get_mut(&key) else { return };
        known.is_up = Some(up.is_some());
        let before = known.listed.take();
        if let Some((number, endpoint)) = up {
            known.listed = Some(number);
            self.list(number, *endpoint).await;
        }
        self.unlist(before).await;
        self.settle().await;
    }

    /// Endpoints that cannot be reached are in the list when there is no other, and only then.
    async fn settle(&mut self) {
        let all_down = self.known.values().all(|known| known.is_up == Some(false));
        let any_up = self.known.values().any(|known| known.is_up == Some(true));
        let mut moves = Vec::new();
        for known in self.known.values_mut().filter(|known| known.is_up == Some(false)) {
            if all_down && known.listed.is_none() {
                let number = self.shared.number();
                known.listed = Some(number);
                moves.push(Change::Insert(number, known.endpoint.clone()));
            } else if any_up {
                moves.extend(known.listed.take().map(Change::Remove));
            }
        }
        for change in moves {
            self.send(change).await;
        }
    }

    async fn list(&self, number: Number, endpoint: Endpoint) {
        self.send(Change::Insert(number, endpoint)).await;
    }

    async fn unlist(&self, number: Option<Number>) {
        if let Some(number) = number {
            self.send(Change::Remove(number)).await;
        }
    }

    async fn send(&self, change: Change<Number, Endpoint>) {
        // Fails when the channel is gone, which ends the task.
        let _gone = self.shared.changes.send(change).await;
    }
}
