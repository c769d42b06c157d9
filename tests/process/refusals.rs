//! What a node refuses to start with: settings that cannot be, and data directories that are not
//! its own, in use, or of a newer release. Exit code 2 for settings, 4 for what does not pass by
//! itself, 1 for the rest; each message names what is wrong and what to do.

use std::time::Duration;

use quorate_client::Consistency;
use tonic::Code;

use crate::cli::{Ran, ask, quorate};
use crate::cluster::{Cluster, Settings};
use crate::ports::free_port;
use crate::wait::eventually;

const SOON: Duration = Duration::from_secs(30);

/// S2.1
#[tokio::test(flavor = "multi_thread")]
async fn settings_that_cannot_be_are_usage_errors_that_name_them() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let data = dir.path().join("data").display().to_string();
    let rest = format!("--data-dir {data} --listen 127.0.0.1:0 --peer-listen 127.0.0.1:0");
    let tunables = |name: &str, text: &str| {
        format!("serve --id 1 {rest} --config {}", file(name, &format!("[tunables]\n{text}")))
    };
    let typo = file("typo.toml", "idd = 1");
    for (line, says) in [
        ("serve".to_owned(), vec!["id is missing", "--id", "QUORATE_ID"]),
        (format!("serve --id 0 {rest}"), vec!["--id", "a number from 1 on"]),
        (format!("serve --id one {rest}"), vec!["--id", "one"]),
        (format!("serve --id 4 {rest} --bootstrap 1=a:1,2=b:1"), vec!["bootstrap = 1,2", "node 4"]),
        (
            format!("serve --id 1 {rest} --bootstrap 1=a:1,2=a:1"),
            vec!["bootstrap = 2=a:1", "another address than that of node 1"],
        ),
        (format!("serve --id 1 {rest} --bootstrap 1=a"), vec!["--bootstrap", "\"a\"", "host:port"]),
        (
            format!("serve --id 1 {rest} --join a:1 --bootstrap 1=a:1"),
            vec!["--join", "--bootstrap"],
        ),
        (format!("serve --id 1 {rest} --observer"), vec!["observer", "join"]),
        (format!("serve --id 1 {rest} --dns-domain ."), vec!["dns.domain = .", "the root"]),
        (
            "serve --id 1 --listen localhost:7001".to_owned(),
            vec!["--listen", "localhost:7001", "IP:PORT", "--advertise"],
        ),
        ("serve --id one".to_owned(), vec!["--id", "one", "a number from 1 on"]),
        (
            format!("serve --id 4 {rest} --bootstrap 1=a:1,2=a:2,3=a:3"),
            vec!["bootstrap = 1,2,3", "node 4", "that comes later has no bootstrap", "--join"],
        ),
        (format!("serve --id 1 {rest} --config {data}.toml"), vec!["data.toml", "No such file"]),
        (format!("serve --id 1 {rest} --config {typo}"), vec!["typo.toml", "idd"]),
        (tunables("a.toml", "heartbeat_ms = 1"), vec!["heartbeat_ms = 1", "at least 10"]),
        (
            tunables("b.toml", "heartbeat_ms = 200"),
            vec!["election_timeout_min_ms = 240", "heartbeat_ms = 200"],
        ),
        (tunables("c.toml", "renew_window_ms = 301"), vec!["renew_window_ms = 301", "1 to 300"]),
        (tunables("d.toml", "disk_reserve_bytes = 0"), vec!["disk_reserve_bytes = 0", "at least"]),
        ("fetch".to_owned(), vec!["SERVICES"]),
        ("register orders o-1".to_owned(), vec!["--endpoint"]),
        ("register orders o-1 --endpoint here".to_owned(), vec!["--endpoint", "here"]),
        ("fetch orders --nodes nowhere".to_owned(), vec!["--nodes", "nowhere", "host:port"]),
        ("fetch orders --timeout 5".to_owned(), vec!["--timeout", "5"]),
        ("fetch orders --consistency maybe".to_owned(), vec!["--consistency", "maybe"]),
        ("update orders o-1".to_owned(), vec!["--status"]),
        ("cluster remove three".to_owned(), vec!["three"]),
    ] {
        let args: Vec<&str> = line.split_whitespace().collect();
        let ran = quorate(&args).await;
        eprintln!("{line}\n  -> {}: {}", ran.code, ran.err.trim());
        ran.expect(2).says(&says);
    }
    assert!(!dir.path().join("data").exists(), "nothing is made before the settings are checked");
}

