//! Bytes changed, moved or brought back behind our back: always found, and nothing else is harmed.

use crate::support::{Bed, CHUNK, GROUP, GROUPS, Rng, damage, read};
use kmsfs::store::{Storage, StoreError};

const LEN: usize = 1_500_000;
const TOTAL: u64 = LEN as u64;

/// Backing offsets with one header block: chunks 0.., tag blocks 0.., the first node.
fn chunk(i: u64) -> u64 {
    let groups = if i < 64 { 0 } else { (i - 64) / 128 + 1 };
    CHUNK * (1 + i + groups + u64::from(groups >= 2))
}
fn tag_block(g: u64) -> u64 {
    chunk(64 + 128 * g) - CHUNK
}
const NODE: u64 = CHUNK * (1 + 64 + 129);

fn bed() -> (Bed, Vec<u8>) {
    let (bed, data) = (Bed::new(), Rng(11).bytes(LEN));
    bed.file(&data);
    (bed, data)
}

fn copy(from: &Bed, at: u64, to: &Bed, dest: u64, len: usize) {
    to.disk.poke(dest, &from.disk.peek(at, len));
}

/// Exactly these chunks do not read, all others do.
fn bad_chunks(bed: &Bed, data: &[u8], bad: &[u64]) {
    let content = bed.open();
    for i in 0..TOTAL.div_ceil(CHUNK) {
        let part = &data[(i * CHUNK) as usize..((i + 1) * CHUNK).min(TOTAL) as usize];
        match read(&content, i * CHUNK, 4096) {
            Ok(got) => assert!(!bad.contains(&i) && got == part, "chunk {i}"),
            Err(StoreError::Chunk(c)) => assert!(c == i && bad.contains(&i), "chunk {i}"),
            Err(e) => panic!("chunk {i}: {e}"),
        }
    }
    let want: Vec<String> = bad.iter().map(|c| StoreError::Chunk(*c).to_string()).collect();
    assert_eq!(damage(&content), want);
}

/// Groups whose tag block is refused; header chunks still read.
fn bad_groups(bed: &Bed, data: &[u8], bad: &[u64]) {
    let content = bed.open();
    assert!(read(&content, 0, GROUPS as usize).unwrap() == data[..GROUPS as usize]);
    for g in 0..3 {
        let pos = GROUPS + g * GROUP;
        let got = read(&content, pos, 5000);
        if bad.contains(&g) {
            assert!(matches!(got, Err(StoreError::Tree { level: 0, index }) if index == g));
            let write = content.write(pos + 1, b"x");
            assert!(matches!(write, Err(StoreError::Tree { .. })), "write into group {g}");
        } else {
            assert!(got.unwrap() == data[pos as usize..pos as usize + 5000], "group {g}");
        }
    }
    assert_eq!(damage(&content).len(), bad.len());
}

#[test]
fn flipped_chunks_are_named_and_the_rest_reads() {
    let (bed, data) = bed();
    assert_eq!(damage(&bed.open()), [""; 0]);
    for i in [0, 63, 64, 191, 192, 366] {
        bed.disk.flip(chunk(i) + 1);
    }
    bad_chunks(&bed, &data, &[0, 63, 64, 191, 192, 366]);
}

#[test]
fn swapped_chunks_are_refused() {
    let (bed, data) = bed();
    let (a, b) = (bed.disk.peek(chunk(3), 4096), bed.disk.peek(chunk(70), 4096));
    bed.disk.poke(chunk(3), &b);
    bed.disk.poke(chunk(70), &a);
    bad_chunks(&bed, &data, &[3, 70]);
}

#[test]
fn zeroed_chunks_are_refused() {
    let (bed, data) = bed();
    bed.disk.poke(chunk(5), &[0; 4096]);
    bed.disk.poke(chunk(300), &[0; 4096]);
    bad_chunks(&bed, &data, &[5, 300]);
}

#[test]
fn damaged_chunks_can_be_overwritten_whole() {
    let (bed, mut data) = bed();
    bed.disk.flip(chunk(64));
    let content = bed.open();
    assert!(matches!(content.write(GROUPS + 1, b"x"), Err(StoreError::Chunk(64))));
    content.write(GROUPS, &[9; 4096]).unwrap();
    content.commit().unwrap();
    data[GROUPS as usize..][..4096].fill(9);
    bad_chunks(&bed, &data, &[]);
}

#[test]
fn tag_blocks_flipped_zeroed_or_swapped_are_refused() {
    let (bed, data) = bed();
    bed.disk.flip(tag_block(1) + 100);
    bad_groups(&bed, &data, &[1]);
    bed.disk.poke(tag_block(1), &[0; 4096]);
    bad_groups(&bed, &data, &[1]);
    let (a, b) = (bed.disk.peek(tag_block(0), 4096), bed.disk.peek(tag_block(1), 4096));
    let (bed, data) = self::bed();
    let whole_group = |g: u64| bed.disk.peek(tag_block(g), 129 * 4096);
    let (ga, gb) = (whole_group(0), whole_group(1));
    bed.disk.poke(tag_block(0), &gb);
    bed.disk.poke(tag_block(1), &ga);
    bad_groups(&bed, &data, &[0, 1]);
    assert_ne!(a, b);
}

#[test]
fn an_older_version_of_a_segment_is_refused() {
    let (bed, mut data) = bed();
    let old = bed.on(bed.disk.snapshot());
    let content = bed.open();
    content.write(GROUPS + 10, b"newer").unwrap();
    content.commit().unwrap();
    data[GROUPS as usize + 10..][..5].copy_from_slice(b"newer");
    copy(&old, tag_block(0), &bed, tag_block(0), 129 * 4096);
    bad_groups(&bed, &data, &[0]);
    // With the old node too, the root does not match, and nothing below it is believed.
    copy(&old, NODE, &bed, NODE, 4096);
    let content = bed.open();
    assert!(matches!(read(&content, GROUPS, 10), Err(StoreError::Root)));
    assert!(read(&content, 0, 4096).unwrap() == data[..4096]);
    assert!(matches!(content.write(0, b"x"), Err(StoreError::Root)));
    assert_eq!(damage(&content), [StoreError::Root.to_string()]);
}

