//! The operations on keys, aliases, tags and policies.

use std::time::Instant;

use serde_json::{Value, json};

use super::api::{Call, Fault, Outcome, now};
use super::world::{Alias, Connection, Key, Material, Origin, World};

/// How many tags a key may have.
const TAGS_MAX: usize = 50;
const DAY: f64 = 86_400.0;

fn key<'a>(world: &'a mut World, call: &Call) -> Result<&'a mut Key, Fault> {
    let id = world.resolve_plain(call.key("KeyId")?)?;
    world.keys.get_mut(&id).ok_or_else(|| Fault::server(500, "KMSInternalException"))
}

/// The key, unless it is to be deleted.
fn living<'a>(world: &'a mut World, call: &Call) -> Result<&'a mut Key, Fault> {
    let key = key(world, call)?;
    match key.deletion {
        None => Ok(key),
        Some(_) => Err(doomed(key)),
    }
}

fn doomed(key: &Key) -> Fault {
    Fault::client("KMSInvalidStateException", format!("{} is pending deletion.", key.arn))
}

/// CreateKey.
pub fn create_key(world: &mut World, call: &Call) -> Outcome {
    for name in ["KeySpec", "CustomerMasterKeySpec"] {
        if call.text(name, 1..=64)?.is_some_and(|spec| spec != "SYMMETRIC_DEFAULT") {
            let message = "The fake has symmetric encryption keys only.";
            return Err(Fault::client("UnsupportedOperationException", message));
        }
    }
    call.word("KeyUsage", &["ENCRYPT_DECRYPT"])?;
    let names = Origin::NAMES.map(|(name, _)| name);
    let origin = call.word("Origin", &names)?.unwrap_or("AWS_KMS");
    let origin = Origin::parse(origin).unwrap_or(Origin::Kms);
    let multi_region = call.flag("MultiRegion")?;
    let store = store_for(world, call, origin, multi_region)?;
    let description = call.text("Description", 0..=8192)?.unwrap_or_default();
    let policy = call.text("Policy", 1..=131_072)?;
    if let Some(policy) = policy {
        check_policy(world, call, policy)?;
    }
    let tags = tags(call)?;
    let id = world.add_key(origin, store, multi_region);
    if let Some(key) = world.keys.get_mut(&id) {
        key.description = description.to_owned();
        key.tags.extend(tags);
        if let Some(policy) = policy {
            key.policy = policy.to_owned();
        }
    }
    Ok(json!({ "KeyMetadata": world.metadata(&world.keys[&id]) }))
}

fn store_for(
    world: &World,
    call: &Call,
    origin: Origin,
    multi_region: bool,
) -> Result<Option<String>, Fault> {
    let id = call.text("CustomKeyStoreId", 1..=64)?;
    if !origin.in_store() {
        return match id {
            None => Ok(None),
            Some(_) => Err(Fault::validation("This origin takes no CustomKeyStoreId.")),
        };
    }
    let id = id.ok_or_else(|| Fault::validation("This origin needs a CustomKeyStoreId."))?;
    let store = world.stores.get(id).ok_or_else(|| super::stores::not_found(id))?;
    if store.kind != origin || multi_region {
        let message = "Keys in custom key stores have the store's origin and one Region.";
        return Err(Fault::client("UnsupportedOperationException", message));
    }
    if store.connection != Connection::Connected {
        return Err(super::stores::wrong_state(store));
    }
    if origin == Origin::CloudHsm && world.hsms_of(store).1 < 2 {
        return Err(super::stores::too_few());
    }
    if origin == Origin::ExternalStore && call.text("XksKeyId", 1..=128)?.is_none() {
        return Err(Fault::validation("This origin needs an XksKeyId."));
    }
    Ok(Some(id.to_owned()))
}

/// DescribeKey.
pub fn describe_key(world: &mut World, call: &Call) -> Outcome {
    let id = world.resolve(call.key("KeyId")?)?;
    Ok(json!({ "KeyMetadata": world.metadata(&world.keys[&id]) }))
}

/// GetKeyLastUsage.
pub fn last_usage(world: &mut World, call: &Call) -> Outcome {
    let key = key(world, call)?;
    let mut usage = json!({});
    if let Some((operation, time, request)) = &key.last_use {
        usage = json!({
            "Operation": operation, "Timestamp": time, "KmsRequestId": request,
            "CloudTrailEventId": request,
        });
    }
    Ok(json!({
        "KeyId": key.arn, "KeyLastUsage": usage, "TrackingStartDate": key.created,
        "KeyCreationDate": key.created,
    }))
}

