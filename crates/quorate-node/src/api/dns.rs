//! DNS over UDP and TCP: sockets, limits and counting around what `quorate-dns` answers.
//!
//! The loops are our own, for what they bound: a datagram is answered before the next one is read,
//! a connection has one query under way, and idle ones end. Nothing is kept of a query.
//!
//! Datagrams have threads of their own that wait in the system call. A task is told of its socket
//! by the runtime: while one thread answered, another woke for each datagram that came or went,
//! and did nothing else.

mod limit;

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use quorate_dns::{Answer, Query, Question, Refused, ResponseCode, Room, Settings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::api::dns::limit::{Limits, Verdict};
use crate::config::{AllFailing, Dns, Networks};
use crate::meters::{DNS_TYPES, DnsLabels};
use crate::net::connections::Admitted;
use crate::node::Node;
use crate::node::reads::CURRENT_MS;

/// A query has 512 bytes by the first standard, and a few hundred in practice.
const QUERY_MAX: usize = 4 * 1024;
/// A connection that asks nothing ends after this time, or takes no answer.
const IDLE: Duration = Duration::from_secs(10);
/// After an error of the socket.
const PAUSE: Duration = Duration::from_millis(100);

const UNHURT: &str = "invariant: nothing panics under this lock";

/// Answers queries of this node's registry.
pub(crate) struct Resolver {
    node: Arc<Node>,
    settings: Settings,
    allow: Networks,
    limits: Mutex<Limits>,
    /// Apart: whoever is told to ask by TCP, since others have asked in its name, is to have an
    /// answer there.
    by_tcp: Mutex<Limits>,
    seed: AtomicU64,
}

impl Resolver {
    pub(crate) fn new(node: Arc<Node>, dns: &Dns, mut settings: Settings, at: SocketAddr) -> Self {
        let tunables = node.tunables();
        settings.ttl = tunables.dns_ttl_s;
        settings.own_zone = dns.zone.clone();
        settings.namespaces = dns.namespaces.clone();
        settings.all_failing = match dns.all_failing {
            AllFailing::Empty => quorate_dns::AllFailing::Empty,
            AllFailing::Serve => quorate_dns::AllFailing::Serve,
        };
        settings.addresses = Some(at.ip()).filter(|ip| !ip.is_unspecified()).into_iter().collect();
        let limits = || Mutex::new(Limits::new(tunables.dns_queries_per_second));
        let (limits, by_tcp) = (limits(), limits());
        let seed = AtomicU64::new(crate::runtime::random());
        Self { allow: dns.allow.clone(), node, settings, limits, by_tcp, seed }
    }

    /// What a message gets; `None`: nothing. The state is looked at only for whoever may ask, and
    /// does not ask too much.
    fn reply(&self, bytes: &[u8], from: IpAddr, room: Room) -> Option<Vec<u8>> {
        let limits = if room == Room::Tcp { &self.by_tcp } else { &self.limits };
        let verdict = limits.lock().expect(UNHURT).take(from, Instant::now());
        if verdict != Verdict::Answer {
            self.node.meters().refused("dns").inc();
        }
        if verdict == Verdict::Silence || room == Room::Tcp && verdict == Verdict::Truncate {
            return None;
        }
        let query = match Query::read(bytes) {
            Ok(query) => query,
            Err(Refused::Silently) => return None,
            Err(Refused::With(..)) if verdict != Verdict::Answer => return None,
            Err(Refused::With(reply, code)) => {
                self.count("other", code);
                return Some(reply);
            }
        };
        if verdict == Verdict::Truncate {
            return Some(query.write_truncated());
        }
        let question = query.question();
        let kind: &str = question.kind.into();
        let kind = DNS_TYPES.into_iter().find(|it| *it == kind).unwrap_or("other");
        let answer = if !self.may_ask(from) {
            Answer::code(ResponseCode::Refused)
        } else if query.is_newer() {
            Answer::code(ResponseCode::BADVERS)
        } else {
            self.answer(question, query.room(room))
        };
        limits.lock().expect(UNHURT).charge(from, answer.looked);
        self.count(kind, answer.code);
        let (reply, is_cut) = query.write(&answer, room);
        if is_cut {
            self.node.meters().dns_truncated.inc();
        }
        Some(reply)
    }

    /// From what this node has, as long as that may be told.
    fn answer(&self, question: &Question, room: usize) -> Answer {
        let failed = || Answer::code(ResponseCode::ServFail);
        let age_ms = self.node.age_ms();
        if age_ms > self.node.tunables().dns_max_stale_ms || self.node.check_member().is_err() {
            return failed();
        }
        let seed = self.seed.fetch_add(1, Ordering::Relaxed);
        let registry = self.node.applied().registry();
        let answer = quorate_dns::answer(question, &registry, &self.settings, seed, room);
        // Of what it has, a node may tell what is old. Of what it does not have, it knows nothing:
        // a resolver takes no for an answer, and asks another node where this one fails.
        let is_unknown =
            answer.code == ResponseCode::NXDomain && self.settings.is_below_svc(&question.name);
        let may_be_elsewhere = || age_ms > CURRENT_MS || !self.node.is_settled(&registry);
        match (is_unknown || answer.lacks_instances) && may_be_elsewhere() {
            true => Answer { looked: answer.looked, ..failed() },
            false => answer,
        }
    }

    fn may_ask(&self, from: IpAddr) -> bool {
        match self.allow.is_empty() {
            true => from.to_canonical().is_loopback(),
            false => self.allow.contain(from),
        }
    }

    fn count(&self, kind: &'static str, code: ResponseCode) {
        let code = match code {
            ResponseCode::NoError => "NOERROR",
            ResponseCode::NXDomain => "NXDOMAIN",
            ResponseCode::Refused => "REFUSED",
            ResponseCode::ServFail => "SERVFAIL",
            ResponseCode::FormErr => "FORMERR",
            ResponseCode::NotImp => "NOTIMP",
            _ => "BADVERS",
        };
        self.node.meters().dns_queries.get_or_create(&DnsLabels { r#type: kind, code }).inc();
    }

    /// Answers datagrams until the stop. Blocks its thread; several may do so at one socket.
    pub(crate) fn answer_datagrams(&self, socket: &UdpSocket, stop: &CancellationToken) {
        let mut bytes = vec![0; QUERY_MAX];
        while !stop.is_cancelled() {
            match socket.recv_from(&mut bytes) {
                Ok((len, from)) => {
                    let reply = self.reply(&bytes[..len], from.ip(), Room::Udp);
                    // One that cannot go out is lost, as any datagram may be.
                    let _ = reply.map(|reply| socket.send_to(&reply, from));
                }
                Err(error) if is_early(&error) => {}
                Err(error) => {
                    tracing::debug!(%error, "cannot receive a query");
                    thread::sleep(PAUSE);
                }
            }
        }
    }

    /// Answers queries over connections until the stop.
    pub(crate) async fn answer_connections(
        &self,
        arriving: impl Stream<Item = (Admitted, CancellationToken)>,
        stop: &CancellationToken,
    ) {
        let serve = |(connection, leave): (Admitted, CancellationToken)| async move {
            tokio::select! {
                // Its other end is gone, silent, or speaks no DNS: nobody to tell.
                _ended = self.answer_connection(connection) => {}
                () = leave.cancelled() => {}
                () = stop.cancelled() => {}
            }
        };
        arriving.take_until(stop.cancelled()).for_each_concurrent(None, serve).await;
    }

    async fn answer_connection(&self, mut connection: Admitted) -> io::Result<()> {
        let Some(from) = connection.connect_info().address() else { return Ok(()) };
        let mut bytes = vec![0; QUERY_MAX];
        loop {
            let len = usize::from(timeout(IDLE, connection.read_u16()).await??);
            let Some(message) = bytes.get_mut(..len) else { return Ok(()) };
            timeout(IDLE, connection.read_exact(message)).await??;
            let Some(reply) = self.reply(message, from, Room::Tcp) else {
                return Ok(());
            };
            let mut framed = Vec::with_capacity(2 + reply.len());
            framed.extend((reply.len() as u16).to_be_bytes());
            framed.extend(reply);
            timeout(IDLE, connection.write_all(&framed)).await??;
            timeout(IDLE, connection.flush()).await??;
        }
    }
}

/// Nothing has come yet.
fn is_early(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}
