//! CloudHSM clusters.
//!
//! Neither CreateCluster nor CreateHsm can be repeated safely, and each HSM is paid for by the hour: so
//! first is looked, always, and a lost answer or a run that was killed is followed by another look.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Instant;

use aws_sdk_cloudhsmv2::types;
use serde::Serialize;

use super::account::{Account, Refused};
use super::intent::Intent;
use super::shell::quoted;
use super::{TAG_DEPLOYMENT, Teller};
use crate::keys::aws::classify::Class;
use crate::keys::aws::fault;

/// The only type that new clusters can have.
pub const HSM_TYPE: &str = "hsm2m.medium";
/// Days that backups may be kept.
pub const RETENTION_DAYS: std::ops::RangeInclusive<u16> = 7..=379;
/// Days that backups are kept unless somebody says otherwise.
pub const RETENTION_USUAL: u16 = 90;
/// Availability Zones a key store needs HSMs in.
pub const ZONES: usize = 2;

/// What new clusters are made in.
const MODE: types::ClusterMode = types::ClusterMode::Fips;
/// KMS does not reach clusters over IPv6.
const NETWORK: types::NetworkType = types::NetworkType::Ipv4;
/// Most subnets of a cluster.
const SUBNETS_MAX: usize = 10;
/// Most tags of a cluster; one is ours.
const TAGS_MAX: usize = 49;

/// The cluster that is wanted.
#[derive(Clone, Debug)]
pub struct ClusterWish {
    /// Name of the deployment; the cluster is found by it.
    pub name: String,
    /// Subnets in at least two Availability Zones; needed only if the cluster is not there yet.
    pub subnets: Vec<String>,
    /// Days that backups are kept, if that is said; a new cluster keeps them for [`RETENTION_USUAL`].
    pub retention_days: Option<u16>,
    /// Further tags.
    pub tags: Vec<(String, String)>,
    /// A cluster that is there already, whatever its tags say.
    pub id: Option<String>,
}

/// How a cluster is found.
#[derive(Clone, Copy, Debug)]
pub enum Sought<'a> {
    /// By the name of the deployment it is tagged with.
    Name(&'a str),
    /// By its id.
    Id(&'a str),
}

impl<'a> Sought<'a> {
    /// By the id, if one is given.
    pub fn new(name: &'a str, id: Option<&'a str>) -> Self {
        id.map_or(Self::Name(name), Self::Id)
    }
}

/// A cluster as AWS describes it.
#[derive(Clone, Debug, Serialize)]
pub struct ClusterFacts {
    /// `cluster-…`.
    pub id: String,
    /// `UNINITIALIZED`, `ACTIVE`, ….
    pub state: String,
    /// Why, if AWS says.
    pub state_message: Option<String>,
    /// What cannot be changed, as far as AWS says it.
    pub kind: Kind,
    /// Days that backups are kept.
    pub retention_days: Option<String>,
    /// All its tags.
    pub tags: BTreeMap<String, String>,
    /// The VPC.
    pub vpc: String,
    /// The security group that its HSMs and clients share.
    pub security_group: Option<String>,
    /// Subnets by Availability Zone.
    pub zones: BTreeMap<String, String>,
    /// The HSMs that are not deleted, by zone and id.
    pub hsms: Vec<HsmFacts>,
    /// The certificate request; only while `UNINITIALIZED` with an HSM.
    pub csr: Option<String>,
    /// Certificates, as far as there are any.
    pub certificates: Certificates,
    /// When it was made, in seconds of the epoch.
    pub created: Option<i64>,
    /// The deployment it is tagged with.
    pub deployment: Option<String>,
}

/// What a cluster is from its beginning on.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Kind {
    /// `hsm2m.medium`, ….
    pub hsm_type: Option<String>,
    /// `FIPS` or `NON_FIPS`.
    pub mode: Option<String>,
    /// `IPV4` or `DUALSTACK`.
    pub network: Option<String>,
}

/// One HSM.
#[derive(Clone, Debug, Serialize)]
pub struct HsmFacts {
    /// `hsm-…`.
    pub id: String,
    /// Availability Zone.
    pub zone: String,
    /// `ACTIVE`, ….
    pub state: String,
    /// Why, if AWS says.
    pub state_message: Option<String>,
    /// Its address in the VPC.
    pub ip: Option<String>,
}

/// PEM texts.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Certificates {
    /// Of the HSM that made the request.
    pub hsm: Option<String>,
    /// Of the hardware, by AWS.
    pub aws_hardware: Option<String>,
    /// Of the hardware, by its manufacturer.
    pub manufacturer_hardware: Option<String>,
    /// Of the cluster, as its owner signed it.
    pub cluster: Option<String>,
}

