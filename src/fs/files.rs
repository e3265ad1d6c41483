//! Open files: content shared per inode, handles, reading, writing, committing.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, Stat, Timespec, Timestamps};

use super::attr::{Caller, FileKind, Ino};
use super::backing;
use super::dirs::Loc;
use super::error::{FsError, FsResult};
use super::inode::{FileState, Inode};
use super::journal::Place;
use super::volume::{Atime, Fh, Opened, Volume, WriteHow, refuse_rolled_back};
use crate::format::header::Header;
use crate::keys::NewDataKey;
use crate::store::{Content, FileLog, FileStorage, Journal, Storage, StoreError};

/// Bytes copied at a time by copy_file_range.
const COPY_STEP: usize = 1 << 20;

/// One open file description.
pub struct FileHandle {
    /// Its inode.
    pub inode: Arc<Inode>,
    /// Opened for writing.
    pub writable: bool,
    /// Reading moves the access time: not with O_NOATIME.
    marks_reads: bool,
    atime_done: AtomicBool,
}

impl Volume {
    /// Opens a regular file. `flags` are open(2) flags as the kernel sends them. May wait for a key.
    pub fn open_file(&self, who: Caller, ino: Ino, flags: i32) -> FsResult<Opened> {
        let inode = self.inode(ino)?;
        if inode.kind != FileKind::Regular {
            return Err(FsError::Errno(libc::EINVAL));
        }
        let write = flags & libc::O_ACCMODE != libc::O_RDONLY;
        if write || flags & libc::O_TRUNC != 0 {
            self.require_writable()?;
        }
        self.hold_content(&inode, write || flags & libc::O_TRUNC != 0)?;
        let mut opened = self.new_handle(&inode, flags);
        opened.keep_cache = !self.must_see_reads(&inode, flags);
        if flags & libc::O_TRUNC != 0
            && let Err(error) = self.truncate_held(who, &inode, 0)
        {
            self.release(opened.fh);
            return Err(error);
        }
        Ok(opened)
    }

    /// Registers a handle whose content is held already.
    pub(super) fn new_handle(&self, inode: &Arc<Inode>, flags: i32) -> Opened {
        let fh = self.new_fh();
        let handle = FileHandle {
            inode: inode.clone(),
            writable: flags & libc::O_ACCMODE != libc::O_RDONLY,
            marks_reads: flags & libc::O_NOATIME == 0,
            atime_done: AtomicBool::new(false),
        };
        self.files.write().insert(fh, Arc::new(handle));
        // The backing directory is ours alone, so what the kernel has cached is still true.
        Opened { fh, keep_cache: true }
    }

    pub(super) fn handle(&self, fh: Fh) -> FsResult<Arc<FileHandle>> {
        self.files.read().get(&fh).cloned().ok_or(FsError::Errno(libc::EBADF))
    }

    /// Makes sure that the inode has content (or, if only read, at least its backing file) open,
    /// and counts one user of it. `drop_content` is the other half.
    pub(super) fn hold_content(&self, inode: &Arc<Inode>, write: bool) -> FsResult<()> {
        self.mend_before_opening(inode);
        let _opening = inode.opening.lock();
        // Whose keys are gone must not be opened; whose could not be given back may get them now.
        self.unlock_content(inode)?;
        let _others = self.opening_files.read();
        if std::mem::take(&mut inode.file.lock().shown_wrong) {
            // The kernel would fill up what it reads to the size it knows: it has to look again.
            return Err(FsError::Errno(libc::ESTALE));
        }
        let (content, storage) = {
            let mut file = inode.file.lock();
            if Self::is_open_enough(&file, write) {
                file.handles += 1;
                return Ok(());
            }
            (file.content.clone(), file.storage.clone())
        };
        let fresh = match storage {
            Some(storage) if !write => storage,
            _ => Arc::new(FileStorage(self.open_backing(inode, write)?)),
        };
        let content = match content {
            Some(content) => {
                content.upgrade(self.logged(inode, &fresh, write)?);
                Some(content)
            }
            None => self.load_content(inode, &fresh, write)?,
        };
        let mtime = fresh.mtime()?;
        let mut file = inode.file.lock();
        if self.flags.writeback && file.handles == 0 {
            file.kernel_mtime = Some(mtime);
        }
        file.storage = Some(fresh);
        file.content = content;
        file.handles += 1;
        drop(file);
        self.open.lock().insert(inode.ino, inode.clone());
        self.lock_if_gone(inode);
        Ok(())
    }

