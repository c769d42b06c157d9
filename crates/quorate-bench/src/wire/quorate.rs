//! The calls of the workloads on a node of Quorate.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use quorate_proto::v1::admin_client::AdminClient;
use quorate_proto::v1::registry_client::RegistryClient;
use quorate_proto::v1::{
    BackupRequest, ChangeKind, Consistency, DeregisterRequest, FetchRequest, InstanceRef,
    InstanceSpec, LeaseRenewal, ListServicesRequest, Metadata, RegisterRequest, RenewRequest,
    RenewResponse, StatusRequest, TriggerSnapshotRequest, UpdateRequest, WatchRequest,
    WatchSubscribe, watch_request,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::bulk::{self, Value, walk};
use super::{Counted, DECODE_MAX, Event, Freshness, Http2, NodeView, PAGE};
use crate::item::{self, Item};

/// The metadata entry that holds an item's value.
const VALUE: &str = "value";
/// Messages between a sender and the transport; more than any window of the workloads.
const QUEUE: usize = 256;

// The numbers of the fields that are walked through, from proto/quorate/v1.
const FETCHED_SERVICES: u32 = 3;
const FETCHED_NEXT: u32 = 4;
const SERVICE_INSTANCES: u32 = 5;
const INSTANCE_ID: u32 = 3;
const INSTANCE_METADATA: u32 = 9;
const ENTRY_KEY: u32 = 1;
const ENTRY_VALUE: u32 = 2;
const SNAPSHOT: u32 = 3;
const SNAPSHOT_LAST: u32 = 2;
const SNAPSHOT_SERVICES: u32 = 3;
const DELTA: u32 = 4;
const DELTA_CHANGES: u32 = 1;
const CHANGE_KIND: u32 = 2;
const CHANGE_INSTANCE: u32 = 3;

#[derive(Clone)]
pub(crate) struct Connection {
    http2: Http2,
}

pub(crate) struct RenewStream {
    requests: mpsc::Sender<RenewRequest>,
    answers: Streaming<RenewResponse>,
}

pub(crate) struct WatchStream {
    /// Kept open: its end would end the watch.
    _requests: mpsc::Sender<WatchRequest>,
    answers: Streaming<Bytes>,
}

impl Connection {
    pub(super) fn new(http2: Http2) -> Self {
        Self { http2 }
    }

    fn registry(&self) -> RegistryClient<Http2> {
        RegistryClient::new(self.http2.clone()).max_decoding_message_size(DECODE_MAX)
    }

    fn admin(&self) -> AdminClient<Http2> {
        AdminClient::new(self.http2.clone()).max_decoding_message_size(DECODE_MAX)
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

    /// Removes a lease and what it holds.
    pub(crate) async fn deregister(&self, lease: u64) -> Result<()> {
        let request = DeregisterRequest { lease_id: lease, ..DeregisterRequest::default() };
        let answer = self.registry().deregister(request).await.context("Deregister")?;
        let removed = answer.into_inner().removed;
        ensure!(removed == 1, "{removed} instances were removed, not one");
        Ok(())
    }

    async fn read(&self, service: &str, freshness: Freshness) -> Result<Bytes> {
        let consistency = match freshness {
            Freshness::Linearizable => Consistency::Linearizable,
            Freshness::Local => Consistency::Local,
        };
        let request = FetchRequest {
            services: vec![service.to_owned()],
            consistency: consistency.into(),
            ..FetchRequest::default()
        };
        bulk::call(&self.http2, "/quorate.v1.Registry/Fetch", request).await
    }

    pub(super) async fn fetch(&self, service: &str, freshness: Freshness) -> Result<Counted> {
        counted(&self.read(service, freshness).await?)
    }

    pub(super) async fn page(
        &self,
        group: &str,
        after: Option<Bytes>,
    ) -> Result<(Counted, Option<Bytes>)> {
        let request = FetchRequest {
            prefix: format!("{group}-"),
            consistency: Consistency::Linearizable.into(),
            limit: PAGE,
            after: String::from_utf8(after.unwrap_or_default().into())?,
            ..FetchRequest::default()
        };
        let answer = bulk::call(&self.http2, "/quorate.v1.Registry/Fetch", request).await?;
        let counted = counted(&answer)?;
        let mut next = None;
        walk(&answer, |number, value| {
            if let (FETCHED_NEXT, Value::Bytes(text)) = (number, value) {
                next = Some(Bytes::copy_from_slice(text));
            }
            Ok(())
        })?;
        Ok((counted, next))
    }

    pub(super) async fn items(&self, service: &str) -> Result<Vec<Item>> {
        let answer = self.read(service, Freshness::Linearizable).await?;
        let mut items = Vec::new();
        each_fetched(&answer, |found| {
            let (id, value) = (str::from_utf8(found.id)?, str::from_utf8(found.value)?);
            items.push(Item {
                service: service.to_owned(),
                id: id.to_owned(),
                value: value.to_owned(),
            });
            Ok(())
        })?;
        Ok(items)
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
        let subscribe = watch_request::Kind::Subscribe(subscribe);
        requests.send(WatchRequest { kind: Some(subscribe) }).await?;
        let receiver = ReceiverStream::new(receiver);
        let mut answers = bulk::stream(&self.http2, "/quorate.v1.Registry/Watch", receiver).await?;
        let mut begun = false;
        while !begun {
            let message = answers.message().await?.context("the watch ended")?;
            walk(&message, |number, value| match (number, value) {
                (SNAPSHOT, Value::Bytes(part)) => walk(part, |number, value| {
                    begun |= (number, value) == (SNAPSHOT_LAST, Value::Number(1));
                    Ok(())
                }),
                _ => Ok(()),
            })?;
        }
        Ok(WatchStream { _requests: requests, answers })
    }

    pub(super) async fn view(&self) -> Result<NodeView> {
        let answer = self.admin().status(StatusRequest { local_only: true }).await;
        let answer = answer.context("Status")?.into_inner();
        let header = answer.header.context("Status without a header")?;
        let applied = answer.members.first().map_or(0, |member| member.applied_index);
        Ok(NodeView {
            own_id: header.node_id,
            leader_id: NonZeroU64::new(header.leader_id),
            applied,
        })
    }

    pub(super) async fn backup(&self) -> Result<u64> {
        let mut chunks =
            self.admin().backup(BackupRequest::default()).await.context("Backup")?.into_inner();
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
        walk(&message, |number, value| match (number, value) {
            (DELTA, Value::Bytes(delta)) => walk(delta, |number, value| match (number, value) {
                (DELTA_CHANGES, Value::Bytes(change)) => {
                    events.push(changed(change)?);
                    Ok(())
                }
                _ => Ok(()),
            }),
            // The watcher fell behind what the node remembers: this stands for all that it missed.
            (SNAPSHOT, Value::Bytes(part)) => walk(part, |number, value| match (number, value) {
                (SNAPSHOT_SERVICES, Value::Bytes(service)) => each_of(service, |found| {
                    events.push(event(&found, false)?);
                    Ok(())
                }),
                _ => Ok(()),
            }),
            _ => Ok(()),
        })
    }
}

/// What the workloads look at of an encoded instance.
#[derive(Default)]
struct Found<'a> {
    id: &'a [u8],
    /// Empty if there is none: no workload writes that.
    value: &'a [u8],
}

/// Counts the instances of a fetch's answer.
fn counted(answer: &[u8]) -> Result<Counted> {
    let mut counted = Counted { instances: 0, value_bytes: 0 };
    each_fetched(answer, |found| {
        counted.instances += 1;
        counted.value_bytes += found.value.len();
        Ok(())
    })?;
    Ok(counted)
}

/// Visits the instances of a fetch's answer.
fn each_fetched(answer: &[u8], mut visit: impl FnMut(Found<'_>) -> Result<()>) -> Result<()> {
    walk(answer, |number, value| match (number, value) {
        (FETCHED_SERVICES, Value::Bytes(service)) => each_of(service, &mut visit),
        _ => Ok(()),
    })
}

/// Visits the instances of a service.
fn each_of(service: &[u8], mut visit: impl FnMut(Found<'_>) -> Result<()>) -> Result<()> {
    walk(service, |number, value| match (number, value) {
        (SERVICE_INSTANCES, Value::Bytes(instance)) => visit(found(instance)?),
        _ => Ok(()),
    })
}

fn found(instance: &[u8]) -> Result<Found<'_>> {
    let mut found = Found::default();
    walk(instance, |number, field| {
        match (number, field) {
            (INSTANCE_ID, Value::Bytes(id)) => found.id = id,
            (INSTANCE_METADATA, Value::Bytes(entry)) => {
                let (mut key, mut value) = (&[][..], &[][..]);
                walk(entry, |number, field| {
                    match (number, field) {
                        (ENTRY_KEY, Value::Bytes(bytes)) => key = bytes,
                        (ENTRY_VALUE, Value::Bytes(bytes)) => value = bytes,
                        _ => {}
                    }
                    Ok(())
                })?;
                if key == VALUE.as_bytes() {
                    found.value = value;
                }
            }
            _ => {}
        }
        Ok(())
    })?;
    Ok(found)
}

fn changed(change: &[u8]) -> Result<Event> {
    let (mut removed, mut instance) = (false, None);
    walk(change, |number, value| {
        match (number, value) {
            (CHANGE_KIND, Value::Number(kind)) => removed = kind == ChangeKind::Removed as u64,
            (CHANGE_INSTANCE, Value::Bytes(encoded)) => instance = Some(found(encoded)?),
            _ => {}
        }
        Ok(())
    })?;
    event(&instance.context("a change without its instance")?, removed)
}

fn event(found: &Found<'_>, removed: bool) -> Result<Event> {
    let id = str::from_utf8(found.id).unwrap_or_default();
    match (item::number(id), item::stamp(found.value)) {
        (Some(number), Some(stamp)) => Ok(Event { number, stamp: (!removed).then_some(stamp) }),
        _ => bail!("an event that no workload caused: {id}"),
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
    let renewals = leases.iter().map(|&lease_id| LeaseRenewal { lease_id }).collect();
    RenewRequest { renewals, ..RenewRequest::default() }
}

fn all_known(answer: &RenewResponse) -> Result<()> {
    ensure!(answer.unknown_lease_ids.is_empty(), "leases are gone: {:?}", answer.unknown_lease_ids);
    Ok(())
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use quorate_proto::v1::{Change, FetchResponse, Instance, Service};

    use super::*;

    fn instance(item: &Item) -> Instance {
        let (service, id) = (item.service.clone(), item.id.clone());
        let mut metadata = metadata(item);
        metadata.insert("another".to_owned(), "entry".to_owned());
        Instance { service, id, metadata, lease_id: 1 << 60, ..Instance::default() }
    }

    #[test]
    fn instances_and_changes_are_found_in_what_is_encoded() {
        let items = [Item::new("group", 7, 3), Item::new("group", 8, 4)];
        let service =
            Service { instances: items.iter().map(instance).collect(), ..Service::default() };
        let answer = FetchResponse { services: vec![service], ..FetchResponse::default() };
        let mut read = Vec::new();
        each_fetched(&answer.encode_to_vec(), |found| {
            read.push((found.id.to_vec(), found.value.to_vec()));
            Ok(())
        })
        .unwrap();
        let expected =
            items.each_ref().map(|item| (item.id.clone().into(), item.value.clone().into()));
        assert_eq!(read, expected);

        for (kind, stamp) in [(ChangeKind::Modified, Some(3)), (ChangeKind::Removed, None)] {
            let change = Change {
                kind: kind.into(),
                instance: Some(instance(&items[0])),
                ..Change::default()
            };
            assert_eq!(changed(&change.encode_to_vec()).unwrap(), Event { number: 7, stamp });
        }
        assert!(changed(&Change::default().encode_to_vec()).is_err(), "without its instance");
    }
}
