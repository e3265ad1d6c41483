//! The mounted volume: one method per operation.

use super::attr::*;
use super::error::*;
use crate::format::descriptor::Descriptor;
use crate::keys::UnlockOptions;
use std::path::{Path, PathBuf};

/// Handle number of an open file or directory.
pub type Fh = u64;

/// What the opener wants of the volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Exclusive.
    ReadWrite,
    /// Shared with other readers; the backing directory is not touched.
    ReadOnly,
}

/// Atime policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs)]
pub enum Atime {
    #[default]
    Relatime,
    Noatime,
    Strictatime,
}

/// How the tree behaves.
#[derive(Clone, Copy, Debug)]
pub struct MountFlags {
    /// POSIX ACLs (`-o acl`).
    pub acl: bool,
    /// Atime policy.
    pub atime: Atime,
    /// Give created objects to the caller (root with allow_other).
    pub own_by_caller: bool,
    /// Kernel writeback cache is on: the kernel owns mtime and size of open files, reads may come on write-only handles.
    pub writeback: bool,
    /// Chunk encryptions per segment key before re-keying; 0 = the format's 2^31.
    pub rekey_limit: u64,
}

/// A directory entry.
#[derive(Clone, Debug)]
pub struct DirEntry {
    /// Inode number (d_ino).
    pub ino: Ino,
    /// Kind.
    pub kind: FileKind,
    /// Plaintext name.
    pub name: Vec<u8>,
}

/// Result of open and create.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// Handle.
    pub fh: Fh,
    /// The kernel may keep its cached pages of this inode.
    pub keep_cache: bool,
}

/// An unlocked, open volume.
pub struct Volume {}

#[allow(missing_docs)]
impl Volume {
    /// Locks the backing directory, unlocks the descriptor, opens the root. Errors are sentences for the user
    /// with an exit code (see `OpenError::exit_code`).
    pub fn open(
        source: &Path,
        access: Access,
        flags: MountFlags,
        unlock: &UnlockOptions,
    ) -> Result<Self, OpenError> {
        todo!()
    }
    pub fn descriptor(&self) -> &Descriptor {
        todo!()
    }
    pub fn source(&self) -> &Path {
        todo!()
    }
    /// Commits everything, clears the unclean-stop marker. Called once the kernel has gone.
    pub fn shutdown(&self) -> FsResult<()> {
        todo!()
    }
    /// Commits every dirty file (periodic, every 5 s; and `kmsfsctl sync`). `flush` also syncs the backing file system.
    pub fn commit_all(&self, flush: bool) -> FsResult<()> {
        todo!()
    }
    /// (inodes in the table, open handles, open backing descriptors) for `status`.
    pub fn counters(&self) -> (usize, usize, usize) {
        todo!()
    }

