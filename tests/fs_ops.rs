//! File-system operations without a kernel in between.

#[path = "support/volume.rs"]
mod volume;

use kmsfs::format::descriptor::NameMode;
use kmsfs::fs::{Access, SetAttr, SetTime, WriteHow};
use volume::{Bench, ROOT, errno, me};

/// All regular files of a backing directory.
fn backing_names(dir: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> =
        entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn what_is_written_is_read_after_reopening_and_the_backing_shows_nothing() {
    let bench = Bench::new(NameMode::Encrypted);
    let secret = b"the plain text of the matter ".repeat(1000);
    {
        let tree = bench.tree();
        tree.mkdir("papers");
        tree.put("papers/letter", &secret);
        assert_eq!(tree.get("papers/letter"), secret);
        tree.volume.shutdown().unwrap();
    }
    let tree = bench.tree();
    assert!(!tree.volume.was_unclean());
    assert_eq!(tree.attr("papers/letter").size, secret.len() as u64);
    assert_eq!(tree.get("papers/letter"), secret);
    for entry in walk(&bench.source()) {
        assert!(!entry.to_string_lossy().contains("letter"));
        let bytes = std::fs::read(&entry).unwrap();
        assert!(!bytes.windows(10).any(|w| w == b"plain text"), "{}", entry.display());
    }
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(walk(&path)) } else { files.push(path) }
    }
    files
}

#[test]
fn names_of_every_length_work_and_one_more_byte_is_refused() {
    for mode in [NameMode::Encrypted, NameMode::Plain] {
        let bench = Bench::new(mode);
        let tree = bench.tree();
        let names: Vec<String> = (1..=255).map(|n| "n".repeat(n)).collect();
        for name in &names {
            tree.put(name, name.as_bytes());
        }
        assert_eq!(tree.list(""), names);
        for name in &names {
            assert_eq!(tree.get(name), name.as_bytes());
        }
        let long = "n".repeat(256);
        assert_eq!(errno(tree.try_attr(&long)), libc::ENAMETOOLONG);
        for name in &names {
            tree.volume.unlink(ROOT, name.as_bytes()).unwrap();
        }
        assert_eq!(tree.list(""), Vec::<String>::new());
        let left = backing_names(&bench.source());
        assert!(left.iter().all(|n| !n.ends_with(".name")), "sidecars left behind: {left:?}");
    }
}

#[test]
fn dot_names_reserved_names_and_bytes_that_are_no_text() {
    for mode in [NameMode::Encrypted, NameMode::Plain] {
        let bench = Bench::new(mode);
        let tree = bench.tree();
        let names: [&[u8]; 5] =
            [b".hidden", b"..more", b"kmsfs.dir", b"kmsfs.volume", b"\xff\xfe\x01"];
        for name in names {
            let flags = libc::O_RDWR | libc::O_CREAT;
            let (_, opened) = tree.volume.create(me(), ROOT, name, 0o600, 0, flags).unwrap();
            tree.volume.release(opened.fh);
            assert!(tree.volume.lookup(ROOT, name).is_ok());
        }
        assert_eq!(tree.list("").len(), names.len());
    }
}

#[test]
fn a_reserved_name_that_grows_too_long_by_its_escape_is_refused() {
    let bench = Bench::new(NameMode::Plain);
    let tree = bench.tree();
    let name = format!("kmsfs.{}", "x".repeat(249));
    assert_eq!(errno(tree.volume.mkdir(me(), ROOT, name.as_bytes(), 0o755, 0)), libc::ENAMETOOLONG);
}

