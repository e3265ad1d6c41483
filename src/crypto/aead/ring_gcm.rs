//! AES-256-GCM by ring: the fastest at 4 KiB, see `benches/aead.rs`.

use crate::crypto::{AuthError, Secret};
use crate::sys::{self, Locked};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

/// Crate and version.
pub const NAME: &str = "ring 0.17.14";

/// An expanded key. ring's key type owns no heap memory and has no `Drop`: the slot's wipe is all
/// it needs.
pub struct Key(Locked<LessSafeKey>);

const _: () = assert!(!std::mem::needs_drop::<LessSafeKey>());

impl Key {
    /// Expands the key.
    pub fn new(key: &Secret<32>) -> Self {
        let unbound = UnboundKey::new(&AES_256_GCM, key.expose())
            .expect("AES-256-GCM takes every key of 32 bytes");
        let locked = Locked::new(LessSafeKey::new(unbound));
        sys::scrub_stack();
        Self(locked)
    }
    /// Encrypts in place and returns the tag.
    pub fn seal(&self, nonce: &[u8; 12], aad: &[u8], data: &mut [u8]) -> [u8; 16] {
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce, Aad::from(aad), data)
            .expect("a chunk is far below the 64 GiB that GCM takes");
        let mut out = [0; 16];
        out.copy_from_slice(tag.as_ref());
        out
    }
    /// Verifies and decrypts in place; `data` is unspecified after a failure.
    pub fn open(
        &self,
        nonce: &[u8; 12],
        aad: &[u8],
        data: &mut [u8],
        tag: &[u8; 16],
    ) -> Result<(), AuthError> {
        let nonce = Nonce::assume_unique_for_key(*nonce);
        self.0
            .open_in_place_separate_tag(nonce, Aad::from(aad), (*tag).into(), data, 0..)
            .map(|_| ())
            .map_err(|_| AuthError)
    }
}
