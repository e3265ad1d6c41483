//! Several keys on one volume: any one opens it; they come and go without the bodies being touched.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::aws::{FakeAws, KeyState, Origin, Principal};
use super::bed::{Bed, ctl, errno, refused, said, until};

/// A second KMS in another Region, and a key in it.
fn abroad() -> (FakeAws, String) {
    let fake = FakeAws::start_in("eu-central-1");
    fake.set_strict_context(true);
    let key = fake.create_key(Origin::Kms);
    (fake, key)
}

fn endpoint(fake: &FakeAws) -> String {
    format!("{}={}", fake.region(), fake.endpoint())
}

/// Bodies (what stands behind the header), lengths and times of the backing files.
fn bodies(source: &Path) -> Vec<(Vec<u8>, u64, (i64, i64))> {
    let files = fs::read_dir(source).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        files.filter(|p| !p.file_name().unwrap().to_string_lossy().starts_with("kmsfs.")).collect();
    files.sort();
    let body = |path: &std::path::PathBuf| {
        let (bytes, meta) = (fs::read(path).unwrap(), fs::metadata(path).unwrap());
        (bytes[4096..].to_vec(), meta.len(), (meta.mtime(), meta.mtime_nsec()))
    };
    files.iter().map(body).collect()
}

#[test]
fn the_second_region_opens_when_the_first_is_away() {
    let (other, second) = abroad();
    let fake = FakeAws::start();
    let first = fake.create_key(Origin::CloudHsm);
    let (recipient, to) = (format!("aws-kms:{second}"), endpoint(&other));
    let mut bed = Bed::on(fake, first, &["--recipient", &recipient, "--kms-endpoint", &to]);
    let options = format!("kms-endpoint={to},kms-deadline=500ms");
    bed.mount(&options);
    bed.make_files("a", 3);
    // The first makes the keys, the second wraps them.
    assert_eq!((bed.fake.calls("Encrypt"), other.calls("GenerateDataKey")), (0, 0));
    assert!(bed.fake.calls("GenerateDataKey") >= 1 && other.calls("Encrypt") >= 1);
    bed.unmount();
    other.reset_counters();
    bed.mount(&options);
    bed.read_files("a", 3);
    assert_eq!(other.calls("Decrypt"), 0, "the first is asked first");
    bed.unmount();

    bed.fake.refuse_connections(true);
    bed.mount(&options);
    bed.read_files("a", 3);
    assert!(other.calls("Decrypt") >= 2);
    // New files need a copy for each.
    assert_eq!(errno(fs::write(bed.at("new"), b"x")), libc::ENOKEY);
    bed.fake.refuse_connections(false);
    until("the first", || fs::write(bed.at("new"), b"x").is_ok());
    bed.unmount();

    // Switched off is an answer: the next one is not asked.
    bed.fake.set_key_state(&bed.key, KeyState::Disabled);
    other.reset_counters();
    let said = refused(&mut bed.mount_command(&options), 18);
    assert!(said.contains("DisabledException") && said.contains(&bed.key), "{said}");
    assert_eq!(other.calls_total(), 0);
}

#[test]
fn a_key_file_opens_when_no_kms_does() {
    let fake = FakeAws::start();
    let key = fake.create_key(Origin::CloudHsm);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rescue").display().to_string();
    let mut bed = Bed::on(fake, key, &["--recipient", &format!("keyfile:{file}")]);
    bed.mount("");
    bed.make_files("a", 3);
    bed.unmount();
    bed.fake.refuse_connections(true);
    bed.mount(&format!("keyfile={file},kms-deadline=500ms"));
    bed.read_files("a", 3);
    bed.unmount();
    // Also when the key was switched off: its owner gave the key file out for that.
    bed.fake.refuse_connections(false);
    bed.fake.set_key_state(&bed.key, KeyState::Disabled);
    bed.mount(&format!("keyfile={file}"));
    bed.read_files("a", 3);
    bed.unmount();
    bed.fake.set_key_state(&bed.key, KeyState::Enabled);

    // Locked away, it is not needed to open files, and said to be missing for new ones.
    fs::rename(&file, dir.path().join("away")).unwrap();
    bed.mount("");
    bed.read_files("a", 3);
    assert_eq!(errno(fs::write(bed.at("new"), b"x")), libc::ENOKEY);
    assert!(bed.log().contains("local master key is not at hand"), "{}", bed.log());
}

