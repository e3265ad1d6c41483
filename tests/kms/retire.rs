//! What keeps a key from being retired, and what a rewrap under programs must not lose.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::aws::{KeyState, Origin};
use super::bed::{Bed, ctl, refused, said};

fn bed() -> (Bed, String) {
    let mut bed = Bed::with(&["--files-per-data-key", "3"]);
    let second = bed.fake.create_key(Origin::CloudHsm);
    bed.mount("");
    bed.make_files("a", 9);
    bed.unmount();
    (bed, second)
}

fn rewrap(bed: &Bed, arguments: &[&str]) -> Value {
    let list = bed.path("list");
    let common = ["--json", "--list", list.to_str().unwrap()];
    let said = said(bed.ctl("key rewrap", &[&common[..], arguments].concat()));
    serde_json::from_str(&said).unwrap()
}

fn retire(bed: &Bed, key: &str, more: &[&str]) -> Command {
    let mut command = ctl(&["key", "retire", key, "--yes", "--volume"]);
    command.arg(bed.source()).args(["--kms-endpoint", &bed.fake.endpoint()]).args(more);
    command
}

fn state(bed: &Bed) -> String {
    let shown = bed.fake.client().call("DescribeKey", &json!({"KeyId": bed.key})).unwrap();
    shown["KeyMetadata"]["KeyState"].as_str().unwrap().to_owned()
}

#[test]
fn an_open_file_that_was_removed_still_needs_its_key() {
    let (mut bed, second) = bed();
    bed.mount("");
    let mut file = OpenOptions::new().read(true).write(true).open(bed.at("a-00000")).unwrap();
    fs::remove_file(bed.at("a-00000")).unwrap();
    rewrap(&bed, &["--to", &format!("aws-kms:{second}")]);
    let told = refused(&mut retire(&bed, &bed.key, &["--no-backups"]), 1);
    assert!(told.contains("removed and is still open"), "{told}");
    assert_eq!(state(&bed), "Enabled", "{told}");
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "file 0");
    drop(file);
    said(&mut retire(&bed, &bed.key, &["--no-backups"]));
    bed.remount("");
    assert_eq!(fs::read(bed.at("a-00001")).unwrap(), b"file 1");
    bed.unmount();
}

#[test]
fn a_key_stays_enabled_while_a_volume_cannot_forget_it() {
    let (mut bed, second) = bed();
    rewrap(&bed, &["--to", &format!("aws-kms:{second}")]);
    bed.mount("ro");
    let told = refused(&mut retire(&bed, &bed.key, &["--no-backups"]), 14);
    assert!(told.contains("mounted read-only"), "{told}");
    assert_eq!(state(&bed), "Enabled");
    bed.unmount();
    said(&mut retire(&bed, &bed.key, &["--no-backups"]));
    assert_eq!(state(&bed), "Disabled");
}

#[test]
fn a_damaged_header_keeps_the_key_whatever_the_file_is_called() {
    let (mut bed, second) = bed();
    bed.mount("");
    fs::write(bed.at("n".repeat(250)), "long").unwrap();
    bed.unmount();
    let long = fs::read_dir(bed.source()).unwrap().map(|entry| entry.unwrap().path());
    let mut long = long.filter(|path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.starts_with("kmsfs.long.") && !name.ends_with(".name")
    });
    let file = OpenOptions::new().write(true).open(long.next().unwrap()).unwrap();
    file.write_all_at(b"XXXX", 0).unwrap();
    let list = bed.path("list");
    let to = format!("aws-kms:{second}");
    let arguments = ["--list", list.to_str().unwrap(), "--to", &to];
    refused(bed.ctl("key rewrap", &arguments), 17);
    let status = said(ctl(&["key", "status", "--json"]).arg(bed.source()));
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["unreadable"].as_array().unwrap().len(), 1, "{status}");
    let told = refused(&mut retire(&bed, &bed.key, &["--no-backups"]), 1);
    assert!(told.contains("1 headers cannot be read"), "{told}");
    assert_eq!(state(&bed), "Enabled");
}

#[test]
fn a_volume_is_no_backup_of_itself() {
    let (bed, second) = bed();
    rewrap(&bed, &["--to", &format!("aws-kms:{second}")]);
    let backup = bed.path("backup");
    said(Command::new("cp").arg("-a").arg(bed.source()).arg(&backup));
    let (backup, itself) = (backup.to_str().unwrap(), bed.path("itself"));
    std::os::unix::fs::symlink(bed.source(), &itself).unwrap();
    for copies in
        [&["--backup", itself.to_str().unwrap()][..], &["--backup", backup, "--backup", backup]]
    {
        let told = refused(&mut retire(&bed, &bed.key, copies), 1);
        assert!(told.contains("no copy of it"), "{told}");
    }
    said(&mut retire(&bed, &bed.key, &["--backup", backup]));
}

