//! A circuit breaker: after a call that failed for want of an answer, the next callers are told so at
//! once instead of waiting for their deadline, too.

use crate::keys::KeyError;
use crate::keys::clock::Clock;
use parking_lot::Mutex;
use std::time::Duration;

/// How long callers are turned away after the first failure; doubled by each further one.
const FIRST: Duration = Duration::from_secs(1);
/// At most this long.
const LAST: Duration = Duration::from_secs(10);

/// Closed (calls go out), open (they do not), or half open (one goes out to see).
pub struct Breaker {
    now: Clock,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Failed calls in a row.
    failures: u32,
    /// Until when nobody is let through, and why.
    open: Option<(Duration, KeyError)>,
    /// Somebody is out to see.
    trial: bool,
    /// Counts the changes: what was begun before one says nothing about the time after it.
    changes: u64,
}

/// Leave to call; says what came of it.
pub struct Leave<'a> {
    breaker: &'a Breaker,
    changes: u64,
    told: bool,
}

impl Breaker {
    /// Closed.
    pub fn new(now: Clock) -> Self {
        Self { now, state: Mutex::default() }
    }

    /// Leave to make a call, or the reason why the last one failed.
    pub fn admit(&self) -> Result<Leave<'_>, KeyError> {
        let mut state = self.state.lock();
        if let Some((until, error)) = &state.open {
            if state.trial || (self.now)() < *until {
                return Err(error.clone());
            }
            state.trial = true;
        }
        Ok(Leave { breaker: self, changes: state.changes, told: false })
    }

    /// Are callers turned away?
    pub fn is_open(&self) -> bool {
        self.state.lock().open.is_some()
    }
}

impl Leave<'_> {
    /// The call was answered, kindly or not.
    pub fn answered(mut self) {
        self.told = true;
        let mut state = self.breaker.state.lock();
        let changes = state.changes + u64::from(state.open.is_some());
        *state = State { changes, ..State::default() };
    }

    /// It was not.
    pub fn failed(mut self, error: &KeyError) {
        self.told = true;
        self.breaker.fail(error.clone(), self.changes);
    }
}

impl Breaker {
    fn fail(&self, error: KeyError, changes: u64) {
        let mut state = self.state.lock();
        if state.changes != changes {
            // Many failed of the same cause; the first one was counted.
            return;
        }
        state.changes += 1;
        let pause = (FIRST * 2u32.saturating_pow(state.failures)).min(LAST);
        state.failures = (state.failures + 1).min(10);
        state.open = Some(((self.now)() + pause, error));
        state.trial = false;
    }
}

/// A caller that panicked must not keep the trial for ever.
impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let mut state = self.breaker.state.lock();
        if !self.told && state.changes == self.changes {
            state.trial = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::clock::hand_clock;

    fn lost() -> KeyError {
        KeyError::Unavailable("no answer".into())
    }

    #[test]
    fn after_a_failure_one_trial_at_a_time_and_longer_pauses() {
        let (clock, set) = hand_clock();
        let breaker = Breaker::new(clock);
        breaker.admit().ok().unwrap().failed(&lost());
        assert!(breaker.is_open());
        assert_eq!(breaker.admit().err(), Some(lost()));
        set(Duration::from_secs(1));
        let trial = breaker.admit().ok().unwrap();
        assert_eq!(breaker.admit().err(), Some(lost()), "a second one waits for the first");
        trial.failed(&lost());
        set(Duration::from_millis(2900));
        assert!(breaker.admit().is_err(), "the second pause is twice as long");
        set(Duration::from_secs(3));
        breaker.admit().ok().unwrap().answered();
        assert!(!breaker.is_open() && breaker.admit().is_ok());
    }

    #[test]
    fn one_outage_is_one_failure_however_many_meet_it() {
        let (clock, set) = hand_clock();
        let breaker = Breaker::new(clock);
        let all: Vec<_> = (0..64).map(|_| breaker.admit().ok().unwrap()).collect();
        all.into_iter().for_each(|leave| leave.failed(&lost()));
        set(FIRST);
        let trial = breaker.admit().ok().unwrap();
        assert!(breaker.admit().is_err());
        trial.answered();
        assert!(!breaker.is_open());
    }

    #[test]
    fn pauses_are_bounded_and_a_lost_trial_is_given_back() {
        let (clock, set) = hand_clock();
        let breaker = Breaker::new(clock);
        let mut at = Duration::ZERO;
        for _ in 0..40 {
            breaker.admit().ok().unwrap().failed(&lost());
            at += LAST;
            set(at);
        }
        drop(breaker.admit().ok().unwrap());
        assert!(breaker.admit().is_ok());
    }
}
