//! From a cluster with an HSM to an initialized one.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use super::aws::{Effect, Fault, Rule, Spoil, pki};
use super::ground::{Ground, answered, refused, said, text, until, without_terminal};

#[test]
fn an_own_ca_claims_the_cluster() {
    let ground = Ground::new();
    let none = refused(&mut ground.certificate(&[]));
    assert!(none.contains("no cluster in us-east-1 has the tag kmsfs:deployment=kmsfs"), "{none}");
    let id = ground.empty_cluster();
    let early = refused(&mut ground.certificate(&[]));
    assert!(early.contains("create its first HSM first"), "{early}");
    ground.add_hsm(&id);
    let terminal = refused(&mut without_terminal(&ground.provision(&["certificate"])));
    assert!(terminal.contains("--ca-passphrase-file FILE"), "{terminal}");
    let told = said(&mut ground.certificate(&[]));
    assert!(told.contains("not checked: no root certificate was given"), "{told}");
    assert!(told.contains("customerCA.key is needed no more"), "{told}");
    assert_eq!(ground.state(&id), "INITIALIZED");
    assert_eq!(ground.shown(&id)["TrustAnchor"], ground.read("kmsfs-kmsfs/customerCA.crt"));
    for (name, mode) in [
        ("customerCA.key", 0o600),
        ("customerCA.crt", 0o644),
        ("cluster.csr", 0o644),
        ("cluster.crt", 0o644),
    ] {
        let meta = ground.path("kmsfs-kmsfs").join(name).metadata().unwrap();
        assert_eq!(meta.permissions().mode() & 0o7777, mode, "{name}");
    }
    let again = answered(&mut ground.certificate(&["--cluster", &id]));
    assert_eq!(again["was_initialized"], true);
    ground.write("kmsfs-kmsfs/customerCA.crt", &ground.fake.hardware_roots().0);
    let wrong = refused(&mut ground.certificate(&[]));
    assert!(wrong.contains("customerCA.crt is not what it was initialized with"), "{wrong}");
    let late = refused(&mut ground.certificate(&["--csr-out", "late.csr"]));
    assert!(late.contains("initialized already"), "{late}");
}

#[test]
fn openssl_reads_what_is_made() {
    let ground = Ground::new();
    ground.young_cluster();
    said(&mut ground.certificate(&[]));
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl")
            .args(arguments)
            .current_dir(ground.path("kmsfs-kmsfs"))
            .output();
        // A machine without it has nothing to compare with.
        output.ok().map(|output| {
            assert!(output.status.success(), "{arguments:?}: {output:?}");
            String::from_utf8(output.stdout).unwrap()
        })
    };
    let key = ["pkey", "-in", "customerCA.key", "-passin", "file:../passphrase", "-noout", "-text"];
    if let Some(text) = openssl(&key) {
        assert!(text.contains("4096 bit"), "{text}");
        let verified =
            openssl(&["verify", "-x509_strict", "-CAfile", "customerCA.crt", "customerCA.crt"]);
        assert!(verified.unwrap().contains("OK"));
        assert!(
            openssl(&["verify", "-CAfile", "customerCA.crt", "cluster.crt"])
                .unwrap()
                .contains("OK")
        );
        let subject = |kind, file| openssl(&[kind, "-in", file, "-noout", "-subject"]).unwrap();
        assert_eq!(subject("x509", "cluster.crt"), subject("req", "cluster.csr"));
    }
}

