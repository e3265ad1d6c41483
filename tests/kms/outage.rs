//! KMS does not answer: what is open goes on, what needs a key fails soon, all comes back by itself.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::time::{Duration, Instant};

use super::aws::FakeAws;
use super::bed::{Bed, ctl, errno, said, until};

/// How the fake is broken and mended.
type Turn = fn(&FakeAws, bool);

const OUTAGES: [(&str, Turn); 6] = [
    ("hang", |fake, on| fake.hang(on)),
    ("refused", |fake, on| fake.refuse_connections(on)),
    ("throttle", |fake, on| fake.throttle(on)),
    ("internal", |fake, on| drop(fake.control(&serde_json::json!({ "internal": on })).unwrap())),
    ("reset", |fake, on| drop(fake.control(&serde_json::json!({ "reset": on })).unwrap())),
    ("expired", |fake, on| fake.expire_credentials(on)),
];

fn turn(bed: &Bed, which: &str, on: bool) {
    match OUTAGES.iter().find(|(name, _)| *name == which) {
        Some((_, turn)) => turn(&bed.fake, on),
        // The one that is about a key store.
        None => {
            let store = bed.fake.store_of(&bed.key).unwrap();
            bed.fake.set_store_communicates(&store, !on);
        }
    }
}

/// A strict volume with a few files, none of whose keys is at hand.
fn cold() -> Bed {
    let mut bed = Bed::with(&["--files-per-data-key", "1"]);
    bed.mount("");
    bed.make_files("a", 12);
    fs::create_dir(bed.at("d")).unwrap();
    bed.remount("kms-deadline=1s");
    until("the supply", || bed.keys()["supply_ready"].as_u64() >= Some(1));
    bed
}

fn goes_on(bed: &Bed, open: &mut File) {
    open.rewind().unwrap();
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("file 0"));
    open.write_all(b"+").unwrap();
    open.sync_all().unwrap();
    assert_eq!(fs::read_dir(bed.point()).unwrap().count(), 13);
    fs::rename(bed.at("d"), bed.at("e")).unwrap();
    fs::rename(bed.at("e"), bed.at("d")).unwrap();
    fs::create_dir(bed.at("new")).unwrap();
    fs::remove_dir(bed.at("new")).unwrap();
}

fn outage(which: &str, class: &str) {
    let mut bed = cold();
    let mut open = File::options().read(true).write(true).open(bed.at("a-00000")).unwrap();
    turn(&bed, which, true);
    // The KMS is asked once in vain; from then on the answer comes at once.
    let first = Instant::now();
    assert_eq!(errno(fs::read(bed.at("a-00003"))), libc::ENOKEY);
    assert!(first.elapsed() < Duration::from_secs(20), "a deadline of one second took {first:?}");
    bed.fake.reset_counters();
    for i in 4..8 {
        assert_eq!(errno(fs::read(bed.at(format!("a-{i:05}")))), libc::ENOKEY, "{which}");
    }
    assert!(bed.fake.calls_total() <= 8, "{} calls: the breaker is open", bed.fake.calls_total());
    goes_on(&bed, &mut open);
    let keys = bed.keys();
    assert_eq!((&keys["state"], &keys["kms"][0]["breaker"]), (&"granted".into(), &"open".into()));
    let log = bed.log();
    assert!(log.contains(&bed.key), "which key: {log}");
    assert!(keys["kms"][0]["calls"].to_string().contains(class), "{which}: {keys}");
    turn(&bed, which, false);
    until("recovery", || fs::read(bed.at("a-00009")).is_ok());
    fs::write(bed.at("after"), b"made").unwrap();
    drop(open);
    bed.unmount();
}

#[test]
fn no_answer() {
    outage("hang", "unreachable");
}

#[test]
fn connections_refused() {
    outage("refused", "unreachable");
}

#[test]
fn a_storm_of_throttles() {
    outage("throttle", "throttled");
}

#[test]
fn internal_errors() {
    outage("internal", "transient");
}

#[test]
fn connections_reset() {
    outage("reset", "unreachable");
}

#[test]
fn credentials_expired() {
    outage("expired", "credentials");
}

#[test]
fn the_cluster_cannot_be_reached() {
    outage("cluster", "transient");
}

#[test]
fn an_error_in_passing_is_not_seen_by_programs() {
    let bed = cold();
    bed.fake.fail_next(2);
    assert_eq!(fs::read(bed.at("a-00001")).unwrap(), b"file 1");
    bed.fake.drop_next("Decrypt", 1);
    assert_eq!(fs::read(bed.at("a-00002")).unwrap(), b"file 2");
}

