//! Clients that live through the loss of their cluster: registrations that are kept, watches and
//! live views, over several clients; and what they are to show at the end.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quorate_client::{
    Client, Consistency, Discovery, InstanceBuilder, Registration, RegistrationHandle, Watch,
};
use tokio::task::JoinHandle;

use crate::cluster::{Cluster, Node};
use crate::metronome::Metronome;
use crate::wait::{LOOK_EVERY, eventually};

/// Their leases; they renew after a third of it.
pub(crate) const TTL: Duration = Duration::from_secs(15);
pub(crate) const INTERVAL: Duration = Duration::from_secs(5);
/// Beyond what is promised, in a debug build; not so much that a whole TTL would do. And so many
/// times what the machine was late.
const SLACK: Duration = Duration::from_secs(4);
const BEATS: u32 = 4;
/// For what is not measured.
const PATIENCE: Duration = Duration::from_secs(60);

const CLIENTS: usize = 5;
const SERVICES: usize = 10;
/// Of each of [`SERVICES`], by each of [`CLIENTS`]: 50 of each kind.
pub(crate) const REGISTRATIONS: usize = 4;

/// All of them.
pub(crate) struct Crowd {
    clients: Vec<Client>,
    kept: Vec<(String, RegistrationHandle)>,
    seen: Arc<Seen>,
    stop: Arc<AtomicBool>,
    /// The watches and views that were seen empty.
    sampler: JoinHandle<BTreeSet<String>>,
    metronome: Metronome,
}

/// What shows the services, by their numbers.
struct Seen {
    watches: Vec<(usize, Watch)>,
    views: Vec<(usize, Discovery)>,
}

fn service(number: usize) -> String {
    format!("s{number}")
}

async fn register(client: &Client, key: &str) -> RegistrationHandle {
    let (service, id) = key.split_once('/').unwrap();
    let instance = InstanceBuilder::new(service, id).endpoint("http", "http://h:1");
    client.register(Registration::new(instance).ttl(TTL)).await.unwrap()
}

impl Crowd {
    /// Everybody is there, and sees everybody.
    pub(crate) async fn gather(cluster: &Cluster) -> Self {
        let clients: Vec<Client> =
            (0..CLIENTS).map(|_| cluster.client().build().unwrap()).collect();
        let mut kept = Vec::new();
        for (number, client) in clients.iter().enumerate() {
            for of in 0..SERVICES * REGISTRATIONS {
                let key = format!("{}/c{number}-{of}", service(of % SERVICES));
                kept.push((key.clone(), register(client, &key).await));
            }
        }
        let each = || clients.iter().flat_map(|client| (0..SERVICES).map(move |of| (of, client)));
        let watches: Vec<_> =
            each().map(|(of, client)| (of, client.watch(service(of).as_str()))).collect();
        let views: Vec<_> = each()
            .map(|(of, client)| (of, client.discover(service(of).as_str()).unwrap()))
            .collect();
        for (_, watch) in &watches {
            watch.synced().await.unwrap();
        }
        for (_, view) in &views {
            view.synced().await;
        }
        let (seen, stop) = (Arc::new(Seen { watches, views }), Arc::new(AtomicBool::new(false)));
        let sampler = tokio::spawn(sample(seen.clone(), stop.clone()));
        // The nodes end.
        let metronome = Metronome::start(cluster, &[]).await;
        let crowd = Self { clients, kept, seen, stop, sampler, metronome };
        crowd.shows_what(&cluster.nodes[0]).await;
        crowd
    }

    /// How many are registered.
    pub(crate) fn len(&self) -> usize {
        self.kept.len()
    }

    /// One more of each client for each service.
    pub(crate) async fn grow(&mut self) {
        for (number, client) in self.clients.iter().enumerate() {
            for of in 0..SERVICES {
                let key = format!("{}/late-{number}", service(of));
                self.kept.push((key.clone(), register(client, &key).await));
            }
        }
    }

    /// So many leave in order, and with them the oldest registrations; who they were.
    pub(crate) async fn leave(&mut self, count: usize) -> Vec<String> {
        let mut gone = Vec::new();
        for (key, handle) in self.kept.drain(..count) {
            handle.deregister().await.unwrap();
            gone.push(key);
        }
        gone
    }

