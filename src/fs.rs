//! The directory tree: inodes, handles, names, attributes, and the only errno table.
//!
//! Knows nothing of the kernel protocol: `fuse` converts, calls, replies.

pub mod attr;
pub mod error;
pub mod rewrap;
pub mod survey;
pub mod verify;
pub mod volume;

pub use attr::{Attr, Caller, FileKind, Ino, SetAttr, SetTime, StatFs};
pub use error::{FsError, FsResult};
pub use volume::{Access, DirEntry, Fh, MountFlags, Opened, Volume};
