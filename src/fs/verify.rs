//! Checks a whole volume that is not mounted: every name, link, attribute, header, tree block and
//! chunk. Several threads read content while one walks; damage is reported and the check goes on.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use parking_lot::Mutex;

use super::attr::FileKind;
use super::backing;
use super::dirs::Loc;
use super::error::FsResult;
use super::survey::{Damage, Found, Survey, Visitor};
use super::volume::refuse_rolled_back;
use super::xattr;
use crate::crypto::{VolumeKeys, volumekeys};
use crate::format::descriptor::NameMode;
use crate::keys::Keyring;
use crate::store::content::VolumeContext;
use crate::store::{Content, FileLog, FileStorage, Storage};

/// Object id of attributes on anything that is neither a regular file nor a directory.
const NO_OBJECT: [u8; 16] = [0; 16];
/// Files that wait for a thread; each holds its directory open.
const QUEUE: usize = 64;

/// What was looked at.
#[derive(Default)]
pub struct Checked {
    /// Regular files, hard links counted once.
    pub files: AtomicU64,
    /// Bytes read of them, as stored.
    pub bytes: AtomicU64,
    /// Directories.
    pub directories: AtomicU64,
    /// Symbolic links.
    pub symlinks: AtomicU64,
    /// Fifos, sockets and device nodes.
    pub specials: AtomicU64,
    /// Traces of interrupted work that lost nothing: files longer than their header says, helpers
    /// whose owner is gone.
    pub leftovers: AtomicU64,
    /// Plaintext paths of directories that could not be looked into.
    pub denied: Mutex<Vec<Vec<u8>>>,
}

/// Who is told; called from several threads.
pub trait Watch: Sync {
    /// One regular file of so many backing bytes was checked.
    fn checked(&self, bytes: u64);
    /// Something is damaged.
    fn damaged(&self, damage: Damage);
}

/// What the check needs of an unlocked volume.
pub struct Verifier<'a> {
    /// Volume and keys as the engine wants them.
    pub context: Arc<VolumeContext>,
    /// How names are stored.
    pub names: NameMode,
    /// Generation of the descriptor.
    pub generation: u64,
    /// Data keys.
    pub keyring: &'a Keyring,
    /// Files that are newer in the journal than in their place.
    pub views: &'a HashMap<u64, Arc<FileLog>>,
    /// Who is told.
    pub watch: &'a dyn Watch,
}

impl Verifier<'_> {
    /// Checks everything below the backing root with so many content threads.
    pub fn run(&self, root: impl AsFd, threads: usize) -> FsResult<Checked> {
        let keys = self.context.keys.keys()?;
        let checked = Checked::default();
        let (sender, receiver) = sync_channel(QUEUE);
        let receiver = Mutex::new(receiver);
        std::thread::scope(|scope| {
            for _ in 0..threads.max(1) {
                scope.spawn(|| self.work(&receiver, &checked));
            }
            let survey = Survey { keys: keys.clone(), names: self.names };
            let mut queue =
                Queue { sender, verifier: self, checked: &checked, seen: HashSet::new() };
            // Dropping the queue afterwards ends the threads.
            survey.walk(root, &mut queue)
        })?;
        Ok(checked)
    }

    fn work(&self, receiver: &Mutex<Receiver<Found>>, checked: &Checked) {
        loop {
            // The lock is held while waiting: exactly one thread waits, the others queue behind it.
            let Ok(found) = receiver.lock().recv() else { return };
            self.file(&found, checked);
            let bytes = found.stat.st_size as u64;
            checked.bytes.fetch_add(bytes, Relaxed);
            self.watch.checked(bytes);
        }
    }

    fn file(&self, found: &Found, checked: &Checked) {
        match self.content(found, checked) {
            Ok(object) => self.attributes(found, &object),
            Err(error) => self.watch.damaged(found.damage(error.to_string())),
        }
    }

    /// Reads everything; returns the object id. Damage of single chunks is reported on the way.
    fn content(&self, found: &Found, checked: &Checked) -> FsResult<[u8; 16]> {
        // A file that was never written has no header, and no object id to bind attributes to.
        if found.stat.st_size == 0 {
            return Ok(NO_OBJECT);
        }
        let file = backing::open_file(&*found.parent, &found.entry, false)?;
        let storage: Arc<dyn Storage> = match self.views.get(&found.stat.st_ino) {
            Some(view) => view.clone(),
            None => Arc::new(FileStorage(file)),
        };
        if storage.is_empty()? {
            return Ok(NO_OBJECT);
        }
        let header = Content::read_header(&self.context, &*storage)?;
        refuse_rolled_back(header.wrap_epoch, self.generation)?;
        let object = header.object.0;
        let wanted = self.context.layout.backing_len(header.size);
        if storage.len()? > wanted {
            checked.leftovers.fetch_add(1, Relaxed);
        }
        let key = self.keyring.data_key(&header.current)?;
        let next = header.next.as_ref().map(|slot| self.keyring.data_key(slot)).transpose()?;
        let content = Content::open(self.context.clone(), storage, header, key, next, false)?;
        let mut last = String::new();
        content.verify(&mut |error| {
            // A file that is too short says so for every part that is missing.
            let reason = error.to_string();
            if reason != last {
                self.watch.damaged(found.damage(reason.as_str()));
                last = reason;
            }
        })?;
        Ok(object)
    }

    /// Decrypts every attribute of ours.
    fn attributes(&self, found: &Found, object: &[u8; 16]) {
        let loc = Loc::At(found.parent.clone(), found.entry.clone().into());
        let names = match xattr::list(&loc) {
            Ok(names) => names,
            Err(error) => return self.watch.damaged(found.damage(format!("attributes: {error}"))),
        };
        let Ok(keys) = self.context.keys.keys() else { return };
        for stored in names {
            if attribute_opens(&keys, object, &loc, &stored) == Some(false) {
                let shown = String::from_utf8_lossy(&stored);
                let text = format!("extended attribute {shown} does not authenticate");
                self.watch.damaged(found.damage(text));
            }
        }
    }
}

