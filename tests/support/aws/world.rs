//! What the account holds: keys, aliases, custom key stores, access keys.

use std::collections::BTreeMap;
use std::time::Instant;

use data_encoding::HEXLOWER;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::api::{Context, Fault, now, random, uuid};
use super::clusters::{Cluster, usual_subnets};
use super::counters::Counters;
use super::faults::{Bucket, Rules, Switches};
use super::grants::Grant;
use super::principals::{ACCESS_KEY, Principal, SECRET_KEY};
use super::stores::Proxy;

/// Where the material of a key comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// KMS made it.
    Kms,
    /// It is imported; until then the key is of no use.
    External,
    /// It lives in a CloudHSM cluster.
    CloudHsm,
    /// It lives with an external key manager.
    ExternalStore,
}

impl Origin {
    /// All of them with their names.
    pub const NAMES: [(&'static str, Origin); 4] = [
        ("AWS_KMS", Origin::Kms),
        ("EXTERNAL", Origin::External),
        ("AWS_CLOUDHSM", Origin::CloudHsm),
        ("EXTERNAL_KEY_STORE", Origin::ExternalStore),
    ];

    /// The name in calls.
    pub fn name(self) -> &'static str {
        Origin::NAMES.iter().find(|(_, origin)| *origin == self).unwrap().0
    }

    /// From the name in calls.
    pub fn parse(name: &str) -> Option<Origin> {
        Origin::NAMES.iter().find(|(known, _)| *known == name).map(|(_, origin)| *origin)
    }

    /// Whether keys of this origin lie in a custom key store.
    pub fn in_store(self) -> bool {
        matches!(self, Origin::CloudHsm | Origin::ExternalStore)
    }
}

/// One version of a key.
#[derive(Clone)]
pub struct Material {
    /// 64 hexadecimal digits.
    pub id: String,
    /// The key itself.
    pub bytes: [u8; 32],
    /// When it became current, in seconds since 1970.
    pub since: f64,
    /// How: `AUTOMATIC` or `ON_DEMAND`; the first has nothing.
    pub rotation: Option<&'static str>,
}

impl Material {
    /// A random one.
    pub fn new(rotation: Option<&'static str>) -> Material {
        Material { id: HEXLOWER.encode(&random::<32>()), bytes: random(), since: now(), rotation }
    }
}

/// A KMS key.
#[derive(Clone)]
pub struct Key {
    /// Its id, a UUID or `mrk-…`.
    pub id: String,
    /// Its full name.
    pub arn: String,
    /// Where its material comes from.
    pub origin: Origin,
    /// The custom key store.
    pub store: Option<String>,
    /// Whether other Regions may have replicas.
    pub multi_region: bool,
    /// Text for people.
    pub description: String,
    /// When it was made.
    pub created: f64,
    /// All materials, the current one last.
    pub materials: Vec<Material>,
    /// Whether it was disabled.
    pub disabled: bool,
    /// When it is to be deleted, and the window asked for.
    pub deletion: Option<(f64, i64)>,
    /// Key policy, JSON.
    pub policy: String,
    /// Tags.
    pub tags: BTreeMap<String, String>,
    /// Days between automatic rotations.
    pub rotation: Option<i64>,
    /// Nobody sees it before.
    pub visible: Instant,
    /// The last cryptographic operation that succeeded, when, and its request.
    pub last_use: Option<(String, f64, String)>,
}

/// A name for a key.
pub struct Alias {
    /// Id of the key.
    pub target: String,
    /// When it was made.
    pub created: f64,
    /// When it was last pointed somewhere.
    pub updated: f64,
    /// Nobody sees it before.
    pub visible: Instant,
}

/// Connection of a custom key store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// In use.
    Connected,
    /// On its way.
    Connecting,
    /// Cut off on purpose.
    Disconnected,
    /// On its way.
    Disconnecting,
    /// Could not connect.
    Failed,
}

