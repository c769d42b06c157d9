//! W1, W1b, W1c: registrations.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{LONG_TTL, Setting, verify};
use crate::cluster::Cluster;
use crate::item::Item;
use crate::load::{CpuMark, Measured, Until, closed_loop, latencies, record};
use crate::sample::{Better, MIB, Samples, Variant};
use crate::wire::{Connection, Peer};

const GROUP: &str = "reg";
const REGISTRATIONS: u64 = 20_000;
const IN_FLIGHT: [usize; 3] = [1, 64, 512];
/// Instances of one lease (W1b).
const LEASE_SIZE: u64 = 100;
/// Instances in one call (W1c).
const BULK: u64 = 1_000;

/// W1: each instance with a lease of its own.
pub(super) async fn own_leases(
    setting: &Setting<'_>,
    peer: Peer,
    samples: &mut Samples,
) -> Result<()> {
    let count = setting.scaled(REGISTRATIONS, 500);
    for in_flight in IN_FLIGHT {
        let (cluster, connections) = setting.cluster(peer).await?;
        let all = connections.clone();
        let register = move |_, number: u64| {
            // Round the connections and so the nodes, whatever the number in flight.
            let connection = all[number as usize % all.len()].clone();
            async move {
                connection.register(&Item::new(GROUP, number, 0), 0, LONG_TTL).await.map(|_| ())
            }
        };
        let measured = closed_loop(&cluster, in_flight, Until::Count(count), register).await?;
        verify::all_there(&connections, GROUP, count).await?;
        let mut variant = samples.of("W1", format!("{in_flight} in flight"));
        variant.phase("registrations", &measured);
        footprint(&mut variant, &cluster)?;
    }
    Ok(())
}

/// W1b: a hundred instances to a lease, one call each: the first makes the lease, the others come
/// under it.
pub(super) async fn shared_leases(
    setting: &Setting<'_>,
    peer: Peer,
    samples: &mut Samples,
) -> Result<()> {
    for in_flight in IN_FLIGHT {
        // Enough leases for that many calls in flight.
        let groups = (in_flight as u64).max(REGISTRATIONS / LEASE_SIZE);
        let groups = setting.scaled(groups, (in_flight as u64).min(8));
        let (cluster, connections) = setting.cluster(peer).await?;
        let (all, calls) = (connections.clone(), Arc::new(Mutex::new(latencies())));
        let own = calls.clone();
        let register = move |_, group: u64| {
            let (all, calls) = (all.clone(), own.clone());
            async move {
                let times = one_lease(&all, group).await?;
                let mut calls = calls.lock().expect("invariant: nothing panics while it is held");
                times.into_iter().for_each(|time| record(&mut calls, time));
                Ok(())
            }
        };
        let measured = closed_loop(&cluster, in_flight, Until::Count(groups), register).await?;
        let latencies = calls.lock().expect("invariant: nothing panics while it is held").clone();
        let measured = Measured { operations: latencies.len(), latencies, ..measured };
        verify::all_there(&connections, GROUP, groups * LEASE_SIZE).await?;
        let mut variant = samples.of("W1b", format!("{in_flight} in flight"));
        variant.phase("registrations", &measured);
        footprint(&mut variant, &cluster)?;
    }
    Ok(())
}

async fn one_lease(connections: &[Connection], group: u64) -> Result<Vec<Duration>> {
    let mut lease = 0;
    let mut times = Vec::new();
    for number in group * LEASE_SIZE..(group + 1) * LEASE_SIZE {
        let item = Item::new(GROUP, number, 0);
        let sent = Instant::now();
        let connection = &connections[number as usize % connections.len()];
        lease = connection.register(&item, lease, LONG_TTL).await?;
        times.push(sent.elapsed());
    }
    Ok(times)
}

/// W1c: a thousand instances in a call.
pub(super) async fn bulk(setting: &Setting<'_>, peer: Peer, samples: &mut Samples) -> Result<()> {
    if peer == Peer::Etcd {
        return Ok(());
    }
    let calls = setting.scaled(100, 4);
    let (cluster, connections) = setting.cluster(peer).await?;
    let mark = CpuMark::set(&cluster)?;
    let all = connections.clone();
    let register = move |_, call: u64| {
        let connection = all[call as usize % all.len()].clone();
        let numbers = call * BULK..(call + 1) * BULK;
        let items: Vec<Item> = numbers.map(|number| Item::new(GROUP, number, 0)).collect();
        async move {
            let items: Vec<&Item> = items.iter().collect();
            let answer = connection.register_bulk(&items, LONG_TTL).await;
            ensure!(answer.transpose()?.is_some(), "invariant: the peer has bulk calls");
            Ok(())
        }
    };
    let measured = closed_loop(&cluster, 4, Until::Count(calls), register).await?;
    verify::all_there(&connections, GROUP, calls * BULK).await?;
    let mut variant = samples.of("W1c", "1,000 in a call, 4 in flight");
    let rate = (calls * BULK) as f64 / measured.elapsed.as_secs_f64();
    variant.add("instances", "1/s", Better::Higher, rate);
    variant.latencies(&measured.latencies);
    let servers: Duration = mark.used()?.servers.iter().sum();
    let each = servers.as_secs_f64() * 1e6 / (calls * BULK) as f64;
    variant.add("server cpu each", "us", Better::Lower, each);
    footprint(&mut variant, &cluster)
}

/// The largest node's memory and disk.
fn footprint(variant: &mut Variant<'_>, cluster: &Cluster) -> Result<()> {
    let memory = cluster.memory()?.into_iter().map(|(_, peak)| peak).max().unwrap_or_default();
    let disk = cluster.disk().into_iter().max().unwrap_or_default();
    variant.add("peak memory", "MiB", Better::Lower, memory as f64 / MIB);
    variant.add("disk", "MiB", Better::Lower, disk as f64 / MIB);
    Ok(())
}
