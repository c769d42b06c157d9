//! The table of states: what each face of the cluster says in each of them.

use std::collections::BTreeMap;

use tonic_health::pb::health_check_response::ServingStatus;

/// What every face of the cluster says.
pub(super) struct State {
    pub(super) name: &'static str,
    /// The first line of `cluster status`, its words in this order, and its exit code.
    pub(super) first: &'static [&'static str],
    pub(super) code: i32,
    /// A check of `doctor`, the words of its finding, and the exit code; empty: it finds nothing
    /// that is worse than a note.
    pub(super) doctor: (&'static str, &'static str),
    pub(super) doctor_code: i32,
    /// `/readyz` of the node that it is about: the code and a word of the answer. 0: no answer.
    pub(super) ready: (u16, &'static str),
    /// Its gRPC health; `None`: no answer.
    pub(super) health: Option<ServingStatus>,
    /// What else `cluster status` says.
    pub(super) also: &'static str,
    /// The alerts that fire if it stays so, and no others.
    pub(super) alerts: &'static [&'static str],
    /// What a metric is then.
    pub(super) shows: fn(&Metrics) -> bool,
}

const SERVING: Option<ServingStatus> = Some(ServingStatus::Serving);
const NOT_SERVING: Option<ServingStatus> = Some(ServingStatus::NotServing);

