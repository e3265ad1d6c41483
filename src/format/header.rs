//! The file header: see FORMAT.md for every byte.
//!
//! Invariants: what decodes encodes to the same bytes; what encodes decodes again. Must not know
//! keys (the MAC comes in as a closure) nor what the tags protect.

use super::bytes::Reader;
use super::layout::{Layout, check_size};
use super::tags::{Segment, TagEntry, decode_tags, encode_tags};
use super::{
    CHUNK_LOG2, FormatError, ObjectId, SUITE, VERSION, VolumeId, check_suite, check_version,
};

pub use super::recipient::{KeySlot, Recipient, RecipientKind};

/// First bytes of every written regular file.
pub const MAGIC: &[u8; 8] = b"KMSFSHDR";
/// Bytes of the tags in the header.
pub const TAGS_LEN: usize = 64 * TagEntry::LEN;

/// Where the root hash stands in it.
pub const ROOT_AT: usize = 80;

const SEGMENT_AT: usize = 120;
const BINDING_LEN: usize = 4 * 48;
const TAGS_AT: usize = 344;
const SLOTS_AT: usize = 2144;
const MAC_LEN: usize = 32;

/// Bytes of one data-key slot: 960, 3008 or 7104.
pub fn slot_len(layout: Layout) -> usize {
    (layout.header_len() - MAC_LEN - SLOTS_AT) / 2
}

/// A parsed header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// Volume it belongs to.
    pub volume: VolumeId,
    /// Object id.
    pub object: ObjectId,
    /// Salt of the file key; new at truncate to zero.
    pub life_salt: [u8; 16],
    /// Number of commits; at least 1.
    pub generation: u64,
    /// Plaintext bytes.
    pub size: u64,
    /// Root of the hash tree.
    pub root_hash: [u8; 32],
    /// Number of rewraps.
    pub wrap_epoch: u64,
    /// Segment of chunks 0..64.
    pub segment: Segment,
    /// Tags of chunks 0..64. The writer keeps those beyond the size holes; readers do not check it.
    pub tags: Box<[TagEntry; 64]>,
    /// Current data key.
    pub current: KeySlot,
    /// Next data key, while bodies are re-encrypted.
    pub next: Option<KeySlot>,
}

impl Header {
    /// Encodes into `layout.header_len()` bytes; `mac` computes the header MAC of the bytes before.
    /// Fails with `Field("recipients")` when the slots do not fit, and with the error
    /// [`Self::decode`] would give for any other value that may not be written.
    pub fn encode(
        &self,
        layout: Layout,
        mac: impl FnOnce(&[u8]) -> [u8; 32],
    ) -> Result<Vec<u8>, FormatError> {
        self.check()?;
        let mut out = vec![0; layout.header_len()];
        out[..8].copy_from_slice(MAGIC);
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        out[10] = SUITE;
        out[11] = CHUNK_LOG2;
        out[12] = layout.header_blocks();
        out[16..32].copy_from_slice(&self.volume.0);
        out[32..48].copy_from_slice(&self.object.0);
        out[48..64].copy_from_slice(&self.life_salt);
        out[64..72].copy_from_slice(&self.generation.to_le_bytes());
        out[72..80].copy_from_slice(&self.size.to_le_bytes());
        out[ROOT_AT..ROOT_AT + 32].copy_from_slice(&self.root_hash);
        out[112..120].copy_from_slice(&self.wrap_epoch.to_le_bytes());
        out[SEGMENT_AT..152].copy_from_slice(&self.segment.encode());
        encode_tags(&*self.tags, &mut out[TAGS_AT..TAGS_AT + TAGS_LEN]);
        let end = out.len() - MAC_LEN;
        let (current, next) = out[SLOTS_AT..end].split_at_mut(slot_len(layout));
        self.current.encode(current)?;
        if let Some(slot) = &self.next {
            slot.encode(next)?;
        }
        let mac = mac(&out[..end]);
        out[end..].copy_from_slice(&mac);
        Ok(out)
    }
    /// Checks in this order: length, magic, version, suite, block size, header blocks, volume, MAC,
    /// then every field from the front to the back, then that the segment's key slot is used.
    pub fn decode(
        bytes: &[u8],
        layout: Layout,
        volume: VolumeId,
        mac_ok: impl FnOnce(&[u8], &[u8; 32]) -> bool,
    ) -> Result<Self, FormatError> {
        if bytes.len() != layout.header_len() {
            return Err(FormatError::Length(bytes.len()));
        }
        let (maced, mac) =
            bytes.split_last_chunk::<MAC_LEN>().ok_or(FormatError::Length(bytes.len()))?;
        let mut r = Reader::new(maced, "header");
        check_start(&mut r, layout, volume)?;
        if !mac_ok(maced, mac) {
            return Err(FormatError::Mac);
        }
        Self::decode_fields(maced, layout, volume)
    }
    /// The part of [`Self::decode`] after the MAC.
    fn decode_fields(maced: &[u8], layout: Layout, volume: VolumeId) -> Result<Self, FormatError> {
        let mut r = Reader::new(maced, "header");
        r.take(13)?;
        r.zero(3, "header reserved")?;
        r.take(16)?;
        let (object, life_salt) = (ObjectId(r.array()?), r.array()?);
        let (generation, size) = (check_generation(r.u64()?)?, r.u64()?);
        check_size(size)?;
        let (root_hash, wrap_epoch) = (r.array()?, r.u64()?);
        let segment = Segment::decode(&r.array()?)?;
        r.zero(BINDING_LEN, "location binding")?;
        let tags = Box::new(decode_tags(r.take(TAGS_LEN)?));
        r.zero(8, "header reserved")?;
        let slot_len = slot_len(layout);
        let current = KeySlot::decode(r.take(slot_len)?)?;
        let header = Self {
            volume,
            object,
            life_salt,
            generation,
            size,
            root_hash,
            wrap_epoch,
            segment,
            tags,
            current: current.ok_or(FormatError::Field("current key slot"))?,
            next: KeySlot::decode(r.take(slot_len)?)?,
        };
        header.check()?;
        Ok(header)
    }
    /// What neither a reader accepts nor a writer writes.
    fn check(&self) -> Result<(), FormatError> {
        check_generation(self.generation)?;
        check_size(self.size)?;
        match self.segment.key_slot {
            0 => Ok(()),
            1 if self.next.is_some() => Ok(()),
            _ => Err(FormatError::Field("segment key slot")),
        }
    }
    /// The 1792 tag bytes as they stand in the header (input of the root hash).
    pub fn tag_bytes(&self) -> [u8; 1792] {
        let mut out = [0; TAGS_LEN];
        encode_tags(&*self.tags, &mut out);
        out
    }
}

/// What is checked before the MAC: magic, version, suite, chunk size, header blocks, volume.
fn check_start(r: &mut Reader<'_>, layout: Layout, volume: VolumeId) -> Result<(), FormatError> {
    if r.array()? != *MAGIC {
        return Err(FormatError::Magic);
    }
    check_version(r.u16()?)?;
    check_suite(r.u8()?, r.u8()?)?;
    if r.u8()? != layout.header_blocks() {
        return Err(FormatError::Field("header_blocks"));
    }
    r.take(3)?;
    if r.array()? != volume.0 {
        return Err(FormatError::OtherVolume);
    }
    Ok(())
}

fn check_generation(generation: u64) -> Result<u64, FormatError> {
    if generation > 0 { Ok(generation) } else { Err(FormatError::Field("generation")) }
}

#[cfg(test)]
mod tests;
