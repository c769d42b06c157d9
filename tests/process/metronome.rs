//! How late a busy machine makes everything, measured beside a test: how much longer than it should
//! it takes until this process is woken, the disk has written a page, and the nodes have said what
//! they are. Where something is promised for a machine that keeps up, this is allowed for.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use quorate_proto::v1::StatusRequest;
use quorate_proto::v1::admin_client::AdminClient;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use crate::cluster::{CALL_WITHIN, Cluster};
use crate::raw::with_deadline;
use crate::wait::time_passes;

const BEAT: Duration = Duration::from_millis(50);
/// With less than this, nothing is late enough to be missed by another node: it has 300 ms for an
/// answer.
const CALM: Duration = Duration::from_millis(100);

/// Beats until it is dropped.
pub(crate) struct Metronome {
    slowest: Arc<Mutex<Duration>>,
    beating: JoinHandle<()>,
}

impl Metronome {
    /// Asks the nodes at these places. One that is killed meanwhile is no late one; one that stands
    /// still because the test says so is not to be among them.
    pub(crate) async fn start(cluster: &Cluster, places: &[usize]) -> Self {
        let nodes = places.iter().map(|at| AdminClient::new(cluster.nodes[*at].channel()));
        let (nodes, file) = (nodes.collect::<Vec<_>>(), cluster.dir().join("beats"));
        let slowest = Arc::new(Mutex::new(Duration::ZERO));
        // The first one makes the connections.
        beat(&nodes, &file).await;
        let noted = slowest.clone();
        let beating = tokio::spawn(async move {
            loop {
                let late = beat(&nodes, &file).await;
                let mut slowest = noted.lock().unwrap();
                *slowest = late.max(*slowest);
            }
        });
        Self { slowest, beating }
    }

    /// The slowest beat so far.
    pub(crate) fn slowest(&self) -> Duration {
        *self.slowest.lock().unwrap()
    }

    /// Nothing of the machine's was late: what was, is the nodes' own doing.
    pub(crate) fn is_calm(&self) -> bool {
        self.slowest() < CALM
    }
}

impl Drop for Metronome {
    fn drop(&mut self) {
        self.beating.abort();
    }
}

/// How late it was.
async fn beat(nodes: &[AdminClient<Channel>], file: &Path) -> Duration {
    let begun = Instant::now();
    time_passes(BEAT).await;
    let file: PathBuf = file.to_owned();
    let written = tokio::task::spawn_blocking(move || {
        let mut file = File::create(file)?;
        file.write_all(&[0; 4_096])?;
        file.sync_data()
    });
    written.await.unwrap().unwrap();
    let asked = nodes.iter().cloned().map(|mut node| async move {
        let request = with_deadline(StatusRequest { local_only: true }, CALL_WITHIN);
        let _or_it_was_killed = node.status(request).await;
    });
    join_all(asked).await;
    begun.elapsed() - BEAT
}
