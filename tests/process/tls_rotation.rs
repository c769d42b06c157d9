//! Every certificate is replaced, then the authority and its list of what is revoked (the old and
//! the new together, then the new one alone), then a right is taken, while callers and watches go
//! on: none of their calls fails until the right is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use quorate_client::{
    Client, Code, Error, InstanceBuilder, Registration, Selection, Tls, Watch, WatchStatus,
};
use rustix::process::Signal;
use tokio::task::JoinSet;

use super::ends::configure;
use super::{Authority, Cluster, Files, SOON, TTL, eventually, is_served, prepare};
use crate::secrets::entry;
use crate::wait::time_passes;

const CALLERS: usize = 2;
/// In each of the four steps.
const CALLS: u32 = 2_500;
const CALLS_WITHIN: Duration = Duration::from_secs(120);
/// A machine that is busy with other tests holds all nodes up for seconds: that is no certificate's
/// fault. The slowest call is printed.
const CALL_WITHIN: Duration = Duration::from_secs(30);
const WATCHES: usize = 100;
const AGE: Duration = Duration::from_secs(2);
/// All connections of before have ended at their age then, and files are read every 10 s at most.
const STEP: Duration = Duration::from_secs(8);
const TOKEN: &str = "qrt_rotation";

/// Calls one after the other until one fails: why, and how long the slowest before it took.
async fn call_until_refused(client: Client, calls: Arc<AtomicU32>) -> (Error, Duration) {
    let mut slowest = Duration::ZERO;
    loop {
        let begun = Instant::now();
        match client.fetch("web").await {
            Ok(_) => calls.fetch_add(1, Ordering::Relaxed),
            Err(error) => return (error, slowest),
        };
        slowest = slowest.max(begun.elapsed());
    }
}

/// What the nodes have logged of others that are unreachable, but for those that a busy machine
/// kept from answering in time. A call that meets the end of its connection is made again, and
/// nobody was unreachable.
fn unreachable(cluster: &Cluster) -> Vec<String> {
    let late = ["no answer in time", "no answer within", "Timeout expired"];
    let logs: Vec<String> = cluster.nodes.iter().map(|node| node.log_text()).collect();
    let lines = logs.iter().flat_map(|log| log.lines());
    let told = lines.filter(|line| line.contains("a node is unreachable"));
    told.filter(|line| !late.iter().any(|words| line.contains(words))).map(str::to_owned).collect()
}

fn reload(cluster: &mut Cluster) {
    cluster.nodes.iter_mut().for_each(|node| node.process().signal(Signal::HUP));
}

/// What a token may do, for all nodes; each follows the file.
fn allow(files: &Files, rights: &str) {
    files.put("access.toml", &entry("rotation", TOKEN, rights));
}

async fn all_see(watches: &[Watch], weight: u32) {
    eventually("the watches go on", SOON, async || {
        let sees = |watch: &&Watch| watch.snapshot().iter().all(|web| web.weight == weight);
        match watches.iter().filter(sees).count() {
            WATCHES => Ok(()),
            some => Err(format!("{some} of {WATCHES} see the weight {weight}")),
        }
    })
    .await;
}

fn is_denied(error: &Error) -> bool {
    matches!(error, Error::Rejected { code: Code::PermissionDenied, .. })
}

/// Three nodes that check rights, their files, and a client with its files and a token.
async fn guarded(authority: &Authority) -> (Cluster, Vec<Files>, Client, Files) {
    let age_ms = u64::try_from(AGE.as_millis()).unwrap();
    let (mut cluster, files) = prepare(authority, age_ms).await;
    let own = Files::of(files[0].dir.parent().unwrap(), 9);
    allow(&own, "role = 'register'\nnamespace = 'default'");
    let access = own.dir.join("access.toml").display().to_string();
    files.iter().for_each(|files| files.put("ca.crl", &authority.list(1, &[])));
    configure(&cluster, |id, text| {
        let list = files[id as usize - 1].dir.join("ca.crl").display().to_string();
        let text = text.replace("[tls]", &format!("[tls]\ncrl = '{list}'"));
        format!("access = \"{access}\"\n{text}")
    });
    cluster.nodes.iter_mut().for_each(|node| node.start());
    own.put_all(&authority.client(), &authority.pem);
    own.put("token", TOKEN);
    let tls = Tls::new()
        .ca_file(own.dir.join("ca.crt"))
        .identity_files(own.dir.join("node.crt"), own.dir.join("node.key"));
    let client = cluster.client().tls(tls).token_file(own.dir.join("token"));
    let client = client.call_timeout(CALL_WITHIN).build().unwrap();
    (cluster, files, client, own)
}

