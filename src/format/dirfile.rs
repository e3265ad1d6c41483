//! `kmsfs.dir`: the authenticated id of a directory.

use super::{DirId, FormatError};

/// Bytes of the file.
pub const DIRFILE_LEN: usize = 128;

/// Encodes a directory file.
pub fn encode(id: DirId, mac: impl FnOnce(&[u8]) -> [u8; 32]) -> [u8; DIRFILE_LEN] {
    todo!()
}
/// Decodes and authenticates.
pub fn decode(
    bytes: &[u8],
    mac_ok: impl FnOnce(&[u8], &[u8; 32]) -> bool,
) -> Result<DirId, FormatError> {
    todo!()
}
