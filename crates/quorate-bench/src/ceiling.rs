//! What gRPC and the disk can do at most on this machine: an echo server in a process of its own,
//! called as the workloads call, and a file that is written and synced like a log.

use std::collections::VecDeque;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::pin::Pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::{Stream, StreamExt};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::args::CeilingArgs;
use crate::certs::Address;
use crate::disk::Workspace;
use crate::echo::Ping;
use crate::echo::echo_client::EchoClient;
use crate::echo::echo_server::{Echo, EchoServer};
use crate::load::{CpuMark, Latencies, Measured, Until, closed_loop_of, latencies, record};
use crate::number::number;
use crate::output;
use crate::ports::free_port;
use crate::process::Process;
use crate::wire::Http2;

/// As many as the workloads have to three nodes.
const CONNECTIONS: usize = 6;
const IN_FLIGHT: [usize; 3] = [1, 64, 512];
const STREAMS: usize = 64;
/// Windows of the streams, and numbers in a message.
const STREAM_SHAPES: [(usize, usize, &str); 3] = [
    (1, 1, "stream, window 1"),
    (32, 1, "stream, window 32"),
    (32, 100, "stream, window 32, 100 numbers"),
];
const BLOCK: usize = 4096;
/// What a log does that is not laid out before.
pub(crate) const APPEND: &str = "append and fdatasync of 4 KiB";
const UP_WITHIN: Duration = Duration::from_secs(10);

/// One limit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Limit {
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    pub(crate) per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// Of the client and of the server, for each operation.
    pub(crate) client_cpu_us: f64,
    pub(crate) server_cpu_us: f64,
}

pub(crate) async fn run(args: &CeilingArgs) -> Result<()> {
    let workspace = Workspace::create(args.data_dir.as_deref(), false)?;
    let limits = measure(workspace.path(), Duration::from_secs_f64(args.seconds)).await?;
    lines(&limits).iter().for_each(|line| output::line(line));
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&limits)?;
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// The limits as a table.
pub(crate) fn lines(limits: &[Limit]) -> Vec<String> {
    if limits.is_empty() {
        return Vec::new();
    }
    let head = ["per s", "p50 ms", "p99 ms", "client us", "server us"];
    let mut lines = vec![line("at most on this machine", head.map(str::to_owned))];
    for limit in limits {
        let figures = [
            limit.per_second,
            limit.p50_ms,
            limit.p99_ms,
            limit.client_cpu_us,
            limit.server_cpu_us,
        ];
        lines.push(line(&format!("{} [{}]", limit.what, limit.unit), figures.map(number)));
    }
    lines
}

fn line(name: &str, figures: [String; 5]) -> String {
    let figures: Vec<String> = figures.iter().map(|figure| format!("{figure:>9}")).collect();
    format!("{name:<46} {}", figures.join(" "))
}

/// Measures all limits, for this long each.
pub(crate) async fn measure(dir: &Path, time: Duration) -> Result<Vec<Limit>> {
    let port = free_port()?;
    let own = std::env::current_exe().context("finding our own executable")?;
    let args = ["echo-server".to_owned(), format!("--port={port}")];
    let server = Process::start(&own, &args, &dir.join("echo.log"))?;
    let connections = connect(port).await?;
    let mut limits = Vec::new();
    for in_flight in IN_FLIGHT {
        let all = connections.clone();
        let call = move |_, number: u64| {
            let mut client = EchoClient::new(all[number as usize % all.len()].clone());
            async move {
                client.unary(Ping { numbers: vec![number] }).await.context("Unary").map(|_| ())
            }
        };
        let pids = vec![server.pid()];
        let measured = closed_loop_of(pids, in_flight, Until::Time(time), call).await?;
        limits.push(limit(&format!("unary, {in_flight} in flight"), "calls", &measured));
    }
    for (window, numbers, name) in STREAM_SHAPES {
        let measured = streams(&connections, server.pid(), window, numbers, time).await?;
        limits.push(limit(name, "messages", &measured));
    }
    for (grow, name) in [(true, APPEND), (false, "rewrite and fdatasync of 4 KiB")] {
        let path = dir.join("sync");
        let synced = tokio::task::spawn_blocking(move || syncs(&path, grow, time)).await??;
        limits.push(limit(name, "syncs", &synced));
    }
    Ok(limits)
}

