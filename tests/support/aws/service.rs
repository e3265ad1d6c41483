//! The way of a call: signature, faults, permission, quota, work, counters.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::api::{Call, Context, Fault, Outcome, now, uuid};
use super::counters::{Entry, OK};
use super::crypt::{self, Subject};
use super::faults::Effect;
use super::http::{Request, Response};
use super::principals::Principal;
use super::server::Shared;
use super::sign::{self, Wrong};
use super::world::World;
use super::{hsm, kms, sts};

/// How far the clock of a caller may be off, in seconds; AWS's own bound.
const CLOCK_MAX: u64 = 300;
/// How often a waiting call looks whether it may go on.
const TICK: Duration = Duration::from_millis(5);

/// What happens to a connection after a request.
pub enum Reply {
    /// It gets an answer.
    Answer(Response),
    /// It is closed.
    Close,
    /// It is reset.
    Reset,
}

/// A service that speaks awsJson1.1.
pub struct Service {
    /// What the target of its operations begins with.
    pub target: &'static str,
    /// The service in the scope of signatures.
    pub signing: &'static str,
    /// Which keys a call is about.
    pub subjects: fn(&World, &Call) -> Result<Vec<Subject>, Fault>,
    /// Does the work.
    pub run: fn(&mut World, &Call) -> Outcome,
}

impl Service {
    /// The fault under the name this service has for it.
    fn dialect(&self, mut fault: Fault) -> Fault {
        let own = match (self.signing, fault.code.as_str()) {
            ("cloudhsm", "AccessDeniedException") => "CloudHsmAccessDeniedException",
            ("cloudhsm", "KMSInternalException") => "CloudHsmInternalFailureException",
            _ => return fault,
        };
        fault.code = own.to_owned();
        fault
    }
}

const SERVICES: [Service; 2] = [kms::SERVICE, hsm::SERVICE];

/// Answers a request that is no control request.
pub fn serve(shared: &Shared, request: &Request) -> Reply {
    let target = request.header("x-amz-target").unwrap_or_default();
    for service in &SERVICES {
        let operation = target.strip_prefix(service.target).and_then(|s| s.strip_prefix('.'));
        if let Some(operation) = operation {
            return call(shared, request, service, operation);
        }
    }
    if request.header("x-amz-target").is_none() && request.method == "POST" {
        return Reply::Answer(sts::serve(&shared.world.lock(), request));
    }
    let fault = Fault::client("UnknownOperationException", "");
    Reply::Answer(json_response(&Err(fault), &uuid()))
}

fn call(shared: &Shared, request: &Request, service: &Service, operation: &str) -> Reply {
    let mut entry = Entry {
        time: 0.0,
        operation: operation.to_owned(),
        key: None,
        context: Context::new(),
        code: String::new(),
        lost: false,
        access_key: String::new(),
        user_agent: request.header("user-agent").unwrap_or_default().to_owned(),
        request_id: uuid(),
    };
    let id = entry.request_id.clone();
    let weight = if operation.starts_with("GenerateDataKey") { 3 } else { 1 };
    let finish = |mut entry: Entry, code: &str| {
        entry.code = code.to_owned();
        shared.world.lock().counters.record(entry, weight);
    };
    let mut world = shared.world.lock();
    world.settle();
    let prepared = authenticate(&world, request, service.signing)
        .and_then(|who| Ok((who, parameters(&request.body)?)));
    let (who, body) = match prepared {
        Ok(both) => both,
        Err(fault) => {
            let clock = world.switches.clock;
            drop(world);
            finish(entry, &fault.code);
            let response = json_response(&Err(service.dialect(fault)), &id);
            return Reply::Answer(dated(response, clock));
        }
    };
    let call = Call { operation, who: &who, body: &body };
    let subjects = (service.subjects)(&world, &call);
    entry.access_key = who.access_key.clone();
    let keys = describe(&world, &subjects, &mut entry);
    let (wait, effect) = world.rules.apply(service.signing, operation, &keys);
    let wait = wait + world.switches.latency;
    drop(world);
    rest(shared, wait);
    match effect {
        Some((number, Effect::Hang)) => {
            while shared.world.lock().rules.has(number) && !shared.stopped() {
                std::thread::sleep(TICK);
            }
            finish(entry, "hang");
            return Reply::Close;
        }
        Some((_, Effect::Reset)) => {
            finish(entry, "reset");
            return Reply::Reset;
        }
        _ => {}
    }
    let mut world = shared.world.lock();
    world.settle();
    let lost = matches!(effect, Some((_, Effect::Drop)));
    let outcome = decide(&mut world, &call, service, subjects, effect.map(|(_, effect)| effect));
    let outcome = outcome.map_err(|fault| service.dialect(fault));
    let clock = world.switches.clock;
    drop(world);
    entry.lost = lost;
    finish(entry, outcome.as_ref().map_or_else(|fault| fault.code.as_str(), |_| OK));
    if lost { Reply::Close } else { Reply::Answer(dated(json_response(&outcome, &id), clock)) }
}

/// With the date, by a clock that may be off.
fn dated(mut response: Response, clock: i64) -> Response {
    response.headers.push(("date".to_owned(), sign::http_date(now() as i64 + clock)));
    response
}