impl Connection {
    const NAMES: [(&'static str, Connection); 5] = [
        ("CONNECTED", Connection::Connected),
        ("CONNECTING", Connection::Connecting),
        ("DISCONNECTED", Connection::Disconnected),
        ("DISCONNECTING", Connection::Disconnecting),
        ("FAILED", Connection::Failed),
    ];

    /// The name in answers.
    pub fn name(self) -> &'static str {
        Connection::NAMES.iter().find(|(_, state)| *state == self).unwrap().0
    }

    /// From the name in answers.
    pub fn parse(name: &str) -> Option<Connection> {
        Connection::NAMES.iter().find(|(known, _)| *known == name).map(|(_, state)| *state)
    }
}

/// A custom key store.
pub struct Store {
    /// `cks-…`.
    pub id: String,
    /// Its name.
    pub name: String,
    /// CloudHsm or ExternalStore.
    pub kind: Origin,
    /// The cluster behind a CloudHSM store.
    pub cluster: Option<String>,
    /// The cluster's trust anchor, as it was given.
    pub anchor: Option<String>,
    /// The password KMS believes its user in the cluster has; stores made by control have none.
    pub password: Option<String>,
    /// The password that was given last.
    pub given: Option<String>,
    /// The proxy of an external key store.
    pub proxy: Option<Proxy>,
    /// How it stands; ask [`World::settle`] first.
    pub connection: Connection,
    /// Where it is going, and when it gets there.
    pub moving: Option<(Connection, Instant)>,
    /// Why it failed.
    pub error: Option<String>,
    /// With which error the next attempts to connect fail.
    pub next_error: Option<String>,
    /// Whether the cluster answers; if not, the store says CONNECTED all the same.
    pub reachable: bool,
    /// How many HSMs the cluster has, if the fake does not have that cluster.
    pub hsms: u64,
    /// Its quota.
    pub bucket: Bucket,
    /// When it was made.
    pub created: f64,
}

/// Everything a fake knows.
pub struct World {
    /// The Region.
    pub region: String,
    /// The account.
    pub account: String,
    /// Keys by id.
    pub keys: BTreeMap<String, Key>,
    /// Aliases by `alias/NAME`.
    pub aliases: BTreeMap<String, Alias>,
    /// Custom key stores by id.
    pub stores: BTreeMap<String, Store>,
    /// CloudHSM clusters by id.
    pub clusters: BTreeMap<String, Cluster>,
    /// Availability Zone and VPC of every subnet.
    pub subnets: BTreeMap<String, (String, String)>,
    /// Counts the addresses of HSMs.
    pub next_ip: usize,
    /// Grants by id.
    pub grants: BTreeMap<String, Grant>,
    /// Callers by access key.
    pub principals: BTreeMap<String, Principal>,
    /// What holds for all calls.
    pub switches: Switches,
    /// What holds for some.
    pub rules: Rules,
    /// What was called.
    pub counters: Counters,
    /// Under which the heads of blobs are sealed.
    pub service_key: [u8; 32],
    /// Plaintext keys that were given out, by encryption context.
    pub given_out: Mutex<BTreeMap<Context, Vec<u8>>>,
}

impl World {
    /// An empty account.
    pub fn new(region: &str, account: &str) -> World {
        let owner = Principal::new(ACCESS_KEY, SECRET_KEY, "fake");
        World {
            region: region.to_owned(),
            account: account.to_owned(),
            keys: BTreeMap::new(),
            aliases: BTreeMap::new(),
            stores: BTreeMap::new(),
            clusters: BTreeMap::new(),
            subnets: usual_subnets(region),
            next_ip: 0,
            grants: BTreeMap::new(),
            principals: BTreeMap::from([(ACCESS_KEY.to_owned(), owner)]),
            switches: Switches::default(),
            rules: Rules::default(),
            counters: Counters::default(),
            service_key: random(),
            given_out: Mutex::default(),
        }
    }

    /// The full name of something here.
    pub fn arn(&self, what: &str) -> String {
        format!("arn:aws:kms:{}:{}:{what}", self.region, self.account)
    }

