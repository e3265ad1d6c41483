//! One KMS key takes the place of another: unmounted, mounted, interrupted, refused.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::aws::{Effect, Fault, KeyState, Origin, Principal, Rule};
use super::bed::{Bed, ctl, refused, said};

/// Data keys in headers and files of a bed: 20 files share one.
const SHARED: &[&str] = &["--files-per-data-key", "20"];

/// A bed with files, not mounted, and a second key.
fn bed_with(files: usize, init: &[&str]) -> (Bed, String) {
    let mut bed = Bed::with(init);
    let second = bed.fake.create_key(Origin::CloudHsm);
    bed.mount("");
    bed.make_files("a", files);
    bed.unmount();
    bed.fake.reset_counters();
    (bed, second)
}

fn rewrap(bed: &Bed, arguments: &[&str]) -> &'static mut Command {
    let list = bed.path("list");
    let common = ["--list", list.to_str().unwrap(), "--json"];
    bed.ctl("key rewrap", &[&common[..], arguments].concat())
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Ciphertext behind the header, length and time of a backing file.
type Body = (PathBuf, Vec<u8>, u64, (i64, i64));

/// Those of each backing file with content.
fn bodies(bed: &Bed) -> Vec<Body> {
    let mut all = Vec::new();
    let mut stack = vec![bed.source()];
    while let Some(dir) = stack.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let ours = path.file_name().unwrap().to_string_lossy().starts_with("kmsfs.");
            if meta.is_dir() {
                stack.push(path);
            } else if !ours && meta.len() > 0 {
                let body = fs::read(&path).unwrap()[4096..].to_vec();
                all.push((path, body, meta.len(), (meta.mtime(), meta.mtime_nsec())));
            }
        }
    }
    all.sort();
    all
}

/// How many backing files name a key in their header.
fn naming(bed: &Bed, key: &str) -> usize {
    let names = |path: &PathBuf| {
        let bytes = fs::read(path).unwrap();
        bytes[..4096].windows(key.len()).any(|window| window == key.as_bytes())
    };
    bodies(bed).iter().filter(|(path, ..)| names(path)).count()
}

#[test]
fn an_unmounted_volume_changes_its_key_with_one_call_for_each_data_key() {
    let (mut bed, second) = bed_with(100, SHARED);
    let before = bodies(&bed);
    let report = json(&said(rewrap(&bed, &["--to", &format!("aws-kms:{second}")])));
    assert_eq!((&report["headers"], &report["rewritten"]), (&100.into(), &100.into()));
    assert_eq!(report["keys"], Value::from(vec![second.clone()]));
    assert_eq!(report["retiring"], Value::from(vec![bed.key.clone()]));
    // Five data keys and the volume key; nobody saw a data key.
    assert_eq!(bed.fake.calls("ReEncrypt"), 6);
    let shown = bed.fake.log().into_iter().filter(|e| e.operation == "Decrypt");
    assert!(shown.into_iter().all(|e| e.context["kmsfs:purpose"] == "volume"));
    assert_eq!(before, bodies(&bed), "bodies, lengths or times have changed");
    let list = fs::read_to_string(bed.path("list")).unwrap();
    let mut listed: Vec<_> = list.lines().map(|line| bed.source().join(line)).collect();
    listed.sort();
    assert_eq!(listed, before.iter().map(|(path, ..)| path.clone()).collect::<Vec<_>>());

    bed.fake.set_key_state(&bed.key, KeyState::Disabled);
    bed.mount("");
    bed.read_files("a", 100);
    bed.make_files("b", 3);
    bed.unmount();
    assert_eq!((naming(&bed, &bed.key), naming(&bed, &second)), (0, 103));
    // Once more: nothing to do, nothing asked but the volume key.
    bed.fake.reset_counters();
    let report = json(&said(rewrap(&bed, &["--to", &format!("aws-kms:{second}")])));
    assert_eq!((&report["rewritten"], &report["descriptor_changed"]), (&0.into(), &false.into()));
    assert_eq!(bed.fake.calls("ReEncrypt"), 0);
    said(bed.ctl("verify", &[]));
}

