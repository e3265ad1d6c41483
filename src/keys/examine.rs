//! Looks at a volume's descriptor and at every key it names, without mounting and without changing
//! anything.
//!
//! Asks nobody for a passphrase. A descriptor is believed only as far as a key that opened vouches
//! for it: what it names is looked at all the same, because that is what a mount would use.

use super::clock::unix_seconds;
use super::finding::{Area, Finding, Level};
use super::local::LocalMaster;
use super::master::{self, OpenedMaster, opens_with_keyfile};
use super::rotation::Rotation;
use super::unlock::UnlockOptions;
use super::ways::{unwrap_volume_key, with_identity};
use super::{describe_recipient, keyfile, same_key};
use crate::crypto::{VolumeKey, VolumeKeys};
use crate::format::descriptor::{DESCRIPTOR_NAME, Descriptor, MasterKdf, MasterSlot};
use crate::format::header::{Recipient, RecipientKind};
use std::path::{Path, PathBuf};

/// Everything there is to say about the descriptor `bytes` and its keys.
pub fn examine(bytes: &[u8], options: &UnlockOptions) -> Vec<Finding> {
    let (descriptor, len) = match Descriptor::parse(bytes) {
        Ok(parsed) => parsed,
        Err(error) => {
            let text = format!("{DESCRIPTOR_NAME} is refused: {error}");
            let advice = format!(
                "put a sound copy of {DESCRIPTOR_NAME} back from a backup, or use a newer kmsfs if \
                 this one does not know the format"
            );
            return vec![
                Finding::new(Level::Error, Area::Volume, "descriptor", text).advise(advice),
            ];
        }
    };
    let mut about = Examination { descriptor: &descriptor, findings: vec![], opened: None };
    about.facts();
    about.rotation();
    about.local_keys(options);
    about.identities(options);
    about.kms(options);
    about.authenticity(&bytes[..len], &bytes[len..]);
    about.findings
}

struct Examination<'a> {
    descriptor: &'a Descriptor,
    findings: Vec<Finding>,
    /// What the first key that opened gave.
    opened: Option<VolumeKey>,
}

