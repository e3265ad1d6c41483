//! The backing tree of an unlocked volume that is not mounted: a walk over every entry.
//!
//! Needs the volume key only; `verify` and the rewrap sweep stand on it. The walk opens everything
//! relative to its directory (a backing path may be longer than `PATH_MAX`), follows no symbolic
//! link, and holds one descriptor per level of the tree, not per entry. It reports what cannot be
//! right, goes on, and changes nothing. It must not know what is done with what it finds.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, Stat, openat};

use super::attr::FileKind;
use super::backing;
use super::dirs::DirHandle;
use super::error::{FsError, FsResult};
use super::names::{self, Listed, NameCodec};
use crate::crypto::VolumeKeys;
use crate::format::descriptor::{DESCRIPTOR_NAME, NameMode};
use crate::format::{DirId, dirfile};
use crate::store::journal::JOURNAL_PREFIX;

/// Largest helper the walk reads, bytes: sealed names and link targets stay far below.
const HELPER_MAX: usize = 8192;
/// Helpers that stand in the backing root only, besides the descriptor.
const ROOT_HELPERS: [&[u8]; 2] = [b"kmsfs.session", b"kmsfs.volume.new"];

/// Something that cannot be right.
pub struct Damage {
    /// Plaintext path from the root of the volume; parts that do not decrypt stand as `<backing name>`.
    pub plain: Vec<u8>,
    /// Backing path from the backing root.
    pub backing: Vec<u8>,
    /// Why.
    pub reason: String,
}

/// An object found in the tree.
pub struct Found {
    /// Plaintext path from the root of the volume.
    pub plain: Vec<u8>,
    /// Backing path from the backing root.
    pub backing: Vec<u8>,
    /// Backing directory it stands in (the root stands in itself, as `.`).
    pub(super) parent: Arc<DirHandle>,
    /// Entry name in it.
    pub entry: Vec<u8>,
    /// Kind.
    pub kind: FileKind,
    /// Attributes of the backing object.
    pub stat: Stat,
    /// Directories: the id, unless it is legally absent.
    pub dir_id: Option<DirId>,
}

impl Found {
    /// Damage of this object.
    pub fn damage(&self, reason: impl Into<String>) -> Damage {
        Damage { plain: self.plain.clone(), backing: self.backing.clone(), reason: reason.into() }
    }
}

/// What the walk reports to.
pub trait Visitor {
    /// An object. Directories come before what is in them.
    fn found(&mut self, found: Found);
    /// Something wrong with a name, a directory, a link or a helper.
    fn damaged(&mut self, damage: Damage);
    /// A directory whose mode keeps us out: nothing below it was looked at.
    fn denied(&mut self, plain: &[u8]);
    /// A helper whose owner is gone, as an interrupted creation or removal leaves it; harmless.
    fn leftover(&mut self) {}
}

/// How to read the tree.
pub struct Survey {
    /// Volume keys.
    pub keys: Arc<VolumeKeys>,
    /// How names are stored.
    pub names: NameMode,
}

/// A directory still to be walked.
struct Pending {
    parent: Arc<DirHandle>,
    entry: Vec<u8>,
    plain: Vec<u8>,
    backing: Vec<u8>,
    stat: Stat,
}

/// A directory being walked.
struct Open {
    fd: Arc<DirHandle>,
    id: Option<DirId>,
    plain: Vec<u8>,
    backing: Vec<u8>,
    is_root: bool,
    entries: HashSet<Vec<u8>>,
    /// Link sidecars some symlink refers to.
    links: HashSet<Vec<u8>>,
}

impl Open {
    fn damage(&self, entry: &[u8], shown: &[u8], reason: impl Into<String>) -> Damage {
        Damage {
            plain: joined(&self.plain, shown),
            backing: joined(&self.backing, entry),
            reason: reason.into(),
        }
    }
}

impl Survey {
    /// Walks the whole tree below the backing root. Fails only if the root itself cannot be read.
    pub fn walk(&self, root: impl AsFd, visitor: &mut dyn Visitor) -> FsResult<()> {
        let root = Arc::new(DirHandle(backing::open_dir(root)?));
        let stat = rustix::fs::fstat(&*root)?;
        let first = Pending {
            parent: root,
            entry: b".".to_vec(),
            plain: Vec::new(),
            backing: Vec::new(),
            stat,
        };
        let mut stack = vec![first];
        while let Some(pending) = stack.pop() {
            let damage = |error: FsError| Damage {
                plain: pending.plain.clone(),
                backing: pending.backing.clone(),
                reason: format!("directory cannot be read: {error}"),
            };
            match self.directory(&pending, &mut stack, visitor) {
                Ok(()) => {}
                Err(FsError::Errno(libc::EACCES)) => visitor.denied(&pending.plain),
                Err(error) => visitor.damaged(damage(error)),
            }
        }
        Ok(())
    }

