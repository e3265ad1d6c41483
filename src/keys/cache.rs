//! Data-key cache: LRU by wrapped bytes, single flight, and a life that only the provider renews.
//!
//! The name of an entry is a fingerprint of the wrapped copies and their context, so an entry can
//! never answer for other bytes than those that were unwrapped. Must not know what unwraps.

use super::clock::Clock;
use super::{KeyError, WrapContext};
use crate::crypto::{DataKey, fingerprint};
use crate::format::header::Recipient;
use lru::LruCache;
use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Fingerprint of wrapped copies and context.
pub type CacheKey = [u8; 32];

/// The fingerprint of these copies, in this order, under their context.
pub(super) fn name_of<'a>(
    context: &WrapContext,
    copies: impl Iterator<Item = &'a Recipient> + Clone,
) -> CacheKey {
    let context = context.bytes();
    let heads: Vec<[u8; 5]> = copies
        .clone()
        .map(|copy| {
            let [a, b, c, d] = copy.epoch.to_le_bytes();
            [copy.kind as u8, a, b, c, d]
        })
        .collect();
    let mut parts: Vec<&[u8]> = vec![&context];
    for (copy, head) in copies.zip(&heads) {
        parts.extend([&head[..], &copy.key_ref, &copy.wrapped]);
    }
    fingerprint(&parts)
}

type Outcome = Result<Arc<DataKey>, KeyError>;

/// Unwrapped data keys. Thread-safe.
pub struct Cache {
    state: Mutex<State>,
    ttl: Option<Duration>,
    now: Clock,
    hits: AtomicU64,
    misses: AtomicU64,
}

struct State {
    keys: LruCache<CacheKey, Entry>,
    flights: HashMap<CacheKey, Arc<Flight>>,
    /// Counts the purges: what was asked for before one does not land after it.
    purges: u64,
}

struct Entry {
    key: Arc<DataKey>,
    /// When the provider last vouched for it.
    confirmed: Duration,
}

/// An unwrap under way, waited for by everybody else who wants the same key.
#[derive(Default)]
struct Flight {
    outcome: Mutex<Option<Outcome>>,
    landed: Condvar,
}

/// How full and how useful the cache is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CacheFacts {
    /// Keys held.
    pub keys: usize,
    /// Keys asked for and found.
    pub hits: u64,
    /// Keys that had to be unwrapped.
    pub misses: u64,
    /// Time since the provider vouched for the key it vouched for longest ago.
    pub oldest: Option<Duration>,
}

impl Cache {
    /// Holds at most `capacity` keys; after `ttl` from its unwrap (`None`: never) the provider is
    /// asked again.
    pub fn new(capacity: NonZeroUsize, ttl: Option<Duration>, now: Clock) -> Self {
        let keys = LruCache::sparse(capacity);
        let state = State { keys, flights: HashMap::new(), purges: 0 };
        let (hits, misses) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { state: Mutex::new(state), ttl, now, hits, misses }
    }

    /// The cached key, if its time is not over.
    pub fn get(&self, name: &CacheKey) -> Option<Arc<DataKey>> {
        let found = self.fresh(&mut self.state.lock(), name);
        if found.is_some() {
            self.hits.fetch_add(1, Ordering::Relaxed);
        }
        found
    }

    /// Is the key here, or on its way? Not counted as a use.
    pub fn expects(&self, name: &CacheKey) -> bool {
        let state = self.state.lock();
        state.flights.contains_key(name)
            || state.keys.peek(name).is_some_and(|entry| self.is_fresh(entry))
    }

