//! Of Kubernetes, what docs/operations.md needs: StatefulSets of one pod, their claims, and a
//! `kubectl` that hands each call to the test. A pod is a real node on this machine, a claim is a
//! directory. What it does not know, it refuses.

#[path = "rescued_pods.rs"]
mod rescued_pods;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::ports::Ports;
use crate::process::{PATIENCE, Running};
use crate::skipped::skipped;
use crate::three_nodes::{Settings, here};
use crate::yaml::parsed;

pub(super) const NAMESPACE: &str = "space";
/// A call is a folder; it is answered when `code` is there.
const KUBECTL: &str = "#!/bin/sh
call=$(mktemp -d \"$CALLS/XXXXXX\")
case \" $* \" in *' -f - '*) cat > \"$call/stdin\";; esac
printf '%s\\0' \"$@\" > \"$call/args\"
mv \"$call\" \"$call.call\"
until [ -e \"$call.call/code\" ]; do [ -d \"$call.call\" ] || exit 1; sleep 0.02; done
cat \"$call.call/out\"
cat \"$call.call/err\" >&2
exit \"$(cat \"$call.call/code\")\"
";

/// By which others call the node.
pub(crate) fn host(id: u64) -> String {
    format!("quorate-{id}-0.quorate.{NAMESPACE}.svc")
}

/// What Kubernetes gives to the pod of a StatefulSet.
pub(crate) fn pod_settings(set: &Value) -> Settings {
    let template = &set["spec"]["template"];
    let mut settings = Settings::new();
    for variable in template["spec"]["containers"][0]["env"].as_array().unwrap() {
        let field = variable["valueFrom"]["fieldRef"]["fieldPath"].as_str();
        let mut value = match field {
            Some("metadata.name") => format!("{}-0", set["metadata"]["name"].as_str().unwrap()),
            Some("metadata.namespace") => NAMESPACE.to_owned(),
            Some("metadata.labels['quorate-node']") => node_of(set).to_string(),
            Some(other) => panic!("no test knows the field {other}"),
            None => variable["value"].as_str().unwrap().to_owned(),
        };
        for (name, earlier) in &settings {
            value = value.replace(&format!("$({name})"), earlier);
        }
        settings.insert(variable["name"].as_str().unwrap().to_owned(), value);
    }
    settings
}

/// The file that the manifest's ConfigMap is in a pod.
pub(crate) fn mounted_config(directory: &Path) -> PathBuf {
    let path = directory.join("quorate.toml");
    let text = kubernetes_config();
    fs::write(&path, text).unwrap();
    path
}

fn kubernetes_config() -> String {
    let config = crate::deployment::kubernetes("ConfigMap");
    config["data"]["quorate.toml"].as_str().expect("the manifest has one").to_owned()
}

fn node_of(set: &Value) -> u64 {
    set["spec"]["template"]["metadata"]["labels"]["quorate-node"].as_str().unwrap().parse().unwrap()
}

/// What a call says, or why it is refused.
type Answer = Result<String, String>;

pub(super) struct Pods {
    directory: PathBuf,
    ports: Ports,
    sets: BTreeMap<String, Value>,
    /// By the number of the node.
    nodes: BTreeMap<u64, Running>,
    /// Started once they were looked for in vain: a pod takes its time.
    late: BTreeSet<u64>,
    /// Founders of nothing, which may end at any time, and whether the manifest makes such.
    may_end: BTreeSet<u64>,
    has_founders: bool,
    /// Pods whose node has ended. Kubernetes starts it again, ever later: not within a test.
    waiting: BTreeSet<u64>,
    /// Their claims go with their pods.
    ending: BTreeSet<u64>,
    /// Of which image each node is.
    images: BTreeMap<u64, String>,
    refused: usize,
    break_off: Option<&'static str>,
    /// What pods said that did one thing and ended, by their names.
    ended: BTreeMap<String, String>,
}

impl Pods {
    pub(super) fn new(directory: &Path, ports: Ports) -> Self {
        for folder in ["calls", "bin", "claims", "configmaps"] {
            fs::create_dir(directory.join(folder)).unwrap();
        }
        let kubectl = directory.join("bin/kubectl");
        fs::write(&kubectl, KUBECTL).unwrap();
        fs::set_permissions(&kubectl, Permissions::from_mode(0o755)).unwrap();
        Self {
            directory: directory.to_owned(),
            ports,
            sets: BTreeMap::new(),
            nodes: BTreeMap::new(),
            late: BTreeSet::new(),
            may_end: BTreeSet::new(),
            has_founders: false,
            waiting: BTreeSet::new(),
            ending: BTreeSet::new(),
            images: BTreeMap::new(),
            refused: 0,
            break_off: None,
            ended: BTreeMap::new(),
        }
    }

    pub(super) fn sets(&self) -> Vec<&str> {
        self.sets.keys().map(String::as_str).collect()
    }

    pub(super) fn claims(&self) -> Vec<String> {
        let claims = fs::read_dir(self.directory.join("claims")).unwrap();
        let mut names: Vec<_> =
            claims.map(|claim| claim.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// One that is left over.
    pub(super) fn claim(&self, name: &str) {
        fs::create_dir(self.directory.join("claims").join(name)).unwrap();
    }

    /// That of each node that runs, by their numbers.
    pub(super) fn images(&self) -> Vec<&str> {
        self.nodes.keys().map(|id| self.images[id].as_str()).collect()
    }

    /// Its pod takes what has changed when it is deleted, not before.
    pub(super) fn change(&mut self, mut set: Value) {
        assert_eq!(set["spec"]["updateStrategy"], json!({ "type": "OnDelete" }));
        set["metadata"]["namespace"] = NAMESPACE.into();
        let name = set["metadata"]["name"].as_str().unwrap().to_owned();
        assert!(self.sets.insert(name, set).is_some(), "it was there before");
    }

    /// How often a pod was looked for that was not there yet.
    pub(super) fn looked_for_in_vain(&self) -> usize {
        self.refused
    }

    /// The next call of this kind is done, and its caller does not learn it.
    pub(super) fn break_off_after(&mut self, step: &'static str) {
        self.break_off = Some(step);
    }

    /// As the server does: its pod and its claim come with it. The first three are there at once.
    pub(super) fn apply(&mut self, mut set: Value) -> Answer {
        let name = set["metadata"]["name"].as_str().unwrap().to_owned();
        let metadata = set["metadata"].as_object().unwrap();
        if metadata.contains_key("resourceVersion") || metadata.contains_key("uid") {
            return Err(format!("{name}: resourceVersion must not be set on what is created"));
        }
        let (spec, id) = (&set["spec"], node_of(&set));
        assert_eq!(spec["selector"]["matchLabels"], spec["template"]["metadata"]["labels"]);
        assert_eq!((&spec["replicas"], name.as_str()), (&json!(1), &*format!("quorate-{id}")));
        assert!(!self.sets.contains_key(&name), "{name} is there; why again?");
        set["metadata"]["namespace"] = NAMESPACE.into();
        self.sets.insert(name.clone(), set);
        fs::create_dir(self.volume(id)).unwrap();
        match id <= 3 {
            true => self.start(id),
            false => drop(self.late.insert(id)),
        }
        Ok(format!("statefulset.apps/{name} created\n"))
    }

    fn volume(&self, id: u64) -> PathBuf {
        self.directory.join(format!("claims/data-quorate-{id}-0"))
    }

    fn start(&mut self, id: u64) {
        let set = &self.sets[&format!("quorate-{id}")];
        let image = &set["spec"]["template"]["spec"]["containers"][0]["image"];
        self.images.insert(id, image.as_str().unwrap().to_owned());
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.arg("serve");
        for (name, value) in pod_settings(set) {
            command.env(name, here(&value, id, self.ports, &host));
        }
        command.env("QUORATE_DATA_DIR", self.volume(id).join("data"));
        command.env("QUORATE_CONFIG", mounted_config(&self.directory));
        let node = Running::start(command, &self.directory, &format!("node-{id}"));
        self.nodes.insert(id, node);
    }

    /// The machine restarts, and its disk is empty: its node does not take part again.
    pub(super) fn lose_volume(&mut self, id: u64) {
        let mut node = self.nodes.remove(&id).unwrap();
        node.signal("KILL");
        node.end();
        fs::remove_dir_all(self.volume(id).join("data")).unwrap();
        self.start(id);
        let mut again = self.nodes.remove(&id).unwrap();
        assert_eq!(again.end().code(), Some(4), "{}", again.output());
    }

    /// Answers the calls of a script until it ends: whether that was good, and what it said.
    pub(super) fn serve(&mut self, mut script: Command) -> (bool, String) {
        let path = format!("{}/bin:{}", self.directory.display(), std::env::var("PATH").unwrap());
        script.env("PATH", path).env("CALLS", self.directory.join("calls"));
        let mut script = Running::start(script, &self.directory, "script");
        let deadline = Instant::now() + 2 * PATIENCE;
        while script.goes_on() {
            assert!(Instant::now() < deadline, "it does not end: {}", script.output());
            self.look_at_nodes();
            for call in fs::read_dir(self.directory.join("calls")).unwrap() {
                let call = call.unwrap().path();
                let is_new = call.extension().is_some() && !call.join("code").exists();
                if is_new {
                    self.answer(&call);
                }
            }
        }
        (script.end().success(), script.output())
    }

    fn answer(&mut self, call: &Path) {
        let args = fs::read_to_string(call.join("args")).unwrap();
        let args: Vec<_> = args.trim_end_matches('\0').split('\0').collect();
        let stdin = fs::read_to_string(call.join("stdin")).unwrap_or_default();
        let mut answer = self.kubectl(&args, &stdin);
        let said = args.join(" ");
        let is_last = self.break_off.is_some_and(|step| said.starts_with(step));
        let is_step = args[0] != "exec" || said.contains("cluster replace");
        if is_last && is_step && answer.is_ok() {
            self.break_off = None;
            answer = Err("error: the connection was lost\n".to_owned());
        }
        let (out, err, code) = match answer {
            Ok(out) => (out, String::new(), "0"),
            Err(err) => (String::new(), err, "1"),
        };
        fs::write(call.join("out"), out).unwrap();
        fs::write(call.join("err"), err).unwrap();
        fs::write(call.join("code-"), code).unwrap();
        fs::rename(call.join("code-"), call.join("code")).unwrap();
    }

    fn kubectl(&mut self, args: &[&str], stdin: &str) -> Answer {
        match args {
            ["get", "statefulset", name, "--ignore-not-found", "-o", "name"] => {
                Ok(self.sets.get(*name).map_or(String::new(), |_| named("statefulset.apps", name)))
            }
            ["get", "persistentvolumeclaim", name, "--ignore-not-found", "-o", "name"] => {
                let is_there = self.claims().iter().any(|claim| claim == name);
                Ok(if is_there { named("persistentvolumeclaim", name) } else { String::new() })
            }
            ["get", "statefulset", name, "-o", "jsonpath={.metadata.namespace}"] => {
                Ok(self.sets[*name]["metadata"]["namespace"].as_str().unwrap().to_owned())
            }
            ["get", "pods", "-l", "app=quorate", "-o", "name"] => {
                Ok(self.sets.keys().map(|set| named("pod", &format!("{set}-0"))).collect())
            }
            ["get", name, "-o", "json"] => {
                let name = name.strip_prefix("statefulset.apps/").expect("a name as it was told");
                Ok(as_kept(&self.sets[name]).to_string())
            }
            ["patch", "--local", "-f", "-", "-o", "json", "-p", patch] => {
                Ok(patched(stdin, patch, &self.directory).to_string())
            }
            ["apply", "-f", "-"] => match serde_json::from_str(stdin) {
                Ok(set) => self.apply(set),
                Err(_) => self.make_all(parsed(stdin, "what is applied")),
            },
            ["exec", pod, "--", "quorate", args @ ..] => self.exec(pod, args),
            ["delete", "statefulset", name, "--ignore-not-found"] => {
                let Some(set) = self.sets.remove(*name) else { return Ok(String::new()) };
                self.stop(node_of(&set));
                Ok(format!("statefulset.apps {name:?} deleted\n"))
            }
            ["delete", "pod", name] if !self.ended.contains_key(*name) => {
                let id = number(name);
                self.stop(id);
                self.late.insert(id);
                Ok(format!("pod {name:?} deleted\n"))
            }
            ["wait", "--for=condition=Ready", pod, "--timeout=5m"] => self.wait_for(pod),
            ["delete", "persistentvolumeclaim", name, "--ignore-not-found", "--wait=false"] => {
                let _not_there = fs::remove_dir_all(self.directory.join("claims").join(name));
                Ok(String::new())
            }
            _ => self.rescue(args),
        }
    }

    /// In a pod whose node runs.
    fn exec(&mut self, pod: &str, args: &[&str]) -> Answer {
        let id = number(pod);
        if !self.nodes.contains_key(&id) {
            return Err(format!("error: {pod}: container not found (\"quorate\")\n"));
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        let own = format!("127.0.0.1:{}", self.ports.of(7_000 + u16::try_from(id).unwrap()));
        command.args(args.iter().map(|arg| match *arg {
            "127.0.0.1:7001" => own.clone(),
            arg => here(arg, id, self.ports, &host),
        }));
        let mut running = Running::start(command, &self.directory, "exec");
        let is_well = running.end().success();
        let said = running.output();
        if said.contains("; start it first") {
            self.start_late();
        }
        if is_well { Ok(said) } else { Err(said) }
    }

    /// A pod that is ready, as its own probe finds it.
    fn wait_for(&mut self, pod: &str) -> Answer {
        let name = pod.strip_prefix("pod/").expect("it is told as what is waited for");
        if self.late.contains(&number(name)) {
            self.start_late();
            return Err(format!("Error from server (NotFound): pods {name:?} not found\n"));
        }
        assert!(self.nodes.contains_key(&number(name)), "{pod} is waited for, and never comes");
        let set = &self.sets[name.strip_suffix("-0").expect("a pod as it was told")];
        let probe = &set["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]["httpGet"];
        let port = u16::try_from(probe["port"].as_u64().unwrap() - 1 + number(name)).unwrap();
        let address = ("127.0.0.1", self.ports.of(port));
        let path = probe["path"].as_str().unwrap();
        let head = "Host: 10.0.0.1:7201\r\nConnection: close";
        let request = format!("GET {path} HTTP/1.1\r\n{head}\r\n\r\n");
        let deadline = Instant::now() + PATIENCE;
        while !probed(address, &request).is_ok_and(|said| said.starts_with("HTTP/1.1 200 ")) {
            assert!(Instant::now() < deadline, "{pod} does not get ready");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(format!("{pod} condition met\n"))
    }

    fn start_late(&mut self) {
        let late = std::mem::take(&mut self.late);
        self.refused += usize::from(!late.is_empty());
        late.into_iter().for_each(|id| self.start(id));
    }

    fn stop(&mut self, id: u64) {
        if let Some(mut node) = self.nodes.remove(&id) {
            node.signal("TERM");
            let status = node.end();
            let is_well = status.success() || self.may_end.contains(&id);
            assert!(is_well, "node {id}: {status}: {}", node.output());
        }
        self.forget(id);
    }

    /// What its node has logged since it was started last.
    pub(super) fn log(&self, id: u64) -> String {
        self.nodes[&id].output()
    }

    pub(super) fn end(mut self) {
        for node in self.nodes.values() {
            node.signal("TERM");
        }
        for node in self.nodes.values_mut() {
            node.succeed();
        }
    }
}

fn probed(address: (&str, u16), request: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Of which node a pod is.
fn number(pod: &str) -> u64 {
    let name = pod.trim_start_matches("pod/");
    let id = name.strip_prefix("quorate-").and_then(|rest| rest.strip_suffix("-0"));
    id.expect("a pod as it was told").parse().unwrap()
}

fn named(kind: &str, name: &str) -> String {
    format!("{kind}/{name}\n")
}

/// With what the server adds.
fn as_kept(set: &Value) -> Value {
    let mut set = set.clone();
    let added = json!({
        "uid": "8c6f", "resourceVersion": "71", "generation": 1,
        "creationTimestamp": "2026-11-29T12:00:00Z",
        "annotations": { "kubectl.kubernetes.io/last-applied-configuration": "{}" },
    });
    set["metadata"].as_object_mut().unwrap().extend(added.as_object().unwrap().clone());
    set["status"] = json!({ "replicas": 1 });
    set
}

/// As `kubectl patch --local` does it, which is asked, too, where there is one.
fn patched(object: &str, patch: &str, directory: &Path) -> Value {
    let patch_read: Value = serde_json::from_str(patch).unwrap();
    let wanted = merged(serde_json::from_str(object).unwrap(), &patch_read).unwrap();
    let file = directory.join("object.json");
    fs::write(&file, object).unwrap();
    let mut real = Command::new("kubectl");
    real.args(["patch", "--local", "-o", "json", "-p", patch, "-f"]).arg(&file);
    real.env("KUBECONFIG", "/dev/null").stdin(Stdio::null());
    match real.output() {
        Err(error) => skipped("kubectl patch --local", error),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let real: Value = serde_json::from_slice(&output.stdout).expect(&said);
            assert_eq!(real, wanted, "what kubectl makes of it, and this test");
        }
    }
    wanted
}

/// A strategic merge: null takes away; lists have elements with a name, which is their key.
fn merged(base: Value, patch: &Value) -> Option<Value> {
    match (base, patch) {
        (_, Value::Null) => None,
        (Value::Object(mut base), Value::Object(patch)) => {
            for (key, patch) in patch {
                let old = base.remove(key).unwrap_or_else(|| Map::new().into());
                base.extend(merged(old, patch).map(|new| (key.clone(), new)));
            }
            Some(base.into())
        }
        (Value::Array(mut base), Value::Array(patch)) => {
            for patch in patch {
                let at = base.iter().position(|old| old["name"] == patch["name"]);
                match at {
                    Some(at) if patch["$patch"] == "delete" => drop(base.remove(at)),
                    Some(at) => base[at] = merged(base[at].take(), patch)?,
                    None => assert_eq!(patch["$patch"], "delete", "a new element"),
                }
            }
            Some(base.into())
        }
        (_, patch) => Some(patch.clone()),
    }
}
