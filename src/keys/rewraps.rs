//! New wrapped copies by the old ones: files that share a data key share its new copies, and a KMS
//! wraps it once for all of them.
//!
//! Holds nothing secret. Must not know who wraps.

use super::cache::{self, CacheKey};
use super::{KeyError, WrapContext};
use crate::format::header::Recipient;
use lru::LruCache;
use parking_lot::Mutex;
use std::num::NonZeroUsize;
use std::sync::Arc;

/// Data keys whose new copies are remembered: a few megabytes.
const REMEMBERED: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);

/// Locked while the copies are being made.
type Entry = Arc<Mutex<Option<Vec<Recipient>>>>;

/// Copies made for one list of recipients. Thread-safe.
pub(super) struct Rewraps(Mutex<LruCache<CacheKey, Entry>>);

impl Rewraps {
    pub(super) fn new() -> Self {
        Self(Mutex::new(LruCache::sparse(REMEMBERED)))
    }

    /// Forgets them.
    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }

    /// The copies that take the place of `old`: those made before, or what `make` says. Callers who
    /// come at the same time wait for one of them. Errors are not remembered.
    pub(super) fn get_or_make(
        &self,
        context: &WrapContext,
        old: &[Recipient],
        make: impl FnOnce() -> Result<Vec<Recipient>, KeyError>,
    ) -> Result<Vec<Recipient>, KeyError> {
        let entry = self
            .0
            .lock()
            .get_or_insert(cache::name_of(context, old.iter()), Entry::default)
            .clone();
        let mut made = entry.lock();
        if let Some(copies) = &*made {
            return Ok(copies.clone());
        }
        let copies = make()?;
        *made = Some(copies.clone());
        Ok(copies)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::wrap::Purpose;
    use crate::format::header::RecipientKind;
    use crate::format::{DataKeyId, VolumeId};
    use std::sync::atomic::{AtomicU32, Ordering};

    fn copy(epoch: u32, wrapped: u8) -> Recipient {
        let kind = RecipientKind::AwsKms;
        Recipient { kind, epoch, key_ref: b"a".to_vec(), wrapped: vec![wrapped] }
    }

    fn context(id: u8) -> WrapContext {
        WrapContext { volume: VolumeId([1; 16]), purpose: Purpose::Data(DataKeyId([id; 16])) }
    }

    #[test]
    fn many_who_share_a_key_make_its_copies_once() {
        let (rewraps, made) = (Rewraps::new(), AtomicU32::new(0));
        let ask = || {
            rewraps.get_or_make(&context(1), &[copy(1, 1)], || {
                std::thread::yield_now();
                let number = made.fetch_add(1, Ordering::SeqCst);
                Ok(vec![copy(2, number as u8)])
            })
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16).map(|_| scope.spawn(ask)).collect();
            for thread in threads {
                assert_eq!(thread.join().expect("no panic"), Ok(vec![copy(2, 0)]));
            }
        });
        assert_eq!(made.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn any_other_key_or_copy_has_its_own() {
        let rewraps = Rewraps::new();
        let olds = [
            (context(1), vec![copy(1, 1)]),
            (context(2), vec![copy(1, 1)]),
            (context(1), vec![copy(2, 1)]),
            (context(1), vec![copy(1, 2)]),
            (context(1), vec![copy(1, 1), copy(1, 1)]),
        ];
        for (number, (context, old)) in olds.iter().enumerate() {
            let new = vec![copy(9, number as u8)];
            assert_eq!(rewraps.get_or_make(context, old, || Ok(new.clone())), Ok(new.clone()));
        }
        for (number, (context, old)) in olds.iter().enumerate() {
            let again = rewraps.get_or_make(context, old, || Ok(vec![]));
            assert_eq!(again, Ok(vec![copy(9, number as u8)]));
        }
    }

    #[test]
    fn a_failure_is_not_remembered() {
        let rewraps = Rewraps::new();
        let down = || Err(KeyError::Unavailable("down".into()));
        assert!(rewraps.get_or_make(&context(1), &[], down).is_err());
        assert_eq!(rewraps.get_or_make(&context(1), &[], || Ok(vec![])), Ok(vec![]));
    }
}
