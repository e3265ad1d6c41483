//! The record of what is not known to be on disk yet, so that what a durable name depends on is
//! made durable before anybody relies on it, and nothing is flushed twice.
//!
//! After a crash the backing holds a prefix of the operations on names, in order, but perhaps not
//! the *content* of a file whose name it holds. An entry is of use only with the content of its
//! helpers: the `kmsfs.dir` of every directory above, the `.name` of long names, the `kmsfs.link.*`
//! of long symlinks. So their content has to be firm before somebody may count on the name.
//!
//! Recorded are helpers written, objects made and attributes changed since the last flush of the
//! whole backing file system; what is not recorded is durable. Each record carries the number of
//! the change. A flush takes away the records it began with and no later ones, so what is added
//! while it runs stays.
//!
//! Memory is bounded: a record that outgrows its room is thrown away and says "unknown" until the
//! next whole flush. For helpers that means a whole flush for the first who needs one, for
//! attributes that every fsync is a full one, and for new objects that they count as durable, which
//! costs flushes but never a file. A session begins so as well: the volume may have been copied
//! here just now, or a daemon that was killed may have written to it.
//!
//! The lock is a leaf: nothing else is locked, and the disk is not touched, while it is held.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::attr::Ino;
use super::names::DIR_FILE;
use crate::store::{FileStorage, Storage};

/// Helpers, and objects, recorded at most.
const ROOM: usize = 1 << 16;
/// More helpers than this are made durable by one flush of everything.
const MANY: usize = 64;
/// Number of a helper whose flush failed: the kernel has dropped what it could not write, and the
/// next flush would succeed without it. It stays broken until its name goes or the volume is opened
/// anew.
const BROKEN: u64 = u64::MAX;

/// Flushes of the backing so far.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Flushes {
    /// Of a regular file.
    pub files: u64,
    /// Of a helper.
    pub helpers: u64,
    /// Of a directory.
    pub directories: u64,
    /// Of everything.
    pub whole: u64,
    /// Of the journal.
    pub journal: u64,
}

/// What reached the disk, or a name that moved, in the order in which it happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// A regular file was flushed.
    File(Ino),
    /// A helper of this name in this directory was flushed.
    Helper(Ino, Vec<u8>),
    /// A directory was flushed.
    Directory(Ino),
    /// Everything was flushed.
    Whole,
    /// The journal was flushed.
    Journal,
    /// An object got another name, or one more.
    Named(Ino),
}

/// Called at every step.
pub type StepHook = Box<dyn Fn(Step) + Send + Sync>;

/// A helper: its directory and its name there.
pub type HelperName<'a> = (Ino, Cow<'a, [u8]>);

/// A helper that has to be flushed, and the change that made it so.
pub struct Helper {
    /// Directory.
    pub dir: Ino,
    /// Name in it.
    pub name: Box<[u8]>,
    stamp: u64,
}

/// What must be flushed before helpers can be relied on.
pub enum Due {
    /// Nothing.
    Nothing,
    /// These.
    These(Vec<Helper>),
    /// Too many, or it is not known which.
    Whole,
    /// One of them could not be written.
    Broken,
}

/// Helpers in one directory that are not firm. A number of 0 means firm.
#[derive(Default)]
struct Helpers {
    /// Its parent directory.
    parent: Ino,
    own: u64,
    others: BTreeMap<Box<[u8]>, u64>,
}

impl Helpers {
    fn len(&self) -> usize {
        usize::from(self.own != 0) + self.others.len()
    }

    fn get(&self, name: &[u8]) -> u64 {
        if name == DIR_FILE { self.own } else { self.others.get(name).copied().unwrap_or(0) }
    }

    fn set(&mut self, name: &[u8], stamp: u64) {
        if name == DIR_FILE {
            self.own = stamp;
        } else if stamp == 0 {
            self.others.remove(name);
        } else {
            self.others.insert(name.into(), stamp);
        }
    }

    fn all(&self) -> impl Iterator<Item = (&[u8], u64)> {
        let own = Some((DIR_FILE, self.own)).filter(|(_, stamp)| *stamp != 0);
        own.into_iter().chain(self.others.iter().map(|(name, stamp)| (&**name, *stamp)))
    }

