//! Rotations where something is beside the key: another key, a pin, another run.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::aws::{Effect, FakeAws, Origin, Principal, Rule};
use super::bed::{Bed, ctl, refused, said, text, until};
use super::story::{
    FILES, age, answered, described, keys, mounted, retire, rotate, status_of, with_files,
};

/// Adds a key of KMS itself, of the same Region.
fn beside(bed: &Bed) -> String {
    let native = bed.fake.create_key(Origin::Kms);
    said(bed.ctl("key add", &[&format!("aws-kms:{native}")]));
    native
}

fn status(bed: &Bed) -> Value {
    answered(ctl(&["key", "status"]).arg(bed.source()))
}

/// On a key of this origin, with a key file for [`age`], unmounted.
fn rescued(origin: Origin, keyfile: &Path) -> Bed {
    let fake = FakeAws::start();
    let key = fake.create_key(origin);
    let rescue = format!("keyfile:{}", keyfile.display());
    let mut bed = with_files(Bed::on(fake, key, &["--recipient", &rescue]));
    bed.unmount();
    bed
}

#[test]
fn another_key_of_the_region_keeps_no_rotation_from_its_end() {
    let mut bed = mounted();
    bed.unmount();
    let native = beside(&bed);
    bed.mount("");
    let why = refused(rotate(&bed, &[]), 1);
    assert!(why.contains("several KMS keys") && why.contains("--key"), "{why}");
    let report = answered(rotate(&bed, &["--key", &bed.key]));
    let new = report["successor"].as_str().unwrap().to_owned();
    assert_eq!((&report["rotation"], keys(&bed)), (&json!("successor"), 3));
    assert_eq!(described(&bed.fake, "alias/kmsfs")["Arn"], new.as_str());
    assert_eq!(status_of(&bed, &bed.key), Some(("retiring".to_owned(), 0)));
    // Nothing of it is left, and the next one is another one's.
    assert_eq!(answered(rotate(&bed, &["--key", &native, "--if-due"]))["rotation"], "not-due");
    let report = answered(rotate(&bed, &["--key", &new]));
    assert_eq!((&report["rotation"], keys(&bed)), (&json!("successor"), 4));
    let why = refused(rotate(&bed, &["--key", &bed.key]), 1);
    assert!(why.contains("is not a key of this volume"), "{why}");
    bed.read_files("a", FILES);
}

#[test]
fn headers_follow_although_an_alias_cannot() {
    let bed = mounted();
    let denied = bed.fake.deny("UpdateAlias");
    let why = refused(rotate(&bed, &[]), 1);
    assert!(why.contains("aliases do not all") && why.contains("UpdateAlias"), "{why}");
    assert_eq!(status_of(&bed, &bed.key), Some(("retiring".to_owned(), 0)));
    bed.fake.clear_fault(denied);
    let report = answered(rotate(&bed, &["--if-due"]));
    assert_eq!((&report["rotation"], keys(&bed)), (&json!("finished"), 2));
    assert_eq!(report["aliases"], json!(["alias/kmsfs"]));
}

#[test]
fn for_a_mount_that_expects_its_key_none_is_made_until_it_is_told() {
    let mut bed = mounted();
    let old = bed.key.clone();
    bed.remount(&format!("expect-key={old}"));
    let why = refused(rotate(&bed, &[]), 14);
    assert!(why.contains("--only-make") && why.contains("no key was made"), "{why}");
    let why = refused(rotate(&bed, &["--key", &old]), 14);
    assert!(why.contains(&format!("--only-make --key {old}`")), "{why}");
    assert_eq!(keys(&bed), 1);
    let made = answered(rotate(&bed, &["--only-make"]));
    let new = made["successor"].as_str().unwrap().to_owned();
    assert_eq!((&made["rotation"], keys(&bed)), (&json!("made"), 2));
    let why = refused(rotate(&bed, &[]), 14);
    assert!(why.contains(&format!("expect-key={old},expect-key={new}")), "{why}");
    assert_eq!(status_of(&bed, &new), None);
    bed.remount(&format!("expect-key={old},expect-key={new}"));
    assert_eq!(answered(rotate(&bed, &[]))["successor"], new.as_str());
    assert_eq!((keys(&bed), bed.fake.calls_ok("CreateKey")), (2, 1));
    bed.read_files("a", FILES);
    // Unmounted there is nobody to refuse it; who mounts is told.
    bed.unmount();
    let pins = ["--expect-key", &new, "--expect-key", &old];
    let output = rotate(&bed, &pins).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let told = text(&output);
    let newest = described(&bed.fake, "alias/kmsfs")["Arn"].as_str().unwrap().to_owned();
    assert!(told.contains(&format!("need expect-key={newest}, too")), "{told}");
}

#[test]
fn two_at_once_make_one_successor() {
    let mut bed = mounted();
    for mounted in [true, false] {
        let before = keys(&bed);
        bed.fake.fault(Rule::new(Effect::Hang).on("CreateKey").times(1));
        let state = bed.path("state");
        let command = rotate(&bed, &[]).env("XDG_STATE_HOME", &state);
        let mut first = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let marks = || std::fs::read_dir(state.join("kmsfs")).map_or(0, Iterator::count);
        until("its mark", || marks() > 0);
        // Somebody else, with another place for marks.
        let why = refused(rotate(&bed, &[]).env("XDG_STATE_HOME", bed.path("other")), 14);
        assert!(why.contains("key rotate") && why.contains(&first.id().to_string()), "{why}");
        bed.fake.clear_faults();
        assert!(first.wait().unwrap().success());
        assert_eq!(keys(&bed), before + 1);
        // It ends with the run, also where the descriptor was replaced.
        assert_eq!(answered(rotate(&bed, &["--if-due"]))["rotation"], "not-due");
        if mounted {
            bed.unmount();
        }
    }
}

