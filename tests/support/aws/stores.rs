//! The operations on custom key stores.

use std::time::Instant;

use serde_json::{Value, json};

use super::api::{Call, Fault, Outcome, random};
use super::clusters::{Cluster, KMS_USER};
use super::pki;
use super::world::{Connection, Origin, Store, World};

/// Why connections fail: those of CloudHSM, then those of external key managers.
pub const CONNECTION_ERRORS: [&str; 18] = [
    "INVALID_CREDENTIALS",
    "CLUSTER_NOT_FOUND",
    "NETWORK_ERRORS",
    "INTERNAL_ERROR",
    "INSUFFICIENT_CLOUDHSM_HSMS",
    "USER_LOCKED_OUT",
    "USER_NOT_FOUND",
    "USER_LOGGED_IN",
    "SUBNET_NOT_FOUND",
    "INSUFFICIENT_FREE_ADDRESSES_IN_SUBNET",
    "XKS_PROXY_ACCESS_DENIED",
    "XKS_PROXY_NOT_REACHABLE",
    "XKS_VPC_ENDPOINT_SERVICE_NOT_FOUND",
    "XKS_PROXY_INVALID_RESPONSE",
    "XKS_PROXY_INVALID_CONFIGURATION",
    "XKS_VPC_ENDPOINT_SERVICE_INVALID_CONFIGURATION",
    "XKS_PROXY_TIMED_OUT",
    "XKS_PROXY_INVALID_TLS_CONFIGURATION",
];

/// Names no store.
pub fn not_found(id: &str) -> Fault {
    Fault::client("CustomKeyStoreNotFoundException", format!("Custom key store {id} not found."))
}

/// Not possible as the store stands.
pub fn wrong_state(store: &Store) -> Fault {
    let state = store.connection.name();
    Fault::client(
        "CustomKeyStoreInvalidStateException",
        format!("Custom key store {} has the connection state {state}.", store.id),
    )
}

/// Not possible with so few HSMs.
pub fn too_few() -> Fault {
    let message = "The cluster needs two active HSMs in different Availability Zones.";
    Fault::client("CloudHsmClusterInvalidConfigurationException", message)
}

/// DescribeCustomKeyStores.
pub fn describe(world: &mut World, call: &Call) -> Outcome {
    let id = call.text("CustomKeyStoreId", 1..=64)?;
    let name = call.text("CustomKeyStoreName", 1..=256)?;
    if id.is_some() && name.is_some() {
        return Err(Fault::validation("Please specify either an id or a name."));
    }
    let wanted = |store: &&Store| {
        id.is_none_or(|id| store.id == id) && name.is_none_or(|name| store.name == name)
    };
    let found: Vec<Value> = world.stores.values().filter(wanted).map(show).collect();
    if let (true, Some(what)) = (found.is_empty(), id.or(name)) {
        return Err(not_found(what));
    }
    call.page("CustomKeyStores", found, 100)
}

fn show(store: &Store) -> Value {
    let mut value = json!({
        "CustomKeyStoreId": store.id, "CustomKeyStoreName": store.name,
        "ConnectionState": store.connection.name(), "CreationDate": store.created,
        "CustomKeyStoreType": store.kind.name(),
    });
    if let Some(cluster) = &store.cluster {
        value["CloudHsmClusterId"] = json!(cluster);
        let anchor = store.anchor.as_deref().unwrap_or("-----BEGIN CERTIFICATE-----\nfake\n");
        value["TrustAnchorCertificate"] = json!(anchor);
    }
    if let Some(proxy) = &store.proxy {
        value["XksProxyConfiguration"] = proxy.show();
    }
    if let Some(error) = &store.error {
        value["ConnectionErrorCode"] = json!(error);
    }
    value
}

fn find<'a>(world: &'a mut World, call: &Call) -> Result<&'a mut Store, Fault> {
    let id = call.need("CustomKeyStoreId", 1..=64)?;
    world.stores.get_mut(id).ok_or_else(|| not_found(id))
}

/// Where an external key store reaches its keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Proxy {
    endpoint: String,
    path: String,
    connectivity: String,
    service: Option<String>,
    access_key: String,
    secret: String,
}

impl Proxy {
    fn show(&self) -> Value {
        let mut value = json!({
            "Connectivity": self.connectivity, "AccessKeyId": self.access_key,
            "UriEndpoint": self.endpoint, "UriPath": self.path,
        });
        if let Some(service) = &self.service {
            value["VpcEndpointServiceName"] = json!(service);
        }
        value
    }

