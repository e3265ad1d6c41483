//! Our client of KMS against an emulator that others wrote. Run by `tests/rings/25-aws-cli.sh`, which
//! starts it and says in `KMSFS_TEST_KMS` where.

#[path = "support/aws/fake.rs"]
mod aws;
#[allow(dead_code)]
#[path = "kms/bed.rs"]
mod bed;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use aws::Client;
use bed::{ctl, refused, said, surroundings};
use kmsfs::fuse::mount;
use serde_json::{Value, json};
use tempfile::TempDir;

const REVOKED: i32 = 18;

/// The emulator, and a directory for a volume and its mount.
struct Site {
    endpoint: String,
    kms: Client,
    dir: TempDir,
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = mount::unmount_path(&self.point(), true);
    }
}

impl Site {
    fn new() -> Site {
        let endpoint = std::env::var("KMSFS_TEST_KMS").expect("KMSFS_TEST_KMS=http://HOST:PORT");
        let kms = Client::new(&endpoint, aws::REGION);
        let site = Site { endpoint, kms, dir: TempDir::with_prefix("kmsfs-moto-").unwrap() };
        fs::create_dir(site.point()).unwrap();
        site
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    fn point(&self) -> PathBuf {
        self.dir.path().join("point")
    }

    /// A new key; its ARN.
    fn key(&self) -> String {
        let made = self.kms.call("CreateKey", &json!({})).unwrap();
        made["KeyMetadata"]["Arn"].as_str().unwrap().to_owned()
    }

    fn ctl(&self, command: &str, key: &str) -> Command {
        let mut ctl = ctl(&command.split(' ').collect::<Vec<_>>());
        ctl.arg(self.source()).args(["--kms-endpoint", &self.endpoint]);
        let option = if command == "init" { &["--key"][..] } else { &[] };
        ctl.args(option).arg(format!("aws-kms:{key}"));
        ctl
    }

    /// The same without a key.
    fn plain(&self, command: &str, arguments: &[&str]) -> Command {
        let mut ctl = ctl(&command.split(' ').collect::<Vec<_>>());
        ctl.arg(self.source()).args(["--kms-endpoint", &self.endpoint]).args(arguments);
        ctl
    }

    /// `provision key` for a deployment of this name, whose key KMS itself has.
    fn provision(&self, name: &str) -> Value {
        let account = self.key().split(':').nth(4).unwrap().to_owned();
        let role = |name: &str| format!("arn:aws:iam::{account}:role/{name}");
        let (admin, user) = (role("keys"), role("host"));
        let mut command = ctl(&["provision", "key", "--origin", "aws-kms", "--yes"]);
        command.args(["--region", aws::REGION, "--name", name, "--tag", "team=files"]);
        command.args(["--admin", &admin, "--user", &user, "--settling", "2s"]);
        command.args(["--kms-endpoint", &self.endpoint, "--sts-endpoint", &self.endpoint]);
        answered(&mut command)
    }

    fn mounting(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kmsfs"));
        surroundings(&mut command);
        let options = format!("kms-endpoint={}", self.endpoint);
        command.arg(self.source()).arg(self.point()).args(["-o", &options]);
        command
    }

    fn mount(&self) {
        said(&mut self.mounting());
    }

    fn unmount(&self) {
        said(ctl(&["umount"]).arg(self.point()));
    }

    fn write(&self, name: &str) {
        fs::write(self.point().join(name), content(name)).unwrap();
    }

    fn check(&self, names: &[&str]) {
        for name in names {
            assert_eq!(fs::read(self.point().join(name)).unwrap(), content(name), "{name}");
        }
    }

    /// The KMS keys that something in the backing directory names.
    fn recipients(&self, path: &Path) -> Vec<String> {
        let facts = said(ctl(&["info", "--json"]).arg(path));
        let facts: Value = serde_json::from_str(&facts).unwrap();
        let all = facts["recipients"].as_array().unwrap().iter();
        all.map(|recipient| recipient["key"].as_str().unwrap().to_owned()).collect()
    }

    /// The same of the volume and of all its files.
    fn all_recipients(&self) -> Vec<Vec<String>> {
        let files = fs::read_dir(self.source()).unwrap().map(|entry| entry.unwrap().path());
        let is_file = |path: &PathBuf| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            path.is_file() && !name.starts_with("kmsfs.")
        };
        let paths = files.filter(is_file).chain([self.source()]);
        paths.map(|path| self.recipients(&path)).collect()
    }
}

/// What a command says as JSON.
fn answered(command: &mut Command) -> Value {
    serde_json::from_str(&said(command.arg("--json"))).unwrap()
}

/// For changes of a key's state: moto fails when it is given an ARN.
fn id(key: &str) -> &str {
    key.rsplit('/').next().unwrap()
}

fn content(name: &str) -> Vec<u8> {
    name.bytes().cycle().take(name.len() * 3000).collect()
}

