//! Custom key stores: what there is of their operations so far.

use std::time::Instant;

use serde_json::{Value, json};

use super::api::{Call, Fault, Outcome};
use super::world::{Connection, Origin, Store, World};

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
        value["TrustAnchorCertificate"] = json!("-----BEGIN CERTIFICATE-----\nfake\n");
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

/// ConnectCustomKeyStore: answers at once; the store gets there later.
pub fn connect(world: &mut World, call: &Call) -> Outcome {
    let time = world.switches.connect;
    let store = find(world, call)?;
    match store.connection {
        Connection::Connected | Connection::Disconnected => {}
        _ => return Err(wrong_state(store)),
    }
    if store.kind == Origin::CloudHsm && store.hsms == 0 {
        let message = "The cluster has no active HSM.";
        return Err(Fault::client("CloudHsmClusterInvalidConfigurationException", message));
    }
    if store.connection == Connection::Disconnected {
        let fails = store.next_error.is_some();
        let end = if fails { Connection::Failed } else { Connection::Connected };
        go(store, Connection::Connecting, end, Instant::now() + time);
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
    go(store, Connection::Disconnecting, Connection::Disconnected, Instant::now() + time);
    Ok(json!({}))
}

fn go(store: &mut Store, through: Connection, end: Connection, when: Instant) {
    store.connection = through;
    store.error = None;
    store.moving = Some((end, when));
    store.settle();
}
