//! Watches whether the volume's key is still granted, and does what follows if it is not.
//!
//! In this order: nothing is opened any more; what programs have written is brought to the disk, for a
//! bounded time; the keys are dropped; the kernel drops what it has decrypted in its caches.

use super::super::control::Control;
use crate::fs::{Custody, Gone, Volume};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Threads that make the kernel drop its caches.
const DROPPERS: usize = 4;
/// Least time between two questions.
const LEAST: Duration = Duration::from_millis(500);
/// Time that what programs have written gets to reach the disk before the keys go.
const LAST_FLUSH: Duration = Duration::from_secs(10);

/// The watching thread; dropping it ends it.
pub struct Watch {
    volume: Arc<Volume>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Asks every `interval` from now on. `None` for a volume whose keys nobody can take away.
    pub fn start(
        volume: &Arc<Volume>,
        control: &Arc<Control>,
        interval: Duration,
    ) -> io::Result<Option<Self>> {
        if !volume.is_watched() {
            return Ok(None);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let watcher = Watcher {
            volume: Arc::clone(volume),
            control: Arc::clone(control),
            stop: Arc::clone(&stop),
        };
        let thread = std::thread::Builder::new().name("kmsfs-watch".into());
        let thread = thread.spawn(move || watcher.run(interval))?;
        Ok(Some(Self { volume: Arc::clone(volume), stop, thread: Some(thread) }))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.volume.stop_waiting_to_look();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Watcher {
    volume: Arc<Volume>,
    control: Arc<Control>,
    stop: Arc<AtomicBool>,
}

impl Watcher {
    fn run(&self, interval: Duration) {
        loop {
            self.volume.wait_to_look(interval);
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            let looked = Instant::now();
            // Whatever goes wrong here, the next look comes.
            if catch_unwind(AssertUnwindSafe(|| self.look())).is_err() {
                log::error!("looking after the volume's key failed by an internal fault");
            }
            // However often somebody is told no.
            std::thread::sleep(LEAST.saturating_sub(looked.elapsed()));
        }
    }

    fn look(&self) {
        match self.volume.look_at_keys() {
            Custody::Unchanged => {}
            Custody::Lost(why, error) => {
                log::error!("{why}: {error}");
                self.volume.refuse_keys(&error);
                self.take_away(why);
            }
            Custody::Granted(key) => match self.volume.unlock_keys(&key) {
                Ok(()) => log::warn!("the volume's key is granted again"),
                Err(error) => log::error!(
                    "the volume's key is granted again, but open files stay locked until theirs can \
                     be had: {error}"
                ),
            },
        }
    }

    fn take_away(&self, why: Gone) {
        self.last_flush();
        self.volume.lock_keys(why);
        self.drop_caches();
    }

    /// A file whose request hangs must not keep the pages of the others.
    fn drop_caches(&self) {
        let inodes = self.volume.cached_inodes();
        let (sender, dropped) = channel();
        for share in inodes.chunks(inodes.len().div_ceil(DROPPERS).max(1)) {
            let (control, sender, share) =
                (Arc::clone(&self.control), sender.clone(), share.to_vec());
            let work = move || {
                share.into_iter().for_each(|ino| control.write_back(ino));
                let _ = sender.send(());
            };
            if let Err(error) = std::thread::Builder::new().name("kmsfs-drop".into()).spawn(work) {
                log::error!("the kernel keeps what it has cached: {error}");
            }
        }
        drop(sender);
        let started = Instant::now();
        let left = || LAST_FLUSH.saturating_sub(started.elapsed());
        let end = loop {
            if let Err(end) = dropped.recv_timeout(left()) {
                break end;
            }
        };
        if end == RecvTimeoutError::Timeout {
            log::error!("the kernel has not dropped everything it has cached yet; it goes on");
        }
        log::warn!(
            "keys dropped, and the kernel's cache of {} files, directories and links; the volume is \
             locked until its key is granted again",
            inodes.len()
        );
    }

    /// Writes what there is to write; a disk that hangs must not keep the keys in memory.
    fn last_flush(&self) {
        let (sender, done) = channel();
        let (volume, control) = (Arc::clone(&self.volume), Arc::clone(&self.control));
        let flush = move || {
            let _ = sender.send(control.sync(&volume));
        };
        let started = std::thread::Builder::new().name("kmsfs-last".into()).spawn(flush);
        match started.map(|_| done.recv_timeout(LAST_FLUSH)) {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => log::error!("not everything could be written before: {error}"),
            Ok(Err(_)) => log::error!(
                "not everything could be written within {} s; the rest is lost unless the key is \
                 granted again",
                LAST_FLUSH.as_secs()
            ),
            Err(error) => log::error!("nothing could be written before: {error}"),
        }
    }
}
