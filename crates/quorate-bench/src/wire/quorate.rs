//! The calls of the workloads on a node of Quorate.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use quorate_proto::v1::admin_client::AdminClient;
use quorate_proto::v1::registry_client::RegistryClient;
use quorate_proto::v1::watch_request::Kind as Ask;
use quorate_proto::v1::watch_response::Kind;
use quorate_proto::v1::{
    BackupRequest, ChangeKind, Consistency, FetchRequest, FetchResponse, Instance, InstanceRef,
    InstanceSpec, LeaseRenewal, ListServicesRequest, Metadata, RegisterRequest, RenewRequest,
    RenewResponse, StatusRequest, TriggerSnapshotRequest, UpdateRequest, WatchRequest,
    WatchResponse, WatchSubscribe,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::{Counted, DECODE_MAX, Event, Freshness, NodeView};
use crate::item::{self, Item};

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

    pub(super) async fn renew(&self, leases: &[u64]) -> Result<()> {
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
        let request = FetchRequest {
            services: vec![service.to_owned()],
            consistency: consistency as i32,
            ..FetchRequest::default()
        };
        Ok(self.registry().fetch(request).await.context("Fetch")?.into_inner())
    }

    pub(super) async fn fetch(&self, service: &str, freshness: Freshness) -> Result<Counted> {
        let answer = self.read(service, freshness).await?;
        let instances = answer.services.iter().flat_map(|service| &service.instances);
        let mut counted = Counted { instances: 0, value_bytes: 0 };
        for instance in instances {
            counted.instances += 1;
            counted.value_bytes += instance.metadata.get(VALUE).map_or(0, String::len);
        }
        Ok(counted)
    }

    pub(super) async fn items(&self, service: &str) -> Result<Vec<Item>> {
        let answer = self.read(service, Freshness::Linearizable).await?;
        let instances = answer.services.into_iter().flat_map(|service| service.instances);
        let item = |mut instance: Instance| Item {
            value: instance.metadata.remove(VALUE).unwrap_or_default(),
            service: instance.service,
            id: instance.id,
        };
        Ok(instances.map(item).collect())
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
        let subscribe = WatchSubscribe { prefix: format!("{group}-"), ..WatchSubscribe::default() };
        requests.send(WatchRequest { kind: Some(Ask::Subscribe(subscribe)) }).await?;
        let answers = self.registry().watch(ReceiverStream::new(receiver)).await;
        let mut answers = answers.context("Watch")?.into_inner();
        loop {
            match answers.message().await?.context("the watch ended")?.kind {
                Some(Kind::Snapshot(snapshot)) if snapshot.last => break,
                _ => {}
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
        match message.context("the watch ended")?.kind {
            Some(Kind::Delta(delta)) => {
                for change in delta.changes {
                    let removed = change.kind() == ChangeKind::Removed;
                    let instance = change.instance.context("a change without its instance")?;
                    events.push(event(&instance, removed)?);
                }
            }
            Some(Kind::Snapshot(snapshot)) => {
                // The watcher fell behind the ring: this stands for all that it missed.
                for instance in snapshot.services.iter().flat_map(|part| &part.instances) {
                    events.push(event(instance, false)?);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn event(instance: &Instance, removed: bool) -> Result<Event> {
    let number = item::number(&instance.id);
    let stamp = instance.metadata.get(VALUE).and_then(|value| item::stamp(value.as_bytes()));
    match (number, stamp) {
        (Some(number), Some(stamp)) => Ok(Event { number, stamp: (!removed).then_some(stamp) }),
        _ => bail!("an event that no workload caused: {}", instance.id),
    }
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
