//! A simulated operator takes instances out of service and lets them in again, registered or not.

use std::time::Duration;

use quorate_proto::requests::Origin;
use rand::Rng;
use rand::rngs::StdRng;
use tokio::time::sleep;

use super::history::{Answer, Ask, watched};
use super::nodes::Nodes;
use super::process::key;
use super::world::PROCESSES;
use super::writes::{Write, attempt};

/// One whose fate is not known is tried at most this often, under one name.
const ATTEMPTS: u32 = 4;

/// Until the run stops.
pub(crate) async fn overrides(mut nodes: Nodes, mut rng: StdRng) {
    let origin = Origin::new(rng.random());
    sleep(Duration::from_millis(2_500)).await;
    watched(nodes.notes()).await;
    for number in 1.. {
        if nodes.notes().borrow().stop {
            return;
        }
        let key = key(rng.random_range(0..PROCESSES));
        let reason = rng.random_bool(0.7).then(|| format!("reason {number}"));
        let write = Write::begin(&origin);
        for _ in 0..ATTEMPTS {
            let ask = Ask::Override { reason: reason.clone() };
            if !matches!(attempt(&mut nodes, &key, ask, &write).await, Answer::Unknown(_)) {
                break;
            }
        }
        sleep(Duration::from_millis(rng.random_range(100..1_000))).await;
    }
}
