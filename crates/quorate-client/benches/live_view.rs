//! What a lookup in a live view costs: `cargo bench -p quorate-client`. Figures are in
//! docs/performance.md.

mod shared;

use divan::{Bencher, black_box};

use self::shared::{INSTANCES, Scene, id};

fn main() {
    divan::main();
}

/// A turn through all ids, so that no lookup finds what the one before has left in the nearest
/// cache.
fn ids() -> Vec<String> {
    (0..INSTANCES).map(|number| id(number * 617 % INSTANCES)).collect()
}

/// `current()`, which counts a reference, and one instance by its id.
#[divan::bench(threads = [1, 16], sample_size = 1_000, sample_count = 200)]
fn current_and_get(bencher: Bencher) {
    let (scene, ids) = (Scene::start(), ids());
    bencher.counter(1_u32).bench(|| {
        let view = scene.view.current();
        let id = &ids[shared::turn(ids.len())];
        black_box(view.get(black_box(id)).expect("is shown").weight)
    });
}

/// The same on a hot path, without a reference counted.
#[divan::bench(threads = [1, 16], sample_size = 1_000, sample_count = 200)]
fn with_current_and_get(bencher: Bencher) {
    let (scene, ids) = (Scene::start(), ids());
    bencher.counter(1_u32).bench(|| {
        let id = &ids[shared::turn(ids.len())];
        scene.view.with_current(|view| black_box(view.get(black_box(id)).expect("is shown").weight))
    });
}
