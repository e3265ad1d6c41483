//! Secret bytes: locked in memory, kept out of core dumps, wiped on drop; no Debug, no Clone.

use crate::sys::Locked;
use subtle::ConstantTimeEq;

/// A fixed-size secret in a locked page.
pub struct Secret<const N: usize> {
    inner: Locked<[u8; N]>,
}
impl<const N: usize> Secret<N> {
    /// Fresh random secret.
    pub fn random() -> Self {
        let mut inner = Locked::zeroed();
        super::random(&mut *inner);
        Self { inner }
    }
    /// Fills a new secret in place, so that it is never copied through unlocked memory.
    pub fn build<E>(fill: impl FnOnce(&mut [u8; N]) -> Result<(), E>) -> Result<Self, E> {
        let mut inner = Locked::zeroed();
        fill(&mut inner)?;
        Ok(Self { inner })
    }
    /// As [`Self::build`], for what cannot fail.
    pub fn fill_with(fill: impl FnOnce(&mut [u8; N])) -> Self {
        let mut inner = Locked::zeroed();
        fill(&mut inner);
        Self { inner }
    }
    /// The bytes.
    pub fn expose(&self) -> &[u8; N] {
        &self.inner
    }
    /// Are both the same? Takes the same time whatever they are.
    pub fn is(&self, other: &Self) -> bool {
        self.inner.ct_eq(&*other.inner).into()
    }
}

/// A variable-size secret (passphrase, key file): wiped on drop.
pub struct SecretBytes(zeroize::Zeroizing<Vec<u8>>);
impl SecretBytes {
    /// Takes ownership of the bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(zeroize::Zeroizing::new(bytes))
    }
    /// The bytes.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::hook::freed_during;

    #[test]
    fn a_dropped_secret_is_wiped() {
        let freed = freed_during(|| {
            let secret = Secret::<32>::random();
            assert_ne!(secret.expose(), &[0; 32]);
        });
        assert_eq!(freed, [vec![0u8; 32]]);
    }

    #[test]
    fn a_secret_that_failed_half_way_is_wiped() {
        let freed = freed_during(|| {
            let failed = Secret::<64>::build(|bytes| {
                bytes.fill(7);
                Err(())
            });
            assert!(failed.is_err());
        });
        assert_eq!(freed, [vec![0u8; 64]]);
    }

    #[test]
    fn nothing_secret_can_be_printed_or_copied() {
        use crate::crypto::aead::portable;
        use crate::crypto::{DataKey, FileKeys, SegmentKey, VolumeKey, VolumeKeys, hpke, wrap};
        crate::crypto::testing::assert_neither_debug_nor_clone!(
            Secret<32>,
            SecretBytes,
            Locked<[u8; 32]>,
            DataKey,
            FileKeys,
            SegmentKey,
            portable::Key,
            VolumeKey,
            VolumeKeys,
            hpke::Identity,
            wrap::LocalWrapKey,
            crate::crypto::mac::MacKey,
        );
    }

    #[test]
    fn random_secrets_differ() {
        assert_ne!(Secret::<32>::random().expose(), Secret::<32>::random().expose());
    }
}
