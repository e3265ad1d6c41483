//! The backing file as the engine sees it; real files here, a simulated disk in tests.

use std::io;

/// One backing file. Methods may run on several threads at once.
pub trait Storage: Send + Sync {
    /// Reads up to `buf.len()` bytes at `offset`; short only at end of file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all buffers contiguously at `offset`.
    fn write_at(&self, bufs: &[io::IoSlice<'_>], offset: u64) -> io::Result<()>;
    /// Cuts or extends (with a hole).
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Frees the space of a range that no committed state refers to; best effort (unsupported is Ok).
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Reserves space up to `len` bytes in total without changing the length; unsupported is Ok, ENOSPC is not.
    fn reserve(&self, len: u64) -> io::Result<()>;
    /// Sets the modification time (seconds, nanoseconds).
    fn set_mtime(&self, time: (i64, u32)) -> io::Result<()>;
    /// Flushes data and size.
    fn sync(&self) -> io::Result<()>;
}

/// A real file.
pub struct FileStorage(pub std::fs::File);
