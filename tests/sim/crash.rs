//! What a stop of the machine may leave of a [`World`].

use crate::oracle::is_journal;
use crate::support::Rng;
use crate::world::{Change, FileId, Image, PAGE, SECTOR, SimFile, World};
use std::collections::HashMap;
use std::sync::Arc;

/// Which legal outcome of a power cut; `Kill` stops the program only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The program is killed between two calls, or, with a number, after so many pages of the last
    /// write.
    Kill(Option<u64>),
    /// Nothing that is not durable survives.
    Nothing,
    /// All of it does.
    Everything,
    /// Data, but neither sizes nor names.
    DataOnly,
    /// Sizes and names, but no data.
    SizesOnly,
    /// Sizes and names, and every other sector, even or odd.
    EvenSectors,
    OddSectors,
    /// Everything of the file that was changed last, nothing else but names.
    NewestFile,
    /// Everything but that.
    AllButNewest,
    OnlyJournal,
    AllButJournal,
    /// The first, or all but the first, sector of every page.
    FirstSectors,
    LaterSectors,
    /// All but the last change of each file.
    AllButLast,
    /// Of each write only the first pages, so many, or all but these.
    Head(u64),
    Tail(u64),
    /// Any subset.
    Random(u64),
}

pub const PATTERNS: [Outcome; 19] = [
    Outcome::Kill(None),
    Outcome::Kill(Some(1)),
    Outcome::Nothing,
    Outcome::Everything,
    Outcome::DataOnly,
    Outcome::SizesOnly,
    Outcome::EvenSectors,
    Outcome::OddSectors,
    Outcome::NewestFile,
    Outcome::AllButNewest,
    Outcome::OnlyJournal,
    Outcome::AllButJournal,
    Outcome::FirstSectors,
    Outcome::LaterSectors,
    Outcome::AllButLast,
    Outcome::Head(1),
    Outcome::Head(3),
    Outcome::Tail(2),
    Outcome::Tail(4),
];

impl Outcome {
    pub fn random(rng: &mut Rng) -> Self {
        match rng.below(20) {
            0..=9 => Self::Random(rng.next()),
            10 => Self::Kill(Some(rng.below(20))),
            11 => Self::Kill(None),
            _ => rng.pick(&PATTERNS),
        }
    }

    pub fn is_kill(self) -> bool {
        matches!(self, Self::Kill(_))
    }
}

/// How one file fares.
#[derive(Clone, Copy)]
enum Fate {
    None,
    All,
    DataOnly,
    SizesOnly,
    Sectors(fn(u64) -> bool),
    AllButLast,
    Head(u64),
    Tail(u64),
    /// Each sector and the sizes by chance: of 16, so many survive in full.
    Chance(u64),
}

impl Fate {
    fn random(rng: &mut Rng) -> Self {
        match rng.below(14) {
            0 => Self::None,
            1 => Self::All,
            2 => Self::DataOnly,
            3 => Self::SizesOnly,
            4 => Self::Sectors(|s| s % 8 == 0),
            5 => Self::Sectors(|s| s % 8 != 0),
            6 => Self::AllButLast,
            7 => Self::Chance(1),
            8 => Self::Chance(15),
            9 => Self::Head(1 + rng.below(5)),
            10 => Self::Tail(1 + rng.below(5)),
            _ => Self::Chance(8),
        }
    }

    fn sizes(self, rng: &mut Rng, count: usize) -> usize {
        match self {
            Self::None | Self::DataOnly => 0,
            Self::All | Self::SizesOnly | Self::Sectors(_) | Self::Head(_) | Self::Tail(_) => count,
            Self::AllButLast => count.saturating_sub(1),
            Self::Chance(_) => rng.below(count as u64 + 1) as usize,
        }
    }

    /// Which version of a sector: the number of changes to it that are written.
    fn version(self, rng: &mut Rng, sector: u64, touches: &[usize], file: &SimFile) -> usize {
        let (all, last) = (touches.len(), file.volatile.len() - 1);
        // Within the last write to it.
        let page = match touches.last().map(|at| &file.volatile[*at]) {
            Some(Change::Write { offset, .. }) => sector * SECTOR / PAGE - offset / PAGE,
            _ => 0,
        };
        match self {
            Self::None | Self::SizesOnly => 0,
            Self::All | Self::DataOnly => all,
            Self::Sectors(kept) => {
                if kept(sector) {
                    all
                } else {
                    0
                }
            }
            Self::AllButLast => touches.iter().filter(|t| **t < last).count(),
            Self::Head(pages) => {
                if page < pages {
                    all
                } else {
                    0
                }
            }
            Self::Tail(pages) => {
                if page < pages {
                    0
                } else {
                    all
                }
            }
            Self::Chance(of) if rng.below(16) < of => all,
            Self::Chance(_) => rng.below(all as u64 + 1) as usize,
        }
    }
}

