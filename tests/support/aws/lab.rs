//! What happens to clusters outside of AWS's interface: activation, users, HSMs that break. As control
//! requests and as methods for tests.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::FakeAws;
use super::clusters::{ADMIN, Cluster, HSM_STATES, Moving, STATES, User};
use super::pki::{self, Spoil};
use super::stores::CONNECTION_ERRORS;
use super::world::World;

/// The administrator's password in clusters that are made ready at once.
pub const ADMIN_PASSWORD: &str = "administrator1";

/// Members of control requests that are about clusters; what makes something answers its name.
pub fn make(world: &mut World, name: &str, value: &Value) -> Result<Value, String> {
    match name {
        "activate" => activate(world, value),
        "hsm_user" => change_user(world, value),
        "hsm_users" => {
            let cluster = find(world, value.as_str().or(value["cluster"].as_str()))?;
            let show = |(name, user): (&String, &User)| json!({ "username": name, "role": user.role, "locked": user.locked });
            Ok(cluster.users.iter().map(show).collect())
        }
        "create_cluster" => {
            let hsms = value["hsms"].as_u64().unwrap_or(2) as usize;
            Ok(json!(ready_cluster(world, hsms)))
        }
        "cluster" => change_cluster(world, value).map(|()| Value::Null),
        "subnet" => {
            let text = |name: &str| value[name].as_str().map(str::to_owned);
            let all = (text("id"), text("zone"), text("vpc"));
            let (Some(id), Some(zone), Some(vpc)) = all else {
                return Err("a subnet needs id, zone and vpc".to_owned());
            };
            world.subnets.insert(id, (zone, vpc));
            Ok(Value::Null)
        }
        _ => Err(format!("no switch {name}")),
    }
}

/// All clusters for people.
pub fn show(world: &World) -> Value {
    let one = |cluster: &Cluster| {
        let mut value = cluster.show();
        value["TrustAnchor"] = json!(cluster.claim.as_ref().map(|(_, anchor)| anchor));
        value["Users"] = cluster.users.keys().map(|name| json!(name)).collect();
        value
    };
    world.clusters.values().map(one).collect()
}

fn find<'a>(world: &'a mut World, id: Option<&str>) -> Result<&'a mut Cluster, String> {
    let id = id.ok_or("which cluster?")?;
    world.clusters.get_mut(id).ok_or_else(|| format!("no cluster {id}"))
}

fn password(value: &Value) -> Result<String, String> {
    let password = value["password"].as_str().unwrap_or_default();
    match (7..=32).contains(&password.chars().count()) {
        true => Ok(password.to_owned()),
        false => Err("Passwords have 7 to 32 characters".to_owned()),
    }
}

/// Makes an HSM answer at all.
fn reachable(cluster: &Cluster) -> Result<(), String> {
    match cluster.active() {
        0 => Err("Unable to connect to any HSM of the cluster".to_owned()),
        _ => Ok(()),
    }
}

fn activate(world: &mut World, value: &Value) -> Result<Value, String> {
    let cluster = find(world, value["cluster"].as_str())?;
    reachable(cluster)?;
    if cluster.state.state != "INITIALIZED" {
        return Err(format!("Cluster is {}, not INITIALIZED", cluster.state.state));
    }
    let user = User { role: ADMIN.to_owned(), password: password(value)?, locked: false };
    cluster.users.insert(ADMIN.to_owned(), user);
    cluster.settle();
    Ok(Value::Null)
}

/// `{"cluster": …, "username": …, "role": …, "password": …, "locked": …, "delete": true, "admin":
/// PASSWORD}`: makes a user, changes one, or deletes one. With `admin` the password must be that of
/// the administrator, and a user who is there already is no more made.
fn change_user(world: &mut World, value: &Value) -> Result<Value, String> {
    let cluster = find(world, value["cluster"].as_str())?;
    reachable(cluster)?;
    let name = value["username"].as_str().unwrap_or_default();
    if cluster.state.state != "ACTIVE" {
        return Err(format!("Cluster is {}, not ACTIVE", cluster.state.state));
    }
    if name.is_empty() || name.len() > 31 {
        return Err("User names have 1 to 31 characters".to_owned());
    }
    if let Some(login) = value["admin"].as_str() {
        if cluster.users.get(ADMIN).is_none_or(|admin| admin.password != login) {
            return Err("Login failed: incorrect username or password".to_owned());
        }
        if cluster.users.contains_key(name) && value.get("role").is_some() {
            return Err("User already exists".to_owned());
        }
        if !cluster.users.contains_key(name) && value.get("role").is_none() {
            return Err("User does not exist".to_owned());
        }
    }
    if value["delete"] == true {
        return match cluster.users.remove(name) {
            Some(_) => Ok(Value::Null),
            None => Err("User does not exist".to_owned()),
        };
    }
    let mut user = match cluster.users.get(name) {
        Some(user) => user.clone(),
        None => {
            let role = value["role"].as_str().unwrap_or("crypto-user").to_owned();
            User { role, password: password(value)?, locked: false }
        }
    };
    if value.get("password").is_some() {
        user.password = password(value)?;
    }
    user.locked = value["locked"].as_bool().unwrap_or(false);
    cluster.users.insert(name.to_owned(), user);
    Ok(Value::Null)
}

