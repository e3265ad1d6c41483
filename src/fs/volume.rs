//! The mounted volume: what it holds, how it is opened and closed. The operations stand in the
//! neighbouring modules, one `impl Volume` block each.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, RwLock};
use rustix::fs::{AtFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::attr::{FileKind, Ino, ROOT, StatFs};
use super::backing;
use super::dirs::DirCache;
use super::error::{FsError, FsResult};
use super::files::FileHandle;
use super::firm::Firm;
use super::inode::{Inode, InodeTable};
use super::journal::{self, Recovery, Root};
use super::leftovers::{self, Mending};
use super::lookahead::LookAhead;
use super::names::{NAME_MAX, NameCodec};
pub use super::opening::{
    OpenError, exit, lock_holder, lock_root, open_root, read_descriptor, unlock_error,
    write_descriptor,
};
use super::readdir::DirStream;
use crate::crypto::{Vault, VolumeKeys};
use crate::format::descriptor::{DESCRIPTOR_NAME, Descriptor, NameMode};
use crate::format::layout::Layout;
use crate::format::{FormatError, VolumeId};
use crate::keys::{Keyring, UnlockOptions};
use crate::store::Journal;
use crate::store::content::VolumeContext;
use crate::store::journal::JournalStatus;

/// Handle number of an open file or directory.
pub type Fh = u64;

/// Exists in the backing root while a read-write mount lives: found at the next mount, it says that
/// the last one did not end cleanly.
pub const SESSION_NAME: &str = "kmsfs.session";

/// Chunk encryptions a segment key may do.
const REKEY_LIMIT: u64 = 1 << 31;

/// Calls of [`Volume::tick`] until everything is made firm.
const FIRM_TICKS: u64 = 3;

/// What the opener wants of the volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Exclusive.
    ReadWrite,
    /// Shared with other readers; the backing directory is not touched.
    ReadOnly,
}

/// When reading updates the access time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Atime {
    /// When it is older than the last change, or than a day.
    #[default]
    Relatime,
    /// Never.
    Noatime,
    /// At every read that reaches the daemon.
    Strictatime,
}

/// How the tree behaves.
#[derive(Clone, Copy, Debug)]
pub struct MountFlags {
    /// POSIX ACLs (`-o acl`): the caller's umask comes with the request.
    pub acl: bool,
    /// Atime policy.
    pub atime: Atime,
    /// Give created objects to the caller (root with allow_other).
    pub own_by_caller: bool,
    /// The kernel's writeback cache is on: it owns mtime and size of open files.
    pub writeback: bool,
    /// Chunk encryptions per segment key before re-keying; 0 = the format's 2^31.
    pub rekey_limit: u64,
}

/// How a write reached us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteHow {
    /// By write(2), now.
    Direct,
    /// By write(2) of somebody whose write must drop set-id bits.
    DropPrivileges,
    /// From the kernel's writeback cache, some time after the program wrote.
    Cached,
}

/// A directory entry.
#[derive(Clone, Debug)]
pub struct DirEntry {
    /// Inode number (d_ino).
    pub ino: Ino,
    /// Kind.
    pub kind: FileKind,
    /// Plaintext name.
    pub name: Vec<u8>,
}

/// Result of open and create.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// Handle.
    pub fh: Fh,
    /// The kernel may keep its cached pages of this inode.
    pub keep_cache: bool,
}

