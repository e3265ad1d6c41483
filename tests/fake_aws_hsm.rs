//! The fake's clusters: what the tests of provisioning rely on. AWS's own clients tell the whole story,
//! down to a key in a store of the cluster.

#[allow(dead_code)]
#[path = "support/asking.rs"]
mod asking;
#[path = "support/aws/fake.rs"]
mod aws;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use asking::{cluster_request, code, subnet, until, with};
use aws::{FakeAws, Principal, Spoil, pki};
use aws_sdk_cloudhsmv2 as cloudhsm;
use aws_sdk_kms as kms;
use serde_json::{Value, json};
use x509_parser::pem::parse_x509_pem;

/// What AWS's library calls the credentials it has for tests.
const TESTER: (&str, &str) = ("ANOTREAL", "notrealrnrELgWzOk3IfjzDKtFBhDby");

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap()
}

struct Sdk {
    hsm: cloudhsm::Client,
    kms: kms::Client,
}

fn sdk(fake: &FakeAws) -> Sdk {
    fake.add_principal(Principal::new(TESTER.0, TESTER.1, "tester"));
    let hsm = cloudhsm::Config::builder()
        .behavior_version(cloudhsm::config::BehaviorVersion::latest())
        .region(cloudhsm::config::Region::new("us-east-1"))
        .credentials_provider(kms::config::Credentials::for_tests())
        .endpoint_url(fake.endpoint());
    let kms = kms::Config::builder()
        .behavior_version(kms::config::BehaviorVersion::latest())
        .region(kms::config::Region::new("us-east-1"))
        .credentials_provider(kms::config::Credentials::for_tests())
        .endpoint_url(fake.endpoint());
    Sdk { hsm: cloudhsm::Client::from_conf(hsm.build()), kms: kms::Client::from_conf(kms.build()) }
}

/// An uninitialized cluster with one HSM: its id and its certificates.
async fn young_cluster(sdk: &Sdk) -> (String, cloudhsm::types::Certificates) {
    let made = sdk
        .hsm
        .create_cluster()
        .hsm_type("hsm2m.medium")
        .mode(cloudhsm::types::ClusterMode::Fips)
        .subnet_ids(subnet(1))
        .subnet_ids(subnet(2))
        .send();
    let cluster = made.await.unwrap().cluster.unwrap();
    assert_eq!(cluster.state.unwrap().as_str(), "CREATE_IN_PROGRESS");
    let id = cluster.cluster_id.unwrap();
    let hsm = sdk.hsm.create_hsm().cluster_id(&id).availability_zone("us-east-1a").send().await;
    assert_eq!(hsm.unwrap().hsm.unwrap().state.unwrap().as_str(), "CREATE_IN_PROGRESS");
    let found = sdk.hsm.describe_clusters().filters("clusterIds", vec![id.clone()]).send().await;
    let cluster = found.unwrap().clusters.unwrap().remove(0);
    assert_eq!(cluster.state.unwrap().as_str(), "UNINITIALIZED");
    assert_eq!(cluster.hsms.unwrap()[0].state.as_ref().unwrap().as_str(), "ACTIVE");
    (id, cluster.certificates.unwrap())
}

