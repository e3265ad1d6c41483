//! What the next writable mount makes of new objects of which only a part had reached the disk: they
//! are whole, empty, under another name or gone, and nothing is left that `verify` calls damaged.

#[path = "support/volume.rs"]
#[allow(dead_code)]
mod volume;

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kmsfs::format::descriptor::NameMode;
use rustix::fs::FlockOperation;
use volume::{Bench, ROOT, Tree, errno, me};

/// A program that another test is just starting has our descriptors, and so our lock, until it runs.
fn wait_until_free(bench: &Bench) {
    let root = fs::File::open(bench.source()).unwrap();
    rustix::fs::flock(&root, FlockOperation::LockExclusive).unwrap();
    rustix::fs::flock(&root, FlockOperation::Unlock).unwrap();
}

fn open(bench: &Bench) -> Tree {
    wait_until_free(bench);
    bench.tree()
}

/// Runs `work` in a session that ends as with kill -9; what it wrote is in the backing.
fn crash<T>(bench: &Bench, work: impl FnOnce(&Tree) -> T) {
    work(&open(bench));
}

/// Mounts, puts right what can be, and unmounts. The volume was left unclean and now is not.
fn mend(bench: &Bench, look: impl FnOnce(&Tree)) {
    let tree = open(bench);
    assert!(tree.volume.was_unclean());
    tree.volume.mend_leftovers();
    look(&tree);
    tree.volume.shutdown().unwrap();
    assert!(!bench.source().join("kmsfs.session").exists(), "something was left undone");
}

/// What `kmsfsctl verify` calls damaged: path and reason.
fn damage(bench: &Bench) -> Vec<String> {
    wait_until_free(bench);
    let mut verify = Command::new(env!("CARGO_BIN_EXE_kmsfsctl"));
    let done = verify.arg("verify").arg(bench.source()).arg("--json").output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    let report: serde_json::Value = serde_json::from_str(&said)
        .unwrap_or_else(|e| panic!("{e}: {said} {}", String::from_utf8_lossy(&done.stderr)));
    let damaged = report["damaged"].as_array().unwrap();
    assert_eq!(done.status.success(), damaged.is_empty());
    damaged.iter().map(|d| format!("{}: {}", d["path"], d["reason"])).collect()
}

#[track_caller]
fn sound(bench: &Bench) {
    assert_eq!(damage(bench), [""; 0]);
}

/// Everything below the backing directory whose name satisfies `wanted`.
fn backing(top: &Path, wanted: &dyn Fn(&str) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![top.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if wanted(path.file_name().unwrap().to_str().unwrap()) {
                found.push(path.clone());
            }
            if path.symlink_metadata().unwrap().is_dir() {
                todo.push(path);
            }
        }
    }
    found
}

/// Backing files of user's files.
fn files(bench: &Bench) -> Vec<PathBuf> {
    let ours = |name: &str| name.starts_with("kmsfs.") && !name.starts_with("kmsfs.long.");
    let mut all = backing(&bench.source(), &|name| !ours(name) && !name.ends_with(".name"));
    all.retain(|path| path.symlink_metadata().unwrap().is_file());
    all
}

/// The names of these helpers reached the disk, their content did not.
fn lose(bench: &Bench, wanted: &dyn Fn(&str) -> bool) {
    let found = backing(&bench.source(), wanted);
    assert!(!found.is_empty());
    for path in found {
        OpenOptions::new().write(true).open(path).unwrap().set_len(0).unwrap();
    }
}

/// The header did not reach the disk, what follows it did.
fn lose_header(path: &Path) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    assert!(file.metadata().unwrap().len() > 4096);
    file.write_all_at(&[0; 4096], 0).unwrap();
}

/// Part of the content is not what was written.
fn tear(path: &Path) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 4100).unwrap();
    file.write_all_at(&[!byte[0]], 4100).unwrap();
}

fn long(text: &str) -> String {
    text.repeat(200)
}

/// The only name in a directory; it was given by us.
#[track_caller]
fn lost_name(tree: &Tree, path: &str) -> String {
    let names = tree.list(path);
    assert!(names.len() == 1 && names[0].starts_with("lost-name-"), "{names:?}");
    names[0].clone()
}

#[test]
fn a_file_that_lost_its_long_name_and_its_header_is_empty() {
    for how in [lose_header, tear] {
        let bench = Bench::new(NameMode::Encrypted);
        crash(&bench, |tree| tree.put(&long("x"), &[7; 9000]));
        lose(&bench, &|name| name.ends_with(".name"));
        how(&files(&bench)[0]);
        mend(&bench, |tree| assert_eq!(tree.get(&lost_name(tree, "")), b""));
        sound(&bench);
    }
}

