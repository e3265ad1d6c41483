//! `kmsfsctl provision plan`: the whole way, and how far it has been gone.

use std::path::PathBuf;

use clap::Args;

use super::account::AccountOptions;
use super::files_of;
use crate::cli::output::{Out, shown};
use crate::provision::plan::{Place, Plan, State, Step, plan};
use crate::provision::survey::Deployment;

/// Show every step from an empty account to a volume on CloudHSM keys, and which are done
///
/// Looks only, and needs no permission to change anything.
#[derive(Args)]
pub struct PlanArgs {
    #[command(flatten)]
    deployment: DeploymentOptions,
    /// The directory of certificates and passwords (default: kmsfs-NAME in the current directory)
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Print the plan as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    account: AccountOptions,
}

/// What belongs to the deployment, where its name does not say it.
#[derive(Args)]
pub struct DeploymentOptions {
    /// The CloudHSM cluster, if it is not tagged with the deployment's name
    #[arg(long, value_name = "ID")]
    cluster: Option<String>,
    /// Id or name of the key store, if its name is not the deployment's
    #[arg(long, value_name = "ID|NAME")]
    store: Option<String>,
    /// Alias of the key [default: alias/NAME]
    #[arg(long, value_name = "ALIAS")]
    alias: Option<String>,
}

impl DeploymentOptions {
    /// For the library.
    pub fn deployment(&self, name: &str) -> Deployment {
        let alias = self.alias.as_deref().unwrap_or(name);
        let prefixed = alias.starts_with("alias/") || alias.starts_with("arn:");
        Deployment {
            name: name.to_owned(),
            cluster: self.cluster.clone(),
            store: self.store.clone(),
            alias: if prefixed { alias.to_owned() } else { format!("alias/{alias}") },
        }
    }
}

/// Runs the command.
pub fn run(args: &PlanArgs) -> anyhow::Result<()> {
    let account = args.account.account()?;
    let name = &args.account.name;
    let files = files_of(args.dir.as_deref(), name)?;
    let plan = plan(&account, &args.deployment.deployment(name), &files)?;
    let mut out = Out::new();
    if args.json {
        out.json(&plan)?;
        return out.finish();
    }
    print(&mut out, &plan)?;
    out.finish()
}

fn print(out: &mut Out, plan: &Plan) -> anyhow::Result<()> {
    let account = plan.account.as_deref().unwrap_or("unknown");
    let name = shown(plan.name.as_bytes());
    out.line(format!("Deployment {name}, Region {}, account {account}", plan.region))?;
    out.line("")?;
    for step in &plan.steps {
        line(out, step)?;
    }
    out.line("")?;
    out.line(format!(
        "With all of it: ${:.2} an hour, about ${:.0} a month ({}).",
        plan.per_hour, plan.per_month, plan.price_note
    ))
}

fn line(out: &mut Out, step: &Step) -> anyhow::Result<()> {
    out.line(summary(step))?;
    out.line(format!("{:23}{}", "", shown(step.detail.as_bytes())))?;
    match &step.command {
        Some(command) if step.state != State::Exists => {
            out.line(format!("{:23}$ {}", "", shown(command.as_bytes())))
        }
        _ => Ok(()),
    }
}

/// A step in one line.
pub fn summary(step: &Step) -> String {
    let state = match step.state {
        State::Exists => "exists",
        State::Missing => "missing",
        State::Unknown => "unknown",
    };
    let place = match step.place {
        Place::Api => "AWS",
        Place::Here => "here",
        Place::VpcHost => "VPC host",
        Place::Human => "you",
    };
    let price = match (step.per_hour, step.per_month) {
        (hour, month) if hour > 0.0 => format!(" (${hour:.2} an hour, ${month:.0} a month)"),
        (_, month) if month > 0.0 => format!(" (${month:.0} a month)"),
        _ => String::new(),
    };
    format!("{:>2}  {state:<8} {place:<9} {}{price}", step.number, step.what)
}
