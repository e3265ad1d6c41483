//! The crash model as data: files with what is durable and what is not, names likewise, and every
//! call that changed something as an event.

use crate::oracle::Mark;
use std::collections::BTreeMap;
use std::sync::Arc;

pub type FileId = usize;
pub const PAGE: u64 = 4096;
pub const SECTOR: u64 = 512;

type Page = [u8; PAGE as usize];

/// A change of the simulated disk, or a remark of the workload between two changes.
#[derive(Clone, Debug)]
pub enum Event {
    Write {
        file: FileId,
        offset: u64,
        data: Arc<[u8]>,
    },
    SetLen {
        file: FileId,
        len: u64,
    },
    Punch {
        file: FileId,
        offset: u64,
        len: u64,
    },
    /// Of no consequence, but a call.
    Mtime,
    Sync {
        file: FileId,
    },
    /// The flush failed: what was not durable may never be, whatever later flushes say.
    FailedSync {
        file: FileId,
    },
    FailedSyncAll,
    DropCache {
        file: FileId,
    },
    SyncAll,
    Create {
        name: Arc<str>,
    },
    Unlink {
        name: Arc<str>,
    },
    /// Somebody has it open, or nobody any more.
    Open {
        file: FileId,
        yes: bool,
    },
    Rename {
        from: Arc<str>,
        to: Arc<str>,
    },
    Mark(Mark),
}

/// Content of a file: sparse pages.
#[derive(Clone, Default, PartialEq)]
pub struct Image {
    pub len: u64,
    pub pages: BTreeMap<u64, Arc<Page>>,
}

impl Image {
    fn page_mut(&mut self, page: u64) -> &mut Page {
        Arc::make_mut(self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE as usize])))
    }

    /// Bytes, zeros where nothing is; the length is not looked at.
    pub fn get(&self, mut offset: u64, mut buf: &mut [u8]) {
        while !buf.is_empty() {
            let at = (offset % PAGE) as usize;
            let n = buf.len().min(PAGE as usize - at);
            match self.pages.get(&(offset / PAGE)) {
                Some(page) => buf[..n].copy_from_slice(&page[at..at + n]),
                None => buf[..n].fill(0),
            }
            buf = &mut buf[n..];
            offset += n as u64;
        }
    }

    /// Stores bytes; the length is not touched.
    pub fn put(&mut self, mut offset: u64, mut data: &[u8]) {
        while !data.is_empty() {
            let at = (offset % PAGE) as usize;
            let n = data.len().min(PAGE as usize - at);
            self.page_mut(offset / PAGE)[at..at + n].copy_from_slice(&data[..n]);
            data = &data[n..];
            offset += n as u64;
        }
    }

    pub fn zero(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        let inner = from.div_ceil(PAGE)..to / PAGE;
        if inner.start < inner.end {
            let gone: Vec<u64> = self.pages.range(inner).map(|(p, _)| *p).collect();
            gone.iter().for_each(|p| drop(self.pages.remove(p)));
        }
        for edge in [from / PAGE, to / PAGE] {
            let (a, b) = (from.max(edge * PAGE), to.min((edge + 1) * PAGE));
            if a < b && self.pages.contains_key(&edge) {
                self.page_mut(edge)[(a - edge * PAGE) as usize..(b - edge * PAGE) as usize].fill(0);
            }
        }
    }

    /// Nothing is visible from `len` on.
    pub fn cut(&mut self, len: u64) {
        self.pages.split_off(&len.div_ceil(PAGE));
        self.zero(len, len.next_multiple_of(PAGE));
        self.len = len;
    }
}

/// A change that is not durable.
#[derive(Clone, Debug)]
pub enum Change {
    Write { offset: u64, data: Arc<[u8]> },
    SetLen(u64),
    Punch { offset: u64, len: u64 },
}

impl Change {
    pub fn apply(&self, image: &mut Image) {
        match self {
            Self::Write { offset, data } => {
                image.put(*offset, data);
                image.len = image.len.max(offset + data.len() as u64);
            }
            Self::SetLen(len) if *len < image.len => image.cut(*len),
            Self::SetLen(len) => image.len = *len,
            Self::Punch { offset, len } => image.zero(*offset, (offset + len).min(image.len)),
        }
    }

    /// Sectors whose content changes on disk when this is written back.
    pub fn sectors(&self, len_before: u64) -> std::ops::Range<u64> {
        let of = |from: u64, to: u64| from / SECTOR..to.div_ceil(SECTOR);
        match self {
            Self::Write { offset, data } => of(*offset, offset + data.len() as u64),
            // The rest of the last page is zeroed in memory, and may be written so.
            Self::SetLen(len) if *len < len_before => of(*len, len.next_multiple_of(PAGE)),
            Self::SetLen(_) => 0..0,
            Self::Punch { offset, len } => of(*offset, (offset + len).min(len_before).max(*offset)),
        }
    }
}

#[derive(Clone, Default)]
pub struct SimFile {
    /// May be given again once the file is gone.
    pub ino: u64,
    pub durable: Arc<Image>,
    pub current: Arc<Image>,
    pub volatile: Vec<Change>,
    /// So many of `volatile` were dropped by a failed flush: read back, but never written.
    pub dropped: usize,
    /// Some of what is read back is neither durable nor going to be.
    pub phantom: bool,
    /// Its number is free once it has no name.
    pub closed: bool,
    /// The next flush reports the failure of an earlier one, of everything.
    pub error: bool,
    /// Number of the creation among all namespace operations, until it is durable.
    pub created: Option<usize>,
}

