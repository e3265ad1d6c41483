//! The cryptographic operations.

use data_encoding::BASE64;
use serde_json::{Value, json};

use super::api::{Call, Context, Fault, Outcome};
use super::blob::{self, BLOB_MAX};
use super::world::{Connection, Key, Origin, World};

/// The largest plaintext of Encrypt.
const PLAINTEXT_MAX: usize = 4096;

/// What a call is about, as far as policies are concerned.
pub struct Subject {
    /// The action that must be allowed.
    pub action: String,
    /// Id of the key.
    pub key: Option<String>,
    /// The encryption context, for calls that have one.
    pub context: Option<Context>,
}

/// Whether an operation is one of those here.
pub fn is_mine(operation: &str) -> bool {
    operation.starts_with("GenerateDataKey")
        || matches!(operation, "Encrypt" | "Decrypt" | "ReEncrypt" | "GenerateRandom")
}

/// Which keys a call is about.
pub fn subjects(world: &World, call: &Call) -> Result<Vec<Subject>, Fault> {
    let one = |action: &str, key, context| Subject { action: action.to_owned(), key, context };
    Ok(match call.operation {
        "GenerateRandom" => vec![one("GenerateRandom", None, None)],
        "Decrypt" => {
            let context = call.context("EncryptionContext")?;
            let (key, _) = source(world, call, "KeyId")?;
            vec![one("Decrypt", Some(key), Some(context))]
        }
        "ReEncrypt" => {
            let context = call.context("SourceEncryptionContext")?;
            let (key, _) = source(world, call, "SourceKeyId")?;
            let to = world.resolve(call.key("DestinationKeyId")?)?;
            let to_context = call.context("DestinationEncryptionContext")?;
            vec![
                one("ReEncryptFrom", Some(key), Some(context)),
                one("ReEncryptTo", Some(to), Some(to_context)),
            ]
        }
        operation => {
            let key = world.resolve(call.key("KeyId")?)?;
            vec![one(operation, Some(key), Some(call.context("EncryptionContext")?))]
        }
    })
}

/// The key of a ciphertext and the ciphertext, which a dry run may leave out.
fn source(world: &World, call: &Call, key: &str) -> Result<(String, Option<Vec<u8>>), Fault> {
    let named = match call.text(key, 1..=2048)? {
        Some(name) => Some(world.resolve(name)?),
        None => None,
    };
    let modifiers = call.list("DryRunModifiers")?;
    let ignore = modifiers.iter().any(|word| word == "IGNORE_CIPHERTEXT");
    if ignore && !call.flag("DryRun")? {
        return Err(Fault::validation("DryRunModifiers need DryRun."));
    }
    if ignore && call.bytes("CiphertextBlob", BLOB_MAX)?.is_none() {
        let message = format!("{key} is required when there is no ciphertext.");
        return Ok((named.ok_or_else(|| Fault::validation(message))?, None));
    }
    let blob = call.need_bytes("CiphertextBlob", BLOB_MAX)?;
    let head = blob::head(&world.service_key, &blob);
    match (named, head) {
        (_, None) => Err(invalid_ciphertext()),
        (Some(named), Some(head)) if named != head.key => Err(Fault::client(
            "IncorrectKeyException",
            "The key ID in the request does not identify a CMK that can perform this operation.",
        )),
        (_, Some(head)) if !world.keys.contains_key(&head.key) => Err(Fault::client(
            "AccessDeniedException",
            "The ciphertext refers to a customer master key that does not exist, does not exist in \
             this region, or you are not allowed to access.",
        )),
        (_, Some(head)) => Ok((head.key, Some(blob))),
    }
}

fn invalid_ciphertext() -> Fault {
    // The real service sends no text along either.
    Fault::client("InvalidCiphertextException", "")
}

/// Does the work of a call whose caller may have it.
pub fn run(world: &mut World, call: &Call) -> Outcome {
    if call.body.get("Recipient").is_some_and(|value| !value.is_null()) {
        return Err(Fault::client("UnsupportedOperationException", "The fake has no enclaves."));
    }
    match call.operation {
        "GenerateDataKey" => generate_data_key(world, call, true),
        "GenerateDataKeyWithoutPlaintext" => generate_data_key(world, call, false),
        "Encrypt" => encrypt(world, call),
        "Decrypt" => decrypt(world, call),
        "ReEncrypt" => re_encrypt(world, call),
        "GenerateRandom" => generate_random(world, call),
        _ => Err(Fault::client("UnknownOperationException", "")),
    }
}

fn not_dry(call: &Call) -> Result<(), Fault> {
    match call.flag("DryRun")? {
        false => Ok(()),
        true => Err(Fault::client(
            "DryRunOperationException",
            "The request would have succeeded, but the DryRun option is set.",
        )),
    }
}

fn seal(world: &World, key: &Key, plaintext: &[u8], context: &Context) -> String {
    let number = key.materials.len() - 1;
    let material = &key.materials[number].bytes;
    let head = (key.id.as_str(), number);
    let size = world.switches.blob_len;
    let blob = blob::seal(&world.service_key, head, material, (plaintext, context), size);
    BASE64.encode(&blob)
}

/// Opens a blob of `key`; also the id of the material, for keys that show it.
fn open(
    world: &World,
    key: &Key,
    blob: &[u8],
    context: &Context,
) -> Result<(Vec<u8>, Value), Fault> {
    let head = blob::head(&world.service_key, blob).ok_or_else(invalid_ciphertext)?;
    let material = key.materials.get(head.material).ok_or_else(invalid_ciphertext)?;
    let plaintext =
        blob::body(&head, &material.bytes, blob, context).ok_or_else(invalid_ciphertext)?;
    let id = if key.origin.in_store() { Value::Null } else { json!(material.id) };
    Ok((plaintext, id))
}

