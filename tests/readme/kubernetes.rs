//! "In Kubernetes" of docs/operations.md: a node's volume is lost, and the script of
//! `cluster-examples/three-nodes` has a new one take its place, however often it is broken off; a
//! new image is taken by one pod after the other. What the page's commands call is a Kubernetes of
//! this test's own, whose pods are real nodes.

#[path = "cluster_of_pods.rs"]
mod cluster_of_pods;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::blocks::blocks;
use crate::deployment::{file, strings};
use crate::operations::{ALL_VOLUMES, KUBERNETES, MAJORITY, blocks_of, commands, list_of, says};
use crate::ports::Ports;
use crate::process::Running;
use crate::story::quorate;
use crate::yaml::{objects, parsed};
use crate::{root, text_of};
use cluster_of_pods::{NAMESPACE, Pods};

pub(crate) use cluster_of_pods::{host, mounted_config, pod_settings};

const MANIFEST: &str = "cluster-examples/three-nodes/kubernetes.yaml";
const SCRIPT: &str = "cluster-examples/three-nodes/replace-pod.sh";
const ADD: &str = "cluster-examples/three-nodes/add-pods.sh";
/// In a test's directory: what lets an admin in, and what the nodes know of it.
const TOKEN: &str = "admin.token";
const ACCESS: &str = "access.toml";

fn sets() -> impl Iterator<Item = Value> {
    objects(MANIFEST).into_iter().filter(|object| object["kind"] == "StatefulSet")
}

fn container(set: &mut Value) -> &mut Value {
    &mut set["spec"]["template"]["spec"]["containers"][0]
}

/// What the command says, which is made as the admin.
fn asked(ports: Ports, directory: &Path, line: &str) -> String {
    let mut command = quorate(ports);
    command
        .args(ports.substituted(line).split(' '))
        .env("QUORATE_TOKEN_FILE", directory.join(TOKEN));
    Running::start(command, directory, "asked").succeed()
}

/// A node of the manifest that lets the admin in alone.
fn guarded(mut set: Value, directory: &Path) -> Value {
    let access = json!({ "name": "QUORATE_ACCESS", "value": directory.join(ACCESS) });
    container(&mut set)["env"].as_array_mut().unwrap().push(access);
    set
}

/// The three nodes of the manifest, and one registration. Where they are guarded, they let the
/// admin in alone.
fn begin(ports: Ports, directory: &Path, is_guarded: bool) -> Pods {
    let token = directory.join(TOKEN).display().to_string();
    let mut new = quorate(ports);
    new.args(["token", "new", "--id", "admin", "--role", "admin", "--out", &token]);
    let entry = Running::start(new, directory, "token").succeed();
    std::fs::write(directory.join(ACCESS), entry).unwrap();

    let mut pods = Pods::new(directory, ports);
    for set in sets() {
        pods.apply(if is_guarded { guarded(set, directory) } else { set }).unwrap();
    }
    asked(ports, directory, "cluster status --wait --timeout 60s");
    let orders = "register orders orders-1 --endpoint http=http://10.0.0.1:8080 --ttl 1h --once";
    asked(ports, directory, orders);
    pods
}

/// Runs it as the page says, but with these numbers.
fn replace(pods: &mut Pods, old: u64, new: u64, flags: &str) -> (bool, String) {
    let shown = commands(|heading| heading == KUBERNETES);
    assert_eq!(shown.trim(), format!("{SCRIPT} 3 4"));
    let mut script = Command::new(root().join(SCRIPT));
    script.args([old, new].map(|id| id.to_string())).env("QUORATE_FLAGS", flags);
    pods.serve(script)
}

