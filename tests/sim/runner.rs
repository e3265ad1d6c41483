//! Does operations on a mounted volume, and tells the disk's log what they mean.

use crate::disk::SimDisk;
use crate::model::Model;
use crate::oracle::{Mark, Snap, State, Which};
use crate::support::{CHUNK, Rng, read};
use crate::volume::Volume;
use crate::world::{Event, FileId};
use kmsfs::format::layout::{GROUP_CHUNKS, HEADER_CHUNKS};
use kmsfs::store::{Content, FileLog, Journal, StoreError, rewrap_header};
use std::sync::Arc;

/// An operation; the first number is a slot, which stands for a name.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    Create(usize),
    Write(usize, u64, usize),
    Append(usize, usize),
    Truncate(usize, u64),
    Punch(usize, u64, u64),
    Allocate(usize, u64, u64, bool),
    Commit(usize),
    Fsync(usize),
    Checkpoint(bool),
    /// Commits, and opens anew if nothing is pending.
    Reopen(usize),
    Unlink(usize),
    /// Unlinks, but goes on with it, unreachable, for a while.
    UnlinkOpen(usize),
    Rename(usize, usize),
    Mtime(usize),
    Rewrap(usize),
}

impl Op {
    /// The slot that must hold a file.
    fn slot(self) -> Option<usize> {
        match self {
            Self::Create(_) | Self::Checkpoint(_) => None,
            Self::Write(slot, ..)
            | Self::Append(slot, _)
            | Self::Truncate(slot, _)
            | Self::Punch(slot, ..)
            | Self::Allocate(slot, ..)
            | Self::Commit(slot)
            | Self::Fsync(slot)
            | Self::Reopen(slot)
            | Self::Unlink(slot)
            | Self::UnlinkOpen(slot)
            | Self::Rename(slot, _)
            | Self::Mtime(slot)
            | Self::Rewrap(slot) => Some(slot),
        }
    }
}

pub struct Slot {
    pub id: FileId,
    content: Option<Content>,
    log: Arc<FileLog>,
    pub model: Model,
    wrap: u64,
    /// An operation failed: what is committed is not exactly known.
    unsure: bool,
    /// A flush failed: it goes on failing until it is opened anew, which this workload does not do.
    broken: bool,
}

pub struct Runner {
    pub volume: Volume,
    pub disk: SimDisk,
    pub journal: Arc<Journal>,
    pub slots: Vec<Option<Slot>>,
    /// Unlinked but open.
    orphans: Vec<Slot>,
    pub rng: Rng,
    /// Errors are expected.
    pub faulty: bool,
}

pub fn name(slot: usize) -> String {
    format!("f{slot}")
}

/// States that a write passes through, as far as a commit in between may show them.
fn steps(model: &Model, offset: u64, data: &[u8]) -> Vec<Model> {
    let mut all = vec![model.clone()];
    let mut done = 0;
    while done < data.len() {
        let pos = offset + done as u64;
        let chunk = pos / CHUNK;
        let end = match chunk.checked_sub(HEADER_CHUNKS) {
            None => HEADER_CHUNKS,
            Some(c) => HEADER_CHUNKS + (c / GROUP_CHUNKS + 1) * GROUP_CHUNKS,
        };
        let len = (end * CHUNK - pos).min((data.len() - done) as u64) as usize;
        let mut next = all[all.len() - 1].clone();
        next.write(pos, &data[done..done + len]);
        all.push(next);
        done += len;
    }
    all
}

impl Slot {
    fn snap(&self, content: &Model) -> Snap {
        Arc::new(State { content: content.clone(), wrap: self.wrap })
    }
    fn content(&self) -> &Content {
        self.content.as_ref().unwrap()
    }
    fn generation(&self) -> u64 {
        self.content().generation()
    }
    /// The model as the engine shows it, after an operation that failed.
    fn look(&mut self) -> Result<(), StoreError> {
        let size = self.content().size();
        let mut model = Model::default();
        model.truncate(size);
        for chunk in 0..size.div_ceil(CHUNK) {
            let bytes = read(self.content(), chunk * CHUNK, CHUNK as usize)?;
            if bytes.iter().any(|b| *b != 0) {
                model.write(chunk * CHUNK, &bytes);
            }
        }
        self.model = model;
        Ok(())
    }
}

