//! Who may call: access keys and what each is allowed.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::api::{Context, Fault, matches};

/// The access key every fake knows from the start; it may do everything.
pub const ACCESS_KEY: &str = "AKIAFAKEFAKEFAKEFAKE";
/// Its secret.
pub const SECRET_KEY: &str = "fake";

/// An access key.
#[derive(Clone, Debug)]
pub struct Principal {
    /// Id of the access key.
    pub access_key: String,
    /// The secret half.
    pub secret: String,
    /// The session token that must come along, for temporary credentials.
    pub token: Option<String>,
    /// Name of the user.
    pub user: String,
    /// Allowed actions, with their service (`kms:Decrypt`) or without, each may end in `*`; nothing
    /// is everything. ReEncrypt is two actions,
    /// `ReEncryptFrom` and `ReEncryptTo`.
    pub allow: Option<Vec<String>>,
    /// Pairs the encryption context of every cryptographic call must have.
    pub context: Context,
    /// ARNs of the keys that may be used; nothing is all.
    pub keys: Option<Vec<String>>,
    /// Actions that are denied whatever is allowed, each may end in `*`.
    pub deny: Vec<String>,
    /// Whether the credentials have expired.
    pub expired: bool,
}

impl Principal {
    /// A user who may do everything.
    pub fn new(access_key: &str, secret: &str, user: &str) -> Principal {
        Principal {
            access_key: access_key.to_owned(),
            secret: secret.to_owned(),
            token: None,
            user: user.to_owned(),
            allow: None,
            context: Context::new(),
            keys: None,
            deny: Vec::new(),
            expired: false,
        }
    }

    /// Allows these actions only.
    pub fn allow(mut self, actions: &[&str]) -> Principal {
        self.allow = Some(actions.iter().map(|action| (*action).to_owned()).collect());
        self
    }

    /// Denies these actions.
    pub fn deny(mut self, actions: &[&str]) -> Principal {
        self.deny.extend(actions.iter().map(|action| (*action).to_owned()));
        self
    }

    /// Allows looking only, in all services.
    pub fn read_only(self) -> Principal {
        self.allow(&["Describe*", "List*", "Get*"])
    }

    /// Allows cryptographic calls only with this pair in their encryption context.
    pub fn only_with(mut self, name: &str, value: &str) -> Principal {
        self.context.insert(name.to_owned(), value.to_owned());
        self
    }

    /// From `{"access_key": …, "secret": …, "user": …, "token": …, "allow": […], "context": {…},
    /// "keys": […], "deny": […], "read_only": true, "expired": …}`; all but the access key may be missing.
    pub fn from_json(value: &Value) -> Option<Principal> {
        let words = |name: &str| -> Option<Vec<String>> {
            let list = value[name].as_array()?;
            Some(list.iter().filter_map(|word| Some(word.as_str()?.to_owned())).collect())
        };
        let context: Option<BTreeMap<String, String>> = value["context"].as_object().map(|pairs| {
            let texts = pairs.iter().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned())));
            texts.collect()
        });
        let key = value["access_key"].as_str()?;
        let secret = value["secret"].as_str().unwrap_or(SECRET_KEY);
        let mut who = Principal::new(key, secret, value["user"].as_str().unwrap_or(key));
        who.token = value["token"].as_str().map(str::to_owned);
        who.allow = words("allow");
        if value["read_only"] == true {
            who = who.read_only();
        }
        who.deny = words("deny").unwrap_or_default();
        who.keys = words("keys");
        who.context = context.unwrap_or_default();
        who.expired = value["expired"].as_bool().unwrap_or(false);
        Some(who)
    }

    /// For people; without the secret.
    pub fn to_json(&self) -> Value {
        json!({
            "access_key": self.access_key, "user": self.user, "allow": self.allow,
            "context": self.context, "keys": self.keys, "deny": self.deny, "expired": self.expired,
        })
    }

    /// The name in messages and answers.
    pub fn arn(&self, account: &str) -> String {
        format!("arn:aws:iam::{account}:user/{}", self.user)
    }

    /// Whether an action is denied whatever is allowed.
    pub fn denies(&self, service: &str, action: &str) -> bool {
        let full = format!("{service}:{action}");
        self.deny.iter().any(|entry| matches(entry, action) || matches(entry, &full))
    }

    /// Whether an action on a resource is allowed; `context` is that of a cryptographic call.
    pub fn may(
        &self,
        service: &str,
        action: &str,
        resource: &str,
        context: Option<&Context>,
    ) -> bool {
        let listed = |list: &Option<Vec<String>>, word: &str| {
            list.as_ref().is_none_or(|list| list.iter().any(|entry| matches(entry, word)))
        };
        let full = format!("{service}:{action}");
        let paired = context.is_none_or(|has| {
            self.context.iter().all(|(name, value)| has.get(name) == Some(value))
        });
        (listed(&self.allow, action) || listed(&self.allow, &full))
            && !self.denies(service, action)
            && paired
            && (!resource.contains(":key/") || listed(&self.keys, resource))
    }

    /// AWS's words for "no"; the action with its service.
    pub fn denied(&self, account: &str, action: &str, resource: &str, explicit: bool) -> Fault {
        let reason = if explicit {
            "with an explicit deny in an identity-based policy".to_owned()
        } else {
            format!("because no identity-based policy allows the {action} action")
        };
        let user = self.arn(account);
        Fault::client(
            "AccessDeniedException",
            format!(
                "User: {user} is not authorized to perform: {action} on resource: {resource} \
                 {reason}"
            ),
        )
    }
}
