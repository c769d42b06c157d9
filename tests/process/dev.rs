//! `quorate dev` as a newcomer uses it: one of its nodes may be killed, no call fails, and it comes
//! back; when `dev` ends, in whatever way, nothing of it is left.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use quorate_client::Client;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};

use crate::cli::{Running, ask};
use crate::cluster::CALL_WITHIN;
use crate::skipped::skipped;
use crate::wait::eventually;

/// For what is not measured.
const PATIENCE: Duration = Duration::from_secs(40);
/// A soft limit of descriptors that a shell may give, and a node raises.
const FEW: u64 = 256;
const PEER_PORT_OFFSET: u16 = 100;
const HTTP_PORT_OFFSET: u16 = 200;
const DNS_PORT_OFFSET: u16 = 300;

/// `quorate dev` of three nodes, at ports of its own; and its nodes for clients.
pub(crate) struct Dev {
    first: u16,
    running: Running,
}

impl Dev {
    pub(crate) async fn start() -> Self {
        let first = free_ports();
        Self { first, running: Self::run(first).await }
    }

    async fn run(first: u16) -> Running {
        let running = Running::start(&["dev", "--listen", &format!("127.0.0.1:{first}")]);
        eventually("it is ready", PATIENCE, async || {
            if running.out().contains("Quorate is ready.") { Ok(()) } else { Err(running.err()) }
        })
        .await;
        running
    }

    fn addresses(&self) -> Vec<String> {
        (self.first..self.first + 3).map(|port| format!("127.0.0.1:{port}")).collect()
    }

    pub(crate) fn nodes(&self) -> String {
        self.addresses().join(",")
    }

    pub(crate) async fn client(&self) -> Client {
        Client::builder(self.addresses()).call_timeout(CALL_WITHIN).build().unwrap()
    }

    /// As kill -9 of the process: its data is in a directory that it does not find again.
    pub(crate) async fn founded_again_after_kill(&mut self) {
        self.running.process.kill();
        self.running = Self::run(self.first).await;
    }

    pub(crate) async fn founded_again_after_stop(&mut self) {
        self.running.process.signal(Signal::INT);
        self.running.process.exit_code(PATIENCE).await;
        self.running = Self::run(self.first).await;
    }
}

/// The first of three free ports; those for peers, HTTP and DNS are free, too. Below the ports of
/// other tests: these could be given one that is not listened on yet.
fn free_ports() -> u16 {
    static HANDED_OUT: AtomicU32 = AtomicU32::new(0);
    let next = || std::process::id().wrapping_add(HANDED_OUT.fetch_add(1, Ordering::Relaxed)) % 84;
    let first = |at: u32| u16::try_from(9_000 + at / 12 * 400 + at % 12 * 8).expect("a port");
    let mut all = std::iter::repeat_with(next).take(84).map(first);
    all.find(|first| are_free(*first)).expect("twelve free ports")
}

fn are_free(first: u16) -> bool {
    let is_free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
    let of_node = |port: u16| {
        [0, PEER_PORT_OFFSET, HTTP_PORT_OFFSET, DNS_PORT_OFFSET].map(|offset| port + offset)
    };
    (first..first + 3).flat_map(of_node).all(is_free)
}

/// The number after "pid " in each line that begins so.
fn pids(text: &str, begin: &str) -> Vec<i32> {
    let lines = text.lines().filter(|line| line.trim_start().starts_with(begin));
    let pids = lines.filter_map(|line| line.split_once("pid ")?.1.split([',', ' ']).next());
    pids.map(|pid| pid.parse().expect("a number")).collect()
}

/// The parent of a process that runs, as the kernel says.
fn parent(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let runs = fields.next()? != "Z";
    fields.next()?.parse().ok().filter(|_| runs)
}

/// From now on, what a process starts has few descriptors unless it takes more; whether it could.
fn give_few_descriptors(pid: i32) -> bool {
    let hard = getrlimit(Resource::Nofile).maximum;
    if hard.is_some_and(|hard| hard <= FEW) {
        skipped("a node of `dev` raises its limit", format!("of descriptors there are {hard:?}"));
        return false;
    }
    let few = Rlimit { current: Some(FEW), maximum: hard };
    prlimit(Pid::from_raw(pid), Resource::Nofile, few).unwrap();
    true
}

