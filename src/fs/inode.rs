//! The inode table: which objects the kernel knows, and where each stands in the backing tree.
//!
//! An inode is found again by its places (directory and backing entry name), so a tree of a million
//! files needs no descriptors. When the last known place goes (unlink, rename-over) the inode keeps
//! an `O_PATH` descriptor until the kernel forgets it: operations through old handles still work,
//! and the backing cannot reuse the inode number meanwhile.
//!
//! Lock order: `opening` before `names` before `file`; none is held across a call into `table`.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::attr::{FileKind, Ino};
use crate::format::DirId;
use crate::store::content::Time;
use crate::store::{Content, FileStorage};

/// One directory entry an inode is known by.
#[derive(Clone)]
pub struct Place {
    /// Directory.
    pub parent: Arc<Inode>,
    /// Backing entry name.
    pub entry: Box<[u8]>,
}

/// Where an inode stands.
#[derive(Default)]
pub struct Names {
    /// Known entries; hard links may have more than are known.
    pub places: Vec<Place>,
    /// Set once the last known place is gone.
    pub pinned: Option<Arc<OwnedFd>>,
    /// Target of a removed long symlink, whose sidecar is gone.
    pub target: Option<Vec<u8>>,
    /// Directories: the id, once read. `None` also for an empty directory without one.
    pub dir_id: Option<DirId>,
}

impl Names {
    /// Forgets a place.
    pub fn remove(&mut self, parent: &Inode, entry: &[u8]) {
        self.places.retain(|p| !(p.entry.as_ref() == entry && p.parent.ino == parent.ino));
    }
}

/// Content state of a regular file.
#[derive(Default)]
pub struct FileState {
    /// Open handles.
    pub handles: usize,
    /// Backing file and engine; `content` is absent while a never-written file is only read.
    pub storage: Option<Arc<FileStorage>>,
    /// The engine.
    pub content: Option<Arc<Content>>,
    /// Authenticated size of a file whose backing length says otherwise (crash leftover).
    pub true_size: Option<u64>,
    /// The last modification time the kernel set while it owns it (writeback cache).
    pub kernel_mtime: Option<Time>,
    /// The backing length has been compared with the header since an unclean stop.
    pub size_checked: bool,
    /// It has been emptied since the kernel was told a size.
    pub shown_wrong: bool,
}

/// One object the kernel knows.
pub struct Inode {
    /// Number shown to the kernel.
    pub ino: Ino,
    /// Kind; never changes.
    pub kind: FileKind,
    /// Bumped when the kernel must drop what it cached.
    pub generation: AtomicU64,
    /// Set-id bits as last seen or set; held while they change.
    pub set_id: Mutex<Option<u32>>,
    lookups: AtomicU64,
    /// Places.
    pub names: Mutex<Names>,
    /// Held while content is being opened or upgraded, so that one key is unwrapped once.
    pub opening: Mutex<()>,
    /// Content.
    pub file: Mutex<FileState>,
}

impl Inode {
    fn new(ino: Ino, kind: FileKind) -> Inode {
        Inode {
            ino,
            kind,
            generation: AtomicU64::new(0),
            set_id: Mutex::default(),
            lookups: AtomicU64::new(0),
            names: Mutex::default(),
            opening: Mutex::new(()),
            file: Mutex::default(),
        }
    }

    /// Adds a place unless it is known; an object with a place again needs no pin.
    pub fn add_place(&self, parent: &Arc<Inode>, entry: &[u8]) {
        let mut names = self.names.lock();
        if self.kind == FileKind::Directory {
            // A directory has one place. Were it to keep a stale one, places could form a ring.
            names.places.retain(|p| p.entry.as_ref() == entry && Arc::ptr_eq(&p.parent, parent));
        }
        let known = names
            .places
            .iter()
            .any(|p| p.entry.as_ref() == entry && Arc::ptr_eq(&p.parent, parent));
        if !known {
            names.places.push(Place { parent: parent.clone(), entry: entry.into() });
        }
        names.pinned = None;
    }

