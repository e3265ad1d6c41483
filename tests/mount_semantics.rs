//! What programs may expect of the mounted tree where the kernel, the transport and the file system
//! have to agree: caches, set-id bits, appending, mappings, nodes, handles of removed files.

#[path = "support/mounted.rs"]
mod mounted;

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::thread;

use mounted::{Mounted, ok, root};
use rustix::fs::{FallocateFlags, FileType, Mode, Timespec, Timestamps, XattrFlags};

/// Both ways to treat writes in the kernel.
const MODES: [&str; 2] = ["", "writeback=no"];

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn python(m: &Mounted, program: &str) {
    let mut python = Command::new("python3");
    python.arg("-c").arg(program).current_dir(m.point());
    ok(python);
}

// -- how much is asked

#[test]
fn the_kernel_answers_repeated_questions_itself() {
    let m = Mounted::new("");
    for i in 0..50 {
        fs::write(m.at(&format!("f{i}")), "x").unwrap();
    }
    let ask = || {
        for i in 0..50 {
            fs::metadata(m.at(&format!("f{i}"))).unwrap();
            assert!(!m.at(&format!("missing{i}")).exists());
            assert_eq!(fs::read(m.at(&format!("f{i}"))).unwrap(), b"x");
        }
    };
    ask();
    let before: Vec<u64> = ["lookup", "getattr", "read"].map(|op| m.requests(op)).into();
    ask();
    let after: Vec<u64> = ["lookup", "getattr", "read"].map(|op| m.requests(op)).into();
    assert_eq!(before[0], after[0], "names found and not found are remembered");
    assert_eq!(before[2], after[2], "content is remembered over closing");
    // Reading makes access times uncertain; at most that is asked again.
    assert!(after[1] - before[1] <= 50, "{before:?} {after:?}");
}

#[test]
fn small_writes_do_not_ask_for_capabilities_each_time() {
    for options in MODES {
        let m = Mounted::new(options);
        let mut file = File::create(m.at("f")).unwrap();
        file.write_all(b"first").unwrap();
        let before = m.requests("getxattr");
        for _ in 0..500 {
            file.write_all(&[1; 100]).unwrap();
        }
        // Asking for status is such a request, too; attribute refreshes cause a few.
        let asked = m.requests("getxattr") - before;
        assert!(asked < 20, "{asked} requests for 500 writes ({options})");
    }
}

#[test]
fn the_writeback_cache_collects_small_writes() {
    let m = Mounted::new("");
    let before = m.requests("write");
    let mut file = File::create(m.at("f")).unwrap();
    for _ in 0..1000 {
        file.write_all(&[1; 100]).unwrap();
    }
    drop(file);
    let collected = m.requests("write") - before;
    assert!(collected < 100, "{collected} requests for 1000 writes");
    assert_eq!(fs::metadata(m.at("f")).unwrap().len(), 100_000);
}

// -- set-id bits and capabilities

#[test]
fn writing_and_cutting_drop_set_id_bits_and_capabilities() {
    if !root() {
        return;
    }
    for options in ["suid,allow_other", "suid,allow_other,writeback=no"] {
        let m = Mounted::new(options);
        set_mode(&m.point(), 0o777);
        let path = m.at("f");
        let actions: [(&str, &str); 4] = [
            ("write", "printf x >> f"),
            ("cut", "truncate -s 1 f"),
            ("grow", "truncate -s 100 f"),
            ("open with truncation", ": > f"),
        ];
        for (what, action) in actions {
            fs::write(&path, "content").unwrap();
            chown(&path, Some(65534), Some(65534)).unwrap();
            set_mode(&path, 0o6777);
            let capability = capability();
            rustix::fs::setxattr(&path, "security.capability", &capability, XattrFlags::empty())
                .unwrap();
            let mut other = Command::new("setpriv");
            other.args(["--reuid=65533", "--regid=65533", "--clear-groups", "sh", "-c", action]);
            other.current_dir(m.point());
            ok(other);
            assert_eq!(mode(&path), 0o777, "{what} ({options})");
            let gone = rustix::fs::getxattr(&path, "security.capability", &mut [0u8; 64][..]);
            assert_eq!(gone, Err(rustix::io::Errno::NODATA), "{what} ({options})");
        }
    }
}

