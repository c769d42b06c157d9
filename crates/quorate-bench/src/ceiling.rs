//! What gRPC and the disk can do at most on this machine: an echo server in a process of its own, and fdatasync of 4 KiB.

use anyhow::Result;

use crate::args::CeilingArgs;

pub(crate) async fn run(_args: &CeilingArgs) -> Result<()> {
    anyhow::bail!("soon")
}

pub(crate) async fn serve() -> Result<()> {
    anyhow::bail!("soon")
}
