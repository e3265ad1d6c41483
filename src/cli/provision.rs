//! `kmsfsctl provision`: what a volume's keys need in AWS.

pub mod account;
mod activate;
mod certificate;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use parking_lot::Mutex;

use super::exit::{FAILURE, failure};
use super::output::note;
use crate::provision::Teller;
use crate::provision::account::Refused;
use crate::provision::certificate::Files;

/// Make and look after what a volume's keys need in AWS
///
/// Each step looks at what is there and does what is missing: interrupted, it is run again.
#[derive(Args)]
pub struct ProvisionArgs {
    #[command(subcommand)]
    command: ProvisionCommand,
}

#[derive(Subcommand)]
enum ProvisionCommand {
    Certificate(certificate::CertificateArgs),
    Activate(activate::ActivateArgs),
}

/// Runs the command.
pub fn run(args: &ProvisionArgs) -> anyhow::Result<()> {
    match &args.command {
        ProvisionCommand::Certificate(args) => certificate::run(args),
        ProvisionCommand::Activate(args) => activate::run(args),
    }
}

/// Which cluster, and where its files are.
#[derive(Args)]
struct ClusterOptions {
    /// The cluster's id; without it the one that is tagged with the deployment's name
    #[arg(long, value_name = "ID")]
    cluster: Option<String>,
    /// The directory of certificates and passwords (default: kmsfs-NAME in the current directory)
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl ClusterOptions {
    fn files(&self, name: &str) -> anyhow::Result<Files> {
        match &self.dir {
            Some(dir) => Ok(Files::new(dir)),
            None if name.contains('/') => {
                let text =
                    format!("{name:?} has a slash, so no directory is called after it: use --dir");
                Err(failure(FAILURE, text))
            }
            None => Ok(Files::new(format!("kmsfs-{name}"))),
        }
    }
}

fn refused(refused: Refused) -> anyhow::Error {
    failure(FAILURE, refused.sentence)
}

/// Tells on standard error; the same state only once.
#[derive(Default)]
struct Notes {
    last: Mutex<String>,
}

impl Teller for Notes {
    fn waiting(&self, what: &str, state: &str) {
        let line = format!("waiting for {what} (now {state})");
        let mut last = self.last.lock();
        if *last != line {
            note(&line);
            *last = line;
        }
    }

    fn done(&self, what: &str) {
        note(what);
    }
}
