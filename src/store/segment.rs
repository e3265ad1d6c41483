//! Tags and keys of one segment, and the bounded set of loaded ones.
//!
//! Segment 0 stands in the header (chunks 0..64), segment n ≥ 1 is tag block n − 1 with its 128
//! chunks. The chunks of one segment are contiguous in the backing file; those of two never are.
//! Invariant: a loaded segment was verified against the tree; a dirty one is never evicted.

use super::StoreError;
use super::state::State;
use super::tree::ZERO;
use crate::crypto::{SegmentKey, random, random_array};
use crate::format::layout::{GROUP_CHUNKS, HEADER_CHUNKS, chunks, group_of, groups};
use crate::format::tags::{Segment, TagBlock, TagEntry};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Loaded segments one file keeps; half of the clean ones go when there are more.
const MAX_SEGMENTS: usize = 2048;

/// Segment of a chunk.
pub(super) fn segment_of(chunk: u64) -> u64 {
    group_of(chunk).map_or(0, |g| g + 1)
}

/// First chunk of a segment.
pub(super) fn segment_start(number: u64) -> u64 {
    if number == 0 { 0 } else { HEADER_CHUNKS + GROUP_CHUNKS * (number - 1) }
}

/// Chunks of a segment.
pub(super) fn segment_chunks(number: u64) -> Range<u64> {
    segment_start(number)..segment_start(number + 1)
}

/// One loaded segment.
pub(super) struct Seg {
    /// First chunk, to turn chunk numbers into tag indices.
    start: u64,
    /// Working tags and segment record; segment 0 uses the first 64 tags.
    pub block: Box<TagBlock>,
    /// Chunks (by index) that the last committed state refers to.
    pub committed: u128,
    /// Chunks that became holes in this transaction and may have space to free.
    pub freed: u128,
    /// Differs from what is on disk.
    pub dirty: bool,
    /// Expanded key; `None` while the segment was never written or its data key is not at hand.
    pub key: Option<SegmentKey>,
    /// When it was last used, in the state's ticks.
    pub used: AtomicU64,
}

impl Seg {
    /// A segment as committed; tags from `chunks` on are ignored, as no chunk is there.
    pub fn new(number: u64, mut block: Box<TagBlock>, chunks: u64) -> Self {
        let start = segment_start(number);
        let valid = chunks.saturating_sub(start).min(GROUP_CHUNKS) as usize;
        block.tags[valid..].fill(TagEntry::HOLE);
        let mut seg = Self {
            start,
            block,
            committed: 0,
            freed: 0,
            dirty: false,
            key: None,
            used: AtomicU64::new(0),
        };
        seg.committed = seg.present();
        seg
    }

    /// Index of a chunk's tag.
    pub fn index(&self, chunk: u64) -> usize {
        (chunk - self.start) as usize
    }

    /// Tag of a chunk.
    pub fn tag(&self, chunk: u64) -> &TagEntry {
        &self.block.tags[self.index(chunk)]
    }

    /// Sets the tag of a chunk that now has data.
    pub fn set_tag(&mut self, chunk: u64, tag: TagEntry) {
        let i = self.index(chunk);
        self.block.tags[i] = tag;
        self.freed &= !(1 << i);
    }

    /// Makes a chunk a hole.
    pub fn clear_tag(&mut self, chunk: u64) {
        let i = self.index(chunk);
        if !self.block.tags[i].is_hole() {
            self.block.tags[i] = TagEntry::HOLE;
            self.freed |= 1 << i;
        }
    }

    /// Bit set of the chunks that hold data.
    pub fn present(&self) -> u128 {
        let bit = |(i, tag): (usize, &TagEntry)| u128::from(!tag.is_hole()) << i;
        self.block.tags.iter().enumerate().map(bit).fold(0, |all, b| all | b)
    }

    /// Does the last committed state refer to this chunk?
    pub fn was_committed(&self, chunk: u64) -> bool {
        self.committed >> self.index(chunk) & 1 == 1
    }
}

impl State {
    /// A loaded segment.
    pub fn seg(&self, number: u64) -> Option<&Seg> {
        if number == 0 { Some(&self.first) } else { self.segments.get(&number) }
    }

    /// A segment that the caller has loaded.
    pub fn loaded(&self, number: u64) -> Result<&Seg, StoreError> {
        self.seg(number).ok_or_else(|| not_loaded(number))
    }

    /// A segment that the caller has loaded, to change it.
    pub fn loaded_mut(&mut self, number: u64) -> Result<&mut Seg, StoreError> {
        let seg = if number == 0 { Some(&mut self.first) } else { self.segments.get_mut(&number) };
        seg.ok_or_else(|| not_loaded(number))
    }

    /// Key of a segment by its record.
    pub fn segment_key(&self, number: u64, record: &Segment) -> Option<SegmentKey> {
        let keys = self.keys.file.get(usize::from(record.key_slot))?.as_ref()?;
        Some(keys.segment_key(number, &record.salt))
    }

