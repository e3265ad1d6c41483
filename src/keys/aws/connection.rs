//! The way to the services of one Region: settings, credentials, clients, and the threads their
//! answers arrive on.
//!
//! The asynchronous SDK stays behind this module. Everything it allocates for an answer, plaintext
//! keys included, is allocated and freed on threads whose freed memory is wiped.

use super::ambient;
use super::classify::{Class, of_answer};
use crate::sys;
pub use aws_config::SdkConfig;
use aws_config::{AppName, BehaviorVersion, Region};
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_kms::config::StalledStreamProtectionConfig;
use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::config::retry::RetryConfig;
use aws_sdk_kms::config::timeout::TimeoutConfig;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::operation::RequestId;
use aws_sdk_kms::{Client, Config};
use parking_lot::{Mutex, MutexGuard};
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;
use tokio::runtime::Runtime;

/// Threads that serve the SDK.
const WORKERS: usize = 2;
/// Time to reach the endpoint.
const CONNECT: Duration = Duration::from_secs(2);
/// How much longer than a call's own limit its caller waits for it to say so.
const SLACK: Duration = Duration::from_millis(500);

/// How the KMS of a Region is reached.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Route {
    /// Other endpoints than AWS's own; those of one Region go before those of all.
    pub endpoints: Vec<Endpoint>,
    /// FIPS endpoints; unset, the environment and the profile say.
    pub fips: Option<bool>,
    /// Dual-stack endpoints; unset, the environment and the profile say.
    pub dual_stack: Option<bool>,
}

/// An endpoint, of one Region or of all.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    region: Option<String>,
    url: String,
}

impl std::str::FromStr for Endpoint {
    type Err = String;
    /// `URL` or `REGION=URL`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (region, url) = match text.split_once('=') {
            Some((region, url)) if !region.contains(':') => (Some(region.to_owned()), url),
            _ => (None, text),
        };
        check_url(url)?;
        Ok(Self { region, url: url.to_owned() })
    }
}

impl Endpoint {
    /// Its Region; of all, if there is none.
    pub fn region(&self) -> Option<&str> {
        self.region.as_deref()
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Route {
    /// Where the KMS of this Region is, unless at AWS's own endpoint.
    pub fn endpoint(&self, region: &str) -> Option<String> {
        let of = |wanted: Option<&str>| {
            self.endpoints.iter().rfind(|endpoint| endpoint.region() == wanted)
        };
        of(Some(region)).or_else(|| of(None)).map(|endpoint| endpoint.url.clone())
    }
}

/// A call that brought no answer of the kind hoped for.
pub struct Fault {
    /// What it means.
    pub class: Class,
    /// What happened, with the request's id; not a whole sentence.
    pub text: String,
    /// The code the service refused with; empty unless it did.
    pub code: String,
}

impl Fault {
    /// Nothing a service said.
    pub fn new(class: Class, text: impl Into<String>) -> Self {
        Self { class, text: text.into(), code: String::new() }
    }
}

/// Makes a client (or several) from settings.
type Make<C> = Arc<dyn Fn(&SdkConfig) -> C + Send + Sync>;

/// Clients for one Region: by default that of KMS. Built at first use, so after the daemon has forked.
pub struct Connection<C: Clone + Send + 'static = Client> {
    region: String,
    route: Route,
    make: Make<C>,
    live: Mutex<Option<Live<C>>>,
    /// Counts the connections made.
    generation: AtomicU64,
    /// Counts the times all was to be forgotten.
    forgotten: AtomicU64,
    /// The present one has brought an answer.
    warm: AtomicBool,
}

struct Live<C> {
    client: C,
    runtime: Runtime,
}

impl Connection {
    /// To KMS. Nothing is asked of the network yet.
    pub fn new(region: &str, route: Route) -> Self {
        let endpoint = route.endpoint(region);
        let make =
            move |shared: &SdkConfig| Client::from_conf(client_config(shared, endpoint.clone()));
        Self::with(region, route, make)
    }

    /// Calls a client of the caller's.
    #[cfg(test)]
    pub fn to(client: Client) -> io::Result<Self> {
        let runtime = runtime()?;
        let connection = Self::new("us-east-1", Route::default());
        *connection.live.lock() = Some(Live { client, runtime });
        Ok(connection)
    }
}

impl<C: Clone + Send + 'static> Connection<C> {
    /// With clients of the caller's making; `route` says only whether FIPS and dual-stack endpoints are
    /// wanted. Nothing is asked of the network yet.
    pub fn with(
        region: &str,
        route: Route,
        make: impl Fn(&SdkConfig) -> C + Send + Sync + 'static,
    ) -> Self {
        let (generation, forgotten) = (AtomicU64::new(0), AtomicU64::new(0));
        let (live, warm) = (Mutex::default(), AtomicBool::new(false));
        let (region, make) = (region.to_owned(), Arc::new(make));
        Self { region, route, make, live, generation, forgotten, warm }
    }

