//! What a power cut may leave: of each file all that was there at its last sync, and of what was
//! written since then each sector or page on its own, or not. A file that got another one's name
//! may have lost it again, and one that was removed may be there.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::observe::{self, Event};

const DB: &str = "db";
const WITNESS: &str = "acknowledged";

/// What one power cut left, and what had been asked and acknowledged by then, as numbers of states.
#[derive(Default)]
pub(super) struct Cut {
    files: BTreeMap<String, Vec<u8>>,
    pub(super) acknowledged: usize,
    pub(super) asked: usize,
}

impl Cut {
    /// All that is in `dir` now.
    pub(super) fn of(dir: &Path) -> Self {
        Self { files: read_all(dir), ..Self::default() }
    }

    pub(super) fn write_to(&self, dir: &Path) {
        fs::create_dir_all(dir).unwrap();
        for (name, bytes) in &self.files {
            fs::write(dir.join(name), bytes).unwrap();
        }
    }
}

/// Watches the log of this thread, and takes cuts of it.
#[derive(Clone)]
pub(super) struct PoweredDisk {
    inner: Rc<RefCell<Inner>>,
}

struct Inner {
    random: StdRng,
    events_per_cut: u32,
    dir: PathBuf,
    /// Of each file what it was at its last sync, and after each write since then.
    versions: BTreeMap<String, Vec<Vec<u8>>>,
    /// What has had a name when names were synced last, and then: what was there.
    named: BTreeMap<String, Vec<u8>>,
    /// The file that has lost its name since then.
    replaced: Option<Vec<u8>>,
    acknowledged: usize,
    asked: usize,
    cuts: Vec<Cut>,
}

impl PoweredDisk {
    /// A cut is taken at each sync of sled, and once in this many other writes and syncs.
    pub(super) fn new(seed: u64, events_per_cut: u32) -> Self {
        let random = StdRng::seed_from_u64(!seed);
        let inner = Inner {
            random,
            events_per_cut,
            dir: PathBuf::new(),
            versions: BTreeMap::new(),
            named: BTreeMap::new(),
            replaced: None,
            acknowledged: 0,
            asked: 0,
            cuts: Vec::new(),
        };
        Self { inner: Rc::new(RefCell::new(inner)) }
    }

    /// Watch what becomes of `dir`, in which everything is durable now.
    pub(super) fn start(&self, dir: &Path) {
        let mut inner = self.inner.borrow_mut();
        inner.dir = dir.to_owned();
        (inner.named, inner.replaced) = (read_all(dir), None);
        inner.versions = read_all(dir).into_iter().map(|(name, b)| (name, vec![b])).collect();
        drop(inner);
        self.resume();
    }

    pub(super) fn resume(&self) {
        let inner = self.inner.clone();
        observe::set(Some(Box::new(move |event| inner.borrow_mut().observe(event))));
    }

    pub(super) fn stop(&self) {
        observe::set(None);
    }

    pub(super) fn set_states(&self, acknowledged: usize, asked: usize) {
        let mut inner = self.inner.borrow_mut();
        (inner.acknowledged, inner.asked) = (acknowledged, asked);
    }

    pub(super) fn take_cuts(&self) -> Vec<Cut> {
        std::mem::take(&mut self.inner.borrow_mut().cuts)
    }

    pub(super) fn cut_now(&self) -> Cut {
        self.inner.borrow_mut().cut()
    }
}

impl Inner {
    fn observe(&mut self, event: Event<'_>) {
        let path = match event {
            Event::Wrote(path) | Event::Synced(path) | Event::Replaced(path) => path,
            Event::SyncedNames(dir) if dir == self.dir => {
                (self.named, self.replaced) = (read_all(dir), None);
                return self.cut_sometimes();
            }
            Event::SyncedNames(_) | Event::Removed(_) => return,
        };
        // A log that is opened does not look at what lies in a directory below.
        if path.parent() != Some(&self.dir) {
            return;
        }
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let bytes = fs::read(path).unwrap();
        let is_sled = name == DB && matches!(event, Event::Wrote(_) | Event::Replaced(_));
        let versions = self.versions.entry(name).or_default();
        if matches!(event, Event::Replaced(_)) {
            // All of it was synced just before.
            self.replaced = versions.first().cloned();
        }
        if !matches!(event, Event::Wrote(_)) {
            versions.clear();
        }
        versions.push(bytes);
        if is_sled {
            let cut = self.cut();
            self.cuts.push(cut);
        } else {
            self.cut_sometimes();
        }
    }

