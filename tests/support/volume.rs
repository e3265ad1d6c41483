//! A volume without a kernel: made in a temporary directory, driven through `fs::Volume`.

use std::path::{Path, PathBuf};

use kmsfs::crypto::random_array;
use kmsfs::format::descriptor::{DESCRIPTOR_NAME, NameMode, Params};
use kmsfs::format::{DirId, VolumeId, dirfile};
use kmsfs::fs::{Access, Atime, Attr, Caller, Fh, Ino, MountFlags, Volume, WriteHow};
use kmsfs::keys::{KeySpec, UnlockOptions, unlock};
use tempfile::TempDir;

/// The root's inode number.
pub const ROOT: Ino = 1;

/// A volume's directories.
pub struct Bench {
    /// Holds everything; removed on drop.
    pub dir: TempDir,
}

impl Bench {
    /// Makes a volume with a key file.
    pub fn new(names: NameMode) -> Bench {
        let bench = Bench { dir: TempDir::new().unwrap() };
        std::fs::create_dir(bench.source()).unwrap();
        let params =
            Params { header_blocks: 1, names, files_per_data_key: 4, created: 1, generation: 1 };
        let key = KeySpec::Keyfile(bench.dir.path().join("key"));
        let options = UnlockOptions::default();
        let volume = VolumeId(random_array());
        let descriptor = unlock::create(volume, params, &key, &[], &options).unwrap();
        let (_, unlocked) = unlock::unlock(&descriptor, &options).unwrap();
        let root = dirfile::encode(DirId(random_array()), |b| unlocked.keys.directory_mac(b));
        std::fs::write(bench.source().join("kmsfs.dir"), root).unwrap();
        std::fs::write(bench.source().join(DESCRIPTOR_NAME), descriptor).unwrap();
        bench
    }

    /// The backing directory.
    pub fn source(&self) -> PathBuf {
        self.dir.path().join("volume")
    }

    /// Opens the volume.
    pub fn open(&self, access: Access) -> Tree {
        Tree { volume: open(&self.source(), access) }
    }

    /// Opens it for writing.
    pub fn tree(&self) -> Tree {
        self.open(Access::ReadWrite)
    }
}

/// Opens the volume in a directory.
pub fn open(source: &Path, access: Access) -> Volume {
    let flags = MountFlags {
        acl: false,
        atime: Atime::Noatime,
        own_by_caller: false,
        writeback: false,
        rekey_limit: 0,
    };
    Volume::open(source, access, flags, &UnlockOptions::default()).unwrap()
}

/// An open volume with paths instead of inode numbers.
pub struct Tree {
    /// The volume.
    pub volume: Volume,
}

/// Ourselves.
pub fn me() -> Caller {
    Caller::this_process()
}

/// Errno of a result.
pub fn errno<T>(result: kmsfs::fs::FsResult<T>) -> i32 {
    result.err().expect("must fail").errno()
}

impl Tree {
    /// Inode number of a path; lookups are counted and never forgotten.
    pub fn ino(&self, path: &str) -> Ino {
        self.attr(path).ino
    }

    /// Attributes of a path.
    pub fn attr(&self, path: &str) -> Attr {
        self.try_attr(path).unwrap()
    }

    /// Attributes of a path, or why not.
    pub fn try_attr(&self, path: &str) -> kmsfs::fs::FsResult<Attr> {
        let mut attr = self.volume.getattr(ROOT, None)?;
        for name in path.split('/').filter(|n| !n.is_empty()) {
            attr = self.volume.lookup(attr.ino, name.as_bytes())?;
        }
        Ok(attr)
    }

    /// Parent inode and last name of a path.
    pub fn split<'a>(&self, path: &'a str) -> (Ino, &'a [u8]) {
        match path.rsplit_once('/') {
            Some((dir, name)) => (self.ino(dir), name.as_bytes()),
            None => (ROOT, path.as_bytes()),
        }
    }

    /// Creates a file and returns its inode number and handle.
    pub fn create(&self, path: &str) -> (Ino, Fh) {
        let (parent, name) = self.split(path);
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
        let (attr, opened) = self.volume.create(me(), parent, name, 0o644, 0, flags).unwrap();
        (attr.ino, opened.fh)
    }

    /// Writes a whole new file.
    pub fn put(&self, path: &str, data: &[u8]) -> Ino {
        let (ino, fh) = self.create(path);
        self.volume.write(fh, 0, data, WriteHow::Direct).unwrap();
        self.volume.flush(fh).unwrap();
        self.volume.release(fh);
        ino
    }

    /// Reads a whole file.
    pub fn get(&self, path: &str) -> Vec<u8> {
        self.read_ino(self.ino(path)).unwrap()
    }

    /// Reads a whole file by inode number.
    pub fn read_ino(&self, ino: Ino) -> kmsfs::fs::FsResult<Vec<u8>> {
        let opened = self.volume.open_file(me(), ino, libc::O_RDONLY)?;
        let size = self.volume.getattr(ino, Some(opened.fh))?.size;
        let mut data = vec![0; size as usize + 1];
        let read = self.volume.read(opened.fh, 0, &mut data);
        self.volume.release(opened.fh);
        data.truncate(read?);
        Ok(data)
    }

    /// Makes a directory.
    pub fn mkdir(&self, path: &str) -> Ino {
        let (parent, name) = self.split(path);
        self.volume.mkdir(me(), parent, name, 0o755, 0).unwrap().ino
    }

    /// Renames without flags.
    pub fn rename(&self, from: &str, to: &str) -> kmsfs::fs::FsResult<()> {
        let ((from_dir, from), (to_dir, to)) = (self.split(from), self.split(to));
        self.volume.rename(from_dir, from, to_dir, to, 0)
    }

    /// Names in a directory, sorted, without `.` and `..`.
    pub fn list(&self, path: &str) -> Vec<String> {
        let fh = self.volume.opendir(self.ino(path)).unwrap();
        let mut names = Vec::new();
        self.volume
            .readdir(fh, 0, false, &mut |_, entry, _| {
                names.push(String::from_utf8_lossy(&entry.name).into_owned());
                true
            })
            .unwrap();
        self.volume.releasedir(fh);
        names.retain(|n| n != "." && n != "..");
        names.sort();
        names
    }
}
