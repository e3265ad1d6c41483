//! Progress of long work: a bar on a terminal, a plain line now and then otherwise.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::note;

/// Files between two plain lines.
const PLAIN_EVERY: u64 = 10_000;

/// Counts files and bytes; safe to share between threads. Always on standard error.
pub struct Progress {
    bar: Option<ProgressBar>,
    verb: &'static str,
    quiet: bool,
    files: AtomicU64,
}

impl Progress {
    /// `verb` says what happens to the files ("checked"). `quiet` shows nothing at all.
    pub fn new(verb: &'static str, quiet: bool) -> Self {
        let bytes =
            "{bar:30} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {msg} eta {eta}";
        Self::with_template(bytes, verb, quiet)
    }

    /// For work that takes as long for a small file as for a large one: [`Self::more`] and
    /// [`Self::done`] take 1 for each.
    pub fn of_files(verb: &'static str, quiet: bool) -> Self {
        Self::with_template("{bar:30} {pos}/{len} files {per_sec} {msg} eta {eta}", verb, quiet)
    }

    fn with_template(template: &str, verb: &'static str, quiet: bool) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            // The template is a constant; should indicatif refuse it, its default serves.
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self { bar, verb, quiet, files: AtomicU64::new(0) }
    }

    /// More work was found.
    pub fn more(&self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc_length(bytes);
        }
    }

    /// One file of so many bytes is done.
    pub fn done(&self, bytes: u64) {
        let files = self.files.fetch_add(1, Relaxed) + 1;
        match &self.bar {
            Some(bar) => {
                bar.inc(bytes);
                bar.set_message(format!("{files} files {}", self.verb));
            }
            None if !self.quiet && files.is_multiple_of(PLAIN_EVERY) => {
                note(format!("{files} files {}", self.verb));
            }
            None => {}
        }
    }

    /// Prints a line without tearing the bar.
    pub fn line(&self, print: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
