//! Requests to a process that has the volume in use, as bytes, and its answers. One JSON object each:
//! it is for two programs of one host, and new members can be added.

use super::{Rewrapped, Rewrapping, Volume};
use crate::crypto::random_array;
use crate::format::header::{KeySlot, Recipient};
use crate::fs::error::{FsError, FsResult};
use crate::fs::rewrap::{Change, Plan};
use crate::fs::volume::{OpenError, exit};
use data_encoding::{BASE64, HEXLOWER};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

#[derive(Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
enum Body {
    /// [`Volume::adopt_descriptor`].
    Adopt { descriptor: String },
    /// [`Volume::check_descriptor`].
    Check { descriptor: String },
    /// [`Volume::rewrap_files`].
    Rewrap(Batch),
}

/// Files that share slots name them once.
#[derive(Serialize, Deserialize, Default)]
struct Batch {
    touch: bool,
    changes: Vec<WireChange>,
    files: Vec<WireFile>,
}

#[derive(Serialize, Deserialize, PartialEq, Eq, Hash, Clone)]
struct WireChange {
    old: String,
    new: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct WireFile {
    path: String,
    current: usize,
    next: Option<usize>,
}

#[derive(Serialize, Deserialize)]
struct Answer {
    /// Why all of it was refused.
    error: Option<String>,
    exit: i32,
    /// One for each file.
    #[serde(default)]
    files: Vec<Outcome>,
}

#[derive(Serialize, Deserialize)]
struct Outcome {
    done: bool,
    error: Option<String>,
}

/// Names a request; no two are the same.
pub fn ticket() -> String {
    HEXLOWER.encode(&random_array::<16>())
}

/// Asks for [`Volume::adopt_descriptor`].
pub fn adopt(descriptor: &[u8]) -> Vec<u8> {
    bytes(&Body::Adopt { descriptor: BASE64.encode(descriptor) })
}

/// Asks for [`Volume::check_descriptor`].
pub fn check(descriptor: &[u8]) -> Vec<u8> {
    bytes(&Body::Check { descriptor: BASE64.encode(descriptor) })
}

/// Asks for [`Volume::rewrap_files`] in requests of at most `longest` bytes, each with the number of
/// files it is about.
pub fn rewrap(files: &[Rewrapping], touch: bool, longest: usize) -> Vec<(usize, Vec<u8>)> {
    let mut requests = Vec::new();
    let mut batch = Batch { touch, ..Batch::default() };
    let (mut known, mut size) = (HashMap::new(), 0);
    for file in files {
        let changes: Vec<WireChange> =
            std::iter::once(&file.plan.current).chain(&file.plan.next).map(wire).collect();
        let path = BASE64.encode(&file.path);
        let fresh = |change: &&WireChange| !known.contains_key(*change);
        let length = |c: &WireChange| c.old.len() + c.new.as_ref().map_or(0, String::len) + 32;
        let mut more = path.len() + 64 + changes.iter().filter(fresh).map(length).sum::<usize>();
        if size + more > longest && !batch.files.is_empty() {
            let full = std::mem::replace(&mut batch, Batch { touch, ..Batch::default() });
            requests.push((full.files.len(), bytes(&Body::Rewrap(full))));
            known.clear();
            more = path.len() + 64 + changes.iter().map(length).sum::<usize>();
            size = 0;
        }
        size += more;
        let mut places = changes.into_iter().map(|change| {
            let next = known.len();
            *known.entry(change.clone()).or_insert_with(|| {
                batch.changes.push(change);
                next
            })
        });
        let (current, next) = (places.next().unwrap_or_default(), places.next());
        drop(places);
        batch.files.push(WireFile { path, current, next });
    }
    if !batch.files.is_empty() {
        requests.push((batch.files.len(), bytes(&Body::Rewrap(batch))));
    }
    requests
}

/// What an answer says of each file, or why all of it was refused.
pub fn outcomes(answer: &[u8], files: usize) -> Result<Vec<FsResult<bool>>, OpenError> {
    let strange = || OpenError::new(exit::FAILURE, "the daemon's answer is not understood".into());
    let answer: Answer = serde_json::from_slice(answer).map_err(|_| strange())?;
    if let Some(error) = answer.error {
        return Err(OpenError::new(answer.exit, error));
    }
    if answer.files.len() != files {
        return Err(strange());
    }
    let outcome = |outcome: Outcome| match outcome.error {
        Some(error) => Err(FsError::Damaged(error)),
        None => Ok(outcome.done),
    };
    Ok(answer.files.into_iter().map(outcome).collect())
}

impl Volume {
    /// Does what a request asks for, and answers.
    pub fn carry_out(&self, request: &[u8]) -> Vec<u8> {
        let answer = self.try_carry_out(request).unwrap_or_else(|error| Answer {
            error: Some(error.message),
            exit: error.exit_code,
            files: vec![],
        });
        bytes(&answer)
    }

