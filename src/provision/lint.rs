//! What is wrong with a key policy, or will be one day, before KMS gets to see it.
//!
//! KMS takes many a policy that does not do what its author meant.

use super::account::Caller;
use super::policy::{account_of, sso_pattern};
use crate::keys::finding::{Area, Finding, Level};
use serde_json::Value;

/// Longest policy KMS takes, in bytes.
const POLICY_MAX: usize = 32 * 1024;

/// The findings on a policy for a key in the caller's account; the worst first.
pub fn findings(policy: &Value, caller: &Caller) -> Vec<Finding> {
    let statements: Vec<Statement> = match &policy["Statement"] {
        Value::Array(all) => all.iter().map(Statement::read).collect(),
        one @ Value::Object(_) => vec![Statement::read(one)],
        _ => vec![],
    };
    let mut lint = Lint { caller, statements, findings: vec![] };
    lint.size(policy);
    lint.void_statements();
    lint.principals();
    lint.rights();
    lint.administration();
    lint.users();
    lint.findings.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    lint.findings
}

/// One statement, as far as it matters here.
struct Statement<'a> {
    sid: &'a str,
    allows: bool,
    principals: Vec<&'a str>,
    /// Of `aws:PrincipalArn`.
    patterns: Vec<&'a str>,
    actions: Vec<&'a str>,
    has_action: bool,
    has_resource: bool,
    conditions: Vec<&'a str>,
}

impl<'a> Statement<'a> {
    fn read(value: &'a Value) -> Self {
        let principals = match &value["Principal"] {
            Value::Object(kinds) => kinds.get("AWS").map(words).unwrap_or_default(),
            other => words(other),
        };
        let condition = value["Condition"].as_object();
        let tests = || condition.into_iter().flatten();
        let keys = || tests().filter_map(|(_, test)| test.as_object()).flatten();
        let of_principal = |name: &str| name.eq_ignore_ascii_case("aws:PrincipalArn");
        Self {
            sid: value["Sid"].as_str().unwrap_or("(without Sid)"),
            allows: value["Effect"] == "Allow",
            principals,
            patterns: keys().filter(|(k, _)| of_principal(k)).flat_map(|(_, v)| words(v)).collect(),
            actions: words(&value["Action"]),
            has_action: value.get("Action").or(value.get("NotAction")).is_some(),
            has_resource: value.get("Resource").or(value.get("NotResource")).is_some(),
            conditions: keys().map(|(key, _)| key.as_str()).collect(),
        }
    }

    fn may(&self, action: &str) -> bool {
        self.allows && self.actions.iter().any(|pattern| fits(pattern, action))
    }

    /// Whom it is about: those described, if there is a description.
    fn who(&self) -> &[&'a str] {
        if self.patterns.is_empty() { &self.principals } else { &self.patterns }
    }
}

fn words(value: &Value) -> Vec<&str> {
    match value {
        Value::String(word) => vec![word],
        Value::Array(list) => list.iter().filter_map(Value::as_str).collect(),
        _ => vec![],
    }
}

