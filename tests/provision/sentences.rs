//! What somebody reads when KMS refuses a call that is about a key: each error that the model of its API
//! has for the call, as the program ends with it. `sentences.txt` holds them, to be read and judged;
//! `KMSFS_UPDATE=1` writes it anew.

use std::fmt::Write as _;
use std::process::Command;
use std::sync::Mutex;

use super::aws::{Effect, FakeAws, Fault, Origin, Rule};
use super::bed;
use super::key::Bed;

const GOLDEN: &str = include_str!("sentences.txt");
/// What KMS itself says.
const MESSAGE: &str = "Because.";

/// A call, how the program comes to make it, and what KMS may answer: by its model, and the refusal every
/// call knows.
const CALLS: &[(&str, Scene, &[&str])] = &[
    (
        "CreateKey",
        Scene::Make,
        &[
            "CloudHsmClusterInvalidConfigurationException",
            "CustomKeyStoreInvalidStateException",
            "CustomKeyStoreNotFoundException",
            "DependencyTimeoutException",
            "InvalidArnException",
            "KMSInternalException",
            "LimitExceededException",
            "MalformedPolicyDocumentException",
            "TagException",
            "UnsupportedOperationException",
            "XksKeyAlreadyInUseException",
            "XksKeyInvalidConfigurationException",
            "XksKeyNotFoundException",
        ],
    ),
    (
        "CreateAlias",
        Scene::Make,
        &[
            "AlreadyExistsException",
            "DependencyTimeoutException",
            "InvalidAliasNameException",
            "KMSInternalException",
            "KMSInvalidStateException",
            "LimitExceededException",
            "NotFoundException",
        ],
    ),
    (
        "UpdateAlias",
        Scene::Move,
        &[
            "DependencyTimeoutException",
            "KMSInternalException",
            "KMSInvalidStateException",
            "LimitExceededException",
            "NotFoundException",
        ],
    ),
    (
        "DescribeKey",
        Scene::Find,
        &["DependencyTimeoutException", "InvalidArnException", "KMSInternalException"],
    ),
    (
        "ListKeys",
        Scene::Make,
        &["DependencyTimeoutException", "InvalidMarkerException", "KMSInternalException"],
    ),
    (
        "ListResourceTags",
        Scene::Find,
        &["InvalidArnException", "InvalidMarkerException", "KMSInternalException"],
    ),
    (
        "GetKeyPolicy",
        Scene::Find,
        &[
            "DependencyTimeoutException",
            "InvalidArnException",
            "KMSInternalException",
            "KMSInvalidStateException",
            "NotFoundException",
        ],
    ),
    (
        "ListGrants",
        Scene::Find,
        &[
            "DependencyTimeoutException",
            "InvalidArnException",
            "InvalidGrantIdException",
            "InvalidMarkerException",
            "KMSInternalException",
            "KMSInvalidStateException",
            "NotFoundException",
        ],
    ),
    (
        "PutKeyPolicy",
        Scene::Put,
        &[
            "DependencyTimeoutException",
            "InvalidArnException",
            "KMSInternalException",
            "KMSInvalidStateException",
            "LimitExceededException",
            "MalformedPolicyDocumentException",
            "NotFoundException",
            "UnsupportedOperationException",
        ],
    ),
    (
        "GetKeyRotationStatus",
        Scene::Turn,
        &[
            "DependencyTimeoutException",
            "InvalidArnException",
            "KMSInternalException",
            "KMSInvalidStateException",
            "NotFoundException",
            "UnsupportedOperationException",
        ],
    ),
    (
        "EnableKeyRotation",
        Scene::Turn,
        &[
            "DependencyTimeoutException",
            "DisabledException",
            "InvalidArnException",
            "KMSInternalException",
            "KMSInvalidStateException",
            "NotFoundException",
            "UnsupportedOperationException",
        ],
    ),
    ("GenerateDataKey", Scene::Find, USE),
    ("Decrypt", Scene::Find, UNWRAP),
    (
        "RotateKeyOnDemand",
        Scene::Rotate,
        &[
            "ConflictException",
            "DependencyTimeoutException",
            "DisabledException",
            "InvalidArnException",
            "KMSInternalException",
            "KMSInvalidStateException",
            "LimitExceededException",
            "NotFoundException",
            "UnsupportedOperationException",
        ],
    ),
    (
        "ListAliases",
        Scene::Retire,
        &[
            "DependencyTimeoutException",
            "InvalidArnException",
            "InvalidMarkerException",
            "KMSInternalException",
            "NotFoundException",
        ],
    ),
    (
        "DisableKey",
        Scene::Retire,
        &[
            "DependencyTimeoutException",
            "InvalidArnException",
            "KMSInternalException",
            "KMSInvalidStateException",
            "NotFoundException",
        ],
    ),
    (
        "ScheduleKeyDeletion",
        Scene::Retire,
        &[
            "DependencyTimeoutException",
            "InvalidArnException",
            "KMSInternalException",
            "KMSInvalidStateException",
            "NotFoundException",
        ],
    ),
    ("ReEncrypt", Scene::Rewrap, UNWRAP),
];

