//! The fake's custom key stores, permissions and grants: what the tests of provisioning rely on. Every
//! error is met once.

#[allow(dead_code)]
#[path = "support/asking.rs"]
mod asking;
#[path = "support/aws/fake.rs"]
mod aws;

use std::time::Duration;

use asking::{cluster_request, code, until, with};
use aws::{Client, Connection, Effect, FakeAws, Principal, Rule};
use serde_json::{Value, json};

/// A cluster with two HSMs and `kmsuser`, and the request for a store of it.
fn store_request(fake: &FakeAws, name: &str) -> Value {
    let (cluster, anchor) = fake.create_cluster(2);
    fake.set_hsm_user(&cluster, "kmsuser", "kmspassword").unwrap();
    json!({
        "CustomKeyStoreName": name, "CloudHsmClusterId": cluster,
        "TrustAnchorCertificate": anchor, "KeyStorePassword": "kmspassword",
    })
}

fn make_store(client: &Client, request: &Value) -> Value {
    let made = client.call("CreateCustomKeyStore", request).unwrap();
    json!({ "CustomKeyStoreId": made["CustomKeyStoreId"] })
}

#[test]
fn a_store_is_made_as_the_service_wants_it() {
    let fake = FakeAws::start();
    let client = fake.client();
    let good = store_request(&fake, "vault");
    let cluster = good["CloudHsmClusterId"].as_str().unwrap();
    let create = |request: &Value| code(client.call("CreateCustomKeyStore", request));
    for name in ["CustomKeyStoreName", "TrustAnchorCertificate", "KeyStorePassword"] {
        assert_eq!(create(&with(&good, name, Value::Null)), "ValidationException");
    }
    assert_eq!(create(&with(&good, "KeyStorePassword", json!("short"))), "ValidationException");
    let nowhere = with(&good, "CloudHsmClusterId", json!("cluster-aaaaaaaaaaa"));
    assert_eq!(create(&nowhere), "CloudHsmClusterNotFoundException");
    let wrong = with(&good, "TrustAnchorCertificate", json!(fake.hardware_roots().0));
    assert_eq!(create(&wrong), "IncorrectTrustAnchorException");
    fake.set_cluster_state(cluster, "DEGRADED");
    assert_eq!(create(&good), "CloudHsmClusterNotActiveException");
    fake.set_cluster_state(cluster, "ACTIVE");
    fake.set_hsms(cluster, "DEGRADED");
    assert_eq!(create(&good), "CloudHsmClusterInvalidConfigurationException");
    fake.set_hsms(cluster, "ACTIVE");
    let store = make_store(&client, &good);
    // The same again is the same store, for as long as it is not connected.
    assert_eq!(make_store(&client, &good), store);
    let other = with(&good, "KeyStorePassword", json!("otherpassword"));
    assert_eq!(create(&other), "CustomKeyStoreNameInUseException");
    let second = with(&good, "CustomKeyStoreName", json!("second"));
    assert_eq!(create(&second), "CloudHsmClusterInUseException");
    client.call("ConnectCustomKeyStore", &store).unwrap();
    assert_eq!(create(&good), "CustomKeyStoreNameInUseException");
    fake.set_limits(1, 4, 6);
    assert_eq!(create(&store_request(&fake, "third")), "LimitExceededException");
    assert_eq!(fake.counts().stores, 1);
}

#[test]
fn a_store_with_an_external_manager() {
    let fake = FakeAws::start();
    let client = fake.client();
    let good = json!({
        "CustomKeyStoreName": "outside", "CustomKeyStoreType": "EXTERNAL_KEY_STORE",
        "XksProxyUriEndpoint": "https://xks.example.com", "XksProxyUriPath": "/kms/xks/v1",
        "XksProxyConnectivity": "PUBLIC_ENDPOINT",
        "XksProxyAuthenticationCredential": {
            "AccessKeyId": "A".repeat(20), "RawSecretAccessKey": "b".repeat(43),
        },
    });
    let create = |request: &Value| code(client.call("CreateCustomKeyStore", request));
    for name in ["XksProxyConnectivity", "XksProxyUriPath", "XksProxyAuthenticationCredential"] {
        assert_eq!(create(&with(&good, name, Value::Null)), "ValidationException");
    }
    let store = make_store(&client, &good);
    let second = with(&good, "CustomKeyStoreName", json!("second"));
    assert_eq!(create(&second), "XksProxyUriInUseException");
    fake.fault(
        Rule::new(Effect::Error(aws::Fault::client("XksProxyUriUnreachableException", "")))
            .on("CreateCustomKeyStore")
            .times(1),
    );
    assert_eq!(create(&second), "XksProxyUriUnreachableException");
    let id = store["CustomKeyStoreId"].as_str().unwrap();
    for failure in aws::CONNECTION_ERRORS {
        fake.fail_connections(id, Some(failure));
        client.call("ConnectCustomKeyStore", &store).unwrap();
        assert_eq!(state(&client, &store), ("FAILED".into(), json!(failure)));
        client.call("DisconnectCustomKeyStore", &store).unwrap();
    }
    fake.fail_connections(id, None);
    client.call("ConnectCustomKeyStore", &store).unwrap();
    let key = json!({ "Origin": "EXTERNAL_KEY_STORE", "XksKeyId": "k", "CustomKeyStoreId": id });
    client.call("CreateKey", &key).unwrap();
}