    /// The backing file with its commits going to the journal, or what [`Self::viewed`] gives.
    pub(super) fn logged(
        &self,
        inode: &Arc<Inode>,
        storage: &Arc<FileStorage>,
        write: bool,
    ) -> FsResult<Arc<dyn Storage>> {
        match &self.journal {
            Some(journal) if write => Ok(self.log_of(journal, inode, storage)?),
            _ => Ok(self.viewed(inode.ino, storage)),
        }
    }

    pub(super) fn log_of(
        &self,
        journal: &Arc<Journal>,
        inode: &Arc<Inode>,
        storage: &Arc<FileStorage>,
    ) -> FsResult<Arc<FileLog>> {
        let place = Box::new(Place { inode: Arc::downgrade(inode) });
        let has_state = !storage.is_empty()? || !self.firm.is_new(inode.ino);
        let watched = self.watched(inode.ino, storage);
        Ok(FileLog::new(journal.clone(), watched, place, has_state))
    }

    /// A backing file as the journal of an unclean stop shows it.
    fn viewed(&self, ino: Ino, storage: &Arc<FileStorage>) -> Arc<dyn Storage> {
        match self.recovery.views.get(&ino) {
            Some(view) => view.clone(),
            None => storage.clone(),
        }
    }

    fn is_open_enough(file: &FileState, write: bool) -> bool {
        match &file.content {
            Some(content) => !write || content.is_writable(),
            None => !write && file.storage.is_some(),
        }
    }

    pub(super) fn open_backing(&self, inode: &Inode, write: bool) -> FsResult<File> {
        let file = self.at(inode, |loc| match loc {
            Loc::At(dir, entry) => backing::open_file(dir, entry, write),
            // An unlinked file is reopened through its descriptor.
            Loc::Fd(fd) => {
                let options = std::fs::File::options().read(true).write(write).to_owned();
                Ok(options.open(backing::proc_path(&**fd))?)
            }
        })?;
        let st = rustix::fs::fstat(&file)?;
        let (ino, kind) = self.identify(&st)?;
        if ino != inode.ino || kind != inode.kind {
            return Err(FsError::Damaged("the backing entry is not the object it was".into()));
        }
        Ok(file)
    }

    /// Content of a backing file; `None` for a never-written file that is only read.
    fn load_content(
        &self,
        inode: &Arc<Inode>,
        storage: &Arc<FileStorage>,
        write: bool,
    ) -> FsResult<Option<Arc<Content>>> {
        let dynamic = self.logged(inode, storage, write)?;
        let backing_len = dynamic.len()?;
        if backing_len == 0 {
            if !write {
                return Ok(None);
            }
            let new = self.keyring.for_new_file()?;
            let content = Content::create(self.ctx.clone(), dynamic, new.key, new.slot);
            return Ok(Some(Arc::new(content)));
        }
        let opened = self.open_existing(inode, dynamic, backing_len, write);
        opened.map(|c| Some(Arc::new(c))).map_err(|e| self.note(inode, e))
    }

    fn open_existing(
        &self,
        inode: &Inode,
        storage: Arc<dyn Storage>,
        backing_len: u64,
        write: bool,
    ) -> FsResult<Content> {
        let header = Content::read_header(&self.ctx, &*storage)?;
        refuse_rolled_back(header.wrap_epoch, self.descriptor().params.generation)?;
        self.check_shown_size(inode, &header, backing_len)?;
        let key = self.keyring.data_key(&header.current)?;
        let next = header.next.as_ref().map(|slot| self.keyring.data_key(slot)).transpose()?;
        Ok(Content::open(self.ctx.clone(), storage, header, key, next, write)?)
    }