/// An unlocked, open volume. Dropping it releases the lock on the backing directory.
pub struct Volume {
    pub(super) ctx: Arc<VolumeContext>,
    pub(super) vault: Arc<Vault>,
    pub(super) ahead: LookAhead,
    /// When a key that could not be had was last complained of.
    pub(super) key_complaint: Mutex<Option<Instant>>,
    pub(super) keyring: Keyring,
    /// Replaced as a whole.
    pub(super) descriptor: RwLock<Arc<Descriptor>>,
    /// How it was unlocked, for the next descriptor.
    pub(super) unlock: UnlockOptions,
    /// Held while recipients or wrapped keys are changed from outside.
    pub(super) rewrapping: Mutex<()>,
    names: NameMode,
    source: PathBuf,
    access: Access,
    /// Where commits go; none in a volume that is only read.
    pub(super) journal: Option<Arc<Journal>>,
    pub(super) recovery: Recovery,
    pub(super) flags: MountFlags,
    /// The backing root; holds the lock.
    pub(super) root: Arc<OwnedFd>,
    pub(super) dev: u64,
    root_backing_ino: u64,
    pub(super) table: InodeTable,
    pub(super) dirs: DirCache,
    pub(super) files: RwLock<HashMap<Fh, Arc<FileHandle>>>,
    pub(super) streams: RwLock<HashMap<Fh, Arc<DirStream>>>,
    /// Inodes with content in memory.
    pub(super) open: Mutex<HashMap<Ino, Arc<Inode>>>,
    next_fh: AtomicU64,
    ticks: AtomicU64,
    /// Files that may stay open until a checkpoint.
    pub(super) waiting_max: usize,
    pub(super) logged: Mutex<HashSet<PathBuf>>,
    /// Held while a rename changes the backing and then the places in memory.
    pub(super) moves: RwLock<()>,
    /// Inodes whose set-id bits a change of content has dropped: the kernel believes in them still.
    pub(super) stale_modes: Mutex<Vec<Ino>>,
    /// The last read-write mount did not end cleanly: sizes are checked against headers.
    pub(super) unclean: bool,
    /// What an unclean stop left, and what has been put right of it.
    pub(super) mending: Mending,
    /// Shared by whoever opens a file; alone while one is put right.
    pub(super) opening_files: RwLock<()>,
    /// What is not known to be on disk yet.
    pub(super) firm: Arc<Firm>,
    pub(super) euid: u32,
    pub(super) egid: u32,
}

impl Volume {
    /// Locks the backing directory, unlocks the descriptor, opens the root. The error is a
    /// sentence for the user with an exit code.
    pub fn open(
        source: &Path,
        access: Access,
        flags: MountFlags,
        unlock: &UnlockOptions,
    ) -> Result<Self, OpenError> {
        let root = open_root(source)?;
        lock_root(&root, source, access)?;
        let bytes = read_descriptor(&root, source)?;
        let (descriptor, unlocked) =
            crate::keys::unlock(&bytes, unlock).map_err(|e| unlock_error(e, source))?;
        require_known_features(&descriptor, access, source)?;
        let st = rustix::fs::fstat(&root).map_err(|e| OpenError::io(source, e))?;
        let vault = Vault::new(unlocked.keys);
        let ctx = volume_context(&descriptor, vault.clone(), flags.rekey_limit)
            .map_err(|e| unlock_error(e.into(), source))?;
        let mut volume = Volume {
            ctx: Arc::new(ctx),
            vault,
            ahead: LookAhead::new(),
            key_complaint: Mutex::default(),
            keyring: unlocked.keyring,
            names: descriptor.params.names,
            descriptor: RwLock::new(Arc::new(descriptor)),
            unlock: unlock.without_prompt(),
            rewrapping: Mutex::default(),
            source: source.to_path_buf(),
            access,
            journal: None,
            recovery: Recovery::default(),
            flags,
            root: Arc::new(root),
            dev: st.st_dev,
            root_backing_ino: st.st_ino,
            table: InodeTable::new(ROOT),
            dirs: DirCache::new(dir_cache_size()),
            files: RwLock::default(),
            streams: RwLock::default(),
            open: Mutex::default(),
            next_fh: AtomicU64::new(1),
            ticks: AtomicU64::new(0),
            waiting_max: dir_cache_size() / 4,
            logged: Mutex::default(),
            moves: RwLock::default(),
            stale_modes: Mutex::default(),
            unclean: false,
            mending: Mending::default(),
            opening_files: RwLock::default(),
            firm: Arc::default(),
            euid: rustix::process::geteuid().as_raw(),
            egid: rustix::process::getegid().as_raw(),
        };
        volume.begin_session().map_err(|e| {
            OpenError::new(
                exit::FAILURE,
                format!(
                    "{}: cannot start a session in the backing directory: {e}",
                    source.display()
                ),
            )
        })?;
        volume.recover().map_err(|e| recovery_error(&e, source))?;
        if volume.writable() {
            volume.keyring.fill_supply();
        }
        Ok(volume)
    }