fn state(client: &Client, store: &Value) -> (String, Value) {
    let answer = client.call("DescribeCustomKeyStores", store).unwrap();
    let store = &answer["CustomKeyStores"][0];
    let state = store["ConnectionState"].as_str().unwrap().to_owned();
    (state, store["ConnectionErrorCode"].clone())
}

#[test]
fn connections_fail_for_their_own_reasons() {
    let fake = FakeAws::start();
    let client = fake.client();
    let request = store_request(&fake, "vault");
    let cluster = request["CloudHsmClusterId"].as_str().unwrap();
    let store = make_store(&client, &request);
    let call = |operation: &str| code(client.call(operation, &store));
    let connect = || {
        assert_eq!(call("ConnectCustomKeyStore"), "OK");
        state(&client, &store)
    };
    let again = |error: &str| {
        assert_eq!(connect(), ("FAILED".to_owned(), json!(error)));
        assert_eq!(call("ConnectCustomKeyStore"), "CustomKeyStoreInvalidStateException");
        assert_eq!(call("DisconnectCustomKeyStore"), "OK");
        assert_eq!(call("DisconnectCustomKeyStore"), "CustomKeyStoreInvalidStateException");
    };
    let update = |password: &str| {
        code(
            client.call("UpdateCustomKeyStore", &with(&store, "KeyStorePassword", json!(password))),
        )
    };
    fake.set_hsm_user(cluster, "kmsuser", "otherpassword").unwrap();
    again("INVALID_CREDENTIALS");
    fake.delete_hsm_user(cluster, "kmsuser").unwrap();
    again("USER_NOT_FOUND");
    fake.set_hsm_user(cluster, "kmsuser", "otherpassword").unwrap();
    fake.lock_hsm_user(cluster, "kmsuser").unwrap();
    again("USER_LOCKED_OUT");
    fake.set_hsm_user(cluster, "kmsuser", "otherpassword").unwrap();
    again("INVALID_CREDENTIALS");
    assert_eq!(update("otherpassword"), "OK");
    assert_eq!(connect(), ("CONNECTED".to_owned(), Value::Null));
    assert_eq!(update("otherpassword"), "CustomKeyStoreInvalidStateException");
    // KMS knows the password it has set; the one before is good for nothing.
    assert_eq!(call("DisconnectCustomKeyStore"), "OK");
    assert_eq!(connect().0, "CONNECTED");
    assert_eq!(call("DisconnectCustomKeyStore"), "OK");
    assert_eq!(update("otherpassword"), "OK");
    again("INVALID_CREDENTIALS");
    fake.set_hsm_user(cluster, "kmsuser", "otherpassword").unwrap();
    // HSMs that are lost on the way, and HSMs that were lost before.
    fake.set_connect_time(Duration::from_millis(300));
    assert_eq!(connect().0, "CONNECTING");
    fake.set_hsms(cluster, "DEGRADED");
    until(|| state(&client, &store) == ("FAILED".into(), json!("INSUFFICIENT_CLOUDHSM_HSMS")));
    fake.set_connect_time(Duration::ZERO);
    assert_eq!(call("DisconnectCustomKeyStore"), "OK");
    assert_eq!(call("ConnectCustomKeyStore"), "CloudHsmClusterInvalidConfigurationException");
    fake.set_hsms(cluster, "ACTIVE");
    fake.set_cluster_state(cluster, "DEGRADED");
    assert_eq!(call("ConnectCustomKeyStore"), "CloudHsmClusterNotActiveException");
    fake.set_cluster_state(cluster, "DELETED");
    again("CLUSTER_NOT_FOUND");
}

