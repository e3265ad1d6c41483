//! `status`, `sync` and `umount` of a live mount.
//!
//! The channel is the mount itself: reserved attribute names on its root directory, read with
//! getxattr(2). No socket, no file, nothing to clean up after a crash; who cannot reach the mount
//! cannot ask. They are answered to root and to the daemon's own user only, and never listed.
//! Reading takes no lock in the kernel, so `sync` may make the kernel write back meanwhile.
//!
//! `kmsfs.status` is a JSON object, `kmsfs.metrics` the counters as Prometheus reads them. `kmsfs.sync`
//! writes everything to the backing disk, then answers `ok`. A request with a body is left with
//! setxattr(2) as `kmsfs.request.<ticket>`; reading `kmsfs.answer.<ticket>` carries it out. In two
//! steps, as the kernel locks the directory while an attribute is set.

use super::metrics;
use super::ops::Counters;
use crate::fs::{Caller, FsError, FsResult, JournalStatus, Volume};
use fuser::{INodeNo, Notifier};
use parking_lot::Mutex;
use rustix::time::Timespec;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Instant;

const STATUS: &str = "kmsfs.status";
const SYNC: &str = "kmsfs.sync";
const METRICS: &str = "kmsfs.metrics";
const REQUEST: &str = "kmsfs.request.";
const ANSWER: &str = "kmsfs.answer.";
/// Requests left and not yet carried out; the oldest goes.
const REQUESTS_MAX: usize = 4;
/// Largest attribute value the kernel passes, bytes.
const MAX_VALUE: usize = 65536;
/// How long an unmount waits before it says what for.
const PATIENCE: Timespec = Timespec { tv_sec: 3, tv_nsec: 0 };

/// What `status` tells beside the volume's own facts.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Mounted read-only.
    pub read_only: bool,
    /// AEAD backend in use.
    pub aead: &'static str,
}

/// The server's side.
pub struct Control {
    facts: Facts,
    started: Instant,
    owner: u32,
    counters: Counters,
    /// Inodes with handles that may have dirty pages, and how many.
    writers: Mutex<HashMap<u64, usize>>,
    notifier: OnceLock<Notifier>,
    /// Requests by ticket.
    requests: Mutex<VecDeque<(Vec<u8>, Vec<u8>)>>,
}

/// Whether a name is ours to answer.
pub fn is_control_name(name: &[u8]) -> bool {
    [STATUS, SYNC, METRICS].iter().any(|known| name == known.as_bytes())
        || name.starts_with(ANSWER.as_bytes())
}

/// Whether a name is that of a request.
pub fn is_request_name(name: &[u8]) -> bool {
    name.starts_with(REQUEST.as_bytes())
}

impl Control {
    /// For a mount that starts now.
    pub fn new(facts: Facts) -> Self {
        Self {
            facts,
            started: Instant::now(),
            owner: rustix::process::geteuid().as_raw(),
            counters: Counters::default(),
            writers: Mutex::default(),
            notifier: OnceLock::new(),
            requests: Mutex::default(),
        }
    }

    /// Lets `sync` reach the kernel's page cache.
    pub fn set_notifier(&self, notifier: Notifier) {
        let _ = self.notifier.set(notifier);
    }

    /// Requests so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// A handle that may write was opened.
    pub fn writer_opened(&self, ino: u64) {
        *self.writers.lock().entry(ino).or_insert(0) += 1;
    }

    /// Such a handle is gone; no dirty page refers to it any more.
    pub fn writer_released(&self, ino: u64) {
        let mut writers = self.writers.lock();
        if let Some(count) = writers.get_mut(&ino) {
            *count -= 1;
            if *count == 0 {
                writers.remove(&ino);
            }
        }
    }

    /// Might the kernel hold dirty pages of this file?
    pub fn has_writer(&self, ino: u64) -> bool {
        self.writers.lock().contains_key(&ino)
    }

