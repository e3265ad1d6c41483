use super::*;
use crate::crypto::Secret;
use crate::format::VolumeId;
use crate::format::header::{Recipient, RecipientKind};
use crate::keys::clock::hand_clock;
use crate::keys::keyring::{Lifetimes, Member, Parts};
use crate::keys::local::LocalMaster;
use crate::keys::{KeyProvider, WrapContext};
use parking_lot::Mutex;
use std::time::Duration;

const VOLUME: VolumeId = VolumeId([7; 16]);

/// A remote provider that answers as it is told.
struct Remote {
    inner: LocalMaster,
    failure: Mutex<Option<KeyError>>,
    unwraps: Mutex<u32>,
}

impl Remote {
    fn told<T>(&self, answer: impl FnOnce() -> Result<T, KeyError>) -> Result<T, KeyError> {
        assert!(may_wait(), "asked where nobody may wait");
        self.failure.lock().clone().map_or_else(answer, Err)
    }
}

impl KeyProvider for Remote {
    fn recipient(&self) -> Recipient {
        let key_ref = b"arn:aws:kms:r:1:key/a".to_vec();
        Recipient { kind: RecipientKind::AwsKms, epoch: 1, key_ref, wrapped: vec![] }
    }
    fn describe(&self) -> String {
        "the remote key".into()
    }
    fn wrap(&self, context: &WrapContext, key: &Secret<32>) -> Result<Recipient, KeyError> {
        self.told(|| {
            let wrapped = self.inner.wrap(context, key)?.wrapped;
            Ok(Recipient { wrapped, ..self.recipient() })
        })
    }
    fn unwrap(&self, context: &WrapContext, copy: &Recipient) -> Result<Secret<32>, KeyError> {
        // Not counted: what is made ahead in the background.
        *self.unwraps.lock() += 1;
        self.told(|| self.inner.unwrap(context, copy))
    }
    fn is_remote(&self) -> bool {
        true
    }
}

struct Bed {
    remote: Arc<Remote>,
    ring: Keyring,
    set: Box<dyn Fn(Duration)>,
}

fn bed() -> Bed {
    let inner = LocalMaster::new(&Secret::random(), VOLUME, 1);
    let (failure, unwraps) = (Mutex::default(), Mutex::default());
    let remote = Arc::new(Remote { inner, failure, unwraps });
    let context = WrapContext { volume: VOLUME, purpose: crate::crypto::wrap::Purpose::Volume };
    let volume_key = remote.wrap(&context, &Secret::random()).unwrap();
    *remote.unwraps.lock() = 0;
    let member =
        Member { recipient: remote.recipient(), provider: Some(remote.clone()), preferred: false };
    let (now, set) = hand_clock();
    let minute = Duration::from_secs(60);
    let ring = Keyring::from_parts(Parts {
        volume: VOLUME,
        files_per_data_key: 256,
        members: vec![member],
        volume_keys: vec![volume_key],
        lifetimes: Lifetimes { ttl: minute, grace: 10 * minute },
        now,
    });
    Bed { remote, ring, set: Box::new(set) }
}

/// An operation as the file system runs them: opens a file and says so.
fn opening(bed: &Bed, slot: &KeySlot) -> Result<(), KeyError> {
    bed.ring.data_key(slot).map(drop)
}

fn need(error: &KeyError) -> Option<Need> {
    match error {
        KeyError::WouldWait(need) => Some((**need).clone()),
        _ => None,
    }
}

fn slot(bed: &Bed) -> KeySlot {
    let slot = bed.ring.for_new_file().unwrap().slot;
    bed.ring.purge();
    *bed.remote.unwraps.lock() = 0;
    slot
}

#[test]
fn where_nobody_may_wait_the_need_is_told_and_fulfilled_in_between() {
    let bed = bed();
    let slot = slot(&bed);
    let outcome = without_waiting(|| opening(&bed, &slot));
    assert_eq!(need(&outcome.unwrap_err()), Some(Need::Unwrapped(slot.clone())));
    assert_eq!(*bed.remote.unwraps.lock(), 0);
    waiting_between(&bed.ring, need, || opening(&bed, &slot)).unwrap();
    assert_eq!(*bed.remote.unwraps.lock(), 1);
    without_waiting(|| opening(&bed, &slot)).expect("known by now");
    assert!(may_wait(), "only in between");
}

#[test]
fn a_grant_holds_even_if_the_cache_forgets_it() {
    let bed = bed();
    let slot = slot(&bed);
    let forgetful = || {
        bed.ring.purge();
        opening(&bed, &slot)
    };
    waiting_between(&bed.ring, need, forgetful).unwrap();
}

#[test]
fn a_key_for_a_new_file_that_was_not_used_goes_back() {
    let bed = bed();
    let id = |key: &NewDataKey| key.slot.data_key_id;
    let made = Mutex::new(None);
    let failing = || match bed.ring.for_new_file() {
        Ok(key) => {
            *made.lock() = Some(id(&key));
            bed.ring.unused(key);
            Err(KeyError::NotOurs("no room".into()))
        }
        Err(error) => Err::<(), _>(error),
    };
    waiting_between(&bed.ring, need, failing).unwrap_err();
    let next = bed.ring.for_new_file().unwrap();
    assert_eq!(Some(id(&next)), *made.lock());
}

#[test]
fn an_error_of_the_provider_is_the_outcome() {
    let bed = bed();
    let slot = slot(&bed);
    let gone = KeyError::Unavailable("away".into());
    *bed.remote.failure.lock() = Some(gone.clone());
    assert_eq!(waiting_between(&bed.ring, need, || opening(&bed, &slot)), Err(gone));
    assert_eq!(*bed.remote.unwraps.lock(), 1);
}

#[test]
fn a_closed_keyring_hands_out_nothing_until_it_is_opened() {
    let bed = bed();
    let slot = slot(&bed);
    opening(&bed, &slot).unwrap();
    let no = KeyError::Revoked("disabled".into());
    bed.ring.close(no.clone());
    assert_eq!(opening(&bed, &slot), Err(no.clone()));
    assert_eq!(bed.ring.for_new_file().map(drop), Err(no));
    bed.ring.probe().expect("whoever watches may ask");
    bed.ring.open();
    opening(&bed, &slot).unwrap();
}

#[test]
fn the_grace_counts_from_the_last_answer() {
    let bed = bed();
    let slot = slot(&bed);
    opening(&bed, &slot).unwrap();
    let minute = Duration::from_secs(60);
    (bed.set)(5 * minute);
    bed.ring.probe().unwrap();
    *bed.remote.failure.lock() = Some(KeyError::Unavailable("away".into()));
    (bed.set)(14 * minute);
    assert_eq!(bed.ring.silence(), (9 * minute, false));
    opening(&bed, &slot).expect("old, but within the grace");
    (bed.set)(15 * minute);
    assert_eq!(bed.ring.silence(), (10 * minute, true));
    assert!(matches!(opening(&bed, &slot), Err(KeyError::Unavailable(_))));
}

#[test]
fn a_no_wakes_whoever_watches() {
    let bed = bed();
    let slot = slot(&bed);
    *bed.remote.failure.lock() = Some(KeyError::Denied("not you".into()));
    opening(&bed, &slot).unwrap_err();
    // Or this would take an hour.
    bed.ring.wait_for_alarm(Duration::from_secs(3600));
    assert!(bed.ring.is_watched());
}
