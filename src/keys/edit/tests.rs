use super::*;
use crate::keys::keyfile::create_identity;
use crate::keys::unlock::tests::{CHEAP, dir, key_error, make, params, typed};
use crate::keys::unlock::{create_with_cost, unlock};

fn passphrase(text: &str) -> SecretBytes {
    SecretBytes::new(text.into())
}

fn opens(bytes: &[u8], options: &UnlockOptions) -> bool {
    unlock(bytes, options).is_ok()
}

#[test]
fn a_new_passphrase_replaces_the_old_one_and_changes_nothing_else() {
    let bytes = make(&KeySpec::Passphrase, &[], &typed("old"));
    let (before, usual) = unlock(&bytes, &typed("old")).expect("old");
    let new_file = usual.keyring.for_new_file().expect("a data key");

    let mut editor = Editor::open(&bytes, &typed("old")).expect("opens");
    editor.change_passphrase(&passphrase("new"), CHEAP).expect("changed");
    let changed = editor.finish().expect("valid");

    assert!(!opens(&changed, &typed("old")));
    let (after, unlocked) = unlock(&changed, &typed("new")).expect("new");
    assert_eq!((&after.allowed, &after.volume_keys), (&before.allowed, &before.volume_keys));
    assert_eq!(after.masters.len(), 1);
    assert_ne!(after.masters[0].salt, before.masters[0].salt);
    assert_eq!(unlocked.keyring.rewrap(&new_file.slot), Ok(None), "headers stay as they are");
    let opened = unlocked.keyring.data_key(&new_file.slot).expect("old files open");
    assert_eq!(opened.0.expose(), new_file.key.0.expose());
}

#[test]
fn every_change_is_a_generation_of_its_own() {
    let generation = |bytes: &[u8]| Descriptor::parse(bytes).expect("valid").0.params.generation;
    let public = crate::crypto::hpke::Identity::generate().public_key();
    let mut bytes = make(&KeySpec::Passphrase, &[], &typed("a"));
    assert_eq!(generation(&bytes), 1);
    type Change = fn(&mut Editor, [u8; 32]) -> Result<(), KeyError>;
    let changes: [Change; 5] = [
        |editor, _| editor.change_passphrase(&passphrase("a"), CHEAP),
        |editor, public| editor.add_recipient(public),
        |editor, public| editor.remove_recipient(public),
        |editor, _| editor.add_passphrase(&passphrase("b"), CHEAP),
        |editor, _| editor.remove_passphrase(),
    ];
    for (change, expected) in changes.iter().zip(2..) {
        let typed = typed(if expected == 6 { "b" } else { "a" });
        let mut editor = Editor::open(&bytes, &typed).expect("opens");
        change(&mut editor, public).expect("changed");
        bytes = editor.finish().expect("valid");
        assert_eq!(generation(&bytes), expected);
    }
    let untouched = Editor::open(&bytes, &typed("a")).expect("opens").finish().expect("valid");
    assert_eq!(untouched, bytes);

    let (mut last, _) = Descriptor::parse(&bytes).expect("valid");
    last.params.generation = u64::MAX;
    let editor = Editor::open(&bytes, &typed("a")).expect("opens");
    let last = last.encode(|bytes| editor.keys.descriptor_mac(bytes));
    let mut editor = Editor::open(&last, &typed("a")).expect("opens");
    editor.add_recipient(public).expect("added");
    assert!(editor.finish().is_err(), "never back to 0");
}

#[test]
fn with_several_passphrases_the_one_used_is_meant() {
    let mut editor =
        Editor::open(&make(&KeySpec::Passphrase, &[], &typed("one")), &typed("one")).expect("one");
    editor.add_passphrase(&passphrase("two"), CHEAP).expect("added");
    let both = editor.finish().expect("valid");
    assert!(opens(&both, &typed("one")) && opens(&both, &typed("two")));

    let mut editor = Editor::open(&both, &typed("two")).expect("two");
    editor.change_passphrase(&passphrase("three"), CHEAP).expect("changed");
    let changed = editor.finish().expect("valid");
    assert!(opens(&changed, &typed("one")) && opens(&changed, &typed("three")));
    assert!(!opens(&changed, &typed("two")));

    let mut editor = Editor::open(&changed, &typed("three")).expect("three");
    editor.remove_passphrase().expect("two are there");
    assert!(matches!(editor.remove_passphrase(), Err(KeyError::Misconfigured(_))), "the last");
    let removed = editor.finish().expect("valid");
    assert!(opens(&removed, &typed("one")) && !opens(&removed, &typed("three")));
}

