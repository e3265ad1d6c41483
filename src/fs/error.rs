//! One error type for the tree and the only table that turns errors into errno.

use rustix::io::Errno;
use thiserror::Error;

use crate::crypto::Gone;
use crate::format::FormatError;
use crate::keys::KeyError;
use crate::keys::wait::Need;
use crate::store::StoreError;

/// What a file-system operation answers when it fails.
#[derive(Debug, Error)]
pub enum FsError {
    /// An errno with its ordinary meaning.
    #[error("{}", std::io::Error::from_raw_os_error(*.0))]
    Errno(i32),
    /// The content of one file.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The volume's keys have been taken away.
    #[error(transparent)]
    Gone(#[from] Gone),
    /// A key could not be had.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A directory, name, symlink or attribute does not authenticate or is incomplete.
    #[error("{0}")]
    Damaged(String),
}

/// Result of a file-system operation.
pub type FsResult<T> = Result<T, FsError>;

impl From<Errno> for FsError {
    fn from(errno: Errno) -> Self {
        FsError::Errno(errno.raw_os_error())
    }
}

impl From<std::io::Error> for FsError {
    fn from(error: std::io::Error) -> Self {
        FsError::Store(StoreError::Io(error))
    }
}

impl FsError {
    /// The errno for the kernel.
    pub fn errno(&self) -> i32 {
        match self {
            FsError::Errno(errno) => *errno,
            FsError::Store(error) => store_errno(error),
            FsError::Key(error) => key_errno(error),
            FsError::Gone(gone) => gone_errno(*gone),
            FsError::Damaged(_) => libc::EIO,
        }
    }

    /// The key that has to be waited for before the operation can be run again.
    pub fn need(&self) -> Option<Need> {
        match self {
            FsError::Key(KeyError::WouldWait(need)) => Some((**need).clone()),
            _ => None,
        }
    }

    /// Worth a log line of its own: damage and key trouble, not ordinary errnos.
    pub fn is_noteworthy(&self) -> bool {
        match self {
            FsError::Errno(_) => false,
            FsError::Store(StoreError::TooLarge | StoreError::ReadOnly) => false,
            // Said once, when it happened.
            FsError::Gone(_) | FsError::Store(StoreError::Gone(_)) => false,
            FsError::Key(KeyError::WouldWait(_)) => false,
            FsError::Store(_) | FsError::Key(_) | FsError::Damaged(_) => true,
        }
    }
}

fn store_errno(error: &StoreError) -> i32 {
    match error {
        StoreError::Io(io) => io.raw_os_error().unwrap_or(libc::EIO),
        StoreError::Header(format) => format_errno(format),
        StoreError::Commitment
        | StoreError::Chunk(_)
        | StoreError::Tree { .. }
        | StoreError::Root
        | StoreError::Short { .. } => libc::EIO,
        StoreError::Gone(gone) => gone_errno(*gone),
        StoreError::TooLarge => libc::EFBIG,
        StoreError::ReadOnly => libc::EROFS,
    }
}

fn format_errno(error: &FormatError) -> i32 {
    match error {
        FormatError::Version(_) | FormatError::Suite(_) | FormatError::Feature(_) => {
            libc::EOPNOTSUPP
        }
        FormatError::Length(_)
        | FormatError::Magic
        | FormatError::Field(_)
        | FormatError::Mac
        | FormatError::OtherVolume => libc::EIO,
        FormatError::TooLarge => libc::EFBIG,
    }
}

fn gone_errno(gone: Gone) -> i32 {
    match gone {
        Gone::Revoked => libc::EKEYREVOKED,
        Gone::Unconfirmed => libc::ENOKEY,
    }
}

fn key_errno(error: &KeyError) -> i32 {
    match error {
        // Never leaves the daemon: whoever gets it waits and asks again.
        KeyError::WouldWait(_) => libc::EAGAIN,
        KeyError::Revoked(_) | KeyError::Denied(_) => libc::EKEYREVOKED,
        // ENOKEY is what fscrypt answers for a key that is not there; EAGAIN would be read as
        // "non-blocking, try again" by programs.
        KeyError::Unavailable(_)
        | KeyError::Throttled(_)
        | KeyError::NotOurs(_)
        | KeyError::Misconfigured(_)
        | KeyError::WrongKey(_) => libc::ENOKEY,
        KeyError::Tampered(_) => libc::EIO,
    }
}
