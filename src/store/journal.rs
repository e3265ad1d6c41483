//! The journal of one mounted volume: records of commits, physical redo.
//!
//! A record holds the new bytes of every block that a committed state refers to, and names by
//! checksum the fresh blocks it relies on, which were written in place before it. It is *firm* once
//! those blocks and the journal are flushed. Only firm records are written to their place, and only
//! when that is flushed does the journal start anew, at its first record: that one is erased first,
//! and the erasure flushed, so that a torn record of the new round never shows a part of the old one.
//! It needs no pointer to its beginning: a record's number tells whether it follows the one before.
//!
//! Commits share the gate, a checkpoint has it alone: what it writes to its place is then exactly
//! what the journal holds. It needs no key.

use super::Storage;
use super::log::FileLog;
use super::mutation::{Mutation, made};
use crate::crypto::volumekeys::encode_name;
use crate::crypto::{JournalKey, Vault, random_array};
use crate::format::journal::{ALIGN, Head, Record};
use crate::format::{BLOCK, ObjectId, VolumeId};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// Begins the name of every journal; a random id follows.
pub const JOURNAL_PREFIX: &str = "kmsfs.journal.";
/// Size of a new journal, bytes.
const SMALLEST: u64 = 4 << 20;
/// A journal that does not fit a full disk is tried down to this size, bytes.
const TINY: u64 = 256 << 10;
/// Size up to which a journal grows by itself, bytes. A single commit may need more.
const LARGEST: u64 = 64 << 20;
/// Up to so many files are flushed one by one, more together with the whole backing file system.
const FEW: usize = 8;
/// Bytes written at a time to fill a journal.
const FILL: usize = 1 << 20;

/// What the journal needs of the place it lies in.
pub trait Medium: Send + Sync {
    /// A new empty file beside the volume's descriptor. Its name is durable once it was flushed.
    fn create(&self, name: &str) -> io::Result<Arc<dyn Storage>>;
    /// Removes it.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Flushes everything: data, sizes and names of all files of the volume.
    fn sync_all(&self) -> io::Result<()>;
}

/// What `status` shows.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct JournalStatus {
    /// Size of the journal file, bytes; 0 before the first record.
    pub capacity: u64,
    /// Bytes of it that hold records not in their place.
    pub used: u64,
    /// Files with such records.
    pub files: usize,
    /// Records since the mount.
    pub records: u64,
    /// Checkpoints since the mount.
    pub checkpoints: u64,
    /// Nothing can be committed any more; the journal is kept for the next mount.
    pub frozen: bool,
}

struct Open {
    storage: Arc<dyn Storage>,
    key: JournalKey,
    name: String,
    capacity: u64,
    /// Where the next record goes.
    end: u64,
}

struct Log {
    open: Option<Open>,
    /// Number of the next record.
    next: u64,
}

/// Whether a record found room.
pub(super) enum Appended {
    Done,
    Full,
}

/// See the module.
pub struct Journal {
    volume: VolumeId,
    keys: Arc<Vault>,
    medium: Arc<dyn Medium>,
    /// Size of a new file, and size up to which it grows by itself.
    sizes: Range<u64>,
    gate: RwLock<()>,
    log: Mutex<Log>,
    /// Held by the one that flushes; the others wait and find it done.
    flushing: Mutex<()>,
    /// All records up to this number are on disk.
    flushed: AtomicU64,
    /// Files with records that are not in their place.
    files: Mutex<HashMap<ObjectId, Arc<FileLog>>>,
    /// Something was changed in place since the last flush of everything.
    loose: AtomicBool,
    /// A file with records was removed, perhaps not durably.
    discarded: AtomicBool,
    /// And it had records from when it was empty, which find it by its place alone: another file that
    /// stands there now must not be taken for it.
    ghosts: AtomicBool,
    frozen: AtomicBool,
    checkpoints: AtomicU64,
}