impl Examination<'_> {
    fn add(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    fn keep(&mut self, key: Option<VolumeKey>) {
        self.opened = self.opened.take().or(key);
    }

    fn facts(&mut self) {
        let params = &self.descriptor.params;
        let id = data_encoding::HEXLOWER.encode(&self.descriptor.volume.0);
        let facts = format!(
            "volume {id}, generation {}, up to {} new files share a data key",
            params.generation, params.files_per_data_key
        );
        let is_kms = |r: &&Recipient| r.kind == RecipientKind::AwsKms;
        let keys = self.descriptor.allowed.iter().filter(is_kms);
        let pins: String =
            keys.map(|key| format!(",expect-key={}", describe_recipient(key))).collect();
        let advice = format!(
            "pin its mounts: -o expect-volume={id}{pins},expect-generation={}",
            params.generation
        );
        self.add(Finding::new(Level::Ok, Area::Volume, "descriptor", facts).advise(advice));
        if let Some(feature) = self.descriptor.read_only_reason() {
            let text = format!("this kmsfs does not know feature {feature}: read-only mounts only");
            let advice = "use the kmsfs that made this volume, or a newer one";
            self.add(Finding::new(Level::Warning, Area::Volume, "features", text).advise(advice));
        }
        let lacks = |named: &&Recipient| {
            !self.descriptor.volume_keys.iter().any(|copy| same_key(copy, named))
        };
        let lacking: Vec<_> = self.descriptor.allowed.iter().filter(lacks).collect();
        for recipient in lacking {
            let name = describe_recipient(recipient);
            if recipient.kind == RecipientKind::AwsKms {
                let text = format!("{name} has a successor; files may still need it");
                let advice = "`kmsfsctl key status` counts them; retire it when there are none";
                let finding = Finding::new(Level::Note, Area::Volume, "recipients", text);
                self.findings.push(finding.advise(advice));
                continue;
            }
            let text = format!("{name} is named, but there is no copy of the volume key for it");
            let advice = format!("remove it with `kmsfsctl key remove` and add it again: {name}");
            let finding = Finding::new(Level::Warning, Area::Volume, "recipients", text);
            self.findings.push(finding.advise(advice));
        }
    }

    /// Is the KMS key to be rotated?
    fn rotation(&mut self) {
        let policy = Rotation::of(self.descriptor);
        let (Some(period), Some(left)) = (policy.period_days, policy.days_left(unix_seconds()))
        else {
            return;
        };
        let finding = |level, text| Finding::new(level, Area::Volume, "rotation", text);
        let every = format!("every {period} days");
        self.add(match left {
            ..0 => finding(Level::Warning, format!("{every}: due since {} days", -left))
                .advise("run `kmsfsctl key rotate`, or have a timer run it with --if-due"),
            _ => finding(Level::Ok, format!("{every}: due in {left} days")),
        });
    }

    /// A key that does not open is an error only where nothing else does.
    fn level(&self) -> Level {
        let kms = |r: &&Recipient| r.kind == RecipientKind::AwsKms;
        let others =
            self.descriptor.masters.len() + self.descriptor.allowed.iter().filter(kms).count();
        if others > 1 { Level::Warning } else { Level::Error }
    }

    fn local_keys(&mut self, options: &UnlockOptions) {
        let is_file = |slot: &&MasterSlot| slot.kdf == MasterKdf::Keyfile;
        let slots = self.descriptor.masters.iter().filter(is_file);
        let places: Vec<PathBuf> = match &options.keyfile {
            Some(named) => vec![named.clone()],
            None => slots.map(|slot| PathBuf::from(&slot.hint)).collect(),
        };
        let wrong = if options.keyfile.is_some() { Level::Error } else { self.level() };
        for place in places {
            self.key_file(&place, wrong);
        }
        if self.descriptor.masters.iter().all(|slot| slot.kdf == MasterKdf::Keyfile) {
            return;
        }
        let (area, about) = (Area::LocalKey, "passphrase");
        let finding = match &options.passphrase_file {
            None => Finding::new(Level::Note, area, about, "a passphrase opens it; not tried")
                .advise("name it with --passphrase-file FILE to have it tried"),
            Some(file) => {
                let only = UnlockOptions {
                    passphrase_file: Some(file.clone()),
                    ..UnlockOptions::default()
                };
                match master::open(self.descriptor, &only) {
                    Ok(opened) => self.opened_by(&opened, about, file),
                    Err(error) => Finding::new(Level::Error, area, about, error.to_string()),
                }
            }
        };
        self.add(finding);
    }

    fn key_file(&mut self, place: &Path, wrong: Level) {
        let about = "key file";
        let finding = if place.as_os_str().is_empty() {
            let text = "the volume does not remember where its key file is";
            Finding::new(wrong, Area::LocalKey, about, text).advise("name it with --keyfile FILE")
        } else {
            match keyfile::read_keyfile(place) {
                Err(error) => Finding::new(wrong, Area::LocalKey, about, error.to_string()),
                Ok(secret) => match opens_with_keyfile(self.descriptor, &secret) {
                    Some(opened) => self.opened_by(&opened, about, place),
                    None => {
                        let text = format!("{} is not a key file of this volume", place.display());
                        Finding::new(wrong, Area::LocalKey, about, text)
                            .advise("name the right one with --keyfile FILE")
                    }
                },
            }
        };
        self.add(finding);
    }

    fn opened_by(&mut self, opened: &OpenedMaster, about: &str, place: &Path) -> Finding {
        let local = LocalMaster::new(&opened.master, self.descriptor.volume, 0);
        match unwrap_volume_key(self.descriptor, &local) {
            Ok(key) => {
                self.keep(Some(key));
                let text = format!("{} opens the volume", place.display());
                Finding::new(Level::Ok, Area::LocalKey, about, text)
            }
            Err(error) => Finding::new(Level::Error, Area::LocalKey, about, error.to_string()),
        }
    }

    fn identities(&mut self, options: &UnlockOptions) {
        for recipient in &self.descriptor.allowed {
            if recipient.kind == RecipientKind::X25519 {
                let text = format!(
                    "{}: its private half opens the volume when nothing else does",
                    describe_recipient(recipient)
                );
                let finding = Finding::new(Level::Note, Area::LocalKey, "recipient", text);
                let advice = "try it from time to time with `kmsfsctl doctor DIR --identity FILE`";
                self.findings.push(finding.advise(advice));
            }
        }
        let Some(path) = &options.identity else { return };
        let finding = match with_identity(self.descriptor, path) {
            Ok((_, key)) => {
                self.keep(Some(key));
                let text = format!("{} opens the volume", path.display());
                Finding::new(Level::Ok, Area::LocalKey, "identity file", text)
            }
            Err(error) => {
                Finding::new(Level::Error, Area::LocalKey, "identity file", error.to_string())
            }
        };
        self.add(finding);
    }

    #[cfg(feature = "aws")]
    fn kms(&mut self, options: &UnlockOptions) {
        use super::aws::{Subject, examine};
        let mut makes = true;
        for recipient in &self.descriptor.allowed {
            if recipient.kind != RecipientKind::AwsKms {
                continue;
            }
            let copies = &self.descriptor.volume_keys;
            let copy = copies.iter().find(|copy| same_key(copy, recipient));
            let volume = self.descriptor.volume;
            let subject = Subject { volume, recipient, copy, makes };
            let (mut findings, key) = examine(&subject, &options.kms);
            if copy.is_none() {
                // On its way out: what it cannot do any more may not be needed.
                findings.iter_mut().for_each(|f| f.level = f.level.min(Level::Warning));
            } else {
                // The first makes the keys of new files, the others wrap them.
                makes = false;
            }
            self.findings.extend(findings);
            self.keep(key.map(VolumeKey));
        }
    }

    #[cfg(not(feature = "aws"))]
    fn kms(&mut self, _options: &UnlockOptions) {
        for recipient in &self.descriptor.allowed {
            if recipient.kind == RecipientKind::AwsKms {
                let text = "this kmsfs was built without AWS KMS";
                let finding = Finding::new(Level::Error, Area::Kms, "program", text);
                let finding = finding.advise("use a kmsfs that was built with the feature `aws`");
                self.findings.push(Finding { key: Some(describe_recipient(recipient)), ..finding });
            }
        }
    }

    fn authenticity(&mut self, fields: &[u8], mac: &[u8]) {
        let (area, about) = (Area::Volume, "authenticity");
        let finding = match &self.opened {
            None => Finding::new(Level::Note, area, about, "not checked: no key opened the volume"),
            Some(key) => {
                let keys = VolumeKeys::derive(key, self.descriptor.volume);
                let sound = mac.try_into().is_ok_and(|mac| keys.descriptor_mac_ok(fields, mac));
                if sound {
                    let text = format!("{DESCRIPTOR_NAME} is as the holder of the keys wrote it");
                    Finding::new(Level::Ok, area, about, text)
                } else {
                    let text = format!("{DESCRIPTOR_NAME} was changed without the keys");
                    Finding::new(Level::Error, area, about, text)
                        .advise(format!("put a sound copy of {DESCRIPTOR_NAME} back"))
                }
            }
        };
        self.add(finding);
    }
}
