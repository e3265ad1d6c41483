//! `kmsfsctl provision activate`: the administrator of a cluster, and the user that KMS logs in as.

use std::path::Path;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::account::AccountOptions;
use super::screen::Screen;
use super::{ClusterOptions, refused};
use crate::cli::exit::{FAILURE, failure};
use crate::cli::kms::duration;
use crate::cli::output::Out;
use crate::provision::activate::{
    ADMIN, Activated, Activation, Executor, KMSUSER, Keep, Passwords, Place, Step, Tools, commands,
};
use crate::provision::certificate::Files;
use crate::provision::initialize::{Seen, find};

/// Activate an initialized cluster and make kmsuser in it, or print the commands for that
///
/// CloudHSM's own tools do it, on a host that reaches the HSMs. With neither --exec nor
/// --exec-template their commands are printed, and nothing is done.
///
/// New passwords are 32 letters and digits, kept in the files admin-password and kmsuser-password of
/// the directory (mode 0600), before they are used; what is there is used again. They are never
/// arguments.
#[derive(Args)]
pub struct ActivateArgs {
    #[command(flatten)]
    place: ClusterOptions,
    #[command(flatten)]
    tools: ToolOptions,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    account: AccountOptions,
}

/// Where CloudHSM's tools run, and where new passwords go.
#[derive(Args)]
pub struct ToolOptions {
    /// Run the tools on this host
    #[arg(long, value_name = "WHERE", conflicts_with = "exec_template")]
    exec: Option<Exec>,
    /// Run the tools with this command line, such as 'ssh host {}' or 'docker exec -i host sh -c {}'
    ///
    /// It is run by `sh -c`, with {} replaced by the whole command line of a tool as one quoted word;
    /// a shell has to take that apart where it arrives. Standard input has to arrive, too: it carries
    /// the trust anchor, which is written to --anchor-path, new passwords (twice each, as the tool
    /// asks for them), and before those, in a line read by a shell there that puts it into the tool's
    /// environment, the administrator's login. No environment has to be passed on. RunCommand of SSM
    /// has no standard input; `ssh` through a session of SSM has.
    #[arg(long, value_name = "COMMAND", value_parser = template)]
    exec_template: Option<String>,
    /// Where cloudhsm-cli is
    #[arg(long, value_name = "PATH", default_value = "/opt/cloudhsm/bin/cloudhsm-cli")]
    cloudhsm_cli: String,
    /// Where configure-cli is
    #[arg(long, value_name = "PATH", default_value = "/opt/cloudhsm/bin/configure-cli")]
    configure_cli: String,
    /// Where the trust anchor goes on another host
    #[arg(long, value_name = "PATH", default_value = "/opt/cloudhsm/etc/customerCA.crt")]
    anchor_path: String,
    /// Hand new passwords to this command instead of keeping them in files
    ///
    /// It is run by `sh -c` for each, with the password (no newline) on its standard input and
    /// admin-password or kmsuser-password in KMSFS_PASSWORD_NAME; it must not fail. Should a later
    /// run need one again, put it into its file.
    #[arg(long, value_name = "COMMAND")]
    password_command: Option<String>,
    /// Longest wait for one run of a tool, or of the password command; then it is stopped
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10m")]
    tool_timeout: Duration,
}

/// Where tools run.
#[derive(Clone, Copy, ValueEnum)]
enum Exec {
    /// On this host
    Local,
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    activated: Activated,
    /// Files of passwords that are there.
    passwords: Vec<String>,
}

#[derive(Serialize)]
struct Plan {
    cluster: String,
    state: String,
    commands: Vec<Step>,
}

fn template(text: &str) -> Result<String, String> {
    match text.contains("{}") {
        true => Ok(text.to_owned()),
        false => Err("it must have {} where the command line goes".to_owned()),
    }
}

/// Runs the command.
pub fn run(args: &ActivateArgs) -> anyhow::Result<()> {
    let account = args.account.account()?;
    let name = &args.account.name;
    let files = args.place.files(name)?;
    let seen = find(&account, args.place.cluster.as_deref(), name).map_err(refused)?;
    let Some(executor) = args.tools.executor() else {
        if !seen.is_claimed() {
            let text = format!(
                "cluster {}: it is {}; initialize it first with `kmsfsctl provision certificate`",
                seen.id, seen.state
            );
            return Err(failure(FAILURE, text));
        }
        let steps = args.tools.by_hand(&seen, account.region(), &files);
        let (cluster, state) = (seen.id.clone(), seen.state.to_string());
        return args.print_plan(&Plan { cluster, state, commands: steps });
    };
    let passwords = args.tools.passwords(&files);
    let activation = Activation {
        account: &account,
        cluster: &seen.id,
        executor: &executor,
        files: &files,
        passwords: &passwords,
        teller: &Screen::new(),
    };
    let activated = activation.ensure().map_err(refused)?;
    args.print(activated, &passwords)
}

