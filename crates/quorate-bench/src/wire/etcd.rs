//! The calls of the workloads on a node of etcd: an instance is a key below its service's, with a
//! lease.

use std::num::NonZeroU64;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::bulk::{self, Value, walk};
use super::{Counted, DECODE_MAX, Event, Freshness, Http2, NodeView, PAGE};
use crate::etcd::kv_client::KvClient;
use crate::etcd::lease_client::LeaseClient;
use crate::etcd::maintenance_client::MaintenanceClient;
use crate::etcd::watch_request::RequestUnion;
use crate::etcd::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse, PutRequest, RangeRequest,
    SnapshotRequest, StatusRequest, WatchCreateRequest, WatchRequest,
};
use crate::item::{self, Item};

/// Messages between a sender and the transport; more than any window of the workloads.
const QUEUE: usize = 256;

/// How often a write that etcd refuses is tried again, and after which pause: for 10 s.
const REFUSALS_MAX: usize = 200;
const REFUSED_PAUSE: Duration = Duration::from_millis(50);

// The numbers of the fields that are walked through, from proto/etcd.proto.
const RANGE_KVS: u32 = 2;
const KV_KEY: u32 = 1;
const KV_VALUE: u32 = 5;
const WATCH_CREATED: u32 = 3;
const WATCH_CANCELED: u32 = 4;
const WATCH_EVENTS: u32 = 11;
const EVENT_TYPE: u32 = 1;
const EVENT_DELETE: u64 = 1;
const EVENT_KV: u32 = 2;

#[derive(Clone)]
pub(crate) struct Connection {
    http2: Http2,
}

pub(crate) struct RenewStream {
    requests: mpsc::Sender<LeaseKeepAliveRequest>,
    answers: Streaming<LeaseKeepAliveResponse>,
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

    fn kv(&self) -> KvClient<Http2> {
        KvClient::new(self.http2.clone()).max_decoding_message_size(DECODE_MAX)
    }

    fn maintenance(&self) -> MaintenanceClient<Http2> {
        MaintenanceClient::new(self.http2.clone()).max_decoding_message_size(DECODE_MAX)
    }

    pub(super) async fn register(&self, item: &Item, lease: u64, ttl: Duration) -> Result<u64> {
        let lease = if lease == 0 { self.grant(ttl).await? } else { lease };
        self.put(item, lease).await?;
        Ok(lease)
    }

    async fn grant(&self, ttl: Duration) -> Result<u64> {
        let request = LeaseGrantRequest { ttl: i64::try_from(ttl.as_secs())?, id: 0 };
        let grant = || {
            let mut client = LeaseClient::new(self.http2.clone());
            async move { client.lease_grant(request).await }
        };
        let answer = until_taken(grant).await.context("LeaseGrant")?.into_inner();
        ensure!(answer.error.is_empty() && answer.id > 0, "LeaseGrant: {}", answer.error);
        Ok(u64::try_from(answer.id)?)
    }

    pub(super) async fn put(&self, item: &Item, lease: u64) -> Result<()> {
        let request = PutRequest {
            key: format!("/{}/{}", item.service, item.id).into(),
            value: item.value.clone().into(),
            lease: i64::try_from(lease)?,
        };
        let put = || {
            let (mut client, request) = (self.kv(), request.clone());
            async move { client.put(request).await }
        };
        until_taken(put).await.context("Put")?;
        Ok(())
    }

    pub(super) async fn renew(&self, lease: u64) -> Result<()> {
        self.renew_stream(lease).await.map(|_| ())
    }

    pub(super) async fn renew_stream(&self, lease: u64) -> Result<RenewStream> {
        let (requests, receiver) = mpsc::channel(QUEUE);
        requests.send(LeaseKeepAliveRequest { id: i64::try_from(lease)? }).await?;
        let mut client = LeaseClient::new(self.http2.clone());
        let answers = client.lease_keep_alive(ReceiverStream::new(receiver));
        let answers = answers.await.context("LeaseKeepAlive")?.into_inner();
        let mut stream = RenewStream { requests, answers };
        stream.answer().await?;
        Ok(stream)
    }

    /// The keys below a service, as they come.
    async fn read(&self, service: &str, serializable: bool) -> Result<Bytes> {
        let key = Bytes::from(format!("/{service}/"));
        let range_end = end_of(&key);
        let request = RangeRequest { key, range_end, serializable, ..RangeRequest::default() };
        bulk::call(&self.http2, "/etcdserverpb.KV/Range", request).await
    }

