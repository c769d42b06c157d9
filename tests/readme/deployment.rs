//! The deployment files against the binary and against each other: flags and variables that exist,
//! times that are long enough, ports that are the same everywhere, defaults that are the defaults.

use std::process::Command;
use std::time::Duration;

use quorate_node::Tunables;
use serde_json::{Value, json};

use crate::built::installed;
use crate::process::Running;
use crate::skipped::skipped;
use crate::yaml::{documents, objects};
use crate::{root, text_of};

const DIRECTORY: &str = "cluster-examples/three-nodes";
/// What Kubernetes is given.
const MANIFESTS: [&str; 5] =
    ["kubernetes.yaml", "backup.yaml", "inspect.yaml", "recover.yaml", "restore.yaml"];

pub(crate) fn file(name: &str) -> String {
    text_of(&format!("{DIRECTORY}/{name}"))
}

/// The first of its kind.
pub(crate) fn kubernetes(kind: &str) -> Value {
    kubernetes_all(kind)
        .into_iter()
        .next()
        .unwrap_or_else(|| panic!("kubernetes.yaml has no {kind}"))
}

pub(crate) fn kubernetes_all(kind: &str) -> Vec<Value> {
    let objects = objects(&format!("{DIRECTORY}/kubernetes.yaml"));
    objects.into_iter().filter(|object| object["kind"] == kind).collect()
}

/// What the pods of all nodes have in common.
fn pod_labels(set: &Value) -> Value {
    let mut labels = set["spec"]["template"]["metadata"]["labels"].clone();
    labels.as_object_mut().unwrap().remove("quorate-node").expect("each has a number, too");
    labels
}

fn compose() -> Value {
    documents(&format!("{DIRECTORY}/compose.yaml")).remove(0)
}

pub(crate) fn strings(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

/// Asked for its help after all other flags, the binary refuses flags that it does not know.
pub(crate) fn accepted(args: &[String], source: &str) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command.args(args).arg("--help");
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{source}: quorate {args:?}: {stderr}");
}

#[test]
fn every_command_line_is_one_that_the_binary_accepts() {
    let unit = file("quorate@.service");
    let exec = setting(&unit, "ExecStart").split(' ').skip(1).map(str::to_owned);
    accepted(&exec.collect::<Vec<_>>(), "quorate@.service");

    for (name, node) in compose()["services"].as_object().unwrap() {
        accepted(&strings(&node["command"]), name);
        let check = strings(&node["healthcheck"]["test"]);
        assert_eq!(check[..2], ["CMD", "quorate"], "{name}");
        accepted(&check[2..], name);
    }
    let set = kubernetes("StatefulSet");
    accepted(&strings(&set["spec"]["template"]["spec"]["containers"][0]["args"]), "kubernetes");
}

