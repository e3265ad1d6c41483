//! getattr and setattr.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, Mode, Stat, Timespec, Timestamps};

use super::attr::{Attr, Caller, FileKind, Ino, SetAttr, SetTime};
use super::backing;
use super::dirs::{DirHandle, Loc};
use super::error::{FsError, FsResult};
use super::files::{NOW, OMIT, SET_ID};
use super::inode::Inode;
use super::names::{LONG_LINK, target_len};
use super::volume::{Fh, Volume};

/// Bytes SIV adds to a sealed symlink target in a sidecar.
const SIV: u64 = 16;

impl Volume {
    /// Attributes of an object; never waits for a key.
    pub fn getattr(&self, ino: Ino, _fh: Option<Fh>) -> FsResult<Attr> {
        let inode = self.inode(ino)?;
        let storage = inode.file.lock().storage.clone();
        match storage {
            Some(storage) => self.attr_of(&inode, &rustix::fs::fstat(&storage.0)?, None),
            None => self.at(&inode, |loc| {
                let st = loc.stat()?;
                self.same_object(&inode, &st)?;
                match loc {
                    Loc::At(dir, entry) => self.attr_of(&inode, &st, Some((dir, entry))),
                    Loc::Fd(_) => self.attr_of(&inode, &st, None),
                }
            }),
        }
    }

    fn same_object(&self, inode: &Inode, st: &Stat) -> FsResult<()> {
        let (ino, kind) = self.identify(st)?;
        if ino == inode.ino && kind == inode.kind {
            Ok(())
        } else {
            Err(FsError::Errno(libc::ESTALE))
        }
    }

    /// Attributes from a backing `stat` and what is in memory. `place` is where the entry stands,
    /// if it has one.
    pub(super) fn attr_of(
        &self,
        inode: &Inode,
        st: &Stat,
        place: Option<(&DirHandle, &[u8])>,
    ) -> FsResult<Attr> {
        let mut attr = Attr::from_stat(st, inode.ino, inode.kind);
        attr.generation = inode.generation.load(Ordering::Relaxed);
        inode.set_id.lock().get_or_insert(u32::from(attr.perm) & SET_ID);
        match inode.kind {
            FileKind::Regular => self.fill_regular(inode, &mut attr, place)?,
            FileKind::Symlink => attr.size = self.link_len(attr.size, place)?,
            FileKind::Directory
            | FileKind::Fifo
            | FileKind::Socket
            | FileKind::Char
            | FileKind::Block => {}
        }
        Ok(attr)
    }

    fn fill_regular(
        &self,
        inode: &Inode,
        attr: &mut Attr,
        place: Option<(&DirHandle, &[u8])>,
    ) -> FsResult<()> {
        let backing_len = self.recovery.shown_len(inode.ino, attr.size);
        let (content, true_size, checked) = {
            let file = inode.file.lock();
            (file.content.clone(), file.true_size, file.size_checked)
        };
        if let Some(content) = content {
            attr.size = content.size();
            if let Some(mtime) = content.pending_mtime() {
                attr.mtime = mtime;
                attr.ctime = attr.ctime.max(mtime);
                // Data may still be in memory: a file must not look empty to `tar` and `du`.
                attr.blocks = attr.blocks.max(u64::from(attr.size > 0));
            }
            return Ok(());
        }
        if let Some(mtime) = self.recovery.views.get(&inode.ino).and_then(|v| v.pending_mtime()) {
            attr.mtime = mtime;
        }
        attr.size = match (true_size, place) {
            (Some(size), _) => size,
            (None, Some((dir, entry))) if self.unclean && !checked && backing_len > 0 => {
                // A damaged header must not hide the file: what the length says is shown then.
                self.checked_size(inode, dir, entry)
                    .unwrap_or_else(|_| self.ctx.layout.plain_len_floor(backing_len))
            }
            _ => self.ctx.layout.plain_len_floor(backing_len),
        };
        Ok(())
    }

    /// Plaintext length of a symlink's target.
    fn link_len(&self, backing_len: u64, place: Option<(&DirHandle, &[u8])>) -> FsResult<u64> {
        if let Some(len) = target_len(backing_len) {
            return Ok(len);
        }
        let Some((dir, entry)) = place else { return Ok(0) };
        let reference = rustix::fs::readlinkat(dir, entry, Vec::new())?.into_bytes();
        // Damage must not look like absence: the link can be seen and removed, reading it fails.
        match backing::stat_at(dir, &reference) {
            Ok(sidecar) if reference.starts_with(LONG_LINK) => {
                Ok((sidecar.st_size as u64).saturating_sub(SIV))
            }
            Ok(_) | Err(_) => Ok(backing_len),
        }
    }

