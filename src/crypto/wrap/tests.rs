//! Known answers computed with another implementation (OpenSSL) from the text of the format.

use super::*;
use crate::crypto::testing::{counting, hex, secret};

const SMALL: Argon2Cost = Argon2Cost { m_kib: 64, t: 2, p: 2 };

fn volume() -> VolumeId {
    VolumeId(counting(0x10))
}

fn passphrase(text: &str) -> SecretBytes {
    SecretBytes::new(text.into())
}

#[test]
fn contexts_are_known() {
    assert_eq!(
        context(volume(), Purpose::Volume).to_vec(),
        hex("6b6d7366732076312077726170101112131415161718191a1b1c1d1e1f01
             00000000000000000000000000000000")
    );
    let data = context(volume(), Purpose::Data(DataKeyId(counting(0xd0))));
    assert_eq!((data[29], &data[30..32]), (2, &[0xd0, 0xd1][..]));
}

#[test]
fn the_passphrase_derivation_is_argon2id_version_0x13() {
    let kek = kek_from_passphrase(&passphrase("correct horse"), &counting(0x44), SMALL).unwrap();
    assert_eq!(
        kek.expose().to_vec(),
        hex("be731bc3a00611933739c864b862bd61a3cef6e260bb32c3d716f9dccdf2fa39
             e8c3ea7298667a67bcdacfb2ff53abe4355fd46a6d93adbec8206f6094bdc453")
    );
    let other = kek_from_passphrase(&passphrase("correct horsE"), &counting(0x44), SMALL).unwrap();
    assert_ne!(kek.expose(), other.expose());
}

#[test]
fn costs_outside_the_bounds_are_refused_before_memory_is_taken() {
    let Argon2Cost { m_kib, t, p } = Argon2Cost::MAX;
    let bad = [
        Argon2Cost { m_kib: m_kib + 1, t: 1, p: 1 },
        Argon2Cost { m_kib: u32::MAX, t: 1, p: 1 },
        Argon2Cost { m_kib: 64, t: t + 1, p: 1 },
        Argon2Cost { m_kib: 4096, t: 1, p: p + 1 },
        Argon2Cost { m_kib, t: 17, p: 1 },
        Argon2Cost { m_kib: 64, t: 0, p: 1 },
        Argon2Cost { m_kib: 64, t: 1, p: 0 },
        Argon2Cost { m_kib: 7, t: 1, p: 1 },
    ];
    for cost in bad {
        let result = kek_from_passphrase(&passphrase("x"), &[0; 16], cost);
        assert_eq!(result.err(), Some(KdfError::Cost(cost)));
    }
}

#[test]
fn the_master_wrap_is_known_and_bound_to_its_volume() {
    let kek = kek_from_keyfile(&secret(&counting::<32>(0x33)), &counting(0x44));
    let wrapped = seal_master(&kek, volume(), &secret(&counting::<32>(0x20)));
    assert_eq!(
        wrapped.to_vec(),
        hex("07cde6aec117950cfc31f939adc676d900c8acb7836d987210d8b43b8660f695
             5f7111665009ce287523e5a381c2a5da")
    );
    let opened = open_master(&kek, volume(), &wrapped).expect("our own");
    assert_eq!(opened.expose(), &counting::<32>(0x20));
    assert!(open_master(&kek, VolumeId([0; 16]), &wrapped).is_err());
    let other = kek_from_keyfile(&secret(&counting::<32>(0x33)), &counting(0x45));
    assert!(open_master(&other, volume(), &wrapped).is_err());
    for i in 0..WRAPPED {
        let mut bad = wrapped;
        bad[i] ^= 1;
        assert!(open_master(&kek, volume(), &bad).is_err(), "byte {i}");
    }
}

#[test]
fn the_local_wrap_is_known_and_bound_to_its_context() {
    let local = LocalWrapKey::derive(&secret(&counting::<32>(0x20)), volume());
    let context_of = |id: u8| context(volume(), Purpose::Data(DataKeyId(counting(id))));
    let wrapped = local.seal(&context_of(0xd0), &secret(&counting::<32>(0x99)));
    assert_eq!(
        wrapped.to_vec(),
        hex("30030d49f880e013cf0e68606bbec70b1cd70063589905c5ff522d09c88ebc38
             5e1f96a5103c01053cf61d81486b7428")
    );
    let opened = local.open(&context_of(0xd0), &wrapped).expect("our own");
    assert_eq!(opened.expose(), &counting::<32>(0x99));
    assert!(local.open(&context_of(0xd1), &wrapped).is_err());
    assert!(local.open(&context(volume(), Purpose::Volume), &wrapped).is_err());
    assert!(local.open(&context_of(0xd0), &wrapped[..47]).is_err());
    assert!(local.open(&context_of(0xd0), &[]).is_err());
}
