//! `kmsfsctl key retire`: switches a KMS key off once nothing needs it any more.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use super::status::Survey;
use super::target::{Target, backing_of};
use crate::cli::confirm::confirm;
use crate::cli::exit::{FAILURE, failure};
use crate::cli::mount::options::key_arn;
use crate::cli::output::{Out, hex, note, shown};
use crate::cli::secrets::KeyOptions;
use crate::format::VolumeId;
use crate::format::descriptor::Descriptor;
use crate::format::header::Recipient;
use crate::fs::volume::unlock_error;
use crate::keys::aws::{self, KeyArn, Route};
use crate::keys::{Editor, UnlockOptions, same_key};
use crate::provision::TAG_VOLUME;
use crate::provision::account::{Account, Pace, Places};
use crate::provision::key;
use crate::provision::lifecycle;

/// Looks into a volume that is mounted: a file that moves meanwhile can escape one.
const LOOKS: u32 = 3;
/// Files named for each directory that still needs the key.
const SHOWN: usize = 5;

/// Switch a KMS key off, if no file and no backup needs it any more
///
/// Looks into every header below the given directories first, and refuses while one of them needs the
/// key, or cannot be read. A disabled key can be enabled again; a deleted one cannot be had back.
#[derive(Args)]
pub struct RetireArgs {
    /// The key
    #[arg(value_name = "ARN", value_parser = key_arn)]
    key: String,
    /// A volume that has used the key: its backing directory, or where it is mounted (may be repeated)
    #[arg(long, value_name = "DIR", required = true)]
    volume: Vec<PathBuf>,
    /// A backup copy of such a volume's backing directory (may be repeated)
    #[arg(long, value_name = "DIR", required_unless_present = "no_backups")]
    backup: Vec<PathBuf>,
    /// There are no backup copies that anybody will ever want to read
    #[arg(long, conflicts_with = "backup")]
    no_backups: bool,
    /// Also have KMS delete the key, after so many days (7 to 30)
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(7..=30))]
    schedule_deletion: Option<u32>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    keys: KeyOptions,
}

#[derive(Serialize)]
struct Report {
    key: String,
    /// Directories that were looked into, and headers in them.
    checked: Vec<Checked>,
    last_used: Option<String>,
    disabled: bool,
    deletion_date: Option<String>,
}

#[derive(Serialize)]
struct Checked {
    directory: String,
    headers: u64,
}

/// Runs the command.
pub fn run(args: &RetireArgs) -> anyhow::Result<()> {
    let arn = KeyArn::parse(&args.key)?;
    let account = account_of(&arn, args.keys.kms.settings().route);
    let checked = require_unneeded_anywhere(args, &arn, &account)?;
    require_no_alias(&account, &arn)?;
    // Only good to know: not everybody may ask, and not every KMS answers.
    let last_used = lifecycle::last_used(&account, arn.as_str()).ok().flatten();
    agree(args, last_used.as_deref())?;
    let volumes: Vec<Forgetting> = args
        .volume
        .iter()
        .map(|dir| Forgetting::of(dir, &arn, &args.keys))
        .collect::<Result<_, _>>()?;
    if key::look(&account, arn.as_str())?.state != "PendingDeletion" {
        lifecycle::disable(&account, arn.as_str())?;
    }
    // Afterwards: while a volume knows the key, an interrupted run can be made again.
    for volume in volumes {
        volume.carry_out(&arn).context(
            "the key is disabled, but a volume still lists it: mend this and \
            run the same command again, or enable the key",
        )?;
    }
    let deletion_date = args
        .schedule_deletion
        .map(|days| lifecycle::schedule_deletion(&account, arn.as_str(), days))
        .transpose()?;
    let report =
        Report { key: args.key.clone(), checked, last_used, disabled: true, deletion_date };
    report.print(args.json)
}

/// The account and Region of a key.
pub fn account_of(arn: &KeyArn, route: Route) -> Account {
    let places = Places { kms: route, ..Places::default() };
    Account::new(arn.region(), places, Pace::default())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Volume,
    Backup,
}

/// Looks into all directories; they must have to do with the key, and with each other.
fn require_unneeded_anywhere(
    args: &RetireArgs,
    arn: &KeyArn,
    account: &Account,
) -> anyhow::Result<Vec<Checked>> {
    let (mut checked, mut volumes, mut known) = (Vec::new(), Vec::new(), false);
    let name = aws::name(arn, 0);
    for dir in &args.volume {
        let looks = if backing_of(dir).1.is_some() { LOOKS } else { 1 };
        for _ in 1..looks {
            require_unneeded(dir, arn, Kind::Volume)?;
        }
        let (one, descriptor) = require_unneeded(dir, arn, Kind::Volume)?;
        known |= descriptor.allowed.iter().any(|key| same_key(key, &name));
        volumes.push(descriptor.volume);
        checked.push(one);
    }
    let mut seen = args
        .volume
        .iter()
        .map(|dir| identity(&backing_of(dir).0))
        .collect::<Result<Vec<_>, _>>()?;
    for dir in &args.backup {
        let this = identity(&backing_of(dir).0)?;
        if seen.contains(&this) {
            let text = "is named twice, or is the volume itself and no copy of it";
            return Err(failure(FAILURE, format!("{} {text}; nothing was changed", dir.display())));
        }
        seen.push(this);
        let (one, descriptor) = require_unneeded(dir, arn, Kind::Backup)?;
        if !volumes.contains(&descriptor.volume) {
            let text = "is a copy of another volume than those named with --volume";
            return Err(failure(FAILURE, format!("{} {text}; nothing was changed", dir.display())));
        }
        checked.push(one);
    }
    if known {
        return Ok(checked);
    }
    // None knows it any more: it was retired before, or never was theirs.
    if key::look(account, arn.as_str())?.state != "Enabled" {
        return Ok(checked);
    }
    let tags = key::tags(account, arn.as_str())?;
    let of = |id: &VolumeId| key::tag(&tags, TAG_VOLUME) == Some(&hex(&id.0));
    if volumes.iter().any(of) {
        return Ok(checked);
    }
    let text = "is enabled, and none of these volumes has ever used it, as far as they and its tags say: \
                look at the ARN again; nothing was changed";
    Err(failure(FAILURE, format!("{} {text}", arn.as_str())))
}