impl SimFile {
    fn change(&mut self, change: Change) {
        change.apply(Arc::make_mut(&mut self.current));
        self.volatile.push(change);
    }

    /// What a failed flush dropped is not read back any more; its sizes are not dropped.
    fn drop_cache(&mut self) {
        if self.dropped == 0 && !self.phantom {
            return;
        }
        self.phantom = false;
        let mut len = self.durable.len;
        let mut left = Vec::new();
        for (at, change) in std::mem::take(&mut self.volatile).into_iter().enumerate() {
            let before = len;
            len = crate::crash::len_after(&change, len);
            match change {
                Change::Write { .. } | Change::Punch { .. } if at < self.dropped => {
                    left.extend((len != before).then_some(Change::SetLen(len)));
                }
                change => left.push(change),
            }
        }
        self.dropped = 0;
        let mut image = (*self.durable).clone();
        left.iter().for_each(|change| change.apply(&mut image));
        self.volatile = left;
        self.current = Arc::new(image);
    }

    fn sync(&mut self) {
        if self.dropped == 0 && !self.phantom {
            self.durable = self.current.clone();
        } else {
            self.phantom = true;
            let choose = |_: u64, touches: &[usize]| match touches.last() {
                Some(last) if *last >= self.dropped => touches.len(),
                _ => 0,
            };
            self.durable = Arc::new(crate::crash::outcome_of(self, usize::MAX, choose));
        }
        self.volatile.clear();
        self.dropped = 0;
    }
}

#[derive(Clone, Debug)]
pub enum NsOp {
    Create(Arc<str>, FileId),
    Unlink(Arc<str>),
    Rename(Arc<str>, Arc<str>),
}

pub type Names = BTreeMap<Arc<str>, FileId>;

impl NsOp {
    pub fn apply(&self, names: &mut Names) {
        match self {
            Self::Create(name, id) => drop(names.insert(name.clone(), *id)),
            Self::Unlink(name) => drop(names.remove(name)),
            Self::Rename(from, to) => {
                if let Some(id) = names.remove(from) {
                    names.insert(to.clone(), id);
                }
            }
        }
    }
}

/// The whole disk.
#[derive(Clone, Default)]
pub struct World {
    pub files: Vec<SimFile>,
    pub names: Names,
    pub durable_names: Names,
    /// Namespace operations that are not durable.
    pub ns: Vec<NsOp>,
    /// Those before.
    pub ns_done: usize,
}

impl World {
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Write { file, offset, data } => {
                let (offset, data) = (*offset, data.clone());
                self.files[*file].change(Change::Write { offset, data });
            }
            Event::SetLen { file, len } if self.files[*file].current.len != *len => {
                self.files[*file].change(Change::SetLen(*len));
            }
            Event::Punch { file, offset, len } => {
                self.files[*file].change(Change::Punch { offset: *offset, len: *len });
            }
            Event::Sync { file } => self.sync(*file),
            Event::DropCache { file } => self.files[*file].drop_cache(),
            Event::FailedSync { file } => {
                self.files[*file].dropped = self.files[*file].volatile.len();
            }
            Event::FailedSyncAll => {
                for file in &mut self.files {
                    file.dropped = file.volatile.len();
                    file.error = file.dropped > 0;
                }
            }
            Event::SyncAll => {
                self.flush_names(self.ns.len());
                self.files.iter_mut().for_each(SimFile::sync);
            }
            Event::Create { name } => {
                let created = Some(self.ns_done + self.ns.len());
                let file = SimFile { ino: self.free_ino(), created, ..SimFile::default() };
                self.files.push(file);
                self.ns_op(NsOp::Create(name.clone(), self.files.len() - 1));
            }
            Event::Open { file, yes } => self.files[*file].closed = !yes,
            Event::Unlink { name } => self.ns_op(NsOp::Unlink(name.clone())),
            Event::Rename { from, to } => self.ns_op(NsOp::Rename(from.clone(), to.clone())),
            Event::SetLen { .. } | Event::Mtime | Event::Mark(_) => {}
        }
    }

    fn sync(&mut self, file: FileId) {
        self.files[file].sync();
        if let Some(created) = self.files[file].created.filter(|c| *c >= self.ns_done) {
            self.flush_names(created + 1 - self.ns_done);
        }
        self.files[file].created = None;
    }

    fn flush_names(&mut self, count: usize) {
        for op in self.ns.drain(..count) {
            op.apply(&mut self.durable_names);
        }
        self.ns_done += count;
    }

    fn ns_op(&mut self, op: NsOp) {
        op.apply(&mut self.names);
        self.ns.push(op);
    }

    /// The smallest number no file has that has a name or is open: numbers come back soon.
    fn free_ino(&self) -> u64 {
        let is_there = |id: usize| !self.files[id].closed || self.names.values().any(|n| *n == id);
        let used =
            |ino: &u64| (0..self.files.len()).any(|id| self.files[id].ino == *ino && is_there(id));
        (100..).find(|ino| !used(ino)).unwrap_or_default()
    }

    pub fn file(&self, name: &str) -> Option<FileId> {
        self.names.get(name).copied()
    }
}
