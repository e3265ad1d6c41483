//! What AWS says of a key, and the wish for one like it.

use super::{KeyWish, Origin, TAG_REQUEST};
use crate::keys::aws::classify::Class;
use crate::keys::aws::fault;
use crate::provision::account::{Account, Refused};
use aws_sdk_kms::types::{KeyMetadata, KeySpec, KeyUsageType};

/// What DescribeKey says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its ARN.
    pub arn: String,
    /// `Enabled`, `Disabled`, `PendingDeletion`, `Unavailable`, ….
    pub state: String,
    /// `AWS_KMS`, `AWS_CLOUDHSM`, `EXTERNAL_KEY_STORE` or `EXTERNAL`.
    pub origin: String,
    /// Id of its key store.
    pub store: Option<String>,
    /// `CUSTOMER`, or `AWS` for one that AWS looks after.
    pub manager: String,
    /// For people.
    pub description: String,
    /// The key's name with its external key manager.
    pub xks_key_id: Option<String>,
    /// Other Regions may have replicas.
    pub multi_region: bool,
    /// Symmetric, and for encryption.
    pub is_usable_kind: bool,
}

/// All there is to know of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFacts {
    /// What DescribeKey says.
    pub head: Head,
    /// JSON.
    pub policy: String,
    /// Names and values.
    pub tags: Vec<(String, String)>,
    /// All its aliases.
    pub aliases: Vec<String>,
}

impl KeyFacts {
    /// The value of a tag.
    pub fn tag(&self, name: &str) -> Option<&str> {
        tag(&self.tags, name)
    }
}

/// The value of a tag.
pub fn tag<'a>(tags: &'a [(String, String)], name: &str) -> Option<&'a str> {
    tags.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

impl Head {
    /// Why no volume can have it, whatever its policy.
    pub(super) fn unfit(&self) -> Option<&'static str> {
        match self {
            Self { manager, .. } if manager != "CUSTOMER" => {
                Some("AWS looks after it; make a key of your own with `kmsfsctl provision key`")
            }
            Self { is_usable_kind: false, .. } => Some("it is no symmetric key for encryption"),
            _ => None,
        }
    }
}

fn word(word: Option<&str>) -> String {
    word.unwrap_or("unknown").to_owned()
}

fn head(data: KeyMetadata) -> Head {
    Head {
        state: word(data.key_state.as_ref().map(|state| state.as_str())),
        origin: word(data.origin.as_ref().map(|origin| origin.as_str())),
        manager: word(data.key_manager.as_ref().map(|manager| manager.as_str())),
        is_usable_kind: data.key_spec == Some(KeySpec::SymmetricDefault)
            // What a key is for unless another use was asked for; emulators leave it out.
            && data.key_usage.is_none_or(|usage| usage == KeyUsageType::EncryptDecrypt),
        multi_region: data.multi_region.unwrap_or(false),
        arn: data.arn.unwrap_or_default(),
        store: data.custom_key_store_id,
        description: data.description.unwrap_or_default(),
        xks_key_id: data.xks_key_configuration.and_then(|external| external.id),
    }
}

/// The answer of DescribeKey; `subject` names the key for people.
pub(in crate::provision) fn metadata(
    account: &Account,
    subject: &str,
    key: &str,
) -> Result<Option<KeyMetadata>, Refused> {
    let key = key.to_owned();
    account.ask("DescribeKey", subject, move |clients| {
        let request = clients.kms.describe_key().key_id(&key);
        async move { Ok(request.send().await.map_err(|e| fault(&e))?.key_metadata) }
    })
}

/// What DescribeKey says; `key` is an id, an ARN or an alias.
pub fn look(account: &Account, key: &str) -> Result<Head, Refused> {
    let subject = format!("KMS key {key}");
    match metadata(account, &subject, key)? {
        Some(data) if data.arn.is_some() => Ok(head(data)),
        _ => {
            let text = format!("{subject}: DescribeKey was answered without a key");
            Err(Refused::here(Class::Misconfigured, text))
        }
    }
}

/// The tags of a key: names and values.
pub fn tags(account: &Account, arn: &str) -> Result<Vec<(String, String)>, Refused> {
    let (mut all, mut marker) = (vec![], None);
    loop {
        let (key, from) = (arn.to_owned(), marker.take());
        let page = account.ask("ListResourceTags", &format!("KMS key {arn}"), move |clients| {
            let request = clients.kms.list_resource_tags().key_id(&key);
            let request = request.set_marker(from.clone());
            async move { request.send().await.map_err(|e| fault(&e)) }
        })?;
        let tags = page.tags.unwrap_or_default();
        all.extend(tags.into_iter().map(|tag| (tag.tag_key, tag.tag_value)));
        match page.next_marker {
            Some(next) if page.truncated => marker = Some(next),
            _ => return Ok(all),
        }
    }
}

/// The key policy, JSON.
pub fn policy(account: &Account, arn: &str) -> Result<String, Refused> {
    let key = arn.to_owned();
    let answer = account.ask("GetKeyPolicy", &format!("KMS key {arn}"), move |clients| {
        let request = clients.kms.get_key_policy().key_id(&key).policy_name("default");
        async move { Ok(request.send().await.map_err(|e| fault(&e))?.policy) }
    })?;
    Ok(answer.unwrap_or_default())
}

