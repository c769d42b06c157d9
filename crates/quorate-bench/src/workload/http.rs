//! HTTP: what programs without a library do, by JSON. Each figure also stands beside the peer's own
//! gRPC, measured in the same cluster: the share of it that HTTP comes to.

use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result, ensure};

use super::watch::{self, Shape, shape};
use super::{LONG_TTL, Setting, verify};
use crate::cluster::Cluster;
use crate::item::{self, Item, SERVICE_SIZE};
use crate::load::{Measured, Until, closed_loop};
use crate::sample::{Better, Samples};
use crate::wire::{Connection, Freshness, Json, Peer};

const WORKLOAD: &str = "HTTP";
const BY_GRPC: &str = "regrpc";
const BY_HTTP: &str = "rehttp";
/// Each has a connection of its own, by HTTP; of gRPC they share some, as ever.
const CALLERS: usize = 64;
const SECONDS: f64 = 5.0;
const WATCHED_SECONDS: f64 = 10.0;

/// Fewer than our nodes keep (100,000 within 180 s).
const REPLAYED: u64 = 20_000;
const REPLAY: &str = "20,000 changes, made before, to 1 stream";

/// By HTTP, each full one after the same by gRPC.
const WATCHERS: [Shape; 5] = [
    Shape::by_http("20/s to 1,000 streams", 1000, Some(20.0)),
    shape("full to 1", 1, 1, None),
    Shape::by_http("full to 1 stream", 1, None),
    shape("full to 1,000, own conns", 1000, 1000, None),
    Shape::by_http("full to 1,000 streams", 1000, None),
];

/// The connections of the callers, each with its caller while that uses it.
#[derive(Clone)]
struct Callers(Arc<[Mutex<Option<Json>>]>);

impl Callers {
    /// Spread over the nodes.
    async fn connect(cluster: &Cluster) -> Result<Self> {
        let mut callers = Vec::new();
        for at in 0..CALLERS {
            let node = &cluster.nodes[at % cluster.nodes.len()];
            callers.push(Mutex::new(Some(Json::open(cluster.peer, &node.http).await?)));
        }
        Ok(Self(callers.into()))
    }

    fn take(&self, caller: usize) -> Result<Json> {
        let mut place = self.0[caller].lock().expect(HELD_BRIEFLY);
        place.take().context("a caller makes one call at a time")
    }

    fn put(&self, caller: usize, connection: Json) {
        *self.0[caller].lock().expect(HELD_BRIEFLY) = Some(connection);
    }
}

const HELD_BRIEFLY: &str = "invariant: nothing panics while it is held";

pub(super) async fn run(setting: &Setting<'_>, peer: Peer, samples: &mut Samples) -> Result<()> {
    ensure!(setting.programs.certs.is_none(), "HTTP is measured without TLS");
    calls(setting, peer, samples).await?;
    let mut by_grpc = 0.0;
    for shape in &WATCHERS {
        let shape = shape.scaled(setting.scale);
        let (cluster, connections) = setting.cluster(peer).await?;
        let leases = watch::prepare(setting, &cluster, &connections).await?;
        let time = setting.seconds(WATCHED_SECONDS);
        let driven = watch::drive(&cluster, &connections, &shape, &leases, time);
        let driven = driven.await.with_context(|| shape.name.to_owned())?;
        if !shape.http {
            by_grpc = driven.events_per_second();
            continue;
        }
        watch::add(samples, WORKLOAD, &shape, &driven);
        if shape.per_second.is_none() {
            share(samples, shape.name, driven.events_per_second(), by_grpc);
        }
    }
    replay(setting, peer, samples).await
}

/// What a stream carries whose changes were made before: while they are made, it waits for them.
async fn replay(setting: &Setting<'_>, peer: Peer, samples: &mut Samples) -> Result<()> {
    let (cluster, connections) = setting.cluster(peer).await?;
    let leases = watch::prepare(setting, &cluster, &connections).await?;
    let changes = setting.scaled(REPLAYED, 1);
    let took = watch::replay(&cluster, &connections, &leases, changes).await.context(REPLAY)?;
    let rate = changes as f64 / took.as_secs_f64();
    samples.of(WORKLOAD, REPLAY).add("events", "1/s", Better::Higher, rate);
    Ok(())
}

fn share(samples: &mut Samples, variant: &str, by_http: f64, by_grpc: f64) {
    let share = by_http / by_grpc * 100.0;
    samples.of(WORKLOAD, variant).add("share of own gRPC", "%", Better::Neither, share);
}

