use super::*;
use crate::format::VolumeId;
use crate::provision::policy::PolicyWish;
use serde_json::json;

const ADMIN: &str = "arn:aws:iam::111122223333:role/keys";
const HOST: &str = "arn:aws:iam::111122223333:role/host";
const SSO: &str = "arn:aws:iam::111122223333:role/aws-reserved/sso.amazonaws.com/\
                   AWSReservedSSO_Admins_0123456789abcdef";

fn caller() -> Caller {
    Caller {
        account: "111122223333".into(),
        partition: "aws".into(),
        arn: "arn:aws:iam::111122223333:user/me".into(),
    }
}

fn wish() -> PolicyWish {
    PolicyWish {
        admins: vec![ADMIN.into()],
        users: vec![HOST.into()],
        ..PolicyWish::new(&caller(), VolumeId([7; 16]))
    }
}

/// The findings of this level about a policy.
fn of(level: Level, policy: &Value) -> Vec<String> {
    let all = findings(policy, &caller()).into_iter();
    all.filter(|finding| finding.level == level).map(|finding| finding.found).collect()
}

fn errors(policy: &Value) -> Vec<String> {
    of(Level::Error, policy)
}

/// A sound policy and one more statement.
fn with(statement: Value) -> Value {
    let mut policy = wish().strict();
    policy["Statement"].as_array_mut().unwrap().push(statement);
    policy
}

#[track_caller]
fn has(found: &[String], words: &str) {
    assert!(found.iter().any(|text| text.contains(words)), "{words}: {found:?}");
}

#[test]
fn our_own_policies_are_sound() {
    let more = PolicyWish {
        read_only: vec!["arn:aws:iam::111122223333:role/reader".into()],
        rotators: vec!["arn:aws:iam::111122223333:role/path/rotator".into()],
        extra_recipients: true,
        aws_services: true,
        ..wish()
    };
    for policy in [wish().strict(), more.strict(), wish().console()] {
        assert_eq!(errors(&policy), [""; 0]);
        assert_eq!(of(Level::Warning, &policy), [""; 0]);
    }
    let policy = wish().strict();
    has(&of(Level::Note, &policy), "IAM policies of the account count");
    has(&of(Level::Note, &policy), "KeyAdministrators allows grants");
}

#[test]
fn who_has_too_much_or_nothing_is_found() {
    let both = PolicyWish { users: vec![ADMIN.into()], ..wish() };
    has(&of(Level::Warning, &both.strict()), "both looks after the key and uses it");
    let nobody = PolicyWish { users: vec![], admins: vec![], ..wish() };
    has(&of(Level::Warning, &nobody.strict()), "nobody is named who may use");
    has(&of(Level::Warning, &nobody.strict()), "no administrator is named");
    let everything = json!({
        "Sid": "All", "Effect": "Allow", "Principal": { "AWS": HOST }, "Action": "kms:*",
        "Resource": "*",
    });
    has(&errors(&with(everything)), "All allows everything");
    let grants = json!({
        "Sid": "Grants", "Effect": "Allow", "Principal": { "AWS": HOST },
        "Action": ["kms:CreateGrant"], "Resource": "*",
    });
    has(&of(Level::Warning, &with(grants.clone())), "Grants allows grants");
    let mut bound = grants;
    bound["Condition"] = json!({ "Bool": { "kms:GrantIsForAWSResource": "true" } });
    assert_eq!(of(Level::Warning, &with(bound)), [""; 0]);
}

#[test]
fn principals_that_are_none_are_found() {
    for (who, words) in [
        ("me", "this is no ARN"),
        ("arn:aws:iam::1111:role/x", "has not twelve digits"),
        ("arn:aws-cn:iam::111122223333:role/x", "partition aws-cn"),
        ("arn:aws:iam::111122223333:group/x", "this is no principal"),
        ("arn:aws:iam::111122223333:role/", "this is no principal"),
        ("arn:aws:iam::111122223333:rolex", "this is no principal"),
        ("arn:aws:s3:::bucket", "has not twelve digits"),
        ("arn:aws:iam::111122223333:role/x*", "no wildcard"),
        ("AROAEXAMPLEEXAMPLE", "was deleted"),
        ("AIDAEXAMPLEEXAMPLE", "was deleted"),
        ("*", "everybody in every account"),
    ] {
        let policy = PolicyWish { users: vec![HOST.into(), who.into()], ..wish() }.strict();
        // The same once, in however many statements.
        let found = errors(&policy);
        assert_eq!(found.len(), 1, "{who}: {found:?}");
        has(&found, words);
    }
    for who in [
        "444455556666",
        "arn:aws:iam::444455556666:role/a/b/c",
        "arn:aws:iam::444455556666:user/me",
        "arn:aws:sts::444455556666:assumed-role/role/session",
    ] {
        let policy = PolicyWish { users: vec![who.into()], ..wish() }.strict();
        assert_eq!(errors(&policy), [""; 0], "{who}");
    }
    let nobody = json!({ "Sid": "N", "Effect": "Allow", "Action": "kms:Get*", "Resource": "*" });
    has(&errors(&with(nobody)), "N names no principal");
    let others = PolicyWish { accounts: vec!["444455556666".into()], ..wish() };
    has(&of(Level::Note, &others.strict()), "account 444455556666 may use the key");
}

