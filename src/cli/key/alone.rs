//! One rotation of a volume at a time, by whomever and mounted or not.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::cli::exit::{IN_USE, failure};
use crate::format::descriptor::DESCRIPTOR_NAME;
use crate::fs::volume::lock_holder;

/// Holds a lock on the descriptor file: that on the backing directory is the daemon's while the volume is
/// mounted. It ends with the process, and nothing else takes it.
pub struct Alone {
    path: PathBuf,
    file: Option<File>,
}

impl Alone {
    /// On the volume in a backing directory. What cannot be opened is no volume, or says so later.
    pub fn on(dir: &Path) -> anyhow::Result<Self> {
        let mut alone = Self { path: dir.join(DESCRIPTOR_NAME), file: None };
        alone.stay()?;
        Ok(alone)
    }

    /// Once the descriptor file may be another one, which it is after each change.
    pub fn stay(&mut self) -> anyhow::Result<()> {
        while let Ok(file) = File::open(&self.path) {
            if !self.is_held(&file)? {
                self.lock(&file)?;
                self.file = Some(file);
                continue;
            }
            return Ok(());
        }
        Ok(())
    }

    /// Is it this very file that is locked?
    fn is_held(&self, file: &File) -> anyhow::Result<bool> {
        let Some(held) = &self.file else { return Ok(false) };
        let (held, present) = (held.metadata()?, file.metadata()?);
        Ok((held.dev(), held.ino()) == (present.dev(), present.ino()))
    }

    fn lock(&self, file: &File) -> anyhow::Result<()> {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(()),
            Err(Errno::WOULDBLOCK) => {
                let holder = lock_holder(file).map(|pid| format!(" (process {pid})"));
                let dir = self.path.parent().unwrap_or(&self.path).display();
                let text = "another `kmsfsctl key rotate` of this volume is at work";
                let cure = "wait for it, and run this again";
                let holder = holder.unwrap_or_default();
                Err(failure(IN_USE, format!("{dir}: {text}{holder}; {cure}")))
            }
            // A file system without locks: as it would be without this one.
            Err(errno) => {
                log::warn!("{} cannot be locked: {errno}", self.path.display());
                Ok(())
            }
        }
    }
}
