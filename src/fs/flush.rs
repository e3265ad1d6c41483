//! Making names durable: promise 5 of the durability contract.
//!
//! - fsync of a file, fsync of a directory: every helper that a known name of it depends on is
//!   flushed before the answer. In an old directory that is one look into the record ([`Firm`]).
//! - Rename and link of an object with durable state: the helpers of the new name are flushed
//!   *before* the backing learns the new name, since the old one may be gone after the crash. What
//!   nobody has been promised yet moves without a flush.
//!
//! Helpers of names that go are removed *after* the name is gone, so every prefix of the operations
//! leaves the old name or the new one with its helpers; a helper too many harms nothing. A directory
//! loses its `kmsfs.dir` before it is removed or replaced, when it is empty already: a crash in
//! between leaves an empty directory without an id, which gets a new one.
//!
//! Owner, mode and default ACL of a new directory are set right after its making and reach the disk
//! with it; its extended attributes, whose long names stand in their values, with its own fsync.
//!
//! Only known names of an inode are looked at. A hard link that the kernel has forgotten was made
//! when it was known: if its object had durable state then, so has the name; if not, the name may
//! be lost to a crash, but never the object, as long as the name that was fsynced stays.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fs::File;
use std::sync::Arc;

use rustix::fs::Advice;

use super::attr::{FileKind, Ino};
use super::backing;
use super::dirs::{DEPTH_MAX, DirHandle};
use super::error::{FsError, FsResult};
use super::firm::{Due, Flushes, Helper, HelperName, Step, StepHook, Watched};
use super::inode::{Inode, Place};
use super::names::{DIR_FILE, LONG, sidecar_of};
use super::volume::Volume;
use crate::store::{FileStorage, Storage};

/// An object about to get a name.
pub(super) struct Arrival<'a> {
    pub inode: &'a Inode,
    pub parent: &'a Arc<Inode>,
    pub entry: &'a [u8],
    /// Sidecar of a long symlink, in the same directory.
    pub link: Option<&'a [u8]>,
}

impl Volume {
    /// Flushes the whole backing file system. What was done before the call is durable afterwards.
    pub fn flush_backing(&self) -> FsResult<()> {
        Ok(self.firm.flush_whole(&self.root)?)
    }

    /// The journal, which makes everything firm from time to time, looks at files only.
    pub(super) fn note_unfirm(&self) {
        if let Some(journal) = self.journal.as_ref().filter(|_| !self.firm.is_clear()) {
            journal.note_change();
        }
    }

    /// Makes durable what stood in the backing when the session began.
    pub fn settle_start(&self) -> FsResult<()> {
        if self.writable() && !self.firm.all_firm() { self.flush_backing() } else { Ok(()) }
    }

    /// Flushes so far, by kind.
    pub fn flushes(&self) -> Flushes {
        self.firm.counts()
    }

    /// Calls `hook` at every flush and every new name, on the thread that does it. For tests.
    pub fn watch_flushes(&self, hook: StepHook) {
        self.firm.set_hook(hook);
    }

    /// Could a rename or link have to wait for the disk?
    pub fn naming_may_wait(&self) -> bool {
        !self.firm.all_firm()
    }

    /// The backing file of `ino` for the engine.
    pub(super) fn watched(&self, ino: Ino, file: &Arc<FileStorage>) -> Arc<dyn Storage> {
        Arc::new(Watched { file: file.clone(), ino: Some(ino), firm: self.firm.clone() })
    }

    /// An fsync must make the change of attributes that has just happened durable.
    pub(super) fn attributes_changed(&self, inode: &Inode) {
        // Directories are always flushed whole, and nothing else can be.
        if inode.kind == FileKind::Regular {
            self.firm.changed(inode.ino);
        }
    }

    /// Makes all known names of a file durable that has been promised to be, from now on.
    pub(super) fn make_names_firm(&self, inode: &Inode) -> FsResult<()> {
        let names = {
            // A rename either has happened, and its name is among the places, or will find that the
            // object counts as durable.
            let _still = self.moves.read();
            self.firm.settled(inode.ino);
            if self.firm.all_firm() {
                return Ok(());
            }
            let places = inode.names.lock().places.clone();
            helper_names(places)
        };
        self.make_firm(self.firm.due(&names, None))
    }

    /// Flushes what fsync(2) wants of a file's attributes and the flush of its content left out.
    pub(super) fn sync_attributes(&self, inode: &Inode, datasync: bool) -> FsResult<()> {
        if datasync || !self.firm.is_changed(inode.ino) {
            return Ok(());
        }
        match inode.file.lock().storage.clone() {
            Some(storage) => Ok(self.firm.sync_file(inode.ino, &storage)?),
            None => Ok(()),
        }
    }

    /// Makes a directory, its path, and what is in it durable as far as helpers go.
    pub(super) fn make_directory_firm(&self, dir: &Inode) -> FsResult<()> {
        let names = {
            let _still = self.moves.read();
            self.firm.settled_in(dir.ino);
            if self.firm.all_firm() {
                return Ok(());
            }
            let places = dir.names.lock().places.clone();
            helper_names(places)
        };
        self.make_firm(self.firm.due(&names, Some(dir.ino)))
    }

    /// Makes the name of an arrival durable if its object has durable state.
    pub(super) fn make_arrival_firm(&self, arrival: &Arrival<'_>) -> FsResult<()> {
        self.make_firm(self.due_for(arrival))
    }