/// The members, as node `of` knows them.
fn members(of: u64, ports: Ports, directory: &Path) -> Vec<(u64, String, bool)> {
    let line = format!("cluster status -o json --timeout 20s --nodes 127.0.0.1:700{of}");
    let status = asked(ports, directory, &line);
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
    let directory = directory.path();
    let mut pods = begin(ports, directory, true);
    pods.lose_volume(3);
    let flags = format!("--token-file {}", directory.join(TOKEN).display());

    // Nothing is touched when it is asked for what cannot be.
    let (done, said) = replace(&mut pods, 3, 2, &flags);
    assert!(!done && said.contains("node 2 votes already"), "{said}");
    let (done, said) = replace(&mut pods, 3, 3, &flags);
    assert!(!done && said.contains("usage: replace-pod.sh OLD NEW"), "{said}");
    pods.claim("data-quorate-5-0");
    let (done, said) = replace(&mut pods, 3, 5, &flags);
    assert!(!done && said.contains("a node 5 was here before"), "{said}");
    assert_eq!(pods.sets(), ["quorate-1", "quorate-2", "quorate-3"]);

    let mut all = String::new();
    for step in ["apply", "exec", "delete statefulset", "delete persistentvolumeclaim"] {
        pods.break_off_after(step);
        let (done, said) = replace(&mut pods, 3, 4, &flags);
        assert!(!done && said.contains("the connection was lost"), "after {step}: {said}");
        all += &said;
        if step == "apply" {
            let (done, said) = replace(&mut pods, 3, 4, "");
            assert!(!done, "nobody is let in without the flags: {said}");
            says(&said, &["no other node answers as a member", "no credential came with the call"]);
        }
    }
    says(&all, &["1/3 making quorate-4", "waiting until node 4 answers"]);
    assert_eq!(pods.looked_for_in_vain(), 1, "the script tries again");
    for _ in 0..2 {
        let (done, said) = replace(&mut pods, 3, 4, &flags);
        assert!(done, "{said}");
        says(&said, &["1/3 quorate-4 is there", "2/3 node 4 takes", "node 4 is in, node 3 is out"]);
        says(&said, &["3/3 deleting quorate-3 and its claim", "done."]);
    }
    assert_eq!(pods.sets(), ["quorate-1", "quorate-2", "quorate-4"]);
    let claims = [1, 2, 4, 5].map(|id| format!("data-quorate-{id}-0"));
    assert_eq!(pods.claims(), claims);
    asked(ports, directory, "cluster status --wait --timeout 60s");
    assert_eq!(members(4, ports, directory), voters([1, 2, 4]));
    says(&asked(ports, directory, "fetch orders"), &["orders-1"]);

    // Its pod is still there when the next one is replaced: it is not the one to ask.
    pods.break_off_after("exec");
    let (done, said) = replace(&mut pods, 1, 6, &flags);
    assert!(!done && said.contains("the connection was lost"), "{said}");
    let (done, said) = replace(&mut pods, 2, 7, &flags);
    assert!(done, "{said}");
    assert_eq!(members(4, ports, directory), voters([4, 6, 7]));
    pods.end();
}

/// One that the manifest does not have, with these founders, or to be taken in.
fn another(id: u64, founders: Option<&str>, directory: &Path) -> Value {
    let mut set = guarded(sets().next().unwrap(), directory);
    let labels = json!({ "app": "quorate", "quorate-node": format!("{id}") });
    set["metadata"]["name"] = format!("quorate-{id}").into();
    set["spec"]["selector"]["matchLabels"] = labels.clone();
    set["spec"]["template"]["metadata"]["labels"] = labels;
    let env = container(&mut set)["env"].as_array_mut().unwrap();
    env.retain(|variable| variable["name"] != "QUORATE_BOOTSTRAP");
    let own = founders.map(|value| json!({ "name": "QUORATE_BOOTSTRAP", "value": value }));
    env.extend(own);
    set
}

