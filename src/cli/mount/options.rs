//! The words of `-o`, as mount(8), fstab and people write them.
//!
//! Knows no clap: the same words come from a command line, from fstab through mount(8), and from
//! long options.

use crate::fs::volume::Atime;
use crate::fuse::MountOptions;
use crate::keys::Lifetimes;
use crate::keys::unlock::Expect;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use crate::cli::kms::{self, KmsOptions};

/// Everything that can be said with `-o`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Words {
    /// How the mount behaves.
    pub mount: MountOptions,
    /// File with the passphrase.
    pub passphrase_file: Option<PathBuf>,
    /// Key file.
    pub keyfile: Option<PathBuf>,
    /// X25519 identity file.
    pub identity: Option<PathBuf>,
    /// The only volume and KMS keys, and the oldest descriptor, to accept.
    pub expect: Expect,
    /// How KMS is called.
    pub kms: KmsOptions,
    /// How long keys of a KMS are used without asking.
    pub lifetimes: Lifetimes,
    /// How often the KMS is asked whether the volume's key is still granted.
    pub probe: Probe,
    /// Prometheus text file.
    pub metrics_file: Option<PathBuf>,
}

/// How often the KMS is asked whether the volume's key is still granted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Probe(pub Duration);

impl Default for Probe {
    fn default() -> Self {
        Self(Duration::from_secs(60))
    }
}

/// Words that mean something to mount(8), fstab or systemd and nothing here.
const IGNORED: [&str; 13] = [
    "defaults",
    "auto",
    "noauto",
    "user",
    "users",
    "nouser",
    "owner",
    "group",
    "nofail",
    "_netdev",
    "async",
    "default_permissions",
    "rw",
];

/// The words for error messages.
const KNOWN: &str = "ro, rw, allow_other, acl, nonempty, writeback=yes|no, noatime, relatime, \
    strictatime, dev, nodev, suid, nosuid, exec, noexec, passphrase-file=FILE, keyfile=FILE, \
    identity=FILE, expect-volume=ID, expect-key=ARN, expect-generation=N, kms-endpoint=URL, kms-fips, \
    kms-dual-stack, kms-rate=UNITS, kms-deadline=TIME, cache-ttl=TIME, offline-grace=TIME, \
    probe-interval=TIME, metrics-file=FILE, threads=N, cache-timeout=SECONDS";

impl Words {
    /// Adds a list `word[,word...]`; a comma within a value is written `\,`.
    pub fn add_list(&mut self, list: &str) -> Result<(), String> {
        split(list).iter().filter(|word| !word.is_empty()).try_for_each(|word| self.add(word))
    }

    /// Refuses times that contradict each other.
    pub fn check(&self) -> Result<(), String> {
        if self.lifetimes.grace < 2 * self.probe.0 {
            return Err(format!(
                "offline-grace ({} s) must be at least twice probe-interval ({} s): a key is confirmed \
                 no more often than that",
                self.lifetimes.grace.as_secs(),
                self.probe.0.as_secs()
            ));
        }
        Ok(())
    }

    /// Adds one word. Later words win over earlier ones.
    pub fn add(&mut self, word: &str) -> Result<(), String> {
        match word.split_once('=') {
            Some((name, value)) => self.add_value(name, value, word),
            None => self.add_flag(word),
        }
    }

