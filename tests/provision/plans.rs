//! Plans: of the way to a volume, and of the way back.

use serde_json::{Value, json};

use super::aws::{Effect, Fault, Origin, Principal, Rule};
use super::stores::{Bed, text};

/// States of all steps of a plan.
fn states(plan: &Value) -> Vec<&str> {
    let steps = plan["steps"].as_array().unwrap();
    steps.iter().map(|step| step["state"].as_str().unwrap()).collect()
}

#[test]
fn a_plan_needs_no_right_to_change_anything() {
    let (bed, cluster) = Bed::ready();
    bed.made("key-store");
    let store = bed.made("key-store")["id"].as_str().unwrap().to_owned();
    let key = bed.fake.create_key_in(&store);
    bed.fake.set_alias("alias/kmsfs", &key);
    bed.fake.reset_counters();
    bed.fake.add_principal(Principal::new("AKIAREADONLYREADONLY", "look", "looker").read_only());
    let looker = |arguments: &str| {
        let mut command = bed.command(arguments);
        command.env("AWS_ACCESS_KEY_ID", "AKIAREADONLYREADONLY");
        let output = command.env("AWS_SECRET_ACCESS_KEY", "look").output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        output
    };
    let plan: Value = serde_json::from_slice(&looker("plan --json").stdout).unwrap();
    let states = states(&plan);
    // Whether the hardware was checked before the cluster was claimed is written nowhere.
    assert_eq!((states[4], &plan["steps"][4]["command"]), ("unknown", &Value::Null));
    let seen = [&states[..4], &states[5..15]].concat();
    assert!(seen.iter().all(|state| *state == "exists"), "{plan:#}");
    assert_eq!(states[15..], ["unknown", "unknown"]);
    assert!(plan["steps"][2]["detail"].as_str().unwrap().contains(&cluster));
    assert_eq!((&plan["per_hour"], &plan["per_month"]), (&json!(3.2), &json!(2337.0)));
    let said = text(&looker("plan"));
    assert!(said.contains("$3.20 an hour") && said.contains("us-east-1"), "{said}");
    assert!(said.contains(&key) && said.contains("looker"), "{said}");
    // Only what looks was called.
    let log = bed.fake.log();
    let looks = |name: &str| {
        ["Describe", "List"].iter().any(|verb| name.starts_with(verb))
            || name == "GetCallerIdentity"
    };
    assert!(log.iter().all(|entry| looks(&entry.operation)), "{log:?}");
}

#[test]
fn a_plan_goes_on_where_it_may_not_look() {
    let bed = Bed::new();
    let before = bed.made("plan");
    let mut wanted = vec!["missing"; 15];
    wanted[0] = "exists";
    wanted.extend(["unknown"; 2]);
    assert_eq!(states(&before), wanted, "{before:#}");
    for operation in ["DescribeClusters", "DescribeKey"] {
        bed.fake.deny(operation);
    }
    let plan = bed.made("plan");
    let states = states(&plan);
    assert_eq!((states[2], states[11], states[13]), ("unknown", "missing", "unknown"));
    let detail = plan["steps"][2]["detail"].as_str().unwrap();
    assert!(detail.contains("AccessDenied") && detail.contains("DescribeClusters"), "{detail}");
    bed.fake.deny("DescribeCustomKeyStores");
    assert_eq!(self::states(&bed.made("plan"))[11..13], ["unknown"; 2]);
    // A plan of what nobody could be asked about would be worth nothing.
    bed.fake.expire_credentials(true);
    bed.fake.clear_faults();
    assert!(bed.refused("plan").contains("renew the AWS credentials"));
}

