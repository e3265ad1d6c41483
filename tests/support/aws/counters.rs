//! What was called, how often, and how it went.

use std::collections::{BTreeMap, VecDeque};

use serde_json::{Value, json};

use super::api::{Context, now};

/// How many calls the log keeps.
const LOG_MAX: usize = 10_000;
/// The outcome of a call that succeeded.
pub const OK: &str = "OK";

/// Calls and their weight.
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub struct Tally {
    /// How many calls.
    pub calls: u64,
    /// How many units of quota.
    pub units: u64,
}

/// One call.
#[derive(Clone, Debug)]
pub struct Entry {
    /// When it was answered, in seconds since 1970.
    pub time: f64,
    /// Name of the operation.
    pub operation: String,
    /// ARN of the key it was about (of the source, if there are two).
    pub key: Option<String>,
    /// Its encryption context (that of the source, if there are two).
    pub context: Context,
    /// `OK` or the name of the exception, or of the fault that took the connection away.
    pub code: String,
    /// Whether the work was done and the answer withheld.
    pub lost: bool,
    /// Who called.
    pub access_key: String,
    /// Which program.
    pub user_agent: String,
    /// As in the answer.
    pub request_id: String,
}

impl Entry {
    fn to_json(&self) -> Value {
        json!({
            "time": self.time, "operation": self.operation, "key": self.key,
            "context": self.context, "code": self.code, "lost": self.lost,
            "access_key": self.access_key, "request_id": self.request_id,
        })
    }
}

/// All counters.
#[derive(Default)]
pub struct Counters {
    tallies: BTreeMap<(String, String), Tally>,
    keys: BTreeMap<String, BTreeMap<String, u64>>,
    log: VecDeque<Entry>,
    in_flight: u64,
    max_in_flight: u64,
    /// Calls whose context strict checking refused.
    pub bad_context: u64,
}

impl Counters {
    /// A call has arrived.
    pub fn enter(&mut self) {
        self.in_flight += 1;
        self.max_in_flight = self.max_in_flight.max(self.in_flight);
    }

    /// A call is over.
    pub fn leave(&mut self) {
        self.in_flight -= 1;
    }

    /// Counts a call by its outcome.
    pub fn record(&mut self, mut entry: Entry, units: u64) {
        entry.time = now();
        let name = (entry.operation.clone(), entry.code.clone());
        let tally = self.tallies.entry(name).or_default();
        tally.calls += 1;
        tally.units += units;
        if let Some(key) = &entry.key {
            let count = self.keys.entry(key.clone()).or_default();
            *count.entry(entry.operation.clone()).or_default() += 1;
        }
        if self.log.len() == LOG_MAX {
            self.log.pop_front();
        }
        self.log.push_back(entry);
    }

    /// The sum over what `wanted` picks by operation and outcome.
    pub fn sum(&self, wanted: impl Fn(&str, &str) -> bool) -> Tally {
        let picked = self.tallies.iter().filter(|((op, code), _)| wanted(op, code));
        picked.fold(Tally::default(), |sum, (_, tally)| Tally {
            calls: sum.calls + tally.calls,
            units: sum.units + tally.units,
        })
    }

    /// Calls about a key, by its ARN.
    pub fn of_key(&self, arn: &str) -> u64 {
        self.keys.get(arn).map_or(0, |count| count.values().sum())
    }

    /// Calls that have arrived and are not over.
    pub fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// The most there were at once.
    pub fn max_in_flight(&self) -> u64 {
        self.max_in_flight
    }

    /// The last calls, oldest first.
    pub fn log(&self) -> Vec<Entry> {
        self.log.iter().cloned().collect()
    }

    /// Everything to zero, but what is in flight.
    pub fn reset(&mut self) {
        let in_flight = self.in_flight;
        *self = Counters { in_flight, max_in_flight: in_flight, ..Counters::default() };
    }

    /// For people.
    pub fn to_json(&self) -> Value {
        let mut operations: BTreeMap<&str, BTreeMap<&str, Value>> = BTreeMap::new();
        for ((operation, code), tally) in &self.tallies {
            let value = json!({ "calls": tally.calls, "units": tally.units });
            operations.entry(operation).or_default().insert(code, value);
        }
        let all = self.sum(|_, _| true);
        json!({
            "calls": all.calls, "units": all.units, "operations": operations, "keys": self.keys,
            "in_flight": self.in_flight, "max_in_flight": self.max_in_flight,
            "bad_context": self.bad_context,
        })
    }

    /// The last `count` calls, for people.
    pub fn log_json(&self, count: usize) -> Value {
        self.log.iter().skip(self.log.len().saturating_sub(count)).map(Entry::to_json).collect()
    }
}
