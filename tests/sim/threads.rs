//! Writers, a checkpoint now and then, all at the same time: what happens is not repeatable, but
//! whatever happened is recorded and stopped everywhere.

use crate::crash::Outcome;
use crate::disk::SimDisk;
use crate::explore::{Inner, Recording, points};
use crate::oracle::Oracle;
use crate::random::random_op;
use crate::runner::{Op, Runner};
use crate::support::Rng;
use crate::volume::Volume;
use crate::world::World;
use kmsfs::store::Storage;
use std::sync::atomic::{AtomicUsize, Ordering};

const WRITERS: usize = 3;

fn run(seed: u64) -> Result<usize, String> {
    let mut rng = Rng(seed);
    let volume = Volume::random(&mut rng);
    let disk = SimDisk::default();
    let journal = volume.journal(&disk);
    let left = AtomicUsize::new(WRITERS);
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (disk, journal, left, volume) = (disk.clone(), journal.clone(), &left, &volume);
            scope.spawn(move || {
                let seed = seed * 100 + writer as u64;
                let mut runner = Runner::with_journal(volume, disk, journal, seed, vec![]);
                for _ in 0..40 {
                    match random_op(&mut runner, &[3 * writer, 3 * writer + 1, 3 * writer + 2]) {
                        // What others are committing just now is not firm when it returns.
                        Op::Checkpoint(true) => runner.journal.checkpoint(true).unwrap(),
                        op => runner.run(op).unwrap(),
                    }
                    runner.compare();
                }
                left.fetch_sub(1, Ordering::SeqCst);
            });
        }
        while left.load(Ordering::SeqCst) > 0 {
            journal.checkpoint(false).unwrap();
            std::thread::yield_now();
        }
    });
    let (start, oracle, log) = (World::default(), Oracle::default(), disk.take_log());
    let _ = journal.checkpoint(true);
    let recording = Recording { volume, start, oracle, log };
    let all = points(&recording.log);
    let mut at: Vec<usize> = (0..60).map(|_| rng.pick(&all)).collect();
    at.sort();
    let done = recording.explore(&at, usize::MAX, Inner::One, || vec![Outcome::random(&mut rng)]);
    done.map(|(count, _)| count).map_err(|e| format!("seed {seed}: {e}"))
}

#[test]
fn writers_and_checkpoints_do_not_disturb_each_other() {
    let _quiet = crate::sound();
    let rounds = std::env::var("KMSFS_SIM_THREADS").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    for seed in 1..=rounds {
        if let Err(error) = run(seed) {
            panic!("{error}");
        }
    }
}

/// Times are set from outside while the content is being committed.
#[test]
fn setting_times_does_not_disturb_commits() {
    let _quiet = crate::sound();
    for seed in 1..=20 {
        let volume = Volume::new(1 << 31, 1, (64 << 10, 64 << 10));
        let disk = SimDisk::default();
        let mut runner = Runner::new(&volume, disk.clone(), seed, vec![]);
        for op in [Op::Create(0), Op::Write(0, 0, 9000), Op::Fsync(0), Op::Append(0, 9)] {
            runner.run(op).unwrap();
        }
        let (log, done) = (runner.log(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while done.load(Ordering::SeqCst) == 0 {
                    log.set_mtime((5, 6)).unwrap();
                }
            });
            for _ in 0..100 {
                runner.run(Op::Append(0, 3000)).unwrap();
                runner.run(Op::Commit(0)).unwrap();
                runner.compare();
            }
            runner.run(Op::Fsync(0)).unwrap();
            done.store(1, Ordering::SeqCst);
        });
        let (start, oracle) = (World::default(), Oracle::default());
        let log = runner.into_log();
        let recording = Recording { volume, start, oracle, log };
        let end = [recording.log.len()];
        let outcomes = || vec![Outcome::Nothing, Outcome::Everything];
        if let Err(error) = recording.explore(&end, usize::MAX, Inner::None, outcomes) {
            panic!("{error}");
        }
    }
}
