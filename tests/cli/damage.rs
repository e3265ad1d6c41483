//! verify, cat and export on damaged volumes: every damage is listed, nothing stops at the first.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::support::*;

/// `(path, reason)` of everything `verify` reports.
fn verify(scratch: &Scratch) -> Vec<(String, String)> {
    let ran = ctl!("verify", scratch.volume(), "--json");
    let report = ran.json();
    let damaged = report["damaged"].as_array().unwrap();
    assert_eq!(ran.code, if damaged.is_empty() { 0 } else { 17 }, "{}", ran.err);
    let text = |v: &serde_json::Value, name: &str| v[name].as_str().unwrap().to_owned();
    damaged
        .iter()
        .map(|line| {
            assert!(!text(line, "backing").is_empty() || text(line, "path") == "/");
            (text(line, "path"), text(line, "reason"))
        })
        .collect()
}

#[track_caller]
fn assert_one(found: &[(String, String)], path: &str, says: &str) {
    let hits = found.iter().filter(|(p, reason)| p == path && reason.contains(says)).count();
    assert_eq!(hits, 1, "{path}: {says:?} in {found:#?}");
}

#[test]
fn a_sound_volume_passes() {
    let scratch = Scratch::with_volume();
    scratch.fill(|volume| {
        let dir = volume.mkdir(me(), ROOT, b"dir", 0o755, 0).unwrap().ino;
        let (file, _) = write_file(volume, dir, "file", &bytes(2 << 20));
        volume.link(file, ROOT, b"again").unwrap();
        volume.setxattr(me(), file, b"user.a", b"b", 0).unwrap();
        volume
            .setxattr(me(), dir, format!("user.{}", "x".repeat(200)).as_bytes(), b"b", 0)
            .unwrap();
        write_file(volume, dir, &"l".repeat(255), b"");
        volume.symlink(me(), dir, b"short", b"x").unwrap();
        volume.symlink(me(), dir, b"long", &[b'x'; 4000]).unwrap();
        volume.mknod(me(), dir, b"never", libc::S_IFREG | 0o644, 0, 0).unwrap();
    });
    assert_eq!(verify(&scratch), []);
    let report = ctl!("verify", scratch.volume(), "--json").json();
    let count = |name: &str| report[name].as_u64().unwrap();
    assert_eq!((count("files"), count("directories"), count("symlinks")), (3, 2, 2));
    let said = ctl!("verify", scratch.volume(), "--threads", "1").ok();
    assert!(said.starts_with("checked 3 files (") && said.ends_with("; 0 damaged\n"), "{said}");
}

#[test]
fn every_kind_of_damage_is_found_in_one_run() {
    let scratch = Scratch::with_volume();
    let mut at: Vec<PathBuf> = Vec::new();
    let (mut sealed_dir, mut lost_dir) = (PathBuf::new(), PathBuf::new());
    scratch.fill(|volume| {
        let mut add =
            |parent, name: &str, len| at.push(write_file(volume, parent, name, &bytes(len)).1);
        add(ROOT, "sound", 10_000);
        add(ROOT, "chunk", 10_000);
        add(ROOT, "header", 10_000);
        add(ROOT, "short", 10_000);
        add(ROOT, "tree", 900_000);
        add(ROOT, &"n".repeat(250), 10);
        let dir = volume.mkdir(me(), ROOT, b"forged", 0o755, 0).unwrap().ino;
        add(dir, "inside", 10_000);
        let lost = volume.mkdir(me(), ROOT, b"lost", 0o755, 0).unwrap().ino;
        add(lost, "inside", 10_000);
        (sealed_dir, lost_dir) = (volume.backing_path(dir), volume.backing_path(lost));
    });
    let root = scratch.volume();
    let chunk0 = 4096;
    flip(&root.join(&at[1]), chunk0 + 100);
    flip(&root.join(&at[2]), 33);
    fs::OpenOptions::new().write(true).open(root.join(&at[3])).unwrap().set_len(9_000).unwrap();
    // The first tag block stands after the header and 64 chunks.
    flip(&root.join(&at[4]), 65 * 4096 + 5);
    fs::remove_file(root.join(format!("{}.name", at[5].display()))).unwrap();
    flip(&root.join(&sealed_dir).join("kmsfs.dir"), 20);
    fs::remove_file(root.join(&lost_dir).join("kmsfs.dir")).unwrap();
    fs::write(root.join("kmsfs.long.stray.name"), b"x").unwrap();
    fs::write(root.join("kmsfs.what"), b"x").unwrap();
    fs::write(root.join("bm90IG91cnM"), b"").unwrap();

    let found = verify(&scratch);
    assert_one(&found, "/chunk", "chunk 0 does not authenticate");
    assert_one(&found, "/header", "authentication failed");
    assert_one(&found, "/short", "9000 bytes");
    assert_one(&found, "/tree", "tree block level 0 index 0");
    let long = format!("/<{}>", at[5].display());
    assert_one(&found, &long, ".name file beside it");
    assert_one(&found, "/forged", "kmsfs.dir: authentication failed");
    assert_one(&found, "/lost", "kmsfs.dir is missing");
    assert_one(&found, "/<kmsfs.long.stray.name>", "stray");
    assert_one(&found, "/<kmsfs.what>", "stray");
    assert_one(&found, "/<bm90IG91cnM>", "the name does not decrypt");
    assert_eq!(found.len(), 10, "{found:#?}");

    let ran = ctl!("verify", root).refused(17, &["damage in 10 places"]);
    let line = format!("damaged: /chunk (backing file {}): chunk 0", at[1].display());
    assert!(ran.out.contains(&line), "{}", ran.out);
    assert!(ran.out.contains("checked 9 files"), "{}", ran.out);
}

