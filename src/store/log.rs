//! One file whose commits go through the journal: a [`Storage`] over the backing file that shows the
//! newest committed bytes, wherever they are.
//!
//! What may be written in place ([`Storage::write_at`]) is written there and remembered with a
//! checksum until it is flushed; everything else arrives as a [`Commit`] and becomes a record.
//!
//! A backup tool that compares size and modification time may look at the backing file at any
//! moment, and must look again once a state is whole. So while blocks are in place that no state in
//! place refers to, the file's time stands apart from the one it will get: in an earlier second than
//! before the first of them was written, because rsync compares whole seconds.

use super::content::Time;
use super::journal::{Appended, Journal};
use super::mutation::{Mutation, made};
use super::pending::Pending;
use super::storage::Storage;
use crate::format::journal::{Change, Fresh, Record, delta};
use crate::format::{BLOCK, ObjectId};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// Fresh blocks a record may name; with more, they are flushed before it is written, and it relies on
/// that.
const FRESH_MAX: usize = 64 << 10;
/// Checkpoints a commit makes before it gives up on a full journal.
const TRIES: usize = 4;

/// Says where a backing file is, for a record that has to find it again.
pub trait Whereabouts: Send + Sync {
    /// Inode number and path from the backing root; both are hints.
    fn find(&self) -> (u64, Vec<u8>);
}

/// One commit of one file, as the engine hands it over.
pub(super) struct Commit<'a> {
    pub object: ObjectId,
    pub base: u64,
    /// Root hash of that state.
    pub base_root: &'a [u8; 32],
    pub generation: u64,
    /// Blocks that a committed state refers to, by offset.
    pub blocks: &'a [(u64, &'a [u8])],
    /// A file's first header, which goes to its place behind the record.
    pub first: Option<&'a [u8]>,
    /// Root hash of this state.
    pub root: &'a [u8; 32],
    /// Ranges this state does not refer to any more.
    pub freed: Vec<Range<u64>>,
    pub len: u64,
    pub mtime: Option<Time>,
}

impl Commit<'_> {
    /// Or only keys or times? What was written in place belongs to the next state of the content.
    fn is_content(&self) -> bool {
        self.generation > self.base
    }
}

/// Checksum of a fresh block.
#[derive(Clone, Copy)]
struct Sum {
    crc: u32,
    len: u32,
    /// Value of `changes` right after it was written.
    change: u64,
}

/// Blocks written in place since the last commit.
#[derive(Default)]
struct Loose {
    /// By offset: what a record will have to name.
    sums: BTreeMap<u64, Sum>,
    /// How far the file may have grown for them.
    end: u64,
}

/// See the module.
pub struct FileLog {
    /// `None`: a view of a crashed volume that is only read.
    journal: Option<Arc<Journal>>,
    storage: Arc<dyn Storage>,
    place: Option<Box<dyn Whereabouts>>,
    me: Weak<FileLog>,
    /// Held while a commit is made: one for the time only repeats what the last one said.
    turn: Mutex<()>,
    /// Identity of the last commit, for records without content.
    object: Mutex<Option<ObjectId>>,
    /// Root hash of the state it made.
    root: Mutex<Option<[u8; 32]>>,
    pending: RwLock<Pending>,
    /// `pending` is not empty; saves every read a lock.
    is_pending: AtomicBool,
    loose: Mutex<Loose>,
    /// The backing file's modification time before it was set apart; `None` while it is not.
    /// Locked whenever that time moves.
    resting: Mutex<Option<Time>>,
    /// A state of it may be durable, be it that it is empty: commits are records, and fresh blocks
    /// need checksums.
    has_state: AtomicBool,
    /// Changes made in place (counted once they are made), and how many of them are flushed. A file
    /// just opened may have some from before.
    changes: AtomicU64,
    flushed: AtomicU64,
    failed: AtomicBool,
    /// It has a record from when it was empty.
    began_empty: AtomicBool,
}

impl FileLog {
    /// A file whose commits go to `journal`. `has_state`: it has a header, or may be known as an empty
    /// file after a crash. The first commit of any other goes straight to its place.
    pub fn new(
        journal: Arc<Journal>,
        storage: Arc<dyn Storage>,
        place: Box<dyn Whereabouts>,
        has_state: bool,
    ) -> Arc<Self> {
        let pending = Pending::default();
        Self::with(Some(journal), storage, Some(place), pending, has_state)
    }

