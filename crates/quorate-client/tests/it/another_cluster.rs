//! A cluster that is founded again on the same addresses, and two clusters that answer at once:
//! what was carried from one to the other counts for nothing.

use std::time::{Duration, Instant};

use quorate_client::{
    Client, ClientBuilder, ClusterId, Consistency, Discovery, Error, FetchOptions, InstanceBuilder,
    Registration, RegistrationHandle, RegistrationState, WatchEvent,
};
use quorate_proto::v1::{Instance, InstanceStatus};

use crate::fake::{CLUSTER, Fake, Mode, in_one_of, until, until_long, within, within_long};
use crate::renewing::{no_burst, not_over};

const OTHER: u64 = 8;
const OURS: ClusterId = ClusterId::new(CLUSTER).unwrap();
const THEIRS: ClusterId = ClusterId::new(OTHER).unwrap();

/// No call is late on a busy machine.
fn builder(fakes: &[Fake]) -> ClientBuilder {
    Client::builder(fakes.iter().map(Fake::address))
        .in_order(true)
        .member_refresh(None)
        .attempt_timeout(Duration::from_secs(20))
        .call_timeout(Duration::from_secs(60))
        .audit_interval(Duration::from_millis(50))
}

fn instance(id: &str) -> Instance {
    let (service, id) = ("s".to_owned(), id.to_owned());
    Instance { service, id, status: InstanceStatus::Up as i32, ..Instance::default() }
}

fn registration(id: &str, interval: Duration) -> Registration {
    Registration::new(InstanceBuilder::new("s", id).endpoint("http", "http://h:1"))
        .ttl(3 * interval)
}

/// The cluster is founded again: all processes end, and come back with nothing.
fn found_again(fakes: &mut [Fake]) {
    fakes.iter_mut().for_each(Fake::kill);
    fakes[0].state().found_again(OTHER);
}

fn restart(fakes: &mut [Fake]) {
    fakes.iter_mut().for_each(Fake::restart);
}

fn lease_cluster(handle: &RegistrationHandle) -> Option<ClusterId> {
    match handle.state() {
        RegistrationState::Registered(lease) => Some(lease.cluster_id),
        _ => None,
    }
}

fn shown(view: &Discovery) -> Vec<String> {
    view.current().iter().map(|instance| instance.id.clone()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registrations_are_back_and_renew_no_strangers() {
    for nodes in [1, 3] {
        let mut fakes = Fake::cluster(nodes);
        let client = builder(&fakes).build().unwrap();
        let interval = Duration::from_millis(600);
        let mut handles = Vec::new();
        for number in 0..20 {
            let registration = registration(&format!("i{number}"), interval);
            handles.push(client.register(registration).await.unwrap());
        }
        let state = handles[0].watch_state();
        let mut cluster = client.watch_cluster();
        assert_eq!(*cluster.borrow_and_update(), Some(OURS));
        until("they renew", || fakes[0].calls("renewed leases") >= 20).await;

        found_again(&mut fakes);
        // Strangers were faster: they have the lease ids that these had.
        for id in 1..=40 {
            fakes[0].state().take_lease(id, &format!("stranger{id}"));
        }
        restart(&mut fakes);
        // Without noticing they would never be back.
        until(&format!("all are registered there, of {nodes} nodes"), || {
            handles.iter().all(|handle| lease_cluster(handle) == Some(THEIRS))
        })
        .await;
        let renewals = fakes[0].calls("renewed leases");
        until("they renew there", || fakes[0].calls("renewed leases") >= renewals + 40).await;
        {
            let state = fakes[0].state();
            let strangers = state.renewals.keys().filter(|lease| **lease <= 40).count();
            assert_eq!(strangers, 0, "no renewal keeps a stranger alive");
            assert_eq!(state.instances.len(), 60);
        }
        // Said once: an event for each registration, one for the client.
        assert!(cluster.has_changed().unwrap());
        assert_eq!(*cluster.borrow_and_update(), Some(THEIRS));
        assert!(!cluster.has_changed().unwrap());
        assert!(state.has_changed().unwrap());
        handles.remove(3).deregister().await.unwrap();
        assert_eq!(fakes[0].state().instances.len(), 59);
    }
}

/// One of the nodes has an access file from before, and refuses everything: the others count.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_only_refuses_keeps_no_client_in_the_old_cluster() {
    let mut fakes = Fake::cluster(3);
    let interval = Duration::from_millis(100);
    // One that only renews, one that only reads, and one that only calls.
    let [renews, reads, calls] = [(); 3].map(|()| builder(&fakes).build().unwrap());
    let handle = renews.register(registration("a", interval)).await.unwrap();
    let view = reads.discover("s").unwrap();
    until("it is shown", || shown(&view) == ["a"]).await;
    calls.fetch("s").await.unwrap();
    found_again(&mut fakes);
    fakes[2].restart();
    fakes[2].set(Mode::Stranger);
    fakes[..2].iter_mut().for_each(Fake::restart);
    until_long("it is registered there", || lease_cluster(&handle) == Some(THEIRS)).await;
    let mut cluster = reads.watch_cluster();
    within_long(cluster.wait_for(|is| *is == Some(THEIRS))).await.unwrap();
    until_long("it is shown again", || shown(&view) == ["a"]).await;
    within_long(async { while calls.fetch("s").await.is_err() {} }).await;
}

/// Processes with one registration each, which hear of the new cluster in the same moment: their
/// streams end together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_with_one_registration_do_not_all_come_at_once() {
    // S3.8
    const CLIENTS: usize = 50;
    let interval = Duration::from_secs(4);
    in_one_of(3, async || {
        let fakes = Fake::cluster(1);
        let mut processes = Vec::new();
        for number in 0..CLIENTS {
            let client = builder(&fakes).build().unwrap();
            let registration = registration(&format!("i{number}"), interval);
            let handle = client.register(registration).await.unwrap();
            let watch = client.watch("s");
            within(watch.synced()).await.unwrap();
            processes.push((client, handle, watch));
        }
        fakes[0].state().registered_at.clear();
        fakes[0].state().found_again(OTHER);
        let begun = Instant::now();
        until_long("all are registered there", || {
            processes.iter().all(|(_, handle, _)| lease_cluster(handle) == Some(THEIRS))
        })
        .await;
        let took = begun.elapsed();
        no_burst(begun, interval / 8, CLIENTS, &fakes[0].state().registered_at)?;
        not_over(took, interval + Duration::from_millis(500))
    })
    .await;
}