impl Journal {
    /// A journal without a file: the first record makes one.
    pub fn new(volume: VolumeId, keys: Arc<Vault>, medium: Arc<dyn Medium>) -> Arc<Self> {
        Self::with_sizes(volume, keys, medium, SMALLEST..LARGEST)
    }

    /// [`Self::new`] with another size of a new file, and another one up to which it grows.
    pub fn with_sizes(
        volume: VolumeId,
        keys: Arc<Vault>,
        medium: Arc<dyn Medium>,
        sizes: Range<u64>,
    ) -> Arc<Self> {
        Arc::new(Self {
            volume,
            keys,
            medium,
            sizes,
            gate: RwLock::new(()),
            log: Mutex::new(Log { open: None, next: 1 }),
            flushing: Mutex::new(()),
            flushed: AtomicU64::new(0),
            files: Mutex::default(),
            // By a mount before, perhaps, that was killed.
            loose: AtomicBool::new(true),
            discarded: AtomicBool::new(false),
            ghosts: AtomicBool::new(false),
            frozen: AtomicBool::new(false),
            checkpoints: AtomicU64::new(0),
        })
    }

    /// Facts for `status`.
    pub fn status(&self) -> JournalStatus {
        let log = self.log.lock();
        let open = log.open.as_ref();
        JournalStatus {
            capacity: open.map_or(0, |o| o.capacity),
            used: open.map_or(0, |o| o.end - ALIGN),
            files: self.files.lock().len(),
            records: log.next - 1,
            checkpoints: self.checkpoints.load(Ordering::Relaxed),
            frozen: self.frozen.load(Ordering::Acquire),
        }
    }

    /// Files with records that are not in their place.
    pub fn pending_files(&self) -> usize {
        self.files.lock().len()
    }

    /// Would a checkpoint of everything do anything?
    pub fn is_dirty(&self) -> bool {
        self.loose.load(Ordering::Acquire) || self.pending_files() > 0
    }

    /// Something was changed in place, or beside the files: the next whole checkpoint flushes.
    pub fn note_change(&self) {
        self.loose.store(true, Ordering::Release);
    }

    /// Refuses all commits from now on: what is on disk cannot be known any more. The journal stays,
    /// and the next mount recovers from it.
    pub(super) fn freeze(&self, error: &io::Error) {
        if !self.frozen.swap(true, Ordering::AcqRel) {
            log::error!(
                "the backing file system failed ({error}): the volume takes no more \
                 changes; everything flushed before is safe, unmount and mount it again"
            );
        }
    }

    fn refuse_frozen(&self) -> io::Result<()> {
        match self.frozen.load(Ordering::Acquire) {
            true => Err(io::Error::from_raw_os_error(libc::EROFS)),
            false => Ok(()),
        }
    }