impl ClusterFacts {
    fn read(cluster: &types::Cluster) -> Self {
        let text = |text: Option<&str>| text.map(str::to_owned);
        let certificates = cluster.certificates();
        // What is not there may be shown as an empty text.
        let pem = |read: fn(&types::Certificates) -> Option<&str>| {
            text(certificates.and_then(read).filter(|pem| !pem.trim().is_empty()))
        };
        let tags = cluster.tag_list();
        let mut hsms: Vec<_> = cluster.hsms().iter().filter_map(HsmFacts::read).collect();
        hsms.sort_by(|a, b| (&a.zone, &a.id).cmp(&(&b.zone, &b.id)));
        Self {
            id: text(cluster.cluster_id()).unwrap_or_default(),
            state: text(cluster.state().map(|state| state.as_str())).unwrap_or_default(),
            state_message: text(cluster.state_message()),
            kind: Kind {
                hsm_type: text(cluster.hsm_type()),
                mode: text(cluster.mode().map(|mode| mode.as_str())),
                network: text(cluster.network_type().map(|network| network.as_str())),
            },
            retention_days: text(cluster.backup_retention_policy().and_then(|kept| kept.value())),
            tags: tags.iter().map(|tag| (tag.key().to_owned(), tag.value().to_owned())).collect(),
            vpc: text(cluster.vpc_id()).unwrap_or_default(),
            security_group: text(cluster.security_group()),
            zones: cluster.subnet_mapping().into_iter().flatten().map(pair).collect(),
            hsms,
            csr: pem(|all| all.cluster_csr()),
            certificates: Certificates {
                hsm: pem(|all| all.hsm_certificate()),
                aws_hardware: pem(|all| all.aws_hardware_certificate()),
                manufacturer_hardware: pem(|all| all.manufacturer_hardware_certificate()),
                cluster: pem(|all| all.cluster_certificate()),
            },
            created: cluster.create_timestamp().map(|time| time.secs()),
            deployment: tags
                .iter()
                .find(|tag| tag.key() == TAG_DEPLOYMENT)
                .map(|tag| tag.value().to_owned()),
        }
    }

    /// Availability Zones with an HSM that works.
    pub fn active_zones(&self) -> BTreeSet<&str> {
        let active = self.hsms.iter().filter(|hsm| hsm.state == "ACTIVE");
        active.map(|hsm| hsm.zone.as_str()).collect()
    }

    /// Whether its owner's certificate was accepted.
    pub fn is_initialized(&self) -> bool {
        // The states of a cluster that is changed later all come after that; a claim that was dropped
        // may leave its certificate behind.
        let waits = self.state == "UNINITIALIZED";
        matches!(&self.state[..], "INITIALIZED" | "ACTIVE")
            || self.certificates.cluster.is_some() && !waits
    }

    /// Whether it has its administrator: the only way to `ACTIVE`.
    pub fn is_active(&self) -> bool {
        self.state == "ACTIVE"
    }

    /// Refuses a cluster that will not get anywhere by waiting.
    pub fn require_healthy(&self) -> Result<(), Refused> {
        let (id, why) = (&self.id, because(self.state_message.as_deref()));
        let text = match &self.state[..] {
            "DEGRADED" => format!(
                "cluster {id} is DEGRADED{why}; look at its HSMs in the AWS console, replace those \
                 that do not work (`aws cloudhsmv2 delete-hsm`, then `kmsfsctl provision cluster`), \
                 and ask AWS Support if it stays so"
            ),
            "DELETE_IN_PROGRESS" | "DELETED" => format!(
                "cluster {id} is {}{why}; once it is gone the same command makes a new one. If keys \
                 lay in it, make a cluster from its latest backup instead, which outlives it",
                self.state
            ),
            _ => return Ok(()),
        };
        Err(Refused::here(Class::Misconfigured, text))
    }

    /// Refuses a cluster that can never serve a key store.
    pub fn require_zones(&self) -> Result<(), Refused> {
        if self.zones.len() >= ZONES {
            return Ok(());
        }
        let zones: Vec<&str> = self.zones.keys().map(String::as_str).collect();
        let text = format!(
            "cluster {id} has subnets in {} only; a key store needs HSMs in {ZONES} Availability \
             Zones, and the subnets of a cluster cannot be changed: delete it (`aws cloudhsmv2 \
             delete-cluster --cluster-id {id}`) and make one with subnets in two zones",
            zones.join(", "),
            id = self.id,
        );
        Err(Refused::here(Class::Misconfigured, text))
    }

