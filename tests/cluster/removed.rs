//! A node that was taken out: what it answers to clients and nodes, and that it does not come back
//! by itself.

use std::cell::Cell;
use std::fmt::Debug;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use quorate_node::{Audit, Start, Tunables};
use quorate_proto::peer::v1::StatusRequest as PeerStatusRequest;
use quorate_proto::v1::{
    AddNodeRequest, DeregisterRequest, ListMembersRequest, MemberRole, RemoveNodeRequest,
    ReplaceNodeRequest, SetOverrideRequest, Standing, StatusRequest, StatusResponse, UpdateRequest,
};
use tonic::{Code, Status};

use super::calls::{assert_refused, in_time, named, register, registration, renewal, spec, timed};
use super::founding::{from, peer};
use super::harness::{Cluster, eventually};
use super::stream::{Stream, subscribe_to_prefix};

/// A call that is refused is refused within this: below its deadline, which a node takes to be 5 s
/// where the caller says nothing.
const AT_ONCE: Duration = Duration::from_secs(4);

/// What it says of itself, when it says that it was removed.
pub(super) async fn says_removed(cluster: &Cluster, id: u64) -> StatusResponse {
    eventually("it says that it was removed", || async {
        let status = cluster.admin(id).status(StatusRequest { local_only: false }).await;
        let status = status.ok()?.into_inner();
        (status.condition.as_ref()?.standing() == Standing::Removed).then_some(status)
    })
    .await
}

/// It says that it was removed, and which nodes are members, of which it asks none.
async fn says_so(cluster: &Cluster, id: u64) {
    let status = says_removed(cluster, id).await;
    let reason = status.condition.unwrap().reason;
    for member in cluster.ids().into_iter().filter(|member| *member != id) {
        assert!(reason.contains(cluster.client_address(member)), "{member}: {reason}");
    }
    for member in status.members {
        assert!(!member.reachable && member.member.unwrap().id != id, "{}", member.error);
        assert!(member.error.contains("was removed, and does not ask"), "{}", member.error);
    }
}

async fn refused<T: Debug>(id: u64, call: impl Future<Output = Result<T, Status>>) {
    let (took, answer) = timed(call).await;
    assert_refused(answer, Code::Unavailable, &[&format!("node {id} is not a member")]);
    assert!(took < AT_ONCE, "{took:?}");
}

