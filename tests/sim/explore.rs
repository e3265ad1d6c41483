//! Crash points of a recorded run: stop there, recover, and compare with what is allowed.

use crate::crash::{Outcome, PATTERNS};
use crate::disk::SimDisk;
use crate::oracle::{Found, Known, Mark, Oracle, Snap};
use crate::support::Rng;
use crate::volume::{States, Volume, same};
use crate::world::{Event, FileId, World};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

/// A run as it can be followed again: the disk before it and everything that happened.
pub struct Recording {
    pub volume: Volume,
    pub start: World,
    pub oracle: Oracle,
    pub log: Vec<Event>,
}

/// A volume that was recovered.
pub struct Recovered {
    pub world: World,
    pub oracle: Oracle,
    /// Its sound files by slot.
    pub files: Vec<(usize, FileId, Snap)>,
}

/// Crashes tried inside the recovery of a crash.
#[derive(Clone, Copy, PartialEq)]
pub enum Inner {
    None,
    /// One, by chance.
    One,
    /// After every call, all patterns.
    All,
}

fn touched(event: &Event) -> Option<FileId> {
    match event {
        Event::Write { file, .. } | Event::SetLen { file, .. } | Event::Punch { file, .. } => {
            Some(*file)
        }
        _ => None,
    }
}

/// Where a crash can be: after a call, before or after what the workload says of it.
pub fn points(log: &[Event]) -> Vec<usize> {
    let is_mark = |at: usize| matches!(log.get(at), None | Some(Event::Mark(_)));
    let last_of_marks = |at: usize| is_mark(at - 1) && (at == log.len() || !is_mark(at));
    (1..=log.len()).filter(|at| !is_mark(at - 1) || last_of_marks(*at)).collect()
}

impl Recording {
    /// Crashes at some points; `outcomes` says which outcomes to try at each. Returns how many
    /// crashes it were, and what was recovered from number `keep`.
    pub fn explore(
        &self,
        at: &[usize],
        keep: usize,
        inner: Inner,
        mut outcomes: impl FnMut() -> Vec<Outcome>,
    ) -> Result<(usize, Option<Recovered>), String> {
        let (mut world, mut oracle) = (self.start.clone(), self.oracle.clone());
        let (mut done, mut count, mut last, mut kept) = (0, 0, None, None);
        for point in at {
            for event in &self.log[done..*point] {
                world.apply(event);
                oracle.note(event);
                last = touched(event).or(last);
            }
            done = *point;
            let in_write = matches!(self.log[done - 1], Event::Write { .. });
            for outcome in outcomes() {
                let outcome = match outcome {
                    Outcome::Kill(_) if !in_write => Outcome::Kill(None),
                    other => other,
                };
                let crashed = world.crash(outcome, last);
                let checked = check(&self.volume, &crashed, outcome, &oracle, inner);
                let recovered = checked.map_err(|e| self.describe(done, outcome, &e))?;
                if count == keep {
                    kept = Some(recovered);
                }
                count += 1;
            }
        }
        Ok((count, kept))
    }

    /// What led to a failure.
    fn describe(&self, point: usize, outcome: Outcome, error: &str) -> String {
        let mut lines = vec![format!("{error}\n  after event {point}, {outcome:?}; before it:")];
        let from =
            if std::env::var_os("KMSFS_SIM_ALL").is_some() { 0 } else { point.saturating_sub(70) };
        for (at, event) in self.log[..point].iter().enumerate() {
            let text = match event {
                Event::Mark(Mark::Op(text)) => text.to_string(),
                _ if at < from => continue,
                Event::Write { file, offset, data } => {
                    format!("    {at}: write {file} {offset}+{}", data.len())
                }
                other => format!("    {at}: {other:?}"),
            };
            lines.push(text);
        }
        lines.join("\n  ")
    }
}

/// Only what is wrong in the files counts, not what recovery says of the journal.
pub static FILES_ONLY: AtomicBool = AtomicBool::new(false);

fn alarms_count() -> bool {
    !FILES_ONLY.load(Ordering::Relaxed)
}

