//! AES-256-GCM by the `aes-gcm` crate: every platform, and the oracle of the differential test.

use crate::crypto::{AuthError, Secret};
use crate::sys::{self, Locked};
use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce, Tag};

/// Crate and version.
pub const NAME: &str = "aes-gcm 0.11.1";

/// An expanded key.
pub struct Key(Locked<Aes256Gcm>);

impl Key {
    /// Expands the key.
    pub fn new(key: &Secret<32>) -> Self {
        let locked = Locked::new(Aes256Gcm::new(key.expose().into()));
        sys::scrub_stack();
        Self(locked)
    }
    /// Encrypts in place and returns the tag.
    pub fn seal(&self, nonce: &[u8; 12], aad: &[u8], data: &mut [u8]) -> [u8; 16] {
        let nonce: &Nonce<_> = nonce.into();
        self.0
            .encrypt_inout_detached(nonce, aad, data.into())
            .expect("a chunk is far below the 64 GiB that GCM takes")
            .into()
    }
    /// Verifies and decrypts in place; `data` is unspecified after a failure.
    pub fn open(
        &self,
        nonce: &[u8; 12],
        aad: &[u8],
        data: &mut [u8],
        tag: &[u8; 16],
    ) -> Result<(), AuthError> {
        let nonce: &Nonce<_> = nonce.into();
        let tag: &Tag = tag.into();
        self.0.decrypt_inout_detached(nonce, aad, data.into(), tag).map_err(|_| AuthError)
    }
}
