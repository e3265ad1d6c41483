//! The fake AWS itself: what the tests of keys in KMS rely on. AWS's own client and another emulator
//! judge it in `tests/rings/25-aws-cli.sh`.

#[allow(dead_code)]
#[path = "support/asking.rs"]
mod asking;
#[path = "support/aws/fake.rs"]
mod aws;

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use asking::{code, until};
use aws::http::{Request, Response};
use aws::{Client, Connection, Effect, FakeAws, KeyState, Origin, Principal, Rule, sign};
use data_encoding::BASE64;
use serde_json::{Value, json};

const VOLUME: &str = "00112233445566778899aabbccddeeff";

fn data_key(client: &Client, key: &str) -> Result<Value, String> {
    client.call("GenerateDataKey", &json!({ "KeyId": key, "KeySpec": "AES_256" }))
}

/// The signature of an example that AWS publishes ("get-vanilla" of its test suite).
#[test]
fn signatures_are_those_of_aws() {
    let request = Request {
        method: "GET".into(),
        target: "/".into(),
        headers: vec![
            ("host".into(), "example.amazonaws.com".into()),
            ("x-amz-date".into(), "20150830T123600Z".into()),
        ],
        body: Vec::new(),
    };
    let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
    let scope = ("20150830", "us-east-1", "service");
    let signature = sign::signature(secret, scope, &request, &["host", "x-amz-date"]);
    assert_eq!(signature, "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31");
}

#[test]
fn times_go_there_and_back() {
    assert_eq!(sign::seconds("20150830T123600Z"), Some(1_440_938_160));
    for time in [0, 951_782_399, 951_782_400, 951_868_800, 1_440_938_160, 4_102_444_799] {
        assert_eq!(sign::seconds(&sign::stamp(time)), Some(time));
    }
    assert_eq!(sign::stamp(951_782_400), "20000229T000000Z");
    assert_eq!(sign::seconds("2015-08-30T12:36"), None);
}

#[test]
fn a_request_that_was_changed_is_refused() {
    let fake = FakeAws::start();
    let key = fake.create_key(Origin::Kms);
    let client = fake.client();
    let body = json!({ "KeyId": key, "KeySpec": "AES_256" });
    let good = client.request("GenerateDataKey", &body);
    assert_eq!(client.send(&good).unwrap().status, 200);
    let refused = |change: &dyn Fn(&mut Request)| {
        let mut request = good.clone();
        change(&mut request);
        let response = client.send(&request).unwrap();
        assert_eq!(response.status, 400);
        let value: Value = serde_json::from_slice(&response.body).unwrap();
        value["__type"].as_str().unwrap().to_owned()
    };
    let header = |request: &mut Request, name: &str, value: &str| {
        request.headers.iter_mut().find(|(have, _)| have == name).unwrap().1 = value.to_owned();
    };
    let wrong = "InvalidSignatureException";
    assert_eq!(refused(&|r| r.body.push(b' ')), wrong);
    assert_eq!(refused(&|r| r.target = "/?a=b".into()), wrong);
    assert_eq!(refused(&|r| header(r, "host", "elsewhere")), wrong);
    assert_eq!(refused(&|r| header(r, "x-amz-target", "TrentService.ListKeys")), wrong);
    assert_eq!(refused(&|r| header(r, "x-amz-date", "20150830T123600Z")), wrong);
    let missing = "MissingAuthenticationTokenException";
    assert_eq!(refused(&|r| r.headers.retain(|(name, _)| name != "authorization")), missing);
    let elsewhere = Client { region: "eu-central-1".into(), ..client.clone() };
    assert_eq!(code(data_key(&elsewhere, &key)), wrong);
    let token = Client { token: Some("token".into()), ..client };
    assert_eq!(code(data_key(&token, &key)), "UnrecognizedClientException");
}

