use super::*;

const ID: &str = "00112233445566778899aabbccddeeff";
const ROOT: &str = "arn:aws:iam::111122223333:root";
const ADMIN: &str = "arn:aws:iam::111122223333:role/keys";
const HOST: &str = "arn:aws:iam::111122223333:role/host";
const READER: &str = "arn:aws:iam::111122223333:role/reader";
const ROTATOR: &str = "arn:aws:iam::111122223333:role/rotator";
const SSO: &str = "arn:aws:iam::111122223333:role/aws-reserved/sso.amazonaws.com/eu-central-1/\
                   AWSReservedSSO_Key_Admins_0123456789abcdef";

fn wish() -> PolicyWish {
    let caller = Caller {
        account: "111122223333".into(),
        partition: "aws".into(),
        arn: "arn:aws:iam::111122223333:user/me".into(),
    };
    let mut id = [0; 16];
    id.iter_mut().enumerate().for_each(|(i, b)| *b = i as u8 * 0x11);
    PolicyWish {
        admins: vec![ADMIN.into()],
        users: vec![HOST.into()],
        ..PolicyWish::new(&caller, VolumeId(id))
    }
}

fn statement<'a>(policy: &'a Value, sid: &str) -> Option<&'a Value> {
    policy["Statement"].as_array().unwrap().iter().find(|statement| statement["Sid"] == sid)
}

#[test]
fn the_strict_policy_binds_every_use_to_the_volume() {
    let wish =
        PolicyWish { read_only: vec![READER.into()], rotators: vec![ROTATOR.into()], ..wish() };
    let volume = json!({ "StringEquals": { "kms:EncryptionContext:kmsfs:volume": ID } });
    let expected = json!({
        "Version": "2012-10-17",
        "Id": "kmsfs-volume",
        "Statement": [
            {
                "Sid": "EnableIamPolicies", "Effect": "Allow", "Principal": { "AWS": ROOT },
                "Action": "kms:*", "Resource": "*",
            },
            {
                "Sid": "KeyAdministrators", "Effect": "Allow", "Principal": { "AWS": ADMIN },
                "Action": [
                    "kms:Create*", "kms:Describe*", "kms:Enable*", "kms:List*", "kms:Put*",
                    "kms:Update*", "kms:Revoke*", "kms:Disable*", "kms:Get*", "kms:Delete*",
                    "kms:TagResource", "kms:UntagResource", "kms:RotateKeyOnDemand",
                    "kms:ScheduleKeyDeletion", "kms:CancelKeyDeletion",
                ],
                "Resource": "*",
            },
            {
                "Sid": "VolumeUse", "Effect": "Allow", "Principal": { "AWS": HOST },
                "Action": ["kms:GenerateDataKey", "kms:Decrypt"], "Resource": "*",
                "Condition": volume,
            },
            {
                "Sid": "VolumeRead", "Effect": "Allow", "Principal": { "AWS": READER },
                "Action": "kms:Decrypt", "Resource": "*", "Condition": volume,
            },
            {
                "Sid": "VolumeRewrap", "Effect": "Allow", "Principal": { "AWS": ROTATOR },
                "Action": ["kms:ReEncryptFrom", "kms:ReEncryptTo"], "Resource": "*",
                "Condition": volume,
            },
            {
                "Sid": "VolumeUnlock", "Effect": "Allow", "Principal": { "AWS": ROTATOR },
                "Action": "kms:Decrypt", "Resource": "*",
                "Condition": { "StringEquals": {
                    "kms:EncryptionContext:kmsfs:volume": ID,
                    "kms:EncryptionContext:kmsfs:purpose": "volume",
                } },
            },
            {
                "Sid": "VolumeDescribe", "Effect": "Allow",
                "Principal": { "AWS": [HOST, READER, ROTATOR] },
                "Action": "kms:DescribeKey", "Resource": "*",
            },
        ],
    });
    assert_eq!(wish.strict(), expected);
}

#[test]
fn the_console_policy_is_the_console_s() {
    let wish = PolicyWish { accounts: vec!["444455556666".into()], ..wish() };
    let users = json!({ "AWS": [HOST, "arn:aws:iam::444455556666:root"] });
    let expected = json!({
        "Version": "2012-10-17",
        "Id": "key-consolepolicy-3",
        "Statement": [
            {
                "Sid": "Enable IAM User Permissions", "Effect": "Allow",
                "Principal": { "AWS": ROOT }, "Action": "kms:*", "Resource": "*",
            },
            {
                "Sid": "Allow access for Key Administrators", "Effect": "Allow",
                "Principal": { "AWS": ADMIN },
                "Action": [
                    "kms:Create*", "kms:Describe*", "kms:Enable*", "kms:List*", "kms:Put*",
                    "kms:Update*", "kms:Revoke*", "kms:Disable*", "kms:Get*", "kms:Delete*",
                    "kms:TagResource", "kms:UntagResource", "kms:RotateKeyOnDemand",
                    "kms:ScheduleKeyDeletion", "kms:CancelKeyDeletion",
                ],
                "Resource": "*",
            },
            {
                "Sid": "Allow use of the key", "Effect": "Allow", "Principal": users,
                "Action": [
                    "kms:Encrypt", "kms:Decrypt", "kms:ReEncrypt*", "kms:GenerateDataKey*",
                    "kms:DescribeKey",
                ],
                "Resource": "*",
            },
            {
                "Sid": "Allow attachment of persistent resources", "Effect": "Allow",
                "Principal": users,
                "Action": ["kms:CreateGrant", "kms:ListGrants", "kms:RevokeGrant"],
                "Resource": "*",
                "Condition": { "Bool": { "kms:GrantIsForAWSResource": "true" } },
            },
        ],
    });
    assert_eq!(wish.console(), expected);
}

