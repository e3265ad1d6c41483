//! What a file should contain: a sparse map of chunks, no cryptography, no caching.

use crate::support::CHUNK;
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Clone, Default, PartialEq)]
pub struct Model {
    pub size: u64,
    pub chunks: BTreeMap<u64, Arc<[u8; CHUNK as usize]>>,
}

impl Model {
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let mut pos = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let at = (pos % CHUNK) as usize;
            let n = rest.len().min(CHUNK as usize - at);
            let chunk = self.chunks.entry(pos / CHUNK).or_insert_with(|| Arc::new([0; 4096]));
            Arc::make_mut(chunk)[at..at + n].copy_from_slice(&rest[..n]);
            rest = &rest[n..];
            pos += n as u64;
        }
        self.size = self.size.max(pos);
    }

    pub fn truncate(&mut self, size: u64) {
        self.chunks.split_off(&size.div_ceil(CHUNK));
        if let Some(last) = self.chunks.get_mut(&(size / CHUNK)) {
            Arc::make_mut(last)[(size % CHUNK) as usize..].fill(0);
        }
        self.size = size;
    }

    pub fn punch(&mut self, offset: u64, len: u64) {
        let end = (offset + len).min(self.size);
        if offset >= end {
            return;
        }
        for c in offset / CHUNK..=(end - 1) / CHUNK {
            let (from, to) = (offset.max(c * CHUNK), end.min((c + 1) * CHUNK));
            let whole = from == c * CHUNK && to == ((c + 1) * CHUNK).min(self.size);
            if whole {
                self.chunks.remove(&c);
            } else if let Some(chunk) = self.chunks.get_mut(&c) {
                Arc::make_mut(chunk)[(from - c * CHUNK) as usize..(to - c * CHUNK) as usize]
                    .fill(0);
            }
        }
    }

    pub fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let len = self.size.saturating_sub(offset).min(len as u64) as usize;
        let mut out = vec![0; len];
        let mut done = 0;
        while done < len {
            let pos = offset + done as u64;
            let at = (pos % CHUNK) as usize;
            let n = (len - done).min(CHUNK as usize - at);
            if let Some(chunk) = self.chunks.get(&(pos / CHUNK)) {
                out[done..done + n].copy_from_slice(&chunk[at..at + n]);
            }
            done += n;
        }
        out
    }

    pub fn seek_data(&self, offset: u64) -> Option<u64> {
        let found = self.chunks.range(offset / CHUNK..).next()?;
        (offset < self.size).then(|| offset.max(found.0 * CHUNK))
    }

    pub fn seek_hole(&self, offset: u64) -> Option<u64> {
        let mut c = offset / CHUNK;
        while self.chunks.contains_key(&c) {
            c += 1;
        }
        (offset < self.size).then(|| offset.max(c * CHUNK).min(self.size))
    }
}
