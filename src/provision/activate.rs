//! Activates a claimed cluster and gives it the user that KMS logs in as.
//!
//! AWS has no call for that: CloudHSM's own tools talk to the HSMs, on a host in their network. They are
//! run here or elsewhere ([`Executor`]), or their commands are printed ([`commands`]). What is done
//! already is seen from the cluster's state and from its list of users.

mod executor;
mod passwords;

pub use executor::{Executor, Place, Tools};
pub use passwords::{ADMIN, KMSUSER, Keep, Passwords, new_password, spend, spent};

use super::Teller;
use super::account::{Account, Refused};
use super::certificate::{Files, check};
use super::initialize::{Seen, describe};
use super::key_store::{StoreFacts, find_of_cluster};
use super::shell::quoted;
use crate::crypto::SecretBytes;
use crate::keys::aws::classify::Class;
use aws_sdk_cloudhsmv2::types::ClusterState;
use executor::Job;
use serde::Serialize;
use serde_json::Value;

/// The user that KMS takes over.
const KMS_USER: &str = "kmsuser";
/// What it has to be.
const KMS_ROLE: &str = "crypto-user";

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Activated {
    /// The cluster.
    pub cluster: String,
    /// It got its administrator now; otherwise it had one.
    pub activated: bool,
    /// `kmsuser` was made now; otherwise it was there, with a password nobody checked.
    pub kmsuser_created: bool,
}

/// One thing to do by hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What for, and what to mind.
    pub about: String,
    /// The command; empty if there is none.
    pub command: String,
}

/// What has to be done on a host in the cluster's network, in this order.
pub fn commands(
    seen: &Seen,
    region: &str,
    files: &Files,
    tools: &Tools,
    anchor: &str,
) -> Vec<Step> {
    let line = |words: &[&str]| words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
    let step = |about: &str, command: String| Step { about: about.to_owned(), command };
    let group = match seen.security_group.as_str() {
        "" => "the cluster's security group",
        group => group,
    };
    let login = line(&[&tools.cli, "user", "create", "--username", KMS_USER, "--role", KMS_ROLE]);
    let login = format!(
        "IFS= read -rs PIN; CLOUDHSM_ROLE=admin CLOUDHSM_PIN=\"admin:$PIN\" {login}; unset PIN"
    );
    let own = files.anchor().display().to_string();
    vec![
        step(
            &format!(
                "Use a host in the cluster's VPC. Attach {group} to it, or let it reach the HSMs \
                 ({}) on TCP 2223 to 2225; no mutual TLS may be demanded of KMS",
                seen.addresses.join(", ")
            ),
            String::new(),
        ),
        step(
            &format!("Copy {own} to that host, then put it where the tools look for it"),
            line(&["sudo", "install", "-m", "0644", "customerCA.crt", anchor]),
        ),
        step(
            "Tell the tool about the cluster (without AWS credentials on the host: -a and the address \
             of an HSM instead of --cluster-id and --region)",
            line(&[
                "sudo",
                &tools.configure,
                "--cluster-id",
                &seen.id,
                "--region",
                region,
                "--hsm-ca-cert",
                anchor,
            ]),
        ),
        step(
            "Activate the cluster; the administrator's new password (7 to 32 characters) is asked for \
             twice. Keep it: nobody can reset it",
            line(&[&tools.cli, "cluster", "activate"]),
        ),
        step(
            "Make the user of KMS: first type the administrator's password (nothing is shown), then a \
             new one for kmsuser, twice (7 to 32 letters and digits). The key store needs it once",
            login,
        ),
        step(
            "See whether kmsuser is there, as crypto-user and with full cluster coverage",
            line(&[&tools.cli, "user", "list"]),
        ),
        step(
            "End every session of kmsuser (`logout` in the interactive mode): KMS cannot connect \
             while it is logged in elsewhere",
            String::new(),
        ),
    ]
}

/// One activation.
pub struct Activation<'a> {
    /// Where the cluster is.
    pub account: &'a Account,
    /// Its id.
    pub cluster: &'a str,
    /// Where the tools run.
    pub executor: &'a Executor,
    /// Where the trust anchor lies.
    pub files: &'a Files,
    /// Where passwords come from and go to.
    pub passwords: &'a Passwords,
    /// Hears of it.
    pub teller: &'a dyn Teller,
}

