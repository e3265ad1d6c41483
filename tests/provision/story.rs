//! From nothing to a mounted volume on a CloudHSM key, and from that key to its successor.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kmsfs::keys::{Editor, UnlockOptions};
use serde_json::{Value, json};

use super::all::all_here;
use super::aws::{FakeAws, Origin};
use super::bed::{Bed, ctl, refused, said, until};
use super::ground::{self, Ground};

pub(super) const FILES: usize = 12;
/// Some data keys, and not one for each file.
pub(super) const SHARED: &[&str] = &["--files-per-data-key", "5"];

/// A volume on a key with an alias, tags and a key store, mounted, with files.
pub(super) fn mounted() -> Bed {
    let fake = FakeAws::start();
    let store = fake.create_store("kmsfs", Origin::CloudHsm);
    let key = fake.create_key_in(&store);
    fake.set_alias("alias/kmsfs", &key);
    with_files(Bed::on(fake, key, SHARED))
}

pub(super) fn with_files(mut bed: Bed) -> Bed {
    bed.mount("");
    bed.make_files("a", FILES);
    bed
}

pub(super) fn answered(command: &mut Command) -> Value {
    serde_json::from_str(&said(command.arg("--json"))).unwrap()
}

pub(super) fn rotate(bed: &Bed, arguments: &[&str]) -> &'static mut Command {
    let list = bed.path("list").to_str().unwrap().to_owned();
    bed.ctl("key rotate", &[&["--list", &list, "--settling", "3s"], arguments].concat())
}

pub(super) fn retire(bed: &Bed, key: &str, arguments: &[&str]) -> Command {
    let mut command = ctl(&["key", "retire", key, "--volume"]);
    command.arg(bed.source()).args(["--kms-endpoint", &bed.fake.endpoint()]).args(arguments);
    command
}

/// State and number of files of a key, as `key status` has them; nothing if it knows no such key.
pub(super) fn status_of(bed: &Bed, key: &str) -> Option<(String, u64)> {
    let status = answered(ctl(&["key", "status"]).arg(bed.source()));
    let lines = status["keys"].as_array().unwrap().clone();
    let line = lines.into_iter().find(|line| line["key"].as_str().unwrap().contains(key))?;
    Some((line["state"].as_str().unwrap().to_owned(), line["files"].as_u64().unwrap()))
}

fn ask(fake: &FakeAws, operation: &str, key: &str) -> Value {
    fake.client().call(operation, &json!({ "KeyId": key })).unwrap()
}

pub(super) fn described(fake: &FakeAws, key: &str) -> Value {
    ask(fake, "DescribeKey", key)["KeyMetadata"].clone()
}

/// The tags of a key but its mark.
fn tags(fake: &FakeAws, key: &str) -> Vec<Value> {
    let tags = ask(fake, "ListResourceTags", key)["Tags"].as_array().unwrap().clone();
    tags.into_iter().filter(|tag| tag["TagKey"] != "kmsfs:request").collect()
}

pub(super) fn keys(bed: &Bed) -> usize {
    bed.fake.counts().keys
}

fn copy(from: &Path, to: &Path) {
    said(Command::new("cp").arg("-a").args([from, to]));
}

/// A volume on a key of a cluster that did not exist before.
fn from_nothing() -> Bed {
    let ground = Ground::new();
    let plan = ground::answered(&mut ground.provision(&["plan"]));
    assert!(plan["steps"].as_array().unwrap()[2]["state"] == "missing", "{plan}");
    let report = ground::answered(&mut all_here(&ground));
    let plan = ground::answered(&mut ground.provision(&["plan"]));
    let missing = |step: &&Value| step["state"] == "missing";
    assert_eq!(plan["steps"].as_array().unwrap().iter().find(missing), None);
    let text = |name: &str| report["key"][name].as_str().unwrap().to_owned();
    let (key, volume) = (text("key"), text("volume_id"));
    let init = [SHARED, &["--volume-id", &volume]].concat();
    with_files(Bed::on(ground.into_fake(), key, &init))
}