/// `cap_net_raw=ep` as the kernel stores it (revision 2).
fn capability() -> [u8; 20] {
    let mut value = [0; 20];
    value[..4].copy_from_slice(&0x0200_0001u32.to_le_bytes());
    value[4..8].copy_from_slice(&(1u32 << 13).to_le_bytes());
    value
}

#[test]
fn changing_the_owner_drops_set_id_bits() {
    if !root() {
        return;
    }
    let m = Mounted::new("suid");
    fs::write(m.at("f"), "x").unwrap();
    set_mode(&m.at("f"), 0o6755);
    chown(m.at("f"), Some(65534), Some(65534)).unwrap();
    assert_eq!(mode(&m.at("f")), 0o755);
    m.remount();
    assert_eq!(mode(&m.at("f")), 0o755);
}

// -- content

#[test]
fn two_processes_append_without_losing_a_line() {
    for options in MODES {
        let m = Mounted::new(options);
        let append = |word: &str| {
            let line = format!("for i in $(seq 300); do echo {word}$i >> f; done");
            Command::new("sh").arg("-c").arg(line).current_dir(m.point()).spawn().unwrap()
        };
        let mut both = [append("a"), append("b")];
        both.iter_mut().for_each(|child| assert!(child.wait().unwrap().success()));
        m.remount();
        let text = fs::read_to_string(m.at("f")).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        lines.dedup();
        assert_eq!(lines.len(), 600, "{options}");
    }
}

#[test]
fn write_only_handles_change_parts_of_blocks() {
    for options in MODES {
        let m = Mounted::new(options);
        let mut expected = vec![1u8; 20_000];
        fs::write(m.at("f"), &expected).unwrap();
        m.remount();
        let file = OpenOptions::new().write(true).open(m.at("f")).unwrap();
        for (at, len) in [(0, 1), (100, 50), (4090, 12), (8192, 4096), (19_999, 1), (19_990, 500)] {
            file.write_all_at(&vec![2; len], at as u64).unwrap();
            expected.resize(expected.len().max(at + len), 0);
            expected[at..at + len].fill(2);
        }
        drop(file);
        assert_eq!(fs::read(m.at("f")).unwrap(), expected, "{options}");
        m.remount();
        assert_eq!(fs::read(m.at("f")).unwrap(), expected, "{options}");
    }
}

#[test]
fn writers_of_one_block_do_not_disturb_each_other() {
    for options in MODES {
        let m = Mounted::new(options);
        let file = File::create(m.at("f")).unwrap();
        thread::scope(|scope| {
            for writer in 0..8u64 {
                let file = &file;
                scope.spawn(move || {
                    for round in 0..64 {
                        let at = round * 512 + writer * 64;
                        file.write_all_at(&[writer as u8 + 1; 64], at).unwrap();
                    }
                });
            }
        });
        drop(file);
        m.remount();
        let content = fs::read(m.at("f")).unwrap();
        assert_eq!(content.len(), 64 * 512);
        for (at, &byte) in content.iter().enumerate() {
            assert_eq!(u64::from(byte), (at as u64 / 64) % 8 + 1, "at {at} ({options})");
        }
    }
}

#[test]
fn cutting_and_growing_within_a_block_leaves_zeros() {
    for options in MODES {
        let m = Mounted::new(options);
        fs::write(m.at("f"), [7; 5000]).unwrap();
        let file = OpenOptions::new().write(true).open(m.at("f")).unwrap();
        file.set_len(4200).unwrap();
        file.set_len(4999).unwrap();
        file.write_all_at(&[8], 9000).unwrap();
        drop(file);
        m.remount();
        let mut expected = vec![7; 4200];
        expected.resize(9000, 0);
        expected.push(8);
        assert_eq!(fs::read(m.at("f")).unwrap(), expected, "{options}");
    }
}

