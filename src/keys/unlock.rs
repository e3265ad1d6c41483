//! From descriptor and operator's secrets to an unlocked volume; and making descriptors.

use super::edit;
use super::keyring::Member;
use super::local::LocalMaster;
use super::master::{self, OpenedMaster};
use super::x25519::X25519;
use super::{KeyError, KeyProvider, Keyring, WrapContext, describe_recipient, keyfile, same_key};
use crate::crypto::hpke::Identity;
use crate::crypto::wrap::{Argon2Cost, Purpose};
use crate::crypto::{SecretBytes, VolumeKey, VolumeKeys};
use crate::format::descriptor::{Descriptor, Params};
use crate::format::header::{Recipient, RecipientKind};
use crate::format::{FormatError, VolumeId};
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
            _ => Err(bad("it must be passphrase, keyfile:PATH or x25519:PUBLIC-KEY")),
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
}

/// What the operator remembers of a volume and the backing directory cannot be asked for: which one
/// it is, and how far its keys had come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Expect {
    /// The only volume id to accept.
    pub volume: Option<[u8; 16]>,
    /// The lowest descriptor generation to accept.
    pub generation: Option<u64>,
}

impl Expect {
    /// Looks at a descriptor before any secret is asked for; its MAC is checked all the same.
    fn check(self, descriptor: &Descriptor) -> Result<(), UnlockError> {
        let id = descriptor.volume.0;
        if self.volume.is_some_and(|wanted| wanted != id) {
            return Err(UnlockError::Unexpected(format!(
                "this is volume {}, not the expected one",
                data_encoding::HEXLOWER.encode(&id)
            )));
        }
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
    let Opened { keys, master, identity, .. } = opened;
    let members = members(&descriptor, master, identity);
    let keyring = Keyring::new(descriptor.volume, descriptor.params.files_per_data_key, members);
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
    pub(super) master: Option<OpenedMaster>,
    pub(super) identity: Option<Identity>,
}

impl Opened {
    pub(super) fn open(
        bytes: &[u8],
        options: &UnlockOptions,
    ) -> Result<(Descriptor, Self), UnlockError> {
        let (descriptor, len) = Descriptor::parse(bytes)?;
        options.expect.check(&descriptor)?;
        let named = options.keyfile.is_some() || options.passphrase_file.is_some();
        let (volume_key, master, identity) = match &options.identity {
            Some(path) => {
                let (identity, volume_key) = with_identity(&descriptor, path)?;
                let master = named.then(|| master::open(&descriptor, options)).transpose()?;
                (volume_key, master, Some(identity))
            }
            None => {
                let master = master::open(&descriptor, options)?;
                (with_master(&descriptor, &master)?, Some(master), None)
            }
        };
        let keys = VolumeKeys::derive(&volume_key, descriptor.volume);
        let mac = bytes[len..].try_into().map_err(|_| FormatError::Length(bytes.len()))?;
        if !keys.descriptor_mac_ok(&bytes[..len], mac) {
            return Err(FormatError::Mac.into());
        }
        Ok((descriptor, Self { volume_key, keys, master, identity }))
    }
}

/// What copies of the volume key are bound to.
pub(super) fn volume_context(volume: VolumeId) -> WrapContext {
    WrapContext { volume, purpose: Purpose::Volume }
}

fn unwrap_volume_key(
    descriptor: &Descriptor,
    provider: &dyn KeyProvider,
) -> Result<VolumeKey, KeyError> {
    let name = provider.recipient();
    let copy =
        descriptor.volume_keys.iter().find(|copy| same_key(copy, &name)).ok_or_else(|| {
            KeyError::NotOurs(format!("{} is not a recipient of this volume", provider.describe()))
        })?;
    provider.unwrap(&volume_context(descriptor.volume), copy).map(VolumeKey)
}

fn with_identity(descriptor: &Descriptor, path: &Path) -> Result<(Identity, VolumeKey), KeyError> {
    let identity = keyfile::read_identity(path)?;
    let name = X25519::name(&identity.public_key(), 0);
    let provider = X25519::with_identity(identity, 0);
    let volume_key = unwrap_volume_key(descriptor, &provider).map_err(|error| match error {
        KeyError::NotOurs(_) => KeyError::NotOurs(format!(
            "identity file {} ({}) is not a recipient of this volume",
            path.display(),
            describe_recipient(&name)
        )),
        other => other,
    })?;
    let identity = provider.into_identity().ok_or_else(|| {
        KeyError::Unavailable(format!("identity file {} went away", path.display()))
    })?;
    Ok((identity, volume_key))
}

fn with_master(descriptor: &Descriptor, opened: &OpenedMaster) -> Result<VolumeKey, KeyError> {
    unwrap_volume_key(descriptor, &LocalMaster::new(&opened.master, descriptor.volume, 0))
}

/// A provider for every recipient of the descriptor's list, as far as the keys at hand go.
fn members(
    descriptor: &Descriptor,
    master: Option<OpenedMaster>,
    mut identity: Option<Identity>,
) -> Vec<Member> {
    let mut member = |recipient: &Recipient| {
        let provider: Option<Arc<dyn KeyProvider>> = match recipient.kind {
            RecipientKind::LocalMaster => master.as_ref().map(|opened| {
                let local = LocalMaster::new(&opened.master, descriptor.volume, recipient.epoch);
                Arc::new(local) as Arc<dyn KeyProvider>
            }),
            RecipientKind::X25519 => x25519_provider(recipient, &mut identity),
            RecipientKind::AwsKms => {
                log::warn!("{}: no provider in this kmsfs", describe_recipient(recipient));
                None
            }
        };
        Member { recipient: recipient.clone(), provider }
    };
    descriptor.allowed.iter().map(&mut member).collect()
}

fn x25519_provider(
    recipient: &Recipient,
    identity: &mut Option<Identity>,
) -> Option<Arc<dyn KeyProvider>> {
    let public: [u8; 32] = recipient.key_ref.as_slice().try_into().ok()?;
    let ours = identity.take_if(|identity| identity.public_key() == public);
    Some(Arc::new(match ours {
        Some(identity) => X25519::with_identity(identity, recipient.epoch),
        None => X25519::public(public, recipient.epoch),
    }))
}

#[cfg(test)]
pub(super) mod tests;
