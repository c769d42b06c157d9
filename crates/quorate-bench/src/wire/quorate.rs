//! The calls of the workloads on a node of Quorate.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use quorate_proto::v1::admin_client::AdminClient;
use quorate_proto::v1::registry_client::RegistryClient;
use quorate_proto::v1::{
    BackupRequest, ChangeKind, Consistency, InstanceRef, InstanceSpec, LeaseRenewal,
    ListServicesRequest, Metadata, RegisterRequest, RenewRequest, RenewResponse, StatusRequest,
    TriggerSnapshotRequest, UpdateRequest,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::{Counted, DECODE_MAX, Event, Freshness, NodeView};
use crate::item::{self, Item};
use crate::lean::registry_client::RegistryClient as LeanClient;
use crate::lean::{
    FetchRequest, FetchResponse, Instance, WatchRequest, WatchResponse, WatchSubscribe,
};

/// The metadata entry that holds an item's value.
const VALUE: &str = "value";
/// Messages between a sender and the transport; more than any window of the workloads.
const QUEUE: usize = 256;

#[derive(Clone)]
pub(crate) struct Connection {
    channel: Channel,
}

pub(crate) struct RenewStream {
    requests: mpsc::Sender<RenewRequest>,
    answers: Streaming<RenewResponse>,
}

pub(crate) struct WatchStream {
    /// Kept open: its end would end the watch.
    _requests: mpsc::Sender<WatchRequest>,
    answers: Streaming<WatchResponse>,
}

impl Connection {
    pub(super) fn new(channel: Channel) -> Self {
        Self { channel }
    }

    fn registry(&self) -> RegistryClient<Channel> {
        RegistryClient::new(self.channel.clone()).max_decoding_message_size(DECODE_MAX)
    }

    fn lean(&self) -> LeanClient<Channel> {
        LeanClient::new(self.channel.clone()).max_decoding_message_size(DECODE_MAX)
    }

    fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel.clone()).max_decoding_message_size(DECODE_MAX)
    }

    pub(super) async fn register(&self, items: &[&Item], lease: u64, ttl: Duration) -> Result<u64> {
        let request = RegisterRequest {
            instances: items.iter().map(|item| spec(item)).collect(),
            ttl_ms: u64::try_from(ttl.as_millis())?,
            incarnation: 1,
            lease_id: lease,
            ..RegisterRequest::default()
        };
        let answer = self.registry().register(request).await.context("Register")?.into_inner();
        ensure!(answer.lease_id != 0, "Register answered without a lease");
        Ok(answer.lease_id)
    }

    pub(super) async fn change(&self, item: &Item) -> Result<()> {
        let request = UpdateRequest {
            instance: Some(InstanceRef {
                service: item.service.clone(),
                id: item.id.clone(),
                incarnation: 0,
            }),
            metadata: Some(Metadata { entries: metadata(item) }),
            ..UpdateRequest::default()
        };
        self.registry().update(request).await.context("Update")?;
        Ok(())
    }

    /// Renews leases, up to 10,000; an error if any is gone.
    pub(crate) async fn renew(&self, leases: &[u64]) -> Result<()> {
        let answer = self.registry().renew(renewal(leases)).await.context("Renew")?.into_inner();
        all_known(&answer)
    }

    pub(super) async fn renew_stream(&self, lease: u64) -> Result<RenewStream> {
        let (requests, receiver) = mpsc::channel(QUEUE);
        requests.send(renewal(&[lease])).await?;
        let answers = self.registry().renew_stream(ReceiverStream::new(receiver)).await;
        let answers = answers.context("RenewStream")?.into_inner();
        let mut stream = RenewStream { requests, answers };
        stream.answer().await?;
        Ok(stream)
    }

    async fn read(&self, service: &str, freshness: Freshness) -> Result<FetchResponse> {
        let consistency = match freshness {
            Freshness::Linearizable => Consistency::Linearizable,
            Freshness::Local => Consistency::Local,
        };
        let services = vec![service.to_owned()];
        let request = FetchRequest { services, consistency: consistency as i32 };
        Ok(self.lean().fetch(request).await.context("Fetch")?.into_inner())
    }

    pub(super) async fn fetch(&self, service: &str, freshness: Freshness) -> Result<Counted> {
        let answer = self.read(service, freshness).await?;
        let mut counted = Counted { instances: 0, value_bytes: 0 };
        for instance in answer.services.iter().flat_map(|service| &service.instances) {
            counted.instances += 1;
            counted.value_bytes += value(instance).len();
        }
        Ok(counted)
    }

    pub(super) async fn items(&self, service: &str) -> Result<Vec<Item>> {
        let answer = self.read(service, Freshness::Linearizable).await?;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec());
        let item = |instance: &Instance| {
            let (id, value) = (text(&instance.id)?, text(value(instance))?);
            Ok(Item { service: service.to_owned(), id, value })
        };
        answer.services.iter().flat_map(|service| &service.instances).map(item).collect()
    }

    pub(super) async fn count(&self, group: &str) -> Result<u64> {
        let mut request =
            ListServicesRequest { prefix: format!("{group}-"), ..ListServicesRequest::default() };
        let mut found = 0;
        loop {
            let answer = self.registry().list_services(request.clone()).await;
            let answer = answer.context("ListServices")?.into_inner();
            found +=
                answer.services.iter().map(|service| u64::from(service.instances)).sum::<u64>();
            if answer.next.is_empty() {
                return Ok(found);
            }
            request.after = answer.next;
        }
    }

    pub(super) async fn watch(&self, group: &str) -> Result<WatchStream> {
        let (requests, receiver) = mpsc::channel(QUEUE);
        let subscribe = WatchSubscribe { prefix: format!("{group}-") };
        requests.send(WatchRequest { subscribe: Some(subscribe) }).await?;
        let answers = self.lean().watch(ReceiverStream::new(receiver)).await;
        let mut answers = answers.context("Watch")?.into_inner();
        loop {
            let message = answers.message().await?.context("the watch ended")?;
            if message.snapshot.is_some_and(|snapshot| snapshot.last) {
                break;
            }
        }
        Ok(WatchStream { _requests: requests, answers })
    }

    pub(super) async fn view(&self) -> Result<NodeView> {
        let answer = self.admin().status(StatusRequest { local_only: true }).await;
        let answer = answer.context("Status")?.into_inner();
        let header = answer.header.context("Status without a header")?;
        let applied = answer.members.first().map_or(0, |member| member.applied_index);
        Ok(NodeView { own_id: header.node_id, leader_id: header.leader_id, applied })
    }

    pub(super) async fn backup(&self) -> Result<u64> {
        let mut chunks =
            self.admin().backup(BackupRequest {}).await.context("Backup")?.into_inner();
        let mut bytes = 0;
        while let Some(chunk) = chunks.message().await.context("Backup")? {
            bytes += chunk.data.len() as u64;
        }
        Ok(bytes)
    }

    pub(super) async fn snapshot(&self) -> Result<()> {
        self.admin()
            .trigger_snapshot(TriggerSnapshotRequest {})
            .await
            .context("TriggerSnapshot")?;
        Ok(())
    }
}

