//! A thread for tasks of one node, which can be made to stand still. Knows nothing of what runs
//! there.

use std::sync::mpsc;
use std::thread::sleep;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};

pub(crate) struct OwnThread {
    /// Taken when it ends.
    runtime: Option<Runtime>,
    /// It stands still as long as this is there.
    frozen: Option<mpsc::Sender<()>>,
}

impl OwnThread {
    pub(crate) fn start() -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        Self { runtime: Some(runtime.expect("a runtime")), frozen: None }
    }

    pub(crate) fn handle(&self) -> Handle {
        self.runtime.as_ref().expect("invariant: there until it is dropped").handle().clone()
    }

    pub(crate) fn freeze(&mut self) {
        let (frozen, thawed) = mpsc::channel::<()>();
        self.frozen = Some(frozen);
        // Its only thread waits here, and so does everything else that runs on it.
        self.handle().spawn(async move { thawed.recv() });
    }

    pub(crate) fn freeze_for(&self, time: Duration) {
        self.handle().spawn(async move { sleep(time) });
    }

    pub(crate) fn thaw(&mut self) {
        self.frozen = None;
    }
}

impl Drop for OwnThread {
    fn drop(&mut self) {
        self.thaw();
        // Tests end within a runtime, where waiting for another one is forbidden.
        self.runtime.take().expect("invariant: there until now").shutdown_background();
    }
}
