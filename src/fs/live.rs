//! Changes of keys while the volume is in use: another descriptor, and new wrapped copies in headers.
//!
//! Whoever changes them asks the KMS himself, with rights this process does not have; here it is made
//! sure that nothing is opened or made meanwhile with what is on its way out.

pub mod wire;

use super::attr::{FileKind, Ino};
use super::error::{FsError, FsResult};
use super::inode::Inode;
use super::opening::{self, OpenError, exit};
use super::rewrap::{Change, Plan, restore_set_id};
use super::volume::{Volume, refuse_rolled_back};
use crate::format::descriptor::{Descriptor, MAC_LEN};
use crate::format::header::{KeySlot, Recipient};
use crate::keys::{Keyring, same_key};
use crate::store::content::now;
use crate::store::rewrap::rewrap_header;
use crate::store::{Content, FileLog, FileStorage, Storage};
use parking_lot::MutexGuard;
use std::collections::HashSet;
use std::sync::Arc;

/// New copies for the key slots of one file.
pub struct Rewrapping {
    /// Plaintext path from the root of the volume.
    pub path: Vec<u8>,
    /// The copies, and the slots they were made of.
    pub plan: Plan,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rewrapped {
    /// The header has them.
    Done,
    /// The file has moved, gone or got other keys meanwhile.
    Changed,
}

/// An inode nobody opens or closes meanwhile.
struct Held<'a> {
    inode: &'a Arc<Inode>,
    _opening: MutexGuard<'a, ()>,
    /// Kept until its header is in its place: whoever opens the file next reads it there.
    log: Option<Arc<FileLog>>,
    /// Its backing file, and the mode that had.
    backing: Option<(Arc<FileStorage>, u32)>,
}

impl Volume {
    /// Goes on with another descriptor of this volume, the next one after the present, and writes it
    /// into the backing directory. Everything is proven first: that it is authentic, that this process
    /// can open the volume with it, and have keys for new files. The same descriptor once more is
    /// fine.
    ///
    /// Files that are open and were never written get new data keys; those that were are for
    /// [`Self::rewrap_files`].
    pub fn adopt_descriptor(&self, bytes: &[u8]) -> Result<(), OpenError> {
        self.take_descriptor(bytes, false)
    }

    /// Fails if [`Self::adopt_descriptor`] would refuse, and changes nothing.
    pub fn check_descriptor(&self, bytes: &[u8]) -> Result<(), OpenError> {
        self.take_descriptor(bytes, true)
    }

    fn take_descriptor(&self, bytes: &[u8], only_check: bool) -> Result<(), OpenError> {
        let refused = |text: &str| {
            let source = self.source().display();
            OpenError::new(exit::FAILURE, format!("{source}: {text}; nothing was changed"))
        };
        let _alone = self.rewrapping.lock();
        let keys = self.keys().map_err(|error| refused(&error.to_string()))?;
        self.require_writable().map_err(|_| refused("the volume is mounted read-only"))?;
        let (new, len) = Descriptor::parse(bytes).map_err(|e| refused(&e.to_string()))?;
        let mac: Option<&[u8; MAC_LEN]> = bytes.get(len..).and_then(|mac| mac.try_into().ok());
        if !mac.is_some_and(|mac| keys.descriptor_mac_ok(&bytes[..len], mac)) {
            return Err(refused("the new descriptor is not authentic"));
        }
        // Not kept while it is written: a disk that hangs must not keep keys in memory.
        drop(keys);
        let old = self.descriptor();
        if new != *old {
            self.require_successor(&old, &new).map_err(refused)?;
            let keyring = self.prove(bytes)?;
            // Nobody opens or makes a file with keys of before and is not seen below.
            let _others = self.opening_files.write();
            self.require_not_needed(&new)?;
            if !only_check {
                opening::write_descriptor(&self.root, self.source(), bytes)?;
                self.keyring.adopt(&keyring);
                *self.descriptor.write() = Arc::new(new);
            }
        }
        if only_check {
            return Ok(());
        }
        self.replace_unused_keys().map_err(|error| {
            let source = self.source().display();
            let text = "the descriptor is changed, but an open file that was never written still has \
                        a key of before; run the same command again";
            OpenError::new(exit::KEY_UNAVAILABLE, format!("{source}: {text}: {error}"))
        })
    }

