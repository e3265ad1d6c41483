//! Attaching to a mount point and leaving it.
//!
//! The mount is made here and not by the transport: that one restricts requests to the daemon's
//! user id in a way that refuses what the kernel itself asks for on an unprivileged mount (flushed
//! times come as user 0), and its unmount gives up at the first EBUSY. Root uses mount(2), others
//! the `fusermount3` helper. Permissions are always checked by the kernel (`default_permissions`).

mod check;
mod helper;
pub mod table;

pub use check::{MountPoint, prepare};
pub use helper::find as find_helper;

use crate::fs::volume::{Atime, exit};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::{CString, OsStr};
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Type of our mounts as the mount table shows it.
pub const TYPE: &str = "fuse.kmsfs";
/// Read-ahead for mounts made by root, KiB; the kernel's own choice is 128.
const READ_AHEAD_KIB: u32 = 1024;

/// How the mount behaves; the words of `-o` that the kernel or this layer acts on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MountOptions {
    /// No changes.
    pub read_only: bool,
    /// Other users may enter.
    pub allow_other: bool,
    /// Cover a directory that has entries.
    pub nonempty: bool,
    /// Device nodes work (root).
    pub dev: bool,
    /// Set-id bits work (root).
    pub suid: bool,
    /// Programs can be run.
    pub exec: bool,
    /// When reading updates the access time.
    pub atime: Atime,
    /// POSIX ACLs.
    pub acl: bool,
    /// The kernel collects writes.
    pub writeback: bool,
    /// Event-loop threads; `None` = one per processor, 4 to 16.
    pub threads: Option<usize>,
    /// Seconds for which the kernel keeps names and attributes. All changes come through the mount,
    /// so they do not go stale.
    pub cache_secs: u32,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            allow_other: false,
            nonempty: false,
            dev: false,
            suid: false,
            exec: true,
            atime: Atime::default(),
            acl: false,
            writeback: true,
            threads: None,
            cache_secs: 3600,
        }
    }
}

/// Why a mount cannot be made or undone: a sentence and an exit code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct MountError {
    /// What happened and what to do.
    pub message: String,
    /// Process exit code.
    pub exit_code: i32,
}

impl MountError {
    fn point(message: String) -> Self {
        Self { message, exit_code: exit::MOUNT_POINT }
    }

    fn mount(message: String) -> Self {
        Self { message, exit_code: exit::MOUNT }
    }
}

/// A mount made by this process.
#[derive(Debug)]
pub struct Mount {
    path: PathBuf,
    /// Device of the mount, `major:minor`; tells it from a later one at the same place.
    device: Option<String>,
}

/// Mounts at a checked place. Returns the connection to the kernel.
pub fn mount(
    source: &OsStr,
    at: MountPoint,
    options: &MountOptions,
) -> Result<(OwnedFd, Mount), MountError> {
    let connection = if rustix::process::geteuid().is_root() {
        direct(source, &at, options)?
    } else {
        if options.dev || options.suid {
            return Err(MountError::mount("the options dev and suid need root".into()));
        }
        helper::mount(source, at.path(), options)?
    };
    let path = at.path().to_owned();
    let device = table::top_at(&path).filter(|entry| entry.kind == TYPE).map(|entry| entry.device);
    Ok((connection, Mount { path, device }))
}

/// mount(2), with the checked directory itself as the target so that no rename can redirect it.
fn direct(source: &OsStr, at: &MountPoint, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let device = File::options().read(true).write(true).open("/dev/fuse").map_err(no_device)?;
    let data = kernel_options(device.as_raw_fd(), options);
    let data = CString::new(data).map_err(|e| MountError::mount(e.to_string()))?;
    let target = format!("/proc/self/fd/{}", at.directory().as_raw_fd());
    match rustix::mount::mount(source, target, "fuse", flags(options), data.as_c_str()) {
        Ok(()) => Ok(device.into()),
        Err(Errno::PERM) => helper::mount(source, at.path(), options),
        Err(Errno::NODEV) => Err(MountError::mount(
            "this kernel has no FUSE support: load the module `fuse` (modprobe fuse)".into(),
        )),
        Err(e) => {
            let place = at.path().display();
            Err(MountError::mount(format!("cannot mount on {place}: {}", io::Error::from(e))))
        }
    }
}

fn no_device(e: io::Error) -> MountError {
    MountError::mount(match e.kind() {
        io::ErrorKind::NotFound => {
            "/dev/fuse does not exist: load the module `fuse` (modprobe fuse)".into()
        }
        _ => format!("cannot open /dev/fuse: {e}"),
    })
}

