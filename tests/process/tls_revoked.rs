//! What a node's key is worth that was stolen: as clients see the holder, who has no list.

use std::time::Duration;

use quorate_client::{Client, Consistency, Selection, Tls, Watch, WatchStatus};
use rcgen::SerialNumber;

use super::{Authority, Files, SOON, eventually, prepare, start_all};
use crate::cli::{Ran, quorate};

const STOLEN: u64 = 103;
/// No connection ends by itself: one to a thief would not.
const AGE_MS: u64 = 3_600_000;

async fn services(client: &Client) -> Result<(), String> {
    let listed = client.list_services("", Consistency::Linearizable).await;
    listed.map(drop).map_err(|error| error.to_string())
}

async fn eventually_refused(what: &str, client: &Client) {
    eventually(what, SOON, async || match services(client).await {
        Err(told) if told.contains("the node's certificate has been revoked") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

/// What is open ends, though nothing is called: the node would keep it.
async fn eventually_interrupted(watch: &Watch) {
    // Until the list is read, and then until the connection is probed.
    eventually("the watch ends", 2 * SOON, async || match watch.status() {
        WatchStatus::Interrupted { last_error, .. }
            if last_error.to_string().contains("has been revoked") =>
        {
            Ok(())
        }
        other => Err(format!("{other:?}")),
    })
    .await;
}

/// Only clients can refuse it: the node follows no list, and nobody has told it of one.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_the_list_does_not_believe_a_node_that_was_revoked() {
    let authority = Authority::new("ours");
    let (mut cluster, files) = prepare(&authority, AGE_MS).await;
    let stolen = authority.issue(&["spiffe://quorate/node/1"], |params| {
        params.serial_number = Some(SerialNumber::from(STOLEN));
    });
    files[0].put_all(&stolen, &authority.pem);
    start_all(&mut cluster, &authority).await;
    let own = Files::of(files[0].dir.parent().unwrap(), 9);
    own.put_all(&authority.client(), &authority.pem);
    let list = own.dir.join("ca.crl");
    let node = cluster.nodes[0].clients.clone();
    let with = |tls: Tls| {
        let of_node = Client::builder([&node]).member_refresh(None);
        of_node.call_timeout(Duration::from_secs(5)).tls(tls).build()
    };
    let following = || with(authority.tls().crl_file(&list));
    let unaware = with(authority.tls()).unwrap();

    own.put("ca.crl", &authority.list(1, &[]));
    let client = following().unwrap();
    services(&client).await.expect("nothing is revoked yet");
    let watch = client.watch(Selection::service("web"));
    watch.synced().await.unwrap();
    own.put("ca.crl", &authority.list(2, &[STOLEN]));
    eventually_interrupted(&watch).await;
    eventually_refused("the new list counts", &client).await;
    own.put("ca.crl", "-----BEGIN X509 CRL-----\nbm90IG9uZQ==\n-----END X509 CRL-----\n");
    let told = services(&client).await.expect_err("the list before stays");
    assert!(told.contains("has been revoked"), "{told}");
    let told = following().map(drop).unwrap_err().to_string();
    assert!(told.contains("ca.crl: list 1 in it cannot be read"), "{told}");

    // Made long ago by its own account, and overdue.
    own.put("ca.crl", &authority.list_until(2021, 3, &[STOLEN]));
    eventually_refused("a client that is made now", &following().unwrap()).await;
    services(&unaware).await.expect("who has no list cannot know");
    by_command(&own, &node).await;
    own.put("ca.crl", &authority.list(4, &[]));
    eventually("a certificate that was on hold", SOON, async || services(&client).await).await;
}

/// The same, for operators.
async fn by_command(own: &Files, node: &str) {
    let path = |name: &str| own.dir.join(name).display().to_string();
    let services = async |more: &[&str]| -> Ran {
        let (ca, cert, key) = (path("ca.crt"), path("node.crt"), path("node.key"));
        let of_node = ["services", "--timeout", "5s", "--nodes", node];
        let credentials = ["--ca", &ca, "--cert", &cert, "--key", &key];
        quorate(&[&of_node[..], &credentials, more].concat()).await
    };
    services(&[]).await.expect(0);
    let list = path("ca.crl");
    services(&["--crl", &list]).await.expect(3).says(&["the node's certificate has been revoked"]);
    let none = path("none.crl");
    services(&["--crl", &none]).await.expect(2).says(&["none.crl: No such file", "--crl"]);
}
