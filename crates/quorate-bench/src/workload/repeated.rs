//! One variant each of W1 to W4 that goes on in rounds on one cluster, so that two ways of running
//! it can be compared within a minute of each other.

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::ValueEnum;

use super::{LONG_TTL, Setting, fetch, renew, verify, watch};
use crate::cluster::Cluster;
use crate::item::{Item, SERVICE_SIZE};
use crate::load::{Until, closed_loop};
use crate::wire::{Connection, Freshness, Peer};

const GROUP: &str = "round";
const INSTANCES: u64 = 20_000;
const AT_ONCE: usize = 64;
const WINDOW: usize = 32;
const SECONDS: f64 = 3.0;
const WATCHERS: watch::Shape = watch::shape("", 1_000, 30, None);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Repeated {
    /// Registrations, each with a lease of its own
    #[value(name = "w1")]
    Registrations,
    /// Renewals, one lease a message
    #[value(name = "w2")]
    Renewals,
    /// Fetches of a service of 100 instances
    #[value(name = "w3")]
    Fetches,
    /// Events to 1,000 watchers
    #[value(name = "w4")]
    Events,
}

pub(crate) const ALL: [Repeated; 4] =
    [Repeated::Registrations, Repeated::Renewals, Repeated::Fetches, Repeated::Events];

impl Repeated {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Registrations => "W1, 64 in flight",
            Self::Renewals => "W2, window 32",
            Self::Fetches => "W3, linearizable, 64 callers",
            Self::Events => "W4, full to 1,000, 30 conns",
        }
    }
}

/// What one round came to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Round {
    pub(crate) per_second: f64,
    /// Processor time of all servers for each operation, in microseconds.
    pub(crate) cpu_each_us: f64,
}

/// A cluster on which one of them is done.
pub(crate) struct Work<'a> {
    what: Repeated,
    setting: &'a Setting<'a>,
    cluster: Cluster,
    connections: Vec<Connection>,
    leases: Vec<u64>,
    /// Registrations that were made in rounds.
    registered: u64,
}

pub(crate) async fn begin<'a>(what: Repeated, setting: &'a Setting<'a>) -> Result<Work<'a>> {
    let (cluster, connections) = setting.cluster(Peer::Quorate).await?;
    let leases = match what {
        Repeated::Registrations | Repeated::Events => Vec::new(),
        Repeated::Renewals | Repeated::Fetches => {
            let least = (renew::STREAMS as u64 * 4).next_multiple_of(SERVICE_SIZE);
            let count = setting.scaled(INSTANCES, least).next_multiple_of(SERVICE_SIZE);
            setting.prepare(&cluster, &connections, GROUP, count, LONG_TTL).await?
        }
    };
    Ok(Work { what, setting, cluster, connections, leases, registered: 0 })
}

impl Work<'_> {
    pub(crate) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    pub(crate) async fn round(&mut self) -> Result<Round> {
        let time = self.setting.seconds(SECONDS);
        let count = self.leases.len() as u64;
        let (cluster, connections) = (&self.cluster, &self.connections);
        let measured = match self.what {
            Repeated::Registrations => self.register(time).await?,
            Repeated::Renewals => {
                renew::phase(cluster, connections, &self.leases, WINDOW, time).await?
            }
            Repeated::Fetches => {
                let fresh = Freshness::Linearizable;
                fetch::fetches(cluster, connections, (GROUP, count), fresh, AT_ONCE, time).await?
            }
            Repeated::Events => return self.watch(time).await,
        };
        let servers: Duration = measured.cpu.servers.iter().sum();
        let cpu_each_us = servers.as_secs_f64() * 1e6 / measured.operations as f64;
        Ok(Round { per_second: measured.per_second(), cpu_each_us })
    }

    /// All that was acknowledged is there.
    pub(crate) async fn end(self) -> Result<()> {
        let count = self.registered.max(self.leases.len() as u64);
        verify::all_there(&self.connections, GROUP, count).await
    }

    async fn register(&mut self, time: Duration) -> Result<crate::load::Measured> {
        let (all, first) = (self.connections.clone(), self.registered);
        let register = move |_, number: u64| {
            let connection = all[number as usize % all.len()].clone();
            async move {
                let item = Item::new(GROUP, first + number, 0);
                connection.register(&item, 0, LONG_TTL).await.map(|_| ())
            }
        };
        let measured = closed_loop(&self.cluster, AT_ONCE, Until::Time(time), register).await?;
        self.registered += measured.operations;
        Ok(measured)
    }

    async fn watch(&self, time: Duration) -> Result<Round> {
        let (cluster, connections) = (&self.cluster, &self.connections);
        let leases = watch::prepare(self.setting, cluster, connections).await?;
        let shape = WATCHERS.scaled(self.setting.scale);
        let driven = watch::drive(cluster, connections, &shape, &leases, time).await?;
        let round = Round {
            per_second: driven.events_per_second(),
            cpu_each_us: driven.server_cpu_each_us(),
        };
        ensure!(round.per_second > 0.0, "no event arrived in time");
        Ok(round)
    }
}
