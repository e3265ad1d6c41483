//! `kmsfsctl provision cluster`: a CloudHSM cluster and its HSMs.

use clap::Args;

use super::ClusterOptions;
use super::account::AccountOptions;
use super::screen::Screen;
use crate::cli::output::{Out, note};
use crate::keys::prices::HSM_PER_HOUR;
use crate::provision::cluster::{ClusterFacts, ClusterWish, ensure_cluster};
use crate::provision::hsm::ensure_hsm;

/// Make a CloudHSM cluster with an HSM or two, or go on with the one there is
///
/// Each HSM costs money from its creation on. Interrupted, it goes on when it is run again: what is
/// there is found and not made twice.
#[derive(Args)]
pub struct ClusterArgs {
    #[command(flatten)]
    place: ClusterOptions,
    #[command(flatten)]
    new: NewCluster,
    /// A further tag of the cluster; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = tag)]
    tag: Vec<(String, String)>,
    /// HSMs there shall be, each in its own zone: one until the cluster is active, two from then on
    #[arg(long, value_name = "NUMBER", default_value_t = 1,
          value_parser = clap::value_parser!(u8).range(1..=2))]
    hsms: u8,
    /// Print the cluster as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    account: AccountOptions,
}

/// What a cluster that is not there yet is made of.
#[derive(Args)]
pub struct NewCluster {
    /// A private subnet for HSMs; at least two, in different Availability Zones of one VPC
    #[arg(long, value_name = "ID")]
    subnet: Vec<String>,
    /// Days that CloudHSM keeps backups (7 to 379) [default of a new cluster: 90]
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u16).range(7..=379))]
    retention: Option<u16>,
}

impl NewCluster {
    /// The cluster of a deployment, or the one with this id.
    pub fn wish(&self, name: &str, id: Option<&str>, tags: &[(String, String)]) -> ClusterWish {
        ClusterWish {
            name: name.to_owned(),
            subnets: self.subnet.clone(),
            retention_days: self.retention,
            tags: tags.to_vec(),
            id: id.map(str::to_owned),
        }
    }
}

/// Runs the command.
pub fn run(args: &ClusterArgs) -> anyhow::Result<()> {
    let account = args.account.account()?;
    let name = &args.account.name;
    let files = args.place.files(name)?;
    let wish = args.new.wish(name, args.place.cluster.as_deref(), &args.tag);
    let screen = Screen::new();
    let mut cluster = ensure_cluster(&account, &wish, files.dir(), &screen)?;
    for number in 1..=usize::from(args.hsms) {
        cluster = ensure_hsm(&account, &cluster.id, number, files.dir(), &screen)?;
    }
    drop(screen);
    print(&cluster, args.json)
}

fn print(cluster: &ClusterFacts, json: bool) -> anyhow::Result<()> {
    let mut out = Out::new();
    if json {
        out.json(cluster)?;
        return out.finish();
    }
    out.fact("cluster", &cluster.id)?;
    out.fact("state", &cluster.state)?;
    out.fact("VPC", &cluster.vpc)?;
    if let Some(group) = &cluster.security_group {
        out.fact("security group", group)?;
    }
    for hsm in &cluster.hsms {
        let ip = hsm.ip.as_deref().unwrap_or("no address");
        out.fact("HSM", format!("{} in {} ({ip}), {}", hsm.id, hsm.zone, hsm.state))?;
    }
    out.finish()?;
    let hourly = cluster.hsms.len() as f64 * HSM_PER_HOUR;
    note(format!("Its HSMs cost about ${hourly:.2} an hour until they are deleted."));
    if cluster.state == "UNINITIALIZED" {
        note(
            "Next: sign its certificate request and claim it; `kmsfsctl provision plan` has all steps.",
        );
    }
    Ok(())
}

fn tag(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not a tag; write KEY=VALUE")),
    }
}
