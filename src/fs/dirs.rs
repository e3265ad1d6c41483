//! Directories: descriptors (a bounded cache), ids, and the rules for a directory without one.

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags, Stat};
use rustix::io::Errno;

use super::attr::{FileKind, Ino};
use super::backing;
use super::error::{FsError, FsResult};
use super::flush::parent_of;
use super::inode::Inode;
use super::names::{DIR_FILE, Entry, Listed};
use super::volume::Volume;
use crate::crypto;
use crate::format::{DirId, dirfile};

/// An `O_PATH` descriptor of a directory.
pub struct DirHandle(pub OwnedFd);

impl AsFd for DirHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The most recently used directories' descriptors. Evicting one costs one open when it is needed
/// again; handles in use stay valid.
pub struct DirCache(Mutex<LruCache<Ino, Arc<DirHandle>>>);

impl DirCache {
    /// A cache of at most `capacity` descriptors.
    pub fn new(capacity: usize) -> DirCache {
        let capacity = NonZeroUsize::new(capacity).unwrap_or(NonZeroUsize::MIN);
        DirCache(Mutex::new(LruCache::new(capacity)))
    }

    fn get(&self, ino: Ino) -> Option<Arc<DirHandle>> {
        self.0.lock().get(&ino).cloned()
    }

    fn put(&self, ino: Ino, handle: Arc<DirHandle>) {
        self.0.lock().put(ino, handle);
    }

    /// Forgets a directory that is being removed.
    pub fn remove(&self, ino: Ino) {
        self.0.lock().pop(&ino);
    }

    /// Descriptors held.
    pub fn len(&self) -> usize {
        self.0.lock().len()
    }
}

/// Where an object can be reached right now.
pub enum Loc {
    /// By its entry in a directory.
    At(Arc<DirHandle>, Box<[u8]>),
    /// Its last entry is gone (or it is the root).
    Fd(Arc<OwnedFd>),
}

impl Loc {
    /// `fstatat` of the object.
    pub fn stat(&self) -> Result<Stat, Errno> {
        match self {
            Loc::At(dir, entry) => backing::stat_at(dir, entry),
            Loc::Fd(fd) => rustix::fs::fstat(fd),
        }
    }

    /// A descriptor naming the object.
    pub fn pin(&self) -> FsResult<Arc<OwnedFd>> {
        match self {
            Loc::At(dir, entry) => Ok(Arc::new(backing::open_path(dir, entry)?)),
            Loc::Fd(fd) => Ok(fd.clone()),
        }
    }
}

impl Volume {
    /// The inode with this number.
    pub(super) fn inode(&self, ino: Ino) -> FsResult<Arc<Inode>> {
        self.table.get(ino).ok_or(FsError::Errno(libc::ESTALE))
    }

    /// Runs `act` on where the object is. No rename happens meanwhile; what else may have moved it
    /// (a removal, which pins it first) is followed by trying again.
    pub(super) fn at<T>(
        &self,
        inode: &Inode,
        mut act: impl FnMut(&Loc) -> FsResult<T>,
    ) -> FsResult<T> {
        let mut last = FsError::Errno(libc::ESTALE);
        for _ in 0..TRIES {
            let _still = self.moves.read();
            match self.locate(inode).and_then(|loc| act(&loc)) {
                Err(FsError::Errno(errno)) if has_moved(errno) => last = FsError::Errno(errno),
                other => return other,
            }
        }
        Err(last)
    }

    pub(super) fn locate(&self, inode: &Inode) -> FsResult<Loc> {
        if inode.ino == self.root_ino() {
            return Ok(Loc::Fd(self.root.clone()));
        }
        let place = {
            let names = inode.names.lock();
            if let Some(fd) = &names.pinned {
                return Ok(Loc::Fd(fd.clone()));
            }
            names.places.last().cloned().ok_or(FsError::Errno(libc::ESTALE))?
        };
        Ok(Loc::At(self.dir_handle(&place.parent)?, place.entry))
    }