    fn due_for(&self, arrival: &Arrival<'_>) -> Due {
        let inode = arrival.inode;
        // A directory may hold durable objects whatever it is itself.
        let durable = inode.kind == FileKind::Directory || !self.firm.is_new(inode.ino);
        if !durable || self.firm.all_firm() {
            return Due::Nothing;
        }
        let place = Place { parent: arrival.parent.clone(), entry: arrival.entry.into() };
        let mut names = helper_names(vec![place]);
        names.extend(arrival.link.map(|link| (arrival.parent.ino, Cow::Borrowed(link))));
        self.firm.due(&names, None)
    }

    /// Runs `rename`, which gives names to objects in the backing and in memory, while nothing
    /// else moves and once the helpers of the names are durable.
    pub(super) fn arrive<T>(
        &self,
        arrivals: &[Arrival<'_>],
        rename: impl FnOnce() -> FsResult<T>,
    ) -> FsResult<T> {
        loop {
            arrivals.iter().try_for_each(|arrival| self.make_arrival_firm(arrival))?;
            let _moving = self.moves.write();
            // Meanwhile an fsync may have given one of them durable state, or a directory above
            // may have moved.
            let ready = |arrival: &Arrival<'_>| matches!(self.due_for(arrival), Due::Nothing);
            if !arrivals.iter().all(ready) {
                continue;
            }
            let done = rename()?;
            arrivals.iter().for_each(|arrival| self.arrived(arrival));
            return Ok(done);
        }
    }

    /// An object got one name more.
    pub(super) fn linked(&self, arrival: &Arrival<'_>) -> FsResult<()> {
        self.mending.moved();
        self.attributes_changed(arrival.inode);
        self.firm.step(Step::Named(arrival.inode.ino));
        self.make_arrival_firm(arrival)?;
        // The record knows one directory for each new object. What stands in two counts as durable.
        self.firm.settled(arrival.inode.ino);
        Ok(())
    }

    fn arrived(&self, arrival: &Arrival<'_>) {
        self.firm.moved(arrival.inode.ino, arrival.parent.ino);
        self.mending.moved();
        // The backing's fsync takes a rename along, its fdatasync may not.
        self.attributes_changed(arrival.inode);
        self.firm.step(Step::Named(arrival.inode.ino));
    }

    /// Makes one helper durable.
    pub(super) fn make_helper_firm(&self, dir: Ino, name: &[u8]) -> FsResult<()> {
        self.make_firm(self.firm.due(&[(dir, Cow::Borrowed(name))], None))
    }

    fn make_firm(&self, due: Due) -> FsResult<()> {
        match due {
            Due::Nothing => Ok(()),
            Due::These(helpers) => self.flush_helpers(&helpers),
            Due::Whole => self.flush_backing(),
            Due::Broken => Err(FsError::Errno(libc::EIO)),
        }
    }

    fn flush_helpers(&self, helpers: &[Helper]) -> FsResult<()> {
        let mut started = Vec::with_capacity(helpers.len());
        for helper in helpers {
            let Some(dir) = self.table.get(helper.dir) else {
                // A directory that the kernel has forgotten cannot be reached by number.
                return self.flush_backing();
            };
            match self.open_helper(&*self.dir_handle(&dir)?, &helper.name)? {
                Some(file) => started.push((helper, file)),
                // Removed, or moved by somebody who made it durable.
                None => self.firm.flushed(helper),
            }
        }
        for (helper, file) in started {
            // All of it: a helper that replaced another came to its name by a rename.
            if let Err(error) = file.sync_all() {
                self.firm.broke(helper);
                return Err(error.into());
            }
            self.firm.flushed(helper);
            self.firm.step(Step::Helper(helper.dir, helper.name.to_vec()));
        }
        Ok(())
    }

    /// Opens a helper, and starts writing it: several then share one commit of the backing.
    fn open_helper(&self, dir: &DirHandle, name: &[u8]) -> FsResult<Option<File>> {
        match self.lifted(dir, || backing::open_file(dir, name, false)) {
            Err(FsError::Errno(libc::ENOENT)) => Ok(None),
            Err(error) => Err(error),
            Ok(file) => {
                let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
                Ok(Some(file))
            }
        }
    }

    /// Writes a helper and takes it down as not firm.
    pub(super) fn write_helper(
        &self,
        handle: &DirHandle,
        (dir, parent): (Ino, Ino),
        name: &[u8],
        bytes: &[u8],
    ) -> FsResult<()> {
        if backing::write_small(handle, name, bytes)? {
            self.firm.wrote(parent, dir, name);
        }
        Ok(())
    }

    /// Removes a helper whose name is gone.
    pub(super) fn remove_helper(&self, handle: &DirHandle, dir: Ino, name: &[u8]) {
        match backing::unlink_if_there(handle, name) {
            Ok(()) => self.firm.dropped(dir, name),
            Err(errno) => log::debug!("helper not removed: {errno}"),
        }
    }
}

/// The parent of a directory for the record; the root, and a removed directory, have none.
pub(super) fn parent_of(dir: &Inode) -> Ino {
    dir.names.lock().places.last().map_or(0, |place| place.parent.ino)
}

/// Every helper that entries at these places depend on: the sidecars of long names, and the
/// `kmsfs.dir` of all directories above.
fn helper_names(places: Vec<Place>) -> Vec<HelperName<'static>> {
    let mut names = Vec::new();
    let mut seen = HashSet::new();
    for place in places {
        let mut at = Some(place);
        while let Some(Place { parent, entry }) = at.take() {
            if entry.starts_with(LONG) {
                names.push((parent.ino, Cow::Owned(sidecar_of(&entry))));
            }
            // What stands above this directory has been seen with it.
            if seen.insert(parent.ino) && seen.len() < DEPTH_MAX {
                names.push((parent.ino, Cow::Borrowed(DIR_FILE)));
                at = parent.names.lock().places.last().cloned();
            }
        }
    }
    names
}
