//! Reading a volume without a mount, for `cat` and `export`.

use std::path::Path;
use std::sync::Arc;

use crate::fs::attr::ROOT;
use crate::fs::{
    Access, Atime, Attr, Caller, DirEntry, Fh, FileKind, FsError, FsResult, Ino, MountFlags,
    Opened, Volume, without_waiting,
};
use crate::keys::UnlockOptions;

use super::exit::{DAMAGE, FAILURE, KEY_UNAVAILABLE, failure};
use super::output::shown;

/// Bytes asked for at a time.
pub const PIECE: usize = 1 << 20;
/// Symbolic links followed before a path counts as a loop, as in the kernel.
const LINKS_MAX: usize = 40;

/// Opens the volume for reading; nothing in the backing directory is changed.
pub fn open(dir: &Path, options: &UnlockOptions) -> anyhow::Result<Arc<Volume>> {
    let flags = MountFlags {
        acl: true,
        atime: Atime::Noatime,
        own_by_caller: false,
        writeback: false,
        rekey_limit: 0,
    };
    Ok(Arc::new(Volume::open(dir, Access::ReadOnly, flags, options)?))
}

/// The sentence and exit code for a failed operation on `path` (a plaintext path).
pub fn fs_failure(path: &[u8], error: &FsError) -> anyhow::Error {
    let code = match error.errno() {
        libc::EIO | libc::EOPNOTSUPP => DAMAGE,
        libc::ENOKEY | libc::EKEYREVOKED => KEY_UNAVAILABLE,
        _ => FAILURE,
    };
    failure(code, format!("{}: {error}", shown(path)))
}

/// Finds the object a plaintext path names, following symbolic links inside the volume.
pub fn resolve(volume: &Volume, path: &[u8]) -> anyhow::Result<Attr> {
    let fail = |error: FsError| fs_failure(path, &error);
    let mut trail = vec![volume.getattr(ROOT, None).map_err(fail)?];
    let mut rest = components(path);
    let mut links = 0;
    while let Some(name) = rest.pop() {
        if name == b".." {
            trail.truncate(trail.len().saturating_sub(1).max(1));
            continue;
        }
        let Some(here) = trail.last() else { break };
        let attr = volume.lookup(here.ino, &name).map_err(fail)?;
        if attr.kind != FileKind::Symlink {
            trail.push(attr);
            continue;
        }
        let target = volume.readlink(attr.ino).map_err(fail)?;
        links += 1;
        if links > LINKS_MAX {
            return Err(fail(FsError::Errno(libc::ELOOP)));
        }
        if target.starts_with(b"/") {
            let text = format!("{} leads out of the volume, to {}", shown(path), shown(&target));
            return Err(failure(FAILURE, text));
        }
        rest.extend(components(&target));
    }
    trail.pop().ok_or_else(|| fail(FsError::Errno(libc::ENOENT)))
}

/// The parts of a path, last one first; empty parts and `.` say nothing.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|byte| *byte == b'/').rev();
    parts.filter(|part| !part.is_empty() && *part != b".").map(<[u8]>::to_vec).collect()
}

/// The entries of a directory, without `.` and `..`, in the order of their names.
pub fn entries(volume: &Volume, ino: Ino) -> FsResult<Vec<DirEntry>> {
    let fh = volume.opendir(ino)?;
    let mut entries = Vec::new();
    let mut offset = 0;
    let result = loop {
        let before = offset;
        let read = volume.readdir(fh, offset, false, &mut |next, entry, _| {
            offset = next;
            if entry.name != b"." && entry.name != b".." {
                entries.push(entry.clone());
            }
            true
        });
        if read.is_err() || offset == before {
            break read;
        }
    };
    volume.releasedir(fh);
    result?;
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// Opens for reading. While the files of a directory are read one after another, the keys of the next
/// ones are asked for already.
fn open_and_look_ahead(volume: &Arc<Volume>, ino: Ino) -> FsResult<Opened> {
    let open = || volume.open_file(Caller::this_process(), ino, libc::O_RDONLY);
    match without_waiting(open) {
        Err(error) if error.need().is_some() => {
            volume.note_opening(ino, true);
            volume.waiting_for_keys(Some(ino), open)
        }
        outcome => {
            volume.note_opening(ino, false);
            outcome
        }
    }
}

/// An open file that is closed on drop.
pub struct OpenFile<'a> {
    volume: &'a Volume,
    /// Handle.
    pub fh: Fh,
}

impl<'a> OpenFile<'a> {
    /// Opens for reading.
    pub fn open(volume: &'a Arc<Volume>, ino: Ino) -> FsResult<Self> {
        let open = || open_and_look_ahead(volume, ino);
        let opened = match open() {
            // The size shown so far was not the authenticated one; we have not used it yet.
            Err(FsError::Errno(libc::ESTALE)) => open()?,
            opened => opened?,
        };
        Ok(Self { volume, fh: opened.fh })
    }

    /// Reads a piece; short only at the end of the file.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> FsResult<usize> {
        self.volume.read(self.fh, offset, buf)
    }

    /// The next stretch of data at or after `offset`; `None` if only holes follow.
    pub fn data(&self, offset: u64) -> FsResult<Option<std::ops::Range<u64>>> {
        let seek = |from: u64, whence| {
            let from = i64::try_from(from).map_err(|_| FsError::Errno(libc::EOVERFLOW))?;
            self.volume.lseek(self.fh, from, whence).map(i64::cast_unsigned)
        };
        match seek(offset, libc::SEEK_DATA) {
            Ok(start) => Ok(Some(start..seek(start, libc::SEEK_HOLE)?)),
            Err(FsError::Errno(libc::ENXIO)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Drop for OpenFile<'_> {
    fn drop(&mut self) {
        self.volume.release(self.fh);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_split_from_the_end() {
        assert_eq!(components(b"/a//./b/"), [b"b".to_vec(), b"a".to_vec()]);
        assert!(components(b"/").is_empty());
        assert_eq!(components(b"../x"), [b"x".to_vec(), b"..".to_vec()]);
    }
}
