//! The switches as JSON: what `POST /_control` does and `GET /_control` shows.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::faults::{Effect, Rule};
use super::http::{Request, Response};
use super::pki::Spoil;
use super::principals::Principal;
use super::server::{Shared, plain};
use super::world::{Connection, Material, Origin, World};
use super::{blob, lab, pki};

/// How many calls `GET /_control` shows; `GET /_control/log` shows all it has.
const LOG_SHORT: usize = 20;

/// Answers a control request; also for how long connections are to be refused.
pub fn serve(shared: &Shared, request: &Request) -> (Response, Option<Duration>) {
    let mut world = shared.world.lock();
    world.settle();
    if request.method == "GET" {
        let value = match request.target.as_str() {
            "/_control/roots" => {
                let (aws, manufacturer) = pki::roots();
                json!({ "aws": aws, "manufacturer": manufacturer })
            }
            "/_control/log" => world.counters.log_json(usize::MAX),
            _ => show(&world),
        };
        return (plain(200, &value), None);
    }
    let parsed: Result<Map<String, Value>, _> = serde_json::from_slice(&request.body);
    let done = match parsed {
        Ok(members) => {
            let refuse = members.get("refuse_ms").and_then(Value::as_u64);
            apply(&mut world, &members).map(|value| (value, refuse.map(Duration::from_millis)))
        }
        Err(error) => Err(error.to_string()),
    };
    match done {
        Ok((value, refuse)) => (plain(200, &value), refuse),
        Err(error) => (plain(400, &json!({ "error": error })), None),
    }
}

/// Everything there is to see.
pub fn show(world: &World) -> Value {
    let keys: Vec<Value> = world.keys.values().map(|key| world.metadata(key)).collect();
    let aliases: Map<String, Value> =
        world.aliases.iter().map(|(name, alias)| (name.clone(), json!(alias.target))).collect();
    let stores: Vec<Value> = world
        .stores
        .values()
        .map(|store| {
            json!({
                "id": store.id, "name": store.name, "type": store.kind.name(),
                "state": store.connection.name(), "error": store.error,
                "next_error": store.next_error, "communicates": store.reachable,
                "hsms": world.hsms_of(store).0, "cluster": store.cluster,
            })
        })
        .collect();
    let principals: Vec<Value> = world.principals.values().map(Principal::to_json).collect();
    json!({
        "region": world.region, "account": world.account, "switches": world.switches.to_json(),
        "faults": world.rules.to_json(), "keys": keys, "aliases": aliases, "stores": stores,
        "clusters": lab::show(world), "subnets": world.subnets, "grants": world.grants.len(),
        "credentials": principals, "counters": world.counters.to_json(),
        "log": world.counters.log_json(LOG_SHORT),
    })
}

/// Turns switches. Each member is one; what makes something answers its name or number.
pub fn apply(world: &mut World, members: &Map<String, Value>) -> Result<Value, String> {
    let mut answer = json!({ "ok": true });
    for (name, value) in members {
        let made = if set(world, name, value).ok_or_else(|| format!("bad value of {name}"))? {
            Value::Null
        } else {
            make(world, name, value)?
        };
        if !made.is_null() {
            answer[name] = made;
        }
    }
    Ok(answer)
}

/// Plain switches; false for other members, nothing for a value that does not fit.
fn set(world: &mut World, name: &str, value: &Value) -> Option<bool> {
    let millis = || value.as_u64().map(Duration::from_millis);
    let switches = &mut world.switches;
    match name {
        "latency_ms" => switches.latency = millis()?,
        "consistency_ms" => switches.consistency = millis()?,
        "connect_ms" => switches.connect = millis()?,
        "cluster_ms" => switches.cluster = millis()?,
        "hsm_ms" => switches.hsm = millis()?,
        "clusters_lag" => world.lag_clusters(value.as_bool()?),
        "stores_max" => switches.stores_max = value.as_u64()? as usize,
        "clusters_max" => switches.clusters_max = value.as_u64()? as usize,
        "hsms_max" => switches.hsms_max = value.as_u64()? as usize,
        "spoil" => switches.spoil = spoil(value)?,
        "clock_s" => switches.clock = value.as_i64()?,
        "quota_units" => {
            switches.quota = if value.is_null() { None } else { Some(value.as_f64()?) }
        }
        "strict_context" => switches.strict_context = value.as_bool()?,
        "blob_len" => {
            let len = usize::try_from(value.as_u64()?).ok()?;
            switches.blob_len = len.clamp(blob::smallest(), blob::BLOB_MAX);
        }
        "expired" => switches.expired = value.as_bool()?,
        "signatures" => switches.signatures = value.as_bool()?,
        "throttle" | "internal" | "unavailable" | "hang" | "reset" => {
            world.rules.remove_named(name);
            if value.as_bool()? {
                world.rules.add(Rule::from_json(&json!({ "effect": name }))?);
            }
        }
        "reset_counters" => world.counters.reset(),
        "refuse_ms" => drop(value.as_u64()?),
        _ => return Some(false),
    }
    Some(true)
}

/// Something wrong with certificates, or null.
fn spoil(value: &Value) -> Option<Option<Spoil>> {
    if value.is_null() { Some(None) } else { Some(Some(Spoil::parse(value.as_str()?)?)) }
}