#[test]
fn an_empty_passphrase_is_refused_everywhere() {
    let bytes = make(&KeySpec::Passphrase, &[], &typed("a"));
    let mut editor = Editor::open(&bytes, &typed("a")).expect("opens");
    assert!(editor.change_passphrase(&passphrase(""), CHEAP).is_err());
    assert!(editor.add_passphrase(&passphrase(""), CHEAP).is_err());
    assert!(opens(&editor.finish().expect("valid"), &typed("a")));
}

#[test]
fn key_files_come_and_go_but_one_way_in_stays() {
    let dir = dir();
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    let named = |path: &Path| UnlockOptions { keyfile: Some(path.into()), ..Default::default() };
    let bytes = make(&KeySpec::Keyfile(first.clone()), &[], &UnlockOptions::default());
    let mut editor = Editor::open(&bytes, &named(&first)).expect("opens");
    assert!(matches!(editor.remove_keyfile(&first), Err(KeyError::Misconfigured(_))), "the last");
    editor.add_keyfile(&second).expect("made");
    assert!(matches!(editor.add_keyfile(&second), Err(KeyError::Misconfigured(_))), "twice");
    let both = editor.finish().expect("valid");
    assert!(opens(&both, &named(&first)) && opens(&both, &named(&second)));

    // The first one is lost: it goes by the place that is remembered.
    std::fs::remove_file(&first).expect("removed");
    let mut editor = Editor::open(&both, &named(&second)).expect("opens");
    editor.remove_keyfile(&first).expect("remembered");
    let error = editor.remove_keyfile(&first).expect_err("gone already");
    assert!(matches!(error, KeyError::Misconfigured(_)));
    let left = editor.finish().expect("valid");
    assert!(opens(&left, &UnlockOptions::default()));
    assert_eq!(unlock(&left, &named(&second)).expect("opens").0.masters.len(), 1);
}

#[test]
fn a_removed_key_file_goes_by_its_content_when_it_moved() {
    let dir = dir();
    let (key, moved) = (dir.path().join("key"), dir.path().join("moved"));
    let bytes = make(&KeySpec::Keyfile(key.clone()), &[], &UnlockOptions::default());
    let mut editor = Editor::open(&bytes, &UnlockOptions::default()).expect("opens");
    editor.add_passphrase(&passphrase("a"), CHEAP).expect("added");
    std::fs::rename(&key, &moved).expect("rename");
    editor.remove_keyfile(&moved).expect("its content is known");
    // The slot the volume was opened with is gone: the only passphrase is meant now.
    editor.change_passphrase(&passphrase("b"), CHEAP).expect("the only one");
    assert!(opens(&editor.finish().expect("valid"), &typed("b")));
}