    // -- names. `lookup`, `create`, `mknod`, `mkdir`, `symlink`, `link` each count one kernel lookup on success.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> FsResult<Attr> {
        todo!()
    }
    pub fn forget(&self, ino: Ino, lookups: u64) {
        todo!()
    }
    pub fn mknod(
        &self,
        who: Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        umask: u32,
        rdev: u64,
    ) -> FsResult<Attr> {
        todo!()
    }
    pub fn mkdir(
        &self,
        who: Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        umask: u32,
    ) -> FsResult<Attr> {
        todo!()
    }
    pub fn symlink(&self, who: Caller, parent: Ino, name: &[u8], target: &[u8]) -> FsResult<Attr> {
        todo!()
    }
    pub fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> FsResult<Attr> {
        todo!()
    }
    pub fn unlink(&self, parent: Ino, name: &[u8]) -> FsResult<()> {
        todo!()
    }
    pub fn rmdir(&self, parent: Ino, name: &[u8]) -> FsResult<()> {
        todo!()
    }
    /// `flags`: libc RENAME_NOREPLACE, RENAME_EXCHANGE; others EINVAL.
    pub fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        flags: u32,
    ) -> FsResult<()> {
        todo!()
    }
    pub fn readlink(&self, ino: Ino) -> FsResult<Vec<u8>> {
        todo!()
    }

    // -- attributes
    pub fn getattr(&self, ino: Ino, fh: Option<Fh>) -> FsResult<Attr> {
        todo!()
    }
    pub fn setattr(
        &self,
        who: Caller,
        ino: Ino,
        fh: Option<Fh>,
        changes: SetAttr,
    ) -> FsResult<Attr> {
        todo!()
    }
    pub fn statfs(&self) -> FsResult<StatFs> {
        todo!()
    }
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> FsResult<Vec<u8>> {
        todo!()
    }
    pub fn setxattr(
        &self,
        who: Caller,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        flags: i32,
    ) -> FsResult<()> {
        todo!()
    }
    pub fn listxattr(&self, who: Caller, ino: Ino) -> FsResult<Vec<u8>> {
        todo!()
    }
    pub fn removexattr(&self, who: Caller, ino: Ino, name: &[u8]) -> FsResult<()> {
        todo!()
    }

    // -- files. `flags` are open(2) flags as the kernel sends them.
    pub fn create(
        &self,
        who: Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        umask: u32,
        flags: i32,
    ) -> FsResult<(Attr, Opened)> {
        todo!()
    }
    /// May wait for a key: call it off the event loop when `open_may_wait` says so.
    pub fn open_file(&self, ino: Ino, flags: i32) -> FsResult<Opened> {
        todo!()
    }
    /// Fills `buf` from the start; returns bytes read.
    pub fn read(&self, fh: Fh, offset: u64, buf: &mut [u8]) -> FsResult<usize> {
        todo!()
    }
    /// `kill_priv`: the kernel asks to drop set-id bits with this write.
    pub fn write(&self, fh: Fh, offset: u64, data: &[u8], kill_priv: bool) -> FsResult<()> {
        todo!()
    }
    pub fn flush(&self, fh: Fh) -> FsResult<()> {
        todo!()
    }
    pub fn fsync(&self, fh: Fh) -> FsResult<()> {
        todo!()
    }
    pub fn release(&self, fh: Fh) {
        todo!()
    }
    /// `mode`: FALLOC_FL_* bits.
    pub fn fallocate(&self, fh: Fh, offset: u64, len: u64, mode: i32) -> FsResult<()> {
        todo!()
    }
    pub fn lseek(&self, fh: Fh, offset: i64, whence: i32) -> FsResult<i64> {
        todo!()
    }
    pub fn copy_file_range(
        &self,
        fh_in: Fh,
        off_in: u64,
        fh_out: Fh,
        off_out: u64,
        len: u64,
    ) -> FsResult<u64> {
        todo!()
    }

    // -- directories
    pub fn opendir(&self, ino: Ino) -> FsResult<Fh> {
        todo!()
    }
    /// Calls `each(next_offset, entry, attr)` from `offset` on, `.` and `..` included, until it returns false (buffer full;
    /// that entry will be asked for again). With `plus`, entries other than `.` and `..` carry attributes and one counted lookup
    /// if `each` returned true.
    pub fn readdir(
        &self,
        fh: Fh,
        offset: u64,
        plus: bool,
        each: &mut dyn FnMut(u64, &DirEntry, Option<&Attr>) -> bool,
    ) -> FsResult<()> {
        todo!()
    }
    pub fn fsyncdir(&self, fh: Fh) -> FsResult<()> {
        todo!()
    }
    pub fn releasedir(&self, fh: Fh) {
        todo!()
    }

    // -- tools
    /// Backing path (relative to the source) of a plaintext path, for messages.
    pub fn backing_path(&self, ino: Ino) -> PathBuf {
        todo!()
    }
}

/// Why a volume cannot be opened: a sentence, and an exit code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct OpenError {
    /// What happened, to which file or key, and what to do.
    pub message: String,
    /// Process exit code (README: exit codes).
    pub exit_code: i32,
}
