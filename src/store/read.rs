//! Reading: runs of chunks straight into the caller's buffer, decrypted in place.
//!
//! All of it works under a shared lock on segments that were loaded before; nothing allocates.

use super::StoreError;
use super::segment::{Seg, segment_chunks, segment_of};
use super::state::{CHUNK, State};
use crate::format::BLOCK;
use std::sync::atomic::Ordering;

/// Where the newest bytes of a chunk are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Hole,
    Overlay,
    Backing,
}

impl State {
    /// Bytes of a read that lie within the file.
    pub fn clip(&self, offset: u64, len: usize) -> usize {
        self.size.saturating_sub(offset).min(len as u64) as usize
    }

    /// Are all segments of a range loaded? Marks them used.
    pub fn range_loaded(&self, offset: u64, len: usize) -> bool {
        let now = self.tick();
        let last = segment_of((offset + len as u64 - 1) / CHUNK);
        (segment_of(offset / CHUNK)..=last).all(|n| match self.seg(n) {
            Some(seg) => {
                seg.used.store(now, Ordering::Relaxed);
                true
            }
            None => false,
        })
    }

    /// Loads all segments of a range.
    pub fn load_range(&mut self, offset: u64, len: usize) -> Result<(), StoreError> {
        let last = segment_of((offset + len as u64 - 1) / CHUNK);
        (segment_of(offset / CHUNK)..=last).try_for_each(|n| self.load_segment(n))
    }

    /// Fills `buf` from `offset`; the range lies within the file and its segments are loaded. On an
    /// error `buf` is zeroed: it may hold ciphertext.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        let mut done = 0;
        while done < buf.len() {
            let pos = offset + done as u64;
            let number = segment_of(pos / CHUNK);
            let left = segment_chunks(number).end * CHUNK - pos;
            let len = left.min((buf.len() - done) as u64) as usize;
            let part = &mut buf[done..done + len];
            if let Err(e) = self.read_in_segment(number, pos, part) {
                buf.fill(0);
                return Err(e);
            }
            done += len;
        }
        Ok(())
    }

    fn read_in_segment(&self, number: u64, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        let seg = self.loaded(number)?;
        let mut done = 0;
        while done < buf.len() {
            let pos = offset + done as u64;
            let chunk = pos / CHUNK;
            let skip = (pos % CHUNK) as usize;
            let rest = &mut buf[done..];
            let whole = self.chunk_len(chunk);
            if skip == 0 && rest.len() >= whole {
                done += self.read_run(seg, chunk, rest)?;
            } else {
                let mut plain = [0; BLOCK];
                self.read_chunk(number, chunk, &mut plain[..whole])?;
                let len = rest.len().min(whole - skip);
                rest[..len].copy_from_slice(&plain[skip..skip + len]);
                done += len;
            }
        }
        Ok(())
    }

    fn place(&self, seg: &Seg, chunk: u64) -> Place {
        if seg.tag(chunk).is_hole() {
            Place::Hole
        } else if self.overlay.get(chunk).is_some() {
            Place::Overlay
        } else {
            Place::Backing
        }
    }

    /// Reads whole chunks that are in the same place, as many as `buf` holds; returns their bytes.
    fn read_run(&self, seg: &Seg, first: u64, buf: &mut [u8]) -> Result<usize, StoreError> {
        let place = self.place(seg, first);
        let mut len = self.chunk_len(first);
        let mut chunk = first + 1;
        while len < buf.len() {
            let next = self.chunk_len(chunk);
            if buf.len() - len < next || self.place(seg, chunk) != place {
                break;
            }
            len += next;
            chunk += 1;
        }
        let buf = &mut buf[..len];
        match place {
            Place::Hole => buf.fill(0),
            Place::Overlay => {
                for (chunk, part) in (first..).zip(buf.chunks_mut(BLOCK)) {
                    self.open_chunk(seg, chunk, part)?;
                }
            }
            Place::Backing => {
                self.fetch(first, buf)?;
                for (chunk, part) in (first..).zip(buf.chunks_mut(BLOCK)) {
                    self.decrypt(seg, chunk, part)?;
                }
            }
        }
        Ok(len)
    }

    /// Plaintext of one chunk of a loaded segment; `out` has exactly the chunk's length.
    pub fn read_chunk(&self, number: u64, chunk: u64, out: &mut [u8]) -> Result<(), StoreError> {
        let seg = self.loaded(number)?;
        if seg.tag(chunk).is_hole() {
            out.fill(0);
            return Ok(());
        }
        self.open_chunk(seg, chunk, out)
    }

    fn open_chunk(&self, seg: &Seg, chunk: u64, out: &mut [u8]) -> Result<(), StoreError> {
        match self.overlay.get(chunk) {
            Some(image) if image.len() == out.len() => out.copy_from_slice(image),
            Some(_) => return Err(StoreError::Chunk(chunk)),
            None => self.fetch(chunk, out)?,
        }
        self.decrypt(seg, chunk, out)
    }

    /// Ciphertext of a run as it stands in the backing file.
    pub fn fetch(&self, first: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        let offset = self.ctx.layout.chunk_offset(first);
        if self.storage.read_at(buf, offset)? < buf.len() {
            return Err(self.short());
        }
        Ok(())
    }

    /// Decrypts one chunk in place.
    pub fn decrypt(&self, seg: &Seg, chunk: u64, data: &mut [u8]) -> Result<(), StoreError> {
        let aad = self.keys.current()?.chunk_aad(chunk);
        let key = seg.key.as_ref().ok_or(StoreError::Commitment)?;
        let tag = seg.tag(chunk);
        key.open_in_place(&tag.nonce, &aad, data, &tag.tag).map_err(|_| StoreError::Chunk(chunk))
    }
}
