//! Everything in one command: in one go, with people between, interrupted anywhere.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::aws::{Effect, Rule, pki};
use super::ground::{
    Ground, answered, refused, said, surroundings_of, text, until, without_terminal,
};

const ADMIN: &str = "arn:aws:iam::111122223333:role/keys";
const HOST: &str = "arn:aws:iam::111122223333:role/host";
const SUBNETS: [&str; 4] =
    ["--subnet", "subnet-0a000000000000001", "--subnet", "subnet-0a000000000000002"];

/// `provision all` with everything it needs, but who runs the tools.
pub fn all(ground: &Ground, arguments: &[&str]) -> Command {
    ground.write("passphrase", "correct horse\n");
    let mut command = ground.provision(&["all", "--ca-passphrase-file", "passphrase"]);
    command.args(["--admin", ADMIN, "--user", HOST, "--settling", "3s"]).args(arguments);
    command
}

/// The same on a host with the tools, without questions.
pub fn all_here(ground: &Ground) -> Command {
    let tools = ground.path("tools");
    if !tools.exists() {
        fs::create_dir(&tools).unwrap();
        ground.fake.install_cli(&tools);
    }
    let tool = |name: &str| tools.join(name).to_str().unwrap().to_owned();
    let (cli, configure) = (tool("cloudhsm-cli"), tool("configure-cli"));
    let place = ["--exec", "local", "--cloudhsm-cli", &cli, "--configure-cli", &configure];
    all(ground, &[&SUBNETS[..], &place, &["--yes"]].concat())
}

/// Step and outcome of each.
fn outcomes(report: &Value) -> Vec<(String, String)> {
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    let steps = report["steps"].as_array().unwrap().iter();
    steps.map(|step| (word(&step["step"]), word(&step["outcome"]))).collect()
}

/// Clusters, HSMs, key stores, keys.
fn counts(ground: &Ground) -> (usize, usize, usize, usize) {
    let counts = ground.fake.counts();
    (counts.clusters, counts.hsms, counts.stores, counts.keys)
}

const STEPS: [&str; 7] =
    ["cluster", "first-hsm", "certificate", "activation", "second-hsm", "key-store", "key"];

fn every(outcome: &str) -> Vec<(String, String)> {
    STEPS.map(|step| (step.to_owned(), outcome.to_owned())).into()
}

#[test]
fn everything_in_one_go() {
    let ground = Ground::new();
    let output = all_here(&ground).arg("--json").output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((outcomes(&report), &report["complete"]), (every("made"), &json!(true)));
    assert_eq!(report["key"]["canary"], "passed");
    assert_eq!(counts(&ground), (1, 2, 1, 1));
    let review = String::from_utf8(output.stderr).unwrap();
    for words in ["a CloudHSM cluster", "VolumeUse", HOST, "$3.20 an hour, about $2337 a month"] {
        assert!(review.contains(words), "{words}: {review}");
    }
    let shown = review.find("$2337 a month").unwrap();
    assert!(shown < review.find("is being made").unwrap(), "{review}");
    // Again: nothing is asked, nothing is made.
    let mut again = ground.provision(&["all", "--admin", ADMIN, "--user", HOST]);
    let report = answered(&mut again);
    assert_eq!((outcomes(&report), &report["complete"]), (every("there"), &json!(true)));
    assert_eq!(counts(&ground), (1, 2, 1, 1));
    let told = said(&mut ground.provision(&["all", "--admin", ADMIN, "--user", HOST]));
    assert!(told.contains("key-store            there: kmsfs (cks-"), "{told}");
    assert!(told.contains("Next: kmsfsctl init DIR --key aws-kms:arn:"), "{told}");
}

