//! A fake account with an empty directory, and the program run in both.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::aws::{ACCESS_KEY, FakeAws, SECRET_KEY};

/// Longest wait for something that has to happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// The fake and the directory.
pub struct Ground {
    pub fake: FakeAws,
    dir: TempDir,
}

/// Everything a command said.
pub fn text(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    format!("{} {out}{err}", output.status)
}

/// Runs a command that must succeed; its standard output.
pub fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command that must succeed and answer JSON.
pub fn answered(command: &mut Command) -> Value {
    serde_json::from_str(&said(command.arg("--json"))).unwrap()
}

/// Runs a command that must fail; what it said.
pub fn refused(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{command:?}: {}", text(&output));
    text(&output)
}

/// Waits until something holds.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "never came: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Gives one command the environment and the directory of another.
pub fn surroundings_of(command: &Command, other: &mut Command) {
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => other.env(name, value),
            None => other.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        other.current_dir(dir);
    }
}

/// The same command where nobody can be asked.
pub fn without_terminal(command: &Command) -> Command {
    let mut detached = Command::new("setsid");
    detached.arg("-w").arg(command.get_program()).args(command.get_args());
    surroundings_of(command, &mut detached);
    detached
}

impl Ground {
    pub fn new() -> Ground {
        let dir = TempDir::with_prefix("kmsfs-provision-").unwrap();
        Ground { fake: FakeAws::start(), dir }
    }

    /// The account alone: what comes next needs no file of the directory.
    pub fn into_fake(self) -> FakeAws {
        self.fake
    }

    /// A place in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file; its path.
    pub fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).unwrap();
        self.path(name).to_str().unwrap().to_owned()
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// `kmsfsctl provision` with arguments, in the directory.
    pub fn provision(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kmsfsctl"));
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("AWS_") || name.starts_with("CLOUDHSM_") {
                command.env_remove(name);
            }
        }
        command
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
            .env("AWS_CONFIG_FILE", "/nonexistent/config")
            .env("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent/credentials")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("XDG_STATE_HOME", self.dir.path())
            .envs(self.fake.cli_environment(self.dir.path()))
            .current_dir(self.dir.path());
        let here = self.fake.endpoint();
        command.arg("provision").args(arguments).args(["--region", "us-east-1"]);
        command.args(["--kms-endpoint", &here, "--cloudhsm-endpoint", &here]);
        command.args(["--sts-endpoint", &here, "--poll", "10ms", "--patience", "30s"]);
        command
    }

    /// `provision certificate` with a passphrase.
    pub fn certificate(&self, arguments: &[&str]) -> Command {
        self.write("passphrase", "correct horse\n");
        let mut command = self.provision(&["certificate", "--ca-passphrase-file", "passphrase"]);
        command.args(arguments);
        command
    }

    fn cloudhsm(&self, operation: &str, body: &Value) -> Value {
        self.fake.client().call_cloudhsm(operation, body).unwrap()
    }

    /// A cluster of the deployment `kmsfs` without HSMs.
    pub fn empty_cluster(&self) -> String {
        let subnets: Vec<String> = (1..3).map(|n| format!("subnet-0a{n:015x}")).collect();
        let request = json!({
            "HsmType": "hsm2m.medium", "Mode": "FIPS", "SubnetIds": subnets,
            "TagList": [{ "Key": "kmsfs:deployment", "Value": "kmsfs" }],
        });
        let made = self.cloudhsm("CreateCluster", &request);
        self.fake.clusters();
        made["Cluster"]["ClusterId"].as_str().unwrap().to_owned()
    }

    /// A cluster of the deployment `kmsfs` with its first HSM.
    pub fn young_cluster(&self) -> String {
        let id = self.empty_cluster();
        self.add_hsm(&id);
        id
    }

    pub fn add_hsm(&self, cluster: &str) {
        let zone = json!({ "ClusterId": cluster, "AvailabilityZone": "us-east-1a" });
        self.cloudhsm("CreateHsm", &zone);
        self.fake.clusters();
    }

    /// What AWS shows of a cluster.
    pub fn shown(&self, id: &str) -> Value {
        let clusters = self.fake.clusters();
        clusters.into_iter().find(|cluster| cluster["ClusterId"] == id).unwrap()
    }

    /// The state of a cluster.
    pub fn state(&self, id: &str) -> String {
        self.shown(id)["State"].as_str().unwrap().to_owned()
    }
}