/// Each instruction of the image, which `.ci/image` builds: one that is new fails until it is
/// checked, too.
#[test]
fn the_image_is_small_and_runs_as_the_manifests_say() {
    let file = file("Dockerfile");
    let lines = file.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let instructions: Vec<_> = lines.map(|line| line.split_once(' ').unwrap()).collect();
    let last = instructions.iter().rposition(|(name, _)| *name == "FROM").unwrap();
    let (built, image) = instructions.split_at(last);
    let wanted = [
        // It has make and a C compiler, and the C library of the image below.
        ("FROM", "rust:1-bookworm AS build"),
        // Read by crates/quorate-cli/build.rs.
        ("ARG", "QUORATE_COMMIT"),
        ("WORKDIR", "/src"),
        ("COPY", ". ."),
    ];
    assert_eq!(built[..wanted.len()], wanted);
    let [("RUN", steps)] = built[wanted.len()..] else { panic!("{built:?}") };
    let steps: Vec<_> = steps.split(" && ").collect();
    let build = "cargo build --profile dist --locked -p quorate-cli";
    assert_eq!(steps, [build, "strip --strip-debug target/dist/quorate", "mkdir /data"]);

    let set = kubernetes("StatefulSet");
    let pod = &set["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let port = |at: usize| &container["ports"][at]["containerPort"];
    let volume = container["volumeMounts"][0]["mountPath"].as_str().unwrap();
    let (user, group) =
        (&pod["securityContext"]["runAsUser"], &pod["securityContext"]["runAsGroup"]);
    let wanted = [
        ("FROM", "gcr.io/distroless/cc-debian12".to_owned()),
        ("COPY", "--from=build /src/target/dist/quorate /usr/local/bin/quorate".to_owned()),
        ("COPY", format!("--from=build --chown={user}:{group} /data {volume}")),
        ("USER", format!("{user}:{group}")),
        ("VOLUME", volume.to_owned()),
        ("EXPOSE", format!("{} {}", port(0), port(1))),
        ("ENTRYPOINT", "[\"quorate\"]".to_owned()),
        ("CMD", "[\"serve\"]".to_owned()),
    ];
    assert_eq!(image, wanted.each_ref().map(|(name, rest)| (*name, rest.as_str())));
    accepted(&["serve".to_owned()], "Dockerfile");
    // No other program is there to be run.
    let lifecycle = container["lifecycle"].to_string();
    assert!(!lifecycle.contains("exec"), "{lifecycle}");
}

/// By the schemas of Kubernetes itself: of the oldest release that the file names, and of a new
/// one.
#[test]
fn the_manifests_fit_the_schemas_of_kubernetes() {
    let home = match installed(".ci/install-kubernetes-validate", &[]) {
        Ok(home) => home,
        Err(reason) => return skipped("the schemas of Kubernetes", reason),
    };
    // Each object by itself: a List has no schema.
    let of = |name: &str| objects(&format!("{DIRECTORY}/{name}"));
    let objects = MANIFESTS.map(of).concat();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("objects.yaml");
    let text: String = objects.iter().map(|object| format!("---\n{object}\n")).collect();
    std::fs::write(&path, text).unwrap();
    for version in ["1.30", "1.37"] {
        let mut command = Command::new("python3");
        command.args(["-m", "kubernetes_validate", "--strict", "-k", version]).arg(&path);
        let output = command.env("PYTHONPATH", &home).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{version}: {said}");
        let passed = said.lines().filter(|line| line.contains(" passed for resource ")).count();
        assert_eq!(passed, objects.len(), "{said}");
    }
    assert!(file("kubernetes.yaml").starts_with("# Three nodes on Kubernetes 1.30 or later."));
}

#[test]
fn every_variable_is_one_that_the_binary_reads() {
    let help = Command::new(env!("CARGO_BIN_EXE_quorate")).args(["serve", "--help"]).output();
    let help = String::from_utf8(help.unwrap().stdout).unwrap();
    for name in ["compose.yaml", "quorate@.service", "Dockerfile"].into_iter().chain(MANIFESTS) {
        let text = file(name);
        let words = text.split(|c: char| !c.is_ascii_uppercase() && c != '_');
        let read = |word: &&str| word.starts_with("QUORATE_") && *word != "QUORATE_COMMIT";
        for variable in words.filter(read) {
            let known = help.split(|c: char| !c.is_ascii_uppercase() && c != '_');
            let known = known.into_iter().any(|word| word == variable);
            assert!(known, "{name}: `quorate serve --help` does not know {variable}");
        }
    }
}

#[test]
fn nobody_is_killed_while_it_stops_in_order() {
    let grace = Duration::from_millis(Tunables::default().shutdown_grace_ms);
    let seconds = |text: &str| Duration::from_secs(text.trim_end_matches('s').parse().unwrap());
    assert!(seconds(setting(&file("quorate@.service"), "TimeoutStopSec")) > grace);
    for node in compose()["services"].as_object().unwrap().values() {
        assert!(seconds(node["stop_grace_period"].as_str().unwrap()) > grace);
    }
    let set = kubernetes("StatefulSet");
    let pod = &set["spec"]["template"]["spec"];
    let whole = |seconds: &Value| Duration::from_secs(seconds.as_u64().unwrap());
    let before = whole(&pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]);
    assert!(whole(&pod["terminationGracePeriodSeconds"]) > before + grace);
}

