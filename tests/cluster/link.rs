//! A line to a node that can be cut: a forwarder in front of its peer listener. Knows nothing of what goes over it.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Open until it is cut; cutting ends the connections that are there.
pub(crate) struct Link {
    address: SocketAddr,
    open: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Link {
    /// A line to this address.
    pub(crate) async fn open(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let (open, _) = watch::channel(true);
        let accepting = tokio::spawn(accept(listener, target, open.clone()));
        Self { address, open, accepting }
    }

    /// This end of it.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn set_open(&self, open: bool) {
        self.open.send_replace(open);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, open: watch::Sender<bool>) {
    loop {
        let Ok((mut here, _)) = listener.accept().await else { return };
        let mut open = open.subscribe();
        tokio::spawn(async move {
            if !*open.borrow() {
                return;
            }
            let Ok(mut there) = TcpStream::connect(target).await else { return };
            let _ = (here.set_nodelay(true), there.set_nodelay(true));
            tokio::select! {
                _ = copy_bidirectional(&mut here, &mut there) => {}
                _ = open.wait_for(|open| !open) => {}
            }
        });
    }
}
