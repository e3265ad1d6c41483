//! A token bucket that keeps this host under its share of a key store's quota.
//!
//! Callers reserve in the order they come: the bucket may owe tokens, and whoever reserved them
//! waits until they are there. Nobody waits past his deadline: he takes nothing then.

use crate::keys::clock::Clock;
use parking_lot::Mutex;
use std::time::Duration;

/// Seconds of refill the bucket holds, and the least units: the dearest call must be possible at once.
const BURST: f64 = 0.25;
const BURST_MIN: f64 = 3.0;

/// Units per second, and those at hand.
pub struct Rate {
    per_second: f64,
    burst: f64,
    now: Clock,
    state: Mutex<State>,
}

struct State {
    tokens: f64,
    at: Duration,
}

impl Rate {
    /// A full bucket.
    pub fn new(per_second: u32, now: Clock) -> Self {
        let per_second = f64::from(per_second.max(1));
        let (at, burst) = (now(), (per_second * BURST).max(BURST_MIN));
        Self { per_second, burst, now, state: Mutex::new(State { tokens: burst, at }) }
    }

    /// Takes `units` and says how long the caller must wait before he uses them; `None` (and nothing
    /// taken) if that would be longer than `patience`.
    pub fn reserve(&self, units: u32, patience: Duration) -> Option<Duration> {
        let mut state = self.refilled();
        let left = state.tokens - f64::from(units);
        let wait = Duration::from_secs_f64((-left / self.per_second).max(0.0));
        if wait > patience {
            return None;
        }
        state.tokens = left;
        Some(wait)
    }

    /// Is there room for work that nobody waits for?
    pub fn has_spare(&self) -> bool {
        self.refilled().tokens >= self.burst / 2.0
    }

    fn refilled(&self) -> parking_lot::MutexGuard<'_, State> {
        let mut state = self.state.lock();
        let now = (self.now)();
        let gained = now.saturating_sub(state.at).as_secs_f64() * self.per_second;
        state.tokens = (state.tokens + gained).min(self.burst);
        state.at = now;
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::clock::hand_clock;

    #[test]
    fn a_burst_then_the_rate() {
        let (clock, set) = hand_clock();
        let rate = Rate::new(100, clock);
        let long = Duration::from_secs(60);
        let waits: Vec<_> = (0..45).map(|_| rate.reserve(1, long).unwrap()).collect();
        assert!(waits[..25].iter().all(Duration::is_zero), "the burst is 25 units");
        assert_eq!(waits[44], Duration::from_millis(200));
        set(Duration::from_secs(10));
        assert!(rate.has_spare());
        assert_eq!(rate.reserve(25, long), Some(Duration::ZERO));
        assert!(!rate.has_spare());
    }

    #[test]
    fn who_cannot_wait_takes_nothing() {
        let (clock, _set) = hand_clock();
        let rate = Rate::new(10, clock);
        assert_eq!(rate.reserve(12, Duration::from_millis(800)), None);
        assert_eq!(rate.reserve(12, Duration::from_secs(1)), Some(Duration::from_millis(900)));
    }
}
