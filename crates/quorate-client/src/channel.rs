//! A tonic channel whose endpoints follow a live view, so that generated clients need not know of the registry.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tonic::transport::channel::Change;
use tonic::transport::{Channel, Endpoint};

use crate::discovery::{Discovery, Instances};

/// Changes of the endpoints on their way to the channel.
const CHANGES_MAX: usize = 1_024;

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
        Self { discovery, endpoint: None, connect_timeout: Duration::from_secs(1) }
    }

    /// The name of the instances' endpoint to be called; unless set, "grpc", else "http", else the first.
    pub fn endpoint(mut self, name: impl Into<String>) -> Self {
        self.endpoint = Some(name.into());
        self
    }

    /// How long making a connection may take; 1 s unless set.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Makes the channel. A call goes to one of the instances that can be called and whose weight is not 0, at random and
    /// evenly. While there is none, calls wait: give them a deadline. Calls in flight to an instance that leaves the view
    /// are finished. The channel follows the view until its last clone is dropped.
    ///
    /// It does not call twice: an instance that died fails the calls that were sent to it, as UNAVAILABLE, until its lease
    /// ends. [`crate::Caller`] tries another one, weighs, and counts the calls in flight.
    ///
    /// Must be called within a tokio runtime.
    pub fn connect(self) -> Channel {
        let (channel, changes) = Channel::balance_channel(CHANGES_MAX);
        tokio::spawn(self.follow(changes));
        channel
    }

    async fn follow(mut self, changes: Sender<Change<Key, Endpoint>>) {
        let mut known: BTreeMap<Key, ()> = BTreeMap::new();
        loop {
            let wanted = self.wanted(&self.discovery.current());
            // New ones first, so that there is always somebody to call.
            for (key, endpoint) in &wanted {
                let insert = Change::Insert(key.clone(), endpoint.clone());
                if !known.contains_key(key) && changes.send(insert).await.is_err() {
                    return;
                }
            }
            for key in known.keys().filter(|key| !wanted.contains_key(*key)) {
                if changes.send(Change::Remove(key.clone())).await.is_err() {
                    return;
                }
            }
            known = wanted.into_keys().map(|key| (key, ())).collect();
            tokio::select! {
                _changed = self.discovery.changed() => {}
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
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5)))
    }
}
