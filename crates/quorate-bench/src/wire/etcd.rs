//! The calls of the workloads on a node of etcd: an instance is a key below its service's, with a lease.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::{Counted, DECODE_MAX, Event, Freshness, NodeView};
use crate::etcd::event::EventType;
use crate::etcd::kv_client::KvClient;
use crate::etcd::lease_client::LeaseClient;
use crate::etcd::maintenance_client::MaintenanceClient;
use crate::etcd::watch_client::WatchClient;
use crate::etcd::watch_request::RequestUnion;
use crate::etcd::{
    KeyValue, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse, PutRequest,
    RangeRequest, RangeResponse, SnapshotRequest, StatusRequest, WatchCreateRequest, WatchRequest,
    WatchResponse,
};
use crate::item::{self, Item};

/// Messages between a sender and the transport; more than any window of the workloads.
const QUEUE: usize = 256;

#[derive(Clone)]
pub(crate) struct Connection {
    channel: Channel,
}

pub(crate) struct RenewStream {
    requests: mpsc::Sender<LeaseKeepAliveRequest>,
    answers: Streaming<LeaseKeepAliveResponse>,
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

    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone()).max_decoding_message_size(DECODE_MAX)
    }

    fn maintenance(&self) -> MaintenanceClient<Channel> {
        MaintenanceClient::new(self.channel.clone()).max_decoding_message_size(DECODE_MAX)
    }

    pub(super) async fn register(&self, item: &Item, lease: u64, ttl: Duration) -> Result<u64> {
        let lease = if lease == 0 { self.grant(ttl).await? } else { lease };
        self.put(item, lease).await?;
        Ok(lease)
    }

    async fn grant(&self, ttl: Duration) -> Result<u64> {
        let request = LeaseGrantRequest { ttl: i64::try_from(ttl.as_secs())?, id: 0 };
        let answer = LeaseClient::new(self.channel.clone()).lease_grant(request).await;
        let answer = answer.context("LeaseGrant")?.into_inner();
        ensure!(answer.error.is_empty() && answer.id > 0, "LeaseGrant: {}", answer.error);
        Ok(u64::try_from(answer.id)?)
    }

    pub(super) async fn put(&self, item: &Item, lease: u64) -> Result<()> {
        let request = PutRequest {
            key: format!("/{}/{}", item.service, item.id).into(),
            value: item.value.clone().into(),
            lease: i64::try_from(lease)?,
        };
        self.kv().put(request).await.context("Put")?;
        Ok(())
    }

    pub(super) async fn renew(&self, lease: u64) -> Result<()> {
        self.renew_stream(lease).await.map(|_| ())
    }

    pub(super) async fn renew_stream(&self, lease: u64) -> Result<RenewStream> {
        let (requests, receiver) = mpsc::channel(QUEUE);
        requests.send(LeaseKeepAliveRequest { id: i64::try_from(lease)? }).await?;
        let mut client = LeaseClient::new(self.channel.clone());
        let answers = client.lease_keep_alive(ReceiverStream::new(receiver));
        let answers = answers.await.context("LeaseKeepAlive")?.into_inner();
        let mut stream = RenewStream { requests, answers };
        stream.answer().await?;
        Ok(stream)
    }

    async fn range(&self, mut request: RangeRequest) -> Result<RangeResponse> {
        request.range_end = end_of(&request.key);
        Ok(self.kv().range(request).await.context("Range")?.into_inner())
    }

    pub(super) async fn fetch(&self, service: &str, freshness: Freshness) -> Result<Counted> {
        let serializable = freshness == Freshness::Local;
        let key = format!("/{service}/").into();
        let answer =
            self.range(RangeRequest { key, serializable, ..RangeRequest::default() }).await?;
        let value_bytes = answer.kvs.iter().map(|kv| kv.value.len()).sum();
        Ok(Counted { instances: answer.kvs.len(), value_bytes })
    }

    pub(super) async fn items(&self, service: &str) -> Result<Vec<Item>> {
        let key = format!("/{service}/").into();
        let answer = self.range(RangeRequest { key, ..RangeRequest::default() }).await?;
        answer.kvs.iter().map(item).collect()
    }

    pub(super) async fn count(&self, group: &str) -> Result<u64> {
        let key = format!("/{group}-").into();
        let request = RangeRequest { key, count_only: true, ..RangeRequest::default() };
        Ok(u64::try_from(self.range(request).await?.count)?)
    }

    pub(super) async fn watch(&self, group: &str) -> Result<WatchStream> {
        let (requests, receiver) = mpsc::channel(QUEUE);
        let key = bytes::Bytes::from(format!("/{group}-"));
        let create = WatchCreateRequest { range_end: end_of(&key), key, start_revision: 0 };
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        requests.send(create).await?;
        let mut client =
            WatchClient::new(self.channel.clone()).max_decoding_message_size(DECODE_MAX);
        let answers = client.watch(ReceiverStream::new(receiver)).await;
        let mut answers = answers.context("Watch")?.into_inner();
        let first = answers.message().await?.context("the watch ended")?;
        ensure!(first.created, "a watch was not created");
        Ok(WatchStream { _requests: requests, answers })
    }

    pub(super) async fn view(&self) -> Result<NodeView> {
        let answer = self.maintenance().status(StatusRequest {}).await;
        let answer = answer.context("Status")?.into_inner();
        let own_id = answer.header.context("Status without a header")?.member_id;
        Ok(NodeView { own_id, leader_id: answer.leader, applied: answer.raft_applied_index })
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
        ensure!(!message.canceled, "a watch was cancelled");
        for event in message.events {
            let removed = event.r#type() == EventType::Delete;
            let kv = event.kv.context("an event without its key")?;
            let number = kv.key.rsplit(|byte| *byte == b'/').next();
            let number = number.and_then(|id| item::number(std::str::from_utf8(id).ok()?));
            let stamp = if removed { None } else { item::stamp(&kv.value) };
            match number {
                Some(number) if removed || stamp.is_some() => events.push(Event { number, stamp }),
                _ => bail!("an event that no workload caused: {:?}", kv.key),
            }
        }
        Ok(())
    }
}

fn item(kv: &KeyValue) -> Result<Item> {
    let key = std::str::from_utf8(&kv.key)?;
    let names = key.strip_prefix('/').and_then(|key| key.split_once('/'));
    let (service, id) = names.context("a key that no workload wrote")?;
    let value = String::from_utf8(kv.value.to_vec())?;
    Ok(Item { service: service.to_owned(), id: id.to_owned(), value })
}

/// The first key behind all that begin with `prefix`. Ours end in ASCII, so the last byte can grow.
fn end_of(prefix: &[u8]) -> bytes::Bytes {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.into()
}