    /// A file of a crashed volume as recovery would leave it; nothing is written.
    pub(super) fn view(storage: Arc<dyn Storage>, pending: Pending) -> Arc<Self> {
        Self::with(None, storage, None, pending, true)
    }

    fn with(
        journal: Option<Arc<Journal>>,
        storage: Arc<dyn Storage>,
        place: Option<Box<dyn Whereabouts>>,
        pending: Pending,
        has_state: bool,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            journal,
            storage,
            place,
            turn: Mutex::default(),
            object: Mutex::default(),
            root: Mutex::default(),
            is_pending: AtomicBool::new(!pending.is_empty()),
            pending: RwLock::new(pending),
            loose: Mutex::default(),
            resting: Mutex::default(),
            has_state: AtomicBool::new(has_state),
            changes: AtomicU64::new(1),
            flushed: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            began_empty: AtomicBool::new(false),
        })
    }

    /// Are there committed states that are not in their place?
    pub fn is_pending(&self) -> bool {
        self.is_pending.load(Ordering::Acquire)
    }

    /// Modification time of the newest state, while it is not in place.
    pub fn pending_mtime(&self) -> Option<Time> {
        self.is_pending().then(|| self.pending.read().mtime).flatten()
    }

    /// Backing length of the newest state, while it is not in place.
    pub fn pending_len(&self) -> Option<u64> {
        self.is_pending().then(|| self.pending.read().len)
    }

    /// Does an older state, which a crash may bring back, refer to this range?
    pub(super) fn is_retired(&self, range: &Range<u64>) -> bool {
        self.is_pending() && !made(Mutation::ForgetRetired) && self.pending.read().retired(range)
    }

    /// Fresh blocks from `offset` on are given up.
    pub(super) fn forget_fresh(&self, offset: u64) {
        let mut loose = self.loose.lock();
        loose.sums.split_off(&offset);
        loose.end = loose.end.min(offset);
    }

    /// Do commits have to be records?
    pub(super) fn has_state(&self) -> bool {
        self.has_state.load(Ordering::Acquire)
    }

    /// The first header is in place; from now on commits are records.
    pub(super) fn first_commit(&self) {
        let mut loose = self.loose.lock();
        // A new file that is not firm may be damaged by a crash: nothing relies on these blocks.
        *loose = Loose::default();
        self.has_state.store(true, Ordering::Release);
    }

    fn refuse_failed(&self) -> io::Result<()> {
        match self.failed.load(Ordering::Acquire) {
            true => Err(io::Error::from_raw_os_error(libc::EIO)),
            false => Ok(()),
        }
    }

    fn journal(&self) -> io::Result<&Arc<Journal>> {
        self.journal.as_ref().ok_or_else(|| io::Error::from_raw_os_error(libc::EROFS))
    }

    /// Counts a change that was made in place; returns its number.
    fn changed(&self) -> u64 {
        if let Some(journal) = &self.journal {
            journal.note_change();
        }
        self.changes.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Appends a commit to the journal. On an error the state may be in the journal or not.
    pub(super) fn commit(&self, commit: Commit<'_>) -> io::Result<()> {
        let _turn = self.turn.lock();
        self.commit_in_turn(&commit)
    }

    fn commit_in_turn(&self, commit: &Commit<'_>) -> io::Result<()> {
        self.refuse_failed()?;
        let journal = self.journal()?;
        *self.object.lock() = Some(commit.object);
        *self.root.lock() = Some(*commit.root);
        if self.loose.lock().sums.len() > FRESH_MAX {
            self.flush_fresh()?;
        }
        for _ in 0..TRIES {
            match self.try_commit(journal, commit)? {
                Some(()) => return Ok(()),
                None => journal.make_room()?,
            }
        }
        Err(io::Error::from_raw_os_error(libc::ENOSPC))
    }

    /// One attempt; `None` when the journal is full.
    fn try_commit(&self, journal: &Arc<Journal>, commit: &Commit<'_>) -> io::Result<Option<()>> {
        let _open = journal.enter()?;
        let mut record = self.record(commit);
        self.began_empty.fetch_or(commit.first.is_some(), Ordering::AcqRel);
        match journal.append(&mut record)? {
            Appended::Full => return Ok(None),
            Appended::Done => journal.register(commit.object, &self.me),
        }
        self.make_mistakes(commit)?;
        if let Some(header) = commit.first {
            // With half of a header in it the file is not empty any more, and only the record tells
            // that it was.
            journal.flush_to(record.number)?;
            let written = self.apart(|| self.storage.write_at(&[IoSlice::new(header)], 0));
            self.changed();
            written?;
        }
        let mut pending = self.pending.write();
        let folded = pending.add(&record);
        debug_assert!(folded.is_ok(), "a record of our own");
        self.is_pending.store(true, Ordering::Release);
        drop(pending);
        if commit.is_content() {
            let mut loose = self.loose.lock();
            loose.sums.clear();
            loose.end = 0;
        }
        Ok(Some(()))
    }

    /// Runs what changes the backing file before its state is whole, and sets its time apart.
    fn apart(&self, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut resting = self.resting.lock();
        if resting.is_none() {
            *resting = self.storage.mtime()?;
        }
        let done = act();
        // One second back: what is committed from now on is not older than what was.
        let time = resting.map(|(seconds, nanos)| (seconds.saturating_sub(1), nanos));
        let set = time.map_or(Ok(()), |time| self.storage.set_mtime_meanwhile(time));
        done.and(set)
    }

    /// Nothing has come of what set the time apart, or nothing that has a time of its own.
    pub(super) fn come_to_rest(&self) -> io::Result<()> {
        if self.is_pending() {
            return Ok(());
        }
        let time = self.resting.lock().take();
        time.map_or(Ok(()), |time| self.storage.set_mtime(time))
    }

    /// What [`Mutation`] says, if it says so.
    fn make_mistakes(&self, commit: &Commit<'_>) -> io::Result<()> {
        if made(Mutation::HeaderInPlace)
            && let Some((0, header)) = commit.blocks.first()
        {
            self.storage.write_at(&[IoSlice::new(header)], 0)?;
        }
        if made(Mutation::CutBeforeFirm) && commit.len < self.storage.len()? {
            self.storage.set_len(commit.len)?;
        }
        Ok(())
    }

    fn record<'a>(&self, commit: &Commit<'a>) -> Record<'a> {
        let pending = self.pending.read();
        let (ino, path) = match &self.place {
            Some(place) if pending.is_empty() => place.find(),
            Some(_) | None => (0, Vec::new()),
        };
        let blocks = commit.blocks.iter().map(|(offset, bytes)| {
            let base = pending.image(*offset).filter(|_| bytes.len() >= BLOCK);
            let base = match base {
                None if made(Mutation::DeltaWithoutImage) => Some(&[0; BLOCK][..]),
                other => other,
            };
            let change = base.and_then(|old| delta(old, bytes));
            (*offset, change.map_or(Change::Image(bytes), Change::Delta))
        });
        Record {
            number: 0,
            firm: 0,
            object: commit.object,
            ino,
            base: commit.base,
            base_root: first_bytes(commit.base, commit.base_root),
            generation: commit.generation,
            mtime: commit.mtime,
            len: commit.len,
            path,
            blocks: blocks.collect(),
            fresh: if commit.is_content() { self.fresh(commit) } else { Vec::new() },
            freed: commit.freed.clone(),
        }
    }

    /// Checksums of the blocks in place that this state refers to.
    fn fresh(&self, commit: &Commit<'_>) -> Vec<Fresh> {
        let loose = self.loose.lock();
        let header = commit.first.map(|bytes| Fresh {
            offset: 0,
            sums: bytes.chunks(BLOCK).map(crc32fast::hash).collect(),
            last_len: BLOCK as u32,
        });
        let mut runs: Vec<Fresh> = header.into_iter().collect();
        for (offset, sum) in loose.sums.range(..commit.len) {
            let is_freed = commit.freed.iter().any(|r| r.contains(offset));
            if is_freed || commit.blocks.binary_search_by_key(offset, |(o, _)| *o).is_ok() {
                continue;
            }
            match runs.last_mut() {
                Some(run) if run.is_followed_by(*offset) => {
                    run.sums.push(sum.crc);
                    run.last_len = sum.len;
                }
                _ => runs.push(Fresh { offset: *offset, sums: vec![sum.crc], last_len: sum.len }),
            }
        }
        runs
    }

    /// Flushes what was written in place. An error is remembered: which blocks it took is not known.
    pub(super) fn flush_fresh(&self) -> io::Result<()> {
        let changes = self.changes.load(Ordering::Acquire);
        if self.flushed.load(Ordering::Acquire) >= changes || made(Mutation::SkipFreshFlush) {
            return Ok(());
        }
        if let Err(error) = self.storage.sync() {
            self.failed.store(true, Ordering::Release);
            if let Some(journal) = self.journal.as_ref().filter(|_| self.is_pending()) {
                journal.freeze(&error);
            }
            return Err(error);
        }
        self.flushed_up_to(changes);
        Ok(())
    }

    /// Changes made so far.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// So many changes are flushed.
    pub(super) fn flushed_up_to(&self, changes: u64) {
        self.flushed.fetch_max(changes, Ordering::AcqRel);
        // A record names flushed blocks as well: it may be restored beside an older copy of the file.
        let mut loose = self.loose.lock();
        if loose.sums.len() > FRESH_MAX {
            loose.sums.retain(|_, sum| sum.change > changes);
        }
    }

    /// Writes the newest state to its place; the records behind it are firm. Not flushed.
    pub(super) fn write_in_place(&self) -> io::Result<()> {
        let pending = self.pending.read();
        let written = pending.write_images(&*self.storage).and_then(|()| {
            // Locked, so that no fresh block is written behind the cut while it is made.
            let loose = self.loose.lock();
            pending.fit_len(&*self.storage, loose.end)?;
            drop(loose);
            let mut resting = self.resting.lock();
            pending.finish(&*self.storage)?;
            match resting.take().filter(|_| pending.mtime.is_none()) {
                Some(time) => self.storage.set_mtime(time),
                None => Ok(()),
            }
        });
        self.changed();
        written
    }

    /// What was written to its place is flushed: the journal is not needed for it any more.
    pub(super) fn settled(&self) {
        let mut pending = self.pending.write();
        pending.clear();
        self.began_empty.store(false, Ordering::Release);
        self.is_pending.store(false, Ordering::Release);
    }

    /// Brings everything in the journal to its place. The caller must not be in a commit.
    pub(super) fn checkpoint(&self) -> io::Result<()> {
        self.journal()?.checkpoint(false)
    }

    /// Forgets a file nobody can reach any more. A checkpoint that has begun still brings it to its
    /// newest state: what it holds stays for that.
    pub fn discard(&self) {
        if let (Some(journal), Some(object)) = (&self.journal, *self.object.lock()) {
            journal.forget(object, self.began_empty.load(Ordering::Acquire));
            self.is_pending.store(false, Ordering::Release);
        }
    }

    /// Before the file gets its first bytes.
    fn lay_ghosts(&self) -> io::Result<()> {
        match &self.journal {
            Some(journal) if journal.has_ghosts() && self.storage.is_empty()? => {
                journal.checkpoint(false)
            }
            _ => Ok(()),
        }
    }

    /// Number of the last record.
    pub(super) fn last(&self) -> u64 {
        self.pending.read().last
    }

    pub(super) fn object(&self) -> Option<ObjectId> {
        *self.object.lock()
    }

    /// What a failed write left is not known. The engine relies on none of it.
    fn forget_sums(&self, range: Range<u64>) {
        let mut loose = self.loose.lock();
        self.changed();
        loose.sums.retain(|offset, _| !range.contains(offset));
    }

    /// Remembers what was written; a record that refers to it must name its checksums.
    fn note_sums(&self, bufs: &[IoSlice<'_>], offset: u64) {
        if !self.has_state.load(Ordering::Acquire) {
            self.changed();
            return;
        }
        let mut loose = self.loose.lock();
        let change = self.changed();
        let mut at = offset;
        for block in bufs.iter().flat_map(|buf| buf.chunks(BLOCK)) {
            let (crc, len) = (crc32fast::hash(block), block.len() as u32);
            loose.sums.insert(at, Sum { crc, len, change });
            at += block.len() as u64;
        }
    }
}