/// ListKeys.
pub fn list_keys(world: &mut World, call: &Call) -> Outcome {
    let seen = world.keys.values().filter(|key| key.visible <= Instant::now());
    let keys = seen.map(|key| json!({ "KeyId": key.id, "KeyArn": key.arn })).collect();
    call.page("Keys", keys, 100)
}

/// EnableKey and DisableKey.
pub fn enable(world: &mut World, call: &Call, enabled: bool) -> Outcome {
    living(world, call)?.disabled = !enabled;
    Ok(Value::Null)
}

/// UpdateKeyDescription.
pub fn describe_anew(world: &mut World, call: &Call) -> Outcome {
    let text = call.need("Description", 0..=8192)?;
    living(world, call)?.description = text.to_owned();
    Ok(Value::Null)
}

/// ScheduleKeyDeletion.
pub fn schedule_deletion(world: &mut World, call: &Call) -> Outcome {
    // The model allows 1 to 365; the service does not.
    let days = call.number("PendingWindowInDays", 7..=30)?.unwrap_or(30);
    let key = living(world, call)?;
    let date = now() + days as f64 * DAY;
    key.deletion = Some((date, days));
    Ok(json!({
        "KeyId": key.arn, "DeletionDate": date, "KeyState": "PendingDeletion",
        "PendingWindowInDays": days,
    }))
}

/// CancelKeyDeletion: the key is disabled then.
pub fn cancel_deletion(world: &mut World, call: &Call) -> Outcome {
    let key = key(world, call)?;
    if key.deletion.take().is_none() {
        let message = format!("{} is not pending deletion.", key.arn);
        return Err(Fault::client("KMSInvalidStateException", message));
    }
    key.disabled = true;
    Ok(json!({ "KeyId": key.arn }))
}

fn alias_name<'a>(call: &Call<'a>) -> Result<&'a str, Fault> {
    let name = call.need("AliasName", 1..=256)?;
    let legal = |b: u8| b.is_ascii_alphanumeric() || b":/_-".contains(&b);
    if !name.starts_with("alias/") || name == "alias/" {
        return Err(Fault::validation("Invalid identifier"));
    }
    if name.starts_with("alias/aws/") {
        return Err(Fault::client("NotAuthorizedException", ""));
    }
    if !name.bytes().all(legal) || name.contains(':') {
        let message = format!("{name} contains invalid characters for an alias");
        return Err(Fault::validation(message));
    }
    Ok(name)
}

/// CreateAlias.
pub fn create_alias(world: &mut World, call: &Call) -> Outcome {
    let name = alias_name(call)?;
    let target = alias_target(world, call)?;
    if world.aliases.contains_key(name) {
        let message = format!("An alias with the name {} already exists", world.arn(name));
        return Err(Fault::client("AlreadyExistsException", message));
    }
    world.add_alias(name, &target);
    Ok(Value::Null)
}

fn alias_target(world: &World, call: &Call) -> Result<String, Fault> {
    let name = call.key("TargetKeyId")?;
    if name.contains("alias/") {
        return Err(Fault::validation("Aliases must refer to keys. Not aliases"));
    }
    let id = world.resolve(name)?;
    match world.keys[&id].deletion {
        None => Ok(id),
        Some(_) => Err(doomed(&world.keys[&id])),
    }
}

impl World {
    /// Adds an alias, or points it elsewhere at once.
    pub fn add_alias(&mut self, name: &str, target: &str) {
        let visible = Instant::now() + self.switches.consistency;
        let time = now();
        let alias = Alias { target: target.to_owned(), created: time, updated: time, visible };
        self.aliases.insert(name.to_owned(), alias);
    }
}

fn no_alias(world: &World, name: &str) -> Fault {
    Fault::client("NotFoundException", format!("Alias {} is not found.", world.arn(name)))
}

/// UpdateAlias.
pub fn update_alias(world: &mut World, call: &Call) -> Outcome {
    let name = alias_name(call)?;
    let target = alias_target(world, call)?;
    let fault = no_alias(world, name);
    let alias = world.aliases.get_mut(name).ok_or(fault)?;
    alias.target = target;
    alias.updated = now();
    Ok(Value::Null)
}