    /// Adds a key; its id.
    pub fn add_key(&mut self, origin: Origin, store: Option<String>, multi_region: bool) -> String {
        let id = match multi_region {
            true => format!("mrk-{}", uuid().replace('-', "")),
            false => uuid(),
        };
        let key = Key {
            arn: self.arn(&format!("key/{id}")),
            id: id.clone(),
            origin,
            store,
            multi_region,
            description: String::new(),
            created: now(),
            materials: match origin {
                Origin::External => Vec::new(),
                _ => vec![Material::new(None)],
            },
            disabled: false,
            deletion: None,
            policy: self.default_policy(),
            tags: BTreeMap::new(),
            rotation: None,
            visible: Instant::now() + self.switches.consistency,
            last_use: None,
        };
        self.keys.insert(id.clone(), key);
        id
    }

    /// Adds a connected custom key store; its id.
    pub fn add_store(&mut self, name: &str, kind: Origin) -> String {
        let id = format!("cks-{}", HEXLOWER.encode(&random::<9>())[..17].to_owned());
        let cluster: String =
            HEXLOWER.encode(&random::<6>())[..11].replace(['0', '1', '8', '9'], "7");
        let store = Store {
            id: id.clone(),
            name: name.to_owned(),
            kind,
            cluster: (kind == Origin::CloudHsm).then(|| format!("cluster-{cluster}")),
            anchor: None,
            password: None,
            given: None,
            proxy: None,
            connection: Connection::Connected,
            moving: None,
            error: None,
            next_error: None,
            reachable: true,
            hsms: 2,
            bucket: Bucket::new(),
            created: now(),
        };
        self.stores.insert(id.clone(), store);
        id
    }

    fn default_policy(&self) -> String {
        let root = format!("arn:aws:iam::{}:root", self.account);
        let policy = json!({
            "Version": "2012-10-17", "Id": "key-default-1",
            "Statement": [{
                "Sid": "Enable IAM User Permissions", "Effect": "Allow",
                "Principal": { "AWS": root }, "Action": "kms:*", "Resource": "*",
            }],
        });
        serde_json::to_string_pretty(&policy).unwrap()
    }

    /// The id of the key that any form of name means: id, ARN, alias, alias ARN.
    pub fn resolve(&self, name: &str) -> Result<String, Fault> {
        let missing = |message: String| Fault::client("NotFoundException", message);
        let mut local = name;
        if let Some(rest) = name.strip_prefix("arn:") {
            let mut parts = rest.splitn(5, ':').skip(1);
            let mut next = || parts.next().unwrap_or_default();
            let (service, region, account, what) = (next(), next(), next(), next());
            if service != "kms" || !(what.starts_with("key/") || what.starts_with("alias/")) {
                let message = format!("{name} is not a valid ARN");
                return Err(Fault::client("InvalidArnException", message));
            }
            if region != self.region {
                return Err(missing(format!("Invalid arn {region}")));
            }
            if account != self.account {
                return Err(missing(format!("Key '{name}' does not exist")));
            }
            local = what.strip_prefix("key/").unwrap_or(what);
        }
        if local.starts_with("alias/") {
            let known = self.aliases.get(local).filter(|alias| alias.visible <= Instant::now());
            let arn = self.arn(local);
            return Ok(known
                .ok_or_else(|| missing(format!("Alias {arn} is not found.")))?
                .target
                .clone());
        }
        if !is_key_id(local) {
            return Err(missing(format!("Invalid keyId '{name}'")));
        }
        match self.keys.get(local) {
            Some(key) if key.visible <= Instant::now() => Ok(key.id.clone()),
            _ => {
                Err(missing(format!("Key '{}' does not exist", self.arn(&format!("key/{local}")))))
            }
        }
    }

