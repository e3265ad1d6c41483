//! AWS KMS as a provider: one KMS key, called by its ARN.
//!
//! Every call has a deadline, takes its share of the rate, is tried again while that may help, and is
//! counted. Nothing of the SDK is visible from outside.

mod ambient;
mod arn;
mod breaker;
mod calls;
pub mod classify;
mod connection;
mod examine;
mod rate;

pub use ambient::ignore_endpoints;
pub use arn::KeyArn;
pub use connection::{Connection, Endpoint, Fault, Route, SdkConfig, fault};
pub use examine::{Subject, examine};

use super::clock::{Clock, boot_clock};
use super::{KeyError, KeyProvider, ProviderReport, WrapContext};
use crate::crypto::wrap::Purpose;
use crate::crypto::{Secret, random_array};
use crate::format::header::{Recipient, RecipientKind};
use crate::format::recipient::MAX_WRAPPED;
use aws_sdk_kms::Client;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::DataKeySpec;
use breaker::Breaker;
use calls::{Calls, Operation};
use classify::Class;
use rate::Rate;
use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};
use zeroize::Zeroize;

/// One answer is waited for at most this long once KMS is known to answer.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Pause before the second attempt; doubled before each further one.
const BACKOFF: Duration = Duration::from_millis(60);
/// Longest pause.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// How KMS is called.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Where it is.
    pub route: Route,
    /// Longest a caller waits.
    pub deadline: Duration,
    /// Units a second this host may use of a key store's quota.
    pub units_per_second: u32,
    /// A key that is not found or denied may just have been made, or been given its policy: ask
    /// again until the deadline.
    pub may_be_new: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            route: Route::default(),
            deadline: Duration::from_secs(5),
            // Half of what a CloudHSM key store answers.
            units_per_second: 900,
            may_be_new: false,
        }
    }
}

/// One KMS key.
pub struct AwsKms {
    arn: KeyArn,
    epoch: u32,
    settings: Settings,
    connection: Arc<Connection>,
    rate: Arc<Rate>,
    breaker: Breaker,
    calls: Calls,
}

/// Makes providers; those of one Region share connection and rate.
pub struct Regions {
    settings: Settings,
    now: Clock,
    known: HashMap<String, (Arc<Connection>, Arc<Rate>)>,
}

impl Regions {
    /// No network yet.
    pub fn new(settings: Settings) -> Self {
        Self { settings, now: boot_clock(), known: HashMap::new() }
    }

    /// A provider for the key (or, to wrap with only, the alias) of this ARN.
    pub fn provider(&mut self, arn: KeyArn, epoch: u32) -> AwsKms {
        let make = || {
            let connection = Connection::new(arn.region(), self.settings.route.clone());
            let rate = Rate::new(self.settings.units_per_second, self.now.clone());
            (Arc::new(connection), Arc::new(rate))
        };
        let (connection, rate) =
            self.known.entry(arn.region().to_owned()).or_insert_with(make).clone();
        let (breaker, calls) = (Breaker::new(self.now.clone()), Calls::new(self.now.clone()));
        let settings = self.settings.clone();
        AwsKms { arn, epoch, settings, connection, rate, breaker, calls }
    }
}

/// How descriptors name a KMS key.
pub fn name(arn: &KeyArn, epoch: u32) -> Recipient {
    let key_ref = arn.as_str().as_bytes().to_vec();
    Recipient { kind: RecipientKind::AwsKms, epoch, key_ref, wrapped: vec![] }
}

/// Who is to blame for a call that failed.
enum Failure {
    /// This host's own limit: KMS was not asked.
    Here(KeyError),
    /// KMS, or the way to it.
    There(KeyError),
}

/// A plaintext key and its wrapped copy, as KMS answers.
struct Wrapped {
    key: Option<Secret<32>>,
    blob: Vec<u8>,
    arn: Option<String>,
}

impl AwsKms {
    fn call<T, F>(
        &self,
        operation: Operation,
        request: impl Fn(Client) -> F + Send + Clone + 'static,
    ) -> Result<T, KeyError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Fault>> + Send,
    {
        let leave = self.breaker.admit()?;
        match self.attempts(operation, request) {
            Ok(answer) => {
                leave.answered();
                Ok(answer)
            }
            // KMS knows nothing of it.
            Err(Failure::Here(error)) => Err(error),
            Err(Failure::There(error)) if error.falls_through() => {
                leave.failed(&error);
                Err(error)
            }
            Err(Failure::There(error)) => {
                leave.answered();
                Err(error)
            }
        }
    }