#[test]
fn holes_are_found_and_punched() {
    let m = Mounted::new("");
    let mut file = File::create_new(m.at("f")).unwrap();
    file.write_all_at(&[1; 4096], 1 << 20).unwrap();
    file.sync_all().unwrap();
    assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0)).unwrap(), 1 << 20);
    assert_eq!(
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(1 << 20)).unwrap(),
        (1 << 20) + 4096
    );
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, punch, (1 << 20) + 100, 1000).unwrap();
    file.seek(SeekFrom::Start(1 << 20)).unwrap();
    drop(file);
    m.remount();
    let content = fs::read(m.at("f")).unwrap();
    let block = &content[1 << 20..];
    assert!(block[..100].iter().chain(&block[1100..]).all(|&b| b == 1));
    assert!(content[..1 << 20].iter().chain(&block[100..1100]).all(|&b| b == 0));
}

#[test]
fn shared_mappings_and_writes_see_each_other() {
    for options in MODES {
        let m = Mounted::new(options);
        python(
            &m,
            "import mmap, os\n\
             fd = os.open('f', os.O_RDWR | os.O_CREAT)\n\
             os.write(fd, b'a' * 10000)\n\
             map = mmap.mmap(fd, 10000)\n\
             map[5000:5003] = b'map'\n\
             assert os.pread(fd, 5, 4999) == b'amapa'\n\
             os.pwrite(fd, b'write', 4094)\n\
             assert map[4093:4100] == b'awritea'\n\
             os.close(fd)\n\
             map[9999:10000] = b'z'\n\
             map.close()",
        );
        m.remount();
        let content = fs::read(m.at("f")).unwrap();
        assert_eq!(&content[5000..5003], b"map", "{options}");
        assert_eq!(&content[4094..4099], b"write", "{options}");
        assert_eq!(content[9999], b'z', "{options}");
    }
}

#[test]
fn copies_between_files_are_right() {
    let m = Mounted::new("");
    let content: Vec<u8> = (0..3_000_000u32).map(|i| (i * 7 % 251) as u8).collect();
    fs::write(m.at("a"), &content).unwrap();
    let (from, to) = (File::open(m.at("a")).unwrap(), File::create(m.at("b")).unwrap());
    let (mut at, mut end) = (5, 100);
    while at < 2_900_000 {
        let left = usize::try_from(2_900_000 - at).unwrap();
        assert!(
            rustix::fs::copy_file_range(&from, Some(&mut at), &to, Some(&mut end), left).unwrap()
                > 0
        );
    }
    assert!(m.requests("copy_file_range") > 0);
    drop((from, to));
    m.remount();
    let copy = fs::read(m.at("b")).unwrap();
    assert!(copy[..100].iter().all(|&b| b == 0));
    assert!(copy[100..] == content[5..2_900_000]);
}

// -- handles of things that are gone

#[test]
fn an_open_file_lives_on_after_its_name() {
    for options in MODES {
        let m = Mounted::new(options);
        let mut file =
            OpenOptions::new().read(true).write(true).create_new(true).open(m.at("f")).unwrap();
        file.write_all(b"before").unwrap();
        fs::remove_file(m.at("f")).unwrap();
        file.write_all(b" after").unwrap();
        file.set_len(10).unwrap();
        file.set_permissions(fs::Permissions::from_mode(0o640)).unwrap();
        rustix::fs::fsetxattr(&file, "user.a", b"b", XattrFlags::empty()).unwrap();
        let time = Timespec { tv_sec: 5, tv_nsec: 7 };
        rustix::fs::futimens(&file, &Timestamps { last_access: time, last_modification: time })
            .unwrap();
        file.sync_all().unwrap();
        let status = file.metadata().unwrap();
        assert_eq!((status.nlink(), status.len(), status.mode() & 0o777), (0, 10, 0o640));
        assert_eq!((status.mtime(), status.mtime_nsec()), (5, 7));
        let mut value = [0u8; 8];
        assert_eq!(rustix::fs::fgetxattr(&file, "user.a", &mut value[..]), Ok(1));
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "before aft", "{options}");
        fs::write(m.at("f"), "another").unwrap();
        assert_eq!(file.metadata().unwrap().len(), 10);
    }
}

