//! AES-256-SIV (RFC 5297), deterministic: names, symlinks, attributes and local key wrap.
//!
//! An instance is expanded from the 64-byte key for every call: some 60 ns of the 350 that a name
//! of usual length costs (the crate's instances cannot be cloned), and no thread waits for
//! another's.

use super::{AuthError, Secret};
use aes_siv::siv::Aes256Siv;
use aes_siv::{KeyInit, Tag};

/// Bytes of the synthetic IV that stands before the ciphertext.
pub const IV: usize = 16;

/// SIV ‖ ciphertext.
pub(super) fn seal(key: &Secret<64>, ads: &[&[u8]], plaintext: &[u8]) -> Vec<u8> {
    let mut out = vec![0; IV + plaintext.len()];
    let (iv, body) = out.split_at_mut(IV);
    body.copy_from_slice(plaintext);
    iv.copy_from_slice(&seal_in_place(key, ads, body));
    out
}

/// Reverses [`seal`].
pub(super) fn open(key: &Secret<64>, ads: &[&[u8]], sealed: &[u8]) -> Result<Vec<u8>, AuthError> {
    let (iv, body) = sealed.split_first_chunk::<IV>().ok_or(AuthError)?;
    let mut out = body.to_vec();
    open_in_place(key, ads, &mut out, iv)?;
    Ok(out)
}

/// Encrypts in place and returns the SIV.
pub(super) fn seal_in_place(key: &Secret<64>, ads: &[&[u8]], data: &mut [u8]) -> [u8; IV] {
    Aes256Siv::new(key.expose().into())
        .encrypt_inout_detached(ads, data.into())
        .expect("SIV takes up to 126 associated strings, we pass at most 3")
        .into()
}

/// Verifies and decrypts in place; after a failure `data` is ciphertext again.
pub(super) fn open_in_place(
    key: &Secret<64>,
    ads: &[&[u8]],
    data: &mut [u8],
    iv: &[u8; IV],
) -> Result<(), AuthError> {
    let iv: &Tag = iv.into();
    Aes256Siv::new(key.expose().into())
        .decrypt_inout_detached(ads, data.into(), iv)
        .map_err(|_| AuthError)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::testing::{counting, hex, secret};

    /// The RFC's vectors are for 256-bit keys; the code is the same, generic over the block cipher.
    #[test]
    fn rfc_5297_a1_and_a2_hold_for_the_implementation_we_use() {
        use aes_siv::siv::Aes128Siv;
        let key: [u8; 32] = hex("fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
            .try_into()
            .unwrap();
        let ad = hex("101112131415161718191a1b1c1d1e1f2021222324252627");
        let sealed = Aes128Siv::new(&key.into())
            .encrypt([&ad], &hex("112233445566778899aabbccddee"))
            .unwrap();
        assert_eq!(sealed, hex("85632d07c6e8f37f950acd320a2ecc9340c02b9690c4dc04daef7f6afe5c"));

        let key: [u8; 32] = hex("7f7e7d7c7b7a79787776757473727170404142434445464748494a4b4c4d4e4f")
            .try_into()
            .unwrap();
        let ads = [
            hex("00112233445566778899aabbccddeeffdeaddadadeaddadaffeeddccbbaa99887766554433221100"),
            hex("102030405060708090a0"),
            hex("09f911029d74e35bd84156c5635688c0"),
        ];
        let plain = b"this is some plaintext to encrypt using SIV-AES";
        let sealed = Aes128Siv::new(&key.into()).encrypt(&ads, plain).unwrap();
        assert_eq!(
            sealed,
            hex("7bdb6e3b432667eb06f4d14bff2fbd0fcb900f2fddbe404326601965c889bf17dba77ceb094fa663\
                 b7a3f748ba8af829ea64ad544a272e9c485b62a3fd5c0d")
        );
    }

    /// 512-bit keys: computed with OpenSSL.
    #[test]
    fn known_answers_for_the_key_size_we_use() {
        let key: Secret<64> = secret(&counting::<64>(0));
        let plain = counting::<14>(0x11);
        let sealed = seal(&key, &[&counting::<24>(0x10)], &plain);
        assert_eq!(sealed, hex("dbd34eb420dd1e3847fb9f490c627bf0c5493bbe088ab47c4cb756475b2f"));
        let ads: [&[u8]; 3] = [&counting::<40>(0), &counting::<10>(0x10), &counting::<16>(0x09)];
        let plain = counting::<47>(0x80);
        let sealed = seal(&key, &ads, &plain);
        assert_eq!(
            sealed,
            hex("8e4c5e00931285059aa68f754450dc0292eb26c19fa5a35f49d205c412fa78ee
                 101a6ed24832a242964432c690490dd26c560d46cae9dade7b382338cae19c")
        );
        assert_eq!(open(&key, &ads, &sealed), Ok(plain.to_vec()));
        assert_eq!(open(&key, &ads[..2], &sealed), Err(AuthError));
        assert_eq!(open(&key, &ads, &sealed[..46]), Err(AuthError));
    }
}