impl Runner {
    /// A mount of a disk without a journal; the files in `known` are opened.
    pub fn new(
        volume: &Volume,
        disk: SimDisk,
        seed: u64,
        known: Vec<(usize, FileId, Snap)>,
    ) -> Self {
        let journal = volume.journal(&disk);
        Self::with_journal(volume, disk, journal, seed, known)
    }

    /// [`Self::new`] beside others that share the journal.
    pub fn with_journal(
        volume: &Volume,
        disk: SimDisk,
        journal: Arc<Journal>,
        seed: u64,
        known: Vec<(usize, FileId, Snap)>,
    ) -> Self {
        let mut runner = Self {
            volume: volume.clone(),
            disk,
            journal,
            slots: (0..12).map(|_| None).collect(),
            orphans: Vec::new(),
            rng: Rng(seed),
            faulty: false,
        };
        for (slot, id, snap) in known {
            runner.disk.open(id, true);
            let log = runner.log_of(id, slot, true);
            let (content, wrap) = volume.open(log.clone(), true).unwrap();
            let model = snap.content.clone();
            let content = Some(content);
            runner.slots[slot] =
                Some(Slot { id, content, log, model, wrap, unsure: false, broken: false });
        }
        runner
    }

    fn log_of(&mut self, id: FileId, slot: usize, committed: bool) -> Arc<FileLog> {
        let (disk, journal) = (self.disk.clone(), self.journal.clone());
        self.volume.log(&disk, &journal, (id, &name(slot)), committed, &mut self.rng)
    }

    fn file(&mut self, slot: usize) -> &mut Slot {
        self.slots[slot].as_mut().unwrap()
    }

    pub fn log(&mut self, slot: usize) -> Arc<FileLog> {
        self.file(slot).log.clone()
    }

    pub fn has(&self, slot: usize) -> bool {
        self.slots[slot].is_some()
    }

    /// Does an operation; one on a file that is not there creates it first.
    pub fn run(&mut self, op: Op) -> Result<(), StoreError> {
        if self.faulty && op.slot().is_some_and(|slot| !self.has(slot)) {
            return Ok(());
        }
        self.disk.mark(Mark::Op(format!("{op:?}").into()));
        let done = self.run_unmarked(op);
        if let Err(error) = &done {
            self.disk.mark(Mark::Op(format!("failed: {error}").into()));
            assert!(self.faulty, "{op:?}: {error}");
        }
        done
    }

    fn run_unmarked(&mut self, op: Op) -> Result<(), StoreError> {
        match op {
            Op::Create(slot) => self.create(slot),
            Op::Write(slot, offset, len) => self.write(slot, offset, len),
            Op::Append(slot, len) => {
                let end = self.file(slot).model.size;
                self.write(slot, end, len)
            }
            Op::Truncate(slot, size) => {
                let mut next = self.file(slot).model.clone();
                next.truncate(size);
                self.change(slot, vec![], next, |content| content.truncate(size))
            }
            Op::Punch(slot, offset, len) => self.punch(slot, offset, len),
            Op::Allocate(slot, offset, len, keep) => {
                let mut next = self.file(slot).model.clone();
                if !keep && offset + len > next.size {
                    next.truncate(offset + len);
                }
                self.change(slot, vec![], next, |content| content.allocate(offset, len, keep))
            }
            Op::Commit(slot) => self.commit(slot, Content::commit),
            Op::Fsync(slot) => self.fsync(slot),
            Op::Checkpoint(whole) => self.checkpoint(whole),
            Op::Reopen(slot) => self.reopen(slot),
            Op::Unlink(slot) => self.unlink(slot),
            Op::UnlinkOpen(slot) => self.unlink_open(slot),
            Op::Rename(from, to) => self.rename(from, to),
            Op::Mtime(slot) => self.mtime(slot),
            Op::Rewrap(slot) => self.rewrap(slot),
        }
    }

