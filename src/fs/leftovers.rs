//! What an unclean stop leaves of files that nobody had been promised yet.
//!
//! Growth reaches the disk before the commit that needs it: a backing file may be longer than its
//! committed state. And a new file goes straight to its place: of one that was never flushed, any
//! part may be there. The first is cut. The second is made an empty file again, as other file
//! systems show it, so that whoever left it (a database its shared memory, an editor its lock) can
//! use the name. A new directory whose `kmsfs.dir` never reached the disk gets another, as nothing in
//! it was promised either; a new object that lost its long name gets a short one.
//!
//! "New" is what the backing file system says was made since the last clean point, which is the time
//! of the session's marker. In a copied tree, where everything is new, nothing counts as such. Only
//! while that marker stands is anything looked into: as files are opened, and by a walk in the
//! background. The marker goes at the end of a session in which the walk has come through. Every file
//! that is emptied is logged.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, RenameFlags, Stat, StatxFlags, Timestamps, statx};

use super::attr::{FileKind, Ino};
use super::backing;
use super::dirs::{DirHandle, Loc};
use super::error::{FsError, FsResult};
use super::files::{NOW, OMIT};
use super::inode::Inode;
use super::journal::walk_all;
use super::names::{DIR_FILE, Listed, sidecar_of};
use super::volume::{SESSION_NAME, Volume};
use crate::crypto;
use crate::crypto::volumekeys::encode_name;
use crate::format::DirId;
use crate::format::bytes::is_zero;
use crate::format::header::Header;
use crate::store::content::Time;
use crate::store::recover::{is_unwritten, object_of};
use crate::store::{Content, FileStorage, Storage, StoreError};

/// Begins the name of an object whose own was lost.
const LOST_NAME: &str = "lost-name-";
/// Time of a clean point that is not known.
pub(super) const NEVER: (i64, u32) = (i64::MAX, 0);
/// Longest text of a marker.
const MARKER_MAX: usize = 4096;
/// Clocks may have been put back a little since the marker was made, seconds.
const SLACK: i64 = 3600;

/// What became of a file that was looked into.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mended {
    /// It is right now; its size may be another than its length said.
    Yes,
    /// It is empty now.
    Emptied,
    /// It is open, and has to wait for the end of the session.
    Later,
}

/// What the header of a backing file says of the rest.
enum State {
    Fits,
    /// Longer than its committed state.
    Long(u64),
    /// New, and not all of it is there.
    Torn(StoreError),
}

/// Text of the marker of a session in `root`.
pub(super) fn marker(root: &OwnedFd) -> String {
    format!("pid {}\n{}\n", std::process::id(), identity(root))
}

/// What a copy of a directory does not have in common with it.
fn identity(root: &OwnedFd) -> String {
    let (ino, (seconds, nanos)) = born(root, b"").unwrap_or_default();
    format!("root {ino} {seconds}.{nanos:09}")
}

/// Inode number and time of birth, where the backing tells it.
fn born(dir: impl AsFd, entry: &[u8]) -> Option<(u64, Time)> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
    let st = statx(dir, entry, flags, StatxFlags::BTIME | StatxFlags::INO).ok()?;
    let known = st.stx_mask & StatxFlags::BTIME.bits() != 0;
    known.then_some((st.stx_ino, (st.stx_btime.tv_sec, st.stx_btime.tv_nsec)))
}

/// The last clean point, if the marker in `root` was made there. In a copy (a backup that was put
/// back) everything is new, and nothing is what nobody had been promised.
pub(super) fn clean_point_of(root: &OwnedFd, marked: Time) -> Time {
    let entry = SESSION_NAME.as_bytes();
    let text = backing::read_small(root, entry, MARKER_MAX).ok().flatten().unwrap_or_default();
    let ours = text.split(|b| *b == b'\n').any(|line| line == identity(root).as_bytes());
    // Copied back to where it was made, it is younger than its time says.
    let stayed = born(root, entry).is_some_and(|(_, at)| at <= (marked.0 + 1, marked.1));
    if ours && stayed { marked } else { NEVER }
}

