//! The operations of KMS by name.

use super::api::{Call, Fault, Outcome};
use super::crypt::{self, Subject};
use super::service::Service;
use super::world::World;
use super::{manage, stores};

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
        return crypt::run(world, call);
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
        "DescribeCustomKeyStores" => stores::describe(world, call),
        "ConnectCustomKeyStore" => stores::connect(world, call),
        "DisconnectCustomKeyStore" => stores::disconnect(world, call),
        _ => Err(Fault::client("UnknownOperationException", "")),
    }
}
