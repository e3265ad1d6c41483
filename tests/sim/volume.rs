//! A volume on a simulated disk: what a mount does with it, recovery included.

use crate::check::Seen;
use crate::disk::{Finder, SimDisk};
use crate::oracle::{Found, is_journal};
use crate::support::{Rng, context, slot};
use crate::world::FileId;
use kmsfs::crypto::{DataKey, Secret};
use kmsfs::store::content::VolumeContext;
use kmsfs::store::recover::{self, Report};
use kmsfs::store::{Content, FileLog, Journal, Storage, StoreError, Whereabouts};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What all disks of one run have in common.
#[derive(Clone)]
pub struct Volume {
    pub ctx: Arc<VolumeContext>,
    pub key: Arc<DataKey>,
    /// Sizes of a journal.
    pub journal: (u64, u64),
    /// Records say rightly where their files are.
    pub sure: bool,
}

/// A path and a number as they were when asked for the last time, or wrong.
struct Hint(u64, Vec<u8>);

impl Whereabouts for Hint {
    fn find(&self) -> (u64, Vec<u8>) {
        (self.0, self.1.clone())
    }
}

pub type States = BTreeMap<FileId, Found>;

impl Volume {
    pub fn new(rekey_limit: u64, header_blocks: u8, journal: (u64, u64)) -> Self {
        let ctx = context(rekey_limit, header_blocks);
        Self { ctx, key: Arc::new(DataKey(Secret::random())), journal, sure: true }
    }

    pub fn random(rng: &mut Rng) -> Self {
        let limit = rng.pick(&[1 << 31, 1 << 31, 150, 400]);
        let journal = rng.pick(&[(8 << 10, 8 << 10), (64 << 10, 256 << 10), (1 << 20, 4 << 20)]);
        let volume = Self::new(limit, rng.pick(&[1, 1, 1, 2, 4]), journal);
        Self { sure: rng.below(2) == 0, ..volume }
    }

    pub fn journal(&self, disk: &SimDisk) -> Arc<Journal> {
        let (smallest, largest) = self.journal;
        let medium = Arc::new(disk.clone());
        Journal::with_sizes(self.ctx.volume, self.ctx.keys.clone(), medium, smallest..largest)
    }

    /// The journal's side of a file; its hints are right, or not.
    pub fn log(
        &self,
        disk: &SimDisk,
        journal: &Arc<Journal>,
        file: (FileId, &str),
        committed: bool,
        rng: &mut Rng,
    ) -> Arc<FileLog> {
        let mut wrong = || !self.sure && rng.below(3) == 0;
        // Never that of another file: a number and a path that are both its own are believed.
        let ino = disk.ino(file.0) + if wrong() { 10_000 } else { 0 };
        let path = if wrong() { "f0" } else { file.1 };
        let hint = Hint(ino, path.as_bytes().to_vec());
        FileLog::new(journal.clone(), disk.file(file.0), Box::new(hint), committed)
    }

    pub fn create(&self, storage: Arc<dyn Storage>) -> Content {
        Content::create(self.ctx.clone(), storage, self.key.clone(), slot())
    }

    /// Opens a committed file; its wrap epoch too.
    pub fn open(
        &self,
        storage: Arc<dyn Storage>,
        writable: bool,
    ) -> Result<(Content, u64), StoreError> {
        let header = Content::read_header(&self.ctx, &*storage)?;
        let wrap = header.wrap_epoch;
        let (ctx, key) = (self.ctx.clone(), self.key.clone());
        Ok((Content::open(ctx, storage, header, key, None, writable)?, wrap))
    }

    fn seen(&self, storage: Arc<dyn Storage>) -> Found {
        // Longer than nothing, but without a header: a leftover, which a mount takes for empty.
        if recover::is_unwritten(&*storage).unwrap() {
            return Found::Empty;
        }
        match self.open(storage, false) {
            Ok((content, wrap)) => Found::State(Seen::of(&content, wrap)),
            Err(error) => Found::State(Seen::unreadable(&error)),
        }
    }

    fn finder(&self, disk: &SimDisk) -> Finder {
        Finder { disk: disk.clone(), ctx: self.ctx.clone() }
    }

    fn journals(&self, disk: &SimDisk) -> Vec<(Arc<str>, FileId)> {
        disk.names().into_iter().filter(|(name, _)| is_journal(name)).collect()
    }

    /// All files as a read-only mount shows them: nothing is written.
    pub fn view(&self, disk: &SimDisk) -> Result<(States, Vec<Report>), String> {
        let mut shown: BTreeMap<FileId, Arc<dyn Storage>> = BTreeMap::new();
        let mut reports = Vec::new();
        for (name, id) in self.journals(disk) {
            let journal = disk.file(id);
            if recover::is_unused(&*journal).unwrap() {
                continue;
            }
            let finder = self.finder(disk);
            let (found, report) = recover::recover(&self.ctx, &*journal, &finder)
                .map_err(|e| format!("journal {name}: {e}"))?;
            reports.push(report);
            for recovered in found {
                let ino = recovered.ino;
                let id = disk.names().iter().find(|(_, id)| disk.ino(*id) == ino).unwrap().1;
                shown.insert(id, recovered.view());
            }
        }
        let mut states = States::new();
        for (name, id) in disk.names() {
            if !is_journal(&name) {
                let storage = shown.remove(&id).unwrap_or_else(|| disk.file(id));
                states.insert(id, self.seen(storage));
            }
        }
        if disk.changes() > 0 {
            return Err("reading a crashed volume wrote to it".into());
        }
        Ok((states, reports))
    }

    /// What a mount does first.
    pub fn recover(&self, disk: &SimDisk) -> Result<(), String> {
        for (name, id) in self.journals(disk) {
            let journal = disk.file(id);
            if recover::is_unused(&*journal).unwrap() {
                kmsfs::store::Medium::remove(disk, &name).unwrap();
                continue;
            }
            recover::replay(&self.ctx, disk, &name, &*journal, &self.finder(disk))
                .map_err(|e| format!("journal {name}: {e}"))?;
        }
        Ok(())
    }

    /// All files as they stand in place.
    pub fn states(&self, disk: &SimDisk) -> States {
        let files = disk.names().into_iter().filter(|(name, _)| !is_journal(name));
        files.map(|(_, id)| (id, self.seen(disk.file(id)))).collect()
    }
}

/// Two looks at the same volume show the same.
pub fn same(a: &States, b: &States) -> Result<(), String> {
    let ids: Vec<FileId> = a.keys().chain(b.keys()).copied().collect();
    for id in ids {
        let equal = match (a.get(&id), b.get(&id)) {
            (Some(Found::State(a)), Some(Found::State(b))) => {
                // What a damaged file says of its damage may differ.
                a.header == b.header && (a.chunks == b.chunks || !a.damage.is_empty())
            }
            (Some(Found::Empty), Some(Found::Empty)) | (None, None) => true,
            _ => false,
        };
        if !equal {
            let show = |found: Option<&Found>| match found {
                Some(Found::State(seen)) => format!("{seen:?}"),
                Some(Found::Empty) => "empty".into(),
                _ => "missing".into(),
            };
            return Err(format!("file {id}: {} or {}", show(a.get(&id)), show(b.get(&id))));
        }
    }
    Ok(())
}
