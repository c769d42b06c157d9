//! Loopback ports that stay ours between a node's runs: outside the range from which the kernel
//! gives ports to outgoing connections (one of them could take a killed node's port), each probed
//! for being free.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

const LOWEST: u32 = 12_000;
/// Tests of other processes begin elsewhere, as their process ids differ.
const SPREAD: u32 = 37;

/// A free port that this process has not handed out before.
pub(crate) fn free_port() -> u16 {
    static HANDED_OUT: AtomicU32 = AtomicU32::new(0);
    let room = ephemeral_begin().saturating_sub(LOWEST);
    assert!(room > 1_000, "no room for ports below the ephemeral range");
    for _ in 0..room {
        let next = HANDED_OUT.fetch_add(1, Ordering::Relaxed);
        let offset = (std::process::id().wrapping_mul(SPREAD)).wrapping_add(next) % room;
        let port = u16::try_from(LOWEST + offset).expect("is below the ephemeral range");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free");
}

fn ephemeral_begin() -> u32 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let begin = range.ok().and_then(|text| text.split_whitespace().next()?.parse().ok());
    begin.unwrap_or(32_768).min(60_000)
}
