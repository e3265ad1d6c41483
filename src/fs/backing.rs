//! System calls on the backing tree: always relative to a directory descriptor, never following a
//! symlink that somebody planted there.

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, RawDir, SeekFrom, Stat, Uid};
use rustix::io::Errno;

use super::attr::Ino;
use super::error::{FsError, FsResult};
use super::names::TEMPORARY;
use crate::crypto;
use crate::crypto::volumekeys::encode_name;

/// `lstat` of an entry.
pub fn stat_at(dir: impl AsFd, entry: &[u8]) -> Result<Stat, Errno> {
    rustix::fs::statat(dir, entry, AtFlags::SYMLINK_NOFOLLOW)
}

/// A descriptor that names an object without opening it.
pub fn open_path(dir: impl AsFd, entry: &[u8]) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(dir, entry, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// `/proc` path of a descriptor: reaches the object itself where a call takes paths only. Borrows,
/// because the path means nothing once the descriptor is closed.
pub fn proc_path(fd: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// Opens a regular file for reading, or reading and writing, leaving its atime alone where the
/// system allows. The kernel has checked the caller's permission already, so a file whose mode
/// denies *us* (0200, 0000) is opened with its mode lifted for a moment.
pub fn open_file(dir: impl AsFd, entry: &[u8], write: bool) -> FsResult<File> {
    let dir = dir.as_fd();
    match open_plain(dir, entry, write) {
        Err(Errno::ACCESS) => {
            let path_fd = open_path(dir, entry)?;
            let st = rustix::fs::fstat(&path_fd)?;
            if st.st_uid != rustix::process::geteuid().as_raw() {
                return Err(Errno::ACCESS.into());
            }
            let path = proc_path(&path_fd);
            rustix::fs::chmod(&path, Mode::from_raw_mode((st.st_mode & 0o7777) | 0o600))?;
            let opened = open_plain(dir, entry, write);
            rustix::fs::chmod(&path, Mode::from_raw_mode(st.st_mode & 0o7777))?;
            Ok(opened?)
        }
        other => Ok(other?),
    }
}

/// Opens a regular file as its mode allows.
pub fn open_plain(dir: impl AsFd, entry: &[u8], write: bool) -> Result<File, Errno> {
    let dir = dir.as_fd();
    let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
    // NONBLOCK: should somebody have put a FIFO here, open must not wait for its writer.
    let flags = access | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = match rustix::fs::openat(dir, entry, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => rustix::fs::openat(dir, entry, flags, Mode::empty())?,
        other => other?,
    };
    Ok(File::from(fd))
}

/// Reads a small helper file whole; `None` if it does not exist.
pub fn read_small(dir: impl AsFd, entry: &[u8], limit: usize) -> FsResult<Option<Vec<u8>>> {
    let file = match open_plain(dir, entry, false) {
        Err(Errno::NOENT) => return Ok(None),
        other => other?,
    };
    let mut bytes = vec![0; limit + 1];
    let mut have = 0;
    loop {
        let n = rustix::io::read(&file, &mut bytes[have..])?;
        have += n;
        if n == 0 || have > limit {
            break;
        }
    }
    if have > limit {
        return Err(FsError::Damaged(format!("helper file larger than {limit} bytes")));
    }
    bytes.truncate(have);
    Ok(Some(bytes))
}

/// Makes a small helper file with this content. What stands there already is left alone if it is
/// the same, and else replaced as a whole, never written through: it may be a link to anything.
/// Returns whether anything was written; it is not flushed.
pub fn write_small(dir: impl AsFd, entry: &[u8], bytes: &[u8]) -> FsResult<bool> {
    let dir = dir.as_fd();
    match create_small(dir, entry, bytes) {
        Err(FsError::Errno(libc::EEXIST)) => {}
        other => return other.map(|()| true),
    }
    if let Ok(Some(same)) = read_small(dir, entry, bytes.len())
        && same == bytes
    {
        return Ok(false);
    }
    let random: [u8; 16] = crypto::random_array();
    let fresh = [TEMPORARY, encode_name(&random).as_bytes()].concat();
    create_small(dir, &fresh, bytes)?;
    let replaced = rustix::fs::renameat(dir, &fresh, dir, entry);
    if replaced.is_err() {
        unlink_if_there(dir, &fresh)?;
    }
    Ok(replaced.map(|()| true)?)
}

fn create_small(dir: impl AsFd, entry: &[u8], bytes: &[u8]) -> FsResult<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, entry, flags, Mode::from_raw_mode(0o444))?;
    let mut rest = bytes;
    while !rest.is_empty() {
        let n = rustix::io::write(&fd, rest)?;
        rest = &rest[n..];
    }
    Ok(())
}

