//! What an unclean stop leaves of files that nobody had been promised yet.
//!
//! Growth reaches the disk before the commit that needs it: a backing file may be longer than its
//! committed state. And a new file goes straight to its place: of one that was never flushed, any
//! part may be there. The first is cut. The second is made an empty file again, as other file
//! systems show it, so that whoever left it (a database its shared memory, an editor its lock) can
//! use the name. A new directory whose `kmsfs.dir` never reached the disk gets another, as nothing in
//! it was promised either; a new object that lost its long name gets a short one. A new symbolic link
//! whose target stood in a sidecar that never arrived is removed, as there is no empty one.
//! Attributes bound to an id that is gone go with it.
//!
//! "New" is what the backing file system says was made since the last clean point, which is the time
//! of the session's marker. In a copied tree, where everything is new, nothing counts as such. Only
//! while that marker stands is anything looked into: as files are opened, and by a walk in the
//! background. The marker goes at the end of a session in which the walk has come through. Every file
//! that is emptied is logged.
//!
//! Programs rename and remove meanwhile. What a rename takes from a directory still to come into one
//! that was done would be passed by: then there is another walk. Whatever is changed is held open or
//! looked at again first, since its name may stand for something else by now.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, RenameFlags, Stat, StatxFlags, Timespec, Timestamps, statx};

use super::attr::{FileKind, Ino};
use super::backing;
use super::dirs::{DirHandle, Loc, lossy};
use super::error::{FsError, FsResult};
use super::files::OMIT;
use super::inode::Inode;
use super::journal::walk_all;
use super::names::{DIR_FILE, LONG_LINK, Listed, TEMPORARY, sidecar_of};
use super::volume::{SESSION_NAME, Volume, keep_times};
use super::xattr;
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
const NEVER: (i64, u32) = (i64::MAX, 0);
/// Longest text of a marker.
const MARKER_MAX: usize = 4096;
/// Clocks may have been put back a little since the marker was made, seconds.
const SLACK: i64 = 3600;
/// Walks at most, as long as programs move things; the end of the session brings one more.
const WALKS: usize = 3;
/// Longest helper, bytes.
const HELPER_MAX: usize = 8192;

/// How far it has come.
pub(super) struct Mending {
    /// Since when what the backing holds is not known to be whole, after an unclean stop.
    pub clean_until: Time,
    /// When this session began, by the clock of the backing: nothing of its own is older.
    began: Option<Time>,
    /// What an unclean stop left has been put right.
    done: AtomicBool,
    /// Names given so far.
    moves: AtomicU64,
    /// The session ends: nobody uses what was found in it any more.
    ending: AtomicBool,
    /// Held while a directory gets an id: two would each make half of the names unreadable.
    pub giving_id: Mutex<()>,
    /// What is being read to see whether it is whole: it has keys.
    reading: Mutex<Option<Arc<Content>>>,
}

impl Mending {
    /// The content that is being looked into.
    pub fn at_work(&self) -> Option<Arc<Content>> {
        self.reading.lock().clone()
    }
}

impl Default for Mending {
    fn default() -> Self {
        Self {
            clean_until: NEVER,
            began: None,
            done: AtomicBool::new(false),
            moves: AtomicU64::new(0),
            ending: AtomicBool::new(false),
            giving_id: Mutex::default(),
            reading: Mutex::default(),
        }
    }
}

impl Mending {
    /// After an unclean stop: the marker in `root` was `marked`. Nothing of this session exists yet.
    pub fn begin(&mut self, root: &OwnedFd, marked: Time, writable: bool) {
        self.clean_until = clean_point_of(root, marked);
        self.began = writable.then(|| now(root)).and_then(|now| {
            now.inspect_err(|error| log::debug!("time of the backing: {error}")).ok()
        });
    }

    /// An object has another name now, or one more.
    pub fn moved(&self) {
        self.moves.fetch_add(1, Ordering::AcqRel);
    }
}

/// What time it is for new objects of this backing.
fn now(root: &OwnedFd) -> FsResult<Time> {
    let random: [u8; 16] = crypto::random_array();
    let name = [TEMPORARY, encode_name(&random).as_bytes()].concat();
    keep_times(root, || {
        backing::write_small(root, &name, b"")?;
        let st = backing::stat_at(root, &name);
        backing::unlink_if_there(root, &name)?;
        let st = st?;
        Ok((st.st_mtime, st.st_mtime_nsec as u32))
    })
}

