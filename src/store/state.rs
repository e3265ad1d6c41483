//! What is known of one file: header, size, keys, uncommitted images, and what the last commit
//! refers to.
//!
//! Invariants: `header` describes the last committed state as far as generation, size, segment 0,
//! tags and root hash go (its life salt and key slots are the working ones); every present chunk is
//! encrypted at the length that `size` gives it; an image in `overlay` wins over the backing file.

use super::commit::Settle;
use super::content::{Time, VolumeContext, now};
use super::segment::Seg;
use super::tree::{NodeSlot, Top, ZERO};
use super::{Storage, StoreError};
use crate::crypto::{DataKey, FileKeys, Gone, random_array};
use crate::format::header::{Header, KeySlot};
use crate::format::layout::{self, MAX_PLAIN, chunks, groups};
use crate::format::tags::{Segment, TagBlock, TagEntry};
use crate::format::{BLOCK, ObjectId};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a chunk, for file arithmetic.
pub(super) const CHUNK: u64 = BLOCK as u64;

/// Data keys by slot, and what they became for the file's current life.
pub(super) struct Keys {
    data: [Option<Arc<DataKey>>; 2],
    /// Derived keys by slot.
    pub file: [Option<FileKeys>; 2],
}

impl Keys {
    fn new(data: [Option<Arc<DataKey>>; 2], object: ObjectId, life: &[u8; 16]) -> Self {
        let file = data.each_ref().map(|k| k.as_ref().map(|k| FileKeys::derive(k, object, life)));
        Self { data, file }
    }

    /// The keys that a header commits to.
    fn committed(data: [Option<Arc<DataKey>>; 2], header: &Header) -> Result<Self, StoreError> {
        let keys = Self::new(data, header.object, &header.life_salt);
        let slots = [Some(&header.current), header.next.as_ref()];
        for (keys, slot) in keys.file.iter().zip(slots) {
            let ok = match (keys, slot) {
                (Some(keys), Some(slot)) => keys.commits_to(&slot.commitment),
                (Some(_), None) => false,
                (None, _) => true,
            };
            if !ok {
                return Err(StoreError::Commitment);
            }
        }
        keys.current()?;
        Ok(keys)
    }

    /// Keys of slot 0: tree key and chunk AAD.
    pub fn current(&self) -> Result<&FileKeys, StoreError> {
        self.file[0].as_ref().ok_or(StoreError::Commitment)
    }
}

/// Encrypted chunk images that are not in the backing file yet.
#[derive(Default)]
pub(super) struct Overlay {
    images: BTreeMap<u64, Box<[u8]>>,
}

impl Overlay {
    /// Newest image of a chunk.
    pub fn get(&self, chunk: u64) -> Option<&[u8]> {
        self.images.get(&chunk).map(|b| &**b)
    }
    pub fn insert(&mut self, chunk: u64, image: Box<[u8]>) {
        self.images.insert(chunk, image);
    }
    pub fn remove(&mut self, chunk: u64) {
        self.images.remove(&chunk);
    }
    /// Forgets all chunks from `chunk` on.
    pub fn cut(&mut self, chunk: u64) {
        self.images.split_off(&chunk);
    }
    pub fn clear(&mut self) {
        self.images.clear();
    }
    pub fn bytes(&self) -> usize {
        self.images.len() * BLOCK
    }
    /// Images in chunk order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.images.iter().map(|(c, b)| (*c, &**b))
    }
}

/// What the last committed state refers to, as far as whole ranges go; bits per chunk are in
/// [`Seg`].
pub(super) struct Committed {
    /// Chunks from here on are not part of it.
    pub chunks: u64,
    /// Its backing length; 0 = never written.
    pub len: u64,
    /// The smallest chunk count of this transaction: chunks from here on lost their bits and count
    /// as committed up to `chunks`.
    pub floor: u64,
    /// Backing length at that point: what stands behind it is garbage unless this commit writes it.
    pub cut_at: u64,
}

impl Committed {
    /// The state that a commit of `size` plaintext bytes, `len` backing bytes leaves.
    pub fn new(size: u64, len: u64) -> Self {
        Self { chunks: chunks(size), len, floor: u64::MAX, cut_at: u64::MAX }
    }
}

/// The state of one open file.
pub(super) struct State {
    pub ctx: Arc<VolumeContext>,
    pub storage: Arc<dyn Storage>,
    pub writable: bool,
    /// The keys have been taken away, and why.
    pub gone: Option<Gone>,
    pub header: Header,
    /// Working plaintext size.
    pub size: u64,
    pub keys: Keys,
    /// Segment 0.
    pub first: Seg,
    /// Loaded segments from 1 on.
    pub segments: HashMap<u64, Seg>,
    /// Loaded tree nodes by level and index.
    pub nodes: HashMap<(u32, u64), NodeSlot>,
    /// Top of the working tree; `None` = not verified yet.
    pub top: Option<Top>,
    /// Dirty segments and nodes, for the memory bound.
    pub dirty_blocks: usize,
    pub overlay: Overlay,
    pub committed: Committed,
    /// Known length of the backing file; `None` after a failed write.
    pub disk_len: Option<u64>,
    /// Bytes of large writes held in memory although no chunk was there: an older state holds the
    /// place.
    pub blocked: usize,
    /// Content differs from the last committed state.
    pub changed: bool,
    /// Modification time for the next commit.
    pub mtime: Option<Time>,
    /// What a commit still has to do behind its writes.
    pub settle: Settle,
    ticks: AtomicU64,
}

