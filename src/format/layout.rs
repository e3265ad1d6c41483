//! All file arithmetic: plaintext size ⇄ backing length, and where every block stands.

use super::FormatError;

/// Chunks whose tags stand in the header.
pub const HEADER_CHUNKS: u64 = 64;
/// Chunks of one group, i.e. tags of one tag block, i.e. children of one node.
pub const GROUP_CHUNKS: u64 = 128;
/// Largest plaintext size in bytes.
pub const MAX_PLAIN: u64 = 1 << 53;

/// Where things stand in the backing file of a volume with this many header blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    header_blocks: u8,
}

impl Layout {
    /// 1, 2 or 4 header blocks; anything else is refused.
    pub fn new(header_blocks: u8) -> Result<Self, FormatError> {
        todo!()
    }
    /// Blocks of the header.
    pub fn header_blocks(self) -> u8 {
        todo!()
    }
    /// Bytes of the header.
    pub fn header_len(self) -> usize {
        todo!()
    }
    /// Backing offset of a chunk, bytes.
    pub fn chunk_offset(self, chunk: u64) -> u64 {
        todo!()
    }
    /// Backing offset of the tag block of a group, bytes.
    pub fn tag_block_offset(self, group: u64) -> u64 {
        todo!()
    }
    /// Backing offset of node `index` of `level` (level ≥ 1), bytes.
    pub fn node_offset(self, level: u32, index: u64) -> u64 {
        todo!()
    }
    /// Backing length of a written file of `plain` bytes.
    pub fn backing_len(self, plain: u64) -> u64 {
        todo!()
    }
    /// Plain size of a backing length; `None` where no plain size has this length.
    pub fn plain_len(self, backing: u64) -> Option<u64> {
        todo!()
    }
    /// Like [`Self::plain_len`], but a length in between gives the largest plain size that fits:
    /// what attributes show for a file whose last change was cut short.
    pub fn plain_len_floor(self, backing: u64) -> u64 {
        todo!()
    }
}

/// Number of chunks of a plain size.
pub fn chunks(plain: u64) -> u64 {
    todo!()
}
/// Number of groups of a plain size.
pub fn groups(plain: u64) -> u64 {
    todo!()
}
/// Group of a chunk; `None` for the chunks whose tags stand in the header.
pub fn group_of(chunk: u64) -> Option<u64> {
    todo!()
}
/// Level of the single top block of a tree over `groups` > 0 groups (0 = the tag block itself).
pub fn top_level(groups: u64) -> u32 {
    todo!()
}
/// Plaintext bytes of `chunk` in a file of `plain` bytes (0 beyond its end).
pub fn chunk_len(plain: u64, chunk: u64) -> usize {
    todo!()
}
