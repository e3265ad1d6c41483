//! RFC 4231 and RFC 5869 vectors.

use super::*;
use crate::crypto::testing::{hex, secret};

#[test]
fn rfc_4231_vectors() {
    // Keys shorter than 32 bytes are padded with zeros by HMAC itself, so padding ours is the same
    // key.
    let cases: [(&[u8], &[u8], &str); 2] = [
        (
            &[0x0b; 20],
            b"Hi There",
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
        ),
        (
            b"Jefe",
            b"what do ya want for nothing?",
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
        ),
    ];
    for (key, data, mac) in cases {
        let mut padded = [0; 32];
        padded[..key.len()].copy_from_slice(key);
        let key = MacKey::new(&secret(&padded));
        let mac: [u8; 32] = hex(mac).try_into().unwrap();
        assert_eq!(key.mac(&[data]), mac);
        assert_eq!(key.mac(&[&data[..3], &data[3..]]), mac);
        assert!(key.verifies(data, &mac));
        for i in 0..32 {
            let mut bad = mac;
            bad[i] ^= 1;
            assert!(!key.verifies(data, &bad));
        }
        assert!(!key.verifies(&data[1..], &mac));
    }
}

#[test]
fn rfc_5869_vectors() {
    let okm: Secret<42> = hkdf(
        &[0x0b; 22],
        &hex("000102030405060708090a0b0c"),
        &[&hex("f0f1f2f3f4"), &hex("f5f6f7f8f9")],
    );
    assert_eq!(
        okm.expose().to_vec(),
        hex("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865")
    );
    let range = |from: u8, to: u8| (from..=to).collect::<Vec<u8>>();
    let okm: Secret<82> = hkdf(&range(0x00, 0x4f), &range(0x60, 0xaf), &[&range(0xb0, 0xff)]);
    assert_eq!(
        okm.expose().to_vec(),
        hex("b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c
             59045a99cac7827271cb41c65e590e09da3275600c2f09b8367793a9aca3db71
             cc30c58179ec3e87c14c01d5c1f3434f1d87")
    );
    let okm: Secret<42> = hkdf(&[0x0b; 22], &[], &[]);
    assert_eq!(
        okm.expose().to_vec(),
        hex("8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8")
    );
}

#[test]
fn expanding_a_derived_key_is_the_second_half_of_hkdf() {
    // PRK and OKM of RFC 5869 case 1.
    let prk = secret(&hex("077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5"));
    let okm: Secret<42> = expand(&hkdf_from_key(&prk), &[&hex("f0f1f2f3f4f5f6f7f8f9")]);
    assert_eq!(okm.expose()[..4], hex("3cb25f25")[..]);
}

#[test]
fn fingerprints_depend_on_where_parts_end() {
    assert_ne!(fingerprint(&[b"ab", b"c"]), fingerprint(&[b"a", b"bc"]));
    assert_eq!(fingerprint(&[b"ab", b"c"]), fingerprint(&[b"ab", b"c"]));
}
