//! Custom key stores of KMS: made, found, connected, and mended when they do not connect.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use aws_sdk_kms::types::{
    ConnectionStateType, CustomKeyStoreType, CustomKeyStoresListEntry,
    XksProxyAuthenticationCredentialType, XksProxyConnectivityType,
};
use serde::Serialize;

use super::Teller;
use super::account::{Account, Clients, Refused};
use super::activate::spent;
use super::connection::{Remedy, connection_advice, sentence};
use super::files::read_own;
use super::once::once;
use crate::crypto::SecretBytes;
use crate::keys::aws::classify::Class;
use crate::keys::aws::{Fault, fault};
use crate::keys::keyfile::read_private_file;

/// Connections that are tried before somebody has to look.
const TRIES: u32 = 4;
/// Looks that make the pause after which a connection is tried again: two minutes by default.
const PAUSE_POLLS: u32 = 12;

/// The key store that is wanted.
#[derive(Clone)]
pub struct StoreWish {
    /// Its name, unique in account and Region.
    pub name: String,
    /// A store that is there already.
    pub id: Option<String>,
    /// What is behind it.
    pub backing: Backing,
}

/// What is behind a key store.
#[derive(Clone)]
pub enum Backing {
    /// A CloudHSM cluster.
    CloudHsm {
        /// `cluster-…`.
        cluster: String,
        /// The certificate that signed the cluster's, PEM.
        trust_anchor: String,
        /// The password of `kmsuser`.
        password: Arc<SecretBytes>,
    },
    /// An external key manager.
    External(Proxy),
}

impl Backing {
    /// A cluster, with its trust anchor and a password that nobody else can read, from files.
    pub fn cloudhsm(cluster: &str, anchor: &Path, password: &Path) -> Result<Self, Refused> {
        let bad = |text: String| Refused::here(Class::Misconfigured, text);
        let trust_anchor = read_own(anchor).map_err(bad)?.ok_or_else(|| {
            bad(format!(
                "there is no trust anchor {}; it is the certificate the cluster was initialized with \
                 (--trust-anchor)",
                anchor.display()
            ))
        })?;
        let read = read_private_file(password, "password file");
        let password = read.map_err(|error| match password.exists() {
            true => bad(error.to_string()),
            false => bad(no_password(password)),
        })?;
        check_password(&password)?;
        let (cluster, password) = (cluster.to_owned(), Arc::new(password));
        Ok(Self::CloudHsm { cluster, trust_anchor, password })
    }

    /// The cluster, if it is one.
    pub fn cluster(&self) -> Option<&str> {
        match self {
            Self::CloudHsm { cluster, .. } => Some(cluster),
            Self::External(_) => None,
        }
    }
}

/// What to do if there is no file with the password of `kmsuser`.
fn no_password(path: &Path) -> String {
    let (file, spent) = (path.display(), spent(path));
    if spent.exists() {
        return format!(
            "what is in {} is spent: KMS has given kmsuser another password since. Set a new one in \
             the cluster (`cloudhsm-cli user change-password --username kmsuser --role crypto-user`), \
             put it into {file} (mode 0600), and run the same command again",
            spent.display()
        );
    }
    format!(
        "there is no {file}: `kmsfsctl provision activate` makes kmsuser and keeps its password there; \
         if it is somewhere else, say where with --kmsuser-password-file"
    )
}

/// The proxy of an external key manager.
#[derive(Clone)]
pub struct Proxy {
    /// `https://…`, without path.
    pub endpoint: String,
    /// `/…/kms/xks/v1`.
    pub path: String,
    /// The VPC endpoint service through which KMS comes; otherwise it comes over the internet.
    pub vpc_service: Option<String>,
    /// What KMS calls itself.
    pub access_key: String,
    /// What it proves that with.
    pub secret: Arc<SecretBytes>,
}

/// How a key store is found.
#[derive(Clone, Copy, Debug)]
pub enum Sought<'a> {
    /// By its id.
    Id(&'a str),
    /// By its name.
    Name(&'a str),
}

impl<'a> Sought<'a> {
    /// An id looks like one; anything else is a name.
    pub fn parse(text: &'a str) -> Self {
        if text.starts_with("cks-") { Self::Id(text) } else { Self::Name(text) }
    }
}

/// A key store as KMS describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StoreFacts {
    /// `cks-…`.
    pub id: String,
    /// Its name.
    pub name: String,
    /// `AWS_CLOUDHSM` or `EXTERNAL_KEY_STORE`.
    pub kind: String,
    /// The cluster behind it.
    pub cluster: Option<String>,
    /// `CONNECTED`, `DISCONNECTED`, `FAILED`, ….
    pub connection: String,
    /// Why it does not connect.
    pub error: Option<String>,
    /// When it was made, in seconds of the epoch.
    pub created: Option<i64>,
}

