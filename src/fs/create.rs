//! Making objects: create, mknod, mkdir, symlink, link.

use std::sync::Arc;

use parking_lot::RwLockReadGuard;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::attr::{Attr, Caller, FileKind, Ino};
use super::backing;
use super::dirs::{DirHandle, Loc};
use super::error::{FsError, FsResult};
use super::flush::{Arrival, parent_of};
use super::inode::Inode;
use super::names::{DIR_FILE, Entry, LONG_LINK};
use super::volume::{Opened, Volume};
use crate::crypto;
use crate::crypto::volumekeys::encode_name;
use crate::format::DirId;
use crate::keys::NewDataKey;
use crate::store::{Content, FileStorage};

/// Where a new object goes.
pub(super) struct Slot {
    pub parent: Arc<Inode>,
    pub dir: Arc<DirHandle>,
    pub entry: Entry,
}

impl Volume {
    /// Resolves where `name` will stand and writes the helper it needs.
    pub(super) fn slot(&self, parent: Ino, name: &[u8]) -> FsResult<Slot> {
        self.require_writable()?;
        let parent = self.inode(parent)?;
        let dir = self.dir_handle(&parent)?;
        let id = self.dir_id_or_new(&parent, &dir).map_err(|e| self.note(&parent, e))?;
        let entry = self.codec()?.entry(id, name)?;
        if let Some(sealed) = &entry.sidecar {
            let place = (parent.ino, parent_of(&parent));
            self.write_helper(&dir, place, &entry.sidecar_name(), sealed)?;
        }
        Ok(Slot { parent, dir, entry })
    }

    /// Runs `make`; a sidecar written for an entry that does not come into being is removed.
    pub(super) fn fill<T>(&self, slot: &Slot, make: impl FnOnce() -> FsResult<T>) -> FsResult<T> {
        let made = make();
        if made.is_err()
            && slot.entry.sidecar.is_some()
            && backing::stat_at(&slot.dir, &slot.entry.backing).is_err()
        {
            self.remove_helper(&slot.dir, slot.parent.ino, &slot.entry.sidecar_name());
        }
        made
    }

    /// Creates and opens a regular file.
    pub fn create(
        &self,
        who: Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        umask: u32,
        flags: i32,
    ) -> FsResult<(Attr, Opened)> {
        // The key first: without one nothing must be left behind.
        self.require_writable()?;
        let (new, others) = self.key_for_new_file()?;
        let made = self.slot(parent, name).and_then(|slot| {
            let made = self.fill(&slot, || self.create_backing(who, &slot, mode, umask))?;
            Ok((slot, made))
        });
        let (slot, (file, st)) = match made {
            Err(error) => {
                drop(others);
                self.keyring.unused(new);
                return self.open_instead(error, who, parent, name, flags);
            }
            Ok(made) => made,
        };
        let (ino, kind) = self.identify(&st)?;
        let inode = self.table.remember(ino, kind, &slot.parent, &slot.entry.backing);
        let storage = Arc::new(FileStorage(file));
        self.firm.born(ino, slot.parent.ino);
        let dynamic = self.logged(&inode, &storage, true)?;
        let content = Content::create(self.ctx.clone(), dynamic, new.key, new.slot);
        {
            let mut state = inode.file.lock();
            state.storage = Some(storage);
            state.content = Some(Arc::new(content));
            state.handles += 1;
            state.kernel_mtime =
                self.flags.writeback.then_some((st.st_mtime, st.st_mtime_nsec as u32));
        }
        self.open.lock().insert(ino, inode.clone());
        drop(others);
        self.lock_if_gone(&inode);
        let opened = self.new_handle(&inode, flags);
        let attr = self.attr_of(&inode, &st, None)?;
        Ok((attr, opened))
    }

    /// A key for the volume's present recipients, which stay so until the guard goes: whoever changes
    /// them looks through the open files afterwards.
    fn key_for_new_file(&self) -> FsResult<(NewDataKey, RwLockReadGuard<'_, ()>)> {
        loop {
            let new = self.keyring.for_new_file()?;
            let others = self.opening_files.read();
            if self.keyring.is_current(&new.slot) {
                return Ok((new, others));
            }
        }
    }

