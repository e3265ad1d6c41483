//! Before a descriptor gets its next generation: is it the newest there is?
//!
//! A header remembers the generation of the descriptor its keys were wrapped under. An older descriptor
//! that was put back is known by that; once its generation had been raised past the headers it would not
//! be any more, and the recipients it still names would be taken for the volume's.

use std::os::fd::AsFd;

use super::attr::FileKind;
use super::backing;
use super::error::{FsError, FsResult};
use super::survey::{Damage, Found, Survey, Visitor};
use super::volume::refuse_rolled_back;
use crate::format::descriptor::NameMode;
use crate::store::content::VolumeContext;
use crate::store::{Content, FileStorage};

/// Fails if a header was wrapped under a later generation than this one. What cannot be read is left to
/// others. `each` hears of every file.
pub fn require_newest(
    root: impl AsFd,
    context: &VolumeContext,
    names: NameMode,
    generation: u64,
    each: &dyn Fn(),
) -> FsResult<()> {
    let survey = Survey { keys: context.keys.keys()?, names };
    let mut look = Look { context, generation, each, later: None };
    survey.walk(root, &mut look)?;
    look.later.map_or(Ok(()), Err)
}

struct Look<'a> {
    context: &'a VolumeContext,
    generation: u64,
    each: &'a dyn Fn(),
    later: Option<FsError>,
}

impl Look<'_> {
    fn look(&self, found: &Found) -> FsResult<()> {
        let file = backing::open_file(&*found.parent, &found.entry, false);
        let Ok(file) = file.map(FileStorage) else { return Ok(()) };
        match Content::read_header(self.context, &file) {
            Ok(header) => refuse_rolled_back(header.wrap_epoch, self.generation),
            Err(_) => Ok(()),
        }
    }
}

impl Visitor for Look<'_> {
    fn found(&mut self, found: Found) {
        if found.kind != FileKind::Regular || found.stat.st_size == 0 || self.later.is_some() {
            return;
        }
        if let Err(error) = self.look(&found) {
            let path = String::from_utf8_lossy(&found.plain).into_owned();
            self.later = Some(FsError::Damaged(format!("{path}: {error}")));
        }
        (self.each)();
    }

    fn damaged(&mut self, _damage: Damage) {}
    fn denied(&mut self, _plain: &[u8]) {}
}
