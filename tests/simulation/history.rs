//! What each client and node did and saw during a run, and the cluster's history put together from
//! it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use quorate_proto::v1::{ChangeKind, Instance, RemoveReason, Service};
use tokio::time::sleep;
use tonic::{Code, Status};

use super::membership::{Change, Members};
use super::net::is_open;
use super::plan::Ms;

/// What is compared of an instance: everything that simulated processes and operators ever change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) incarnation: u64,
    pub(crate) lease: u64,
    pub(crate) weight: u32,
    /// The operator's reason, where there is an override.
    pub(crate) overridden: Option<String>,
    pub(crate) created: u64,
    pub(crate) modified: u64,
}

/// Instances by "service/id".
pub(crate) type Map = BTreeMap<String, Held>;

/// One change as a watcher gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) key: String,
    pub(crate) kind: ChangeKind,
    pub(crate) held: Held,
    pub(crate) reason: RemoveReason,
}

/// What a write is called by its caller, the same for each attempt: an origin, and a number.
pub(crate) type Name = (u64, u64);

/// A write by a simulated process, or of an override.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) name: Name,
    pub(crate) key: String,
    /// The node that was asked, and when; it was begun at `from`, maybe elsewhere.
    pub(crate) node: u64,
    pub(crate) sent: Ms,
    pub(crate) from: Ms,
    pub(crate) to: Ms,
    pub(crate) ask: Ask,
    pub(crate) answer: Answer,
}

#[derive(Debug, Clone)]
pub(crate) enum Ask {
    Register {
        incarnation: u64,
        ttl_ms: u64,
    },
    Renew {
        lease: u64,
    },
    Update {
        incarnation: u64,
        weight: u32,
    },
    Deregister {
        incarnation: u64,
    },
    /// Out of service for this reason, which no other write has; none: no more.
    Override {
        reason: Option<String>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It stands at this revision; `lease` of a registration.
    Done { revision: u64, lease: u64 },
    /// It did not and will not happen.
    Refused(Code),
    /// It may have happened, or still happen.
    Unknown(Code),
}

/// A fetch of everything.
#[derive(Debug, Clone)]
pub(crate) struct Read {
    pub(crate) from: Ms,
    pub(crate) to: Ms,
    pub(crate) node: u64,
    pub(crate) linearizable: bool,
    pub(crate) min_revision: u64,
    pub(crate) revision: u64,
    /// How old it may be, as the answer says.
    pub(crate) age_ms: u64,
    pub(crate) map: Map,
}

/// How a process ended or stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Registered and renewing.
    Alive { incarnation: u64, lease: u64 },
    /// It deregistered this incarnation.
    Gone { incarnation: u64 },
    /// It renewed no more after that moment.
    Dead { incarnation: u64, at: Ms },
}

/// The hash of the state at a log index.
#[derive(Debug)]
pub(crate) struct Hash {
    pub(crate) hash: u64,
    /// When the first node said so, and which nodes did.
    pub(crate) seen: Ms,
    pub(crate) by: BTreeSet<u64>,
}

/// Everything that was noted down in a run.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    pub(crate) calls: Vec<Call>,
    /// The writes that state machines have done, and the revision after each.
    pub(crate) applied: BTreeMap<Name, u64>,
    pub(crate) reads: Vec<Read>,
    /// By revision: the watcher that got it, when (first), what.
    pub(crate) told: BTreeMap<u64, Vec<(String, Ms, Told)>>,
    /// By log index.
    pub(crate) hashes: BTreeMap<u64, Hash>,
    /// By process: the deaths and the last state.
    pub(crate) fates: BTreeMap<String, Vec<Fate>>,
    /// What each watcher ended with.
    pub(crate) watchers: BTreeMap<String, (u64, Map)>,
    /// Attempts that failed after `CALM`.
    pub(crate) late_failures: Vec<String>,
    /// What was found wrong while it ran.
    pub(crate) violations: Vec<String>,
    /// What happened, for a failing seed's report.
    pub(crate) trace: Vec<String>,
    /// The ids that answers named, and the node that named each first.
    pub(crate) clusters: BTreeMap<u64, String>,
    pub(crate) resets: usize,
    pub(crate) leaders: BTreeMap<u64, u64>,
    /// What the operator changed, in order.
    pub(crate) changes: Vec<Change>,
    /// The nodes that clients know: members, and nodes that become members.
    pub(crate) members: BTreeSet<u64>,
    /// The machines that the operator set up for newcomers.
    pub(crate) machines: BTreeSet<u64>,
    /// The members, as each of them named them at the end.
    pub(crate) last_members: BTreeMap<u64, Members>,
    pub(crate) stop: bool,
    weights: u32,
}