impl ToolOptions {
    fn tools(&self) -> Tools {
        Tools { cli: self.cloudhsm_cli.clone(), configure: self.configure_cli.clone() }
    }

    /// Refuses, before anything is paid for, tools that are not here, and a password that is of no use.
    pub fn check(&self, files: &Files) -> anyhow::Result<()> {
        let tools = [&self.cloudhsm_cli, &self.configure_cli].into_iter();
        let gone = |tool: &&String| tool.contains('/') && !Path::new(tool).exists();
        if let Some(tool) = tools.filter(|_| self.exec.is_some()).find(gone) {
            let text = "is not here, and --exec local needs it: install CloudHSM's client tools, or say \
                        where they are";
            return Err(failure(FAILURE, format!("{tool} {text}")));
        }
        let password = self.passwords(files).remembered(KMSUSER);
        password.map(drop).map_err(|text| failure(FAILURE, text))
    }

    /// What to do where nothing can be run from here.
    pub fn by_hand(&self, seen: &Seen, region: &str, files: &Files) -> Vec<Step> {
        commands(seen, region, files, &self.tools(), &self.anchor_path)
    }

    /// Where passwords come from and go to.
    pub fn passwords(&self, files: &Files) -> Passwords {
        let command = self.password_command.clone();
        let keep = command.map_or(Keep::Files, |command| Keep::Command(command, self.tool_timeout));
        Passwords::new(files.clone(), keep)
    }

    /// Nothing, if people run the tools.
    pub fn executor(&self) -> Option<Executor> {
        let place = match (&self.exec_template, self.exec) {
            (Some(template), _) => {
                let (template, anchor) = (template.clone(), self.anchor_path.clone());
                Place::Template { template, anchor }
            }
            (None, Some(Exec::Local)) => Place::Local,
            (None, None) => return None,
        };
        Some(Executor { place, tools: self.tools(), limit: self.tool_timeout })
    }
}

/// The commands, one below the other.
pub fn print_steps(out: &mut Out, steps: &[Step]) -> anyhow::Result<()> {
    for (number, step) in steps.iter().enumerate() {
        out.line(format!("\n{}. {}.", number + 1, step.about))?;
        if !step.command.is_empty() {
            out.line(format!("     {}", step.command))?;
        }
    }
    Ok(())
}

impl ActivateArgs {
    fn print_plan(&self, plan: &Plan) -> anyhow::Result<()> {
        let mut out = Out::new();
        if self.json {
            out.json(plan)?;
            return out.finish();
        }
        out.line(format!("Cluster {} is {}.", plan.cluster, plan.state))?;
        if plan.state == "ACTIVE" {
            out.line("It is activated: what is left is kmsuser, unless `user list` shows it.")?;
        }
        print_steps(&mut out, &plan.commands)?;
        out.finish()
    }

    fn print(&self, activated: Activated, passwords: &Passwords) -> anyhow::Result<()> {
        let files = [ADMIN, KMSUSER].map(|name| passwords.path(name));
        let there = files.iter().filter(|path| path.exists());
        let there: Vec<String> = there.map(|path| path.display().to_string()).collect();
        let mut out = Out::new();
        if self.json {
            out.json(&Report { activated, passwords: there })?;
            return out.finish();
        }
        let when = |now| if now { "now" } else { "before" };
        out.fact("cluster", &activated.cluster)?;
        out.fact("activated", when(activated.activated))?;
        out.fact("kmsuser", format!("made {}", when(activated.kmsuser_created)))?;
        for file in &there {
            out.fact("password in", file)?;
        }
        if !there.is_empty() {
            out.line("Move the administrator's password to a vault.")?;
        }
        if passwords.path(KMSUSER).exists() {
            out.line("The key store needs kmsuser's once: KMS changes it when it connects.")?;
        }
        out.finish()
    }
}