/// Whether name and value of a stored attribute open; `None` if it is not one of ours.
fn attribute_opens(keys: &VolumeKeys, object: &[u8; 16], loc: &Loc, stored: &[u8]) -> Option<bool> {
    let space = xattr::SPACES.into_iter().find(|space| stored.starts_with(space.as_bytes()))?;
    let text = &stored[space.len()..];
    let opens = || {
        let raw = xattr::get(loc, stored).ok()?;
        let short;
        let (sealed, value) = if text.starts_with(xattr::LONG.as_bytes()) {
            xattr::split_long(stored, &raw)?
        } else {
            short = volumekeys::decode_name(text)?;
            (&short[..], &raw[..])
        };
        let name = keys.open_xattr_name(object, sealed).ok()?;
        if xattr::space_of(&name) != Some(space) {
            return None;
        }
        keys.open_xattr_value(object, &name, value).ok()
    };
    Some(opens().is_some())
}

/// Counts what the walk finds and hands regular files to the threads.
struct Queue<'a> {
    sender: SyncSender<Found>,
    verifier: &'a Verifier<'a>,
    checked: &'a Checked,
    /// Inodes with several links that were queued already.
    seen: HashSet<(u64, u64)>,
}

impl Visitor for Queue<'_> {
    fn found(&mut self, found: Found) {
        let checked = self.checked;
        let counter = match found.kind {
            FileKind::Regular => {
                let inode = (found.stat.st_dev, found.stat.st_ino);
                if found.stat.st_nlink > 1 && !self.seen.insert(inode) {
                    return;
                }
                checked.files.fetch_add(1, Relaxed);
                // Fails only when every thread is gone, and they outlive the walk.
                let _ = self.sender.send(found);
                return;
            }
            FileKind::Directory => &checked.directories,
            FileKind::Symlink => &checked.symlinks,
            FileKind::Fifo | FileKind::Socket | FileKind::Char | FileKind::Block => {
                &checked.specials
            }
        };
        counter.fetch_add(1, Relaxed);
        self.verifier.attributes(&found, &found.dir_id.map_or(NO_OBJECT, |id| id.0));
    }

    fn damaged(&mut self, damage: Damage) {
        self.verifier.watch.damaged(damage);
    }

    fn denied(&mut self, plain: &[u8]) {
        self.checked.denied.lock().push(plain.to_vec());
    }

    fn leftover(&mut self) {
        self.checked.leftovers.fetch_add(1, Relaxed);
    }
}