#[test]
fn a_ciphertext_opens_with_its_key_and_context_only() {
    let (fake, other) = (FakeAws::start(), FakeAws::start_in("eu-central-1"));
    let client = fake.client();
    let keys = [fake.create_key(Origin::Kms), fake.create_key(Origin::CloudHsm)];
    for (key, wrong) in [(&keys[0], &keys[1]), (&keys[1], &keys[0])] {
        let context = json!({ "a": "b", "c": "d" });
        let made = client.call(
            "GenerateDataKey",
            &json!({ "KeyId": key, "KeySpec": "AES_256", "EncryptionContext": context }),
        );
        let made = made.unwrap();
        assert_eq!(made["KeyId"], **key);
        let blob = made["CiphertextBlob"].as_str().unwrap();
        assert_eq!(BASE64.decode(blob.as_bytes()).unwrap().len(), 184);
        let open = |context: Value, key: Value| {
            let body =
                json!({ "CiphertextBlob": blob, "EncryptionContext": context, "KeyId": key });
            client.call("Decrypt", &body)
        };
        let opened = open(json!({ "c": "d", "a": "b" }), Value::Null).unwrap();
        assert_eq!(opened["Plaintext"], made["Plaintext"]);
        assert_eq!(opened["KeyId"], **key);
        assert!(open(context.clone(), json!(key)).is_ok());
        assert_eq!(code(open(context.clone(), json!(wrong))), "IncorrectKeyException");
        for context in [json!({}), json!({ "a": "b" }), json!({ "a": "d", "c": "b" })] {
            assert_eq!(code(open(context, Value::Null)), "InvalidCiphertextException");
        }
        let foreign = other.client().call("Decrypt", &json!({ "CiphertextBlob": blob }));
        assert_eq!(code(foreign), "InvalidCiphertextException");
        // Every byte counts.
        let bytes = BASE64.decode(blob.as_bytes()).unwrap();
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            let body =
                json!({ "CiphertextBlob": BASE64.encode(&bytes), "EncryptionContext": context });
            assert_eq!(code(client.call("Decrypt", &body)), "InvalidCiphertextException");
        }
    }
}

#[test]
fn the_size_of_ciphertexts_can_be_chosen() {
    let fake = FakeAws::start();
    let (client, key) = (fake.client(), fake.create_key(Origin::CloudHsm));
    for len in [184, 300, 6144] {
        fake.set_blob_len(len);
        let made = data_key(&client, &key).unwrap();
        let blob = BASE64.decode(made["CiphertextBlob"].as_str().unwrap().as_bytes()).unwrap();
        assert_eq!(blob.len(), len);
        let opened = client.call("Decrypt", &json!({ "CiphertextBlob": made["CiphertextBlob"] }));
        assert_eq!(opened.unwrap()["Plaintext"], made["Plaintext"]);
    }
    let long = json!({ "CiphertextBlob": BASE64.encode(&[0; 6145]) });
    assert_eq!(code(client.call("Decrypt", &long)), "ValidationException");
}

#[test]
fn ciphertexts_survive_rotation() {
    let fake = FakeAws::start();
    let (client, key) = (fake.client(), fake.create_key(Origin::Kms));
    let old = data_key(&client, &key).unwrap();
    fake.rotate_key(&key);
    client.call("RotateKeyOnDemand", &json!({ "KeyId": key })).unwrap();
    let new = data_key(&client, &key).unwrap();
    assert_ne!(old["KeyMaterialId"], new["KeyMaterialId"]);
    for made in [old, new] {
        let opened = client.call("Decrypt", &json!({ "CiphertextBlob": made["CiphertextBlob"] }));
        let opened = opened.unwrap();
        assert_eq!(opened["Plaintext"], made["Plaintext"]);
        assert_eq!(opened["KeyMaterialId"], made["KeyMaterialId"]);
    }
    let listed = client.call("ListKeyRotations", &json!({ "KeyId": key })).unwrap();
    assert_eq!(listed["Rotations"].as_array().unwrap().len(), 2);
}

