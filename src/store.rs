//! One encrypted file over [`Storage`]: reading, writing, truncating, committing. No provider, no directory, no FUSE.

pub mod content;
pub mod storage;

use thiserror::Error;

pub use content::Content;
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
