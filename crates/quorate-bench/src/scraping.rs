//! What it costs a cluster to be scraped every second, as by Prometheus: the same work in rounds of
//! some seconds, every other one of them scraped. Whatever else slows the machine down meanwhile
//! does so to both.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::args::ScrapingArgs;
use crate::cluster::{Cluster, Programs};
use crate::disk::Workspace;
use crate::machine::Machine;
use crate::number::number;
use crate::workload::repeated::{self, Repeated};
use crate::workload::{Round, Setting};
use crate::{output, programs};

const EVERY: Duration = Duration::from_secs(1);
/// Prometheus' own default is ten seconds; then it counts as down.
const WITHIN: Duration = Duration::from_secs(10);
/// Of the normal distribution: what 95 % lie within.
const Z: f64 = 1.96;

pub(crate) async fn run(args: &ScrapingArgs) -> Result<()> {
    ensure!(args.scale > 0.0 && args.pairs > 0, "nothing to do");
    let quorate = programs::quorate(args.quorate.as_deref())?;
    let workspace = Workspace::create(args.data_dir.as_deref(), false)?;
    output::line(&Machine::look(&quorate, None).line());
    let programs = Programs { quorate, etcd: None, certs: None };
    let dir = workspace.path();
    let setting = Setting {
        programs: &programs,
        dir,
        scale: args.scale,
        per_node: 2,
        large: false,
        keep: false,
    };
    output::line(
        "with a scrape of each node a second, divided by without: the median of the pairs, and where it lies (95 %)",
    );
    let wanted = |workload: &Repeated| args.only.is_empty() || args.only.contains(workload);
    for workload in repeated::ALL.into_iter().filter(wanted) {
        let mut pairs = Vec::new();
        let mut work = repeated::begin(workload, &setting).await?;
        work.round().await.context("to warm up")?;
        for pair in 0..args.pairs {
            // Neither always gets the machine as the other left it.
            let scraped_first = pair % 2 == 1;
            let mut rounds = [None, None];
            for scraped in [scraped_first, !scraped_first] {
                let scrapers = if scraped { scrape(work.cluster()).await? } else { JoinSet::new() };
                rounds[usize::from(scraped)] = Some(work.round().await?);
                drop(scrapers);
            }
            let [Some(without), Some(with)] = rounds else { continue };
            pairs.push((without, with));
        }
        work.end().await?;
        tell(workload.name(), &pairs);
    }
    Ok(())
}

fn tell(name: &str, pairs: &[(Round, Round)]) {
    let ratios = |of: fn(&Round) -> f64| {
        pairs.iter().map(|(without, with)| of(with) / of(without)).collect::<Vec<_>>()
    };
    for (metric, of) in [
        ("1/s", (|round| round.per_second) as fn(&Round) -> f64),
        ("us of the servers each", |round| round.cpu_each_us),
    ] {
        let without = median(pairs.iter().map(|(without, _)| of(without)).collect());
        let (least, middle, most) = where_it_lies(ratios(of));
        output::line(&format!(
            "{name}: {} {metric}; {middle:.3} ({least:.3}..{most:.3})",
            number(without)
        ));
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let half = values.len() / 2;
    if values.len() % 2 == 1 { values[half] } else { f64::midpoint(values[half - 1], values[half]) }
}

/// The median, and between which of the values the true one lies with 95 %, whatever their
/// distribution: that of how many lie below it is the binomial one (the sign test; W. J. Conover,
/// Practical Nonparametric Statistics, 3.2). Of few values, the least and the most.
fn where_it_lies(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_unstable_by(f64::total_cmp);
    let count = values.len() as f64;
    let below = ((count - Z * count.sqrt()) / 2.0).floor().max(1.0) as usize;
    (values[below - 1], median(values.clone()), values[values.len() - below])
}

/// Looks at the metrics of each node every second until it is dropped.
async fn scrape(cluster: &Cluster) -> Result<JoinSet<()>> {
    let mut scrapers = JoinSet::new();
    for node in &cluster.nodes {
        once(&node.http).await.with_context(|| format!("scraping {}", node.http))?;
        scrapers.spawn(every_second(node.http.clone()));
    }
    Ok(scrapers)
}

/// # Errors
/// It is no server, or has no metrics.
async fn once(address: &str) -> Result<()> {
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

async fn every_second(address: String) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(error) = once(&address).await {
            output::note(&format!("{address}: {error:#}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_lies_between_values_that_are_told() {
        let values = |count: u32| (1..=count).rev().map(f64::from).collect::<Vec<_>>();
        // A table of the binomial distribution has the 6th of 20 values: never narrower than that.
        for (count, lies) in [
            (1, (1.0, 1.0, 1.0)),
            (2, (1.0, 1.5, 2.0)),
            (12, (2.0, 6.5, 11.0)),
            (20, (5.0, 10.5, 16.0)),
        ] {
            assert_eq!(where_it_lies(values(count)), lies, "{count}");
        }
    }
}
