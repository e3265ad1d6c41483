//! One KMS key takes the place of another, and what is left of the old one is taken away at last.

use super::{Editor, bad, kms_provider};
use crate::crypto::Secret;
use crate::format::header::Recipient;
use crate::keys::aws::{self, KeyArn};
use crate::keys::unlock::{UnlockOptions, volume_context};
use crate::keys::{KeyError, KeyProvider, describe_recipient, kms_keys, rotation, same_key};

impl Editor {
    /// The KMS keys new files are wrapped for, in the descriptor's order.
    pub fn kms_keys(&self) -> Vec<KeyArn> {
        parsed(kms_keys(&self.descriptor).0)
    }

    /// The KMS keys that headers may still name, and nothing new is wrapped for.
    pub fn retiring_keys(&self) -> Vec<KeyArn> {
        parsed(kms_keys(&self.descriptor).1)
    }

    /// The key that the last rotation replaced, while the volume still knows it. One that somebody
    /// replaced otherwise is his affair.
    pub fn replaced_key(&self) -> Option<KeyArn> {
        let (from, _) = rotation::last_pair(&self.descriptor)?;
        self.retiring_keys().into_iter().find(|key| key.id() == from)
    }

    /// The key in use that took its place. Descriptors of before do not name it: then it is the only key
    /// or the only one of the same Region.
    pub fn successor_of(&self, old: &KeyArn) -> Option<KeyArn> {
        let named = rotation::last_pair(&self.descriptor).and_then(|(_, to)| to);
        successor_among(self.kms_keys(), old, named.as_deref())
    }

    /// Puts `to` where `from` was. What is wrapped for `from` can still be opened; nothing new is
    /// wrapped for it. If both are the same key, it is taken as one whose material is new, and
    /// wrapped copies of before are to be made anew. Returns the key that `to` stands for.
    ///
    /// Both keys are proven: `from` unwraps the volume key, `to` wraps it and unwraps what it
    /// wrapped.
    pub fn replace_kms_key(
        &mut self,
        from: &KeyArn,
        to: &KeyArn,
        options: &UnlockOptions,
    ) -> Result<KeyArn, KeyError> {
        let old = aws::name(from, 0);
        let copies = &self.descriptor.volume_keys;
        let place = copies.iter().position(|copy| same_key(copy, &old)).ok_or_else(|| {
            KeyError::NotOurs(format!("{} is not a key of this volume", from.as_str()))
        })?;
        let copy = self.proven_copy(&copies[place], to, options)?;
        let new = KeyArn::parse(&describe_recipient(&copy))?;
        let renewed = same_key(&copy, &old);
        if !renewed && copies.iter().any(|other| same_key(other, &copy)) {
            let name = new.as_str();
            return Err(bad(&format!("{name} is a key of this volume already, beside the other")));
        }
        let epoch = copies[place].epoch + u32::from(renewed);
        let copy = Recipient { epoch, ..copy };
        self.check_exchange_room(place, &copy)?;
        let name = Recipient { wrapped: vec![], ..copy.clone() };
        self.descriptor.volume_keys[place] = copy;
        let allowed = &mut self.descriptor.allowed;
        // It may have been on its way out.
        allowed.retain(|key| renewed || !same_key(key, &name));
        match allowed.iter_mut().find(|key| same_key(key, &old)) {
            Some(key) => {
                let before = std::mem::replace(key, name);
                if !renewed {
                    allowed.push(before);
                }
            }
            None => allowed.insert(0, name),
        }
        Ok(new)
    }

    /// Takes a key that nothing new is wrapped for out of the list. False if it is not in it.
    pub fn forget_kms_key(&mut self, arn: &KeyArn) -> Result<bool, KeyError> {
        let name = aws::name(arn, 0);
        if self.descriptor.volume_keys.iter().any(|copy| same_key(copy, &name)) {
            return Err(bad(&format!("{} is a key of this volume: rotate it first", arn.as_str())));
        }
        let before = self.descriptor.allowed.len();
        self.descriptor.allowed.retain(|key| !same_key(key, &name));
        Ok(self.descriptor.allowed.len() < before)
    }

    /// The volume key wrapped by `to`, from `old` without showing it to anybody if that can be.
    fn proven_copy(
        &self,
        old: &Recipient,
        to: &KeyArn,
        options: &UnlockOptions,
    ) -> Result<Recipient, KeyError> {
        let context = volume_context(self.descriptor.volume);
        let provider = kms_provider(to, options);
        let copy = match provider.reencrypt(&context, old) {
            Some(copy) => copy?,
            None => provider.wrap(&context, &self.volume_key.0)?,
        };
        // An alias wraps, and may be pointed elsewhere; what unwraps is the key.
        let key = KeyArn::parse(&describe_recipient(&copy))?;
        let opened: Secret<32> = kms_provider(&key, options).unwrap(&context, &copy)?;
        if !opened.is(&self.volume_key.0) {
            return Err(KeyError::Tampered(format!(
                "KMS key {} gave back another key than it wrapped; nothing was changed",
                key.as_str()
            )));
        }
        Ok(copy)
    }

    /// The header's place must hold the new copies instead of the old ones.
    fn check_exchange_room(&mut self, place: usize, copy: &Recipient) -> Result<(), KeyError> {
        let removed = self.descriptor.volume_keys.remove(place);
        let fits = self.check_header_room(copy);
        self.descriptor.volume_keys.insert(place, removed);
        fits
    }
}

fn parsed(names: Vec<String>) -> Vec<KeyArn> {
    names.iter().filter_map(|name| KeyArn::parse(name).ok()).collect()
}

fn successor_among(keys: Vec<KeyArn>, old: &KeyArn, named: Option<&str>) -> Option<KeyArn> {
    if let Some(key) = keys.iter().find(|key| Some(key.id()) == named) {
        return Some(key.clone());
    }
    let only = keys.len() == 1;
    let mut near = keys.into_iter().filter(|key| only || key.region() == old.region());
    near.next().filter(|_| near.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_successor_is_the_one_that_is_named_or_else_the_only_one_it_can_be() {
        let key = |region: &str, id: &str| {
            KeyArn::parse(&format!("arn:aws:kms:{region}:111122223333:key/{id}")).unwrap()
        };
        let (old, new, beside) =
            (key("eu-west-1", "o"), key("eu-west-1", "n"), key("eu-west-1", "b"));
        let abroad = key("us-east-1", "a");
        let three = || vec![beside.clone(), new.clone(), abroad.clone()];
        assert_eq!(successor_among(three(), &old, Some("n")), Some(new.clone()));
        assert_eq!(successor_among(three(), &old, None), None);
        // It was replaced in turn, by something else than a rotation.
        assert_eq!(successor_among(three(), &old, Some("gone")), None);
        assert_eq!(successor_among(vec![new.clone(), abroad.clone()], &old, None), Some(new));
        assert_eq!(successor_among(vec![abroad.clone()], &old, None), Some(abroad));
    }
}