#[test]
fn stores_are_changed_and_deleted_in_the_right_state_only() {
    let fake = FakeAws::start();
    let client = fake.client();
    let request = store_request(&fake, "vault");
    let cluster = &request["CloudHsmClusterId"];
    let store = make_store(&client, &request);
    let update = |name: &str, value: &Value| {
        code(client.call("UpdateCustomKeyStore", &with(&store, name, value.clone())))
    };
    client.call("ConnectCustomKeyStore", &store).unwrap();
    assert_eq!(update("NewCustomKeyStoreName", &json!("renamed")), "OK");
    assert_eq!(update("CloudHsmClusterId", cluster), "CustomKeyStoreInvalidStateException");
    fake.create_store("taken", aws::Origin::CloudHsm);
    assert_eq!(
        update("NewCustomKeyStoreName", &json!("taken")),
        "CustomKeyStoreNameInUseException"
    );
    let key = json!({ "Origin": "AWS_CLOUDHSM", "CustomKeyStoreId": store["CustomKeyStoreId"] });
    let made = client.call("CreateKey", &key).unwrap();
    fake.control(&json!({ "cluster": { "id": cluster, "hsm": { "state": "DEGRADED" } } })).unwrap();
    assert_eq!(
        code(client.call("CreateKey", &key)),
        "CloudHsmClusterInvalidConfigurationException"
    );
    fake.set_hsms(cluster.as_str().unwrap(), "ACTIVE");
    let delete = || code(client.call("DeleteCustomKeyStore", &store));
    assert_eq!(delete(), "CustomKeyStoreInvalidStateException");
    client.call("DisconnectCustomKeyStore", &store).unwrap();
    assert_eq!(code(client.call("CreateKey", &key)), "CustomKeyStoreInvalidStateException");
    assert_eq!(delete(), "CustomKeyStoreHasCMKsException");
    // Another cluster can take over if it comes from a backup of the first.
    let (stranger, _) = fake.create_cluster(2);
    assert_eq!(update("CloudHsmClusterId", &json!(stranger)), "CloudHsmClusterNotRelatedException");
    let backups = json!({ "Filters": { "clusterIds": [cluster] } });
    let backup = client.call_cloudhsm("DescribeBackups", &backups).unwrap();
    let request =
        with(&cluster_request(), "SourceBackupId", backup["Backups"][0]["BackupId"].clone());
    let twin = client.call_cloudhsm("CreateCluster", &request).unwrap();
    let twin = &twin["Cluster"]["ClusterId"];
    assert_eq!(update("CloudHsmClusterId", twin), "CloudHsmClusterNotActiveException");
    for zone in ["us-east-1a", "us-east-1b"] {
        let hsm = json!({ "ClusterId": twin, "AvailabilityZone": zone });
        client.call_cloudhsm("CreateHsm", &hsm).unwrap();
    }
    assert_eq!(update("CloudHsmClusterId", twin), "OK");
    fake.forget_key(made["KeyMetadata"]["Arn"].as_str().unwrap());
    assert_eq!(delete(), "OK");
    assert_eq!(delete(), "CustomKeyStoreNotFoundException");
    assert_eq!(
        code(client.call("DescribeCustomKeyStores", &store)),
        "CustomKeyStoreNotFoundException"
    );
}

#[test]
fn lost_answers_leave_the_work_done() {
    let fake = FakeAws::start();
    let client = fake.client();
    let lost = |operation: &str, body: &Value| {
        fake.drop_next(operation, 1);
        let answer = match operation {
            "CreateCluster" | "CreateHsm" => client.call_cloudhsm(operation, body),
            _ => client.call(operation, body),
        };
        assert_eq!(code(answer), "UnexpectedEof", "{operation}");
    };
    lost("CreateCluster", &cluster_request());
    let cluster = fake.clusters()[0]["ClusterId"].clone();
    lost("CreateHsm", &json!({ "ClusterId": cluster, "AvailabilityZone": "us-east-1a" }));
    let request = store_request(&fake, "vault");
    lost("CreateCustomKeyStore", &request);
    lost("ConnectCustomKeyStore", &make_store(&client, &request));
    assert_eq!(
        client.call("DescribeCustomKeyStores", &json!({})).unwrap()["CustomKeyStores"][0]["ConnectionState"],
        Connection::Connected.name()
    );
    lost("CreateKey", &json!({}));
    let counts = fake.counts();
    let all = (counts.clusters, counts.hsms, counts.stores, counts.keys);
    assert_eq!(all, (2, 3, 1, 1));
    let other = Rule::new(Effect::internal()).on("DescribeClusters").times(1);
    fake.fault(other);
    let ask = || code(client.call_cloudhsm("DescribeClusters", &json!({})));
    assert_eq!(ask(), "CloudHsmInternalFailureException");
    let rule = fake.fault(Rule::new(Effect::throttle()).on("kms:*"));
    assert_eq!(code(client.call("ListKeys", &json!({}))), "ThrottlingException");
    assert_eq!(ask(), "OK");
    fake.clear_fault(rule);
    fake.throttle(true);
    assert_eq!(ask(), "ThrottlingException");
    fake.throttle(false);
    assert_eq!(ask(), "OK");
}