#[test]
fn the_period_of_one_key_is_no_affair_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let keyfile = dir.path().join("rescue");
    let bed = rescued(Origin::CloudHsm, &keyfile);
    let native = beside(&bed);
    answered(rotate(&bed, &["--key", &bed.key, "--period-days", "100", "--only-period"]));
    let report = answered(rotate(&bed, &["--key", &native, "--if-due"]));
    assert_eq!((&report["rotation"], &report["period_days"]), (&json!("not-due"), &Value::Null));
    answered(rotate(&bed, &["--key", &native, "--period-days", "365"]));
    assert_eq!(status(&bed)["rotation_period_days"], 100);
    age(&bed, &keyfile, 102);
    let overdue = |bed: &Bed| status(bed)["days_left"].as_i64().unwrap() < 0;
    assert!(overdue(&bed));
    // New copies, and another key in the place of the one beside.
    let list = bed.path("list").display().to_string();
    said(bed.ctl("key rewrap", &["--list", &list, "--renew", &native]));
    answered(rotate(&bed, &["--key", &native, "--successor"]));
    assert!(overdue(&bed));
    // The timer names none: it is the one that is due.
    let report = answered(rotate(&bed, &["--if-due"]));
    assert_eq!((&report["rotation"], &report["key"]), (&json!("successor"), &json!(bed.key)));
    assert_eq!((&report["period_days"], &report["days_left"]), (&json!(100), &json!(100)));
    assert!(!overdue(&bed));
    // A key that goes takes its period along.
    let new = report["successor"].as_str().unwrap().to_owned();
    said(bed.ctl("key remove", &[&format!("aws-kms:{new}")]));
    assert_eq!(status(&bed)["rotation_period_days"], Value::Null);
}

#[test]
fn a_timer_keeps_the_period_of_a_key_that_is_to_have_successors_although_kms_could_rotate_it() {
    let dir = tempfile::tempdir().unwrap();
    let keyfile = dir.path().join("rescue");
    let mut bed = rescued(Origin::Kms, &keyfile);
    answered(rotate(&bed, &["--successor", "--period-days", "90", "--only-period"]));
    let report = answered(rotate(&bed, &["--if-due"]));
    assert_eq!((&report["rotation"], &report["period_days"]), (&json!("not-due"), &json!(90)));
    age(&bed, &keyfile, 92);
    let report = answered(rotate(&bed, &["--if-due"]));
    assert_eq!(report["rotation"], "successor");
    let report = answered(rotate(&bed, &["--if-due"]));
    assert!(matches!(report["days_left"].as_i64(), Some(89 | 90)), "{report}");
    // Until KMS is told to keep it.
    let report = answered(rotate(&bed, &["--period-days", "180", "--only-period"]));
    assert_eq!(report["native"]["period_days"], 180);
    assert_eq!(status(&bed)["rotation_period_days"], Value::Null);
    assert_eq!(keys(&bed), 2);
    bed.mount("");
    bed.read_files("a", FILES);
}

/// What the manual says that whoever runs these commands needs.
fn rights(commands: &[&str]) -> Vec<String> {
    let manual = include_str!("../../packaging/KMS.md");
    let row = |command: &&str| {
        let start = format!("| whoever runs `kmsfsctl {command}` |");
        manual.lines().find(|line| line.starts_with(&start)).expect("a row")
    };
    let words = commands.iter().map(row).flat_map(|row| row.split('`'));
    let all: BTreeSet<&str> = words.filter(|word| word.starts_with("kms:")).collect();
    all.into_iter().map(str::to_owned).collect()
}

fn as_user(command: &mut Command, fake: &FakeAws, commands: &[&str]) {
    let rights = rights(commands);
    let rights: Vec<&str> = rights.iter().map(String::as_str).collect();
    fake.add_principal(Principal::new("AKIAROTATOR", "rotator", "rotator").allow(&rights));
    command.env("AWS_ACCESS_KEY_ID", "AKIAROTATOR").env("AWS_SECRET_ACCESS_KEY", "rotator");
}

#[test]
fn the_rights_in_the_manual_are_those_that_are_needed() {
    let rotating = ["key add", "key rewrap", "key rotate"];
    let bed = mounted();
    let command = rotate(&bed, &["--period-days", "90"]);
    as_user(command, &bed.fake, &rotating);
    assert_eq!(answered(command)["rotation"], "successor");
    let mut command =
        retire(&bed, &bed.key, &["--no-backups", "--yes", "--schedule-deletion", "7"]);
    as_user(&mut command, &bed.fake, &["key retire"]);
    assert_eq!(answered(&mut command)["disabled"], true);
    let fake = FakeAws::start();
    let key = fake.create_key(Origin::Kms);
    let bed = with_files(Bed::on(fake, key, &[]));
    let command = rotate(&bed, &["--period-days", "90"]);
    as_user(command, &bed.fake, &rotating);
    assert_eq!(answered(command)["rotation"], "kms");
}
