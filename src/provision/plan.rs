//! All that stands between an empty account and a volume on keys of a CloudHSM cluster: what is there,
//! what is missing, who does it, what it costs. Looks only.

use serde::Serialize;

use super::TAG_VOLUME;
use super::account::{Account, Caller, Refused};
use super::activate::KMSUSER;
use super::certificate::{Files, proof};
use super::cluster::{ClusterFacts, ZONES};
use super::shell::quoted;
use super::survey::{self, Deployment, Survey};
use crate::keys::prices::{HOURS_PER_MONTH, HSM_PER_HOUR, KEY_PER_MONTH};

/// Goes with every price.
pub const PRICE_NOTE: &str = "list prices of us-east-1 in dollars as of 2026, without requests and \
                              taxes: other Regions and times may differ. HSMs are paid for from their \
                              creation to their deletion, used or not";

/// The step that makes the cluster.
pub const CLUSTER: &str = "a CloudHSM cluster";

/// The step that claims it.
pub const CLAIM: &str = "the cluster claimed with that certificate";

/// The step that makes the user of KMS.
pub const KMS_USER: &str = "the crypto user kmsuser in the cluster";

/// What `certificate` checks the hardware against.
const HARDWARE_ROOTS: &str = " --aws-hardware-root FILE --manufacturer-root FILE";

/// Whether something is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is.
    Exists,
    /// It is not.
    Missing,
    /// The caller may not look, or it cannot be seen from here.
    Unknown,
}

/// Where a step is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// By calls of AWS.
    Api,
    /// On this machine.
    Here,
    /// On a machine that reaches the HSMs.
    VpcHost,
    /// In somebody's head.
    Human,
}

/// One step.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Its place in the sequence.
    pub number: usize,
    /// What comes about by it.
    pub what: &'static str,
    /// Whether that is there.
    pub state: State,
    /// What was seen, or why nothing was.
    pub detail: String,
    /// Where it is done.
    #[serde(rename = "where")]
    pub place: Place,
    /// Dollars an hour.
    pub per_hour: f64,
    /// Dollars a month.
    pub per_month: f64,
    /// What does it.
    pub command: Option<String>,
}

/// The whole sequence.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Name of the deployment.
    pub name: String,
    /// The Region.
    pub region: String,
    /// Twelve digits, if the caller may know.
    pub account: Option<String>,
    /// The steps in order.
    pub steps: Vec<Step>,
    /// Dollars an hour when all is there.
    pub per_hour: f64,
    /// Dollars a month when all is there.
    pub per_month: f64,
    /// What the prices are.
    pub price_note: &'static str,
}

/// Looks at a deployment, and whether its trust anchor lies here.
pub fn plan(account: &Account, deployment: &Deployment, files: &Files) -> Result<Plan, Refused> {
    let survey = survey::survey(account, deployment)?;
    let view = View::new(deployment, account.region(), files, survey);
    let steps = view.steps();
    Ok(Plan {
        name: deployment.name.clone(),
        region: account.region().to_owned(),
        account: view.survey.caller.as_ref().ok().map(|caller| caller.account.clone()),
        per_hour: steps.iter().map(|step| step.per_hour).sum(),
        per_month: steps.iter().map(|step| step.per_month).sum(),
        steps,
        price_note: PRICE_NOTE,
    })
}

/// State and detail of a step.
type Finding = (State, String);

fn exists(detail: impl Into<String>) -> Finding {
    (State::Exists, detail.into())
}

fn missing(detail: impl Into<String>) -> Finding {
    (State::Missing, detail.into())
}

fn unknown(detail: impl Into<String>) -> Finding {
    (State::Unknown, detail.into())
}

/// What is known when the steps are written.
struct View<'a> {
    deployment: &'a Deployment,
    region: &'a str,
    files: &'a Files,
    has_anchor: bool,
    survey: Survey,
}

impl<'a> View<'a> {
    fn new(deployment: &'a Deployment, region: &'a str, files: &'a Files, survey: Survey) -> Self {
        let has_anchor = files.anchor().is_file();
        Self { deployment, region, files, has_anchor, survey }
    }

    /// In the order they are to be taken.
    fn steps(&self) -> Vec<Step> {
        let all = [self.cluster_steps(), self.claim_steps(), self.store_steps(), self.key_steps()];
        let mut steps = all.concat();
        steps.iter_mut().enumerate().for_each(|(number, step)| step.number = number);
        steps
    }

    /// One of our commands, so that it can be copied.
    fn command(&self, verb: &str) -> String {
        let (region, name) = (quoted(self.region), quoted(&self.deployment.name));
        format!("kmsfsctl provision {verb} --region {region} --name {name}")
    }

