//! Serving: bound, then registered; drained, deregistered, finished, stopped; with axum and with
//! tonic.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use quorate_client::{Client, Error, InstanceBuilder, Registration};
use quorate_proto::v1::{Instance, InstanceStatus};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio_stream::wrappers::TcpListenerStream;

use crate::fake::{Fake, Mode, until, within};

/// No call of it is late on a busy machine.
async fn client(fakes: &[Fake]) -> Client {
    client_with(fakes, Duration::from_secs(20))
}

/// One node may take half of this.
fn client_with(fakes: &[Fake], call_timeout: Duration) -> Client {
    let client = Client::builder(fakes.iter().map(Fake::address)).member_refresh(None);
    client.attempt_timeout(call_timeout).call_timeout(call_timeout).build().unwrap()
}

fn web() -> Registration {
    let instance = InstanceBuilder::new("web", "a").endpoint("http", "http://{addr}/x");
    Registration::new(instance.endpoint("admin", "http://h:{port}"))
}

fn held(fake: &Fake) -> Option<Instance> {
    fake.state().instances.get(&("web".to_owned(), "a".to_owned())).cloned()
}

/// A plain HTTP/1 call; the status line.
async fn call(address: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer.lines().next().unwrap_or_default().to_owned())
}

/// An axum server whose calls wait until they are released.
fn waiting(entered: Arc<Notify>, release: Arc<Notify>) -> Router {
    let wait = move || async move {
        let released = release.notified(); // from here on, so that a release right after `entered` counts
        entered.notify_one();
        released.await;
        "done"
    };
    Router::new().route("/", get(wait))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_axum_server_drains_in_order() {
    // S0.11, S1.13, S1.14
    let fakes = Fake::cluster(1);
    let client = client(&fakes).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (entered, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let app = waiting(entered.clone(), release.clone());
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = client.serve(web()).grace(Duration::from_secs(3)).until(async move {
        let _ = stopped.await;
    });
    // What axum returns is no future yet.
    let serving =
        tokio::spawn(serving.run(listener, |listener, stop| {
            axum::serve(listener, app).with_graceful_shutdown(stop)
        }));
    until("it is registered", || held(&fakes[0]).is_some()).await;
    let endpoints = held(&fakes[0]).unwrap().endpoints;
    assert_eq!(endpoints["http"], format!("http://{address}/x"));
    assert!(endpoints["admin"].ends_with(address.split_once(':').unwrap().1));

    let in_flight = tokio::spawn({
        let address = address.clone();
        async move { call(&address).await }
    });
    within(entered.notified()).await;
    stop.send(()).unwrap();
    until("it is deregistered", || held(&fakes[0]).is_none()).await;
    let history: Vec<_> =
        fakes[0].state().log.iter().map(|c| c.instance.clone().unwrap().status()).collect();
    assert_eq!(history[..2], [InstanceStatus::Up, InstanceStatus::Draining], "it drains first");
    // Callers that have not heard of it yet are still served.
    let late = tokio::spawn(async move { call(&address).await });
    within(entered.notified()).await;
    release.notify_waiters();
    let ok = "HTTP/1.1 200 OK";
    assert_eq!(within(in_flight).await.unwrap().unwrap(), ok);
    assert_eq!(within(late).await.unwrap().unwrap(), ok);
    let served = within(serving).await.unwrap().unwrap();
    assert!(served.output.is_some() && served.deregistered.is_ok() && !served.by_itself);
    assert_eq!(fakes[0].calls("deregister"), 1); // S1.8
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_call_does_not_outlive_the_deadline() {
    // S0.11, S1.14
    let fakes = Fake::cluster(1);
    let client = client(&fakes).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let entered = Arc::new(Notify::new());
    let app = waiting(entered.clone(), Arc::new(Notify::new()));
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = client.serve(web()).grace(Duration::ZERO).drain(Duration::from_millis(200));
    let serving = serving.until(async move {
        let _ = stopped.await;
    });
    let serving = tokio::spawn(serving.run(listener, |listener, stop| async move {
        axum::serve(listener, app).with_graceful_shutdown(stop).await
    }));
    let _stuck = tokio::spawn(async move { call(&address).await });
    within(entered.notified()).await;
    stop.send(()).unwrap();
    let served = within(serving).await.unwrap().unwrap();
    assert!(served.output.is_none() && served.deregistered.is_ok());
    assert!(served.to_string().contains("cut off"), "{served}");
}

/// It could not be called there.
#[tokio::test]
async fn a_wildcard_address_is_not_registered() {
    let fakes = Fake::cluster(1);
    let client = client(&fakes).await;
    for wildcard in ["0.0.0.0:0", "[::]:0"] {
        let Ok(listener) = TcpListener::bind(wildcard).await else { continue };
        let address = listener.local_addr().unwrap();
        let served = client.serve(web()).run(listener, |_, _| async { panic!("served") }).await;
        let refused = served.unwrap_err();
        assert!(
            matches!(&refused, Error::NoAddress { endpoint, bound } if endpoint == "http" && *bound == address)
        );
        let told = refused.to_string();
        assert!(told.contains("\"http\"") && told.contains("{port}"), "{told}");
    }
    assert!(held(&fakes[0]).is_none());
    // A port is the same on every address.
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let instance = InstanceBuilder::new("web", "a").endpoint("http", "http://h:{port}");
    let serving = client.serve(Registration::new(instance));
    let serving = tokio::spawn(serving.run(listener, |_, _| std::future::pending::<()>()));
    until("it is registered", || held(&fakes[0]).is_some()).await;
    assert_eq!(held(&fakes[0]).unwrap().endpoints["http"], format!("http://h:{port}"));
    serving.abort();
}

/// The registry is down all the time: the server serves, and stops in bounded time. // S2.13, S0.17
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tonic_server_serves_and_stops_without_the_registry() {
    let mut fakes = Fake::cluster(1);
    fakes[0].kill();
    let client = client_with(&fakes, Duration::from_millis(600));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (stop, stopped) = oneshot::channel::<()>();
    let until_told = async move {
        let _ = stopped.await;
    };
    let ended = Arc::new(AtomicBool::new(false));
    let noted = ended.clone();
    let serving = client.serve(web()).grace(Duration::ZERO).until(until_told);
    let serving = tokio::spawn(serving.run(listener, move |listener, stop| async move {
        let routes = tonic::service::Routes::default();
        let result = tonic::transport::Server::builder()
            .add_routes(routes)
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop)
            .await;
        noted.store(true, Ordering::Relaxed);
        result
    }));
    within(TcpStream::connect(&address)).await.unwrap();
    let begun = Instant::now();
    stop.send(()).unwrap();
    let served = within(serving).await.unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(4), "took {:?}", begun.elapsed());
    assert!(matches!(served.deregistered, Err(Error::Unreachable { .. })));
    assert!(matches!(served.output, Some(Ok(()))) && ended.load(Ordering::Relaxed));
}

#[tokio::test]
async fn a_server_that_ends_by_itself_is_deregistered() {
    let fakes = Fake::cluster(1);
    let client = client(&fakes).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let registered = || held(&fakes[0]).is_some();
    let served = client.serve(web()).run(listener, |_listener, _stop| async {
        until("it is registered", registered).await;
        "done"
    });
    let served = within(served).await.unwrap();
    assert!(served.by_itself && served.output == Some("done") && served.deregistered.is_ok());
    assert!(held(&fakes[0]).is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_publishes_is_there_until_it_drains() {
    let fakes = Fake::cluster(1);
    let client = client(&fakes).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    // Dropped with what publishes.
    let (goes_on, ended) = oneshot::channel::<()>();
    let serving = client.serve(web()).grace(Duration::ZERO).until(async move {
        let _ = stopped.await;
    });
    let serving = serving.publish(|registration| async move {
        let _goes_on = goes_on;
        registration.set_weight(7).await.expect("the registry is there");
        std::future::pending().await
    });
    let serving = tokio::spawn(serving.run(listener, |_, stop| stop));
    until("the weight is there", || held(&fakes[0]).is_some_and(|held| held.weight == 7)).await;
    stop.send(()).unwrap();
    assert!(within(ended).await.is_err(), "nothing is published any more");
    let served = within(serving).await.unwrap().unwrap();
    assert!(served.deregistered.is_ok() && held(&fakes[0]).is_none(), "{served:?}");
}

/// What is published in an outage, and that the process is draining, is not waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_publishes_in_an_outage_still_tries_to_deregister() {
    // S1.7, S2.13
    let fakes = Fake::cluster(1);
    let call_timeout = Duration::from_secs(2);
    let client = client_with(&fakes, call_timeout);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = client.serve(web()).grace(Duration::ZERO).until(async move {
        let _ = stopped.await;
    });
    let serving = serving.publish(|registration| async move {
        loop {
            let _made_later = registration.set_load(7).await;
        }
    });
    let serving = tokio::spawn(serving.run(listener, |_, stop| stop));
    until("it publishes", || held(&fakes[0]).is_some_and(|held| held.load == 7)).await;
    fakes[0].set(Mode::Hang);
    let registers = fakes[0].calls("register");
    until("it publishes in vain", || fakes[0].calls("register") > registers).await;
    let begun = Instant::now();
    stop.send(()).unwrap();
    let served = within(serving).await.unwrap().unwrap();
    let took = begun.elapsed();
    let Err(Error::Unreachable { tried, .. }) = served.deregistered else { panic!("{served:?}") };
    assert!(!tried.is_empty() && fakes[0].calls("deregister") > 0, "it was not tried");
    // It may take a second to say that it is draining. What is published would take one call more.
    let longest = Duration::from_secs(1) + call_timeout + Duration::from_millis(1_900);
    assert!(took < longest, "took {took:?}");
}