#[test]
fn the_whole_way() {
    let mut bed = from_nothing();
    let old = bed.key.clone();
    let backup = bed.path("backup");
    bed.unmount();
    copy(&bed.source(), &backup);
    bed.mount("");
    bed.make_files("b", 3);

    let report = answered(rotate(&bed, &[]));
    assert_eq!(report["rotation"], "successor");
    assert_eq!(report["aliases"], json!(["alias/kmsfs"]));
    assert_eq!(report["rewrap"]["rewritten"], FILES + 3);
    let new = report["successor"].as_str().unwrap().to_owned();
    assert!(new != old && keys(&bed) == 2);
    let (before, after) = (described(&bed.fake, &old), described(&bed.fake, &new));
    for fact in ["CustomKeyStoreId", "Origin", "CloudHsmClusterId", "Description"] {
        assert_eq!(before[fact], after[fact], "{fact}");
    }
    assert_eq!(tags(&bed.fake, &old), tags(&bed.fake, &new));
    let policy = |key: &str| ask(&bed.fake, "GetKeyPolicy", key)["Policy"].clone();
    assert_eq!(policy(&old), policy(&new));
    assert_eq!(described(&bed.fake, "alias/kmsfs")["Arn"], new.as_str());
    // The daemon has gone over to it, and new files are wrapped for it.
    bed.read_files("a", FILES);
    bed.make_files("c", 2);
    assert_eq!(status_of(&bed, &old), Some(("retiring".to_owned(), 0)));
    assert_eq!(status_of(&bed, &new), Some(("current".to_owned(), FILES as u64 + 5)));

    let with_backup = ["--backup", backup.to_str().unwrap(), "--yes"];
    let why = refused(&mut retire(&bed, &old, &with_backup), 1);
    assert!(why.contains("keep the key, or let that copy go"), "{why}");
    assert_eq!(described(&bed.fake, &old)["KeyState"], "Enabled");
    let retired = answered(&mut retire(&bed, &old, &["--no-backups", "--yes"]));
    assert_eq!(retired["disabled"], true);
    assert_eq!(described(&bed.fake, &old)["KeyState"], "Disabled");
    assert_eq!(status_of(&bed, &old), None);
    bed.remount("");
    bed.read_files("a", FILES);
    bed.read_files("b", 3);
    bed.unmount();
    said(bed.ctl("verify", &[]));
    assert_eq!(bed.fake.bad_contexts(), 0);
}

