//! A key that is there already: taken only if it is the one that is wanted.

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};

use super::aws::{Effect, Origin, Rule};
use super::ground::until;
use super::key::{Bed, ID, made, refused, text};

/// A key that somebody else gave the mark, with a policy of his own.
fn impostor(bed: &Bed, more: &Value) -> String {
    let policy = json!({ "Version": "2012-10-17", "Statement": [{
        "Sid": "Mine", "Effect": "Allow", "Principal": { "AWS": "arn:aws:iam::111122223333:root" },
        "Action": "kms:*", "Resource": "*",
    }, {
        "Sid": "Everybody", "Effect": "Allow", "Principal": { "AWS": "arn:aws:iam::999999999999:root" },
        "Action": "kms:Decrypt", "Resource": "*",
    }] });
    let mut request = json!({ "Policy": policy.to_string(), "Tags": tags("kmsfs", ID, 1) });
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let made = bed.fake.client().call("CreateKey", &request).unwrap();
    made["KeyMetadata"]["Arn"].as_str().unwrap().to_owned()
}

fn tags(deployment: &str, volume: &str, number: u32) -> Value {
    let tag = |name: &str, value: &str| json!({ "TagKey": name, "TagValue": value });
    json!([
        tag("kmsfs:request", &format!("{volume}.{number}")),
        tag("kmsfs:deployment", deployment),
        tag("kmsfs:volume", volume),
        tag("kmsfs:alias", "alias/kmsfs"),
    ])
}

fn nothing_was_changed(bed: &Bed) {
    // One was made by the test itself.
    assert_eq!(bed.fake.calls("CreateKey"), 1);
    let writes = ["CreateAlias", "UpdateAlias", "PutKeyPolicy", "EnableKeyRotation"];
    assert!(writes.iter().all(|operation| bed.fake.calls(operation) == 0));
}

#[test]
fn a_key_with_another_policy_is_shown_and_not_taken() {
    let bed = Bed::new();
    let arn = impostor(&bed, &json!({}));
    let here = ["--origin", "aws-kms"];
    let said = refused(&mut bed.key(&here), 1, "has another policy than these options describe");
    // The policy that counts is shown, and looked over.
    for words in ["policy it has", "999999999999", "--put-policy", "--keep-policy", &arn] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(said.contains("account 999999999999 may use the key"), "{said}");
    nothing_was_changed(&bed);
    // By its alias it is no better.
    bed.fake.set_alias("alias/kmsfs", &arn);
    refused(&mut bed.anonymous_key(&here), 1, "has another policy");
    let kept = made(&mut bed.key(&[&here[..], &["--keep-policy"]].concat()));
    assert_eq!((&kept["key"], &kept["policy_differs"]), (&json!(arn), &json!(true)));
    let put = made(&mut bed.key(&[&here[..], &["--put-policy"]].concat()));
    assert_eq!(put["policy_differs"], false);
    let policy = bed.ask("GetKeyPolicy", &arn)["Policy"].as_str().unwrap().to_owned();
    assert!(policy.contains("VolumeUse") && !policy.contains("999999999999"), "{policy}");
    // Now it is the one that is wanted.
    made(&mut bed.key(&here));
    assert_eq!(bed.fake.calls("PutKeyPolicy"), 1);
}

/// The policy is the one that is wanted, and is not all that counts.
#[test]
fn a_key_with_grants_is_shown_and_not_taken() {
    let bed = Bed::new();
    let here = ["--origin", "aws-kms"];
    let policy = made(bed.key(&here).arg("--policy-only")).to_string();
    let request = json!({ "Policy": policy, "Tags": tags("kmsfs", ID, 1) });
    let client = bed.fake.client();
    let key = client.call("CreateKey", &request).unwrap()["KeyMetadata"]["Arn"].clone();
    // More than there are in one page of the list.
    let grant = |number: u32| {
        let guest = format!("arn:aws:iam::{}:user/guest-{number}", bed.fake.account());
        let operations = ["Decrypt", "DescribeKey"];
        let grant = json!({ "KeyId": key, "GranteePrincipal": guest, "Operations": operations });
        client.call("CreateGrant", &grant).unwrap()["GrantId"].as_str().unwrap().to_owned()
    };
    let ids: Vec<String> = (0..60).map(grant).collect();
    for more in [&[][..], &["--put-policy"], &["--keep-policy"], &["--accept-findings"]] {
        let said = refused(&mut bed.anonymous_key(&[&here[..], more].concat()), 1, "60 grants");
        assert!(ids.iter().all(|id| said.contains(id)), "{said}");
        for words in ["user/guest-59 may Decrypt, DescribeKey", "revoke-grant", "--keep-grants"] {
            assert!(said.contains(words), "{words}: {said}");
        }
    }
    nothing_was_changed(&bed);
    for id in &ids[1..] {
        client.call("RevokeGrant", &json!({ "KeyId": key, "GrantId": id })).unwrap();
    }
    refused(&mut bed.anonymous_key(&here), 1, "a grant");
    made(&mut bed.anonymous_key(&[&here[..], &["--keep-grants"]].concat()));
    client.call("RevokeGrant", &json!({ "KeyId": key, "GrantId": ids[0] })).unwrap();
    assert_eq!(made(&mut bed.anonymous_key(&here))["key"], key);
}

