//! Between the transport's types and the file system's.

use crate::fs::{Attr, Caller, FileKind, FsError, SetTime, WriteHow};
use fuser::{Errno, FileAttr, FileType, INodeNo, Request, TimeOrNow, WriteFlags};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Preferred I/O size told to programs, and the unit of statfs, bytes.
pub const BLKSIZE: u32 = 4096;

/// Error for the kernel.
pub fn errno(error: &FsError) -> Errno {
    Errno::from_i32(error.errno())
}

/// Who asks.
pub fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), pid: request.pid() }
}

/// Kind of an object.
pub fn kind(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::Char => FileType::CharDevice,
        FileKind::Block => FileType::BlockDevice,
    }
}

/// Attributes for the kernel.
pub fn attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: time(attr.atime),
        mtime: time(attr.mtime),
        ctime: time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: kind(attr.kind),
        perm: attr.perm,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: device(attr.rdev),
        blksize: BLKSIZE,
        flags: 0,
    }
}

/// Attributes that say no more than number and kind. With number 0: there is no such object.
pub fn bare(ino: u64, of: FileKind) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: kind(of),
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLKSIZE,
        flags: 0,
    }
}

/// Device number as the kernel encodes it in 32 bits: 12 bits of major, 20 of minor number.
fn device(rdev: u64) -> u32 {
    let (major, minor) = (libc::major(rdev), libc::minor(rdev));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// Device number as the C library encodes it, from what the kernel sends with mknod.
pub fn device_number(kernel: u32) -> u64 {
    libc::makedev((kernel >> 8) & 0xfff, (kernel & 0xff) | ((kernel >> 12) & 0xf_ff00))
}

/// A time for the kernel.
fn time((secs, nanos): (i64, u32)) -> SystemTime {
    let whole = Duration::from_secs(secs.unsigned_abs());
    let base = if secs < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    base.and_then(|t| t.checked_add(Duration::from_nanos(nanos.into()))).unwrap_or(UNIX_EPOCH)
}

/// A time from the kernel.
pub fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(t) => SetTime::At(sent_time(t)),
    }
}

/// Undoes what the transport (0.18) does to times before 1970: the kernel sends -1.25 s as
/// seconds -2 and nanoseconds 750,000,000, and the transport makes 2.75 s before 1970 of it. The
/// distance from 1970 still holds both fields as they were sent.
fn sent_time(t: SystemTime) -> (i64, u32) {
    match t.duration_since(UNIX_EPOCH) {
        Ok(d) => (i64::try_from(d.as_secs()).unwrap_or(i64::MAX), d.subsec_nanos()),
        Err(before) => {
            let d = before.duration();
            (0i64.checked_sub_unsigned(d.as_secs()).unwrap_or(i64::MIN), d.subsec_nanos())
        }
    }
}

/// How a write reached us.
pub fn write_how(flags: WriteFlags) -> WriteHow {
    if flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID) {
        WriteHow::DropPrivileges
    } else if flags.contains(WriteFlags::FUSE_WRITE_CACHE) {
        WriteHow::Cached
    } else {
        WriteHow::Direct
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the transport does with the two fields the kernel sends.
    fn as_transport(secs: i64, nanos: u32) -> SystemTime {
        if secs >= 0 {
            UNIX_EPOCH + Duration::new(secs as u64, nanos)
        } else {
            UNIX_EPOCH - Duration::new(secs.unsigned_abs(), nanos)
        }
    }

    #[test]
    fn times_from_the_kernel_arrive_as_sent() {
        let cases = [
            (0, 0),
            (0, 1),
            (1, 999_999_999),
            (-1, 0),
            (-1, 1),
            (-2, 750_000_000),
            (-1_000_000_000, 999_999_999),
            (i64::MAX, 0),
            (i64::MIN, 0),
        ];
        for (secs, nanos) in cases {
            assert_eq!(sent_time(as_transport(secs, nanos)), (secs, nanos));
        }
    }

    #[test]
    fn times_to_the_kernel_count_nanoseconds_forward() {
        assert_eq!(time((-2, 750_000_000)), UNIX_EPOCH - Duration::from_millis(1250));
        assert_eq!(time((3, 5)), UNIX_EPOCH + Duration::new(3, 5));
        assert_eq!(
            time((i64::MIN, 0)).duration_since(UNIX_EPOCH).unwrap_err().duration().as_secs(),
            1 << 63
        );
    }

    #[test]
    fn device_numbers_survive_both_ways() {
        for (major, minor) in [(0, 0), (1, 3), (8, 17), (259, 0xfffff), (4095, 256)] {
            let number = libc::makedev(major, minor);
            let kernel = device(number);
            assert_eq!((kernel >> 8) & 0xfff, major);
            assert_eq!(device_number(kernel), number);
        }
    }
}
