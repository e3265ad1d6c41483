//! Walks over a whole file: seeking data and holes, and verification that goes on behind damage.

use super::StoreError;
use super::segment::{segment_chunks, segment_of};
use super::state::{CHUNK, State};
use super::tree::ZERO;
use crate::format::BLOCK;
use crate::format::layout::{GROUP_CHUNKS, HEADER_CHUNKS, chunks, groups};
use std::ops::Range;

impl State {
    /// First data at or after `offset`.
    pub fn seek_data(&mut self, offset: u64) -> Result<Option<u64>, StoreError> {
        let all = chunks(self.size);
        let mut chunk = offset / CHUNK;
        while offset < self.size && chunk < all {
            let number = segment_of(chunk);
            let end = segment_chunks(number).end;
            self.load_segment(number)?;
            let seg = self.loaded(number)?;
            if let Some(found) = (chunk..end).find(|c| !seg.tag(*c).is_hole()) {
                return Ok(Some(offset.max(found * CHUNK)));
            }
            let Some(group) = self.next_group((end - HEADER_CHUNKS) / GROUP_CHUNKS)? else {
                return Ok(None);
            };
            chunk = segment_chunks(group + 1).start;
        }
        Ok(None)
    }

    /// First hole at or after `offset`; the end of the file counts as one.
    pub fn seek_hole(&mut self, offset: u64) -> Result<Option<u64>, StoreError> {
        if offset >= self.size {
            return Ok(None);
        }
        let all = chunks(self.size);
        let mut chunk = offset / CHUNK;
        while chunk < all {
            let number = segment_of(chunk);
            let end = segment_chunks(number).end.min(all);
            self.load_segment(number)?;
            let seg = self.loaded(number)?;
            if let Some(found) = (chunk..end).find(|c| seg.tag(*c).is_hole()) {
                return Ok(Some(offset.max(found * CHUNK)));
            }
            chunk = end;
        }
        Ok(Some(self.size))
    }
}

/// One step of a verification walk, so that the lock is not held for a whole file.
pub(super) enum Step {
    /// Look below a tree block.
    Visit(u32, u64),
    /// Check the chunks of a segment.
    Segment(u64),
}

impl State {
    /// Where a verification starts, last step first.
    pub fn verify_start(&mut self, bad: &mut dyn FnMut(StoreError)) -> Vec<Step> {
        let mut steps = Vec::new();
        // Also where only holes are missing: the length is part of what was committed.
        match self.storage.len() {
            Ok(len) if len < self.committed.len => bad(self.short()),
            Ok(_) => {}
            Err(e) => bad(e.into()),
        }
        match self.top() {
            Ok(top) if top.hash != ZERO && groups(self.size) > 0 => {
                steps.push(Step::Visit(top.level, 0));
            }
            Ok(_) => {}
            Err(e) => bad(e),
        }
        steps.push(Step::Segment(0));
        steps
    }

    /// Does one step; adds those below it.
    pub fn verify_step(
        &mut self,
        step: Step,
        steps: &mut Vec<Step>,
        bad: &mut dyn FnMut(StoreError),
    ) {
        match step {
            Step::Segment(number) => self.verify_segment(number, bad),
            Step::Visit(0, group) => match self.load_segment(group + 1) {
                Ok(()) => steps.push(Step::Segment(group + 1)),
                Err(e) => bad(e),
            },
            Step::Visit(level, index) => match self.visit_node(level, index) {
                Ok(_) => {
                    let below = self.filled_children(level, index).into_iter().rev();
                    steps.extend(below.map(|child| Step::Visit(level - 1, child)));
                }
                Err(e) => bad(e),
            },
        }
    }

    fn verify_segment(&mut self, number: u64, bad: &mut dyn FnMut(StoreError)) {
        if let Err(e) = self.load_segment(number) {
            return bad(e);
        }
        let Some(seg) = self.seg(number) else { return };
        let end = segment_chunks(number).end.min(chunks(self.size));
        let stored = |c: u64| !seg.tag(c).is_hole() && self.overlay.get(c).is_none();
        let mut chunk = segment_chunks(number).start;
        while chunk < end {
            let run = chunk..(chunk..end).find(|c| !stored(*c)).unwrap_or(end);
            if !run.is_empty() {
                self.verify_run(number, run.clone(), bad);
            }
            chunk = run.end.max(chunk) + 1;
        }
    }

    /// Checks a run of stored chunks with one read; chunk by chunk where that read fails.
    fn verify_run(&self, number: u64, run: Range<u64>, bad: &mut dyn FnMut(StoreError)) {
        let Some(seg) = self.seg(number) else { return };
        let len: usize = run.clone().map(|c| self.chunk_len(c)).sum();
        let mut buf = vec![0; len];
        let whole = self.fetch(run.start, &mut buf).is_ok();
        for (chunk, part) in run.zip(buf.chunks_mut(BLOCK)) {
            let fetched = if whole { Ok(()) } else { self.fetch(chunk, part) };
            if let Err(e) = fetched.and_then(|()| self.decrypt(seg, chunk, part)) {
                bad(e);
            }
        }
    }
}