#[test]
fn symlink_targets_up_to_path_max() {
    let bench = Bench::new(NameMode::Encrypted);
    let tree = bench.tree();
    tree.mkdir("d");
    for len in [1, 2, 3, 100, 3055, 3056, 3057, 4000, 4095] {
        let target = vec![b't'; len];
        let name = format!("link{len}");
        let made = tree.volume.symlink(me(), ROOT, name.as_bytes(), &target).unwrap();
        assert_eq!(made.size, len as u64);
        assert_eq!(tree.attr(&name).size, len as u64);
        assert_eq!(tree.volume.readlink(made.ino).unwrap(), target);
        // Another directory, another name, a hard link: the target goes along.
        tree.rename(&name, "d/moved").unwrap();
        assert_eq!(tree.volume.readlink(tree.ino("d/moved")).unwrap(), target);
        tree.volume.link(made.ino, ROOT, b"hard").unwrap();
        tree.volume.unlink(tree.ino("d"), b"moved").unwrap();
        assert_eq!(tree.volume.readlink(tree.ino("hard")).unwrap(), target);
        tree.volume.unlink(ROOT, b"hard").unwrap();
    }
    assert_eq!(errno(tree.volume.symlink(me(), ROOT, b"l", &[b't'; 4096])), libc::ENAMETOOLONG);
    tree.volume.rmdir(ROOT, b"d").unwrap();
    assert!(backing_names(&bench.source()).iter().all(|n| n.starts_with("kmsfs.")));
}

#[test]
fn renames_replace_refuse_and_exchange_as_posix_says() {
    let bench = Bench::new(NameMode::Encrypted);
    let tree = bench.tree();
    tree.put("a", b"A");
    tree.put("b", b"B");
    tree.mkdir("d");
    tree.mkdir("e");
    tree.put("e/inner", b"I");

    tree.rename("a", "b").unwrap();
    assert_eq!(tree.get("b"), b"A");
    assert_eq!(errno(tree.try_attr("a")), libc::ENOENT);
    assert_eq!(errno(tree.rename("b", "d")), libc::EISDIR);
    assert_eq!(errno(tree.rename("d", "b")), libc::ENOTDIR);
    assert_eq!(errno(tree.rename("d", "e")), libc::ENOTEMPTY);
    // The refused rename must not have cost the directory its id.
    assert_eq!(tree.get("e/inner"), b"I");
    tree.rename("e", "d").unwrap();
    assert_eq!(tree.get("d/inner"), b"I");

    let exchange = libc::RENAME_EXCHANGE;
    tree.volume.rename(ROOT, b"b", ROOT, b"d", exchange).unwrap();
    assert_eq!(tree.get("d"), b"A");
    assert_eq!(tree.get("b/inner"), b"I");
    let noreplace = libc::RENAME_NOREPLACE;
    assert_eq!(errno(tree.volume.rename(ROOT, b"b", ROOT, b"d", noreplace)), libc::EEXIST);
    assert_eq!(errno(tree.volume.rename(ROOT, b"b", ROOT, b"d", 1 << 7)), libc::EINVAL);
}

#[test]
fn long_names_move_with_their_sidecars() {
    let bench = Bench::new(NameMode::Encrypted);
    let tree = bench.tree();
    let (long, other) = ("l".repeat(255), "o".repeat(240));
    tree.put(&long, b"x");
    tree.mkdir("d");
    tree.rename(&long, &format!("d/{other}")).unwrap();
    tree.rename(&format!("d/{other}"), "short").unwrap();
    assert_eq!(tree.list("d"), Vec::<String>::new());
    tree.rename("short", &long).unwrap();
    assert_eq!(tree.list(""), ["d".to_string(), long.clone()]);
    assert_eq!(tree.get(&long), b"x");
    // A failed creation leaves no sidecar.
    let before = backing_names(&bench.source());
    assert_eq!(errno(tree.volume.mkdir(me(), ROOT, long.as_bytes(), 0o755, 0)), libc::EEXIST);
    assert_eq!(backing_names(&bench.source()), before);
}

