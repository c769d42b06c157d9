//! Providers and nodes are restarted one after the other while a generated client calls through
//! `channel()`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_client::{Client, Discovery, Error, InstanceBuilder, Served};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::harness::{Cluster, SOON, eventually};

/// Answers after a while, so that there are always calls in flight, and not before the gate is
/// open.
#[derive(Clone)]
struct Slow {
    entered: Arc<AtomicU64>,
    answered: Arc<AtomicU64>,
    takes: Duration,
    gate: Arc<Semaphore>,
}

impl Slow {
    fn new(takes: Duration) -> Self {
        let (entered, answered) = (Arc::default(), Arc::default());
        Self { entered, answered, takes, gate: Arc::new(Semaphore::new(1_000)) }
    }

    fn closed() -> Self {
        Self { gate: Arc::new(Semaphore::new(0)), ..Self::new(Duration::ZERO) }
    }
}

#[tonic::async_trait]
impl Health for Slow {
    type WatchStream = tokio_stream::Empty<Result<HealthCheckResponse, Status>>;

    async fn check(
        &self,
        _request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        self.entered.fetch_add(1, Ordering::Relaxed);
        let _open = self.gate.acquire().await;
        sleep(self.takes).await;
        self.answered.fetch_add(1, Ordering::Relaxed);
        Ok(Response::new(HealthCheckResponse { status: ServingStatus::Serving.into() }))
    }

    async fn watch(
        &self,
        _request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("not used"))
    }
}

type Ended = Result<Served<Result<(), tonic::transport::Error>>, Error>;

/// A process that serves, as far as one can be in this process.
struct Provider {
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Ended>,
}

impl Provider {
    async fn start(client: &Client, instance: InstanceBuilder, slow: &Slow) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let service = HealthServer::new(slow.clone());
        let serving = client.serve(instance.endpoint("grpc", "http://{addr}")).until(async {
            let _stopped = stopped.await;
        });
        let ended = tokio::spawn(serving.run(listener, |listener, stop| {
            let incoming = TcpListenerStream::new(listener);
            Server::builder().add_service(service).serve_with_incoming_shutdown(incoming, stop)
        }));
        Self { stop, ended }
    }

    /// As by SIGTERM; waits until it is done.
    async fn stop(self) {
        self.stop.send(()).unwrap();
        let ended = timeout(SOON, self.ended).await.expect("bounded").unwrap().unwrap();
        assert!(ended.deregistered.is_ok(), "{ended}");
        assert!(matches!(ended.output, Some(Ok(()))), "{ended}");
    }
}

/// Calls that go on, with what came of them.
struct Calls {
    stop: Arc<AtomicBool>,
    succeeded: Arc<AtomicU64>,
    failures: Arc<Mutex<Vec<Status>>>,
    tasks: JoinSet<()>,
}

fn ask() -> Request<HealthCheckRequest> {
    let mut request = Request::new(HealthCheckRequest::default());
    request.set_timeout(SOON);
    request
}

impl Calls {
    fn start(channel: &Channel, callers: usize) -> Self {
        let (stop, succeeded) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let failures = Arc::<Mutex<Vec<Status>>>::default();
        let mut tasks = JoinSet::new();
        for _ in 0..callers {
            let mut client = HealthClient::new(channel.clone());
            let (stop, succeeded, failures) = (stop.clone(), succeeded.clone(), failures.clone());
            tasks.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    match client.check(ask()).await {
                        Ok(_) => drop(succeeded.fetch_add(1, Ordering::Relaxed)),
                        Err(status) => failures.lock().unwrap().push(status),
                    }
                }
            });
        }
        Self { stop, succeeded, failures, tasks }
    }

    /// Waits for this many more calls that succeed.
    async fn more(&self, count: u64) {
        let wanted = self.succeeded.load(Ordering::Relaxed) + count;
        eventually("calls go on", || async {
            let succeeded = self.succeeded.load(Ordering::Relaxed);
            let failed = !self.failures.lock().unwrap().is_empty();
            (failed || succeeded >= wanted).then_some(())
        })
        .await;
        assert!(self.failures.lock().unwrap().is_empty(), "{:?}", self.failures);
    }

    async fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        timeout(SOON, self.tasks.join_all()).await.expect("none is stuck");
        assert!(self.failures.lock().unwrap().is_empty(), "{:?}", self.failures);
        self.succeeded.load(Ordering::Relaxed)
    }
}