/// The aliases that point to a key.
pub fn aliases(account: &Account, arn: &str) -> Result<Vec<String>, Refused> {
    let (mut all, mut marker) = (vec![], None);
    loop {
        let (key, from) = (arn.to_owned(), marker.take());
        let page = account.ask("ListAliases", &format!("KMS key {arn}"), move |clients| {
            let request = clients.kms.list_aliases().key_id(&key).set_marker(from.clone());
            async move { request.send().await.map_err(|e| fault(&e)) }
        })?;
        all.extend(
            page.aliases.unwrap_or_default().into_iter().filter_map(|alias| alias.alias_name),
        );
        match page.next_marker {
            Some(next) if page.truncated => marker = Some(next),
            _ => return Ok(all),
        }
    }
}

/// All there is to know; `key` is an id, an ARN or an alias.
pub fn describe(account: &Account, key: &str) -> Result<KeyFacts, Refused> {
    let head = look(account, key)?;
    let (policy, tags) = (policy(account, &head.arn)?, tags(account, &head.arn)?);
    let aliases = aliases(account, &head.arn)?;
    Ok(KeyFacts { head, policy, tags, aliases })
}

/// The mark: for whom, and the how manieth key it is.
pub fn mark(tags: &[(String, String)]) -> Option<(&str, u32)> {
    let (whom, number) = tag(tags, TAG_REQUEST)?.rsplit_once('.')?;
    Some((whom, number.parse().ok()?))
}

/// The mark of the key that follows this one: each has one successor, whoever asks, and however often.
pub fn successor_mark(facts: &KeyFacts) -> String {
    match (mark(&facts.tags), facts.tag(crate::provision::TAG_VOLUME)) {
        (Some((volume, number)), _) => format!("{volume}.{}", number.saturating_add(1)),
        (None, Some(volume)) => format!("{volume}.2"),
        (None, None) => {
            let id = facts.head.arn.rsplit('/').next().unwrap_or_default();
            format!("{id}.2")
        }
    }
}

/// The wish for a key that follows this one: same place, policy, tags and description, a mark of its
/// own, no alias. A key of an external key store needs a new external key, named by `xks_key_id`.
pub fn copy_wish(
    account: &Account,
    key: &str,
    xks_key_id: Option<&str>,
) -> Result<KeyWish, Refused> {
    let facts = describe(account, key)?;
    let refuse = |why: &str| {
        let text = format!("KMS key {} cannot be followed by one like it: {why}", facts.head.arn);
        Err(Refused::here(Class::Misconfigured, text))
    };
    if let Some(why) = facts.head.unfit() {
        return refuse(why);
    }
    if facts.head.multi_region {
        return refuse("it is a multi-Region key; make its successor by hand, with its replicas");
    }
    let origin = match (facts.head.origin.as_str(), facts.head.store.clone(), xks_key_id) {
        ("AWS_KMS", None, _) => Origin::AwsKms,
        ("AWS_CLOUDHSM", Some(store), _) => Origin::CloudHsm { store },
        ("EXTERNAL_KEY_STORE", Some(store), Some(id)) => {
            Origin::External { store, xks_key_id: id.to_owned() }
        }
        ("EXTERNAL_KEY_STORE", ..) => {
            return refuse(
                "each KMS key of an external key store needs an external key of its own: make one, \
                 and name it with --xks-key-id",
            );
        }
        _ => return refuse("its material was imported; import new material instead"),
    };
    let mark = successor_mark(&facts);
    let kept = |(name, _): &(String, String)| name != TAG_REQUEST && !name.starts_with("aws:");
    Ok(KeyWish {
        origin,
        mark,
        tags: facts.tags.into_iter().filter(kept).collect(),
        description: facts.head.description,
        policy: facts.policy,
    })
}

#[cfg(test)]
impl Head {
    /// Of an ordinary key without a name.
    pub(super) fn nobody() -> Self {
        Self {
            arn: String::new(),
            state: "Enabled".into(),
            origin: "AWS_KMS".into(),
            store: None,
            manager: "CUSTOMER".into(),
            description: String::new(),
            xks_key_id: None,
            multi_region: false,
            is_usable_kind: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provision::TAG_VOLUME;

    #[test]
    fn each_key_has_one_successor() {
        let mark = |tags: &[(&str, &str)]| {
            let tags = tags.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            successor_mark(&KeyFacts {
                head: Head {
                    arn: "arn:aws:kms:us-east-1:111122223333:key/1234".into(),
                    ..Head::nobody()
                },
                policy: String::new(),
                tags,
                aliases: vec![],
            })
        };
        assert_eq!(mark(&[(TAG_VOLUME, "aa"), (TAG_REQUEST, "aa.1")]), "aa.2");
        assert_eq!(mark(&[(TAG_REQUEST, "aa.41")]), "aa.42");
        // Made by hand.
        assert_eq!(mark(&[(TAG_VOLUME, "aa")]), "aa.2");
        assert_eq!(mark(&[(TAG_VOLUME, "aa"), (TAG_REQUEST, "other")]), "aa.2");
        assert_eq!(mark(&[]), "1234.2");
    }

    #[test]
    fn keys_of_aws_and_of_other_kinds_are_for_no_volume() {
        assert_eq!(Head::nobody().unfit(), None);
        let of_aws = Head { manager: "AWS".into(), ..Head::nobody() };
        assert!(of_aws.unfit().unwrap().contains("AWS looks after it"));
        let signing = Head { is_usable_kind: false, ..Head::nobody() };
        assert!(signing.unfit().unwrap().contains("no symmetric key"));
    }
}