    fn add_value(&mut self, name: &str, value: &str, word: &str) -> Result<(), String> {
        let path = || match value {
            "" => Err(format!("-o {name} needs a file name")),
            value => Ok(Some(PathBuf::from(value))),
        };
        match name {
            "passphrase-file" => self.passphrase_file = path()?,
            "keyfile" => self.keyfile = path()?,
            "identity" => self.identity = path()?,
            "metrics-file" => self.metrics_file = path()?,
            "kms-endpoint" => self.kms.kms_endpoint.push(kms::endpoint(value)?),
            "kms-rate" => self.kms.kms_rate = Some(kms::rate(value)?),
            "kms-deadline" => self.kms.kms_deadline = Some(kms::deadline(value)?),
            "cache-ttl" => self.lifetimes.ttl = kms::lifetime(value)?,
            "offline-grace" => self.lifetimes.grace = kms::lifetime(value)?,
            "probe-interval" => self.probe = Probe(kms::lifetime(value)?),
            "expect-key" => self.expect.keys.push(key_arn(value)?),
            "expect-volume" => self.expect.volume = Some(volume_id(value)?),
            "expect-generation" => self.expect.generation = Some(generation(value)?),
            "writeback" => self.mount.writeback = yes_or_no(name, value)?,
            "threads" => self.mount.threads = Some(number(name, value, 1..=64)? as usize),
            "cache-timeout" => self.mount.cache_secs = number(name, value, 0..=86_400)?,
            "comment" => {}
            _ if name.starts_with("x-") || name.starts_with("X-") => {}
            _ => return Err(unknown(word)),
        }
        Ok(())
    }

    fn add_flag(&mut self, word: &str) -> Result<(), String> {
        let mount = &mut self.mount;
        match word {
            "ro" => mount.read_only = true,
            "allow_other" => mount.allow_other = true,
            "acl" => mount.acl = true,
            "nonempty" => mount.nonempty = true,
            "writeback" => mount.writeback = true,
            "noatime" => mount.atime = Atime::Noatime,
            "relatime" | "atime" => mount.atime = Atime::Relatime,
            "strictatime" => mount.atime = Atime::Strictatime,
            "dev" => mount.dev = true,
            "nodev" => mount.dev = false,
            "suid" => mount.suid = true,
            "nosuid" => mount.suid = false,
            "exec" => mount.exec = true,
            "noexec" => mount.exec = false,
            "kms-fips" => self.kms.kms_fips = true,
            "kms-dual-stack" => self.kms.kms_dual_stack = true,
            "passphrase-file" | "keyfile" | "identity" | "metrics-file" => {
                return Err(format!("-o {word} needs a file name: {word}=FILE"));
            }
            "kms-endpoint" | "kms-rate" | "kms-deadline" | "cache-ttl" | "offline-grace"
            | "probe-interval" | "expect-key" => {
                return Err(format!("-o {word} needs a value: {word}=…"));
            }
            "expect-volume" => return Err("-o expect-volume needs a volume id".into()),
            "expect-generation" => return Err("-o expect-generation needs a number".into()),
            "rw" => mount.read_only = false,
            _ if IGNORED.contains(&word) => {}
            _ if word.starts_with("x-") || word.starts_with("X-") => {}
            _ => return Err(unknown(word)),
        }
        Ok(())
    }
}

fn unknown(word: &str) -> String {
    format!("unknown mount option {word:?}; known are {KNOWN}")
}

fn yes_or_no(name: &str, value: &str) -> Result<bool, String> {
    match value {
        "yes" | "on" | "true" | "1" => Ok(true),
        "no" | "off" | "false" | "0" => Ok(false),
        _ => Err(format!("-o {name} is yes or no, not {value:?}")),
    }
}

fn number(name: &str, value: &str, range: RangeInclusive<u32>) -> Result<u32, String> {
    let number = value.parse().ok().filter(|n| range.contains(n));
    number.ok_or_else(|| {
        format!("-o {name} is a number from {} to {}, not {value:?}", range.start(), range.end())
    })
}

/// 32 hexadecimal digits; hyphens between them are ignored.
pub fn volume_id(text: &str) -> Result<[u8; 16], String> {
    let digits: String = text.chars().filter(|&c| c != '-').collect();
    let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).ok();
    let id = bytes.and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
    id.ok_or_else(|| format!("{text:?} is not a volume id (32 hexadecimal digits)"))
}

/// The ARN of a KMS key, not of an alias: that is what a volume stores.
pub fn key_arn(text: &str) -> Result<String, String> {
    #[cfg(feature = "aws")]
    {
        let arn = crate::keys::aws::KeyArn::parse(text).map_err(|e| e.to_string())?;
        if arn.is_alias() {
            return Err(format!(
                "{text}: name the key itself; an alias may point elsewhere tomorrow"
            ));
        }
    }
    Ok(text.to_owned())
}