async fn refuses_its_clients(cluster: &Cluster, id: u64, lease: u64) {
    let mut registry = cluster.registry(id);
    let target = || Some(named("web", "a"));
    refused(id, registry.register(registration(vec![spec("web", "b")]))).await;
    let update = UpdateRequest { instance: target(), weight: Some(7), ..Default::default() };
    refused(id, registry.update(update)).await;
    let instances = target().into_iter().collect();
    let deregister = DeregisterRequest { instances, ..Default::default() };
    refused(id, registry.deregister(deregister)).await;
    refused(id, registry.renew(renewal([lease]))).await;
    refused(id, async {
        let renewals = tokio_stream::once(renewal([lease]));
        registry.clone().renew_stream(renewals).await?.into_inner().message().await
    })
    .await;
    let watch = Stream::open(&registry, subscribe_to_prefix(""));
    refused(id, async { watch.await.map(|_| ()) }).await;
    let (service, id_of) = ("web".to_owned(), "a".to_owned());
    let request = SetOverrideRequest { service, id: id_of, ..Default::default() };
    refused(id, cluster.admin(id).set_override(request)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_says_so_and_refuses_its_clients_at_once() {
    let mut cluster = Cluster::start(4).await;
    let gone = cluster.follower().await;
    let lease = register(&mut cluster.registry(gone), "web", "a").await.lease_id;
    let admin = cluster.client().await.admin();
    admin.remove_node(gone).await.expect("a removal");
    says_so(&cluster, gone).await;
    refuses_its_clients(&cluster, gone, lease).await;
    // It comes back, and finds itself taken out by its own log, or only by what the others say.
    cluster.stop(gone).await;
    cluster.restart(gone).await;
    says_so(&cluster, gone).await;
    refuses_its_clients(&cluster, gone, lease).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_that_starts_again_does_not_join_again() {
    let mut cluster = Cluster::start(3).await;
    cluster.add_joining(4, false).await;
    let voter = async |id| {
        let members = cluster.members(1).await;
        members.iter().find(|member| member.id == id).map(|member| member.role())
    };
    eventually("node 4 votes", || async {
        (voter(4).await == Some(MemberRole::Voter)).then_some(())
    })
    .await;
    register(&mut cluster.registry(4), "web", "a").await;
    let admin = cluster.client().await.admin();
    admin.remove_node(4).await.expect("a removal");
    says_so(&cluster, 4).await;
    cluster.stop(4).await;
    cluster.restart(4).await;
    says_so(&cluster, 4).await;
    assert_eq!(cluster.voters(1).await, [1, 2, 3]);
    assert_eq!(cluster.members(1).await.len(), 3);
}

/// The leader that takes it in dies before the others have heard of that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_taking_in_came_to_nothing_goes_on_joining() {
    let mut cluster = Cluster::start_cuttable(3, Tunables::default()).await;
    register(&mut cluster.registry(1), "web", "a").await;
    cluster.add_waiting(4).await;
    let peer_address = cluster.peer_address(4).to_owned();
    let knows_itself = async |cluster: &Cluster| {
        let members = cluster.registry(4).list_members(ListMembersRequest {}).await.ok()?;
        members.into_inner().members.iter().any(|member| member.id == 4).then_some(())
    };
    let leader = cluster.leader_of(&[1, 2, 3]).await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    others.iter().for_each(|id| cluster.cut_off(*id));
    let mut admin = cluster.admin(leader);
    let add = AddNodeRequest { id: 4, peer_address, learner_only: true };
    let adding = tokio::spawn(async move { admin.add_node(in_time(add)).await });
    eventually("node 4 has it in its log", || knows_itself(&cluster)).await;
    cluster.stop(leader).await;
    adding.abort();
    cluster.stop(4).await;
    others.iter().for_each(|id| cluster.reconnect(*id));
    assert!(others.contains(&cluster.leader_of(&others).await));
    assert_eq!(cluster.members(others[0]).await.len(), 3, "it was not committed");

    let nodes = others.iter().map(|id| cluster.client_address(*id).to_owned()).collect();
    cluster.config_mut(4).start = Start::Join { nodes, observer: false };
    cluster.restart(4).await;
    eventually("it votes", || async { cluster.voters(others[0]).await.contains(&4).then_some(()) })
        .await;
    register(&mut cluster.registry(4), "web", "b").await;
}

/// The leader by then is none of the nodes that it knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_node_learns_so_from_members_that_do_not_lead() {
    let mut cluster = Cluster::start(3).await;
    let gone = cluster.follower().await;
    cluster.stop(gone).await;
    cluster.add_waiting(4).await;
    let admin = cluster.client().await.admin();
    admin.replace_node(gone, 4, cluster.peer_address(4)).await.expect("a replacement");
    assert_eq!(admin.transfer_leader(Some(4)).await.expect("another leader"), 4);
    cluster.restart(gone).await;
    says_removed(&cluster, gone).await;
}

async fn replace(cluster: &Cluster, old_id: u64, new_id: u64) {
    let peer_address = cluster.peer_address(new_id).to_owned();
    let replace = ReplaceNodeRequest { old_id, new_id, peer_address };
    cluster.admin(old_id).replace_node(replace).await.expect("a replacement");
}

/// A node that led alone has the entry that took it out; no other that is removed ever gets that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_led_alone_and_was_replaced_stays_out_when_it_starts_again() {
    let mut cluster = Cluster::start(1).await;
    let lease = register(&mut cluster.registry(1), "web", "a").await.lease_id;
    cluster.add_waiting(5).await;
    // A node that is to join, by the addresses of nodes 1 and 5.
    cluster.add_joining(4, false).await;
    eventually("node 4 votes", || async { (cluster.voters(1).await == [1, 4]).then_some(()) })
        .await;
    cluster.admin(4).remove_node(RemoveNodeRequest { id: 1 }).await.expect("a removal");
    cluster.stop(1).await;
    eventually("node 4 leads", || async {
        (cluster.own_status(4).await?.header?.leader_id == 4).then_some(())
    })
    .await;
    replace(&cluster, 4, 5).await;
    for _ in 0..2 {
        says_so(&cluster, 4).await;
        refuses_its_clients(&cluster, 4, lease).await;
        assert_eq!(cluster.members(5).await.len(), 1);
        cluster.stop(4).await;
        cluster.restart(4).await;
    }
    says_so(&cluster, 4).await;
    assert_eq!(cluster.members(5).await.len(), 1);
}