#[test]
fn from_nothing_to_a_ciphertext() {
    runtime().block_on(async {
        let fake = FakeAws::start();
        let sdk = sdk(&fake);
        let (id, certificates) = young_cluster(&sdk).await;
        let (anchor, signed) = pki::sign_as_customer(certificates.cluster_csr().unwrap());
        let claim = sdk.hsm.initialize_cluster().cluster_id(&id).signed_cert(&signed);
        let claimed = claim.trust_anchor(&anchor).send().await.unwrap();
        assert_eq!(claimed.state.unwrap().as_str(), "INITIALIZE_IN_PROGRESS");
        fake.activate(&id, "administrator").unwrap();
        let second = sdk.hsm.create_hsm().cluster_id(&id).availability_zone("us-east-1b");
        second.send().await.unwrap();
        fake.set_hsm_user(&id, "kmsuser", "kmspassword").unwrap();
        let store = sdk
            .kms
            .create_custom_key_store()
            .custom_key_store_name("vault")
            .cloud_hsm_cluster_id(&id)
            .trust_anchor_certificate(&anchor)
            .key_store_password("kmspassword")
            .send();
        let store = store.await.unwrap().custom_key_store_id.unwrap();
        sdk.kms.connect_custom_key_store().custom_key_store_id(&store).send().await.unwrap();
        let shown = sdk.kms.describe_custom_key_stores().custom_key_store_id(&store).send().await;
        let shown = shown.unwrap().custom_key_stores.unwrap().remove(0);
        assert_eq!(shown.connection_state.unwrap().as_str(), "CONNECTED");
        assert_eq!(shown.trust_anchor_certificate.unwrap(), anchor);
        let key = sdk.kms.create_key().custom_key_store_id(&store);
        let key = key.origin(kms::types::OriginType::AwsCloudhsm).send().await.unwrap();
        let key = key.key_metadata.unwrap();
        assert_eq!(key.cloud_hsm_cluster_id.as_ref(), Some(&id));
        let unused = sdk.kms.get_key_last_usage().key_id(&key.key_id).send().await.unwrap();
        assert!(unused.key_last_usage.is_none_or(|usage| usage.operation.is_none()));
        let text = kms::primitives::Blob::new("secret");
        let sealed = sdk.kms.encrypt().key_id(&key.key_id).plaintext(text).send().await.unwrap();
        let opened =
            sdk.kms.decrypt().ciphertext_blob(sealed.ciphertext_blob.unwrap()).send().await;
        assert_eq!(opened.unwrap().plaintext.unwrap().as_ref(), b"secret");
        let used = sdk.kms.get_key_last_usage().key_id(&key.key_id).send().await.unwrap();
        assert_eq!(used.key_last_usage.unwrap().operation.unwrap().as_str(), "Decrypt");
        let counts = fake.counts();
        assert_eq!((counts.keys, counts.stores, counts.clusters, counts.hsms), (1, 1, 1, 2));
        // The users that the cluster has now: KMS has taken its own over.
        assert_ne!(fake.hsm_users(&id)["kmsuser"].password, "kmspassword");
        // With no HSM left the store says CONNECTED all the same.
        fake.set_hsms(&id, "DEGRADED");
        let text = kms::primitives::Blob::new("secret");
        let failed = sdk.kms.encrypt().key_id(&key.key_id).plaintext(text).send().await;
        assert!(failed.unwrap_err().into_service_error().is_kms_invalid_state_exception());
    });
}

/// Whether the signature of one certificate is by the key of another.
fn signed_by(certificate: &str, issuer: &str) -> bool {
    let (_, certificate) = parse_x509_pem(certificate.as_bytes()).unwrap();
    let (_, issuer) = parse_x509_pem(issuer.as_bytes()).unwrap();
    let (certificate, issuer) = (certificate.parse_x509().unwrap(), issuer.parse_x509().unwrap());
    certificate.issuer() == issuer.subject()
        && certificate.verify_signature(Some(issuer.public_key())).is_ok()
}

#[test]
fn both_chains_of_an_hsm_hold_unless_spoilt() {
    runtime().block_on(async {
        let fake = FakeAws::start();
        let sdk = sdk(&fake);
        let (id, _) = young_cluster(&sdk).await;
        let (aws, manufacturer) = fake.hardware_roots();
        let check = async || {
            let found = sdk.hsm.describe_clusters().filters("clusterIds", vec![id.clone()]);
            let found =
                found.send().await.unwrap().clusters.unwrap().remove(0).certificates.unwrap();
            let (hsm, csr) = (found.hsm_certificate().unwrap(), found.cluster_csr().unwrap());
            let of_aws = found.aws_hardware_certificate().unwrap();
            let of_manufacturer = found.manufacturer_hardware_certificate().unwrap();
            let (_, pem) = parse_x509_pem(hsm.as_bytes()).unwrap();
            let key = pem.parse_x509().unwrap().public_key().subject_public_key.data.to_vec();
            // This checks the request's own signature, too.
            let request = rcgen::CertificateSigningRequestParams::from_pem(csr).unwrap();
            [
                signed_by(of_aws, &aws),
                signed_by(of_manufacturer, &manufacturer),
                signed_by(hsm, of_aws) && signed_by(hsm, of_manufacturer),
                rcgen::PublicKeyData::der_bytes(&request.public_key) == key,
            ]
        };
        assert_eq!(check().await, [true; 4]);
        let spoils = [Spoil::Aws, Spoil::Manufacturer, Spoil::Hsm, Spoil::Key];
        for (at, spoil) in spoils.into_iter().enumerate() {
            fake.spoil_certificates(Some(spoil));
            let mut expected = [true; 4];
            expected[at] = false;
            assert_eq!(check().await, expected, "{spoil:?}");
        }
        fake.spoil_certificates(None);
        assert_eq!(check().await, [true; 4]);
    });
}

