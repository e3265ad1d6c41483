//! Changes of size and holes: truncating both ways, punching, reserving.
//!
//! Shrinking never resurrects old bytes: tags and child hashes behind the new end are gone at once,
//! and what stood there counts as committed (not to be overwritten in place) until the commit.

use super::StoreError;
use super::segment::{segment_chunks, segment_of};
use super::state::{CHUNK, State};
use crate::crypto::random_array;
use crate::format::BLOCK;
use crate::format::layout::{GROUP_CHUNKS, HEADER_CHUNKS, chunk_len, chunks, groups};

/// Plaintext of partial punches.
static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// The re-encryption that a new length of a partial last chunk needs.
struct Tail {
    chunk: u64,
    plain: [u8; BLOCK],
    len: usize,
}

impl State {
    /// Changes the size.
    pub fn truncate(&mut self, size: u64) -> Result<(), StoreError> {
        Self::check_size(Some(size))?;
        self.begin_without_tree()?;
        if size == self.size {
            self.touch_time();
            return Ok(());
        }
        if size > self.size {
            self.begin()?;
            self.make_room(size)?;
            self.extend_tail(size)?;
            self.grow_to(size);
            self.touch();
            return Ok(());
        }
        if size == 0 {
            self.new_life();
        } else {
            self.shrink(size)?;
        }
        self.touch();
        self.after_shrink();
        Ok(())
    }

    /// Asks the backing file whether it can be long enough for a size behind its end, while saying
    /// no still costs nothing. A file that was never written goes back to no bytes at all.
    pub fn make_room(&mut self, size: u64) -> Result<(), StoreError> {
        let len = self.ctx.layout.backing_len(size);
        let have = self.disk_len()?;
        if have >= len {
            return Ok(());
        }
        self.disk_len = None;
        self.storage.set_len(len)?;
        if self.committed.len == 0 {
            self.storage.set_len(have)?;
        } else {
            self.disk_len = Some(len);
        }
        Ok(())
    }

    /// Makes a partial last chunk as long as a size beyond it asks for. Holes need nothing.
    pub fn extend_tail(&mut self, size: u64) -> Result<(), StoreError> {
        if self.size.is_multiple_of(CHUNK) {
            return Ok(());
        }
        let chunk = self.size / CHUNK;
        let number = segment_of(chunk);
        self.load_segment(number)?;
        if self.loaded(number)?.tag(chunk).is_hole() {
            return Ok(());
        }
        let new = size.min((chunk + 1) * CHUNK);
        let old = self.chunk_len(chunk);
        self.mark_dirty(number)?;
        self.ready_segment(number, 1)?;
        let mut tail = Tail { chunk, plain: [0; BLOCK], len: chunk_len(new, chunk) };
        self.read_chunk(number, chunk, &mut tail.plain[..old])?;
        self.seal_tail(number, tail)?;
        self.grow_to(new);
        self.touch();
        Ok(())
    }

    fn seal_tail(&mut self, number: u64, mut tail: Tail) -> Result<(), StoreError> {
        let data = &mut tail.plain[..tail.len];
        let tag = self.seal(number, tail.chunk, &random_array(), data)?;
        self.overlay.insert(tail.chunk, Box::from(&*data));
        self.loaded_mut(number)?.set_tag(tail.chunk, tag);
        Ok(())
    }

    /// Cuts to `size` > 0. All that can fail comes before the first change.
    fn shrink(&mut self, size: u64) -> Result<(), StoreError> {
        let keep = chunks(size);
        if groups(size) > 0 {
            self.top()?;
        }
        let number = segment_of(keep - 1);
        self.load_segment(number)?;
        let tail = self.shorter_tail(number, size)?;
        let cut = keep..segment_chunks(number).end;
        let seg = self.loaded(number)?;
        if tail.is_some() || cut.clone().any(|c| !seg.tag(c).is_hole()) {
            self.mark_dirty(number)?;
        }
        self.trim_tree(groups(size))?;
        let seg = self.loaded_mut(number)?;
        cut.for_each(|c| seg.clear_tag(c));
        self.overlay.cut(keep);
        self.size = size;
        match tail {
            Some(tail) => self.seal_tail(number, tail),
            None => Ok(()),
        }
    }