    fn create(&mut self, slot: usize) -> Result<(), StoreError> {
        if self.has(slot) {
            self.unlink(slot)?;
        }
        let id = self.disk.create_file(&name(slot))?;
        let log = self.log_of(id, slot, false);
        let content = Some(self.volume.create(log.clone()));
        let model = Model::default();
        self.slots[slot] =
            Some(Slot { id, content, log, model, wrap: 0, unsure: false, broken: false });
        Ok(())
    }

    fn write(&mut self, slot: usize, offset: u64, len: usize) -> Result<(), StoreError> {
        let data = self.rng.bytes(len);
        let mut states = steps(&self.file(slot).model, offset, &data);
        let next = states.pop().unwrap();
        self.change(slot, states, next, |content| content.write(offset, &data))
    }

    fn punch(&mut self, slot: usize, offset: u64, len: u64) -> Result<(), StoreError> {
        let mut next = self.file(slot).model.clone();
        next.punch(offset, len);
        self.change(slot, vec![], next, |content| content.punch(offset, len))
    }

    /// A change that may commit by itself, at any of the states in between.
    fn change(
        &mut self,
        slot: usize,
        mut between: Vec<Model>,
        next: Model,
        does: impl FnOnce(&Content) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let disk = self.disk.clone();
        let file = self.file(slot);
        between.push(next.clone());
        let states: Vec<Snap> = between.iter().map(|m| file.snap(m)).collect();
        let begin = disk.mark(Mark::Begin { file: file.id, states: states.clone() });
        let before = file.generation();
        let done = does(file.content());
        let committed = file.generation() != before;
        if done.is_ok() {
            file.model = next;
        } else {
            file.unsure = true;
            file.look()?;
        }
        if committed {
            disk.mark(Mark::End { file: file.id, states, which: Which::Some });
        } else if done.is_ok() {
            disk.amend(begin, Mark::Nothing);
        }
        done
    }

    fn commit(
        &mut self,
        slot: usize,
        does: impl FnOnce(&Content) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let disk = self.disk.clone();
        let file = self.file(slot);
        let before = file.generation();
        let states = vec![file.snap(&file.model)];
        let begin = disk.mark(Mark::Begin { file: file.id, states: states.clone() });
        let done = does(file.content());
        let moved = file.generation() != before;
        if done.is_err() {
            file.unsure = true;
            disk.mark(Mark::End { file: file.id, states, which: Which::Maybe });
        } else if moved || file.unsure && file.generation() > 0 {
            file.unsure = false;
            disk.mark(Mark::End { file: file.id, states, which: Which::All });
        } else {
            disk.amend(begin, Mark::Nothing);
        }
        done
    }

    fn fsync(&mut self, slot: usize) -> Result<(), StoreError> {
        let done = self.commit(slot, Content::sync);
        let knows = self.volume.sure && !self.faulty;
        let opened = self.file(slot);
        opened.broken |= done.is_err();
        let (file, written) = (opened.id, opened.generation() > 0);
        self.disk.mark(match done {
            Err(_) => Mark::Broken { file },
            Ok(()) if written => Mark::Firm { file },
            Ok(()) if knows => Mark::FirmEmpty { file },
            Ok(()) => Mark::Nothing,
        });
        done
    }

    fn checkpoint(&mut self, whole: bool) -> Result<(), StoreError> {
        self.journal.checkpoint(whole)?;
        if whole {
            self.disk.mark(Mark::FirmAll);
        }
        Ok(())
    }

    fn reopen(&mut self, slot: usize) -> Result<(), StoreError> {
        self.commit(slot, Content::commit)?;
        let file = self.file(slot);
        let content = file.content();
        if content.is_pending() || file.generation() == 0 || content.is_dirty() || file.broken {
            return Ok(());
        }
        let id = file.id;
        file.content = None;
        let log = self.log_of(id, slot, true);
        let (content, _) = self.volume.open(log.clone(), true)?;
        let file = self.file(slot);
        file.content = Some(content);
        file.log = log;
        let size = file.content().size();
        assert!(size == file.model.size || self.faulty, "size after opening anew");
        Ok(())
    }