#[test]
fn another_ca_may_sign() {
    let ground = Ground::new();
    let id = ground.young_cluster();
    let told = said(&mut ground.certificate(&["--csr-out", "request.csr"]));
    assert!(told.contains("--signed-cert FILE and --trust-anchor FILE"), "{told}");
    said(&mut ground.certificate(&["--csr-out", "request.csr"]));
    let csr = ground.read("request.csr");
    assert_eq!(ground.shown(&id)["Certificates"]["ClusterCsr"], csr);
    let (anchor, signed) = pki::sign_as_customer(&csr);
    let (stranger, _) = ground.fake.hardware_roots();
    let anchor = ground.write("root.crt", &anchor);
    let signed = ground.write("signed.crt", &signed);
    let stranger = ground.write("stranger.crt", &stranger);
    let claim = |signed: &str, anchor: &str| {
        ground.certificate(&["--signed-cert", signed, "--trust-anchor", anchor])
    };
    let error = refused(&mut claim(&signed, &stranger));
    assert!(error.contains("the signed certificate was not signed by the trust anchor"), "{error}");
    let error = refused(&mut claim(&anchor, &anchor));
    assert!(error.contains("is for another key than the cluster's signing request"), "{error}");
    let error = refused(&mut claim("missing.crt", &anchor));
    assert!(error.contains("does not exist"), "{error}");
    assert_eq!(ground.state(&id), "UNINITIALIZED");
    assert!(!ground.path("kmsfs-kmsfs").exists());
    let told = said(&mut claim(&signed, &anchor));
    assert!(!told.contains("customerCA.key"), "{told}");
    assert_eq!(ground.state(&id), "INITIALIZED");
    assert_eq!(ground.read("kmsfs-kmsfs/customerCA.crt"), ground.read("root.crt"));
}

#[test]
fn spoilt_hardware_is_refused_in_time() {
    let ground = Ground::new();
    let id = ground.young_cluster();
    let (aws, manufacturer) = ground.fake.hardware_roots();
    let (aws, manufacturer) =
        (ground.write("aws.crt", &aws), ground.write("maker.crt", &manufacturer));
    let roots = ["--aws-hardware-root", &aws, "--manufacturer-root", &manufacturer];
    for (spoil, why) in [
        (Spoil::Aws, "AWS's certificate of the hardware was not signed by AWS's root"),
        (Spoil::Manufacturer, "was not signed by the manufacturer's root"),
        (Spoil::Hsm, "the HSM's certificate was not signed by"),
        (Spoil::Key, "the HSM's certificate is for another key"),
    ] {
        ground.fake.spoil_certificates(Some(spoil));
        let error = refused(&mut ground.certificate(&roots));
        assert!(error.contains(why) && error.contains("nothing was initialized"), "{error}");
        let error =
            refused(&mut ground.certificate(&[&roots[..], &["--csr-out", "a.csr"]].concat()));
        assert!(error.contains(why) && !ground.path("a.csr").exists(), "{error}");
        assert_eq!(ground.state(&id), "UNINITIALIZED");
    }
    assert!(!ground.path("kmsfs-kmsfs").exists());
    ground.fake.spoil_certificates(None);
    let report = answered(&mut ground.certificate(&roots));
    assert_eq!(report["hardware_checked"]["aws"], true);
    assert_eq!(report["hardware_checked"]["manufacturer"], true);
    assert_eq!(ground.state(&id), "INITIALIZED");
    // It is known later, too.
    let told = said(&mut ground.certificate(&[]));
    assert!(told.contains("checked: AWS and the manufacturer vouch for it"), "{told}");
    assert_eq!(proof_in_plan(&ground), "exists");
}

#[test]
fn hardware_is_checked_before_another_ca_signs() {
    let ground = Ground::new();
    let id = ground.young_cluster();
    let (aws, _) = ground.fake.hardware_roots();
    let aws = ground.write("aws.crt", &aws);
    let report = answered(&mut ground.certificate(&["--csr-out", "a.csr"]));
    assert_eq!(report["hardware_checked"], json!({ "aws": false, "manufacturer": false }));
    let roots = ["--csr-out", "a.csr", "--aws-hardware-root", &aws];
    let told = said(&mut ground.certificate(&roots));
    assert!(told.contains("AWS vouches for it; not checked against the manufacturer's"), "{told}");
    // A file with the whole chain; the root's certificate in it is not the cluster's.
    let (anchor, signed) = pki::sign_as_customer(&ground.read("a.csr"));
    let chain = ground.write("chain.crt", &format!("{anchor}{signed}"));
    let anchor = ground.write("root.crt", &anchor);
    let claim = ["--signed-cert", &chain, "--trust-anchor", &anchor];
    for was_initialized in [false, true] {
        let report = answered(&mut ground.certificate(&claim));
        assert_eq!(report["was_initialized"], was_initialized);
        assert_eq!(report["hardware_checked"], json!({ "aws": true, "manufacturer": false }));
    }
    assert_eq!(ground.state(&id), "INITIALIZED");
    assert_eq!(ground.read("kmsfs-kmsfs/cluster.crt").trim(), signed.trim());
    // One root of two proves nothing.
    assert_eq!(proof_in_plan(&ground), "unknown");
}

