//! Directory streams. Positions are the backing's own cookies, so a listing of any length needs one
//! buffer, and goes on where it stopped whatever changes meanwhile.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::fs::{fstat, fsync};

use super::attr::{Attr, FileKind, Ino, ROOT};
use super::backing::{self, RawEntry};
use super::dirs::DirHandle;
use super::error::{FsError, FsResult};
use super::files::atime_is_stale;
use super::firm::Step;
use super::inode::Inode;
use super::volume::{Atime, DirEntry, Fh, Volume};

/// One open directory.
pub struct DirStream {
    inode: Arc<Inode>,
    handle: Arc<DirHandle>,
    fd: OwnedFd,
    batch: Mutex<Batch>,
    atime_done: AtomicBool,
}

/// Entries read from the backing but not yet handed out.
#[derive(Default)]
struct Batch {
    entries: std::collections::VecDeque<RawEntry>,
    /// Position of the first of them.
    position: u64,
}

impl Batch {
    /// Makes the entry at `offset` the first; `None` at the end.
    fn first(&mut self, fd: &OwnedFd, offset: u64) -> FsResult<Option<&RawEntry>> {
        if self.position != offset {
            self.entries = backing::read_batch(fd, Some(offset))?.into();
            self.position = offset;
        } else if self.entries.is_empty() {
            // Offset 0 starts anew: rewinddir shows what is there now.
            self.entries = backing::read_batch(fd, (offset == 0).then_some(0))?.into();
        }
        Ok(self.entries.front())
    }

    fn advance(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.position = entry.cookie;
        }
    }
}

impl Volume {
    /// Opens a directory for listing.
    pub fn opendir(&self, ino: Ino) -> FsResult<Fh> {
        let inode = self.inode(ino)?;
        if inode.kind != FileKind::Directory {
            return Err(FsError::Errno(libc::ENOTDIR));
        }
        let handle = self.dir_handle(&inode)?;
        let fd = self.lifted(&handle, || Ok(backing::open_dir(&handle)?))?;
        let stream = DirStream {
            inode,
            handle,
            fd,
            batch: Mutex::default(),
            atime_done: AtomicBool::new(false),
        };
        let fh = self.new_fh();
        self.streams.write().insert(fh, Arc::new(stream));
        Ok(fh)
    }

    fn stream(&self, fh: Fh) -> FsResult<Arc<DirStream>> {
        self.streams.read().get(&fh).cloned().ok_or(FsError::Errno(libc::EBADF))
    }

    /// Calls `each(next_offset, entry, attr)` from `offset` on, `.` and `..` included, until it
    /// returns false (its buffer is full; that entry will be asked for again). With `plus`, entries
    /// other than `.` and `..` carry attributes, and one lookup is counted if `each` returned true.
    pub fn readdir(
        &self,
        fh: Fh,
        offset: u64,
        plus: bool,
        each: &mut dyn FnMut(u64, &DirEntry, Option<&Attr>) -> bool,
    ) -> FsResult<()> {
        let stream = self.stream(fh)?;
        self.touch_dir_atime(&stream);
        let id = match self.dir_id(&stream.inode, &stream.handle) {
            // A removed directory still lists as empty.
            Err(FsError::Errno(libc::ENOENT)) => None,
            other => other.map_err(|e| self.note(&stream.inode, e))?,
        };
        let mut batch = stream.batch.lock();
        let mut offset = offset;
        while let Some(raw) = batch.first(&stream.fd, offset)? {
            offset = raw.cookie;
            let entry = self.dir_entry(&stream, id, raw)?;
            if let Some(entry) = entry
                && !self.emit(&stream, raw, offset, &entry, plus, each)
            {
                return Ok(());
            }
            batch.advance();
        }
        Ok(())
    }

    fn dir_entry(
        &self,
        stream: &DirStream,
        id: Option<crate::format::DirId>,
        raw: &RawEntry,
    ) -> FsResult<Option<DirEntry>> {
        if raw.name == b"." || raw.name == b".." {
            let ino = if stream.inode.ino == ROOT { ROOT } else { self.show_ino(raw.ino) };
            let kind = FileKind::Directory;
            return Ok(Some(DirEntry { ino, kind, name: raw.name.clone() }));
        }
        let Some(name) = self.plain_name(&stream.inode, &stream.handle, id, &raw.name)? else {
            return Ok(None);
        };
        let kind = match FileKind::from_mode(raw.mode) {
            Some(kind) => kind,
            None => match backing::stat_at(&stream.handle, &raw.name) {
                Ok(st) => FileKind::from_mode(st.st_mode).ok_or(FsError::Errno(libc::EIO))?,
                Err(_) => return Ok(None),
            },
        };
        Ok(Some(DirEntry { ino: self.show_ino(raw.ino), kind, name }))
    }

    /// Hands one entry over; false when the buffer is full.
    fn emit(
        &self,
        stream: &DirStream,
        raw: &RawEntry,
        next: u64,
        entry: &DirEntry,
        plus: bool,
        each: &mut dyn FnMut(u64, &DirEntry, Option<&Attr>) -> bool,
    ) -> bool {
        if !plus || raw.name == b"." || raw.name == b".." {
            return each(next, entry, None);
        }
        let stat = || Ok(backing::stat_at(&stream.handle, &raw.name)?);
        // Removed meanwhile: nothing to show.
        let Ok(st) = self.lifted(&stream.handle, stat) else { return true };
        // Another file system mounted there: nothing to show.
        let Ok((ino, kind)) = self.identify(&st) else { return true };
        let inode = self.table.remember(ino, kind, &stream.inode, &raw.name);
        let attr = self.attr_of(&inode, &st, Some((&stream.handle, &raw.name)));
        drop(inode);
        let taken = match &attr {
            Ok(attr) => each(next, entry, Some(attr)),
            Err(_) => {
                self.forget(ino, 1);
                return each(next, entry, None);
            }
        };
        if !taken {
            self.forget(ino, 1);
        }
        taken
    }

    fn touch_dir_atime(&self, stream: &DirStream) {
        let policy = self.flags.atime;
        let first = !stream.atime_done.swap(true, Ordering::Relaxed);
        if policy == Atime::Noatime || !self.writable() || (!first && policy == Atime::Relatime) {
            return;
        }
        let Ok(st) = fstat(&stream.fd) else { return };
        if policy == Atime::Strictatime || atime_is_stale(&st) {
            backing::list_visibly(&stream.fd);
        }
    }

    /// Whether the kernel may answer from a listing it has cached. Every change comes through it, and
    /// drops the listing; but it marks no access by itself.
    pub fn may_cache_listings(&self) -> bool {
        self.flags.atime != Atime::Strictatime
    }

    /// Makes a directory durable: its entries with all they depend on, and its attributes. With
    /// `datasync` the same: what fdatasync(2) of a directory leaves out is up to each backing.
    pub fn fsyncdir(&self, fh: Fh, _datasync: bool) -> FsResult<()> {
        let stream = self.stream(fh)?;
        if !self.writable() {
            return Ok(());
        }
        self.make_directory_firm(&stream.inode)?;
        fsync(&stream.fd)?;
        self.firm.step(Step::Directory(stream.inode.ino));
        Ok(())
    }

    /// Closes a directory.
    pub fn releasedir(&self, fh: Fh) {
        let removed = self.streams.write().remove(&fh);
        if let Some(stream) = removed {
            let inode = stream.inode.clone();
            drop(stream);
            self.table.prune(inode);
        }
    }
}