/// The same for a founder.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_founder_that_led_alone_and_was_replaced_says_so_when_it_starts_again() {
    let mut cluster = Cluster::start(1).await;
    let lease = register(&mut cluster.registry(1), "web", "a").await.lease_id;
    cluster.add_waiting(2).await;
    replace(&cluster, 1, 2).await;
    for _ in 0..2 {
        says_so(&cluster, 1).await;
        refuses_its_clients(&cluster, 1, lease).await;
        cluster.stop(1).await;
        cluster.restart(1).await;
    }
}

/// Longer than the pause between any two questions of a node: what it had promised, it asks for
/// once a second.
const QUIET: Duration = Duration::from_millis(2_500);

/// Where each node has its audit log, which has a line for each call of a node that is refused.
fn audit_log(dir: &tempfile::TempDir, id: u64) -> PathBuf {
    dir.path().join(format!("audit-{id}"))
}

/// How many lines of refused nodes they have, all together.
fn refusals(dir: &tempfile::TempDir, ids: &[u64]) -> usize {
    let of = |id: &u64| {
        let text = std::fs::read_to_string(audit_log(dir, *id)).unwrap();
        text.matches("\"quorate.peer.v1.Peer/").count()
    };
    ids.iter().map(of).sum()
}

/// For a while nobody is refused anything.
async fn falls_silent(what: &str, refusals: impl Fn() -> usize) {
    let seen = Cell::new((refusals(), Instant::now()));
    eventually(what, || async {
        let (before, since) = seen.get();
        match refusals() {
            now if now == before => (since.elapsed() >= QUIET).then_some(()),
            now => {
                seen.set((now, Instant::now()));
                None
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_asks_no_more_until_it_is_a_member_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::prepare_founders(4).await;
    for id in 1..=4 {
        let file = audit_log(&dir, id);
        cluster.config_mut(id).audit = Some(Audit { file, required: false });
        cluster.restart(id).await;
    }
    cluster.settled().await;
    let header = cluster.own_status(1).await.unwrap().header.unwrap();
    let gone = cluster.follower().await;
    let others: Vec<u64> = (1..=4).filter(|id| *id != gone).collect();
    let refusals = || refusals(&dir, &others);
    // While it runs, and while it is down: then it learns of it by the others' word alone.
    for is_down in [false, true] {
        if is_down {
            cluster.stop(gone).await;
        }
        let admin = cluster.client().await.admin();
        admin.remove_node(gone).await.expect("a removal");
        if is_down {
            cluster.restart(gone).await;
        }
        says_removed(&cluster, gone).await;
        falls_silent("it asks no more", refusals).await;
        let before = refusals();
        let asks = from(PeerStatusRequest {}, header.cluster_id, gone, others[0]);
        let refused = peer(&cluster, others[0]).await.status(asks).await;
        assert_refused(refused, Code::FailedPrecondition, &["it is no member"]);
        eventually("a question would have its line", || async {
            (refusals() > before).then_some(())
        })
        .await;

        let address = cluster.peer_address(gone).to_owned();
        eventually("it is taken in, once it answers in time", || async {
            admin.add_node(gone, &address, false).await.ok()
        })
        .await;
        eventually("it is a member that asks its leader", || async {
            let condition = cluster.own_status(gone).await?.condition?;
            (condition.standing() == Standing::Member).then_some(())
        })
        .await;
        register(&mut cluster.registry(gone), "web", &format!("down-{is_down}")).await;
    }
}