/// A descriptor generation, from 1 on.
pub fn generation(text: &str) -> Result<u64, String> {
    let number = text.parse().ok().filter(|n| *n > 0);
    number.ok_or_else(|| format!("{text:?} is not a descriptor generation (a number from 1 on)"))
}

/// Splits at commas that no backslash precedes; a backslash before anything else stays.
fn split(list: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut rest = list.chars().peekable();
    while let Some(c) = rest.next() {
        let escaped = c == '\\' && rest.peek().is_some_and(|&next| matches!(next, ',' | '\\'));
        let Some(word) = words.last_mut() else { break };
        match c {
            _ if escaped => word.extend(rest.next()),
            ',' => words.push(String::new()),
            c => word.push(c),
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(list: &str) -> Result<Words, String> {
        let mut words = Words::default();
        words.add_list(list).map(|()| words)
    }

    #[test]
    fn nothing_said_is_the_safe_default() {
        let plain = words("").unwrap().mount;
        assert!(plain.writeback && plain.exec);
        assert!(!(plain.dev || plain.suid || plain.allow_other || plain.acl || plain.nonempty));
        assert!(!plain.read_only);
    }

    #[test]
    fn every_flag_does_what_it_says() {
        let all = "ro,allow_other,acl,nonempty,writeback=no,noatime,dev,suid,noexec,\
                   threads=8,cache-timeout=60";
        let expected = MountOptions {
            read_only: true,
            allow_other: true,
            nonempty: true,
            dev: true,
            suid: true,
            exec: false,
            atime: Atime::Noatime,
            acl: true,
            writeback: false,
            threads: Some(8),
            cache_secs: 60,
        };
        assert_eq!(words(all).unwrap().mount, expected);
    }

    #[test]
    fn later_words_win() {
        let mount = words("ro,dev,suid,noexec,strictatime,rw,nodev,nosuid,exec,relatime");
        assert_eq!(mount.unwrap().mount, MountOptions::default());
    }

    #[test]
    fn words_for_fstab_are_ignored() {
        let list = "defaults,auto,noauto,user,users,nofail,_netdev,x-systemd.automount,x-gvfs=1,\
            comment=my files,X-mount.mkdir,,async";
        assert_eq!(words(list).unwrap(), Words::default());
    }

    #[test]
    fn values_may_hold_commas_and_equals_signs() {
        let words = words(r"keyfile=/a\,b\\c=d\e,ro").unwrap();
        assert_eq!(words.keyfile.unwrap(), PathBuf::from(r"/a,b\c=d\e"));
        assert!(words.mount.read_only);
    }

    #[test]
    fn unknown_words_are_told_with_the_known_ones() {
        for list in [
            "foo",
            "allow_root",
            "writeback=maybe",
            "threads=0",
            "cache-timeout=x",
            "expect-generation",
            "expect-generation=0",
            "expect-generation=-1",
            "expect-generation=18446744073709551616",
            "keyfile=",
            "keyfile",
            "foo=bar",
        ] {
            assert!(words(list).is_err(), "{list}");
        }
        let sentence = words("ro,alow_other").unwrap_err();
        assert!(sentence.contains("\"alow_other\"") && sentence.contains("expect-volume=ID"));
    }

    #[test]
    fn a_volume_id_is_sixteen_bytes() {
        let id = volume_id("00112233-4455-6677-8899-aabbccddeeFF").unwrap();
        assert_eq!((id[0], id[1], id[15]), (0, 0x11, 0xff));
        assert!(volume_id("0011").is_err());
        assert!(volume_id("zz112233445566778899aabbccddeeff").is_err());
        assert_eq!(
            words("expect-volume=00112233445566778899aabbccddeeff").unwrap().expect.volume.unwrap()
                [1],
            0x11
        );
        let last = words("expect-generation=3,expect-generation=18446744073709551615").unwrap();
        assert_eq!(last.expect.generation, Some(u64::MAX));
    }
}