#[test]
fn files_can_be_made_as_long_as_keys_are_in_store() {
    let mut bed = Bed::new();
    bed.mount("kms-deadline=1s");
    fs::write(bed.at("first"), b"x").unwrap();
    bed.fake.hang(true);
    bed.make_files("a", 100);
    bed.fake.hang(false);
    bed.unmount();
}

/// Requests of others are served, and the mount can be left, while many wait for a key.
#[test]
fn nobody_else_waits_and_the_mount_can_be_left() {
    let mut bed = cold();
    bed.remount("kms-deadline=20s");
    fs::read(bed.at("a-00011")).unwrap();
    bed.fake.hang(true);
    std::thread::scope(|scope| {
        for i in 0..10 {
            let place = bed.at(format!("a-{i:05}"));
            scope.spawn(move || assert_eq!(errno(File::open(place)), libc::ENOKEY));
        }
        std::thread::sleep(Duration::from_millis(300));
        for _ in 0..20 {
            assert_eq!(fs::read(bed.at("a-00011")).unwrap(), b"file 11");
            assert_eq!(fs::read_dir(bed.point()).unwrap().count(), 13);
        }
        assert!(no_process_in_d_state(&bed));
        // Those who wait keep the mount busy; it is detached, and they get their answer.
        said(ctl(&["umount", "--lazy"]).arg(bed.point()));
        bed.fake.hang(false);
        bed.fake.throttle(true);
    });
    until("the daemon's end", || {
        !std::path::Path::new(&format!("/proc/{}", bed.daemon())).exists()
            || fs::read_to_string(format!("/proc/{}/stat", bed.daemon())).unwrap().contains(") Z ")
    });
}

/// This process and the daemon: each thread's state.
fn no_process_in_d_state(bed: &Bed) -> bool {
    [std::process::id(), bed.daemon()].into_iter().all(|pid| {
        fs::read_dir(format!("/proc/{pid}/task")).unwrap().all(|task| {
            let stat = fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
            !stat.contains(") D ")
        })
    })
}

#[test]
fn sigterm_ends_the_daemon_during_an_outage() {
    let mut bed = cold();
    fs::write(bed.at("written"), b"kept").unwrap();
    bed.fake.hang(true);
    let pid = rustix::process::Pid::from_raw(bed.daemon() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    bed.ended();
    bed.fake.hang(false);
    bed.mount("");
    assert_eq!(fs::read(bed.at("written")).unwrap(), b"kept");
}

/// Cutting the network must not outrun revocation: after the grace open files end, too.
#[test]
fn without_an_answer_for_too_long_open_files_are_locked() {
    let mut bed = cold();
    bed.remount("probe-interval=1s,offline-grace=3s,kms-deadline=500ms");
    let mut open = File::options().read(true).write(true).open(bed.at("a-00000")).unwrap();
    open.write_all(b"FILE").unwrap();
    bed.fake.refuse_connections(true);
    let cut = Instant::now();
    bed.until_locked(1);
    assert!(cut.elapsed() > Duration::from_millis(1500), "{:?}", cut.elapsed());
    let mut byte = [0];
    assert_eq!(errno(open.read(&mut byte)), libc::ENOKEY);
    assert_eq!(errno(File::open(bed.at("a-00000"))), libc::ENOKEY);
    assert_eq!(errno(fs::metadata(bed.at("never-looked-up"))), libc::ENOKEY);
    bed.fake.refuse_connections(false);
    bed.until_granted(1);
    open.rewind().unwrap();
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text, "FILE 0", "written before the keys went");
    drop(open);
    bed.unmount();
}

/// A key whose time is over is asked for again; if nobody answers, it serves on within the grace.
#[test]
fn keys_serve_on_within_the_grace() {
    let mut bed = cold();
    bed.remount("cache-ttl=1s,kms-deadline=500ms");
    bed.read_files("a", 1);
    std::thread::sleep(Duration::from_millis(1100));
    bed.fake.reset_counters();
    bed.read_files("a", 1);
    assert_eq!(bed.fake.calls("Decrypt"), 1, "confirmed again");
    std::thread::sleep(Duration::from_millis(1100));
    bed.fake.refuse_connections(true);
    bed.read_files("a", 1);
    assert_eq!(errno(fs::read(bed.at("a-00005"))), libc::ENOKEY, "never asked for before");
}
