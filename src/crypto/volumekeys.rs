//! What the volume key becomes: MAC keys, names, symlinks, xattrs.

use super::{AuthError, Secret};
use crate::format::{DirId, VolumeId};

/// The volume key.
pub struct VolumeKey(pub Secret<32>);

/// Keys derived from the volume key; thread-safe, shared by the whole mount.
pub struct VolumeKeys {}
impl VolumeKeys {
    /// Derives all of them.
    pub fn derive(key: &VolumeKey, volume: VolumeId) -> Self {
        todo!()
    }
    /// Header MAC.
    pub fn header_mac(&self, bytes: &[u8]) -> [u8; 32] {
        todo!()
    }
    /// Constant-time check of a header MAC.
    pub fn header_mac_ok(&self, bytes: &[u8], mac: &[u8; 32]) -> bool {
        todo!()
    }
    /// Descriptor MAC.
    pub fn descriptor_mac(&self, bytes: &[u8]) -> [u8; 32] {
        todo!()
    }
    /// Constant-time check of a descriptor MAC.
    pub fn descriptor_mac_ok(&self, bytes: &[u8], mac: &[u8; 32]) -> bool {
        todo!()
    }
    /// Directory MAC.
    pub fn directory_mac(&self, bytes: &[u8]) -> [u8; 32] {
        todo!()
    }
    /// Constant-time check of a directory MAC.
    pub fn directory_mac_ok(&self, bytes: &[u8], mac: &[u8; 32]) -> bool {
        todo!()
    }
    /// SIV of a name within its directory (16 bytes longer than the name).
    pub fn seal_name(&self, dir: DirId, name: &[u8]) -> Vec<u8> {
        todo!()
    }
    /// Reverses [`Self::seal_name`].
    pub fn open_name(&self, dir: DirId, sealed: &[u8]) -> Result<Vec<u8>, AuthError> {
        todo!()
    }
    /// SIV of a symlink target.
    pub fn seal_symlink(&self, target: &[u8]) -> Vec<u8> {
        todo!()
    }
    /// Reverses [`Self::seal_symlink`].
    pub fn open_symlink(&self, sealed: &[u8]) -> Result<Vec<u8>, AuthError> {
        todo!()
    }
    /// SIV of an attribute name within its object.
    pub fn seal_xattr_name(&self, object: &[u8; 16], name: &[u8]) -> Vec<u8> {
        todo!()
    }
    /// Reverses [`Self::seal_xattr_name`].
    pub fn open_xattr_name(&self, object: &[u8; 16], sealed: &[u8]) -> Result<Vec<u8>, AuthError> {
        todo!()
    }
    /// SIV of an attribute value.
    pub fn seal_xattr_value(&self, object: &[u8; 16], name: &[u8], value: &[u8]) -> Vec<u8> {
        todo!()
    }
    /// Reverses [`Self::seal_xattr_value`].
    pub fn open_xattr_value(
        &self,
        object: &[u8; 16],
        name: &[u8],
        sealed: &[u8],
    ) -> Result<Vec<u8>, AuthError> {
        todo!()
    }
}

/// base64url without padding, as stored names are written.
pub fn encode_name(sealed: &[u8]) -> String {
    todo!()
}
/// Reverses [`encode_name`]; `None` for anything not canonical.
pub fn decode_name(text: &[u8]) -> Option<Vec<u8>> {
    todo!()
}
/// `base64url(SHA-256(sealed))` of a long name.
pub fn long_name_hash(sealed: &[u8]) -> String {
    todo!()
}
