//! `kmsfsctl provision key`: makes the KMS key of a volume, with policy, tags and alias.
//!
//! The order matters: everything is read and looked over first, nothing is made before the operator has
//! seen it, and whatever is made is found again by its mark.

mod goal;
mod review;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::cli::confirm::confirm;
use crate::cli::exit::{FAILURE, KEY_UNAVAILABLE, failure};
use crate::cli::mount::options::volume_id;
use crate::cli::output::{Out, hex, note};
use crate::crypto::random_array;
use crate::format::VolumeId;
use crate::keys::finding::{Finding, Level};
use crate::provision::account::{Account, Caller, Refused};
use crate::provision::canary::{self, Canary};
use crate::provision::intent::Intent;
use crate::provision::key::{self, Hidden, KeyWish, Made, Origin, Pointed, Repoint, TAG_ALIAS};
use crate::provision::key_store::{self, Sought};
use crate::provision::policy::PolicyWish;
use crate::provision::{Silent, TAG_DEPLOYMENT, TAG_VOLUME, Teller, lint};

use super::account::AccountOptions;
use super::screen::Screen;
use goal::{Goal, Present, Search};
pub use review::Outcome;
use review::{Review, Trial, show_findings};

/// Make the KMS key of a volume, with its policy, tags and alias
#[derive(Args)]
pub struct KeyArgs {
    #[command(flatten)]
    key: KeyOptions,
    /// Print the policy and end: nothing is made
    #[arg(long)]
    policy_only: bool,
    /// Do not ask before anything is made
    #[arg(long)]
    yes: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    account: AccountOptions,
}

/// Which key.
#[derive(Args)]
pub struct KeyOptions {
    /// Where the key's material is
    #[arg(long, value_enum, default_value_t = Place::AwsCloudhsm)]
    pub origin: Place,
    /// Key store, by id or name (default: the name of the deployment)
    #[arg(long, value_name = "STORE")]
    pub key_store: Option<String>,
    /// The key in the external key manager, for a key of an external key store
    #[arg(long, value_name = "ID")]
    xks_key_id: Option<String>,
    /// Text for people
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Alias (default: alias/ and the name of the deployment)
    #[arg(long, value_name = "ALIAS", value_parser = alias_name)]
    alias: Option<String>,
    /// Point the alias at this key even if it points at another one
    #[arg(long)]
    repoint_alias: bool,
    /// A tag; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = tag)]
    pub tag: Vec<(String, String)>,
    /// The volume the key is for (32 hexadecimal digits); without it, the one an earlier run chose, or a
    /// new one, to be given to `init`
    #[arg(long, value_name = "ID", value_parser = volume_id)]
    volume_id: Option<[u8; 16]>,
    /// Have KMS rotate the key every N days (90 to 2560); only a key of KMS itself
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(90..=2560))]
    rotation_days: Option<u32>,
    #[command(flatten)]
    who: WhoOptions,
    /// Go on although the policy has faults
    #[arg(long)]
    accept_findings: bool,
    /// Take a key that is there although its policy is not the one these options describe, or cannot be
    /// read
    #[arg(long, conflicts_with = "put_policy")]
    keep_policy: bool,
    /// Give a key that is there the policy these options describe
    #[arg(long)]
    put_policy: bool,
    /// Take a key that is there although grants on it let others use it, or cannot be listed
    #[arg(long)]
    keep_grants: bool,
    /// Make a key although some keys of the account do not show this caller their tags, and one of them
    /// might be it
    #[arg(long)]
    accept_hidden_keys: bool,
    /// Fail if the key cannot be tried, for example because this caller may not use it
    #[arg(long)]
    pub require_canary: bool,
}

