//! The sweep after a change of recipients: gives every header the wrapped keys the volume now wants.
//!
//! Bodies, sizes and modification times stay as they are; a crash leaves every header old or new. A
//! file whose header is right already is not written, so an interrupted sweep is finished by running
//! it again. A KMS is asked about many headers at a time; writing them is one thread's work.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::attr::FileKind;
use super::backing;
use super::error::FsResult;
use super::survey::{Damage, Found, Survey, Visitor};
use super::verify::Watch;
use super::volume::refuse_rolled_back;
use crate::format::descriptor::NameMode;
use crate::format::header::Recipient;
use crate::keys::Keyring;
use crate::store::content::VolumeContext;
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
    /// Entries that could not be read or written; each was reported.
    pub failed: u64,
}

/// Sweeps the headers of a volume that is locked for writing and not mounted.
pub struct Sweep<'a> {
    /// Volume and keys as the engine wants them.
    pub context: Arc<VolumeContext>,
    /// How names are stored.
    pub names: NameMode,
    /// Generation of the descriptor before the change that this sweep follows: no header can be of a
    /// later one.
    pub generation: u64,
    /// Where the new headers go first.
    pub journal: Arc<Journal>,
    /// Wraps for the volume's present recipients.
    pub keyring: &'a Keyring,
    /// Who is told.
    pub watch: &'a dyn Watch,
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
        };
        survey.walk(&root, &mut state)?;
        state.flush();
        self.journal.close()?;
        rustix::fs::syncfs(&root)?;
        Ok(state.swept)
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
        let current = self.keyring.rewrap(&header.current)?;
        let next = header.next.as_ref().map(|slot| self.keyring.rewrap(slot)).transpose()?;
        let [current, next] = [current, next.flatten()].map(|slot| slot.map(|s| s.recipients));
        Ok(Plan { current, next })
    }

    /// Returns whether the header was written.
    fn carry_out(&self, found: &Found, plan: Plan) -> FsResult<bool> {
        if plan.current.is_none() && plan.next.is_none() {
            return Ok(false);
        }
        let storage = FileStorage(backing::open_file(&*found.parent, &found.entry, true)?);
        let place = Box::new(At { ino: found.stat.st_ino, path: found.backing.clone() });
        let file = FileLog::new(self.journal.clone(), Arc::new(storage), place, true);
        let mtime = (found.stat.st_mtime, found.stat.st_mtime_nsec as u32);
        rewrap_header(&self.context, &file, mtime, plan.current, plan.next)?;
        if self.journal.pending_files() >= OPEN_MAX {
            self.journal.checkpoint(false)?;
        }
        Ok(true)
    }
}

/// New copies for the slots of a header; `None`: they are right.
struct Plan {
    current: Option<Vec<Recipient>>,
    next: Option<Vec<Recipient>>,
}

struct State<'a> {
    sweep: &'a Sweep<'a>,
    swept: Swept,
    /// Inodes with several links that were swept already.
    seen: HashSet<(u64, u64)>,
    /// Found and not yet looked at.
    batch: Vec<Found>,
}

impl State<'_> {
    /// Looks at what was found, and writes what has to change.
    fn flush(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        let plans = self.sweep.plans(&batch);
        for (found, plan) in batch.into_iter().zip(plans) {
            self.swept.headers += 1;
            match plan.and_then(|plan| self.sweep.carry_out(&found, plan)) {
                Ok(true) => self.swept.rewritten += 1,
                Ok(false) => {}
                Err(error) => {
                    self.swept.failed += 1;
                    self.sweep.watch.damaged(found.damage(error.to_string()));
                }
            }
            self.sweep.watch.checked(found.stat.st_size as u64);
        }
    }
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
