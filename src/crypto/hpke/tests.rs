//! Known answers, round trips and bindings.

use super::*;
use crate::crypto::testing::{counting, hex, secret};

/// The recipient of RFC 9180, A.1.
const PRIVATE: &str = "4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8";
const PUBLIC: &str = "3948cfe0ad1ddb695d780e59077195da6c56506b027329794ab02bca80815c4d";

#[test]
fn key_pairs_are_those_of_the_rfcs() {
    // The second pair is Bob's of RFC 7748, 6.1.
    let pairs = [
        (PRIVATE, PUBLIC),
        (
            "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
            "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
        ),
    ];
    for (private, public) in pairs {
        let identity = Identity::from_secret(secret(&hex(private)));
        assert_eq!(identity.public_key().to_vec(), hex(public));
    }
}

/// Computed from the text of RFC 9180 with other software, ephemeral key = Bob's of RFC 7748.
#[test]
fn a_known_wrapped_key_opens() {
    let identity = Identity::from_secret(secret(&hex(PRIVATE)));
    let wrapped = hex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f
         a12da6b78ef31d7cee3bfb5af36a05ead19577f63930a5bc8dada5918cebbfec
         f4113649e89a654db0c2de36b320a709");
    let key = open(&identity, b"context", &wrapped).expect("a vector");
    assert_eq!(key.expose(), &counting::<32>(0x99));
}

#[test]
fn a_wrapped_key_opens_for_its_identity_and_context_only() {
    let (ours, theirs) = (Identity::generate(), Identity::generate());
    let key = Secret::random();
    let wrapped = seal(&ours.public_key(), b"context", &key).expect("a good public key");
    let opened = open(&ours, b"context", &wrapped).expect("our own");
    assert_eq!(opened.expose(), key.expose());
    assert!(open(&theirs, b"context", &wrapped).is_err());
    assert!(open(&ours, b"contexT", &wrapped).is_err());
    for i in 0..WRAPPED {
        let mut bad = wrapped;
        bad[i] ^= 1;
        assert!(open(&ours, b"context", &bad).is_err(), "byte {i}");
    }
    assert!(open(&ours, b"context", &wrapped[..WRAPPED - 1]).is_err());
    assert!(open(&ours, b"context", &[]).is_err());
}

#[test]
fn wrapping_twice_gives_different_bytes() {
    let identity = Identity::generate();
    let key = Secret::random();
    let wrap = || seal(&identity.public_key(), b"", &key).expect("a good public key");
    assert_ne!(wrap()[..], wrap()[..]);
}

#[test]
fn a_public_key_of_low_order_is_refused() {
    assert!(seal(&[0; 32], b"", &Secret::random()).is_err());
    let mut one = [0; 32];
    one[0] = 1;
    assert!(seal(&one, b"", &Secret::random()).is_err());
}
