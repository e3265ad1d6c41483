//! An unlocked volume that is not mounted, for the commands that work on the backing tree itself.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use crate::crypto::Vault;
use crate::format::descriptor::Descriptor;
use crate::fs::journal::{self, Recovery};
use crate::fs::volume::{
    Access, OpenError, lock_root, open_root, read_descriptor, recovery_error, unlock_error,
    volume_context,
};
use crate::keys::{Keyring, UnlockOptions, unlock};
use crate::store::content::VolumeContext;

/// A locked and unlocked volume.
pub struct Tree {
    /// The backing root; holds the lock.
    pub root: Arc<OwnedFd>,
    /// Its descriptor.
    pub descriptor: Descriptor,
    /// Data keys.
    pub keyring: Keyring,
    /// What the engine wants.
    pub context: Arc<VolumeContext>,
    /// What the journal of an unclean stop held: done already in a volume that may be written.
    pub recovery: Recovery,
}

impl Tree {
    /// Locks and unlocks the volume in `path`.
    pub fn open(path: &Path, access: Access, options: &UnlockOptions) -> Result<Self, OpenError> {
        let (root, bytes) = locked(path, access)?;
        Self::unlock(root, path, &bytes, access, options)
    }

    /// Unlocks a volume that is locked already, for `access`.
    pub fn unlock(
        root: OwnedFd,
        path: &Path,
        descriptor: &[u8],
        access: Access,
        options: &UnlockOptions,
    ) -> Result<Self, OpenError> {
        let (descriptor, unlocked) =
            unlock(descriptor, options).map_err(|error| unlock_error(error, path))?;
        // Nothing is encrypted through this context, so the default limit will do.
        let context = volume_context(&descriptor, Vault::new(unlocked.keys), 0)
            .map_err(|error| unlock_error(error.into(), path))?;
        let (context, root) = (Arc::new(context), Arc::new(root));
        let recovery = match access {
            Access::ReadWrite => journal::replay(&root, &context),
            Access::ReadOnly => journal::view(&root, &context),
        };
        let recovery = recovery.map_err(|error| recovery_error(&error, path))?;
        Ok(Self { root, descriptor, keyring: unlocked.keyring, context, recovery })
    }
}

/// Locks the volume in `path` and reads its descriptor under the lock.
pub fn locked(path: &Path, access: Access) -> Result<(OwnedFd, Vec<u8>), OpenError> {
    let root = open_root(path)?;
    // Before the lock: what is no volume should say so even while something else locks it.
    read_descriptor(&root, path)?;
    lock_root(&root, path, access)?;
    let bytes = read_descriptor(&root, path)?;
    Ok((root, bytes))
}
