//! Clusters, HSMs and key stores.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use kmsfs::keys::aws::classify::Class;
use kmsfs::provision::advice;
use kmsfs::provision::connection::{CONNECTION_ADVICE, sentence};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::aws::{ACCESS_KEY, CONNECTION_ERRORS, Client, Effect, FakeAws, Fault, Rule, SECRET_KEY};

const PASSWORD: &str = "KmsUserPassword7";

/// A fake, and a directory to work in.
pub struct Bed {
    pub fake: FakeAws,
    dir: TempDir,
}

impl Bed {
    pub fn new() -> Bed {
        let dir = TempDir::with_prefix("kmsfs-provision-").unwrap();
        Bed { fake: FakeAws::start(), dir }
    }

    /// With an active cluster of the deployment, `kmsuser`, and the files of both.
    pub fn ready() -> (Bed, String) {
        let bed = Bed::new();
        let (cluster, anchor) = bed.fake.create_cluster(2);
        bed.tag(&cluster, "kmsfs");
        bed.fake.set_hsm_user(&cluster, "kmsuser", PASSWORD).unwrap();
        bed.write("kmsfs-kmsfs/customerCA.crt", &anchor);
        bed.write("kmsfs-kmsfs/kmsuser-password", &format!("{PASSWORD}\n"));
        bed.fake.reset_counters();
        (bed, cluster)
    }

    pub fn client(&self) -> Client {
        self.fake.client()
    }

    fn tag(&self, cluster: &str, name: &str) {
        let tag = json!({ "Key": "kmsfs:deployment", "Value": name });
        let request = json!({ "ResourceId": cluster, "TagList": [tag] });
        self.client().call_cloudhsm("TagResource", &request).unwrap();
    }

