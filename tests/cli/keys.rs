//! Key files, passphrases, recipients: what opens a volume, what does not, and what it says.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;

use crate::support::*;

/// A volume with a passphrase, and the file that holds it.
fn passphrase_volume(scratch: &Scratch) -> PathBuf {
    let file = scratch.secret_file("passphrase", "correct horse\n");
    ctl!("init", scratch.volume(), "--key", "passphrase", "--passphrase-file", file).ok();
    file
}

#[test]
fn key_files_must_be_right_and_private() {
    let scratch = Scratch::with_volume();
    let dir = scratch.volume();
    ctl!("verify", dir).ok();
    fs::set_permissions(scratch.key(), fs::Permissions::from_mode(0o644)).unwrap();
    let says = ["volume.key", "chmod 600"];
    ctl!("verify", dir).refused(12, &says);
    run(MOUNT, &[&dir, &scratch.point()]).refused(12, &says);
    fs::set_permissions(scratch.key(), fs::Permissions::from_mode(0o400)).unwrap();
    ctl!("verify", dir).ok();

    let other = Scratch::with_volume();
    ctl!("verify", dir, "--keyfile", other.key()).refused(11, &[other.key().to_str().unwrap()]);
    let text = scratch.secret_file("text", "not a key file\n");
    ctl!("verify", dir, "--keyfile", text).refused(12, &["is not a kmsfs key file"]);
    fs::rename(scratch.key(), scratch.path("moved")).unwrap();
    ctl!("verify", dir).refused(12, &["volume.key"]);
    ctl!("verify", dir, "--keyfile", scratch.path("moved")).ok();
}

#[test]
fn an_existing_key_file_is_used_and_never_overwritten() {
    let scratch = Scratch::with_volume();
    let before = fs::read(scratch.key()).unwrap();
    let (second, spec) = (scratch.path("second"), format!("keyfile:{}", scratch.key().display()));
    ctl!("init", second, "--key", spec).ok();
    assert_eq!(fs::read(scratch.key()).unwrap(), before);
    ctl!("verify", second).ok();
}

#[test]
fn passphrases_open_and_change() {
    let scratch = Scratch::new();
    let file = passphrase_volume(&scratch);
    let dir = scratch.volume();
    let info = ctl!("info", dir, "--json").json();
    assert_eq!(info["unlock"][0]["kind"], "passphrase");
    assert!(info["unlock"][0]["argon2_memory_kib"].as_u64() >= Some(64 * 1024));
    ctl!("verify", dir, "--passphrase-file", file).ok();
    let wrong = scratch.secret_file("wrong", "correct house\n");
    ctl!("verify", dir, "--passphrase-file", wrong).refused(11, &["passphrase"]);
    ctl!("verify", dir, "--passphrase-file", scratch.path("none")).refused(12, &["none"]);
    ctl!("verify", dir).refused(12, &["--passphrase-file"]);

    let tree = |dir: &PathBuf| {
        let names = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
        let mut all: Vec<_> = names.filter(|p| !p.ends_with("kmsfs.volume")).collect();
        all.sort();
        all.into_iter().map(|p| (fs::metadata(&p).unwrap().mtime_nsec(), p)).collect::<Vec<_>>()
    };
    let before = tree(&dir);
    let new = scratch.secret_file("new", "battery staple");
    let change = |old: &PathBuf, new: &PathBuf| {
        let (old, new) = (old.clone(), new.clone());
        ctl!(
            "key",
            "change-passphrase",
            dir,
            "--passphrase-file",
            old,
            "--new-passphrase-file",
            new
        )
    };
    change(&wrong, &new).refused(11, &[]);
    let empty = scratch.secret_file("empty", "\n");
    change(&file, &empty).refused(12, &["empty"]);
    ctl!("verify", dir, "--passphrase-file", file).ok();
    change(&file, &new).ok();
    assert_eq!(tree(&dir), before);
    ctl!("verify", dir, "--passphrase-file", file).refused(11, &[]);
    ctl!("verify", dir, "--passphrase-file", new).ok();
}

