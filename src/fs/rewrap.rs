//! The sweep after a change of recipients: gives every header the wrapped keys the volume now wants.
//!
//! Bodies, sizes and modification times stay as they are; a crash leaves every header old or new. A
//! file whose header is right already is not written, so an interrupted sweep is finished by running
//! it again. A KMS is asked about many headers at a time; writing them is one thread's work.

use rustix::fs::Mode;
use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::attr::FileKind;
use super::backing;
use super::error::{FsError, FsResult};
use super::files::SET_ID;
use super::survey::{Damage, Found, Survey, Visitor};
use super::verify::Watch;
use super::volume::refuse_rolled_back;
use crate::format::descriptor::NameMode;
use crate::format::header::{KeySlot, Recipient};
use crate::keys::{KeyError, Keyring};
use crate::store::content::{VolumeContext, now};
use crate::store::rewrap::rewrap_header;
use crate::store::{Content, FileLog, FileStorage, Journal, Whereabouts};

/// Files whose new headers wait for a checkpoint; each is open until then.
const OPEN_MAX: usize = 256;
/// Files whose new copies are asked for before any of them is written.
const BATCH: usize = 256;
/// Files whose new copies are asked for at a time when a KMS answers.
const WORKERS: usize = 64;

/// Where the walk found a file.
struct At {
    ino: u64,
    path: Vec<u8>,
}

impl Whereabouts for At {
    fn find(&self) -> (u64, Vec<u8>) {
        (self.ino, self.path.clone())
    }
}

/// What a sweep did.
#[derive(Default)]
pub struct Swept {
    /// Headers looked at.
    pub headers: u64,
    /// Headers written.
    pub rewritten: u64,
    /// Files that moved or changed while they were looked at: another sweep is needed.
    pub moved: u64,
    /// Entries that could not be read or written; each was reported.
    pub failed: u64,
    /// Files whose keys could not be had now: nothing is wrong with them.
    pub unserved: u64,
    /// Why the first of them could not.
    pub unserved_why: Option<String>,
}

/// Writes headers.
pub trait Writer: Sync {
    /// Gives files their new copies, in this order; some need none. `false`: it is not the file any
    /// more that was looked at.
    fn write(&self, batch: &[(&Found, &Plan)]) -> Vec<FsResult<bool>>;
    /// Makes everything written durable.
    fn finish(&self) -> FsResult<()>;
}

/// Hears of the files whose headers are about to be written.
pub type Record<'a> = &'a (dyn Fn(&[&Found]) -> FsResult<()> + Sync);

/// Sweeps the headers of a volume.
pub struct Sweep<'a> {
    /// Volume and keys as the engine wants them.
    pub context: Arc<VolumeContext>,
    /// How names are stored.
    pub names: NameMode,
    /// Generation of the descriptor before the change that this sweep follows: no header can be of a
    /// later one.
    pub generation: u64,
    /// Wraps for the volume's present recipients.
    pub keyring: &'a Keyring,
    /// Writes.
    pub writer: &'a dyn Writer,
    /// Is told before anything is written.
    pub record: Record<'a>,
    /// Who is told.
    pub watch: &'a dyn Watch,
}

/// Writes the headers of a volume that is locked for writing and not mounted.
pub struct InPlace {
    /// Volume and keys as the engine wants them.
    pub context: Arc<VolumeContext>,
    /// Where the new headers go first.
    pub journal: Arc<Journal>,
    /// The backing root.
    pub root: Arc<OwnedFd>,
    /// Modification times become the present.
    pub touch: bool,
    /// Generation of the descriptor whose recipients the new copies are for.
    pub epoch: u64,
}

impl Writer for InPlace {
    fn write(&self, batch: &[(&Found, &Plan)]) -> Vec<FsResult<bool>> {
        batch.iter().map(|(found, plan)| self.carry_out(found, plan).map(|()| true)).collect()
    }

    fn finish(&self) -> FsResult<()> {
        self.journal.close()?;
        Ok(rustix::fs::syncfs(&self.root)?)
    }
}