/// What the plan says of the hardware.
fn proof_in_plan(ground: &Ground) -> String {
    let plan = answered(&mut ground.provision(&["plan"]));
    let steps = plan["steps"].as_array().unwrap();
    let step = steps.iter().find(|step| step["what"] == "proof that the HSM is a genuine one");
    step.unwrap()["state"].as_str().unwrap().to_owned()
}

#[test]
fn lost_answers_and_killed_programs_do_not_matter() {
    let ground = Ground::new();
    let id = ground.young_cluster();
    ground.fake.fault(Rule::new(Effect::Drop).on("InitializeCluster").times(1));
    said(&mut ground.certificate(&[]));
    assert_eq!(ground.state(&id), "INITIALIZED");

    let ground = Ground::new();
    let id = ground.young_cluster();
    ground.fake.fault(Rule::new(Effect::internal()).on("InitializeCluster").times(2));
    ground.fake.set_cluster_times(Duration::from_millis(1500), Duration::ZERO);
    let mut killed = ground.certificate(&[]).spawn().unwrap();
    until("the claim", || ground.state(&id) == "INITIALIZE_IN_PROGRESS");
    killed.kill().unwrap();
    killed.wait().unwrap();
    said(&mut ground.certificate(&[]));
    assert_eq!(ground.state(&id), "INITIALIZED");
}

#[test]
fn only_the_one_cluster_is_claimed() {
    let ground = Ground::new();
    let id = ground.empty_cluster();
    ground.fake.set_cluster_state(&id, "CREATE_IN_PROGRESS");
    let early = refused(&mut ground.certificate(&[]));
    assert!(early.contains("create its first HSM first"), "{early}");
    ground.fake.set_cluster_state(&id, "UNINITIALIZED");
    ground.add_hsm(&id);
    let other = ground.young_cluster();
    for command in ["certificate", "activate"] {
        let two = refused(&mut ground.provision(&[command]));
        assert!(two.contains(&id) && two.contains(&other) && two.contains("--cluster"), "{two}");
    }
    // One that goes does not count beside one that stays.
    ground.fake.set_cluster_state(&other, "DELETE_IN_PROGRESS");
    let report = answered(&mut ground.certificate(&["--dir", "elsewhere"]));
    assert_eq!(report["cluster"], id[..]);
    assert_eq!(report["trust_anchor"], "elsewhere/customerCA.crt");
    let error = refused(&mut ground.certificate(&["--cluster", &other]));
    assert!(error.contains("DELETE_IN_PROGRESS"), "{error}");
}