#[test]
fn grants_that_cannot_be_read_may_be_any() {
    let bed = Bed::new();
    made(&mut bed.key(&[]));
    bed.fake.fault(Rule::new(Effect::Deny).on("ListGrants"));
    refused(&mut bed.key(&[]), 1, "does not show this caller its grants (kms:ListGrants)");
    made(&mut bed.key(&["--keep-grants"]));
}

#[test]
fn a_policy_that_cannot_be_read_may_be_anything() {
    let bed = Bed::new();
    impostor(&bed, &json!({}));
    bed.fake.fault(Rule::new(Effect::Deny).on("GetKeyPolicy"));
    refused(&mut bed.key(&["--origin", "aws-kms"]), 1, "does not show this caller its policy");
    nothing_was_changed(&bed);
    let kept = made(&mut bed.key(&["--origin", "aws-kms", "--keep-policy"]));
    assert_eq!(kept["policy_differs"], Value::Null);
}

#[test]
fn a_multi_region_key_is_not_taken_whatever_its_policy() {
    let bed = Bed::new();
    impostor(&bed, &json!({ "MultiRegion": true }));
    let arguments = ["--origin", "aws-kms", "--keep-policy"];
    let said = refused(&mut bed.key(&arguments), 1, "it is a multi-Region key");
    assert!(said.contains("take the tag kmsfs:request away"), "{said}");
    nothing_was_changed(&bed);
}

/// Whatever does not show its tags may be the key.
#[test]
fn one_key_that_hides_its_tags_is_enough_to_stop() {
    let bed = Bed::new();
    for _ in 0..3 {
        bed.fake.create_key(Origin::Kms);
    }
    let hide = || bed.fake.fault(Rule::new(Effect::Deny).on("ListResourceTags").times(1));
    for arguments in [&["--volume-id", ID][..], &[]] {
        hide();
        let said = refused(&mut bed.anonymous_key(arguments), 1, "kms:ListResourceTags");
        assert!(said.contains("--accept-hidden-keys"), "{said}");
    }
    assert_eq!(bed.fake.calls("CreateKey"), 0);
    hide();
    made(&mut bed.key(&["--accept-hidden-keys"]));
}

#[test]
fn an_alias_that_does_not_show_its_key_stops_everything() {
    let bed = Bed::new();
    let foreign = bed.fake.create_key(Origin::Kms);
    bed.fake.set_alias("alias/kmsfs", &foreign);
    bed.fake.fault(Rule::new(Effect::Deny).on("DescribeKey"));
    refused(&mut bed.key(&[]), 1, "alias/kmsfs: DescribeKey failed");
    assert_eq!(bed.fake.calls("CreateKey"), 0);
}

#[test]
fn without_its_alias_the_youngest_key_is_found_not_a_retired_one() {
    let bed = Bed::new();
    let first = made(&mut bed.anonymous_key(&["--origin", "aws-kms"]));
    let volume = first["volume_id"].as_str().unwrap();
    let old = first["key"].as_str().unwrap();
    let client = bed.fake.client();
    let policy = bed.ask("GetKeyPolicy", old)["Policy"].clone();
    let next = json!({ "Policy": policy, "Tags": tags("kmsfs", volume, 2) });
    let next = client.call("CreateKey", &next).unwrap()["KeyMetadata"]["Arn"].clone();
    client.call("DisableKey", &json!({ "KeyId": old })).unwrap();
    client.call("DeleteAlias", &json!({ "AliasName": "alias/kmsfs" })).unwrap();
    for arguments in [&["--volume-id", volume][..], &[]] {
        let again = made(&mut bed.anonymous_key(&[arguments, &["--origin", "aws-kms"]].concat()));
        assert_eq!((&again["key"], &again["volume_id"]), (&next, &json!(volume)));
        client.call("DeleteAlias", &json!({ "AliasName": "alias/kmsfs" })).unwrap();
    }
    // For which volume, if there are two, only people can say.
    let other = json!({ "Policy": policy, "Tags": tags("kmsfs", ID, 1) });
    client.call("CreateKey", &other).unwrap();
    let said = refused(&mut bed.anonymous_key(&["--origin", "aws-kms"]), 1, "may be any of");
    assert!(said.contains("--volume-id") && said.contains(ID), "{said}");
}

