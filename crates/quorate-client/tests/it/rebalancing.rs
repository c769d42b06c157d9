//! Streams that move to nodes that were added: some of them, and unnoticed.

use std::time::Duration;

use quorate_client::{
    Client, Discovery, DiscoveryEvent, InstanceBuilder, Listener, Registration, RegistrationHandle,
    WatchEvent, WatchStatus,
};
use quorate_proto::v1::{Instance, InstanceStatus};

use crate::fake::{Fake, Mode, until, within};

/// A third of them moves: fewer than three once in 50,000 times.
const CLIENTS: usize = 40;
const TTL: Duration = Duration::from_secs(6);
const REFRESH: Duration = Duration::from_millis(100);

/// A process that registers itself and follows a service.
struct Process {
    client: Client,
    handle: RegistrationHandle,
    view: Discovery,
    listener: Listener,
}

async fn client(fakes: &[Fake]) -> Client {
    Client::builder(fakes.iter().map(Fake::address))
        .in_order(true)
        .member_refresh(Some(REFRESH))
        .attempt_timeout(Duration::from_secs(20))
        .call_timeout(Duration::from_secs(60))
        .build()
        .unwrap()
}

async fn process(number: usize, fakes: &[Fake]) -> Process {
    let client = client(fakes).await;
    let instance = InstanceBuilder::new("p", format!("p{number}")).endpoint("http", "http://h:1");
    let handle = client.register(Registration::new(instance).ttl(TTL)).await.unwrap();
    let view = client.discover("s").unwrap();
    within(view.synced()).await;
    let listener = view.listen();
    Process { client, handle, view, listener }
}

/// Two nodes, and clients that know of them.
async fn two_of(fakes: &[Fake]) -> Vec<Process> {
    fakes[0].state().members = fakes[..2].iter().map(Fake::address).collect();
    let mut processes = Vec::new();
    for number in 0..CLIENTS {
        processes.push(process(number, &fakes[..2]).await);
    }
    until("each knows the members", || fakes[0].calls("list members") >= 2 * CLIENTS).await;
    processes
}

fn add_the_third(fakes: &[Fake]) {
    fakes[0].state().members.push(fakes[2].address());
}

fn put(fake: &Fake, weight: u32) {
    let (service, id) = ("s".to_owned(), "a".to_owned());
    let status = InstanceStatus::Up as i32;
    fake.state().put(Instance { service, id, status, weight, ..Instance::default() });
}

/// Leases whose last renewal came to this node.
fn renewed_on(fakes: &[Fake], node: usize) -> usize {
    let state = fakes[0].state();
    state.renewals.values().filter(|all| all.last().is_some_and(|(at, _)| *at == node)).count()
}

/// No registration was given up, and none came near the end of its lease.
async fn all_renewed_in_time(fakes: &[Fake]) {
    until("each has renewed twice", || {
        let state = fakes[0].state();
        state.renewals.len() == CLIENTS && state.renewals.values().all(|all| all.len() >= 2)
    })
    .await;
    let state = fakes[0].state();
    assert_eq!(state.calls["register"], CLIENTS);
    for (lease, all) in &state.renewals {
        let gaps = all.windows(2).map(|two| two[1].1 - two[0].1);
        let longest = gaps.max().unwrap_or_default();
        assert!(longest < TTL, "lease {lease} was not renewed for {longest:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn added_nodes_get_their_share_of_the_streams() {
    // S1.2, S2.7
    let fakes = Fake::cluster(3);
    let mut processes = two_of(&fakes).await;
    assert_eq!(fakes[0].state().watchers_of(2), 0);
    let mut weight = 0;
    let mut change = || {
        weight += 1;
        put(&fakes[0], weight);
        weight
    };
    change();
    add_the_third(&fakes);
    let moved = || fakes[0].state().watchers_of(2) >= 3 && renewed_on(&fakes, 2) >= 3;
    until_moved(&mut change, moved).await;
    // Over every plan that was made.
    tokio::time::sleep(REFRESH).await;
    let last = change();
    assert!(fakes[0].state().watchers_of(2) <= CLIENTS / 2 + 10, "not more than their share");
    for process in &mut processes {
        within(exact_history(&mut process.listener, last)).await;
        assert!(matches!(process.view.status(), WatchStatus::Following { .. }));
        process.handle.registered().await.unwrap();
    }
    all_renewed_in_time(&fakes).await;
}

/// Changes something every few milliseconds until enough have moved.
async fn until_moved(change: &mut impl FnMut() -> u32, moved: impl Fn() -> bool) {
    let mut changes = 0;
    for _ in 0..4_000 {
        if moved() {
            return;
        }
        // No more than listeners keep one by one.
        if changes < 900 {
            changes = change();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("not within 20 s: streams move");
}

/// Every change, once, in order.
async fn exact_history(listener: &mut Listener, last: u32) {
    let mut expected = 0;
    while expected < last {
        expected += 1;
        match listener.next().await {
            DiscoveryEvent::Added(i) | DiscoveryEvent::Updated(i) => assert_eq!(i.weight, expected),
            other => panic!("{other:?}"),
        }
    }
}

/// Watches of one client, each with a stream of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_moves_misses_nothing() {
    // S2.7
    let fakes = Fake::cluster(3);
    fakes[0].state().members = fakes[..2].iter().map(Fake::address).collect();
    let client = client(&fakes[..2]).await;
    let mut watches = Vec::new();
    for _ in 0..CLIENTS {
        let mut watch = client.watch("s");
        let first = within(watch.next()).await;
        assert!(matches!(&first, Some(WatchEvent::Snapshot(view)) if view.iter().count() == 0));
        watches.push(watch);
    }
    until("members are known", || fakes[0].calls("list members") >= 2).await;
    add_the_third(&fakes);
    let mut weight = 0;
    until("some have moved", || {
        weight += 1;
        put(&fakes[0], weight);
        fakes[0].state().watchers_of(2) >= 3
    })
    .await;
    put(&fakes[0], weight + 1);
    for watch in &mut watches {
        let mut seen = 0;
        while seen <= weight {
            match within(watch.next()).await {
                // A reader that falls behind gets the latest; none gets one twice, or an older one.
                Some(WatchEvent::Added(i) | WatchEvent::Modified(i)) => {
                    assert!(i.weight > seen, "{} after {seen}", i.weight);
                    seen = i.weight;
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(watch.status(), WatchStatus::Following { .. }));
    }
}

/// A new node that is not ready takes no stream, and loses none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_stay_until_the_new_node_takes_them() {
    // S0.14
    let fakes = Fake::cluster(3);
    let processes = two_of(&fakes).await;
    fakes[2].set(Mode::Unavailable);
    put(&fakes[0], 1);
    add_the_third(&fakes);
    until("the new node is known", || {
        processes.iter().all(|process| process.client.addresses().len() == 3)
    })
    .await;
    tokio::time::sleep(3 * REFRESH).await;
    for process in &processes {
        let status = process.view.status();
        assert!(matches!(status, WatchStatus::Following { .. }), "{status:?}");
    }
    fakes[2].set(Mode::Honest);
    until("they move when it is ready", || fakes[0].state().watchers_of(2) >= 3).await;
    all_renewed_in_time(&fakes).await;
}