    /// What was to be made may be there by now; without O_EXCL it is opened.
    fn open_instead(
        &self,
        error: FsError,
        who: Caller,
        parent: Ino,
        name: &[u8],
        flags: i32,
    ) -> FsResult<(Attr, Opened)> {
        if !matches!(error, FsError::Errno(libc::EEXIST)) || flags & libc::O_EXCL != 0 {
            return Err(error);
        }
        let attr = self.lookup(parent, name)?;
        let opened =
            self.open_file(who, attr.ino, flags).inspect_err(|_| self.forget(attr.ino, 1))?;
        Ok((self.getattr(attr.ino, None)?, opened))
    }

    fn create_backing(
        &self,
        who: Caller,
        slot: &Slot,
        mode: u32,
        umask: u32,
    ) -> FsResult<(std::fs::File, Stat)> {
        let mode = self.creation_mode(slot, mode, umask);
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let entry = &slot.entry.backing;
        let fd = rustix::fs::openat(
            &slot.dir,
            entry,
            flags | OFlags::NOATIME,
            Mode::from_raw_mode(mode),
        )?;
        let st = self.settle_or_remove(who, slot, mode, rustix::fs::fstat(&fd)?)?;
        Ok((std::fs::File::from(fd), st))
    }

    /// With `-o acl` the kernel leaves the umask to us, because a default ACL replaces it.
    fn creation_mode(&self, slot: &Slot, mode: u32, umask: u32) -> u32 {
        let mode = mode & 0o7777;
        if !self.flags.acl || self.has_default_acl(&slot.dir) { mode } else { mode & !umask }
    }

    /// An object that cannot be made as asked must not stay. (A directory is its maker's to remove.)
    fn settle_or_remove(&self, who: Caller, slot: &Slot, mode: u32, st: Stat) -> FsResult<Stat> {
        self.settle(who, slot, mode, st).inspect_err(|_| {
            let _ = backing::unlink_if_there(&slot.dir, &slot.entry.backing);
        })
    }

    /// Gives a new object to its creator and restores the mode bits that this takes away.
    fn settle(&self, who: Caller, slot: &Slot, mode: u32, st: Stat) -> FsResult<Stat> {
        let entry = &slot.entry.backing;
        let is_link = st.st_mode & libc::S_IFMT == libc::S_IFLNK;
        let mut changed = false;
        if self.flags.own_by_caller && (who.uid != self.euid || who.gid != self.egid) {
            let parent = rustix::fs::fstat(&slot.dir)?;
            // In a set-group-id directory the backing chose the group already.
            let gid = (parent.st_mode & 0o2000 == 0).then_some(who.gid);
            backing::chown_at(&slot.dir, entry, Some(who.uid), gid)?;
            changed = true;
        }
        // chown drops set-id bits, and so may creation itself for an unprivileged process.
        let wanted = mode & 0o6000;
        let is_dir = st.st_mode & libc::S_IFMT == libc::S_IFDIR;
        if !is_link && !is_dir && wanted != 0 {
            let fd = backing::open_path(&slot.dir, entry)?;
            let now = rustix::fs::fstat(&fd)?.st_mode & 0o7777;
            let exact = Mode::from_raw_mode(now | wanted);
            rustix::fs::chmod(backing::proc_path(&fd), exact)?;
            changed = true;
        }
        Ok(if changed { backing::stat_at(&slot.dir, entry)? } else { st })
    }

    fn finish(&self, who: Caller, slot: &Slot, mode: u32) -> FsResult<Attr> {
        let st = backing::stat_at(&slot.dir, &slot.entry.backing)?;
        let st = self.settle_or_remove(who, slot, mode, st)?;
        let (ino, kind) = self.identify(&st)?;
        if kind != FileKind::Directory {
            self.firm.born(ino, slot.parent.ino);
        }
        self.admit(slot, &st)
    }

    fn admit(&self, slot: &Slot, st: &Stat) -> FsResult<Attr> {
        let (ino, kind) = self.identify(st)?;
        let inode = self.table.remember(ino, kind, &slot.parent, &slot.entry.backing);
        self.attr_of(&inode, st, Some((&slot.dir, &slot.entry.backing)))
    }