#[test]
fn the_state_of_a_key_decides() {
    let fake = FakeAws::start();
    let (client, key) = (fake.client(), fake.create_key(Origin::CloudHsm));
    let store = fake.store_of(&key).unwrap();
    let state = || {
        let answer = client.call("DescribeKey", &json!({ "KeyId": key })).unwrap();
        answer["KeyMetadata"]["KeyState"].as_str().unwrap().to_owned()
    };
    fake.set_key_state(&key, KeyState::Disabled);
    assert_eq!(
        (state().as_str(), code(data_key(&client, &key)).as_str()),
        ("Disabled", "DisabledException")
    );
    fake.set_key_state(&key, KeyState::PendingDeletion);
    assert_eq!(state(), "PendingDeletion");
    assert_eq!(code(data_key(&client, &key)), "KMSInvalidStateException");
    fake.set_key_state(&key, KeyState::Enabled);
    data_key(&client, &key).unwrap();
    fake.set_store(&store, Connection::Disconnected);
    assert_eq!(state(), "Unavailable");
    assert_eq!(code(data_key(&client, &key)), "KMSInvalidStateException");
    // It takes effect when the store is connected again.
    client.call("DisableKey", &json!({ "KeyId": key })).unwrap();
    assert_eq!(state(), "Unavailable");
    fake.set_store(&store, Connection::Connected);
    assert_eq!(code(data_key(&client, &key)), "DisabledException");
    client.call("EnableKey", &json!({ "KeyId": key })).unwrap();
    fake.set_store_communicates(&store, false);
    assert_eq!(state(), "Enabled");
    assert_eq!(code(data_key(&client, &key)), "KMSInvalidStateException");
    fake.set_store_communicates(&store, true);
    data_key(&client, &key).unwrap();
    fake.forget_key(&key);
    assert_eq!(code(data_key(&client, &key)), "NotFoundException");
}

#[test]
fn connecting_a_store_takes_its_time_and_can_fail() {
    let fake = FakeAws::start();
    let client = fake.client();
    let store = fake.create_store("vault", Origin::CloudHsm);
    let name = json!({ "CustomKeyStoreId": store });
    let state = || {
        let answer = client.call("DescribeCustomKeyStores", &name).unwrap();
        let store = &answer["CustomKeyStores"][0];
        (store["ConnectionState"].clone(), store["ConnectionErrorCode"].clone())
    };
    fake.set_connect_time(Duration::from_secs(1));
    client.call("DisconnectCustomKeyStore", &name).unwrap();
    assert_eq!(state().0, "DISCONNECTING");
    assert_eq!(
        code(client.call("ConnectCustomKeyStore", &name)),
        "CustomKeyStoreInvalidStateException"
    );
    until(|| state().0 == "DISCONNECTED");
    fake.control(&json!({ "store": { "id": store, "next_error": "USER_LOCKED_OUT" } })).unwrap();
    client.call("ConnectCustomKeyStore", &name).unwrap();
    assert_eq!(state(), (json!("CONNECTING"), Value::Null));
    until(|| state() == (json!("FAILED"), json!("USER_LOCKED_OUT")));
    // A store that failed must be disconnected first.
    assert_eq!(
        code(client.call("ConnectCustomKeyStore", &name)),
        "CustomKeyStoreInvalidStateException"
    );
    fake.control(&json!({ "store": { "id": store, "next_error": null }, "connect_ms": 0 }))
        .unwrap();
    client.call("DisconnectCustomKeyStore", &name).unwrap();
    client.call("ConnectCustomKeyStore", &name).unwrap();
    assert_eq!(state(), (json!("CONNECTED"), Value::Null));
}

#[test]
fn callers_may_do_what_they_may() {
    let fake = FakeAws::start();
    let (owner, key) = (fake.client(), fake.create_key(Origin::Kms));
    fake.add_principal(Principal::new("AKIAREADER", "r", "reader").allow(&["Decrypt"]));
    fake.add_principal(
        Principal::new("AKIAAUDITOR", "a", "auditor")
            .allow(&["Decrypt", "Describe*"])
            .only_with("kmsfs:purpose", "volume"),
    );
    let (reader, auditor) = (owner.as_user("AKIAREADER", "r"), owner.as_user("AKIAAUDITOR", "a"));
    let seal = |purpose: &str| {
        let context = json!({ "kmsfs:purpose": purpose });
        let body = json!({ "KeyId": key, "KeySpec": "AES_256", "EncryptionContext": context });
        let made = owner.call("GenerateDataKey", &body).unwrap();
        json!({ "CiphertextBlob": made["CiphertextBlob"], "EncryptionContext": context })
    };
    let (volume, data) = (seal("volume"), seal("data"));
    assert_eq!(code(data_key(&reader, &key)), "AccessDeniedException");
    assert!(reader.call("Decrypt", &data).is_ok());
    assert!(auditor.call("Decrypt", &volume).is_ok());
    assert_eq!(code(auditor.call("Decrypt", &data)), "AccessDeniedException");
    assert!(auditor.call("DescribeKey", &json!({ "KeyId": key })).is_ok());
    assert_eq!(code(reader.call("DescribeKey", &json!({ "KeyId": key }))), "AccessDeniedException");
    assert_eq!(
        code(data_key(&owner.as_user("AKIANOBODY", "x"), &key)),
        "UnrecognizedClientException"
    );
    assert_eq!(
        code(data_key(&owner.as_user("AKIAREADER", "x"), &key)),
        "InvalidSignatureException"
    );
    fake.expire_credentials(true);
    assert_eq!(code(data_key(&owner, &key)), "ExpiredTokenException");
    fake.expire_credentials(false);
    let rule = fake.deny("GenerateDataKey*");
    assert_eq!(code(data_key(&owner, &key)), "AccessDeniedException");
    fake.clear_fault(rule);
    data_key(&owner, &key).unwrap();
}

