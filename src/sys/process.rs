//! Process-wide system calls of a daemon: fork, limits, descriptors it inherited.
//!
//! Knows nothing of file systems or mounts.

use rustix::process::{Pid, Resource, Rlimit};
use std::io;
use std::os::fd::RawFd;

/// Upper bound for the soft limit of open files; more only costs the kernel memory.
const MAX_OPEN_FILES: u64 = 1 << 20;

/// Which side of [`fork`] the caller is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fork {
    /// The old process, with the id of the new one.
    Parent(Pid),
    /// The new process.
    Child,
}

/// Refuses what may be done only while one thread runs.
fn be_alone(what: &str) -> io::Result<()> {
    if std::fs::read_dir("/proc/self/task").map(Iterator::count).unwrap_or(1) != 1 {
        return Err(io::Error::other(format!(
            "{what} is possible only before threads are started"
        )));
    }
    Ok(())
}

/// Takes the variables whose names begin so out of this process's environment. Refused while more
/// than one thread runs: another might be reading it.
pub fn unset_variables(prefix: &str) -> io::Result<()> {
    be_alone("unsetting variables")?;
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(prefix.as_bytes()) {
            // SAFETY: no other thread exists that could read or change the environment, as checked
            // above.
            unsafe { std::env::remove_var(name) };
        }
    }
    Ok(())
}

/// Splits the process in two. Refused while more than one thread runs: the child would have
/// copies of locks that nobody in it can release.
pub fn fork() -> io::Result<Fork> {
    be_alone("fork")?;
    // SAFETY: fork has no memory-safety precondition but that the child of a multi-threaded
    // process must not rely on other threads; only one thread exists, as checked above.
    let id = unsafe { libc::fork() };
    match id {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        id => Pid::from_raw(id).map(Fork::Parent).ok_or_else(|| io::Error::other("bad process id")),
    }
}

/// Descriptors above standard error that are open now. Called first thing in a program it names
/// those that were inherited.
pub fn open_descriptors() -> Vec<RawFd> {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return Vec::new() };
    let numbers: Vec<RawFd> =
        entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    // The directory handle of the scan itself is among them and closed by now.
    numbers.into_iter().filter(|&fd| fd > 2 && is_open(fd)).collect()
}

/// Whether a descriptor number is in use.
fn is_open(fd: RawFd) -> bool {
    // SAFETY: F_GETFD reads a flag of the descriptor table and touches no memory.
    unsafe { libc::fcntl(fd, libc::F_GETFD) != -1 }
}

/// Closes descriptors found by [`open_descriptors`] at the start of the program.
pub fn close_inherited(inherited: &[RawFd]) {
    for &fd in inherited {
        // SAFETY: the numbers were open before this program opened anything, so no owned
        // descriptor object of this program has one of them.
        unsafe { libc::close(fd) };
    }
}

/// Raises the soft limit of open files to the hard one, at most 2^20. Failure leaves it alone.
pub fn raise_open_file_limit() {
    let now = rustix::process::getrlimit(Resource::Nofile);
    let wanted = now.maximum.unwrap_or(MAX_OPEN_FILES).min(MAX_OPEN_FILES);
    if now.current.is_some_and(|current| current < wanted) {
        let new = Rlimit { current: Some(wanted), maximum: now.maximum };
        if let Err(e) = rustix::process::setrlimit(Resource::Nofile, new) {
            log::debug!("limit of open files stays at {:?}: {e}", now.current);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn open_descriptors_names_an_open_file_and_not_a_closed_one() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let number = file.as_raw_fd();
        assert!(open_descriptors().contains(&number));
        assert!(open_descriptors().iter().all(|&fd| fd > 2));
    }

    #[test]
    fn what_needs_to_be_alone_is_refused_beside_other_threads() {
        let (stop, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || wait.recv());
        assert!(fork().is_err());
        assert!(unset_variables("A_VARIABLE").is_err());
        drop(stop);
        let _ = other.join();
    }
}
