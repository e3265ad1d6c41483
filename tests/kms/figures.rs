//! What a mount tells of its keys: `status`, Prometheus, and the file for it.

use std::fs;
use std::time::{Duration, Instant};

use super::bed::{Bed, ctl, said, until};

#[test]
fn status_counts_calls_by_kind_and_outcome() {
    let mut bed = Bed::with(&["--files-per-data-key", "1"]);
    bed.mount("");
    bed.make_files("a", 5);
    bed.remount("ro,probe-interval=10m,offline-grace=1h");
    bed.fake.fail_next(1);
    bed.read_files("a", 1);
    fs::read(bed.at("a-00004")).unwrap();
    bed.read_files("a", 1);
    let keys: serde_json::Value =
        serde_json::from_str(&said(ctl(&["status", "--json"]).arg(bed.point()))).unwrap();
    let keys = &keys["keys"];
    assert_eq!((keys["state"].as_str(), keys["cached_keys"].as_u64()), (Some("granted"), Some(2)));
    assert_eq!((keys["cache_misses"].as_u64(), keys["supply_ready"].as_u64()), (Some(2), Some(0)));
    assert!(keys["cache_hits"].as_u64() >= Some(1));
    assert!(keys["oldest_key_seconds"].as_f64() < Some(60.0));
    assert!(keys["last_contact_seconds"].as_f64() < Some(60.0));
    let kms = &keys["kms"][0];
    assert_eq!((kms["key"].as_str(), kms["breaker"].as_str()), (Some(&*bed.key), Some("closed")));
    let of = |outcome: &str| {
        let calls = kms["calls"].as_array().unwrap();
        let found = calls.iter().find(|c| c["operation"] == "Decrypt" && c["outcome"] == outcome);
        found.and_then(|call| call["calls"].as_u64())
    };
    assert_eq!((of("ok"), of("transient"), of("revoked")), (Some(3), Some(1), None));
    assert!(kms["unwrap_p50_ms"].as_f64() > Some(0.0));
    assert!(kms["unwrap_p99_ms"].as_f64() >= kms["unwrap_p50_ms"].as_f64());
    assert!(kms["last_error"].as_str().unwrap().contains("KMSInternalException"));
    let people = said(ctl(&["status"]).arg(bed.point()));
    assert!(people.contains("granted") && people.contains(&bed.key), "{people}");
}

#[test]
fn prometheus_reads_the_same() {
    let mut bed = Bed::new();
    let file = bed.path("kmsfs.prom");
    bed.mount(&format!("metrics-file={}", file.display()));
    bed.make_files("a", 3);
    let page = said(ctl(&["status", "--prometheus"]).arg(bed.point()));
    let call = format!("key=\"{}\",operation=\"Decrypt\",outcome=\"ok\"}} 1\n", bed.key);
    assert!(page.contains(&call) && page.contains("kmsfs_kms_calls_total{volume="), "{page}");
    for line in page.lines() {
        let value = line.rsplit(' ').next().unwrap();
        let is_sample = line.starts_with("kmsfs_") && value.parse::<f64>().is_ok();
        assert!(is_sample || line.starts_with("# HELP ") || line.starts_with("# TYPE "), "{line}");
    }
    assert!(page.contains("kmsfs_locked{volume=\"") && page.contains("kmsfs_requests_total"));
    until("the file", || file.exists());
    assert!(fs::read_to_string(&file).unwrap().contains("kmsfs_cached_keys"));
}

#[test]
fn the_rate_of_this_host_is_kept() {
    const FILES: usize = 60;
    let mut bed = Bed::with(&["--files-per-data-key", "1"]);
    bed.mount("");
    bed.make_files("a", FILES);
    bed.remount("ro,kms-rate=20,kms-deadline=30s");
    let started = Instant::now();
    bed.read_files("a", FILES);
    // A quarter of a second's worth is free at the start. A lower bound: nothing can be too slow here.
    let least = Duration::from_secs_f64((FILES as f64 - 5.0 - 1.0) / 20.0);
    assert!(started.elapsed() >= least, "{:?} < {least:?}", started.elapsed());
    bed.remount("ro,kms-rate=1,kms-deadline=300ms");
    let mut read = (0..10).map(|i| fs::read(bed.at(format!("a-{:05}", 5 * i))));
    let error = read.find_map(Result::err).expect("one a second");
    assert_eq!(error.raw_os_error(), Some(libc::ENOKEY));
    assert!(bed.log().contains("own share of the key store's quota"), "{}", bed.log());
}
