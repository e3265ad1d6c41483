//! What an unclean stop leaves of files that nobody had been promised yet.
//!
//! Growth reaches the disk before the commit that needs it: a backing file may be longer than its
//! committed state. And a new file goes straight to its place: of one that was never flushed, any
//! part may be there. The first is cut. The second is made an empty file again, as other file
//! systems show it, so that whoever left it (a database its shared memory, an editor its lock) can
//! use the name. A new directory whose `kmsfs.dir` never reached the disk gets another: nothing in it
//! was promised either.
//!
//! "New" is what the backing file system says was made since the last clean point, which is the time
//! of the session's marker. Only while that marker stands is anything looked into: as files are
//! opened, and by a walk in the background. The marker goes at the end of a session in which the walk
//! has come through. Every file that is emptied is logged.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, Stat, StatxFlags, Timestamps, statx};

use super::backing;
use super::dirs::{DirHandle, Loc};
use super::error::FsResult;
use super::files::{NOW, OMIT};
use super::inode::Inode;
use super::journal::walk_regular;
use super::names::DIR_FILE;
use super::volume::{SESSION_NAME, Volume};
use crate::format::header::Header;
use crate::store::recover::is_unwritten;
use crate::store::{Content, FileStorage, Storage, StoreError};

/// Clocks may have been put back a little since the marker was made, seconds.
const SLACK: i64 = 3600;

/// What the header of a backing file says of the rest.
enum State {
    Fits,
    /// Longer than its committed state.
    Long(u64),
    /// New, and not all of it is there.
    Torn(StoreError),
}

impl Volume {
    /// Puts right what changed since the last clean point and is not open. Without an unclean stop
    /// there is nothing to do. Takes long in a large tree; programs may use the volume meanwhile.
    pub fn mend_leftovers(&self) {
        if !self.unclean || !self.writable() || self.is_mended() {
            return;
        }
        let mut all = true;
        let walked = walk_regular(&self.root, &mut |dir, entry, st, path| {
            if st.st_ctime < self.clean_until.0.saturating_sub(SLACK) || st.st_size == 0 {
                return;
            }
            match self.mend(dir, entry, st) {
                Ok(done) => all &= done,
                Err(error) => {
                    log::warn!("{}: not looked into after the crash: {error}", path.display());
                    all = false;
                }
            }
        });
        match walked.and_then(|()| self.flush_backing()) {
            Ok(()) if all => self.clean_point(),
            Ok(()) => {}
            Err(error) => log::warn!("not everything was looked into after the crash: {error}"),
        }
    }

    pub(super) fn is_mended(&self) -> bool {
        !self.unclean || self.mended.load(Ordering::Acquire)
    }

    /// From here on only what changes now has to be looked into after another unclean stop.
    fn clean_point(&self) {
        let times = Timestamps { last_access: OMIT, last_modification: NOW };
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        if let Err(errno) = rustix::fs::utimensat(&self.root, SESSION_NAME, &times, flags) {
            log::debug!("time of the session's marker: {errno}");
        }
        self.mended.store(true, Ordering::Release);
    }

    /// Looks into a file that is about to be opened. Not while anything is locked.
    pub(super) fn mend_before_opening(&self, inode: &Inode) {
        if self.is_mended() || !self.writable() || inode.content().is_some() {
            return;
        }
        let place = self.at(inode, |loc| match loc {
            Loc::At(dir, entry) => Ok(Some((dir.clone(), entry.clone(), loc.stat()?))),
            Loc::Fd(_) => Ok(None),
        });
        if let Ok(Some((dir, entry, st))) = place
            && st.st_size > 0
            && let Err(error) = self.mend(&*dir, &entry, &st)
        {
            log::debug!("{}: {error}", self.plain_path(inode));
        }
    }

