//! What was asked for and is not shown yet is not asked for again.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::{Command, Stdio};

use super::aws::{Effect, Fault, Rule};
use super::ground::{Ground, refused, text, until};
use super::key::{self, Bed};

/// Marks in the deployment's directory.
fn marks(ground: &Ground) -> Vec<String> {
    let entries = fs::read_dir(ground.path("kmsfs-kmsfs")).into_iter().flatten();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("making-")).collect()
}

fn cluster(ground: &Ground, hsms: &str) -> Command {
    let subnets = ["subnet-0a000000000000001", "subnet-0a000000000000002"];
    let [one, two] = subnets;
    ground.provision(&["cluster", "--subnet", one, "--subnet", two, "--hsms", hsms])
}

#[test]
fn killed_before_aws_shows_it_nothing_is_made_twice() {
    let ground = Ground::new();
    for (operation, hsms) in [("CreateCluster", 1), ("CreateHsm", 2)] {
        ground.fake.lag_clusters(true);
        let made = ground.fake.calls_ok(operation);
        let mut command = cluster(&ground, &hsms.to_string());
        let mut killed = command.stderr(Stdio::null()).spawn().unwrap();
        until(operation, || ground.fake.calls_ok(operation) > made);
        killed.kill().unwrap();
        killed.wait().unwrap();
        assert_eq!(marks(&ground).len(), 1, "{operation}");
        // The next run looks for it until it shows.
        let mut again = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(again.stderr.take().unwrap()).lines().map(Result::unwrap);
        assert!(lines.any(|line| line.contains("asked for by an earlier run")), "{operation}");
        ground.fake.lag_clusters(false);
        let rest: Vec<String> = lines.collect();
        assert!(again.wait().unwrap().success(), "{rest:?}");
        let counts = ground.fake.counts();
        assert_eq!((counts.clusters, counts.hsms), (1, hsms), "{operation}: {rest:?}");
        assert_eq!(marks(&ground), [""; 0], "{operation}");
    }
}

#[test]
fn what_never_came_is_asked_for_again_and_what_was_refused_leaves_no_mark() {
    let ground = Ground::new();
    let hasty = || {
        let mut command = cluster(&ground, "1");
        command.args(["--settling", "100ms"]);
        command
    };
    for operation in ["CreateCluster", "CreateHsm"] {
        let no = Fault::client("CloudHsmInvalidRequestException", "no");
        ground.fake.fault(Rule::new(Effect::Error(no)).on(operation).times(1));
        refused(&mut hasty());
        assert_eq!(marks(&ground), [""; 0], "{operation}");
        // Unheard, twice: nobody knows. Then it was not there for as long as that takes.
        ground.fake.fault(Rule::new(Effect::internal()).on(operation).times(2));
        refused(&mut hasty());
        assert_eq!(marks(&ground).len(), 1, "{operation}");
    }
    let output = hasty().output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let counts = ground.fake.counts();
    assert_eq!((counts.clusters, counts.hsms, marks(&ground).len()), (1, 1, 0));
}

#[test]
fn where_a_zone_has_no_hsm_to_give_the_next_one_is_asked() {
    let ground = Ground::new();
    let none = || Effect::Error(Fault::client("CloudHsmServiceException", "no capacity"));
    ground.fake.fault(Rule::new(none()).on("CreateHsm").times(1));
    let output = cluster(&ground, "1").output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("in us-east-1b"), "{}", text(&output));
    assert_eq!((ground.fake.calls("CreateHsm"), ground.fake.counts().hsms), (2, 1));
    // Nowhere: it is said, and nothing is left to be looked for.
    ground.fake.fault(Rule::new(none()).on("CreateHsm"));
    assert!(refused(&mut cluster(&ground, "2")).contains("no HSM to give in this zone"));
    assert_eq!((ground.fake.counts().hsms, marks(&ground)), (1, vec![]));
}

#[test]
fn a_key_whose_mark_can_be_left_nowhere_is_not_begun() {
    let bed = Bed::new();
    let dir = bed.state.path().join("kmsfs");
    let refused = |words: &str| {
        let said = key::refused(&mut bed.key(&[]), 1, words);
        assert!(said.contains("XDG_STATE_HOME") && said.contains("nothing was made"), "{said}");
        assert!(!said.contains("--dir") && !said.contains("certificates"), "{said}");
        // Before anything was shown and asked.
        assert!(!said.contains("to be made"), "{said}");
    };
    fs::write(&dir, "").unwrap();
    refused("cannot be made");
    fs::remove_file(&dir).unwrap();
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    refused("can be changed by others (mode 0777)");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    if rustix::process::geteuid().is_root() {
        chown(&dir, Some(1000), None).unwrap();
        refused("belongs to user 1000");
        chown(&dir, Some(0), None).unwrap();
    } else {
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o500)).unwrap();
        refused("cannot be written to");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    }
    assert_eq!(bed.fake.calls("CreateKey"), 0);
    key::made(&mut bed.key(&[]));
    // Where there is nothing to be made, nothing has to be left.
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    key::made(&mut bed.key(&[]));
}
