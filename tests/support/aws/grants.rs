//! Grants: permissions that hang on a key, and what they allow.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use serde_json::{Value, json};

use super::api::{Call, Context, Fault, Outcome, now, random};
use super::world::World;

/// What a grant can be for.
const OPERATIONS: [&str; 19] = [
    "Decrypt",
    "Encrypt",
    "GenerateDataKey",
    "GenerateDataKeyWithoutPlaintext",
    "ReEncryptFrom",
    "ReEncryptTo",
    "Sign",
    "Verify",
    "GetPublicKey",
    "CreateGrant",
    "RetireGrant",
    "DescribeKey",
    "GenerateDataKeyPair",
    "GenerateDataKeyPairWithoutPlaintext",
    "GenerateMac",
    "VerifyMac",
    "DeriveSharedSecret",
    "Encapsulate",
    "Decapsulate",
];

/// A grant.
#[derive(Clone, Debug, PartialEq)]
pub struct Grant {
    /// Its id.
    pub id: String,
    /// What the grantee can show before everybody knows.
    pub token: String,
    /// Id of the key.
    pub key: String,
    /// Makes repeated requests one.
    pub name: Option<String>,
    /// ARN of who may.
    pub grantee: String,
    /// ARN of who may end it.
    pub retiring: Option<String>,
    /// What is allowed.
    pub operations: Vec<String>,
    /// `EncryptionContextSubset` or `EncryptionContextEquals`.
    pub constraints: Value,
    /// When it was made.
    pub created: f64,
}

impl Grant {
    fn show(&self, world: &World) -> Value {
        let mut value = json!({
            "KeyId": world.keys.get(&self.key).map(|key| key.arn.clone()), "GrantId": self.id,
            "CreationDate": self.created, "GranteePrincipal": self.grantee,
            "IssuingAccount": format!("arn:aws:iam::{}:root", world.account),
            "Operations": self.operations,
        });
        if let Some(name) = &self.name {
            value["Name"] = json!(name);
        }
        if let Some(retiring) = &self.retiring {
            value["RetiringPrincipal"] = json!(retiring);
        }
        if !self.constraints.is_null() {
            value["Constraints"] = self.constraints.clone();
        }
        value
    }

    fn covers(&self, context: Option<&Context>) -> bool {
        let pairs = |name: &str| -> Option<BTreeMap<&str, &str>> {
            let pairs = self.constraints[name].as_object()?;
            Some(pairs.iter().filter_map(|(k, v)| Some((k.as_str(), v.as_str()?))).collect())
        };
        let Some(context) = context else { return true };
        let has = |(name, value): (&&str, &&str)| context.get(*name).is_some_and(|v| v == *value);
        let subset = pairs("EncryptionContextSubset").is_none_or(|want| want.iter().all(has));
        let equal = pairs("EncryptionContextEquals")
            .is_none_or(|want| want.len() == context.len() && want.iter().all(has));
        subset && equal
    }

    fn same(&self, other: &Grant) -> bool {
        let blank = |grant: &Grant| Grant {
            id: String::new(),
            token: String::new(),
            created: 0.0,
            ..grant.clone()
        };
        blank(self) == blank(other)
    }
}

impl World {
    /// Whether a grant allows somebody this on a key.
    pub fn granted(&self, who: &str, key: &str, action: &str, context: Option<&Context>) -> bool {
        self.grants.values().any(|grant| {
            grant.key == key
                && grant.grantee == who
                && grant.operations.iter().any(|operation| operation == action)
                && grant.covers(context)
        })
    }
}

fn key(world: &World, call: &Call) -> Result<String, Fault> {
    world.resolve_plain(call.key("KeyId")?)
}

fn rehearse(call: &Call) -> Result<(), Fault> {
    match call.flag("DryRun")? {
        true => Err(Fault::client(
            "DryRunOperationException",
            "The request would have succeeded, but the DryRun option is set.",
        )),
        false => Ok(()),
    }
}

