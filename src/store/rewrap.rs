//! New recipients in a header, content untouched: what adding or removing a key needs.
//!
//! Knows the header and nothing else of the file; no data key is involved.

use super::content::{Time, VolumeContext};
use super::log::Commit;
use super::{Content, FileLog, StoreError};
use crate::format::FormatError;
use crate::format::header::{Header, Recipient};

/// Replaces the wrapped copies in the header's key slots; `None` leaves a slot's as they are.
///
/// Generation, size, root hash, data key ids and commitments stay; the wrap epoch becomes
/// `epoch`, the generation of the descriptor whose recipients these are. The
/// header goes through the journal, so a crash leaves the old or the new one; the next checkpoint
/// brings it to its place and gives the backing file the modification time `mtime`. The file must not
/// be open as a [`Content`]. Returns the header as written.
///
/// Errors: the header is damaged; no recipient is left, or recipients are given for a slot that
/// does not exist, or do not fit (`Field("recipients")`); the backing file fails.
pub fn rewrap_header(
    ctx: &VolumeContext,
    file: &FileLog,
    mtime: Time,
    current: Option<Vec<Recipient>>,
    next: Option<Vec<Recipient>>,
    epoch: u64,
) -> Result<Header, StoreError> {
    let mut header = Content::read_header(ctx, file)?;
    replace(&mut header, current, next, epoch)?;
    let keys = ctx.keys.keys()?;
    let bytes = header.encode(ctx.layout, |b| keys.header_mac(b))?;
    file.commit(Commit {
        object: header.object,
        base: header.generation,
        base_root: &header.root_hash,
        generation: header.generation,
        blocks: &[(0, &bytes)],
        first: None,
        root: &header.root_hash,
        freed: Vec::new(),
        len: ctx.layout.backing_len(header.size),
        mtime: Some(mtime),
    })?;
    Ok(header)
}

/// Puts the copies into the header, or leaves it as it is.
pub(super) fn replace(
    header: &mut Header,
    current: Option<Vec<Recipient>>,
    next: Option<Vec<Recipient>>,
    epoch: u64,
) -> Result<(), StoreError> {
    let none = |copies: &Option<Vec<Recipient>>| copies.as_ref().is_some_and(Vec::is_empty);
    if none(&current) || none(&next) || (next.is_some() && header.next.is_none()) {
        return Err(StoreError::Header(FormatError::Field("recipients")));
    }
    if let Some(recipients) = current {
        header.current.recipients = recipients;
    }
    if let (Some(recipients), Some(slot)) = (next, &mut header.next) {
        slot.recipients = recipients;
    }
    header.wrap_epoch = header.wrap_epoch.max(epoch);
    Ok(())
}