/// Who waits for what does not come by itself is told so.
#[test]
fn nodes_are_added_as_soon_as_they_answer_and_a_refusal_that_stays_is_the_end() {
    let (ports, directory) = (Ports::free(), tempfile::tempdir().unwrap());
    let directory = directory.path();
    let mut pods = begin(ports, directory, true);
    let flags = format!("--token-file {}", directory.join(TOKEN).display());
    let add = |pods: &mut Pods, numbers: &[&str], flags: &str| {
        let mut script = Command::new(root().join(ADD));
        script.args(numbers).env("QUORATE_FLAGS", flags);
        pods.serve(script)
    };
    for numbers in [&["1"][..], &["1", "2 3"], &["1", "0"]] {
        let (done, said) = add(&mut pods, numbers, &flags);
        assert!(!done && said.contains("usage: add-pods.sh MEMBER NEW..."), "{said}");
    }

    pods.apply(another(4, None, directory)).unwrap();
    let (done, said) = add(&mut pods, &["1", "4"], "");
    assert!(!done && said.contains("no credential came with the call"), "{said}");
    assert_eq!(pods.looked_for_in_vain(), 0);
    let (done, said) = add(&mut pods, &["1", "4"], &flags);
    assert!(done, "{said}");
    says(&said, &["waiting until node 4 answers", "node 4 is in", "OK: node"]);
    assert_eq!(pods.looked_for_in_vain(), 1, "it tries again");

    // It had founders, and is a cluster of its own. Whoever is in stays in.
    let founders = "5=quorate-5-0.quorate.$(POD_NAMESPACE).svc:7101";
    pods.apply(another(5, Some(founders), directory)).unwrap();
    let (done, said) = add(&mut pods, &["1", "4", "5"], &flags);
    assert!(!done, "{said}");
    says(&said, &["node 4 is in", "belongs to another cluster", "and no QUORATE_BOOTSTRAP"]);
    let ids: Vec<_> = members(1, ports, directory).into_iter().map(|member| member.0).collect();
    assert_eq!(ids, [1, 2, 3, 4]);

    // Where something listens that is not for nodes, as here it is for clients, waiting is no good.
    let mut turned = another(7, None, directory);
    for variable in container(&mut turned)["env"].as_array_mut().unwrap() {
        let name = variable["name"].as_str().unwrap();
        let other = [("QUORATE_LISTEN", "7101"), ("QUORATE_PEER_LISTEN", "7001")];
        if let Some((_, port)) = other.into_iter().find(|(of, _)| *of == name) {
            variable["value"] = format!("0.0.0.0:{port}").into();
        }
    }
    pods.apply(turned).unwrap();
    let (done, said) = add(&mut pods, &["1", "7"], &flags);
    assert!(!done, "{said}");
    says(&said, &["waiting until node 7 answers: ", "; start it first\n"]);
    assert_eq!(said.matches("waiting until node 7 answers").count(), 1, "once: {said}");
    let end = &said[said.rfind("error: ").unwrap()..];
    says(end, &["node 7 does not answer at", "run this again when that is mended"]);
    assert!(!end.contains("start it first") && !end.contains("kubectl delete"), "{said}");
    let (done, said) = replace(&mut pods, 3, 7, &flags);
    assert!(!done, "{said}");
    says(&said, &["node 7 does not answer at", "quorate-3 was left as it is"]);
    assert!(!said.contains("waiting until") && pods.sets().contains(&"quorate-3"), "{said}");
    pods.end();
}

/// What the script says to do about a node that is not taken in: it goes, with all that it has.
fn to_begin_anew(said: &str, id: u64) -> String {
    let lines = said.lines().map(str::trim).filter(|line| line.starts_with("kubectl delete"));
    let lines: Vec<_> = lines.collect();
    let claim = format!("kubectl delete pvc data-quorate-{id}-0 --wait=false");
    assert_eq!(lines, [claim, format!("kubectl delete pod quorate-{id}-0")], "{said}");
    says(said, &["no QUORATE_BOOTSTRAP", "Take it out of the manifest, apply it,"]);
    let page = text_of("docs/operations.md");
    for line in &lines {
        let shown = line.replace(&format!("quorate-{id}"), "quorate-2");
        assert!(page.contains(&format!("`{shown}`")), "{shown}");
    }
    lines.join("\n") + "\n"
}

/// To take the founders out is not enough: the pod stays as it was, and its volume keeps them.
#[test]
fn a_node_that_waits_for_its_founders_is_taken_in_once_its_pod_and_its_claim_are_new() {
    let (ports, directory) = (Ports::free(), tempfile::tempdir().unwrap());
    let directory = directory.path();
    let mut pods = begin(ports, directory, true);
    let flags = format!("--token-file {}", directory.join(TOKEN).display());
    let add = |pods: &mut Pods| {
        let mut script = Command::new(root().join(ADD));
        script.args(["1", "4"]).env("QUORATE_FLAGS", &flags);
        pods.serve(script)
    };
    let founders = "4=quorate-4-0.quorate.$(POD_NAMESPACE).svc:7101,\
                    5=quorate-5-0.quorate.$(POD_NAMESPACE).svc:7101";
    pods.apply(another(4, Some(founders), directory)).unwrap();
    let is_refused = |pods: &mut Pods| {
        let (done, said) = add(pods);
        assert!(!done, "{said}");
        says(&said, &["node 4 at ", "waits to found a cluster of its own"]);
        to_begin_anew(&said, 4)
    };
    is_refused(&mut pods);
    pods.change(another(4, None, directory));
    let next = is_refused(&mut pods);
    // Nor is a new pod, and its node does not say that it is to be taken in.
    walk(&mut pods, next.lines().last().unwrap());
    let next = is_refused(&mut pods);
    assert!(!pods.log(4).contains("cluster add"), "{}", pods.log(4));
    walk(&mut pods, &next);
    let (done, said) = add(&mut pods);
    assert!(done, "{said}");
    says(&said, &["node 4 is in"]);
    pods.end();
}

