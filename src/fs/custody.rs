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
use crate::store::StoreError;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Between two questions whose answer was no: one no may be a mistake of the moment.
const SECOND_THOUGHT: Duration = Duration::from_millis(300);
/// How often is asked while nobody answers.
const PATIENCE: Duration = Duration::from_secs(5);

/// Open files that get their keys back at a time.
const WORKERS: usize = 16;
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
        let away = self.vault.keys().is_err() || self.any_locked();
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
            Ok(key) if away.is_some() || self.any_locked() => Custody::Granted(key),
            Ok(_) => Custody::Unchanged,
            Err(KeyError::Revoked(_) | KeyError::Denied(_)) if away == Some(Gone::Revoked) => {
                Custody::Unchanged
            }
            Err(error @ (KeyError::Revoked(_) | KeyError::Denied(_))) => {
                Custody::Lost(Gone::Revoked, error)
            }
            // Anything else is no answer of the key's owner: an outage, however it comes about.
            Err(error) => {
                let (_, too_long) = self.keyring.silence();
                match too_long && away.is_none() {
                    true => Custody::Lost(Gone::Unconfirmed, error),
                    false => Custody::Unchanged,
                }
            }
        }
    }

    /// Did an open file not get its key back?
    fn any_locked(&self) -> bool {
        self.open_inodes().iter().any(|inode| is_locked(inode))
    }

    /// From now on no file is opened or made; open ones go on until [`Self::lock_keys`].
    pub fn refuse_keys(&self, why: &KeyError) {
        self.keyring.close(why.clone());
    }

    /// Drops every key. Unwritten changes of open files stay in memory, encrypted.
    pub fn lock_keys(&self, why: Gone) {
        self.vault.lock(why);
        self.keyring.purge();
        let mending = self.mending.at_work();
        let open = self.open_inodes().into_iter().filter_map(|inode| inode.content());
        let busy: Vec<_> = open.chain(mending).filter(|content| !content.try_lock(why)).collect();
        // Somebody writes to these; a disk that hangs must not keep the keys of the others.
        for content in busy {
            let lock = move || content.lock(why);
            if let Err(error) = std::thread::Builder::new().name("kmsfs-lock".into()).spawn(lock) {
                log::error!("an open file keeps its key until it is idle: {error}");
            }
        }
    }

    /// What is opened while the keys go must not keep its own.
    pub(super) fn lock_if_gone(&self, inode: &Inode) {
        if let (Err(why), Some(content)) = (self.vault.keys(), inode.content()) {
            content.lock(why);
        }
    }

    /// Takes the keys back; open files get theirs again, many at a time. The first failure is
    /// returned; that file stays locked until the next look at the keys, or until it is opened anew.
    pub fn unlock_keys(&self, key: &VolumeKey) -> FsResult<()> {
        if self.vault.keys().is_err() {
            self.vault.unlock(VolumeKeys::derive(key, self.id()));
            self.keyring.open();
        }
        self.unlock_open()
    }

    /// Gives open files their keys back as far as they can be had.
    pub(super) fn unlock_open(&self) -> FsResult<()> {
        let locked: Vec<_> = self.open_inodes().into_iter().filter(|i| is_locked(i)).collect();
        let (next, first) = (AtomicUsize::new(0), Mutex::new(Ok(())));
        let work = || {
            while let Some(inode) = locked.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(error) = self.unlock_content(inode) {
                    let mut first = first.lock();
                    if first.is_ok() {
                        *first = Err(error);
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..WORKERS.min(locked.len()) {
                // One that cannot be had is one fewer.
                let _ = std::thread::Builder::new().spawn_scoped(scope, work);
            }
            work();
        });
        first.into_inner()
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

    /// Commits everything at the end. Returns why something was lost: nobody can encrypt it any more.
    /// What is committed must be put in its place all the same.
    pub(super) fn commit_as_far_as_keys_go(&self) -> FsResult<Option<FsError>> {
        if self.vault.keys().is_ok() {
            // A file that did not get its key back with the others; if not now, it is lost.
            let _ = self.unlock_open();
        }
        match self.commit_open() {
            Err(error @ (FsError::Gone(_) | FsError::Store(StoreError::Gone(_)))) => {
                Ok(Some(error))
            }
            other => other.map(|()| None),
        }
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
            log::error!(
                "{}: {error}",
                file.unwrap_or_else(|| "an operation that needs a key".into())
            );
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

    /// Files, directories and links the kernel may have something cached of.
    pub fn cached_inodes(&self) -> Vec<Ino> {
        let cached =
            |kind| matches!(kind, FileKind::Regular | FileKind::Directory | FileKind::Symlink);
        self.table.all().into_iter().filter(|inode| cached(inode.kind)).map(|i| i.ino).collect()
    }

    fn open_inodes(&self) -> Vec<Arc<Inode>> {
        self.open.lock().values().cloned().collect()
    }
}

fn is_locked(inode: &Inode) -> bool {
    inode.content().is_some_and(|content| content.is_locked())
}
