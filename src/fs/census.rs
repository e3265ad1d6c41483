//! Counts what is in a directory tree, or in a backing tree without any key: files, bytes, and in
//! the headers of backing files the wrapped data keys.
//!
//! Follows no symbolic link, changes nothing, and counts a file with several names once.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, Stat, openat};
use rustix::io::Errno;

use super::attr::FileKind;
use super::backing;
use super::error::FsResult;
use super::names::{LONG, RESERVED, SIDECAR};
use crate::format::header::{Header, KeySlot, MAGIC, Recipient};
use crate::format::layout::Layout;
use crate::format::{DataKeyId, VolumeId};

/// What was counted.
#[derive(Default)]
pub struct Census {
    /// Regular files with content or, in a volume, with a header.
    pub files: u64,
    /// Regular files that need no key yet, because nothing was ever written to them.
    pub empty: u64,
    /// Bytes of content.
    pub bytes: u64,
    /// Different wrapped data keys in headers.
    pub data_keys: u64,
    /// Backing files whose header cannot be read.
    pub unreadable: u64,
    /// Directories nobody may look into.
    pub denied: u64,
}

/// Hears of each file and its bytes.
pub type Watch<'a> = &'a dyn Fn(u64);

/// Counts a directory of ordinary files. Fails only if the directory itself cannot be read.
pub fn plain(root: impl AsFd, watch: Watch<'_>) -> FsResult<Census> {
    let mut census = Census::default();
    let denied = walk(root, &mut |_, _, _, stat| {
        let bytes = u64::try_from(stat.st_size).unwrap_or_default();
        match bytes {
            0 => census.empty += 1,
            _ => census.files += 1,
        }
        census.bytes += bytes;
        watch(bytes);
    })?;
    Ok(Census { denied, ..census })
}

/// Counts a volume's backing directory. Headers are taken as they stand: their MACs take a key.
pub fn volume(
    root: impl AsFd,
    layout: Layout,
    volume: VolumeId,
    watch: Watch<'_>,
) -> FsResult<Census> {
    let mut census = Census::default();
    let mut keys = HashSet::new();
    let mut bytes = vec![0; layout.header_len()];
    let denied = walk(root, &mut |dir, _, name, stat| {
        let len = u64::try_from(stat.st_size).unwrap_or_default();
        match Object::read(dir, name, &mut bytes, layout, volume) {
            Object::Helper => {}
            Object::Empty => census.empty += 1,
            Object::File(header) => {
                let size = layout.plain_len_floor(len);
                census.files += 1;
                census.bytes += size;
                keys.insert(identity(&header.current));
                keys.extend(header.next.as_ref().map(identity));
                watch(size);
            }
            Object::Unreadable => census.unreadable += 1,
        }
    })?;
    Ok(Census { denied, data_keys: keys.len() as u64, ..census })
}

/// Which wrapping keys the headers of a volume name.
#[derive(Default)]
pub struct KeyCensus {
    /// By kind, reference and epoch, with `wrapped` empty.
    pub keys: HashMap<Recipient, KeyCount>,
    /// Headers looked at.
    pub headers: u64,
    /// Backing files whose header cannot be read, by their paths.
    pub unreadable: Vec<Vec<u8>>,
    /// Directories nobody may look into.
    pub denied: u64,
}

/// What one wrapping key is needed for.
#[derive(Default)]
pub struct KeyCount {
    /// Headers that name it.
    pub files: u64,
    /// Headers whose data key is wrapped for nobody else.
    pub only: u64,
    /// Backing paths of those that name it, if they are wanted.
    pub paths: Vec<Vec<u8>>,
}

/// Counts what each wrapping key is needed for in a volume's backing directory or a copy of it.
/// Headers are taken as they stand. `paths` says of which keys the files are wanted.
pub fn keys(
    root: impl AsFd,
    layout: Layout,
    volume: VolumeId,
    paths: &dyn Fn(&Recipient) -> bool,
) -> FsResult<KeyCensus> {
    let mut census = KeyCensus::default();
    let mut bytes = vec![0; layout.header_len()];
    let denied = walk(root, &mut |dir, at, name, _| match Object::read(
        dir, name, &mut bytes, layout, volume,
    ) {
        Object::Helper | Object::Empty => {}
        Object::Unreadable => census.unreadable.push(joined(at, name)),
        Object::File(header) => {
            census.headers += 1;
            let mut named = HashMap::new();
            for slot in std::iter::once(&header.current).chain(&header.next) {
                for copy in &slot.recipients {
                    let name = Recipient { wrapped: vec![], ..copy.clone() };
                    *named.entry(name).or_insert(false) |= slot.recipients.len() == 1;
                }
            }
            for (key, only) in named {
                let wanted = paths(&key);
                let count = census.keys.entry(key).or_default();
                count.files += 1;
                count.only += u64::from(only);
                count.paths.extend(wanted.then(|| joined(at, name)));
            }
        }
    })?;
    Ok(KeyCensus { denied, ..census })
}

