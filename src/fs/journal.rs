//! Where a volume's journal lies, how the files its records speak of are found again, and what is
//! done with it when the volume is opened after an unclean stop.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Weak};

use rustix::fs::{AtFlags, Mode, OFlags, Stat, openat, unlinkat};
use rustix::io::Errno;

use super::attr::FileKind;
use super::backing;
use super::dirs::open_dir_entry;
use super::error::{FsError, FsResult};
use super::firm::{Firm, Watched};
use super::inode::Inode;
use super::volume::keep_times;
use crate::format::ObjectId;
use crate::store::content::VolumeContext;
use crate::store::journal::JOURNAL_PREFIX;
use crate::store::recover::{self, Locate, Located, Report, is_unwritten, object_of};
use crate::store::{FileLog, FileStorage, Journal, Medium, Storage, StoreError, Whereabouts};

/// The backing root as the journal sees it.
pub(super) struct Root {
    pub fd: Arc<OwnedFd>,
    /// Told of every flush.
    pub firm: Arc<Firm>,
}

impl Root {
    /// A journal in this root.
    pub fn open_journal(self, ctx: &VolumeContext) -> Arc<Journal> {
        Journal::new(ctx.volume, ctx.keys.clone(), Arc::new(self))
    }
}

impl Medium for Root {
    fn create(&self, name: &str) -> io::Result<Arc<dyn Storage>> {
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        let fd = keep_times(&self.fd, || openat(&self.fd, name, flags, mode))?;
        let file = Arc::new(FileStorage(File::from(fd)));
        Ok(Arc::new(Watched { file, ino: None, firm: self.firm.clone() }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        Ok(keep_times(&self.fd, || unlinkat(&self.fd, name, AtFlags::empty()))?)
    }

    fn sync_all(&self) -> io::Result<()> {
        self.firm.flush_whole(&self.fd)
    }
}

/// Where an inode stands, for its journal records.
pub struct Place {
    /// The inode; gone once nobody uses it, and then there is nothing to record.
    pub inode: Weak<Inode>,
}

impl Whereabouts for Place {
    fn find(&self) -> (u64, Vec<u8>) {
        let Some(inode) = self.inode.upgrade() else { return (0, Vec::new()) };
        (inode.ino, backing_path_bytes(&inode))
    }
}

/// Path of an inode's last known entry from the backing root.
pub fn backing_path_bytes(inode: &Inode) -> Vec<u8> {
    let mut parts: Vec<Box<[u8]>> = Vec::new();
    let mut at = inode.names.lock().places.last().cloned();
    while let Some(place) = at.filter(|_| parts.len() < super::dirs::DEPTH_MAX) {
        parts.push(place.entry);
        at = place.parent.names.lock().places.last().cloned();
    }
    parts.reverse();
    parts.join(&b'/')
}

/// What opening a volume after an unclean stop found in its journals.
#[derive(Default)]
pub struct Recovery {
    /// Files that are newer than their backing files, by inode number: only where nothing may be
    /// written.
    pub views: HashMap<u64, Arc<FileLog>>,
    /// One report for each journal that was read.
    pub reports: Vec<Report>,
    /// Journals that are damaged, of another volume or of a newer kmsfs, and why. They are left
    /// alone.
    pub refused: Vec<(String, String)>,
}

impl Recovery {
    /// Backing length of a file in its newest state, when `len` is that of the backing file.
    pub fn shown_len(&self, ino: u64, len: u64) -> u64 {
        self.views.get(&ino).map_or(len, |view| view.pending_len().unwrap_or(0))
    }

    /// Did anything have to be done, or told?
    pub fn is_empty(&self) -> bool {
        self.reports.is_empty() && self.refused.is_empty()
    }

    /// What happened, a sentence each.
    pub fn sentences(&self) -> Vec<String> {
        let mut all: Vec<String> = self.reports.iter().flat_map(sentences).collect();
        all.extend(self.refused.iter().map(|(name, why)| {
            format!(
                "{name} is not used: {why}. If it belongs to this volume, changes made before the \
                 last stop may be missing; remove it once you know"
            )
        }));
        all
    }
}

fn sentences(report: &Report) -> Vec<String> {
    let shown = |paths: &[Vec<u8>]| {
        let few: Vec<_> = paths.iter().take(5).map(|p| String::from_utf8_lossy(p)).collect();
        let more = paths.len().saturating_sub(few.len());
        let tail = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{}{tail}", few.join(", "))
    };
    let mut out = vec![format!(
        "journal: {} records read, {} files recovered, {} unflushed records dropped",
        report.records,
        report.replayed.len(),
        report.dropped
    )];
    if report.missing > 0 {
        out.push(format!("journal: {} files have been removed since", report.missing));
    }
    if !report.older.is_empty() {
        out.push(format!(
            "journal: these backing files are older than its records, probably copies that were \
             put back; they were left as they are: {}",
            shown(&report.older)
        ));
    }
    if report.damaged {
        out.push(
            "journal: it is damaged: changes that had been flushed cannot be read; check the \
             volume with kmsfsctl verify"
                .into(),
        );
    }
    out
}

/// Brings every file to its newest state, in its place, and removes the journals. The volume is
/// locked for writing and nobody works on it.
pub fn replay(root: &Arc<OwnedFd>, ctx: &VolumeContext) -> FsResult<Recovery> {
    let mut recovery = Recovery::default();
    let medium = Root { fd: root.clone(), firm: Arc::default() };
    let locate = Finder::new(root, ctx, true);
    for name in journals(root, &mut recovery)? {
        let storage = FileStorage(backing::open_file(&**root, name.as_bytes(), true)?);
        if recover::is_unused(&storage)? {
            medium.remove(&name)?;
            continue;
        }
        match recover::replay(ctx, &medium, &name, &storage, &locate) {
            Ok(report) => recovery.reports.push(report),
            Err(StoreError::Header(why)) => recovery.refused.push((name, why.to_string())),
            Err(other) => return Err(other.into()),
        }
    }
    Ok(recovery)
}

/// The same for reading: what the files would be, with nothing written.
pub fn view(root: &Arc<OwnedFd>, ctx: &VolumeContext) -> FsResult<Recovery> {
    let mut recovery = Recovery::default();
    let locate = Finder::new(root, ctx, false);
    let mut newest = HashMap::new();
    for name in journals(root, &mut recovery)? {
        let storage = FileStorage(backing::open_file(&**root, name.as_bytes(), false)?);
        if recover::is_unused(&storage)? {
            continue;
        }
        match recover::recover(ctx, &storage, &locate) {
            Ok((files, report)) => {
                recovery.reports.push(report);
                for file in files {
                    // An older journal may lie here as well: put back, or never removed from a copy.
                    let generation = newest.entry(file.ino).or_insert(0);
                    if *generation <= file.generation() {
                        *generation = file.generation();
                        recovery.views.insert(file.ino, file.view());
                    }
                }
            }
            Err(StoreError::Header(why)) => recovery.refused.push((name, why.to_string())),
            Err(other) => return Err(other.into()),
        }
    }
    Ok(recovery)
}

/// Does a journal hold anything that is not in its place yet?
pub fn any(root: &OwnedFd) -> FsResult<bool> {
    let mut recovery = Recovery::default();
    for name in journals(root, &mut recovery)? {
        let storage = FileStorage(backing::open_file(root, name.as_bytes(), false)?);
        if !recover::is_unused(&storage)? {
            return Ok(true);
        }
    }
    Ok(!recovery.refused.is_empty())
}

/// A journal for a command that changes files of a volume nobody has mounted.
pub fn open(root: &Arc<OwnedFd>, ctx: &VolumeContext) -> Arc<Journal> {
    Root { fd: root.clone(), firm: Arc::default() }.open_journal(ctx)
}

/// Names of all journals in the backing root. What has such a name and is no file is refused.
fn journals(root: &OwnedFd, recovery: &mut Recovery) -> FsResult<Vec<String>> {
    let entries = backing::list(root)?;
    let named = entries.into_iter().filter(|e| e.name.starts_with(JOURNAL_PREFIX.as_bytes()));
    let mut names: Vec<String> = named.filter_map(|e| String::from_utf8(e.name).ok()).collect();
    names.sort_unstable();
    let mut files = Vec::new();
    for name in names {
        let st = backing::stat_at(root, name.as_bytes())?;
        match FileKind::from_mode(st.st_mode) {
            Some(FileKind::Regular) => files.push(name),
            _ => recovery.refused.push((name, "it is not a regular file".into())),
        }
    }
    Ok(files)
}

/// Finds backing files: by path, by inode number, and where the tree is a copy by what is in them.
struct Finder<'a> {
    root: &'a OwnedFd,
    ctx: &'a VolumeContext,
    write: bool,
    /// Every regular file with its inode number, once a path was not enough.
    tree: RefCell<Option<Files>>,
    /// A file was where it was but with another inode number: inode numbers say nothing here.
    is_copy: Cell<bool>,
    /// A file was found with the inode number it had.
    is_original: Cell<bool>,
    objects: RefCell<Option<HashMap<ObjectId, usize>>>,
}

/// Inode numbers and paths of all regular files of the tree.
type Files = Rc<Vec<(u64, Vec<u8>)>>;

impl<'a> Finder<'a> {
    fn new(root: &'a Arc<OwnedFd>, ctx: &'a VolumeContext, write: bool) -> Self {
        Self {
            root,
            ctx,
            write,
            tree: RefCell::default(),
            is_copy: Cell::new(false),
            is_original: Cell::new(false),
            objects: RefCell::default(),
        }
    }

