//! Making and changing descriptors: passphrases, key files, recipients.
//!
//! Nothing here touches a file header: a change of passphrase or key file leaves the master key as
//! it is, and headers follow a change of recipients by [`super::Keyring::rewrap`]. Someone who kept
//! an old descriptor and an old passphrase can still open it; that is what rewrapping under a new
//! master is for.

#[cfg(feature = "aws")]
use super::aws::{self, AwsKms, KeyArn, Regions, Settings};
use super::clock::unix_seconds;
use super::local::LocalMaster;
use super::master::{self, keyfile_slot, passphrase_slot};
use super::unlock::{KeySpec, Opened, UnlockError, UnlockOptions, volume_context};
use super::x25519::X25519;
use super::{KeyError, KeyProvider, describe_recipient, keyfile, rotation, same_key};
use crate::crypto::wrap::Argon2Cost;
use crate::crypto::{Secret, SecretBytes, VolumeKey, VolumeKeys};
use crate::format::descriptor::{Descriptor, MAX_MASTERS, MasterKdf, MasterSlot, Params};
use crate::format::header::{self, KeySlot, Recipient};
use crate::format::layout::Layout;
use crate::format::recipient::{MAX_RECIPIENTS, RecipientKind};
use crate::format::{DataKeyId, FormatError, VolumeId};
use std::path::Path;
#[cfg(feature = "aws")]
use std::time::Duration;

#[cfg(feature = "aws")]
mod exchange;

/// Epoch of every wrapping key until its material is replaced.
const FIRST_EPOCH: u32 = 1;
/// How long a new KMS key may take to be known everywhere.
#[cfg(feature = "aws")]
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes a descriptor, with header blocks as needed if `params` says 0; see [`super::unlock::create`].
pub(super) fn create(
    volume: VolumeId,
    params: Params,
    key: &KeySpec,
    recipients: &[KeySpec],
    options: &UnlockOptions,
    cost: Argon2Cost,
) -> Result<Vec<u8>, UnlockError> {
    if recipients.contains(key) {
        return Err(bad("the volume's key is named a second time as a recipient").into());
    }
    let (volume_key, first) = first_copy(volume, key, options)?;
    let keys = VolumeKeys::derive(&volume_key, volume);
    let mut descriptor = Descriptor {
        volume,
        params,
        compat: vec![],
        ro_compat: vec![],
        incompat: vec![],
        masters: vec![],
        allowed: vec![],
        volume_keys: vec![],
    };
    let grows = descriptor.params.header_blocks == 0;
    descriptor.params.header_blocks = descriptor.params.header_blocks.max(1);
    let mut editor = Editor { descriptor, before: None, grows, volume_key, keys, master: None };
    match first {
        Some(copy) => editor.push_copy(copy)?,
        None => editor.add_master(key, options, cost)?,
    }
    for recipient in recipients {
        match recipient {
            KeySpec::X25519(public) => editor.add_recipient(*public)?,
            KeySpec::Passphrase | KeySpec::Keyfile(_) => {
                editor.add_master(recipient, options, cost)?;
            }
            #[cfg(feature = "aws")]
            KeySpec::AwsKms(arn) => {
                if !editor.add_kms_key(arn, options)? {
                    let name = arn.as_str();
                    return Err(
                        bad(&format!("{name} stands for a key that is named already")).into()
                    );
                }
            }
        }
    }
    editor.finish()
}

/// The volume key. A KMS that is to wrap it first makes it, too, and gives its copy.
fn first_copy(
    volume: VolumeId,
    key: &KeySpec,
    options: &UnlockOptions,
) -> Result<(VolumeKey, Option<Recipient>), KeyError> {
    #[cfg(not(feature = "aws"))]
    let _ = (volume, options);
    match key {
        KeySpec::Passphrase | KeySpec::Keyfile(_) => Ok((VolumeKey(Secret::random()), None)),
        KeySpec::X25519(_) => Err(bad(
            "an x25519 key can only be a recipient; name a passphrase, a key file or a KMS key as \
             the volume's key",
        )),
        #[cfg(feature = "aws")]
        KeySpec::AwsKms(arn) => {
            let provider = kms_provider(arn, options);
            let (key, copy) = provider.generate(&volume_context(volume))?;
            Ok((VolumeKey(key), Some(copy)))
        }
    }
}

/// For a key that may have been made, or given its policy, a moment ago.
#[cfg(feature = "aws")]
fn kms_provider(arn: &KeyArn, options: &UnlockOptions) -> AwsKms {
    let patient = Settings { may_be_new: true, deadline: PATIENCE, ..options.kms.clone() };
    Regions::new(patient).provider(arn.clone(), FIRST_EPOCH)
}

