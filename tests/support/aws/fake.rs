//! A fake of AWS on a loopback port: KMS with its keys, custom key stores, limits, errors and failures,
//! CloudHSM with its clusters, and as much of STS as asking "who am I". For tests, and for people who want to try things without an account.
//!
//! What it encrypts is really encrypted, and signatures are really checked. Everything lives in the
//! process and is gone with it. Use from a test:
//!
//! ```ignore
//! #[path = "support/aws/fake.rs"]
//! mod aws;
//! let fake = aws::FakeAws::start();
//! let key = fake.create_key(aws::Origin::Kms);
//! fake.fault(aws::Rule::new(aws::Effect::internal()).on("Decrypt").times(3));
//! ```
//!
//! By hand: `cargo run --example fake-aws`, which says how to go on. The same switches over HTTP:
//! `POST /_control` with a JSON object, each member one switch:
//!
//! | Member | Meaning |
//! |---|---|
//! | `latency_ms` | every call takes at least this long |
//! | `quota_units` | units per second of each custom key store (GenerateDataKey* 3, others 1); null: no limit |
//! | `throttle`, `internal`, `unavailable`, `hang`, `reset` | true: every call gets this; false: no longer |
//! | `fault` | `{"effect": E, "operation": …, "key": …, "times": …, "skip": …}`; E: those above, `drop` (work done, no answer), `deny`, `delay` with `ms`, `error` with `status`, `code`, `message` |
//! | `deny` | operation that is denied to everybody |
//! | `clear` | true: all faults end; a number or an effect: those |
//! | `refuse_ms` | for so long the port is closed and every connection cut |
//! | `key` | `{"id": …, "state": "Enabled"\|"Disabled"\|"PendingDeletion", "rotate": true, "forget": true}` |
//! | `store` | `{"id": …, "state": "CONNECTED"\|"DISCONNECTED"\|…, "communicates": bool, "hsms": n, "error": …, "next_error": …}` |
//! | `connect_ms` | how long ConnectCustomKeyStore and DisconnectCustomKeyStore take |
//! | `clock_s` | by how many seconds the service's clock is ahead; beyond 300 it refuses signatures |
//! | `cluster_ms`, `hsm_ms` | how long clusters and HSMs take to get anywhere |
//! | `clusters_lag` | true: DescribeClusters leaves out clusters and HSMs made from now on; false: no longer |
//! | `stores_max`, `clusters_max`, `hsms_max` | limits of the account |
//! | `create_cluster` | `{"hsms": n}`: a cluster that is claimed and active; its administrator has the password `administrator1` |
//! | `activate` | `{"cluster": …, "password": …}`: gives a claimed cluster its administrator |
//! | `hsm_user` | `{"cluster": …, "username": …, "role": …, "password": …, "locked": bool, "delete": bool, "admin": …}`: makes or changes a user in a cluster; with `admin` that must be the administrator's password |
//! | `hsm_users` | id of a cluster: its users |
//! | `cluster` | `{"id": …, "state": …, "hsm": {"id": …, "state": …}, "type": …, "spoil": …}` |
//! | `spoil` | what is wrong with the certificates of new clusters: `aws`, `manufacturer` (issuer of the hardware's), `hsm` (issuer of the HSM's), `key` (not the CSR's); null: nothing |
//! | `subnet` | `{"id": …, "zone": …, "vpc": …}`: one more subnet |
//! | `create_key`, `create_store` | `{"origin": …, "store": …, "multi_region": …}`, `{"name": …, "type": …}` |
//! | `credential` | `{"access_key": …, "secret": …, "user": …, "allow": ["Decrypt"], "deny": […], "read_only": bool, "context": {…}, "keys": […], "token": …, "expired": …}` |
//! | `expired` | true: all credentials have expired |
//! | `consistency_ms` | for so long nobody sees a new key or alias |
//! | `strict_context` | true: refuse and count encryption contexts that are not those of kmsfs |
//! | `blob_len` | size of the ciphertext of 32 bytes |
//! | `signatures` | false: do not check them |
//! | `reset_counters` | all counters and the log to zero |
//!
//! `GET /_control` shows all of it with the counters, `GET /_control/log` the last calls,
//! `GET /_control/roots` the roots of the hardware certificates. `cloudhsm-cli.py` beside this file is
//! the tool that activates clusters and makes users in them.

#![allow(dead_code)]

mod api;
mod blob;
pub mod client;
pub mod clusters;
mod control;
mod counters;
mod crypt;
mod faults;
mod grants;
mod hsm;
pub mod http;
mod kms;
pub mod lab;
mod manage;
pub mod pki;
mod principals;
mod server;
mod service;
pub mod sign;
mod stores;
mod sts;
mod world;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

#[allow(unused_imports)]
pub use self::{
    api::{Context, Fault},
    client::Client,
    counters::Entry,
    faults::{Effect, Rule},
    lab::{ADMIN_PASSWORD, Counts},
    pki::Spoil,
    principals::{ACCESS_KEY, Principal, SECRET_KEY},
    stores::CONNECTION_ERRORS,
    world::{Connection, Origin},
};
use self::{
    counters::OK,
    server::Shared,
    world::{Material, World},
};

