//! Keys: made once, with their policy, tags and alias, and tried.

use std::process::{Command, Output};
use std::time::Duration;

use kmsfs::crypto::random_array;
use kmsfs::format::VolumeId;
use kmsfs::provision::account::{Account, Pace, Places};
use kmsfs::provision::canary::{Canary, try_key};
use kmsfs::provision::intent::Intent;
use kmsfs::provision::key::{
    self, Hidden, KeyWish, Origin as Place, Pointed, Repoint, TAG_REQUEST, copy_wish,
    find_or_create, point_alias,
};
use kmsfs::provision::key_store::{self, Sought};
use kmsfs::provision::{Silent, TAG_VOLUME};
use serde_json::{Value, json};

use super::aws::{
    ACCESS_KEY, Connection, Effect, FakeAws, Fault, KeyState, Origin, Principal, Rule, SECRET_KEY,
};
use super::ground::until;

pub const ID: &str = "00112233445566778899aabbccddeeff";
const ADMIN: &str = "arn:aws:iam::111122223333:role/keys";
const HOST: &str = "arn:aws:iam::111122223333:role/host";

/// An account with a key store.
pub struct Bed {
    pub fake: FakeAws,
    store: String,
    /// What a run leaves for the next one.
    pub state: tempfile::TempDir,
}

impl Bed {
    pub fn new() -> Bed {
        let fake = FakeAws::start();
        let store = fake.create_store("kmsfs", Origin::CloudHsm);
        fake.set_strict_context(true);
        Bed { fake, store, state: tempfile::TempDir::with_prefix("kmsfs-state-").unwrap() }
    }

    /// A program with the fake's credentials only, that knows where the fake is.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("AWS_") {
                command.env_remove(name);
            }
        }
        command
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
            .env("AWS_REGION", self.fake.region())
            .env("AWS_CONFIG_FILE", "/nonexistent/config")
            .env("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent/credentials")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("XDG_STATE_HOME", self.state.path());
        command
    }

    /// `provision key` for a volume, with an administrator and a user.
    pub fn key(&self, arguments: &[&str]) -> Command {
        self.anonymous_key(&[&["--volume-id", ID], arguments].concat())
    }

    pub fn anonymous_key(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(env!("CARGO_BIN_EXE_kmsfsctl"));
        let here = self.fake.endpoint();
        command
            .args(["provision", "key", "--json", "--yes"])
            .args(["--kms-endpoint", &here, "--sts-endpoint", &here])
            .args(["--admin", ADMIN, "--user", HOST])
            .args(arguments);
        if !arguments.contains(&"--settling") {
            command.args(["--settling", "2s"]);
        }
        command
    }

    /// The keys there are, as the fake has them.
    pub fn keys(&self) -> Vec<Value> {
        let keys = self.fake.client().call("ListKeys", &json!({})).unwrap();
        keys["Keys"].as_array().unwrap().clone()
    }

    pub fn ask(&self, operation: &str, key: &str) -> Value {
        self.fake.client().call(operation, &json!({ "KeyId": key })).unwrap()
    }

    fn tags(&self, key: &str) -> Vec<(String, String)> {
        let tags = self.ask("ListResourceTags", key)["Tags"].as_array().unwrap().clone();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        tags.iter().map(|tag| (text(&tag["TagKey"]), text(&tag["TagValue"]))).collect()
    }

    pub fn target(&self, alias: &str) -> String {
        self.ask("DescribeKey", alias)["KeyMetadata"]["Arn"].as_str().unwrap().to_owned()
    }

    /// What runs that were cut off left: the text of each mark.
    pub fn marks(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.state.path().join("kmsfs")).into_iter().flatten();
        entries.map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap()).collect()
    }
}

pub fn text(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    format!("{} {out}{err}", output.status)
}

/// What a command that succeeds prints.
#[track_caller]
pub fn made(command: &mut Command) -> Value {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What a command that fails says.
#[track_caller]
pub fn refused(command: &mut Command, code: i32, words: &str) -> String {
    let output = command.output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(words), "{words}: {said}");
    said
}

