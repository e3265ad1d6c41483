//! How often KMS is called: exact numbers.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Barrier;

use super::bed::{Bed, said};

fn shell(bed: &Bed, line: &str) -> String {
    said(Command::new("sh").arg("-ec").arg(format!("cd \"$0\"; {line}")).arg(bed.point()))
}

fn depth(bed: &Bed) -> u64 {
    bed.keys()["supply_depth"].as_u64().unwrap()
}

#[test]
fn a_mount_costs_one_unwrap_and_the_first_key_for_new_files() {
    let mut bed = Bed::new();
    bed.mount("");
    super::bed::until("the supply", || bed.keys()["supply_ready"] == 1);
    assert_eq!((bed.fake.calls("Decrypt"), bed.fake.calls("GenerateDataKey")), (1, 1));
    bed.unmount();
    bed.fake.reset_counters();
    bed.mount("ro");
    bed.unmount();
    assert_eq!((bed.fake.calls_total(), bed.fake.calls("Decrypt")), (1, 1));
}

#[test]
fn ten_thousand_files_share_data_keys() {
    const FILES: usize = 10_000;
    let mut bed = Bed::new();
    bed.mount("");
    bed.fake.reset_counters();
    bed.make_files("a", FILES);
    let (made, needed) = (bed.fake.calls("GenerateDataKey"), FILES.div_ceil(256) as u64);
    assert!(made <= needed + depth(&bed), "{made} keys for {needed}");
    assert_eq!((bed.fake.calls_total(), bed.fake.bad_contexts()), (made, 0));
    // Known from making them.
    bed.read_files("a", FILES);
    assert_eq!(bed.fake.calls("Decrypt"), 0);

    bed.remount("ro");
    bed.fake.reset_counters();
    bed.read_files("a", FILES);
    // One of the shared keys was begun at the mount before, another one was left over.
    let read = bed.fake.calls("Decrypt");
    assert!(read <= needed + 1, "{read} unwraps for {needed}");
    bed.read_files("a", FILES);
    assert_eq!(bed.fake.calls_total(), read, "reading once more asks for nothing");
}

#[test]
fn strict_volumes_have_a_key_for_each_file_and_ask_for_each_once() {
    const FILES: usize = 300;
    let mut bed = Bed::with(&["--files-per-data-key", "1"]);
    bed.mount("");
    bed.make_files("a", FILES);
    let made = bed.fake.calls("GenerateDataKey");
    assert!(made >= FILES as u64 && made <= FILES as u64 + depth(&bed), "{made}");
    bed.remount("ro");
    bed.fake.reset_counters();
    bed.read_files("a", FILES);
    bed.read_files("a", FILES);
    assert_eq!(bed.fake.calls("Decrypt"), FILES as u64);
    assert_eq!(bed.fake.calls_total(), FILES as u64);
}

#[test]
fn what_needs_no_content_needs_no_kms() {
    let mut bed = Bed::with(&["--files-per-data-key", "1"]);
    bed.mount("");
    fs::create_dir(bed.at("d")).unwrap();
    for i in 0..40 {
        fs::write(bed.at(format!("d/{i}")), vec![b'x'; i * 1000]).unwrap();
    }
    bed.remount("");
    super::bed::until("the supply", || bed.keys()["supply_ready"] == 1);
    bed.fake.reset_counters();
    shell(&bed, "ls -lR . > /dev/null; find . -size +3 > /dev/null; du -s . > /dev/null; stat d/7");
    for i in 0..20 {
        fs::rename(bed.at(format!("d/{i}")), bed.at(format!("d/renamed-{i}"))).unwrap();
    }
    fs::hard_link(bed.at("d/renamed-3"), bed.at("link")).unwrap();
    fs::set_permissions(bed.at("link"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(bed.at("d/30")).unwrap();
    fs::create_dir(bed.at("e")).unwrap();
    std::os::unix::fs::symlink("d/31", bed.at("s")).unwrap();
    bed.unmount();
    assert_eq!(bed.fake.calls_total(), 0);
}

#[test]
fn sixty_four_openers_of_a_cold_file_make_one_call() {
    let mut bed = Bed::with(&["--files-per-data-key", "1"]);
    bed.mount("");
    bed.make_files("a", 3);
    bed.remount("ro");
    bed.fake.set_latency(std::time::Duration::from_millis(100));
    bed.fake.reset_counters();
    let start = Barrier::new(64);
    std::thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                start.wait();
                assert_eq!(fs::read(bed.at("a-00001")).unwrap(), b"file 1");
            });
        }
    });
    assert_eq!(bed.fake.calls_total(), 1);
}

