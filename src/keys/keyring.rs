//! The keys of an unlocked volume at run time: unwraps data keys (cached), supplies new ones.
//!
//! Invariants: only recipients of the descriptor's list are ever asked; a copy that is unavailable
//! lets the next one be tried, any other answer is final; new files get a copy for every recipient
//! or none.

use super::cache::{Cache, CacheKey, Clock, boot_clock};
use super::supply::Supply;
use super::{KeyError, KeyProvider, WrapContext, describe_recipient, same_key};
use crate::crypto::wrap::Purpose;
use crate::crypto::{DataKey, Secret, fingerprint, random_array};
use crate::format::header::{KeySlot, Recipient};
use crate::format::{DataKeyId, VolumeId};
use std::num::NonZeroUsize;
use std::sync::Arc;

/// Data keys kept unwrapped: half a megabyte of locked memory.
const CACHED_KEYS: NonZeroUsize = NonZeroUsize::new(16 * 1024).expect("not zero");

/// A data key for new files. `slot.commitment` is zero: the file fills it in.
#[derive(Clone)]
pub struct NewDataKey {
    /// The key.
    pub key: Arc<DataKey>,
    /// Its wrapped copies for every recipient of the volume.
    pub slot: KeySlot,
}

/// A recipient of the descriptor's list, and its provider if that can be had.
pub struct Member {
    /// Kind, reference and epoch.
    pub recipient: Recipient,
    /// What wraps and unwraps for it; without one its copies count as unavailable.
    pub provider: Option<Arc<dyn KeyProvider>>,
}

/// Providers, cache and supply of one unlocked volume. Thread-safe.
pub struct Keyring {
    volume: VolumeId,
    members: Vec<Member>,
    cache: Cache,
    supply: Supply,
}

impl Keyring {
    /// A keyring for the recipients of a descriptor, in its order.
    pub fn new(volume: VolumeId, files_per_data_key: u32, members: Vec<Member>) -> Self {
        Self::with_clock(volume, files_per_data_key, members, boot_clock())
    }

    /// As [`Self::new`] with another clock.
    pub fn with_clock(
        volume: VolumeId,
        files_per_data_key: u32,
        members: Vec<Member>,
        now: Clock,
    ) -> Self {
        let cache = Cache::new(CACHED_KEYS, None, now.clone());
        Self { volume, members, cache, supply: Supply::new(files_per_data_key, now) }
    }

    /// Unwraps (or finds in the cache) the data key of a slot; refuses recipients the descriptor
    /// does not allow.
    pub fn data_key(&self, slot: &KeySlot) -> Result<Arc<DataKey>, KeyError> {
        let allowed: Vec<_> =
            slot.recipients.iter().filter_map(|copy| Some((copy, self.member(copy)?))).collect();
        if allowed.is_empty() {
            let names: Vec<_> = slot.recipients.iter().map(describe_recipient).collect();
            return Err(KeyError::NotOurs(format!(
                "the data key is wrapped for {} only, which is not a recipient of this volume",
                names.join(", ")
            )));
        }
        let context = self.context(slot.data_key_id);
        let copies: Vec<&Recipient> = allowed.iter().map(|(copy, _)| *copy).collect();
        self.cache.get_or_unwrap(cache_name(&context, &copies), || {
            unwrap_first(&context, &allowed).map(|key| Arc::new(DataKey(key)))
        })
    }

    /// The data key for one more new file; shared by `files_per_data_key` files and at most one
    /// hour.
    pub fn for_new_file(&self) -> Result<NewDataKey, KeyError> {
        self.supply.take(|| self.make_data_key())
    }

