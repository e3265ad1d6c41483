//! What is asked of the kernel when the connection starts.
//!
//! Flags are asked for one at a time: the transport refuses a set as a whole when the running
//! kernel lacks one of them, and the file system is correct with none of them. Some flags are
//! never asked for, although kernel and transport offer them: locks (the kernel's own are right
//! for a mount with one user of the backing), SETXATTR_EXT, SECURITY_CTX, CREATE_SUPP_GROUP,
//! ALLOW_IDMAP, OVER_IO_URING, REQUEST_TIMEOUT, SUBMOUNTS, INODE_DAX (the transport accepts these
//! and then misreads the requests that follow), PASSTHROUGH and splice (bytes that bypass the
//! daemon cannot be encrypted).

use fuser::{InitFlags, KernelConfig};
use std::io;
use std::time::Duration;

/// Largest request, bytes; the kernel's own limit with 4 KiB pages.
const MAX_WRITE: u32 = 1 << 20;
/// Read-ahead and write-back requests in flight.
const MAX_BACKGROUND: u16 = 64;
/// From here on the kernel counts the connection as congested.
const CONGESTION: u16 = 48;

/// Flags for every mount.
const ALWAYS: [InitFlags; 8] = [
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_NO_EXPORT_SUPPORT,
];

/// Flags that mount options ask for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// The kernel collects writes in its page cache.
    pub writeback: bool,
    /// POSIX ACLs, and the umask applied here because a default ACL replaces it.
    pub acl: bool,
    /// How long the kernel may keep names, attributes and the absence of names.
    pub cache_for: Duration,
    /// Event-loop threads.
    pub threads: usize,
}

/// Sets sizes and flags. Fails when an option needs a flag that this kernel does not have.
pub fn negotiate(config: &mut KernelConfig, wanted: Wanted) -> io::Result<()> {
    let sizes = [
        config.set_max_write(MAX_WRITE).is_ok(),
        config.set_max_background(MAX_BACKGROUND).is_ok(),
        config.set_congestion_threshold(CONGESTION).is_ok(),
    ];
    if sizes.contains(&false) {
        log::debug!("the kernel connection keeps smaller request limits");
    }
    for flag in ALWAYS {
        if config.add_capabilities(flag).is_err() {
            log::debug!("this kernel does not offer {flag:?}");
        }
    }
    if wanted.writeback && config.add_capabilities(InitFlags::FUSE_WRITEBACK_CACHE).is_err() {
        return Err(io::Error::from_raw_os_error(libc::EPROTONOSUPPORT));
    }
    if wanted.acl {
        for flag in [InitFlags::FUSE_DONT_MASK, InitFlags::FUSE_POSIX_ACL] {
            config
                .add_capabilities(flag)
                .map_err(|_| io::Error::from_raw_os_error(libc::EPROTONOSUPPORT))?;
        }
    }
    Ok(())
}
