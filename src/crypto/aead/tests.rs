//! Published vectors for both backends, and the backends against each other.

use super::*;
use crate::crypto::testing::{counting, hex, secret};
use crate::crypto::{random, random_array};
use crate::sys::hook::freed_during;

type Seal = fn(&[u8; 32], &[u8; 12], &[u8], &mut [u8]) -> [u8; 16];
type Open = fn(&[u8; 32], &[u8; 12], &[u8], &mut [u8], &[u8; 16]) -> Result<(), AuthError>;

/// Every backend of this build.
fn backends() -> Vec<(&'static str, Seal, Open)> {
    vec![
        (
            portable::NAME,
            |k, n, a, d| portable::Key::new(&secret(k)).seal(n, a, d),
            |k, n, a, d, t| portable::Key::new(&secret(k)).open(n, a, d, t),
        ),
        #[cfg(feature = "ring")]
        (
            ring_gcm::NAME,
            |k, n, a, d| ring_gcm::Key::new(&secret(k)).seal(n, a, d),
            |k, n, a, d, t| ring_gcm::Key::new(&secret(k)).open(n, a, d, t),
        ),
    ]
}

/// Test cases 13, 14 and 16 of the GCM specification submitted to NIST: key, nonce, AAD, plaintext,
/// ciphertext and tag.
const NIST: [[&str; 5]; 3] = [
    [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "000000000000000000000000",
        "",
        "",
        "530f8afbc74536b9a963b4f1c4cb738b",
    ],
    [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "000000000000000000000000",
        "",
        "00000000000000000000000000000000",
        "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919",
    ],
    [
        "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
        "cafebabefacedbaddecaf888",
        "feedfacedeadbeeffeedfacedeadbeefabaddad2",
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72
         1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa
         8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662
         76fc6ece0f4e1768cddf8853bb2d551b",
    ],
];

#[test]
fn nist_vectors_seal_and_open() {
    for (name, seal, open) in backends() {
        for case in NIST {
            let [key, nonce, aad, plain, sealed] = case.map(hex);
            let (key, nonce) = (key.try_into().unwrap(), nonce.try_into().unwrap());
            let mut data = plain.clone();
            let tag = seal(&key, &nonce, &aad, &mut data);
            assert_eq!([&data[..], &tag].concat(), sealed, "{name}");
            assert_eq!(open(&key, &nonce, &aad, &mut data, &tag), Ok(()), "{name}");
            assert_eq!(data, plain, "{name}");
        }
    }
}

#[test]
fn backends_agree_on_random_input() {
    let lengths = [0usize, 1, 15, 16, 17, 63, 64, 255, 1024, 4095, 4096];
    for round in 0..200 {
        let (key, nonce, aad) = (random_array(), random_array(), random_array::<40>());
        let mut plain = vec![0; lengths[round % lengths.len()]];
        random(&mut plain);
        let results: Vec<_> = backends()
            .iter()
            .map(|(_, seal, _)| {
                let mut data = plain.clone();
                let tag = seal(&key, &nonce, &aad, &mut data);
                (data, tag)
            })
            .collect();
        assert!(results.iter().all(|r| *r == results[0]), "{key:?} {nonce:?} {aad:?}");
        for (name, _, open) in backends() {
            let (mut data, tag) = results[0].clone();
            assert_eq!(open(&key, &nonce, &aad, &mut data, &tag), Ok(()), "{name}");
            assert_eq!(data, plain, "{name}");
        }
    }
}

#[test]
fn every_backend_refuses_what_was_altered() {
    for (name, seal, open) in backends() {
        let (key, nonce, aad) = (counting(0), counting(1), counting::<40>(2));
        let mut sealed = counting::<100>(3);
        let tag = seal(&key, &nonce, &aad, &mut sealed);
        let attempt =
            |key: &[u8; 32], nonce: &[u8; 12], aad: &[u8], data: &[u8], tag: &[u8; 16]| {
                open(key, nonce, aad, &mut data.to_vec(), tag)
            };
        assert_eq!(attempt(&key, &nonce, &aad, &sealed, &tag), Ok(()), "{name}");
        for i in 0..sealed.len() {
            let mut bad = sealed;
            bad[i] ^= 1;
            assert_eq!(attempt(&key, &nonce, &aad, &bad, &tag), Err(AuthError), "{name}");
        }
        for i in 0..16 {
            let mut bad = tag;
            bad[i] ^= 0x80;
            assert_eq!(attempt(&key, &nonce, &aad, &sealed, &bad), Err(AuthError), "{name}");
        }
        let results = [
            attempt(&counting(9), &nonce, &aad, &sealed, &tag),
            attempt(&key, &counting(9), &aad, &sealed, &tag),
            attempt(&key, &nonce, &counting::<40>(9), &sealed, &tag),
            attempt(&key, &nonce, &aad[..39], &sealed, &tag),
            attempt(&key, &nonce, &aad, &sealed[..99], &tag),
        ];
        assert!(results.iter().all(|r| *r == Err(AuthError)), "{name} {results:?}");
    }
}

#[test]
fn a_buffer_that_does_not_authenticate_comes_back_zeroed() {
    let key = SegmentKey::new(&Secret::random());
    let mut data = vec![5u8; 4096];
    let tag = key.seal_in_place(&[1; 12], &[2; 40], &mut data);
    assert_eq!(key.open_in_place(&[1; 12], &[3; 40], &mut data, &tag), Err(AuthError));
    assert_eq!(data, vec![0u8; 4096]);
}

#[test]
fn key_schedules_are_wiped() {
    let key = secret(&[7; 32]);
    let expanded = SegmentKey::new(&key);
    let freed = freed_during(|| drop(expanded));
    assert_eq!(freed.len(), 1);
    assert!(freed[0].len() >= 240, "an AES-256 schedule alone is 240 bytes");
    assert!(freed[0].iter().all(|b| *b == 0));
    let portable = portable::Key::new(&key);
    assert!(freed_during(|| drop(portable))[0].iter().all(|b| *b == 0));
}

#[test]
fn backend_names_are_the_locked_versions() {
    let lock = include_str!("../../../Cargo.lock");
    let mut names = vec![portable::NAME, BACKEND];
    #[cfg(feature = "ring")]
    names.push(ring_gcm::NAME);
    for name in names.drain(..) {
        let (krate, version) = name.split_once(' ').unwrap();
        let entry = format!("name = \"{krate}\"\nversion = \"{version}\"\n");
        assert!(lock.contains(&entry), "{name} is not what Cargo.lock builds");
    }
}
