//! What is flushed before fsync, fsync of a directory, rename and link are answered: enough for
//! promise 5 of the durability contract, and not one flush more.

#[path = "support/volume.rs"]
#[allow(dead_code)]
mod volume;

use std::sync::Arc;

use kmsfs::format::descriptor::NameMode;
use kmsfs::fs::{Fh, Flushes, Ino, SetAttr, SetTime, Step, WriteHow};
use parking_lot::Mutex;
use volume::{Bench, ROOT, Tree, me};

/// A tree whose steps are recorded.
struct Watched {
    tree: Tree,
    steps: Arc<Mutex<Vec<Step>>>,
    /// Dropped last.
    _bench: Bench,
}

impl std::ops::Deref for Watched {
    type Target = Tree;
    fn deref(&self) -> &Tree {
        &self.tree
    }
}

fn watched() -> Watched {
    watch(Bench::new(NameMode::Encrypted))
}

fn watch(bench: Bench) -> Watched {
    let tree = bench.tree();
    tree.volume.flush_backing().unwrap();
    let steps = Arc::new(Mutex::new(Vec::new()));
    let recorder = steps.clone();
    tree.volume.watch_flushes(Box::new(move |step| recorder.lock().push(step)));
    Watched { tree, steps, _bench: bench }
}

impl Watched {
    /// What happened since the last call, as words; helpers by kind.
    fn happened(&self) -> Vec<&'static str> {
        self.steps.lock().drain(..).map(|step| word(&step)).collect()
    }

    /// The same, sorted: for helpers whose order does not matter.
    fn flushed(&self) -> Vec<&'static str> {
        let mut words = self.happened();
        words.sort();
        words
    }

    /// Makes everything so far durable.
    fn settle(&self) {
        self.volume.commit_all(true).unwrap();
        self.happened();
    }

    fn write(&self, fh: Fh) {
        self.volume.write(fh, 0, b"more", WriteHow::Direct).unwrap();
    }

    fn fsync(&self, fh: Fh) {
        self.volume.fsync(fh, false).unwrap();
    }

    fn fsyncdir(&self, path: &str) {
        let fh = self.volume.opendir(self.ino(path)).unwrap();
        self.volume.fsyncdir(fh, false).unwrap();
        self.volume.releasedir(fh);
    }

    /// A file with content that was fsynced.
    fn durable(&self, path: &str) -> Ino {
        let (ino, fh) = self.create(path);
        self.volume.write(fh, 0, b"durable", WriteHow::Direct).unwrap();
        self.fsync(fh);
        self.volume.release(fh);
        ino
    }

    fn link(&self, from: &str, to: &str) {
        let (parent, name) = self.split(to);
        self.volume.link(self.ino(from), parent, name).unwrap();
    }

    fn symlink(&self, path: &str, len: usize) -> Ino {
        let (parent, name) = self.split(path);
        self.volume.symlink(me(), parent, name, &vec![b't'; len]).unwrap().ino
    }
}

fn word(step: &Step) -> &'static str {
    match step {
        Step::File(_) => "file",
        Step::Helper(_, name) if name == b"kmsfs.dir" => "kmsfs.dir",
        Step::Helper(_, name) if name.ends_with(b".name") => "name",
        Step::Helper(_, name) if name.starts_with(b"kmsfs.link.") => "link",
        Step::Helper(..) => panic!("an unknown helper"),
        Step::Directory(_) => "directory",
        Step::Whole => "whole",
        Step::Journal => "journal",
        Step::Named(_) => "rename",
    }
}

fn long(text: &str) -> String {
    text.repeat(200)
}

#[test]
fn in_an_old_directory_an_fsync_is_one_flush() {
    let tree = watched();
    tree.mkdir("old");
    let (_, before) = tree.create(&format!("old/{}", long("x")));
    tree.settle();
    let (_, new) = tree.create("old/new");
    for fh in [new, before] {
        tree.write(fh);
        tree.fsync(fh);
        assert_eq!(tree.happened(), ["file"], "a first header goes to its place");
        tree.write(fh);
        tree.fsync(fh);
        // The first record made the journal.
        assert_eq!(tree.happened().last(), Some(&"journal"));
        for datasync in [false, true] {
            tree.write(fh);
            tree.volume.fsync(fh, datasync).unwrap();
            assert_eq!(tree.happened(), ["journal"]);
        }
        tree.fsync(fh);
        assert_eq!(tree.happened(), [""; 0], "nothing was changed");
    }
}