    /// As [`World::resolve`], for operations that do not take aliases.
    pub fn resolve_plain(&self, name: &str) -> Result<String, Fault> {
        if name.starts_with("alias/") {
            return Err(Fault::client("NotFoundException", format!("Invalid keyId '{name}'")));
        }
        if name.starts_with("arn:") && name.contains(":alias/") {
            let message = format!("{name} is not a valid ARN for a key");
            return Err(Fault::client("InvalidArnException", message));
        }
        self.resolve(name)
    }

    /// The state that DescribeKey shows.
    pub fn key_state(&self, key: &Key) -> &'static str {
        let store = key.store.as_ref().and_then(|id| self.stores.get(id));
        if key.deletion.is_some() {
            "PendingDeletion"
        } else if key.materials.is_empty() {
            "PendingImport"
        } else if store.is_some_and(|store| store.connection != Connection::Connected) {
            "Unavailable"
        } else if key.disabled {
            "Disabled"
        } else {
            "Enabled"
        }
    }

    /// Refuses what a key in its present state cannot do: anything that needs its material.
    pub fn usable(&self, id: &str) -> Result<&Key, Fault> {
        let key = &self.keys[id];
        let invalid = |text: String| Err(Fault::client("KMSInvalidStateException", text));
        match self.key_state(key) {
            "PendingDeletion" => return invalid(format!("{} is pending deletion.", key.arn)),
            "PendingImport" => return invalid(format!("{} is pending import.", key.arn)),
            "Unavailable" => return invalid(format!("{} is unavailable.", key.arn)),
            "Disabled" => {
                let message = format!("{} is disabled.", key.arn);
                return Err(Fault::client("DisabledException", message));
            }
            _ => {}
        }
        let store = key.store.as_ref().and_then(|id| self.stores.get(id));
        match store {
            Some(store) if !store.reachable || self.hsms_of(store).0 == 0 => {
                invalid(match store.kind {
                    Origin::CloudHsm => {
                        "KMS cannot communicate with your CloudHSM cluster.".to_owned()
                    }
                    _ => "KMS cannot communicate with your external key store proxy.".to_owned(),
                })
            }
            _ => Ok(key),
        }
    }

    /// What DescribeKey and CreateKey answer.
    pub fn metadata(&self, key: &Key) -> Value {
        let state = self.key_state(key);
        let mut data = json!({
            "AWSAccountId": self.account, "KeyId": key.id, "Arn": key.arn,
            "CreationDate": key.created, "Enabled": state == "Enabled",
            "Description": key.description, "KeyUsage": "ENCRYPT_DECRYPT", "KeyState": state,
            "Origin": key.origin.name(), "KeyManager": "CUSTOMER",
            "CustomerMasterKeySpec": "SYMMETRIC_DEFAULT", "KeySpec": "SYMMETRIC_DEFAULT",
            "EncryptionAlgorithms": ["SYMMETRIC_DEFAULT"], "MultiRegion": key.multi_region,
        });
        if let Some((date, _)) = key.deletion {
            data["DeletionDate"] = json!(date);
        }
        if let Some(store) = key.store.as_ref().and_then(|id| self.stores.get(id)) {
            data["CustomKeyStoreId"] = json!(store.id);
            if let Some(cluster) = &store.cluster {
                data["CloudHsmClusterId"] = json!(cluster);
            }
        }
        // Keys in custom key stores have no ids of their material.
        if let (false, Some(material)) = (key.origin.in_store(), key.materials.last()) {
            data["CurrentKeyMaterialId"] = json!(material.id);
        }
        if key.multi_region {
            data["MultiRegionConfiguration"] = json!({
                "MultiRegionKeyType": "PRIMARY", "ReplicaKeys": [],
                "PrimaryKey": { "Arn": key.arn, "Region": self.region },
            });
        }
        data
    }
}

fn is_key_id(name: &str) -> bool {
    let hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if let Some(rest) = name.strip_prefix("mrk-") {
        return rest.len() == 32 && hex(rest);
    }
    let parts: Vec<&str> = name.split('-').collect();
    parts.iter().map(|part| part.len()).eq([8, 4, 4, 4, 12]) && parts.iter().all(|part| hex(part))
}