    fn gone(&mut self, slot: usize) {
        let file = self.file(slot).id;
        self.disk.mark(Mark::Gone { file });
    }

    fn unlink(&mut self, slot: usize) -> Result<(), StoreError> {
        self.gone(slot);
        self.disk.unlink(&name(slot))?;
        self.close_for_good(slot);
        Ok(())
    }

    fn close_for_good(&mut self, slot: usize) {
        if let Some(file) = self.slots[slot].take() {
            self.discard(file);
        }
    }

    fn discard(&self, file: Slot) {
        drop(file.content);
        file.log.discard();
        self.disk.open(file.id, false);
    }

    fn unlink_open(&mut self, slot: usize) -> Result<(), StoreError> {
        self.gone(slot);
        self.disk.unlink(&name(slot))?;
        let file = self.slots[slot].take();
        self.orphans.extend(file);
        if self.orphans.len() > 1 {
            let file = self.orphans.remove(0);
            self.discard(file);
        }
        // Something is still done with it.
        let orphan = self.orphans.pop();
        let spare = std::mem::replace(&mut self.slots[slot], orphan);
        let done = self.write(slot, 5000, 9000).and_then(|()| match self.rng.below(2) {
            0 => self.commit(slot, Content::commit),
            _ => self.fsync(slot),
        });
        let orphan = std::mem::replace(&mut self.slots[slot], spare);
        self.orphans.extend(orphan);
        done
    }

    fn rename(&mut self, from: usize, to: usize) -> Result<(), StoreError> {
        if from == to {
            return Ok(());
        }
        if self.has(to) {
            self.gone(to);
        }
        let file = self.file(from).id;
        self.disk.mark(Mark::Moved { file });
        self.disk.rename(&name(from), &name(to))?;
        self.close_for_good(to);
        self.slots[to] = self.slots[from].take();
        Ok(())
    }

    fn mtime(&mut self, slot: usize) -> Result<(), StoreError> {
        use kmsfs::store::Storage;
        let time = (1_000_000 + self.rng.below(1000) as i64, 5);
        let file = self.file(slot);
        if !file.content().override_mtime(time) {
            file.log.set_mtime(time)?;
        }
        Ok(())
    }

    /// Only a file that is not open as a content: commits and drops it first.
    fn rewrap(&mut self, slot: usize) -> Result<(), StoreError> {
        self.commit(slot, Content::commit)?;
        let (volume, disk) = (self.volume.clone(), self.disk.clone());
        let file = self.file(slot);
        if file.generation() == 0 || file.content().is_dirty() {
            return Ok(());
        }
        file.content = None;
        file.wrap += 1;
        let states = vec![file.snap(&file.model)];
        disk.mark(Mark::Begin { file: file.id, states: states.clone() });
        let recipients = vec![crate::support::recipient()];
        let done = rewrap_header(&volume.ctx, &file.log, (3, 4), Some(recipients), None, file.wrap);
        file.wrap -= u64::from(done.is_err());
        let which = if done.is_ok() { Which::All } else { Which::Maybe };
        disk.mark(Mark::End { file: file.id, states, which });
        let (content, wrap) = volume.open(file.log.clone(), true)?;
        file.content = Some(content);
        assert!(wrap == file.wrap || done.is_err(), "wrap epoch {wrap}");
        file.wrap = wrap;
        done.map(|_| ())
    }

    /// What happened. Files and journal hold each other until a checkpoint, which comes too late to be
    /// seen.
    pub fn into_log(self) -> Vec<Event> {
        let log = self.disk.take_log();
        let _ = self.journal.checkpoint(true);
        log
    }

    /// Does the engine show what the model says?
    pub fn compare(&mut self) {
        for slot in 0..self.slots.len() {
            let Some(file) = &self.slots[slot] else { continue };
            let Some(content) = &file.content else { continue };
            assert_eq!(content.size(), file.model.size, "size of {}", name(slot));
            let offset = self.rng.below(file.model.size.max(1));
            let got = read(content, offset, 20_000).unwrap();
            assert!(got == file.model.read(offset, 20_000), "{} at {offset}", name(slot));
        }
    }
}
