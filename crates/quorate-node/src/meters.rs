//! What a node measures, for `/metrics`: every name stands in this file, and nowhere else. What
//! happens is counted here by the code that does it; what can be looked up at any time is set for
//! each scrape (`api/http/scrape.rs`). docs/metrics.md is made from this table.
//!
//! Names follow <https://prometheus.io/docs/practices/naming/>; those of calls are the names that
//! go-grpc-prometheus gave them, so that dashboards made for etcd fit. No instance and no caller is
//! ever a label: what has labels is bounded by the contract (methods and codes), by the routes and
//! statuses of HTTP, by the membership, or by [`SERVICES_MAX`].

mod durations;

use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, prometheus_text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
#[cfg(test)]
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;
use tonic::Code;

pub(crate) use crate::meters::durations::Durations;

/// Services whose sizes are exported, the largest.
pub(crate) const SERVICES_MAX: usize = 50;

/// Bounds of durations in seconds: half a millisecond, which is what a write takes on an idle
/// machine, to the longest deadline of most calls.
const SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Bounds of how many leases a batch of renewals has, of which a call has 10,000 at most.
const LEASES: [f64; 10] =
    [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1_000.0, 3_000.0, 10_000.0, 30_000.0];

/// All codes of gRPC, by their numbers.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

type Seconds = Gauge<f64, AtomicU64>;

/// A call by its method.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct CallLabels {
    grpc_type: &'static str,
    grpc_service: &'static str,
    grpc_method: &'static str,
}

/// A call by how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct HandledLabels {
    grpc_type: &'static str,
    grpc_service: &'static str,
    grpc_method: &'static str,
    grpc_code: &'static str,
}

/// Why something was refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Reason {
    pub(crate) reason: &'static str,
}

/// What refuses more than it takes; one of [`LANES`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Lane {
    lane: &'static str,
}

/// The limits that refuse calls and connections. Those of peers and of HTTP have one each for all
/// and for one address.
pub(crate) const LANES: [&str; 21] = [
    "connections",
    "connections_of_address",
    "silent_connections",
    "calls",
    "calls_of_address",
    "open_calls",
    "arriving",
    "answers",
    "answers_of_connection",
    "encoding",
    "backups",
    "watched_names",
    "renewals",
    "forwards",
    "reads",
    "peer_connections",
    "peer_calls",
    "http_connections",
    "http_calls",
    "dns",
    "dns_connections",
];

/// A query by DNS.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct DnsLabels {
    /// One of [`DNS_TYPES`].
    pub(crate) r#type: &'static str,
    pub(crate) code: &'static str,
}

/// Types of DNS that are counted by themselves.
pub(crate) const DNS_TYPES: [&str; 9] =
    ["A", "AAAA", "SRV", "TXT", "PTR", "SOA", "NS", "ANY", "other"];

/// Why writes fail: the values of the label of `quorate_proposals_failed_total`.
pub(crate) const FAILED_FOR: [&str; 6] =
    ["disk_full", "state_full", "overloaded", "lost_lead", "given_up", "failed"];

/// Why writes are refused, the worst first: the values of the label of `quorate_writes_refused`.
pub(crate) const REFUSED_FOR: [&str; 5] =
    ["disk_floor", "audit", "stalled", "disk_full", "state_full"];

/// Why a node shortens its log: the values of the label of `quorate_log_compactions_total`.
pub(crate) const COMPACTED_FOR: [&str; 2] = ["long", "quiet"];

/// One of the services.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OfService {
    pub(crate) namespace: String,
    pub(crate) service: String,
}

/// One of the other nodes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OfPeer {
    pub(crate) peer: u64,
}

/// A certificate, by whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Certificate {
    pub(crate) certificate: &'static str,
}

/// A request by HTTP: one of a few methods, the path as it stands among the routes (`none`: there
/// is no such path), and the status.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OfRoute {
    pub(crate) method: &'static str,
    pub(crate) route: String,
    pub(crate) code: u16,
}

/// Which binary this is, of which cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Build {
    pub(crate) version: &'static str,
    pub(crate) cluster: String,
}

