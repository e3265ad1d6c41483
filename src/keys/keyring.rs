//! The keys of an unlocked volume at run time: unwraps data keys (cached), supplies new ones, knows
//! whether the volume's key is still granted.
//!
//! Invariants: only recipients of the descriptor's list are ever asked; a copy that is unavailable
//! lets the next one be tried, any other answer is final; new files get a copy for every recipient
//! or none; while the keyring is closed nothing is handed out.

use super::cache::{self, Cache, CacheFacts, CacheKey};
use super::clock::{Clock, boot_clock};
use super::recipients::{Recipients, Ways, is_for};
use super::rewraps::Rewraps;
use super::supply::{Supply, SupplyFacts};
use super::wait::{self, Grant, Need};
use super::{KeyError, KeyProvider, ProviderReport, WrapContext, describe_recipient, same_key};
use crate::crypto::wrap::Purpose;
use crate::crypto::{DataKey, Secret, VolumeKey, random_array};
use crate::format::header::{KeySlot, Recipient};
use crate::format::{DataKeyId, VolumeId};
use parking_lot::{Condvar, Mutex, RwLock};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

/// Data keys kept unwrapped: half a megabyte of locked memory.
const CACHED_KEYS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(16 * 1024 - 1);
/// Data keys made ahead when a KMS makes them.
const AHEAD: usize = 1;

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
    /// Tried before the others.
    pub preferred: bool,
}

/// How long keys are used without asking.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lifetimes {
    /// A cached data key of a KMS is confirmed again after this.
    pub ttl: Duration,
    /// Keys at hand serve on for so long after the last answer of the KMS.
    pub grace: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(3600), grace: Duration::from_secs(3600) }
    }
}

/// What a keyring is made of.
pub struct Parts {
    /// The volume.
    pub volume: VolumeId,
    /// New files that share a data key.
    pub files_per_data_key: u32,
    /// In the descriptor's order.
    pub members: Vec<Member>,
    /// Wrapped copies of the volume key.
    pub volume_keys: Vec<Recipient>,
    /// How long keys are used without asking.
    pub lifetimes: Lifetimes,
    /// The time.
    pub now: Clock,
}

/// Providers, cache and supply of one unlocked volume. Thread-safe.
pub struct Keyring(Arc<Shared>);

struct Shared {
    volume: VolumeId,
    /// Replaced as a whole.
    recipients: RwLock<Arc<Recipients>>,
    cache: Cache,
    supply: Supply,
    rewraps: Rewraps,
    now: Clock,
    grace: Duration,
    /// When a KMS last answered.
    contact: Mutex<Duration>,
    /// Why nothing is handed out, if so.
    closed: RwLock<Option<KeyError>>,
    /// Somebody was told no.
    alarm: Mutex<bool>,
    alarmed: Condvar,
}

/// The keyring at a glance.
#[derive(Clone, Debug)]
pub struct KeyFacts {
    /// One for each recipient with a remote provider.
    pub providers: Vec<ProviderReport>,
    /// Unwrapped data keys.
    pub cache: CacheFacts,
    /// Keys for new files.
    pub supply: SupplyFacts,
    /// Since a KMS last answered; none if no KMS is needed.
    pub contact: Option<Duration>,
    /// Why nothing is handed out, if so.
    pub closed: Option<String>,
}

impl Keyring {
    /// A keyring for the recipients of a descriptor that needs no KMS.
    pub fn new(volume: VolumeId, files_per_data_key: u32, members: Vec<Member>) -> Self {
        Self::from_parts(Parts {
            volume,
            files_per_data_key,
            members,
            volume_keys: vec![],
            lifetimes: Lifetimes::default(),
            now: boot_clock(),
        })
    }

    /// A keyring just unlocked: the KMS, if there is one, has answered now.
    pub fn from_parts(parts: Parts) -> Self {
        let Parts { volume, files_per_data_key, members, volume_keys, lifetimes, now } = parts;
        let remote = members.iter().any(Member::is_remote);
        let ttl = remote.then_some(lifetimes.ttl);
        let cache = Cache::new(CACHED_KEYS, ttl, now.clone());
        let supply = Supply::new(files_per_data_key, if remote { AHEAD } else { 0 }, now.clone());
        let shared = Shared {
            volume,
            recipients: RwLock::new(Arc::new(Recipients::new(members, volume_keys))),
            cache,
            supply,
            rewraps: Rewraps::new(),
            contact: Mutex::new(now()),
            now,
            grace: lifetimes.grace,
            closed: RwLock::default(),
            alarm: Mutex::default(),
            alarmed: Condvar::new(),
        };
        Self(Arc::new(shared))
    }

