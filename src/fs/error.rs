//! One error type for the tree and the only table that turns errors into errno.

/// What a file-system operation answers when it fails.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// An errno with its ordinary meaning.
    #[error("{}", std::io::Error::from_raw_os_error(*.0))]
    Errno(i32),
}

/// Result of a file-system operation.
pub type FsResult<T> = Result<T, FsError>;

impl FsError {
    /// The errno for the kernel.
    pub fn errno(&self) -> i32 {
        todo!()
    }
}