#[test]
fn rotation_of_a_key_that_is_there_is_asked_for() {
    let bed = Bed::new();
    let here = ["--origin", "aws-kms"];
    made(&mut bed.key(&here));
    let rotated = [&here[..], &["--rotation-days", "180"]].concat();
    let mut unasked = std::process::Command::new(env!("CARGO_BIN_EXE_kmsfsctl"));
    let asked = bed.key(&rotated);
    unasked.args(asked.get_args().filter(|word| *word != "--yes"));
    unasked.env_clear().envs(asked.get_envs().filter_map(|(name, value)| Some((name, value?))));
    unasked.stdin(std::process::Stdio::null());
    refused(&mut unasked, 1, "say --yes");
    assert_eq!(bed.fake.calls("EnableKeyRotation"), 0);
    made(&mut bed.key(&rotated));
    made(&mut bed.key(&rotated));
    assert_eq!(bed.fake.calls("EnableKeyRotation"), 1);
    let output = bed.key(&[&here[..], &["--rotation-days", "365"]].concat()).output().unwrap();
    assert!(text(&output).contains("every 365 days (now every 180 days)"), "{}", text(&output));
}

/// Killed while KMS makes the key, and run again before KMS shows it.
#[test]
fn a_key_that_a_killed_run_made_is_waited_for() {
    let bed = Bed::new();
    bed.fake.set_consistency(Duration::from_millis(1500));
    let here = ["--origin", "aws-kms", "--settling", "20s"];
    let mut killed = bed.anonymous_key(&here).stderr(Stdio::null()).spawn().unwrap();
    until("CreateKey", || bed.fake.calls_ok("CreateKey") > 0);
    killed.kill().unwrap();
    killed.wait().unwrap();
    // Another account has other keys.
    assert!(matches!(&bed.marks()[..], [mark] if mark.contains(bed.fake.account())));
    let made = made(&mut bed.anonymous_key(&here));
    assert_eq!((&made["created"], bed.fake.calls("CreateKey")), (&json!(false), 1));
    assert_eq!(bed.target("alias/kmsfs"), made["key"].as_str().unwrap());
    assert_eq!(bed.marks(), [""; 0]);
}

/// The same, while another key has the alias.
#[test]
fn a_key_that_a_killed_run_made_is_found_behind_an_alias_of_another_key() {
    let bed = Bed::new();
    let foreign = bed.fake.create_key(Origin::Kms);
    bed.fake.set_alias("alias/kmsfs", &foreign);
    let rule = bed.fake.fault(Rule::new(Effect::Hang).on("UpdateAlias"));
    let mut command = bed.anonymous_key(&["--repoint-alias"]);
    let mut killed = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("CreateKey", || bed.fake.calls_ok("CreateKey") > 0);
    killed.kill().unwrap();
    killed.wait().unwrap();
    bed.fake.clear_fault(rule);
    let made = made(&mut bed.anonymous_key(&["--repoint-alias"]));
    assert_eq!((&made["created"], bed.fake.calls("CreateKey")), (&json!(false), 1));
    assert_eq!(bed.target("alias/kmsfs"), made["key"].as_str().unwrap());
}

/// Its successor is behind the alias, and is about to be deleted: what came before it is no way back.
#[test]
fn a_key_that_was_rotated_away_is_not_taken_when_the_alias_goes_elsewhere() {
    let bed = Bed::new();
    let first = made(&mut bed.anonymous_key(&["--origin", "aws-kms"]));
    let (old, volume) = (first["key"].as_str().unwrap(), first["volume_id"].as_str().unwrap());
    let client = bed.fake.client();
    let policy = bed.ask("GetKeyPolicy", old)["Policy"].clone();
    let next = json!({ "Policy": policy, "Tags": tags("kmsfs", volume, 2) });
    let next = client.call("CreateKey", &next).unwrap()["KeyMetadata"]["Arn"].clone();
    bed.fake.set_alias("alias/kmsfs", next.as_str().unwrap());
    let delete = json!({ "KeyId": next, "PendingWindowInDays": 7 });
    client.call("ScheduleKeyDeletion", &delete).unwrap();
    let made = made(&mut bed.anonymous_key(&["--origin", "aws-kms", "--repoint-alias"]));
    assert_eq!(made["created"], true, "{made}");
    assert!(made["key"] != old && made["key"] != next && made["volume_id"] != volume, "{made}");
}

/// Between the look and the making, people read and a cluster may have to be made.
#[test]
fn a_key_that_somebody_made_after_the_look_stops_the_run() {
    let foreign_key = |bed: &Bed| {
        let foreign = bed.fake.create_key(Origin::Kms);
        bed.fake.set_alias("alias/kmsfs", &foreign);
    };
    let same_command = |bed: &Bed| drop(made(&mut bed.anonymous_key(&["--origin", "aws-kms"])));
    for meanwhile in [&same_command as &dyn Fn(&Bed), &foreign_key] {
        let bed = Bed::new();
        let rule = bed.fake.fault(Rule::new(Effect::Hang).on("DescribeCustomKeyStores"));
        let mut slow = bed.anonymous_key(&[]);
        let slow = slow.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // With nothing to be seen the last thing that is looked at, before the key store.
        until("the look", || bed.fake.calls_ok("ListKeys") > 0);
        meanwhile(&bed);
        bed.fake.clear_fault(rule);
        let said = text(&slow.wait_with_output().unwrap());
        assert!(
            said.contains("meanwhile") && said.contains("run the same command again"),
            "{said}"
        );
        assert_eq!((bed.keys().len(), bed.marks()), (1, vec![]), "{said}");
    }
}