    /// Plaintext of the chunk that becomes the partial last one, unless it is a hole.
    fn shorter_tail(&mut self, number: u64, size: u64) -> Result<Option<Tail>, StoreError> {
        let chunk = size / CHUNK;
        if size.is_multiple_of(CHUNK) || self.loaded(number)?.tag(chunk).is_hole() {
            return Ok(None);
        }
        let mut tail = Tail { chunk, plain: [0; BLOCK], len: chunk_len(size, chunk) };
        let old = self.chunk_len(chunk);
        self.read_chunk(number, chunk, &mut tail.plain[..old])?;
        tail.plain[tail.len..].fill(0);
        // Only now: re-keying changes the whole segment, which must then be written.
        self.mark_dirty(number)?;
        self.ready_segment(number, 1)?;
        Ok(Some(tail))
    }

    /// Remembers how far this transaction has cut, and frees what no committed state ever referred
    /// to.
    fn after_shrink(&mut self) {
        let len = self.ctx.layout.backing_len(self.size);
        self.committed.floor = self.committed.floor.min(chunks(self.size));
        // Up to a whole chunk: a fresh last chunk may be written in place at its full length again.
        let whole = self.ctx.layout.backing_len(chunks(self.size) * CHUNK);
        self.committed.cut_at = self.committed.cut_at.min(whole);
        if let Some(log) = self.storage.log() {
            log.forget_fresh(len);
        }
        let fresh_from = len.max(self.committed.len);
        if self.disk_len.is_none_or(|l| l > fresh_from) {
            // Space only; the next commit cuts again if this fails.
            self.disk_len = self.storage.set_len(fresh_from).is_ok().then_some(fresh_from);
        }
    }

    /// Makes a range read as zeros.
    pub fn punch(&mut self, offset: u64, len: u64) -> Result<(), StoreError> {
        let end = offset.saturating_add(len).min(self.size);
        self.begin()?;
        if offset >= end {
            self.touch_time();
            return Ok(());
        }
        let first = offset.div_ceil(CHUNK);
        let last = if end == self.size { chunks(end) } else { end / CHUNK };
        if first > last {
            self.zero_part(offset, end)?;
        } else {
            self.zero_part(offset, end.min(first * CHUNK))?;
            self.zero_part(last * CHUNK, end)?;
            self.punch_chunks(first, last)?;
        }
        self.touch();
        Ok(())
    }

    /// Zeroes part of one chunk, if it holds data.
    fn zero_part(&mut self, from: u64, to: u64) -> Result<(), StoreError> {
        if from >= to {
            return Ok(());
        }
        let number = segment_of(from / CHUNK);
        self.load_segment(number)?;
        if self.loaded(number)?.tag(from / CHUNK).is_hole() {
            return Ok(());
        }
        self.touch();
        self.write_in_segment(from, &ZEROS[..(to - from) as usize], false)
    }

    fn punch_chunks(&mut self, first: u64, last: u64) -> Result<(), StoreError> {
        let mut chunk = first;
        while chunk < last {
            let number = segment_of(chunk);
            let end = segment_chunks(number).end.min(last);
            self.punch_in_segment(number, chunk, end)?;
            if end == last {
                break;
            }
            self.commit_if_large()?;
            chunk = match self.next_group(end.saturating_sub(HEADER_CHUNKS) / GROUP_CHUNKS)? {
                Some(group) => end.max(segment_chunks(group + 1).start),
                None => last,
            };
        }
        Ok(())
    }

    fn punch_in_segment(&mut self, number: u64, from: u64, to: u64) -> Result<(), StoreError> {
        self.load_segment(number)?;
        let seg = self.loaded(number)?;
        if (from..to).all(|c| seg.tag(c).is_hole()) {
            return Ok(());
        }
        self.mark_dirty(number)?;
        self.touch();
        for chunk in from..to {
            self.loaded_mut(number)?.clear_tag(chunk);
            self.overlay.remove(chunk);
        }
        Ok(())
    }

    /// Reserves backing space, and extends the size unless told not to.
    pub fn allocate(&mut self, offset: u64, len: u64, keep: bool) -> Result<(), StoreError> {
        let end = Self::check_size(offset.checked_add(len))?;
        self.begin()?;
        let layout = self.ctx.layout;
        let from = layout.chunk_offset(offset / CHUNK);
        let to = layout.backing_len(end.max(1)).max(from);
        self.storage.reserve_range(from, to - from)?;
        if !keep && end > self.size {
            self.truncate(end)?;
        }
        Ok(())
    }
}
