//! A node under a supervisor: a double of systemd that listens as sd_notify(3) says, and restarts
//! as the unit in cluster-examples/ says.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cluster::{Cluster, Settings};
use crate::wait::eventually;

const SOON: Duration = Duration::from_secs(20);
/// Pings that a watchdog of a second gets come twice as often.
const WATCHDOG: Duration = Duration::from_secs(1);

/// Where a node reports.
struct Reports {
    socket: UnixDatagram,
    path: PathBuf,
    told: Vec<String>,
}

impl Reports {
    fn listen(dir: &Path) -> Self {
        let path = dir.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { socket, path, told: Vec::new() }
    }

    fn variables(&self) -> [(&'static str, String); 2] {
        let micros = WATCHDOG.as_micros().to_string();
        [("NOTIFY_SOCKET", self.path.display().to_string()), ("WATCHDOG_USEC", micros)]
    }

    /// Every line that came so far.
    fn told(&mut self) -> &[String] {
        let mut buffer = [0; 4_096];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            self.told.extend(text.lines().map(str::to_owned));
        }
        &self.told
    }

    async fn until(&mut self, line: &str) {
        eventually(line, SOON, || {
            let told = self.told();
            let came = told.iter().any(|told| told.starts_with(line));
            let told = told.join(", ");
            async move { if came { Ok(()) } else { Err(told) } }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_supervisor_is_told_when_a_node_is_ready_lives_and_stops() {
    let mut cluster = Cluster::prepare(3, Settings::default()).await;
    let mut reports = Reports::listen(cluster.dir());
    cluster.nodes[0].start_supervised(&reports.variables());
    reports.until("STATUS=not ready: it is not in a cluster yet").await;
    reports.until("WATCHDOG=1").await;
    cluster.nodes[1].start();
    cluster.nodes[2].start();
    reports.until("READY=1").await;
    // In the order in which it was: nothing was ready alone.
    let told = reports.told();
    let at = |line: &str| told.iter().position(|told| told.starts_with(line)).unwrap();
    assert!(at("STATUS=not ready") < at("READY=1"), "{told:?}");
    reports.until("STATUS=ready").await;

    let pings = |told: &[String]| told.iter().filter(|told| *told == "WATCHDOG=1").count();
    let before = pings(reports.told());
    eventually("pings go on", SOON, || {
        let more = pings(reports.told()) > before + 2;
        async move { if more { Ok(()) } else { Err("none") } }
    })
    .await;

    cluster.nodes[0].terminate();
    assert_eq!(cluster.nodes[0].exit_code(SOON).await, 0);
    assert!(reports.told().iter().any(|told| told == "STOPPING=1"), "{:?}", reports.told);
}

/// What a line of the unit says.
fn unit(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = fs::read_to_string(root.join("cluster-examples/three-nodes/quorate@.service"));
    let text = text.unwrap();
    let value = |line: &str| Some(line.strip_prefix(name)?.strip_prefix('=')?.to_owned());
    text.lines().find_map(value).unwrap_or_else(|| panic!("the unit has no {name}"))
}

/// Whether the unit has the node started again after it ended so.
fn restarts_after(code: i32) -> bool {
    assert_eq!(unit("Restart"), "always");
    let prevented = unit("RestartPreventExitStatus");
    prevented.split(' ').all(|prevented| prevented != code.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_killed_is_started_again_and_one_without_its_disk_is_not() {
    let mut cluster = Cluster::start(3).await;
    cluster.nodes[0].register("kept", "k", Duration::from_secs(60)).await.unwrap();
    cluster.equal_states().await;
    assert_eq!(unit("Type"), "notify");

    // A bug, or no memory: after a signal, the unit starts it again.
    let mut reports = Reports::listen(cluster.dir());
    cluster.nodes[2].kill();
    cluster.nodes[2].start_supervised(&reports.variables());
    reports.until("READY=1").await;

    cluster.nodes[2].kill();
    fs::remove_dir_all(&cluster.nodes[2].data_dir).unwrap();
    cluster.nodes[2].start_supervised(&reports.variables());
    let code = cluster.nodes[2].exit_code(SOON).await;
    assert!(!restarts_after(code), "exit code {code}");
    let log = cluster.nodes[2].log_text();
    assert!(log.contains("its disk was lost") && log.contains("cluster replace 3 NEW"), "{log}");
    // What may pass by itself is tried again: here, an address that is taken.
    let taken = std::net::TcpListener::bind(&cluster.nodes[2].clients).unwrap();
    cluster.nodes[2].become_new(4);
    cluster.nodes[2].start();
    let code = cluster.nodes[2].exit_code(SOON).await;
    assert!(restarts_after(code), "exit code {code}");
    drop(taken);
}

/// When each line of a log was written, s since midnight; those alone that have a time.
fn times(log: &str) -> Vec<(f64, &str)> {
    let parsed = log.lines().filter_map(|line| {
        let (at, said) = line.split_once("Z ")?;
        let (_, clock) = at.split_once('T')?;
        let [hours, minutes, seconds] = clock.split(':').collect::<Vec<_>>().try_into().ok()?;
        let [hours, minutes] = [hours, minutes].map(|part| part.parse::<f64>().unwrap());
        Some(((hours * 60.0 + minutes) * 60.0 + seconds.parse::<f64>().unwrap(), said))
    });
    parsed.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_waits_says_for_whom_every_ten_seconds_and_nothing_else() {
    let mut cluster = Cluster::prepare(3, Settings::default()).await;
    let silent = [1, 2].map(|at| cluster.nodes[at].peer_address());
    let (waits, asks) = (cluster.add_new(4).await, cluster.add_new(5).await);
    cluster.nodes[asks].asks(&silent[0]);
    let added = format!("quorate cluster add 4 {}", cluster.nodes[waits].peer_address());
    let wanted = [
        (0, format!("start node 2 at {}, node 3 at {}", silent[0], silent[1])),
        (waits, added),
        (asks, format!("it asks {} to take it in; told last: ", silent[0])),
    ];
    for (at, _) in &wanted {
        cluster.nodes[*at].start();
    }
    for (at, reason) in wanted {
        eventually("it has said it twice", 2 * SOON, async || {
            let log = cluster.nodes[at].log_text();
            if log.matches(&reason).count() >= 2 { Ok(()) } else { Err(log) }
        })
        .await;
        let log = cluster.nodes[at].log_text();
        let lines = times(&log);
        let starts = lines.iter().position(|(_, said)| said.contains("node starts"));
        let (begun, _) = lines[starts.expect("it starts")];
        // What comes behind that takes no 3 s.
        let later: Vec<_> = lines.iter().filter(|(time, _)| time - begun > 3.0).collect();
        assert!(later.iter().all(|(_, said)| said.contains(&reason)), "{log}");
        for pair in later.windows(2) {
            // On midnight it begins again.
            let apart = (pair[1].0 - pair[0].0).rem_euclid(86_400.0);
            assert!(apart > 9.9, "{apart:.1} s apart: {log}");
        }
    }
}
