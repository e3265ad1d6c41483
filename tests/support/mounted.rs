//! A volume mounted for a test: made with `kmsfsctl`, mounted with `kmsfs`, unmounted when dropped.
//!
//! Works as root, and for root also as an ordinary user ([`Mounted::as_user`]) who goes through
//! fusermount3. What only root can do is asked with [`root`].

#![allow(dead_code)]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use kmsfs::fuse::{control, mount};
use tempfile::TempDir;

/// The ordinary user of tests that run as root.
const USER: &str = "kmsfs-test";

/// Whether the tests run as root. Tests that need it do nothing for others, who cannot run them;
/// automatic runs are root.
pub fn root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A volume and where it is mounted.
pub struct Mounted {
    dir: TempDir,
    options: String,
    user: bool,
    kmsfs: PathBuf,
}

impl Mounted {
    /// A fresh volume, mounted by whoever runs the tests.
    pub fn new(options: &str) -> Mounted {
        let mounted = Mounted::unmounted(options);
        mounted.mount();
        mounted
    }

    /// A fresh volume, not mounted yet.
    pub fn unmounted(options: &str) -> Mounted {
        Mounted::prepare(&std::env::temp_dir(), options, false)
    }

    /// A fresh volume whose backing directory lies below `place`, mounted.
    pub fn below(place: &Path, options: &str) -> Mounted {
        let mounted = Mounted::prepare(place, options, false);
        mounted.mount();
        mounted
    }

    /// A fresh volume of the ordinary user, mounted by that user.
    pub fn as_user(options: &str) -> Mounted {
        let mounted = Mounted::prepare(&std::env::temp_dir(), options, true);
        mounted.mount();
        mounted
    }

    fn prepare(place: &Path, options: &str, user: bool) -> Mounted {
        let dir = TempDir::with_prefix_in("kmsfs-mount-", place).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let kmsfs = PathBuf::from(env!("CARGO_BIN_EXE_kmsfs"));
        let mut mounted = Mounted { dir, options: options.to_owned(), user: user && root(), kmsfs };
        for place in [mounted.source(), mounted.point()] {
            fs::create_dir(place).unwrap();
        }
        if mounted.user {
            mounted.hand_over();
        }
        let init = mounted.command(mounted.tool("kmsfsctl"));
        let key = format!("keyfile:{}", mounted.path("key").display());
        ok(with(
            init,
            &["init".as_ref(), mounted.source().as_os_str(), "--key".as_ref(), key.as_ref()],
        ));
        mounted
    }

    /// Gives everything to the ordinary user, programs included: the build may lie where that
    /// user cannot go.
    fn hand_over(&mut self) {
        let (uid, gid) = ordinary_user();
        for program in ["kmsfs", "kmsfsctl"] {
            let built = match program {
                "kmsfs" => env!("CARGO_BIN_EXE_kmsfs"),
                _ => env!("CARGO_BIN_EXE_kmsfsctl"),
            };
            fs::copy(built, self.path(program)).unwrap();
        }
        self.kmsfs = self.path("kmsfs");
        for place in [self.dir.path().to_owned(), self.source(), self.point()] {
            chown(place, Some(uid), Some(gid)).unwrap();
        }
    }

    fn tool(&self, name: &str) -> PathBuf {
        if self.user { self.path(name) } else { PathBuf::from(env!("CARGO_BIN_EXE_kmsfsctl")) }
    }

    /// A place beside the volume, outside the mount.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The backing directory.
    pub fn source(&self) -> PathBuf {
        self.path("source")
    }

    /// The mount point.
    pub fn point(&self) -> PathBuf {
        self.path("point")
    }

    /// A place in the mount.
    pub fn at(&self, name: &str) -> PathBuf {
        self.point().join(name)
    }