/// The file with the first `sizes` of its size changes, and each sector in the version `choose`
/// names; it gets the sector and the numbers of the changes that touch it.
pub fn outcome_of(
    file: &SimFile,
    sizes: usize,
    mut choose: impl FnMut(u64, &[usize]) -> usize,
) -> Image {
    let mut touches: HashMap<u64, Vec<usize>> = HashMap::new();
    let mut len = file.durable.len;
    let mut order = Vec::new();
    for (at, change) in file.volatile.iter().enumerate() {
        for sector in change.sectors(len) {
            let list = touches.entry(sector).or_default();
            if list.is_empty() {
                order.push(sector);
            }
            list.push(at);
        }
        len = len_after(change, len);
    }
    let mut take: HashMap<usize, Vec<u64>> = HashMap::new();
    for sector in order {
        let version = choose(sector, &touches[&sector]);
        if version > 0 {
            take.entry(touches[&sector][version - 1]).or_default().push(sector);
        }
    }
    let (mut cache, mut out) = ((*file.durable).clone(), (*file.durable).clone());
    let (mut resizes, mut buf) = (0, [0; SECTOR as usize]);
    for (at, change) in file.volatile.iter().enumerate() {
        let before = cache.len;
        change.apply(&mut cache);
        resizes += usize::from(cache.len != before);
        if cache.len != before && resizes <= sizes {
            if cache.len < before {
                let end = out.pages.last_key_value().map_or(0, |(p, _)| (p + 1) * PAGE);
                out.zero(cache.len, end);
            }
            out.len = cache.len;
        }
        for sector in take.get(&at).into_iter().flatten() {
            cache.get(sector * SECTOR, &mut buf);
            out.put(sector * SECTOR, &buf);
        }
    }
    out.cut(out.len);
    out
}

pub fn len_after(change: &Change, len: u64) -> u64 {
    match change {
        Change::Write { offset, data } => len.max(offset + data.len() as u64),
        Change::SetLen(new) => *new,
        Change::Punch { .. } => len,
    }
}

fn size_changes(file: &SimFile) -> usize {
    let mut len = file.durable.len;
    let counts = file.volatile.iter().filter(|change| {
        let before = len;
        len = len_after(change, len);
        len != before
    });
    counts.count()
}

impl World {
    /// A disk after a stop: after a power cut, everything on it is durable.
    pub fn crash(&self, outcome: Outcome, last: Option<FileId>) -> World {
        if let Outcome::Kill(pages) = outcome {
            let mut world = self.clone();
            world.files.iter_mut().for_each(|file| file.closed = true);
            if let (Some(pages), Some(last)) = (pages, last) {
                world.files[last].shorten_last(pages);
            }
            return world;
        }
        let seed = if let Outcome::Random(seed) = outcome { seed } else { 1 };
        let mut rng = Rng(seed);
        let mut names = self.durable_names.clone();
        self.ns[..self.kept_names(outcome, &mut rng)].iter().for_each(|op| op.apply(&mut names));
        let journals: Vec<FileId> = self.journals();
        let gone = SimFile { closed: true, ..SimFile::default() };
        let mut files = vec![gone; self.files.len()];
        for id in names.values() {
            let file = &self.files[*id];
            let fate = fate(outcome, last == Some(*id), journals.contains(id), &mut rng);
            let image = match fate {
                Fate::All => file.current.clone(),
                Fate::None => file.durable.clone(),
                _ => Arc::new(chosen(file, fate, &mut rng)),
            };
            let (durable, current) = (image.clone(), image);
            files[*id] =
                SimFile { ino: file.ino, durable, current, closed: true, ..SimFile::default() };
        }
        World { files, durable_names: names.clone(), names, ns: Vec::new(), ns_done: 0 }
    }

    fn kept_names(&self, outcome: Outcome, rng: &mut Rng) -> usize {
        let all = self.ns.len();
        match outcome {
            Outcome::Nothing | Outcome::DataOnly => 0,
            Outcome::AllButLast => all.saturating_sub(1),
            Outcome::Random(_) => rng.below(all as u64 + 1) as usize,
            _ => all,
        }
    }

    fn journals(&self) -> Vec<FileId> {
        let named = self.durable_names.iter().chain(&self.names);
        named.filter(|(name, _)| is_journal(name)).map(|(_, id)| *id).collect()
    }
}

fn fate(outcome: Outcome, is_last: bool, is_journal: bool, rng: &mut Rng) -> Fate {
    let if_all = |yes: bool| if yes { Fate::All } else { Fate::None };
    match outcome {
        Outcome::Everything | Outcome::Kill(_) => Fate::All,
        Outcome::Nothing => Fate::None,
        Outcome::DataOnly => Fate::DataOnly,
        Outcome::SizesOnly => Fate::SizesOnly,
        Outcome::EvenSectors => Fate::Sectors(|s| s % 2 == 0),
        Outcome::OddSectors => Fate::Sectors(|s| s % 2 == 1),
        Outcome::FirstSectors => Fate::Sectors(|s| s % 8 == 0),
        Outcome::LaterSectors => Fate::Sectors(|s| s % 8 != 0),
        Outcome::NewestFile => if_all(is_last),
        Outcome::AllButNewest => if_all(!is_last),
        Outcome::OnlyJournal => if_all(is_journal),
        Outcome::AllButJournal => if_all(!is_journal),
        Outcome::AllButLast => Fate::AllButLast,
        Outcome::Head(pages) => Fate::Head(pages),
        Outcome::Tail(pages) => Fate::Tail(pages),
        Outcome::Random(_) => Fate::random(rng),
    }
}

fn chosen(file: &SimFile, fate: Fate, rng: &mut Rng) -> Image {
    let sizes = fate.sizes(rng, size_changes(file));
    outcome_of(file, sizes, |sector, touches| fate.version(rng, sector, touches, file))
}

impl SimFile {
    /// The last change, if it was a write, got no further than `pages` pages.
    fn shorten_last(&mut self, pages: u64) {
        let Some(Change::Write { offset, data }) = self.volatile.last().cloned() else { return };
        self.volatile.pop();
        let end = (offset / PAGE + pages) * PAGE;
        let keep = end.saturating_sub(offset).min(data.len() as u64) as usize;
        if keep > 0 {
            self.volatile.push(Change::Write { offset, data: data[..keep].into() });
        }
        let mut image = (*self.durable).clone();
        self.volatile.iter().for_each(|change| change.apply(&mut image));
        self.current = Arc::new(image);
    }
}
