//! `kmsfsctl provision all`: every step from an empty account to a key, in one command.
//!
//! Each step looks first and is skipped when it is done, so the same command goes on wherever it was
//! interrupted. What people have to do stops it with a sentence.

mod report;

use clap::Args;

use super::account::AccountOptions;
use super::activate::ToolOptions;
use super::certificate::{FOR_OTHERS, SigningOptions, hardware_words, request_for_others};
use super::cluster::NewCluster;
use super::key::{self, Draft, KeyOptions, Place};
use super::key_store::{StoreOptions, Wanted};
use super::plan::summary;
use super::screen::Screen;
use super::{ClusterOptions, refused};
use crate::cli::confirm::confirm;
use crate::cli::exit::{FAILURE, failure};
use crate::cli::output::note;
use crate::keys::prices::KEY_PER_MONTH;
use crate::provision::account::Account;
use crate::provision::activate::Activation;
use crate::provision::certificate::Files;
use crate::provision::cluster::{self, ClusterFacts, ZONES, ensure_cluster};
use crate::provision::hsm::ensure_hsm;
use crate::provision::initialize::{Source, certify, describe};
use crate::provision::key::KeyWish;
use crate::provision::key_store::{self, Sought, StoreFacts};
use crate::provision::plan::{self, Plan, State, plan};
use crate::provision::survey::Deployment;
use report::Report;

/// Make everything that a volume on CloudHSM keys needs: cluster, HSMs, key store, key
///
/// What is there is found and not made twice; what will be there, and what it costs, is shown before
/// anything is made. Interrupted, it goes on when it is run again. It stops where people have to act:
/// after the signing request if another CA signs (--csr-out), and before the activation if nothing
/// runs CloudHSM's tools (--exec, --exec-template).
#[derive(Args)]
pub struct AllArgs {
    #[command(flatten)]
    place: ClusterOptions,
    #[command(flatten)]
    new: NewCluster,
    #[command(flatten)]
    signing: SigningOptions,
    #[command(flatten)]
    tools: ToolOptions,
    #[command(flatten)]
    store: StoreOptions,
    #[command(flatten)]
    key: KeyOptions,
    /// Do not ask before anything is made
    #[arg(long)]
    yes: bool,
    /// Print what came of each step as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    account: AccountOptions,
}

/// Runs the command.
pub fn run(args: &AllArgs) -> anyhow::Result<()> {
    args.key.check()?;
    let account = args.account.account()?;
    let name = args.account.name.as_str();
    let (files, store) = match args.key.origin {
        Place::AwsKms => (Files::new(""), None),
        _ => (args.place.files(name)?, args.store(&account)?),
    };
    let draft = args.key.draft(&account, name)?;
    args.check_files()?;
    let review = Review { args, account: &account, files: &files, draft: &draft };
    let is_done = review.show(store.as_ref())?;
    args.key.refuse_unfit(&draft, &review.wish(store.as_ref()))?;
    if !is_done {
        confirm(args.yes, "Make what is missing?", "nothing was made")?;
    }
    let report = Report::new(name, account.region());
    let mut work = Work { args, account: &account, files, store, draft, report };
    let result = work.run();
    work.report.print(&result, args.json)?;
    result
}

impl AllArgs {
    fn store_name(&self) -> &str {
        self.key.key_store.as_deref().unwrap_or(&self.account.name)
    }

    /// The key store, if it is there; one that is named by its id must be.
    fn store(&self, account: &Account) -> anyhow::Result<Option<StoreFacts>> {
        let sought = Sought::parse(self.store_name());
        match (key_store::find(account, sought)?, sought) {
            (None, Sought::Id(id)) => {
                let region = account.region();
                let text = format!("there is no key store {id} in Region {region}; check --region");
                Err(failure(FAILURE, text))
            }
            (found, _) => Ok(found),
        }
    }

    /// What cannot be read is said before anything is paid for.
    fn check_files(&self) -> anyhow::Result<()> {
        self.signing.roots()?;
        self.signing.external()?;
        Ok(())
    }
}

/// What is shown before anything is made.
struct Review<'a> {
    args: &'a AllArgs,
    account: &'a Account,
    files: &'a Files,
    draft: &'a Draft,
}

