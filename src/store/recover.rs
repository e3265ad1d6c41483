//! Reading a journal after an unclean stop.
//!
//! Decides per file before anything is written, from the header's generation alone: newer than the
//! last record, there is nothing to do; older than what the first record follows, the file has been
//! replaced by an older copy, and no record may touch it; otherwise the longest run of records whose
//! fresh blocks are all there is replayed from its beginning, so that a header torn by an
//! interrupted checkpoint does not matter. Needs no data key. Doing it again gives the same bytes.

use super::content::{Content, VolumeContext};
use super::journal::Medium;
use super::log::FileLog;
use super::mutation::{Mutation, made};
use super::pending::Pending;
use super::{Storage, StoreError};
use crate::format::header::{Header, ROOT_AT};
use crate::format::journal::{ALIGN, Change, Fresh, Head, RECORD_MAX, Record};
use crate::format::{BLOCK, ObjectId};
use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

/// Finds backing files by what a record says.
pub trait Locate {
    /// The backing file of this object, if it is there: [`object_of`] must say so. `ino` and `path`
    /// are hints; `None` once the file has been removed.
    fn open(&self, object: ObjectId, ino: u64, path: &[u8]) -> io::Result<Option<Located>>;
    /// The backing file that stands exactly where the hints say, if it is not empty and
    /// [`is_unwritten`] says that nothing of a header has ever reached it.
    fn unwritten(&self, ino: u64, path: &[u8]) -> io::Result<Option<Located>>;
}

/// A backing file that was found.
pub struct Located {
    /// The file; writable unless the volume is only read.
    pub storage: Arc<dyn Storage>,
    /// Its inode number now.
    pub ino: u64,
}

/// The object id that a backing file's header gives itself, unauthenticated: of a torn header too,
/// because the id lies in its first sector and never changes. What is not on disk does not count.
pub fn object_of(ctx: &VolumeContext, storage: &dyn Storage) -> Option<ObjectId> {
    storage.drop_cache();
    let mut start = [0; 48];
    let len = storage.read_at(&mut start, 0).ok()?;
    let ours = len == start.len() && start[16..32] == ctx.volume.0;
    let object = start.last_chunk::<16>()?;
    (ours && *object != [0; 16]).then_some(ObjectId(*object))
}

/// Has no header ever reached this backing file, whatever its length? Headers are written whole and a
/// disk writes sectors whole, so the first one shows it.
pub fn is_unwritten(storage: &dyn Storage) -> io::Result<bool> {
    let mut start = [0; SECTOR];
    let len = storage.read_at(&mut start, 0)?;
    Ok(crate::format::bytes::is_zero(&start[..len]))
}

/// What was found in a journal, and done with it.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Report {
    /// Records read.
    pub records: u64,
    /// Files that were brought to a newer state: backing paths as the records give them.
    pub replayed: Vec<Vec<u8>>,
    /// Records that were not firm when the stop came, and are dropped.
    pub dropped: u64,
    /// Files older than the records say: copies that were put back. Left alone.
    pub older: Vec<Vec<u8>>,
    /// Files with records that are not there any more.
    pub missing: u64,
    /// Records that had been flushed cannot be read: the journal is damaged.
    pub damaged: bool,
}

/// A file that recovery brings to a newer state.
pub struct Recovered {
    /// Object.
    pub object: ObjectId,
    /// Inode number.
    pub ino: u64,
    storage: Arc<dyn Storage>,
    /// Empty: the file is to be empty.
    pending: Pending,
}

impl Recovered {
    /// Generation of the newest state.
    pub fn generation(&self) -> u64 {
        self.pending.generation
    }

    /// Writes the newest state to its place; the caller flushes before the journal goes.
    pub fn write_in_place(&self) -> io::Result<()> {
        let storage = &*self.storage;
        if self.pending.is_empty() {
            return storage.set_len(0);
        }
        self.pending.write_images(storage)?;
        self.pending.fit_len(storage, 0)?;
        self.pending.finish(storage)
    }

    /// The newest state as a file that can be read, with nothing written.
    pub fn view(self) -> Arc<FileLog> {
        match self.pending.is_empty() {
            true => FileLog::view(Arc::new(Nothing), self.pending),
            false => FileLog::view(self.storage, self.pending),
        }
    }
}

