//! Key providers, recipients, the data-key cache and the supply for new files. Never sees a file of the volume.

pub mod cache;
pub mod keyfile;
pub mod keyring;
pub mod local;
pub mod unlock;
pub mod x25519;

use thiserror::Error;

pub use keyring::{Keyring, NewDataKey};
pub use unlock::{KeySpec, UnlockOptions, Unlocked, unlock};

/// Why a key could not be had. The class decides what happens next (fall through, errno, exit code).
#[derive(Debug, Error)]
pub enum KeyError {
    /// The key exists and its owner says no: disabled, access denied.
    #[error("{0}")]
    Revoked(String),
    /// Cannot be reached now.
    #[error("{0}")]
    Unavailable(String),
    /// Asked too often.
    #[error("{0}")]
    Throttled(String),
    /// No recipient of ours.
    #[error("{0}")]
    NotOurs(String),
    /// Wrapped key or context does not authenticate (for a passphrase: it is wrong).
    #[error("{0}")]
    Tampered(String),
    /// The operator must mend something: missing key file, bad permissions, wrong passphrase, bad key spec.
    #[error("{0}")]
    Misconfigured(String),
    /// Wrong passphrase or key file.
    #[error("{0}")]
    WrongKey(String),
}
