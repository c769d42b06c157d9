//! Nodes that show each other another certificate than they show to clients, of another authority.

use quorate_client::{Client, Consistency, InstanceBuilder, Registration};
use rcgen::date_time_ymd;
use rustix::process::Signal;

use super::ends::configure;
use super::{Authority, Cluster, Files, Issued, SOON, eventually, is_served, prepare};

impl Files {
    fn put_peer(&self, issued: &Issued) {
        self.put("peer.key", &issued.key);
        self.put("peer.crt", &issued.cert);
    }
}

/// What the node says last of its files.
async fn says(cluster: &Cluster, what: &str, words: &[&str]) {
    eventually(what, SOON, async || {
        let log = cluster.nodes[0].log_text();
        match log.lines().rfind(|line| line.contains("TLS:")) {
            Some(line) if words.iter().all(|word| line.contains(word)) => Ok(()),
            last => Err(format!("{last:?}")),
        }
    })
    .await;
}

/// Three nodes: their certificates for clients name hosts alone.
async fn start(nodes: &Authority, hosts: &Authority) -> (Cluster, Vec<Files>, Client) {
    let (mut cluster, files) = prepare(hosts, 3_600_000).await;
    for (id, files) in (1..).zip(&files) {
        files.put_all(&hosts.issue(&[], |_| {}), &hosts.pem);
        files.put_peer(&nodes.node(id));
        files.put("peer-ca.crt", &nodes.pem);
        files.put("ca.crl", &hosts.list(1, &[]));
    }
    configure(&cluster, |id, text| {
        let path = |name: &str| files[id as usize - 1].dir.join(name).display().to_string();
        let more = format!(
            "[tls]\npeer_cert = '{}'\npeer_key = '{}'\npeer_ca = '{}'\ncrl = '{}'",
            path("peer.crt"),
            path("peer.key"),
            path("peer-ca.crt"),
            path("ca.crl"),
        );
        text.replace("[tls]", &more)
    });
    cluster.nodes.iter_mut().for_each(|node| node.start());
    let client = cluster.client().tls(hosts.tls()).build().unwrap();
    eventually("the cluster answers", SOON, async || {
        client.list_services("", Consistency::Linearizable).await.map_err(|error| error.to_string())
    })
    .await;
    (cluster, files, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_may_show_each_other_a_certificate_of_their_own() {
    let (nodes, hosts) = (Authority::new("nodes"), Authority::new("hosts"));
    let (mut cluster, files, client) = start(&nodes, &hosts).await;
    let instance = InstanceBuilder::new("web", "a").endpoint("http", "http://h:1");
    let handle = client.register(Registration::new(instance)).await.unwrap();
    let (to_clients, to_peers) = (cluster.nodes[0].clients.clone(), cluster.nodes[0].peers());
    let (of_host, of_node) = (hosts.client(), nodes.node(2));
    let of_host_for_node = hosts.node(2);
    for (what, address, ca, shown, taken) in [
        ("a client", &to_clients, &hosts, &of_host, true),
        ("a node among clients", &to_clients, &hosts, &of_node, false),
        ("a node", &to_peers, &nodes, &of_node, true),
        ("a client among nodes", &to_peers, &nodes, &of_host, false),
        (
            "one that the clients' authority calls a node",
            &to_peers,
            &nodes,
            &of_host_for_node,
            false,
        ),
        ("one that expects the other certificate", &to_peers, &hosts, &of_node, false),
    ] {
        let served = is_served(address, &ca.pem, Some(shown)).await;
        assert_eq!(served.is_ok(), taken, "{what}: {served:?}");
    }

    // Both are read again, and judged each by what it is for.
    let old = hosts.issue(&[], |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    });
    let good = nodes.node(1);
    for (what, words) in [
        (
            "another node's",
            &["cannot be used", "peer.crt", "must name spiffe://quorate/node/1"][..],
        ),
        ("another authority's", &["cannot be used", "peer.crt", "UnknownIssuer"]),
        ("one for clients that has expired", &["cannot be used", "node.crt", "has expired"]),
        ("new ones", &["new certificates are in use"]),
    ] {
        match what {
            "another node's" => files[0].put_peer(&nodes.node(2)),
            "another authority's" => files[0].put_peer(&hosts.node(1)),
            "one for clients that has expired" => {
                files[0].put_peer(&good);
                files[0].put_all(&old, &hosts.pem);
            }
            _ => files[0].put_all(&hosts.issue(&[], |_| {}), &hosts.pem),
        }
        cluster.nodes[0].process().signal(Signal::HUP);
        says(&cluster, what, words).await;
    }
    handle.set_weight(7).await.expect("the nodes go on");
}

/// Handshakes would refuse such a list, and with it every client.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_its_authority_did_not_sign_changes_nothing() {
    let (nodes, hosts) = (Authority::new("nodes"), Authority::new("hosts"));
    let (mut cluster, files, _client) = start(&nodes, &hosts).await;
    files[0].put("ca.crl", &Authority::new("hosts").list(2, &[]));
    cluster.nodes[0].process().signal(Signal::HUP);
    says(&cluster, "a forged list", &["cannot be used", "ca.crl", "not signed by \"hosts\""]).await;
    let address = cluster.nodes[0].clients.clone();
    is_served(&address, &hosts.pem, Some(&hosts.client())).await.expect("the list before stays");
    files[0].put("ca.crl", &hosts.list(2, &[]));
    cluster.nodes[0].process().signal(Signal::HUP);
    says(&cluster, "its own", &["new certificates are in use"]).await;
}