#[test]
fn a_key_has_its_policy_tags_and_alias_and_works() {
    let bed = Bed::new();
    let output = bed.key(&["--tag", "team=files", "--description", "for me"]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let facts: Value = serde_json::from_slice(&output.stdout).unwrap();
    let arn = facts["key"].as_str().unwrap();
    assert_eq!((&facts["created"], &facts["canary"]), (&json!(true), &json!("passed")));
    assert_eq!(facts["volume_id"], ID);
    assert_eq!(facts["next"], format!("kmsfsctl init DIR --key aws-kms:{arn} --volume-id {ID}"));
    let data = &bed.ask("DescribeKey", arn)["KeyMetadata"];
    assert_eq!(data["Origin"], "AWS_CLOUDHSM");
    assert_eq!(data["CustomKeyStoreId"], bed.store);
    assert_eq!(data["Description"], "for me");
    assert_eq!(bed.target("alias/kmsfs"), arn);
    let mark = format!("{ID}.1");
    let wanted = [
        ("kmsfs:alias", "alias/kmsfs"),
        ("kmsfs:deployment", "kmsfs"),
        ("kmsfs:request", &mark),
        ("kmsfs:volume", ID),
        ("team", "files"),
    ];
    let wanted = wanted.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(bed.tags(arn), wanted);
    let policy = bed.ask("GetKeyPolicy", arn);
    let policy: Value = serde_json::from_str(policy["Policy"].as_str().unwrap()).unwrap();
    let used = &policy["Statement"][2];
    assert_eq!((&used["Sid"], &used["Principal"]["AWS"]), (&json!("VolumeUse"), &json!(HOST)));
    let condition = &used["Condition"]["StringEquals"]["kms:EncryptionContext:kmsfs:volume"];
    assert_eq!(condition, ID);
    // What was reviewed before is what was made.
    let review = String::from_utf8(output.stderr).unwrap();
    for words in ["to be made", "alias/kmsfs", "EnableIamPolicies", "$1.00 a month", "$2336.00"] {
        assert!(review.contains(words), "{words}: {review}");
    }
    assert_eq!(bed.fake.bad_contexts(), 0);
    assert_eq!(bed.fake.calls_with("Decrypt", "InvalidCiphertextException"), 1);
}

/// What the strict policy allows, and no more, is enough: a user makes, a reader reads.
#[test]
fn the_rights_of_the_policy_make_and_read_a_volume() {
    let bed = Bed::new();
    let facts = made(&mut bed.key(&[]));
    let key = format!("aws-kms:{}", facts["key"].as_str().unwrap());
    let bound = |name: &str, actions: &[&str]| {
        let who = Principal::new(&format!("AKIA{name}"), SECRET_KEY, name).allow(actions);
        bed.fake.add_principal(who.only_with("kmsfs:volume", ID));
    };
    bound("host", &["GenerateDataKey", "Decrypt"]);
    bound("reader", &["Decrypt"]);
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("volume");
    let run = |who: &str, arguments: &[&str]| {
        let mut command = bed.command(env!("CARGO_BIN_EXE_kmsfsctl"));
        command.env("AWS_ACCESS_KEY_ID", format!("AKIA{who}")).arg(arguments[0]).arg(&dir);
        command.args(&arguments[1..]).args(["--kms-endpoint", &bed.fake.endpoint()]);
        command.output().unwrap()
    };
    for (who, arguments) in [
        ("host", &["init", "--key", &key, "--volume-id", ID][..]),
        ("reader", &["verify", "--expect-volume", ID]),
    ] {
        let output = run(who, arguments);
        assert!(output.status.success(), "{}", text(&output));
    }
}

#[test]
fn running_it_again_finds_the_key() {
    let bed = Bed::new();
    let first = made(&mut bed.anonymous_key(&[]));
    // The volume id that was chosen is in the tags of what the alias names.
    let second = made(&mut bed.anonymous_key(&[]));
    assert_eq!(second["created"], false);
    assert_eq!((&second["key"], &second["volume_id"]), (&first["key"], &first["volume_id"]));
    assert_eq!(second["policy_differs"], false);
    let id = first["volume_id"].as_str().unwrap();
    // Without the alias by its tags, among others.
    for _ in 0..5 {
        bed.fake.create_key(Origin::Kms);
    }
    bed.fake.client().call("DeleteAlias", &json!({ "AliasName": "alias/kmsfs" })).unwrap();
    let third = made(&mut bed.anonymous_key(&["--volume-id", id, "--no-delete", "--keep-policy"]));
    assert_eq!((&third["key"], &third["created"]), (&first["key"], &json!(false)));
    assert_eq!(third["policy_differs"], true);
    assert_eq!(bed.target("alias/kmsfs"), first["key"].as_str().unwrap());
    assert_eq!(bed.fake.calls("CreateKey"), 1);
    // A key on its way out does not count.
    bed.fake.set_key_state(first["key"].as_str().unwrap(), KeyState::PendingDeletion);
    let fourth = made(&mut bed.anonymous_key(&["--volume-id", id, "--alias", "other"]));
    assert_eq!(fourth["created"], true);
}

#[test]
fn a_lost_answer_leaves_one_key() {
    let bed = Bed::new();
    bed.fake.drop_next("CreateKey", 1);
    let facts = made(&mut bed.key(&[]));
    assert_eq!((bed.keys().len(), bed.fake.calls("CreateKey")), (1, 1));
    assert_eq!(facts["key"], bed.keys()[0]["KeyArn"]);
    assert_eq!(facts["created"], true);
    // The same where nobody sees a new key for a while.
    let bed = Bed::new();
    bed.fake.set_consistency(Duration::from_millis(900));
    bed.fake.drop_next("CreateKey", 1);
    bed.fake.drop_next("CreateAlias", 1);
    made(&mut bed.key(&[]));
    assert_eq!((bed.keys().len(), bed.fake.calls("CreateKey")), (1, 1));
    // A call that did not get through is made again, once nobody sees what it would have made.
    let bed = Bed::new();
    bed.fake.fault(Rule::new(Effect::Reset).on("CreateKey").times(1));
    bed.fake.fault(Rule::new(Effect::internal()).on("CreateKey").times(1));
    made(&mut bed.key(&["--settling", "1s"]));
    assert_eq!((bed.keys().len(), bed.fake.calls_ok("CreateKey")), (1, 1));
    // One that is turned away at the door has made nothing.
    let bed = Bed::new();
    bed.fake.fault(Rule::new(Effect::throttle()).on("CreateKey").times(1));
    made(&mut bed.key(&[]));
    assert_eq!((bed.keys().len(), bed.fake.calls("CreateKey")), (1, 2));
}

#[test]
fn after_a_lost_answer_nobody_guesses() {
    let bed = Bed::new();
    bed.fake.create_key(Origin::Kms);
    bed.fake.drop_next("CreateKey", 1);
    // The two searches before the call see one key; the later ones see none of their tags.
    bed.fake.fault(Rule::new(Effect::Deny).on("ListResourceTags").after(2));
    let said = refused(&mut bed.key(&[]), 1, "kms:ListResourceTags");
    assert!(said.contains(&format!("--volume-id {ID} to go on")), "{said}");
    // The next run has to look for it.
    assert_eq!((bed.fake.calls("CreateKey"), bed.marks().len()), (1, 1));
    bed.fake.clear_faults();
    assert_eq!(made(&mut bed.key(&[]))["created"], false);
}

/// Who says that none of the hidden keys is the one says so of the key just made, too.
#[test]
fn after_a_lost_answer_hidden_keys_do_not_end_the_search() {
    let bed = Bed::new();
    bed.fake.set_consistency(Duration::from_millis(900));
    let foreign = bed.fake.create_key(Origin::Kms);
    until("the foreign key shows", || bed.keys().iter().any(|key| key["KeyArn"] == foreign));
    bed.fake.fault(Rule::new(Effect::Deny).on("ListResourceTags").key(&foreign));
    bed.fake.drop_next("CreateKey", 1);
    let facts = made(&mut bed.anonymous_key(&["--accept-hidden-keys", "--settling", "20s"]));
    assert_eq!(bed.target("alias/kmsfs"), facts["key"].as_str().unwrap());
    assert_eq!((bed.fake.calls("CreateKey"), bed.marks()), (1, vec![]));
    // A call that may have made a key which nobody can see is left to the next run.
    let bed = Bed::new();
    bed.fake.create_key(Origin::Kms);
    bed.fake.fault(Rule::new(Effect::Deny).on("ListResourceTags"));
    bed.fake.drop_next("CreateKey", 1);
    let arguments = ["--accept-hidden-keys", "--settling", "100ms"];
    refused(&mut bed.anonymous_key(&arguments), 1, "CreateKey failed");
    assert_eq!((bed.fake.calls("CreateKey"), bed.marks().len()), (1, 1));
}

/// Whatever fails once KMS has taken the call, the next run looks for the key.
#[test]
fn a_key_that_was_made_and_does_not_show_keeps_its_mark() {
    let bed = Bed::new();
    // The alias is looked at twice before.
    bed.fake.fault(Rule::new(Effect::Deny).on("DescribeKey").after(2));
    refused(&mut bed.key(&["--settling", "100ms"]), 1, "DescribeKey failed");
    assert_eq!((bed.fake.calls_ok("CreateKey"), bed.marks().len()), (1, 1));
    bed.fake.clear_faults();
    assert_eq!(made(&mut bed.key(&[]))["created"], false);
    assert_eq!(bed.marks(), [""; 0]);
}

#[test]
fn roles_that_are_new_are_waited_for() {
    let bed = Bed::new();
    let fault =
        |message: &str| Effect::Error(Fault::client("MalformedPolicyDocumentException", message));
    let unknown = "Policy contains a statement with one or more invalid principals.";
    bed.fake.fault(Rule::new(fault(unknown)).on("CreateKey").times(2));
    made(&mut bed.key(&[]));
    assert_eq!(bed.fake.calls("CreateKey"), 3);
    let bed = Bed::new();
    bed.fake.fault(Rule::new(fault(unknown)).on("CreateKey"));
    refused(&mut bed.key(&["--settling", "500ms"]), 1, "misspelt and deleted roles");
    let bed = Bed::new();
    bed.fake.fault(Rule::new(fault("Syntax errors in policy.")).on("CreateKey"));
    refused(&mut bed.key(&[]), 1, "Syntax errors");
    assert_eq!(bed.fake.calls("CreateKey"), 1);
}

#[test]
fn an_alias_of_another_key_is_left_alone() {
    let bed = Bed::new();
    let foreign = bed.fake.create_key(Origin::Kms);
    bed.fake.set_alias("alias/kmsfs", &foreign);
    let said = refused(&mut bed.key(&[]), 1, "points to another key");
    assert!(said.contains("nothing was made"), "{said}");
    assert_eq!((bed.fake.calls("CreateKey"), bed.target("alias/kmsfs")), (0, foreign));
    let facts = made(&mut bed.key(&["--repoint-alias"]));
    assert_eq!(facts["alias_moved"], true);
    assert_eq!(bed.target("alias/kmsfs"), facts["key"].as_str().unwrap());
    // The key of one volume is not that of another.
    refused(&mut bed.anonymous_key(&["--volume-id", &"ab".repeat(16)]), 1, "another key");
    made(&mut bed.anonymous_key(&["--volume-id", &"ab".repeat(16), "--alias", "two"]));
}

#[test]
fn faults_of_a_policy_are_found_before_anything_is_made() {
    let bed = Bed::new();
    let said = refused(&mut bed.key(&["--user", "host"]), 1, "this is no ARN");
    assert!(said.contains("the policy has a fault"), "{said}");
    refused(&mut bed.key(&["--user", "*"]), 1, "everybody in every account");
    refused(&mut bed.key(&["--user", "AROAEXAMPLE"]), 1, "was deleted");
    assert_eq!(bed.fake.calls("CreateKey"), 0);
    made(&mut bed.key(&["--user", "AROAEXAMPLE", "--accept-findings"]));
    // Warnings are for reading.
    let output = bed.key(&["--user", ADMIN, "--put-policy"]).output().unwrap();
    assert!(text(&output).contains("both looks after the key and uses it"));
}

#[test]
fn an_administrator_need_not_be_a_user() {
    let bed = Bed::new();
    bed.fake.add_principal(Principal::new(ACCESS_KEY, SECRET_KEY, "admin").allow(&[
        "CreateKey",
        "CreateAlias",
        "Describe*",
        "List*",
        "Get*",
    ]));
    let facts = made(&mut bed.key(&["--settling", "500ms"]));
    assert_eq!(facts["canary"], "not-allowed");
    let said = facts["canary_text"].as_str().unwrap();
    assert!(said.contains("kmsfsctl doctor") && said.contains("kms:GenerateDataKey"), "{said}");
    refused(&mut bed.key(&["--settling", "500ms", "--require-canary"]), 18, "was not tried");
}

#[test]
fn a_key_that_does_not_work_is_no_success() {
    let bed = Bed::new();
    bed.fake.set_store_communicates(&bed.store, false);
    let said = refused(&mut bed.key(&["--settling", "500ms"]), 18, "does not work");
    assert!(said.contains("active HSM") && said.contains("\"canary\": \"failed\""), "{said}");
    bed.fake.set_store_communicates(&bed.store, true);
    assert_eq!(made(&mut bed.key(&[]))["canary"], "passed");
    bed.fake.set_store(&bed.store, Connection::Disconnected);
    refused(&mut bed.key(&[]), 18, "connect-custom-key-store");
}

#[test]
fn what_is_new_may_not_be_known_everywhere_yet() {
    let bed = Bed::new();
    bed.fake.set_consistency(Duration::from_millis(700));
    let facts = made(&mut bed.key(&["--settling", "10s"]));
    assert_eq!((&facts["created"], &facts["canary"]), (&json!(true), &json!("passed")));
    assert!(bed.fake.calls_with("DescribeKey", "NotFoundException") > 2);
    // Nor what it allows.
    let bed = Bed::new();
    let unknown = || Effect::Error(Fault::client("NotFoundException", "Key does not exist"));
    bed.fake.fault(Rule::new(unknown()).on("CreateAlias").times(2));
    bed.fake.fault(Rule::new(unknown()).on("GenerateDataKey").times(2));
    bed.fake.fault(Rule::new(Effect::Deny).on("GenerateDataKey").times(2));
    bed.fake.fault(Rule::new(Effect::Deny).on("Decrypt").times(1));
    assert_eq!(made(&mut bed.key(&["--settling", "10s"]))["canary"], "passed");
}

#[test]
fn keys_of_other_origins() {
    let bed = Bed::new();
    let facts = made(&mut bed.key(&["--origin", "aws-kms", "--rotation-days", "180"]));
    let status = bed.ask("GetKeyRotationStatus", facts["key"].as_str().unwrap());
    assert_eq!(status["RotationPeriodInDays"], 180);
    let said = refused(&mut bed.key(&["--rotation-days", "180"]), 1, "key rotate");
    assert!(said.contains("KMS rotates no key of a key store"), "{said}");
    refused(&mut bed.key(&["--rotation-days", "89"]), 2, "90..=2560");
    refused(&mut bed.key(&["--origin", "external-key-store"]), 1, "--xks-key-id");
    refused(&mut bed.key(&["--key-store", "none"]), 1, "there is no key store none");
    // The mark is that of the key in KMS.
    refused(&mut bed.key(&[]), 1, "where AWS_CLOUDHSM in cks-");
    let external = bed.fake.create_store("outside", Origin::ExternalStore);
    let other = "cd".repeat(16);
    let named = ["--volume-id", &other, "--alias", "x", "--key-store", "outside"];
    refused(&mut bed.anonymous_key(&named), 1, "of the kind EXTERNAL_KEY_STORE");
    let outside = ["--origin", "external-key-store", "--xks-key-id", "key-1"];
    let facts = made(&mut bed.anonymous_key(&[&named[..], &outside].concat()));
    let data = &bed.ask("DescribeKey", facts["key"].as_str().unwrap())["KeyMetadata"];
    assert_eq!(data["CustomKeyStoreId"], external);
}

#[test]
fn the_policy_can_be_had_alone_and_nothing_is_made_unasked() {
    let bed = Bed::new();
    let policy = made(&mut bed.key(&["--policy-only", "--account", "444455556666"]));
    let users = json!([HOST, "arn:aws:iam::444455556666:root"]);
    assert_eq!(policy["Statement"][2]["Principal"]["AWS"], users);
    let policy = made(&mut bed.key(&["--policy-only", "--console-policy"]));
    assert_eq!(policy["Statement"].as_array().unwrap().len(), 4);
    refused(&mut bed.key(&["--console-policy", "--read-only", HOST]), 2, "cannot be used with");
    let mut unasked = bed.command(env!("CARGO_BIN_EXE_kmsfsctl"));
    let here = bed.fake.endpoint();
    unasked.args(["provision", "key", "--kms-endpoint", &here, "--sts-endpoint", &here]);
    unasked.stdin(std::process::Stdio::null());
    refused(&mut unasked, 1, "say --yes");
    let writes = ["CreateKey", "CreateAlias", "PutKeyPolicy", "TagResource"];
    assert!(writes.iter().all(|operation| bed.fake.calls(operation) == 0));
}

/// Credentials come from the environment, which is a process's own: this one runs itself once more.
#[test]
fn what_rotation_builds_on() {
    let bed = Bed::new();
    let mut again = bed.command(std::env::current_exe().unwrap());
    again.args(["--exact", "key::as_a_library", "--ignored", "--nocapture"]);
    let output = again.env("KMSFS_TEST_ENDPOINT", bed.fake.endpoint()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("1 passed"), "{}", text(&output));
}

#[test]
#[ignore = "run by what_rotation_builds_on"]
fn as_a_library() {
    let Ok(endpoint) = std::env::var("KMSFS_TEST_ENDPOINT") else { return };
    let here: kmsfs::keys::aws::Endpoint = endpoint.parse().unwrap();
    let mut places = Places { sts: Some(here.clone()), ..Places::default() };
    places.kms.endpoints = vec![here];
    let pace = Pace { settling: Duration::from_secs(1), ..Pace::default() };
    let account = Account::new("us-east-1", places, pace);
    let root = "arn:aws:iam::111122223333:root";
    let policy = json!({ "Version": "2012-10-17", "Statement": [{
        "Effect": "Allow", "Principal": { "AWS": root }, "Action": "kms:*", "Resource": "*",
    }] });
    let store = key_store::find(&account, Sought::parse("kmsfs")).unwrap().unwrap();
    assert_eq!(key_store::find(&account, Sought::parse(&store.id)).unwrap().as_ref(), Some(&store));
    assert_eq!(key_store::find(&account, Sought::parse("none")), Ok(None));
    let wish = KeyWish {
        origin: Place::CloudHsm { store: store.id },
        description: "one".into(),
        tags: vec![(TAG_VOLUME.into(), ID.into()), ("team".into(), "files".into())],
        policy: policy.to_string(),
        mark: format!("{ID}.1"),
    };
    let state = tempfile::tempdir().unwrap();
    let intent = Intent::of(state.path(), "it");
    let old = find_or_create(&account, &wish, Hidden::Refuse, &intent, &Silent).unwrap();
    let found = find_or_create(&account, &wish, Hidden::Refuse, &intent, &Silent).unwrap();
    assert_eq!((old.created, found.created, &found.arn), (true, false, &old.arn));
    let point = |arn: &str, repoint| point_alias(&account, "alias/it", arn, repoint, &Silent);
    assert_eq!(point(&old.arn, Repoint::Never), Ok(Pointed::Created));
    assert_eq!(point(&old.arn, Repoint::Never), Ok(Pointed::Unchanged));

    let next = copy_wish(&account, "alias/it", None).unwrap();
    assert_eq!(next.mark, format!("{ID}.2"));
    assert_eq!(KeyWish { mark: wish.mark.clone(), ..next.clone() }, {
        let mut wish = wish.clone();
        wish.tags.sort();
        wish
    });
    intent.end();
    let new = find_or_create(&account, &next, Hidden::Refuse, &intent, &Silent).unwrap();
    assert!(new.created && new.arn != old.arn);
    let facts = key::describe(&account, &new.arn).unwrap();
    assert_eq!(facts.tag(TAG_REQUEST), Some(next.mark.as_str()));
    assert_eq!((facts.head.state.as_str(), &facts.aliases[..]), ("Enabled", &[][..]));
    let volume = VolumeId(random_array());
    assert_eq!(try_key(&account, &new.arn, volume, &Silent), Ok(Canary::Passed));
    for wrong in [Repoint::Never, Repoint::From(&new.arn)] {
        assert!(point(&new.arn, wrong).is_err());
    }
    assert_eq!(point(&new.arn, Repoint::From(&old.arn)), Ok(Pointed::Moved));
    assert_eq!(key::describe(&account, "alias/it").unwrap().aliases, ["alias/it"]);

    // Its policy may be the one that is wanted: what a grant allows, it allows besides.
    let grant = json!({ "KeyId": new.arn, "GranteePrincipal": HOST, "Operations": ["Decrypt"] });
    super::aws::client::Client::new(&endpoint, "us-east-1").call("CreateGrant", &grant).unwrap();
    let refused = find_or_create(&account, &next, Hidden::Refuse, &intent, &Silent).unwrap_err();
    for words in [&new.arn[..], HOST, "Decrypt", "revoke-grant"] {
        assert!(refused.sentence.contains(words), "{words}: {refused}");
    }
}
