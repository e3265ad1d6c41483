//! Writing: encrypt at once, into the backing file where nothing committed is in the way, else into
//! the overlay.
//!
//! A change of a chunk is complete (tag, size, image) or not there at all when an error comes.

use super::StoreError;
use super::content::DIRTY_LIMIT;
use super::segment::{segment_chunks, segment_of};
use super::state::{CHUNK, State};
use crate::crypto::random;
use crate::format::BLOCK;
use crate::format::layout::chunk_len;
use crate::format::tags::TagEntry;
use std::cell::RefCell;
use std::io::IoSlice;
use std::ops::Range;

/// Calls up to this size stay in memory even where they could go in place, so that small files
/// reach the backing file together with their header.
const SMALL: usize = 64 << 10;
/// Bytes of large writes that may go through the journal for want of free ground.
const BLOCKED_MAX: usize = 512 << 10;
/// Chunks of the longest run.
const RUN: usize = 128;

thread_local! {
    /// Ciphertext of one run on its way to the backing file.
    static RUN_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The part of a write that falls into one segment.
struct Job<'a> {
    number: u64,
    offset: u64,
    data: &'a [u8],
    /// File size once the job is done.
    size: u64,
    /// One nonce per chunk of the job.
    nonces: &'a [[u8; 12]],
}

impl Job<'_> {
    fn end(&self) -> u64 {
        self.offset + self.data.len() as u64
    }
    fn chunks(&self) -> Range<u64> {
        self.offset / CHUNK..self.end().div_ceil(CHUNK)
    }
    fn nonce(&self, chunk: u64) -> &[u8; 12] {
        &self.nonces[(chunk - self.chunks().start) as usize]
    }
    /// The job's bytes of a chunk, and where they stand within it.
    fn part(&self, chunk: u64) -> (&[u8], usize) {
        let from = self.offset.max(chunk * CHUNK);
        let to = self.end().min((chunk + 1) * CHUNK);
        let data = &self.data[(from - self.offset) as usize..(to - self.offset) as usize];
        (data, (from % CHUNK) as usize)
    }
}

