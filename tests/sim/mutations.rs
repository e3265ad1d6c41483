//! The simulator is worth something only if it finds mistakes: each of a list of them, made on
//! purpose, must break a promise somewhere.

use crate::explore::FILES_ONLY;
use crate::random::run_safely;
use crate::short;
use kmsfs::store::mutation::{Mutation, set};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

/// Random runs tried for a mistake that no short one shows.
const RUNS: u64 = 400;

/// Where the mistake shows, and how.
fn find() -> Option<String> {
    for short in short::all() {
        if let Err(error) = safely(&short) {
            return Some(error);
        }
    }
    let backups = (1..RUNS).find_map(|seed| crate::backup::run(seed).err());
    backups.or_else(|| (1..RUNS).find_map(|seed| run_safely(seed).err()))
}

fn safely(short: &short::Short) -> Result<usize, String> {
    let run = std::panic::AssertUnwindSafe(|| short.exhaust());
    std::panic::catch_unwind(run).unwrap_or_else(|_| Err(format!("{}: a panic", short.name)))
}

#[test]
fn mutations_are_all_found() {
    let _alone = crate::SWITCH.write().unwrap_or_else(PoisonError::into_inner);
    let mut missed = Vec::new();
    for mutation in Mutation::ALL {
        set(Some(mutation));
        let started = std::time::Instant::now();
        FILES_ONLY.store(true, Ordering::Relaxed);
        let in_files = find();
        FILES_ONLY.store(false, Ordering::Relaxed);
        let found = in_files.or_else(find);
        set(None);
        let line = found.as_ref().map(|e| e.lines().next().unwrap_or_default().to_owned());
        println!("{mutation:?}: {line:?} after {:?}", started.elapsed());
        if found.is_none() {
            missed.push(mutation);
        }
    }
    assert_eq!(missed, [], "the simulator does not find these");
    let found = find();
    assert_eq!(found, None, "without a mistake nothing may be found");
}
