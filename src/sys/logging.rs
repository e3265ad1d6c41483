//! Where log lines go: standard error, or the system log once the program is a daemon.
//!
//! Knows nothing of what is logged; callers keep secrets out of their messages.

use log::{Level, LevelFilter, Log, Metadata, Record};
use std::ffi::CString;
use std::sync::atomic::{AtomicBool, Ordering};

struct Logger {
    to_syslog: AtomicBool,
}

static LOGGER: Logger = Logger { to_syslog: AtomicBool::new(false) };

/// Starts logging to standard error. A second call only changes the level.
pub fn init(level: LevelFilter) {
    // An error means that a logger is installed already, which is then this one or a test's.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(level);
}

/// Sends further lines to the system log: standard error is about to go away.
pub fn to_syslog() {
    // SAFETY: the identity is a static C string, as openlog keeps the pointer.
    unsafe { libc::openlog(c"kmsfs".as_ptr(), libc::LOG_PID, libc::LOG_DAEMON) };
    LOGGER.to_syslog.store(true, Ordering::Relaxed);
}

/// Sends panics to the log: a daemon has no standard error to print them on.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|info| log::error!("internal fault: {info}")));
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // The transport library tells every request at its lower levels.
        let limit = if metadata.target().starts_with("fuser") {
            LevelFilter::Warn
        } else {
            log::max_level()
        };
        metadata.level() <= limit
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = harmless(&record.args().to_string());
        if self.to_syslog.load(Ordering::Relaxed) {
            write_syslog(record.level(), &line);
        } else {
            eprintln!("kmsfs: {line}");
        }
    }

    fn flush(&self) {}
}

/// A sentence for a terminal or a log: control characters become `\xNN`, the rest stays. Names of
/// files stand in such sentences, and who chose them must neither drive the terminal nor add lines.
pub fn harmless(sentence: &str) -> String {
    let mut text = String::with_capacity(sentence.len());
    for c in sentence.chars() {
        if c.is_control() {
            let mut utf8 = [0; 4];
            let bytes = c.encode_utf8(&mut utf8).bytes();
            bytes.for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
        } else {
            text.push(c);
        }
    }
    text
}

fn write_syslog(level: Level, message: &str) {
    let priority = match level {
        Level::Error => libc::LOG_ERR,
        Level::Warn => libc::LOG_WARNING,
        Level::Info => libc::LOG_INFO,
        Level::Debug | Level::Trace => libc::LOG_DEBUG,
    };
    let Ok(text) = CString::new(message) else { return };
    // SAFETY: the format takes exactly one C string and both strings live through the call.
    unsafe { libc::syslog(priority, c"%s".as_ptr(), text.as_ptr()) };
}
