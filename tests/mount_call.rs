//! The mount call itself, with a file system that has nothing but a root directory.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{FileAttr, FileHandle, FileType, Filesystem, INodeNo, ReplyAttr, Request};
use kmsfs::fuse::MountOptions;
use kmsfs::fuse::mount::{self, Mount, UnmountError, table};

/// Answers for its root and nothing else.
struct Bare;

impl Filesystem for Bare {
    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let attr = FileAttr {
            ino,
            size: 0,
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: FileType::Directory,
            perm: 0o755,
            nlink: 2,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        };
        reply.attr(&Duration::from_secs(60), &attr);
    }
}

struct Place {
    _dir: tempfile::TempDir,
    source: PathBuf,
    point: PathBuf,
}

/// A source and a mount point, both with names that need care.
fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let (source, point) = (root.join("so,urce\\x"), root.join("po int\\y"));
    fs::create_dir(&source).unwrap();
    fs::create_dir(&point).unwrap();
    Place { _dir: dir, source, point }
}

fn serve(place: &Place) -> (Mount, std::thread::JoinHandle<std::io::Result<()>>) {
    let options = MountOptions::default();
    let point = mount::prepare(&place.source, &place.point, &options).unwrap();
    let (connection, mount) = mount::mount(place.source.as_os_str(), point, &options).unwrap();
    let config = fuser::Config::default();
    let all = fuser::SessionACL::All;
    let session = fuser::Session::from_fd(Bare, connection, all, config).unwrap();
    (mount, std::thread::spawn(move || session.run()))
}

/// The source column of the mount table, unescaped far enough for the names used here.
fn shown_source(place: &Place) -> String {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let point = place.point.to_str().unwrap().replace('\\', "\\134").replace(' ', "\\040");
    let line = table.lines().find(|line| line.contains(&point)).unwrap();
    line.split(' ').next().unwrap().replace("\\134", "\\")
}

#[test]
fn odd_names_are_shown_as_they_are_and_do_not_become_options() {
    let place = place();
    let (mount, loops) = serve(&place);
    assert_eq!(mount.path(), place.point);
    assert!(mount.is_on_top());
    assert_eq!(shown_source(&place), place.source.to_str().unwrap());
    assert_eq!(table::top_at(&place.point).unwrap().kind, "fuse.kmsfs");
    mount.unmount(false).unwrap();
    assert!(table::top_at(&place.point).is_none());
    loops.join().unwrap().unwrap();
}

#[test]
fn a_busy_mount_stays_and_names_its_user() {
    let place = place();
    let (mount, loops) = serve(&place);
    let held = rustix::fs::open(
        &place.point,
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY,
        rustix::fs::Mode::empty(),
    );
    let held = held.unwrap();
    match mount.unmount(false) {
        Err(UnmountError::Busy(point, holders)) => {
            assert_eq!(point, place.point);
            assert!(holders.contains(&format!("({})", std::process::id())), "{holders}");
        }
        other => panic!("{other:?}"),
    }
    assert!(mount.is_on_top());
    drop(held);
    mount.unmount(false).unwrap();
    loops.join().unwrap().unwrap();
}

#[test]
fn unmounting_never_touches_a_later_mount_at_the_same_place() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let place = place();
    let (mount, loops) = serve(&place);
    let mut cover = Command::new("mount");
    cover.args(["-i", "-t", "tmpfs", "tmpfs"]).arg(&place.point);
    assert!(cover.status().unwrap().success());
    mount.unmount(true).unwrap();
    assert_eq!(table::top_at(&place.point).unwrap().kind, "tmpfs");
    mount::unmount_path(&place.point, false).unwrap();
    mount.unmount(false).unwrap();
    loops.join().unwrap().unwrap();
    mount.unmount(true).unwrap();
}

#[test]
fn a_dead_mount_is_replaced_and_a_live_one_is_not() {
    let place = place();
    let (mount, loops) = serve(&place);
    let options = MountOptions::default();
    let again = mount::prepare(&place.source, &place.point, &options);
    assert!(again.unwrap_err().message.contains("already mounted"));
    mount.unmount(false).unwrap();
    loops.join().unwrap().unwrap();

    // A connection that is closed without unmounting is what a killed daemon leaves.
    let point = mount::prepare(&place.source, &place.point, &options).unwrap();
    drop(mount::mount(OsStr::new("dead"), point, &options).unwrap().0);
    let dead = fs::metadata(&place.point).unwrap_err();
    assert_eq!(dead.raw_os_error(), Some(libc::ENOTCONN));
    mount::prepare(&place.source, &place.point, &options).unwrap();
    assert!(table::top_at(&place.point).is_none());
}
