//! Who may call what: every method of the contract, with every kind of credential. A method that
//! has no row here fails.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use prost_types::FileDescriptorSet;
use quorate_proto::v1::watch_request::Kind as Ask;
use quorate_proto::v1::{
    AddNodeRequest, BackupRequest, DeregisterRequest, InspectServiceRequest, InstanceOverride,
    ListDependentsRequest, ListMembersRequest, ListOverridesRequest, ListServicesRequest,
    RemoveNodeRequest, ReplaceNodeRequest, SetOverrideRequest, StatusRequest,
    TransferLeaderRequest, TriggerSnapshotRequest, UpdateRequest, UpgradeRequest, WatchRequest,
};
use tonic::{Code, Status};

use super::calls::{Registry, assert_refused, fetch_of, named, registration, renewal, spec};
use super::guarded::{Guarded, ROOT, by, entry};
use super::harness::eventually;
use super::stream::{subscribe_to, subscribe_to_prefix};

/// Those that prove nothing, by what they say.
pub(crate) const NOBODY: [Option<&str>; 4] =
    [None, Some("qrt_wrong"), Some("qrt_expired"), Some("eyJhbGciOiJub25lIn0.e30.")];

/// Those that prove somebody, in the order of the columns below. All but `elsewhere` are for the
/// namespace "default", all but `other` for the prefix "orders".
pub(crate) const SOMEBODY: [&str; 6] =
    ["qrt_read", "qrt_register", "qrt_elsewhere", "qrt_other", "qrt_operator", ROOT];

/// What a method answers to each of them: `y` what the row says, `d` PERMISSION_DENIED, `u` as for
/// what is not there.
pub(crate) const ROWS: [(&str, &str, Code); 29] = [
    ("Registry/Register", "dyddyy", Code::Ok),
    ("Registry/Register of two, one of them another\'s", "dddddy", Code::Ok),
    ("Registry/Register under a lease", "dyddyy", Code::Ok),
    ("Registry/Renew", "dyuuyy", Code::Ok),
    ("Registry/RenewStream", "dyuuyy", Code::Ok),
    ("Registry/Deregister", "dyddyy", Code::Ok),
    ("Registry/Deregister of a lease", "dyuuyy", Code::Ok),
    ("Registry/Update", "dyddyy", Code::Ok),
    ("Registry/Fetch", "yyddyy", Code::Ok),
    ("Registry/Fetch of two, one of them another\'s", "dddddy", Code::Ok),
    ("Registry/Fetch of all", "dddddy", Code::Ok),
    ("Registry/ListServices", "yyddyy", Code::Ok),
    ("Registry/ListServices of all", "dddddy", Code::Ok),
    ("Registry/ListDependents", "dddddy", Code::Ok),
    ("Registry/Watch", "yyddyy", Code::Ok),
    ("Registry/Watch of more than the prefix", "dddddy", Code::Ok),
    ("Registry/ListMembers", "yyyyyy", Code::Ok),
    ("Admin/Status", "yyyyyy", Code::Ok),
    ("Admin/AddNode", "dddddy", Code::InvalidArgument),
    ("Admin/RemoveNode", "dddddy", Code::NotFound),
    ("Admin/ReplaceNode", "dddddy", Code::NotFound),
    ("Admin/TransferLeader", "dddddy", Code::FailedPrecondition),
    ("Admin/Upgrade", "dddddy", Code::InvalidArgument),
    ("Admin/TriggerSnapshot", "dddddy", Code::Ok),
    ("Admin/Backup", "dddddy", Code::Ok),
    ("Admin/SetOverride", "ddddyy", Code::Ok),
    ("Admin/SetOverride of another namespace", "ddyddy", Code::Ok),
    ("Admin/ListOverrides", "dddddy", Code::Ok),
    ("Admin/InspectService", "ddddyy", Code::Ok),
];

