//! Key policies as data: who may do what with a volume's key.
//!
//! The strict shape lets a host wrap and unwrap keys of its own volume and nothing else; the other one
//! is what the AWS console writes, for those who compare.

use super::account::Caller;
use crate::format::VolumeId;
use serde_json::{Map, Value, json};

/// What administrators may do: everything about the key, nothing with it.
const ADMINISTRATION: [&str; 13] = [
    "kms:Create*",
    "kms:Describe*",
    "kms:Enable*",
    "kms:List*",
    "kms:Put*",
    "kms:Update*",
    "kms:Revoke*",
    "kms:Disable*",
    "kms:Get*",
    "kms:Delete*",
    "kms:TagResource",
    "kms:UntagResource",
    "kms:RotateKeyOnDemand",
];
/// What they may do as well, unless told otherwise.
const DELETION: [&str; 2] = ["kms:ScheduleKeyDeletion", "kms:CancelKeyDeletion"];
/// Everything that is done with the key.
const USE: [&str; 4] = ["kms:Decrypt", "kms:Encrypt", "kms:GenerateDataKey*", "kms:ReEncrypt*"];
/// What AWS services need of their callers.
const GRANTS: [&str; 3] = ["kms:CreateGrant", "kms:ListGrants", "kms:RevokeGrant"];
/// Where the console puts a new permission set's role, and how the role's name ends.
const SSO_ROLE: &str = "AWSReservedSSO_";
const SSO_HASH: usize = 16;

/// Who, and what of it.
#[derive(Clone, Debug)]
pub struct PolicyWish {
    /// The account that owns the key, twelve digits.
    pub account: String,
    /// `aws`, `aws-cn`, `aws-us-gov`, ….
    pub partition: String,
    /// The volume whose keys the key wraps.
    pub volume: VolumeId,
    /// ARNs of those who look after the key.
    pub admins: Vec<String>,
    /// ARNs of those who mount the volume.
    pub users: Vec<String>,
    /// ARNs of those who mount it read-only.
    pub read_only: Vec<String>,
    /// ARNs of those who move it to another key.
    pub rotators: Vec<String>,
    /// Other accounts whose administrators may let their hosts mount it.
    pub accounts: Vec<String>,
    /// May administrators delete the key?
    pub may_delete: bool,
    /// Hosts wrap for this key although another one comes first.
    pub extra_recipients: bool,
    /// AWS services may use the key on behalf of users.
    pub aws_services: bool,
    /// VPC endpoints through which the key may be used; any way, if there is none.
    pub endpoints: Vec<String>,
    /// Name roles of single sign-on by pattern: their names change when the permission set is made anew.
    pub sso_wildcard: bool,
}

impl PolicyWish {
    /// For nobody yet.
    pub fn new(caller: &Caller, volume: VolumeId) -> Self {
        Self {
            account: caller.account.clone(),
            partition: caller.partition.clone(),
            volume,
            admins: vec![],
            users: vec![],
            read_only: vec![],
            rotators: vec![],
            accounts: vec![],
            may_delete: true,
            extra_recipients: false,
            aws_services: false,
            endpoints: vec![],
            sso_wildcard: false,
        }
    }

    /// Every right bound to the volume, where KMS can bind it.
    pub fn strict(&self) -> Value {
        let volume = self.volume_condition();
        let mut unlocking = volume.clone();
        unlocking.insert(context("purpose"), json!("volume"));
        let users = self.all_users();
        let everybody = [&users[..], &self.read_only, &self.rotators].concat();
        let mut using = vec!["kms:GenerateDataKey", "kms:Decrypt"];
        if self.extra_recipients {
            using.push("kms:Encrypt");
        }
        let mut statements = vec![self.iam("EnableIamPolicies")];
        let mut add = |sid: &str, who: &[String], actions: &[&str], equals: Map<String, Value>| {
            let condition = Map::from_iter([("StringEquals".to_owned(), Value::Object(equals))]);
            statements.extend(self.statements(sid, who, actions, &condition));
        };
        add("KeyAdministrators", &self.admins, &self.administration(), Map::new());
        add("VolumeUse", &users, &using, volume.clone());
        add("VolumeRead", &self.read_only, &["kms:Decrypt"], volume.clone());
        add("VolumeRewrap", &self.rotators, &["kms:ReEncryptFrom", "kms:ReEncryptTo"], volume);
        // Names and headers, not the contents of files.
        add("VolumeUnlock", &self.rotators, &["kms:Decrypt"], unlocking);
        // It has no encryption context a condition could look at.
        add("VolumeDescribe", &everybody, &["kms:DescribeKey"], Map::new());
        if self.aws_services {
            statements.extend(self.statements("AwsServices", &users, &GRANTS, &for_services()));
        }
        if !self.endpoints.is_empty() {
            statements.push(self.only_through_endpoints());
        }
        json!({ "Version": "2012-10-17", "Id": "kmsfs-volume", "Statement": statements })
    }

    /// The four statements of the AWS console.
    pub fn console(&self) -> Value {
        let users = self.all_users();
        let mut statements = vec![self.iam("Enable IAM User Permissions")];
        if !self.admins.is_empty() {
            let sid = "Allow access for Key Administrators";
            statements.push(allow(sid, &self.admins, &self.administration()));
        }
        if !users.is_empty() {
            let using = [
                "kms:Encrypt",
                "kms:Decrypt",
                "kms:ReEncrypt*",
                "kms:GenerateDataKey*",
                "kms:DescribeKey",
            ];
            statements.push(allow("Allow use of the key", &users, &using));
            let mut grants = allow("Allow attachment of persistent resources", &users, &GRANTS);
            grants["Condition"] = Value::Object(for_services());
            statements.push(grants);
        }
        json!({ "Version": "2012-10-17", "Id": "key-consolepolicy-3", "Statement": statements })
    }

