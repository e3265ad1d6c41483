//! KMS keys and their aliases: made once, found again by a mark in their tags.
//!
//! CreateKey has no token by which KMS would know a repetition, and a second key costs money for ever.
//! So a key carries a mark, and before a call whose answer was lost is made again, the mark is looked
//! for.

mod alias;
mod facts;
mod grants;
mod search;

pub use alias::{Pointed, Repoint, point_alias};
pub(super) use facts::metadata;
pub use facts::{
    Head, KeyFacts, aliases, copy_wish, describe, look, mark, policy, successor_mark, tag, tags,
};
pub use grants::{Grant, granted, grants};
pub use search::{Found, Hidden, find, find_begun, find_of_volume};

use super::account::{Account, Refused};
use super::intent::Intent;
use super::settling::settled;
use super::{Silent, Teller};
use crate::keys::aws::classify::Class;
use crate::keys::aws::fault;
use aws_sdk_kms::types::{OriginType, Tag};

/// What a key was made for: a mark no other wanted key has.
pub const TAG_REQUEST: &str = "kmsfs:request";
/// The alias a key was made for.
pub const TAG_ALIAS: &str = "kmsfs:alias";

/// How often CreateKey is called when its answers are lost and nothing is found.
const TRIES: u32 = 3;

/// Where the material of a key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In KMS.
    AwsKms,
    /// In a CloudHSM cluster.
    CloudHsm {
        /// Id of the key store.
        store: String,
    },
    /// With an external key manager.
    External {
        /// Id of the key store.
        store: String,
        /// The key's name there.
        xks_key_id: String,
    },
}

impl Origin {
    fn kind(&self) -> OriginType {
        match self {
            Self::AwsKms => OriginType::AwsKms,
            Self::CloudHsm { .. } => OriginType::AwsCloudhsm,
            Self::External { .. } => OriginType::ExternalKeyStore,
        }
    }

    /// The id of the key store.
    pub fn store(&self) -> Option<&str> {
        match self {
            Self::AwsKms => None,
            Self::CloudHsm { store } | Self::External { store, .. } => Some(store),
        }
    }
}

/// A key that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyWish {
    /// Where its material is to be.
    pub origin: Origin,
    /// For people.
    pub description: String,
    /// Beside the mark.
    pub tags: Vec<(String, String)>,
    /// JSON.
    pub policy: String,
    /// No other wanted key has it; the same wish always has the same.
    pub mark: String,
}

impl KeyWish {
    fn all_tags(&self) -> Result<Vec<Tag>, Refused> {
        let marked = (TAG_REQUEST.to_owned(), self.mark.clone());
        let others = self.tags.iter().filter(|(name, _)| name != TAG_REQUEST);
        let tag = |(name, value): (String, String)| {
            let built = Tag::builder().tag_key(name).tag_value(value).build();
            built.map_err(|error| Refused::here(Class::Misconfigured, format!("a tag: {error}")))
        };
        others.cloned().chain([marked]).map(tag).collect()
    }

    fn subject(&self) -> String {
        format!("KMS key {}", self.mark)
    }
}

/// A key that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// Its ARN.
    pub arn: String,
    /// Made just now, not found.
    pub created: bool,
}

/// The key of this wish, made unless it is there; it is enabled then. One that is there may have another
/// policy, but no grants. Once the key has its place, whoever calls ends the intent.
pub fn find_or_create(
    account: &Account,
    wish: &KeyWish,
    hidden: Hidden,
    intent: &Intent,
    teller: &dyn Teller,
) -> Result<Made, Refused> {
    let look = || find(account, &wish.mark, hidden);
    let found = match look()? {
        None => intent.await_begun(account, &wish.subject(), teller, look)?,
        found => found,
    };
    let Some(found) = found else {
        intent.begin()?;
        return create(account, wish, hidden, intent, teller);
    };
    grants::require_none(account, &found.head.arn)?;
    adopt(account, wish, &found.head, teller)
}

/// Somebody else was faster.
pub fn made_meanwhile(what: &str) -> Refused {
    let text = format!(
        "meanwhile somebody else has made {what}, and no key was made here: run the same command again, \
         to look at it"
    );
    Refused::here(Class::Misconfigured, text)
}

