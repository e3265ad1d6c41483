//! Journals that are damaged, foreign or out of place, and files that are not where they were: what
//! is applied is right, and what is not is said.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use kmsfs::fs::Access;

use crate::crash::*;
use crate::support::*;

const BLOCK: usize = 4096;

/// Where each record begins, and how long the journal is before them.
fn records(journal: &Path) -> Vec<usize> {
    let bytes = fs::read(journal).unwrap();
    (BLOCK..bytes.len()).step_by(BLOCK).filter(|at| &bytes[*at..*at + 4] == b"KJR1").collect()
}

/// Three fsynced changes of one file, `AAAAA`, `BBBBB` and `CCCCC` at different places, and one of
/// another before them.
fn one_file() -> Crashed {
    let before = |at: &Path| {
        put(&at.join("file"), 0, &b".".repeat(20_000));
        put(&at.join("other"), 0, b"before");
    };
    Crashed::after(before, |at| {
        put(&at.join("file"), 0, b"AAAAA");
        put(&at.join("file"), 9000, b"BBBBB");
        put(&at.join("file"), 18_000, b"CCCCC");
    })
}

/// Which of the three changes the file shows.
fn changes(crashed: &Crashed) -> String {
    let text = crashed.cat("file");
    assert_eq!(text.len(), 20_000);
    text.chars().filter(|c| *c != '.').step_by(5).collect()
}

/// Looks and recovers; both must agree. Returns what recover says as JSON.
#[track_caller]
fn recovered(crashed: &Crashed, shows: &str) -> serde_json::Value {
    assert_eq!(changes(crashed), shows, "before recovery");
    crashed.sound();
    let facts = ctl!("recover", crashed.dir(), "--json").json();
    assert_eq!(changes(crashed), shows, "after recovery");
    crashed.sound();
    facts
}

/// Nothing of the journal is used, which is said, and it stays where it is.
#[track_caller]
fn refused(crashed: &Crashed, says: &str) {
    let journal = crashed.journal();
    let name = journal.file_name().unwrap().to_str().unwrap();
    let bytes = fs::read(&journal).unwrap();
    let report = ctl!("verify", crashed.dir(), "--json").json();
    let told = strings(&report["journal"]).join("; ");
    assert!(told.contains(says) && told.contains(name) && told.contains("not used"), "{told}");
    assert_eq!(report["in_journal"], 0);
    let ran = ctl!("recover", crashed.dir());
    assert!(ran.out.contains(says) && ran.out.contains("not used"), "{}", ran.out);
    let facts = ctl!("recover", crashed.dir(), "--json").json();
    let refused = facts["refused"].as_array().unwrap();
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0]["journal"], name);
    assert!(refused[0]["reason"].as_str().unwrap().contains(says), "{refused:?}");
    assert_eq!(facts["recovered"], serde_json::json!([]));
    // Left for whoever can say what it is; the volume can be used.
    let after = crashed.scratch.open(Access::ReadWrite);
    after.shutdown().unwrap();
    drop(after);
    assert_eq!(fs::read(&journal).unwrap(), bytes);
    crashed.sound();
}

/// A refusal or damage is no success for a script.
#[test]
fn recover_fails_when_a_journal_was_not_used() {
    let crashed = one_file();
    flip(&crashed.journal(), 20);
    ctl!("recover", crashed.dir()).refused(17, &["could not be used as a whole"]);
    fs::remove_file(crashed.journal()).unwrap();
    ctl!("recover", crashed.dir()).ok();
}

#[test]
fn a_bit_flipped_in_the_head_refuses_the_journal() {
    // In its version, its volume id, its epoch and its MAC.
    for (offset, says) in
        [(8, "version"), (20, "another volume"), (35, "authentication"), (4090, "authentication")]
    {
        let crashed = one_file();
        flip(&crashed.journal(), offset);
        refused(&crashed, says);
        assert_eq!(changes(&crashed), "");
    }
}

#[test]
fn the_journal_of_another_volume_is_refused() {
    let crashed = one_file();
    let other = one_file();
    fs::remove_file(crashed.journal()).unwrap();
    let foreign = other.journal();
    fs::copy(&foreign, crashed.dir().join(foreign.file_name().unwrap())).unwrap();
    refused(&crashed, "another volume");
    assert_eq!(changes(&crashed), "");
}

#[test]
fn a_foreign_journal_beside_ours_does_not_keep_ours_from_its_work() {
    let crashed = one_file();
    let other = one_file();
    let foreign = other.journal();
    fs::copy(&foreign, crashed.dir().join(foreign.file_name().unwrap())).unwrap();
    let facts = recovered(&crashed, "ABC");
    assert_eq!(facts["refused"].as_array().unwrap().len(), 1);
    assert_eq!(crashed.journal().file_name(), foreign.file_name());
}