impl StoreFacts {
    fn read(store: &CustomKeyStoresListEntry) -> Self {
        let text = |text: Option<&str>| text.map(str::to_owned);
        let kind = store.custom_key_store_type().unwrap_or(&CustomKeyStoreType::AwsCloudhsm);
        Self {
            id: text(store.custom_key_store_id()).unwrap_or_default(),
            name: text(store.custom_key_store_name()).unwrap_or_default(),
            kind: kind.as_str().to_owned(),
            cluster: text(store.cloud_hsm_cluster_id()),
            connection: text(store.connection_state().map(ConnectionStateType::as_str))
                .unwrap_or_default(),
            error: text(store.connection_error_code().map(|code| code.as_str())),
            created: store.creation_date().map(|time| time.secs()),
        }
    }

    /// Whether its keys can be used.
    pub fn is_connected(&self) -> bool {
        self.connection == "CONNECTED"
    }

    /// Refuses a store that has something else behind it than this cluster, or an external key manager.
    pub fn require(&self, cluster: Option<&str>) -> Result<(), Refused> {
        let wanted = if cluster.is_some() { "AWS_CLOUDHSM" } else { "EXTERNAL_KEY_STORE" };
        let text = if self.kind != wanted {
            format!("key store {} ({}) is of type {}, not {wanted}", self.name, self.id, self.kind)
        } else if self.cluster.as_deref() != cluster {
            format!(
                "key store {} ({}) belongs to {}, not to {}; name the cluster with --cluster, or \
                 another store with --store",
                self.name,
                self.id,
                self.cluster.as_deref().unwrap_or("no cluster"),
                cluster.unwrap_or("none"),
            )
        } else {
            return Ok(());
        };
        Err(Refused::here(Class::Misconfigured, text))
    }
}

/// Refuses a password that KMS would not take, without showing it.
pub fn check_password(password: &SecretBytes) -> Result<(), Refused> {
    let bytes = password.expose();
    let good = (7..=32).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_alphanumeric);
    let text = "the password of kmsuser must be 7 to 32 ASCII letters and digits";
    if good { Ok(()) } else { Err(Refused::here(Class::Misconfigured, text)) }
}

/// A key store, if it is there.
pub fn find(account: &Account, sought: Sought<'_>) -> Result<Option<StoreFacts>, Refused> {
    let (id, name, subject) = match sought {
        Sought::Id(id) => (Some(id.to_owned()), None, id),
        Sought::Name(name) => (None, Some(name.to_owned()), name),
    };
    let answer =
        account.ask("DescribeCustomKeyStores", &format!("key store {subject}"), move |clients| {
            let request = clients.kms.describe_custom_key_stores();
            let request =
                request.set_custom_key_store_id(id.clone()).set_custom_key_store_name(name.clone());
            async move { request.send().await.map_err(|e| fault(&e)) }
        });
    match answer {
        Ok(answer) => Ok(answer.custom_key_stores().first().map(StoreFacts::read)),
        Err(refused) if refused.code == "CustomKeyStoreNotFoundException" => Ok(None),
        Err(refused) => Err(refused),
    }
}

/// The key store of a cluster, whatever its name; of all the caller may see.
pub fn find_of_cluster(account: &Account, cluster: &str) -> Result<Option<StoreFacts>, Refused> {
    let mut marker = None::<String>;
    loop {
        let from = marker.take();
        let answer = account.ask(
            "DescribeCustomKeyStores",
            &format!("key store of {cluster}"),
            move |c| {
                let request = c.kms.describe_custom_key_stores().set_marker(from.clone());
                async move { request.send().await.map_err(|e| fault(&e)) }
            },
        )?;
        let mut stores = answer.custom_key_stores().iter();
        if let Some(store) = stores.find(|store| store.cloud_hsm_cluster_id() == Some(cluster)) {
            return Ok(Some(StoreFacts::read(store)));
        }
        match answer.next_marker {
            Some(next) if answer.truncated => marker = Some(next),
            _ => return Ok(None),
        }
    }
}

/// A cluster serves one key store. KMS would say so too, but not which one has it.
pub fn require_free(account: &Account, cluster: &str) -> Result<(), Refused> {
    let Some(store) = find_of_cluster(account, cluster)? else { return Ok(()) };
    let text = format!(
        "cluster {cluster} serves key store {} ({}) already, and can serve no other: use that one with \
         --store {}, or another cluster",
        store.name, store.id, store.id
    );
    Err(Refused::here(Class::Misconfigured, text))
}

