//! Grants: what others may do with a key, whatever its policy says.

use std::fmt;

use super::{Account, Class, Refused, fault};

/// Grants in one page of the list.
const PAGE: i32 = 100;

/// A grant, as far as people have to judge it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// By which it is revoked.
    pub id: String,
    /// Who may.
    pub grantee: String,
    /// What.
    pub operations: Vec<String>,
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} may {} (grant {})", self.grantee, self.operations.join(", "), self.id)
    }
}

/// The grants on a key. KMS makes none by itself, not for keys of a key store either: each is somebody's.
pub fn grants(account: &Account, arn: &str) -> Result<Vec<Grant>, Refused> {
    let (mut all, mut marker) = (vec![], None);
    loop {
        let (key, from): (_, Option<String>) = (arn.to_owned(), marker.take());
        let page = account.ask("ListGrants", &format!("KMS key {arn}"), move |clients| {
            let request = clients.kms.list_grants().key_id(&key).limit(PAGE);
            let request = request.set_marker(from.clone());
            async move { request.send().await.map_err(|e| fault(&e)) }
        })?;
        all.extend(page.grants.unwrap_or_default().into_iter().map(|entry| Grant {
            id: entry.grant_id.unwrap_or_default(),
            grantee: entry.grantee_principal.unwrap_or_else(|| "somebody".to_owned()),
            operations:
                entry.operations.unwrap_or_default().iter().map(ToString::to_string).collect(),
        }));
        match page.next_marker {
            Some(next) if page.truncated => marker = Some(next),
            _ => return Ok(all),
        }
    }
}

/// Why a key with these grants is not taken, and what to do.
pub fn granted(arn: &str, grants: &[Grant]) -> Option<String> {
    let what = match grants.len() {
        0 => return None,
        1 => "a grant".to_owned(),
        many => format!("{many} grants"),
    };
    Some(format!(
        "KMS key {arn} is there and has {what}, by which others may use it whatever its policy says: \
         find out who gave them that, and revoke what nobody knows of (`aws kms revoke-grant --key-id {arn} \
         --grant-id ID`)"
    ))
}

/// Refuses a key that others may use by a grant.
pub(super) fn require_none(account: &Account, arn: &str) -> Result<(), Refused> {
    let grants = grants(account, arn)?;
    let Some(why) = granted(arn, &grants) else { return Ok(()) };
    let each: Vec<String> = grants.iter().map(Grant::to_string).collect();
    let text = format!("{why}; nothing was changed: {}", each.join("; "));
    Err(Refused::here(Class::Misconfigured, text))
}
