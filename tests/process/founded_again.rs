//! A cluster that ends with all its data, and is founded again on the same addresses: an instance
//! of the old one is in the new one soon, and no client is shown what is gone.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use quorate_client::{Client, InstanceBuilder, Registration, RegistrationHandle};
use serde_json::Value;

use crate::cli::{Running, ask};
use crate::dev::Dev;
use crate::wait::eventually;

/// For what is not measured.
const PATIENCE: Duration = Duration::from_secs(40);

async fn register(client: &Client, service: &str, id: &str) -> RegistrationHandle {
    let instance = InstanceBuilder::new(service, id).endpoint("http", "http://h:1");
    let registration = Registration::new(instance).ttl(Duration::from_secs(3_600));
    client.register(registration).await.unwrap()
}

async fn register_all(client: &Client, service: &str, names: &str, count: u32) {
    for number in 1..=count {
        // The lease stays for its hour.
        drop(register(client, service, &format!("{names}-{number}")).await);
    }
}

fn is_event(line: &Value, event: &str) -> bool {
    line["event"] == event
}

fn events<'a>(lines: &'a [Value], event: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| is_event(line, event)).collect()
}

/// What a reader of the lines has, as ids.
fn has(lines: &[Value]) -> BTreeSet<String> {
    let id = |instance: &Value| instance["id"].as_str().expect("an id").to_owned();
    let mut has = BTreeSet::new();
    for line in lines {
        match line["event"].as_str() {
            Some("snapshot") => {
                has = line["instances"].as_array().expect("a list").iter().map(id).collect();
            }
            Some("added") => assert!(has.insert(id(&line["instance"])), "added twice: {line}"),
            Some("removed") => assert!(has.remove(&id(&line["instance"])), "never there: {line}"),
            _ => {}
        }
    }
    has
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_was_registered_is_registered_in_the_new_cluster_within_an_interval() {
    let mut dev = Dev::start().await;
    let client = dev.client().await;
    register_all(&client, "old", "o", 40).await;
    let start = |id: &str, ttl: &str| {
        let line = format!("register svc {id} --ttl {ttl} --endpoint http=http://h/ -o json");
        Running::ask(&dev.nodes(), &line)
    };
    let since = Instant::now();
    let (slow, slower) = (start("slow", "30s"), start("slower", "60s"));
    for running in [&slow, &slower] {
        running.until("registered", PATIENCE, |line| is_event(line, "registered")).await;
    }
    let watch = Running::ask(&dev.nodes(), "watch svc -o json");
    watch.until("a snapshot", PATIENCE, |line| is_event(line, "snapshot")).await;
    assert_eq!(has(&watch.json_lines()).len(), 2);

    dev.founded_again_after_kill().await;
    let begun = Instant::now();
    // Strangers are faster: without identities, they would get the lease ids of the two.
    let strangers = dev.client().await;
    let strangers = &strangers;
    let all = (1..=45).map(|number| async move {
        register(strangers, "strangers", &format!("s-{number}")).await
    });
    let handles = join_all(all).await;
    // It finds the other cluster as it renews, after a third of its TTL, and all that find it then
    // spread over half of that, or 10 s. On a busy machine, a little more. One that only finds that
    // its lease has run out does so a whole TTL after it was registered.
    let busy = Duration::from_secs(10);
    let slow_by = begun + Duration::from_secs(10 + 5) + busy;
    let slower_by = since + Duration::from_secs(20 + 10) + 2 * busy;
    for (running, by) in [(&slow, slow_by), (&slower, slower_by)] {
        let within = by.saturating_duration_since(Instant::now());
        eventually("registered again", within, async || {
            let lines = running.json_lines();
            let registered = events(&lines, "registered");
            let clusters: BTreeSet<_> =
                registered.iter().map(|r| r["cluster_id"].as_str()).collect();
            match (registered.len(), clusters.len()) {
                (2.., 2) => Ok(()),
                _ => Err(format!("{registered:?}, {}", running.err())),
            }
        })
        .await;
        assert!(running.err().contains("registered again, with another cluster"));
    }
    let fetched = ask(&dev.nodes(), "fetch svc -o json").await.expect(0);
    assert!(
        fetched.out.contains("\"slow\"") && fetched.out.contains("\"slower\""),
        "{}",
        fetched.out
    );
    let both =
        |lines: &[Value]| has(lines).into_iter().eq(["slow".to_owned(), "slower".to_owned()]);
    eventually("the watch shows both, of the new cluster", PATIENCE, async || {
        let lines = watch.json_lines();
        let resets = events(&lines, "reset").len();
        if resets == 1 && both(&lines) { Ok(()) } else { Err(format!("{lines:?}")) }
    })
    .await;
    drop(handles);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_and_views_show_what_the_new_cluster_has_and_nothing_else() {
    for (before, after) in [(5, 7), (60, 1)] {
        let mut dev = Dev::start().await;
        let client = dev.client().await;
        register_all(&client, "v", "old", before).await;
        let watch = Running::ask(&dev.nodes(), "watch v -o json");
        watch.until("a snapshot", PATIENCE, |line| is_event(line, "snapshot")).await;
        let view = client.discover("v").unwrap();
        assert_eq!(view.usable().await.unwrap().len(), before as usize);

        dev.founded_again_after_stop().await;
        register_all(&dev.client().await, "v", "new", after).await;
        let expected: BTreeSet<String> =
            (1..=after).map(|number| format!("new-{number}")).collect();
        eventually("the watch shows the new ones only", PATIENCE, async || {
            let lines = watch.json_lines();
            let resets = events(&lines, "reset").len();
            if resets == 1 && has(&lines) == expected { Ok(()) } else { Err(format!("{lines:?}")) }
        })
        .await;
        eventually("and so does the view", PATIENCE, async || {
            let shown = view.current();
            let shown: BTreeSet<String> = shown.iter().map(|i| i.id.clone()).collect();
            let of_old = shown.iter().filter(|id| id.starts_with("old")).count();
            assert!(of_old == 0 || of_old == shown.len(), "a mixture: {shown:?}");
            if shown == expected { Ok(()) } else { Err(format!("{shown:?}")) }
        })
        .await;
        assert_eq!(client.counters().divergences, 0);
    }
}
