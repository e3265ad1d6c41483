//! From an initialized cluster to one that KMS can use.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;

use super::ground::{Ground, answered, refused, said};

/// An initialized cluster, and the tools.
struct Bed {
    ground: Ground,
    cluster: String,
    cli: String,
    configure: String,
}

impl Bed {
    fn new() -> Bed {
        let ground = Ground::new();
        let cluster = ground.young_cluster();
        said(&mut ground.certificate(&[]));
        let tools = ground.path("a place");
        fs::create_dir(&tools).unwrap();
        let (cli, configure) = ground.fake.install_cli(&tools);
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        let (cli, configure) = (text(cli), text(configure));
        Bed { ground, cluster, cli, configure }
    }

    fn activate(&self, arguments: &[&str]) -> Command {
        let mut command = self.ground.provision(&["activate", "--configure-cli", &self.configure]);
        command.args(arguments);
        if !arguments.contains(&"--cloudhsm-cli") {
            command.args(["--cloudhsm-cli", &self.cli]);
        }
        command
    }

    fn users(&self) -> Vec<(String, String)> {
        let users = self.ground.fake.hsm_users(&self.cluster);
        users.into_iter().map(|(name, user)| (name, user.password)).collect()
    }

    /// What was run, without the tools' own names.
    fn log(&self) -> String {
        self.ground.read("cloudhsm-cli.log")
    }
}

fn pairs(admin: &str, kmsuser: &str) -> Vec<(String, String)> {
    let pair = |name: &str, password: &str| (name.to_owned(), password.to_owned());
    vec![pair("admin", admin), pair("kmsuser", kmsuser)]
}

