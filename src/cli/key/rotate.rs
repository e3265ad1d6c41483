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

use super::alone::Alone;
use super::retire::account_of;
use super::rewrap::{self, SweepOptions};
use super::status::{Survey, rotation_text};
use super::sweep;
use super::target::{Target, backing_of};
use crate::cli::exit::{FAILURE, IN_USE, failure};
use crate::cli::kms::duration;
use crate::cli::output::{Out, note};
use crate::cli::provision::screen::Screen;
use crate::cli::secrets::KeyOptions;
use crate::fuse::control;
use crate::keys::aws::{self, KeyArn};
use crate::keys::clock::unix_seconds;
use crate::keys::rotation::Rotation;
use crate::keys::{Editor, UnlockOptions, same_key};
use crate::provision::account::Account;
use crate::provision::canary::{Canary, try_key};
use crate::provision::intent::Intent;
use crate::provision::key::{self, Hidden, KeyWish, Repoint};
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
    /// Which KMS key, if the volume has several. With --if-due, if it is not the one that is due first
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
    /// Only make the successor and name it, for the expect-key of mounts: the next run takes it
    #[arg(long, conflicts_with = "only_period")]
    only_make: bool,
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
    /// earlier. `period`: only the period was set. `made`: only the successor was made. `not-due`.
    rotation: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    successor: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    aliases: Vec<String>,
    /// Why aliases may still point to the old key.
    #[serde(skip_serializing_if = "Option::is_none")]
    aliases_left: Option<String>,
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
    // Before the descriptor is read, which another run may be about to change.
    let alone = Alone::on(&backing_of(&args.dir).0)?;
    let target = Target::open(&args.dir, &options)?;
    let editor = target.editor(&options)?;
    let arn = chosen(args, &editor)?;
    let mut account = account_of(&arn, options.kms.route.clone());
    account.pace.settling = args.settling;
    let sweep = args.sweep.prepare(&target, args.json)?;
    let screen = Screen::new();
    let mut work = Work { args, options, alone, target, account, arn, sweep, screen };
    let report = work.run(editor)?;
    report.print(args.json)?;
    report.require_whole()
}

/// The key that was named, or the only one, or, for a timer, the one whose period ends first.
fn chosen(args: &RotateArgs, editor: &Editor) -> anyhow::Result<KeyArn> {
    if args.if_due
        && args.key.is_none()
        && let Some(id) = editor.rotation_kept_for().first()
        && let Some(key) = editor.kms_keys().into_iter().find(|key| key.id() == id)
    {
        return Ok(key);
    }
    rewrap::replaced(editor, args.key.as_deref(), "--key")
}

