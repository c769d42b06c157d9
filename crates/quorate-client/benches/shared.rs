//! A live view of a fake registry, as the benchmarks look at it.

use std::cell::Cell;
use std::time::{Duration, Instant};

use quorate_client::{Client, Discovery};
use quorate_proto::v1::{Instance, InstanceStatus};
use tokio::runtime::Runtime;

use self::it::fake::Fake;

#[allow(
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    reason = "the tests of the client use the rest"
)]
#[path = "../tests/it"]
mod it {
    pub(crate) mod fake;
}

/// What the view shows.
pub(crate) const INSTANCES: usize = 1_000;

/// A registry with a service of 1,000 instances, and a client that follows it.
pub(crate) struct Scene {
    pub(crate) view: Discovery,
    _client: Client,
    _runtime: Runtime,
    _registry: Fake,
}

pub(crate) fn id(number: usize) -> String {
    format!("instance-{number}")
}

fn instance(number: usize) -> Instance {
    Instance {
        service: "s".to_owned(),
        id: id(number),
        endpoints: [("http".to_owned(), format!("http://10.0.0.1:{number}"))].into(),
        zone: format!("zone-{}", number % 3),
        status: InstanceStatus::Up as i32,
        weight: 50 + number as u32 % 100,
        ..Instance::default()
    }
}

impl Scene {
    pub(crate) fn start() -> Self {
        let registry = Fake::start();
        (0..INSTANCES).for_each(|number| registry.state().put(instance(number)));
        let builder =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = builder.expect("a runtime starts");
        let address = [registry.address()];
        let _entered = runtime.enter();
        let client = Client::builder(address).member_refresh(None).build();
        let client = client.expect("the address can be one");
        let view = client.discover("s").expect("is a name");
        let deadline = Instant::now() + Duration::from_secs(10);
        while view.current().len() < INSTANCES {
            assert!(Instant::now() < deadline, "the view has everything within 10 s");
            std::thread::yield_now();
        }
        drop(_entered);
        Self { view, _client: client, _runtime: runtime, _registry: registry }
    }
}

/// 0 to `of`, each thread on its own.
#[allow(dead_code, reason = "not every benchmark takes turns")]
pub(crate) fn turn(of: usize) -> usize {
    thread_local!(static TURN: Cell<usize> = const { Cell::new(0) });
    TURN.with(|turn| {
        turn.set((turn.get() + 1) % of);
        turn.get()
    })
}
