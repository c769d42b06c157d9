//! Every setting of a node: meaning, unit, default and minimum. Parsed once by the binary, checked
//! once by [`Config::validate`], then passed by value; nothing here reads an environment variable.
//! What no operator needs to turn is a constant of the file that uses it.

mod dns;
mod networks;
mod origins;
mod tls;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use quorate_log::NodeId;
use serde::Deserialize;

pub use dns::{AllFailing, Dns};
pub use networks::{BadNetwork, Networks};
pub use tls::{ClientCertificates, Tls};

/// A node's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node's id, at least 1. Never reused: a node whose disk was lost comes back under a new
    /// id.
    pub id: u64,
    /// Where the log, the snapshots and the identity are kept. Created if missing.
    pub data_dir: PathBuf,
    /// Listens here for clients. Port 0 picks a free one.
    pub listen: SocketAddr,
    /// Listens here for peers. Port 0 picks a free one.
    pub peer_listen: SocketAddr,
    /// Listens here for HTTP/1.1: `/api/v1`, `/openapi.json`, `/console/`, `/healthz`, `/readyz`,
    /// `/metrics`. Port 0 picks a free one. Default: not at all.
    pub http_listen: Option<SocketAddr>,
    /// Origins whose pages may call the API by HTTP from a browser, each as a browser names it
    /// (`https://tools.example`, `http://10.0.0.1:3000`). They need the token of a caller, where
    /// one is asked for. Default: none.
    pub http_cors_origins: Vec<String>,
    /// Listens here for DNS, over UDP and TCP. Port 0 picks a free one. Default: not at all.
    pub dns_listen: Option<SocketAddr>,
    /// What is answered by DNS, and to whom.
    pub dns: Dns,
    /// The address that it announces to clients, `host:port`. Default: what `listen` was bound to.
    pub advertise: Option<String>,
    /// The address that it announces to peers, `host:port`. Default: what `peer_listen` was bound
    /// to.
    pub peer_advertise: Option<String>,
    /// The cluster's name: the audience of tokens (`aud`), and what stands in certificates. 1 to 63
    /// of `a-z 0-9 . -`. Default `quorate`; the same on every node.
    pub cluster_name: String,
    /// TLS on both listeners and towards the other nodes. Default: none.
    pub tls: Option<Tls>,
    /// Without TLS, both listeners may be on addresses that other machines reach. Default: false,
    /// and such a node does not start.
    pub insecure: bool,
    /// How the node comes to its cluster when its data directory is empty; ignored otherwise.
    pub start: Start,
    /// The networks whose addresses this node may probe while it leads, for the health checks that
    /// instances declare. Default: none, and nothing is probed. The same on every node: any of them
    /// may come to lead.
    pub health_checks: HealthChecks,
    /// A file with the rights of credentials; it is followed. Default: none, and every client that
    /// can connect may do everything.
    pub access: Option<PathBuf>,
    /// What was done, for others to read later. Default: nothing is written down.
    pub audit: Option<Audit>,
    /// The knobs that seldom need turning.
    pub tunables: Tunables,
}

/// The audit log. In the configuration file: the table `[audit]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Audit {
    /// A file that gets a line of JSON for each write and for each call that was refused for want
    /// of a right.
    pub file: PathBuf,
    /// No write without a line: while the file cannot be written, this node refuses writes
    /// (UNAVAILABLE) and answers reads and renewals. Default: false, and lines are left out and
    /// counted.
    #[serde(default)]
    pub required: bool,
}

/// Active health checks. In the configuration file: the table `[health_checks]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HealthChecks {
    /// Networks in CIDR notation (`10.0.0.0/8`) or single addresses. A client that may register an
    /// instance chooses the address that is probed: allow the networks of the services, and none
    /// where something listens that trusts its neighbours.
    pub allow: Networks,
}

/// How a node with an empty data directory comes to its cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Start {
    /// It is one of the first members of a new cluster: all of them, with their peer addresses
    /// (`host:port`), this node included. Every one of them is started with the same list.
    Bootstrap(BTreeMap<u64, String>),
    /// It asks a running cluster to take it in; the client addresses (`host:port`) of some of its
    /// nodes.
    Join {
        /// Client addresses of the running cluster, tried in turn.
        nodes: Vec<String>,
        /// True: stay a learner for good.
        observer: bool,
    },
    /// It waits until an operator adds it (`quorate cluster add`).
    Wait,
}