    /// One that can be told which cluster.
    fn own(&self, verb: &str, rest: &str) -> String {
        let cluster = self.deployment.cluster.as_deref();
        format!("{}{}{rest}", self.command(verb), option("--cluster", cluster))
    }

    /// The key store, if it is another than the one with the deployment's name.
    fn other_store(&self) -> Option<&str> {
        let found = self.survey.store.as_ref().ok().and_then(Option::as_ref);
        let found = found.filter(|store| store.name != self.deployment.name);
        self.deployment.store.as_deref().or(found.map(|store| &store.id[..]))
    }

    /// One that finds the deployment's files, too.
    fn with_files(&self, verb: &str, rest: &str) -> String {
        let (dir, usual) = (self.files.dir(), Files::of_deployment(&self.deployment.name));
        let dir = (dir != usual.dir()).then(|| dir.display().to_string());
        self.own(verb, &format!("{}{rest}", option("--dir", dir.as_deref())))
    }

    fn aws(&self, command: &str) -> String {
        format!("aws {command} --region {}", quoted(self.region))
    }

    fn cluster_steps(&self) -> Vec<Step> {
        vec![
            step("an account to work in", Place::Api, self.caller())
                .by(self.aws("sts get-caller-identity")),
            step("private subnets in two Availability Zones", Place::Human, self.subnets())
                .by(self.aws("ec2 describe-subnets")),
            step(CLUSTER, Place::Api, self.cluster())
                .by(self.with_files("cluster", " --subnet ID --subnet ID")),
            step("a first HSM, which makes the certificate request", Place::Api, self.hsms(1))
                .by(self.with_files("cluster", ""))
                .hourly(HSM_PER_HOUR),
        ]
    }

    fn claim_steps(&self) -> Vec<Step> {
        let certificate = self.with_files("certificate", HARDWARE_ROOTS);
        let mut proof = step("proof that the HSM is a genuine one", Place::Here, self.genuine());
        if self.claimed("").0 != State::Exists {
            proof = proof.by(certificate.clone());
        }
        vec![
            proof,
            step(
                "a signing key of your own and the cluster's certificate",
                Place::Here,
                self.anchor(),
            )
            .by(certificate.clone()),
            step(CLAIM, Place::Api, self.claimed("not claimed")).by(certificate),
            step("a host in the VPC with cloudhsm-cli", Place::VpcHost, self.activated())
                .by(self.with_files("activate", "")),
            step("the cluster's administrator", Place::VpcHost, self.activated())
                .by(self.with_files("activate", "")),
            step("a second HSM in another zone", Place::Api, self.hsms(ZONES))
                .by(self.with_files("cluster", " --hsms 2"))
                .hourly(HSM_PER_HOUR),
            step(KMS_USER, Place::VpcHost, self.user()).by(self.with_files("activate", "")),
        ]
    }

    fn store_steps(&self) -> Vec<Step> {
        let store = option("--store", self.other_store());
        let failed = matches!(&self.survey.store, Ok(Some(store)) if store.connection == "FAILED");
        let mend = if failed { " --mend" } else { "" };
        vec![
            step("a custom key store", Place::Api, self.store(false))
                .by(self.with_files("key-store", &store)),
            step("the key store connected", Place::Api, self.store(true))
                .by(self.with_files("key-store", &format!("{store}{mend}"))),
        ]
    }

    fn key_steps(&self) -> Vec<Step> {
        let store = option("--key-store", self.other_store());
        let alias = option("--alias", Some(&self.deployment.alias));
        let make = format!("{}{store}{alias}", self.command("key"));
        let later = |what: &str| unknown(format!("{what}: cannot be seen from here"));
        let alias = match self.key() {
            (State::Exists, _) => exists(&self.deployment.alias),
            other => other,
        };
        vec![
            step("a KMS key in the key store", Place::Api, self.key())
                .by(make.clone())
                .monthly(KEY_PER_MONTH),
            step("an alias for the key", Place::Api, alias).by(make),
            step("a volume on the key", Place::Here, later("volumes")).by(self.init()),
            step(
                "CloudTrail, alarms, and a note of who may do what",
                Place::Human,
                later("alarms"),
            ),
        ]
    }

    fn caller(&self) -> Finding {
        match &self.survey.caller {
            Ok(Caller { account, arn, .. }) => exists(format!("account {account} as {arn}")),
            Err(why) => unknown(why),
        }
    }

    /// What a finding needs of the cluster; without one it is missing.
    fn of_cluster(&self, find: impl Fn(&ClusterFacts) -> Finding) -> Finding {
        match &self.survey.cluster {
            Ok(Some(cluster)) => find(cluster),
            Ok(None) => missing("no cluster yet"),
            Err(why) => unknown(why),
        }
    }

