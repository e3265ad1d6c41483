//! Key files and identity files on disk.
//!
//! Both are one line saying what they are and one line of 64 hexadecimal digits. They must belong
//! to the caller or to root and be closed to everybody else.

use super::KeyError;
use crate::crypto::hpke::Identity;
use crate::crypto::{Secret, SecretBytes};
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use zeroize::{Zeroize, Zeroizing};

const KEYFILE_LINE: &[u8] = b"KMSFS-KEYFILE-1\n";
const IDENTITY_LINE: &[u8] = b"KMSFS-X25519-1\n";
/// Longest passphrase file that is read.
const MAX_PASSPHRASE: u64 = 64 * 1024;

/// Reads a key file's secret.
pub fn read_keyfile(path: &Path) -> Result<Secret<32>, KeyError> {
    read_secret(path, "key file", KEYFILE_LINE)
}

/// Makes a new key file (0600, synced with its directory) and returns its secret. Never overwrites.
pub fn create_keyfile(path: &Path) -> Result<Secret<32>, KeyError> {
    let secret = Secret::random();
    write_secret(path, "key file", KEYFILE_LINE, &secret)?;
    Ok(secret)
}

/// Reads the private half of an X25519 recipient.
pub fn read_identity(path: &Path) -> Result<Identity, KeyError> {
    read_secret(path, "identity file", IDENTITY_LINE).map(Identity::from_secret)
}

/// Makes a new identity file (0600, synced with its directory). Never overwrites.
pub fn create_identity(path: &Path) -> Result<Identity, KeyError> {
    let identity = Identity::generate();
    write_secret(path, "identity file", IDENTITY_LINE, identity.secret())?;
    Ok(identity)
}

/// Reads a passphrase; one newline at its end is dropped. Pipes are fine. A file that others can
/// read is reported in the log but used: where passphrase files come from is often not ours to
/// choose.
pub fn read_passphrase_file(path: &Path) -> Result<SecretBytes, KeyError> {
    let failed = |e| unreadable(path, "passphrase file", &e);
    let file = File::open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    if meta.is_file() && meta.mode() & 0o077 != 0 {
        log::warn!("passphrase file {} can be read by others; chmod 600 it", path.display());
    }
    // Full capacity from the start: a growing vector would leave copies behind.
    let mut bytes = Vec::with_capacity(MAX_PASSPHRASE as usize + 1);
    let read = file.take(MAX_PASSPHRASE + 1).read_to_end(&mut bytes);
    let mut bytes = Zeroizing::new(bytes);
    read.map_err(failed)?;
    if bytes.len() as u64 > MAX_PASSPHRASE {
        return Err(KeyError::Misconfigured(format!(
            "passphrase file {} is longer than {MAX_PASSPHRASE} bytes; is it the right file?",
            path.display()
        )));
    }
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    Ok(SecretBytes::new(std::mem::take(&mut *bytes)))
}

/// Reads a small secret from a regular file of this user or root that nobody else may open; one
/// newline at its end is dropped.
pub fn read_private_file(path: &Path, what: &str) -> Result<SecretBytes, KeyError> {
    let failed = |e| unreadable(path, what, &e);
    // As below: looked at before it is opened.
    let named = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path);
    let named = named.map_err(failed)?;
    let me = rustix::process::geteuid().as_raw();
    check_owner(path, what, &named.metadata().map_err(failed)?, me)?;
    let file = File::open(format!("/proc/self/fd/{}", named.as_raw_fd())).map_err(failed)?;
    let mut text = Zeroizing::new(vec![0u8; MAX_PASSPHRASE as usize + 1]);
    let len = read_up_to(file, &mut text[..]).map_err(failed)?;
    if len as u64 > MAX_PASSPHRASE {
        let path = path.display();
        let text = format!("{what} {path} is longer than {MAX_PASSPHRASE} bytes");
        return Err(KeyError::Misconfigured(text));
    }
    let secret = text[..len].strip_suffix(b"\n").unwrap_or(&text[..len]);
    Ok(SecretBytes::new(secret.to_vec()))
}

