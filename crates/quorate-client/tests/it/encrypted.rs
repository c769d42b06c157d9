//! Nodes that are reached by TLS: what the client takes for a node, what it says when it does not,
//! and how it gets through a change of every certificate.

use std::path::Path;
use std::time::Duration;

use quorate_client::{AddressFault, Client, ClientBuilder, Error, Tls, WatchEvent};
use quorate_proto::v1::{Instance, InstanceStatus};
use rustls::SupportedProtocolVersion;
use rustls::version::{TLS12, TLS13};

use crate::certificates::{Authority, Pair, server};
use crate::fake::{Fake, until, within};

type Versions = &'static [&'static SupportedProtocolVersion];
const BOTH: Versions = &[&TLS13, &TLS12];
const EACH: [Versions; 2] = [&[&TLS13], &[&TLS12]];

fn builder(fakes: &[Fake], tls: Tls) -> ClientBuilder {
    Client::builder(fakes.iter().map(Fake::address))
        .in_order(true)
        .member_refresh(None)
        .attempt_timeout(Duration::from_secs(2))
        .call_timeout(Duration::from_secs(5))
        .tls(tls)
}

fn put(fake: &Fake, id: &str) {
    let (service, id) = ("s".to_owned(), id.to_owned());
    let status = InstanceStatus::Up as i32;
    fake.state().put(Instance { service, id, status, ..Instance::default() });
}