#[test]
fn a_mounted_volume_changes_its_key_under_programs_that_use_it() {
    let (mut bed, second) = bed_with(60, SHARED);
    bed.mount("");
    let mut reader = File::open(bed.at("a-00001")).unwrap();
    let mut writer = OpenOptions::new().write(true).open(bed.at("a-00002")).unwrap();
    writer.write_all(b"FILE").unwrap();
    // Open, and with a key of before, but never written.
    let mut blank = File::create(bed.at("blank")).unwrap();
    let mut fresh = File::create(bed.at("fresh")).unwrap();
    fresh.write_all(b"not yet committed").unwrap();
    fs::create_dir_all(bed.at("d/e")).unwrap();
    fs::write(bed.at("d/e/deep"), "deep").unwrap();
    fs::hard_link(bed.at("d/e/deep"), bed.at("d/again")).unwrap();
    let gone = File::create(bed.at("gone")).unwrap();
    fs::remove_file(bed.at("gone")).unwrap();

    let report = json(&said(rewrap(&bed, &["--to", &format!("aws-kms:{second}")])));
    assert_eq!(report["retiring"], Value::from(vec![bed.key.clone()]), "{report}");
    assert_eq!((&report["moved"], report["problems"].as_array().unwrap().len()), (&0.into(), 0));
    assert_eq!(naming(&bed, &bed.key), 0);

    bed.fake.set_key_state(&bed.key, KeyState::Disabled);
    blank.write_all(b"written at last").unwrap();
    writer.write_all(b" two").unwrap();
    (&gone).write_all(b"to nobody").unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "file 1");
    bed.make_files("c", 3);
    drop((reader, writer, blank, fresh, gone));
    bed.remount("");
    assert_eq!(fs::read(bed.at("a-00002")).unwrap(), b"FILE two");
    assert_eq!(fs::read(bed.at("blank")).unwrap(), b"written at last");
    assert_eq!(fs::read(bed.at("fresh")).unwrap(), b"not yet committed");
    assert_eq!(fs::read(bed.at("d/again")).unwrap(), b"deep");
    bed.read_files("c", 3);
    bed.unmount();
    assert_eq!(naming(&bed, &bed.key), 0);
    said(bed.ctl("verify", &[]));
}

#[test]
fn files_made_moved_and_written_meanwhile_are_rewrapped_all_the_same() {
    let (mut bed, second) = bed_with(300, &["--files-per-data-key", "1"]);
    bed.mount("");
    fs::create_dir(bed.at("elsewhere")).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0.. {
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    return;
                }
                let (at, place) = (bed.at(format!("new-{round}")), round % 300);
                fs::write(&at, "new").unwrap();
                let name = format!("a-{place:05}");
                let mut file = OpenOptions::new().write(true).open(bed.at(&name)).unwrap();
                file.seek(SeekFrom::End(0)).unwrap();
                file.write_all(b".").unwrap();
                fs::rename(bed.at(&name), bed.at("elsewhere/x")).unwrap();
                fs::rename(bed.at("elsewhere/x"), bed.at(&name)).unwrap();
            }
        });
        let report = json(&said(rewrap(&bed, &["--to", &format!("aws-kms:{second}")])));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(report["rewritten"].as_u64().unwrap() >= 300, "{report}");
    });
    // What was on its way between two directories while both were looked at.
    said(rewrap(&bed, &[]));
    bed.unmount();
    assert_eq!(naming(&bed, &bed.key), 0);
    bed.fake.set_key_state(&bed.key, KeyState::Disabled);
    said(bed.ctl("verify", &[]));
}