#[test]
fn options_add_and_take_away() {
    let more = PolicyWish {
        partition: "aws-cn".into(),
        accounts: vec!["444455556666".into()],
        may_delete: false,
        extra_recipients: true,
        aws_services: true,
        endpoints: vec!["vpce-1".into(), "vpce-2".into()],
        ..wish()
    };
    let policy = more.strict();
    let users = json!([HOST, "arn:aws-cn:iam::444455556666:root"]);
    let used = statement(&policy, "VolumeUse").unwrap();
    assert_eq!(used["Principal"]["AWS"], users);
    assert_eq!(used["Action"], json!(["kms:GenerateDataKey", "kms:Decrypt", "kms:Encrypt"]));
    assert_eq!(
        used["Condition"]["StringEquals"],
        json!({ "kms:EncryptionContext:kmsfs:volume": ID })
    );
    // Whatever IAM allows, too.
    let expected = json!({
        "Sid": "OnlyThroughEndpoints", "Effect": "Deny", "Principal": { "AWS": "*" },
        "Action": ["kms:Decrypt", "kms:Encrypt", "kms:GenerateDataKey*", "kms:ReEncrypt*"],
        "Resource": "*",
        "Condition": {
            "StringNotEquals": { "aws:SourceVpce": ["vpce-1", "vpce-2"] },
            "Bool": { "aws:ViaAWSService": "false" },
        },
    });
    assert_eq!(statement(&policy, "OnlyThroughEndpoints"), Some(&expected));
    let alone = PolicyWish { aws_services: false, ..more.clone() }.strict();
    let denial = statement(&alone, "OnlyThroughEndpoints").unwrap();
    assert_eq!(denial["Condition"].as_object().unwrap().len(), 1);
    // Who administers from elsewhere must not be locked out.
    let admin = statement(&policy, "KeyAdministrators").unwrap();
    assert_eq!(admin.get("Condition"), None);
    assert!(!admin["Action"].to_string().contains("Deletion"));
    let services = statement(&policy, "AwsServices").unwrap();
    assert_eq!(services["Condition"]["Bool"]["kms:GrantIsForAWSResource"], "true");
    let root = statement(&policy, "EnableIamPolicies").unwrap();
    assert_eq!(root["Principal"]["AWS"], "arn:aws-cn:iam::111122223333:root");
    for sid in ["VolumeRead", "VolumeRewrap", "VolumeUnlock"] {
        assert_eq!(statement(&policy, sid), None);
    }
}

#[test]
fn roles_of_single_sign_on_are_named_by_pattern_if_asked() {
    let pattern = "arn:aws:iam::111122223333:role/aws-reserved/sso.amazonaws.com/eu-central-1/\
                   AWSReservedSSO_Key_Admins_????????????????";
    assert_eq!(sso_pattern(SSO).as_deref(), Some(pattern));
    assert_eq!(sso_pattern(HOST), None);
    let named = PolicyWish { users: vec![HOST.into(), SSO.into()], ..wish() };
    let policy = named.strict();
    assert_eq!(statement(&policy, "VolumeUse").unwrap()["Principal"]["AWS"], json!([HOST, SSO]));
    let policy = PolicyWish { sso_wildcard: true, aws_services: true, ..named }.strict();
    // Nowhere is the name left that will change.
    assert!(!policy.to_string().contains("0123456789abcdef"), "{policy}");
    let services = statement(&policy, "AwsServicesSso").unwrap();
    assert_eq!(
        services["Condition"],
        json!({
            "ArnLike": { "aws:PrincipalArn": pattern },
            "Bool": { "kms:GrantIsForAWSResource": "true" },
        })
    );
    assert_eq!(statement(&policy, "VolumeUse").unwrap()["Principal"]["AWS"], HOST);
    let described = statement(&policy, "VolumeUseSso").unwrap();
    assert_eq!(described["Principal"]["AWS"], ROOT);
    assert_eq!(
        described["Condition"],
        json!({
            "ArnLike": { "aws:PrincipalArn": pattern },
            "StringEquals": { "kms:EncryptionContext:kmsfs:volume": ID },
        })
    );
}

#[test]
fn policies_are_the_same_if_they_say_the_same() {
    let policy = wish().strict();
    let mut other = policy.clone();
    other["Statement"].as_array_mut().unwrap().reverse();
    let users = other["Statement"].as_array_mut().unwrap().iter_mut();
    for statement in users {
        let who = statement["Principal"]["AWS"].clone();
        if who.is_string() {
            statement["Principal"]["AWS"] = json!([who]);
        }
    }
    assert_ne!(policy, other);
    assert!(is_same(&policy, &other));
    for (name, value) in [("Principal", json!({ "AWS": "*" })), ("Effect", json!("Deny"))] {
        let mut other = policy.clone();
        other["Statement"][2][name] = value;
        assert!(!is_same(&policy, &other), "{name}");
    }
    let mut other = policy.clone();
    other["Statement"][2].as_object_mut().unwrap().remove("Condition");
    assert!(!is_same(&policy, &other));
}
