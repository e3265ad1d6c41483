//! A fault in a handler: the request fails, the mount lives.

#[path = "support/volume.rs"]
#[allow(dead_code)]
mod volume;

use std::fs;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kmsfs::format::descriptor::NameMode;
use kmsfs::fs::Volume;
use kmsfs::fuse::{Config, MountOptions, Op, control, serve};
use kmsfs::keys::UnlockOptions;
use volume::Bench;

#[test]
fn a_panic_in_a_handler_fails_that_request_only() {
    let bench = Bench::new(NameMode::Encrypted);
    let point = bench.dir.path().join("point");
    fs::create_dir(&point).unwrap();
    let faulty = Arc::new(AtomicBool::new(false));
    let armed = Arc::clone(&faulty);
    let config = Config {
        source: bench.source(),
        mountpoint: point.clone(),
        options: MountOptions::default(),
        foreground: true,
        aead: "test",
        probe: std::time::Duration::from_secs(60),
        metrics_file: None,
        hook: Some(Arc::new(move |op| {
            let hit =
                matches!(op, Op::Read | Op::Fsync | Op::Mkdir) && armed.load(Ordering::SeqCst);
            assert!(!hit, "injected fault in {}", op.name());
        })),
    };
    let source = bench.source();
    let open = move |access, flags| Volume::open(&source, access, flags, &UnlockOptions::default());
    let served = std::thread::spawn(move || serve(config, &[], open));
    while control::status(&point).is_err() {
        assert!(!served.is_finished(), "the mount did not come up");
        std::thread::yield_now();
    }
    fs::write(point.join("f"), "content").unwrap();
    // Nothing cached: reading must reach the daemon.
    control::sync(&point).unwrap();
    let mut file = fs::OpenOptions::new().read(true).write(true).open(point.join("f")).unwrap();
    control::sync(&point).unwrap();
    faulty.store(true, Ordering::SeqCst);
    // More faults than there are loop and committer threads: none of them is lost.
    for i in 0..40 {
        let eio = |e: std::io::Error| assert_eq!(e.raw_os_error(), Some(libc::EIO));
        eio(file.read(&mut [0; 16]).unwrap_err());
        eio(file.sync_all().unwrap_err());
        eio(fs::create_dir(point.join(format!("d{i}"))).unwrap_err());
    }
    faulty.store(false, Ordering::SeqCst);
    let mut content = String::new();
    file.read_to_string(&mut content).unwrap();
    assert_eq!(content, "content");
    file.sync_all().unwrap();
    fs::create_dir(point.join("d")).unwrap();
    drop(file);
    kmsfs::fuse::mount::unmount_path(&point, false).unwrap();
    served.join().unwrap().unwrap();
}
