//! Attributes as the file system answers them.

use rustix::fs::Stat;

/// Inode number as the kernel knows it; the root is 1.
pub type Ino = u64;

/// Inode number of the root directory.
pub const ROOT: Ino = 1;

/// Kind of an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileKind {
    /// Regular file.
    Regular,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Socket.
    Socket,
    /// Character device.
    Char,
    /// Block device.
    Block,
}

impl FileKind {
    /// From the type bits of `st_mode`.
    pub fn from_mode(mode: u32) -> Option<FileKind> {
        Some(match mode & libc::S_IFMT {
            libc::S_IFREG => FileKind::Regular,
            libc::S_IFDIR => FileKind::Directory,
            libc::S_IFLNK => FileKind::Symlink,
            libc::S_IFIFO => FileKind::Fifo,
            libc::S_IFSOCK => FileKind::Socket,
            libc::S_IFCHR => FileKind::Char,
            libc::S_IFBLK => FileKind::Block,
            _ => return None,
        })
    }
}

/// Attributes of an object; times are seconds and nanoseconds since 1970.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub struct Attr {
    pub ino: Ino,
    /// Changes when the kernel must forget what it cached of this inode number.
    pub generation: u64,
    pub kind: FileKind,
    /// Permission bits including set-id and sticky (0o7777).
    pub perm: u16,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    /// Device number of device nodes.
    pub rdev: u64,
    /// Plaintext bytes.
    pub size: u64,
    /// 512-byte units in the backing.
    pub blocks: u64,
    pub atime: (i64, u32),
    pub mtime: (i64, u32),
    pub ctime: (i64, u32),
}

impl Attr {
    /// Everything but the plaintext size, which the caller sets for regular files and symlinks.
    pub fn from_stat(st: &Stat, ino: Ino, kind: FileKind) -> Attr {
        Attr {
            ino,
            generation: 0,
            kind,
            perm: (st.st_mode & 0o7777) as u16,
            nlink: st.st_nlink as u32,
            uid: st.st_uid,
            gid: st.st_gid,
            rdev: st.st_rdev,
            size: st.st_size as u64,
            blocks: st.st_blocks as u64,
            atime: (st.st_atime, st.st_atime_nsec as u32),
            mtime: (st.st_mtime, st.st_mtime_nsec as u32),
            ctime: (st.st_ctime, st.st_ctime_nsec as u32),
        }
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
}

impl Caller {
    /// Ourselves.
    pub fn this_process() -> Caller {
        Caller {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            pid: std::process::id(),
        }
    }
}

/// A time to set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetTime {
    /// The present.
    Now,
    /// Seconds and nanoseconds.
    At((i64, u32)),
}

/// Attribute changes; `None` leaves a field alone.
#[derive(Clone, Copy, Default, Debug)]
#[allow(missing_docs)]
pub struct SetAttr {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
}

/// statfs answer, blocks of 4096 bytes.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct StatFs {
    pub blocks: u64,
    pub bfree: u64,
    pub bavail: u64,
    pub files: u64,
    pub ffree: u64,
    /// Longest plaintext name, bytes.
    pub namelen: u32,
}
