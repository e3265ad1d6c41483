//! Local wrapping: passphrase and key-file derivation, SIV key wrap.
//!
//! passphrase or key file → KEK → master key (in the descriptor) → volume key and data keys.

use super::{AuthError, Secret, SecretBytes, mac, siv};
use crate::format::descriptor::{
    MAX_ARGON2_KIB, MAX_ARGON2_LANES, MAX_ARGON2_PASSES, MAX_ARGON2_WORK,
};
use crate::format::{DataKeyId, VolumeId};
use crate::sys;
use argon2::{Algorithm, Argon2, Block, Params, Version};
use thiserror::Error;
use zeroize::Zeroize;

/// Bytes of a wrapped 32-byte key: SIV and ciphertext.
pub const WRAPPED: usize = siv::IV + 32;
/// Bytes of a wrap context.
pub const CONTEXT: usize = 46;

/// Cost of Argon2id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Argon2Cost {
    /// Memory in KiB.
    pub m_kib: u32,
    /// Passes.
    pub t: u32,
    /// Lanes.
    pub p: u32,
}

impl Argon2Cost {
    /// RFC 9106's second recommendation: 64 MiB, 3 passes, 4 lanes.
    pub const DEFAULT: Self = Self { m_kib: 64 * 1024, t: 3, p: 4 };
    /// The most of each that is accepted, the format's own bounds.
    pub const MAX: Self = Self { m_kib: MAX_ARGON2_KIB, t: MAX_ARGON2_PASSES, p: MAX_ARGON2_LANES };
    /// The most work that is accepted, KiB times passes, the format's own bound.
    pub const MAX_WORK: u64 = MAX_ARGON2_WORK;

    /// Within bounds and within what Argon2 defines?
    fn params(self) -> Result<Params, KdfError> {
        let Self { m_kib, t, p } = self;
        let within = m_kib <= Self::MAX.m_kib && t <= Self::MAX.t && p <= Self::MAX.p;
        if !within || u64::from(m_kib) * u64::from(t) > Self::MAX_WORK {
            return Err(KdfError::Cost(self));
        }
        Params::new(m_kib, t, p, Some(64)).map_err(|_| KdfError::Cost(self))
    }
}

/// Why no key was derived from a passphrase.
#[derive(Debug, Error, PartialEq, Eq, Clone, Copy)]
pub enum KdfError {
    /// Outside what we accept.
    #[error(
        "Argon2id cost of {} KiB, {} passes, {} lanes is outside the accepted range",
        .0.m_kib, .0.t, .0.p
    )]
    Cost(Argon2Cost),
    /// Less free memory than the cost asks for.
    #[error("not enough memory for a passphrase derivation of {0} KiB")]
    Memory(u32),
}

/// What a wrapped key is for; part of its context.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Purpose {
    /// The volume key.
    Volume,
    /// The data key of this id.
    Data(DataKeyId),
}

/// Associated data of every wrapped copy: `"kmsfs v1 wrap"` ‖ volume id ‖ purpose ‖ data key id.
pub fn context(volume: VolumeId, purpose: Purpose) -> [u8; CONTEXT] {
    let (code, id) = match purpose {
        Purpose::Volume => (1, [0; 16]),
        Purpose::Data(id) => (2, id.0),
    };
    let mut out = [0; CONTEXT];
    out[..13].copy_from_slice(b"kmsfs v1 wrap");
    out[13..29].copy_from_slice(&volume.0);
    out[29] = code;
    out[30..].copy_from_slice(&id);
    out
}

/// Key-encryption key of a passphrase slot. The working memory is wiped.
pub fn kek_from_passphrase(
    passphrase: &SecretBytes,
    salt: &[u8; 16],
    cost: Argon2Cost,
) -> Result<Secret<64>, KdfError> {
    let params = cost.params()?;
    let count = params.block_count();
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let mut memory: Vec<Block> = Vec::new();
    memory.try_reserve_exact(count).map_err(|_| KdfError::Memory(cost.m_kib))?;
    memory.resize(count, Block::new());
    let key = Secret::build(|out| {
        argon2
            .hash_password_into_with_memory(passphrase.expose(), salt, out, &mut memory)
            .map_err(|_| KdfError::Cost(cost))
    });
    memory.iter_mut().for_each(Zeroize::zeroize);
    sys::scrub_stack();
    key
}

/// Key-encryption key of a key-file slot, from the 32 bytes the key file holds.
pub fn kek_from_keyfile(secret: &Secret<32>, salt: &[u8; 16]) -> Secret<64> {
    let key = mac::hkdf(secret.expose(), salt, &[b"kmsfs v1 keyfile"]);
    sys::scrub_stack();
    key
}

/// The master key under a key-encryption key.
pub fn seal_master(kek: &Secret<64>, volume: VolumeId, master: &Secret<32>) -> [u8; WRAPPED] {
    seal_key(kek, &[b"kmsfs v1 master", &volume.0], master)
}

/// Reverses [`seal_master`].
pub fn open_master(
    kek: &Secret<64>,
    volume: VolumeId,
    wrapped: &[u8; WRAPPED],
) -> Result<Secret<32>, AuthError> {
    open_key(kek, &[b"kmsfs v1 master", &volume.0], wrapped)
}

/// The local master key in the form that wraps volume and data keys.
pub struct LocalWrapKey(Secret<64>);

impl LocalWrapKey {
    /// Derives it.
    pub fn derive(master: &Secret<32>, volume: VolumeId) -> Self {
        let key = mac::hkdf(master.expose(), &volume.0, &[b"kmsfs v1 local wrap"]);
        sys::scrub_stack();
        Self(key)
    }
    /// A wrapped copy bound to `context`. Deterministic.
    pub fn seal(&self, context: &[u8; CONTEXT], key: &Secret<32>) -> [u8; WRAPPED] {
        seal_key(&self.0, &[context], key)
    }
    /// Reverses [`Self::seal`].
    pub fn open(&self, context: &[u8; CONTEXT], wrapped: &[u8]) -> Result<Secret<32>, AuthError> {
        open_key(&self.0, &[context], wrapped.try_into().map_err(|_| AuthError)?)
    }
}

fn seal_key(key: &Secret<64>, ads: &[&[u8]], secret: &Secret<32>) -> [u8; WRAPPED] {
    let mut out = [0; WRAPPED];
    let (iv, body) = out.split_at_mut(siv::IV);
    body.copy_from_slice(secret.expose());
    iv.copy_from_slice(&siv::seal_in_place(key, ads, body));
    out
}

fn open_key(
    key: &Secret<64>,
    ads: &[&[u8]],
    wrapped: &[u8; WRAPPED],
) -> Result<Secret<32>, AuthError> {
    let (iv, body) = wrapped.split_first_chunk::<{ siv::IV }>().ok_or(AuthError)?;
    Secret::build(|out| {
        out.copy_from_slice(body);
        siv::open_in_place(key, ads, out, iv)
    })
}

#[cfg(test)]
mod tests;