#[test]
fn roles_of_single_sign_on_are_worth_a_warning_unless_described() {
    let sso = PolicyWish { users: vec![SSO.into()], ..wish() };
    has(&of(Level::Warning, &sso.strict()), "single sign-on");
    let session =
        "arn:aws:sts::111122223333:assumed-role/AWSReservedSSO_Admins_0123456789abcdef/ann";
    let session = PolicyWish { users: vec![session.into()], sso_wildcard: true, ..wish() };
    has(&of(Level::Warning, &session.strict()), "one session of a role of single sign-on");
    let described = PolicyWish { sso_wildcard: true, ..sso };
    assert_eq!(of(Level::Warning, &described.strict()), [""; 0]);
    has(&of(Level::Note, &described.strict()), "is a pattern");
    let both = PolicyWish { admins: vec![SSO.into()], ..described };
    has(&of(Level::Warning, &both.strict()), "both looks after the key and uses it");
}

#[test]
fn statements_that_do_nothing_are_found() {
    let whole = json!({
        "Sid": "S", "Effect": "Allow", "Principal": { "AWS": HOST }, "Action": "kms:DescribeKey",
        "Resource": "*",
    });
    for (member, words) in [("Action", "S has no Action"), ("Resource", "S has no Resource")] {
        let mut part = whole.clone();
        part.as_object_mut().unwrap().remove(member);
        has(&errors(&with(part)), words);
    }
    has(&errors(&json!({ "Version": "2012-10-17" })), "no statement");
}

#[test]
fn nobody_locks_himself_out() {
    let mut policy = wish().strict();
    policy["Statement"].as_array_mut().unwrap().remove(0);
    let found = errors(&policy);
    has(&found, "no statement lets IAM policies of the account count");
    has(&found, "user/me could not change the policy again");
    let me = PolicyWish { admins: vec![caller().arn], ..wish() };
    let mut policy = me.strict();
    policy["Statement"].as_array_mut().unwrap().remove(0);
    assert_eq!(errors(&policy).len(), 1);
    // A condition may or may not hold.
    policy["Statement"][0]["Condition"] =
        json!({ "Bool": { "aws:MultiFactorAuthPresent": "true" } });
    assert_eq!(errors(&policy).len(), 2);
    let session = "arn:aws:sts::111122223333:assumed-role/keys/me";
    assert!(is_caller(ADMIN, session) && !is_caller(HOST, session));
    assert!(is_caller("arn:aws:iam::111122223333:role/a/b/keys", session));
    assert!(!is_caller("arn:aws:iam::444455556666:role/keys", session));
}

#[test]
fn a_policy_has_a_size() {
    let users = (0..600).map(|i| format!("arn:aws:iam::111122223333:role/host-{i:010}")).collect();
    has(&errors(&PolicyWish { users, ..wish() }.strict()), "bytes, and KMS takes 32768");
}

#[test]
fn the_worst_comes_first() {
    let policy = PolicyWish { users: vec!["me".into(), SSO.into()], ..wish() }.strict();
    let levels: Vec<Level> = findings(&policy, &caller()).iter().map(|f| f.level).collect();
    assert!(levels.is_sorted_by(|a, b| a >= b), "{levels:?}");
    assert_eq!(levels[0], Level::Error);
    assert!(findings(&policy, &caller()).iter().all(|finding| finding.advice.is_some()));
}

#[test]
fn actions_fit_patterns() {
    for (pattern, action) in [
        ("kms:*", "kms:Decrypt"),
        ("*", "kms:Decrypt"),
        ("kms:Put*", "kms:PutKeyPolicy"),
        ("KMS:decrypt", "kms:Decrypt"),
        ("kms:*Key*", "kms:GenerateDataKeyPair"),
    ] {
        assert!(fits(pattern, action), "{pattern} {action}");
    }
    for (pattern, action) in [
        ("kms:Decrypt", "kms:DecryptX"),
        ("kms:Put*", "kms:Get"),
        ("", "kms:Get"),
        ("k*x", "kms:Get"),
    ] {
        assert!(!fits(pattern, action), "{pattern} {action}");
    }
}
