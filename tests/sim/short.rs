//! Short workloads that matter, stopped at every call with every pattern of loss.

use crate::crash::{Outcome, PATTERNS};
use crate::disk::SimDisk;
use crate::explore::{Inner, Recording, points};
use crate::oracle::Oracle;
use crate::runner::{Op, Op::*, Runner};
use crate::support::{CHUNK, GROUP, GROUPS, Rng};
use crate::volume::Volume;
use crate::world::World;

/// A workload and where it runs.
pub struct Short {
    pub name: &'static str,
    pub ops: Vec<Op>,
    rekey: u64,
    header_blocks: u8,
    journal: (u64, u64),
    inner: Inner,
}

/// A firm file in slot 0 of so many bytes, then `ops`.
fn on_file(name: &'static str, len: usize, ops: &[Op]) -> Short {
    let start = [Create(0), Write(0, 0, len), Fsync(0)];
    let ops = start.iter().chain(ops).copied().collect();
    let (journal, inner) = ((64 << 10, 256 << 10), Inner::One);
    Short { name, ops, rekey: 1 << 31, header_blocks: 1, journal, inner }
}

impl Short {
    fn with_journal(self, smallest: u64, largest: u64) -> Self {
        Self { journal: (smallest, largest), ..self }
    }

    pub fn record(&self) -> Recording {
        let volume = Volume::new(self.rekey, self.header_blocks, self.journal);
        let mut runner = Runner::new(&volume, SimDisk::default(), 1, Vec::new());
        for op in &self.ops {
            runner.run(*op).unwrap();
            runner.compare();
        }
        let (start, oracle) = (World::default(), Oracle::default());
        Recording { volume, start, oracle, log: runner.into_log() }
    }

    /// All crash points, all patterns and some random outcomes; returns how many crashes it were.
    pub fn exhaust(&self) -> Result<usize, String> {
        let recording = self.record();
        let mut rng = Rng(7);
        let outcomes = || {
            let random = (0..5).map(|_| Outcome::Random(rng.next()));
            PATTERNS.into_iter().chain(random).collect()
        };
        let all = points(&recording.log);
        let done = recording.explore(&all, usize::MAX, self.inner, outcomes);
        done.map(|(count, _)| count).map_err(|e| format!("{}: {e}", self.name))
    }
}

/// Contents that grow.
#[rustfmt::skip]
fn growing() -> Vec<Short> {
    let groups = GROUPS as usize;
    vec![
        on_file("append after fsync", 20_000, &[
            Append(0, 7), Fsync(0), Append(0, 5000), Commit(0), Append(0, 9), Commit(0), Fsync(0),
        ]),
        on_file("append directly", 20_000, &[
            Append(0, 100_000), Commit(0), Append(0, 70_000), Append(0, 3), Fsync(0), Commit(0),
        ]),
        on_file("append into new groups", groups - 100, &[
            Append(0, 300), Fsync(0), Append(0, 700_000), Commit(0), Append(0, 99), Fsync(0),
        ]),
        on_file("grow", 9000, &[
            Truncate(0, 9001), Commit(0), Truncate(0, 600_000), Fsync(0),
            Write(0, 590_000, 70_000), Fsync(0),
        ]),
        on_file("growth that is never committed", 9000, &[
            Truncate(0, 600_000), Write(0, 300_000, 70_000), Checkpoint(true), Write(0, 10, 10),
        ]),
        on_file("far away", 9000, &[
            Write(0, GROUPS + 130 * GROUP, 9000), Fsync(0), Write(0, GROUPS + 127 * GROUP, 99),
            Commit(0), Truncate(0, 9), Fsync(0),
        ]),
        on_file("reserve", 9000, &[
            Allocate(0, 0, 90_000, true), Append(0, 70_000), Allocate(0, 0, 200_000, false), Fsync(0),
        ]),
    ]
}

