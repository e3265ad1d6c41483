//! Extended attributes: names and values encrypted and bound to their object; POSIX ACLs in clear,
//! because they hold ids only and the backing enforces and inherits them.

use std::sync::Arc;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::attr::{Caller, FileKind, Ino};
use super::backing;
use super::dirs::{DirHandle, Loc};
use super::error::{FsError, FsResult};
use super::inode::Inode;
use super::volume::Volume;
use crate::crypto::volumekeys::{decode_name, encode_name, long_name_hash};
use crate::format::DirId;
use crate::store::{Content, FileStorage, Storage};

/// Largest attribute value and name list Linux knows, bytes.
const SIZE_MAX: usize = 64 << 10;
/// Longest attribute name, bytes.
const NAME_MAX: usize = 255;
/// Bytes of the length before a long attribute name in its value.
const LONG_HEAD: usize = 2;
/// Longest sealed attribute name, bytes.
const LONG_SEALED_MAX: u16 = NAME_MAX as u16 + 16;
const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

/// Backing name spaces: `user.*` in the first, what only root may touch in the second.
pub(super) const SPACES: [&str; 2] = ["user.kmsfs.", "trusted.kmsfs."];
/// Follows the space when the encrypted name is too long and stands before the value.
pub(super) const LONG: &str = "long.";

/// A backing attribute name, and the sealed name if it is too long to stand there.
struct Stored {
    name: String,
    long: Option<Vec<u8>>,
}

/// How an attribute name is treated.
enum Class {
    Acl,
    Sealed(&'static str),
    Unsupported,
}

impl Volume {
    fn xattr_class(&self, name: &[u8]) -> FsResult<Class> {
        let bare: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
        if bare.contains(&name) {
            return Err(Errno::INVAL.into());
        }
        Ok(self.class_of(name))
    }

    fn class_of(&self, name: &[u8]) -> Class {
        if name == ACL_ACCESS || name == ACL_DEFAULT {
            return if self.flags.acl { Class::Acl } else { Class::Unsupported };
        }
        space_of(name).map_or(Class::Unsupported, Class::Sealed)
    }

    /// Value of an attribute.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> FsResult<Vec<u8>> {
        let inode = self.inode(ino)?;
        match self.xattr_class(name)? {
            Class::Unsupported => Err(Errno::OPNOTSUPP.into()),
            Class::Acl => self.at(&inode, |loc| Ok(get(loc, name)?)),
            Class::Sealed(space) => {
                self.get_sealed(&inode, space, name).map_err(|e| self.note(&inode, e))
            }
        }
    }

    fn get_sealed(&self, inode: &Arc<Inode>, space: &str, name: &[u8]) -> FsResult<Vec<u8>> {
        // Most objects have no attributes, and then nothing of theirs need be read.
        let any =
            self.at(inode, |loc| Ok(list(loc)?.iter().any(|n| n.starts_with(space.as_bytes()))))?;
        let object = if any { self.object_id(inode)? } else { None };
        let object = object.ok_or(FsError::Errno(libc::ENODATA))?;
        let stored = self.stored_name(&object, space, name)?;
        let raw = self.at(inode, |loc| Ok(get(loc, stored.name.as_bytes())?))?;
        self.open_value(&object, name, &stored, &raw)
    }

    fn stored_name(&self, object: &[u8; 16], space: &str, name: &[u8]) -> FsResult<Stored> {
        let sealed = self.keys()?.seal_xattr_name(object, name);
        let text = format!("{space}{}", encode_name(&sealed));
        if text.len() <= NAME_MAX {
            return Ok(Stored { name: text, long: None });
        }
        let name = format!("{space}{LONG}{}", long_name_hash(&sealed));
        Ok(Stored { name, long: Some(sealed) })
    }

