//! The supply of data keys for new files: one key serves a number of files and a limited time, and
//! the next ones are made ahead as fast as they are used.
//!
//! Knows how many keys are wanted; who makes them, and how, is the caller's affair.

use super::KeyError;
use super::clock::Clock;
use super::keyring::NewDataKey;
use crate::format::DataKeyId;
use lru::LruCache;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::time::Duration;

/// A data key serves new files for at most this long.
pub(super) const LIFETIME: Duration = Duration::from_secs(3600);
/// Most keys made ahead.
const DEEPEST: usize = 64;
/// After so long without a shortage half as many are made ahead.
const CALM: Duration = Duration::from_secs(30);
/// Nothing is made ahead for so long after a failure.
const HOLD_OFF: Duration = Duration::from_secs(1);
/// How long a caller waits for a key somebody else is making before he makes his own.
const PATIENCE: Duration = Duration::from_secs(2);
/// Keys handed out of which is known when they were made.
const HANDED: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);

/// Hands out data keys. Thread-safe.
pub(super) struct Supply {
    files_per_key: u32,
    /// Keys made ahead at rest; 0 = made when needed.
    shallowest: usize,
    now: Clock,
    state: Mutex<State>,
    delivered: Condvar,
}

struct State {
    /// The first one serves now.
    ready: VecDeque<Ready>,
    /// Keys being made, and callers waiting for one of those.
    making: usize,
    waiting: usize,
    depth: usize,
    short_at: Duration,
    failed_at: Option<Duration>,
    /// Counts the purges: what was being made before one is dropped.
    purges: u64,
    /// When the keys that were handed out were made; those it does not know are not taken back.
    handed: LruCache<DataKeyId, Duration>,
}

struct Ready {
    key: NewDataKey,
    left: u32,
    born: Duration,
}

/// A key that somebody has undertaken to make.
#[derive(Clone, Copy)]
pub(super) struct Order {
    purges: u64,
}

/// Ends an order on every path, a panic of the maker included.
pub(super) struct Making<'a> {
    supply: &'a Supply,
    order: Option<Order>,
}

impl Making<'_> {
    /// With a key, or without one.
    pub(super) fn end(mut self, made: Option<NewDataKey>) {
        if let Some(order) = self.order.take() {
            self.supply.settle(&mut self.supply.state.lock(), order, made);
        }
    }
}

impl Making<'_> {
    /// With a key, of which one file is the caller's. In one step: in between somebody else could
    /// take it, and two files have a key that is for one.
    fn end_and_take(mut self, key: NewDataKey) -> NewDataKey {
        let mut state = self.supply.state.lock();
        if let Some(order) = self.order.take() {
            self.supply.settle(&mut state, order, Some(key.clone()));
        }
        // None only after a purge, which made this one nobody else's.
        self.supply.take_ready(&mut state).unwrap_or(key)
    }
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        if let Some(order) = self.order.take() {
            self.supply.settle(&mut self.supply.state.lock(), order, None);
        }
    }
}

/// The supply at a glance.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SupplyFacts {
    /// Keys at hand.
    pub ready: usize,
    /// Keys to be made ahead.
    pub depth: usize,
}

impl Supply {
    /// `ahead`: keys made ahead at rest.
    pub(super) fn new(files_per_key: u32, ahead: usize, now: Clock) -> Self {
        let state = State {
            ready: VecDeque::new(),
            making: 0,
            waiting: 0,
            depth: ahead,
            short_at: now(),
            failed_at: None,
            purges: 0,
            handed: LruCache::sparse(HANDED),
        };
        let (state, delivered) = (Mutex::new(state), Condvar::new());
        Self { files_per_key: files_per_key.max(1), shallowest: ahead, now, state, delivered }
    }

    /// The key for one more file, if one is at hand.
    pub(super) fn try_take(&self) -> Option<NewDataKey> {
        self.take_ready(&mut self.state.lock())
    }