#[test]
fn a_plan_of_the_end_deletes_nothing() {
    let (bed, cluster) = Bed::ready();
    let store = bed.made("key-store")["id"].as_str().unwrap().to_owned();
    let keys = [bed.fake.create_key_in(&store), bed.fake.create_key_in(&store)];
    keys.iter().for_each(|key| tag(&bed, key, "kmsfs"));
    let other = bed.fake.create_key(Origin::Kms);
    let before = bed.fake.counts();
    let plan = bed.made("teardown plan");
    let commands: Vec<String> = plan["steps"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|step| step["commands"].as_array().unwrap())
        .map(|command| command.as_str().unwrap().to_owned())
        .collect();
    let at = |what: &str| commands.iter().position(|command| command.contains(what)).unwrap();
    let order = [
        at(&format!("schedule-key-deletion --key-id {}", keys[0])),
        at(&format!("describe-key --key-id {}", keys[0])),
        at(&format!("disconnect-custom-key-store --custom-key-store-id {store}")),
        at(&format!("delete-custom-key-store --custom-key-store-id {store}")),
        at(&format!("delete-hsm --cluster-id {cluster} --hsm-id hsm-")),
        at(&format!("delete-cluster --cluster-id {cluster}")),
    ];
    assert!(order.is_sorted(), "{commands:#?}");
    assert_eq!(commands.iter().filter(|command| command.contains("delete-hsm")).count(), 2);
    assert!(at(&keys[1]) < order[2]);
    assert!(!commands.iter().any(|command| command.contains(&other)));
    assert!(commands.iter().all(|command| command.ends_with("--region us-east-1")));
    let said = text(&bed.output("teardown plan"));
    assert!(said.contains("kmsfsctl key status") && said.contains("at least 7 days"), "{said}");
    assert_eq!(bed.fake.counts(), before);
    let log = bed.fake.log();
    let changes = ["Delete", "Schedule", "Disconnect", "Disable", "Update"];
    assert!(!log.iter().any(|e| changes.iter().any(|change| e.operation.starts_with(change))));
    // Where keys cannot be listed, that is said.
    bed.fake.deny("ListKeys");
    let said = text(&bed.output("teardown plan"));
    assert!(said.contains("could not be listed"), "{said}");
    bed.fake.clear_faults();
    let said = text(&bed.output("teardown plan --name nobody"));
    assert!(said.contains("Nothing of this deployment was found; check --name"), "{said}");
}

/// Gives a key to a deployment.
fn tag(bed: &Bed, key: &str, name: &str) {
    let tag = json!({ "TagKey": "kmsfs:deployment", "TagValue": name });
    bed.client().call("TagResource", &json!({ "KeyId": key, "Tags": [tag] })).unwrap();
}

