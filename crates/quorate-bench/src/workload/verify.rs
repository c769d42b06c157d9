//! What must be there after a workload is there, byte for byte: a figure without it counts nothing.

use anyhow::{Context, Result, ensure};
use tokio::task::JoinSet;

use crate::item::{self, Item, SERVICE_SIZE};
use crate::wire::Connection;

/// Services that are read at once.
const AT_ONCE: usize = 16;

/// The services of a group hold exactly its instances `0..count`, as they were first written.
pub(super) async fn all_there(
    connections: &[Connection],
    group: &'static str,
    count: u64,
) -> Result<()> {
    all_as(connections, group, count, |_| 0).await
}

/// The services of a group hold exactly its instances `0..count`, each as the change with this
/// stamp wrote it.
pub(super) async fn all_as(
    connections: &[Connection],
    group: &'static str,
    count: u64,
    stamp: impl Fn(u64) -> u64,
) -> Result<()> {
    let found = connections[0].count(group).await?;
    ensure!(found == count, "{count} instances of {group} were acknowledged, {found} are there");
    let mut open = JoinSet::new();
    for service in 0..count.div_ceil(SERVICE_SIZE) {
        while open.len() >= AT_ONCE {
            open.join_next().await.context("is not empty")???;
        }
        let connection = connections[usize::try_from(service)? % connections.len()].clone();
        let numbers = service * SERVICE_SIZE..((service + 1) * SERVICE_SIZE).min(count);
        let expected: Vec<Item> =
            numbers.map(|number| Item::new(group, number, stamp(number))).collect();
        open.spawn(
            async move { same(&connection, &item::service(group, service), expected).await },
        );
    }
    while let Some(done) = open.join_next().await {
        done??;
    }
    Ok(())
}

async fn same(connection: &Connection, service: &str, expected: Vec<Item>) -> Result<()> {
    let mut found = connection.items(service).await?;
    found.sort_by(|one, other| one.id.cmp(&other.id));
    ensure!(found == expected, "{service} is not as it was written");
    Ok(())
}
