use super::*;
use tempfile::TempDir;

fn dir() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn sentence<T>(result: Result<T, KeyError>) -> String {
    match result {
        Err(KeyError::Misconfigured(text)) => text,
        Err(other) => panic!("another class: {other:?}"),
        Ok(_) => panic!("accepted"),
    }
}

fn write(path: &Path, text: &str, mode: u32) {
    std::fs::write(path, text).expect("write");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("chmod");
}

fn good(line: &str) -> String {
    format!("{line}\n{}\n", "a1".repeat(32))
}

#[test]
fn a_new_key_file_reads_back_and_is_closed_to_others() {
    let dir = dir();
    let path = dir.path().join("key");
    let made = create_keyfile(&path).expect("made");
    assert_eq!(read_keyfile(&path).expect("read").expose(), made.expose());
    let meta = std::fs::metadata(&path).expect("stat");
    assert_eq!((meta.mode() & 0o7777, meta.len()), (0o600, 81));
}

#[test]
fn a_new_identity_reads_back() {
    let dir = dir();
    let path = dir.path().join("identity");
    let made = create_identity(&path).expect("made");
    assert_eq!(read_identity(&path).expect("read").public_key(), made.public_key());
    let text = std::fs::read_to_string(&path).expect("text");
    assert!(text.starts_with("KMSFS-X25519-1\n") && text.len() == 80);
}

#[test]
fn nothing_is_ever_overwritten() {
    let dir = dir();
    let path = dir.path().join("key");
    std::fs::write(&path, "precious").expect("write");
    assert!(sentence(create_keyfile(&path)).contains("never overwritten"));
    assert!(sentence(create_identity(&path)).contains("never overwritten"));
    assert_eq!(std::fs::read(&path).expect("read"), b"precious");
}

#[test]
fn the_text_is_checked_to_the_byte() {
    let dir = dir();
    let path = dir.path().join("key");
    for mode in [0o600, 0o400] {
        let _ = std::fs::remove_file(&path);
        write(&path, &good("KMSFS-KEYFILE-1"), mode);
        assert_eq!(read_keyfile(&path).expect("good").expose(), &[0xa1; 32]);
    }
    let text = good("KMSFS-KEYFILE-1");
    let bad = [
        String::new(),
        text[..text.len() - 1].into(),
        text.clone() + "\n",
        text.replace('\n', "\r\n"),
        text.replace("a1a1", "a1a"),
        text.replace("a1a1", "g1a1"),
        good("KMSFS-KEYFILE-2"),
        good("KMSFS-X25519-1"),
        "a1".repeat(100),
    ];
    for text in bad {
        let _ = std::fs::remove_file(&path);
        write(&path, &text, 0o600);
        assert!(sentence(read_keyfile(&path)).contains("is not a kmsfs key file"), "{text:?}");
    }
}

#[test]
fn open_permissions_are_refused_with_the_cure() {
    let dir = dir();
    let path = dir.path().join("key");
    write(&path, &good("KMSFS-KEYFILE-1"), 0o600);
    for mode in [0o640, 0o604, 0o660, 0o601, 0o610, 0o620] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
        let text = sentence(read_keyfile(&path));
        assert!(text.contains("chmod 600") && text.contains(&format!("{mode:04o}")), "{text}");
    }
}

#[test]
fn missing_files_directories_and_pipes_are_refused() {
    let dir = dir();
    assert!(sentence(read_keyfile(&dir.path().join("none"))).contains("does not exist"));
    assert!(sentence(read_keyfile(dir.path())).contains("not a regular file"));
    let pipe = dir.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .expect("mkfifo");
    // Returning at all is half of the test: a blocking open would wait for a writer.
    assert!(sentence(read_keyfile(&pipe)).contains("not a regular file"));
}

#[test]
fn a_key_file_of_somebody_else_is_refused() {
    let dir = dir();
    let path = dir.path().join("key");
    write(&path, &good("KMSFS-KEYFILE-1"), 0o600);
    // Only root can give a file away; for others the caller becomes somebody else.
    let mut me = rustix::process::geteuid().as_raw();
    if me == 0 {
        std::os::unix::fs::chown(&path, Some(4321), None).expect("chown");
    } else {
        me += 1;
    }
    let meta = std::fs::metadata(&path).expect("stat");
    let text = sentence(check_owner(&path, "key file", &meta, me));
    assert!(text.contains(&format!("belongs to user {}", meta.uid())), "{text}");
    assert!(check_owner(&path, "key file", &meta, meta.uid()).is_ok());
}

#[test]
fn a_passphrase_file_loses_one_newline() {
    let dir = dir();
    let path = dir.path().join("pass");
    for (text, passphrase) in
        [("open sesame\n", "open sesame"), ("two\n\n", "two\n"), ("none", "none"), ("\n", "")]
    {
        write(&path, text, 0o600);
        let read = read_passphrase_file(&path).expect("readable");
        assert_eq!(read.expose(), passphrase.as_bytes());
    }
    write(&path, &"x".repeat(64 * 1024 + 1), 0o600);
    assert!(sentence(read_passphrase_file(&path)).contains("longer than"));
    assert!(sentence(read_passphrase_file(&dir.path().join("none"))).contains("does not exist"));
}

#[test]
fn what_is_no_regular_file_is_never_opened() {
    use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
    let dir = dir();
    let path = dir.path().join("pipe");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0)
        .expect("mkfifo");
    let opens = inotify::init(CreateFlags::NONBLOCK).expect("inotify");
    inotify::add_watch(&opens, &path, WatchFlags::OPEN).expect("watched");
    assert!(sentence(read_keyfile(&path)).contains("not a regular file"));
    assert!(sentence(read_identity(&path).map(drop)).contains("not a regular file"));
    let mut buffer = [std::mem::MaybeUninit::uninit(); 512];
    let event = inotify::Reader::new(&opens, &mut buffer).next().map(|event| event.events());
    assert_eq!(event.err(), Some(rustix::io::Errno::AGAIN), "opening a device may do something");
    // The watch does see an open.
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
    let _fd = rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).expect("opens");
    let mut buffer = [std::mem::MaybeUninit::uninit(); 512];
    assert_eq!(
        inotify::Reader::new(&opens, &mut buffer).next().map(|e| e.events()),
        Ok(ReadFlags::OPEN)
    );
}

#[test]
fn a_file_that_could_not_be_finished_goes_unless_it_is_another_by_now() {
    let dir = dir();
    let path = dir.path().join("key");
    let ours = File::create(&path).expect("made");
    std::fs::remove_file(&path).expect("removed");
    std::fs::write(&path, "of somebody else").expect("write");
    remove_if_ours(&ours, &path);
    assert!(path.exists());
    remove_if_ours(&File::open(&path).expect("opens"), &path);
    assert!(!path.exists());
}

#[test]
fn a_private_file_is_nobody_elses() {
    let dir = dir();
    let path = dir.path().join("password");
    write(&path, "secret7\n", 0o600);
    assert_eq!(read_private_file(&path, "password file").expect("read").expose(), b"secret7");
    write(&path, "secret7", 0o640);
    let said = sentence(read_private_file(&path, "password file"));
    assert!(said.contains("open to others") && !said.contains("secret7"), "{said}");
    write(&path, &"x".repeat(MAX_PASSPHRASE as usize + 1), 0o600);
    assert!(sentence(read_private_file(&path, "password file")).contains("longer"));
    let nowhere = dir.path().join("nowhere");
    assert!(sentence(read_private_file(&nowhere, "password file")).contains("nowhere"));
}
