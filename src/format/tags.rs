//! Tag entries, segment records, tag blocks and tree nodes.

use super::{BLOCK, FormatError};

/// Nonce and tag of one chunk; all zero = authenticated hole.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TagEntry {
    /// AES-GCM nonce.
    pub nonce: [u8; 12],
    /// AES-GCM tag.
    pub tag: [u8; 16],
}

impl TagEntry {
    /// Bytes of an entry.
    pub const LEN: usize = 28;
    /// A hole.
    pub const HOLE: TagEntry = TagEntry { nonce: [0; 12], tag: [0; 16] };
    /// Does this entry stand for a hole?
    pub fn is_hole(&self) -> bool {
        *self == Self::HOLE
    }
}

/// What a segment's key is made from and how often it was used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Segment {
    /// Random; all zero while the segment has never been written.
    pub salt: [u8; 16],
    /// Chunk encryptions done under this salt.
    pub writes: u64,
    /// 0 or 1: which key slot of the header.
    pub key_slot: u8,
}

impl Segment {
    /// Bytes of a segment record (salt, writes, slot, zero 7).
    pub const LEN: usize = 32;
    /// Encodes the record.
    pub fn encode(&self) -> [u8; 32] {
        todo!()
    }
    /// Decodes, refusing slots above 1 and non-zero reserved bytes.
    pub fn decode(bytes: &[u8; 32]) -> Result<Self, FormatError> {
        todo!()
    }
}

/// One tag block: the tags of a group's 128 chunks and the group's segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TagBlock {
    /// Tags in chunk order.
    pub tags: [TagEntry; 128],
    /// The group's segment.
    pub segment: Segment,
    /// Header generation this block was last written for.
    pub generation: u64,
}

impl TagBlock {
    /// No chunk written; encodes to zeros.
    pub fn empty() -> Self {
        todo!()
    }
    /// All chunks are holes?
    pub fn is_empty(&self) -> bool {
        todo!()
    }
    /// Encodes; an empty block (no tags) encodes to 4096 zero bytes whatever its segment says.
    pub fn encode(&self, out: &mut [u8; BLOCK]) {
        todo!()
    }
    /// Decodes a block whose hash was verified already.
    pub fn decode(bytes: &[u8; BLOCK]) -> Result<Self, FormatError> {
        todo!()
    }
}

/// One tree node: the hashes of its 128 children, zero = empty subtree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Child hashes in order.
    pub children: [[u8; 32]; 128],
}

impl Node {
    /// All children empty; encodes to zeros.
    pub fn empty() -> Self {
        todo!()
    }
    /// All children empty?
    pub fn is_empty(&self) -> bool {
        todo!()
    }
    /// Encodes the node.
    pub fn encode(&self, out: &mut [u8; BLOCK]) {
        todo!()
    }
    /// Decodes; every byte pattern is a node.
    pub fn decode(bytes: &[u8; BLOCK]) -> Self {
        todo!()
    }
}
