//! `kmsfsctl provision`: what a volume's keys need in AWS.

pub mod account;
mod activate;
mod all;
mod certificate;
mod cluster;
mod key;
mod key_store;
mod plan;
pub mod screen;
mod teardown;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::exit::{FAILURE, failure};
use crate::provision::account::Refused;
use crate::provision::certificate::Files;
use crate::provision::files::check_dir;

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
    Plan(plan::PlanArgs),
    All(Box<all::AllArgs>),
    Cluster(cluster::ClusterArgs),
    Certificate(certificate::CertificateArgs),
    Activate(activate::ActivateArgs),
    KeyStore(key_store::KeyStoreArgs),
    Key(Box<key::KeyArgs>),
    Teardown(teardown::TeardownArgs),
}

/// Runs the command.
pub fn run(args: &ProvisionArgs) -> anyhow::Result<()> {
    match &args.command {
        ProvisionCommand::Plan(args) => plan::run(args),
        ProvisionCommand::All(args) => all::run(args),
        ProvisionCommand::Cluster(args) => cluster::run(args),
        ProvisionCommand::Certificate(args) => certificate::run(args),
        ProvisionCommand::Activate(args) => activate::run(args),
        ProvisionCommand::KeyStore(args) => key_store::run(args),
        ProvisionCommand::Key(args) => key::run(args),
        ProvisionCommand::Teardown(args) => teardown::run(args),
    }
}

/// Which cluster, and where its files are.
#[derive(Args)]
struct ClusterOptions {
    /// The cluster's id; without it the one that is tagged with the deployment's name
    #[arg(long, value_name = "ID")]
    cluster: Option<String>,
    /// The directory of certificates, passwords and marks of what is being made (default: kmsfs-NAME in the current directory)
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl ClusterOptions {
    fn files(&self, name: &str) -> anyhow::Result<Files> {
        files_of(self.dir.as_deref(), name)
    }
}

/// The directory of a deployment, unless another one is named; nobody else may have a hand in it.
fn files_of(dir: Option<&Path>, name: &str) -> anyhow::Result<Files> {
    let files = match dir {
        Some(dir) => Files::new(dir),
        None if name.contains('/') => {
            let text =
                format!("{name:?} has a slash, so no directory is called after it: use --dir");
            return Err(failure(FAILURE, text));
        }
        None => Files::of_deployment(name),
    };
    check_dir(files.dir()).map_err(|text| failure(FAILURE, text))?;
    Ok(files)
}

fn refused(refused: Refused) -> anyhow::Error {
    failure(FAILURE, refused.sentence)
}