impl Review<'_> {
    /// Shows everything; whether nothing is left to be made.
    fn show(&self, store: Option<&StoreFacts>) -> anyhow::Result<bool> {
        let (args, draft) = (self.args, self.draft);
        let plan = match args.key.origin {
            Place::AwsCloudhsm => Some(self.plan(store)?),
            Place::AwsKms | Place::ExternalKeyStore => None,
        };
        plan.iter().flat_map(|plan| &plan.steps).for_each(|step| note(summary(step)));
        args.key.review(self.account, draft, &self.wish(store));
        let (hour, month) =
            plan.as_ref().map_or((0.0, KEY_PER_MONTH), |plan| (plan.per_hour, plan.per_month));
        note(format!(
            "With all of it: ${hour:.2} an hour, about ${month:.0} a month ({}).",
            plan::PRICE_NOTE
        ));
        let stands = match &plan {
            Some(plan) => plan.steps.iter().all(|step| step.state != State::Missing),
            None => args.key.origin == Place::AwsKms || store.is_some_and(StoreFacts::is_connected),
        };
        Ok(stands && args.key.is_done(draft))
    }

    fn plan(&self, store: Option<&StoreFacts>) -> anyhow::Result<Plan> {
        let args = self.args;
        let deployment = Deployment {
            name: args.account.name.clone(),
            cluster: args.cluster_of(store),
            store: Some(args.store_name().to_owned()),
            alias: self.draft.goal.alias.clone(),
        };
        let plan = plan(self.account, &deployment, self.files)?;
        let state = |what| plan.steps.iter().find(|step| step.what == what).map(|step| step.state);
        if state(plan::CLUSTER) == Some(State::Missing) {
            args.new.wish(&args.account.name, None, &args.key.tag).check()?;
        }
        if state(plan::CLAIM) == Some(State::Missing) {
            args.signing.check_own(&args.account.name)?;
        }
        if state(plan::KMS_USER) != Some(State::Exists) {
            args.tools.check(self.files)?;
        }
        Ok(plan)
    }

    /// As far as can be known before the key store is there.
    fn wish(&self, store: Option<&StoreFacts>) -> KeyWish {
        let args = self.args;
        let store = store.map_or(args.store_name(), |store| &store.id).to_owned();
        args.key.wish(&args.account.name, self.draft, args.key.origin_in(store))
    }
}

impl AllArgs {
    /// The cluster that is named, or that of the key store which is there.
    fn cluster_of(&self, store: Option<&StoreFacts>) -> Option<String> {
        self.place.cluster.clone().or_else(|| store.and_then(|store| store.cluster.clone()))
    }
}

/// The steps, and how far they are.
struct Work<'a> {
    args: &'a AllArgs,
    account: &'a Account,
    files: Files,
    /// The key store, if it was there before.
    store: Option<StoreFacts>,
    draft: Draft,
    report: Report,
}