#[test]
fn a_claim_that_is_dropped_ends_the_wait() {
    let ground = Ground::new();
    let id = ground.young_cluster();
    // Long enough that it falls back before it is through.
    ground.fake.set_cluster_times(Duration::from_secs(3600), Duration::ZERO);
    let mut command = ground.certificate(&["--settling", "300ms"]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    until("the claim", || ground.state(&id) == "INITIALIZE_IN_PROGRESS");
    ground.fake.set_cluster_state(&id, "UNINITIALIZED");
    let output = child.wait_with_output().unwrap();
    let error = text(&output);
    assert!(!output.status.success(), "{error}");
    assert!(error.contains("CloudHSM took the certificates, and yet"), "{error}");
    // It is sent again, not waited for.
    ground.fake.set_cluster_times(Duration::ZERO, Duration::ZERO);
    let report = answered(&mut ground.certificate(&[]));
    assert_eq!(
        (&report["was_initialized"], ground.state(&id)),
        (&false.into(), "INITIALIZED".into())
    );
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Every step that believes what lies in the directory.
fn all_refuse(ground: &Ground, words: &[&str]) {
    let steps: [&[&str]; 3] =
        [&["certificate"], &["activate", "--exec", "local"], &["key-store", "--cluster", "c"]];
    for step in steps {
        let error = refused(&mut ground.provision(step));
        words.iter().for_each(|word| assert!(error.contains(word), "{step:?} {word}: {error}"));
    }
}

#[test]
fn what_others_could_have_put_there_is_not_believed() {
    let ground = Ground::new();
    let id = ground.young_cluster();
    let (csr, dir) = (ground.shown(&id)["Certificates"]["ClusterCsr"].clone(), "kmsfs-kmsfs");
    let (anchor, signed) = pki::sign_as_stranger(csr.as_str().unwrap());
    let dir = ground.path(dir);
    fs::create_dir(&dir).unwrap();
    ground.write("kmsfs-kmsfs/customerCA.crt", &anchor);
    ground.write("kmsfs-kmsfs/cluster.crt", &signed);
    for mode in [0o770, 0o707, 0o1777] {
        set_mode(&dir, mode);
        all_refuse(&ground, &["directory kmsfs-kmsfs", "chmod go-w", "--dir"]);
    }
    set_mode(&dir, 0o755);
    let file = dir.join("customerCA.crt");
    set_mode(&file, 0o664);
    let error = refused(&mut ground.certificate(&[]));
    assert!(
        error.contains("kmsfs-kmsfs/customerCA.crt") && error.contains("chmod go-w"),
        "{error}"
    );
    set_mode(&file, 0o644);
    if rustix::process::geteuid().is_root() {
        chown(&file, Some(65534), None).unwrap();
        let error = refused(&mut ground.certificate(&[]));
        assert!(error.contains("customerCA.crt belongs to user 65534"), "{error}");
        chown(&dir, Some(65534), None).unwrap();
        all_refuse(&ground, &["directory kmsfs-kmsfs", "belongs to user 65534", "chown", "--dir"]);
    }
    assert_eq!(ground.state(&id), "UNINITIALIZED");
}

#[test]
fn a_certificate_that_cloudhsm_refuses_is_not_kept() {
    let ground = Ground::new();
    let id = ground.young_cluster();
    said(&mut ground.certificate(&["--csr-out", "request.csr"]));
    let csr = ground.read("request.csr");
    let write = |name: &str, (anchor, signed): (String, String)| {
        [("signed", signed), ("anchor", anchor)]
            .map(|(kind, text)| ground.write(&format!("{name}.{kind}"), &text))
    };
    let bad = write("bad", pki::sign_as_stranger(&csr));
    let good = write("good", pki::sign_as_customer(&csr));
    let claim = |[signed, anchor]: &[String; 2]| {
        ground.certificate(&["--signed-cert", signed, "--trust-anchor", anchor])
    };
    let invalid =
        Fault { status: 400, code: "CloudHsmInvalidRequestException".into(), message: "no".into() };
    ground.fake.fault(Rule::new(Effect::Error(invalid)).on("InitializeCluster").times(1));
    refused(&mut claim(&bad));
    assert_eq!(ground.state(&id), "UNINITIALIZED");
    assert!(!ground.path("kmsfs-kmsfs/customerCA.crt").exists());
    // Left by somebody who thought otherwise.
    fs::copy(&bad[1], ground.path("kmsfs-kmsfs/customerCA.crt")).unwrap();
    // Killed between the claim and the files.
    ground.fake.set_cluster_times(Duration::from_millis(1500), Duration::ZERO);
    let mut killed = claim(&good).spawn().unwrap();
    until("the claim", || ground.state(&id) == "INITIALIZE_IN_PROGRESS");
    killed.kill().unwrap();
    killed.wait().unwrap();
    let error = refused(&mut claim(&bad));
    assert!(error.contains("initialized with another certificate than --signed-cert"), "{error}");
    said(&mut claim(&good));
    assert_eq!(ground.read("kmsfs-kmsfs/customerCA.crt"), ground.read("good.anchor"));
    assert_eq!(ground.read("kmsfs-kmsfs/cluster.crt"), ground.read("good.signed"));
    assert_eq!(ground.shown(&id)["TrustAnchor"], ground.read("good.anchor"));
}