/// Who may do what.
#[derive(Args)]
struct WhoOptions {
    /// Who looks after the key, and cannot use it; may be repeated
    #[arg(long, value_name = "ARN")]
    admin: Vec<String>,
    /// Who mounts the volume; may be repeated
    #[arg(long, value_name = "ARN")]
    user: Vec<String>,
    /// Who mounts it read-only; may be repeated
    #[arg(long, value_name = "ARN")]
    read_only: Vec<String>,
    /// Who brings it to another key with `key rotate`; may be repeated
    #[arg(long, value_name = "ARN")]
    rotator: Vec<String>,
    /// Another account whose administrators say which of its hosts mount the volume; may be repeated
    #[arg(long, value_name = "ACCOUNT", value_parser = account_id)]
    account: Vec<String>,
    /// Do not let administrators delete the key
    #[arg(long)]
    no_delete: bool,
    /// Write the policy the AWS console writes, which is wider: not bound to the volume
    #[arg(long, conflicts_with_all = [
        "read_only", "rotator", "via_vpce", "extra_recipients", "sso_wildcard",
    ])]
    console_policy: bool,
    /// Let AWS services use the key on behalf of users
    #[arg(long)]
    allow_aws_services: bool,
    /// Let nobody use the key except through this VPC endpoint; may be repeated. Looking after the key is
    /// not bound to it
    #[arg(long, value_name = "VPCE-ID", value_parser = endpoint_id)]
    via_vpce: Vec<String>,
    /// Let users wrap for this key although another one makes the keys (a volume with several recipients)
    #[arg(long)]
    extra_recipients: bool,
    /// Name roles of single sign-on by pattern, so that they outlive their permission set
    #[arg(long)]
    sso_wildcard: bool,
}

/// Where a key's material is.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Place {
    /// A CloudHSM cluster (custom key store)
    AwsCloudhsm,
    /// KMS itself
    AwsKms,
    /// An external key manager (external key store)
    ExternalKeyStore,
}

impl WhoOptions {
    fn policy(&self, caller: &Caller, volume: VolumeId) -> Value {
        let wish = PolicyWish {
            admins: self.admin.clone(),
            users: self.user.clone(),
            read_only: self.read_only.clone(),
            rotators: self.rotator.clone(),
            accounts: self.account.clone(),
            may_delete: !self.no_delete,
            extra_recipients: self.extra_recipients,
            aws_services: self.allow_aws_services,
            endpoints: self.via_vpce.clone(),
            sso_wildcard: self.sso_wildcard,
            ..PolicyWish::new(caller, volume)
        };
        if self.console_policy { wish.console() } else { wish.strict() }
    }
}

/// What is to be made, looked over; nothing is made yet.
pub struct Draft {
    pub caller: Caller,
    /// Of the deployment.
    name: String,
    pub goal: Goal,
    /// The one that is wanted.
    policy: Value,
    /// On the policy the key will have.
    findings: Vec<Finding>,
    /// The key, if it is there.
    present: Option<Present>,
    /// To make it, if it is not.
    intent: Intent,
}

/// Runs the command.
pub fn run(args: &KeyArgs) -> anyhow::Result<()> {
    let (key, name) = (&args.key, &args.account.name);
    key.check()?;
    let account = args.account.account()?;
    if args.policy_only {
        return print_policy(key, &account, name);
    }
    let draft = key.draft(&account, name)?;
    let wish = key.wish(name, &draft, origin(key, &account, name)?);
    key.review(&account, &draft, &wish);
    key.refuse_unfit(&draft, &wish)?;
    if !key.is_done(&draft) {
        confirm(args.yes, "Make this?", "nothing was made")?;
    }
    let outcome = key.make(&account, &draft, &wish, args.json)?;
    outcome.print(args.json)?;
    outcome.verdict(key.require_canary)
}

impl KeyOptions {
    /// What is there, and what is wanted. Fails where that cannot be made.
    pub fn draft(&self, account: &Account, name: &str) -> anyhow::Result<Draft> {
        let caller = account.caller()?;
        let search = self.search(account, name)?;
        let intent = search.intent(&caller);
        let (goal, head) = search.goal_or_begun(&intent)?;
        let policy = self.who.policy(&caller, goal.volume);
        goal::refuse_foreign_alias(self.repoint_alias, &goal, head.as_ref())?;
        if head.is_none() {
            intent.ready()?;
        }
        let present =
            head.map(|head| Present::of(account, head, self.rotation_days)).transpose()?;
        let kept =
            present.as_ref().filter(|_| !self.put_policy).and_then(|key| key.policy.as_ref());
        let findings = lint::findings(kept.unwrap_or(&policy), &caller);
        Ok(Draft { caller, name: name.to_owned(), goal, policy, findings, present, intent })
    }