/// Everything that is listed of the keys.
fn things(plan: &Value) -> Vec<&str> {
    plan["steps"][0]["things"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect()
}

fn commands(plan: &Value) -> Vec<&str> {
    let steps = plan["steps"].as_array().unwrap().iter();
    let all = steps.flat_map(|step| step["commands"].as_array().unwrap());
    all.map(|command| command.as_str().unwrap()).collect()
}

#[test]
fn a_plan_of_the_end_says_where_it_may_not_look() {
    let bed = Bed::new();
    let key = bed.fake.create_key(Origin::Kms);
    bed.fake.set_alias("alias/kmsfs", &key);
    let denied = bed.fake.deny("DescribeKey");
    let said = text(&bed.output("teardown plan"));
    assert!(!said.contains("was found; check"), "{said}");
    for words in
        ["it may not look everywhere", "kms:DescribeKey", "1 keys of the account could not"]
    {
        assert!(said.contains(words), "{words}: {said}");
    }
    // Its tags alone show whose it is.
    tag(&bed, &key, "kmsfs");
    let plan = bed.made("teardown plan");
    assert_eq!(things(&plan), [format!("{key}, state unknown")]);
    bed.fake.clear_fault(denied);
    bed.fake.deny("ListResourceTags");
    let said = text(&bed.output("teardown plan"));
    assert!(said.contains("do not show their tags") && said.contains(&key), "{said}");
    bed.fake.clear_faults();
    // Without the key store nobody knows whose keys the cluster holds.
    let (bed, _) = Bed::ready();
    bed.made("key-store");
    bed.fake.deny("DescribeCustomKeyStores");
    let plan = bed.made("teardown plan");
    assert!(commands(&plan).is_empty(), "{plan:#}");
    assert!(plan["steps"][5]["detail"].as_str().unwrap().contains("not known which keys"));
}

#[test]
fn keys_that_were_rotated_away_are_part_of_the_end() {
    let (bed, _) = Bed::ready();
    let store = bed.made("key-store")["id"].as_str().unwrap().to_owned();
    let (old, new) = (bed.fake.create_key(Origin::Kms), bed.fake.create_key_in(&store));
    [&old, &new].iter().for_each(|key| tag(&bed, key, "kmsfs"));
    bed.fake.set_alias("alias/kmsfs", &new);
    bed.client().call("DisableKey", &json!({ "KeyId": old })).unwrap();
    let plan = bed.made("teardown plan");
    let mut listed = things(&plan);
    listed.sort_unstable();
    let mut wanted = [format!("{old}, Disabled"), format!("{new}, Enabled, in {store}")];
    wanted.sort_unstable();
    assert_eq!(listed, wanted);
    for key in [&old, &new] {
        let order = format!("schedule-key-deletion --key-id {key}");
        assert!(commands(&plan).iter().any(|command| command.contains(&order)), "{plan:#}");
    }
}

#[test]
fn keys_of_others_keep_the_key_store() {
    let (bed, cluster) = Bed::ready();
    let store = bed.made("key-store")["id"].as_str().unwrap().to_owned();
    let [own, theirs, nobodys] = [(); 3].map(|()| bed.fake.create_key_in(&store));
    tag(&bed, &own, "kmsfs");
    tag(&bed, &theirs, "payroll");
    let plan = bed.made("teardown plan");
    let listed = things(&plan);
    assert_eq!(listed[0], format!("{own}, Enabled, in {store}"));
    for wanted in [
        format!("{theirs}, Enabled, in {store}; of deployment payroll"),
        format!("{nobodys}, Enabled, in {store}; of no deployment: whose?"),
    ] {
        assert!(listed.contains(&&wanted[..]), "{listed:?}");
    }
    let all = commands(&plan).join("\n");
    for spared in [&theirs, &nobodys, &store, &cluster] {
        assert!(!all.contains(&spared[..]), "{spared}: {all}");
    }
    assert!(all.contains(&format!("schedule-key-deletion --key-id {own}")), "{all}");
    let said = text(&bed.output("teardown plan"));
    assert!(said.contains("Others have keys in this key store, listed below"), "{said}");
    assert!(said.contains("not now: 2 keys of others live in it"), "{said}");
}

#[test]
fn a_key_of_others_behind_the_alias_is_not_to_be_deleted() {
    let bed = Bed::new();
    let key = bed.fake.create_key(Origin::Kms);
    bed.fake.set_alias("alias/kmsfs", &key);
    for (owner, whose) in [(None, "of no deployment"), (Some("prod"), "of deployment prod")] {
        if let Some(owner) = owner {
            tag(&bed, &key, owner);
        }
        let plan = bed.made("teardown plan");
        assert!(!commands(&plan).iter().any(|command| command.contains(&key)), "{plan:#}");
        assert!(things(&plan)[0].contains(whose), "{plan:#}");
        // It is in no key store.
        assert!(!plan["warnings"].to_string().contains("Others have keys"), "{plan:#}");
    }
}

#[test]
fn a_cluster_that_another_key_store_lives_in_stays() {
    let (bed, cluster) = Bed::ready();
    let store = bed.made("key-store")["id"].as_str().unwrap().to_owned();
    let deletes_hsms = |plan: &Value| commands(plan).iter().any(|one| one.contains("delete-hsm"));
    assert!(deletes_hsms(&bed.made("teardown plan")));
    let other = bed.made(&format!("teardown plan --name other --cluster {cluster} --store nosuch"));
    assert!(!deletes_hsms(&other), "{other:#}");
    let detail = other["steps"][4]["detail"].as_str().unwrap();
    assert!(
        detail.contains(&store) && detail.contains("another than this deployment's"),
        "{detail}"
    );
    // The store that is found lives in another cluster than the one that is named.
    let (second, _) = bed.fake.create_cluster(1);
    let named = bed.made(&format!("teardown plan --cluster {second}"));
    assert!(!deletes_hsms(&named), "{named:#}");
    let detail = named["steps"][5]["detail"].as_str().unwrap();
    assert!(detail.contains(&format!("lives in {cluster}; say with --cluster")), "{detail}");
}

#[test]
fn a_key_elsewhere_is_not_the_one_in_the_key_store() {
    let (bed, _) = Bed::ready();
    let key = bed.fake.create_key(Origin::Kms);
    bed.fake.set_alias("alias/kmsfs", &key);
    let key_step = |bed: &Bed| {
        let step = bed.made("plan")["steps"][13].clone();
        let text = |name: &str| step[name].as_str().unwrap().to_owned();
        (text("state"), text("detail"))
    };
    let (state, detail) = key_step(&bed);
    let lies = format!("alias/kmsfs is {key}, which lies in no key store, not in");
    assert_eq!(state, "missing");
    assert!(detail.contains(&lies) && detail.contains("not there yet"), "{detail}");
    let store = bed.made("key-store")["id"].as_str().unwrap().to_owned();
    let (state, detail) = key_step(&bed);
    assert_eq!((&state[..], detail), ("missing", format!("{lies} kmsfs ({store})")));
    // One that might be the right one, if the key store could be seen.
    bed.fake.deny("DescribeCustomKeyStores");
    assert_eq!(key_step(&bed).0, "missing");
    let key = bed.fake.create_key_in(&store);
    bed.client()
        .call("UpdateAlias", &json!({ "AliasName": "alias/kmsfs", "TargetKeyId": key }))
        .unwrap();
    let (state, detail) = key_step(&bed);
    assert_eq!(state, "unknown");
    assert!(detail.contains(&key) && detail.contains(&store), "{detail}");
}

#[test]
fn the_last_command_names_key_and_volume() {
    let (bed, _) = Bed::ready();
    let init = |bed: &Bed| bed.made("plan")["steps"][15]["command"].as_str().unwrap().to_owned();
    assert_eq!(init(&bed), "kmsfsctl init DIR --key aws-kms:ARN --volume-id ID");
    let store = bed.made("key-store")["id"].as_str().unwrap().to_owned();
    let key = bed.fake.create_key_in(&store);
    bed.fake.set_alias("alias/kmsfs", &key);
    assert_eq!(init(&bed), format!("kmsfsctl init DIR --key aws-kms:{key} --volume-id ID"));
    let volume = "00112233445566778899aabbccddeeff";
    let tag = json!({ "TagKey": "kmsfs:volume", "TagValue": volume });
    bed.client().call("TagResource", &json!({ "KeyId": key, "Tags": [tag] })).unwrap();
    assert_eq!(init(&bed), format!("kmsfsctl init DIR --key aws-kms:{key} --volume-id {volume}"));
}

#[test]
fn a_plan_goes_on_without_cloudhsm() {
    let bed = Bed::new();
    let refused = Effect::Error(Fault::server(500, "CloudHsmInternalFailureException"));
    let rule = bed.fake.fault(Rule::new(refused).on("DescribeClusters"));
    let plan = bed.made("plan");
    let states = states(&plan);
    assert_eq!(
        (states[0], states[2], states[11], states[13]),
        ("exists", "unknown", "missing", "missing")
    );
    let detail = plan["steps"][2]["detail"].as_str().unwrap();
    assert!(detail.contains("DescribeClusters failed: CloudHsmInternalFailure"), "{detail}");
    bed.fake.clear_fault(rule);
    // Where KMS says nothing, there is nothing to plan.
    let refused = Effect::Error(Fault::client("ValidationException", "Said by KMS."));
    bed.fake.fault(Rule::new(refused).on("DescribeCustomKeyStores"));
    assert!(bed.refused("plan").contains("DescribeCustomKeyStores failed"));
}
