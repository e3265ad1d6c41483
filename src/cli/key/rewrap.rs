//! `kmsfsctl key rewrap`: gives every file header the wrapped keys the volume now wants, if told so
//! after one KMS key has taken the place of another.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::sweep::{List, Sweeping, odd_list};
use super::target::Target;
use crate::cli::exit::{DAMAGE, FAILURE, KEY_UNAVAILABLE, failure};
use crate::cli::output::{Out, hex, note};
use crate::cli::secrets::KeyOptions;
use crate::cli::verify::DamageLine;
use crate::fs::rewrap::Swept;
#[cfg(feature = "aws")]
use crate::fs::volume::unlock_error;
#[cfg(feature = "aws")]
use crate::keys::aws::KeyArn;
#[cfg(feature = "aws")]
use crate::keys::clock::unix_seconds;
#[cfg(feature = "aws")]
use crate::keys::{Editor, KeySpec, UnlockOptions};

/// Wrap every file's data key with the volume's present keys, or with another KMS key
///
/// One ReEncrypt for each distinct wrapped key: no data key is seen, and content, sizes and
/// modification times stay as they are. Interrupted, it goes on where it was when it is run again.
/// Works on a mounted volume, too.
#[derive(Args)]
pub struct RewrapArgs {
    /// The volume: its backing directory, or where it is mounted
    dir: PathBuf,
    #[cfg(feature = "aws")]
    #[command(flatten)]
    exchange: Exchange,
    #[command(flatten)]
    sweep: SweepOptions,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    keys: KeyOptions,
}

/// Which KMS key takes which one's place.
#[cfg(feature = "aws")]
#[derive(Args)]
struct Exchange {
    /// Let this KMS key take the place of the volume's: `aws-kms:ARN`
    #[arg(long, value_name = "KEYSPEC")]
    to: Option<KeySpec>,
    /// Which KMS key it replaces, if the volume has several
    #[arg(long, value_name = "ARN", requires = "to")]
    from: Option<String>,
    /// Make all wrapped keys of this KMS key anew, with its newest material. To go on after an
    /// interruption leave it out
    #[arg(long, value_name = "ARN", conflicts_with = "to")]
    renew: Option<String>,
}

/// How headers are swept.
#[derive(Args)]
pub struct SweepOptions {
    /// Add the backing paths of rewrapped files to FILE (default:
    /// kmsfs-rewrapped.VOLUME-ID in the current directory); a backup that goes by modification
    /// times does not notice them. Paths that have a newline in them go to FILE.null
    #[arg(long, value_name = "FILE")]
    list: Option<PathBuf>,
    /// End each path in the list with a zero byte instead of a newline
    #[arg(long)]
    null: bool,
    /// Give rewrapped files the present as modification time, so that every backup notices them
    #[arg(long)]
    touch: bool,
}

/// What was done, for people and for JSON.
#[derive(Serialize)]
pub struct Report {
    volume: String,
    descriptor_changed: bool,
    generation: u64,
    /// The KMS keys new files are wrapped for.
    keys: Vec<String>,
    /// Those that headers may still name.
    retiring: Vec<String>,
    headers: u64,
    rewritten: u64,
    /// Files that kept moving while they were looked at.
    moved: u64,
    /// Files whose keys could not be had now, and why.
    unserved: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    unserved_why: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    list: Option<String>,
    /// Paths with a newline in them, each ended with a zero byte.
    #[serde(skip_serializing_if = "Option::is_none")]
    odd_list: Option<String>,
    kms_calls: u64,
    seconds: f64,
    problems: Vec<DamageLine>,
}

/// Runs the command.
pub fn run(args: &RewrapArgs) -> anyhow::Result<()> {
    let options = args.keys.remembering_options();
    let mut target = Target::open(&args.dir, &options)?;
    let sweep = args.sweep.prepare(&target, args.json)?;
    #[cfg_attr(not(feature = "aws"), expect(unused_mut))]
    let mut editor = target.editor(&options)?;
    #[cfg(feature = "aws")]
    args.exchange.carry_out(&mut editor, &options, &target.dir)?;
    let changed = target.put(editor, &options)?;
    let report = sweep.run(&target, changed)?;
    report.print(args.json)?;
    report.require_whole()
}

