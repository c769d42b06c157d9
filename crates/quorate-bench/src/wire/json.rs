//! The calls of the HTTP workload, by HTTP/1.1 and JSON: our API, and etcd's gateway to its gRPC. A
//! connection has one call at a time, as those of browsers and of most libraries do.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Event, Peer};
use crate::item::{self, Item};

/// Longer than any call of the workload takes on a cluster that works.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) struct Json {
    peer: Peer,
    requests: SendRequest<Full<Bytes>>,
    host: String,
}

/// A watch on services whose names begin with something: lines of JSON.
pub(crate) struct Lines {
    peer: Peer,
    body: Incoming,
    /// Of a line that is not whole yet.
    rest: Vec<u8>,
    /// Keeps the connection.
    _connection: Json,
}

impl Json {
    pub(crate) async fn open(peer: Peer, host: &str) -> Result<Self> {
        let opening = async {
            let tcp = TcpStream::connect(host).await?;
            tcp.set_nodelay(true)?;
            let (requests, connection) = handshake(TokioIo::new(tcp)).await?;
            // Its end is an error of the call that is under way.
            tokio::spawn(async { drop(connection.await) });
            anyhow::Ok(Self { peer, requests, host: host.to_owned() })
        };
        let opened = timeout(CALL_TIMEOUT, opening).await.context("no connection in time");
        opened.and_then(|opened| opened).with_context(|| format!("connecting to {host}"))
    }

    async fn begin(&mut self, method: Method, path: &str, body: Option<Value>) -> Result<Incoming> {
        let request = Request::builder().method(method).uri(path).header(HOST, &self.host);
        let request = request.header(CONTENT_TYPE, "application/json");
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let request = request.body(Full::new(Bytes::from(body)))?;
        let calling = async {
            self.requests.ready().await?;
            self.requests.send_request(request).await
        };
        let answer = timeout(CALL_TIMEOUT, calling).await.context("no answer in time")??;
        let status = answer.status();
        if !status.is_success() {
            let why = answer.into_body().collect().await?.to_bytes();
            anyhow::bail!("{path}: {status}: {}", String::from_utf8_lossy(&why));
        }
        Ok(answer.into_body())
    }

    async fn call(&mut self, method: Method, path: &str, body: Option<Value>) -> Result<Bytes> {
        let answer = self.begin(method, path, body).await?.collect();
        Ok(timeout(CALL_TIMEOUT, answer).await.context("no answer in time")??.to_bytes())
    }

    async fn gateway(&mut self, path: &str, body: Value) -> Result<Bytes> {
        self.call(Method::POST, path, Some(body)).await
    }

    /// Registers an instance under a lease of its own, on etcd a grant and a put; the lease.
    pub(crate) async fn register(&mut self, item: &Item, ttl: Duration) -> Result<u64> {
        if self.peer == Peer::Etcd {
            let granted = self.gateway("/v3/lease/grant", json!({ "TTL": ttl.as_secs() })).await?;
            let lease = text(&serde_json::from_slice(&granted)?, "ID")?;
            let (key, value) = (base64(&key(item)), base64(&item.value));
            let put = json!({ "key": key, "value": value, "lease": lease });
            self.gateway("/v3/kv/put", put).await?;
            return Ok(lease.parse()?);
        }
        let path =
            format!("/api/v1/namespaces/default/services/{}/instances/{}", item.service, item.id);
        let registered = json!({
            "endpoints": { "http": "http://10.0.0.1:8080" },
            "metadata": { "value": item.value },
            "ttl_ms": u64::try_from(ttl.as_millis())?,
            "incarnation": 1,
        });
        let answer = self.call(Method::PUT, &path, Some(registered)).await?;
        Ok(text(&serde_json::from_slice(&answer)?, "lease_id")?.parse()?)
    }

    /// Renews a lease; an error if it is gone.
    pub(crate) async fn renew(&mut self, lease: u64) -> Result<()> {
        if self.peer == Peer::Etcd {
            let body = json!({ "ID": lease.to_string() });
            let answer = self.gateway("/v3/lease/keepalive", body).await?;
            let answer: Value = serde_json::from_slice(&answer)?;
            // Of a lease that is gone it says no TTL.
            text(&answer["result"], "TTL")?;
            return Ok(());
        }
        self.call(Method::PUT, &format!("/api/v1/leases/{lease}"), None).await?;
        Ok(())
    }

    /// Reads a service, linearizable; how many instances came. They are counted where they lie.
    pub(crate) async fn fetch(&mut self, service: &str) -> Result<usize> {
        if self.peer == Peer::Etcd {
            let answer = self.gateway("/v3/kv/range", below(&format!("/{service}/"))).await?;
            return Ok(count(&answer, "\"key\":\""));
        }
        let path = format!("/api/v1/namespaces/default/services/{service}");
        let answer = self.call(Method::GET, &path, None).await?;
        Ok(count(&answer, "\"id\":\"instance-"))
    }

