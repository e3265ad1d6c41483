//! CloudHSM clusters: what they are and how they change with time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use data_encoding::BASE32_NOPAD;
use serde_json::{Value, json};

use super::api::{now, random};
use super::pki::{Identity, Spoil};
use super::world::World;

/// All states a cluster can be in.
pub const STATES: [&str; 11] = [
    "CREATE_IN_PROGRESS",
    "UNINITIALIZED",
    "INITIALIZE_IN_PROGRESS",
    "INITIALIZED",
    "ACTIVE",
    "UPDATE_IN_PROGRESS",
    "MODIFY_IN_PROGRESS",
    "ROLLBACK_IN_PROGRESS",
    "DELETE_IN_PROGRESS",
    "DELETED",
    "DEGRADED",
];

/// All states an HSM can be in.
pub const HSM_STATES: [&str; 5] =
    ["CREATE_IN_PROGRESS", "ACTIVE", "DEGRADED", "DELETE_IN_PROGRESS", "DELETED"];

/// The user that KMS logs in as.
pub const KMS_USER: &str = "kmsuser";
/// The administrator of every cluster.
pub const ADMIN: &str = "admin";

/// A state on its way to another.
pub struct Moving {
    /// Now.
    pub state: &'static str,
    next: Option<(&'static str, Instant)>,
}

impl Moving {
    /// One that stays.
    pub fn at(state: &'static str) -> Moving {
        Moving { state, next: None }
    }

    /// Passes through a state to another.
    pub fn go(&mut self, through: &'static str, to: &'static str, time: Duration) {
        *self = Moving { state: through, next: Some((to, Instant::now() + time)) };
    }

    fn settle(&mut self) {
        if let Some((to, when)) = self.next
            && Instant::now() >= when
        {
            *self = Moving::at(to);
        }
    }
}

/// One HSM of a cluster.
pub struct Hsm {
    /// `hsm-…`.
    pub id: String,
    /// Availability Zone.
    pub zone: String,
    /// Subnet.
    pub subnet: String,
    /// Its network interface.
    pub eni: String,
    /// Its address.
    pub ip: String,
    /// How it stands.
    pub state: Moving,
    /// Made while DescribeClusters lagged.
    pub unseen: bool,
}

/// A user inside a cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct User {
    /// `admin` or `crypto-user`.
    pub role: String,
    /// The password.
    pub password: String,
    /// Whether too many wrong passwords were given.
    pub locked: bool,
}

/// A cluster.
pub struct Cluster {
    /// `cluster-…`.
    pub id: String,
    /// Type of its HSMs.
    pub kind: String,
    /// `FIPS` or `NON_FIPS`.
    pub mode: String,
    /// `IPV4` or `DUALSTACK`.
    pub network: String,
    /// The VPC of its subnets.
    pub vpc: String,
    /// Subnets by Availability Zone.
    pub subnets: BTreeMap<String, String>,
    /// Security group.
    pub group: String,
    /// Days that backups are kept.
    pub retention: String,
    /// The backup it was made from.
    pub source: Option<String>,
    /// Clusters with the same value share the history of their backups.
    pub lineage: String,
    /// When it was made.
    pub created: f64,
    /// How it stands.
    pub state: Moving,
    /// Its HSMs; those deleted are gone.
    pub hsms: Vec<Hsm>,
    /// What the first HSM made.
    pub identity: Option<Identity>,
    /// What is wrong with its certificates.
    pub spoil: Option<Spoil>,
    /// What it was claimed with: certificate and trust anchor.
    pub claim: Option<(String, String)>,
    /// Users by name; the administrator makes the cluster active.
    pub users: BTreeMap<String, User>,
    /// Tags.
    pub tags: BTreeMap<String, String>,
    /// Made while DescribeClusters lagged.
    pub unseen: bool,
}

impl Cluster {
    /// HSMs that work.
    pub fn active(&self) -> usize {
        self.hsms.iter().filter(|hsm| hsm.state.state == "ACTIVE").count()
    }