impl Start {
    /// The first members of a new cluster, if this node is to be one of them.
    pub(crate) fn founders(&self) -> Option<BTreeMap<NodeId, String>> {
        let Self::Bootstrap(listed) = self else { return None };
        let founder = |(id, address): (&u64, &String)| Some((NodeId::new(*id)?, address.clone()));
        Some(listed.iter().filter_map(founder).collect())
    }
}

/// The knobs that seldom need turning, with their defaults. In the configuration file: the table
/// `[tunables]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tunables {
    /// The leader's heartbeat, ms. Default 80, minimum 10. Longer than a round trip between nodes.
    pub heartbeat_ms: u64,
    /// A follower that hears nothing of its leader for `election_timeout_max_ms`, and then nothing
    /// for a random time from here ... Default 240, minimum 3 heartbeats. Longer than a node's disk
    /// needs for a sync (votes are kept on it).
    pub election_timeout_min_ms: u64,
    /// ... to here, in ms, stands for election; in its first `election_timeout_max_ms` it does not
    /// vote either. Default 320; more than `election_timeout_min_ms`. So a leader that stands still
    /// for less than the two together (560 ms) stays; one whose process dies is replaced at once.
    pub election_timeout_max_ms: u64,
    /// How long a call without a deadline of its own may take, ms. Default 5,000, minimum 100.
    pub request_timeout_ms: u64,
    /// Renewals are collected this long, at most, ms; one log entry carries them all. Default 50,
    /// minimum 1, maximum 300 (a third of the smallest TTL).
    pub renew_window_ms: u64,
    /// After an election, no lease ends sooner than this, ms (nor later than its TTL and this after
    /// its last renewal). Default 3,000, minimum 1.
    pub election_grace_ms: u64,
    /// A snapshot is taken after this many log entries. Default 50,000, minimum 100.
    pub snapshot_every: u64,
    /// One is also taken after this many bytes of log entries, or, if that is more, half of what
    /// the last one took. Default 7 MiB, minimum 64 KiB.
    pub snapshot_log_bytes: u64,
    /// This many log entries before the newest snapshot are kept for slow followers. Default 5,000,
    /// minimum 0: a follower behind the snapshot is sent it.
    pub keep_entries: u64,
    /// At most this many changes are kept in memory for watchers that resume. What is older than
    /// three minutes goes (not the latest 100 changes). Default 100,000, minimum 1.
    pub watch_ring: usize,
    /// They take no more than about this, bytes. Default 64 MiB, minimum 64 KiB.
    pub watch_ring_bytes: usize,
    /// A watcher that nothing was sent to for this long gets a bookmark, ms. Default 5,000, minimum
    /// 10.
    pub bookmark_ms: u64,
    /// With less than this free on the disk, the node gives the lead to one that has room, and
    /// takes no registrations while it leads all the same, bytes; with less than a quarter of it,
    /// it takes nothing at all, nor entries of another leader. Default 64 MiB, minimum 16 MiB.
    pub disk_reserve_bytes: u64,
    /// About what the instances, their services and their leases may take in memory, bytes. What
    /// would make them more is refused; what is registered is kept, renewed and may be registered
    /// again, also within two minutes of its deregistration (up to 5 % beyond). The leader's
    /// counts: the same on all nodes. Default 2 GiB, some three million small instances; minimum 1
    /// MiB. Less than half of a node's memory.
    pub state_bytes_max: usize,
    /// When all members have worked at a higher level than the cluster's for this long, the leader
    /// raises it; until then every node can go back to its release of before. Default 600,000 (ten
    /// minutes), minimum 1,000; `quorate cluster upgrade hold` puts it off for good.
    pub upgrade_after_ms: u64,
    /// Stopping takes no longer than this, ms. Default 10,000, minimum 100.
    pub shutdown_grace_ms: u64,
    /// Connections of clients, in all; for more, those that have proved no identity and made no
    /// call but such as anybody may give way, else they are refused. Default 10,000, minimum 1.
    /// `quorate` lowers it to what its limit of descriptors allows, less a reserve for the log,
    /// snapshots, peers and HTTP.
    pub connections_max: usize,
    /// Connections from one address, or one /64 of IPv6, so that one client does not take the place
    /// of all others. Default 5,000, minimum 1. Raise both where many clients come through one
    /// proxy.
    pub connections_per_address_max: usize,
    /// Connections to the listener for peers. Default 256, minimum 8: each peer has a few.
    pub peer_connections_max: usize,
    /// Connections to the listener for HTTP, and requests of them; from one address half as many.
    /// Three quarters of them may be streams of events and reads that wait, so that calls, probes
    /// and scrapes find a place. Default 2,560, minimum 4: 1,000 pages or programs behind one
    /// address that follow something, and what they call besides. One takes a descriptor and about
    /// 25 KiB. `quorate` lowers it to a quarter of its limit of descriptors, or less where there
    /// are few.
    pub http_connections_max: usize,
    /// In a cluster that was founded less than this ago, nothing is said not to be there: DNS
    /// answers SERVFAIL for it, and `/sd/prometheus` 503. What was registered in a cluster that
    /// lost its disks may still be on its way to this one. ms. Default 30,000, minimum 0.
    pub deny_after_ms: u64,
    /// How long a resolver may keep what it was told by DNS, s. Default 5, maximum 3,600.
    pub dns_ttl_s: u32,
    /// A node whose registry may be older than this answers nothing by DNS (SERVFAIL), ms. Default
    /// 3,600,000 (an hour), maximum a day.
    pub dns_max_stale_ms: u64,
    /// DNS queries of one network (a /24 of IPv4, a /56 of IPv6) that are answered in a second;
    /// others are told to ask by TCP, or nothing. One counts as several where more than 1,000
    /// instances are looked at for it. Default 1,000, minimum 1.
    pub dns_queries_per_second: u32,
    /// Connections for DNS over TCP; from one address half as many. Default 256, minimum 4.
    /// `quorate` lowers it to an eighth of its limit of descriptors, or less where there are few.
    pub dns_connections_max: usize,
    /// A connection, to either listener, that has had no call or stream under way for this long
    /// gets a GOAWAY and is closed, ms. Default 300,000 (five minutes): longer than the pauses of
    /// clients that call at all, so a connection is rarely made anew, and short enough that
    /// forgotten ones leave their places. Minimum 1,000.
    pub connection_idle_ms: u64,
    /// Calls under way, watches and other streams among them, of clients and as many of peers; more
    /// are refused. Default 32,768, minimum 64: a watch, a stream of renewals and a call on each of
    /// `connections_max` connections; a stream takes about 10 KiB.
    pub calls_max: usize,
    /// Calls from one address, so that one client does not take the place of all others. Default
    /// 16,384, minimum 64. Raise it where many clients come through one proxy.
    pub calls_per_address_max: usize,
    /// Bytes of answers that clients have not taken yet, in all; calls that would add some are
    /// refused, and streams of events by HTTP end that would where half of it is taken. Default 256
    /// MiB, minimum 64 KiB.
    pub answers_bytes_max: usize,
    /// Bytes of answers on one connection. Default 64 MiB, minimum 64 KiB; an answer that is larger
    /// cannot be given.
    pub answers_per_connection_bytes_max: usize,
}

