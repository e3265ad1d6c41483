//! The directory tree: inodes, handles, names, attributes, and the only errno table.
//!
//! Knows nothing of the kernel protocol: `fuse` converts, calls, replies. The operations are
//! methods of [`Volume`], one module per kind.

pub mod attr;
mod attrs;
pub mod backing;
pub mod census;
mod create;
pub mod custody;
mod dirs;
pub mod error;
mod files;
mod firm;
mod flush;
mod inode;
pub mod journal;
mod leftovers;
pub mod live;
mod lookahead;
pub mod names;
pub mod newest;
pub mod opening;
mod readdir;
mod remove;
pub mod rewrap;
pub mod survey;
pub mod verify;
pub mod volume;
mod xattr;

pub use crate::crypto::Gone;
pub use crate::keys::wait::without_waiting;
pub use crate::keys::{CallFacts, KeyFacts};
pub use crate::store::journal::JournalStatus;
pub use attr::{Attr, Caller, FileKind, Ino, SetAttr, SetTime, StatFs};
pub use custody::Custody;
pub use error::{FsError, FsResult};
pub use firm::{Flushes, Step, StepHook};
pub use volume::{Access, Atime, DirEntry, Fh, MountFlags, OpenError, Opened, Volume, WriteHow};