fn current(key: &Key) -> Value {
    match key.materials.last() {
        Some(material) if !key.origin.in_store() => json!(material.id),
        _ => Value::Null,
    }
}

/// Leaves out what is null, as the real service does.
fn answer(mut value: Value) -> Outcome {
    if let Some(members) = value.as_object_mut() {
        members.retain(|_, member| !member.is_null());
    }
    Ok(value)
}

fn generate_data_key(world: &World, call: &Call, plaintext: bool) -> Outcome {
    let spec = call.word("KeySpec", &["AES_256", "AES_128"])?;
    let len = match (spec, call.number("NumberOfBytes", 1..=1024)?) {
        (Some("AES_256"), None) => 32,
        (Some(_), None) => 16,
        (None, Some(len)) => len as usize,
        _ => {
            return Err(Fault::validation("Please specify either number of bytes or key spec."));
        }
    };
    let context = call.context("EncryptionContext")?;
    let key = world.usable(&world.resolve(call.key("KeyId")?)?)?;
    not_dry(call)?;
    let mut bytes = vec![0; len];
    getrandom::fill(&mut bytes).unwrap();
    world.given_out.lock().insert(context.clone(), bytes.clone());
    answer(json!({
        "CiphertextBlob": seal(world, key, &bytes, &context), "KeyId": key.arn,
        "Plaintext": plaintext.then(|| BASE64.encode(&bytes)), "KeyMaterialId": current(key),
    }))
}

fn encrypt(world: &World, call: &Call) -> Outcome {
    algorithm(call, "EncryptionAlgorithm")?;
    let context = call.context("EncryptionContext")?;
    let plaintext = call.need_bytes("Plaintext", PLAINTEXT_MAX)?;
    let key = world.usable(&world.resolve(call.key("KeyId")?)?)?;
    not_dry(call)?;
    answer(json!({
        "CiphertextBlob": seal(world, key, &plaintext, &context), "KeyId": key.arn,
        "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
    }))
}

fn decrypt(world: &World, call: &Call) -> Outcome {
    algorithm(call, "EncryptionAlgorithm")?;
    let context = call.context("EncryptionContext")?;
    let (id, blob) = source(world, call, "KeyId")?;
    let key = world.usable(&id)?;
    let Some(blob) = blob else { return not_dry(call).map(|()| Value::Null) };
    let (plaintext, material) = open(world, key, &blob, &context)?;
    not_dry(call)?;
    world.given_out.lock().insert(context, plaintext.clone());
    answer(json!({
        "KeyId": key.arn, "Plaintext": BASE64.encode(&plaintext), "KeyMaterialId": material,
        "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
    }))
}

fn re_encrypt(world: &World, call: &Call) -> Outcome {
    algorithm(call, "SourceEncryptionAlgorithm")?;
    algorithm(call, "DestinationEncryptionAlgorithm")?;
    let context = call.context("SourceEncryptionContext")?;
    let to_context = call.context("DestinationEncryptionContext")?;
    let (id, blob) = source(world, call, "SourceKeyId")?;
    let to = world.resolve(call.key("DestinationKeyId")?)?;
    let (from, to) = (world.usable(&id)?, world.usable(&to)?);
    let Some(blob) = blob else { return not_dry(call).map(|()| Value::Null) };
    let (plaintext, material) = open(world, from, &blob, &context)?;
    not_dry(call)?;
    answer(json!({
        "CiphertextBlob": seal(world, to, &plaintext, &to_context),
        "SourceKeyId": from.arn, "KeyId": to.arn, "SourceKeyMaterialId": material,
        "DestinationKeyMaterialId": current(to),
        "SourceEncryptionAlgorithm": "SYMMETRIC_DEFAULT",
        "DestinationEncryptionAlgorithm": "SYMMETRIC_DEFAULT",
    }))
}

fn algorithm(call: &Call, name: &str) -> Result<(), Fault> {
    let known = ["SYMMETRIC_DEFAULT", "RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256", "SM2PKE"];
    match call.word(name, &known)? {
        None | Some("SYMMETRIC_DEFAULT") => Ok(()),
        Some(other) => Err(Fault::client(
            "InvalidKeyUsageException",
            format!("Algorithm {other} is incompatible with key spec SYMMETRIC_DEFAULT."),
        )),
    }
}

fn generate_random(world: &World, call: &Call) -> Outcome {
    let len = call.number("NumberOfBytes", 1..=1024)?;
    let len = len.ok_or_else(|| Fault::validation("NumberOfBytes is required."))?;
    if let Some(id) = call.text("CustomKeyStoreId", 1..=64)? {
        let store = world.stores.get(id).ok_or_else(|| super::stores::not_found(id))?;
        if store.kind == Origin::ExternalStore {
            let message = "External key stores make no random bytes.";
            return Err(Fault::client("UnsupportedOperationException", message));
        }
        if store.connection != Connection::Connected {
            return Err(super::stores::wrong_state(store));
        }
    }
    let mut bytes = vec![0; len as usize];
    getrandom::fill(&mut bytes).unwrap();
    Ok(json!({ "Plaintext": BASE64.encode(&bytes) }))
}

/// Whether a context is one of kmsfs: the volume, the purpose, and with the purpose `data` the data
/// key; nothing else.
pub fn is_kmsfs_context(context: &Context) -> bool {
    let hex = |name: &str| {
        let value = context.get(name).map_or("", String::as_str);
        value.len() == 32 && value.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let purpose = context.get("kmsfs:purpose").map_or("", String::as_str);
    hex("kmsfs:volume")
        && match purpose {
            "volume" => context.len() == 2,
            "data" => context.len() == 3 && hex("kmsfs:data-key"),
            _ => false,
        }
}