#[test]
fn a_session_trusts_nothing_that_stood_there_before() {
    let bench = Bench::new(NameMode::Encrypted);
    let tree = bench.tree();
    for name in ["f", "g"] {
        let (_, fh) = tree.create(name);
        tree.volume.fsync(fh, false).unwrap();
    }
    let expected = Flushes { files: 2, whole: 1, ..Flushes::default() };
    assert_eq!(tree.volume.flushes(), expected);
}

#[test]
fn the_first_fsync_in_new_directories_flushes_their_helpers_and_the_second_does_not() {
    let tree = watched();
    for dir in ["a", "a/b", "a/b/c"] {
        tree.mkdir(dir);
    }
    tree.settle();
    tree.happened();
    for dir in ["a/1", "a/1/2", "a/1/2/3"] {
        tree.mkdir(dir);
    }
    let (_, first) = tree.create(&format!("a/1/2/3/{}", long("n")));
    tree.volume.write(first, 0, b"data", WriteHow::Direct).unwrap();
    assert_eq!(tree.happened(), [""; 0], "creating flushes nothing");
    tree.fsync(first);
    assert_eq!(tree.flushed(), ["file", "kmsfs.dir", "kmsfs.dir", "kmsfs.dir", "name"]);
    tree.fsync(first);
    assert_eq!(tree.happened(), [""; 0]);
    let (_, second) = tree.create("a/1/2/3/second");
    tree.fsync(second);
    assert_eq!(tree.happened(), ["file"]);
    let (_, third) = tree.create(&format!("a/1/2/3/{}", long("m")));
    tree.fsync(third);
    assert_eq!(tree.flushed(), ["file", "name"]);
}

#[test]
fn long_directory_names_on_the_path_count_too() {
    let tree = watched();
    let (outer, inner) = (long("o"), long("i"));
    tree.mkdir(&outer);
    tree.settle();
    tree.mkdir(&format!("{outer}/{inner}"));
    tree.settle();
    tree.rename(&format!("{outer}/{inner}"), &format!("{outer}/{}", long("j"))).unwrap();
    tree.happened();
    let (_, fh) = tree.create(&format!("{outer}/{}/f", long("j")));
    tree.fsync(fh);
    // The rename had flushed it already.
    assert_eq!(tree.happened(), ["file"]);
    tree.mkdir(&long("p"));
    let (_, fh) = tree.create(&format!("{}/f", long("p")));
    tree.fsync(fh);
    assert_eq!(tree.flushed(), ["file", "kmsfs.dir", "name"]);
}

#[test]
fn a_whole_flush_makes_everything_firm() {
    let tree = watched();
    tree.mkdir("a");
    tree.mkdir("a/b");
    let (_, fh) = tree.create(&format!("a/b/{}", long("n")));
    tree.volume.commit_all(true).unwrap();
    assert_eq!(tree.happened(), ["whole"]);
    tree.fsync(fh);
    assert_eq!(tree.happened(), ["file"]);
    assert!(!tree.volume.naming_may_wait());
    tree.mkdir("c");
    tree.volume.shutdown().unwrap();
    // Once before the marker of the session goes, once with it.
    assert_eq!(tree.happened(), ["whole", "whole"]);
}

/// The periodic commit makes names and attributes firm, not only what is in files.
#[test]
fn names_are_firm_after_a_while() {
    let tree = watched();
    tree.mkdir("a");
    (0..6).for_each(|_| tree.volume.tick().unwrap());
    assert_eq!(tree.happened(), ["whole"]);
    assert!(!tree.volume.naming_may_wait());
}