#[test]
fn an_open_directory_lives_on_after_its_name() {
    let m = Mounted::new("");
    fs::create_dir(m.at("d")).unwrap();
    let dir = File::open(m.at("d")).unwrap();
    fs::remove_dir(m.at("d")).unwrap();
    assert_eq!(dir.metadata().unwrap().nlink(), 0);
    let refused = rustix::fs::mkdirat(&dir, "x", Mode::RWXU);
    assert_eq!(refused, Err(rustix::io::Errno::NOENT));
    fs::create_dir(m.at("d")).unwrap();
    assert_ne!(fs::metadata(m.at("d")).unwrap().ino(), dir.metadata().unwrap().ino());
}

#[test]
fn handles_follow_renames_and_exchanges() {
    let m = Mounted::new("");
    fs::create_dir(m.at("d")).unwrap();
    fs::write(m.at("a"), "a").unwrap();
    fs::write(m.at("b"), "b").unwrap();
    let mut a = OpenOptions::new().append(true).open(m.at("a")).unwrap();
    let cwd = rustix::fs::CWD;
    let exchange = rustix::fs::RenameFlags::EXCHANGE;
    rustix::fs::renameat_with(cwd, m.at("a"), cwd, m.at("b"), exchange).unwrap();
    fs::rename(m.at("b"), m.at("d/moved")).unwrap();
    let noreplace = rustix::fs::RenameFlags::NOREPLACE;
    let refused = rustix::fs::renameat_with(cwd, m.at("a"), cwd, m.at("d/moved"), noreplace);
    assert_eq!(refused, Err(rustix::io::Errno::EXIST));
    a.write_all(b"+").unwrap();
    drop(a);
    assert_eq!(fs::read(m.at("a")).unwrap(), b"b");
    assert_eq!(fs::read(m.at("d/moved")).unwrap(), b"a+");
}

// -- attributes and nodes

#[test]
fn times_keep_every_nanosecond_on_both_sides_of_1970() {
    let m = Mounted::new("");
    fs::write(m.at("f"), "x").unwrap();
    // As far back as the backing file system goes.
    let times = [(0, 0), (-1, 1), (-2, 750_000_000), (-2_000_000_000, 999_999_999), (1 << 33, 3)];
    for (tv_sec, tv_nsec) in times {
        let time = Timespec { tv_sec, tv_nsec };
        let both = Timestamps { last_access: time, last_modification: time };
        let (cwd, flags) = (rustix::fs::CWD, rustix::fs::AtFlags::empty());
        rustix::fs::utimensat(cwd, m.at("f"), &both, flags).unwrap();
        m.remount();
        let status = fs::metadata(m.at("f")).unwrap();
        assert_eq!((status.mtime(), status.mtime_nsec()), (tv_sec, tv_nsec));
        assert_eq!((status.atime(), status.atime_nsec()), (tv_sec, tv_nsec));
    }
}

