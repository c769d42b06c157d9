//! `debug bundle` of a cluster that speaks TLS.

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
