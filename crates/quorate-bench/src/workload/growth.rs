//! W8: what an operation costs the servers as the state grows, and as the watchers do. Ours only:
//! the wish is that it hardly grows.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::{LONG_TTL, Setting, fetch, renew, watch};
use crate::item::{Item, SERVICE_SIZE};
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
const IN_FLIGHT: usize = 64;
const WINDOW: usize = 32;
/// So long that a step takes the servers some two seconds of processor time, which /proc tells in
/// steps of 10 ms.
const SECONDS: f64 = 5.0;
const EVENT_SECONDS: f64 = 10.0;

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
        [("register and remove", vec![]), ("renew", vec![]), ("fetch", vec![]), ("event", vec![])];
    for size in sizes {
        let size = setting.scaled(size, 2 * SERVICE_SIZE).next_multiple_of(SERVICE_SIZE);
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
        add(samples, kind, costs)?;
    }
    add(samples, "event, watchers", &watchers)
}

fn add(samples: &mut Samples, name: &str, costs: &Costs) -> Result<()> {
    let worst = worst_growth(costs).with_context(|| format!("{name}: {costs:?} say no growth"))?;
    for (size, cost) in costs {
        let mut variant = samples.of("W8", format!("{name} at {size}"));
        variant.add("server cpu each", "us", Better::Lower, *cost);
    }
    samples.of("W8", name).worst("growth each 10x", "x", Better::Lower, worst);
    Ok(())
}

/// The largest growth between two sizes; none if a cost cannot be one.
fn worst_growth(costs: &Costs) -> Option<f64> {
    let growths = costs.windows(2).map(|pair| growth(pair[0], pair[1]));
    growths.collect::<Option<Vec<f64>>>()?.into_iter().max_by(f64::total_cmp)
}

/// By how much a cost grows for each ten times of size, between two sizes.
fn growth((size, cost): (u64, f64), (later_size, later_cost): (u64, f64)) -> Option<f64> {
    let tens = (later_size as f64 / size as f64).log10();
    let told = cost > 0.0 && later_cost > 0.0 && tens > 0.0;
    Some((later_cost / cost).powf(1.0 / tens)).filter(|growth| told && growth.is_finite())
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

    let renewal = renew::phase(&cluster, &connections, &leases, WINDOW, time).await?;
    let group = (GROUP, size);
    let fetching =
        fetch::fetches(&cluster, &connections, group, Freshness::Linearizable, IN_FLIGHT, time);
    let fetch = fetching.await?;
    let shape = watch::Shape {
        name: "growth",
        watchers: 100,
        connections: WATCH_CONNECTIONS,
        per_second: Some(200.0),
        http: false,
    };
    let events = setting.seconds(EVENT_SECONDS);
    let driven = watch::drive(&cluster, &connections, &shape, &watched, events).await?;
    let all: Arc<[Connection]> = connections.as_slice().into();
    // What is registered is removed at once, so that the size stays.
    let register = move |_, number: u64| {
        let connection = all[number as usize % all.len()].clone();
        async move {
            let lease = connection.register(&Item::new(ADDED, number, 0), 0, LONG_TTL).await?;
            match connection {
                Connection::Quorate(quorate) => quorate.deregister(lease).await,
                Connection::Etcd(_) => bail!("only ours grows"),
            }
        }
    };
    let registered = closed_loop(&cluster, IN_FLIGHT, Until::Time(time), register).await?;
    let found = connections[0].count(GROUP).await?;
    ensure!(found == size, "{found} of {size} are there");
    ensure!(connections[0].count(ADDED).await? == 0, "what was removed is there");
    Ok([each_us(&registered), each_us(&renewal), each_us(&fetch), driven.server_cpu_each_us()])
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
    let time = setting.seconds(EVENT_SECONDS);
    Ok(watch::drive(&cluster, &connections, &shape, &watched, time).await?.server_cpu_each_us())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_told_for_each_ten_times() {
        assert_eq!(growth((1_000, 2.0), (10_000, 3.0)), Some(1.5));
        let growth = growth((1_000, 2.0), (100_000, 8.0)).unwrap();
        assert!((growth - 2.0).abs() < 1e-9);
    }

    #[test]
    fn a_cost_that_was_not_measured_is_no_growth() {
        let costs = |middle| vec![(1_000, 2.0), (10_000, middle), (100_000, 3.0)];
        assert_eq!(worst_growth(&costs(2.0)), Some(1.5));
        for middle in [0.0, f64::NAN, f64::INFINITY] {
            assert_eq!(worst_growth(&costs(middle)), None, "{middle}");
        }
    }
}
