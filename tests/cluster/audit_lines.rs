//! What a line of the audit log says: of which nodes, which services, which leases, of requests by
//! HTTP, and of callers that are no nodes of the cluster.

use std::time::Duration;

use quorate_proto::peer::v1::{ReadIndexRequest, StatusRequest as PeerStatusRequest};
use quorate_proto::v1::watch_request::Kind as Ask;
use quorate_proto::v1::{
    AddNodeRequest, DeregisterRequest, RemoveNodeRequest, ReplaceNodeRequest, StatusRequest,
    TransferLeaderRequest, UpgradeAction, UpgradeRequest, WatchRequest, WatchSubscribe,
};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::calls::{assert_refused, registration, renewal, spec};
use super::founding::{from, peer};
use super::guarded::{Guarded, ROOT, by, entry};
use super::harness::eventually;
use super::metrics::{get, put};
use super::rights::{self, ROWS};
use super::stream::{subscribe_to, subscribe_to_prefix};

const WATCH: &str = "quorate.v1.Registry/Watch";

fn orders(role: &str) -> String {
    format!("role = '{role}'\nnamespace = 'default'\nprefix = 'orders'")
}

/// The only line of a method.
async fn line(guarded: &Guarded, method: &str) -> Value {
    let lines = || async { guarded.audit(1, method).pop() };
    eventually(&format!("{method} has a line"), lines).await
}

/// Methods that change nothing.
const READS: [&str; 8] = [
    "Registry/Fetch",
    "Registry/ListServices",
    "Registry/ListDependents",
    "Registry/Watch",
    "Registry/ListMembers",
    "Admin/Status",
    "Admin/ListOverrides",
    "Admin/InspectService",
];

