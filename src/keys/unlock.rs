//! From descriptor and operator's secrets to an unlocked volume; and making descriptors.

#[cfg(feature = "aws")]
use super::aws::{KeyArn, Settings};
use super::clock::boot_clock;
use super::edit;
use super::keyring::{Lifetimes, Parts};
use super::ways::Ways;
use super::{KeyError, Keyring, WrapContext, describe_recipient};
use crate::crypto::wrap::{Argon2Cost, Purpose};
use crate::crypto::{SecretBytes, VolumeKey, VolumeKeys};
use crate::format::descriptor::{Descriptor, Params};
use crate::format::header::{Recipient, RecipientKind};
use crate::format::{FormatError, VolumeId};
use std::path::PathBuf;

pub use super::master::passphrase;

/// A key named on a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySpec {
    /// `passphrase`
    Passphrase,
    /// `keyfile:PATH`
    Keyfile(PathBuf),
    /// `x25519:HEX` (recipient only)
    X25519([u8; 32]),
    /// `aws-kms:ARN`, of a key or an alias
    #[cfg(feature = "aws")]
    AwsKms(KeyArn),
}
impl KeySpec {
    /// Is a copy of every key wrapped for it by itself, rather than for the local master key?
    pub fn is_recipient(&self) -> bool {
        !matches!(self, Self::Passphrase | Self::Keyfile(_))
    }
}

impl std::str::FromStr for KeySpec {
    type Err = KeyError;
    fn from_str(s: &str) -> Result<Self, KeyError> {
        let bad = |why: &str| KeyError::Misconfigured(format!("key {s:?}: {why}"));
        match s.split_once(':') {
            None if s == "passphrase" => Ok(Self::Passphrase),
            Some(("keyfile", "")) => Err(bad("name the file after keyfile:")),
            Some(("keyfile", path)) => Ok(Self::Keyfile(path.into())),
            Some(("x25519", digits)) => data_encoding::HEXLOWER_PERMISSIVE
                .decode(digits.as_bytes())
                .ok()
                .and_then(|bytes| bytes.try_into().ok())
                .map(Self::X25519)
                .ok_or_else(|| bad("a public key is x25519: and 64 hexadecimal digits")),
            #[cfg(feature = "aws")]
            Some(("aws-kms", arn)) => KeyArn::parse(arn).map(Self::AwsKms),
            #[cfg(not(feature = "aws"))]
            Some(("aws-kms", _)) => Err(bad("this kmsfs was built without AWS KMS")),
            _ => Err(bad("it must be passphrase, keyfile:PATH, aws-kms:ARN or x25519:PUBLIC-KEY")),
        }
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
    /// What the descriptor must say.
    pub expect: Expect,
    /// How KMS is called.
    #[cfg(feature = "aws")]
    pub kms: Settings,
    /// How long keys of a KMS are used without asking.
    pub lifetimes: Lifetimes,
}

impl UnlockOptions {
    /// The same where nobody can be asked.
    pub fn without_prompt(&self) -> Self {
        Self {
            passphrase_file: self.passphrase_file.clone(),
            keyfile: self.keyfile.clone(),
            identity: self.identity.clone(),
            prompt: None,
            expect: self.expect.clone(),
            #[cfg(feature = "aws")]
            kms: self.kms.clone(),
            lifetimes: self.lifetimes,
        }
    }
}

/// What the operator remembers of a volume and the backing directory cannot be asked for: which one
/// it is, and how far its keys had come.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Expect {
    /// The only volume id to accept.
    pub volume: Option<[u8; 16]>,
    /// The only KMS keys to accept, if any are named: at least one must be among the volume's, and
    /// none but these.
    pub keys: Vec<String>,
    /// The lowest descriptor generation to accept.
    pub generation: Option<u64>,
}

impl Expect {
    /// Looks at a descriptor before any secret is asked for; its MAC is checked all the same.
    fn check(&self, descriptor: &Descriptor) -> Result<(), UnlockError> {
        let id = descriptor.volume.0;
        if self.volume.is_some_and(|wanted| wanted != id) {
            return Err(UnlockError::Unexpected(format!(
                "this is volume {}, not the expected one",
                data_encoding::HEXLOWER.encode(&id)
            )));
        }
        self.check_keys(descriptor)?;
        let found = descriptor.params.generation;
        match self.generation {
            Some(wanted) if found < wanted => Err(UnlockError::Unexpected(format!(
                "kmsfs.volume is of generation {found}, and at least {wanted} is expected: it has \
                 been replaced by an older copy, and keys removed since may be in force again; put \
                 the newer one back"
            ))),
            _ => Ok(()),
        }
    }

