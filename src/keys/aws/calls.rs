//! What was asked of KMS and how it went: counts, times, the last contact.

use super::classify::Class;
use crate::keys::CallFacts;
use crate::keys::clock::Clock;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::time::Duration;

/// What is asked of KMS at run time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum Operation {
    /// A fresh key and its wrapped copy.
    GenerateDataKey,
    /// Wraps.
    Encrypt,
    /// Unwraps.
    Decrypt,
    /// Unwraps with one key and wraps with another.
    ReEncrypt,
}

impl Operation {
    /// As KMS calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::GenerateDataKey => "GenerateDataKey",
            Self::Encrypt => "Encrypt",
            Self::Decrypt => "Decrypt",
            Self::ReEncrypt => "ReEncrypt",
        }
    }

    /// What it counts against the quota of a custom key store.
    pub fn units(self) -> u32 {
        match self {
            Self::GenerateDataKey => 3,
            Self::Encrypt | Self::Decrypt => 1,
            // Of one store perhaps twice.
            Self::ReEncrypt => 2,
        }
    }
}

/// Upper bounds of the latency classes: steps of a quarter of an octave from 1 ms on.
const STEPS: usize = 64;

fn step(elapsed: Duration) -> usize {
    let ms = elapsed.as_secs_f64() * 1e3;
    (ms.max(1.0).log2() * 4.0).ceil().min(STEPS as f64 - 1.0) as usize
}

fn bound(step: usize) -> Duration {
    Duration::from_secs_f64((step as f64 / 4.0).exp2() / 1e3)
}

/// Counters of one KMS key. Thread-safe.
pub struct Calls {
    now: Clock,
    state: Mutex<State>,
}

struct State {
    /// By operation and outcome; `None` is success.
    counts: BTreeMap<(Operation, Option<Class>), u64>,
    /// Successful unwraps by latency class.
    latencies: [u64; STEPS],
    last_success: Option<Duration>,
    last_error: Option<String>,
}

impl Calls {
    /// All zero.
    pub fn new(now: Clock) -> Self {
        let (counts, latencies) = (BTreeMap::new(), [0; STEPS]);
        Self {
            now,
            state: Mutex::new(State { counts, latencies, last_success: None, last_error: None }),
        }
    }

    /// A call was answered.
    pub fn succeeded(&self, operation: Operation, elapsed: Duration) {
        let mut state = self.state.lock();
        *state.counts.entry((operation, None)).or_insert(0) += 1;
        if operation == Operation::Decrypt {
            state.latencies[step(elapsed)] += 1;
        }
        state.last_success = Some((self.now)());
    }

    /// A call failed.
    pub fn failed(&self, operation: Operation, class: Class, sentence: &str) {
        let mut state = self.state.lock();
        *state.counts.entry((operation, Some(class))).or_insert(0) += 1;
        state.last_error = Some(sentence.to_owned());
    }

    /// The counters now.
    pub fn facts(&self) -> CallFacts {
        let now = (self.now)();
        let state = self.state.lock();
        let outcome = |class: Option<Class>| class.map_or("ok", Class::name);
        CallFacts {
            counts: state
                .counts
                .iter()
                .map(|((op, class), n)| (op.name(), outcome(*class), *n))
                .collect(),
            unwrap_p50: percentile(&state.latencies, 50),
            unwrap_p99: percentile(&state.latencies, 99),
            last_success: state.last_success.map(|at| now.saturating_sub(at)),
            last_error: state.last_error.clone(),
        }
    }
}

fn percentile(latencies: &[u64; STEPS], hundredth: u64) -> Option<Duration> {
    let all: u64 = latencies.iter().sum();
    let rank = (all * hundredth).div_ceil(100);
    let mut seen = 0;
    latencies
        .iter()
        .position(|n| {
            seen += n;
            seen >= rank && all > 0
        })
        .map(bound)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::clock::hand_clock;

    #[test]
    fn percentiles_are_within_a_quarter_octave() {
        let (clock, set) = hand_clock();
        let calls = Calls::new(clock);
        assert_eq!(calls.facts(), CallFacts::default());
        for ms in 1..=100 {
            calls.succeeded(Operation::Decrypt, Duration::from_millis(ms));
        }
        calls.failed(Operation::Decrypt, Class::Throttled, "slow down");
        set(Duration::from_secs(9));
        let facts = calls.facts();
        let p50 = facts.unwrap_p50.unwrap().as_secs_f64() * 1e3;
        let p99 = facts.unwrap_p99.unwrap().as_secs_f64() * 1e3;
        assert!((50.0..=60.0).contains(&p50) && (99.0..=118.0).contains(&p99), "{p50} {p99}");
        assert_eq!(facts.counts, [("Decrypt", "ok", 100), ("Decrypt", "throttled", 1)]);
        assert_eq!(facts.last_success, Some(Duration::from_secs(9)));
        assert_eq!(facts.last_error.as_deref(), Some("slow down"));
    }
}