    /// Refuses one of another kind than we make.
    fn require_kind(&self) -> Result<(), Refused> {
        let Kind { hsm_type, mode, network } = &self.kind;
        let all = [
            ("HSM type", hsm_type, HSM_TYPE),
            ("mode", mode, MODE.as_str()),
            ("network type", network, NETWORK.as_str()),
        ];
        for (what, has, wanted) in all {
            if let Some(has) = has.as_deref().filter(|has| *has != wanted) {
                let id = &self.id;
                let text = format!(
                    "cluster {id} exists with {what} {has}, while {wanted} is wanted, and that cannot \
                     be changed from here: name another cluster with --cluster, make one of another \
                     deployment with --name, or, if nothing in it is needed, delete it (`aws \
                     cloudhsmv2 delete-cluster --cluster-id {id}`) and run this again"
                );
                return Err(Refused::here(Class::Misconfigured, text));
            }
        }
        Ok(())
    }

    /// What is otherwise than asked for but may stay so, each with the command that changes it.
    fn differences(&self, wish: &ClusterWish) -> Vec<String> {
        let id = &self.id;
        let wanted = wish.retention_days.map(|days| days.to_string());
        let kept = wanted.filter(|days| self.retention_days.as_ref() != Some(days)).map(|days| {
            let has = self.retention_days.as_deref().unwrap_or("unknown");
            format!(
                "cluster {id} keeps backups for {has} days, not {days}, and stays so; to change it: aws \
                 cloudhsmv2 modify-cluster --cluster-id {id} --backup-retention-policy \
                 Type=DAYS,Value={days}"
            )
        });
        let other = wish.tags.iter().filter(|(key, value)| self.tags.get(key) != Some(value));
        let other = other.map(|(key, value)| {
            let has = match self.tags.get(key) {
                Some(has) => format!("has the tag {key}={has}, not {key}={value}"),
                None => format!("has no tag {key}"),
            };
            let tag = quoted(&format!("Key={key},Value={value}"));
            format!(
                "cluster {id} {has}, and stays so; to change it: aws cloudhsmv2 tag-resource \
                 --resource-id {id} --tag-list {tag}"
            )
        });
        kept.into_iter().chain(other).collect()
    }

    /// Refuses subnets it does not have.
    fn require_subnets(&self, wanted: &[String]) -> Result<(), Refused> {
        let has = |subnet: &&String| self.zones.values().any(|have| have == *subnet);
        let Some(lacking) = wanted.iter().find(|subnet| !has(subnet)) else { return Ok(()) };
        let have: Vec<&str> = self.zones.values().map(String::as_str).collect();
        let text = format!(
            "cluster {} exists without {lacking}, and the subnets of a cluster cannot be changed; it \
             has {}: name these or none",
            self.id,
            have.join(", ")
        );
        Err(Refused::here(Class::Misconfigured, text))
    }
}

fn pair((zone, subnet): (&String, &String)) -> (String, String) {
    (zone.clone(), subnet.clone())
}

pub(super) fn because(message: Option<&str>) -> String {
    message.map_or_else(String::new, |message| format!(" ({message})"))
}

impl HsmFacts {
    /// Nothing if it is on its way out.
    fn read(hsm: &types::Hsm) -> Option<Self> {
        let state = hsm.state().map_or("", |state| state.as_str());
        (!matches!(state, "DELETE_IN_PROGRESS" | "DELETED")).then(|| Self {
            id: hsm.hsm_id().to_owned(),
            zone: hsm.availability_zone().unwrap_or_default().to_owned(),
            state: state.to_owned(),
            state_message: hsm.state_message().map(str::to_owned),
            ip: hsm.eni_ip().map(str::to_owned),
        })
    }
}

impl ClusterWish {
    /// Refuses what could not be made, before anything is.
    pub fn check(&self) -> Result<(), Refused> {
        let bad = |text: String| Err(Refused::here(Class::Misconfigured, text));
        let distinct: BTreeSet<&String> = self.subnets.iter().collect();
        if distinct.len() < ZONES {
            return bad(format!(
                "there is no cluster of deployment {} yet, and to make one takes at least {ZONES} \
                 private subnets in different Availability Zones of one VPC: --subnet ID --subnet ID",
                self.name
            ));
        }
        if self.subnets.len() > SUBNETS_MAX {
            return bad(format!("a cluster has at most {SUBNETS_MAX} subnets"));
        }
        if self.retention_days.is_some_and(|days| !RETENTION_DAYS.contains(&days)) {
            let (least, most) = (RETENTION_DAYS.start(), RETENTION_DAYS.end());
            return bad(format!("CloudHSM keeps backups for {least} to {most} days"));
        }
        if self.tags.len() > TAGS_MAX || self.tags.iter().any(|(key, _)| key == TAG_DEPLOYMENT) {
            return bad(format!(
                "a cluster has at most {TAGS_MAX} tags beside {TAG_DEPLOYMENT}, which is set by --name"
            ));
        }
        Ok(())
    }
}

