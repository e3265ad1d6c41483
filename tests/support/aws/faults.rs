//! Faults on demand: rules that change what calls get, and the switches that are not rules.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::api::{Fault, matches};
use super::pki::Spoil;

/// What a rule does to a call.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Answers an error instead of doing the work.
    Error(Fault),
    /// Answers AccessDeniedException.
    Deny,
    /// Never answers; the connection is closed when the rule is gone.
    Hang,
    /// Resets the connection instead of answering.
    Reset,
    /// Does the work, then closes the connection without an answer.
    Drop,
    /// Waits before doing the work.
    Delay(Duration),
}

impl Effect {
    /// ThrottlingException.
    pub fn throttle() -> Effect {
        Effect::Error(Fault::throttled())
    }

    /// KMSInternalException, HTTP 500.
    pub fn internal() -> Effect {
        Effect::Error(Fault::server(500, "KMSInternalException"))
    }

    /// ServiceUnavailableException, HTTP 503.
    pub fn unavailable() -> Effect {
        Effect::Error(Fault::server(503, "ServiceUnavailableException"))
    }

    fn name(&self) -> String {
        match self {
            Effect::Error(fault) => fault.code.clone(),
            Effect::Deny => "deny".into(),
            Effect::Hang => "hang".into(),
            Effect::Reset => "reset".into(),
            Effect::Drop => "drop".into(),
            Effect::Delay(_) => "delay".into(),
        }
    }

    fn from_json(value: &Value) -> Option<Effect> {
        Some(match value["effect"].as_str()? {
            "throttle" => Effect::throttle(),
            "internal" => Effect::internal(),
            "unavailable" => Effect::unavailable(),
            "deny" => Effect::Deny,
            "hang" => Effect::Hang,
            "reset" => Effect::Reset,
            "drop" => Effect::Drop,
            "delay" => Effect::Delay(Duration::from_millis(value["ms"].as_u64()?)),
            "error" => Effect::Error(Fault {
                status: value["status"].as_u64().unwrap_or(400).try_into().ok()?,
                code: value["code"].as_str()?.to_owned(),
                message: value["message"].as_str().unwrap_or_default().to_owned(),
            }),
            _ => return None,
        })
    }
}

/// A fault and the calls it is for.
#[derive(Clone, Debug)]
pub struct Rule {
    /// What happens.
    pub effect: Effect,
    /// Only calls of this operation, with its service (`cloudhsm:TagResource`) or without; may end in
    /// `*`.
    pub operation: Option<String>,
    /// Only calls that name this key (id or ARN), by whatever name or through a blob.
    pub key: Option<String>,
    /// How many matching calls pass before.
    pub skip: u64,
    /// How many calls it hits; nothing means until it is taken away.
    pub times: Option<u64>,
}

impl Rule {
    /// A rule for every call, until it is taken away.
    pub fn new(effect: Effect) -> Rule {
        Rule { effect, operation: None, key: None, skip: 0, times: None }
    }

    /// Only calls of this operation.
    pub fn on(mut self, operation: &str) -> Rule {
        self.operation = Some(operation.to_owned());
        self
    }

    /// Only calls about this key.
    pub fn key(mut self, key: &str) -> Rule {
        self.key = Some(key.to_owned());
        self
    }

    /// Only the next `count` calls.
    pub fn times(mut self, count: u64) -> Rule {
        self.times = Some(count);
        self
    }

    /// Lets `count` matching calls pass first.
    pub fn after(mut self, count: u64) -> Rule {
        self.skip = count;
        self
    }

    /// From `{"effect": …, "operation": …, "key": …, "times": …, "skip": …}` with what the effect
    /// needs beside: `ms`, or `status`, `code` and `message`.
    pub fn from_json(value: &Value) -> Option<Rule> {
        let text = |name: &str| value[name].as_str().map(str::to_owned);
        Some(Rule {
            effect: Effect::from_json(value)?,
            operation: text("operation"),
            key: text("key"),
            skip: value["skip"].as_u64().unwrap_or(0),
            times: value["times"].as_u64(),
        })
    }

    fn covers(&self, service: &str, operation: &str, keys: &[String]) -> bool {
        let full = format!("{service}:{operation}");
        let same = |name: &str| keys.iter().any(|id| name.rsplit('/').next() == Some(id));
        self.operation
            .as_ref()
            .is_none_or(|pattern| matches(pattern, operation) || matches(pattern, &full))
            && self.key.as_ref().is_none_or(|name| same(name))
    }
}

/// All rules, oldest first.
#[derive(Default)]
pub struct Rules {
    next: u64,
    rules: Vec<(u64, Rule)>,
}

impl Rules {
    /// Adds a rule; the number takes it away again.
    pub fn add(&mut self, rule: Rule) -> u64 {
        self.next += 1;
        self.rules.push((self.next, rule));
        self.next
    }

    /// Takes one rule away.
    pub fn remove(&mut self, number: u64) {
        self.rules.retain(|(have, _)| *have != number);
    }

