//! Mounting, unmounting and what must be refused, with the real programs and the real kernel.

#[path = "support/mounted.rs"]
mod mounted;

use std::fs::{self, File};
use std::io::{BufRead, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Output;

use mounted::{Mounted, ok, root, text};
use rustix::process::Signal;

fn refused(output: &Output, code: i32, words: &str) {
    let said = text(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(words), "{said}");
    // One sentence, not a trace.
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
}

#[test]
fn files_are_there_after_unmounting_and_mounting_again() {
    let m = Mounted::new("");
    fs::create_dir(m.at("d")).unwrap();
    fs::write(m.at("d/f"), "hello").unwrap();
    assert_eq!(fs::read(m.at("d/f")).unwrap(), b"hello");
    m.unmount();
    assert!(!m.at("d").exists());
    // `umount` waits until everything is written and the lock is free: no retry here.
    m.mount();
    assert_eq!(fs::read(m.at("d/f")).unwrap(), b"hello");
}

#[test]
fn the_mount_table_shows_type_and_source() {
    let m = Mounted::new("");
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = table.lines().find(|l| l.contains(m.point().to_str().unwrap())).unwrap();
    let fields: Vec<&str> = line.split(' ').collect();
    assert_eq!(fields[0], m.source().to_str().unwrap());
    assert_eq!(fields[2], "fuse.kmsfs");
    for option in ["nosuid", "nodev", "default_permissions"] {
        assert!(fields[3].split(',').any(|o| o == option), "{line}");
    }
    assert!(!line.contains("allow_other"));
}

#[test]
fn status_tells_who_serves_what() {
    let m = Mounted::new("");
    fs::write(m.at("f"), "x").unwrap();
    let status = m.status();
    assert_eq!(status["mountpoint"].as_str(), m.point().to_str());
    assert_eq!(status["source"].as_str(), m.source().to_str());
    assert_eq!(status["access"], "rw");
    assert_eq!(status["volume"].as_str().unwrap().len(), 32);
    assert!(status["requests"]["create"].as_u64() >= Some(1));
    let listed = rustix::fs::listxattr(m.point(), &mut [0u8; 4096][..]).unwrap();
    assert_eq!(listed, 0, "the control names are not listed");
}

#[test]
fn a_second_mount_of_the_same_volume_is_refused() {
    let m = Mounted::new("");
    let other = m.path("other");
    fs::create_dir(&other).unwrap();
    refused(&m.try_mount(&m.source(), &other, ""), 14, "in use");
    refused(&m.try_mount(&m.source(), &other, "ro"), 14, "in use");
    refused(&m.try_mount(&m.source(), &m.point(), ""), 15, "already mounted");
}

#[test]
fn two_read_only_mounts_live_side_by_side_and_refuse_changes() {
    let m = Mounted::new("");
    fs::write(m.at("f"), "x").unwrap();
    m.unmount();
    let points = [m.path("a"), m.path("b")];
    for point in &points {
        fs::create_dir(point).unwrap();
        let output = m.try_mount(&m.source(), point, "ro");
        assert!(output.status.success(), "{}", text(&output));
    }
    for point in &points {
        assert_eq!(fs::read(point.join("f")).unwrap(), b"x");
        let error = fs::write(point.join("g"), "").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        kmsfs::fuse::control::unmount(point).unwrap();
    }
}

#[test]
fn unfit_mount_points_are_refused_with_the_reason() {
    let m = Mounted::unmounted("");
    let try_on = |point: &Path| m.try_mount(&m.source(), point, "");
    refused(&try_on(&m.path("missing")), 15, "does not exist");
    refused(&try_on(&m.path("key")), 15, "is not a directory");
    refused(&try_on(&m.source()), 15, "inside the volume");
    fs::create_dir(m.source().join("in")).unwrap();
    refused(&try_on(&m.source().join("in")), 15, "inside the volume");
    fs::remove_dir(m.source().join("in")).unwrap();
    refused(&try_on(m.source().parent().unwrap()), 15, "would hide it");
    fs::write(m.at("x"), "").unwrap();
    refused(&try_on(&m.point()), 15, "is not empty");
    let output = m.try_mount(&m.source(), &m.point(), "nonempty");
    assert!(output.status.success(), "{}", text(&output));
    assert!(!m.at("x").exists());
}

#[test]
fn a_source_that_is_no_volume_and_unknown_options_are_refused() {
    let m = Mounted::unmounted("");
    fs::create_dir(m.path("plain")).unwrap();
    refused(&m.try_mount(&m.path("plain"), &m.point(), ""), 10, "plain");
    refused(&m.try_mount(&m.path("missing"), &m.point(), ""), 10, "missing");
    refused(&m.try_mount(&m.source(), &m.point(), "foo"), 2, "unknown mount option");
    let wrong = "expect-volume=00000000000000000000000000000000";
    refused(&m.try_mount(&m.source(), &m.point(), wrong), 1, "not the expected one");
    assert!(!m.is_mounted());
    // None of these left the volume locked or marked as unclean.
    m.mount();
}

#[test]
fn a_killed_daemon_leaves_a_mount_that_can_be_mounted_over() {
    let m = Mounted::new("");
    fs::write(m.at("f"), "kept").unwrap();
    m.kill();
    let error = fs::read(m.at("f")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
    m.mount();
    // Closed before the kill, so nothing of it is lost.
    assert_eq!(fs::read(m.at("f")).unwrap(), b"kept");
    m.kill();
    m.unmount();
    assert!(!m.is_mounted());
}

#[test]
fn sigterm_unmounts_and_writes_everything() {
    let m = Mounted::new("");
    fs::write(m.at("f"), "kept").unwrap();
    m.signal_and_wait(Signal::TERM);
    assert!(!m.is_mounted());
    assert!(!m.source().join("kmsfs.session").exists());
    m.mount();
    assert_eq!(fs::read(m.at("f")).unwrap(), b"kept");
}

#[test]
fn a_busy_mount_survives_one_sigterm_and_is_detached_by_a_second() {
    let m = Mounted::new("");
    let mut file = File::create(m.at("f")).unwrap();
    file.write_all(b"before ").unwrap();
    let daemon = rustix::process::Pid::from_raw(m.daemon()).unwrap();
    rustix::process::kill_process(daemon, Signal::TERM).unwrap();
    // Status is answered by the same daemon, so it has not ended; whether the signal was handled
    // before or after does not matter.
    assert_eq!(m.daemon(), daemon.as_raw_nonzero().get());
    // The second signal detaches; the open file goes on working until it is closed.
    while m.is_mounted() {
        let _ = rustix::process::kill_process(daemon, Signal::TERM);
        std::thread::yield_now();
    }
    file.write_all(b"after").unwrap();
    drop(file);
    // The mount waits for the lock of the ending daemon by being tried again.
    while !m.try_mount(&m.source(), &m.point(), "").status.success() {
        std::thread::yield_now();
    }
    assert_eq!(fs::read(m.at("f")).unwrap(), b"before after");
}

#[test]
fn unmounting_a_busy_mount_is_refused_and_harmless() {
    let m = Mounted::new("");
    let file = File::create(m.at("f")).unwrap();
    let error = kmsfs::fuse::control::unmount(&m.point()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
    fs::write(m.at("g"), "still served").unwrap();
    drop(file);
    m.unmount();
}

#[test]
fn unmounting_says_whom_it_waits_for() {
    let m = Mounted::new("");
    if !root() {
        return;
    }
    // A namespace of its own, as a container has: it keeps its copy of the mount.
    let mut other = std::process::Command::new("unshare");
    other.args(["--mount", "--propagation", "private", "sh", "-c", "echo; exec sleep 300"]);
    let mut other = other.stdout(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Read::read_exact(other.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    let mut umount = std::process::Command::new(env!("CARGO_BIN_EXE_kmsfsctl"));
    umount.arg("umount").arg(m.point()).stderr(std::process::Stdio::piped());
    let mut umount = umount.spawn().unwrap();
    let mut said = String::new();
    std::io::BufReader::new(umount.stderr.as_mut().unwrap()).read_line(&mut said).unwrap();
    assert!(said.contains("another mount namespace"), "{said}");
    assert!(said.contains(&format!("({})", other.id())), "{said}");
    assert!(umount.try_wait().unwrap().is_none(), "it did not wait");
    other.kill().unwrap();
    other.wait().unwrap();
    assert!(umount.wait().unwrap().success());
}

#[test]
fn sync_reaches_the_backing_while_files_stay_open() {
    let m = Mounted::new("");
    let mut file = File::create(m.at("f")).unwrap();
    file.write_all(&[7; 300_000]).unwrap();
    m.sync();
    let copy = m.path("copy");
    let mut cp = std::process::Command::new("cp");
    cp.arg("-a").arg(m.source()).arg(&copy);
    ok(cp);
    m.kill();
    drop(file);
    m.mount();
    assert_eq!(fs::read(m.at("f")).unwrap(), [7; 300_000]);
}

#[test]
fn the_daemon_keeps_nothing_of_its_starter() {
    let m = Mounted::unmounted("");
    let held = m.path("held");
    fs::create_dir(&held).unwrap();
    let mut sh = std::process::Command::new("sh");
    sh.arg("-ec").arg(r#"cd "$3"; exec 9<.; exec "$0" "$1" "$2""#);
    sh.arg(env!("CARGO_BIN_EXE_kmsfs")).arg(m.source()).arg(m.point()).arg(&held);
    ok(sh);
    let process = Path::new("/proc").join(m.daemon().to_string());
    assert_eq!(fs::read_link(process.join("cwd")).unwrap(), Path::new("/"));
    let stat = fs::read_to_string(process.join("stat")).unwrap();
    let session = stat.rsplit(')').next().unwrap().split_whitespace().nth(3).unwrap();
    assert_eq!(session, m.daemon().to_string());
    if !root() {
        // Not even its owner may look into it: it holds keys.
        assert!(fs::read_dir(process.join("fd")).is_err());
        return;
    }
    for fd in fs::read_dir(process.join("fd")).unwrap() {
        let target = fs::read_link(fd.unwrap().path()).unwrap();
        assert_ne!(target, held.canonicalize().unwrap());
        assert!(!target.to_string_lossy().starts_with("pipe:"), "{}", target.display());
    }
}

#[test]
fn fstab_style_calls_work() {
    let m = Mounted::unmounted("");
    let helper = m.path("mount.kmsfs");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_kmsfs"), &helper).unwrap();
    let source = format!("kmsfs#{}", m.source().display());
    let mut command = std::process::Command::new(&helper);
    command.arg(source).arg(m.point()).args(["-n", "-s", "-o", "rw,noauto,x-a.b=c,_netdev"]);
    ok(command);
    fs::write(m.at("f"), "x").unwrap();
}

#[test]
fn a_mount_that_is_only_pretended_mounts_nothing() {
    let m = Mounted::unmounted("");
    let helper = m.path("mount.kmsfs");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_kmsfs"), &helper).unwrap();
    // As `mount -fv` calls it; a mount in the foreground would never return.
    let pretend = |words: &str| {
        let mut command = std::process::Command::new("timeout");
        command.arg("20").arg(&helper).arg(m.source()).arg(m.point()).args(["-fv", "-o", words]);
        command.output().unwrap()
    };
    let output = pretend("rw,nofail");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(!m.is_mounted());
    assert_eq!(pretend("no_such_word").status.code(), Some(2));
}

#[test]
fn the_daemon_hides_its_memory_and_tells_no_secret() {
    let m = Mounted::unmounted("");
    let (secret, new) = ("a passphrase nobody guesses", m.path("passphrase"));
    fs::write(&new, secret).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    let mut add = std::process::Command::new(env!("CARGO_BIN_EXE_kmsfsctl"));
    add.args(["key", "add"]).arg(m.source()).arg("passphrase");
    add.arg("--keyfile").arg(m.path("key")).arg("--new-passphrase-file").arg(&new);
    ok(add);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_kmsfs"));
    command.arg(m.source()).arg(m.point()).args(["-f", "-v", "--passphrase-file"]).arg(&new);
    let log = m.path("log");
    command.stderr(fs::File::create(&log).unwrap()).stdout(fs::File::create(&log).unwrap());
    let mut daemon = command.spawn().unwrap();
    while kmsfs::fuse::control::status(&m.point()).is_err() {
        assert!(daemon.try_wait().unwrap().is_none(), "{}", fs::read_to_string(&log).unwrap());
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    fs::write(m.at("f"), "content").unwrap();
    assert!(fs::read(m.at("missing")).is_err());
    let process = Path::new("/proc").join(daemon.id().to_string());
    let number = |file: &str, key: &str| {
        let text = fs::read_to_string(process.join(file)).unwrap();
        let line = text.lines().find(|line| line.starts_with(key)).unwrap().to_owned();
        line[key.len()..].split_whitespace().next().unwrap().to_owned()
    };
    assert_ne!(number("status", "VmLck:"), "0", "keys are not locked in memory");
    assert_eq!(number("limits", "Max core file size"), "0");
    // What a process that may not be dumped shows: its files in /proc belong to root.
    assert_eq!(fs::metadata(process.join("mem")).unwrap().uid(), 0);
    m.unmount();
    assert!(daemon.wait().unwrap().success());
    let said = fs::read(&log).unwrap();
    let key = fs::read_to_string(m.path("key")).unwrap();
    let key = key.lines().last().unwrap();
    assert_eq!(key.len(), 64);
    for hidden in [secret, key, "content"] {
        let found = said.windows(hidden.len()).any(|part| part == hidden.as_bytes());
        assert!(!found, "a secret is in the log");
    }
}

#[test]
fn version_names_format_and_cipher_backend() {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_kmsfs"));
    command.arg("--version");
    let said = String::from_utf8(ok(command).stdout).unwrap();
    assert!(said.starts_with("kmsfs ") && said.contains("format 1"), "{said}");
    assert!(said.contains(kmsfs::crypto::BACKEND), "{said}");
}

// -- an ordinary user, through fusermount3

#[test]
fn an_ordinary_user_mounts_uses_and_unmounts() {
    let m = Mounted::as_user("");
    m.shell("mkdir d; echo hello > d/f; ln d/f d/g; mv d/g h; setfattr -n user.a -v b h");
    assert_eq!(m.shell("cat h; getfattr --only-values -n user.a h"), "hello\nb");
    m.remount();
    assert_eq!(m.shell("cat d/f; stat -c %h h; chmod 600 h; stat -c %a h"), "hello\n2\n600\n");
    if root() {
        let error = fs::read_dir(m.point()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EACCES), "others stay out, root included");
    }
    m.unmount();
    assert!(!m.is_mounted());
}

#[test]
fn an_ordinary_user_is_told_what_needs_root() {
    let m = Mounted::as_user("");
    m.unmount();
    if root() {
        refused(&m.try_mount(&m.source(), &m.point(), "dev"), 16, "need root");
    }
    let conf = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    if !conf.lines().any(|line| line.trim() == "user_allow_other") {
        refused(&m.try_mount(&m.source(), &m.point(), "allow_other"), 16, "/etc/fuse.conf");
    }
}

#[test]
fn root_writes_through_a_descriptor_an_ordinary_user_opened() {
    if !root() {
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    let m = Mounted::as_user("");
    // Set-user-id root: requests of its writes carry user 0, as with `sudo command > file`.
    let cat = m.path("cat");
    fs::copy("/usr/bin/tee", &cat).unwrap();
    fs::set_permissions(&cat, fs::Permissions::from_mode(0o4755)).unwrap();
    let cat = cat.display();
    m.shell(&format!("echo one > f; echo two | {cat} >> f; echo three | {cat} >> f"));
    assert_eq!(m.shell("cat f"), "one\ntwo\nthree\n");
    m.shell("touch -d @1000000000 f");
    m.shell(&format!("echo four | {cat} >> f; sync f"));
    m.remount();
    assert_eq!(m.shell("tail -n 1 f"), "four\n");
    assert_ne!(m.shell("stat -c %Y f"), "1000000000\n", "the flushed time was accepted");
}

#[test]
fn a_busy_mount_saves_everything_before_it_is_killed() {
    let m = Mounted::new("");
    let mut file = File::create(m.at("open")).unwrap();
    file.write_all(&[7; 5000]).unwrap();
    let daemon = rustix::process::Pid::from_raw(m.daemon()).unwrap();
    rustix::process::kill_process(daemon, Signal::TERM).unwrap();
    // The daemon handles signals one after the other: once status shows its commit, the file is safe.
    let backing =
        || fs::read_dir(m.source()).unwrap().map(|e| e.unwrap().metadata().unwrap().len());
    while !backing().any(|len| len == 4096 + 5000) {
        std::thread::yield_now();
    }
    m.kill();
    drop(file);
    m.mount();
    assert_eq!(fs::read(m.at("open")).unwrap(), [7; 5000]);
}
