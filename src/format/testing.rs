//! What the tests of this layer share: a stand-in MAC, for the layer has no keys.

use sha2::{Digest, Sha256};

/// Any function of all bytes does: these tests are about structure.
pub fn mac(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}
/// Checks [`mac`].
pub fn mac_ok(bytes: &[u8], stored: &[u8; 32]) -> bool {
    mac(bytes) == *stored
}
/// Puts the right MAC back at the end of `bytes[from..]`, after a test has changed something.
pub fn remac(bytes: &mut [u8], from: usize) {
    let end = bytes.len() - 32;
    let right = mac(&bytes[from..end]);
    bytes[end..].copy_from_slice(&right);
}
