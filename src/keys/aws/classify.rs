//! What an error of KMS means: for the caller, for the keys already unwrapped, for another try.
//!
//! By code and, where one code means two things, by message. Two codes are traps: an invalid state
//! of a CloudHSM key is final when somebody disconnected the store and passing when the cluster
//! merely cannot be reached; and a limit that is exceeded is no throttle.

use crate::keys::KeyError;

/// Kinds of failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum Class {
    /// The key is there, and its owner has switched it off.
    Revoked,
    /// KMS says no to this caller, or knows no such key: final, unless it was said in error.
    Denied,
    /// Too many calls.
    Throttled,
    /// KMS answered that it cannot now.
    Transient,
    /// No answer.
    Unreachable,
    /// No credentials, or none that KMS accepts.
    Credentials,
    /// The wrapped key is not what was once wrapped, or not for this place.
    Tampered,
    /// The request makes no sense to KMS.
    Misconfigured,
}

impl Class {
    /// For logs and counters.
    pub fn name(self) -> &'static str {
        match self {
            Self::Revoked => "revoked",
            Self::Denied => "denied",
            Self::Throttled => "throttled",
            Self::Transient => "transient",
            Self::Unreachable => "unreachable",
            Self::Credentials => "credentials",
            Self::Tampered => "tampered",
            Self::Misconfigured => "misconfigured",
        }
    }

    /// Does asking again help?
    pub fn is_passing(self) -> bool {
        matches!(self, Self::Throttled | Self::Transient | Self::Unreachable | Self::Credentials)
    }

    /// The error for the layers above.
    pub fn error(self, sentence: String) -> KeyError {
        match self {
            Self::Revoked => KeyError::Revoked(sentence),
            Self::Denied => KeyError::Denied(sentence),
            Self::Throttled => KeyError::Throttled(sentence),
            Self::Transient | Self::Unreachable | Self::Credentials => {
                KeyError::Unavailable(sentence)
            }
            Self::Tampered => KeyError::Tampered(sentence),
            Self::Misconfigured => KeyError::Misconfigured(sentence),
        }
    }

    /// What to do about it.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Revoked => "have the key's owner enable it (or connect its key store) again",
            Self::Denied => {
                "check the key's policy and this host's role with `kmsfsctl doctor`, and that the \
                 key still exists"
            }
            Self::Throttled => "lower kms-rate here, or the load of others on the key store",
            Self::Transient | Self::Unreachable => {
                "check the network, the endpoint and the key store; a mount tries again by \
                 itself, a command has to be run again"
            }
            Self::Credentials => {
                "renew this host's AWS credentials (environment, profile, role or SSO login)"
            }
            Self::Tampered => "restore the file, or kmsfs.volume, from a backup",
            Self::Misconfigured => "check the key's ARN, kind and Region with `kmsfsctl doctor`",
        }
    }
}

/// The class of an error that KMS sent.
pub fn of_answer(code: &str, message: &str, status: u16) -> Class {
    match code {
        "DisabledException" => Class::Revoked,
        "KMSInvalidStateException" | "CustomKeyStoreInvalidStateException" => of_state(message),
        "AccessDeniedException"
        | "CloudHsmAccessDeniedException"
        | "NotFoundException"
        | "InvalidGrantTokenException" => Class::Denied,
        "ThrottlingException"
        | "Throttling"
        | "ThrottledException"
        | "TooManyRequestsException"
        | "RequestThrottledException"
        | "RequestLimitExceeded"
        | "SlowDown"
        | "BandwidthLimitExceeded"
        | "ProvisionedThroughputExceededException" => Class::Throttled,
        "KMSInternalException"
        | "InternalFailure"
        | "InternalServiceError"
        | "ServiceUnavailable"
        | "DependencyTimeoutException"
        | "KeyUnavailableException"
        | "RequestTimeout"
        | "XksProxyUnreachableException" => Class::Transient,
        "ExpiredTokenException"
        | "ExpiredToken"
        | "RequestExpired"
        | "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "IncompleteSignature"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException"
        | "NotAuthorized"
        | "OptInRequired" => Class::Credentials,
        "InvalidCiphertextException" | "IncorrectKeyException" => Class::Tampered,
        _ if status == 429 => Class::Throttled,
        // A proxy's answer, for example, has no code at all.
        "" => Class::Transient,
        _ if status >= 500 || status == 408 => Class::Transient,
        _ => Class::Misconfigured,
    }
}

/// "Unavailable" is what KMS says of keys whose store was disconnected on purpose, and "pending …"
/// of keys on their way out; a cluster that cannot be reached may be back in a moment.
fn of_state(message: &str) -> Class {
    let message = message.to_ascii_lowercase();
    let says = |words: &str| message.contains(words);
    if says("cannot communicate") || says("creating") || says("updating") {
        Class::Transient
    } else if says("unavailable") || says("pending") || says("disabled") || says("disconnect") {
        Class::Revoked
    } else {
        Class::Transient
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_errors_have_their_class() {
        use Class::*;
        for (code, message, status, class) in [
            ("DisabledException", "", 409, Revoked),
            ("KMSInvalidStateException", "arn:… is pending deletion.", 400, Revoked),
            ("KMSInvalidStateException", "arn:… is unavailable.", 400, Revoked),
            (
                "KMSInvalidStateException",
                "KMS cannot communicate with your CloudHSM cluster.",
                400,
                Transient,
            ),
            ("KMSInvalidStateException", "arn:… is pending import.", 400, Revoked),
            ("CustomKeyStoreInvalidStateException", "", 400, Transient),
            ("AccessDeniedException", "", 400, Denied),
            ("NotFoundException", "", 400, Denied),
            ("ThrottlingException", "", 400, Throttled),
            ("LimitExceededException", "", 400, Misconfigured),
            ("KMSInternalException", "", 500, Transient),
            ("DependencyTimeoutException", "", 503, Transient),
            ("KeyUnavailableException", "", 500, Transient),
            ("Strange", "", 502, Transient),
            ("Strange", "", 408, Transient),
            ("Strange", "", 429, Throttled),
            ("", "", 403, Transient),
            ("ExpiredTokenException", "", 400, Credentials),
            ("UnrecognizedClientException", "", 400, Credentials),
            ("InvalidCiphertextException", "", 400, Tampered),
            ("IncorrectKeyException", "", 400, Tampered),
            ("InvalidKeyUsageException", "", 400, Misconfigured),
            ("ValidationException", "", 400, Misconfigured),
            ("InvalidArnException", "", 400, Misconfigured),
            ("UnsupportedOperationException", "", 400, Misconfigured),
        ] {
            assert_eq!(of_answer(code, message, status), class, "{code} {message}");
        }
    }

    #[test]
    fn only_what_passes_is_tried_again_and_nothing_final_falls_through() {
        for class in [Class::Revoked, Class::Denied, Class::Tampered, Class::Misconfigured] {
            assert!(!class.is_passing() && !class.error(String::new()).falls_through());
        }
        for class in [Class::Throttled, Class::Transient, Class::Unreachable, Class::Credentials] {
            assert!(class.is_passing() && class.error(String::new()).falls_through());
        }
    }
}