/// Takes the key that was found, if it is the one that is wanted.
pub fn adopt(
    account: &Account,
    wish: &KeyWish,
    head: &Head,
    teller: &dyn Teller,
) -> Result<Made, Refused> {
    require_fit(wish, head)?;
    await_enabled(account, &head.arn, teller)?;
    teller.done(&format!("KMS key {} is there", head.arn));
    Ok(Made { arn: head.arn.clone(), created: false })
}

/// Anybody who may tag keys may have put the mark on this one.
pub fn require_fit(wish: &KeyWish, head: &Head) -> Result<(), Refused> {
    let multi_region = "it is a multi-Region key, whose replicas have policies of their own";
    if let Some(why) = head.unfit().or(head.multi_region.then_some(multi_region)) {
        let text = format!(
            "KMS key {} carries the mark {} and cannot be it: {why}; see who tagged it, and take the \
             tag {TAG_REQUEST} away (`aws kms untag-resource`)",
            head.arn, wish.mark,
        );
        return Err(Refused::here(Class::Misconfigured, text));
    }
    let (wanted, store) = (wish.origin.kind(), wish.origin.store());
    if head.origin != wanted.as_str() || head.store.as_deref() != store {
        let place = |store: Option<&str>| store.map_or_else(String::new, |id| format!(" in {id}"));
        let text = format!(
            "KMS key {} carries the mark {} and has the origin {}{}, where {}{} is wanted; name \
             another volume id, or the origin and key store it has",
            head.arn,
            wish.mark,
            head.origin,
            place(head.store.as_deref()),
            wanted.as_str(),
            place(store),
        );
        return Err(Refused::here(Class::Misconfigured, text));
    }
    Ok(())
}

/// Makes the key, which was looked for and is not there, under the mark of an intent that was begun.
pub fn create(
    account: &Account,
    wish: &KeyWish,
    hidden: Hidden,
    intent: &Intent,
    teller: &dyn Teller,
) -> Result<Made, Refused> {
    let arn = make(account, wish, hidden, intent, teller)?;
    await_enabled(account, &arn, teller)?;
    teller.done(&format!("KMS key {arn} is made"));
    Ok(Made { arn, created: true })
}

/// Only KMS's own refusal says that nothing was made: whatever else fails leaves the mark.
fn make(
    account: &Account,
    wish: &KeyWish,
    hidden: Hidden,
    intent: &Intent,
    teller: &dyn Teller,
) -> Result<String, Refused> {
    let mut left = TRIES;
    loop {
        left -= 1;
        let made = intent.attempt(|| create_when_principals_are_known(account, wish, teller))?;
        let refused = match made {
            Ok(arn) => return Ok(arn),
            Err(refused) => refused,
        };
        teller.waiting(&wish.subject(), "without an answer; looking whether it was made");
        let found = settled(account, &wish.subject(), teller, || {
            let found = find(account, &wish.mark, hidden)?;
            Ok(found.ok_or_else(|| "not to be seen".to_owned()))
        })?;
        match found {
            Ok(found) => return Ok(found.head.arn),
            // It may be one of those that are hidden: of a key made since, nobody has said it is not.
            Err(_) if left == 0 || find(account, &wish.mark, Hidden::Refuse).is_err() => {
                return Err(refused);
            }
            Err(_) => {}
        }
    }
}

/// The ARN, or the failure that may have left a key behind. Roles made just now are not principals
/// everywhere yet.
fn create_when_principals_are_known(
    account: &Account,
    wish: &KeyWish,
    teller: &dyn Teller,
) -> Result<Result<String, Refused>, Refused> {
    let mut last = None;
    let made = settled(account, &wish.subject(), teller, || match create_once(account, wish) {
        Ok(arn) => Ok(Ok(Ok(arn))),
        Err(refused) if refused.may_have_worked() => Ok(Ok(Err(refused))),
        Err(refused) if is_about_principals(&refused) => {
            last = Some(refused);
            Ok(Err("refused: a principal of its policy is not known (yet)".to_owned()))
        }
        Err(refused) => Err(refused),
    })?;
    match (made, last) {
        (Ok(made), _) => Ok(made),
        (Err(_), Some(refused)) => Err(refused),
        (Err(state), None) => Err(Refused::here(Class::Misconfigured, state)),
    }
}

/// The other faults of a policy do not pass by themselves.
fn is_about_principals(refused: &Refused) -> bool {
    refused.code == "MalformedPolicyDocumentException"
        && refused.sentence.contains("invalid principal")
}