/// The runbook is followed but for QUORATE_BOOTSTRAP: nodes 2 and 3 end, again and again.
#[test]
fn who_leaves_the_founders_in_the_manifest_is_told_the_way_out() {
    let (ports, directory) = (Ports::free(), tempfile::tempdir().unwrap());
    let directory = directory.path();
    let mut pods = begin(ports, directory, false);
    [2, 3].into_iter().for_each(|id| pods.lose_machine(id));
    let (_, rest) = looked(&mut pods, MAJORITY);
    let (steps, adding) = rest.split_at(rest.find(&format!("$ {ADD}")).expect("the last step"));
    pods.leave_founders(true);
    walk(&mut pods, steps);

    let impatient = file("add-pods.sh").replace("patience_s=300", "patience_s=1");
    assert_ne!(impatient, file("add-pods.sh"));
    let hasty = directory.join("hasty.sh");
    std::fs::write(&hasty, impatient).unwrap();
    let is_refused = |pods: &mut Pods, id: u64| {
        let mut script = Command::new("bash");
        script.arg(&hasty).args(["1", &id.to_string()]);
        let (done, said) = pods.serve(script);
        assert!(!done, "{said}");
        to_begin_anew(&said, id)
    };
    for id in [2, 3] {
        is_refused(&mut pods, id);
    }
    pods.leave_founders(false);
    walk(&mut pods, &format!("kubectl apply -f {MANIFEST}"));
    let next = [2, 3].map(|id| is_refused(&mut pods, id));
    walk(&mut pods, &next.concat());
    says(&walk(&mut pods, adding), &["node 2 is in", "node 3 is in", "OK: node"]);
    assert_eq!(members(1, ports, directory), voters([1, 2, 3]));
    says(&asked(ports, directory, "fetch orders"), &["orders-1"]);
    pods.end();
}

#[test]
fn a_new_image_is_taken_by_one_pod_after_the_other() {
    let (ports, directory) = (Ports::free(), tempfile::tempdir().unwrap());
    let directory = directory.path();
    let mut pods = begin(ports, directory, false);
    let old = pods.images()[0].to_owned();
    for mut set in sets() {
        container(&mut set)["image"] = "quorate:next".into();
        pods.change(set);
    }
    let shown = blocks_of("console", |heading| heading == KUBERNETES);
    for id in 1..=3 {
        let steps = shown.replace("$ ", "").replace("quorate-1-0", &format!("quorate-{id}-0"));
        let mut bash = Command::new("bash");
        bash.args(["-euc", &steps]);
        let (done, said) = pods.serve(bash);
        assert!(done, "{said}");
        says(&said, &["deleted", "(NotFound)", "condition met", "OK: node"]);
        let images = [1, 2, 3].map(|at| if at <= id { "quorate:next" } else { &old });
        assert_eq!(pods.images(), images);
    }
    assert_eq!(pods.looked_for_in_vain(), 3);
    assert_eq!(members(1, ports, directory), voters([1, 2, 3]));
    says(&asked(ports, directory, "fetch orders"), &["orders-1"]);
    pods.end();
}

/// Runs these commands of a section, in the namespace of this test's Kubernetes.
fn walk(pods: &mut Pods, shown: &str) -> String {
    let mut bash = Command::new("bash");
    bash.args(["-euc", &shown.replace("$ ", "").replace("NAMESPACE", NAMESPACE)]);
    bash.current_dir(root());
    let (done, said) = pods.serve(bash);
    assert!(done, "{said}");
    said
}

/// The nodes are stopped, and somebody looks, is called away, and begins again: nothing is changed
/// before the rest, which is handed back with what was seen.
fn looked(pods: &mut Pods, section: &str) -> (String, String) {
    let steps = list_of("console", |heading| heading == section);
    let looks = steps[..2].concat().repeat(2);
    let claims = pods.claims();
    let said = walk(pods, &looks);
    assert_eq!(pods.claims(), claims);
    assert!(!said.contains("is a new cluster"), "{said}");
    (said, steps[2..].concat())
}

