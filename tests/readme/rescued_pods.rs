//! Of Kubernetes, what is needed when volumes are lost: sets of no pod, claims that go and come,
//! and pods that do one thing and end.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use super::{Answer, NAMESPACE, Pods, node_of, number};
use crate::process::Running;
use crate::yaml::objects;

impl Pods {
    /// Its machine is gone, and its volume with it.
    pub(crate) fn lose_machine(&mut self, id: u64) {
        let mut node = self.nodes.remove(&id).unwrap();
        node.signal("KILL");
        node.end();
        fs::remove_dir_all(self.volume(id)).unwrap();
    }

    pub(super) fn rescue(&mut self, args: &[&str]) -> Answer {
        match args {
            ["scale", "statefulset", names @ .., "--replicas=0"] => {
                for name in names {
                    let set = self.sets.get_mut(*name).expect("it is there");
                    set["spec"]["replicas"] = 0.into();
                    let id = node_of(set);
                    self.stop(id);
                }
                Ok(names.iter().map(|name| format!("statefulset.apps/{name} scaled\n")).collect())
            }
            ["get", "pod", name] => match self.nodes.contains_key(&number(name)) {
                true => Ok(format!("{name}   1/1   Running\n")),
                false => Err(format!("Error from server (NotFound): pods {name:?} not found\n")),
            },
            ["delete", "persistentvolumeclaim", names @ .., "--ignore-not-found"] => {
                for name in names {
                    assert!(!self.nodes.contains_key(&claimed_by(name)), "{name} is in use");
                    let _not_there = fs::remove_dir_all(self.claim_of(name));
                }
                Ok(String::new())
            }
            ["apply", "-f", path] => {
                let made = objects(path).into_iter().map(|object| self.make(object));
                made.collect::<Result<_, _>>()
            }
            ["create", "configmap", "quorate-backup", "--from-file=registry.backup"] => {
                match self.directory.join("registry.backup").exists() {
                    true => Ok("configmap/quorate-backup created\n".to_owned()),
                    false => Err("error: error reading registry.backup\n".to_owned()),
                }
            }
            ["delete", "configmap", "quorate-backup"] => Ok(String::new()),
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
            _ => panic!("no test knows `kubectl {}`", args.join(" ")),
        }
    }

    fn claim_of(&self, name: &str) -> PathBuf {
        self.directory.join("claims").join(name)
    }

    /// Of the manifests, as their reader has changed them: who has founded the cluster has gone.
    fn make(&mut self, mut object: Value) -> Answer {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        match object["kind"].as_str().unwrap() {
            "PersistentVolumeClaim" => fs::create_dir_all(self.claim_of(&name)).unwrap(),
            "Pod" => {
                let said = self.run_to_its_end(&object)?;
                self.ended.insert(name.clone(), said);
            }
            "StatefulSet" => {
                let env = &mut object["spec"]["template"]["spec"]["containers"][0]["env"];
                let env = env.as_array_mut().unwrap();
                env.retain(|variable| variable["name"] != "QUORATE_BOOTSTRAP");
                object["metadata"]["namespace"] = NAMESPACE.into();
                let id = node_of(&object);
                fs::create_dir_all(self.volume(id)).unwrap();
                self.sets.insert(name.clone(), object);
                self.start(id);
            }
            _ => {}
        }
        Ok(format!("{name} configured\n"))
    }

    /// What is mounted is where this test has it; it may write nowhere else.
    fn run_to_its_end(&self, pod: &Value) -> Answer {
        let container = &pod["spec"]["containers"][0];
        let mut places = Vec::new();
        for mount in container["volumeMounts"].as_array().unwrap() {
            let mut volumes = pod["spec"]["volumes"].as_array().unwrap().iter();
            let volume = volumes.find(|volume| volume["name"] == mount["name"]).unwrap();
            let claimed = volume["persistentVolumeClaim"]["claimName"].as_str();
            let place = match claimed.map(|name| self.claim_of(name)) {
                Some(claim) if !claim.exists() => return Err(format!("no {}", claim.display())),
                Some(claim) => claim,
                None if volume["emptyDir"].is_object() => self.directory.join("empty"),
                None => self.directory.clone(),
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