/// The option string of the kernel's FUSE driver.
fn kernel_options(connection: i32, options: &MountOptions) -> String {
    let (user, group) = (rustix::process::getuid(), rustix::process::getgid());
    let mut data = format!("fd={connection},rootmode=40000");
    let _ = write!(data, ",user_id={},group_id={}", user.as_raw(), group.as_raw());
    data.push_str(",default_permissions,subtype=kmsfs");
    if options.allow_other {
        data.push_str(",allow_other");
    }
    data
}

fn flags(options: &MountOptions) -> MountFlags {
    let mut flags = MountFlags::empty();
    flags.set(MountFlags::RDONLY, options.read_only);
    flags.set(MountFlags::NODEV, !options.dev);
    flags.set(MountFlags::NOSUID, !options.suid);
    flags.set(MountFlags::NOEXEC, !options.exec);
    match options.atime {
        Atime::Relatime => flags |= MountFlags::RELATIME,
        Atime::Noatime => flags |= MountFlags::NOATIME,
        Atime::Strictatime => flags |= MountFlags::STRICTATIME,
    }
    flags
}

/// Why an unmount did not happen.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// Programs still use the mount; some of them by name.
    #[error("{} is busy{}", .0.display(), .1)]
    Busy(PathBuf, String),
    /// Anything else.
    #[error("cannot unmount {}: {}", .0.display(), .1)]
    Other(PathBuf, io::Error),
}

impl Mount {
    /// Where.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this mount, and not a later one, is on top at its place. Asks the mount table, not
    /// the mount.
    pub fn is_on_top(&self) -> bool {
        let top = table::top_at(&self.path);
        top.is_some_and(|top| self.device.as_ref().is_none_or(|ours| *ours == top.device))
    }

    /// Unmounts; with `detach` also while programs use it, which then keep it until they are done.
    /// A mount that is gone, or covered by a later one, is left alone.
    pub fn unmount(&self, detach: bool) -> Result<(), UnmountError> {
        if !self.is_on_top() {
            log::debug!("{} is not ours any more", self.path.display());
            return Ok(());
        }
        unmount_path(&self.path, detach).map_err(|e| {
            if e.raw_os_error() == Some(libc::EBUSY) {
                UnmountError::Busy(self.path.clone(), table::holders(&self.path))
            } else {
                UnmountError::Other(self.path.clone(), e)
            }
        })
    }

    /// Raises read-ahead. Needs root; without it the kernel's 128 KiB stay.
    pub fn raise_read_ahead(&self) {
        let Some(device) = &self.device else { return };
        let file = format!("/sys/class/bdi/{device}/read_ahead_kb");
        if let Err(e) = std::fs::write(&file, READ_AHEAD_KIB.to_string()) {
            log::debug!("{file}: {e}");
        }
    }
}

/// Unmounts whatever is at `path`; EBUSY if it is in use and `detach` is not given.
pub fn unmount_path(path: &Path, detach: bool) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return helper::unmount(path, detach);
    }
    let mut flags = UnmountFlags::NOFOLLOW;
    flags.set(UnmountFlags::DETACH, detach);
    match rustix::mount::unmount(path, flags) {
        Err(Errno::PERM) => helper::unmount(path, detach),
        other => other.map_err(Into::into),
    }
}

/// Escapes a value for the helper's comma-separated option list.
fn escape(value: &OsStr) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(value.len());
    for &byte in value.as_bytes() {
        if matches!(byte, b',' | b'\\') {
            escaped.push(b'\\');
        }
        escaped.push(byte);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_and_backslashes_in_a_source_cannot_become_options() {
        assert_eq!(escape(OsStr::new("/a,allow_other")), b"/a\\,allow_other");
        assert_eq!(escape(OsStr::new("/a\\,dev")), b"/a\\\\\\,dev");
        assert_eq!(escape(OsStr::from_bytes(b"/\xff")), b"/\xff");
    }

    #[test]
    fn the_kernel_always_checks_permissions() {
        let plain = MountOptions::default();
        assert!(kernel_options(5, &plain).starts_with("fd=5,rootmode=40000,user_id="));
        for allow_other in [false, true] {
            let data = kernel_options(5, &MountOptions { allow_other, ..plain });
            assert!(data.contains(",default_permissions"));
            assert_eq!(data.contains("allow_other"), allow_other);
        }
    }

    #[test]
    fn devices_and_set_id_are_off_unless_asked_for() {
        let plain = flags(&MountOptions::default());
        assert!(plain.contains(MountFlags::NODEV | MountFlags::NOSUID));
        assert!(!plain.intersects(MountFlags::NOEXEC | MountFlags::RDONLY));
        let open = MountOptions { dev: true, suid: true, exec: false, ..Default::default() };
        assert_eq!(flags(&open), MountFlags::NOEXEC | MountFlags::RELATIME);
    }
}