    fn search<'a>(&self, account: &'a Account, name: &'a str) -> anyhow::Result<Search<'a>> {
        Ok(Search {
            account,
            name,
            alias: self.alias_of(name)?,
            volume: self.volume_id.map(VolumeId),
            hidden: if self.accept_hidden_keys { Hidden::Accept } else { Hidden::Refuse },
            repoint: self.repoint_alias,
        })
    }

    /// Is the key there, as it shall be, with its alias?
    pub fn is_done(&self, draft: &Draft) -> bool {
        draft.present.as_ref().is_some_and(|key| {
            let policy = self.keep_policy || key.has_policy(&draft.policy) == Some(true);
            policy && key.has_rotation(self.rotation_days) && key.is(draft.goal.target.as_ref())
        })
    }

    /// For the library.
    pub fn wish(&self, name: &str, draft: &Draft, origin: Origin) -> KeyWish {
        let (goal, id) = (&draft.goal, hex(&draft.goal.volume.0));
        let own = [
            (TAG_DEPLOYMENT, name.to_owned()),
            (TAG_VOLUME, id.clone()),
            (TAG_ALIAS, goal.alias.clone()),
        ];
        let own = own.map(|(name, value)| (name.to_owned(), value));
        let description = self.description.clone();
        KeyWish {
            origin,
            description: description.unwrap_or_else(|| format!("kmsfs volume {id} ({name})")),
            tags: own.into_iter().chain(self.tag.iter().cloned()).collect(),
            policy: draft.policy.to_string(),
            mark: goal.mark.clone(),
        }
    }

    /// Where the key shall be, if the key store is as it should be.
    pub fn origin_in(&self, store: String) -> Origin {
        match (self.origin, &self.xks_key_id) {
            (Place::AwsKms, _) => Origin::AwsKms,
            (_, None) => Origin::CloudHsm { store },
            (_, Some(id)) => Origin::External { store, xks_key_id: id.clone() },
        }
    }

    /// Shows everything that is about to be.
    pub fn review(&self, account: &Account, draft: &Draft, wish: &KeyWish) {
        let review = Review {
            account,
            caller: &draft.caller,
            wish,
            alias: &draft.goal.alias,
            policy: &draft.policy,
            findings: &draft.findings,
            present: draft.present.as_ref(),
            put_policy: self.put_policy,
            rotation_days: self.rotation_days,
        };
        review.show();
    }

    /// Refuses a policy with faults and a key that is there and not as it should be, unless they are
    /// accepted.
    pub fn refuse_unfit(&self, draft: &Draft, wish: &KeyWish) -> anyhow::Result<()> {
        if let Some(key) = &draft.present {
            key::require_fit(wish, &key.head)?;
            if !self.keep_policy && !self.put_policy {
                key.require_policy(&draft.policy)?;
            }
            if !self.keep_grants {
                key.require_no_grants()?;
            }
        }
        refuse_faults(&draft.findings, self.accept_findings)
    }

    /// Makes what is missing, and tries the key.
    pub fn make(
        &self,
        account: &Account,
        draft: &Draft,
        wish: &KeyWish,
        quiet: bool,
    ) -> anyhow::Result<Outcome> {
        let id = hex(&draft.goal.volume.0);
        let search = self.search(account, &draft.name)?;
        if draft.present.is_none() {
            // People have read since, and a cluster may have been made.
            draft.intent.begin_if(|| search.require_unchanged(&draft.goal))?;
        }
        provision(self, &search, draft, wish, quiet).with_context(|| {
            format!("volume id {id}: run the same command again with --volume-id {id} to go on")
        })
    }
}

