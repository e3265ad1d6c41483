//! A backing directory that somebody else can write: what he plants there reaches nothing outside
//! it, and what he puts back is noticed as far as SECURITY.md says.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use crate::support::*;
use kmsfs::format::descriptor::{Descriptor, MasterKdf};

fn new_name(scratch: &Scratch) -> PathBuf {
    scratch.volume().join("kmsfs.volume.new")
}

/// A change of keys that needs nothing but the volume's key file.
fn change(scratch: &Scratch) -> Ran {
    let other = format!("keyfile:{}", scratch.path("other.key").display());
    ctl!("key", "add", scratch.volume(), other)
}

fn is_plain_file(path: &Path) -> bool {
    path.symlink_metadata().unwrap().is_file()
}

#[test]
fn a_planted_link_is_replaced_and_never_followed() {
    let scratch = Scratch::with_volume();
    let victim = scratch.secret_file("victim", "precious");
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o644)).unwrap();
    symlink(&victim, new_name(&scratch)).unwrap();
    change(&scratch).ok();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    assert_eq!(fs::metadata(&victim).unwrap().mode() & 0o777, 0o644);
    assert!(is_plain_file(&scratch.descriptor()) && !new_name(&scratch).exists());
    ctl!("verify", scratch.volume()).ok();

    let second = scratch.path("second");
    fs::hard_link(&victim, new_name(&scratch)).unwrap();
    let spec = format!("keyfile:{}", second.display());
    ctl!("key", "add", scratch.volume(), spec).ok();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
}

#[test]
fn a_planted_pipe_or_directory_does_not_stop_or_fool_a_change() {
    let scratch = Scratch::with_volume();
    let kind = rustix::fs::FileType::Fifo;
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, new_name(&scratch), kind, mode, 0).unwrap();
    change(&scratch).ok();
    assert!(is_plain_file(&scratch.descriptor()));

    let before = fs::read(scratch.descriptor()).unwrap();
    fs::create_dir(new_name(&scratch)).unwrap();
    let third = format!("keyfile:{}", scratch.path("third").display());
    ctl!("key", "add", scratch.volume(), third).refused(1, &["kmsfs.volume.new"]);
    assert_eq!(fs::read(scratch.descriptor()).unwrap(), before);
}

#[test]
fn init_follows_no_link_either() {
    let scratch = Scratch::new();
    let victim = scratch.secret_file("victim", "precious");
    fs::create_dir(scratch.volume()).unwrap();
    symlink(&victim, scratch.volume().join("kmsfs.dir")).unwrap();
    symlink(&victim, new_name(&scratch)).unwrap();
    let spec = format!("keyfile:{}", scratch.key().display());
    ctl!("init", scratch.volume(), "--key", spec).ok();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    assert!(is_plain_file(&scratch.volume().join("kmsfs.dir")));
}

#[test]
fn a_change_of_keys_keeps_owner_and_mode_of_the_descriptor() {
    let scratch = Scratch::with_volume();
    let path = scratch.descriptor();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let mut owner = { (fs::metadata(&path).unwrap().uid(), fs::metadata(&path).unwrap().gid()) };
    if me().uid == 0 {
        owner = (1234, 4321);
        chown(&path, Some(1234), Some(4321)).unwrap();
    }
    change(&scratch).ok();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.uid(), meta.gid()), owner);
    assert_eq!(meta.mode() & 0o7777, 0o640);
}

#[test]
fn text_from_a_descriptor_cannot_drive_the_terminal() {
    let scratch = Scratch::new();
    let key = scratch.path("ke\u{1b}[31my");
    let spec = format!("keyfile:{}", key.display());
    ctl!("init", scratch.volume(), "--key", spec).ok();
    let text = ctl!("info", scratch.volume()).ok();
    assert!(!text.contains('\u{1b}'), "{text}");
    fs::remove_file(&key).unwrap();
    let ran = ctl!("verify", scratch.volume()).refused(12, &[]);
    assert!(!ran.err.contains('\u{1b}'), "{}", ran.err);
    let ran = ctl!("verify", scratch.volume(), "--keyfile", key).refused(12, &[]);
    assert!(!ran.err.contains('\u{1b}'), "{}", ran.err);
}

/// Plain names whose stored form says something impossible.
const PLANTED: [&str; 5] =
    ["kmsfs.esc.", "kmsfs.esc..", "kmsfs.esc...", "kmsfs.esc.a", "kmsfs.esc.kmsfs"];

#[test]
fn planted_names_that_nothing_can_have_are_reported_and_do_not_stop_an_export() {
    let scratch = Scratch::new();
    let spec = format!("keyfile:{}", scratch.key().display());
    ctl!("init", scratch.volume(), "--key", spec, "--names", "plain").ok();
    scratch.fill(|volume| {
        write_file(volume, ROOT, "a", b"content");
        write_file(volume, ROOT, "kmsfs.own", b"escaped");
    });
    for name in PLANTED {
        fs::write(scratch.volume().join(name), b"").unwrap();
    }
    let ran = ctl!("verify", scratch.volume()).refused(17, &["damage in 5 places"]);
    for name in PLANTED {
        assert!(ran.out.contains(&format!("/<{name}> ")), "{name}: {}", ran.out);
    }
    let out = scratch.path("out");
    let ran = ctl!("export", scratch.volume(), out).refused(17, &["kmsfs.esc.a"]);
    assert!(ran.out.contains("exported 2 files"), "{}", ran.out);
    assert_eq!(fs::read(out.join("a")).unwrap(), b"content");
    assert_eq!(fs::read(out.join("kmsfs.own")).unwrap(), b"escaped");
}