    /// Takes all rules away whose effect has this name (`throttle`, `hang`, an exception …).
    pub fn remove_named(&mut self, name: &str) {
        let name = match name {
            "throttle" => "ThrottlingException",
            "internal" => "KMSInternalException",
            "unavailable" => "ServiceUnavailableException",
            other => other,
        };
        self.rules.retain(|(_, rule)| rule.effect.name() != name);
    }

    /// Takes all rules away.
    pub fn clear(&mut self) {
        self.rules.clear();
    }

    /// Whether a rule is still there.
    pub fn has(&self, number: u64) -> bool {
        self.rules.iter().any(|(have, _)| *have == number)
    }

    /// What happens to a call: how long it waits, and the first other effect, with its number.
    pub fn apply(
        &mut self,
        service: &str,
        operation: &str,
        keys: &[String],
    ) -> (Duration, Option<(u64, Effect)>) {
        let mut wait = Duration::ZERO;
        let mut first = None;
        for (number, rule) in &mut self.rules {
            let delay = matches!(rule.effect, Effect::Delay(_));
            if !rule.covers(service, operation, keys) || (first.is_some() && !delay) {
                continue;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
                continue;
            }
            if rule.times == Some(0) {
                continue;
            }
            rule.times = rule.times.map(|left| left - 1);
            match &rule.effect {
                Effect::Delay(time) => wait += *time,
                other => first = Some((*number, other.clone())),
            }
        }
        // A call that hangs keeps its rule: taking the rule away is what lets it go.
        self.rules.retain(|(_, r)| r.times != Some(0) || r.effect == Effect::Hang);
        (wait, first)
    }

    /// For people.
    pub fn to_json(&self) -> Value {
        let show = |(number, rule): &(u64, Rule)| {
            json!({
                "number": number, "effect": rule.effect.name(), "operation": rule.operation,
                "key": rule.key, "skip": rule.skip, "times": rule.times,
            })
        };
        self.rules.iter().map(show).collect()
    }
}

/// What holds for all calls.
pub struct Switches {
    /// How long every call takes at least.
    pub latency: Duration,
    /// Units per second of each custom key store.
    pub quota: Option<f64>,
    /// For how long after its creation nobody sees a key or an alias.
    pub consistency: Duration,
    /// Whether encryption contexts must be those of kmsfs.
    pub strict_context: bool,
    /// Size of a blob of 32 bytes.
    pub blob_len: usize,
    /// Whether all credentials have expired.
    pub expired: bool,
    /// Whether signatures are checked.
    pub signatures: bool,
    /// How long a custom key store takes to connect or disconnect.
    pub connect: Duration,
    /// Seconds by which the service's clock is ahead of ours.
    pub clock: i64,
    /// How long a cluster takes to be created, initialized or deleted.
    pub cluster: Duration,
    /// How long an HSM takes to be created or deleted.
    pub hsm: Duration,
    /// Whether DescribeClusters leaves out clusters and HSMs made since this was switched on.
    pub clusters_lag: bool,
    /// What is wrong with the certificates of new clusters.
    pub spoil: Option<Spoil>,
    /// How many custom key stores, clusters and HSMs an account may have.
    pub stores_max: usize,
    /// See there.
    pub clusters_max: usize,
    /// See there.
    pub hsms_max: usize,
}

impl Default for Switches {
    fn default() -> Switches {
        Switches {
            latency: Duration::ZERO,
            quota: None,
            consistency: Duration::ZERO,
            strict_context: false,
            blob_len: super::blob::BLOB_USUAL,
            expired: false,
            signatures: true,
            connect: Duration::ZERO,
            clock: 0,
            cluster: Duration::ZERO,
            hsm: Duration::ZERO,
            clusters_lag: false,
            spoil: None,
            stores_max: 10,
            clusters_max: 4,
            hsms_max: 6,
        }
    }
}

impl Switches {
    /// For people.
    pub fn to_json(&self) -> Value {
        json!({
            "latency_ms": self.latency.as_millis() as u64, "quota_units": self.quota,
            "consistency_ms": self.consistency.as_millis() as u64,
            "strict_context": self.strict_context, "blob_len": self.blob_len,
            "expired": self.expired, "signatures": self.signatures,
            "connect_ms": self.connect.as_millis() as u64, "clock_s": self.clock,
            "cluster_ms": self.cluster.as_millis() as u64, "hsm_ms": self.hsm.as_millis() as u64,
            "clusters_lag": self.clusters_lag,
            "stores_max": self.stores_max, "clusters_max": self.clusters_max,
            "hsms_max": self.hsms_max,
        })
    }
}

/// A token bucket that holds what flows in within one second.
pub struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    /// A full one; the first use cuts it to size.
    pub fn new() -> Bucket {
        Bucket { tokens: f64::MAX, filled: Instant::now() }
    }

    /// Takes units out, if they are there.
    pub fn take(&mut self, rate: f64, units: f64) -> bool {
        let flown = self.filled.elapsed().as_secs_f64() * rate;
        self.filled = Instant::now();
        self.tokens = (self.tokens + flown).min(rate.max(3.0));
        let enough = self.tokens >= units;
        if enough {
            self.tokens -= units;
        }
        enough
    }
}