    pub(super) async fn fetch(&self, service: &str, freshness: Freshness) -> Result<Counted> {
        let answer = self.read(service, freshness == Freshness::Local).await?;
        let mut counted = Counted { instances: 0, value_bytes: 0 };
        each_read(&answer, |found| {
            counted.instances += 1;
            counted.value_bytes += found.value.len();
            Ok(())
        })?;
        Ok(counted)
    }

    pub(super) async fn page(
        &self,
        group: &str,
        after: Option<Bytes>,
    ) -> Result<(Counted, Option<Bytes>)> {
        let first = Bytes::from(format!("/{group}-"));
        let range_end = end_of(&first);
        let (key, limit) = (after.unwrap_or(first), i64::from(PAGE));
        let request = RangeRequest { key, range_end, limit, ..RangeRequest::default() };
        let answer = bulk::call(&self.http2, "/etcdserverpb.KV/Range", request).await?;
        let (mut counted, mut last) = (Counted { instances: 0, value_bytes: 0 }, Vec::new());
        each_read(&answer, |found| {
            counted.instances += 1;
            counted.value_bytes += found.value.len();
            last.clear();
            last.extend_from_slice(found.key);
            Ok(())
        })?;
        // The next page begins right behind the last key.
        last.push(0);
        let full = counted.instances == PAGE as usize;
        Ok((counted, full.then(|| last.into())))
    }

    pub(super) async fn items(&self, service: &str) -> Result<Vec<Item>> {
        let answer = self.read(service, false).await?;
        let mut items = Vec::new();
        each_read(&answer, |found| {
            items.push(item(&found)?);
            Ok(())
        })?;
        Ok(items)
    }

    pub(super) async fn count(&self, group: &str) -> Result<u64> {
        let key = Bytes::from(format!("/{group}-"));
        let range_end = end_of(&key);
        let request = RangeRequest { key, range_end, count_only: true, ..RangeRequest::default() };
        let answer = self.kv().range(request).await.context("Range")?.into_inner();
        Ok(u64::try_from(answer.count)?)
    }

    pub(super) async fn watch(&self, group: &str) -> Result<WatchStream> {
        let (requests, receiver) = mpsc::channel(QUEUE);
        let key = Bytes::from(format!("/{group}-"));
        let create = WatchCreateRequest { range_end: end_of(&key), key, start_revision: 0 };
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        requests.send(create).await?;
        let receiver = ReceiverStream::new(receiver);
        let mut answers = bulk::stream(&self.http2, "/etcdserverpb.Watch/Watch", receiver).await?;
        let first = answers.message().await?.context("the watch ended")?;
        let mut created = false;
        walk(&first, |number, value| {
            created |= (number, value) == (WATCH_CREATED, Value::Number(1));
            Ok(())
        })?;
        ensure!(created, "a watch was not created");
        Ok(WatchStream { _requests: requests, answers })
    }

    pub(super) async fn view(&self) -> Result<NodeView> {
        let answer = self.maintenance().status(StatusRequest {}).await;
        let answer = answer.context("Status")?.into_inner();
        let own_id = answer.header.context("Status without a header")?.member_id;
        let leader_id = NonZeroU64::new(answer.leader);
        Ok(NodeView { own_id, leader_id, applied: answer.raft_applied_index })
    }

    pub(super) async fn backup(&self) -> Result<u64> {
        let chunks = self.maintenance().snapshot(SnapshotRequest {}).await;
        let mut chunks = chunks.context("Snapshot")?.into_inner();
        let mut bytes = 0;
        while let Some(chunk) = chunks.message().await.context("Snapshot")? {
            bytes += chunk.blob.len() as u64;
        }
        Ok(bytes)
    }
}

/// A write, again while etcd refuses it because it is behind with applying others.
async fn until_taken<T, F>(write: impl Fn() -> F) -> Result<T, Status>
where
    F: Future<Output = Result<T, Status>>,
{
    for _ in 0..REFUSALS_MAX {
        match write().await {
            Err(status) if status.message().ends_with("too many requests") => {
                tokio::time::sleep(REFUSED_PAUSE).await;
            }
            done => return done,
        }
    }
    write().await
}

impl RenewStream {
    pub(super) async fn send(&mut self, lease: u64) -> Result<()> {
        let request = LeaseKeepAliveRequest { id: i64::try_from(lease)? };
        self.requests.send(request).await.context("the stream of renewals ended")
    }