    /// The present descriptor.
    pub fn descriptor(&self) -> Arc<Descriptor> {
        self.descriptor.read().clone()
    }

    /// Volume id.
    pub fn id(&self) -> VolumeId {
        self.ctx.volume
    }

    /// What the volume's journals held when it was opened.
    pub fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    /// The journal of a volume that may be written.
    pub fn journal_status(&self) -> Option<JournalStatus> {
        self.journal.as_ref().map(|journal| journal.status())
    }

    /// Backing directory.
    pub fn source(&self) -> &Path {
        &self.source
    }

    /// KMS keys that whoever mounted it expects; with one, no descriptor that names others is adopted.
    pub fn expected_keys(&self) -> &[String] {
        &self.unlock.expect.keys
    }

    /// May this volume be written?
    pub fn writable(&self) -> bool {
        self.access == Access::ReadWrite
    }

    /// Inodes whose cached attributes the kernel must drop; each is reported once.
    pub fn take_stale_modes(&self) -> Vec<Ino> {
        std::mem::take(&mut *self.stale_modes.lock())
    }

    /// Whether the last read-write session on this directory did not end cleanly.
    pub fn was_unclean(&self) -> bool {
        self.unclean
    }

    /// Commits everything, flushes the backing file system, clears the unclean-stop marker. Called
    /// once the kernel has gone. The marker stays if anything could not be written.
    pub fn shutdown(&self) -> FsResult<()> {
        if !self.writable() {
            return Ok(());
        }
        let lost = self.commit_as_far_as_keys_go()?;
        self.note_unfirm();
        if let Some(journal) = &self.journal {
            journal.close()?;
        }
        if lost.is_none() {
            self.commit_open()?;
        }
        if lost.is_none() && self.marker_may_go() {
            if self.unclean {
                // What was put right before the marker goes.
                self.flush_backing()?;
            }
            keep_times(&self.root, || {
                rustix::fs::unlinkat(&self.root, SESSION_NAME, AtFlags::empty())
            })?;
        }
        self.flush_backing()?;
        lost.map_or(Ok(()), Err)
    }

    /// Commits every dirty file; with `flush` also brings everything to its place and flushes the
    /// backing file system. Goes on after an error and returns the first.
    pub fn commit_all(&self, flush: bool) -> FsResult<()> {
        let committed = self.commit_open();
        if !flush || !self.writable() {
            return committed;
        }
        if let Some(journal) = &self.journal {
            // Names and attributes are flushed with the rest.
            journal.note_change();
        }
        committed.and(self.checkpoint(true))
    }

    /// Brings what the journal holds to its place; with `whole`, everything changed so far is on
    /// disk afterwards. Files that were kept open for it are closed.
    pub(super) fn checkpoint(&self, whole: bool) -> FsResult<()> {
        let Some(journal) = &self.journal else { return Ok(()) };
        journal.checkpoint(whole)?;
        self.commit_open()
    }

    /// Called every few seconds: commits what is dirty, and at every third call makes all of it
    /// firm.
    pub fn tick(&self) -> FsResult<()> {
        let committed = self.commit_open();
        self.note_unfirm();
        let due = self.ticks.fetch_add(1, Ordering::Relaxed) % FIRM_TICKS == FIRM_TICKS - 1;
        let dirty = self.journal.as_ref().is_some_and(|journal| journal.is_dirty());
        if due && dirty { committed.and(self.checkpoint(true)) } else { committed }
    }