    fn directory(
        &self,
        pending: &Pending,
        stack: &mut Vec<Pending>,
        visitor: &mut dyn Visitor,
    ) -> FsResult<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&*pending.parent, &pending.entry[..], flags, Mode::empty())?;
        let fd = Arc::new(DirHandle(fd));
        let mut names: Vec<Vec<u8>> = backing::list(&*fd)?.into_iter().map(|e| e.name).collect();
        names.sort_unstable();
        let mut open = Open {
            id: None,
            plain: pending.plain.clone(),
            backing: pending.backing.clone(),
            is_root: pending.backing.is_empty(),
            entries: names.iter().cloned().collect(),
            links: HashSet::new(),
            fd,
        };
        match self.directory_id(&open) {
            Ok(id) => open.id = Some(id),
            // Nothing in an empty directory depends on its id; it gets one when something does.
            Err(_) if names.iter().all(|name| self.is_helper(name)) => {}
            Err(error) => visitor.damaged(open.damage(names::DIR_FILE, b"", error.to_string())),
        }
        visitor.found(Found {
            plain: open.plain.clone(),
            backing: open.backing.clone(),
            parent: pending.parent.clone(),
            entry: pending.entry.clone(),
            kind: FileKind::Directory,
            stat: pending.stat,
            dir_id: open.id,
        });
        for name in &names {
            self.entry(&mut open, name, stack, visitor);
        }
        self.helpers(&open, &names, visitor);
        Ok(())
    }

    /// The authenticated id.
    fn directory_id(&self, open: &Open) -> FsResult<DirId> {
        let bytes = backing::read_small(&*open.fd, names::DIR_FILE, dirfile::DIRFILE_LEN)?;
        let missing = "kmsfs.dir is missing, so the names in this directory cannot be decrypted";
        let bytes = bytes.ok_or_else(|| FsError::Damaged(missing.into()))?;
        dirfile::decode(&bytes, |bytes, mac| self.keys.directory_mac_ok(bytes, mac))
            .map_err(|error| FsError::Damaged(format!("kmsfs.dir: {error}")))
    }

    fn entry(
        &self,
        open: &mut Open,
        raw: &[u8],
        stack: &mut Vec<Pending>,
        visitor: &mut dyn Visitor,
    ) {
        let Some(name) = self.name(open, raw, visitor) else { return };
        let stat = match backing::stat_at(&*open.fd, raw) {
            Ok(stat) => stat,
            Err(error) => return visitor.damaged(open.damage(raw, &name, error.to_string())),
        };
        let Some(kind) = FileKind::from_mode(stat.st_mode) else {
            return visitor.damaged(open.damage(raw, &name, "unknown kind of object"));
        };
        let plain = joined(&open.plain, &name);
        let backing = joined(&open.backing, raw);
        let (parent, entry) = (open.fd.clone(), raw.to_vec());
        match kind {
            FileKind::Directory => stack.push(Pending { parent, entry, plain, backing, stat }),
            _ => {
                if kind == FileKind::Symlink
                    && let Err(error) = self.check_symlink(open, raw)
                {
                    visitor.damaged(open.damage(raw, &name, error.to_string()));
                }
                let dir_id = None;
                visitor.found(Found { plain, backing, parent, entry, kind, stat, dir_id });
            }
        }
    }

    /// The plaintext name of an entry, `<backing name>` if it has none; `None` for helpers.
    fn name(&self, open: &Open, raw: &[u8], visitor: &mut dyn Visitor) -> Option<Vec<u8>> {
        let unreadable = [b"<", raw, b">"].concat();
        let reason = match self.codec().listed(open.id, raw) {
            Listed::Dot | Listed::Helper => return None,
            Listed::Name(name) => return Some(name),
            Listed::Long => match self.long_name(open, raw) {
                Ok(name) => return Some(name),
                Err(error) => Some(error.to_string()),
            },
            Listed::Unreadable if self.names == NameMode::Plain => {
                Some("an escaped name that stands for no name of a file".to_owned())
            }
            // One report for the directory is enough when it is its id that is missing.
            Listed::Unreadable => open.id.map(|_| "the name does not decrypt".to_owned()),
        };
        if let Some(reason) = reason {
            visitor.damaged(open.damage(raw, &unreadable, reason));
        }
        Some(unreadable)
    }

    fn long_name(&self, open: &Open, raw: &[u8]) -> FsResult<Vec<u8>> {
        let missing = |what: &str| FsError::Damaged(format!("{what} is missing"));
        let id = open.id.ok_or_else(|| missing("the directory id"))?;
        let sidecar = backing::read_small(&*open.fd, &names::sidecar_of(raw), HELPER_MAX)?
            .ok_or_else(|| missing("the .name file beside it, which holds its name,"))?;
        self.codec().long_name(id, raw, &sidecar)
    }

    fn check_symlink(&self, open: &mut Open, raw: &[u8]) -> FsResult<()> {
        let target = rustix::fs::readlinkat(&*open.fd, raw, Vec::new())?.into_bytes();
        let sealed = if target.starts_with(names::LONG_LINK) {
            open.links.insert(target.clone());
            backing::read_small(&*open.fd, &target, HELPER_MAX)?.ok_or_else(|| {
                FsError::Damaged("the kmsfs.link file that holds its target is missing".into())
            })?
        } else {
            self.codec().decode_target(&target)?
        };
        self.codec().open_target(&sealed).map(drop)
    }

    /// Reports every `kmsfs.` entry that helps nothing.
    fn helpers(&self, open: &Open, names: &[Vec<u8>], visitor: &mut dyn Visitor) {
        for name in names.iter().filter(|name| self.is_helper(name)) {
            let owner = name.strip_suffix(names::SIDECAR).filter(|n| is_named(n, names::LONG, 43));
            let reason = match owner {
                _ if name == names::DIR_FILE => continue,
                _ if open.is_root && is_root_helper(name) => continue,
                _ if open.links.contains(name) => continue,
                Some(owner) if open.entries.contains(owner) => continue,
                Some(_) => {
                    visitor.leftover();
                    continue;
                }
                None if is_named(name, names::LONG_LINK, 22)
                    || is_named(name, names::TEMPORARY, 22) =>
                {
                    visitor.leftover();
                    continue;
                }
                None => "stray: kmsfs makes no file of this name here",
            };
            let shown = [b"<", &name[..], b">"].concat();
            visitor.damaged(open.damage(name, &shown, reason));
        }
    }

    fn is_helper(&self, name: &[u8]) -> bool {
        matches!(self.codec().listed(None, name), Listed::Helper)
    }

    fn codec(&self) -> NameCodec {
        NameCodec { keys: self.keys.clone(), mode: self.names }
    }
}

