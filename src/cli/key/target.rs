//! A volume whose keys are to be changed, mounted or not.

use std::cell::Cell;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use crate::crypto::Vault;
use crate::format::descriptor::Descriptor;
use crate::fs::Access;
use crate::fs::journal::Recovery;
use crate::fs::newest;
use crate::fs::rewrap::Swept;
use crate::fs::survey::regular_files;
use crate::fs::volume::{
    OpenError, open_root, read_descriptor, unlock_error, volume_context, write_descriptor,
};
use crate::fuse::control;
use crate::fuse::mount::{TYPE, table};
use crate::keys::{Editor, UnlockOptions, Unlocked, unlock};
use crate::store::content::VolumeContext;

use super::sweep::{self, Sweeping};
use crate::cli::exit::{DAMAGE, FAILURE, IN_USE, failure};
use crate::cli::progress::Progress;
use crate::cli::tree::{Tree, locked};
use crate::cli::verify::DamageLine;

/// An opened volume.
pub struct Target {
    /// Its backing directory.
    pub dir: PathBuf,
    /// Where it is mounted, if it is.
    pub mountpoint: Option<PathBuf>,
    /// The backing tree, and the keys of the present descriptor.
    pub tree: Tree,
    /// The present descriptor.
    pub bytes: Vec<u8>,
    /// It is known to be the newest: who holds the lock, or the daemon, lets no other follow meanwhile.
    is_newest: Cell<bool>,
}

impl Target {
    /// Opens the volume in `dir`, or mounted on it. One that is not mounted is locked, and recovered
    /// if its last mount did not end cleanly.
    pub fn open(dir: &Path, options: &UnlockOptions) -> anyhow::Result<Self> {
        let (dir, mounted) = backing_of(dir);
        let (mountpoint, root, bytes) = match locked(&dir, Access::ReadWrite) {
            Ok((root, bytes)) => (None, root, bytes),
            Err(error) if error.exit_code == IN_USE => {
                let mountpoint = mounted.ok_or(error)?;
                require_writable(&mountpoint)?;
                let root = open_root(&dir)?;
                let bytes = read_descriptor(&root, &dir)?;
                (Some(mountpoint), root, bytes)
            }
            Err(error) => return Err(error.into()),
        };
        let tree = match &mountpoint {
            None => Tree::unlock(root, &dir, &bytes, Access::ReadWrite, options)?,
            Some(_) => unlocked_beside(root, &dir, &bytes, options)?,
        };
        Ok(Self { dir, mountpoint, tree, bytes, is_newest: Cell::new(false) })
    }

    /// The descriptor, to be changed.
    pub fn editor(&self, options: &UnlockOptions) -> anyhow::Result<Editor> {
        Ok(Editor::open(&self.bytes, options).map_err(|error| unlock_error(error, &self.dir))?)
    }

    #[cfg(feature = "aws")]
    /// Fails if [`Self::put`] would, and changes nothing.
    pub fn check(&self, editor: Editor, options: &UnlockOptions) -> anyhow::Result<()> {
        let bytes = editor.finish().map_err(|error| unlock_error(error, &self.dir))?;
        if bytes == self.bytes {
            return Ok(());
        }
        self.tried(&bytes, options)?;
        self.mountpoint.as_ref().map_or(Ok(()), |point| Ok(sweep::check(point, &bytes)?))
    }

    /// A descriptor that can follow the present one, and the keys it gives.
    fn tried(
        &self,
        bytes: &[u8],
        options: &UnlockOptions,
    ) -> anyhow::Result<(Descriptor, Unlocked)> {
        let tried = unlock(bytes, options).map_err(|error| unlock_error(error, &self.dir))?;
        self.require_newest()?;
        Ok(tried)
    }

    /// Fails if files have seen a later descriptor than the present one.
    pub fn require_newest(&self) -> anyhow::Result<()> {
        if !self.is_newest.get() {
            let (context, old) = (&self.tree.context, &self.tree.descriptor);
            require_newest(&self.tree.root, &self.dir, context, old)?;
            self.is_newest.set(true);
        }
        Ok(())
    }