/// The notes, shared by all that runs in one simulation.
pub(crate) type Shared = Rc<RefCell<Notes>>;

/// Simulated time now; only within a simulated host.
pub(crate) fn now() -> Ms {
    turmoil::sim_elapsed().map_or(0, |elapsed| elapsed.as_millis() as Ms)
}

/// What is done before any watcher has begun, none is told.
pub(crate) async fn watched(notes: &Shared) {
    while notes.borrow().watchers.is_empty() {
        sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) fn held(instance: &Instance) -> (String, Held) {
    let key = format!("{}/{}", instance.service, instance.id);
    let held = Held {
        incarnation: instance.incarnation,
        lease: instance.lease_id,
        weight: instance.weight,
        overridden: instance.r#override.as_ref().map(|it| it.reason.clone()),
        created: instance.create_revision,
        modified: instance.modify_revision,
    };
    (key, held)
}

pub(crate) fn map(services: &[Service]) -> Map {
    services.iter().flat_map(|service| &service.instances).map(held).collect()
}

impl Notes {
    pub(crate) fn note(&mut self, line: String) {
        self.trace.push(format!("{:>6} ms  {line}", now()));
    }

    /// A node named its cluster in an answer: there is one in a run, whatever happens while it is
    /// founded.
    pub(crate) fn cluster(&mut self, id: u64, node: u64) {
        let who = format!("n{node} at {} ms", now());
        let known = self.clusters.len();
        self.clusters.entry(id).or_insert(who);
        if self.clusters.len() > known && (id == 0 || known > 0) {
            let line =
                format!("answers of more clusters than one, or of none: {:?}", self.clusters);
            self.violation(line);
        }
    }

    /// A weight that no other write gets.
    pub(crate) fn new_weight(&mut self) -> u32 {
        self.weights += 1;
        // No update has the weight that instances register with.
        1_000 + self.weights
    }

    /// A call failed: it may have, where nobody knows what came of it.
    pub(crate) fn failed(&mut self, node: u64, what: &str, status: &Status) {
        if !is_open(status) {
            let (code, message) = (status.code(), status.message());
            self.violation(format!("n{node} answered {what} with {code:?}: {message}"));
        }
    }

    pub(crate) fn violation(&mut self, line: String) {
        self.violations.push(format!("at {} ms: {line}", now()));
    }
}

/// The changes of the whole run in order, from revision 1 on, without holes.
#[derive(Debug, Default)]
pub(crate) struct History {
    pub(crate) changes: Vec<(Ms, Told)>,
}

impl History {
    /// What was first reported for each revision, as far as there is no hole.
    pub(crate) fn new(notes: &Notes) -> Self {
        let mut changes = Vec::new();
        for (revision, told) in &notes.told {
            if *revision != changes.len() as u64 + 1 {
                break;
            }
            let first = told.iter().map(|(_, at, _)| *at).min().unwrap_or(0);
            changes.push((first, told[0].2.clone()));
        }
        Self { changes }
    }

    pub(crate) fn last(&self) -> u64 {
        self.changes.len() as u64
    }

    /// Each revision with its change.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, Ms, &Told)> {
        self.changes.iter().zip(1..).map(|((at, told), revision)| (revision, *at, told))
    }

    /// Calls `visit` with the map at every revision, 0 included.
    pub(crate) fn replay(&self, mut visit: impl FnMut(u64, &Map)) {
        let mut map = Map::new();
        visit(0, &map);
        for (revision, _, told) in self.iter() {
            apply(&mut map, told);
            visit(revision, &map);
        }
    }
}

pub(crate) fn apply(map: &mut Map, told: &Told) {
    match told.kind {
        ChangeKind::Removed => map.remove(&told.key),
        _ => map.insert(told.key.clone(), told.held.clone()),
    };
}