macro_rules! meters {
    ($($field:ident: $kind:ty = $made:expr, $name:literal, $help:literal;)*) => {
        /// The instruments of one node.
        pub(crate) struct Meters {
            /// Locked for each scrape: all that is set for one answer is of one moment.
            registry: Mutex<Registry>,
            calls: Vec<OfMethod>,
            $(pub(crate) $field: $kind,)*
        }

        /// Name, kind and meaning of each, as a scraper sees them.
        #[cfg(test)]
        const DESCRIBED: &[(&str, MetricType, &str)] =
            &[$(($name, <$kind as TypedMetric>::TYPE, $help),)*];

        impl Meters {
            fn registered() -> Self {
                let mut registry = Registry::default();
                $(
                    let $field: $kind = $made;
                    registry.register($name, $help, $field.clone());
                )*
                Self { registry: Mutex::new(registry), calls: Vec::new(), $($field,)* }
            }
        }
    };
}

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

fn lease_counts() -> Histogram {
    Histogram::new(LEASES)
}

// The library adds `_total` to the names of counters.
meters! {
    started: Family<CallLabels, Counter> = Family::default(),
        "grpc_server_started", "Calls of clients that have begun; a stream once. What is not handled is under way, or its caller went away before it was answered";
    handled: Family<HandledLabels, Counter> = Family::default(),
        "grpc_server_handled", "Calls of clients that were answered, by code; a stream once, when it has begun";
    handling: Family<CallLabels, Histogram> = Family::new_with_constructor(seconds),
        "grpc_server_handling_seconds", "From a call of a client to its answer; of a stream, to its beginning";
    http_requests: Family<OfRoute, Counter> = Family::default(),
        "quorate_http_requests", "Requests by HTTP that were answered, by method, route (its template; none: there is no such path, or it was refused before, or given up) and status; a stream once, when it has begun";

    has_leader: Gauge = Gauge::default(),
        "quorate_raft_has_leader", "1: this node has a leader in sight";
    is_leader: Gauge = Gauge::default(),
        "quorate_raft_is_leader", "1: this node leads";
    is_voter: Gauge = Gauge::default(),
        "quorate_raft_is_voter", "1: this node votes; 0: it is an observer, or no member";
    term: Gauge = Gauge::default(),
        "quorate_raft_term", "The term of Raft that this node is in";
    leader_changes: Counter = Counter::default(),
        "quorate_raft_leader_changes", "How often this node saw another leader, or lost sight of the leader";
    elections: Counter = Counter::default(),
        "quorate_raft_elections", "Elections that this node began: it asked the others for their votes, in a new term. That it asked first whether it should (Pre-Vote) does not count, nor do those of a node that votes alone";
    voters: Gauge = Gauge::default(),
        "quorate_raft_voters", "Members that vote";
    voters_reachable: Gauge = Gauge::default(),
        "quorate_raft_voters_reachable", "Of a leader: voters, itself among them, that answered it within an election timeout. Of others: 0";
    last_contact: Seconds = Seconds::default(),
        "quorate_raft_last_contact_seconds", "Since this node last heard of its leader, or, as leader, of a majority; -1: never";
    last_index: Gauge = Gauge::default(),
        "quorate_raft_last_log_index", "The index of the last entry in this node's log";
    committed_index: Gauge = Gauge::default(),
        "quorate_raft_committed_index", "The last index that this node knows to be committed";
    applied_index: Gauge = Gauge::default(),
        "quorate_raft_applied_index", "The last index that this node has applied";
    peer_rtt: Family<OfPeer, Histogram> = Family::new_with_constructor(seconds),
        "quorate_peer_rtt_seconds", "Of a leader: from a heartbeat to a node to its answer; one that is given up, after the interval of heartbeats (80 ms), counts as long as that";
    commit_seconds: Histogram = seconds(),
        "quorate_commit_seconds", "Of a leader: from a write that is handed in to its answer, applied";
    proposals_failed: Family<Reason, Counter> = Family::default(),
        "quorate_proposals_failed", "Writes that this node, as leader, could not commit, by reason: disk_full, state_full (state_bytes_max), overloaded (too much of the log waits), lost_lead, given_up (its caller's time was over, or it went away; it may yet be committed), failed";

    writes_refused: Family<Reason, Gauge> = Family::default(),
        "quorate_writes_refused", "1: writes are refused here, by reason: audit (of what comes to this node: the audit log that is required cannot be written), and, where it leads, disk_floor (nothing is written, and no lease ends), stalled (it has committed nothing for 5 s), disk_full (no registrations), state_full (state_bytes_max: a registration was refused within a minute)";

    log_entries: Counter = Counter::default(),
        "quorate_log_entries", "Log entries made durable since the start";
    log_bytes: Counter = Counter::default(),
        "quorate_log_entry_bytes", "Bytes of them";
    log_journal_bytes: Counter = Counter::default(),
        "quorate_log_journal_bytes", "Bytes written to the log's journal since the start: entries, votes and marks";
    log_size: Gauge = Gauge::default(),
        "quorate_log_size_bytes", "What the log's files take on the disk";
    log_since_snapshot: Gauge = Gauge::default(),
        "quorate_log_since_snapshot_bytes", "Bytes of log entries since the last snapshot (since the start, if that was later)";
    compactions: Family<Reason, Counter> = Family::default(),
        "quorate_log_compactions", "Snapshots that this node began by itself to shorten its log, by reason: long, quiet (little is written, and there is something to gain). Raft's own, by number of entries, are not among them";
    log_rewrites: Counter = Counter::default(),
        "quorate_log_rewrites", "How often the log's file was written anew to give its room back";
    log_flush: Durations = Durations::default(),
        "quorate_log_flush_seconds", "One append to the log and its sync of the disk; several entries may share it";
    snapshot_index: Gauge = Gauge::default(),
        "quorate_snapshot_index", "The log index of the newest snapshot";
    snapshot_time: Seconds = Seconds::default(),
        "quorate_snapshot_timestamp_seconds", "When the newest snapshot was written, seconds since 1970; 0: there is none";
    snapshot_bytes: Gauge = Gauge::default(),
        "quorate_snapshot_bytes", "The size of the newest snapshot";
    audit_left_out: Counter = Counter::default(),
        "quorate_audit_left_out", "Lines that the audit log should have and has not: the file did not take them in time, or they were refusals, of which there were too many, or for which the disk had no room";
    backup_time: Seconds = Seconds::default(),
        "quorate_backup_timestamp_seconds", "When the last backup was begun that this node handed out whole, but for those with `--local`, seconds since 1970 by the clock of now; 0: none since it started";
    purged_index: Gauge = Gauge::default(),
        "quorate_log_purged_index", "Up to here, entries are gone from the log";
    disk_free: Gauge = Gauge::default(),
        "quorate_disk_free_bytes", "Free on the disk of the data directory";
    disk_reserve: Gauge = Gauge::default(),
        "quorate_disk_reserve_bytes", "With less free than this, the node gives the lead away, and takes no registrations while it leads all the same; with less than a quarter, it takes nothing, nor entries of another leader";
    disk_low: Gauge = Gauge::default(),
        "quorate_disk_low", "1: less is free than quorate_disk_reserve_bytes";

    revision: Gauge = Gauge::default(),
        "quorate_revision", "The revision of the registry that this node has applied";
    instances: Gauge = Gauge::default(),
        "quorate_instances", "Registered instances";
    state: Gauge = Gauge::default(),
        "quorate_state_bytes", "About what the instances, their services and their leases take in memory";
    state_max: Gauge = Gauge::default(),
        "quorate_state_bytes_max", "The leader refuses what would make quorate_state_bytes more than this";
    leases: Gauge = Gauge::default(),
        "quorate_leases", "Live leases";
    services: Gauge = Gauge::default(),
        "quorate_services", "Services with instances, or known to have had some within an hour";
    deadlines: Gauge = Gauge::default(),
        "quorate_deadlines", "What ends by registry time: each lease, and each record that only waits to be forgotten (of a deregistered instance, a service without instances, the origin of writes)";
    overrides: Gauge = Gauge::default(),
        "quorate_overrides", "Instances whose status or weight an operator has set";
    states_compared: Counter = Counter::default(),
        "quorate_states_compared", "Of a leader: how often it compared the state of another member with its own, by a hash at the same log index";
    states_differ: Gauge = Gauge::default(),
        "quorate_states_differ", "Of a leader: members whose state was another than its own after the same entries, when they were last compared. Of others: 0";
    service_instances: Family<OfService, Gauge> = Family::default(),
        "quorate_service_instances", "Instances of the 50 largest services";
    expired: Counter = Counter::default(),
        "quorate_expired_instances", "Instances that went because their lease ended without a renewal, since this node started; what its log had by then is applied again, and not counted";
    changes: Counter = Counter::default(),
        "quorate_changes", "Changes of instances that this node has applied since it started, but for those that its log had by then";
    renewals: Histogram = lease_counts(),
        "quorate_renewals_per_batch", "Of a leader: leases in each log entry of renewals; the sum is that of all renewals";
    clock_held: Gauge = Gauge::default(),
        "quorate_clock_held", "1: this node leads, and registry time stands still: nothing is applied, or not yet that renewals are owed a grace; no lease ends meanwhile";

    watches: Gauge = Gauge::default(),
        "quorate_watches", "Watches that are open at this node";
    watches_behind: Gauge = Gauge::default(),
        "quorate_watches_behind", "Watches that are served from what the node keeps of the past, not from their queues";
    watch_queued: Gauge = Gauge::default(),
        "quorate_watch_queued", "Changes that wait in the queues of all watches";
    watch_queued_most: Gauge = Gauge::default(),
        "quorate_watch_queued_most", "Changes that wait in the longest queue of a watch; one that would be longer than 1,024 is dropped";
    watch_resets: Counter = Counter::default(),
        "quorate_watch_resets", "Watches that fell so far behind that they were given a snapshot";
    watch_overflows: Counter = Counter::default(),
        "quorate_watch_overflows", "Watches whose queue was full, and which get the latest of each instance instead of each change";
    propagation: Histogram = seconds(),
        "quorate_watch_propagation_seconds", "From the apply of a change on this node to its message to a watcher that is not behind; once for each message";
    probes: Counter = Counter::default(),
        "quorate_probes", "Health checks that this node made";
    probes_refused: Counter = Counter::default(),
        "quorate_probes_refused", "Health checks to addresses that the configuration does not allow";
    probes_left_out: Counter = Counter::default(),
        "quorate_probes_left_out", "Health checks that were not made, since too many names of other instances were being looked up";

    dns_queries: Family<DnsLabels, Counter> = Family::default(),
        "quorate_dns_queries", "Queries by DNS that were answered, by type and code";
    dns_truncated: Counter = Counter::default(),
        "quorate_dns_truncated", "Answers by DNS that were too large for their message";

    connections: Gauge = Gauge::default(),
        "quorate_connections", "Connections to the listener for clients";
    refused: Family<Lane, Counter> = Family::default(),
        "quorate_refused", "Connections and calls that a limit of this node refused, by lane, and silent_connections, which ended for new ones, on all listeners. Of clients: connections, connections_of_address, calls, calls_of_address, open_calls (of callers that are not known, and of health and reflection), arriving (bytes of requests that are not whole yet), answers (bytes of them under way), answers_of_connection, encoding (of large answers, one after the other), backups, watched_names (of services, by the watches of one address), and the queues renewals, forwards (writes on their way to the leader), reads (and, of the leader, writes for which there is no room). Of others: peer_connections, peer_calls, http_connections, http_calls, dns (queries of a network that asks too much), dns_connections";
    certificate_expiry: Family<Certificate, Gauge> = Family::default(),
        "quorate_tls_certificate_expiry_seconds", "Until the node's certificate ends; negative: it has ended. Not there without TLS";
    tls_refused: Gauge = Gauge::default(),
        "quorate_tls_files_refused", "1: the TLS files as they are now cannot be used, and those before stay in use";
    handshakes_refused: Counter = Counter::default(),
        "quorate_tls_handshakes_refused", "TLS handshakes that were refused, on all listeners";
    access_refused: Gauge = Gauge::default(),
        "quorate_access_file_refused", "1: the access file as it is now cannot be used, and the rights before stay";
    uptime: Seconds = Seconds::default(),
        "quorate_uptime_seconds", "Since the node started";
    resident: Gauge = Gauge::default(),
        "process_resident_memory_bytes", "Memory of the process that is resident";
    cpu: Counter<f64, AtomicU64> = Counter::default(),
        "process_cpu_seconds", "Processor time of the process, user and system";
    open_files: Gauge = Gauge::default(),
        "process_open_fds", "File descriptors that the process has open";
    open_files_max: Gauge = Gauge::default(),
        "process_max_fds", "As many as it may have";
    build: Family<Build, Gauge> = Family::default(),
        "quorate_build_info", "1, with the version of the binary and the name of the cluster";
}