    /// Unwraps (or finds in the cache) the data key of a slot; refuses recipients the descriptor
    /// does not allow.
    pub fn data_key(&self, slot: &KeySlot) -> Result<Arc<DataKey>, KeyError> {
        self.0.data_key(slot, wait::may_wait())
    }

    /// The data key for one more new file; shared by `files_per_data_key` files and at most one
    /// hour. If no file comes of it, [`Self::unused`].
    pub fn for_new_file(&self) -> Result<NewDataKey, KeyError> {
        loop {
            let new = self.one_for_new_file()?;
            // Made before the recipients changed.
            if self.is_current(&new.slot) {
                return Ok(new);
            }
        }
    }

    fn one_for_new_file(&self) -> Result<NewDataKey, KeyError> {
        self.0.is_open()?;
        if let Some(key) = wait::granted_new().or_else(|| self.0.supply.try_take()) {
            self.fill_supply();
            return Ok(key);
        }
        self.fill_supply();
        if !wait::may_wait() && self.0.who().any_remote() {
            return Err(KeyError::WouldWait(Box::new(Need::New)));
        }
        self.0.supply.take(|| self.0.make_data_key())
    }

    /// Is a slot's key wrapped for exactly the volume's present recipients?
    pub fn is_current(&self, slot: &KeySlot) -> bool {
        self.0.who().are_right(&slot.recipients)
    }

    /// Goes on with the recipients of another keyring of the same volume. Keys at hand stay; those
    /// made ahead are for the recipients before, and are dropped.
    pub fn adopt(&self, other: &Keyring) {
        *self.0.recipients.write() = other.0.who();
        self.0.supply.clear();
        self.0.rewraps.clear();
        *self.0.contact.lock() = (self.0.now)();
        self.fill_supply();
    }

    /// Takes back a key no file came of.
    pub fn unused(&self, key: NewDataKey) {
        self.0.supply.give_back(key);
    }

    /// Waits for what an operation could not go on without.
    pub fn grant(&self, need: &Need) -> Result<Grant, KeyError> {
        match need {
            Need::Unwrapped(slot) => {
                let who = self.0.who();
                let (name, _) = self.0.named(&who, slot)?;
                Ok(Grant::Unwrapped(name, self.0.data_key(slot, true)?))
            }
            Need::New => {
                self.0.is_open()?;
                self.0.supply.take(|| self.0.make_data_key()).map(Grant::New)
            }
        }
    }

    /// Unwraps a key that may be asked for soon, unless somebody else is at it: files side by side
    /// share keys, and whoever waits with the others asks for no other one.
    pub fn look_ahead(&self, slot: &KeySlot) {
        let who = self.0.who();
        if self.0.named(&who, slot).is_ok_and(|(name, _)| !self.0.cache.expects(&name)) {
            let _ = self.0.data_key(slot, true);
        }
    }

    /// Is looking ahead of use, and is there room for it now?
    pub fn has_spare(&self) -> bool {
        let who = self.0.who();
        who.first_way().is_some_and(|provider| provider.is_remote() && provider.has_spare())
            && self.0.closed.read().is_none()
    }

    /// Begins to make the keys for new files that will be wanted.
    pub fn fill_supply(&self) {
        while let Some(order) = self.0.supply.order() {
            let shared = self.0.clone();
            let work = move || {
                let mut next = Some(order);
                while let Some(order) = next {
                    let making = shared.supply.carry_out(order);
                    let made = shared.is_open().and_then(|()| shared.make_data_key());
                    making.end(made.ok());
                    next = shared.supply.order();
                }
            };
            let thread = std::thread::Builder::new().name("kmsfs-supply".into());
            if thread.spawn(work).is_err() {
                return self.0.supply.carry_out(order).end(None);
            }
        }
    }

    /// The same data key wrapped for exactly the volume's present recipients. `None` when the slot
    /// already is. Copies that are right already are kept, a copy for one KMS key becomes that for
    /// another without anybody seeing the key, and slots that share a data key get the same new ones.
    pub fn rewrap(&self, slot: &KeySlot) -> Result<Option<KeySlot>, KeyError> {
        let who = self.0.who();
        if who.are_right(&slot.recipients) {
            return Ok(None);
        }
        let context = self.0.context(slot.data_key_id);
        let copy_for = |wanted: &Recipient| {
            if let Some(copy) = slot.recipients.iter().find(|copy| is_for(copy, wanted)) {
                return Ok(copy.clone());
            }
            match self.0.reencrypted(&who, wanted, &context, &slot.recipients) {
                Some(copy) => copy,
                None => self.0.wrap_for(&who, wanted, &context, &self.data_key(slot)?.0),
            }
        };
        let make = || who.wrap_order.iter().map(copy_for).collect();
        let recipients = self.0.rewraps.get_or_make(&context, &slot.recipients, make)?;
        Ok(Some(KeySlot { recipients, ..slot.clone() }))
    }

