//! Keys, AEAD, derivations and name encryption; the only importer of crypto crates.
//!
//! Secrets stay in [`Secret`], [`SecretBytes`] or locked slots of [`crate::sys`]; nothing secret
//! implements Debug or Clone. This layer does not know where the bytes it protects are stored.

pub mod aead;
pub mod filekeys;
pub mod hpke;
mod mac;
pub mod secret;
mod siv;
pub mod vault;
pub mod volumekeys;
pub mod wrap;

use thiserror::Error;

pub use aead::{BACKEND, SegmentKey};
pub use filekeys::{DataKey, FileKeys};
pub use mac::fingerprint;
pub use secret::{Secret, SecretBytes};
pub use vault::{Gone, Vault};
pub use volumekeys::{JournalKey, VolumeKey, VolumeKeys};

/// Ciphertext or MAC did not authenticate. Carries nothing on purpose.
#[derive(Debug, Error, PartialEq, Eq, Clone, Copy)]
#[error("authentication failed")]
pub struct AuthError;

/// Fills `out` from the kernel's random generator, fresh for every call; never pooled.
/// Aborts the process if the kernel cannot deliver (it never fails after boot).
pub fn random(out: &mut [u8]) {
    if let Err(e) = getrandom::fill(out) {
        // Going on without randomness would mean repeating nonces and keys.
        eprintln!("kmsfs: the kernel's random generator failed ({e}); stopping");
        std::process::abort();
    }
}
/// A fresh random array.
pub fn random_array<const N: usize>() -> [u8; N] {
    let mut a = [0; N];
    random(&mut a);
    a
}

/// What the tests of this layer share.
#[cfg(test)]
pub(crate) mod testing {
    use super::Secret;

    /// Bytes of a hexadecimal text; blanks are ignored.
    pub(crate) fn hex(text: &str) -> Vec<u8> {
        let text: String = text.split_whitespace().collect();
        data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).expect("hex in a test")
    }
    /// A secret of known bytes.
    pub(crate) fn secret<const N: usize>(bytes: &[u8]) -> Secret<N> {
        Secret::fill_with(|out| out.copy_from_slice(bytes))
    }
    /// Bytes 0, 1, 2, … for known-answer tests.
    pub(crate) fn counting<const N: usize>(from: u8) -> [u8; N] {
        std::array::from_fn(|i| from.wrapping_add(i as u8))
    }

    /// Does not compile when one of the types implements Debug or Clone: two candidates for the
    /// same call are ambiguous.
    macro_rules! assert_neither_debug_nor_clone {
        ($($secret:ty),+ $(,)?) => {
            trait Ambiguous<Which> {
                fn call() {}
            }
            struct ForDebug;
            struct ForClone;
            impl<T: ?Sized> Ambiguous<()> for T {}
            impl<T: ?Sized + std::fmt::Debug> Ambiguous<ForDebug> for T {}
            impl<T: Clone> Ambiguous<ForClone> for T {}
            $(<$secret as Ambiguous<_>>::call();)+
        };
    }
    pub(crate) use assert_neither_debug_nor_clone;
}
