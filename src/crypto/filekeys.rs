//! What a data key becomes for one file: file key, commitment, tree key, segment keys.
//!
//! Every derivation is HKDF-SHA-256; the text of each is in FORMAT.md. Nothing here knows where the
//! hashed and encrypted blocks are stored.

use super::mac::MacKey;
use super::{Secret, SegmentKey, mac};
use crate::format::tags::Segment;
use crate::format::{BLOCK, ObjectId};
use crate::sys::{self, Locked};
use hkdf::Hkdf;
use sha2::Sha256;
use subtle::ConstantTimeEq;

/// First byte of the root hash's input; tree levels are far below it.
const ROOT: u8 = 0xff;

/// A data key: shared by up to `files_per_data_key` files, never used directly.
pub struct DataKey(pub Secret<32>);

/// The keys of one file's current life.
pub struct FileKeys {
    secret: Locked<Expanded>,
    commitment: [u8; 32],
    /// Object id ‖ life salt, the fixed part of every chunk's AAD.
    identity: [u8; 32],
}

/// Ready-made HMAC states.
struct Expanded {
    file: Hkdf<Sha256>,
    tree: MacKey,
}

impl FileKeys {
    /// Derives the file key and what hangs on it.
    pub fn derive(data_key: &DataKey, object: ObjectId, life_salt: &[u8; 16]) -> Self {
        let mut identity = [0; 32];
        identity[..16].copy_from_slice(&object.0);
        identity[16..].copy_from_slice(life_salt);
        let file_key: Secret<32> =
            mac::hkdf(data_key.0.expose(), &identity, &[b"kmsfs v1 file key"]);
        let file = mac::hkdf_from_key(&file_key);
        let tree_key: Secret<32> = mac::expand(&file, &[b"kmsfs v1 tree"]);
        let commitment: Secret<32> = mac::expand(&file, &[b"kmsfs v1 commitment"]);
        let secret = Locked::new(Expanded { file, tree: MacKey::new(&tree_key) });
        sys::scrub_stack();
        Self { secret, commitment: *commitment.expose(), identity }
    }
    /// Key commitment stored in the header slot.
    pub fn commitment(&self) -> &[u8; 32] {
        &self.commitment
    }
    /// Constant-time comparison with a stored commitment.
    pub fn commits_to(&self, stored: &[u8; 32]) -> bool {
        self.commitment.ct_eq(stored).into()
    }
    /// Key of a segment (0 = header chunks, g + 1 = group g).
    pub fn segment_key(&self, number: u64, salt: &[u8; 16]) -> SegmentKey {
        let info: [&[u8]; 3] = [b"kmsfs v1 segment", &number.to_le_bytes(), salt];
        let key: Secret<32> = mac::expand(&self.secret.file, &info);
        SegmentKey::new(&key)
    }
    /// Hash of tag block `index` (level 0) or node `index` of `level`; zeros for an all-zero block.
    pub fn block_hash(&self, level: u32, index: u64, block: &[u8; BLOCK]) -> [u8; 32] {
        if *block == [0; BLOCK] {
            return [0; 32];
        }
        debug_assert!(level < u32::from(ROOT), "levels stop at 8 for 2^64 groups");
        self.secret.tree.mac(&[&[level as u8], &index.to_le_bytes(), block])
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
        self.secret.tree.mac(&[
            &[ROOT],
            &generation.to_le_bytes(),
            &size.to_le_bytes(),
            &segment0.encode(),
            tags,
            top,
        ])
    }
    /// AAD of a chunk: object id ‖ life salt ‖ chunk index.
    pub fn chunk_aad(&self, chunk: u64) -> [u8; 40] {
        let mut aad = [0; 40];
        aad[..32].copy_from_slice(&self.identity);
        aad[32..].copy_from_slice(&chunk.to_le_bytes());
        aad
    }
}

#[cfg(test)]
mod tests;
