//! The sweep after a change of recipients: gives every header the wrapped keys the volume now wants.
//!
//! Bodies, sizes and modification times stay as they are; a crash leaves every header old or new. A file whose header is right already is
//! not written, so an interrupted sweep is finished by running it again.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::attr::FileKind;
use super::backing;
use super::error::FsResult;
use super::survey::{Damage, Found, Survey, Visitor};
use super::verify::Watch;
use super::volume::refuse_rolled_back;
use crate::format::descriptor::NameMode;
use crate::keys::Keyring;
use crate::store::content::VolumeContext;
use crate::store::rewrap::rewrap_header;
use crate::store::{Content, FileLog, FileStorage, Journal, Whereabouts};

/// Files whose new headers wait for a checkpoint; each is open until then.
const OPEN_MAX: usize = 256;

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
        let mut state = State { sweep: self, swept: Swept::default(), seen: HashSet::new() };
        survey.walk(&root, &mut state)?;
        self.journal.close()?;
        rustix::fs::syncfs(&root)?;
        Ok(state.swept)
    }

    /// Returns whether the header was written.
    fn header(&self, found: &Found) -> FsResult<bool> {
        let reading = FileStorage(backing::open_file(&*found.parent, &found.entry, false)?);
        let header = Content::read_header(&self.context, &reading)?;
        // Or a descriptor that was rolled back would spread the recipients it still names.
        refuse_rolled_back(header.wrap_epoch, self.generation)?;
        let current = self.keyring.rewrap(&header.current)?;
        let next = header.next.as_ref().map(|slot| self.keyring.rewrap(slot)).transpose()?;
        let [current, next] = [current, next.flatten()].map(|slot| slot.map(|s| s.recipients));
        if current.is_none() && next.is_none() {
            return Ok(false);
        }
        let storage = FileStorage(backing::open_file(&*found.parent, &found.entry, true)?);
        let place = Box::new(At { ino: found.stat.st_ino, path: found.backing.clone() });
        let file = FileLog::new(self.journal.clone(), Arc::new(storage), place, true);
        let mtime = (found.stat.st_mtime, found.stat.st_mtime_nsec as u32);
        rewrap_header(&self.context, &file, mtime, current, next)?;
        if self.journal.pending_files() >= OPEN_MAX {
            self.journal.checkpoint(false)?;
        }
        Ok(true)
    }
}

struct State<'a> {
    sweep: &'a Sweep<'a>,
    swept: Swept,
    /// Inodes with several links that were swept already.
    seen: HashSet<(u64, u64)>,
}

impl Visitor for State<'_> {
    fn found(&mut self, found: Found) {
        let inode = (found.stat.st_dev, found.stat.st_ino);
        let header = found.kind == FileKind::Regular && found.stat.st_size > 0;
        if !header || (found.stat.st_nlink > 1 && !self.seen.insert(inode)) {
            return;
        }
        self.swept.headers += 1;
        match self.sweep.header(&found) {
            Ok(true) => self.swept.rewritten += 1,
            Ok(false) => {}
            Err(error) => {
                self.swept.failed += 1;
                self.sweep.watch.damaged(found.damage(error.to_string()));
            }
        }
        self.sweep.watch.checked(found.stat.st_size as u64);
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