async fn shows(view: &Discovery, count: usize) {
    eventually("the caller sees the instances", || async {
        (view.current().len() == count).then_some(())
    })
    .await;
}

fn greeter(id: impl std::fmt::Display) -> InstanceBuilder {
    InstanceBuilder::new("greeter", format!("greeter-{id}"))
}

/// No call fails while three providers, then three nodes are restarted in turn. // S0.11, S0.15,
/// S1.14, S3.3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_fails_in_a_rolling_restart_of_providers_and_nodes() {
    let mut cluster = Cluster::start(3).await;
    let caller = cluster.client().await;
    let view = caller.discover("greeter").unwrap();
    let slow = || Slow::new(Duration::from_millis(20));
    let mut providers = BTreeMap::new();
    for id in 1..=3 {
        let (client, slow) = (cluster.client().await, slow());
        let provider = Provider::start(&client, greeter(id), &slow).await;
        providers.insert(id, (provider, slow, client));
    }
    shows(&view, 3).await;
    let calls = Calls::start(&caller.channel("greeter").unwrap(), 16);
    calls.more(100).await;
    for id in 1..=3 {
        let (provider, before, client) = providers.remove(&id).unwrap();
        provider.stop().await;
        assert!(before.answered.load(Ordering::Relaxed) > 0, "it had its share");
        calls.more(50).await;
        let after = slow();
        let provider = Provider::start(&client, greeter(id), &after).await;
        eventually("the new run gets calls", || async {
            (after.answered.load(Ordering::Relaxed) > 0).then_some(())
        })
        .await;
        providers.insert(id, (provider, after, client));
    }
    for id in 1..=3 {
        cluster.stop(id).await;
        calls.more(50).await;
        cluster.restart(id).await;
        cluster.settled().await;
        calls.more(50).await;
        assert_eq!(view.current().len(), 3, "an outage of a node is no news of a service");
    }
    let succeeded = calls.end().await;
    eprintln!("rolling restart: {succeeded} calls, 0 failed");
    assert_eq!(caller.counters().divergences, 0);
}

/// A call in flight to an instance that leaves is finished; the next one goes elsewhere. // S0.15
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_in_flight_outlives_its_instance_in_the_view() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let (held, quick) = (Slow::closed(), Slow::new(Duration::ZERO));
    let leaving = Provider::start(&client, greeter(1), &held).await;
    let view = client.discover("greeter").unwrap();
    shows(&view, 1).await;
    let channel = client.channel("greeter").unwrap();
    let mut in_flight = HealthClient::new(channel.clone());
    let in_flight = tokio::spawn(async move { in_flight.check(ask()).await });
    eventually("the call arrives", || async {
        (held.entered.load(Ordering::Relaxed) == 1).then_some(())
    })
    .await;
    let _quick = Provider::start(&client, greeter(2), &quick).await;
    shows(&view, 2).await;
    let stopping = tokio::spawn(leaving.stop());
    shows(&view, 1).await;
    for _ in 0..20 {
        let mut client = HealthClient::new(channel.clone());
        timeout(SOON, client.check(ask())).await.unwrap().unwrap();
    }
    assert_eq!(quick.answered.load(Ordering::Relaxed), 20, "no new call goes to what left");
    held.gate.add_permits(1);
    in_flight.await.unwrap().expect("finished");
    stopping.await.unwrap();
}

/// What is left of an instance of weight 0 is its name: it gets no calls, as with the balancers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_of_weight_0_gets_no_call_of_a_channel() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let (busy, idle) = (Slow::new(Duration::ZERO), Slow::new(Duration::ZERO));
    let _busy = Provider::start(&client, greeter(1), &busy).await;
    let _idle = Provider::start(&client, greeter(2).weight(0), &idle).await;
    let view = client.discover("greeter").unwrap();
    shows(&view, 2).await;
    let calls = Calls::start(&client.channel("greeter").unwrap(), 4);
    calls.more(300).await;
    calls.end().await;
    assert_eq!(idle.answered.load(Ordering::Relaxed), 0);
}

