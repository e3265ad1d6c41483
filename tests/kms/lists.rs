//! The list of rewrapped backing files, and what is not done yet.

use std::fs;

use serde_json::Value;

use super::aws::{Effect, Fault, Origin, Rule};
use super::bed::{Bed, ctl, refused, said, text};

fn bed(files: usize, init: &[&str]) -> (Bed, String) {
    let mut bed = Bed::with(init);
    let second = format!("aws-kms:{}", bed.fake.create_key(Origin::CloudHsm));
    bed.mount("");
    bed.make_files("a", files);
    bed.unmount();
    (bed, second)
}

#[test]
fn paths_with_a_newline_have_a_list_of_their_own() {
    let (mut bed, second) = bed(2, &["--names", "plain"]);
    bed.mount("");
    fs::write(bed.at("odd\nname"), "x").unwrap();
    bed.unmount();
    let list = bed.path("list");
    let arguments = ["--json", "--list", list.to_str().unwrap(), "--to", &second];
    let report: Value = serde_json::from_str(&said(bed.ctl("key rewrap", &arguments))).unwrap();
    assert_eq!(report["rewritten"], 3);
    let mut lines: Vec<_> = fs::read_to_string(&list).unwrap().lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["a-00000", "a-00001"]);
    let odd = report["odd_list"].as_str().unwrap();
    assert_eq!(odd, format!("{}.null", list.display()));
    assert_eq!(fs::read(odd).unwrap(), b"odd\nname\0");
    // One list has one ending.
    let told = refused(bed.ctl("key rewrap", &["--null", "--list", list.to_str().unwrap()]), 1);
    assert!(told.contains("ends its paths in another way"), "{told}");
    said(bed.ctl("key rewrap", &["--null", "--list", odd]));
    refused(bed.ctl("key rewrap", &["--list", odd]), 1);
}

#[test]
fn a_list_that_was_cut_off_is_gone_on_with() {
    let (bed, second) = bed(1, &["--names", "plain"]);
    let list = bed.path("list");
    fs::write(&list, "whole\nha").unwrap();
    said(bed.ctl("key rewrap", &["--list", list.to_str().unwrap(), "--to", &second]));
    assert_eq!(fs::read_to_string(&list).unwrap(), "whole\nha\na-00000\n");
}

#[test]
fn a_list_in_the_volume_itself_is_refused() {
    let (mut bed, second) = bed(1, &[]);
    let rewrap = |bed: &Bed, dir: &str| {
        let mut command = ctl(&["key", "rewrap", dir, "--to", &second]);
        command.args(["--kms-endpoint", &bed.fake.endpoint()]);
        command
    };
    let names = |bed: &Bed| fs::read_dir(bed.source()).unwrap().count();
    let before = names(&bed);
    let told = refused(rewrap(&bed, ".").current_dir(bed.source()), 1);
    assert!(told.contains("in the volume itself") && told.contains("--list"), "{told}");
    bed.mount("");
    let inside = bed.at("list");
    let mut command = rewrap(&bed, bed.source().to_str().unwrap());
    let told = refused(command.arg("--list").arg(&inside), 1);
    assert!(told.contains("in the volume itself"), "{told}");
    assert!(!inside.exists());
    bed.unmount();
    assert_eq!(names(&bed), before);
}

#[test]
fn what_a_key_store_had_no_time_for_is_not_damaged() {
    let (bed, second) = bed(12, &["--files-per-data-key", "1"]);
    let list = bed.path("list");
    let arguments =
        ["--json", "--list", list.to_str().unwrap(), "--to", &second, "--kms-deadline", "300ms"];
    // The volume key first.
    bed.fake.fault(Rule::new(Effect::Error(Fault::throttled())).on("ReEncrypt").after(6));
    let output = bed.ctl("key rewrap", &arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(18), "{}", text(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let (done, left) =
        (report["rewritten"].as_u64().unwrap(), report["unserved"].as_u64().unwrap());
    assert!(done > 0 && left > 0 && done + left == 12, "{report}");
    assert_eq!(report["problems"].as_array().unwrap().len(), 0, "{report}");
    assert!(report["unserved_why"].as_str().unwrap().contains("ThrottlingException"), "{report}");
    let told = text(&output);
    assert!(told.contains("not done yet; run the same command again"), "{told}");
    bed.fake.clear_faults();
    let report: Value = serde_json::from_str(&said(bed.ctl("key rewrap", &arguments))).unwrap();
    assert_eq!((&report["rewritten"], &report["unserved"]), (&left.into(), &0.into()));
}
