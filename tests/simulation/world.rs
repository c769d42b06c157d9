//! One run: three whole nodes, processes, watchers and readers on turmoil's network and time, and
//! the plan's faults.
//!
//! A killed node restarts from a copy of its data directory taken at the moment of the crash: what
//! the log had not handed to the operating system is not in it. (What the operating system had not
//! handed to the disk is: power cuts are tested in quorate-log.)

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use quorate_node::{Config, Environment, Io, RunError, Server, Start, Tunables};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tempfile::TempDir;
use tokio::time::sleep;
use turmoil::Sim;

use super::history::{Notes, Shared};
use super::liveness;
use super::membership::Act;
use super::net::{CLIENT_PORT, PEER_PORT, host, net, storms};
use super::nodes::Nodes;
use super::operator;
use super::overrides::overrides;
use super::plan::{END, Kind, Ms, NODES, Plan, Way};
use super::process::Process;
use super::reader::{compare_hashes, read};
use super::steps::StepKind;
use super::watcher::Watcher;
use super::{applied, certificates};

pub(crate) const PROCESSES: u64 = 12;

/// Messages and timers move on in steps of this.
const STEP: Duration = Duration::from_millis(2);

/// Runs go on a little after `END`, for the last looks at the nodes.
const LAST: Ms = END + 1_500;

/// What the operating system's clocks say when a run begins, and turmoil's: a day in 2001, far from
/// 0, which an `Instant` of an hour ago would be below.
const CLOCK_BEGINS: Duration = Duration::from_secs(1_000_000_000);

/// A node as the simulation drives it.
struct Handle {
    /// Its present data directory.
    dir: Rc<RefCell<PathBuf>>,
    /// Its clock is to jump ahead by this much.
    jump_ms: Rc<Cell<u64>>,
    /// How often it was killed.
    kills: usize,
    down: bool,
    /// The disk that it lost, as long as what it does without it has no say in the cluster.
    lost: Option<PathBuf>,
    /// It found that it had run before, and stopped.
    refused: Rc<Cell<bool>>,
}

struct World<'a> {
    plan: Arc<Plan>,
    sim: Sim<'a>,
    nodes: BTreeMap<u64, Handle>,
    ways: BTreeMap<(u64, u64), Way>,
    reachable: BTreeMap<u64, bool>,
    /// The machines that there are by now.
    running: BTreeSet<u64>,
    notes: Shared,
    root: TempDir,
}

/// Runs a plan; everything that was noted down.
pub(crate) fn run(plan: &Arc<Plan>) -> Notes {
    let root = temp_dir();
    set_clocks(Some(Duration::ZERO));
    quorate_node::seed_this_thread(plan.seed);
    quorate_node::set_wall_clock_of_this_thread(wall_clock);
    let mut builder = turmoil::Builder::new();
    builder
        .rng_seed(plan.seed)
        .tick_duration(STEP)
        .simulation_duration(Duration::from_millis(LAST + 60_000))
        .epoch(std::time::UNIX_EPOCH + CLOCK_BEGINS)
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(plan.tuning.latency_max_ms));
    let notes = Shared::default();
    notes.borrow_mut().members = (1..=NODES).collect();
    let mut world = World {
        plan: plan.clone(),
        sim: builder.build(),
        nodes: BTreeMap::new(),
        ways: BTreeMap::new(),
        reachable: BTreeMap::new(),
        running: (1..=NODES).collect(),
        notes: notes.clone(),
        root,
    };
    if plan.tuning.tls {
        certificates::make(world.root.path(), plan.nodes());
    }
    for node in plan.nodes() {
        world.add_node(node);
    }
    world.add_clients();
    world.play();
    notes.borrow_mut().violations.extend(storms());
    notes.borrow_mut().applied = applied::take();
    drop(world);
    set_clocks(None);
    Rc::into_inner(notes).expect("everything else is gone").into_inner()
}

/// The wall clock of all nodes jumps by a year every second: nothing that is simulated follows it.
fn wall_clock() -> Duration {
    let now = turmoil::since_epoch().unwrap_or_default();
    let year = Duration::from_secs(365 * 86_400);
    if now.as_secs().is_multiple_of(2) { now } else { now + year }
}

/// h2 and hyper ask the operating system what time it is; where its clocks can be set, they hear
/// the simulated time.
#[expect(unexpected_cfgs, reason = "tokio's own switch, set by `cargo sim`")]
fn set_clocks(elapsed: Option<Duration>) {
    #[cfg(tokio_unstable)]
    simulated_clock::set(elapsed.map(|elapsed| CLOCK_BEGINS + elapsed));
    #[cfg(not(tokio_unstable))]
    let _ = elapsed;
}

/// In memory where that can be had: every append is flushed, and power cuts are not simulated here.
fn temp_dir() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.or_else(|_| tempfile::tempdir()).expect("a temporary directory")
}

