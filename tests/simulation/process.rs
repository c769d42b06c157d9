//! A simulated process: registers one instance, renews its lease, changes it, and at some time
//! deregisters, restarts (leaving a zombie of its former run behind), or dies. Talks to one node
//! until that fails, then to the next.

use std::time::Duration;

use quorate_proto::requests::Origin;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::sleep;
use tonic::Code;

use super::history::{Answer, Ask, Fate, Shared, now, watched};
use super::nodes::Nodes;
use super::plan::{HEALED, Ms};
use super::writes::{Write, attempt};

/// An update whose fate is not known is tried at most this often, under one name.
const UPDATE_ATTEMPTS: u32 = 4;

/// The instance of a process.
pub(crate) fn key(number: u64) -> String {
    format!("svc{}/p{number}", number % 3)
}

/// One process and what follows it under the same name.
pub(crate) struct Process {
    key: String,
    ttl_ms: u64,
    incarnation: u64,
    /// Names its writes; zombies have one of their own.
    origin: Origin,
    rng: StdRng,
    nodes: Nodes,
    notes: Shared,
}

enum End {
    Deregister,
    Restart,
    Die { absent_ms: Ms },
}

impl Process {
    pub(crate) fn new(number: u64, seed: u64, nodes: Nodes, notes: Shared) -> Self {
        Self {
            key: key(number),
            ttl_ms: [1_500, 3_000, 5_000][(number % 3) as usize],
            incarnation: 0,
            origin: Origin::new(number + 1),
            rng: StdRng::seed_from_u64(seed ^ (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            nodes,
            notes,
        }
    }

    pub(crate) async fn run(mut self) {
        sleep(Duration::from_millis(self.rng.random_range(2_000..3_500))).await;
        watched(&self.notes).await;
        loop {
            self.incarnation += 1;
            let lease = self.register().await;
            let life = self.rng.random_range(1_000..9_000);
            let lease = self.live(lease, now() + life).await;
            if self.notes.borrow().stop {
                let fate = Fate::Alive { incarnation: self.incarnation, lease };
                return self.fate(fate);
            }
            match self.choose_end() {
                End::Deregister => {
                    self.deregister().await;
                    self.fate(Fate::Gone { incarnation: self.incarnation });
                    self.pause(0..2_000).await;
                }
                End::Restart => self.leave_zombie(lease),
                End::Die { absent_ms } => {
                    self.fate(Fate::Dead { incarnation: self.incarnation, at: now() });
                    self.pause(absent_ms..absent_ms + 500).await;
                }
            }
            if self.notes.borrow().stop {
                return;
            }
        }
    }

    fn choose_end(&mut self) -> End {
        match self.rng.random_range(0..10) {
            0..3 => End::Deregister,
            3..6 => End::Restart,
            6..8 => End::Die { absent_ms: self.rng.random_range(100..2 * self.ttl_ms) },
            _ => End::Die { absent_ms: 60_000 },
        }
    }

    fn fate(&self, fate: Fate) {
        let mut notes = self.notes.borrow_mut();
        notes.note(format!("{} is {fate:?}", self.key));
        notes.fates.entry(self.key.clone()).or_default().push(fate);
    }

    async fn pause(&mut self, ms: std::ops::Range<u64>) {
        let until = now() + self.rng.random_range(ms);
        while now() < until && !self.notes.borrow().stop {
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Registers, again and again until it is done; the lease.
    async fn register(&mut self) -> u64 {
        let mut write = self.begin();
        loop {
            let ask = Ask::Register { incarnation: self.incarnation, ttl_ms: self.ttl_ms };
            match self.attempt(ask, &write).await {
                Answer::Done { lease, .. } => return lease,
                Answer::Refused(_) => {
                    let (key, incarnation) = (self.key.clone(), self.incarnation);
                    let line = format!("{key}: registering incarnation {incarnation} was refused");
                    self.notes.borrow_mut().violation(line);
                    self.incarnation += 1;
                    write = self.begin();
                }
                Answer::Unknown(_) => {}
            }
            if self.notes.borrow().stop {
                return 0;
            }
        }
    }

    /// Keeps the lease, and changes the instance now and then, until the end of this life or of the
    /// run.
    async fn live(&mut self, mut lease: u64, until: Ms) -> u64 {
        let mut renew_at = now() + self.ttl_ms / 3;
        loop {
            let stop = self.notes.borrow().stop;
            // No process ends after the faults did: the end of the run compares what all have.
            if stop || (now() >= until && now() < HEALED) {
                return lease;
            }
            if now() >= renew_at {
                renew_at = now() + self.ttl_ms / 3;
                match self.call(Ask::Renew { lease }).await {
                    Answer::Refused(Code::NotFound) => lease = self.register().await,
                    Answer::Unknown(_) => renew_at = now() + 100,
                    _ => {}
                }
            } else if self.rng.random_bool(0.05) {
                self.update().await;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// To a weight that no other update has.
    async fn update(&mut self) {
        let weight = self.notes.borrow_mut().new_weight();
        let write = self.begin();
        for _ in 0..UPDATE_ATTEMPTS {
            let ask = Ask::Update { incarnation: self.incarnation, weight };
            let answer = self.attempt(ask, &write).await;
            if !matches!(answer, Answer::Unknown(_)) || self.notes.borrow().stop {
                return;
            }
        }
    }

    async fn deregister(&mut self) {
        let write = self.begin();
        loop {
            let ask = Ask::Deregister { incarnation: self.incarnation };
            let answer = self.attempt(ask, &write).await;
            if !matches!(answer, Answer::Unknown(_)) || self.notes.borrow().stop {
                return;
            }
        }
    }

    /// The former run goes on for a while and knows nothing of its successor.
    fn leave_zombie(&mut self, lease: u64) {
        let mut zombie = Self {
            key: self.key.clone(),
            ttl_ms: self.ttl_ms,
            incarnation: self.incarnation,
            origin: Origin::new(self.rng.random()),
            rng: StdRng::seed_from_u64(self.rng.random()),
            nodes: self.nodes.clone(),
            notes: self.notes.clone(),
        };
        tokio::task::spawn_local(async move {
            let until = now() + 4_000;
            while now() < until && !zombie.notes.borrow().stop {
                let incarnation = zombie.incarnation;
                let ask = match zombie.rng.random_range(0..4) {
                    0 => Ask::Renew { lease },
                    1 => Ask::Deregister { incarnation },
                    2 => {
                        let weight = zombie.notes.borrow_mut().new_weight();
                        Ask::Update { incarnation, weight }
                    }
                    _ => Ask::Register { incarnation, ttl_ms: zombie.ttl_ms },
                };
                zombie.call(ask).await;
                zombie.pause(100..800).await;
            }
        });
    }

    fn begin(&self) -> Write {
        Write::begin(&self.origin)
    }

    /// A call that is made once.
    async fn call(&mut self, ask: Ask) -> Answer {
        let write = self.begin();
        self.attempt(ask, &write).await
    }

    async fn attempt(&mut self, ask: Ask, write: &Write) -> Answer {
        attempt(&mut self.nodes, &self.key, ask, write).await
    }
}
