//! Ways into a volume: the keys at hand, which of them opened it, and a provider for each recipient.

#[cfg(feature = "aws")]
use super::aws::{self, AwsKms, KeyArn, Regions};
use super::keyring::Member;
use super::local::LocalMaster;
use super::master::{self, OpenedMaster};
use super::unlock::{UnlockOptions, volume_context};
use super::x25519::X25519;
use super::{KeyError, KeyProvider, describe_recipient, keyfile, same_key};
use crate::crypto::VolumeKey;
use crate::crypto::hpke::Identity;
use crate::format::descriptor::Descriptor;
use crate::format::header::{Recipient, RecipientKind};
use std::path::Path;
use std::sync::Arc;

/// The keys at hand for one volume.
pub(super) struct Ways {
    pub(super) master: Option<OpenedMaster>,
    pub(super) identity: Option<Identity>,
    /// One for each KMS key that the descriptor names.
    #[cfg(feature = "aws")]
    kms: Vec<Arc<AwsKms>>,
    /// A key that the operator named opened the volume: it is asked first, and no KMS is needed.
    named: bool,
}

impl Ways {
    /// Opens the volume key with what the operator named; if he named nothing, with the volume's first
    /// key, and if that cannot be had with the others.
    pub(super) fn find(
        descriptor: &Descriptor,
        options: &UnlockOptions,
    ) -> Result<(VolumeKey, Self), KeyError> {
        let mut ways = Self {
            master: None,
            identity: None,
            #[cfg(feature = "aws")]
            kms: kms_keys(descriptor, options)?,
            named: false,
        };
        let named_master = options.keyfile.is_some() || options.passphrase_file.is_some();
        ways.named = named_master || options.identity.is_some();
        if let Some(path) = &options.identity {
            let (identity, volume_key) = with_identity(descriptor, path)?;
            ways.identity = Some(identity);
            ways.master = named_master.then(|| master::open(descriptor, options)).transpose()?;
            return Ok((volume_key, ways));
        }
        if named_master {
            return ways.with_master(descriptor, options);
        }
        let kms_first =
            descriptor.volume_keys.first().is_some_and(|copy| copy.kind == RecipientKind::AwsKms);
        let pinned = !options.expect.keys.is_empty();
        if !kms_first && !pinned {
            ways.master = remembered_master(descriptor, options);
        }
        if let Some(opened) = &ways.master {
            return Ok((unwrap_with_master(descriptor, opened)?, ways));
        }
        match ways.with_kms(descriptor) {
            Some(Ok(volume_key)) => {
                ways.master = remembered_master(descriptor, options);
                Ok((volume_key, ways))
            }
            // A volume pinned to its KMS key is not opened with anything else that lies about.
            Some(Err(error)) if !error.falls_through() || pinned => Err(error),
            Some(Err(error)) => {
                let Some(opened) = remembered_master(descriptor, options) else {
                    return Err(error);
                };
                log::warn!("{error}; opened with the volume's key file instead");
                let volume_key = unwrap_with_master(descriptor, &opened)?;
                ways.master = Some(opened);
                Ok((volume_key, ways))
            }
            None if pinned => Err(KeyError::NotOurs(format!(
                "this volume has no KMS key, and {} is expected",
                options.expect.keys.join(" or ")
            ))),
            None => ways.with_master(descriptor, options),
        }
    }

    fn with_master(
        mut self,
        descriptor: &Descriptor,
        options: &UnlockOptions,
    ) -> Result<(VolumeKey, Self), KeyError> {
        let opened = master::open(descriptor, options)?;
        let volume_key = unwrap_with_master(descriptor, &opened)?;
        self.master = Some(opened);
        Ok((volume_key, self))
    }

    /// `None` when the volume has no KMS key.
    #[cfg(feature = "aws")]
    fn with_kms(&self, descriptor: &Descriptor) -> Option<Result<VolumeKey, KeyError>> {
        let mut last = None;
        for provider in &self.kms {
            match unwrap_volume_key(descriptor, &**provider) {
                Err(error) if error.falls_through() => last = Some(Err(error)),
                answer => return Some(answer),
            }
        }
        last
    }