    /// The kernel may have been told a size from the backing length alone. If the authenticated
    /// size differs, its cached inode must go: a new generation and ESTALE make it look up again.
    fn check_shown_size(&self, inode: &Inode, header: &Header, backing_len: u64) -> FsResult<()> {
        let known = inode.file.lock().true_size;
        let len = self.recovery.shown_len(inode.ino, backing_len);
        let shown = known.unwrap_or(self.ctx.layout.plain_len_floor(len));
        if shown == header.size {
            return Ok(());
        }
        log::warn!(
            "{}: its backing file {} has a length for {} bytes, but the authenticated size is {}; \
             the authenticated size is used",
            self.plain_path(inode),
            self.backing_path_of(inode).display(),
            shown,
            header.size
        );
        inode.file.lock().true_size = Some(header.size);
        inode.generation.fetch_add(1, Ordering::Relaxed);
        Err(FsError::Errno(libc::ESTALE))
    }

    /// Gives up one user of the content; the last one commits and closes it. What cannot be
    /// committed stays in memory and is tried again by `commit_all`.
    pub(super) fn drop_content(&self, inode: &Arc<Inode>) {
        let _opening = inode.opening.lock();
        let content = {
            let mut file = inode.file.lock();
            file.handles = file.handles.saturating_sub(1);
            if file.handles > 0 {
                return;
            }
            file.content.clone()
        };
        if content.is_some_and(|c| self.commit_content(inode, &c).is_err()) {
            return;
        }
        self.close_idle(inode);
    }

    /// Checkpoints when more files wait for one than may stay open. Not under any lock.
    pub(super) fn bound_waiting(&self) {
        let waiting = self.journal.as_ref().map_or(0, |journal| journal.pending_files());
        if waiting > self.waiting_max
            && let Err(error) = self.checkpoint(false)
        {
            log::error!("checkpoint: {error}");
        }
    }

    fn close_idle(&self, inode: &Arc<Inode>) {
        let mut file = inode.file.lock();
        // What waits for a checkpoint is read through its content until then.
        let waits = |c: &Arc<Content>| c.is_dirty() || c.is_pending();
        if file.handles == 0 && !file.content.as_ref().is_some_and(waits) {
            // Committed by us, so the backing length is right again; read-only content keeps the
            // correction it needed.
            if file.content.as_ref().is_some_and(|c| c.is_writable()) {
                file.true_size = None;
            }
            if let Some((key, slot)) = file.content.take().and_then(|c| c.into_unused_key()) {
                self.keyring.unused(NewDataKey { key, slot });
            }
            file.storage = None;
            file.kernel_mtime = None;
            drop(file);
            self.open.lock().remove(&inode.ino);
        }
    }

    /// Closes a removed file that nobody can reach any more. What waits in the journal, or could not be
    /// committed, on a full disk say, has nowhere to go, and keeping it would keep its space. Not
    /// while `moves` is held.
    pub(super) fn abandon_removed(&self, inode: Arc<Inode>) {
        let opening = inode.opening.lock();
        let mut file = inode.file.lock();
        let removed = |storage: &Arc<FileStorage>| {
            rustix::fs::fstat(&storage.0).is_ok_and(|st| st.st_nlink == 0)
        };
        if file.handles == 0 && file.storage.as_ref().is_some_and(removed) {
            if let Some(content) = file.content.take() {
                content.discard();
            }
            file.storage = None;
            self.open.lock().remove(&inode.ino);
        }
        drop((file, opening));
        self.table.prune(inode);
    }

    /// Commits one inode's content; closes it if a failed commit had kept it.
    pub(super) fn commit_inode(&self, inode: &Arc<Inode>) -> FsResult<()> {
        let Some(content) = inode.content() else { return Ok(()) };
        self.commit_content(inode, &content)?;
        let _opening = inode.opening.lock();
        self.close_idle(inode);
        Ok(())
    }

    fn commit_content(&self, inode: &Inode, content: &Content) -> FsResult<()> {
        self.keep_set_id(inode, || content.commit())
    }

    /// Runs what writes to the backing file. For a daemon without privilege the backing drops
    /// set-id bits at every write, also at our own late ones, which are no change of content.
    pub(super) fn keep_set_id<T>(
        &self,
        inode: &Inode,
        act: impl FnOnce() -> Result<T, StoreError>,
    ) -> FsResult<T> {
        let result = act().map_err(|e| self.note(inode, e.into()));
        if self.euid == 0 {
            return result;
        }
        let set_id = inode.set_id.lock();
        let storage = inode.file.lock().storage.clone();
        if let (Some(due @ 1..), Some(storage)) = (*set_id, storage) {
            let now = rustix::fs::fstat(&storage.0)?.st_mode & 0o7777;
            if now & SET_ID != due {
                rustix::fs::fchmod(&storage.0, Mode::from_raw_mode(now & !SET_ID | due))?;
                self.attributes_changed(inode);
            }
        }
        result
    }

