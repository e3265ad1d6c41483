//! What to do about an error, by operation and code: one table.

mod keys;

use crate::keys::aws::classify::Class;

/// Operation (empty: any), code, what to do.
type Row = (&'static str, &'static str, &'static str);

/// Codes that mean the same whatever was asked, or something else for one operation; the first row
/// that fits counts.
const ADVICE: &[Row] = &[
    (
        "",
        "AccessDeniedException",
        "this caller lacks the permission named in the message: have it added to the role's IAM policy or to the key's policy",
    ),
    ("", "UnsupportedOperationException", "KMS does not do this for a key of this kind"),
];

/// What to do.
pub fn about(operation: &str, code: &str, class: Class) -> &'static str {
    row(operation, code).map_or_else(|| of_class(class), |(_, _, advice)| advice)
}

fn row(operation: &str, code: &str) -> Option<&'static Row> {
    let fits = |row: &&Row| (row.0.is_empty() || row.0 == operation) && row.1 == code;
    keys::ADVICE.iter().chain(ADVICE).find(fits)
}

fn of_class(class: Class) -> &'static str {
    match class {
        Class::Revoked => "enable the key, or connect its key store, and try again",
        Class::Denied => "check the name and Region, and this caller's permissions",
        Class::Throttled => "wait a minute and run the same command again",
        Class::Transient | Class::Unreachable => {
            "check the network and the endpoint, and run the same command again: it goes on where it \
             stopped"
        }
        Class::Credentials => "renew the AWS credentials (environment, profile, role or SSO login)",
        Class::Tampered => "nothing was changed",
        Class::Misconfigured => "correct what the message names and run the same command again",
    }
}
