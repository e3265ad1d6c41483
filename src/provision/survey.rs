//! What a deployment has already: looks only, and goes on where it may not or cannot look.

use super::TAG_DEPLOYMENT;
use super::account::{Account, Caller, Refused};
use super::cluster::{self, ClusterFacts};
use super::key::{metadata, tag, tags};
use super::key_store::{self, StoreFacts};
use crate::keys::aws::classify::Class;
use crate::keys::aws::fault;

/// Most keys of an account that are looked at for those of a key store.
const KEYS_MAX: usize = 5000;

/// What is looked for.
#[derive(Clone, Debug)]
pub struct Deployment {
    /// Its name: that of the cluster's tag, and of the key store.
    pub name: String,
    /// The cluster, if it is not found by the name.
    pub cluster: Option<String>,
    /// Id or name of the key store, if it is not the deployment's.
    pub store: Option<String>,
    /// The alias of the key.
    pub alias: String,
}

/// What was seen, or why nothing was.
pub type Seen<T> = Result<T, String>;

/// What there is.
pub struct Survey {
    /// Who looks.
    pub caller: Seen<Caller>,
    /// The cluster.
    pub cluster: Seen<Option<ClusterFacts>>,
    /// The key store.
    pub store: Seen<Option<StoreFacts>>,
    /// The key behind the alias.
    pub key: Seen<Option<KeyFacts>>,
}

/// A key of KMS.
#[derive(Clone, Debug)]
pub struct KeyFacts {
    /// Its ARN.
    pub arn: String,
    /// `Enabled`, `PendingDeletion`, ….
    pub state: String,
    /// The key store it lies in.
    pub store: Option<String>,
    /// When it will be deleted, in seconds of the epoch.
    pub deletion: Option<i64>,
    /// AWS looks after it, for one of its services.
    pub is_of_aws: bool,
    /// Names and values, if this caller may see them.
    pub tags: Seen<Vec<(String, String)>>,
}

impl KeyFacts {
    /// The value of a tag, if it can be seen and is there.
    pub fn tag(&self, name: &str) -> Option<&str> {
        self.tags.as_ref().ok().and_then(|tags| tag(tags, name))
    }
}

/// Looks at everything; what the caller may not see, or cannot reach, is said. Without an answer of KMS
/// there is nothing to say.
pub fn survey(account: &Account, deployment: &Deployment) -> Result<Survey, Refused> {
    // The first to be asked, lest the others be waited for in vain.
    let key = seen(key(account, &deployment.alias))?;
    let sought = cluster::Sought::new(&deployment.name, deployment.cluster.as_deref());
    let cluster = seen_or_silent(cluster::find(account, sought))?;
    Ok(Survey {
        caller: seen_or_silent(account.caller())?,
        store: seen(store(account, deployment, &cluster))?,
        cluster,
        key,
    })
}

fn store(
    account: &Account,
    deployment: &Deployment,
    cluster: &Seen<Option<ClusterFacts>>,
) -> Result<Option<StoreFacts>, Refused> {
    let named = deployment.store.as_deref().unwrap_or(&deployment.name);
    let found = key_store::find(account, key_store::Sought::parse(named))?;
    match (found, cluster) {
        // Its name may have been chosen in the console.
        (None, Ok(Some(cluster))) if deployment.store.is_none() => {
            key_store::find_of_cluster(account, &cluster.id)
        }
        (found, _) => Ok(found),
    }
}

/// Keeps going where looking is not allowed.
fn seen<T>(looked: Result<T, Refused>) -> Result<Seen<T>, Refused> {
    match looked {
        Err(refused) if refused.is_denied() => Ok(Err(refused.sentence)),
        other => other.map(Ok),
    }
}

/// Keeps going also where nobody answers, or not now.
fn seen_or_silent<T>(looked: Result<T, Refused>) -> Result<Seen<T>, Refused> {
    let silent = [Class::Unreachable, Class::Transient, Class::Throttled];
    match looked {
        Err(refused) if silent.contains(&refused.class) => Ok(Err(refused.sentence)),
        other => seen(other),
    }
}

/// A key by its id, ARN or alias.
fn key(account: &Account, name: &str) -> Result<Option<KeyFacts>, Refused> {
    let answer = match metadata(account, &format!("key {name}"), name) {
        // What cannot be an alias is that of no key.
        Err(refused)
            if ["NotFoundException", "ValidationException"].contains(&&refused.code[..]) =>
        {
            None
        }
        answer => answer?,
    };
    let Some(data) = answer else { return Ok(None) };
    let arn = data.arn().unwrap_or(data.key_id()).to_owned();
    let is_of_aws = data.key_manager().is_some_and(|manager| manager.as_str() == "AWS");
    let tags = if is_of_aws { Ok(Vec::new()) } else { tags_of(account, &arn)? };
    Ok(Some(KeyFacts {
        state: data.key_state().map_or("", |state| state.as_str()).to_owned(),
        store: data.custom_key_store_id().map(str::to_owned),
        deletion: data.deletion_date().map(|time| time.secs()),
        is_of_aws,
        tags,
        arn,
    }))
}

