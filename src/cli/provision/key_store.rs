//! `kmsfsctl provision key-store`: a custom key store, made, connected, mended.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use serde::Deserialize;

use super::ClusterOptions;
use super::account::AccountOptions;
use super::screen::Screen;
use crate::cli::exit::{FAILURE, failure};
use crate::cli::output::Out;
use crate::crypto::SecretBytes;
use crate::keys::aws::classify::Class;
use crate::keys::keyfile::read_private_file;
use crate::provision::Teller;
use crate::provision::account::{Account, Refused};
use crate::provision::activate::{KMSUSER, spend};
use crate::provision::cluster;
use crate::provision::key_store::{
    Backing, Mend, Proxy, Sought, StoreFacts, StoreWish, ensure_connected, ensure_store, find,
    require_free,
};

/// Make a custom key store of KMS and connect it, or connect the one there is
///
/// It belongs to a CloudHSM cluster that is active, has HSMs in two zones and a crypto user named
/// kmsuser; with the --xks options, to an external key manager. Connecting takes up to twenty minutes.
/// Interrupted, it goes on when it is run again. A store that somebody disconnected to switch its keys off
/// is connected, too.
#[derive(Args)]
pub struct KeyStoreArgs {
    #[command(flatten)]
    place: ClusterOptions,
    /// Id of a key store that exists, or a name other than the deployment's
    #[arg(long, value_name = "ID|NAME")]
    store: Option<String>,
    /// The certificate the cluster was initialized with [default: customerCA.crt of the directory]
    #[arg(long, value_name = "FILE")]
    trust_anchor: Option<PathBuf>,
    #[command(flatten)]
    options: StoreOptions,
    /// Print the key store as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    account: AccountOptions,
}

/// The secrets of a key store, and what to do if it does not connect.
#[derive(Args)]
pub struct StoreOptions {
    /// The password of kmsuser, in a file that only its owner may open [default: kmsuser-password of
    /// the directory, which is named kmsuser-password.spent once KMS has changed the password]
    #[arg(long, value_name = "FILE")]
    kmsuser_password_file: Option<PathBuf>,
    /// If the store does not connect: disconnect it, tell KMS the credential of the proxy anew if that
    /// is the cause, and connect it again. Until then none of its keys can be used
    #[arg(long)]
    mend: bool,
    /// The password in the file is one that was just set in the cluster: unless the store is connected,
    /// tell KMS, and mend it. KMS then forgets the password it had, and no one else has that
    #[arg(long, conflicts_with = "xks_endpoint")]
    new_password: bool,
    #[command(flatten)]
    external: ExternalOptions,
}

/// The proxy of an external key manager.
#[derive(Args)]
struct ExternalOptions {
    /// Endpoint of an external key manager's proxy: https://HOST
    #[arg(long, visible_alias = "xks-proxy-uri", value_name = "URL", requires = "xks_path", requires = "xks_credential_file",
          conflicts_with_all = ["cluster", "trust_anchor", "kmsuser_password_file"])]
    xks_endpoint: Option<String>,
    /// Path of its interface, which ends in /kms/xks/v1
    #[arg(long, value_name = "PATH", requires = "xks_endpoint")]
    xks_path: Option<String>,
    /// How KMS comes there; without it, through the VPC endpoint service if one is named
    #[arg(long, value_name = "HOW", requires = "xks_endpoint")]
    xks_connectivity: Option<Connectivity>,
    /// Let KMS come through this VPC endpoint service instead of the internet
    #[arg(long, value_name = "NAME", requires = "xks_endpoint")]
    xks_vpc_service: Option<String>,
    /// What KMS proves itself with, in a file that only its owner may open: JSON with AccessKeyId and
    /// RawSecretAccessKey
    #[arg(long, value_name = "FILE", requires = "xks_endpoint")]
    xks_credential_file: Option<PathBuf>,
}

/// As the AWS command line writes it.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Connectivity {
    /// Over the internet
    #[value(name = "PUBLIC_ENDPOINT")]
    Public,
    /// Through --xks-vpc-service
    #[value(name = "VPC_ENDPOINT_SERVICE")]
    VpcService,
}