    /// An open file has its key, and will want it again: also one that was removed, which nobody can
    /// rewrap.
    fn require_not_needed(&self, new: &Descriptor) -> Result<(), OpenError> {
        let allowed = |copy: &Recipient| new.allowed.iter().any(|key| same_key(key, copy));
        let opens = |slot: &KeySlot| slot.recipients.iter().any(allowed);
        let open: Vec<_> = self.open.lock().values().cloned().collect();
        for inode in open {
            let Some(content) = inode.content().filter(|content| !content.is_unused()) else {
                continue;
            };
            let (current, next) = content.slots();
            if !opens(&current) || !next.as_ref().is_none_or(opens) {
                let file = match inode.names.lock().places.is_empty() {
                    true => "a file that was removed and is still open".to_owned(),
                    false => format!("the open file {}", self.plain_path(&inode)),
                };
                let text = format!(
                    "{}: {file} has a data key that is wrapped for a key that is to go; close it, or \
                     rewrap, and try again; nothing was changed",
                    self.source().display(),
                );
                return Err(OpenError::new(exit::FAILURE, text));
            }
        }
        Ok(())
    }

    /// Is it what comes after the present one?
    fn require_successor(&self, old: &Descriptor, new: &Descriptor) -> Result<(), &'static str> {
        let mut params = old.params.clone();
        params.generation += 1;
        if new.volume != old.volume {
            return Err("the new descriptor is that of another volume");
        }
        if new.params != params {
            return Err("the descriptor has changed meanwhile; run the same command again");
        }
        if (&new.ro_compat, &new.incompat) != (&old.ro_compat, &old.incompat) {
            return Err("the new descriptor needs other features than this mount has");
        }
        Ok(())
    }

    /// Opens the volume with a descriptor, as a mount would.
    fn prove(&self, bytes: &[u8]) -> Result<Keyring, OpenError> {
        let failed = |mut error: OpenError| {
            error.message += "; the mount's own permissions count here; nothing was changed";
            error
        };
        let opened = crate::keys::unlock(bytes, &self.unlock);
        let (_, unlocked) =
            opened.map_err(|error| failed(opening::unlock_error(error, self.source())))?;
        if self.keyring.can_create().is_ok() {
            let made = unlocked.keyring.can_create();
            made.and_then(|()| unlocked.keyring.for_new_file().map(drop))
                .map_err(|error| failed(opening::unlock_error(error.into(), self.source())))?;
        }
        Ok(unlocked.keyring)
    }

    fn replace_unused_keys(&self) -> FsResult<()> {
        let open: Vec<_> = self.open.lock().values().cloned().collect();
        for content in open.iter().filter_map(|inode| inode.content()) {
            while content.is_unused() && !self.keyring.is_current(&content.slots().0) {
                let new = self.keyring.for_new_file()?;
                if !content.replace_unused_key(new.key.clone(), new.slot.clone())? {
                    self.keyring.unused(new);
                }
            }
        }
        Ok(())
    }

    /// Gives files new wrapped copies. Content, sizes and, unless `touch`, modification times stay.
    /// What is returned as done survives a crash as soon as [`Self::commit_all`] has returned.
    pub fn rewrap_files(&self, wanted: &[Rewrapping], touch: bool) -> Vec<FsResult<Rewrapped>> {
        let _alone = self.rewrapping.lock();
        let found: Vec<_> = wanted.iter().map(|one| self.resolve(&one.path)).collect();
        let inodes: Vec<_> = found
            .iter()
            .map(|found| found.as_ref().ok().and_then(|ino| self.table.get(*ino)))
            .collect();
        inodes.iter().flatten().for_each(|inode| self.mend_before_opening(inode));
        // Whoever puts a file right after an unclean stop must not meet a header half written.
        let _others = self.opening_files.read();
        let mut held: Vec<Held<'_>> = Vec::new();
        let mut seen = HashSet::new();
        let mut outcomes: Vec<FsResult<Rewrapped>> = Vec::with_capacity(wanted.len());
        for ((one, found), inode) in wanted.iter().zip(&found).zip(&inodes) {
            let inode = inode.as_ref().filter(|inode| inode.kind == FileKind::Regular);
            outcomes.push(match (found, inode) {
                (Err(FsError::Errno(libc::ENOENT)), _) | (Ok(_), None) => Ok(Rewrapped::Changed),
                (Err(error), _) => Err(FsError::Damaged(error.to_string())),
                // Another name of the same file.
                (Ok(ino), _) if !seen.insert(*ino) => Ok(Rewrapped::Changed),
                (Ok(_), Some(inode)) => {
                    let opening = inode.opening.lock();
                    let mut hold = Held { inode, _opening: opening, log: None, backing: None };
                    let outcome = self.rewrap_held(&mut hold, &one.plan, touch);
                    held.push(hold);
                    outcome
                }
            });
        }
        if held.iter().any(|held| held.log.is_some())
            && let Some(journal) = &self.journal
            && let Err(error) = journal.checkpoint(false)
        {
            let failed = || Err(FsError::Damaged(format!("the checkpoint failed: {error}")));
            outcomes.iter_mut().filter(|o| o.is_ok()).for_each(|outcome| *outcome = failed());
        }
        if self.euid != 0 {
            let written = held.iter().filter_map(|held| held.backing.as_ref());
            written.for_each(|(storage, mode)| restore_set_id(storage, *mode));
        }
        drop(held);
        let counted = found.into_iter().flatten().filter(|ino| *ino != self.root_ino());
        counted.for_each(|ino| self.forget(ino, 1));
        outcomes
    }

    /// The inode a path leads to, with one look-up counted unless it is the root.
    fn resolve(&self, path: &[u8]) -> FsResult<Ino> {
        let mut at = self.root_ino();
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let next = self.lookup(at, name).map(|attr| attr.ino);
            if at != self.root_ino() {
                self.forget(at, 1);
            }
            at = next?;
        }
        Ok(at)
    }

    fn rewrap_held(&self, held: &mut Held<'_>, wanted: &Plan, touch: bool) -> FsResult<Rewrapped> {
        let inode = held.inode;
        let fresh = Arc::new(FileStorage(self.open_backing(inode, true)?));
        let Some(content) = inode.content() else {
            return self.rewrap_closed(held, fresh, wanted, touch);
        };
        self.require_right(wanted)?;
        if content.is_unused() || !fits(wanted, &content.slots()) {
            return Ok(Rewrapped::Changed);
        }
        if !content.is_writable() {
            content.upgrade(self.logged(inode, &fresh, true)?);
            inode.file.lock().storage = Some(fresh.clone());
        }
        let mtime = || if touch { Ok(now()) } else { Ok(fresh.mtime()?) };
        let (current, next) = wanted.copies();
        let epoch = self.descriptor().params.generation;
        self.keep_set_id(inode, || content.rewrap(mtime, touch, current, next, epoch))?;
        Ok(Rewrapped::Done)
    }

    /// Copies for other keys than the present ones would help nobody.
    fn require_right(&self, wanted: &Plan) -> FsResult<()> {
        let right = |change: &Change| {
            change.new.as_ref().is_none_or(|new| {
                let slot = KeySlot { recipients: new.clone(), ..change.old.clone() };
                self.keyring.is_current(&slot)
            })
        };
        match right(&wanted.current) && wanted.next.as_ref().is_none_or(right) {
            true => Ok(()),
            false => Err(FsError::Damaged("the new copies are not for the volume's keys".into())),
        }
    }

    fn rewrap_closed(
        &self,
        held: &mut Held<'_>,
        storage: Arc<FileStorage>,
        wanted: &Plan,
        touch: bool,
    ) -> FsResult<Rewrapped> {
        let Some(journal) = self.journal.as_ref().filter(|_| !storage.is_empty().unwrap_or(false))
        else {
            return Ok(Rewrapped::Changed);
        };
        self.require_right(wanted)?;
        let log = self.log_of(journal, held.inode, &storage)?;
        let header = Content::read_header(&self.ctx, &*log)?;
        let epoch = self.descriptor().params.generation;
        refuse_rolled_back(header.wrap_epoch, epoch)?;
        if !fits(wanted, &(header.current, header.next)) {
            return Ok(Rewrapped::Changed);
        }
        let (current, next) = wanted.copies();
        let mtime = if touch { now() } else { storage.mtime()? };
        rewrap_header(&self.ctx, &log, mtime, current, next, epoch)?;
        held.backing = Some((storage.clone(), rustix::fs::fstat(&storage.0)?.st_mode));
        held.log = Some(log);
        Ok(Rewrapped::Done)
    }
}

/// Are these the slots the copies were made of?
fn fits(wanted: &Plan, slots: &(KeySlot, Option<KeySlot>)) -> bool {
    let same = |change: &Change, slot: &KeySlot| {
        change.old.data_key_id == slot.data_key_id && change.old.recipients == slot.recipients
    };
    let next = match (&wanted.next, &slots.1) {
        (Some(change), Some(slot)) => same(change, slot),
        (None, None) => true,
        _ => false,
    };
    next && same(&wanted.current, &slots.0)
}