#[test]
fn keys_and_copies_that_have_nothing_to_do_with_the_volume_are_left_alone() {
    let (bed, second) = bed();
    let told = refused(&mut retire(&bed, &second, &["--no-backups"]), 1);
    assert!(told.contains("none of these volumes"), "{told}");
    let (other, _) = self::bed();
    rewrap(&bed, &["--to", &format!("aws-kms:{second}")]);
    let stranger = other.source().display().to_string();
    let told = refused(&mut retire(&bed, &bed.key, &["--backup", &stranger]), 1);
    assert!(told.contains("copy of another volume"), "{told}");
    said(&mut retire(&bed, &bed.key, &["--no-backups"]));
    // Once more finds nothing to do, and asks for a deletion at last.
    let delete = ["--no-backups", "--schedule-deletion", "7"];
    // Its tags would say nothing that its state does not.
    let denied = bed.fake.deny("ListResourceTags");
    said(&mut retire(&bed, &bed.key, &delete));
    bed.fake.clear_fault(denied);
    said(&mut retire(&bed, &bed.key, &["--no-backups"]));
}

#[test]
fn a_backup_that_names_another_key_as_well_is_not_taken_to_be_safe() {
    let (bed, second) = bed();
    let third = bed.fake.create_key(Origin::CloudHsm);
    said(bed.ctl("key add", &[&format!("aws-kms:{second}")]));
    let backup = bed.path("backup");
    said(Command::new("cp").arg("-a").arg(bed.source()).arg(&backup));
    let (key, to) = (bed.key.clone(), format!("aws-kms:{third}"));
    rewrap(&bed, &["--from", &key, "--to", &to]);
    let told = refused(&mut retire(&bed, &key, &["--backup", backup.to_str().unwrap()]), 1);
    assert!(told.contains("9 files need the key"), "{told}");
}

#[test]
fn one_key_of_two_is_replaced_without_the_other() {
    let (mut bed, second) = bed();
    let third = bed.fake.create_key(Origin::CloudHsm);
    said(bed.ctl("key add", &[&format!("aws-kms:{second}")]));
    bed.fake.set_key_state(&bed.key, KeyState::Disabled);
    // The first is away; the second gives what the third needs.
    let key = bed.key.clone();
    bed.fake.set_key_state(&key, KeyState::Enabled);
    bed.fake.reset_counters();
    bed.fake.set_alias("alias/third", &third);
    let alias = third.replace(&format!("key/{}", third.rsplit('/').next().unwrap()), "alias/third");
    let report = rewrap(&bed, &["--from", &second, "--to", &format!("aws-kms:{alias}")]);
    assert_eq!(report["rewritten"], 9);
    // Taken from the one that goes: the other is asked for the volume key only.
    let first: Vec<_> =
        bed.fake.log().into_iter().filter(|e| e.key.as_deref() == Some(&*key)).collect();
    assert!(first.iter().all(|entry| entry.operation == "Decrypt"), "{}", first.len());
    // By the alias again: nothing is done anew.
    let again = rewrap(&bed, &["--from", &second, "--to", &format!("aws-kms:{alias}")]);
    assert_eq!((&again["rewritten"], &again["generation"]), (&0.into(), &report["generation"]));
    bed.mount("");
    bed.read_files("a", 9);
    bed.unmount();
}

#[test]
fn what_is_written_meanwhile_keeps_its_own_time() {
    const FILES: usize = 150;
    for options in ["", "writeback=no"] {
        let mut bed = Bed::with(&["--files-per-data-key", "1"]);
        let second = bed.fake.create_key(Origin::CloudHsm);
        bed.mount(options);
        bed.make_files("a", FILES);
        let old = SystemTime::now() - Duration::from_secs(2 * 86_400);
        for i in 0..FILES {
            let file = File::options().write(true).open(bed.at(format!("a-{i:05}"))).unwrap();
            file.set_modified(old).unwrap();
        }
        bed.fake.set_latency(Duration::from_millis(20));
        let stop = AtomicBool::new(false);
        let written = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut written = Vec::new();
                let mut open = Vec::new();
                for i in (0..FILES).rev() {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let path = bed.at(format!("a-{i:05}"));
                    let mut file = OpenOptions::new().write(true).open(path).unwrap();
                    file.seek(SeekFrom::Start(0)).unwrap();
                    file.write_all(b"FILE").unwrap();
                    file.sync_all().unwrap();
                    open.push(file);
                    written.push(i);
                    std::thread::sleep(Duration::from_millis(3));
                }
                written
            });
            rewrap(&bed, &["--to", &format!("aws-kms:{second}")]);
            stop.store(true, Ordering::Relaxed);
            writer.join().unwrap()
        });
        assert!(!written.is_empty());
        bed.remount(options);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        for i in 0..FILES {
            let meta = fs::metadata(bed.at(format!("a-{i:05}"))).unwrap();
            let recent = meta.mtime() > now - 3600;
            assert_eq!(recent, written.contains(&i), "{options} {i} of {written:?}");
        }
        bed.unmount();
    }
}