#[tokio::test]
async fn a_registration_says_why_it_registers_again() {
    let mut fakes = Fake::cluster(1);
    let client = builder(&fakes).build().unwrap();
    let handle = client.register(registration("a", Duration::from_millis(100))).await.unwrap();
    let mut state = handle.watch_state();
    let told = tokio::spawn(async move {
        let mut told = Vec::new();
        loop {
            state.changed().await.unwrap();
            match &*state.borrow_and_update() {
                RegistrationState::Retrying { last_error: Some(error), .. } => {
                    told.push(error.clone());
                }
                RegistrationState::Registered(lease) if lease.cluster_id == THEIRS => return told,
                _ => {}
            }
        }
    });
    found_again(&mut fakes);
    // No client may take part in it yet: the reason is still seen when the registry can be asked
    // again.
    restart(&mut fakes);
    let told = within(told).await.unwrap();
    let is_reason = |error: &Error| matches!(error, Error::OtherCluster { was: OURS, is: THEIRS });
    assert!(told.iter().any(is_reason), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_and_views_show_the_old_until_the_new_is_whole_and_then_just_that() {
    for (before, after) in [(5_u64, 7_u64), (60, 1), (0, 3), (3, 0)] {
        let mut fakes = Fake::cluster(3);
        for number in 0..before {
            fakes[0].state().put(instance(&format!("old{number}")));
        }
        let client = builder(&fakes).build().unwrap();
        let (mut watch, view) = (client.watch("s"), client.discover("s").unwrap());
        within(watch.synced()).await.unwrap();
        within(view.synced()).await;
        let Some(WatchEvent::Snapshot(first)) = watch.next().await else { panic!("a snapshot") };
        assert_eq!(first.len() as u64, before);
        let audits = fakes[0].calls("fetch");
        until("audits", || fakes[0].calls("fetch") >= audits + 2).await;

        found_again(&mut fakes);
        assert_eq!(shown(&view).len() as u64, before, "failures make nothing smaller");
        for number in 0..after {
            fakes[0].state().put(instance(&format!("new{number}")));
        }
        restart(&mut fakes);
        let all_new = |ids: &[String]| {
            let new = ids.iter().filter(|id| id.starts_with("new")).count() as u64;
            assert!(new == 0 || ids.len() as u64 == new, "a mixture: {ids:?}");
            new == after && ids.len() as u64 == after
        };
        until_long("the view is the new cluster's", || all_new(&shown(&view))).await;
        until_long("the watch is the new cluster's", || {
            let snapshot = watch.snapshot();
            let ids: Vec<_> = snapshot.iter().map(|instance| instance.id.clone()).collect();
            all_new(&ids) && snapshot.cluster_id() == Some(THEIRS)
        })
        .await;
        let event = within(watch.next()).await;
        let reset = matches!(event, Some(WatchEvent::Reset { cluster_id: THEIRS, .. }));
        assert!(reset, "{event:?}");
        let (mut removed, mut added) = (0, 0);
        while removed + added < before + after {
            match within(watch.next()).await.unwrap() {
                WatchEvent::Removed { instance, .. } if instance.id.starts_with("old") => {
                    removed += 1;
                }
                WatchEvent::Added(instance) if instance.id.starts_with("new") => added += 1,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((removed, added), (before, after));
        // It goes on there, and audits do not ask for the old cluster's revision.
        fakes[0].state().put(instance("newer"));
        until("it follows", || shown(&view).contains(&"newer".to_owned())).await;
        let asked = fakes[0].state().behind;
        let audits = fakes[0].calls("fetch");
        until("audits", || fakes[0].calls("fetch") >= audits + 3).await;
        assert_eq!(fakes[0].state().behind, asked, "no audit waits");
        assert_eq!(client.counters().divergences, 0);
    }
}

#[tokio::test]
async fn an_empty_service_of_the_new_cluster_is_told_at_once() {
    let mut fakes = Fake::cluster(1);
    for number in 0..50 {
        fakes[0].state().put(instance(&format!("old{number}")));
    }
    let client = builder(&fakes).build().unwrap();
    let handle = client.register(registration("mine", Duration::from_millis(100))).await.unwrap();
    found_again(&mut fakes);
    restart(&mut fakes);
    until("it is back", || lease_cluster(&handle) == Some(THEIRS)).await;
    let empty = client.discover("nobody").unwrap();
    within(empty.synced()).await;
    // Nothing of ours is waited for: that would take a whole call's time, a minute.
    assert!(matches!(within(empty.usable()).await, Err(Error::UnknownService { .. })));
}

#[tokio::test]
async fn a_read_that_carries_the_old_clusters_revision_is_answered() {
    let mut fakes = Fake::cluster(1);
    for number in 0..5 {
        fakes[0].state().put(instance(&format!("old{number}")));
    }
    let client = builder(&fakes).build().unwrap();
    let before = client.fetch_with(&FetchOptions::new("s")).await.unwrap().header;
    assert_eq!((before.cluster_id, before.revision), (CLUSTER, 5));
    let again = FetchOptions::new("s")
        .consistency(Consistency::Local)
        .min_revision(before.revision)
        .not_modified_since(before.revision)
        .of_cluster(ClusterId::of(&before));
    assert!(client.fetch_with(&again).await.unwrap().services.is_none(), "not modified");
    found_again(&mut fakes);
    fakes[0].state().put(instance("new"));
    restart(&mut fakes);
    let fetched = client.fetch_with(&again).await.unwrap();
    assert_eq!(fetched.header.cluster_id, OTHER);
    assert_eq!(fetched.services.unwrap()[0].instances.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_clusters_that_answer_a_client_stays_with_its_own() {
    let mut ours = Fake::start();
    let other = Fake::start();
    other.state().cluster_id = OTHER;
    ours.state().put(instance("ours"));
    other.state().put(instance("other"));
    let builder = Client::builder([ours.address(), other.address()]).in_order(true);
    let builder = builder.member_refresh(None).attempt_timeout(Duration::from_millis(100));
    let client = builder.build().unwrap();
    let handle = client.register(registration("a", Duration::from_millis(200))).await.unwrap();
    let (view, watch) = (client.discover("s").unwrap(), client.watch("s"));
    until("both are shown", || shown(&view) == ["a", "ours"]).await;
    let mut cluster = client.watch_cluster();
    assert_eq!(*cluster.borrow_and_update(), Some(OURS));

    // Its node fails for a moment, again and again.
    for _ in 0..5 {
        ours.set(Mode::Unavailable);
        ours.state().end_watches();
        let asked = other.calls("renew") + other.state().subscriptions.len();
        until("the other one is asked", || {
            other.calls("renew") + other.state().subscriptions.len() > asked
        })
        .await;
        assert_eq!(shown(&view), ["a", "ours"]);
        ours.set(Mode::Honest);
        let streams = ours.state().subscriptions.len();
        until("it goes on", || ours.state().subscriptions.len() > streams).await;
    }
    assert!(!cluster.has_changed().unwrap());
    assert_eq!((other.state().instances.len(), shown(&view).len()), (1, 2));

    // It is gone for good: the client goes over, once, and stays when the old one is back.
    ours.kill();
    within_long(cluster.changed()).await.unwrap();
    assert_eq!(*cluster.borrow_and_update(), Some(THEIRS));
    until("it is registered there", || lease_cluster(&handle) == Some(THEIRS)).await;
    until("its views are of it", || shown(&view) == ["a", "other"]).await;
    until("its watches too", || watch.snapshot().cluster_id() == Some(THEIRS)).await;
    ours.restart();
    for _ in 0..5 {
        other.state().end_watches();
        let streams = other.state().subscriptions.len();
        until("it goes on there", || other.state().subscriptions.len() > streams).await;
        let renewed = other.calls("renewed leases");
        until("and renews there", || other.calls("renewed leases") > renewed + 1).await;
        assert_eq!(shown(&view), ["a", "other"]);
    }
    assert!(!cluster.has_changed().unwrap());
}
