//! init, info, cat, export, and what is refused.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};

use kmsfs::fs::{Access, SetAttr, SetTime};

use crate::support::*;

#[test]
fn init_prints_the_volume_and_the_next_step() {
    let scratch = Scratch::new();
    let spec = format!("keyfile:{}", scratch.key().display());
    let said = ctl!("init", scratch.volume(), "--key", spec).ok();
    let info = ctl!("info", scratch.volume(), "--json").json_ok();
    let id = info["volume_id"].as_str().unwrap();
    assert!(said.contains(id) && said.contains("Next: kmsfs "), "{said}");
    assert_eq!(info["names"], "encrypted");
    assert_eq!(info["files_per_data_key"], 256);
    assert_eq!(info["unlock"][0]["kind"], "keyfile");
    assert_eq!(info["unlock"][0]["path"], scratch.key().to_str().unwrap());
    assert_eq!(info["authenticated"], false);
    assert_eq!(fs::metadata(scratch.volume()).unwrap().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(scratch.key()).unwrap().mode() & 0o777, 0o600);
    let dirfile = fs::metadata(scratch.volume().join("kmsfs.dir")).unwrap();
    assert_eq!((dirfile.len(), dirfile.mode() & 0o777), (128, 0o444));
    assert_eq!(fs::read_dir(scratch.volume()).unwrap().count(), 2);
    let known = ctl!("info", scratch.volume(), "--json", "--keyfile", scratch.key()).json_ok();
    assert_eq!(known["authenticated"], true);
}

#[test]
fn init_takes_its_parameters() {
    let scratch = Scratch::new();
    let (dir, spec) = (scratch.volume(), format!("keyfile:{}", scratch.key().display()));
    let id = "00112233445566778899aabbccddeeff";
    let made = ctl!(
        "init",
        dir,
        "--key",
        spec,
        "--volume-id",
        id,
        "--names",
        "plain",
        "--header-blocks",
        "2",
        "--files-per-data-key",
        "1",
        "--json"
    )
    .json_ok();
    assert_eq!(made["volume_id"], id);
    let info = ctl!("info", dir, "--json").json_ok();
    assert_eq!((&info["volume_id"], &info["names"]), (&id.into(), &"plain".into()));
    assert_eq!((&info["header_blocks"], &info["files_per_data_key"]), (&2.into(), &1.into()));
    scratch.fill(|volume| drop(write_file(volume, ROOT, "in clear", b"secret")));
    let stored = fs::read(dir.join("in clear")).unwrap();
    assert_eq!(stored.len(), 2 * 4096 + 6);
    assert!(!stored.windows(6).any(|w| w == b"secret"));
    assert_eq!(ctl!("cat", dir, "in clear").ok(), "secret");
}