fn provision(
    args: &KeyOptions,
    search: &Search<'_>,
    draft: &Draft,
    wish: &KeyWish,
    quiet: bool,
) -> Result<Outcome, Refused> {
    let (account, goal) = (search.account, &draft.goal);
    let screen = Screen::new();
    let teller: &dyn Teller = if quiet { &Silent } else { &screen };
    let made: Made = match &draft.present {
        Some(present) => key::adopt(account, wish, &present.head, teller)?,
        None => key::create(account, wish, search.hidden, &draft.intent, teller)?,
    };
    let has_policy = match &draft.present {
        None => Some(true),
        Some(present) => match present.has_policy(&draft.policy) {
            Some(true) => Some(true),
            _ if args.put_policy => {
                key::put_policy(account, &made.arn, &wish.policy)?;
                Some(true)
            }
            other => other,
        },
    };
    let is_rotated = draft.present.as_ref().is_some_and(|key| key.has_rotation(args.rotation_days));
    if let (Some(days), false) = (args.rotation_days, is_rotated) {
        key::enable_rotation(account, &made.arn, days)?;
    }
    let repoint = if args.repoint_alias { Repoint::Any } else { Repoint::Never };
    let pointed = key::point_alias(account, &goal.alias, &made.arn, repoint, teller)?;
    draft.intent.end();
    let trial = match canary::try_key(account, &made.arn, goal.volume, teller) {
        Ok(Canary::Passed) => Trial::Passed,
        Ok(Canary::NotAllowed(text)) => Trial::NotAllowed(text),
        Err(refused) => Trial::Failed(refused.sentence),
    };
    Ok(Outcome {
        key: made.arn,
        created: made.created,
        alias: goal.alias.clone(),
        alias_moved: pointed == Pointed::Moved,
        volume_id: hex(&goal.volume.0),
        rotation_days: args.rotation_days,
        policy_differs: has_policy.map(|has| !has),
        trial,
    })
}

impl KeyOptions {
    fn alias_of(&self, name: &str) -> anyhow::Result<String> {
        match &self.alias {
            Some(alias) => Ok(alias.clone()),
            None => alias_name(name).map_err(|text| failure(FAILURE, text)),
        }
    }

    /// Refuses options that do not go together.
    pub fn check(&self) -> anyhow::Result<()> {
        let refuse = |text: &str| Err(failure(FAILURE, text.to_owned()));
        let external = self.origin == Place::ExternalKeyStore;
        if self.rotation_days.is_some() && self.origin != Place::AwsKms {
            return refuse(
                "KMS rotates no key of a key store: take --rotation-days away, and have `kmsfsctl \
                 key rotate` make a new key when it is time",
            );
        }
        if self.origin == Place::AwsKms && self.key_store.is_some() {
            return refuse(
                "a key of KMS itself is in no key store: take --key-store away, or --origin",
            );
        }
        if external != self.xks_key_id.is_some() {
            return refuse(
                "--xks-key-id names the key in an external key manager: it belongs to --origin \
                 external-key-store, which needs it",
            );
        }
        Ok(())
    }
}

/// Where the key shall be; a key store must be connected.
pub fn origin(args: &KeyOptions, account: &Account, name: &str) -> anyhow::Result<Origin> {
    let kind = match args.origin {
        Place::AwsKms => return Ok(Origin::AwsKms),
        Place::AwsCloudhsm => "AWS_CLOUDHSM",
        Place::ExternalKeyStore => "EXTERNAL_KEY_STORE",
    };
    let name = args.key_store.as_deref().unwrap_or(name);
    let Some(store) = key_store::find(account, Sought::parse(name))? else {
        let text = format!(
            "there is no key store {name} in {}: name one with --key-store, or make a key of KMS \
             itself with --origin aws-kms",
            account.region()
        );
        return Err(failure(FAILURE, text));
    };
    if store.kind != kind {
        let text = format!("key store {name} is of the kind {}, and {kind} is wanted", store.kind);
        return Err(failure(FAILURE, format!("{text}: correct --origin or --key-store")));
    }
    if store.connection != "CONNECTED" {
        let text = format!(
            "key store {name} is {}: connect it (`aws kms connect-custom-key-store --region {} \
             --custom-key-store-id {}`), and run the same command again when it is CONNECTED",
            store.connection,
            account.region(),
            store.id
        );
        return Err(failure(KEY_UNAVAILABLE, text));
    }
    Ok(args.origin_in(store.id))
}