impl Volume {
    /// Puts right what changed since the last clean point and is not open. Without an unclean stop
    /// there is nothing to do. Takes long in a large tree; programs may use the volume meanwhile.
    pub fn mend_leftovers(&self) {
        if !self.unclean || !self.writable() || self.is_mended() {
            return;
        }
        let mut all = true;
        // Without a marker of its own nothing counts as new, and every length is looked at.
        let since = match self.clean_until {
            NEVER => i64::MIN,
            (seconds, _) => seconds.saturating_sub(SLACK),
        };
        let walked = walk_all(&self.root, &mut |dir, entry, st, path| {
            if st.st_ctime < since {
                return;
            }
            match self.mend_ours(dir, entry, st) {
                Ok(mended) => all &= mended != Mended::Later,
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

    /// Looks into a file that is about to be opened. Not while anything is locked. If it is not what
    /// the kernel has been told, the kernel has to look it up again.
    pub(super) fn mend_before_opening(&self, inode: &Inode) -> FsResult<()> {
        if self.is_mended() || !self.writable() || inode.content().is_some() {
            return Ok(());
        }
        let place = self.at(inode, |loc| match loc {
            Loc::At(dir, entry) => Ok(Some((dir.clone(), entry.clone(), loc.stat()?))),
            Loc::Fd(_) => Ok(None),
        });
        let Ok(Some((dir, entry, st))) = place else { return Ok(()) };
        if st.st_size == 0 || self.show_ino(st.st_ino) != inode.ino {
            return Ok(());
        }
        match self.mend(&*dir, &entry, &st) {
            Ok(Mended::Emptied) => {}
            Ok(Mended::Yes | Mended::Later) => return Ok(()),
            Err(error) => {
                log::debug!("{}: {error}", self.plain_path(inode));
                return Ok(());
            }
        }
        let told = inode.file.lock().true_size.replace(0);
        if told == Some(0) {
            return Ok(());
        }
        inode.generation.fetch_add(1, Ordering::Relaxed);
        Err(FsError::Errno(libc::ESTALE))
    }

    /// Size of a file whose length says nothing yet, as far as that can be told without its key.
    pub(super) fn size_after_crash(
        &self,
        storage: &dyn Storage,
        dir: impl AsFd,
        entry: &[u8],
    ) -> FsResult<u64> {
        match Content::read_header(&self.ctx, storage) {
            Ok(header) => Ok(header.size),
            Err(StoreError::Header(_)) if is_unwritten(storage)? => Ok(0),
            Err(StoreError::Header(_))
                if object_of(&self.ctx, storage).is_some() && self.is_new_since(dir, entry) =>
            {
                Ok(0)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// [`Self::mend`] for what a walk finds: only what has a name of ours is touched.
    fn mend_ours(&self, dir: &OwnedFd, entry: &[u8], st: &Stat) -> FsResult<Mended> {
        let handle = DirHandle(dir.try_clone()?);
        let id = self.read_dir_id(&handle).ok();
        let ours = match self.codec()?.listed(id, entry) {
            Listed::Name(_) => true,
            Listed::Long => match self.read_long_name(&handle, id, entry) {
                Ok(_) => true,
                Err(_) => return self.mend_name(&handle, id, entry),
            },
            Listed::Dot | Listed::Helper | Listed::Unreadable => false,
        };
        match FileKind::from_mode(st.st_mode).filter(|_| ours) {
            Some(FileKind::Regular) if st.st_size > 0 => self.mend(dir, entry, st),
            Some(FileKind::Directory) => {
                let below = DirHandle(backing::open_path(dir, entry)?);
                let above = rustix::fs::fstat(dir)?.st_ino;
                let at = (self.show_ino(st.st_ino), self.show_ino(above));
                if !self.holds_only_helpers(&below)? {
                    self.mend_directory(&below, at)?;
                }
                Ok(Mended::Yes)
            }
            _ => Ok(Mended::Yes),
        }
    }

    /// A new object whose long name never reached the disk gets another name.
    fn mend_name(&self, dir: &DirHandle, id: Option<DirId>, entry: &[u8]) -> FsResult<Mended> {
        let sidecar = backing::read_small(dir, &sidecar_of(entry), 4096)?;
        let lost = sidecar.is_none_or(|bytes| is_zero(&bytes));
        let Some(id) = id.filter(|_| lost && self.is_new_since(dir, entry)) else {
            return Ok(Mended::Yes);
        };
        self.give_name(dir, id, entry)?;
        backing::unlink_if_there(dir, &sidecar_of(entry))?;
        Ok(Mended::Yes)
    }

    fn give_name(&self, dir: &DirHandle, id: DirId, entry: &[u8]) -> FsResult<()> {
        let random: [u8; 6] = crypto::random_array();
        let name = format!("{LOST_NAME}{}", encode_name(&random));
        let new = self.codec()?.entry(id, name.as_bytes())?;
        rustix::fs::renameat_with(dir, entry, dir, &new.backing, RenameFlags::NOREPLACE)?;
        log::warn!(
            "backing entry {} was new and its name had not reached the disk when the last mount \
             ended: it is called {name} now",
            super::dirs::lossy(entry)
        );
        Ok(())
    }

    /// Puts one file right.
    fn mend(&self, dir: impl AsFd, entry: &[u8], st: &Stat) -> FsResult<Mended> {
        let dir = dir.as_fd();
        // Nobody opens a file while it changes here.
        let _alone = self.opening_files.write();
        if self.open.lock().contains_key(&self.show_ino(st.st_ino)) {
            return Ok(Mended::Later);
        }
        let storage = Arc::new(FileStorage(backing::open_file(dir, entry, false)?));
        let state = self.state_of(&storage, || self.is_new_since(dir, entry))?;
        let len = match state {
            State::Fits => return Ok(Mended::Yes),
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
        Ok(if len == 0 { Mended::Emptied } else { Mended::Yes })
    }

    fn state_of(&self, storage: &Arc<FileStorage>, is_new: impl Fn() -> bool) -> FsResult<State> {
        let header = match Content::read_header(&self.ctx, &**storage) {
            Ok(header) => header,
            // Growth of a file that was never committed.
            Err(StoreError::Header(_)) if is_unwritten(&**storage)? => return Ok(State::Long(0)),
            Err(error @ StoreError::Header(_))
                if object_of(&self.ctx, &**storage).is_some() && is_new() =>
            {
                return Ok(State::Torn(error));
            }
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
        born(dir, entry).is_some_and(|(_, at)| at >= self.clean_until)
    }

    /// Gives another id to a new directory whose own never reached the disk, and names to what is in
    /// it. `None` if that is not what is wrong with it. `at` are the numbers of it and its parent.
    pub(super) fn mend_directory(
        &self,
        handle: &DirHandle,
        at: (Ino, Ino),
    ) -> FsResult<Option<DirId>> {
        if self.is_mended() || !self.writable() || !self.is_new_since(handle, b"") {
            return Ok(None);
        }
        let own = backing::read_small(handle, DIR_FILE, 4096)?;
        if !own.is_none_or(|bytes| is_zero(&bytes)) {
            return Ok(None);
        }
        let id = DirId(crypto::random_array());
        self.write_dir_file(handle, at, id)?;
        for raw in backing::list(handle)? {
            if !matches!(self.codec()?.listed(None, &raw.name), Listed::Helper) {
                self.give_name(handle, id, &raw.name)?;
            }
        }
        Ok(Some(id))
    }

    /// May the marker of an unclean stop go? Tries again what was open before.
    pub(super) fn marker_may_go(&self) -> bool {
        self.mend_leftovers();
        self.is_mended()
    }
}
