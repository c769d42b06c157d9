//! What a balancer's pick costs, alone and with 16 threads on it: `cargo bench -p quorate-client`.
//! Figures are in docs/performance.md.

mod shared;

use divan::{Bencher, black_box};
use quorate_client::{Balancer, Policy};

use self::shared::Scene;

fn main() {
    divan::main();
}

const POLICIES: [Policy; 4] =
    [Policy::Random, Policy::RoundRobin, Policy::WeightedRoundRobin, Policy::LeastLoaded];

/// A pick, and the end of the call: the count of calls in flight goes up and down.
#[divan::bench(args = POLICIES, threads = [1, 16], sample_size = 1_000, sample_count = 200)]
fn pick(bencher: Bencher, policy: Policy) {
    let scene = Scene::start();
    let balancer = Balancer::new(scene.view.clone(), policy);
    balancer.pick().expect("there are instances");
    bencher.counter(1_u32).bench(|| black_box(balancer.pick().expect("there are instances")));
}

/// The same among three zones, most calls staying in the caller's.
#[divan::bench(args = POLICIES, threads = [1, 16], sample_size = 1_000, sample_count = 200)]
fn pick_in_zone(bencher: Bencher, policy: Policy) {
    let scene = Scene::start();
    let balancer = Balancer::new(scene.view.clone(), policy).zone("zone-1");
    balancer.pick().expect("there are instances");
    bencher.counter(1_u32).bench(|| black_box(balancer.pick().expect("there are instances")));
}

/// 16 threads that pick without a pause: what all of them get through. The time of a pick is the
/// number of cores (or of threads, where there are more cores) by the picks in a second.
#[divan::bench(args = POLICIES, sample_size = 1, sample_count = 20)]
fn sixteen_at_once(bencher: Bencher, policy: Policy) {
    const EACH: usize = if cfg!(debug_assertions) { 100 } else { 50_000 };
    let scene = Scene::start();
    let balancer = Balancer::new(scene.view.clone(), policy);
    let picks = || (0..EACH).for_each(|_| drop(black_box(balancer.pick())));
    bencher.counter(16 * EACH).bench(|| {
        std::thread::scope(|scope| (0..16).for_each(|_| drop(scope.spawn(picks))));
    });
}