pub(super) const STATES: [State; 15] = [
    State {
        name: "healthy",
        first: &["OK: node ", " leads, 3 of 3 voters answer"],
        code: 0,
        doctor: ("", ""),
        doctor_code: 0,
        ready: (200, "ready"),
        health: SERVING,
        also: "",
        alerts: &[],
        shows: |metrics| metrics.is("quorate_raft_has_leader", 1.0),
    },
    State {
        name: "one down",
        first: &["DEGRADED: 2 of 3 voters answer: all goes on", "with 0 more down"],
        code: 1,
        doctor: ("quorum", "does not answer; 0 more may fail"),
        doctor_code: 1,
        ready: (200, "ready"),
        health: SERVING,
        also: "",
        alerts: &["QuorateNoFailureToSpare", "QuorateNodeDown"],
        shows: |metrics| metrics.is("quorate_raft_voters_reachable", 2.0),
    },
    State {
        name: "leader frozen",
        first: &["DEGRADED: 2 of 3 voters answer: all goes on", "with 0 more down"],
        code: 1,
        doctor: ("quorum", "does not answer; 0 more may fail"),
        doctor_code: 1,
        ready: (0, ""),
        health: None,
        // `up` of the frozen one is 0, too; the next leader says how it does not answer.
        also: "no answer within ",
        alerts: &["QuorateNoFailureToSpare", "QuorateNodeDown"],
        shows: |metrics| metrics.is("quorate_raft_voters_reachable", 2.0),
    },
    State {
        name: "no quorum",
        first: &["NO QUORUM: 1 of 3 voters answer, 2 are needed: no writes"],
        code: 2,
        doctor: ("quorum", "no quorum: 1 of 3 voters answer"),
        doctor_code: 2,
        ready: (503, "no leader in sight"),
        health: NOT_SERVING,
        also: "",
        alerts: &["QuorateNoLeader", "QuorateNodeDown"],
        shows: |metrics| metrics.is("quorate_raft_has_leader", 0.0),
    },
    // The cluster is well, the node is not in it: also where that one is asked first.
    State {
        name: "joining",
        first: &["OK: node ", " leads, 3 of 3 voters answer"],
        code: 0,
        doctor: ("quorum", "node 5 is no member: it asks "),
        doctor_code: 1,
        ready: (503, "not in a cluster yet"),
        health: NOT_SERVING,
        also: "",
        alerts: &["QuorateNodeCutOff"],
        shows: |metrics| metrics.is("quorate_raft_has_leader", 0.0),
    },
    State {
        name: "removed",
        first: &["OK: node ", " leads, 3 of 3 voters answer"],
        code: 0,
        doctor: ("quorum", "node 4 is no member: it was removed"),
        doctor_code: 1,
        ready: (503, "removed from its cluster"),
        health: NOT_SERVING,
        also: "",
        alerts: &["QuorateNodeCutOff"],
        shows: |metrics| metrics.is("quorate_raft_has_leader", 0.0),
    },
    // Heartbeats get to it, so it has a leader, and forwards writes.
    State {
        name: "lagging",
        first: &["DEGRADED: node 2 lags: it has ", " entries to apply"],
        code: 1,
        doctor: ("lag", "node 2 has "),
        doctor_code: 1,
        ready: (503, "not caught up"),
        health: SERVING,
        also: "",
        alerts: &["QuorateNodeBehind"],
        // Of the leader: the other knows nothing of what does not get to it.
        shows: |metrics| metrics.of("quorate_raft_committed_index") > 5_000.0,
    },
    State {
        name: "disk low",
        first: &["DEGRADED: the disk of node 1 is nearly full: writes may be refused"],
        code: 1,
        doctor: ("disks", "the disk of node 1 has "),
        doctor_code: 1,
        ready: (503, "the disk of node 1"),
        health: NOT_SERVING,
        also: "",
        alerts: &["QuorateDiskFills", "QuorateDiskFull"],
        shows: |metrics| metrics.is("quorate_disk_low", 1.0),
    },
    State {
        name: "disk full",
        first: &["DEGRADED: the disk of node 1, 2, 3 is nearly full", "leads: no registrations"],
        code: 1,
        doctor: ("disks", "which leads, has "),
        doctor_code: 2,
        ready: (503, "no registrations until there is room"),
        health: NOT_SERVING,
        also: "",
        alerts: &[
            "QuorateCallsFail",
            "QuorateCallsFailOften",
            "QuorateDiskFills",
            "QuorateDiskFull",
            "QuorateDiskRefuses",
        ],
        shows: |metrics| metrics.of("quorate_proposals_failed_total{reason=\"disk_full\"}") > 0.0,
    },
    State {
        name: "disk at its floor",
        first: &["NO WRITES: the disk of node ", "nothing is written, and no lease ends"],
        code: 2,
        doctor: ("disks", "below a quarter of its reserve"),
        doctor_code: 2,
        ready: (503, "nothing is written"),
        health: NOT_SERVING,
        also: "LOW",
        alerts: &[
            "QuorateClockHeld",
            "QuorateDiskFills",
            "QuorateDiskFull",
            "QuorateNodeBehind",
            "QuorateWritesRefused",
        ],
        shows: |metrics| metrics.is("quorate_writes_refused{reason=\"disk_floor\"}", 1.0),
    },
    // The others do what comes to them.
    State {
        name: "audit log unwritten",
        first: &["DEGRADED: node 1 refuses the writes that come to it: ", "/dev/full"],
        code: 1,
        doctor: ("writes", "node 1 refuses the writes that come to it: "),
        doctor_code: 2,
        ready: (503, "/dev/full"),
        health: NOT_SERVING,
        also: "",
        alerts: &["QuorateWritesRefused"],
        shows: |metrics| metrics.is("quorate_writes_refused{reason=\"audit\"}", 1.0),
    },
    // Renewals have to reach it, so it is ready.
    State {
        name: "registry full",
        first: &["DEGRADED: registrations are refused, the rest goes on: ", "state_bytes_max"],
        code: 1,
        doctor: ("writes", "registrations are refused, the rest goes on: "),
        doctor_code: 2,
        ready: (200, "ready"),
        health: SERVING,
        also: "",
        alerts: &[
            "QuorateCallsFail",
            "QuorateCallsFailOften",
            "QuorateStateFills",
            "QuorateStateFull",
        ],
        shows: |metrics| metrics.is("quorate_writes_refused{reason=\"state_full\"}", 1.0),
    },
    // All nodes of a test are one binary, and no setting makes one say another version: what stands
    // between node 2 and the others says so. What is scraped of it is the test's own text, with the
    // version replaced (`Watched::get`): of the metric, this row shows the alert and not the node.
    State {
        name: "mixed versions",
        first: &["DEGRADED: the nodes run different versions: ", "9.0.0"],
        code: 1,
        doctor: ("versions", "9.0.0 on {2}"),
        doctor_code: 1,
        ready: (200, "ready"),
        health: SERVING,
        also: "",
        alerts: &["QuorateVersionsMixed"],
        shows: |metrics| {
            metrics.is("quorate_build_info{version=\"9.0.0\",cluster=\"quorate\"}", 1.0)
        },
    },
    State {
        name: "certificate near its end",
        first: &["DEGRADED: the certificate of node 2 ends in 4 d"],
        code: 1,
        doctor: ("certificates", "the certificate of node 2 ends in 4 d"),
        doctor_code: 1,
        ready: (200, "ready"),
        health: SERVING,
        also: "",
        alerts: &["QuorateCertificateEnds"],
        shows: |metrics| {
            let left = metrics.of("quorate_tls_certificate_expiry_seconds{certificate=\"node\"}");
            left > 0.0 && left < 7.0 * 86_400.0
        },
    },
    // No follower gets an entry, and all get heartbeats.
    State {
        name: "clock stalled",
        first: &["DEGRADED: registry time stands still for ", "no lease ends"],
        code: 1,
        doctor: ("clock", "registry time has stood still for "),
        doctor_code: 1,
        ready: (503, "has committed nothing for "),
        health: NOT_SERVING,
        also: "HELD",
        alerts: &["QuorateClockHeld"],
        shows: |metrics| metrics.is("quorate_clock_held", 1.0),
    },
];

/// What a node measures, by name and labels.
#[derive(Debug, Default)]
pub(super) struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    pub(super) fn read(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Self(lines.filter_map(sample).collect())
    }

    /// Not there: not a number, which is neither large nor small.
    pub(super) fn of(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or(f64::NAN)
    }

    pub(super) fn is(&self, name: &str, value: f64) -> bool {
        self.0.get(name) == Some(&value)
    }
}
