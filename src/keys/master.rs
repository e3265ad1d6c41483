//! Ways to the local master key: key files and passphrases against the descriptor's master slots.

use super::unlock::UnlockOptions;
use super::{KeyError, keyfile};
use crate::crypto::wrap::{self, Argon2Cost};
use crate::crypto::{Secret, SecretBytes, random_array};
use crate::format::VolumeId;
use crate::format::descriptor::{Descriptor, MasterKdf, MasterSlot, is_hint};
use std::path::Path;

/// The master key, and which slot gave it.
pub(super) struct OpenedMaster {
    pub(super) master: Secret<32>,
    pub(super) slot: usize,
}

/// Opens the master key with what the operator named; if he named nothing, with the key files the
/// descriptor remembers and then by asking for a passphrase. The error is about the first way
/// tried.
pub(super) fn open(
    descriptor: &Descriptor,
    options: &UnlockOptions,
) -> Result<OpenedMaster, KeyError> {
    if descriptor.masters.is_empty() {
        return Err(KeyError::Unavailable(
            "this volume has no local master key; open it with --identity FILE".into(),
        ));
    }
    match (&options.keyfile, &options.passphrase_file) {
        (None, None) => open_remembered(descriptor, options),
        (Some(file), None) => with_keyfile(descriptor, file),
        (None, Some(_)) => with_passphrase(descriptor, options),
        (Some(file), Some(_)) => with_keyfile(descriptor, file)
            .or_else(|error| with_passphrase(descriptor, options).map_err(|_| error)),
    }
}

fn open_remembered(
    descriptor: &Descriptor,
    options: &UnlockOptions,
) -> Result<OpenedMaster, KeyError> {
    let mut first_error = None;
    for slot in descriptor.masters.iter().filter(|slot| is_keyfile(slot)) {
        let tried = if slot.hint.is_empty() {
            Err(KeyError::Misconfigured(
                "the volume does not remember where its key file is; name it with --keyfile".into(),
            ))
        } else {
            with_keyfile(descriptor, Path::new(&slot.hint))
        };
        match tried {
            Ok(opened) => return Ok(opened),
            Err(error) => {
                first_error.get_or_insert(error);
            }
        }
    }
    match first_error {
        None => with_passphrase(descriptor, options),
        Some(error) if descriptor.masters.iter().all(is_keyfile) => Err(error),
        Some(KeyError::Misconfigured(file)) => {
            log::info!("{file}; trying the passphrase");
            with_passphrase(descriptor, options).map_err(|error| match error {
                KeyError::Misconfigured(text) => KeyError::Misconfigured(format!("{file}; {text}")),
                other => other,
            })
        }
        Some(error) => {
            log::warn!("{error}; trying the passphrase");
            with_passphrase(descriptor, options)
        }
    }
}

fn is_keyfile(slot: &MasterSlot) -> bool {
    slot.kdf == MasterKdf::Keyfile
}

fn with_keyfile(descriptor: &Descriptor, path: &Path) -> Result<OpenedMaster, KeyError> {
    if !descriptor.masters.iter().any(is_keyfile) {
        return Err(KeyError::Misconfigured(format!(
            "{} cannot open this volume: it was made for a passphrase, not for a key file",
            path.display()
        )));
    }
    let secret = keyfile::read_keyfile(path)?;
    opens_with_keyfile(descriptor, &secret).ok_or_else(|| {
        KeyError::WrongKey(format!("{} is not a key file of this volume", path.display()))
    })
}

/// Tries a key file's secret on every key-file slot.
pub(super) fn opens_with_keyfile(
    descriptor: &Descriptor,
    secret: &Secret<32>,
) -> Option<OpenedMaster> {
    let slots = descriptor.masters.iter().enumerate().filter(|(_, slot)| is_keyfile(slot));
    slots.into_iter().find_map(|(index, slot)| {
        let kek = wrap::kek_from_keyfile(secret, &slot.salt);
        let master = wrap::open_master(&kek, descriptor.volume, &slot.wrapped).ok()?;
        Some(OpenedMaster { master, slot: index })
    })
}