fn blank_header(ctx: &VolumeContext, slot: KeySlot) -> Header {
    Header {
        volume: ctx.volume,
        object: ObjectId(random_array()),
        life_salt: random_array(),
        generation: 0,
        size: 0,
        root_hash: ZERO,
        wrap_epoch: 0,
        segment: Segment::default(),
        tags: Box::new([TagEntry::HOLE; 64]),
        current: slot,
        next: None,
    }
}

impl State {
    /// A file without any committed state.
    pub fn create(
        ctx: Arc<VolumeContext>,
        storage: Arc<dyn Storage>,
        key: Arc<DataKey>,
        slot: KeySlot,
    ) -> Self {
        let header = blank_header(&ctx, slot);
        let keys = Keys::new([Some(key), None], header.object, &header.life_salt);
        let mut state = Self::with_header(ctx, storage, header, keys);
        state.top = Some(Top { level: 0, hash: ZERO });
        state.disk_len = Some(0);
        state.writable = true;
        state.recommit_keys();
        state
    }

    /// The committed state of a header whose commitments are checked here.
    pub fn open(
        ctx: Arc<VolumeContext>,
        storage: Arc<dyn Storage>,
        header: Header,
        data: [Option<Arc<DataKey>>; 2],
        writable: bool,
    ) -> Result<Self, StoreError> {
        let keys = Keys::committed(data, &header)?;
        let mut state = Self::with_header(ctx, storage, header, keys);
        state.attach(writable)?;
        if groups(state.size) == 0 {
            state.top()?;
        }
        Ok(state)
    }

    fn with_header(
        ctx: Arc<VolumeContext>,
        storage: Arc<dyn Storage>,
        header: Header,
        keys: Keys,
    ) -> Self {
        let mut block = Box::new(TagBlock::empty());
        block.tags[..64].copy_from_slice(&header.tags[..]);
        block.segment = header.segment;
        let len = if header.generation == 0 { 0 } else { ctx.layout.backing_len(header.size) };
        let mut state = Self {
            first: Seg::new(0, block, chunks(header.size)),
            committed: Committed::new(header.size, len),
            size: header.size,
            ctx,
            storage,
            writable: false,
            gone: None,
            header,
            keys,
            segments: HashMap::new(),
            nodes: HashMap::new(),
            top: None,
            dirty_blocks: 0,
            overlay: Overlay::default(),
            disk_len: None,
            blocked: 0,
            changed: false,
            mtime: None,
            settle: Settle::default(),
            ticks: AtomicU64::new(1),
        };
        if state.header.segment.salt != [0; 16] {
            state.first.key = state.segment_key(0, &state.header.segment);
        }
        state
    }

    /// Looks at the backing file's length; one longer than the header says is a leftover of a
    /// crash, which a writer cuts at the next commit.
    pub fn attach(&mut self, writable: bool) -> Result<(), StoreError> {
        let len = self.storage.len()?;
        self.disk_len = Some(len);
        self.writable = writable;
        if writable && len > self.committed.len {
            self.settle.len = Some(self.committed.len);
        }
        Ok(())
    }

    /// Takes writable storage in place of read-only.
    pub fn upgrade(&mut self, storage: Arc<dyn Storage>) {
        self.storage = storage;
        if self.attach(true).is_err() {
            // The length is asked for again, and a longer file cut, before the first change.
            self.writable = true;
            self.disk_len = None;
            self.settle.len = Some(self.committed.len);
        }
    }

    /// Drops all keys. What is not committed stays, encrypted, until they come back.
    pub fn lock(&mut self, why: Gone) {
        self.gone = Some(why);
        self.keys = Keys { data: [None, None], file: [None, None] };
        self.first.key = None;
        self.segments.values_mut().for_each(|seg| seg.key = None);
    }

    /// Takes the keys back.
    pub fn unlock(&mut self, data: [Option<Arc<DataKey>>; 2]) -> Result<(), StoreError> {
        self.keys = Keys::committed(data, &self.header)?;
        let numbers: Vec<u64> = std::iter::once(0).chain(self.segments.keys().copied()).collect();
        for number in numbers {
            let record = self.loaded(number)?.block.segment;
            if record.salt != [0; 16] {
                let key = self.segment_key(number, &record);
                self.loaded_mut(number)?.key = key;
            }
        }
        self.gone = None;
        Ok(())
    }

