//! How a deployment is taken down without losing what is still needed: the order, the commands, what
//! has to be known before. Looks only; nothing is ever deleted from here.

use serde::Serialize;

use super::TAG_DEPLOYMENT;
use super::account::{Account, Refused};
use super::cluster::ClusterFacts;
use super::key_store::StoreFacts;
use super::shell::quoted;
use super::survey::{self, Deployment, KeyFacts, Keys, Seen, Survey};

/// Least days between the order to delete a key and its end.
pub const WAIT_DAYS: u32 = 7;
/// Days that are put into the command: time to notice that something still needs the key.
const PENDING_DAYS: u32 = 30;

/// What keeps keys that nobody has seen: KMS deletes no key store that has any.
const STOP: &str =
    "If deleting the key store is refused because keys are in it, leave the HSMs alone.";

/// One step.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Its place in the order.
    pub number: usize,
    /// What goes.
    pub what: &'static str,
    /// What there is.
    pub detail: String,
    /// Each of the things there are, where that matters.
    pub things: Vec<String>,
    /// What does it, for each thing that goes.
    pub commands: Vec<String>,
}

/// The whole order.
#[derive(Clone, Debug, Serialize)]
pub struct Teardown {
    /// Name of the deployment.
    pub name: String,
    /// The Region.
    pub region: String,
    /// The steps in order.
    pub steps: Vec<Step>,
    /// What has to be known before.
    pub warnings: Vec<String>,
}

/// Looks at what there is; deletes nothing.
pub fn teardown(account: &Account, deployment: &Deployment) -> Result<Teardown, Refused> {
    let survey = survey::survey(account, deployment)?;
    let keys = survey::keys_of(account, &deployment.name, &survey)?;
    let region = account.region().to_owned();
    let commands = Commands { region: &region };
    let mut steps = vec![
        commands.keys(&keys),
        commands.wait(&keys),
        commands.disconnect(&survey.store),
        commands.delete_store(&survey.store),
        commands.hsms(&survey.cluster),
        commands.cluster(&survey.cluster),
    ];
    if let Some(why) = keeps(&survey, &keys) {
        spare(&mut steps[2..], &why);
    }
    if let Some(why) = keeps_cluster(&survey, &survey::served(account, &survey)?) {
        spare(&mut steps[4..], &why);
    }
    let store = survey.store.as_ref().ok().and_then(Option::as_ref);
    let mut warnings = warnings(store, &keys);
    let hidden = hidden(&survey, &keys, &deployment.alias);
    if is_empty(&survey, &keys) {
        warnings.push(match hidden.is_empty() {
            true => "Nothing of this deployment was found; check --name and --region.".to_owned(),
            false => "Nothing of this deployment was found where this caller may look, and it may \
                      not look everywhere: see below what is missing."
                .to_owned(),
        });
    }
    warnings.extend(hidden);
    let number = |(at, step): (usize, Step)| Step { number: at + 1, ..step };
    let steps = steps.into_iter().enumerate().map(number).collect();
    Ok(Teardown { name: deployment.name.clone(), region, steps, warnings })
}

/// Whether nothing was seen; that does not mean that nothing is there.
fn is_empty(survey: &Survey, keys: &Seen<Keys>) -> bool {
    !matches!(survey.cluster, Ok(Some(_)))
        && !matches!(survey.store, Ok(Some(_)))
        && keys.as_ref().map_or(true, |keys| keys.own.is_empty())
}

/// Takes the commands away.
fn spare(steps: &mut [Step], why: &str) {
    for step in steps.iter_mut().filter(|step| !step.commands.is_empty()) {
        step.detail = format!("{}; not now: {why}", step.detail);
        step.commands.clear();
    }
}

/// Why key store and cluster have to stay for now.
fn keeps(survey: &Survey, keys: &Seen<Keys>) -> Option<String> {
    let store = match &survey.store {
        Ok(store) => store.as_ref()?,
        Err(_) => return Some("it is not known which keys live in it".to_owned()),
    };
    match keys.as_ref().map(|keys| keys.foreign_in(&store.id)) {
        Ok(0) | Err(_) => None,
        Ok(number) => Some(format!("{number} keys of others live in it")),
    }
}

