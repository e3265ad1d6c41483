//! `kmsfs.dir`: the authenticated id of a directory.
//!
//! Must not know where the directory is or what is in it.

use super::bytes::Reader;
use super::{DirId, FormatError, VERSION, check_version};

/// Bytes of the file.
pub const DIRFILE_LEN: usize = 128;
/// File name in every directory of the backing tree.
pub const DIRFILE_NAME: &str = "kmsfs.dir";

const MAGIC: &[u8; 8] = b"KMSFSDIR";
/// Bytes under the MAC.
const MACED: usize = DIRFILE_LEN - 32;

/// Encodes a directory file; `mac` is the directory MAC of the bytes before it.
pub fn encode(id: DirId, mac: impl FnOnce(&[u8]) -> [u8; 32]) -> [u8; DIRFILE_LEN] {
    let mut out = [0; DIRFILE_LEN];
    out[..8].copy_from_slice(MAGIC);
    out[8..10].copy_from_slice(&VERSION.to_le_bytes());
    out[16..32].copy_from_slice(&id.0);
    let mac = mac(&out[..MACED]);
    out[MACED..].copy_from_slice(&mac);
    out
}

/// Decodes and authenticates. Checks in this order: length, magic, version, MAC, reserved bytes,
/// parent binding (zero in version 1), reserved bytes.
pub fn decode(
    bytes: &[u8],
    mac_ok: impl FnOnce(&[u8], &[u8; 32]) -> bool,
) -> Result<DirId, FormatError> {
    let bytes: &[u8; DIRFILE_LEN] =
        bytes.try_into().map_err(|_| FormatError::Length(bytes.len()))?;
    let mut r = Reader::new(bytes, "directory file");
    if r.array()? != *MAGIC {
        return Err(FormatError::Magic);
    }
    check_version(r.u16()?)?;
    let (maced, mac) = bytes.split_last_chunk::<32>().ok_or(FormatError::Length(bytes.len()))?;
    if !mac_ok(maced, mac) {
        return Err(FormatError::Mac);
    }
    r.zero(6, "directory reserved")?;
    let id = DirId(r.array()?);
    r.zero(48, "parent binding")?;
    r.zero(16, "directory reserved")?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::testing::{mac, mac_ok, remac};

    fn valid() -> [u8; DIRFILE_LEN] {
        encode(DirId(*b"0123456789abcdef"), mac)
    }

    #[test]
    fn round_trip_and_places() {
        let bytes = valid();
        assert_eq!(decode(&bytes, mac_ok), Ok(DirId(*b"0123456789abcdef")));
        assert_eq!(&bytes[..10], b"KMSFSDIR\x01\x00");
        assert_eq!(&bytes[16..32], b"0123456789abcdef");
        assert_eq!(bytes[96..], mac(&bytes[..96]));
    }

    #[test]
    fn every_check_in_its_order() {
        for len in (0..128).chain([129, 256]) {
            assert_eq!(decode(&vec![0; len], mac_ok), Err(FormatError::Length(len)));
        }
        let mut bytes = valid();
        bytes[20] ^= 1;
        assert_eq!(decode(&bytes, mac_ok), Err(FormatError::Mac));
        bytes[8] = 2;
        assert_eq!(decode(&bytes, mac_ok), Err(FormatError::Version(2)));
        bytes[8] = 0;
        assert_eq!(decode(&bytes, mac_ok), Err(FormatError::Field("version")));
        bytes[0] ^= 1;
        assert_eq!(decode(&bytes, mac_ok), Err(FormatError::Magic));
    }

    #[test]
    fn reserved_bytes_are_zero() {
        for i in (10..16).chain(32..96) {
            let mut bytes = valid();
            bytes[i] = 1;
            assert_eq!(decode(&bytes, mac_ok), Err(FormatError::Mac));
            remac(&mut bytes, 0);
            let field = if (32..80).contains(&i) { "parent binding" } else { "directory reserved" };
            assert_eq!(decode(&bytes, mac_ok), Err(FormatError::Field(field)), "byte {i}");
        }
    }

    #[test]
    fn golden_bytes() {
        let text: String = valid()[..96].iter().map(|b| format!("{b:02x}")).collect();
        let golden = format!(
            "4b4d5346534449520100000000000000{}{}",
            "30313233343536373839616263646566",
            "0".repeat(128)
        );
        assert_eq!(text, golden, "version bump required");
    }
}
