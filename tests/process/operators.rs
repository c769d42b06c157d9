//! What operators do at the command line: signals, mistakes, and what the output says of them.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use quorate_client::{
    Error, FetchOptions, InstanceBuilder, InstanceOverride, Registration, Selection,
};
use rustix::process::Signal;

use crate::cli::{Running, ask};
use crate::cluster::{Cluster, Settings};
use crate::ports::free_port;
use crate::skipped::skipped;
use crate::wait::eventually;

const PATIENCE: Duration = Duration::from_secs(10);

/// The terminal is gone: `register` deregisters, `dev` leaves no directory behind. A node that is
/// in none goes on: whoever rotates logs sends this signal to all daemons.
#[tokio::test(flavor = "multi_thread")]
async fn a_hang_up_ends_everything_in_order_but_a_daemon() {
    let mut cluster = Cluster::start(1).await;
    let client = cluster.client().build().unwrap();
    let line = "register web a --endpoint http=http://h:1 --ttl 1h";
    let mut registering = Running::ask(&cluster.all(), line);
    eventually("registered", PATIENCE, async || client.fetch("web").await).await;
    ask(&cluster.all(), "fetch web --exit-code").await.expect(0);
    registering.process.signal(Signal::HUP);
    assert_eq!(registering.process.exit_code(PATIENCE).await, 0, "{}", registering.err());
    let gone = client.fetch("web").await;
    assert!(matches!(gone, Err(Error::NoInstances { .. })), "{gone:?}");
    ask(&cluster.all(), "fetch web").await.expect(0);
    let empty = ask(&cluster.all(), "fetch web --exit-code").await.expect(1);
    assert!(empty.out.contains("web: 0 instances"), "{}", empty.out);

    cluster.nodes[0].process().signal(Signal::HUP);
    eventually("it says so", PATIENCE, || {
        let log = cluster.nodes[0].log_text();
        let said = log.contains("SIGHUP: there is nothing to read again");
        async move { if said { Ok(()) } else { Err(log) } }
    })
    .await;
    let answer = client.fetch("web").await;
    assert!(matches!(answer, Err(Error::NoInstances { .. })), "it goes on: {answer:?}");
    cluster.nodes[0].terminate();
    assert_eq!(cluster.nodes[0].exit_code(PATIENCE).await, 0);
    assert!(cluster.nodes[0].log_text().contains("node stopped"), "in order");

    let mut dev = Running::start(&["dev", "--nodes", "1", "--listen", "127.0.0.1:0"]);
    let place = eventually("dev is ready", PATIENCE, || {
        let out = dev.out();
        let place = out.lines().find_map(|line| line.split_once("data     in "));
        let place = place.and_then(|(_, rest)| rest.split_once(','));
        let place = place.map(|(place, _)| place.to_owned());
        async move { if out.contains("Ctrl-C") { place.ok_or(out) } else { Err(out) } }
    })
    .await;
    assert!(std::path::Path::new(&place).exists(), "{place}");
    dev.process.signal(Signal::HUP);
    assert_eq!(dev.process.exit_code(PATIENCE).await, 0, "{}", dev.err());
    assert!(!std::path::Path::new(&place).exists(), "{place} is left");
}

/// Nobody is left there who could end it.
#[tokio::test]
async fn a_node_in_a_terminal_ends_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let [clients, peers] = [free_port(), free_port()];
    let serve = format!(
        "exec {} serve --id 1 --data-dir data --listen 127.0.0.1:{clients} --peer-listen 127.0.0.1:{peers} 2> log",
        env!("CARGO_BIN_EXE_quorate")
    );
    let mut terminal = Command::new("script");
    terminal.args(["-qec", &serve, "/dev/null"]).current_dir(dir.path());
    let quiet = terminal.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut terminal = match quiet.spawn() {
        Ok(terminal) => terminal,
        Err(error) => return skipped("a terminal that ends", format!("script: {error}")),
    };
    let says = async |words: &str| {
        eventually(words, PATIENCE, || {
            let log = std::fs::read_to_string(dir.path().join("log")).unwrap_or_default();
            let says = log.contains(words);
            async move { if says { Ok(()) } else { Err(log) } }
        })
        .await;
    };
    says("node starts").await;
    terminal.kill().unwrap();
    terminal.wait().unwrap();
    says("node stopped").await;
}