#[test]
fn a_second_way_in_can_be_added_and_the_last_stays() {
    let scratch = Scratch::with_volume();
    let (dir, key) = (scratch.volume(), format!("keyfile:{}", scratch.key().display()));
    let file = scratch.secret_file("passphrase", "open sesame");
    ctl!("key", "remove", dir, key).refused(12, &["last"]);
    ctl!("key", "add", dir, "passphrase", "--new-passphrase-file", file).ok();
    ctl!("verify", dir, "--passphrase-file", file).ok();
    ctl!("key", "remove", dir, key).ok();
    ctl!("verify", dir, "--keyfile", scratch.key()).refused(12, &["made for a passphrase"]);
    ctl!("verify", dir, "--passphrase-file", file).ok();
    let again = scratch.path("again.key");
    let spec = format!("keyfile:{}", again.display());
    ctl!("key", "add", dir, spec, "--passphrase-file", file).ok();
    ctl!("verify", dir, "--keyfile", again).ok();
    assert_eq!(fs::metadata(again).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn recipients_open_old_and_new_files_without_touching_bodies() {
    let scratch = Scratch::with_volume();
    let dir = scratch.volume();
    let content = bytes(300_000);
    let mut stored = PathBuf::new();
    scratch.fill(|volume| stored = write_file(volume, ROOT, "old", &content).1);
    let path = dir.join(&stored);
    let before = (fs::read(&path).unwrap(), fs::metadata(&path).unwrap());

    let identity = scratch.path("identity");
    let made = ctl!("key", "generate", "--out", identity).ok();
    let public = made.trim().to_owned();
    assert!(public.starts_with("x25519:") && public.len() == 7 + 64, "{made}");
    assert_eq!(fs::metadata(&identity).unwrap().mode() & 0o777, 0o600);
    ctl!("key", "generate", "--out", identity).refused(12, &["identity"]);
    ctl!("cat", dir, "old", "--identity", identity).refused_other_key();

    let said = ctl!("key", "add", dir, public).ok();
    assert!(said.contains("1 of 1 file headers rewritten"), "{said}");
    assert_eq!(ctl!("info", dir, "--json").json()["recipients"][1]["key"], public);
    assert_eq!(ctl!("info", path, "--json").json()["recipients"][1]["key"], public);
    let after = (fs::read(&path).unwrap(), fs::metadata(&path).unwrap());
    assert_eq!((before.1.mtime(), before.1.mtime_nsec()), (after.1.mtime(), after.1.mtime_nsec()));
    assert!(before.0[4096..] == after.0[4096..] && before.0[..4096] != after.0[..4096]);

    scratch.fill(|volume| drop(write_file(volume, ROOT, "new", b"new")));
    fs::rename(scratch.key(), scratch.path("gone")).unwrap();
    assert_eq!(ctl!("cat", dir, "new", "--identity", identity).ok(), "new");
    let mut old = Command::new(CTL);
    old.arg("cat").arg(&dir).arg("old").arg("--identity").arg(&identity);
    assert!(old.output().unwrap().stdout == content);
    ctl!("verify", dir, "--identity", identity).ok();
    fs::rename(scratch.path("gone"), scratch.key()).unwrap();

    // A second time there is nothing left to do.
    assert!(ctl!("key", "add", dir, public).ok().contains("Nothing to change"));
    let removed = ctl!("key", "remove", dir, public, "--json");
    assert_eq!(removed.json()["rewritten"], 2);
    removed.ok();
    ctl!("cat", dir, "old", "--identity", identity).refused_other_key();
    assert_eq!(ctl!("info", path, "--json").json()["recipients"].as_array().unwrap().len(), 1);
    ctl!("verify", dir).ok();
}

#[test]
fn an_interrupted_sweep_is_finished_by_running_it_again() {
    let scratch = Scratch::with_volume();
    let dir = scratch.volume();
    let mut stored = PathBuf::new();
    scratch.fill(|volume| {
        stored = write_file(volume, ROOT, "one", b"1").1;
        write_file(volume, ROOT, "two", b"2");
    });
    let old = fs::read(dir.join(&stored)).unwrap();
    let public = ctl!("key", "generate", "--out", scratch.path("identity")).ok();
    ctl!("key", "add", dir, public.trim()).ok();
    // As if the sweep had not come to this file.
    fs::write(dir.join(&stored), old).unwrap();
    let said = ctl!("key", "add", dir, public.trim()).ok();
    assert!(said.contains("right already") && said.contains("1 of 2 file headers"), "{said}");
    ctl!("verify", dir, "--identity", scratch.path("identity")).ok();
}

#[test]
fn a_sweep_lists_what_it_cannot_rewrite_and_goes_on() {
    let scratch = Scratch::with_volume();
    let dir = scratch.volume();
    let mut stored = PathBuf::new();
    scratch.fill(|volume| {
        stored = write_file(volume, ROOT, "bad", b"1").1;
        write_file(volume, ROOT, "good", b"2");
    });
    flip(&dir.join(&stored), 40);
    let public = ctl!("key", "generate", "--out", scratch.path("identity")).ok();
    let ran = ctl!("key", "add", dir, public.trim()).refused(17, &["1 entries"]);
    assert!(ran.out.contains("damaged: /bad") && ran.out.contains("1 of 2 file"), "{}", ran.out);
    assert_eq!(ctl!("cat", dir, "good", "--identity", scratch.path("identity")).ok(), "2");
}

#[test]
fn recipients_can_be_named_at_init_until_the_header_is_full() {
    let scratch = Scratch::new();
    let identity = scratch.path("identity");
    let public = ctl!("key", "generate", "--out", identity, "--json").json();
    let public = public["public_key"].as_str().unwrap().to_owned();
    let spec = format!("keyfile:{}", scratch.key().display());
    ctl!("init", scratch.volume(), "--key", spec, "--recipient", public).ok();
    scratch.fill(|volume| drop(write_file(volume, ROOT, "file", b"content")));
    assert_eq!(ctl!("cat", scratch.volume(), "file", "--identity", identity).ok(), "content");
    let mut full = None;
    for n in 0..8 {
        let file = scratch.path(&format!("identity{n}"));
        let public = ctl!("key", "generate", "--out", file).ok();
        let ran = ctl!("key", "add", scratch.volume(), public.trim());
        if ran.code != 0 {
            ran.refused(12, &["room", "header blocks"]);
            full = Some(n);
            break;
        }
    }
    // 960 bytes of slot: 56 fixed, 60 for the master, 124 for each recipient.
    assert_eq!(full, Some(5));
    ctl!("verify", scratch.volume()).ok();
}

/// Runs a program on a terminal of its own and types the answers, each after a prompt.
fn on_a_terminal(args: &[&str], answers: &[&str]) -> (i32, String) {
    const SCRIPT: &str = "
import os, pty, sys, termios, time
count = int(sys.argv[1])
answers, command = sys.argv[2:2 + count], sys.argv[2 + count:]
pid, fd = pty.fork()
if pid == 0:
    os.execv(command[0], command)
seen = since = b''
while True:
    try:
        piece = os.read(fd, 4096)
    except OSError:
        break
    if not piece:
        break
    seen += piece
    since += piece
    if answers and since.rstrip().endswith(b':'):
        # A person is slower than the program is to turn off the echo.
        while termios.tcgetattr(fd)[3] & termios.ECHO:
            time.sleep(0.001)
        os.write(fd, answers.pop(0).encode() + b'\\n')
        since = b''
sys.stdout.buffer.write(seen)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
";
    let count = answers.len().to_string();
    let mut command = Command::new("python3");
    command.args(["-c", SCRIPT, &count]).args(answers).arg(CTL).args(args);
    let ran = Ran::from(command.output().expect("python3"));
    assert_eq!(ran.err, "");
    (ran.code, ran.out)
}

#[test]
fn passphrases_are_typed_on_the_terminal() {
    let scratch = Scratch::new();
    let dir = scratch.volume();
    let dir = dir.to_str().unwrap();
    let init = ["init", dir, "--key", "passphrase"];
    let (code, seen) = on_a_terminal(&init, &["one", "other", "secret1", "secret1"]);
    assert_eq!(code, 0, "{seen}");
    assert!(seen.contains("do not match") && !seen.contains("secret1"), "{seen}");
    let (code, seen) = on_a_terminal(&["verify", dir], &["secret1"]);
    assert_eq!(code, 0, "{seen}");
    let (code, _) = on_a_terminal(&["verify", dir], &["secret2"]);
    assert_eq!(code, 11);
    let change = ["key", "change-passphrase", dir];
    let (code, seen) = on_a_terminal(&change, &["secret1", "secret2", "secret2"]);
    assert_eq!(code, 0, "{seen}");
    // Asked for once although the volume is opened twice.
    let public = ctl!("key", "generate", "--out", scratch.path("identity")).ok();
    let (code, seen) = on_a_terminal(&["key", "add", dir, public.trim()], &["secret2"]);
    assert_eq!(code, 0, "{seen}");
}

#[test]
fn no_secret_is_an_argument() {
    let help = ctl!("init", "--help").ok() + &ctl!("key", "change-passphrase", "--help").ok();
    assert!(help.contains("--passphrase-file <FILE>"));
    assert!(!help.contains("--passphrase <") && !help.contains("[env"));
}

trait OtherKey {
    fn refused_other_key(self);
}

impl OtherKey for Ran {
    /// The identity is a good one, of somebody else.
    #[track_caller]
    fn refused_other_key(self) {
        self.refused(11, &["is not a recipient of this volume"]);
    }
}
