//! One account in one Region: its clients, and calls with patience.
//!
//! A call that only reads, or may be made twice, is made again while that may help. A call that makes
//! something is made once: whether a lost answer left something behind, its caller has to look.

use super::advice;
use crate::crypto::random_array;
use crate::keys::aws::classify::Class;
use crate::keys::aws::{Connection, Endpoint, Fault, Route, SdkConfig, fault};
use std::future::Future;
use std::time::{Duration, Instant};

/// Longest wait for one answer.
const ATTEMPT: Duration = Duration::from_secs(30);
/// Most attempts.
const ATTEMPTS: u32 = 8;
/// Pause after the first attempt; doubled after each further one.
const BACKOFF: Duration = Duration::from_millis(500);
/// Longest pause.
const BACKOFF_MAX: Duration = Duration::from_secs(8);

/// Where the services are, unless at AWS's own endpoints.
#[derive(Clone, Default)]
pub struct Places {
    /// KMS, and whether FIPS and dual-stack endpoints are wanted of all three.
    pub kms: Route,
    /// CloudHSM.
    pub cloudhsm: Option<Endpoint>,
    /// The security token service.
    pub sts: Option<Endpoint>,
}

/// How often is looked, and how long is waited.
#[derive(Clone, Copy)]
pub struct Pace {
    /// Between two looks at something that takes minutes.
    pub poll: Duration,
    /// Longest wait for a cluster, an HSM or a connection.
    pub patience: Duration,
    /// Longest wait until everybody in AWS knows of a change.
    pub settling: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            // DescribeCustomKeyStores may be asked five times a second by everybody together.
            poll: Duration::from_secs(10),
            patience: Duration::from_secs(45 * 60),
            settling: Duration::from_secs(120),
        }
    }
}

/// The clients.
#[derive(Clone)]
pub struct Clients {
    /// KMS.
    pub kms: aws_sdk_kms::Client,
    /// CloudHSM.
    pub cloudhsm: aws_sdk_cloudhsmv2::Client,
    /// Who am I?
    pub sts: aws_sdk_sts::Client,
}

/// AWS said no, or nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The code it refused with; empty if no service answered.
    pub code: String,
    /// What it means.
    pub class: Class,
    /// The whole sentence: what happened, to what, what to do.
    pub sentence: String,
}

impl Refused {
    /// No answer of AWS.
    pub fn here(class: Class, sentence: impl Into<String>) -> Self {
        Self { code: String::new(), class, sentence: sentence.into() }
    }

    /// It is there, and not for this caller.
    pub fn is_denied(&self) -> bool {
        let codes = ["AccessDeniedException", "AccessDenied", "CloudHsmAccessDeniedException"];
        codes.contains(&&self.code[..])
    }

    /// Nobody can say whether the call was carried out.
    pub fn may_have_worked(&self) -> bool {
        // A wrong state may pass, but the call was looked at and refused.
        let failed_inside =
            self.class == Class::Transient && !self.code.ends_with("InvalidStateException");
        self.code.is_empty() && self.class.is_passing() || failed_inside
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for Refused {}

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Twelve digits.
    pub account: String,
    /// `aws`, `aws-cn`, `aws-us-gov`, ….
    pub partition: String,
    /// The role, session or user.
    pub arn: String,
}

/// An account in a Region.
pub struct Account {
    region: String,
    kms_endpoint: Option<String>,
    connection: Connection<Clients>,
    /// How often is looked, and how long is waited.
    pub pace: Pace,
}

impl Account {
    /// Nothing is asked of the network yet.
    pub fn new(region: &str, places: Places, pace: Pace) -> Self {
        let route = places.kms.clone();
        let kms_endpoint = route.endpoint(region);
        let own = region.to_owned();
        let make = move |shared: &SdkConfig| clients(shared, &places, &own);
        let connection = Connection::with(region, route, make);
        Self { region: region.to_owned(), kms_endpoint, connection, pace }
    }

    /// The Region.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// Where KMS is called, unless at AWS's own endpoint.
    pub fn kms_endpoint(&self) -> Option<&str> {
        self.kms_endpoint.as_deref()
    }

    /// A call that may be made twice. `operation` is its name, `subject` what it is about, for people.
    pub fn ask<T, F>(
        &self,
        operation: &str,
        subject: &str,
        request: impl Fn(Clients) -> F + Send + Clone + 'static,
    ) -> Result<T, Refused>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Fault>> + Send,
    {
        let passes = |class: Class| class.is_passing() && class != Class::Credentials;
        self.attempts(operation, subject, passes, request)
    }

    /// A call that makes something new: once, unless it was turned away at the door.
    pub fn make<T, F>(
        &self,
        operation: &str,
        subject: &str,
        request: impl Fn(Clients) -> F + Send + Clone + 'static,
    ) -> Result<T, Refused>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Fault>> + Send,
    {
        self.attempts(operation, subject, |class| class == Class::Throttled, request)
    }

