use super::*;
use crate::format::descriptor::{MasterKdf, NameMode};
use crate::keys::keyfile::{create_identity, create_keyfile};
use crate::keys::local::LocalMaster;
use crate::keys::x25519::X25519;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;

pub(in crate::keys) const CHEAP: Argon2Cost = Argon2Cost { m_kib: 64, t: 1, p: 1 };
const VOLUME: VolumeId = VolumeId([9; 16]);

pub(in crate::keys) fn params() -> Params {
    let names = NameMode::Encrypted;
    Params { header_blocks: 1, names, files_per_data_key: 4, created: 0, generation: 1 }
}

pub(in crate::keys) fn dir() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// Options whose prompt answers `text`.
pub(in crate::keys) fn typed(text: &'static str) -> UnlockOptions {
    UnlockOptions {
        prompt: Some(Box::new(move |_| Ok(SecretBytes::new(text.into())))),
        ..Default::default()
    }
}

pub(in crate::keys) fn make(key: &KeySpec, to: &[KeySpec], options: &UnlockOptions) -> Vec<u8> {
    create_with_cost(VOLUME, params(), key, to, options, CHEAP).expect("a descriptor")
}

pub(in crate::keys) fn key_error<T>(result: Result<T, UnlockError>) -> KeyError {
    match result {
        Err(UnlockError::Key(error)) => error,
        Err(other) => panic!("not about a key: {other:?}"),
        Ok(_) => panic!("accepted"),
    }
}

#[test]
fn key_specs_are_read_as_documented() {
    let hex = "0f".repeat(32);
    assert_eq!("passphrase".parse(), Ok(KeySpec::Passphrase));
    assert_eq!("keyfile:/a:b".parse(), Ok(KeySpec::Keyfile("/a:b".into())));
    assert_eq!(format!("x25519:{hex}").parse(), Ok(KeySpec::X25519([15; 32])));
    for bad in ["", "keyfile", "keyfile:", "x25519:", "x25519:0f", "Passphrase", "aws-kms:arn"] {
        assert!(matches!(bad.parse::<KeySpec>(), Err(KeyError::Misconfigured(_))), "{bad}");
    }
    assert!(format!("x25519:{hex}0").parse::<KeySpec>().is_err());
}

#[test]
fn a_key_file_is_made_remembered_and_opens_the_volume() {
    let dir = dir();
    let path = dir.path().join("key");
    let bytes = make(&KeySpec::Keyfile(path.clone()), &[], &UnlockOptions::default());
    assert_eq!(path.metadata().expect("made").permissions().mode() & 0o777, 0o600);
    let (descriptor, unlocked) = unlock(&bytes, &UnlockOptions::default()).expect("remembered");
    assert_eq!(descriptor.volume, VOLUME);
    assert_eq!(descriptor.masters[0].hint, path.to_str().expect("UTF-8"));
    let new = unlocked.keyring.for_new_file().expect("a data key");

    let moved = dir.path().join("elsewhere");
    std::fs::rename(&path, &moved).expect("rename");
    match key_error(unlock(&bytes, &UnlockOptions::default())) {
        KeyError::Misconfigured(text) => assert!(text.contains("does not exist"), "{text}"),
        other => panic!("{other:?}"),
    }
    let options = UnlockOptions { keyfile: Some(moved), ..Default::default() };
    let (_, again) = unlock(&bytes, &options).expect("named");
    assert_eq!(again.keys.header_mac(b"x"), unlocked.keys.header_mac(b"x"));
    let opened = again.keyring.data_key(&new.slot).expect("the same master");
    assert_eq!(opened.0.expose(), new.key.0.expose());
}

#[test]
fn an_existing_key_file_is_used_not_replaced() {
    let dir = dir();
    let path = dir.path().join("key");
    create_keyfile(&path).expect("made");
    let before = std::fs::read(&path).expect("read");
    let bytes = make(&KeySpec::Keyfile(path.clone()), &[], &UnlockOptions::default());
    assert_eq!(std::fs::read(&path).expect("read"), before);
    assert!(unlock(&bytes, &UnlockOptions::default()).is_ok());
}

#[test]
fn the_wrong_key_file_is_named() {
    let dir = dir();
    let bytes = make(&KeySpec::Keyfile(dir.path().join("key")), &[], &UnlockOptions::default());
    let other = dir.path().join("other");
    create_keyfile(&other).expect("made");
    let options = UnlockOptions { keyfile: Some(other.clone()), ..Default::default() };
    let expected = format!("{} is not a key file of this volume", other.display());
    assert_eq!(key_error(unlock(&bytes, &options)), KeyError::WrongKey(expected));
}