#[test]
fn who_may_only_look_changes_nothing() {
    let fake = FakeAws::start();
    let request = store_request(&fake, "vault");
    let key = fake.create_key(aws::Origin::Kms);
    fake.add_principal(Principal::new("AKIALOOKER", "x", "looker").read_only());
    fake.add_principal(Principal::new("AKIANOHSM", "x", "nohsm").deny(&["cloudhsm:*"]));
    let looker = fake.client().as_user("AKIALOOKER", "x");
    for read in ["DescribeClusters", "DescribeBackups"] {
        assert_eq!(code(looker.call_cloudhsm(read, &json!({}))), "OK");
    }
    for read in ["DescribeCustomKeyStores", "ListKeys", "ListAliases"] {
        assert_eq!(code(looker.call(read, &json!({}))), "OK");
    }
    let answer = code(looker.call_cloudhsm("CreateCluster", &cluster_request()));
    assert_eq!(answer, "CloudHsmAccessDeniedException");
    let named = json!({ "KeyId": key });
    for (operation, body) in [
        ("CreateCustomKeyStore", &request),
        ("CreateKey", &json!({})),
        ("ScheduleKeyDeletion", &named),
        ("CreateGrant", &named),
    ] {
        assert_eq!(code(looker.call(operation, body)), "AccessDeniedException", "{operation}");
    }
    let nohsm = fake.client().as_user("AKIANOHSM", "x");
    assert_eq!(code(nohsm.call("CreateKey", &json!({}))), "OK");
    let answer = code(nohsm.call_cloudhsm("DescribeClusters", &json!({})));
    assert_eq!(answer, "CloudHsmAccessDeniedException");
}

#[test]
fn grants_allow_what_they_are_for() {
    let fake = FakeAws::start();
    let (client, key) = (fake.client(), fake.create_key(aws::Origin::Kms));
    fake.add_principal(Principal::new("AKIAGUEST", "x", "guest").allow(&[]));
    let guest = client.as_user("AKIAGUEST", "x");
    let arn = format!("arn:aws:iam::{}:user/guest", fake.account());
    let request = json!({
        "KeyId": key, "GranteePrincipal": arn, "RetiringPrincipal": arn, "Name": "mount",
        "Operations": ["GenerateDataKey"],
        "Constraints": { "EncryptionContextSubset": { "a": "b" } },
    });
    let data_key = |context: Value| {
        let body = json!({ "KeyId": key, "KeySpec": "AES_256", "EncryptionContext": context });
        code(guest.call("GenerateDataKey", &body))
    };
    assert_eq!(data_key(json!({ "a": "b" })), "AccessDeniedException");
    let rehearsed = client.call("CreateGrant", &with(&request, "DryRun", json!(true)));
    assert_eq!(code(rehearsed), "DryRunOperationException");
    let made = client.call("CreateGrant", &request).unwrap();
    assert_eq!(data_key(json!({ "a": "b", "c": "d" })), "OK");
    assert_eq!(data_key(json!({ "a": "c" })), "AccessDeniedException");
    // The name makes it one, however often it is asked for.
    let again = client.call("CreateGrant", &request).unwrap();
    assert_eq!((&again["GrantId"], fake.counts().grants), (&made["GrantId"], 1));
    let nameless = with(&request, "Name", Value::Null);
    let second = client.call("CreateGrant", &nameless).unwrap();
    let listed = client.call("ListGrants", &json!({ "KeyId": key })).unwrap();
    assert_eq!(listed["Grants"].as_array().unwrap().len(), 2);
    let retirable = client.call("ListRetirableGrants", &json!({ "RetiringPrincipal": arn }));
    assert_eq!(retirable.unwrap()["Grants"].as_array().unwrap().len(), 2);
    client.call("RetireGrant", &json!({ "GrantToken": second["GrantToken"] })).unwrap();
    let revoke = json!({ "KeyId": key, "GrantId": made["GrantId"] });
    client.call("RevokeGrant", &revoke).unwrap();
    assert_eq!(code(client.call("RevokeGrant", &revoke)), "NotFoundException");
    assert_eq!(data_key(json!({ "a": "b" })), "AccessDeniedException");
    for bad in [json!([]), json!(["Sing"])] {
        let answer = code(client.call("CreateGrant", &with(&request, "Operations", bad)));
        assert_eq!(answer, "ValidationException");
    }
}
