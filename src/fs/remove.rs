//! Looking up, forgetting, removing and renaming names.

use std::sync::Arc;

use rustix::fs::{AtFlags, RenameFlags, Stat};
use rustix::io::Errno;

use super::attr::{Attr, FileKind, Ino};
use super::backing;
use super::create::Slot;
use super::dirs::DirHandle;
use super::error::{FsError, FsResult};
use super::flush::Arrival;
use super::inode::Inode;
use super::names::{DIR_FILE, Entry, LONG_LINK};
use super::volume::Volume;
use crate::format::DirId;

/// An existing name, resolved.
struct Found {
    parent: Arc<Inode>,
    dir: Arc<DirHandle>,
    entry: Entry,
    stat: Stat,
    ino: Ino,
    kind: FileKind,
}

impl Volume {
    /// Finds a name and counts one kernel lookup.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> FsResult<Attr> {
        let found = self.find(parent, name)?;
        let inode = self.table.remember(found.ino, found.kind, &found.parent, &found.entry.backing);
        let attr = self.attr_of(&inode, &found.stat, Some((&found.dir, &found.entry.backing)));
        attr.map_err(|e| {
            self.forget(found.ino, 1);
            self.note(&inode, e)
        })
    }

    /// Drops kernel lookups of an inode.
    pub fn forget(&self, ino: Ino, lookups: u64) {
        self.table.forget(ino, lookups);
        // Still here: perhaps for the sake of content that could not be committed.
        if let Some(inode) = self.table.get(ino)
            && inode.is_forgotten()
        {
            self.abandon_removed(inode);
        }
    }

    fn find(&self, parent: Ino, name: &[u8]) -> FsResult<Found> {
        let parent = self.inode(parent)?;
        let dir = self.dir_handle(&parent)?;
        let entry = self.find_entry(&parent, &dir, name).map_err(|e| self.note(&parent, e))?;
        let entry = entry.ok_or(FsError::Errno(libc::ENOENT))?;
        let stat = backing::stat_at(&dir, &entry.backing)?;
        let (ino, kind) = self.identify(&stat)?;
        Ok(Found { parent, dir, entry, stat, ino, kind })
    }

    /// Removes a name that is not a directory's.
    pub fn unlink(&self, parent: Ino, name: &[u8]) -> FsResult<()> {
        self.require_writable()?;
        let found = self.find(parent, name)?;
        if found.kind == FileKind::Directory {
            return Err(FsError::Errno(libc::EISDIR));
        }
        let reference = self.link_reference(&found);
        if reference.is_some() && found.stat.st_nlink == 1 {
            self.keep_target(&found);
        }
        self.detach(&found, || {
            rustix::fs::unlinkat(&found.dir, &found.entry.backing, AtFlags::empty())
        })?;
        self.drop_helpers(&found, reference.filter(|_| found.stat.st_nlink == 1));
        self.lost_name(&found);
        Ok(())
    }

    /// An object that is no directory has lost a name.
    fn lost_name(&self, found: &Found) {
        if found.stat.st_nlink == 1 {
            self.firm.gone(found.ino);
        } else if found.kind == FileKind::Regular {
            self.firm.changed(found.ino);
        }
    }

    /// Takes the known place off an inode around `remove`. The object is pinned first, so that
    /// operations through old handles find it at every moment.
    fn detach(&self, found: &Found, remove: impl FnOnce() -> Result<(), Errno>) -> FsResult<()> {
        let Some(inode) = self.table.get(found.ino) else {
            return Ok(remove()?);
        };
        if inode.names.lock().places.len() <= 1 {
            let pin = backing::open_path(&found.dir, &found.entry.backing)?;
            inode.names.lock().pinned = Some(Arc::new(pin));
        }
        let removed = remove();
        let mut names = inode.names.lock();
        if removed.is_ok() {
            names.remove(&found.parent, &found.entry.backing);
        }
        if !names.places.is_empty() {
            names.pinned = None;
        }
        Ok(removed?)
    }

    /// Name of the sidecar of a long symlink.
    fn link_reference(&self, found: &Found) -> Option<Vec<u8>> {
        if found.kind != FileKind::Symlink {
            return None;
        }
        let text = rustix::fs::readlinkat(&found.dir, &found.entry.backing, Vec::new()).ok()?;
        Some(text.into_bytes()).filter(|t| t.starts_with(LONG_LINK))
    }

    /// Remembers the target of a long symlink that is about to go with its sidecar.
    fn keep_target(&self, found: &Found) {
        if let Some(inode) = self.table.get(found.ino) {
            let target = self.readlink(found.ino).ok();
            inode.names.lock().target = target;
        }
    }

    /// Removes the helpers of a name that is gone. A helper left behind harms nothing.
    fn drop_helpers(&self, found: &Found, reference: Option<Vec<u8>>) {
        let sidecar = found.entry.sidecar.as_ref().map(|_| found.entry.sidecar_name());
        self.drop_helper(found, sidecar);
        self.drop_helper(found, reference);
    }

    fn drop_helper(&self, found: &Found, helper: Option<Vec<u8>>) {
        if let Some(helper) = helper {
            self.remove_helper(&found.dir, found.parent.ino, &helper);
        }
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: Ino, name: &[u8]) -> FsResult<()> {
        self.require_writable()?;
        let found = self.find(parent, name)?;
        if found.kind != FileKind::Directory {
            return Err(FsError::Errno(libc::ENOTDIR));
        }
        let victim = self.strip(&found)?;
        let removed = self.detach(&found, || {
            rustix::fs::unlinkat(&found.dir, &found.entry.backing, AtFlags::REMOVEDIR)
        });
        self.unstrip(&found, victim, &removed);
        removed?;
        self.dirs.remove(found.ino);
        self.firm.dropped_dir(found.ino);
        self.drop_helpers(&found, None);
        Ok(())
    }

    /// Empties a directory that is about to go of its helpers.
    fn strip(&self, found: &Found) -> FsResult<(DirHandle, Option<DirId>)> {
        let handle = DirHandle(backing::open_path(&found.dir, &found.entry.backing)?);
        let inode = self.table.remember(found.ino, found.kind, &found.parent, &found.entry.backing);
        let id = self.strip_helpers(&inode, &handle);
        drop(inode);
        self.forget(found.ino, 1);
        Ok((handle, id?))
    }

    /// Puts the id back into a directory that could not be removed after all.
    fn unstrip(&self, found: &Found, victim: (DirHandle, Option<DirId>), removed: &FsResult<()>) {
        let (Err(_), (handle, Some(id))) = (removed, &victim) else { return };
        let place = (found.ino, found.parent.ino);
        // It may have been durable before, and attributes of the directory are bound to the id.
        let restored = self
            .write_dir_file(handle, place, *id)
            .and_then(|()| self.make_helper_firm(found.ino, DIR_FILE));
        if let Err(error) = restored {
            log::error!("a directory's kmsfs.dir could not be restored: {error}");
            // It is empty; whatever comes next gets a new id, on disk as well as in memory.
            if let Some(inode) = self.table.get(found.ino) {
                inode.names.lock().dir_id = None;
            }
        }
    }

    /// Renames. `flags`: RENAME_NOREPLACE or RENAME_EXCHANGE of rename(2).
    pub fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        flags: u32,
    ) -> FsResult<()> {
        let exchange = flags == libc::RENAME_EXCHANGE;
        if flags & !(libc::RENAME_EXCHANGE | libc::RENAME_NOREPLACE) != 0
            || flags == libc::RENAME_EXCHANGE | libc::RENAME_NOREPLACE
        {
            return Err(FsError::Errno(libc::EINVAL));
        }
        self.require_writable()?;
        let from = self.find(parent, name)?;
        let target = match self.find(new_parent, new_name) {
            Ok(found) => Some(found),
            Err(FsError::Errno(libc::ENOENT)) => None,
            Err(error) => return Err(error),
        };
        if exchange {
            let target = target.ok_or(FsError::Errno(libc::ENOENT))?;
            return self.exchange(&from, &target);
        }
        if target.is_some() && flags == libc::RENAME_NOREPLACE {
            return Err(FsError::Errno(libc::EEXIST));
        }
        let slot = self.slot(new_parent, new_name)?;
        self.fill(&slot, || self.move_over(&from, target.as_ref(), &slot))
    }

    fn move_over(&self, from: &Found, target: Option<&Found>, slot: &Slot) -> FsResult<()> {
        let victim = match target {
            Some(t) if t.ino == from.ino => return Ok(()),
            Some(t) => {
                check_kinds(from.kind, t.kind)?;
                if t.kind == FileKind::Directory { Some(self.strip(t)?) } else { None }
            }
            None => None,
        };
        let reference = target.and_then(|t| self.link_reference(t));
        let inode = self.table.remember(from.ino, from.kind, &from.parent, &from.entry.backing);
        let done = self.rename_backing(&inode, from, target, slot);
        if let (Some(victim), Some(target)) = (victim, target) {
            self.unstrip(target, victim, &done);
        }
        drop(inode);
        self.forget(from.ino, 1);
        done?;
        if let Some(target) = target {
            self.dirs.remove(target.ino);
            // The name itself lives on, and so does its sidecar.
            let gone = reference.filter(|_| target.stat.st_nlink == 1);
            self.drop_helper(target, gone);
            if target.kind == FileKind::Directory {
                self.firm.dropped_dir(target.ino);
            } else {
                self.lost_name(target);
            }
        }
        Ok(())
    }

    fn rename_backing(
        &self,
        inode: &Arc<Inode>,
        from: &Found,
        target: Option<&Found>,
        slot: &Slot,
    ) -> FsResult<()> {
        let (old, new) = (&from.entry.backing, &slot.entry.backing);
        let to = (&*slot.dir, &*slot.parent);
        let link = self.share_link_sidecar(inode, (&from.dir, old), to)?;
        let rename = || rustix::fs::renameat(&from.dir, old, &slot.dir, new);
        let arrival = Arrival { inode, parent: &slot.parent, entry: new, link: link.as_deref() };
        self.arrive(&[arrival], || {
            match target {
                Some(target) => self.detach(target, rename)?,
                None => rename()?,
            }
            inode.move_place((&from.parent, old), (&slot.parent, new));
            Ok(())
        })?;
        let moved_away = from.parent.ino != slot.parent.ino && from.stat.st_nlink == 1;
        self.drop_helpers(from, link.filter(|_| moved_away));
        Ok(())
    }

    fn exchange(&self, a: &Found, b: &Found) -> FsResult<()> {
        let inode_a = self.table.remember(a.ino, a.kind, &a.parent, &a.entry.backing);
        let inode_b = self.table.remember(b.ino, b.kind, &b.parent, &b.entry.backing);
        let done = (|| {
            let (old, new) = (&a.entry.backing, &b.entry.backing);
            let link_a = self.share_link_sidecar(&inode_a, (&a.dir, old), (&b.dir, &b.parent))?;
            let link_b = self.share_link_sidecar(&inode_b, (&b.dir, new), (&a.dir, &a.parent))?;
            let arrivals = [
                Arrival { inode: &inode_a, parent: &b.parent, entry: new, link: link_a.as_deref() },
                Arrival { inode: &inode_b, parent: &a.parent, entry: old, link: link_b.as_deref() },
            ];
            self.arrive(&arrivals, || {
                rustix::fs::renameat_with(&a.dir, old, &b.dir, new, RenameFlags::EXCHANGE)?;
                inode_a.move_place((&a.parent, old), (&b.parent, new));
                inode_b.move_place((&b.parent, new), (&a.parent, old));
                Ok(())
            })?;
            if a.parent.ino != b.parent.ino {
                self.drop_helper(a, link_a.filter(|_| a.stat.st_nlink == 1));
                self.drop_helper(b, link_b.filter(|_| b.stat.st_nlink == 1));
            }
            Ok(())
        })();
        drop((inode_a, inode_b));
        self.forget(a.ino, 1);
        self.forget(b.ino, 1);
        done
    }
}

/// rename(2)'s rules on what may replace what.
fn check_kinds(from: FileKind, target: FileKind) -> FsResult<()> {
    match (from == FileKind::Directory, target == FileKind::Directory) {
        (true, false) => Err(FsError::Errno(libc::ENOTDIR)),
        (false, true) => Err(FsError::Errno(libc::EISDIR)),
        (true, true) | (false, false) => Ok(()),
    }
}
