//! Blocks of free loopback ports, and how the ports of the texts become those of a block. The
//! blocks are below the range from which the kernel gives ports to outgoing connections, and below
//! the ports of `tests/process`.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

const LOWEST: u32 = 9_000;
const BLOCKS: u32 = 7;
/// From one block to the next; the texts use the first ports of 7000, of 7100 and (`dev`, for HTTP
/// and DNS) of 7200 and 7300.
const BLOCK: u32 = 400;
/// This many ports after 70_00_, 71_00_, 72_00_ and 73_00_ are used.
const USED: u16 = 9;

/// One block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ports {
    begin: u16,
}

impl Ports {
    /// A block that is free now and that this process has not used before.
    pub(crate) fn free() -> Self {
        static HANDED_OUT: AtomicU32 = AtomicU32::new(0);
        for _ in 0..BLOCKS {
            let next = std::process::id().wrapping_add(HANDED_OUT.fetch_add(1, Ordering::Relaxed));
            let begin = u16::try_from(LOWEST + next % BLOCKS * BLOCK).unwrap();
            let ports = Self { begin };
            if ports.all_free() {
                return ports;
            }
        }
        panic!("no block of ports is free from {LOWEST} on");
    }

    /// Whether all of them are free.
    pub(crate) fn all_free(self) -> bool {
        let used = (1..=USED).flat_map(|at| [0, 100, 200, 300].map(|of| self.begin + of + at));
        used.into_iter().all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok())
    }

    /// What a port of the texts is here: 7003 is the third of the block.
    pub(crate) fn of(self, port: u16) -> u16 {
        assert!((7_000..7_400).contains(&port), "port {port} is not of the texts");
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