fn tags_of(account: &Account, arn: &str) -> Result<Seen<Vec<(String, String)>>, Refused> {
    match tags(account, arn) {
        // Deleted since it was listed.
        Err(refused) if refused.code == "NotFoundException" => Ok(Ok(Vec::new())),
        looked => seen(looked),
    }
}

/// What looking at all keys of an account has shown.
#[derive(Default)]
pub struct Keys {
    /// Those with the deployment's tag.
    pub own: Vec<KeyFacts>,
    /// Others in its key store, or behind its alias.
    pub foreign: Vec<KeyFacts>,
    /// How many could not be looked at, and why the first could not.
    pub unseen: Option<(usize, String)>,
    /// How many of customers do not show their tags, and why the first does not.
    pub untold: Option<(usize, String)>,
    /// There are more keys than are looked at.
    pub is_cut: bool,
}

/// Counts one more of these.
fn count(all: &mut Option<(usize, String)>, why: String) {
    all.get_or_insert((0, why)).0 += 1;
}

impl Keys {
    /// Takes in a key that was listed; `alias` is the one behind the deployment's alias.
    fn add(&mut self, key: KeyFacts, deployment: &str, alias: Option<&str>, store: Option<&str>) {
        if key.is_of_aws {
            return;
        }
        if let Err(why) = &key.tags {
            count(&mut self.untold, why.clone());
        }
        let is_near = alias == Some(&key.arn) || store.is_some() && key.store.as_deref() == store;
        if key.tag(TAG_DEPLOYMENT) == Some(deployment) {
            self.own.push(key);
        } else if is_near {
            self.foreign.push(key);
        }
    }

    /// Keys of others in this key store.
    pub fn foreign_in(&self, store: &str) -> usize {
        self.foreign.iter().filter(|key| key.store.as_deref() == Some(store)).count()
    }

    /// Takes in a key that may not be described: what its tags say, if those are shown.
    fn add_unseen(&mut self, arn: &str, tags: &[(String, String)], deployment: &str, why: String) {
        if tag(tags, TAG_DEPLOYMENT) == Some(deployment) {
            self.own.push(KeyFacts {
                arn: arn.to_owned(),
                state: "state unknown".to_owned(),
                store: None,
                deletion: None,
                is_of_aws: false,
                tags: Ok(tags.to_vec()),
            });
        }
        count(&mut self.unseen, why);
    }
}

/// The key store that the cluster serves, whichever that is.
pub fn served(account: &Account, survey: &Survey) -> Result<Seen<Option<StoreFacts>>, Refused> {
    match &survey.cluster {
        Ok(Some(cluster)) => seen(key_store::find_of_cluster(account, &cluster.id)),
        _ => Ok(Ok(None)),
    }
}

/// The keys of a deployment, and those of others in its key store.
pub fn keys_of(account: &Account, name: &str, survey: &Survey) -> Result<Seen<Keys>, Refused> {
    let alias = survey.key.as_ref().ok().and_then(Option::as_ref).map(|key| &key.arn[..]);
    let store = survey.store.as_ref().ok().and_then(Option::as_ref).map(|store| &store.id[..]);
    let (mut keys, mut looked) = (Keys::default(), 0);
    let mut marker = None::<String>;
    loop {
        let from = marker.take();
        let answer = account.ask("ListKeys", "keys of the account", move |clients| {
            let request = clients.kms.list_keys().set_marker(from.clone());
            async move { request.send().await.map_err(|e| fault(&e)) }
        });
        let answer = match seen(answer)? {
            Ok(answer) => answer,
            Err(why) => return Ok(Err(why)),
        };
        for arn in answer.keys().iter().filter_map(|key| key.key_arn()) {
            looked += 1;
            match seen(key(account, arn))? {
                Ok(Some(key)) => keys.add(key, name, alias, store),
                Ok(None) => {}
                Err(why) => {
                    let tags = tags_of(account, arn)?.unwrap_or_default();
                    keys.add_unseen(arn, &tags, name, why);
                }
            }
        }
        match answer.next_marker {
            Some(next) if answer.truncated && looked < KEYS_MAX => marker = Some(next),
            more => {
                keys.is_cut = more.is_some();
                return Ok(Ok(keys));
            }
        }
    }
}
