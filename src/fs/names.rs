//! Plaintext names and targets ⇄ backing entries. Pure but for the sidecars, which the caller reads
//! and writes.

use super::error::{FsError, FsResult};
use crate::crypto::VolumeKeys;
use crate::crypto::volumekeys::{decode_name, encode_name, long_name_hash};
use crate::format::descriptor::NameMode;
use crate::format::{DirId, is_name};
use std::sync::Arc;

/// Longest plaintext name in bytes, as everywhere on Linux.
pub use crate::format::NAME_MAX;
/// Longest symlink target in bytes (PATH_MAX without its NUL).
pub const TARGET_MAX: usize = 4095;
/// Everything beginning so is ours.
pub const RESERVED: &[u8] = b"kmsfs.";
/// The directory's own file.
pub const DIR_FILE: &[u8] = b"kmsfs.dir";
/// A name too long for one entry.
pub const LONG: &[u8] = b"kmsfs.long.";
/// Ending of the sidecar that holds a long name.
pub const SIDECAR: &[u8] = b".name";
/// Backing target, and sidecar, of a symlink whose encrypted target is too long.
pub const LONG_LINK: &[u8] = b"kmsfs.link.";
/// A helper on its way to its name.
pub const TEMPORARY: &[u8] = b"kmsfs.tmp.";
/// Escape of reserved names in plain mode.
const ESCAPE: &[u8] = b"kmsfs.esc.";
/// Bytes SIV adds.
const SIV: usize = 16;
/// Longest name whose encrypted form fits one entry, bytes.
const SHORT_MAX: usize = 175;

/// The backing entry of a name.
pub struct Entry {
    /// Entry name.
    pub backing: Vec<u8>,
    /// Content of the sidecar, if the name needs one.
    pub sidecar: Option<Vec<u8>>,
}

impl Entry {
    /// Name of the sidecar of this entry.
    pub fn sidecar_name(&self) -> Vec<u8> {
        sidecar_of(&self.backing)
    }
}

/// Name of the sidecar of a long entry.
pub fn sidecar_of(entry: &[u8]) -> Vec<u8> {
    [entry, SIDECAR].concat()
}

/// What a raw entry in a directory is.
pub enum Listed {
    /// `.` or `..`.
    Dot,
    /// One of our helpers; not shown.
    Helper,
    /// Its name stands in the sidecar.
    Long,
    /// A user's object with this name.
    Name(Vec<u8>),
    /// Neither ours nor decryptable.
    Unreadable,
}

/// Encrypts and decrypts names as the volume says.
pub struct NameCodec {
    /// Keys.
    pub keys: Arc<VolumeKeys>,
    /// Mode.
    pub mode: NameMode,
}

impl NameCodec {
    /// The backing entry of `name` in directory `dir`.
    pub fn entry(&self, dir: DirId, name: &[u8]) -> FsResult<Entry> {
        if name.len() > NAME_MAX {
            return Err(FsError::Errno(libc::ENAMETOOLONG));
        }
        if !is_name(name) {
            return Err(FsError::Errno(libc::EINVAL));
        }
        match self.mode {
            NameMode::Plain => plain_entry(name),
            NameMode::Encrypted => {
                let sealed = self.keys.seal_name(dir, name);
                let text = encode_name(&sealed).into_bytes();
                if text.len() <= NAME_MAX {
                    return Ok(Entry { backing: text, sidecar: None });
                }
                let backing = [LONG, long_name_hash(&sealed).as_bytes()].concat();
                Ok(Entry { backing, sidecar: Some(sealed) })
            }
        }
    }

    /// Classifies a raw entry.
    pub fn listed(&self, dir: Option<DirId>, raw: &[u8]) -> Listed {
        if raw == b"." || raw == b".." {
            return Listed::Dot;
        }
        if raw.starts_with(RESERVED) {
            return match self.mode {
                NameMode::Plain if raw.starts_with(ESCAPE) => escaped(&raw[ESCAPE.len()..]),
                NameMode::Encrypted if raw.starts_with(LONG) && !raw.ends_with(SIDECAR) => {
                    Listed::Long
                }
                NameMode::Plain | NameMode::Encrypted => Listed::Helper,
            };
        }
        if self.mode == NameMode::Plain {
            return Listed::Name(raw.to_vec());
        }
        let opened = dir.zip(decode_name(raw)).and_then(|(d, s)| self.keys.open_name(d, &s).ok());
        opened.filter(|name| is_name(name)).map_or(Listed::Unreadable, Listed::Name)
    }

    /// The name a sidecar holds; checks that it belongs to `entry`.
    pub fn long_name(&self, dir: DirId, entry: &[u8], sidecar: &[u8]) -> FsResult<Vec<u8>> {
        // A name that fits an entry of its own has no second form.
        let is_long = sidecar.len() > SIV + SHORT_MAX && sidecar.len() <= SIV + NAME_MAX;
        let belongs =
            is_long && entry.strip_prefix(LONG) == Some(long_name_hash(sidecar).as_bytes());
        belongs
            .then(|| self.keys.open_name(dir, sidecar).ok())
            .flatten()
            .filter(|name| is_name(name))
            .ok_or_else(|| FsError::Damaged("the sidecar of a long name does not match it".into()))
    }

    /// Backing form of a symlink target: the text, and the sealed bytes for a sidecar.
    pub fn seal_target(&self, target: &[u8]) -> FsResult<(Vec<u8>, Vec<u8>)> {
        if target.len() > TARGET_MAX {
            return Err(FsError::Errno(libc::ENAMETOOLONG));
        }
        let sealed = self.keys.seal_symlink(target);
        Ok((encode_name(&sealed).into_bytes(), sealed))
    }

    /// The target that sealed bytes hold.
    pub fn open_target(&self, sealed: &[u8]) -> FsResult<Vec<u8>> {
        self.keys
            .open_symlink(sealed)
            .map_err(|_| FsError::Damaged("symlink target does not authenticate".into()))
    }

    /// Sealed bytes of a backing target that is not a reference to a sidecar.
    pub fn decode_target(&self, backing: &[u8]) -> FsResult<Vec<u8>> {
        decode_name(backing).ok_or_else(|| FsError::Damaged("symlink target is not ours".into()))
    }
}

fn plain_entry(name: &[u8]) -> FsResult<Entry> {
    let backing = if name.starts_with(RESERVED) { [ESCAPE, name].concat() } else { name.to_vec() };
    if backing.len() > NAME_MAX {
        return Err(FsError::Errno(libc::ENAMETOOLONG));
    }
    Ok(Entry { backing, sidecar: None })
}

/// What an escape stands before. Only reserved names are stored so: anything else was planted, and
/// would double a name or be none at all.
fn escaped(rest: &[u8]) -> Listed {
    let ours = rest.starts_with(RESERVED) && is_name(rest);
    if ours { Listed::Name(rest.to_vec()) } else { Listed::Unreadable }
}

/// Plaintext length of a symlink whose backing target has `len` bytes; `None` when the target stands
/// in a sidecar. (A reference is 33 bytes, a length base64url without padding never has.)
pub fn target_len(len: u64) -> Option<u64> {
    let reference = (LONG_LINK.len() + 22) as u64;
    (len != reference).then(|| (len * 3 / 4).saturating_sub(SIV as u64))
}
