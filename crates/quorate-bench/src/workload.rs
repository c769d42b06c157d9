//! The workloads, one file each. Each brings the same work to one peer, checks what is there
//! afterwards, and gives figures.

mod expiry;
mod failover;
mod fetch;
mod growth;
mod held;
mod http;
mod register;
mod renew;
pub(crate) mod repeated;
mod state;
mod verify;
mod watch;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::cluster::{Cluster, Programs};
use crate::item::Item;
use crate::load::{Until, closed_loop};
use crate::sample::Samples;
use crate::wire::{Connection, Peer};

pub(crate) use repeated::Round;

/// A row of the table in docs/performance.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Workload {
    /// Registrations, each with a lease of its own
    W1,
    /// Registrations, 100 to a lease
    W1b,
    /// Registrations, 1,000 to a call
    W1c,
    /// Renewals, one lease a message
    W2,
    /// Leases that are only held, by the client crate
    W2b,
    /// Fetches of a service of 100 instances
    W3,
    /// Watches: from a change to its arrival, and events at full speed
    W4,
    /// The leader dies, or falls silent
    W5,
    /// A large state: memory, disk, copies, the way back
    W6,
    /// Many leases end at once
    W7,
    /// What operations cost as instances and watchers grow
    W8,
    /// By HTTP and JSON; etcd's by its gateway
    Http,
}

impl Workload {
    pub(crate) const ALL: [Self; 12] = [
        Self::W1,
        Self::W1b,
        Self::W1c,
        Self::W2,
        Self::W2b,
        Self::W3,
        Self::W4,
        Self::W5,
        Self::W6,
        Self::W7,
        Self::W8,
        Self::Http,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::W1 => "W1",
            Self::W1b => "W1b",
            Self::W1c => "W1c",
            Self::W2 => "W2",
            Self::W2b => "W2b",
            Self::W3 => "W3",
            Self::W4 => "W4",
            Self::W5 => "W5",
            Self::W6 => "W6",
            Self::W7 => "W7",
            Self::W8 => "W8",
            Self::Http => "HTTP",
        }
    }

    /// Brings the work to one peer, on clusters of its own.
    pub(crate) async fn run(self, setting: &Setting<'_>, peer: Peer) -> Result<Samples> {
        let mut samples = Samples::default();
        match self {
            Self::W1 => register::own_leases(setting, peer, &mut samples).await?,
            Self::W1b => register::shared_leases(setting, peer, &mut samples).await?,
            Self::W1c => register::bulk(setting, peer, &mut samples).await?,
            Self::W2 => renew::run(setting, peer, &mut samples).await?,
            Self::W2b => held::run(setting, peer, &mut samples).await?,
            Self::W3 => fetch::run(setting, peer, &mut samples).await?,
            Self::W4 => watch::run(setting, peer, &mut samples).await?,
            Self::W5 => failover::run(setting, peer, &mut samples).await?,
            Self::W6 => state::run(setting, peer, &mut samples).await?,
            Self::W7 => expiry::run(setting, peer, &mut samples).await?,
            Self::W8 => growth::run(setting, peer, &mut samples).await?,
            Self::Http => http::run(setting, peer, &mut samples).await?,
        }
        Ok(samples)
    }
}

/// How the work is done.
pub(crate) struct Setting<'a> {
    pub(crate) programs: &'a Programs,
    /// Data goes below this.
    pub(crate) dir: &'a Path,
    /// 1.0: as in the table. Less: less work, for a look.
    pub(crate) scale: f64,
    /// Connections to each node.
    pub(crate) per_node: usize,
    /// Also the sizes that take long.
    pub(crate) large: bool,
    /// Data and logs stay afterwards.
    pub(crate) keep: bool,
}

/// A lease that is not to end while a workload runs.
pub(crate) const LONG_TTL: Duration = Duration::from_secs(3600);
/// Calls at once while a workload is prepared.
const PREPARING: usize = 256;
/// Registrations that are done before anything is measured: connections are up, code is paged in.
const WARM_UP: u64 = 300;

impl Setting<'_> {
    /// This many, scaled; never fewer than `least`.
    fn scaled(&self, count: u64, least: u64) -> u64 {
        ((count as f64 * self.scale).round() as u64).max(least)
    }

    pub(crate) fn seconds(&self, seconds: f64) -> Duration {
        Duration::from_secs_f64((seconds * self.scale).max(1.0))
    }

    /// A new cluster with connections to it, warmed up.
    async fn cluster(&self, peer: Peer) -> Result<(Cluster, Vec<Connection>)> {
        let cluster = Cluster::start(peer, self.programs, self.dir, self.keep).await?;
        let connections = cluster.connect(self.per_node).await?;
        self.prepare(&cluster, &connections, "warm", WARM_UP, LONG_TTL).await?;
        Ok((cluster, connections))
    }

    /// Registers instances `0..count` of a group, each with a lease of its own; their leases.
    async fn prepare(
        &self,
        cluster: &Cluster,
        connections: &[Connection],
        group: &'static str,
        count: u64,
        ttl: Duration,
    ) -> Result<Vec<u64>> {
        let leases: std::sync::Arc<std::sync::Mutex<Vec<u64>>> = std::sync::Arc::default();
        let (all, own) = (connections.to_vec(), leases.clone());
        let register = move |worker: usize, number: u64| {
            let (connection, leases) = (all[worker % all.len()].clone(), own.clone());
            async move {
                let lease = connection.register(&Item::new(group, number, 0), 0, ttl).await?;
                let mut leases = leases.lock().expect("invariant: nothing panics while it is held");
                let at = usize::try_from(number)?;
                if leases.len() <= at {
                    leases.resize(at + 1, 0);
                }
                leases[at] = lease;
                Ok(())
            }
        };
        closed_loop(cluster, PREPARING, Until::Count(count), register)
            .await
            .with_context(|| format!("preparing {count} instances of {group}"))?;
        let mut leases = leases.lock().expect("invariant: nothing panics while it is held");
        Ok(std::mem::take(&mut *leases))
    }

    /// The same with this many instances to a lease.
    async fn prepare_shared(
        &self,
        cluster: &Cluster,
        connections: &[Connection],
        group: &'static str,
        count: u64,
        per_lease: u64,
    ) -> Result<()> {
        let all = connections.to_vec();
        let register = move |_, lease_number: u64| {
            let connection = all[lease_number as usize % all.len()].clone();
            async move {
                let mut lease = 0;
                for number in lease_number * per_lease..(lease_number + 1) * per_lease {
                    let item = Item::new(group, number, 0);
                    lease = connection.register(&item, lease, LONG_TTL).await?;
                }
                Ok(())
            }
        };
        let until = Until::Count(count / per_lease);
        closed_loop(cluster, PREPARING, until, register).await.map(|_| ())
    }
}