/// The arguments of a node with some of them changed.
fn changed(args: &[String], changes: &[(&str, &str)]) -> Vec<String> {
    let mut args = args.to_vec();
    for (flag, value) in changes {
        let at = args.iter().position(|arg| arg == flag).expect("is set");
        args[at + 1] = (*value).to_owned();
    }
    args
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_in_use_or_another_nodes_is_refused() {
    let mut cluster = Cluster::start(1).await;
    let dir = cluster.nodes[0].data_dir.display().to_string();
    let args = cluster.nodes[0].args().to_vec();
    let [clients, peers] = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
    let elsewhere = [("--listen", clients.as_str()), ("--peer-listen", peers.as_str())];

    let twice = quorate(&changed(&args, &elsewhere)).await.expect(1);
    twice.says(&[&dir, "in use by another process", "stop it"]);
    let state = cluster.nodes[0].instances(Consistency::Linearizable).await;
    assert!(state.is_ok(), "the one that runs is not disturbed: {state:?}");
    let taken = changed(&args, &[("--data-dir", &format!("{dir}-2"))]);
    quorate(&taken).await.expect(1).says(&[&cluster.nodes[0].clients, "listen", "in use"]);

    cluster.nodes[0].kill();
    let founders = format!("2={peers}");
    let other = changed(&args, &[("--id", "2"), ("--bootstrap", &founders)]);
    quorate(&other).await.expect(4).says(&[&dir, "belongs to node 1", "not to node 2", "start"]);

    set_format(&cluster, 9);
    let newer: Ran = quorate(&args).await.expect(4);
    newer.says(&[&dir, "format version 9", "reads up to 1", "newer release"]);
}

/// What a snapshot stood for is in no log any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_gone_is_named() {
    let tunables = "snapshot_every = 150\nkeep_entries = 20".to_owned();
    let mut cluster = Cluster::start_with(1, Settings { tunables, ..Settings::default() }).await;
    eventually("a snapshot, and the log behind it purged", 4 * SOON, async || {
        let node = &cluster.nodes[0];
        node.register("kept", "a", Duration::from_secs(600)).await.unwrap();
        let purged = node.its_status().await.purged_index;
        if purged > 0 { Ok(()) } else { Err("not yet") }
    })
    .await;
    cluster.nodes[0].kill();
    let snapshots = cluster.nodes[0].data_dir.join("snapshots");
    std::fs::remove_dir_all(&snapshots).unwrap();
    let refused = quorate(cluster.nodes[0].args()).await.expect(4);
    let file = format!("{}/*.snapshot is missing", snapshots.display());
    refused.says(&[&file, "replace this node", "cluster replace"]);
}

/// The value's first byte is the version of its own encoding; a reader looks at nothing else of a
/// newer one.
fn set_format(cluster: &Cluster, version: u8) {
    let log = cluster.nodes[0].data_dir.join("log");
    let config = sled::Config::new().path(log).segment_size(2 * 1024 * 1024);
    let db = config.open().unwrap();
    db.open_tree("meta").unwrap().insert("format", &[version, 0, 0, 0, 0]).unwrap();
    db.flush().unwrap();
}

/// Founders that find a node of another cluster among them found nothing, and say where it is. A
/// node that comes with the data of another cluster later takes no part, and the status names it.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_another_clusters_data_takes_no_part() {
    let mut other = Cluster::start(3).await;
    other.nodes[2].register("theirs", "t", Duration::from_secs(60)).await.unwrap();
    other.equal_states().await;
    for node in &mut other.nodes {
        node.kill();
    }
    let foreign = other.nodes[2].data_dir.clone();
    let data_dirs = [(3, foreign.clone())].into();
    let settings = Settings { data_dirs, ..Settings::default() };
    let mut mistaken = Cluster::prepare(3, settings).await;
    mistaken.nodes.iter_mut().for_each(|node| node.start());
    for at in [0, 1] {
        assert_eq!(mistaken.nodes[at].exit_code(SOON).await, 4);
        let said = mistaken.nodes[at].log_text();
        assert!(said.contains("is a member of cluster"), "{said}");
    }
    drop(mistaken);

    // No silence ends before 3.5 s: a machine that holds the leader up for less makes no election.
    let tunables = "election_timeout_min_ms = 1500\nelection_timeout_max_ms = 2000".to_owned();
    let mut cluster = Cluster::start_with(3, Settings { tunables, ..Settings::default() }).await;
    cluster.nodes[2].kill();
    let own = &cluster.nodes[2].data_dir;
    std::fs::remove_dir_all(own).unwrap();
    std::fs::rename(&foreign, own).unwrap();
    cluster.nodes[2].start();
    let leader = cluster.leader_among(&[0, 1]).await;
    let term = cluster.nodes[leader].its_status().await.term;
    let ours = cluster.nodes[leader].register("ours", "o", Duration::from_secs(60)).await;
    ours.expect("two of three are a quorum");

    let line = "cluster status -o json";
    let told = eventually("word of the foreign node", SOON, || async {
        let status = ask(&cluster.nodes[leader].clients, line).await.expect(0).json();
        let error = status["members"][2]["error"].as_str().unwrap_or_default().to_owned();
        if error.contains("cluster") { Ok(error) } else { Err(status.to_string()) }
    })
    .await;
    eprintln!("the status says of the foreign node: {told}");
    for at in [0, 1] {
        let state = cluster.nodes[at].instances(Consistency::Linearizable).await.unwrap();
        assert_eq!(state.into_keys().collect::<Vec<_>>(), ["ours/o"]);
    }
    // Half a second before the caller gives up; one that is late with it has another chance.
    eventually("it refuses writes", SOON, async || {
        let within = Duration::from_secs(5);
        match cluster.nodes[2].register_within("ours", "p", within).await.unwrap_err() {
            refused if refused.code() == Code::Unavailable => Ok(()),
            late if late.code() == Code::Cancelled => Err(late),
            other => panic!("{other}"),
        }
    })
    .await;
    assert_eq!(cluster.leader_among(&[0, 1]).await, leader, "the lead was disturbed");
    assert_eq!(cluster.nodes[leader].its_status().await.term, term);
}
