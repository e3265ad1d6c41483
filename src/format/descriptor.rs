//! `kmsfs.volume`: the volume descriptor.

use super::header::Recipient;
use super::{FormatError, VolumeId};

/// How names are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum NameMode {
    /// Encrypted.
    Encrypted = 1,
    /// As they are.
    Plain = 2,
}

/// Volume parameters, fixed at init.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Params {
    /// 1, 2 or 4.
    pub header_blocks: u8,
    /// Name storage.
    pub names: NameMode,
    /// 1..=65536 new files share a data key.
    pub files_per_data_key: u32,
    /// Seconds since 1970.
    pub created: u64,
}

/// How a local master key is unlocked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MasterKdf {
    /// HKDF of a key file's secret; the path is a hint only.
    Keyfile,
    /// Argon2id with its cost.
    Passphrase {
        /// KiB.
        m_kib: u32,
        /// Passes.
        t: u32,
        /// Lanes.
        p: u32,
    },
}

/// One way to the local master key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MasterSlot {
    /// Derivation.
    pub kdf: MasterKdf,
    /// Salt of the derivation.
    pub salt: [u8; 16],
    /// Where the key file was at init; empty for passphrases.
    pub hint: String,
    /// The master key under the derived key.
    pub wrapped: [u8; 48],
}

/// The parsed descriptor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Descriptor {
    /// Volume id.
    pub volume: VolumeId,
    /// Parameters.
    pub params: Params,
    /// Feature names a reader may ignore.
    pub compat: Vec<String>,
    /// Feature names a reader may ignore when it does not write.
    pub ro_compat: Vec<String>,
    /// Feature names a reader must know.
    pub incompat: Vec<String>,
    /// Ways to the local master key.
    pub masters: Vec<MasterSlot>,
    /// Wrapping keys headers may name (wrapped empty).
    pub allowed: Vec<Recipient>,
    /// Wrapped copies of the volume key.
    pub volume_keys: Vec<Recipient>,
}

/// File name in the backing root.
pub const DESCRIPTOR_NAME: &str = "kmsfs.volume";

impl Descriptor {
    /// Encodes with its MAC.
    pub fn encode(&self, mac: impl FnOnce(&[u8]) -> [u8; 32]) -> Vec<u8> {
        todo!()
    }
    /// Parses without the MAC (it needs a key found inside): every structural check, feature names included
    /// (unknown incompat features are refused; ro-compat ones reported by [`Self::read_only_reason`]).
    /// Returns the descriptor and the length of the MACed part.
    pub fn parse(bytes: &[u8]) -> Result<(Self, usize), FormatError> {
        todo!()
    }
    /// Name of an unknown read-only compatible feature, if any.
    pub fn read_only_reason(&self) -> Option<&str> {
        todo!()
    }
}