    /// Opens a regular file by its path from the root, through no symbolic link.
    fn by_path(&self, path: &[u8], write: bool) -> FsResult<Option<Located>> {
        let mut parts = path.split(|b| *b == b'/').peekable();
        let mut dir = rustix::io::dup(self.root)?;
        while let Some(part) = parts.next() {
            if part.is_empty() || part == b".." {
                return Ok(None);
            }
            if parts.peek().is_none() {
                return open_regular(&dir, part, write);
            }
            dir = match open_dir_entry(&dir, part) {
                Ok(fd) => fd,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            };
        }
        Ok(None)
    }

    /// The file at `path`, if it is this object.
    fn is_at(&self, object: ObjectId, path: &[u8]) -> FsResult<Option<Located>> {
        let Some(found) = self.by_path(path, false)? else { return Ok(None) };
        if object_of(self.ctx, &*found.storage) != Some(object) {
            return Ok(None);
        }
        if self.write { self.by_path(path, true) } else { Ok(Some(found)) }
    }

    fn tree(&self) -> FsResult<Files> {
        if let Some(tree) = &*self.tree.borrow() {
            return Ok(tree.clone());
        }
        let mut files = Vec::new();
        walk_all(self.root, &mut |_, _, st, path| {
            if FileKind::from_mode(st.st_mode) == Some(FileKind::Regular) {
                files.push((st.st_ino, path.as_os_str().as_bytes().to_vec()));
            }
        })?;
        let tree = Rc::new(files);
        *self.tree.borrow_mut() = Some(tree.clone());
        Ok(tree)
    }

