//! W2b: leases that are only held. Ours by the client crate, as services hold theirs: a client with
//! many registrations, or many clients with one. etcd's as its clients do it: a stream a client, a
//! message a lease three times a TTL.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quorate_client::{
    Client, InstanceBuilder, Registration, RegistrationHandle, RegistrationState,
};
use tokio::task::JoinSet;

use super::Setting;
use crate::certs::Address;
use crate::cluster::Cluster;
use crate::item::Item;
use crate::load::{Cpu, CpuMark};
use crate::sample::{Better, Samples};
use crate::wire::{Connection, Peer};

const GROUP: &str = "held";
/// How long is measured, after everything was renewed once.
const SECONDS: f64 = 20.0;
/// Clients that register at once.
const REGISTERING: usize = 64;
/// To register a million takes minutes, beside renewals and snapshots; one call that is late then
/// shall not end it all.
const REGISTER_WITHIN: Duration = Duration::from_secs(60);

/// The leases of one client.
struct Shape {
    name: &'static str,
    clients: u64,
    leases_each: u64,
    ttl: Duration,
    large: bool,
}

const SHAPES: [Shape; 3] = [
    Shape {
        name: "10k leases, 100 clients",
        clients: 100,
        leases_each: 100,
        ttl: Duration::from_secs(10),
        large: false,
    },
    Shape {
        name: "5k leases, 5k clients",
        clients: 5_000,
        leases_each: 1,
        ttl: Duration::from_secs(10),
        large: false,
    },
    Shape {
        name: "1M leases, 1k clients",
        clients: 1_000,
        leases_each: 1_000,
        ttl: Duration::from_secs(30),
        large: true,
    },
];

/// One client that has registered.
enum Started {
    /// It renews by itself while these live.
    Quorate(Client, Vec<Held>),
    Etcd(Keeper),
}

/// A registration and the lease that it was granted first.
struct Held {
    registration: RegistrationHandle,
    lease: u64,
}

impl Held {
    /// Whether it has had another lease since: the client registers again what has ended.
    fn has_ended(&self) -> bool {
        match self.registration.state() {
            RegistrationState::Registered(lease) => lease.id != self.lease,
            // Counted where instances are.
            _ => false,
        }
    }
}

/// All clients, renewing.
#[derive(Default)]
struct Holders {
    quorate: Vec<(Client, Vec<Held>)>,
    etcd: JoinSet<Result<()>>,
}

impl Holders {
    /// Leases of ours that have ended, though their instances may be registered again.
    fn ended(&self) -> u64 {
        let all = self.quorate.iter().flat_map(|(_, held)| held);
        all.filter(|held| held.has_ended()).count() as u64
    }

    fn take(&mut self, started: Started) {
        match started {
            Started::Quorate(client, registrations) => self.quorate.push((client, registrations)),
            Started::Etcd(keeper) => {
                self.etcd.spawn(keeper.run());
            }
        }
    }
}

pub(super) async fn run(setting: &Setting<'_>, peer: Peer, samples: &mut Samples) -> Result<()> {
    for shape in SHAPES.iter().filter(|shape| setting.large || !shape.large) {
        // etcd renews some 25,000 leases a second with all of this machine, a third of what this
        // needs.
        if peer == Peer::Etcd && shape.large {
            continue;
        }
        one(setting, peer, shape, samples).await.with_context(|| shape.name.to_owned())?;
    }
    Ok(())
}

async fn one(
    setting: &Setting<'_>,
    peer: Peer,
    shape: &Shape,
    samples: &mut Samples,
) -> Result<()> {
    let clients = setting.scaled(shape.clients, 2);
    let cluster = Cluster::start(peer, setting.programs, setting.dir, setting.keep).await?;
    let addresses: Vec<Address> = cluster.nodes.iter().map(|node| node.address.clone()).collect();
    let mut holders = start(peer, &addresses, clients, shape).await?;
    tokio::time::sleep(shape.ttl / 2).await;
    let before = holders.ended();
    ensure!(before == 0, "{before} leases ended while others were registered");
    // Longer than a TTL, so that what is not renewed is gone.
    let long = setting.seconds(SECONDS).max(shape.ttl + Duration::from_secs(2));
    let Used { cpu, elapsed, busiest } = measure(&cluster, long).await?;
    let holding = holders.quorate.len() + holders.etcd.len();
    ensure!(holding as u64 == clients, "{holding} of {clients} clients hold");
    if let Some(ended) = holders.etcd.try_join_next() {
        ended?.context("a client stopped renewing")?;
    }
    let left = cluster.connect(1).await?[0].count(GROUP).await?;
    let lost = clients * shape.leases_each - left;
    let share = |time: Duration| time.as_secs_f64() / elapsed * 100.0;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let nodes = cluster.memory()?.into_iter().map(|memory| memory.resident).max();
    let servers: Duration = cpu.servers.iter().sum();
    let mut variant = samples.of("W2b", shape.name);
    variant.add("servers' cpu", "% of a core", Better::Lower, share(servers));
    variant.add("client cpu", "% of a core", Better::Neither, share(cpu.client));
    variant.add("all cpu", "% of a core", Better::Lower, share(servers + cpu.client));
    variant.worst("servers' cpu, busiest second", "% of a core", Better::Neither, busiest);
    variant.add("memory, largest node", "MiB", Better::Neither, mib(nodes.unwrap_or_default()));
    let expired = lost.max(holders.ended());
    variant.worst("false expiries", "leases", Better::Neither, expired as f64);
    Ok(())
}