fn joined(at: &[u8], name: &[u8]) -> Vec<u8> {
    if at.is_empty() { name.to_vec() } else { [at, b"/", name].concat() }
}

/// What a backing file is.
enum Object {
    /// Holds no content.
    Helper,
    Empty,
    File(Box<Header>),
    Unreadable,
}

impl Object {
    /// Reads the header into `bytes`.
    fn read(
        dir: &OwnedFd,
        name: &[u8],
        bytes: &mut [u8],
        layout: Layout,
        volume: VolumeId,
    ) -> Self {
        match header(dir, name, bytes) {
            Start::Empty | Start::Other if is_helper(name) => Self::Helper,
            Start::Empty => Self::Empty,
            Start::Header => match Header::decode(bytes, layout, volume, |_, _| true) {
                Ok(header) => Self::File(Box::new(header)),
                Err(_) => Self::Unreadable,
            },
            Start::Other | Start::Unreadable => Self::Unreadable,
        }
    }
}

/// What a backing file begins with.
enum Start {
    Header,
    Empty,
    Other,
    Unreadable,
}

fn header(dir: &OwnedFd, name: &[u8], bytes: &mut [u8]) -> Start {
    let Ok(file) = backing::open_plain(dir, name, false) else { return Start::Unreadable };
    let mut have = 0;
    while have < bytes.len() {
        match file.read_at(&mut bytes[have..], have as u64) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return Start::Unreadable,
        }
    }
    match have {
        0 => Start::Empty,
        _ if have == bytes.len() && bytes.starts_with(MAGIC) => Start::Header,
        _ => Start::Other,
    }
}

/// Files of ours that hold no content. Those of a long name do, and have a header as soon as they have
/// anything.
fn is_helper(name: &[u8]) -> bool {
    name.starts_with(RESERVED) && (!name.starts_with(LONG) || name.ends_with(SIDECAR))
}

/// The data key together with its wrapped copies: each of these is unwrapped, and rewrapped, once.
fn identity(slot: &KeySlot) -> (DataKeyId, u64) {
    let mut hasher = DefaultHasher::new();
    for copy in &slot.recipients {
        (&copy.key_ref, &copy.wrapped).hash(&mut hasher);
    }
    (slot.data_key_id, hasher.finish())
}

/// Hears of a regular file: the directory it stands in, the path of that, its name, its attributes.
type Visit<'a> = &'a mut dyn FnMut(&OwnedFd, &[u8], &[u8], &Stat);

/// Shows every regular file; how many directories were closed to us.
fn walk(root: impl AsFd, file: Visit<'_>) -> FsResult<u64> {
    let root = Arc::new(backing::open_dir(root)?);
    backing::list(&*root)?;
    let mut stack = vec![(root, b".".to_vec(), Vec::new())];
    let (mut denied, mut linked) = (0, HashSet::new());
    let mut is_new = |stat: &Stat| stat.st_nlink < 2 || linked.insert((stat.st_dev, stat.st_ino));
    while let Some((parent, entry, at)) = stack.pop() {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = openat(&*parent, &entry[..], flags, Mode::empty());
        let listed = opened.and_then(|fd| Ok((backing::list(&fd)?, Arc::new(fd))));
        let Ok((entries, dir)) = listed else {
            denied += 1;
            continue;
        };
        for raw in entries {
            let stat = match backing::stat_at(&*dir, &raw.name) {
                Ok(stat) => stat,
                // Gone meanwhile.
                Err(Errno::NOENT) => continue,
                Err(_) => {
                    denied += 1;
                    continue;
                }
            };
            match FileKind::from_mode(stat.st_mode) {
                Some(FileKind::Directory) => {
                    let below = joined(&at, &raw.name);
                    stack.push((dir.clone(), raw.name, below));
                }
                Some(FileKind::Regular) if is_new(&stat) => file(&dir, &at, &raw.name, &stat),
                _ => {}
            }
        }
    }
    Ok(denied)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn links_are_not_followed_and_names_not_counted_twice() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("a/b")).unwrap();
        fs::write(at("a/b/one"), [0; 10]).unwrap();
        fs::write(at("two"), [0; 5]).unwrap();
        fs::write(at("empty"), "").unwrap();
        fs::hard_link(at("two"), at("a/again")).unwrap();
        std::os::unix::fs::symlink(at("a"), at("link")).unwrap();
        std::os::unix::fs::symlink(at("two"), at("a/link")).unwrap();
        let seen = std::cell::Cell::new(0);
        let root = fs::File::open(dir.path()).unwrap();
        let census = plain(&root, &|bytes| seen.set(seen.get() + bytes)).unwrap();
        assert_eq!((census.files, census.empty, census.bytes), (2, 1, 15));
        assert_eq!((census.denied, seen.get()), (0, 15));
    }
}