#[cfg(feature = "aws")]
impl Exchange {
    fn carry_out(
        &self,
        editor: &mut Editor,
        options: &UnlockOptions,
        dir: &Path,
    ) -> anyhow::Result<()> {
        if let Some(to) = &self.to {
            let to = resolved(kms_key(to)?, options)?;
            // Half done already: what is left is the sweep.
            if !editor.kms_keys().contains(&to) {
                let from = replaced(editor, self.from.as_deref(), "--from")?;
                replace(editor, &from, &to, options, dir)?;
            }
        }
        if let Some(key) = &self.renew {
            let key = KeyArn::parse(key)?;
            replace(editor, &key, &key, options, dir)?;
        }
        Ok(())
    }
}

#[cfg(feature = "aws")]
/// Puts one KMS key where another was, and notes when. New copies for the same key replace none.
pub fn replace(
    editor: &mut Editor,
    from: &KeyArn,
    to: &KeyArn,
    options: &UnlockOptions,
    dir: &Path,
) -> anyhow::Result<KeyArn> {
    let new = editor.replace_kms_key(from, to, options);
    let new = new.map_err(|error| unlock_error(error.into(), dir))?;
    if new != *from {
        editor.note_rotation(from.id(), new.id(), unix_seconds());
    }
    Ok(new)
}

/// The key an alias stands for now.
#[cfg(feature = "aws")]
fn resolved(key: KeyArn, options: &UnlockOptions) -> anyhow::Result<KeyArn> {
    if !key.is_alias() {
        return Ok(key);
    }
    let account = super::retire::account_of(&key, options.kms.route.clone());
    Ok(KeyArn::parse(&crate::provision::key::look(&account, key.as_str())?.arn)?)
}

#[cfg(feature = "aws")]
fn kms_key(key: &KeySpec) -> anyhow::Result<KeyArn> {
    match key {
        KeySpec::AwsKms(arn) => Ok(arn.clone()),
        _ => {
            let text = "only a KMS key can take a KMS key's place; use `key add` and `key remove` \
                        for others";
            Err(failure(FAILURE, text))
        }
    }
}

#[cfg(feature = "aws")]
/// Which key goes: the one that was named with this option, or the only one.
pub fn replaced(editor: &Editor, named: Option<&str>, option: &str) -> anyhow::Result<KeyArn> {
    let keys = editor.kms_keys();
    let names = || keys.iter().map(KeyArn::as_str).collect::<Vec<_>>().join(", ");
    match (named, &keys[..]) {
        (Some(from), _) => Ok(KeyArn::parse(from)?),
        (None, [only]) => Ok(only.clone()),
        (None, []) => {
            let text = "the volume has no KMS key to replace; `key add` gives it one";
            Err(failure(FAILURE, text))
        }
        (None, _) => {
            let names = names();
            let text = format!("the volume has several KMS keys; say with {option} which: {names}");
            Err(failure(FAILURE, text))
        }
    }
}

/// A sweep that can begin: its list is open.
pub struct Prepared {
    sweeping: Sweeping,
    path: PathBuf,
    is_new: bool,
}

impl SweepOptions {
    /// Opens the list, before anything is changed.
    pub fn prepare(&self, target: &Target, json: bool) -> anyhow::Result<Prepared> {
        let id = hex(&target.tree.descriptor.volume.0);
        let path = self.list.clone().unwrap_or_else(|| format!("kmsfs-rewrapped.{id}").into());
        require_outside(&path, target)?;
        let is_new = !path.exists();
        let list = Some(List::open(&path, self.null)?);
        Ok(Prepared { sweeping: Sweeping { json, touch: self.touch, list }, path, is_new })
    }
}