#[test]
fn absurd_times_do_not_hurt_the_daemon() {
    let m = Mounted::new("");
    fs::write(m.at("f"), "x").unwrap();
    // More often than there are threads to lose.
    for tv_sec in [i64::MIN, i64::MAX].repeat(20) {
        let time = Timespec { tv_sec, tv_nsec: 999_999_999 };
        let both = Timestamps { last_access: time, last_modification: time };
        let (cwd, flags) = (rustix::fs::CWD, rustix::fs::AtFlags::empty());
        // Whether the backing can store such a time is its own affair.
        let _ = rustix::fs::utimensat(cwd, m.at("f"), &both, flags);
    }
    fs::write(m.at("g"), "alive").unwrap();
    m.remount();
}

#[test]
fn special_files_work_with_dev() {
    if !root() {
        return;
    }
    let m = Mounted::new("dev,suid");
    let node = |name: &str, kind, device| {
        let path = CString::new(m.at(name).into_os_string().into_encoded_bytes()).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, path, kind, Mode::from_raw_mode(0o600), device)
            .unwrap();
    };
    node("fifo", FileType::Fifo, 0);
    node("socket", FileType::Socket, 0);
    node("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    node("block", FileType::BlockDevice, rustix::fs::makedev(259, 70_000));
    m.remount();
    let kind = |name: &str| fs::symlink_metadata(m.at(name)).unwrap();
    assert!(kind("fifo").file_type().is_fifo());
    assert!(kind("socket").file_type().is_socket());
    assert!(kind("null").file_type().is_char_device());
    assert!(kind("block").file_type().is_block_device());
    assert_eq!(kind("null").rdev(), rustix::fs::makedev(1, 3));
    assert_eq!(kind("block").rdev(), rustix::fs::makedev(259, 70_000));
    OpenOptions::new().write(true).open(m.at("null")).unwrap().write_all(b"gone").unwrap();
    let reader = thread::spawn({
        let fifo = m.at("fifo");
        move || fs::read(fifo).unwrap()
    });
    fs::write(m.at("fifo"), "through").unwrap();
    assert_eq!(reader.join().unwrap(), b"through");
    let listener = std::os::unix::net::UnixListener::bind(m.at("live")).unwrap();
    std::os::unix::net::UnixStream::connect(m.at("live")).unwrap();
    drop(listener);
}

#[test]
fn devices_are_dead_and_set_id_is_void_without_the_options() {
    if !root() {
        return;
    }
    let m = Mounted::new("");
    let mut mknod = Command::new("mknod");
    mknod.arg(m.at("null")).args(["c", "1", "3"]);
    ok(mknod);
    let error = File::open(m.at("null")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EACCES));
}

#[test]
fn created_objects_belong_to_their_creator() {
    if !root() {
        return;
    }
    let m = Mounted::new("allow_other");
    set_mode(&m.point(), 0o1777);
    let mut other = Command::new("setpriv");
    let script = "umask 027; echo x > f; mkdir d; mkfifo p; ln -s f l; \
        ! echo y > /nowhere 2>/dev/null; chmod 600 f; cat f";
    other.args(["--reuid=4711", "--regid=4712", "--clear-groups", "sh", "-ec", script]);
    other.current_dir(m.point());
    ok(other);
    fs::write(m.at("root"), "secret").unwrap();
    set_mode(&m.at("root"), 0o600);
    m.remount();
    for (name, mode_wanted) in [("f", 0o600), ("d", 0o750), ("p", 0o640), ("l", 0o777)] {
        let status = fs::symlink_metadata(m.at(name)).unwrap();
        assert_eq!((status.uid(), status.gid()), (4711, 4712), "{name}");
        assert_eq!(mode(&m.at(name)), mode_wanted, "{name}");
    }
    let mut other = Command::new("setpriv");
    other.args(["--reuid=4711", "--regid=4712", "--clear-groups", "cat"]).arg(m.at("root"));
    assert!(!other.output().unwrap().status.success(), "the kernel checks permissions");
}

