//! The local master key as a provider.

use super::{KeyError, KeyProvider, WrapContext};
use crate::crypto::Secret;
use crate::crypto::wrap::LocalWrapKey;
use crate::format::VolumeId;
use crate::format::header::{Recipient, RecipientKind};

/// Wraps under the master key that passphrase or key file opened.
pub struct LocalMaster {
    key: LocalWrapKey,
    epoch: u32,
}

impl LocalMaster {
    /// From the opened master key.
    pub fn new(master: &Secret<32>, volume: VolumeId, epoch: u32) -> Self {
        Self { key: LocalWrapKey::derive(master, volume), epoch }
    }
    /// How descriptors name the local master key of this epoch.
    pub fn name(epoch: u32) -> Recipient {
        Recipient { kind: RecipientKind::LocalMaster, epoch, key_ref: vec![], wrapped: vec![] }
    }
}

impl KeyProvider for LocalMaster {
    fn recipient(&self) -> Recipient {
        Self::name(self.epoch)
    }
    fn describe(&self) -> String {
        super::describe_recipient(&self.recipient())
    }
    fn wrap(&self, context: &WrapContext, key: &Secret<32>) -> Result<Recipient, KeyError> {
        let wrapped = self.key.seal(&context.bytes(), key).to_vec();
        Ok(Recipient { wrapped, ..self.recipient() })
    }
    fn unwrap(&self, context: &WrapContext, copy: &Recipient) -> Result<Secret<32>, KeyError> {
        self.key.open(&context.bytes(), &copy.wrapped).map_err(|_| {
            KeyError::Tampered(
                "a key wrapped by the local master key does not open: it is damaged, or was made \
                 for another place"
                    .into(),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::wrap::Purpose;
    use crate::format::DataKeyId;

    #[test]
    fn a_wrapped_copy_opens_in_its_context_only() {
        let volume = VolumeId([1; 16]);
        let provider = LocalMaster::new(&Secret::random(), volume, 3);
        let context = WrapContext { volume, purpose: Purpose::Data(DataKeyId([2; 16])) };
        let (key, copy) = provider.generate(&context).expect("local keys are always there");
        assert_eq!((copy.epoch, copy.wrapped.len()), (3, 48));
        assert_eq!(provider.unwrap(&context, &copy).expect("ours").expose(), key.expose());
        for purpose in [Purpose::Volume, Purpose::Data(DataKeyId([3; 16]))] {
            let other = WrapContext { volume, purpose };
            assert!(matches!(provider.unwrap(&other, &copy), Err(KeyError::Tampered(_))));
        }
        let other = LocalMaster::new(&Secret::random(), volume, 3);
        assert!(matches!(other.unwrap(&context, &copy), Err(KeyError::Tampered(_))));
    }
}