    fn attempts<T, F>(
        &self,
        operation: Operation,
        request: impl Fn(Client) -> F + Send + Clone + 'static,
    ) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Fault>> + Send,
    {
        let forgotten = self.connection.forgotten();
        let started = Instant::now();
        let left = || self.settings.deadline.saturating_sub(started.elapsed());
        let (mut pause, mut attempt) = (BACKOFF, ATTEMPT);
        let mut renewed = false;
        loop {
            let Some(wait) = self.rate.reserve(operation.units(), left()) else {
                let text = "this host's own share of the key store's quota is used up";
                let fault = Fault::new(Class::Throttled, text);
                return Err(Failure::Here(self.fail(operation, &fault)));
            };
            std::thread::sleep(wait);
            // Longer each time: an answer that takes longer than the first limit is one, too.
            let limit = if self.connection.is_warm() { attempt.min(left()) } else { left() };
            // A patient caller's attempts are many.
            attempt = attempt.saturating_mul(2);
            let generation = self.connection.generation();
            let (asked, request) = (Instant::now(), request.clone());
            let fault = match self.connection.run(limit, request) {
                Ok(answer) => {
                    self.calls.succeeded(operation, asked.elapsed());
                    return Ok(answer);
                }
                Err(fault) => fault,
            };
            let error = self.fail(operation, &fault);
            if fault.class == Class::Credentials && !std::mem::replace(&mut renewed, true) {
                // Others may have renewed them: they are looked for again.
                self.connection.renew(generation);
            }
            let again = fault.class.is_passing()
                || (fault.class == Class::Denied && self.settings.may_be_new);
            pause = pause.min(BACKOFF_MAX);
            // What was forgotten meanwhile is not to be asked for once more.
            if !again || left() <= pause || self.connection.forgotten() != forgotten {
                return Err(Failure::There(error));
            }
            std::thread::sleep(jittered(pause));
            pause *= 2;
        }
    }

    fn fail(&self, operation: Operation, fault: &Fault) -> KeyError {
        let sentence = format!(
            "KMS key {}: {} failed: {}; {}",
            self.arn.as_str(),
            operation.name(),
            fault.text,
            fault.class.advice()
        );
        self.calls.failed(operation, fault.class, &sentence);
        log::debug!("{sentence} [{}]", fault.class.name());
        fault.class.error(sentence)
    }

    /// The record of a copy; the ARN is the one KMS names, as an alias may point elsewhere tomorrow.
    fn record(&self, wrapped: &Wrapped) -> Result<Recipient, KeyError> {
        let told = wrapped.arn.as_deref().unwrap_or_default();
        let arn = KeyArn::parse(told)?;
        let expected = self.arn.is_alias() || arn == self.arn;
        if !expected || arn.is_alias() || arn.region() != self.arn.region() {
            return Err(KeyError::Tampered(format!(
                "KMS answered with key {told} where {} was asked for; nothing was wrapped",
                self.arn.as_str()
            )));
        }
        if wrapped.blob.is_empty() || wrapped.blob.len() > MAX_WRAPPED {
            let len = wrapped.blob.len();
            return Err(KeyError::Misconfigured(format!(
                "KMS key {told}: its wrapped keys have {len} bytes, and a header holds at most \
                 {MAX_WRAPPED}"
            )));
        }
        Ok(Recipient { wrapped: wrapped.blob.clone(), ..name(&arn, self.epoch) })
    }

    fn call_reencrypt(
        &self,
        context: &WrapContext,
        source: String,
        blob: Vec<u8>,
    ) -> Result<Recipient, KeyError> {
        let (arn, pairs) = (self.arn.as_str().to_owned(), encryption_context(context));
        let named = source.clone();
        let (from, wrapped) = self.call(Operation::ReEncrypt, move |client| {
            let request = client
                .re_encrypt()
                .source_key_id(&source)
                .destination_key_id(&arn)
                .ciphertext_blob(Blob::new(blob.clone()))
                .set_source_encryption_context(Some(pairs.clone()))
                .set_destination_encryption_context(Some(pairs.clone()));
            async move {
                let answer = request.send().await.map_err(|e| fault(&e))?;
                let blob = bytes(answer.ciphertext_blob);
                Ok((answer.source_key_id, Wrapped { key: None, blob, arn: answer.key_id }))
            }
        })?;
        if from.as_deref() != Some(&named) {
            return Err(KeyError::Tampered(format!(
                "KMS took another key than {named} to unwrap with; what it wrapped is not used"
            )));
        }
        self.record(&wrapped)
    }

    fn wrong_length(&self) -> KeyError {
        KeyError::Tampered(format!(
            "KMS key {} gave a key that has not 32 bytes; it was not made by kmsfs",
            self.arn.as_str()
        ))
    }
}

fn jittered(pause: Duration) -> Duration {
    let [random] = random_array::<1>();
    pause / 2 + pause * u32::from(random) / 510
}

/// What KMS checks, logs and lets policies ask for.
pub fn encryption_context(context: &WrapContext) -> HashMap<String, String> {
    let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
    let mut pairs = HashMap::from([("kmsfs:volume".to_owned(), hex(&context.volume.0))]);
    let purpose = match context.purpose {
        Purpose::Volume => "volume",
        Purpose::Data(id) => {
            pairs.insert("kmsfs:data-key".to_owned(), hex(&id.0));
            "data"
        }
    };
    pairs.insert("kmsfs:purpose".to_owned(), purpose.to_owned());
    pairs
}

