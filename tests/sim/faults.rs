//! A call of the backing file system fails: the caller hears of it, and nothing committed is lost,
//! now or at a later crash.

use crate::crash::Outcome;
use crate::disk::{Fault, SimDisk};
use crate::explore::{Inner, Recording, points};
use crate::oracle::Oracle;
use crate::runner::{Op, Op::*, Runner};
use crate::support::Rng;
use crate::volume::Volume;
use crate::world::World;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// Runs `ops` with a fault due after so many changing calls; `None` when it was never met.
fn record(ops: &[Op], journal: (u64, u64), fault: Fault) -> Option<Recording> {
    let volume = Volume::new(1 << 31, 1, journal);
    let mut runner = Runner::new(&volume, SimDisk::default(), 3, Vec::new());
    runner.faulty = true;
    for op in [Create(0), Write(0, 0, 20_000), Fsync(0)] {
        runner.run(op).unwrap();
    }
    runner.disk.set_fault(Some(fault));
    // An error is no surprise; that nothing is lost by it is checked by the crashes.
    for op in ops {
        let _ = runner.run(*op);
    }
    runner.disk.set_fault(None);
    if runner.disk.failed() == 0 {
        return None;
    }
    // What is still possible must work; what is not must fail cleanly.
    for op in [Write(0, 100, 100), Fsync(0), Write(1, 0, 9), Fsync(1), Checkpoint(true)] {
        let _ = runner.run(op);
    }
    let (start, oracle) = (World::default(), Oracle::default());
    Some(Recording { volume, start, oracle, log: runner.into_log() })
}

fn workloads() -> Vec<(&'static str, Vec<Op>, (u64, u64))> {
    let usual = (64 << 10, 256 << 10);
    let tight = (8 << 10, 64 << 10);
    vec![
        (
            "overwrite",
            vec![Write(0, 5000, 100), Fsync(0), Write(0, 0, 9), Commit(0), Fsync(0)],
            usual,
        ),
        (
            "append",
            vec![Append(0, 70_000), Fsync(0), Append(0, 9), Commit(0), Append(0, 9), Fsync(0)],
            usual,
        ),
        (
            "new file",
            vec![Create(1), Write(1, 0, 9000), Commit(1), Append(1, 9), Commit(1), Fsync(1)],
            usual,
        ),
        (
            "shrink",
            vec![Truncate(0, 100), Commit(0), Fsync(0), Append(0, 70_000), Commit(0)],
            usual,
        ),
        ("punch", vec![Punch(0, 4096, 8192), Commit(0), Write(0, 4096, 100), Fsync(0)], usual),
        (
            "checkpoint",
            vec![
                Write(0, 0, 9),
                Create(1),
                Write(1, 0, 9),
                Commit(0),
                Fsync(1),
                Write(1, 0, 9),
                Commit(1),
                Checkpoint(false),
                Write(0, 0, 9),
                Fsync(0),
                Checkpoint(true),
            ],
            usual,
        ),
        (
            "full journal",
            (0..8).flat_map(|i| [Write(0, i * 3000, 3000), Fsync(0)]).collect(),
            tight,
        ),
        (
            "rewrap",
            vec![Rewrap(0), Fsync(0), Rewrap(0), Checkpoint(false), Write(0, 0, 9), Fsync(0)],
            usual,
        ),
        (
            "empty",
            vec![
                Truncate(0, 0),
                Append(0, 70_000),
                Fsync(0),
                Truncate(0, 0),
                Append(0, 9),
                Fsync(0),
            ],
            usual,
        ),
    ]
}

fn try_all(name: &str, ops: &[Op], journal: (u64, u64), rng: &mut Rng) -> Result<usize, String> {
    let mut total = 0;
    for (errno, times) in [(EIO, 1), (ENOSPC, 1), (EIO, 3), (ENOSPC, 1000)] {
        for after in 0.. {
            let fault = Fault { after, times, errno };
            let Some(recording) = record(ops, journal, fault) else { break };
            let all = points(&recording.log);
            let mut at: Vec<usize> = (0..30).map(|_| rng.pick(&all)).collect();
            at.push(recording.log.len());
            at.sort();
            let outcomes = || vec![Outcome::random(rng), Outcome::random(rng)];
            let done = recording.explore(&at, usize::MAX, Inner::None, outcomes);
            total += done.map_err(|e| format!("{name}, {fault:?}: {e}"))?.0;
        }
    }
    Ok(total)
}

#[test]
fn any_failing_call_leaves_what_was_committed() {
    let _quiet = crate::sound();
    let (mut rng, mut total) = (Rng(5), 0);
    for (name, ops, journal) in workloads() {
        match try_all(name, &ops, journal, &mut rng) {
            Ok(count) => total += count,
            Err(error) => panic!("{error}"),
        }
    }
    println!("{total} crashes after faults");
}

/// The system says once that it could not write, forgets it, and shows what it did not write.
#[test]
fn what_a_failed_flush_dropped_is_not_firm_after_opening_anew() {
    let _quiet = crate::sound();
    let volume = Volume::new(1 << 31, 1, (64 << 10, 64 << 10));
    let disk = SimDisk::default();
    let journal = volume.journal(&disk);
    let file = disk.create_file("f0").unwrap();
    let log = || volume.log(&disk, &journal, (file, "f0"), false, &mut Rng(1));
    let content = volume.create(log());
    content.write(0, &[1; 9000]).unwrap();
    content.commit().unwrap();
    disk.set_fault(Some(Fault { after: 0, times: 1, errno: EIO }));
    assert!(content.sync().is_err());
    assert!(content.sync().is_err(), "until it is opened anew");
    drop(content);
    let opened = volume.open(log(), true);
    let claims = opened.is_ok_and(|(content, _)| content.sync().is_ok());
    let crashed = SimDisk::new(disk.world().crash(Outcome::Nothing, None));
    let there = volume.open(crashed.file(file), false).is_ok();
    assert!(there || !claims);
}
