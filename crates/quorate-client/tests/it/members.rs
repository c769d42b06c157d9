//! How a client learns of new nodes: from whatever it has open, soon, and without asking all the
//! time.

use std::time::Duration;

use quorate_client::{Client, InstanceBuilder, Registration};

use crate::fake::{Fake, Tells, until, within};

/// Longer than any test: what is known is not known from looking now and then.
const NEVER: Duration = Duration::from_secs(3_600);

/// A client of the first two, which knows the members and was given nothing but the first.
async fn client(fakes: &[Fake]) -> Client {
    fakes[0].state().members = fakes[..2].iter().map(Fake::address).collect();
    fakes[0].state().members_as_of = 1;
    let builder = Client::builder([fakes[0].address()]).member_refresh(Some(NEVER));
    // No node fails for being late, which would be a reason to ask for the members.
    let builder = builder.attempt_timeout(Duration::from_secs(20));
    let client = builder.call_timeout(Duration::from_secs(60)).build().unwrap();
    until("the members are known", || client.addresses().len() == 2).await;
    client
}

/// One way for each of the ways in which a client may be connected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_connected_learns_of_new_members() {
    // S1.2
    for tells in [Tells::Answers, Tells::Renewals, Tells::Watches] {
        let mut fakes = Fake::cluster(3);
        fakes[0].state().tells_of_members = tells;
        let client = client(&fakes).await;
        let instance = InstanceBuilder::new("s", "a").endpoint("http", "http://h:1");
        let registration = Registration::new(instance).ttl(Duration::from_millis(2_400));
        let handle = match tells {
            Tells::Watches => None,
            _ => Some(client.register(registration).await.unwrap()),
        };
        let mut watch = match tells {
            Tells::Watches => Some(client.watch("s")),
            _ => None,
        };
        if let Some(watch) = &mut watch {
            within(watch.next()).await.unwrap();
        } else {
            until("it renews", || fakes[0].calls("renew") >= 1).await;
        }
        let all: Vec<String> = fakes.iter().map(Fake::address).collect();
        fakes[0].state().change_members(all.clone());
        until("the new member is known", || client.addresses() == all).await;
        // All that it knew are gone.
        let renewed = fakes[0].calls("renewed leases");
        fakes[0].kill();
        fakes[1].kill();
        match &handle {
            Some(handle) => {
                let goes_on = || fakes[2].calls("renewed leases") > renewed + 1;
                until("it renews at the new one", goes_on).await;
                handle.registered().await.unwrap();
            }
            None => until("it watches there", || fakes[2].state().watchers_of(2) > 0).await,
        }
    }
}

/// A node tells of a change that no list has: it is asked for, and not with each answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_not_asked_for_with_every_answer() {
    let fakes = Fake::cluster(2);
    let client = client(&fakes).await;
    // Answers count on, and lists stay as they are.
    fakes[0].state().tells_of_members = Tells::Answers;
    let before = fakes[0].calls("list members");
    let begun = std::time::Instant::now();
    while fakes[0].calls("list members") < before + 3 {
        assert!(begun.elapsed() < Duration::from_secs(30), "it does not ask");
        fakes[0].state().members_as_of += 1;
        let _unknown = client.fetch("s").await;
    }
    // A second lies between two of them.
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(2), "asked three times within {took:?}");
}
