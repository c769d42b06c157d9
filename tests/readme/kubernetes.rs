//! "In Kubernetes" of docs/operations.md: a node's volume is lost, and the script of
//! `cluster-examples/three-nodes` has a new one take its place, however often it is broken off.
//! What the script calls is a Kubernetes of this test's own, whose pods are real nodes.

#[path = "cluster_of_pods.rs"]
mod cluster_of_pods;

use std::process::Command;

use serde_json::Value;

use crate::operations::{KUBERNETES, commands, says};
use crate::ports::Ports;
use crate::process::Running;
use crate::root;
use crate::story::quorate;
use crate::yaml::objects;
use cluster_of_pods::Pods;

pub(crate) use cluster_of_pods::{host, pod_settings};

const MANIFEST: &str = "cluster-examples/three-nodes/kubernetes.yaml";
const SCRIPT: &str = "cluster-examples/three-nodes/replace-pod.sh";

/// Runs it as the page says, but with these numbers.
fn replace(pods: &mut Pods, old: u64, new: u64) -> (bool, String) {
    let shown = commands(|heading| heading == KUBERNETES);
    assert_eq!(shown.trim(), format!("{SCRIPT} 3 4"));
    let mut script = Command::new(root().join(SCRIPT));
    script.args([old, new].map(|id| id.to_string()));
    pods.serve(script)
}

/// The members, by one of the nodes that stay.
fn members(ports: Ports, pods: &Pods) -> Vec<(u64, String, bool)> {
    let mut status = quorate(ports);
    status.args(["cluster", "status", "-o", "json", "--timeout", "20s"]);
    let status = Running::start(status, pods.directory(), "status").succeed();
    let status: Value = serde_json::from_str(&status).unwrap();
    let told = status["members"].as_array().unwrap().iter().map(|told| {
        let member = &told["member"];
        let (id, role) = (&member["id"], member["role"].as_str().unwrap().to_owned());
        (id.as_u64().unwrap(), role, told["reachable"] == true)
    });
    told.collect()
}

fn voters(ids: [u64; 3]) -> Vec<(u64, String, bool)> {
    ids.map(|id| (id, "voter".to_owned(), true)).to_vec()
}

#[test]
fn a_pod_whose_volume_is_lost_is_replaced_however_often_that_is_broken_off() {
    let (ports, directory) = (Ports::free(), tempfile::tempdir().unwrap());
    let mut pods = Pods::new(directory.path(), ports);
    for set in objects(MANIFEST).into_iter().filter(|object| object["kind"] == "StatefulSet") {
        pods.apply(set).unwrap();
    }
    let mut begin = quorate(ports);
    begin.args(["cluster", "status", "--wait", "--timeout", "60s"]);
    Running::start(begin, directory.path(), "begin").succeed();
    let mut register = quorate(ports);
    register.args(["register", "orders", "orders-1", "--endpoint", "http=http://10.0.0.1:8080"]);
    register.args(["--ttl", "1h", "--once"]);
    Running::start(register, directory.path(), "register").succeed();
    pods.lose_volume(3);

    // Nothing is touched when it is asked for what cannot be.
    let (done, said) = replace(&mut pods, 3, 2);
    assert!(!done && said.contains("node 2 votes already"), "{said}");
    let (done, said) = replace(&mut pods, 3, 3);
    assert!(!done && said.contains("usage: replace-pod.sh OLD NEW"), "{said}");
    pods.claim("data-quorate-5-0");
    let (done, said) = replace(&mut pods, 3, 5);
    assert!(!done && said.contains("a node 5 was here before"), "{said}");
    assert_eq!(pods.sets(), ["quorate-1", "quorate-2", "quorate-3"]);

    let mut all = String::new();
    for step in ["apply", "exec", "delete statefulset", "delete persistentvolumeclaim"] {
        pods.break_off_after(step);
        let (done, said) = replace(&mut pods, 3, 4);
        assert!(!done && said.contains("the connection was lost"), "after {step}: {said}");
        all += &said;
    }
    says(&all, &["1/3 making quorate-4", "waiting until node 4 answers"]);
    assert_eq!(pods.refused_before_it_listened(), 1, "the script tries again");
    for _ in 0..2 {
        let (done, said) = replace(&mut pods, 3, 4);
        assert!(done, "{said}");
        says(&said, &["1/3 quorate-4 is there", "2/3 node 4 takes", "node 4 is in, node 3 is out"]);
        says(&said, &["3/3 deleting quorate-3 and its claim", "done."]);
    }
    assert_eq!(pods.sets(), ["quorate-1", "quorate-2", "quorate-4"]);
    let claims = [1, 2, 4, 5].map(|id| format!("data-quorate-{id}-0"));
    assert_eq!(pods.claims(), claims);
    let mut settled = quorate(ports);
    settled.args(["cluster", "status", "--wait", "--timeout", "60s"]);
    Running::start(settled, directory.path(), "settled").succeed();
    assert_eq!(members(ports, &pods), voters([1, 2, 4]));
    let mut fetch = quorate(ports);
    fetch.args(["fetch", "orders"]);
    let said = Running::start(fetch, directory.path(), "fetch").succeed();
    says(&said, &["orders-1"]);
    pods.end();
}