    fn all_users(&self) -> Vec<String> {
        let others = self.accounts.iter().map(|account| self.root_of(account));
        self.users.iter().cloned().chain(others).collect()
    }

    fn root_of(&self, account: &str) -> String {
        format!("arn:{}:iam::{account}:root", self.partition)
    }

    fn administration(&self) -> Vec<&'static str> {
        let deletion = if self.may_delete { &DELETION[..] } else { &[] };
        [&ADMINISTRATION[..], deletion].concat()
    }

    /// Without this nobody's IAM policy counts, and a key whose administrators have gone is lost.
    fn iam(&self, sid: &str) -> Value {
        allow(sid, &[self.root_of(&self.account)], &["kms:*"])
    }

    fn volume_condition(&self) -> Map<String, Value> {
        let id = data_encoding::HEXLOWER.encode(&self.volume.0);
        Map::from_iter([(context("volume"), json!(id))])
    }

    /// A denial binds those whom IAM policies and grants let in, too; a condition of an allowance would
    /// not. Where the endpoint is not known, as outside a VPC, it is not one of these.
    fn only_through_endpoints(&self) -> Value {
        let mut statement = allow("OnlyThroughEndpoints", &["*"], &USE);
        statement["Effect"] = json!("Deny");
        let through = json!({ "aws:SourceVpce": one_or_many(&self.endpoints) });
        statement["Condition"] = json!({ "StringNotEquals": through });
        if self.aws_services {
            // Their calls come through no endpoint of the account's.
            statement["Condition"]["Bool"] = json!({ "aws:ViaAWSService": "false" });
        }
        statement
    }

    /// One statement for those who are named, and one for those who are described.
    fn statements(
        &self,
        sid: &str,
        who: &[String],
        actions: &[&str],
        condition: &Map<String, Value>,
    ) -> Vec<Value> {
        let pattern = |arn: &String| self.sso_wildcard.then(|| sso_pattern(arn)).flatten();
        let (sso, named): (Vec<String>, Vec<String>) =
            who.iter().cloned().partition(|arn| pattern(arn).is_some());
        let mut all = vec![];
        if !named.is_empty() {
            all.push(allow(sid, &named, actions));
        }
        if !sso.is_empty() {
            let mut roots: Vec<String> =
                sso.iter().filter_map(|arn| Some(self.root_of(account_of(arn)?))).collect();
            roots.sort();
            roots.dedup();
            let patterns: Vec<String> = sso.iter().filter_map(pattern).collect();
            let mut statement = allow(&format!("{sid}Sso"), &roots, actions);
            let like = json!({ "aws:PrincipalArn": one_or_many(&patterns) });
            statement["Condition"] = json!({ "ArnLike": like });
            all.push(statement);
        }
        for (operator, test) in condition.iter().filter(|(_, test)| !is_empty(test)) {
            for statement in &mut all {
                statement["Condition"][operator] = test.clone();
            }
        }
        all
    }
}

/// The pattern that stands for the role of a permission set, whenever it is made; `None` for other
/// principals.
pub fn sso_pattern(arn: &str) -> Option<String> {
    let (path, name) = arn.rsplit_once('/')?;
    let (set, hash) = name.strip_prefix(SSO_ROLE)?.rsplit_once('_')?;
    let is_hash = hash.len() == SSO_HASH && hash.bytes().all(|b| b.is_ascii_hexdigit());
    // As long as a hash: `*` would take in sets whose names only begin alike.
    is_hash.then(|| format!("{path}/{SSO_ROLE}{set}_{}", "?".repeat(SSO_HASH)))
}

/// The account in an ARN.
pub fn account_of(arn: &str) -> Option<&str> {
    arn.split(':').nth(4)
}

fn context(name: &str) -> String {
    format!("kms:EncryptionContext:kmsfs:{name}")
}

fn is_empty(test: &Value) -> bool {
    test.as_object().is_none_or(Map::is_empty)
}

/// Do both say the same? The order of statements and of what is listed does not count, nor whether one
/// word stands alone or as a list of one.
pub fn is_same(one: &Value, other: &Value) -> bool {
    plain(one) == plain(other)
}

fn plain(value: &Value) -> Value {
    match value {
        Value::Array(list) => {
            let mut list: Vec<Value> = list.iter().map(plain).collect();
            list.sort_by_cached_key(Value::to_string);
            list.dedup();
            if list.len() == 1 { list.remove(0) } else { Value::Array(list) }
        }
        Value::Object(members) => {
            members.iter().map(|(name, value)| (name.clone(), plain(value))).collect()
        }
        word => word.clone(),
    }
}

fn allow<S: AsRef<str>>(sid: &str, who: &[S], actions: &[&str]) -> Value {
    json!({
        "Sid": sid,
        "Effect": "Allow",
        "Principal": { "AWS": one_or_many(who) },
        "Action": one_or_many(actions),
        "Resource": "*",
    })
}

/// Grants for what an AWS service does for its caller, and for nothing else.
fn for_services() -> Map<String, Value> {
    let test = json!({ "kms:GrantIsForAWSResource": "true" });
    Map::from_iter([("Bool".to_owned(), test)])
}

/// A list of one is written without brackets, as AWS does.
fn one_or_many<S: AsRef<str>>(words: &[S]) -> Value {
    match words {
        [one] => json!(one.as_ref()),
        many => many.iter().map(|word| json!(word.as_ref())).collect(),
    }
}

#[cfg(test)]
mod tests;
