//! Load through the client crate, and what came of it: every acknowledged call with its times, and
//! every failure.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use quorate_client::{
    Client, FetchOptions, Instance, InstanceBuilder, Registration, RegistrationHandle, Selection,
};
use quorate_proto::v1::{LeaseRenewal, RenewRequest};
use tokio::task::JoinHandle;

use crate::cluster::{CALL_WITHIN, Node};
use crate::raw::with_deadline;
use crate::wait::{eventually, time_passes};

/// Longer than any of these tests: what such a lease keeps is there because it was acknowledged,
/// not because it is renewed.
const LONG: Duration = Duration::from_secs(120);
/// The calls that are waited for are done by then, also across an election on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two calls of one worker: a stream of calls, not a test of throughput.
const PAUSE: Duration = Duration::from_millis(5);

/// A call that succeeded.
#[derive(Debug, Clone)]
pub(crate) struct Ack {
    pub(crate) begun: Instant,
    pub(crate) done: Instant,
    /// For a registration: "service/id", its lease and revision.
    pub(crate) registered: Option<(String, u64, u64)>,
}

/// What came of a load.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// In the order in which they were done.
    pub(crate) acks: Vec<Ack>,
    pub(crate) failures: Vec<String>,
    /// Kept, so that the registrations go on being renewed.
    handles: Vec<RegistrationHandle>,
}

/// A running load.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    acked: Arc<AtomicUsize>,
    workers: Vec<JoinHandle<Outcome>>,
}

type Called = Result<(Option<RegistrationHandle>, Option<(String, u64, u64)>), String>;

impl Load {
    /// Registers one new instance of `service` after the other.
    pub(crate) fn registering(client: &Client, service: &'static str, workers: usize) -> Self {
        Self::start(workers, |worker| {
            let client = client.clone();
            move |call| {
                let (client, id) = (client.clone(), format!("w{worker}-{call}"));
                async move {
                    let registration = Registration::new(instance(service, &id)).ttl(LONG);
                    let handle = client.register(registration).await.map_err(|e| e.to_string())?;
                    let lease = handle.registered().await.map_err(|error| error.to_string())?;
                    let registered = (format!("{service}/{id}"), lease.id, lease.revision);
                    Ok((Some(handle), Some(registered)))
                }
            }
        })
    }

    /// Renews a lease on one node, with the generated stub.
    pub(crate) fn renewing(node: &Node, lease: u64, workers: usize) -> Self {
        let stub = node.registry();
        Self::start(workers, |_| {
            let stub = stub.clone();
            move |_| {
                let mut stub = stub.clone();
                async move {
                    let renewals = vec![LeaseRenewal { lease_id: lease }];
                    let request = RenewRequest { renewals, ..RenewRequest::default() };
                    let renewed = stub.renew(with_deadline(request, CALL_WITHIN)).await;
                    renewed.map(|_| (None, None)).map_err(|status| status.to_string())
                }
            }
        })
    }

    /// Reads a service, linearizable, again and again.
    pub(crate) fn fetching(client: &Client, service: &'static str, workers: usize) -> Self {
        Self::start(workers, |_| {
            let client = client.clone();
            move |_| {
                let client = client.clone();
                async move {
                    let options = FetchOptions::new(Selection::service(service));
                    let fetched = client.fetch_with(&options).await;
                    fetched.map(|_| (None, None)).map_err(|error| error.to_string())
                }
            }
        })
    }

    fn start<W, F>(workers: usize, worker: impl Fn(usize) -> W) -> Self
    where
        W: Fn(usize) -> F + Send + 'static,
        F: Future<Output = Called> + Send + 'static,
    {
        let stop = Arc::new(AtomicBool::new(false));
        let acked = Arc::new(AtomicUsize::new(0));
        let workers = (0..workers).map(|at| {
            let (call, stop, acked) = (worker(at), stop.clone(), acked.clone());
            tokio::spawn(work(call, stop, acked))
        });
        let workers = workers.collect();
        Self { stop, acked, workers }
    }