/// `{"id": …, "state": …, "spoil": …, "hsm": {"id": …, "state": …}}`; an HSM without id is all.
fn change_cluster(world: &mut World, value: &Value) -> Result<(), String> {
    let known = |states: &[&'static str], name: &str| {
        let found = states.iter().find(|state| **state == name).copied();
        found.map(Moving::at).ok_or_else(|| format!("no state {name}"))
    };
    let cluster = find(world, value["id"].as_str())?;
    if let Some(name) = value["state"].as_str() {
        cluster.state = known(&STATES, name)?;
    }
    if let Some(state) = value["hsm"]["state"].as_str() {
        let wanted = value["hsm"]["id"].as_str();
        for hsm in cluster.hsms.iter_mut().filter(|hsm| wanted.is_none_or(|id| id == hsm.id)) {
            hsm.state = known(&HSM_STATES, state)?;
        }
    }
    if let Some(kind) = value["type"].as_str() {
        cluster.kind = kind.to_owned();
    }
    if let Some(what) = value.get("spoil") {
        cluster.spoil = what.as_str().and_then(Spoil::parse);
        if let Some(identity) = &mut cluster.identity {
            identity.certify(cluster.spoil);
        }
    }
    cluster.settle();
    Ok(())
}

/// A cluster that has everything behind it: claimed, active, with HSMs in as many zones.
fn ready_cluster(world: &mut World, hsms: usize) -> String {
    let found = world.subnets.iter().filter(|(id, _)| id.starts_with("subnet-0a"));
    let subnets: BTreeMap<String, String> =
        found.map(|(id, (zone, _))| (zone.clone(), id.clone())).collect();
    let zones: Vec<String> = subnets.keys().cloned().collect();
    let cluster = world.add_cluster("FIPS", subnets);
    cluster.state = Moving::at("UNINITIALIZED");
    let id = cluster.id.clone();
    for zone in zones.iter().cycle().take(hsms.max(1)) {
        world.add_hsm(&id, zone, None);
    }
    let cluster = world.clusters.get_mut(&id).unwrap();
    cluster.hsms.iter_mut().for_each(|hsm| hsm.state = Moving::at("ACTIVE"));
    cluster.settle();
    let (anchor, signed) = pki::sign_as_customer(&cluster.identity.as_ref().unwrap().csr);
    cluster.claim = Some((signed, anchor));
    cluster.state = Moving::at("INITIALIZED");
    let password = ADMIN_PASSWORD.to_owned();
    let user = User { role: ADMIN.to_owned(), password, locked: false };
    cluster.users.insert(ADMIN.to_owned(), user);
    cluster.settle();
    cluster.hsms.truncate(hsms);
    id
}

/// Clusters.
impl FakeAws {
    /// How long clusters and HSMs take to get anywhere.
    pub fn set_cluster_times(&self, cluster: Duration, hsm: Duration) {
        let mut world = self.shared.world.lock();
        (world.switches.cluster, world.switches.hsm) = (cluster, hsm);
    }

    /// Whether DescribeClusters leaves out what is made from now on.
    pub fn lag_clusters(&self, on: bool) {
        self.shared.world.lock().lag_clusters(on);
    }

    /// How many custom key stores, clusters and HSMs the account may have.
    pub fn set_limits(&self, stores: usize, clusters: usize, hsms: usize) {
        let mut world = self.shared.world.lock();
        world.switches.stores_max = stores;
        (world.switches.clusters_max, world.switches.hsms_max) = (clusters, hsms);
    }

    /// Adds a subnet, or moves one.
    pub fn add_subnet(&self, id: &str, zone: &str, vpc: &str) {
        let place = (zone.to_owned(), vpc.to_owned());
        self.shared.world.lock().subnets.insert(id.to_owned(), place);
    }

    /// Spoils the certificates of all clusters, those to come too, or makes them good.
    pub fn spoil_certificates(&self, spoil: Option<Spoil>) {
        let mut world = self.shared.world.lock();
        world.switches.spoil = spoil;
        for cluster in world.clusters.values_mut() {
            cluster.spoil = spoil;
            if let Some(identity) = &mut cluster.identity {
                identity.certify(spoil);
            }
        }
    }

    /// The roots of the two chains of every HSM, PEM: AWS's and the manufacturer's.
    pub fn hardware_roots(&self) -> (String, String) {
        pki::roots()
    }