#[test]
fn locks_are_kept_by_the_kernel() {
    let m = Mounted::new("");
    python(
        &m,
        "import fcntl, os\n\
         a = open('f', 'w'); b = open('f', 'w')\n\
         fcntl.flock(a, fcntl.LOCK_EX)\n\
         try:\n  fcntl.flock(b, fcntl.LOCK_EX | fcntl.LOCK_NB); raise SystemExit('flock')\n\
         except BlockingIOError: pass\n\
         fcntl.lockf(a, fcntl.LOCK_EX, 10)\n\
         if os.fork() == 0:\n  \
           try:\n    fcntl.lockf(b, fcntl.LOCK_EX | fcntl.LOCK_NB, 10); os._exit(1)\n  \
           except OSError: os._exit(0)\n\
         assert os.wait()[1] == 0",
    );
}

#[test]
fn unsupported_calls_say_so() {
    let m = Mounted::new("");
    let temporary =
        OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).open(m.point()).unwrap_err();
    assert_eq!(temporary.raw_os_error(), Some(libc::EOPNOTSUPP));
    fs::write(m.at("f"), "x").unwrap();
    let file = File::open(m.at("f")).unwrap();
    let flags = rustix::fs::ioctl_getflags(&file).unwrap_err();
    assert_eq!(flags, rustix::io::Errno::NOTTY);
    let name = rustix::fs::getxattr(m.at("f"), "kmsfs.status", &mut [0u8; 64][..]);
    assert!(name.is_err(), "only the root of the mount answers");
}

#[test]
fn access_lists_are_enforced_and_inherited_with_acl() {
    if !root() {
        return;
    }
    let m = Mounted::new("acl,allow_other");
    set_mode(&m.point(), 0o755);
    let run = |line: &str| {
        let mut sh = Command::new("sh");
        sh.arg("-ec").arg(line).current_dir(m.point());
        String::from_utf8(ok(sh).stdout).unwrap()
    };
    run("mkdir d; chmod 770 d; setfacl -m u:4711:rwx d; setfacl -d -m u:4711:rw,m::rw d");
    let as_other = |line: &str| {
        let mut other = Command::new("setpriv");
        other.args(["--reuid=4711", "--regid=4711", "--clear-groups", "sh", "-ec", line]);
        other.current_dir(m.point()).output().unwrap().status.success()
    };
    assert!(as_other("echo x > d/theirs"));
    // The default list replaces the umask.
    run("umask 077; echo y > d/f; mkdir d/sub");
    assert!(as_other("cat d/f"));
    assert!(run("getfacl -cp d/f").contains("user:4711:rw-"));
    assert!(run("getfacl -cp d/sub").contains("default:user:4711:rw-"));
    m.remount();
    assert!(as_other("cat d/f"));
    run("chmod g= d/f");
    assert!(run("getfacl -cp d/f").contains("mask::---"));
    assert!(!as_other("cat d/f"));
}

// -- what reaches the backing

#[test]
fn a_volume_in_a_volume_passes_every_flush_on() {
    let below = Mounted::new("");
    let m = Mounted::below(&below.point(), "");
    fs::create_dir(m.at("d")).unwrap();
    let dir = File::open(m.at("d")).unwrap();
    let mut file = File::create(m.at("d/f")).unwrap();
    file.write_all(&[7; 300_000]).unwrap();
    let flushed = |op: &str, flush: &dyn Fn()| {
        let before = below.requests(op);
        flush();
        below.requests(op) - before
    };
    assert!(flushed("fsyncdir", &|| dir.sync_all().unwrap()) >= 1);
    assert!(flushed("fsyncdir", &|| dir.sync_data().unwrap()) >= 1);
    assert!(flushed("fsync", &|| file.sync_all().unwrap()) >= 1);
    file.write_all(b"more").unwrap();
    assert!(flushed("fsync", &|| file.sync_data().unwrap()) >= 1);
    drop((dir, file));
    m.unmount();
    below.remount();
    m.mount();
    assert_eq!(fs::read(m.at("d/f")).unwrap().len(), 300_004);
}