fn read_secret(path: &Path, what: &str, first_line: &[u8]) -> Result<Secret<32>, KeyError> {
    let failed = |e| unreadable(path, what, &e);
    // Named first and opened only if it is what it must be: the path may come from a descriptor that
    // nothing vouches for yet, and opening a device or a pipe may do something.
    let named = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path);
    let named = named.map_err(failed)?;
    let me = rustix::process::geteuid().as_raw();
    check_owner(path, what, &named.metadata().map_err(failed)?, me)?;
    let file = File::open(format!("/proc/self/fd/{}", named.as_raw_fd())).map_err(failed)?;
    let mut text = Zeroizing::new([0u8; 128]);
    let len = read_up_to(file, &mut text[..]).map_err(failed)?;
    let digits = text[..len].strip_prefix(first_line).and_then(|rest| rest.strip_suffix(b"\n"));
    let secret = digits.filter(|d| d.len() == 64).and_then(|digits| {
        Secret::build(|out| HEXLOWER_PERMISSIVE.decode_mut(digits, out).map(drop).map_err(|_| ()))
            .ok()
    });
    secret.ok_or_else(|| {
        KeyError::Misconfigured(format!(
            "{} is not a kmsfs {what}: it must be the line {} and a line of 64 hexadecimal digits",
            path.display(),
            String::from_utf8_lossy(first_line).trim_end(),
        ))
    })
}

fn read_up_to(mut file: File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match file.read(&mut buffer[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(len)
}

/// A regular file of user `me` or root that nobody else may open.
fn check_owner(path: &Path, what: &str, meta: &Metadata, me: u32) -> Result<(), KeyError> {
    let path = path.display();
    if !meta.is_file() {
        return Err(KeyError::Misconfigured(format!("{what} {path} is not a regular file")));
    }
    if meta.uid() != me && meta.uid() != 0 {
        return Err(KeyError::Misconfigured(format!(
            "{what} {path} belongs to user {}, who could change it; chown it to yourself or root",
            meta.uid()
        )));
    }
    if meta.mode() & 0o077 != 0 {
        return Err(KeyError::Misconfigured(format!(
            "{what} {path} is open to others (mode {:04o}); run: chmod 600 {path}",
            meta.mode() & 0o7777
        )));
    }
    Ok(())
}

fn unreadable(path: &Path, what: &str, error: &io::Error) -> KeyError {
    let path = path.display();
    KeyError::Misconfigured(match error.kind() {
        io::ErrorKind::NotFound => {
            format!(
                "{what} {path} does not exist; make the medium it is on available, or name \
                 another place"
            )
        }
        io::ErrorKind::PermissionDenied => {
            format!("{what} {path} may not be read by this user; check its owner and permissions")
        }
        _ => format!("{what} {path} cannot be read: {error}"),
    })
}

fn write_secret(
    path: &Path,
    what: &str,
    first_line: &[u8],
    secret: &Secret<32>,
) -> Result<(), KeyError> {
    let mut text = Zeroizing::new([0u8; 128]);
    let end = first_line.len() + 64;
    text[..first_line.len()].copy_from_slice(first_line);
    HEXLOWER.encode_mut(secret.expose(), &mut text[first_line.len()..end]);
    text[end] = b'\n';
    let written = write_new(path, &text[..=end]);
    text.zeroize();
    written.map_err(|e| {
        let path = path.display();
        KeyError::Misconfigured(match e.kind() {
            io::ErrorKind::AlreadyExists => {
                format!(
                    "{path} exists already and a {what} is never overwritten; name another place"
                )
            }
            _ => format!("{what} {path} cannot be made: {e}"),
        })
    })
}

/// Makes a file that survives a crash from here on, or leaves none.
fn write_new(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let finish = |file: &mut File| -> io::Result<()> {
        // The umask may have taken the owner's own bits.
        file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
        file.write_all(text)?;
        file.sync_all()?;
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    };
    let finished = finish(&mut file);
    finished.inspect_err(|_| remove_if_ours(&file, path))
}

/// Takes a failed attempt away, unless somebody has put another file in its place.
fn remove_if_ours(file: &File, path: &Path) {
    let id = |meta: Metadata| (meta.dev(), meta.ino());
    let (ours, there) = (file.metadata().map(id), std::fs::symlink_metadata(path).map(id));
    if matches!((ours, there), (Ok(ours), Ok(there)) if ours == there) {
        // The error that is told is the one that came first.
        let _ = std::fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests;