    /// A descriptor of a directory inode, from the cache or by walking down from the nearest
    /// cached ancestor.
    pub(super) fn dir_handle(&self, dir: &Arc<Inode>) -> FsResult<Arc<DirHandle>> {
        if let Some(handle) = self.dirs.get(dir.ino) {
            return Ok(handle);
        }
        let mut last = FsError::Errno(libc::ESTALE);
        for _ in 0..TRIES {
            // Recursive, because `at` holds it already.
            let _still = self.moves.read_recursive();
            match self.walk_to(dir) {
                // Not ENOENT: an entry of this directory must not count as absent.
                Err(FsError::Errno(errno)) if has_moved(errno) => {
                    last = FsError::Errno(libc::ESTALE);
                }
                other => return other,
            }
        }
        Err(last)
    }

    fn walk_to(&self, dir: &Arc<Inode>) -> FsResult<Arc<DirHandle>> {
        // Climb without recursion: a path may be thousands of directories deep.
        let mut missing = vec![dir.clone()];
        let mut handle = loop {
            let top = &missing[missing.len() - 1];
            if let Some(start) = self.start_handle(top)? {
                missing.pop();
                break start;
            }
            let place = top.names.lock().places.last().cloned();
            let parent = place.ok_or(FsError::Errno(libc::ESTALE))?.parent;
            if let Some(found) = self.dirs.get(parent.ino) {
                break found;
            }
            if missing.len() >= DEPTH_MAX {
                return Err(FsError::Errno(libc::ELOOP));
            }
            missing.push(parent);
        };
        while let Some(next) = missing.pop() {
            let place = next.names.lock().places.last().cloned();
            let entry = place.ok_or(FsError::Errno(libc::ESTALE))?.entry;
            let fd = open_dir_entry(&handle, &entry)?;
            // A rename may have put another directory there.
            if self.identify(&rustix::fs::fstat(&fd)?)?.0 != next.ino {
                return Err(FsError::Errno(libc::ESTALE));
            }
            handle = Arc::new(DirHandle(fd));
            self.dirs.put(next.ino, handle.clone());
        }
        Ok(handle)
    }

    /// The handle of a directory that needs no parent: the root, or a removed one.
    fn start_handle(&self, dir: &Inode) -> FsResult<Option<Arc<DirHandle>>> {
        let fd = if dir.ino == self.root_ino() {
            Some(self.root.clone())
        } else {
            dir.names.lock().pinned.clone()
        };
        let Some(fd) = fd else { return Ok(None) };
        let handle = Arc::new(DirHandle(fd.try_clone().map_err(FsError::from)?));
        self.dirs.put(dir.ino, handle.clone());
        Ok(Some(handle))
    }

    /// Id of a directory; `None` for an empty directory that has none (yet).
    pub(super) fn dir_id(&self, dir: &Inode, handle: &DirHandle) -> FsResult<Option<DirId>> {
        if let Some(id) = dir.names.lock().dir_id {
            return Ok(Some(id));
        }
        match self.lifted(handle, || self.read_dir_id(handle)) {
            Ok(id) => {
                dir.names.lock().dir_id = Some(id);
                Ok(Some(id))
            }
            // An empty directory needs no id: nothing in it depends on one.
            Err(error @ FsError::Damaged(_)) => {
                if self.holds_only_helpers(handle)? {
                    return Ok(None);
                }
                match self.mend_directory(handle, (dir.ino, parent_of(dir)))? {
                    Some(id) => {
                        dir.names.lock().dir_id = Some(id);
                        Ok(Some(id))
                    }
                    None => Err(error),
                }
            }
            // Unreadable for the moment is not absent.
            Err(error) => Err(error),
        }
    }

    pub(super) fn read_dir_id(&self, handle: &DirHandle) -> FsResult<DirId> {
        let bytes = backing::read_small(handle, DIR_FILE, dirfile::DIRFILE_LEN)?
            .ok_or_else(|| FsError::Damaged("directory has lost its kmsfs.dir".into()))?;
        let keys = self.keys()?;
        dirfile::decode(&bytes, |m, mac| keys.directory_mac_ok(m, mac))
            .map_err(|e| FsError::Damaged(format!("kmsfs.dir: {e}")))
    }