impl World<'_> {
    fn add_node(&mut self, id: u64) {
        let dir = Rc::new(RefCell::new(self.root.path().join(format!("n{id}-0"))));
        let jump_ms = Rc::new(Cell::new(0));
        let refused = Rc::new(Cell::new(false));
        let (plan, current, jump) = (self.plan.clone(), dir.clone(), jump_ms.clone());
        let stopped = refused.clone();
        let tls = plan.tuning.tls.then(|| certificates::of_node(self.root.path(), id));
        self.sim.host(host(id), move || {
            let config = Config { tls: tls.clone(), ..config(id, current.borrow().clone(), &plan) };
            let (jump, plan, stopped) = (jump.clone(), plan.clone(), stopped.clone());
            async move {
                tokio::task::spawn_local(async move {
                    loop {
                        sleep(Duration::from_millis(10)).await;
                        tokio::time::advance(Duration::from_millis(jump.take())).await;
                    }
                });
                let environment = Environment {
                    net: net(plan, id),
                    log_io: Io::Inline,
                    ..Environment::default()
                };
                let bound = Server::bind_in(config, environment).await?;
                match bound.run(std::future::pending()).await {
                    Err(RunError::Amnesia { .. }) => stopped.set(true),
                    ended => return Ok(ended?),
                }
                std::future::pending().await
            }
        });
        let down = !self.running.contains(&id);
        if down {
            self.sim.crash(host(id));
        }
        self.nodes.insert(id, Handle { dir, jump_ms, kills: 0, down, lost: None, refused });
    }

    fn add_clients(&mut self) {
        let seed = self.plan.seed;
        let (plan, notes) = (self.plan.clone(), self.notes.clone());
        self.sim.client("apps", async move {
            for number in 0..PROCESSES {
                let nodes = Nodes::new(&plan, number, &notes);
                let process = Process::new(number, seed, nodes, notes.clone());
                tokio::task::spawn_local(process.run());
            }
            let rng = StdRng::seed_from_u64(seed ^ 0x0ff);
            tokio::task::spawn_local(overrides(Nodes::new(&plan, 1, &notes), rng));
            tokio::task::spawn_local(liveness::burst(Nodes::new(&plan, 0, &notes), notes));
            std::future::pending().await
        });
        let (plan, notes) = (self.plan.clone(), self.notes.clone());
        self.sim.client("eyes", async move {
            let mut rng = StdRng::seed_from_u64(seed ^ 0x5eed);
            for node in 0..NODES {
                let name = format!("watcher of n{}", node + 1);
                let nodes = Nodes::new(&plan, node, &notes);
                let watcher = Watcher::new(name, nodes, None, notes.clone());
                tokio::task::spawn_local(watcher.run());
            }
            for number in 0..2 {
                let (name, rng) = (format!("roamer {number}"), StdRng::from_rng(&mut rng));
                let nodes = Nodes::new(&plan, number, &notes);
                let watcher = Watcher::new(name, nodes, Some(rng), notes.clone());
                tokio::task::spawn_local(watcher.run());
            }
            for number in 0..2 {
                let rng = StdRng::from_rng(&mut rng);
                let nodes = Nodes::new(&plan, number, &notes);
                tokio::task::spawn_local(read(nodes, rng, notes.clone()));
            }
            operator::begin(&plan, seed, &notes);
            tokio::task::spawn_local(compare_hashes(plan.clone(), notes.clone()));
            liveness::last_look(Nodes::new(&plan, 0, &notes), notes).await;
            std::future::pending().await
        });
    }

    fn play(&mut self) {
        let mut moments = self.plan.moments();
        loop {
            let at = self.sim.elapsed().as_millis() as Ms;
            while moments.first().is_some_and(|moment| *moment <= at) {
                let moment = moments.pop_first().expect("just seen");
                self.apply(moment);
            }
            if at >= END {
                self.notes.borrow_mut().stop = true;
            }
            if at >= LAST {
                return;
            }
            set_clocks(Some(self.sim.elapsed()));
            if let Err(error) = self.sim.step() {
                let line = format!("at {at} ms: a node or a client ended by itself: {error}");
                return self.notes.borrow_mut().violations.push(line);
            }
            self.give_disks_back();
            self.start_machines(at);
        }
    }

    /// Makes the world what the plan says it is from this moment on.
    fn apply(&mut self, at: Ms) {
        for (a, b) in self.plan.pairs() {
            self.set_way(a, b, self.plan.way(a, b, at));
        }
        for node in self.plan.nodes() {
            self.set_reachable(node, self.plan.reachable(node, at));
        }
        let latency = Duration::from_millis(self.plan.latency_ms(at));
        self.sim.set_max_message_latency(latency);
        let down = self.plan.down(at);
        for node in self.plan.nodes() {
            match down.get(&node) {
                Some(kill) => self.crash(node, *kill, self.plan.wiped(node, at)),
                None if self.running.contains(&node) => self.restart(node),
                None => {}
            }
        }
        for fault in self.plan.faults.iter().filter(|fault| fault.from == at) {
            if let Kind::Stall { node, ms } = fault.kind {
                self.nodes[&node].jump_ms.set(ms);
            }
            let line = format!("{at:>6} ms  ==== until {}: {:?}", fault.until, fault.kind);
            self.notes.borrow_mut().trace.push(line);
        }
    }

    fn set_way(&mut self, a: u64, b: u64, way: Way) {
        let before = self.ways.insert((a, b), way).unwrap_or(Way::Open);
        if before == way {
            return;
        }
        let (a, b) = (host(a), host(b));
        match before {
            Way::Open => {}
            Way::Held => self.sim.release(a.as_str(), b.as_str()),
            _ => self.sim.repair(a.as_str(), b.as_str()),
        }
        match way {
            Way::Open => {}
            Way::Held => self.sim.hold(a, b),
            Way::DeafForward => self.sim.partition_oneway(a, b),
            Way::DeafBackward => self.sim.partition_oneway(b, a),
            Way::Cut => self.sim.partition(a, b),
        }
    }

    fn set_reachable(&mut self, node: u64, reachable: bool) {
        let before = self.reachable.insert(node, reachable).unwrap_or(true);
        for client in ["apps", "eyes"] {
            match (before, reachable) {
                (true, false) => self.sim.partition(client, host(node)),
                (false, true) => self.sim.repair(client, host(node)),
                _ => {}
            }
        }
    }

    fn crash(&mut self, node: u64, kill: bool, wipe: bool) {
        let handle = self.nodes.get_mut(&node).expect("a node");
        if std::mem::replace(&mut handle.down, true) {
            return;
        }
        if kill {
            handle.kills += 1;
            let copy = self.root.path().join(format!("n{node}-{}", handle.kills));
            copy_dir(&handle.dir.borrow(), &copy);
            self.sim.crash(host(node));
            let old = handle.dir.replace(copy);
            if wipe && handle.lost.is_none() {
                handle.lost = Some(
                    handle
                        .dir
                        .replace(self.root.path().join(format!("n{node}-{}-empty", handle.kills))),
                );
            }
            let _ = std::fs::remove_dir_all(old);
        } else {
            self.sim.crash(host(node));
        }
    }

    /// A node that stopped because its disk was lost gets it back, as its message says; it did
    /// nothing without it.
    fn give_disks_back(&mut self) {
        for (node, handle) in &mut self.nodes {
            if !handle.refused.take() {
                continue;
            }
            let Some(lost) = handle.lost.take() else {
                let line = format!("n{node} says that its disk was lost, and it was not");
                self.notes.borrow_mut().violations.push(line);
                continue;
            };
            self.sim.crash(host(*node));
            handle.dir.replace(lost);
            self.sim.bounce(host(*node));
        }
    }

    /// Starts the nodes that the operator has set up since, unless the plan has them down.
    fn start_machines(&mut self, at: Ms) {
        let new: Vec<u64> =
            self.notes.borrow().machines.difference(&self.running).copied().collect();
        for node in new {
            self.running.insert(node);
            if !self.plan.down(at).contains_key(&node) {
                self.restart(node);
            }
        }
    }

    fn restart(&mut self, node: u64) {
        let handle = self.nodes.get_mut(&node).expect("a node");
        if std::mem::replace(&mut handle.down, false) {
            self.sim.bounce(host(node));
        }
    }
}

