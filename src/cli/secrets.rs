//! Where a command gets its secrets: the common key options and the terminal.
//!
//! Secrets never travel in arguments or the environment; a passphrase is typed on the controlling
//! terminal or read from a file.

use std::io;
use std::path::PathBuf;

use clap::Args;
use parking_lot::Mutex;

use crate::crypto::SecretBytes;
#[cfg(feature = "aws")]
use crate::keys::aws::Settings;
use crate::keys::unlock::{Expect, Prompt};
use crate::keys::{Lifetimes, UnlockOptions};

use super::kms::KmsOptions;
use super::mount::options::{generation, key_arn, volume_id};

/// The key options every command that opens a volume takes.
#[derive(Args, Clone, Default)]
pub struct KeyOptions {
    /// Read the passphrase from FILE (one newline at its end is dropped)
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// Use this key file instead of the one the volume remembers
    #[arg(long, value_name = "FILE")]
    pub keyfile: Option<PathBuf>,
    /// Open with this X25519 identity file (the private half of a recipient)
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    #[command(flatten)]
    pub kms: KmsOptions,
    #[command(flatten)]
    pub pins: Pins,
}

/// What the operator knows of the volume and the backing directory cannot be asked for.
#[derive(Args, Clone, Default)]
pub struct Pins {
    /// Refuse any volume but the one with this id
    #[arg(long, value_name = "ID", value_parser = volume_id)]
    expect_volume: Option<[u8; 16]>,
    /// Refuse any volume with another KMS key than this (may be repeated)
    #[arg(long, value_name = "ARN", value_parser = key_arn)]
    expect_key: Vec<String>,
    /// Refuse a descriptor older than generation N
    #[arg(long, value_name = "N", value_parser = generation)]
    expect_generation: Option<u64>,
}

impl Pins {
    fn as_expected(&self) -> Expect {
        Expect {
            volume: self.expect_volume,
            keys: self.expect_key.clone(),
            generation: self.expect_generation,
        }
    }
}

impl KeyOptions {
    /// Has the user named any key?
    pub fn any(&self) -> bool {
        self.passphrase_file.is_some() || self.keyfile.is_some() || self.identity.is_some()
    }

    /// For opening an existing volume: a missing passphrase is asked for once.
    pub fn unlock_options(&self) -> UnlockOptions {
        self.with_prompt(Box::new(ask))
    }

    /// For opening a volume again after its descriptor was changed: asked for once all the same.
    pub fn remembering_options(&self) -> UnlockOptions {
        self.with_prompt(remembered(ask))
    }

    /// For making a volume, which is opened right afterwards: a new passphrase, typed twice.
    pub fn creation_options(&self) -> UnlockOptions {
        let options = self.with_prompt(remembered(ask_twice));
        #[cfg(feature = "aws")]
        let options =
            UnlockOptions { kms: Settings { may_be_new: true, ..options.kms.clone() }, ..options };
        options
    }

    fn with_prompt(&self, prompt: Box<Prompt>) -> UnlockOptions {
        UnlockOptions {
            passphrase_file: self.passphrase_file.clone(),
            keyfile: self.keyfile.clone(),
            identity: self.identity.clone(),
            prompt: Some(prompt),
            expect: self.pins.as_expected(),
            #[cfg(feature = "aws")]
            kms: self.kms.settings(),
            lifetimes: Lifetimes::default(),
        }
    }
}

/// Asks the first time and gives the same answer until it is dropped.
fn remembered(
    ask: impl Fn(&str) -> io::Result<SecretBytes> + Send + Sync + 'static,
) -> Box<Prompt> {
    let kept: Mutex<Option<SecretBytes>> = Mutex::default();
    Box::new(move |prompt| {
        let mut kept = kept.lock();
        let secret = match kept.take() {
            Some(secret) => secret,
            None => ask(prompt)?,
        };
        let answer = SecretBytes::new(secret.expose().to_vec());
        *kept = Some(secret);
        Ok(answer)
    })
}

/// Asks once on the controlling terminal, without echo.
pub fn ask(prompt: &str) -> io::Result<SecretBytes> {
    let typed = rpassword::prompt_password(prompt).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => no_terminal(),
        // Opening /dev/tty without a controlling terminal.
        _ if error.raw_os_error() == Some(libc::ENXIO) => no_terminal(),
        _ => error,
    })?;
    Ok(SecretBytes::new(typed.into_bytes()))
}

/// Asks for a new passphrase, and again until both agree (three rounds at most).
pub fn ask_twice(prompt: &str) -> io::Result<SecretBytes> {
    for _ in 0..3 {
        let first = ask(prompt)?;
        if first.expose().is_empty() {
            super::output::note("An empty passphrase protects nothing; try again.");
            continue;
        }
        let second = ask("The same again: ")?;
        if first.expose() == second.expose() {
            return Ok(first);
        }
        super::output::note("The two do not match; try again.");
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "no passphrase was agreed on in three rounds"))
}

fn no_terminal() -> io::Error {
    io::Error::new(
        io::ErrorKind::NotFound,
        "there is no terminal to ask for the passphrase on; use --passphrase-file FILE",
    )
}
