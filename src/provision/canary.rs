//! Does a key do what a mount will ask of it? One data key is made, unwrapped, and refused elsewhere.
//!
//! Under a strict policy whoever makes keys may not use them. Then nothing is shown, and nothing is
//! wrong: a host that mounts has to try.

use super::Teller;
use super::account::{Account, Refused};
use super::settling::{settled, within};
use crate::crypto::wrap::Purpose;
use crate::crypto::{Secret, random_array};
use crate::format::{DataKeyId, VolumeId};
use crate::keys::WrapContext;
use crate::keys::aws::classify::Class;
use crate::keys::aws::{encryption_context, fault, secret};
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::DataKeySpec;
use std::time::Duration;

/// How long a refusal may be one that passes: a policy made with its key is known soon.
const DENIED_PATIENCE: Duration = Duration::from_secs(15);
const DENIED: &str = "AccessDeniedException";

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Canary {
    /// A key came back as it went, and only to its place.
    Passed,
    /// This caller may not use the key; why, and who has to try.
    NotAllowed(String),
}

/// Tries a key with the encryption context of a volume.
pub fn try_key(
    account: &Account,
    arn: &str,
    volume: VolumeId,
    teller: &dyn Teller,
) -> Result<Canary, Refused> {
    let purpose = || Purpose::Data(DataKeyId(random_array()));
    let (right, wrong) =
        (WrapContext { volume, purpose: purpose() }, WrapContext { volume, purpose: purpose() });
    let what = format!("a trial of KMS key {arn}");
    let generated = patiently(account, &what, teller, || generate(account, arn, &right))?;
    let (key, blob) = match generated {
        Ok(generated) => generated,
        Err(denied) => return Ok(not_allowed(&denied)),
    };
    let again = patiently(account, &what, teller, || decrypt(account, arn, &right, &blob))?;
    let again = match again {
        Ok(again) => again,
        Err(denied) => return Ok(not_allowed(&denied)),
    };
    verdict(arn, &key, &again, decrypt(account, arn, &wrong, &blob))
}

/// `elsewhere` is what came of unwrapping the key for another place.
fn verdict(
    arn: &str,
    key: &Secret<32>,
    again: &Secret<32>,
    elsewhere: Result<Secret<32>, Refused>,
) -> Result<Canary, Refused> {
    if key.expose() != again.expose() {
        return Err(impostor(arn, "what Decrypt gave is not what GenerateDataKey had made"));
    }
    match elsewhere {
        Ok(_) => Err(impostor(arn, "a key wrapped for one place was unwrapped in another")),
        Err(refused) if refused.class == Class::Tampered => Ok(Canary::Passed),
        // The policy stood before the key: what the key itself would have said was not seen.
        Err(denied) if denied.code == DENIED => Ok(not_allowed(&denied)),
        Err(refused) => Err(refused),
    }
}

fn not_allowed(denied: &Refused) -> Canary {
    Canary::NotAllowed(format!(
        "the key could not be tried, because this caller may not use it ({}); run `kmsfsctl doctor` \
         on a host that mounts the volume",
        denied.sentence
    ))
}

fn impostor(arn: &str, what: &str) -> Refused {
    let text =
        format!("KMS key {arn}: {what}; do not use this endpoint: is it KMS that answers there?");
    Refused::here(Class::Tampered, text)
}

/// Asks until a new key is known everywhere; the inner refusal is that this caller may not.
fn patiently<T>(
    account: &Account,
    what: &str,
    teller: &dyn Teller,
    mut ask: impl FnMut() -> Result<T, Refused>,
) -> Result<Result<T, Refused>, Refused> {
    let mut last: Option<Refused> = None;
    let mut look = || match ask() {
        Ok(there) => Ok(Ok(there)),
        Err(refused) if may_pass(&refused) => {
            let state = refused.code.clone();
            last = Some(refused);
            Ok(Err(if state.is_empty() { "without an answer".to_owned() } else { state }))
        }
        Err(refused) => Err(refused),
    };
    let short = DENIED_PATIENCE.min(account.pace.settling);
    let mut seen = within(short, what, teller, &mut look)?;
    if let Err(code) = &seen
        && code != DENIED
    {
        seen = settled(account, what, teller, &mut look)?;
    }
    match (seen, last) {
        (Ok(there), _) => Ok(Ok(there)),
        (Err(_), Some(denied)) if denied.code == DENIED => Ok(Err(denied)),
        (Err(_), Some(refused)) => Err(explained(refused)),
        (Err(state), None) => Err(Refused::here(Class::Unreachable, state)),
    }
}

