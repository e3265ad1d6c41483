//! Volumes whose daemon was killed: what every command says and shows before and after recovery, and
//! that looking changes nothing.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use kmsfs::fs::Access;

use crate::support::*;

/// A volume with plain names whose daemon was killed, and what it leaves.
pub struct Crashed {
    pub scratch: Scratch,
}

impl Crashed {
    /// Runs `before` on a mount that ends well, then `work` on one whose daemon is killed.
    pub fn after<T>(before: impl FnOnce(&Path), work: impl FnOnce(&Path) -> T) -> Self {
        let scratch = Scratch::new();
        let spec = format!("keyfile:{}", scratch.key().display());
        ctl!("init", scratch.volume(), "--key", spec, "--names", "plain").ok();
        let crashed = Self { scratch };
        let point = crashed.mount();
        before(&point);
        ctl!("umount", point).ok();
        crashed.go_on(work);
        crashed
    }

    /// Mounts again, which recovers, works, and kills once more. What `work` returns is kept until
    /// the daemon is dead.
    pub fn go_on<T>(&self, work: impl FnOnce(&Path) -> T) {
        let point = self.mount();
        let pid = ctl!("status", point, "--json").json()["pid"].to_string();
        let mut end = Ended(Some((pid, point.clone())));
        let kept = work(&point);
        end.kill();
        drop(kept);
        end.clear();
    }

    fn mount(&self) -> PathBuf {
        let point = self.scratch.point();
        // Without the kernel's cache every change reaches the daemon at once.
        run(MOUNT, &[&self.dir(), &point, &"-o", &"writeback=no"]).ok();
        point
    }

    /// The backing directory.
    pub fn dir(&self) -> PathBuf {
        self.scratch.volume()
    }

    /// Journals there, by name.
    pub fn journals(&self) -> Vec<PathBuf> {
        let all = fs::read_dir(self.dir()).unwrap().map(|e| e.unwrap().path());
        let named =
            |p: &PathBuf| p.file_name().unwrap().to_str().unwrap().starts_with("kmsfs.journal.");
        let mut found: Vec<PathBuf> = all.filter(named).collect();
        found.sort();
        found
    }

    /// The only journal.
    #[track_caller]
    pub fn journal(&self) -> PathBuf {
        let found = self.journals();
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].clone()
    }

    pub fn cat(&self, path: &str) -> String {
        ctl!("cat", self.dir(), path).ok()
    }

    /// `recover --json`, which must succeed.
    #[track_caller]
    pub fn recover(&self) -> serde_json::Value {
        let ran = ctl!("recover", self.dir(), "--json");
        assert_eq!(ran.code, 0, "{}", ran.err);
        ran.json()
    }

    /// Nothing is damaged.
    #[track_caller]
    pub fn sound(&self) {
        let report = ctl!("verify", self.dir(), "--json");
        assert_eq!(report.code, 0, "{} {}", report.out, report.err);
        assert_eq!(report.json()["damaged"], serde_json::json!([]));
    }
}

/// Kills a daemon and clears its mount, at the latest when dropped.
struct Ended(Option<(String, PathBuf)>);

impl Ended {
    fn kill(&self) {
        let Some((pid, _)) = &self.0 else { return };
        let _ = Command::new("kill").args(["-9", pid]).status();
        let mut gone = Command::new("tail");
        let _ = gone.args(["-f", "/dev/null", "--pid", pid]).stdin(Stdio::null()).status();
    }

    fn clear(&mut self) {
        if let Some((_, point)) = self.0.take() {
            ctl!("umount", point).ok();
        }
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.kill();
        if let Some((_, point)) = self.0.take() {
            ctl!("umount", point, "--lazy");
        }
    }
}

/// Writes and fsyncs at an offset, making the file if need be.
pub fn put(path: &Path, offset: u64, data: &[u8]) {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path).unwrap();
    file.write_all_at(data, offset).unwrap();
    file.sync_all().unwrap();
}

pub fn strings(value: &serde_json::Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect()
}

/// Three files with different fates: overwritten, appended to, cut.
pub fn three_files() -> Crashed {
    let before = |at: &Path| {
        for name in ["over", "longer", "shorter"] {
            put(&at.join(name), 0, &b"before".repeat(2000));
        }
    };
    Crashed::after(before, |at| {
        put(&at.join("over"), 5000, b"AFTER");
        put(&at.join("longer"), 12_000, b"AFTER");
        let cut = OpenOptions::new().write(true).open(at.join("shorter")).unwrap();
        cut.set_len(7).unwrap();
        cut.sync_all().unwrap();
    })
}

pub fn expected(name: &str) -> String {
    let mut text = "before".repeat(2000);
    match name {
        "over" => text.replace_range(5000..5005, "AFTER"),
        "longer" => text.push_str("AFTER"),
        "shorter" => text.truncate(7),
        _ => unreachable!(),
    }
    text
}

