//! Nodes for tests of their parts.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use crate::config::{Config, Start};
use crate::node::Node;
use crate::server::{Bound, Server};

impl Bound {
    /// One that waits to be taken in, of which nothing runs but Raft.
    pub(crate) async fn waiting(dir: &Path) -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let config = Config { start: Start::Wait, ..Config::new(1, dir.to_owned(), any, any) };
        Server::bind(config).await.unwrap()
    }

    /// The node that it will run.
    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.node
    }
}