    /// Calls again after failures of the classes that `again` names.
    fn attempts<T, F>(
        &self,
        operation: &str,
        subject: &str,
        again: impl Fn(Class) -> bool,
        request: impl Fn(Clients) -> F + Send + Clone + 'static,
    ) -> Result<T, Refused>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Fault>> + Send,
    {
        let (mut pause, mut left) = (BACKOFF, ATTEMPTS);
        loop {
            left -= 1;
            let fault = match self.connection.run(ATTEMPT, request.clone()) {
                Ok(answer) => return Ok(answer),
                Err(fault) => fault,
            };
            if !again(fault.class) || left == 0 {
                return Err(refused(operation, subject, fault));
            }
            log::debug!("{subject}: {operation}: {}; asking again", fault.text);
            // Who looks more often than that is in more of a hurry here, too.
            std::thread::sleep(jittered(&mut pause).min(self.pace.poll));
        }
    }

    /// Who calls.
    pub fn caller(&self) -> Result<Caller, Refused> {
        let answer = self.ask("GetCallerIdentity", "AWS credentials", |clients| async move {
            clients.sts.get_caller_identity().send().await.map_err(|e| fault(&e))
        })?;
        let arn = answer.arn.unwrap_or_default();
        let partition = arn.split(':').nth(1).unwrap_or("aws").to_owned();
        Ok(Caller { account: answer.account.unwrap_or_default(), partition, arn })
    }

    /// Looks until there is an answer, telling of each look; `look` gives what it waits for, or what the
    /// state is. `Err` as well when patience is at an end.
    pub fn wait<T>(
        &self,
        what: &str,
        teller: &dyn super::Teller,
        mut look: impl FnMut() -> Result<Result<T, String>, Refused>,
    ) -> Result<T, Refused> {
        let started = Instant::now();
        loop {
            let state = match look()? {
                Ok(there) => return Ok(there),
                Err(state) => state,
            };
            teller.waiting(what, &state);
            if started.elapsed() >= self.pace.patience {
                let minutes = self.pace.patience.as_secs() / 60;
                let text = format!(
                    "{what}: still {state} after {minutes} minutes; look at it in the AWS console, and \
                     run the same command again to go on waiting"
                );
                return Err(Refused::here(Class::Unreachable, text));
            }
            std::thread::sleep(self.pace.poll);
        }
    }
}

/// What happened, to what, what to do.
pub(super) fn refused(operation: &str, subject: &str, fault: Fault) -> Refused {
    let Fault { class, text, code } = fault;
    let advice = advice::about(operation, &code, class);
    let sentence = format!("{subject}: {operation} failed: {text}; {advice}");
    Refused { code, class, sentence }
}

fn jittered(pause: &mut Duration) -> Duration {
    let [random] = random_array::<1>();
    let chosen = *pause / 2 + *pause * u32::from(random) / 510;
    *pause = (*pause * 2).min(BACKOFF_MAX);
    chosen
}

/// The environment may say which credentials to use, but not where they are shown.
fn clients(shared: &SdkConfig, places: &Places, region: &str) -> Clients {
    let mut kms = aws_sdk_kms::config::Builder::from(shared);
    let mut cloudhsm = aws_sdk_cloudhsmv2::config::Builder::from(shared);
    let mut sts = aws_sdk_sts::config::Builder::from(shared);
    let of = |place: &Option<Endpoint>| place.as_ref().map(|place| place.url().to_owned());
    macro_rules! place {
        ($config:ident, $url:expr) => {
            let url = $url;
            if url.is_some() {
                $config.set_use_fips(Some(false));
                $config.set_use_dual_stack(Some(false));
            }
            $config.set_endpoint_url(url);
        };
    }
    place!(kms, places.kms.endpoint(region));
    place!(cloudhsm, of(&places.cloudhsm));
    place!(sts, of(&places.sts));
    Clients {
        kms: aws_sdk_kms::Client::from_conf(kms.build()),
        cloudhsm: aws_sdk_cloudhsmv2::Client::from_conf(cloudhsm.build()),
        sts: aws_sdk_sts::Client::from_conf(sts.build()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_refused_may_have_worked() {
        let refused =
            |code: &str, class| Refused { code: code.into(), class, sentence: String::new() };
        for (code, class) in [
            ("", Class::Unreachable),
            ("", Class::Transient),
            ("KMSInternalException", Class::Transient),
        ] {
            assert!(refused(code, class).may_have_worked(), "{code}");
        }
        for (code, class) in [
            ("CustomKeyStoreInvalidStateException", Class::Transient),
            ("LimitExceededException", Class::Misconfigured),
            ("AccessDeniedException", Class::Denied),
            ("ThrottlingException", Class::Throttled),
            ("", Class::Misconfigured),
        ] {
            assert!(!refused(code, class).may_have_worked(), "{code}");
        }
    }
}
