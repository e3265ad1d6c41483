//! The files of a deployment: certificates, the CA's key, passwords. Each is either whole or not there,
//! and what others could have put there is not believed.

use crate::crypto::{SecretBytes, random_array};
use data_encoding::HEXLOWER;
use rustix::fs::{Access, AtFlags, CWD, accessat};
use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use zeroize::Zeroizing;

/// Anybody may read it.
pub const PUBLIC: u32 = 0o644;
/// Only its owner may.
pub const SECRET: u32 = 0o600;
/// Longest file of these that is read.
const MAX: u64 = 64 * 1024;

/// What a directory is for, and so what others may have done in it, and how another one is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The files of a deployment.
    Deployment,
    /// What a user's programs remember.
    User,
}

impl Place {
    fn danger(self) -> &'static str {
        match self {
            Self::Deployment => "so others may have put certificates into it",
            Self::User => "so others may take away what is to be remembered there",
        }
    }

    fn other(self) -> &'static str {
        match self {
            Self::Deployment => "name another directory with --dir",
            Self::User => {
                "set XDG_STATE_HOME to a directory of your own (with sudo, HOME may be that of \
                 another user); nothing was made"
            }
        }
    }
}

/// Makes the directory of a deployment; as [`ensure`].
pub fn ensure_dir(dir: &Path) -> Result<(), String> {
    ensure(dir, Place::Deployment)
}

/// Makes the directory, for its owner only, unless it is there; then it must be ours, and let us write.
pub fn ensure(dir: &Path, place: Place) -> Result<(), String> {
    let bad = |what: &str, e: io::Error| {
        format!("directory {} cannot be {what}: {e}; {}", dir.display(), place.other())
    };
    if !dir.is_dir() {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.and_then(|()| sync_parent(dir)).map_err(|e| bad("made", e))?;
    }
    check(dir, place)?;
    let may_write = accessat(CWD, dir, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS);
    may_write.map_err(|e| bad("written to", e.into()))
}

/// Refuses a directory in which others could have put something: the certificates in it are believed.
pub fn check_dir(dir: &Path) -> Result<(), String> {
    check(dir, Place::Deployment)
}

fn check(dir: &Path, place: Place) -> Result<(), String> {
    // Who made a link chose where it leads.
    let looked = std::fs::symlink_metadata(dir).and_then(|own| Ok((own, std::fs::metadata(dir)?)));
    let (link, target) = match looked {
        Ok(both) => both,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(unreadable(dir, &e)),
    };
    let strange = stranger(&link).or_else(|| stranger(&target)).or_else(|| writable(&target));
    strange.map_or(Ok(()), |(how, mend)| {
        let (danger, other) = (place.danger(), place.other());
        Err(format!(
            "directory {} {how}, {danger}: look at what is in it, then {mend}, or {other}",
            dir.display()
        ))
    })
}

/// What is wrong, and the command against it.
type Strange = (String, &'static str);

fn stranger(meta: &Metadata) -> Option<Strange> {
    let (owner, me) = (meta.uid(), rustix::process::geteuid().as_raw());
    let strange = owner != me && owner != 0;
    strange.then(|| (format!("belongs to user {owner}"), "chown it to yourself"))
}

fn writable(meta: &Metadata) -> Option<Strange> {
    // The sticky bit keeps nobody from adding files.
    let mode = meta.mode() & 0o7777;
    (mode & 0o022 != 0)
        .then(|| (format!("can be changed by others (mode {mode:04o})"), "chmod go-w it"))
}

/// Text that anybody may know; `None` if there is no such file.
pub fn read_text(path: &Path) -> Result<Option<String>, String> {
    read(path)?.map(|content| text(path, &content)).transpose()
}

/// Text that anybody may know but nobody else can have put there; `None` if there is no such file.
pub fn read_own(path: &Path) -> Result<Option<String>, String> {
    let Some(content) = read(path)? else { return Ok(None) };
    let meta = content.0.metadata().map_err(|e| unreadable(path, &e))?;
    if let Some((how, mend)) = stranger(&meta).or_else(|| writable(&meta)) {
        let path = path.display();
        return Err(format!(
            "{path} {how}, so it is not believed: look whether it is the right one, then {mend}"
        ));
    }
    text(path, &content).map(Some)
}

fn text(path: &Path, (_, bytes): &Content) -> Result<String, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| format!("{} is no text", path.display()))?;
    Ok(text.to_owned())
}

