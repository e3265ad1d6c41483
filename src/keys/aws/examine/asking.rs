//! The calls of an examination, and what requests and answers show beside their content: where they
//! went, who signed them, what time it is there.

use crate::crypto::Secret;
use crate::crypto::wrap::Purpose;
use crate::format::VolumeId;
use crate::keys::WrapContext;
use crate::keys::aws::calls::Operation;
use crate::keys::aws::classify::Class;
use crate::keys::aws::connection::{Connection, Fault, fault};
use crate::keys::aws::{BACKOFF, KeyArn, bytes, encryption_context, secret};
use aws_sdk_kms::Client;
use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::config::interceptors::{
    BeforeDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextRef,
};
use aws_sdk_kms::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_kms::error::{BoxError, ProvideErrorMetadata, SdkError};
use aws_sdk_kms::primitives::{Blob, DateTime, DateTimeFormat};
use aws_sdk_kms::types::{DataKeySpec, DryRunModifierType, KeySpec, KeyUsageType};
use parking_lot::Mutex;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often a question is put that passing trouble has left open.
const TRIES: usize = 2;

/// What DescribeKey says, as far as it matters.
pub struct KeyData {
    pub state: String,
    pub origin: String,
    pub store: Option<String>,
    pub multi_region: bool,
    /// Symmetric, and for encryption.
    pub is_usable_kind: bool,
}

/// A key and its wrapped copy.
pub type Made = (Option<Secret<32>>, Vec<u8>);

/// What was seen of the last request and the last answer.
#[derive(Clone, Default, Debug)]
pub struct Seen {
    /// Scheme and host it went to.
    pub endpoint: Option<String>,
    /// Id of the access key that signed it.
    pub access_key: Option<String>,
    /// Signed with the credentials of a session.
    pub temporary: bool,
    /// Somebody answered.
    pub answered: bool,
    /// Seconds by which the local clock is ahead of the answer's date.
    pub ahead: Option<f64>,
}

#[derive(Clone, Default, Debug)]
struct Watch(Arc<Mutex<Seen>>);

impl Intercept for Watch {
    fn name(&self) -> &'static str {
        "Watch"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let request = context.request();
        let header = |name| request.headers().get(name);
        let mut seen = self.0.lock();
        seen.endpoint = origin(request.uri());
        seen.access_key = header("authorization").and_then(access_key);
        seen.temporary = header("x-amz-security-token").is_some();
        Ok(())
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date");
        let mut seen = self.0.lock();
        seen.answered = true;
        if let Some(there) = date.and_then(|text| {
            DateTime::from_str(text, DateTimeFormat::HttpDate).ok().map(|time| time.as_secs_f64())
        }) {
            let here = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            // The date is without its fraction of a second.
            seen.ahead = Some(here.as_secs_f64() - (there + 0.5));
        }
        Ok(())
    }
}

fn origin(uri: &str) -> Option<String> {
    let (scheme, rest) = uri.split_once("://")?;
    let host = rest.split(['/', '?']).next()?;
    Some(format!("{scheme}://{host}"))
}

/// From `… Credential=ID/DATE/REGION/kms/aws4_request, …`.
fn access_key(authorization: &str) -> Option<String> {
    let (_, rest) = authorization.split_once("Credential=")?;
    rest.split('/').next().map(str::to_owned)
}

/// Puts questions about one key.
pub struct Asking<'a> {
    arn: &'a KeyArn,
    connection: &'a Connection,
    limit: Duration,
    watch: Watch,
}

impl<'a> Asking<'a> {
    pub fn new(arn: &'a KeyArn, connection: &'a Connection, limit: Duration) -> Self {
        Self { arn, connection, limit, watch: Watch::default() }
    }

    pub fn seen(&self) -> Seen {
        self.watch.0.lock().clone()
    }

    /// The answer, and how long it took.
    fn ask<T, F>(
        &self,
        request: impl Fn(Client) -> F + Send + Clone + 'static,
    ) -> Result<(T, Duration), Fault>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Fault>> + Send,
    {
        let mut left = TRIES;
        loop {
            let (asked, request) = (Instant::now(), request.clone());
            let fault = match self.connection.run(self.limit, request) {
                Ok(answer) => return Ok((answer, asked.elapsed())),
                Err(fault) => fault,
            };
            left -= 1;
            let again = fault.class.is_passing() && fault.class != Class::Credentials;
            if !again || left == 0 {
                return Err(fault);
            }
            std::thread::sleep(BACKOFF);
        }
    }

    pub fn describe(&self) -> Result<KeyData, Fault> {
        let (arn, watch) = (self.arn.as_str().to_owned(), self.watch.clone());
        let answered = self.ask(move |client| {
            let request = client.describe_key().key_id(&arn).customize();
            let request = request.interceptor(watch.clone());
            async move {
                let answer = request.send().await.map_err(|e| fault(&e))?;
                Ok(answer.key_metadata)
            }
        })?;
        let Some(data) = answered.0 else {
            let text = "DescribeKey was answered without a key";
            return Err(Fault::new(Class::Misconfigured, text));
        };
        let word = |word: Option<&str>| word.unwrap_or("unknown").to_owned();
        Ok(KeyData {
            state: word(data.key_state.as_ref().map(|state| state.as_str())),
            origin: word(data.origin.as_ref().map(|origin| origin.as_str())),
            multi_region: data.multi_region.unwrap_or(false),
            is_usable_kind: data.key_spec == Some(KeySpec::SymmetricDefault)
                // What a key is for unless another use was asked for; emulators leave it out.
            && data.key_usage.is_none_or(|usage| usage == KeyUsageType::EncryptDecrypt),
            store: data.custom_key_store_id,
        })
    }