fn limit(what: &str, unit: &'static str, measured: &Measured) -> Limit {
    let ms = |quantile| measured.latencies.value_at_quantile(quantile) as f64 / 1000.0;
    let each = |time: Duration| time.as_secs_f64() * 1e6 / measured.operations as f64;
    Limit {
        what: what.to_owned(),
        unit,
        per_second: measured.per_second(),
        p50_ms: ms(0.5),
        p99_ms: ms(0.99),
        client_cpu_us: each(measured.cpu.client),
        server_cpu_us: each(measured.cpu.servers.iter().sum()),
    }
}

async fn connect(port: u16) -> Result<Vec<Http2>> {
    let address = Address { text: format!("127.0.0.1:{port}"), certs: None };
    let deadline = Instant::now() + UP_WITHIN;
    let mut connections = Vec::new();
    while connections.len() < CONNECTIONS {
        match Http2::connect(&address).await {
            Ok(http2) => connections.push(http2),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    Ok(connections)
}

async fn streams(
    connections: &[Http2],
    server: u32,
    window: usize,
    numbers: usize,
    time: Duration,
) -> Result<Measured> {
    let mark = CpuMark::of(vec![server])?;
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for at in 0..STREAMS {
        let client = EchoClient::new(connections[at % connections.len()].clone());
        tasks.spawn(one_stream(client, window, numbers, begun + time));
    }
    let mut all = latencies();
    while let Some(done) = tasks.join_next().await {
        all.add(done??)?;
    }
    let elapsed = begun.elapsed();
    Ok(Measured { operations: all.len(), elapsed, latencies: all, cpu: mark.used()? })
}

async fn one_stream(
    mut client: EchoClient<Http2>,
    window: usize,
    numbers: usize,
    deadline: Instant,
) -> Result<Latencies> {
    let (requests, receiver) = mpsc::channel(window);
    let mut answers = client.stream(ReceiverStream::new(receiver)).await?.into_inner();
    let message = Ping { numbers: (0..numbers as u64).map(|number| number + (1 << 40)).collect() };
    let (mut all, mut sent) = (latencies(), VecDeque::with_capacity(window));
    loop {
        while sent.len() < window && Instant::now() < deadline {
            sent.push_back(Instant::now());
            requests.send(message.clone()).await?;
        }
        let Some(oldest) = sent.pop_front() else { return Ok(all) };
        let answer = answers.message().await?.context("the stream ended")?;
        ensure!(answer.numbers.len() == numbers, "another answer than was sent");
        record(&mut all, oldest.elapsed());
    }
}

/// Writes blocks one behind the other, each synced: at the end of a file, or within one that was
/// made before.
fn syncs(path: &Path, grow: bool, time: Duration) -> Result<Measured> {
    const BLOCKS: u64 = 4096;
    let mut file = std::fs::File::create(path)?;
    if !grow {
        file.write_all(&vec![1; BLOCK * usize::try_from(BLOCKS)?])?;
    }
    file.sync_all()?;
    let mark = CpuMark::of(Vec::new())?;
    let (begun, mut all) = (Instant::now(), latencies());
    while begun.elapsed() < time {
        if !grow && all.len() % BLOCKS == 0 {
            file.seek(SeekFrom::Start(0))?;
        }
        let sent = Instant::now();
        file.write_all(&[2; BLOCK])?;
        file.sync_data()?;
        record(&mut all, sent.elapsed());
    }
    let elapsed = begun.elapsed();
    Ok(Measured { operations: all.len(), elapsed, latencies: all, cpu: mark.used()? })
}

struct Same;

#[tonic::async_trait]
impl Echo for Same {
    async fn unary(&self, request: Request<Ping>) -> Result<Response<Ping>, Status> {
        Ok(Response::new(request.into_inner()))
    }

    type StreamStream = Pin<Box<dyn Stream<Item = Result<Ping, Status>> + Send>>;

    async fn stream(
        &self,
        request: Request<Streaming<Ping>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        Ok(Response::new(request.into_inner().boxed()))
    }
}

/// The echo server, until it is ended.
pub(crate) async fn serve(port: u16) -> Result<()> {
    let address = (std::net::Ipv4Addr::LOCALHOST, port).into();
    Server::builder().add_service(EchoServer::new(Same)).serve(address).await?;
    Ok(())
}