/// The only attribute of the only regular file with one.
fn attribute(root: &Path) -> (PathBuf, String, Vec<u8>) {
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        let mut names = [0; 1024];
        let len = rustix::fs::llistxattr(&path, &mut names[..]).unwrap_or(0);
        let ours = |n: &&[u8]| n.windows(6).any(|w| w == b"kmsfs.");
        if let Some(name) = names[..len].split(|b| *b == 0).find(ours) {
            let name = String::from_utf8(name.to_vec()).unwrap();
            let mut value = [0; 2048];
            let len = rustix::fs::lgetxattr(&path, &name, &mut value[..]).unwrap();
            return (path, name, value[..len].to_vec());
        }
    }
    panic!("no attribute in {}", root.display());
}

fn put_attribute(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

#[test]
fn an_attribute_under_another_prefix_or_another_long_name_is_left_out_and_reported() {
    let long = format!("user.{}", "x".repeat(200));
    let mut cases = vec![(long.clone(), "user.kmsfs.", "user.kmsfs.long.")];
    if me().uid == 0 {
        cases.push(("trusted.foo".to_owned(), "trusted.kmsfs.", "user.kmsfs."));
        cases.push(("user.foo".to_owned(), "user.kmsfs.", "trusted.kmsfs."));
    }
    for (name, from, to) in cases {
        let scratch = Scratch::with_volume();
        let mut file = 0;
        scratch.fill(|volume| {
            file = write_file(volume, ROOT, "file", b"content").0;
            volume.setxattr(me(), file, name.as_bytes(), b"value", 0).unwrap();
        });
        let (path, stored, value) = attribute(&scratch.volume());
        rustix::fs::lremovexattr(&path, &stored).unwrap();
        let moved = match name == long {
            // Another hash than that of the name inside.
            true => format!("{to}{}", "A".repeat(43)),
            false => stored.replacen(from, to, 1),
        };
        put_attribute(&path, &moved, &value);
        let volume = scratch.open(kmsfs::fs::Access::ReadOnly);
        let ino = volume.lookup(ROOT, b"file").unwrap().ino;
        assert_eq!(volume.listxattr(me(), ino).unwrap(), b"", "{name}");
        drop(volume);
        let ran = ctl!("verify", scratch.volume()).refused(17, &["damage in 1 place"]);
        assert!(ran.out.contains("extended attribute"), "{}", ran.out);
    }
}

/// The parsed descriptor of a volume.
fn descriptor(scratch: &Scratch) -> Descriptor {
    Descriptor::parse(&fs::read(scratch.descriptor()).unwrap()).unwrap().0
}

#[test]
fn the_hint_of_a_key_file_with_control_characters_is_not_kept() {
    let scratch = Scratch::new();
    let spec = format!("keyfile:{}", scratch.path("a\nb").display());
    ctl!("init", scratch.volume(), "--key", spec).ok();
    let slot = descriptor(&scratch).masters.remove(0);
    assert_eq!((slot.kdf, slot.hint.as_str()), (MasterKdf::Keyfile, ""));
}

#[test]
fn an_older_descriptor_is_noticed_by_the_files_that_have_seen_a_newer_one() {
    let scratch = Scratch::with_volume();
    let (dir, saved) = (scratch.volume(), scratch.path("saved"));
    scratch.fill(|volume| drop(write_file(volume, ROOT, "file", b"content")));
    let generation = || ctl!("info", dir, "--json").json()["generation"].as_u64();
    assert_eq!(generation(), Some(1));
    fs::copy(scratch.descriptor(), &saved).unwrap();
    let identity = scratch.path("identity");
    let public = ctl!("key", "generate", "--out", identity).ok();
    assert!(ctl!("key", "add", dir, public.trim()).ok().contains("generation 2"));
    assert_eq!(ctl!("key", "remove", dir, public.trim(), "--json").json()["generation"], 3);
    assert!(ctl!("info", dir).ok().contains("generation           3\n"));
    ctl!("verify", dir).ok();

    fs::copy(&saved, scratch.descriptor()).unwrap();
    assert_eq!(generation(), Some(1));
    ctl!("cat", dir, "file").refused(17, &["file", "rolled back"]);
    let ran = ctl!("verify", dir).refused(17, &["damage in 1 place"]);
    assert!(ran.out.contains("damaged: /file") && ran.out.contains("rolled back"), "{}", ran.out);
    // Nor are the recipients of the old one spread.
    let before = fs::read(scratch.descriptor()).unwrap();
    ctl!("key", "add", dir, public.trim()).refused(17, &["rolled back", "nothing was changed"]);
    ctl!("key", "add", dir, public.trim()).refused(17, &["rolled back", "nothing was changed"]);
    assert_eq!(fs::read(scratch.descriptor()).unwrap(), before);
    let point = scratch.point();
    let pin = |n: &str| run(MOUNT, &[&dir, &point, &"-o", &format!("expect-generation={n}")]);
    pin("3").refused(1, &["generation 1", "at least 3", "older copy"]);
    pin("0").refused(2, &["generation"]);
    assert!(!dir.join("kmsfs.session").exists());
}