    fn retain(&mut self, keep: impl Fn(u64) -> bool) {
        if !keep(self.own) {
            self.own = 0;
        }
        self.others.retain(|_, stamp| keep(*stamp));
    }
}

/// An object made or changed; numbers as above.
#[derive(Default)]
struct Object {
    /// The directory it was made in or moved to.
    dir: Ino,
    born: u64,
    changed: u64,
}

#[derive(Default)]
struct Record {
    /// Number of the last change.
    now: u64,
    dirs: HashMap<Ino, Helpers>,
    /// Helpers in `dirs`.
    helpers: usize,
    /// The change at which the helpers before it were thrown away.
    helpers_lost: u64,
    objects: HashMap<Ino, Object>,
    /// The same for objects.
    objects_lost: u64,
}

impl Record {
    fn next(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    fn helper(&self, dir: Ino, name: &[u8]) -> u64 {
        self.dirs.get(&dir).map_or(0, |helpers| helpers.get(name))
    }

    fn set_helper(&mut self, dir: Ino, name: &[u8], stamp: u64) {
        let Some(helpers) = self.dirs.get_mut(&dir) else { return };
        self.helpers -= helpers.len();
        helpers.set(name, stamp);
        self.helpers += helpers.len();
        if helpers.len() == 0 {
            self.dirs.remove(&dir);
        }
    }

    fn retain_helpers(&mut self, keep: impl Fn(u64) -> bool) {
        self.dirs.retain(|_, helpers| {
            helpers.retain(&keep);
            helpers.len() > 0
        });
        self.helpers = self.dirs.values().map(Helpers::len).sum();
        self.dirs.shrink_to(2 * self.dirs.len());
    }

    fn retain_objects(&mut self, keep: impl Fn(u64) -> bool) {
        self.objects.retain(|_, object| {
            for stamp in [&mut object.born, &mut object.changed] {
                *stamp = if keep(*stamp) { *stamp } else { 0 };
            }
            object.born != 0 || object.changed != 0
        });
        self.objects.shrink_to(2 * self.objects.len());
    }

    /// The record of an object that is new to it or not.
    fn object(&mut self, ino: Ino, room: usize) -> &mut Object {
        if self.objects.len() >= room && !self.objects.contains_key(&ino) {
            self.objects.clear();
            self.objects_lost = self.now;
        }
        self.objects.entry(ino).or_default()
    }
}

/// The record; see the module's head.
pub struct Firm {
    record: Mutex<Record>,
    room: usize,
    files: AtomicU64,
    helpers: AtomicU64,
    directories: AtomicU64,
    whole: AtomicU64,
    journal: AtomicU64,
    hook: OnceLock<StepHook>,
}

impl Default for Firm {
    fn default() -> Firm {
        Firm::with_room(ROOM)
    }
}

impl Firm {
    /// A record with room for so many helpers, and as many objects.
    fn with_room(room: usize) -> Firm {
        Firm {
            record: Mutex::default(),
            room,
            files: AtomicU64::new(0),
            helpers: AtomicU64::new(0),
            directories: AtomicU64::new(0),
            whole: AtomicU64::new(0),
            journal: AtomicU64::new(0),
            hook: OnceLock::new(),
        }
    }

    /// Nothing is known to be durable.
    pub fn nothing_known(&self) {
        let mut record = self.record.lock();
        record.helpers_lost = record.next();
    }

    // -- helpers

    /// A helper was written. `parent` is the parent of its directory.
    pub fn wrote(&self, parent: Ino, dir: Ino, name: &[u8]) {
        let mut record = self.record.lock();
        let stamp = record.next();
        if record.helpers >= self.room {
            record.retain_helpers(|stamp| stamp == BROKEN);
            record.helpers_lost = stamp;
        }
        record.dirs.entry(dir).or_default().parent = parent;
        record.set_helper(dir, name, stamp);
    }

    /// A helper was removed.
    pub fn dropped(&self, dir: Ino, name: &[u8]) {
        self.record.lock().set_helper(dir, name, 0);
    }

    /// A directory was removed.
    pub fn dropped_dir(&self, dir: Ino) {
        let mut record = self.record.lock();
        if let Some(helpers) = record.dirs.remove(&dir) {
            record.helpers -= helpers.len();
        }
    }

