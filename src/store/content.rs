//! The content of one regular file: what every handle on the inode shares.
//!
//! Only locking happens here: reads share, everything else is exclusive. The work is done by
//! `State`.

use super::state::State;
use super::{Storage, StoreError};
use crate::crypto::{DataKey, Gone, Vault};
use crate::format::header::{Header, KeySlot, Recipient};
use crate::format::layout::Layout;
use crate::format::{ObjectId, VolumeId};
use parking_lot::{RwLock, RwLockWriteGuard};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// What the engine needs to know of the volume.
pub struct VolumeContext {
    /// Volume id.
    pub volume: VolumeId,
    /// Layout.
    pub layout: Layout,
    /// Volume keys (header MAC).
    pub keys: Arc<Vault>,
    /// Chunk encryptions a segment key may do before it is replaced; 2^31, lower in tests.
    pub rekey_limit: u64,
}

/// A file's time stamp: seconds and nanoseconds since 1970.
pub type Time = (i64, u32);

/// The present by the system's clock.
pub fn now() -> Time {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(d) => (d.as_secs() as i64, d.subsec_nanos()),
        Err(_) => (0, 0),
    }
}

/// Unflushed memory one file may hold before it commits by itself, bytes.
pub const DIRTY_LIMIT: usize = 8 << 20;

/// Bytes of a read that are served under one lock.
const READ_PIECE: usize = 16 << 20;

/// The content of one open regular file; shared by all handles on the inode. All methods take
/// `&self`.
///
/// States of a block: *committed* (the last committed header, or the tree below it, refers to it)
/// or *fresh* (nothing committed refers to it). Fresh blocks may be written in place at any time;
/// new versions of committed blocks are held in memory until `commit`.
pub struct Content {
    object: ObjectId,
    state: RwLock<State>,
}