    /// The key for one more file. Waits for those being made, or makes one.
    pub(super) fn take(
        &self,
        make: impl Fn() -> Result<NewDataKey, KeyError>,
    ) -> Result<NewDataKey, KeyError> {
        let mut state = self.state.lock();
        let mut patient = true;
        loop {
            if let Some(key) = self.take_ready(&mut state) {
                return Ok(key);
            }
            if patient && state.making > state.waiting {
                state.waiting += 1;
                patient = !self.delivered.wait_for(&mut state, PATIENCE).timed_out();
                state.waiting -= 1;
                // One that failed for somebody else is tried once by ourselves.
                patient &= state.failed_at.is_none();
                continue;
            }
            state.making += 1;
            let order = Order { purges: state.purges };
            drop(state);
            let making = Making { supply: self, order: Some(order) };
            let key = make()?;
            return Ok(making.end_and_take(key));
        }
    }

    /// A file that was to have this key did not come into being.
    pub(super) fn give_back(&self, key: NewDataKey) {
        let mut state = self.state.lock();
        let same = |ready: &&mut Ready| ready.key.slot.data_key_id == key.slot.data_key_id;
        if let Some(ready) = state.ready.iter_mut().find(same) {
            ready.left += 1;
        } else if let Some(born) = state.handed.get(&key.slot.data_key_id).copied() {
            state.ready.push_front(Ready { key, left: 1, born });
        }
    }

    /// Undertakes to make a key ahead, if one is wanted.
    pub(super) fn order(&self) -> Option<Order> {
        if self.shallowest == 0 {
            return None;
        }
        let mut state = self.state.lock();
        let now = (self.now)();
        if state.failed_at.is_some_and(|at| now.saturating_sub(at) < HOLD_OFF) {
            return None;
        }
        if now.saturating_sub(state.short_at) > CALM && state.depth > self.shallowest {
            state.depth = (state.depth / 2).max(self.shallowest);
            state.short_at = now;
        }
        let serving = state.ready.front().is_some_and(|first| first.left > self.files_per_key / 2);
        // The one that serves is not ahead, unless it has more than half of its files left.
        let ahead = state.ready.len() + state.making;
        let wanted = if serving && self.files_per_key > 1 { 1 } else { state.depth };
        if ahead >= wanted.max(usize::from(serving)) {
            return None;
        }
        state.making += 1;
        Some(Order { purges: state.purges })
    }

    /// Begins to carry out an order.
    pub(super) fn carry_out(&self, order: Order) -> Making<'_> {
        Making { supply: self, order: Some(order) }
    }

    /// Forgets all keys.
    pub(super) fn clear(&self) {
        let mut state = self.state.lock();
        state.purges += 1;
        state.ready.clear();
        state.handed.clear();
    }

    /// The supply at a glance.
    pub(super) fn facts(&self) -> SupplyFacts {
        let state = self.state.lock();
        SupplyFacts { ready: state.ready.len(), depth: state.depth }
    }

    fn settle(&self, state: &mut State, order: Order, made: Option<NewDataKey>) {
        let now = (self.now)();
        state.making -= 1;
        state.failed_at = if made.is_none() { Some(now) } else { None };
        if let Some(key) = made.filter(|_| order.purges == state.purges) {
            state.ready.push_back(Ready { key, left: self.files_per_key, born: now });
        }
        self.delivered.notify_all();
    }

    fn take_ready(&self, state: &mut State) -> Option<NewDataKey> {
        let now = (self.now)();
        while let Some(first) = state.ready.front_mut() {
            let young = now.saturating_sub(first.born) < LIFETIME;
            if first.left > 0 && young {
                first.left -= 1;
                let (key, born, used_up) = (first.key.clone(), first.born, first.left == 0);
                state.handed.put(key.slot.data_key_id, born);
                if used_up {
                    state.ready.pop_front();
                }
                return Some(key);
            }
            state.ready.pop_front();
        }
        if self.shallowest > 0 {
            state.depth = (state.depth * 2).clamp(self.shallowest, DEEPEST);
            state.short_at = now;
        }
        None
    }
}

#[cfg(test)]
mod tests;