#[test]
fn a_passphrase_opens_and_a_wrong_one_says_so() {
    let bytes = make(&KeySpec::Passphrase, &[], &typed("open sesame"));
    assert!(unlock(&bytes, &typed("open sesame")).is_ok());
    for wrong in ["open sesamE", "", "open sesame\n"] {
        let error = key_error(unlock(&bytes, &typed(wrong)));
        assert_eq!(error, KeyError::WrongKey("wrong passphrase".into()));
    }
    let dir = dir();
    let file = dir.path().join("pass");
    std::fs::write(&file, "open sesame\n").expect("write");
    let options = UnlockOptions { passphrase_file: Some(file), ..Default::default() };
    assert!(unlock(&bytes, &options).is_ok());
    let nothing = key_error(unlock(&bytes, &UnlockOptions::default()));
    assert!(matches!(nothing, KeyError::Misconfigured(text) if text.contains("--passphrase-file")));
    let silent = UnlockOptions {
        prompt: Some(Box::new(|_| Err(std::io::Error::other("no terminal")))),
        ..Default::default()
    };
    let silent = key_error(unlock(&bytes, &silent));
    assert!(matches!(silent, KeyError::Misconfigured(text) if text.contains("no terminal")));
}

#[test]
fn a_passphrase_is_asked_for_once() {
    let bytes = make(&KeySpec::Passphrase, &[], &typed("a"));
    let asked = std::sync::Arc::new(AtomicU32::new(0));
    let count = asked.clone();
    let options = UnlockOptions {
        prompt: Some(Box::new(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(SecretBytes::new(b"a".to_vec()))
        })),
        ..Default::default()
    };
    assert!(unlock(&bytes, &options).is_ok());
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[test]
fn the_wrong_kind_of_key_is_explained() {
    let dir = dir();
    let path = dir.path().join("key");
    create_keyfile(&path).expect("made");
    let by_passphrase = make(&KeySpec::Passphrase, &[], &typed("a"));
    let options = UnlockOptions { keyfile: Some(path.clone()), ..Default::default() };
    assert!(matches!(key_error(unlock(&by_passphrase, &options)), KeyError::Misconfigured(_)));

    let by_file = make(&KeySpec::Keyfile(path), &[], &UnlockOptions::default());
    let pass = dir.path().join("pass");
    std::fs::write(&pass, "a").expect("write");
    let options = UnlockOptions { passphrase_file: Some(pass), ..Default::default() };
    assert!(matches!(key_error(unlock(&by_file, &options)), KeyError::Misconfigured(_)));
}

#[test]
fn an_empty_passphrase_makes_no_volume() {
    let made = create_with_cost(VOLUME, params(), &KeySpec::Passphrase, &[], &typed(""), CHEAP);
    assert!(matches!(key_error(made), KeyError::Misconfigured(_)));
}

#[test]
fn the_default_cost_is_the_second_recommendation_of_rfc_9106() {
    let bytes = create(VOLUME, params(), &KeySpec::Passphrase, &[], &typed("a")).expect("made");
    let (descriptor, _) = Descriptor::parse(&bytes).expect("valid");
    let expected = MasterKdf::Passphrase { m_kib: 65536, t: 3, p: 4 };
    assert_eq!(descriptor.masters[0].kdf, expected);
}

#[test]
fn every_altered_byte_is_refused() {
    let dir = dir();
    let identity = create_identity(&dir.path().join("id")).expect("made").public_key();
    let key = KeySpec::Keyfile(dir.path().join("key"));
    let bytes = make(&key, &[KeySpec::X25519(identity)], &UnlockOptions::default());
    let options = UnlockOptions { keyfile: Some(dir.path().join("key")), ..Default::default() };
    assert!(unlock(&bytes, &options).is_ok());
    for i in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[i] ^= 1;
        assert!(unlock(&bad, &options).is_err(), "byte {i} of {}", bytes.len());
    }
}

#[test]
fn a_descriptor_altered_without_its_key_is_not_authentic() {
    let bytes = make(&KeySpec::Passphrase, &[], &typed("a"));
    let (mut descriptor, _) = Descriptor::parse(&bytes).expect("valid");
    descriptor.params.files_per_data_key = 65536;
    let forged = descriptor.encode(|_| [0; 32]);
    let result = unlock(&forged, &typed("a"));
    assert!(matches!(result.map(drop), Err(UnlockError::Format(FormatError::Mac))));
}

