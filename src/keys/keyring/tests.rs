use super::*;
use crate::crypto::hpke::Identity;
use crate::format::header::RecipientKind;
use crate::keys::local::LocalMaster;
use crate::keys::x25519::X25519;
use std::sync::atomic::{AtomicU32, Ordering};

const VOLUME: VolumeId = VolumeId([7; 16]);

/// A provider that counts its unwraps and can be told to fail.
struct Counting {
    inner: LocalMaster,
    name: Recipient,
    unwraps: AtomicU32,
    wraps: AtomicU32,
    failure: Option<KeyError>,
    remote: bool,
}

impl KeyProvider for Counting {
    fn is_remote(&self) -> bool {
        self.remote
    }
    fn recipient(&self) -> Recipient {
        self.name.clone()
    }
    fn describe(&self) -> String {
        describe_recipient(&self.name)
    }
    fn wrap(&self, context: &WrapContext, key: &Secret<32>) -> Result<Recipient, KeyError> {
        self.wraps.fetch_add(1, Ordering::SeqCst);
        let wrapped = self.inner.wrap(context, key)?.wrapped;
        Ok(Recipient { wrapped, ..self.name.clone() })
    }
    fn unwrap(&self, context: &WrapContext, copy: &Recipient) -> Result<Secret<32>, KeyError> {
        self.unwraps.fetch_add(1, Ordering::SeqCst);
        match &self.failure {
            Some(error) => Err(error.clone()),
            None => self.inner.unwrap(context, copy),
        }
    }
}

fn counting(arn: &str, secret: u8, failure: Option<KeyError>) -> Arc<Counting> {
    let master = Secret::fill_with(|out| out.fill(secret));
    Arc::new(Counting {
        inner: LocalMaster::new(&master, VOLUME, 1),
        name: Recipient {
            kind: RecipientKind::AwsKms,
            epoch: 1,
            key_ref: arn.into(),
            wrapped: vec![],
        },
        unwraps: AtomicU32::new(0),
        wraps: AtomicU32::new(0),
        failure,
        remote: false,
    })
}

fn member(provider: Arc<dyn KeyProvider>) -> Member {
    Member { recipient: provider.recipient(), provider: Some(provider), preferred: false }
}

fn ring(members: Vec<Member>) -> Keyring {
    Keyring::new(VOLUME, 256, members)
}

/// A slot wrapped for these providers' keys, made by other instances of them.
fn slot_for(names: &[(&str, u8)]) -> (Arc<DataKey>, KeySlot) {
    let members = names.iter().map(|(arn, secret)| member(counting(arn, *secret, None))).collect();
    let new = ring(members).for_new_file().expect("all at hand");
    (new.key, new.slot)
}

#[test]
fn sixty_four_openers_of_one_file_make_one_call() {
    let provider = counting("a", 1, None);
    let ring = ring(vec![member(provider.clone())]);
    let (key, slot) = slot_for(&[("a", 1)]);
    std::thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                let found = ring.data_key(&slot).expect("ours");
                assert_eq!(found.0.expose(), key.0.expose());
            });
        }
    });
    assert_eq!(provider.unwraps.load(Ordering::SeqCst), 1);
}

#[test]
fn new_keys_are_known_without_an_unwrap() {
    let provider = counting("a", 1, None);
    let ring = ring(vec![member(provider.clone())]);
    let new = ring.for_new_file().expect("made");
    assert_eq!(new.slot.commitment, [0; 32]);
    let mut slot = new.slot.clone();
    slot.commitment = [9; 32];
    assert_eq!(ring.data_key(&slot).expect("cached").0.expose(), new.key.0.expose());
    assert_eq!(provider.unwraps.load(Ordering::SeqCst), 0);
    ring.purge();
    assert_eq!(ring.data_key(&slot).expect("unwrapped").0.expose(), new.key.0.expose());
    assert_eq!(provider.unwraps.load(Ordering::SeqCst), 1);
    assert_ne!(ring.for_new_file().expect("made").slot.data_key_id, new.slot.data_key_id);
}

