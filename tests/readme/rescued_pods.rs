//! Of Kubernetes, what is needed when volumes are lost: sets of no pod, claims that go and come,
//! and pods that do one thing and end.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::{Answer, NAMESPACE, Pods, node_of, number};
use crate::process::Running;
use crate::yaml::objects;

/// In a claim whose volume is lost.
const LOST: &str = "lost";

impl Pods {
    /// Its machine is gone, and its volume with it. The claim stays, and is of no use to anybody.
    pub(crate) fn lose_machine(&mut self, id: u64) {
        let mut node = self.nodes.remove(&id).unwrap();
        node.signal("KILL");
        node.end();
        fs::remove_dir_all(self.volume(id)).unwrap();
        fs::create_dir(self.volume(id)).unwrap();
        fs::write(self.volume(id).join(LOST), "").unwrap();
    }

    fn scale_to_0(&mut self) -> String {
        let mut said = String::new();
        for (name, set) in &mut self.sets {
            if set["metadata"]["labels"]["app"] == "quorate" {
                set["spec"]["replicas"] = 0.into();
                said += &format!("statefulset.apps/{name} scaled\n");
            }
        }
        said
    }

    pub(super) fn rescue(&mut self, args: &[&str]) -> Answer {
        match args {
            ["scale", "statefulset", "-l", "app=quorate", "--replicas=0"] => Ok(self.scale_to_0()),
            // Until then, each takes its time; where its set wants it, it stays.
            ["wait", "--for=delete", "pod", "-l", "app=quorate", "--timeout=5m"] => {
                let sets = self.sets.values();
                let is_ours = |set: &&Value| {
                    set["spec"]["template"]["metadata"]["labels"]["app"] == "quorate"
                };
                let ours: Vec<u64> = sets.filter(is_ours).map(node_of).collect();
                if let Some(id) = ours.iter().find(|id| self.is_wanted(**id)) {
                    return Err(format!("error: timed out waiting for pods/quorate-{id}-0\n"));
                }
                ours.iter().for_each(|id| self.stop(*id));
                Ok(ours.iter().map(|id| format!("pod/quorate-{id}-0 condition met\n")).collect())
            }
            // Where its pod is there, the claim stays until that goes.
            ["delete", "pvc", name, "--wait=false"] => {
                let id = claimed_by(name);
                self.ending.insert(id);
                if !self.has_pod(id) {
                    self.forget(id);
                }
                Ok(format!("persistentvolumeclaim {name:?} deleted\n"))
            }
            ["delete", "persistentvolumeclaim", names @ .., "--ignore-not-found"] => {
                let deleted = names.iter().map(|name| {
                    self.is_free(name);
                    let is_there = fs::remove_dir_all(self.claim_of(name)).is_ok();
                    let said = || format!("persistentvolumeclaim {name:?} deleted\n");
                    is_there.then(said).unwrap_or_default()
                });
                Ok(deleted.collect())
            }
            ["apply", "-f", path] => self.make_all(objects(path)),
            ["create", "configmap", name, file] => {
                let file = file.strip_prefix("--from-file=").expect("a file");
                let content = fs::read(self.directory.join(file));
                let content = content.map_err(|error| format!("error: {file}: {error}\n"))?;
                let made = self.configmap_of(name);
                fs::create_dir(&made).map_err(|error| format!("error: {name:?}: {error}\n"))?;
                fs::write(made.join(file), content).unwrap();
                Ok(format!("configmap/{name} created\n"))
            }
            ["delete", "configmap", name, "--ignore-not-found"] => {
                let _not_there = fs::remove_dir_all(self.configmap_of(name));
                Ok(String::new())
            }
            ["wait", "--for=jsonpath={.status.phase}=Succeeded", pod, "--timeout=5m"] => {
                let name = pod.strip_prefix("pod/").expect("it is told as what is waited for");
                let is_there = self.ended.contains_key(name);
                is_there.then(|| format!("{pod} condition met\n")).ok_or("no such pod\n".to_owned())
            }
            ["logs", name] => Ok(self.ended[*name].clone()),
            ["delete", "pod", name] => {
                self.ended.remove(*name);
                Ok(format!("pod {name:?} deleted\n"))
            }
            ["delete", "pod", name, "--ignore-not-found"] => {
                self.ended.remove(*name);
                Ok(String::new())
            }
            _ => panic!("no test knows `kubectl {}`", args.join(" ")),
        }
    }

    /// They run. Founders of nothing may end until somebody helps them: their pods stay.
    pub(super) fn look_at_nodes(&mut self) {
        let mut ended = Vec::new();
        for (id, node) in &mut self.nodes {
            if !self.may_end.contains(id) {
                node.is_running();
            } else if !node.goes_on() {
                assert_eq!(node.end().code(), Some(4), "{}", node.output());
                ended.push(*id);
            }
        }
        for id in ended {
            self.nodes.remove(&id);
            self.waiting.insert(id);
        }
    }

    /// Who applies the manifest has left QUORATE_BOOTSTRAP in it, or takes it out.
    pub(crate) fn leave_founders(&mut self, are_left: bool) {
        self.has_founders = are_left;
    }

    fn has_pod(&self, id: u64) -> bool {
        self.nodes.contains_key(&id) || self.waiting.contains(&id)
    }

