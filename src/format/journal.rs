//! The journal's bytes: its head, and one record per commit of one file.
//!
//! MACs come in as closures; what a record means is the business of the store.

use super::bytes::Reader;
use super::{BLOCK, FormatError, ObjectId, VERSION, VolumeId, check_version};
use std::ops::Range;

/// First bytes of a journal.
const MAGIC: &[u8; 8] = b"KMSFSJNL";
/// First bytes of a record.
const RECORD_MAGIC: &[u8; 4] = b"KJR1";
/// Bytes of a MAC.
const MAC_LEN: usize = 32;
/// Bytes of a record before its path.
const FIXED_LEN: usize = 120;
/// Records start at multiples of this: a record that is being written shares no block with one that
/// is safe.
pub const ALIGN: u64 = BLOCK as u64;
/// Largest record, bytes: far above what one commit makes, and a bound for what a reader allocates.
pub const RECORD_MAX: usize = 256 << 20;

/// The first block of a journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// Volume it belongs to.
    pub volume: VolumeId,
    /// Random; the key of its records is derived from it.
    pub epoch: [u8; 16],
}

impl Head {
    /// The block; `mac` computes the MAC of the bytes before it.
    pub fn encode(&self, mac: impl FnOnce(&[u8]) -> [u8; MAC_LEN]) -> Box<[u8; BLOCK]> {
        let mut out = Box::new([0; BLOCK]);
        out[..8].copy_from_slice(MAGIC);
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        out[16..32].copy_from_slice(&self.volume.0);
        out[32..48].copy_from_slice(&self.epoch);
        let mac = mac(&out[..BLOCK - MAC_LEN]);
        out[BLOCK - MAC_LEN..].copy_from_slice(&mac);
        out
    }
    /// Checks magic, version, volume, MAC, then that the rest is zero.
    pub fn decode(
        bytes: &[u8],
        volume: VolumeId,
        mac_ok: impl FnOnce(&[u8], &[u8; MAC_LEN]) -> bool,
    ) -> Result<Self, FormatError> {
        let block = bytes.first_chunk::<BLOCK>().ok_or(FormatError::Length(bytes.len()))?;
        let (maced, mac) = block.split_last_chunk::<MAC_LEN>().ok_or(FormatError::Mac)?;
        let mut r = Reader::new(maced, "journal head");
        if r.array()? != *MAGIC {
            return Err(FormatError::Magic);
        }
        check_version(r.u16()?)?;
        let reserved = r.take(6)?;
        let head = Self { volume: VolumeId(r.array()?), epoch: r.array()? };
        if head.volume != volume {
            return Err(FormatError::OtherVolume);
        }
        if !mac_ok(maced, mac) {
            return Err(FormatError::Mac);
        }
        if !super::bytes::is_zero(reserved) || !super::bytes::is_zero(r.rest()) {
            return Err(FormatError::Field("journal head reserved"));
        }
        Ok(head)
    }
}

/// New bytes of one block of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change<'a> {
    /// All of them.
    Image(&'a [u8]),
    /// What differs from the block as the records before left it: encoded runs.
    Delta(Vec<u8>),
}

/// Blocks that were written to their place before the record, and must be there for it to count.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fresh {
    /// Backing offset of the first.
    pub offset: u64,
    /// CRC-32 of each; all but the last are whole blocks.
    pub sums: Vec<u32>,
    /// Bytes of the last.
    pub last_len: u32,
}

/// One commit of one file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record<'a> {
    /// Position in the epoch: 1, 2, 3, …
    pub number: u64,
    /// All records up to this one were on disk when this one was written.
    pub firm: u64,
    /// File.
    pub object: ObjectId,
    /// Inode number of its backing file.
    pub ino: u64,
    /// Generation of the state this one follows; 0 = the empty file without a header.
    pub base: u64,
    /// First bytes of the root hash of the state this one follows, zero if it has none: generations
    /// alone do not tell two histories of a file apart.
    pub base_root: [u8; 16],
    /// Generation of this state; equal to `base` when only keys or times changed.
    pub generation: u64,
    /// Modification time of the backing file.
    pub mtime: Option<(i64, u32)>,
    /// Length of the backing file.
    pub len: u64,
    /// Where the backing file stood, from the backing root; empty if an earlier record says it.
    pub path: Vec<u8>,
    /// New blocks by backing offset.
    pub blocks: Vec<(u64, Change<'a>)>,
    /// Blocks in place.
    pub fresh: Vec<Fresh>,
    /// Ranges of the backing file that this state no longer refers to.
    pub freed: Vec<Range<u64>>,
}