    /// A program run by the user of this mount.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        if !self.user {
            return Command::new(program);
        }
        let mut command = Command::new("setpriv");
        command.args(["--reuid", USER, "--regid", USER, "--init-groups", "--"]).arg(program);
        command.current_dir("/");
        command
    }

    /// A shell line run by the user of this mount in its root directory; must succeed.
    pub fn shell(&self, line: &str) -> String {
        let mut shell = self.command("sh");
        shell.arg("-ec").arg(format!("cd \"$0\"; {line}")).arg(self.point());
        String::from_utf8(ok(shell).stdout).unwrap()
    }

    /// Tries to mount `source` on `point`.
    pub fn try_mount(&self, source: &Path, point: &Path, options: &str) -> Output {
        let mut command = self.command(&self.kmsfs);
        command.arg(source).arg(point);
        if !options.is_empty() {
            command.args(["-o", options]);
        }
        command.output().unwrap()
    }

    /// Mounts again.
    pub fn mount(&self) {
        let output = self.try_mount(&self.source(), &self.point(), &self.options);
        assert!(output.status.success(), "mount: {}", text(&output));
    }

    /// Unmounts and waits for the daemon.
    pub fn unmount(&self) {
        for tries in 0.. {
            let command = self.command(self.tool("kmsfsctl"));
            let mut command = with(command, &["umount".as_ref(), self.point().as_os_str()]);
            let output = command.output().unwrap();
            // Files of the mount live on, for a moment, in a program that another test of this
            // process is starting: forked off with all descriptors, it has not closed them yet.
            let holder = format!("is busy, in use by {}", env!("CARGO_CRATE_NAME"));
            let said = text(&output);
            let fleeting = said.contains("is busy; close") || said.contains(&holder);
            if fleeting && tries < 500 {
                std::thread::sleep(std::time::Duration::from_millis(20));
                continue;
            }
            assert!(output.status.success(), "{command:?}: {said}");
            return;
        }
    }

    /// Unmounts and mounts again.
    pub fn remount(&self) {
        self.unmount();
        self.mount();
    }

    /// What `status` says.
    pub fn status(&self) -> serde_json::Value {
        let mut command = self.command(self.tool("kmsfsctl"));
        command.arg("status").arg(self.point()).arg("--json");
        serde_json::from_slice(&ok(command).stdout).unwrap()
    }

    /// How often the kernel asked for an operation so far.
    pub fn requests(&self, operation: &str) -> u64 {
        self.status()["requests"][operation].as_u64().unwrap_or(0)
    }

    /// The daemon's process id.
    pub fn daemon(&self) -> i32 {
        i32::try_from(self.status()["pid"].as_i64().unwrap()).unwrap()
    }

    /// Kills the daemon and waits until it is gone.
    pub fn kill(&self) {
        self.signal_and_wait(rustix::process::Signal::KILL);
    }

    /// Sends a signal to the daemon and waits until it has ended.
    pub fn signal_and_wait(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.daemon()).unwrap();
        let flags = rustix::process::PidfdFlags::empty();
        let daemon = rustix::process::pidfd_open(pid, flags).unwrap();
        rustix::process::pidfd_send_signal(&daemon, signal).unwrap();
        use rustix::event::{PollFd, PollFlags, poll};
        poll(&mut [PollFd::new(&daemon, PollFlags::IN)], None).unwrap();
    }

    /// Whether something is mounted.
    pub fn is_mounted(&self) -> bool {
        mount::table::top_at(&self.point().parent().unwrap().canonicalize().unwrap().join("point"))
            .is_some()
    }

    /// Writes the kernel's dirty pages and the daemon's state to the backing.
    pub fn sync(&self) {
        let mut command = self.command(self.tool("kmsfsctl"));
        command.arg("sync").arg(self.point());
        ok(command);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.is_mounted() && (self.user || control::unmount(&self.point()).is_err()) {
            // As root also for the ordinary user's mount; a failing test may have left it busy.
            let _ = mount::unmount_path(&self.point(), true);
        }
    }
}

fn with(mut command: Command, arguments: &[&OsStr]) -> Command {
    command.args(arguments);
    command
}

/// Runs a command that must succeed.
pub fn ok(mut command: Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", text(&output));
    output
}

/// What a program said on standard error, with its exit status.
pub fn text(output: &Output) -> String {
    format!("{} {}", output.status, String::from_utf8_lossy(&output.stderr))
}

/// The ordinary user's ids; makes the user if need be.
fn ordinary_user() -> (u32, u32) {
    if id("-u").is_none() {
        // Tests in several processes may get here together; only the result counts.
        let _ = Command::new("useradd").args(["--create-home", "--user-group", USER]).output();
    }
    // As on an installed system; containers and bare kernels may have it closed.
    fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666)).unwrap();
    (id("-u").unwrap(), id("-g").unwrap())
}

fn id(which: &str) -> Option<u32> {
    let output = Command::new("id").args([which, USER]).output().unwrap();
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}