    /// Its pod has gone, and what waited for that is done: the next one finds a new claim.
    pub(super) fn forget(&mut self, id: u64) {
        self.waiting.remove(&id);
        self.may_end.remove(&id);
        if self.ending.remove(&id) {
            fs::remove_dir_all(self.volume(id)).unwrap();
            fs::create_dir(self.volume(id)).unwrap();
        }
    }

    fn claim_of(&self, name: &str) -> PathBuf {
        self.directory.join("claims").join(name)
    }

    fn configmap_of(&self, name: &str) -> PathBuf {
        self.directory.join("configmaps").join(name)
    }

    /// Its set is to have a pod.
    fn is_wanted(&self, id: u64) -> bool {
        self.sets[&format!("quorate-{id}")]["spec"]["replicas"] != 0
    }

    /// No node has the volume, or comes and takes it.
    fn is_free(&self, claim: &str) {
        let id = claimed_by(claim);
        assert!(!self.nodes.contains_key(&id), "{claim} is in use");
        assert!(!self.is_wanted(id), "{claim}: a pod that takes it may come at any time");
    }

    pub(super) fn make_all(&mut self, objects: Vec<Value>) -> Answer {
        objects.into_iter().map(|object| self.make(object)).collect()
    }

    /// Of the manifests, as their reader has changed them: who has founded the cluster has gone,
    /// where it is not left. A pod that is there stays as it is.
    fn make(&mut self, mut object: Value) -> Answer {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        match object["kind"].as_str().unwrap() {
            "PersistentVolumeClaim" => fs::create_dir_all(self.claim_of(&name)).unwrap(),
            "Pod" if self.ended.contains_key(&name) => {
                return Err(format!("{name}: pod updates may not change fields\n"));
            }
            "Pod" => {
                let said = self.run_to_its_end(&object)?;
                self.ended.insert(name.clone(), said);
            }
            "StatefulSet" => {
                let env = &mut object["spec"]["template"]["spec"]["containers"][0]["env"];
                let env = env.as_array_mut().unwrap();
                let is_left =
                    |variable: &Value| self.has_founders || variable["name"] != "QUORATE_BOOTSTRAP";
                env.retain(is_left);
                object["metadata"]["namespace"] = NAMESPACE.into();
                let id = node_of(&object);
                fs::create_dir_all(self.volume(id)).unwrap();
                self.is_usable(&self.volume(id))?;
                // Where the manifest does not say how many, it stays with what was scaled.
                let was = self.sets.get(&name).map(|set| set["spec"]["replicas"].clone());
                if object["spec"]["replicas"].is_null() {
                    object["spec"]["replicas"] = was.unwrap_or(1.into());
                }
                self.sets.insert(name.clone(), object);
                if self.is_wanted(id) && !self.has_pod(id) {
                    if self.has_founders && !self.volume(id).join("data").exists() {
                        self.may_end.insert(id);
                    }
                    self.start(id);
                }
            }
            _ => {}
        }
        Ok(format!("{name} configured\n"))
    }

    /// A volume is there: else no pod that has it ever starts.
    fn is_usable(&self, claim: &Path) -> Result<(), String> {
        let is_there = claim.exists() && !claim.join(LOST).exists();
        is_there.then_some(()).ok_or_else(|| format!("no volume for {}\n", claim.display()))
    }

    /// What is mounted is where this test has it; it may write nowhere else.
    fn run_to_its_end(&self, pod: &Value) -> Answer {
        let container = &pod["spec"]["containers"][0];
        let mut places = Vec::new();
        for mount in container["volumeMounts"].as_array().unwrap() {
            let mut volumes = pod["spec"]["volumes"].as_array().unwrap().iter();
            let volume = volumes.find(|volume| volume["name"] == mount["name"]).unwrap();
            let claimed = volume["persistentVolumeClaim"]["claimName"].as_str();
            let place = match claimed {
                Some(name) => {
                    self.is_free(name);
                    self.is_usable(&self.claim_of(name))?;
                    self.claim_of(name)
                }
                None if volume["emptyDir"].is_object() => self.directory.join("empty"),
                None => {
                    let name = volume["configMap"]["name"].as_str().expect("a known volume");
                    let place = self.configmap_of(name);
                    if !place.exists() {
                        return Err(format!("configmap {name:?} not found\n"));
                    }
                    place
                }
            };
            places.push((mount["mountPath"].as_str().unwrap(), place.display().to_string()));
        }
        fs::create_dir_all(self.directory.join("empty")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        for arg in container["args"].as_array().unwrap() {
            let arg = arg.as_str().unwrap();
            let placed = places.iter().find_map(|(path, place)| {
                arg.strip_prefix(path).map(|rest| format!("{place}{rest}"))
            });
            command.arg(placed.unwrap_or_else(|| arg.to_owned()));
        }
        let temporary = places.iter().find(|(path, _)| *path == "/tmp");
        command.env("TMPDIR", temporary.map_or("/read-only", |(_, place)| place));
        let mut running = Running::start(command, &self.directory, "pod");
        let is_well = running.end().success();
        let said = running.output();
        if is_well { Ok(said) } else { Err(said) }
    }
}

/// The node whose claim it is.
fn claimed_by(claim: &str) -> u64 {
    number(claim.strip_prefix("data-").expect("the claim of a node"))
}
