//! What calls bring and what they get: inputs with AWS's validation, faults with AWS's names.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::{SystemTime, UNIX_EPOCH};

use data_encoding::{BASE64, HEXLOWER};
use serde_json::{Map, Value, json};

use super::principals::Principal;

/// Pairs that a ciphertext is bound to.
pub type Context = BTreeMap<String, String>;

/// What an operation answers.
pub type Outcome = Result<Value, Fault>;

/// The most bytes a context may have, names and values together.
const CONTEXT_MAX: usize = 8192;

/// An error as it goes over the wire.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// HTTP status.
    pub status: u16,
    /// The exception's name.
    pub code: String,
    /// Text for people.
    pub message: String,
}

impl Fault {
    /// Something the caller did (HTTP 400).
    pub fn client(code: &str, message: impl Into<String>) -> Fault {
        Fault { status: 400, code: code.to_owned(), message: message.into() }
    }

    /// Something the service did.
    pub fn server(status: u16, code: &str) -> Fault {
        let message = "The request was rejected because an internal exception occurred.";
        Fault { status, code: code.to_owned(), message: message.to_owned() }
    }

    /// A parameter out of its limits.
    pub fn validation(message: impl Into<String>) -> Fault {
        Fault::client("ValidationException", message)
    }

    /// The request rate is above what is allowed.
    pub fn throttled() -> Fault {
        Fault::client(
            "ThrottlingException",
            "You have exceeded the rate at which you may call KMS. Reduce the frequency of your \
             calls.",
        )
    }

    fn constraint(name: &str, value: &str, rule: &str) -> Fault {
        let name = format!("{}{}", name[..1].to_lowercase(), &name[1..]);
        Fault::validation(format!(
            "1 validation error detected: Value {value} at '{name}' failed to satisfy constraint: \
             Member must {rule}"
        ))
    }

    fn kind(name: &str) -> Fault {
        Fault::client("SerializationException", format!("{name} has the wrong type"))
    }
}

/// One call: who asks, and the parameters.
pub struct Call<'a> {
    /// Name of the operation, without the service.
    pub operation: &'a str,
    /// Who signed it.
    pub who: &'a Principal,
    /// The parameters.
    pub body: &'a Map<String, Value>,
}