#[test]
fn kubernetes_objects_fit_together() {
    let (set, service) = (kubernetes("StatefulSet"), kubernetes("Service"));
    let pod = &set["spec"]["template"];
    let container = &pod["spec"]["containers"][0];
    assert_eq!(set["spec"]["serviceName"], service["metadata"]["name"]);
    assert_eq!(service["spec"]["clusterIP"], "None", "the service is headless");
    assert_eq!(service["spec"]["publishNotReadyAddresses"], true);
    let budget = kubernetes("PodDisruptionBudget");
    assert_eq!(budget["spec"]["maxUnavailable"], 1);
    for selected in [&service["spec"]["selector"], &budget["spec"]["selector"]["matchLabels"]] {
        assert_eq!(selected, &pod_labels(&set));
    }
    let variable = |name: &str| {
        let env = container["env"].as_array().unwrap();
        let found = env.iter().find(|variable| variable["name"] == name);
        found.unwrap()["value"].as_str().unwrap().to_owned()
    };
    for (at, name) in [(0, "QUORATE_LISTEN"), (1, "QUORATE_PEER_LISTEN")] {
        let port = &container["ports"][at]["containerPort"];
        assert_eq!(variable(name), format!("0.0.0.0:{port}"));
        assert_eq!(&service["spec"]["ports"][at]["port"], port);
    }
    // The kubelet speaks TLS by HTTP alone: by gRPC, a node with certificates is never ready.
    let probe = &container["readinessProbe"]["httpGet"];
    assert_eq!((&probe["path"], &probe["scheme"]), (&json!("/readyz"), &json!("HTTP")));
    assert_eq!(variable("QUORATE_HTTP_LISTEN"), format!("0.0.0.0:{}", probe["port"]));
    assert_eq!(probe["port"], container["ports"][2]["containerPort"]);
    let volume = container["volumeMounts"][0]["mountPath"].as_str().unwrap();
    assert!(variable("QUORATE_DATA_DIR").starts_with(volume));
    let claim = &set["spec"]["volumeClaimTemplates"][0]["metadata"]["name"];
    assert_eq!(claim, &container["volumeMounts"][0]["name"]);
    assert_eq!(container["image"], compose()["services"]["node-1"]["image"]);
    assert_eq!(container["image"], format!("quorate:{}", env!("CARGO_PKG_VERSION")));
}

/// A StatefulSet for each, which differ by the number alone, and do not all restart at once.
#[test]
fn each_node_can_be_replaced_by_itself() {
    let sets = kubernetes_all("StatefulSet");
    let pod = &sets[0]["spec"]["template"]["spec"];
    for (id, set) in (1..).zip(&sets) {
        let mut wanted = sets[0].clone();
        let number = json!({ "app": "quorate", "quorate-node": format!("{id}") });
        wanted["metadata"]["name"] = format!("quorate-{id}").into();
        wanted["spec"]["selector"]["matchLabels"] = number.clone();
        wanted["spec"]["template"]["metadata"]["labels"] = number;
        assert_eq!(set, &wanted);
    }
    assert_eq!(sets[0]["spec"]["replicas"], 1);
    assert_eq!(sets[0]["spec"]["updateStrategy"]["type"], "OnDelete");
    let mut env = pod["containers"][0]["env"].as_array().unwrap().iter();
    let founders = env.find(|variable| variable["name"] == "QUORATE_BOOTSTRAP").unwrap();
    assert_eq!(founders["value"].as_str().unwrap().split(',').count(), sets.len());
}

/// A machine, and a zone, that fails takes one node with it, where there are enough.
#[test]
fn pods_are_spread_over_machines_and_zones() {
    let set = kubernetes("StatefulSet");
    let spread = set["spec"]["template"]["spec"]["topologySpreadConstraints"].as_array().unwrap();
    let over: Vec<_> = spread.iter().map(|one| one["topologyKey"].as_str().unwrap()).collect();
    assert_eq!(over, ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]);
    for one in spread {
        assert_eq!(one["labelSelector"], json!({ "matchLabels": pod_labels(&set) }));
        assert_eq!(one["maxSkew"], 1);
    }
}

#[test]
fn clients_and_nodes_reach_nodes_and_nobody_else_does() {
    let set = kubernetes("StatefulSet");
    let labels = &pod_labels(&set);
    let service = &kubernetes_all("Service")[1];
    assert_eq!(&service["spec"]["selector"], labels);
    assert!(service["spec"]["clusterIP"].is_null(), "one address for all nodes that are ready");
    let container = &set["spec"]["template"]["spec"]["containers"][0];
    let [clients, peers] = [0, 1].map(|at| &container["ports"][at]["containerPort"]);
    // As a whole: one more selector or port, beside one of these, would let more in.
    let of = |labels: Value| json!([{ "podSelector": { "matchLabels": labels } }]);
    let nodes =
        json!({ "from": of(labels.clone()), "ports": [{ "port": clients }, { "port": peers }] });
    let callers =
        json!({ "from": of(json!({ "quorate-client": "true" })), "ports": [{ "port": clients }] });
    let allowed = json!({
        "podSelector": { "matchLabels": labels },
        "policyTypes": ["Ingress"],
        "ingress": [nodes, callers],
    });
    assert_eq!(kubernetes("NetworkPolicy")["spec"], allowed);
}