    /// Follows all services whose names begin with `group`. Returns when the position is taken.
    pub(crate) async fn watch(self, group: &str) -> Result<Lines> {
        let mut lines = self.lines(below(&format!("/{group}")), format!("prefix={group}")).await?;
        let begun: &[u8] = match lines.peer {
            Peer::Etcd => b"\"created\":true",
            Peer::Quorate | Peer::Plain => b"\"last\":true",
        };
        let first = async {
            while !lines.line().await?.windows(begun.len()).any(|part| part == begun) {}
            anyhow::Ok(())
        };
        timeout(CALL_TIMEOUT, first).await.context("the watch does not begin")??;
        Ok(lines)
    }

    /// The same, with all that has happened since the cluster began.
    pub(crate) async fn replay(self, group: &str) -> Result<Lines> {
        let mut range = below(&format!("/{group}"));
        range["start_revision"] = json!("1");
        self.lines(range, format!("prefix={group}&from=oldest")).await
    }

    /// A watch: of this range, or by this query.
    async fn lines(mut self, range: Value, query: String) -> Result<Lines> {
        let peer = self.peer;
        let body = match peer {
            Peer::Etcd => {
                let create = json!({ "create_request": range });
                self.begin(Method::POST, "/v3/watch", Some(create)).await?
            }
            Peer::Quorate | Peer::Plain => {
                let path = format!("/api/v1/namespaces/default/watch?{query}");
                self.begin(Method::GET, &path, None).await?
            }
        };
        Ok(Lines { peer, body, rest: Vec::new(), _connection: self })
    }
}

impl Lines {
    /// Waits for the next line and adds its events.
    pub(super) async fn next(&mut self, events: &mut Vec<Event>) -> Result<()> {
        let line = self.line().await?;
        match self.peer {
            Peer::Etcd => {
                let told: Told = serde_json::from_slice(&line)?;
                for event in told.result.events {
                    let (key, value) = (decode(&event.kv.key)?, decode(&event.kv.value)?);
                    let id = std::str::from_utf8(&key)?.rsplit('/').next().unwrap_or_default();
                    ensure!(event.r#type.is_empty(), "nothing is removed here: {}", event.r#type);
                    events.push(event_of(id, &value)?);
                }
            }
            Peer::Quorate | Peer::Plain => {
                let Some(data) = line.strip_prefix(b"data: ") else { return Ok(()) };
                let told: Data = serde_json::from_slice(data)?;
                for change in told.changes {
                    let instance = change.instance;
                    events.push(event_of(&instance.id, instance.metadata.value.as_bytes())?);
                }
            }
        }
        Ok(())
    }

    async fn line(&mut self) -> Result<Vec<u8>> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let rest = self.rest.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.rest, rest);
                line.truncate(end);
                return Ok(line);
            }
            let frame = self.body.frame().await.context("the watch has ended")??;
            if let Some(data) = frame.data_ref() {
                self.rest.extend_from_slice(data);
            }
        }
    }
}

// What is read of an event; both peers say more.

#[derive(Deserialize)]
struct Told {
    #[serde(default)]
    result: Watched,
}

#[derive(Default, Deserialize)]
struct Watched {
    #[serde(default)]
    events: Vec<EtcdEvent>,
}

#[derive(Deserialize)]
struct EtcdEvent {
    /// Not there: a put.
    #[serde(default)]
    r#type: String,
    kv: KeyValue,
}

#[derive(Deserialize)]
struct KeyValue {
    key: String,
    #[serde(default)]
    value: String,
}

#[derive(Deserialize)]
struct Data {
    #[serde(default)]
    changes: Vec<Change>,
}

#[derive(Deserialize)]
struct Change {
    instance: Instance,
}

#[derive(Deserialize)]
struct Instance {
    id: String,
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    value: String,
}

fn event_of(id: &str, value: &[u8]) -> Result<Event> {
    let number = item::number(id).with_context(|| format!("an unknown instance: {id}"))?;
    Ok(Event { number, stamp: item::stamp(value) })
}

fn text(answer: &Value, field: &str) -> Result<String> {
    let text = answer[field].as_str().with_context(|| format!("no {field} in {answer}"))?;
    Ok(text.to_owned())
}

fn count(answer: &[u8], what: &str) -> usize {
    String::from_utf8_lossy(answer).matches(what).count()
}

fn key(item: &Item) -> String {
    format!("/{}/{}", item.service, item.id)
}

fn base64(text: &str) -> String {
    STANDARD.encode(text)
}

fn decode(text: &str) -> Result<Vec<u8>> {
    Ok(STANDARD.decode(text)?)
}

/// All keys that begin so.
fn below(prefix: &str) -> Value {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    json!({ "key": base64(prefix), "range_end": STANDARD.encode(end) })
}