/// The page has the numbers of the manifest. Here another node had taken the place of one, so the
/// manifest has its number, and its reader writes that where the page says so.
#[test]
fn the_last_volume_of_three_goes_on_with_two_new_ones() {
    let (ports, directory) = (Ports::free(), tempfile::tempdir().unwrap());
    let directory = directory.path();
    let mut pods = begin(ports, directory, false);
    let (done, said) = replace(&mut pods, 3, 4, "");
    assert!(done, "{said}");
    let (of_three, of_four) = ("quorate-node: \"3\"", "quorate-node: \"4\"");
    let manifest = file("kubernetes.yaml").replace("quorate-3", "quorate-4");
    std::fs::write(directory.join("own.yaml"), manifest.replace(of_three, of_four)).unwrap();

    [2, 4].into_iter().for_each(|id| pods.lose_machine(id));
    let (said, rest) = looked(&mut pods, MAJORITY);
    let loss = "may be lost: what was acknowledged by nodes 2, 4";
    says(&said, &[loss, "nothing was changed"]);
    let rest = rest
        .replace("data-quorate-3-0", "data-quorate-4-0")
        .replace("add-pods.sh 1 2 3", "add-pods.sh 1 2 4")
        .replace(MANIFEST, &directory.join("own.yaml").display().to_string());
    let said = walk(&mut pods, &rest);
    says(&said, &[loss, "is a new cluster", "OK: node"]);
    let [made, deleted] = ["is a new cluster", "persistentvolumeclaim"].map(|it| said.find(it));
    assert!(made < deleted, "no claim goes before that: {said}");
    assert_eq!(members(1, ports, directory), voters([1, 2, 4]));
    says(&asked(ports, directory, "fetch orders"), &["orders-1"]);
    pods.end();
}

#[test]
fn a_backup_brings_back_what_all_volumes_had() {
    let (ports, directory) = (Ports::free(), tempfile::tempdir().unwrap());
    let directory = directory.path();
    let mut pods = begin(ports, directory, false);
    let backup = directory.join("registry.backup").display().to_string();
    asked(ports, directory, &format!("cluster backup {backup}"));
    [1, 2, 3].into_iter().for_each(|id| pods.lose_machine(id));
    let (said, rest) = looked(&mut pods, ALL_VOLUMES);
    says(&said, &["checksums verified", "1 services, 1 instances"]);
    let said = walk(&mut pods, &rest);
    says(&said, &["is a new cluster", "OK: node"]);
    assert_eq!(members(1, ports, directory), voters([1, 2, 3]));
    says(&asked(ports, directory, "fetch orders"), &["orders-1"]);
    pods.end();
}

/// What stands in a text between two others.
fn between<'a>(text: &'a str, begin: &str, end: &str) -> &'a str {
    let (_, rest) = text.split_once(begin).unwrap_or_else(|| panic!("{begin:?} is not there"));
    rest.split_once(end).unwrap_or_else(|| panic!("no {end:?} follows")).0
}

/// Nodes look at the URI alone: with a name too few, a cluster is well, and has no clients.
#[test]
fn the_certificate_shown_has_all_names_by_which_its_node_is_called() {
    let security = text_of("docs/security.md");
    let shown = blocks(&security).into_iter().find(|block| block.text.contains("cert-manager.io"));
    let certificate = parsed(&shown.expect("it is shown").text, "docs/security.md").remove(0);
    let settings = pod_settings(&sets().next().unwrap());
    let uri = format!("spiffe://{}/node/1", settings["QUORATE_CLUSTER_NAME"]);
    assert_eq!(strings(&certificate["spec"]["uris"]), [uri]);

    let advertised = settings["QUORATE_ADVERTISE"].replace(NAMESPACE, "NAMESPACE");
    let by_scripts = ["replace-pod.sh", "add-pods.sh"].map(|script| {
        let script = file(script);
        let called = between(&script, "quorate \"$@\" --nodes \"", "\"");
        let called = called.replace("${pod#pod/}", "$pod").replace("$pod", "quorate-1-0");
        called.replace("$namespace", "NAMESPACE")
    });
    let backup = objects("cluster-examples/three-nodes/backup.yaml").remove(1);
    let backup = &backup["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0];
    // Of node 1, whose certificate is shown.
    let by_backup = strings(&backup["args"]).remove(4).split(',').next().unwrap().to_owned();
    let by_backup = by_backup.replace("$(POD_NAMESPACE)", "NAMESPACE");
    let manifest = file("kubernetes.yaml");
    let [to_all, probe] =
        [("Programs that take one address use ", ": "), ("quorate, services, --nodes, \"", "\"")]
            .map(|(begin, end)| between(&manifest, begin, end).to_owned());
    let dialled = by_scripts.into_iter().chain([advertised, by_backup, to_all, probe]);
    let hosts = dialled.map(|it| it.strip_suffix(":7001").expect("with its port").to_owned());
    let named = strings(&certificate["spec"]["dnsNames"]);
    assert_eq!(hosts.collect::<BTreeSet<_>>(), BTreeSet::from_iter(named));
}