impl Record<'_> {
    /// The record with its MAC, unpadded.
    pub fn encode(&self, mac: impl FnOnce(&[u8]) -> [u8; MAC_LEN]) -> Vec<u8> {
        let payload: usize = self.blocks.iter().map(|(_, c)| 16 + c.bytes().len()).sum();
        let sums: usize = self.fresh.iter().map(|f| 16 + 4 * f.sums.len()).sum();
        let len = FIXED_LEN + self.path.len() + payload + sums + 16 * self.freed.len() + MAC_LEN;
        let mut out = Vec::with_capacity(len);
        self.encode_fixed(len as u32, &mut out);
        out.extend_from_slice(&self.path);
        for (offset, change) in &self.blocks {
            out.extend_from_slice(&offset.to_le_bytes());
            out.extend_from_slice(&u32::from(matches!(change, Change::Delta(_))).to_le_bytes());
            out.extend_from_slice(&(change.bytes().len() as u32).to_le_bytes());
            out.extend_from_slice(change.bytes());
        }
        for fresh in &self.fresh {
            out.extend_from_slice(&fresh.offset.to_le_bytes());
            out.extend_from_slice(&(fresh.sums.len() as u32).to_le_bytes());
            out.extend_from_slice(&fresh.last_len.to_le_bytes());
            fresh.sums.iter().for_each(|sum| out.extend_from_slice(&sum.to_le_bytes()));
        }
        for range in &self.freed {
            out.extend_from_slice(&range.start.to_le_bytes());
            out.extend_from_slice(&range.end.to_le_bytes());
        }
        let mac = mac(&out);
        out.extend_from_slice(&mac);
        out
    }

    fn encode_fixed(&self, len: u32, out: &mut Vec<u8>) {
        out.extend_from_slice(RECORD_MAGIC);
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.firm.to_le_bytes());
        out.extend_from_slice(&self.object.0);
        let (seconds, nanos) = self.mtime.unwrap_or_default();
        for word in [self.ino, self.base, self.generation, seconds as u64] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&nanos.to_le_bytes());
        out.extend_from_slice(&u32::from(self.mtime.is_some()).to_le_bytes());
        out.extend_from_slice(&self.len.to_le_bytes());
        out.extend_from_slice(&(self.path.len() as u32).to_le_bytes());
        for count in [self.blocks.len(), self.fresh.len(), self.freed.len()] {
            out.extend_from_slice(&(count as u32).to_le_bytes());
        }
        out.extend_from_slice(&self.base_root);
    }
}

impl<'a> Record<'a> {
    /// Length in bytes of the record that `bytes` begin with, its MAC included; `None` where no
    /// record can begin.
    pub fn peek_len(bytes: &[u8]) -> Option<usize> {
        let rest = bytes.strip_prefix(RECORD_MAGIC)?;
        let len = u32::from_le_bytes(*rest.first_chunk()?) as usize;
        (FIXED_LEN + MAC_LEN..=RECORD_MAX).contains(&len).then_some(len)
    }
    /// Checks length, magic and MAC, then every field and that nothing is left over.
    pub fn decode(
        bytes: &'a [u8],
        mac_ok: impl FnOnce(&[u8], &[u8; MAC_LEN]) -> bool,
    ) -> Result<Self, FormatError> {
        if Self::peek_len(bytes) != Some(bytes.len()) {
            return Err(FormatError::Length(bytes.len()));
        }
        let (maced, mac) =
            bytes.split_last_chunk::<MAC_LEN>().ok_or(FormatError::Length(bytes.len()))?;
        if !mac_ok(maced, mac) {
            return Err(FormatError::Mac);
        }
        let mut r = Reader::new(maced, "journal record");
        r.take(8)?;
        let (number, firm, object) = (r.u64()?, r.u64()?, ObjectId(r.array()?));
        let (ino, base, generation, seconds) = (r.u64()?, r.u64()?, r.u64()?, r.u64()? as i64);
        let nanos = r.u32()?;
        let mtime = match r.u32()? {
            0 if (seconds, nanos) == (0, 0) => None,
            1 if nanos < 1_000_000_000 => Some((seconds, nanos)),
            _ => return Err(FormatError::Field("journal record time")),
        };
        let len = r.u64()?;
        let path_len = r.u32()? as usize;
        let counts = [r.u32()?, r.u32()?, r.u32()?];
        let base_root = r.array()?;
        let path = r.take(path_len)?.to_vec();
        let blocks = decode_blocks(&mut r, counts[0])?;
        let fresh = decode_fresh(&mut r, counts[1])?;
        let freed = decode_freed(&mut r, counts[2])?;
        if !r.is_done() {
            return Err(FormatError::Field("journal record end"));
        }
        let follows = generation == base + 1 || generation == base && base > 0;
        if base == u64::MAX || !follows {
            return Err(FormatError::Field("journal record generation"));
        }
        Ok(Self {
            number,
            firm,
            object,
            ino,
            base,
            base_root,
            generation,
            mtime,
            len,
            path,
            blocks,
            fresh,
            freed,
        })
    }
}

