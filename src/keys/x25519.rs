//! X25519 recipients as a provider: wrapping needs the public key, unwrapping the identity.

use super::{KeyError, KeyProvider, WrapContext};
use crate::crypto::Secret;
use crate::crypto::hpke::{self, Identity};
use crate::format::header::{Recipient, RecipientKind};

/// One X25519 recipient.
pub struct X25519 {
    public: [u8; 32],
    epoch: u32,
    identity: Option<Identity>,
}

impl X25519 {
    /// A recipient one can only wrap to.
    pub fn public(public: [u8; 32], epoch: u32) -> Self {
        Self { public, epoch, identity: None }
    }
    /// A recipient whose private half is here.
    pub fn with_identity(identity: Identity, epoch: u32) -> Self {
        Self { public: identity.public_key(), epoch, identity: Some(identity) }
    }
    /// Gives the private half back, if it was here.
    pub fn into_identity(self) -> Option<Identity> {
        self.identity
    }
    /// How descriptors name a public key.
    pub fn name(public: &[u8; 32], epoch: u32) -> Recipient {
        let key_ref = public.to_vec();
        Recipient { kind: RecipientKind::X25519, epoch, key_ref, wrapped: vec![] }
    }
}

impl KeyProvider for X25519 {
    fn recipient(&self) -> Recipient {
        Self::name(&self.public, self.epoch)
    }
    fn can_unwrap(&self) -> bool {
        self.identity.is_some()
    }
    fn describe(&self) -> String {
        super::describe_recipient(&self.recipient())
    }
    fn wrap(&self, context: &WrapContext, key: &Secret<32>) -> Result<Recipient, KeyError> {
        let wrapped = hpke::seal(&self.public, &context.bytes(), key).map_err(|_| {
            KeyError::Misconfigured(format!(
                "{} is not a usable public key; check it against the one that `key generate` \
                 printed",
                self.describe()
            ))
        })?;
        Ok(Recipient { wrapped: wrapped.to_vec(), ..self.recipient() })
    }
    fn unwrap(&self, context: &WrapContext, copy: &Recipient) -> Result<Secret<32>, KeyError> {
        let Some(identity) = &self.identity else {
            return Err(KeyError::Unavailable(format!(
                "the private half of {} is not here; give its file with --identity",
                self.describe()
            )));
        };
        hpke::open(identity, &context.bytes(), &copy.wrapped).map_err(|_| {
            KeyError::Tampered(format!(
                "a key wrapped to {} does not open: it is damaged, or was made for another place",
                self.describe()
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::wrap::Purpose;
    use crate::format::{DataKeyId, VolumeId};

    const CONTEXT: WrapContext =
        WrapContext { volume: VolumeId([1; 16]), purpose: Purpose::Data(DataKeyId([2; 16])) };

    #[test]
    fn wrapping_needs_the_public_half_only_and_unwrapping_the_private_half() {
        let identity = Identity::generate();
        let public = X25519::public(identity.public_key(), 1);
        let private = X25519::with_identity(identity, 1);
        let (key, copy) = public.generate(&CONTEXT).expect("a good public key");
        assert!(matches!(public.unwrap(&CONTEXT, &copy), Err(KeyError::Unavailable(_))));
        assert_eq!(private.unwrap(&CONTEXT, &copy).expect("ours").expose(), key.expose());
        let other = WrapContext { purpose: Purpose::Volume, ..CONTEXT };
        assert!(matches!(private.unwrap(&other, &copy), Err(KeyError::Tampered(_))));
    }

    #[test]
    fn a_public_key_no_identity_has_is_refused() {
        let result = X25519::public([0; 32], 1).wrap(&CONTEXT, &Secret::random());
        assert!(matches!(result, Err(KeyError::Misconfigured(_))));
    }
}