#[test]
#[ignore = "needs an emulator: tests/rings/25-aws-cli.sh"]
fn a_volume_moves_from_one_key_to_another() {
    let site = Site::new();
    let (first, second) = (site.key(), site.key());
    said(&mut site.ctl("init", &first));
    site.mount();
    site.write("one");
    site.write("two");
    site.check(&["one", "two"]);
    site.unmount();
    site.mount();
    site.check(&["one", "two"]);
    site.unmount();

    let added = said(&mut site.ctl("key add", &second));
    assert!(added.contains("2 of 2 file headers rewritten"), "{added}");
    assert_eq!(site.all_recipients(), vec![vec![first.clone(), second.clone()]; 3]);
    site.mount();
    site.write("three");
    site.unmount();

    let removed = said(&mut site.ctl("key remove", &first));
    assert!(removed.contains("3 of 3 file headers rewritten"), "{removed}");
    assert_eq!(site.all_recipients(), vec![vec![second.clone()]; 4]);
    // Nothing is left that would need it.
    let deletion = json!({ "KeyId": id(&first), "PendingWindowInDays": 7 });
    site.kms.call("ScheduleKeyDeletion", &deletion).unwrap();
    site.mount();
    site.check(&["one", "two", "three"]);
    site.write("four");
    site.unmount();
    assert_eq!(site.all_recipients(), vec![vec![second]; 5]);
}

#[test]
#[ignore = "needs an emulator: tests/rings/25-aws-cli.sh"]
fn an_alias_is_recorded_as_the_key_it_names() {
    let site = Site::new();
    let (key, other) = (site.key(), site.key());
    let name = format!("alias/kmsfs-{}", std::process::id());
    let point_at = |operation: &str, key: &str| {
        let target = json!({ "AliasName": name, "TargetKeyId": key });
        site.kms.call(operation, &target).unwrap();
    };
    point_at("CreateAlias", &key);
    let (prefix, _) = key.split_once(":key/").unwrap();
    said(&mut site.ctl("init", &format!("{prefix}:{name}")));
    assert_eq!(site.recipients(&site.source()), [key.as_str()]);
    point_at("UpdateAlias", &other);
    site.mount();
    site.write("one");
    site.unmount();
    site.mount();
    site.check(&["one"]);
    site.unmount();
    assert_eq!(site.all_recipients(), vec![vec![key]; 2]);
}

#[test]
#[ignore = "needs an emulator: tests/rings/25-aws-cli.sh"]
fn a_disabled_key_opens_nothing() {
    let site = Site::new();
    let key = site.key();
    said(&mut site.ctl("init", &key));
    let by_id = json!({ "KeyId": id(&key) });
    site.kms.call("DisableKey", &by_id).unwrap();
    let ask = json!({ "KeyId": key, "KeySpec": "AES_256" });
    match site.kms.call("GenerateDataKey", &ask) {
        Ok(_) => eprintln!("this emulator goes on using a disabled key"),
        Err(_) => drop(refused(&mut site.mounting(), REVOKED)),
    }
    site.kms.call("EnableKey", &by_id).unwrap();
    site.mount();
    site.write("one");
    site.unmount();
}

#[test]
#[ignore = "needs an emulator: tests/rings/25-aws-cli.sh"]
fn a_key_is_made_rotated_and_retired() {
    let site = Site::new();
    let name = format!("files-{}", std::process::id());
    let made = site.provision(&name);
    let (key, volume) = (made["key"].as_str().unwrap(), made["volume_id"].as_str().unwrap());
    assert_eq!((&made["created"], &made["canary"]), (&json!(true), &json!("passed")));
    let again = site.provision(&name);
    assert_eq!((&again["created"], &again["key"]), (&json!(false), &made["key"]));
    said(site.ctl("init", key).args(["--volume-id", volume]));
    site.mount();
    site.write("one");

    // KMS rotates its own key by itself: the volume does not notice.
    let list = site.dir.path().join("list");
    let list = ["--list", list.to_str().unwrap()];
    let period =
        answered(&mut site.plain("key rotate", &["--period-days", "180", "--only-period"]));
    assert_eq!(
        (&period["rotation"], &period["native"]["automatic"]),
        (&json!("period"), &json!(true))
    );
    let native = answered(&mut site.plain("key rotate", &list));
    assert_eq!((&native["rotation"], &native["key"]), (&json!("kms"), &made["key"]));
    let by_id = json!({ "KeyId": key });
    let rotations = site.kms.call("ListKeyRotations", &by_id).unwrap();
    assert_eq!(rotations["Rotations"].as_array().unwrap().len(), 1);
    site.check(&["one"]);
    site.write("two");

    let moved = answered(site.plain("key rotate", &list).arg("--successor"));
    let new = moved["successor"].as_str().unwrap();
    assert_eq!(moved["aliases"], json!([format!("alias/{name}")]));
    assert_eq!(moved["rewrap"]["rewritten"], 2);
    let tags = |key: &str| {
        let tags = site.kms.call("ListResourceTags", &json!({ "KeyId": key })).unwrap();
        let tags = tags["Tags"].as_array().unwrap().clone();
        tags.into_iter().filter(|tag| tag["TagKey"] != "kmsfs:request").collect::<Vec<_>>()
    };
    assert_eq!((tags(key), tags(key).len()), (tags(new), 4));
    site.check(&["one", "two"]);
    site.unmount();
    // Of the volume's own list the old key goes when it is retired.
    assert_eq!(site.all_recipients()[..2], vec![vec![new.to_owned()]; 2]);

    let mut retire = ctl(&["key", "retire", key, "--no-backups", "--yes", "--volume"]);
    let retired = answered(retire.arg(site.source()).args(["--kms-endpoint", &site.endpoint]));
    assert_eq!(retired["disabled"], true);
    let state = &site.kms.call("DescribeKey", &by_id).unwrap()["KeyMetadata"]["KeyState"];
    assert_eq!(state, "Disabled");
    site.mount();
    site.check(&["one", "two"]);
    site.unmount();
    said(&mut site.plain("verify", &[]));
}