#[test]
fn names_of_keys() {
    let fake = FakeAws::start();
    let (client, key) = (fake.client(), fake.create_key(Origin::Kms));
    fake.set_alias("alias/a/b", &key);
    let id = key.rsplit('/').next().unwrap();
    let alias = key.replace(&format!("key/{id}"), "alias/a/b");
    for name in [id, &key, "alias/a/b", &alias] {
        assert_eq!(data_key(&client, name).unwrap()["KeyId"], *key);
    }
    assert_eq!(fake.calls_of_key(&key), 4);
    for name in ["alias/none", "nonsense", &key.replace("us-east-1", "eu-west-3")] {
        assert_eq!(code(data_key(&client, name)), "NotFoundException");
    }
    assert_eq!(code(data_key(&client, "arn:aws:s3:::bucket")), "InvalidArnException");
    // What manages keys takes no aliases.
    assert!(client.call("DisableKey", &json!({ "KeyId": "alias/a/b" })).is_err());
}

#[test]
fn a_new_key_is_not_everywhere_at_once() {
    let fake = FakeAws::start();
    let client = fake.client();
    fake.set_consistency(Duration::from_secs(1));
    let made = client.call("CreateKey", &json!({})).unwrap();
    let key = made["KeyMetadata"]["Arn"].as_str().unwrap();
    assert_eq!(code(data_key(&client, key)), "NotFoundException");
    until(|| data_key(&client, key).is_ok());
    client.call("CreateAlias", &json!({ "AliasName": "alias/x", "TargetKeyId": key })).unwrap();
    assert_eq!(code(data_key(&client, "alias/x")), "NotFoundException");
    until(|| data_key(&client, "alias/x").is_ok());
}

#[test]
fn strict_checking_knows_the_contexts_of_kmsfs() {
    let fake = FakeAws::start();
    let (client, key) = (fake.client(), fake.create_key(Origin::Kms));
    fake.set_strict_context(true);
    let call = |context: Value| {
        let body = json!({ "KeyId": key, "KeySpec": "AES_256", "EncryptionContext": context });
        code(client.call("GenerateDataKey", &body))
    };
    let (volume, purpose, id) = ("kmsfs:volume", "kmsfs:purpose", "kmsfs:data-key");
    assert_eq!(call(json!({ volume: VOLUME, purpose: "volume" })), "OK");
    assert_eq!(call(json!({ volume: VOLUME, purpose: "data", id: VOLUME })), "OK");
    let bad = [
        json!({}),
        json!({ volume: VOLUME }),
        json!({ volume: VOLUME, purpose: "data" }),
        json!({ volume: VOLUME, purpose: "volume", id: VOLUME }),
        json!({ volume: VOLUME, purpose: "volume", "more": "x" }),
        json!({ volume: VOLUME.to_uppercase(), purpose: "volume" }),
        json!({ volume: VOLUME[1..], purpose: "volume" }),
        json!({ volume: VOLUME, purpose: "other" }),
    ];
    for context in &bad {
        assert_eq!(call(context.clone()), "ValidationException");
    }
    assert_eq!(fake.bad_contexts(), bad.len() as u64);
}