/// Why the cluster has to stay, whatever becomes of the key store: CloudHSM does not ask KMS what its HSMs
/// are needed for.
fn keeps_cluster(survey: &Survey, served: &Seen<Option<StoreFacts>>) -> Option<String> {
    let cluster = survey.cluster.as_ref().ok().and_then(Option::as_ref)?;
    let store = survey.store.as_ref().ok().and_then(Option::as_ref);
    let named = |store: &StoreFacts| format!("key store {} ({})", store.name, store.id);
    match served {
        Err(why) => Some(format!("it is not known which key store lives in it: {why}")),
        Ok(Some(other)) if store.is_none_or(|store| store.id != other.id) => {
            Some(format!("{} lives in it, which is another than this deployment's", named(other)))
        }
        Ok(_) => store.filter(|store| store.cluster.as_ref() != Some(&cluster.id)).map(|store| {
            let lives = store.cluster.as_deref().unwrap_or("no cluster of CloudHSM");
            format!("{} lives in {lives}; say with --cluster which is meant", named(store))
        }),
    }
}

/// What could not be looked at, and why.
fn hidden(survey: &Survey, keys: &Seen<Keys>, alias: &str) -> Vec<String> {
    let part = |what: &str, why: Option<&String>| {
        why.map(|why| format!("{what} could not be looked at: {why}"))
    };
    let mut all = Vec::new();
    all.extend(part("The cluster", survey.cluster.as_ref().err()));
    all.extend(part("The key store", survey.store.as_ref().err()));
    all.extend(part(alias, survey.key.as_ref().err()));
    let keys = match keys {
        Ok(keys) => keys,
        Err(why) => {
            all.push(format!("The keys could not be listed. {STOP} {why}"));
            return all;
        }
    };
    let unseen = "keys of the account could not be looked at, so there may be more of this deployment, \
                  and of others in its key store.";
    all.extend(keys.unseen.iter().map(|(number, why)| format!("{number} {unseen} {STOP} {why}")));
    let untold = "keys of the account do not show their tags, so there may be more of this deployment, \
                  rotated away before. The first of them:";
    all.extend(keys.untold.iter().map(|(number, why)| format!("{number} {untold} {why}")));
    if keys.is_cut {
        all.push("Not every key of the account was looked at: there are too many.".to_owned());
    }
    all
}

fn warnings(store: Option<&StoreFacts>, keys: &Seen<Keys>) -> Vec<String> {
    let mut all = vec![
        "Once a key is deleted, nothing brings back what only it can unwrap. Run `kmsfsctl key status` \
         on every volume and on every restored backup: as long as a file header names the key, that \
         file needs it."
            .to_owned(),
        "Backups of volumes, snapshots and copies elsewhere hold headers, too, and nobody but you knows \
         where they are: keep the key for as long as you keep them."
            .to_owned(),
        "Disable the keys first (`aws kms disable-key`) and watch for a while: that shows who still \
         needs them, and is undone in a second."
            .to_owned(),
        "Keys of a CloudHSM cluster live on in its backups only. When the last backup has expired they \
         are gone, whatever else was kept."
            .to_owned(),
        "Delete the HSMs last: without them KMS cannot delete the keys that lie in them, and a key whose \
         deletion is cancelled could not be used."
            .to_owned(),
    ];
    let foreign = || keys.as_ref().ok().zip(store).map(|(keys, store)| keys.foreign_in(&store.id));
    if foreign().is_some_and(|number| number > 0) {
        all.push(
            "Others have keys in this key store, listed below: key store and cluster stay as long as \
             these do, and a disconnected key store takes them away at once."
                .to_owned(),
        );
    }
    all
}

/// A key for people; `whose` says to whom it belongs, if not to this deployment.
fn shown(key: &KeyFacts, whose: &str) -> String {
    let place = key.store.as_ref().map(|store| format!(", in {store}")).unwrap_or_default();
    format!("{}, {}{place}{whose}", key.arn, key.state)
}

/// To whom a key in the key store belongs.
fn whose(key: &KeyFacts) -> String {
    match (&key.tags, key.tag(TAG_DEPLOYMENT)) {
        (_, Some(other)) => format!("; of deployment {other}"),
        (Ok(_), None) => "; of no deployment: whose?".to_owned(),
        (Err(_), None) => "; its tags are not shown to this caller: whose?".to_owned(),
    }
}

struct Commands<'a> {
    region: &'a str,
}

/// A step; its number comes later.
fn step(what: &'static str, detail: &str, commands: Vec<String>) -> Step {
    Step { number: 0, what, detail: detail.to_owned(), things: Vec::new(), commands }
}

