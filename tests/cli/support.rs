//! A scratch directory with a volume in it, and ways to run the programs on it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use kmsfs::fs::{Access, Atime, Caller, Ino, MountFlags, Volume};
use kmsfs::keys::UnlockOptions;
use rustix::fs::FlockOperation;
use tempfile::TempDir;

pub const ROOT: Ino = 1;
pub const CTL: &str = env!("CARGO_BIN_EXE_kmsfsctl");
pub const MOUNT: &str = env!("CARGO_BIN_EXE_kmsfs");

/// What a program did.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().expect("ended by itself"),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ran {
    /// It did what it was told, and complained about nothing.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        self.out
    }

    /// It refused with this code, in a sentence that says all of this.
    #[track_caller]
    pub fn refused(self, code: i32, says: &[&str]) -> Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        let named = |line: &str| line.starts_with("kmsfsctl: ") || line.starts_with("kmsfs: ");
        assert!(self.err.lines().last().is_some_and(named), "{}", self.err);
        for part in says {
            assert!(self.err.contains(part), "{part:?} is not in {}", self.err);
        }
        assert!(!self.err.contains("panicked"), "{}", self.err);
        self
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}", self.out))
    }
}

/// Runs a program without a terminal.
pub fn run(program: &str, args: &[&dyn AsRef<OsStr>]) -> Ran {
    let mut command = Command::new(program);
    command.args(args.iter().map(|a| a.as_ref())).stdin(Stdio::null());
    // No controlling terminal, so that nothing waits for a passphrase.
    let mut detached = Command::new("setsid");
    detached.arg("-w").arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    detached.output().expect("setsid from util-linux").into()
}

macro_rules! ctl {
    ($($arg:expr),* $(,)?) => {
        $crate::support::run($crate::support::CTL, &[$(&$arg),*])
    };
}
pub(crate) use ctl;

/// A directory for one test.
pub struct Scratch {
    dir: TempDir,
}

impl Scratch {
    pub fn new() -> Self {
        Self { dir: TempDir::new().expect("a scratch directory") }
    }

    /// A volume opened by a key file.
    pub fn with_volume() -> Self {
        let scratch = Self::new();
        let spec = format!("keyfile:{}", scratch.key().display());
        ctl!("init", scratch.volume(), "--key", spec).ok();
        scratch
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn volume(&self) -> PathBuf {
        self.path("volume")
    }

    pub fn key(&self) -> PathBuf {
        self.path("volume.key")
    }

    pub fn descriptor(&self) -> PathBuf {
        self.volume().join("kmsfs.volume")
    }

    /// An empty directory to mount on.
    pub fn point(&self) -> PathBuf {
        let point = self.path("point");
        fs::create_dir_all(&point).expect("made");
        point
    }

    /// A file only its owner can read.
    pub fn secret_file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
        path
    }

    /// Opens the volume in this process.
    pub fn open(&self, access: Access) -> Volume {
        let options = UnlockOptions { keyfile: Some(self.key()), ..UnlockOptions::default() };
        let flags = MountFlags {
            acl: true,
            atime: Atime::Noatime,
            own_by_caller: false,
            writeback: false,
            rekey_limit: 0,
        };
        self.wait_until_free(access);
        Volume::open(&self.volume(), access, flags, &options).expect("the volume opens")
    }

    /// A program that another test is just starting has our descriptors, and so our lock, until it
    /// runs.
    fn wait_until_free(&self, access: Access) {
        let lock = match access {
            Access::ReadWrite => FlockOperation::LockExclusive,
            Access::ReadOnly => FlockOperation::LockShared,
        };
        let root = fs::File::open(self.volume()).expect("the volume is there");
        rustix::fs::flock(&root, lock).expect("locked for a moment");
    }

    /// Writes into the volume, and closes it.
    pub fn fill(&self, work: impl FnOnce(&Volume)) {
        let volume = self.open(Access::ReadWrite);
        work(&volume);
        volume.shutdown().expect("everything is written");
        drop(volume);
        self.wait_until_free(Access::ReadWrite);
    }
}

pub fn me() -> Caller {
    Caller {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        pid: std::process::id(),
    }
}

/// Writes a file; returns its inode number and its path below the backing directory.
pub fn write_file(volume: &Volume, parent: Ino, name: &str, content: &[u8]) -> (Ino, PathBuf) {
    let (attr, opened) = volume
        .create(me(), parent, name.as_bytes(), 0o644, 0, libc::O_RDWR)
        .expect("the file is made");
    volume.write(opened.fh, 0, content, kmsfs::fs::WriteHow::Direct).expect("written");
    volume.flush(opened.fh).expect("flushed");
    volume.release(opened.fh);
    (attr.ino, volume.backing_path(attr.ino))
}

/// Bytes that repeat nowhere soon.
pub fn bytes(len: usize) -> Vec<u8> {
    (0..len as u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

/// Flips one bit of a file.
pub fn flip(path: &Path, offset: usize) {
    let mode = fs::metadata(path).expect("there").permissions();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("chmod");
    let mut content = fs::read(path).expect("readable");
    content[offset] ^= 1;
    fs::write(path, content).expect("writable");
    fs::set_permissions(path, mode).expect("chmod");
}
