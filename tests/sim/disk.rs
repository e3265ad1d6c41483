//! The simulated disk as the engine sees it: [`Storage`] per file, [`Medium`], [`Locate`].

use crate::oracle::Mark;
use crate::world::{Event, FileId, World};
use kmsfs::store::content::VolumeContext;
use kmsfs::store::recover::{Locate, Located, is_unwritten, object_of};
use kmsfs::store::{Medium, Storage};
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard};

/// Which changing calls fail from now on.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Calls that still succeed.
    pub after: u64,
    /// Calls that fail then.
    pub times: u64,
    pub errno: i32,
}

#[derive(Default)]
struct Inner {
    world: World,
    log: Vec<Event>,
    fault: Option<Fault>,
    failed: u64,
}

/// See the module. Clones share the disk.
#[derive(Clone, Default)]
pub struct SimDisk(Arc<Mutex<Inner>>);

impl Inner {
    /// Does the event, unless a fault is due; returns the error then.
    fn enter(&mut self, event: Event) -> io::Result<()> {
        if let Event::Sync { file } = &event
            && std::mem::take(&mut self.world.files[*file].error)
        {
            return Err(io::Error::from_raw_os_error(5));
        }
        if let Some(fault) = &mut self.fault {
            if fault.after > 0 {
                fault.after -= 1;
            } else if fault.times > 0 {
                fault.times -= 1;
                let errno = fault.errno;
                self.failed += 1;
                self.half_done(event);
                return Err(io::Error::from_raw_os_error(errno));
            }
        }
        self.record(event);
        Ok(())
    }

    fn record(&mut self, event: Event) {
        self.world.apply(&event);
        self.log.push(event);
    }

    /// What a failing call leaves: half of a write, a flush that dropped what it should write.
    fn half_done(&mut self, event: Event) {
        match event {
            Event::Write { file, offset, data } if data.len() > 1 => {
                let data = data[..data.len() / 2].into();
                self.record(Event::Write { file, offset, data });
            }
            Event::Sync { file } => self.record(Event::FailedSync { file }),
            Event::SyncAll => self.record(Event::FailedSyncAll),
            _ => {}
        }
    }
}

impl SimDisk {
    pub fn new(world: World) -> Self {
        Self(Arc::new(Mutex::new(Inner { world, ..Inner::default() })))
    }
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }
    pub fn world(&self) -> World {
        self.lock().world.clone()
    }
    /// Events so far that change what is on disk.
    pub fn changes(&self) -> usize {
        let is_change = |e: &&Event| {
            !matches!(e, Event::DropCache { .. } | Event::Open { .. } | Event::Mark(_))
        };
        self.lock().log.iter().filter(is_change).count()
    }
    pub fn take_log(&self) -> Vec<Event> {
        std::mem::take(&mut self.lock().log)
    }
    /// Event number `at` turns out to be another one.
    pub fn amend(&self, at: usize, mark: Mark) {
        self.lock().log[at] = Event::Mark(mark);
    }
    pub fn mark(&self, mark: Mark) -> usize {
        let mut inner = self.lock();
        inner.log.push(Event::Mark(mark));
        inner.log.len() - 1
    }
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.lock().fault = fault;
    }
    /// Calls that failed so far.
    pub fn failed(&self) -> u64 {
        self.lock().failed
    }
    pub fn file(&self, id: FileId) -> Arc<SimStorage> {
        Arc::new(SimStorage { disk: self.clone(), id })
    }
    pub fn ino(&self, id: FileId) -> u64 {
        self.lock().world.files[id].ino
    }
    pub fn names(&self) -> Vec<(Arc<str>, FileId)> {
        self.lock().world.names.iter().map(|(n, id)| (n.clone(), *id)).collect()
    }
    pub fn create_file(&self, name: &str) -> io::Result<FileId> {
        let mut inner = self.lock();
        inner.enter(Event::Create { name: name.into() })?;
        Ok(inner.world.files.len() - 1)
    }
    pub fn unlink(&self, name: &str) -> io::Result<()> {
        self.lock().enter(Event::Unlink { name: name.into() })
    }
    pub fn open(&self, file: FileId, yes: bool) {
        self.lock().record(Event::Open { file, yes });
    }
    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.lock().enter(Event::Rename { from: from.into(), to: to.into() })
    }
}

impl Medium for SimDisk {
    /// One that is there already is opened as it is: it never is, unless by mistake.
    fn create(&self, name: &str) -> io::Result<Arc<dyn Storage>> {
        let there = self.lock().world.file(name);
        if let Some(id) = there {
            return Ok(self.file(id));
        }
        let id = self.create_file(name)?;
        Ok(self.file(id))
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.unlink(name)
    }
    fn sync_all(&self) -> io::Result<()> {
        self.lock().enter(Event::SyncAll)
    }
}

/// One file of a [`SimDisk`].
pub struct SimStorage {
    disk: SimDisk,
    pub id: FileId,
}

impl Storage for SimStorage {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let image = self.disk.lock().world.files[self.id].current.clone();
        let n = image.len.saturating_sub(offset).min(buf.len() as u64) as usize;
        image.get(offset, &mut buf[..n]);
        Ok(n)
    }
    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let data: Vec<u8> = bufs.iter().flat_map(|b| b.iter().copied()).collect();
        let event = Event::Write { file: self.id, offset, data: data.into() };
        self.disk.lock().enter(event)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.lock().enter(Event::SetLen { file: self.id, len })
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.lock().world.files[self.id].current.len)
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.disk.lock().enter(Event::Punch { file: self.id, offset, len })
    }
    fn reserve(&self, _len: u64) -> io::Result<()> {
        Ok(())
    }
    fn set_mtime(&self, _time: (i64, u32)) -> io::Result<()> {
        self.disk.lock().enter(Event::Mtime)
    }
    fn sync(&self) -> io::Result<()> {
        self.disk.lock().enter(Event::Sync { file: self.id })
    }
    fn drop_cache(&self) {
        self.disk.lock().record(Event::DropCache { file: self.id });
    }
}

/// Finds files by path, by number, and by looking at each of them.
pub struct Finder {
    pub disk: SimDisk,
    pub ctx: Arc<VolumeContext>,
}

impl Locate for Finder {
    fn open(
        &self,
        object: kmsfs::format::ObjectId,
        ino: u64,
        path: &[u8],
    ) -> io::Result<Option<Located>> {
        let names = self.disk.names();
        let by_path = names.iter().filter(|(name, _)| name.as_bytes() == path);
        let by_ino = names.iter().filter(|(_, id)| self.disk.ino(*id) == ino);
        for (_, id) in by_path.chain(by_ino).chain(&names) {
            let storage = self.disk.file(*id);
            if object_of(&self.ctx, &*storage) == Some(object) {
                return Ok(Some(Located { ino: self.disk.ino(*id), storage }));
            }
        }
        Ok(None)
    }

    fn unwritten(&self, ino: u64, path: &[u8]) -> io::Result<Option<Located>> {
        for (name, id) in self.disk.names() {
            let storage = self.disk.file(id);
            let stands = name.as_bytes() == path && self.disk.ino(id) == ino;
            if stands && storage.len()? > 0 && is_unwritten(&*storage)? {
                return Ok(Some(Located { ino, storage }));
            }
        }
        Ok(None)
    }
}