/// No node listens: the command says soon what it tries, and ends at once on Ctrl-C.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_tries_says_so_and_hears_ctrl_c() {
    join_all(["register web a --endpoint http=http://h:1", "watch web"].map(async |line| {
        let mut running = says_what_it_tries(&format!("{line} --timeout 30s")).await;
        let told = Instant::now();
        running.process.signal(Signal::INT);
        let code = running.process.exit_code(PATIENCE).await;
        eprintln!("measured: {line}: ended {:?} after Ctrl-C", told.elapsed());
        assert!(code <= 1, "{line}: {code}");
        assert_eq!(running.err().matches("still waiting").count(), 1, "{}", running.err());
    }))
    .await;
}

async fn says_what_it_tries(line: &str) -> Running {
    let begun = Instant::now();
    let running = Running::ask("127.0.0.1:1", line);
    eventually("it says what it tries", Duration::from_secs(5), || {
        let said = running.err();
        let tries = said.contains("still waiting") && said.contains("127.0.0.1:1");
        async move { if tries { Ok(()) } else { Err(format!("{line}: {said}")) } }
    })
    .await;
    eprintln!("measured: {line}: said so after {:?}", begun.elapsed());
    running
}

/// The same of those that end by themselves: at their timeout, also where what they ask for may
/// take longer once a node does it.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_tries_says_so_and_ends_at_its_timeout() {
    let dir = tempfile::tempdir().unwrap();
    let backup = format!("cluster backup {}/registry.backup", dir.path().display());
    let lines = [
        "fetch web",
        "services",
        "dependents web",
        "update web a --weight 5",
        "deregister web a",
        "doctor",
        "cluster status --wait",
        "cluster add 4 127.0.0.1:9",
        "cluster remove 3",
        "cluster replace 3 4 127.0.0.1:9",
        "cluster transfer-leader",
        "cluster snapshot",
        &backup,
        "cluster override web a --weight 0",
        "cluster overrides",
        "cluster upgrade status",
    ];
    // A few at a time: each takes a core for a moment.
    for some in lines.chunks(4) {
        join_all(some.iter().map(async |line| {
            let mut running = says_what_it_tries(&format!("{line} --timeout 2s")).await;
            assert_eq!(running.process.exit_code(PATIENCE).await, 3, "{line}: {}", running.err());
            assert!(running.err().contains("next:"), "{line}: {}", running.err());
        }))
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_hear_of_their_mistakes() {
    let cluster = Cluster::start(1).await;
    let nodes = cluster.all();
    let line = "cluster remove 9";
    ask(&nodes, line).await.expect(1).says(&["node 9 is not a member", "cluster status"]);
    let status = ask(&nodes, "cluster status").await.expect(0);
    assert!(status.out.contains("warning: one voter"), "{}", status.out);

    let line = "cluster override nosuch x --status out-of-service --reason typo";
    let warned = ask(&nodes, line).await.expect(0);
    warned.says(&["warning: nosuch/x is not registered", "cluster overrides"]);
    let line = "register web a --endpoint http=http://h:1 --ttl 1h --once";
    let unchecked = ask(&nodes, line).await.expect(0);
    assert!(!unchecked.err.contains("warning"), "{}", unchecked.err);
    let line = "register web b --endpoint http=http://h:1 --check tcp --ttl 1h --once";
    let warned = ask(&nodes, line).await.expect(0);
    warned.says(&["warning: no health check is made", "--health-checks-allow"]);
    let known = ask(&nodes, "cluster override web a --weight 0").await.expect(0);
    assert!(!known.err.contains("warning"), "{}", known.err);

    let line = "cluster backup /nosuch/dir/file";
    ask(&nodes, line).await.expect(1).says(&["/nosuch/dir: there is no such directory"]);
    let line = "fetch web --ca /nosuch.crt";
    ask(&nodes, line).await.expect(2).says(&["/nosuch.crt", "No such file", "--ca"]);

    let line = "cluster override web nobody --clear";
    ask(&nodes, line).await.expect(1).says(&["web/nobody is not overridden", "nothing to clear"]);

    let listed = ask(&nodes, "cluster overrides").await.expect(0).out;
    let rows: Vec<Vec<&str>> =
        listed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[1], ["nosuch", "x", "no", "OUT_OF_SERVICE", "-", "typo"], "{listed}");
    assert_eq!(rows[2], ["web", "a", "yes", "-", "0"], "{listed}");
    let listed = ask(&nodes, "cluster overrides -o json").await.expect(0).json();
    assert_eq!(listed["overrides"][0]["registered"], false);
    assert_eq!(listed["overrides"][1]["override"]["weight"], 0);

    for line in ["update web a", "cluster override web a"] {
        ask(&nodes, line).await.expect(2).says(&["one of --status, --weight"]);
    }

    let health_checks = "allow = [\"127.0.0.0/8\"]".to_owned();
    let probing = Cluster::start_with(1, Settings { health_checks, ..Settings::default() }).await;
    let line = "register web b --endpoint http=http://127.0.0.1:1 --check tcp --ttl 1h --once";
    let checked = ask(&probing.all(), line).await.expect(0);
    assert!(!checked.err.contains("warning"), "{}", checked.err);
    let instances = probing.client().build().unwrap();
    let all = instances.fetch_with(&FetchOptions::new(Selection::service("web"))).await.unwrap();
    assert_eq!(all.services.unwrap()[0].instances.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_say_what_they_count() {
    let health_checks = "allow = [\"127.0.0.0/8\"]".to_owned();
    let cluster = Cluster::start_with(1, Settings { health_checks, ..Settings::default() }).await;
    let nodes = cluster.all();
    for line in [
        "register web up --endpoint http=http://h:1 --ttl 1h --once",
        "register web leaving --endpoint http=http://h:1 --status draining --ttl 1h --once",
        "register web sick --endpoint http=http://127.0.0.1:1 --check tcp,failures=1,every=1s --ttl 1h --once",
    ] {
        ask(&nodes, line).await.expect(0);
    }
    let row = |table: &str| {
        let row: Vec<_> =
            table.lines().nth(1).into_iter().flat_map(str::split_whitespace).collect();
        row.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let services = eventually("the checks of one fail", PATIENCE, async || {
        let services = ask(&nodes, "services").await.expect(0).out;
        if row(&services).get(1).is_some_and(|usable| usable == "1") {
            Ok(services)
        } else {
            Err(services)
        }
    })
    .await;
    assert!(services.starts_with("SERVICE  USABLE  UP  INSTANCES  REVISION\n"), "{services}");
    assert_eq!(row(&services)[..4], ["web", "1", "2", "3"], "{services}");
    let json = ask(&nodes, "services -o json").await.expect(0).json();
    let counts = ["usable", "up", "instances"].map(|count| json["services"][0][count].as_u64());
    assert_eq!(counts, [Some(1), Some(2), Some(3)], "{json}");

    // The state is hashed at some indexes: each hash is of one of them, which stands beside it.
    let client = cluster.client().build().unwrap();
    for number in 0..70 {
        let decision = InstanceOverride { weight: Some(number), ..InstanceOverride::default() };
        client.admin().set_override("web", "up", decision).await.unwrap();
    }
    eventually("the hash stands beside its index", PATIENCE, async || {
        let shown = ask(&nodes, "cluster status").await.expect(0).out;
        let table = shown.split_once("\n\n").unwrap().1;
        let json = ask(&nodes, "cluster status -o json").await.expect(0).json();
        let member = &json["members"][0];
        let (hash, index) = (&member["state_hash"], member["state_hash_index"].as_u64().unwrap());
        let expected = format!("{}@{index}", &hash.as_str().unwrap()[..8]);
        let is_there = table.lines().next().unwrap().ends_with("HASH@INDEX")
            && row(table).last() == Some(&expected);
        if is_there && index > 0 { Ok(()) } else { Err(format!("{table} {expected}")) }
    })
    .await;
}

/// What a caller wrote does not steer the terminals of others.
#[tokio::test(flavor = "multi_thread")]
async fn what_others_wrote_is_shown_without_control_characters() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().build().unwrap();
    let evil = "\u{1b}[2Jgone\u{7f}\u{9b}31m\nrevision 9999";
    let instance = InstanceBuilder::new("web", "a").endpoint("http", "http://h:1");
    let instance = instance.meta("note", evil);
    let handle = client.register(Registration::new(instance)).await.unwrap();
    handle.registered().await.unwrap();
    let decision = InstanceOverride { reason: evil.to_owned(), weight: Some(7), ..<_>::default() };
    client.admin().set_override("web", "a", decision).await.unwrap();
    let check = |line: &str, shown: &str| {
        let steers = shown.chars().find(|c| c.is_control() && *c != '\n');
        assert_eq!(steers, None, "{line}: {shown:?}");
        assert!(!shown.lines().any(|line| line.starts_with("revision 9999")), "{line}: {shown}");
    };
    for line in ["fetch web", "fetch web -o json", "cluster overrides", "cluster overrides -o json"]
    {
        let ran = ask(&cluster.all(), line).await.expect(0);
        check(line, &format!("{}{}", ran.out, ran.err));
    }
    for line in ["watch web", "watch web -o json"] {
        let watching = Running::ask(&cluster.all(), line);
        let shown = eventually("the instance is shown", PATIENCE, || {
            let out = watching.out();
            async move { if out.contains("http://h:1") { Ok(out) } else { Err(out) } }
        });
        check(line, &shown.await);
    }
    let told = ask(&cluster.all(), "fetch web -o json").await.expect(0).json();
    let told = &told["services"][0]["instances"][0];
    assert_eq!(told["metadata"]["note"], evil, "programs read all of it: {told}");
}

/// The most frequent mistake with addresses: the port for the other nodes where that for clients is
/// wanted, and the other way round.
#[tokio::test(flavor = "multi_thread")]
async fn the_wrong_port_of_a_node_is_told_for_what_it_is() {
    let cluster = Cluster::start(1).await;
    let peers = cluster.nodes[0].peer_address();
    for line in ["fetch web", "cluster status"] {
        ask(&peers, line).await.expect(1).says(&["does not know this call", "--peer-listen"]);
    }
    let add = format!("cluster add 9 {}", cluster.nodes[0].clients);
    let refused = ask(&cluster.all(), &add).await.expect(1);
    let refused = refused.says(&["node 9 does not answer at", "--peer-listen"]);
    assert!(!refused.err.contains(": ;"), "{}", refused.err);
}

/// What listens and never answers.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_goes_on_trying_for_its_timeout() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("registry.backup");
    // The harness gives a command 12 s.
    let line = format!("cluster backup {} --timeout 1s", file.display());
    ask(&address, &line).await.expect(3).says(&["within 1s"]);
    assert!(!file.exists());
}

/// Nobody has lost anything yet: there is no quorum to miss, and nothing to recover.
#[tokio::test(flavor = "multi_thread")]
async fn the_status_before_the_founding_says_what_it_waits_for() {
    let mut cluster = Cluster::prepare(3, Settings::default()).await;
    cluster.nodes[0].start();
    let first = cluster.nodes[0].clients.clone();
    // Before, it is about to found the cluster.
    let shown = eventually("it says what it waits for", PATIENCE, async || {
        let ran = ask(&first, "cluster status").await;
        let waits = ran.out.contains("node 1 is in no cluster yet: it waits for");
        if ran.code == 0 && waits { Ok(ran.out) } else { Err(ran.out + &ran.err) }
    })
    .await;
    assert!(shown.contains("nodes 2, 3: start node 2 at "), "{shown}");
    for nonsense in ["voters", "recover", "cluster 0000000000000000", "HASH@INDEX", "no member"] {
        assert!(!shown.contains(nonsense), "{nonsense}: {shown}");
    }
    let found = ask(&first, "doctor").await;
    assert!(found.out.contains("nodes 2, 3: start node 2 at "), "{}", found.out);
    assert!(!found.out.contains("cluster add"), "{}", found.out);
}