/// KMS gives `kmsuser` a password of its own as soon as it connects.
#[test]
fn the_password_that_kms_has_changed_is_spent() {
    let ground = Ground::new();
    let report = answered(&mut all_here(&ground));
    assert_eq!(report["complete"], true);
    let own = ground.path("kmsfs-kmsfs/kmsuser-password");
    assert!(!own.exists() && ground.path("kmsfs-kmsfs/kmsuser-password.spent").exists());
    assert_eq!(outcomes(&answered(&mut all_here(&ground))), every("there"));
    let tool = |name: &str| ground.path("tools").join(name).to_str().unwrap().to_owned();
    let (cli, configure) = (tool("cloudhsm-cli"), tool("configure-cli"));
    let place = ["--exec", "local", "--cloudhsm-cli", &cli, "--configure-cli", &configure];
    let activate = [&["activate"][..], &place].concat();
    // The user KMS is logged in as cannot be missing, and is not replaced.
    let cluster = ground.fake.clusters()[0]["ClusterId"].as_str().unwrap().to_owned();
    ground.fake.delete_hsm_user(&cluster, "kmsuser").unwrap();
    let error = refused(&mut ground.provision(&activate));
    assert!(error.contains("is connected, so KMS is logged in as kmsuser"), "{error}");
    assert!(!own.exists());
    // In a store that does not connect it is, and KMS is told once.
    let store = ground.fake.client().call("DescribeCustomKeyStores", &json!({})).unwrap();
    let id = &store["CustomKeyStores"][0]["CustomKeyStoreId"];
    let state = json!({ "id": id, "state": "FAILED", "error": "USER_NOT_FOUND" });
    ground.fake.control(&json!({ "store": state })).unwrap();
    answered(&mut ground.provision(&activate));
    assert!(own.exists());
    assert!(refused(&mut all_here(&ground)).contains("--new-password"));
    let report = answered(all_here(&ground).arg("--new-password"));
    assert_eq!(report["complete"], true);
    assert!(!own.exists());
}

#[test]
fn nothing_is_made_that_was_not_agreed_to() {
    let ground = Ground::new();
    let nothing = (0, 0, 0, 0);
    let error = refused(&mut without_terminal(&all(&ground, &SUBNETS)));
    assert!(error.contains("say --yes") && error.contains("VolumeUse"), "{error}");
    let error = refused(&mut all(&ground, &["--yes"]));
    assert!(error.contains("at least 2 private subnets"), "{error}");
    let error = refused(all_here(&ground).args(["--user", "*"]));
    assert!(error.contains("the policy has a fault"), "{error}");
    let error = refused(all_here(&ground).args(["--aws-hardware-root", "missing.crt"]));
    assert!(error.contains("missing.crt does not exist"), "{error}");
    let error = refused(all_here(&ground).args(["--key-store", "cks-0000"]));
    assert!(error.contains("there is no key store cks-0000"), "{error}");
    // What would stop it later, when HSMs are paid for.
    let error = refused(all_here(&ground).args(["--name", &"n".repeat(51)]));
    assert!(error.contains("use a shorter --name"), "{error}");
    let mut unasked = ground.provision(&["all", "--yes", "--admin", ADMIN, "--user", HOST]);
    let error = refused(&mut without_terminal(unasked.args(SUBNETS)));
    assert!(error.contains("there is no terminal to ask for the passphrase"), "{error}");
    let error = refused(unasked.args(["--ca-passphrase-file", "missing"]));
    assert!(error.contains("missing"), "{error}");
    let gone = ["--yes", "--exec", "local", "--cloudhsm-cli", "/nonexistent/cli"];
    let error = refused(&mut all(&ground, &[&SUBNETS[..], &gone].concat()));
    assert!(error.contains("/nonexistent/cli is not here"), "{error}");
    DirBuilder::new().mode(0o700).create(ground.path("kmsfs-kmsfs")).unwrap();
    let password = ground.write("kmsfs-kmsfs/kmsuser-password", "s3cret!x");
    fs::set_permissions(&password, fs::Permissions::from_mode(0o600)).unwrap();
    let error = refused(&mut all_here(&ground));
    assert!(error.contains("kmsuser-password") && error.contains("letters and digits"), "{error}");
    fs::remove_file(password).unwrap();
    assert_eq!(counts(&ground), nothing);
}

/// Answers the question of a command on a terminal; how it ended, and what was shown there.
fn on_terminal(command: &Command, answer: &str) -> (bool, String) {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let quoted = |word: &OsStr| format!("'{}'", word.to_str().unwrap().replace('\'', "'\\''"));
    let line = words.map(quoted).collect::<Vec<_>>().join(" ");
    let mut script = Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    surroundings_of(command, &mut script);
    let mut child = script.spawn().unwrap();
    // Held open: without it the terminal would end.
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(answer.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.success(), text(&output))
}