pub(crate) fn access() -> String {
    let of = |role: &str, namespace: &str, prefix: &str| {
        format!("role = '{role}'\nnamespace = '{namespace}'\nprefix = '{prefix}'")
    };
    let expired = of("operator", "*", "") + "\nnot_after = '2020-01-01T00:00:00Z'";
    entry("qrt_read", &of("read", "default", "orders"))
        + &entry("qrt_register", &of("register", "default", "orders"))
        + &entry("qrt_elsewhere", &of("operator", "elsewhere", ""))
        + &entry("qrt_other", &of("operator", "default", "pay"))
        + &entry("qrt_operator", &of("operator", "default", "orders"))
        + &entry("qrt_expired", &expired)
}

/// Calls a method as its row says. What is to be there was made before by somebody who may.
pub(crate) async fn call(guarded: &Guarded, row: &str, token: Option<&str>) -> Result<(), Status> {
    const READS: [&str; 4] = ["Fetch", "List", "Watch", "Renew"];
    match row.split_once('/').unwrap() {
        ("Admin", _) => administer(guarded, row, token).await,
        (_, method) if READS.iter().any(|read| method.starts_with(read)) => {
            read_or_renew(guarded, row, token).await
        }
        _ => write(guarded, row, token).await,
    }
}

async fn write(guarded: &Guarded, row: &str, token: Option<&str>) -> Result<(), Status> {
    let mut registry = guarded.cluster.registry(1);
    match row {
        "Registry/Register" => {
            let request = registration(vec![spec("orders", "a")]);
            registry.register(by(token, request)).await.map(drop)
        }
        "Registry/Register of two, one of them another\'s" => {
            let mut specs: Vec<_> = (0..999).map(|at| spec("orders", &format!("b{at}"))).collect();
            specs.push(spec("payments", "b"));
            registry.register(by(token, registration(specs))).await.map(drop)
        }
        "Registry/Register under a lease" => {
            let lease_id = lease(guarded, "orders", "l").await;
            let mut request = registration(vec![spec("orders", "m")]);
            request.lease_id = lease_id;
            registry.register(by(token, request)).await.map(drop)
        }
        "Registry/Deregister" => {
            lease(guarded, "orders", "d").await;
            let instances = vec![named("orders", "d")];
            let request = DeregisterRequest { instances, ..DeregisterRequest::default() };
            registry.deregister(by(token, request)).await.map(drop)
        }
        "Registry/Deregister of a lease" => {
            let lease_id = lease(guarded, "orders", "e").await;
            let request = DeregisterRequest { lease_id, ..DeregisterRequest::default() };
            registry.deregister(by(token, request)).await.map(drop)
        }
        "Registry/Update" => {
            lease(guarded, "orders", "u").await;
            let instance = Some(named("orders", "u"));
            let request = UpdateRequest { instance, weight: Some(7), ..UpdateRequest::default() };
            registry.update(by(token, request)).await.map(drop)
        }
        _ => panic!("{row} is not called"),
    }
}

async fn read_or_renew(guarded: &Guarded, row: &str, token: Option<&str>) -> Result<(), Status> {
    let mut registry = guarded.cluster.registry(1);
    match row {
        "Registry/Renew" => {
            let request = renewal([lease(guarded, "orders", "r").await]);
            registry.renew(by(token, request)).await.map(drop)
        }
        "Registry/RenewStream" => {
            let request = renewal([lease(guarded, "orders", "r").await]);
            let requests = tokio_stream::iter([request]);
            let mut answers = registry.renew_stream(by(token, requests)).await?.into_inner();
            let answer = answers.message().await?.expect("an answer");
            match answer.unknown_lease_ids.is_empty() {
                true => Ok(()),
                false => Err(Status::not_found("unknown")),
            }
        }
        "Registry/Fetch" => registry.fetch(by(token, fetch_of(&["orders"]))).await.map(drop),
        "Registry/Fetch of two, one of them another\'s" => {
            registry.fetch(by(token, fetch_of(&["orders", "payments"]))).await.map(drop)
        }
        "Registry/Fetch of all" => registry.fetch(by(token, fetch_of(&[]))).await.map(drop),
        "Registry/ListServices" | "Registry/ListServices of all" => {
            let prefix = if row.ends_with("all") { "" } else { "orders" }.to_owned();
            let request = ListServicesRequest { prefix, ..ListServicesRequest::default() };
            registry.list_services(by(token, request)).await.map(drop)
        }
        "Registry/ListDependents" => {
            let service = "orders".to_owned();
            let request = ListDependentsRequest { service, ..ListDependentsRequest::default() };
            registry.list_dependents(by(token, request)).await.map(drop)
        }
        "Registry/Watch" | "Registry/Watch of more than the prefix" => {
            let subscribe = match row {
                "Registry/Watch" => subscribe_to(&["orders"]),
                _ => subscribe_to_prefix("order"),
            };
            let ask = WatchRequest { kind: Some(Ask::Subscribe(subscribe)) };
            let asks =
                tokio_stream::StreamExt::chain(tokio_stream::iter([ask]), tokio_stream::pending());
            let mut answers = registry.watch(by(token, asks)).await?.into_inner();
            answers.message().await.map(drop)
        }
        "Registry/ListMembers" => {
            registry.list_members(by(token, ListMembersRequest {})).await.map(drop)
        }
        _ => panic!("{row} is not called"),
    }
}

