//! Simulated readers: fetch everything from one node after the other, and ask nodes for the hash of
//! their state.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use quorate_proto::v1::admin_client::AdminClient;
use quorate_proto::v1::{Consistency, FetchRequest, NodeState, ResponseHeader, StatusRequest};
use rand::Rng;
use rand::rngs::StdRng;
use tokio::time::{sleep, timeout};
use tonic::Status;
use tonic::transport::Channel;

use super::history::{Answer, Hash, Read, Shared, map, now};
use super::net::{again, channel};
use super::nodes::Nodes;
use super::plan::{CALM, NODES, Plan};
use super::writes::timed;

const PATIENCE: Duration = Duration::from_millis(1_200);

/// Reads with both consistencies until the run stops.
pub(crate) async fn read(mut nodes: Nodes, mut rng: StdRng, notes: Shared) {
    sleep(Duration::from_millis(2_000)).await;
    while !notes.borrow().stop {
        for _ in 0..rng.random_range(1..=NODES) {
            nodes.next();
        }
        let linearizable = rng.random_bool(0.7);
        let min_revision = if linearizable { 0 } else { last_acknowledged(&notes) };
        let from = now();
        if let Err(status) = fetch(&nodes, linearizable, min_revision, &notes).await
            && from >= CALM
        {
            let line = format!("{from} ms: reading from n{}: {status}", nodes.node());
            notes.borrow_mut().late_failures.push(line);
        }
        sleep(Duration::from_millis(rng.random_range(20..250))).await;
    }
}

fn last_acknowledged(notes: &Shared) -> u64 {
    let notes = notes.borrow();
    let revisions = notes.calls.iter().rev().take(20).filter_map(|call| match call.answer {
        Answer::Done { revision, .. } => Some(revision),
        _ => None,
    });
    revisions.max().unwrap_or(0)
}

/// Fetches everything once and notes it down.
pub(crate) async fn fetch(
    nodes: &Nodes,
    linearizable: bool,
    min_revision: u64,
    notes: &Shared,
) -> Result<(), Status> {
    let from = now();
    let consistency = match linearizable {
        true => Consistency::Linearizable,
        false => Consistency::Local,
    };
    let request =
        FetchRequest { consistency: consistency.into(), min_revision, ..FetchRequest::default() };
    let ask = async || nodes.client().fetch(timed(request.clone())).await;
    let answer = timeout(PATIENCE, again(ask)).await;
    let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")));
    let answer = answer.inspect_err(|status| {
        notes.borrow_mut().failed(nodes.node(), "a read", status);
    });
    let answer = answer?.into_inner();
    let ResponseHeader { revision, age_ms, cluster_id, .. } = answer.header.unwrap_or_default();
    let (node, map) = (nodes.node(), map(&answer.services));
    notes.borrow_mut().cluster(cluster_id, node);
    let read = Read { from, to: now(), node, linearizable, min_revision, revision, age_ms, map };
    notes.borrow_mut().reads.push(read);
    Ok(())
}

/// Compares the nodes' hashes wherever two of them name the same log index, and notes the leaders.
pub(crate) async fn compare_hashes(plan: Arc<Plan>, notes: Shared) {
    let mut clients: Vec<(u64, AdminClient<Channel>)> =
        plan.nodes().map(|node| (node, AdminClient::new(channel(&plan, node)))).collect();
    while !notes.borrow().stop {
        for (node, client) in &mut clients {
            if *node > NODES && !notes.borrow().machines.contains(node) {
                continue;
            }
            let request = timed(StatusRequest { local_only: true });
            let Ok(Ok(answer)) = timeout(PATIENCE, client.status(request)).await else { continue };
            for status in answer.into_inner().members {
                let node = status.member.as_ref().map_or(0, |member| member.id);
                let (index, hash) = (status.state_hash_index, status.state_hash);
                let mut notes = notes.borrow_mut();
                let new = Hash { hash, seen: now(), by: BTreeSet::new() };
                let Hash { hash: known, by, .. } = notes.hashes.entry(index).or_insert(new);
                by.insert(node);
                if *known != hash {
                    let line = format!("state hash at {index}: {by:?} {known:x}, n{node} {hash:x}");
                    notes.violation(line);
                }
                if status.state() == NodeState::Leader {
                    let leader = *notes.leaders.entry(status.term).or_insert(node);
                    if leader != node {
                        let line = format!("n{leader} and n{node} lead in term {}", status.term);
                        notes.violation(line);
                    }
                }
            }
        }
        sleep(Duration::from_millis(250)).await;
    }
}