fn with_passphrase(
    descriptor: &Descriptor,
    options: &UnlockOptions,
) -> Result<OpenedMaster, KeyError> {
    let slots: Vec<(usize, &MasterSlot, Argon2Cost)> = descriptor
        .masters
        .iter()
        .enumerate()
        .filter_map(|(index, slot)| match slot.kdf {
            MasterKdf::Passphrase { m_kib, t, p } => {
                Some((index, slot, Argon2Cost { m_kib, t, p }))
            }
            MasterKdf::Keyfile => None,
        })
        .collect();
    if slots.is_empty() {
        return Err(KeyError::Misconfigured(
            "this volume has no passphrase; open it with its key file (--keyfile FILE)".into(),
        ));
    }
    let passphrase = passphrase(options, "Passphrase: ")?;
    let mut untried = None;
    for (index, slot, cost) in slots {
        match kek_from_passphrase(&passphrase, &slot.salt, cost) {
            // The passphrase may be that of another slot.
            Err(error) => untried = untried.or(Some(error)),
            Ok(kek) => {
                if let Ok(master) = wrap::open_master(&kek, descriptor.volume, &slot.wrapped) {
                    return Ok(OpenedMaster { master, slot: index });
                }
            }
        }
    }
    Err(untried.unwrap_or_else(|| KeyError::WrongKey("wrong passphrase".into())))
}

/// The passphrase from the file named in `options`, or asked for.
pub fn passphrase(options: &UnlockOptions, prompt: &str) -> Result<SecretBytes, KeyError> {
    if let Some(path) = &options.passphrase_file {
        return keyfile::read_passphrase_file(path);
    }
    let Some(ask) = &options.prompt else {
        return Err(KeyError::Misconfigured(
            "a passphrase is needed; give it with --passphrase-file FILE".into(),
        ));
    };
    ask(prompt).map_err(|e| KeyError::Misconfigured(format!("no passphrase was given: {e}")))
}

/// A new passphrase slot for a master key.
pub(super) fn passphrase_slot(
    volume: VolumeId,
    master: &Secret<32>,
    passphrase: &SecretBytes,
    cost: Argon2Cost,
) -> Result<MasterSlot, KeyError> {
    if passphrase.expose().is_empty() {
        return Err(KeyError::Misconfigured("an empty passphrase protects nothing".into()));
    }
    let salt = random_array();
    let kek = kek_from_passphrase(passphrase, &salt, cost)?;
    let wrapped = wrap::seal_master(&kek, volume, master);
    let Argon2Cost { m_kib, t, p } = cost;
    let kdf = MasterKdf::Passphrase { m_kib, t, p };
    Ok(MasterSlot { kdf, salt, hint: String::new(), wrapped })
}

/// A new key-file slot for a master key; the file's absolute path is remembered if it is UTF-8.
pub(super) fn keyfile_slot(
    volume: VolumeId,
    master: &Secret<32>,
    secret: &Secret<32>,
    path: &Path,
) -> MasterSlot {
    let salt = random_array();
    let kek = wrap::kek_from_keyfile(secret, &salt);
    let wrapped = wrap::seal_master(&kek, volume, master);
    MasterSlot { kdf: MasterKdf::Keyfile, salt, hint: hint(path), wrapped }
}

/// How a key file's place is remembered; empty when it cannot be.
pub(super) fn hint(path: &Path) -> String {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    absolute.into_os_string().into_string().ok().filter(|h| is_hint(h)).unwrap_or_default()
}

fn kek_from_passphrase(
    passphrase: &SecretBytes,
    salt: &[u8; 16],
    cost: Argon2Cost,
) -> Result<Secret<64>, KeyError> {
    wrap::kek_from_passphrase(passphrase, salt, cost)
        .map_err(|e| KeyError::Misconfigured(e.to_string()))
}