    fn subnets(&self) -> Finding {
        self.of_cluster(|cluster| {
            let zones: Vec<&str> = cluster.zones.keys().map(String::as_str).collect();
            let text = format!("{} in {}", cluster.vpc, zones.join(", "));
            if zones.len() < ZONES { missing(format!("only {text}")) } else { exists(text) }
        })
    }

    fn cluster(&self) -> Finding {
        self.of_cluster(|cluster| {
            let why = cluster.state_message.as_ref().map(|why| format!(" ({why})"));
            exists(format!("{}, {}{}", cluster.id, cluster.state, why.unwrap_or_default()))
        })
    }

    fn hsms(&self, number: usize) -> Finding {
        self.of_cluster(|cluster| {
            let zones: Vec<&str> = cluster.active_zones().into_iter().collect();
            match zones.len() {
                have if have >= number => exists(format!("HSMs work in {}", zones.join(", "))),
                0 => match cluster.hsms.first() {
                    Some(hsm) => missing(format!("{} is {}", hsm.id, hsm.state)),
                    None => missing("the cluster has no HSM"),
                },
                _ => missing(format!("HSMs work in {} only", zones.join(", "))),
            }
        })
    }

    fn anchor(&self) -> Finding {
        let path = self.files.anchor();
        let path = path.display();
        match (self.has_anchor, self.claimed("")) {
            (true, _) => exists(format!("{path}")),
            (false, (State::Exists, _)) => {
                missing(format!("the cluster is claimed, but {path} is needed for the key store"))
            }
            (false, _) => missing(format!("no {path}")),
        }
    }

    /// That a cluster is claimed does not say whether anybody asked its hardware for proof before: what was
    /// checked is on record.
    fn genuine(&self) -> Finding {
        self.of_cluster(|cluster| {
            let certificate = cluster.certificates.cluster.as_deref();
            let checked = match proof::recorded(self.files, cluster.csr.as_deref(), certificate) {
                Ok(checked) => checked,
                Err(why) => return unknown(why.to_string()),
            };
            match (checked.aws && checked.manufacturer, cluster.is_initialized()) {
                (true, _) => exists("both chains of the HSM's certificates were followed to their roots"),
                (false, true) => unknown(
                    "the cluster is claimed, and nothing shows that its hardware was checked before \
                     by both roots",
                ),
                (false, false) => missing(
                    "to be checked before the cluster is claimed; later it cannot be. AWS's CloudHSM \
                     User Guide (\"verify the identity and authenticity of your cluster's HSM\") links \
                     both roots",
                ),
            }
        })
    }

    fn claimed(&self, otherwise: &str) -> Finding {
        self.of_cluster(|cluster| match cluster.is_initialized() {
            true => exists("the cluster is claimed"),
            false => missing(otherwise),
        })
    }

    fn activated(&self) -> Finding {
        self.of_cluster(|cluster| match cluster.is_active() {
            true => exists("the cluster is ACTIVE"),
            false => missing(format!("the cluster is {}", cluster.state)),
        })
    }

    fn user(&self) -> Finding {
        let path = self.files.dir().join(KMSUSER);
        match (&self.survey.store, self.activated()) {
            // Whoever connected it may not have lived to rename the file.
            (Ok(Some(store)), _) if store.is_connected() && path.is_file() => exists(format!(
                "KMS is logged in as kmsuser, with another password than the one in {}",
                path.display()
            )),
            (Ok(Some(store)), _) if store.is_connected() => exists("KMS is logged in as kmsuser"),
            (_, (State::Exists, _)) => {
                let there = if path.is_file() { "there is a" } else { "there is no" };
                unknown(format!(
                    "users of a cluster cannot be seen from here, but by `activate`; {there} {}",
                    path.display()
                ))
            }
            (_, other) => other,
        }
    }

    fn store(&self, connected: bool) -> Finding {
        match &self.survey.store {
            Ok(Some(store)) => {
                let error = store.error.as_ref().map(|code| format!(" ({code})"));
                let state = format!("{}{}", store.connection, error.unwrap_or_default());
                let text = format!("{} ({}), {state}", store.name, store.id);
                if connected && !store.is_connected() { missing(text) } else { exists(text) }
            }
            Ok(None) => missing("no key store yet"),
            Err(why) => unknown(why),
        }
    }