#[test]
fn handles_outlive_their_names() {
    let bench = Bench::new(NameMode::Encrypted);
    let tree = bench.tree();
    let (ino, fh) = tree.create("f");
    tree.volume.write(fh, 0, b"before", WriteHow::Direct).unwrap();
    tree.volume.unlink(ROOT, b"f").unwrap();
    tree.volume.write(fh, 6, b" after", WriteHow::Direct).unwrap();
    tree.volume.fsync(fh, false).unwrap();
    let attr = tree.volume.getattr(ino, Some(fh)).unwrap();
    assert_eq!((attr.nlink, attr.size), (0, 12));
    let changes =
        SetAttr { mode: Some(0o600), mtime: Some(SetTime::At((5, 6))), ..SetAttr::default() };
    let attr = tree.volume.setattr(me(), ino, Some(fh), changes).unwrap();
    assert_eq!((attr.perm, attr.mtime), (0o600, (5, 6)));
    tree.volume.setxattr(me(), ino, b"user.x", b"y", 0).unwrap();
    assert_eq!(tree.volume.getxattr(ino, b"user.x").unwrap(), b"y");
    let mut buf = [0; 20];
    assert_eq!(tree.volume.read(fh, 0, &mut buf).unwrap(), 12);
    assert_eq!(&buf[..12], b"before after");
    tree.volume.release(fh);

    let dir = tree.mkdir("d");
    tree.volume.rmdir(ROOT, b"d").unwrap();
    assert_eq!(tree.volume.getattr(dir, None).unwrap().nlink, 0);
    assert_eq!(errno(tree.volume.lookup(dir, b"x")), libc::ENOENT);
    assert_eq!(errno(tree.volume.mkdir(me(), dir, b"x", 0o755, 0)), libc::ENOENT);
}

#[test]
fn an_unlinked_name_leaves_its_other_links_alone() {
    let bench = Bench::new(NameMode::Encrypted);
    let tree = bench.tree();
    let ino = tree.put("one", b"shared");
    tree.mkdir("d");
    tree.volume.link(ino, tree.ino("d"), b"two").unwrap();
    tree.volume.unlink(ROOT, b"one").unwrap();
    assert_eq!(tree.get("d/two"), b"shared");
    assert_eq!(tree.attr("d/two").ino, ino);
    assert_eq!(tree.attr("d/two").nlink, 1);
    // Rename of the directory above: the inode is still found.
    tree.rename("d", "e").unwrap();
    assert_eq!(tree.volume.getattr(ino, None).unwrap().size, 6);
}

#[test]
fn forgetting_everything_leaves_only_the_root() {
    let bench = Bench::new(NameMode::Encrypted);
    let tree = bench.tree();
    let mut inos = Vec::new();
    let mut parent = ROOT;
    for depth in 0..50 {
        parent =
            tree.volume.mkdir(me(), parent, format!("d{depth}").as_bytes(), 0o755, 0).unwrap().ino;
        inos.push(parent);
    }
    assert_eq!(tree.volume.counters().0, 51);
    // Parents first: a child must keep what it needs to be found.
    for ino in &inos[..49] {
        tree.volume.forget(*ino, 1);
    }
    assert!(tree.volume.getattr(inos[49], None).is_ok());
    tree.volume.forget(inos[49], 1);
    assert_eq!(tree.volume.counters().0, 1);
}

#[test]
fn deep_trees_need_no_descriptor_per_directory() {
    let bench = Bench::new(NameMode::Encrypted);
    let tree = bench.tree();
    let mut parent = ROOT;
    for _ in 0..5000 {
        parent = tree.volume.mkdir(me(), parent, b"d", 0o755, 0).unwrap().ino;
    }
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count();
    assert!(open < 4500, "{open} descriptors");
    let attr = tree.volume.mkdir(me(), parent, b"leaf", 0o755, 0).unwrap();
    assert!(tree.volume.getattr(attr.ino, None).is_ok());
    // The temporary directory's own removal would recurse as deep: take it apart from above.
    drop(tree);
    std::process::Command::new("rm").arg("-rf").arg(bench.source()).status().unwrap();
}