#[test]
fn a_record_with_a_flipped_bit_ends_what_is_applied() {
    for (at, shows, damaged) in [(0, "", true), (1, "A", true), (2, "AB", false)] {
        let crashed = one_file();
        let journal = crashed.journal();
        let all = records(&journal);
        assert_eq!(all.len(), 3, "one record for each fsync");
        // Anywhere in it: here in the header image.
        flip(&journal, all[at] + 200);
        let told = strings(&ctl!("verify", crashed.dir(), "--json").json()["journal"]).join("; ");
        assert_eq!(told.contains("it is damaged"), damaged, "record {at}: {told}");
        let facts = recovered(&crashed, shows);
        // Of the last nobody can tell whether it had been flushed.
        assert_eq!(facts["journal_damaged"], damaged, "record {at}");
        assert_eq!(facts["records"], at);
        assert!(crashed.journals().is_empty());
    }
}

#[test]
fn a_journal_that_ends_too_early_gives_what_it_has() {
    for (cut_at, shows) in [(3, "AB"), (2, "A"), (1, "")] {
        let crashed = one_file();
        let journal = crashed.journal();
        let mut all = records(&journal);
        all.insert(0, BLOCK);
        let file = OpenOptions::new().write(true).open(&journal).unwrap();
        // In the middle of a record.
        file.set_len(all[cut_at] as u64 + 300).unwrap();
        let facts = recovered(&crashed, shows);
        assert_eq!(facts["records"], cut_at - 1);
    }
}

#[test]
fn a_journal_without_a_byte_in_it_was_never_used() {
    for len in [0, 1000, BLOCK, 1 << 20] {
        let crashed = one_file();
        let journal = crashed.journal();
        let zeros = vec![0; len];
        fs::write(&journal, &zeros).unwrap();
        ctl!("verify", crashed.dir()).ok();
        assert_eq!(fs::read(&journal).unwrap(), zeros, "looking changes nothing");
        let facts = recovered(&crashed, "");
        assert_eq!(facts["refused"], serde_json::json!([]));
        assert!(crashed.journals().is_empty(), "{len}");
    }
    // But records without a head are no such thing.
    let crashed = one_file();
    OpenOptions::new()
        .write(true)
        .open(crashed.journal())
        .unwrap()
        .write_all_at(&[0; BLOCK], 0)
        .unwrap();
    refused(&crashed, "magic");
}

#[test]
fn what_is_no_file_is_no_journal() {
    for kind in ["directory", "link", "pipe"] {
        let crashed = one_file();
        let planted = crashed.dir().join("kmsfs.journal.planted");
        let target = crashed.scratch.secret_file("target", "precious");
        match kind {
            "directory" => fs::create_dir(&planted).unwrap(),
            "link" => std::os::unix::fs::symlink(&target, &planted).unwrap(),
            _ => assert!(Command::new("mkfifo").arg(&planted).status().unwrap().success()),
        }
        let facts = recovered(&crashed, "ABC");
        assert_eq!(facts["refused"][0]["journal"], "kmsfs.journal.planted", "{kind}");
        assert!(planted.symlink_metadata().is_ok(), "{kind} was removed");
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
    }
}

#[test]
fn a_journal_put_back_after_its_recovery_does_nothing() {
    let crashed = one_file();
    let journal = crashed.journal();
    let saved = fs::read(&journal).unwrap();
    crashed.go_on(|at| put(&at.join("file"), 4000, b"DDDDD"));
    let second = crashed.journal();
    fs::write(&journal, &saved).unwrap();
    assert_eq!(crashed.journals().len(), 2);
    assert_ne!(second, journal);
    let facts = recovered(&crashed, "ADBC");
    assert_eq!(facts["older"], serde_json::json!([]));
    // And again, alone.
    fs::write(&journal, &saved).unwrap();
    let facts = recovered(&crashed, "ADBC");
    assert_eq!(facts["recovered"], serde_json::json!([]));
}

// ---- files that are not where they were --------------------------------------------------------

/// A volume that was killed after `work` on `file`, whose first record says where it stood.
fn moved<T>(work: impl FnOnce(&Path) -> T) -> Crashed {
    let before = |at: &Path| {
        fs::create_dir(at.join("dir")).unwrap();
        put(&at.join("file"), 0, b"before........");
    };
    Crashed::after(before, |at| {
        put(&at.join("file"), 0, b"AFTER");
        work(at)
    })
}

/// The volume where it is, and as a copy with other inode numbers.
fn here_and_copied(crashed: &Crashed, check: impl Fn(&Crashed)) {
    let copy = Crashed { scratch: Scratch::new() };
    let copied = Command::new("cp").arg("-a").args([crashed.dir(), copy.dir()]).status().unwrap();
    assert!(copied.success());
    check(crashed);
    check(&copy);
}