    /// Changes attributes and answers the new ones. Permission was checked by the kernel.
    pub fn setattr(
        &self,
        who: Caller,
        ino: Ino,
        fh: Option<Fh>,
        changes: SetAttr,
    ) -> FsResult<Attr> {
        self.require_writable()?;
        let inode = self.inode(ino)?;
        if let Some(size) = changes.size {
            self.set_size(who, &inode, size)?;
        }
        if changes.uid.is_some() || changes.gid.is_some() {
            self.set_owner(&inode, changes.uid, changes.gid)?;
        }
        if let Some(mode) = changes.mode {
            self.set_mode(&inode, mode)?;
        }
        if changes.atime.is_some() || changes.mtime.is_some() {
            self.set_times(&inode, changes.atime, changes.mtime)?;
        }
        self.getattr(ino, fh)
    }

    fn set_size(&self, who: Caller, inode: &Arc<Inode>, size: u64) -> FsResult<()> {
        match inode.kind {
            FileKind::Regular => {}
            FileKind::Directory => return Err(FsError::Errno(libc::EISDIR)),
            _ => return Err(FsError::Errno(libc::EINVAL)),
        }
        self.hold_content(inode, true)?;
        let done = self.truncate_held(who, inode, size);
        self.drop_content(inode);
        done
    }

    fn set_owner(&self, inode: &Inode, uid: Option<u32>, gid: Option<u32>) -> FsResult<()> {
        // The backing drops set-id bits with it; the next look finds out which.
        let mut set_id = inode.set_id.lock();
        *set_id = None;
        self.at(inode, |loc| match loc {
            Loc::At(dir, entry) => Ok(backing::chown_at(dir, entry, uid, gid)?),
            Loc::Fd(fd) => Ok(backing::chown_at(fd, b"", uid, gid)?),
        })?;
        self.attributes_changed(inode);
        Ok(())
    }

    fn set_mode(&self, inode: &Inode, mode: u32) -> FsResult<()> {
        if inode.kind == FileKind::Symlink {
            return Err(FsError::Errno(libc::EOPNOTSUPP));
        }
        let mut set_id = inode.set_id.lock();
        *set_id = Some(mode & SET_ID);
        let mode = Mode::from_raw_mode(mode & 0o7777);
        let storage = inode.file.lock().storage.clone();
        match storage {
            Some(storage) => rustix::fs::fchmod(&storage.0, mode)?,
            // chmod has no flag that all kernels know for "do not follow": go through a descriptor.
            None => {
                self.at(inode, |loc| Ok(rustix::fs::chmod(backing::proc_path(&loc.pin()?), mode)?))?
            }
        }
        self.attributes_changed(inode);
        Ok(())
    }

    fn set_times(
        &self,
        inode: &Inode,
        atime: Option<SetTime>,
        mtime: Option<SetTime>,
    ) -> FsResult<()> {
        let mut mtime = mtime;
        // A header that is being replaced brings the time with it that the file had before.
        let _opening = inode.content().is_none().then(|| inode.opening.lock());
        if let Some(time) = mtime
            && self.flags.writeback
        {
            let mut file = inode.file.lock();
            file.kernel_mtime = (file.handles > 0).then(|| absolute(time));
        }
        // Content still to be committed would overwrite the backing's mtime: the commit sets it.
        if let (Some(time), Some(content)) = (mtime, inode.content())
            && content.override_mtime(absolute(time))
        {
            mtime = None;
        }
        if atime.is_none() && mtime.is_none() {
            return Ok(());
        }
        let times = Timestamps { last_access: timespec(atime), last_modification: timespec(mtime) };
        self.at(inode, |loc| match loc {
            Loc::At(dir, entry) => {
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                Ok(rustix::fs::utimensat(dir, entry.as_ref(), &times, flags)?)
            }
            Loc::Fd(fd) => Ok(rustix::fs::utimensat(fd, "", &times, AtFlags::EMPTY_PATH)?),
        })?;
        self.attributes_changed(inode);
        Ok(())
    }
}

fn absolute(time: SetTime) -> (i64, u32) {
    match time {
        SetTime::At(at) => at,
        SetTime::Now => {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
            (now.tv_sec, now.tv_nsec as u32)
        }
    }
}

fn timespec(time: Option<SetTime>) -> Timespec {
    match time {
        None => OMIT,
        Some(SetTime::Now) => NOW,
        Some(SetTime::At((sec, nsec))) => Timespec { tv_sec: sec, tv_nsec: nsec as _ },
    }
}