/// Gives a set of files to all nodes and the client, and waits until all nodes use it.
async fn hand_out(
    cluster: &mut Cluster,
    (files, own): (&[Files], &Files),
    (issuer, trusted, lists): (&Authority, &str, &str),
    new: &Authority,
) {
    for (id, files) in (1..).zip(files) {
        files.put_all(&issuer.node(id), trusted);
        files.put("ca.crl", lists);
    }
    own.put_all(&issuer.client(), trusted);
    reload(cluster);
    for node in &cluster.nodes {
        let shown = new.client();
        let wanted = trusted.contains(&new.pem);
        eventually("the node has read its files", SOON, async || {
            let by_new = is_served(&node.clients, &issuer.pem, Some(&shown)).await;
            match by_new.is_ok() == wanted {
                true => Ok(()),
                false => Err(format!("{by_new:?}")),
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_authorities_and_rights_are_replaced_while_all_goes_on() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let (mut cluster, files, client, own) = guarded(&old).await;
    let instance = InstanceBuilder::new("web", "a").endpoint("http", "http://h:1");
    let handle = client.register(Registration::new(instance).ttl(TTL)).await.unwrap();
    let lease = handle.registered().await.unwrap();
    let watches: Vec<Watch> =
        (0..WATCHES).map(|_| client.watch(Selection::service("web"))).collect();
    for watch in &watches {
        watch.synced().await.unwrap();
    }
    let (mut calling, calls) = (JoinSet::new(), Arc::new(AtomicU32::new(0)));
    for _ in 0..CALLERS {
        calling.spawn(call_until_refused(client.clone(), calls.clone()));
    }
    let both = format!("{}{}", old.pem, new.pem);
    let (of_old, of_new) = (old.list(1, &[]), new.list(1, &[]));
    let lists = format!("{of_old}{of_new}");
    let before = unreachable(&cluster);
    // Each step as an operator would take it: to all, and then the next one.
    let steps = [
        (&old, old.pem.as_str(), of_old.as_str()),
        (&old, &both, &lists),
        (&new, &both, &lists),
        (&new, &new.pem, &of_new),
    ];
    for (step, set) in (1_u32..).zip(steps) {
        hand_out(&mut cluster, (&files, &own), set, &new).await;
        // Connections of before end at their age, and are made anew by the new files.
        time_passes(STEP).await;
        eventually("calls through this set", CALLS_WITHIN, async || {
            let failed = calling.try_join_next();
            assert!(failed.is_none(), "in step {step}: {failed:?}");
            match calls.load(Ordering::Relaxed) {
                done if done >= CALLS * step => Ok(()),
                done => Err(format!("{done} calls in {step} steps")),
            }
        })
        .await;
        handle.set_weight(step).await.unwrap();
        all_see(&watches, step).await;
    }
    let after = unreachable(&cluster);
    assert_eq!(after, before, "connections of nodes that end at their age are no fault");
    let refused = is_served(&cluster.nodes[0].clients, &new.pem, Some(&old.client())).await;
    assert!(refused.is_err(), "the old authority is not trusted any more");
    let kept = tokio::time::timeout(SOON, handle.registered()).await;
    assert_eq!(kept.expect("it is renewed").unwrap().id, lease.id, "the lease of the beginning");
    let failed = calling.try_join_next();
    assert!(failed.is_none(), "while the right was there: {failed:?}");

    allow(&own, "role = 'register'\nnamespace = 'default'\nprefix = 'other'");
    reload(&mut cluster);
    let refusals = tokio::time::timeout(SOON, calling.join_all()).await.expect("the right is gone");
    assert!(refusals.iter().all(|(error, _)| is_denied(error)), "{refusals:?}");
    eventually("the watches are told", SOON, async || {
        let told = |watch: &&Watch| match watch.status() {
            WatchStatus::Interrupted { last_error, .. } => is_denied(&last_error),
            _ => false,
        };
        match watches.iter().filter(told).count() {
            WATCHES => Ok(()),
            some => Err(format!("{some} of {WATCHES}: {:?}", watches[0].status())),
        }
    })
    .await;
    let left = client.fetch("other").await;
    assert!(matches!(left, Err(Error::UnknownService { .. })), "what is left holds: {left:?}");
    tell(&refusals, calls.load(Ordering::Relaxed));
}

fn tell(refusals: &[(Error, Duration)], calls: u32) {
    let slowest = refusals.iter().map(|(_, slowest)| *slowest).max().unwrap_or_default();
    eprintln!(
        "measured: {calls} calls and {WATCHES} watches through four sets of files, 0 failed; the \
         slowest took {slowest:?}"
    );
}