/// What holding took.
struct Used {
    cpu: Cpu,
    /// Seconds.
    elapsed: f64,
    /// The servers' share of a core in the worst second: renewals are to be spread in time.
    busiest: f64,
}

async fn measure(cluster: &Cluster, long: Duration) -> Result<Used> {
    let (all, begun) = (CpuMark::set(cluster)?, Instant::now());
    let mut busiest: f64 = 0.0;
    while begun.elapsed() < long {
        let (second, since) = (CpuMark::set(cluster)?, Instant::now());
        tokio::time::sleep(Duration::from_secs(1)).await;
        let used: Duration = second.used()?.servers.iter().sum();
        busiest = busiest.max(used.as_secs_f64() / since.elapsed().as_secs_f64() * 100.0);
    }
    Ok(Used { cpu: all.used()?, elapsed: begun.elapsed().as_secs_f64(), busiest })
}

/// Starts the clients; each renews from when it has registered.
async fn start(peer: Peer, addresses: &[Address], clients: u64, shape: &Shape) -> Result<Holders> {
    let (mut starting, mut holders) = (JoinSet::new(), Holders::default());
    let ttl = shape.ttl;
    for client in 0..clients {
        if starting.len() >= REGISTERING {
            holders.take(starting.join_next().await.context("is not empty")???);
        }
        let addresses = addresses.to_vec();
        let numbers = client * shape.leases_each..(client + 1) * shape.leases_each;
        starting.spawn(async move {
            match peer {
                Peer::Quorate | Peer::Plain => hold(addresses, numbers, ttl).await,
                Peer::Etcd => {
                    let node = &addresses[client as usize % addresses.len()];
                    Ok(Started::Etcd(Keeper::start(node, numbers, ttl).await?))
                }
            }
        });
    }
    while let Some(started) = starting.join_next().await {
        holders.take(started??);
    }
    Ok(holders)
}

/// A client of ours with its registrations, each with a lease of its own.
async fn hold(
    addresses: Vec<Address>,
    numbers: std::ops::Range<u64>,
    ttl: Duration,
) -> Result<Started> {
    let certs = addresses.first().and_then(|node| node.certs.as_ref());
    let client = Client::builder(addresses.iter().map(|node| node.text.clone()));
    let client = match certs {
        Some(certs) => client.tls(certs.tls()),
        None => client,
    };
    let client = client.call_timeout(REGISTER_WITHIN).build()?;
    let mut held = Vec::new();
    for number in numbers {
        let item = Item::new(GROUP, number, 0);
        let instance = InstanceBuilder::new(item.service, item.id)
            .endpoint("http", "http://10.0.0.1:8080")
            .meta("value", item.value);
        let registration = client.register(Registration::new(instance).ttl(ttl)).await?;
        let lease = registration.registered().await?.id;
        held.push(Held { registration, lease });
    }
    Ok(Started::Quorate(client, held))
}

/// What an etcd client does for its leases.
struct Keeper {
    connection: Connection,
    leases: Vec<u64>,
    ttl: Duration,
}

impl Keeper {
    async fn start(node: &Address, numbers: std::ops::Range<u64>, ttl: Duration) -> Result<Self> {
        let connection = Connection::open(Peer::Etcd, node).await?;
        let mut leases = Vec::new();
        for number in numbers {
            leases.push(connection.register(&Item::new(GROUP, number, 0), 0, ttl).await?);
        }
        Ok(Self { connection, leases, ttl })
    }

    /// Renews for ever, evenly spread over a third of the TTL.
    async fn run(self) -> Result<()> {
        let mut stream = self.connection.renew_stream(self.leases[0]).await?;
        let every = self.ttl / 3 / u32::try_from(self.leases.len())?;
        let mut tick = tokio::time::interval_at((Instant::now() + every).into(), every);
        for lease in self.leases.iter().cycle() {
            tick.tick().await;
            stream.send(*lease).await?;
            stream.answer().await?;
        }
        Ok(())
    }
}
