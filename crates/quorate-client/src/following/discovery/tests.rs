//! What the views of a client have in common, where no node is needed.

use std::sync::Barrier;

use super::*;
use crate::Client;

const TOGETHER: usize = 4;

fn client() -> Client {
    Client::builder(["127.0.0.1:1"]).member_refresh(None).build().unwrap()
}

fn followed(view: &Discovery) -> usize {
    view.inner.hub.shared.topics().by_name.len()
}

/// Nodes refuse longer lists.
#[tokio::test]
async fn whoever_adds_at_once_no_stream_follows_more_than_nodes_take() {
    let client = client();
    let view = |name: String| client.discover(name.as_str()).unwrap();
    let held: Vec<_> = (1..limits::SERVICES_PER_CALL).map(|at| view(format!("s{at}"))).collect();
    for round in 0..500 {
        let together = Barrier::new(TOGETHER);
        let add = |at| {
            together.wait();
            view(format!("r{round}-{at}"))
        };
        let added: Vec<Discovery> = std::thread::scope(|scope| {
            let add = &add;
            let adding: Vec<_> = (0..TOGETHER).map(|at| scope.spawn(move || add(at))).collect();
            adding.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let most = added.iter().chain(&held[..1]).map(followed).max();
        assert_eq!(most, Some(limits::SERVICES_PER_CALL), "in round {round}");
    }
}

/// Which would be asking for all.
#[tokio::test]
async fn an_audit_of_nothing_asks_for_nothing() {
    let client = client();
    let view = client.discover("s").unwrap();
    assert!(!audit::finds_difference(&view.inner.hub.shared).await);
    assert_eq!(client.counters().calls, 0);
}