async fn administer(guarded: &Guarded, row: &str, token: Option<&str>) -> Result<(), Status> {
    let mut admin = guarded.cluster.admin(1);
    match row {
        "Admin/Status" => {
            admin.status(by(token, StatusRequest { local_only: false })).await.map(drop)
        }
        "Admin/AddNode" => admin.add_node(by(token, AddNodeRequest::default())).await.map(drop),
        "Admin/RemoveNode" => {
            admin.remove_node(by(token, RemoveNodeRequest { id: 99 })).await.map(drop)
        }
        "Admin/ReplaceNode" => {
            let (old_id, new_id, peer_address) = (98, 99, "127.0.0.1:9".to_owned());
            let request = ReplaceNodeRequest { old_id, new_id, peer_address };
            admin.replace_node(by(token, request)).await.map(drop)
        }
        "Admin/TransferLeader" => {
            let request = TransferLeaderRequest { to_id: 99 };
            admin.transfer_leader(by(token, request)).await.map(drop)
        }
        "Admin/Upgrade" => admin.upgrade(by(token, UpgradeRequest::default())).await.map(drop),
        "Admin/TriggerSnapshot" => {
            admin.trigger_snapshot(by(token, TriggerSnapshotRequest {})).await.map(drop)
        }
        "Admin/Backup" => admin.backup(by(token, BackupRequest::default())).await.map(drop),
        "Admin/SetOverride" | "Admin/SetOverride of another namespace" => {
            let namespace = if row.ends_with("namespace") { "elsewhere" } else { "" }.to_owned();
            let (service, id) = ("orders".to_owned(), "o".to_owned());
            let value = InstanceOverride { weight: Some(1), ..InstanceOverride::default() };
            let request = SetOverrideRequest {
                namespace,
                service,
                id,
                r#override: Some(value),
                ..SetOverrideRequest::default()
            };
            admin.set_override(by(token, request)).await.map(drop)
        }
        "Admin/InspectService" => {
            let service = "orders".to_owned();
            let request = InspectServiceRequest { service, ..InspectServiceRequest::default() };
            admin.inspect_service(by(token, request)).await.map(drop)
        }
        "Admin/ListOverrides" => {
            admin.list_overrides(by(token, ListOverridesRequest::default())).await.map(drop)
        }
        _ => panic!("{row} is not called"),
    }
}

/// That of an instance which is registered now.
pub(crate) async fn lease(guarded: &Guarded, service: &str, id: &str) -> u64 {
    let mut request = registration(vec![spec(service, id)]);
    // One more than the run that was deregistered.
    request.incarnation = 0;
    let answer = guarded.cluster.registry(1).register(by(Some(ROOT), request)).await;
    answer.unwrap().into_inner().lease_id
}

#[test]
fn each_method_has_a_row() {
    let descriptors = FileDescriptorSet::decode(quorate_proto::FILE_DESCRIPTOR_SET).unwrap();
    let files = descriptors.file.iter().filter(|file| file.package() == "quorate.v1");
    let services = files.flat_map(|file| &file.service);
    let methods: BTreeSet<String> = services
        .flat_map(|service| {
            let path = |method: &str| format!("{}/{method}", service.name());
            service.method.iter().map(move |method| path(method.name()))
        })
        .collect();
    let method = |row: &str| row.split(' ').next().unwrap().to_owned();
    let rows: BTreeSet<String> = ROWS.iter().map(|(row, _, _)| method(row)).collect();
    assert_eq!(rows, methods);
}