    /// Within two intervals from now, all are registered with the node, as members of its cluster,
    /// and each watch and each view shows what is registered.
    pub(crate) async fn is_back_with(&self, node: &Node) {
        let begun = Instant::now();
        let header = eventually("the node answers", PATIENCE, async || node.status().await).await;
        let header = header.header.unwrap();
        let cluster_id = format!("{:016x}", header.cluster_id);
        eventually("all clients have gone over", PATIENCE, async || {
            let of = |client: &Client| client.watch_cluster().borrow().map(|id| id.to_string());
            let there = |client: &&Client| of(client).as_ref() == Some(&cluster_id);
            let of_it = |(_, watch): &&(usize, Watch)| {
                let id = watch.snapshot().cluster_id().map(|id| id.to_string());
                id.as_ref() == Some(&cluster_id)
            };
            let clients = self.clients.iter().filter(there).count();
            let watches = self.seen.watches.iter().filter(of_it).count();
            match (clients, watches) == (self.clients.len(), self.seen.watches.len()) {
                true => Ok(()),
                false => Err(format!("{clients} clients and {watches} watches")),
            }
        })
        .await;
        self.shows_what(node).await;
        let (took, late) = (begun.elapsed(), self.metronome.slowest());
        eprintln!("measured: all clients had gone over after {took:?}");
        assert!(took < 2 * INTERVAL + SLACK + BEATS * late, "{took:?}, {late:?} late");
    }

    /// All are registered when the node is asked: nobody has to come back.
    pub(crate) async fn is_all_there(&self, node: &Node) {
        let there = eventually("the node answers", PATIENCE, async || registered(node).await).await;
        let lost: Vec<_> = self.kept.iter().filter(|(key, _)| !there.contains(key)).collect();
        let lost: Vec<_> = lost.into_iter().map(|(key, _)| key).collect();
        assert!(lost.is_empty(), "{} are lost: {lost:?}", lost.len());
    }

    /// All of them and nobody else.
    pub(crate) async fn is_alone_with(&self, node: &Node) {
        let expected: BTreeSet<String> = self.kept.iter().map(|(key, _)| key.clone()).collect();
        eventually("no ghost is left", PATIENCE, async || {
            let there = registered(node).await?;
            if there == expected { Ok(()) } else { Err(difference(&there, &expected)) }
        })
        .await;
        self.shows_what(node).await;
    }

    async fn shows_what(&self, node: &Node) {
        eventually("everybody sees what is registered", PATIENCE, async || {
            let there = registered(node).await?;
            if let Some((lost, _)) = self.kept.iter().find(|(key, _)| !there.contains(key)) {
                return Err(format!("{lost} is not registered"));
            }
            for (of, watch) in &self.seen.watches {
                let seen = watch.snapshot().iter().map(|it| it.id.clone()).collect();
                compare("a watch", *of, &seen, &there)?;
            }
            for (of, view) in &self.seen.views {
                let seen = view.current().iter().map(|it| it.id.clone()).collect();
                compare("a view", *of, &seen, &there)?;
            }
            Ok(())
        })
        .await;
    }

    /// No watch and no view was ever empty.
    pub(crate) async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        let empty = self.sampler.await.unwrap();
        assert!(empty.is_empty(), "empty for a moment: {empty:?}");
    }
}

/// "service/id" of everything that is registered.
async fn registered(node: &Node) -> Result<BTreeSet<String>, String> {
    let state = node.instances(Consistency::Linearizable).await;
    Ok(state.map_err(|status| status.to_string())?.into_keys().collect())
}

fn compare(
    what: &str,
    of: usize,
    seen: &BTreeSet<String>,
    there: &BTreeSet<String>,
) -> Result<(), String> {
    let service = service(of);
    let of_it = there.iter().filter_map(|key| key.strip_prefix(&format!("{service}/")));
    let expected: BTreeSet<String> = of_it.map(str::to_owned).collect();
    match *seen == expected {
        true => Ok(()),
        false => Err(format!("{what} of {service}: {}", difference(seen, &expected))),
    }
}

fn difference(seen: &BTreeSet<String>, expected: &BTreeSet<String>) -> String {
    let (missing, extra): (Vec<_>, Vec<_>) =
        (expected.difference(seen).collect(), seen.difference(expected).collect());
    format!("{} too few: {missing:?}, {} too many: {extra:?}", missing.len(), extra.len())
}

async fn sample(seen: Arc<Seen>, stop: Arc<AtomicBool>) -> BTreeSet<String> {
    let mut empty = BTreeSet::new();
    while !stop.load(Ordering::Relaxed) {
        let watches = seen.watches.iter().filter(|(_, watch)| watch.snapshot().is_empty());
        empty.extend(watches.map(|(of, _)| format!("a watch of {}", service(*of))));
        let views = seen.views.iter().filter(|(_, view)| view.current().is_empty());
        empty.extend(views.map(|(of, _)| format!("a view of {}", service(*of))));
        tokio::time::sleep(LOOK_EVERY).await;
    }
    empty
}