#[test]
fn an_unavailable_recipient_gives_way_and_a_revoked_one_does_not() {
    let (key, slot) = slot_for(&[("a", 1), ("b", 2)]);
    let cases = [
        (KeyError::Unavailable("down".into()), true),
        (KeyError::Throttled("slow".into()), true),
        (KeyError::Revoked("disabled".into()), false),
        (KeyError::Tampered("bad".into()), false),
        (KeyError::Misconfigured("no".into()), false),
    ];
    for (failure, falls) in cases {
        let (a, b) = (counting("a", 1, Some(failure.clone())), counting("b", 2, None));
        let ring = ring(vec![member(a.clone()), member(b.clone())]);
        match ring.data_key(&slot) {
            Ok(found) => assert!(falls && found.0.expose() == key.0.expose(), "{failure:?}"),
            Err(error) => assert!(!falls && error == failure, "{failure:?}"),
        }
        assert_eq!(a.unwraps.load(Ordering::SeqCst), 1);
        assert_eq!(b.unwraps.load(Ordering::SeqCst), u32::from(falls));
    }
}

#[test]
fn recipients_the_descriptor_does_not_allow_are_never_asked() {
    let (_, slot) = slot_for(&[("b", 2), ("a", 1)]);
    let (a, b) = (counting("a", 1, None), counting("b", 2, None));
    let ring_a = ring(vec![member(a.clone())]);
    assert!(ring_a.data_key(&slot).is_ok());
    assert_eq!(a.unwraps.load(Ordering::SeqCst), 1);
    let ring_c = ring(vec![member(counting("c", 1, None))]);
    match ring_c.data_key(&slot) {
        Err(KeyError::NotOurs(text)) => assert!(text.contains("b, a"), "{text}"),
        other => panic!("{:?}", other.map(drop)),
    }
    assert_eq!(b.unwraps.load(Ordering::SeqCst), 0);
}

#[test]
fn when_nobody_answers_every_reason_is_told() {
    let (_, slot) = slot_for(&[("a", 1), ("b", 2)]);
    let a = counting("a", 1, Some(KeyError::Unavailable("a is down".into())));
    let b =
        Member { recipient: counting("b", 2, None).recipient(), provider: None, preferred: false };
    match ring(vec![member(a), b]).data_key(&slot) {
        Err(KeyError::Unavailable(text)) => {
            assert!(text.contains("a is down") && text.contains("the b is not at hand"), "{text}");
        }
        other => panic!("{:?}", other.map(drop)),
    }
}

#[test]
fn a_slot_moved_to_another_data_key_id_or_volume_is_refused() {
    let (_, mut slot) = slot_for(&[("a", 1)]);
    let ring = ring(vec![member(counting("a", 1, None))]);
    let other = Keyring::new(VolumeId([8; 16]), 1, vec![member(counting("a", 1, None))]);
    assert!(ring.data_key(&slot).is_ok());
    assert!(matches!(other.data_key(&slot).map(drop), Err(KeyError::Tampered(_))));
    slot.data_key_id = DataKeyId([1; 16]);
    assert!(matches!(ring.data_key(&slot).map(drop), Err(KeyError::Tampered(_))));
}

#[test]
fn new_files_need_every_recipient() {
    let absent = Member { recipient: LocalMaster::name(1), provider: None, preferred: false };
    let public = X25519::public(Identity::generate().public_key(), 1);
    let ring = ring(vec![absent, member(Arc::new(public))]);
    let sentence = "the local master key is not at hand, and new files need a copy of their key \
                    for every recipient; mount with the volume's key file or passphrase to make files";
    for refused in [ring.can_create(), ring.for_new_file().map(drop)] {
        assert_eq!(refused, Err(KeyError::Unavailable(sentence.into())));
    }
}

#[test]
fn rewrap_follows_the_recipients_and_keeps_the_key() {
    let (a, b) = (counting("a", 1, None), counting("b", 2, None));
    let identity = Identity::generate();
    let public: Arc<dyn KeyProvider> = Arc::new(X25519::public(identity.public_key(), 1));
    let (key, mut slot) = slot_for(&[("a", 1), ("b", 2)]);
    slot.commitment = [3; 32];

    let same = ring(vec![member(a.clone()), member(b.clone())]);
    assert_eq!(same.rewrap(&slot), Ok(None));

    let changed = ring(vec![member(a.clone()), member(public)]);
    let new = changed.rewrap(&slot).expect("rewrapped").expect("changed");
    assert_eq!((new.data_key_id, new.commitment), (slot.data_key_id, slot.commitment));
    assert_eq!(new.recipients.len(), 2);
    assert_eq!(new.recipients[0], slot.recipients[0], "a copy that is right is kept");
    assert_eq!(changed.rewrap(&new), Ok(None));

    let alone = ring(vec![member(Arc::new(X25519::with_identity(identity, 1)))]);
    assert_eq!(alone.data_key(&new).expect("its copy").0.expose(), key.0.expose());
    let shrunk = alone.rewrap(&new).expect("rewrapped").expect("changed");
    assert_eq!(shrunk.recipients, new.recipients[1..]);
}

