//! Errors of the backing file: the caller hears of them, nothing is lost, a later call succeeds.

use crate::mem::{Call, Fault};
use crate::model::Model;
use crate::support::{Bed, CHUNK, GROUPS, Rng, damage, read};
use kmsfs::store::{Content, Storage, StoreError};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

fn fault(after: u64, times: u64, errno: i32) -> Option<Fault> {
    Some(Fault { after, times, errno, reads: false })
}

/// Operations with known effect on the model.
#[derive(Clone, Debug)]
enum Op {
    Write(u64, Vec<u8>),
    Truncate(u64),
    Punch(u64, u64),
}

impl Op {
    fn random(rng: &mut Rng) -> Self {
        let of = [0, 1, CHUNK, 10 * CHUNK + 7, GROUPS - 5, GROUPS, 2 * GROUPS, 800_000];
        let pos = rng.pick(&of);
        match rng.below(6) {
            0 => Op::Truncate(pos),
            1 => Op::Punch(pos, rng.pick(&[10, 4096, 300_000])),
            _ => {
                let len = rng.pick(&[1, 5000, 40_000, 70_000, 300_000]);
                Op::Write(pos, rng.bytes(len))
            }
        }
    }
    fn on_content(&self, content: &Content) -> Result<(), StoreError> {
        match self {
            Op::Write(pos, data) => content.write(*pos, data),
            Op::Truncate(size) => content.truncate(*size),
            Op::Punch(pos, len) => content.punch(*pos, *len),
        }
    }
    fn on_model(&self, model: &mut Model) {
        match self {
            Op::Write(pos, data) => model.write(*pos, data),
            Op::Truncate(size) => model.truncate(*size),
            Op::Punch(pos, len) => model.punch(*pos, *len),
        }
    }
}

fn same(content: &Content, model: &Model) -> bool {
    let size = model.size as usize;
    content.size() == model.size
        && read(content, 0, size + 1).is_ok_and(|got| got == model.read(0, size))
}

/// After a failed operation every byte is the old or the new one.
fn between(content: &Content, old: &Model, new: &Model) -> bool {
    let len = old.size.max(new.size) as usize;
    let Ok(got) = read(content, 0, len) else { return false };
    let pad = |m: &Model| {
        let mut all = m.read(0, len);
        all.resize(len, 0);
        all
    };
    let (old, new) = (pad(old), pad(new));
    got.iter().zip(old.iter().zip(&new)).all(|(g, (a, b))| g == a || g == b)
}

/// One operation whose nth change of the backing file fails, with what was before it.
fn round(content: &Content, bed: &Bed, rng: &mut Rng, model: &mut Model) -> u32 {
    let op = Op::random(rng);
    let mut new = model.clone();
    op.on_model(&mut new);
    bed.disk.set_fault(fault(rng.below(4), 1 + rng.below(2), rng.pick(&[EIO, ENOSPC])));
    let mut errors = 0;
    if op.on_content(content).is_err() {
        errors += 1;
        assert!(between(content, model, &new), "{op:?} failed half-way");
        bed.disk.set_fault(None);
        op.on_content(content).unwrap();
    }
    assert!(same(content, &new), "after the operation");
    for _ in 0..3 {
        if content.commit().is_err() {
            errors += 1;
            assert!(content.is_dirty());
            assert!(same(content, &new), "after a failed commit");
        }
    }
    bed.disk.set_fault(None);
    content.commit().unwrap();
    *model = new;
    errors
}

#[test]
fn every_change_may_fail_once_or_twice() {
    let mut errors = 0;
    for seed in 0..60 {
        let (bed, mut rng, mut model) = (Bed::new(), Rng(seed), Model::default());
        let content = bed.create();
        for _ in 0..12 {
            errors += round(&content, &bed, &mut rng, &mut model);
            if content.generation() > 0 {
                let opened = bed.open();
                assert!(same(&opened, &model), "seed {seed}");
                assert_eq!(damage(&opened), [""; 0], "seed {seed}");
                assert_eq!(
                    bed.disk.len().unwrap(),
                    bed.ctx.layout.backing_len(model.size),
                    "seed {seed}"
                );
            }
        }
    }
    assert!(errors > 200, "only {errors} errors were met");
}

#[test]
fn a_full_disk_keeps_everything_until_there_is_space() {
    let bed = Bed::new();
    let content = bed.file(&[1; 20_000]);
    bed.disk.set_fault(fault(0, u64::MAX, ENOSPC));
    content.write(100, b"kept").unwrap();
    for _ in 0..3 {
        let error = content.sync().unwrap_err();
        assert!(matches!(error, StoreError::Io(e) if e.raw_os_error() == Some(ENOSPC)));
    }
    assert_eq!(read(&content, 100, 4).unwrap(), b"kept");
    assert!(content.is_dirty());
    bed.disk.set_fault(None);
    content.sync().unwrap();
    assert!(!content.is_dirty());
    assert_eq!(read(&bed.open(), 100, 4).unwrap(), b"kept");
}