/// The client's own certificate.
fn identity(tls: Tls, pair: &Pair) -> Tls {
    tls.identity_pem(pair.certificate.as_str(), pair.key.as_str())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_encrypted_and_both_ends_show_who_they_are() {
    let ca = Authority::new("ca");
    for versions in EACH {
        let mut fake = Fake::start();
        let node = ca.issue(&["127.0.0.1", "localhost"]);
        fake.secure(server(&node, Some(&ca.pem()), versions));
        put(&fake, "a");
        let port = fake.address.port();
        let tls = identity(Tls::new().ca_pem(ca.pem()), &ca.issue(&["client"]));
        for address in [format!("localhost:{port}"), format!("https://127.0.0.1:{port}/")] {
            let client = Client::builder([&address]).member_refresh(None).tls(tls.clone());
            let fetched = client.build().unwrap().fetch("s").await;
            assert_eq!(fetched.unwrap().instances.len(), 1, "{address}");
        }
        let fault = |address: &str, builder: fn(ClientBuilder, Tls) -> ClientBuilder| match builder(
            Client::builder([address]),
            tls.clone(),
        )
        .build()
        .unwrap_err()
        {
            Error::InvalidAddress { fault, .. } => fault,
            error => panic!("{error}"),
        };
        let with = |builder: ClientBuilder, tls| builder.tls(tls);
        assert_eq!(fault("http://h:1", with), AddressFault::Plaintext);
        assert_eq!(fault("https://h:1", |builder, _| builder), AddressFault::Tls);
    }
}

/// A call is told this about the only node. The node's answer may be lost with the connection,
/// which it closes at once: then it is asked again.
async fn is_said(builder: ClientBuilder, words: &str) {
    let client = builder.call_timeout(Duration::from_millis(600)).build().unwrap();
    let mut said = Vec::new();
    for _ in 0..10 {
        let told = client.fetch("s").await.unwrap_err().to_string();
        if told.contains(words) {
            assert!(!told.contains("alert") && !told.contains("transport"), "{told}");
            return;
        }
        said.push(told);
    }
    panic!("not \"{words}\": {said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_said_in_words() {
    let (ca, other) = (Authority::new("ca"), Authority::new("other"));
    let good = ca.issue(&["127.0.0.1"]);
    let trusting = || Tls::new().ca_pem(ca.pem());
    let said = async |node: &Pair, clients, versions: Versions, tls, words: &str| {
        let mut fakes = [Fake::start()];
        fakes[0].secure(server(node, clients, versions));
        is_said(builder(&fakes, tls), words).await;
    };
    for (node, tls, words) in [
        (&other.issue(&["127.0.0.1"]), trusting(), "of a CA that this client does not trust"),
        (&ca.issue_until(2020, &["127.0.0.1"]), trusting(), "the node's certificate has expired"),
        (&ca.issue(&["10.0.0.1"]), trusting(), "is for 10.0.0.1, and not for \"127.0.0.1\""),
        (&good, trusting().server_name("prod.example"), "not for \"prod.example\""),
    ] {
        said(node, None, BOTH, tls, words).await;
    }
    let named = ca.issue(&["prod.example"]);
    let mut fakes = [Fake::start()];
    fakes[0].secure(server(&named, None, BOTH));
    let client = builder(&fakes, trusting().server_name("prod.example")).build().unwrap();
    assert!(matches!(client.fetch("s").await, Err(Error::UnknownService { .. })));

    let theirs = ca.pem();
    let expired = identity(trusting(), &ca.issue_until(2020, &["client"]));
    let stranger = identity(trusting(), &other.issue(&["client"]));
    for versions in EACH {
        let clients = Some(theirs.as_str());
        said(&good, clients, versions, expired.clone(), "this client's certificate has expired")
            .await;
        said(&good, clients, versions, stranger.clone(), "not trust the CA of this client's").await;
    }
    let wanted = "the node asks for a client certificate, and none was given";
    said(&good, Some(&theirs), EACH[0], trusting(), wanted).await;

    let mut fakes = [Fake::start()];
    fakes[0].secure(server(&good, None, BOTH));
    let plaintext = Client::builder([fakes[0].address()]).member_refresh(None);
    is_said(plaintext, "the node wants TLS").await;
    is_said(builder(&[Fake::start()], trusting()), "does not speak TLS").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_a_bad_certificate_is_passed_over() {
    let (ca, other) = (Authority::new("ca"), Authority::new("other"));
    let mut fakes = Fake::cluster(2);
    fakes[0].secure(server(&other.issue(&["127.0.0.1"]), None, BOTH));
    fakes[1].secure(server(&ca.issue(&["127.0.0.1"]), None, BOTH));
    put(&fakes[1], "a");
    let client = builder(&fakes, Tls::new().ca_pem(ca.pem())).build().unwrap();
    assert_eq!(client.fetch("s").await.unwrap().instances.len(), 1);
}

fn write(dir: &Path, pair: &Pair) {
    std::fs::write(dir.join("key"), &pair.key).unwrap();
    std::fs::write(dir.join("certificate"), &pair.certificate).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_through_a_change_of_every_certificate_and_of_the_ca() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let both = format!("{}{}", old.pem(), new.pem());
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    std::fs::write(file("ca"), old.pem()).unwrap();
    write(dir.path(), &old.issue(&["client"]));
    let mut fakes = [Fake::start()];
    fakes[0].secure(server(&old.issue(&["127.0.0.1"]), Some(&old.pem()), BOTH));
    let tls = Tls::new().ca_file(file("ca")).identity_files(file("certificate"), file("key"));
    let client = builder(&fakes, tls).build().unwrap();
    put(&fakes[0], "a0");
    let mut watch = client.watch("s");
    let first = within(watch.next()).await;
    assert!(matches!(first, Some(WatchEvent::Snapshot(view)) if view.len() == 1));

    let mut number = 0;
    let mut goes_on = async |fakes: &mut [Fake; 1], config, what: &str| {
        fakes[0].secure(config);
        number += 1;
        let id = format!("a{number}");
        put(&fakes[0], &id);
        let event = within(watch.next()).await;
        assert!(matches!(event, Some(WatchEvent::Added(added)) if added.id == id), "{what}");
        assert_eq!(client.fetch("s").await.unwrap().instances.len(), number + 1, "{what}");
    };
    // The client's certificate alone.
    write(dir.path(), &old.issue(&["client again"]));
    goes_on(&mut fakes, server(&old.issue(&["127.0.0.1"]), Some(&old.pem()), BOTH), "new pairs")
        .await;
    // The CA: first all trust both, then all have new certificates, then the old one is gone.
    std::fs::write(file("ca"), &both).unwrap();
    goes_on(&mut fakes, server(&old.issue(&["127.0.0.1"]), Some(&both), BOTH), "both").await;
    write(dir.path(), &new.issue(&["client"]));
    goes_on(&mut fakes, server(&new.issue(&["127.0.0.1"]), Some(&both), BOTH), "issued anew").await;
    std::fs::write(file("ca"), new.pem()).unwrap();
    goes_on(&mut fakes, server(&new.issue(&["127.0.0.1"]), Some(&new.pem()), BOTH), "new").await;
    // What cannot be used changes nothing.
    std::fs::write(file("key"), new.issue(&["another"]).key).unwrap();
    std::fs::write(file("ca"), &new.pem()[..100]).unwrap();
    goes_on(&mut fakes, server(&new.issue(&["127.0.0.1"]), Some(&new.pem()), BOTH), "half").await;

    // A node that is not of the new CA is not spoken to any more.
    std::fs::write(file("ca"), new.pem()).unwrap();
    write(dir.path(), &new.issue(&["client"]));
    fakes[0].secure(server(&old.issue(&["127.0.0.1"]), Some(&both), BOTH));
    let refused = client.fetch("s").await.unwrap_err().to_string();
    assert!(refused.contains("a CA that this client does not trust"), "{refused}");
    until("the watch says so", || {
        format!("{:?}", watch.status()).contains("a CA that this client does not trust")
    })
    .await;
}
