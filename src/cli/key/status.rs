//! `kmsfsctl key status`: which files need which key, and when the key is to be rotated.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::target::{backing_of, require_writable};
use crate::cli::exit::{FAILURE, failure};
use crate::cli::output::{Out, hex, note, shown};
use crate::format::descriptor::Descriptor;
use crate::format::header::Recipient;
use crate::format::layout::Layout;
use crate::fs::census::{self, KeyCensus};
use crate::fs::journal;
use crate::fs::volume::{open_root, read_descriptor, unlock_error};
use crate::fuse::control;
use crate::keys::clock::unix_seconds;
use crate::keys::rotation::Rotation;
use crate::keys::{describe_recipient, same_key};

/// Show for each key how many files need it, the oldest key first; no key is asked for
#[derive(Args)]
pub struct StatusArgs {
    /// The volume: its backing directory (or a copy of it), or where it is mounted
    dir: PathBuf,
    /// Name the backing files that need each key no longer in use
    #[arg(long)]
    files: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// What is known of a volume's keys without asking for any.
pub struct Survey {
    /// The descriptor, not authenticated.
    pub descriptor: Descriptor,
    /// What headers name.
    pub census: KeyCensus,
    /// A journal holds headers that are not in their place.
    pub journal: bool,
}

impl Survey {
    /// Reads the descriptor and every header below `dir`. What a mount holds back is written first.
    pub fn of(dir: &Path, paths: &dyn Fn(&Descriptor, &Recipient) -> bool) -> anyhow::Result<Self> {
        let (dir, mountpoint) = backing_of(dir);
        if let Some(point) = &mountpoint {
            control::sync(point).map_err(|error| {
                let text = "cannot have its daemon write everything";
                failure(FAILURE, format!("{}: {text}: {error}", point.display()))
            })?;
        }
        let root = open_root(&dir)?;
        let bytes = read_descriptor(&root, &dir)?;
        let refused = |error| unlock_error(error, &dir);
        let (descriptor, _) = Descriptor::parse(&bytes).map_err(|e| refused(e.into()))?;
        let layout = Layout::new(descriptor.params.header_blocks).map_err(|e| refused(e.into()))?;
        let wanted = |key: &Recipient| paths(&descriptor, key);
        let census = census::keys(&root, layout, descriptor.volume, &wanted)?;
        // A mount that only reads leaves it as it is.
        let written = mountpoint.is_some_and(|point| require_writable(&point).is_ok());
        let journal = !written && journal::any(&root)?;
        Ok(Self { descriptor, census, journal })
    }
}

#[derive(Serialize)]
struct Status {
    volume: String,
    generation: u64,
    /// Days between two rotations, if the volume has a policy of its own.
    rotation_period_days: Option<u32>,
    /// Seconds since 1970: when the key was last rotated, or the volume made.
    last_rotation: u64,
    /// Seconds since 1970.
    next_rotation: Option<u64>,
    days_left: Option<i64>,
    headers: u64,
    keys: Vec<KeyLine>,
    unreadable: Vec<String>,
    directories_not_looked_into: u64,
    journal: bool,
}

#[derive(Serialize)]
struct KeyLine {
    key: String,
    epoch: u32,
    /// `current`: new files are wrapped for it. `retiring`: files may still need it. `unknown`: the
    /// volume does not allow it.
    state: &'static str,
    files: u64,
    /// Files that nobody else can open.
    only: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    paths: Vec<String>,
}

/// Runs the command.
pub fn run(args: &StatusArgs) -> anyhow::Result<()> {
    let old = |descriptor: &Descriptor, key: &Recipient| args.files && !is_current(descriptor, key);
    let survey = Survey::of(&args.dir, &old)?;
    let status = Status::new(survey);
    status.print(args.json)
}

/// Are new files wrapped for it, by its present material?
fn is_current(descriptor: &Descriptor, key: &Recipient) -> bool {
    descriptor.volume_keys.iter().any(|k| same_key(k, key) && k.epoch == key.epoch)
}

impl Status {
    fn new(survey: Survey) -> Self {
        let Survey { descriptor, mut census, journal } = survey;
        let rotation = Rotation::of(&descriptor);
        let mut names: Vec<Recipient> = Vec::new();
        let place = |key: &Recipient| {
            let at = descriptor.allowed.iter().position(|known| same_key(known, key));
            // Strangers, then those on their way out as they came to be so, then those in use; of one
            // key the older material first.
            let current = descriptor.volume_keys.iter().any(|k| same_key(k, key));
            (at.is_some(), current, at, key.epoch)
        };
        let known = descriptor.allowed.iter().cloned();
        for key in known.chain(census.keys.keys().cloned()) {
            if !names.contains(&key) {
                names.push(key);
            }
        }
        names.sort_by_key(place);
        let line = |key: Recipient| {
            let count = census.keys.remove(&key).unwrap_or_default();
            let state = match place(&key) {
                (false, ..) => "unknown",
                _ if is_current(&descriptor, &key) => "current",
                _ => "retiring",
            };
            let paths = count.paths.iter().map(|path| shown(path)).collect();
            let (files, only, epoch) = (count.files, count.only, key.epoch);
            KeyLine { key: describe_recipient(&key), epoch, state, files, only, paths }
        };
        Self {
            volume: hex(&descriptor.volume.0),
            generation: descriptor.params.generation,
            rotation_period_days: rotation.period_days,
            last_rotation: rotation.last,
            next_rotation: rotation.due(),
            days_left: rotation.days_left(unix_seconds()),
            keys: names.into_iter().map(line).collect(),
            headers: census.headers,
            unreadable: census.unreadable.iter().map(|path| shown(path)).collect(),
            directories_not_looked_into: census.denied,
            journal,
        }
    }

    fn print(&self, json: bool) -> anyhow::Result<()> {
        let mut out = Out::new();
        if json {
            out.json(self)?;
            return out.finish();
        }
        out.fact("volume", &self.volume)?;
        out.fact("headers", self.headers.to_string())?;
        for line in &self.keys {
            let epoch =
                if line.epoch > 1 { format!(", epoch {}", line.epoch) } else { String::new() };
            let files = if line.files == 1 { "file needs" } else { "files need" };
            let count = match (line.state, line.files) {
                ("current", n) => format!("in use: {n} {}", if n == 1 { "file" } else { "files" }),
                (_, 0) => "no file needs it".to_owned(),
                (_, n) => format!("{n} {files} it"),
            };
            out.fact(&format!("{} key", line.state), format!("{}{epoch}: {count}", line.key))?;
            line.paths.iter().try_for_each(|path| out.line(format!("  {path}")))?;
        }
        out.fact("rotation", rotation_text(self.rotation_period_days, self.days_left))?;
        for path in &self.unreadable {
            out.line(format!("unreadable header: {path}"))?;
        }
        out.finish()?;
        if self.directories_not_looked_into > 0 {
            let n = self.directories_not_looked_into;
            note(format!(
                "{n} directories could not be looked into: what they need is not counted"
            ));
        }
        if self.journal {
            note("the last mount did not end cleanly: `kmsfsctl recover` it, and ask again");
        }
        Ok(())
    }
}

/// When the key is due, for people.
pub fn rotation_text(period_days: Option<u32>, days_left: Option<i64>) -> String {
    match (period_days, days_left) {
        (Some(period), Some(left)) if left < 0 => {
            format!("every {period} days: due since {} days: run `kmsfsctl key rotate`", -left)
        }
        (Some(period), Some(left)) => format!("every {period} days: due in {left} days"),
        _ => "no period is kept here".to_owned(),
    }
}
