//! A cluster that answers, but slowly.

use std::time::Duration;

use quorate_client::{Client, Consistency, InstanceBuilder, Registration, RegistrationState, Tls};
use rustls::version::TLS13;

use crate::certificates::{Authority, server};
use crate::fake::{Fake, Mode, until_long, within_long};

/// More than a node is given at first and after one round, and much less than after two.
const SLOW: Duration = Duration::from_millis(450);

fn orders(id: &str) -> InstanceBuilder {
    InstanceBuilder::new("orders", id).endpoint("http", "http://h:1")
}

/// A cluster that takes longer for everything than a node is given at first: a call that asked
/// again and again, and never waited for an answer, would only add to what the cluster has to do.
#[tokio::test]
async fn a_cluster_that_is_slow_is_waited_for() {
    let fakes = Fake::cluster(3);
    fakes.iter().for_each(|fake| fake.set(Mode::Slow(SLOW)));
    let client = Client::builder(fakes.iter().map(Fake::address))
        .member_refresh(None)
        .attempt_timeout(Duration::from_millis(200))
        .call_timeout(Duration::from_secs(10))
        .build()
        .unwrap();
    let ttl = Duration::from_secs(6);
    let first = Registration::new(orders("a")).ttl(ttl);
    let first = client.register(first).await.expect("it was waited for");
    let second = client.register_in_background(Registration::new(orders("b")).ttl(ttl)).unwrap();
    until_long("the second is registered", || {
        matches!(second.state(), RegistrationState::Registered(_))
    })
    .await;
    // Renewals are waited for, too.
    let lease = first.registered().await.unwrap().id;
    for times in 1..=3 {
        until_long("it is renewed", || {
            fakes[0].state().renewals.get(&lease).is_some_and(|renewals| renewals.len() >= times)
        })
        .await;
    }
    until_long("renewals are answered", || {
        matches!(first.state(), RegistrationState::Registered(_))
    })
    .await;
    assert_eq!(first.registered().await.unwrap().id, lease);
}

/// Nor would a stream ever begin that is given up each time before it was answered.
#[tokio::test]
async fn views_and_watches_wait_for_a_cluster_that_is_slow() {
    let fakes = Fake::cluster(3);
    fakes.iter().for_each(|fake| fake.set(Mode::Slow(SLOW)));
    let client = Client::builder(fakes.iter().map(Fake::address))
        .member_refresh(None)
        .attempt_timeout(Duration::from_millis(200))
        .build()
        .unwrap();
    let (view, watch) = (client.discover("orders").unwrap(), client.watch("orders"));
    within_long(view.synced()).await;
    within_long(watch.synced()).await.unwrap();
    // As many nodes were asked in vain as it takes to find out, by both: 14, and some more on a
    // busy machine.
    assert!(fakes[0].calls("watch") <= 20, "{}", fakes[0].calls("watch"));
}

/// After the death of a node, the others have the handshakes of all its clients to make.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_that_are_slow_are_waited_for() {
    let ca = Authority::new("ca");
    let mut fakes = Fake::cluster(3);
    for fake in &mut fakes {
        let tls = server(&ca.issue(&["127.0.0.1"]), None, &[&TLS13]);
        fake.secure_slowly(tls, SLOW);
    }
    let client = Client::builder(fakes.iter().map(Fake::address))
        .member_refresh(None)
        .attempt_timeout(Duration::from_millis(200))
        .tls(Tls::new().ca_pem(ca.pem()))
        .build()
        .unwrap();
    within_long(client.list_services("", Consistency::Local)).await.unwrap();
    within_long(client.discover("orders").unwrap().synced()).await;
}
