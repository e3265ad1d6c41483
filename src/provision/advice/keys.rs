//! The part of the table that is about keys, aliases, policies, tags and rotation.

use super::Row;

const ROTATES_ITSELF_NOT: &str = "KMS rotates only symmetric keys whose material it made itself; a key in a key store is followed \
     by a new one: `kmsfsctl key rotate`";
const POLICY_PRINCIPALS: &str = "every principal must exist, and be known everywhere for some seconds: look for misspelt and \
     deleted roles, and that the caller keeps kms:PutKeyPolicy";

/// Only a key that was wrapped a moment ago is unwrapped here.
const FORGETFUL: &str = "what has just been wrapped is not unwrapped again: do not use this key, and see which KMS answers at \
     this endpoint";

/// Of one operation first, then of any.
pub(super) const ADVICE: &[Row] = &[
    (
        "CreateKey",
        "CloudHsmClusterInvalidConfigurationException",
        "the cluster needs two active HSMs in different Availability Zones, and its security group as CloudHSM made it: add an HSM, then run the same command again",
    ),
    (
        "CreateKey",
        "CustomKeyStoreInvalidStateException",
        "the key store has to be CONNECTED: connect it (`aws kms connect-custom-key-store`), wait for it, and run the same command again",
    ),
    (
        "CreateKey",
        "CustomKeyStoreNotFoundException",
        "name a key store of this Region with --key-store: `aws kms describe-custom-key-stores` lists them",
    ),
    ("CreateKey", "MalformedPolicyDocumentException", POLICY_PRINCIPALS),
    (
        "CreateKey",
        "LimitExceededException",
        "this account has as many keys in the Region as it may: have keys that nobody needs deleted, or ask for a higher quota (Service Quotas, KMS)",
    ),
    (
        "CreateKey",
        "TagException",
        "a tag is not possible: no name twice, none that begins with aws:, names up to 128 characters and values up to 256",
    ),
    (
        "CreateKey",
        "UnsupportedOperationException",
        "the key store is not of the kind --origin says: aws-cloudhsm for one of CloudHSM, external-key-store for an external one",
    ),
    (
        "CreateKey",
        "XksKeyAlreadyInUseException",
        "another KMS key of this store uses this external key, and each needs one of its own: make a new one in the external key manager, and name it with --xks-key-id",
    ),
    (
        "CreateKey",
        "XksKeyInvalidConfigurationException",
        "the external key has to be an enabled AES-256 key that encrypts and decrypts: correct it in the external key manager",
    ),
    (
        "CreateKey",
        "XksKeyNotFoundException",
        "the external key manager knows no such key, or its proxy does not show it: check --xks-key-id",
    ),
    (
        "CreateKey",
        "AccessDeniedException",
        "the caller needs kms:CreateKey and kms:TagResource in IAM; no key policy can give them",
    ),
    (
        "CreateAlias",
        "AlreadyExistsException",
        "another key has this alias: choose another name with --alias",
    ),
    (
        "CreateAlias",
        "InvalidAliasNameException",
        "an alias is alias/ and up to 250 letters, digits, /, _ and -; alias/aws/ is AWS's own",
    ),
    (
        "CreateAlias",
        "LimitExceededException",
        "the key has as many aliases as it may: delete one (`aws kms list-aliases --key-id ID`)",
    ),
    (
        "CreateAlias",
        "KMSInvalidStateException",
        "a key that is to be deleted gets no alias: cancel its deletion, or take another key",
    ),
    (
        "CreateAlias",
        "AccessDeniedException",
        "kms:CreateAlias is needed twice: on the alias, in IAM, and on the key, in its policy or in IAM",
    ),
    (
        "UpdateAlias",
        "NotFoundException",
        "the alias or its new key is not there: aliases are found in their own Region and account only, and one just made after some seconds",
    ),
    (
        "UpdateAlias",
        "LimitExceededException",
        "the new key has as many aliases as it may: delete one (`aws kms list-aliases --key-id ID`)",
    ),
    (
        "UpdateAlias",
        "KMSInvalidStateException",
        "an alias moves only to a key that stays, of the same kind: see whether the new key is to be deleted",
    ),
    (
        "UpdateAlias",
        "AccessDeniedException",
        "kms:UpdateAlias is needed three times: on the alias, in IAM, and on the old and the new key",
    ),
    ("PutKeyPolicy", "MalformedPolicyDocumentException", POLICY_PRINCIPALS),
    (
        "PutKeyPolicy",
        "LimitExceededException",
        "the policy is too long: name roles instead of people, or let IAM policies say who",
    ),
    (
        "PutKeyPolicy",
        "UnsupportedOperationException",
        "only the policy named default can be written; the one of AWS RAM is changed in AWS RAM",
    ),
    (
        "EnableKeyRotation",
        "DisabledException",
        "enable the key first (`aws kms enable-key`): a disabled key is not rotated",
    ),
    ("EnableKeyRotation", "UnsupportedOperationException", ROTATES_ITSELF_NOT),
    (
        "RotateKeyOnDemand",
        "ConflictException",
        "KMS is rotating the key by itself within 20 minutes of now: wait, and look at it again",
    ),
    (
        "RotateKeyOnDemand",
        "DisabledException",
        "enable the key first (`aws kms enable-key`): a disabled key is not rotated",
    ),
    (
        "RotateKeyOnDemand",
        "LimitExceededException",
        "the key has been rotated on demand as often as it may in its life: let a new key follow it with `kmsfsctl key rotate`",
    ),
    ("RotateKeyOnDemand", "UnsupportedOperationException", ROTATES_ITSELF_NOT),
    ("GetKeyRotationStatus", "UnsupportedOperationException", ROTATES_ITSELF_NOT),
    (
        "ScheduleKeyDeletion",
        "KMSInvalidStateException",
        "the key is to be deleted already: `aws kms describe-key` shows when",
    ),
    (
        "ScheduleKeyDeletion",
        "AccessDeniedException",
        "the key's policy may keep administrators from deleting it (--no-delete): another role then has to",
    ),
    (
        "DisableKey",
        "KMSInvalidStateException",
        "a key that is to be deleted is off already, and one that is being made cannot be switched off yet",
    ),
    (
        "ListKeys",
        "AccessDeniedException",
        "the caller needs kms:ListKeys in IAM, on all resources; no key policy can give it",
    ),
    (
        "ListResourceTags",
        "AccessDeniedException",
        "kms:ListResourceTags is needed on all keys, in IAM, to recognise a key by its tags",
    ),
    ("Decrypt", "IncorrectKeyException", FORGETFUL),
    ("Decrypt", "InvalidCiphertextException", FORGETFUL),
    (
        "Decrypt",
        "AccessDeniedException",
        "the caller needs kms:Decrypt on the key with this volume's encryption context (--user, --read-only)",
    ),
    (
        "GenerateDataKey",
        "AccessDeniedException",
        "the caller needs kms:GenerateDataKey on the key with this volume's encryption context (--user)",
    ),
    (
        "",
        "NotFoundException",
        "check id, account and Region; a key just made is not known everywhere for some seconds",
    ),
    (
        "",
        "DisabledException",
        "the key is disabled: enable it (`aws kms enable-key`), if its owner did not mean it",
    ),
    (
        "",
        "KMSInvalidStateException",
        "`aws kms describe-key` shows the state: one to be deleted can be kept (`aws kms cancel-key-deletion`), one of a disconnected key store waits for `aws kms connect-custom-key-store`",
    ),
    ("", "InvalidArnException", "write the whole ARN of a key: arn:aws:kms:REGION:ACCOUNT:key/ID"),
    (
        "",
        "InvalidMarkerException",
        "the list changed while it was read: run the same command again",
    ),
    (
        "",
        "InvalidKeyUsageException",
        "kmsfs needs a symmetric key for encryption (SYMMETRIC_DEFAULT, ENCRYPT_DECRYPT)",
    ),
    (
        "",
        "InvalidGrantTokenException",
        "the grant has gone: name the role in the key's policy instead",
    ),
    (
        "",
        "DependencyTimeoutException",
        "KMS had to wait too long for a part of itself: run the same command again in a minute",
    ),
    (
        "",
        "KMSInternalException",
        "a fault of KMS, or of the cluster behind the key store (all its sessions in use): run the same command again in a minute",
    ),
    (
        "",
        "KeyUnavailableException",
        "KMS cannot use the key for the moment: run the same command again in a minute",
    ),
    (
        "",
        "ValidationException",
        "KMS does not take a value the message names: correct it and run the same command again",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provision::advice::row;

    #[test]
    fn every_row_can_be_reached_and_says_what_to_do() {
        for wanted in ADVICE.iter().chain(crate::provision::advice::ADVICE) {
            let operation = if wanted.0.is_empty() { "AnyOther" } else { wanted.0 };
            assert_eq!(row(operation, wanted.1), Some(wanted));
            // It stands behind a semicolon.
            let advice = wanted.2;
            assert!(!advice.ends_with('.') && advice.len() > 30, "{advice}");
        }
    }
}
