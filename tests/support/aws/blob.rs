//! Ciphertext blobs: opaque to everybody else, as those of the real service are.
//!
//! A blob is two sealed boxes: a head under the service's own key, which names the KMS key and its
//! material, and a body under that material with the encryption context as associated data.

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};

use super::api::{Context, random};

/// The largest blob there is.
pub const BLOB_MAX: usize = 6144;
/// Size of a blob of 32 bytes.
pub const BLOB_USUAL: usize = 184;

const NONCE: usize = 12;
const TAG: usize = 16;
const ID: usize = 40;
/// Id of the key, padded; number of its material; length of the plaintext.
const HEAD: usize = ID + 4 + 2;
const OVERHEAD: usize = 2 * (NONCE + TAG) + HEAD;

/// What the head of a blob says.
pub struct Head {
    /// Id of the KMS key.
    pub key: String,
    /// Which of its materials.
    pub material: usize,
    len: usize,
}

/// The smallest size a blob of 32 bytes can be set to.
pub fn smallest() -> usize {
    OVERHEAD + 32
}

/// Seals `plaintext`. A blob of 32 bytes is `size` long, others longer or shorter accordingly.
pub fn seal(
    service: &[u8; 32],
    head: (&str, usize),
    material: &[u8; 32],
    (plaintext, context): (&[u8], &Context),
    size: usize,
) -> Vec<u8> {
    let (key, number) = head;
    let total = (plaintext.len() + size - 32).min(BLOB_MAX);
    let mut front = key.as_bytes().to_vec();
    front.resize(ID, 0);
    front.extend((number as u32).to_be_bytes());
    front.extend((plaintext.len() as u16).to_be_bytes());
    let mut body = plaintext.to_vec();
    body.resize((total - OVERHEAD).max(plaintext.len()), 0);
    [close(service, &front, b"head"), close(material, &body, &canonical(context))].concat()
}

/// Which key a blob was made with; nothing for a damaged or foreign one.
pub fn head(service: &[u8; 32], blob: &[u8]) -> Option<Head> {
    let front = open(service, blob.get(..NONCE + HEAD + TAG)?, b"head")?;
    let id = std::str::from_utf8(&front[..ID]).ok()?.trim_end_matches('\0');
    let material = u32::from_be_bytes(front[ID..ID + 4].try_into().ok()?) as usize;
    let len = u16::from_be_bytes(front[ID + 4..].try_into().ok()?) as usize;
    Some(Head { key: id.to_owned(), material, len })
}

/// Opens the body of a blob.
pub fn body(head: &Head, material: &[u8; 32], blob: &[u8], context: &Context) -> Option<Vec<u8>> {
    let mut body = open(material, blob.get(NONCE + HEAD + TAG..)?, &canonical(context))?;
    body.truncate(head.len);
    Some(body)
}

/// The pairs in the order of their names, each part with its length.
fn canonical(context: &Context) -> Vec<u8> {
    let parts = context.iter().flat_map(|(name, value)| [name, value]);
    parts.flat_map(|p| [&(p.len() as u32).to_be_bytes()[..], p.as_bytes()].concat()).collect()
}

fn close(key: &[u8; 32], msg: &[u8], aad: &[u8]) -> Vec<u8> {
    let nonce: [u8; NONCE] = random();
    let cipher = Aes256Gcm::new(&(*key).into());
    let sealed = cipher.encrypt(&Nonce::from(nonce), Payload { msg, aad }).unwrap();
    [&nonce[..], &sealed].concat()
}

fn open(key: &[u8; 32], sealed: &[u8], aad: &[u8]) -> Option<Vec<u8>> {
    let (nonce, msg) = sealed.split_first_chunk::<NONCE>()?;
    let cipher = Aes256Gcm::new(&(*key).into());
    cipher.decrypt(&Nonce::from(*nonce), Payload { msg, aad }).ok()
}