#[test]
fn dry_runs_say_what_would_be() {
    let fake = FakeAws::start();
    let (client, key) = (fake.client(), fake.create_key(Origin::Kms));
    let made = data_key(&client, &key).unwrap();
    let blob = &made["CiphertextBlob"];
    let calls = [
        ("GenerateDataKey", json!({ "KeyId": key, "KeySpec": "AES_256", "DryRun": true })),
        ("Encrypt", json!({ "KeyId": key, "Plaintext": "aGVsbG8=", "DryRun": true })),
        ("Decrypt", json!({ "CiphertextBlob": blob, "DryRun": true })),
        ("ReEncrypt", json!({ "CiphertextBlob": blob, "DestinationKeyId": key, "DryRun": true })),
        (
            "Decrypt",
            json!({ "KeyId": key, "DryRun": true, "DryRunModifiers": ["IGNORE_CIPHERTEXT"] }),
        ),
    ];
    for (operation, body) in &calls {
        assert_eq!(code(client.call(operation, body)), "DryRunOperationException");
    }
    fake.set_key_state(&key, KeyState::Disabled);
    for (operation, body) in &calls {
        assert_eq!(code(client.call(operation, body)), "DisabledException");
    }
}

#[test]
fn faults_hit_what_they_are_for() {
    let fake = FakeAws::start();
    let (client, key, other) =
        (fake.client(), fake.create_key(Origin::Kms), fake.create_key(Origin::Kms));
    fake.fault(Rule::new(Effect::internal()).on("GenerateDataKey*").key(&key).after(1).times(2));
    data_key(&client, &key).unwrap();
    data_key(&client, &other).unwrap();
    assert_eq!(code(data_key(&client, &key)), "KMSInternalException");
    data_key(&client, &other).unwrap();
    assert_eq!(code(data_key(&client, &key)), "KMSInternalException");
    data_key(&client, &key).unwrap();
    fake.throttle(true);
    assert_eq!(code(data_key(&client, &key)), "ThrottlingException");
    assert_eq!(code(client.call("ListKeys", &json!({}))), "ThrottlingException");
    fake.throttle(false);
    fake.fail_next(1);
    assert_eq!(code(client.call("ListKeys", &json!({}))), "KMSInternalException");
    fake.fault(Rule::new(Effect::unavailable()).times(1));
    let response = client.send(&client.request("ListKeys", &json!({}))).unwrap();
    assert_eq!(response.status, 503);
    assert!(response.header("x-amzn-requestid").is_some_and(|id| id.len() == 36));
    client.call("ListKeys", &json!({})).unwrap();
    assert_eq!(fake.calls("GenerateDataKey"), 7);
    assert_eq!(fake.calls_with("GenerateDataKey", "KMSInternalException"), 2);
    assert_eq!(fake.calls_of_key(&key), 5);
}

#[test]
fn connections_can_be_lost_in_every_way() {
    let fake = FakeAws::start();
    let client = fake.client();
    let create = || code(client.call("CreateKey", &json!({})));
    let count = || fake.state()["keys"].as_array().unwrap().len();
    // The work is done and nobody is told.
    fake.drop_next("CreateKey", 1);
    assert_eq!(create(), "UnexpectedEof");
    assert_eq!(count(), 1);
    assert!(fake.log().last().unwrap().lost);
    fake.fault(Rule::new(Effect::Reset).times(1));
    assert_eq!(create(), "ConnectionReset");
    fake.refuse_connections(true);
    assert_eq!(create(), "ConnectionRefused");
    fake.refuse_connections(false);
    assert_eq!(create(), "OK");
    assert_eq!(count(), 2);
    // A call that hangs ends when the fault does.
    let fault = fake.fault(Rule::new(Effect::Hang).on("ListKeys").times(1));
    let caller = client.clone();
    let hung = thread::spawn(move || caller.call("ListKeys", &json!({})));
    until(|| fake.in_flight() > 0);
    assert_eq!(create(), "OK");
    assert!(!hung.is_finished());
    fake.clear_fault(fault);
    assert!(hung.join().unwrap().is_err());
    assert_eq!(count(), 3);
    fake.cut_connections();
    assert_eq!(create(), "OK");
}

#[test]
fn a_hanging_fake_can_be_dropped() {
    let fake = FakeAws::start();
    fake.hang(true);
    let client = fake.client();
    let hung = thread::spawn(move || client.call("ListKeys", &json!({})));
    until(|| fake.in_flight() > 0);
    drop(fake);
    assert!(hung.join().unwrap().is_err());
}