    /// Sends a request and waits for its answer, `limit` at most.
    pub fn run<T, F>(
        &self,
        limit: Duration,
        request: impl FnOnce(C) -> F + Send + 'static,
    ) -> Result<T, Fault>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Fault>> + Send,
    {
        let (client, handle) = self.live()?;
        let (sender, answer) = mpsc::sync_channel(1);
        handle.spawn(async move {
            let answer = tokio::time::timeout(limit, request(client)).await;
            // A caller that has gone needs no answer.
            let _ = sender.send(answer.unwrap_or_else(|_| Err(no_answer(limit))));
        });
        let answer = answer.recv_timeout(limit + SLACK).unwrap_or_else(|_| Err(no_answer(limit)));
        if answer.is_ok() {
            self.warm.store(true, Ordering::Relaxed);
        }
        answer
    }

    /// Has the present connection brought an answer? Before that, credentials, a name and a handshake
    /// may have to be had first.
    pub fn is_warm(&self) -> bool {
        self.warm.load(Ordering::Relaxed)
    }

    /// Which connection is in use.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Drops connection and credentials, unless that has been done since `generation`; the next request
    /// begins anew.
    pub fn renew(&self, generation: u64) {
        let live = self.live.lock();
        if self.generation() == generation {
            self.end(live);
        }
    }

    /// Drops everything the SDK holds of answers. Calls under way are given up.
    pub fn forget(&self) {
        self.forgotten.fetch_add(1, Ordering::AcqRel);
        self.end(self.live.lock());
    }

    /// How often all was to be forgotten.
    pub fn forgotten(&self) -> u64 {
        self.forgotten.load(Ordering::Acquire)
    }

    /// Ends the present connection; others may make the next one while it ends.
    fn end(&self, mut live: MutexGuard<'_, Option<Live<C>>>) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.warm.store(false, Ordering::Relaxed);
        let old = live.take();
        drop(live);
        if let Some(old) = old {
            old.end();
        }
    }

    fn live(&self) -> Result<(C, tokio::runtime::Handle), Fault> {
        let mut live = self.live.lock();
        if live.is_none() {
            let started = Live::start(&self.region, &self.route, &self.make);
            // Threads or descriptors are short for the moment.
            let failed = |e| format!("the AWS client cannot be started: {e}");
            *live = Some(started.map_err(|e| Fault::new(Class::Transient, failed(e)))?);
        }
        match &*live {
            Some(live) => Ok((live.client.clone(), live.runtime.handle().clone())),
            None => Err(no_answer(Duration::ZERO)),
        }
    }
}

impl<C: Clone + Send + 'static> Drop for Connection<C> {
    fn drop(&mut self) {
        self.forget();
    }
}

impl<C: Clone + Send + 'static> Live<C> {
    fn start(region: &str, route: &Route, make: &Make<C>) -> io::Result<Self> {
        let runtime = runtime()?;
        let (region, route, make) = (region.to_owned(), route.clone(), make.clone());
        let client = runtime
            .block_on(runtime.spawn(async move { make(&settings(&region, &route).await) }))
            .map_err(io::Error::other)?;
        Ok(Self { client, runtime })
    }

    /// Drops the client where its memory is wiped. Requests under way are given up.
    fn end(self) {
        let Self { client, runtime } = self;
        runtime.spawn(async move { drop(client) });
        runtime.shutdown_timeout(Duration::from_secs(1));
    }
}

/// Threads that wipe what they free.
fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(WORKERS)
        .thread_name("kmsfs-kms")
        .on_thread_start(sys::wipe_what_this_thread_frees)
        .enable_all()
        .build()
}

/// Credentials and options as every AWS program finds them, but for endpoints. Retries are ours: a caller has a
/// deadline, and the library's classes are not quite right for KMS.
async fn settings(region: &str, route: &Route) -> SdkConfig {
    let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT).build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .region(Region::new(region.to_owned()))
        .profile_files(ambient::profile_files())
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts)
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
    if let Ok(name) = AppName::new(concat!("kmsfs-", env!("CARGO_PKG_VERSION"))) {
        loader = loader.app_name(name);
    }
    if let Some(fips) = route.fips {
        loader = loader.use_fips(fips);
    }
    if let Some(dual_stack) = route.dual_stack {
        loader = loader.use_dual_stack(dual_stack);
    }
    loader.load().await
}