fn config(id: u64, data_dir: PathBuf, plan: &Plan) -> Config {
    let tuning = &plan.tuning;
    let any = |port| SocketAddr::from(([0, 0, 0, 0], port));
    let peer = |id| format!("{}:{PEER_PORT}", host(id));
    Config {
        advertise: Some(format!("{}:{CLIENT_PORT}", host(id))),
        peer_advertise: Some(peer(id)),
        insecure: true,
        start: start(id, plan),
        tunables: Tunables {
            snapshot_every: tuning.snapshot_every,
            keep_entries: tuning.keep_entries,
            watch_ring: tuning.watch_ring,
            bookmark_ms: 1_000,
            disk_reserve_bytes: 16 * 1024 * 1024,
            ..Tunables::default()
        },
        ..Config::new(id, data_dir, any(CLIENT_PORT), any(PEER_PORT))
    }
}

/// Of the nodes that come later, every other one asks to be taken in itself.
fn start(id: u64, plan: &Plan) -> Start {
    let address = |id, port| format!("{}:{port}", host(id));
    match id {
        ..=NODES => Start::Bootstrap((1..=NODES).map(|id| (id, address(id, PEER_PORT))).collect()),
        _ if id.is_multiple_of(2) => Start::Wait,
        _ => {
            let observer = StepKind::Change(Act::Add { new: id, voter: false });
            Start::Join {
                nodes: (1..=NODES).map(|id| address(id, CLIENT_PORT)).collect(),
                observer: plan.steps.iter().any(|step| step.kind == observer),
            }
        }
    }
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a new directory");
    let Ok(entries) = std::fs::read_dir(from) else { return };
    for entry in entries.flatten() {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_dir(&path, &target);
        } else if entry.file_name() == "acknowledged" {
            // By its inode, a node knows that its directory is no older copy.
            std::fs::hard_link(&path, &target).expect("a link");
        } else {
            std::fs::copy(&path, &target).expect("a copy");
        }
    }
}
