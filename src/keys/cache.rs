//! Data-key cache: LRU by wrapped bytes, single flight.
//!
//! The name of an entry is a fingerprint of the wrapped copies and their context, so an entry can
//! never answer for other bytes than those that were unwrapped. Must not know what unwraps.

use super::KeyError;
use crate::crypto::DataKey;
use lru::LruCache;
use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

/// Fingerprint of wrapped copies and context.
pub type CacheKey = [u8; 32];

/// Time since boot, suspension included; tests bring their own.
pub type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// CLOCK_BOOTTIME.
pub fn boot_clock() -> Clock {
    Arc::new(|| {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
    })
}

type Outcome = Result<Arc<DataKey>, KeyError>;

/// Unwrapped data keys. Thread-safe.
pub struct Cache {
    state: Mutex<State>,
    ttl: Option<Duration>,
    now: Clock,
}

struct State {
    keys: LruCache<CacheKey, Entry>,
    flights: HashMap<CacheKey, Arc<Flight>>,
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

impl Cache {
    /// Holds at most `capacity` keys, each for at most `ttl` after its unwrap (`None`: no limit).
    pub fn new(capacity: NonZeroUsize, ttl: Option<Duration>, now: Clock) -> Self {
        let state = State { keys: LruCache::sparse(capacity), flights: HashMap::new() };
        Self { state: Mutex::new(state), ttl, now }
    }

    /// The cached key, or what `unwrap` says; concurrent callers of one key share a single call.
    /// Errors reach all of them and are not remembered.
    pub fn get_or_unwrap(&self, name: CacheKey, unwrap: impl FnOnce() -> Outcome) -> Outcome {
        let flight = {
            let mut state = self.state.lock();
            if let Some(key) = self.fresh(&mut state, &name) {
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
        let mut landing = Landing { cache: self, name, flight, outcome: None };
        let asked = (self.now)();
        let outcome = unwrap();
        landing.outcome = Some((outcome.clone(), asked));
        outcome
    }

    /// Puts a key that is known without asking (a new one).
    pub fn insert(&self, name: CacheKey, key: Arc<DataKey>) {
        let confirmed = (self.now)();
        self.state.lock().keys.put(name, Entry { key, confirmed });
    }

    /// Forgets every key. Unwraps under way still land.
    pub fn clear(&self) {
        self.state.lock().keys.clear();
    }

    fn fresh(&self, state: &mut State, name: &CacheKey) -> Option<Arc<DataKey>> {
        let entry = state.keys.get(name)?;
        let age = (self.now)().saturating_sub(entry.confirmed);
        if self.ttl.is_some_and(|ttl| age >= ttl) {
            state.keys.pop(name);
            return None;
        }
        Some(entry.key.clone())
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
    outcome: Option<(Outcome, Duration)>,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        let failed =
            || KeyError::Unavailable("unwrapping the data key broke off; try again".into());
        let (outcome, confirmed) =
            self.outcome.take().unwrap_or_else(|| (Err(failed()), Duration::ZERO));
        let mut state = self.cache.state.lock();
        state.flights.remove(&self.name);
        if let Ok(key) = &outcome {
            state.keys.put(self.name, Entry { key: key.clone(), confirmed });
        }
        drop(state);
        *self.flight.outcome.lock() = Some(outcome);
        self.flight.landed.notify_all();
    }
}

#[cfg(test)]
mod tests;