    /// In how many Availability Zones there are HSMs that work.
    pub fn zones(&self) -> usize {
        let working = self.hsms.iter().filter(|hsm| hsm.state.state == "ACTIVE");
        working.map(|hsm| hsm.zone.as_str()).collect::<BTreeSet<&str>>().len()
    }

    /// Whether it has come to its end.
    pub fn deleted(&self) -> bool {
        self.state.state == "DELETED"
    }

    /// The backup the service made of it, once there is something to keep.
    pub fn backup(&self) -> Option<String> {
        self.claim.as_ref().map(|_| self.id.replace("cluster-", "backup-"))
    }

    /// Lets all changes of state that are due happen.
    pub fn settle(&mut self) {
        self.state.settle();
        self.hsms.iter_mut().for_each(|hsm| hsm.state.settle());
        self.hsms.retain(|hsm| hsm.state.state != "DELETED");
        if self.state.state == "UNINITIALIZED" {
            // The key that the request is for lies in the HSM and goes with it.
            if self.hsms.is_empty() {
                self.identity = None;
            } else if self.active() > 0 && self.identity.is_none() {
                let number = self.id.replace("cluster-", "").to_uppercase();
                self.identity = Some(Identity::new(&number, self.mode == "FIPS", self.spoil));
            }
        }
        let ready = self.users.contains_key(ADMIN) && self.active() > 0;
        if self.state.state == "INITIALIZED" && ready {
            self.state = Moving::at("ACTIVE");
        }
    }

    /// As DescribeClusters shows it.
    pub fn show(&self) -> Value {
        let mut certificates = json!({});
        if let Some(identity) = &self.identity {
            certificates["HsmCertificate"] = json!(identity.hsm);
            certificates["AwsHardwareCertificate"] = json!(identity.aws);
            certificates["ManufacturerHardwareCertificate"] = json!(identity.manufacturer);
            if self.state.state == "UNINITIALIZED" {
                certificates["ClusterCsr"] = json!(identity.csr);
            }
        }
        if let Some((certificate, _)) = &self.claim {
            certificates["ClusterCertificate"] = json!(certificate);
        }
        let mut value = json!({
            "ClusterId": self.id, "State": self.state.state, "HsmType": self.kind,
            "Mode": self.mode, "NetworkType": self.network, "VpcId": self.vpc,
            "SubnetMapping": self.subnets, "SecurityGroup": self.group,
            "BackupPolicy": "DEFAULT", "CreateTimestamp": self.created,
            "BackupRetentionPolicy": { "Type": "DAYS", "Value": self.retention },
            "Hsms": self.hsms.iter().map(|hsm| self.show_hsm(hsm)).collect::<Vec<Value>>(),
            "Certificates": certificates, "TagList": show_tags(&self.tags),
        });
        if let Some(source) = &self.source {
            value["SourceBackupId"] = json!(source);
        }
        value
    }

    /// One HSM of it.
    pub fn show_hsm(&self, hsm: &Hsm) -> Value {
        json!({
            "ClusterId": self.id, "HsmId": hsm.id, "AvailabilityZone": hsm.zone,
            "SubnetId": hsm.subnet, "EniId": hsm.eni, "EniIp": hsm.ip,
            "State": hsm.state.state, "HsmType": self.kind,
        })
    }
}

/// Tags as CloudHSM writes them.
pub fn show_tags(tags: &BTreeMap<String, String>) -> Value {
    tags.iter().map(|(name, value)| json!({ "Key": name, "Value": value })).collect()
}

/// A new name of a cluster or an HSM.
pub fn fresh_id(kind: &str) -> String {
    format!("{kind}-{}", &BASE32_NOPAD.encode(&random::<7>()).to_lowercase()[..11])
}