    /// Makes the kernel write a file's dirty pages to us, and drop them. The requests this causes
    /// are answered by the event loops: not for an event-loop thread.
    pub fn write_back(&self, ino: u64) {
        self.invalidate(ino, 0);
    }

    /// Makes the kernel ask for a file's attributes again. Not for an event-loop thread.
    pub fn refresh_attributes(&self, ino: u64) {
        self.invalidate(ino, -1);
    }

    fn invalidate(&self, ino: u64, offset: i64) {
        // An inode the kernel no longer has is not an error.
        if let Some(notifier) = self.notifier.get()
            && let Err(e) = notifier.inval_inode(INodeNo(ino), offset, 0)
        {
            log::debug!("invalidation of inode {ino}: {e}");
        }
    }

    /// Answers one of the reserved names. May wait for the disk and for the kernel: not for an
    /// event-loop thread.
    pub fn answer(&self, volume: &Volume, who: Caller, name: &[u8]) -> FsResult<Vec<u8>> {
        self.require_owner(who)?;
        if let Some(ticket) = name.strip_prefix(ANSWER.as_bytes()) {
            let request = self.taken(ticket).ok_or(FsError::Errno(libc::ENODATA))?;
            return Ok(volume.carry_out(&request));
        }
        if name == SYNC.as_bytes() {
            self.sync(volume)?;
            return Ok(b"ok".to_vec());
        }
        if name == METRICS.as_bytes() {
            return Ok(metrics::text(volume, &self.counters).into_bytes());
        }
        Ok(self.status(volume).to_string().into_bytes())
    }

    fn status(&self, volume: &Volume) -> serde_json::Value {
        let (inodes, handles, descriptors) = volume.counters();
        let flushes = volume.flushes();
        serde_json::json!({
            "mountpoint": self.facts.mountpoint.to_string_lossy(),
            "source": volume.source().to_string_lossy(),
            "volume": hex(&volume.descriptor().volume.0),
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "pid_namespace": pid_namespace(),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "aead": self.facts.aead,
            "access": if self.facts.read_only { "ro" } else { "rw" },
            "inodes": inodes,
            "handles": handles,
            "backing_descriptors": descriptors,
            "expected_keys": volume.expected_keys(),
            "keys": metrics::key_json(&volume.key_facts()),
            "journal": volume.journal_status().map(journal_facts),
            "requests": self.counters.to_json(),
            "flushes": {
                "files": flushes.files,
                "helpers": flushes.helpers,
                "directories": flushes.directories,
                "whole": flushes.whole,
                "journal": flushes.journal,
            },
        })
    }

    /// Makes the kernel hand over its dirty pages, then commits and flushes everything. Not for an
    /// event-loop thread.
    pub fn sync(&self, volume: &Volume) -> FsResult<()> {
        let inodes: Vec<u64> = self.writers.lock().keys().copied().collect();
        inodes.into_iter().for_each(|ino| self.write_back(ino));
        volume.commit_all(true)
    }

    fn require_owner(&self, who: Caller) -> FsResult<()> {
        match who.uid == 0 || who.uid == self.owner {
            true => Ok(()),
            false => Err(FsError::Errno(libc::EPERM)),
        }
    }

    /// Keeps a request until its answer is read.
    pub fn leave(&self, who: Caller, name: &[u8], request: &[u8]) -> FsResult<()> {
        self.require_owner(who)?;
        let ticket = name.strip_prefix(REQUEST.as_bytes()).unwrap_or_default();
        let mut requests = self.requests.lock();
        requests.push_back((ticket.to_vec(), request.to_vec()));
        if requests.len() > REQUESTS_MAX {
            requests.pop_front();
        }
        Ok(())
    }

    fn taken(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let mut requests = self.requests.lock();
        let at = requests.iter().position(|(known, _)| known == ticket)?;
        requests.remove(at).map(|(_, request)| request)
    }
}