fn refuse_faults(findings: &[Finding], accepted: bool) -> anyhow::Result<()> {
    let faults = findings.iter().filter(|finding| finding.level == Level::Error).count();
    if faults == 0 || accepted {
        return Ok(());
    }
    let what = if faults == 1 { "a fault".to_owned() } else { format!("{faults} faults") };
    let advice = "correct what is named above (or say --accept-findings)";
    Err(failure(FAILURE, format!("the policy has {what}; {advice}; nothing was made")))
}

/// Asks nobody but who is calling.
fn print_policy(args: &KeyOptions, account: &Account, name: &str) -> anyhow::Result<()> {
    args.alias_of(name)?;
    let caller = account.caller()?;
    let volume = VolumeId(args.volume_id.unwrap_or_else(random_array));
    let policy = args.who.policy(&caller, volume);
    let findings = lint::findings(&policy, &caller);
    show_findings(&findings);
    if args.volume_id.is_none() && !args.who.console_policy {
        let id = hex(&volume.0);
        note(format!("Volume id {id}: give it to `kmsfsctl init --volume-id`."));
    }
    let mut out = Out::new();
    out.json(&policy)?;
    out.finish()?;
    refuse_faults(&findings, args.accept_findings)
}

/// `alias/NAME`; the first part may be left out.
fn alias_name(text: &str) -> Result<String, String> {
    let name = text.strip_prefix("alias/").unwrap_or(text);
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"/_-".contains(&b);
    let fits = !name.is_empty() && name.len() <= 250 && name.bytes().all(legal);
    if !fits || name.starts_with("aws/") {
        return Err(format!(
            "{text:?} cannot be an alias: up to 250 letters, digits, /, _ and -, and not aws/…"
        ));
    }
    Ok(format!("alias/{name}"))
}

/// `NAME=VALUE`.
fn tag(text: &str) -> Result<(String, String), String> {
    let Some((name, value)) = text.split_once('=') else {
        return Err(format!("{text:?} is not NAME=VALUE"));
    };
    let fits = (1..=128).contains(&name.chars().count()) && value.chars().count() <= 256;
    if !fits || name.starts_with("aws:") || name.starts_with("kmsfs:") {
        return Err(format!(
            "{text:?} cannot be a tag: a name has 1 to 128 characters and begins with neither aws: \
             nor kmsfs:, a value has up to 256"
        ));
    }
    Ok((name.to_owned(), value.to_owned()))
}

fn account_id(text: &str) -> Result<String, String> {
    let fits = text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit());
    if fits { Ok(text.to_owned()) } else { Err(format!("{text:?} is not twelve digits")) }
}

fn endpoint_id(text: &str) -> Result<String, String> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    let fits = text.strip_prefix("vpce-").is_some_and(|id| !id.is_empty() && id.bytes().all(legal));
    if fits { Ok(text.to_owned()) } else { Err(format!("{text:?} is no id such as vpce-1a2b3c4d")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_tags_accounts_and_endpoints_have_a_form() {
        assert_eq!(alias_name("files").as_deref(), Ok("alias/files"));
        assert_eq!(alias_name("alias/team/files").as_deref(), Ok("alias/team/files"));
        for text in ["", "alias/", "alias/aws/x", "aws/x", "a b", "a:b"] {
            assert!(alias_name(text).is_err(), "{text}");
        }
        assert_eq!(tag("team=a=b"), Ok(("team".to_owned(), "a=b".to_owned())));
        assert_eq!(tag("team="), Ok(("team".to_owned(), String::new())));
        for text in ["team", "=x", "aws:x=y", "kmsfs:volume=x"] {
            assert!(tag(text).is_err(), "{text}");
        }
        assert!(account_id("111122223333").is_ok() && account_id("1111").is_err());
        assert!(endpoint_id("vpce-1a2b").is_ok() && endpoint_id("vpc-1").is_err());
    }
}