impl Commands<'_> {
    fn aws(&self, text: String) -> String {
        format!("aws {text} --region {}", quoted(self.region))
    }

    fn keys(&self, keys: &Seen<Keys>) -> Step {
        let what = "order the deletion of the keys";
        let keys = match keys {
            Ok(keys) => keys,
            Err(why) => return step(what, why, Vec::new()),
        };
        let (going, left): (Vec<_>, Vec<_>) =
            keys.own.iter().partition(|key| key.deletion.is_some());
        let command = |key: &&KeyFacts| {
            let arn = quoted(&key.arn);
            self.aws(format!(
                "kms schedule-key-deletion --key-id {arn} --pending-window-in-days {PENDING_DAYS}"
            ))
        };
        let others = match keys.foreign.len() {
            0 => String::new(),
            number => format!("; {number} listed here are not this deployment's, and stay"),
        };
        let detail =
            format!("{} keys, {} to be deleted already{others}", keys.own.len(), going.len());
        let own = keys.own.iter().map(|key| shown(key, ""));
        let foreign = keys.foreign.iter().map(|key| shown(key, &whose(key)));
        let things = own.chain(foreign).collect();
        Step { things, ..step(what, &detail, left.iter().map(command).collect()) }
    }

    fn wait(&self, keys: &Seen<Keys>) -> Step {
        let keys = keys.as_ref().map_or(&[][..], |keys| &keys.own);
        let detail = format!(
            "at least {WAIT_DAYS} days, {PENDING_DAYS} with the commands above; until then `aws kms \
             cancel-key-deletion` takes it back. The key store cannot be deleted before"
        );
        let look =
            |key: &KeyFacts| self.aws(format!("kms describe-key --key-id {}", quoted(&key.arn)));
        step("wait until they are gone", &detail, keys.iter().map(look).collect())
    }

    fn disconnect(&self, store: &Seen<Option<StoreFacts>>) -> Step {
        let idle = matches!(store, Ok(Some(store)) if store.connection == "DISCONNECTED");
        let verb = "disconnect-custom-key-store";
        let mut step = self.of_store("disconnect the key store", verb, store);
        if idle {
            step.commands.clear();
        }
        step
    }

    fn delete_store(&self, store: &Seen<Option<StoreFacts>>) -> Step {
        self.of_store("delete the key store", "delete-custom-key-store", store)
    }

    fn of_store(&self, what: &'static str, verb: &str, store: &Seen<Option<StoreFacts>>) -> Step {
        let (detail, commands) = match store {
            Ok(Some(store)) => (
                format!("{} ({}), {}", store.name, store.id, store.connection),
                vec![self.aws(format!("kms {verb} --custom-key-store-id {}", quoted(&store.id)))],
            ),
            Ok(None) => ("there is none".to_owned(), Vec::new()),
            Err(why) => (why.clone(), Vec::new()),
        };
        step(what, &detail, commands)
    }

    fn hsms(&self, cluster: &Seen<Option<ClusterFacts>>) -> Step {
        let (detail, commands) = match cluster {
            Ok(Some(cluster)) => {
                let id = quoted(&cluster.id);
                let commands = cluster.hsms.iter().map(|hsm| {
                    let hsm = quoted(&hsm.id);
                    self.aws(format!("cloudhsmv2 delete-hsm --cluster-id {id} --hsm-id {hsm}"))
                });
                (format!("{} HSMs; their price ends here", cluster.hsms.len()), commands.collect())
            }
            Ok(None) => ("there is none".to_owned(), Vec::new()),
            Err(why) => (why.clone(), Vec::new()),
        };
        step("delete the HSMs", &detail, commands)
    }

    fn cluster(&self, cluster: &Seen<Option<ClusterFacts>>) -> Step {
        let (detail, commands) = match cluster {
            Ok(Some(cluster)) => {
                let id = quoted(&cluster.id);
                let command = self.aws(format!("cloudhsmv2 delete-cluster --cluster-id {id}"));
                (
                    format!("{}, {}; its backups stay for now", cluster.id, cluster.state),
                    vec![command],
                )
            }
            Ok(None) => ("there is none".to_owned(), Vec::new()),
            Err(why) => (why.clone(), Vec::new()),
        };
        step("delete the cluster", &detail, commands)
    }
}