fn decode_blocks<'a>(
    r: &mut Reader<'a>,
    count: u32,
) -> Result<Vec<(u64, Change<'a>)>, FormatError> {
    let mut blocks = Vec::new();
    for _ in 0..count {
        let (offset, kind, len) = (r.u64()?, r.u32()?, r.u32()? as usize);
        let bytes = r.take(len)?;
        // A header may be several blocks, everything else is one.
        let fits = offset.is_multiple_of(ALIGN) && (1..=4 * BLOCK).contains(&len);
        let change = match kind {
            0 if fits => Change::Image(bytes),
            1 if fits => Change::Delta(bytes.to_vec()),
            _ => return Err(FormatError::Field("journal record block")),
        };
        blocks.push((offset, change));
    }
    Ok(blocks)
}

fn decode_fresh(r: &mut Reader<'_>, count: u32) -> Result<Vec<Fresh>, FormatError> {
    let mut all = Vec::new();
    for _ in 0..count {
        let (offset, sums, last_len) = (r.u64()?, r.u32()?, r.u32()?);
        let bytes = r.take(sums as usize * 4)?;
        let fits = offset.is_multiple_of(ALIGN) && (1..=BLOCK as u32).contains(&last_len);
        if !fits || sums == 0 {
            return Err(FormatError::Field("journal record fresh"));
        }
        let sums = bytes.as_chunks::<4>().0.iter().map(|s| u32::from_le_bytes(*s)).collect();
        all.push(Fresh { offset, sums, last_len });
    }
    Ok(all)
}

fn decode_freed(r: &mut Reader<'_>, count: u32) -> Result<Vec<Range<u64>>, FormatError> {
    let mut all = Vec::new();
    for _ in 0..count {
        let range = r.u64()?..r.u64()?;
        if range.is_empty() {
            return Err(FormatError::Field("journal record freed"));
        }
        all.push(range);
    }
    Ok(all)
}

impl Change<'_> {
    /// Payload.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Image(bytes) => bytes,
            Self::Delta(bytes) => bytes,
        }
    }
}

/// Equal bytes that are cheaper to repeat than to begin a new run after.
const RUN_GAP: usize = 8;

/// What turns `old` into `new` (of equal length): runs of position (2 bytes), length (2) and bytes.
/// `None` when an image is hardly longer.
pub fn delta(old: &[u8], new: &[u8]) -> Option<Vec<u8>> {
    if old.len() != new.len() || old.len() > usize::from(u16::MAX) {
        return None;
    }
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(start) = (at..new.len()).find(|i| old[*i] != new[*i]) {
        let end = run_end(old, new, start);
        out.extend_from_slice(&(start as u16).to_le_bytes());
        out.extend_from_slice(&((end - start) as u16).to_le_bytes());
        out.extend_from_slice(&new[start..end]);
        if out.len() > new.len() * 3 / 4 {
            return None;
        }
        at = end;
    }
    // A delta is never empty, or it could not be told from a block that did not change.
    (!out.is_empty()).then_some(out)
}

/// End of the run of changes that begins at `start`: only bytes that are equal follow, or more of them
/// than [`RUN_GAP`].
fn run_end(old: &[u8], new: &[u8], start: usize) -> usize {
    let mut end = start + 1;
    let near = |end: usize| end..new.len().min(end + RUN_GAP + 1);
    while let Some(next) = near(end).find(|i| old[*i] != new[*i]) {
        end = next + 1;
    }
    end
}

/// Applies a delta in place; fails, possibly half done, when it does not fit the block.
pub fn apply_delta(block: &mut [u8], delta: &[u8]) -> Result<(), FormatError> {
    let mut r = Reader::new(delta, "journal record delta");
    while !r.is_done() {
        let (at, len) = (usize::from(r.u16()?), usize::from(r.u16()?));
        let bytes = r.take(len)?;
        let place = block.get_mut(at..at + len);
        place.ok_or(FormatError::Field("journal record delta"))?.copy_from_slice(bytes);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