#[test]
fn commands_are_printed_for_those_who_run_them() {
    let bed = Bed::new();
    let told = said(&mut bed.activate(&[]));
    let group = bed.ground.shown(&bed.cluster)["SecurityGroup"].as_str().unwrap().to_owned();
    for part in [
        &format!("Attach {group} to it"),
        "TCP 2223 to 2225",
        &format!("--cluster-id {} --region us-east-1", bed.cluster),
        "cloudhsm-cli' cluster activate",
        "user create --username kmsuser --role crypto-user",
        "user list",
        "/opt/cloudhsm/etc/customerCA.crt",
        "End every session",
        "no mutual TLS",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let plan = answered(&mut bed.activate(&[]));
    assert_eq!(plan["state"], "INITIALIZED");
    assert_eq!(plan["commands"].as_array().unwrap().len(), 7);
    assert!(!bed.ground.path("cloudhsm-cli.log").exists());
}

#[test]
fn tools_of_this_host_do_it() {
    let bed = Bed::new();
    let report = answered(&mut bed.activate(&["--exec", "local"]));
    assert_eq!(report["activated"], true);
    assert_eq!(report["kmsuser_created"], true);
    assert_eq!(bed.ground.state(&bed.cluster), "ACTIVE");
    let [admin, kmsuser] = ["admin-password", "kmsuser-password"].map(|name| {
        let name = format!("kmsfs-kmsfs/{name}");
        let mode = bed.ground.path(&name).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        bed.ground.read(&name)
    });
    assert!(admin.len() == 32 && kmsuser.len() == 32 && admin != kmsuser);
    assert_eq!(bed.users(), pairs(&admin, &kmsuser));
    let log = bed.log();
    assert!(!log.contains(&admin) && !log.contains(&kmsuser) && !log.contains("password"), "{log}");
    // Again: looked at, not done.
    fs::remove_file(bed.ground.path("cloudhsm-cli.log")).unwrap();
    let report = answered(&mut bed.activate(&["--exec", "local"]));
    assert_eq!(report["activated"], false);
    assert_eq!(report["kmsuser_created"], false);
    let log = bed.log();
    assert!(!log.contains("\"activate\"") && !log.contains("\"create\""), "{log}");
    assert_eq!(bed.users(), pairs(&admin, &kmsuser));
    let told = said(&mut bed.activate(&[]));
    assert!(told.contains("It is activated"), "{told}");
}

#[test]
fn tools_may_be_far_away() {
    let bed = Bed::new();
    let vault = bed.ground.path("vault");
    fs::create_dir(&vault).unwrap();
    let keep = format!("cat > '{}'/$KMSFS_PASSWORD_NAME", vault.display());
    let anchor = bed.ground.path("it's far").to_str().unwrap().to_owned();
    // As ssh does it: one string for a shell, of the environment only what the fake needs.
    let far = "env -u CLOUDHSM_PIN -u CLOUDHSM_ROLE sh -c {} # there";
    let arguments = ["--exec-template", far, "--password-command", &keep, "--anchor-path", &anchor];
    let report = answered(&mut bed.activate(&arguments));
    assert_eq!(report["passwords"].as_array().unwrap().len(), 0);
    let [admin, kmsuser] =
        ["vault/admin-password", "vault/kmsuser-password"].map(|name| bed.ground.read(name));
    assert_eq!(bed.users(), pairs(&admin, &kmsuser));
    assert_eq!(bed.ground.read("it's far"), bed.ground.read("kmsfs-kmsfs/customerCA.crt"));
    let log = bed.log();
    assert!(!log.contains(&admin) && !log.contains(&kmsuser), "{log}");
    // The user has gone: without the administrator's password there is no other.
    bed.ground.fake.delete_hsm_user(&bed.cluster, "kmsuser").unwrap();
    let error = refused(&mut bed.activate(&arguments));
    assert!(error.contains("put it into kmsfs-kmsfs/admin-password (mode 0600)"), "{error}");
    let bad = bed.activate(&["--exec-template", "ssh host"]).output().unwrap();
    assert_eq!(bad.status.code(), Some(2));
}

#[test]
fn a_tool_that_never_ends_is_stopped() {
    let bed = Bed::new();
    let stuck = bed.ground.path("stuck");
    fs::write(&stuck, "#!/bin/sh\necho 'Enter password:' >&2\nexec sleep 600\n").unwrap();
    fs::set_permissions(&stuck, fs::Permissions::from_mode(0o755)).unwrap();
    let stuck = stuck.to_str().unwrap();
    let arguments = ["--exec", "local", "--cloudhsm-cli", stuck, "--tool-timeout", "3s"];
    let output = bed.activate(&arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    for part in [
        &format!("running: cluster {}: cloudhsm-cli user list", bed.cluster),
        "did not end within 3 seconds and was stopped",
        "the last it said was \"Enter password:\"",
        "run the commands by hand",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn a_killed_activation_is_finished() {
    let bed = Bed::new();
    let script = format!(
        "#!/bin/sh\n'{}' \"$@\"\ncase \"$*\" in *\"$KILL_AT\"*) kill -9 $PPID ;; esac\n",
        bed.cli
    );
    let deadly = bed.ground.write("deadly", &script);
    fs::set_permissions(&deadly, fs::Permissions::from_mode(0o755)).unwrap();
    for step in ["cluster activate", "user create"] {
        let mut command = bed.activate(&["--exec", "local", "--cloudhsm-cli", &deadly]);
        let output = command.env("KILL_AT", step).output().unwrap();
        assert_eq!(output.status.signal(), Some(9), "{output:?}");
    }
    let report = answered(&mut bed.activate(&["--exec", "local"]));
    assert_eq!(report["activated"], false);
    let [admin, kmsuser] = ["kmsfs-kmsfs/admin-password", "kmsfs-kmsfs/kmsuser-password"]
        .map(|name| bed.ground.read(name));
    assert_eq!(bed.users(), pairs(&admin, &kmsuser));
}

#[test]
fn failures_say_what_to_do() {
    let ground = Ground::new();
    ground.young_cluster();
    for arguments in [&["activate"][..], &["activate", "--exec", "local"]] {
        let error = refused(&mut ground.provision(arguments));
        assert!(error.contains("UNINITIALIZED; initialize it first"), "{error}");
    }
    let bed = Bed::new();
    let mut far = bed.activate(&["--exec", "local"]);
    let error = refused(far.env("KMSFS_FAKE_CLI_FAIL", "unable to connect to any HSM"));
    assert!(
        error.contains("error_code 1); the host needs the cluster's security group"),
        "{error}"
    );
    let error = refused(&mut bed.activate(&["--exec", "local", "--cloudhsm-cli", "/nonexistent"]));
    assert!(error.contains("is its path right?"), "{error}");
    let anchor = bed.ground.path("kmsfs-kmsfs/customerCA.crt");
    let own = fs::read(&anchor).unwrap();
    fs::write(&anchor, bed.ground.fake.hardware_roots().0).unwrap();
    let error = refused(&mut bed.activate(&["--exec", "local"]));
    assert!(error.contains("was not signed by the trust anchor"), "{error}");
    fs::write(&anchor, own).unwrap();
    // Somebody else has activated it.
    bed.ground.fake.activate(&bed.cluster, "not-ours").unwrap();
    let admin = bed.ground.path("kmsfs-kmsfs/admin-password");
    fs::write(&admin, "sesame-sesame").unwrap();
    fs::set_permissions(&admin, fs::Permissions::from_mode(0o600)).unwrap();
    let error = refused(&mut bed.activate(&["--exec", "local"]));
    assert!(error.contains("admin-password is not the administrator's"), "{error}");
    assert!(!error.contains("sesame"), "{error}");
    fs::write(&admin, "not-ours\n").unwrap();
    said(&mut bed.activate(&["--exec", "local"]));
    let kmsuser = bed.ground.read("kmsfs-kmsfs/kmsuser-password");
    assert_eq!(bed.users(), pairs("not-ours", &kmsuser));
}
