//! The owner of the key says no: the volume is locked within a probe interval, and opens again when he
//! says yes.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use data_encoding::BASE64;

use super::aws::{Connection, KeyState};
use super::bed::{Bed, errno, until};

const PROBE: &str = "probe-interval=1s,offline-grace=1h";

/// A strict volume with files, mounted with a short probe interval, one of them open.
fn watched() -> (Bed, File) {
    let mut bed = Bed::with(&["--files-per-data-key", "1"]);
    bed.mount(PROBE);
    bed.make_files("a", 5);
    bed.remount(PROBE);
    let mut open = File::options().read(true).write(true).open(bed.at("a-00000")).unwrap();
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text, "file 0");
    bed.read_files("a", 3);
    (bed, open)
}

fn is_locked_with_everything(bed: &Bed, open: &mut File) {
    let mut byte = [0];
    assert_eq!(errno(open.read_at(&mut byte, 0)), libc::EKEYREVOKED, "an open file");
    // What is written goes to the kernel's cache, and from there nowhere.
    let written = open.write_all_at(b"x", 0).and_then(|()| open.sync_all());
    assert_eq!(errno(written), libc::EKEYREVOKED);
    assert_eq!(errno(File::open(bed.at("a-00001"))), libc::EKEYREVOKED, "a key that was cached");
    assert_eq!(errno(File::open(bed.at("a-00004"))), libc::EKEYREVOKED, "one that was not");
    assert_eq!(errno(File::create(bed.at("new"))), libc::EKEYREVOKED);
    assert_eq!(errno(fs::rename(bed.at("a-00001"), bed.at("b"))), libc::EKEYREVOKED);
    assert_eq!(errno(fs::metadata(bed.at("never-seen"))), libc::EKEYREVOKED);
    assert_eq!(
        errno(fs::read_dir(bed.point()).and_then(|entries| entries.collect::<Result<Vec<_>, _>>())),
        libc::EKEYREVOKED,
        "an empty listing would be a lie"
    );
    assert_eq!(bed.keys()["cached_keys"], 0);
}

fn revoked(off: impl Fn(&Bed), on: impl Fn(&Bed), said: &str) {
    let (mut bed, mut open) = watched();
    off(&bed);
    let since = Instant::now();
    bed.until_locked(1);
    // One interval, one second thought, the flush: with a busy machine's slack.
    assert!(since.elapsed() < Duration::from_secs(15), "{:?}", since.elapsed());
    is_locked_with_everything(&bed, &mut open);
    bed.fake.reset_counters();
    std::thread::sleep(Duration::from_millis(2500));
    assert!(bed.fake.calls_total() <= 4, "{} calls in vain", bed.fake.calls_total());
    let log = bed.log();
    assert!(log.contains("revoked") && log.contains(&bed.key) && log.contains("request "), "{log}");
    assert!(log.contains(said), "{said}: {log}");
    on(&bed);
    bed.until_granted(1);
    bed.read_files("a", 0);
    assert_eq!(fs::read(bed.at("a-00001")).unwrap(), b"file 1");
    let mut text = String::new();
    open.rewind().unwrap();
    open.read_to_string(&mut text).unwrap();
    assert!(text.ends_with("ile 0"), "{text}");
    fs::write(bed.at("new"), b"made again").unwrap();
    drop(open);
    bed.unmount();
}

#[test]
fn the_key_is_disabled() {
    let turn = |state| move |bed: &Bed| bed.fake.set_key_state(&bed.key, state);
    revoked(turn(KeyState::Disabled), turn(KeyState::Enabled), "DisabledException");
}

#[test]
fn the_key_is_to_be_deleted() {
    let turn = |state| move |bed: &Bed| bed.fake.set_key_state(&bed.key, state);
    revoked(turn(KeyState::PendingDeletion), turn(KeyState::Enabled), "pending deletion");
}

#[test]
fn the_key_store_is_disconnected() {
    let turn = |state: Connection| {
        move |bed: &Bed| bed.fake.set_store(&bed.fake.store_of(&bed.key).unwrap(), state)
    };
    revoked(turn(Connection::Disconnected), turn(Connection::Connected), "unavailable");
}

