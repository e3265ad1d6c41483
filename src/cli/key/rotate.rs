//! `kmsfsctl key rotate`: KMS's own rotation where there is one, a successor key where there is not.
//!
//! A key in a custom key store cannot be rotated by KMS. It gets a successor: made, proven, put into
//! the descriptor, given the aliases, and every header is rewrapped, in this order. Whatever is
//! interrupted is continued by the next run: the successor is found by its tag, the rest by what the
//! descriptor and the headers say.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::retire::account_of;
use super::rewrap::{self, SweepOptions};
use super::status::{Survey, rotation_text};
use super::target::Target;
use crate::cli::exit::{FAILURE, failure};
use crate::cli::kms::duration;
use crate::cli::output::{Out, note};
use crate::cli::provision::screen::Screen;
use crate::cli::secrets::KeyOptions;
use crate::keys::aws::{self, KeyArn};
use crate::keys::clock::unix_seconds;
use crate::keys::rotation::Rotation;
use crate::keys::{Editor, UnlockOptions, same_key};
use crate::provision::account::Account;
use crate::provision::canary::{Canary, try_key};
use crate::provision::intent::{Intent, state_dir};
use crate::provision::key::{self, Hidden, Repoint};
use crate::provision::lifecycle::{self, NativeRotation};
use crate::provision::policy::is_same;

/// Rotate the volume's KMS key
///
/// A key whose material KMS made is rotated by KMS itself; nothing is rewrapped. A key in a custom key
/// store gets a successor in the same store, with its policy and tags; aliases move to it, and every
/// file header is rewrapped, on a mounted volume, too. The old key stays enabled for `key retire`.
#[derive(Args)]
pub struct RotateArgs {
    /// The volume: its backing directory, or where it is mounted
    dir: PathBuf,
    /// Which KMS key, if the volume has several
    #[arg(long, value_name = "ARN")]
    key: Option<String>,
    /// Days between two rotations from now on (90 to 2560). KMS keeps them for its own keys, the
    /// volume for others: a timer that runs this with --if-due does the rest
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(90..=2560))]
    period_days: Option<u32>,
    /// Only set the period
    #[arg(long, requires = "period_days")]
    only_period: bool,
    /// Do nothing unless a rotation is due, or one was interrupted
    #[arg(long)]
    if_due: bool,
    /// Make a successor even if KMS could rotate the key itself
    #[arg(long)]
    successor: bool,
    /// The external key of the successor, for a key in an external key store
    #[arg(long, value_name = "ID")]
    xks_key_id: Option<String>,
    /// Make a successor although some keys of the account do not show this caller their tags, and one of
    /// them might be it
    #[arg(long)]
    accept_hidden_keys: bool,
    /// Longest wait until all of AWS knows of a change, or until it is certain that a call without an
    /// answer did nothing
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "2m")]
    settling: Duration,
    #[command(flatten)]
    sweep: SweepOptions,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    keys: KeyOptions,
}

#[derive(Serialize)]
struct Report {
    key: String,
    /// `kms`: KMS rotated it. `successor`: another key took its place. `finished`: so it was begun
    /// earlier. `period`: only the period was set. `not-due`.
    rotation: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    successor: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    aliases: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    native: Option<NativeRotation>,
    period_days: Option<u32>,
    days_left: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rewrap: Option<rewrap::Report>,
}

/// Runs the command.
pub fn run(args: &RotateArgs) -> anyhow::Result<()> {
    let options = args.keys.remembering_options();
    let target = Target::open(&args.dir, &options)?;
    let editor = target.editor(&options)?;
    let arn = rewrap::replaced(&editor, args.key.as_deref())?;
    let mut account = account_of(&arn, options.kms.route.clone());
    account.pace.settling = args.settling;
    let sweep = args.sweep.prepare(&target, args.json)?;
    let mut work = Work { args, options, target, account, arn, sweep, screen: Screen::new() };
    let report = work.run(editor)?;
    report.print(args.json)?;
    report.rewrap.as_ref().map_or(Ok(()), rewrap::Report::require_whole)
}

struct Work<'a> {
    args: &'a RotateArgs,
    options: UnlockOptions,
    target: Target,
    account: Account,
    /// The key in use.
    arn: KeyArn,
    sweep: rewrap::Prepared,
    screen: Screen,
}