/// Which methods answer otherwise than their rows say, to those who prove nothing, and to somebody
/// for each column.
pub(crate) async fn wrong_answers(
    guarded: &Guarded,
    nobody: &[Option<&str>],
    somebody: &[&str; 6],
) -> Vec<String> {
    let mut wrong = Vec::new();
    // What no refusal may tell of.
    lease(guarded, "payments", "hidden").await;
    for (row, columns, taken) in ROWS {
        for token in nobody {
            let answer = call(guarded, row, *token).await;
            wrong.extend(answer.as_ref().err().and_then(told_too_much));
            let code = code(answer);
            if code != Code::Unauthenticated {
                wrong.push(format!("{row} for {token:?}: {code:?}"));
            }
        }
        for (token, column) in somebody.iter().zip(columns.chars()) {
            let answer = call(guarded, row, Some(token)).await;
            wrong.extend(answer.as_ref().err().and_then(told_too_much));
            let code = code(answer);
            let expected = match column {
                'y' => taken,
                'u' => Code::NotFound,
                _ => Code::PermissionDenied,
            };
            if code != expected {
                wrong.push(format!("{row} for {token}: {code:?}, not {expected:?}"));
            }
        }
    }
    wrong
}

/// What the metadata of a refusal is: which cluster this is, and how the answer is written.
const BESIDE_WORDS: [&str; 3] = ["content-type", "date", "quorate-cluster-id"];

/// Of secrets, and of how the program is made. What a caller named itself may be in the words.
pub(crate) const NEVER_TOLD: [&str; 8] =
    ["qrt_", "eyJ", "sha256:", ".rs:", "src/", "panicked", "backtrace", "hidden"];

/// CVE-2026-44283 (etcd) and its kind: what a refusal tells, in its words or beside them, to those
/// who have no right.
fn told_too_much(status: &Status) -> Option<String> {
    let metadata = status.metadata().clone().into_headers();
    let more = metadata.keys().find(|name| !BESIDE_WORDS.contains(&name.as_str()));
    let told = format!("{} {metadata:?}", status.message());
    let never = NEVER_TOLD.iter().find(|word| told.contains(**word));
    let is_too_much = more.is_some() || never.is_some() || !status.details().is_empty();
    is_too_much.then(|| format!("{more:?}, {never:?} in {status:?}"))
}

/// How often each caller is refused by rows with these columns.
pub(crate) fn refusals<'a>(
    columns: impl Iterator<Item = &'a str> + Clone,
) -> BTreeMap<String, usize> {
    let of = |(at, token): (usize, &str)| {
        let refused = columns.clone().filter(|columns| columns.as_bytes()[at] != b'y');
        (token.replace("qrt_", "token:"), refused.count())
    };
    SOMEBODY.into_iter().enumerate().map(of).filter(|(_, count)| *count > 0).collect()
}

/// CVE-2026-33413 (etcd): calls that nobody had thought of. CVE-2026-33343 (etcd): one foreign part
/// in a batch. GHSA-xg4h-6gfc-h4m8 (etcd): a range wider than the right. Each refusal has a line.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_method_takes_those_who_may_and_nobody_else() {
    let guarded = Guarded::start_audited(1, &access()).await;
    let wrong = wrong_answers(&guarded, &NOBODY, &SOMEBODY).await;
    assert!(wrong.is_empty(), "{wrong:#?}");
    let known = refusals(ROWS.iter().map(|(_, columns, _)| *columns));
    guarded.each_refusal_is_told(&known, ROWS.len() * NOBODY.len()).await;
    // Whoever refused it, and however early.
    let (begun, answered) = (guarded.counted("started").await, guarded.counted("handled").await);
    assert_eq!(begun, answered);
    assert!(begun.values().sum::<f64>() > (ROWS.len() * NOBODY.len()) as f64, "{begun:?}");
}