impl InPlace {
    fn carry_out(&self, found: &Found, plan: &Plan) -> FsResult<()> {
        let storage = FileStorage(backing::open_file(&*found.parent, &found.entry, true)?);
        let place = Box::new(At { ino: found.stat.st_ino, path: found.backing.clone() });
        let file = FileLog::new(self.journal.clone(), Arc::new(storage), place, true);
        let mtime = match self.touch {
            true => now(),
            false => (found.stat.st_mtime, found.stat.st_mtime_nsec as u32),
        };
        let (current, next) = plan.copies();
        rewrap_header(&self.context, &file, mtime, current, next, self.epoch)?;
        if found.stat.st_mode & SET_ID != 0 && !rustix::process::geteuid().is_root() {
            // It is in its place only then, and the bits are gone.
            self.journal.checkpoint(false)?;
            let again = FileStorage(backing::open_file(&*found.parent, &found.entry, false)?);
            restore_set_id(&again, found.stat.st_mode);
        }
        if self.journal.pending_files() >= OPEN_MAX {
            self.journal.checkpoint(false)?;
        }
        Ok(())
    }
}

/// For a program without privilege the backing drops set-id bits when a header is written, which is no
/// change of content.
pub(super) fn restore_set_id(storage: &FileStorage, mode: u32) {
    if mode & SET_ID == 0 {
        return;
    }
    if let Err(error) = rustix::fs::fchmod(&storage.0, Mode::from_raw_mode(mode & 0o7777)) {
        log::warn!("set-id bits of a rewrapped file are lost: {error}");
    }
}

impl Sweep<'_> {
    /// Looks at every header once; everything written is durable when this returns.
    pub fn run(&self, root: impl AsFd) -> FsResult<Swept> {
        let root = backing::open_dir(root)?;
        let survey = Survey { keys: self.context.keys.keys()?, names: self.names };
        let mut state = State {
            sweep: self,
            swept: Swept::default(),
            seen: HashSet::new(),
            batch: Vec::with_capacity(BATCH),
            failed: None,
        };
        survey.walk(&root, &mut state)?;
        state.flush();
        self.writer.finish()?;
        match state.failed {
            Some(error) => Err(error),
            None => Ok(state.swept),
        }
    }

    /// What each of these headers is to hold, in their order.
    fn plans(&self, batch: &[Found]) -> Vec<FsResult<Plan>> {
        let workers = if self.keyring.asks_kms() { WORKERS.min(batch.len()) } else { 1 };
        if workers <= 1 {
            return batch.iter().map(|found| self.plan(found)).collect();
        }
        let next = AtomicUsize::new(0);
        let work = || {
            let places = std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)));
            let mine = places.map_while(|at| Some((at, self.plan(batch.get(at)?))));
            mine.collect::<Vec<_>>()
        };
        let mut plans: Vec<(usize, FsResult<Plan>)> = std::thread::scope(|scope| {
            // A thread that cannot be had is one fewer; this one does what is left.
            let spawn = |_| std::thread::Builder::new().spawn_scoped(scope, work).ok();
            let others: Vec<_> = (1..workers).filter_map(spawn).collect();
            let mine = work();
            let join = |other: std::thread::ScopedJoinHandle<'_, Vec<_>>| {
                other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            mine.into_iter().chain(others.into_iter().flat_map(join)).collect()
        });
        plans.sort_by_key(|(at, _)| *at);
        plans.into_iter().map(|(_, plan)| plan).collect()
    }

    fn plan(&self, found: &Found) -> FsResult<Plan> {
        let reading = FileStorage(backing::open_file(&*found.parent, &found.entry, false)?);
        let header = Content::read_header(&self.context, &reading)?;
        // Or a descriptor that was rolled back would spread the recipients it still names.
        refuse_rolled_back(header.wrap_epoch, self.generation)?;
        let change = |old: KeySlot| -> FsResult<Change> {
            let new = self.keyring.rewrap(&old)?.map(|slot| slot.recipients);
            Ok(Change { old, new })
        };
        Ok(Plan { current: change(header.current)?, next: header.next.map(change).transpose()? })
    }
}

/// What a header is to hold.
#[derive(Clone)]
pub struct Plan {
    /// The current slot.
    pub current: Change,
    /// The next one, if there is one.
    pub next: Option<Change>,
}

