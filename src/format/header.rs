//! The file header: see FORMAT.md for every byte.

use super::layout::Layout;
use super::tags::{Segment, TagEntry};
use super::{DataKeyId, FormatError, ObjectId, VolumeId};

/// How a wrapped copy of a key was wrapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum RecipientKind {
    /// Under the local master key in the descriptor.
    LocalMaster = 1,
    /// HPKE to an X25519 public key.
    X25519 = 2,
    /// AWS KMS.
    AwsKms = 3,
}

/// One wrapped copy of a key, or (with empty `wrapped`) the name of a wrapping key.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct Recipient {
    /// Scheme.
    pub kind: RecipientKind,
    /// Epoch of the wrapping key.
    pub epoch: u32,
    /// Which key: empty (local master), 32-byte public key, key ARN.
    pub key_ref: Vec<u8>,
    /// The wrapped key.
    pub wrapped: Vec<u8>,
}

/// One data key of a file with all its wrapped copies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeySlot {
    /// Part of the wrapping context.
    pub data_key_id: DataKeyId,
    /// Commitment of the *file key*; checked before anything the key protects.
    pub commitment: [u8; 32],
    /// Wrapped copies, in the order they are tried. Never empty.
    pub recipients: Vec<Recipient>,
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
    /// Number of commits.
    pub generation: u64,
    /// Plaintext bytes.
    pub size: u64,
    /// Root of the hash tree.
    pub root_hash: [u8; 32],
    /// Number of rewraps.
    pub wrap_epoch: u64,
    /// Segment of chunks 0..64.
    pub segment: Segment,
    /// Tags of chunks 0..64.
    pub tags: Box<[TagEntry; 64]>,
    /// Current data key.
    pub current: KeySlot,
    /// Next data key, while bodies are re-encrypted.
    pub next: Option<KeySlot>,
}

impl Header {
    /// Encodes into `layout.header_len()` bytes; `mac` computes the header MAC of all bytes before it.
    /// Fails with `Field("recipients")` when the slots do not fit.
    pub fn encode(
        &self,
        layout: Layout,
        mac: impl FnOnce(&[u8]) -> [u8; 32],
    ) -> Result<Vec<u8>, FormatError> {
        todo!()
    }
    /// Checks in this order: length, magic, version, suite, block size, header blocks, volume, MAC, then every field.
    pub fn decode(
        bytes: &[u8],
        layout: Layout,
        volume: VolumeId,
        mac_ok: impl FnOnce(&[u8], &[u8; 32]) -> bool,
    ) -> Result<Self, FormatError> {
        todo!()
    }
    /// The 1792 tag bytes as they stand in the header (input of the root hash).
    pub fn tag_bytes(&self) -> [u8; 1792] {
        todo!()
    }
}
