//! Known answers computed with another implementation (OpenSSL) from the text of the format.

use super::*;
use crate::crypto::testing::{counting, hex, secret};

const DIR: DirId = DirId(*b"abcdefghijklmnop");

fn keys() -> VolumeKeys {
    VolumeKeys::derive(&VolumeKey(secret(&counting::<32>(0x80))), VolumeId(counting(0x10)))
}

type Mac = fn(&VolumeKeys, &[u8]) -> [u8; 32];
type MacOk = fn(&VolumeKeys, &[u8], &[u8; 32]) -> bool;

#[test]
fn macs_are_known_and_checked_whole() {
    let known: [(Mac, MacOk, &str); 3] = [
        (
            VolumeKeys::header_mac,
            VolumeKeys::header_mac_ok,
            "42de9bc297515dad6714b7b801af00d450a6cad4e1e80956348046f3528edb7a",
        ),
        (
            VolumeKeys::descriptor_mac,
            VolumeKeys::descriptor_mac_ok,
            "755c6f4be45cdb3c6f8d7857deb29843c3287717a71361f1a4d10d0f34017e15",
        ),
        (
            VolumeKeys::directory_mac,
            VolumeKeys::directory_mac_ok,
            "e79a0e58390ce3001cc0fb7e8f836014b280b371053bf4feaa387d26650c9d53",
        ),
    ];
    let keys = keys();
    for (mac, ok, expected) in known {
        let found = mac(&keys, b"some bytes");
        assert_eq!(found.to_vec(), hex(expected));
        assert!(ok(&keys, b"some bytes", &found));
        assert!(!ok(&keys, b"some byteS", &found));
        let mut bad = found;
        bad[31] ^= 1;
        assert!(!ok(&keys, b"some bytes", &bad));
    }
}

#[test]
fn names_are_known_and_bound_to_their_directory() {
    let (keys, dir) = (keys(), DirId(counting(0x60)));
    let sealed = keys.seal_name(dir, b"letter.txt");
    assert_eq!(encode_name(&sealed), "m-nPamOIINdJkrc3MltVzPUXDyp12S3sn0U");
    assert_eq!(long_name_hash(&sealed), "oQD0lFZTQiPQ9WjdoNKwHQZhljtvzDy1x_CoBH_Augk");
    assert_eq!(keys.open_name(dir, &sealed).as_deref(), Ok(&b"letter.txt"[..]));
    assert_eq!(keys.open_name(DIR, &sealed), Err(AuthError));
    for i in 0..sealed.len() {
        let mut bad = sealed.clone();
        bad[i] ^= 4;
        assert_eq!(keys.open_name(dir, &bad), Err(AuthError));
    }
    for short in [0, 1, 15, 16] {
        assert_eq!(keys.open_name(dir, &sealed[..short]), Err(AuthError));
    }
}

#[test]
fn symlinks_are_known() {
    let keys = keys();
    let sealed = keys.seal_symlink(b"../there");
    assert_eq!(sealed, hex("f7af67cf461002169d3dd2fa1e4397233525aad6583e31fc"));
    assert_eq!(keys.open_symlink(&sealed).as_deref(), Ok(&b"../there"[..]));
    assert_eq!(keys.open_symlink(&sealed[1..]), Err(AuthError));
    let long = vec![b'x'; 4095];
    assert_eq!(keys.open_symlink(&keys.seal_symlink(&long)), Ok(long));
}

#[test]
fn xattrs_are_known_and_bound_to_object_and_name() {
    let (keys, object, other) = (keys(), counting(0x60), counting(0x61));
    let name = keys.seal_xattr_name(&object, b"user.tag");
    let value = keys.seal_xattr_value(&object, b"user.tag", b"blue");
    assert_eq!(name, hex("3a029ec94f73689f4e1c0dec56f48d4a52fa65c600396ff6"));
    assert_eq!(value, hex("4bde3b3e060c5ec08dbfbbddb11c9344544558c2"));
    assert_eq!(keys.open_xattr_name(&object, &name).as_deref(), Ok(&b"user.tag"[..]));
    assert_eq!(keys.open_xattr_name(&other, &name), Err(AuthError));
    let open = |object, name: &[u8]| keys.open_xattr_value(object, name, &value);
    assert_eq!(open(&object, b"user.tag").as_deref(), Ok(&b"blue"[..]));
    assert_eq!(open(&other, b"user.tag"), Err(AuthError));
    assert_eq!(open(&object, b"user.tab"), Err(AuthError));
    assert_eq!(keys.open_xattr_name(&object, &value), Err(AuthError));
}

#[test]
fn an_empty_attribute_value_still_authenticates() {
    let (keys, object) = (keys(), counting(0));
    let sealed = keys.seal_xattr_value(&object, b"user.empty", b"");
    assert_eq!(sealed.len(), 16);
    assert_eq!(keys.open_xattr_value(&object, b"user.empty", &sealed), Ok(vec![]));
    assert_eq!(keys.open_xattr_value(&object, b"user.full", &sealed), Err(AuthError));
}

#[test]
fn stored_names_have_one_spelling() {
    assert_eq!(decode_name(b"m-nPamOIINdJkrc3MltVzPUXDyp12S3sn0U").map(|n| n.len()), Some(26));
    // Trailing bits set, padding, the other alphabet, blanks, impossible length.
    for other in
        [&b"m-nPamOIINdJkrc3MltVzPUXDyp12S3sn0V"[..], b"AA==", b"+/+/", b"AA AA", b"A", b"A.A"]
    {
        assert_eq!(decode_name(other), None, "{}", String::from_utf8_lossy(other));
    }
}

#[test]
fn volumes_do_not_share_keys() {
    let key = || VolumeKey(secret(&[1; 32]));
    let (a, b) = (
        VolumeKeys::derive(&key(), VolumeId([1; 16])),
        VolumeKeys::derive(&key(), VolumeId([2; 16])),
    );
    assert_ne!(a.header_mac(b""), b.header_mac(b""));
    assert_ne!(a.seal_name(DIR, b"n"), b.seal_name(DIR, b"n"));
}