#[test]
fn a_file_that_lost_only_its_long_name_keeps_its_content() {
    let bench = Bench::new(NameMode::Encrypted);
    crash(&bench, |tree| tree.put(&long("x"), &[7; 9000]));
    lose(&bench, &|name| name.ends_with(".name"));
    mend(&bench, |tree| assert_eq!(tree.get(&lost_name(tree, "")), [7; 9000]));
    sound(&bench);
}

#[test]
fn a_name_that_somebody_knows_is_lost_at_the_end_of_the_session() {
    let bench = Bench::new(NameMode::Encrypted);
    crash(&bench, |tree| tree.put(&long("x"), &[7; 9000]));
    lose(&bench, &|name| name.ends_with(".name"));
    let tree = open(&bench);
    assert_eq!(tree.get(&long("x")), [7; 9000]);
    tree.volume.mend_leftovers();
    assert_eq!(tree.get(&long("x")), [7; 9000]);
    tree.volume.shutdown().unwrap();
    drop(tree);
    assert!(!bench.source().join("kmsfs.session").exists());
    sound(&bench);
    let tree = open(&bench);
    assert_eq!(tree.get(&lost_name(&tree, "")), [7; 9000]);
}

/// The kernel fills up what it reads to the size it knows.
#[test]
fn a_size_that_was_told_before_the_file_was_emptied_is_taken_back() {
    let bench = Bench::new(NameMode::Encrypted);
    crash(&bench, |tree| tree.put("f", &[7; 9000]));
    tear(&files(&bench)[0]);
    let tree = open(&bench);
    let before = tree.attr("f");
    assert_eq!(before.size, 9000);
    tree.volume.mend_leftovers();
    assert_eq!(errno(tree.volume.open_file(me(), before.ino, libc::O_RDONLY)), libc::ESTALE);
    let after = tree.attr("f");
    assert_eq!(after.size, 0);
    assert_ne!(after.generation, before.generation);
    assert_eq!(tree.get("f"), b"");
}

#[test]
fn what_stands_below_a_directory_that_lost_its_long_name_is_looked_into() {
    let bench = Bench::new(NameMode::Encrypted);
    crash(&bench, |tree| {
        let (outer, inner) = (long("o"), long("i"));
        tree.mkdir(&outer);
        tree.mkdir(&format!("{outer}/{inner}"));
        tree.put(&format!("{outer}/{inner}/f"), &[7; 9000]);
    });
    lose(&bench, &|name| name.ends_with(".name"));
    lose_header(&files(&bench)[0]);
    mend(&bench, |tree| {
        let outer = lost_name(tree, "");
        let path = format!("{outer}/{}", lost_name(tree, &outer));
        assert_eq!(tree.list(&path), ["f"]);
        assert_eq!(tree.get(&format!("{path}/f")), b"");
    });
    sound(&bench);
}

#[test]
fn what_stands_in_a_directory_that_lost_its_id_is_looked_into() {
    let bench = Bench::new(NameMode::Encrypted);
    crash(&bench, |tree| {
        tree.mkdir("d");
        tree.put(&format!("d/{}", long("x")), &[7; 9000]);
    });
    let dir = files(&bench)[0].parent().unwrap().to_owned();
    lose(&bench, &|name| name.ends_with(".name"));
    OpenOptions::new().write(true).truncate(true).open(dir.join("kmsfs.dir")).unwrap();
    lose_header(&files(&bench)[0]);
    mend(&bench, |tree| {
        assert_eq!(tree.get(&format!("d/{}", lost_name(tree, "d"))), b"");
    });
    sound(&bench);
}

#[test]
fn a_symlink_that_lost_its_target_is_gone() {
    for name in ["s".to_owned(), long("s")] {
        let bench = Bench::new(NameMode::Encrypted);
        crash(&bench, |tree| {
            tree.volume.symlink(me(), ROOT, name.as_bytes(), &[b't'; 4000]).unwrap();
            tree.volume.symlink(me(), ROOT, b"whole", b"target").unwrap();
        });
        lose(&bench, &|name| name.starts_with("kmsfs.link."));
        assert_eq!(damage(&bench).len(), 1);
        mend(&bench, |tree| assert_eq!(tree.list(""), ["whole"]));
        sound(&bench);
        let names = backing(&bench.source(), &|name| name.ends_with(".name"));
        assert_eq!(names, [""; 0].map(PathBuf::from));
    }
}

