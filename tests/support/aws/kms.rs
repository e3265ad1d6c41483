//! The operations of KMS by name.

use super::api::{Call, Fault, Outcome, now, uuid};
use super::crypt::{self, Subject};
use super::service::Service;
use super::world::World;
use super::{grants, manage, stores};

/// KMS.
pub const SERVICE: Service = Service { target: "TrentService", signing: "kms", subjects, run };

fn subjects(world: &World, call: &Call) -> Result<Vec<Subject>, Fault> {
    if crypt::is_mine(call.operation) {
        return crypt::subjects(world, call);
    }
    // What is wrong with a name is for the operation to say.
    let named = |name: &str| world.resolve(call.body.get(name)?.as_str()?).ok();
    let key = named("KeyId").or_else(|| named("TargetKeyId"));
    Ok(vec![Subject { action: call.operation.to_owned(), key, context: None }])
}

fn run(world: &mut World, call: &Call) -> Outcome {
    if crypt::is_mine(call.operation) {
        let answer = crypt::run(world, call)?;
        note_use(world, call);
        return Ok(answer);
    }
    match call.operation {
        "CreateKey" => manage::create_key(world, call),
        "DescribeKey" => manage::describe_key(world, call),
        "ListKeys" => manage::list_keys(world, call),
        "EnableKey" => manage::enable(world, call, true),
        "DisableKey" => manage::enable(world, call, false),
        "UpdateKeyDescription" => manage::describe_anew(world, call),
        "ScheduleKeyDeletion" => manage::schedule_deletion(world, call),
        "CancelKeyDeletion" => manage::cancel_deletion(world, call),
        "CreateAlias" => manage::create_alias(world, call),
        "UpdateAlias" => manage::update_alias(world, call),
        "DeleteAlias" => manage::delete_alias(world, call),
        "ListAliases" => manage::list_aliases(world, call),
        "GetKeyPolicy" => manage::get_policy(world, call),
        "PutKeyPolicy" => manage::put_policy(world, call),
        "ListKeyPolicies" => manage::list_policies(world, call),
        "TagResource" => manage::tag(world, call),
        "UntagResource" => manage::untag(world, call),
        "ListResourceTags" => manage::list_tags(world, call),
        "EnableKeyRotation" => manage::rotate_yearly(world, call, true),
        "DisableKeyRotation" => manage::rotate_yearly(world, call, false),
        "GetKeyRotationStatus" => manage::rotation_status(world, call),
        "RotateKeyOnDemand" => manage::rotate_now(world, call),
        "ListKeyRotations" => manage::list_rotations(world, call),
        "GetKeyLastUsage" => manage::last_usage(world, call),
        "CreateGrant" => grants::create(world, call),
        "ListGrants" => grants::list(world, call),
        "ListRetirableGrants" => grants::list_retirable(world, call),
        "RevokeGrant" => grants::revoke(world, call),
        "RetireGrant" => grants::retire(world, call),
        "CreateCustomKeyStore" => stores::create(world, call),
        "UpdateCustomKeyStore" => stores::update(world, call),
        "DeleteCustomKeyStore" => stores::delete(world, call),
        "DescribeCustomKeyStores" => stores::describe(world, call),
        "ConnectCustomKeyStore" => stores::connect(world, call),
        "DisconnectCustomKeyStore" => stores::disconnect(world, call),
        _ => Err(Fault::client("UnknownOperationException", "")),
    }
}

/// Remembers the use of the keys of a call that succeeded.
fn note_use(world: &mut World, call: &Call) {
    let subjects = crypt::subjects(world, call).unwrap_or_default();
    for id in subjects.into_iter().filter_map(|subject| subject.key) {
        if let Some(key) = world.keys.get_mut(&id) {
            key.last_use = Some((call.operation.to_owned(), now(), uuid()));
        }
    }
}
