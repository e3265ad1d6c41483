//! What the machine must have for a mount: kernel, device, helper, limits, swap.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

use crate::fuse::mount::find_helper;
use crate::keys::finding::{Finding, Level};

const DEVICE: &str = "/dev/fuse";
const FUSE_CONF: &str = "/etc/fuse.conf";
const MAX_PAGES: &str = "/proc/sys/fs/fuse/max_pages_limit";
/// From here on the kernel takes requests of 1 MiB and keeps the targets of symbolic links.
const KERNEL: (u32, u32) = (4, 20);
/// Pages of the largest request.
const PAGES: u64 = 256;
/// Room for the keys of many open files, bytes.
const LOCKED: u64 = 4 << 20;
/// Open files a busy mount may need.
const FILES: u64 = 8192;

/// All of it.
pub fn findings() -> Vec<Finding> {
    let root = rustix::process::geteuid().is_root();
    let has = |wanted| capabilities(None).is_ok_and(|sets| sets.effective.contains(wanted));
    let mut findings = vec![kernel(&read("/proc/sys/kernel/osrelease")), device()];
    findings.extend(request_size(&read(MAX_PAGES)));
    findings.push(right_to_mount(root, has(CapabilitySet::SYS_ADMIN)));
    if !root {
        findings.push(allow_other(&read(FUSE_CONF)));
    }
    findings
        .push(locked_memory(getrlimit(Resource::Memlock).current, has(CapabilitySet::IPC_LOCK)));
    findings.push(open_files(getrlimit(Resource::Nofile).maximum));
    findings.push(swap(&read("/proc/swaps"), &is_safe_swap));
    findings
}

/// The text of a small file; nothing if there is none.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim_end().to_owned()
}

fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|word| word.parse().ok());
    let version = (numbers.next().flatten(), numbers.next().flatten());
    match version {
        (Some(major), Some(minor)) if (major, minor) >= KERNEL => {
            Finding::host(Level::Ok, "kernel", format!("Linux {release}"))
        }
        (Some(_), Some(_)) => {
            let text = format!("Linux {release} takes small requests only");
            let advice = format!("use Linux {}.{} or newer", KERNEL.0, KERNEL.1);
            Finding::host(Level::Warning, "kernel", text).advise(advice)
        }
        _ => Finding::host(Level::Note, "kernel", "its version cannot be read; is /proc mounted?"),
    }
}

fn device() -> Finding {
    let opened = File::options().read(true).write(true).open(DEVICE);
    let Err(error) = opened else {
        return Finding::host(Level::Ok, "device", format!("{DEVICE} can be opened"));
    };
    let advice = match (error.kind(), error.raw_os_error()) {
        (io::ErrorKind::NotFound, _) | (_, Some(libc::ENODEV | libc::ENXIO)) => {
            "modprobe fuse; in a container: start it with --device /dev/fuse"
        }
        (io::ErrorKind::PermissionDenied, _) => {
            "chmod 0666 /dev/fuse; in a container: start it with --device /dev/fuse"
        }
        _ => "see what the kernel says of it (dmesg)",
    };
    let text = format!("{DEVICE} cannot be opened: {error}");
    Finding::host(Level::Error, "device", text).advise(advice)
}

/// `limit` is the kernel's, where it has one that can be set.
fn request_size(limit: &str) -> Option<Finding> {
    let pages: u64 = limit.parse().ok()?;
    if pages >= PAGES {
        return Some(Finding::host(Level::Ok, "request size", "1 MiB"));
    }
    let text = format!("the kernel limits requests to {pages} pages; large files go slower");
    let advice = format!("sysctl fs.fuse.max_pages_limit={PAGES}");
    Some(Finding::host(Level::Note, "request size", text).advise(advice))
}

fn right_to_mount(root: bool, admin: bool) -> Finding {
    if root && admin {
        return Finding::host(Level::Ok, "mounting", "as root, by mount(2)");
    }
    let who = if root { "root here lacks CAP_SYS_ADMIN" } else { "not root" };
    let Some(helper) = find_helper() else {
        let text = format!("{who}, and fusermount3 is not installed");
        let advice = if root {
            "start the container with --cap-add SYS_ADMIN, or install the package fuse3"
        } else {
            "install the package fuse3, or mount as root"
        };
        return Finding::host(Level::Error, "mounting", text).advise(advice);
    };
    let shown = helper.display();
    match helper.metadata() {
        Ok(meta) if meta.uid() == 0 && meta.permissions().mode() & 0o4000 != 0 => {
            Finding::host(Level::Ok, "mounting", format!("{who}, by {shown}"))
        }
        Ok(_) => {
            let text = format!("{who}, and {shown} is not set-user-id root");
            let advice = format!("chown root {shown} && chmod 4755 {shown}");
            Finding::host(Level::Warning, "mounting", text).advise(advice)
        }
        Err(error) => {
            let text = format!("{who}, and {shown} cannot be used: {error}");
            Finding::host(Level::Error, "mounting", text).advise("install the package fuse3")
        }
    }
}