#[test]
fn an_interrupted_rotation_makes_one_successor() {
    let mut bed = mounted();
    for call in ["CreateKey", "GenerateDataKey", "ReEncrypt", "UpdateAlias"] {
        let before = bed.fake.calls_ok(call);
        let mut running =
            rotate(&bed, &[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        until(call, || running.try_wait().unwrap().is_some() || bed.fake.calls_ok(call) > before);
        let _ = running.kill();
        running.wait().unwrap();
        assert_eq!(keys(&bed), 2, "{call}");
        bed.read_files("a", FILES);
        // The last that was cut off is finished, and not followed by another one.
        if described(&bed.fake, "alias/kmsfs")["Arn"] != bed.key.as_str() {
            break;
        }
    }
    let report = answered(rotate(&bed, &["--if-due"]));
    assert!(["finished", "successor", "not-due"].contains(&report["rotation"].as_str().unwrap()));
    assert_eq!(keys(&bed), 2);
    assert_eq!(bed.fake.calls_ok("CreateKey"), 1);
    assert_ne!(described(&bed.fake, "alias/kmsfs")["Arn"], bed.key.as_str());
    assert_eq!(status_of(&bed, &bed.key), Some(("retiring".to_owned(), 0)));
    bed.remount("");
    bed.read_files("a", FILES);
}

#[test]
fn killed_at_any_time_a_rotation_makes_one_successor() {
    let mut bed = mounted();
    bed.fake.set_latency(Duration::from_millis(10));
    let current = |bed: &Bed| described(&bed.fake, "alias/kmsfs")["Arn"].clone();
    for round in 1..40_u64 {
        let mut running =
            rotate(&bed, &[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(20 * round));
        let done = running.try_wait().unwrap().is_some();
        let _ = running.kill();
        running.wait().unwrap();
        assert!(keys(&bed) <= 2, "round {round}");
        if done || current(&bed) != bed.key.as_str() {
            break;
        }
    }
    answered(rotate(&bed, &["--if-due"]));
    assert_eq!((keys(&bed), bed.fake.calls_ok("CreateKey")), (2, 1));
    assert_eq!(status_of(&bed, &bed.key), Some(("retiring".to_owned(), 0)));
    bed.remount("");
    bed.read_files("a", FILES);
}

#[test]
fn a_lost_answer_makes_one_successor() {
    let bed = mounted();
    for call in ["CreateKey", "UpdateAlias", "ReEncrypt"] {
        bed.fake.drop_next(call, 1);
    }
    let report = answered(rotate(&bed, &[]));
    assert_eq!((&report["rotation"], keys(&bed)), (&json!("successor"), 2));
    assert_eq!(bed.fake.calls("CreateKey"), 1);
    // The next one is another one's successor.
    let second = answered(rotate(&bed, &[]));
    assert_eq!((&second["key"], keys(&bed)), (&report["successor"], 3));
    assert_eq!(described(&bed.fake, "alias/kmsfs")["Arn"], second["successor"]);
    bed.read_files("a", FILES);
}

/// Lets a volume that is not mounted look as if its first key had been rotated so long ago.
pub(super) fn age(bed: &Bed, keyfile: &Path, days: u64) {
    let options = UnlockOptions { keyfile: Some(keyfile.to_owned()), ..UnlockOptions::default() };
    let path = bed.source().join("kmsfs.volume");
    let mut editor = Editor::open(&fs::read(&path).unwrap(), &options).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let (id, then) = (bed.key.rsplit('/').next().unwrap(), now - days * 86_400);
    editor.note_rotation(id, id, then);
    fs::write(&path, editor.finish().unwrap()).unwrap();
}

#[test]
fn a_period_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let keyfile = dir.path().join("rescue");
    let fake = FakeAws::start();
    let key = fake.create_key(Origin::CloudHsm);
    let rescue = format!("keyfile:{}", keyfile.display());
    let mut bed = with_files(Bed::on(fake, key, &["--recipient", &rescue]));
    let report = answered(rotate(&bed, &["--if-due", "--period-days", "90"]));
    assert_eq!((&report["rotation"], &report["period_days"]), (&json!("not-due"), &json!(90)));
    assert!(matches!(report["days_left"].as_i64(), Some(89 | 90)), "{report}");
    assert_eq!(answered(rotate(&bed, &["--if-due"]))["rotation"], "not-due");
    let report = answered(rotate(&bed, &["--period-days", "120", "--only-period"]));
    assert_eq!((&report["rotation"], &report["period_days"]), (&json!("period"), &json!(120)));
    bed.unmount();
    age(&bed, &keyfile, 119);
    assert_eq!(answered(rotate(&bed, &["--if-due"]))["rotation"], "not-due");
    age(&bed, &keyfile, 122);
    assert_eq!(keys(&bed), 1);
    bed.mount("");
    assert_eq!(answered(rotate(&bed, &["--if-due"]))["rotation"], "successor");
    // From then on it counts anew.
    let report = answered(rotate(&bed, &["--if-due"]));
    assert_eq!(report["rotation"], "not-due");
    assert!(matches!(report["days_left"].as_i64(), Some(119 | 120)), "{report}");
    assert_eq!(keys(&bed), 2);
    bed.remount("");
    bed.read_files("a", FILES);
}

#[test]
fn a_key_that_is_needed_is_not_retired() {
    let mut bed = mounted();
    let old = bed.key.clone();
    let no = |bed: &Bed, words: &str| {
        let why = refused(&mut retire(bed, &old, &["--no-backups", "--yes"]), 1);
        assert!(why.contains(words), "{words}: {why}");
        assert_eq!(described(&bed.fake, &old)["KeyState"], "Enabled");
    };
    no(&bed, "files need the key");
    // What is kept apart meanwhile is one that the rotation does not see.
    bed.unmount();
    let is_file = |path: &Path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        path.is_file() && !name.starts_with("kmsfs.")
    };
    let some = fs::read_dir(bed.source()).unwrap().map(|entry| entry.unwrap().path());
    let some = some.filter(|path| is_file(path)).min().unwrap();
    let aside = bed.path("aside");
    fs::rename(&some, &aside).unwrap();
    answered(rotate(&bed, &[]));
    fs::copy(&aside, &some).unwrap();
    no(&bed, "1 files need the key");
    fs::write(&some, [0; 5000]).unwrap();
    no(&bed, "1 headers cannot be read");
    fs::remove_file(&some).unwrap();
    bed.fake.set_alias("alias/late", &old);
    no(&bed, "alias/late still points to it");
    bed.fake.client().call("DeleteAlias", &json!({ "AliasName": "alias/late" })).unwrap();
    // A mount that did not end leaves its journal.
    bed.mount("");
    fs::write(bed.at("unfinished"), "some bytes").unwrap();
    let mut file = File::options().write(true).open(bed.at("unfinished")).unwrap();
    file.sync_all().unwrap();
    file.write_all(b"SOME").unwrap();
    file.sync_all().unwrap();
    bed.kill();
    drop(file);
    no(&bed, "did not end cleanly");
    said(bed.ctl("recover", &[]));
    let why = refused(&mut retire(&bed, &old, &["--no-backups"]), 1);
    assert!(why.contains("say --yes"), "{why}");
    said(&mut retire(&bed, &old, &["--no-backups", "--yes"]));
    assert_eq!(described(&bed.fake, &old)["KeyState"], "Disabled");
}

/// Killed while KMS makes the successor, and run again before KMS shows it.
#[test]
fn a_successor_that_a_killed_run_made_is_waited_for() {
    let bed = mounted();
    bed.fake.set_consistency(Duration::from_millis(1500));
    bed.fake.reset_counters();
    let before = keys(&bed);
    let mut killed = rotate(&bed, &[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("CreateKey", || bed.fake.calls_ok("CreateKey") > 0);
    killed.kill().unwrap();
    killed.wait().unwrap();
    said(rotate(&bed, &[]));
    assert_eq!((keys(&bed), bed.fake.calls("CreateKey")), (before + 1, 1));
}