/// Which directory it is, whatever it is called.
fn identity(dir: &Path) -> anyhow::Result<(u64, u64)> {
    let meta = dir.metadata().with_context(|| format!("cannot look at {}", dir.display()))?;
    Ok((meta.dev(), meta.ino()))
}

/// Fails if anything below a directory needs the key, or may need it.
fn require_unneeded(dir: &Path, arn: &KeyArn, kind: Kind) -> anyhow::Result<(Checked, Descriptor)> {
    let name = aws::name(arn, 0);
    let ours = |key: &Recipient| same_key(key, &name);
    let survey = Survey::of(dir, &|_, key| ours(key))?;
    let at = dir.display();
    let refused =
        |text: String| Err(failure(FAILURE, format!("{at}: {text}; nothing was changed")));
    let (mut needing, mut paths) = (0, Vec::new());
    for (_, count) in survey.census.keys.iter().filter(|(key, _)| ours(key)) {
        needing += count.files;
        paths.extend(count.paths.iter().take(SHOWN).map(|path| shown(path)));
    }
    // Also where another key is named: whether that still works nobody can say.
    if needing > 0 {
        let cure = match kind {
            Kind::Volume => "run `kmsfsctl key rewrap` first",
            Kind::Backup => "keep the key, or let that copy go and make a new one",
        };
        paths.truncate(SHOWN);
        let such = paths.join(", ");
        return refused(format!("{needing} files need the key ({such}, …); {cure}"));
    }
    if survey.descriptor.volume_keys.iter().any(ours) {
        let cure = match kind {
            Kind::Volume => "rotate it first",
            Kind::Backup => "keep the key, or let that copy go and make a new one",
        };
        return refused(format!("kmsfs.volume itself is opened with the key; {cure}"));
    }
    if survey.journal {
        return refused("its last mount did not end cleanly; run `kmsfsctl recover` first".into());
    }
    match (survey.census.unreadable.first(), survey.census.denied) {
        (None, 0) => {
            let headers = survey.census.headers;
            Ok((Checked { directory: at.to_string(), headers }, survey.descriptor))
        }
        (Some(path), _) => {
            let n = survey.census.unreadable.len();
            let path = shown(path);
            refused(format!("{n} headers cannot be read ({path}, …), and may need the key"))
        }
        (None, n) => refused(format!("{n} directories cannot be looked into; run this as root")),
    }
}

fn require_no_alias(account: &Account, arn: &KeyArn) -> anyhow::Result<()> {
    let aliases = key::aliases(account, arn.as_str())?;
    if aliases.is_empty() {
        return Ok(());
    }
    let text = "still points to it: whoever makes a volume by that name would use a key that is \
                switched off; point it elsewhere or delete it first";
    Err(failure(FAILURE, format!("{}: {} {text}", arn.as_str(), aliases.join(", "))))
}

fn agree(args: &RetireArgs, last_used: Option<&str>) -> anyhow::Result<()> {
    let used = last_used.map_or_else(String::new, |date| format!(" (last used {date})"));
    let what = match args.schedule_deletion {
        Some(days) => format!("disable it now and have KMS delete it after {days} days"),
        None => "disable it".to_owned(),
    };
    confirm(args.yes, &format!("{}{used}: {what}?", args.key), "nothing was changed")
}

/// A volume out of whose list the key is to go, so that nothing that names it is opened with it again.
struct Forgetting {
    target: Target,
    options: UnlockOptions,
}

impl Forgetting {
    /// Looks whether that can be done.
    fn of(dir: &Path, arn: &KeyArn, keys: &KeyOptions) -> anyhow::Result<Self> {
        let options = keys.remembering_options();
        let one = Self { target: Target::open(dir, &options)?, options };
        one.target.check(one.editor(arn)?, &one.options)?;
        Ok(one)
    }

    fn editor(&self, arn: &KeyArn) -> anyhow::Result<Editor> {
        let mut editor = self.target.editor(&self.options)?;
        let known = editor.forget_kms_key(arn);
        known.map_err(|error| unlock_error(error.into(), &self.target.dir))?;
        Ok(editor)
    }

    fn carry_out(mut self, arn: &KeyArn) -> anyhow::Result<()> {
        let editor = self.editor(arn)?;
        self.target.put(editor, &self.options).map(drop)
    }
}

impl Report {
    fn print(&self, json: bool) -> anyhow::Result<()> {
        let mut out = Out::new();
        if json {
            out.json(self)?;
            return out.finish();
        }
        for checked in &self.checked {
            let text = format!("{} headers, none needs the key", checked.headers);
            out.fact(&checked.directory, text)?;
        }
        out.line(format!("{} is disabled.", self.key))?;
        if let Some(date) = &self.deletion_date {
            out.line(format!(
                "KMS deletes it on {date}; CancelKeyDeletion undoes that until then."
            ))?;
        }
        out.finish()?;
        note("Wait and watch before you have it deleted: what nobody looked at may still need it.");
        Ok(())
    }
}