#[test]
fn access_is_denied() {
    revoked(
        |bed| assert!(bed.fake.deny("Decrypt") > 0),
        |bed| bed.fake.clear_faults(),
        "AccessDeniedException",
    );
}

/// One denial may be a mistake of the moment; the volume goes on.
#[test]
fn one_denial_is_no_revocation() {
    let (bed, _open) = watched();
    use super::aws::{Effect, Rule};
    bed.fake.fault(Rule::new(Effect::Deny).on("Decrypt").times(1));
    bed.fake.reset_counters();
    until("three probes", || bed.fake.calls("Decrypt") >= 3);
    assert_eq!(bed.fake.calls_with("Decrypt", "AccessDeniedException"), 1);
    assert_eq!(
        (bed.keys()["state"].as_str(), bed.log().contains("dropped")),
        (Some("granted"), false)
    );
    bed.read_files("a", 4);
}

/// Whoever is told no first tells the watcher: nobody waits for the next probe.
#[test]
fn a_denied_opening_raises_the_alarm() {
    let mut bed = Bed::with(&["--files-per-data-key", "1"]);
    bed.mount("");
    bed.make_files("a", 2);
    bed.remount("probe-interval=10m,offline-grace=1h");
    bed.fake.set_key_state(&bed.key, KeyState::Disabled);
    assert_eq!(errno(File::open(bed.at("a-00000"))), libc::EKEYREVOKED);
    bed.until_locked(1);
    bed.unmount();
}

/// A revoked answer is never served by grace: not even when the network goes right afterwards.
#[test]
fn no_grace_for_a_revoked_key() {
    let (bed, mut open) = watched();
    bed.fake.set_key_state(&bed.key, KeyState::Disabled);
    bed.until_locked(1);
    bed.fake.refuse_connections(true);
    std::thread::sleep(Duration::from_millis(1500));
    is_locked_with_everything(&bed, &mut open);
    bed.fake.refuse_connections(false);
}