#[test]
fn rewrap_wraps_a_shared_key_once() {
    let (a, b) = (counting("a", 1, None), counting("b", 2, None));
    let (_, slot) = slot_for(&[("a", 1)]);
    let both = ring(vec![member(a.clone()), member(b.clone())]);
    let mut other = slot.clone();
    other.commitment = [9; 32];
    let one = both.rewrap(&slot).expect("rewrapped").expect("changed");
    let two = both.rewrap(&other).expect("rewrapped").expect("changed");
    assert_eq!((&one.recipients, two.commitment), (&two.recipients, [9; 32]));
    let [unwraps, wraps] = [&a.unwraps, &b.wraps].map(|count| count.load(Ordering::SeqCst));
    assert_eq!((unwraps, wraps), (1, 1));
}

#[test]
fn rewrap_replaces_copies_of_an_old_epoch_and_of_another_order() {
    let (_, slot) = slot_for(&[("a", 1), ("b", 2)]);
    let mut newer = member(counting("a", 1, None));
    newer.recipient.epoch = 2;
    let ring_new = ring(vec![newer, member(counting("b", 2, None))]);
    assert!(ring_new.rewrap(&slot).expect("rewrapped").is_some());
    let turned = ring(vec![member(counting("b", 2, None)), member(counting("a", 1, None))]);
    let new = turned.rewrap(&slot).expect("rewrapped").expect("changed");
    assert_eq!(new.recipients, [slot.recipients[1].clone(), slot.recipients[0].clone()]);
}

/// A keyring of these members, of which only the first few have a copy of the volume key.
fn ring_of(members: Vec<Member>, current: usize) -> Keyring {
    let volume_keys = members.iter().take(current).map(|m| m.recipient.clone()).collect();
    Keyring::from_parts(Parts {
        volume: VOLUME,
        files_per_data_key: 256,
        members,
        volume_keys,
        lifetimes: Lifetimes::default(),
        now: boot_clock(),
    })
}

#[test]
fn nothing_new_is_wrapped_for_a_key_that_has_a_successor_but_what_was_is_opened() {
    let (new, old) = (counting("arn:new", 1, None), counting("arn:old", 2, None));
    let (_, slot) = slot_for(&[("arn:old", 2)]);
    let ring = ring_of(vec![member(new.clone()), member(old.clone())], 1);
    assert!(ring.data_key(&slot).is_ok());
    assert_eq!(old.unwraps.load(Ordering::SeqCst), 1);
    let made = ring.for_new_file().expect("a key").slot;
    assert_eq!(made.recipients.len(), 1);
    assert!(same_key(&made.recipients[0], &new.name) && ring.is_current(&made));
    let moved = ring.rewrap(&slot).expect("an answer").expect("a change");
    assert!(ring.is_current(&moved) && !ring.is_current(&slot));
    assert_eq!(moved.data_key_id, slot.data_key_id);
}

#[test]
fn keys_made_ahead_for_others_are_not_handed_out() {
    let (new, old) = (counting("arn:new", 1, None), counting("arn:old", 2, None));
    let ring = ring_of(vec![member(old.clone())], 1);
    let before = ring.for_new_file().expect("a key");
    ring.adopt(&ring_of(vec![member(new), member(old)], 1));
    assert!(!ring.is_current(&before.slot));
    ring.unused(before.clone());
    let after = ring.for_new_file().expect("a key");
    assert!(ring.is_current(&after.slot));
    assert_ne!(before.slot.data_key_id, after.slot.data_key_id);
    // What is open goes on.
    assert!(ring.data_key(&before.slot).is_ok());
}