/// New copies for one slot.
#[derive(Clone)]
pub struct Change {
    /// The slot they were made of.
    pub old: KeySlot,
    /// None: it is right as it is.
    pub new: Option<Vec<Recipient>>,
}

impl Plan {
    /// New copies for both slots.
    pub(super) fn copies(&self) -> (Option<Vec<Recipient>>, Option<Vec<Recipient>>) {
        let next = self.next.as_ref().and_then(|change| change.new.clone());
        (self.current.new.clone(), next)
    }

    /// Is there nothing to do?
    fn is_idle(&self) -> bool {
        let idle = |change: &Change| change.new.is_none();
        idle(&self.current) && self.next.as_ref().is_none_or(idle)
    }
}

struct State<'a> {
    sweep: &'a Sweep<'a>,
    swept: Swept,
    /// Inodes with several links that were swept already.
    seen: HashSet<(u64, u64)>,
    /// Found and not yet looked at.
    batch: Vec<Found>,
    /// Nothing more can be recorded, so nothing more is written.
    failed: Option<FsError>,
}

impl State<'_> {
    /// Looks at what was found, and writes what has to change.
    fn flush(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        if self.failed.is_some() {
            return;
        }
        let plans = self.sweep.plans(&batch);
        let refused = |plan: &FsResult<Plan>| plan.as_ref().err().is_some_and(is_refusal);
        if !plans.is_empty() && plans.iter().all(refused) {
            // The others would be told the same, each after some waiting.
            self.failed = plans.into_iter().find_map(Result::err);
            return;
        }
        let mut todo = Vec::new();
        for (found, plan) in batch.iter().zip(&plans) {
            self.swept.headers += 1;
            match plan {
                Ok(plan) if plan.is_idle() => {}
                Ok(plan) => todo.push((found, plan)),
                Err(error) => self.fail(found, error),
            }
        }
        let names: Vec<&Found> = todo.iter().map(|(found, _)| *found).collect();
        if let Err(error) = (self.sweep.record)(&names) {
            self.failed = Some(error);
            return;
        }
        let written = if todo.is_empty() { vec![] } else { self.sweep.writer.write(&todo) };
        for ((found, _), outcome) in todo.into_iter().zip(written) {
            match outcome {
                Ok(true) => self.swept.rewritten += 1,
                Ok(false) => self.swept.moved += 1,
                Err(error) => self.fail(found, &error),
            }
        }
        batch.iter().for_each(|found| self.sweep.watch.checked(found.stat.st_size as u64));
    }

    fn fail(&mut self, found: &Found, error: &FsError) {
        if is_refusal(error) {
            self.swept.unserved += 1;
            self.swept.unserved_why.get_or_insert_with(|| error.to_string());
            return;
        }
        self.swept.failed += 1;
        self.sweep.watch.damaged(found.damage(error.to_string()));
    }
}

/// The holder of a key would not, or could not, use it: which is no fault of the file's.
fn is_refusal(error: &FsError) -> bool {
    let refuses = |error: &KeyError| {
        error.falls_through() || matches!(error, KeyError::Revoked(_) | KeyError::Denied(_))
    };
    matches!(error, FsError::Key(error) if refuses(error))
}

impl Visitor for State<'_> {
    fn found(&mut self, found: Found) {
        let inode = (found.stat.st_dev, found.stat.st_ino);
        let header = found.kind == FileKind::Regular && found.stat.st_size > 0;
        if !header || (found.stat.st_nlink > 1 && !self.seen.insert(inode)) {
            return;
        }
        self.batch.push(found);
        if self.batch.len() >= BATCH {
            self.flush();
        }
    }

    fn denied(&mut self, plain: &[u8]) {
        let reason = "the directory cannot be entered: permission denied".to_owned();
        self.damaged(Damage { plain: plain.to_vec(), backing: Vec::new(), reason });
    }

    /// A directory that cannot be read hides headers: the sweep is not complete then, and says so.
    fn damaged(&mut self, damage: Damage) {
        self.swept.failed += 1;
        self.sweep.watch.damaged(damage);
    }
}
