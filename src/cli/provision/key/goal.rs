//! Which key it is about: one that is there, found by its alias or tags, or a new one.

use serde_json::Value;

use crate::cli::exit::{FAILURE, failure};
use crate::cli::mount::options::volume_id;
use crate::cli::output::hex;
use crate::cli::provision::screen::Screen;
use crate::crypto::random_array;
use crate::format::VolumeId;
use crate::provision::account::{Account, Caller, Refused};
use crate::provision::intent::Intent;
use crate::provision::key::{self, Found, Grant, Head, Hidden, TAG_REQUEST};
use crate::provision::lifecycle::{self, NativeRotation};
use crate::provision::policy::is_same;
use crate::provision::{TAG_DEPLOYMENT, TAG_VOLUME};

/// What is to be there in the end.
pub struct Goal {
    pub volume: VolumeId,
    pub alias: String,
    /// What the alias points to now.
    pub target: Option<String>,
    pub mark: String,
}

/// What is known before it is looked for.
pub struct Search<'a> {
    pub account: &'a Account,
    /// Of the deployment.
    pub name: &'a str,
    pub alias: String,
    pub volume: Option<VolumeId>,
    pub hidden: Hidden,
    /// May the alias be taken from another key?
    pub repoint: bool,
}

impl Search<'_> {
    /// To make the key. Where KMS is called elsewhere, there are other keys.
    pub fn intent(&self, caller: &Caller) -> Intent {
        let (name, alias, id) = (self.name, &self.alias, &caller.account);
        let (region, place) = (self.account.region(), self.account.kms_endpoint());
        let place = place.unwrap_or_default();
        Intent::of_user(&format!("a KMS key in {region} {place} of {id} for {alias} of {name}"))
    }

    /// Refuses, if the key is there now, or its alias elsewhere than it was.
    pub fn require_unchanged(&self, before: &Goal) -> Result<(), Refused> {
        let (now, head) = self.goal()?;
        match (head, now.target) {
            (Some(head), _) => Err(key::made_meanwhile(&format!("KMS key {}", head.arn))),
            (None, target) if target != before.target => {
                let (alias, target) = (&self.alias, target.as_deref().unwrap_or("no key"));
                Err(key::made_meanwhile(&format!("{alias} point to {target}")))
            }
            _ => Ok(()),
        }
    }

    /// As [`Self::goal`]; if an earlier run was about to make the key, it may not show yet.
    pub fn goal_or_begun(&self, intent: &Intent) -> anyhow::Result<(Goal, Option<Head>)> {
        let (goal, head) = self.goal()?;
        if head.is_some() {
            return Ok((goal, head));
        }
        let what = format!("the key of {}", self.alias);
        let there = || Ok(Some(self.goal()?).filter(|(_, head)| head.is_some()));
        let seen = intent.await_begun(self.account, &what, &Screen::new(), there)?;
        Ok(seen.unwrap_or((goal, None)))
    }

    /// For the volume that was named, or the one an earlier run chose, or a new one; and its key, if it
    /// is there.
    fn goal(&self) -> Result<(Goal, Option<Head>), Refused> {
        let (account, name) = (self.account, self.name);
        let target = match key::look(account, &self.alias) {
            Ok(head) => Some(head),
            Err(refused) if refused.code == "NotFoundException" => None,
            // Whose it is must be known: a key whose alias cannot be had would be left over.
            Err(refused) => return Err(refused),
        };
        let known = target.as_ref().map(|head| self.ours(head)).transpose()?.flatten();
        let known = match (known, self.volume) {
            (None, Some(volume)) => key::find_of_volume(account, &hex(&volume.0), self.hidden)?
                .and_then(|found| marked(found, self.volume)),
            // Behind an alias that stays another key's there is nothing to look for.
            (None, None) if target.is_none() || self.repoint => {
                let found = key::find_begun(account, name, &self.alias, self.hidden)?;
                let replaced = match (&found, &target) {
                    (Some(found), Some(target)) => self.is_replaced(found, target)?,
                    _ => false,
                };
                found.filter(|_| !replaced).and_then(|found| marked(found, None))
            }
            (known, _) => known,
        };
        let (volume, mark, head) = known.map_or_else(
            || {
                let volume = self.volume.unwrap_or_else(|| VolumeId(random_array()));
                (volume, format!("{}.1", hex(&volume.0)), None)
            },
            |(volume, mark, head)| (volume, mark, Some(head)),
        );
        let target = target.map(|head| head.arn);
        Ok((Goal { volume, alias: self.alias.clone(), target, mark }, head))
    }

    /// Was a key rotated away, and the one behind the alias, which cannot be used, came after it?
    fn is_replaced(&self, found: &Found, target: &Head) -> Result<bool, Refused> {
        let tags = match key::tags(self.account, &target.arn) {
            Err(refused) if refused.is_denied() => return Ok(false),
            tags => tags?,
        };
        Ok(match (key::mark(&found.tags), key::mark(&tags)) {
            (Some((volume, number)), Some((of, later))) => volume == of && number < later,
            _ => false,
        })
    }

    /// What the alias names, if it is this deployment's and for the volume that is meant.
    fn ours(&self, head: &Head) -> Result<Option<Marked>, Refused> {
        // It cannot be used as it is; whether another one may have its alias is asked elsewhere.
        if head.state.starts_with("Pending") {
            return Ok(None);
        }
        let tags = match key::tags(self.account, &head.arn) {
            Err(refused) if refused.is_denied() => return Ok(None),
            tags => tags?,
        };
        let ours = key::tag(&tags, TAG_DEPLOYMENT) == Some(self.name);
        let found = Found { head: head.clone(), tags };
        Ok(ours.then(|| marked(found, self.volume)).flatten())
    }
}