#[test]
fn an_offline_identity_opens_what_the_kms_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let identity = dir.path().join("id").display().to_string();
    let public = said(&mut ctl(&["key", "generate", "--out", &identity]));
    let mut bed = Bed::with(&["--recipient", public.trim()]);
    bed.mount("");
    bed.make_files("a", 2);
    bed.unmount();
    bed.fake.set_key_state(&bed.key, KeyState::PendingDeletion);
    bed.mount(&format!("ro,identity={identity}"));
    bed.read_files("a", 2);
    bed.unmount();
}

#[test]
fn keys_come_and_go_and_bodies_stay() {
    let mut bed = Bed::new();
    bed.mount("");
    bed.make_files("a", 20);
    fs::write(bed.at("large"), vec![7; 1_000_000]).unwrap();
    bed.unmount();
    let before = bodies(&bed.source());
    let second = bed.fake.create_key(Origin::Kms);
    let spec = format!("aws-kms:{second}");
    bed.fake.reset_counters();
    let told = said(bed.ctl("key add", &[&spec]));
    assert!(told.contains("21 of 21 file headers rewritten"), "{told}");
    // The volume key and the one data key that all files share.
    assert_eq!((bed.fake.calls("Encrypt"), bed.fake.calls("ReEncrypt")), (1, 1));
    assert!(bed.fake.calls_total() <= 5);
    assert!(said(bed.ctl("key add", &[&spec])).contains("Nothing to change"));
    let first = format!("aws-kms:{}", bed.key);
    let told = said(bed.ctl("key remove", &[&first]));
    assert!(told.contains("21 of 21"), "{told}");
    assert!(bodies(&bed.source()) == before, "bodies, lengths or times have changed");
    bed.fake.set_key_state(&bed.key, KeyState::Disabled);
    bed.mount(&format!("expect-key={second}"));
    bed.read_files("a", 20);
    fs::write(bed.at("new"), b"x").unwrap();
    bed.unmount();
    let told = refused(bed.ctl("key remove", &[&spec]), 12);
    assert!(told.contains("last recipient"), "{told}");
}

#[test]
fn a_volume_moves_from_a_key_file_to_kms_and_back() {
    let fake = FakeAws::start();
    let key = fake.create_key(Origin::CloudHsm);
    let mut bed = Bed::on(fake, key, &[]);
    let file = bed.path("k").display().to_string();
    bed.mount("");
    bed.make_files("a", 4);
    bed.unmount();
    let told = said(bed.ctl("key add", &[&format!("keyfile:{file}")]));
    assert!(told.contains("4 of 4"), "{told}");
    said(bed.ctl("key remove", &[&format!("aws-kms:{}", bed.key), "--keyfile", &file]));
    bed.fake.reset_counters();
    bed.mount("");
    bed.read_files("a", 4);
    assert_eq!(bed.fake.calls_total(), 0);
    bed.unmount();
    said(bed.ctl("key add", &[&format!("aws-kms:{}", bed.key)]));
    let told = said(bed.ctl("key remove", &[&format!("keyfile:{file}")]));
    assert!(told.contains("4 of 4"), "{told}");
    fs::remove_file(file).unwrap();
    bed.mount("");
    bed.read_files("a", 4);
    bed.unmount();
}