pub const NAMES: [&str; 3] = ["longer", "over", "shorter"];

/// Content and all times of everything below a directory.
type Picture = BTreeMap<PathBuf, (Vec<u8>, [i64; 6], u32, u64)>;

fn objects(top: &Path) -> Vec<PathBuf> {
    let mut all = vec![top.to_owned()];
    let mut at = 0;
    while at < all.len() {
        if all[at].symlink_metadata().unwrap().is_dir() {
            let mut below: Vec<_> =
                fs::read_dir(&all[at]).unwrap().map(|e| e.unwrap().path()).collect();
            below.sort();
            all.extend(below);
        }
        at += 1;
    }
    all
}

/// Makes every access show: a file read after this gets a new access time.
fn age(top: &Path) {
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    for path in objects(top) {
        let mode = fs::metadata(&path).unwrap().permissions();
        let times = fs::FileTimes::new().set_accessed(long_ago);
        File::open(&path).unwrap().set_times(times).unwrap();
        fs::set_permissions(&path, mode).unwrap();
    }
}

fn picture(top: &Path, paths: &[PathBuf]) -> Picture {
    let take = |path: &PathBuf| {
        let meta = fs::symlink_metadata(path).unwrap();
        let mut content = Vec::new();
        if meta.is_file() {
            let mut quiet = OpenOptions::new();
            quiet.read(true).custom_flags(libc::O_NOATIME);
            quiet.open(path).unwrap().read_to_end(&mut content).unwrap();
        }
        let times = [
            (meta.mtime(), meta.mtime_nsec()),
            (meta.atime(), meta.atime_nsec()),
            (meta.ctime(), meta.ctime_nsec()),
        ];
        let times = [times[0].0, times[0].1, times[1].0, times[1].1, times[2].0, times[2].1];
        let name = path.strip_prefix(top).unwrap().to_owned();
        (name, (content, times, meta.permissions().mode(), meta.ino()))
    };
    paths.iter().map(take).collect()
}

#[test]
fn looking_at_a_crashed_volume_shows_what_was_fsynced_and_changes_nothing() {
    let crashed = three_files();
    let dir = crashed.dir();
    let in_place = fs::read(dir.join("over")).unwrap();
    age(&dir);
    let paths = objects(&dir);
    age(&dir);
    let before = picture(&dir, &paths);

    for name in NAMES {
        assert_eq!(crashed.cat(name), expected(name), "{name}");
    }
    let out = crashed.scratch.path("out");
    let exported = ctl!("export", dir, out, "--json").json();
    assert_eq!((&exported["files"], &exported["problems"]), (&3.into(), &serde_json::json!([])));
    for name in NAMES {
        assert_eq!(fs::read_to_string(out.join(name)).unwrap(), expected(name), "{name}");
    }
    let report = ctl!("verify", dir, "--json");
    assert_eq!(report.code, 0, "{}", report.err);
    let report = report.json();
    assert_eq!(report["in_journal"], 3);
    assert_eq!(strings(&report["journal"]).len(), 1);
    let said = ctl!("verify", dir).ok();
    assert!(said.contains("3 records read, 3 files recovered, 0 unflushed"), "{said}");
    assert!(said.contains("3 files were checked as the journal shows them"), "{said}");
    ctl!("info", dir, "--json").json();

    let point = crashed.scratch.point();
    run(MOUNT, &[&dir, &point, &"-o", &"ro"]).ok();
    let mounted = NAMES.map(|name| fs::read_to_string(point.join(name)));
    ctl!("umount", point).ok();
    for (name, content) in NAMES.iter().zip(mounted) {
        assert_eq!(content.unwrap(), expected(name), "{name}");
    }
    // First the same paths, for listing a directory is an access, too.
    assert_eq!(picture(&dir, &paths), before);
    assert_eq!(objects(&dir), paths);
    assert_eq!(fs::read(dir.join("over")).unwrap(), in_place);
}

#[test]
fn recover_tells_what_it_did_and_then_has_nothing_to_do() {
    let crashed = three_files();
    let said = ctl!("recover", crashed.dir()).ok();
    assert!(
        said.contains("3 records read, 3 files recovered, 0 unflushed records dropped"),
        "{said}"
    );
    assert!(crashed.journals().is_empty());
    let said = ctl!("recover", crashed.dir()).ok();
    assert_eq!(said, "Nothing to recover: there is no journal.\n");
    let none = serde_json::json!([]);
    let facts = crashed.recover();
    for list in ["recovered", "older", "refused"] {
        assert_eq!(facts[list], none, "{list}");
    }
    for count in ["records", "dropped", "removed"] {
        assert_eq!(facts[count], 0, "{count}");
    }
    assert_eq!(facts["journal_damaged"], false);
    crashed.sound();
    for name in NAMES {
        assert_eq!(crashed.cat(name), expected(name), "{name}");
    }
}

