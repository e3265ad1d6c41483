//! A cluster that is there is compared with what is asked for.

use serde_json::{Value, json};

use super::ground::{Ground, refused, text};

/// A cluster of the deployment that somebody made with these members.
fn made(ground: &Ground, members: &Value) -> String {
    let subnets: Vec<String> = (1..3).map(|n| format!("subnet-0a{n:015x}")).collect();
    let mut request = json!({
        "HsmType": "hsm2m.medium", "Mode": "FIPS", "SubnetIds": subnets,
        "TagList": [
            { "Key": "kmsfs:deployment", "Value": "kmsfs" }, { "Key": "team", "Value": "web" },
        ],
    });
    members.as_object().unwrap().iter().for_each(|(name, value)| request[name] = value.clone());
    let answer = ground.fake.client().call_cloudhsm("CreateCluster", &request).unwrap();
    answer["Cluster"]["ClusterId"].as_str().unwrap().to_owned()
}

#[test]
fn what_cannot_be_changed_must_be_as_asked_for() {
    for (members, kind, words) in [
        (json!({ "Mode": "NON_FIPS" }), "hsm2m.medium", ["mode NON_FIPS", "FIPS"]),
        (json!({ "NetworkType": "DUALSTACK" }), "hsm2m.medium", ["network type DUALSTACK", "IPV4"]),
        (json!({}), "hsm1.medium", ["HSM type hsm1.medium", "hsm2m.medium"]),
    ] {
        let ground = Ground::new();
        let id = made(&ground, &members);
        ground.fake.control(&json!({ "cluster": { "id": id, "type": kind } })).unwrap();
        let error = refused(&mut ground.provision(&["cluster", "--cluster", &id]));
        for word in words.iter().chain(&[&id[..], "cannot be changed", "delete-cluster"]) {
            assert!(error.contains(word), "{word}: {error}");
        }
        assert_eq!(ground.fake.calls("CreateHsm"), 0);
    }
}

#[test]
fn what_can_be_changed_is_said() {
    let ground = Ground::new();
    let id = made(&ground, &json!({}));
    let run = |arguments: &[&str]| {
        let output = ground.provision(&[&["cluster"], arguments].concat()).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8(output.stderr).unwrap()
    };
    let said = run(&["--retention", "30", "--tag", "team=storage", "--tag", "cost=7"]);
    for words in [
        "keeps backups for 90 days, not 30",
        &format!("modify-cluster --cluster-id {id} --backup-retention-policy Type=DAYS,Value=30"),
        "has the tag team=web, not team=storage",
        "has no tag cost",
        &format!("tag-resource --resource-id {id} --tag-list Key=cost,Value=7"),
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let shown = ground.shown(&id);
    assert_eq!(shown["BackupRetentionPolicy"]["Value"], "90");
    assert_eq!(shown["TagList"].as_array().unwrap().len(), 2);
    // Not asked for, or as asked for.
    for arguments in [&[][..], &["--retention", "90", "--tag", "team=web"]] {
        let said = run(arguments);
        assert!(!said.contains("backups") && !said.contains("tag"), "{said}");
    }
}