    fn read(call: &Call) -> Result<Proxy, Fault> {
        let kinds = ["PUBLIC_ENDPOINT", "VPC_ENDPOINT_SERVICE"];
        let missing = |name: &str| Fault::validation(format!("This type needs {name}."));
        let need = |name: &str, least: usize| {
            call.text(name, least..=128)?.map(str::to_owned).ok_or_else(|| missing(name))
        };
        let credential = &call.body.get("XksProxyAuthenticationCredential");
        let part = |name: &str| credential.and_then(|pair| pair[name].as_str()).unwrap_or_default();
        let (access_key, secret) = (part("AccessKeyId"), part("RawSecretAccessKey"));
        if !(20..=30).contains(&access_key.len()) || !(43..=64).contains(&secret.len()) {
            return Err(missing("a well-formed XksProxyAuthenticationCredential"));
        }
        let connectivity = call.word("XksProxyConnectivity", &kinds)?;
        let connectivity = connectivity.ok_or_else(|| missing("XksProxyConnectivity"))?;
        let service = call.text("XksProxyVpcEndpointServiceName", 20..=64)?;
        if service.is_some() != (connectivity == "VPC_ENDPOINT_SERVICE") {
            return Err(missing("XksProxyVpcEndpointServiceName with its connectivity only"));
        }
        let proxy = Proxy {
            endpoint: need("XksProxyUriEndpoint", 10)?,
            path: need("XksProxyUriPath", 10)?,
            connectivity: connectivity.to_owned(),
            service: service.map(str::to_owned),
            access_key: access_key.to_owned(),
            secret: secret.to_owned(),
        };
        if !proxy.endpoint.starts_with("https://") || !proxy.path.contains("/kms/xks/v") {
            let text = "The proxy's URI is https:// with a path that ends in /kms/xks/v1.";
            return Err(Fault::validation(text));
        }
        Ok(proxy)
    }

    fn check_free(&self, world: &World) -> Result<(), Fault> {
        let busy = |code: &str| Err(Fault::client(code, "Another store uses it."));
        for other in world.stores.values().filter_map(|store| store.proxy.as_ref()) {
            let same = other.endpoint == self.endpoint;
            if same && other.path == self.path {
                return busy("XksProxyUriInUseException");
            }
            if same && other.connectivity != self.connectivity {
                return busy("XksProxyUriEndpointInUseException");
            }
            if self.service.is_some() && other.service == self.service && !same {
                return busy("XksProxyVpcEndpointServiceInUseException");
            }
        }
        Ok(())
    }
}

/// CreateCustomKeyStore.
pub fn create(world: &mut World, call: &Call) -> Outcome {
    let name = call.need("CustomKeyStoreName", 1..=256)?;
    let kinds = ["AWS_CLOUDHSM", "EXTERNAL_KEY_STORE"];
    let kind = call.word("CustomKeyStoreType", &kinds)?.unwrap_or("AWS_CLOUDHSM");
    match kind {
        "AWS_CLOUDHSM" => create_for_cluster(world, call, name),
        _ => create_external(world, call, name),
    }
}

fn check_name_and_count(world: &World, name: &str) -> Result<(), Fault> {
    if world.stores.values().any(|store| store.name == name) {
        let message = format!("There is a custom key store named {name} already.");
        return Err(Fault::client("CustomKeyStoreNameInUseException", message));
    }
    let most = world.switches.stores_max;
    if world.stores.len() >= most {
        let message = format!("The account has reached its limit of {most} custom key stores.");
        return Err(Fault::client("LimitExceededException", message));
    }
    Ok(())
}

/// The store that a repeated request has made before.
fn made_before(world: &World, same: impl Fn(&Store) -> bool) -> Option<Value> {
    let idle = |store: &&Store| store.connection == Connection::Disconnected && same(store);
    let found = world.stores.values().find(idle)?;
    Some(json!({ "CustomKeyStoreId": found.id }))
}

fn create_external(world: &mut World, call: &Call, name: &str) -> Outcome {
    for other in ["CloudHsmClusterId", "TrustAnchorCertificate", "KeyStorePassword"] {
        if call.text(other, 0..=usize::MAX)?.is_some() {
            return Err(Fault::validation(format!("An external key store has no {other}.")));
        }
    }
    let proxy = Proxy::read(call)?;
    let same = |store: &Store| store.name == name && store.proxy.as_ref() == Some(&proxy);
    if let Some(answer) = made_before(world, same) {
        return Ok(answer);
    }
    check_name_and_count(world, name)?;
    proxy.check_free(world)?;
    let id = world.add_store(name, Origin::ExternalStore);
    let store = world.stores.get_mut(&id).unwrap();
    store.proxy = Some(proxy);
    store.connection = Connection::Disconnected;
    Ok(json!({ "CustomKeyStoreId": id }))
}

