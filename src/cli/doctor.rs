//! `kmsfsctl doctor`: looks for what keeps a volume from being mounted, or will one day.
//!
//! Reads only: a mounted volume is none the worse for it.

mod host;

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use crate::fs::volume::{SESSION_NAME, open_root, read_descriptor};
use crate::fuse::mount::{TYPE, table};
use crate::keys::examine::examine;
use crate::keys::finding::{Area, Finding, Level};

use super::exit::{FAILURE, FORMAT, KEY_MATERIAL, KEY_UNAVAILABLE, NOT_A_VOLUME, failure};
use super::output::{Out, harmless};
use super::secrets::KeyOptions;

/// Check this machine and, with DIR, a volume and the keys it names
#[derive(Args)]
pub struct DoctorArgs {
    /// The backing directory of a volume, mounted or not
    dir: Option<PathBuf>,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    keys: KeyOptions,
}

#[derive(Serialize)]
struct Report {
    #[serde(skip_serializing_if = "Option::is_none")]
    directory: Option<String>,
    errors: usize,
    warnings: usize,
    findings: Vec<Finding>,
}

/// Runs the command.
pub fn run(args: DoctorArgs) -> anyhow::Result<()> {
    let mut findings = host::findings();
    let mut code = None;
    if let Some(dir) = &args.dir {
        match volume(dir, &args.keys) {
            Ok(found) => findings.extend(found),
            Err((number, finding)) => {
                code = Some(number);
                findings.push(finding);
            }
        }
    }
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let report = Report {
        directory: args.dir.as_ref().map(|dir| dir.display().to_string()),
        errors: count(Level::Error),
        warnings: count(Level::Warning),
        findings,
    };
    report.print(args.json)?;
    match report.errors {
        0 => Ok(()),
        n => {
            let what = if n == 1 { "one error".to_owned() } else { format!("{n} errors") };
            Err(failure(code.unwrap_or(report.code()), format!("{what} found, see above")))
        }
    }
}

/// What there is to say about a volume; why it cannot be looked at, otherwise.
fn volume(dir: &Path, keys: &KeyOptions) -> Result<Vec<Finding>, (i32, Finding)> {
    let full = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    if let Some(mount) = table::top_at(&full).filter(|mount| mount.kind == TYPE) {
        let text = format!("{} is where a volume is mounted", dir.display());
        let advice = format!("name its backing directory: {}", mount.source.display());
        let finding = Finding::new(Level::Error, Area::Volume, "directory", text).advise(advice);
        return Err((NOT_A_VOLUME, finding));
    }
    let read = open_root(dir).and_then(|root| read_descriptor(&root, dir));
    let bytes = read.map_err(|error| {
        let finding = Finding::new(Level::Error, Area::Volume, "directory", error.message);
        (error.exit_code, finding)
    })?;
    let mut findings = vec![in_use(dir)];
    findings.extend(examine(&bytes, &keys.unlock_options()));
    Ok(findings)
}

fn in_use(dir: &Path) -> Finding {
    let mounted = table::is_mounted_from(TYPE, dir);
    let marked = dir.join(SESSION_NAME).symlink_metadata().is_ok();
    let (level, text) = match (mounted, marked) {
        (true, _) => (Level::Ok, "mounted now"),
        (false, false) => (Level::Ok, "not mounted"),
        (false, true) => {
            let text = "not mounted here, and its last mount has not ended cleanly";
            let advice = "unless another machine or container has it mounted, the next mount or \
                          `kmsfsctl recover DIR` brings everything to its place";
            let finding = Finding::new(Level::Note, Area::Volume, "directory", text);
            return finding.advise(advice);
        }
    };
    Finding::new(level, Area::Volume, "directory", text)
}

impl Report {
    /// The exit code of the first error that has one of its own.
    fn code(&self) -> i32 {
        let errors = self.findings.iter().filter(|finding| finding.level == Level::Error);
        let mut codes = errors.map(|finding| match finding.area {
            Area::Host => FAILURE,
            Area::Volume => FORMAT,
            Area::LocalKey => KEY_MATERIAL,
            Area::Kms => KEY_UNAVAILABLE,
        });
        codes.find(|code| *code != FAILURE).unwrap_or(FAILURE)
    }

    fn print(&self, json: bool) -> anyhow::Result<()> {
        let mut out = Out::new();
        if json {
            out.json(self)?;
            return out.finish();
        }
        let mut key = None;
        for finding in &self.findings {
            if finding.key.is_some() && finding.key.as_ref() != key {
                key = finding.key.as_ref();
                out.line(format!("KMS key {}", harmless(finding.key.as_deref().unwrap_or("?"))))?;
            }
            let text = harmless(&finding.found);
            out.line(format!("{:<8} {}: {text}", finding.level.word(), finding.about))?;
            if let Some(advice) = &finding.advice {
                out.line(format!("{:<8} -> {}", "", harmless(advice)))?;
            }
        }
        out.finish()
    }
}
