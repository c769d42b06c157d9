//! What an append costs until it is durable: `cargo bench -p quorate-log`. On the disk that the
//! build is on. Figures are in docs/performance.md.

use divan::Bencher;
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::testing::log_id;
use openraft::type_config::TypeConfigExt;
use openraft::type_config::alias::EntryOf;
use quorate_log::{LogOptions, LogStore};

openraft::declare_raft_types!(Toy: D = String, R = String);

fn main() {
    divan::main();
}

/// About what a registration's entry has.
const PAYLOAD_BYTES: usize = 400;

/// One append of this many entries, until it is reported as flushed.
#[divan::bench(args = [1, 16, 256], max_time = 5)]
fn append(bencher: Bencher, entries: u64) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("can be made");
    let mut log: LogStore<Toy> =
        LogStore::open(dir.path(), LogOptions::default()).expect("can be opened");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("can be built");
    let mut next = 1;
    bencher
        .with_inputs(|| {
            let indexes = next..next + entries;
            next += entries;
            let entry = |index| {
                let id = log_id::<Toy>(1, 1, index);
                EntryOf::<Toy>::new_normal(id, "x".repeat(PAYLOAD_BYTES))
            };
            indexes.map(entry).collect::<Vec<_>>()
        })
        .bench_local_values(|entries| {
            runtime.block_on(async {
                let (done, durable) = Toy::oneshot();
                log.append(entries, IOFlushed::signal(done)).await.expect("is taken");
                durable.await.expect("is answered").expect("is durable");
            });
        });
}