#[test]
fn a_claim_is_really_checked() {
    runtime().block_on(async {
        let fake = FakeAws::start();
        let sdk = sdk(&fake);
        let (id, certificates) = young_cluster(&sdk).await;
        let (other, foreign) = young_cluster(&sdk).await;
        let csr = certificates.cluster_csr().unwrap();
        let (anchor, signed) = pki::sign_as_customer(csr);
        let (_, of_other) = pki::sign_as_customer(foreign.cluster_csr().unwrap());
        let (stranger, _) = fake.hardware_roots();
        let refused = async |signed: &str, anchor: &str| {
            let claim = sdk.hsm.initialize_cluster().cluster_id(&id).signed_cert(signed);
            let error = claim.trust_anchor(anchor).send().await.unwrap_err().into_service_error();
            assert!(error.is_cloud_hsm_invalid_request_exception());
            kms::error::ProvideErrorMetadata::message(&error).unwrap().to_owned()
        };
        assert!(refused(&signed, &stranger).await.contains("not signed by the trust anchor"));
        assert!(refused(&of_other, &anchor).await.contains("another public key"));
        assert!(refused(&anchor, &anchor).await.contains("another public key"));
        assert!(refused(&signed, &signed).await.contains("not self-signed"));
        assert!(refused(csr, &anchor).await.contains("not a certificate"));
        assert!(refused("nonsense", &anchor).await.contains("not a PEM certificate"));
        assert!(refused(&signed, &format!("{anchor}{anchor}")).await.contains("single"));
        assert!(refused(&signed, &"A".repeat(5001)).await.contains("less than or equal to 5000"));
        let claim = sdk.hsm.initialize_cluster().cluster_id(&id).signed_cert(&signed);
        claim.trust_anchor(&anchor).send().await.unwrap();
        // The request is gone, and a second claim is too late.
        let found =
            sdk.hsm.describe_clusters().filters("clusterIds", vec![id.clone()]).send().await;
        let found = found.unwrap().clusters.unwrap().remove(0);
        assert_eq!(found.state.unwrap().as_str(), "INITIALIZED");
        assert!(found.certificates.as_ref().unwrap().cluster_csr().is_none());
        assert!(found.certificates.unwrap().cluster_certificate().is_some());
        assert!(refused(&signed, &anchor).await.contains("needs UNINITIALIZED"));
        let none =
            sdk.hsm.describe_clusters().filters("states", vec!["ACTIVE".into()]).send().await;
        assert!(none.unwrap().clusters().is_empty());
        assert!(fake.activate(&other, "administrator").is_err());
        assert!(fake.activate(&id, "short").is_err());
        fake.activate(&id, "administrator").unwrap();
    });
}

#[test]
fn a_cluster_is_made_as_the_service_wants_it() {
    let fake = FakeAws::start();
    let client = fake.client();
    let good = cluster_request();
    let refused = |request: Value| code(client.call_cloudhsm("CreateCluster", &request));
    let tag = |name: String| json!({ "Key": name, "Value": "" });
    let many: Vec<Value> = (0..51).map(|n| tag(format!("tag{n}"))).collect();
    let days = |value: &str| json!({ "Type": "DAYS", "Value": value });
    let bad = [
        ("HsmType", json!("hsm1.medium")),
        ("HsmType", json!("hsm9.large")),
        ("HsmType", Value::Null),
        ("Mode", Value::Null),
        ("Mode", json!("MAYBE")),
        ("BackupRetentionPolicy", days("6")),
        ("BackupRetentionPolicy", days("380")),
        ("BackupRetentionPolicy", json!({ "Type": "WEEKS", "Value": "9" })),
        ("SubnetIds", json!([])),
        ("SubnetIds", json!([subnet(1), subnet(7)])),
        ("SubnetIds", json!([subnet(1), "subnet-0b000000000000002"])),
        ("SubnetIds", json!(["subnet-0c000000000000001"])),
    ];
    for (name, value) in bad {
        let answer = refused(with(&good, name, value.clone()));
        assert_eq!(answer, "CloudHsmInvalidRequestException", "{name} {value}");
    }
    for tags in [json!(many), json!([tag("a".into()), tag("a".into())]), json!([tag("".into())])] {
        assert_eq!(refused(with(&good, "TagList", tags)), "CloudHsmTagException");
    }
    let missing = with(&good, "SourceBackupId", json!("backup-aaaaaaaaaaa"));
    assert_eq!(refused(missing), "CloudHsmResourceNotFoundException");
    assert_eq!(fake.counts().clusters, 0);
    let full = with(&good, "TagList", json!([tag("a".into())]));
    let full = with(&full, "BackupRetentionPolicy", days("7"));
    let made = client.call_cloudhsm("CreateCluster", &full).unwrap();
    assert_eq!(made["Cluster"]["SubnetMapping"]["us-east-1b"], subnet(2));
    assert_eq!(made["Cluster"]["BackupRetentionPolicy"]["Value"], "7");
    assert_eq!(made["Cluster"]["Certificates"], json!({}));
    (0..3).for_each(|_| assert_eq!(refused(good.clone()), "OK"));
    assert_eq!(refused(good), "CloudHsmResourceLimitExceededException");
}

