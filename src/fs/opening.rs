//! A backing directory before it is a volume: opened, locked, its descriptor read and written; and
//! the sentences for what can go wrong on the way.

use super::backing;
use crate::format::descriptor::DESCRIPTOR_NAME;
use crate::keys::KeyError;
use crate::keys::unlock::UnlockError;
use rustix::fs::{
    AtFlags, FileType, FlockOperation, Gid, Mode, OFlags, Stat, Uid, fchown, fstat, fsync, openat,
    renameat, statat, unlinkat,
};
use rustix::io::Errno;
use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::volume::Access;

/// Largest descriptor file accepted, bytes.
const DESCRIPTOR_MAX: usize = 1 << 20;

/// Opens a backing root directory.
pub fn open_root(source: &Path) -> Result<OwnedFd, OpenError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(source, flags, Mode::empty()).map_err(|errno| {
        OpenError::new(
            exit::NOT_A_VOLUME,
            format!("{}: cannot open the directory: {}", source.display(), words(errno)),
        )
    })
}

/// Reads the descriptor of the volume in `root`.
pub fn read_descriptor(root: &OwnedFd, source: &Path) -> Result<Vec<u8>, OpenError> {
    match backing::read_small(root, DESCRIPTOR_NAME.as_bytes(), DESCRIPTOR_MAX) {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(OpenError::new(
            exit::NOT_A_VOLUME,
            format!(
                "{} is not a kmsfs volume: it holds no {DESCRIPTOR_NAME}. Make one with `kmsfsctl \
                 init {}`",
                source.display(),
                source.display()
            ),
        )),
        Err(error) => Err(OpenError::new(
            exit::FORMAT,
            format!("{}/{DESCRIPTOR_NAME} cannot be read: {error}", source.display()),
        )),
    }
}

/// Takes the lock on a backing root: exclusive to write, shared to read.
pub fn lock_root(root: &OwnedFd, source: &Path, access: Access) -> Result<(), OpenError> {
    let operation = match access {
        Access::ReadWrite => FlockOperation::NonBlockingLockExclusive,
        Access::ReadOnly => FlockOperation::NonBlockingLockShared,
    };
    match rustix::fs::flock(root, operation) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(OpenError::new(
            exit::IN_USE,
            format!(
                "{} is in use by another kmsfs{}: unmount it first, or work on a copy",
                source.display(),
                lock_holder(root).map(|pid| format!(" (process {pid})")).unwrap_or_default()
            ),
        )),
        Err(errno) => Err(OpenError::new(
            exit::FAILURE,
            format!(
                "{}: the backing directory cannot be locked: {}",
                source.display(),
                words(errno)
            ),
        )),
    }
}

/// Process that holds a lock on a file, as far as `/proc/locks` shows it.
pub fn lock_holder(file: impl AsFd) -> Option<u32> {
    let ino = rustix::fs::fstat(file).ok()?.st_ino.to_string();
    let table = std::fs::read_to_string("/proc/locks").ok()?;
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let of_it = fields.get(5)?.rsplit(':').next() == Some(ino.as_str());
        (of_it && fields.get(1) == Some(&"FLOCK")).then(|| fields[4].parse().ok()).flatten()
    })
}

/// Exit codes of both programs (README, "Exit codes").
pub mod exit {
    /// Anything without a code of its own.
    pub const FAILURE: i32 = 1;
    /// The source is no volume.
    pub const NOT_A_VOLUME: i32 = 10;
    /// Wrong passphrase or key file.
    pub const WRONG_KEY: i32 = 11;
    /// Key material missing, unreadable or open to others.
    pub const KEY_MATERIAL: i32 = 12;
    /// Damaged descriptor, newer format, unknown feature.
    pub const FORMAT: i32 = 13;
    /// Another kmsfs uses the volume.
    pub const IN_USE: i32 = 14;
    /// The mount point cannot be used.
    pub const MOUNT_POINT: i32 = 15;
    /// The mount itself failed.
    pub const MOUNT: i32 = 16;
    /// Damaged files were found.
    pub const DAMAGE: i32 = 17;
    /// The key is revoked or cannot be reached.
    pub const KEY_UNAVAILABLE: i32 = 18;
}

/// Why a volume cannot be opened: a sentence, and an exit code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct OpenError {
    /// What happened, to which file or key, and what to do.
    pub message: String,
    /// Process exit code, one of [`exit`].
    pub exit_code: i32,
}

impl OpenError {
    /// An error with its sentence.
    pub fn new(exit_code: i32, message: String) -> OpenError {
        OpenError { message, exit_code }
    }

    pub(super) fn io(source: &Path, errno: Errno) -> OpenError {
        OpenError::new(exit::FAILURE, format!("{}: {}", source.display(), words(errno)))
    }
}

/// Sentence and exit code for a volume that does not unlock.
pub fn unlock_error(error: UnlockError, source: &Path) -> OpenError {
    let exit_code = match &error {
        UnlockError::Format(_) => exit::FORMAT,
        UnlockError::Unexpected(_) => exit::FAILURE,
        UnlockError::Key(KeyError::WrongKey(_) | KeyError::NotOurs(_)) => exit::WRONG_KEY,
        UnlockError::Key(KeyError::Misconfigured(_)) => exit::KEY_MATERIAL,
        UnlockError::Key(KeyError::Tampered(_)) => exit::FORMAT,
        UnlockError::Key(
            KeyError::Revoked(_)
            | KeyError::Denied(_)
            | KeyError::Unavailable(_)
            | KeyError::Throttled(_)
            | KeyError::WouldWait(_),
        ) => exit::KEY_UNAVAILABLE,
    };
    let message = match &error {
        UnlockError::Format(format) => {
            format!("{}: {DESCRIPTOR_NAME} is refused: {format}", source.display())
        }
        UnlockError::Key(_) | UnlockError::Unexpected(_) => {
            format!("{}: {error}", source.display())
        }
    };
    OpenError { message, exit_code }
}

fn words(errno: Errno) -> std::io::Error {
    errno.into()
}

/// The descriptor before it gets its name.
pub const NEW_DESCRIPTOR_NAME: &str = "kmsfs.volume.new";

/// Makes or replaces the descriptor in `root`: a crash leaves the old or the new one, and whoever
/// owned and could read the old one owns and can read the new one. `dir` is for messages.
pub fn write_descriptor(root: &OwnedFd, dir: &Path, bytes: &[u8]) -> Result<(), OpenError> {
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
    let failed = |e| format!("cannot write {names} in {}: {e}", dir.display());
    write().map_err(|e| OpenError::new(exit::FAILURE, failed(e)))
}

/// Makes a small file in `root` that everybody may read, and makes it durable.
pub fn write_helper(root: &OwnedFd, dir: &Path, name: &str, bytes: &[u8]) -> Result<(), OpenError> {
    let write = || -> io::Result<()> {
        let file = create_anew(root, name)?;
        file.set_permissions(Permissions::from_mode(0o444))?;
        fill(file, bytes, None)?;
        Ok(fsync(root)?)
    };
    let failed = |e| format!("cannot write {}: {e}", dir.join(name).display());
    write().map_err(|e| OpenError::new(exit::FAILURE, failed(e)))
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
