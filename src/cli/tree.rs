//! An unlocked volume that is not mounted, for the commands that work on the backing tree itself.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use rustix::fs::{FlockOperation, flock};

use crate::format::FormatError;
use crate::format::descriptor::{DESCRIPTOR_NAME, Descriptor};
use crate::format::layout::Layout;
use crate::keys::unlock::UnlockError;
use crate::keys::{Keyring, UnlockOptions, unlock};
use crate::store::content::VolumeContext;

use super::exit::{DESCRIPTOR, IN_USE, NOT_A_VOLUME, failure};

/// Chunk encryptions per segment key; nothing is encrypted through this context.
const REKEY_LIMIT: u64 = 1 << 31;

/// What the command is going to do with the volume.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// Read: others may read too.
    Shared,
    /// Write: nobody else may use the volume.
    Exclusive,
}

/// A locked and unlocked volume.
pub struct Tree {
    /// The backing root; holds the lock.
    pub root: File,
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
    pub fn open(path: &Path, lock: Lock, options: &UnlockOptions) -> anyhow::Result<Self> {
        let root = lock_root(path, lock)?;
        let bytes = read_descriptor(path)?;
        Self::unlock(root, path, &bytes, options)
    }

    /// Unlocks a volume whose root is locked already.
    pub fn unlock(
        root: File,
        path: &Path,
        bytes: &[u8],
        options: &UnlockOptions,
    ) -> anyhow::Result<Self> {
        let (descriptor, unlocked) =
            unlock(bytes, options).map_err(|error| unlock_failure(path, error))?;
        let context = VolumeContext {
            volume: descriptor.volume,
            layout: Layout::new(descriptor.params.header_blocks)?,
            keys: Arc::new(unlocked.keys),
            rekey_limit: REKEY_LIMIT,
        };
        let (path, context) = (path.to_owned(), Arc::new(context));
        Ok(Self { root, path, descriptor, keyring: unlocked.keyring, context })
    }
}

/// Opens and locks the backing root.
pub fn lock_root(path: &Path, lock: Lock) -> anyhow::Result<File> {
    let shown = path.display();
    let root = File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => failure(NOT_A_VOLUME, format!("{shown} does not exist")),
        _ => anyhow::Error::new(error).context(format!("cannot open {shown}")),
    })?;
    let operation = match lock {
        Lock::Shared => FlockOperation::NonBlockingLockShared,
        Lock::Exclusive => FlockOperation::NonBlockingLockExclusive,
    };
    flock(&root, operation).map_err(|_| {
        let cure = "unmount it, or wait for the other command to end";
        failure(IN_USE, format!("{shown} is in use by another kmsfs; {cure}"))
    })?;
    Ok(root)
}

/// The bytes of the descriptor.
pub fn read_descriptor(dir: &Path) -> anyhow::Result<Vec<u8>> {
    let path = dir.join(DESCRIPTOR_NAME);
    match std::fs::read(&path) {
        Ok(bytes) => Ok(bytes),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Err(not_a_volume(dir))
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn not_a_volume(dir: &Path) -> anyhow::Error {
    let shown = dir.display();
    let hint = if is_mount_point(dir) {
        "something is mounted there; name the directory that holds the ciphertext".to_owned()
    } else {
        format!("it has no {DESCRIPTOR_NAME} (`kmsfsctl init` makes a volume)")
    };
    failure(NOT_A_VOLUME, format!("{shown} is not a kmsfs volume: {hint}"))
}

fn is_mount_point(dir: &Path) -> bool {
    let device = |path: &Path| path.metadata().map(|m| m.dev()).ok();
    device(dir) != device(&dir.join(".."))
}

/// The sentence for a volume that does not open.
pub fn unlock_failure(dir: &Path, error: UnlockError) -> anyhow::Error {
    match error {
        UnlockError::Format(error) => descriptor_failure(dir, &error),
        UnlockError::Key(_) => anyhow::Error::new(error).context(dir.display().to_string()),
    }
}

/// The sentence for a descriptor that is not valid.
pub fn descriptor_failure(dir: &Path, error: &FormatError) -> anyhow::Error {
    let cure = match error {
        FormatError::Version(_) | FormatError::Suite(_) | FormatError::Feature(_) => {
            "a newer kmsfs may read it"
        }
        FormatError::Length(_)
        | FormatError::Magic
        | FormatError::Field(_)
        | FormatError::Mac
        | FormatError::OtherVolume
        | FormatError::TooLarge => "it is damaged or was tampered with; restore it from a backup",
    };
    let path = dir.join(DESCRIPTOR_NAME);
    failure(DESCRIPTOR, format!("{}: {error}; {cure}", path.display()))
}