    /// Logs damage and key trouble with both paths; gives the error back.
    pub(super) fn note(&self, inode: &Inode, error: FsError) -> FsError {
        if error.is_noteworthy() {
            log::error!(
                "{} (backing file {}): {error}",
                self.plain_path(inode),
                self.backing_path_of(inode).display()
            );
        }
        error
    }

    /// Fills `buf` from `offset`; returns bytes read, short only at the end of the file.
    pub fn read(&self, fh: Fh, offset: u64, buf: &mut [u8]) -> FsResult<usize> {
        let handle = self.handle(fh)?;
        let Some(content) = handle.inode.content() else { return Ok(0) };
        let n =
            content.read(offset, buf).map_err(|e| self.note(&handle.inode, FsError::Store(e)))?;
        self.touch_atime(&handle);
        Ok(n)
    }

    fn touch_atime(&self, handle: &FileHandle) {
        let first = !handle.atime_done.swap(true, Ordering::Relaxed);
        if !handle.marks_reads || (self.flags.atime == Atime::Relatime && !first) {
            return;
        }
        let (storage, content) = {
            let file = handle.inode.file.lock();
            (file.storage.clone(), file.content.clone())
        };
        let Some(storage) = storage else { return };
        if !self.atime_is_due(&storage, content.as_deref()) {
            return;
        }
        backing::read_visibly(&storage.0);
        // The backing does not know yet what has changed, and may see no reason.
        if content.is_some_and(|content| content.pending_mtime().is_some()) {
            let times = Timestamps { last_access: NOW, last_modification: OMIT };
            if let Err(errno) = rustix::fs::futimens(&storage.0, &times) {
                log::debug!("access time: {errno}");
            }
        }
    }

    /// Whether a read now would move the access time.
    fn atime_is_due(&self, storage: &FileStorage, content: Option<&Content>) -> bool {
        let pending = content.and_then(|content| content.pending_mtime());
        let stale = || {
            rustix::fs::fstat(&storage.0).is_ok_and(|st| {
                let atime = (st.st_atime, st.st_atime_nsec as u32);
                atime_is_stale(&st) || pending.is_some_and(|mtime| atime <= mtime)
            })
        };
        self.writable()
            && match self.flags.atime {
                Atime::Noatime => false,
                Atime::Strictatime => true,
                Atime::Relatime => stale(),
            }
    }

    /// Whether the kernel has to ask for what it has cached: it marks no read by itself, so one
    /// that must move the access time has to come here. Not while somebody else may have dirty
    /// pages: dropping those writes them back one by one.
    fn must_see_reads(&self, inode: &Inode, flags: i32) -> bool {
        let marks = flags & libc::O_ACCMODE != libc::O_WRONLY && flags & libc::O_NOATIME == 0;
        if !marks || self.flags.atime == Atime::Noatime {
            return false;
        }
        let (storage, content, dirty) = {
            let file = inode.file.lock();
            let written = file.content.as_ref().is_some_and(|content| content.is_writable());
            (file.storage.clone(), file.content.clone(), written && file.handles > 1)
        };
        !dirty && storage.is_some_and(|storage| self.atime_is_due(&storage, content.as_deref()))
    }

    /// Writes all of `data`.
    pub fn write(&self, fh: Fh, offset: u64, data: &[u8], how: WriteHow) -> FsResult<()> {
        let handle = self.handle(fh)?;
        let inode = &handle.inode;
        let content = self.writable_content(&handle)?;
        if how == WriteHow::DropPrivileges {
            self.drop_set_id(inode)?;
        }
        let done = self.keep_set_id(inode, || content.write(offset, data));
        self.keep_kernel_mtime(inode, &content);
        done
    }

    /// With the writeback cache the kernel owns the modification time: it set it when a program
    /// changed the file, which may be a while ago, and tells us whenever it moves. What it last
    /// told stands, whatever we do to the content meanwhile.
    fn keep_kernel_mtime(&self, inode: &Inode, content: &Content) {
        if let Some(time) = inode.file.lock().kernel_mtime {
            content.override_mtime(time);
        }
    }

