//! The keys of an unlocked volume at run time: unwraps data keys (cached), supplies new ones.

use super::KeyError;
use crate::crypto::DataKey;
use crate::format::header::KeySlot;
use std::sync::Arc;

/// A data key for new files. `slot.commitment` is zero: the file fills it in.
#[derive(Clone)]
pub struct NewDataKey {
    /// The key.
    pub key: Arc<DataKey>,
    /// Its wrapped copies for every recipient of the volume.
    pub slot: KeySlot,
}

/// Providers, cache and supply of one unlocked volume. Thread-safe.
pub struct Keyring {}
impl Keyring {
    /// Unwraps (or finds in the cache) the data key of a slot; refuses recipients the descriptor does not allow.
    pub fn data_key(&self, slot: &KeySlot) -> Result<Arc<DataKey>, KeyError> {
        todo!()
    }
    /// The data key for one more new file; shared by `files_per_data_key` files and at most one hour.
    pub fn for_new_file(&self) -> Result<NewDataKey, KeyError> {
        todo!()
    }
    /// The same data key wrapped for exactly the volume's present recipients (for `key add|remove`).
    /// `None` when the slot already is.
    pub fn rewrap(&self, slot: &KeySlot) -> Result<Option<KeySlot>, KeyError> {
        todo!()
    }
}
