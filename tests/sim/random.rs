//! Random workloads, stopped at random calls, recovered, continued, stopped again.

use crate::crash::Outcome;
use crate::disk::{Fault, SimDisk};
use crate::explore::{Inner, Recording, Recovered, points};
use crate::oracle::{Mark, Oracle, is_journal};
use crate::runner::{Op, Runner};
use crate::support::{CHUNK, GROUP, GROUPS, Rng};
use crate::volume::Volume;
use crate::world::World;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Mounts, each ended by a crash, of one run.
const MOUNTS: usize = 4;
/// Crashes tried of each.
const CRASHES: usize = 40;

fn position(rng: &mut Rng, size: u64) -> u64 {
    let far = GROUPS + GROUP * rng.pick(&[1, 2, 3, 127, 128, 130]);
    let of = [0, 0, CHUNK, 5 * CHUNK, 62 * CHUNK, 63 * CHUNK, GROUPS, GROUPS + GROUP, size, size];
    let base = if rng.below(40) == 0 { far } else { rng.pick(&of) };
    let near = rng.pick(&[0, 0, 0, 1, 100, 4095, 4096, 4097, 9000]);
    if rng.below(2) == 0 { base + near } else { base.saturating_sub(near) }
}

fn length(rng: &mut Rng) -> usize {
    let len = rng.pick(&[1, 7, 100, 100, 4096, 4096, 5000, 20_000, 66_000, 70_000, 300_000]);
    len - rng.below(2) as usize * (len / 3)
}

/// An operation on one of the slots.
pub fn random_op(runner: &mut Runner, slots: &[usize]) -> Op {
    let slot = runner.rng.pick(slots);
    let rng = &mut runner.rng;
    let Some(file) = &runner.slots[slot] else { return Op::Create(slot) };
    let size = file.model.size;
    let (pos, len) = (position(rng, size), length(rng));
    match rng.below(64) {
        0..=10 => Op::Write(slot, pos, len),
        11..=17 => Op::Write(slot, rng.below(size.max(1)), 100),
        18..=20 => Op::Append(slot, len),
        21..=23 => Op::Append(slot, 7),
        24..=26 => Op::Truncate(slot, 0),
        27..=30 => Op::Truncate(slot, pos),
        31 => Op::Truncate(slot, size / 2),
        32..=34 => Op::Punch(slot, pos, len as u64),
        35 => Op::Allocate(slot, pos, len as u64, rng.below(2) == 0),
        36..=43 => Op::Commit(slot),
        44..=51 => Op::Fsync(slot),
        52 | 53 => Op::Checkpoint(false),
        54 => Op::Checkpoint(true),
        55..=57 => Op::Reopen(slot),
        58 => Op::Unlink(slot),
        59 => Op::UnlinkOpen(slot),
        60 => Op::Create(slot),
        61 => Op::Rename(slot, rng.pick(slots)),
        62 => Op::Mtime(slot),
        _ => Op::Rewrap(slot),
    }
}

fn random_fault(rng: &mut Rng) -> Fault {
    let (after, times) = (rng.below(12), rng.pick(&[0, 1, 1, 2, 5, 40]));
    Fault { after, times, errno: rng.pick(&[5, 28]) }
}

/// Removes what recovery left unreadable.
fn clear(disk: &SimDisk, files: &[(usize, usize, crate::oracle::Snap)]) {
    for (name, id) in disk.names() {
        if !is_journal(&name) && !files.iter().any(|(_, known, _)| *known == id) {
            disk.mark(Mark::Gone { file: id });
            disk.unlink(&name).unwrap();
        }
    }
}

pub fn mount(volume: &Volume, from: Recovered, faults: bool, rng: &mut Rng) -> Recording {
    let Recovered { world, oracle, files } = from;
    let disk = SimDisk::new(world.clone());
    clear(&disk, &files);
    let mut runner = Runner::new(volume, disk, rng.next(), files);
    runner.faulty = faults;
    for _ in 0..10 + rng.below(60) {
        let op = random_op(&mut runner, &[0, 1, 2, 3, 4]);
        if faults && runner.rng.below(8) == 0 {
            runner.disk.set_fault(Some(random_fault(&mut runner.rng)));
        }
        let _ = runner.run(op);
        if rng.below(4) == 0 {
            runner.compare();
        }
    }
    Recording { volume: volume.clone(), start: world, oracle, log: runner.into_log() }
}

/// One run; returns how many crashes it tried.
pub fn run(seed: u64, faults: bool) -> Result<usize, String> {
    let mut rng = Rng(seed);
    let volume = Volume::random(&mut rng);
    let (world, oracle) = (World::default(), Oracle::default());
    let mut state = Recovered { world, oracle, files: Vec::new() };
    let mut total = 0;
    for _ in 0..MOUNTS {
        let recording = mount(&volume, state, faults, &mut rng);
        let all = points(&recording.log);
        let mut at: Vec<usize> = (0..CRASHES).map(|_| rng.pick(&all)).collect();
        at.sort();
        let keep = rng.below(CRASHES as u64) as usize;
        let mut outcomes = || vec![Outcome::random(&mut rng)];
        let (count, kept) = recording.explore(&at, keep, Inner::One, &mut outcomes)?;
        total += count;
        state = kept.unwrap();
    }
    Ok(total)
}

/// [`run`], with panics as failures; every fourth with faults.
pub fn run_safely(seed: u64) -> Result<usize, String> {
    let done = catch_unwind(AssertUnwindSafe(|| run(seed, seed.is_multiple_of(4)))).unwrap_or_else(
        |panic| {
            let text = panic.downcast_ref::<String>().cloned();
            Err(text.or(panic.downcast_ref::<&str>().map(|s| s.to_string())).unwrap_or_default())
        },
    );
    done.map_err(|e| format!("seed {seed}: {e}"))
}

/// Runs seeds from `first` on until so many crashes were tried, on two threads.
fn campaign(first: u64, crashes: usize) -> Result<usize, String> {
    let (next, count) = (AtomicU64::new(first), AtomicUsize::new(0));
    let worker = || {
        while count.load(Ordering::Relaxed) < crashes {
            count.fetch_add(run_safely(next.fetch_add(1, Ordering::Relaxed))?, Ordering::Relaxed);
        }
        Ok::<(), String>(())
    };
    let results = std::thread::scope(|scope| {
        let threads = [scope.spawn(worker), scope.spawn(worker)];
        threads.map(|t| t.join().unwrap())
    });
    results.into_iter().collect::<Result<Vec<()>, String>>()?;
    Ok(count.into_inner())
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// `KMSFS_SIM` is the number of crashes, `KMSFS_SEED` the first seed (with a count of 1: only it).
#[test]
fn no_crash_of_a_random_run_breaks_a_promise() {
    let _quiet = crate::sound();
    let started = std::time::Instant::now();
    let crashes = number("KMSFS_SIM").unwrap_or(5000) as usize;
    let first = number("KMSFS_SEED").unwrap_or(1);
    match campaign(first, crashes) {
        Ok(count) => println!("{count} crashes, {:?}", started.elapsed()),
        Err(error) => panic!("{error}"),
    }
}
