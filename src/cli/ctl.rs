//! The grammar of `kmsfsctl`.

use std::process::ExitCode;
use std::sync::LazyLock;

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::crypto::BACKEND;
use crate::sys;

use super::cat::CatArgs;
use super::doctor::DoctorArgs;
use super::estimate::EstimateArgs;
use super::exit;
use super::export::ExportArgs;
use super::info::InfoArgs;
use super::init::InitArgs;
use super::key::KeyArgs;
use super::mounted::{StatusArgs, SyncArgs, UmountArgs};
#[cfg(feature = "aws")]
use super::provision::{self, ProvisionArgs};
use super::recover::RecoverArgs;
use super::verify::VerifyArgs;
use super::{cat, doctor, estimate, export, info, init, key, kms, mounted, recover, verify};

/// Make, inspect and look after kmsfs volumes; `kmsfs` mounts them
#[derive(Parser)]
#[command(name = "kmsfsctl", version = VERSION.as_str(), max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Init(InitArgs),
    Umount(UmountArgs),
    Status(StatusArgs),
    Sync(SyncArgs),
    Info(InfoArgs),
    Verify(VerifyArgs),
    Recover(RecoverArgs),
    Cat(CatArgs),
    Export(ExportArgs),
    Key(KeyArgs),
    #[cfg(feature = "aws")]
    Provision(ProvisionArgs),
    Doctor(DoctorArgs),
    Estimate(EstimateArgs),
}

/// The version, and which library encrypts content.
static VERSION: LazyLock<String> =
    LazyLock::new(|| format!("{} (AES-256-GCM by {BACKEND})", env!("CARGO_PKG_VERSION")));

/// The program.
pub fn main() -> ExitCode {
    // Parsing ends the process for --help, --version and usage errors (exit code 2).
    let arguments = Arguments::parse();
    sys::logging::init(log::LevelFilter::Warn);
    sys::process::raise_open_file_limit();
    let result = prepare().and_then(|()| run(arguments.command));
    exit::report("kmsfsctl", result)
}

fn prepare() -> anyhow::Result<()> {
    kms::ignore_ambient_endpoints().context("cannot leave out the variables AWS_ENDPOINT_URL")?;
    sys::harden_process().context("cannot forbid core dumps")
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Init(args) => init::run(args),
        Command::Umount(args) => mounted::umount(args),
        Command::Status(args) => mounted::status(args),
        Command::Sync(args) => mounted::sync(args),
        Command::Info(args) => info::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Recover(args) => recover::run(args),
        Command::Cat(args) => cat::run(args),
        Command::Export(args) => export::run(args),
        Command::Key(args) => key::run(args),
        #[cfg(feature = "aws")]
        Command::Provision(args) => provision::run(&args),
        Command::Doctor(args) => doctor::run(args),
        Command::Estimate(args) => estimate::run(args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_grammar_is_consistent() {
        Arguments::command().debug_assert();
    }
}
