//! The real binary under faults: `quorate serve` processes on loopback that are killed, paused,
//! starved of a quorum or of disk, and stopped, while the client crate and the binary's own
//! commands use them. One file per fault; comments like `S0.3` name the requirement that a test
//! covers. Times are measured where there is a limit.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stderr, reason = "measured times, and the logs of a failed test")]

#[path = "process/any_order.rs"]
mod any_order;
#[path = "process/audited.rs"]
mod audited;
#[path = "readme/built.rs"]
mod built;
#[path = "process/bundles.rs"]
mod bundles;
#[path = "process/ca_name.rs"]
mod ca_name;
#[path = "process/calls.rs"]
mod calls;
#[path = "process/canaries.rs"]
mod canaries;
#[path = "process/canaries_three.rs"]
mod canaries_three;
#[path = "process/certs.rs"]
mod certs;
#[path = "process/cli.rs"]
mod cli;
#[path = "process/cluster.rs"]
mod cluster;
#[path = "process/cluster_name.rs"]
mod cluster_name;
#[path = "process/connections.rs"]
mod connections;
#[path = "process/contexts.rs"]
mod contexts;
#[path = "process/crowd.rs"]
mod crowd;
#[path = "process/damage.rs"]
mod damage;
#[path = "process/dev.rs"]
mod dev;
#[path = "process/diagnosed.rs"]
mod diagnosed;
#[path = "process/discovery.rs"]
mod discovery;
#[path = "process/disk_full.rs"]
mod disk_full;
#[path = "process/dns.rs"]
mod dns;
#[path = "process/dns_at_once.rs"]
mod dns_at_once;
#[path = "process/dns_foreign.rs"]
mod dns_foreign;
#[path = "process/dns_limits.rs"]
mod dns_limits;
#[path = "process/event_source.rs"]
mod event_source;
#[path = "process/examples.rs"]
mod examples;
#[path = "process/expiry.rs"]
mod expiry;
#[path = "process/failover.rs"]
mod failover;
#[path = "process/feed.rs"]
mod feed;
#[path = "process/floods.rs"]
mod floods;
#[path = "process/foreign_clients.rs"]
mod foreign_clients;
#[path = "process/foreign_http.rs"]
mod foreign_http;
#[path = "process/founded_again.rs"]
mod founded_again;
#[path = "process/founding.rs"]
mod founding;
#[path = "process/given_back.rs"]
mod given_back;
#[path = "process/golden.rs"]
mod golden;
#[path = "process/graceful_stop.rs"]
mod graceful_stop;
#[path = "process/health.rs"]
mod health;
#[path = "process/idle_watches.rs"]
mod idle_watches;
#[path = "cluster/issuer.rs"]
mod issuer;
#[path = "process/kill.rs"]
mod kill;
#[path = "process/lies.rs"]
mod lies;
#[path = "cluster/link.rs"]
mod link;
#[path = "process/load.rs"]
mod load;
#[path = "process/lost_disk.rs"]
mod lost_disk;
#[path = "process/metronome.rs"]
mod metronome;
#[path = "process/names.rs"]
mod names;
#[path = "process/nemesis.rs"]
mod nemesis;
#[path = "cluster/newer.rs"]
mod newer;
#[path = "process/no_memory.rs"]
mod no_memory;
#[path = "process/no_quorum.rs"]
mod no_quorum;
#[path = "process/operators.rs"]
mod operators;
#[path = "process/pause.rs"]
mod pause;
#[path = "process/ports.rs"]
mod ports;
#[path = "process/process.rs"]
mod process;
#[path = "process/prometheus.rs"]
mod prometheus;
#[path = "process/prometheus_discovery.rs"]
mod prometheus_discovery;
#[path = "process/raw.rs"]
mod raw;
#[path = "process/recovered.rs"]
mod recovered;
#[path = "process/refusals.rs"]
mod refusals;
#[path = "process/restored.rs"]
mod restored;
#[path = "process/rolling.rs"]
mod rolling;
#[path = "process/run.rs"]
mod run;
#[path = "process/scraped.rs"]
mod scraped;
#[path = "process/secrets.rs"]
mod secrets;
#[path = "process/secured.rs"]
mod secured;
#[path = "readme/skipped.rs"]
mod skipped;
#[path = "process/small_disk.rs"]
mod small_disk;
#[path = "process/states.rs"]
mod states;
#[path = "process/supervised.rs"]
mod supervised;
#[path = "process/takeover.rs"]
mod takeover;
#[path = "process/three_serves.rs"]
mod three_serves;
#[path = "process/tls.rs"]
mod tls;
#[path = "process/unread.rs"]
mod unread;
#[path = "process/unread_watches.rs"]
mod unread_watches;
#[path = "process/wait.rs"]
mod wait;
