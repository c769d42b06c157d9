//! What `cluster-examples/three-nodes` makes: the settings that compose.yaml and kubernetes.yaml
//! give to their nodes, as real nodes (only the names of the hosts, the ports and the data
//! directories are other ones, because here all run on one machine), and when the script says
//! "ready". What the README does with the script is in `story.rs`.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Instant;

use serde_json::Value;

use crate::kubernetes::{host, mounted_config, pod_settings};
use crate::ports::{Ports, USED};
use crate::process::{PATIENCE, Running};
use crate::story::{copy_three_nodes, quorate};
use crate::yaml::{documents, objects};

/// What stands in a node's environment.
pub(crate) type Settings = BTreeMap<String, String>;

#[test]
fn the_compose_file_makes_a_cluster() {
    let compose = documents("cluster-examples/three-nodes/compose.yaml").remove(0);
    let services = compose["services"].as_object().unwrap();
    let nodes: Vec<Settings> =
        services.values().map(|service| texts(&service["environment"])).collect();
    let host = |id: u64| format!("node-{id}");
    assert!(services.keys().cloned().eq((1..=3).map(host)), "each node is called by its name");
    makes_a_cluster(&nodes, host);
}

#[test]
fn the_kubernetes_manifest_makes_a_cluster() {
    let objects = objects("cluster-examples/three-nodes/kubernetes.yaml");
    let sets = objects.iter().filter(|object| object["kind"] == "StatefulSet");
    makes_a_cluster(&sets.map(pod_settings).collect::<Vec<_>>(), host);
}

fn texts(map: &Value) -> Settings {
    let entries = map.as_object().unwrap().iter();
    entries.map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect()
}

/// The second node is late by a second: the script says "ready" when that one is there too, as its
/// reader expects.
#[test]
fn the_script_is_ready_when_all_nodes_are() {
    let (ports, directory) = (Ports::free(), tempfile::tempdir().unwrap());
    copy_three_nodes(directory.path(), ports);
    let late = directory.path().join("late");
    let binary = env!("CARGO_BIN_EXE_quorate");
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in serve*node-2.toml) sleep 1;; esac\nexec {binary} \"$@\"\n"
    );
    std::fs::write(&late, script).unwrap();
    std::fs::set_permissions(&late, Permissions::from_mode(0o755)).unwrap();

    let mut start = Command::new(directory.path().join("cluster-examples/three-nodes/start.sh"));
    start.current_dir(directory.path()).env("QUORATE", late);
    let mut nodes = Running::start(start, directory.path(), "start.sh");
    nodes.wait_for("ready; try: quorate cluster status");
    let mut status = quorate(ports);
    status.args(["cluster", "status"]);
    let said = Running::start(status, directory.path(), "status").succeed();
    assert!(!said.contains("DOWN") && !said.contains("NO LEADER"), "{said}");
    nodes.signal("TERM");
    nodes.succeed();
}

/// Of the nodes that it has started, none may be taken for another's.
#[test]
fn the_script_is_not_ready_where_others_listen() {
    let (ports, directory) = (Ports::free(), tempfile::tempdir().unwrap());
    copy_three_nodes(directory.path(), ports);
    let taken = std::net::TcpListener::bind(("127.0.0.1", ports.of(7_102))).unwrap();
    let mut start = Command::new(directory.path().join("cluster-examples/three-nodes/start.sh"));
    start.current_dir(directory.path()).env("QUORATE", env!("CARGO_BIN_EXE_quorate"));
    let mut nodes = Running::start(start, directory.path(), "start.sh");
    assert_eq!(nodes.end().code(), Some(1), "{}", nodes.output());
    let told = format!("127.0.0.1:{} is in use: is another cluster running?", ports.of(7_102));
    assert!(nodes.output().contains(&told), "{}", nodes.output());
    assert!(!nodes.output().contains("stopped;"), "nothing was started: {}", nodes.output());
    drop(taken);
}

