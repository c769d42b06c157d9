//! What proves who calls is in no log, no error, no audit line and no answer, whatever is done
//! wrong with it; and the audit log says who did what.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use quorate_proto::v1::registry_client::RegistryClient;
use quorate_proto::v1::{DeregisterRequest, FetchRequest, InstanceRef, RegisterRequest};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::ports::free_port;
use crate::raw::registration;
use crate::wait::eventually;

pub(crate) const SOON: Duration = Duration::from_secs(30);

/// Ends with its test.
pub(crate) struct Serving(pub(crate) Child);

impl Drop for Serving {
    fn drop(&mut self) {
        let _gone_already = self.0.kill();
        let _nothing_to_do = self.0.wait();
    }
}

pub(crate) fn entry(id: &str, token: &str, rest: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("[[token]]\nid = '{id}'\ndigest = 'sha256:{hex}'\n{rest}\n")
}

pub(crate) fn serve(dir: &Path, address: &str, peer: &str) -> Serving {
    let log = std::fs::File::create(dir.join("log")).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_quorate"))
        .args(["serve", "--id", "1", "--listen", address, "--peer-listen", peer])
        .args(["--bootstrap", &format!("1={peer}"), "--data-dir"])
        .arg(dir.join("data"))
        .arg("--access")
        .arg(dir.join("access.toml"))
        .arg("--audit")
        .arg(dir.join("audit"))
        .env_clear()
        .env("QUORATE_LOG", "trace,openraft=off")
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    Serving(child)
}

fn by<T>(authorization: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(SOON);
    request.metadata_mut().insert("x-request-id", "request-7".parse().unwrap());
    request.metadata_mut().insert("authorization", authorization.parse().unwrap());
    request
}

async fn fetch(client: &RegistryClient<Channel>, authorization: &str) -> Result<(), Status> {
    let request = FetchRequest { services: vec!["orders".to_owned()], ..<_>::default() };
    client.clone().fetch(by(authorization, request)).await.map(drop)
}

pub(crate) fn text(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned()
}

/// Registers, is refused, and deregisters; the answers to what was refused.
async fn write(client: &mut RegistryClient<Channel>) -> Vec<Status> {
    let own = |service: &str, id: &str| registration(service, id, Duration::from_secs(60), 1);
    client.register(by("Bearer qrt_CANARY-ok", own("orders", "a"))).await.unwrap();
    let many = (0..12).flat_map(|at| own("payments", &format!("p{at}")).instances);
    let many = RegisterRequest { instances: many.collect(), ..own("payments", "p") };
    let foreign = client.register(by("Bearer qrt_CANARY-ok", many)).await.unwrap_err();
    let instances = ["a", "gone"].map(|id| InstanceRef {
        service: "orders".to_owned(),
        id: id.to_owned(),
        ..InstanceRef::default()
    });
    let leave = DeregisterRequest { instances: instances.to_vec(), ..<_>::default() };
    client.deregister(by("Bearer qrt_CANARY-ok", leave)).await.unwrap();
    let lease = DeregisterRequest { lease_id: u64::MAX, ..<_>::default() };
    let unknown = client.deregister(by("Bearer qrt_CANARY-ok", lease)).await.unwrap_err();
    vec![foreign, unknown]
}