#[test]
fn attributes_of_attributes() {
    let bench = Bench::new(NameMode::Encrypted);
    let tree = bench.tree();
    let file = tree.put("f", b"");
    let dir = tree.mkdir("d");
    for ino in [file, dir, ROOT] {
        assert_eq!(errno(tree.volume.getxattr(ino, b"user.none")), libc::ENODATA);
        let long = [b"user.".as_slice(), &[b'n'; 250]].concat();
        for name in [b"user.a".as_slice(), &long] {
            tree.volume.setxattr(me(), ino, name, b"value", libc::XATTR_CREATE).unwrap();
            assert_eq!(tree.volume.getxattr(ino, name).unwrap(), b"value");
            let again = tree.volume.setxattr(me(), ino, name, b"2", libc::XATTR_CREATE);
            assert_eq!(errno(again), libc::EEXIST);
            tree.volume.setxattr(me(), ino, name, b"", libc::XATTR_REPLACE).unwrap();
            assert_eq!(tree.volume.getxattr(ino, name).unwrap(), b"");
        }
        let listed = tree.volume.listxattr(me(), ino).unwrap();
        let mut names: Vec<_> = listed.split(|b| *b == 0).filter(|n| !n.is_empty()).collect();
        names.sort();
        assert_eq!(names, [b"user.a".as_slice(), &long]);
        tree.volume.removexattr(me(), ino, b"user.a").unwrap();
        assert_eq!(errno(tree.volume.getxattr(ino, b"user.a")), libc::ENODATA);
    }
    assert_eq!(errno(tree.volume.getxattr(file, b"system.posix_acl_access")), libc::EOPNOTSUPP);
    // Still empty, though it has a header now.
    assert_eq!(tree.attr("f").size, 0);
    // Moved from one file to another, an attribute does not authenticate.
    tree.put("g", b"");
    tree.volume.setxattr(me(), file, b"user.a", b"mine", 0).unwrap();
    tree.volume.setxattr(me(), tree.ino("g"), b"user.a", b"other", 0).unwrap();
    let mut stolen = Vec::new();
    for entry in walk(&bench.source()) {
        let Ok(list) = rustix_list(&entry) else { continue };
        stolen.extend(list.into_iter().map(|(n, v)| (entry.clone(), n, v)));
    }
    for (path, ..) in &stolen {
        for (_, name, value) in &stolen {
            let _ =
                rustix::fs::setxattr(path, name.as_str(), value, rustix::fs::XattrFlags::empty());
        }
    }
    let names = tree.volume.listxattr(me(), file).unwrap();
    assert_eq!(names.split(|b| *b == 0).filter(|n| *n == b"user.a").count(), 1);
    assert_eq!(tree.volume.getxattr(file, b"user.a").unwrap(), b"mine");
}

fn rustix_list(path: &std::path::Path) -> rustix::io::Result<Vec<(String, Vec<u8>)>> {
    let mut buf = vec![0u8; 4096];
    let n = rustix::fs::listxattr(path, &mut buf[..])?;
    let names = buf[..n].split(|b| *b == 0).filter(|n| !n.is_empty()).map(<[u8]>::to_vec);
    names
        .map(|name| {
            let mut value = vec![0u8; 4096];
            let n = rustix::fs::getxattr(path, &name[..], &mut value[..])?;
            value.truncate(n);
            Ok((String::from_utf8(name).unwrap(), value))
        })
        .collect()
}

#[test]
fn an_empty_directory_without_its_file_is_empty_and_a_full_one_is_damaged() {
    let bench = Bench::new(NameMode::Encrypted);
    {
        let tree = bench.tree();
        tree.mkdir("empty");
        tree.mkdir("full");
        tree.put("full/f", b"x");
        tree.volume.shutdown().unwrap();
    }
    for path in walk(&bench.source()) {
        let root = path.parent() == Some(&bench.source());
        if path.ends_with("kmsfs.dir") && !root {
            std::fs::remove_file(path).unwrap();
        }
    }
    let tree = bench.tree();
    assert_eq!(tree.list("empty"), Vec::<String>::new());
    assert_eq!(errno(tree.try_attr("full/f")), libc::EIO);
    tree.put("empty/new", b"works");
    assert_eq!(tree.get("empty/new"), b"works");
    assert_eq!(tree.list("empty"), ["new"]);
    assert_eq!(errno(tree.volume.rmdir(ROOT, b"full")), libc::ENOTEMPTY);
}