    /// Is there a KMS among those that are asked?
    pub fn asks_kms(&self) -> bool {
        self.0.who().any_remote()
    }

    /// Can new files be given keys? `Err` says which recipient is missing.
    pub fn can_create(&self) -> Result<(), KeyError> {
        self.0.who().can_create()
    }

    /// May the owner of the volume's key, by switching it off, switch the volume off? Only if a KMS is
    /// asked first.
    pub fn is_watched(&self) -> bool {
        let who = self.0.who();
        !who.volume_keys.is_empty() && who.first_way().is_some_and(|provider| provider.is_remote())
    }

    /// Asks for the volume key again.
    pub fn probe(&self) -> Result<VolumeKey, KeyError> {
        self.0.unwrap_volume_key()
    }

    /// Time since a KMS answered, and whether that is longer than keys may serve on.
    pub fn silence(&self) -> (Duration, bool) {
        self.0.silence()
    }

    /// Waits for the next time to probe: `interval`, or until somebody was told no.
    pub fn wait_for_alarm(&self, interval: Duration) {
        let mut alarm = self.0.alarm.lock();
        if !*alarm {
            self.0.alarmed.wait_for(&mut alarm, interval);
        }
        *alarm = false;
    }

    /// Ends [`Self::wait_for_alarm`].
    pub fn wake(&self) {
        self.0.raise_alarm();
    }

    /// From now on nothing is handed out but `why`.
    pub fn close(&self, why: KeyError) {
        *self.0.closed.write() = Some(why);
    }

    /// Forgets every data key it holds, and what the providers remember.
    pub fn purge(&self) {
        self.0.supply.clear();
        self.0.cache.clear();
        let who = self.0.who();
        who.members.iter().filter_map(|m| m.provider.as_ref()).for_each(|p| p.forget());
    }

    /// Hands out keys again.
    pub fn open(&self) {
        *self.0.closed.write() = None;
        self.fill_supply();
    }

    /// The keyring at a glance.
    pub fn facts(&self) -> KeyFacts {
        let shared = &self.0;
        let who = shared.who();
        let providers = who.members.iter().filter_map(|member| member.provider.as_ref());
        KeyFacts {
            providers: providers.filter_map(|provider| provider.report()).collect(),
            cache: shared.cache.facts(),
            supply: shared.supply.facts(),
            contact: who.any_remote().then(|| shared.silence().0),
            closed: shared.closed.read().as_ref().map(ToString::to_string),
        }
    }
}

impl Member {
    pub(super) fn is_remote(&self) -> bool {
        self.provider.as_ref().is_some_and(|provider| provider.is_remote())
    }
}

impl Shared {
    fn is_open(&self) -> Result<(), KeyError> {
        self.closed.read().clone().map_or(Ok(()), Err)
    }

    /// The present recipients.
    fn who(&self) -> Arc<Recipients> {
        self.recipients.read().clone()
    }

    fn context(&self, id: DataKeyId) -> WrapContext {
        WrapContext { volume: self.volume, purpose: Purpose::Data(id) }
    }

    fn data_key(&self, slot: &KeySlot, may_wait: bool) -> Result<Arc<DataKey>, KeyError> {
        let who = self.who();
        let (name, copies) = self.named(&who, slot)?;
        let purges = self.cache.purges();
        self.is_open()?;
        if let Some(key) = wait::granted(&name).or_else(|| self.cache.get(&name)) {
            return Ok(key);
        }
        if !may_wait && copies.iter().any(|(_, member)| member.is_remote()) {
            return Err(KeyError::WouldWait(Box::new(Need::Unwrapped(slot.clone()))));
        }
        let context = self.context(slot.data_key_id);
        let key = self.cache.get_or_unwrap(
            (name, purges),
            || !self.silence().1,
            || self.unwrap_first(&context, &copies).map(|key| Arc::new(DataKey(key))),
        );
        let key = self.heard(key)?;
        // Closed meanwhile: those who closed it do not know of this one.
        self.is_open()?;
        Ok(key)
    }

