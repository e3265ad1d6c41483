//! `kmsfsctl recover`: what the next mount would do with the journal of an unclean stop, done now.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::fs::Access;

use super::exit::{DAMAGE, failure};
use super::output::{Out, shown};
use super::secrets::KeyOptions;
use super::tree::Tree;

/// Bring what the journal of an unclean stop holds to its place; mounting does the same
#[derive(Args)]
pub struct RecoverArgs {
    /// Backing directory of the volume
    dir: PathBuf,
    #[command(flatten)]
    keys: KeyOptions,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Facts {
    records: u64,
    recovered: Vec<String>,
    dropped: u64,
    /// Left alone: older than the records say.
    older: Vec<String>,
    removed: u64,
    journal_damaged: bool,
    /// Journals that were not used.
    refused: Vec<Refused>,
}

#[derive(Serialize)]
struct Refused {
    journal: String,
    reason: String,
}

/// Runs the command.
pub fn run(args: RecoverArgs) -> anyhow::Result<()> {
    let tree = Tree::open(&args.dir, Access::ReadWrite, &args.keys.unlock_options())?;
    let recovery = &tree.recovery;
    let mut out = Out::new();
    if args.json {
        let paths = |paths: &[Vec<u8>]| paths.iter().map(|path| shown(path)).collect::<Vec<_>>();
        let reports = || recovery.reports.iter();
        out.json(&Facts {
            records: reports().map(|r| r.records).sum(),
            recovered: reports().flat_map(|r| paths(&r.replayed)).collect(),
            dropped: reports().map(|r| r.dropped).sum(),
            older: reports().flat_map(|r| paths(&r.older)).collect(),
            removed: reports().map(|r| r.missing).sum(),
            journal_damaged: reports().any(|r| r.damaged),
            refused: recovery.refused.iter().map(Refused::from).collect(),
        })?;
    } else if recovery.is_empty() {
        out.line("Nothing to recover: there is no journal.")?;
    } else {
        recovery.sentences().iter().try_for_each(|sentence| out.line(sentence))?;
    }
    out.finish()?;
    if recovery.refused.is_empty() && !recovery.reports.iter().any(|report| report.damaged) {
        return Ok(());
    }
    let text = "what the journal holds could not be used as a whole";
    Err(failure(DAMAGE, format!("{}: {text}", args.dir.display())))
}

impl From<&(String, String)> for Refused {
    fn from((journal, reason): &(String, String)) -> Self {
        Self { journal: shown(journal.as_bytes()), reason: reason.clone() }
    }
}