/// The soft limit of descriptors that a process has.
fn descriptors(pid: i32) -> u64 {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    // A word where there is none.
    line.split_whitespace().next().unwrap().parse().unwrap_or(u64::MAX)
}

async fn gone(pids: &[i32]) {
    eventually("its nodes are gone", PATIENCE, async || {
        let left: Vec<_> = pids.iter().filter(|pid| parent(**pid).is_some()).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?} run")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_may_be_killed_and_comes_back_and_nothing_is_left_at_the_end() {
    let mut dev = Dev::start().await;
    let (of_dev, out) = (dev.running.process.pid(), dev.running.out());
    let first = pids(&out, "node ");
    assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 3, "{out}");
    assert!(first.iter().all(|pid| parent(*pid) == Some(of_dev)), "{out}");
    let register = async |id| {
        let line = format!("register web {id} --endpoint http=http://h:1 --ttl 1h --once");
        ask(&dev.nodes(), &line).await.expect(0)
    };
    register("before").await;

    let line = out.lines().find(|line| line.contains("kill -9 ")).expect("it says what to kill");
    let pid: i32 = line.split_whitespace().nth(2).expect("a pid").parse().expect("a number");
    let killed = first.iter().position(|first| *first == pid).expect("one of the nodes");
    let has_few = give_few_descriptors(of_dev);
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    register("meanwhile").await;
    let fetched = ask(&dev.nodes(), "fetch web").await.expect(0).out;
    assert!(fetched.contains("before") && fetched.contains("meanwhile"), "{fetched}");

    let told = format!("node {}, pid {pid}, ended", killed + 1);
    let again = eventually("it is started again", PATIENCE, async || {
        let err = dev.running.err();
        assert!(!err.contains("does not start"), "{err}");
        let again = pids(&err, &format!("node {} runs again", killed + 1));
        if err.contains(&told) { again.first().copied().ok_or(err) } else { Err(err) }
    })
    .await;
    assert_eq!(parent(again), Some(of_dev));
    let own = &dev.addresses()[killed];
    eventually("it has what it missed", PATIENCE, async || {
        let fetched = ask(own, "fetch web").await;
        let has = fetched.out.contains("before") && fetched.out.contains("meanwhile");
        if has { Ok(()) } else { Err(format!("{fetched:?}")) }
    })
    .await;
    if has_few {
        assert_eq!(descriptors(of_dev), FEW);
        assert!(descriptors(again) > FEW, "of {}", descriptors(again));
    }

    dev.running.process.signal(Signal::TERM);
    assert_eq!(dev.running.process.exit_code(PATIENCE).await, 0, "{}", dev.running.err());
    let left: Vec<_> = first.iter().chain([&again]).filter(|pid| parent(**pid).is_some()).collect();
    assert!(left.is_empty(), "{left:?} are left");
    assert!(are_free(dev.first), "{}", dev.running.err());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_secure_it_takes_the_operators_certificate_and_nothing_less() {
    let (first, data) = (free_ports(), tempfile::tempdir().unwrap());
    let listen = format!("127.0.0.1:{first}");
    let data = data.path().to_str().unwrap();
    let start = async || {
        let dev = Running::start(&["dev", "--secure", "--listen", &listen, "--data-dir", data]);
        eventually("it is ready", PATIENCE, async || {
            if dev.out().contains("Quorate is ready.") { Ok(()) } else { Err(dev.err()) }
        })
        .await;
        dev
    };
    let mut dev = start().await;
    let out = dev.out();
    let exported = |name: &str| {
        let line =
            out.lines().find_map(|line| line.trim().strip_prefix(&format!("export {name}=")));
        line.unwrap_or_else(|| panic!("no {name} in {out}")).to_owned()
    };
    let nodes: String = exported("QUORATE_NODES");
    let with = [
        ("--ca", exported("QUORATE_CA")),
        ("--cert", exported("QUORATE_CERT")),
        ("--key", exported("QUORATE_KEY")),
    ];
    let with = with.map(|(flag, path)| format!(" {flag} {path}"));
    let register =
        format!("register web one --endpoint http=http://h:1 --ttl 1h --once{}", with.concat());
    ask(&nodes, &register).await.expect(0);
    let status = ask(&nodes, &format!("cluster status{}", with.concat())).await.expect(0);
    assert!(status.out.starts_with("OK: ") && status.out.contains("follower"), "{}", status.out);
    let quick = "fetch web --timeout 1s";
    assert_ne!(ask(&nodes, quick).await.code, 0);
    let without = ask(&nodes, &format!("{quick}{}", with[0])).await.expect(3).err;
    assert!(without.contains("asks for a client certificate"), "{without}");

    let alone = out.lines().find_map(|line| line.split_once("as orders alone: ")).expect("it").1;
    let as_orders = async |line: &str| ask(&nodes, &format!("{line}{} {alone}", with[0])).await;
    let line = "register orders one --endpoint http=http://h:1 --ttl 1h --once";
    as_orders(line).await.expect(0);
    as_orders("fetch orders").await.expect(0);
    as_orders("fetch web").await.expect(1).says(&["PermissionDenied"]);
    as_orders("watch web").await.expect(1).says(&["PermissionDenied"]);
    as_orders("cluster snapshot").await.expect(1).says(&["PermissionDenied"]);

    // The CA stays with the data; what it issued is made anew.
    let read = |path: &str| std::fs::read(path).unwrap();
    let before = (read(&exported("QUORATE_CA")), read(&exported("QUORATE_KEY")));
    dev.process.signal(Signal::INT);
    assert_eq!(dev.process.exit_code(PATIENCE).await, 0, "{}", dev.err());
    let _again = start().await;
    assert_eq!(read(&exported("QUORATE_CA")), before.0);
    assert_ne!(read(&exported("QUORATE_KEY")), before.1);
    let fetched = ask(&nodes, &format!("fetch web{}", with.concat())).await.expect(0).out;
    assert!(fetched.contains("one"), "{fetched}");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_dev_is_killed_its_nodes_end_too() {
    let mut dev = Dev::start().await;
    let nodes = pids(&dev.running.out(), "node ");
    assert_eq!(nodes.len(), 3);
    dev.running.process.kill();
    gone(&nodes).await;
    // Threads of a process that is gone may hold its sockets for a moment.
    eventually("their ports are free", PATIENCE, async || {
        if are_free(dev.first) { Ok(()) } else { Err("a port is in use") }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_that_are_in_use_are_named_before_anything_starts() {
    let (first, data) = (free_ports(), tempfile::tempdir().unwrap());
    let taken = std::net::TcpListener::bind(("127.0.0.1", first + 1)).unwrap();
    let (listen, kept) = (format!("127.0.0.1:{first}"), data.path().join("kept"));
    let args = ["dev", "--listen", &listen, "--data-dir", kept.to_str().unwrap()];
    let mut dev = Running::start(&args);
    assert_eq!(dev.process.exit_code(PATIENCE).await, 1, "{}", dev.err());
    let told = format!("127.0.0.1:{} is in use: is another `quorate dev` running?", first + 1);
    assert!(dev.err().contains(&told) && !kept.exists(), "{}", dev.err());
    drop(taken);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_does_not_start_ends_dev_with_what_it_said() {
    let (first, data) = (free_ports(), tempfile::tempdir().unwrap());
    std::fs::write(data.path().join("node-2"), "no directory").unwrap();
    let (listen, kept) = (format!("127.0.0.1:{first}"), data.path().to_str().unwrap());
    let mut dev = Running::start(&["dev", "--listen", &listen, "--data-dir", kept]);
    assert_eq!(dev.process.exit_code(PATIENCE).await, 1, "{}", dev.err());
    let err = dev.err();
    let told = "cannot use the data directory";
    assert!(err.contains(&format!("node 2: error: {told}")), "the line names its node: {err}");
    let (_, last) = err.rsplit_once("error: node 2 does not start").expect("at the end");
    assert!(last.contains(told), "{err}");
    assert!(
        err.contains("it starts again in 500ms") && !err.contains("runs again, pid 0"),
        "{err}"
    );
    assert!(are_free(first));
}
