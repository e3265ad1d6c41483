//! `kmsfsctl doctor` and `kmsfsctl estimate`.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use super::aws::{Connection, Effect, FakeAws, KeyState, Origin, Principal, Rule};
use super::bed::{Bed, ctl, refused, said, text};

/// Exit code of a key that is revoked or cannot be had.
const KEY: i32 = 18;
/// Most calls about one key, even if passing trouble makes some of them go twice.
const CALLS_MAX: u64 = 20;

/// The lines with this level that speak of this.
fn lines<'a>(said: &'a str, level: &str, about: &str) -> Vec<&'a str> {
    let start = format!("{level:<8} {about}:");
    said.lines().filter(|line| line.trim_start_matches("exit status: ").contains(&start)).collect()
}

#[track_caller]
fn has(said: &str, level: &str, about: &str, words: &str) {
    let found = lines(said, level, about);
    assert!(found.iter().any(|line| line.contains(words)), "{level} {about} {words}: {said}");
}

/// What doctor says of a volume it finds fault with.
#[track_caller]
fn ill(bed: &Bed) -> String {
    let said = refused(bed.ctl("doctor", &[]), KEY);
    assert!(bed.fake.calls_total() <= CALLS_MAX, "{} calls", bed.fake.calls_total());
    said
}

#[test]
fn a_good_volume_is_all_well() {
    let mut bed = Bed::new();
    for mounted in [false, true] {
        if mounted {
            bed.mount("");
            bed.make_files("a", 3);
            super::bed::until("the supply", || bed.keys()["supply_ready"] == 1);
        }
        bed.fake.reset_counters();
        let said = said(bed.ctl("doctor", &[]));
        assert!(!said.lines().any(|line| line.starts_with("error")), "{said}");
        has(&said, "ok", "kernel", "Linux");
        has(&said, "ok", "device", "/dev/fuse");
        has(&said, "ok", "mounting", "");
        has(&said, "ok", "directory", if mounted { "mounted now" } else { "not mounted" });
        has(&said, "ok", "descriptor", "generation 1");
        assert!(said.contains("expect-volume=") && said.contains(&bed.key), "{said}");
        has(&said, "ok", "credentials", "…FAKE");
        has(&said, "ok", "endpoint", &bed.fake.endpoint());
        has(&said, "ok", "clock", "within a minute");
        has(&said, "ok", "key state", "Enabled, origin AWS_CLOUDHSM in key store cks-");
        assert_eq!(lines(&said, "ok", "policy: Decrypt").len(), 2, "{said}");
        assert_eq!(lines(&said, "ok", "policy: GenerateDataKey").len(), 2, "{said}");
        has(&said, "ok", "volume key", "ms");
        has(&said, "ok", "round trip", "they agree");
        has(&said, "ok", "encryption context", "refused in another");
        has(&said, "ok", "authenticity", "");
        // One to describe, four dry runs, the volume key, three for the round trip.
        assert_eq!((bed.fake.calls_total(), bed.fake.bad_contexts()), (9, 0));
    }
    bed.read_files("a", 3);
    bed.unmount();
}

#[test]
fn without_a_directory_only_the_machine_is_looked_at() {
    let said = said(&mut ctl(&["doctor"]));
    for about in ["kernel", "device", "mounting", "locked memory", "open files", "swap"] {
        assert_eq!(said.matches(&format!(" {about}: ")).count(), 1, "{about}: {said}");
    }
    assert!(!said.contains("KMS key") && !said.contains("descriptor"), "{said}");
}

