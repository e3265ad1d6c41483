//! All file arithmetic: plaintext size ⇄ backing length, and where every block stands.
//!
//! Invariants: growth moves nothing, no two blocks share a place, and the plain size of a written
//! file and its backing length determine each other. Must not know what the blocks hold.
//!
//! ```text
//! header | chunks 0..64 | group 0 | group 1 | …      group = nodes due, tag block, 128 chunks
//! ```

use super::{BLOCK, FormatError};

/// Chunks whose tags stand in the header.
pub const HEADER_CHUNKS: u64 = 64;
/// Chunks of one group, i.e. tags of one tag block, i.e. children of one node.
pub const GROUP_CHUNKS: u64 = 128;
/// Largest plaintext size in bytes.
pub const MAX_PLAIN: u64 = 1 << 53;
/// The offset given for blocks no file can have. No system accepts it as an offset.
pub const NOWHERE: u64 = u64::MAX;

const B: u64 = BLOCK as u64;
/// log2 of the fan-out of the tree.
const FAN_LOG2: u32 = GROUP_CHUNKS.trailing_zeros();
/// Groups beyond this are nowhere: twice what `MAX_PLAIN` needs, far below overflow.
const MAX_GROUP: u64 = 1 << 35;
/// Highest level of which a node stands before a group up to `MAX_GROUP`.
const MAX_LEVEL: u32 = 6;

/// What one block of a backing file is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BlockKind {
    /// Part of the header.
    Header,
    /// This chunk of the content.
    Chunk(u64),
    /// The tag block of this group.
    TagBlock(u64),
    /// A node of the hash tree.
    Node {
        /// 1 and above.
        level: u32,
        /// Position within the level.
        index: u64,
    },
}

/// Where things stand in the backing file of a volume with this many header blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    header_blocks: u8,
}

impl Layout {
    /// 1, 2 or 4 header blocks; anything else is refused with `Field("header_blocks")`.
    pub fn new(header_blocks: u8) -> Result<Self, FormatError> {
        match header_blocks {
            1 | 2 | 4 => Ok(Self { header_blocks }),
            _ => Err(FormatError::Field("header_blocks")),
        }
    }
    /// Blocks of the header.
    pub fn header_blocks(self) -> u8 {
        self.header_blocks
    }
    /// Bytes of the header.
    pub fn header_len(self) -> usize {
        usize::from(self.header_blocks) * BLOCK
    }
    fn header(self) -> u64 {
        u64::from(self.header_blocks)
    }
    /// Backing offset of a chunk, bytes; [`NOWHERE`] far beyond [`MAX_PLAIN`].
    pub fn chunk_offset(self, chunk: u64) -> u64 {
        match group_of(chunk) {
            None => (self.header() + chunk) * B,
            Some(group) if group > MAX_GROUP => NOWHERE,
            Some(group) => {
                let within = (chunk - HEADER_CHUNKS) % GROUP_CHUNKS;
                (self.tag_block(group) + 1 + within) * B
            }
        }
    }
    /// Backing offset of the tag block of a group, bytes; [`NOWHERE`] far beyond [`MAX_PLAIN`].
    pub fn tag_block_offset(self, group: u64) -> u64 {
        if group > MAX_GROUP { NOWHERE } else { self.tag_block(group) * B }
    }
    /// Backing offset of node `index` of `level` (level ≥ 1; level 0 are the tag blocks), bytes;
    /// [`NOWHERE`] far beyond [`MAX_PLAIN`].
    pub fn node_offset(self, level: u32, index: u64) -> u64 {
        if level == 0 {
            return self.tag_block_offset(index);
        }
        match group_after_node(level, index) {
            Some(group) => {
                let upwards = (level..=MAX_LEVEL).filter(|l| node_due(group, *l).is_some());
                (self.tag_block(group) - upwards.count() as u64) * B
            }
            None => NOWHERE,
        }
    }
    /// Block number of the tag block of a group up to `MAX_GROUP`.
    fn tag_block(self, group: u64) -> u64 {
        self.header() + HEADER_CHUNKS + (GROUP_CHUNKS + 1) * group + nodes_up_to(group)
    }
    /// Backing length of a written file of `plain` bytes; [`NOWHERE`] beyond [`MAX_PLAIN`].
    pub fn backing_len(self, plain: u64) -> u64 {
        match plain {
            0 => self.header() * B,
            1..=MAX_PLAIN => {
                let last = chunks(plain) - 1;
                self.chunk_offset(last) + chunk_len(plain, last) as u64
            }
            _ => NOWHERE,
        }
    }
    /// Plain size of a backing length; `None` where no plain size has this length.
    pub fn plain_len(self, backing: u64) -> Option<u64> {
        if backing == 0 || backing == self.header() * B {
            return Some(0);
        }
        let last_len = (backing - 1) % B + 1;
        match self.block_at((backing - 1) / B)? {
            BlockKind::Chunk(last) => Some(last * B + last_len).filter(|plain| *plain <= MAX_PLAIN),
            _ => None,
        }
    }
    /// Like [`Self::plain_len`], but a length in between gives the largest plain size that fits:
    /// what attributes show for a file whose last change was cut short.
    pub fn plain_len_floor(self, backing: u64) -> u64 {
        if let Some(plain) = self.plain_len(backing) {
            return plain;
        }
        let whole_chunks = match self.block_at(backing / B) {
            Some(BlockKind::Header) => 0,
            Some(BlockKind::Chunk(chunk)) => chunk,
            Some(BlockKind::TagBlock(group)) => HEADER_CHUNKS + group * GROUP_CHUNKS,
            Some(BlockKind::Node { level, index }) => {
                let group = group_after_node(level, index).unwrap_or(MAX_GROUP);
                HEADER_CHUNKS + group * GROUP_CHUNKS
            }
            None => MAX_PLAIN / B,
        };
        (whole_chunks * B).min(MAX_PLAIN)
    }
    /// What the block with this number (offset / 4096) is for; `None` far beyond [`MAX_PLAIN`].
    pub fn block_at(self, block: u64) -> Option<BlockKind> {
        let Some(block) = block.checked_sub(self.header()) else {
            return Some(BlockKind::Header);
        };
        let Some(block) = block.checked_sub(HEADER_CHUNKS) else {
            return Some(BlockKind::Chunk(block));
        };
        let tag_block = |group: u64| (GROUP_CHUNKS + 1) * group + nodes_up_to(group);
        if block >= tag_block(MAX_GROUP) {
            return None;
        }
        let group = last_where(block / (GROUP_CHUNKS + 1), |group| tag_block(group) <= block);
        match block - tag_block(group) {
            0 => Some(BlockKind::TagBlock(group)),
            n @ 1..=GROUP_CHUNKS => {
                Some(BlockKind::Chunk(HEADER_CHUNKS + group * GROUP_CHUNKS + n - 1))
            }
            n => (1..=MAX_LEVEL)
                .filter_map(|level| {
                    node_due(group + 1, level).map(|index| BlockKind::Node { level, index })
                })
                .nth((n - GROUP_CHUNKS - 1) as usize),
        }
    }
}

