//! What a commit consists of, and how it reaches the backing file in place.
//!
//! [`Plan`] lists every block image with its offset and whether a
//! committed state refers to the block it replaces, and what has to happen behind the images
//! ([`Settle`]). The first commit of a new file, and every commit of a file without a journal, goes
//! to its place at once: what lies on fresh ground first, then what replaces committed blocks, the header
//! last; then cuts and punches, then the modification time. Any other commit writes what lies on
//! fresh ground to its place and makes the rest a journal record; if the file is empty so far, but
//! durably, the record has checksums only and the header follows it to its place.

use super::content::Time;
use super::log::Commit;
use super::segment::{Seg, segment_chunks};
use super::state::{Committed, State};
use super::tree::TreeImage;
use super::{Storage, StoreError};
use crate::format::BLOCK;
use crate::format::header::Header;
use crate::format::layout::chunks;
use std::io::{self, IoSlice};
use std::ops::Range;

/// One block as it shall stand in the backing file.
pub(super) struct Image<'a> {
    /// Backing offset, bytes.
    pub offset: u64,
    /// A whole block; less for the last chunk only. The header's image may be several blocks.
    pub bytes: &'a [u8],
    /// Certainly nothing committed refers to this place. (Exact for chunks; tree blocks and header
    /// count as fresh only behind the committed length.)
    pub fresh: bool,
}

impl Image<'_> {
    fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }
}

/// A whole commit.
pub(super) struct Plan<'a> {
    /// By offset, without overlap; the header is the first.
    pub images: Vec<Image<'a>>,
    /// What follows once the images are in place.
    pub settle: Settle,
}

/// Work behind the images of a commit: it may destroy what the state before referred to.
#[derive(Default)]
pub(super) struct Settle {
    /// Exact length of the backing file; `None` when it is known to be right.
    pub len: Option<u64>,
    /// Ranges whose space nobody needs any more.
    pub punches: Vec<Range<u64>>,
    /// Modification time of the backing file, set last.
    pub mtime: Option<Time>,
}

impl Settle {
    fn is_empty(&self) -> bool {
        self.len.is_none() && self.punches.is_empty() && self.mtime.is_none()
    }
}