/// The account of every fake.
pub const ACCOUNT: &str = "111122223333";
/// The Region of a fake that was not told another.
pub const REGION: &str = "us-east-1";

/// States a key can be put into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// In use.
    Enabled,
    /// Disabled.
    Disabled,
    /// To be deleted.
    PendingDeletion,
}

/// A running fake; it ends when this is dropped.
pub struct FakeAws {
    shared: Arc<Shared>,
    region: String,
}

impl Drop for FakeAws {
    fn drop(&mut self) {
        self.shared.end();
    }
}

/// Starting, and what is fixed.
impl FakeAws {
    /// Starts one on a free port.
    pub fn start() -> FakeAws {
        FakeAws::start_in(REGION)
    }

    /// Starts one in a Region.
    pub fn start_in(region: &str) -> FakeAws {
        FakeAws::start_on(0, region).unwrap()
    }

    /// Starts one on a port (0: any).
    pub fn start_on(port: u16, region: &str) -> io::Result<FakeAws> {
        let shared = Shared::open(World::new(region, ACCOUNT), port)?;
        Ok(FakeAws { shared, region: region.to_owned() })
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.shared.port())
    }

    /// The Region.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// The account.
    pub fn account(&self) -> &str {
        ACCOUNT
    }

    /// The access key that may do everything, and its secret.
    pub fn credentials(&self) -> (&'static str, &'static str) {
        (ACCESS_KEY, SECRET_KEY)
    }

    /// A client of this fake.
    pub fn client(&self) -> Client {
        Client::new(&self.endpoint(), &self.region)
    }
}

/// Keys, aliases, stores, callers.
impl FakeAws {
    /// Makes a key; its ARN. A key of a custom key store goes into the first store of its kind, made
    /// if there is none.
    pub fn create_key(&self, origin: Origin) -> String {
        let mut world = self.shared.world.lock();
        let store = origin.in_store().then(|| world.some_store(origin));
        let id = world.add_key(origin, store, false);
        world.keys[&id].arn.clone()
    }

    /// Makes a key in a store; its ARN.
    pub fn create_key_in(&self, store: &str) -> String {
        let mut world = self.shared.world.lock();
        let origin = world.stores[store].kind;
        let id = world.add_key(origin, Some(store.to_owned()), false);
        world.keys[&id].arn.clone()
    }

    /// Makes a multi-Region key; its ARN.
    pub fn create_multi_region_key(&self) -> String {
        let mut world = self.shared.world.lock();
        let id = world.add_key(Origin::Kms, None, true);
        world.keys[&id].arn.clone()
    }

    /// Points `alias/NAME` at a key.
    pub fn set_alias(&self, name: &str, key: &str) {
        let mut world = self.shared.world.lock();
        let id = world.resolve(key).unwrap();
        world.add_alias(name, &id);
    }

    /// Makes a connected custom key store; its id.
    pub fn create_store(&self, name: &str, kind: Origin) -> String {
        self.shared.world.lock().add_store(name, kind)
    }

    /// The store a key lies in.
    pub fn store_of(&self, key: &str) -> Option<String> {
        let world = self.shared.world.lock();
        let id = world.resolve(key).unwrap();
        world.keys[&id].store.clone()
    }

    /// Puts a key into a state.
    pub fn set_key_state(&self, key: &str, state: KeyState) {
        self.change("key", json!({ "id": key, "state": format!("{state:?}") }));
    }

    /// Gives a key new material, as automatic rotation does.
    pub fn rotate_key(&self, key: &str) {
        let mut world = self.shared.world.lock();
        let id = world.resolve(key).unwrap();
        let key = world.keys.get_mut(&id).unwrap();
        key.materials.push(Material::new(Some("AUTOMATIC")));
    }

    /// Deletes a key for good, as KMS does when its time is over.
    pub fn forget_key(&self, key: &str) {
        self.change("key", json!({ "id": key, "forget": true }));
    }

    /// Connects or disconnects a store at once; its keys are unavailable unless it is connected.
    pub fn set_store(&self, store: &str, state: Connection) {
        self.change("store", json!({ "id": store, "state": state.name() }));
    }

    /// Breaks the cluster behind a store, or repairs it; the store stays connected.
    pub fn set_store_communicates(&self, store: &str, communicates: bool) {
        self.change("store", json!({ "id": store, "communicates": communicates }));
    }

    /// Adds an access key, or changes one.
    pub fn add_principal(&self, who: Principal) {
        self.shared.world.lock().principals.insert(who.access_key.clone(), who);
    }

    /// Lets the credentials of everybody expire, or not.
    pub fn expire_credentials(&self, expired: bool) {
        self.shared.world.lock().switches.expired = expired;
    }
}

/// Switches and faults.
impl FakeAws {
    /// Every call takes at least this long.
    pub fn set_latency(&self, latency: Duration) {
        self.shared.world.lock().switches.latency = latency;
    }

    /// Units per second of each custom key store.
    pub fn set_quota(&self, units: Option<f64>) {
        self.shared.world.lock().switches.quota = units;
    }