#[test]
fn killed_at_any_point_every_file_opens_and_the_next_run_finishes() {
    let (mut bed, second) = bed_with(400, &["--files-per-data-key", "2"]);
    bed.fake.set_latency(Duration::from_millis(3));
    let to = format!("aws-kms:{second}");
    let before = bodies(&bed);
    let mut seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos() as u64;
    let mut rounds = 0;
    for round in 0..6 {
        if round == 3 {
            bed.mount("");
        }
        let command = rewrap(&bed, &["--to", &to]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        std::thread::sleep(Duration::from_millis(20 + (seed >> 33) % 250));
        child.kill().unwrap();
        rounds += u32::from(child.wait().unwrap().code().is_none());
        if round < 3 {
            said(bed.ctl("verify", &[]));
        } else {
            bed.read_files("a", 400);
        }
    }
    assert!(rounds > 0, "never killed in time");
    let report = json(&said(rewrap(&bed, &["--to", &to])));
    assert_eq!(report["problems"].as_array().unwrap().len(), 0);
    bed.unmount();
    assert_eq!((naming(&bed, &bed.key), naming(&bed, &second)), (0, 400));
    assert_eq!(before, bodies(&bed));
    bed.fake.set_key_state(&bed.key, KeyState::Disabled);
    said(bed.ctl("verify", &[]));
    // Whatever was killed, no rewrapped file is missing from the list.
    let list = fs::read_to_string(bed.path("list")).unwrap();
    let listed: std::collections::HashSet<_> = list.lines().collect();
    assert_eq!(listed.len(), 400);
}

#[test]
fn a_daemon_killed_in_the_middle_loses_nothing() {
    let (mut bed, second) = bed_with(400, &["--files-per-data-key", "1"]);
    bed.fake.set_latency(Duration::from_millis(3));
    bed.mount("");
    let to = format!("aws-kms:{second}");
    let mut child = rewrap(&bed, &["--to", &to]).stdout(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    bed.kill();
    assert!(!child.wait().unwrap().success());
    let report = json(&said(rewrap(&bed, &["--to", &to])));
    assert_eq!(report["problems"].as_array().unwrap().len(), 0);
    assert_eq!(naming(&bed, &bed.key), 0);
    bed.fake.set_key_state(&bed.key, KeyState::Disabled);
    bed.mount("");
    bed.read_files("a", 400);
    bed.unmount();
}

#[test]
fn a_key_that_does_not_work_changes_nothing() {
    let (bed, second) = bed_with(5, SHARED);
    let to = format!("aws-kms:{second}");
    let descriptor = fs::read(bed.source().join("kmsfs.volume")).unwrap();
    bed.fake.set_key_state(&second, KeyState::Disabled);
    let said_no = refused(rewrap(&bed, &["--to", &to]), 18);
    assert!(said_no.contains(&second) && said_no.contains("ReEncrypt"), "{said_no}");
    // Or the old one.
    bed.fake.set_key_state(&second, KeyState::Enabled);
    bed.fake.set_key_state(&bed.key, KeyState::Disabled);
    refused(rewrap(&bed, &["--to", &to]), 18);
    bed.fake.set_key_state(&bed.key, KeyState::Enabled);
    let said_no = refused(rewrap(&bed, &["--to", "keyfile:/x"]), 1);
    assert!(said_no.contains("key add"), "{said_no}");
    assert_eq!(descriptor, fs::read(bed.source().join("kmsfs.volume")).unwrap());
    assert_eq!(naming(&bed, &second), 0);
}

#[test]
fn the_mounts_own_rights_count_before_its_key_is_changed() {
    let (mut bed, second) = bed_with(5, SHARED);
    let other = bed.fake.create_key(Origin::CloudHsm);
    let key = bed.key.clone();
    let mut mount = Principal::new("AKIAMOUNTMOUNTMOUNT1", "mount", "mount").deny(&["ReEncrypt"]);
    mount.keys = Some(vec![key, second.clone()]);
    bed.fake.add_principal(mount);
    let mut command = bed.mount_command("");
    command.env("AWS_ACCESS_KEY_ID", "AKIAMOUNTMOUNTMOUNT1").env("AWS_SECRET_ACCESS_KEY", "mount");
    bed.mount_with(&mut command);
    let said_no = refused(rewrap(&bed, &["--to", &format!("aws-kms:{other}")]), 18);
    assert!(said_no.contains("own permissions") && said_no.contains(&other), "{said_no}");
    bed.read_files("a", 5);
    assert_eq!(naming(&bed, &other), 0);
    said(rewrap(&bed, &["--to", &format!("aws-kms:{second}")]));
    bed.make_files("b", 2);
    bed.unmount();
    assert_eq!(naming(&bed, &second), 7);
}

#[test]
fn touched_files_are_of_today_and_renewed_ones_have_new_copies_of_the_same_key() {
    let (mut bed, second) = bed_with(3, SHARED);
    let old = SystemTime::now() - Duration::from_secs(86_400);
    for (path, ..) in bodies(&bed) {
        File::options().write(true).open(path).unwrap().set_modified(old).unwrap();
    }
    said(rewrap(&bed, &["--touch", "--to", &format!("aws-kms:{second}")]));
    let recent = |time: i64| {
        time > SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64 - 3600
    };
    assert!(bodies(&bed).iter().all(|(.., (time, _))| recent(*time)));
    let headers = |bed: &Bed| -> Vec<Vec<u8>> {
        bodies(bed).iter().map(|(path, ..)| fs::read(path).unwrap()[..4096].to_vec()).collect()
    };
    let before = headers(&bed);
    let report = json(&said(rewrap(&bed, &["--renew", &second])));
    assert_eq!(report["rewritten"], 3);
    assert!(headers(&bed).iter().zip(&before).all(|(a, b)| a != b));
    // Interrupted or not, without the flag there is nothing more to do.
    assert_eq!(json(&said(rewrap(&bed, &[])))["rewritten"], 0);
    bed.mount("");
    bed.read_files("a", 3);
    bed.unmount();
}

#[test]
fn a_journal_that_was_left_is_recovered_first() {
    let (mut bed, second) = bed_with(3, SHARED);
    bed.mount("");
    let mut file = OpenOptions::new().write(true).open(bed.at("a-00000")).unwrap();
    file.write_all(b"FILE").unwrap();
    file.sync_all().unwrap();
    bed.kill();
    drop(file);
    said(rewrap(&bed, &["--to", &format!("aws-kms:{second}")]));
    bed.fake.set_key_state(&bed.key, KeyState::Disabled);
    bed.mount("");
    assert_eq!(fs::read(bed.at("a-00000")).unwrap(), b"FILE 0");
    bed.unmount();
}

#[test]
fn only_the_owner_may_ask_and_a_read_only_mount_is_left_alone() {
    let (mut bed, second) = bed_with(2, SHARED);
    bed.mount("ro");
    let to = format!("aws-kms:{second}");
    let said_no = refused(rewrap(&bed, &["--to", &to]), 14);
    assert!(said_no.contains("read-only"), "{said_no}");
    bed.unmount();
    bed.mount("allow_other");
    let leave = "import os,sys; os.setgid(65534); os.setuid(65534); \
                 os.setxattr(sys.argv[1], 'kmsfs.request.x', b'{}')";
    let nobody = Command::new("python3").args(["-c", leave]).arg(bed.point()).output().unwrap();
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("PermissionError"));
    let answer = kmsfs::fuse::control::request(&bed.point(), "ticket", b"{}").unwrap();
    assert!(String::from_utf8_lossy(&answer).contains("not understood"));
    bed.read_files("a", 2);
    bed.unmount();
}

#[test]
fn status_tells_which_files_need_which_key_and_doctor_that_one_has_a_successor() {
    let (mut bed, second) = bed_with(10, SHARED);
    let status = |bed: &Bed, more: &[&str]| json(&said(bed_status(bed).args(more).arg("--json")));
    let before = status(&bed, &[]);
    assert_eq!(before["keys"][0]["key"], bed.key.as_str());
    assert_eq!((&before["keys"][0]["files"], &before["keys"][0]["only"]), (&10.into(), &10.into()));
    assert_eq!(before["keys"][0]["state"], "current");
    // Nobody was asked.
    assert_eq!(bed.fake.calls_total(), 0);

    bed.mount("");
    bed.make_files("b", 5);
    // The volume key moves, and then KMS says no.
    let denied = Fault::client("AccessDeniedException", "not you");
    bed.fake.fault(Rule::new(Effect::Error(denied)).on("ReEncrypt").after(1));
    let to = format!("aws-kms:{second}");
    let told = refused(rewrap(&bed, &["--to", &to]), 1);
    assert!(told.contains("ReEncrypt failed: AccessDenied"), "{told}");
    bed.fake.clear_faults();
    // Nothing is changed if the list cannot be written.
    let list = bed.path("no/such/list");
    refused(bed.ctl("key rewrap", &["--renew", &second, "--list", list.to_str().unwrap()]), 1);
    bed.make_files("c", 2);
    let half = json(&said(ctl(&["key", "status", "--json", "--files"]).arg(bed.point())));
    let keys = half["keys"].as_array().unwrap();
    assert_eq!(
        (&keys[0]["key"], &keys[0]["state"]),
        (&bed.key.as_str().into(), &"retiring".into())
    );
    assert_eq!((&keys[0]["files"], keys[0]["paths"].as_array().unwrap().len()), (&15.into(), 15));
    assert_eq!((&keys[1]["key"], &keys[1]["files"]), (&second.as_str().into(), &2.into()));
    let text = said(&mut bed_status(&bed));
    assert!(text.contains("15 files need it") && text.contains("in use: 2 files"), "{text}");
    said(rewrap(&bed, &[]));
    let after = status(&bed, &["--files"]);
    assert_eq!((&after["keys"][0]["files"], &after["keys"][1]["files"]), (&0.into(), &17.into()));
    assert!(said(&mut bed_status(&bed)).contains("no file needs it"));
    let doctor = said(bed.ctl("doctor", &[]));
    assert!(doctor.contains("has a successor"), "{doctor}");
    bed.fake.set_key_state(&bed.key, KeyState::Disabled);
    said(bed.ctl("doctor", &[]));
    bed.unmount();
}

fn bed_status(bed: &Bed) -> Command {
    let mut command = ctl(&["key", "status"]);
    command.arg(bed.source());
    command
}
