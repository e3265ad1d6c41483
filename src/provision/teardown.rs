//! How a deployment is taken down without losing what is still needed: the order, the commands, what
//! has to be known before. Looks only; nothing is ever deleted from here.

use serde::Serialize;

use super::account::{Account, Refused};
use super::cluster::ClusterFacts;
use super::key_store::StoreFacts;
use super::shell::quoted;
use super::survey::{self, Deployment, KeyFacts, Seen};

/// Least days between the order to delete a key and its end.
pub const WAIT_DAYS: u32 = 7;
/// Days that are put into the command: time to notice that something still needs the key.
const PENDING_DAYS: u32 = 30;

/// One step.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Its place in the order.
    pub number: usize,
    /// What goes.
    pub what: &'static str,
    /// What there is.
    pub detail: String,
    /// What does it, for each thing there is.
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
    let keys = match &survey.store {
        Ok(Some(store)) => survey::keys_in(account, &store.id)?,
        // Where the store cannot be seen, its keys cannot be told from others.
        Ok(None) => Ok((survey.key.clone().ok().flatten().into_iter().collect(), true)),
        Err(why) => Err(why.clone()),
    };
    let region = account.region().to_owned();
    let mut warnings = warnings(&keys);
    let commands = Commands { region: &region };
    let steps = [
        commands.keys(&keys),
        commands.wait(&keys),
        commands.disconnect(&survey.store),
        commands.delete_store(&survey.store),
        commands.hsms(&survey.cluster),
        commands.cluster(&survey.cluster),
    ];
    if steps.iter().all(|step| step.commands.is_empty()) {
        warnings
            .push("Nothing of this deployment was found; check --name and --region.".to_owned());
    }
    let number = |(at, step): (usize, Step)| Step { number: at + 1, ..step };
    let steps = steps.into_iter().enumerate().map(number).collect();
    Ok(Teardown { name: deployment.name.clone(), region, steps, warnings })
}

/// Keys, and whether all could be looked at.
type Keys = Seen<(Vec<KeyFacts>, bool)>;

fn warnings(keys: &Keys) -> Vec<String> {
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
    match keys {
        Ok((_, true)) => {}
        Ok((_, false)) => all.push(
            "Not every key of the account could be looked at: there may be more in the key store."
                .to_owned(),
        ),
        Err(why) => all.push(format!("The keys could not be listed: {why}")),
    }
    all
}

struct Commands<'a> {
    region: &'a str,
}

impl Commands<'_> {
    fn aws(&self, text: String) -> String {
        format!("aws {text} --region {}", quoted(self.region))
    }

    fn keys(&self, keys: &Keys) -> Step {
        let (detail, commands) = match keys {
            Err(why) => (why.clone(), Vec::new()),
            Ok((keys, _)) => {
                let going = keys.iter().filter(|key| key.deletion.is_some()).count();
                let left = keys.iter().filter(|key| key.deletion.is_none());
                let command = |key: &KeyFacts| {
                    let arn = quoted(&key.arn);
                    self.aws(format!(
                        "kms schedule-key-deletion --key-id {arn} --pending-window-in-days {PENDING_DAYS}"
                    ))
                };
                (
                    format!("{} keys, {going} to be deleted already", keys.len()),
                    left.map(command).collect(),
                )
            }
        };
        Step { number: 0, what: "order the deletion of the keys", detail, commands }
    }

    fn wait(&self, keys: &Keys) -> Step {
        let keys = keys.as_ref().map_or(&[][..], |(keys, _)| keys);
        let detail = format!(
            "at least {WAIT_DAYS} days, {PENDING_DAYS} with the commands above; until then `aws kms \
             cancel-key-deletion` takes it back. The key store cannot be deleted before"
        );
        let look =
            |key: &KeyFacts| self.aws(format!("kms describe-key --key-id {}", quoted(&key.arn)));
        let commands = keys.iter().map(look).collect();
        Step { number: 0, what: "wait until they are gone", detail, commands }
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
        Step { number: 0, what, detail, commands }
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
        Step { number: 0, what: "delete the HSMs", detail, commands }
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
        Step { number: 0, what: "delete the cluster", detail, commands }
    }
}