#[test]
fn questions_are_asked_on_the_terminal() {
    let ground = Ground::new();
    let key = ["--admin", ADMIN, "--user", HOST, "--settling", "3s"];
    let mut command = ground.provision(&["all", "--origin", "aws-kms"]);
    command.args(key);
    for no in ["n\n", "\n", "yesterday\n"] {
        let (agreed, said) = on_terminal(&command, no);
        assert!(!agreed && said.contains("Make what is missing? [y/N]"), "{said}");
        assert!(said.contains("not agreed; nothing was made"), "{said}");
        assert_eq!(ground.fake.calls_ok("CreateKey"), 0);
    }
    let (agreed, said) = on_terminal(&command, "y\n");
    assert!(agreed && ground.fake.calls_ok("CreateKey") == 1, "{said}");
}

#[test]
fn keys_may_stay_outside_of_aws() {
    let ground = Ground::new();
    let pair = json!({ "AccessKeyId": "A".repeat(20), "RawSecretAccessKey": "s".repeat(43) });
    let credential = ground.write("credential", &pair.to_string());
    fs::set_permissions(credential, fs::Permissions::from_mode(0o600)).unwrap();
    let proxy = "--xks-endpoint https://xks.example.com --xks-path /kms/xks/v1 \
                 --xks-credential-file credential --xks-connectivity PUBLIC_ENDPOINT";
    let run = || {
        let mut command = ground.provision(&["all", "--origin", "external-key-store", "--yes"]);
        command.args(["--admin", ADMIN, "--user", HOST, "--settling", "3s"]);
        command.args(proxy.split_whitespace()).args(["--xks-key-id", "key-1"]);
        command
    };
    let report = answered(&mut run());
    assert_eq!(report["complete"], true, "{report:#}");
    assert_eq!(counts(&ground).0, 0, "no cluster");
    let key = report["key"]["key"].as_str().unwrap_or_default().to_owned();
    let shown =
        ground.fake.client().call("DescribeKey", &json!({ "KeyId": "alias/kmsfs" })).unwrap();
    let data = &shown["KeyMetadata"];
    assert_eq!((&data["Arn"], &data["Origin"]), (&json!(key), &json!("EXTERNAL_KEY_STORE")));
    // Again: found, not made.
    let made = ["CreateCustomKeyStore", "CreateKey"].map(|call| ground.fake.calls_ok(call));
    let report = answered(&mut run());
    assert_eq!(report["complete"], true, "{report:#}");
    assert_eq!(["CreateCustomKeyStore", "CreateKey"].map(|call| ground.fake.calls_ok(call)), made);
}

#[test]
fn people_sign_and_activate() {
    let ground = Ground::new();
    let begin = [&SUBNETS[..], &["--yes", "--csr-out", "request.csr"]].concat();
    for _ in 0..2 {
        let output = all(&ground, &begin).arg("--json").output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(outcomes(&report)[2], ("certificate".into(), "waiting".into()));
        let why = report["stopped"].as_str().unwrap();
        assert!(why.contains("--signed-cert FILE and --trust-anchor FILE"), "{why}");
    }
    assert_eq!(counts(&ground), (1, 1, 0, 0));
    let (anchor, signed) = pki::sign_as_customer(&ground.read("request.csr"));
    let (anchor, signed) = (ground.write("root.crt", &anchor), ground.write("it.crt", &signed));
    let go_on = ["--yes", "--signed-cert", &signed, "--trust-anchor", &anchor];
    let error = refused(&mut all(&ground, &go_on));
    for words in [
        "cloudhsm-cli cluster activate",
        "kmsuser's password to kmsfs-kmsfs/kmsuser-password (mode 0600)",
        "run the same command again to go on",
    ] {
        assert!(error.contains(words), "{words}: {error}");
    }
    assert_eq!(counts(&ground), (1, 1, 0, 0));
    let cluster = ground.fake.clusters()[0]["ClusterId"].as_str().unwrap().to_owned();
    ground.fake.activate(&cluster, "administrator").unwrap();
    // Active, but nobody has made kmsuser.
    let error = refused(&mut all(&ground, &go_on));
    assert!(error.contains("user create --username kmsuser"), "{error}");
    ground.fake.set_hsm_user(&cluster, "kmsuser", "KmsUserPassword7").unwrap();
    ground.write("kmsfs-kmsfs/kmsuser-password", "KmsUserPassword7\n");
    let private = fs::Permissions::from_mode(0o600);
    fs::set_permissions(ground.path("kmsfs-kmsfs/kmsuser-password"), private).unwrap();
    let report = answered(&mut all(&ground, &go_on));
    assert_eq!(report["complete"], true);
    assert_eq!(counts(&ground), (1, 2, 1, 1));
    // What the first command said about the request does not matter any more.
    assert_eq!(outcomes(&answered(&mut all(&ground, &begin))), every("there"));
}