#[test]
fn what_was_written_before_is_on_the_disk() {
    let (mut bed, mut open) = watched();
    let big: Vec<u8> = (0..3_000_000u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
    open.seek(SeekFrom::Start(0)).unwrap();
    open.write_all(&big).unwrap();
    fs::write(bed.at("small"), b"written just before").unwrap();
    bed.fake.set_key_state(&bed.key, KeyState::Disabled);
    bed.until_locked(1);
    drop(open);
    // Unmounting and checkpointing need no key.
    bed.unmount();
    assert!(!bed.path("source/kmsfs.session").exists(), "a clean end");
    bed.fake.set_key_state(&bed.key, KeyState::Enabled);
    bed.mount("");
    assert!(fs::read(bed.at("a-00000")).unwrap() == big);
    assert_eq!(fs::read(bed.at("small")).unwrap(), b"written just before");
}

#[test]
fn a_mapped_file_faults_after_the_keys_went() {
    let (bed, _open) = watched();
    let script = "import mmap,sys,os\n\
        f=open(sys.argv[1],'rb'); m=mmap.mmap(f.fileno(),0,prot=mmap.PROT_READ)\n\
        assert m[:4]==b'file'; print('mapped',flush=True)\n\
        sys.stdin.readline(); print(m[:4])\n";
    let mut python = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(bed.at("a-00002"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 7];
    python.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    bed.fake.set_key_state(&bed.key, KeyState::Disabled);
    bed.until_locked(1);
    python.stdin.take().unwrap().write_all(b"\n").unwrap();
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(python.wait().unwrap().signal(), Some(libc::SIGBUS));
}

/// Searches the daemon's whole memory for keys, raw and as KMS sends them.
#[test]
fn the_keys_are_gone_from_memory() {
    let (bed, open) = watched();
    let mut secrets: Vec<(String, Vec<u8>)> = Vec::new();
    for (context, key) in bed.fake.given_out() {
        let id = context.get("kmsfs:data-key").cloned().unwrap_or_default();
        let purpose = format!("{} {id}", context["kmsfs:purpose"]);
        secrets.push((format!("{purpose} in base64"), BASE64.encode(&key).into_bytes()));
        secrets.push((purpose, key));
    }
    assert!(secrets.len() >= 2 * 6, "{} secrets", secrets.len());
    // The search finds what is there.
    let before = found(&bed, &secrets);
    assert!(before.iter().any(|name| name.starts_with("data")), "{before:?}");
    bed.fake.set_key_state(&bed.key, KeyState::Disabled);
    bed.until_locked(1);
    assert_eq!(found(&bed, &secrets), Vec::<String>::new());
    drop(open);
}

fn found(bed: &Bed, secrets: &[(String, Vec<u8>)]) -> Vec<String> {
    let maps = fs::read_to_string(format!("/proc/{}/maps", bed.daemon())).unwrap();
    let memory = File::open(format!("/proc/{}/mem", bed.daemon())).unwrap();
    let mut found = Vec::new();
    for line in maps.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (from, to) = fields[0].split_once('-').unwrap();
        let [from, to] = [from, to].map(|hex| u64::from_str_radix(hex, 16).unwrap());
        let mut bytes = vec![0; (to - from) as usize];
        if !fields[1].starts_with("rw") || memory.read_exact_at(&mut bytes, from).is_err() {
            continue;
        }
        for (name, secret) in secrets {
            if memchr(&bytes, secret) {
                found.push(format!(
                    "{name} at {}",
                    fields.get(5).unwrap_or(&"an anonymous mapping")
                ));
            }
        }
    }
    found
}

fn memchr(bytes: &[u8], secret: &[u8]) -> bool {
    let mut at = 0;
    while let Some(next) = bytes[at..].iter().position(|byte| *byte == secret[0]) {
        at += next;
        if bytes[at..].starts_with(secret) {
            return true;
        }
        at += 1;
    }
    false
}

/// What says neither yes nor no is an outage: the owner has not spoken.
#[test]
fn an_answer_that_makes_no_sense_is_no_revocation() {
    use super::aws::{Effect, Fault, Rule};
    let (bed, _open) = watched();
    for (status, code) in [(400, "ValidationException"), (403, ""), (429, "Odd"), (400, "Odd")] {
        let fault = Fault { status, code: code.into(), message: "odd".into() };
        bed.fake.reset_counters();
        let rule = bed.fake.fault(Rule::new(Effect::Error(fault)).on("Decrypt"));
        until("a probe", || bed.fake.calls("Decrypt") >= 2);
        bed.fake.clear_fault(rule);
        assert_eq!(bed.keys()["state"], "granted", "{status} {code}");
    }
    assert!(!bed.log().contains("dropped"), "{}", bed.log());
    bed.read_files("a", 3);
}

/// Not all open files get their keys back at once; the others do later, by themselves.
#[test]
fn files_whose_key_is_late_follow() {
    use super::aws::{Effect, Rule};
    let mut bed = Bed::with(&["--files-per-data-key", "1"]);
    bed.mount("");
    bed.make_files("a", 40);
    bed.remount("probe-interval=1s,offline-grace=1h,kms-deadline=500ms");
    let mut open: Vec<File> =
        (0..40).map(|i| File::open(bed.at(format!("a-{i:05}"))).unwrap()).collect();
    bed.fake.set_key_state(&bed.key, KeyState::Disabled);
    bed.until_locked(1);
    // The probe, a few files; then nothing for a while.
    bed.fake.set_latency(Duration::from_millis(20));
    bed.fake.set_key_state(&bed.key, KeyState::Enabled);
    bed.fake.reset_counters();
    until("the probe", || bed.fake.calls_ok("Decrypt") >= 1);
    let rule = bed.fake.fault(Rule::new(Effect::internal()).on("Decrypt"));
    until("the complaint", || bed.log().contains("stay locked until"));
    bed.fake.clear_fault(rule);
    until("all files", || {
        open.iter_mut().enumerate().all(|(i, file)| {
            let mut text = String::new();
            file.rewind().unwrap();
            file.read_to_string(&mut text).is_ok_and(|_| text == format!("file {i}"))
        })
    });
    drop(open);
    bed.unmount();
}
