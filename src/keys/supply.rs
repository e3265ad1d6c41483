//! The supply of data keys for new files: one key serves a number of files and a limited time.

use super::KeyError;
use super::cache::Clock;
use super::keyring::NewDataKey;
use parking_lot::Mutex;
use std::time::Duration;

/// A data key serves new files for at most this long.
pub(super) const LIFETIME: Duration = Duration::from_secs(3600);

/// Hands out the current data key. Thread-safe; one caller at a time makes a new one, the others
/// wait.
pub(super) struct Supply {
    files_per_key: u32,
    now: Clock,
    current: Mutex<Option<Current>>,
}

struct Current {
    key: NewDataKey,
    left: u32,
    born: Duration,
}

impl Supply {
    pub(super) fn new(files_per_key: u32, now: Clock) -> Self {
        Self { files_per_key: files_per_key.max(1), now, current: Mutex::new(None) }
    }

    /// The key for one more file; `make` is called when the current one is used up or too old.
    pub(super) fn take(
        &self,
        make: impl FnOnce() -> Result<NewDataKey, KeyError>,
    ) -> Result<NewDataKey, KeyError> {
        let mut current = self.current.lock();
        let now = (self.now)();
        if let Some(current) = current.as_mut()
            && current.left > 0
            && now.saturating_sub(current.born) < LIFETIME
        {
            current.left -= 1;
            return Ok(current.key.clone());
        }
        *current = None;
        let key = make()?;
        *current = Some(Current { key: key.clone(), left: self.files_per_key - 1, born: now });
        Ok(key)
    }

    /// Forgets the current key.
    pub(super) fn clear(&self) {
        *self.current.lock() = None;
    }
}

#[cfg(test)]
mod tests;