/// All clusters, or those with an id.
fn describe(
    account: &Account,
    subject: &str,
    id: Option<&str>,
) -> Result<Vec<ClusterFacts>, Refused> {
    let (mut found, mut token) = (Vec::new(), None::<String>);
    loop {
        let (page, id) = (token.take(), id.map(|id| vec![id.to_owned()]));
        let answer = account.ask("DescribeClusters", subject, move |clients| {
            let mut request = clients.cloudhsm.describe_clusters().set_next_token(page.clone());
            if let Some(id) = &id {
                request = request.filters("clusterIds", id.clone());
            }
            async move { request.send().await.map_err(|e| fault(&e)) }
        })?;
        found.extend(answer.clusters().iter().map(ClusterFacts::read));
        token = answer.next_token;
        if token.as_ref().is_none_or(String::is_empty) {
            return Ok(found);
        }
    }
}

/// The cluster of a deployment, or the one with an id. Deleted ones are none, and one that is being
/// deleted does not count beside one that stays.
pub fn find(account: &Account, sought: Sought<'_>) -> Result<Option<ClusterFacts>, Refused> {
    let (name, mut found) = match sought {
        Sought::Id(id) => (id, describe(account, &format!("cluster {id}"), Some(id))?),
        Sought::Name(name) => {
            let mut all = describe(account, &format!("clusters of deployment {name}"), None)?;
            all.retain(|cluster| cluster.deployment.as_deref() == Some(name));
            (name, all)
        }
    };
    found.retain(|cluster| cluster.state != "DELETED");
    let stays = |cluster: &ClusterFacts| cluster.state != "DELETE_IN_PROGRESS";
    match found.iter().any(stays) {
        true => found.retain(stays),
        false => found.truncate(1),
    }
    if let [one, other, ..] = &found[..] {
        let text = format!(
            "two clusters belong to deployment {name}: {} and {}; say which with --cluster, or take \
             the tag {TAG_DEPLOYMENT} off the one that does not count",
            one.id, other.id
        );
        return Err(Refused::here(Class::Misconfigured, text));
    }
    Ok(found.pop())
}

/// The cluster with an id, which must be there.
pub fn get(account: &Account, id: &str) -> Result<ClusterFacts, Refused> {
    find(account, Sought::Id(id))?.ok_or_else(|| {
        let text = format!(
            "there is no cluster {id} in Region {}; check the id, the Region and the account",
            account.region()
        );
        Refused::here(Class::Denied, text)
    })
}

/// The cluster, made if it is not there, with a mark in the directory; it has subnets in two zones and is at least `UNINITIALIZED`.
pub fn ensure_cluster(
    account: &Account,
    wish: &ClusterWish,
    dir: &Path,
    teller: &dyn Teller,
) -> Result<ClusterFacts, Refused> {
    let intent = Intent::of(dir, &format!("a cluster for deployment {}", wish.name));
    let found = match &wish.id {
        Some(id) => Some(get(account, id)?),
        None => find(account, Sought::Name(&wish.name))?,
    };
    let id = match found {
        Some(cluster) => {
            cluster.require_kind()?;
            cluster.require_subnets(&wish.subnets)?;
            cluster.differences(wish).iter().for_each(|line| teller.done(line));
            cluster.id
        }
        None => {
            wish.check()?;
            let by_name = || find(account, Sought::Name(&wish.name));
            let made = intent.once(account, teller, || create(account, wish), by_name)?;
            teller.done(&format!("cluster {} is being made", made.id));
            made.id
        }
    };
    let cluster = await_made(account, &id, teller)?;
    intent.end();
    cluster.require_zones()?;
    teller.done(&format!("cluster {id} is there, {}", cluster.state));
    Ok(cluster)
}