    /// An active cluster with so many HSMs, each in another Availability Zone, and its trust anchor.
    /// Its administrator has [`ADMIN_PASSWORD`]; there is no `kmsuser`.
    pub fn create_cluster(&self, hsms: usize) -> (String, String) {
        let mut world = self.shared.world.lock();
        let id = ready_cluster(&mut world, hsms);
        let anchor = world.clusters[&id].claim.as_ref().unwrap().1.clone();
        (id, anchor)
    }

    /// Gives a claimed cluster its administrator, which makes it active.
    pub fn activate(&self, cluster: &str, password: &str) -> Result<(), String> {
        self.lab(&json!({ "activate": { "cluster": cluster, "password": password } }))
    }

    /// Makes a crypto user in a cluster, or gives one another password.
    pub fn set_hsm_user(&self, cluster: &str, name: &str, password: &str) -> Result<(), String> {
        let user = json!({ "cluster": cluster, "username": name, "password": password });
        self.lab(&json!({ "hsm_user": user }))
    }

    /// Locks a user out.
    pub fn lock_hsm_user(&self, cluster: &str, name: &str) -> Result<(), String> {
        let user = json!({ "cluster": cluster, "username": name, "locked": true });
        self.lab(&json!({ "hsm_user": user }))
    }

    /// Deletes a user.
    pub fn delete_hsm_user(&self, cluster: &str, name: &str) -> Result<(), String> {
        let user = json!({ "cluster": cluster, "username": name, "delete": true });
        self.lab(&json!({ "hsm_user": user }))
    }

    /// The users of a cluster by name.
    pub fn hsm_users(&self, cluster: &str) -> BTreeMap<String, User> {
        self.shared.world.lock().clusters[cluster].users.clone()
    }

    /// Puts all HSMs of a cluster into a state.
    pub fn set_hsms(&self, cluster: &str, state: &str) {
        self.lab(&json!({ "cluster": { "id": cluster, "hsm": { "state": state } } })).unwrap();
    }

    /// Puts a cluster into a state.
    pub fn set_cluster_state(&self, cluster: &str, state: &str) {
        self.lab(&json!({ "cluster": { "id": cluster, "state": state } })).unwrap();
    }

    /// The error that connections of a store fail with from now on, or none.
    pub fn fail_connections(&self, store: &str, code: Option<&str>) {
        assert!(code.is_none_or(|code| CONNECTION_ERRORS.contains(&code)));
        self.lab(&json!({ "store": { "id": store, "next_error": code } })).unwrap();
    }

    fn lab(&self, members: &Value) -> Result<(), String> {
        self.shared.world.lock().settle();
        self.control(members).map(drop)
    }

    /// All clusters as DescribeClusters shows them, with `TrustAnchor` and names of `Users`.
    pub fn clusters(&self) -> Vec<Value> {
        let mut world = self.shared.world.lock();
        world.settle();
        show(&world).as_array().cloned().unwrap_or_default()
    }

    /// How many there are: keys, custom key stores, clusters that are not deleted, HSMs, grants.
    pub fn counts(&self) -> Counts {
        let mut world = self.shared.world.lock();
        world.settle();
        let clusters = world.clusters.values().filter(|cluster| !cluster.deleted());
        Counts {
            keys: world.keys.len(),
            stores: world.stores.len(),
            clusters: clusters.clone().count(),
            hsms: clusters.map(|cluster| cluster.hsms.len()).sum(),
            grants: world.grants.len(),
        }
    }

    /// Puts `cloudhsm-cli` and `configure-cli` into a directory; they need the environment of
    /// [`FakeAws::cli_environment`].
    pub fn install_cli(&self, dir: &Path) -> (PathBuf, PathBuf) {
        let script =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/aws/cloudhsm-cli.py");
        let (cli, configure) = (dir.join("cloudhsm-cli"), dir.join("configure-cli"));
        symlink(&script, &cli).unwrap();
        symlink(&script, &configure).unwrap();
        (cli, configure)
    }

    /// What the command-line tools need: where the fake is, their configuration, their log.
    pub fn cli_environment(&self, dir: &Path) -> Vec<(&'static str, String)> {
        let file = |name: &str| dir.join(name).to_str().unwrap().to_owned();
        vec![
            ("KMSFS_FAKE_AWS", self.endpoint()),
            ("KMSFS_FAKE_CLI_CONFIG", file("cloudhsm-cli.cfg")),
            ("KMSFS_FAKE_CLI_LOG", file("cloudhsm-cli.log")),
        ]
    }
}

/// How many there are of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// KMS keys.
    pub keys: usize,
    /// Custom key stores.
    pub stores: usize,
    /// Clusters that are not deleted.
    pub clusters: usize,
    /// Their HSMs.
    pub hsms: usize,
    /// Grants.
    pub grants: usize,
}