#[test]
fn hsms_clusters_and_tags_come_and_go() {
    let fake = FakeAws::start();
    let client = fake.client();
    let hsm = |operation: &str, body: Value| client.call_cloudhsm(operation, &body);
    fake.set_cluster_times(Duration::from_millis(500), Duration::from_millis(500));
    let made = hsm("CreateCluster", cluster_request()).unwrap();
    let id = made["Cluster"]["ClusterId"].as_str().unwrap();
    let in_zone = |zone: &str| json!({ "ClusterId": id, "AvailabilityZone": zone });
    let show = || hsm("DescribeClusters", json!({})).unwrap()["Clusters"][0].clone();
    // Not before the cluster is there.
    let early = code(hsm("CreateHsm", in_zone("us-east-1a")));
    assert_eq!(early, "CloudHsmInvalidRequestException");
    until(|| show()["State"] == "UNINITIALIZED");
    assert_eq!(code(hsm("CreateHsm", in_zone("us-east-1c"))), "CloudHsmInvalidRequestException");
    let first = hsm("CreateHsm", in_zone("us-east-1a")).unwrap();
    assert_eq!(show()["Hsms"][0]["State"], "CREATE_IN_PROGRESS");
    assert_eq!(show()["Certificates"], json!({}));
    until(|| show()["Certificates"]["ClusterCsr"].is_string());
    assert_eq!(show()["Hsms"][0]["State"], "ACTIVE");
    let name = json!({ "ClusterId": id });
    assert_eq!(code(hsm("DeleteCluster", name.clone())), "CloudHsmInvalidRequestException");
    fake.set_cluster_times(Duration::ZERO, Duration::ZERO);
    (0..5).for_each(|_| drop(hsm("CreateHsm", in_zone("us-east-1b")).unwrap()));
    let seventh = code(hsm("CreateHsm", in_zone("us-east-1b")));
    assert_eq!(seventh, "CloudHsmResourceLimitExceededException");
    let nowhere = json!({ "ClusterId": "cluster-aaaaaaaaaaa", "AvailabilityZone": "us-east-1a" });
    assert_eq!(code(hsm("CreateHsm", nowhere)), "CloudHsmResourceNotFoundException");
    let tags = json!({ "ResourceId": id, "TagList": [{ "Key": "a", "Value": "b" }] });
    hsm("TagResource", tags).unwrap();
    let listed = hsm("ListTags", json!({ "ResourceId": id })).unwrap();
    assert_eq!(listed["TagList"], json!([{ "Key": "a", "Value": "b" }]));
    hsm("UntagResource", json!({ "ResourceId": id, "TagKeyList": ["a"] })).unwrap();
    assert_eq!(show()["TagList"], json!([]));
    let days = json!({ "Type": "DAYS", "Value": "379" });
    hsm("ModifyCluster", json!({ "ClusterId": id, "BackupRetentionPolicy": days })).unwrap();
    assert_eq!(show()["BackupRetentionPolicy"]["Value"], "379");
    let gone = json!({ "ClusterId": id, "HsmId": first["Hsm"]["HsmId"] });
    hsm("DeleteHsm", gone.clone()).unwrap();
    assert_eq!(code(hsm("DeleteHsm", gone)), "CloudHsmResourceNotFoundException");
    for left in show()["Hsms"].as_array().unwrap() {
        hsm("DeleteHsm", json!({ "ClusterId": id, "EniIp": left["EniIp"] })).unwrap();
    }
    assert_eq!(hsm("DeleteCluster", name).unwrap()["Cluster"]["State"], "DELETE_IN_PROGRESS");
    assert_eq!(show()["State"], "DELETED");
    assert_eq!((fake.counts().clusters, fake.counts().hsms), (0, 0));
}

