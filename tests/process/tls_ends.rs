//! What a certificate is worth once it should be worth nothing any more.

use quorate_client::Admin;
use quorate_proto::v1::admin_client::AdminClient;
use quorate_proto::v1::{AddNodeRequest, Member};
use tonic::Code;

use super::{Authority, Cluster, SOON, channel, eventually, prepare};

/// An entry of the access file.
fn rule(spiffe: &str, role: &str) -> String {
    format!("[[certificate]]\nspiffe = '{spiffe}'\nrole = '{role}'\n")
}

/// Three nodes that follow an access file.
async fn guarded(authority: &Authority, access: &str) -> Cluster {
    let (mut cluster, _files) = prepare(authority, 3_600_000).await;
    let file = cluster.dir().join("access.toml");
    std::fs::write(&file, access).unwrap();
    for id in 1..=3 {
        let config = cluster.dir().join(format!("node-{id}.toml"));
        let text = std::fs::read_to_string(&config).unwrap();
        std::fs::write(config, format!("access = '{}'\n{text}", file.display())).unwrap();
    }
    cluster.nodes.iter_mut().for_each(|node| node.start());
    cluster
}

async fn members(admin: &Admin) -> Result<Vec<Member>, String> {
    let status = admin.status(false).await.map_err(|error| error.to_string())?;
    Ok(status.members.into_iter().filter_map(|status| status.member).collect())
}

/// A node that was taken out still has its certificate, by which a new node is taken in.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_taken_out_does_not_take_itself_in_again() {
    let authority = Authority::new("ours");
    let cluster = guarded(&authority, &rule("spiffe://quorate/client/orders", "admin")).await;
    let client = cluster.client().tls(authority.tls()).build().unwrap();
    let admin = client.admin();
    eventually("all are known", SOON, async || {
        let members = members(&admin).await?;
        match members.iter().filter(|member| !member.client_address.is_empty()).count() {
            3 => Ok(()),
            known => Err(format!("{known}")),
        }
    })
    .await;
    admin.remove_node(3).await.unwrap();
    let peer_address = cluster.nodes[2].peer_address();
    let add = |id| AddNodeRequest { id, peer_address: peer_address.clone(), learner_only: true };
    let by =
        |id| AdminClient::new(channel(&cluster.nodes[0].clients, &authority, &authority.node(id)));
    let refused = by(3).add_node(add(3)).await.expect_err("it is taken in");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().contains("node 3 was taken out"), "{refused:?}");
    assert!(refused.message().contains("cluster add 3"), "{refused:?}");
    assert_eq!(members(&admin).await.unwrap().len(), 2);
    // One that was never in is let in by the same right: here the address is another node's.
    let refused = by(4).add_node(add(4)).await.expect_err("it is node 3");
    assert!(refused.message().contains("found: 3, wanted: 4"), "{refused:?}");
    // Whoever may change the members may take it in again.
    admin.add_node(3, &peer_address, false).await.unwrap();
    let refused = by(3).add_node(add(3)).await.err();
    assert!(refused.is_none(), "a member's own call changes nothing: {refused:?}");
}