    /// Is anything recorded that a whole flush would make durable?
    pub fn is_clear(&self) -> bool {
        let record = self.record.lock();
        let lost = record.helpers_lost != 0 || record.objects_lost != 0;
        record.dirs.is_empty() && record.objects.is_empty() && !lost
    }

    /// No helper to flush for anybody?
    pub fn all_firm(&self) -> bool {
        let record = self.record.lock();
        record.helpers == 0 && record.helpers_lost == 0
    }

    /// What of these helpers is not firm; with `inside`, also what stands in that directory and the
    /// `kmsfs.dir` of the directories directly in it.
    pub fn due(&self, names: &[HelperName<'_>], inside: Option<Ino>) -> Due {
        let record = self.record.lock();
        let mut found = HashSet::new();
        let mut helpers = Vec::new();
        let mut add = |dir: Ino, name: &[u8], stamp: u64| {
            if stamp != 0 && found.insert(stamp) {
                helpers.push(Helper { dir, name: name.into(), stamp });
            }
        };
        for (dir, name) in names {
            add(*dir, name, record.helper(*dir, name));
        }
        if let Some(inside) = inside {
            let own = record.dirs.get(&inside).into_iter();
            own.flat_map(Helpers::all).for_each(|(name, stamp)| add(inside, name, stamp));
            let children = record.dirs.iter().filter(|(_, helpers)| helpers.parent == inside);
            children.for_each(|(child, helpers)| add(*child, DIR_FILE, helpers.own));
        }
        if helpers.iter().any(|helper| helper.stamp == BROKEN) {
            Due::Broken
        } else if record.helpers_lost != 0 || helpers.len() > MANY {
            Due::Whole
        } else if helpers.is_empty() {
            Due::Nothing
        } else {
            Due::These(helpers)
        }
    }

    /// A helper was flushed, or has gone.
    pub fn flushed(&self, helper: &Helper) {
        let mut record = self.record.lock();
        if record.helper(helper.dir, &helper.name) == helper.stamp {
            record.set_helper(helper.dir, &helper.name, 0);
        }
    }

    /// The flush of a helper failed.
    pub fn broke(&self, helper: &Helper) {
        self.record.lock().set_helper(helper.dir, &helper.name, BROKEN);
    }

    // -- objects

    /// An object other than a directory was made.
    pub fn born(&self, ino: Ino, dir: Ino) {
        let mut record = self.record.lock();
        let stamp = record.next();
        *record.object(ino, self.room) = Object { dir, born: stamp, changed: stamp };
    }

    /// Attributes of a regular file were changed.
    pub fn changed(&self, ino: Ino) {
        let mut record = self.record.lock();
        let stamp = record.next();
        record.object(ino, self.room).changed = stamp;
    }

    /// An object moved to this directory.
    pub fn moved(&self, ino: Ino, dir: Ino) {
        let mut record = self.record.lock();
        if let Some(object) = record.objects.get_mut(&ino) {
            object.dir = dir;
        }
        if let Some(helpers) = record.dirs.get_mut(&ino) {
            helpers.parent = dir;
        }
    }

    /// An object was removed.
    pub fn gone(&self, ino: Ino) {
        self.record.lock().objects.remove(&ino);
    }

    /// Has nobody been promised yet that this object outlives a crash?
    pub fn is_new(&self, ino: Ino) -> bool {
        self.record.lock().objects.get(&ino).is_some_and(|object| object.born != 0)
    }

    /// From here on the object counts as durable.
    pub fn settled(&self, ino: Ino) {
        let mut record = self.record.lock();
        if let Some(object) = record.objects.get_mut(&ino) {
            object.born = 0;
            if object.changed == 0 {
                record.objects.remove(&ino);
            }
        }
    }

    /// The same for everything in a directory.
    pub fn settled_in(&self, dir: Ino) {
        self.record.lock().objects.retain(|_, object| {
            if object.dir == dir {
                object.born = 0;
            }
            object.born != 0 || object.changed != 0
        });
    }

    /// Has the file attributes that only a full flush makes durable?
    pub fn is_changed(&self, ino: Ino) -> bool {
        self.change_of(ino).is_some()
    }

    fn change_of(&self, ino: Ino) -> Option<u64> {
        let record = self.record.lock();
        let own = record.objects.get(&ino).map_or(0, |object| object.changed);
        (own != 0 || record.objects_lost != 0).then_some(own)
    }

    // -- flushes

    /// Flushes a file: its attributes too if they were changed.
    pub fn sync_file(&self, ino: Ino, file: &FileStorage) -> io::Result<()> {
        match self.change_of(ino) {
            None => file.sync()?,
            Some(stamp) => {
                file.0.sync_all()?;
                self.unchanged(ino, stamp);
            }
        }
        self.step(Step::File(ino));
        Ok(())
    }

    fn unchanged(&self, ino: Ino, stamp: u64) {
        let mut record = self.record.lock();
        if let Some(object) = record.objects.get_mut(&ino).filter(|o| o.changed == stamp) {
            object.changed = 0;
        }
        drop(record);
        self.settled(ino);
    }

    /// Flushes the whole backing file system that `root` is on. What was done before the call is
    /// durable afterwards.
    pub fn flush_whole(&self, root: impl AsFd) -> io::Result<()> {
        let began = self.begin_whole();
        rustix::fs::syncfs(root)?;
        self.end_whole(began);
        Ok(())
    }

    /// A flush of everything begins; what it returns goes to [`Self::end_whole`].
    fn begin_whole(&self) -> u64 {
        self.record.lock().next()
    }

    /// A flush of everything has succeeded.
    fn end_whole(&self, began: u64) {
        let mut record = self.record.lock();
        record.retain_helpers(|stamp| stamp > began);
        record.retain_objects(|stamp| stamp > began);
        if record.helpers_lost < began {
            record.helpers_lost = 0;
        }
        if record.objects_lost < began {
            record.objects_lost = 0;
        }
        drop(record);
        self.step(Step::Whole);
    }

    /// Counts a step and tells the hook.
    pub fn step(&self, step: Step) {
        let count = match step {
            Step::File(_) => Some(&self.files),
            Step::Helper(..) => Some(&self.helpers),
            Step::Directory(_) => Some(&self.directories),
            Step::Whole => Some(&self.whole),
            Step::Journal => Some(&self.journal),
            Step::Named(_) => None,
        };
        if let Some(count) = count {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(hook) = self.hook.get() {
            hook(step);
        }
    }

    /// Flushes so far.
    pub fn counts(&self) -> Flushes {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Flushes {
            files: get(&self.files),
            helpers: get(&self.helpers),
            directories: get(&self.directories),
            whole: get(&self.whole),
            journal: get(&self.journal),
        }
    }

    /// Calls `hook` at every step from now on; only the first hook counts.
    pub fn set_hook(&self, hook: StepHook) {
        let _ = self.hook.set(hook);
    }
}

/// A file as the engine gets it: flushes go by the record, or are counted at least.
pub struct Watched {
    /// The file.
    pub file: Arc<FileStorage>,
    /// Its inode number; the journal has none.
    pub ino: Option<Ino>,
    /// The record.
    pub firm: Arc<Firm>,
}

impl Storage for Watched {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.file.write_at(bufs, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn drop_cache(&self) {
        self.file.drop_cache();
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.punch(offset, len)
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        self.file.reserve(len)
    }

    fn reserve_range(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.reserve_range(offset, len)
    }

    fn mtime(&self) -> io::Result<Option<(i64, u32)>> {
        self.file.mtime().map(Some)
    }

    fn set_mtime_meanwhile(&self, time: (i64, u32)) -> io::Result<()> {
        self.file.set_mtime(time)
    }

    /// The time goes to disk with the content: a backup that compares times must not miss a change.
    fn set_mtime(&self, time: (i64, u32)) -> io::Result<()> {
        let done = self.file.set_mtime(time);
        if let Some(ino) = self.ino {
            self.firm.changed(ino);
        }
        done
    }

    fn sync(&self) -> io::Result<()> {
        match self.ino {
            Some(ino) => self.firm.sync_file(ino, &self.file),
            None => {
                self.file.sync()?;
                self.firm.step(Step::Journal);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests;