    pub(super) fn holds_only_helpers(&self, handle: &DirHandle) -> FsResult<bool> {
        let codec = self.codec()?;
        let entries = backing::list(handle)?;
        Ok(entries.iter().all(|e| matches!(codec.listed(None, &e.name), Listed::Helper)))
    }

    /// Id of a directory that something is about to be created in.
    pub(super) fn dir_id_or_new(&self, dir: &Inode, handle: &DirHandle) -> FsResult<DirId> {
        if let Some(id) = self.dir_id(dir, handle)? {
            return Ok(id);
        }
        let _alone = self.mending.giving_id.lock();
        // Somebody else may have been faster.
        let id = match self.lifted(handle, || self.read_dir_id(handle)) {
            Err(FsError::Damaged(_)) => {
                let id = DirId(crypto::random_array());
                self.write_dir_file(handle, (dir.ino, parent_of(dir)), id)?;
                id
            }
            other => other?,
        };
        dir.names.lock().dir_id = Some(id);
        Ok(id)
    }

    /// Writes the own file of a directory with this number and parent.
    pub(super) fn write_dir_file(
        &self,
        handle: &DirHandle,
        place: (Ino, Ino),
        id: DirId,
    ) -> FsResult<()> {
        let keys = self.keys()?;
        let bytes = dirfile::encode(id, |m| keys.directory_mac(m));
        self.write_helper(handle, place, DIR_FILE, &bytes)
    }

    /// The backing entry of `name` for look-ups: `None` in a directory that cannot hold it.
    pub(super) fn find_entry(
        &self,
        dir: &Inode,
        handle: &DirHandle,
        name: &[u8],
    ) -> FsResult<Option<Entry>> {
        match self.dir_id(dir, handle)? {
            Some(id) => self.codec()?.entry(id, name).map(Some),
            None => Ok(None),
        }
    }

    /// Plaintext name of a raw entry; `None` for what is not shown. An entry that does not decrypt
    /// is logged once.
    pub(super) fn plain_name(
        &self,
        dir: &Inode,
        handle: &DirHandle,
        id: Option<DirId>,
        raw: &[u8],
    ) -> FsResult<Option<Vec<u8>>> {
        Ok(match self.codec()?.listed(id, raw) {
            Listed::Name(name) => Some(name),
            Listed::Dot | Listed::Helper => None,
            Listed::Unreadable => {
                self.log_unreadable(dir, raw, "name does not decrypt");
                None
            }
            Listed::Long => match self.read_long_name(handle, id, raw) {
                Ok(name) => Some(name),
                // The keys have gone: what could not be read is not unreadable.
                Err(error @ FsError::Gone(_)) => return Err(error),
                Err(error) => {
                    self.log_unreadable(dir, raw, &error.to_string());
                    None
                }
            },
        })
    }

    /// The name in the sidecar of a long entry.
    pub(super) fn read_long_name(
        &self,
        handle: &DirHandle,
        id: Option<DirId>,
        raw: &[u8],
    ) -> FsResult<Vec<u8>> {
        let sidecar = backing::read_small(handle, &super::names::sidecar_of(raw), 4096)?
            .ok_or_else(|| FsError::Damaged("the sidecar of a long name is missing".into()))?;
        let id = id.ok_or_else(|| FsError::Damaged("directory has lost its kmsfs.dir".into()))?;
        self.codec()?.long_name(id, raw, &sidecar)
    }

    fn log_unreadable(&self, dir: &Inode, raw: &[u8], why: &str) {
        let path = self.backing_path_of(dir).join(lossy(raw));
        if self.logged.lock().insert(path.clone()) {
            log::warn!(
                "{}: {why}; left out of the listing of {}",
                path.display(),
                self.plain_path(dir)
            );
        }
    }