#[test]
fn a_durable_file_takes_a_new_name_only_when_its_helpers_are_durable() {
    let tree = watched();
    tree.durable("f");
    tree.mkdir("a");
    tree.mkdir("a/b");
    tree.happened();
    tree.rename("f", &format!("a/b/{}", long("n"))).unwrap();
    let happened = tree.happened();
    assert_eq!(happened.last(), Some(&"rename"));
    let mut before = happened[..happened.len() - 1].to_vec();
    before.sort();
    assert_eq!(before, ["kmsfs.dir", "kmsfs.dir", "name"]);
    // Back, and to a short name in the old directory.
    tree.rename(&format!("a/b/{}", long("n")), "g").unwrap();
    assert_eq!(tree.happened(), ["rename"]);
    tree.rename("g", &long("l")).unwrap();
    assert_eq!(tree.happened(), ["name", "rename"]);
}

#[test]
fn what_nobody_was_promised_moves_without_a_flush() {
    let tree = watched();
    tree.put("f", b"data");
    tree.rename("f", "g").unwrap();
    tree.mkdir("a");
    tree.rename("g", &format!("a/{}", long("n"))).unwrap();
    tree.rename(&format!("a/{}", long("n")), &long("m")).unwrap();
    assert_eq!(tree.happened(), ["rename", "rename", "rename"]);
    // What it rests on is flushed when somebody asks.
    let opened = tree.volume.open_file(me(), tree.ino(&long("m")), libc::O_RDWR).unwrap();
    tree.fsync(opened.fh);
    assert_eq!(tree.flushed(), ["file", "name"]);
    tree.rename(&long("m"), "a/h").unwrap();
    assert_eq!(tree.happened(), ["kmsfs.dir", "rename"]);
}

#[test]
fn replacing_a_name_is_no_different() {
    let tree = watched();
    tree.durable("f");
    tree.mkdir("d");
    tree.put("d/t", b"target");
    tree.happened();
    tree.rename("f", "d/t").unwrap();
    assert_eq!(tree.happened(), ["kmsfs.dir", "rename"]);
    tree.put("d/u", b"new");
    tree.rename("d/u", "d/t").unwrap();
    assert_eq!(tree.happened(), ["rename"]);
}

#[test]
fn both_sides_of_an_exchange_count() {
    let tree = watched();
    tree.durable("f");
    tree.mkdir("d");
    tree.put("d/new", b"new");
    tree.happened();
    let exchange = |a: &str, b: &str| {
        let ((a_dir, a), (b_dir, b)) = (tree.split(a), tree.split(b));
        tree.volume.rename(a_dir, a, b_dir, b, libc::RENAME_EXCHANGE).unwrap();
    };
    exchange("f", "d/new");
    assert_eq!(tree.happened(), ["kmsfs.dir", "rename", "rename"]);
    tree.mkdir("e");
    tree.put("e/other", b"other");
    // The new one only: nothing.
    exchange("f", "e/other");
    assert_eq!(tree.happened(), ["rename", "rename"]);
    // The durable one, given second.
    exchange("e/other", "d/new");
    assert_eq!(tree.happened(), ["kmsfs.dir", "rename", "rename"]);
}

#[test]
fn a_directory_may_hold_durable_files() {
    let tree = watched();
    tree.mkdir("d");
    tree.durable("d/f");
    tree.mkdir("new");
    tree.happened();
    tree.rename("d", &format!("new/{}", long("d"))).unwrap();
    let happened = tree.happened();
    assert_eq!(happened.len(), 3);
    assert!(happened.contains(&"kmsfs.dir") && happened.contains(&"name"));
    assert_eq!(happened[2], "rename");
}

#[test]
fn links_go_by_the_same_rule() {
    let tree = watched();
    tree.durable("f");
    tree.put("n", b"new");
    tree.mkdir("d");
    tree.happened();
    tree.link("n", "d/n");
    assert_eq!(tree.happened(), ["rename"]);
    tree.link("f", "d/f");
    assert_eq!(tree.happened(), ["kmsfs.dir", "rename"]);
    // What has two names counts as durable.
    tree.rename("n", &long("n")).unwrap();
    assert_eq!(tree.happened(), ["name", "rename"]);
}