    /// Creates a regular file without opening it, a FIFO, a socket or a device node.
    pub fn mknod(
        &self,
        who: Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        umask: u32,
        rdev: u64,
    ) -> FsResult<Attr> {
        let kind = match mode & libc::S_IFMT {
            0 => FileType::RegularFile,
            bits => FileType::from_raw_mode(bits),
        };
        if matches!(kind, FileType::Directory | FileType::Symlink | FileType::Unknown) {
            return Err(FsError::Errno(libc::EINVAL));
        }
        let slot = self.slot(parent, name)?;
        self.fill(&slot, || {
            let mode = self.creation_mode(&slot, mode, umask);
            let raw = Mode::from_raw_mode(mode);
            rustix::fs::mknodat(&slot.dir, &slot.entry.backing, kind, raw, rdev)?;
            self.finish(who, &slot, mode)
        })
    }

    /// Makes a directory with its `kmsfs.dir`.
    pub fn mkdir(
        &self,
        who: Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        umask: u32,
    ) -> FsResult<Attr> {
        let slot = self.slot(parent, name)?;
        self.fill(&slot, || {
            let mode = self.creation_mode(&slot, mode, umask);
            // Our own helper goes inside, whatever the mode says about the owner.
            let lifted = mode | 0o700;
            let entry = &slot.entry.backing;
            rustix::fs::mkdirat(&slot.dir, entry, Mode::from_raw_mode(lifted))?;
            let made = self.furnish(who, &slot, mode, lifted);
            if made.is_err() {
                self.unmake(&slot);
            }
            made
        })
    }

    fn furnish(&self, who: Caller, slot: &Slot, mode: u32, lifted: u32) -> FsResult<Attr> {
        let fd = backing::open_path(&slot.dir, &slot.entry.backing)?;
        let (ino, _) = self.identify(&rustix::fs::fstat(&fd)?)?;
        let (handle, id) = (DirHandle(fd), DirId(crypto::random_array()));
        self.write_dir_file(&handle, (ino, slot.parent.ino), id)?;
        if mode != lifted {
            let now = rustix::fs::fstat(&handle)?.st_mode & 0o7777;
            let exact = Mode::from_raw_mode(now & (!0o700 | mode));
            rustix::fs::chmod(backing::proc_path(&handle), exact)?;
        }
        let attr = self.finish(who, slot, mode)?;
        if let Some(inode) = self.table.get(attr.ino) {
            inode.names.lock().dir_id = Some(id);
        }
        Ok(attr)
    }

    fn unmake(&self, slot: &Slot) {
        let entry = &slot.entry.backing;
        if let Ok(fd) = backing::open_path(&slot.dir, entry) {
            let _ = backing::unlink_if_there(&fd, DIR_FILE);
            if let Ok(st) = rustix::fs::fstat(&fd) {
                self.firm.dropped_dir(self.show_ino(st.st_ino));
            }
        }
        let _ = rustix::fs::unlinkat(&slot.dir, entry, AtFlags::REMOVEDIR);
    }

    /// Makes a symbolic link.
    pub fn symlink(&self, who: Caller, parent: Ino, name: &[u8], target: &[u8]) -> FsResult<Attr> {
        let slot = self.slot(parent, name)?;
        let (text, sealed) = self.codec()?.seal_target(target)?;
        self.fill(&slot, || {
            let entry = &slot.entry.backing;
            match rustix::fs::symlinkat(&text, &slot.dir, entry) {
                Err(Errno::NAMETOOLONG) => self.long_symlink(&slot, &sealed)?,
                other => other?,
            }
            self.finish(who, &slot, 0)
        })
    }

    /// The target goes into a sidecar; the backing symlink names it.
    fn long_symlink(&self, slot: &Slot, sealed: &[u8]) -> FsResult<()> {
        let random: [u8; 16] = crypto::random_array();
        let reference = [LONG_LINK, encode_name(&random).as_bytes()].concat();
        let place = (slot.parent.ino, parent_of(&slot.parent));
        self.write_helper(&slot.dir, place, &reference, sealed)?;
        let made = rustix::fs::symlinkat(&reference, &slot.dir, &slot.entry.backing);
        if made.is_err() {
            self.remove_helper(&slot.dir, slot.parent.ino, &reference);
        }
        Ok(made?)
    }