    fn by_object(&self, object: ObjectId) -> FsResult<Option<Located>> {
        let tree = self.tree()?;
        if self.objects.borrow().is_none() {
            let mut map = HashMap::new();
            for (at, (_, path)) in tree.iter().enumerate() {
                let found = self.by_path(path, false)?;
                if let Some(id) = found.and_then(|f| object_of(self.ctx, &*f.storage)) {
                    map.insert(id, at);
                }
            }
            *self.objects.borrow_mut() = Some(map);
        }
        let at = self.objects.borrow().as_ref().and_then(|map| map.get(&object).copied());
        at.map_or(Ok(None), |at| self.is_at(object, &tree[at].1))
    }

    /// The file at `path`, if it has this number and no header ever reached it.
    fn unwritten_at(&self, ino: u64, path: &[u8]) -> FsResult<Option<Located>> {
        let found = self.by_path(path, false)?.filter(|found| found.ino == ino);
        let Some(found) = found else { return Ok(None) };
        if found.storage.is_empty()? || !is_unwritten(&*found.storage)? {
            return Ok(None);
        }
        if self.write { self.by_path(path, true) } else { Ok(Some(found)) }
    }

    fn find(&self, object: ObjectId, ino: u64, path: &[u8]) -> FsResult<Option<Located>> {
        if let Some(found) = self.is_at(object, path)? {
            let evidence = if found.ino == ino { &self.is_original } else { &self.is_copy };
            evidence.set(true);
            return Ok(Some(found));
        }
        // Renamed since: by number, as long as numbers are what they were.
        let tree = self.tree()?;
        for (_, path) in tree.iter().filter(|(n, _)| *n == ino) {
            if let Some(found) = self.is_at(object, path)? {
                self.is_original.set(true);
                return Ok(Some(found));
            }
        }
        // Removed, as a rule; but as long as nothing says that this tree is no copy it may only have
        // moved, and then every file has to be looked at.
        let is_copy = self.is_copy.get() || !self.is_original.get();
        if is_copy { self.by_object(object) } else { Ok(None) }
    }
}

impl Locate for Finder<'_> {
    fn open(&self, object: ObjectId, ino: u64, path: &[u8]) -> io::Result<Option<Located>> {
        self.find(object, ino, path).map_err(io_error)
    }