#[test]
fn init_refuses_what_is_not_empty_or_a_volume_already() {
    let scratch = Scratch::with_volume();
    let spec = format!("keyfile:{}", scratch.key().display());
    ctl!("init", scratch.volume(), "--key", spec).refused(1, &["is a kmsfs volume already"]);
    let full = scratch.path("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("letter"), "x").unwrap();
    ctl!("init", full, "--key", spec).refused(1, &["is not empty"]);
    assert_eq!(fs::read_dir(&full).unwrap().count(), 1);
    let (new, inside) = (scratch.path("new"), scratch.path("new/volume.key"));
    let said = ctl!("init", new, "--key", format!("keyfile:{}", inside.display()));
    said.refused(1, &["inside the volume"]);
    assert_eq!(fs::read_dir(&new).unwrap().count(), 0);
    let bad = ["init", "x", "--key", "passwort"];
    assert_eq!(run(CTL, &[&bad[0], &bad[1], &bad[2], &bad[3]]).code, 2);
    assert_eq!(ctl!("init", scratch.path("n"), "--key", spec, "--volume-id", "12").code, 2);
    assert_eq!(ctl!("init", scratch.path("n"), "--key", spec, "--header-blocks", "3").code, 2);
    assert_eq!(ctl!("no-such-command").code, 2);
    assert!(!scratch.path("n").exists());
}

#[test]
fn what_is_no_volume_is_refused_by_every_command() {
    let scratch = Scratch::new();
    let (empty, missing) = (scratch.path("empty"), scratch.path("missing"));
    fs::create_dir(&empty).unwrap();
    for dir in [&empty, &missing] {
        ctl!("verify", dir).refused(10, &[dir.to_str().unwrap()]);
        ctl!("cat", dir, "x").refused(10, &[]);
        ctl!("export", dir, scratch.path("out")).refused(10, &[]);
        ctl!("key", "change-passphrase", dir).refused(10, &[]);
        run(MOUNT, &[dir, &scratch.point()]).refused(10, &[]);
    }
    ctl!("info", empty).refused(10, &["is not a kmsfs volume"]);
    assert!(!scratch.path("out").exists());
}

#[test]
fn descriptors_that_cannot_be_trusted_are_refused() {
    let scratch = Scratch::with_volume();
    let good = fs::read(scratch.descriptor()).unwrap();
    let try_with = |bytes: &[u8], says: &[&str]| {
        fs::write(scratch.descriptor(), bytes).unwrap();
        ctl!("verify", scratch.volume()).refused(13, says);
        ctl!("cat", scratch.volume(), "x").refused(13, says);
        run(MOUNT, &[&scratch.volume(), &scratch.point()]).refused(13, says);
    };
    let mut newer = good.clone();
    newer[8] = 2;
    try_with(&newer, &["version 2", "newer"]);
    try_with(&with_feature(&good, "time-travel"), &["time-travel"]);
    try_with(&good[..good.len() - 1], &["kmsfs.volume"]);
    try_with(b"", &["kmsfs.volume"]);
    // A parameter that is legal in itself: only the MAC tells.
    let mut forged = good.clone();
    let at = record(&good, 2) + 8 + 4;
    assert_eq!(good[at..at + 4], 256u32.to_le_bytes());
    forged[at + 1] = 2;
    try_with(&forged, &["authentication failed"]);
    fs::write(scratch.descriptor(), &good).unwrap();
    ctl!("verify", scratch.volume()).ok();
}

/// Where the first record of this type or a later one stands.
fn record(descriptor: &[u8], wanted: u16) -> usize {
    let mut at = 16;
    while u16::from_le_bytes([descriptor[at], descriptor[at + 1]]) < wanted {
        let len = u32::from_le_bytes(descriptor[at + 4..at + 8].try_into().unwrap());
        at += 8 + len as usize;
    }
    at
}

/// Puts an incompatible feature in front of the first master slot.
fn with_feature(descriptor: &[u8], name: &str) -> Vec<u8> {
    let at = record(descriptor, 6);
    let record = [&[5, 0, 0, 0], &(name.len() as u32).to_le_bytes()[..], name.as_bytes()].concat();
    let mut with = [&descriptor[..at], &record, &descriptor[at..]].concat();
    let total = with.len() as u32;
    with[12..16].copy_from_slice(&total.to_le_bytes());
    with
}

#[test]
fn a_volume_in_use_is_left_alone() {
    let scratch = Scratch::with_volume();
    let dir = scratch.volume();
    let writer = scratch.open(Access::ReadWrite);
    ctl!("verify", dir).refused(14, &["in use"]);
    ctl!("cat", dir, "x").refused(14, &["in use"]);
    ctl!("export", dir, scratch.path("out")).refused(14, &["in use"]);
    ctl!("key", "add", dir, format!("x25519:{}", "11".repeat(32))).refused(14, &["in use"]);
    // Reading the descriptor disturbs nobody.
    ctl!("info", dir).ok();
    writer.shutdown().unwrap();
    drop(writer);
    let reader = scratch.open(Access::ReadOnly);
    ctl!("verify", dir).ok();
    ctl!("key", "change-passphrase", dir).refused(14, &["in use"]);
    drop(reader);
}

#[test]
fn cat_prints_exactly_the_file() {
    let scratch = Scratch::with_volume();
    let content = bytes(3 << 20);
    scratch.fill(|volume| {
        let dir = volume.mkdir(me(), ROOT, b"dir", 0o755, 0).unwrap().ino;
        write_file(volume, dir, "big", &content);
        volume.symlink(me(), dir, b"up", b"../dir/big").unwrap();
        volume.symlink(me(), dir, b"out", b"/etc/passwd").unwrap();
        volume.symlink(me(), dir, b"loop", b"loop").unwrap();
    });
    let dir = scratch.volume();
    for path in ["dir/big", "/dir/big", "dir/./up", "../dir/big"] {
        let printed = Command::new(CTL).arg("cat").arg(&dir).arg(path).output().unwrap();
        assert!(printed.status.success() && printed.stdout == content, "{path}");
    }
    ctl!("cat", dir, "dir/none").refused(1, &["dir/none", "No such file"]);
    ctl!("cat", dir, "dir").refused(1, &["not a regular file"]);
    ctl!("cat", dir, "dir/out").refused(1, &["leads out of the volume"]);
    ctl!("cat", dir, "dir/loop").refused(1, &["dir/loop"]);
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let scratch = Scratch::with_volume();
    scratch.fill(|volume| drop(write_file(volume, ROOT, "big", &bytes(4 << 20))));
    let mut child = Command::new(CTL)
        .arg("cat")
        .args([scratch.volume().as_os_str(), "big".as_ref()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 10];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.err.as_str()), (1, ""));
}

