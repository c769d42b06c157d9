//! What Prometheus does to a server: a look at `/metrics`, as often as it is told to.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, timeout};

const EVERY: Duration = Duration::from_secs(1);
/// Prometheus' own default is ten seconds; then it counts as down.
const WITHIN: Duration = Duration::from_secs(10);

/// # Errors
/// It is no server, or has no metrics.
pub(crate) async fn once(address: &str) -> Result<()> {
    let scraped = timeout(WITHIN, async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n").await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    });
    let answer = scraped.await??;
    let is_good = answer.starts_with(b"HTTP/1.0 200") || answer.starts_with(b"HTTP/1.1 200");
    ensure!(
        is_good,
        "no metrics: {}",
        String::from_utf8_lossy(answer.get(..80).unwrap_or(&answer))
    );
    Ok(())
}

/// Until it is dropped. A workload may have the server down meanwhile.
pub(crate) async fn every_second(address: String) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let _it_may_be_down = once(&address).await;
    }
}
