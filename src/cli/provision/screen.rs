//! What people see while AWS takes its minutes: a spinner on a terminal, a line for each change
//! otherwise. Always on standard error.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;

use crate::cli::output::{harmless, note};
use crate::provision::Teller;

/// The teller of every `provision` command.
pub struct Screen {
    /// On a terminal, while there is something to wait for.
    spinner: Mutex<Option<ProgressBar>>,
    on_terminal: bool,
    /// What was told last.
    last: Mutex<String>,
}

impl Screen {
    /// Shows nothing until there is something to wait for.
    pub fn new() -> Self {
        let on_terminal = std::io::stderr().is_terminal();
        Self { spinner: Mutex::default(), on_terminal, last: Mutex::default() }
    }

    /// Whether this is something else than what was told last.
    fn is_new(&self, text: &str) -> bool {
        let mut last = self.last.lock();
        let new = *last != text;
        if new {
            text.clone_into(&mut last);
        }
        new
    }
}

impl Teller for Screen {
    fn waiting(&self, what: &str, state: &str) {
        let text = harmless(&format!("waiting: {what} is {state}"));
        let new = self.is_new(&text);
        if self.on_terminal {
            self.spinner.lock().get_or_insert_with(spinner).set_message(text);
        } else if new {
            note(text);
        }
    }

    fn done(&self, what: &str) {
        let text = harmless(what);
        self.is_new(&text);
        match &*self.spinner.lock() {
            Some(spinner) => spinner.suspend(|| note(text)),
            None => note(text),
        }
    }

    fn running(&self, what: &str) {
        let text = harmless(&format!("running: {what}"));
        self.is_new(&text);
        // It would draw over whatever the program asks there.
        if let Some(spinner) = self.spinner.lock().take() {
            spinner.finish_and_clear();
        }
        note(text);
    }
}

fn spinner() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    // The template is a constant; should indicatif refuse it, its default serves.
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

impl Drop for Screen {
    fn drop(&mut self) {
        if let Some(spinner) = self.spinner.get_mut() {
            spinner.finish_and_clear();
        }
    }
}