#[test]
fn what_is_stored_is_the_key_an_alias_stands_for() {
    let fake = FakeAws::start();
    let key = fake.create_key(Origin::Kms);
    fake.set_alias("alias/files", &key);
    let alias = key
        .replace(key.split_once("key/").map_or("", |(_, id)| id), "")
        .replace("key/", "alias/files");
    let mut bed = Bed::on(fake, alias, &[]);
    assert!(said(bed.ctl("info", &["--json"])).contains(&key));
    let other = bed.fake.create_key(Origin::Kms);
    bed.fake.set_alias("alias/files", &other);
    bed.mount(&format!("expect-key={key}"));
    bed.make_files("a", 2);
    assert_eq!(bed.fake.calls_of_key(&other), 0);
    bed.unmount();
}

#[test]
fn large_wrapped_keys_get_larger_headers() {
    for (blob, blocks) in [(184, 1), (2000, 2), (4000, 4)] {
        let fake = FakeAws::start();
        fake.set_blob_len(blob);
        let key = fake.create_key(Origin::CloudHsm);
        let mut bed = Bed::on(fake, key, &[]);
        let info: serde_json::Value =
            serde_json::from_str(&said(bed.ctl("info", &["--json"]))).unwrap();
        assert_eq!(info["header_blocks"], blocks, "{blob}");
        bed.mount("");
        bed.make_files("a", 2);
        bed.remount("");
        bed.read_files("a", 2);
    }
}

/// A role that may open files, but make none.
#[test]
fn rights_are_what_the_policy_says() {
    let mut bed = Bed::new();
    bed.mount("");
    bed.make_files("a", 2);
    bed.unmount();
    bed.fake.add_principal(Principal::new("AKIAREADER", "reader", "reader").allow(&["Decrypt"]));
    let mut mount = bed.mount_command("probe-interval=1s");
    mount.env("AWS_ACCESS_KEY_ID", "AKIAREADER").env("AWS_SECRET_ACCESS_KEY", "reader");
    bed.mount_with(&mut mount);
    bed.read_files("a", 2);
    assert_eq!(errno(fs::write(bed.at("new"), b"x")), libc::EKEYREVOKED);
    assert!(bed.log().contains("AccessDeniedException") && bed.log().contains("GenerateDataKey"));
    // Which is no revocation: the volume key is still granted.
    bed.fake.reset_counters();
    until("two probes", || bed.fake.calls_ok("Decrypt") >= 2);
    bed.read_files("a", 2);
    assert_eq!(bed.keys()["state"], "granted");
}

/// The last local key goes only if the KMS opens the volume without it.
#[test]
fn the_only_key_that_works_is_not_removed() {
    let mut bed = Bed::new();
    bed.mount("");
    bed.make_files("a", 3);
    bed.unmount();
    let file = bed.path("k").display().to_string();
    let spec = format!("keyfile:{file}");
    said(bed.ctl("key add", &[&spec]));
    // Again finishes what may have been interrupted.
    assert!(said(bed.ctl("key add", &[&spec])).contains("Nothing to change"));
    let before = fs::read(bed.source().join("kmsfs.volume")).unwrap();
    bed.fake.refuse_connections(true);
    let short = ["--kms-deadline", "300ms", "--keyfile", &file];
    let told = refused(bed.ctl("key remove", &[&[&*spec], &short[..]].concat()), 18);
    assert!(told.contains("nothing was changed"), "{told}");
    assert!(fs::read(bed.source().join("kmsfs.volume")).unwrap() == before);
    said(bed.ctl("verify", &["--keyfile", &file]));
    bed.fake.refuse_connections(false);
    // Named, and gone afterwards: the sweep goes by the KMS.
    let told = said(bed.ctl("key remove", &[&[&*spec], &short[..]].concat()));
    assert!(told.contains("3 of 3 file headers rewritten"), "{told}");
    assert!(said(bed.ctl("key remove", &[&spec])).contains("Nothing to change"));
    fs::remove_file(file).unwrap();
    said(bed.ctl("verify", &[]));
}
