//! Power cuts: what they may leave of a log, at random moments of random work, is opened again. All
//! that was reported as durable must be there, and nothing that was never written; work goes on
//! from there until the next cut.
//!
//! `QUORATE_CUT_SEED` runs one seed, `QUORATE_CUT_SEEDS` that number of them.

#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

mod model;
mod simulated_disk;

use std::ops::Range;
use std::path::Path;

use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::testing::log_id;
use openraft::type_config::TypeConfigExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::Io;
use crate::LogOptions;
use crate::LogStore;
use crate::disk::sled::Disk;
use crate::power_cut_tests::model::{State, Toy, ToyEntry, ToyVote, entry};
use crate::power_cut_tests::simulated_disk::{Cut, PoweredDisk};

/// What is done between two power cuts.
#[derive(Debug, Clone, Copy)]
struct Work {
    journal_bytes_max: Option<usize>,
    seeds: u64,
    /// Power cuts after which work goes on.
    turns: usize,
    steps_max: usize,
    entries_max: u64,
    /// The number of writes and syncs of the journal for each image.
    events_per_cut: u32,
    images_min: usize,
}

#[test]
fn what_was_acknowledged_survives_any_power_cut() {
    let kib = |kib: usize| Some(kib * 1024);
    for journal_bytes_max in [kib(6), kib(16), kib(100)] {
        run(Work { journal_bytes_max, ..SMALL });
    }
}

const SMALL: Work = Work {
    journal_bytes_max: None,
    seeds: 2,
    turns: 12,
    steps_max: 40,
    entries_max: 4,
    events_per_cut: 4,
    images_min: 40,
};

/// sled must not write much more than one of its segments between two syncs: else it can be beyond
/// help after a power cut.
#[test]
fn sled_survives_power_cuts_with_a_journal_of_the_real_size() {
    let real = Work { turns: 1, events_per_cut: 100, images_min: 1, ..SMALL };
    run(Work { steps_max: 600, entries_max: 40, ..real });
    run(Work { steps_max: 60, entries_max: 600, seeds: 7, ..real });
}

fn run(work: Work) {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seeds = match number("QUORATE_CUT_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("QUORATE_CUT_SEEDS").unwrap_or(work.seeds),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for seed in seeds {
        let images = runtime.block_on(Run::new(seed, work).run());
        assert!(images >= work.images_min, "seed {seed}: only {images} images");
    }
}

struct Run {
    seed: u64,
    work: Work,
    random: StdRng,
    options: LogOptions,
    images: usize,
    /// What the log must contain: what was durable last, and then, one by one, what was asked of it
    /// since.
    states: Vec<State>,
    /// The number of the last one of them that is durable for certain.
    acknowledged: usize,
    term: u64,
    is_regular: bool,
    disk: PoweredDisk,
}

