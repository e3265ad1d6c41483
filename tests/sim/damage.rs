//! Journals that are damaged, foreign, or lie beside the wrong files: never applied wrongly.

use crate::crash::Outcome;
use crate::disk::SimDisk;
use crate::explore::{Recovered, points};
use crate::oracle::{Found, Oracle, Snap, is_journal};
use crate::random::mount;
use crate::support::Rng;
use crate::volume::Volume;
use crate::world::{FileId, Image, PAGE, SECTOR, World};
use kmsfs::store::StoreError;
use kmsfs::store::recover;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Damages tried of one run.
const ROUNDS: usize = 30;

/// Ruins a part of the journal that was written.
fn ruin(image: &mut Image, rng: &mut Rng) {
    let pages: Vec<u64> = image.pages.keys().copied().filter(|page| *page > 0).collect();
    if pages.is_empty() {
        return;
    }
    let (page, other) = (rng.pick(&pages), rng.pick(&pages));
    let mut bytes = [0; PAGE as usize];
    image.get(page * PAGE, &mut bytes);
    match rng.below(5) {
        0 => bytes[rng.below(PAGE) as usize] ^= 1 << rng.below(8),
        1 => bytes.fill(0),
        2 => bytes[..SECTOR as usize].fill(0),
        3 => image.get(other * PAGE, &mut bytes),
        _ => bytes.reverse(),
    }
    image.put(page * PAGE, &bytes);
}

/// Every state a file has had so far.
type History = BTreeMap<FileId, Vec<Snap>>;

fn remember(history: &mut History, oracle: &Oracle) {
    for (id, known) in &oracle.files {
        let list = history.entry(*id).or_default();
        for snap in known.states.iter().chain(&known.flight) {
            if !list.iter().any(|s| Arc::ptr_eq(s, snap)) {
                list.push(snap.clone());
            }
        }
    }
}

/// What is not damaged is some state the file has had.
fn judge(volume: &Volume, disk: &SimDisk, history: &History) -> Result<(), String> {
    for (id, found) in volume.states(disk) {
        let Found::State(seen) = found else { continue };
        let states = history.get(&id).map_or(&[][..], |list| list);
        if seen.header.is_some() && !states.iter().any(|snap| seen.fits(snap)) {
            return Err(format!("file {id} is silently wrong: {seen:?} of {states:?}"));
        }
    }
    Ok(())
}

fn run(seed: u64) -> Result<(), String> {
    let mut rng = Rng(seed ^ 0xdead);
    let volume = Volume::random(&mut rng);
    let (world, oracle) = (World::default(), Oracle::default());
    let recording = mount(&volume, Recovered { world, oracle, files: vec![] }, false, &mut rng);
    let all = points(&recording.log);
    let mut at: Vec<usize> = (0..ROUNDS).map(|_| rng.pick(&all)).collect();
    at.sort();
    let (mut world, mut oracle) = (recording.start.clone(), recording.oracle.clone());
    let (mut history, mut done) = (History::new(), 0);
    for point in at {
        for event in &recording.log[done..point] {
            world.apply(event);
            oracle.note(event);
            remember(&mut history, &oracle);
        }
        done = point;
        let outcome = rng.pick(&[Outcome::Everything, Outcome::Random(seed)]);
        let mut crashed = world.crash(outcome, None);
        let journals: Vec<FileId> =
            crashed.names.iter().filter(|(name, _)| is_journal(name)).map(|(_, id)| *id).collect();
        for id in journals {
            let file = &mut crashed.files[id];
            ruin(Arc::make_mut(&mut file.current), &mut rng);
            file.durable = file.current.clone();
        }
        let disk = SimDisk::new(crashed);
        volume.recover(&disk)?;
        judge(&volume, &disk, &history).map_err(|e| format!("{e}, stop after {point}"))?;
    }
    Ok(())
}

#[test]
fn a_damaged_journal_is_never_applied_wrongly() {
    let _quiet = crate::sound();
    for seed in 1..60 {
        if let Err(error) = run(seed) {
            panic!("seed {seed}: {error}");
        }
    }
}

/// Three firm commits, each a record; the middle one cannot be read.
#[test]
fn a_gap_among_firm_records_is_reported() {
    use crate::runner::{Op::*, Runner};
    let _quiet = crate::sound();
    let volume = Volume::new(1 << 31, 1, (64 << 10, 64 << 10));
    for ruined in 1..=3 {
        let mut runner = Runner::new(&volume, SimDisk::default(), 1, Vec::new());
        for op in [Create(0), Write(0, 0, 9000), Fsync(0), Rewrap(0), Fsync(0)] {
            runner.run(op).unwrap();
        }
        let mut ends = Vec::new();
        for op in [Write(0, 0, 9), Fsync(0), Write(0, 0, 9), Fsync(0), Write(0, 0, 9), Fsync(0)] {
            runner.run(op).unwrap();
            ends.push(runner.journal.status().used);
        }
        let mut world = runner.disk.world();
        let journal = *world.names.iter().find(|(name, _)| is_journal(name)).unwrap().1;
        let file = &mut world.files[journal];
        let start = [ends[0], ends[1], ends[3]][ruined - 1];
        Arc::make_mut(&mut file.current).put(PAGE + start, b"ruined");
        let disk = SimDisk::new(world);
        let (_, reports) = volume.view(&disk).unwrap();
        // Nothing tells that a last record is missing: it might never have been flushed.
        assert_eq!(reports[0].damaged, ruined < 3, "record {ruined}: {reports:?}");
        runner.into_log();
    }
}

#[test]
fn a_foreign_or_ruined_head_stops_recovery() {
    use crate::runner::{Op::*, Runner};
    let _quiet = crate::sound();
    let volume = Volume::new(1 << 31, 1, (64 << 10, 64 << 10));
    let mut runner = Runner::new(&volume, SimDisk::default(), 1, Vec::new());
    for op in [Create(0), Write(0, 0, 9000), Fsync(0), Write(0, 0, 9), Fsync(0)] {
        runner.run(op).unwrap();
    }
    let world = runner.disk.world();
    let journal = *world.names.iter().find(|(name, _)| is_journal(name)).unwrap().1;
    let refused = |volume: &Volume, world: World| {
        let disk = SimDisk::new(world);
        let finder = crate::disk::Finder { disk: disk.clone(), ctx: volume.ctx.clone() };
        let storage = disk.file(journal);
        assert!(!recover::is_unused(&*storage).unwrap());
        let done = recover::recover(&volume.ctx, &*storage, &finder);
        matches!(done, Err(StoreError::Header(_)))
    };
    let foreign = Volume::new(1 << 31, 1, (64 << 10, 64 << 10));
    assert!(refused(&foreign, world.clone()));
    for at in [0, 9, 20, 40, 511, 2000, 4090] {
        let mut world = world.clone();
        let image = Arc::make_mut(&mut world.files[journal].current);
        let mut byte = [0];
        image.get(at, &mut byte);
        image.put(at, &[byte[0] ^ 4]);
        assert!(refused(&volume, world), "byte {at}");
    }
    runner.into_log();
}
