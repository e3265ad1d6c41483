//! Looking ahead: while the files of a directory are opened one after another, the data keys of the
//! next ones are unwrapped already, many at a time.
//!
//! Nothing here is waited for, and nothing is asked of a KMS that has no room for it. Only headers that
//! authenticate are followed.

use super::attr::{FileKind, Ino};
use super::backing;
use super::dirs::DirHandle;
use super::error::FsResult;
use super::inode::Inode;
use super::names::Listed;
use super::volume::{Volume, refuse_rolled_back};
use crate::store::{Content, FileStorage};
use lru::LruCache;
use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Directories whose openings are followed.
const TRAILS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(63);
/// Files of one directory that are looked at.
const FILES_MAX: usize = 65_536;
/// How many keys of one directory are unwrapped at a time, and of all.
const WORKERS: usize = 32;
const WORKERS_MAX: usize = 64;
/// Files ahead of the last one opened: at first, and at most.
const WINDOW: (usize, usize) = (8, 256);
/// Files that may be skipped between two that are opened one after another.
const STRIDE: usize = 4;
/// A directory is left alone for so long after its files were opened in no order.
const PAUSE: Duration = Duration::from_secs(5);
/// How long a worker waits for the next opening.
const IDLE: Duration = Duration::from_millis(500);
/// How long it waits for room in the rate.
const NO_ROOM: Duration = Duration::from_millis(2);

/// A file and its entry.
type Named = (Ino, Box<[u8]>);

/// The followed directories.
pub(super) struct LookAhead {
    trails: Mutex<LruCache<Ino, Arc<Trail>>>,
    /// Threads at work, for all directories together.
    workers: AtomicUsize,
}

/// The openings in one directory.
#[derive(Default)]
struct Trail {
    state: Mutex<Steps>,
    moved: Condvar,
}

#[derive(Default)]
struct Steps {
    /// The file opened last.
    last: Option<Ino>,
    run: Option<Run>,
    /// No order was found then, or one is being looked for.
    tried: Option<Instant>,
}

/// Files in the order they are being opened.
struct Run {
    files: Vec<Named>,
    places: HashMap<Ino, usize>,
    /// Behind the last one opened.
    reached: usize,
    /// The next one to look at.
    next: usize,
    window: usize,
}

impl LookAhead {
    pub(super) fn new() -> Self {
        Self { trails: Mutex::new(LruCache::new(TRAILS)), workers: AtomicUsize::new(0) }
    }

    fn trail(&self, dir: Ino) -> Arc<Trail> {
        self.trails.lock().get_or_insert(dir, Arc::default).clone()
    }
}

impl Run {
    /// A run in which `second` is opened soon after `first`.
    fn find(files: Vec<Named>, first: Ino, second: Ino) -> Option<Self> {
        let places: HashMap<Ino, usize> =
            files.iter().enumerate().map(|(place, (ino, _))| (*ino, place)).collect();
        let (from, to) = (*places.get(&first)?, *places.get(&second)?);
        let reached = to + 1;
        (to > from && to - from <= STRIDE).then_some(Self {
            files,
            places,
            reached,
            next: reached,
            window: WINDOW.0,
        })
    }

    /// The reader has come to `ino`. Returns whether that is where the run leads.
    fn reach(&mut self, ino: Ino) -> bool {
        let Some(place) = self.places.get(&ino) else { return false };
        let ahead = *place >= self.reached && *place < self.reached + self.window;
        if ahead {
            self.reached = place + 1;
            self.next = self.next.max(self.reached);
            self.window = (self.window * 2).min(WINDOW.1);
        }
        // Opened once more, or by somebody else: the run goes on.
        ahead || *place < self.reached
    }

    fn take(&mut self) -> Option<Box<[u8]>> {
        if self.next >= self.files.len() || self.next >= self.reached + self.window {
            return None;
        }
        let (_, entry) = &self.files[self.next];
        self.next += 1;
        Some(entry.clone())
    }
}

impl Volume {
    /// A file was opened, or is about to be; `cold` says that its key was not at hand.
    pub fn note_opening(self: &Arc<Self>, ino: Ino, cold: bool) {
        if !self.keyring.is_watched() {
            return;
        }
        let Some(inode) = self.table.get(ino) else { return };
        let Some(dir) = inode.names.lock().places.last().map(|place| place.parent.clone()) else {
            return;
        };
        let trail = self.ahead.trail(dir.ino);
        let mut steps = trail.state.lock();
        let last = steps.last.replace(ino);
        if let Some(run) = &mut steps.run {
            if run.reach(ino) {
                trail.moved.notify_all();
                return;
            }
            steps.run = None;
        }
        let tired = steps.tried.is_some_and(|at| at.elapsed() < PAUSE);
        let Some(last) = last.filter(|last| cold && !tired && *last != ino) else { return };
        steps.tried = Some(Instant::now());
        drop(steps);
        let volume = Arc::downgrade(self);
        spawn(move || begin(&volume, &dir, &trail, last, ino));
    }

