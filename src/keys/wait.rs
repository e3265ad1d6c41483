//! Who may wait for a key, and who must come back.
//!
//! Threads that serve the kernel must not wait for a KMS, least of all while they hold a lock. They
//! run with [`without_waiting`]: a key that is not at hand ends the operation with
//! [`KeyError::WouldWait`], which says what is needed. Another thread then waits for it, holding
//! nothing, and runs the operation again with the key as its grant.

use super::KeyError;
use super::cache::CacheKey;
use super::keyring::{Keyring, NewDataKey};
use crate::crypto::DataKey;
use crate::format::header::KeySlot;
use std::cell::{Cell, RefCell};
use std::sync::Arc;

/// What an operation could not go on without.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Need {
    /// The data key of a file.
    Unwrapped(KeySlot),
    /// A data key for a new file.
    New,
}

/// A key that was waited for.
pub enum Grant {
    /// The data key of a file, by its name in the cache.
    Unwrapped(CacheKey, Arc<DataKey>),
    /// A data key for a new file.
    New(NewDataKey),
}

/// Times an operation may find out that it needs yet another key.
const ROUNDS: usize = 8;

thread_local! {
    static MAY_WAIT: Cell<bool> = const { Cell::new(true) };
    static GRANT: RefCell<Option<Grant>> = const { RefCell::new(None) };
}

/// Whether this thread may wait for a key now.
pub(super) fn may_wait() -> bool {
    MAY_WAIT.get()
}

/// Runs `act`, in which keys that are not at hand are refused with [`KeyError::WouldWait`].
pub fn without_waiting<T>(act: impl FnOnce() -> T) -> T {
    let before = MAY_WAIT.replace(false);
    let _restore = Restore(before);
    act()
}

struct Restore(bool);
impl Drop for Restore {
    fn drop(&mut self) {
        MAY_WAIT.set(self.0);
    }
}

/// The granted data key of this name.
pub(super) fn granted(name: &CacheKey) -> Option<Arc<DataKey>> {
    GRANT.with_borrow(|grant| match grant {
        Some(Grant::Unwrapped(granted, key)) if granted == name => Some(key.clone()),
        _ => None,
    })
}

/// The granted key for a new file; once.
pub(super) fn granted_new() -> Option<NewDataKey> {
    GRANT.with_borrow_mut(|grant| match grant.take() {
        Some(Grant::New(key)) => Some(key),
        other => {
            *grant = other;
            None
        }
    })
}

/// Runs `act` without waiting inside it, and between its attempts waits for what it needs.
pub fn waiting_between<T, E>(
    keyring: &Keyring,
    need_of: impl Fn(&E) -> Option<Need>,
    act: impl Fn() -> Result<T, E>,
) -> Result<T, E>
where
    E: From<KeyError>,
{
    let mut outcome = without_waiting(&act);
    for _ in 0..ROUNDS {
        let Err(error) = &outcome else { break };
        let Some(need) = need_of(error) else { break };
        let grant = keyring.grant(&need)?;
        let _given = Given::give(keyring, grant);
        outcome = without_waiting(&act);
    }
    outcome
}

/// A grant in force; what was not used goes back.
struct Given<'a>(&'a Keyring);

impl<'a> Given<'a> {
    fn give(keyring: &'a Keyring, grant: Grant) -> Self {
        GRANT.set(Some(grant));
        Self(keyring)
    }
}

impl Drop for Given<'_> {
    fn drop(&mut self) {
        if let Some(Grant::New(key)) = GRANT.take() {
            self.0.unused(key);
        }
    }
}

#[cfg(test)]
mod tests;
