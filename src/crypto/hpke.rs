//! HPKE to an X25519 public key: break-glass recipients.
//!
//! RFC 9180 base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM, one message per
//! encapsulation. Wrapping needs the public key only.

use super::{AuthError, Secret};
use crate::sys;
use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};

const INFO: &[u8] = b"kmsfs v1 recipient";
/// Bytes of the encapsulated key.
const ENC: usize = 32;
/// Bytes of a wrapped 32-byte key: encapsulated key, ciphertext, tag.
pub const WRAPPED: usize = ENC + 32 + 16;

/// The private half of an X25519 recipient.
pub struct Identity(Secret<32>);

impl Identity {
    /// A fresh identity.
    pub fn generate() -> Self {
        Self(Secret::random())
    }
    /// From stored bytes (clamped when used, so that every 32 bytes are an identity).
    pub fn from_secret(bytes: Secret<32>) -> Self {
        Self(bytes)
    }
    /// The bytes to store.
    pub fn secret(&self) -> &Secret<32> {
        &self.0
    }
    /// The public half.
    pub fn public_key(&self) -> [u8; 32] {
        X25519HkdfSha256::sk_to_pk(&self.private()).to_bytes().into()
    }
    fn private(&self) -> <X25519HkdfSha256 as Kem>::PrivateKey {
        <X25519HkdfSha256 as Kem>::PrivateKey::from_bytes(self.0.expose())
            .expect("every 32 bytes are an X25519 private key")
    }
}

/// Wraps a key to a public key. Fails for a public key of low order, which no identity has.
pub fn seal(
    public: &[u8; 32],
    context: &[u8],
    key: &Secret<32>,
) -> Result<[u8; WRAPPED], AuthError> {
    let public = <X25519HkdfSha256 as Kem>::PublicKey::from_bytes(public).map_err(|_| AuthError)?;
    let mut out = [0; WRAPPED];
    let (enc, body) = out.split_at_mut(ENC);
    let (body, tag) = body.split_at_mut(32);
    body.copy_from_slice(key.expose());
    let sealed = hpke::single_shot_seal_inout_detached::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
        &OpModeS::Base,
        &public,
        INFO,
        (&mut *body).into(),
        context,
    );
    sys::scrub_stack();
    let (encapped, sealed_tag) = sealed.map_err(|_| {
        zeroize::Zeroize::zeroize(body);
        AuthError
    })?;
    encapped.write_exact(enc);
    sealed_tag.write_exact(tag);
    Ok(out)
}

/// Reverses [`seal`].
pub fn open(identity: &Identity, context: &[u8], wrapped: &[u8]) -> Result<Secret<32>, AuthError> {
    let wrapped: &[u8; WRAPPED] = wrapped.try_into().map_err(|_| AuthError)?;
    let (enc, body) = wrapped.split_at(ENC);
    let (body, tag) = body.split_at(32);
    let enc = <X25519HkdfSha256 as Kem>::EncappedKey::from_bytes(enc).map_err(|_| AuthError)?;
    let tag = hpke::aead::AeadTag::from_bytes(tag).map_err(|_| AuthError)?;
    let opened = Secret::build(|out| {
        out.copy_from_slice(body);
        hpke::single_shot_open_inout_detached::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
            &OpModeR::Base,
            &identity.private(),
            &enc,
            INFO,
            (&mut out[..]).into(),
            context,
            &tag,
        )
        .map_err(|_| AuthError)
    });
    sys::scrub_stack();
    opened
}

#[cfg(test)]
mod tests;
