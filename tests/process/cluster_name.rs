//! A cluster with a name of its own: each place that says which cluster this is says so.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::cli::{ask, quorate};
use crate::cluster::{Cluster, Settings};
use crate::ports::free_port;

const SOON: Duration = Duration::from_secs(20);

/// The body of an answer.
async fn get(address: &str, path: &str) -> String {
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(SOON, asked).await.expect("it answers").unwrap();
    assert!(answer.starts_with("HTTP/1.0 200 "), "{answer}");
    answer.split_once("\r\n\r\n").expect("a body").1.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_name_of_a_cluster_is_told_wherever_one_looks() {
    let http = format!("127.0.0.1:{}", free_port());
    let head = format!("cluster_name = 'prod'\nhttp_listen = '{http}'\n");
    let settings = Settings { head: BTreeMap::from([(1, head)]), ..Settings::default() };
    let cluster = Cluster::start_with(1, settings).await;

    let metrics = get(&http, "/metrics").await;
    let built = metrics.lines().find(|line| line.starts_with("quorate_build_info{")).unwrap();
    assert!(built.contains("cluster=\"prod\"") && built.ends_with(" 1"), "{built}");
    let status: serde_json::Value =
        serde_json::from_str(&get(&http, "/api/v1/status").await).unwrap();
    assert_eq!(status["cluster_name"], "prod", "{status}");
    let file = cluster.dir().join("registry.backup").display().to_string();
    ask(&cluster.all(), &format!("cluster backup {file}")).await.expect(0);
    let told = quorate(&["backup", "inspect", &file, "-o", "json"]).await.expect(0).json();
    assert_eq!(told["cluster_name"], "prod", "{told}");
    let told = quorate(&["backup", "inspect", &file]).await.expect(0).out;
    assert!(
        told.lines().any(|line| line.starts_with("cluster ") && line.contains("prod")),
        "{told}"
    );
}