/// Waits, but not beyond the end of the fake.
fn rest(shared: &Shared, wait: Duration) {
    let end = Instant::now() + wait;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || shared.stopped() {
            return;
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}

/// Puts what a call is about into its entry of the log; the ids of the keys.
fn describe(
    world: &World,
    subjects: &Result<Vec<Subject>, Fault>,
    entry: &mut Entry,
) -> Vec<String> {
    let Ok(subjects) = subjects else { return Vec::new() };
    if let Some(first) = subjects.first() {
        entry.key = first.key.as_ref().map(|id| world.keys[id].arn.clone());
        entry.context = first.context.clone().unwrap_or_default();
    }
    subjects.iter().filter_map(|subject| subject.key.clone()).collect()
}

fn decide(
    world: &mut World,
    call: &Call,
    service: &Service,
    subjects: Result<Vec<Subject>, Fault>,
    effect: Option<Effect>,
) -> Outcome {
    if let Some(Effect::Error(fault)) = effect {
        return Err(fault);
    }
    let subjects = subjects?;
    charge(world, call, &subjects)?;
    for subject in &subjects {
        let resource = match subject.key.as_ref().and_then(|id| world.keys.get(id)) {
            Some(key) => key.arn.clone(),
            None => "*".to_owned(),
        };
        let explicit = effect == Some(Effect::Deny);
        let (action, context) = (&subject.action, subject.context.as_ref());
        let arn = call.who.arn(&world.account);
        let granted = |id: &String| world.granted(&arn, id, action, context);
        let may = call.who.may(service.signing, action, &resource, context)
            || (!call.who.denies(service.signing, action)
                && subject.key.as_ref().is_some_and(granted));
        if explicit || !may {
            let action = format!("{}:{action}", service.signing);
            return Err(call.who.denied(&world.account, &action, &resource, explicit));
        }
    }
    if world.switches.strict_context {
        let mut contexts = subjects.iter().filter_map(|subject| subject.context.as_ref());
        if !contexts.all(crypt::is_kmsfs_context) {
            world.counters.bad_context += 1;
            return Err(Fault::validation("Strict checking: not an encryption context of kmsfs."));
        }
    }
    (service.run)(world, call)
}

/// Takes the units of a cryptographic call from the quota of each store it uses.
fn charge(world: &mut World, call: &Call, subjects: &[Subject]) -> Result<(), Fault> {
    let Some(rate) = world.switches.quota else { return Ok(()) };
    if !crypt::is_mine(call.operation) {
        return Ok(());
    }
    let units = if call.operation.starts_with("GenerateDataKey") { 3.0 } else { 1.0 };
    let keys = subjects.iter().filter_map(|subject| world.keys.get(subject.key.as_ref()?));
    let mut stores: Vec<String> = keys.filter_map(|key| key.store.clone()).collect();
    stores.extend(call.text("CustomKeyStoreId", 1..=64)?.map(str::to_owned));
    stores.dedup();
    for id in stores {
        let store = world.stores.get_mut(&id);
        if store.is_some_and(|store| !store.bucket.take(rate, units)) {
            return Err(Fault::throttled());
        }
    }
    Ok(())
}

fn parameters(body: &[u8]) -> Result<Map<String, Value>, Fault> {
    let fault = || Fault::client("SerializationException", "The body is not a JSON object.");
    match serde_json::from_slice(body) {
        Ok(Value::Object(members)) => Ok(members),
        _ => Err(fault()),
    }
}

/// Who signed a request.
pub fn authenticate(world: &World, request: &Request, service: &str) -> Result<Principal, Fault> {
    let unknown = || {
        let text = "The security token included in the request is invalid.";
        Fault::client("UnrecognizedClientException", text)
    };
    let signed = sign::parse(request).map_err(wrong)?;
    let who = world.principals.get(signed.access_key).ok_or_else(unknown)?;
    if who.token.as_deref() != request.header("x-amz-security-token") {
        return Err(unknown());
    }
    if who.expired || world.switches.expired {
        let text = "The security token included in the request is expired";
        return Err(Fault::client("ExpiredTokenException", text));
    }
    if world.switches.clock.unsigned_abs() > CLOCK_MAX {
        return Err(wrong(Wrong::Clock));
    }
    if world.switches.signatures {
        signed.check(request, &who.secret, &world.region, service).map_err(wrong)?;
    }
    Ok(who.clone())
}

fn wrong(wrong: Wrong) -> Fault {
    let invalid = |text: &str| Fault::client("InvalidSignatureException", text);
    match wrong {
        Wrong::Missing => {
            Fault::client("MissingAuthenticationTokenException", "Missing Authentication Token")
        }
        Wrong::Incomplete(what) => Fault::client(
            "IncompleteSignatureException",
            format!("Authorization header requires a proper '{what}'."),
        ),
        Wrong::Scope(text) => invalid(&text),
        Wrong::Clock => invalid("Signature expired or not yet current: the clocks differ."),
        Wrong::Mismatch => invalid(
            "The request signature we calculated does not match the signature you provided. Check \
             your AWS Secret Access Key and signing method. Consult the service documentation for \
             details.",
        ),
    }
}

fn json_response(outcome: &Outcome, id: &str) -> Response {
    let (status, body) = match outcome {
        // An operation without output has an empty body.
        Ok(Value::Null) => (200, Vec::new()),
        Ok(value) => (200, value.to_string().into_bytes()),
        Err(fault) => {
            let mut body = json!({ "__type": fault.code });
            if !fault.message.is_empty() {
                // As the models have it; clients are expected to look for both.
                let cloudhsm =
                    fault.code.starts_with("CloudHsm") && !fault.code.contains("Cluster");
                let member = if cloudhsm { "Message" } else { "message" };
                body[member] = json!(fault.message);
            }
            (fault.status, body.to_string().into_bytes())
        }
    };
    let headers = vec![
        ("x-amzn-requestid".to_owned(), id.to_owned()),
        ("content-type".to_owned(), "application/x-amz-json-1.1".to_owned()),
    ];
    Response { status, headers, body }
}