    /// Puts one file right; false if it is open and has to wait for the end of the session.
    fn mend(&self, dir: impl AsFd, entry: &[u8], st: &Stat) -> FsResult<bool> {
        let dir = dir.as_fd();
        // Nobody opens a file while it changes here.
        let _alone = self.opening_files.write();
        if self.open.lock().contains_key(&self.show_ino(st.st_ino)) {
            return Ok(false);
        }
        let storage = Arc::new(FileStorage(backing::open_file(dir, entry, false)?));
        let state = self.state_of(&storage, || self.is_new_since(dir, entry))?;
        let len = match state {
            State::Fits => return Ok(true),
            State::Long(len) => len,
            State::Torn(why) => {
                log::warn!(
                    "backing file {} was new and had not reached the disk when the last mount ended \
                     ({why}): it is empty now",
                    super::dirs::lossy(entry)
                );
                0
            }
        };
        let mtime = storage.mtime()?;
        let storage = FileStorage(backing::open_file(dir, entry, true)?);
        storage.set_len(len)?;
        storage.set_mtime(mtime)?;
        Ok(true)
    }

    fn state_of(&self, storage: &Arc<FileStorage>, is_new: impl Fn() -> bool) -> FsResult<State> {
        let header = match Content::read_header(&self.ctx, &**storage) {
            Ok(header) => header,
            // Growth of a file that was never committed.
            Err(StoreError::Header(_)) if is_unwritten(&**storage)? => return Ok(State::Long(0)),
            Err(error @ StoreError::Header(_)) if is_new() => return Ok(State::Torn(error)),
            // Damage is for whoever reads it; no length would be right.
            Err(StoreError::Header(_)) => return Ok(State::Fits),
            Err(error) => return Err(error.into()),
        };
        let len = self.ctx.layout.backing_len(header.size);
        if is_new()
            && let Some(error) = self.first_damage(storage, header)?
        {
            return Ok(State::Torn(error));
        }
        Ok(if storage.len()? > len { State::Long(len) } else { State::Fits })
    }

    /// Reads all of a file until something does not authenticate.
    fn first_damage(
        &self,
        storage: &Arc<FileStorage>,
        header: Header,
    ) -> FsResult<Option<StoreError>> {
        let key = self.keyring.data_key(&header.current)?;
        let next = header.next.as_ref().map(|slot| self.keyring.data_key(slot)).transpose()?;
        let opened = Content::open(self.ctx.clone(), storage.clone(), header, key, next, false);
        let content = match opened {
            Ok(content) => content,
            Err(StoreError::Io(error)) => return Err(error.into()),
            Err(error) => return Ok(Some(error)),
        };
        let mut first = None;
        content.verify(&mut |error| {
            first.get_or_insert(error);
        })?;
        match first {
            Some(StoreError::Io(error)) => Err(error.into()),
            other => Ok(other),
        }
    }

    /// Was this made since the last clean point? Not where the backing does not say.
    fn is_new_since(&self, dir: impl AsFd, entry: &[u8]) -> bool {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
        statx(dir, entry, flags, StatxFlags::BTIME).is_ok_and(|st| {
            let known = st.stx_mask & StatxFlags::BTIME.bits() != 0;
            known && (st.stx_btime.tv_sec, st.stx_btime.tv_nsec) >= self.clean_until
        })
    }

    /// Gives another id to a directory whose own never reached the disk; false if it is damaged.
    pub(super) fn mend_directory(&self, handle: &DirHandle) -> FsResult<bool> {
        if self.is_mended() || !self.writable() || !self.is_new_since(handle, b"") {
            return Ok(false);
        }
        let lost = match backing::read_small(handle, DIR_FILE, 4096)? {
            Some(bytes) => crate::format::bytes::is_zero(&bytes),
            None => true,
        };
        if lost {
            log::warn!(
                "a directory was new and its kmsfs.dir had not reached the disk when the last mount \
                 ended: what was in it has no names any more; it is empty now"
            );
        }
        Ok(lost)
    }

    /// May the marker of an unclean stop go? Tries again what was open before.
    pub(super) fn marker_may_go(&self) -> bool {
        self.mend_leftovers();
        self.is_mended()
    }
}