/// DeleteAlias.
pub fn delete_alias(world: &mut World, call: &Call) -> Outcome {
    let name = alias_name(call)?;
    let gone = world.aliases.remove(name);
    gone.map(|_| Value::Null).ok_or_else(|| no_alias(world, name))
}

/// ListAliases.
pub fn list_aliases(world: &mut World, call: &Call) -> Outcome {
    let key = match call.text("KeyId", 1..=2048)? {
        Some(name) => Some(world.resolve_plain(name)?),
        None => None,
    };
    let seen = world.aliases.iter().filter(|(_, alias)| {
        alias.visible <= Instant::now() && key.as_ref().is_none_or(|id| alias.target == *id)
    });
    let show = |(name, alias): (&String, &Alias)| {
        json!({
            "AliasName": name, "AliasArn": world.arn(name), "TargetKeyId": alias.target,
            "CreationDate": alias.created, "LastUpdatedDate": alias.updated,
        })
    };
    call.page("Aliases", seen.map(show).collect(), 50)
}

fn policy_name(call: &Call) -> Result<(), Fault> {
    match call.text("PolicyName", 1..=128)? {
        None | Some("default") => Ok(()),
        Some(_) => Err(Fault::client("NotFoundException", "No such policy exists")),
    }
}

/// GetKeyPolicy.
pub fn get_policy(world: &mut World, call: &Call) -> Outcome {
    policy_name(call)?;
    let key = key(world, call)?;
    Ok(json!({ "Policy": key.policy, "PolicyName": "default" }))
}

/// ListKeyPolicies.
pub fn list_policies(world: &mut World, call: &Call) -> Outcome {
    key(world, call)?;
    call.page("PolicyNames", vec![json!("default")], 100)
}

/// PutKeyPolicy.
pub fn put_policy(world: &mut World, call: &Call) -> Outcome {
    policy_name(call)?;
    let policy = call.need("Policy", 1..=131_072)?;
    check_policy(world, call, policy)?;
    living(world, call)?.policy = policy.to_owned();
    Ok(Value::Null)
}

/// A policy must be one, and must let the caller change it again.
fn check_policy(world: &World, call: &Call, policy: &str) -> Result<(), Fault> {
    let bad = |text: &str| Fault::client("MalformedPolicyDocumentException", text);
    let parsed: Value = serde_json::from_str(policy)
        .map_err(|_| bad("The new key policy contains invalid JSON."))?;
    let statements = match &parsed["Statement"] {
        Value::Array(list) => list.clone(),
        one @ Value::Object(_) => vec![one.clone()],
        _ => return Err(bad("The new key policy has no statement.")),
    };
    if call.flag("BypassPolicyLockoutSafetyCheck")? {
        return Ok(());
    }
    let root = format!("arn:aws:iam::{}:root", world.account);
    let caller = call.who.arn(&world.account);
    let has = |value: &Value, words: &[&str]| match value {
        Value::String(word) => words.contains(&word.as_str()),
        Value::Array(list) => list.iter().any(|w| w.as_str().is_some_and(|w| words.contains(&w))),
        _ => false,
    };
    let kept = statements.iter().any(|statement| {
        let who = match &statement["Principal"] {
            Value::Object(kinds) => kinds.get("AWS").unwrap_or(&Value::Null),
            other => other,
        };
        statement["Effect"] == "Allow"
            && has(who, &["*", &root, &caller, &world.account])
            && has(&statement["Action"], &["*", "kms:*", "kms:Put*", "kms:PutKeyPolicy"])
            && has(&statement["Resource"], &["*"])
    });
    match kept {
        true => Ok(()),
        false => Err(bad(
            "The new key policy will not allow you to update the key policy in the future.",
        )),
    }
}

fn tags(call: &Call) -> Result<Vec<(String, String)>, Fault> {
    let mut tags = Vec::new();
    for tag in call.list("Tags")? {
        let name = tag["TagKey"].as_str().unwrap_or_default();
        let value = tag["TagValue"].as_str().unwrap_or_default();
        if name.is_empty() || name.chars().count() > 128 || value.chars().count() > 256 {
            return Err(Fault::validation("A tag key has 1 to 128 characters, a value up to 256."));
        }
        if name.starts_with("aws:") || tags.iter().any(|(have, _)| have == name) {
            return Err(Fault::client("TagException", format!("The tag {name} is not possible.")));
        }
        tags.push((name.to_owned(), value.to_owned()));
    }
    Ok(tags)
}