fn make(world: &mut World, name: &str, value: &Value) -> Result<Value, String> {
    let bad = || format!("bad value of {name}");
    match name {
        "fault" => Ok(json!(world.rules.add(Rule::from_json(value).ok_or_else(bad)?))),
        "deny" => {
            let rule = Rule::new(Effect::Deny).on(value.as_str().ok_or_else(bad)?);
            Ok(json!(world.rules.add(rule)))
        }
        "clear" => {
            match value {
                Value::Number(number) => world.rules.remove(number.as_u64().ok_or_else(bad)?),
                Value::String(name) => world.rules.remove_named(name),
                _ => world.rules.clear(),
            }
            Ok(Value::Null)
        }
        "credential" => {
            let who = Principal::from_json(value).ok_or_else(bad)?;
            world.principals.insert(who.access_key.clone(), who);
            Ok(Value::Null)
        }
        "key" => world.change_key(value).map(|()| Value::Null),
        "store" => world.change_store(value).map(|()| Value::Null),
        "create_store" => {
            let kind = value["type"].as_str().map_or(Some(Origin::CloudHsm), Origin::parse);
            let name = value["name"].as_str().unwrap_or("fake-store");
            let kind = kind.filter(|kind| kind.in_store()).ok_or_else(bad)?;
            Ok(json!(world.add_store(name, kind)))
        }
        "create_key" => {
            let origin = value["origin"].as_str().map_or(Some(Origin::Kms), Origin::parse);
            let origin = origin.ok_or_else(bad)?;
            let store = value["store"].as_str().map(str::to_owned);
            let store = match (origin.in_store(), store) {
                (true, None) => Some(world.some_store(origin)),
                (_, store) => store,
            };
            let id = world.add_key(origin, store, value["multi_region"].as_bool().unwrap_or(false));
            Ok(json!(world.keys[&id].arn))
        }
        _ => lab::make(world, name, value),
    }
}

impl World {
    /// Lets all changes of state that are due happen.
    pub fn settle(&mut self) {
        self.clusters.values_mut().for_each(super::clusters::Cluster::settle);
        let ids: Vec<String> = self.stores.keys().cloned().collect();
        ids.iter().for_each(|id| super::stores::settle(self, id));
    }

    /// A store of this kind, made if there is none.
    pub fn some_store(&mut self, kind: Origin) -> String {
        let found = self.stores.values().find(|store| store.kind == kind);
        match found.map(|store| store.id.clone()) {
            Some(id) => id,
            None => self.add_store("fake-store", kind),
        }
    }

    /// `{"id": ANY NAME OF A KEY, "state": …, "rotate": true, "forget": true, …}`.
    pub fn change_key(&mut self, value: &Value) -> Result<(), String> {
        let name = value["id"].as_str().ok_or("a key needs an id")?;
        let local = name.rsplit_once(":key/").map_or(name, |(_, id)| id);
        let alias =
            local.rsplit_once(":alias/").map_or(local.to_owned(), |(_, a)| format!("alias/{a}"));
        let id = self.aliases.get(&alias).map_or(local.to_owned(), |alias| alias.target.clone());
        let key = self.keys.get_mut(&id).ok_or_else(|| format!("no key {name}"))?;
        match value["state"].as_str() {
            None => {}
            Some("Enabled") => (key.disabled, key.deletion) = (false, None),
            Some("Disabled") => (key.disabled, key.deletion) = (true, None),
            Some("PendingDeletion") => {
                key.deletion = Some((super::api::now() + 30.0 * 86_400.0, 30));
            }
            Some(other) => return Err(format!("no key state {other}")),
        }
        if value["rotate"] == true {
            key.materials.push(Material::new(Some("AUTOMATIC")));
        }
        if value["forget"] == true {
            self.keys.remove(&id);
            self.aliases.retain(|_, alias| alias.target != id);
        }
        Ok(())
    }

    /// `{"id": …, "state": …, "error": …, "next_error": …, "communicates": …, "hsms": …}`; without an
    /// id every store.
    pub fn change_store(&mut self, value: &Value) -> Result<(), String> {
        let wanted = value["id"].as_str();
        let mut found = false;
        for store in self.stores.values_mut() {
            if wanted.is_some_and(|id| id != store.id && id != store.name) {
                continue;
            }
            found = true;
            if let Some(state) = value["state"].as_str() {
                let state = Connection::parse(state).ok_or_else(|| format!("no state {state}"))?;
                (store.connection, store.moving, store.error) = (state, None, None);
            }
            let error = |name: &str| value[name].as_str().map(str::to_owned);
            if value.get("error").is_some() {
                store.error = error("error");
            }
            if value.get("next_error").is_some() {
                store.next_error = error("next_error");
            }
            if let Some(flag) = value["communicates"].as_bool() {
                store.reachable = flag;
            }
            if let Some(hsms) = value["hsms"].as_u64() {
                let known = store.cluster.as_ref().is_some_and(|id| self.clusters.contains_key(id));
                if known {
                    return Err("its cluster is there: delete or break its HSMs".to_owned());
                }
                store.hsms = hsms;
            }
        }
        if found { Ok(()) } else { Err("no such store".to_owned()) }
    }
}
