//! Modification times of backing files: what backup tools go by.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use kmsfs::fs::{Access, Ino, Volume, WriteHow};

use crate::support::*;

/// Whole seconds, as rsync compares them, and the rest.
fn backing_time(scratch: &Scratch, volume: &Volume, ino: Ino) -> (i64, i64) {
    let path: &Path = &volume.backing_path(ino);
    let meta = fs::metadata(scratch.volume().join(path)).unwrap();
    (meta.mtime(), meta.mtime_nsec())
}

fn shown_time(volume: &Volume, ino: Ino) -> (i64, i64) {
    let (seconds, nanos) = volume.getattr(ino, None).unwrap().mtime;
    (seconds, nanos.into())
}

/// A file whose content is in place in part only, the state before it in force, must not look like
/// the file it will be: a backup that copied it then would never look again.
#[test]
fn a_backing_file_has_its_time_only_once_its_content_is_in_place() {
    let scratch = Scratch::with_volume();
    scratch.fill(|volume| drop(write_file(volume, ROOT, "grown", &bytes(300_000))));
    let volume = scratch.open(Access::ReadWrite);
    let grown = volume.lookup(ROOT, b"grown").unwrap().ino;
    let grown_fh = volume.open_file(me(), grown, libc::O_RDWR).unwrap().fh;
    let (new, opened) = volume.create(me(), ROOT, b"new", 0o644, 0, libc::O_RDWR).unwrap();
    let data = bytes(200_000);
    volume.write(grown_fh, 300_000, &data, WriteHow::Direct).unwrap();
    volume.write(opened.fh, 0, &data, WriteHow::Direct).unwrap();
    let inodes = [grown, new.ino];
    let shown = inodes.map(|ino| shown_time(&volume, ino));
    let written = inodes.map(|ino| backing_time(&scratch, &volume, ino));
    volume.fsync(grown_fh, false).unwrap();
    let in_journal = backing_time(&scratch, &volume, grown);
    volume.commit_all(true).unwrap();
    let whole = inodes.map(|ino| backing_time(&scratch, &volume, ino));
    assert_eq!(whole, shown, "programs and backups see different times");
    for (written, whole) in written.into_iter().zip(whole) {
        assert!(written.0 < whole.0, "{written:?} is not apart from {whole:?}");
    }
    assert!(in_journal.0 < whole[0].0, "{in_journal:?} is not apart from {:?}", whole[0]);
}

/// What comes to nothing leaves no trace in the time.
#[test]
fn a_file_that_was_cut_back_before_it_was_committed_keeps_a_time_of_its_own() {
    let scratch = Scratch::with_volume();
    let volume = scratch.open(Access::ReadWrite);
    let (ino, _) = write_file(&volume, ROOT, "file", &bytes(10_000));
    let fh = volume.open_file(me(), ino, libc::O_RDWR).unwrap().fh;
    volume.write(fh, 10_000, &bytes(300_000), WriteHow::Direct).unwrap();
    volume
        .setattr(
            me(),
            ino,
            Some(fh),
            kmsfs::fs::SetAttr { size: Some(10_000), ..Default::default() },
        )
        .unwrap();
    let shown = shown_time(&volume, ino);
    volume.release(fh);
    volume.commit_all(true).unwrap();
    assert_eq!(backing_time(&scratch, &volume, ino), shown);
    volume.shutdown().unwrap();
}
