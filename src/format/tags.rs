//! Tag entries, segment records, tag blocks and tree nodes.
//!
//! Invariant: a block without content is all zero and nothing else is. Must not know keys or
//! hashes: blocks are decoded after their hash has been verified.

use super::bytes::{Reader, is_zero};
use super::{BLOCK, FormatError};

/// Bytes of the tags at the start of a tag block.
const BLOCK_TAGS: usize = 128 * TagEntry::LEN;

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
    /// Encodes: nonce, tag.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..12].copy_from_slice(&self.nonce);
        out[12..].copy_from_slice(&self.tag);
        out
    }
    /// Decodes; every byte pattern is an entry.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Self {
        let mut entry = Self::HOLE;
        entry.nonce.copy_from_slice(&bytes[..12]);
        entry.tag.copy_from_slice(&bytes[12..]);
        entry
    }
}

/// Writes entries one after the other into `out`, as far as both reach.
pub(super) fn encode_tags(tags: &[TagEntry], out: &mut [u8]) {
    let (places, _) = out.as_chunks_mut::<{ TagEntry::LEN }>();
    for (place, tag) in places.iter_mut().zip(tags) {
        *place = tag.encode();
    }
}
/// Reads entries that stand one after the other; missing ones are holes.
pub(super) fn decode_tags<const N: usize>(bytes: &[u8]) -> [TagEntry; N] {
    let mut tags = [TagEntry::HOLE; N];
    let (places, _) = bytes.as_chunks::<{ TagEntry::LEN }>();
    for (tag, place) in tags.iter_mut().zip(places) {
        *tag = TagEntry::decode(place);
    }
    tags
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
        let mut out = [0; 32];
        out[..16].copy_from_slice(&self.salt);
        out[16..24].copy_from_slice(&self.writes.to_le_bytes());
        out[24] = self.key_slot;
        out
    }
    /// Decodes, refusing slots above 1 (`Field("segment key slot")`), then non-zero reserved bytes
    /// (`Field("segment reserved")`).
    pub fn decode(bytes: &[u8; 32]) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes, "segment");
        let segment = Self { salt: r.array()?, writes: r.u64()?, key_slot: check_slot(r.u8()?)? };
        r.zero(7, "segment reserved")?;
        Ok(segment)
    }
}