#[test]
fn calls_are_timed_and_counted() {
    let fake = FakeAws::start();
    let key = fake.create_key(Origin::Kms);
    fake.set_latency(Duration::from_millis(100));
    let start = Instant::now();
    let together = 5;
    let threads: Vec<_> = (0..together)
        .map(|_| {
            let (client, key) = (fake.client(), key.clone());
            thread::spawn(move || data_key(&client, &key).unwrap())
        })
        .collect();
    threads.into_iter().for_each(|thread| drop(thread.join().unwrap()));
    assert!(start.elapsed() >= Duration::from_millis(100));
    assert!((2..=together).contains(&fake.max_in_flight()));
    assert_eq!((fake.calls_total(), fake.units()), (together, 3 * together));
    assert_eq!(fake.log()[0].key.as_ref(), Some(&key));
    fake.reset_counters();
    assert_eq!((fake.calls_total(), fake.units(), fake.max_in_flight()), (0, 0, 0));
    // One caller is never counted beside himself.
    fake.set_latency(Duration::ZERO);
    let client = fake.client();
    (0..200).for_each(|_| drop(data_key(&client, &key).unwrap()));
    assert_eq!(fake.max_in_flight(), 1);
}

#[test]
fn a_store_has_a_quota_of_its_own() {
    let fake = FakeAws::start();
    let (client, kms, hsm) =
        (fake.client(), fake.create_key(Origin::Kms), fake.create_key(Origin::CloudHsm));
    let other = fake.create_key_in(&fake.create_store("second", Origin::CloudHsm));
    fake.set_quota(Some(6.0));
    data_key(&client, &hsm).unwrap();
    data_key(&client, &hsm).unwrap();
    until(|| code(data_key(&client, &hsm)) == "ThrottlingException");
    data_key(&client, &kms).unwrap();
    data_key(&client, &other).unwrap();
    client.call("DescribeKey", &json!({ "KeyId": hsm })).unwrap();
    until(|| data_key(&client, &hsm).is_ok());
}

#[test]
fn a_connection_serves_many_calls_in_any_framing() {
    let fake = FakeAws::start();
    let client = fake.client();
    let mut stream = TcpStream::connect(&client.host).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    for _ in 0..3 {
        client.request("ListKeys", &json!({})).write(&mut stream).unwrap();
        let response = Response::read(&mut BufReader::new(&stream)).unwrap();
        assert_eq!((response.status, response.header("connection")), (200, None));
    }
    // In chunks, and only when the server wants to have it.
    let request = client.request("ListKeys", &json!({}));
    let mut head =
        "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\nexpect: 100-continue\r\n".to_owned();
    for (name, value) in &request.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
    let mut go = [0; 25];
    stream.read_exact(&mut go).unwrap();
    assert_eq!(&go, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"1\r\n{\r\n1;x=y\r\n}\r\n0\r\n\r\n").unwrap();
    let response = Response::read(&mut BufReader::new(&stream)).unwrap();
    assert_eq!(response.status, 200, "{}", String::from_utf8_lossy(&response.body));
}

#[test]
fn everything_can_be_switched_over_http() {
    let fake = FakeAws::start();
    let client = fake.client();
    let set = |value: Value| client.control(Some(&value)).unwrap();
    let key = set(json!({ "create_key": { "origin": "AWS_CLOUDHSM" } }))["create_key"].clone();
    let key = key.as_str().unwrap();
    set(json!({ "key": { "id": key, "state": "Disabled" } }));
    assert_eq!(code(data_key(&client, key)), "DisabledException");
    set(json!({ "key": { "id": key, "state": "Enabled" }, "blob_len": 500, "quota_units": 1000 }));
    set(json!({ "credential": { "access_key": "AKIAX", "secret": "x", "allow": ["List*"] } }));
    client.as_user("AKIAX", "x").call("ListKeys", &json!({})).unwrap();
    let fault =
        set(json!({ "fault": { "effect": "error", "code": "Odd", "message": "m", "times": 5 } }));
    assert_eq!(code(data_key(&client, key)), "Odd");
    set(json!({ "clear": fault["fault"] }));
    data_key(&client, key).unwrap();
    let state = client.control(None).unwrap();
    assert_eq!(state["switches"]["blob_len"], 500);
    assert_eq!(state["counters"]["operations"]["GenerateDataKey"]["OK"]["units"], 3);
    assert_eq!(state["log"].as_array().unwrap().len(), 4);
    for bad in [json!({ "no": 1 }), json!({ "latency_ms": "x" }), json!({ "fault": {} })] {
        assert!(set(bad)["error"].is_string());
    }
    set(json!({ "refuse_ms": 1000 }));
    until(|| data_key(&client, key).is_err());
    until(|| data_key(&client, key).is_ok());
}
