//! What the volume key becomes: MAC keys, names, symlinks, xattrs.
//!
//! All of it is derived once per mount and used from every thread without a lock.

use super::mac::{self, MacKey};
use super::{AuthError, Secret, siv};
use crate::format::{DirId, VolumeId};
use crate::sys::{self, Locked};
use data_encoding::BASE64URL_NOPAD;

/// The volume key.
pub struct VolumeKey(pub Secret<32>);

/// Keys derived from the volume key; thread-safe, shared by the whole mount.
pub struct VolumeKeys {
    macs: Locked<Macs>,
    names: Secret<64>,
    symlinks: Secret<64>,
    xattrs: Secret<64>,
    journal: Secret<32>,
}

struct Macs {
    header: MacKey,
    descriptor: MacKey,
    directory: MacKey,
    journal: MacKey,
}

/// The key of one epoch of a journal.
pub struct JournalKey(Locked<MacKey>);

impl JournalKey {
    /// MAC of a record.
    pub fn mac(&self, bytes: &[u8]) -> [u8; 32] {
        self.0.mac(&[bytes])
    }
    /// Constant-time check of a record's MAC.
    pub fn mac_ok(&self, bytes: &[u8], mac: &[u8; 32]) -> bool {
        self.0.verifies(bytes, mac)
    }
}

impl VolumeKeys {
    /// Derives all of them.
    pub fn derive(key: &VolumeKey, volume: VolumeId) -> Self {
        fn subkey<const N: usize>(key: &VolumeKey, volume: VolumeId, name: &[u8]) -> Secret<N> {
            mac::hkdf(key.0.expose(), &volume.0, &[b"kmsfs v1 ", name])
        }
        let keys = Self {
            macs: Locked::new(Macs {
                header: MacKey::new(&subkey(key, volume, b"header mac")),
                descriptor: MacKey::new(&subkey(key, volume, b"descriptor mac")),
                directory: MacKey::new(&subkey(key, volume, b"directory mac")),
                journal: MacKey::new(&subkey(key, volume, b"journal head mac")),
            }),
            names: subkey(key, volume, b"names"),
            symlinks: subkey(key, volume, b"symlinks"),
            xattrs: subkey(key, volume, b"xattrs"),
            journal: subkey(key, volume, b"journal"),
        };
        // Last: every derivation leaves the end of its output on the stack.
        sys::scrub_stack();
        keys
    }
    /// Header MAC.
    pub fn header_mac(&self, bytes: &[u8]) -> [u8; 32] {
        self.macs.header.mac(&[bytes])
    }
    /// Constant-time check of a header MAC.
    pub fn header_mac_ok(&self, bytes: &[u8], mac: &[u8; 32]) -> bool {
        self.macs.header.verifies(bytes, mac)
    }
    /// Descriptor MAC.
    pub fn descriptor_mac(&self, bytes: &[u8]) -> [u8; 32] {
        self.macs.descriptor.mac(&[bytes])
    }
    /// Constant-time check of a descriptor MAC.
    pub fn descriptor_mac_ok(&self, bytes: &[u8], mac: &[u8; 32]) -> bool {
        self.macs.descriptor.verifies(bytes, mac)
    }
    /// Directory MAC.
    pub fn directory_mac(&self, bytes: &[u8]) -> [u8; 32] {
        self.macs.directory.mac(&[bytes])
    }
    /// Constant-time check of a directory MAC.
    pub fn directory_mac_ok(&self, bytes: &[u8], mac: &[u8; 32]) -> bool {
        self.macs.directory.verifies(bytes, mac)
    }
    /// MAC of a journal's head.
    pub fn journal_mac(&self, bytes: &[u8]) -> [u8; 32] {
        self.macs.journal.mac(&[bytes])
    }
    /// Constant-time check of a journal head's MAC.
    pub fn journal_mac_ok(&self, bytes: &[u8], mac: &[u8; 32]) -> bool {
        self.macs.journal.verifies(bytes, mac)
    }
    /// The key of the records of one epoch.
    pub fn journal_key(&self, epoch: &[u8; 16]) -> JournalKey {
        let root = mac::hkdf_from_key(&self.journal);
        let key: Secret<32> = mac::expand(&root, &[b"kmsfs v1 journal epoch", epoch]);
        let key = JournalKey(Locked::new(MacKey::new(&key)));
        sys::scrub_stack();
        key
    }
    /// SIV of a name within its directory (16 bytes longer than the name).
    pub fn seal_name(&self, dir: DirId, name: &[u8]) -> Vec<u8> {
        siv::seal(&self.names, &[&dir.0], name)
    }
    /// Reverses [`Self::seal_name`].
    pub fn open_name(&self, dir: DirId, sealed: &[u8]) -> Result<Vec<u8>, AuthError> {
        siv::open(&self.names, &[&dir.0], sealed)
    }
    /// SIV of a symlink target.
    pub fn seal_symlink(&self, target: &[u8]) -> Vec<u8> {
        siv::seal(&self.symlinks, &[b"symlink"], target)
    }
    /// Reverses [`Self::seal_symlink`].
    pub fn open_symlink(&self, sealed: &[u8]) -> Result<Vec<u8>, AuthError> {
        siv::open(&self.symlinks, &[b"symlink"], sealed)
    }
    /// SIV of an attribute name within its object.
    pub fn seal_xattr_name(&self, object: &[u8; 16], name: &[u8]) -> Vec<u8> {
        siv::seal(&self.xattrs, &[object, b"name"], name)
    }
    /// Reverses [`Self::seal_xattr_name`].
    pub fn open_xattr_name(&self, object: &[u8; 16], sealed: &[u8]) -> Result<Vec<u8>, AuthError> {
        siv::open(&self.xattrs, &[object, b"name"], sealed)
    }
    /// SIV of an attribute value.
    pub fn seal_xattr_value(&self, object: &[u8; 16], name: &[u8], value: &[u8]) -> Vec<u8> {
        siv::seal(&self.xattrs, &[object, b"value", name], value)
    }
    /// Reverses [`Self::seal_xattr_value`].
    pub fn open_xattr_value(
        &self,
        object: &[u8; 16],
        name: &[u8],
        sealed: &[u8],
    ) -> Result<Vec<u8>, AuthError> {
        siv::open(&self.xattrs, &[object, b"value", name], sealed)
    }
}

/// base64url without padding, as stored names are written.
pub fn encode_name(sealed: &[u8]) -> String {
    BASE64URL_NOPAD.encode(sealed)
}
/// Reverses [`encode_name`]; `None` for anything not canonical.
pub fn decode_name(text: &[u8]) -> Option<Vec<u8>> {
    BASE64URL_NOPAD.decode(text).ok()
}
/// `base64url(SHA-256(sealed))` of a long name.
pub fn long_name_hash(sealed: &[u8]) -> String {
    BASE64URL_NOPAD.encode(&mac::sha256(sealed))
}

#[cfg(test)]
mod tests;