/// An opened descriptor being changed. Nothing is written: [`Self::finish`] gives the new bytes.
pub struct Editor {
    descriptor: Descriptor,
    /// As it was opened; a new volume has none.
    before: Option<Descriptor>,
    /// No file has a header yet, and how large headers are is left to us.
    grows: bool,
    volume_key: VolumeKey,
    keys: VolumeKeys,
    /// The master key and the slot it was opened with, if that still stands.
    master: Option<(Secret<32>, Option<usize>)>,
}

impl Editor {
    /// Opens a descriptor as [`super::unlock()`] does.
    pub fn open(bytes: &[u8], options: &UnlockOptions) -> Result<Self, UnlockError> {
        let (descriptor, opened) = Opened::open(bytes, options)?;
        let Opened { volume_key, keys, ways } = opened;
        let master = ways.master.map(|opened| (opened.master, Some(opened.slot)));
        let before = Some(descriptor.clone());
        Ok(Self { descriptor, before, grows: false, volume_key, keys, master })
    }

    /// The descriptor as it stands.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// The volume's keys, which no change of the descriptor changes.
    pub fn volume_keys(&self) -> VolumeKeys {
        VolumeKeys::derive(&self.volume_key, self.descriptor.volume)
    }

    /// The new descriptor file. Its generation is one higher if anything was changed.
    pub fn finish(mut self) -> Result<Vec<u8>, UnlockError> {
        if self.before.as_ref().is_some_and(|before| *before != self.descriptor) {
            let next = self.descriptor.params.generation.checked_add(1);
            self.descriptor.params.generation =
                next.ok_or(FormatError::Field("descriptor generation"))?;
        }
        Ok(self.descriptor.encode_checked(|bytes| self.keys.descriptor_mac(bytes))?)
    }

    /// Sets how many days lie between two rotations of the KMS key with this id; whether that is a change.
    pub fn set_rotation_period(&mut self, id: &str, days: u32) -> bool {
        rotation::set_period(&mut self.descriptor, id, days, unix_seconds())
    }

    /// Keeps no period for the KMS key with this id any more; whether that is a change.
    pub fn drop_rotation_period(&mut self, id: &str) -> bool {
        rotation::drop_period(&mut self.descriptor, id)
    }

    /// Ids of the KMS keys for which it is said that the period is theirs, that which is due first in
    /// front.
    pub fn rotation_kept_for(&self) -> Vec<String> {
        rotation::kept_for(&self.descriptor)
    }

    /// The KMS key with the first id was replaced by that with the second in a rotation, which is to be
    /// finished.
    pub fn note_rotation_pair(&mut self, from: &str, to: &str) {
        rotation::set_pair(&mut self.descriptor, from, to);
    }

    /// The KMS key with the first id was replaced by that with the second; `now` in seconds since 1970.
    pub fn note_rotation(&mut self, from: &str, to: &str, now: u64) {
        rotation::set_rotated(&mut self.descriptor, from, to, now);
    }

    /// Replaces the passphrase the volume was opened with; if it was opened otherwise, its only
    /// one.
    pub fn change_passphrase(
        &mut self,
        new: &SecretBytes,
        cost: Argon2Cost,
    ) -> Result<(), KeyError> {
        let index = self.passphrase_to_change()?;
        let slot = passphrase_slot(self.descriptor.volume, self.master()?, new, cost)?;
        self.descriptor.masters[index] = slot;
        Ok(())
    }

    /// Adds a passphrase.
    pub fn add_passphrase(&mut self, new: &SecretBytes, cost: Argon2Cost) -> Result<(), KeyError> {
        self.check_master_room()?;
        self.ensure_master()?;
        let slot = passphrase_slot(self.descriptor.volume, self.master()?, new, cost)?;
        self.push_master(slot)
    }

    /// Adds a key file, made if it does not exist.
    pub fn add_keyfile(&mut self, path: &Path) -> Result<(), KeyError> {
        self.check_master_room()?;
        let exists = std::fs::symlink_metadata(path).is_ok();
        // The master key is needed before the file is made, or a refusal would leave one behind.
        self.ensure_master()?;
        let secret =
            if exists { keyfile::read_keyfile(path)? } else { keyfile::create_keyfile(path)? };
        if master::opens_with_keyfile(&self.descriptor, &secret).is_some() {
            return Err(bad(&format!("{} is a key file of this volume already", path.display())));
        }
        let slot = keyfile_slot(self.descriptor.volume, self.master()?, &secret, path);
        self.push_master(slot)
    }

    /// Removes the passphrase the volume was opened with; if it was opened otherwise, its only one.
    pub fn remove_passphrase(&mut self) -> Result<(), KeyError> {
        let index = self.passphrase_to_change()?;
        self.remove_master(index)
    }