#[test]
fn reading_only_changes_nothing_and_says_so() {
    let bench = Bench::new(NameMode::Encrypted);
    {
        let tree = bench.tree();
        tree.put("f", b"data");
        tree.volume.shutdown().unwrap();
    }
    let before = snapshot(&bench.source());
    let tree = bench.open(Access::ReadOnly);
    assert_eq!(tree.get("f"), b"data");
    let ino = tree.ino("f");
    assert_eq!(errno(tree.volume.open_file(me(), ino, libc::O_WRONLY)), libc::EROFS);
    assert_eq!(errno(tree.volume.unlink(ROOT, b"f")), libc::EROFS);
    assert_eq!(errno(tree.volume.mkdir(me(), ROOT, b"d", 0o755, 0)), libc::EROFS);
    let changes = SetAttr { size: Some(0), ..SetAttr::default() };
    assert_eq!(errno(tree.volume.setattr(me(), ino, None, changes)), libc::EROFS);
    assert_eq!(errno(tree.volume.setxattr(me(), ino, b"user.a", b"", 0)), libc::EROFS);
    tree.volume.shutdown().unwrap();
    assert_eq!(snapshot(&bench.source()), before);
}

fn snapshot(dir: &std::path::Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut all: Vec<_> =
        walk(dir).into_iter().map(|p| (p.clone(), std::fs::read(p).unwrap())).collect();
    all.sort();
    all
}

#[test]
fn a_second_opener_is_told_who_is_there() {
    let bench = Bench::new(NameMode::Encrypted);
    let _tree = bench.tree();
    let flags = kmsfs::fs::MountFlags {
        acl: false,
        atime: kmsfs::fs::Atime::Noatime,
        own_by_caller: false,
        writeback: false,
        rekey_limit: 0,
    };
    for access in [Access::ReadWrite, Access::ReadOnly] {
        let refused = kmsfs::fs::Volume::open(&bench.source(), access, flags, &Default::default());
        let error = refused.err().unwrap();
        assert_eq!(error.exit_code, kmsfs::fs::volume::exit::IN_USE);
        assert!(error.message.contains(&std::process::id().to_string()), "{error}");
    }
}

#[test]
fn after_an_unclean_stop_the_authenticated_size_is_shown() {
    let bench = Bench::new(NameMode::Encrypted);
    {
        let tree = bench.tree();
        tree.put("f", &[7; 5000]);
        // No shutdown: the marker stays, as after kill -9.
    }
    let file = walk(&bench.source())
        .into_iter()
        .find(|p| std::fs::metadata(p).unwrap().len() == 4096 + 5000);
    let file = std::fs::OpenOptions::new().write(true).open(file.unwrap()).unwrap();
    file.set_len(4096 + 9000).unwrap();
    let tree = bench.tree();
    assert!(tree.volume.was_unclean());
    assert_eq!(tree.attr("f").size, 5000);
    assert_eq!(tree.get("f"), [7; 5000]);
}

#[test]
fn a_length_that_lies_makes_the_kernel_look_again() {
    let bench = Bench::new(NameMode::Encrypted);
    {
        let tree = bench.tree();
        tree.put("f", &[7; 5000]);
        tree.volume.shutdown().unwrap();
    }
    let file = walk(&bench.source())
        .into_iter()
        .find(|p| std::fs::metadata(p).unwrap().len() == 4096 + 5000);
    std::fs::OpenOptions::new()
        .write(true)
        .open(file.unwrap())
        .unwrap()
        .set_len(4096 + 9000)
        .unwrap();
    let tree = bench.tree();
    let first = tree.attr("f");
    assert_eq!(first.size, 9000);
    assert_eq!(errno(tree.volume.open_file(me(), first.ino, libc::O_RDONLY)), libc::ESTALE);
    let second = tree.attr("f");
    assert_eq!(second.size, 5000);
    assert_ne!(second.generation, first.generation);
    assert_eq!(tree.get("f"), [7; 5000]);
}