    /// Writes a file that only its owner may open.
    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// `kmsfsctl provision ARGUMENTS`.
    pub fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kmsfsctl"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("AWS_") {
                command.env_remove(name);
            }
        }
        let place = self.fake.endpoint();
        command
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
            .env("AWS_CONFIG_FILE", "/nonexistent/config")
            .env("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent/credentials")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .current_dir(self.dir.path())
            .arg("provision")
            .args(arguments.split_whitespace())
            .args(["--region", self.fake.region(), "--poll", "20ms", "--patience", "30s"])
            .args(["--settling", "200ms"])
            .args(["--kms-endpoint", &place, "--cloudhsm-endpoint", &place])
            .args(["--sts-endpoint", &place]);
        command
    }

    pub fn output(&self, arguments: &str) -> Output {
        let output = self.command(arguments).output().unwrap();
        assert!(!text(&output).contains(PASSWORD), "{}", text(&output));
        output
    }

    /// What a command that must succeed printed as JSON.
    pub fn made(&self, arguments: &str) -> Value {
        let output = self.output(&format!("{arguments} --json"));
        assert!(output.status.success(), "{arguments}: {}", text(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// What a command that must fail said.
    pub fn refused(&self, arguments: &str) -> String {
        let output = self.output(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments}: {}", text(&output));
        assert!(output.stdout.is_empty());
        String::from_utf8(output.stderr).unwrap()
    }

    fn disconnect(&self, store: &str) {
        let request = json!({ "CustomKeyStoreId": store });
        self.client().call("DisconnectCustomKeyStore", &request).unwrap();
    }

    /// The next call of an operation is refused with this code.
    fn refuse_next(&self, operation: &str, code: &str) {
        let effect = Effect::Error(Fault::client(code, "Said by the service."));
        self.fake.fault(Rule::new(effect).on(operation).times(1));
    }
}

pub fn text(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    format!("{} {out}{err}", output.status)
}

pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(30), "never came: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Options that name the usual subnets with these numbers.
fn subnets(numbers: &[usize]) -> String {
    numbers.iter().map(|number| format!(" --subnet subnet-0a{number:015x}")).collect()
}

fn cluster() -> String {
    format!("cluster{}", subnets(&[1, 2]))
}

#[test]
fn a_cluster_and_its_hsms_are_made_once() {
    let bed = Bed::new();
    bed.fake.set_cluster_times(Duration::from_millis(100), Duration::from_millis(100));
    let output = bed.output(&format!("{} --tag team=storage --retention 30", cluster()));
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert_eq!(said.matches("CREATE_IN_PROGRESS").count(), 2, "{said}");
    assert!(said.contains("UNINITIALIZED") && said.contains("$1.60 an hour"), "{said}");
    let there = &bed.fake.clusters()[0];
    assert_eq!(there["BackupRetentionPolicy"]["Value"], "30");
    assert_eq!((&there["Mode"], &there["NetworkType"]), (&json!("FIPS"), &json!("IPV4")));
    assert_eq!(there["TagList"].as_array().unwrap().len(), 2);
    // Again, with the subnets and without.
    for arguments in [cluster(), "cluster".to_owned()] {
        let made = bed.made(&arguments);
        assert_eq!(made["id"], there["ClusterId"]);
        assert!(made["csr"].as_str().unwrap().contains("CERTIFICATE REQUEST"));
        assert!(made["certificates"]["aws_hardware"].is_string());
    }
    assert_eq!((bed.fake.counts().clusters, bed.fake.counts().hsms), (1, 1));
    let made = bed.made("cluster --hsms 2");
    let zones = [0, 1].map(|at| made["hsms"][at]["zone"].clone());
    assert_eq!(zones, [json!("us-east-1a"), json!("us-east-1b")]);
    bed.made("cluster --hsms 2");
    assert_eq!((bed.fake.calls("CreateCluster"), bed.fake.calls("CreateHsm")), (1, 2));
}

#[test]
fn clusters_that_cannot_serve_are_refused() {
    let bed = Bed::new();
    let said = bed.refused(&format!("cluster{}", subnets(&[1])));
    assert!(said.contains("different Availability Zones"), "{said}");
    assert!(bed.refused("cluster").contains("--subnet ID --subnet ID"));
    assert_eq!(bed.fake.calls("CreateCluster"), 0);
    let request = |number: usize| {
        json!({
            "HsmType": "hsm2m.medium", "Mode": "FIPS", "SubnetIds": [format!("subnet-0a{number:015x}")],
            "TagList": [{ "Key": "kmsfs:deployment", "Value": "kmsfs" }],
        })
    };
    let id = |answer: Value| answer["Cluster"]["ClusterId"].as_str().unwrap().to_owned();
    let one = id(bed.client().call_cloudhsm("CreateCluster", &request(1)).unwrap());
    let said = bed.refused("cluster");
    assert!(said.contains(&one) && said.contains("us-east-1a only"), "{said}");
    let said = bed.refused(&cluster());
    assert!(said.contains("cannot be changed") && said.contains("0000000002"), "{said}");
    let two = id(bed.client().call_cloudhsm("CreateCluster", &request(2)).unwrap());
    let said = bed.refused(&cluster());
    assert!(said.contains(&one) && said.contains(&two) && said.contains("--cluster"), "{said}");
    bed.fake.set_cluster_state(&two, "DELETED");
    bed.fake.set_cluster_state(&one, "DEGRADED");
    assert!(bed.refused("cluster").contains("DEGRADED"));
    let said = bed.refused("cluster --cluster cluster-aaaaaaaaaaa");
    assert!(said.contains("there is no cluster"), "{said}");
    bed.fake.set_cluster_state(&one, "DELETED");
    // Deleted ones do not count: now there is none.
    assert!(bed.refused("cluster").contains("there is no cluster of deployment"));
    assert_eq!(bed.fake.counts().hsms, 0);
}

#[test]
fn an_hsm_that_breaks_is_said() {
    let bed = Bed::new();
    let id = bed.made(&cluster())["id"].as_str().unwrap().to_owned();
    bed.fake.set_hsms(&id, "DEGRADED");
    let said = bed.refused("cluster");
    assert!(said.contains("DEGRADED") && said.contains("delete-hsm"), "{said}");
    assert_eq!(bed.fake.counts().hsms, 1);
}

#[test]
fn refusals_of_cloudhsm_say_what_to_do() {
    let bed = Bed::new();
    for code in ["AccessDenied", "InvalidRequest", "ResourceNotFound", "Service", "Tag"] {
        let code = format!("CloudHsm{code}Exception");
        bed.refuse_next("CreateCluster", &code);
        let said = bed.refused(&cluster());
        let advice = advice::about("CreateCluster", &code, Class::Misconfigured);
        assert!(said.contains(advice) && said.contains(&code), "{said}");
    }
    bed.fake.set_limits(10, 0, 0);
    let limit = "CloudHsmResourceLimitExceededException";
    let said = bed.refused(&cluster());
    assert!(said.contains(advice::about("CreateCluster", limit, Class::Misconfigured)), "{said}");
    bed.fake.set_limits(10, 4, 0);
    let said = bed.refused(&cluster());
    assert!(said.contains(advice::about("CreateHsm", limit, Class::Misconfigured)), "{said}");
    assert_eq!((bed.fake.counts().clusters, bed.fake.counts().hsms), (1, 0));
}

#[test]
fn a_lost_answer_makes_nothing_twice() {
    let (bed, id) = Bed::ready();
    bed.fake.set_hsms(&id, "DELETED");
    let cluster = format!("{} --name other", cluster());
    for operation in [
        "CreateCluster",
        "CreateHsm",
        "DescribeClusters",
        "CreateCustomKeyStore",
        "ConnectCustomKeyStore",
    ] {
        bed.fake.drop_next(operation, 1);
    }
    bed.made(&format!("{cluster} --hsms 2"));
    bed.made("cluster --hsms 2");
    assert_eq!((bed.fake.counts().clusters, bed.fake.counts().hsms), (2, 4));
    assert_eq!((bed.fake.calls("CreateCluster"), bed.fake.calls("CreateHsm")), (1, 4));
    assert_eq!(bed.made("key-store")["connection"], "CONNECTED");
    assert_eq!((bed.fake.counts().stores, bed.fake.calls("CreateCustomKeyStore")), (1, 1));
}

#[test]
fn what_was_not_made_is_made_at_the_second_try() {
    let (bed, _) = Bed::ready();
    let cluster = format!("{} --name other", cluster());
    for operation in ["CreateCluster", "CreateHsm"] {
        bed.fake.fault(Rule::new(Effect::Reset).on(operation).times(1));
    }
    bed.fake.fault(Rule::new(Effect::internal()).on("CreateCustomKeyStore").times(1));
    bed.made(&cluster);
    bed.made("key-store");
    let counts = bed.fake.counts();
    assert_eq!((counts.clusters, counts.hsms, counts.stores), (2, 3, 1));
    // Nor is tried for ever.
    let rule = bed.fake.fault(Rule::new(Effect::Reset).on("CreateHsm"));
    bed.fake.reset_counters();
    let said = bed.refused(&format!("{cluster} --hsms 2"));
    assert!(said.contains("it goes on where it stopped"), "{said}");
    assert_eq!((bed.fake.calls("CreateHsm"), bed.fake.counts().hsms), (2, 3));
    bed.fake.clear_fault(rule);
    let error = Effect::Error(Fault::server(500, "CloudHsmInternalFailureException"));
    bed.fake.fault(Rule::new(error).on("CreateHsm").times(2));
    let said = bed.refused(&format!("{cluster} --hsms 2"));
    let code = "CloudHsmInternalFailureException";
    assert!(said.contains(advice::about("CreateHsm", code, Class::Transient)), "{said}");
}

#[test]
fn an_interrupted_command_goes_on() {
    let bed = Bed::new();
    bed.fake.set_cluster_times(Duration::from_secs(1), Duration::from_secs(1));
    let killed_when = |arguments: &str, holds: &dyn Fn() -> bool| {
        let mut child = bed.command(arguments).stderr(Stdio::null()).spawn().unwrap();
        until("something to interrupt", holds);
        child.kill().unwrap();
        child.wait().unwrap();
    };
    killed_when(&cluster(), &|| bed.fake.counts().clusters == 1);
    killed_when(&cluster(), &|| bed.fake.counts().hsms == 1);
    bed.made(&cluster());
    assert_eq!((bed.fake.counts().clusters, bed.fake.counts().hsms), (1, 1));
    let (bed, _) = Bed::ready();
    bed.fake.set_connect_time(Duration::from_secs(1));
    let mut child = bed.command("key-store").stderr(Stdio::null()).spawn().unwrap();
    until("the connection", || bed.fake.calls_ok("ConnectCustomKeyStore") == 1);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(bed.made("key-store")["connection"], "CONNECTED");
    assert_eq!(bed.fake.calls("CreateCustomKeyStore"), 1);
    assert_eq!(bed.fake.calls("ConnectCustomKeyStore"), 1);
}

#[test]
fn a_key_store_is_made_and_connected_once() {
    let (bed, cluster) = Bed::ready();
    bed.fake.set_connect_time(Duration::from_millis(100));
    let made = bed.made("key-store");
    assert_eq!((&made["connection"], &made["name"]), (&json!("CONNECTED"), &json!("kmsfs")));
    assert_eq!((&made["cluster"], &made["error"]), (&json!(cluster), &Value::Null));
    // KMS has given kmsuser another password by now, and the certificate is of no more use.
    fs::remove_dir_all(bed.dir.path().join("kmsfs-kmsfs")).unwrap();
    assert_eq!(bed.made("key-store")["id"], made["id"]);
    let id = made["id"].as_str().unwrap();
    assert_eq!(bed.made(&format!("key-store --store {id}"))["id"], made["id"]);
    bed.disconnect(id);
    let said = text(&bed.output("key-store"));
    assert!(said.contains("CONNECTED") && said.contains("DISCONNECTING"), "{said}");
    assert_eq!(bed.fake.calls("CreateCustomKeyStore"), 1);
    assert!(
        bed.refused("key-store --store cks-0000000000000000").contains("there is no key store")
    );
    let other = bed.fake.create_cluster(2).0;
    let said = bed.refused(&format!("key-store --cluster {other}"));
    assert!(said.contains(&other) && said.contains(&cluster), "{said}");
}

#[test]
fn secrets_are_had_from_closed_files_only() {
    let (bed, _) = Bed::ready();
    let path = bed.write("kmsfs-kmsfs/kmsuser-password", PASSWORD);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(bed.refused("key-store").contains("chmod 600"));
    bed.write("kmsfs-kmsfs/kmsuser-password", "short");
    assert!(bed.refused("key-store").contains("7 to 32"));
    fs::remove_file(&path).unwrap();
    assert!(bed.refused("key-store").contains("kmsuser-password"));
    fs::remove_file(bed.dir.path().join("kmsfs-kmsfs/customerCA.crt")).unwrap();
    assert!(bed.refused("key-store").contains("--trust-anchor"));
    assert!(bed.refused("key-store --name nobody").contains("has no cluster yet"));
    assert_eq!(bed.fake.calls("CreateCustomKeyStore"), 0);
}

#[test]
fn refusals_of_kms_say_what_to_do() {
    let (bed, cluster) = Bed::ready();
    let said = |arguments: &str, code: &str| {
        let said = bed.refused(arguments);
        let advice = advice::about("CreateCustomKeyStore", code, Class::Misconfigured);
        assert!(said.contains(advice) && said.contains(code), "{said}");
    };
    bed.fake.set_cluster_state(&cluster, "INITIALIZED");
    bed.fake.set_cluster_state(&cluster, "UPDATE_IN_PROGRESS");
    said("key-store", "CloudHsmClusterNotActiveException");
    bed.fake.set_cluster_state(&cluster, "ACTIVE");
    bed.fake.set_hsms(&cluster, "DEGRADED");
    said("key-store", "CloudHsmClusterInvalidConfigurationException");
    bed.fake.set_hsms(&cluster, "ACTIVE");
    let other = bed.write("other.crt", &bed.fake.hardware_roots().0);
    let other = format!("key-store --trust-anchor {}", other.display());
    said(&other, "IncorrectTrustAnchorException");
    bed.fake.set_limits(0, 4, 6);
    said("key-store", "LimitExceededException");
    bed.fake.set_limits(10, 4, 6);
    for code in ["CustomKeyStoreNameInUseException", "CloudHsmClusterNotFoundException"] {
        bed.refuse_next("CreateCustomKeyStore", code);
        said("key-store", code);
    }
    assert_eq!(bed.fake.counts().stores, 0);
    bed.made("key-store");
    bed.write("kmsfs-kmsfs/kmsuser-password", PASSWORD);
    bed.refuse_next("CreateCustomKeyStore", "CloudHsmClusterInUseException");
    let other = bed.fake.create_cluster(2).0;
    said(&format!("key-store --store third --cluster {other}"), "CloudHsmClusterInUseException");
    // What KMS does not say: which store has the cluster.
    let store = bed.made("key-store")["id"].as_str().unwrap().to_owned();
    let said = bed.refused(&format!("key-store --store second --cluster {cluster}"));
    assert!(said.contains(&format!("--store {store}")), "{said}");
    assert_eq!(bed.fake.counts().stores, 1);
}

#[test]
fn a_denied_call_about_key_stores_names_what_iam_has_to_give() {
    for operation in ["DescribeCustomKeyStores", "CreateCustomKeyStore", "ConnectCustomKeyStore"] {
        let (bed, _) = Bed::ready();
        bed.fake.fault(Rule::new(Effect::Deny).on(operation));
        let said = bed.refused("key-store");
        assert!(
            said.contains(&format!("kms:{operation}")) && said.contains("no key policy"),
            "{said}"
        );
    }
}

#[test]
fn every_failure_to_connect_has_its_sentence() {
    let (bed, _) = Bed::ready();
    let id = bed.made("key-store")["id"].as_str().unwrap().to_owned();
    bed.disconnect(&id);
    assert_eq!(CONNECTION_ADVICE.len(), CONNECTION_ERRORS.len());
    for code in CONNECTION_ERRORS {
        bed.fake.fail_connections(&id, Some(code));
        bed.fake.reset_counters();
        let said = bed.refused("key-store");
        assert!(said.contains(&sentence("kmsfs", &id, code)), "{said}");
        // Without --mend it stays as it is, for people to look at.
        assert!(bed.refused("key-store").contains(code));
        assert_eq!(bed.fake.calls("ConnectCustomKeyStore"), 1);
        assert_eq!(bed.fake.calls("DisconnectCustomKeyStore"), 0);
        bed.disconnect(&id);
    }
}

#[test]
fn a_wrong_password_is_mended() {
    let (bed, cluster) = Bed::ready();
    bed.write("kmsfs-kmsfs/kmsuser-password", "WrongPassword7");
    assert!(bed.refused("key-store").contains("INVALID_CREDENTIALS"));
    // Nobody said that the file holds another one than KMS has.
    assert!(bed.refused("key-store --mend").contains("--new-password"));
    assert_eq!(bed.fake.calls("UpdateCustomKeyStore"), 0);
    // Told once, and no better for it.
    assert!(bed.refused("key-store --new-password").contains("INVALID_CREDENTIALS"));
    assert_eq!(bed.fake.calls("UpdateCustomKeyStore"), 1);
    // Without the file nothing is touched.
    let disconnects = bed.fake.calls("DisconnectCustomKeyStore");
    let said = bed.refused("key-store --new-password --kmsuser-password-file nowhere");
    assert!(said.contains("nowhere"), "{said}");
    assert_eq!(bed.fake.calls("DisconnectCustomKeyStore"), disconnects);
    bed.write("kmsfs-kmsfs/kmsuser-password", PASSWORD);
    bed.fake.drop_next("DisconnectCustomKeyStore", 1);
    bed.fake.drop_next("UpdateCustomKeyStore", 1);
    assert_eq!(bed.made("key-store --new-password")["connection"], "CONNECTED");
    // What is well is left alone, and needs no password.
    bed.fake.reset_counters();
    bed.made("key-store --mend --new-password");
    assert_eq!(bed.fake.calls("DisconnectCustomKeyStore"), 0);
    let id = bed.made("key-store")["id"].as_str().unwrap().to_owned();
    bed.disconnect(&id);
    bed.fake.lock_hsm_user(&cluster, "kmsuser").unwrap();
    assert!(bed.refused("key-store").contains("USER_LOCKED_OUT"));
    bed.fake.set_hsm_user(&cluster, "kmsuser", PASSWORD).unwrap();
    // What KMS changed at its first connection is not taken for the new one.
    let said = bed.refused("key-store --new-password");
    assert!(said.contains("kmsuser-password.spent is spent"), "{said}");
    bed.write("kmsfs-kmsfs/kmsuser-password", PASSWORD);
    assert_eq!(bed.made("key-store --new-password")["connection"], "CONNECTED");
}

/// A connection that somebody's session was in the way of needs no password: that of the file would be
/// one that KMS changed long ago.
#[test]
fn a_session_of_kmsuser_costs_no_password() {
    let (bed, cluster) = Bed::ready();
    let id = bed.made("key-store")["id"].as_str().unwrap().to_owned();
    bed.write("kmsfs-kmsfs/kmsuser-password", PASSWORD);
    bed.disconnect(&id);
    bed.fake.fail_connections(&id, Some("USER_LOGGED_IN"));
    assert!(bed.refused("key-store --mend").contains("`logout`"));
    bed.fake.fail_connections(&id, None);
    assert_eq!(bed.made("key-store --mend")["connection"], "CONNECTED");
    assert_eq!(bed.fake.calls("UpdateCustomKeyStore"), 0);
    // Somebody set a password in order to log in, and has said so while nothing was connected.
    bed.disconnect(&id);
    until("the end of it", || !text(&bed.output("plan")).contains("DISCONNECTING"));
    bed.fake.set_hsm_user(&cluster, "kmsuser", PASSWORD).unwrap();
    bed.write("kmsfs-kmsfs/kmsuser-password", PASSWORD);
    let calls = bed.fake.calls("ConnectCustomKeyStore");
    assert_eq!(bed.made("key-store --new-password")["connection"], "CONNECTED");
    assert_eq!(bed.fake.calls("ConnectCustomKeyStore"), calls + 1);
}

#[test]
fn a_password_is_spent_with_the_first_connection() {
    let (bed, _) = Bed::ready();
    let [own, spent] = ["kmsuser-password", "kmsuser-password.spent"]
        .map(|name| bed.dir.path().join("kmsfs-kmsfs").join(name));
    bed.fake.set_connect_time(Duration::from_secs(3600));
    let mut command = bed.command("key-store");
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("the connection", || bed.fake.calls_ok("ConnectCustomKeyStore") == 1);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(own.exists() && !spent.exists());
    // The one that sees it connected says so, whoever asked for it.
    bed.fake.set_connect_time(Duration::ZERO);
    let store = bed.fake.client().call("DescribeCustomKeyStores", &json!({})).unwrap();
    let id = &store["CustomKeyStores"][0]["CustomKeyStoreId"];
    bed.fake.control(&json!({ "store": { "id": id, "state": "CONNECTED" } })).unwrap();
    let said = text(&bed.output("key-store"));
    assert!(said.contains("kmsuser-password.spent"), "{said}");
    assert!(!own.exists() && spent.exists());
    assert_eq!(bed.made("key-store")["connection"], "CONNECTED");
    // Another store needs another one, and the sentence says why.
    let other = bed.fake.create_cluster(2).0;
    let said = bed.refused(&format!("key-store --store other --cluster {other}"));
    assert!(said.contains("kmsuser-password.spent is spent"), "{said}");
}

#[test]
fn a_store_that_falls_back_at_once_is_mended_too() {
    let (bed, _) = Bed::ready();
    let id = bed.made("key-store")["id"].as_str().unwrap().to_owned();
    bed.disconnect(&id);
    bed.fake.set_connect_time(Duration::from_secs(3600));
    let falls_back = |arguments: &str, error: Value| {
        let calls = bed.fake.calls_ok("ConnectCustomKeyStore");
        let mut command = bed.command(arguments);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        until("a try", || bed.fake.calls_ok("ConnectCustomKeyStore") > calls);
        // The password is wrong by now: KMS has given kmsuser another one.
        let store = json!({ "id": id, "state": "DISCONNECTED", "error": error });
        bed.fake.set_connect_time(Duration::ZERO);
        bed.fake.control(&json!({ "store": store })).unwrap();
        let output = child.wait_with_output().unwrap();
        bed.fake.set_connect_time(Duration::from_secs(3600));
        text(&output)
    };
    let said = falls_back("key-store", json!("INVALID_CREDENTIALS"));
    assert!(said.contains(&sentence("kmsfs", &id, "INVALID_CREDENTIALS")), "{said}");
    let said = falls_back("key-store", Value::Null);
    assert!(said.contains("KMS does not say why"), "{said}");
    assert_eq!(bed.fake.calls("UpdateCustomKeyStore"), 0);
    bed.write("kmsfs-kmsfs/kmsuser-password", PASSWORD);
    let said = falls_back("key-store --new-password", json!("INVALID_CREDENTIALS"));
    assert_eq!(bed.fake.calls_ok("UpdateCustomKeyStore"), 1, "{said}");
}

#[test]
fn a_passing_failure_is_mended_by_patience() {
    let (bed, cluster) = Bed::ready();
    let id = bed.made("key-store")["id"].as_str().unwrap().to_owned();
    bed.disconnect(&id);
    bed.fake.fail_connections(&id, Some("NETWORK_ERRORS"));
    assert!(bed.refused("key-store --mend").contains("NETWORK_ERRORS"));
    let tries = bed.fake.calls_ok("ConnectCustomKeyStore");
    assert_eq!(tries, 1 + 4);
    let mut child = bed
        .command("key-store --mend --json")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("a try", || bed.fake.calls_ok("ConnectCustomKeyStore") > tries);
    bed.fake.fail_connections(&id, None);
    assert!(child.wait().unwrap().success());
    // Where somebody else has to do something, one more connection shows whether it was done.
    bed.disconnect(&id);
    bed.fake.fail_connections(&id, Some("SUBNET_NOT_FOUND"));
    assert!(bed.refused("key-store").contains("SUBNET_NOT_FOUND"));
    let told = bed.refused("key-store --mend");
    assert!(told.contains("SUBNET_NOT_FOUND"), "{told}");
    bed.fake.fail_connections(&id, None);
    assert_eq!(bed.made("key-store --mend")["connection"], "CONNECTED");
    assert_eq!(bed.fake.calls("UpdateCustomKeyStore"), 0);
    // What it told to do can be done: a store that failed takes no other cluster before it is disconnected.
    bed.disconnect(&id);
    bed.fake.fail_connections(&id, Some("SUBNET_NOT_FOUND"));
    bed.refused("key-store");
    let other = json!({ "CustomKeyStoreId": id, "CloudHsmClusterId": cluster });
    assert!(bed.client().call("UpdateCustomKeyStore", &other).is_err());
    let words = format!("disconnect-custom-key-store --custom-key-store-id {id}");
    assert!(told.contains(&words), "{told}");
    bed.disconnect(&id);
    bed.client().call("UpdateCustomKeyStore", &other).unwrap();
    bed.fake.fail_connections(&id, None);
    assert_eq!(bed.made("key-store --mend")["connection"], "CONNECTED");
}

#[test]
fn a_key_store_outside_of_aws() {
    let bed = Bed::new();
    let secret = "s".repeat(43);
    let pair = json!({ "AccessKeyId": "A".repeat(20), "RawSecretAccessKey": secret });
    bed.write("credential", &pair.to_string());
    let common = "key-store --xks-endpoint https://xks.example.com --xks-path /kms/xks/v1 \
                  --xks-credential-file credential";
    for code in [
        "XksProxyUriInUseException",
        "XksProxyUriEndpointInUseException",
        "XksProxyUriUnreachableException",
        "XksProxyIncorrectAuthenticationCredentialException",
        "XksProxyVpcEndpointServiceInUseException",
        "XksProxyVpcEndpointServiceNotFoundException",
        "XksProxyVpcEndpointServiceInvalidConfigurationException",
        "XksProxyInvalidResponseException",
        "XksProxyInvalidConfigurationException",
    ] {
        bed.refuse_next("CreateCustomKeyStore", code);
        let said = bed.refused(common);
        let advice = advice::about("CreateCustomKeyStore", code, Class::Misconfigured);
        assert!(said.contains(advice) && !said.contains(&secret), "{said}");
    }
    let said = bed.refused(&format!("{common} --xks-connectivity VPC_ENDPOINT_SERVICE"));
    assert!(said.contains("--xks-vpc-service NAME"), "{said}");
    let public = format!("{common} --xks-connectivity PUBLIC_ENDPOINT");
    assert!(bed.refused(&format!("{public} --xks-vpc-service s")).contains("leave out"));
    let made = bed.made(&public.replace("--xks-endpoint", "--xks-proxy-uri"));
    assert_eq!((&made["kind"], &made["cluster"]), (&json!("EXTERNAL_KEY_STORE"), &Value::Null));
    let id = made["id"].as_str().unwrap();
    bed.disconnect(id);
    bed.fake.fail_connections(id, Some("XKS_PROXY_ACCESS_DENIED"));
    assert!(bed.refused("key-store").contains("XKS_PROXY_ACCESS_DENIED"));
    assert!(bed.refused("key-store --mend").contains("--xks-endpoint"));
    bed.fake.fail_connections(id, None);
    assert_eq!(bed.made(&format!("{common} --mend"))["connection"], "CONNECTED");
    assert_eq!(bed.fake.calls_ok("UpdateCustomKeyStore"), 1);
    bed.write("credential", &format!("{{\"AccessKeyId\": \"{secret}\""));
    let said = bed.refused(&format!("{common} --store other"));
    assert!(said.contains("credential file") && !said.contains(&secret), "{said}");
}
