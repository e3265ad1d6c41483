//! Where a mounted volume keeps its volume keys: they can be taken away, and given back.

use super::VolumeKeys;
use parking_lot::RwLock;
use std::sync::Arc;
use thiserror::Error;

/// Why the keys are gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Gone {
    /// The owner of the wrapping key says no.
    #[error("the volume's key is revoked")]
    Revoked,
    /// Nobody has confirmed the keys for too long.
    #[error("the volume's key could not be confirmed for too long")]
    Unconfirmed,
}

/// Shared by everything that needs a volume key. Whoever took the keys out keeps them until he is
/// done; they are wiped with the last one.
pub struct Vault(RwLock<Result<Arc<VolumeKeys>, Gone>>);

impl Vault {
    /// With keys inside.
    pub fn new(keys: VolumeKeys) -> Arc<Self> {
        Arc::new(Self(RwLock::new(Ok(Arc::new(keys)))))
    }

    /// The keys, for one operation.
    pub fn keys(&self) -> Result<Arc<VolumeKeys>, Gone> {
        self.0.read().clone()
    }

    /// Drops the keys.
    pub fn lock(&self, why: Gone) {
        *self.0.write() = Err(why);
    }

    /// Puts keys back.
    pub fn unlock(&self, keys: VolumeKeys) {
        *self.0.write() = Ok(Arc::new(keys));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{Secret, VolumeKey};
    use crate::format::VolumeId;
    use crate::sys::hook::freed_during;

    fn keys() -> VolumeKeys {
        VolumeKeys::derive(&VolumeKey(Secret::random()), VolumeId([3; 16]))
    }

    #[test]
    fn locking_wipes_and_unlocking_brings_back() {
        let vault = Vault::new(keys());
        let freed = freed_during(|| vault.lock(Gone::Revoked));
        assert!(freed.len() >= 5 && freed.iter().flatten().all(|byte| *byte == 0));
        assert_eq!(vault.keys().err(), Some(Gone::Revoked));
        vault.unlock(keys());
        assert!(vault.keys().is_ok());
    }

    #[test]
    fn an_operation_under_way_ends_with_the_keys_it_has() {
        let vault = Vault::new(keys());
        let held = vault.keys().unwrap();
        assert!(freed_during(|| vault.lock(Gone::Unconfirmed)).is_empty());
        assert!(freed_during(|| drop(held)).len() >= 5);
    }
}
