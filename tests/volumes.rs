//! The volumes that a released format must open for ever: the script that makes them works, and what
//! it made is read back without a mount by each of their keys.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sha2::{Digest, Sha256};

const KMSFSCTL: &str = env!("CARGO_BIN_EXE_kmsfsctl");

fn ok(mut command: Command) -> Output {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    output
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A line of MANIFEST without its path.
fn line(path: &Path) -> String {
    let facts = fs::symlink_metadata(path).unwrap();
    let (kind, content) = match facts.file_type() {
        // As stat(1) calls them.
        kind if kind.is_file() && facts.len() == 0 => ("regular_empty_file", Some(Vec::new())),
        kind if kind.is_file() => ("regular_file", Some(fs::read(path).unwrap())),
        kind if kind.is_dir() => ("directory", None),
        kind if kind.is_fifo() => ("fifo", None),
        kind if kind.is_symlink() => {
            let target = fs::read_link(path).unwrap();
            ("symbolic_link", Some(target.into_os_string().into_encoded_bytes()))
        }
        kind => panic!("{}: {kind:?}", path.display()),
    };
    let size = if facts.is_file() { facts.len().to_string() } else { "-".into() };
    let sum = content.map_or("-".into(), |content| hex(&Sha256::digest(content)));
    format!("{kind} {size} {:o} {sum}", facts.permissions().mode() & 0o7777)
}

/// Path to line, of everything below a directory.
fn manifest(dir: &Path, below: &[u8], all: &mut BTreeMap<Vec<u8>, String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let path = [below, b"/", entry.file_name().as_encoded_bytes()].concat();
        all.insert(path.clone(), line(&entry.path()));
        if entry.file_type().unwrap().is_dir() {
            manifest(&entry.path(), &path, all);
        }
    }
}

/// What MANIFEST says, in the same form.
fn promised(list: &Path) -> BTreeMap<Vec<u8>, String> {
    let text = fs::read(list).unwrap();
    let lines = text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    let parsed = lines.map(|line| {
        let parts: Vec<_> = line.splitn(5, |&byte| byte == b' ').collect();
        (parts[4].to_vec(), String::from_utf8(parts[..4].join(&b' ')).unwrap())
    });
    parsed.collect()
}

fn attribute(path: &Path, name: &str) -> Vec<u8> {
    let mut value = [0; 100];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
    value[..length].to_vec()
}

/// The set as the script makes it now.
fn made(scratch: &Path) -> PathBuf {
    let set = scratch.join("set");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/volumes/make.sh");
    let mut make = Command::new("bash");
    make.arg(script).arg(&set).env("KMSFS_BIN", Path::new(KMSFSCTL).parent().unwrap());
    ok(make);
    set
}

/// A frozen set, unpacked.
fn unpacked(scratch: &Path, version: &str) -> PathBuf {
    let set = scratch.join("set");
    let frozen = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/volumes").join(version);
    let mut copy = Command::new("cp");
    copy.arg("-r").arg(&frozen).arg(&set);
    ok(copy);
    for name in ["encrypted", "plain", "crashed"] {
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--gzip", "--xattrs", "--same-permissions", "--directory"]);
        tar.arg(&set).arg("--file").arg(set.join(format!("{name}.tar.gz")));
        ok(tar);
    }
    for key in ["volume.key", "crashed.key", "passphrase", "identity"] {
        fs::set_permissions(set.join(key), fs::Permissions::from_mode(0o600)).unwrap();
    }
    set
}

#[test]
fn the_volumes_to_be_frozen_are_made_and_open() {
    let scratch = tempfile::tempdir().unwrap();
    check(scratch.path(), &made(scratch.path()));
}

#[test]
fn the_frozen_volumes_of_format_1_open_for_ever() {
    let scratch = tempfile::tempdir().unwrap();
    check(scratch.path(), &unpacked(scratch.path(), "v1"));
}

/// The crashed volume as it is recovered, by reading it and by recovering it first.
fn check_crashed(scratch: &Path, set: &Path) {
    let promised = promised(&set.join("MANIFEST.crashed"));
    let ctl = |command: &str| {
        let mut ctl = Command::new(KMSFSCTL);
        ctl.arg(command).arg(set.join("crashed")).arg("--keyfile").arg(set.join("crashed.key"));
        ctl
    };
    for recovered in ["no", "yes"] {
        let out = scratch.join(format!("crashed-{recovered}"));
        let mut export = ctl("export");
        export.arg(&out);
        ok(export);
        let mut found = BTreeMap::new();
        manifest(&out, b".", &mut found);
        assert!(found == promised, "recovered: {recovered}");
        ok(ctl("verify"));
        if recovered == "no" {
            let said = String::from_utf8(ok(ctl("recover")).stdout).unwrap();
            assert!(said.contains("files recovered"), "{said}");
        }
    }
}

fn check(scratch: &Path, set: &Path) {
    check_crashed(scratch, set);
    let promised = promised(&set.join("MANIFEST"));
    assert!(promised.len() > 20, "{promised:?}");
    for names in ["encrypted", "plain"] {
        // A copy: where the files lie means nothing.
        let volume = scratch.join(format!("copy-{names}"));
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(set.join(names)).arg(&volume);
        ok(copy);
        for (option, key) in [
            ("--keyfile", "volume.key"),
            ("--passphrase-file", "passphrase"),
            ("--identity", "identity"),
        ] {
            let out = scratch.join(format!("out-{names}-{key}"));
            let ctl = |command: &str| {
                let mut ctl = Command::new(KMSFSCTL);
                ctl.arg(command).arg(&volume).arg(option).arg(set.join(key));
                ctl
            };
            ok(ctl("verify"));
            let mut export = ctl("export");
            export.arg(&out);
            ok(export);
            let mut found = BTreeMap::new();
            manifest(&out, b".", &mut found);
            for (path, promised) in &promised {
                let path_shown = String::from_utf8_lossy(path);
                assert_eq!(found.get(path), Some(promised), "{names}, {key}: {path_shown}");
            }
            assert_eq!(found.len(), promised.len(), "{names}, opened with {key}: more than made");
            assert_eq!(attribute(&out.join("size-1"), "user.short"), b"value");
            let long = format!("user.{}", "n".repeat(200));
            assert_eq!(attribute(&out.join("size-1"), &long), b"long");
            assert_eq!(attribute(&out.join("deep"), "user.dir"), b"on-a-directory");
        }
    }
}