/// Runs the command.
pub fn run(args: &KeyStoreArgs) -> anyhow::Result<()> {
    let account = args.account.account()?;
    let name = &args.account.name;
    let files = args.place.files(name)?;
    let wanted = Wanted {
        account: &account,
        name,
        cluster: args.place.cluster.as_deref(),
        store: args.store.as_deref(),
        anchor: args.trust_anchor.clone().unwrap_or_else(|| files.anchor()),
        password: args.options.password_file(files.dir()),
        options: &args.options,
    };
    let screen = Screen::new();
    let store = wanted.ensure(&screen)?;
    drop(screen);
    print(&store, args.json)
}

impl StoreOptions {
    /// Where the password of `kmsuser` is, if nobody says otherwise in this directory.
    pub fn password_file(&self, dir: &Path) -> PathBuf {
        let named = self.kmsuser_password_file.clone();
        named.unwrap_or_else(|| dir.join(KMSUSER))
    }
}

/// A key store, and where its secrets are.
pub struct Wanted<'a> {
    /// Where it is.
    pub account: &'a Account,
    /// Name of the deployment.
    pub name: &'a str,
    /// The cluster, if it is not the deployment's.
    pub cluster: Option<&'a str>,
    /// Its id or name, if that is not the deployment's.
    pub store: Option<&'a str>,
    /// The file of the trust anchor.
    pub anchor: PathBuf,
    /// The file of the password of `kmsuser`.
    pub password: PathBuf,
    /// The rest.
    pub options: &'a StoreOptions,
}

impl Wanted<'_> {
    /// Makes it unless it is there, and connects it.
    pub fn ensure(&self, teller: &dyn Teller) -> anyhow::Result<StoreFacts> {
        let account = self.account;
        let sought = Sought::parse(self.store.unwrap_or(self.name));
        let store = match (find(account, sought)?, sought) {
            (Some(store), _) => {
                self.require_same(&store)?;
                store
            }
            (None, Sought::Id(id)) => {
                let region = account.region();
                let text = format!("there is no key store {id} in Region {region}; check --region");
                return Err(failure(FAILURE, text));
            }
            (None, Sought::Name(name)) => {
                let cluster = self.cluster_id()?;
                // Before a password is asked for that must not be changed.
                cluster.iter().try_for_each(|cluster| require_free(account, cluster))?;
                let backing = self.backing(&cluster)?;
                let wish = StoreWish { name: name.to_owned(), id: None, backing };
                ensure_store(account, &wish, teller)?
            }
        };
        let cluster = store.cluster.clone();
        let secrets = || self.backing(&cluster);
        let new_password = self.options.new_password;
        let mend = Mend { secrets: &secrets, new_password };
        let mend = (self.options.mend || new_password).then_some(mend);
        let store = ensure_connected(account, &store.id, mend, teller)?;
        self.spend(&store, teller);
        Ok(store)
    }

    /// KMS gives `kmsuser` another password as soon as it connects; the one in the deployment's own
    /// directory would be taken for that one.
    fn spend(&self, store: &StoreFacts, teller: &dyn Teller) {
        let cluster = store.cluster.as_deref();
        let is_own = store.name == self.name || self.cluster == cluster;
        if cluster.is_none() || !is_own || self.options.kmsuser_password_file.is_some() {
            return;
        }
        match spend(&self.password) {
            Ok(None) => {}
            Ok(Some(spent)) => teller.done(&format!(
                "KMS has given kmsuser a password of its own: what is in {} is spent",
                spent.display()
            )),
            Err(error) => teller.done(&format!(
                "KMS has given kmsuser a password of its own: what is in {} is spent, but it cannot be \
                 renamed: {error}",
                self.password.display()
            )),
        }
    }

    fn is_external(&self) -> bool {
        self.options.external.xks_endpoint.is_some()
    }

    /// The cluster a new store shall have.
    fn cluster_id(&self) -> Result<Option<String>, Refused> {
        if self.is_external() {
            return Ok(None);
        }
        let (account, name) = (self.account, self.name);
        let sought = cluster::Sought::new(name, self.cluster);
        let found = cluster::find(account, sought)?;
        match (found, self.cluster) {
            (Some(cluster), _) => Ok(Some(cluster.id)),
            (None, Some(id)) => cluster::get(account, id).map(|cluster| Some(cluster.id)),
            (None, None) => {
                let text = format!(
                    "deployment {name} has no cluster yet: make one with `kmsfsctl provision \
                     cluster`, or name one with --cluster"
                );
                Err(Refused::here(Class::Misconfigured, text))
            }
        }
    }

    /// A store that is there must be the one that is meant.
    fn require_same(&self, store: &StoreFacts) -> Result<(), Refused> {
        let named = self.cluster.is_some() || self.is_external();
        if !named && self.store.is_some() {
            return Ok(());
        }
        if !named {
            // By the deployment's name alone: its cluster, if it can be found, must be the one.
            let of = cluster::find(self.account, cluster::Sought::Name(self.name))?;
            return of.map_or(Ok(()), |cluster| store.require(Some(&cluster.id)));
        }
        store.require(self.cluster)
    }

    /// What is behind the store, with its secrets.
    fn backing(&self, cluster: &Option<String>) -> Result<Backing, Refused> {
        match cluster {
            Some(cluster) => self.cloudhsm(cluster),
            None => self.options.external.proxy().map(Backing::External),
        }
    }

    fn cloudhsm(&self, cluster: &str) -> Result<Backing, Refused> {
        Backing::cloudhsm(cluster, &self.anchor, &self.password)
    }
}