    /// Loads and verifies a segment's tags unless they are here.
    pub fn load_segment(&mut self, number: u64) -> Result<(), StoreError> {
        let now = self.tick();
        if let Some(seg) = self.seg(number) {
            seg.used.store(now, Ordering::Relaxed);
            return Ok(());
        }
        let group = number - 1;
        let hash = if group < groups(self.size) { self.child_hash(0, group)? } else { ZERO };
        let block = if hash == ZERO {
            Box::new(TagBlock::empty())
        } else if self.segments.contains_key(&number) {
            return Ok(()); // it was the top block, loaded to verify the root
        } else {
            let bytes = self.read_tree_block(0, group, &hash)?;
            let bad = |_| StoreError::Tree { level: 0, index: group };
            Box::new(TagBlock::decode(&bytes).map_err(bad)?)
        };
        self.insert_segment(number, block);
        Ok(())
    }

    /// Adds a verified tag block to the loaded ones.
    pub fn insert_segment(&mut self, number: u64, block: Box<TagBlock>) {
        self.evict_segments();
        let mut seg = Seg::new(number, block, chunks(self.size));
        if seg.block.segment.salt != [0; 16] {
            seg.key = self.segment_key(number, &seg.block.segment);
        }
        seg.used = AtomicU64::new(self.tick());
        self.segments.insert(number, seg);
    }

    /// Forgets the older half of the clean segments when there are too many.
    fn evict_segments(&mut self) {
        if self.segments.len() < MAX_SEGMENTS {
            return;
        }
        let clean = self.segments.values().filter(|s| !s.dirty);
        let mut ages: Vec<u64> = clean.map(|s| s.used.load(Ordering::Relaxed)).collect();
        if ages.len() < MAX_SEGMENTS / 4 {
            return;
        }
        let middle = ages.len() / 2;
        let (_, limit, _) = ages.select_nth_unstable(middle);
        let limit = *limit;
        self.segments.retain(|_, s| s.dirty || s.used.load(Ordering::Relaxed) >= limit);
    }

    /// Makes a loaded segment ready for `count` encryptions: draws a salt at the first write,
    /// replaces it (and re-encrypts what is present) when the key has done its share.
    pub fn ready_segment(&mut self, number: u64, count: u64) -> Result<(), StoreError> {
        let limit = self.ctx.rekey_limit;
        let seg = self.loaded(number)?;
        if seg.key.is_none() {
            if seg.block.segment.salt != [0; 16] {
                return Err(StoreError::Commitment);
            }
            return self.new_segment_key(number);
        }
        if seg.block.segment.writes.saturating_add(count) > limit {
            return self.rekey(number);
        }
        Ok(())
    }

    /// Draws a new salt under the newest data key.
    fn new_segment_key(&mut self, number: u64) -> Result<(), StoreError> {
        let key_slot = u8::from(self.keys.file[1].is_some());
        let record = Segment { salt: random_array(), writes: 0, key_slot };
        let key = self.segment_key(number, &record);
        let seg = self.loaded_mut(number)?;
        seg.key = key;
        seg.block.segment = record;
        Ok(())
    }

    /// New salt; all present chunks re-encrypted into the overlay. A chunk that does not
    /// authenticate keeps its tag, so that it goes on failing and blocks nobody else.
    fn rekey(&mut self, number: u64) -> Result<(), StoreError> {
        let mut plain = Vec::new();
        for chunk in segment_chunks(number) {
            if self.loaded(number)?.tag(chunk).is_hole() {
                continue;
            }
            let mut data = vec![0; self.chunk_len(chunk)];
            match self.read_chunk(number, chunk, &mut data) {
                Ok(()) => plain.push((chunk, data)),
                Err(StoreError::Chunk(_)) => {}
                Err(e) => return Err(e),
            }
        }
        self.new_segment_key(number)?;
        let mut nonces = vec![0; 12 * plain.len()];
        random(&mut nonces);
        for ((chunk, mut data), nonce) in plain.into_iter().zip(nonces.as_chunks::<12>().0) {
            let tag = self.seal(number, chunk, nonce, &mut data)?;
            self.overlay.insert(chunk, data.into());
            self.loaded_mut(number)?.set_tag(chunk, tag);
        }
        Ok(())
    }

    /// Encrypts a chunk's plaintext in place and counts it.
    pub fn seal(
        &mut self,
        number: u64,
        chunk: u64,
        nonce: &[u8; 12],
        data: &mut [u8],
    ) -> Result<TagEntry, StoreError> {
        let aad = self.keys.current()?.chunk_aad(chunk);
        let seg = self.loaded_mut(number)?;
        let key = seg.key.as_ref().ok_or(StoreError::Commitment)?;
        let tag = key.seal_in_place(nonce, &aad, data);
        seg.block.segment.writes += 1;
        Ok(TagEntry { nonce: *nonce, tag })
    }
}

/// A caller forgot to load; an error rather than a panic, as the data is still safe.
fn not_loaded(number: u64) -> StoreError {
    StoreError::Tree { level: 0, index: number.saturating_sub(1) }
}
