//! Exit codes, and the one function that turns an error into a sentence and a code.

use std::io::{self, Write};
use std::process::ExitCode;

use crate::format::FormatError;
use crate::fs::volume::OpenError;
use crate::keys::KeyError;
use crate::keys::unlock::UnlockError;

/// Anything without a code of its own.
pub const OTHER: i32 = 1;
/// The directory is not a kmsfs volume.
pub const NOT_A_VOLUME: i32 = 10;
/// The passphrase, key file or identity does not open the volume.
pub const WRONG_KEY: i32 = 11;
/// Key material is missing, unreadable or open to others.
pub const KEY_MATERIAL: i32 = 12;
/// The descriptor is damaged, newer than this program, or needs an unknown feature.
pub const DESCRIPTOR: i32 = 13;
/// Another kmsfs uses the volume.
pub const IN_USE: i32 = 14;
/// The mount point cannot be used.
pub const MOUNT_POINT: i32 = 15;
/// Damaged content, names or attributes were found.
pub const DAMAGE: i32 = 17;
/// The key exists but cannot be had now.
pub const KEY_UNAVAILABLE: i32 = 18;

/// A failure that already knows its exit code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Process exit code.
    pub code: i32,
    /// What happened, to which file or key, and what to do.
    pub message: String,
}

/// An error with an exit code, for `?` and `bail`-like returns.
pub fn failure(code: i32, message: impl Into<String>) -> anyhow::Error {
    Failure { code, message: message.into() }.into()
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
        let _ = writeln!(io::stderr(), "{program}: {error:#}");
    }
    ExitCode::from(u8::try_from(code_of(&error)).unwrap_or(1))
}

/// The exit code of an error: the innermost layer that has an opinion decides.
pub fn code_of(error: &anyhow::Error) -> i32 {
    for cause in error.chain() {
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return failure.code;
        }
        if let Some(open) = cause.downcast_ref::<OpenError>() {
            return open.exit_code;
        }
        if let Some(unlock) = cause.downcast_ref::<UnlockError>() {
            return match unlock {
                UnlockError::Format(_) => DESCRIPTOR,
                UnlockError::Key(key) => key_code(key),
            };
        }
        if let Some(key) = cause.downcast_ref::<KeyError>() {
            return key_code(key);
        }
        if cause.is::<FormatError>() {
            return DESCRIPTOR;
        }
    }
    OTHER
}

fn key_code(error: &KeyError) -> i32 {
    match error {
        KeyError::WrongKey(_) | KeyError::Tampered(_) | KeyError::NotOurs(_) => WRONG_KEY,
        KeyError::Misconfigured(_) => KEY_MATERIAL,
        KeyError::Revoked(_) | KeyError::Unavailable(_) | KeyError::Throttled(_) => KEY_UNAVAILABLE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn codes_survive_context() {
        let wrong: anyhow::Error = KeyError::WrongKey("wrong passphrase".into()).into();
        assert_eq!(code_of(&wrong), WRONG_KEY);
        let newer = Err::<(), _>(UnlockError::Format(FormatError::Version(2))).context("volume");
        assert_eq!(newer.map_err(|e| code_of(&e)), Err(DESCRIPTOR));
        let open = OpenError { message: "in use".into(), exit_code: IN_USE };
        assert_eq!(code_of(&open.into()), IN_USE);
        assert_eq!(code_of(&anyhow::anyhow!("plain")), OTHER);
        assert_eq!(code_of(&failure(DAMAGE, "x").context("y")), DAMAGE);
    }
}
