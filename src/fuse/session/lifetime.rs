//! What runs beside the event loops: signals, the periodic commit, and waiting for the end.

use super::super::control::Control;
use super::super::glue::Glue;
use super::super::metrics;
use super::super::mount::{Mount, UnmountError};
use crate::fs::Volume;
use parking_lot::{Condvar, Mutex};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long changes may stay in memory without anybody asking for them to be kept.
const COMMIT_INTERVAL: Duration = Duration::from_secs(5);

/// How often the metrics file is written.
const METRICS_INTERVAL: Duration = Duration::from_secs(10);

/// What the main thread waits for.
pub enum Event {
    /// Somebody asks the daemon to end.
    Signal,
    /// The event loops have ended.
    Ended(io::Result<()>),
}

/// Event-loop threads: one per processor, at least 4 because handlers block on the disk.
pub fn loop_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get()).clamp(4, 16)
}

/// Turns SIGTERM, SIGINT and SIGHUP into events.
pub fn watch_signals(events: Sender<Event>) -> io::Result<Handle> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let handle = signals.handle();
    std::thread::Builder::new().name("kmsfs-signals".into()).spawn(move || {
        for _ in signals.forever() {
            if events.send(Event::Signal).is_err() {
                return;
            }
        }
    })?;
    Ok(handle)
}

/// Starts the event loops.
pub fn start_loops(session: fuser::Session<Glue>, events: Sender<Event>) -> io::Result<()> {
    let run = move || {
        let ended = session.run();
        // Nobody waits any more only if the process is ending.
        let _ = events.send(Event::Ended(ended));
    };
    std::thread::Builder::new().name("kmsfs-loops".into()).spawn(run).map(drop)
}

/// Returns once the mount has answered a request, whatever it answered.
pub fn wait_for_answer(mount: &Mount) {
    if let Err(e) = rustix::fs::statfs(mount.path()) {
        log::debug!("first request: {e}");
    }
}

/// Waits until the kernel has let go of the mount; signals ask it to. `save` is called while
/// programs keep the mount busy: whoever signals may kill next.
pub fn wait(events: &Receiver<Event>, mount: &Mount, save: impl Fn()) -> io::Result<()> {
    let mut asked = false;
    loop {
        match events.recv() {
            Ok(Event::Signal) => {
                if !leave(mount, asked) {
                    save();
                }
                asked = true;
            }
            Ok(Event::Ended(result)) => return result,
            Err(_) => return Err(io::Error::other("the event loops vanished")),
        }
    }
}

/// Asks the kernel to let go: politely first, then whatever programs still do. Detached programs
/// keep what they have open and are served until they close it. True if it let go.
fn leave(mount: &Mount, detach: bool) -> bool {
    match mount.unmount(detach) {
        Ok(()) => return true,
        Err(e @ UnmountError::Busy(..)) => {
            log::error!("{e}; still serving, a second signal detaches the mount");
        }
        Err(e) => log::error!("{e}; still serving"),
    }
    false
}

/// After an unclean stop: puts right what it left while the volume is served. Joining it waits for
/// that.
pub fn start_mending(volume: Arc<Volume>) -> Option<JoinHandle<()>> {
    if !volume.was_unclean() {
        return None;
    }
    let thread = std::thread::Builder::new().name("kmsfs-mend".into());
    thread.spawn(move || volume.mend_leftovers()).ok()
}

/// Something done every few seconds; dropping it ends its thread.
pub struct Periodic {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Periodic {
    /// Commits every few seconds from now on.
    pub fn commit(volume: Arc<Volume>) -> io::Result<Self> {
        let mut settled = false;
        let mut last_failure = String::new();
        Self::start("kmsfs-periodic", COMMIT_INTERVAL, move || {
            // At once, so that the first fsync need not wait for what others have written to the same
            // disk.
            if !std::mem::replace(&mut settled, true) {
                if let Err(e) = volume.settle_start() {
                    log::warn!("flush at the start: {e}");
                }
            } else {
                commit_once(&volume, &mut last_failure);
            }
        })
    }

    /// Writes the metrics file every few seconds from now on; a failure that lasts is logged once.
    pub fn metrics(path: PathBuf, volume: Arc<Volume>, control: Arc<Control>) -> io::Result<Self> {
        let mut last_failure = String::new();
        Self::start("kmsfs-metrics", METRICS_INTERVAL, move || {
            let written = metrics::write(&path, &metrics::text(&volume, control.counters()));
            let failure = written.err().map_or(String::new(), |e| e.to_string());
            if !failure.is_empty() && failure != last_failure {
                log::error!("metrics file {}: {failure}", path.display());
            }
            last_failure = failure;
        })
    }

    /// Does it now, and again after each interval.
    fn start(
        name: &str,
        interval: Duration,
        mut act: impl FnMut() + Send + 'static,
    ) -> io::Result<Self> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let theirs = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            act();
            let (stopped, wake) = &*theirs;
            let mut stop = stopped.lock();
            while !*stop {
                let timed_out = wake.wait_for(&mut stop, interval).timed_out();
                if !*stop && timed_out {
                    parking_lot::MutexGuard::unlocked(&mut stop, &mut act);
                }
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Periodic {
    fn drop(&mut self) {
        *self.stop.0.lock() = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One commit; a failure that lasts is logged once.
fn commit_once(volume: &Volume, last_failure: &mut String) {
    let commit = std::panic::AssertUnwindSafe(|| volume.tick());
    let failure = match std::panic::catch_unwind(commit) {
        Ok(Ok(())) => String::new(),
        Ok(Err(e)) => format!("periodic commit: {e}"),
        Err(_) => "periodic commit: internal fault".into(),
    };
    if !failure.is_empty() && failure != *last_failure {
        log::error!("{failure}");
    }
    *last_failure = failure;
}
