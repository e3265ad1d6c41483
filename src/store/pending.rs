//! What a file's journal records amount to: the newest bytes of every block they change, and what
//! has to happen to the backing file so that it holds the newest state.
//!
//! The same fold serves the running mount (reads, checkpoint) and recovery, so that both bring the
//! backing file to the same bytes.

use super::Storage;
use super::content::Time;
use super::ranges::RangeSet;
use crate::format::FormatError;
use crate::format::journal::{Change, Record, apply_delta};
use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::ops::Range;

/// Blocks of one write at most.
const RUN: usize = 256;

/// States of a file that are in the journal but not in their place.
#[derive(Default)]
pub(super) struct Pending {
    /// Newest bytes by backing offset. They never overlap: blocks are aligned.
    images: BTreeMap<u64, Box<[u8]>>,
    /// What the newest state does not refer to, but an older one does.
    freed: RangeSet,
    /// Number of the last record; 0 = nothing is pending.
    pub last: u64,
    /// Generation of the newest state.
    pub generation: u64,
    /// Backing length of the newest state.
    pub len: u64,
    /// Modification time of the newest state.
    pub mtime: Option<Time>,
}

impl Pending {
    pub fn is_empty(&self) -> bool {
        self.last == 0
    }

    /// Newest bytes of the block at `offset`, if they are not in place.
    pub fn image(&self, offset: u64) -> Option<&[u8]> {
        self.images.get(&offset).map(|b| &**b)
    }

    /// May a block of this range be written in place? Not while an older state refers to it.
    pub fn retired(&self, range: &Range<u64>) -> bool {
        self.freed.meets(range)
    }

    /// Takes a record on top. Fails when a delta does not fit what it should follow; the fold is
    /// useless then.
    pub fn add(&mut self, record: &Record<'_>) -> Result<(), FormatError> {
        for range in &record.freed {
            self.free(range);
        }
        for (offset, change) in &record.blocks {
            let bytes = match change {
                Change::Image(bytes) => Box::from(*bytes),
                Change::Delta(delta) => {
                    let base = self.images.get(offset).cloned();
                    let mut block = base.ok_or(FormatError::Field("journal record delta"))?;
                    apply_delta(&mut block, delta)?;
                    block
                }
            };
            self.freed.remove(&(*offset..*offset + bytes.len() as u64));
            self.images.insert(*offset, bytes);
        }
        self.images.split_off(&record.len);
        self.len = record.len;
        self.generation = record.generation;
        self.mtime = record.mtime.or(self.mtime);
        self.last = record.number;
        Ok(())
    }

    fn free(&mut self, range: &Range<u64>) {
        self.freed.insert(range.clone());
        let gone: Vec<u64> = self.images.range(range.clone()).map(|(o, _)| *o).collect();
        for offset in gone {
            self.images.remove(&offset);
        }
    }

    /// Forgets everything: it is in place.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Puts pending blocks over what was read from the backing file at `offset`; returns how many
    /// bytes of `buf` are valid then, when `have` were before.
    pub fn overlay(&self, buf: &mut [u8], offset: u64, have: usize) -> usize {
        let end = offset + buf.len() as u64;
        // An image that begins before the range may reach into it.
        let first = self.images.range(..=offset).next_back().map_or(offset, |(o, _)| *o);
        let mut have = have;
        for (at, bytes) in self.images.range(first..end) {
            let (from, to) = ((*at).max(offset), (*at + bytes.len() as u64).min(end));
            if from >= to {
                continue;
            }
            let inside = (from - offset) as usize..(to - offset) as usize;
            if inside.start > have {
                // Between the end of the backing file and the image there is nothing yet.
                buf[have..inside.start].fill(0);
            }
            have = have.max(inside.end);
            buf[inside].copy_from_slice(&bytes[(from - at) as usize..(to - at) as usize]);
        }
        have
    }

    /// Longest backing length of all states, the oldest included.
    pub fn held_len(&self) -> u64 {
        self.freed.end().max(self.len)
    }

    /// Writes the newest bytes to their place; the caller flushes.
    pub fn write_images(&self, storage: &dyn Storage) -> io::Result<()> {
        let mut run: Vec<(u64, &[u8])> = Vec::new();
        for (offset, bytes) in &self.images {
            let follows = run.last().is_none_or(|(o, b)| o + b.len() as u64 == *offset);
            if !follows || run.len() >= RUN {
                write_run(storage, &run)?;
                run.clear();
            }
            run.push((*offset, bytes));
        }
        write_run(storage, &run)
    }

    /// Gives the backing file the length of the newest state. `keep` is how far fresh blocks that no
    /// committed state refers to yet may reach: they are not cut.
    pub fn fit_len(&self, storage: &dyn Storage, keep: u64) -> io::Result<()> {
        let have = storage.len()?;
        let len = self.len.max(keep.min(have));
        if have == len { Ok(()) } else { storage.set_len(len) }
    }

    /// Frees space that nothing refers to any more, then sets the modification time.
    pub fn finish(&self, storage: &dyn Storage) -> io::Result<()> {
        for range in self.freed.iter().filter(|r| r.start < self.len) {
            storage.punch(range.start, range.end.min(self.len) - range.start)?;
        }
        match self.mtime {
            Some(time) => storage.set_mtime(time),
            None => Ok(()),
        }
    }
}

fn write_run(storage: &dyn Storage, run: &[(u64, &[u8])]) -> io::Result<()> {
    let Some((offset, _)) = run.first() else { return Ok(()) };
    let slices: Vec<IoSlice<'_>> = run.iter().map(|(_, bytes)| IoSlice::new(bytes)).collect();
    storage.write_at(&slices, *offset)
}