impl RenewStream {
    pub(super) async fn send(&mut self, lease: u64) -> Result<()> {
        self.requests.send(renewal(&[lease])).await.context("the stream of renewals ended")
    }

    pub(super) async fn answer(&mut self) -> Result<()> {
        let answer = self.answers.message().await.context("RenewStream")?;
        all_known(&answer.context("the stream of renewals ended")?)
    }
}

impl WatchStream {
    pub(super) async fn next(&mut self, events: &mut Vec<Event>) -> Result<()> {
        let message = self.answers.message().await.context("Watch")?;
        let message = message.context("the watch ended")?;
        for change in message.delta.into_iter().flat_map(|delta| delta.changes) {
            let instance = change.instance.context("a change without its instance")?;
            events.push(event(&instance, change.kind == ChangeKind::Removed as i32)?);
        }
        // The watcher fell behind what the node remembers: this stands for all that it missed.
        let services = message.snapshot.into_iter().flat_map(|snapshot| snapshot.services);
        for instance in services.flat_map(|service| service.instances) {
            events.push(event(&instance, false)?);
        }
        Ok(())
    }
}

fn event(instance: &Instance, removed: bool) -> Result<Event> {
    let id = std::str::from_utf8(&instance.id).unwrap_or_default();
    match (item::number(id), item::stamp(value(instance))) {
        (Some(number), Some(stamp)) => Ok(Event { number, stamp: (!removed).then_some(stamp) }),
        _ => bail!("an event that no workload caused: {id}"),
    }
}

/// Empty if there is none: no workload writes that.
fn value(instance: &Instance) -> &[u8] {
    let entry = instance.metadata.iter().find(|entry| entry.key == VALUE);
    entry.map_or(&[], |entry| &entry.value)
}

fn spec(item: &Item) -> InstanceSpec {
    InstanceSpec {
        service: item.service.clone(),
        id: item.id.clone(),
        endpoints: BTreeMap::from([("http".to_owned(), "http://10.0.0.1:8080".to_owned())]),
        metadata: metadata(item),
        ..InstanceSpec::default()
    }
}

fn metadata(item: &Item) -> BTreeMap<String, String> {
    BTreeMap::from([(VALUE.to_owned(), item.value.clone())])
}

fn renewal(leases: &[u64]) -> RenewRequest {
    RenewRequest { renewals: leases.iter().map(|&lease_id| LeaseRenewal { lease_id }).collect() }
}

fn all_known(answer: &RenewResponse) -> Result<()> {
    ensure!(answer.unknown_lease_ids.is_empty(), "leases are gone: {:?}", answer.unknown_lease_ids);
    Ok(())
}
