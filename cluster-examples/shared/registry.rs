//! How the examples reach the registry, and wait for what it shows.

use std::time::Duration;

use anyhow::Context;
use quorate_client::{Client, ClientBuilder, Discovery, Instances};
use tokio::time::timeout;

/// Each step of a story ends by then, or something is wrong.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A client, as each process would have one: of the cluster that the environment names
/// (`QUORATE_NODES`, `QUORATE_CA` and so on, as `quorate dev --secure` prints them), or of `quorate
/// dev`. The namespace keeps the example apart from all else in the cluster.
pub(crate) async fn connect(namespace: &str) -> anyhow::Result<Client> {
    let builder = match std::env::var_os("QUORATE_NODES") {
        Some(_) => ClientBuilder::from_env()?,
        None => Client::builder(["127.0.0.1:7001", "127.0.0.1:7002", "127.0.0.1:7003"]),
    };
    Ok(builder.namespace(namespace).build()?)
}

/// Waits until a view is as wanted.
pub(crate) async fn shows(
    view: &Discovery,
    wanted: impl Fn(&Instances) -> bool,
) -> anyhow::Result<()> {
    let mut view = view.clone();
    let wait = async {
        while !wanted(&view.current()) {
            view.changed().await;
        }
    };
    let seen = timeout(PATIENCE, wait).await;
    seen.context("the registry does not show what it should; is it running?")
}