fn check_audit(audit: &str) {
    let lines: Vec<serde_json::Value> =
        audit.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |method: &str| {
        let method = format!("quorate.v1.Registry/{method}");
        lines.iter().filter(move |line| line["method"] == *method).collect::<Vec<_>>()
    };
    let [registered, foreign] = of("Register")[..] else { panic!("{audit}") };
    for (name, expected) in [
        ("node", serde_json::json!(1)),
        ("request", "request-7".into()),
        ("principal", "token:orders".into()),
        ("namespace", "default".into()),
        ("names", serde_json::json!(["orders/a"])),
        ("count", 1.into()),
        ("decision", "allowed".into()),
        ("code", "OK".into()),
        ("revision", 1.into()),
        ("from", "127.0.0.1".into()),
    ] {
        assert_eq!(registered[name], expected, "{name}: {registered}");
    }
    assert!(registered["time"].as_str().unwrap().ends_with('Z'));
    assert_eq!(
        (&foreign["decision"], &foreign["code"]),
        (&"denied".into(), &"PERMISSION_DENIED".into())
    );
    assert_eq!((foreign["names"].as_array().unwrap().len(), &foreign["count"]), (10, &12.into()));
    let [left, unknown] = of("Deregister")[..] else { panic!("{audit}") };
    assert_eq!((&left["revision"], &left["decision"]), (&2.into(), &"allowed".into()));
    // It looked like an unknown one to the caller.
    assert_eq!((&unknown["decision"], &unknown["code"]), (&"denied".into(), &"NOT_FOUND".into()));
    let fetches = of("Fetch");
    assert!(fetches.iter().all(|line| line["code"] == "UNAUTHENTICATED"), "reads have no line");
    // What nobody who is known asks for is not even read.
    assert!(fetches.iter().all(|line| line["principal"].is_null() && line["names"].is_null()));
}

/// CVE-2021-28235 (etcd), etcd PR 21993: passwords and tokens in logs.
#[tokio::test]
async fn secrets_are_nowhere_and_deeds_are_in_the_audit_log() {
    let dir = tempfile::tempdir().unwrap();
    let right = "role = 'register'\nnamespace = 'default'\nprefix = 'orders'";
    let expired = format!("{right}\nnot_after = '2020-01-01T00:00:00Z'");
    let access =
        entry("orders", "qrt_CANARY-ok", right) + &entry("old", "qrt_CANARY-expired", &expired);
    std::fs::write(dir.path().join("access.toml"), &access).unwrap();
    let [address, peer] = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
    let mut serving = serve(dir.path(), &address, &peer);
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
    let mut client = RegistryClient::new(channel);
    eventually("the node serves", SOON, async || fetch(&client, "Bearer qrt_CANARY-ok").await)
        .await;

    let mut told = write(&mut client).await;
    for authorization in [
        "Bearer qrt_CANARY-wrong",
        "Bearer qrt_CANARY-expired",
        "Bearer eyJDQU5BUlk.CANARY.CANARY",
        "Basic CANARY",
        "CANARY",
        "Bearer CANARY CANARY",
        "Bearer CANARY\u{1f600}",
    ] {
        let Ok(_) = authorization.parse::<tonic::metadata::MetadataValue<tonic::metadata::Ascii>>()
        else {
            continue;
        };
        let refused = fetch(&client, authorization).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
        told.push(refused);
    }
    // The token itself where its digest should be, and elsewhere.
    let bad = "[[token]]\nid = 'a'\ndigest = 'qrt_CANARY-digest'\nrole = 'admin'\n";
    std::fs::write(dir.path().join("access.toml"), access.clone() + bad).unwrap();
    let log = dir.path().join("log");
    let warned = "the access file cannot be used";
    let count = |words: &str| text(&log).matches(words).count();
    let seen = |times| if count(warned) >= times { Ok(()) } else { Err("no warning") };
    eventually("the bad file is told", SOON, async || seen(1)).await;
    std::fs::write(
        dir.path().join("access.toml"),
        access + &bad.replace("'admin'", "'qrt_CANARY-role'").replace("qrt_CANARY-digest", ""),
    )
    .unwrap();
    eventually("the other bad file is told", SOON, async || seen(2)).await;
    fetch(&client, "Bearer qrt_CANARY-ok").await.expect("the rights are as they were");

    let pid = rustix::process::Pid::from_child(&serving.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let ended = |ended: Option<std::process::ExitStatus>| ended.ok_or("it runs");
    eventually("it ends", SOON, async || ended(serving.0.try_wait().unwrap())).await;
    let audit = text(&dir.path().join("audit"));
    for (what, text) in
        [("log", text(&log)), ("audit", audit.clone()), ("answers", format!("{told:?}"))]
    {
        let line = text.lines().find(|line| line.contains("CANARY"));
        assert_eq!(line, None, "{what}");
    }
    assert!(count("node starts") == 1 && count("TRACE") > 100, "it was logged in full");
    check_audit(&audit);
}