impl Default for Tunables {
    fn default() -> Self {
        Self {
            heartbeat_ms: 80,
            election_timeout_min_ms: 240,
            election_timeout_max_ms: 320,
            request_timeout_ms: 5_000,
            renew_window_ms: 50,
            election_grace_ms: 3_000,
            snapshot_every: 50_000,
            snapshot_log_bytes: 7 * 1024 * 1024,
            keep_entries: 5_000,
            watch_ring: 100_000,
            watch_ring_bytes: 64 * 1024 * 1024,
            bookmark_ms: 5_000,
            disk_reserve_bytes: 64 * 1024 * 1024,
            state_bytes_max: 2 * 1024 * 1024 * 1024,
            upgrade_after_ms: 600_000,
            shutdown_grace_ms: 10_000,
            connections_max: 10_000,
            connections_per_address_max: 5_000,
            peer_connections_max: 256,
            http_connections_max: 2_560,
            deny_after_ms: 30_000,
            dns_ttl_s: 5,
            dns_max_stale_ms: HOUR_MS,
            dns_queries_per_second: 1_000,
            dns_connections_max: 256,
            connection_idle_ms: 300_000,
            calls_max: 32_768,
            calls_per_address_max: 16_384,
            answers_bytes_max: 256 * 1024 * 1024,
            answers_per_connection_bytes_max: 64 * 1024 * 1024,
        }
    }
}

/// A cluster's name, unless another one is configured.
pub const CLUSTER_NAME: &str = "quorate";

/// Of an address without TLS that others reach.
const OPEN_TO_ALL: &str = "other machines reach that, and anyone there could read and change \
                           everything; set up TLS (--tls-cert, --tls-key, --tls-ca; `quorate certs` \
                           makes a set), or say that the network keeps strangers out (--insecure)";

/// No time needs to be longer, ms.
const HOUR_MS: u64 = 3_600_000;
/// No log needs to be longer.
const ENTRIES_MAX: u64 = 1_000_000_000;