    fn try_carry_out(&self, request: &[u8]) -> Result<Answer, OpenError> {
        let bad = || OpenError::new(exit::FAILURE, "the request is not understood".to_owned());
        let decoded = |text: &str| BASE64.decode(text.as_bytes()).map_err(|_| bad());
        let mut files = vec![];
        match serde_json::from_slice(request).map_err(|_| bad())? {
            Body::Adopt { descriptor } => self.adopt_descriptor(&decoded(&descriptor)?)?,
            Body::Check { descriptor } => self.check_descriptor(&decoded(&descriptor)?)?,
            Body::Rewrap(batch) => {
                let touch = batch.touch;
                let wanted = read(batch).ok_or_else(bad)?;
                let outcome = |outcome: FsResult<Rewrapped>| match outcome {
                    Ok(rewrapped) => Outcome { done: rewrapped == Rewrapped::Done, error: None },
                    Err(error) => Outcome { done: false, error: Some(error.to_string()) },
                };
                files = self.rewrap_files(&wanted, touch).into_iter().map(outcome).collect();
            }
        }
        Ok(Answer { error: None, exit: 0, files })
    }
}

fn bytes(value: &impl Serialize) -> Vec<u8> {
    // Strings, numbers and lists only: nothing that JSON could not say.
    serde_json::to_vec(value).unwrap_or_default()
}

fn wire(change: &Change) -> WireChange {
    let of = |recipients: &[Recipient]| {
        encode(&KeySlot {
            data_key_id: change.old.data_key_id,
            // Each file has another one.
            commitment: [0; 32],
            recipients: recipients.to_vec(),
        })
    };
    WireChange { old: of(&change.old.recipients), new: change.new.as_deref().map(of) }
}

fn encode(slot: &KeySlot) -> String {
    let mut bytes = vec![0; slot.encoded_len()];
    match slot.encode(&mut bytes) {
        Ok(()) => BASE64.encode(&bytes),
        // Nothing reads it: the other side refuses it.
        Err(_) => String::new(),
    }
}

fn decode(text: &str) -> Option<KeySlot> {
    KeySlot::decode(&BASE64.decode(text.as_bytes()).ok()?).ok()?
}

fn read(batch: Batch) -> Option<Vec<Rewrapping>> {
    let changes: Option<Vec<Change>> = batch
        .changes
        .iter()
        .map(|change| {
            let new = match &change.new {
                Some(text) => Some(decode(text)?.recipients),
                None => None,
            };
            Some(Change { old: decode(&change.old)?, new })
        })
        .collect();
    let changes = changes?;
    let file = |file: &WireFile| -> Option<Rewrapping> {
        let next = match file.next {
            Some(at) => Some(changes.get(at)?.clone()),
            None => None,
        };
        let plan = Plan { current: changes.get(file.current)?.clone(), next };
        Some(Rewrapping { path: BASE64.decode(file.path.as_bytes()).ok()?, plan })
    };
    batch.files.iter().map(file).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::DataKeyId;
    use crate::format::header::RecipientKind;

    fn slot(id: u8, wrapped: usize) -> KeySlot {
        let kind = RecipientKind::AwsKms;
        let copy =
            Recipient { kind, epoch: 1, key_ref: b"arn".to_vec(), wrapped: vec![id; wrapped] };
        KeySlot { data_key_id: DataKeyId([id; 16]), commitment: [id; 32], recipients: vec![copy] }
    }

    fn file(name: &str, id: u8, next: bool) -> Rewrapping {
        let change = |id| Change { old: slot(id, 200), new: Some(slot(id + 100, 300).recipients) };
        let plan = Plan { current: change(id), next: next.then(|| change(id + 1)) };
        Rewrapping { path: name.as_bytes().to_vec(), plan }
    }

    #[test]
    fn requests_are_short_name_shared_slots_once_and_are_read_as_written() {
        let files: Vec<_> =
            (0..300).map(|n| file(&format!("a/{n}"), n as u8 / 10, n % 3 == 0)).collect();
        let requests = rewrap(&files, true, 8192);
        assert!(requests.len() > 2 && requests.iter().all(|(_, bytes)| bytes.len() <= 8192));
        let mut read_back = Vec::new();
        for (number, request) in &requests {
            let Ok(Body::Rewrap(batch)) = serde_json::from_slice(request) else { panic!() };
            assert!(batch.touch && batch.files.len() == *number);
            assert!(batch.changes.len() < batch.files.len());
            read_back.extend(read(batch).expect("readable"));
        }
        assert_eq!(read_back.len(), files.len());
        let same = |a: &Change, b: &Change| {
            a.old.recipients == b.old.recipients
                && a.old.data_key_id == b.old.data_key_id
                && a.new == b.new
        };
        for (a, b) in read_back.iter().zip(&files) {
            assert_eq!(a.path, b.path);
            assert!(same(&a.plan.current, &b.plan.current));
            match (&a.plan.next, &b.plan.next) {
                (Some(a), Some(b)) => assert!(same(a, b)),
                (None, None) => {}
                _ => panic!("a slot was lost or found"),
            }
        }
    }

    #[test]
    fn what_is_no_request_or_answer_is_refused() {
        for bytes in [&b""[..], b"{}", b"{\"do\":\"rewrap\"}", b"[1]"] {
            assert!(serde_json::from_slice::<Body>(bytes).is_err());
        }
        let batch = Batch {
            files: vec![WireFile { path: "".into(), current: 0, next: None }],
            ..Batch::default()
        };
        assert!(read(batch).is_none());
        assert!(outcomes(b"{\"error\":null,\"exit\":0,\"files\":[]}", 1).is_err());
        let refused = outcomes(b"{\"error\":\"no\",\"exit\":18}", 1).expect_err("refused");
        assert_eq!((refused.exit_code, refused.message.as_str()), (18, "no"));
    }
}