fn refused(text: String) -> Refused {
    Refused::here(Class::Misconfigured, text)
}

fn secret(path: &Path, what: &str) -> Result<SecretBytes, Refused> {
    read_private_file(path, what).map_err(|error| refused(error.to_string()))
}

/// As the AWS command line takes it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Credential<'a> {
    access_key_id: &'a str,
    /// Borrowed, so that no second copy is made.
    raw_secret_access_key: &'a str,
}

impl ExternalOptions {
    fn proxy(&self) -> Result<Proxy, Refused> {
        let all = (&self.xks_endpoint, &self.xks_path, &self.xks_credential_file);
        let (Some(endpoint), Some(path), Some(file)) = all else {
            let text = "this key store belongs to an external key manager: name it with \
                        --xks-endpoint, --xks-path and --xks-credential-file";
            return Err(refused(text.to_owned()));
        };
        match (self.xks_connectivity, &self.xks_vpc_service) {
            (Some(Connectivity::VpcService), None) => {
                return Err(refused(
                    "VPC_ENDPOINT_SERVICE needs --xks-vpc-service NAME".to_owned(),
                ));
            }
            (Some(Connectivity::Public), Some(service)) => {
                return Err(refused(format!(
                    "KMS comes over the internet or through {service}: leave out --xks-vpc-service, \
                     or say --xks-connectivity VPC_ENDPOINT_SERVICE"
                )));
            }
            _ => {}
        }
        let text = secret(file, "credential file")?;
        // What the parser says might quote the secret.
        let pair: Credential<'_> = serde_json::from_slice(text.expose()).map_err(|_| {
            refused(format!(
                "credential file {} is not {{\"AccessKeyId\": …, \"RawSecretAccessKey\": …}}",
                file.display()
            ))
        })?;
        Ok(Proxy {
            endpoint: endpoint.clone(),
            path: path.clone(),
            vpc_service: self.xks_vpc_service.clone(),
            access_key: pair.access_key_id.to_owned(),
            secret: Arc::new(SecretBytes::new(pair.raw_secret_access_key.as_bytes().to_vec())),
        })
    }
}

fn print(store: &StoreFacts, json: bool) -> anyhow::Result<()> {
    let mut out = Out::new();
    if json {
        out.json(store)?;
        return out.finish();
    }
    out.fact("key store", &store.id)?;
    out.fact("name", &store.name)?;
    out.fact("type", &store.kind)?;
    if let Some(cluster) = &store.cluster {
        out.fact("cluster", cluster)?;
    }
    out.fact("connection", &store.connection)?;
    out.finish()
}
