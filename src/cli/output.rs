//! Standard output that survives a closed pipe, and names made safe to print.

use std::fmt::Write as _;
use std::io::{self, Write};

use serde::Serialize;

use super::exit::OutputClosed;
pub use crate::sys::logging::harmless;

/// Buffered standard output whose errors are [`OutputClosed`] when the reader has gone.
pub struct Out(io::BufWriter<io::StdoutLock<'static>>);

impl Out {
    /// Takes standard output.
    pub fn new() -> Self {
        Self(io::BufWriter::new(io::stdout().lock()))
    }

    /// One line of text.
    pub fn line(&mut self, text: impl AsRef<str>) -> anyhow::Result<()> {
        self.bytes(text.as_ref().as_bytes())?;
        self.bytes(b"\n")
    }

    /// A labelled fact, aligned with its neighbours.
    pub fn fact(&mut self, label: &str, value: impl AsRef<str>) -> anyhow::Result<()> {
        self.line(format!("{label:<20} {}", value.as_ref()))
    }

    /// Raw bytes.
    pub fn bytes(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.0.write_all(bytes).map_err(closed)
    }

    /// One JSON document on lines of its own.
    pub fn json(&mut self, value: &impl Serialize) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(value)?;
        self.line(text)
    }

    /// Hands everything to the reader; every command ends with this.
    pub fn finish(mut self) -> anyhow::Result<()> {
        self.0.flush().map_err(closed)
    }
}

fn closed(error: io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => OutputClosed.into(),
        _ => anyhow::Error::new(error).context("cannot write to standard output"),
    }
}

/// A line for a human on standard error; a closed standard error is nobody's failure.
pub fn note(text: impl AsRef<str>) {
    let _ = writeln!(io::stderr(), "{}", text.as_ref());
}

/// A file name or path as text: control characters (a terminal would obey them) and invalid UTF-8
/// become `\xNN`, a backslash becomes `\\`, so that different names always look different.
pub fn shown(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for piece in bytes.utf8_chunks() {
        for c in piece.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                c if c.is_control() => text.push_str(&harmless(&c.to_string())),
                c => text.push(c),
            }
        }
        for byte in piece.invalid() {
            push_hex(&mut text, *byte);
        }
    }
    text
}

fn push_hex(text: &mut String, byte: u8) {
    // Writing to a String cannot fail.
    let _ = write!(text, "\\x{byte:02x}");
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

/// A byte count for humans.
pub fn human_bytes(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_names_are_harmless_and_distinct() {
        assert_eq!(shown(b"plain name"), "plain name");
        assert_eq!(shown("größe".as_bytes()), "größe");
        assert_eq!(shown(b"\x1b[31m"), "\\x1b[31m");
        assert_eq!(shown(b"a\\x1b"), "a\\\\x1b");
        assert_eq!(shown(b"\xff\n"), "\\xff\\x0a");
        assert_eq!(shown("\u{85}".as_bytes()), "\\xc2\\x85");
        assert_eq!(harmless("größe \\ \u{1b}[31m\n\u{85}"), "größe \\ \\x1b[31m\\x0a\\xc2\\x85");
    }
}