fn journal_facts(journal: JournalStatus) -> serde_json::Value {
    serde_json::json!({
        "bytes": journal.capacity,
        "used": journal.used,
        "files": journal.files,
        "records": journal.records,
        "checkpoints": journal.checkpoints,
        "frozen": journal.frozen,
    })
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Names the id space process numbers belong to.
fn pid_namespace() -> String {
    let link = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    link.to_string_lossy().into_owned()
}

// -- the asking side

/// The status of the mount at `mountpoint`, a JSON object.
pub fn status(mountpoint: &Path) -> io::Result<String> {
    let value = ask(mountpoint, STATUS)?;
    String::from_utf8(value).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

/// The counters of the mount at `mountpoint`, as Prometheus reads them.
pub fn metrics(mountpoint: &Path) -> io::Result<String> {
    let value = ask(mountpoint, METRICS)?;
    String::from_utf8(value).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

/// Longest request.
pub const REQUEST_MAX: usize = MAX_VALUE;

/// Has the daemon of the mount at `mountpoint` carry out a request; its answer.
pub fn request(mountpoint: &Path, ticket: &str, request: &[u8]) -> io::Result<Vec<u8>> {
    if request.len() > REQUEST_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the request is too long"));
    }
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(mountpoint, format!("{REQUEST}{ticket}"), request, flags)?;
    ask(mountpoint, &format!("{ANSWER}{ticket}"))
}

/// Writes everything in the mount at `mountpoint` to the backing disk. Programs may go on writing
/// meanwhile; what they had written before the call is covered.
pub fn sync(mountpoint: &Path) -> io::Result<()> {
    // Starts write-back of pages and times in the kernel; it does not wait, the request does.
    let root = std::fs::File::open(mountpoint)?;
    rustix::fs::syncfs(&root)?;
    ask(mountpoint, SYNC).map(drop)
}

/// Unmounts `mountpoint` and waits until its daemon has written everything and ended.
/// A mount whose daemon died is just removed.
pub fn unmount(mountpoint: &Path) -> io::Result<()> {
    unmount_patiently(mountpoint, &mut || {})
}

/// The same; `waiting` is called once when the daemon takes its time.
pub fn unmount_patiently(mountpoint: &Path, waiting: &mut dyn FnMut()) -> io::Result<()> {
    let daemon = match status(mountpoint) {
        Ok(json) => daemon_of(&json),
        Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => {
            return super::mount::unmount_path(mountpoint, true);
        }
        Err(e) => return Err(e),
    };
    super::mount::unmount_path(mountpoint, false)?;
    match daemon {
        Some(daemon) => {
            if !gone_within(&daemon, Some(&PATIENCE))? {
                waiting();
                gone_within(&daemon, None)?;
            }
            Ok(())
        }
        None => Ok(()),
    }
}

fn ask(mountpoint: &Path, name: &str) -> io::Result<Vec<u8>> {
    let mut value = vec![0; MAX_VALUE];
    match rustix::fs::getxattr(mountpoint, name, &mut value[..]) {
        Ok(length) => {
            value.truncate(length);
            Ok(value)
        }
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => {
            let sentence = format!("{} is not a kmsfs mount point", mountpoint.display());
            Err(io::Error::new(io::ErrorKind::InvalidInput, sentence))
        }
        Err(e) => Err(e.into()),
    }
}

/// A handle on the daemon that wrote this status, if it lives in our id space.
fn daemon_of(json: &str) -> Option<rustix::fd::OwnedFd> {
    let status: serde_json::Value = serde_json::from_str(json).ok()?;
    if status.get("pid_namespace")?.as_str()? != pid_namespace() {
        return None;
    }
    let pid = i32::try_from(status.get("pid")?.as_i64()?).ok()?;
    let pid = rustix::process::Pid::from_raw(pid)?;
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()
}

/// Whether the daemon ended before the time was over.
fn gone_within(daemon: &rustix::fd::OwnedFd, time: Option<&Timespec>) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, poll};
    loop {
        match poll(&mut [PollFd::new(daemon, PollFlags::IN)], time) {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.map(|ready| ready > 0).map_err(Into::into),
        }
    }
}
