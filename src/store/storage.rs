//! The backing file as the engine sees it; real files here, a simulated disk in tests.
//!
//! Knows bytes and offsets only: nothing of chunks, keys or commits.

use rustix::fs::{FallocateFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;

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
    /// No bytes at all?
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Frees the space of a range that no committed state refers to; best effort (unsupported is
    /// Ok).
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Reserves space up to `len` bytes in total without changing the length; unsupported is Ok,
    /// ENOSPC is not.
    fn reserve(&self, len: u64) -> io::Result<()>;
    /// Like [`Self::reserve`] for the range of `len` bytes from `offset` on.
    fn reserve_range(&self, offset: u64, len: u64) -> io::Result<()> {
        self.reserve(offset.saturating_add(len))
    }
    /// Modification time (seconds, nanoseconds); `None` where there is nothing of the kind.
    fn mtime(&self) -> io::Result<Option<(i64, u32)>> {
        Ok(None)
    }
    /// Sets the modification time for as long as the content is not whole: no flush is due for it.
    fn set_mtime_meanwhile(&self, time: (i64, u32)) -> io::Result<()> {
        self.set_mtime(time)
    }
    /// Sets the modification time (seconds, nanoseconds).
    fn set_mtime(&self, time: (i64, u32)) -> io::Result<()>;
    /// Flushes data and size.
    fn sync(&self) -> io::Result<()>;
    /// Forgets what the system holds in memory of the file and need not write: after a failed flush
    /// that may be what never reached the disk. Best effort.
    fn drop_cache(&self) {}
    /// The journal's side of the file, if its commits go there.
    fn log(&self) -> Option<&super::FileLog> {
        None
    }
}

/// Buffers one `pwritev` takes (the system's IOV_MAX).
const MAX_IOV: usize = 1024;

/// A real file.
pub struct FileStorage(pub std::fs::File);

impl FileStorage {
    /// Modification time.
    pub fn mtime(&self) -> io::Result<(i64, u32)> {
        let st = rustix::fs::fstat(&self.0)?;
        Ok((st.st_mtime, st.st_mtime_nsec as u32))
    }

    fn fallocate(&self, flags: FallocateFlags, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        loop {
            match rustix::fs::fallocate(&self.0, flags, offset, len) {
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Writes what a short vectored write left over, and reports where that ended.
    fn finish(&self, bufs: &[IoSlice<'_>], mut written: usize, mut at: u64) -> io::Result<u64> {
        for buf in bufs {
            let done = written.min(buf.len());
            written -= done;
            at += done as u64;
            self.0.write_all_at(&buf[done..], at)?;
            at += (buf.len() - done) as u64;
        }
        Ok(at)
    }
}

impl Storage for FileStorage {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.0.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn write_at(&self, bufs: &[io::IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut at = offset;
        for part in bufs.chunks(MAX_IOV) {
            let written = match rustix::io::pwritev(&self.0, part, at) {
                Ok(n) => n,
                Err(Errno::INTR) => 0,
                Err(e) => return Err(e.into()),
            };
            at = self.finish(part, written, at)?;
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.fallocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        self.fallocate(FallocateFlags::KEEP_SIZE, 0, len)
    }

    fn reserve_range(&self, offset: u64, len: u64) -> io::Result<()> {
        self.fallocate(FallocateFlags::KEEP_SIZE, offset, len)
    }

    fn mtime(&self) -> io::Result<Option<(i64, u32)>> {
        FileStorage::mtime(self).map(Some)
    }

    fn set_mtime(&self, time: (i64, u32)) -> io::Result<()> {
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: time.0, tv_nsec: time.1.into() },
        };
        match rustix::fs::futimens(&self.0, &times) {
            // Somebody else's file that we may write: the write itself has moved its time.
            Ok(()) | Err(Errno::PERM) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn drop_cache(&self) {
        if let Err(error) = rustix::fs::fadvise(&self.0, 0, None, rustix::fs::Advice::DontNeed) {
            log::debug!("cannot drop what is cached of a file: {error}");
        }
    }
}
