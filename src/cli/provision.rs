//! `kmsfsctl provision`: what a volume's keys need in AWS.

pub mod account;

mod cluster;
mod key_store;
mod plan;
mod screen;
mod teardown;

use clap::{Args, Subcommand};

/// Make and look after what a volume's keys need in AWS
#[derive(Args)]
pub struct ProvisionArgs {
    #[command(subcommand)]
    command: ProvisionCommand,
}

#[derive(Subcommand)]
enum ProvisionCommand {
    Plan(plan::PlanArgs),
    Cluster(cluster::ClusterArgs),
    KeyStore(key_store::KeyStoreArgs),
    Teardown(teardown::TeardownArgs),
}

/// Runs the command.
pub fn run(args: &ProvisionArgs) -> anyhow::Result<()> {
    match &args.command {
        ProvisionCommand::Plan(args) => plan::run(args),
        ProvisionCommand::Cluster(args) => cluster::run(args),
        ProvisionCommand::KeyStore(args) => key_store::run(args),
        ProvisionCommand::Teardown(args) => teardown::run(args),
    }
}