    /// Empties a directory of helpers if it holds nothing else. `ENOTEMPTY` otherwise. Returns the
    /// id, to put back should the removal fail.
    pub(super) fn strip_helpers(
        &self,
        inode: &Inode,
        handle: &DirHandle,
    ) -> FsResult<Option<DirId>> {
        let id = self.dir_id(inode, handle).ok().flatten();
        self.lifted(handle, || {
            let entries = backing::list(handle)?;
            let codec = self.codec()?;
            if !entries.iter().all(|e| matches!(codec.listed(None, &e.name), Listed::Helper)) {
                return Err(Errno::NOTEMPTY.into());
            }
            // The id goes last: as long as anything else may fail, the directory keeps it.
            let (own, others): (Vec<_>, Vec<_>) = entries.iter().partition(|e| e.name == DIR_FILE);
            for entry in others.into_iter().chain(own) {
                backing::unlink_if_there(handle, &entry.name)?;
            }
            Ok(())
        })?;
        Ok(id)
    }

    /// Runs `act` on a directory; if its mode denies that to us, its owner, once more with the mode
    /// lifted for the moment. The kernel has checked what the caller may do, and our helpers inside
    /// are not the caller's business.
    pub(super) fn lifted<T>(
        &self,
        handle: &DirHandle,
        act: impl Fn() -> FsResult<T>,
    ) -> FsResult<T> {
        match act() {
            Err(FsError::Errno(libc::EACCES)) if self.writable() => {}
            other => return other,
        }
        let st = rustix::fs::fstat(handle)?;
        if st.st_uid != self.euid {
            return Err(Errno::ACCESS.into());
        }
        let path = backing::proc_path(&handle.0);
        rustix::fs::chmod(&path, Mode::from_raw_mode((st.st_mode & 0o7777) | 0o700))?;
        let result = act();
        rustix::fs::chmod(&path, Mode::from_raw_mode(st.st_mode & 0o7777))?;
        result
    }

    /// Plaintext path of an inode, for messages only.
    pub(super) fn plain_path(&self, inode: &Inode) -> String {
        let mut parts: Vec<String> = Vec::new();
        let mut at = inode.names.lock().places.last().cloned();
        while let Some(place) = at.filter(|_| parts.len() < DEPTH_MAX) {
            let name = self
                .dir_handle(&place.parent)
                .and_then(|h| Ok((self.dir_id(&place.parent, &h)?, h)))
                .ok()
                .and_then(|(id, h)| match self.codec().ok()?.listed(id, &place.entry) {
                    Listed::Name(name) => Some(name),
                    Listed::Long => self.read_long_name(&h, id, &place.entry).ok(),
                    Listed::Dot | Listed::Helper | Listed::Unreadable => None,
                });
            let name = name.unwrap_or_else(|| b"?".to_vec());
            parts.push(String::from_utf8_lossy(&name).into_owned());
            at = place.parent.names.lock().places.last().cloned();
        }
        parts.reverse();
        format!("/{}", parts.join("/"))
    }

    /// Kind and number of an object found in the backing, or an error for what cannot be ours.
    pub(super) fn identify(&self, st: &Stat) -> FsResult<(Ino, FileKind)> {
        let kind = FileKind::from_mode(st.st_mode).ok_or(FsError::Errno(libc::EIO))?;
        if st.st_dev != self.dev {
            return Err(FsError::Errno(libc::EXDEV));
        }
        Ok((self.show_ino(st.st_ino), kind))
    }
}

/// Deepest path walked; only directories that somebody moved below each other behind our back are
/// deeper.
pub(super) const DEPTH_MAX: usize = 1 << 16;

/// Attempts to reach an object that renames keep moving.
const TRIES: usize = 4;

/// Errors that an object which has just been renamed answers at its old place.
fn has_moved(errno: i32) -> bool {
    matches!(errno, libc::ENOENT | libc::ESTALE | libc::ENOTDIR | libc::ELOOP)
}

/// A backing name for a path in a message.
pub(super) fn lossy(raw: &[u8]) -> String {
    String::from_utf8_lossy(raw).into_owned()
}

/// A descriptor of a directory's subdirectory; follows no symbolic link.
pub(super) fn open_dir_entry(parent: impl AsFd, entry: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, entry, flags, Mode::empty())
}