/// Recovers a crashed disk in all ways that have to agree, and judges what is there.
fn check(
    volume: &Volume,
    crashed: &World,
    outcome: Outcome,
    oracle: &Oracle,
    inner: Inner,
) -> Result<Recovered, String> {
    let (shown, reports) = volume.view(&SimDisk::new(crashed.clone()))?;
    let disk = SimDisk::new(crashed.clone());
    volume.recover(&disk)?;
    let log = disk.take_log();
    let states = volume.states(&disk);
    let snaps = judge(oracle, outcome, &states)?;
    same(&shown, &states).map_err(|e| format!("a read-only look and recovery: {e}"))?;
    for report in reports {
        if alarms_count() && (report.damaged || !report.older.is_empty()) {
            return Err(format!("a false alarm: {report:?}"));
        }
    }
    check_inner(volume, crashed, outcome, oracle, (&log, &states), inner)?;
    Ok(after(disk.world(), outcome, oracle, snaps))
}

type Snaps = BTreeMap<FileId, Option<Snap>>;

fn judge(oracle: &Oracle, outcome: Outcome, states: &States) -> Result<Snaps, String> {
    let mut snaps = Snaps::new();
    for id in oracle.files.keys().chain(states.keys()) {
        let unknown = Known::default();
        let known = oracle.files.get(id).unwrap_or(&unknown);
        let found = states.get(id).unwrap_or(&Found::Missing);
        let kill = outcome.is_kill() && !oracle.flush_failed && !known.broken;
        let snap = known.judge(kill, found).map_err(|e| format!("file {id} {e}"))?;
        snaps.insert(*id, snap);
    }
    Ok(snaps)
}

/// Stops inside the recovery, and recovers again.
fn check_inner(
    volume: &Volume,
    crashed: &World,
    outcome: Outcome,
    oracle: &Oracle,
    (log, states): (&[Event], &States),
    inner: Inner,
) -> Result<(), String> {
    if inner == Inner::None || log.is_empty() {
        return Ok(());
    }
    let mut rng =
        Rng(log.len() as u64 ^ if let Outcome::Random(seed) = outcome { seed } else { 9 });
    let one = 1 + rng.below(log.len() as u64) as usize;
    let mut world = crashed.clone();
    for (at, event) in log.iter().enumerate() {
        world.apply(event);
        let second: Vec<Outcome> = match inner {
            Inner::All => PATTERNS.to_vec(),
            _ if at + 1 == one => vec![Outcome::random(&mut rng)],
            _ => continue,
        };
        for second in second {
            let disk = SimDisk::new(world.crash(second, touched(event)));
            let stop = |e| format!("{e}, after a second stop ({second:?}) in recovery event {at}");
            volume.recover(&disk).map_err(stop)?;
            let again = volume.states(&disk);
            if outcome.is_kill() && (!second.is_kill() || oracle.flush_failed) {
                judge(oracle, second, &again).map_err(stop)?;
            } else {
                same(states, &again).map_err(stop)?;
            }
        }
    }
    Ok(())
}

/// What is known after a recovery.
fn after(world: World, outcome: Outcome, oracle: &Oracle, snaps: Snaps) -> Recovered {
    let mut next = Oracle::default();
    let mut files = Vec::new();
    for (id, snap) in snaps {
        let known = oracle.files.get(&id).cloned().unwrap_or_default();
        let last: Vec<Snap> = snap.iter().cloned().collect();
        if outcome.is_kill() {
            let mut states = known.states.clone();
            states.extend(known.flight.iter().chain(&last).cloned());
            let last = if snap.is_some() { last } else { known.last.clone() };
            // A file in place that a failed flush dropped goes on being read from memory, and nobody
            // is told again: the system's limit, for files that were never firm.
            let broken = known.broken || oracle.flush_failed && !known.firm;
            let (firm, gone, flight) = (known.firm, known.gone, Vec::new());
            let firm_empty = known.firm_empty;
            next.files.insert(id, Known { firm, gone, firm_empty, broken, states, last, flight });
        } else if snap.is_some() {
            let (firm, gone, flight) = (true, false, Vec::new());
            let known = Known::default();
            let states = last.clone();
            next.files.insert(id, Known { firm, gone, states, last, flight, ..known });
        } else {
            // Damaged, and never firm: it may be what it was meant to be, with holes.
            let states = known.states.iter().chain(&known.flight).cloned().collect();
            next.files.insert(id, Known { states, ..Known::default() });
        }
        let name = world.names.iter().find(|(_, file)| **file == id);
        let slot = name.and_then(|(name, _)| name.strip_prefix('f')?.parse().ok());
        if let (Some(slot), Some(snap)) = (slot, snap) {
            files.push((slot, id, snap));
        }
    }
    Recovered { world, oracle: next, files }
}
