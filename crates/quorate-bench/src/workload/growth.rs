//! W8: what an operation costs the servers as the state grows, and as the watchers do. Ours only:
//! the wish is that it hardly grows.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{LONG_TTL, PREPARING, Setting, renew, watch};
use crate::cluster::Cluster;
use crate::item::{self, Item};
use crate::load::{Measured, Until, closed_loop};
use crate::sample::{Better, Samples};
use crate::wire::{Connection, Freshness, Peer};

const GROUP: &str = "grown";
const ADDED: &str = "added";
const SIZES: [u64; 3] = [1_000, 10_000, 100_000];
const SIZE_LARGE: u64 = 1_000_000;
const WATCHERS: [usize; 3] = [1_000, 5_000, 20_000];
/// Connections of the watchers.
const WATCH_CONNECTIONS: usize = 30;
const REGISTRATIONS: u64 = 2_000;
const IN_FLIGHT: usize = 64;
const WINDOW: usize = 32;
const SECONDS: f64 = 4.0;
/// Leases that are renewed, of all that there are.
const RENEWED_MAX: usize = 20_000;

/// What one kind of operation cost at each size: microseconds of all servers.
type Costs = Vec<(u64, f64)>;

pub(super) async fn run(setting: &Setting<'_>, peer: Peer, samples: &mut Samples) -> Result<()> {
    if peer == Peer::Etcd {
        return Ok(());
    }
    let mut sizes = SIZES.to_vec();
    if setting.large {
        sizes.push(SIZE_LARGE);
    }
    let mut kinds: [(&str, Costs); 4] =
        [("register", vec![]), ("renew", vec![]), ("fetch", vec![]), ("event", vec![])];
    for size in sizes {
        let size = setting.scaled(size, 200);
        let costs = at_size(setting, size).await.with_context(|| format!("{size} instances"))?;
        for ((_, all), cost) in kinds.iter_mut().zip(costs) {
            all.push((size, cost));
        }
    }
    let mut watchers = Costs::new();
    for count in WATCHERS {
        let count = setting.scaled(count as u64, 50);
        let cost = with_watchers(setting, count).await;
        watchers.push((count, cost.with_context(|| format!("{count} watchers"))?));
    }
    for (kind, costs) in kinds.iter().map(|(kind, costs)| (*kind, costs)) {
        add(samples, kind, costs);
    }
    add(samples, "event, watchers", &watchers);
    Ok(())
}

fn add(samples: &mut Samples, name: &str, costs: &Costs) {
    for (size, cost) in costs {
        let mut variant = samples.of("W8", format!("{name} at {size}"));
        variant.add("server cpu each", "us", Better::Lower, *cost);
    }
    let growths = costs.windows(2).map(|pair| growth(pair[0], pair[1]));
    let worst = growths.fold(0.0, f64::max);
    samples.of("W8", name).add("growth each 10x", "x", Better::Lower, worst);
}

/// By how much a cost grows for each ten times of size, between two sizes.
fn growth((size, cost): (u64, f64), (later_size, later_cost): (u64, f64)) -> f64 {
    let tens = (later_size as f64 / size as f64).log10();
    if cost <= 0.0 || tens <= 0.0 {
        return f64::NAN;
    }
    (later_cost / cost).powf(1.0 / tens)
}

fn each_us(measured: &Measured) -> f64 {
    let servers: Duration = measured.cpu.servers.iter().sum();
    servers.as_secs_f64() * 1e6 / measured.operations as f64
}

/// The costs of a registration, a renewal, a fetch and an event in a registry of this size.
async fn at_size(setting: &Setting<'_>, size: u64) -> Result<[f64; 4]> {
    let (cluster, connections) = setting.cluster(Peer::Quorate).await?;
    let leases = setting.prepare(&cluster, &connections, GROUP, size, LONG_TTL).await?;
    let watched = watch::prepare(setting, &cluster, &connections).await?;
    cluster.caught_up().await?;
    let time = setting.seconds(SECONDS);

    let renewed = &leases[..leases.len().min(RENEWED_MAX)];
    let renewal = renew::phase(&cluster, &connections, renewed, WINDOW, time).await?;
    let fetch = fetches(&cluster, &connections, time).await?;
    let shape = watch::Shape {
        name: "growth",
        watchers: 100,
        connections: WATCH_CONNECTIONS,
        per_second: Some(200.0),
        http: false,
    };
    let driven = watch::drive(&cluster, &connections, &shape, &watched, time).await?;
    // Last: these add to what is there.
    let all = connections.clone();
    let register = move |_, number: u64| {
        let connection = all[number as usize % all.len()].clone();
        async move { connection.register(&Item::new(ADDED, number, 0), 0, LONG_TTL).await.map(|_| ()) }
    };
    let until = Until::Count(setting.scaled(REGISTRATIONS, 100));
    let registered = closed_loop(&cluster, IN_FLIGHT, until, register).await?;
    let found = connections[0].count(GROUP).await?;
    ensure!(found == size, "{found} of {size} are there");
    Ok([each_us(&registered), each_us(&renewal), each_us(&fetch), driven.server_cpu_each_us()])
}

async fn fetches(
    cluster: &Cluster,
    connections: &[Connection],
    time: Duration,
) -> Result<Measured> {
    let all: Arc<[Connection]> = connections.into();
    let fetch = move |_, number: u64| {
        let all = all.clone();
        async move {
            let connection = &all[number as usize % all.len()];
            let service = item::service(GROUP, 0);
            let found = connection.fetch(&service, Freshness::Linearizable).await?;
            ensure!(found.instances > 0, "an empty answer");
            Ok(())
        }
    };
    closed_loop(cluster, IN_FLIGHT.min(PREPARING), Until::Time(time), fetch).await
}

/// The cost of an event with this many watchers.
async fn with_watchers(setting: &Setting<'_>, watchers: u64) -> Result<f64> {
    let (cluster, connections) = setting.cluster(Peer::Quorate).await?;
    let watched = watch::prepare(setting, &cluster, &connections).await?;
    let shape = watch::Shape {
        name: "growth",
        watchers: usize::try_from(watchers)?,
        connections: WATCH_CONNECTIONS,
        // As many events a second whatever the number of watchers.
        per_second: Some(40_000.0 / watchers as f64),
        http: false,
    };
    let time = setting.seconds(SECONDS * 2.0);
    Ok(watch::drive(&cluster, &connections, &shape, &watched, time).await?.server_cpu_each_us())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_told_for_each_ten_times() {
        assert_eq!(growth((1_000, 2.0), (10_000, 3.0)), 1.5);
        assert!((growth((1_000, 2.0), (100_000, 8.0)) - 2.0).abs() < 1e-9);
        assert!(growth((1_000, 0.0), (10_000, 3.0)).is_nan());
    }
}
