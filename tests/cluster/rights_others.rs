//! Who may ask what a node answers beside the calls of `rights.rs`: gRPC's own services, the calls
//! of nodes, DNS. A service of all that is described without a row fails.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use prost::Message as _;
use prost_types::FileDescriptorSet;
use quorate_node::Dns;
use quorate_proto::v1::RegisterRequest;
use tokio::net::UdpSocket;
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use super::calls::{registration, spec};
use super::guarded::{Guarded, ROOT, by};
use super::harness::{SOON, eventually};
use super::ports::free_address;
use super::rights::{NOBODY, SOMEBODY, access};

/// Whom a service is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum For {
    /// Those that `rights.rs` says, of each of its methods.
    Rights,
    /// Everybody, known or not: an empty message is answered with this.
    All(Code),
    /// The other nodes, at their listener. There is no such service for clients.
    Nodes,
}

const ROWS: [(&str, For); 6] = [
    ("quorate.v1.Registry", For::Rights),
    ("quorate.v1.Admin", For::Rights),
    ("quorate.peer.v1.Peer", For::Nodes),
    ("grpc.health.v1.Health", For::All(Code::Ok)),
    ("grpc.reflection.v1.ServerReflection", For::All(Code::InvalidArgument)),
    ("grpc.reflection.v1alpha.ServerReflection", For::All(Code::InvalidArgument)),
];

/// The methods of each service that a node has the code for.
fn described() -> BTreeMap<String, Vec<String>> {
    let sets = [
        quorate_proto::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let mut all = BTreeMap::new();
    for file in sets.iter().flat_map(|set| FileDescriptorSet::decode(*set).unwrap().file) {
        for service in &file.service {
            let methods = service.method.iter().map(|method| method.name().to_owned());
            all.insert(format!("{}.{}", file.package(), service.name()), methods.collect());
        }
    }
    all
}

#[test]
fn each_service_has_a_row() {
    let described = described();
    let services: BTreeSet<&str> = described.keys().map(String::as_str).collect();
    assert_eq!(ROWS.iter().map(|(service, _)| *service).collect::<BTreeSet<_>>(), services);
    assert!(described.values().all(|methods| !methods.is_empty()), "{described:?}");
}

/// Sends a method an empty message; what comes of it.
async fn ask(channel: &Channel, path: &str, token: Option<&str>) -> Code {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.expect("a connection");
    let path = PathAndQuery::try_from(format!("/{path}")).unwrap();
    let request = by(token, tokio_stream::iter([()]));
    let asked = async {
        let codec = ProstCodec::<(), ()>::default();
        let answers = grpc.streaming(request, path, codec).await?;
        answers.into_inner().message().await?.ok_or_else(|| Status::unknown("no answer"))
    };
    asked.await.map_or_else(|status| status.code(), |()| Code::Ok)
}

/// CVE-2026-33413 (etcd), of what is no call of ours: probes and tools need no credential, and no
/// credential makes a client a node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_services_are_for_all_or_for_nodes_alone() {
    let guarded = Guarded::start(1, &access()).await;
    let to_clients = guarded.cluster.channel(1);
    let to_nodes = format!("http://{}", guarded.cluster.peer_address(1));
    let to_nodes = Endpoint::from_shared(to_nodes).unwrap().connect_lazy();
    let callers = || NOBODY.into_iter().chain(SOMEBODY.map(Some));
    let mut wrong = Vec::new();
    let mut expect = async |channel: &Channel, path: &str, token, expected| {
        let code = ask(channel, path, token).await;
        if code != expected {
            wrong.push(format!("{path} for {token:?}: {code:?}, not {expected:?}"));
        }
    };
    for (service, methods) in described() {
        let (_, whom) = *ROWS.iter().find(|(of, _)| *of == service).expect("it has a row");
        for path in methods.iter().map(|method| format!("{service}/{method}")) {
            for token in callers() {
                match whom {
                    For::Rights => {}
                    For::All(code) => expect(&to_clients, &path, token, code).await,
                    For::Nodes => expect(&to_clients, &path, token, Code::Unimplemented).await,
                }
            }
            if whom != For::Nodes {
                expect(&to_nodes, &path, Some(ROOT), Code::Unimplemented).await;
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

const NO_ERROR: u8 = 0;
const FAILED: u8 = 2;
const REFUSED: u8 = 5;

/// Asks for addresses; the code of the answer, and how many records it has.
async fn resolve(to: SocketAddr, name: &str) -> Option<(u8, u8)> {
    let mut packet = vec![0x12, 0x34, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        packet.push(label.len() as u8);
        packet.extend(label.bytes());
    }
    packet.extend([0, 0, 1, 0, 1]); // the root, A, IN
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&packet, to).await.unwrap();
    let mut answer = [0; 512];
    let read = timeout(SOON, socket.recv(&mut answer)).await.expect("an answer").ok()?;
    assert!(read > 12, "{read} bytes");
    Some((answer[3] & 15, answer[7]))
}

/// DNS has no credentials: what it tells is bounded by its own table, whatever the access file
/// grants.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dns_tells_of_its_namespaces_and_of_no_other() {
    let mut guarded = Guarded::start(1, &access()).await;
    let dns = free_address();
    guarded.cluster.stop(1).await;
    let config = guarded.cluster.config_mut(1);
    config.dns_listen = Some(dns);
    config.dns = Dns { namespaces: vec!["shop".to_owned()], ..Dns::default() };
    config.tunables.deny_after_ms = 600_000;
    guarded.cluster.restart(1).await;
    for namespace in ["shop", "default"] {
        let mut instance = spec("orders", "a");
        instance.endpoints = [("http".to_owned(), "http://10.1.2.3:80".to_owned())].into();
        let request = registration(vec![instance]);
        let request = RegisterRequest { namespace: namespace.to_owned(), ..request };
        eventually("it is registered", || async {
            guarded.cluster.registry(1).register(by(Some(ROOT), request.clone())).await.ok()
        })
        .await;
    }
    let shop = "orders.shop.svc.quorate";
    let told = || async { resolve(dns, shop).await.filter(|it| *it == (NO_ERROR, 1)) };
    eventually("it tells of its own namespace", told).await;
    for (name, expected) in [
        (shop, (NO_ERROR, 1)),
        ("orders.default.svc.quorate", (REFUSED, 0)),
        ("a.orders.default.svc.quorate", (REFUSED, 0)),
        ("nobody.default.svc.quorate", (REFUSED, 0)),
        // The cluster is new: it may be on its way.
        ("nobody.shop.svc.quorate", (FAILED, 0)),
        ("_none._tcp.orders.shop.svc.quorate", (FAILED, 0)),
        ("shop.svc.quorate", (NO_ERROR, 0)),
    ] {
        assert_eq!(resolve(dns, name).await, Some(expected), "{name}");
    }
}