    /// Commits every dirty file and closes those that nobody uses.
    pub(super) fn commit_open(&self) -> FsResult<()> {
        let open: Vec<_> = self.open.lock().values().cloned().collect();
        let mut first = Ok(());
        for inode in open {
            if let Err(error) = self.commit_inode(&inode) {
                first = first.and(Err(error));
            }
            // Its last close may have left it to us.
            self.table.prune(inode);
        }
        first
    }

    /// (inodes in the table, open handles, cached descriptors) for `status`.
    pub fn counters(&self) -> (usize, usize, usize) {
        let handles = self.files.read().len() + self.streams.read().len();
        (self.table.len(), handles, self.dirs.len() + self.open.lock().len())
    }

    /// File-system totals.
    pub fn statfs(&self) -> FsResult<StatFs> {
        let st = rustix::fs::fstatvfs(&self.root)?;
        let scale = |n: u64| (u128::from(n) * u128::from(st.f_frsize) / 4096) as u64;
        Ok(StatFs {
            blocks: scale(st.f_blocks),
            bfree: scale(st.f_bfree),
            bavail: scale(st.f_bavail),
            files: st.f_files,
            ffree: st.f_ffree,
            namelen: NAME_MAX as u32,
        })
    }

    /// Backing path, relative to the source, of an inode; for messages.
    pub fn backing_path(&self, ino: Ino) -> PathBuf {
        self.table.get(ino).map(|i| self.backing_path_of(&i)).unwrap_or_default()
    }

    /// Backing paths of entries that listings left out because their names do not decrypt.
    pub fn left_out(&self) -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> = self.logged.lock().iter().cloned().collect();
        paths.sort();
        paths
    }

    pub(super) fn backing_path_of(&self, inode: &Inode) -> PathBuf {
        PathBuf::from(OsString::from_vec(journal::backing_path_bytes(inode)))
    }

    pub(super) fn codec(&self) -> FsResult<NameCodec> {
        Ok(NameCodec { keys: self.keys()?, mode: self.names })
    }

    /// The volume keys, for one operation.
    pub(super) fn keys(&self) -> FsResult<Arc<VolumeKeys>> {
        Ok(self.vault.keys()?)
    }

    pub(super) fn root_ino(&self) -> Ino {
        ROOT
    }

    /// Inode number the kernel sees for a backing one.
    pub(super) fn show_ino(&self, backing: u64) -> Ino {
        if backing == self.root_backing_ino { ROOT } else { backing }
    }

    pub(super) fn new_fh(&self) -> Fh {
        self.next_fh.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn require_writable(&self) -> FsResult<()> {
        if self.writable() { Ok(()) } else { Err(FsError::Errno(libc::EROFS)) }
    }

    fn begin_session(&mut self) -> FsResult<()> {
        let st = backing::stat_at(&self.root, SESSION_NAME.as_bytes());
        self.unclean = match st {
            Ok(st) => {
                let marked = (st.st_mtime, st.st_mtime_nsec as u32);
                let writable = self.writable();
                self.mending.begin(&self.root, marked, writable);
                true
            }
            Err(Errno::NOENT) => false,
            Err(errno) => return Err(errno.into()),
        };
        if self.writable() {
            self.mark_session()?;
            self.firm.nothing_known();
        }
        if self.unclean {
            log::warn!(
                "{}: the last read-write mount did not end cleanly; sizes are checked as files are \
                 looked up, `kmsfsctl verify` checks everything",
                self.source.display()
            );
        }
        Ok(())
    }

    /// Makes the marker. One that is there already stays: its time says since when not everything may
    /// be whole.
    fn mark_session(&self) -> FsResult<()> {
        let entry = SESSION_NAME.as_bytes();
        let st = backing::stat_at(&self.root, entry);
        if !st.is_ok_and(|st| FileKind::from_mode(st.st_mode) == Some(FileKind::Regular)) {
            let text = leftovers::marker(&self.root);
            keep_times(&self.root, || backing::write_small(&self.root, entry, text.as_bytes()))?;
            backing::open_file(&*self.root, entry, false)?.sync_data()?;
        }
        // Before anything changes: without the marker sizes would not be looked into.
        rustix::fs::fsync(&*self.root)?;
        Ok(())
    }

    /// Recovers what the journals hold, or shows it where nothing may be written.
    fn recover(&mut self) -> FsResult<()> {
        if self.writable() {
            self.recovery = journal::replay(&self.root, &self.ctx)?;
            let root = Root { fd: self.root.clone(), firm: self.firm.clone() };
            self.journal = Some(root.open_journal(&self.ctx));
        } else {
            self.recovery = journal::view(&self.root, &self.ctx)?;
        }
        // A copy may have the journal of an unclean stop without its marker.
        self.unclean |= !self.recovery.is_empty();
        for sentence in self.recovery.sentences() {
            log::warn!("{}: {sentence}", self.source.display());
        }
        Ok(())
    }
}