#[test]
fn attributes_go_with_what_they_were_bound_to() {
    let bench = Bench::new(NameMode::Encrypted);
    crash(&bench, |tree| {
        let set = |ino| tree.volume.setxattr(me(), ino, b"user.a", b"value", 0).unwrap();
        set(tree.put("f", &[7; 9000]));
        set(tree.mkdir("empty"));
        set(tree.mkdir("d"));
        tree.mkdir("d/below");
    });
    lose_header(&files(&bench)[0]);
    let root = bench.source().join("kmsfs.dir");
    for path in backing(&bench.source(), &|name| name == "kmsfs.dir") {
        let below = path.parent().unwrap().parent().unwrap() != bench.source();
        if path != root && !below {
            OpenOptions::new().write(true).truncate(true).open(path).unwrap();
        }
    }
    assert!(damage(&bench).len() >= 3, "{:?}", damage(&bench));
    mend(&bench, |tree| {
        assert_eq!(tree.get("f"), b"");
        for path in ["f", "empty", "d"] {
            let ino = tree.ino(path);
            assert_eq!(tree.volume.listxattr(me(), ino).unwrap(), b"", "{path}");
            assert_eq!(errno(tree.volume.getxattr(ino, b"user.a")), libc::ENODATA);
            tree.volume.setxattr(me(), ino, b"user.a", b"another", 0).unwrap();
            assert_eq!(tree.volume.getxattr(ino, b"user.a").unwrap(), b"another");
        }
    });
    sound(&bench);
}

#[test]
fn what_is_made_before_all_is_mended_is_new_after_the_next_crash() {
    let bench = Bench::new(NameMode::Encrypted);
    crash(&bench, |tree| tree.put("first", &[1; 9000]));
    let first = files(&bench);
    // The clock of the backing ticks in between.
    std::thread::sleep(Duration::from_millis(50));
    crash(&bench, |tree| {
        tree.put("second", &[2; 9000]);
        tree.volume.mend_leftovers();
        tree.put("third", &[3; 9000]);
    });
    let later = files(&bench).into_iter().filter(|path| !first.contains(path));
    later.for_each(|path| tear(&path));
    tear(&first[0]);
    mend(&bench, |tree| {
        for name in ["second", "third"] {
            assert_eq!(tree.get(name), b"", "{name}");
        }
        // This one had been looked into and was right: it is damaged now.
        assert_eq!(errno(tree.read_ino(tree.ino("first"))), libc::EIO);
    });
    let left = damage(&bench);
    assert!(left.len() == 1 && left[0].starts_with("\"/first\""), "{left:?}");
}

#[test]
fn what_moves_while_everything_is_looked_into_is_looked_into() {
    const DIRS: usize = 40;
    let bench = Bench::new(NameMode::Encrypted);
    crash(&bench, |tree| {
        for i in 0..DIRS {
            tree.mkdir(&format!("d{i}"));
            tree.put(&format!("d{i}/f{i}"), &[7; 9000]);
        }
    });
    files(&bench).iter().for_each(|path| lose_header(path));
    let tree = open(&bench);
    tree.volume.settle_start().unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for shift in (0..).take_while(|_| !done.load(Ordering::Acquire)) {
                for i in 0..DIRS {
                    let (from, to) = ((i + shift) % DIRS, (i + shift + 1) % DIRS);
                    tree.rename(&format!("d{from}/f{i}"), &format!("d{to}/f{i}")).unwrap();
                }
            }
        });
        tree.volume.mend_leftovers();
        done.store(true, Ordering::Release);
    });
    tree.volume.shutdown().unwrap();
    drop(tree);
    sound(&bench);
}

#[test]
fn a_directory_gets_one_id_and_what_is_made_in_it_keeps_its_name() {
    const DIRS: usize = 60;
    let bench = Bench::new(NameMode::Encrypted);
    crash(&bench, |tree| {
        for i in 0..DIRS {
            tree.mkdir(&format!("d{i}"));
            for name in ["a", "b", "c"] {
                tree.put(&format!("d{i}/{name}"), b"content");
            }
        }
    });
    for dir in files(&bench).iter().map(|f| f.parent().unwrap()).collect::<BTreeSet<_>>() {
        OpenOptions::new().write(true).truncate(true).open(dir.join("kmsfs.dir")).unwrap();
    }
    let tree = open(&bench);
    std::thread::scope(|scope| {
        for n in 0..3 {
            let tree = &tree;
            scope.spawn(move || {
                for i in 0..DIRS {
                    tree.list(&format!("d{i}"));
                    tree.put(&format!("d{i}/new{n}"), b"new");
                }
            });
        }
        tree.volume.mend_leftovers();
    });
    for i in 0..DIRS {
        let names = tree.list(&format!("d{i}"));
        assert!(names.len() == 6 && names[3..] == ["new0", "new1", "new2"], "{names:?}");
    }
    tree.volume.shutdown().unwrap();
    drop(tree);
    sound(&bench);
}