#[test]
fn info_shows_the_header_of_a_backing_file() {
    let scratch = Scratch::with_volume();
    let mut stored = Default::default();
    scratch.fill(|volume| {
        stored = write_file(volume, ROOT, "file", &bytes(5000)).1;
        volume.mknod(me(), ROOT, b"never written", libc::S_IFREG | 0o644, 0, 0).unwrap();
    });
    let path = scratch.volume().join(stored);
    let facts = ctl!("info", path, "--json").json_ok();
    assert_eq!((&facts["size"], &facts["backing_size"]), (&5000.into(), &9096.into()));
    assert_eq!(facts["recipients"][0]["kind"], "local-master");
    assert_eq!(facts["authenticated"], false);
    let text = ctl!("info", path, "--keyfile", scratch.key()).ok();
    assert!(text.contains("5000 bytes") && text.contains("authenticated        yes"), "{text}");
    flip(&path, 72);
    ctl!("info", path, "--keyfile", scratch.key()).refused(17, &["authentication failed"]);
    ctl!("info", scratch.key()).refused(10, &["does not stand in a kmsfs volume"]);
    let empty = fs::read_dir(scratch.volume())
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.metadata().unwrap().len() == 0)
        .unwrap();
    ctl!("info", empty).refused(1, &["never written"]);
}

#[test]
fn export_copies_everything_a_tree_has() {
    let scratch = Scratch::with_volume();
    let content = bytes(700_000);
    scratch.fill(|volume| {
        let dir = volume.mkdir(me(), ROOT, b"dir", 0o751, 0).unwrap().ino;
        let (file, _) = write_file(volume, dir, "file", &content);
        volume.link(file, ROOT, b"link").unwrap();
        volume.setxattr(me(), file, b"user.color", b"blue", 0).unwrap();
        volume.symlink(me(), dir, b"symlink", b"../link").unwrap();
        volume.mknod(me(), dir, b"fifo", libc::S_IFIFO | 0o600, 0, 0).unwrap();
        write_file(volume, dir, &"n".repeat(255), b"long name");
        let (sparse, opened) = volume.create(me(), dir, b"sparse", 0o644, 0, libc::O_RDWR).unwrap();
        volume.write(opened.fh, 16 << 20, b"end", kmsfs::fs::WriteHow::Direct).unwrap();
        volume.release(opened.fh);
        for (ino, mode, time) in [(file, 0o4640, (1_000, 7)), (sparse.ino, 0o400, (2_000, 0))] {
            let at = Some(SetTime::At(time));
            let changes = SetAttr { mode: Some(mode), atime: at, mtime: at, ..SetAttr::default() };
            volume.setattr(me(), ino, None, changes).unwrap();
        }
        let changes = SetAttr { mtime: Some(SetTime::At((3_000, 9))), ..SetAttr::default() };
        volume.setattr(me(), dir, None, changes).unwrap();
    });
    // Any copy will do.
    let copy = scratch.path("copy");
    assert!(
        Command::new("cp")
            .arg("-a")
            .args([scratch.volume(), copy.clone()])
            .status()
            .unwrap()
            .success()
    );
    let out = scratch.path("out");
    let said = ctl!("export", copy, out, "--keyfile", scratch.key()).ok();
    assert!(said.contains("3 files"), "{said}");

    let (dir, file) = (out.join("dir"), out.join("dir/file"));
    assert_eq!(fs::read(&file).unwrap(), content);
    assert_eq!(fs::read(dir.join("n".repeat(255))).unwrap(), b"long name");
    let meta = fs::metadata(&file).unwrap();
    assert_eq!((meta.nlink(), meta.ino()), (2, fs::metadata(out.join("link")).unwrap().ino()));
    assert_eq!((meta.mode() & 0o7777, meta.mtime(), meta.mtime_nsec()), (0o4640, 1_000, 7));
    let sparse = fs::metadata(dir.join("sparse")).unwrap();
    assert_eq!((sparse.len(), sparse.mode() & 0o777), ((16 << 20) + 3, 0o400));
    assert!(sparse.blocks() * 512 < 1 << 20, "the hole was filled: {} blocks", sparse.blocks());
    assert_eq!(fs::read_link(dir.join("symlink")).unwrap().to_str(), Some("../link"));
    let above = fs::metadata(&dir).unwrap();
    assert_eq!((above.permissions().mode() & 0o777, above.mtime()), (0o751, 3_000));
    let mut value = [0; 16];
    let len = rustix::fs::getxattr(&file, "user.color", &mut value[..]).unwrap();
    assert_eq!(&value[..len], b"blue");
    ctl!("export", copy, out, "--keyfile", scratch.key()).refused(1, &["is not empty"]);
    let inside = copy.join("out");
    ctl!("export", copy, inside, "--keyfile", scratch.key()).refused(1, &["inside the volume"]);
    assert!(!inside.exists());
}

trait JsonOk {
    fn json_ok(self) -> serde_json::Value;
}

impl JsonOk for Ran {
    #[track_caller]
    fn json_ok(self) -> serde_json::Value {
        let json = self.json();
        self.ok();
        json
    }
}