/// CVE-2026-33343 (etcd): the part that was refused was the only one, the others were done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_with_one_foreign_part_leaves_no_trace() {
    let guarded = Guarded::start(1, &access()).await;
    lease(&guarded, "orders", "kept").await;
    lease(&guarded, "payments", "hidden").await;
    let mut registry = guarded.cluster.registry(1);
    let state = async || {
        let answer = guarded.cluster.registry(1).fetch(by(Some(ROOT), fetch_of(&[]))).await;
        let answer = answer.unwrap().into_inner();
        (answer.header.unwrap().revision, answer.services)
    };
    let before = state().await;
    let token = Some("qrt_operator");
    let mut specs: Vec<_> = (0..999).map(|at| spec("orders", &format!("b{at}"))).collect();
    specs.push(spec("payments", "hidden"));
    let instances = vec![named("orders", "kept"), named("payments", "hidden")];
    let leave = DeregisterRequest { instances, ..DeregisterRequest::default() };
    for refused in [
        registry.register(by(token, registration(specs))).await.map(drop),
        registry.deregister(by(token, leave)).await.map(drop),
        registry.fetch(by(token, fetch_of(&["orders", "payments"]))).await.map(drop),
    ] {
        let refused = assert_refused(refused, Code::PermissionDenied, &["payments"]);
        assert_eq!(told_too_much(&refused), None);
    }
    assert_eq!(state().await, before);
}

/// CVE-2025-11374, CVE-2025-11375 (Consul): messages without bounds. A stranger's, of some MiB, was
/// read and decoded before it was refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_stranger_sends_is_not_read() {
    let guarded = Guarded::start(1, &access()).await;
    let mut large = spec("orders", "a");
    large.metadata.insert("k".to_owned(), "v".repeat(17 * 1024 * 1024));
    let send = async |token| {
        let registry = guarded.cluster.registry(1).max_encoding_message_size(usize::MAX);
        registry.clone().register(by(token, registration(vec![large.clone()]))).await.map(drop)
    };
    for token in NOBODY {
        assert_refused(send(token).await, Code::Unauthenticated, &[]);
    }
    // More than the transport takes.
    assert_refused(send(Some(ROOT)).await, Code::OutOfRange, &[]);
}

/// How much there is in all namespaces was told to whoever was known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_much_the_cluster_holds_is_told_to_those_who_may_see_it() {
    let all = entry("qrt_all", "role = 'read'\nnamespace = '*'");
    let guarded = Guarded::start(1, &(access() + &all)).await;
    lease(&guarded, "payments", "p").await;
    let sees =
        |token| ["qrt_elsewhere", "qrt_other", "qrt_operator", "qrt_all", ROOT].contains(token);
    for token in SOMEBODY.iter().chain(&["qrt_all"]) {
        let asked = by(Some(*token), StatusRequest { local_only: false });
        let status = guarded.cluster.admin(1).status(asked).await.unwrap().into_inner();
        let member = status.members[0].clone();
        let told = [status.services, status.instances, status.leases, member.last_log_index];
        assert_eq!(told.iter().all(|number| *number > 0), sees(token), "{token}: {status:?}");
        assert_eq!(told.iter().all(|number| *number == 0), !sees(token), "{token}: {status:?}");
        assert_eq!(status.partial, !sees(token));
        let asked = by(Some(*token), ListMembersRequest {});
        let members = guarded.cluster.registry(1).list_members(asked).await.unwrap().into_inner();
        for listed in [member.member.unwrap(), members.members[0].clone()] {
            assert!(!listed.client_address.is_empty() && listed.id == 1, "{token}: {listed:?}");
            assert_eq!(listed.peer_address.is_empty(), !sees(token), "{token}: {listed:?}");
        }
    }
}

fn code(answer: Result<(), Status>) -> Code {
    answer.map_or_else(|status| status.code(), |()| Code::Ok)
}