fn allow_other(conf: &str) -> Finding {
    let line = |line: &str| line.split('#').next().unwrap_or_default().trim() == "user_allow_other";
    if conf.lines().any(line) {
        return Finding::host(Level::Ok, "allow_other", format!("{FUSE_CONF} permits it"));
    }
    let text = format!("{FUSE_CONF} does not permit -o allow_other to ordinary users");
    let advice = format!("if others are to be let in: echo user_allow_other >> {FUSE_CONF}");
    Finding::host(Level::Note, "allow_other", text).advise(advice)
}

fn locked_memory(limit: Option<u64>, exempt: bool) -> Finding {
    match limit {
        _ if exempt => Finding::host(Level::Ok, "locked memory", "no limit (CAP_IPC_LOCK)"),
        None => Finding::host(Level::Ok, "locked memory", "no limit"),
        Some(limit) if limit >= LOCKED => {
            Finding::host(Level::Ok, "locked memory", format!("up to {} KiB", limit / 1024))
        }
        Some(limit) => {
            let text = format!("only {} KiB: keys may reach swap space", limit / 1024);
            let advice = format!(
                "ulimit -l {}, in a systemd unit LimitMEMLOCK={}M, for logins \
                 /etc/security/limits.conf",
                LOCKED >> 10,
                LOCKED >> 20
            );
            Finding::host(Level::Warning, "locked memory", text).advise(advice)
        }
    }
}

fn open_files(limit: Option<u64>) -> Finding {
    match limit {
        Some(limit) if limit < FILES => {
            let text = format!("at most {limit}, which a busy mount may need");
            let advice = format!("ulimit -Hn {FILES}, in a systemd unit LimitNOFILE={FILES}");
            Finding::host(Level::Warning, "open files", text).advise(advice)
        }
        Some(limit) => Finding::host(Level::Ok, "open files", format!("up to {limit}")),
        None => Finding::host(Level::Ok, "open files", "no limit"),
    }
}

/// `table` is that of /proc; `safe` says whether what is written to a place cannot be read from it.
fn swap(table: &str, safe: &dyn Fn(&str) -> bool) -> Finding {
    let places = table.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    let bare: Vec<&str> = places.filter(|place| !safe(place)).collect();
    if bare.is_empty() {
        return Finding::host(Level::Ok, "swap", "off, in memory, or encrypted");
    }
    let text = format!(
        "on, and not seen to be encrypted: {}; keys are locked in memory, but what programs read \
         can get there",
        bare.join(", ")
    );
    let advice = "encrypt it (option `swap` in /etc/crypttab), or swapoff -a";
    Finding::host(Level::Note, "swap", text).advise(advice)
}

fn is_safe_swap(place: &str) -> bool {
    let device = fs::canonicalize(place).unwrap_or_else(|_| place.into());
    let Some(name) = device.file_name().and_then(|name| name.to_str()) else { return false };
    let uuid = Path::new("/sys/class/block").join(name).join("dm/uuid");
    let is_crypt = fs::read_to_string(uuid).is_ok_and(|uuid| uuid.starts_with("CRYPT-"));
    is_crypt || (device.starts_with("/dev") && name.starts_with("zram"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(finding: &Finding, level: Level, word: &str) {
        assert!(finding.level == level && finding.found.contains(word), "{finding:?}");
        assert!(level == Level::Ok || finding.advice.is_some(), "no advice: {finding:?}");
    }

    #[test]
    fn kernels_are_compared_by_number() {
        is(&kernel("6.1.0-18-amd64"), Level::Ok, "6.1.0");
        is(&kernel("4.20.0"), Level::Ok, "4.20");
        is(&kernel("10.0"), Level::Ok, "10.0");
        is(&kernel("4.19.300"), Level::Warning, "4.19");
        is(&kernel("3.99"), Level::Warning, "3.99");
        assert_eq!(kernel("").level, Level::Note);
    }

    #[test]
    fn limits_have_their_thresholds() {
        is(&locked_memory(Some(64 << 10), false), Level::Warning, "only 64 KiB");
        is(&locked_memory(Some(64 << 10), true), Level::Ok, "CAP_IPC_LOCK");
        is(&locked_memory(Some(8 << 20), false), Level::Ok, "8192 KiB");
        is(&locked_memory(None, false), Level::Ok, "no limit");
        is(&open_files(Some(1024)), Level::Warning, "1024");
        is(&open_files(Some(1 << 20)), Level::Ok, "1048576");
        is(&open_files(None), Level::Ok, "no limit");
        assert_eq!(request_size(""), None);
        is(&request_size("32").unwrap(), Level::Note, "32 pages");
        is(&request_size("256").unwrap(), Level::Ok, "1 MiB");
    }

    #[test]
    fn a_comment_permits_nothing() {
        is(&allow_other("# user_allow_other\nmount_max = 10"), Level::Note, "does not permit");
        is(&allow_other("#x\n user_allow_other # yes"), Level::Ok, "permits");
    }

    #[test]
    fn only_bare_swap_is_worth_a_word() {
        let table = "Filename Type Size Used Priority\n/dev/dm-1 partition 1 0 -2\n\
                     /swap.img file 1 0 -3\n";
        is(&swap(table, &|place| place == "/dev/dm-1"), Level::Note, ": /swap.img;");
        is(&swap(table, &|_| true), Level::Ok, "off");
        is(&swap("Filename Type Size Used Priority", &|_| false), Level::Ok, "off");
    }
}
