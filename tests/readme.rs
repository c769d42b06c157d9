//! README.md, docs/ and `cluster-examples/` do what they say: every command and snippet of
//! README.md is run, top to bottom, as its reader would, and so are the quick start, the runbooks
//! and the pages on security, HTTP and DNS; the examples tell their stories; the deployment files
//! start real nodes. What a README says that these tests do not recognise fails them.
//!
//! What is substituted, so that tests can run beside each other and beside a developer's own
//! `quorate dev`:
//! - ports: 70NN, 71NN and 72NN of the texts become B+NN, B+1NN and B+2NN for a free block of ports
//!   that begins at B (`readme/ports.rs`), and QUORATE_NODES names the first three instead of the
//!   default of `--nodes`;
//! - binaries: `cargo run --release -- ARGS` and `quorate ARGS` are the binary that cargo built for
//!   these tests;
//! - `cargo test` is what runs here, so it is only recognised;
//! - directories: everything runs in a temporary one, with a copy of
//!   `cluster-examples/three-nodes`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "readme/blocks.rs"]
mod blocks;
#[path = "readme/built.rs"]
mod built;
#[path = "process/ca_name.rs"]
mod ca_name;
#[path = "readme/command_line.rs"]
mod command_line;
#[path = "readme/deployment.rs"]
mod deployment;
#[path = "readme/dns.rs"]
mod dns;
#[path = "readme/examples.rs"]
mod examples;
#[path = "readme/http.rs"]
mod http;
#[path = "readme/kubernetes.rs"]
mod kubernetes;
#[path = "readme/operations.rs"]
mod operations;
#[path = "readme/pods_that_end.rs"]
mod pods_that_end;
#[path = "readme/ports.rs"]
mod ports;
#[path = "readme/process.rs"]
mod process;
#[path = "readme/quick_start.rs"]
mod quick_start;
#[path = "readme/security.rs"]
mod security;
#[path = "readme/skipped.rs"]
mod skipped;
#[path = "readme/story.rs"]
mod story;
#[path = "readme/three_nodes.rs"]
mod three_nodes;
#[path = "readme/yaml.rs"]
mod yaml;

use built::root;

/// A file of the repository.
fn text_of(path: &str) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