    fn cut_sometimes(&mut self) {
        if self.random.random_ratio(1, self.events_per_cut) {
            let cut = self.cut();
            self.cuts.push(cut);
        }
    }

    fn cut(&mut self) -> Cut {
        let mut files = read_all(&self.dir);
        for (name, now) in &mut files {
            let Some(versions) = self.versions.get_mut(name) else { continue };
            if name == DB {
                // It is written without our knowledge, too.
                versions.truncate(1);
            }
            if versions.last() != Some(now) {
                versions.push(now.clone());
            }
            *now = match (name.as_str(), self.random.random_range(0..4)) {
                (WITNESS, 0) => torn(&versions[0], now),
                // As old as it can be: it is not synced.
                (WITNESS, 1) => versions[0].clone(),
                (WITNESS, _) => now.clone(),
                _ => mixed(&mut self.random, versions),
            };
        }
        if let Some(replaced) = self.replaced.as_ref().filter(|_| self.random.random()) {
            files.insert(DB.to_owned(), replaced.clone());
        }
        for (name, bytes) in &self.named {
            if !files.contains_key(name) && self.random.random() {
                files.insert(name.clone(), bytes.clone());
            }
        }
        Cut { files, acknowledged: self.acknowledged, asked: self.asked }
    }
}

/// One of the files that versions, oldest first, may have become.
fn mixed(random: &mut StdRng, versions: &[Vec<u8>]) -> Vec<u8> {
    let (oldest, newest) = (&versions[0], &versions[versions.len() - 1]);
    let sector = if random.random() { 512 } else { 4096 };
    let how = random.random_range(0..5);
    let length = match how {
        0 => return oldest.clone(),
        1 => return newest.clone(),
        _ => oldest.len().max(newest.len()),
    };
    // What is never written comes as zeros.
    let mut bytes = oldest.clone();
    bytes.resize(length, 0);
    let changed: Vec<usize> = (0..length)
        .step_by(sector)
        .filter(|&at| {
            versions.iter().any(|version| part(version, at, sector) != part(oldest, at, sector))
        })
        .collect();
    let in_order = random.random_range(0..=changed.len());
    for (number, at) in changed.into_iter().enumerate() {
        let version = match how {
            // All up to some place.
            2 => {
                if number < in_order {
                    versions.len() - 1
                } else {
                    0
                }
            }
            // All but some.
            3 => {
                if random.random_ratio(1, 4) {
                    0
                } else {
                    versions.len() - 1
                }
            }
            _ => random.random_range(0..versions.len()),
        };
        let new = part(&versions[version], at, sector);
        if version > 0 {
            bytes[at..at + new.len()].copy_from_slice(new);
        }
    }
    bytes
}

/// Synced when the log was opened, and one slot after the other overwritten since: one of those
/// cannot be read.
fn torn(opened: &[u8], now: &[u8]) -> Vec<u8> {
    let half = now.len() / 2;
    let mut torn = now.to_owned();
    let written = [0, half].into_iter().find(|&at| part(opened, at, half) != part(now, at, half));
    if let Some(at) = written {
        torn[at..at + half].iter_mut().for_each(|byte| *byte = !*byte);
    }
    torn
}

fn part(bytes: &[u8], at: usize, sector: usize) -> &[u8] {
    &bytes[at.min(bytes.len())..(at + sector).min(bytes.len())]
}

fn read_all(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let listing = fs::read_dir(dir).unwrap().map(|item| item.unwrap());
    let files = listing.filter(|item| item.file_type().unwrap().is_file());
    let name_of = |item: &fs::DirEntry| item.file_name().into_string().unwrap();
    files.map(|item| (name_of(&item), fs::read(item.path()).unwrap())).collect()
}