/// Moves a plaintext key into locked memory; `None` if it has another length.
pub fn secret(blob: Option<Blob>) -> Option<Secret<32>> {
    let mut bytes = blob?.into_inner();
    let fits = bytes.len() == 32;
    let key = fits.then(|| Secret::fill_with(|out| out.copy_from_slice(&bytes)));
    bytes.zeroize();
    key
}

fn bytes(blob: Option<Blob>) -> Vec<u8> {
    blob.map(Blob::into_inner).unwrap_or_default()
}

impl KeyProvider for AwsKms {
    fn recipient(&self) -> Recipient {
        name(&self.arn, self.epoch)
    }

    fn describe(&self) -> String {
        self.arn.as_str().to_owned()
    }

    fn generate(&self, context: &WrapContext) -> Result<(Secret<32>, Recipient), KeyError> {
        let (arn, pairs) = (self.arn.as_str().to_owned(), encryption_context(context));
        let wrapped = self.call(Operation::GenerateDataKey, move |client| {
            let request = client
                .generate_data_key()
                .key_id(&arn)
                .key_spec(DataKeySpec::Aes256)
                .set_encryption_context(Some(pairs.clone()));
            async move {
                let answer = request.send().await.map_err(|e| fault(&e))?;
                let key = secret(answer.plaintext);
                Ok(Wrapped { key, blob: bytes(answer.ciphertext_blob), arn: answer.key_id })
            }
        })?;
        let record = self.record(&wrapped)?;
        let key = wrapped.key.ok_or_else(|| self.wrong_length())?;
        Ok((key, record))
    }

    fn wrap(&self, context: &WrapContext, key: &Secret<32>) -> Result<Recipient, KeyError> {
        let (arn, pairs) = (self.arn.as_str().to_owned(), encryption_context(context));
        // The request needs bytes of its own; the SDK's threads wipe what they free.
        let key =
            Arc::new(Secret::fill_with(|out: &mut [u8; 32]| out.copy_from_slice(key.expose())));
        let wrapped = self.call(Operation::Encrypt, move |client| {
            let (arn, pairs, key) = (arn.clone(), pairs.clone(), key.clone());
            async move {
                let request = client
                    .encrypt()
                    .key_id(arn)
                    .plaintext(Blob::new(key.expose().to_vec()))
                    .set_encryption_context(Some(pairs));
                let answer = request.send().await.map_err(|e| fault(&e))?;
                Ok(Wrapped { key: None, blob: bytes(answer.ciphertext_blob), arn: answer.key_id })
            }
        })?;
        self.record(&wrapped)
    }

    fn unwrap(&self, context: &WrapContext, copy: &Recipient) -> Result<Secret<32>, KeyError> {
        let (arn, pairs) = (self.arn.as_str().to_owned(), encryption_context(context));
        let blob = copy.wrapped.clone();
        let wrapped = self.call(Operation::Decrypt, move |client| {
            let request = client
                .decrypt()
                .key_id(&arn)
                .ciphertext_blob(Blob::new(blob.clone()))
                .set_encryption_context(Some(pairs.clone()));
            async move {
                let answer = request.send().await.map_err(|e| fault(&e))?;
                let key = secret(answer.plaintext);
                Ok(Wrapped { key, blob: vec![], arn: answer.key_id })
            }
        })?;
        if wrapped.arn.as_deref() != Some(self.arn.as_str()) {
            return Err(KeyError::Tampered(format!(
                "KMS answered with another key than {}; what it unwrapped is not used",
                self.arn.as_str()
            )));
        }
        wrapped.key.ok_or_else(|| self.wrong_length())
    }

    fn reencrypt(
        &self,
        context: &WrapContext,
        copy: &Recipient,
    ) -> Option<Result<Recipient, KeyError>> {
        let source = String::from_utf8(copy.key_ref.clone()).ok()?;
        let same_place = |other: KeyArn| other.region() == self.arn.region();
        // KMS does not look for a key elsewhere than where it is asked.
        (copy.kind == RecipientKind::AwsKms && KeyArn::parse(&source).is_ok_and(same_place))
            .then(|| self.call_reencrypt(context, source, copy.wrapped.clone()))
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn has_spare(&self) -> bool {
        !self.breaker.is_open() && self.rate.has_spare()
    }

    fn forget(&self) {
        self.connection.forget();
    }

    fn report(&self) -> Option<ProviderReport> {
        let breaker_open = self.breaker.is_open();
        Some(ProviderReport { key: self.describe(), breaker_open, calls: self.calls.facts() })
    }
}

#[cfg(test)]
mod tests;
