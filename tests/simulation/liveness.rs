//! After the faults: the cluster works again, at once and everywhere. Drives the last phase, and
//! judges it.

use std::time::Duration;

use futures_util::future::join_all;
use quorate_proto::v1::{
    InstanceRef, InstanceSpec, ListMembersRequest, RegisterRequest, UpdateRequest,
};
use tokio::time::sleep;

use super::history::{Map, Notes, Shared, now};
use super::membership::Members;
use super::net::again;
use super::nodes::Nodes;
use super::plan::{CALM, END, HEALED, Ms};
use super::reader::fetch;
use super::writes::timed;

/// Enough writes for one more mark at which nodes keep the hash of their state (every 256 log
/// entries).
const WRITES: u32 = 280;
const WRITERS: u32 = 20;

/// What the burst registers is in a service of its own.
const BURST: &str = "burst";

/// Whether a "service/id" is of the burst, whose writes are not noted down one by one.
pub(crate) fn is_of_burst(key: &str) -> bool {
    key.split_once('/').is_some_and(|(service, _)| service == BURST)
}

/// Many writes at a time when all must work.
pub(crate) async fn burst(mut nodes: Nodes, notes: Shared) {
    while now() < CALM + 1_000 {
        sleep(Duration::from_millis(100)).await;
    }
    nodes.leave_removed();
    let spec = |writer: u32| InstanceSpec {
        service: BURST.to_owned(),
        id: format!("b{writer}"),
        endpoints: [("http".to_owned(), "http://10.0.0.2:80".to_owned())].into(),
        ..InstanceSpec::default()
    };
    join_all((0..WRITERS).map(|writer| {
        let (client, notes) = (nodes.client(), notes.clone());
        async move {
            let instances = vec![spec(writer)];
            let request = RegisterRequest { instances, ttl_ms: 60_000, ..<_>::default() };
            let register = async || client.clone().register(timed(request.clone())).await;
            let mut failed = again(register).await.err();
            for write in 0..WRITES / WRITERS {
                let (service, id) = (BURST.to_owned(), format!("b{writer}"));
                let instance = Some(InstanceRef { service, id, incarnation: 0 });
                let weight = Some(1_000 + write);
                let request = UpdateRequest { instance, weight, ..<_>::default() };
                let update = async || client.clone().update(timed(request.clone())).await;
                failed = failed.or(again(update).await.err());
            }
            if let Some(status) = failed {
                let line = format!("{} ms: a write of the burst: {status}", now());
                notes.borrow_mut().late_failures.push(line);
            }
        }
    }))
    .await;
    notes.borrow_mut().note("the burst is over".to_owned());
}

/// When all clients have stopped: what each node has, read linearizably, and the members as it
/// lists them. All at once: no client renews any more.
pub(crate) async fn last_look(nodes: Nodes, notes: Shared) {
    while now() < END + 300 {
        sleep(Duration::from_millis(50)).await;
    }
    let members = notes.borrow().members.clone();
    join_all(members.into_iter().map(|node| {
        let (mut nodes, notes) = (nodes.clone(), notes.clone());
        async move {
            nodes.go_to(node);
            if let Err(status) = fetch(&nodes, true, 0, &notes).await {
                let line = format!("the last read from n{node} failed: {status}");
                notes.borrow_mut().violation(line);
            }
            let list = async || nodes.client().list_members(timed(ListMembersRequest {})).await;
            match again(list).await {
                Ok(told) => {
                    let members = Members::told(&told.into_inner().members);
                    notes.borrow_mut().last_members.insert(node, members);
                }
                Err(status) => {
                    let line = format!("n{node} does not list its members at the end: {status}");
                    notes.borrow_mut().violation(line);
                }
            }
        }
    }))
    .await;
}

/// The last reads of each node: after `END`.
pub(crate) fn last_maps(notes: &Notes) -> impl Iterator<Item = (u64, &Map)> {
    notes
        .reads
        .iter()
        .filter(|read| read.from >= END + 300 && read.linearizable)
        .map(|read| (read.node, &read.map))
}

/// Every attempt after `CALM` succeeds; watchers are where the cluster is; hashes are compared
/// after the healing.
pub(crate) fn check(notes: &Notes) -> Vec<String> {
    let mut wrong: Vec<String> =
        notes.late_failures.iter().map(|line| format!("failed in the calm: {line}")).collect();
    let burst_end: Ms = notes.told.last_key_value().map_or(0, |(_, told)| told[0].1);
    if burst_end < HEALED {
        wrong.push("no write was seen after the healing".to_owned());
    }
    if last_maps(notes).count() != notes.members.len() {
        wrong.push("not every node could be read at the end".to_owned());
    }
    let settled = notes.told.iter().rev().find(|(_, told)| told[0].1 + 1_500 < END);
    let settled = settled.map_or(0, |(revision, _)| *revision);
    for (name, (position, _)) in &notes.watchers {
        if *position < settled {
            wrong.push(format!("{name} is at {position}, others were at {settled} long before"));
        }
    }
    wrong
}
