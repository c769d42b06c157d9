//! W3: fetches of services of a hundred instances, all of them in a random order, the same on
//! either peer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{LONG_TTL, Setting, verify};
use crate::cluster::Cluster;
use crate::item::{self, Item, SERVICE_SIZE, VALUE_BYTES};
use crate::load::{Measured, Until, closed_loop, paced};
use crate::sample::Samples;
use crate::wire::{Connection, Counted, Freshness, Peer};

const GROUP: &str = "fetch";
const INSTANCES: u64 = 20_000;
const CALLERS: [usize; 2] = [1, 64];
const SECONDS: f64 = 8.0;
const WRITES_PER_SECOND: f64 = 200.0;
/// Writes under way at once; fewer than there are instances, so that no two are of one.
const OPEN_MAX: usize = 64;

pub(super) async fn run(setting: &Setting<'_>, peer: Peer, samples: &mut Samples) -> Result<()> {
    let (cluster, connections) = setting.cluster(peer).await?;
    let count = setting.scaled(INSTANCES, SERVICE_SIZE).next_multiple_of(SERVICE_SIZE);
    let leases = setting.prepare(&cluster, &connections, GROUP, count, LONG_TTL).await?;
    verify::all_there(&connections, GROUP, count).await?;
    cluster.caught_up().await?;
    let time = setting.seconds(SECONDS);
    for (freshness, name) in
        [(Freshness::Linearizable, "linearizable"), (Freshness::Local, "local")]
    {
        for callers in CALLERS {
            let measured =
                fetches(&cluster, &connections, (GROUP, count), freshness, callers, time).await?;
            let name = format!("{name}, {callers} caller{}", if callers == 1 { "" } else { "s" });
            samples.of("W3", name).phase("fetches", &measured);
        }
    }
    verify::all_there(&connections, GROUP, count).await?;

    // A service that was written since it was fetched cannot be answered from memory.
    let callers = CALLERS[1];
    let group = (GROUP, count);
    let fetching = fetches(&cluster, &connections, group, Freshness::Linearizable, callers, time);
    let (measured, stamps) = tokio::try_join!(fetching, write(&connections, count, &leases, time))?;
    samples.of("W3", "64 callers, 200 writes/s").phase("fetches", &measured);
    verify::all_as(&connections, GROUP, count, |number| stamps[number as usize]).await
}

/// Fetches round the services of a group with this many instances, for a time.
pub(super) async fn fetches(
    cluster: &Cluster,
    connections: &[Connection],
    (group, count): (&'static str, u64),
    freshness: Freshness,
    callers: usize,
    time: Duration,
) -> Result<Measured> {
    let all: Arc<[Connection]> = connections.into();
    let order: Arc<[u64]> = item::shuffled(count / SERVICE_SIZE).into();
    let size = usize::try_from(SERVICE_SIZE)?;
    let whole = Counted { instances: size, value_bytes: size * VALUE_BYTES };
    let fetch = move |_, number: u64| {
        let connection = all[number as usize % all.len()].clone();
        let service = item::service(group, order[number as usize % order.len()]);
        async move {
            let found = connection.fetch(&service, freshness).await?;
            ensure!(found == whole, "an incomplete answer: {found:?}");
            Ok(())
        }
    };
    closed_loop(cluster, callers, Until::Time(time), fetch).await
}

/// Changes instances in a random order, so that services change in turn; which change each instance
/// had last.
async fn write(
    connections: &[Connection],
    count: u64,
    leases: &[u64],
    time: Duration,
) -> Result<Vec<u64>> {
    let order = item::shuffled(count);
    let end = Instant::now() + time;
    let place = |number: u64| order[number as usize % order.len()];
    let written = paced(
        WRITES_PER_SECOND,
        || Instant::now() >= end,
        OPEN_MAX,
        |number, _| {
            let connection = connections[number as usize % connections.len()].clone();
            let item = Item::new(GROUP, place(number), number + 1);
            let lease = leases[place(number) as usize];
            async move { connection.change(&item, lease).await }
        },
    );
    let mut stamps = vec![0; order.len()];
    for number in 0..written.await?.len() as u64 {
        stamps[place(number) as usize] = number + 1;
    }
    Ok(stamps)
}