fn create_for_cluster(world: &mut World, call: &Call, name: &str) -> Outcome {
    let missing = |what: &str| Fault::validation(format!("This type needs {what}."));
    let cluster = cluster_id(call)?.ok_or_else(|| missing("CloudHsmClusterId"))?;
    let anchor = call.text("TrustAnchorCertificate", 1..=5000)?;
    let anchor = anchor.ok_or_else(|| missing("TrustAnchorCertificate"))?;
    let password = call.text("KeyStorePassword", 7..=32)?;
    let password = password.ok_or_else(|| missing("KeyStorePassword"))?;
    let same = |store: &Store| {
        store.name == name
            && store.cluster.as_deref() == Some(cluster)
            && store.anchor.as_deref() == Some(anchor)
            && store.given.as_deref() == Some(password)
    };
    if let Some(answer) = made_before(world, same) {
        return Ok(answer);
    }
    check_name_and_count(world, name)?;
    let found = usable_cluster(world, cluster)?;
    if world.stores.values().any(|store| related(world, store, found)) {
        let message = "The cluster, or one with the same backups, belongs to another store.";
        return Err(Fault::client("CloudHsmClusterInUseException", message));
    }
    let right = found.claim.as_ref().is_some_and(|(_, ours)| pki::same(ours, anchor));
    if !right {
        let message = "This is not the trust anchor that the cluster was initialized with.";
        return Err(Fault::client("IncorrectTrustAnchorException", message));
    }
    if found.zones() < 2 {
        return Err(too_few());
    }
    let id = world.add_store(name, Origin::CloudHsm);
    let store = world.stores.get_mut(&id).unwrap();
    store.cluster = Some(cluster.to_owned());
    store.anchor = Some(anchor.to_owned());
    store.password = Some(password.to_owned());
    store.given = store.password.clone();
    store.connection = Connection::Disconnected;
    Ok(json!({ "CustomKeyStoreId": id }))
}

fn cluster_id<'a>(call: &Call<'a>) -> Result<Option<&'a str>, Fault> {
    let id = call.text("CloudHsmClusterId", 19..=24)?;
    match id {
        Some(id) if !id.starts_with("cluster-") => {
            Err(Fault::validation("CloudHsmClusterId is not the id of a cluster."))
        }
        id => Ok(id),
    }
}

fn usable_cluster<'a>(world: &'a World, id: &str) -> Result<&'a Cluster, Fault> {
    let found = world.clusters.get(id).filter(|cluster| !cluster.deleted());
    let found = found.ok_or_else(|| {
        let message = format!("There is no cluster {id} in this account and Region.");
        Fault::client("CloudHsmClusterNotFoundException", message)
    })?;
    match found.state.state {
        "ACTIVE" => Ok(found),
        state => Err(not_active(id, state)),
    }
}

fn not_active(id: &str, state: &str) -> Fault {
    let message = format!("Cluster {id} is {state}, not ACTIVE.");
    Fault::client("CloudHsmClusterNotActiveException", message)
}

/// Whether a store's cluster shares its backups with this one.
fn related(world: &World, store: &Store, cluster: &Cluster) -> bool {
    world.cluster_of(store).is_some_and(|other| other.lineage == cluster.lineage)
}

/// UpdateCustomKeyStore.
pub fn update(world: &mut World, call: &Call) -> Outcome {
    let new = call.text("NewCustomKeyStoreName", 1..=256)?;
    let password = call.text("KeyStorePassword", 7..=32)?;
    let cluster = cluster_id(call)?;
    let proxied = call.body.keys().any(|name| name.starts_with("XksProxy"));
    let store = find(world, call)?;
    if (password.is_some() || cluster.is_some() || proxied)
        && store.connection != Connection::Disconnected
    {
        return Err(wrong_state(store));
    }
    let id = store.id.clone();
    let taken = |store: &Store| store.id != id && Some(store.name.as_str()) == new;
    if world.stores.values().any(taken) {
        let message = "Another custom key store has this name.";
        return Err(Fault::client("CustomKeyStoreNameInUseException", message));
    }
    if let Some(cluster) = cluster {
        check_move(world, &world.stores[&id], cluster)?;
    }
    let store = world.stores.get_mut(&id).unwrap();
    if (store.kind == Origin::CloudHsm && proxied)
        || (store.kind != Origin::CloudHsm && (password.is_some() || cluster.is_some()))
    {
        return Err(Fault::validation("This does not go with the type of the store."));
    }
    if let Some(name) = new {
        store.name = name.to_owned();
    }
    if let Some(password) = password {
        store.password = Some(password.to_owned());
        store.given = store.password.clone();
    }
    if let Some(cluster) = cluster {
        store.cluster = Some(cluster.to_owned());
    }
    Ok(json!({}))
}

