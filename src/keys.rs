//! Key providers, recipients, the data-key cache and the supply for new files. Never sees a file of
//! the volume.
//!
//! A provider wraps and unwraps 32-byte keys under one wrapping key; [`Keyring`] combines the
//! providers of an unlocked volume. Sentences in errors are for the person at the keyboard: what
//! happened, to which key, what to do. Nothing secret ever stands in one.

#[cfg(feature = "aws")]
pub mod aws;
pub mod cache;
pub mod clock;
pub mod edit;
pub mod examine;
pub mod finding;
pub mod keyfile;
pub mod keyring;
pub mod local;
mod master;
pub mod prices;
mod recipients;
mod rewraps;
pub mod rotation;
mod supply;
pub mod unlock;
pub mod wait;
mod ways;
pub mod x25519;

use crate::crypto::Secret;
use crate::crypto::wrap::{self, Purpose};
use crate::format::VolumeId;
use crate::format::descriptor::Descriptor;
use crate::format::header::{Recipient, RecipientKind};
use std::time::Duration;
use thiserror::Error;
use wait::Need;

pub use edit::Editor;
pub use keyring::{KeyFacts, Keyring, Lifetimes, NewDataKey};
pub use unlock::{KeySpec, UnlockOptions, Unlocked, unlock};

/// Why a key could not be had. The class decides what happens next (fall through, errno, exit
/// code).
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum KeyError {
    /// The key exists and its owner has switched it off.
    #[error("{0}")]
    Revoked(String),
    /// The KMS says no to this caller, or knows no such key; asked once more before it counts as
    /// revoked.
    #[error("{0}")]
    Denied(String),
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
    /// The operator must mend something: missing key file, bad permissions, wrong passphrase, bad
    /// key spec.
    #[error("{0}")]
    Misconfigured(String),
    /// Wrong passphrase or key file.
    #[error("{0}")]
    WrongKey(String),
    /// Has to be waited for, where nobody may wait ([`wait`]).
    #[error("the key has to be asked for first")]
    WouldWait(Box<Need>),
}

impl KeyError {
    /// May the next recipient be tried? Only when this one cannot answer now; a revoked key is an
    /// answer.
    pub fn falls_through(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Throttled(_))
    }
}

/// What a wrapped copy is bound to. Providers that have a structured context of their own read the
/// fields; the others take [`Self::bytes`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WrapContext {
    /// The volume.
    pub volume: VolumeId,
    /// Volume key, or which data key.
    pub purpose: Purpose,
}

impl WrapContext {
    /// Associated data of the wrapped copy.
    pub fn bytes(&self) -> [u8; wrap::CONTEXT] {
        wrap::context(self.volume, self.purpose)
    }
}

/// One wrapping key. Implementations are called from many threads and may block.
pub trait KeyProvider: Send + Sync {
    /// Kind, reference and epoch as descriptors and headers name this key; `wrapped` is empty.
    fn recipient(&self) -> Recipient;
    /// For people: `local master key`, `x25519:…`.
    fn describe(&self) -> String;
    /// A fresh key and its copy wrapped by this provider.
    fn generate(&self, context: &WrapContext) -> Result<(Secret<32>, Recipient), KeyError> {
        let key = Secret::random();
        let wrapped = self.wrap(context, &key)?;
        Ok((key, wrapped))
    }
    /// A copy of a key wrapped by this provider.
    fn wrap(&self, context: &WrapContext, key: &Secret<32>) -> Result<Recipient, KeyError>;
    /// The key in a copy that [`same_key`] says is this provider's.
    fn unwrap(&self, context: &WrapContext, copy: &Recipient) -> Result<Secret<32>, KeyError>;
    /// The key in another provider's copy wrapped by this one, without anybody seeing it; `None` when
    /// copies of that kind cannot be had so.
    fn reencrypt(
        &self,
        _context: &WrapContext,
        _copy: &Recipient,
    ) -> Option<Result<Recipient, KeyError>> {
        None
    }
    /// Is what unwrapping takes at hand, or only what wrapping takes?
    fn can_unwrap(&self) -> bool {
        true
    }
    /// Is somebody else asked, who may take his time, be away, or say no tomorrow?
    fn is_remote(&self) -> bool {
        false
    }
    /// Is there room for calls that nobody waits for?
    fn has_spare(&self) -> bool {
        true
    }
    /// Drops what it remembers of answers: buffers, connections.
    fn forget(&self) {}
    /// Counters of a remote provider.
    fn report(&self) -> Option<ProviderReport> {
        None
    }
}

/// A remote provider at a glance.
#[derive(Clone, Debug)]
pub struct ProviderReport {
    /// Which key.
    pub key: String,
    /// Callers are turned away until it answers again.
    pub breaker_open: bool,
    /// What was asked.
    pub calls: CallFacts,
}

/// A reading of the counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallFacts {
    /// Operation, outcome (`ok` or the class of the error), number.
    pub counts: Vec<(&'static str, &'static str, u64)>,
    /// Half of the unwraps took at most this long.
    pub unwrap_p50: Option<Duration>,
    /// Ninety-nine of a hundred.
    pub unwrap_p99: Option<Duration>,
    /// Age of the last answer that was no error.
    pub last_success: Option<Duration>,
    /// The last error's sentence.
    pub last_error: Option<String>,
}

/// Do two records name the same wrapping key, whatever its epoch?
pub fn same_key(a: &Recipient, b: &Recipient) -> bool {
    a.kind == b.kind && a.key_ref == b.key_ref
}

/// The KMS keys of a descriptor, by ARN: those new keys are wrapped for, and those that headers may
/// still name and nothing new is wrapped for.
pub fn kms_keys(descriptor: &Descriptor) -> (Vec<String>, Vec<String>) {
    let names = |list: &[Recipient]| -> Vec<String> {
        let kms = list.iter().filter(|r| r.kind == RecipientKind::AwsKms);
        kms.map(describe_recipient).collect()
    };
    let current = names(&descriptor.volume_keys);
    let mut retiring = names(&descriptor.allowed);
    retiring.retain(|key| !current.contains(key));
    (current, retiring)
}

/// A recipient for people: `local master key`, `x25519:…`, a key ARN.
pub fn describe_recipient(recipient: &Recipient) -> String {
    match recipient.kind {
        RecipientKind::LocalMaster => "local master key".into(),
        RecipientKind::X25519 => {
            format!("x25519:{}", data_encoding::HEXLOWER.encode(&recipient.key_ref))
        }
        RecipientKind::AwsKms => String::from_utf8_lossy(&recipient.key_ref).into_owned(),
    }
}
