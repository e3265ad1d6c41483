//! Counters as Prometheus reads them, and as `status` shows them.

use super::control::hex;
use super::ops::Counters;
use crate::fs::{KeyFacts, Volume};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Keys and KMS for `status`; none for a volume that needs no KMS.
pub fn key_json(facts: &KeyFacts) -> Value {
    let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
    let millis = |time: Option<Duration>| time.map(|time| time.as_secs_f64() * 1e3);
    let providers: Vec<Value> = facts
        .providers
        .iter()
        .map(|provider| {
            let calls: Vec<Value> = provider
                .calls
                .counts
                .iter()
                .map(|(operation, outcome, number)| {
                    json!({"operation": operation, "outcome": outcome, "calls": number})
                })
                .collect();
            json!({
                "key": provider.key,
                "breaker": if provider.breaker_open { "open" } else { "closed" },
                "calls": calls,
                "throttled": throttled(&provider.calls.counts),
                "unwrap_p50_ms": millis(provider.calls.unwrap_p50),
                "unwrap_p99_ms": millis(provider.calls.unwrap_p99),
                "last_success_seconds": seconds(provider.calls.last_success),
                "last_error": provider.calls.last_error,
            })
        })
        .collect();
    json!({
        "state": if facts.closed.is_some() { "locked" } else { "granted" },
        "locked_because": facts.closed,
        "last_contact_seconds": seconds(facts.contact),
        "cached_keys": facts.cache.keys,
        "cache_hits": facts.cache.hits,
        "cache_misses": facts.cache.misses,
        "oldest_key_seconds": seconds(facts.cache.oldest),
        "supply_ready": facts.supply.ready,
        "supply_depth": facts.supply.depth,
        "kms": providers,
    })
}

fn throttled(counts: &[(&str, &str, u64)]) -> u64 {
    counts.iter().filter(|(_, outcome, _)| *outcome == "throttled").map(|(_, _, n)| n).sum()
}

/// Prometheus text exposition.
pub fn text(volume: &Volume, requests: &Counters) -> String {
    let facts = volume.key_facts();
    let mut page = Page { text: String::new(), volume: hex(&volume.id().0) };
    let locked = u8::from(facts.closed.is_some());
    page.gauge("kmsfs_locked", "1 while the volume's key is not granted", locked.into());
    page.gauge("kmsfs_cached_keys", "Unwrapped data keys held", facts.cache.keys as f64);
    page.counter("kmsfs_cache_hits_total", "Data keys found in the cache", facts.cache.hits);
    page.counter("kmsfs_cache_misses_total", "Data keys that were unwrapped", facts.cache.misses);
    page.gauge("kmsfs_supply_ready", "Data keys ready for new files", facts.supply.ready as f64);
    if let Some(age) = facts.cache.oldest {
        page.gauge("kmsfs_oldest_key_seconds", "Age of the oldest cached key", age.as_secs_f64());
    }
    if let Some(silence) = facts.contact {
        let help = "Time since a KMS last answered";
        page.gauge("kmsfs_last_contact_seconds", help, silence.as_secs_f64());
    }
    page.kms(&facts);
    page.head("kmsfs_requests_total", "Requests of the kernel", "counter");
    if let Value::Object(counts) = requests.to_json() {
        for (operation, count) in counts {
            page.line("kmsfs_requests_total", &[("operation", &operation)], &count.to_string());
        }
    }
    page.text
}

struct Page {
    text: String,
    volume: String,
}

impl Page {
    fn head(&mut self, name: &str, help: &str, kind: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: &str) {
        let _ = write!(self.text, "{name}{{volume=\"{}\"", self.volume);
        for (label, text) in labels {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', " ");
            let _ = write!(self.text, ",{label}=\"{text}\"");
        }
        let _ = writeln!(self.text, "}} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.head(name, help, "gauge");
        self.line(name, &[], &value.to_string());
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, help, "counter");
        self.line(name, &[], &value.to_string());
    }

    fn kms(&mut self, facts: &KeyFacts) {
        self.head("kmsfs_kms_calls_total", "Calls of KMS by operation and outcome", "counter");
        for provider in &facts.providers {
            for (operation, outcome, number) in &provider.calls.counts {
                let labels =
                    [("key", &*provider.key), ("operation", operation), ("outcome", outcome)];
                self.line("kmsfs_kms_calls_total", &labels, &number.to_string());
            }
        }
        self.head("kmsfs_kms_breaker_open", "1 while KMS is not asked", "gauge");
        for provider in &facts.providers {
            let open = u8::from(provider.breaker_open).to_string();
            self.line("kmsfs_kms_breaker_open", &[("key", &provider.key)], &open);
        }
        self.head("kmsfs_kms_unwrap_seconds", "Time an unwrap takes", "gauge");
        for provider in &facts.providers {
            let quantiles =
                [("0.5", provider.calls.unwrap_p50), ("0.99", provider.calls.unwrap_p99)];
            for (quantile, time) in quantiles {
                let Some(time) = time else { continue };
                let labels = [("key", &*provider.key), ("quantile", quantile)];
                let seconds = time.as_secs_f64().to_string();
                self.line("kmsfs_kms_unwrap_seconds", &labels, &seconds);
            }
        }
    }
}

/// Replaces the file as a whole: a reader sees the old page or the new one.
pub fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    // What is there may be somebody else's, or lead elsewhere.
    let _ = std::fs::remove_file(&new);
    let mut file = File::options().write(true).create_new(true).mode(0o644).open(&new)?;
    file.write_all(text.as_bytes())?;
    std::fs::rename(&new, path)
}
