//! `kmsfsctl provision teardown`: how to take a deployment down; does none of it.

use clap::{Args, Subcommand};

use super::account::AccountOptions;
use super::plan::DeploymentOptions;
use crate::cli::output::{Out, shown};
use crate::provision::teardown::{Teardown, teardown};

/// Take a deployment down, without losing what is still needed
#[derive(Args)]
pub struct TeardownArgs {
    #[command(subcommand)]
    command: TeardownCommand,
}

#[derive(Subcommand)]
enum TeardownCommand {
    Plan(TeardownPlanArgs),
}

/// Show the order, the commands, and what to know before; nothing is deleted
#[derive(Args)]
struct TeardownPlanArgs {
    #[command(flatten)]
    deployment: DeploymentOptions,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    account: AccountOptions,
}

/// Runs the command.
pub fn run(args: &TeardownArgs) -> anyhow::Result<()> {
    let TeardownCommand::Plan(args) = &args.command;
    let account = args.account.account()?;
    let plan = teardown(&account, &args.deployment.deployment(&args.account.name))?;
    let mut out = Out::new();
    if args.json {
        out.json(&plan)?;
        return out.finish();
    }
    print(&mut out, &plan)?;
    out.finish()
}

fn print(out: &mut Out, plan: &Teardown) -> anyhow::Result<()> {
    let name = shown(plan.name.as_bytes());
    out.line(format!("Deployment {name}, Region {}. Nothing is deleted by this.", plan.region))?;
    out.line("")?;
    out.line("Before:")?;
    for warning in &plan.warnings {
        out.line(format!("  - {}", shown(warning.as_bytes())))?;
    }
    for step in &plan.steps {
        out.line("")?;
        out.line(format!("{}. {}: {}", step.number, step.what, shown(step.detail.as_bytes())))?;
        for thing in &step.things {
            out.line(format!("   - {}", shown(thing.as_bytes())))?;
        }
        for command in &step.commands {
            out.line(format!("   $ {}", shown(command.as_bytes())))?;
        }
    }
    Ok(())
}
