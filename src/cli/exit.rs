//! The one function that turns an error into a sentence and an exit code.

use std::io::{self, Write};
use std::process::ExitCode;

use crate::fs::OpenError;
pub use crate::fs::volume::exit::*;

use super::output::harmless;

/// An error with an exit code of its own.
pub fn failure(code: i32, message: impl Into<String>) -> anyhow::Error {
    OpenError::new(code, message.into()).into()
}

/// The reader of our standard output has gone; nobody is left to tell.
#[derive(Debug, thiserror::Error)]
#[error("standard output was closed")]
pub struct OutputClosed;

/// Prints what went wrong (unless nobody listens any more) and returns the exit code.
pub fn report(program: &str, result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    if !error.is::<OutputClosed>() {
        // A closed standard error must not turn into a panic.
        let _ = writeln!(io::stderr(), "{program}: {}", harmless(&format!("{error:#}")));
    }
    ExitCode::from(u8::try_from(code_of(&error)).unwrap_or(1))
}

/// The exit code of an error: that of the cause that carries one.
fn code_of(error: &anyhow::Error) -> i32 {
    let known = error.chain().find_map(|cause| cause.downcast_ref::<OpenError>());
    known.map_or(FAILURE, |open| open.exit_code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_survive_context() {
        assert_eq!(code_of(&failure(DAMAGE, "x")), DAMAGE);
        assert_eq!(code_of(&failure(DAMAGE, "x").context("y")), DAMAGE);
        assert_eq!(code_of(&anyhow::anyhow!("plain")), FAILURE);
    }
}