impl Content {
    /// Reads and verifies the header of a non-empty backing file (no data key needed).
    pub fn read_header(ctx: &VolumeContext, storage: &dyn Storage) -> Result<Header, StoreError> {
        let mut bytes = vec![0; ctx.layout.header_len()];
        let len = storage.read_at(&mut bytes, 0)?;
        let keys = ctx.keys.keys()?;
        let mac_ok = |bytes: &[u8], mac: &[u8; 32]| keys.header_mac_ok(bytes, mac);
        Ok(Header::decode(&bytes[..len], ctx.layout, ctx.volume, mac_ok)?)
    }
    /// Opens an existing file. `writable` says whether `storage` can be written (a longer backing
    /// file is then cut at the next change or commit; until then [`Self::is_dirty`]). `next_key` is
    /// the data key of the header's next slot, if it has one. Checks commitment(s), then the root
    /// hash as far as the header goes; tree blocks when first needed.
    pub fn open(
        ctx: Arc<VolumeContext>,
        storage: Arc<dyn Storage>,
        header: Header,
        key: Arc<DataKey>,
        next_key: Option<Arc<DataKey>>,
        writable: bool,
    ) -> Result<Self, StoreError> {
        let object = header.object;
        let state = State::open(ctx, storage, header, [Some(key), next_key], writable)?;
        Ok(Self { object, state: RwLock::new(state) })
    }
    /// A new file on an empty backing file: nothing is written before the first commit.
    /// The commitment in `slot` is filled in here, as it depends on the object id drawn here.
    pub fn create(
        ctx: Arc<VolumeContext>,
        storage: Arc<dyn Storage>,
        key: Arc<DataKey>,
        slot: KeySlot,
    ) -> Self {
        let state = State::create(ctx, storage, key, slot);
        Self { object: state.header.object, state: RwLock::new(state) }
    }
    /// Replaces read-only storage with a writable one on the same backing file. A failure to look
    /// at the file shows at the first write.
    pub fn upgrade(&self, storage: Arc<dyn Storage>) {
        self.state.write().upgrade(storage);
    }
    /// Can this content be written?
    pub fn is_writable(&self) -> bool {
        self.state.read().writable
    }
    /// Object id.
    pub fn object(&self) -> ObjectId {
        self.object
    }
    /// Present plaintext size (uncommitted changes included).
    pub fn size(&self) -> u64 {
        self.state.read().size
    }
    /// Uncommitted changes?
    pub fn is_dirty(&self) -> bool {
        self.state.read().is_dirty()
    }
    /// Number of the last commit; 0 = never written.
    pub fn generation(&self) -> u64 {
        self.state.read().header.generation
    }
    /// Modification time of uncommitted changes, if any.
    pub fn pending_mtime(&self) -> Option<Time> {
        let state = self.state.read();
        let logged = || state.storage.log().and_then(|log| log.pending_mtime());
        state.mtime.or(state.settle.mtime).or_else(logged)
    }
    /// Are there committed states that are not in their place? The content must be kept until a
    /// checkpoint.
    pub fn is_pending(&self) -> bool {
        self.state.read().storage.log().is_some_and(|log| log.is_pending())
    }
    /// Gives up what waits for a checkpoint: the file is gone.
    pub fn discard(&self) {
        if let Some(log) = self.state.read().storage.log() {
            log.discard();
        }
    }
    /// Overrides the modification time that the next commit gives the backing file. Returns false
    /// (and does nothing) when there is nothing uncommitted: the caller then sets it on the backing
    /// file itself.
    pub fn override_mtime(&self, time: Time) -> bool {
        let mut state = self.state.write();
        let pending = state.storage.log().is_some_and(|log| log.is_pending());
        let dirty = pending || state.is_dirty();
        if dirty {
            state.mtime = Some(time);
        }
        dirty
    }
    /// Takes the keys away: from now on everything that needs them answers `why`. What is not
    /// committed is kept, encrypted, for the time after [`Self::unlock`].
    pub fn lock(&self, why: Gone) {
        self.state.write().lock(why);
    }
    /// As [`Self::lock`], unless somebody is at work on the file: whether it was done.
    pub fn try_lock(&self, why: Gone) -> bool {
        let state = self.state.try_write();
        state.map(|mut state| state.lock(why)).is_some()
    }
    /// Gives the data keys of [`Self::slots`] back.
    pub fn unlock(
        &self,
        key: Arc<DataKey>,
        next_key: Option<Arc<DataKey>>,
    ) -> Result<(), StoreError> {
        self.state.write().unlock([Some(key), next_key])
    }
    /// Are the keys gone?
    pub fn is_locked(&self) -> bool {
        self.state.read().gone.is_some()
    }
    /// The data key of a file that nothing was ever written to, for another file.
    pub fn into_unused_key(self: Arc<Self>) -> Option<(Arc<DataKey>, KeySlot)> {
        Arc::into_inner(self)?.state.into_inner().into_unused_key()
    }
    /// Has nothing been written yet, so that no state needs the data key?
    pub fn is_unused(&self) -> bool {
        self.state.read().is_unused()
    }
    /// Another data key for a file that nothing was ever written to; false, and nothing done, if
    /// something was.
    pub fn replace_unused_key(&self, key: Arc<DataKey>, slot: KeySlot) -> Result<bool, StoreError> {
        Ok(self.usable()?.replace_unused_key(key, slot))
    }
    /// New wrapped copies for the key slots, committed; `None` leaves a slot's as they are. Content
    /// and data keys stay. The backing file gets the modification time `mtime` gives; it is asked for
    /// only if none is pending, unless `touch`.
    ///
    /// Errors as [`super::rewrap::rewrap_header`], and those of a commit.
    pub fn rewrap(
        &self,
        mtime: impl FnOnce() -> Result<Time, StoreError>,
        touch: bool,
        current: Option<Vec<Recipient>>,
        next: Option<Vec<Recipient>>,
        epoch: u64,
    ) -> Result<(), StoreError> {
        let mut state = self.usable()?;
        state.commit()?;
        // What was just committed has its own time, which is not in the backing file yet.
        let pending = state.storage.log().and_then(|log| log.pending_mtime());
        let time = match pending.filter(|_| !touch) {
            Some(time) => time,
            None => mtime()?,
        };
        state.begin()?;
        super::rewrap::replace(&mut state.header, current, next, epoch)?;
        state.changed = true;
        state.mtime = Some(time);
        state.commit()
    }
    /// Where the data keys come from: the current one's slot and the next one's.
    pub fn slots(&self) -> (KeySlot, Option<KeySlot>) {
        let state = self.state.read();
        (state.header.current.clone(), state.header.next.clone())
    }
    fn usable(&self) -> Result<RwLockWriteGuard<'_, State>, StoreError> {
        let state = self.state.write();
        state.usable()?;
        Ok(state)
    }
    /// Without keys there may still be nothing to commit.
    fn for_commit(&self) -> Result<RwLockWriteGuard<'_, State>, StoreError> {
        let state = self.state.write();
        if state.changed {
            state.usable()?;
        }
        Ok(state)
    }
    /// Reads; returns bytes read, short only at the end of the file. After an error the contents of
    /// `buf` are unspecified, but hold no ciphertext of the failed part.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<usize, StoreError> {
        let mut done = 0;
        for piece in buf.chunks_mut(READ_PIECE) {
            let len = self.read_piece(offset.saturating_add(done as u64), piece)?;
            done += len;
            if len < piece.len() {
                break;
            }
        }
        Ok(done)
    }
    fn read_piece(&self, offset: u64, buf: &mut [u8]) -> Result<usize, StoreError> {
        let state = self.state.read();
        state.usable()?;
        let len = state.clip(offset, buf.len());
        if len == 0 {
            return Ok(0);
        }
        if state.range_loaded(offset, len) {
            return state.read(offset, &mut buf[..len]).map(|()| len);
        }
        drop(state);
        let mut state = self.usable()?;
        let len = state.clip(offset, buf.len());
        if len == 0 {
            return Ok(0);
        }
        state.load_range(offset, len)?;
        let state = RwLockWriteGuard::downgrade(state);
        state.read(offset, &mut buf[..len]).map(|()| len)
    }
    /// Writes all of `data`, extending the file as needed (a gap becomes a hole). After an error a
    /// part from the front may have been written. Also fails when a commit for lack of memory
    /// fails: the data is then kept for the next one.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        self.usable()?.write(offset, data)
    }
    /// Changes the size. To 0: keeps the object id, new life salt. Growing leaves a hole. mtime is
    /// set to now even if the size stays the same.
    pub fn truncate(&self, size: u64) -> Result<(), StoreError> {
        self.usable()?.truncate(size)
    }
    /// Makes a range read as zeros: whole chunks become holes, partial ones are zeroed; never
    /// changes the size.
    pub fn punch(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.usable()?.punch(offset, len)
    }
    /// fallocate mode 0 / KEEP_SIZE: reserves backing space so that writing the range will not run
    /// out of it (as far as the backing can promise); extends the size unless `keep_size`.
    pub fn allocate(&self, offset: u64, len: u64, keep_size: bool) -> Result<(), StoreError> {
        self.usable()?.allocate(offset, len, keep_size)
    }
    /// First data at or after `offset`; `None` when there is none (ENXIO).
    pub fn seek_data(&self, offset: u64) -> Result<Option<u64>, StoreError> {
        self.usable()?.seek_data(offset)
    }
    /// First hole at or after `offset` (end of file counts as one); `None` when offset ≥ size.
    pub fn seek_hole(&self, offset: u64) -> Result<Option<u64>, StoreError> {
        self.usable()?.seek_hole(offset)
    }
    /// Writes all uncommitted state to the backing file: data, tag blocks, nodes, header, then cuts
    /// and punches, then mtime. On error everything that is not known to be done stays in memory,
    /// and a later call tries again.
    pub fn commit(&self) -> Result<(), StoreError> {
        self.for_commit()?.commit()
    }
    /// `commit`, then flushes the backing file.
    pub fn sync(&self) -> Result<(), StoreError> {
        let mut state = self.for_commit()?;
        state.commit()?;
        let storage = state.storage.clone();
        drop(state);
        Ok(storage.sync()?)
    }
    /// Makes sure that a header exists on disk (for xattrs of a never-written file). Writing it
    /// changes the backing file's modification time unless one is pending: the caller restores it.
    pub fn ensure_header(&self) -> Result<(), StoreError> {
        let mut state = self.usable()?;
        if state.header.generation > 0 {
            return Ok(());
        }
        if !state.changed {
            state.begin()?;
            state.changed = true;
        }
        state.commit()
    }
    /// Reads and authenticates everything; calls `bad` for each damaged chunk or tree block, and
    /// goes on. Uncommitted chunks in memory are not read back.
    pub fn verify(&self, bad: &mut dyn FnMut(StoreError)) -> Result<(), StoreError> {
        let mut steps = self.usable()?.verify_start(bad);
        while let Some(step) = steps.pop() {
            self.usable()?.verify_step(step, &mut steps, bad);
        }
        Ok(())
    }
}