    /// The cached key, or what `unwrap` says; concurrent callers of one key share a single call. A key
    /// whose time is over is asked for again; if nobody answers and `may_be_stale`, it serves on.
    /// Errors reach all callers and are not remembered. What comes of it is kept unless the cache was
    /// purged since [`Self::purges`] was asked.
    pub fn get_or_unwrap(
        &self,
        (name, purges): (CacheKey, u64),
        may_be_stale: impl Fn() -> bool,
        unwrap: impl FnOnce() -> Outcome,
    ) -> Outcome {
        let flight = {
            let mut state = self.state.lock();
            if let Some(key) = self.fresh(&mut state, &name) {
                self.hits.fetch_add(1, Ordering::Relaxed);
                return Ok(key);
            }
            if let Some(flight) = state.flights.get(&name).cloned() {
                drop(state);
                return flight.wait();
            }
            let flight = Arc::<Flight>::default();
            state.flights.insert(name, flight.clone());
            flight
        };
        self.misses.fetch_add(1, Ordering::Relaxed);
        let mut landing = Landing { cache: self, name, flight, purges, outcome: None };
        let asked = (self.now)();
        let mut outcome = unwrap();
        let mut confirmed = Some(asked);
        if let Err(error) = &outcome
            && error.falls_through()
            && may_be_stale()
            && let Some(key) = self.stale(&name)
        {
            (outcome, confirmed) = (Ok(key), None);
        }
        landing.outcome = Some((outcome.clone(), confirmed));
        outcome
    }

    /// Puts a key that is known without asking (a new one), unless the cache was purged since.
    pub fn insert(&self, name: CacheKey, key: Arc<DataKey>, purges: u64) {
        let confirmed = (self.now)();
        let mut state = self.state.lock();
        if state.purges == purges {
            state.keys.put(name, Entry { key, confirmed });
        }
    }

    /// How often the cache was purged.
    pub fn purges(&self) -> u64 {
        self.state.lock().purges
    }

    /// Forgets every key; what is being unwrapped reaches those who wait for it, and nobody else.
    pub fn clear(&self) {
        let mut state = self.state.lock();
        state.purges += 1;
        state.keys.clear();
    }

    /// How full and how useful it is.
    pub fn facts(&self) -> CacheFacts {
        let state = self.state.lock();
        let oldest = state.keys.iter().map(|(_, entry)| entry.confirmed).min();
        CacheFacts {
            keys: state.keys.len(),
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            oldest: oldest.map(|at| (self.now)().saturating_sub(at)),
        }
    }

    fn is_fresh(&self, entry: &Entry) -> bool {
        let age = (self.now)().saturating_sub(entry.confirmed);
        self.ttl.is_none_or(|ttl| age < ttl)
    }

    fn fresh(&self, state: &mut State, name: &CacheKey) -> Option<Arc<DataKey>> {
        let entry = state.keys.get(name)?;
        self.is_fresh(entry).then(|| entry.key.clone())
    }

    fn stale(&self, name: &CacheKey) -> Option<Arc<DataKey>> {
        self.state.lock().keys.get(name).map(|entry| entry.key.clone())
    }
}

impl Flight {
    fn wait(&self) -> Outcome {
        let mut outcome = self.outcome.lock();
        loop {
            match &*outcome {
                Some(outcome) => return outcome.clone(),
                None => self.landed.wait(&mut outcome),
            }
        }
    }
}

/// Ends a flight on every path, a panic in the provider included, so that nobody waits for ever.
struct Landing<'a> {
    cache: &'a Cache,
    name: CacheKey,
    flight: Arc<Flight>,
    purges: u64,
    /// And when the provider vouched for it, if it did.
    outcome: Option<(Outcome, Option<Duration>)>,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        let failed =
            || KeyError::Unavailable("unwrapping the data key broke off; try again".into());
        let (outcome, confirmed) = self.outcome.take().unwrap_or_else(|| (Err(failed()), None));
        let mut state = self.cache.state.lock();
        state.flights.remove(&self.name);
        match (&outcome, confirmed) {
            (Ok(key), Some(confirmed)) if state.purges == self.purges => {
                state.keys.put(self.name, Entry { key: key.clone(), confirmed });
            }
            // Said no: not even an outage later brings it back.
            (Err(error), _) if !error.falls_through() => {
                state.keys.pop(&self.name);
            }
            _ => {}
        }
        drop(state);
        *self.flight.outcome.lock() = Some(outcome);
        self.flight.landed.notify_all();
    }
}

#[cfg(test)]
mod tests;