    fn open_value(
        &self,
        object: &[u8; 16],
        name: &[u8],
        stored: &Stored,
        raw: &[u8],
    ) -> FsResult<Vec<u8>> {
        let sealed = match &stored.long {
            None => Some(raw),
            Some(_) => split_long(stored.name.as_bytes(), raw).map(|(_, value)| value),
        };
        let keys = self.keys()?;
        sealed
            .and_then(|s| keys.open_xattr_value(object, name, s).ok())
            .ok_or_else(|| damaged("value does not authenticate"))
    }

    /// Sets an attribute. `flags`: XATTR_CREATE, XATTR_REPLACE.
    pub fn setxattr(
        &self,
        who: Caller,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        flags: i32,
    ) -> FsResult<()> {
        self.require_writable()?;
        let inode = self.inode(ino)?;
        let flags = XattrFlags::from_bits(flags as u32).ok_or(FsError::Errno(libc::EINVAL))?;
        if name.len() > NAME_MAX || value.len() > SIZE_MAX {
            return Err(Errno::RANGE.into());
        }
        match self.xattr_class(name)? {
            Class::Unsupported => return Err(Errno::OPNOTSUPP.into()),
            Class::Acl => self.set_acl(who, &inode, name, value, flags)?,
            Class::Sealed(space) => {
                let object = self.object_id_for_writing(&inode)?;
                let stored = self.stored_name(&object, space, name)?;
                let mut sealed = self.keys()?.seal_xattr_value(&object, name, value);
                if let Some(long) = &stored.long {
                    sealed = join_long(long, &sealed);
                }
                self.at(&inode, |loc| Ok(set(loc, stored.name.as_bytes(), &sealed, flags)?))?;
            }
        }
        self.attributes_changed(&inode);
        Ok(())
    }

    fn set_acl(
        &self,
        who: Caller,
        inode: &Inode,
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
    ) -> FsResult<()> {
        self.at(inode, |loc| {
            set(loc, name, value, flags)?;
            let st = loc.stat()?;
            // A process outside the file's group must not keep its set-group-id bit; without
            // SETXATTR_EXT the kernel cannot tell us, so only the file's own group is believed.
            let mut set_id = inode.set_id.lock();
            let stranger = who.uid != 0 && who.gid != st.st_gid;
            if name == ACL_ACCESS && st.st_mode & 0o2000 != 0 && stranger {
                let mode = rustix::fs::Mode::from_raw_mode(st.st_mode & 0o5777);
                rustix::fs::chmod(backing::proc_path(&loc.pin()?), mode)?;
                *set_id = Some(st.st_mode & 0o4000);
            }
            Ok(())
        })
    }

    /// Names of all attributes, each followed by a NUL. `trusted.*` is for root only.
    pub fn listxattr(&self, who: Caller, ino: Ino) -> FsResult<Vec<u8>> {
        let inode = self.inode(ino)?;
        let raw = self.at(&inode, |loc| Ok(list(loc)?))?;
        let mut names = Vec::new();
        let mut object = None;
        for stored in raw {
            let name = if stored == ACL_ACCESS || stored == ACL_DEFAULT {
                self.flags.acl.then_some(stored)
            } else {
                let Some(space) = SPACES.iter().find(|s| stored.starts_with(s.as_bytes())) else {
                    continue;
                };
                if object.is_none() {
                    object = self.object_id(&inode)?;
                }
                let Some(object) = &object else { continue };
                self.listed_xattr(&inode, object, space, &stored)?
            };
            let hidden = |n: &Vec<u8>| n.starts_with(b"trusted.") && who.uid != 0;
            if let Some(name) = name.filter(|n| !hidden(n)) {
                names.extend_from_slice(&name);
                names.push(0);
            }
        }
        Ok(names)
    }