#[test]
fn damage_is_an_error_of_one_file_only() {
    let bench = Bench::new(NameMode::Encrypted);
    {
        let tree = bench.tree();
        tree.put("bad", &[1; 9000]);
        tree.put("good", &[2; 9001]);
        tree.volume.shutdown().unwrap();
    }
    let path = walk(&bench.source())
        .into_iter()
        .find(|p| std::fs::metadata(p).unwrap().len() == 4096 + 9000);
    let path = path.unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4096 + 5000] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let tree = bench.tree();
    let opened = tree.volume.open_file(me(), tree.ino("bad"), libc::O_RDONLY).unwrap();
    let mut buf = [0; 4096];
    assert_eq!(tree.volume.read(opened.fh, 0, &mut buf).unwrap(), 4096);
    assert_eq!(errno(tree.volume.read(opened.fh, 4096, &mut buf)), libc::EIO);
    assert_eq!(tree.get("good"), [2; 9001]);
    // It can still be renamed and removed.
    tree.rename("bad", "worse").unwrap();
    tree.volume.release(opened.fh);
    tree.volume.unlink(ROOT, b"worse").unwrap();
}

#[test]
fn listings_stop_and_go_on_anywhere() {
    let bench = Bench::new(NameMode::Encrypted);
    let tree = bench.tree();
    for n in 0..300 {
        tree.put(&format!("file-{n:03}"), b"");
    }
    for step in [1, 7, 1000] {
        let fh = tree.volume.opendir(ROOT).unwrap();
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let mut taken = 0;
            tree.volume
                .readdir(fh, offset, true, &mut |next, entry, _| {
                    if taken == step {
                        return false;
                    }
                    taken += 1;
                    offset = next;
                    names.push(entry.name.clone());
                    true
                })
                .unwrap();
            if taken == 0 {
                break;
            }
        }
        tree.volume.releasedir(fh);
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 302);
    }
}

#[test]
fn mtime_is_the_callers_even_when_data_is_committed_later() {
    let bench = Bench::new(NameMode::Encrypted);
    let tree = bench.tree();
    let (ino, fh) = tree.create("f");
    tree.volume.write(fh, 0, b"data", WriteHow::Direct).unwrap();
    let changes = SetAttr { mtime: Some(SetTime::At((1_000_000, 42))), ..SetAttr::default() };
    tree.volume.setattr(me(), ino, Some(fh), changes).unwrap();
    tree.volume.flush(fh).unwrap();
    tree.volume.release(fh);
    assert_eq!(tree.attr("f").mtime, (1_000_000, 42));
}

#[test]
fn modes_are_set_by_path_by_handle_and_on_directories() {
    let bench = Bench::new(NameMode::Encrypted);
    let tree = bench.tree();
    let dir = tree.mkdir("d");
    let file = tree.put("f", b"x");
    for ino in [dir, file] {
        let changes = SetAttr { mode: Some(0o711), ..SetAttr::default() };
        assert_eq!(tree.volume.setattr(me(), ino, None, changes).unwrap().perm, 0o711);
    }
}

#[test]
fn an_attribute_on_an_empty_file_leaves_its_mtime_alone() {
    let bench = Bench::new(NameMode::Encrypted);
    let tree = bench.tree();
    let ino = tree.put("f", b"");
    let changes = SetAttr { mtime: Some(SetTime::At((77, 8))), ..SetAttr::default() };
    tree.volume.setattr(me(), ino, None, changes).unwrap();
    tree.volume.setxattr(me(), ino, b"user.a", b"1", 0).unwrap();
    assert_eq!((tree.attr("f").mtime, tree.attr("f").size), ((77, 8), 0));
}

#[test]
fn a_session_leaves_the_root_directory_times_alone() {
    let bench = Bench::new(NameMode::Encrypted);
    bench.tree().volume.shutdown().unwrap();
    let times = |tree: &volume::Tree| tree.volume.getattr(ROOT, None).unwrap().mtime;
    let tree = bench.tree();
    let changes = SetAttr { mtime: Some(SetTime::At((99, 1))), ..SetAttr::default() };
    tree.volume.setattr(me(), ROOT, None, changes).unwrap();
    tree.volume.shutdown().unwrap();
    drop(tree);
    assert_eq!(times(&bench.tree()), (99, 1));
}