/// A newcomer may kill one to see what happens.
#[test]
fn the_script_goes_on_when_a_node_is_killed() {
    let (ports, directory) = (Ports::free(), tempfile::tempdir().unwrap());
    copy_three_nodes(directory.path(), ports);
    let mut start = Command::new(directory.path().join("cluster-examples/three-nodes/start.sh"));
    start.current_dir(directory.path()).env("QUORATE", env!("CARGO_BIN_EXE_quorate"));
    let mut nodes = Running::start(start, directory.path(), "start.sh");
    nodes.wait_for("ready; try: quorate cluster status");
    let said = nodes.stdout();
    let line = said.lines().find(|line| line.starts_with("node 2")).expect("it names its nodes");
    let pid = line.split("pid ").nth(1).and_then(|rest| rest.split(' ').next()).expect("a pid");
    let killed = Command::new("sh").args(["-c", &format!("kill -9 {pid}")]).status().unwrap();
    assert!(killed.success(), "{line}");
    nodes.wait_for("node 2 ended, 2 go on");
    let mut status = quorate(ports);
    status.args(["services"]);
    Running::start(status, directory.path(), "services").succeed();
    nodes.signal("TERM");
    nodes.succeed();
}

/// Starts all nodes at once, and looks whether they form one cluster whose members are listed by
/// the names that others use.
fn makes_a_cluster(nodes: &[Settings], host: impl Fn(u64) -> String) {
    let (ports, directory) = (Ports::free(), tempfile::tempdir().unwrap());
    let mut running = Vec::new();
    for (id, settings) in (1..).zip(nodes) {
        assert_eq!(settings["QUORATE_ID"], id.to_string());
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.arg("serve");
        for (name, value) in settings {
            command.env(name, here(value, id, ports, &host));
        }
        command.env("QUORATE_DATA_DIR", directory.path().join(format!("data-{id}")));
        if settings.contains_key("QUORATE_CONFIG") {
            command.env("QUORATE_CONFIG", mounted_config(directory.path()));
        }
        running.push(Running::start(command, directory.path(), &format!("node-{id}")));
    }
    let deadline = Instant::now() + PATIENCE;
    let expected: Vec<_> = (1..=3)
        .map(|id| {
            let [client, peer] = [7_000 + id, 7_100 + id].map(|port| ports.of(port));
            format!("localhost:{client} localhost:{peer} voter, reachable: true")
        })
        .collect();
    loop {
        let mut status = quorate(ports);
        status.args(["cluster", "status", "-o", "json", "--timeout", "20s"]);
        let status = Running::start(status, directory.path(), "status").succeed();
        let status: Value = serde_json::from_str(&status).unwrap();
        let told: Vec<_> = status["members"].as_array().unwrap().iter().map(in_words).collect();
        if told == expected {
            break;
        }
        assert!(Instant::now() < deadline, "the members are {told:?}, not {expected:?}");
    }
    running[2].signal("STOP");
    let mut status = quorate(ports);
    status.args(["cluster", "status", "--wait"]);
    let mut status = Running::start(status, directory.path(), "status-wait");
    assert_eq!(status.end().code(), Some(1), "{}", status.output());
    assert!(status.output().contains("not every member is there"), "{}", status.output());
    running[2].signal("CONT");
    for node in &running {
        node.signal("TERM");
    }
    for node in &mut running {
        node.succeed();
    }
}

fn in_words(status: &Value) -> String {
    let text = |name: &str| status["member"][name].as_str().unwrap();
    let (client, peer, role) = (text("client_address"), text("peer_address"), text("role"));
    format!("{client} {peer} {role}, reachable: {}", status["reachable"])
}

/// A setting of node `id`, for one machine: port 7001 of host N is our 700N, and every host is this
/// one.
pub(crate) fn here(value: &str, id: u64, ports: Ports, host: &impl Fn(u64) -> String) -> String {
    let mut value = value.to_owned();
    for node in 1..=USED {
        for port in [7_001, 7_101] {
            let ours = ports.of(port - 1 + node);
            value = value
                .replace(&format!("{}:{port}", host(node.into())), &format!("localhost:{ours}"));
        }
    }
    for port in [7_001, 7_101, 7_201] {
        let ours = ports.of(port - 1 + u16::try_from(id).unwrap());
        value = value.replace(&format!("0.0.0.0:{port}"), &format!("0.0.0.0:{ours}"));
    }
    value
}
