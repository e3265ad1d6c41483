//! Whether a mount point can be used, decided before anything is opened or mounted.

use super::{MountError, MountOptions, TYPE, table, unmount_path};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A directory found fit to be mounted on.
#[derive(Debug)]
pub struct MountPoint {
    path: PathBuf,
    directory: File,
}

impl MountPoint {
    /// Absolute path without links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory that was checked.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// Checks `point` against the volume at `source` (an existing path). A mount left behind by a
/// daemon that died is removed first.
pub fn prepare(
    source: &Path,
    point: &Path,
    options: &MountOptions,
) -> Result<MountPoint, MountError> {
    let path = match point.canonicalize() {
        Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => resolve_dead(point),
        other => other,
    };
    let path = path.map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => {
            MountError::point(format!("mount point {} does not exist", point.display()))
        }
        _ => unusable(point, &e),
    })?;
    clear(&path)?;
    let directory = open_directory(&path)?;
    refuse_overlap(source, &path)?;
    let mut entries = std::fs::read_dir(&path).map_err(|e| unusable(&path, &e))?;
    if !options.nonempty && entries.next().is_some() {
        let place = path.display();
        return Err(MountError::point(format!(
            "mount point {place} is not empty: what it holds would be hidden; \
             use another directory or -o nonempty"
        )));
    }
    Ok(MountPoint { path, directory })
}

fn open_directory(path: &Path) -> Result<File, MountError> {
    let directory = File::open(path).map_err(|e| unusable(path, &e))?;
    if !directory.metadata().map_err(|e| unusable(path, &e))?.is_dir() {
        let place = path.display();
        return Err(MountError::point(format!("mount point {place} is not a directory")));
    }
    Ok(directory)
}

fn unusable(path: &Path, e: &io::Error) -> MountError {
    MountError::point(format!("cannot use mount point {}: {e}", path.display()))
}

/// A daemon below its own mount would wait for itself.
fn refuse_overlap(source: &Path, point: &Path) -> Result<(), MountError> {
    let (inside, around) = (contains(source, point), contains(point, source));
    let (source, point) = (source.display(), point.display());
    if inside.map_err(|e| MountError::point(format!("{source}: {e}")))? {
        return Err(MountError::point(format!(
            "mount point {point} lies inside the volume {source}"
        )));
    }
    if around.map_err(|e| MountError::point(format!("{point}: {e}")))? {
        return Err(MountError::point(format!(
            "the volume {source} lies inside the mount point {point}, which would hide it"
        )));
    }
    Ok(())
}

/// Whether `inner` is `outer` or below it, by identity, so that bind mounts do not hide it.
fn contains(outer: &Path, inner: &Path) -> io::Result<bool> {
    let identity = |path: &Path| path.metadata().map(|m| (m.dev(), m.ino()));
    let (wanted, inner) = (identity(outer)?, inner.canonicalize()?);
    for ancestor in inner.ancestors() {
        if identity(ancestor)? == wanted {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Refuses a place where a kmsfs lives; removes the mount of a kmsfs daemon that died. Nothing else
/// is ever removed.
fn clear(path: &Path) -> Result<(), MountError> {
    let place = path.display();
    // Attributes may come from the kernel's cache for an hour; statfs always asks the server.
    let dead = rustix::fs::statfs(path).err() == Some(rustix::io::Errno::NOTCONN);
    match (table::top_at(path).is_some_and(|top| top.kind == TYPE), dead) {
        (false, false) => return Ok(()),
        (true, false) => {
            let sentence = format!("a kmsfs volume is already mounted on {place}");
            return Err(MountError::point(sentence));
        }
        (false, true) => {
            return Err(MountError::point(format!(
                "{place} is the mount point of another file system whose server has died: \
                 unmount it"
            )));
        }
        (true, true) => {}
    }
    unmount_path(path, true)
        .map_err(|e| MountError::point(format!("cannot remove the dead mount on {place}: {e}")))?;
    log::warn!("removed the mount of a dead kmsfs daemon on {place}");
    Ok(())
}

/// Absolute path of a mount point that cannot be looked at: all but its last part is.
fn resolve_dead(point: &Path) -> io::Result<PathBuf> {
    let point = std::path::absolute(point)?;
    // `absolute` keeps a trailing slash; components do not.
    let point: PathBuf = point.components().collect();
    match (point.parent(), point.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.canonicalize()?.join(name)),
        _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    struct Place {
        _dir: tempfile::TempDir,
        root: PathBuf,
    }

    /// `source/`, `source/in/`, `empty/`, `full/x`, `file`.
    fn place() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        for name in ["source/in", "empty", "full"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        fs::write(root.join("full/x"), "").unwrap();
        fs::write(root.join("file"), "").unwrap();
        Place { _dir: dir, root }
    }

    fn refusal(place: &Place, source: &str, point: &str) -> String {
        let options = MountOptions::default();
        let error = prepare(&place.root.join(source), &place.root.join(point), &options);
        let error = error.expect_err("refused");
        assert_eq!(error.exit_code, crate::fs::volume::exit::MOUNT_POINT);
        error.message
    }

    #[test]
    fn an_empty_directory_is_fit() {
        let place = place();
        std::os::unix::fs::symlink(place.root.join("empty"), place.root.join("link")).unwrap();
        let point = place.root.join("link/../link/");
        let found = prepare(&place.root.join("source"), &point, &MountOptions::default()).unwrap();
        assert_eq!(found.path(), place.root.join("empty"));
    }

    #[test]
    fn each_unfit_place_has_its_sentence() {
        let place = place();
        assert!(refusal(&place, "source", "missing").ends_with("does not exist"));
        assert!(refusal(&place, "source", "file").ends_with("is not a directory"));
        assert!(refusal(&place, "source", "full").contains("is not empty"));
        assert!(refusal(&place, "source", "source/in").contains("inside the volume"));
        assert!(refusal(&place, "source", "source").contains("inside the volume"));
        assert!(refusal(&place, "source", "").contains("would hide it"));
    }

    #[test]
    fn a_full_directory_is_fit_when_asked_for() {
        let place = place();
        let options = MountOptions { nonempty: true, ..Default::default() };
        let source = place.root.join("source");
        assert!(prepare(&source, &place.root.join("full"), &options).is_ok());
        assert!(prepare(&source, &place.root, &options).is_err());
    }

    #[test]
    fn the_path_of_a_dead_mount_is_found_without_touching_it() {
        let place = place();
        let path = resolve_dead(&place.root.join("empty/")).unwrap();
        assert_eq!(path, place.root.join("empty"));
        assert!(resolve_dead(Path::new("/")).is_err());
    }
}