impl Work<'_> {
    fn run(&mut self, mut editor: Editor) -> anyhow::Result<Report> {
        let head = key::look(&self.account, self.arn.as_str())?;
        let native = head.origin == "AWS_KMS" && !self.args.successor;
        if let Some(days) = self.args.period_days.filter(|_| !native)
            && editor.set_rotation_period(Some(days))
        {
            self.target.put(editor, &self.options)?;
            editor = self.target.editor(&self.options)?;
        }
        if self.args.only_period && !native {
            return Ok(self.report("period"));
        }
        if !self.args.only_period && self.is_unfinished(&editor)? {
            note("a rotation was interrupted: it is finished, and no other one begun");
            return self.finish(&editor, "finished", false);
        }
        if native {
            // KMS keeps the period now.
            if editor.set_rotation_period(None) {
                self.target.put(editor, &self.options)?;
            }
            return self.rotate_natively();
        }
        let left = Rotation::of(editor.descriptor()).days_left(unix_seconds());
        if self.args.if_due && left.is_none_or(|days| days >= 0) {
            return Ok(self.report("not-due"));
        }
        self.succeed(editor)
    }

    /// KMS keeps the old material: what was wrapped with it stays readable.
    fn rotate_natively(&self) -> anyhow::Result<Report> {
        let arn = self.arn.as_str();
        if let Some(days) = self.args.period_days {
            key::enable_rotation(&self.account, arn, days)?;
        }
        // Where KMS keeps the period, it keeps it by itself.
        let now = !self.args.only_period && !self.args.if_due;
        // Each time counts against a lifetime limit: one that is under way, because an earlier run was
        // cut off, is this one.
        if now && lifecycle::rotation(&self.account, arn)?.on_demand_since.is_none() {
            lifecycle::rotate_now(&self.account, arn)?;
        }
        let native = Some(lifecycle::rotation(&self.account, arn)?);
        let what = match (now, self.args.only_period) {
            (true, _) => "kms",
            (_, true) => "period",
            _ => "not-due",
        };
        Ok(Report { native, ..self.report(what) })
    }

    /// Does something still lead to the key that the last rotation replaced: an alias, or a header?
    fn is_unfinished(&self, editor: &Editor) -> anyhow::Result<bool> {
        let Some(old) = replaced_key(editor) else { return Ok(false) };
        if !self.aliases(&old)?.is_empty() {
            return Ok(true);
        }
        let survey = Survey::of(&self.target.dir, &|_, _| false)?;
        let name = aws::name(&old, 0);
        Ok(survey.census.keys.keys().any(|key| same_key(key, &name)))
    }

    /// The aliases of a key, in its own Region. A key that is gone has none.
    fn aliases(&self, key: &KeyArn) -> anyhow::Result<Vec<String>> {
        match key::aliases(&self.account_of(key), key.as_str()) {
            Err(refused) if refused.code == "NotFoundException" => Ok(vec![]),
            aliases => Ok(aliases?),
        }
    }

    fn account_of(&self, key: &KeyArn) -> Account {
        account_of(key, self.options.kms.route.clone())
    }

    /// Makes a successor and lets it take the key's place.
    fn succeed(&mut self, mut editor: Editor) -> anyhow::Result<Report> {
        let volume = editor.descriptor().volume;
        let external = self.args.xks_key_id.as_deref();
        let wish = key::copy_wish(&self.account, self.arn.as_str(), external)?;
        let intent = Intent::of(&state_dir(), &format!("the KMS key {}", wish.mark));
        let hidden = if self.args.accept_hidden_keys { Hidden::Accept } else { Hidden::Refuse };
        let made = key::find_or_create(&self.account, &wish, hidden, &intent, &self.screen)?;
        if !made.created {
            self.require_as_wished(&made.arn, &wish.policy)?;
        }
        let new = KeyArn::parse(&made.arn)?;
        match try_key(&self.account, new.as_str(), volume, &self.screen)? {
            Canary::Passed => {}
            // The volume key is wrapped and unwrapped with it below.
            Canary::NotAllowed(why) => note(why),
        }
        rewrap::replace(&mut editor, &self.arn, &new, &self.options, &self.target.dir)?;
        editor.note_rotation_from(id_of(&self.arn));
        let changed = self.target.put(editor, &self.options)?;
        // The volume knows it now.
        intent.end();
        let editor = self.target.editor(&self.options)?;
        let finished = self.finish(&editor, "successor", changed)?;
        Ok(Report { key: self.arn.as_str().to_owned(), ..finished })
    }

    /// Anybody who may make keys may have put the mark of a successor on one of his own.
    fn require_as_wished(&self, arn: &str, policy: &str) -> anyhow::Result<()> {
        let parsed = |text: &str| serde_json::from_str(text).unwrap_or_default();
        if is_same(&parsed(&key::policy(&self.account, arn)?), &parsed(policy)) {
            return Ok(());
        }
        let text = "bears the mark of the successor, and has another policy than the key it would follow: \
                    look who made it; give it that policy, or take its tag kmsfs:request away";
        Err(failure(FAILURE, format!("{arn} {text}; nothing was changed")))
    }

    /// Aliases, then headers, follow the key in use.
    fn finish(
        &mut self,
        editor: &Editor,
        what: &'static str,
        changed: bool,
    ) -> anyhow::Result<Report> {
        let (mut moved, mut successor) = (Vec::new(), None);
        if let Some(old) = replaced_key(editor) {
            let current = successor_of(editor, &old)?;
            let account = self.account_of(&old);
            for alias in self.aliases(&old)? {
                let from = Repoint::From(old.as_str());
                key::point_alias(&account, &alias, current.as_str(), from, &self.screen)?;
                moved.push(alias);
            }
            successor = Some(current.as_str().to_owned());
        }
        let rewrap = self.sweep.run(&self.target, changed)?;
        Ok(Report { successor, aliases: moved, rewrap: Some(rewrap), ..self.report(what) })
    }

    fn report(&self, rotation: &'static str) -> Report {
        let policy = Rotation::of(&self.target.tree.descriptor);
        Report {
            key: self.arn.as_str().to_owned(),
            rotation,
            successor: None,
            aliases: vec![],
            native: None,
            period_days: policy.period_days,
            days_left: policy.days_left(unix_seconds()),
            rewrap: None,
        }
    }
}

