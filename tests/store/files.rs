//! The same engine over real files.

use crate::support::{CHUNK, GROUPS, Rng, context, read, slot};
use kmsfs::crypto::{DataKey, Secret};
use kmsfs::store::{Content, FileStorage, Storage};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

fn open(path: &std::path::Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

#[test]
fn a_real_file_keeps_what_was_committed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let (ctx, key) = (context(1 << 31, 1), Arc::new(DataKey(Secret::random())));
    let storage = || Arc::new(FileStorage(open(&path)));
    let content = Content::create(ctx.clone(), storage(), key.clone(), slot());
    // More neighbouring blocks in one commit than a single vectored write takes.
    let data = Rng(5).bytes(7 << 20);
    for (i, chunk) in data.chunks(4096).enumerate() {
        content.write(i as u64 * CHUNK, chunk).unwrap();
    }
    content.override_mtime((1_000_000, 123_456_789));
    content.sync().unwrap();
    let meta = path.metadata().unwrap();
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_000_000, 123_456_789));
    assert_eq!(meta.len(), ctx.layout.backing_len(data.len() as u64));

    let header = Content::read_header(&ctx, &*storage()).unwrap();
    let content = Content::open(ctx.clone(), storage(), header, key, None, true).unwrap();
    assert!(read(&content, 0, data.len() + 1).unwrap() == data);
    content.punch(GROUPS, 4 << 20).unwrap();
    content.allocate(0, 100, false).unwrap();
    content.sync().unwrap();
    let after = path.metadata().unwrap();
    assert_eq!(after.len(), meta.len());
    assert!(after.blocks() < meta.blocks(), "punching frees space");
    assert!(read(&content, GROUPS, 4 << 20).unwrap().iter().all(|b| *b == 0));
    content.truncate(10).unwrap();
    content.sync().unwrap();
    assert_eq!(storage().len().unwrap(), 4096 + 10);
}

#[test]
fn a_real_file_reads_short_at_its_end_only() {
    let dir = tempfile::tempdir().unwrap();
    let storage = FileStorage(open(&dir.path().join("file")));
    storage.write_at(&[std::io::IoSlice::new(b"abc"), std::io::IoSlice::new(b"def")], 2).unwrap();
    let mut buf = [9; 10];
    assert_eq!(storage.read_at(&mut buf, 1).unwrap(), 7);
    assert_eq!(&buf[..7], b"\0abcdef");
    assert_eq!(storage.read_at(&mut buf, 100).unwrap(), 0);
    storage.reserve(1 << 20).unwrap();
    assert_eq!(storage.len().unwrap(), 8);
    assert!(!storage.is_empty().unwrap());
}