fn get(account: &Account, sought: Sought<'_>) -> Result<StoreFacts, Refused> {
    find(account, sought)?.ok_or_else(|| {
        let (Sought::Id(text) | Sought::Name(text)) = sought;
        let region = account.region();
        let text =
            format!("there is no key store {text} in Region {region}; check name and Region");
        Refused::here(Class::Denied, text)
    })
}

/// The key store, made if it is not there; not connected by this.
pub fn ensure_store(
    account: &Account,
    wish: &StoreWish,
    teller: &dyn Teller,
) -> Result<StoreFacts, Refused> {
    let by_name = || find(account, Sought::Name(&wish.name));
    let found = match &wish.id {
        Some(id) => Some(get(account, Sought::Id(id))?),
        None => by_name()?,
    };
    if let Some(store) = found {
        store.require(wish.backing.cluster())?;
        teller.done(&format!("key store {} ({}) is there", store.name, store.id));
        return Ok(store);
    }
    if let Backing::CloudHsm { password, .. } = &wish.backing {
        check_password(password)?;
    }
    let made = once(account, || create(account, wish).map(Some), || Ok(by_name()?.map(|_| None)))?;
    let store = appear(account, made.as_deref(), &wish.name, teller)?;
    store.require(wish.backing.cluster())?;
    teller.done(&format!("key store {} ({}) is made", store.name, store.id));
    Ok(store)
}

/// Waits until a new store can be seen.
fn appear(
    account: &Account,
    id: Option<&str>,
    name: &str,
    teller: &dyn Teller,
) -> Result<StoreFacts, Refused> {
    let (sought, started) = (id.map_or(Sought::Name(name), Sought::Id), Instant::now());
    account.wait(&format!("key store {name}"), teller, || match find(account, sought)? {
        Some(store) => Ok(Ok(store)),
        None if started.elapsed() < account.pace.settling => Ok(Err("new".to_owned())),
        None => get(account, sought).map(Ok),
    })
}

/// Makes it; its id.
fn create(account: &Account, wish: &StoreWish) -> Result<String, Refused> {
    let subject = format!("key store {}", wish.name);
    let again = wish.clone();
    let answer = account.make("CreateCustomKeyStore", &subject, move |clients| {
        let request = clients.kms.create_custom_key_store().custom_key_store_name(&again.name);
        let request = match &again.backing {
            Backing::CloudHsm { cluster, trust_anchor, password } => {
                secret_text(password).map(|p| {
                    request
                        .custom_key_store_type(CustomKeyStoreType::AwsCloudhsm)
                        .cloud_hsm_cluster_id(cluster)
                        .trust_anchor_certificate(trust_anchor)
                        .key_store_password(p)
                })
            }
            Backing::External(proxy) => credential(proxy).map(|credential| {
                request
                    .custom_key_store_type(CustomKeyStoreType::ExternalKeyStore)
                    .xks_proxy_uri_endpoint(&proxy.endpoint)
                    .xks_proxy_uri_path(&proxy.path)
                    .xks_proxy_connectivity(connectivity(proxy))
                    .set_xks_proxy_vpc_endpoint_service_name(proxy.vpc_service.clone())
                    .xks_proxy_authentication_credential(credential)
            }),
        };
        async move { request?.send().await.map_err(|e| fault(&e)) }
    })?;
    answer.custom_key_store_id.ok_or_else(|| {
        // As good as no answer: what was made has to be looked for.
        Refused::here(Class::Transient, format!("{subject}: KMS did not say what it made"))
    })
}

fn connectivity(proxy: &Proxy) -> XksProxyConnectivityType {
    match proxy.vpc_service {
        Some(_) => XksProxyConnectivityType::VpcEndpointService,
        None => XksProxyConnectivityType::PublicEndpoint,
    }
}

/// The SDK takes text, which it keeps out of what it prints.
fn secret_text(secret: &SecretBytes) -> Result<String, Fault> {
    let text = std::str::from_utf8(secret.expose());
    text.map(str::to_owned).map_err(|_| Fault::new(Class::Misconfigured, "a secret is not text"))
}

fn credential(proxy: &Proxy) -> Result<XksProxyAuthenticationCredentialType, Fault> {
    XksProxyAuthenticationCredentialType::builder()
        .access_key_id(&proxy.access_key)
        .raw_secret_access_key(secret_text(&proxy.secret)?)
        .build()
        .map_err(|error| Fault::new(Class::Misconfigured, error.to_string()))
}

