//! The life of a mount: open the volume, mount, tell the starter, serve, unmount, close.
//!
//! In this order, because each step relies on the one before: the daemon splits off first, while
//! it has one thread and no secret (locked memory does not survive a fork); prompts still reach
//! the terminal, which is given up only when the mount answers. The volume is closed only after
//! the kernel has let go, when no request can come any more.

mod daemon;
mod lifetime;
mod notify;
mod watch;

use super::control::{Control, Facts};
use super::glue::Glue;
use super::guard::Hook;
use super::init::Wanted;
use super::mount::{self, Mount, MountError, MountOptions, MountPoint};
use crate::fs::volume::{OpenError, exit};
use crate::fs::{Access, MountFlags, Volume};
use crate::sys::{harden_process, logging, process};
use daemon::{Reporter, Side};
use lifetime::{Event, Periodic};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use watch::Watch;

/// What to mount, where and how.
pub struct Config {
    /// Backing directory.
    pub source: PathBuf,
    /// Directory to mount on.
    pub mountpoint: PathBuf,
    /// Mount options.
    pub options: MountOptions,
    /// Stay in the foreground.
    pub foreground: bool,
    /// Name of the AEAD backend, for `status`.
    pub aead: &'static str,
    /// How often the KMS is asked whether the volume's key is still granted.
    pub probe: Duration,
    /// Prometheus text file, rewritten every few seconds.
    pub metrics_file: Option<PathBuf>,
    /// Called before each operation; for tests that inject faults.
    pub hook: Option<Hook>,
}

/// Why a session failed: a sentence and an exit code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct SessionError {
    /// What happened and what to do.
    pub message: String,
    /// Process exit code.
    pub exit_code: i32,
}

impl SessionError {
    fn other(what: &str, e: &impl std::fmt::Display) -> Self {
        Self { message: format!("{what}: {e}"), exit_code: exit::FAILURE }
    }
}

impl From<MountError> for SessionError {
    fn from(e: MountError) -> Self {
        Self { message: e.message, exit_code: e.exit_code }
    }
}

impl From<OpenError> for SessionError {
    fn from(e: OpenError) -> Self {
        Self { message: e.message, exit_code: e.exit_code }
    }
}

/// Mounts and serves. In the foreground it returns when the mount has ended; otherwise when the
/// mount answers, while a daemon serves it. `open` opens the volume; it may ask on the terminal.
/// `inherited` are descriptors this program was started with; they are closed before serving.
pub fn serve(
    config: Config,
    inherited: &[i32],
    open: impl FnOnce(Access, MountFlags) -> Result<Volume, OpenError>,
) -> Result<(), SessionError> {
    let config = absolute(config)?;
    if config.foreground {
        let running = Running::start(&config, inherited, open)?;
        daemon::leave_directory();
        return running.serve();
    }
    match daemon::split()? {
        Side::Parent(outcome) => outcome,
        Side::Child(reporter) => std::process::exit(daemon_main(config, inherited, open, reporter)),
    }
}

/// Paths that still hold after leaving the working directory.
fn absolute(mut config: Config) -> Result<Config, SessionError> {
    let paths = [&mut config.source, &mut config.mountpoint];
    for path in paths.into_iter().chain(&mut config.metrics_file) {
        let full = std::path::absolute(&path);
        *path = full.map_err(|e| SessionError::other(&path.display().to_string(), &e))?;
    }
    Ok(config)
}

/// The daemon, from the split to its exit code.
fn daemon_main(
    config: Config,
    inherited: &[i32],
    open: impl FnOnce(Access, MountFlags) -> Result<Volume, OpenError>,
    reporter: Reporter,
) -> i32 {
    let running = match Running::start(&config, inherited, open) {
        Ok(running) => running,
        Err(e) => {
            reporter.failed(&e);
            return e.exit_code;
        }
    };
    daemon::detach();
    reporter.ready();
    match running.serve() {
        Ok(()) => 0,
        Err(e) => {
            log::error!("{e}");
            e.exit_code
        }
    }
}

/// A mount that answers.
struct Running {
    volume: Arc<Volume>,
    control: Arc<Control>,
    mount: Mount,
    events: Receiver<Event>,
    signals: signal_hook::iterator::Handle,
    probe: Duration,
    metrics_file: Option<PathBuf>,
}

impl Running {
    fn start(
        config: &Config,
        inherited: &[i32],
        open: impl FnOnce(Access, MountFlags) -> Result<Volume, OpenError>,
    ) -> Result<Self, SessionError> {
        prepare_process();
        let options = &config.options;
        let check = || mount::prepare(&config.source, &config.mountpoint, options);
        // An unusable mount point is told before a passphrase is asked for. A source that does not
        // exist is for `open` to tell.
        let early = match config.source.try_exists() {
            Ok(true) => Some(check()?),
            _ => None,
        };
        let access = if options.read_only { Access::ReadOnly } else { Access::ReadWrite };
        let volume = Arc::new(open(access, volume_flags(options))?);
        process::close_inherited(inherited);
        let point = early.map_or_else(check, Ok);
        let attached = point
            .map_err(SessionError::from)
            .and_then(|point| Self::attach(config, Arc::clone(&volume), point));
        if attached.is_err() {
            close(&volume)?;
        }
        attached
    }