/// Removes an entry if it exists.
pub fn unlink_if_there(dir: impl AsFd, entry: &[u8]) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, entry, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Changes owner and group of an entry, not following symlinks.
pub fn chown_at(
    dir: impl AsFd,
    entry: &[u8],
    uid: Option<u32>,
    gid: Option<u32>,
) -> Result<(), Errno> {
    let flags = if entry.is_empty() { AtFlags::EMPTY_PATH } else { AtFlags::SYMLINK_NOFOLLOW };
    rustix::fs::chownat(dir, entry, uid.map(Uid::from_raw), gid.map(Gid::from_raw), flags)
}

/// Reads as a user would, so that the backing applies its own rule for access times. (Setting the
/// time instead would move the change time as well.)
pub fn read_visibly(fd: impl AsFd) {
    let fd = fd.as_fd();
    let Ok(flags) = rustix::fs::fcntl_getfl(fd) else { return };
    if rustix::fs::fcntl_setfl(fd, flags - OFlags::NOATIME).is_ok() {
        let _ = rustix::io::pread(fd, &mut [0u8; 1], 0);
        let _ = rustix::fs::fcntl_setfl(fd, flags);
    }
}

/// The same for a directory.
pub fn list_visibly(dir: impl AsFd) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if let Ok(fd) = rustix::fs::openat(dir, ".", flags, Mode::empty()) {
        let _ = read_batch(&fd, None);
    }
}

/// One raw directory entry.
pub struct RawEntry {
    /// Backing inode number.
    pub ino: Ino,
    /// Type bits as in `st_mode`, 0 if the backing does not say.
    pub mode: u32,
    /// Position after this entry.
    pub cookie: u64,
    /// Backing name.
    pub name: Vec<u8>,
}

/// Reads the next batch of entries at the descriptor's position, or from `seek`; empty at the end.
pub fn read_batch(fd: impl AsFd, seek: Option<u64>) -> Result<Vec<RawEntry>, Errno> {
    let fd = fd.as_fd();
    if let Some(cookie) = seek {
        rustix::fs::seek(fd, SeekFrom::Start(cookie))?;
    }
    let mut buffer: Vec<u8> = Vec::with_capacity(32 << 10);
    let spare: &mut [MaybeUninit<u8>] = buffer.spare_capacity_mut();
    let mut dir = RawDir::new(fd, spare);
    let mut batch = Vec::new();
    while let Some(entry) = dir.next() {
        let entry = entry?;
        batch.push(RawEntry {
            ino: entry.ino(),
            mode: entry.file_type().as_raw_mode(),
            cookie: entry.next_entry_cookie(),
            name: entry.file_name().to_bytes().to_vec(),
        });
        if dir.is_buffer_empty() {
            break;
        }
    }
    Ok(batch)
}

/// All entry names of a directory but `.` and `..`.
pub fn list(dir: impl AsFd) -> Result<Vec<RawEntry>, Errno> {
    let fd = open_dir(dir)?;
    let mut all = Vec::new();
    loop {
        let batch = read_batch(&fd, None)?;
        if batch.is_empty() {
            return Ok(all);
        }
        all.extend(batch.into_iter().filter(|e| e.name != b"." && e.name != b".."));
    }
}

/// A readable descriptor of the directory itself.
pub fn open_dir(dir: impl AsFd) -> Result<OwnedFd, Errno> {
    let dir = dir.as_fd();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, ".", flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => rustix::fs::openat(dir, ".", flags, Mode::empty()),
        other => other,
    }
}