    /// The slot's copies that may be asked for, in the order they are tried, and their name.
    fn named<'a>(
        &self,
        who: &'a Recipients,
        slot: &'a KeySlot,
    ) -> Result<(CacheKey, Ways<'a>), KeyError> {
        let copies = who.in_order(&slot.recipients);
        if copies.is_empty() {
            let names: Vec<_> = slot.recipients.iter().map(describe_recipient).collect();
            return Err(KeyError::NotOurs(format!(
                "the data key is wrapped for {} only, which is not a recipient of this volume",
                names.join(", ")
            )));
        }
        let context = self.context(slot.data_key_id);
        Ok((cache::name_of(&context, copies.iter().map(|(copy, _)| *copy)), copies))
    }

    fn unwrap_volume_key(&self) -> Result<VolumeKey, KeyError> {
        let context = WrapContext { volume: self.volume, purpose: Purpose::Volume };
        let who = self.who();
        self.unwrap_first(&context, &who.in_order(&who.volume_keys)).map(VolumeKey)
    }

    /// The first copy whose provider answers; an unavailable one gives way to the next.
    fn unwrap_first(
        &self,
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
                answer => return self.noted(member, answer),
            }
        }
        if failures.len() == 1 {
            return Err(failures.remove(0));
        }
        let all: Vec<_> = failures.iter().map(ToString::to_string).collect();
        Err(KeyError::Unavailable(format!("no recipient can open the key: {}", all.join("; "))))
    }

    /// Remembers that a KMS answered.
    fn noted<T>(&self, member: &Member, answer: Result<T, KeyError>) -> Result<T, KeyError> {
        if answer.is_ok() && member.is_remote() {
            *self.contact.lock() = (self.now)();
        }
        answer
    }

    /// Lets whoever watches know of a no.
    fn heard<T>(&self, answer: Result<T, KeyError>) -> Result<T, KeyError> {
        if let Err(KeyError::Revoked(_) | KeyError::Denied(_)) = answer {
            self.raise_alarm();
        }
        answer
    }

    fn raise_alarm(&self) {
        *self.alarm.lock() = true;
        self.alarmed.notify_all();
    }

    fn silence(&self) -> (Duration, bool) {
        let silence = (self.now)().saturating_sub(*self.contact.lock());
        (silence, silence >= self.grace)
    }

    /// A copy for a recipient.
    fn wrap_for(
        &self,
        who: &Recipients,
        recipient: &Recipient,
        context: &WrapContext,
        key: &Secret<32>,
    ) -> Result<Recipient, KeyError> {
        let (member, provider) = who.provider(recipient)?;
        self.heard(self.noted(member, provider.wrap(context, key)))
    }

    /// A copy for a recipient made of another one; `None` if none of these will do.
    fn reencrypted(
        &self,
        who: &Recipients,
        recipient: &Recipient,
        context: &WrapContext,
        copies: &[Recipient],
    ) -> Option<Result<Recipient, KeyError>> {
        let (member, provider) = who.provider(recipient).ok()?;
        let mut last = None;
        for source in who.kms_copies(copies) {
            let Some(copy) = provider.reencrypt(context, source) else { continue };
            match self.noted(member, copy) {
                Ok(copy) => return Some(Ok(copy)),
                Err(error) => last = Some(Err(error)),
            }
        }
        last.map(|error| self.heard(error))
    }

    fn make_data_key(&self) -> Result<NewDataKey, KeyError> {
        let purges = self.cache.purges();
        let who = self.who();
        who.can_create()?;
        let id = DataKeyId(random_array());
        let context = self.context(id);
        // A KMS makes the key if there is one; the others wrap it.
        let maker =
            who.wrap_order.iter().position(|r| who.member(r).is_some_and(Member::is_remote));
        let maker = who.wrap_order.get(maker.unwrap_or(0)).ok_or_else(|| {
            KeyError::NotOurs("the volume has no recipient to wrap keys for".into())
        })?;
        let (member, provider) = who.provider(maker)?;
        let (key, made) = self.heard(self.noted(member, provider.generate(&context)))?;
        let copy_for = |recipient: &Recipient| match same_key(recipient, maker) {
            true => Ok(made.clone()),
            false => self.wrap_for(&who, recipient, &context, &key),
        };
        let recipients = who.wrap_order.iter().map(copy_for).collect::<Result<_, _>>()?;
        let key = Arc::new(DataKey(key));
        let slot = KeySlot { data_key_id: id, commitment: [0; 32], recipients };
        let (name, _) = self.named(&who, &slot)?;
        self.cache.insert(name, key.clone(), purges);
        Ok(NewDataKey { key, slot })
    }
}

#[cfg(test)]
mod tests;
