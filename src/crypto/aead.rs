//! The chunk cipher: AES-256-GCM. One backend is chosen at build time; the format is the same.
//!
//! This module alone decides: the feature `ring` (default) takes ring, without it the portable
//! `aes-gcm` crate does the work. A third backend (for example one with a FIPS validation) is one
//! more submodule with the same three functions, one more feature, and one more arm in the two
//! `use` lines below; the differential test then runs it against [`portable`] too.
//!
//! Invariants: key schedules live in locked slots and are wiped on drop; a buffer that does not
//! authenticate comes back zeroed, so that no caller can hand out unauthenticated plaintext.

pub mod portable;
#[cfg(feature = "ring")]
pub mod ring_gcm;

use super::{AuthError, Secret};
use zeroize::Zeroize;

#[cfg(not(feature = "ring"))]
use portable as backend;
#[cfg(feature = "ring")]
use ring_gcm as backend;

/// Name of the AEAD backend, for `--version`.
pub const BACKEND: &str = backend::NAME;

/// An expanded AES-256-GCM key; wiped on drop.
pub struct SegmentKey {
    inner: backend::Key,
}
impl SegmentKey {
    /// Expands the key.
    pub fn new(key: &Secret<32>) -> Self {
        Self { inner: backend::Key::new(key) }
    }
    /// Encrypts in place.
    pub fn seal_in_place(&self, nonce: &[u8; 12], aad: &[u8; 40], data: &mut [u8]) -> [u8; 16] {
        self.inner.seal(nonce, aad, data)
    }
    /// Verifies and decrypts in place; on failure `data` is zeroed.
    pub fn open_in_place(
        &self,
        nonce: &[u8; 12],
        aad: &[u8; 40],
        data: &mut [u8],
        tag: &[u8; 16],
    ) -> Result<(), AuthError> {
        self.inner.open(nonce, aad, data, tag).inspect_err(|_| data.zeroize())
    }
}

#[cfg(test)]
mod tests;