#[test]
fn a_removal_that_fails_half_way_leaves_the_directory_its_id() {
    let bench = Bench::new(NameMode::Encrypted);
    let tree = bench.tree();
    // Several, because the order in which the backing lists helpers is its own.
    for n in 0..8 {
        let dir = tree.mkdir(&format!("d{n}"));
        let backing = bench.source().join(tree.volume.backing_path(dir));
        std::fs::create_dir(backing.join("kmsfs.planted")).unwrap();
        assert!(tree.volume.rmdir(ROOT, format!("d{n}").as_bytes()).is_err());
        tree.put(&format!("d{n}/f"), b"kept");
    }
    tree.volume.shutdown().unwrap();
    drop(tree);
    let tree = bench.tree();
    for n in 0..8 {
        assert_eq!(tree.get(&format!("d{n}/f")), b"kept");
    }
}

#[test]
fn names_that_nothing_can_have_are_never_looked_up_made_or_listed() {
    for mode in [NameMode::Encrypted, NameMode::Plain] {
        let bench = Bench::new(mode);
        let tree = bench.tree();
        for name in [&b""[..], b".", b"..", b"a/b", b"a\0b", b"../x"] {
            assert_eq!(errno(tree.volume.lookup(ROOT, name)), libc::EINVAL, "{name:?}");
            assert_eq!(errno(tree.volume.mkdir(me(), ROOT, name, 0o755, 0)), libc::EINVAL);
        }
        if mode == NameMode::Plain {
            for planted in ["kmsfs.esc.", "kmsfs.esc...", "kmsfs.esc.a"] {
                std::fs::write(bench.source().join(planted), b"").unwrap();
            }
            assert_eq!(tree.list(""), Vec::<String>::new());
            assert_eq!(tree.volume.left_out().len(), 3);
        }
    }
}

#[test]
fn helpers_are_never_written_through_what_somebody_planted() {
    let bench = Bench::new(NameMode::Encrypted);
    bench.tree().volume.shutdown().unwrap();
    let precious = bench.dir.path().join("precious");
    std::fs::write(&precious, b"precious").unwrap();
    std::fs::hard_link(&precious, bench.source().join("kmsfs.session")).unwrap();
    bench.tree().volume.shutdown().unwrap();
    assert_eq!(std::fs::read(&precious).unwrap(), b"precious");
    // A FIFO without a reader must not hang the mount either.
    let fifo = bench.source().join("kmsfs.session");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    bench.tree().volume.shutdown().unwrap();
    assert!(!fifo.exists());
}

#[test]
fn a_damaged_long_symlink_is_seen_and_can_be_removed() {
    let bench = Bench::new(NameMode::Encrypted);
    let tree = bench.tree();
    let ino = tree.volume.symlink(me(), ROOT, b"l", &[b't'; 4000]).unwrap().ino;
    for name in backing_names(&bench.source()).iter().filter(|n| n.starts_with("kmsfs.link.")) {
        std::fs::remove_file(bench.source().join(name)).unwrap();
    }
    assert_eq!(tree.list(""), ["l"]);
    assert_eq!(tree.ino("l"), ino);
    assert_eq!(errno(tree.volume.readlink(ino)), libc::EIO);
    tree.volume.unlink(ROOT, b"l").unwrap();
}

#[test]
fn a_volume_is_locked_before_anything_in_it_is_believed() {
    let bench = Bench::new(NameMode::Encrypted);
    let held = std::fs::File::open(bench.source()).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    // What stands here while another works on it may be gone, or half done, a moment later.
    std::fs::write(bench.source().join("kmsfs.volume"), b"being replaced").unwrap();
    let flags = kmsfs::fs::MountFlags {
        acl: false,
        atime: kmsfs::fs::Atime::Noatime,
        own_by_caller: false,
        writeback: false,
        rekey_limit: 0,
    };
    for access in [Access::ReadOnly, Access::ReadWrite] {
        let unlock = kmsfs::keys::UnlockOptions::default();
        let refused = kmsfs::fs::Volume::open(&bench.source(), access, flags, &unlock);
        assert_eq!(refused.err().map(|e| e.exit_code), Some(14));
    }
    std::fs::remove_file(bench.source().join("kmsfs.volume")).unwrap();
    let unlock = kmsfs::keys::UnlockOptions::default();
    let refused = kmsfs::fs::Volume::open(&bench.source(), Access::ReadOnly, flags, &unlock);
    assert_eq!(refused.err().map(|e| e.exit_code), Some(14));
}