    fn listed_xattr(
        &self,
        inode: &Inode,
        object: &[u8; 16],
        space: &str,
        stored: &[u8],
    ) -> FsResult<Option<Vec<u8>>> {
        // Without keys nothing is known of it, least of all that it is damaged.
        let keys = self.keys()?;
        let text = &stored[space.len()..];
        let sealed = if text.starts_with(LONG.as_bytes()) {
            let raw = self.at(inode, |loc| Ok(get(loc, stored)?));
            // Removed meanwhile.
            let Ok(raw) = raw else { return Ok(None) };
            split_long(stored, &raw).map(|(name, _)| name.to_vec())
        } else {
            decode_name(text)
        };
        let name = sealed
            .and_then(|sealed| keys.open_xattr_name(object, &sealed).ok())
            .filter(|name| space_of(name) == Some(space));
        if name.is_none() {
            let _ = self.note(inode, damaged("name does not authenticate; left out of the list"));
        }
        Ok(name)
    }

    /// Removes an attribute.
    pub fn removexattr(&self, _who: Caller, ino: Ino, name: &[u8]) -> FsResult<()> {
        self.require_writable()?;
        let inode = self.inode(ino)?;
        match self.xattr_class(name)? {
            Class::Unsupported => return Err(Errno::OPNOTSUPP.into()),
            Class::Acl => self.at(&inode, |loc| Ok(remove(loc, name)?))?,
            Class::Sealed(space) => {
                let object = self.object_id(&inode)?.ok_or(FsError::Errno(libc::ENODATA))?;
                let stored = self.stored_name(&object, space, name)?;
                self.at(&inode, |loc| Ok(remove(loc, stored.name.as_bytes())?))?;
            }
        }
        self.attributes_changed(&inode);
        Ok(())
    }

    /// What attributes are bound to: object id, directory id, or zeros for what has neither.
    /// `None` for a file or directory that has no id yet, and so no attributes.
    fn object_id(&self, inode: &Arc<Inode>) -> FsResult<Option<[u8; 16]>> {
        match inode.kind {
            FileKind::Regular => {
                if let Some(content) = inode.content() {
                    return Ok(Some(content.object().0));
                }
                let file = self.at(inode, open_for_header)?;
                if file.len()? == 0 {
                    return Ok(None);
                }
                Ok(Some(Content::read_header(&self.ctx, &file)?.object.0))
            }
            FileKind::Directory => {
                Ok(self.dir_id(inode, &*self.dir_handle(inode)?)?.map(|id| id.0))
            }
            FileKind::Symlink
            | FileKind::Fifo
            | FileKind::Socket
            | FileKind::Char
            | FileKind::Block => Ok(Some([0; 16])),
        }
    }

    fn object_id_for_writing(&self, inode: &Arc<Inode>) -> FsResult<[u8; 16]> {
        match inode.kind {
            FileKind::Regular => self.with_content(inode, |content, storage| {
                // A first header is no change of content: the modification time stays.
                let old = storage.mtime()?;
                let first = content.generation() == 0 && content.pending_mtime().is_none();
                content.ensure_header()?;
                if first {
                    storage.set_mtime(old)?;
                }
                Ok(content.object().0)
            }),
            FileKind::Directory => {
                let DirId(id) = self.dir_id_or_new(inode, &*self.dir_handle(inode)?)?;
                Ok(id)
            }
            _ => self.object_id(inode)?.ok_or(FsError::Errno(libc::EOPNOTSUPP)),
        }
    }

    /// Does this directory hand an ACL down?
    pub(super) fn has_default_acl(&self, dir: &Arc<DirHandle>) -> bool {
        let loc = Loc::At(dir.clone(), b"."[..].into());
        get(&loc, ACL_DEFAULT).is_ok()
    }
}

fn open_for_header(loc: &Loc) -> FsResult<FileStorage> {
    Ok(FileStorage(match loc {
        Loc::At(dir, entry) => backing::open_file(dir, entry, false)?,
        Loc::Fd(fd) => std::fs::File::open(backing::proc_path(fd))?,
    }))
}

fn damaged(what: &str) -> FsError {
    FsError::Damaged(format!("extended attribute: {what}"))
}

