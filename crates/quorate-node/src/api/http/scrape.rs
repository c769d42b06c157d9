//! Looks up, for each scrape, what is not counted as it happens.

use std::sync::atomic::Ordering;
use std::time::{Duration, UNIX_EPOCH};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use quorate_log::FLUSH_BOUNDS;
use quorate_state::{Registry, ServiceKey};
use rustix::process::{Resource, getrlimit};

use crate::api::http::Observed;
use crate::meters::{Build, Certificate, Meters, OfService, REFUSED_FOR, Reason, SERVICES_MAX};
use crate::node::Node;
use crate::wall;

/// All metrics of a node as they are now.
pub(super) fn text(observed: &Observed) -> String {
    observed.node.meters().text(|meters| {
        of_raft(meters, &observed.node);
        of_state(meters, &observed.node);
        of_log(meters, observed);
        of_credentials(meters, observed);
        of_process(meters, observed);
    })
}

fn set(gauge: &Gauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

fn count(counter: &Counter, value: u64) {
    counter.inner().store(value, Ordering::Relaxed);
}

fn of_raft(meters: &Meters, node: &Node) {
    let status = node.own_status();
    set(&meters.term, status.term);
    set(&meters.last_index, status.last_log_index);
    set(&meters.applied_index, status.applied_index);
    set(&meters.snapshot_index, status.snapshot_index);
    set(&meters.purged_index, status.purged_index);
    set(&meters.revision, status.revision);
    set(&meters.has_leader, u64::from(node.leadership().leader().is_some()));
    let leads = node.leads();
    set(&meters.is_leader, u64::from(leads));
    let quorum = node.quorum();
    set(&meters.is_voter, u64::from(quorum.is_voter));
    set(&meters.voters, quorum.voters as u64);
    set(&meters.voters_reachable, quorum.reachable as u64);
    set(&meters.committed_index, quorum.committed);
    meters.last_contact.set(quorum.silence.map_or(-1.0, |silence| silence.as_secs_f64()));
    set(&meters.clock_held, u64::from(leads && !node.clock().held(node.term()).is_zero()));
    let refused: Vec<_> = node.refusals().iter().filter_map(|it| it.kind.label()).collect();
    for reason in REFUSED_FOR {
        let of = meters.writes_refused.get_or_create_owned(&Reason { reason });
        set(&of, u64::from(refused.contains(&reason)));
    }
}

fn of_state(meters: &Meters, node: &Node) {
    let (registry, watches, watchers, waiting) = {
        let state = node.applied().lock();
        let hub = &state.hub;
        (state.registry.clone(), hub.counts(), hub.watchers(), hub.waiting())
    };
    let counts = registry.counts();
    set(&meters.instances, counts.instances as u64);
    set(&meters.state, registry.bytes() as u64);
    set(&meters.state_max, node.tunables().state_bytes_max as u64);
    set(&meters.leases, counts.leases as u64);
    set(&meters.services, counts.services as u64);
    set(&meters.deadlines, registry.deadlines() as u64);
    set(&meters.overrides, counts.overrides as u64);
    meters.service_instances.clear();
    for (size, key) in largest(&registry) {
        let (namespace, service) = (key.namespace.to_string(), key.name.to_string());
        let of = meters.service_instances.get_or_create_owned(&OfService { namespace, service });
        set(&of, size as u64);
    }
    set(&meters.watches, watchers as u64);
    set(&meters.watches_behind, waiting.behind as u64);
    set(&meters.watch_queued, waiting.queued as u64);
    set(&meters.watch_queued_most, waiting.most as u64);
    count(&meters.changes, watches.changes);
    count(&meters.expired, watches.expired);
    count(&meters.watch_overflows, watches.overflows);
    count(&meters.watch_resets, watches.resets);
}

/// The services with the most instances, and how many these are.
fn largest(registry: &Registry) -> Vec<(usize, &ServiceKey)> {
    let sizes = registry.all_services().map(|(key, service)| (service.instances.len(), key));
    let mut sizes: Vec<_> = sizes.filter(|(size, _)| *size > 0).collect();
    if sizes.len() > SERVICES_MAX {
        sizes.select_nth_unstable_by(SERVICES_MAX, |one, other| other.0.cmp(&one.0));
        sizes.truncate(SERVICES_MAX);
    }
    sizes
}

fn of_log(meters: &Meters, observed: &Observed) {
    let stats = observed.log.stats();
    count(&meters.log_entries, stats.entries);
    count(&meters.log_bytes, stats.entry_bytes);
    count(&meters.log_journal_bytes, stats.journal_bytes);
    count(&meters.log_rewrites, stats.rewrites);
    set(&meters.log_size, observed.log.file_bytes());
    if let Some((written, bytes)) = observed.snapshots.written() {
        let since = written.duration_since(UNIX_EPOCH).unwrap_or_default();
        meters.snapshot_time.set(since.as_secs_f64());
        set(&meters.snapshot_bytes, bytes);
    }
    // By the clock of now: one that was ahead then would quiet the alert for as long.
    if let Some(age) = observed.node.seen().backup_age() {
        meters.backup_time.set(wall::since_1970().saturating_sub(age).as_secs_f64());
    }
    let bounds = FLUSH_BOUNDS.iter().map(Duration::as_secs_f64).chain([f64::MAX]);
    meters.log_flush.set(stats.flush_time.as_secs_f64(), bounds.zip(stats.flushes_within));
    let disk = observed.node.disk();
    set(&meters.disk_free, disk.free_bytes());
    set(&meters.disk_reserve, observed.node.tunables().disk_reserve_bytes);
    set(&meters.disk_low, u64::from(disk.check().is_err()));
}

fn of_credentials(meters: &Meters, observed: &Observed) {
    set(&meters.access_refused, u64::from(observed.node.access().is_refused()));
    let Some(tls) = &observed.tls else { return };
    set(&meters.tls_refused, u64::from(tls.is_refused()));
    count(&meters.handshakes_refused, tls.handshakes_refused());
    if let Some(ends_in) = tls.ends_in() {
        let of = Certificate { certificate: "node" };
        meters.certificate_expiry.get_or_create_owned(&of).set(ends_in);
    }
}

fn of_process(meters: &Meters, observed: &Observed) {
    let node = &observed.node;
    set(&meters.connections, observed.connections.count() as u64);
    count(&meters.audit_left_out, node.audit().left_out_ever());
    count(&meters.probes, node.probes().made.load(Ordering::Relaxed));
    count(&meters.probes_refused, node.probes().refused.load(Ordering::Relaxed));
    meters.uptime.set(node.started().elapsed().as_secs_f64());
    let version = env!("CARGO_PKG_VERSION");
    let cluster = node.access().cluster().to_owned();
    meters.build.get_or_create_owned(&Build { version, cluster }).set(1);
    if let Some((resident_bytes, cpu)) = process() {
        set(&meters.resident, resident_bytes);
        meters.cpu.inner().store(cpu.as_secs_f64().to_bits(), Ordering::Relaxed);
    }
    set(&meters.open_files, open_files());
    set(&meters.open_files_max, getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX));
}

/// How many descriptors the process has open; 0: the system does not say. Linux has said it as the
/// size of this directory since 6.2; listing it takes milliseconds where there are thousands.
fn open_files() -> u64 {
    const DESCRIPTORS: &str = "/proc/self/fd";
    let counted = std::fs::metadata(DESCRIPTORS).map_or(0, |directory| directory.len());
    match counted {
        0 => std::fs::read_dir(DESCRIPTORS).map_or(0, |open| open.count() as u64),
        counted => counted,
    }
}

/// What the process takes: resident bytes, processor time. `None`: the system does not say.
fn process() -> Option<(u64, Duration)> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = pages.split(' ').nth(1)?.parse().ok()?;
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name, in brackets, may have spaces in it.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut ticks = rest.split(' ').skip(12).map_while(|ticks| ticks.parse::<u64>().ok());
    let ticks = ticks.next()? + ticks.next()?;
    let per_second = rustix::param::clock_ticks_per_second();
    let cpu = Duration::from_secs_f64(ticks as f64 / per_second as f64);
    Some((pages * rustix::param::page_size() as u64, cpu))
}