/// A secret that nobody else can read or has put there; `None` if there is no such file.
pub fn read_secret(path: &Path) -> Result<Option<SecretBytes>, String> {
    let Some((file, mut bytes)) = read(path)? else { return Ok(None) };
    let meta = file.metadata().map_err(|e| unreadable(path, &e))?;
    if meta.mode() & 0o077 != 0 || stranger(&meta).is_some() {
        let path = path.display();
        return Err(format!(
            "{path} is not for its owner alone: chown it to yourself, chmod 600 it"
        ));
    }
    Ok(Some(SecretBytes::new(std::mem::take(&mut *bytes))))
}

/// An open file and what is in it.
type Content = (File, Zeroizing<Vec<u8>>);

fn read(path: &Path) -> Result<Option<Content>, String> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(unreadable(path, &e)),
    };
    // Full capacity from the start: a growing vector would leave copies of a secret behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX as usize + 1));
    let read = (&file).take(MAX + 1).read_to_end(&mut bytes);
    read.map_err(|e| unreadable(path, &e))?;
    if bytes.len() as u64 > MAX {
        return Err(format!(
            "{} is longer than {MAX} bytes; is it the right file?",
            path.display()
        ));
    }
    Ok(Some((file, bytes)))
}

fn unreadable(path: &Path, error: &io::Error) -> String {
    format!("{} cannot be read: {error}", path.display())
}

/// Makes a file that survives a crash from here on. What somebody else has put there stays.
pub fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), String> {
    let linked = write(path, bytes, mode, |young| {
        let linked = std::fs::hard_link(young, path);
        linked.and(std::fs::remove_file(young))
    });
    linked.map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => {
            format!("{} exists already and is never overwritten", path.display())
        }
        _ => format!("{} cannot be made: {e}", path.display()),
    })
}

/// The same in place of what is there.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), String> {
    let renamed = write(path, bytes, mode, |young| std::fs::rename(young, path));
    renamed.map_err(|e| format!("{} cannot be made: {e}", path.display()))
}

/// Under another name first: a killed program must not leave half a file that the next one trusts.
fn write(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    put: impl FnOnce(&Path) -> io::Result<()>,
) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let random = HEXLOWER.encode(&random_array::<8>());
    let young = path.with_file_name(format!(".{name}.{random}"));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&young)?;
    let finish = |file: &mut File| -> io::Result<()> {
        // The umask may have taken some of it.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        put(&young)
    };
    if let Err(error) = finish(&mut file) {
        let _ = std::fs::remove_file(&young);
        return Err(error);
    }
    sync_parent(path)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_whole_and_not_overwritten() {
        let dir = tempfile::TempDir::with_prefix("kmsfs-files-").unwrap();
        let inner = dir.path().join("a/b");
        ensure_dir(&inner).unwrap();
        ensure_dir(&inner).unwrap();
        let path = inner.join("secret");
        assert!(read_secret(&path).unwrap().is_none());
        write_new(&path, b"first", SECRET).unwrap();
        assert!(write_new(&path, b"second", SECRET).unwrap_err().contains("never overwritten"));
        assert_eq!(read_secret(&path).unwrap().unwrap().expose(), b"first");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(std::fs::read_dir(&inner).unwrap().count(), 1);
        std::fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        assert!(read_secret(&path).err().unwrap().contains("chmod 600"));
        assert_eq!(read_text(&path).unwrap().unwrap(), "first");
        replace(&path, b"second", PUBLIC).unwrap();
        assert_eq!(read_own(&path).unwrap().unwrap(), "second");
        assert_eq!(std::fs::read_dir(&inner).unwrap().count(), 1);
    }
}