fn id_of(key: &KeyArn) -> &str {
    key.as_str().rsplit('/').next().unwrap_or_default()
}

/// The key that the last rotation replaced, while the volume still knows it. One that somebody replaced
/// with `key rewrap --to` is his affair.
fn replaced_key(editor: &Editor) -> Option<KeyArn> {
    let from = Rotation::of(editor.descriptor()).from?;
    editor.retiring_keys().into_iter().find(|key| id_of(key) == from)
}

/// The key in use that took the place of an old one: the only one, or that of the same Region.
fn successor_of(editor: &Editor, old: &KeyArn) -> anyhow::Result<KeyArn> {
    let keys = editor.kms_keys();
    let near = |key: &&KeyArn| keys.len() == 1 || key.region() == old.region();
    let mut near = keys.iter().filter(near);
    match (near.next(), near.next()) {
        (Some(key), None) => Ok(key.clone()),
        _ => {
            let text =
                "several keys of the volume may have taken its place; point its aliases by hand";
            Err(failure(FAILURE, format!("{}: {text}", old.as_str())))
        }
    }
}

impl Report {
    fn print(&self, json: bool) -> anyhow::Result<()> {
        let mut out = Out::new();
        if json {
            out.json(self)?;
            return out.finish();
        }
        out.line(match self.rotation {
            "kms" => format!("KMS rotates {}.", self.key),
            "successor" => format!("{} has a successor.", self.key),
            "finished" => "The rotation is finished.".to_owned(),
            "period" => "The period is set.".to_owned(),
            _ => "Nothing is due.".to_owned(),
        })?;
        if let Some(successor) = &self.successor {
            out.fact("successor", successor)?;
        }
        for alias in &self.aliases {
            out.fact("points to it", alias)?;
        }
        match &self.native {
            Some(native) => print_native(&mut out, native)?,
            None => out.fact("rotation", rotation_text(self.period_days, self.days_left))?,
        }
        out.finish()?;
        let Some(rewrap) = &self.rewrap else { return Ok(()) };
        rewrap.print(false)?;
        note(
            "The old key stays enabled; `kmsfsctl key retire` switches it off when nothing needs it.",
        );
        Ok(())
    }
}

fn print_native(out: &mut Out, native: &NativeRotation) -> anyhow::Result<()> {
    let text = match (native.automatic, native.period_days) {
        (true, Some(days)) => format!("by KMS, every {days} days"),
        (true, None) => "by KMS".to_owned(),
        (false, _) => "on demand only; --period-days has KMS do it by itself".to_owned(),
    };
    out.fact("rotation", text)?;
    if let Some(date) = &native.next {
        out.fact("next", date)?;
    }
    match &native.on_demand_since {
        Some(date) => out.fact("under way since", date),
        None => Ok(()),
    }
}