    fn check_keys(&self, descriptor: &Descriptor) -> Result<(), UnlockError> {
        if self.keys.is_empty() {
            return Ok(());
        }
        let kms = |list: &[Recipient]| -> Vec<String> {
            let kms = list.iter().filter(|r| r.kind == RecipientKind::AwsKms);
            kms.map(describe_recipient).collect()
        };
        let (allowed, copies) = (kms(&descriptor.allowed), kms(&descriptor.volume_keys));
        // Whoever forged the descriptor may have named the key in one place only.
        if !allowed.iter().any(|key| copies.contains(key)) {
            return Err(UnlockError::Unexpected(format!(
                "this volume has no KMS key, and {} is expected",
                self.keys.join(" or ")
            )));
        }
        let mut named = allowed.into_iter().chain(copies);
        match named.find(|key| !self.keys.contains(key)) {
            Some(stranger) => Err(UnlockError::Unexpected(format!(
                "this volume names the KMS key {stranger}, which is not an expected one ({}); if \
                 the key was rotated, name both",
                self.keys.join(", ")
            ))),
            None => Ok(()),
        }
    }
}

/// An unlocked volume.
pub struct Unlocked {
    /// Derived volume keys.
    pub keys: VolumeKeys,
    /// Data keys.
    pub keyring: Keyring,
}

/// Tries identity, key file, passphrase, in this order as given or remembered; verifies the
/// descriptor MAC. `bytes` is the whole descriptor file.
///
/// With an identity alone existing files open; new ones additionally need the key file or
/// passphrase to be named, because their keys are wrapped for every recipient.
pub fn unlock(
    bytes: &[u8],
    options: &UnlockOptions,
) -> Result<(Descriptor, Unlocked), UnlockError> {
    let (descriptor, opened) = Opened::open(bytes, options)?;
    let Opened { keys, ways, .. } = opened;
    let keyring = Keyring::from_parts(Parts {
        volume: descriptor.volume,
        files_per_data_key: descriptor.params.files_per_data_key,
        members: ways.members(&descriptor),
        volume_keys: descriptor.volume_keys.clone(),
        lifetimes: options.lifetimes,
        now: boot_clock(),
    });
    Ok((descriptor, Unlocked { keys, keyring }))
}

/// Why a volume cannot be unlocked.
#[derive(Debug, thiserror::Error)]
pub enum UnlockError {
    /// The descriptor is not valid.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The keys cannot be had.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A sound descriptor, but not the one the operator wants ([`Expect`]).
    #[error("{0}")]
    Unexpected(String),
}

/// Makes the descriptor of a new volume: fresh volume key and master, wrapped for `key` and all
/// recipients. Creates the key file if `key` names one that does not exist (0600, parent synced). A
/// passphrase comes from `options` and is asked for once; confirming it is the prompt's affair.
pub fn create(
    volume: VolumeId,
    params: Params,
    key: &KeySpec,
    recipients: &[KeySpec],
    options: &UnlockOptions,
) -> Result<Vec<u8>, UnlockError> {
    create_with_cost(volume, params, key, recipients, options, Argon2Cost::DEFAULT)
}

/// As [`create`], with another cost for the passphrase derivation.
pub fn create_with_cost(
    volume: VolumeId,
    params: Params,
    key: &KeySpec,
    recipients: &[KeySpec],
    options: &UnlockOptions,
    cost: Argon2Cost,
) -> Result<Vec<u8>, UnlockError> {
    edit::create(volume, params, key, recipients, options, cost)
}

/// A descriptor whose MAC was verified, and the keys that came out on the way.
pub(super) struct Opened {
    pub(super) volume_key: VolumeKey,
    pub(super) keys: VolumeKeys,
    pub(super) ways: Ways,
}

impl Opened {
    pub(super) fn open(
        bytes: &[u8],
        options: &UnlockOptions,
    ) -> Result<(Descriptor, Self), UnlockError> {
        let (descriptor, len) = Descriptor::parse(bytes)?;
        options.expect.check(&descriptor)?;
        let (volume_key, ways) = Ways::find(&descriptor, options)?;
        let keys = VolumeKeys::derive(&volume_key, descriptor.volume);
        let mac = bytes[len..].try_into().map_err(|_| FormatError::Length(bytes.len()))?;
        if !keys.descriptor_mac_ok(&bytes[..len], mac) {
            return Err(FormatError::Mac.into());
        }
        Ok((descriptor, Self { volume_key, keys, ways }))
    }
}

/// What copies of the volume key are bound to.
pub(super) fn volume_context(volume: VolumeId) -> WrapContext {
    WrapContext { volume, purpose: Purpose::Volume }
}

#[cfg(test)]
pub(super) mod tests;