/// Right after a key was made, much is refused that is not a minute later.
fn may_pass(refused: &Refused) -> bool {
    refused.class == Class::Denied
        || refused.class.is_passing() && refused.class != Class::Credentials
}

/// KMS's words for a cluster that does not answer are those of a key in the wrong state.
fn explained(refused: Refused) -> Refused {
    let silent = refused.code == "KMSInvalidStateException" && refused.class == Class::Transient;
    if !silent {
        return refused;
    }
    let sentence = format!(
        "{}; the key store is connected, and what is behind it does not answer: see that the cluster \
         has an active HSM, that its security group and subnets are as CloudHSM made them (or, for an \
         external key store, that the proxy runs), then run the same command again",
        refused.sentence
    );
    Refused { sentence, ..refused }
}

fn generate(
    account: &Account,
    arn: &str,
    context: &WrapContext,
) -> Result<(Secret<32>, Vec<u8>), Refused> {
    let (key, pairs) = (arn.to_owned(), encryption_context(context));
    let subject = format!("KMS key {arn}");
    // Once: how long it is tried, its caller says.
    let made = account.make("GenerateDataKey", &subject, move |clients| {
        let request = clients.kms.generate_data_key().key_id(&key).key_spec(DataKeySpec::Aes256);
        let request = request.set_encryption_context(Some(pairs.clone()));
        async move {
            let answer = request.send().await.map_err(|e| fault(&e))?;
            let blob = answer.ciphertext_blob.map(Blob::into_inner).unwrap_or_default();
            Ok((secret(answer.plaintext), blob))
        }
    })?;
    match made {
        (Some(secret), blob) => Ok((secret, blob)),
        (None, _) => Err(impostor(arn, "it gave a key that has not 32 bytes")),
    }
}

fn decrypt(
    account: &Account,
    arn: &str,
    context: &WrapContext,
    blob: &[u8],
) -> Result<Secret<32>, Refused> {
    let (key, pairs, blob) = (arn.to_owned(), encryption_context(context), blob.to_vec());
    let subject = format!("KMS key {arn}");
    let made = account.make("Decrypt", &subject, move |clients| {
        let request = clients.kms.decrypt().key_id(&key).ciphertext_blob(Blob::new(blob.clone()));
        let request = request.set_encryption_context(Some(pairs.clone()));
        async move {
            let answer = request.send().await.map_err(|e| fault(&e))?;
            Ok(secret(answer.plaintext))
        }
    })?;
    made.ok_or_else(|| impostor(arn, "it gave a key that has not 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARN: &str = "arn:aws:kms:us-east-1:111122223333:key/a";

    fn filled(byte: u8) -> Secret<32> {
        Secret::fill_with(|out| out.fill(byte))
    }

    fn refused(code: &str, class: Class) -> Refused {
        Refused { code: code.into(), ..Refused::here(class, "no") }
    }

    #[test]
    fn a_key_must_come_back_as_it_went_and_nowhere_else() {
        let tried = |again: u8, elsewhere| verdict(ARN, &filled(1), &filled(again), elsewhere);
        let tampered = refused("InvalidCiphertextException", Class::Tampered);
        assert_eq!(tried(1, Err(tampered)), Ok(Canary::Passed));
        // A denial is the policy's, and shows nothing of the key.
        let denied = tried(1, Err(refused(DENIED, Class::Denied)));
        assert!(matches!(denied, Ok(Canary::NotAllowed(_))));
        // Nothing was shown.
        let silence = refused("", Class::Unreachable);
        assert_eq!(tried(1, Err(silence.clone())), Err(silence));
        let no = || Err(refused("InvalidCiphertextException", Class::Tampered));
        for (again, elsewhere, words) in [
            (2, no(), "not what GenerateDataKey had made"),
            (1, Ok(filled(1)), "was unwrapped in another"),
        ] {
            let refused = tried(again, elsewhere).expect_err("it passed");
            assert!(refused.class == Class::Tampered && refused.sentence.contains(words));
        }
    }

    #[test]
    fn a_silent_cluster_is_told_from_a_disconnected_store() {
        let silent = explained(refused("KMSInvalidStateException", Class::Transient));
        assert!(silent.sentence.contains("active HSM"));
        let disconnected = refused("KMSInvalidStateException", Class::Revoked);
        assert_eq!(explained(disconnected.clone()), disconnected);
        assert!(may_pass(&silent) && !may_pass(&disconnected));
        assert!(!may_pass(&refused("ExpiredTokenException", Class::Credentials)));
    }
}