/// Who calls must be able to change the policy again: KMS's own check stays on.
fn create_once(account: &Account, wish: &KeyWish) -> Result<String, Refused> {
    let (tags, wish) = (wish.all_tags()?, wish.clone());
    let subject = wish.subject();
    let made = account.make("CreateKey", &subject, move |clients| {
        let xks = match &wish.origin {
            Origin::External { xks_key_id, .. } => Some(xks_key_id.clone()),
            _ => None,
        };
        let request = clients
            .kms
            .create_key()
            .origin(wish.origin.kind())
            .set_custom_key_store_id(wish.origin.store().map(str::to_owned))
            .set_xks_key_id(xks)
            .description(&wish.description)
            .policy(&wish.policy)
            .set_tags(Some(tags.clone()));
        async move {
            let answer = request.send().await.map_err(|e| fault(&e))?;
            Ok(answer.key_metadata.and_then(|data| data.arn))
        }
    })?;
    made.ok_or_else(|| {
        let text = format!("{subject}: CreateKey was answered without a key");
        Refused::here(Class::Transient, text)
    })
}

/// Waits until a key that may be new can be used. What its policy allows is known with it, so a denial
/// may be as passing as not being found.
pub fn await_enabled(account: &Account, arn: &str, teller: &dyn Teller) -> Result<Head, Refused> {
    let what = format!("KMS key {arn}");
    let mut last = None;
    let seen = settled(account, &what, teller, || match look(account, arn) {
        Ok(head) if head.state == "Enabled" => Ok(Ok(head)),
        Ok(head) if ["Creating", "Updating"].contains(&head.state.as_str()) => {
            last = None;
            Ok(Err(head.state))
        }
        Ok(head) => Err(unusable(&head)),
        Err(refused) if refused.class == Class::Denied => {
            let state = refused.code.clone();
            last = Some(refused);
            Ok(Err(state))
        }
        Err(refused) => Err(refused),
    })?;
    seen.map_err(|state| {
        let text = format!("{what} is still {state}; run the same command again in a few minutes");
        last.unwrap_or_else(|| Refused::here(Class::Unreachable, text))
    })
}

fn unusable(head: &Head) -> Refused {
    let (arn, state) = (&head.arn, &head.state);
    let advice = match state.as_str() {
        "Disabled" => format!("enable it (`aws kms enable-key --key-id {arn}`)"),
        "PendingDeletion" => format!(
            "keep it (`aws kms cancel-key-deletion --key-id {arn}`) and enable it, or wait until it \
             has gone"
        ),
        "Unavailable" => format!(
            "connect its key store (`aws kms connect-custom-key-store --custom-key-store-id {}`)",
            head.store.as_deref().unwrap_or("ID")
        ),
        _ => format!("see `aws kms describe-key --key-id {arn}`"),
    };
    Refused::here(Class::Revoked, format!("KMS key {arn} is {state}: {advice}"))
}

/// Gives a key another policy. Who calls must be able to change it again: KMS's own check stays on.
pub fn put_policy(account: &Account, arn: &str, policy: &str) -> Result<(), Refused> {
    let (key, policy) = (arn.to_owned(), policy.to_owned());
    account.ask("PutKeyPolicy", &format!("KMS key {arn}"), move |clients| {
        let request = clients.kms.put_key_policy().key_id(&key).policy_name("default");
        let request = request.policy(&policy);
        async move { request.send().await.map(drop).map_err(|e| fault(&e)) }
    })
}

/// Lets KMS rotate a key by itself every so many days (90 to 2560).
pub fn enable_rotation(account: &Account, arn: &str, days: u32) -> Result<(), Refused> {
    let key = arn.to_owned();
    let days = i32::try_from(days).unwrap_or(i32::MAX);
    // The state of a key just made is not known everywhere.
    let seen = settled(account, arn, &Silent, || {
        let key = key.clone();
        let enabled = account.ask("EnableKeyRotation", &format!("KMS key {arn}"), move |clients| {
            let request = clients.kms.enable_key_rotation().key_id(&key);
            let request = request.rotation_period_in_days(days);
            async move { request.send().await.map(drop).map_err(|e| fault(&e)) }
        });
        match enabled {
            Err(refused) if refused.code == "NotFoundException" => Ok(Err(refused.sentence)),
            other => other.map(Ok),
        }
    })?;
    seen.map_err(|sentence| Refused::here(Class::Denied, sentence))
}
