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
/// Generation, size, root hash, data key ids and commitments stay; the wrap epoch grows by one. The
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
) -> Result<Header, StoreError> {
    let refused = || StoreError::Header(FormatError::Field("recipients"));
    let mut header = Content::read_header(ctx, file)?;
    if let Some(recipients) = current {
        header.current.recipients = recipients;
    }
    if let Some(recipients) = next {
        header.next.as_mut().ok_or_else(refused)?.recipients = recipients;
    }
    let mut slots = std::iter::once(&header.current).chain(&header.next);
    if slots.any(|slot| slot.recipients.is_empty()) {
        return Err(refused());
    }
    header.wrap_epoch += 1;
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