/// What may be done to a store that does not connect.
#[derive(Clone, Copy)]
pub struct Mend<'a> {
    /// Gives what is behind it, secret included; asked only if KMS has to be told the secret.
    pub secrets: &'a dyn Fn() -> Result<Backing, Refused>,
    /// Somebody has set a new password of `kmsuser` in the cluster, and that is the secret. KMS alone
    /// knows the one it made at its first connection, and would forget it for any other.
    pub new_password: bool,
}

/// Connects it, whatever state it is in. To mend, what fails is disconnected, told its secret if that
/// is new or the cause, and connected again; without `mend`, a failure is said and left as it is.
pub fn ensure_connected(
    account: &Account,
    id: &str,
    mend: Option<Mend<'_>>,
    teller: &dyn Teller,
) -> Result<StoreFacts, Refused> {
    let (mut tries, mut told) = (0, false);
    loop {
        let store = settled(account, id, teller)?;
        match (&store.connection[..], mend) {
            ("CONNECTED", _) => {
                teller.done(&format!("key store {} is connected", store.name));
                return Ok(store);
            }
            (_, Some(mend)) if mend.new_password && !told => {
                tell(account, &store, mend, teller)?;
                told = true;
            }
            // Some causes let KMS give up at once and leave the store disconnected.
            ("FAILED" | "DISCONNECTED", _) if tries > 0 || store.connection == "FAILED" => {
                let code = match &store.error {
                    Some(code) => &code[..],
                    None if store.connection == "FAILED" => "no reason given",
                    None => return Err(undone(&store)),
                };
                let Some(mend) = mend.filter(|_| helps(code, tries, told)) else {
                    return Err(Refused::here(
                        Class::Misconfigured,
                        sentence(&store.name, &store.id, code),
                    ));
                };
                told |= put_right(account, &store, code, mend, teller)?;
            }
            _ => {}
        }
        tries += 1;
        connect(account, id)?;
        leave_disconnected(account, id, teller)?;
    }
}

/// Whether mending may help. The first time it always may: what was wrong may have been put right
/// since, and a store that failed needs more than a connection.
fn helps(code: &str, tries: u32, told: bool) -> bool {
    match connection_advice(code).map(|advice| advice.remedy) {
        Some(Remedy::Patience) => tries < TRIES,
        // Told once, KMS knows the credential that there is.
        Some(Remedy::Credential) => !told,
        _ => tries == 0,
    }
}

/// Disconnects a store that failed and does what can be done from here; whether that was to tell the
/// secret.
fn put_right(
    account: &Account,
    store: &StoreFacts,
    code: &str,
    mend: Mend<'_>,
    teller: &dyn Teller,
) -> Result<bool, Refused> {
    let remedy = connection_advice(code).map(|advice| advice.remedy);
    if remedy == Some(Remedy::Credential) {
        tell(account, store, mend, teller)?;
        return Ok(true);
    }
    leave_failed(account, store, teller)?;
    if remedy == Some(Remedy::Patience) {
        let pause = (account.pace.poll * PAUSE_POLLS).min(account.pace.patience);
        teller.waiting(&format!("key store {}", store.name), &format!("pausing after {code}"));
        std::thread::sleep(pause);
    }
    Ok(false)
}

/// Tells KMS the secret of a store that is not connected.
fn tell(
    account: &Account,
    store: &StoreFacts,
    mend: Mend<'_>,
    teller: &dyn Teller,
) -> Result<(), Refused> {
    // Had before anything is changed.
    let backing = (mend.secrets)()?;
    leave_failed(account, store, teller)?;
    renew_secret(account, &store.id, &backing)?;
    teller.done(&format!("KMS is told the secret of key store {} anew", store.name));
    Ok(())
}

/// A store that failed has to be disconnected before anything else.
fn leave_failed(account: &Account, store: &StoreFacts, teller: &dyn Teller) -> Result<(), Refused> {
    match &store.connection[..] {
        "FAILED" => disconnect(account, &store.id, teller),
        _ => Ok(()),
    }
}

/// Waits until it is neither connecting nor disconnecting.
fn settled(account: &Account, id: &str, teller: &dyn Teller) -> Result<StoreFacts, Refused> {
    account.wait(&format!("key store {id}"), teller, || {
        let store = get(account, Sought::Id(id))?;
        let moving = matches!(&store.connection[..], "CONNECTING" | "DISCONNECTING");
        Ok(if moving { Err(store.connection) } else { Ok(store) })
    })
}

/// After a connection was asked for: waits until that shows.
fn leave_disconnected(account: &Account, id: &str, teller: &dyn Teller) -> Result<(), Refused> {
    let started = Instant::now();
    account.wait(&format!("key store {id}"), teller, || {
        let store = get(account, Sought::Id(id))?;
        let shows = store.connection != "DISCONNECTED" || store.error.is_some();
        if shows || started.elapsed() >= account.pace.settling {
            return Ok(Ok(()));
        }
        Ok(Err(store.connection))
    })
}