#[test]
fn an_old_header_over_a_new_body_is_refused() {
    let (bed, _) = bed();
    let old = bed.disk.peek(0, 4096);
    let content = bed.open();
    content.write(0, b"new first chunk").unwrap();
    content.write(GROUPS, b"new group").unwrap();
    content.commit().unwrap();
    bed.disk.poke(0, &old);
    let content = bed.open();
    assert!(matches!(read(&content, 0, 10), Err(StoreError::Chunk(0))));
    assert!(matches!(read(&content, GROUPS, 10), Err(StoreError::Root)));
}

#[test]
fn segments_of_another_file_are_refused() {
    let (bed, data) = bed();
    let other = bed.sibling();
    other.file(&data);
    copy(&other, chunk(1), &bed, chunk(1), 4096);
    copy(&other, tag_block(0), &bed, tag_block(0), 129 * 4096);
    let content = bed.open();
    assert!(matches!(read(&content, GROUPS, 10), Err(StoreError::Tree { index: 0, .. })));
    assert!(matches!(read(&bed.open(), CHUNK, 10), Err(StoreError::Chunk(1))));
}

#[test]
fn a_header_of_another_file_takes_no_body_with_it() {
    let (bed, data) = bed();
    let other = bed.sibling();
    other.file(&data);
    copy(&other, 0, &bed, 0, 4096);
    let content = bed.open();
    assert!(matches!(read(&content, 0, 10), Err(StoreError::Chunk(0))));
    assert!(matches!(read(&content, GROUPS, 10), Err(StoreError::Root)));
}

#[test]
fn every_header_bit_is_covered() {
    let bed = Bed::new();
    bed.file(b"small");
    for at in (0..4096).step_by(7).chain([4095, 2144, 80, 72, 64]) {
        bed.disk.flip(at);
        assert!(matches!(bed.try_open(false), Err(StoreError::Header(_))), "byte {at}");
        bed.disk.flip(at);
    }
    bed.open();
}

#[test]
fn another_key_is_refused_before_use() {
    let bed = Bed::new();
    bed.file(b"small");
    let other = Bed { key: Bed::new().key, ctx: bed.ctx.clone(), disk: bed.disk.clone() };
    assert!(matches!(other.try_open(false), Err(StoreError::Commitment)));
}

#[test]
fn a_cut_file_reads_as_far_as_it_goes() {
    let (bed, data) = bed();
    let want = bed.disk.len().unwrap();
    bed.disk.cut(chunk(200) + 100);
    let content = bed.try_open(false).unwrap();
    let intact = 200 * CHUNK as usize;
    assert!(read(&content, 0, intact).unwrap() == data[..intact]);
    match read(&content, 200 * CHUNK, 4096) {
        Err(StoreError::Short { have, want: w }) => {
            assert_eq!((have, w), (chunk(200) + 100, want));
        }
        other => panic!("{other:?}"),
    }
    assert!(!damage(&content).is_empty());
    assert_eq!(content.size(), TOTAL);
    bed.disk.cut(2 * CHUNK);
    let content = bed.try_open(false).unwrap();
    assert!(read(&content, 0, 4096).unwrap() == data[..4096]);
    assert!(matches!(read(&content, GROUPS, 1), Err(StoreError::Short { .. })));
    bed.disk.cut(100);
    assert!(matches!(bed.try_open(false), Err(StoreError::Header(_))));
}

#[test]
fn what_hangs_over_is_ignored_and_cut_when_writable() {
    let (bed, data) = bed();
    let len = bed.disk.len().unwrap();
    bed.disk.poke(len, &[0x55; 9000]);
    let content = bed.try_open(false).unwrap();
    assert!(!content.is_dirty());
    assert!(read(&content, 0, LEN + 5000).unwrap() == data);
    content.upgrade(bed.disk.clone());
    assert!(content.is_dirty());
    content.commit().unwrap();
    assert_eq!(bed.disk.len().unwrap(), len);
    bed.disk.poke(len, &[0x55; 900_000]);
    let content = bed.open();
    content.write(TOTAL + 700_000, b"end").unwrap();
    content.commit().unwrap();
    assert!(read(&bed.open(), TOTAL, 700_000).unwrap().iter().all(|b| *b == 0));
    assert_eq!(damage(&bed.open()), [""; 0]);
}

#[test]
fn a_damaged_node_hides_its_groups_only() {
    let bed = Bed::new();
    let content = bed.create();
    let far = GROUPS + 200 * GROUP;
    for pos in [0, GROUPS, far] {
        content.write(pos, b"here").unwrap();
    }
    content.commit().unwrap();
    bed.disk.flip(bed.ctx.layout.node_offset(1, 0));
    let content = bed.open();
    assert!(matches!(read(&content, GROUPS, 4), Err(StoreError::Tree { level: 1, index: 0 })));
    assert_eq!(read(&content, far, 4).unwrap(), b"here");
    assert_eq!(read(&content, 0, 4).unwrap(), b"here");
    assert_eq!(damage(&content), [StoreError::Tree { level: 1, index: 0 }.to_string()]);
    // An emptied file needs nothing of the damaged tree.
    content.truncate(0).unwrap();
    content.write(0, b"again").unwrap();
    content.commit().unwrap();
    assert_eq!(read(&bed.open(), 0, 9).unwrap(), b"again");
}
