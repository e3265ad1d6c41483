//! Backups of a live volume: each file, the journal too, copied at another moment, and restored.

use crate::disk::SimDisk;
use crate::explore::{Recording, Recovered};
use crate::oracle::{Found, Known, Mark, Oracle, Snap};
use crate::random::mount;
use crate::support::Rng;
use crate::volume::Volume;
use crate::world::{Event, FileId, Image, Names, PAGE, SimFile, World};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Backups made of one run.
const BACKUPS: usize = 25;

/// The volume between two operations.
struct Moment {
    world: World,
    oracle: Oracle,
}

fn moments(recording: &Recording) -> Vec<Moment> {
    let (mut world, mut oracle) = (recording.start.clone(), recording.oracle.clone());
    let mut all = Vec::new();
    for event in &recording.log {
        if matches!(event, Event::Mark(Mark::Op(_))) {
            all.push(Moment { world: world.clone(), oracle: oracle.clone() });
        }
        world.apply(event);
        oracle.note(event);
    }
    all.push(Moment { world, oracle });
    all
}

/// Every state a file ever had.
fn history(all: &[Moment]) -> BTreeMap<FileId, Vec<Snap>> {
    let mut states: BTreeMap<FileId, Vec<Snap>> = BTreeMap::new();
    for (id, known) in all.iter().flat_map(|moment| &moment.oracle.files) {
        let list = states.entry(*id).or_default();
        for snap in &known.states {
            if !list.iter().any(|s| Arc::ptr_eq(s, snap)) {
                list.push(snap.clone());
            }
        }
    }
    states
}

/// A copy made at one moment, or, torn, its front at one and its end at a later one.
fn copy(first: &Image, second: &Image, cut: Option<u64>) -> Image {
    let Some(cut) = cut else { return second.clone() };
    let mut image = second.clone();
    let early = first.pages.range(..cut / PAGE).map(|(page, bytes)| (*page, bytes.clone()));
    let late = image.pages.split_off(&(cut / PAGE));
    image.pages = early.chain(late).collect();
    let len = image.len;
    image.cut(len);
    image
}

/// Copies everything, restores it, mounts it; returns an error if a promise is broken.
fn back_up(volume: &Volume, all: &[Moment], torn: bool, rng: &mut Rng) -> Result<(), String> {
    let mut names = Names::new();
    let mut files = vec![SimFile::default(); all[all.len() - 1].world.files.len()];
    let mut pieces: Vec<(FileId, [usize; 2], Option<u64>)> = Vec::new();
    let states = history(all);
    let of_any = all.iter().flat_map(|moment| moment.world.names.iter());
    let every: BTreeMap<FileId, Arc<str>> = of_any.map(|(name, id)| (*id, name.clone())).collect();
    for (id, name) in every {
        let mut when = [rng.below(all.len() as u64) as usize, rng.below(all.len() as u64) as usize];
        when.sort();
        let worlds = when.map(|at| &all[at].world);
        if !worlds.iter().all(|world| world.names.values().any(|file| *file == id)) {
            continue;
        }
        let [first, second] = worlds.map(|world| world.files[id].current.clone());
        let is_torn = torn && rng.below(2) == 0;
        let cut = is_torn.then(|| rng.below(second.len + 1));
        let image = Arc::new(copy(&first, &second, cut));
        let (durable, current) = (image.clone(), image);
        let ino = worlds[1].files[id].ino;
        files[id] = SimFile { ino, durable, current, ..SimFile::default() };
        if names.insert(name, id).is_some() {
            // The one that had the name before was overwritten by the backup.
            pieces.retain(|(other, ..)| names.values().any(|there| there == other));
        }
        pieces.push((id, when, cut));
    }
    let world =
        World { files, names: names.clone(), durable_names: names.clone(), ns: vec![], ns_done: 0 };
    let disk = SimDisk::new(world);
    volume.recover(&disk)?;
    for (id, found) in volume.states(&disk) {
        let when = pieces.iter().find(|(file, ..)| *file == id).map_or(0, |(_, when, _)| when[1]);
        let was_committed = all[when].oracle.files.get(&id).is_some_and(|k| !k.last.is_empty());
        // A file that was never written, at the same place and under the same number as one before
        // it, may come back as that one.
        let name = names.iter().find(|(_, file)| **file == id).map(|(name, _)| name);
        let same_name = |moment: &Moment| name.and_then(|name| moment.world.file(name));
        let mut ids: Vec<FileId> = all.iter().filter_map(same_name).collect();
        ids.push(id);
        ids.dedup();
        let of = ids.iter().filter(|other| **other == id || !was_committed);
        let allowed: Vec<Snap> =
            of.filter_map(|id| states.get(id)).flat_map(|list| list.iter().cloned()).collect();
        judge(&found, &allowed, torn || !was_committed)
            .map_err(|e| format!("file {id} of a backup {e}; copied: {pieces:?}"))?;
    }
    Ok(())
}

fn judge(found: &Found, states: &[Snap], torn: bool) -> Result<(), String> {
    let Found::State(seen) = found else { return Ok(()) };
    if !seen.damage.is_empty() && !torn {
        return Err(format!("is damaged: {:?}", seen.damage));
    }
    if seen.header.is_none() && torn || states.iter().any(|snap| seen.fits(snap)) {
        return Ok(());
    }
    let known = Known { states: states.to_vec(), ..Known::default() };
    Err(format!("is no committed state: {seen:?} of {:?}", known.states))
}

pub fn run(seed: u64) -> Result<(), String> {
    let mut rng = Rng(seed ^ 0xbac);
    let volume = Volume::random(&mut rng);
    let (world, oracle) = (World::default(), Oracle::default());
    let recording = mount(&volume, Recovered { world, oracle, files: vec![] }, false, &mut rng);
    let all = moments(&recording);
    for n in 0..BACKUPS {
        back_up(&volume, &all, n % 2 == 1, &mut rng).map_err(|e| format!("seed {seed}: {e}"))?;
    }
    Ok(())
}

#[test]
fn a_restored_backup_is_never_silently_wrong() {
    let _quiet = crate::sound();
    let runs = std::env::var("KMSFS_SIM_BACKUPS").ok().and_then(|n| n.parse().ok()).unwrap_or(80);
    for seed in 1..runs {
        if let Err(error) = run(seed) {
            panic!("{error}");
        }
    }
}