struct Work<'a> {
    args: &'a RotateArgs,
    options: UnlockOptions,
    alone: Alone,
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
        let native = head.origin == "AWS_KMS" && !self.wants_successor(&editor);
        let in_use = editor.kms_keys().contains(&self.arn);
        if let Some(days) = self.args.period_days.filter(|_| !native && in_use)
            && editor.set_rotation_period(self.arn.id(), days)
        {
            editor = self.put(editor)?.1;
        }
        if self.args.only_period && !native && in_use {
            return Ok(self.report("period"));
        }
        if !self.args.only_period && self.is_unfinished(&editor)? {
            return self.go_on(&editor);
        }
        if !in_use {
            let text = "is not a key of this volume; `kmsfsctl key status` names them";
            return Err(failure(FAILURE, format!("{} {text}", self.arn.as_str())));
        }
        if native {
            // Who sets a period here has KMS keep it.
            if self.args.period_days.is_some() && editor.drop_rotation_period(self.arn.id()) {
                self.put(editor)?;
            }
            return self.rotate_natively();
        }
        let left = Rotation::of_key(editor.descriptor(), self.arn.id()).days_left(unix_seconds());
        if self.args.if_due && left.is_none_or(|days| days >= 0) {
            return Ok(self.report("not-due"));
        }
        self.succeed(editor)
    }

    /// Also a key that KMS could rotate, if the period is kept here: so it was told to be.
    fn wants_successor(&self, editor: &Editor) -> bool {
        let kept = || editor.rotation_kept_for().iter().any(|id| id == self.arn.id());
        self.args.successor || self.args.if_due && self.args.period_days.is_none() && kept()
    }

    /// Puts a changed descriptor in force; whether it is changed, and it once more.
    fn put(&mut self, editor: Editor) -> anyhow::Result<(bool, Editor)> {
        let changed = self.target.put(editor, &self.options)?;
        self.alone.stay()?;
        Ok((changed, self.target.editor(&self.options)?))
    }

    fn go_on(&mut self, editor: &Editor) -> anyhow::Result<Report> {
        if self.args.only_make {
            let text = "a rotation was interrupted; finish it first: run this without --only-make";
            return Err(failure(FAILURE, text));
        }
        note("a rotation was interrupted: it is finished, and no other one begun");
        self.finish(editor, "finished", false)
    }

    /// KMS keeps the old material: what was wrapped with it stays readable.
    fn rotate_natively(&self) -> anyhow::Result<Report> {
        let arn = self.arn.as_str();
        if self.args.only_make {
            let text = "is rotated by KMS itself and needs no successor; to make one all the same, say \
                        --successor, too";
            return Err(failure(FAILURE, format!("{arn} {text}")));
        }
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
        let Some(old) = editor.replaced_key() else { return Ok(false) };
        let aliases = self.aliases(&old);
        if aliases.as_ref().is_ok_and(|aliases| !aliases.is_empty()) {
            return Ok(true);
        }
        let survey = Survey::of(&self.target.dir, &|_, _| false)?;
        let name = aws::name(&old, 0);
        let needed = survey.census.keys.keys().any(|key| same_key(key, &name));
        // Who may not list aliases can finish the rest.
        Ok(needed || !aliases?.is_empty())
    }

    /// The aliases of a key, in its own Region. A key that is gone has none.
    fn aliases(&self, key: &KeyArn) -> anyhow::Result<Vec<String>> {
        match key::aliases(&self.account_of(key), key.as_str()) {
            Err(refused) if refused.code == "NotFoundException" => Ok(vec![]),
            aliases => Ok(aliases?),
        }
    }

    fn account_of(&self, key: &KeyArn) -> Account {
        let mut account = account_of(key, self.options.kms.route.clone());
        account.pace.settling = self.args.settling;
        account
    }

    /// Makes a successor and lets it take the key's place.
    fn succeed(&mut self, mut editor: Editor) -> anyhow::Result<Report> {
        let volume = editor.descriptor().volume;
        let external = self.args.xks_key_id.as_deref();
        let wish = key::copy_wish(&self.account, self.arn.as_str(), external)?;
        let intent = Intent::of_user(&format!("the KMS key {}", wish.mark));
        let hidden = if self.args.accept_hidden_keys { Hidden::Accept } else { Hidden::Refuse };
        if !self.args.only_make {
            self.require_no_pin_against(&wish, hidden)?;
        }
        self.target.require_newest()?;
        intent.ready()?;
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
        if self.args.only_make {
            return Ok(Report { successor: Some(made.arn), ..self.report("made") });
        }
        // What this run was told to expect is the key before.
        if !self.options.expect.keys.is_empty() {
            self.options.expect.keys.push(made.arn);
        }
        rewrap::replace(&mut editor, &self.arn, &new, &self.options, &self.target.dir)?;
        editor.note_rotation_pair(self.arn.id(), new.id());
        let (changed, editor) = self.put(editor)?;
        // The volume knows it now.
        intent.end();
        let old = self.arn.as_str().to_owned();
        Ok(Report { key: old, ..self.finish(&editor, "successor", changed)? })
    }

    /// A mount that was told which keys to expect refuses a descriptor that names another, however the
    /// key came to be. That is known before a key is made.
    fn require_no_pin_against(&self, wish: &KeyWish, hidden: Hidden) -> anyhow::Result<()> {
        let Some(point) = &self.target.mountpoint else { return Ok(()) };
        let text = control::status(point)
            .map_err(|error| failure(FAILURE, sweep::no_answer(point, &error)))?;
        let status: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let pins = status["expected_keys"].as_array().cloned().unwrap_or_default();
        if pins.is_empty() {
            return Ok(());
        }
        let there = key::find(&self.account, &wish.mark, hidden)?.map(|found| found.head.arn);
        let (dir, point) = (self.args.dir.display(), point.display());
        let (made, arn) = match &there {
            Some(arn) if pins.iter().any(|pin| pin == arn) => return Ok(()),
            Some(arn) => (String::new(), arn.as_str()),
            None => {
                let more = self.options_again();
                let make = format!("`kmsfsctl key rotate {dir} --only-make{more}` makes it; ");
                (make, "SUCCESSOR")
            }
        };
        let more = pins.iter().filter_map(|pin| pin.as_str()).chain([arn]);
        let more: Vec<String> = more.map(|pin| format!("expect-key={pin}")).collect();
        let text = format!(
            "{point} is mounted with expect-key and would refuse a successor; {made}unmount, mount it \
             again with {}, and run this again; no key was made",
            more.join(",")
        );
        Err(failure(IN_USE, text))
    }

    /// Anybody who may make keys may have put the mark of a successor on one of his own.
    fn require_as_wished(&self, arn: &str, policy: &str) -> anyhow::Result<()> {
        let present = key::policy(&self.account, arn)?;
        if present == policy || is_same_json(&present, policy) {
            return Ok(());
        }
        let text = "bears the mark of the successor, and has another policy than the key it would follow: \
                    look who made it; give it that policy, or take its tag kmsfs:request away";
        Err(failure(FAILURE, format!("{arn} {text}; the volume's key is the same as before")))
    }

    /// What says which key is to have which successor.
    fn options_again(&self) -> String {
        let args = self.args;
        let key = args.key.iter().map(|arn| format!(" --key {arn}"));
        let external = args.xks_key_id.iter().map(|id| format!(" --xks-key-id {id}"));
        let successor = (args.successor || args.if_due).then(|| " --successor".to_owned());
        key.chain(external).chain(successor).collect()
    }

    /// Aliases, then headers, follow the key in use. What is wrong with the ones is not to keep the
    /// others from it.
    fn finish(
        &mut self,
        editor: &Editor,
        what: &'static str,
        changed: bool,
    ) -> anyhow::Result<Report> {
        let (mut moved, mut successor, mut left) = (Vec::new(), None, None);
        if let Some(old) = editor.replaced_key() {
            let current = editor.successor_of(&old);
            left = self.move_aliases(&old, current.as_ref(), &mut moved).err();
            successor = current.as_ref().map(|key| key.as_str().to_owned());
            // Its period is the one that counts now.
            self.arn = current.unwrap_or_else(|| self.arn.clone());
        }
        let rewrap = Some(self.sweep.run(&self.target, changed)?);
        let aliases_left = left.map(|error| format!("{error:#}"));
        Ok(Report { successor, aliases: moved, aliases_left, rewrap, ..self.report(what) })
    }

    fn move_aliases(
        &self,
        old: &KeyArn,
        new: Option<&KeyArn>,
        moved: &mut Vec<String>,
    ) -> anyhow::Result<()> {
        let account = self.account_of(old);
        for alias in self.aliases(old)? {
            let Some(new) = new else {
                let text = "several keys of the volume may have taken the place of";
                let cure = "point it at the right one by hand (`aws kms update-alias`)";
                let text = format!("{alias}: {text} {}; {cure}", old.as_str());
                return Err(failure(FAILURE, text));
            };
            let from = Repoint::From(old.as_str());
            key::point_alias(&account, &alias, new.as_str(), from, &self.screen)?;
            moved.push(alias);
        }
        Ok(())
    }

    fn report(&self, rotation: &'static str) -> Report {
        let policy = Rotation::of_key(&self.target.tree.descriptor, self.arn.id());
        Report {
            key: self.arn.as_str().to_owned(),
            rotation,
            successor: None,
            aliases: vec![],
            aliases_left: None,
            native: None,
            period_days: policy.period_days,
            days_left: policy.days_left(unix_seconds()),
            rewrap: None,
        }
    }
}