/// Registrations, renewals and fetches.
async fn calls(setting: &Setting<'_>, peer: Peer, samples: &mut Samples) -> Result<()> {
    let (cluster, grpc) = setting.cluster(peer).await?;
    let http = Callers::connect(&cluster).await?;
    let mut add = |name: &'static str, (by_http, by_grpc): (Measured, Measured)| {
        let variant = format!("{name}, {CALLERS} callers");
        samples.of(WORKLOAD, &*variant).phase(name, &by_http);
        share(samples, &variant, by_http.per_second(), by_grpc.per_second());
    };
    let time = Until::Time(setting.seconds(SECONDS));
    let (registered, leases) = registrations(&cluster, &grpc, &http, time).await?;
    let count = registered.0.operations;
    add("registrations", registered);
    add("renewals", renewals(&cluster, &grpc, &http, leases, time).await?);
    add("fetches", fetches(&cluster, &grpc, &http, count, time).await?);
    Ok(())
}

/// By HTTP and by gRPC; the leases of those by HTTP.
async fn registrations(
    cluster: &Cluster,
    grpc: &[Connection],
    http: &Callers,
    time: Until,
) -> Result<((Measured, Measured), Arc<[u64]>)> {
    let all = grpc.to_vec();
    let register = move |_, number: u64| {
        let connection = all[number as usize % all.len()].clone();
        async move {
            let item = Item::new(BY_GRPC, number, 0);
            connection.register(&item, 0, LONG_TTL).await.map(|_| ())
        }
    };
    let by_grpc = closed_loop(cluster, CALLERS, time, register).await?;
    let (all, leases) = (http.clone(), Arc::new(Mutex::new(Vec::new())));
    let own = leases.clone();
    let register = move |caller: usize, number: u64| {
        let (all, leases) = (all.clone(), own.clone());
        async move {
            let item = Item::new(BY_HTTP, number, 0);
            let mut connection = all.take(caller)?;
            let lease = connection.register(&item, LONG_TTL).await?;
            all.put(caller, connection);
            leases.lock().expect(HELD_BRIEFLY).push(lease);
            Ok(())
        }
    };
    let by_http = closed_loop(cluster, CALLERS, time, register).await?;
    for (group, measured) in [(BY_GRPC, &by_grpc), (BY_HTTP, &by_http)] {
        verify::all_there(grpc, group, measured.operations).await?;
    }
    let leases = std::mem::take(&mut *leases.lock().expect(HELD_BRIEFLY));
    Ok(((by_http, by_grpc), leases.into()))
}

async fn renewals(
    cluster: &Cluster,
    grpc: &[Connection],
    http: &Callers,
    leases: Arc<[u64]>,
    time: Until,
) -> Result<(Measured, Measured)> {
    let (all, own) = (grpc.to_vec(), leases.clone());
    let renew = move |_, number: u64| {
        let connection = all[number as usize % all.len()].clone();
        let lease = own[number as usize % own.len()];
        async move { connection.renew(lease).await }
    };
    let by_grpc = closed_loop(cluster, CALLERS, time, renew).await?;
    let all = http.clone();
    let renew = move |caller: usize, number: u64| {
        let (all, lease) = (all.clone(), leases[number as usize % leases.len()]);
        async move {
            let mut connection = all.take(caller)?;
            connection.renew(lease).await?;
            all.put(caller, connection);
            Ok(())
        }
    };
    let by_http = closed_loop(cluster, CALLERS, time, renew).await?;
    Ok((by_http, by_grpc))
}

/// Round the whole services of these instances, in a random order.
async fn fetches(
    cluster: &Cluster,
    grpc: &[Connection],
    http: &Callers,
    count: u64,
    time: Until,
) -> Result<(Measured, Measured)> {
    let services: Arc<[u64]> = item::shuffled(count / SERVICE_SIZE).into();
    ensure!(!services.is_empty(), "no service is whole");
    let service =
        move |number: u64| item::service(BY_HTTP, services[number as usize % services.len()]);
    let (all, http, own) = (grpc.to_vec(), http.clone(), service.clone());
    let fetch = move |_, number: u64| {
        let (connection, service) = (all[number as usize % all.len()].clone(), own(number));
        async move { whole(connection.fetch(&service, Freshness::Linearizable).await?.instances) }
    };
    let by_grpc = closed_loop(cluster, CALLERS, time, fetch).await?;
    let fetch = move |caller: usize, number: u64| {
        let (all, service) = (http.clone(), service(number));
        async move {
            let mut connection = all.take(caller)?;
            let found = connection.fetch(&service).await?;
            all.put(caller, connection);
            whole(found)
        }
    };
    let by_http = closed_loop(cluster, CALLERS, time, fetch).await?;
    Ok((by_http, by_grpc))
}

fn whole(instances: usize) -> Result<()> {
    ensure!(instances as u64 == SERVICE_SIZE, "an incomplete answer: {instances}");
    Ok(())
}
