//! The content of one regular file: what every handle on the inode shares.

use super::{Storage, StoreError};
use crate::crypto::{DataKey, VolumeKeys};
use crate::format::header::{Header, KeySlot};
use crate::format::layout::Layout;
use crate::format::{ObjectId, VolumeId};
use std::sync::Arc;

/// What the engine needs to know of the volume.
pub struct VolumeContext {
    /// Volume id.
    pub volume: VolumeId,
    /// Layout.
    pub layout: Layout,
    /// Volume keys (header MAC).
    pub keys: Arc<VolumeKeys>,
    /// Chunk encryptions a segment key may do before it is replaced; 2^31, lower in tests.
    pub rekey_limit: u64,
}

/// A file's time stamp: seconds and nanoseconds since 1970.
pub type Time = (i64, u32);

/// Unflushed memory one file may hold before it commits by itself, bytes.
pub const DIRTY_LIMIT: usize = 8 << 20;

/// The content of one open regular file; shared by all handles on the inode. All methods take `&self`.
///
/// States of a block: *committed* (the last committed header, or the tree below it, refers to it) or *fresh*
/// (nothing committed refers to it). Fresh blocks may be written in place at any time; new versions of committed
/// blocks are held in memory until `commit`.
pub struct Content {}
impl Content {
    /// Reads and verifies the header of a non-empty backing file (no data key needed).
    pub fn read_header(ctx: &VolumeContext, storage: &dyn Storage) -> Result<Header, StoreError> {
        todo!()
    }
    /// Opens an existing file. `writable` says whether `storage` can be written (a longer backing file is then cut).
    /// `next_key` is the data key of the header's next slot, if it has one.
    /// Checks commitment(s), then the root hash as far as the header goes; tree blocks when first needed.
    pub fn open(
        ctx: Arc<VolumeContext>,
        storage: Arc<dyn Storage>,
        header: Header,
        key: Arc<DataKey>,
        next_key: Option<Arc<DataKey>>,
        writable: bool,
    ) -> Result<Self, StoreError> {
        todo!()
    }
    /// A new file on an empty backing file: nothing is written before the first commit.
    pub fn create(
        ctx: Arc<VolumeContext>,
        storage: Arc<dyn Storage>,
        key: Arc<DataKey>,
        slot: KeySlot,
    ) -> Self {
        todo!()
    }
    /// Replaces read-only storage with a writable one on the same backing file.
    pub fn upgrade(&self, storage: Arc<dyn Storage>) {
        todo!()
    }
    /// Can this content be written?
    pub fn is_writable(&self) -> bool {
        todo!()
    }
    /// Object id.
    pub fn object(&self) -> ObjectId {
        todo!()
    }
    /// Present plaintext size (uncommitted changes included).
    pub fn size(&self) -> u64 {
        todo!()
    }
    /// Uncommitted changes?
    pub fn is_dirty(&self) -> bool {
        todo!()
    }
    /// Modification time of uncommitted changes, if any.
    pub fn pending_mtime(&self) -> Option<Time> {
        todo!()
    }
    /// Overrides the modification time that the next commit gives the backing file. Returns false (and does nothing)
    /// when there is nothing uncommitted: the caller then sets it on the backing file itself.
    pub fn override_mtime(&self, time: Time) -> bool {
        todo!()
    }
    /// Reads; returns bytes read, short only at the end of the file.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<usize, StoreError> {
        todo!()
    }
    /// Writes all of `data`, extending the file as needed (a gap becomes a hole).
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        todo!()
    }
    /// Changes the size. To 0: keeps the object id, new life salt. Growing leaves a hole. mtime is set to now even if
    /// the size stays the same.
    pub fn truncate(&self, size: u64) -> Result<(), StoreError> {
        todo!()
    }
    /// Makes a range read as zeros: whole chunks become holes, partial ones are zeroed; never changes the size.
    pub fn punch(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        todo!()
    }
    /// fallocate mode 0 / KEEP_SIZE: reserves backing space so that writing the range will not run out of it
    /// (as far as the backing can promise); extends the size unless `keep_size`.
    pub fn allocate(&self, offset: u64, len: u64, keep_size: bool) -> Result<(), StoreError> {
        todo!()
    }
    /// First data at or after `offset`; `None` when there is none (ENXIO).
    pub fn seek_data(&self, offset: u64) -> Result<Option<u64>, StoreError> {
        todo!()
    }
    /// First hole at or after `offset` (end of file counts as one); `None` when offset ≥ size.
    pub fn seek_hole(&self, offset: u64) -> Result<Option<u64>, StoreError> {
        todo!()
    }
    /// Writes all uncommitted state to the backing file: data, tag blocks, nodes, header, then cuts and punches, then
    /// mtime. On error everything stays uncommitted and in memory, and a later call tries again.
    pub fn commit(&self) -> Result<(), StoreError> {
        todo!()
    }
    /// `commit`, then flushes the backing file.
    pub fn sync(&self) -> Result<(), StoreError> {
        todo!()
    }
    /// Makes sure that a header exists on disk (for xattrs of a never-written file).
    pub fn ensure_header(&self) -> Result<(), StoreError> {
        todo!()
    }
    /// Reads and authenticates everything; calls `bad` for each damaged chunk or tree block, and goes on.
    pub fn verify(&self, bad: &mut dyn FnMut(StoreError)) -> Result<(), StoreError> {
        todo!()
    }
}
