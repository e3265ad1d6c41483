//! What the kernel has cached and a change of ours has made untrue.

use super::super::control::Control;
use super::super::pool::Pool;
use crate::fs::Volume;
use std::sync::Arc;

/// Tells the kernel of set-id bits that a change of content has dropped and it still has in its cache.
pub struct Refresher {
    pub volume: Arc<Volume>,
    pub control: Arc<Control>,
    pub committers: Arc<Pool>,
}

impl Refresher {
    /// Not twice for the same change.
    pub fn refresh(&self) {
        let stale = self.volume.take_stale_modes();
        if stale.is_empty() {
            return;
        }
        let control = Arc::clone(&self.control);
        self.committers
            .run(move || stale.into_iter().for_each(|ino| control.refresh_attributes(ino)));
    }
}
