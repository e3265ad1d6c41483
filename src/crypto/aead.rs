//! The chunk cipher: AES-256-GCM. One backend is chosen at build time; the format is the same.

use super::{AuthError, Secret};

/// Name of the AEAD backend, for `--version`.
pub const BACKEND: &str = "todo";

/// An expanded AES-256-GCM key; wiped on drop.
pub struct SegmentKey {}
impl SegmentKey {
    /// Expands the key.
    pub fn new(key: &Secret<32>) -> Self {
        todo!()
    }
    /// Encrypts in place.
    pub fn seal_in_place(&self, nonce: &[u8; 12], aad: &[u8; 40], data: &mut [u8]) -> [u8; 16] {
        todo!()
    }
    /// Verifies and decrypts in place; on failure `data` is zeroed.
    pub fn open_in_place(
        &self,
        nonce: &[u8; 12],
        aad: &[u8; 40],
        data: &mut [u8],
        tag: &[u8; 16],
    ) -> Result<(), AuthError> {
        todo!()
    }
}
