//! What Kubernetes is given besides the nodes: pods that do one thing and end. What they do is in
//! `rescued_pods.rs`.

use std::process::Command;
use std::time::UNIX_EPOCH;

use serde_json::{Value, json};

use crate::deployment::{
    accepted, file, kubernetes, kubernetes_all, passes_the_restricted_profile, strings,
};
use crate::operations::{BACKUPS, blocks_of};
use crate::yaml::{objects, parsed};

fn of(name: &str) -> Vec<Value> {
    objects(&format!("cluster-examples/three-nodes/{name}"))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// The user and the image of the nodes, whose files it reads or writes; nobody is sent there.
fn is_of_the_cluster(pod: &Value, labels: &Value) {
    let set = kubernetes("StatefulSet");
    let node = &set["spec"]["template"]["spec"];
    assert_eq!(pod["securityContext"], node["securityContext"]);
    assert_eq!(pod["containers"][0]["image"], node["containers"][0]["image"]);
    assert_eq!(pod["containers"].as_array().unwrap().len(), 1);
    assert!(labels["app"].is_null(), "a service would send callers there");
    passes_the_restricted_profile(pod);
}

/// It sees the data of node 1 where that one has it; the arguments that say so.
fn works_on_the_first_node(pod: &Value) -> [String; 2] {
    let set = kubernetes("StatefulSet");
    let of_node = &set["spec"]["template"]["spec"]["containers"][0];
    let (volume, name) = (
        text(&set["spec"]["volumeClaimTemplates"][0]["metadata"]["name"]),
        text(&set["metadata"]["name"]),
    );
    let claimed = &pod["volumes"][0]["persistentVolumeClaim"]["claimName"];
    assert_eq!(claimed, &format!("{volume}-{name}-0"));
    assert_eq!(pod["containers"][0]["volumeMounts"][0], of_node["volumeMounts"][0]);
    let env = of_node["env"].as_array().unwrap();
    let data = env.iter().find(|variable| variable["name"] == "QUORATE_DATA_DIR").unwrap();
    ["--data-dir".to_owned(), text(&data["value"])]
}

/// The pod that restores a backup writes where node 1 will look.
#[test]
fn a_backup_is_restored_onto_the_claim_of_the_first_node() {
    let objects = of("restore.yaml");
    let [claim, restore] = &objects[..] else { panic!("a claim and a pod: {objects:?}") };
    let set = kubernetes("StatefulSet");
    let pod = &restore["spec"];
    let claimed = &pod["volumes"][0]["persistentVolumeClaim"]["claimName"];
    assert_eq!(claimed, &claim["metadata"]["name"]);
    assert_eq!(claim["spec"], set["spec"]["volumeClaimTemplates"][0]["spec"]);
    let args = strings(&pod["containers"][0]["args"]);
    accepted(&args, "restore.yaml");
    let number = text(&set["spec"]["template"]["metadata"]["labels"]["quorate-node"]);
    assert_eq!(args[2..4], works_on_the_first_node(pod));
    assert_eq!(args[4..], ["--id".to_owned(), number]);
    let backup = text(&pod["containers"][0]["volumeMounts"][1]["mountPath"]);
    assert_eq!(args[..2], ["restore".to_owned(), format!("{backup}/registry.backup")]);
    is_of_the_cluster(pod, &restore["metadata"]["labels"]);
}

/// The same file, from the same place, is looked at before it is restored; no node's data are near.
#[test]
fn a_backup_is_looked_at_where_it_is_restored_from() {
    let objects = of("inspect.yaml");
    let [inspect] = &objects[..] else { panic!("a pod alone: {objects:?}") };
    let (pod, restore) = (&inspect["spec"], &of("restore.yaml")[1]["spec"]);
    let (own, other) = (&pod["containers"][0], &restore["containers"][0]);
    let args = strings(&own["args"]);
    accepted(&args, "inspect.yaml");
    let backup = strings(&other["args"]).remove(1);
    assert_eq!(args, ["backup", "inspect", &backup]);
    assert_eq!(own["volumeMounts"], json!([other["volumeMounts"][1]]));
    assert_eq!(pod["volumes"], json!([restore["volumes"][1]]));
    assert_eq!(pod["restartPolicy"], "Never");
    is_of_the_cluster(pod, &inspect["metadata"]["labels"]);
}

/// It makes no claim: what it works on has to be there. As it stands, it only looks.
#[test]
fn what_is_left_of_a_majority_is_recovered_where_it_is() {
    let objects = of("recover.yaml");
    let [recover] = &objects[..] else { panic!("a pod alone: {objects:?}") };
    let pod = &recover["spec"];
    assert_eq!(pod["restartPolicy"], "Never");
    let args = strings(&pod["containers"][0]["args"]);
    accepted(&args, "recover.yaml");
    assert_eq!((args[0].as_str(), args.len()), ("recover", 3));
    assert_eq!(args[1..3], works_on_the_first_node(pod));
    let accepting = file("recover.yaml").replace("# - --accept", "- --accept");
    let accepting = strings(&parsed(&accepting, "")[0]["spec"]["containers"][0]["args"]);
    accepted(&accepting, "recover.yaml");
    assert_eq!(accepting, [&args[..], &["--accept-data-loss".to_owned()]].concat());
    // It copies the log to where temporary files are, and may write nowhere else.
    let mount = &pod["containers"][0]["volumeMounts"][1];
    assert_eq!((&mount["mountPath"], &mount["readOnly"]), (&json!("/tmp"), &Value::Null));
    assert_eq!(pod["volumes"][1], json!({ "name": mount["name"], "emptyDir": {} }));
    is_of_the_cluster(pod, &recover["metadata"]["labels"]);
}

/// Each to a file of its own: `cluster backup` writes over none. Pods go with their machines, and
/// what is called as they are could not be named any more.
#[test]
fn a_backup_is_taken_each_night_onto_a_claim_of_its_own() {
    let objects = of("backup.yaml");
    let [claim, nightly] = &objects[..] else { panic!("a claim and a job: {objects:?}") };
    let job = &nightly["spec"]["jobTemplate"]["spec"];
    let (pod, labels) = (&job["template"]["spec"], &job["template"]["metadata"]["labels"]);
    assert_eq!((&nightly["kind"], &pod["restartPolicy"]), (&json!("CronJob"), &json!("Never")));
    // Minute and hour, each one number; the rest are all.
    let schedule = text(&nightly["spec"]["schedule"]);
    let fields: Vec<_> = schedule.split(' ').collect();
    assert!(fields[..2].iter().all(|field| field.parse::<u8>().is_ok()), "{schedule}");
    assert_eq!(fields[2..], ["*"; 3], "the alert wants one within 26 hours");

    let container = &pod["containers"][0];
    let args = strings(&container["args"]);
    accepted(&args, "backup.yaml");
    let (mount, env) = (&container["volumeMounts"][0], &container["env"][0]);
    let path = text(&mount["mountPath"]);
    assert_eq!(
        args[..3],
        ["cluster", "backup", &format!("{path}/$({}).backup", text(&env["name"]))]
    );
    let of_job = "metadata.labels['batch.kubernetes.io/job-name']";
    assert_eq!(env["valueFrom"]["fieldRef"]["fieldPath"], of_job);
    let claimed = &pod["volumes"][0]["persistentVolumeClaim"]["claimName"];
    assert_eq!((claimed, &pod["volumes"][0]["name"]), (&claim["metadata"]["name"], &mount["name"]));
    assert!(!text(claimed).starts_with("data-"), "it is no node's");

    // It asks the nodes by their own names: with all disks low, none is ready, and a backup works.
    let advertised = kubernetes_all("StatefulSet").into_iter().map(|set| {
        let env =
            set["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap().clone();
        let own = env.into_iter().find(|variable| variable["name"] == "QUORATE_ADVERTISE").unwrap();
        let pod = format!("{}-0", text(&set["metadata"]["name"]));
        text(&own["value"]).replace("$(POD_NAME)", &pod)
    });
    let advertised = advertised.collect::<Vec<_>>().join(",");
    assert_eq!(args[3..5], ["--nodes", &advertised]);
    let namespace = &container["env"][1];
    assert_eq!(namespace["name"], "POD_NAMESPACE");
    assert_eq!(namespace["valueFrom"]["fieldRef"]["fieldPath"], "metadata.namespace");
    let of_pods = &kubernetes_all("Service")[0];
    assert_eq!(of_pods["spec"]["publishNotReadyAddresses"], true);
    let policy = kubernetes("NetworkPolicy");
    let allowed = &policy["spec"]["ingress"][1]["from"][0]["podSelector"]["matchLabels"];
    assert_eq!(labels, allowed);
    is_of_the_cluster(pod, labels);
    // What its file is called is seen by its job, and that there is none, too.
    for kept in ["successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        assert_eq!(nightly["spec"][kept], 30, "{kept}");
    }
}

/// Kubernetes calls a job of each night by the minute for which it was due. Where nothing else is
/// left, that says how the file is called, whatever zone the reader's machine is in.
#[test]
fn the_name_of_a_nights_backup_can_be_worked_out() {
    let nightly = &of("backup.yaml")[1];
    assert_eq!(nightly["spec"]["timeZone"], "Etc/UTC");
    let schedule = text(&nightly["spec"]["schedule"]);
    let at = |field| schedule.split(' ').nth(field).unwrap().parse::<u64>().unwrap();
    let due = at(1) * 60 + at(0);
    let shown = blocks_of("console", |heading| heading == BACKUPS);
    let command = shown.lines().last().unwrap().strip_prefix("$ ").unwrap();
    let mut bash = Command::new("bash");
    let made = bash.args(["-euc", command]).env("TZ", "Asia/Tokyo").output().unwrap();
    let made = String::from_utf8(made.stdout).unwrap();
    let begin = format!("{}-", text(&nightly["metadata"]["name"]));
    let number = made.strip_prefix(&begin).and_then(|rest| rest.strip_suffix(".backup\n"));
    let number: u64 = number.unwrap_or_else(|| panic!("{made}")).parse().unwrap();
    assert_eq!(number % (24 * 60), due, "{made}");
}

/// A job's name is good once. By this one, its file stands where it belongs among those of each
/// night, whose jobs have the minute in theirs.
#[test]
fn a_backup_by_hand_has_a_name_of_its_own() {
    let shown = blocks_of("console", |heading| heading == BACKUPS);
    let command = shown.lines().next().unwrap().strip_prefix("$ ").unwrap();
    assert!(file("backup.yaml").contains(&format!("#   {command}\n")), "{command}");
    let begin = "kubectl create job --from=cronjob/quorate-backup ";
    let name = command.strip_prefix(begin).unwrap_or_else(|| panic!("{command}"));
    let minute = || UNIX_EPOCH.elapsed().unwrap().as_secs() / 60;
    let before = minute();
    let made = Command::new("bash").args(["-euc", &format!("echo {name}")]).output().unwrap();
    let made = String::from_utf8(made.stdout).unwrap();
    let wanted = (before..=minute()).map(|minute| format!("quorate-backup-{minute}\n"));
    assert!(wanted.into_iter().any(|wanted| wanted == made), "{made}");
}

/// `sizing.md`: less than half of the memory that a node has.
#[test]
fn the_registry_has_no_more_than_half_of_the_memory_that_is_requested() {
    let (set, config) = (kubernetes("StatefulSet"), kubernetes("ConfigMap"));
    let pod = &set["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let env = container["env"].as_array().unwrap();
    let file = env.iter().find(|variable| variable["name"] == "QUORATE_CONFIG").unwrap();
    let mount = &container["volumeMounts"][1];
    let (name, path) = ("quorate.toml", text(&mount["mountPath"]));
    assert_eq!(file["value"], format!("{path}/{name}"));
    let volume =
        json!({ "name": mount["name"], "configMap": { "name": config["metadata"]["name"] } });
    assert_eq!(pod["volumes"], json!([volume]));

    let settings: toml::Table = config["data"][name].as_str().unwrap().parse().unwrap();
    let bytes = settings["tunables"]["state_bytes_max"].as_integer().unwrap();
    let requested = text(&container["resources"]["requests"]["memory"]);
    let mebibytes: i64 = requested.strip_suffix("Mi").unwrap().parse().unwrap();
    assert!(bytes < (mebibytes << 20) / 2, "{bytes} of {requested}");
}