/// An empty file that cannot be written.
struct Nothing;

impl Storage for Nothing {
    fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
        Ok(0)
    }
    fn write_at(&self, _: &[io::IoSlice<'_>], _: u64) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EROFS))
    }
    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EROFS))
    }
    fn len(&self) -> io::Result<u64> {
        Ok(0)
    }
    fn punch(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn reserve(&self, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn set_mtime(&self, _: (i64, u32)) -> io::Result<()> {
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The records of one journal, by file.
struct Scan<'a> {
    /// In the order of their numbers; all of one unbroken run.
    live: Vec<Record<'a>>,
    /// Found behind a place where the run ends.
    behind: Vec<Record<'a>>,
}

/// Works out what a journal does to the files of its volume, as far as they are on disk or going
/// to be. Nothing is written.
///
/// Errors: the head is damaged or foreign (`StoreError::Header`; nothing may be applied), or the
/// journal or a file cannot be read.
pub fn recover(
    ctx: &VolumeContext,
    journal: &dyn Storage,
    locate: &dyn Locate,
) -> Result<(Vec<Recovered>, Report), StoreError> {
    journal.drop_cache();
    let mut bytes = vec![0; journal.len()? as usize];
    let len = journal.read_at(&mut bytes, 0)?;
    bytes.truncate(len);
    let keys = ctx.keys.keys()?;
    let head = Head::decode(&bytes, ctx.volume, |b, m| keys.journal_mac_ok(b, m))?;
    let key = keys.journal_key(&head.epoch);
    let scan = scan(&bytes, |b, m| key.mac_ok(b, m));
    let mut report = Report { records: scan.live.len() as u64, ..Report::default() };
    let mut found = Vec::new();
    let last = scan.live.last().map_or(0, |r| r.number);
    for records in by_object(scan.live) {
        let located = locate.open(records[0].object, records[0].ino, &records[0].path)?;
        match located {
            Some(located) => found.extend(decide(ctx, located, &records, &mut report)?),
            None => found.extend(never_written(ctx, locate, &records, &mut report)?),
        }
    }
    report.damaged |= is_damaged(ctx, locate, &scan.behind, last)?;
    report.dropped += scan.behind.iter().filter(|r| r.number > last).count() as u64;
    Ok((found, report))
}

/// Recovers one journal of a volume that is about to be written: brings its files to their newest
/// states once the records are firm, flushes everything, and only then removes the journal. A stop in between leaves it to be
/// done again.
pub fn replay(
    ctx: &VolumeContext,
    medium: &dyn Medium,
    name: &str,
    journal: &dyn Storage,
    locate: &dyn Locate,
) -> Result<Report, StoreError> {
    if !made(Mutation::ReplayBeforeFirm) {
        // After a mere kill the records and what they rely on may not be on disk yet. What is not
        // there now, because an earlier flush failed, is not seen.
        medium.sync_all()?;
    }
    let (files, report) = recover(ctx, journal, locate)?;
    files.iter().try_for_each(Recovered::write_in_place)?;
    if !made(Mutation::RemoveBeforeFlush) {
        medium.sync_all()?;
    }
    if !made(Mutation::KeepOldEpoch) {
        medium.remove(name)?;
    }
    Ok(report)
}

/// Was this journal never in use? A stop while it was being made leaves a head of which a part was
/// never written, and no record: the head is flushed before the first.
pub fn is_unused(journal: &dyn Storage) -> io::Result<bool> {
    journal.drop_cache();
    let mut bytes = vec![0; BLOCK];
    let len = journal.read_at(&mut bytes, 0)?;
    let unwritten = |part: &[u8]| crate::format::bytes::is_zero(part);
    let torn = unwritten(&bytes[..SECTOR]) || unwritten(&bytes[BLOCK - SECTOR..]);
    Ok((len < BLOCK || torn) && no_record(journal, journal.len()?)?)
}

fn no_record(journal: &dyn Storage, len: u64) -> io::Result<bool> {
    let mut block = vec![0; BLOCK];
    let have = journal.read_at(&mut block, ALIGN.min(len))?;
    Ok(Record::peek_len(&block[..have]).is_none())
}

fn scan(bytes: &[u8], mac_ok: impl Fn(&[u8], &[u8; 32]) -> bool) -> Scan<'_> {
    let (mut live, mut behind): (Vec<Record<'_>>, Vec<Record<'_>>) = (Vec::new(), Vec::new());
    let mut at = ALIGN as usize;
    let mut broken = false;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let len = Record::peek_len(rest).filter(|len| *len <= rest.len().min(RECORD_MAX));
        let record = len.and_then(|len| Record::decode(&rest[..len], &mac_ok).ok());
        let follows = |r: &Record<'_>| live.last().is_none_or(|l| l.number + 1 == r.number);
        let step = match record {
            Some(record) => {
                let step = len.unwrap_or(BLOCK).next_multiple_of(BLOCK);
                let past_torn = made(Mutation::ApplyPastTorn);
                if !broken && follows(&record) || past_torn {
                    live.push(record);
                } else {
                    broken = true;
                    behind.push(record);
                }
                step
            }
            None => {
                broken = true;
                BLOCK
            }
        };
        at += step;
    }
    Scan { live, behind }
}

