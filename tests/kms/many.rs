//! Ten thousand files change their key, and whoever does it is killed twenty times.

use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::aws::{KeyState, Origin};
use super::bed::{Bed, ctl, said};

const FILES: usize = 10_000;
/// Files that share a data key: 2,500 keys.
const SHARE: &str = "4";
const KILLS: usize = 20;
/// Of the KMS while it rewraps.
const LATENCY: Duration = Duration::from_millis(5);

/// From a seed that a failure shows.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % end.max(1)
    }
}

fn rewrap(bed: &Bed, to: &str) -> &'static mut std::process::Command {
    let (to, list) = (format!("aws-kms:{to}"), bed.path("list"));
    let arguments =
        ["--json", "--kms-rate", "100000", "--list", list.to_str().unwrap(), "--to", &to];
    bed.ctl("key rewrap", &arguments)
}

/// Every file can be read, and is what it was.
fn require_readable(bed: &Bed, mounted: bool) {
    bed.fake.set_latency(Duration::ZERO);
    match mounted {
        true => bed.read_files("a", FILES),
        false => drop(said(bed.ctl("verify", &["--kms-rate", "100000"]))),
    }
    bed.fake.set_latency(LATENCY);
}

/// Keys that headers name: only ones the volume allows.
fn require_known_keys(bed: &Bed) {
    let text = said(ctl(&["key", "status", "--json"]).arg(bed.source()));
    let status: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status["headers"], FILES);
    for key in status["keys"].as_array().unwrap() {
        assert_ne!(key["state"], "unknown", "{status}");
    }
}

#[test]
fn ten_thousand_files_and_twenty_kills() {
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    println!("seed {seed}");
    let mut random = Random(u64::from(seed));
    let mut bed = Bed::with(&["--files-per-data-key", SHARE]);
    let rate = "kms-rate=100000";
    bed.mount(rate);
    bed.make_files("a", FILES);
    bed.unmount();

    // Once undisturbed: how long it takes, what it asks for.
    bed.fake.set_latency(LATENCY);
    bed.fake.reset_counters();
    let started = Instant::now();
    let mut old = bed.key.clone();
    let mut new = bed.fake.create_key(Origin::CloudHsm);
    said(rewrap(&bed, &new));
    let whole = started.elapsed();
    let (calls, keys) = (bed.fake.calls("ReEncrypt"), FILES as u64 / 4);
    println!(
        "{FILES} files, not mounted: {:.0} files/s, {calls} ReEncrypt",
        FILES as f64 / whole.as_secs_f64()
    );
    // The volume key, and each data key once; some files of the supply's last keys came alone.
    assert!((keys + 1..keys + 64).contains(&calls), "{calls} calls");

    let mut killed = 0;
    let mut mounted = false;
    bed.fake.set_key_state(&old, KeyState::Disabled);
    while killed < KILLS {
        if killed >= KILLS / 2 && !mounted {
            bed.mount(rate);
            mounted = true;
        }
        (old, new) = (new, bed.fake.create_key(Origin::CloudHsm));
        for part in 1..=5 {
            let mut child = rewrap(&bed, &new).stdout(Stdio::null()).spawn().unwrap();
            let most = whole.as_millis() as u64 / (6 - part);
            std::thread::sleep(Duration::from_millis(random.below(most)));
            child.kill().unwrap();
            killed += usize::from(child.wait().unwrap().code().is_none());
            require_known_keys(&bed);
            require_readable(&bed, mounted);
        }
        bed.fake.reset_counters();
        let started = Instant::now();
        said(rewrap(&bed, &new));
        println!("finished after kills in {:.1} s", started.elapsed().as_secs_f64());
        bed.fake.set_key_state(&old, KeyState::Disabled);
        require_readable(&bed, mounted);
    }
    // Undisturbed through the daemon.
    new = bed.fake.create_key(Origin::CloudHsm);
    bed.fake.reset_counters();
    let started = Instant::now();
    said(rewrap(&bed, &new));
    let speed = FILES as f64 / started.elapsed().as_secs_f64();
    println!(
        "mounted: {speed:.0} files/s, {} ReEncrypt; {killed} kills",
        bed.fake.calls("ReEncrypt")
    );
    bed.unmount();
}
