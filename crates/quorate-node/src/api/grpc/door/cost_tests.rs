//! What the door costs of a renewal: of a call with one lease, and nothing else to do. For figures:
//! `cargo test --profile bench -p quorate-node --lib the_door_costs -- --nocapture`.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;

use futures_util::{StreamExt, stream};
use quorate_proto::v1::registry_client::RegistryClient;
use quorate_proto::v1::{InstanceSpec, LeaseRenewal, RegisterRequest, RenewRequest, RenewResponse};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;

use super::*;
use crate::config::{Config, Start};
use crate::server::Server;

/// Few where nothing is optimised, to see that it holds.
const CALLS: u32 = if cfg!(debug_assertions) { 2_000 } else { 200_000 };
/// Renewals that are under way at a time.
const UNDER_WAY: usize = 64;
/// The door's part of it at most, percent; more where nothing is optimised.
const PERCENT_MAX: f64 = if cfg!(debug_assertions) { 5.0 } else { 1.0 };

/// The processor time of this thread, or of all threads of this process.
fn cpu(of_all: bool) -> Duration {
    let of = |path: &str| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0)
    };
    if !of_all {
        return Duration::from_nanos(of("/proc/thread-self/schedstat"));
    }
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let paths = threads.map(|thread| thread.unwrap().path().join("schedstat"));
    Duration::from_nanos(paths.map(|path| of(&path.to_string_lossy())).sum())
}

fn renewal(lease: u64) -> Request<RenewRequest> {
    let renewals = vec![LeaseRenewal { lease_id: lease }];
    let mut request = Request::new(RenewRequest { renewals, ..<_>::default() });
    request.metadata_mut().insert("grpc-timeout", MetadataValue::from_static("5S"));
    request
}

async fn register(client: &mut RegistryClient<Channel>) -> u64 {
    let endpoints = BTreeMap::from([("http".to_owned(), "http://127.0.0.1:1".to_owned())]);
    let (service, id) = ("web".to_owned(), "1".to_owned());
    let instances = vec![InstanceSpec { service, id, endpoints, ..<_>::default() }];
    let request = RegisterRequest { ttl_ms: 60_000, instances, ..<_>::default() };
    for _ in 0..100 {
        if let Ok(answer) = client.register(request.clone()).await {
            return answer.into_inner().lease_id;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the node founds its cluster");
}

/// Renewals by the way of a client, whose own work is counted, too.
async fn whole(client: &RegistryClient<Channel>, lease: u64) -> Duration {
    let before = cpu(true);
    let renew = |_| {
        let mut client = client.clone();
        async move { client.renew(renewal(lease)).await.unwrap() }
    };
    let renewals = stream::iter(0..CALLS).map(renew).buffer_unordered(UNDER_WAY);
    assert_eq!(renewals.count().await as u32, CALLS);
    cpu(true) - before
}

/// The same calls as far as to their handler and back, without what it takes to make them.
async fn door(node: &Node, lease: u64) -> Duration {
    let handle = async |request: Request<RenewRequest>| {
        let leases = request.into_inner().renewals.into_iter();
        let unknown_lease_ids = leases.map(|renewal| renewal.lease_id).collect();
        Ok::<_, Status>(Response::new(RenewResponse { unknown_lease_ids, ..<_>::default() }))
    };
    let before = cpu(false);
    for _ in 0..CALLS {
        handle(renewal(lease)).await.unwrap();
    }
    let between = cpu(false);
    for _ in 0..CALLS {
        let handle = |call: Call<RenewRequest>| handle(Request::new(call.message));
        answer(node, Method::Renew, renewal(lease), handle).await.unwrap();
    }
    (cpu(false) - between).saturating_sub(between - before)
}

#[expect(clippy::print_stdout, reason = "it measures")]
fn report(text: &str) {
    println!("{text}");
}

const CHILD: &str = "QUORATE_TEST_DOOR";

/// In a process of its own, which is this test again: the threads of other tests have no part in
/// what is measured.
#[test]
fn the_door_costs_little_of_a_renewal() {
    if std::env::var_os(CHILD).is_some() {
        return measure();
    }
    let this = "api::grpc::door::cost_tests::the_door_costs_little_of_a_renewal";
    let mut child = Command::new(std::env::current_exe().unwrap());
    let child = child.args([this, "--exact", "--nocapture"]);
    let ended = child.env(CHILD, "1").output().unwrap();
    let said = String::from_utf8_lossy(&ended.stdout);
    report(&said);
    let is_measured = said.contains("the door takes") && ended.status.success();
    assert!(is_measured, "{said}{}", String::from_utf8_lossy(&ended.stderr));
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn measure() {
    let dir = tempfile::tempdir().unwrap();
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let free = TcpListener::bind(any).unwrap().local_addr().unwrap();
    let mut config = Config::new(1, dir.path().to_owned(), any, free);
    config.start = Start::Bootstrap(BTreeMap::from([(1, free.to_string())]));
    let bound = Server::bind(config).await.unwrap();
    let (node, address) = (bound.node().clone(), bound.client_addr());
    let stop = node.stop().clone();
    let running = tokio::spawn(bound.run(std::future::pending()));
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect_lazy();
    let mut client = RegistryClient::new(channel);
    let lease = register(&mut client).await;
    let whole = whole(&client, lease).await;
    let door = door(&node, lease).await;
    let percent = 100.0 * door.as_secs_f64() / whole.as_secs_f64();
    let each = |time: Duration| time.as_nanos() / u128::from(CALLS);
    let text = format!(
        "the door takes {} ns, a renewal {} ns with its client: {percent:.2} %",
        each(door),
        each(whole)
    );
    report(&text);
    assert!(percent < PERCENT_MAX, "{text}");
    stop.cancel();
    running.abort();
}