impl State {
    /// Writes all of `data`.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        if data.is_empty() {
            return Ok(());
        }
        Self::check_size(offset.checked_add(data.len() as u64))?;
        self.begin()?;
        self.commit_if_large()?;
        if offset / CHUNK > self.size / CHUNK {
            self.extend_tail(offset)?;
        }
        let direct = data.len() > SMALL;
        let mut done = 0;
        while done < data.len() {
            let pos = offset + done as u64;
            let left = segment_chunks(segment_of(pos / CHUNK)).end * CHUNK - pos;
            let len = left.min((data.len() - done) as u64) as usize;
            self.touch();
            self.write_in_segment(pos, &data[done..done + len], direct)?;
            self.clear_ground()?;
            self.commit_if_large()?;
            done += len;
        }
        Ok(())
    }

    /// Large writes over what was cut or punched a moment ago would go through the journal only
    /// because an older state still refers to those blocks. Once the cut is firm and made, the rest
    /// of them goes straight to its place.
    fn clear_ground(&mut self) -> Result<(), StoreError> {
        if self.blocked <= BLOCKED_MAX {
            return Ok(());
        }
        self.commit()?;
        self.storage.log().map_or(Ok(()), |log| log.checkpoint())?;
        Ok(())
    }

    /// Commits when more than the allowed memory waits for it.
    pub fn commit_if_large(&mut self) -> Result<(), StoreError> {
        if self.dirty_bytes() > DIRTY_LIMIT { self.commit() } else { Ok(()) }
    }

    /// Writes within one segment, `direct` where chunks are fresh. Everything that can fail in the
    /// tree comes first.
    pub fn write_in_segment(
        &mut self,
        offset: u64,
        data: &[u8],
        direct: bool,
    ) -> Result<(), StoreError> {
        let number = segment_of(offset / CHUNK);
        let size = self.size.max(offset + data.len() as u64);
        let mut nonces = [[0; 12]; RUN];
        let mut job = Job { number, offset, data, size, nonces: &[] };
        let count = (job.chunks().end - job.chunks().start) as usize;
        self.load_segment(number)?;
        self.mark_dirty(number)?;
        self.ready_segment(number, count as u64)?;
        random(nonces[..count].as_flattened_mut());
        job.nonces = &nonces[..count];
        let mut chunk = job.chunks().start;
        while chunk < job.chunks().end {
            let run = if direct { self.fresh_run(&job, chunk)? } else { chunk..chunk };
            if run.is_empty() {
                let was_hole = self.loaded(number)?.tag(chunk).is_hole();
                self.blocked += if direct && was_hole { BLOCK } else { 0 };
                self.write_to_overlay(&job, chunk)?;
                chunk += 1;
            } else {
                chunk = run.end;
                self.write_in_place(&job, run)?;
            }
        }
        Ok(())
    }

    /// The fresh chunks of a job from `chunk` on.
    fn fresh_run(&self, job: &Job<'_>, chunk: u64) -> Result<Range<u64>, StoreError> {
        let seg = self.loaded(job.number)?;
        let end = (chunk..job.chunks().end).find(|c| !self.is_fresh(seg, *c));
        Ok(chunk..end.unwrap_or(job.chunks().end))
    }

    /// New plaintext of a chunk: the job's bytes over the old ones.
    fn fill(&self, job: &Job<'_>, chunk: u64, out: &mut [u8]) -> Result<(), StoreError> {
        let (data, at) = job.part(chunk);
        if data.len() < out.len() {
            let old = self.chunk_len(chunk);
            self.read_chunk(job.number, chunk, &mut out[..old])?;
            out[old..].fill(0);
        }
        out[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn write_to_overlay(&mut self, job: &Job<'_>, chunk: u64) -> Result<(), StoreError> {
        let mut image = vec![0; chunk_len(job.size, chunk)].into_boxed_slice();
        self.fill(job, chunk, &mut image)?;
        let tag = self.seal(job.number, chunk, job.nonce(chunk), &mut image)?;
        self.overlay.insert(chunk, image);
        self.install(job, chunk, tag)
    }

    fn install(&mut self, job: &Job<'_>, chunk: u64, tag: TagEntry) -> Result<(), StoreError> {
        self.loaded_mut(job.number)?.set_tag(chunk, tag);
        self.grow_to(job.size.min((chunk + 1) * CHUNK));
        Ok(())
    }

    fn write_in_place(&mut self, job: &Job<'_>, run: Range<u64>) -> Result<(), StoreError> {
        RUN_BUFFER.with_borrow_mut(|buffer| {
            let end = job.size.min(run.end * CHUNK);
            let len = (end - run.start * CHUNK) as usize;
            if buffer.len() < len {
                buffer.resize(RUN * BLOCK, 0);
            }
            self.write_run(job, run, &mut buffer[..len])
        })
    }

    /// Encrypts a run of fresh chunks and writes it in place. This is the only write outside a
    /// commit.
    fn write_run(
        &mut self,
        job: &Job<'_>,
        run: Range<u64>,
        buffer: &mut [u8],
    ) -> Result<(), StoreError> {
        let mut tags = [TagEntry::HOLE; RUN];
        for ((chunk, part), tag) in run.clone().zip(buffer.chunks_mut(BLOCK)).zip(&mut tags) {
            self.fill(job, chunk, part)?;
            *tag = self.seal(job.number, chunk, job.nonce(chunk), part)?;
        }
        let offset = self.ctx.layout.chunk_offset(run.start);
        let written = self.storage.write_at(&[IoSlice::new(buffer)], offset);
        if written.is_err() {
            self.disk_len = None;
            return self.rescue_run(job, run, buffer, &tags, written);
        }
        self.disk_len = self.disk_len.map(|l| l.max(offset + buffer.len() as u64));
        for (chunk, tag) in run.zip(tags) {
            self.overlay.remove(chunk);
            self.install(job, chunk, tag)?;
        }
        Ok(())
    }

    /// After a failed write in place: chunks that had content in the backing file may be torn
    /// there, so their new images stay in memory. Chunks without content stay as they were.
    fn rescue_run(
        &mut self,
        job: &Job<'_>,
        run: Range<u64>,
        buffer: &[u8],
        tags: &[TagEntry],
        written: std::io::Result<()>,
    ) -> Result<(), StoreError> {
        for ((chunk, part), tag) in run.zip(buffer.chunks(BLOCK)).zip(tags) {
            let held = !self.loaded(job.number)?.tag(chunk).is_hole();
            if held && self.overlay.get(chunk).is_none() {
                self.overlay.insert(chunk, part.into());
                self.install(job, chunk, *tag)?;
            }
        }
        Ok(written?)
    }
}