    fn writable_content(&self, handle: &FileHandle) -> FsResult<Arc<Content>> {
        // With the writeback cache the kernel may use any handle it has, but only writable ones.
        if !handle.writable {
            return Err(FsError::Errno(libc::EBADF));
        }
        handle.inode.content().ok_or(FsError::Errno(libc::EBADF))
    }

    /// Clears set-id bits unless root changes the content.
    fn drop_set_id_for(&self, who: Caller, inode: &Inode) -> FsResult<()> {
        if who.uid == 0 { Ok(()) } else { self.drop_set_id(inode) }
    }

    /// Clears the set-id bits that a change of content must not leave.
    pub(super) fn drop_set_id(&self, inode: &Inode) -> FsResult<()> {
        let mut set_id = inode.set_id.lock();
        let Some(storage) = inode.file.lock().storage.clone() else { return Ok(()) };
        let mode = rustix::fs::fstat(&storage.0)?.st_mode & 0o7777;
        // S_ISGID without group execute is a lock mode, not a privilege.
        let kill = if mode & 0o2010 == 0o2010 { 0o6000 } else { 0o4000 };
        if mode & kill != 0 {
            rustix::fs::fchmod(&storage.0, Mode::from_raw_mode(mode & !kill))?;
            self.attributes_changed(inode);
            *set_id = Some(mode & !kill & SET_ID);
            self.stale_modes.lock().push(inode.ino);
        }
        Ok(())
    }

    /// close(2): from here on kill -9 of the daemon loses nothing of this file.
    pub fn flush(&self, fh: Fh) -> FsResult<()> {
        let handle = self.handle(fh)?;
        match handle.inode.content() {
            Some(content) if content.is_dirty() => self.commit_content(&handle.inode, &content),
            _ => Ok(()),
        }
    }

    /// fsync(2), or with `datasync` fdatasync(2).
    pub fn fsync(&self, fh: Fh, datasync: bool) -> FsResult<()> {
        let handle = self.handle(fh)?;
        self.make_names_firm(&handle.inode)?;
        let (content, storage) = {
            let file = handle.inode.file.lock();
            (file.content.clone(), file.storage.clone())
        };
        match (content, storage) {
            (Some(content), _) if content.is_writable() => {
                self.keep_set_id(&handle.inode, || content.sync())?;
            }
            (_, Some(storage)) => self.firm.sync_file(handle.inode.ino, &storage)?,
            (_, None) => {}
        }
        self.sync_attributes(&handle.inode, datasync)
    }

    /// The last close of a handle.
    pub fn release(&self, fh: Fh) {
        let Some(handle) = self.files.write().remove(&fh) else { return };
        self.drop_content(&handle.inode);
        let inode = handle.inode.clone();
        drop(handle);
        self.table.prune(inode);
        self.bound_waiting();
    }

    /// Changes the size of a file whose content is held.
    pub(super) fn truncate_held(&self, who: Caller, inode: &Arc<Inode>, size: u64) -> FsResult<()> {
        self.drop_set_id_for(who, inode)?;
        let content = inode.content().ok_or(FsError::Errno(libc::EBADF))?;
        let done = self.keep_set_id(inode, || content.truncate(size));
        self.keep_kernel_mtime(inode, &content);
        done
    }

    /// Runs `act` on the content of a file, open or not.
    pub(super) fn with_content<T>(
        &self,
        inode: &Arc<Inode>,
        act: impl FnOnce(&Content, &FileStorage) -> Result<T, StoreError>,
    ) -> FsResult<T> {
        self.hold_content(inode, true)?;
        let (content, storage) = {
            let file = inode.file.lock();
            (file.content.clone(), file.storage.clone())
        };
        let result = match (content, storage) {
            (Some(content), Some(storage)) => self.keep_set_id(inode, || act(&content, &storage)),
            (None, _) | (_, None) => Err(FsError::Errno(libc::EBADF)),
        };
        self.drop_content(inode);
        result
    }