/// Value of an attribute with a long name: name length (u16), sealed name, sealed value.
fn join_long(name: &[u8], value: &[u8]) -> Vec<u8> {
    [&(name.len() as u16).to_le_bytes()[..], name, value].concat()
}

/// Sealed name and sealed value of an attribute with a long name; `None` unless the name belongs to
/// the stored one and does not fit there itself.
pub(super) fn split_long<'a>(stored: &[u8], raw: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let len = u16::from_le_bytes(raw.get(..LONG_HEAD)?.try_into().ok()?);
    let (name, value) = raw[LONG_HEAD..].split_at_checked(usize::from(len))?;
    let space = SPACES.iter().find(|space| stored.starts_with(space.as_bytes()))?;
    let is_long = space.len() + encode_name(name).len() > NAME_MAX && len <= LONG_SEALED_MAX;
    let hash = stored[space.len()..].strip_prefix(LONG.as_bytes())?;
    (is_long && hash == long_name_hash(name).as_bytes()).then_some((name, value))
}

/// The stored prefix that attributes of this name belong under.
pub(super) fn space_of(name: &[u8]) -> Option<&'static str> {
    if name.starts_with(b"user.") {
        Some(SPACES[0])
    } else if name.starts_with(b"trusted.") || name.starts_with(b"security.") {
        Some(SPACES[1])
    } else {
        None
    }
}

/// Path of an entry for the `l*xattr` calls, which do not follow it.
fn entry_path(dir: &DirHandle, entry: &[u8]) -> Vec<u8> {
    [backing::proc_path(&dir.0).as_bytes(), b"/", entry].concat()
}

pub(super) fn get(loc: &Loc, name: &[u8]) -> Result<Vec<u8>, Errno> {
    let mut value: Vec<u8> = vec![0; 1024];
    loop {
        let got = match loc {
            Loc::At(dir, entry) => {
                rustix::fs::lgetxattr(entry_path(dir, entry), name, &mut value[..])
            }
            Loc::Fd(fd) => rustix::fs::getxattr(backing::proc_path(fd), name, &mut value[..]),
        };
        match got {
            Err(Errno::RANGE) if value.len() <= SIZE_MAX => value.resize(2 * SIZE_MAX, 0),
            Err(errno) => return Err(errno),
            Ok(len) => {
                value.truncate(len);
                return Ok(value);
            }
        }
    }
}

pub(super) fn list(loc: &Loc) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names: Vec<u8> = vec![0; 2048];
    loop {
        let got = match loc {
            Loc::At(dir, entry) => rustix::fs::llistxattr(entry_path(dir, entry), &mut names[..]),
            Loc::Fd(fd) => rustix::fs::listxattr(backing::proc_path(fd), &mut names[..]),
        };
        match got {
            Err(Errno::RANGE) if names.len() <= SIZE_MAX => names.resize(2 * SIZE_MAX, 0),
            // A backing without attributes has none to list.
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(errno) => return Err(errno),
            Ok(len) => {
                let all = names[..len].split(|b| *b == 0).filter(|n| !n.is_empty());
                return Ok(all.map(<[u8]>::to_vec).collect());
            }
        }
    }
}

fn set(loc: &Loc, name: &[u8], value: &[u8], flags: XattrFlags) -> Result<(), Errno> {
    match loc {
        Loc::At(dir, entry) => rustix::fs::lsetxattr(entry_path(dir, entry), name, value, flags),
        Loc::Fd(fd) => rustix::fs::setxattr(backing::proc_path(fd), name, value, flags),
    }
}

pub(super) fn remove(loc: &Loc, name: &[u8]) -> Result<(), Errno> {
    match loc {
        Loc::At(dir, entry) => rustix::fs::lremovexattr(entry_path(dir, entry), name),
        Loc::Fd(fd) => rustix::fs::removexattr(backing::proc_path(fd), name),
    }
}
