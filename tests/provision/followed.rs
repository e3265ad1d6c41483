//! From an empty account to a key, by nothing but the commands that `plan` tells.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::aws::{Effect, Rule};
use super::ground::{Ground, said, text};

const NAME: &str = "vault-1";
/// A directory that a shell takes apart if nobody quotes it.
const DIR: &str = "it's here";
/// Steps of the plan that can be seen from here.
const STEPS: usize = 15;
/// Commands that are killed before the story has to be at its end.
const KILLS: u32 = 60;

/// An empty account, and somebody who does what the plan says.
struct Story {
    ground: Ground,
    /// Options that the plan cannot know, by command.
    extra: Vec<(&'static str, String)>,
}

impl Story {
    fn new() -> Story {
        let ground = Ground::new();
        let (aws, manufacturer) = ground.fake.hardware_roots();
        ground.write("aws.crt", &aws);
        ground.write("maker.crt", &manufacturer);
        ground.write("passphrase", "correct horse\n");
        let (cli, configure) = ground.fake.install_cli(&ground.path("."));
        let certificate = "--ca-passphrase-file passphrase";
        let activate = format!(
            "--exec local --cloudhsm-cli {} --configure-cli {}",
            cli.display(),
            configure.display()
        );
        let key = "--yes --admin arn:aws:iam::111122223333:role/keys \
                   --user arn:aws:iam::111122223333:role/host";
        let extra = vec![
            ("certificate", certificate.to_owned()),
            ("activate", activate),
            ("key ", key.to_owned()),
        ];
        Story { ground, extra }
    }

    fn plan(&self) -> Vec<Value> {
        let mut command = self.ground.provision(&["plan", "--name", NAME, "--dir", DIR, "--json"]);
        let plan: Value = serde_json::from_str(&said(&mut command)).unwrap();
        plan["steps"].as_array().unwrap()[..STEPS].to_vec()
    }

    /// The command of the first step that is missing and not left to people, or that cannot be seen
    /// and was not `done`.
    fn next(&self, done: &[String]) -> Option<String> {
        let steps = self.plan();
        let command = |step: &Value| step["command"].as_str().unwrap().to_owned();
        let due = |step: &&Value| match step["state"].as_str().unwrap() {
            "missing" => step["where"] != "human",
            "unknown" => !step["command"].is_null() && !done.contains(&command(step)),
            _ => false,
        };
        steps.iter().find(due).map(command)
    }

    /// A command of the plan, for a shell.
    fn shell(&self, command: &str) -> Command {
        let (first, second) = ("subnet-0a000000000000001", "subnet-0a000000000000002");
        let subnets = format!("--subnet {first} --subnet {second}");
        let command = command.replace("--subnet ID --subnet ID", &subnets);
        let command = command
            .replace("--aws-hardware-root FILE", "--aws-hardware-root aws.crt")
            .replace("--manufacturer-root FILE", "--manufacturer-root maker.crt");
        let verb = command.strip_prefix("kmsfsctl provision ").unwrap();
        let extra = self.extra.iter().find(|(name, _)| verb.starts_with(name));
        let extra = extra.map_or("", |(_, extra)| extra);
        let place = self.ground.fake.endpoint();
        let line = format!(
            "exec {command} {extra} --kms-endpoint {place} --cloudhsm-endpoint {place} \
             --sts-endpoint {place} --poll 10ms --settling 1s --patience 30s"
        );
        let like = self.ground.provision(&[]);
        let programs = Path::new(env!("CARGO_BIN_EXE_kmsfsctl")).parent().unwrap();
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
        let mut shell = Command::new("sh");
        shell.args(["-c", &line]).env("PATH", path).current_dir(self.ground.path("."));
        for (name, value) in like.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        shell
    }

    /// There is one of each, it works, and no password was ever an argument.
    fn check(&self) {
        let steps = self.plan();
        // Whether the hardware was checked is written nowhere.
        let seen = |step: &Value| step["state"] == "exists" || step["number"] == 4;
        assert!(steps.iter().all(seen), "{steps:#?}");
        let counts = self.ground.fake.counts();
        let there = (counts.clusters, counts.hsms, counts.stores, counts.keys);
        assert_eq!(there, (1, 2, 1, 1));
        let log = self.ground.read("cloudhsm-cli.log");
        // Killed as soon as the key store was connected, it has not come to rename the file.
        let own = format!("{DIR}/kmsuser-password");
        let spent = format!("{own}.spent");
        let kmsuser = if self.ground.path(&spent).exists() { spent } else { own };
        for name in [format!("{DIR}/admin-password"), kmsuser] {
            let password = self.ground.read(&name);
            assert!(password.len() == 32 && !log.contains(&password), "{name}");
        }
        let teardown = ["teardown", "plan", "--name", NAME];
        let told = said(&mut self.ground.provision(&teardown));
        let cluster = self.ground.fake.clusters()[0]["ClusterId"].as_str().unwrap().to_owned();
        assert!(told.contains(&format!("delete-cluster --cluster-id {cluster}")), "{told}");
        assert!(told.contains("schedule-key-deletion") && told.contains("cks-"), "{told}");
    }
}

#[test]
fn the_plan_can_be_followed_to_its_end() {
    let story = Story::new();
    // The answer of everything that makes something is lost once.
    for operation in [
        "CreateCluster",
        "CreateHsm",
        "InitializeCluster",
        "CreateCustomKeyStore",
        "ConnectCustomKeyStore",
        "CreateKey",
        "CreateAlias",
    ] {
        story.ground.fake.fault(Rule::new(Effect::Drop).on(operation).times(1));
    }
    let mut done = Vec::new();
    while let Some(command) = story.next(&done) {
        let output = story.shell(&command).output().unwrap();
        assert!(output.status.success(), "{command}: {}", text(&output));
        done.push(command);
        assert!(done.len() < 10, "{done:#?}");
    }
    // Each command does its steps at once; the second HSM comes after activation.
    let verbs: Vec<&str> = done.iter().map(|command| command.split(' ').nth(2).unwrap()).collect();
    assert_eq!(verbs, ["cluster", "certificate", "activate", "cluster", "key-store", "key"]);
    story.check();
}

#[test]
fn killed_again_and_again_it_comes_to_the_same_end() {
    let story = Story::new();
    story.ground.fake.set_cluster_times(Duration::from_millis(40), Duration::from_millis(40));
    story.ground.fake.set_connect_time(Duration::from_millis(40));
    let (mut last, mut patience, mut kills) = (String::new(), Duration::ZERO, 0);
    let mut done = Vec::new();
    while let Some(command) = story.next(&done) {
        // Longer each time, so that every moment of a command is its last one once.
        let longer = patience + Duration::from_millis(40);
        patience = if command == last { longer * 5 / 4 } else { Duration::from_millis(40) };
        let mut shell = story.shell(&command);
        let mut child = shell.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(patience);
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        kills += 1;
        assert!(kills < KILLS, "{command} never ends: {}", text(&output));
        if output.status.success() {
            done.push(command.clone());
        }
        last = command;
    }
    story.check();
}