#[test]
fn damaged_links_and_attributes_are_found() {
    let scratch = Scratch::with_volume();
    let mut link = PathBuf::new();
    scratch.fill(|volume| {
        let ino = volume.symlink(me(), ROOT, b"long", &[b'x'; 4000]).unwrap().ino;
        link = volume.backing_path(ino);
        volume.symlink(me(), ROOT, b"forged", b"target").unwrap();
        let (file, _) = write_file(volume, ROOT, "file", b"content");
        volume.setxattr(me(), file, b"user.a", b"value", 0).unwrap();
    });
    let root = scratch.volume();
    let sidecar = root.join(fs::read_link(root.join(link)).unwrap());
    fs::remove_file(sidecar).unwrap();
    for entry in fs::read_dir(&root).unwrap() {
        let path = entry.unwrap().path();
        let meta = path.symlink_metadata().unwrap();
        if meta.is_symlink() && !points_to_sidecar(&path) {
            fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink("Zm9yZ2Vk", &path).unwrap();
        } else if meta.is_file() && meta.len() == 4096 + 7 {
            damage_attribute(&path);
        }
    }
    let found = verify(&scratch);
    assert_one(&found, "/long", "kmsfs.link file that holds its target is missing");
    assert_one(&found, "/forged", "symlink target does not authenticate");
    assert_one(&found, "/file", "extended attribute user.kmsfs.");
    assert_eq!(found.len(), 3, "{found:#?}");
}

fn points_to_sidecar(path: &Path) -> bool {
    fs::read_link(path).unwrap().to_str().unwrap().starts_with("kmsfs.link.")
}

fn damage_attribute(path: &Path) {
    let mut names = [0; 1024];
    let len = rustix::fs::listxattr(path, &mut names[..]).unwrap();
    let name = std::str::from_utf8(&names[..len - 1]).unwrap();
    let mut value = [0; 256];
    let len = rustix::fs::getxattr(path, name, &mut value[..]).unwrap();
    value[0] ^= 1;
    rustix::fs::setxattr(path, name, &value[..len], rustix::fs::XattrFlags::REPLACE).unwrap();
}

#[test]
fn cat_and_export_refuse_damage_and_export_goes_on() {
    let scratch = Scratch::with_volume();
    let mut stored = PathBuf::new();
    scratch.fill(|volume| {
        let dir = volume.mkdir(me(), ROOT, b"a", 0o755, 0).unwrap().ino;
        stored = write_file(volume, dir, "bad", &bytes(50_000)).1;
        write_file(volume, dir, "good", b"one");
        write_file(volume, ROOT, "later", b"two");
    });
    flip(&scratch.volume().join(&stored), 4096 * 3);
    fs::write(scratch.volume().join("bm90IG91cnM"), b"").unwrap();
    ctl!("cat", scratch.volume(), "a/bad").refused(17, &["a/bad", "does not authenticate"]);
    let out = scratch.path("out");
    let ran = ctl!("export", scratch.volume(), out);
    let ran = ran.refused(17, &["/a/bad", stored.to_str().unwrap(), "does not authenticate"]);
    assert!(ran.out.contains("exported 2 files"), "{}", ran.out);
    assert!(ran.err.contains("bm90IG91cnM): its name does not decrypt"), "{}", ran.err);
    assert!(ran.err.contains("2 objects could not"), "{}", ran.err);
    assert_eq!(fs::read(out.join("a/good")).unwrap(), b"one");
    assert_eq!(fs::read(out.join("later")).unwrap(), b"two");
    assert!(!out.join("a/bad").exists());
}

#[test]
fn a_longer_backing_file_is_a_leftover_and_no_damage() {
    let scratch = Scratch::with_volume();
    let mut stored = PathBuf::new();
    scratch.fill(|volume| stored = write_file(volume, ROOT, "file", b"content").1);
    let path = scratch.volume().join(stored);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(30_000).unwrap();
    let ran = ctl!("verify", scratch.volume(), "--json");
    assert_eq!((ran.code, ran.json()["crash_leftovers"].as_u64()), (0, Some(1)));
    assert_eq!(ctl!("cat", scratch.volume(), "file").ok(), "content");
}