/// Writes the images, neighbours together: runs on fresh ground, then the others, the header
/// alone and last, so that an error before it leaves the old state in force. A file's first header
/// replaces nothing and goes with its neighbours.
fn write_images(storage: &dyn Storage, images: &[Image<'_>]) -> io::Result<()> {
    let together = images.first().is_none_or(|header| header.fresh);
    let neighbours =
        |a: &Image<'_>, b: &Image<'_>| a.end() == b.offset && (together || a.offset != 0);
    let mut runs: Vec<_> = images.chunk_by(neighbours).collect();
    runs.sort_by_key(|run| (run[0].offset == 0, run.iter().any(|i| !i.fresh)));
    let mut slices = Vec::with_capacity(images.len());
    for run in runs {
        slices.clear();
        slices.extend(run.iter().map(|i| IoSlice::new(i.bytes)));
        storage.write_at(&slices, run[0].offset)?;
    }
    Ok(())
}

/// The parts of `within` that no image covers.
fn gaps(images: &[Image<'_>], within: Range<u64>) -> Vec<Range<u64>> {
    let mut from = within.start;
    let mut out = Vec::new();
    for image in images.iter().filter(|i| i.end() > within.start && i.offset < within.end) {
        if image.offset > from {
            out.push(from..image.offset);
        }
        from = from.max(image.end());
    }
    if from < within.end {
        out.push(from..within.end);
    }
    out
}

impl State {
    /// Anything that a commit would do?
    pub fn is_dirty(&self) -> bool {
        self.changed || self.mtime.is_some() || !self.settle.is_empty()
    }

    /// Writes all uncommitted state, and finishes what an earlier commit could not.
    pub fn commit(&mut self) -> Result<(), StoreError> {
        if !self.writable {
            return if self.changed { Err(StoreError::ReadOnly) } else { Ok(()) };
        }
        if self.changed {
            self.write_state()?;
        }
        self.settle.mtime = self.mtime.take().or(self.settle.mtime);
        self.settle_space()?;
        if let Some(time) = self.settle.mtime {
            self.storage.set_mtime(time)?;
            self.settle.mtime = None;
        } else if let Some(log) = self.storage.log() {
            log.come_to_rest()?;
        }
        Ok(())
    }

    /// Cuts and punches that are still due.
    pub fn settle_space(&mut self) -> Result<(), StoreError> {
        if let Some(len) = self.settle.len {
            if self.disk_len()? != len {
                self.disk_len = None;
                self.storage.set_len(len)?;
                self.disk_len = Some(len);
            }
            self.settle.len = None;
        }
        while let Some(range) = self.settle.punches.last() {
            self.storage.punch(range.start, range.end - range.start)?;
            self.settle.punches.pop();
        }
        Ok(())
    }

    pub fn disk_len(&mut self) -> Result<u64, StoreError> {
        let len = match self.disk_len {
            Some(len) => len,
            None => self.storage.len()?,
        };
        self.disk_len = Some(len);
        Ok(len)
    }

    fn write_state(&mut self) -> Result<(), StoreError> {
        let result = self.hash_tree(self.header.generation + 1).and_then(|(tree, top)| {
            let header = self.next_header(&top.hash)?;
            let bytes = {
                // Not kept while it is written: a disk that hangs must not keep keys in memory.
                let keys = self.ctx.keys.keys()?;
                header.encode(self.ctx.layout, |b| keys.header_mac(b))?
            };
            let plan = self.plan(&bytes, &tree);
            let end = plan.images.last().map_or(0, Image::end);
            let settle = self.carry_out(plan, &header)?;
            Ok((header, settle, end))
        });
        match result {
            Ok((header, settle, end)) => {
                self.committed_now(header, settle, end);
                Ok(())
            }
            Err(e) => {
                self.remark();
                self.maybe_committed();
                Err(e)
            }
        }
    }

    /// Brings the images where they belong; returns what is still to be done behind them.
    fn carry_out(&self, plan: Plan<'_>, header: &Header) -> Result<Settle, StoreError> {
        let Some(log) = self.storage.log().filter(|log| log.has_state()) else {
            write_images(&*self.storage, &plan.images)?;
            if let Some(log) = self.storage.log() {
                log.first_commit();
            }
            return Ok(plan.settle);
        };
        // Of an attempt at the first commit that failed nothing was promised.
        let is_first = self.header.generation == 0;
        let in_place = |image: &Image<'_>| is_first || image.fresh;
        let (mut fresh, held): (Vec<_>, Vec<_>) = plan.images.into_iter().partition(in_place);
        let first = if is_first { Some(fresh.remove(0).bytes) } else { None };
        write_images(&*self.storage, &fresh)?;
        let blocks: Vec<_> = held.iter().map(|i| (i.offset, i.bytes)).collect();
        let len = self.ctx.layout.backing_len(self.size);
        if is_first && self.storage.len()? < len {
            self.storage.set_len(len)?;
        }
        let mut freed = plan.settle.punches;
        if len < self.committed.len {
            freed.push(len..self.committed.len);
        }
        log.commit(Commit {
            object: header.object,
            base: self.header.generation,
            base_root: &self.header.root_hash,
            generation: header.generation,
            blocks: &blocks,
            first,
            root: &header.root_hash,
            freed,
            len,
            mtime: plan.settle.mtime,
        })?;
        Ok(Settle::default())
    }

    /// The header of the working state.
    fn next_header(&self, top: &[u8; 32]) -> Result<Header, StoreError> {
        let mut header = self.header.clone();
        header.generation += 1;
        header.size = self.size;
        header.segment = self.first.block.segment;
        header.tags.copy_from_slice(&self.first.block.tags[..64]);
        let tags = header.tag_bytes();
        let (generation, segment) = (header.generation, &header.segment);
        header.root_hash =
            self.keys.current()?.root_hash(generation, header.size, segment, &tags, top);
        Ok(header)
    }

    /// Everything the commit consists of.
    fn plan<'a>(&'a self, header: &'a [u8], tree: &'a [TreeImage]) -> Plan<'a> {
        let layout = self.ctx.layout;
        let behind = |offset| offset >= self.committed.len && !self.is_retired(offset, BLOCK);
        let mut images = Vec::with_capacity(1 + tree.len() + self.overlay.bytes() / BLOCK);
        images.push(Image { offset: 0, bytes: header, fresh: behind(0) });
        images.extend(self.overlay.iter().map(|(chunk, bytes)| {
            let seg = self.seg(super::segment::segment_of(chunk));
            let fresh = seg.is_some_and(|seg| self.is_fresh(seg, chunk));
            Image { offset: layout.chunk_offset(chunk), bytes, fresh }
        }));
        images.extend(tree.iter().map(|block| Image {
            offset: block.offset,
            bytes: &block.bytes[..],
            fresh: behind(block.offset),
        }));
        images.sort_unstable_by_key(|i| i.offset);
        let settle = self.settle_after(&images);
        Plan { images, settle }
    }

    /// Cuts and punches of the commit.
    fn settle_after(&self, images: &[Image<'_>]) -> Settle {
        let len = self.ctx.layout.backing_len(self.size);
        let old_end = self.committed.len.min(len);
        let cut_at = self.committed.cut_at.min(old_end);
        let mut punches = gaps(images, cut_at..old_end);
        let dirty = self.segments.iter().filter(|(_, s)| s.dirty).map(|(n, s)| (*n, s));
        for (number, seg) in dirty.chain([(0, &self.first)]) {
            self.freed_runs(number, seg, len, &mut punches);
        }
        Settle { len: Some(len), punches, mtime: self.mtime.or(self.settle.mtime) }
    }

    /// Runs of chunks that became holes, as far as they lie before the new end.
    fn freed_runs(&self, number: u64, seg: &Seg, end: u64, out: &mut Vec<Range<u64>>) {
        if seg.freed == 0 {
            return;
        }
        let freed = |c: &u64| seg.freed >> seg.index(*c) & 1 == 1;
        let freed: Vec<u64> = segment_chunks(number).filter(freed).collect();
        for run in freed.chunk_by(|a, b| a + 1 == *b) {
            let from = self.ctx.layout.chunk_offset(run[0]);
            let to = (from + (run.len() * BLOCK) as u64).min(end);
            if from < to {
                out.push(from..to);
            }
        }
    }

    fn committed_now(&mut self, header: Header, settle: Settle, end: u64) {
        self.committed = Committed::new(header.size, self.ctx.layout.backing_len(header.size));
        self.header = header;
        self.first.dirty = false;
        self.first.freed = 0;
        self.first.committed = self.first.present();
        self.tree_is_clean();
        self.overlay.clear();
        self.changed = false;
        self.blocked = 0;
        // It went into the plan.
        self.mtime = None;
        self.disk_len = self.disk_len.map(|len| len.max(end));
        self.settle = settle;
    }

    /// After a failed commit its header may be in place or not: blocks of both states count as
    /// committed.
    fn maybe_committed(&mut self) {
        self.disk_len = None;
        let len = self.ctx.layout.backing_len(self.size);
        self.committed.len = self.committed.len.max(len);
        self.committed.chunks = self.committed.chunks.max(chunks(self.size));
        // What stands behind an earlier cut is no longer known to be garbage: chunks written in
        // place since then are part of the state that may be committed. It costs space only.
        self.committed.cut_at = u64::MAX;
        for seg in self.segments.values_mut().chain([&mut self.first]) {
            seg.committed |= seg.present();
        }
    }
}
