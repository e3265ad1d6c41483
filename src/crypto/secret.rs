//! Secret bytes: locked in memory, kept out of core dumps, wiped on drop; no Debug, no Clone.

/// A fixed-size secret in a locked page.
pub struct Secret<const N: usize> {
    inner: Box<[u8; N]>,
}
impl<const N: usize> Secret<N> {
    /// Fresh random secret.
    pub fn random() -> Self {
        todo!()
    }
    /// Fills a new secret in place, so that it is never copied through unlocked memory.
    pub fn build<E>(fill: impl FnOnce(&mut [u8; N]) -> Result<(), E>) -> Result<Self, E> {
        todo!()
    }
    /// The bytes.
    pub fn expose(&self) -> &[u8; N] {
        todo!()
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