#[test]
fn recover_lists_the_files_by_their_backing_paths() {
    let crashed = three_files();
    let facts = crashed.recover();
    let mut recovered = strings(&facts["recovered"]);
    recovered.sort_unstable();
    assert_eq!(recovered, NAMES);
    assert_eq!((&facts["records"], &facts["dropped"]), (&3.into(), &0.into()));
}

/// Sizes and times are right before anything is opened, with and without the session's marker: a
/// copy made while the daemon ended may lack it.
#[test]
fn stat_is_right_before_anything_is_opened() {
    let times = |meta: &fs::Metadata| (meta.len(), meta.mtime(), meta.mtime_nsec());
    for marker in [true, false] {
        let crashed = three_files();
        if !marker {
            fs::remove_file(crashed.dir().join("kmsfs.session")).unwrap();
        }
        let viewed = crashed.scratch.open(Access::ReadOnly);
        let shown = NAMES.map(|name| viewed.lookup(ROOT, name.as_bytes()).unwrap());
        for (name, attr) in NAMES.iter().zip(&shown) {
            assert_eq!(attr.size, expected(name).len() as u64, "{name}, marker {marker}");
        }
        drop(viewed);
        let point = crashed.scratch.point();
        run(MOUNT, &[&crashed.dir(), &point, &"-o", &"ro"]).ok();
        let read_only = NAMES.map(|name| times(&fs::metadata(point.join(name)).unwrap()));
        let content = NAMES.map(|name| fs::read_to_string(point.join(name)));
        ctl!("umount", point).ok();
        run(MOUNT, &[&crashed.dir(), &point]).ok();
        let recovered = NAMES.map(|name| times(&fs::metadata(point.join(name)).unwrap()));
        ctl!("umount", point).ok();
        for (name, content) in NAMES.iter().zip(content) {
            assert_eq!(content.unwrap(), expected(name), "{name}, marker {marker}");
        }
        for (at, attr) in shown.iter().enumerate() {
            let (seconds, nanos) = attr.mtime;
            assert_eq!(read_only[at], (attr.size, seconds, nanos.into()), "{}", NAMES[at]);
        }
        assert_eq!(recovered, read_only);
    }
}

#[test]
fn what_is_written_after_a_recovery_survives_the_next() {
    let crashed = three_files();
    crashed.go_on(|at| {
        assert_eq!(fs::read_to_string(at.join("over")).unwrap(), expected("over"));
        put(&at.join("over"), 0, b"SECOND");
    });
    assert!(crashed.cat("over").starts_with("SECONDbefore"));
    assert_eq!(strings(&crashed.recover()["recovered"]), ["over"]);
    let mut text = expected("over");
    text.replace_range(..6, "SECOND");
    assert_eq!(crashed.cat("over"), text);
    crashed.sound();
}

#[test]
fn a_key_command_recovers_first() {
    let crashed = three_files();
    let identity = crashed.scratch.path("identity");
    let made = ctl!("key", "generate", "--out", identity, "--json").json();
    let public = made["public_key"].as_str().unwrap();
    let swept = ctl!("key", "add", crashed.dir(), public, "--json").json();
    assert_eq!(swept["rewritten"], 3);
    assert!(crashed.journals().is_empty());
    for name in NAMES {
        let opened = ctl!("cat", crashed.dir(), name, "--identity", identity);
        assert_eq!(opened.ok(), expected(name), "{name}");
        assert_eq!(crashed.cat(name), expected(name), "{name}");
    }
    crashed.sound();
}

/// In a copy all files are new, but somebody may have been promised them.
#[test]
fn a_damaged_file_of_a_copied_volume_is_not_taken_for_a_new_one() {
    let before = |at: &Path| put(&at.join("damaged"), 0, &b"before".repeat(2000));
    let crashed = Crashed::after(before, |at| put(&at.join("other"), 0, b"AFTER"));
    for how in ["-a", "-r"] {
        let copy = Crashed { scratch: Scratch::new() };
        let copied = Command::new("cp").arg(how).args([crashed.dir(), copy.dir()]).status();
        assert!(copied.unwrap().success());
        flip(&copy.dir().join("damaged"), 5000);
        let bytes = fs::read(copy.dir().join("damaged")).unwrap();
        let listed = || {
            let report = ctl!("verify", copy.dir(), "--json").json();
            report["damaged"][0]["path"].as_str().map(str::to_owned)
        };
        assert_eq!(listed().as_deref(), Some("/damaged"));
        let point = copy.mount();
        let read = fs::read(point.join("damaged"));
        let other = fs::read(point.join("other"));
        // Waits for the walk over the tree.
        ctl!("umount", point).ok();
        assert_eq!(read.unwrap_err().raw_os_error(), Some(libc::EIO), "cp {how}");
        assert_eq!(other.unwrap(), b"AFTER");
        assert_eq!(fs::read(copy.dir().join("damaged")).unwrap(), bytes, "cp {how}");
        assert_eq!(listed().as_deref(), Some("/damaged"));
    }
}