    fn key(&self) -> Finding {
        let alias = &self.deployment.alias;
        let key = match &self.survey.key {
            Ok(Some(key)) => key,
            Ok(None) => return missing(format!("no {alias}")),
            Err(why) => return unknown(why),
        };
        let place = match &key.store {
            Some(store) => format!("in key store {store}"),
            None => "in no key store".to_owned(),
        };
        let elsewhere = |wanted: &str| {
            missing(format!("{alias} is {}, which lies {place}, not in {wanted}", key.arn))
        };
        match &self.survey.store {
            _ if key.deletion.is_some() => missing(format!("{} will be deleted", key.arn)),
            Ok(Some(store)) if key.store.as_ref() == Some(&store.id) => {
                exists(format!("{}, {}", key.arn, key.state))
            }
            Ok(Some(store)) => elsewhere(&format!("{} ({})", store.name, store.id)),
            Ok(None) => elsewhere("the deployment's key store, which is not there yet"),
            Err(_) if key.store.is_none() => elsewhere("the deployment's key store"),
            Err(_) => unknown(format!(
                "{}, {}, {place}; whether that is the deployment's cannot be seen",
                key.arn, key.state
            )),
        }
    }

    /// What makes a volume, for the key that there is.
    fn init(&self) -> String {
        let key = match (&self.survey.key, self.key()) {
            (Ok(Some(key)), (State::Exists, _)) => Some(key),
            _ => None,
        };
        let arn = key.map_or("ARN", |key| &key.arn);
        let volume = key.and_then(|key| key.tag(TAG_VOLUME)).unwrap_or("ID");
        format!("kmsfsctl init DIR --key aws-kms:{} --volume-id {}", quoted(arn), quoted(volume))
    }
}

/// An option of a command, if it has a value.
fn option(name: &str, value: Option<&str>) -> String {
    value.map_or_else(String::new, |value| format!(" {name} {}", quoted(value)))
}

/// A step that costs nothing and that nothing does; its number comes later.
fn step(what: &'static str, place: Place, (state, detail): Finding) -> Step {
    let (per_hour, per_month) = (0.0, 0.0);
    Step { number: 0, what, state, detail, place, per_hour, per_month, command: None }
}

impl Step {
    fn by(mut self, command: impl Into<String>) -> Self {
        self.command = Some(command.into());
        self
    }

    fn hourly(mut self, dollars: f64) -> Self {
        (self.per_hour, self.per_month) = (dollars, dollars * HOURS_PER_MONTH);
        self
    }

    fn monthly(mut self, dollars: f64) -> Self {
        self.per_month = dollars;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment() -> Deployment {
        let name = "two words".to_owned();
        Deployment { name, cluster: None, store: None, alias: "alias/a".to_owned() }
    }

    fn steps(survey: Survey) -> Vec<Step> {
        let files = Files::new("/nonexistent/it's here");
        View::new(&deployment(), "us-east-1", &files, survey).steps()
    }

    #[test]
    fn an_empty_account_lacks_everything() {
        let caller = Err("nobody may know".to_owned());
        let steps = steps(Survey { caller, cluster: Ok(None), store: Ok(None), key: Ok(None) });
        assert_eq!(steps.len(), 17);
        assert!(steps.iter().enumerate().all(|(at, step)| step.number == at));
        assert_eq!((steps[0].state, &steps[0].detail[..]), (State::Unknown, "nobody may know"));
        assert!(steps[1..15].iter().all(|step| step.state == State::Missing));
        let (hourly, monthly): (Vec<f64>, Vec<f64>) =
            steps.iter().map(|step| (step.per_hour, step.per_month)).unzip();
        assert_eq!(hourly.iter().sum::<f64>(), 3.2);
        assert_eq!(monthly.iter().sum::<f64>(), 2337.0);
        let commands = steps.iter().filter_map(|step| step.command.as_ref());
        let mut ours = commands.filter(|command| command.starts_with("kmsfsctl provision"));
        assert!(ours.all(|command| command.contains("--region us-east-1 --name 'two words'")));
        let certificate = steps[5].command.as_deref().unwrap();
        assert!(
            certificate.contains(r"--dir '/nonexistent/it'\''s here' --aws-hardware-root"),
            "{certificate}"
        );
    }

    #[test]
    fn what_may_not_be_seen_is_unknown() {
        let no = "denied".to_owned();
        let (cluster, store) = (Err(no.clone()), Err(no.clone()));
        let steps = steps(Survey { caller: Err(no.clone()), cluster, store, key: Err(no) });
        let seen: Vec<_> = steps.iter().filter(|step| step.state != State::Unknown).collect();
        // The certificate would lie on this machine.
        assert_eq!(seen.len(), 1);
        assert_eq!((seen[0].number, seen[0].place), (5, Place::Here));
    }
}