/// TagResource.
pub fn tag(world: &mut World, call: &Call) -> Outcome {
    let tags = tags(call)?;
    let key = living(world, call)?;
    let mut all = key.tags.clone();
    all.extend(tags);
    if all.len() > TAGS_MAX {
        return Err(Fault::client("LimitExceededException", "Too many tags."));
    }
    key.tags = all;
    Ok(Value::Null)
}

/// UntagResource.
pub fn untag(world: &mut World, call: &Call) -> Outcome {
    let names = call.list("TagKeys")?;
    let key = living(world, call)?;
    key.tags.retain(|name, _| !names.iter().any(|gone| gone == name));
    Ok(Value::Null)
}

/// ListResourceTags.
pub fn list_tags(world: &mut World, call: &Call) -> Outcome {
    let key = key(world, call)?;
    let tags = key.tags.iter().map(|(k, v)| json!({ "TagKey": k, "TagValue": v })).collect();
    call.page("Tags", tags, 50)
}

/// How often a key may be rotated on demand.
const ON_DEMAND_MAX: usize = 25;

/// A key that can be rotated: KMS made it, and it is in use.
fn rotatable<'a>(world: &'a mut World, call: &Call) -> Result<&'a mut Key, Fault> {
    let id = key(world, call)?.id.clone();
    let key = &world.keys[&id];
    if key.origin != Origin::Kms {
        let (arn, origin) = (&key.arn, key.origin.name());
        return Err(Fault::client(
            "UnsupportedOperationException",
            format!("{arn} origin is {origin} which is not valid for this operation."),
        ));
    }
    if !matches!(call.operation, "GetKeyRotationStatus" | "ListKeyRotations") {
        world.usable(&id)?;
    }
    key_mut(world, &id)
}

fn key_mut<'a>(world: &'a mut World, id: &str) -> Result<&'a mut Key, Fault> {
    world.keys.get_mut(id).ok_or_else(|| Fault::server(500, "KMSInternalException"))
}

/// EnableKeyRotation and DisableKeyRotation.
pub fn rotate_yearly(world: &mut World, call: &Call, on: bool) -> Outcome {
    let days = call.number("RotationPeriodInDays", 90..=2560)?;
    let key = rotatable(world, call)?;
    key.rotation = on.then(|| days.unwrap_or(365));
    Ok(Value::Null)
}

/// GetKeyRotationStatus.
pub fn rotation_status(world: &mut World, call: &Call) -> Outcome {
    let key = rotatable(world, call)?;
    let mut answer = json!({ "KeyRotationEnabled": key.rotation.is_some(), "KeyId": key.arn });
    if let (Some(days), Some(last)) = (key.rotation, key.materials.last()) {
        answer["RotationPeriodInDays"] = json!(days);
        answer["NextRotationDate"] = json!(last.since + days as f64 * DAY);
    }
    Ok(answer)
}

/// RotateKeyOnDemand: here at once.
pub fn rotate_now(world: &mut World, call: &Call) -> Outcome {
    let key = rotatable(world, call)?;
    let done = key.materials.iter().filter(|m| m.rotation == Some("ON_DEMAND")).count();
    if done >= ON_DEMAND_MAX {
        return Err(Fault::client("LimitExceededException", "Too many rotations on demand."));
    }
    key.materials.push(Material::new(Some("ON_DEMAND")));
    Ok(json!({ "KeyId": key.arn }))
}

/// ListKeyRotations.
pub fn list_rotations(world: &mut World, call: &Call) -> Outcome {
    let all = call.word("IncludeKeyMaterial", &["ALL_KEY_MATERIAL", "ROTATIONS_ONLY"])?
        == Some("ALL_KEY_MATERIAL");
    let key = rotatable(world, call)?;
    let last = key.materials.len() - 1;
    let show = |(number, material): (usize, &Material)| {
        let state = if number == last { "CURRENT" } else { "NON_CURRENT" };
        let mut value = json!({
            "KeyId": key.arn, "KeyMaterialId": material.id, "KeyMaterialState": state,
        });
        if let Some(kind) = material.rotation {
            value["RotationDate"] = json!(material.since);
            value["RotationType"] = json!(kind);
        }
        (all || material.rotation.is_some()).then_some(value)
    };
    let list = key.materials.iter().enumerate().filter_map(show).collect();
    call.page("Rotations", list, 100)
}
