//! An unlocked volume that is not mounted, for the commands that work on the backing tree itself.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;

use crate::format::descriptor::{DESCRIPTOR_NAME, Descriptor};
use crate::fs::volume::{
    Access, OpenError, lock_root, open_root, read_descriptor, unlock_error, volume_context,
};
use crate::keys::{Keyring, UnlockOptions, unlock};
use crate::store::content::VolumeContext;

/// A locked and unlocked volume.
pub struct Tree {
    /// The backing root; holds the lock.
    pub root: OwnedFd,
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
        let context = Arc::new(context);
        Ok(Self { root, descriptor, keyring: unlocked.keyring, context })
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

/// The descriptor before it gets its name.
pub const NEW_DESCRIPTOR_NAME: &str = "kmsfs.volume.new";

/// Replaces the descriptor: a crash leaves the old or the new one.
pub fn write_descriptor(dir: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    write_durably(dir, NEW_DESCRIPTOR_NAME, DESCRIPTOR_NAME, bytes, 0o600)
}

/// Writes a file under `first`, makes it durable, and gives it its `name` in `dir`.
pub fn write_durably(
    dir: &Path,
    first: &str,
    name: &str,
    bytes: &[u8],
    mode: u32,
) -> anyhow::Result<()> {
    let write = || -> io::Result<()> {
        let path = dir.join(first);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&path)?;
        file.write_all(bytes)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        if first != name {
            fs::rename(&path, dir.join(name))?;
        }
        File::open(dir)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", dir.join(name).display()))
}