#[test]
fn memory_stays_bounded_while_commits_fail() {
    let bed = Bed::new();
    let content = bed.file(&vec![1; 20 << 20]);
    bed.disk.set_fault(fault(0, u64::MAX, ENOSPC));
    let data = vec![2; 1 << 20];
    let done = (0..20).take_while(|i| content.write(i << 20, &data).is_ok()).count();
    assert!((7..12).contains(&done), "{done} MiB were taken");
    assert!(content.write(0, b"x").is_err());
}

#[test]
fn failing_reads_fail_and_recover() {
    let bed = Bed::new();
    let data = Rng(3).bytes(900_000);
    bed.file(&data);
    for after in 0..6 {
        let content = bed.open();
        bed.disk.set_fault(Some(Fault { after, times: 1, errno: EIO, reads: true }));
        let got = read(&content, 0, 900_000);
        assert!(matches!(got, Err(StoreError::Io(_))), "read {after} must fail");
        assert!(read(&content, 0, 900_000).unwrap() == data);
        bed.disk.set_fault(None);
    }
}

#[test]
fn a_failed_cut_is_made_up_for_before_anything_new() {
    let bed = Bed::new();
    let content = bed.file(&[1; 100_000]);
    content.truncate(10).unwrap();
    bed.disk.set_fault(fault(2, 1, EIO));
    assert!(content.commit().is_err());
    assert!(content.is_dirty());
    bed.disk.take_calls();
    content.write(50_000, &[2; 10]).unwrap();
    let tail = Call::Read { offset: CHUNK, len: 10 };
    assert_eq!(bed.disk.take_calls(), [Call::SetLen(4096 + 10), tail]);
    content.commit().unwrap();
    let mut want = vec![0; 50_010];
    want[..10].fill(1);
    want[50_000..].fill(2);
    assert!(read(&bed.open(), 0, 60_000).unwrap() == want);
}

#[test]
fn a_failed_time_is_set_later() {
    let bed = Bed::new();
    let content = bed.create();
    content.write(0, b"x").unwrap();
    content.override_mtime((7, 8));
    bed.disk.set_fault(fault(1, 1, EIO));
    assert!(content.commit().is_err());
    assert_eq!(content.pending_mtime(), Some((7, 8)));
    bed.disk.take_calls();
    content.commit().unwrap();
    assert_eq!(bed.disk.take_calls(), [Call::SetMtime((7, 8))]);
}

#[test]
fn a_group_emptied_and_refilled_around_a_failed_commit_is_found() {
    let bed = Bed::new();
    let content = bed.create();
    let far = GROUPS + 200 * 128 * CHUNK;
    content.write(GROUPS, b"first").unwrap();
    content.write(far, b"far").unwrap();
    content.commit().unwrap();
    content.punch(GROUPS, CHUNK).unwrap();
    bed.disk.set_fault(fault(0, 1, EIO));
    assert!(content.commit().is_err());
    content.write(GROUPS, b"again").unwrap();
    assert_eq!(content.seek_data(10).unwrap(), Some(GROUPS));
    content.commit().unwrap();
    let content = bed.open();
    assert_eq!(content.seek_data(10).unwrap(), Some(GROUPS));
    assert_eq!(read(&content, GROUPS, 5).unwrap(), b"again");
}

#[test]
fn a_header_that_landed_despite_the_error_stays_true() {
    let bed = Bed::new();
    let content = bed.create();
    content.write(0, &[1; 4096]).unwrap();
    content.write(2 * CHUNK, &[2; 100_000]).unwrap();
    // Header and first chunk go in one write, of which half, the header, arrives.
    bed.disk.set_fault(fault(0, 1, EIO));
    assert!(content.commit().is_err());
    content.write(2 * CHUNK, &[3; 100_000]).unwrap();
    let crashed = bed.on(bed.disk.snapshot()).try_open(false).unwrap();
    assert_eq!(read(&crashed, 2 * CHUNK, 100_000).unwrap(), [2; 100_000]);
    content.commit().unwrap();
    assert_eq!(read(&bed.open(), 2 * CHUNK, 100_000).unwrap(), [3; 100_000]);
}

#[test]
fn a_torn_rewrite_in_place_loses_nothing() {
    let bed = Bed::new();
    let content = bed.create();
    content.write(0, &[1; 100_000]).unwrap();
    bed.disk.set_fault(fault(0, 1, ENOSPC));
    assert!(content.write(50, &[2; 100_000]).is_err());
    let got = read(&content, 0, 200_000).unwrap();
    assert_eq!(got[..50], [1; 50]);
    assert!(got.len() >= 100_000 && got[50..].iter().all(|b| *b == 2));
    content.commit().unwrap();
    assert!(read(&bed.open(), 0, 200_000).unwrap() == got);
}
