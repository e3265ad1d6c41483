//! Keys, AEAD, derivations and name encryption; the only importer of crypto crates.

pub mod aead;
pub mod filekeys;
pub mod hpke;
pub mod secret;
pub mod volumekeys;
pub mod wrap;

use thiserror::Error;

pub use aead::{BACKEND, SegmentKey};
pub use filekeys::{DataKey, FileKeys};
pub use secret::{Secret, SecretBytes};
pub use volumekeys::{VolumeKey, VolumeKeys};

/// Ciphertext or MAC did not authenticate. Carries nothing on purpose.
#[derive(Debug, Error, PartialEq, Eq, Clone, Copy)]
#[error("authentication failed")]
pub struct AuthError;

/// Fills `out` from the kernel's random generator, fresh for every call; never pooled.
/// Aborts the process if the kernel cannot deliver (it never fails after boot).
pub fn random(out: &mut [u8]) {
    todo!()
}
/// A fresh random array.
pub fn random_array<const N: usize>() -> [u8; N] {
    let mut a = [0; N];
    random(&mut a);
    a
}
