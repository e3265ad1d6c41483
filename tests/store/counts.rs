//! How many calls reach the backing file; sparse giants; concurrency.

use crate::mem::{Call, MemStorage};
use crate::support::{Bed, CHUNK, GROUP, GROUPS, Rng, damage, read, recipient};
use kmsfs::store::content::DIRTY_LIMIT;
use kmsfs::store::{
    Content, FileLog, Journal, Medium, Storage, StoreError, Whereabouts, rewrap_header,
};
use std::io;
use std::sync::Arc;

/// Where a journal lies that no test looks into.
struct Aside;

impl Medium for Aside {
    fn create(&self, _: &str) -> io::Result<Arc<dyn Storage>> {
        Ok(Arc::new(MemStorage::default()))
    }
    fn remove(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn sync_all(&self) -> io::Result<()> {
        Ok(())
    }
}

struct Nowhere;

impl Whereabouts for Nowhere {
    fn find(&self) -> (u64, Vec<u8>) {
        (7, b"name".to_vec())
    }
}

/// Calls except setting the time.
fn calls(disk: &MemStorage) -> Vec<Call> {
    let mut calls = disk.take_calls();
    calls.retain(|c| !matches!(c, Call::SetMtime(_)));
    calls
}

fn write(offset: u64, len: usize) -> Call {
    Call::Write { offset, len }
}

#[test]
fn a_new_small_file_is_one_write() {
    let bed = Bed::new();
    let content = bed.create();
    content.write(0, &[1; 4096]).unwrap();
    assert_eq!(bed.disk.take_calls(), []);
    let time = content.pending_mtime().unwrap();
    content.commit().unwrap();
    assert_eq!(bed.disk.take_calls(), [write(0, 8192), Call::SetMtime(time)]);
    content.commit().unwrap();
    assert_eq!(bed.disk.take_calls(), []);
}

#[test]
fn nothing_is_written_before_there_is_something() {
    let bed = Bed::new();
    let content = bed.create();
    assert!(!content.is_dirty());
    content.commit().unwrap();
    content.sync().unwrap();
    assert_eq!(bed.disk.take_calls(), [Call::Sync]);
    content.ensure_header().unwrap();
    content.ensure_header().unwrap();
    assert_eq!(bed.disk.take_calls(), [write(0, 4096)]);
    assert_eq!(bed.open().size(), 0);
}

#[test]
fn an_overwrite_stays_in_memory_until_the_commit() {
    let bed = Bed::new();
    let content = bed.file(&[1; 5 * 4096]);
    bed.disk.take_calls();
    content.write(2 * CHUNK, &[2; 4096]).unwrap();
    assert_eq!(bed.disk.take_calls(), []);
    content.commit().unwrap();
    assert_eq!(calls(&bed.disk), [write(3 * CHUNK, 4096), write(0, 4096)]);
    content.write(2 * CHUNK + 5, &[3; 100]).unwrap();
    content.commit().unwrap();
    let rmw = Call::Read { offset: 3 * CHUNK, len: 4096 };
    assert_eq!(calls(&bed.disk), [rmw, write(3 * CHUNK, 4096), write(0, 4096)]);
}

#[test]
fn appending_rewrites_the_tail_and_the_header() {
    let bed = Bed::new();
    let content = bed.file(&[1; 4100]);
    bed.disk.take_calls();
    content.write(4100, &[2; 10]).unwrap();
    content.commit().unwrap();
    let tail = Call::Read { offset: 2 * CHUNK, len: 4 };
    assert_eq!(calls(&bed.disk), [tail, write(2 * CHUNK, 14), write(0, 4096)]);
    content.write(4110, &[3; 9000]).unwrap();
    content.commit().unwrap();
    let tail = Call::Read { offset: 2 * CHUNK, len: 14 };
    let len = 4110 + 9000 - 4096;
    // Fresh chunks join the committed tail they follow.
    assert_eq!(calls(&bed.disk), [tail, write(2 * CHUNK, len), write(0, 4096)]);
}

#[test]
fn streaming_writes_runs_in_place() {
    let bed = Bed::new();
    let content = bed.create();
    let data = Rng(1).bytes(1 << 20);
    content.write(0, &data).unwrap();
    let second = CHUNK * (1 + 64 + 1);
    let third = second + GROUP + CHUNK * 2; // node and tag block between
    let (a, b) = (GROUPS as usize, GROUP as usize);
    let runs = [write(CHUNK, a), write(second, b), write(third, (1 << 20) - a - b)];
    assert_eq!(bed.disk.take_calls(), runs);
    content.commit().unwrap();
    // Both tag blocks, the node between them, the header.
    let tree = [write(second - CHUNK, 4096), write(third - 2 * CHUNK, 8192), write(0, 4096)];
    assert_eq!(calls(&bed.disk), tree);
    let content = bed.open();
    bed.disk.take_calls();
    assert!(read(&content, 0, 1 << 20).unwrap() == data);
    let reads = bed.disk.take_calls();
    let data_reads = reads.iter().filter(|c| matches!(c, Call::Read { len, .. } if *len > 4096));
    assert_eq!((reads.len(), data_reads.count()), (6, 3), "{reads:?}");
    assert!(read(&content, 0, 1 << 20).unwrap() == data);
    assert_eq!(bed.disk.take_calls().len(), 3);
}

#[test]
fn one_chunk_of_a_big_file_costs_its_path_only() {
    let bed = Bed::new();
    let content = bed.create();
    content.truncate(1 << 40).unwrap();
    content.commit().unwrap();
    let len = bed.ctx.layout.backing_len(1 << 40);
    // Asked for first, while a refusal costs nothing.
    let asked = [Call::SetLen(len), Call::SetLen(0)];
    let all = [&asked[..], &[write(0, 4096), Call::SetLen(len)]].concat();
    assert_eq!(calls(&bed.disk), all);
    let far = (1 << 40) - 10 * CHUNK;
    content.write(far, &[7; 4096]).unwrap();
    content.commit().unwrap();
    let written = calls(&bed.disk);
    assert!(written.len() <= 7, "{written:?}");
    assert!(written.iter().all(|c| matches!(c, Call::Write { .. })), "{written:?}");
}

#[test]
fn a_sparse_terabyte_answers_at_once() {
    let bed = Bed::new();
    let content = bed.create();
    content.truncate(1 << 40).unwrap();
    assert_eq!(content.seek_data(0).unwrap(), None);
    content.write(1 << 39, b"middle").unwrap();
    content.commit().unwrap();
    assert!(bed.disk.pages() < 12, "{} pages", bed.disk.pages());
    let content = bed.open();
    bed.disk.take_calls();
    assert_eq!(content.seek_data(5).unwrap(), Some(1 << 39));
    assert_eq!(content.seek_hole(1 << 39).unwrap(), Some((1 << 39) + CHUNK));
    assert_eq!(content.seek_data((1 << 39) + CHUNK).unwrap(), None);
    assert_eq!(read(&content, (1 << 39) - 3, 9).unwrap(), b"\0\0\0middle");
    assert_eq!(read(&content, 1 << 33, 9).unwrap(), [0; 9]);
    assert!(bed.disk.take_calls().len() < 15);
    assert_eq!(damage(&content), [""; 0]);
    content.punch(0, 1 << 40).unwrap();
    content.commit().unwrap();
    assert_eq!(content.seek_data(0).unwrap(), None);
    content.truncate(100).unwrap();
    content.commit().unwrap();
    assert_eq!(bed.disk.len().unwrap(), 4096 + 100);
    assert_eq!(damage(&bed.open()), [""; 0]);
}

#[test]
fn much_overwriting_commits_by_itself() {
    let bed = Bed::new();
    let size = 2 * DIRTY_LIMIT + (3 << 20);
    let content = bed.file(&vec![1; size]);
    let before = content.generation();
    let data = Rng(2).bytes(size);
    content.write(0, &data).unwrap();
    assert!(content.generation() >= before + 2);
    content.commit().unwrap();
    assert!(read(&bed.open(), 0, size).unwrap() == data);
}

#[test]
fn times_follow_the_commit() {
    let bed = Bed::new();
    let content = bed.file(b"x");
    assert!(!content.override_mtime((5, 6)));
    content.write(0, b"y").unwrap();
    assert!(content.override_mtime((5, 6)));
    assert_eq!(content.pending_mtime(), Some((5, 6)));
    content.commit().unwrap();
    assert_eq!(bed.disk.mtime(), Some((5, 6)));
    assert_eq!(content.pending_mtime(), None);
    let generation = content.generation();
    content.truncate(1).unwrap();
    content.commit().unwrap();
    assert_ne!(bed.disk.mtime(), Some((5, 6)));
    assert_eq!(content.generation(), generation, "time alone is no commit");
}

#[test]
fn a_new_life_keeps_the_object_only() {
    let bed = Bed::new();
    let content = bed.file(&[1; 300_000]);
    let old = Content::read_header(&bed.ctx, &*bed.disk).unwrap();
    content.truncate(0).unwrap();
    content.write(0, b"new").unwrap();
    // Until the commit the old life is what the backing file holds.
    assert_eq!(read(&bed.open(), 0, 300_000).unwrap(), [1; 300_000]);
    content.commit().unwrap();
    let new = Content::read_header(&bed.ctx, &*bed.disk).unwrap();
    assert_eq!((new.object, new.generation), (old.object, old.generation + 1));
    assert_ne!(new.life_salt, old.life_salt);
    assert_ne!(new.current.commitment, old.current.commitment);
    assert_eq!(read(&bed.open(), 0, 10).unwrap(), b"new");
}

#[test]
fn a_segment_draws_a_new_key_at_its_limit() {
    let bed = Bed::with(100, 1);
    let content = bed.file(&[1; 10 * 4096]);
    let salt = |bed: &Bed| Content::read_header(&bed.ctx, &*bed.disk).unwrap().segment.salt;
    let first = salt(&bed);
    for i in 0..90u8 {
        content.write(0, &[i; 10]).unwrap();
    }
    content.commit().unwrap();
    assert_eq!(salt(&bed), first);
    content.write(0, &[99; 10]).unwrap();
    content.commit().unwrap();
    let header = Content::read_header(&bed.ctx, &*bed.disk).unwrap();
    assert_ne!(header.segment.salt, first);
    assert_eq!(header.segment.writes, 11);
    let mut want = vec![1; 10 * 4096];
    want[..10].fill(99);
    assert!(read(&bed.open(), 0, 50_000).unwrap() == want);
}

#[test]
fn recipients_change_without_touching_content() {
    let bed = Bed::with(1 << 31, 2);
    bed.file(&[4; 10_000]);
    let old = Content::read_header(&bed.ctx, &*bed.disk).unwrap();
    bed.disk.take_calls();
    let list = vec![recipient(); 3];
    let journal = Journal::new(bed.ctx.volume, bed.ctx.keys.clone(), Arc::new(Aside));
    let file = FileLog::new(journal.clone(), bed.disk.clone(), Box::new(Nowhere), true);
    let new = rewrap_header(&bed.ctx, &file, (5, 6), Some(list.clone()), None, old.wrap_epoch + 1)
        .unwrap();
    let header = Call::Read { offset: 0, len: 8192 };
    assert_eq!(bed.disk.take_calls(), [header]);
    journal.checkpoint(false).unwrap();
    let calls = bed.disk.take_calls();
    let changes = [Call::Sync, write(0, 8192), Call::SetMtime((5, 6)), Call::Sync];
    assert_eq!(calls, changes);
    assert_eq!((new.generation, new.wrap_epoch), (old.generation, old.wrap_epoch + 1));
    assert_eq!(Content::read_header(&bed.ctx, &*bed.disk).unwrap().current.recipients, list);
    assert_eq!(read(&bed.open(), 0, 10_000).unwrap(), [4; 10_000]);
    let refused = |current, next| rewrap_header(&bed.ctx, &file, (5, 6), current, next, 9).is_err();
    assert!(refused(Some(vec![]), None) && refused(None, Some(vec![recipient()])));
    assert!(refused(Some(vec![recipient(); 60]), None));
}

#[test]
fn read_only_means_read_only() {
    let bed = Bed::new();
    bed.file(b"content");
    let content = bed.try_open(false).unwrap();
    assert!(!content.is_writable());
    let refused = |r: Result<(), StoreError>| matches!(r, Err(StoreError::ReadOnly));
    assert!(refused(content.write(0, b"x")) && refused(content.truncate(0)));
    assert!(refused(content.punch(0, 1)) && refused(content.allocate(0, 9, false)));
    content.commit().unwrap();
    content.upgrade(bed.disk.clone());
    content.write(0, b"C").unwrap();
    content.commit().unwrap();
    assert_eq!(read(&bed.open(), 0, 99).unwrap(), b"Content");
}

#[test]
fn too_large_is_refused() {
    let content = Bed::new().create();
    let too_large = |r: Result<(), StoreError>| matches!(r, Err(StoreError::TooLarge));
    assert!(too_large(content.write(u64::MAX - 1, b"xy")));
    assert!(too_large(content.write(1 << 53, b"x")));
    assert!(too_large(content.truncate((1 << 53) + 1)));
    assert!(too_large(content.allocate(u64::MAX, 9, true)));
    content.truncate(1 << 53).unwrap();
    content.commit().unwrap();
    assert_eq!(content.size(), 1 << 53);
}

#[test]
fn a_next_data_key_serves_new_segments() {
    let bed = Bed::new();
    bed.file(&[1; 300_000]);
    // What a later sweep writes: a second slot, its commitment made from the second data key.
    let mut header = Content::read_header(&bed.ctx, &*bed.disk).unwrap();
    let next = Arc::new(kmsfs::crypto::DataKey(kmsfs::crypto::Secret::random()));
    let keys = kmsfs::crypto::FileKeys::derive(&next, header.object, &header.life_salt);
    let commitment = *keys.commitment();
    header.next = Some(kmsfs::format::header::KeySlot { commitment, ..crate::support::slot() });
    let open = |header, next: Option<&Arc<_>>| {
        let (ctx, disk) = (bed.ctx.clone(), bed.disk.clone());
        Content::open(ctx, disk, header, bed.key.clone(), next.cloned(), true)
    };
    let content = open(header.clone(), Some(&next)).unwrap();
    content.write(600_000, &[2; 400_000]).unwrap();
    content.commit().unwrap();
    let header = Content::read_header(&bed.ctx, &*bed.disk).unwrap();
    let content = open(header.clone(), Some(&next)).unwrap();
    assert_eq!(read(&content, 900_000, 10).unwrap(), [2; 10]);
    assert_eq!(damage(&content), [""; 0]);
    let without = open(header.clone(), None).unwrap();
    assert_eq!(read(&without, 0, 10).unwrap(), [1; 10]);
    assert!(matches!(read(&without, 900_000, 10), Err(StoreError::Commitment)));
    assert!(matches!(open(header, Some(&bed.key)), Err(StoreError::Commitment)));
}

#[test]
fn readers_and_writers_share_a_file() {
    let bed = Bed::new();
    const LEN: usize = 900_000;
    let content = bed.file(&vec![0; LEN]);
    std::thread::scope(|scope| {
        for thread in 1..4u64 {
            let content = &content;
            scope.spawn(move || {
                let mut rng = Rng(thread);
                for round in 0..60u8 {
                    let pos = rng.below((LEN / 4096) as u64 - 1) * CHUNK;
                    content.write(pos, &[round; 4096]).unwrap();
                    if round % 16 == 0 {
                        content.sync().unwrap();
                    }
                    let got = read(content, rng.below(LEN as u64 / 4096) * CHUNK, 4096).unwrap();
                    assert!(got.iter().all(|b| *b == got[0]), "a torn chunk");
                }
            });
        }
    });
    content.commit().unwrap();
    let last = read(&content, 0, LEN).unwrap();
    assert!(read(&bed.open(), 0, LEN).unwrap() == last);
}

#[test]
fn many_segments_are_loaded_and_forgotten() {
    let bed = Bed::new();
    let content = bed.create();
    let at = |i: u64| GROUPS + i * GROUP + (i % 128) * CHUNK;
    for i in 0..5000 {
        content.write(at(i), &i.to_le_bytes()).unwrap();
    }
    content.commit().unwrap();
    let content = bed.open();
    for i in (0..5000).chain((0..5000).rev()) {
        assert_eq!(read(&content, at(i), 8).unwrap(), i.to_le_bytes());
    }
    assert_eq!(content.seek_data(at(3000) + 1).unwrap(), Some(at(3000) + 1));
    assert_eq!(content.seek_data(at(3000) + CHUNK).unwrap(), Some(at(3001) / CHUNK * CHUNK));
}

#[test]
fn what_was_cut_before_the_commit_is_never_written() {
    let bed = Bed::new();
    let content = bed.create();
    content.write(0, &[1; 40_000]).unwrap();
    content.truncate(4096).unwrap();
    content.commit().unwrap();
    assert_eq!(calls(&bed.disk), [write(0, 8192)]);
}
