//! Blocks of free loopback ports, and how the ports of the texts become those of a block. The
//! blocks are below the range from which the kernel gives ports to outgoing connections, and below
//! the ports of `tests/process`.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

const LOWEST: u32 = 9_000;
/// The texts use the first ports of 7000, of 7100 and (`dev`, for HTTP and DNS) of 7200 and 7300:
/// that many of each.
pub(crate) const USED: u16 = 9;
/// Ten blocks lie within one another, then comes the next four hundred ports.
const BLOCKS: u32 = 70;

/// One block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ports {
    begin: u16,
}

impl Ports {
    /// A block that is free now and that this process has not used before: who looks whether its
    /// nodes are gone would else find those of another test there.
    pub(crate) fn free() -> Self {
        static HANDED_OUT: AtomicU32 = AtomicU32::new(0);
        loop {
            let handed_out = HANDED_OUT.fetch_add(1, Ordering::Relaxed);
            assert!(handed_out < BLOCKS, "all blocks of ports from {LOWEST} on were used");
            let ports = Self::numbered(std::process::id().wrapping_add(handed_out) % BLOCKS);
            if ports.taken().is_empty() {
                return ports;
            }
        }
    }

    fn numbered(block: u32) -> Self {
        let begin = LOWEST + block / 10 * 400 + block % 10 * 10;
        Self { begin: u16::try_from(begin).expect("all blocks are below the ports that there are") }
    }

    /// Fails where a node is left over; `said` is what its test has seen.
    pub(crate) fn are_free_again(self, said: &str) {
        let taken = self.taken();
        assert!(taken.is_empty(), "a node is left over at {taken:?}: {said}");
    }

    fn taken(self) -> Vec<u16> {
        self.all().filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_err()).collect()
    }

    fn all(self) -> impl Iterator<Item = u16> {
        (1..=USED).flat_map(move |at| [0, 100, 200, 300].map(|of| self.begin + of + at))
    }

    /// What a port of the texts is here: 7003 is the third of the block.
    pub(crate) fn of(self, port: u16) -> u16 {
        let is_used = (7_000..7_400).contains(&port) && port % 100 <= USED;
        assert!(is_used, "port {port} is not of the texts");
        port - 7_000 + self.begin
    }

    /// The text with our ports: every ":70NN" to ":73NN".
    pub(crate) fn substituted(self, text: &str) -> String {
        let mut result = String::new();
        for (at, part) in text.split(':').enumerate() {
            if at > 0 {
                result.push(':');
            }
            let digits = part.bytes().take_while(u8::is_ascii_digit).count();
            match part[..digits].parse() {
                Ok(port) if digits == 4 && (7_000..7_400).contains(&port) => {
                    result.push_str(&self.of(port).to_string());
                    result.push_str(&part[digits..]);
                }
                _ => result.push_str(part),
            }
        }
        result
    }

    /// For QUORATE_NODES: instead of 127.0.0.1:7001,7002,7003, in the same short form.
    pub(crate) fn nodes(self) -> String {
        let [first, second, third] = [7_001, 7_002, 7_003].map(|port| self.of(port));
        format!("127.0.0.1:{first},{second},{third}")
    }
}

#[test]
fn ports_are_substituted() {
    let ports = Ports { begin: 9_200 };
    let text = "--nodes 127.0.0.1:7003 4=h:7104,5=h:8080 10:70 http://h:7001/x";
    let ours = "--nodes 127.0.0.1:9203 4=h:9304,5=h:8080 10:70 http://h:9201/x";
    assert_eq!(ports.substituted(text), ours);
}

#[test]
fn no_two_blocks_share_a_port() {
    let blocks = (0..BLOCKS).map(Ports::numbered);
    let ports: Vec<u16> = blocks.flat_map(|block| block.all()).collect();
    let distinct: std::collections::BTreeSet<&u16> = ports.iter().collect();
    assert_eq!(distinct.len(), ports.len());
}
