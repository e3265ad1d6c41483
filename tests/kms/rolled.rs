//! A descriptor that was rolled back gets no successor: the recipients it still names would be taken for
//! the volume's.

use std::fs;
use std::process::Command;

use serde_json::Value;

use super::aws::Origin;
use super::bed::{Bed, ctl, refused, said};

/// A volume whose descriptor is the one from before a recipient was removed.
fn bed() -> (Bed, String) {
    let mut bed = Bed::with(&[]);
    bed.mount("");
    bed.make_files("a", 3);
    bed.unmount();
    let public = said(ctl(&["key", "generate", "--out"]).arg(bed.path("identity")));
    let public = public.trim().to_owned();
    said(bed.ctl("key add", &[&public]));
    let old = fs::read(bed.source().join("kmsfs.volume")).unwrap();
    said(bed.ctl("key remove", &[&public]));
    fs::write(bed.source().join("kmsfs.volume"), old).unwrap();
    let named = public.strip_prefix("x25519:").unwrap().to_owned();
    (bed, named)
}

fn descriptor(bed: &Bed) -> Vec<u8> {
    fs::read(bed.source().join("kmsfs.volume")).unwrap()
}

fn require_refused(bed: &Bed, removed: &str, command: &mut Command) {
    let before = descriptor(bed);
    // Nor the second time.
    for _ in 0..2 {
        let told = refused(command, 17);
        assert!(told.contains("rolled back") && told.contains("nothing was changed"), "{told}");
        assert!(descriptor(bed) == before, "{told}");
    }
    let status = said(ctl(&["key", "status", "--json"]).arg(bed.source()));
    let status: Value = serde_json::from_str(&status).unwrap();
    let keys = status["keys"].as_array().unwrap();
    let its = keys.iter().find(|key| key["key"].as_str().unwrap().contains(removed));
    assert_eq!(its.map_or(0, |key| key["files"].as_u64().unwrap()), 0, "{status}");
}

#[test]
fn an_older_descriptor_is_not_made_the_newest() {
    let (mut bed, removed) = bed();
    let second = format!("aws-kms:{}", bed.fake.create_key(Origin::CloudHsm));
    let list = bed.path("list").display().to_string();
    for mounted in [false, true] {
        if mounted {
            bed.mount("");
        }
        let to = ["--list", &list, "--to", &second];
        require_refused(&bed, &removed, bed.ctl("key rewrap", &to));
        let renew = ["--list", &list, "--renew", &bed.key];
        require_refused(&bed, &removed, bed.ctl("key rewrap", &renew));
        let settling = ["--list", &list, "--settling", "2s"];
        let keys = bed.fake.calls_ok("CreateKey");
        require_refused(&bed, &removed, bed.ctl("key rotate", &settling));
        let only_make = [&settling[..], &["--only-make"]].concat();
        require_refused(&bed, &removed, bed.ctl("key rotate", &only_make));
        assert_eq!(bed.fake.calls_ok("CreateKey"), keys);
    }
    bed.unmount();
    require_refused(&bed, &removed, bed.ctl("key add", &[&second]));
    let public = format!("x25519:{removed}");
    require_refused(&bed, &removed, bed.ctl("key remove", &[&public]));
}