    /// Lets a commit in; no checkpoint runs while the guard lives.
    pub(super) fn enter(&self) -> io::Result<RwLockReadGuard<'_, ()>> {
        let open = self.gate.read();
        self.refuse_frozen()?;
        Ok(open)
    }

    /// Writes a record behind the others and gives it its number. Not flushed.
    pub(super) fn append(&self, record: &mut Record<'_>) -> io::Result<Appended> {
        let mut log = self.log.lock();
        if log.open.is_none() {
            log.open = Some(self.create()?);
        }
        record.number = log.next;
        record.firm = self.flushed.load(Ordering::Acquire);
        let Log { open: Some(open), next } = &mut *log else { return Ok(Appended::Full) };
        let bytes = record.encode(|bytes| open.key.mac(bytes));
        let room = (bytes.len() as u64).next_multiple_of(ALIGN);
        if open.end + room > open.capacity {
            // With nothing before it a record that is too large for the journal makes it grow.
            if open.end > ALIGN {
                return Ok(Appended::Full);
            }
            open.grow((open.end + room).next_power_of_two())?;
        }
        open.storage.write_at(&[IoSlice::new(&bytes)], open.end)?;
        open.end += room;
        *next += 1;
        Ok(Appended::Done)
    }

    /// This file has records now.
    pub(super) fn register(&self, object: ObjectId, file: &Weak<FileLog>) {
        if let Some(file) = file.upgrade() {
            self.files.lock().insert(object, file);
        }
    }

    /// This file is gone. Its records are needed until that is durable: a crash may bring it back.
    pub(super) fn forget(&self, object: ObjectId, began_empty: bool) {
        self.ghosts.fetch_or(began_empty, Ordering::AcqRel);
        self.discarded.store(true, Ordering::Release);
        self.files.lock().remove(&object);
    }

    /// May a record take a new file for one that was removed?
    pub(super) fn has_ghosts(&self) -> bool {
        self.ghosts.load(Ordering::Acquire)
    }

    fn create(&self) -> io::Result<Open> {
        let fixed = made(Mutation::KeepOldEpoch);
        let [epoch, id] = if fixed { [[7; 16]; 2] } else { [random_array(), random_array()] };
        let head = Head { volume: self.volume, epoch };
        let keys = self.keys.keys().map_err(io::Error::other)?;
        let name = format!("{JOURNAL_PREFIX}{}", encode_name(&id));
        let storage = self.medium.create(&name)?;
        let key = keys.journal_key(&head.epoch);
        let mut open = Open { storage, key, name, capacity: ALIGN, end: ALIGN };
        let filled = (|| {
            let head = head.encode(|bytes| keys.journal_mac(bytes));
            open.storage.write_at(&[IoSlice::new(&head[..])], 0)?;
            open.begin(self.sizes.start)
        })();
        if let Err(error) = filled {
            // Nothing relies on it yet.
            let _ = self.medium.remove(&open.name);
            return Err(error);
        }
        Ok(open)
    }

    /// Flushes the journal as far as `number`; concurrent callers share the flush.
    pub(super) fn flush_to(&self, number: u64) -> io::Result<()> {
        if made(Mutation::SkipJournalFlush) {
            return Ok(());
        }
        if self.flushed.load(Ordering::Acquire) >= number {
            return Ok(());
        }
        let _alone = self.flushing.lock();
        if self.flushed.load(Ordering::Acquire) >= number {
            return Ok(());
        }
        self.refuse_frozen()?;
        let (storage, last) = {
            let log = self.log.lock();
            let Some(open) = &log.open else { return Ok(()) };
            (open.storage.clone(), log.next - 1)
        };
        storage.sync().inspect_err(|error| self.freeze(error))?;
        self.flushed.fetch_max(last, Ordering::AcqRel);
        Ok(())
    }

    /// Empties a full journal, and makes it larger for the next time.
    pub(super) fn make_room(&self) -> io::Result<()> {
        self.checkpoint(false)?;
        let _alone = self.gate.write();
        let mut log = self.log.lock();
        if let Some(open) =
            log.open.as_mut().filter(|o| o.end == ALIGN && o.capacity < self.sizes.end)
            && let Err(error) = open.grow(open.capacity * 2)
        {
            log::debug!("the journal does not grow: {error}");
        }
        Ok(())
    }

    /// Writes every record to its place and empties the journal. With `whole`, everything else that
    /// was changed in place is flushed as well, so that all of the volume is firm.
    ///
    /// On an error nothing is lost: the records stay in the journal and in memory. After a failed
    /// flush the journal refuses further commits.
    pub fn checkpoint(&self, whole: bool) -> io::Result<()> {
        let _alone = self.gate.write();
        let is_used = self.log.lock().open.as_ref().is_some_and(|open| open.end > ALIGN);
        if !is_used && (!whole || !self.loose.load(Ordering::Acquire)) {
            self.ghosts.store(false, Ordering::Release);
            return Ok(());
        }
        self.refuse_frozen()?;
        // In this order: a file discarded later is still among the files.
        let discarded = self.discarded.swap(false, Ordering::AcqRel);
        let ghosts = self.ghosts.swap(false, Ordering::AcqRel);
        let mut files: Vec<_> = self.files.lock().values().cloned().collect();
        files.sort_by_key(|file| file.last());
        let singly = !whole && !discarded && files.len() <= FEW;
        let done = self.write_all_in_place(&files, singly).and_then(|()| self.restart());
        if let Err(error) = done {
            self.discarded.fetch_or(discarded, Ordering::AcqRel);
            self.ghosts.fetch_or(ghosts, Ordering::AcqRel);
            return Err(error);
        }
        files.iter().for_each(|file| file.settled());
        self.files.lock().clear();
        self.checkpoints.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Ends the round: what it holds is in place for good.
    fn restart(&self) -> io::Result<()> {
        if let Some(open) = self.log.lock().open.as_mut().filter(|open| open.end > ALIGN) {
            if !made(Mutation::KeepOldRound) {
                let end = open.storage.write_at(&[IoSlice::new(&[0; BLOCK])], ALIGN);
                // Half of it may be done: records behind it would not be found any more.
                let end = end.and_then(|()| open.storage.sync());
                end.inspect_err(|error| self.freeze(error))?;
            }
            open.end = ALIGN;
        }
        Ok(())
    }

    fn write_all_in_place(&self, files: &[Arc<FileLog>], singly: bool) -> io::Result<()> {
        if !made(Mutation::CheckpointBeforeFirm) {
            self.flush_files(files, singly)?;
            let last = self.log.lock().next - 1;
            self.flush_to(last)?;
        }
        for file in files {
            file.write_in_place()?;
        }
        if made(Mutation::ReuseEarly) || files.is_empty() {
            return Ok(());
        }
        self.flush_files(files, singly)
    }

    /// Flushes what was changed in place.
    fn flush_files(&self, files: &[Arc<FileLog>], singly: bool) -> io::Result<()> {
        if singly {
            return files.iter().try_for_each(|file| file.flush_fresh());
        }
        let changes: Vec<u64> = files.iter().map(|file| file.changes()).collect();
        let last = self.log.lock().next - 1;
        // Before the flush: what is changed while it runs is not covered.
        let loose = self.loose.swap(false, Ordering::AcqRel);
        if let Err(error) = self.medium.sync_all() {
            self.loose.fetch_or(loose, Ordering::AcqRel);
            self.freeze(&error);
            return Err(error);
        }
        // The journal is one of the files that were flushed.
        self.flushed.fetch_max(last, Ordering::AcqRel);
        for (file, changes) in files.iter().zip(changes) {
            file.flushed_up_to(changes);
        }
        Ok(())
    }

    /// Writes everything to its place and removes the journal. It stays if that fails.
    pub fn close(&self) -> io::Result<()> {
        self.checkpoint(true)?;
        let _alone = self.gate.write();
        let mut log = self.log.lock();
        if let Some(open) = log.open.take() {
            self.medium.remove(&open.name)?;
        }
        Ok(())
    }
}

impl Open {
    /// Gives a new journal its size; a smaller one where the disk has no room for it.
    fn begin(&mut self, mut size: u64) -> io::Result<()> {
        loop {
            match self.grow(size) {
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && size > TINY => {
                    self.storage.set_len(ALIGN)?;
                    size /= 4;
                }
                other => return other,
            }
        }
    }

    /// Fills the file with zeros up to a new size, so that appending changes no metadata.
    fn grow(&mut self, capacity: u64) -> io::Result<()> {
        let zeros = vec![0; FILL];
        let mut at = self.capacity;
        while at < capacity && !made(Mutation::KeepOldEpoch) {
            let len = (capacity - at).min(FILL as u64) as usize;
            self.storage.write_at(&[IoSlice::new(&zeros[..len])], at)?;
            at += len as u64;
        }
        self.storage.sync()?;
        self.capacity = capacity;
        Ok(())
    }
}