/// The Pod Security Standards' restricted profile: each of its controls
/// (kubernetes.io/docs/concepts/security/pod-security-standards).
#[test]
fn pods_pass_the_restricted_profile() {
    passes_the_restricted_profile(&kubernetes("StatefulSet")["spec"]["template"]["spec"]);
}

pub(crate) fn passes_the_restricted_profile(pod: &Value) {
    for shared in ["hostNetwork", "hostPID", "hostIPC"] {
        assert!(pod[shared].is_null(), "{shared}");
    }
    for volume in pod["volumes"].as_array().into_iter().flatten() {
        let kinds: Vec<_> = volume.as_object().unwrap().keys().filter(|it| *it != "name").collect();
        let allowed = ["persistentVolumeClaim", "configMap", "emptyDir"];
        assert!(allowed.iter().any(|kind| kinds == [*kind]), "{kinds:?}");
    }
    let of_pod = &pod["securityContext"];
    assert_eq!(of_pod["runAsNonRoot"], true);
    assert_ne!(of_pod["runAsUser"], 0);
    assert_eq!(of_pod["seccompProfile"]["type"], "RuntimeDefault");
    for denied in ["sysctls", "seLinuxOptions", "appArmorProfile", "windowsOptions"] {
        assert!(of_pod[denied].is_null(), "{denied}");
    }
    let containers = pod["containers"].as_array().unwrap();
    for more in ["initContainers", "ephemeralContainers"] {
        assert!(pod[more].is_null(), "{more} would have to be looked at, too");
    }
    assert!(!containers.is_empty());
    for container in containers {
        let own = &container["securityContext"];
        assert_eq!(own["allowPrivilegeEscalation"], false);
        assert_eq!(strings(&own["capabilities"]["drop"]), ["ALL"]);
        assert!(own["capabilities"]["add"].is_null());
        assert!(own["privileged"].is_null() && own["procMount"].is_null());
        assert!(own["runAsUser"].is_null() && own["seccompProfile"].is_null(), "as the pod's");
        for port in container["ports"].as_array().into_iter().flatten() {
            assert!(port["hostPort"].is_null());
        }
        let (own, lifecycle) = (container, &container["lifecycle"]);
        let asked = ["livenessProbe", "readinessProbe", "startupProbe"].map(|name| &own[name]);
        let hooks = ["postStart", "preStop"].map(|name| &lifecycle[name]);
        for asked in asked.iter().chain(&hooks) {
            for by in ["httpGet", "tcpSocket"] {
                assert!(asked[by]["host"].is_null(), "it would ask another host: {asked}");
            }
        }
    }
    assert_eq!(pod["automountServiceAccountToken"], false);
}

/// What a line `NAME=value` says.
pub(crate) fn setting<'a>(unit: &'a str, name: &str) -> &'a str {
    let value = |line: &'a str| line.strip_prefix(name)?.strip_prefix('=');
    unit.lines().find_map(value).unwrap_or_else(|| panic!("no {name}"))
}

/// What passes by itself ends, too: starts that fail one second after the other are no reason to
/// give up, which systemd does after five, unless it is told so in this section.
#[test]
fn systemd_starts_a_node_for_as_long_as_that_may_help() {
    let unit = file("quorate@.service");
    let of_unit = unit.split("\n[").find_map(|section| section.strip_prefix("Unit]\n"));
    assert_eq!(setting(of_unit.expect("it has that section"), "StartLimitIntervalSec"), "0");
    assert_eq!(setting(&unit, "Restart"), "always");
}

/// The README, the pages, and the files with which nodes are started.
fn operators_texts() -> impl Iterator<Item = String> {
    let of = |folder: &str| {
        let folder = folder.to_owned();
        let listed = std::fs::read_dir(root().join(&folder)).unwrap();
        listed.map(move |entry| format!("{folder}/{}", entry.unwrap().file_name().display()))
    };
    of("docs").chain(of(DIRECTORY)).chain(["README.md".to_owned()])
}