    #[cfg(not(feature = "aws"))]
    fn with_kms(&self, descriptor: &Descriptor) -> Option<Result<VolumeKey, KeyError>> {
        let kms = descriptor.volume_keys.iter().find(|copy| copy.kind == RecipientKind::AwsKms)?;
        let name = describe_recipient(kms);
        let text = format!("{name}: this kmsfs was built without AWS KMS");
        Some(Err(KeyError::Unavailable(text)))
    }

    /// A provider for every recipient of the descriptor's list, as far as the keys at hand go.
    pub(super) fn members(mut self, descriptor: &Descriptor) -> Vec<Member> {
        let member = |recipient: &Recipient| {
            let provider: Option<Arc<dyn KeyProvider>> = match recipient.kind {
                RecipientKind::LocalMaster => self.master.as_ref().map(|opened| {
                    let local =
                        LocalMaster::new(&opened.master, descriptor.volume, recipient.epoch);
                    Arc::new(local) as Arc<dyn KeyProvider>
                }),
                RecipientKind::X25519 => x25519_provider(recipient, &mut self.identity),
                RecipientKind::AwsKms => self.kms_provider(recipient),
            };
            // Asked first if it was named: what for would it have been, otherwise?
            let local = provider.as_ref().is_some_and(|provider| !provider.is_remote());
            let preferred = self.named && local;
            Member { recipient: recipient.clone(), provider, preferred }
        };
        descriptor.allowed.iter().map(member).collect()
    }

    #[cfg(feature = "aws")]
    fn kms_provider(&self, recipient: &Recipient) -> Option<Arc<dyn KeyProvider>> {
        let found = self.kms.iter().find(|provider| same_key(&provider.recipient(), recipient));
        found.cloned().map(|provider| provider as Arc<dyn KeyProvider>)
    }

    #[cfg(not(feature = "aws"))]
    fn kms_provider(&self, recipient: &Recipient) -> Option<Arc<dyn KeyProvider>> {
        log::warn!("{}: this kmsfs was built without AWS KMS", describe_recipient(recipient));
        None
    }
}

#[cfg(feature = "aws")]
fn kms_keys(
    descriptor: &Descriptor,
    options: &UnlockOptions,
) -> Result<Vec<Arc<AwsKms>>, KeyError> {
    let mut regions = Regions::new(options.kms.clone());
    let names = descriptor.allowed.iter().filter(|r| r.kind == RecipientKind::AwsKms);
    names
        .map(|recipient| {
            let arn = aws_arn(recipient)?;
            Ok(Arc::new(regions.provider(arn, recipient.epoch)))
        })
        .collect()
}

/// The key a descriptor or header names; an alias there was not written by kmsfs.
#[cfg(feature = "aws")]
fn aws_arn(recipient: &Recipient) -> Result<KeyArn, KeyError> {
    let arn = KeyArn::parse(&describe_recipient(recipient))?;
    if arn.is_alias() {
        return Err(KeyError::Tampered(format!(
            "kmsfs.volume names the alias {} instead of a key; put a sound copy back",
            arn.as_str()
        )));
    }
    debug_assert_eq!(aws::name(&arn, recipient.epoch).key_ref, recipient.key_ref);
    Ok(arn)
}

/// The master key of a volume that is opened otherwise, if its key file is where it was.
fn remembered_master(descriptor: &Descriptor, options: &UnlockOptions) -> Option<OpenedMaster> {
    if descriptor.masters.is_empty() {
        return None;
    }
    let silent = UnlockOptions { keyfile: options.keyfile.clone(), ..UnlockOptions::default() };
    match master::open(descriptor, &silent) {
        Ok(opened) => Some(opened),
        Err(error) => {
            log::info!("{error}; files can be opened all the same, but none can be made");
            None
        }
    }
}

pub(super) fn unwrap_volume_key(
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

pub(super) fn with_identity(
    descriptor: &Descriptor,
    path: &Path,
) -> Result<(Identity, VolumeKey), KeyError> {
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

fn unwrap_with_master(
    descriptor: &Descriptor,
    opened: &OpenedMaster,
) -> Result<VolumeKey, KeyError> {
    unwrap_volume_key(descriptor, &LocalMaster::new(&opened.master, descriptor.volume, 0))
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
