//! The volume's keys over time: confirmed, taken away when their owner says no or nobody confirms
//! them, given back when he says yes again.
//!
//! While they are away every operation that needs one answers why; what needs none goes on, unmounting
//! included.

use super::attr::{FileKind, Ino};
use super::error::{FsError, FsResult};
use super::inode::Inode;
use super::volume::Volume;
use crate::crypto::{Gone, VolumeKey, VolumeKeys};
use crate::keys::wait::waiting_between;
use crate::keys::{KeyError, KeyFacts};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two questions whose answer was no: one no may be a mistake of the moment.
const SECOND_THOUGHT: Duration = Duration::from_millis(300);
/// How often is asked while nobody answers.
const PATIENCE: Duration = Duration::from_secs(5);

/// At most one complaint about keys in so long.
const QUIET: Duration = Duration::from_secs(1);

/// What a look at the keys found out.
pub enum Custody {
    /// Nothing to do.
    Unchanged,
    /// The keys must go: first [`Volume::refuse_keys`], then, when what is dirty has been written,
    /// [`Volume::lock_keys`].
    Lost(Gone, KeyError),
    /// They may come back: [`Volume::unlock_keys`].
    Granted(VolumeKey),
}

impl Volume {
    /// Can the owner of a KMS key switch this volume off?
    pub fn is_watched(&self) -> bool {
        self.keyring.is_watched()
    }

    /// Keys and KMS at a glance.
    pub fn key_facts(&self) -> KeyFacts {
        self.keyring.facts()
    }

    /// Waits for the next time to look: `interval` after the KMS last answered, or until it has said
    /// no to somebody.
    pub fn wait_to_look(&self, interval: Duration) {
        let (silence, _) = self.keyring.silence();
        let away = self.vault.keys().is_err();
        let due = match away || silence >= interval {
            true => interval.min(PATIENCE),
            false => interval - silence,
        };
        self.keyring.wait_for_alarm(due);
    }

    /// Ends [`Self::wait_to_look`].
    pub fn stop_waiting_to_look(&self) {
        self.keyring.wake();
    }

    /// Asks the KMS for the volume key and says what follows.
    pub fn look_at_keys(&self) -> Custody {
        let mut answer = self.keyring.probe();
        if let Err(KeyError::Denied(_)) = answer {
            std::thread::sleep(SECOND_THOUGHT);
            answer = self.keyring.probe();
        }
        let away = self.vault.keys().err();
        match answer {
            Ok(key) if away.is_some() => Custody::Granted(key),
            Ok(_) => Custody::Unchanged,
            Err(error) if error.falls_through() => {
                let (_, too_long) = self.keyring.silence();
                match too_long && away.is_none() {
                    true => Custody::Lost(Gone::Unconfirmed, error),
                    false => Custody::Unchanged,
                }
            }
            Err(_) if away == Some(Gone::Revoked) => Custody::Unchanged,
            Err(error) => Custody::Lost(Gone::Revoked, error),
        }
    }

    /// From now on no file is opened or made; open ones go on until [`Self::lock_keys`].
    pub fn refuse_keys(&self, why: &KeyError) {
        self.keyring.close(why.clone());
    }

    /// Drops every key. Unwritten changes of open files stay in memory, encrypted.
    pub fn lock_keys(&self, why: Gone) {
        self.vault.lock(why);
        for inode in self.open_inodes() {
            self.lock_if_gone(&inode);
        }
        self.keyring.purge();
    }

    /// What is opened while the keys go must not keep its own.
    pub(super) fn lock_if_gone(&self, inode: &Inode) {
        if let (Err(why), Some(content)) = (self.vault.keys(), inode.content()) {
            content.lock(why);
        }
    }

    /// Takes the keys back; open files get theirs again. The first failure is returned, and that file
    /// stays locked until it is opened anew.
    pub fn unlock_keys(&self, key: &VolumeKey) -> FsResult<()> {
        self.vault.unlock(VolumeKeys::derive(key, self.id()));
        self.keyring.open();
        let mut first = Ok(());
        for inode in self.open_inodes() {
            if let Err(error) = self.unlock_content(&inode) {
                first = first.and(Err(self.note(&inode, error)));
            }
        }
        first
    }

    /// Gives the content of an open file its keys back, if they are gone.
    pub(super) fn unlock_content(&self, inode: &Inode) -> FsResult<()> {
        let Some(content) = inode.content().filter(|content| content.is_locked()) else {
            return Ok(());
        };
        self.keys()?;
        let (current, next) = content.slots();
        let key = self.keyring.data_key(&current)?;
        let next = next.map(|slot| self.keyring.data_key(&slot)).transpose()?;
        Ok(content.unlock(key, next)?)
    }

    /// Runs an operation that found out that it has to wait for a key: waits, and runs it again.
    /// `opens` is the file whose key that is, for the log.
    pub fn waiting_for_keys<T>(
        &self,
        opens: Option<Ino>,
        act: impl Fn() -> FsResult<T>,
    ) -> FsResult<T> {
        let outcome = waiting_between(&self.keyring, FsError::need, act);
        if let Err(FsError::Key(error)) = &outcome
            && self.is_news()
        {
            let file = opens.and_then(|ino| self.table.get(ino)).map(|i| self.plain_path(&i));
            log::error!("{}: {error}", file.unwrap_or_else(|| "a new file".into()));
        }
        outcome
    }

    /// Whether the last complaint about keys is long enough ago: in an outage every program meets it.
    fn is_news(&self) -> bool {
        let mut last = self.key_complaint.lock();
        let news = last.is_none_or(|at| at.elapsed() >= QUIET);
        if news {
            *last = Some(Instant::now());
        }
        news
    }

    /// Files and directories the kernel may have something cached of.
    pub fn cached_inodes(&self) -> Vec<Ino> {
        let cached = |kind| matches!(kind, FileKind::Regular | FileKind::Directory);
        self.table.all().into_iter().filter(|inode| cached(inode.kind)).map(|i| i.ino).collect()
    }

    fn open_inodes(&self) -> Vec<Arc<Inode>> {
        self.open.lock().values().cloned().collect()
    }
}