#[test]
fn files_that_do_not_come_into_being_cost_nothing() {
    let mut bed = Bed::with(&["--files-per-data-key", "1"]);
    bed.mount("");
    fs::write(bed.at("a"), b"there").unwrap();
    super::bed::until("the supply", || bed.keys()["supply_ready"].as_u64() >= Some(1));
    let made = bed.fake.calls("GenerateDataKey");
    for _ in 0..50 {
        // Opened, though it was to be made; made, though nothing was written.
        fs::File::options().append(true).create(true).open(bed.at("a")).unwrap();
        fs::File::create(bed.at("empty")).unwrap();
        fs::remove_file(bed.at("empty")).unwrap();
        assert!(fs::File::create(bed.at("a/b")).is_err());
    }
    bed.unmount();
    assert!(bed.fake.calls("GenerateDataKey") <= made + 2);
}

#[test]
fn a_directory_read_in_order_is_unwrapped_ahead() {
    const FILES: usize = 400;
    let mut bed = Bed::with(&["--files-per-data-key", "1"]);
    bed.mount("");
    bed.make_files("a", FILES);
    bed.remount("ro,kms-rate=100000");
    bed.fake.set_latency(std::time::Duration::from_millis(20));
    bed.fake.reset_counters();
    bed.read_files("a", FILES);
    assert_eq!(bed.fake.calls("Decrypt"), FILES as u64);
    assert!(bed.fake.max_in_flight() >= 8, "{} at once", bed.fake.max_in_flight());
    // Most were there before they were asked for.
    let hits = bed.keys()["cache_hits"].as_u64().unwrap();
    assert!(hits >= FILES as u64 / 2, "{hits} hits");
}

/// Commands that read a volume without a mount ask ahead, and for each key once.
#[test]
fn an_export_and_a_verification_do_not_wait_for_each_key_in_turn() {
    const FILES: usize = 200;
    let mut bed = Bed::with(&["--files-per-data-key", "1"]);
    bed.mount("");
    bed.make_files("a", FILES);
    bed.unmount();
    bed.fake.set_latency(std::time::Duration::from_millis(10));
    let out = bed.path("out").display().to_string();
    for (command, further) in [("export", vec![&*out]), ("verify", vec![])] {
        bed.fake.reset_counters();
        said(bed.ctl(command, &further));
        assert_eq!(bed.fake.calls("Decrypt"), 1 + FILES as u64, "{command}");
        assert_eq!(bed.fake.calls_total(), 1 + FILES as u64, "{command}");
        assert!(bed.fake.max_in_flight() >= 4, "{command}: {}", bed.fake.max_in_flight());
    }
    assert_eq!(fs::read_dir(out).unwrap().count(), FILES);
}

#[test]
fn a_second_recipient_costs_one_call_for_each_data_key() {
    const FILES: usize = 600;
    for (files_per_key, least, most) in [("1", 600, 600), ("256", 3, 5)] {
        let mut bed = Bed::with(&["--files-per-data-key", files_per_key]);
        bed.mount("");
        bed.make_files("a", FILES);
        bed.unmount();
        let second = bed.fake.create_key(super::aws::Origin::Kms);
        bed.fake.set_latency(std::time::Duration::from_millis(5));
        bed.fake.reset_counters();
        let arguments = [&format!("aws-kms:{second}"), "--kms-rate", "100000"];
        let out = said(bed.ctl("key add", &arguments));
        assert!(out.contains("600 of 600 file headers rewritten"), "{out}");
        // Those of the volume key besides: it is opened, wrapped, and opened again, to see that the new
        // descriptor opens and for the sweep.
        let (unwraps, wraps) = (bed.fake.calls("Decrypt"), bed.fake.calls("Encrypt"));
        let moved = bed.fake.calls("ReEncrypt");
        assert_eq!(bed.fake.calls_total(), unwraps + wraps + moved);
        assert_eq!((bed.fake.bad_contexts(), wraps, unwraps), (0, 1, 3));
        assert!((least..=most).contains(&moved), "{moved} calls");
        if files_per_key == "1" {
            // Many headers at a time.
            assert!(bed.fake.max_in_flight() >= 8, "{} at once", bed.fake.max_in_flight());
        }
    }
}