const USE: &[&str] = &[
    "DependencyTimeoutException",
    "DisabledException",
    "InvalidGrantTokenException",
    "InvalidKeyUsageException",
    "KeyUnavailableException",
    "KMSInternalException",
    "KMSInvalidStateException",
    "NotFoundException",
];

const UNWRAP: &[&str] = &[
    "DependencyTimeoutException",
    "DisabledException",
    "IncorrectKeyException",
    "InvalidCiphertextException",
    "InvalidGrantTokenException",
    "InvalidKeyUsageException",
    "KeyUnavailableException",
    "KMSInternalException",
    "KMSInvalidStateException",
    "NotFoundException",
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Scene {
    /// `provision key` where there is none.
    Make,
    /// The same, with an alias that points elsewhere.
    Move,
    /// `provision key` where there is one.
    Find,
    /// The same, whose policy shall be another one.
    Put,
    /// The same, which KMS shall rotate.
    Turn,
    /// `key rotate` of a key that KMS rotates.
    Rotate,
    /// `key rewrap` to another key.
    Rewrap,
    /// `key retire` of a key that nothing needs.
    Retire,
}

/// A fake, and the command to be run in it, as often as one likes.
struct Stage {
    /// Of a test's length, as what it stands on: no loss.
    fake: &'static FakeAws,
    command: Box<dyn Fn() -> Command>,
}

impl Stage {
    fn of(scene: Scene) -> Stage {
        match scene {
            Scene::Make | Scene::Move | Scene::Find | Scene::Put | Scene::Turn => provision(scene),
            Scene::Rotate | Scene::Rewrap | Scene::Retire => of_volume(scene),
        }
    }

    /// What the command says while each such call is refused.
    fn said(&self, call: &str, code: &str) -> String {
        let refusal = if code == "KMSInvalidStateException" {
            Fault::client(code, "KEY is pending deletion.")
        } else {
            Fault::client(code, MESSAGE)
        };
        self.fake.fault(Rule::new(Effect::Error(refusal)).on(call));
        let output = (self.command)().output().unwrap();
        self.fake.clear_faults();
        assert!(!output.status.success(), "{call} {code}: {}", bed::text(&output));
        assert!(self.fake.calls_with(call, code) > 0, "{call} {code}: {}", bed::text(&output));
        String::from_utf8(output.stderr).unwrap()
    }
}

fn provision(scene: Scene) -> Stage {
    let bed = Bed::new();
    let mut arguments =
        vec!["--origin", "aws-kms", "--poll", "1ms", "--settling", "100ms", "--require-canary"];
    if scene != Scene::Make && scene != Scene::Move {
        assert!(bed.key(&arguments).output().unwrap().status.success());
    }
    match scene {
        Scene::Move => {
            let other = bed.fake.create_key(Origin::Kms);
            bed.fake.set_alias("alias/kmsfs", &other);
            arguments.push("--repoint-alias");
        }
        Scene::Put => arguments.extend(["--no-delete", "--put-policy"]),
        Scene::Turn => arguments.extend(["--rotation-days", "180"]),
        _ => {}
    }
    let command = again(bed.key(&arguments));
    Stage { fake: &Box::leak(Box::new(bed)).fake, command }
}

/// The same command, as often as it is wanted.
fn again(command: Command) -> Box<dyn Fn() -> Command> {
    Box::new(move || {
        let mut copy = Command::new(command.get_program());
        copy.args(command.get_args()).env_clear();
        copy.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        copy
    })
}

fn of_volume(scene: Scene) -> Stage {
    let fake = FakeAws::start();
    let key = fake.create_key(Origin::Kms);
    let mut bed = bed::Bed::on(fake, key, &[]);
    bed.mount("");
    bed.make_files("a", 3);
    bed.unmount();
    let endpoint = bed.fake.endpoint();
    let mut command = bed::ctl(&["key"]);
    let source = bed.source();
    match scene {
        Scene::Rotate => command.arg("rotate").arg(&source),
        Scene::Rewrap => {
            let second = format!("aws-kms:{}", bed.fake.create_key(Origin::Kms));
            let list = bed.path("list");
            command.arg("rewrap").arg(&source).args(["--to", &second, "--list"]).arg(list)
        }
        _ => {
            let second = format!("aws-kms:{}", bed.fake.create_key(Origin::Kms));
            let list = bed.path("list");
            let to = ["--to", &second, "--list", list.to_str().unwrap()];
            bed::said(bed.ctl("key rewrap", &to));
            let delete = ["--no-backups", "--yes", "--schedule-deletion", "7"];
            command.args(["retire", &bed.key, "--volume"]).arg(&source).args(delete)
        }
    };
    command.args(["--kms-endpoint", &endpoint, "--kms-deadline", "300ms"]);
    let command = again(command);
    Stage { fake: &Box::leak(Box::new(bed)).fake, command }
}

/// Without what is another one each time.
fn plain(said: &str) -> String {
    let mut plain = String::new();
    for line in said.lines().filter(|line| line.contains(MESSAGE) || line.contains("kmsfsctl:")) {
        let line = masked(&masked(line, " (request ", ")"), "/tmp/", "/source");
        writeln!(plain, "    {}", masked(&line, ":key/", ": ")).unwrap();
    }
    plain
}

/// Text in which what stands between two marks is replaced.
fn masked(text: &str, from: &str, to: &str) -> String {
    let mut pieces = text.split(from);
    let mut whole = pieces.next().unwrap().to_owned();
    for piece in pieces {
        let end = piece.find(to).unwrap_or(piece.len());
        let word = piece.find(' ').unwrap_or(piece.len());
        write!(whole, "{from}…{}", &piece[end.min(word)..]).unwrap();
    }
    whole
}

fn sentences(call: &str, scene: Scene, codes: &[&str]) -> String {
    // Denied, this call only leaves something unknown.
    let denied = (call != "GetKeyRotationStatus").then_some(&"AccessDeniedException");
    let codes: Vec<&str> = codes.iter().chain(denied).copied().collect();
    let on = |stage: &Stage, code| format!("{call} {code}\n{}\n", plain(&stage.said(call, code)));
    if scene != Scene::Rewrap {
        let stage = Stage::of(scene);
        return codes.iter().map(|code| on(&stage, code)).collect();
    }
    // A new key is given a minute to become known, so each on a stage of its own, at the same time.
    std::thread::scope(|scope| {
        let told = codes.iter().map(|code| scope.spawn(move || on(&Stage::of(scene), code)));
        let told: Vec<_> = told.collect();
        told.into_iter().map(|told| told.join().unwrap()).collect()
    })
}

#[test]
fn every_refusal_about_a_key_says_what_happened_to_what_and_what_to_do() {
    let results = Mutex::new(vec![String::new(); CALLS.len()]);
    std::thread::scope(|scope| {
        for (at, (call, scene, codes)) in CALLS.iter().enumerate() {
            let results = &results;
            scope.spawn(move || {
                let said = sentences(call, *scene, codes);
                results.lock().unwrap()[at] = said;
            });
        }
    });
    let all = results.into_inner().unwrap().concat();
    if std::env::var_os("KMSFS_UPDATE").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/provision/sentences.txt"), &all)
            .unwrap();
        return;
    }
    assert_eq!(all, GOLDEN);
}
