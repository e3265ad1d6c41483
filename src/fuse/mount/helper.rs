//! Mounting without privileges through `fusermount3`, which is set-user-id root.
//!
//! Protocol: the helper gets a socket in `_FUSE_COMMFD`, mounts, and passes the connection to the
//! kernel back over it. Options it does not know make it refuse, so it is told only what it needs.

use super::{MountError, MountOptions, escape};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};
use std::ffi::{OsStr, OsString};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Names an other helper to use.
const PATH_VARIABLE: &str = "FUSERMOUNT_PATH";
const HELPER: &str = "fusermount3";
/// Where the helper is looked for beside PATH.
const USUAL_PLACES: [&str; 4] = ["/usr/bin", "/bin", "/usr/local/bin", "/sbin"];

/// Mounts and returns the connection to the kernel.
pub fn mount(source: &OsStr, point: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let helper = find().ok_or_else(|| {
        MountError::mount(format!(
            "{HELPER} is not installed: install the package `fuse3`, or mount as root"
        ))
    })?;
    // The helper's end must survive the exec; no other thread can start a program meanwhile,
    // because mounting comes before threads.
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::empty(),
        None,
    )
    .map_err(|e| MountError::mount(format!("socketpair: {}", io::Error::from(e))))?;
    rustix::io::fcntl_setfd(&ours, rustix::io::FdFlags::CLOEXEC)
        .map_err(|e| MountError::mount(format!("fcntl: {}", io::Error::from(e))))?;
    let child = Command::new(&helper)
        .arg("-o")
        .arg(option_list(source, options))
        .arg("--")
        .arg(point)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| cannot_run(&helper, &e))?;
    drop(theirs);
    let connection = receive(&ours);
    let output = child.wait_with_output().map_err(|e| cannot_run(&helper, &e))?;
    match connection {
        Ok(Some(connection)) if output.status.success() => Ok(connection),
        _ => Err(refusal(&output)),
    }
}

/// Unmounts; EBUSY if the mount is in use and `detach` is not given.
pub fn unmount(point: &Path, detach: bool) -> io::Result<()> {
    let helper = find().ok_or_else(|| io::Error::other(format!("{HELPER} is not installed")))?;
    let mut command = Command::new(helper);
    command.arg("-u");
    if detach {
        command.arg("-z");
    }
    command.arg("--").arg(point).stdin(Stdio::null()).env("LC_ALL", "C");
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = said(&output);
    if said.contains("busy") {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    Err(io::Error::other(said))
}

/// Where the helper is.
pub fn find() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(PATH_VARIABLE) {
        return Some(path.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(USUAL_PLACES.iter().map(PathBuf::from));
    places.map(|place| place.join(HELPER)).find(|candidate| candidate.is_file())
}

fn option_list(source: &OsStr, options: &MountOptions) -> OsString {
    let mut words: Vec<&[u8]> = vec![if options.read_only { b"ro" } else { b"rw" }];
    words.extend([&b"nosuid"[..], b"nodev", b"default_permissions", b"subtype=kmsfs"]);
    if !options.exec {
        words.push(b"noexec");
    }
    if options.allow_other {
        words.push(b"allow_other");
    }
    let name = [&b"fsname="[..], &escape(source)].concat();
    words.push(&name);
    OsString::from_vec(words.join(&b','))
}

/// The descriptor the helper passes; none if it ended without.
fn receive(socket: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    loop {
        let mut room = [IoSliceMut::new(&mut byte)];
        match rustix::net::recvmsg(socket, &mut room, &mut ancillary, flags) {
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
            Ok(_) => break,
        }
    }
    let mut passed = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            passed = descriptors.next();
        }
    }
    Ok(passed)
}

fn cannot_run(helper: &Path, e: &io::Error) -> MountError {
    MountError::mount(format!("cannot run {}: {e}", helper.display()))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

/// The helper's refusal in our words where we know better what to do.
fn refusal(output: &Output) -> MountError {
    let said = said(output);
    MountError::mount(if said.contains("user_allow_other") {
        "-o allow_other needs the line `user_allow_other` in /etc/fuse.conf, or root".into()
    } else if said.contains("fuse device not found") || said.contains("/dev/fuse: No such file") {
        "/dev/fuse does not exist: load the module `fuse` (modprobe fuse)".into()
    } else if said.contains("/dev/fuse: Permission denied") {
        "ordinary users may not open /dev/fuse here; it is mode 0666 on most systems \
         (chmod 0666 /dev/fuse), or mount as root"
            .into()
    } else if said.is_empty() {
        format!("{HELPER} failed without a word ({})", output.status)
    } else {
        said
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_helper_gets_only_words_it_knows() {
        let list = option_list(OsStr::new("/a,b"), &MountOptions::default());
        assert_eq!(list, "rw,nosuid,nodev,default_permissions,subtype=kmsfs,fsname=/a\\,b");
        let options =
            MountOptions { read_only: true, exec: false, allow_other: true, ..Default::default() };
        let list = option_list(OsStr::new("s"), &options);
        assert_eq!(
            list,
            "ro,nosuid,nodev,default_permissions,subtype=kmsfs,noexec,allow_other,fsname=s"
        );
    }

    #[test]
    fn a_helper_that_closes_the_socket_passes_nothing() {
        let flags = SocketFlags::CLOEXEC;
        let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None);
        let (ours, theirs) = pair.unwrap();
        drop(theirs);
        assert!(receive(&ours).unwrap().is_none());
    }
}