fn check_slot(slot: u8) -> Result<u8, FormatError> {
    if slot <= 1 { Ok(slot) } else { Err(FormatError::Field("segment key slot")) }
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
        Self { tags: [TagEntry::HOLE; 128], segment: Segment::default(), generation: 0 }
    }
    /// All chunks are holes?
    pub fn is_empty(&self) -> bool {
        self.tags.iter().all(TagEntry::is_hole)
    }
    /// Encodes; an empty block (no tags) encodes to 4096 zero bytes whatever its segment says.
    pub fn encode(&self, out: &mut [u8; BLOCK]) {
        out.fill(0);
        if self.is_empty() {
            return;
        }
        let (tags, rest) = out.split_at_mut(BLOCK_TAGS);
        encode_tags(&self.tags, tags);
        rest[..16].copy_from_slice(&self.segment.salt);
        rest[16..24].copy_from_slice(&self.segment.writes.to_le_bytes());
        rest[24..32].copy_from_slice(&self.generation.to_le_bytes());
        rest[32] = self.segment.key_slot;
    }
    /// Decodes a block whose hash was verified already. Refused, in this order: a key slot above 1
    /// (`Field("segment key slot")`), reserved bytes that are not zero (`Field("tag block
    /// reserved")`), a block that has no tags yet is not all zero (`Field("empty tag block")`).
    pub fn decode(bytes: &[u8; BLOCK]) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes, "tag block");
        let tags = decode_tags(r.take(BLOCK_TAGS)?);
        let (salt, writes, generation) = (r.array()?, r.u64()?, r.u64()?);
        let segment = Segment { salt, writes, key_slot: check_slot(r.u8()?)? };
        r.zero(r.rest().len(), "tag block reserved")?;
        let block = Self { tags, segment, generation };
        if block.is_empty() && !is_zero(bytes) {
            return Err(FormatError::Field("empty tag block"));
        }
        Ok(block)
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
        Self { children: [[0; 32]; 128] }
    }
    /// All children empty?
    pub fn is_empty(&self) -> bool {
        is_zero(self.children.as_flattened())
    }
    /// Encodes the node.
    pub fn encode(&self, out: &mut [u8; BLOCK]) {
        out.copy_from_slice(self.children.as_flattened());
    }
    /// Decodes; every byte pattern is a node.
    pub fn decode(bytes: &[u8; BLOCK]) -> Self {
        let mut node = Self::empty();
        node.children.as_flattened_mut().copy_from_slice(bytes);
        node
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(n: u8) -> TagEntry {
        TagEntry { nonce: [n; 12], tag: [n.wrapping_add(1); 16] }
    }
    fn block() -> TagBlock {
        let mut b = TagBlock::empty();
        for (i, t) in b.tags.iter_mut().enumerate().filter(|(i, _)| i % 3 != 0) {
            *t = tag(i as u8);
        }
        b.segment = Segment { salt: [9; 16], writes: 0x0102_0304_0506_0708, key_slot: 1 };
        b.generation = 77;
        b
    }
    fn encoded(b: &TagBlock) -> [u8; BLOCK] {
        let mut out = [0xaa; BLOCK];
        b.encode(&mut out);
        out
    }

    #[test]
    fn segment_record_is_strict() {
        let s = Segment { salt: [7; 16], writes: 5, key_slot: 1 };
        let bytes = s.encode();
        assert_eq!(Segment::decode(&bytes), Ok(s));
        assert_eq!(Segment::decode(&[0; 32]), Ok(Segment::default()));
        for slot in 2..=255 {
            let mut bad = bytes;
            bad[24] = slot;
            assert_eq!(Segment::decode(&bad), Err(FormatError::Field("segment key slot")));
        }
        for i in 25..32 {
            let mut bad = bytes;
            bad[i] = 1;
            assert_eq!(Segment::decode(&bad), Err(FormatError::Field("segment reserved")));
        }
    }

    #[test]
    fn tag_block_bytes_stand_where_the_text_says() {
        let b = block();
        let bytes = encoded(&b);
        assert_eq!(TagBlock::decode(&bytes), Ok(b.clone()));
        assert_eq!(bytes[28..56], b.tags[1].encode());
        assert_eq!(bytes[127 * 28..3584], b.tags[127].encode());
        assert_eq!(bytes[3584..3600], [9; 16]);
        assert_eq!(bytes[3600..3608], b.segment.writes.to_le_bytes());
        assert_eq!(bytes[3608..3616], 77u64.to_le_bytes());
        assert_eq!(bytes[3616], 1);
        assert!(is_zero(&bytes[3617..]) && is_zero(&bytes[..28]));
    }

    #[test]
    fn tag_block_refuses_what_no_writer_writes() {
        let bytes = encoded(&block());
        let mut bad = bytes;
        bad[3616] = 2;
        assert_eq!(TagBlock::decode(&bad), Err(FormatError::Field("segment key slot")));
        for i in 3617..BLOCK {
            let mut bad = bytes;
            bad[i] = 0x80;
            assert_eq!(TagBlock::decode(&bad), Err(FormatError::Field("tag block reserved")));
        }
        for i in 3584..3617 {
            let mut bad = [0; BLOCK];
            bad[i] = 1;
            assert_eq!(TagBlock::decode(&bad), Err(FormatError::Field("empty tag block")));
        }
    }

    #[test]
    fn empty_blocks_are_zero_and_zero_is_empty() {
        let mut b = TagBlock::empty();
        b.segment = Segment { salt: [1; 16], writes: 3, key_slot: 1 };
        b.generation = 8;
        assert!(b.is_empty());
        assert_eq!(encoded(&b), [0; BLOCK]);
        assert_eq!(TagBlock::decode(&[0; BLOCK]), Ok(TagBlock::empty()));
        assert!(!block().is_empty());
        assert!(Node::empty().is_empty() && Node::decode(&[0; BLOCK]).is_empty());
    }

    #[test]
    fn node_children_stand_in_order() {
        let mut node = Node::empty();
        for (i, child) in node.children.iter_mut().enumerate() {
            *child = [i as u8 + 1; 32];
        }
        let mut bytes = [0; BLOCK];
        node.encode(&mut bytes);
        assert_eq!(bytes[32 * 5..32 * 6], [6; 32]);
        assert_eq!(Node::decode(&bytes), node);
        assert!(!node.is_empty());
    }

    #[test]
    fn tags_survive_a_round_trip() {
        let tags: [TagEntry; 64] = std::array::from_fn(|i| tag(i as u8 * 3));
        let mut bytes = [0; 1792];
        encode_tags(&tags, &mut bytes);
        assert_eq!(decode_tags::<64>(&bytes), tags);
        assert!(TagEntry::decode(&[0; 28]).is_hole());
        assert!(!TagEntry { nonce: [0; 12], tag: [1; 16] }.is_hole());
    }
}