/// What became of a file that was looked into.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mended {
    /// It is right now.
    Yes,
    /// It is in use, and has to wait for another walk.
    Later,
    /// It is damaged, which is for whoever reads it.
    No,
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
fn clean_point_of(root: &OwnedFd, marked: Time) -> Time {
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
        for _ in 0..WALKS {
            let moves = self.moves_so_far();
            match self.mend_all() {
                Ok(_) if self.moves_so_far() != moves => {}
                Ok(true) => return self.clean_point(),
                Ok(false) => return,
                Err(error) => {
                    return log::warn!("not everything was looked into after the crash: {error}");
                }
            }
        }
    }

    /// One walk. Says whether nothing has to wait, and what was put right is on disk.
    fn mend_all(&self) -> FsResult<bool> {
        let mut all = true;
        // Without a marker of its own nothing counts as new, and every length is looked at.
        let since = match self.mending.clean_until {
            NEVER => i64::MIN,
            (seconds, _) => seconds.saturating_sub(SLACK),
        };
        walk_all(&self.root, &mut |dir, entry, st, path| {
            if st.st_ctime < since {
                return;
            }
            match self.mend_ours(dir, entry, st) {
                Ok(mended) => all &= mended != Mended::Later,
                // Removed meanwhile.
                Err(FsError::Errno(libc::ENOENT)) => {}
                Err(error) => {
                    log::warn!("{}: not looked into after the crash: {error}", path.display());
                    all = false;
                }
            }
        })?;
        self.flush_backing()?;
        Ok(all)
    }

    /// Renames that have moved something by now are counted.
    fn moves_so_far(&self) -> u64 {
        let _still = self.moves.read();
        self.mending.moves.load(Ordering::Acquire)
    }

    pub(super) fn is_mended(&self) -> bool {
        !self.unclean || self.mending.done.load(Ordering::Acquire)
    }

    /// After another unclean stop only what changes in this session has to be looked into, all of it:
    /// what was made while the walk went on may not be whole either.
    fn clean_point(&self) {
        if let Some((tv_sec, nanos)) = self.mending.began {
            let time = Timespec { tv_sec, tv_nsec: nanos.into() };
            let times = Timestamps { last_access: OMIT, last_modification: time };
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            if let Err(errno) = rustix::fs::utimensat(&self.root, SESSION_NAME, &times, flags) {
                log::debug!("time of the session's marker: {errno}");
            }
        }
        self.mending.done.store(true, Ordering::Release);
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
        let Ok(Some((dir, entry, st))) = place else { return };
        if st.st_size > 0
            && self.show_ino(st.st_ino) == inode.ino
            && let Err(error) = self.mend(&*dir, &entry, &st)
        {
            log::debug!("{}: {error}", self.plain_path(inode));
        }
    }

    /// A file is empty now; the kernel may have been told another size.
    fn emptied(&self, ino: Ino) {
        let Some(inode) = self.table.get(ino) else { return };
        let mut file = inode.file.lock();
        if file.true_size.replace(0) != Some(0) {
            file.shown_wrong = true;
            inode.generation.fetch_add(1, Ordering::Relaxed);
        }
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

    /// Puts right what a walk finds, if it has a name of ours. `entry` becomes the name it gets.
    fn mend_ours(&self, dir: &OwnedFd, entry: &mut Vec<u8>, st: &Stat) -> FsResult<Mended> {
        let handle = DirHandle(dir.try_clone()?);
        let id = match self.read_dir_id(&handle) {
            // That its id cannot be read now says nothing about it.
            Err(error @ FsError::Gone(_)) => return Err(error),
            other => other.ok(),
        };
        match self.codec()?.listed(id, entry) {
            Listed::Name(_) => {}
            Listed::Long if self.read_long_name(&handle, id, entry).is_ok() => {}
            Listed::Long => match self.mend_name(&handle, id, entry, st)? {
                Mended::Yes => {}
                other => return Ok(other),
            },
            Listed::Dot | Listed::Helper | Listed::Unreadable => return Ok(Mended::No),
        }
        match FileKind::from_mode(st.st_mode) {
            // Others open files while it waits for a key.
            Some(FileKind::Regular) => self.waiting_for_keys(None, || self.mend(dir, entry, st)),
            Some(FileKind::Directory) => {
                let below = DirHandle(backing::open_path(dir, entry)?);
                let above = rustix::fs::fstat(dir)?.st_ino;
                self.mend_directory(&below, (self.show_ino(st.st_ino), self.show_ino(above)))?;
                Ok(Mended::Yes)
            }
            Some(FileKind::Symlink) => self.mend_symlink(&handle, entry),
            _ => Ok(Mended::Yes),
        }
    }

    /// A new object whose long name never reached the disk gets another name.
    fn mend_name(
        &self,
        dir: &DirHandle,
        id: Option<DirId>,
        entry: &mut Vec<u8>,
        st: &Stat,
    ) -> FsResult<Mended> {
        let _still = self.moves.write();
        let Some(id) = id.filter(|_| self.is_new_since(dir, entry)) else {
            return Ok(Mended::No);
        };
        // Whoever knows the name has found the object without the sidecar, and uses it by that name;
        // or the sidecar goes because the name does.
        let now = backing::stat_at(dir, entry)?.st_ino;
        let ending = self.mending.ending.load(Ordering::Acquire);
        let known = !ending && self.table.get(self.show_ino(now)).is_some();
        if now != st.st_ino || known {
            return Ok(Mended::Later);
        }
        if !is_lost(dir, &sidecar_of(entry))? {
            return Ok(Mended::No);
        }
        let new = self.give_name(dir, id, entry)?;
        backing::unlink_if_there(dir, &sidecar_of(entry))?;
        *entry = new;
        Ok(Mended::Yes)
    }

    /// A new symbolic link whose target never reached the disk is removed.
    fn mend_symlink(&self, dir: &DirHandle, entry: &[u8]) -> FsResult<Mended> {
        let _still = self.moves.write();
        let text = rustix::fs::readlinkat(dir, entry, Vec::new())?.into_bytes();
        let depends = text.starts_with(LONG_LINK) && self.is_new_since(dir, entry);
        if !depends || !is_lost(dir, &text)? {
            return Ok(Mended::Yes);
        }
        rustix::fs::unlinkat(dir, entry, AtFlags::empty())?;
        backing::unlink_if_there(dir, &text)?;
        if matches!(self.codec()?.listed(None, entry), Listed::Long) {
            backing::unlink_if_there(dir, &sidecar_of(entry))?;
        }
        log::warn!(
            "backing entry {} was a new symbolic link whose target had not reached the disk when \
             the last mount ended: it is removed",
            lossy(entry)
        );
        Ok(Mended::Yes)
    }

    fn give_name(&self, dir: &DirHandle, id: DirId, entry: &[u8]) -> FsResult<Vec<u8>> {
        let random: [u8; 6] = crypto::random_array();
        let name = format!("{LOST_NAME}{}", encode_name(&random));
        let new = self.codec()?.entry(id, name.as_bytes())?;
        rustix::fs::renameat_with(dir, entry, dir, &new.backing, RenameFlags::NOREPLACE)?;
        log::warn!(
            "backing entry {} was new and its name had not reached the disk when the last mount \
             ended: it is called {name} now",
            lossy(entry)
        );
        Ok(new.backing)
    }

    /// Puts one file right: the one that `st` was told of.
    fn mend(&self, dir: impl AsFd, entry: &[u8], st: &Stat) -> FsResult<Mended> {
        let dir = dir.as_fd();
        // Nobody opens a file while it changes here.
        let _alone = self.opening_files.write();
        if self.open.lock().contains_key(&self.show_ino(st.st_ino)) {
            return Ok(Mended::Later);
        }
        // Another one may get the name at any time.
        let open = |write| -> FsResult<Option<Arc<FileStorage>>> {
            let file = backing::open_file(dir, entry, write)?;
            let same = rustix::fs::fstat(&file)?.st_ino == st.st_ino;
            Ok(same.then(|| Arc::new(FileStorage(file))))
        };
        let Some(storage) = open(false)? else { return Ok(Mended::Later) };
        if storage.is_empty()? {
            // In a copy that says that something has been promised and lost.
            if self.mending.clean_until != NEVER {
                self.drop_attributes(&storage.0)?;
            }
            return Ok(Mended::Yes);
        }
        let len = match self.state_of(&storage)? {
            State::Fits => return Ok(Mended::Yes),
            State::Long(len) => len,
            State::Torn(why) => {
                log::warn!(
                    "backing file {} was new and had not reached the disk when the last mount ended \
                     ({why}): it is empty now",
                    lossy(entry)
                );
                0
            }
        };
        let mtime = storage.mtime()?;
        let Some(storage) = open(true)? else { return Ok(Mended::Later) };
        storage.set_len(len)?;
        if len == 0 {
            self.emptied(self.show_ino(st.st_ino));
            self.drop_attributes(&storage.0)?;
        }
        storage.set_mtime(mtime)?;
        Ok(Mended::Yes)
    }

    /// Attributes are bound to the id of their object, and this one has lost its id.
    fn drop_attributes(&self, object: impl AsFd) -> FsResult<()> {
        let loc = Loc::Fd(Arc::new(object.as_fd().try_clone_to_owned()?));
        for name in xattr::list(&loc)? {
            if xattr::SPACES.iter().any(|space| name.starts_with(space.as_bytes())) {
                xattr::remove(&loc, &name)?;
            }
        }
        Ok(())
    }

    fn state_of(&self, storage: &Arc<FileStorage>) -> FsResult<State> {
        let is_new = || self.is_new_since(&storage.0, b"");
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
            Ok(content) => Arc::new(content),
            Err(error @ (StoreError::Io(_) | StoreError::Gone(_))) => return Err(error.into()),
            Err(error) => return Ok(Some(error)),
        };
        let mut first = None;
        *self.mending.reading.lock() = Some(content.clone());
        // Gone before they could see it.
        let verified = self.keys().and_then(|_| {
            Ok(content.verify(&mut |error| {
                first.get_or_insert(error);
            })?)
        });
        *self.mending.reading.lock() = None;
        verified?;
        match first {
            Some(error @ (StoreError::Io(_) | StoreError::Gone(_))) => Err(error.into()),
            other => Ok(other),
        }
    }

    /// Was this made since the last clean point? Not where the backing does not say.
    fn is_new_since(&self, dir: impl AsFd, entry: &[u8]) -> bool {
        born(dir, entry).is_some_and(|(_, at)| at >= self.mending.clean_until)
    }

    /// Gives another id to a new directory whose own never reached the disk, and names to what is in
    /// it. The id it has afterwards; `None` if that is not what is wrong with it, or if it is empty
    /// and needs none. `at` are the numbers of it and its parent.
    pub(super) fn mend_directory(
        &self,
        handle: &DirHandle,
        at: (Ino, Ino),
    ) -> FsResult<Option<DirId>> {
        if !self.unclean || !self.writable() {
            return Ok(None);
        }
        let _alone = self.mending.giving_id.lock();
        // Somebody else may have been faster.
        match self.read_dir_id(handle) {
            Ok(id) => return Ok(Some(id)),
            Err(FsError::Damaged(_)) => {}
            Err(error) => return Err(error),
        }
        let lost = !self.is_mended() && self.is_new_since(handle, b"");
        if !lost || !is_lost(handle, DIR_FILE)? {
            return Ok(None);
        }
        self.drop_attributes(handle)?;
        if self.holds_only_helpers(handle)? {
            return Ok(None);
        }
        // The id last: until then nobody makes anything here, and after another crash all of it is
        // found once more.
        let id = DirId(crypto::random_array());
        for raw in backing::list(handle)? {
            if !matches!(self.codec()?.listed(None, &raw.name), Listed::Helper) {
                self.give_name(handle, id, &raw.name)?;
            }
        }
        self.write_dir_file(handle, at, id)?;
        Ok(Some(id))
    }

    /// May the marker of an unclean stop go? Tries again what was open before.
    pub(super) fn marker_may_go(&self) -> bool {
        self.mending.ending.store(true, Ordering::Release);
        self.mend_leftovers();
        self.is_mended()
    }
}

/// Did the content of this helper never reach the disk?
fn is_lost(dir: &DirHandle, helper: &[u8]) -> FsResult<bool> {
    Ok(backing::read_small(dir, helper, HELPER_MAX)?.is_none_or(|bytes| is_zero(&bytes)))
}
