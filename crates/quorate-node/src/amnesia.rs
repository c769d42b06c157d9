//! A node whose disk was lost must not come back under its id: it has forgotten entries and votes that the cluster counts
//! on (Raft section 3: both must survive a restart). Before a node with an empty data directory opens its peer listener,
//! it asks the others whether they know it.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_proto::peer::v1::IdentifyRequest;
use quorate_proto::v1::registry_client::RegistryClient;
use quorate_proto::v1::{ListMembersRequest, MemberRole};
use tokio::time::timeout;
use tonic::Request;
use tonic::transport::Endpoint;

use crate::config::Start;
use crate::peers::{Lane, Peers};

/// How long each of the others has to answer; one that is not there counts as not knowing.
const ASK_TIMEOUT: Duration = Duration::from_millis(500);

/// Who says that a node of this id has run before; `None`: nobody who answered.
pub(crate) async fn who_knows(id: u64, start: &Start, peers: &Peers) -> Option<String> {
    match start {
        Start::Bootstrap(founders) => founder_knows(id, founders, peers).await,
        Start::Join { nodes, .. } => member_knows(id, nodes, peers).await,
        Start::Wait => None,
    }
}

async fn founder_knows(id: u64, founders: &BTreeMap<u64, String>, peers: &Peers) -> Option<String> {
    for (other, address) in founders.iter().filter(|(other, _)| **other != id) {
        let Ok(mut client) = peers.client(address, Lane::Control) else { continue };
        let request = peers.request(*other, IdentifyRequest { id }, Some(ASK_TIMEOUT));
        let answer = timeout(ASK_TIMEOUT, client.identify(request)).await;
        if let Ok(Ok(answer)) = answer
            && answer.get_ref().knows_caller
        {
            return Some(address.clone());
        }
    }
    None
}

async fn member_knows(id: u64, nodes: &[String], peers: &Peers) -> Option<String> {
    for address in nodes {
        let Ok(endpoint) = Endpoint::from_shared(format!("http://{address}")) else { continue };
        let channel = peers.net().connect(&endpoint.connect_timeout(ASK_TIMEOUT));
        let mut client = RegistryClient::new(channel);
        let mut request = Request::new(ListMembersRequest {});
        request.set_timeout(ASK_TIMEOUT);
        let Ok(Ok(answer)) = timeout(ASK_TIMEOUT, client.list_members(request)).await else {
            continue;
        };
        let members = &answer.get_ref().members;
        // A learner has no vote to forget, and may be one that was taken in but never reached.
        let voter = |role: i32| role == i32::from(MemberRole::Voter);
        if members.iter().any(|member| member.id == id && voter(member.role)) {
            return Some(address.clone());
        }
    }
    None
}