/// A helper's prefix with so many base64url characters behind it.
fn is_named(name: &[u8], prefix: &[u8], digits: usize) -> bool {
    let is_digit = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    name.strip_prefix(prefix).is_some_and(|rest| rest.len() == digits && rest.iter().all(is_digit))
}

fn is_root_helper(name: &[u8]) -> bool {
    let journal = name.starts_with(JOURNAL_PREFIX.as_bytes());
    name == DESCRIPTOR_NAME.as_bytes() || ROOT_HELPERS.contains(&name) || journal
}

/// Number and bytes of all regular files below a directory: what a progress bar counts up to.
pub fn regular_files(root: impl AsFd) -> FsResult<(u64, u64)> {
    let root = Arc::new(backing::open_dir(root)?);
    let mut stack = vec![(root, b".".to_vec())];
    let (mut files, mut total) = (0, 0);
    while let Some((parent, entry)) = stack.pop() {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Whatever cannot be read is reported by the walk, not here.
        let Ok(fd) = openat(&parent, &entry[..], flags, Mode::empty()) else { continue };
        let fd = Arc::new(fd);
        for raw in backing::list(&*fd).unwrap_or_default() {
            let Ok(stat) = backing::stat_at(&*fd, &raw.name) else { continue };
            match FileKind::from_mode(stat.st_mode) {
                Some(FileKind::Directory) => stack.push((fd.clone(), raw.name)),
                Some(FileKind::Regular) if raw.name != names::DIR_FILE => {
                    files += 1;
                    total += stat.st_size as u64;
                }
                _ => {}
            }
        }
    }
    Ok((files, total))
}

fn joined(dir: &[u8], entry: &[u8]) -> Vec<u8> {
    match (dir.is_empty(), entry.is_empty()) {
        (true, _) => entry.to_vec(),
        (_, true) => dir.to_vec(),
        _ => [dir, b"/", entry].concat(),
    }
}