impl Prepared {
    /// Brings every header in line; `changed` says whether the descriptor was changed before.
    pub fn run(&self, target: &Target, changed: bool) -> anyhow::Result<Report> {
        let (started, before) = (Instant::now(), calls(target));
        let (swept, problems) = target.sweep(&self.sweeping)?;
        let cost = (calls(target).saturating_sub(before), started.elapsed().as_secs_f64());
        Ok(Report::new(target, changed, swept, problems).with_list(&self.path).with_cost(cost))
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        // A list of ours that nothing came into.
        if self.is_new && self.path.metadata().is_ok_and(|meta| meta.len() == 0) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A list among the backing files would be one of them to everybody else.
fn require_outside(list: &Path, target: &Target) -> anyhow::Result<()> {
    let full = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let list_dir = std::path::absolute(list)?.parent().map(full).unwrap_or_default();
    for inside in std::iter::once(&target.dir).chain(&target.mountpoint) {
        if list_dir.starts_with(full(inside)) {
            let text = format!(
                "the list {} would be in the volume itself ({}): name another place with --list, or \
                 run this elsewhere; nothing was changed",
                list.display(),
                inside.display()
            );
            return Err(failure(FAILURE, text));
        }
    }
    Ok(())
}

/// Calls of KMS so far.
fn calls(target: &Target) -> u64 {
    let providers = target.tree.keyring.facts().providers;
    providers.iter().flat_map(|p| &p.calls.counts).map(|(_, _, number)| number).sum()
}

impl Report {
    fn new(target: &Target, changed: bool, swept: Swept, problems: Vec<DamageLine>) -> Self {
        let descriptor = &target.tree.descriptor;
        let (keys, retiring) = crate::keys::kms_keys(descriptor);
        Self {
            volume: hex(&descriptor.volume.0),
            descriptor_changed: changed,
            generation: descriptor.params.generation,
            keys,
            retiring,
            headers: swept.headers,
            rewritten: swept.rewritten,
            moved: swept.moved,
            unserved: swept.unserved,
            unserved_why: swept.unserved_why,
            list: None,
            odd_list: None,
            kms_calls: 0,
            seconds: 0.0,
            problems,
        }
    }

    fn with_list(mut self, path: &Path) -> Self {
        let has_paths = |path: &Path| path.metadata().is_ok_and(|meta| meta.len() > 0);
        let shown = |path: &Path| has_paths(path).then(|| path.display().to_string());
        if self.rewritten > 0 {
            (self.list, self.odd_list) = (shown(path), shown(&odd_list(path)));
        }
        self
    }

    fn with_cost(mut self, cost: (u64, f64)) -> Self {
        (self.kms_calls, self.seconds) = cost;
        self
    }

    /// Prints it.
    pub fn print(&self, json: bool) -> anyhow::Result<()> {
        let mut out = Out::new();
        if json {
            out.json(self)?;
            return out.finish();
        }
        if self.descriptor_changed {
            out.line(format!("The descriptor is changed (generation {}).", self.generation))?;
        }
        out.line(format!(
            "{} of {} file headers rewritten in {:.1} s; KMS calls: {}.",
            self.rewritten, self.headers, self.seconds, self.kms_calls
        ))?;
        for key in &self.retiring {
            out.fact("no longer used", key)?;
        }
        out.finish()?;
        if let Some(list) = &self.list {
            note(format!(
                "Their backing files are listed in {list}: modification times are as before, so \
                 copy these by content (rsync --checksum --files-from), or use --touch."
            ));
        }
        if let Some(list) = &self.odd_list {
            note(format!("Those with a newline in their paths are in {list} (rsync --from0)."));
        }
        Ok(())
    }

    /// Fails if something is left to do.
    pub fn require_whole(&self) -> anyhow::Result<()> {
        match (self.problems.len(), self.moved) {
            (0, _) if self.unserved > 0 => Err(failure(
                KEY_UNAVAILABLE,
                format!(
                    "{} files are not done yet; run the same command again: {}",
                    self.unserved,
                    self.unserved_why.as_deref().unwrap_or_default()
                ),
            )),
            (0, 0) => Ok(()),
            (0, n) => Err(failure(
                FAILURE,
                format!("{n} files kept changing meanwhile: run the same command again"),
            )),
            (n, _) => {
                Err(failure(DAMAGE, format!("{n} entries could not be brought in line, see above")))
            }
        }
    }
}
