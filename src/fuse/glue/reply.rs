//! Sending results: each reply kind takes either its value or an errno.

use super::super::convert::{self, errno};
use crate::fs::{Attr, DirEntry, Fh, FsResult, Volume};
use fuser::{
    Errno, FileAttr, Generation, INodeNo, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr,
};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

/// A reply that can say no.
pub trait Refuse {
    /// Answers with an error.
    fn refuse(self, error: Errno);
}

macro_rules! refuse {
    ($($reply:ty),+ $(,)?) => {
        $(impl Refuse for $reply {
            fn refuse(self, error: Errno) {
                self.error(error);
            }
        })+
    };
}

refuse!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyEmpty,
    ReplyEntry,
    ReplyLseek,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite,
    ReplyXattr,
);

/// Sends a value with `send`, or the errno of the failure.
pub fn answer<R: Refuse, T>(reply: R, result: FsResult<T>, send: impl FnOnce(R, T)) {
    match result {
        Ok(value) => send(reply, value),
        Err(e) => reply.refuse(errno(&e)),
    }
}

/// Sends success or an errno.
pub fn done(reply: ReplyEmpty, result: FsResult<()>) {
    answer(reply, result, |reply, ()| reply.ok());
}

/// Sends a new or found object.
pub fn answer_entry(reply: ReplyEntry, ttl: Duration, result: FsResult<Attr>) {
    answer(reply, result, |reply, attr| {
        reply.entry(&ttl, &convert::attr(&attr), Generation(attr.generation));
    });
}

/// Sends an attribute value or list: its length if the caller offers no room, ERANGE if too little.
pub fn answer_bytes(reply: ReplyXattr, room: u32, result: FsResult<Vec<u8>>) {
    answer(reply, result, |reply, bytes| match u32::try_from(bytes.len()) {
        Ok(length) if room == 0 => reply.size(length),
        Ok(length) if length <= room => reply.data(&bytes),
        _ => reply.error(Errno::ERANGE),
    });
}

/// Fills one directory page.
pub fn list(volume: &Volume, fh: Fh, offset: u64, mut reply: ReplyDirectory) {
    let mut filled = false;
    let result = volume.readdir(fh, offset, false, &mut |next, entry, _| {
        let name = OsStr::from_bytes(&entry.name);
        let full = reply.add(INodeNo(entry.ino), next, convert::kind(entry.kind), name);
        filled |= !full;
        !full
    });
    match result {
        Err(e) if !filled => reply.error(errno(&e)),
        // An error after some entries comes up again with the next page.
        _ => reply.ok(),
    }
}

/// Fills one directory page with attributes; each entry but `.` and `..` counts as a lookup, so a
/// page that has entries must be sent even when a later one fails.
pub fn list_plus(
    volume: &Volume,
    ttl: Duration,
    fh: Fh,
    offset: u64,
    mut reply: ReplyDirectoryPlus,
) {
    let mut filled = false;
    let result = volume.readdir(fh, offset, true, &mut |next, entry, attr| {
        let generation = Generation(attr.map_or(0, |attr| attr.generation));
        let attr = plus_attr(entry, attr);
        let name = OsStr::from_bytes(&entry.name);
        let full = reply.add(attr.ino, next, name, &ttl, &attr, generation);
        filled |= !full;
        !full
    });
    match result {
        Err(e) if !filled => reply.error(errno(&e)),
        _ => reply.ok(),
    }
}

/// Attributes of an entry. Without any, the kernel must not take the number for a looked-up object
/// (it never does for `.` and `..`), and this transport has one field for both numbers.
fn plus_attr(entry: &DirEntry, attr: Option<&Attr>) -> FileAttr {
    match attr {
        Some(attr) => convert::attr(attr),
        None if entry.name == b"." || entry.name == b".." => convert::bare(entry.ino, entry.kind),
        None => convert::bare(0, entry.kind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::FileKind;

    #[test]
    fn entries_without_attributes_count_no_lookup() {
        let entry = |name: &[u8]| DirEntry { ino: 7, kind: FileKind::Fifo, name: name.to_vec() };
        assert_eq!(plus_attr(&entry(b".."), None).ino.0, 7);
        assert_eq!(plus_attr(&entry(b"x"), None).ino.0, 0);
    }
}
