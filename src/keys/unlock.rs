//! From descriptor and operator's secrets to an unlocked volume; and making descriptors.

use super::{KeyError, Keyring};
use crate::crypto::{SecretBytes, VolumeKeys};
use crate::format::VolumeId;
use crate::format::descriptor::{Descriptor, Params};
use std::path::PathBuf;

/// A key named on a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySpec {
    /// `passphrase`
    Passphrase,
    /// `keyfile:PATH`
    Keyfile(PathBuf),
    /// `x25519:HEX` (recipient only)
    X25519([u8; 32]),
}
impl std::str::FromStr for KeySpec {
    type Err = KeyError;
    fn from_str(s: &str) -> Result<Self, KeyError> {
        todo!()
    }
}

/// Asks a human for a passphrase; the argument is the prompt.
pub type Prompt = dyn Fn(&str) -> std::io::Result<SecretBytes> + Send + Sync;

/// Where the secrets to unlock a volume come from.
#[derive(Default)]
pub struct UnlockOptions {
    /// Read the passphrase from this file (one trailing newline dropped).
    pub passphrase_file: Option<PathBuf>,
    /// Use this key file instead of the one the descriptor remembers.
    pub keyfile: Option<PathBuf>,
    /// Use this X25519 identity file (break-glass).
    pub identity: Option<PathBuf>,
    /// Asked when a passphrase is needed and no file is given.
    pub prompt: Option<Box<Prompt>>,
}

/// An unlocked volume.
pub struct Unlocked {
    /// Derived volume keys.
    pub keys: VolumeKeys,
    /// Data keys.
    pub keyring: Keyring,
}

/// Tries identity, key file, passphrase, in this order as given or remembered; verifies the descriptor MAC.
/// `bytes` is the whole descriptor file.
pub fn unlock(
    bytes: &[u8],
    options: &UnlockOptions,
) -> Result<(Descriptor, Unlocked), UnlockError> {
    todo!()
}

/// Why a volume cannot be unlocked.
#[derive(Debug, thiserror::Error)]
pub enum UnlockError {
    /// The descriptor is not valid.
    #[error(transparent)]
    Format(#[from] crate::format::FormatError),
    /// The keys cannot be had.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// Makes the descriptor of a new volume: fresh volume key and master, wrapped for `key` and all recipients.
/// Creates the key file if `key` names one that does not exist (0600, parent synced).
pub fn create(
    volume: VolumeId,
    params: Params,
    key: &KeySpec,
    recipients: &[KeySpec],
    options: &UnlockOptions,
) -> Result<Vec<u8>, UnlockError> {
    todo!()
}
