//! What a deployment has already: looks only, and goes on where it may not look.

use serde::Serialize;

use super::account::{Account, Caller, Refused};
use super::cluster::{self, ClusterFacts};
use super::key::metadata;
use super::key_store::{self, StoreFacts};
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
#[derive(Clone, Debug, Serialize)]
pub struct KeyFacts {
    /// Its ARN.
    pub arn: String,
    /// `Enabled`, `PendingDeletion`, ….
    pub state: String,
    /// The key store it lies in.
    pub store: Option<String>,
    /// When it will be deleted, in seconds of the epoch.
    pub deletion: Option<i64>,
}

/// Looks at everything; what the caller may not see is said, any other failure is one.
pub fn survey(account: &Account, deployment: &Deployment) -> Result<Survey, Refused> {
    let sought = cluster::Sought::new(&deployment.name, deployment.cluster.as_deref());
    let cluster = seen(cluster::find(account, sought))?;
    Ok(Survey {
        caller: seen(account.caller())?,
        store: seen(store(account, deployment, &cluster))?,
        cluster,
        key: seen(key(account, &deployment.alias))?,
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
        Err(refused) if is_denied(&refused) => Ok(Err(refused.sentence)),
        other => other.map(Ok),
    }
}

fn is_denied(refused: &Refused) -> bool {
    matches!(&refused.code[..], "AccessDeniedException" | "AccessDenied")
        || refused.code == "CloudHsmAccessDeniedException"
}

/// A key by its id, ARN or alias.
pub fn key(account: &Account, name: &str) -> Result<Option<KeyFacts>, Refused> {
    match metadata(account, &format!("key {name}"), name) {
        Ok(answer) => Ok(answer.map(|key| KeyFacts {
            arn: key.arn().unwrap_or(key.key_id()).to_owned(),
            state: key.key_state().map_or("", |state| state.as_str()).to_owned(),
            store: key.custom_key_store_id().map(str::to_owned),
            deletion: key.deletion_date().map(|time| time.secs()),
        })),
        // What cannot be an alias is that of no key.
        Err(refused)
            if ["NotFoundException", "ValidationException"].contains(&&refused.code[..]) =>
        {
            Ok(None)
        }
        Err(refused) => Err(refused),
    }
}

/// The keys in a key store, and whether all keys of the account could be looked at.
pub fn keys_in(account: &Account, store: &str) -> Result<Seen<(Vec<KeyFacts>, bool)>, Refused> {
    let (mut found, mut looked, mut whole) = (Vec::new(), 0, true);
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
        for id in answer.keys().iter().filter_map(|key| key.key_id()) {
            looked += 1;
            match seen(key(account, id))? {
                Ok(Some(key)) if key.store.as_deref() == Some(store) => found.push(key),
                Ok(_) => {}
                Err(_) => whole = false,
            }
        }
        match answer.next_marker {
            Some(next) if answer.truncated && looked < KEYS_MAX => marker = Some(next),
            more => return Ok(Ok((found, whole && more.is_none()))),
        }
    }
}