    /// Removes the key file that was made at, or now is at, `path`.
    pub fn remove_keyfile(&mut self, path: &Path) -> Result<(), KeyError> {
        let by_content = keyfile::read_keyfile(path)
            .ok()
            .and_then(|secret| master::opens_with_keyfile(&self.descriptor, &secret))
            .map(|opened| opened.slot);
        let hint = master::hint(path);
        let by_place = || {
            let remembered =
                |slot: &MasterSlot| slot.kdf == MasterKdf::Keyfile && slot.hint == hint;
            self.descriptor.masters.iter().position(remembered)
        };
        match by_content.or_else(by_place) {
            Some(index) => self.remove_master(index),
            None => Err(bad(&format!("{} is not a key file of this volume", path.display()))),
        }
    }

    /// Adds an X25519 recipient: from now on new files, and the volume key, can be opened with it.
    pub fn add_recipient(&mut self, public: [u8; 32]) -> Result<(), KeyError> {
        self.push_recipient(&X25519::public(public, FIRST_EPOCH))
    }

    /// Removes an X25519 recipient. Headers written so far still carry a copy for it until they are
    /// rewrapped. The last recipient stays.
    pub fn remove_recipient(&mut self, public: [u8; 32]) -> Result<(), KeyError> {
        self.remove_named(&X25519::name(&public, FIRST_EPOCH))
    }

    /// Adds a KMS key. False if the key, which an alias only stands for, is a recipient already.
    #[cfg(feature = "aws")]
    pub fn add_kms_key(&mut self, arn: &KeyArn, options: &UnlockOptions) -> Result<bool, KeyError> {
        let context = volume_context(self.descriptor.volume);
        let copy = kms_provider(arn, options).wrap(&context, &self.volume_key.0)?;
        let new = self.check_new(&copy).is_ok();
        if new {
            self.push_copy(copy)?;
        }
        Ok(new)
    }

    /// Does this key file open the volume already?
    pub fn has_keyfile(&self, path: &Path) -> bool {
        let secret = keyfile::read_keyfile(path).ok();
        secret.is_some_and(|secret| master::opens_with_keyfile(&self.descriptor, &secret).is_some())
    }

    /// Removes a KMS key, as [`Self::remove_recipient`] does.
    #[cfg(feature = "aws")]
    pub fn remove_kms_key(&mut self, arn: &KeyArn) -> Result<(), KeyError> {
        if arn.is_alias() {
            return Err(bad("an alias may point to another key by now; name the key itself"));
        }
        self.drop_rotation_period(arn.id());
        self.remove_named(&aws::name(arn, FIRST_EPOCH))
    }

    fn remove_named(&mut self, name: &Recipient) -> Result<(), KeyError> {
        if !self.descriptor.allowed.iter().any(|other| same_key(other, name)) {
            return Err(KeyError::NotOurs(format!(
                "{} is not a recipient of this volume",
                describe_recipient(name)
            )));
        }
        let opens = |copy: &Recipient| same_key(copy, name);
        let copies = &self.descriptor.volume_keys;
        if copies.len() == 1 && copies.iter().any(opens) {
            return Err(bad("the last recipient cannot be removed: nobody could open the volume"));
        }
        self.descriptor.allowed.retain(|other| !same_key(other, name));
        self.descriptor.volume_keys.retain(|other| !same_key(other, name));
        Ok(())
    }

    /// Makes the local master key a recipient, opened with `key`; or one more key file or passphrase
    /// of the one there is.
    fn add_master(
        &mut self,
        key: &KeySpec,
        options: &UnlockOptions,
        cost: Argon2Cost,
    ) -> Result<(), KeyError> {
        match key {
            KeySpec::Keyfile(path) => self.add_keyfile(path),
            _ => {
                let passphrase = master::passphrase(options, "Passphrase of the new volume: ")?;
                self.add_passphrase(&passphrase, cost)
            }
        }
    }

    /// A volume that had only other keys gets a local master key, one that has it must be opened with
    /// it.
    fn ensure_master(&mut self) -> Result<(), KeyError> {
        if self.descriptor.allowed.iter().any(|r| r.kind == RecipientKind::LocalMaster) {
            return self.master().map(drop);
        }
        let master = Secret::random();
        self.push_recipient(&LocalMaster::new(&master, self.descriptor.volume, FIRST_EPOCH))?;
        self.master = Some((master, None));
        Ok(())
    }

    fn push_recipient(&mut self, provider: &dyn KeyProvider) -> Result<(), KeyError> {
        self.check_new(&provider.recipient())?;
        let context = volume_context(self.descriptor.volume);
        self.push_copy(provider.wrap(&context, &self.volume_key.0)?)
    }