#[test]
fn clusters_are_described_in_pages() {
    let fake = FakeAws::start();
    let client = fake.client();
    fake.set_limits(10, 30, 6);
    (0..30).for_each(|_| {
        client.call_cloudhsm("CreateCluster", &cluster_request()).unwrap();
    });
    let ask = |body: Value| client.call_cloudhsm("DescribeClusters", &body);
    let first = ask(json!({})).unwrap();
    assert_eq!(first["Clusters"].as_array().unwrap().len(), 25);
    let second = ask(json!({ "NextToken": first["NextToken"] })).unwrap();
    assert_eq!(second["Clusters"].as_array().unwrap().len(), 5);
    assert!(second["NextToken"].is_null());
    let elsewhere = json!({ "Filters": { "vpcIds": ["vpc-0b000000000000001"] } });
    assert_eq!(ask(elsewhere).unwrap()["Clusters"], json!([]));
    for bad in [json!({ "MaxResults": 26 }), json!({ "Filters": { "names": [] } })] {
        assert_eq!(code(ask(bad)), "CloudHsmInvalidRequestException");
    }
}

/// Runs a tool; its answer.
fn tool(program: &Path, words: &[&str], environment: &[(&str, String)], input: &str) -> Value {
    let mut child = Command::new(program)
        .args(words)
        .envs(environment.iter().map(|(name, value)| (*name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or(json!(output.status.code()))
}

#[test]
fn the_tools_of_cloudhsm() {
    runtime().block_on(async {
        let fake = FakeAws::start();
        let sdk = sdk(&fake);
        let (id, certificates) = young_cluster(&sdk).await;
        let (anchor, signed) = pki::sign_as_customer(certificates.cluster_csr().unwrap());
        let claim = sdk.hsm.initialize_cluster().cluster_id(&id).signed_cert(&signed);
        claim.trust_anchor(&anchor).send().await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (cli, configure) = fake.install_cli(dir.path());
        let mut environment = fake.cli_environment(dir.path());
        let file = dir.path().join("customerCA.crt");
        let file = file.to_str().unwrap();
        let run = |words: &[&str], environment: &[(&'static str, String)], input: &str| {
            tool(&cli, words, environment, input)
        };
        let activate = ["cluster", "activate"];
        let unready = run(&activate, &environment, "administrator\nadministrator\n");
        assert!(unready["data"].as_str().unwrap().contains("not configured"));
        let words = ["--cluster-id", &id, "--hsm-ca-cert", file];
        assert_eq!(tool(&configure, &words, &environment, ""), json!(0));
        std::fs::write(file, fake.hardware_roots().0).unwrap();
        assert_eq!(run(&["cluster", "hsm-info"], &environment, "")["error_code"], 1);
        std::fs::write(file, &anchor).unwrap();
        let info = run(&["cluster", "hsm-info"], &environment, "");
        assert_eq!(info["data"]["hsms"].as_array().unwrap().len(), 1);
        let users = run(&["user", "list"], &environment, "");
        assert_eq!(users["data"]["users"][0]["role"], "unactivated-admin");
        assert_eq!(
            run(&activate, &environment, "administrator\nadministrators\n")["error_code"],
            1
        );
        assert_eq!(run(&activate, &environment, "administrator\nadministrator\n")["error_code"], 0);
        assert_eq!(run(&activate, &environment, "administrator\nadministrator\n")["error_code"], 1);
        let create = ["user", "create", "--username", "kmsuser", "--role", "crypto-user"];
        let (new, short) = ("kmspassword\nkmspassword\n", "kms\nkms\n");
        assert_eq!(run(&create, &environment, new)["error_code"], 1);
        environment.push(("CLOUDHSM_ROLE", "admin".to_owned()));
        environment.push(("CLOUDHSM_PIN", "admin:wrongpassword".to_owned()));
        assert!(run(&create, &environment, new)["data"].as_str().unwrap().contains("Login failed"));
        environment.push(("CLOUDHSM_PIN", "admin:administrator".to_owned()));
        assert_eq!(run(&create, &environment, short)["error_code"], 1);
        assert_eq!(run(&create, &environment, new)["error_code"], 0);
        assert!(
            run(&create, &environment, new)["data"].as_str().unwrap().contains("already exists")
        );
        assert_eq!(fake.hsm_users(&id)["kmsuser"].password, "kmspassword");
        let users = run(&["user", "list"], &environment, "");
        assert_eq!(users["data"]["users"][1]["username"], "kmsuser");
        let mut failing = environment.clone();
        failing.push(("KMSFS_FAKE_CLI_FAIL", "out of order".to_owned()));
        assert_eq!(run(&["user", "list"], &failing, "")["data"], "out of order");
        let log = std::fs::read_to_string(dir.path().join("cloudhsm-cli.log")).unwrap();
        assert_eq!(log.lines().count(), 15);
        assert!(log.contains("kmsuser") && !log.contains("kmspassword"));
    });
}