/// A node has started when it has a leader. Who waits for that on one machine does not get to the
/// next, without which there may be none.
#[test]
fn no_text_waits_until_systemd_has_started_a_node() {
    let unit = file("quorate@.service");
    let ends = ["Type", "TimeoutStartSec"].map(|name| setting(&unit, name));
    assert_eq!(ends, ["notify", "infinity"]);
    let mut starts = 0;
    for path in operators_texts() {
        for line in text_of(&path).lines() {
            for command in line.split("systemctl ").skip(1) {
                let words: Vec<_> = command.split(['`', ' ', ';', ')']).collect();
                let begins = match words[0] {
                    "enable" => words.get(1) == Some(&"--now"),
                    verb => verb == "start" || verb.ends_with("restart"),
                };
                starts += usize::from(begins);
                assert!(!begins || words.contains(&"--no-block"), "{path}: {line}");
            }
        }
    }
    assert!(starts >= 7, "they are found: {starts}");
}

/// What systemd hands over is copied once. A copy of what is followed, so that it counts at once,
/// would count after the next restart.
#[test]
fn with_systemd_nodes_follow_their_files_and_write_their_audit_log() {
    let unit = file("quorate@.service");
    let of = |name: &'static str| {
        let lines = unit.lines().map(|line| line.trim_start_matches('#'));
        lines.filter_map(move |line| line.strip_prefix(name)?.strip_prefix('='))
    };
    let copies: Vec<_> = of("LoadCredential").map(|it| it.split_once(':').unwrap()).collect();
    let own = [("node.crt", "/etc/quorate/node-%i.crt"), ("node.key", "/etc/quorate/node-%i.key")];
    assert_eq!(copies, own);
    let set: Vec<_> = of("Environment").flat_map(|line| line.split(' ')).collect();
    assert_eq!(
        set,
        [
            "QUORATE_TLS_CERT=%d/node.crt",
            "QUORATE_TLS_KEY=%d/node.key",
            "QUORATE_TLS_CA=/etc/quorate/ca.crt",
            "QUORATE_TLS_CRL=/etc/quorate/ca.crl",
            "QUORATE_ACCESS=/etc/quorate/access.toml",
        ]
    );

    // Its user is systemd's, for whom nothing is writable that is not named here.
    assert_eq!(setting(&unit, "ProtectSystem"), "strict");
    let logs = format!("/var/log/{}/", setting(&unit, "LogsDirectory"));
    assert_eq!(setting(&unit, "LogsDirectoryMode"), "0700");
    let security = text_of("docs/security.md");
    let words = security.split(['"', ' ', '`', '\n']);
    let audits: Vec<_> =
        words.filter(|word| word.starts_with('/') && word.ends_with(".jsonl")).collect();
    assert!(audits.len() >= 2, "the flag, and the file");
    assert!(audits.iter().all(|path| path.starts_with(&logs)), "{audits:?}");
}

/// node-1.toml shows every tunable with its default.
#[test]
fn the_tunables_shown_are_the_defaults() {
    let text = file("node-1.toml");
    let (_, tunables) = text.split_once("[tunables]\n").unwrap();
    let shown: Vec<_> = tunables.lines().map(|line| line.trim_start_matches("# ")).collect();
    let parsed: Tunables = toml::from_str(&shown.join("\n")).unwrap();
    assert_eq!(parsed, Tunables::default());
    let debug = format!("{:?}", Tunables::default());
    let fields = debug.trim_start_matches("Tunables { ").trim_end_matches(" }").split(", ");
    let all: Vec<_> = fields.map(|field| field.replace(": ", " = ")).collect();
    assert_eq!(shown, all, "every tunable, in the order of config.rs");
}

/// The systemd unit does not restart after exit code 2, so that has to be the one of a bad
/// configuration.
#[test]
fn a_bad_configuration_is_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(setting(&file("quorate@.service"), "RestartPreventExitStatus"), "2 4");
    for (args, named) in [
        ("serve", "--id"),
        (
            "serve --id 1 --data-dir d --listen 0.0.0.0:7001 --peer-listen 127.0.0.1:7101",
            "advertise",
        ),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.args(args.split(' ')).current_dir(directory.path());
        let mut running = Running::start(command, directory.path(), "serve");
        assert_eq!(running.end().code(), Some(2), "{}", running.output());
        assert!(running.output().contains(named), "{}", running.output());
    }
}
