//! W1, W1b, W1c: registrations, for the same time on either peer.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{LONG_TTL, Setting, verify};
use crate::item::Item;
use crate::load::{Until, closed_loop};
use crate::sample::{Better, Samples};
use crate::wire::Peer;

const GROUP: &str = "reg";
const SECONDS: f64 = 8.0;
const IN_FLIGHT: [usize; 3] = [1, 64, 512];
/// Instances of one lease (W1b).
const LEASE_SIZE: u64 = 100;
/// Instances in one call (W1c).
const BULK: u64 = 1_000;
const BULK_IN_FLIGHT: usize = 4;

/// W1: each instance with a lease of its own.
pub(super) async fn own_leases(
    setting: &Setting<'_>,
    peer: Peer,
    samples: &mut Samples,
) -> Result<()> {
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
        let until = Until::Time(setting.seconds(SECONDS));
        let measured = closed_loop(&cluster, in_flight, until, register).await?;
        verify::all_there(&connections, GROUP, measured.operations).await?;
        samples.of("W1", format!("{in_flight} in flight")).phase("registrations", &measured);
    }
    Ok(())
}

/// A caller's lease, and how many instances it has.
type Held = Arc<[Mutex<(u64, u64)>]>;

/// W1b: a hundred instances to a lease, one call each: a caller's first makes the lease, the others
/// come under it; then the next lease.
pub(super) async fn shared_leases(
    setting: &Setting<'_>,
    peer: Peer,
    samples: &mut Samples,
) -> Result<()> {
    for in_flight in IN_FLIGHT {
        let (cluster, connections) = setting.cluster(peer).await?;
        let held: Held = (0..in_flight).map(|_| Mutex::default()).collect();
        let all = connections.clone();
        let register = move |caller: usize, number: u64| {
            let connection = all[number as usize % all.len()].clone();
            let held = held.clone();
            async move {
                let (lease, instances) = *held[caller].lock().expect(HELD_BRIEFLY);
                let item = Item::new(GROUP, number, 0);
                let lease = connection.register(&item, lease, LONG_TTL).await?;
                let next = match instances + 1 {
                    LEASE_SIZE => (0, 0),
                    more => (lease, more),
                };
                *held[caller].lock().expect(HELD_BRIEFLY) = next;
                Ok(())
            }
        };
        let until = Until::Time(setting.seconds(SECONDS));
        let measured = closed_loop(&cluster, in_flight, until, register).await?;
        verify::all_there(&connections, GROUP, measured.operations).await?;
        samples.of("W1b", format!("{in_flight} in flight")).phase("registrations", &measured);
    }
    Ok(())
}

const HELD_BRIEFLY: &str = "invariant: nothing panics while it is held";

/// W1c: a thousand instances in a call.
pub(super) async fn bulk(setting: &Setting<'_>, peer: Peer, samples: &mut Samples) -> Result<()> {
    if peer == Peer::Etcd {
        return Ok(());
    }
    let (cluster, connections) = setting.cluster(peer).await?;
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
    let until = Until::Time(setting.seconds(SECONDS));
    let measured = closed_loop(&cluster, BULK_IN_FLIGHT, until, register).await?;
    let instances = measured.operations * BULK;
    verify::all_there(&connections, GROUP, instances).await?;
    let mut variant = samples.of("W1c", "1,000 in a call, 4 in flight");
    let rate = instances as f64 / measured.elapsed.as_secs_f64();
    variant.add("instances", "1/s", Better::Higher, rate);
    variant.latencies(&measured.latencies);
    let servers: Duration = measured.cpu.servers.iter().sum();
    let each = servers.as_secs_f64() * 1e6 / instances as f64;
    variant.add("server cpu each", "us", Better::Lower, each);
    Ok(())
}