impl Run {
    fn new(seed: u64, work: Work) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let Work { journal_bytes_max, events_per_cut, .. } = work;
        Self {
            seed,
            work,
            options: LogOptions { io: Io::Inline, recent_bytes_max: Some(0), journal_bytes_max },
            images: 0,
            states: vec![State::default()],
            acknowledged: 0,
            term: 1,
            is_regular: random.random(),
            disk: PoweredDisk::new(seed, events_per_cut),
            random,
        }
    }

    async fn run(mut self) -> usize {
        let shm = Path::new("/dev/shm");
        // A memory file system where there is one: nothing here depends on real syncs.
        let parent = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
        let parent = parent.unwrap();
        let image = parent.path().join("image");
        let mut cut = Cut::default();
        for turn in 0..=self.work.turns {
            let dir = parent.path().join(format!("{turn}"));
            cut.write_to(&dir);
            self.disk.set_states(cut.acknowledged, cut.asked);
            self.disk.start(&dir);
            let mut log = self.open(&dir, "live");
            let found = self.check(State::read(&mut log).await, &cut);
            let mut cuts = self.check_images(&image).await;
            let is_cut_early = !cuts.is_empty() && self.random.random_ratio(1, 4);
            if !is_cut_early {
                cuts.clear();
                // Others may know of what it found: that must stay.
                self.states = vec![found];
                self.acknowledge();
                for step in
                    0..self.random.random_range(self.work.steps_max / 10..self.work.steps_max)
                {
                    // Begin with many small frames that nobody waits for.
                    let is_burst = step == 0 && self.is_regular;
                    let kind = if is_burst { 4 } else { self.random.random_range(0..17) };
                    self.change(&mut log, kind).await;
                    cuts.append(&mut self.check_images(&image).await);
                }
                if self.random.random_ratio(1, 4) {
                    log.close().unwrap();
                    cuts.append(&mut self.check_images(&image).await);
                }
                cuts.push(self.disk.cut_now());
            }
            self.disk.stop();
            drop(log);
            std::fs::remove_dir_all(&dir).unwrap();
            if self.random.random() {
                // More of those that interrupted something.
                cuts.sort_by_key(|cut| cut.acknowledged == cut.asked);
                cuts.truncate(cuts.partition_point(|cut| cut.acknowledged < cut.asked).max(1));
            }
            cut = cuts.swap_remove(self.random.random_range(0..cuts.len()));
        }
        self.images
    }

    fn open(&self, dir: &Path, what: &str) -> LogStore<Toy> {
        LogStore::open(dir, self.options)
            .unwrap_or_else(|error| panic!("seed {}, {what}: {error}: {error:?}", self.seed))
    }

    async fn check_images(&mut self, dir: &Path) -> Vec<Cut> {
        let cuts = self.disk.take_cuts();
        self.disk.stop();
        for cut in &cuts {
            self.images += 1;
            cut.write_to(dir);
            let mut log = self.open(dir, &format!("image {}", self.images));
            let found = State::read(&mut log).await;
            let mut found = self.check(found, cut);
            if self.work.journal_bytes_max.is_some() {
                // Once more, when the first entry has taken the place of what was lost.
                let new = entry(self.term + 1, found.next_index(), String::new());
                found.entries.push(new.clone());
                append_durably(&mut log, vec![new]).await;
                let again = dir.with_extension("again");
                Cut::of(dir).write_to(&again);
                let mut log = self.open(&again, &format!("image {}, again", self.images));
                let found_again = State::read(&mut log).await;
                assert!(
                    found_again.is_same(&found),
                    "seed {}, image {}: found {}\nnot {}",
                    self.seed,
                    self.images,
                    found_again.summary(),
                    found.summary()
                );
                drop(log);
                std::fs::remove_dir_all(again).unwrap();
            }
            drop(log);
            std::fs::remove_dir_all(dir).unwrap();
        }
        self.disk.resume();
        cuts
    }

    /// What was found must be one of the states from the last acknowledged one on, or lie between
    /// two of them.
    fn check(&self, mut found: State, cut: &Cut) -> State {
        let asked = &self.states[cut.acknowledged..=cut.asked];
        let is_same = asked.iter().find(|state| found.is_same(state));
        let between = || asked.windows(2).find(|pair| found.is_between(&pair[0], &pair[1]));
        let Some(right) = is_same.or_else(|| between().map(|pair| &pair[0])) else {
            let asked = asked.iter().map(State::summary).collect::<Vec<_>>().join("\n");
            panic!("seed {}: found {}\nnot one of\n{asked}", self.seed, found.summary());
        };
        assert!(found.committed <= right.committed, "seed {}", self.seed);
        found.committed = right.committed;
        found
    }

    /// One step of random work.
    async fn change(&mut self, log: &mut LogStore<Toy>, kind: u32) {
        self.term += u64::from(self.random.random_ratio(1, 8));
        match kind {
            0 => self.vote(log).await,
            1..=3 => self.truncate(log).await,
            4 => self.purge(log).await,
            5 => self.commit(log).await,
            16 => log.shrink_within(None).await.unwrap(),
            _ if self.work.journal_bytes_max.is_none() => {
                self.append(log, self.work.entries_max, 0..3_000).await;
            }
            6 => {
                // sled writes some of what it has, whenever it likes; that is no sync.
                self.disk.stop();
                log.shared().with_disk(Disk::sync).unwrap();
                self.disk.resume();
            }
            7 => self.append(log, 1, 0..150_000).await,
            8 => self.append(log, 3, 0..20_000).await,
            // Frames of one size, so that a new one ends where an old one begins.
            _ if self.is_regular => self.append(log, 1, 480..481).await,
            _ => self.append(log, self.work.entries_max, 0..700).await,
        }
    }

    async fn vote(&mut self, log: &mut LogStore<Toy>) {
        let vote = ToyVote::new(self.term, self.random.random_range(0..3));
        self.ask(State { vote: Some(vote), ..self.last() });
        log.save_vote(&vote).await.unwrap();
        self.acknowledge();
    }

    /// Durable when it returns: a snapshot that is installed then may be so at once.
    async fn truncate(&mut self, log: &mut LogStore<Toy>) {
        let mut state = self.last();
        let committed_next = state.committed.map_or(0, |id| id.index + 1).max(state.first_index());
        let next_index = state.next_index();
        let from_index = self.random.random_range(committed_next..=next_index);
        state.entries.truncate((from_index - state.first_index()) as usize);
        let last = state.entries.last().map(|entry| entry.log_id());
        let upto = last.or(state.purged);
        self.ask(state);
        log.truncate_after(upto).await.unwrap();
        if from_index < next_index {
            self.acknowledge();
        }
    }

    /// Nobody waits for these: some may go into the journal one after the other.
    async fn purge(&mut self, log: &mut LogStore<Toy>) {
        let mut state = self.last();
        for _ in 0..self.random.random_range(1..16) {
            let upto = match self.random.random_range(0..16) {
                // A snapshot of what this log never had.
                0 => log_id::<Toy>(self.term, 1, state.next_index() + 10),
                _ if state.entries.is_empty() => log_id::<Toy>(self.term, 1, state.next_index()),
                1 => state.entries[self.random.random_range(0..state.entries.len())].log_id(),
                _ => state.entries[0].log_id(),
            };
            state.entries.retain(|entry| entry.log_id().index > upto.index);
            state.purged = Some(upto);
            self.ask(state.clone());
            log.purge(upto).await.unwrap();
        }
    }

    async fn commit(&mut self, log: &mut LogStore<Toy>) {
        let is_durable = self.acknowledged + 1 == self.states.len();
        let state = self.states.last_mut().unwrap();
        if !is_durable || state.entries.is_empty() {
            return;
        }
        let at = self.random.random_range(0..state.entries.len());
        state.committed = state.committed.max(Some(state.entries[at].log_id()));
        log.save_committed(state.committed).await.unwrap();
    }

    async fn append(&mut self, log: &mut LogStore<Toy>, count_max: u64, bytes: Range<usize>) {
        let mut state = self.last();
        let next = state.next_index();
        let count = self.random.random_range(1..=count_max);
        for index in next..next + count {
            let length = self.random.random_range(bytes.clone());
            let payload = format!("{:08}", self.random.random_range(0..100_000_000));
            state.entries.push(entry(self.term, index, payload.repeat(length / 8)));
        }
        let appended = state.entries[state.entries.len() - count as usize..].to_vec();
        self.ask(state);
        append_durably(log, appended).await;
        self.acknowledge();
    }

    fn last(&self) -> State {
        self.states[self.states.len() - 1].clone()
    }

    fn ask(&mut self, state: State) {
        self.states.push(state);
        self.disk.set_states(self.acknowledged, self.states.len() - 1);
    }

    fn acknowledge(&mut self) {
        self.acknowledged = self.states.len() - 1;
        self.disk.set_states(self.acknowledged, self.acknowledged);
    }
}

async fn append_durably(log: &mut LogStore<Toy>, entries: Vec<ToyEntry>) {
    let (done, durable) = Toy::oneshot();
    log.append(entries, IOFlushed::signal(done)).await.unwrap();
    durable.await.unwrap().unwrap();
}