impl Meters {
    /// Counts the calls of these methods: each with its path, and whether it is a stream (of the
    /// caller, of the node).
    pub(crate) fn new(methods: impl Iterator<Item = (&'static str, (bool, bool))>) -> Self {
        let meters = Self::registered();
        let calls = methods.map(|(path, streams)| OfMethod::new(&meters, path, streams)).collect();
        // There from the start: an increase from nothing to 1 is one that Prometheus does not see.
        LANES.into_iter().for_each(|lane| drop(meters.refused(lane)));
        for reason in FAILED_FOR {
            meters.proposals_failed.get_or_create_owned(&Reason { reason });
        }
        for reason in REFUSED_FOR {
            meters.writes_refused.get_or_create_owned(&Reason { reason });
        }
        for reason in COMPACTED_FOR {
            meters.compactions.get_or_create_owned(&Reason { reason });
        }
        Self { calls, ..meters }
    }

    /// What a limit refuses is counted with this; `lane`: one of [`LANES`].
    pub(crate) fn refused(&self, lane: &'static str) -> Counter {
        self.refused.get_or_create_owned(&Lane { lane })
    }

    /// The log is to be shortened; `reason`: one of [`COMPACTED_FOR`].
    pub(crate) fn compacts(&self, reason: &'static str) {
        self.compactions.get_or_create(&Reason { reason }).inc();
    }

    /// A node is no member any more.
    pub(crate) fn forget_peer(&self, peer: u64) {
        self.peer_rtt.remove(&OfPeer { peer });
    }

    /// A request by HTTP has been answered.
    pub(crate) fn requested(&self, of: &OfRoute) {
        self.http_requests.get_or_create(of).inc();
    }

    /// A call has come in; `method`: its place among those that this was made with.
    pub(crate) fn started(&self, method: usize) {
        if let Some(of) = self.calls.get(method) {
            of.started.inc();
        }
    }

    /// A call has been answered.
    pub(crate) fn handled(&self, method: usize, code: Code, took: Duration) {
        if let Some(of) = self.calls.get(method) {
            of.handling.observe(took.as_secs_f64());
            if let Some(handled) = of.handled.get(code as usize) {
                handled.inc();
            }
        }
    }

    /// Everything, in Prometheus' text format (version 0.0.4). `set` looks at what is not counted
    /// as it happens.
    pub(crate) fn text(&self, set: impl FnOnce(&Self)) -> String {
        let registry = self.registry.lock().expect("invariant: encoding does not panic");
        set(self);
        let mut text = String::new();
        // A String takes everything.
        let _ = prometheus_text::encode(&mut text, &registry);
        text
    }
}

impl std::fmt::Debug for Meters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Meters").finish_non_exhaustive()
    }
}

/// The instruments of one method. They are found once: a renewal is too short to look for labels.
struct OfMethod {
    started: Counter,
    handling: Histogram,
    handled: [Counter; CODES.len()],
}

impl OfMethod {
    fn new(meters: &Meters, path: &'static str, streams: (bool, bool)) -> Self {
        let (grpc_service, grpc_method) = path.split_once('/').unwrap_or(("", path));
        let grpc_type = match streams {
            (false, false) => "unary",
            (true, false) => "client_stream",
            (false, true) => "server_stream",
            (true, true) => "bidi_stream",
        };
        let of_code = |grpc_code| {
            let labels = HandledLabels { grpc_type, grpc_service, grpc_method, grpc_code };
            meters.handled.get_or_create(&labels).clone()
        };
        let labels = CallLabels { grpc_type, grpc_service, grpc_method };
        Self {
            started: meters.started.get_or_create(&labels).clone(),
            handling: meters.handling.get_or_create(&labels).clone(),
            handled: CODES.map(of_code),
        }
    }
}

#[cfg(test)]
mod tests;