    /// Puts a changed descriptor in force, if it is changed; whether it is.
    pub fn put(&mut self, editor: Editor, options: &UnlockOptions) -> anyhow::Result<bool> {
        let bytes = editor.finish().map_err(|error| unlock_error(error, &self.dir))?;
        if bytes == self.bytes {
            // An earlier attempt may have been cut off between the descriptor and the open files.
            self.mountpoint.as_ref().map_or(Ok(()), |point| sweep::adopt(point, &bytes))?;
            return Ok(false);
        }
        let (descriptor, unlocked) = self.tried(&bytes, options)?;
        match &self.mountpoint {
            Some(mountpoint) => sweep::adopt(mountpoint, &bytes)?,
            None => write_descriptor(&self.tree.root, &self.dir, &bytes)?,
        }
        (self.tree.descriptor, self.tree.keyring) = (descriptor, unlocked.keyring);
        self.bytes = bytes;
        Ok(true)
    }

    /// Brings every header in line with the descriptor.
    pub fn sweep(&self, sweeping: &Sweeping) -> anyhow::Result<(Swept, Vec<DamageLine>)> {
        let (tree, generation) = (&self.tree, self.tree.descriptor.params.generation);
        match &self.mountpoint {
            Some(mountpoint) => sweeping.live(tree, &tree.keyring, generation, mountpoint),
            None => sweeping.idle(tree, &tree.keyring, generation),
        }
    }
}

/// Fails if files have seen a later descriptor than this one, which is about to be followed by another.
pub fn require_newest(
    root: impl AsFd,
    dir: &Path,
    context: &VolumeContext,
    descriptor: &Descriptor,
) -> anyhow::Result<()> {
    let params = &descriptor.params;
    let progress = Progress::of_files("looked at", false);
    progress.more(regular_files(&root)?.0);
    let each = || progress.done(1);
    newest::require_newest(&root, context, params.names, params.generation, &each).map_err(
        |error| failure(DAMAGE, format!("{}: {error}; nothing was changed", dir.display())),
    )
}

/// The backing directory that `dir` is, or shows, and where it is mounted.
pub fn backing_of(dir: &Path) -> (PathBuf, Option<PathBuf>) {
    let full = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let full = full.canonicalize().unwrap_or(full);
    match table::top_at(&full).filter(|mount| mount.kind == TYPE) {
        Some(mount) => (mount.source, Some(full)),
        None => {
            let mount = table::mounted_from(TYPE, &full);
            (dir.to_owned(), mount.map(|mount| mount.point))
        }
    }
}

/// Fails unless the mount may write.
pub fn require_writable(mountpoint: &Path) -> anyhow::Result<()> {
    let shown = mountpoint.display();
    let text = control::status(mountpoint)
        .map_err(|error| failure(FAILURE, sweep::no_answer(mountpoint, &error)))?;
    let status: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    match status["access"].as_str() {
        Some("rw") => Ok(()),
        _ => Err(failure(IN_USE, format!("{shown} is mounted read-only: unmount it first"))),
    }
}

/// Keys and backing tree of a volume that is mounted: what is in the journal is the daemon's affair.
fn unlocked_beside(
    root: std::os::fd::OwnedFd,
    dir: &Path,
    bytes: &[u8],
    options: &UnlockOptions,
) -> Result<Tree, OpenError> {
    let (descriptor, unlocked): (Descriptor, _) =
        unlock(bytes, options).map_err(|error| unlock_error(error, dir))?;
    let context = volume_context(&descriptor, Vault::new(unlocked.keys), 0)
        .map_err(|error| unlock_error(error.into(), dir))?;
    Ok(Tree {
        root: root.into(),
        descriptor,
        keyring: unlocked.keyring,
        context: context.into(),
        recovery: Recovery::default(),
    })
}