    /// fallocate(2); `mode` are FALLOC_FL_* bits.
    pub fn fallocate(&self, who: Caller, fh: Fh, offset: u64, len: u64, mode: i32) -> FsResult<()> {
        let handle = self.handle(fh)?;
        let content = self.writable_content(&handle)?;
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let end = offset.checked_add(len).ok_or(FsError::Errno(libc::EFBIG))?;
        self.drop_set_id_for(who, &handle.inode)?;
        let done = match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => content.allocate(offset, len, keep_size),
            libc::FALLOC_FL_PUNCH_HOLE if keep_size => content.punch(offset, len),
            libc::FALLOC_FL_ZERO_RANGE => content.punch(offset, len).and_then(|()| {
                if keep_size || end <= content.size() { Ok(()) } else { content.truncate(end) }
            }),
            _ => return Err(FsError::Errno(libc::EOPNOTSUPP)),
        };
        self.keep_kernel_mtime(&handle.inode, &content);
        done.map_err(|e| self.note(&handle.inode, e.into()))
    }

    /// lseek(2) with SEEK_DATA or SEEK_HOLE.
    pub fn lseek(&self, fh: Fh, offset: i64, whence: i32) -> FsResult<i64> {
        let handle = self.handle(fh)?;
        let start = u64::try_from(offset).map_err(|_| FsError::Errno(libc::ENXIO))?;
        let nothing = FsError::Errno(libc::ENXIO);
        let Some(content) = handle.inode.content() else { return Err(nothing) };
        let found = match whence {
            libc::SEEK_DATA => content.seek_data(start),
            libc::SEEK_HOLE => content.seek_hole(start),
            _ => return Err(FsError::Errno(libc::EINVAL)),
        };
        found.map_err(|e| self.note(&handle.inode, e.into()))?.map(|o| o as i64).ok_or(nothing)
    }

    /// copy_file_range(2): decrypts and encrypts, since every file has its own key. Returns bytes
    /// copied.
    pub fn copy_file_range(
        &self,
        who: Caller,
        fh_in: Fh,
        off_in: u64,
        fh_out: Fh,
        off_out: u64,
        len: u64,
    ) -> FsResult<u64> {
        let (from, target) = (self.handle(fh_in)?, self.handle(fh_out)?);
        let to = self.writable_content(&target)?;
        let Some(source) = from.inode.content() else { return Ok(0) };
        self.drop_set_id_for(who, &target.inode)?;
        let mut buf = vec![0; COPY_STEP.min(len as usize)];
        let mut done = 0;
        while done < len {
            let want = buf.len().min((len - done) as usize);
            let n = source
                .read(off_in + done, &mut buf[..want])
                .map_err(|e| self.note(&from.inode, e.into()))?;
            if n == 0 {
                break;
            }
            to.write(off_out + done, &buf[..n])?;
            done += n as u64;
        }
        self.keep_kernel_mtime(&target.inode, &to);
        Ok(done)
    }

    /// Authenticated size of a file whose backing length cannot be trusted after an unclean stop.
    pub(super) fn checked_size(
        &self,
        inode: &Inode,
        dir: impl AsFd,
        entry: &[u8],
    ) -> FsResult<u64> {
        let dir = dir.as_fd();
        let storage = FileStorage(backing::open_file(dir, entry, false)?);
        let storage = self.viewed(inode.ino, &Arc::new(storage));
        let shown = self.ctx.layout.plain_len_floor(storage.len()?);
        let size = self.size_after_crash(&*storage, dir, entry)?;
        let mut file = inode.file.lock();
        file.size_checked = true;
        if file.shown_wrong {
            // Emptied meanwhile.
            return Ok(0);
        }
        file.true_size = (size != shown).then_some(size);
        Ok(size)
    }
}

/// Set-user-ID and set-group-ID.
pub(super) const SET_ID: u32 = 0o6000;
pub(super) const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: libc::UTIME_NOW as _ };
pub(super) const OMIT: Timespec = Timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT as _ };

/// The relatime rule.
pub(super) fn atime_is_stale(st: &Stat) -> bool {
    let atime = (st.st_atime, st.st_atime_nsec);
    let day_old = rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec - 86_400;
    atime <= (st.st_mtime, st.st_mtime_nsec)
        || atime <= (st.st_ctime, st.st_ctime_nsec)
        || st.st_atime < day_old
}