fn create(account: &Account, wish: &ClusterWish) -> Result<ClusterFacts, Refused> {
    let subject = format!("a cluster for deployment {}", wish.name);
    let wish = wish.clone();
    let answer = account.make("CreateCluster", &subject, move |clients| {
        let request = clients
            .cloudhsm
            .create_cluster()
            .hsm_type(HSM_TYPE)
            .mode(MODE)
            .network_type(NETWORK)
            .backup_retention_policy(
                types::BackupRetentionPolicy::builder()
                    .r#type(types::BackupRetentionType::Days)
                    .value(wish.retention_days.unwrap_or(RETENTION_USUAL).to_string())
                    .build(),
            )
            .set_subnet_ids(Some(wish.subnets.clone()));
        let tags = tags(&wish);
        async move {
            let tags =
                tags.map_err(|text| crate::keys::aws::Fault::new(Class::Misconfigured, text))?;
            request.set_tag_list(Some(tags)).send().await.map_err(|e| fault(&e))
        }
    })?;
    answer.cluster().map(ClusterFacts::read).ok_or_else(|| {
        // As good as no answer: what was made has to be looked for.
        Refused::here(Class::Transient, format!("{subject}: AWS did not say what it made"))
    })
}

fn tags(wish: &ClusterWish) -> Result<Vec<types::Tag>, String> {
    let ours = [(TAG_DEPLOYMENT.to_owned(), wish.name.clone())];
    let all = ours.iter().chain(&wish.tags);
    all.map(|(key, value)| types::Tag::builder().key(key).value(value).build())
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())
}

/// Waits until a cluster has been made.
fn await_made(account: &Account, id: &str, teller: &dyn Teller) -> Result<ClusterFacts, Refused> {
    let started = Instant::now();
    account.wait(&format!("cluster {id}"), teller, || {
        let cluster = match find(account, Sought::Id(id))? {
            Some(cluster) => cluster,
            // Not everybody in AWS knows of it yet.
            None if started.elapsed() < account.pace.settling => return Ok(Err("new".to_owned())),
            None => get(account, id)?,
        };
        cluster.require_healthy()?;
        match &cluster.state[..] {
            "CREATE_IN_PROGRESS" => Ok(Err(cluster.state)),
            _ => Ok(Ok(cluster)),
        }
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A cluster with subnets and HSMs in these zones.
    pub fn cluster(zones: &[&str], hsms: &[&str]) -> ClusterFacts {
        let hsm = |zone: &&str| HsmFacts {
            id: format!("hsm-{zone}"),
            zone: (*zone).to_owned(),
            state: "ACTIVE".to_owned(),
            state_message: None,
            ip: None,
        };
        ClusterFacts {
            id: "cluster-a".to_owned(),
            state: "ACTIVE".to_owned(),
            state_message: None,
            kind: Kind::default(),
            retention_days: None,
            tags: BTreeMap::new(),
            vpc: "vpc-a".to_owned(),
            security_group: None,
            zones: zones
                .iter()
                .map(|zone| ((*zone).to_owned(), format!("subnet-{zone}")))
                .collect(),
            hsms: hsms.iter().map(hsm).collect(),
            csr: None,
            certificates: Certificates::default(),
            created: None,
            deployment: None,
        }
    }

    #[test]
    fn what_aws_says_of_a_cluster_is_passed_on() {
        let mut sick = cluster(&["a", "b"], &["a"]);
        sick.state_message = Some("one HSM is unreachable".to_owned());
        assert!(sick.require_healthy().is_ok());
        for state in ["DEGRADED", "DELETE_IN_PROGRESS", "DELETED"] {
            sick.state = state.to_owned();
            let refused = sick.require_healthy().unwrap_err();
            assert!(refused.sentence.contains("(one HSM is unreachable)"), "{refused}");
        }
    }

    #[test]
    fn wishes_are_checked_before_anything_is_made() {
        let wish = |subnets: &[&str], retention_days: u16, tag: &str| ClusterWish {
            name: "n".to_owned(),
            subnets: subnets.iter().map(|id| (*id).to_owned()).collect(),
            retention_days: Some(retention_days),
            tags: vec![(tag.to_owned(), String::new())],
            id: None,
        };
        assert!(wish(&["a", "b"], 7, "t").check().is_ok());
        assert!(wish(&["a", "b"], 379, "t").check().is_ok());
        for bad in [
            wish(&[], 90, "t"),
            wish(&["a", "a"], 90, "t"),
            wish(&["a", "b"], 6, "t"),
            wish(&["a", "b"], 380, "t"),
            wish(&["a", "b"], 90, TAG_DEPLOYMENT),
            wish(&["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k"], 90, "t"),
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
