//! Looks at one KMS key through the eyes of a mount: the way to it, its state, what this host's role
//! may do with it, and whether keys come back as they went.
//!
//! Makes a bounded number of calls, changes nothing, and ends early where going on would only tell
//! the same again.

mod asking;

use super::calls::Operation;
use super::classify::Class;
use super::connection::{Connection, Fault};
use super::{KeyArn, Settings};
use crate::crypto::wrap::Purpose;
use crate::crypto::{Secret, random_array};
use crate::format::header::Recipient;
use crate::format::{DataKeyId, VolumeId};
use crate::keys::describe_recipient;
use crate::keys::finding::{Area, Finding, Level};
use asking::{Asking, KeyData};
use std::time::Duration;

/// A local clock this far from AWS's is worth a warning.
const CLOCK_WARNING: f64 = 60.0;
/// AWS refuses signatures this old.
const CLOCK_ERROR: f64 = 300.0;

/// Which key, and what for.
pub struct Subject<'a> {
    /// The volume.
    pub volume: VolumeId,
    /// As the descriptor names the key.
    pub recipient: &'a Recipient,
    /// The copy of the volume key wrapped by it.
    pub copy: Option<&'a Recipient>,
    /// Does it make the keys of new files? Otherwise it wraps them.
    pub makes: bool,
}

/// What was found, and the volume key if it could be had.
pub fn examine(subject: &Subject<'_>, settings: &Settings) -> (Vec<Finding>, Option<Secret<32>>) {
    let name = describe_recipient(subject.recipient);
    let mut report = Report { key: name.clone(), findings: vec![] };
    let arn = match KeyArn::parse(&name) {
        Ok(arn) if !arn.is_alias() => arn,
        Ok(_) => {
            let text = "kmsfs.volume names an alias instead of a key";
            report.advise(Level::Error, "name", text, "put a sound copy of kmsfs.volume back");
            return (report.findings, None);
        }
        Err(error) => {
            report.add(Level::Error, "name", error.to_string());
            return (report.findings, None);
        }
    };
    let connection = Connection::new(arn.region(), settings.route.clone());
    let asking = Asking::new(&arn, &connection, settings.deadline);
    let mut patient = Patient { subject, arn: &arn, settings, asking, report };
    let volume_key = patient.run();
    (patient.report.findings, volume_key)
}

/// Collects findings about one key.
struct Report {
    key: String,
    findings: Vec<Finding>,
}

impl Report {
    fn push(&mut self, finding: Finding) {
        self.findings.push(Finding { key: Some(self.key.clone()), ..finding });
    }

    fn add(&mut self, level: Level, about: &str, found: impl Into<String>) {
        self.push(Finding::new(level, Area::Kms, about, found));
    }

    fn advise(
        &mut self,
        level: Level,
        about: &str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.push(Finding::new(level, Area::Kms, about, found).advise(advice));
    }
}

/// Does a fault of this class make all further questions pointless?
fn is_final(class: Class) -> bool {
    matches!(class, Class::Revoked) || class.is_passing()
}

struct Patient<'a> {
    subject: &'a Subject<'a>,
    arn: &'a KeyArn,
    settings: &'a Settings,
    asking: Asking<'a>,
    report: Report,
}