/// It should connect, does not, and nobody says why.
fn undone(store: &StoreFacts) -> Refused {
    let text = format!(
        "key store {} is {} although it was told to connect, and KMS does not say why; see whether \
         somebody else disconnected it, and run the same command again",
        store.name, store.connection
    );
    Refused::here(Class::Misconfigured, text)
}

/// Asks for a connection; KMS takes up to twenty minutes for it.
fn connect(account: &Account, id: &str) -> Result<(), Refused> {
    on_its_way(account, id, &["CONNECTING", "CONNECTED", "FAILED"], "ConnectCustomKeyStore", |id| {
        move |clients: Clients| {
            let request = clients.kms.connect_custom_key_store().custom_key_store_id(&id);
            async move { request.send().await.map(drop).map_err(|e| fault(&e)) }
        }
    })
}

/// Disconnects it and waits: all its keys are unavailable from now on.
pub fn disconnect(account: &Account, id: &str, teller: &dyn Teller) -> Result<(), Refused> {
    let there = ["DISCONNECTING", "DISCONNECTED"];
    on_its_way(account, id, &there, "DisconnectCustomKeyStore", |id| {
        move |clients: Clients| {
            let request = clients.kms.disconnect_custom_key_store().custom_key_store_id(&id);
            async move { request.send().await.map(drop).map_err(|e| fault(&e)) }
        }
    })?;
    account.wait(&format!("key store {id}"), teller, || {
        let store = get(account, Sought::Id(id))?;
        Ok(if store.connection == "DISCONNECTED" { Ok(()) } else { Err(store.connection) })
    })
}

/// A call that KMS refuses when the store is on its way already, as it is if an answer was lost.
fn on_its_way<R, F>(
    account: &Account,
    id: &str,
    there: &[&str],
    operation: &str,
    request: impl Fn(String) -> R,
) -> Result<(), Refused>
where
    R: Fn(Clients) -> F + Send + Clone + 'static,
    F: Future<Output = Result<(), Fault>> + Send,
{
    match account.ask(operation, &format!("key store {id}"), request(id.to_owned())) {
        Err(refused) if refused.code == "CustomKeyStoreInvalidStateException" => {
            let store = get(account, Sought::Id(id))?;
            if there.contains(&&store.connection[..]) { Ok(()) } else { Err(refused) }
        }
        other => other,
    }
}

/// Tells KMS the password of `kmsuser` or the credential of the proxy; the store must be disconnected.
pub fn renew_secret(account: &Account, id: &str, backing: &Backing) -> Result<(), Refused> {
    if let Backing::CloudHsm { password, .. } = backing {
        check_password(password)?;
    }
    let (store, backing) = (id.to_owned(), backing.clone());
    account.ask("UpdateCustomKeyStore", &format!("key store {id}"), move |clients| {
        let request = clients.kms.update_custom_key_store().custom_key_store_id(&store);
        let request = match &backing {
            Backing::CloudHsm { password, .. } => {
                secret_text(password).map(|p| request.key_store_password(p))
            }
            Backing::External(proxy) => {
                credential(proxy).map(|pair| request.xks_proxy_authentication_credential(pair))
            }
        };
        async move { request?.send().await.map(drop).map_err(|e| fault(&e)) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mending_ends() {
        assert!(helps("NETWORK_ERRORS", 0, false) && helps("INTERNAL_ERROR", TRIES - 1, true));
        assert!(!helps("NETWORK_ERRORS", TRIES, false));
        assert!(helps("XKS_PROXY_ACCESS_DENIED", 1, false));
        assert!(!helps("XKS_PROXY_ACCESS_DENIED", 1, true));
        for code in ["CLUSTER_NOT_FOUND", "USER_LOGGED_IN", "INVALID_CREDENTIALS", "SOMETHING_NEW"]
        {
            assert!(helps(code, 0, false) && !helps(code, 1, false));
        }
    }

    #[test]
    fn passwords_are_what_kms_takes() {
        let good = |text: &str| check_password(&SecretBytes::new(text.into())).is_ok();
        assert!(good("abcDEF7") && good(&"a".repeat(32)));
        assert!(
            !good("abcdef") && !good(&"a".repeat(33)) && !good("with space") && !good("größer77")
        );
        let refused = check_password(&SecretBytes::new(b"hunter!".to_vec())).unwrap_err();
        assert!(!refused.sentence.contains("hunter"));
    }
}