/// CVE-2024-10005, CVE-2024-10006 (Consul); Nacos #4701, #4779: a header that let in any caller.
/// What is no single bearer is no credential, and no other header counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_header_counts_and_it_has_to_be_whole() {
    let guarded = Guarded::start(1, &access()).await;
    let registry = guarded.cluster.registry(1);
    let fetch = async |headers: &[(&'static str, &str)]| {
        let mut request = by(None, fetch_of(&["orders"]));
        for (name, value) in headers {
            request.metadata_mut().append(*name, value.parse().unwrap());
        }
        registry.clone().fetch(request).await.map(drop)
    };
    let right = "Bearer qrt_root";
    for scheme in ["Bearer", "bearer", "BEARER"] {
        let value = format!("{scheme} qrt_root");
        assert_eq!(code(fetch(&[("authorization", &value)]).await), Code::Ok, "{scheme}");
    }
    for headers in [
        &[("authorization", right), ("authorization", right)][..],
        &[("authorization", "Bearer qrt_wrong"), ("authorization", right)],
        &[("authorization", right), ("authorization", "")],
        &[("authorization", "qrt_root")],
        &[("authorization", "Basic cXJ0X3Jvb3Q6")],
        &[("authorization", "Bearer qrt_root qrt_root")],
        &[("authorization", "Bearer qrt_root,")],
        &[("proxy-authorization", right)],
        &[("accesstoken", "qrt_root"), ("x-consul-token", "qrt_root")],
        &[("x-identity", "Nacos-Server"), ("serveridentity", "security")],
        &[("x-forwarded-client-cert", "URI=spiffe://quorate/node/1")],
        &[("x-forwarded-for", "127.0.0.1"), ("x-real-ip", "127.0.0.1")],
    ] {
        let refused = assert_refused(fetch(headers).await, Code::Unauthenticated, &[]);
        assert!(!refused.message().contains("root"), "{refused:?}");
    }
    let long = format!("Bearer {}", "a".repeat(12 * 1024));
    assert_refused(fetch(&[("authorization", &long)]).await, Code::Unauthenticated, &[]);
    // The transport takes no headers of this size, also where the token that counts is another.
    let longer = format!("Bearer {}", "a".repeat(64 * 1024));
    for headers in [
        &[("authorization", longer.as_str())][..],
        &[("authorization", right), ("x-large", &longer)],
        &[("x-large", &longer), ("authorization", right)],
    ] {
        assert!(fetch(headers).await.is_err(), "{}", headers[0].0);
        // By a new connection: the transport's own may be ending still.
        eventually("it goes on", async || fetch(&[("authorization", right)]).await.ok()).await;
    }
}

/// CVE-2026-29181 (opentelemetry-go): all `baggage` of a call was parsed, as many headers as came.
/// Here nobody reads it; how much there may be is bound as all headers are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn baggage_is_passed_over_and_too_much_of_it_is_refused() {
    let guarded = Guarded::start(1, &access()).await;
    let others = guarded.cluster.registry(1);
    let fetch = async |registry: &Registry, token: &str, baggage: &[String]| {
        let mut request = by(Some(token), fetch_of(&["orders"]));
        for value in baggage {
            request.metadata_mut().append("baggage", value.parse().unwrap());
        }
        registry.clone().fetch(request).await.map(drop)
    };
    let entries = |count: usize| (0..count).map(|at| format!("k{at}=v{at}")).collect::<Vec<_>>();
    for (what, baggage, is_taken) in [
        ("one", entries(1), true),
        ("many entries in one", vec![entries(700).join(",")], true),
        ("many", entries(200), true),
        ("a large one", vec![format!("k={}", "v".repeat(8 * 1024))], true),
        ("none that means anything", vec![",;=,%zz=%".to_owned(), "k=v;;;".to_owned()], true),
        ("an identity", vec!["authorization=Bearer qrt_root,user=root".to_owned()], true),
        ("more than all headers may be", entries(2_000), false),
        ("one that is larger", vec![format!("k={}", "v".repeat(64 * 1024))], false),
        ("as many entries", vec![entries(8_000).join(",")], false),
    ] {
        // By a connection of its own: one that is refused may end it.
        let registry = guarded.cluster.registry(1);
        let answer = fetch(&registry, "qrt_root", &baggage).await;
        assert_eq!(code(answer) == Code::Ok, is_taken, "{what}");
        let unknown = fetch(&registry, "qrt_wrong", &baggage).await;
        assert_ne!(code(unknown), Code::Ok, "{what}: it is no credential");
        assert_eq!(code(fetch(&others, "qrt_root", &[]).await), Code::Ok, "{what}: others go on");
    }
}