fn check_move(world: &World, store: &Store, cluster: &str) -> Result<(), Fault> {
    let found = usable_cluster(world, cluster)?;
    // A deleted cluster is remembered, so its backups' other clusters can take its place.
    if !related(world, store, found) {
        let message = "The cluster does not share its backups with the store's present one.";
        return Err(Fault::client("CloudHsmClusterNotRelatedException", message));
    }
    if found.zones() < 2 { Err(too_few()) } else { Ok(()) }
}

/// DeleteCustomKeyStore.
pub fn delete(world: &mut World, call: &Call) -> Outcome {
    let store = find(world, call)?;
    if store.connection != Connection::Disconnected {
        return Err(wrong_state(store));
    }
    let id = store.id.clone();
    if world.keys.values().any(|key| key.store.as_ref() == Some(&id)) {
        let message = format!("Custom key store {id} still has keys.");
        return Err(Fault::client("CustomKeyStoreHasCMKsException", message));
    }
    world.stores.remove(&id);
    Ok(json!({}))
}

/// ConnectCustomKeyStore: answers at once; the store gets there later.
pub fn connect(world: &mut World, call: &Call) -> Outcome {
    let time = world.switches.connect;
    let id = find(world, call)?.id.clone();
    let store = &world.stores[&id];
    match store.connection {
        Connection::Connected | Connection::Disconnected => {}
        _ => return Err(wrong_state(store)),
    }
    if let Some(cluster) = world.cluster_of(store).filter(|cluster| !cluster.deleted())
        && cluster.state.state != "ACTIVE"
    {
        return Err(not_active(&cluster.id, cluster.state.state));
    }
    let gone = world.cluster_of(store).is_some_and(Cluster::deleted);
    if store.kind == Origin::CloudHsm && world.hsms_of(store).0 == 0 && !gone {
        let message = "The cluster has no active HSM.";
        return Err(Fault::client("CloudHsmClusterInvalidConfigurationException", message));
    }
    if store.connection == Connection::Disconnected {
        go(world, &id, Connection::Connecting, Connection::Connected, Instant::now() + time);
    }
    Ok(json!({}))
}

/// DisconnectCustomKeyStore: all its keys are unavailable from now on.
pub fn disconnect(world: &mut World, call: &Call) -> Outcome {
    let time = world.switches.connect;
    let store = find(world, call)?;
    match store.connection {
        Connection::Disconnected | Connection::Disconnecting => return Err(wrong_state(store)),
        _ => {}
    }
    let id = store.id.clone();
    go(world, &id, Connection::Disconnecting, Connection::Disconnected, Instant::now() + time);
    Ok(json!({}))
}

fn go(world: &mut World, id: &str, through: Connection, end: Connection, when: Instant) {
    let store = world.stores.get_mut(id).unwrap();
    store.connection = through;
    store.error = None;
    store.moving = Some((end, when));
    settle(world, id);
}

/// Lets a change of state that is due happen.
pub fn settle(world: &mut World, id: &str) {
    let store = &world.stores[id];
    let Some((to, when)) = store.moving else { return };
    if Instant::now() < when {
        return;
    }
    let error = match to {
        Connection::Connected => store.next_error.clone().or_else(|| obstacle(world, store)),
        _ => None,
    };
    let store = world.stores.get_mut(id).unwrap();
    store.moving = None;
    store.connection = if error.is_some() { Connection::Failed } else { to };
    store.error = error;
    if store.connection == Connection::Connected {
        take_over(world, id);
    }
}

/// What is in the way of a connection.
fn obstacle(world: &World, store: &Store) -> Option<String> {
    let password = store.password.as_ref()?;
    let code = match world.cluster_of(store).filter(|cluster| !cluster.deleted()) {
        None => "CLUSTER_NOT_FOUND",
        Some(cluster) if cluster.active() == 0 => "INSUFFICIENT_CLOUDHSM_HSMS",
        Some(cluster) => match cluster.users.get(KMS_USER) {
            None => "USER_NOT_FOUND",
            Some(user) if user.role != "crypto-user" => "USER_NOT_FOUND",
            Some(user) if user.locked => "USER_LOCKED_OUT",
            Some(user) if user.password != *password => "INVALID_CREDENTIALS",
            Some(_) => return None,
        },
    };
    Some(code.to_owned())
}

/// KMS gives its user a password that nobody else knows.
fn take_over(world: &mut World, id: &str) {
    let secret = data_encoding::HEXLOWER.encode(&random::<16>());
    let store = world.stores.get_mut(id).unwrap();
    let Some(cluster) = store.cluster.as_ref().and_then(|id| world.clusters.get_mut(id)) else {
        return;
    };
    if let (Some(user), Some(_)) = (cluster.users.get_mut(KMS_USER), &store.password) {
        user.password = secret.clone();
        store.password = Some(secret);
    }
}
