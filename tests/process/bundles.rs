//! `debug bundle` of a cluster that speaks TLS, and of one of which no node answers.

use crate::cli::quorate;
use crate::cluster::{Cluster, Settings};
use crate::ports::free_port;

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_has_the_metrics_of_a_node_that_speaks_tls() {
    let http = format!("127.0.0.1:{}", free_port());
    let head = [(1, format!("http_listen = {http:?}"))].into();
    let settings = Settings { head, secured: true, ..Settings::default() };
    let cluster = Cluster::start_with(1, settings).await;
    cluster.leader().await;
    let secured = cluster.secured.as_ref().unwrap();
    let path = |name: &str| secured.path(name).display().to_string();
    let [ca, cert, key] = ["ca.crt", "client-tests.crt", "client-tests.key"].map(path);
    // Its addresses are in the registry a moment after it leads.
    let (nodes, identity) =
        (&cluster.nodes[0].clients, ["--ca", &ca, "--cert", &cert, "--key", &key]);
    let line = ["cluster", "status", "--wait", "--nodes", nodes];
    quorate(&[&line[..], &identity].concat()).await.expect(0);
    let bundle = async |name: &str, more: &[&str]| {
        let file = cluster.dir().join(name).display().to_string();
        let nodes = cluster.nodes[0].clients.clone();
        let line = ["debug", "bundle", &file, "--nodes", &nodes, "--http", &http, "--ca", &ca];
        let told = quorate(&[&line[..], more].concat()).await.expect(0);
        (String::from_utf8_lossy(&std::fs::read(&file).unwrap()).into_owned(), told)
    };
    let (whole, _) = bundle("whole.tar", &["--cert", &cert, "--key", &key]).await;
    assert!(whole.contains("\nquorate_raft_term "), "{whole}");
    assert!(whole.contains("\"health\": \"OK\""), "{whole}");
    // Without a certificate, the node lets nobody in, and the bundle says so.
    let (without, told) = bundle("without.tar", &[]).await;
    assert!(!without.contains("quorate_raft_term"), "{without}");
    let name = format!("without metrics/{}.txt", http.replace(':', "_"));
    assert!(told.out.contains(&name), "{}", told.out);
}

/// It is made all the same, of what is on this machine.
#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_is_made_although_no_node_answers() {
    let mut cluster = Cluster::start(1).await;
    cluster.nodes[0].kill();
    let path = |name: &str| cluster.dir().join(name).display().to_string();
    let (file, log, data) = (path("dead.tar"), path("node-1.log"), path("data-1"));
    let (nodes, http) = (&cluster.nodes[0].clients, format!("127.0.0.1:{}", free_port()));
    let line = ["debug", "bundle", &file, "--nodes", nodes, "--http", &http, "--timeout", "1s"];
    let told = quorate(&[&line[..], &["--log", &log, "--data-dir", &data]].concat()).await;
    let told = told.expect(0).out;
    let metrics = format!("metrics/{}.txt", http.replace(':', "_"));
    for name in ["status.json", "doctor.json", &metrics] {
        assert!(told.contains(&format!("without {name}: ")), "no {name}: {told}");
    }
    let bundle = String::from_utf8_lossy(&std::fs::read(&file).unwrap()).into_owned();
    for part in ["\"missing\"", "refused", "node starts", "journal-0"] {
        assert!(bundle.contains(part), "no {part}: {bundle}");
    }
}