impl Patient<'_> {
    /// Stops at the first answer that makes the rest pointless.
    fn run(&mut self) -> Option<Secret<32>> {
        let described = self.asking.describe();
        self.credentials(described.as_ref().err());
        self.endpoint(described.as_ref().err());
        self.clock();
        if !self.state(described) {
            return None;
        }
        let [unwraps, makes] = self.policy()?;
        let volume_key = if unwraps { self.volume_key()? } else { None };
        if unwraps && makes {
            self.round_trip();
        } else {
            let text = "not tried: it takes GenerateDataKey and Decrypt";
            self.report.add(Level::Note, "round trip", text);
        }
        volume_key
    }

    fn credentials(&mut self, fault: Option<&Fault>) {
        let refused = fault.filter(|fault| fault.class == Class::Credentials);
        let seen = self.asking.seen();
        let whose = seen.access_key.as_deref().map(|id| {
            let temporary = if seen.temporary { ", temporary" } else { "" };
            let tail: String = id.chars().skip(id.chars().count().saturating_sub(4)).collect();
            format!("access key id …{tail}{temporary}")
        });
        let advice = "set AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this \
                      host a role; for a mount by systemd or fstab they belong into its unit; see \
                      `aws sts get-caller-identity`";
        match (whose, refused) {
            (Some(whose), None) => {
                self.report.add(Level::Ok, "credentials", format!("found: {whose}"));
            }
            (Some(whose), Some(fault)) => {
                let text = format!("KMS refuses them ({whose}): {}", fault.text);
                let advice = "renew them (`aws sso login`, a new session, or the host's role), and \
                              check the clock";
                self.report.advise(Level::Error, "credentials", text, advice);
            }
            (None, Some(fault)) => {
                self.report.advise(Level::Error, "credentials", fault.text.clone(), advice);
            }
            (None, None) => {
                let text = "none were used: the request was never signed";
                self.report.advise(Level::Warning, "credentials", text, advice);
            }
        }
    }

    fn endpoint(&mut self, fault: Option<&Fault>) {
        let seen = self.asking.seen();
        let region = self.arn.region();
        let host = seen.endpoint.or_else(|| self.settings.route.endpoint(region));
        let host = host.unwrap_or_else(|| "AWS's own".to_owned());
        let mut kind = vec![];
        if host.contains("kms-fips.") {
            kind.push("FIPS");
        }
        if host.contains(".api.aws") || host.contains(".api.amazonwebservices.com.cn") {
            kind.push("dual stack");
        }
        let kind = if kind.is_empty() { String::new() } else { format!(" ({})", kind.join(", ")) };
        let text = format!("{host}{kind}, Region {region}");
        match fault.filter(|fault| fault.class == Class::Unreachable) {
            None if seen.answered => self.report.add(Level::Ok, "endpoint", text),
            None => self.report.add(Level::Note, "endpoint", format!("{text}: not asked")),
            Some(fault) => {
                let text = format!("{text}: {}", fault.text);
                let advice = "check --kms-endpoint, the name service, proxies and the route (a VPC \
                              without internet needs an interface endpoint for KMS)";
                self.report.advise(Level::Error, "endpoint", text, advice);
            }
        }
    }

    fn clock(&mut self) {
        let seen = self.asking.seen();
        let Some(ahead) = seen.ahead else {
            if seen.answered {
                let text = "the answers carry no date to compare with";
                self.report.add(Level::Note, "clock", text);
            }
            return;
        };
        let (level, off) = match ahead.abs() {
            off if off > CLOCK_ERROR => (Level::Error, off),
            off if off > CLOCK_WARNING => (Level::Warning, off),
            _ => {
                return self.report.add(Level::Ok, "clock", "within a minute of AWS's");
            }
        };
        let direction = if ahead > 0.0 { "ahead of" } else { "behind" };
        let text = format!("{off:.0} s {direction} AWS's, which refuses requests beyond 300 s");
        let advice = "set the clock by the network (`timedatectl set-ntp true`, or chrony)";
        self.report.advise(level, "clock", text, advice);
    }

    /// Whether to go on.
    fn state(&mut self, described: Result<KeyData, Fault>) -> bool {
        let about = "key state";
        match described {
            Ok(data) => self.described(&data),
            Err(fault) if fault.text.starts_with("AccessDenied") => {
                let text = "DescribeKey is not allowed to this role, and a mount does not need it";
                self.report.add(Level::Note, about, text);
                true
            }
            // These were told with the credentials and the endpoint.
            Err(fault) if matches!(fault.class, Class::Credentials | Class::Unreachable) => false,
            Err(fault) => {
                self.report.advise(Level::Error, about, fault.text, fault.class.advice());
                false
            }
        }
    }

    fn described(&mut self, data: &KeyData) -> bool {
        let place = data.store.as_ref().map_or(String::new(), |id| format!(" in key store {id}"));
        let multi = if data.multi_region { ", multi-Region" } else { "" };
        let text = format!("{}, origin {}{place}{multi}", data.state, data.origin);
        let (id, region) = (self.arn.as_str(), self.arn.region());
        let advice = match data.state.as_str() {
            "Enabled" if data.is_usable_kind => {
                self.report.add(Level::Ok, "key state", text);
                return true;
            }
            "Enabled" => {
                "kmsfs needs a symmetric key for encryption (SYMMETRIC_DEFAULT, ENCRYPT_DECRYPT)"
                    .to_owned()
            }
            "Disabled" => format!("aws kms enable-key --region {region} --key-id {id}"),
            "PendingDeletion" => format!(
                "while there is time: aws kms cancel-key-deletion --region {region} --key-id {id}, \
                 then aws kms enable-key likewise"
            ),
            "Unavailable" => format!(
                "aws kms connect-custom-key-store --region {region} --custom-key-store-id {}",
                data.store.as_deref().unwrap_or("ID")
            ),
            _ => format!("see `aws kms describe-key --region {region} --key-id {id}`"),
        };
        self.report.advise(Level::Error, "key state", text, advice);
        false
    }

    /// Are Decrypt, and GenerateDataKey for content, allowed? `None` if going on is of no use.
    fn policy(&mut self) -> Option<[bool; 2]> {
        let data = Purpose::Data(DataKeyId(random_array()));
        let makes = self.subject.makes;
        if self.subject.copy.is_none() {
            // It has a successor: files may still be wrapped for it, nothing else is.
            self.allowed(Operation::Decrypt, data, true)?;
            return None;
        }
        let mut unwraps = true;
        for purpose in [Purpose::Volume, data] {
            unwraps &= self.allowed(Operation::Decrypt, purpose, true)?;
        }
        let generates = self.allowed(Operation::GenerateDataKey, data, makes)?;
        self.allowed(Operation::GenerateDataKey, Purpose::Volume, false)?;
        if !makes {
            self.allowed(Operation::Encrypt, data, true)?;
            self.allowed(Operation::Encrypt, Purpose::Volume, false)?;
        }
        Some([unwraps, generates])
    }

    /// Asks KMS whether it would do it; `needed` by a read-write mount.
    fn allowed(&mut self, operation: Operation, purpose: Purpose, needed: bool) -> Option<bool> {
        let word = if purpose == Purpose::Volume { "volume" } else { "data" };
        let about = format!("policy: {}", operation.name());
        let case = format!("kmsfs:purpose={word}");
        match self.asking.would(operation, self.subject.volume, purpose) {
            Ok(()) => {
                self.report.add(Level::Ok, &about, format!("allowed with {case}"));
                Some(true)
            }
            Err(fault) if fault.class == Class::Denied => {
                let level = if needed { Level::Error } else { Level::Note };
                let text = format!("denied with {case}: {}", fault.text);
                let advice = self.cure(operation, purpose, needed);
                self.report.advise(level, &about, text, advice);
                Some(false)
            }
            Err(fault) => {
                let text = format!("not answered with {case}: {}", fault.text);
                self.report.advise(Level::Error, &about, text, fault.class.advice());
                if is_final(fault.class) { None } else { Some(false) }
            }
        }
    }

    fn cure(&self, operation: Operation, purpose: Purpose, needed: bool) -> String {
        let grant = format!(
            "allow kms:{} on this key to the role, in the key's policy and in IAM, with \
             kms:EncryptionContext:kmsfs:volume = {} if there is a condition",
            operation.name(),
            data_encoding::HEXLOWER.encode(&self.subject.volume.0)
        );
        match (operation, purpose) {
            _ if !needed => {
                format!("`kmsfsctl init` and `key` would need it, a mount does not; {grant}")
            }
            (Operation::Decrypt, Purpose::Volume) => format!("nothing can be mounted; {grant}"),
            (Operation::Decrypt, _) => format!("no file can be read; {grant}"),
            _ => format!("only a read-only mount (-o ro) goes without; {grant}"),
        }
    }

    /// What a mount does first. `None` if going on is of no use.
    fn volume_key(&mut self) -> Option<Option<Secret<32>>> {
        let about = "volume key";
        let Some(copy) = self.subject.copy else { return Some(None) };
        let (volume, blob) = (self.subject.volume, copy.wrapped.clone());
        match self.asking.decrypt(volume, Purpose::Volume, blob) {
            Ok((Some(key), time)) => {
                let text = format!("unwrapped in {}", shown(time));
                self.report.add(Level::Ok, about, text);
                Some(Some(key))
            }
            Ok((None, _)) => {
                let text = "KMS gave a key that has not 32 bytes, or named another key";
                let advice = "put a sound copy of kmsfs.volume back";
                self.report.advise(Level::Error, about, text, advice);
                Some(None)
            }
            Err(fault) => {
                let advice = fault.class.advice();
                self.report.advise(Level::Error, about, fault.text, advice);
                if is_final(fault.class) { None } else { Some(None) }
            }
        }
    }

    /// A key is made and unwrapped again, rightly and wrongly.
    fn round_trip(&mut self) {
        let (volume, about) = (self.subject.volume, "round trip");
        let [right, wrong] = [0; 2].map(|_| Purpose::Data(DataKeyId(random_array())));
        let made = self.asking.generate(volume, right);
        let ((key, blob), making) = match made {
            Ok(made) => made,
            Err(fault) => {
                let text = format!("GenerateDataKey failed: {}", fault.text);
                return self.report.advise(Level::Error, about, text, fault.class.advice());
            }
        };
        match self.asking.decrypt(volume, right, blob.clone()) {
            Ok((again, unwrapping)) => {
                let same = match (&key, &again) {
                    (Some(key), Some(again)) => key.expose() == again.expose(),
                    _ => false,
                };
                if same {
                    let (making, unwrapping) = (shown(making), shown(unwrapping));
                    let text =
                        format!("GenerateDataKey {making}, Decrypt {unwrapping}; they agree");
                    self.report.add(Level::Ok, about, text);
                } else {
                    let text = "what Decrypt gave is not what GenerateDataKey had made";
                    let advice = "do not use this endpoint; is it KMS that answers there?";
                    self.report.advise(Level::Error, about, text, advice);
                }
            }
            Err(fault) => {
                let text = format!("Decrypt failed: {}", fault.text);
                return self.report.advise(Level::Error, about, text, fault.class.advice());
            }
        }
        self.wrong_context(wrong, blob);
    }

    fn wrong_context(&mut self, wrong: Purpose, blob: Vec<u8>) {
        let about = "encryption context";
        match self.asking.decrypt(self.subject.volume, wrong, blob) {
            Err(fault) if fault.class == Class::Tampered => {
                let text = "a key wrapped for one place is refused in another";
                self.report.add(Level::Ok, about, text);
            }
            Err(fault) => {
                let text = format!("not tried to the end: {}", fault.text);
                self.report.advise(Level::Warning, about, text, fault.class.advice());
            }
            Ok(_) => {
                let text = "a key wrapped for one place was unwrapped in another";
                let advice = "do not use this endpoint; is it KMS that answers there?";
                self.report.advise(Level::Error, about, text, advice);
            }
        }
    }
}

fn shown(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests;