impl Drop for FileLog {
    /// Whoever opens the file next shall see what is on disk, not what a failed flush left in memory:
    /// flushing that again would succeed without writing it.
    fn drop(&mut self) {
        if self.failed.load(Ordering::Acquire) {
            self.storage.drop_cache();
        }
    }
}

/// What a record says of the root hash of its base.
fn first_bytes(base: u64, root: &[u8; 32]) -> [u8; 16] {
    match root.first_chunk() {
        Some(bytes) if base > 0 => *bytes,
        _ => [0; 16],
    }
}

impl Fresh {
    /// Does the block at `offset` come right behind, all blocks so far being whole?
    fn is_followed_by(&self, offset: u64) -> bool {
        self.last_len as usize == BLOCK && self.offset + (self.sums.len() * BLOCK) as u64 == offset
    }
}

impl Storage for FileLog {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        if !self.is_pending() {
            return self.storage.read_at(buf, offset);
        }
        // Held while the backing is read: a checkpoint must not end in between.
        let pending = self.pending.read();
        let have = self.storage.read_at(buf, offset)?;
        if pending.is_empty() {
            return Ok(have);
        }
        Ok(pending.overlay(buf, offset, have))
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.refuse_failed()?;
        self.lay_ghosts()?;
        let len: usize = bufs.iter().map(|b| b.len()).sum();
        {
            // Before the write, so that a checkpoint does not cut it away.
            let mut loose = self.loose.lock();
            loose.end = loose.end.max(offset + len as u64);
        }
        let written = self.apart(|| self.storage.write_at(bufs, offset));
        match written {
            Ok(()) => self.note_sums(bufs, offset),
            Err(_) => self.forget_sums(offset..offset + len as u64),
        }
        written
    }

    /// Cuts only what no committed state can refer to.
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.refuse_failed()?;
        self.lay_ghosts()?;
        let held = if self.is_pending() { self.pending.read().held_len() } else { 0 };
        let mut loose = self.loose.lock();
        let have = self.storage.len()?;
        let len = if len < have { len.max(held.min(have)) } else { len };
        let done = if len == have { Ok(()) } else { self.apart(|| self.storage.set_len(len)) };
        self.changed();
        loose.sums.split_off(&len);
        loose.end = if len > have { loose.end.max(len) } else { loose.end.min(len) };
        done
    }

    fn len(&self) -> io::Result<u64> {
        let len = self.storage.len()?;
        Ok(self.pending_len().map_or(len, |pending| pending.max(len)))
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let done = self.apart(|| self.storage.punch(offset, len));
        self.changed();
        done
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        self.storage.reserve(len)
    }

    fn reserve_range(&self, offset: u64, len: u64) -> io::Result<()> {
        self.storage.reserve_range(offset, len)
    }

    fn set_mtime(&self, time: Time) -> io::Result<()> {
        if !self.is_pending() {
            let mut resting = self.resting.lock();
            *resting = None;
            return self.storage.set_mtime(time);
        }
        let _turn = self.turn.lock();
        let (generation, len) = {
            let pending = self.pending.read();
            (pending.generation, pending.len)
        };
        let Some(object) = self.object().filter(|_| generation > 0) else {
            return self.storage.set_mtime(time);
        };
        let (base, mtime) = (generation, Some(time));
        let root = &self.root.lock().unwrap_or_default();
        self.commit_in_turn(&Commit {
            object,
            base,
            base_root: root,
            generation,
            blocks: &[],
            first: None,
            root,
            freed: Vec::new(),
            len,
            mtime,
        })
    }

    /// Makes everything that was committed before the call firm.
    fn sync(&self) -> io::Result<()> {
        self.refuse_failed()?;
        // Before the flush: what is written from now on is not covered by it.
        self.has_state.store(true, Ordering::Release);
        let last = self.pending.read().last;
        self.flush_fresh()?;
        match &self.journal {
            Some(journal) if last > 0 => journal.flush_to(last),
            _ => Ok(()),
        }
    }

    fn log(&self) -> Option<&FileLog> {
        Some(self)
    }
}
