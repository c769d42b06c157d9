//! Free loopback ports below the range from which the kernel gives ports to outgoing connections:
//! one of those could take the port of a node that was killed and is to come back.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, bail};

const LOWEST: u32 = 12_000;
/// Other processes of ours begin elsewhere, as their process ids differ.
const SPREAD: u32 = 37;
/// Where the kernel's range begins unless it says otherwise.
const EPHEMERAL_USUAL: u32 = 32_768;

/// A free port that this process has not handed out before.
pub(crate) fn free_port() -> Result<u16> {
    static HANDED_OUT: AtomicU32 = AtomicU32::new(0);
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let begin = range.ok().and_then(|text| text.split_whitespace().next()?.parse().ok());
    let room = begin.unwrap_or(EPHEMERAL_USUAL).min(60_000).saturating_sub(LOWEST);
    for _ in 0..room {
        let next = HANDED_OUT.fetch_add(1, Ordering::Relaxed);
        let offset = std::process::id().wrapping_mul(SPREAD).wrapping_add(next) % room;
        let port = u16::try_from(LOWEST + offset)?;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no port between {LOWEST} and {} is free", LOWEST + room);
}