/// The subnets of a new account with their Availability Zones and VPCs: `subnet-0a…1` to `…6` in a
/// to f, `…7` in a again, and another VPC with `subnet-0b…1` and `…2` in a and b.
pub fn usual_subnets(region: &str) -> BTreeMap<String, (String, String)> {
    let subnet = |vpc: char, number: usize, zone: char| {
        let id = format!("subnet-0{vpc}{number:015x}");
        (id, (format!("{region}{zone}"), format!("vpc-0{vpc}{:015x}", 1)))
    };
    let first = "abcdefa".chars().enumerate().map(|(at, zone)| subnet('a', at + 1, zone));
    let second = "ab".chars().enumerate().map(|(at, zone)| subnet('b', at + 1, zone));
    first.chain(second).collect()
}

impl World {
    /// The cluster behind a store, if the fake has it: stores made by control requests have none.
    pub fn cluster_of(&self, store: &super::world::Store) -> Option<&Cluster> {
        self.clusters.get(store.cluster.as_ref()?)
    }

    /// HSMs that work for a store, and in how many Availability Zones.
    pub fn hsms_of(&self, store: &super::world::Store) -> (usize, usize) {
        match self.cluster_of(store) {
            Some(cluster) => (cluster.active(), cluster.zones()),
            None => (store.hsms as usize, store.hsms as usize),
        }
    }

    /// Whether DescribeClusters leaves out what is made from now on.
    pub fn lag_clusters(&mut self, on: bool) {
        self.switches.clusters_lag = on;
        for cluster in self.clusters.values_mut() {
            cluster.unseen = false;
            cluster.hsms.iter_mut().for_each(|hsm| hsm.unseen = false);
        }
    }

    /// Adds a cluster that is being created.
    pub fn add_cluster(&mut self, mode: &str, subnets: BTreeMap<String, String>) -> &mut Cluster {
        let id = fresh_id("cluster");
        let vpc = subnets.values().next().and_then(|subnet| self.subnets.get(subnet));
        let mut state = Moving::at("CREATE_IN_PROGRESS");
        state.go("CREATE_IN_PROGRESS", "UNINITIALIZED", self.switches.cluster);
        let cluster = Cluster {
            id: id.clone(),
            kind: "hsm2m.medium".to_owned(),
            mode: mode.to_owned(),
            network: "IPV4".to_owned(),
            vpc: vpc.map(|(_, vpc)| vpc.clone()).unwrap_or_default(),
            subnets,
            group: format!("sg-{}", &data_encoding::HEXLOWER.encode(&random::<9>())[..17]),
            retention: "90".to_owned(),
            source: None,
            lineage: id.clone(),
            created: now(),
            state,
            hsms: Vec::new(),
            identity: None,
            spoil: self.switches.spoil,
            claim: None,
            users: BTreeMap::new(),
            tags: BTreeMap::new(),
            unseen: self.switches.clusters_lag,
        };
        self.clusters.entry(id).or_insert(cluster)
    }

    /// Adds an HSM that is being created.
    pub fn add_hsm(&mut self, cluster: &str, zone: &str, ip: Option<&str>) -> Value {
        let (time, unseen) = (self.switches.hsm, self.switches.clusters_lag);
        self.next_ip += 1;
        let address = format!("10.0.{}.{}", self.next_ip / 250, 4 + self.next_ip % 250);
        let cluster = self.clusters.get_mut(cluster).unwrap();
        let mut state = Moving::at("CREATE_IN_PROGRESS");
        state.go("CREATE_IN_PROGRESS", "ACTIVE", time);
        let hsm = Hsm {
            id: fresh_id("hsm"),
            zone: zone.to_owned(),
            subnet: cluster.subnets[zone].clone(),
            eni: format!("eni-{}", &data_encoding::HEXLOWER.encode(&random::<9>())[..17]),
            ip: ip.map_or(address, str::to_owned),
            state,
            unseen,
        };
        let shown = cluster.show_hsm(&hsm);
        cluster.hsms.push(hsm);
        shown
    }
}