    /// The regular files of a directory as listings show them, and the same by name.
    fn files_in_order(&self, dir: &Arc<Inode>) -> FsResult<[Vec<Named>; 2]> {
        let handle = self.dir_handle(dir)?;
        let id = self.dir_id(dir, &handle)?;
        let codec = self.codec()?;
        let mut named = Vec::new();
        for entry in backing::list(&handle)? {
            if FileKind::from_mode(entry.mode) != Some(FileKind::Regular)
                || named.len() >= FILES_MAX
            {
                continue;
            }
            let name = match codec.listed(id, &entry.name) {
                Listed::Name(name) => name,
                Listed::Long => match self.read_long_name(&handle, id, &entry.name) {
                    Ok(name) => name,
                    Err(_) => continue,
                },
                Listed::Dot | Listed::Helper | Listed::Unreadable => continue,
            };
            named.push((name, (self.show_ino(entry.ino), entry.name.into_boxed_slice())));
        }
        let listed = named.iter().map(|(_, file)| file.clone()).collect();
        named.sort();
        Ok([named.into_iter().map(|(_, file)| file).collect(), listed])
    }

    /// Asks for the keys of a header, unless they are at hand.
    fn look_at(&self, dir: &DirHandle, entry: &[u8]) -> FsResult<()> {
        let storage = FileStorage(backing::open_file(dir, entry, false)?);
        let header = Content::read_header(&self.ctx, &storage)?;
        refuse_rolled_back(header.wrap_epoch, self.descriptor().params.generation)?;
        for slot in std::iter::once(&header.current).chain(&header.next) {
            self.keyring.look_ahead(slot);
        }
        Ok(())
    }
}

fn spawn(work: impl FnOnce() + Send + 'static) {
    if let Err(error) = std::thread::Builder::new().name("kmsfs-ahead".into()).spawn(work) {
        log::debug!("not looking ahead: {error}");
    }
}

/// Finds out in which order files are opened, and follows it.
fn begin(volume: &Weak<Volume>, dir: &Arc<Inode>, trail: &Arc<Trail>, first: Ino, second: Ino) {
    let Some(strong) = volume.upgrade() else { return };
    let Ok(orders) = strong.files_in_order(dir) else { return };
    let Some(run) = orders.into_iter().find_map(|files| Run::find(files, first, second)) else {
        return;
    };
    {
        let mut steps = trail.state.lock();
        let last = steps.last;
        let run = steps.run.insert(run);
        // Opened meanwhile.
        last.map(|last| run.reach(last));
        steps.tried = None;
    }
    for _ in 1..WORKERS {
        if strong.ahead.workers.fetch_add(1, Ordering::AcqRel) >= WORKERS_MAX {
            strong.ahead.workers.fetch_sub(1, Ordering::AcqRel);
            break;
        }
        let (volume, dir, trail) = (volume.clone(), dir.clone(), trail.clone());
        spawn(move || {
            follow(&volume, &dir, &trail);
            if let Some(volume) = volume.upgrade() {
                volume.ahead.workers.fetch_sub(1, Ordering::AcqRel);
            }
        });
    }
    drop(strong);
    follow(volume, dir, trail);
}

/// Looks at one file after another until the run ends or nobody follows it.
fn follow(volume: &Weak<Volume>, dir: &Arc<Inode>, trail: &Trail) {
    while let Some(entry) = next(trail) {
        let Some(volume) = volume.upgrade() else { return };
        let Ok(handle) = volume.dir_handle(dir) else { return };
        let asked = Instant::now();
        while !volume.keyring.has_spare() {
            if asked.elapsed() > IDLE {
                return;
            }
            std::thread::sleep(NO_ROOM);
        }
        if let Err(error) = volume.look_at(&handle, &entry) {
            log::debug!("looking ahead at {}: {error}", String::from_utf8_lossy(&entry));
        }
    }
}

fn next(trail: &Trail) -> Option<Box<[u8]>> {
    let mut steps = trail.state.lock();
    loop {
        let run = steps.run.as_mut()?;
        if let Some(entry) = run.take() {
            return Some(entry);
        }
        if run.next >= run.files.len() {
            steps.run = None;
            return None;
        }
        if trail.moved.wait_for(&mut steps, IDLE).timed_out() {
            // The next cold opening begins anew.
            steps.run = None;
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(inos: impl IntoIterator<Item = Ino>) -> Vec<Named> {
        inos.into_iter().map(|ino| (ino, ino.to_string().into_bytes().into())).collect()
    }

    #[test]
    fn a_run_needs_two_neighbours_in_order() {
        assert!(Run::find(files(0..100), 5, 6).is_some());
        assert!(Run::find(files(0..100), 5, 9).is_some());
        assert!(Run::find(files(0..100), 5, 10).is_none());
        assert!(Run::find(files(0..100), 6, 5).is_none());
        assert!(Run::find(files(0..100), 5, 100).is_none());
    }

    #[test]
    fn the_window_opens_as_the_reader_comes_along_and_never_runs_past_it() {
        let mut run = Run::find(files(0..1000), 0, 1).unwrap();
        let taken = |run: &mut Run| std::iter::from_fn(|| run.take()).count();
        assert_eq!(taken(&mut run), 8);
        assert!(run.reach(2));
        assert_eq!((taken(&mut run), run.next), (9, 19));
        assert!(run.reach(3) && run.reach(4) && run.reach(5) && run.reach(6) && run.reach(7));
        taken(&mut run);
        assert_eq!(run.next, 8 + 256);
        assert!(run.reach(3), "opened again");
        assert!(!run.reach(900), "somewhere else");
        assert!(!run.reach(5000), "a new file");
    }

    #[test]
    fn a_run_ends_with_the_directory() {
        let mut run = Run::find(files(0..6), 1, 2).unwrap();
        assert_eq!(std::iter::from_fn(|| run.take()).count(), 3);
        assert!(run.reach(5));
        assert!(run.take().is_none());
    }
}
