//! A volume on a fake KMS, mounted in the foreground so that its log can be read.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use kmsfs::fuse::{control, mount};
use serde_json::Value;
use tempfile::TempDir;

use super::aws::{ACCESS_KEY, FakeAws, Origin, SECRET_KEY};

/// Longest wait for something that has to happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// A fake, a key in it, a volume on that key.
pub struct Bed {
    pub fake: FakeAws,
    pub key: String,
    dir: TempDir,
    daemon: Option<Child>,
}

/// Surroundings of a program: only these credentials, nothing of the machine's own.
pub fn surroundings(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("AWS_") {
            command.env_remove(name);
        }
    }
    command
        .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        .env("AWS_CONFIG_FILE", "/nonexistent/config")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent/credentials")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("XDG_STATE_HOME", std::env::temp_dir().join("kmsfs-state"));
}

/// `kmsfsctl` with arguments.
pub fn ctl<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kmsfsctl"));
    surroundings(&mut command);
    command.args(arguments);
    command
}

/// Runs a command that must succeed; what it said.
pub fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Everything a command said.
pub fn text(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    format!("{} {out}{err}", output.status)
}

/// Runs a command that must fail with this exit code; what it said.
pub fn refused(command: &mut Command, code: i32) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{command:?}: {}", text(&output));
    text(&output)
}

/// Waits until something holds.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "never came: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The errno of what failed.
pub fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.expect_err("it worked").raw_os_error().expect("an errno")
}

impl Bed {
    /// A volume with the default number of files per data key, not mounted.
    pub fn new() -> Bed {
        Bed::with(&[])
    }

    /// A volume made with further arguments of `init`.
    pub fn with(init: &[&str]) -> Bed {
        let fake = FakeAws::start();
        fake.set_strict_context(true);
        let key = fake.create_key(Origin::CloudHsm);
        Bed::on(fake, key, init)
    }

    /// A volume on this key.
    pub fn on(fake: FakeAws, key: String, init: &[&str]) -> Bed {
        let dir = TempDir::with_prefix("kmsfs-kms-").unwrap();
        let bed = Bed { fake, key, dir, daemon: None };
        fs::create_dir(bed.point()).unwrap();
        said(bed.ctl("init", &[&["--key", &format!("aws-kms:{}", bed.key)], init].concat()));
        bed.fake.reset_counters();
        bed
    }

    /// A place beside the volume.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn source(&self) -> PathBuf {
        self.path("source")
    }

    pub fn point(&self) -> PathBuf {
        self.path("point")
    }

    /// A place in the mount.
    pub fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.point().join(name)
    }

    /// `kmsfsctl COMMAND SOURCE` with further arguments, calling the fake.
    pub fn ctl(&self, command: &str, arguments: &[&str]) -> &'static mut Command {
        let mut ctl = ctl(&command.split(' ').collect::<Vec<_>>());
        ctl.arg(self.source()).args(["--kms-endpoint", &self.fake.endpoint()]).args(arguments);
        // A test's worth of memory for an expression that reads well.
        Box::leak(Box::new(ctl))
    }

    /// The command that mounts the volume, in the foreground, with further options.
    pub fn mount_command(&self, options: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kmsfs"));
        surroundings(&mut command);
        let common = format!("kms-endpoint={}", self.fake.endpoint());
        let options = if options.is_empty() { common } else { format!("{common},{options}") };
        command.arg(self.source()).arg(self.point()).args(["-f", "-o", &options]);
        command
    }

    /// Mounts, and waits until the mount answers.
    pub fn mount(&mut self, options: &str) {
        let mut command = self.mount_command(options);
        self.mount_with(&mut command);
    }

    pub fn mount_with(&mut self, command: &mut Command) {
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        // Its own group, so that no signal meant for the tests reaches it.
        let daemon = command.stderr(log).process_group(0).spawn().unwrap();
        self.daemon = Some(daemon);
        let point = self.point().canonicalize().unwrap();
        until("the mount", || {
            let ended = self.daemon.as_mut().and_then(|daemon| daemon.try_wait().unwrap());
            assert!(ended.is_none(), "mount: {}", self.log());
            mount::table::top_at(&point).is_some() && control::status(&point).is_ok()
        });
    }

    /// What the daemon has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// The daemon's process id.
    pub fn daemon(&self) -> u32 {
        self.daemon.as_ref().unwrap().id()
    }

    /// What `status` says.
    pub fn status(&self) -> Value {
        serde_json::from_str(&control::status(&self.point()).unwrap()).unwrap()
    }

    /// What `status` says of keys.
    pub fn keys(&self) -> Value {
        self.status()["keys"].clone()
    }

    /// Waits until the keys have gone `times` times, the kernel's cache included.
    pub fn until_locked(&self, times: usize) {
        until("the lock", || self.log().matches("keys dropped").count() == times);
        assert_eq!(self.keys()["state"], "locked");
    }

    /// Waits until they have come back as often.
    pub fn until_granted(&self, times: usize) {
        until("the keys", || self.log().matches("is granted again").count() == 2 * times);
        assert_eq!(self.keys()["state"], "granted");
    }

    /// Unmounts and waits for the daemon.
    pub fn unmount(&mut self) {
        let mut umount = ctl(&["umount"]);
        umount.arg(self.point());
        // A program that another test is about to start has copies of our open files for a moment.
        let mut told = umount.output().unwrap();
        for _ in 0..100 {
            if !text(&told).contains("is busy") {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
            told = umount.output().unwrap();
        }
        assert!(told.status.success(), "{}", text(&told));
        self.ended();
    }

    /// Waits for the daemon, which was asked to end.
    pub fn ended(&mut self) {
        let status = self.daemon.take().unwrap().wait().unwrap();
        assert!(status.success(), "{status}: {}", self.log());
    }

    /// Kills the daemon and clears its mount.
    pub fn kill(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        mount::unmount_path(&self.point(), true).unwrap();
    }

    pub fn remount(&mut self, options: &str) {
        self.unmount();
        self.mount(options);
    }

    /// Makes files `name-0000` … with a few bytes each.
    pub fn make_files(&self, name: &str, number: usize) {
        for i in 0..number {
            fs::write(self.at(format!("{name}-{i:05}")), format!("file {i}")).unwrap();
        }
    }

    /// Reads them again.
    pub fn read_files(&self, name: &str, number: usize) {
        for i in 0..number {
            let bytes = fs::read(self.at(format!("{name}-{i:05}"))).unwrap();
            assert_eq!(bytes, format!("file {i}").as_bytes());
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            if std::thread::panicking() {
                eprintln!("log of the daemon:\n{}", self.log());
            }
            let _ = mount::unmount_path(&self.point(), true);
            self.fake.clear_faults();
            let _ = daemon.wait();
        }
    }
}