    /// Waits until this many more calls were acknowledged.
    pub(crate) async fn until_more(&self, calls: usize) {
        let enough = self.acked.load(Ordering::Relaxed) + calls;
        eventually("acknowledged calls", PATIENCE, || async {
            let acked = self.acked.load(Ordering::Relaxed);
            if acked >= enough { Ok(()) } else { Err(format!("{acked} of {enough}")) }
        })
        .await;
    }

    /// Begins no more calls.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Stops and waits for the calls under way.
    pub(crate) async fn finish(self) -> Outcome {
        self.stop();
        let mut all = Outcome::default();
        for worker in self.workers {
            let Outcome { acks, failures, handles } = worker.await.unwrap();
            all.acks.extend(acks);
            all.failures.extend(failures);
            all.handles.extend(handles);
        }
        all.acks.sort_by_key(|ack| ack.done);
        all
    }
}

async fn work<F: Future<Output = Called>>(
    call: impl Fn(usize) -> F,
    stop: Arc<AtomicBool>,
    acked: Arc<AtomicUsize>,
) -> Outcome {
    let mut outcome = Outcome::default();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let begun = Instant::now();
        match call(number).await {
            Ok((handle, registered)) => {
                outcome.acks.push(Ack { begun, done: Instant::now(), registered });
                outcome.handles.extend(handle);
                acked.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => outcome.failures.push(format!("after {:?}: {error}", begun.elapsed())),
        }
        time_passes(PAUSE).await;
    }
    outcome
}

impl Outcome {
    /// The longest time without an acknowledgement that ended after `since`.
    pub(crate) fn outage(&self, since: Instant) -> Duration {
        let gaps = self.acks.windows(2).filter(|pair| pair[1].done > since);
        gaps.map(|pair| pair[1].done - pair[0].done).max().expect("calls succeeded afterwards")
    }

    /// What a call takes at the median while nothing is wrong, until `end`: what a busy machine
    /// makes of each step of an election.
    pub(crate) fn pace(&self, end: Instant) -> Duration {
        let calm = self.acks.iter().filter(|ack| ack.done < end);
        let mut took: Vec<_> = calm.map(|ack| ack.done - ack.begun).collect();
        took.sort();
        took[took.len() / 2]
    }

    /// The longest call that was begun, or under way, after `since`.
    pub(crate) fn longest_call(&self, since: Instant) -> Duration {
        let calls = self.acks.iter().filter(|ack| ack.done > since);
        calls.map(|ack| ack.done - ack.begun).max().unwrap_or_default()
    }

    #[track_caller]
    pub(crate) fn assert_no_failure(&self) {
        let failures = &self.failures;
        let (failed, done) = (failures.len(), self.acks.len());
        assert!(failures.is_empty(), "{failed} calls failed, {done} did not: {failures:#?}");
    }

    /// That a state has everything that was acknowledged, under the lease that was acknowledged.
    #[track_caller]
    pub(crate) fn assert_all_in(&self, state: &BTreeMap<String, Instance>, whose: &str) {
        for (key, lease, revision) in self.acks.iter().filter_map(|ack| ack.registered.as_ref()) {
            let Some(found) = state.get(key) else { panic!("{whose} lost {key} @{revision}") };
            assert_eq!(found.lease_id, *lease, "{whose}: {key} acknowledged @{revision}");
            assert!(found.create_revision <= *revision, "{whose}: {key} @{revision}: {found:?}");
        }
    }
}

/// Registrations that the client crate keeps by renewing.
pub(crate) async fn keep(
    client: &Client,
    service: &str,
    count: usize,
    ttl: Duration,
) -> Vec<RegistrationHandle> {
    let mut kept = Vec::new();
    for at in 0..count {
        let registration = Registration::new(instance(service, &format!("k{at}"))).ttl(ttl);
        kept.push(client.register(registration).await.expect("a healthy cluster registers"));
    }
    kept
}

fn instance(service: &str, id: &str) -> InstanceBuilder {
    InstanceBuilder::new(service, id).endpoint("http", format!("http://{id}.example:8080"))
}
