//! An unlocked volume that is not mounted, for the commands that work on the backing tree itself.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::format::descriptor::Descriptor;
use crate::fs::volume::{
    Access, OpenError, lock_root, open_root, read_descriptor, unlock_error, volume_context,
};
use crate::keys::{Keyring, UnlockOptions, unlock};
use crate::store::content::VolumeContext;

/// A locked and unlocked volume.
pub struct Tree {
    /// The backing root; holds the lock.
    pub root: OwnedFd,
    /// Where it is.
    pub path: PathBuf,
    /// Its descriptor.
    pub descriptor: Descriptor,
    /// Data keys.
    pub keyring: Keyring,
    /// What the engine wants.
    pub context: Arc<VolumeContext>,
}

impl Tree {
    /// Locks and unlocks the volume in `path`.
    pub fn open(path: &Path, access: Access, options: &UnlockOptions) -> Result<Self, OpenError> {
        let (root, bytes) = locked(path, access)?;
        Self::unlock(root, path, &bytes, options)
    }

    /// Unlocks a volume that is locked already.
    pub fn unlock(
        root: OwnedFd,
        path: &Path,
        descriptor: &[u8],
        options: &UnlockOptions,
    ) -> Result<Self, OpenError> {
        let (descriptor, unlocked) =
            unlock(descriptor, options).map_err(|error| unlock_error(error, path))?;
        // Nothing is encrypted through this context, so the default limit will do.
        let context = volume_context(&descriptor, Arc::new(unlocked.keys), 0)
            .map_err(|error| unlock_error(error.into(), path))?;
        let (path, context) = (path.to_owned(), Arc::new(context));
        Ok(Self { root, path, descriptor, keyring: unlocked.keyring, context })
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
