//! `kmsfsctl provision`: what a volume's keys need in AWS.

pub mod account;

mod key;

use clap::{Args, Subcommand};

/// Make what a volume's keys need in AWS; what is there already is found, not made again
#[derive(Args)]
pub struct ProvisionArgs {
    #[command(subcommand)]
    command: ProvisionCommand,
}

#[derive(Subcommand)]
enum ProvisionCommand {
    Key(Box<key::KeyArgs>),
}

/// Runs the command.
pub fn run(args: ProvisionArgs) -> anyhow::Result<()> {
    match args.command {
        ProvisionCommand::Key(args) => key::run(*args),
    }
}