#[test]
fn a_key_of_kms_itself_is_the_last_step_only() {
    let ground = Ground::new();
    let mut command = all(&ground, &["--origin", "aws-kms", "--yes", "--rotation-days", "365"]);
    let report = answered(&mut command);
    assert_eq!(outcomes(&report), [("key".to_owned(), "made".to_owned())]);
    assert_eq!(counts(&ground), (0, 0, 0, 1));
    assert!(!ground.path("kmsfs-kmsfs").exists());
    let again = answered(&mut all(&ground, &["--origin", "aws-kms"]));
    assert_eq!(again["key"]["key"], report["key"]["key"]);
    assert_eq!(counts(&ground), (0, 0, 0, 1));
}

/// Calls that make or change something, in the order of the steps.
const CALLS: [&str; 8] = [
    "CreateCluster",
    "CreateHsm",
    "InitializeCluster",
    "CreateHsm",
    "CreateCustomKeyStore",
    "ConnectCustomKeyStore",
    "CreateKey",
    "CreateAlias",
];

#[test]
fn lost_answers_make_nothing_twice() {
    let ground = Ground::new();
    for call in CALLS {
        // The second HSM's answer, too.
        ground.fake.drop_next(call, if call == "CreateHsm" { 2 } else { 1 });
    }
    let report = answered(&mut all_here(&ground));
    assert_eq!(report["complete"], true);
    assert_eq!(counts(&ground), (1, 2, 1, 1));
    for call in ["CreateCluster", "CreateCustomKeyStore", "CreateKey"] {
        assert_eq!(ground.fake.calls(call), 1, "{call}");
    }
}

/// Starts it where nobody reads what it says.
fn spawn(ground: &Ground) -> std::process::Child {
    all_here(ground).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn killed_after_any_call_it_goes_on() {
    let ground = Ground::new();
    for call in CALLS {
        let before = ground.fake.calls_ok(call);
        let mut running = spawn(&ground);
        // Between two looks the one before may have got further than its call.
        until(call, || {
            running.try_wait().unwrap().is_some() || ground.fake.calls_ok(call) > before
        });
        let _ = running.kill();
        running.wait().unwrap();
    }
    let report = answered(&mut all_here(&ground));
    assert_eq!(report["complete"], true);
    assert_eq!(counts(&ground), (1, 2, 1, 1));
    assert_eq!(ground.fake.calls_ok("CreateKey"), 1);
    // Whatever the last key was made for, the answer names that volume.
    let key = report["key"]["key"].as_str().unwrap();
    let tags = ground.fake.client().call("ListResourceTags", &json!({ "KeyId": key })).unwrap();
    let tags = tags["Tags"].as_array().unwrap();
    assert!(tags.iter().any(|tag| tag["TagValue"] == report["key"]["volume_id"]), "{tags:?}");
}

#[test]
fn killed_at_any_time_it_goes_on() {
    let ground = Ground::new();
    ground.fake.set_cluster_times(Duration::from_millis(60), Duration::from_millis(60));
    ground.fake.set_connect_time(Duration::from_millis(60));
    ground.fake.fault(Rule::new(Effect::Delay(Duration::from_millis(15))));
    for round in 0..60_u64 {
        let [random] = kmsfs::crypto::random_array::<1>();
        let mut running = spawn(&ground);
        // Later and later, lest it be killed before it comes to anything new.
        std::thread::sleep(Duration::from_millis(u64::from(random) * (round + 4) / 8));
        let ended = running.try_wait().unwrap();
        if let Some(status) = ended {
            assert!(
                status.success(),
                "round {round}: {}",
                text(&all_here(&ground).output().unwrap())
            );
            break;
        }
        running.kill().unwrap();
        running.wait().unwrap();
    }
    let report = answered(&mut all_here(&ground));
    assert_eq!(report["complete"], true);
    assert_eq!(counts(&ground), (1, 2, 1, 1));
}
