//! How the examples reach the registry, and wait for what it shows.

use std::time::Duration;

use anyhow::{Context, Error};
use quorate_client::{Client, Discovery, Instances, parse_nodes};
use tokio::time::timeout;

/// Each step of a story ends by then, or something is wrong.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A client, as each process would have one. The namespace keeps the example apart from all else in
/// the cluster.
pub(crate) async fn connect(namespace: &str) -> anyhow::Result<Client> {
    let nodes = std::env::var("QUORATE_NODES");
    let nodes = nodes.as_deref().unwrap_or("127.0.0.1:7001,7002,7003");
    let nodes = parse_nodes(nodes).map_err(Error::msg)?;
    Ok(Client::builder(nodes).namespace(namespace).build()?)
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