#[test]
fn recipients_come_and_go_and_headers_follow_by_rewrap() {
    let dir = dir();
    let id = dir.path().join("id");
    let public = create_identity(&id).expect("made").public_key();
    let alone = UnlockOptions { identity: Some(id), ..Default::default() };
    let bytes = make(&KeySpec::Passphrase, &[], &typed("a"));
    let (_, before) = unlock(&bytes, &typed("a")).expect("opens");
    let old_file = before.keyring.for_new_file().expect("a data key");

    let mut editor = Editor::open(&bytes, &typed("a")).expect("opens");
    editor.add_recipient(public).expect("added");
    assert!(matches!(editor.add_recipient(public), Err(KeyError::Misconfigured(_))), "twice");
    assert!(matches!(editor.add_recipient([0; 32]), Err(KeyError::Misconfigured(_))), "no key");
    let added = editor.finish().expect("valid");

    let (_, usual) = unlock(&added, &typed("a")).expect("opens");
    let (_, broken) = unlock(&added, &alone).expect("break-glass");
    let refused = broken.keyring.data_key(&old_file.slot).map(drop);
    assert!(matches!(refused, Err(KeyError::Unavailable(_))), "not rewrapped yet: {refused:?}");
    let slot = usual.keyring.rewrap(&old_file.slot).expect("rewrapped").expect("changed");
    let opened = broken.keyring.data_key(&slot).expect("its copy");
    assert_eq!(opened.0.expose(), old_file.key.0.expose());

    let mut editor = Editor::open(&added, &typed("a")).expect("opens");
    editor.remove_recipient(public).expect("there");
    assert!(matches!(editor.remove_recipient(public), Err(KeyError::NotOurs(_))), "gone already");
    let removed = editor.finish().expect("valid");
    assert!(matches!(key_error(unlock(&removed, &alone)), KeyError::NotOurs(_)));
    let (_, usual) = unlock(&removed, &typed("a")).expect("opens");
    let back = usual.keyring.rewrap(&slot).expect("rewrapped").expect("changed");
    assert_eq!(back.recipients, old_file.slot.recipients);
}

#[test]
fn the_last_recipient_cannot_be_removed() {
    let public = crate::crypto::hpke::Identity::generate().public_key();
    let bytes = make(&KeySpec::Passphrase, &[KeySpec::X25519(public)], &typed("a"));
    let mut editor = Editor::open(&bytes, &typed("a")).expect("opens");
    // A volume whose local master was never a recipient, as one with other providers may be.
    editor.descriptor.allowed.remove(0);
    editor.descriptor.volume_keys.remove(0);
    let error = editor.remove_recipient(public).expect_err("the last");
    assert!(matches!(error, KeyError::Misconfigured(text) if text.contains("last recipient")));
}

#[test]
fn break_glass_can_manage_recipients_but_not_master_slots() {
    let dir = dir();
    let id = dir.path().join("id");
    let public = create_identity(&id).expect("made").public_key();
    let bytes = make(&KeySpec::Passphrase, &[KeySpec::X25519(public)], &typed("a"));
    let alone = UnlockOptions { identity: Some(id), ..Default::default() };
    let mut editor = Editor::open(&bytes, &alone).expect("break-glass");
    let refused = editor.change_passphrase(&passphrase("b"), CHEAP);
    assert!(matches!(refused, Err(KeyError::Unavailable(_))));
    let place = dir.path().join("key");
    assert!(matches!(editor.add_keyfile(&place), Err(KeyError::Unavailable(_))));
    assert!(!place.exists(), "a refusal leaves no key file behind");
    let other = crate::crypto::hpke::Identity::generate().public_key();
    editor.add_recipient(other).expect("needs the volume key only");
    assert!(opens(&editor.finish().expect("valid"), &typed("a")));
}

#[test]
fn headers_bound_the_number_of_recipients() {
    let publics: Vec<KeySpec> = (0..7)
        .map(|_| KeySpec::X25519(crate::crypto::hpke::Identity::generate().public_key()))
        .collect();
    let try_with = |count: usize, header_blocks: u8| {
        let params = Params { header_blocks, ..params() };
        let to = &publics[..count];
        let volume = VolumeId([1; 16]);
        create_with_cost(volume, params, &KeySpec::Passphrase, to, &typed("a"), CHEAP)
    };
    assert!(try_with(6, 1).is_ok());
    let error = key_error(try_with(7, 1));
    assert!(matches!(error, KeyError::Misconfigured(text) if text.contains("header blocks")));
    assert!(try_with(7, 2).is_ok());
}

#[test]
fn keys_in_the_wrong_place_are_refused() {
    let public = KeySpec::X25519([9; 32]);
    for (key, to) in [(public, vec![]), (KeySpec::Passphrase, vec![KeySpec::Passphrase])] {
        let made = create_with_cost(VolumeId([1; 16]), params(), &key, &to, &typed("a"), CHEAP);
        assert!(matches!(key_error(made), KeyError::Misconfigured(_)));
    }
}