impl Activation<'_> {
    /// Does whatever is not done: activates, waits until AWS says so, makes `kmsuser`.
    pub fn ensure(&self) -> Result<Activated, Refused> {
        let seen = describe(self.account, self.cluster)?;
        let anchor = self.ready(&seen)?;
        self.configure(&anchor)?;
        let users = self.users()?;
        let activated = users.is_new();
        if activated {
            self.activate()?;
        }
        self.wait()?;
        let users = if activated { self.users()? } else { users };
        let kmsuser_created = users.kms_user()?.is_none();
        if kmsuser_created {
            self.refuse_beside_kms()?;
            self.create_user()?;
        }
        let done = if kmsuser_created { "made" } else { "was there" };
        self.teller.done(&format!("cluster {}: {KMS_USER}: {done}", self.cluster));
        Ok(Activated { cluster: self.cluster.to_owned(), activated, kmsuser_created })
    }

    /// Is the cluster as far as that? Its trust anchor.
    fn ready(&self, seen: &Seen) -> Result<String, Refused> {
        if !seen.is_claimed() {
            let text = format!(
                "it is {}; initialize it first with `kmsfsctl provision certificate`",
                seen.state
            );
            return Err(self.refused(text));
        }
        if seen.addresses.is_empty() {
            return Err(self.refused("it has no active HSM; create one first".to_owned()));
        }
        let path = self.files.anchor();
        let anchor = super::files::read_own(&path).map_err(|text| self.refused(text))?;
        let anchor = anchor.ok_or_else(|| {
            let text = format!(
                "its trust anchor {} is missing; name the directory of the certificates with --dir",
                path.display()
            );
            self.refused(text)
        })?;
        if let Some(certificate) = &seen.certificate {
            let checked = check::is_anchor_of(certificate, &anchor);
            checked.map_err(|e| self.refused(format!("{}: {e}", path.display())))?;
        }
        Ok(anchor)
    }

    fn configure(&self, anchor: &str) -> Result<(), Refused> {
        let path = match self.executor.anchor_path() {
            Some(path) => {
                let write = format!("cat > {}", quoted(path));
                let job = Job { input: anchor.as_bytes(), ..Job::new("sh", &["-c", &write]) };
                self.run("placing the trust anchor", &job)?;
                path.to_owned()
            }
            None => {
                let path = std::path::absolute(self.files.anchor());
                let path = path.map_err(|e| self.refused(format!("where are we? {e}")))?;
                path.display().to_string()
            }
        };
        let region = self.account.region();
        let arguments = ["--cluster-id", self.cluster, "--region", region, "--hsm-ca-cert", &path];
        let job = Job::new(&self.executor.tools.configure, &arguments);
        self.run("configure-cli", &job).map(drop)
    }

    fn activate(&self) -> Result<(), Refused> {
        let password = self.passwords.existing_or_new(ADMIN).map_err(|e| self.refused(e))?;
        self.ask_tool(&["cluster", "activate"], None, Some(&password))?;
        self.teller.done(&format!("cluster {}: activated", self.cluster));
        Ok(())
    }

    fn wait(&self) -> Result<(), Refused> {
        let what = format!("cluster {}: ACTIVE", self.cluster);
        self.account.wait(&what, self.teller, || {
            let seen = describe(self.account, self.cluster)?;
            match seen.state {
                ClusterState::Active => Ok(Ok(())),
                _ if seen.is_lost() => Err(seen.lost()),
                state => Ok(Err(state.to_string())),
            }
        })
    }

    /// KMS that is connected is logged in as a user that then must be there, with a password nobody else
    /// knows: another one of that name would take the store's keys away.
    fn refuse_beside_kms(&self) -> Result<(), Refused> {
        let found = match find_of_cluster(self.account, self.cluster) {
            // Who may not look at key stores may make users all the same.
            Err(refused) if refused.class == Class::Denied => None,
            found => found?,
        };
        let Some(store) = found.filter(StoreFacts::is_connected) else { return Ok(()) };
        Err(self.refused(format!(
            "key store {} ({}) is connected, so KMS is logged in as {KMS_USER}, but `user list` has it \
             not; see whether --exec reaches the right cluster; if it was deleted, disconnect the key \
             store and run this again",
            store.name, store.id
        )))
    }

    /// With the administrator's password, which must be at hand: a new one would be a wrong one.
    fn create_user(&self) -> Result<(), Refused> {
        let admin = match self.passwords.remembered(ADMIN).map_err(|e| self.refused(e))? {
            Some(admin) => admin,
            None => {
                let text = format!(
                    "the cluster was activated before, so its administrator's password is needed to \
                     make {KMS_USER}: put it into {} (mode 0600)",
                    self.passwords.path(ADMIN).display(),
                );
                return Err(self.refused(text));
            }
        };
        let password = self.passwords.existing_or_new(KMSUSER).map_err(|e| self.refused(e))?;
        let command = ["user", "create", "--username", KMS_USER, "--role", KMS_ROLE];
        self.ask_tool(&command, Some(&admin), Some(&password))?;
        match self.users()?.kms_user()? {
            Some(user) if user.everywhere() => Ok(()),
            Some(_) => {
                let text = format!(
                    "{KMS_USER} is not on every HSM; see `cloudhsm-cli user list`, delete it there \
                     and run this again"
                );
                Err(self.refused(text))
            }
            None => Err(self.refused(format!("{KMS_USER} was made, but `user list` has it not"))),
        }
    }

    fn users(&self) -> Result<Users, Refused> {
        let data = self.ask_tool(&["user", "list"], None, None)?;
        let users = data["users"].as_array().cloned();
        let users = users.ok_or_else(|| {
            self.refused("`cloudhsm-cli user list` answered without a list of users".to_owned())
        })?;
        Ok(Users(users.iter().map(User::of).collect()))
    }

    /// Runs cloudhsm-cli; what it answers.
    fn ask_tool(
        &self,
        arguments: &[&str],
        login: Option<&SecretBytes>,
        new: Option<&SecretBytes>,
    ) -> Result<Value, Refused> {
        let what = format!("cloudhsm-cli {}", arguments[..2.min(arguments.len())].join(" "));
        // Asked for twice.
        let answers = new.into_iter().flat_map(|new| [new.expose(), new.expose()]).collect();
        let job = Job { login, answers, ..Job::new(&self.executor.tools.cli, arguments) };
        let text = self.run(&what, &job)?;
        let answer = executor::json(&text).ok_or_else(|| {
            self.refused(format!("{what}: its answer is no JSON; run it by hand to see why"))
        })?;
        Ok(answer["data"].clone())
    }

    fn run(&self, what: &str, job: &Job<'_>) -> Result<String, Refused> {
        self.teller.running(&format!("cluster {}: {what}", self.cluster));
        self.executor.run(job).map_err(|why| self.refused(format!("{what}: {why}")))
    }

    fn refused(&self, text: String) -> Refused {
        Refused::here(Class::Misconfigured, format!("cluster {}: {text}", self.cluster))
    }
}

