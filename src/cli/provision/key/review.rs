//! What is shown before a key is made, while it is made, and when it is there.

use serde::Serialize;
use serde_json::Value;

use super::goal::Present;
use crate::cli::exit::{KEY_UNAVAILABLE, failure};
use crate::cli::output::{Out, note};
use crate::keys::finding::Finding;
use crate::keys::prices::{HOURS_PER_MONTH, HSM_PER_HOUR, KEY_PER_MONTH};
use crate::provision::account::{Account, Caller};
use crate::provision::key::{KeyWish, Origin};

/// All that is about to be, on standard error: standard output is for the result.
pub struct Review<'a> {
    pub account: &'a Account,
    pub caller: &'a Caller,
    pub wish: &'a KeyWish,
    pub alias: &'a str,
    pub policy: &'a Value,
    pub findings: &'a [Finding],
    pub present: Option<&'a Present>,
    pub put_policy: bool,
    pub rotation_days: Option<u32>,
}

impl Review<'_> {
    pub fn show(&self) {
        let fact = |label: &str, value: &str| note(format!("{label:<20} {value}"));
        fact("account", &format!("{} ({})", self.caller.account, self.account.region()));
        fact("caller", &self.caller.arn);
        match self.present {
            Some(key) => {
                fact("key", &format!("exists: {}", key.head.arn));
                note("It keeps its tags and description.");
            }
            None => fact("key", &format!("to be made, {}", place(&self.wish.origin))),
        }
        fact("description", &self.wish.description);
        fact("alias", self.alias);
        let tags: Vec<String> =
            self.wish.tags.iter().map(|(name, value)| format!("{name}={value}")).collect();
        fact("tags", &tags.join(", "));
        fact("rotation", &self.rotation());
        fact("cost", &cost(&self.wish.origin));
        match self.present {
            Some(key) if !self.put_policy => self.show_present(key),
            Some(_) => show_policy("policy, instead of the one it has", self.policy),
            None => show_policy("policy", self.policy),
        }
        let grants = self.present.and_then(|key| key.grants.as_ref());
        grants.into_iter().flatten().for_each(|grant| fact("grant", &grant.to_string()));
        show_findings(self.findings);
    }

    /// The policy that counts is the one it has.
    fn show_present(&self, key: &Present) {
        match (&key.policy, key.has_policy(self.policy)) {
            (Some(policy), Some(true)) => show_policy("policy, which it has", policy),
            (Some(policy), _) => {
                show_policy("policy it has, which is another one than is wanted", policy);
                show_policy("policy that is wanted", self.policy);
            }
            (None, _) => {
                show_policy("policy that is wanted; the one it has cannot be read", self.policy);
            }
        }
    }

    fn rotation(&self) -> String {
        let now = self.present.and_then(|key| key.rotation.as_ref());
        let now = now.map_or_else(String::new, |now| match (now.automatic, now.period_days) {
            (true, Some(days)) => format!(" (now every {days} days)"),
            (true, None) => " (now by KMS, too)".to_owned(),
            (false, _) => " (not now)".to_owned(),
        });
        match (self.rotation_days, &self.wish.origin) {
            (Some(days), _) => format!("by KMS, every {days} days{now}"),
            (None, Origin::AwsKms) => "none by KMS (--rotation-days N)".to_owned(),
            (None, _) => "by `kmsfsctl key rotate`: KMS rotates no key of a store".to_owned(),
        }
    }
}

fn show_policy(title: &str, policy: &Value) {
    note(title);
    if let Ok(text) = serde_json::to_string_pretty(policy) {
        note(text);
    }
}

fn place(origin: &Origin) -> String {
    match origin {
        Origin::AwsKms => "in KMS".to_owned(),
        Origin::CloudHsm { store } => format!("in the CloudHSM cluster of key store {store}"),
        Origin::External { store, xks_key_id } => {
            format!("in external key store {store}, as its key {xks_key_id}")
        }
    }
}