/// A volume, the mark of its key, the key.
type Marked = (VolumeId, String, Head);

/// A key whose tags say for which volume it was made; for this one, if one is named.
fn marked(found: Found, wanted: Option<VolumeId>) -> Option<Marked> {
    let id = key::tag(&found.tags, TAG_VOLUME).and_then(|id| volume_id(id).ok()).map(VolumeId)?;
    let mark = key::tag(&found.tags, TAG_REQUEST)?.to_owned();
    wanted.is_none_or(|wanted| wanted.0 == id.0).then_some((id, mark, found.head))
}

/// Before anything is made: a key whose alias cannot be had would be left over.
pub fn refuse_foreign_alias(
    repoint: bool,
    goal: &Goal,
    present: Option<&Head>,
) -> anyhow::Result<()> {
    match &goal.target {
        Some(target) if !repoint && present.is_none_or(|head| head.arn != *target) => {
            let text = format!(
                "{} points to another key ({target}), and somebody may rely on that; choose another \
                 --name or --alias, or say --repoint-alias; nothing was made",
                goal.alias
            );
            Err(failure(FAILURE, text))
        }
        _ => Ok(()),
    }
}

/// A key that is there.
pub struct Present {
    pub head: Head,
    /// Nothing, if this caller may not read it.
    pub policy: Option<Value>,
    /// Nothing, if this caller may not list them.
    pub grants: Option<Vec<Grant>>,
    /// Where it was asked for and can be known.
    pub rotation: Option<NativeRotation>,
}

impl Present {
    pub fn of(account: &Account, head: Head, rotation_days: Option<u32>) -> Result<Self, Refused> {
        let policy = match key::policy(account, &head.arn) {
            Err(refused) if refused.is_denied() => None,
            policy => serde_json::from_str(&policy?).ok(),
        };
        let grants = match key::grants(account, &head.arn) {
            Err(refused) if refused.is_denied() => None,
            grants => Some(grants?),
        };
        let rotation = rotation_days.map(|_| lifecycle::rotation(account, &head.arn));
        let rotation = match rotation.transpose() {
            Err(refused) if refused.is_denied() => None,
            rotation => rotation?,
        };
        Ok(Self { head, policy, grants, rotation })
    }

    pub fn is(&self, arn: Option<&String>) -> bool {
        arn == Some(&self.head.arn)
    }

    /// Nothing, if nobody can say.
    pub fn has_policy(&self, wanted: &Value) -> Option<bool> {
        self.policy.as_ref().map(|policy| is_same(policy, wanted))
    }

    pub fn has_rotation(&self, days: Option<u32>) -> bool {
        let kept = |now: &NativeRotation| now.automatic && now.period_days == days;
        days.is_none() || self.rotation.as_ref().is_some_and(kept)
    }

    /// Refuses a key that others may use by a grant; who makes a key may have made one before he gave it
    /// the policy that is wanted.
    pub fn require_no_grants(&self) -> anyhow::Result<()> {
        let arn = &self.head.arn;
        let why = match &self.grants {
            Some(grants) => key::granted(arn, grants),
            None => Some(format!(
                "KMS key {arn} is there and does not show this caller its grants (kms:ListGrants), \
                 which count beside its policy: have that right added to the caller's IAM policy"
            )),
        };
        why.map_or(Ok(()), |why| {
            let text =
                format!("{why}, or say --keep-grants to take it as it is; nothing was changed");
            Err(failure(FAILURE, text))
        })
    }

    /// Refuses a key with which others could do what they should not.
    pub fn require_policy(&self, wanted: &Value) -> anyhow::Result<()> {
        let what = match self.has_policy(wanted) {
            Some(true) => return Ok(()),
            Some(false) => {
                "has another policy than these options describe (its own is shown above)"
            }
            None => "does not show this caller its policy (kms:GetKeyPolicy)",
        };
        let text = format!(
            "KMS key {} is there and {what}: name the same people as when it was made, or say \
             --put-policy to give it the policy of these options, or --keep-policy to take it as it is; \
             nothing was changed",
            self.head.arn
        );
        Err(failure(FAILURE, text))
    }
}