    /// Is there no state that uses the data key, committed or not?
    pub fn is_unused(&self) -> bool {
        self.header.generation == 0 && !self.changed
    }

    /// Takes another data key while none is in use; returns whether it did.
    pub fn replace_unused_key(&mut self, key: Arc<DataKey>, slot: KeySlot) -> bool {
        let unused = self.is_unused();
        if unused {
            self.header.current = slot;
            self.keys = Keys::new([Some(key), None], self.header.object, &self.header.life_salt);
            self.recommit_keys();
        }
        unused
    }

    /// The data key, if no state that uses it was ever committed.
    pub fn into_unused_key(mut self) -> Option<(Arc<DataKey>, KeySlot)> {
        let never = self.is_unused();
        let key = self.keys.data[0].take().filter(|_| never)?;
        Some((key, KeySlot { commitment: [0; 32], ..self.header.current }))
    }

    /// Refuses what needs keys while they are gone.
    pub fn usable(&self) -> Result<(), StoreError> {
        self.gone.map_or(Ok(()), |gone| Err(gone.into()))
    }

    /// A later number at each call, to tell old loaded blocks from new ones.
    pub fn tick(&self) -> u64 {
        self.ticks.fetch_add(1, Ordering::Relaxed)
    }

    /// Plaintext bytes of a chunk at the working size.
    pub fn chunk_len(&self, chunk: u64) -> usize {
        layout::chunk_len(self.size, chunk)
    }

    /// Memory that only a commit gives back, bytes.
    pub fn dirty_bytes(&self) -> usize {
        self.overlay.bytes() + self.dirty_blocks * BLOCK
    }

    /// May this chunk of a loaded segment be written in place before the next commit?
    pub fn is_fresh(&self, seg: &Seg, chunk: u64) -> bool {
        let unused = chunk >= self.committed.chunks
            || chunk < self.committed.floor && !seg.was_committed(chunk);
        unused && !self.is_retired(self.ctx.layout.chunk_offset(chunk), BLOCK)
    }

    /// Does a committed state that a crash may bring back, other than the last, refer to this range
    /// of the backing file?
    pub fn is_retired(&self, offset: u64, len: usize) -> bool {
        self.storage.log().is_some_and(|log| log.is_retired(&(offset..offset + len as u64)))
    }

    /// Start of every change of the content: nothing of an earlier commit may still be waiting to
    /// cut or punch what this change is going to write, and the tree must be known.
    pub fn begin(&mut self) -> Result<(), StoreError> {
        self.begin_without_tree()?;
        self.top()?;
        Ok(())
    }

    /// [`Self::begin`] for changes that leave nothing of the tree.
    pub fn begin_without_tree(&mut self) -> Result<(), StoreError> {
        if !self.writable {
            return Err(StoreError::ReadOnly);
        }
        if self.changed {
            return Ok(());
        }
        let settled = self.settle_space();
        if settled.is_err() && self.settle.len.is_none() {
            // Only space is lost; punching later could hit what is written from now on.
            self.settle.punches.clear();
            return Ok(());
        }
        settled
    }

    /// Records that content changed now.
    pub fn touch(&mut self) {
        self.changed = true;
        self.mtime = Some(now());
    }

    /// Records the present as modification time without a change of content.
    pub fn touch_time(&mut self) {
        self.mtime = Some(now());
    }

    /// A new life: new salt, hence new keys and commitments, and no content.
    pub fn new_life(&mut self) {
        self.header.life_salt = random_array();
        let data = std::mem::take(&mut self.keys.data);
        self.keys = Keys::new(data, self.header.object, &self.header.life_salt);
        self.recommit_keys();
        self.forget_tree();
        self.first.key = None;
        self.first.block.segment = Segment::default();
        for chunk in 0..layout::HEADER_CHUNKS {
            self.first.clear_tag(chunk);
        }
        self.overlay.clear();
        self.size = 0;
    }

    /// Writes the commitments of the present keys into the key slots. A next slot whose data
    /// key is not at hand would commit to keys of the old life, so it is dropped.
    fn recommit_keys(&mut self) {
        if let Some(keys) = &self.keys.file[0] {
            self.header.current.commitment = *keys.commitment();
        }
        match (&self.keys.file[1], &mut self.header.next) {
            (Some(keys), Some(slot)) => slot.commitment = *keys.commitment(),
            _ => self.header.next = None,
        }
    }

    /// Refuses sizes beyond the format.
    pub fn check_size(size: Option<u64>) -> Result<u64, StoreError> {
        size.filter(|s| *s <= MAX_PLAIN).ok_or(StoreError::TooLarge)
    }

    /// The error for a read that met the end of the backing file too early.
    pub fn short(&self) -> StoreError {
        match self.storage.len() {
            Ok(have) => StoreError::Short { have, want: self.committed.len },
            Err(e) => StoreError::Io(e),
        }
    }
}