    /// The same data key wrapped for exactly the volume's present recipients (for `key
    /// add|remove`). `None` when the slot already is. Copies that are right already are kept.
    pub fn rewrap(&self, slot: &KeySlot) -> Result<Option<KeySlot>, KeyError> {
        let is_for = |copy: &Recipient, member: &Member| {
            same_key(copy, &member.recipient) && copy.epoch == member.recipient.epoch
        };
        let same_number = slot.recipients.len() == self.members.len();
        if same_number && slot.recipients.iter().zip(&self.members).all(|(c, m)| is_for(c, m)) {
            return Ok(None);
        }
        let key = self.data_key(slot)?;
        let context = self.context(slot.data_key_id);
        let copy_for =
            |member: &Member| match slot.recipients.iter().find(|copy| is_for(copy, member)) {
                Some(copy) => Ok(copy.clone()),
                None => self.provider(member)?.wrap(&context, &key.0),
            };
        let recipients = self.members.iter().map(copy_for).collect::<Result<_, _>>()?;
        Ok(Some(KeySlot { recipients, ..slot.clone() }))
    }

    /// Can new files be given keys? `Err` says which recipient is missing.
    pub fn can_create(&self) -> Result<(), KeyError> {
        self.members.iter().try_for_each(|member| self.provider(member).map(drop))
    }

    /// Forgets every data key it holds.
    pub fn clear(&self) {
        self.supply.clear();
        self.cache.clear();
    }

    fn context(&self, id: DataKeyId) -> WrapContext {
        WrapContext { volume: self.volume, purpose: Purpose::Data(id) }
    }

    fn member(&self, copy: &Recipient) -> Option<&Member> {
        self.members.iter().find(|member| same_key(&member.recipient, copy))
    }

    fn provider<'a>(&self, member: &'a Member) -> Result<&'a dyn KeyProvider, KeyError> {
        member.provider.as_deref().ok_or_else(|| {
            KeyError::Unavailable(format!(
                "the {} is not at hand, and new files need a copy of their key for every \
                 recipient; \
                 mount with the volume's key file or passphrase to make files",
                describe_recipient(&member.recipient)
            ))
        })
    }

    fn make_data_key(&self) -> Result<NewDataKey, KeyError> {
        self.can_create()?;
        let id = DataKeyId(random_array());
        let context = self.context(id);
        let Some((first, rest)) = self.members.split_first() else {
            return Err(KeyError::NotOurs("the volume has no recipient to wrap keys for".into()));
        };
        let (key, copy) = self.provider(first)?.generate(&context)?;
        let mut recipients = vec![copy];
        for member in rest {
            recipients.push(self.provider(member)?.wrap(&context, &key)?);
        }
        let key = Arc::new(DataKey(key));
        let name = cache_name(&context, &recipients.iter().collect::<Vec<_>>());
        self.cache.insert(name, key.clone());
        let slot = KeySlot { data_key_id: id, commitment: [0; 32], recipients };
        Ok(NewDataKey { key, slot })
    }
}

/// The first copy whose provider answers; an unavailable one gives way to the next.
fn unwrap_first(
    context: &WrapContext,
    copies: &[(&Recipient, &Member)],
) -> Result<Secret<32>, KeyError> {
    let mut failures: Vec<KeyError> = Vec::new();
    for (copy, member) in copies {
        let answer = match &member.provider {
            Some(provider) => provider.unwrap(context, copy),
            None => Err(KeyError::Unavailable(format!(
                "the {} is not at hand",
                describe_recipient(&member.recipient)
            ))),
        };
        match answer {
            Err(error) if error.falls_through() => failures.push(error),
            answer => return answer,
        }
    }
    if failures.len() == 1 {
        return Err(failures.remove(0));
    }
    let all: Vec<_> = failures.iter().map(ToString::to_string).collect();
    Err(KeyError::Unavailable(format!("no recipient can open the data key: {}", all.join("; "))))
}

fn cache_name(context: &WrapContext, copies: &[&Recipient]) -> CacheKey {
    let context = context.bytes();
    let mut parts: Vec<&[u8]> = vec![&context];
    let kinds: Vec<[u8; 1]> = copies.iter().map(|copy| [copy.kind as u8]).collect();
    for (copy, kind) in copies.iter().zip(&kinds) {
        parts.extend([&kind[..], &copy.key_ref, &copy.wrapped]);
    }
    fingerprint(&parts)
}

#[cfg(test)]
mod tests;