/// The environment may say which credentials to use, but not where keys are sent.
fn client_config(shared: &SdkConfig, endpoint: Option<String>) -> Config {
    let mut config = aws_sdk_kms::config::Builder::from(shared);
    config.set_endpoint_url(endpoint.clone());
    if endpoint.is_some() {
        config.set_use_fips(Some(false));
        config.set_use_dual_stack(Some(false));
    }
    config.build()
}

fn no_answer(limit: Duration) -> Fault {
    let text = format!("no answer within {:.1} s", limit.as_secs_f64());
    Fault::new(Class::Unreachable, text)
}

/// Reads an error of the SDK.
pub fn fault<E>(error: &SdkError<E, HttpResponse>) -> Fault
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let id = error.request_id().map_or_else(String::new, |id| format!(" (request {id})"));
    match error {
        SdkError::ServiceError(answer) => {
            let (code, message) = (answer.err().code(), answer.err().message());
            let status = answer.raw().status().as_u16();
            let class = of_answer(code.unwrap_or_default(), message.unwrap_or_default(), status);
            let shown = code.map_or_else(|| format!("HTTP status {status}"), harmless);
            let said = message.map_or_else(String::new, |m| format!(": {}", harmless(m)));
            let code = code.unwrap_or_default().to_owned();
            Fault { class, text: format!("{shown}{said}{id}"), code }
        }
        SdkError::ResponseError(_) => {
            let text = format!("the answer makes no sense: {}{id}", context(error));
            Fault::new(Class::Transient, text)
        }
        SdkError::TimeoutError(_) => {
            Fault::new(Class::Unreachable, "the endpoint did not answer in time")
        }
        other if lacks_credentials(other) => {
            Fault::new(Class::Credentials, format!("no AWS credentials: {}", context(other)))
        }
        other => {
            let text = format!("the endpoint cannot be reached: {}", context(other));
            Fault::new(Class::Unreachable, text)
        }
    }
}

/// What each layer of the client says, outermost first.
fn context(error: &(dyn std::error::Error + 'static)) -> String {
    let layers = std::iter::successors(Some(error), |error| error.source());
    let mut said: Vec<String> = layers.map(|error| harmless(&error.to_string())).collect();
    said.dedup();
    said.join(": ").chars().take(600).collect()
}

/// What a stranger sent goes on one line, without control characters.
fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn lacks_credentials(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut layers = std::iter::successors(Some(error), |error| error.source());
    layers.any(|error| error.is::<CredentialsError>())
}

/// Only a loopback address may be spoken to without TLS: answers hold plaintext keys.
fn check_url(url: &str) -> Result<(), String> {
    let bad = |why: &str| Err(format!("{url:?} cannot be an endpoint: {why}"));
    let Some((scheme, rest)) = url.split_once("://") else {
        return bad("write https://HOST");
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    if host.is_empty() || authority.contains('@') || url.chars().any(|c| c.is_control() || c == ' ')
    {
        return bad("it names no host");
    }
    let loopback = host == "localhost"
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    match scheme {
        "https" => Ok(()),
        "http" if loopback => Ok(()),
        "http" => bad("answers hold plaintext keys, so only a loopback address may go without TLS"),
        _ => bad("it is neither https nor http"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_loopback_only() {
        for url in [
            "https://kms.us-east-1.amazonaws.com",
            "https://vpce-1.kms.us-east-1.vpce.amazonaws.com:443/",
            "http://127.0.0.1:4566",
            "http://localhost",
            "http://[::1]:80/x",
        ] {
            assert_eq!(check_url(url), Ok(()), "{url}");
        }
        for url in [
            "kms.us-east-1.amazonaws.com",
            "http://10.0.0.1",
            "http://localhost.example.com",
            "http://localhost@example.com",
            "http://127.0.0.1.example.com",
            "ftp://localhost",
            "https://",
            "http://[::2]/",
            "https://a b",
        ] {
            assert!(check_url(url).is_err(), "{url}");
        }
    }

    #[test]
    fn a_region_may_have_an_endpoint_of_its_own() {
        let endpoints = ["https://all", "eu-central-1=https://eu?a=b", "eu-central-1=https://eu2"];
        let endpoints = endpoints.iter().map(|text| text.parse().unwrap()).collect();
        let route = Route { endpoints, ..Route::default() };
        assert_eq!(route.endpoint("eu-central-1").as_deref(), Some("https://eu2"));
        assert_eq!(route.endpoint("us-east-1").as_deref(), Some("https://all"));
        assert_eq!(Route::default().endpoint("us-east-1"), None);
        assert!("eu-central-1=http://10.0.0.1".parse::<Endpoint>().is_err());
    }
}