    /// For so long nobody sees a new key or alias.
    pub fn set_consistency(&self, delay: Duration) {
        self.shared.world.lock().switches.consistency = delay;
    }

    /// How long stores take to connect and disconnect.
    pub fn set_connect_time(&self, time: Duration) {
        self.shared.world.lock().switches.connect = time;
    }

    /// Seconds by which the service's clock is ahead of ours.
    pub fn set_clock(&self, ahead: i64) {
        self.shared.world.lock().switches.clock = ahead;
    }

    /// Refuses and counts encryption contexts that are not those of kmsfs.
    pub fn set_strict_context(&self, strict: bool) {
        self.shared.world.lock().switches.strict_context = strict;
    }

    /// Size of the ciphertext of 32 bytes.
    pub fn set_blob_len(&self, len: usize) {
        self.change("blob_len", json!(len));
    }

    /// Adds a fault; the number takes it away again.
    pub fn fault(&self, rule: Rule) -> u64 {
        self.shared.world.lock().rules.add(rule)
    }

    /// Takes one fault away; calls that hang in it see their connections closed.
    pub fn clear_fault(&self, number: u64) {
        self.shared.world.lock().rules.remove(number);
    }

    /// Takes all faults away.
    pub fn clear_faults(&self) {
        self.shared.world.lock().rules.clear();
    }

    /// Throttles everything, or no longer.
    pub fn throttle(&self, on: bool) {
        self.change("throttle", json!(on));
    }

    /// Never answers anything, or answers again.
    pub fn hang(&self, on: bool) {
        self.change("hang", json!(on));
    }

    /// The next calls fail with HTTP 500.
    pub fn fail_next(&self, calls: u64) -> u64 {
        self.fault(Rule::new(Effect::internal()).times(calls))
    }

    /// The next calls of an operation are done but not answered.
    pub fn drop_next(&self, operation: &str, calls: u64) -> u64 {
        self.fault(Rule::new(Effect::Drop).on(operation).times(calls))
    }

    /// Denies an operation to everybody.
    pub fn deny(&self, operation: &str) -> u64 {
        self.fault(Rule::new(Effect::Deny).on(operation))
    }

    /// Closes the port and all connections, or opens it again.
    pub fn refuse_connections(&self, on: bool) {
        if on { self.shared.close() } else { self.shared.reopen() }
    }

    /// Closes all connections; new ones are welcome.
    pub fn cut_connections(&self) {
        self.shared.cut();
    }

    /// Turns switches as `POST /_control` does.
    pub fn control(&self, members: &Value) -> Result<Value, String> {
        let members = members.as_object().ok_or("not an object")?;
        control::apply(&mut self.shared.world.lock(), members)
    }

    fn change(&self, name: &str, value: Value) {
        self.control(&json!({ name: value })).unwrap();
    }
}

/// Counters.
impl FakeAws {
    /// Calls of an operation, whatever came of them.
    pub fn calls(&self, operation: &str) -> u64 {
        self.count(|op, _| op == operation).0
    }

    /// Calls of an operation with this outcome: the name of an exception, or `OK`.
    pub fn calls_with(&self, operation: &str, code: &str) -> u64 {
        self.count(|op, outcome| op == operation && outcome == code).0
    }

    /// Calls of an operation that succeeded.
    pub fn calls_ok(&self, operation: &str) -> u64 {
        self.calls_with(operation, OK)
    }

    /// Calls of everything.
    pub fn calls_total(&self) -> u64 {
        self.count(|_, _| true).0
    }

    /// Calls about a key.
    pub fn calls_of_key(&self, arn: &str) -> u64 {
        self.shared.world.lock().counters.of_key(arn)
    }

    /// Units of all calls that were not throttled.
    pub fn units(&self) -> u64 {
        self.count(|_, code| code != "ThrottlingException").1
    }

    fn count(&self, wanted: impl Fn(&str, &str) -> bool) -> (u64, u64) {
        let tally = self.shared.world.lock().counters.sum(wanted);
        (tally.calls, tally.units)
    }

    /// Every plaintext key that was given out, with its encryption context.
    pub fn given_out(&self) -> Vec<(Context, Vec<u8>)> {
        let world = self.shared.world.lock();
        world.given_out.lock().clone().into_iter().collect()
    }

    /// Calls that strict checking of encryption contexts refused.
    pub fn bad_contexts(&self) -> u64 {
        self.shared.world.lock().counters.bad_context
    }

    /// Calls that have arrived and are not answered.
    pub fn in_flight(&self) -> u64 {
        self.shared.world.lock().counters.in_flight()
    }

    /// The most there were at once.
    pub fn max_in_flight(&self) -> u64 {
        self.shared.world.lock().counters.max_in_flight()
    }

    /// The last calls, oldest first.
    pub fn log(&self) -> Vec<Entry> {
        self.shared.world.lock().counters.log()
    }

    /// All counters and the log to zero.
    pub fn reset_counters(&self) {
        self.shared.world.lock().counters.reset();
    }

    /// Everything, as `GET /_control` shows it.
    pub fn state(&self) -> Value {
        control::show(&self.shared.world.lock())
    }
}
