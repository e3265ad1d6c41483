//! umount, status and sync on real mounts. Needs /dev/fuse, and fusermount3 unless run as root.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::*;

/// A mount that goes away with the test.
struct Mounted {
    scratch: Scratch,
    point: PathBuf,
}

impl Mounted {
    fn new() -> Self {
        let scratch = Scratch::with_volume();
        let point = scratch.path("mount point");
        fs::create_dir(&point).unwrap();
        run(MOUNT, &[&scratch.volume(), &point]).ok();
        Self { scratch, point }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if is_mounted(&self.point) {
            ctl!("umount", self.point, "--lazy");
        }
    }
}

fn is_mounted(point: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let point = point.to_str().unwrap().replace(' ', "\\040");
    table.lines().any(|line| line.split(' ').nth(4) == Some(&point))
}

#[test]
fn a_volume_is_mounted_looked_at_synced_and_unmounted() {
    let mount = Mounted::new();
    let (dir, point) = (mount.scratch.volume(), &mount.point);
    fs::write(point.join("file"), b"content").unwrap();
    let facts = ctl!("status", point, "--json").json();
    assert_eq!(facts["source"], dir.to_str().unwrap());
    assert_eq!(facts["access"], "rw");
    let text = ctl!("status", point).ok();
    assert!(text.contains("source") && text.contains(dir.to_str().unwrap()), "{text}");
    ctl!("sync", point).ok();
    let stored = |e: fs::DirEntry| e.metadata().is_ok_and(|m| m.len() == 4096 + 7);
    assert!(fs::read_dir(&dir).unwrap().any(|e| stored(e.unwrap())), "sync wrote nothing");
    ctl!("verify", dir).refused(14, &["in use"]);
    run(MOUNT, &[&dir, &mount.scratch.point()]).refused(14, &["in use"]);

    let held = File::open(point.join("file")).unwrap();
    let me = format!("({})", std::process::id());
    ctl!("umount", point).refused(1, &["is busy", &me, "--lazy"]);
    drop(held);
    ctl!("umount", point).ok();
    assert!(!is_mounted(point) && !dir.join("kmsfs.session").exists());
    // The daemon has ended: the volume is free at once.
    ctl!("verify", dir).ok();
    assert_eq!(ctl!("cat", dir, "file").ok(), "content");
}

#[test]
fn a_dead_daemon_is_named_and_cleared() {
    let mount = Mounted::new();
    let point = &mount.point;
    let pid = ctl!("status", point, "--json").json()["pid"].to_string();
    assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    let mut gone = Command::new("tail");
    let waited = gone.args(["-f", "/dev/null", "--pid", &pid]).stdin(Stdio::null()).status();
    assert!(waited.unwrap().success());
    ctl!("status", point).refused(1, &["has died", "umount"]);
    ctl!("umount", point).ok();
    assert!(!is_mounted(point));
    run(MOUNT, &[&mount.scratch.volume(), point]).ok();
    ctl!("umount", point).ok();
}

#[test]
fn what_is_not_mounted_is_said_so() {
    let scratch = Scratch::with_volume();
    for command in ["umount", "status", "sync"] {
        ctl!(command, scratch.volume()).refused(15, &["no kmsfs is mounted"]);
        ctl!(command, "/proc").refused(15, &["no kmsfs is mounted"]);
        ctl!(command, scratch.path("none").join("x")).refused(15, &[]);
    }
}

#[test]
fn mount_points_inside_the_volume_or_in_use_are_refused() {
    let scratch = Scratch::with_volume();
    let dir = scratch.volume();
    let inside = dir.join("inside");
    fs::create_dir(&inside).unwrap();
    run(MOUNT, &[&dir, &inside]).refused(15, &[]);
    run(MOUNT, &[&dir, &dir]).refused(15, &[]);
    run(MOUNT, &[&dir, &scratch.path("missing")]).refused(15, &["missing"]);
    let full = scratch.path("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("x"), "x").unwrap();
    run(MOUNT, &[&dir, &full]).refused(15, &["full"]);
}