/// Is the action meant by the pattern? Case does not count.
fn fits(pattern: &str, action: &str) -> bool {
    let (pattern, action) = (pattern.to_ascii_lowercase(), action.to_ascii_lowercase());
    let mut rest = action.as_str();
    let mut pieces = pattern.split('*');
    let Some(after) = pieces.next().and_then(|first| rest.strip_prefix(first)) else {
        return false;
    };
    rest = after;
    if !pattern.contains('*') {
        return rest.is_empty();
    }
    let pieces: Vec<&str> = pieces.collect();
    let Some((last, middle)) = pieces.split_last() else { return rest.is_empty() };
    for piece in middle {
        match rest.find(piece) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

struct Lint<'a> {
    caller: &'a Caller,
    statements: Vec<Statement<'a>>,
    findings: Vec<Finding>,
}

impl Lint<'_> {
    fn add(&mut self, level: Level, about: &str, found: String, advice: &str) {
        self.findings.push(Finding::new(level, Area::Kms, about, found).advise(advice));
    }

    fn is_own_root(&self, principal: &str) -> bool {
        let root = format!("arn:{}:iam::{}:root", self.caller.partition, self.caller.account);
        principal == root || principal == self.caller.account
    }

    fn size(&mut self, policy: &Value) {
        let bytes = policy.to_string().len();
        if bytes > POLICY_MAX {
            let text = format!("the policy has {bytes} bytes, and KMS takes {POLICY_MAX}");
            let advice = "name roles instead of people, or let IAM policies say who";
            self.add(Level::Error, "size", text, advice);
        }
    }

    fn void_statements(&mut self) {
        if self.statements.is_empty() {
            let advice = "write at least the statement that lets IAM policies count";
            self.add(Level::Error, "statement", "the policy has no statement".into(), advice);
        }
        let mut found = vec![];
        for statement in &self.statements {
            let missing = match (statement.has_action, statement.has_resource) {
                (true, true) => continue,
                (false, true) => "Action",
                (true, false) => "Resource",
                (false, false) => "Action and Resource",
            };
            found.push(format!("statement {} has no {missing}", statement.sid));
        }
        for text in found {
            let advice = "KMS would take it, and it would do nothing: complete it";
            self.add(Level::Error, "statement", text, advice);
        }
    }

    /// Is everybody who is named somebody?
    fn principals(&mut self) {
        let mut named: Vec<(&str, &str)> = vec![];
        let mut nobody = vec![];
        for statement in &self.statements {
            if statement.principals.is_empty() {
                nobody.push(format!("statement {} names no principal", statement.sid));
            }
            named.extend(statement.principals.iter().map(|who| (*who, statement.sid)));
        }
        for text in nobody {
            self.add(Level::Error, "principal", text, "name who it is for, by ARN");
        }
        named.sort_unstable();
        named.dedup_by_key(|(who, _)| *who);
        for (who, sid) in named {
            self.principal(who, sid);
        }
        let mut patterns: Vec<&str> =
            self.statements.iter().flat_map(|statement| statement.patterns.clone()).collect();
        patterns.sort_unstable();
        patterns.dedup();
        for pattern in patterns {
            let text = format!("{pattern} is a pattern");
            let advice = "whom a pattern describes needs the same rights in an IAM policy (of the \
                          permission set) as well";
            self.add(Level::Note, "principal", text, advice);
        }
    }

    fn principal(&mut self, who: &str, sid: &str) {
        if who == "*" {
            return self.everybody();
        }
        let all_digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        if who.len() == 12 && all_digits(who) {
            return;
        }
        let caller = self.caller;
        let unique = ["AIDA", "AROA"].iter().any(|kind| who.starts_with(kind));
        let mut bad = |text: String, advice: &str| {
            self.add(Level::Error, "principal", format!("{who} in {sid}: {text}"), advice);
        };
        if unique && !who.contains(':') {
            let text = "this id is what remains of a user or role that was deleted".to_owned();
            return bad(text, "take it out, or name the user or role by its ARN");
        }
        let parts: Vec<&str> = who.splitn(6, ':').collect();
        let ["arn", partition, service, region, account, resource] = parts[..] else {
            let advice = "write arn:aws:iam::ACCOUNT:role/NAME or …:user/NAME";
            return bad("this is no ARN".to_owned(), advice);
        };
        if partition != caller.partition {
            let own = &caller.partition;
            let text = format!("partition {partition}, and the key is in {own}");
            return bad(text, "principals of another partition cannot be named");
        }
        if account.len() != 12 || !all_digits(account) {
            let text = format!("account {account:?} has not twelve digits");
            return bad(text, "copy the ARN from IAM");
        }
        let kind = resource.split('/').next().unwrap_or_default();
        let known = match service {
            "iam" => matches!(kind, "root" | "role" | "user"),
            "sts" => matches!(kind, "assumed-role" | "federated-user"),
            _ => false,
        };
        let complete = kind == "root" && resource == "root"
            || kind != "root" && resource.len() > kind.len() + 1 && !resource.ends_with('/');
        if !known || !region.is_empty() || !complete {
            let advice = "a principal is a role, a user, a session or an account's root";
            return bad("this is no principal".to_owned(), advice);
        }
        if who.contains(['*', '?']) {
            let advice = "name each principal, or use a condition on aws:PrincipalArn";
            return bad("a principal's ARN may hold no wildcard".to_owned(), advice);
        }
        self.sound_principal(who, account, resource);
    }

    fn sound_principal(&mut self, who: &str, account: &str, resource: &str) {
        if sso_pattern(who).is_some() {
            let text = format!("{who} is a role of single sign-on");
            let advice = "its name changes when the permission set is made anew, and nobody is let \
                          in by the old one: use --sso-wildcard";
            self.add(Level::Warning, "principal", text, advice);
        } else if resource.starts_with("assumed-role/AWSReservedSSO_") {
            let text = format!("{who} is one session of a role of single sign-on");
            let advice = "the role's name changes when the permission set is made anew, and nobody is \
                          let in by the old one: name the role (…:role/aws-reserved/sso.amazonaws.com/…) \
                          and use --sso-wildcard";
            self.add(Level::Warning, "principal", text, advice);
        } else if resource == "root" && account != self.caller.account {
            let text = format!("account {account} may use the key");
            let advice = "its administrators say who in it may; they have to name this key's ARN in \
                          an IAM policy";
            self.add(Level::Note, "principal", text, advice);
        }
    }

    fn everybody(&mut self) {
        let open = |statement: &Statement| {
            let narrowed = !statement.patterns.is_empty()
                || statement.conditions.iter().any(|key| {
                    ["kms:CallerAccount", "aws:PrincipalOrgID", "aws:PrincipalAccount"]
                        .iter()
                        .any(|narrow| narrow.eq_ignore_ascii_case(key))
                });
            statement.allows && statement.principals.contains(&"*") && !narrowed
        };
        let sids: Vec<&str> =
            self.statements.iter().filter(|s| open(s)).map(|statement| statement.sid).collect();
        if !sids.is_empty() {
            let text = format!("everybody in every account is allowed by {}", sids.join(", "));
            self.add(Level::Error, "principal", text, "name roles or users instead of *");
        }
    }

    /// Rights that are wider than they look.
    fn rights(&mut self) {
        let mut found = vec![];
        for statement in self.statements.iter().filter(|statement| statement.allows) {
            let others = statement.who().iter().any(|who| !self.is_own_root(who));
            if !others {
                continue;
            }
            let sid = statement.sid;
            if statement.actions.iter().any(|action| ["*", "kms:*"].contains(action)) {
                let advice = "list the actions that are needed";
                let text = format!("{sid} allows everything, the policy itself included");
                found.push((Level::Error, text, advice));
                continue;
            }
            let bound = statement
                .conditions
                .iter()
                .any(|key| key.eq_ignore_ascii_case("kms:GrantIsForAWSResource"));
            if statement.may("kms:CreateGrant") && !bound {
                // Who may change the policy can let himself in anyway.
                let admin = statement.may("kms:PutKeyPolicy");
                let level = if admin { Level::Note } else { Level::Warning };
                let text = format!("{sid} allows grants, and with them use of the key, to anybody");
                let advice = match admin {
                    true => {
                        "administrators can let themselves in: watch PutKeyPolicy and CreateGrant in CloudTrail"
                    }
                    false => {
                        "add the condition kms:GrantIsForAWSResource, or take kms:CreateGrant out"
                    }
                };
                found.push((level, text, advice));
            }
        }
        for (level, text, advice) in found {
            self.add(level, "rights", text, advice);
        }
    }

    /// Will there be somebody who can change the policy?
    fn administration(&mut self) {
        let open = |statement: &&Statement| {
            statement.conditions.is_empty() && statement.may("kms:PutKeyPolicy")
        };
        let through_iam = self
            .statements
            .iter()
            .filter(open)
            .any(|statement| statement.principals.iter().any(|who| self.is_own_root(who)));
        let named = self
            .statements
            .iter()
            .filter(|s| s.may("kms:PutKeyPolicy"))
            .any(|statement| statement.who().iter().any(|who| !self.is_own_root(who)));
        let keeps = self.statements.iter().filter(open).any(|statement| {
            statement.principals.iter().any(|who| *who == "*" || is_caller(who, &self.caller.arn))
        });
        if !through_iam {
            let text = "no statement lets IAM policies of the account count".to_owned();
            let advice = "without kms:* for the account's root a key whose administrators have gone \
                          is lost to everybody but AWS support";
            self.add(Level::Error, "administration", text, advice);
        } else {
            let text = "IAM policies of the account count".to_owned();
            let advice = "whoever has kms:Decrypt on all keys in IAM may use this one, whatever its \
                          conditions say: look for such policies";
            self.add(Level::Note, "administration", text, advice);
        }
        if !through_iam && !keeps {
            let text = format!("{} could not change the policy again", self.caller.arn);
            let advice = "KMS refuses that (BypassPolicyLockoutSafetyCheck stays false): name yourself or \
                          the account's root as an administrator";
            self.add(Level::Error, "administration", text, advice);
        }
        if !named {
            let text = "no administrator is named".to_owned();
            let advice = "only who may through IAM can look after the key: name one with --admin";
            self.add(Level::Warning, "administration", text, advice);
        }
    }

    fn users(&mut self) {
        let of = |action: &str| -> Vec<&str> {
            let all = self.statements.iter().filter(|statement| statement.may(action));
            let who = all.flat_map(|statement| statement.who().iter().copied());
            who.filter(|who| !self.is_own_root(who)).collect()
        };
        let admins = of("kms:PutKeyPolicy");
        let mut users = [of("kms:Decrypt"), of("kms:GenerateDataKey"), of("kms:Encrypt")].concat();
        let mut both: Vec<String> =
            users.iter().filter(|who| admins.contains(who)).map(|who| (*who).to_owned()).collect();
        both.sort();
        both.dedup();
        users.retain(|who| !admins.contains(who));
        let nobody = users.is_empty() && both.is_empty();
        if nobody {
            let text = "nobody is named who may use the key".to_owned();
            let advice = "only who may through IAM can mount: name the host's role with --user";
            self.add(Level::Warning, "users", text, advice);
        }
        for who in both {
            let text = format!("{who} both looks after the key and uses it");
            let advice = "one login then suffices to read everything and to take the key away: use \
                          two roles";
            self.add(Level::Warning, "users", text, advice);
        }
    }
}

/// Is the caller the principal, or a session of the role it names?
fn is_caller(principal: &str, caller: &str) -> bool {
    if principal == caller {
        return true;
    }
    let role = caller.split(":assumed-role/").nth(1).and_then(|rest| rest.split('/').next());
    let named = principal.split_once(":role/").and_then(|(_, path)| path.rsplit('/').next());
    role.is_some() && role == named && account_of(principal) == account_of(caller)
}

#[cfg(test)]
mod tests;
