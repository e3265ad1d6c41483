//! What an unclean stop leaves behind the ends of files: a backing file may be longer than its
//! committed state, because growth reaches the disk before the commit that needs it. Nobody is shown
//! wrong content by that, but until its header is read the plain size follows from the backing
//! length, and would be wrong.
//!
//! So while the marker of an unclean stop is there, sizes are checked against headers as files are
//! looked up, and a walk in the background cuts what is too long. The marker goes at the end of a
//! session in which the walk has come through. Needs no data key.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use rustix::fs::Stat;

use super::backing;
use super::error::FsResult;
use super::journal::walk_regular;
use super::volume::{SESSION_NAME, Volume};
use crate::store::recover::is_unwritten;
use crate::store::{Content, FileStorage, Storage, StoreError};

/// Clocks may have been put back a little since the marker was made, seconds.
const SLACK: i64 = 3600;

impl Volume {
    /// Cuts what is too long, as far as it changed since the last clean point and is not open.
    /// Without an unclean stop there is nothing to do. Takes long in a large tree; programs may use
    /// the volume meanwhile.
    pub fn cut_leftovers(&self) {
        if !self.unclean || !self.writable() || self.sizes_fit.load(Ordering::Acquire) {
            return;
        }
        let since = backing::stat_at(&self.root, SESSION_NAME.as_bytes());
        let since = since.map_or(i64::MIN, |st| st.st_mtime.saturating_sub(SLACK));
        let mut all_fit = true;
        let walked = walk_regular(&self.root, &mut |dir, entry, st, path| {
            if st.st_ctime < since || st.st_size == 0 {
                return;
            }
            match self.cut_leftover(dir, entry, st) {
                Ok(fits) => all_fit &= fits,
                Err(error) => {
                    log::debug!("{}: its length was not checked: {error}", path.display());
                    all_fit = false;
                }
            }
        });
        match walked {
            Ok(()) => self.sizes_fit.store(all_fit, Ordering::Release),
            Err(error) => log::warn!("lengths were not checked: {error}"),
        }
    }

    /// Whether the backing file has the length of its committed state now. An open one is left to
    /// the end of the session.
    fn cut_leftover(&self, dir: &OwnedFd, entry: &[u8], st: &Stat) -> FsResult<bool> {
        // Nobody opens a file while its length changes here.
        let _alone = self.opening_files.write();
        if self.open.lock().contains_key(&self.show_ino(st.st_ino)) {
            return Ok(false);
        }
        let storage = FileStorage(backing::open_file(dir, entry, false)?);
        let header = match Content::read_header(&self.ctx, &storage) {
            Ok(header) => header,
            // Growth of a file that was never committed.
            Err(StoreError::Header(_)) if is_unwritten(&storage)? => {
                FileStorage(backing::open_file(dir, entry, true)?).set_len(0)?;
                return Ok(true);
            }
            // Damage is for whoever reads it; no length would be right.
            Err(StoreError::Header(_)) => return Ok(true),
            Err(error) => return Err(error.into()),
        };
        let len = self.ctx.layout.backing_len(header.size);
        if storage.len()? <= len {
            return Ok(true);
        }
        let mtime = storage.mtime()?;
        let storage = FileStorage(backing::open_file(dir, entry, true)?);
        storage.set_len(len)?;
        storage.set_mtime(mtime)?;
        Ok(true)
    }

    /// May the marker of an unclean stop go? Tries again what was open before.
    pub(super) fn lengths_are_right(&self) -> bool {
        self.cut_leftovers();
        !self.unclean || self.sizes_fit.load(Ordering::Acquire)
    }
}
