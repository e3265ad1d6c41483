//! The on-disk format as pure bytes and arithmetic; `FORMAT.md` beside this module is its text.
//!
//! Nothing here opens a file or holds a key: MACs come in as closures. Parsers take all of their
//! input or none, make every check in the order FORMAT.md gives, and never panic.

pub mod bytes;
pub mod descriptor;
pub mod dirfile;
pub mod header;
pub mod journal;
pub mod layout;
pub mod recipient;
pub mod tags;
#[cfg(test)]
mod testing;

use thiserror::Error;

/// Bytes of one backing block, of one chunk of plaintext, of one tag block and of one tree node.
pub const BLOCK: usize = 4096;

/// Format version written in every structure, and the only one read.
pub const VERSION: u16 = 1;
/// The only cipher suite: AES-256-GCM, HKDF-SHA-256, HMAC-SHA-256, AES-256-SIV.
pub const SUITE: u8 = 1;
/// log2 of [`BLOCK`], the only chunk size.
pub const CHUNK_LOG2: u8 = 12;

macro_rules! id16 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub struct $name(pub [u8; 16]);
    };
}
id16!(/// Names a volume; salts every key derived from its volume key.
    VolumeId);
id16!(/// Names one regular file for life.
    ObjectId);
id16!(/// Names one directory; associated data of every name in it.
    DirId);
id16!(/// Names one data key; part of the context it is wrapped under.
    DataKeyId);

/// Why bytes are not a valid piece of format v1.
#[derive(Debug, Error, PartialEq, Eq, Clone)]
pub enum FormatError {
    /// Shorter or longer than the structure.
    #[error("wrong length: {0} bytes")]
    Length(usize),
    /// Not this structure at all.
    #[error("bad magic")]
    Magic,
    /// Written by a newer kmsfs.
    #[error("format version {0} is newer than this kmsfs reads (1)")]
    Version(u16),
    /// Unknown cipher suite.
    #[error("unknown suite {0}")]
    Suite(u8),
    /// A field holds a value the format does not allow.
    #[error("bad value in field {0}")]
    Field(&'static str),
    /// The MAC does not match: damaged or forged.
    #[error("authentication failed")]
    Mac,
    /// The structure belongs to another volume.
    #[error("belongs to another volume")]
    OtherVolume,
    /// A feature this kmsfs does not know (its name).
    #[error("needs feature {0:?}, which this kmsfs does not know")]
    Feature(String),
    /// Larger than the format can address.
    #[error("file too large")]
    TooLarge,
}

/// Longest name of a directory entry, bytes.
pub const NAME_MAX: usize = 255;

/// Can a directory entry have this name? 1 to 255 bytes, no `/` and no NUL, neither `.` nor `..`.
pub fn is_name(name: &[u8]) -> bool {
    let dots = name == b"." || name == b"..";
    (1..=NAME_MAX).contains(&name.len()) && !dots && !name.iter().any(|b| matches!(b, 0 | b'/'))
}

/// Version 1 passes; above is `Version`, 0 never existed.
fn check_version(version: u16) -> Result<(), FormatError> {
    match version {
        VERSION => Ok(()),
        0 => Err(FormatError::Field("version")),
        newer => Err(FormatError::Version(newer)),
    }
}
/// The suite, then the chunk size.
fn check_suite(suite: u8, chunk_log2: u8) -> Result<(), FormatError> {
    match (suite, chunk_log2) {
        (SUITE, CHUNK_LOG2) => Ok(()),
        (SUITE, _) => Err(FormatError::Field("chunk_log2")),
        (unknown, _) => Err(FormatError::Suite(unknown)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_a_directory_can_hold() {
        for good in [&b"a"[..], b"...", b".a", b" ", b"\xff", b"\n", &[b'x'; NAME_MAX]] {
            assert!(is_name(good), "{good:?}");
        }
        for bad in [&b""[..], b".", b"..", b"/", b"a/b", b"a\0", &[b'x'; NAME_MAX + 1]] {
            assert!(!is_name(bad), "{bad:?}");
        }
    }
}