fn cost(origin: &Origin) -> String {
    let cluster = match origin {
        Origin::CloudHsm { .. } => {
            let dollars = 2.0 * HSM_PER_HOUR * HOURS_PER_MONTH;
            format!("; the cluster, if of two HSMs, ${dollars:.2} a month beside, key or no key")
        }
        Origin::AwsKms | Origin::External { .. } => String::new(),
    };
    format!("${KEY_PER_MONTH:.2} a month, and for calls what `kmsfsctl estimate` says{cluster}")
}

pub fn show_findings(findings: &[Finding]) {
    for finding in findings {
        let Finding { level, about, found, .. } = finding;
        note(format!("{:<8} {about}: {found}", level.word()));
        if let Some(advice) = &finding.advice {
            note(format!("         {advice}"));
        }
    }
}

/// What came of trying the key.
pub enum Trial {
    Passed,
    NotAllowed(String),
    Failed(String),
}

/// What is there now.
pub struct Outcome {
    pub key: String,
    pub created: bool,
    pub alias: String,
    pub alias_moved: bool,
    pub volume_id: String,
    pub rotation_days: Option<u32>,
    /// The key was there before, with another policy than is wanted now; nothing, if nobody can say.
    pub policy_differs: Option<bool>,
    pub trial: Trial,
}

/// The same for JSON.
#[derive(Serialize)]
pub struct Facts<'a> {
    key: &'a str,
    created: bool,
    alias: &'a str,
    alias_moved: bool,
    volume_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rotation_days: Option<u32>,
    /// The key was there before, with another policy than is wanted now; `null` if it cannot be read.
    policy_differs: Option<bool>,
    /// `passed`, `not-allowed` or `failed`.
    canary: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    canary_text: Option<&'a str>,
    next: String,
}

impl Outcome {
    pub fn print(&self, json: bool) -> anyhow::Result<()> {
        let mut out = Out::new();
        if json {
            out.json(&self.facts())?;
            return out.finish();
        }
        self.print_on(&mut out)?;
        out.finish()
    }

    /// For JSON.
    pub fn facts(&self) -> Facts<'_> {
        let (canary, canary_text) = match &self.trial {
            Trial::Passed => ("passed", None),
            Trial::NotAllowed(text) => ("not-allowed", Some(text.as_str())),
            Trial::Failed(text) => ("failed", Some(text.as_str())),
        };
        Facts {
            key: &self.key,
            created: self.created,
            alias: &self.alias,
            alias_moved: self.alias_moved,
            volume_id: &self.volume_id,
            rotation_days: self.rotation_days,
            policy_differs: self.policy_differs,
            canary,
            canary_text,
            next: self.next(),
        }
    }

    fn next(&self) -> String {
        format!("kmsfsctl init DIR --key aws-kms:{} --volume-id {}", self.key, self.volume_id)
    }

    /// For people.
    pub fn print_on(&self, out: &mut Out) -> anyhow::Result<()> {
        let how = if self.created { "made" } else { "exists" };
        out.fact("key", format!("{} ({how})", self.key))?;
        let moved = if self.alias_moved { " (pointed elsewhere before)" } else { "" };
        out.fact("alias", format!("{}{moved}", self.alias))?;
        out.fact("volume id", &self.volume_id)?;
        match self.policy_differs {
            Some(false) => {}
            Some(true) => out.fact("policy", "another one than is wanted, kept")?,
            None => out.fact("policy", "kept; this caller may not read it")?,
        }
        match &self.trial {
            Trial::Passed => {
                out.fact("trial", "a data key was made, unwrapped, and refused elsewhere")?;
            }
            Trial::NotAllowed(text) | Trial::Failed(text) => out.fact("trial", text)?,
        }
        out.line(format!("Next: {}", self.next()))
    }

    /// What the exit code is about.
    pub fn verdict(&self, require_canary: bool) -> anyhow::Result<()> {
        match &self.trial {
            Trial::Failed(text) => {
                Err(failure(KEY_UNAVAILABLE, format!("the key is there and does not work: {text}")))
            }
            Trial::NotAllowed(_) if require_canary => {
                Err(failure(KEY_UNAVAILABLE, "the key is there and was not tried, see above"))
            }
            Trial::Passed | Trial::NotAllowed(_) => Ok(()),
        }
    }
}
