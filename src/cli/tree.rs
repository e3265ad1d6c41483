//! An unlocked volume that is not mounted, for the commands that work on the backing tree itself.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid, fchown, fstat, fsync, openat, renameat,
    statat, unlinkat,
};
use rustix::io::Errno;

use crate::crypto::Vault;
use crate::format::descriptor::{DESCRIPTOR_NAME, Descriptor};
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

/// The descriptor before it gets its name.
pub const NEW_DESCRIPTOR_NAME: &str = "kmsfs.volume.new";

/// Makes or replaces the descriptor in `root`: a crash leaves the old or the new one, and whoever
/// owned and could read the old one owns and can read the new one. `dir` is for messages.
pub fn write_descriptor(root: &OwnedFd, dir: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let write = || -> io::Result<()> {
        let old = regular_if_there(root, DESCRIPTOR_NAME)?;
        let new = create_anew(root, NEW_DESCRIPTOR_NAME)?;
        let written = fill(new, bytes, old.as_ref())
            .and_then(|()| Ok(renameat(root, NEW_DESCRIPTOR_NAME, root, DESCRIPTOR_NAME)?));
        if written.is_err() {
            // What went wrong is told; a leftover would be removed by the next change.
            let _ = unlinkat(root, NEW_DESCRIPTOR_NAME, AtFlags::empty());
        }
        written?;
        Ok(fsync(root)?)
    };
    let names = format!("{DESCRIPTOR_NAME} (by way of {NEW_DESCRIPTOR_NAME})");
    write().with_context(|| format!("cannot write {names} in {}", dir.display()))
}

/// Makes a small file in `root` that everybody may read, and makes it durable.
pub fn write_helper(root: &OwnedFd, dir: &Path, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let write = || -> io::Result<()> {
        let file = create_anew(root, name)?;
        file.set_permissions(Permissions::from_mode(0o444))?;
        fill(file, bytes, None)?;
        Ok(fsync(root)?)
    };
    write().with_context(|| format!("cannot write {}", dir.join(name).display()))
}

/// A new file under a name that is ours. Whatever somebody planted there goes first: opening it
/// could follow a link out of the volume, wait for a pipe, or write through a hard link.
fn create_anew(root: &OwnedFd, name: &str) -> io::Result<File> {
    match unlinkat(root, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(openat(root, name, flags, Mode::from_raw_mode(0o600))?))
}

fn regular_if_there(root: &OwnedFd, name: &str) -> io::Result<Option<Stat>> {
    match statat(root, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {
            Ok(Some(stat))
        }
        Ok(_) => Err(io::Error::other(format!("{name} is not a regular file"))),
    }
}

/// Writes and syncs; gives the file owner and mode of the one it will replace.
fn fill(mut file: File, bytes: &[u8], old: Option<&Stat>) -> io::Result<()> {
    file.write_all(bytes)?;
    if let Some(old) = old {
        let new = fstat(&file)?;
        let change = |new: u32, old: u32| (new != old).then_some(old);
        let (uid, gid) = (change(new.st_uid, old.st_uid), change(new.st_gid, old.st_gid));
        if uid.is_some() || gid.is_some() {
            fchown(&file, uid.map(Uid::from_raw), gid.map(Gid::from_raw))?;
        }
        file.set_permissions(Permissions::from_mode(old.st_mode & 0o777))?;
    }
    file.sync_all()
}