/// A setting that cannot be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{field} = {value}: {must}")]
pub struct ConfigError {
    /// The setting, by the name it has in the configuration file.
    pub field: &'static str,
    /// The value it was given.
    pub value: String,
    /// What it must be.
    pub must: String,
}

impl Config {
    /// A node that waits until an operator adds it, without TLS, with defaults for all else.
    pub fn new(id: u64, data_dir: PathBuf, listen: SocketAddr, peer_listen: SocketAddr) -> Self {
        Self {
            id,
            data_dir,
            listen,
            peer_listen,
            http_listen: None,
            http_cors_origins: Vec::new(),
            dns_listen: None,
            dns: Dns::default(),
            advertise: None,
            peer_advertise: None,
            cluster_name: CLUSTER_NAME.to_owned(),
            tls: None,
            insecure: false,
            access: None,
            audit: None,
            start: Start::Wait,
            health_checks: HealthChecks::default(),
            tunables: Tunables::default(),
        }
    }

    /// Checks every setting by itself and against the others.
    ///
    /// # Errors
    /// The first setting that is out of its range or contradicts another.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.node_id()?;
        if let Start::Bootstrap(members) = &self.start {
            let listed = members.keys().map(u64::to_string).collect::<Vec<_>>().join(",");
            check(
                "bootstrap",
                listed,
                members.contains_key(&self.id),
                format!(
                    "lists those that found the cluster, and node {} is none of them: a node that comes later has no \
                     bootstrap, on the command line or in the file; it waits for `quorate cluster add` or `replace`, or has --join",
                    self.id
                ),
            )?;
            let mut holders = BTreeMap::new();
            for (id, address) in members {
                let other = holders.insert(address, id).map_or(String::new(), u64::to_string);
                let must = format!("must be another address than that of node {other}");
                check("bootstrap", format!("{id}={address}"), other.is_empty(), must)?;
            }
        }
        if let Start::Join { nodes, .. } = &self.start {
            check("join", "", !nodes.is_empty(), "must name at least one address")?;
        }
        let name = &self.cluster_name;
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-".contains(c);
        let is_name = (1..=63).contains(&name.len()) && name.chars().all(allowed);
        check("cluster_name", name, is_name, "must be 1 to 63 of a-z 0-9 . -")?;
        if let Some(tls) = &self.tls {
            let age = tls.connection_age_ms;
            let is_age = (1_000..=24 * HOUR_MS).contains(&age);
            check("tls.connection_age_ms", age, is_age, "must be 1000 to 86400000 (a day)")?;
            let both = tls.peer_cert.is_some() == tls.peer_key.is_some();
            check("tls.peer_cert, tls.peer_key", "only one of them", both, "must be set together")?;
        }
        self.validate_addresses()?;
        self.validate_dns()?;
        self.tunables.validate()
    }

    pub(crate) fn node_id(&self) -> Result<NodeId, ConfigError> {
        let (field, value, must) = ("id", self.id.to_string(), "must be at least 1".to_owned());
        NodeId::new(self.id).ok_or(ConfigError { field, value, must })
    }

    /// What others are told must be something they can call.
    fn validate_addresses(&self) -> Result<(), ConfigError> {
        for (field, listen, told, advertised) in [
            ("listen", self.listen, "advertise", &self.advertise),
            ("peer_listen", self.peer_listen, "peer_advertise", &self.peer_advertise),
        ] {
            check(
                field,
                listen,
                advertised.is_some() || !listen.ip().is_unspecified(),
                format!("that cannot be called; set {told} to the host:port that others use"),
            )?;
            check(field, listen, !self.is_open(listen), OPEN_TO_ALL)?;
        }
        for origin in &self.http_cors_origins {
            let must = "must be an origin as a browser names it, such as https://tools.example";
            check("http_cors_origins", origin, origins::is_origin(origin), must)?;
        }
        let Some(listen) = self.http_listen else { return Ok(()) };
        check("http_listen", listen, !self.is_open(listen), OPEN_TO_ALL)
    }

    /// Whether anyone on other machines could come in here.
    fn is_open(&self, listen: SocketAddr) -> bool {
        self.tls.is_none() && !self.insecure && !listen.ip().is_loopback()
    }
}