#[test]
fn an_identity_alone_opens_files_but_makes_none() {
    let dir = dir();
    let id = dir.path().join("id");
    let public = create_identity(&id).expect("made").public_key();
    let bytes = make(&KeySpec::Passphrase, &[KeySpec::X25519(public)], &typed("a"));
    let (_, usual) = unlock(&bytes, &typed("a")).expect("passphrase");
    let new = usual.keyring.for_new_file().expect("a data key");
    assert_eq!(new.slot.recipients.len(), 2);

    let alone = UnlockOptions { identity: Some(id.clone()), ..Default::default() };
    let (_, broken) = unlock(&bytes, &alone).expect("break-glass");
    assert_eq!(broken.keys.header_mac(b"x"), usual.keys.header_mac(b"x"));
    let opened = broken.keyring.data_key(&new.slot).expect("its copy");
    assert_eq!(opened.0.expose(), new.key.0.expose());
    let refused = broken.keyring.for_new_file().map(drop);
    assert!(matches!(refused, Err(KeyError::Unavailable(text)) if text.contains("local master")));

    let pass = dir.path().join("pass");
    std::fs::write(&pass, "a").expect("write");
    let both = UnlockOptions { passphrase_file: Some(pass), ..alone };
    let (_, both) = unlock(&bytes, &both).expect("both");
    assert!(both.keyring.for_new_file().is_ok());
}

#[test]
fn an_identity_of_another_volume_is_refused() {
    let dir = dir();
    let id = dir.path().join("id");
    create_identity(&id).expect("made");
    let bytes = make(&KeySpec::Passphrase, &[], &typed("a"));
    let options = UnlockOptions { identity: Some(id), ..typed("a") };
    let error = key_error(unlock(&bytes, &options));
    assert!(matches!(error, KeyError::NotOurs(text) if text.contains("identity file")));
}

#[test]
fn a_remembered_key_file_that_is_gone_leads_to_the_passphrase() {
    let dir = dir();
    let path = dir.path().join("key");
    let bytes = make(&KeySpec::Keyfile(path.clone()), &[], &UnlockOptions::default());
    let mut editor = crate::keys::Editor::open(&bytes, &UnlockOptions::default()).expect("opens");
    editor.add_passphrase(&SecretBytes::new(b"spare".to_vec()), CHEAP).expect("added");
    let bytes = editor.finish().expect("valid");
    assert!(unlock(&bytes, &UnlockOptions::default()).is_ok(), "the key file alone is enough");
    std::fs::remove_file(path).expect("removed");
    assert!(unlock(&bytes, &typed("spare")).is_ok());
    assert!(matches!(key_error(unlock(&bytes, &typed("no"))), KeyError::WrongKey(_)));
    match key_error(unlock(&bytes, &UnlockOptions::default())) {
        KeyError::Misconfigured(text) => {
            assert!(
                text.contains("does not exist") && text.contains("--passphrase-file"),
                "{text}"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_that_holds_keys_can_be_printed_or_copied() {
    crate::crypto::testing::assert_neither_debug_nor_clone!(
        Unlocked,
        UnlockOptions,
        Keyring,
        crate::keys::Editor,
        LocalMaster,
        X25519,
        crate::keys::cache::Cache,
    );
}

#[test]
fn a_slot_nobody_can_afford_hides_no_other() {
    let bytes = make(&KeySpec::Passphrase, &[], &typed("a"));
    let (mut descriptor, _) = Descriptor::parse(&bytes).expect("valid");
    let mut costly = descriptor.masters[0].clone();
    costly.kdf = MasterKdf::Passphrase { m_kib: u32::MAX, t: 1, p: 1 };
    descriptor.masters.insert(0, costly.clone());
    let opened = super::super::master::open(&descriptor, &typed("a")).map(|opened| opened.slot);
    assert_eq!(opened, Ok(1));
    let wrong = super::super::master::open(&descriptor, &typed("b")).map(|opened| opened.slot);
    assert!(matches!(wrong, Err(KeyError::Misconfigured(text)) if text.contains("Argon2id")));
}

#[test]
fn a_volume_or_descriptor_that_is_not_expected_is_refused_before_a_secret_is_asked_for() {
    let bytes = make(&KeySpec::Passphrase, &[], &typed("a"));
    let opens = |volume, generation| {
        let asked = Arc::new(AtomicU32::new(0));
        let count = asked.clone();
        let prompt = move |_: &str| {
            count.fetch_add(1, Ordering::Relaxed);
            Ok(SecretBytes::new(b"a".to_vec()))
        };
        let expect = Expect { volume, generation, ..Expect::default() };
        let options =
            UnlockOptions { prompt: Some(Box::new(prompt)), expect, ..Default::default() };
        (unlock(&bytes, &options).map(drop), asked.load(Ordering::Relaxed))
    };
    for (volume, generation) in [(None, None), (Some(VOLUME.0), None), (None, Some(1))] {
        assert!(matches!(opens(volume, generation), (Ok(()), 1)));
    }
    for (volume, generation, says) in
        [(Some([8; 16]), None, "09090909"), (Some(VOLUME.0), Some(2), "older copy")]
    {
        let (refused, asked) = opens(volume, generation);
        assert_eq!(asked, 0);
        assert!(matches!(refused, Err(UnlockError::Unexpected(text)) if text.contains(says)));
    }
}