#[test]
fn an_fsync_covers_all_known_names() {
    let tree = watched();
    tree.mkdir("a");
    tree.mkdir("b");
    let (_, fh) = tree.create("a/f");
    tree.link("a/f", &format!("b/{}", long("l")));
    tree.happened();
    tree.fsync(fh);
    assert_eq!(tree.flushed(), ["file", "kmsfs.dir", "kmsfs.dir", "name"]);
}

#[test]
fn fsync_of_a_directory_covers_what_is_in_it_and_what_it_is_in() {
    let tree = watched();
    tree.mkdir("a");
    tree.mkdir("a/b");
    tree.mkdir("a/b/child");
    tree.mkdir("a/b/child/grandchild");
    tree.put(&format!("a/b/{}", long("n")), b"x");
    tree.symlink("a/b/link", 4000);
    tree.symlink("a/b/short", 40);
    assert_eq!(tree.happened(), [""; 0]);
    tree.fsyncdir("a/b");
    let all = ["directory", "kmsfs.dir", "kmsfs.dir", "kmsfs.dir", "link", "name"];
    assert_eq!(tree.flushed(), all);
    tree.fsyncdir("a/b");
    assert_eq!(tree.happened(), ["directory"]);
    // What was in it counts as durable now; what comes does not.
    tree.mkdir("c");
    tree.put("a/b/later", b"x");
    tree.rename("a/b/later", "c/later").unwrap();
    assert_eq!(tree.happened(), ["rename"]);
    tree.rename("a/b/short", "c/short").unwrap();
    assert_eq!(tree.happened(), ["kmsfs.dir", "rename"]);
}

#[test]
fn a_long_symlink_takes_its_target_along() {
    let tree = watched();
    tree.symlink("link", 4000);
    tree.fsyncdir("");
    tree.mkdir("d");
    tree.happened();
    tree.rename("link", "d/link").unwrap();
    let happened = tree.happened();
    assert_eq!(happened.len(), 3);
    assert!(happened.contains(&"link") && happened.contains(&"kmsfs.dir"));
    assert_eq!(happened[2], "rename");
    assert_eq!(tree.volume.readlink(tree.ino("d/link")).unwrap(), vec![b't'; 4000]);
}

#[test]
fn a_directory_that_lost_its_id_gets_a_durable_one() {
    let bench = Bench::new(NameMode::Encrypted);
    let tree = bench.tree();
    tree.mkdir("d");
    tree.volume.shutdown().unwrap();
    drop(tree);
    let mut entries = std::fs::read_dir(bench.source()).unwrap().map(|e| e.unwrap().path());
    let dir = entries.find(|path| path.is_dir()).unwrap();
    std::fs::remove_file(dir.join("kmsfs.dir")).unwrap();
    let tree = watch(bench);
    let (_, fh) = tree.create("d/f");
    assert_eq!(tree.happened(), [""; 0]);
    tree.fsync(fh);
    assert_eq!(tree.flushed(), ["file", "kmsfs.dir"]);
}

#[test]
fn attributes_reach_the_disk_with_fsync() {
    let tree = watched();
    let ino = tree.durable("f");
    tree.happened();
    let opened = tree.volume.open_file(me(), ino, libc::O_RDWR).unwrap();
    let mode = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    tree.volume.setattr(me(), ino, None, mode).unwrap();
    tree.fsync(opened.fh);
    assert_eq!(tree.happened(), ["file"]);
    let times = SetAttr { mtime: Some(SetTime::At((7, 0))), ..SetAttr::default() };
    tree.volume.setattr(me(), ino, Some(opened.fh), times).unwrap();
    tree.volume.setxattr(me(), ino, b"user.a", b"1", 0).unwrap();
    tree.volume.fsync(opened.fh, true).unwrap();
    assert_eq!(tree.happened(), [""; 0], "fdatasync is not asked for attributes");
    tree.fsync(opened.fh);
    assert_eq!(tree.happened(), ["file"]);
    tree.write(opened.fh);
    tree.volume.setxattr(me(), ino, b"user.b", b"2", 0).unwrap();
    tree.happened();
    tree.fsync(opened.fh);
    assert!(tree.happened().contains(&"file"));
}