fn is_same_json(one: &str, other: &str) -> bool {
    let [one, other] = [one, other].map(serde_json::from_str);
    matches!((one, other), (Ok(one), Ok(other)) if is_same(&one, &other))
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
            "made" => format!("{} has a successor, which is not in use yet.", self.key),
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
        self.tell_of_pins();
        let Some(rewrap) = &self.rewrap else { return Ok(()) };
        rewrap.print(false)?;
        note(
            "The old key stays enabled; `kmsfsctl key retire` switches it off when nothing needs it.",
        );
        Ok(())
    }

    /// Whoever mounts with these words meets them at the next mount.
    fn tell_of_pins(&self) {
        let Some(new) = &self.successor else { return };
        note(format!(
            "Mounts with expect-key need expect-key={new}, too; that of the old key goes when the key is \
             retired."
        ));
    }

    /// Fails if something is left to do.
    fn require_whole(&self) -> anyhow::Result<()> {
        self.rewrap.as_ref().map_or(Ok(()), rewrap::Report::require_whole)?;
        match &self.aliases_left {
            Some(why) => {
                let text = "the headers follow the successor, aliases do not all";
                Err(failure(FAILURE, format!("{text}: {why}; then run this again")))
            }
            None => Ok(()),
        }
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

#[cfg(test)]
mod tests {
    use super::is_same_json;

    #[test]
    fn what_is_no_policy_is_like_no_other() {
        assert!(is_same_json(r#"{"Statement": "a"}"#, r#"{"Statement":["a"]}"#));
        assert!(!is_same_json("no policy", "nor is this"));
        assert!(!is_same_json("{}", "no policy"));
    }
}