    /// Target of a symbolic link.
    pub fn readlink(&self, ino: Ino) -> FsResult<Vec<u8>> {
        let inode = self.inode(ino)?;
        if inode.kind != FileKind::Symlink {
            return Err(FsError::Errno(libc::EINVAL));
        }
        if let Some(target) = inode.names.lock().target.clone() {
            return Ok(target);
        }
        self.at(&inode, |loc| self.read_target(loc)).map_err(|e| self.note(&inode, e))
    }

    fn read_target(&self, loc: &Loc) -> FsResult<Vec<u8>> {
        let text = match loc {
            Loc::At(dir, entry) => rustix::fs::readlinkat(dir, entry.as_ref(), Vec::new())?,
            Loc::Fd(fd) => rustix::fs::readlinkat(fd, "", Vec::new())?,
        };
        let text = text.into_bytes();
        let codec = self.codec()?;
        if !text.starts_with(LONG_LINK) {
            return codec.open_target(&codec.decode_target(&text)?);
        }
        let sidecar = match loc {
            Loc::At(dir, _) => backing::read_small(dir, &text, 8192)?,
            Loc::Fd(_) => None,
        };
        let missing = || FsError::Damaged("the sidecar of a long symlink target is missing".into());
        codec.open_target(&sidecar.ok_or_else(missing)?)
    }

    /// Makes a hard link.
    pub fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> FsResult<Attr> {
        let inode = self.inode(ino)?;
        let slot = self.slot(parent, name)?;
        self.fill(&slot, || {
            let entry = &slot.entry.backing;
            let link = self.at(&inode, |loc| match loc {
                Loc::At(dir, old) => {
                    self.share_link_sidecar(&inode, (dir, old), (&slot.dir, &slot.parent))
                }
                Loc::Fd(_) => Ok(None),
            })?;
            let (parent, link) = (&slot.parent, link.as_deref());
            let arrival = Arrival { inode: &inode, parent, entry, link };
            self.make_arrival_firm(&arrival)?;
            self.at(&inode, |loc| link_at(loc, &slot))?;
            let st = backing::stat_at(&slot.dir, entry)?;
            let attr = self.admit(&slot, &st)?;
            // An fsync that did not see the new name yet may have ended meanwhile, and from now on
            // the old name may go.
            self.linked(&arrival).inspect_err(|_| self.forget(attr.ino, 1))?;
            Ok(attr)
        })
    }

    /// A long symlink that gets a name in another directory needs its sidecar there as well.
    /// Returns the sidecar's name if there is one.
    pub(super) fn share_link_sidecar(
        &self,
        inode: &Inode,
        (from, entry): (&DirHandle, &[u8]),
        (to, parent): (&DirHandle, &Inode),
    ) -> FsResult<Option<Vec<u8>>> {
        if inode.kind != FileKind::Symlink {
            return Ok(None);
        }
        let text = rustix::fs::readlinkat(from, entry, Vec::new())?.into_bytes();
        if !text.starts_with(LONG_LINK) {
            return Ok(None);
        }
        match rustix::fs::linkat(from, &text, to, &text, AtFlags::empty()) {
            Ok(()) => self.firm.wrote(parent_of(parent), parent.ino, &text),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(Some(text))
    }
}

fn link_at(loc: &Loc, slot: &Slot) -> FsResult<()> {
    let entry = &slot.entry.backing;
    match loc {
        Loc::At(dir, old) => {
            rustix::fs::linkat(dir, old.as_ref(), &slot.dir, entry, AtFlags::empty())?;
        }
        Loc::Fd(fd) => {
            let path = backing::proc_path(&**fd);
            let flags = AtFlags::SYMLINK_FOLLOW;
            rustix::fs::linkat(rustix::fs::CWD, path, &slot.dir, entry, flags)?;
        }
    }
    Ok(())
}