struct User {
    name: String,
    role: String,
    coverage: Option<String>,
}

impl User {
    fn of(value: &Value) -> Self {
        let text = |name: &str| value[name].as_str().map(str::to_owned);
        let (name, role) = (text("username"), text("role"));
        let (name, role) = (name.unwrap_or_default(), role.unwrap_or_default());
        Self { name, role, coverage: text("cluster-coverage") }
    }

    fn everywhere(&self) -> bool {
        self.coverage.as_deref().is_none_or(|coverage| coverage == "full")
    }
}

struct Users(Vec<User>);

impl Users {
    /// Has nobody activated the cluster?
    fn is_new(&self) -> bool {
        let has = |role: &str| self.0.iter().any(|user| user.role == role);
        has("unactivated-admin") || !has("admin")
    }

    fn kms_user(&self) -> Result<Option<&User>, Refused> {
        let found = self.0.iter().find(|user| user.name == KMS_USER);
        match found {
            Some(user) if user.role != KMS_ROLE => Err(Refused::here(
                Class::Misconfigured,
                format!(
                    "{KMS_USER} is there as {}, but KMS needs it as {KMS_ROLE}: delete it with \
                     cloudhsm-cli and run this again",
                    user.role
                ),
            )),
            found => Ok(found),
        }
    }
}
