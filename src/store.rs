//! One encrypted file over [`Storage`]: reading, writing, truncating, committing.
//!
//! | module | task |
//! |---|---|
//! | [`storage`] | the backing file as a trait, and real files |
//! | [`content`] | the public face: one lock around the state, shared by all handles |
//! | `state` | what is known of the file: header, size, keys, what is committed |
//! | `segment` | tags and keys of one segment; loading and evicting them |
//! | `tree` | the keyed hash tree between tag blocks and root hash |
//! | `read`, `write`, `resize` | the operations |
//! | `commit` | what a commit consists of, and how it reaches the backing file in place |
//! | [`log`] | one file whose commits are journal records |
//! | [`journal`] | the records of all files, flushed together; checkpoints |
//! | `pending` | what the records of one file amount to |
//! | [`recover`] | reading a journal after an unclean stop |
//! | [`mutation`] | mistakes on purpose, for the proof |
//! | `scan` | seeking for data and holes, verification |
//! | [`rewrap`] | new recipients in a header, content untouched |
//!
//! Invariant of the whole layer: a block that a committed state refers to, be it the last one or one
//! that a crash may bring back, is overwritten by a commit or a checkpoint only. It must not know providers, directories or FUSE.

mod commit;
pub mod content;
pub mod journal;
pub mod log;
pub mod mutation;
mod pending;
mod ranges;
mod read;
pub mod recover;
mod resize;
pub mod rewrap;
mod scan;
mod segment;
mod state;
pub mod storage;
mod tree;
mod write;

use thiserror::Error;

pub use content::Content;
pub use journal::{Journal, Medium};
pub use log::{FileLog, Whereabouts};
pub use rewrap::rewrap_header;
pub use storage::{FileStorage, Storage};

/// What went wrong with one encrypted file.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The backing file system failed.
    #[error("backing file: {0}")]
    Io(#[from] std::io::Error),
    /// The header is damaged, forged or foreign.
    #[error("header: {0}")]
    Header(#[from] crate::format::FormatError),
    /// The keys have been taken away.
    #[error(transparent)]
    Gone(#[from] crate::crypto::Gone),
    /// The header's key commitment does not match the unwrapped key.
    #[error("the unwrapped key is not the one the header commits to")]
    Commitment,
    /// A chunk does not authenticate.
    #[error("chunk {0} does not authenticate")]
    Chunk(u64),
    /// A tag block or tree node does not match its parent.
    #[error("tree block level {level} index {index} does not authenticate")]
    Tree {
        /// Level.
        level: u32,
        /// Index.
        index: u64,
    },
    /// The root hash does not match.
    #[error("root hash does not match")]
    Root,
    /// The backing file is shorter than the authenticated size says.
    #[error("backing file is {have} bytes, its header says {want}")]
    Short {
        /// Found.
        have: u64,
        /// Needed.
        want: u64,
    },
    /// Beyond the largest file size.
    #[error("file too large")]
    TooLarge,
    /// Opened read-only.
    #[error("opened read-only")]
    ReadOnly,
}