    pub(super) async fn answer(&mut self) -> Result<()> {
        let answer = self.answers.message().await.context("LeaseKeepAlive")?;
        let answer = answer.context("the stream of renewals ended")?;
        ensure!(answer.ttl > 0, "lease {:x} is gone", answer.id);
        Ok(())
    }
}

impl WatchStream {
    pub(super) async fn next(&mut self, events: &mut Vec<Event>) -> Result<()> {
        let message = self.answers.message().await.context("Watch")?;
        let message = message.context("the watch ended")?;
        walk(&message, |number, value| {
            match (number, value) {
                (WATCH_CANCELED, Value::Number(1)) => bail!("a watch was cancelled"),
                (WATCH_EVENTS, Value::Bytes(bytes)) => events.push(event(bytes)?),
                _ => {}
            }
            Ok(())
        })
    }
}

/// What the workloads look at of an encoded key.
#[derive(Default)]
struct Found<'a> {
    key: &'a [u8],
    value: &'a [u8],
}

/// Visits the keys of a range's answer.
fn each_read(answer: &[u8], mut visit: impl FnMut(Found<'_>) -> Result<()>) -> Result<()> {
    walk(answer, |number, value| match (number, value) {
        (RANGE_KVS, Value::Bytes(kv)) => visit(found(kv)?),
        _ => Ok(()),
    })
}

fn found(kv: &[u8]) -> Result<Found<'_>> {
    let mut found = Found::default();
    walk(kv, |number, value| {
        match (number, value) {
            (KV_KEY, Value::Bytes(key)) => found.key = key,
            (KV_VALUE, Value::Bytes(value)) => found.value = value,
            _ => {}
        }
        Ok(())
    })?;
    Ok(found)
}

fn event(bytes: &[u8]) -> Result<Event> {
    let (mut removed, mut kv) = (false, None);
    walk(bytes, |number, value| {
        match (number, value) {
            (EVENT_TYPE, Value::Number(kind)) => removed = kind == EVENT_DELETE,
            (EVENT_KV, Value::Bytes(encoded)) => kv = Some(found(encoded)?),
            _ => {}
        }
        Ok(())
    })?;
    let kv = kv.context("an event without its key")?;
    let number = kv.key.rsplit(|byte| *byte == b'/').next();
    let number = number.and_then(|id| item::number(str::from_utf8(id).ok()?));
    let stamp = if removed { None } else { item::stamp(kv.value) };
    match number {
        Some(number) if removed || stamp.is_some() => Ok(Event { number, stamp }),
        _ => bail!("an event that no workload caused: {:?}", kv.key),
    }
}

fn item(found: &Found<'_>) -> Result<Item> {
    let key = str::from_utf8(found.key)?;
    let names = key.strip_prefix('/').and_then(|key| key.split_once('/'));
    let (service, id) = names.context("a key that no workload wrote")?;
    let value = str::from_utf8(found.value)?;
    Ok(Item { service: service.to_owned(), id: id.to_owned(), value: value.to_owned() })
}

/// The first key behind all that begin with `prefix`. Ours end in ASCII, so the last byte can grow.
fn end_of(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.into()
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::etcd::{self, KeyValue, RangeResponse, WatchResponse};

    fn kv(item: &Item) -> KeyValue {
        let key = format!("/{}/{}", item.service, item.id).into();
        KeyValue { key, value: item.value.clone().into(), lease: 1 << 60, ..KeyValue::default() }
    }

    #[test]
    fn keys_and_events_are_found_in_what_is_encoded() {
        let items = [Item::new("group", 7, 3), Item::new("group", 8, 4)];
        let range = RangeResponse { kvs: items.iter().map(kv).collect(), ..Default::default() };
        let mut read = Vec::new();
        each_read(&range.encode_to_vec(), |found| {
            read.push(item(&found)?);
            Ok(())
        })
        .unwrap();
        assert_eq!(read, items);

        let put = etcd::Event { kv: Some(kv(&items[0])), ..Default::default() };
        let delete = etcd::Event {
            r#type: etcd::event::EventType::Delete.into(),
            kv: Some(KeyValue { value: Bytes::new(), ..kv(&items[1]) }),
        };
        let response = WatchResponse { events: vec![put, delete], ..Default::default() };
        let mut events = Vec::new();
        walk(&response.encode_to_vec(), |number, value| {
            if let (WATCH_EVENTS, Value::Bytes(bytes)) = (number, value) {
                events.push(event(bytes)?);
            }
            Ok(())
        })
        .unwrap();
        let (put, delete) = (Event { number: 7, stamp: Some(3) }, Event { number: 8, stamp: None });
        assert_eq!(events, [put, delete]);
    }
}