#[test]
fn removed_things_are_forgotten() {
    let tree = watched();
    for round in 0..3 {
        let name = long(&round.to_string());
        tree.mkdir(&name);
        tree.put(&format!("{name}/{name}"), b"x");
        tree.symlink(&format!("{name}/l"), 4000);
        assert!(tree.volume.naming_may_wait());
        let dir = tree.ino(&name);
        tree.volume.unlink(dir, name.as_bytes()).unwrap();
        tree.volume.unlink(dir, b"l").unwrap();
        tree.volume.rmdir(ROOT, name.as_bytes()).unwrap();
        assert!(!tree.volume.naming_may_wait());
    }
    tree.mkdir("a");
    tree.mkdir("b");
    tree.rename("a", "b").unwrap();
    let (_, fh) = tree.create("b/f");
    tree.happened();
    tree.fsync(fh);
    assert_eq!(tree.flushed(), ["file", "kmsfs.dir"]);
    let flushes = tree.volume.flushes();
    assert_eq!(flushes, Flushes { files: 1, helpers: 1, whole: 1, ..Flushes::default() });
}

#[test]
fn plain_names_need_their_directory_ids_only() {
    let bench = Bench::new(NameMode::Plain);
    let tree = bench.tree();
    tree.volume.flush_backing().unwrap();
    let before = tree.volume.flushes();
    tree.mkdir("a");
    let (_, fh) = tree.create(&format!("a/{}", long("n")));
    tree.volume.fsync(fh, false).unwrap();
    let after = tree.volume.flushes();
    assert_eq!((after.files - before.files, after.helpers - before.helpers), (1, 1));
}

/// Renames and fsyncs at the same time: whatever the order, a name an fsynced file has is durable.
#[test]
fn an_fsync_and_a_rename_at_once_leave_no_gap() {
    for _ in 0..200 {
        let tree = watched();
        let (ino, fh) = tree.create("f");
        tree.mkdir("d");
        tree.happened();
        std::thread::scope(|scope| {
            scope.spawn(|| tree.fsync(fh));
            scope.spawn(|| tree.rename("f", "d/f").unwrap());
        });
        let helper = Step::Helper(tree.ino("d"), b"kmsfs.dir".to_vec());
        assert!(tree.steps.lock().contains(&helper), "inode {ino}");
    }
}

/// While a rename flushes helpers, an fsync makes another object durable that it is about to move.
#[test]
fn an_fsync_during_a_rename_is_noticed() {
    let bench = Bench::new(NameMode::Encrypted);
    let tree = Arc::new(bench.tree());
    tree.volume.flush_backing().unwrap();
    let (_, linked) = tree.create("f");
    let (one, two) = (tree.mkdir("one"), tree.mkdir("two"));
    let (_, new) = tree.create("one/new");
    // Counts as durable, and the name it has here is not.
    tree.volume.link(tree.ino("f"), two, b"linked").unwrap();
    tree.volume.release(linked);
    let steps = Arc::new(Mutex::new(Vec::new()));
    let (recorder, weak) = (steps.clone(), Arc::downgrade(&tree));
    tree.volume.watch_flushes(Box::new(move |step| {
        recorder.lock().push(step.clone());
        if matches!(step, Step::Helper(dir, _) if dir == one) {
            weak.upgrade().unwrap().volume.fsync(new, false).unwrap();
        }
    }));
    let exchange = libc::RENAME_EXCHANGE;
    tree.volume.rename(one, b"new", two, b"linked", exchange).unwrap();
    let words: Vec<_> = steps.lock().iter().map(word).collect();
    assert_eq!(words, ["kmsfs.dir", "file", "kmsfs.dir", "rename", "rename"]);
    assert!(matches!(steps.lock()[2], Step::Helper(dir, _) if dir == two));
}
