//! What a data key becomes for one file: file key, commitment, tree key, segment keys.

use super::{Secret, SegmentKey};
use crate::format::tags::Segment;
use crate::format::{BLOCK, ObjectId};

/// A data key: shared by up to `files_per_data_key` files, never used directly.
pub struct DataKey(pub Secret<32>);

/// The keys of one file's current life.
pub struct FileKeys {}
impl FileKeys {
    /// Derives the file key and what hangs on it.
    pub fn derive(data_key: &DataKey, object: ObjectId, life_salt: &[u8; 16]) -> Self {
        todo!()
    }
    /// Key commitment stored in the header slot.
    pub fn commitment(&self) -> &[u8; 32] {
        todo!()
    }
    /// Constant-time comparison with a stored commitment.
    pub fn commits_to(&self, stored: &[u8; 32]) -> bool {
        todo!()
    }
    /// Key of a segment (0 = header chunks, g + 1 = group g).
    pub fn segment_key(&self, number: u64, salt: &[u8; 16]) -> SegmentKey {
        todo!()
    }
    /// Hash of tag block `index` (level 0) or node `index` of `level`; zeros for an all-zero block.
    pub fn block_hash(&self, level: u32, index: u64, block: &[u8; BLOCK]) -> [u8; 32] {
        todo!()
    }
    /// Root hash.
    pub fn root_hash(
        &self,
        generation: u64,
        size: u64,
        segment0: &Segment,
        tags: &[u8; 1792],
        top: &[u8; 32],
    ) -> [u8; 32] {
        todo!()
    }
    /// AAD of a chunk: object id ‖ life salt ‖ chunk index.
    pub fn chunk_aad(&self, chunk: u64) -> [u8; 40] {
        todo!()
    }
}
