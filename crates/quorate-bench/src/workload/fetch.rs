//! W3: fetches of one service of a hundred instances.

use anyhow::{Result, ensure};

use super::{LONG_TTL, Setting, verify};
use crate::item::{self, SERVICE_SIZE, VALUE_BYTES};
use crate::load::{Until, closed_loop};
use crate::sample::Samples;
use crate::wire::{Counted, Freshness, Peer};

const GROUP: &str = "fetch";
const INSTANCES: u64 = 20_000;
const CALLERS: [usize; 2] = [1, 64];
const SECONDS: f64 = 5.0;

pub(super) async fn run(setting: &Setting<'_>, peer: Peer, samples: &mut Samples) -> Result<()> {
    let (cluster, connections) = setting.cluster(peer).await?;
    let count = setting.scaled(INSTANCES, SERVICE_SIZE).next_multiple_of(SERVICE_SIZE);
    setting.prepare(&cluster, &connections, GROUP, count, LONG_TTL).await?;
    verify::all_there(&connections, GROUP, count).await?;
    cluster.caught_up().await?;
    let size = usize::try_from(SERVICE_SIZE)?;
    let whole = Counted { instances: size, value_bytes: size * VALUE_BYTES };
    for (freshness, name) in
        [(Freshness::Linearizable, "linearizable"), (Freshness::Local, "local")]
    {
        for callers in CALLERS {
            let all = connections.clone();
            let fetch = move |_, number: u64| {
                let connection = all[number as usize % all.len()].clone();
                async move {
                    // One service: what everybody asks for.
                    let found = connection.fetch(&item::service(GROUP, 0), freshness).await?;
                    ensure!(found == whole, "an incomplete answer: {found:?}");
                    Ok(())
                }
            };
            let until = Until::Time(setting.seconds(SECONDS));
            let measured = closed_loop(&cluster, callers, until, fetch).await?;
            let name = format!("{name}, {callers} caller{}", if callers == 1 { "" } else { "s" });
            samples.of("W3", name).phase("fetches", &measured);
        }
    }
    verify::all_there(&connections, GROUP, count).await
}