#[test]
fn findings_are_data_as_well() {
    let bed = Bed::new();
    let found: Value = serde_json::from_str(&said(bed.ctl("doctor", &["--json"]))).unwrap();
    assert_eq!(found["errors"], 0, "{found:#}");
    let all = found["findings"].as_array().unwrap();
    let round = all.iter().find(|finding| finding["about"] == "round trip").unwrap();
    assert_eq!((&round["level"], &round["key"]), (&"ok".into(), &bed.key.clone().into()));
    assert_eq!(round["area"], "kms");
    bed.fake.set_key_state(&bed.key, KeyState::Disabled);
    let output = bed.ctl("doctor", &["--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(KEY));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["errors"], 1, "{found:#}");
}

#[test]
fn a_disabled_key_can_be_enabled() {
    let bed = Bed::new();
    bed.fake.set_key_state(&bed.key, KeyState::Disabled);
    let said = ill(&bed);
    has(&said, "error", "key state", "Disabled");
    assert!(
        said.contains(&format!("enable-key --region us-east-1 --key-id {}", bed.key)),
        "{said}"
    );
    assert!(lines(&said, "ok", "round trip").is_empty(), "{said}");
    assert_eq!(bed.fake.calls_total(), 1, "the rest would say the same");
}

#[test]
fn a_key_pending_deletion_can_be_saved() {
    let bed = Bed::new();
    bed.fake.set_key_state(&bed.key, KeyState::PendingDeletion);
    let said = ill(&bed);
    has(&said, "error", "key state", "PendingDeletion");
    assert!(said.contains("cancel-key-deletion"), "{said}");
}

#[test]
fn a_disconnected_store_can_be_connected() {
    let bed = Bed::new();
    let store = bed.fake.store_of(&bed.key).unwrap();
    bed.fake.set_store(&store, Connection::Disconnected);
    let said = ill(&bed);
    has(&said, "error", "key state", "Unavailable");
    let cure = format!("connect-custom-key-store --region us-east-1 --custom-key-store-id {store}");
    assert!(said.contains(&cure), "{said}");
}

#[test]
fn a_cluster_out_of_reach_is_told_as_such() {
    let bed = Bed::new();
    let store = bed.fake.store_of(&bed.key).unwrap();
    bed.fake.set_store_communicates(&store, false);
    let said = ill(&bed);
    has(&said, "ok", "key state", "Enabled");
    has(&said, "error", "policy: Decrypt", "cannot communicate with your CloudHSM cluster");
}

/// What a mount's role may lack, and what only `init` and `key` would want.
#[test]
fn denials_name_the_permission() {
    let bed = Bed::new();
    bed.fake.deny("Decrypt");
    let said = ill(&bed);
    assert_eq!(lines(&said, "error", "policy: Decrypt").len(), 2, "{said}");
    has(&said, "ok", "policy: GenerateDataKey", "allowed");
    assert!(said.contains("allow kms:Decrypt on this key"), "{said}");
    has(&said, "note", "round trip", "not tried");
    has(&said, "note", "authenticity", "not checked");

    bed.fake.clear_faults();
    bed.fake.reset_counters();
    bed.fake.deny("GenerateDataKey");
    let said = ill(&bed);
    has(&said, "error", "policy: GenerateDataKey", "kmsfs:purpose=data");
    has(&said, "note", "policy: GenerateDataKey", "kmsfs:purpose=volume");
    assert!(said.contains("only a read-only mount"), "{said}");
    has(&said, "ok", "volume key", "unwrapped");
    has(&said, "ok", "authenticity", "");
}

#[test]
fn a_role_bound_to_the_volume_is_all_a_mount_needs() {
    let bed = Bed::new();
    let info: Value = serde_json::from_str(&said(bed.ctl("info", &["--json"]))).unwrap();
    let role = Principal::new("AKIAROLEROLEROLEROLE", "secret", "role")
        .allow(&["Decrypt", "GenerateDataKey"])
        .only_with("kmsfs:volume", info["volume_id"].as_str().unwrap());
    bed.fake.add_principal(role);
    let command = bed.ctl("doctor", &[]);
    command.env("AWS_ACCESS_KEY_ID", "AKIAROLEROLEROLEROLE");
    let said = said(command.env("AWS_SECRET_ACCESS_KEY", "secret"));
    has(&said, "note", "key state", "DescribeKey is not allowed");
    has(&said, "ok", "credentials", "…ROLE");
    has(&said, "ok", "round trip", "they agree");
}

#[test]
fn expired_credentials_and_none() {
    let bed = Bed::new();
    bed.fake.expire_credentials(true);
    let found = ill(&bed);
    has(&found, "error", "credentials", "ExpiredToken");
    has(&found, "ok", "endpoint", "127.0.0.1");
    assert!(found.contains("renew them"), "{found}");
    assert_eq!(bed.fake.calls_total(), 1);

    bed.fake.expire_credentials(false);
    bed.fake.reset_counters();
    let command = bed.ctl("doctor", &[]);
    command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    let found = refused(command, KEY);
    has(&found, "error", "credentials", "no AWS credentials");
    has(&found, "note", "endpoint", "not asked");
    assert_eq!(bed.fake.calls_total(), 0);
}

#[test]
fn an_endpoint_that_refuses_is_named() {
    let bed = Bed::new();
    bed.fake.refuse_connections(true);
    let said = ill(&bed);
    has(&said, "error", "endpoint", &bed.fake.endpoint());
    assert!(said.contains("check --kms-endpoint"), "{said}");
    has(&said, "ok", "credentials", "…FAKE");
    assert_eq!(said.matches("\nerror ").count(), 1, "told once: {said}");
}

#[test]
fn an_endpoint_that_hangs_is_given_up() {
    let bed = Bed::new();
    bed.fake.hang(true);
    let said = refused(bed.ctl("doctor", &["--kms-deadline", "300ms"]), KEY);
    has(&said, "error", "endpoint", "no answer within 0.3 s");
    assert_eq!(bed.fake.in_flight().max(bed.fake.calls("DescribeKey")), 2, "{said}");
}

#[test]
fn passing_trouble_is_sat_out_and_calls_are_bounded() {
    let bed = Bed::new();
    for operation in ["DescribeKey", "Decrypt", "GenerateDataKey"] {
        bed.fake.fault(Rule::new(Effect::internal()).on(operation).times(1));
    }
    said(bed.ctl("doctor", &[]));
    assert_eq!(bed.fake.calls_total(), 12, "three of nine were asked twice");
    bed.fake.reset_counters();
    bed.fake.throttle(true);
    let said = ill(&bed);
    has(&said, "error", "key state", "ThrottlingException");
    assert_eq!(bed.fake.calls_total(), 2);
}

#[test]
fn clocks_are_compared() {
    let bed = Bed::new();
    bed.fake.set_clock(120);
    let found = said(bed.ctl("doctor", &[]));
    has(&found, "warning", "clock", "behind AWS's");
    bed.fake.set_clock(-1000);
    bed.fake.reset_counters();
    let found = ill(&bed);
    has(&found, "error", "clock", "ahead of AWS's");
    has(&found, "error", "credentials", "InvalidSignatureException");
}

#[test]
fn every_kms_key_is_looked_at_and_the_second_has_to_wrap() {
    let fake = FakeAws::start();
    fake.set_strict_context(true);
    let (first, second) = (fake.create_key(Origin::Kms), fake.create_multi_region_key());
    let bed = Bed::on(fake, first, &["--recipient", &format!("aws-kms:{second}")]);
    let found = said(bed.ctl("doctor", &[]));
    assert_eq!(lines(&found, "ok", "round trip").len(), 2, "{found}");
    assert_eq!(lines(&found, "ok", "policy: Encrypt").len(), 2, "{found}");
    has(&found, "ok", "key state", "origin AWS_KMS, multi-Region");
    bed.fake.reset_counters();
    bed.fake.fault(Rule::new(Effect::Deny).on("Encrypt").key(&second));
    let found = refused(bed.ctl("doctor", &[]), KEY);
    has(&found, "error", "policy: Encrypt", "kmsfs:purpose=data");
    assert!(bed.fake.calls_total() <= 2 * CALLS_MAX);
}

/// After two dry runs comes the volume key itself.
#[test]
fn a_copy_of_the_volume_key_that_does_not_unwrap() {
    let bed = Bed::new();
    bed.fake.fault(Rule::new(Effect::Error(invalid_ciphertext())).on("Decrypt").after(2).times(1));
    let said = ill(&bed);
    has(&said, "error", "volume key", "InvalidCiphertextException");
    has(&said, "ok", "round trip", "they agree");
    has(&said, "note", "authenticity", "not checked");
}

fn invalid_ciphertext() -> super::aws::Fault {
    super::aws::Fault {
        status: 400,
        code: "InvalidCiphertextException".into(),
        message: String::new(),
    }
}

#[test]
fn a_damaged_descriptor_is_told_before_any_key() {
    let bed = Bed::new();
    let place = bed.source().join("kmsfs.volume");
    let sound = fs::read(&place).unwrap();
    fs::write(&place, &sound[..sound.len() - 5]).unwrap();
    let said = refused(bed.ctl("doctor", &[]), 13);
    has(&said, "error", "descriptor", "refused");
    assert!(said.contains("from a backup"), "{said}");
    assert_eq!(bed.fake.calls_total(), 0);
    // A forged one parses, and its MAC gives it away.
    let mut forged = sound.clone();
    *forged.last_mut().unwrap() ^= 1;
    fs::write(&place, forged).unwrap();
    let said = refused(bed.ctl("doctor", &[]), 13);
    has(&said, "error", "authenticity", "without the keys");
    fs::remove_file(&place).unwrap();
    let said = refused(bed.ctl("doctor", &[]), 10);
    has(&said, "error", "directory", "not a kmsfs volume");
}

#[test]
fn a_mount_point_is_not_the_volume() {
    let mut bed = Bed::new();
    bed.mount("");
    let said = refused(ctl(&["doctor"]).arg(bed.point()), 10);
    has(&said, "error", "directory", "is where a volume is mounted");
    assert!(said.contains(bed.source().to_str().unwrap()), "{said}");
    bed.unmount();
}

/// A volume with a key file, and the command that examines it.
fn local(init: &[&str]) -> (TempDir, Command) {
    let dir = TempDir::with_prefix("kmsfs-doctor-").unwrap();
    let key = format!("keyfile:{}", dir.path().join("key").display());
    said(ctl(&["init", "--key", &key]).args(init).arg(dir.path().join("v")));
    let mut doctor = ctl(&["doctor"]);
    doctor.arg(dir.path().join("v"));
    (dir, doctor)
}

#[test]
fn key_files_are_tried() {
    let (dir, mut doctor) = local(&[]);
    let key = dir.path().join("key");
    let found = said(&mut doctor);
    has(&found, "ok", "key file", "opens the volume");
    has(&found, "ok", "authenticity", "");

    fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    let found = refused(&mut doctor, 12);
    has(&found, "error", "key file", "run: chmod 600");
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();

    fs::rename(&key, dir.path().join("elsewhere")).unwrap();
    let found = refused(&mut doctor, 12);
    has(&found, "error", "key file", "does not exist");
    said(doctor.arg("--keyfile").arg(dir.path().join("elsewhere")));

    let (other, _) = local(&[]);
    fs::copy(other.path().join("key"), &key).unwrap();
    let found = refused(ctl(&["doctor"]).arg(dir.path().join("v")), 12);
    has(&found, "error", "key file", "not a key file of this volume");
}

#[test]
fn beside_a_kms_key_a_missing_key_file_is_a_warning() {
    let dir = TempDir::with_prefix("kmsfs-doctor-").unwrap();
    let file = format!("keyfile:{}", dir.path().join("key").display());
    let fake = FakeAws::start();
    let key = fake.create_key(Origin::Kms);
    let bed = Bed::on(fake, key, &["--recipient", &file]);
    has(&said(bed.ctl("doctor", &[])), "ok", "key file", "opens");
    fs::remove_file(dir.path().join("key")).unwrap();
    has(&said(bed.ctl("doctor", &[])), "warning", "key file", "does not exist");
}

fn json(command: &mut Command) -> Value {
    serde_json::from_str(&said(command)).unwrap()
}

/// `work`, files per data key, calls, units.
fn rows(estimate: &Value) -> Vec<(String, u64, u64, u64)> {
    let number = |row: &Value, name: &str| row[name].as_u64().unwrap();
    let row = |row: &Value| {
        let work = row["work"].as_str().unwrap().to_owned();
        (work, number(row, "files_per_data_key"), number(row, "calls"), number(row, "units"))
    };
    estimate["work"].as_array().unwrap().iter().map(row).collect()
}

#[test]
fn a_thousand_files_to_be_migrated() {
    let dir = TempDir::with_prefix("kmsfs-estimate-").unwrap();
    for i in 0..1000 {
        let place = dir.path().join((i % 7).to_string());
        fs::create_dir_all(&place).unwrap();
        fs::write(place.join(i.to_string()), [7; 10]).unwrap();
    }
    fs::write(dir.path().join("empty"), "").unwrap();
    std::os::unix::fs::symlink(dir.path(), dir.path().join("0/loop")).unwrap();
    let command = || {
        let mut command = ctl(&["estimate"]);
        command.arg(dir.path());
        command
    };
    let found = json(command().args(["--json", "--files-per-data-key", "16"]));
    assert_eq!((&found["kind"], &found["files"]), (&"plain".into(), &1000.into()));
    assert_eq!((&found["empty_files"], &found["bytes"]), (&1.into(), &10_000.into()));
    let expected = [(16, 63), (1, 1000), (256, 4)].map(|(share, keys)| {
        [("create", keys * 3), ("read", keys), ("rewrap", keys)]
            .map(|(work, units)| (work.to_owned(), share, keys, units))
    });
    assert_eq!(rows(&found), expected.concat());
    let strict = &found["work"][3];
    for (name, value) in
        [("dollars", 0.003), ("seconds_at_quota", 3000.0 / 900.0), ("seconds_in_sequence", 20.0)]
    {
        assert!((strict[name].as_f64().unwrap() - value).abs() < 1e-9, "{name}: {strict}");
    }
    let options = ["--json", "--price-per-10000", "1", "--rate", "100", "--latency-ms", "5"];
    let found = json(command().args(options));
    assert_eq!(rows(&found).len(), 6, "256 and 1");
    let strict = &found["work"][3];
    for (name, value) in
        [("dollars", 0.1), ("seconds_at_quota", 30.0), ("seconds_in_sequence", 5.0)]
    {
        assert!((strict[name].as_f64().unwrap() - value).abs() < 1e-9, "{name}: {strict}");
    }
    let text = said(&mut command());
    for words in ["1000", "--price-per-10000", "if in a CloudHSM store", "43800 calls"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    refused(command().args(["--files-per-data-key", "0"]), 2);
    refused(ctl(&["estimate"]).arg(dir.path().join("nowhere")), 1);
}

/// The estimate of reading everything is the number of calls that reading everything makes.
#[test]
fn a_volume_is_counted_exactly() {
    const FILES: usize = 100;
    let mut bed = Bed::with(&["--files-per-data-key", "16"]);
    bed.mount("");
    bed.make_files("a", FILES);
    fs::create_dir(bed.at("d")).unwrap();
    fs::write(bed.at(format!("d/{}", "long".repeat(60))), "x").unwrap();
    fs::hard_link(bed.at("a-00000"), bed.at("again")).unwrap();
    fs::write(bed.at("empty"), "").unwrap();
    bed.remount("ro");
    bed.fake.reset_counters();
    let source = bed.source();
    let command = || {
        let mut command = ctl(&["estimate", "--json"]);
        command.arg(&source);
        command
    };
    let found = json(&mut command());
    assert_eq!(bed.fake.calls_total(), 0, "nobody is asked");
    assert_eq!((&found["kind"], &found["files"]), (&"volume".into(), &101.into()));
    assert_eq!((&found["empty_files"], &found["kms_keys"]), (&1.into(), &1.into()));
    assert_eq!((&found["data_keys"], &found["headers_unreadable"]), (&7.into(), &0.into()));
    let row = |work: &str, calls, units| (work.to_owned(), 16, calls, units);
    assert_eq!(rows(&found), [row("create", 7, 21), row("read", 7, 7), row("rewrap", 7, 7)]);
    let strict = json(command().args(["--files-per-data-key", "1"]));
    assert_eq!(rows(&strict)[0], ("create".into(), 1, 101, 303));
    assert_eq!(rows(&strict)[1].2, 7, "what is wrapped is wrapped");
    bed.read_files("a", FILES);
    fs::read(bed.at(format!("d/{}", "long".repeat(60)))).unwrap();
    assert_eq!(bed.fake.calls("Decrypt"), 7);
    bed.unmount();
    let broken = fs::read_dir(bed.source()).unwrap().map(|entry| entry.unwrap()).find(|entry| {
        entry.metadata().unwrap().len() > 4096 && !entry.file_name().to_str().unwrap().contains('.')
    });
    fs::write(broken.unwrap().path(), "no header").unwrap();
    let found = json(&mut command());
    assert_eq!((&found["headers_unreadable"], &found["files"]), (&1.into(), &100.into()));
    let output = ctl(&["estimate"]).arg(bed.source()).output().unwrap();
    assert!(text(&output).contains("1 files, not counted"), "{}", text(&output));
}