/// Whatever comes of it. Renewals change nothing that lasts, and come by the thousand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_write_that_is_let_in_has_a_line_and_nothing_else_has() {
    let guarded = Guarded::start_audited(1, "").await;
    let mut silent = Vec::new();
    for (row, ..) in ROWS {
        let name = row.split(' ').next().unwrap();
        let method = format!("quorate.v1.{name}");
        let before = guarded.audit(1, &method).len();
        let _some_ask_for_what_cannot_be = rights::call(&guarded, row, Some(ROOT)).await;
        if READS.contains(&name) || name.starts_with("Registry/Renew") {
            silent.push(method);
            continue;
        }
        let told = || async { guarded.audit(1, &method).into_iter().nth(before) };
        let line = eventually(&format!("{row} has a line"), told).await;
        let seen = [&line["decision"], &line["principal"], &line["from"]];
        let expected = [json!("allowed"), json!("token:root"), json!("127.0.0.1")];
        assert_eq!(seen, expected.each_ref(), "{row}: {line}");
    }
    // Lines stand in the order of their calls: after this one, there is none to come.
    let before = guarded.audit(1, "quorate.v1.Registry/Update").len();
    rights::call(&guarded, "Registry/Update", Some(ROOT)).await.unwrap();
    let told = || async { guarded.audit(1, "quorate.v1.Registry/Update").into_iter().nth(before) };
    eventually("the last line", told).await;
    assert_eq!(silent.len(), 14, "{silent:?}");
    for method in silent {
        assert_eq!(guarded.audit(1, &method), [] as [Value; 0], "{method}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_for_nodes_say_which() {
    let guarded = Guarded::start_audited(1, "").await;
    let admin = || guarded.cluster.admin(1);
    let root = Some(ROOT);
    let (old_id, new_id, peer_address) = (98, 99, "127.0.0.1:9".to_owned());
    let done = [
        admin().add_node(by(root, AddNodeRequest { id: 97, ..<_>::default() })).await.map(drop),
        admin().remove_node(by(root, RemoveNodeRequest { id: 96 })).await.map(drop),
        admin()
            .replace_node(by(root, ReplaceNodeRequest { old_id, new_id, peer_address }))
            .await
            .map(drop),
        admin().transfer_leader(by(root, TransferLeaderRequest { to_id: 95 })).await.map(drop),
    ];
    assert!(done.iter().all(Result::is_err), "there is one node: {done:?}");
    let hold = UpgradeRequest { action: UpgradeAction::Hold.into() };
    admin().upgrade(by(root, hold)).await.unwrap();
    for (method, names) in [
        ("AddNode", json!(["node 97"])),
        ("RemoveNode", json!(["node 96"])),
        ("ReplaceNode", json!(["node 98", "node 99"])),
        ("TransferLeader", json!(["node 95"])),
        ("Upgrade", json!(["hold"])),
    ] {
        let line = line(&guarded, &format!("quorate.v1.Admin/{method}")).await;
        assert_eq!(line["names"], names, "{line}");
        assert_eq!((&line["decision"], &line["namespace"]), (&json!("allowed"), &Value::Null));
    }
}

async fn watch(guarded: &Guarded, token: &str, subscribe: WatchSubscribe) -> Result<(), Status> {
    let ask = WatchRequest { kind: Some(Ask::Subscribe(subscribe)) };
    let asks = tokio_stream::iter([ask]);
    guarded.cluster.registry(1).watch(by(Some(token), asks)).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_watch_says_of_what() {
    let guarded = Guarded::start_audited(1, &entry("qrt_part", &orders("read"))).await;
    let many: Vec<String> = (0..12).map(|at| format!("pay{at:02}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let elsewhere = WatchSubscribe { namespace: "shop".to_owned(), ..subscribe_to(&["orders"]) };
    let long = "x".repeat(1_000);
    for (subscribe, namespace, names, count) in [
        (subscribe_to_prefix("order"), "default", json!(["order*"]), 1),
        (elsewhere, "shop", json!(["orders"]), 1),
        (subscribe_to(&many), "default", json!(many[..10]), 12),
        (subscribe_to(&[&long]), "default", json!([&long[..256]]), 1),
    ] {
        let before = guarded.audit(1, WATCH).len();
        assert_refused(watch(&guarded, "qrt_part", subscribe).await, Code::PermissionDenied, &[]);
        let told = || async { (guarded.audit(1, WATCH).len() > before).then_some(()) };
        eventually("it has a line", told).await;
        let line = guarded.audit(1, WATCH).pop().unwrap();
        assert_eq!(line["principal"], "token:part", "{line}");
        let expected = (&json!(namespace), &names, &json!(count));
        assert_eq!((&line["namespace"], &line["names"], &line["count"]), expected, "{line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewals_of_a_caller_that_is_not_known_any_more_say_which() {
    let guarded = Guarded::start_audited(1, &entry("qrt_gone", &orders("register"))).await;
    let mut registry = guarded.cluster.registry(1);
    let request = by(Some("qrt_gone"), registration(vec![spec("orders", "a")]));
    let lease = registry.register(request).await.unwrap().into_inner().lease_id;
    let (requests, asked) = mpsc::channel(1);
    let stream = registry.renew_stream(by(Some("qrt_gone"), ReceiverStream::new(asked)));
    requests.send(renewal([lease])).await.unwrap();
    let mut answers = stream.await.unwrap().into_inner();
    answers.message().await.unwrap().expect("it is renewed");
    guarded.rewrite("");
    let mut pace = tokio::time::interval(Duration::from_millis(300));
    let refused = loop {
        pace.tick().await;
        requests.send(renewal([lease])).await.unwrap();
        if let Err(refused) = answers.message().await {
            break refused;
        }
    };
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
    let line = line(&guarded, "quorate.v1.Registry/RenewStream").await;
    assert_eq!((&line["leases"], &line["count"]), (&json!([lease]), &json!(1)), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_request_over_http_has_a_line() {
    let guarded = Guarded::start_audited(1, &entry("qrt_part", &orders("read"))).await;
    let http = guarded.cluster.http_address(1);
    for (token, status) in [(Some(ROOT), 200), (Some("qrt_part"), 403), (Some("qrt_wrong"), 401)] {
        assert_eq!(get(http, "/metrics", token).await.unwrap().status, status);
    }
    // Who is somebody may ask who that is.
    for (token, status) in [(Some(ROOT), 200), (Some("qrt_part"), 200), (Some("qrt_wrong"), 401)] {
        assert_eq!(get(http, "/api/v1/me", token).await.unwrap().status, status);
    }
    let refused = line(&guarded, "GET /api/v1/me").await;
    assert_eq!(
        [&refused["code"], &refused["decision"]],
        [&json!("UNAUTHENTICATED"), &json!("denied")]
    );
    assert_eq!(guarded.audit(1, "GET /api/v1/me").len(), 1);
    let both = || async { Some(guarded.audit(1, "GET /metrics")).filter(|all| all.len() > 1) };
    let lines = eventually("both refusals have a line, and no other", both).await;
    assert_eq!(lines.len(), 2, "{lines:?}");
    let unknown = [json!(null), json!("UNAUTHENTICATED")];
    for (line, expected) in
        lines.iter().zip([[json!("token:part"), json!("PERMISSION_DENIED")], unknown])
    {
        assert_eq!([&line["principal"], &line["code"]], expected.each_ref(), "{line}");
        assert_eq!((&line["decision"], &line["from"]), (&json!("denied"), &json!("127.0.0.1")));
        assert!(line["reason"].as_str().is_some_and(|why| !why.is_empty()), "{line}");
    }
}

/// A write by HTTP has the line of the call that it makes, allowed or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_over_http_has_the_line_of_its_call() {
    let guarded = Guarded::start_audited(1, &entry("qrt_part", &orders("register"))).await;
    let http = guarded.cluster.http_address(1);
    for (service, status) in [("orders", 200), ("payments", 403)] {
        let path = format!("/api/v1/namespaces/default/services/{service}/instances/a");
        let body = r#"{"endpoints":{"http":"http://h:1"}}"#;
        assert_eq!(put(http, &path, Some("qrt_part"), body).await.unwrap().status, status);
    }
    let method = "quorate.v1.Registry/Register";
    let both = || async { Some(guarded.audit(1, method)).filter(|lines| lines.len() > 1) };
    let lines = eventually("both have a line", both).await;
    assert_eq!(lines.len(), 2, "{lines:?}");
    for (line, [decision, code, name]) in lines
        .iter()
        .zip([["allowed", "OK", "orders/a"], ["denied", "PERMISSION_DENIED", "payments/a"]])
    {
        let seen = [&line["decision"], &line["code"], &line["names"][0], &line["principal"]];
        let expected = [json!(decision), json!(code), json!(name), json!("token:part")];
        assert_eq!(seen, expected.each_ref(), "{line}");
    }
}

/// At the listener for nodes, too: who said to be which node, and why it was none. With TLS, what
/// was proved stands there as well (tests/process/tls_listeners.rs).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_of_no_member_says_of_whom() {
    let guarded = Guarded::start_audited(1, "").await;
    let status = guarded.cluster.admin(1).status(by(Some(ROOT), StatusRequest::default())).await;
    let cluster_id = status.unwrap().into_inner().header.unwrap().cluster_id;
    let mut peer = peer(&guarded.cluster, 1).await;
    for (method, cluster_id, sender, why) in [
        ("Status", cluster_id, 99, "node 99 is refused: it is no member"),
        ("ReadIndex", cluster_id + 1, 1, "this is a node of cluster"),
    ] {
        let refused = match method {
            "Status" => {
                peer.status(from(PeerStatusRequest {}, cluster_id, sender, 1)).await.map(drop)
            }
            _ => {
                let asks = tokio_stream::pending::<ReadIndexRequest>();
                peer.read_index(from(asks, cluster_id, sender, 1)).await.map(drop)
            }
        };
        assert_refused(refused, Code::FailedPrecondition, &[why]);
        let line = line(&guarded, &format!("quorate.peer.v1.Peer/{method}")).await;
        let seen = [&line["decision"], &line["code"], &line["from"], &line["principal"]];
        let expected =
            [json!("denied"), json!("FAILED_PRECONDITION"), json!("127.0.0.1"), json!(null)];
        assert_eq!(seen, expected.each_ref(), "{line}");
        assert!(line["reason"].as_str().is_some_and(|told| told.contains(why)), "{line}");
    }
}

/// Who took a service away by ending its lease, and which lease a registration began.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_has_its_registration_and_what_ended_with_it() {
    let guarded = Guarded::start_audited(1, "").await;
    let mut registry = guarded.cluster.registry(1);
    let both = registration(vec![spec("orders", "a"), spec("payments", "b")]);
    let granted = registry.register(by(Some(ROOT), both)).await.unwrap().into_inner();
    let lease = granted.lease_id;
    let told = line(&guarded, "quorate.v1.Registry/Register").await;
    assert_eq!(told["leases"], json!([lease]), "{told}");
    let end = DeregisterRequest { lease_id: lease, ..DeregisterRequest::default() };
    registry.deregister(by(Some(ROOT), end)).await.unwrap();
    let told = line(&guarded, "quorate.v1.Registry/Deregister").await;
    let seen = [&told["namespace"], &told["names"], &told["count"], &told["leases"]];
    let names = json!(["orders/a", "payments/b"]);
    assert_eq!(seen, [&json!("default"), &names, &json!(2), &json!([lease])], "{told}");
}