/// A process that dies without a word, with all of its connections: a server on a runtime of its
/// own.
struct Mortal {
    runtime: Option<tokio::runtime::Runtime>,
    address: std::net::SocketAddr,
}

impl Mortal {
    fn start(address: &str, slow: &Slow) -> Self {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let service = HealthServer::new(slow.clone());
        runtime.spawn(async move {
            let incoming = TcpListenerStream::new(TcpListener::from_std(listener).unwrap());
            Server::builder().add_service(service).serve_with_incoming(incoming).await
        });
        Self { runtime: Some(runtime), address }
    }

    fn instance(&self, id: u32) -> InstanceBuilder {
        greeter(id).endpoint("grpc", format!("http://{}", self.address))
    }

    fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            let dies = std::thread::spawn(move || runtime.shutdown_timeout(SOON));
            dies.join().unwrap();
        }
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Makes this number of calls, one after the other: how many succeed before the first one that does
/// not.
async fn in_a_row(channel: &Channel, calls: usize) -> usize {
    let mut client = HealthClient::new(channel.clone());
    for done in 0..calls {
        if timeout(SOON, client.check(ask())).await.expect("no call waits").is_err() {
            return done;
        }
    }
    calls
}

/// Registered, and not there: an instance that died stays in the view until its lease ends, and
/// gets no calls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_cannot_be_reached_gets_no_call_of_a_channel() {
    // S0.15
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let (quick, never) = (Slow::new(Duration::ZERO), Slow::new(Duration::ZERO));
    let mut dead = Mortal::start("127.0.0.1:0", &never);
    dead.kill();
    let living = Mortal::start("127.0.0.1:0", &quick);
    let _dead = client.register(dead.instance(1)).await.unwrap();
    let view = client.discover("greeter").unwrap();
    shows(&view, 1).await;
    // With no other instance there, calls fail and do not wait.
    assert_eq!(in_a_row(&client.channel("greeter").unwrap(), 1).await, 0);
    let _living = client.register(living.instance(2)).await.unwrap();
    shows(&view, 2).await;
    let channel = client.channel("greeter").unwrap();
    assert_eq!(in_a_row(&channel, 300).await, 300);
    assert_eq!(view.current().len(), 2, "it is still registered");
}

/// One that dies and comes back, under the same registration.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_dies_gets_calls_again_when_it_is_back() {
    // S0.15
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let (here, there) = (Slow::new(Duration::ZERO), Slow::new(Duration::ZERO));
    let mut mortal = Mortal::start("127.0.0.1:0", &there);
    let other = Mortal::start("127.0.0.1:0", &here);
    let _mortal = client.register(mortal.instance(1)).await.unwrap();
    let _other = client.register(other.instance(2)).await.unwrap();
    let view = client.discover("greeter").unwrap();
    shows(&view, 2).await;
    let channel = client.channel("greeter").unwrap();
    eventually("both are called", || async {
        assert_eq!(in_a_row(&channel, 10).await, 10);
        (there.answered.load(Ordering::Relaxed) > 0).then_some(())
    })
    .await;
    for _ in 0..5 {
        mortal.kill();
        // Calls that were under way may fail, and so may calls to it before the client has noticed.
        let mut failed = 0;
        while in_a_row(&channel, 300).await < 300 {
            failed += 1;
            assert!(failed <= 3, "calls go on failing");
        }
        let again = Slow::new(Duration::ZERO);
        mortal = Mortal::start(&mortal.address.to_string(), &again);
        eventually("it is called again", || async {
            assert_eq!(in_a_row(&channel, 10).await, 10);
            (again.answered.load(Ordering::Relaxed) > 0).then_some(())
        })
        .await;
        eprintln!("{failed} calls failed when an instance died");
    }
    assert_eq!(view.current().len(), 2);
}