    /// The object has moved from one entry to another.
    pub fn move_place(&self, old: (&Arc<Inode>, &[u8]), new: (&Arc<Inode>, &[u8])) {
        let mut names = self.names.lock();
        names.remove(old.0, old.1);
        names.remove(new.0, new.1);
        names.places.push(Place { parent: new.0.clone(), entry: new.1.into() });
    }

    /// A corrected size must survive the kernel's forgetting: it is what the next look-up answers.
    fn holds_correction(&self) -> bool {
        self.file.lock().true_size.is_some() && !self.names.lock().places.is_empty()
    }

    /// The kernel does not know it any more.
    pub fn is_forgotten(&self) -> bool {
        self.lookups.load(Ordering::Acquire) == 0
    }

    /// The present content, if the file is open.
    pub fn content(&self) -> Option<Arc<Content>> {
        self.file.lock().content.clone()
    }
}

/// All inodes the kernel knows, by number.
pub struct InodeTable {
    map: RwLock<HashMap<Ino, Arc<Inode>>>,
}

impl InodeTable {
    /// A table holding the root only.
    pub fn new(root: Ino) -> InodeTable {
        let inode = Inode::new(root, FileKind::Directory);
        // The root is never forgotten.
        inode.lookups.store(1, Ordering::Relaxed);
        InodeTable { map: RwLock::new(HashMap::from([(root, Arc::new(inode))])) }
    }

    /// The inode with this number.
    pub fn get(&self, ino: Ino) -> Option<Arc<Inode>> {
        self.map.read().get(&ino).cloned()
    }

    /// All inodes.
    pub fn all(&self) -> Vec<Arc<Inode>> {
        self.map.read().values().cloned().collect()
    }

    /// Number of inodes.
    pub fn len(&self) -> usize {
        self.map.read().len()
    }

    /// Finds or adds the inode at a place and counts one kernel lookup.
    pub fn remember(
        &self,
        ino: Ino,
        kind: FileKind,
        parent: &Arc<Inode>,
        entry: &[u8],
    ) -> Arc<Inode> {
        if let Some(inode) = self.map.read().get(&ino).filter(|i| i.kind == kind) {
            inode.lookups.fetch_add(1, Ordering::Relaxed);
            inode.add_place(parent, entry);
            return inode.clone();
        }
        let mut map = self.map.write();
        let found = map.get(&ino).filter(|i| i.kind == kind).cloned();
        let inode = found.unwrap_or_else(|| {
            let fresh = Arc::new(Inode::new(ino, kind));
            map.insert(ino, fresh.clone());
            fresh
        });
        inode.lookups.fetch_add(1, Ordering::Relaxed);
        drop(map);
        inode.add_place(parent, entry);
        inode
    }

    /// Drops kernel lookups; an inode nobody refers to any more leaves the table, and so do the
    /// directories that only it kept.
    pub fn forget(&self, ino: Ino, lookups: u64) {
        let Some(inode) = self.get(ino) else { return };
        let before = inode
            .lookups
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| Some(n.saturating_sub(lookups)))
            .unwrap_or(0);
        if before <= lookups {
            self.prune(inode);
        }
    }

    /// Removes `inode` if neither the kernel, a handle nor a child needs it; then its parents.
    pub fn prune(&self, inode: Arc<Inode>) {
        let mut queue = vec![inode];
        while let Some(inode) = queue.pop() {
            // Most closes end here, without touching the table's lock.
            if inode.lookups.load(Ordering::Acquire) != 0 || inode.holds_correction() {
                continue;
            }
            let mut map = self.map.write();
            // Two references: the table's and ours. With the table locked nobody can add one.
            let idle = Arc::strong_count(&inode) == 2
                && inode.lookups.load(Ordering::Acquire) == 0
                && map.get(&inode.ino).is_some_and(|i| Arc::ptr_eq(i, &inode));
            if !idle {
                continue;
            }
            map.remove(&inode.ino);
            drop(map);
            let places = std::mem::take(&mut inode.names.lock().places);
            drop(inode);
            queue.extend(places.into_iter().map(|p| p.parent));
        }
    }
}