/// Contents that change where they are.
#[rustfmt::skip]
fn overwriting() -> Vec<Short> {
    let keys = on_file("new segment keys", 30_000, &[
        Write(0, 0, 9000), Commit(0), Write(0, 8192, 70_000), Fsync(0), Append(0, 9),
    ]);
    let header = on_file("a long header", 9000, &[
        Write(0, 0, 10), Fsync(0), Append(0, 80_000), Commit(0), Checkpoint(false), Write(0, 9, 9),
    ]);
    vec![
        on_file("overwrite 100 bytes", 20_000, &[
            Write(0, 5000, 100), Fsync(0), Write(0, 5050, 100), Commit(0), Write(0, 0, 100), Fsync(0),
        ]),
        on_file("overwrite a block", GROUPS as usize + 200_000, &[
            Write(0, 8192, 4096), Fsync(0), Write(0, GROUPS, 4096), Commit(0), Fsync(0),
            Write(0, 8192, 4096),
        ]),
        on_file("punch", 100_000, &[
            Punch(0, 4096, 40_000), Commit(0), Write(0, 8192, 9000), Commit(0), Checkpoint(false),
            Write(0, 0, 80_000), Fsync(0),
        ]),
        on_file("times", 9000, &[
            Mtime(0), Write(0, 1, 1), Mtime(0), Fsync(0), Mtime(0), Fsync(0),
        ]),
        on_file("rewrap", 9000, &[
            Rewrap(0), Fsync(0), Write(0, 5, 5), Commit(0), Rewrap(0), Checkpoint(false), Rewrap(0),
            Rewrap(0), Fsync(0), Checkpoint(false), Write(0, 0, 20_000), Commit(0),
        ]),
        Short { rekey: 9, ..keys },
        Short { header_blocks: 4, ..header },
    ]
}

/// Contents that shrink.
#[rustfmt::skip]
fn shrinking() -> Vec<Short> {
    let whole = GROUPS as usize + 200_000;
    vec![
        on_file("shrink", whole, &[
            Truncate(0, GROUPS + 5000), Commit(0), Truncate(0, 9000), Fsync(0), Append(0, 90_000),
            Fsync(0),
        ]),
        on_file("shrink and grow in one commit", 90_000, &[
            Truncate(0, 9000), Append(0, 70_000), Commit(0), Append(0, 70_000), Fsync(0),
        ]),
        on_file("empty and write little", 100_000, &[
            Truncate(0, 0), Write(0, 0, 300), Commit(0), Fsync(0), Truncate(0, 0), Append(0, 50),
            Fsync(0),
        ]),
        on_file("empty and write much", whole, &[
            Truncate(0, 0), Write(0, 0, 100_000), Commit(0), Write(0, 100_000, 100_000), Fsync(0),
            Checkpoint(false), Append(0, 80_000),
        ]),
        on_file("empty, grow, write in the middle", whole, &[
            Truncate(0, 0), Truncate(0, GROUPS + 3 * GROUP), Write(0, GROUPS + GROUP, 70_000),
            Fsync(0), Write(0, 0, 9), Fsync(0),
        ]),
        Short {
            inner: Inner::All,
            ..on_file("recovery itself", 9000, &[
                Append(0, 70_000), Write(0, 0, 9), Commit(0), Truncate(0, 9000), Fsync(0),
            ])
        },
    ]
}