    fn check_new(&self, name: &Recipient) -> Result<(), KeyError> {
        if self.descriptor.allowed.iter().any(|other| same_key(other, name)) {
            let name = describe_recipient(name);
            return Err(bad(&format!("{name} is a recipient of this volume already")));
        }
        Ok(())
    }

    fn push_copy(&mut self, copy: Recipient) -> Result<(), KeyError> {
        self.check_new(&copy)?;
        self.check_header_room(&copy)?;
        self.descriptor.allowed.push(Recipient { wrapped: vec![], ..copy.clone() });
        self.descriptor.volume_keys.push(copy);
        Ok(())
    }

    /// A new volume has no files yet: it gets as many header blocks as its recipients need.
    fn grow_header(&mut self, slot: &KeySlot) -> bool {
        let fits = |blocks: &u8| {
            Layout::new(*blocks).is_ok_and(|layout| slot.encoded_len() <= header::slot_len(layout))
        };
        let wanted = [2, 4].into_iter().find(fits);
        match wanted.filter(|_| self.grows) {
            Some(blocks) => {
                self.descriptor.params.header_blocks = blocks;
                true
            }
            None => false,
        }
    }

    /// Headers have a fixed place for wrapped copies; data keys are as long as the volume key.
    fn check_header_room(&mut self, another: &Recipient) -> Result<(), KeyError> {
        let mut recipients = self.descriptor.volume_keys.clone();
        recipients.push(another.clone());
        let layout = Layout::new(self.descriptor.params.header_blocks)
            .map_err(|e| KeyError::Misconfigured(e.to_string()))?;
        let slot = KeySlot { data_key_id: DataKeyId([0; 16]), commitment: [0; 32], recipients };
        let room = header::slot_len(layout);
        let few = slot.recipients.len() <= MAX_RECIPIENTS;
        if few && (slot.encoded_len() <= room || self.grow_header(&slot)) {
            return Ok(());
        }
        Err(bad(&format!(
            "file headers of this volume have no room for {} recipients; a volume made with \
             more header blocks has",
            slot.recipients.len()
        )))
    }

    fn master(&self) -> Result<&Secret<32>, KeyError> {
        self.master.as_ref().map(|(master, _)| master).ok_or_else(|| {
            KeyError::Unavailable(
                "this needs the local master key; open the volume with its key file or passphrase \
                 as well"
                    .into(),
            )
        })
    }

    fn check_master_room(&self) -> Result<(), KeyError> {
        if self.descriptor.masters.len() < MAX_MASTERS {
            return Ok(());
        }
        Err(bad(&format!(
            "the volume has {MAX_MASTERS} passphrases and key files; remove one first"
        )))
    }

    fn push_master(&mut self, slot: MasterSlot) -> Result<(), KeyError> {
        self.check_master_room()?;
        self.descriptor.masters.push(slot);
        Ok(())
    }

    fn remove_master(&mut self, index: usize) -> Result<(), KeyError> {
        let kms = |copy: &Recipient| copy.kind == RecipientKind::AwsKms;
        if self.descriptor.masters.len() == 1 && self.descriptor.volume_keys.iter().any(kms) {
            // The master key goes with the last way to it; files are opened by the KMS.
            self.remove_named(&LocalMaster::name(FIRST_EPOCH))?;
        } else if self.descriptor.masters.len() == 1 {
            return Err(bad(
                "the last passphrase or key file cannot be removed: add another one first",
            ));
        }
        self.descriptor.masters.remove(index);
        if let Some((_, used)) = &mut self.master {
            *used = used.filter(|used| *used != index).map(|used| used - usize::from(used > index));
        }
        Ok(())
    }

    fn passphrase_to_change(&self) -> Result<usize, KeyError> {
        let slots = &self.descriptor.masters;
        let is_passphrase = |index: &usize| {
            slots.get(*index).is_some_and(|s| matches!(s.kdf, MasterKdf::Passphrase { .. }))
        };
        if let Some((_, Some(used))) = &self.master
            && is_passphrase(used)
        {
            return Ok(*used);
        }
        let mut all = (0..slots.len()).filter(is_passphrase);
        match (all.next(), all.next()) {
            (Some(only), None) => Ok(only),
            (None, _) => Err(bad("this volume has no passphrase; add one instead")),
            _ => {
                Err(bad("this volume has several passphrases; open it with the one that is meant"))
            }
        }
    }
}

fn bad(text: &str) -> KeyError {
    KeyError::Misconfigured(text.into())
}

#[cfg(test)]
mod tests;
