//! A backing file whose length lies (a crash leftover, a restored copy, an attacker): the kernel has
//! cached a wrong size by the time the header is read, and must be made to look again.

#[path = "support/mounted.rs"]
mod mounted;

use mounted::Mounted;

#[test]
fn the_authenticated_size_reaches_programs() {
    let mount = Mounted::new("");
    mount.shell("cd \"$0\"; head -c 5000 /dev/urandom > f; sha256sum < f > sum");
    mount.unmount();
    let backing = std::fs::read_dir(mount.source()).unwrap().map(|e| e.unwrap().path());
    let file = backing.into_iter().find(|p| p.metadata().unwrap().len() == 4096 + 5000).unwrap();
    std::fs::OpenOptions::new().write(true).open(file).unwrap().set_len(4096 + 9000).unwrap();
    mount.mount();
    // The wrong size is cached first, as a file manager would.
    assert_eq!(
        mount.shell("ls -l \"$0\"/f >/dev/null; sha256sum < \"$0\"/f | diff - \"$0\"/sum").trim(),
        ""
    );
    assert_eq!(mount.shell("stat -c %s \"$0\"/f").trim(), "5000");
}