/// CreateGrant: with a name, a repeated request finds the grant of the first.
pub fn create(world: &mut World, call: &Call) -> Outcome {
    let id = key(world, call)?;
    match world.key_state(&world.keys[&id]) {
        "Disabled" => return Err(Fault::client("DisabledException", "The key is disabled.")),
        "PendingDeletion" => {
            let message = "The key is pending deletion.";
            return Err(Fault::client("KMSInvalidStateException", message));
        }
        _ => {}
    }
    let list = call.list("Operations")?;
    let operations: Vec<String> =
        list.iter().filter_map(|word| Some(word.as_str()?.to_owned())).collect();
    if operations.is_empty() || operations.iter().any(|word| !OPERATIONS.contains(&&**word)) {
        return Err(Fault::validation(
            "A grant is for some of the operations that can be granted.",
        ));
    }
    let grant = Grant {
        id: HEXLOWER.encode(&random::<32>()),
        token: HEXLOWER.encode(&random::<48>()),
        key: id,
        name: call.text("Name", 1..=256)?.map(str::to_owned),
        grantee: call.need("GranteePrincipal", 1..=256)?.to_owned(),
        retiring: call.text("RetiringPrincipal", 1..=256)?.map(str::to_owned),
        operations,
        constraints: call.body.get("Constraints").cloned().unwrap_or(Value::Null),
        created: now(),
    };
    if !grant.grantee.starts_with("arn:") {
        let message = format!("{} is not the ARN of a principal", grant.grantee);
        return Err(Fault::client("InvalidArnException", message));
    }
    rehearse(call)?;
    let before = world.grants.values().find(|old| grant.name.is_some() && old.same(&grant));
    let grant = before.cloned().unwrap_or(grant);
    let answer = json!({ "GrantId": grant.id, "GrantToken": grant.token });
    world.grants.insert(grant.id.clone(), grant);
    Ok(answer)
}

/// ListGrants.
pub fn list(world: &mut World, call: &Call) -> Outcome {
    let id = key(world, call)?;
    let grant = call.text("GrantId", 1..=128)?;
    let grantee = call.text("GranteePrincipal", 1..=256)?;
    let wanted = world.grants.values().filter(|have| {
        have.key == id
            && grant.is_none_or(|id| have.id == id)
            && grantee.is_none_or(|who| have.grantee == who)
    });
    call.page("Grants", wanted.map(|grant| grant.show(world)).collect(), 50)
}

/// ListRetirableGrants.
pub fn list_retirable(world: &mut World, call: &Call) -> Outcome {
    let who = call.need("RetiringPrincipal", 1..=256)?;
    let wanted = world.grants.values().filter(|grant| grant.retiring.as_deref() == Some(who));
    call.page("Grants", wanted.map(|grant| grant.show(world)).collect(), 50)
}

fn no_grant(id: &str) -> Fault {
    Fault::client("NotFoundException", format!("Grant {id} not found."))
}

/// RevokeGrant.
pub fn revoke(world: &mut World, call: &Call) -> Outcome {
    let key = key(world, call)?;
    let id = call.need("GrantId", 1..=128)?;
    if world.grants.get(id).is_none_or(|grant| grant.key != key) {
        return Err(no_grant(id));
    }
    rehearse(call)?;
    world.grants.remove(id);
    Ok(Value::Null)
}

/// RetireGrant: by token, or by key and id.
pub fn retire(world: &mut World, call: &Call) -> Outcome {
    let id = match (call.text("GrantToken", 1..=8192)?, call.text("GrantId", 1..=128)?) {
        (Some(token), None) => {
            let found = world.grants.values().find(|grant| grant.token == token);
            let missing = || Fault::client("InvalidGrantTokenException", "Invalid grant token.");
            found.ok_or_else(missing)?.id.clone()
        }
        (None, Some(id)) => {
            let key = key(world, call)?;
            let found = world.grants.get(id).filter(|grant| grant.key == key);
            found.ok_or_else(|| no_grant(id))?.id.clone()
        }
        _ => return Err(Fault::validation("Name the grant by its token, or by key and id.")),
    };
    rehearse(call)?;
    world.grants.remove(&id);
    Ok(Value::Null)
}