impl Work<'_> {
    fn run(&mut self) -> anyhow::Result<()> {
        match self.args.key.origin {
            Place::AwsKms => {}
            Place::ExternalKeyStore => self.key_store(None)?,
            Place::AwsCloudhsm => {
                let cluster = self.cluster()?;
                self.hsms("first-hsm", &cluster, 1)?;
                self.certificate(&cluster)?;
                self.activate(&cluster)?;
                self.hsms("second-hsm", &cluster, ZONES)?;
                self.key_store(Some(&cluster))?;
            }
        }
        self.key()
    }

    fn cluster(&mut self) -> anyhow::Result<String> {
        let (args, name) = (self.args, self.args.account.name.as_str());
        let id = args.cluster_of(self.store.as_ref());
        let wish = args.new.wish(name, id.as_deref(), &args.key.tag);
        let before = cluster::find(self.account, cluster::Sought::new(name, id.as_deref()))?;
        let facts = ensure_cluster(self.account, &wish, self.files.dir(), &Screen::new())?;
        facts.require_healthy()?;
        self.report.done("cluster", before.is_none(), &facts.id);
        Ok(facts.id)
    }

    fn hsms(&mut self, step: &'static str, cluster: &str, number: usize) -> anyhow::Result<()> {
        let working = |facts: &ClusterFacts| facts.active_zones().len();
        let before = cluster::get(self.account, cluster)?;
        let facts = ensure_hsm(self.account, cluster, number, self.files.dir(), &Screen::new())?;
        let zones: Vec<&str> = facts.active_zones().into_iter().collect();
        self.report.done(step, working(&before) < number, &zones.join(", "));
        Ok(())
    }

    fn certificate(&mut self, cluster: &str) -> anyhow::Result<()> {
        let signing = &self.args.signing;
        let seen = describe(self.account, cluster).map_err(refused)?;
        let roots = signing.roots()?;
        if let (Some(path), true) = (signing.csr_out(), seen.csr.is_some()) {
            request_for_others(&seen, &self.files, &roots, path)?;
            let path = path.display();
            self.report.waits("certificate", format!("signing request in {path}"));
            return Err(failure(FAILURE, format!("{path} is to be signed. {FOR_OTHERS}")));
        }
        let mut ask = |which| signing.passphrase(which);
        let source = match signing.external()? {
            Some(claim) => Source::External(claim),
            None => Source::Own { name: &self.args.account.name, ask: &mut ask },
        };
        let done = certify(self.account, &seen, &self.files, source, &roots, &Screen::new());
        let done = done.map_err(refused)?;
        let words = hardware_words(done.was_claimed, done.hardware);
        self.report.done("certificate", !done.was_claimed, words);
        Ok(())
    }

    fn activate(&mut self, cluster: &str) -> anyhow::Result<()> {
        if self.store.as_ref().is_some_and(StoreFacts::is_connected) {
            self.report.done("activation", false, "KMS is logged in as kmsuser");
            return Ok(());
        }
        let tools = &self.args.tools;
        let Some(executor) = tools.executor() else { return self.activated_by_hand(cluster) };
        let passwords = tools.passwords(&self.files);
        let activation = Activation {
            account: self.account,
            cluster,
            executor: &executor,
            files: &self.files,
            passwords: &passwords,
            teller: &Screen::new(),
        };
        let activated = activation.ensure().map_err(refused)?;
        let made = activated.activated || activated.kmsuser_created;
        self.report.done("activation", made, "administrator and kmsuser are there");
        Ok(())
    }

    /// Who has a password of `kmsuser` has made it: users of a cluster cannot be seen from here.
    fn activated_by_hand(&mut self, cluster: &str) -> anyhow::Result<()> {
        let seen = describe(self.account, cluster).map_err(refused)?;
        let password = self.args.store.password_file(self.files.dir());
        let is_active = seen.state.as_str() == "ACTIVE";
        if is_active && (password.exists() || self.store.is_some()) {
            self.report.done("activation", false, "the cluster is ACTIVE");
            return Ok(());
        }
        let steps = self.args.tools.by_hand(&seen, self.account.region(), &self.files);
        self.report.by_hand("activation", steps);
        let text = format!(
            "cluster {cluster} is to be activated, and kmsuser to be made in it: run the commands \
             above, write kmsuser's password to {} (mode 0600), and run the same command again to go \
             on; with --exec or --exec-template it runs them itself",
            password.display()
        );
        Err(failure(FAILURE, text))
    }

    fn key_store(&mut self, cluster: Option<&str>) -> anyhow::Result<()> {
        let args = self.args;
        let wanted = Wanted {
            account: self.account,
            name: &args.account.name,
            cluster,
            store: args.key.key_store.as_deref(),
            anchor: self.files.anchor(),
            password: args.store.password_file(self.files.dir()),
            options: &args.store,
        };
        let store = wanted.ensure(&Screen::new())?;
        let made = !self.store.as_ref().is_some_and(StoreFacts::is_connected);
        self.report.done("key-store", made, &format!("{} ({}) is connected", store.name, store.id));
        Ok(())
    }

    fn key(&mut self) -> anyhow::Result<()> {
        let (args, name) = (self.args, &self.args.account.name);
        let origin = key::origin(&args.key, self.account, name)?;
        let wish = args.key.wish(name, &self.draft, origin);
        let outcome = args.key.make(self.account, &self.draft, &wish, args.json)?;
        let verdict = outcome.verdict(args.key.require_canary);
        self.report.key(outcome);
        verdict
    }
}
