//! What each promise allows: the committed states of every file, and which of them are firm.

use crate::model::Model;
use crate::world::{Event, FileId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A committed state.
#[derive(Clone, PartialEq)]
pub struct State {
    pub content: Model,
    /// Wrap epoch of the header.
    pub wrap: u64,
}

pub type Snap = Arc<State>;

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes, {} chunks", self.content.size, self.content.chunks.len())?;
        if self.wrap > 0 { write!(f, ", wrap {}", self.wrap) } else { Ok(()) }
    }
}

/// Which of some states were committed.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Which {
    /// All, the newest last.
    All,
    /// At least one.
    Some,
    /// Perhaps none: there was an error.
    Maybe,
}

/// What the workload says of its files between the events.
#[derive(Clone, Debug)]
pub enum Mark {
    Nothing,
    /// For people.
    Op(Arc<str>),
    /// These states may become committed from now on.
    Begin {
        file: FileId,
        states: Vec<Snap>,
    },
    /// Now they are, or some of them.
    End {
        file: FileId,
        states: Vec<Snap>,
        which: Which,
    },
    /// Everything committed so far is firm.
    Firm {
        file: FileId,
    },
    FirmAll,
    /// Without any committed state: it is there, and empty.
    FirmEmpty {
        file: FileId,
    },
    /// It is not where its records will say.
    Moved {
        file: FileId,
    },
    /// The file may be gone from now on.
    Gone {
        file: FileId,
    },
    /// A flush of it failed, and the caller knows: nothing makes it firm any more.
    Broken {
        file: FileId,
    },
}

/// What is known of one file.
#[derive(Clone, Default)]
pub struct Known {
    /// It must be there.
    pub firm: bool,
    pub gone: bool,
    /// It must not be damaged: it is empty or in one of its committed states.
    pub firm_empty: bool,
    pub broken: bool,
    /// Committed states, from the firm one on.
    pub states: Vec<Snap>,
    /// Which of them may be the newest.
    pub last: Vec<Snap>,
    /// May be committed just now.
    pub flight: Vec<Snap>,
}

#[derive(Clone, Default)]
pub struct Oracle {
    pub files: BTreeMap<FileId, Known>,
    /// A flush failed: what was not firm then may be lost even without a power cut.
    pub flush_failed: bool,
}

/// What was found of a file after recovery.
pub enum Found {
    Missing,
    /// No bytes: a file that was never written.
    Empty,
    State(crate::check::Seen),
}

pub fn is_journal(name: &str) -> bool {
    name.starts_with(kmsfs::store::journal::JOURNAL_PREFIX)
}

impl Known {
    fn make_firm(&mut self) {
        if !self.last.is_empty() && !self.broken {
            self.states = self.last.clone();
            self.firm = true;
        }
    }

    /// The state that was found, if it is one that may be: after a mere kill, the newest.
    pub fn judge(&self, kill: bool, found: &Found) -> Result<Option<Snap>, String> {
        let base = if kill && !self.last.is_empty() { &self.last } else { &self.states };
        let whole = if kill { !self.last.is_empty() } else { self.firm };
        let must_be = !self.gone && (whole || self.firm_empty);
        let seen = match found {
            Found::Missing if must_be => return Err("is missing".into()),
            Found::Empty if whole => return Err("is empty".into()),
            Found::Missing | Found::Empty => return Ok(None),
            Found::State(seen) => seen,
        };
        if !seen.damage.is_empty() && (whole || self.firm_empty) {
            return Err(format!("is damaged: {:?}", seen.damage));
        }
        let mut allowed = base.iter().chain(&self.flight).rev();
        if let Some(snap) = allowed.find(|snap| seen.fits(snap)) {
            return Ok(seen.damage.is_empty().then(|| snap.clone()));
        }
        // Nothing of it can be read: reported, if the file was never firm.
        if seen.header.is_none() && !whole && !self.firm_empty {
            return Ok(None);
        }
        let allowed: Vec<_> = base.iter().chain(&self.flight).collect();
        let near: Vec<String> =
            allowed.iter().rev().take(6).map(|snap| seen.difference(snap)).collect();
        Err(format!("is no committed state: {seen:?}; allowed {allowed:?}; {near:?}"))
    }
}

impl Oracle {
    pub fn note(&mut self, event: &Event) {
        let Event::Mark(mark) = event else {
            let failed = matches!(event, Event::FailedSync { .. } | Event::FailedSyncAll);
            self.flush_failed |= failed;
            return;
        };
        match mark {
            Mark::Nothing | Mark::Op(_) => {}
            Mark::Begin { file, states } => {
                self.files.entry(*file).or_default().flight = states.clone();
            }
            Mark::End { file, states, which } => {
                let known = self.files.entry(*file).or_default();
                known.flight.clear();
                known.states.extend(states.iter().cloned());
                match which {
                    Which::All => known.last = states.last().cloned().into_iter().collect(),
                    // Perhaps the file was never written.
                    Which::Maybe if known.last.is_empty() => {}
                    Which::Some | Which::Maybe => known.last.extend(states.iter().cloned()),
                }
            }
            Mark::Firm { file } => self.files.entry(*file).or_default().make_firm(),
            Mark::FirmAll => self.files.values_mut().for_each(Known::make_firm),
            Mark::FirmEmpty { file } => self.files.entry(*file).or_default().firm_empty = true,
            Mark::Moved { file } => self.files.entry(*file).or_default().firm_empty = false,
            Mark::Broken { file } => self.files.entry(*file).or_default().broken = true,
            Mark::Gone { file } => self.files.entry(*file).or_default().gone = true,
        }
    }
}