    /// Mounts an open volume and starts serving it.
    fn attach(
        config: &Config,
        volume: Arc<Volume>,
        point: MountPoint,
    ) -> Result<Self, SessionError> {
        let options = &config.options;
        let control = Arc::new(Control::new(Facts {
            mountpoint: point.path().to_owned(),
            read_only: options.read_only,
            aead: config.aead,
        }));
        let threads = options.threads.unwrap_or_else(lifetime::loop_threads);
        let wanted = Wanted {
            writeback: options.writeback,
            acl: options.acl,
            cache_for: Duration::from_secs(options.cache_secs.into()),
            threads,
        };
        let mut glue = Glue::new(Arc::clone(&volume), Arc::clone(&control), wanted)
            .map_err(|e| SessionError::other("cannot start threads", &e))?;
        if let Some(hook) = &config.hook {
            glue = glue.with_hook(Arc::clone(hook));
        }
        let (sender, events) = channel();
        let signals = lifetime::watch_signals(sender.clone())
            .map_err(|e| SessionError::other("cannot watch signals", &e))?;
        let (connection, mount) = mount::mount(config.source.as_os_str(), point, options)?;
        let started = start_session(glue, connection, &control, threads)
            .and_then(|session| lifetime::start_loops(session, sender));
        if let Err(e) = started {
            abandon(&mount);
            return Err(handshake_error(&e, options));
        }
        lifetime::wait_for_answer(&mount);
        mount.raise_read_ahead();
        let (probe, metrics_file) = (config.probe, config.metrics_file.clone());
        Ok(Self { volume, control, mount, events, signals, probe, metrics_file })
    }

    /// Serves until the kernel has let go, then closes the volume.
    fn serve(self) -> Result<(), SessionError> {
        notify::ready();
        let committer = Periodic::commit(Arc::clone(&self.volume));
        if let Err(e) = &committer {
            log::error!("cannot start the commit thread: {e}");
            abandon(&self.mount);
        }
        let watch = Watch::start(&self.volume, &self.control, self.probe);
        if let Err(e) = &watch {
            log::error!("cannot start the thread that watches the key: {e}");
            abandon(&self.mount);
        }
        let metrics = self.metrics_file.clone().map(|file| {
            Periodic::metrics(file, Arc::clone(&self.volume), Arc::clone(&self.control))
                .inspect_err(|e| log::error!("no metrics file is written: {e}"))
        });
        let mending = lifetime::start_mending(Arc::clone(&self.volume));
        let save = || {
            if let Err(e) = self.control.sync(&self.volume) {
                log::error!("not everything could be written: {e}");
            }
        };
        let ended = lifetime::wait(&self.events, &self.mount, save);
        notify::stopping();
        self.signals.close();
        drop((committer, watch, metrics));
        if let Some(file) = &self.metrics_file {
            // Or it would go on telling of a mount that is no more.
            let _ = std::fs::remove_file(file);
        }
        if mending.is_some_and(|thread| thread.join().is_err()) {
            log::error!("what the last mount left was not put right: internal fault");
        }
        // After a broken connection the mount is still there, dead.
        abandon(&self.mount);
        let closed = close(&self.volume);
        ended.map_err(|e| SessionError::other("the connection to the kernel broke", &e))?;
        closed
    }
}

/// Writes everything and closes the volume.
fn close(volume: &Volume) -> Result<(), SessionError> {
    let source = volume.source().display();
    volume.shutdown().map_err(|e| SessionError::other(&format!("closing the volume {source}"), &e))
}

/// Takes a mount away that nobody serves (any more); does nothing if it is gone already.
fn abandon(mount: &Mount) {
    if let Err(e) = mount.unmount(true) {
        log::error!("{e}");
    }
}

fn prepare_process() {
    logging::log_panics();
    if let Err(e) = harden_process() {
        log::warn!("core dumps stay possible: {e}");
    }
    process::raise_open_file_limit();
    // Modes come from callers, already masked.
    rustix::process::umask(rustix::fs::Mode::empty());
    // Memory the daemon allocates must not wait for write-back to its own mount. Only for root.
    if let Err(e) = rustix::process::configure_io_flusher_behavior(true) {
        log::debug!("not marked as I/O flusher: {e}");
    }
}

fn volume_flags(options: &MountOptions) -> MountFlags {
    MountFlags {
        acl: options.acl,
        atime: options.atime,
        own_by_caller: rustix::process::geteuid().is_root(),
        writeback: options.writeback,
        rekey_limit: 0,
    }
}

/// Answers the kernel's first request.
fn start_session(
    glue: Glue,
    connection: std::os::fd::OwnedFd,
    control: &Control,
    threads: usize,
) -> io::Result<fuser::Session<Glue>> {
    let mut transport = fuser::Config::default();
    transport.n_threads = Some(threads);
    // The kernel itself keeps other users out; the transport's own filter would also refuse what
    // the kernel asks for in its own name.
    let everyone = fuser::SessionACL::All;
    let session = fuser::Session::from_fd(glue, connection, everyone, transport)?;
    control.set_notifier(session.notifier());
    Ok(session)
}

fn handshake_error(e: &io::Error, options: &MountOptions) -> SessionError {
    let message = if e.raw_os_error() == Some(libc::EPROTONOSUPPORT) && options.acl {
        "this kernel does not support -o acl on FUSE".into()
    } else {
        format!("the kernel and kmsfs could not agree on the FUSE connection: {e}")
    };
    SessionError { message, exit_code: exit::MOUNT }
}