    /// Would KMS do this? Asked with a dry run, which wraps and unwraps nothing.
    pub fn would(
        &self,
        operation: Operation,
        volume: VolumeId,
        purpose: Purpose,
    ) -> Result<(), Fault> {
        let (arn, watch) = (self.arn.as_str().to_owned(), self.watch.clone());
        let pairs = encryption_context(&WrapContext { volume, purpose });
        let answered = self.ask(move |client| {
            let (arn, pairs, watch) = (arn.clone(), Some(pairs.clone()), watch.clone());
            async move {
                match operation {
                    Operation::Decrypt => {
                        let request = client.decrypt().key_id(arn).set_encryption_context(pairs);
                        let only = DryRunModifierType::IgnoreCiphertext;
                        let request = request.dry_run(true).dry_run_modifiers(only).customize();
                        verdict(request.interceptor(watch).send().await)
                    }
                    Operation::GenerateDataKey => {
                        let request = client.generate_data_key().key_id(arn).dry_run(true);
                        let request = request.set_encryption_context(pairs);
                        let request = request.key_spec(DataKeySpec::Aes256).customize();
                        verdict(request.interceptor(watch).send().await)
                    }
                    Operation::Encrypt => {
                        let request = client.encrypt().key_id(arn).dry_run(true);
                        let request = request.set_encryption_context(pairs);
                        let request = request.plaintext(Blob::new([0; 32])).customize();
                        verdict(request.interceptor(watch).send().await)
                    }
                    Operation::ReEncrypt => {
                        let request = client.re_encrypt().source_key_id(&arn).dry_run(true);
                        let request = request.destination_key_id(arn);
                        let request = request.set_source_encryption_context(pairs.clone());
                        let request = request.set_destination_encryption_context(pairs);
                        let only = DryRunModifierType::IgnoreCiphertext;
                        let request = request.dry_run_modifiers(only).customize();
                        verdict(request.interceptor(watch).send().await)
                    }
                }
            }
        });
        answered.map(|((), _)| ())
    }

    /// A new key, if KMS answers with one of 32 bytes, and its wrapped copy.
    pub fn generate(&self, volume: VolumeId, purpose: Purpose) -> Result<(Made, Duration), Fault> {
        let (arn, watch) = (self.arn.as_str().to_owned(), self.watch.clone());
        let pairs = encryption_context(&WrapContext { volume, purpose });
        self.ask(move |client| {
            let request = client.generate_data_key().key_id(&arn).key_spec(DataKeySpec::Aes256);
            let request = request.set_encryption_context(Some(pairs.clone())).customize();
            let request = request.interceptor(watch.clone());
            async move {
                let answer = request.send().await.map_err(|e| fault(&e))?;
                Ok((secret(answer.plaintext), bytes(answer.ciphertext_blob)))
            }
        })
    }

    /// The key in a copy, unless it has not 32 bytes or another key than ours opened it.
    pub fn decrypt(
        &self,
        volume: VolumeId,
        purpose: Purpose,
        blob: Vec<u8>,
    ) -> Result<(Option<Secret<32>>, Duration), Fault> {
        let (arn, watch) = (self.arn.as_str().to_owned(), self.watch.clone());
        let pairs = encryption_context(&WrapContext { volume, purpose });
        self.ask(move |client| {
            let request = client.decrypt().key_id(&arn).ciphertext_blob(Blob::new(blob.clone()));
            let request = request.set_encryption_context(Some(pairs.clone())).customize();
            let (request, arn) = (request.interceptor(watch.clone()), arn.clone());
            async move {
                let answer = request.send().await.map_err(|e| fault(&e))?;
                let key = secret(answer.plaintext);
                Ok(key.filter(|_| answer.key_id == Some(arn)))
            }
        })
    }
}

/// KMS says yes to a dry run with an error of its own.
fn verdict<T, E>(answer: Result<T, SdkError<E, HttpResponse>>) -> Result<(), Fault>
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    match answer {
        Ok(_) => Ok(()),
        Err(error) if error.code() == Some("DryRunOperationException") => Ok(()),
        Err(error) => Err(fault(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signed_request_shows_where_it_goes_and_who_signed_it() {
        let header = "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/20260101/us-east-1/kms/aws4_request, \
                      SignedHeaders=host, Signature=00";
        assert_eq!(access_key(header).as_deref(), Some("AKIAEXAMPLE"));
        assert_eq!(access_key("Bearer x"), None);
        let uri = "https://kms-fips.us-east-1.api.aws/?x=y";
        assert_eq!(origin(uri).as_deref(), Some("https://kms-fips.us-east-1.api.aws"));
        assert_eq!(origin("nowhere"), None);
    }
}