/// Records grouped by file, in order.
fn by_object(records: Vec<Record<'_>>) -> Vec<Vec<Record<'_>>> {
    let mut index: HashMap<ObjectId, usize> = HashMap::new();
    let mut groups: Vec<Vec<Record<'_>>> = Vec::new();
    for record in records {
        let at = *index.entry(record.object).or_insert_with(|| {
            groups.push(Vec::new());
            groups.len() - 1
        });
        groups[at].push(record);
    }
    groups
}

fn decide(
    ctx: &VolumeContext,
    located: Located,
    records: &[Record<'_>],
    report: &mut Report,
) -> Result<Option<Recovered>, StoreError> {
    // A first commit that failed and was tried again begins anew.
    let start = records.iter().rposition(|r| r.base == 0).unwrap_or(0);
    let records = &records[start..];
    let path = || records.iter().rev().find(|r| !r.path.is_empty()).map(|r| r.path.clone());
    let path = path().unwrap_or_default();
    let (first, last) = (&records[0], &records[records.len() - 1]);
    let header = match Content::read_header(ctx, &*located.storage) {
        Ok(header) => Some(header),
        // Torn by a checkpoint that was interrupted: the records hold all of it.
        Err(StoreError::Header(_)) => None,
        Err(e) => return Err(e),
    };
    let generation = header.as_ref().map(|header| header.generation);
    if let Some(header) = header.filter(|_| !made(Mutation::IgnoreBase)) {
        if header.generation > last.generation {
            return Ok(None);
        }
        if header.generation < first.base || !is_of_this_history(&header, records) {
            report.older.push(path);
            return Ok(None);
        }
    }
    let whole = unbroken(records);
    let keep = firm_prefix(&*located.storage, &records[..whole])?;
    report.dropped += (records.len() - keep) as u64;
    let skip = if made(Mutation::LastRecordOnly) { keep.saturating_sub(1) } else { 0 };
    let mut pending = Pending::default();
    for record in &records[skip..keep] {
        if pending.add(record).is_err() {
            // Records before these were destroyed, in a way that hides that they were there.
            report.damaged = true;
            return Ok(None);
        }
    }
    let was_empty = pending.is_empty() && first.base == 0 && generation.is_none_or(|g| g <= 1);
    let is_newer = pending.is_empty() || generation.is_some_and(|g| g > pending.generation);
    if is_newer && !was_empty {
        return Ok(None);
    }
    report.replayed.push(path);
    let Located { storage, ino } = located;
    Ok(Some(Recovered { object: first.object, ino, storage, pending }))
}

/// Is the state in place the one that the records know by its generation? Two copies of a file that
/// went on apart have states of the same number. What they cannot tell is taken for theirs.
fn is_of_this_history(header: &Header, records: &[Record<'_>]) -> bool {
    let named = records.iter().find(|r| r.base == header.generation).map(|r| r.base_root);
    let root = named.or_else(|| {
        let mut pending = Pending::default();
        let made = records.iter().take_while(|r| r.generation <= header.generation);
        made.into_iter().try_for_each(|record| pending.add(record)).ok()?;
        pending.image(0).and_then(root_in)
    });
    root.is_none_or(|root| header.root_hash.starts_with(&root))
}

/// First bytes of the root hash in the bytes of a header.
fn root_in(header: &[u8]) -> Option<[u8; 16]> {
    header.get(ROOT_AT..)?.first_chunk().copied()
}

/// A file that the records of its first commits do not find: nothing of its header has reached the
/// disk, and it is to be empty again; or it has been removed.
fn never_written(
    ctx: &VolumeContext,
    locate: &dyn Locate,
    records: &[Record<'_>],
    report: &mut Report,
) -> Result<Option<Recovered>, StoreError> {
    let first = &records[0];
    let located = match first.base {
        0 => locate.unwritten(first.ino, &first.path)?,
        _ => None,
    };
    match located {
        Some(located) => decide(ctx, located, records, report),
        None => {
            report.missing += u64::from(first.base > 0);
            Ok(None)
        }
    }
}

/// How many records follow each other without a state missing in between.
fn unbroken(records: &[Record<'_>]) -> usize {
    let gap = records.windows(2).position(|pair| pair[0].generation != pair[1].base);
    gap.map_or(records.len(), |at| at + 1)
}

/// The longest run from the first record on in which every fresh block is there, or was replaced
/// within the run.
fn firm_prefix(storage: &dyn Storage, records: &[Record<'_>]) -> io::Result<usize> {
    if made(Mutation::ApplyPastSums) {
        return Ok(records.len());
    }
    // For each record: up to where the run has to reach for it to be allowed in.
    let mut needs = Vec::with_capacity(records.len());
    for (at, record) in records.iter().enumerate() {
        let mut need = at + 1;
        for block in bad_blocks(storage, &record.fresh)? {
            let later = records[at + 1..].iter().position(|r| replaces(r, &block));
            need = need.max(later.map_or(usize::MAX, |n| at + 2 + n));
        }
        needs.push(need);
    }
    let fits = |run: &usize| needs[..*run].iter().all(|need| need <= run);
    Ok((0..=records.len()).rev().find(fits).unwrap_or(0))
}

/// Fresh blocks that are not what the record says.
fn bad_blocks(storage: &dyn Storage, runs: &[Fresh]) -> io::Result<Vec<Range<u64>>> {
    let mut bad = Vec::new();
    let mut block = vec![0; BLOCK];
    for run in runs {
        let last = run.sums.len() - 1;
        for (i, sum) in run.sums.iter().enumerate() {
            let offset = run.offset + (i * BLOCK) as u64;
            let len = if i == last { run.last_len as usize } else { BLOCK };
            let have = storage.read_at(&mut block[..len], offset)?;
            if have < len || crc32fast::hash(&block[..len]) != *sum {
                bad.push(offset..offset + len as u64);
            }
        }
    }
    Ok(bad)
}

/// Does the state of this record not depend on what stood in the block before?
fn replaces(record: &Record<'_>, block: &Range<u64>) -> bool {
    let image = |(offset, change): &(u64, Change<'_>)| match change {
        Change::Image(bytes) => (*offset..*offset + bytes.len() as u64).contains(&block.start),
        Change::Delta(_) => false,
    };
    record.blocks.iter().any(image)
        || record.freed.iter().any(|r| r.start < block.end && block.start < r.end)
        || record.len <= block.start
}

/// Do records behind the end of the run tell of some that had been flushed and are not readable?
/// Those with larger numbers are of the same round. Records of an earlier round tell nothing: their
/// files are as new as they are.
fn is_damaged(
    ctx: &VolumeContext,
    locate: &dyn Locate,
    behind: &[Record<'_>],
    last: u64,
) -> Result<bool, StoreError> {
    let firm = behind.iter().map(|r| r.firm).max().unwrap_or(0);
    if last > 0 {
        return Ok(firm > last);
    }
    for record in behind.iter().filter(|r| r.number <= firm) {
        let Some(found) = locate.open(record.object, record.ino, &record.path)? else { continue };
        match Content::read_header(ctx, &*found.storage) {
            Ok(header) if header.generation < record.generation => return Ok(true),
            Err(StoreError::Io(e)) => return Err(e.into()),
            Ok(_) | Err(_) => {}
        }
    }
    Ok(false)
}