impl Tunables {
    /// Answers of HTTP that are long in coming.
    pub(crate) fn http_streams_max(&self) -> usize {
        self.http_connections_max / 4 * 3
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let at_least = |field, value: u64, minimum: u64| {
            check(field, value, value >= minimum, format!("must be at least {minimum}"))
        };
        at_least("heartbeat_ms", self.heartbeat_ms, 10)?;
        check(
            "election_timeout_min_ms",
            self.election_timeout_min_ms,
            self.election_timeout_min_ms >= 3 * self.heartbeat_ms,
            format!("must be at least three times heartbeat_ms = {}", self.heartbeat_ms),
        )?;
        check(
            "election_timeout_max_ms",
            self.election_timeout_max_ms,
            self.election_timeout_max_ms > self.election_timeout_min_ms,
            format!("must be more than election_timeout_min_ms = {}", self.election_timeout_min_ms),
        )?;
        at_least("request_timeout_ms", self.request_timeout_ms, 100)?;
        check(
            "renew_window_ms",
            self.renew_window_ms,
            (1..=300).contains(&self.renew_window_ms),
            "must be 1 to 300",
        )?;
        at_least("election_grace_ms", self.election_grace_ms, 1)?;
        at_least("snapshot_every", self.snapshot_every, 100)?;
        at_least("snapshot_log_bytes", self.snapshot_log_bytes, 64 * 1024)?;
        at_least("watch_ring", self.watch_ring as u64, 1)?;
        at_least("watch_ring_bytes", self.watch_ring_bytes as u64, 64 * 1024)?;
        at_least("bookmark_ms", self.bookmark_ms, 10)?;
        at_least("disk_reserve_bytes", self.disk_reserve_bytes, 16 * 1024 * 1024)?;
        at_least("state_bytes_max", self.state_bytes_max as u64, 1024 * 1024)?;
        at_least("upgrade_after_ms", self.upgrade_after_ms, 1_000)?;
        at_least("shutdown_grace_ms", self.shutdown_grace_ms, 100)?;
        at_least("connections_max", self.connections_max as u64, 1)?;
        let per_address = self.connections_per_address_max as u64;
        at_least("connections_per_address_max", per_address, 1)?;
        at_least("peer_connections_max", self.peer_connections_max as u64, 8)?;
        at_least("http_connections_max", self.http_connections_max as u64, 4)?;
        at_least("dns_queries_per_second", self.dns_queries_per_second.into(), 1)?;
        at_least("dns_connections_max", self.dns_connections_max as u64, 4)?;
        check("dns_ttl_s", self.dns_ttl_s, self.dns_ttl_s <= 3_600, "must be at most 3600")?;
        let stale = self.dns_max_stale_ms;
        check("dns_max_stale_ms", stale, stale <= 24 * HOUR_MS, "must be at most 86400000")?;
        at_least("connection_idle_ms", self.connection_idle_ms, 1_000)?;
        at_least("calls_max", self.calls_max as u64, 64)?;
        at_least("calls_per_address_max", self.calls_per_address_max as u64, 64)?;
        at_least("answers_bytes_max", self.answers_bytes_max as u64, 64 * 1024)?;
        let per_connection = self.answers_per_connection_bytes_max as u64;
        at_least("answers_per_connection_bytes_max", per_connection, 64 * 1024)?;
        for (field, value) in [
            ("heartbeat_ms", self.heartbeat_ms),
            ("election_timeout_max_ms", self.election_timeout_max_ms),
            ("request_timeout_ms", self.request_timeout_ms),
            ("election_grace_ms", self.election_grace_ms),
            ("bookmark_ms", self.bookmark_ms),
            ("shutdown_grace_ms", self.shutdown_grace_ms),
            ("upgrade_after_ms", self.upgrade_after_ms),
            ("deny_after_ms", self.deny_after_ms),
            ("connection_idle_ms", self.connection_idle_ms),
        ] {
            check(field, value, value <= HOUR_MS, format!("must be at most {HOUR_MS} (an hour)"))?;
        }
        for (field, value) in
            [("snapshot_every", self.snapshot_every), ("keep_entries", self.keep_entries)]
        {
            check(field, value, value <= ENTRIES_MAX, format!("must be at most {ENTRIES_MAX}"))?;
        }
        Ok(())
    }

    /// How long a call without a deadline of its own may take.
    pub(crate) fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms)
    }

    /// A quiet watcher gets a bookmark this often.
    pub(crate) fn bookmark(&self) -> Duration {
        Duration::from_millis(self.bookmark_ms)
    }
}

fn check(
    field: &'static str,
    value: impl ToString,
    ok: bool,
    must: impl Into<String>,
) -> Result<(), ConfigError> {
    if ok {
        Ok(())
    } else {
        Err(ConfigError { field, value: value.to_string(), must: must.into() })
    }
}