/// Names, and files that are new.
#[rustfmt::skip]
fn naming() -> Vec<Short> {
    vec![
        on_file("rename over", 9000, &[
            Create(1), Write(1, 0, 9000), Commit(1), Fsync(1), Write(0, 5, 5), Commit(0),
            Rename(1, 0), Write(0, 1, 1), Fsync(0),
        ]),
        on_file("close without fsync", 9000, &[
            Write(0, 5, 100), Reopen(0), Checkpoint(false), Reopen(0), Append(0, 9), Reopen(0),
            Checkpoint(true),
        ]),
        on_file("unlink and create", 9000, &[
            Write(0, 5, 100), Commit(0), Unlink(0), Create(0), Write(0, 0, 5000), Commit(0),
            Write(0, 1, 1), Commit(0), Fsync(0),
        ]),
        on_file("unlink while open", 9000, &[
            Write(0, 5, 100), Commit(0), UnlinkOpen(0), Create(0), Write(0, 0, 5000), Fsync(0),
            UnlinkOpen(0), Checkpoint(false),
        ]),
        on_file("an empty file that is firm", 9000, &[
            Create(1), Fsync(1), Write(1, 0, 9000), Commit(1), Append(1, 70_000), Commit(1),
            Write(1, 5, 9), Fsync(1), Create(2), Fsync(2), Write(2, 0, 70_000), Checkpoint(false),
            Commit(2), Fsync(2),
        ]),
        on_file("a new file where another was", 9000, &[
            Create(1), Fsync(1), Write(1, 0, 9000), Fsync(1), Write(1, 0, 9000), Commit(1),
            Unlink(1), Create(1), Write(1, 0, 70_000), Commit(1), Fsync(1),
        ]),
        on_file("a second commit before the first fsync", 9000, &[
            Create(1), Write(1, 0, 9000), Commit(1), Write(1, 5, 100), Commit(1),
            Append(1, 70_000), Commit(1), Write(0, 1, 1), Fsync(0), Fsync(1), Write(1, 0, 9),
            Fsync(1),
        ]),
    ]
}

/// Checkpoints, wanted or because the journal is full.
#[rustfmt::skip]
fn checkpointing() -> Vec<Short> {
    let small: Vec<Op> = (0..12).flat_map(|i| [Write(0, i * 2000, 100), Commit(0)]).collect();
    let large: Vec<Op> = (0..4).flat_map(|i| [Write(0, i * 9000, 30_000), Fsync(0)]).collect();
    let new = |i| [Create(i), Write(i, 0, 9), Fsync(i), Write(i, 3, 9), Commit(i)];
    let mut many: Vec<Op> = (1..12).flat_map(new).collect();
    many.extend([Checkpoint(false), Write(3, 0, 9), Commit(3)]);
    vec![
        on_file("checkpoint", 9000, &[
            Create(1), Write(1, 0, 9000), Commit(1), Write(0, 5, 100), Write(1, 5, 100), Commit(0),
            Commit(1), Checkpoint(false), Write(1, 9, 9), Append(0, 70_000), Commit(0),
            Checkpoint(true), Write(0, 0, 9), Commit(0),
        ]),
        on_file("checkpoint of many", 9000, &many),
        on_file("a full journal", 40_000, &small).with_journal(8 << 10, 8 << 10),
        on_file("a growing journal", 40_000, &large).with_journal(8 << 10, 256 << 10),
        on_file("a journal full of removed files", 9000, &[
            Create(1), Write(1, 0, 9000), Fsync(1), Write(1, 5, 5), Fsync(1), Unlink(1),
            Write(0, 5, 100), Commit(0), Write(0, 5, 100), Fsync(0), Write(0, 1, 1), Fsync(0),
        ]).with_journal(16 << 10, 16 << 10),
    ]
}

pub fn all() -> Vec<Short> {
    [growing(), overwriting(), shrinking(), naming(), checkpointing()]
        .into_iter()
        .flatten()
        .collect()
}

#[test]
fn every_crash_of_short_runs_keeps_the_promises() {
    let _quiet = crate::sound();
    let started = std::time::Instant::now();
    let mut total = 0;
    for short in all() {
        match short.exhaust() {
            Ok(count) => total += count,
            Err(error) => panic!("{error}"),
        }
    }
    println!("{total} crashes, {:?}", started.elapsed());
}

/// More is written over than memory may hold: the engine commits by itself, in the middle of a call.
#[test]
fn commits_for_lack_of_memory_keep_the_promises() {
    let _quiet = crate::sound();
    let ops = [Write(0, 1000, 9 << 20), Commit(0), Write(0, 5 << 20, 100), Truncate(0, CHUNK)];
    let recording = on_file("much", 9 << 20, &ops).record();
    let all = points(&recording.log);
    let at: Vec<usize> = all.iter().copied().rev().take(30).rev().collect();
    let mut rng = Rng(11);
    let outcomes = || vec![Outcome::random(&mut rng)];
    if let Err(error) = recording.explore(&at, usize::MAX, Inner::One, outcomes) {
        panic!("{error}");
    }
}