#[test]
fn a_removed_file_stays_removed() {
    let crashed = moved(|at| fs::remove_file(at.join("file")).unwrap());
    here_and_copied(&crashed, |volume| {
        assert_eq!(volume.recover()["removed"], 1);
        assert!(!volume.dir().join("file").exists());
        volume.sound();
    });
}

#[test]
fn a_file_removed_while_open_stays_removed() {
    let crashed = moved(|at| {
        let held = OpenOptions::new().read(true).write(true).open(at.join("file")).unwrap();
        fs::remove_file(at.join("file")).unwrap();
        held.write_all_at(b"NOBODY", 0).unwrap();
        held.sync_all().unwrap();
        held
    });
    here_and_copied(&crashed, |volume| {
        let facts = volume.recover();
        assert_eq!((&facts["removed"], &facts["recovered"]), (&1.into(), &serde_json::json!([])));
        assert!(!volume.dir().join("file").exists());
        volume.sound();
    });
}

#[test]
fn a_file_made_anew_at_the_same_path_is_another() {
    let crashed = moved(|at| {
        fs::remove_file(at.join("file")).unwrap();
        put(&at.join("file"), 0, b"another");
    });
    here_and_copied(&crashed, |volume| {
        assert_eq!(volume.cat("file"), "another");
        volume.recover();
        assert_eq!(volume.cat("file"), "another");
        volume.sound();
    });
}

#[test]
fn a_file_replaced_by_another_is_gone() {
    let crashed = moved(|at| {
        put(&at.join("new"), 0, b"replacement");
        fs::rename(at.join("new"), at.join("file")).unwrap();
    });
    here_and_copied(&crashed, |volume| {
        assert_eq!(volume.cat("file"), "replacement");
        volume.recover();
        assert_eq!(volume.cat("file"), "replacement");
        volume.sound();
    });
}

/// Renamed, moved into a directory, in a directory that was renamed: found by what it is.
#[test]
fn a_file_that_moved_is_found() {
    type Move = fn(&Path);
    let moves: [(&str, Move); 4] = [
        ("renamed", |at| fs::rename(at.join("file"), at.join("renamed")).unwrap()),
        ("dir/file", |at| fs::rename(at.join("file"), at.join("dir/file")).unwrap()),
        ("moved/file", |at| {
            fs::rename(at.join("file"), at.join("dir/file")).unwrap();
            fs::rename(at.join("dir"), at.join("moved")).unwrap();
        }),
        ("second", |at| {
            fs::hard_link(at.join("file"), at.join("second")).unwrap();
            fs::remove_file(at.join("file")).unwrap();
            put(&at.join("file"), 0, b"another");
        }),
    ];
    for (path, act) in moves {
        here_and_copied(&moved(act), |volume| {
            assert_eq!(volume.cat(path), "AFTERe........", "{path}");
            let facts = volume.recover();
            assert_eq!(facts["removed"], 0, "{path}");
            assert_eq!(volume.cat(path), "AFTERe........", "{path}");
            volume.sound();
        });
    }
}

#[test]
fn every_link_shows_the_recovered_file() {
    let crashed = moved(|at| fs::hard_link(at.join("file"), at.join("dir/link")).unwrap());
    assert_eq!(crashed.cat("dir/link"), "AFTERe........");
    crashed.recover();
    assert_eq!(crashed.cat("file"), "AFTERe........");
    assert_eq!(crashed.cat("dir/link"), "AFTERe........");
    crashed.sound();
}

/// Files that nobody may read are recovered as well, and keep their modes.
#[test]
fn modes_do_not_matter_and_stay() {
    use std::os::unix::fs::PermissionsExt;
    let crashed = moved(|at| {
        File::open(at.join("file"))
            .unwrap()
            .set_permissions(fs::Permissions::from_mode(0o400))
            .unwrap();
    });
    crashed.recover();
    let mode = fs::metadata(crashed.dir().join("file")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o400);
    assert_eq!(crashed.cat("file"), "AFTERe........");
}

/// A copy went on on its own, and its file was put back: of the same age as the journal's records by
/// its generation, but not what they follow.
#[test]
fn a_file_of_another_history_is_left_alone() {
    let before = |at: &Path| put(&at.join("file"), 0, &b".".repeat(20_000));
    let crashed = Crashed::after(before, |_| {});
    crashed.recover();
    let fork = Crashed { scratch: Scratch::new() };
    let copied = Command::new("cp").arg("-a").args([crashed.dir(), fork.dir()]).status().unwrap();
    assert!(copied.success());
    crashed.go_on(|at| put(&at.join("file"), 0, b"AAAAA"));
    fork.go_on(|at| put(&at.join("file"), 9000, b"FORKS"));
    fork.recover();
    fs::copy(fork.dir().join("file"), crashed.dir().join("file")).unwrap();
    let facts = crashed.recover();
    crashed.sound();
    assert_eq!(strings(&facts["recovered"]), [""; 0]);
    assert_eq!(&crashed.cat("file")[9000..9005], "FORKS");
}