/// The largest number up to `max` for which `holds`, given that it holds for 0 and then up to some
/// point.
fn last_where(max: u64, holds: impl Fn(u64) -> bool) -> u64 {
    let (mut low, mut high) = (0, max);
    while low < high {
        let middle = high - (high - low) / 2;
        if holds(middle) { low = middle } else { high = middle - 1 }
    }
    low
}

/// 128^level. Levels are at most `MAX_LEVEL` here, far below overflow.
fn span(level: u32) -> u64 {
    1 << (FAN_LOG2 * level)
}

/// Nodes standing before the tag block of `group`: those due before it and all earlier ones.
fn nodes_up_to(group: u64) -> u64 {
    (1..=MAX_LEVEL)
        .take_while(|level| group >= span(level - 1))
        .map(|level| 1 + group / span(level))
        .sum()
}

/// Index of the node of `level` that stands directly before `group`, if there is one.
fn node_due(group: u64, level: u32) -> Option<u64> {
    if group == span(level - 1) {
        Some(0)
    } else {
        (group > 0 && group.is_multiple_of(span(level))).then(|| group / span(level))
    }
}

/// The group a node stands before; `None` beyond `MAX_GROUP`.
fn group_after_node(level: u32, index: u64) -> Option<u64> {
    if level > MAX_LEVEL {
        return None;
    }
    let group = match index {
        0 => span(level - 1),
        _ => index.checked_mul(span(level))?,
    };
    (group <= MAX_GROUP).then_some(group)
}

/// Refuses sizes above [`MAX_PLAIN`] with `TooLarge`.
pub fn check_size(plain: u64) -> Result<(), FormatError> {
    if plain <= MAX_PLAIN { Ok(()) } else { Err(FormatError::TooLarge) }
}
/// Number of chunks of a plain size.
pub fn chunks(plain: u64) -> u64 {
    plain.div_ceil(B)
}
/// Number of groups of a plain size.
pub fn groups(plain: u64) -> u64 {
    chunks(plain).saturating_sub(HEADER_CHUNKS).div_ceil(GROUP_CHUNKS)
}
/// Group of a chunk; `None` for the chunks whose tags stand in the header.
pub fn group_of(chunk: u64) -> Option<u64> {
    chunk.checked_sub(HEADER_CHUNKS).map(|c| c / GROUP_CHUNKS)
}
/// Level of the single top block of a tree over `groups` > 0 groups (0 = the tag block itself).
pub fn top_level(groups: u64) -> u32 {
    let bits = u64::BITS - groups.saturating_sub(1).leading_zeros();
    bits.div_ceil(FAN_LOG2)
}
/// Plaintext bytes of `chunk` in a file of `plain` bytes (0 beyond its end).
pub fn chunk_len(plain: u64, chunk: u64) -> usize {
    let start = chunk.saturating_mul(B);
    plain.saturating_sub(start).min(B) as usize
}

#[cfg(test)]
mod tests;
