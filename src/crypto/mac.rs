//! HMAC-SHA-256 with precomputed key blocks, and HKDF-SHA-256 that writes only into secrets.

use super::Secret;
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

/// An HMAC key whose two key blocks are hashed already. Holders keep it in a
/// [`crate::sys::Locked`]; its states, and the clones of them made for each MAC, wipe themselves.
pub(super) struct MacKey(Hmac<Sha256>);

impl MacKey {
    pub(super) fn new(key: &Secret<32>) -> Self {
        Self(Hmac::new_from_slice(key.expose()).expect("HMAC takes keys of every length"))
    }
    /// MAC of the concatenation of `parts`.
    pub(super) fn mac(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut state = self.0.clone();
        for part in parts {
            state.update(part);
        }
        state.finalize().into_bytes().into()
    }
    /// Constant-time check.
    pub(super) fn verifies(&self, bytes: &[u8], mac: &[u8; 32]) -> bool {
        self.mac(&[bytes]).ct_eq(mac).into()
    }
}

/// HKDF-SHA-256: extract with `salt`, expand with the concatenation of `info`.
pub(super) fn hkdf<const N: usize>(ikm: &[u8], salt: &[u8], info: &[&[u8]]) -> Secret<N> {
    let (mut prk, state) = Hkdf::<Sha256>::extract(Some(salt), ikm);
    prk.as_mut_slice().zeroize();
    expand(&state, info)
}

/// A key that was itself derived, as input of further HKDF-Expand calls.
pub(super) fn hkdf_from_key(key: &Secret<32>) -> Hkdf<Sha256> {
    Hkdf::from_prk(key.expose()).expect("32 bytes are enough for SHA-256")
}

/// HKDF-Expand.
pub(super) fn expand<const N: usize>(state: &Hkdf<Sha256>, info: &[&[u8]]) -> Secret<N> {
    const { assert!(N <= 255 * 32, "HKDF-SHA-256 gives at most 8160 bytes") }
    Secret::fill_with(|out| {
        state.expand_multi_info(info, out).expect("the length is bounded at compile time");
    })
}

/// SHA-256 of public bytes.
pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// SHA-256 over parts whose lengths are mixed in, so that no two lists collide; names cache
/// entries.
pub fn fingerprint(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests;