impl<'a> Call<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.body.get(name).filter(|value| !value.is_null())
    }

    /// A text that may be missing.
    pub fn text(&self, name: &str, len: RangeInclusive<usize>) -> Result<Option<&'a str>, Fault> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let text = value.as_str().ok_or_else(|| Fault::kind(name))?;
        let (quoted, count) = (format!("'{text}'"), text.chars().count());
        if count > *len.end() {
            let rule = format!("have length less than or equal to {}", len.end());
            return Err(Fault::constraint(name, &quoted, &rule));
        }
        if count < *len.start() {
            let rule = format!("have length greater than or equal to {}", len.start());
            return Err(Fault::constraint(name, &quoted, &rule));
        }
        Ok(Some(text))
    }

    /// A text that must be there.
    pub fn need(&self, name: &str, len: RangeInclusive<usize>) -> Result<&'a str, Fault> {
        self.text(name, len)?.ok_or_else(|| Fault::constraint(name, "null", "not be null"))
    }

    /// The name of a key in any of its forms.
    pub fn key(&self, name: &str) -> Result<&'a str, Fault> {
        self.need(name, 1..=2048)
    }

    /// One word of a list.
    pub fn word(&self, name: &str, words: &[&str]) -> Result<Option<&'a str>, Fault> {
        match self.text(name, 0..=usize::MAX)? {
            Some(word) if !words.contains(&word) => {
                let rule = format!("satisfy enum value set: [{}]", words.join(", "));
                Err(Fault::constraint(name, &format!("'{word}'"), &rule))
            }
            word => Ok(word),
        }
    }

    /// A number that may be missing.
    pub fn number(&self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, Fault> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let number = value.as_i64().ok_or_else(|| Fault::kind(name))?;
        let quoted = format!("'{number}'");
        if number < *range.start() {
            let rule = format!("have value greater than or equal to {}", range.start());
            return Err(Fault::constraint(name, &quoted, &rule));
        }
        if number > *range.end() {
            let rule = format!("have value less than or equal to {}", range.end());
            return Err(Fault::constraint(name, &quoted, &rule));
        }
        Ok(Some(number))
    }

    /// A flag; missing is false.
    pub fn flag(&self, name: &str) -> Result<bool, Fault> {
        match self.get(name) {
            None => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| Fault::kind(name)),
        }
    }

    /// Bytes that may be missing.
    pub fn bytes(&self, name: &str, most: usize) -> Result<Option<Vec<u8>>, Fault> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let text = value.as_str().ok_or_else(|| Fault::kind(name))?;
        let bytes = BASE64.decode(text.as_bytes()).map_err(|_| Fault::kind(name))?;
        if bytes.is_empty() {
            let rule = "have length greater than or equal to 1";
            return Err(Fault::constraint(name, "at", rule));
        }
        if bytes.len() > most {
            let rule = format!("have length less than or equal to {most}");
            return Err(Fault::constraint(name, "at", &rule));
        }
        Ok(Some(bytes))
    }

    /// Bytes that must be there.
    pub fn need_bytes(&self, name: &str, most: usize) -> Result<Vec<u8>, Fault> {
        self.bytes(name, most)?.ok_or_else(|| Fault::constraint(name, "null", "not be null"))
    }

    /// An encryption context; missing is empty.
    pub fn context(&self, name: &str) -> Result<Context, Fault> {
        let Some(value) = self.get(name) else { return Ok(Context::new()) };
        let pairs = value.as_object().ok_or_else(|| Fault::kind(name))?;
        let mut context = Context::new();
        for (key, value) in pairs {
            let value = value.as_str().ok_or_else(|| Fault::kind(name))?;
            if key.is_empty() {
                return Err(Fault::validation("The encryption context has an empty key."));
            }
            context.insert(key.clone(), value.to_owned());
        }
        let size: usize = context.iter().map(|(k, v)| k.len() + v.len()).sum();
        if size > CONTEXT_MAX {
            return Err(Fault::validation("The encryption context is too large."));
        }
        Ok(context)
    }

    /// A list; missing is empty.
    pub fn list(&self, name: &str) -> Result<&'a [Value], Fault> {
        match self.get(name) {
            None => Ok(&[]),
            Some(value) => Ok(value.as_array().ok_or_else(|| Fault::kind(name))?),
        }
    }

    /// Part of a list, as `Limit` and `Marker` ask for it, under `name`.
    pub fn page(&self, name: &str, items: Vec<Value>, usual: usize) -> Outcome {
        let limit = self.number("Limit", 1..=1000)?.map_or(usual, |n| n as usize);
        let from = match self.text("Marker", 1..=1024)? {
            None => 0,
            Some(marker) => HEXLOWER
                .decode(marker.as_bytes())
                .ok()
                .and_then(|bytes| String::from_utf8(bytes).ok()?.parse().ok())
                .filter(|from| *from <= items.len())
                .ok_or_else(|| Fault::client("InvalidMarkerException", "Invalid marker"))?,
        };
        let left = items.len() - from;
        let part: Vec<Value> = items.into_iter().skip(from).take(limit).collect();
        let mut answer = json!({ name: part, "Truncated": left > limit });
        if left > limit {
            answer["NextMarker"] = json!(HEXLOWER.encode((from + limit).to_string().as_bytes()));
        }
        Ok(answer)
    }
}

/// Whether `pattern`, which may end in `*`, names `word`.
pub fn matches(pattern: &str, word: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => word.starts_with(start),
        None => pattern == word,
    }
}

/// Seconds since 1970, as timestamps go over the wire.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as f64 / 1000.0
}

/// Random bytes.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

/// A fresh random UUID.
pub fn uuid() -> String {
    let mut bytes: [u8; 16] = random();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = HEXLOWER.encode(&bytes);
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}