/// Runs `act`, which makes or removes a helper in a directory: no change of the user's directory, so
/// its times stay.
pub(super) fn keep_times<T, E: From<Errno>>(
    dir: &OwnedFd,
    act: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    let st = rustix::fs::fstat(dir)?;
    let done = act()?;
    let time = |sec, nsec| Timespec { tv_sec: sec, tv_nsec: nsec as _ };
    let times = Timestamps {
        last_access: time(st.st_atime, st.st_atime_nsec),
        last_modification: time(st.st_mtime, st.st_mtime_nsec),
    };
    // Only the owner may: for anybody else the times simply move.
    if let Err(errno) = rustix::fs::futimens(dir, &times) {
        log::debug!("times of the root directory not restored: {errno}");
    }
    Ok(done)
}

/// The sentence for a journal that cannot be recovered from.
pub fn recovery_error(error: &FsError, source: &Path) -> OpenError {
    let message = format!(
        "{}: the journal of the last mount cannot be recovered: {error}. Nothing is lost; mend the \
         cause and mount again",
        source.display()
    );
    OpenError::new(exit::FAILURE, message)
}

/// Half of the descriptors we may have, so that open files keep the other half.
fn dir_cache_size() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    (limit.unwrap_or(4096) / 2).clamp(16, 4096) as usize
}

/// What the engine needs of an unlocked volume; `rekey_limit` 0 is the format's.
pub fn volume_context(
    descriptor: &Descriptor,
    keys: Arc<Vault>,
    rekey_limit: u64,
) -> Result<VolumeContext, FormatError> {
    Ok(VolumeContext {
        volume: descriptor.volume,
        layout: Layout::new(descriptor.params.header_blocks)?,
        keys,
        rekey_limit: if rekey_limit == 0 { REKEY_LIMIT } else { rekey_limit },
    })
}

/// Refuses a file whose keys were wrapped for a later descriptor than the one the volume was opened
/// with: recipients that were removed may be in that one.
pub(super) fn refuse_rolled_back(wrap_epoch: u64, generation: u64) -> FsResult<()> {
    if wrap_epoch <= generation {
        return Ok(());
    }
    Err(FsError::Damaged(format!(
        "its keys were wrapped for generation {wrap_epoch} of {DESCRIPTOR_NAME}, which is of \
         generation {generation} now: the descriptor has been rolled back to an older copy; put the \
         newer one back"
    )))
}

/// A volume with features this program does not know may at most be read.
fn require_known_features(
    descriptor: &Descriptor,
    access: Access,
    source: &Path,
) -> Result<(), OpenError> {
    let (Access::ReadWrite, Some(feature)) = (access, descriptor.read_only_reason()) else {
        return Ok(());
    };
    Err(OpenError::new(
        exit::FORMAT,
        format!(
            "{}: feature {feature:?} is not known to this kmsfs, which may only read this volume: \
             mount it with -o ro or use a newer kmsfs",
            source.display()
        ),
    ))
}