    fn unwritten(&self, ino: u64, path: &[u8]) -> io::Result<Option<Located>> {
        self.unwritten_at(ino, path).map_err(io_error)
    }
}

fn io_error(error: FsError) -> io::Error {
    match error {
        FsError::Errno(errno) => io::Error::from_raw_os_error(errno),
        other => io::Error::other(other.to_string()),
    }
}

fn open_regular(dir: &OwnedFd, entry: &[u8], write: bool) -> FsResult<Option<Located>> {
    let st = match backing::stat_at(dir, entry) {
        Ok(st) => st,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    if FileKind::from_mode(st.st_mode) != Some(FileKind::Regular) {
        return Ok(None);
    }
    let file = backing::open_file(dir, entry, write)?;
    let ino = rustix::fs::fstat(&file)?.st_ino;
    Ok(Some(Located { storage: Arc::new(FileStorage(file)), ino }))
}

/// Called with the directory, the entry, its attributes, and its path from the root. What gives the
/// entry another name says so.
pub(super) type OnEntry<'a> = dyn FnMut(&OwnedFd, &mut Vec<u8>, &Stat, &Path) + 'a;

/// Walks over all entries of the backing tree, a directory before what is in it. Holds one descriptor
/// per level of the tree.
pub(super) fn walk_all(root: &OwnedFd, visit: &mut OnEntry<'_>) -> FsResult<()> {
    let top = Arc::new(backing::open_dir(root)?);
    let mut stack = vec![(top, b".".to_vec(), PathBuf::new())];
    while let Some((parent, entry, path)) = stack.pop() {
        // What cannot be entered is told by whoever wants to read it.
        let Ok(dir) = open_dir_entry(&*parent, &entry) else { continue };
        let dir = Arc::new(dir);
        for mut raw in backing::list(&*dir).unwrap_or_default() {
            let Ok(st) = backing::stat_at(&*dir, &raw.name) else { continue };
            let below = path.join(OsStr::from_bytes(&raw.name));
            visit(&dir, &mut raw.name, &st, &below);
            if FileKind::from_mode(st.st_mode) == Some(FileKind::Directory) {
                stack.push((dir.clone(), raw.name, below));
            }
        }
    }
    Ok(())
}
